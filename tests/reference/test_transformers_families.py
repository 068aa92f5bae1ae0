"""Every family that transformers has: planned, written, built by AutoModel, and its rope looked at.

The rotary modules compute in float32, hence ``FLOAT32``: the exponent's rounding times ln(theta).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.errors import RefusedError
from ctxextend.families import FAMILIES, Family, established, flat, multimodal, variants
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from ctxextend.runtimes.transformers import Transformers5
from tests.factories import converted, family_config, planned

FLOAT32 = 2e-6
#: A carrier's temperature, from lengths that must be whole numbers.
CARRIER = 1e-4

METHODS = ("linear", "ntk", "yarn", "llama3")
ESTABLISHED = sorted(row.name for row in established.ROWS if row.position == "rope" and row.refusal is None)
FLAT = sorted(row.name for row in (*flat.ROWS, *multimodal.ROWS, *variants.ROWS))
#: Every method for the families whose reading is known for every runtime, two that write differently for the others.
CASES = [
    *((name, method) for name in ESTABLISHED for method in METHODS),
    *((name, method) for name in FLAT for method in ("ntk", "yarn")),
]
REST = [(name, method) for name in FLAT for method in ("linear", "llama3", "ntk-by-parts")]

#: Lengths that the families' own default scalings were trained for.
LENGTHS = {
    "apertus": 65536,
    "cwm": 131072,
    "gpt_oss": 131072,
    "ministral3": 262144,
    "openai_privacy_filter": 131072,
}
#: Models that are too much to build, or need other packages: their rotary class alone is looked at.
ROTARY_CLASS = {"chameleon": "ChameleonRotaryEmbedding", "evolla": "EvollaRotaryEmbedding"}
#: Its buffer holds the frequencies in the order of height, width and time, and forward() puts them back.
PERMUTED = {"ernie4_5_vl_moe"}
#: Its cosines and sines are one a pair, not one a dimension.
HALF_COSINES = {"openai_privacy_filter"}
#: Ropes that want a position for time, height and width each, and what else they have one for.
SHAPE = {
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm_image", "glm_ocr", "paddleocr_vl", "qwen2_5_omni"), (3, 1, 1)),
    "hunyuan_vl": (4, 1, 1),
}
#: Configs of which AutoModel makes more than the language model.
LANGUAGE_MODEL = {"csm": "CsmBackboneModel", "kyutai_speech_to_text": "KyutaiSpeechToTextModel"}
#: What is refused for transformers, and why; what can be written all the same is, and 5.x reads it as planned.
REFUSED = {
    # Only yarn by its own factor keeps Ministral 3's query temperature as it is.
    **{("ministral3", method): "unwritable" for method in ("linear", "ntk", "llama3")},
    # The classes of 4.57 ignore scalings or fail on them; Olmo 3's has one theta for both layer types.
    **{("nemotron", method): "unreadable" for method in ("linear", "yarn", "llama3")},
    **{(name, method): "unreadable" for name in ("olmo", "olmo2") for method in ("yarn", "llama3")},
    ("olmo3", "ntk"): "unreadable",
    # The class of 4.57 has no softmax factor.
    ("deepseek_v2", "yarn"): "unreadable",
    # Classes that take no scaling, or none that can be written, but a base.
    **{
        (name, method): "unwritable"
        for name in ("cosmos3_edge", "ernie4_5_vl_moe", "phimoe")
        for method in ("linear", "yarn", "llama3", "ntk-by-parts")
    },
}


def source_of(family: Family) -> dict[str, Any]:
    length = LENGTHS.get(family.name, 4096)
    config = family_config(family, max_position_embeddings=length)
    if family.form == "phi3":
        config["original_max_position_embeddings"] = length
    return config


def plan_of(config: Mapping[str, Any], method: str, *, factor: int = 8, allow: tuple[str, ...] = ()) -> Plan:
    target = factor * config["max_position_embeddings"]
    return planned(config, Recipe(method=method, target=target, runtimes=("transformers",), allow=allow))


def built(config: Mapping[str, Any], folder: Path) -> Any:
    """The model that transformers makes of a config.json, or of language models in larger ones their own class."""
    (folder / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(folder)
    if read.model_type in ROTARY_CLASS:
        model = torch.nn.ModuleList([getattr(code_of(read), ROTARY_CLASS[read.model_type])(read)])
        model.config = read
        return model
    if read.model_type in LANGUAGE_MODEL:
        return getattr(code_of(read), LANGUAGE_MODEL[read.model_type])(read)
    try:
        return AutoModel.from_config(read)
    except ValueError:
        return language_model(read)(read)


def code_of(config: PreTrainedConfig) -> Any:
    """The modeling file beside a configuration file."""
    return importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))


def language_model(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of a language model that AutoModel doesn't know: the one that takes this kind of config."""
    for value in vars(code_of(config)).values():
        if not (isinstance(value, type) and issubclass(value, PreTrainedModel)):
            continue
        if value.__name__.endswith("TextModel") and getattr(value, "config_class", None) is type(config):
            return value
    raise LookupError(type(config).__name__)


