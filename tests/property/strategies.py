"""Ropes, bases and configs to draw from."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ctxextend.methods import Base
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, Llama3, Scaling, Yarn
from tests.factories import config

THETAS = st.sampled_from([10000.0, 500000.0, 1000000.0]) | st.floats(1000.0, 1e7)
CONTEXTS = st.sampled_from([2048, 4096, 8192, 32768, 40961, 131072])
#: Factors as people ask for them, and any others.
FACTORS = st.sampled_from([1.5, 2.0, 4.0, 8.0, 32.0]) | st.floats(1.01, 64.0)


@st.composite
def specs(draw: st.DrawFn) -> RopeSpec:
    """Plain ropes with up to 64 pairs, some of them partial."""
    rotary = 2 * draw(st.integers(2, 64))
    return RopeSpec(rope_theta=draw(THETAS), head_dim=rotary * draw(st.sampled_from([1, 2])), rotary_dim=rotary)


@st.composite
def trained_scalings(draw: st.DrawFn, context: int) -> Scaling | None:
    """What may have been trained in, reaching ``context``."""
    factor = draw(st.sampled_from([2.0, 8.0, 32.0]))
    original = max(64, int(context / factor))
    kind = draw(st.sampled_from(["plain", "linear", "llama3", "yarn"]))
    match kind:
        case "linear":
            return Linear(factor=factor)
        case "llama3":
            return Llama3(factor=factor, original_max_position_embeddings=original)
        case "yarn":
            return Yarn(factor=factor, original_max_position_embeddings=original, truncate=draw(st.booleans()))
        case _:
            return None


@st.composite
def bases(draw: st.DrawFn) -> Base:
    context = draw(CONTEXTS)
    return Base(spec=draw(specs()), scaling=draw(trained_scalings(context)), context=context)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Llama-like configs in the older, the newer and both forms."""
    heads = draw(st.sampled_from([1, 2, 4]))
    head_dim = 2 * draw(st.integers(2, 32))
    theta = draw(THETAS)
    plain = config(
        model_type=draw(st.sampled_from(["llama", "qwen2", "olmo2"])),
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        num_key_value_heads=1,
        max_position_embeddings=draw(CONTEXTS),
        rope_theta=theta,
    )
    form = draw(st.sampled_from(["older", "null", "newer", "both"]))
    if form == "null":
        plain["rope_scaling"] = None
    if form in ("newer", "both"):
        plain["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if form == "newer":
        del plain["rope_theta"]
    if draw(st.booleans()):
        plain["head_dim"] = head_dim
    return plain
