"""The rows: for each family what its GGUF export holds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ctxextend.exports.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from ctxextend.exports.gemma import GEMMA, GEMMA2, GEMMA3
from ctxextend.exports.layer_norms import GPT_NEOX, STABLELM, STARCODER2
from ctxextend.exports.llama_like import (
    GRANITE,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    SMOLLM3,
)
from ctxextend.exports.row import Row
from ctxextend.exports.without_rope import BLOOM, GPT2, MPT

ROWS: Final[Mapping[str, Row]] = MappingProxyType(
    {
        row.family: row
        for row in (
            LLAMA,
            MISTRAL,
            MIXTRAL,
            QWEN2,
            QWEN2_MOE,
            QWEN3,
            QWEN3_MOE,
            GEMMA,
            GEMMA2,
            GEMMA3,
            PHI3,
            SMOLLM3,
            OLMO2,
            OLMO3,
            GRANITE,
            STABLELM,
            STARCODER2,
            GPT_NEOX,
            DEEPSEEK_V2,
            DEEPSEEK_V3,
            GPT2,
            BLOOM,
            MPT,
        )
    }
)
