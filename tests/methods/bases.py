"""Bases as published checkpoints have them."""

from __future__ import annotations

from typing import Final

from ctxextend.methods import Base
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, Llama3, LongRope, Yarn

LLAMA2_SPEC: Final = RopeSpec(rope_theta=10000.0, head_dim=128, rotary_dim=128)
LLAMA3_SPEC: Final = RopeSpec(rope_theta=500000.0, head_dim=128, rotary_dim=128)
GEMMA3_SPEC: Final = RopeSpec(rope_theta=1000000.0, head_dim=256, rotary_dim=256)
LATENT_SPEC: Final = RopeSpec(
    rope_theta=10000.0, head_dim=64, rotary_dim=64, pairing="interleaved", softmax_mscale=True
)
#: GLM-4: half of each head turns.
PARTIAL_SPEC: Final = RopeSpec(rope_theta=10000.0, head_dim=128, rotary_dim=64, pairing="interleaved")
#: Gemma 4's kind.
PROPORTIONAL_SPEC: Final = RopeSpec(rope_theta=1000000.0, head_dim=64, rotary_dim=16, layout="proportional")

LLAMA2: Final = Base(spec=LLAMA2_SPEC, context=4096)
PARTIAL: Final = Base(spec=PARTIAL_SPEC, context=32768)
PROPORTIONAL: Final = Base(spec=PROPORTIONAL_SPEC, context=32768)
LLAMA31: Final = Base(
    spec=LLAMA3_SPEC, scaling=Llama3(factor=8.0, original_max_position_embeddings=8192), context=131072
)
GEMMA3: Final = Base(spec=GEMMA3_SPEC, scaling=Linear(factor=8.0), context=131072)
GPT_OSS: Final = Base(
    spec=RopeSpec(rope_theta=150000.0, head_dim=64, rotary_dim=64),
    scaling=Yarn(factor=32.0, original_max_position_embeddings=4096, truncate=False),
    context=131072,
)
DEEPSEEK: Final = Base(
    spec=LATENT_SPEC,
    scaling=Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0),
    context=163840,
)
PHI3: Final = Base(
    spec=RopeSpec(rope_theta=10000.0, head_dim=96, rotary_dim=96),
    scaling=LongRope(
        short_factor=(1.0,) * 48,
        long_factor=tuple(1.0 + i / 2 for i in range(48)),
        original_max_position_embeddings=4096,
        factor=32.0,
    ),
    context=131072,
)
