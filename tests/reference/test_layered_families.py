"""Families with a rope a layer type, and those of latent attention: what transformers 5 makes of a conversion.

The models are built by transformers from our config.json. Its rotary modules compute in float32, hence
``FLOAT32`` of tests/reference/test_transformers_families.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.families import FAMILIES, Family, latent, layered
from ctxextend.formats.hf_layers import layer_labels
from ctxextend.formats.hf_read import read_rope
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from ctxextend.scaling import table
from tests.factories import converted, family_config, inspected, planned
from tests.reference.test_transformers_families import FLOAT32, built, ropes, same

ROTARY = [row.name for row in layered.ROWS if row.position == "rope"]
LATENT = [row.name for row in latent.ROWS if row.position == "rope"]
#: Lengths that the classes' own scalings were trained for.
LENGTHS = {"mistral4": 1048576, "mistral_large4": 1048576}
#: Only yarn by its own factor keeps Mistral 4's query temperature as it is.
UNWRITABLE = {("mistral4", method) for method in ("linear", "ntk", "llama3", "ntk-by-parts")}
#: Families without a rope that sees past its window.
NOTHING_TO_SCALE = ("beam",)
CASES = [
    *((name, method) for name in ROTARY for method in ("ntk", "yarn")),
    *(
        pytest.param(name, method, marks=pytest.mark.full)
        for name in ROTARY
        for method in ("linear", "llama3", "ntk-by-parts")
    ),
]


def source_of(name: str, **changes: Any) -> dict[str, Any]:
    return family_config(FAMILIES[name], **{"max_position_embeddings": LENGTHS.get(name, 4096), **changes})


def plan_of(config: Mapping[str, Any], method: str, *, factor: int = 8, **options: Any) -> Plan:
    # Other versions of transformers are another test's business.
    recipe = Recipe(
        method=method,
        target=factor * config["max_position_embeddings"],
        runtimes=("transformers",),
        allow=("unreadable",),
    )
    return planned(config, recipe, **options)


def model_of(config: Mapping[str, Any], folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    return built(config, folder)


def softmax_factors(model: torch.nn.Module) -> list[float]:
    """What each layer of latent attention multiplies its usual softmax scale by."""
    layers = [module for module in model.modules() if hasattr(module, "qk_head_dim") and hasattr(module, "scaling")]
    assert layers
    return sorted({float(layer.scaling) * float(layer.qk_head_dim) ** 0.5 for layer in layers})  # type: ignore[arg-type]


def agrees(config: Mapping[str, Any], family: Family, model: torch.nn.Module, *, length: int | None = None) -> None:
    """The model's ropes are those that we read from its config.json."""
    groups = {group.label: group for group in read_rope(config, family).groups if group.spec is not None}
    found = list(ropes(model))
    assert found
    for label, frequencies, attention in found:
        for group in [groups[label]] if label in groups else groups.values() if label is None else ():
            assert group.spec is not None
            same(table(group.spec, group.scaling, length=length), frequencies, attention)


