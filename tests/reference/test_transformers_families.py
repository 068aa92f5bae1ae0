"""Every family that transformers has: planned, written, built by AutoModel, and its rope looked at.

The rotary modules compute in float32, hence ``FLOAT32``: the exponent's rounding times ln(theta).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.errors import RefusedError
from ctxextend.families import FAMILIES, Family
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from tests.factories import converted, family_config, planned

FLOAT32 = 2e-6
#: A carrier's temperature, from lengths that must be whole numbers.
CARRIER = 1e-4

ROTARY = sorted(row.name for row in FAMILIES.values() if row.position == "rope" and row.refusal is None)
METHODS = ("linear", "ntk", "yarn", "llama3")

#: Lengths that the families' own default scalings were trained for.
LENGTHS = {"gpt_oss": 131072, "ministral3": 262144}
#: What is refused for transformers, and why; what can be written all the same is, and 5.x reads it as planned.
REFUSED = {
    # Only yarn by its own factor keeps Ministral 3's query temperature as it is.
    **{("ministral3", method): "unwritable" for method in ("linear", "ntk", "llama3")},
    # The classes of 4.57 ignore scalings or fail on them; Olmo 3's has one theta for both layer types.
    **{("nemotron", method): "unreadable" for method in ("linear", "yarn", "llama3")},
    **{(name, method): "unreadable" for name in ("olmo", "olmo2") for method in ("yarn", "llama3")},
    ("olmo3", "ntk"): "unreadable",
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
    """The model that transformers makes of a config.json."""
    (folder / "config.json").write_text(json.dumps(config))
    return AutoModel.from_config(AutoConfig.from_pretrained(folder))


def ropes(model: torch.nn.Module) -> Iterator[tuple[str | None, list[float], float]]:
    """(layer type or None, inverse frequencies, attention factor) of every rotary module."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name:
                continue
            label = name.removesuffix("inv_freq").removesuffix("_") or None
            attention = getattr(module, f"{label}_attention_scaling" if label else "attention_scaling")
            yield label, buffer.tolist(), float(attention)


def same(table: RopeTable, frequencies: list[float], attention: float) -> None:
    assert frequencies == pytest.approx(table.inv_freq, rel=FLOAT32)
    assert attention == pytest.approx(table.attention_factor, rel=CARRIER)


def softmax_factors(model: torch.nn.Module) -> list[float]:
    """What each layer of latent attention multiplies its usual softmax scale by."""
    layers = [module for module in model.modules() if hasattr(module, "qk_head_dim") and hasattr(module, "scaling")]
    factors = {float(layer.scaling) * float(layer.qk_head_dim) ** 0.5 for layer in layers}  # type: ignore[arg-type]
    return sorted(factors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ROTARY)
def test_the_model_has_the_planned_ropes(name: str, method: str, tmp_path: Path) -> None:
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
            same(group.after.table, frequencies, attention)
    if family.softmax_mscale:
        expected = next(iter(groups.values())).after
        assert expected is not None
        assert softmax_factors(model) == pytest.approx([expected.table.softmax_factor], rel=1e-9)
    assert model.config.max_position_embeddings == pytest.approx(plan.target_context, rel=1e-3)


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


def test_every_rotary_model_type_is_one_of_transformers() -> None:
    ours = {model_type for name in ROTARY for model_type in FAMILIES[name].model_types}
    assert ours <= set(CONFIG_MAPPING)
