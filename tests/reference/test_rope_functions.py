"""Every rope type of the installed transformers, its own function against our table.

Its functions compute in float32: the exponent alone is rounded to 6e-8, which a base of a million
turns into 8e-7 of the frequency. So they are also run with float64 in float32's place, where both
must agree to rounding; as they are, to ``FLOAT32``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ctxextend.rope import RopeSpec
from ctxextend.scaling import Dynamic, Linear, Llama3, LongRope, Scaling, Yarn, table

FLOAT32 = 2e-6
FLOAT64 = 1e-11

CONTEXT = 32768
ORIGINAL = 8192
LISTS = {
    "short_factor": [1.0 + i / 64 for i in range(32)],
    "long_factor": [1.0 + i / 4 for i in range(32)],
    "original_max_position_embeddings": ORIGINAL,
}


def yarn(**keys: Any) -> tuple[str, dict[str, Any], Scaling, int | None]:
    settings = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, **keys}
    return "yarn", settings, Yarn(**settings), None


def llama3(**keys: Any) -> tuple[str, dict[str, Any], Scaling, int | None]:
    settings = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        **keys,
    }
    return "llama3", settings, Llama3(**settings), None


def longrope(length: int, **keys: Any) -> tuple[str, dict[str, Any], Scaling, int | None]:
    settings = {**LISTS, "factor": 4.0, **keys}
    lists = {key: tuple(settings[key]) for key in ("short_factor", "long_factor")}
    return "longrope", settings, LongRope(**{**settings, **lists}), length


def dynamic(length: int) -> tuple[str, dict[str, Any], Scaling, int | None]:
    return "dynamic", {"factor": 4.0}, Dynamic(factor=4.0, original_max_position_embeddings=CONTEXT), length


CASES = {
    "linear": ("linear", {"factor": 8.0}, Linear(factor=8.0), None),
    "dynamic within": dynamic(1000),
    "dynamic at 2x": dynamic(2 * CONTEXT),
    "dynamic at 4x": dynamic(4 * CONTEXT),
    "yarn": yarn(),
    "yarn 40x": yarn(factor=40.0),
    "yarn betas": yarn(beta_fast=16.0, beta_slow=2.0),
    "yarn without truncation": yarn(truncate=False),
    "yarn attention_factor": yarn(attention_factor=1.3),
    "yarn pair": yarn(mscale=1.0, mscale_all_dim=0.5),
    "yarn equal pair": yarn(mscale=0.707, mscale_all_dim=0.707),
    "yarn half a pair": yarn(mscale=1.0),
    "yarn attention_factor and pair": yarn(attention_factor=0.8, mscale=1.0, mscale_all_dim=0.5),
    "yarn over little": yarn(original_max_position_embeddings=64),
    "llama3": llama3(),
    "llama3 bounds": llama3(factor=32.0, low_freq_factor=0.5, high_freq_factor=8.0),
    "llama3 step": llama3(low_freq_factor=1.0, high_freq_factor=1.0),
    "longrope short": longrope(ORIGINAL),
    "longrope long": longrope(ORIGINAL + 1),
    "longrope attention_factor": longrope(ORIGINAL + 1, attention_factor=1.2),
    "longrope factor": longrope(ORIGINAL + 1, factor=16.0),
}

GEOMETRIES = {"llama": (10000.0, 64, 1.0), "large base": (1000000.0, 64, 1.0), "partial": (10000.0, 128, 0.5)}


def settings_of(rope_type: str, theta: float, partial: float, keys: dict[str, Any]) -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": rope_type,
            "rope_theta": theta,
            **({"partial_rotary_factor": partial} if partial != 1.0 else {}),
            **keys,
        },
    )
    assert isinstance(config, LlamaConfig)
    return config


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("case", CASES)
def test_a_rope_type_of_transformers(case: str, geometry: str, double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rope_type, keys, scaling, length = CASES[case]
    theta, head_dim, partial = GEOMETRIES[geometry]
    config = settings_of(rope_type, theta, partial, keys)
    config.head_dim = head_dim
    if double:
        monkeypatch.setattr(torch, "float", torch.float64)
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    inv_freq, attention = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=length)
    spec = RopeSpec(rope_theta=theta, head_dim=head_dim, rotary_dim=int(head_dim * partial))
    ours = table(spec, scaling, length=length)
    assert ours.inv_freq == pytest.approx(inv_freq.tolist(), rel=FLOAT64 if double else FLOAT32)
    assert ours.attention_factor == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("partial", [0.25, 0.5, 1.0])
def test_proportional(partial: float, factor: float) -> None:
    config = settings_of("proportional", 1000000.0, 1.0, {"partial_rotary_factor": partial, "factor": factor})
    config.head_dim = 64
    inv_freq, attention = ROPE_INIT_FUNCTIONS["proportional"](config, torch.device("cpu"))
    rotary = 2 * int(partial * 64 // 2)
    spec = RopeSpec(rope_theta=1000000.0, head_dim=64, rotary_dim=rotary, layout="proportional")
    ours = table(spec, Linear(factor=factor))
    assert len(ours.inv_freq) == len(inv_freq) == 32
    assert ours.inv_freq == pytest.approx(inv_freq.tolist(), rel=FLOAT32)
    assert (ours.attention_factor, attention) == (1.0, 1.0)


def test_no_type_of_transformers_is_missing_here() -> None:
    assert {rope_type for rope_type, *_ in CASES.values()} | {"proportional"} == set(ROPE_INIT_FUNCTIONS)