@pytest.mark.parametrize("name", ROTARY)
def test_a_plain_config_is_read_as_transformers_does(name: str, tmp_path: Path) -> None:
    config = source_of(name)
    agrees(config, FAMILIES[name], model_of(config, tmp_path))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_extended_layers_are_as_planned_and_others_as_they_were(name: str, method: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = source_of(name)
    if (name, method) in UNWRITABLE:
        with pytest.raises(RefusedError) as caught:
            plan_of(config, method)
        assert caught.value.code == "unwritable"
        return
    plan = plan_of(config, method)
    before = {label: (inv, attention) for label, inv, attention in ropes(model_of(config, tmp_path / "before"))}
    model = model_of(converted(config, plan), tmp_path / "after")
    groups = {group.label: group for group in plan.groups if group.after is not None}
    extended = [label for label, group in groups.items() if group.extended]
    assert bool(extended) == (name not in NOTHING_TO_SCALE)
    seen = set()
    for label, frequencies, attention in ropes(model):
        if label is not None and label not in extended:
            assert (frequencies, attention) == before[label]
            continue
        for group in [groups[label]] if label else groups.values():
            assert group.after is not None
            same(group.after.table, frequencies, attention)
            assert frequencies != before[label][0]
            seen.add(group.label)
    assert seen == set(extended)
    if family.softmax_mscale:
        goal = groups[extended[0]].after
        assert goal is not None
        assert softmax_factors(model) == pytest.approx([goal.table.softmax_factor], rel=1e-9)
    assert model.config.max_position_embeddings == pytest.approx(plan.target_context, rel=1e-3)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 32.0,
    "original_max_position_embeddings": 2048,
}
PARTS = {"rope_type": "default", "rope_theta": 20000.0}
TWO = ["full_attention", "sliding_attention"]

#: Ways in which a config of a family can be written, each of which its class takes in its own way.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "a share of the head, in dictionaries": (
        "laguna",
        {
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 500000.0, "partial_rotary_factor": 0.25},
                "sliding_attention": {**PARTS, "partial_rotary_factor": 0.5},
            }
        },
    ),
    "compress by a flat yarn": (
        "deepseek_v4",
        {
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
            "compress_rope_theta": 40000.0,
        },
    ),
    "compress by a flat yarn with a temperature": (
        "deepseek_v4",
        {"rope_parameters": {**YARN, "attention_factor": 1.25}, "qk_rope_head_dim": 16},
    ),
    "both of DeepSeek-V4's labels": (
        "deepseek_v4",
        {
            "rope_parameters": {
                "main": {**PARTS, "partial_rotary_factor": 0.5},
                "compress": {**YARN, "rope_theta": 160000.0, "partial_rotary_factor": 0.5},
            }
        },
    ),
    "lists and a scaling of full attention": ("step3p5", {"rope_scaling": LLAMA3}),
    "lists that go on for the layers that predict further tokens": (
        "step3p5",
        {
            "num_nextn_predict_layers": 1,
            "layer_types": [*TWO, "full_attention"],
            "rope_theta": [5000000.0, 10000.0, 70000.0],
            "partial_rotary_factors": [0.5, 1.0, 0.25],
        },
    ),
    "dictionaries beside a scaling that no longer counts": (
        "step3p5",
        {
            "rope_parameters": {label: {**PARTS, "partial_rotary_factor": 0.5} for label in TWO},
            "rope_scaling": LLAMA3,
        },
    ),
    "one dictionary of two, so both are rebuilt": (
        "step3p5",
        {"rope_parameters": {"full_attention": {**PARTS, "partial_rotary_factor": 0.25}}},
    ),
    "one scaling for both labels": ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "an older type that a label's own hides": (
        "modernbert",
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "one label stated, one filled in": (
        "modernbert",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    ),
    "one label of NeoMME stated": (
        "neomme",
        {"rope_parameters": {"full_attention": {"rope_theta": 3000.0}}, "rope_theta": 50000.0},
    ),
    "heads of its own a layer": (
        "gemma4",
        {"per_layer_config": {"5": {"head_dim": 128}}, "global_head_dim": 64},
    ),
    "a smaller share of larger heads": (
        "gemma4",
        {
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 70000.0,
                    "partial_rotary_factor": 0.5,
                    "factor": 8.0,
                },
                "sliding_attention": PARTS,
            }
        },
    ),
    "layer types of Gemma 4 whose last is no full attention": (
        "gemma4",
        {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "a dictionary without a base": (
        "lfm3",
        {
            "rope_theta": 30000.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
                "sliding_attention": {"rope_type": "default"},
            },
        },
    ),
    "windows a layer": ("ultrabert", {"attention_windows": [None, 16, 0], "rope_theta": [9000.0, 7000.0, 9000.0]}),
    "an inner original length beside an outer one": (
        "gemma3n",
        {
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 1000000.0},
                "sliding_attention": PARTS,
            },
        },
    ),
    "an outer original length alone": (
        "gemma3n",
        {
            "original_max_position_embeddings": 128,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        },
    ),
    "an outer original length in a flat family": (
        "deepseek_v32",
        {"original_max_position_embeddings": 512, "rope_scaling": YARN},
    ),
    "older layer types": ("deepseek_v32", {"layer_types": ["deepseek_sparse_attention"]}),
    "half of the layers attend twice": ("longcat_flash", {"num_layers": 2, "num_hidden_layers": 4}),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_every_way_of_writing_is_read_as_transformers_does(way: str, tmp_path: Path) -> None:
    name, changes = WRITTEN[way]
    config = source_of(name, **changes)
    model = model_of(config, tmp_path)
    agrees(config, FAMILIES[name], model)