def ropes(model: torch.nn.Module) -> Iterator[tuple[str | None, list[float], float]]:
    """(layer type or None, inverse frequencies, attention factor) of every rotary module."""
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name or path.endswith("_unscaled"):
                # Molmo 2 keeps a plain rope for the layers that rope_scaling_layers leaves out: none here.
                continue
            label = name.removesuffix("inv_freq").removesuffix("_") or None
            attention = getattr(module, f"{label}_attention_scaling" if label else "attention_scaling")
            yield label, buffer.tolist(), float(attention)


def same(table: RopeTable, frequencies: list[float], attention: float, *, sort: bool = False) -> None:
    assert (sorted(frequencies, reverse=True) if sort else frequencies) == pytest.approx(table.inv_freq, rel=FLOAT32)
    assert attention == pytest.approx(table.attention_factor, rel=CARRIER)


def softmax_factors(model: torch.nn.Module) -> list[float]:
    """What each layer of latent attention multiplies its usual softmax scale by."""
    layers = [module for module in model.modules() if hasattr(module, "qk_head_dim") and hasattr(module, "scaling")]
    factors = {float(layer.scaling) * float(layer.qk_head_dim) ** 0.5 for layer in layers}  # type: ignore[arg-type]
    return sorted(factors)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_model_has_the_planned_ropes(name: str, method: str, tmp_path: Path) -> None:
    planned_ropes(name, method, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(("name", "method"), REST)
def test_the_model_has_the_planned_ropes_by_other_methods(name: str, method: str, tmp_path: Path) -> None:
    planned_ropes(name, method, tmp_path)


def planned_ropes(name: str, method: str, tmp_path: Path) -> None:
    """Plan, convert, build, compare."""
    family = FAMILIES[name]
    config = source_of(family)
    refusal = REFUSED.get((name, method))
    if refusal is not None:
        with pytest.raises(RefusedError) as caught:
            plan_of(config, method)
        assert caught.value.code == refusal
        if refusal == "unwritable":
            return
    plan = plan_of(config, method, allow=(refusal,) if refusal else ())
    model = built(converted(config, plan), tmp_path)
    groups = {group.label: group for group in plan.groups if group.after is not None}
    found = list(ropes(model))
    assert found
    for label, frequencies, attention in found:
        for group in [groups[label]] if label else groups.values():
            assert group.after is not None
            same(group.after.table, frequencies, attention, sort=name in PERMUTED)
    if family.softmax_mscale:
        expected = next(iter(groups.values())).after
        assert expected is not None
        assert softmax_factors(model) == pytest.approx([expected.table.softmax_factor], rel=1e-9)
    assert model.config.max_position_embeddings == pytest.approx(plan.target_context, rel=1e-3)


@pytest.mark.parametrize("name", FLAT)
def test_a_pair_is_where_the_row_says(name: str, tmp_path: Path) -> None:
    """The first dimension of a query turns into the second (interleaved) or into that half a rope further."""
    model = built(source_of(FAMILIES[name]), tmp_path)
    rotary = next(
        module
        for path, module in model.named_modules()
        if "vis" not in path and any(buffer == "inv_freq" for buffer, _ in module.named_buffers(recurse=False))
    )
    cos, sin = rotary(torch.zeros(1, 1, 8), torch.tensor([[1]]).expand(*SHAPE.get(name, (1, 1))))
    code = importlib.import_module(type(rotary).__module__)
    size = cos.shape[-1] * (2 if name in HALF_COSINES else 1)
    query = torch.zeros(1, 1, 1, size)
    query[..., 0] = 1.0
    turned, _ = code.apply_rotary_pos_emb(query, query, cos, sin)
    other = {"interleaved": 1, "half": size // 2}[FAMILIES[name].pairing]
    assert turned.flatten().nonzero().flatten().tolist() == [0, other]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
def test_sliding_layers_keep_their_rope(name: str, method: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = source_of(family)
    plan = plan_of(config, method, allow=("unreadable",))
    (tmp_path / "before").mkdir()
    before = {label: (inv, attention) for label, inv, attention in ropes(built(config, tmp_path / "before"))}
    after = {label: (inv, a) for label, inv, a in ropes(built(converted(config, plan), tmp_path))}
    assert after["sliding_attention"] == before["sliding_attention"]
    assert after["full_attention"][0] != before["full_attention"][0]


@pytest.mark.parametrize(("name", "label"), [("cohere2", "sliding_attention"), ("llama4", "chunked_attention")])
def test_ropes_that_see_a_window_only_are_left_alone(name: str, label: str, tmp_path: Path) -> None:
    config = source_of(FAMILIES[name])
    plan = plan_of(config, "yarn")
    assert plan.method == "none"
    assert {group.label: group.extended for group in plan.groups}[label] is False
    (tmp_path / "before").mkdir()
    before = list(ropes(built(config, tmp_path / "before")))
    assert list(ropes(built(converted(config, plan), tmp_path))) == before


def test_the_carrier_with_its_original_length_at_the_top_level(tmp_path: Path) -> None:
    """The form that TGI and ExLlamaV2 ask for: transformers 5 lets the top level's length win, and it is the same."""
    config = source_of(FAMILIES["llama"])
    recipe = Recipe(method="yarn", target=8 * 4096, runtimes=("transformers@4.43", "exllamav2"))
    plan = planned(config, recipe)
    edited = converted(config, plan)
    assert edited["original_max_position_embeddings"] == edited["rope_scaling"]["original_max_position_embeddings"]
    after = plan.groups[0].after
    assert after is not None
    ((_label, frequencies, attention),) = ropes(built(edited, tmp_path))
    same(after.table, frequencies, attention)


def test_a_class_that_fails_without_head_dim_is_given_it(tmp_path: Path) -> None:
    config = source_of(FAMILIES["mixtral"])
    assert "head_dim" not in config
    edited = converted(config, plan_of(config, "yarn"))
    assert edited["head_dim"] == 32
    built(edited, tmp_path)
    with pytest.raises(TypeError, match="NoneType"):
        built({**edited, "head_dim": None}, tmp_path)


#: Trained-in scalings as published, over 4 to 40 times less.
TRAINED: dict[str, dict[str, Any]] = {
    "llama": {
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "gemma3": {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "deepseek_v3": {
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
    "phi3": {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i / 50 for i in range(16)],
            "long_factor": [1.0 + i for i in range(16)],
        },
    },
}


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn", "llama3", "ntk-by-parts"])
@pytest.mark.parametrize("name", TRAINED)
def test_an_extension_of_a_trained_in_scaling(name: str, method: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = {**source_of(family), **TRAINED[name]}
    plan = plan_of(config, method, factor=2)
    model = built(converted(config, plan), tmp_path)
    groups = {group.label: group.after for group in plan.groups}
    for label, frequencies, attention in ropes(model):
        after = groups[label or "full_attention"]
        assert after is not None
        same(after.table, frequencies, attention)
    if family.softmax_mscale:
        goal = groups["full_attention"]
        assert goal is not None
        assert softmax_factors(model) == pytest.approx([goal.table.softmax_factor], rel=1e-9)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_cohere_2_moe_reads_the_newer_form_alone(key: str, tmp_path: Path) -> None:
    """Its class has a rope_scaling of its own, which nothing reads: a silent no-op, and one in the reading too."""
    family = FAMILIES["cohere2_moe"]
    config = {**source_of(family), key: {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
    (table,) = Transformers5().effective(config, family, length=512).tables.values()
    ((_label, frequencies, attention),) = ropes(built(config, tmp_path))
    same(table, frequencies, attention)
    assert frequencies[0] == pytest.approx(1.0 if key == "rope_scaling" else 0.25)


def test_phi_3_fails_on_an_older_name_without_its_length(tmp_path: Path) -> None:
    family = FAMILIES["phi3"]
    scaling = {"type": "su", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    config = {**source_of(family), "original_max_position_embeddings": 4096, "rope_scaling": scaling}
    assert "'su'" in (Transformers5().effective(config, family, length=512).problem or "")
    with pytest.raises(KeyError, match="original_max_position_embeddings"):
        built(config, tmp_path)
    inside = {**config, "rope_scaling": {**scaling, "original_max_position_embeddings": 4096}}
    assert Transformers5().effective(inside, family, length=512).tables
    assert list(ropes(built(inside, tmp_path)))


def test_every_rotary_model_type_is_one_of_transformers() -> None:
    ours = {model_type for name in (*ESTABLISHED, *FLAT) for model_type in FAMILIES[name].model_types}
    assert ours <= set(CONFIG_MAPPING)
