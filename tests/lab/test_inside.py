"""The rope inside loaded models, against tables computed by ctxextend's own formulas in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.lab.engines.transformers import TransformersEngine, load, variant
from ctxextend.lab.inside import InsideRope, compare_inside, ropes_inside
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.scaling import Linear, Llama3, Scaling, Yarn, table

DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
SPEC = RopeSpec(rope_theta=10000.0, head_dim=32, rotary_dim=32)

LLAMA3: Mapping[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = tuple(1.0 + index / 4 for index in range(16))
WRITTEN: Mapping[str, tuple[Mapping[str, Any], Scaling | None]] = {
    "plain": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 4.0}, Linear(factor=4.0)),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        Yarn(factor=4.0, original_max_position_embeddings=256),
    ),
    "llama3": (
        {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 256, **LLAMA3},
        Llama3(factor=4.0, original_max_position_embeddings=256, **LLAMA3),
    ),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, None),
    "longrope": (
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 16,
            "long_factor": list(FACTORS),
            "original_max_position_embeddings": 256,
            "factor": 4.0,
        },
        None,
    ),
}
TINY: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@cache
def demo() -> TransformersEngine:
    return load(DEMO)


def scaled(kind: str) -> Any:
    stated = json.loads((DEMO / "config.json").read_text())
    return variant(demo(), {**stated, "rope_scaling": dict(WRITTEN[kind][0])}).model


def made(model_type: str, **stated: Any) -> Any:
    config = CONFIG_MAPPING[model_type].from_dict({"model_type": model_type, **TINY, **stated})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def planned(kind: str, length: int) -> RopeTable:
    return table(SPEC, WRITTEN[kind][1], length=length)


@pytest.mark.parametrize("kind", ["plain", "linear", "yarn", "llama3"])
def test_a_loaded_model_has_the_planned_table(kind: str) -> None:
    (finding,) = compare_inside(ropes_inside(scaled(kind), length=1024), {"full_attention": planned(kind, 1024)})
    assert finding.ok, finding.detail
    assert finding.label == "full_attention"
    assert finding.inv_freq_error < 1e-6
    others = [other for other in ("plain", "linear", "yarn", "llama3") if other != kind]
    for other in others:
        (finding,) = compare_inside(ropes_inside(scaled(kind), length=1024), {"": planned(other, 1024)})
        assert not finding.ok
        assert "frequencies are off" in finding.detail


@pytest.mark.parametrize("length", [200, 1024])
def test_a_table_that_changes_with_the_length_is_the_one_at_that_length(length: int) -> None:
    model = scaled("dynamic")
    before = model.model.rotary_emb.inv_freq.clone()
    (rope,) = ropes_inside(model, length=length)
    # NTK by the length: theta * (factor * length / 256 - (factor - 1)) ** (d / (d - 2)) (transformers' dynamic).
    grown = 4.0 * max(length, 256) / 256 - 3.0
    theta = 10000.0 * grown ** (32 / 30)
    expected = RopeTable(inv_freq=tuple(theta ** (-2 * index / 32) for index in range(16)))
    assert compare_inside((rope,), {"": expected})[0].ok
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    assert model.model.rotary_emb.max_seq_len_cached == 256


def test_longrope_has_its_long_factors_past_the_original_length() -> None:
    model = scaled("longrope")
    for length, factors in ((256, (1.0,) * 16), (1024, FACTORS)):
        (rope,) = ropes_inside(model, length=length)
        base = SPEC.inv_freq()
        expected = RopeTable(
            inv_freq=tuple(old / factor for old, factor in zip(base, factors, strict=True)),
            # LongRoPE (arXiv 2402.13753): sqrt(1 + ln(s) / ln(L)), of 4 and 256.
            attention_factor=math.sqrt(1 + math.log(4) / math.log(256)),
        )
        assert compare_inside((rope,), {"": expected})[0].ok


def test_an_engine_that_has_read_more_and_forgot_has_its_first_table() -> None:
    stated = json.loads((DEMO / "config.json").read_text())
    engine = variant(demo(), {**stated, "rope_scaling": dict(WRITTEN["dynamic"][0])})
    before = engine.losses(list(range(2, 1000)))
    engine.forget()
    (rope,) = ropes_inside(engine.model, length=256)
    assert compare_inside((rope,), {"": planned("plain", 256)})[0].ok
    engine.losses(list(range(2, 1000)), first=900)
    ropes_inside(engine.model, length=4096)
    assert engine.losses(list(range(2, 1000))) == before


def test_each_layer_type_has_its_own() -> None:
    model = made(
        "gemma3_text",
        head_dim=16,
        sliding_window=32,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    ropes = ropes_inside(model, length=512)
    assert [rope.label for rope in ropes] == ["full_attention", "sliding_attention"]
    full = RopeSpec(rope_theta=1e6, head_dim=16, rotary_dim=16)
    tables = {
        "sliding_attention": RopeTable(inv_freq=RopeSpec(rope_theta=1e4, head_dim=16, rotary_dim=16).inv_freq()),
        "full_attention": table(full, Linear(factor=8.0), length=512),
    }
    assert all(finding.ok for finding in compare_inside(ropes, tables))
    swapped = {"sliding_attention": tables["full_attention"], "full_attention": tables["sliding_attention"]}
    assert not any(finding.ok for finding in compare_inside(ropes, swapped))


def test_latent_attention_has_its_temperature_in_the_softmax() -> None:
    model = made(
        "deepseek_v3",
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 8.0,
            "rope_theta": 10000.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
        },
    )
    (rope,) = ropes_inside(model, length=512)
    # DeepSeek-V2's code: (0.1 mscale_all_dim ln(factor) + 1) squared, and a ratio of two equal temperatures on cos.
    softmax = (0.1 * math.log(8.0) + 1.0) ** 2
    spec = RopeSpec(rope_theta=10000.0, head_dim=8, rotary_dim=8)
    yarn = table(spec, Yarn(factor=8.0, original_max_position_embeddings=64), length=512)
    right = RopeTable(inv_freq=yarn.inv_freq, attention_factor=1.0, softmax_factor=softmax)
    assert compare_inside((rope,), {"": right})[0].ok
    (finding,) = compare_inside((rope,), {"": RopeTable(inv_freq=yarn.inv_freq)})
    assert finding.softmax_factor_error == pytest.approx(softmax - 1, rel=1e-6)
    assert "softmax factor" in finding.detail


@pytest.mark.parametrize(
    ("model_type", "stated"),
    [("gpt_neox", {"rotary_pct": 0.25}), ("phi", {"partial_rotary_factor": 0.25}), ("gptj", {"rotary_dim": 4})],
)
def test_partial_rotation_has_fewer_frequencies(model_type: str, stated: Mapping[str, Any]) -> None:
    model = made(model_type, **stated)
    # A quarter of a head of 16 is 4 dimensions, two pairs.
    expected = RopeTable(inv_freq=RopeSpec(rope_theta=10000.0, head_dim=16, rotary_dim=4).inv_freq())
    (finding,) = compare_inside(ropes_inside(model, length=64), {"": expected})
    assert finding.ok, finding.detail
    (finding,) = compare_inside(ropes_inside(model, length=64), {"": planned("plain", 64)})
    assert "2 frequencies instead of 16" in finding.detail


def test_low_frequencies_are_as_exact_as_high_ones() -> None:
    model = made("llama", rope_parameters={"rope_type": "linear", "factor": 1e4, "rope_theta": 1e9})
    expected = table(RopeSpec(rope_theta=1e9, head_dim=16, rotary_dim=16), Linear(factor=1e4), length=64)
    assert min(expected.inv_freq) < 1e-11
    (finding,) = compare_inside(ropes_inside(model, length=64), {"": expected})
    assert finding.inv_freq_error < 1e-6


@pytest.mark.parametrize("damage", ["bfloat16", "times", "attention"])
def test_a_damaged_buffer_is_told_of(damage: str) -> None:
    model = scaled("yarn")
    rotary = model.model.rotary_emb
    if damage == "bfloat16":
        rotary.inv_freq = rotary.inv_freq.to(torch.bfloat16)
        rotary.original_inv_freq = rotary.original_inv_freq.to(torch.bfloat16)
    elif damage == "times":
        rotary.inv_freq[7] *= 1.0001
    else:
        rotary.attention_scaling *= 1.00001
    (finding,) = compare_inside(ropes_inside(model, length=1024), {"": planned("yarn", 1024)})
    assert not finding.ok
    wanted = {
        "bfloat16": "bfloat16 instead of float32",
        "times": "off by up to 0.0001",
        "attention": "attention factor",
    }
    assert wanted[damage] in finding.detail


def test_a_buffer_of_other_digits_alone_is_told_of() -> None:
    (rope,) = ropes_inside(scaled("plain"), length=256)
    coarse = InsideRope(
        label="", inv_freq=rope.inv_freq, attention_factor=1.0, softmax_factor=1.0, dtypes=("bfloat16",)
    )
    assert not compare_inside((coarse,), {"": planned("plain", 256)})[0].ok


def test_a_model_without_rope_has_none() -> None:
    model = made("gpt2", n_embd=64, n_head=4, n_layer=1)
    assert ropes_inside(model, length=64) == ()
    (finding,) = compare_inside((), {"full_attention": planned("plain", 64)})
    assert not finding.ok
    assert finding.detail == "the loaded model has no such rope"