#: What a class fails on when its model is built.
BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "flat settings": ("gemma4", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "a label missing": ("mellum", {"rope_parameters": {"full_attention": PARTS}}),
    "a base missing": (
        "zaya",
        {"rope_parameters": {"hybrid": {"rope_type": "default"}, "hybrid_sliding": PARTS}},
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_a_class_fails_on_is_refused(what: str, tmp_path: Path) -> None:
    name, changes = BROKEN[what]
    config = source_of(name, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_rope(config, FAMILIES[name])
    assert caught.value.key is not None
    with pytest.raises((KeyError, TypeError)):
        model_of(config, tmp_path)


#: Scalings as they stand in configs, which an extension starts from.
TRAINED: dict[str, dict[str, Any]] = {
    "deepseek_v32": {
        "max_position_embeddings": 163840,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    "deepseek_v4": {"rope_scaling": YARN},
    "laguna": {
        "rope_parameters": {
            "full_attention": {**YARN, "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {**PARTS, "partial_rotary_factor": 1.0},
        }
    },
    "minicpm3": {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i / 10 for i in range(16)],
            "long_factor": [1.0 + i / 10 for i in range(16)],
            "original_max_position_embeddings": 4096,
        }
    },
    "mistral4": {},
    "mistral_large4": {},
    "step3p5": {"rope_scaling": LLAMA3},
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "yarn") for name in TRAINED),
        *(pytest.param(name, method, marks=pytest.mark.full) for name in TRAINED for method in ("linear", "ntk")),
    ],
)
def test_an_extension_of_a_trained_in_scaling(name: str, method: str, tmp_path: Path) -> None:
    config = source_of(name, **TRAINED[name])
    if (name, method) in UNWRITABLE:
        return
    plan = plan_of(config, method, factor=2, base="trained")
    edited = converted(config, plan)
    model = model_of(edited, tmp_path)
    groups = {group.label: group for group in plan.groups if group.after is not None}
    for label, frequencies, attention in ropes(model):
        for group in [groups[label]] if label else groups.values():
            assert group.after is not None
            same(group.after.table, frequencies, attention)
    goal = next(group.after for group in groups.values() if group.extended)
    assert goal is not None
    if FAMILIES[name].softmax_mscale:
        assert softmax_factors(model) == pytest.approx([goal.table.softmax_factor], rel=1e-9)
    agrees(edited, FAMILIES[name], model)


def test_mistral4_keeps_what_its_query_temperature_is_counted_over(tmp_path: Path) -> None:
    """Its class reads llama_4_scaling_beta and the original length from rope_parameters (modeling_mistral4.py)."""
    config = source_of("mistral4")
    edited = converted(config, plan_of(config, "yarn", factor=2))
    kept = model_of(edited, tmp_path).config.rope_parameters
    assert (kept["llama_4_scaling_beta"], kept["original_max_position_embeddings"]) == (0.1, 8192)
    assert kept["partial_rotary_factor"] == 32 / 48, "of a head of 16 + 32 dimensions, 32 are turned"
    assert "rope_scaling" not in edited, "it would replace rope_parameters, and lose the share"


