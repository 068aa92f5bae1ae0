"""The types that a GGUF export can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: What can be written without llama.cpp: output types by the GGML type that their matrices get.
NATIVE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "f32": "F32",
        "f16": "F16",
        "bf16": "BF16",
        "q8_0": "Q8_0",
        "q4_0": "Q4_0",
        "q4_1": "Q4_1",
        "q5_0": "Q5_0",
        "q5_1": "Q5_1",
    }
)

#: What ``general.file_type`` says (llama.cpp b11434, ``include/llama.h``, llama_ftype): native types, and those that
#: llama-quantize makes without an importance matrix.
FILE_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "f32": 0,
        "f16": 1,
        "q4_0": 2,
        "q4_1": 3,
        "q8_0": 7,
        "q5_0": 8,
        "q5_1": 9,
        "q2_k": 10,
        "q3_k_s": 11,
        "q3_k_m": 12,
        "q3_k_l": 13,
        "q4_k_s": 14,
        "q4_k_m": 15,
        "q5_k_s": 16,
        "q5_k_m": 17,
        "q6_k": 18,
        "iq4_nl": 25,
        "iq3_s": 26,
        "iq3_m": 27,
        "iq4_xs": 30,
        "bf16": 32,
    }
)