@pytest.mark.parametrize("name", ["gemma4", "lfm3"])
def test_pairs_that_stand_still_do_so_at_any_position(name: str, tmp_path: Path) -> None:
    """A carrier can't hold a frequency of zero: what it holds must turn nothing, whatever the length."""
    config = source_of(name)
    plan = plan_of(config, "yarn")
    model = model_of(converted(config, plan), tmp_path)
    rotary = next(module for module in model.modules() if hasattr(module, "full_attention_inv_freq"))
    goal = next(group.after.table for group in plan.groups if group.extended and group.after is not None)
    turning = sum(frequency > 0.0 for frequency in goal.inv_freq)
    assert 0 < turning < len(goal.inv_freq)
    positions = torch.tensor([[0, 1, plan.target_context - 1, 100_000_000]])
    cosines, sines = rotary(torch.zeros(1, 1, 4, 8), positions, "full_attention")
    attention = torch.tensor(goal.attention_factor)
    still = slice(turning, len(goal.inv_freq))
    torch.testing.assert_close(cosines[..., still], attention.expand_as(cosines[..., still]), rtol=1e-4, atol=0)
    assert torch.equal(cosines[:, :1, still].expand_as(cosines[..., still]), cosines[..., still])
    assert float(sines[..., still].abs().max()) < 1e-12
    angle = torch.tensor(goal.inv_freq[1])
    torch.testing.assert_close(cosines[0, 1, 1], attention * angle.cos(), rtol=1e-4, atol=0)


def test_a_fixed_alpha_is_another_base(tmp_path: Path) -> None:
    """HunYuan's "dynamic" with an alpha (modeling_hunyuan_v1_dense.py): 10000 * 1000 ** (32 / 30)."""
    family = FAMILIES["hunyuan_v1_dense"]
    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1}
    config = family_config(family, rope_scaling=scaling, head_dim=32)
    group = read_rope(config, family).groups[0]
    assert group.spec is not None
    assert group.scaling is None
    assert group.spec.rope_theta == pytest.approx(10000.0 * 1000.0 ** (32 / 30), rel=1e-12)
    agrees(config, family, model_of(config, tmp_path))
    plan = planned(config, Recipe(method="yarn", factor=4.0, runtimes=("transformers",)))
    edited = converted(config, plan)
    assert "alpha" not in edited["rope_scaling"]
    (tmp_path / "after").mkdir()
    agrees(edited, family, model_of(edited, tmp_path / "after"))


def patterns() -> Iterator[Any]:
    for row in layered.ROWS:
        if row.position == "rope" and row.layer_pattern.kind != "no_rope_layers":
            for count in (2, 3, 13):
                yield pytest.param(row.name, count, id=f"{row.name}-{count}")


@pytest.mark.parametrize(("name", "count"), list(patterns()))
def test_default_layer_types_are_those_of_the_class(name: str, count: int) -> None:
    family = FAMILIES[name]
    ours = layer_labels({"num_hidden_layers": count, "num_layers": count // 2 or None}, family)
    text = CONFIG_MAPPING[family.model_types[-1]](num_hidden_layers=count).get_text_config()
    theirs = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    assert ours == tuple(family.label_of.get(label, label) for label in theirs)


@pytest.mark.parametrize("name", [row.name for row in layered.ROWS if row.labels])
def test_labels_are_those_of_the_class(name: str) -> None:
    """A class that has no dictionary for a label (or null) sets nothing for it."""
    family = FAMILIES[name]
    parameters = CONFIG_MAPPING[family.model_types[-1]]().get_text_config().rope_parameters
    for label, settings in parameters.items():
        rope = family.labels[label]
        if settings is None:
            assert label in family.unrotated
            continue
        assert (rope.rope_theta, rope.rope_type) == (settings["rope_theta"], settings["rope_type"])
        if family.head_dim_key == "head_dim":
            assert rope.partial_rotary_factor == settings.get("partial_rotary_factor")


def test_which_classes_came_with_transformers_5() -> None:
    """4.57.6 knows these of them (its CONFIG_MAPPING)."""
    ours = {row.name for row in layered.ROWS if row.position == "rope" and not row.only_transformers_5}
    assert ours == {"gemma3n", "longcat_flash", "modernbert", "modernbert_decoder"}


@pytest.mark.parametrize("name", ["kimi_linear", "glm5_next"])
def test_latent_attention_without_positions_has_no_rope(name: str) -> None:
    found = inspected({"model_type": name, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2})
    assert (found.position, found.groups) == ("none", ())
    text = CONFIG_MAPPING[name]().get_text_config()
    assert getattr(text, "rope_parameters", None) is None


def test_what_is_refused_has_a_reason() -> None:
    assert all(model_type in CONFIG_MAPPING and len(reason) > 40 for model_type, reason in layered.REFUSED.items())


def test_a_second_conversion_starts_from_the_first_source() -> None:
    """The record undoes every edit of a layered config, those of a carrier included."""
    config = source_of("gemma4")
    first = converted(config, plan_of(config, "yarn"))
    recipe = Recipe(method="yarn", target=4 * 4096, runtimes=("transformers",), allow=("unreadable",))
    again = converted(first, planned(first, recipe))
    fresh = converted(config, planned(config, recipe))
    assert {**again, "ctxextend": None} == {**fresh, "ctxextend": None}


def test_lists_of_two_lengths_over_a_proportional_rope(tmp_path: Path) -> None:
    """Eight of 32 pairs turn; the model's own frequencies are the short list's, then the long one's."""
    short, long = [1.0 + i / 10 for i in range(8)], [1.0 + i for i in range(8)]
    options = {"short_factor": [*short, *[1.0] * 24], "long_factor": [*long, *[1.0] * 24]}
    recipe = Recipe(method="longrope", target=16384, options=options, runtimes=("transformers",), allow=("unreadable",))
    config = source_of("gemma4")
    edited = converted(config, planned(config, recipe))
    agrees(edited, FAMILIES["gemma4"], model_of(edited, tmp_path), length=4096)
    model = model_of(edited, tmp_path)
    rotary = next(module for module in model.modules() if hasattr(module, "full_attention_inv_freq"))
    rotary(torch.zeros(1, 1, 1, 8), torch.tensor([[4096]]), "full_attention")
    plain = [1000000.0 ** (-2 * i / 64) for i in range(8)]
    expected = [frequency / factor for frequency, factor in zip(plain, long, strict=True)]
    assert rotary.full_attention_inv_freq.tolist() == pytest.approx([*expected, *[0.0] * 24], rel=FLOAT32, abs=1e-20)


def test_the_switch_that_longrope_needs_is_written_and_needed(tmp_path: Path) -> None:
    config = source_of("gemma4")
    edited = converted(config, plan_of(config, "yarn"))
    assert edited["allow_global_per_layer_attribute_access"] is True
    del edited["allow_global_per_layer_attribute_access"]
    (tmp_path / "config.json").write_text(json.dumps(edited))
    with pytest.raises(Exception, match="per-layer attribute"):
        AutoConfig.from_pretrained(tmp_path)


def test_tables_of_the_wrong_model_would_be_noticed(tmp_path: Path) -> None:
    """The comparison itself: another label's table isn't taken for this one's."""
    model = model_of(source_of("gemma4"), tmp_path)
    frequencies, attention = next((inv, a) for label, inv, a in ropes(model) if label == "full_attention")
    with pytest.raises(AssertionError):
        same(RopeTable(inv_freq=tuple(10000.0 ** (-2 * i / 64) for i in range(32))), frequencies, attention)
