"""How many parameters a checkpoint has, and how they are quantised, from its headers and config alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ctxextend.contents import Contents, TensorInfo

#: Endings of tensors that quantisers store beside the weights.
_AUXILIARY = (
    ".scales",
    ".qzeros",
    ".g_idx",
    "_scale",
    "_scale_inv",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_global_scale",
    ".SCB",
    ".qbiases",
    ".qscale_weight",
    ".weight_zero_point",
    ".weight_shape",
    ".input_scale",
    ".absmax",
    ".quant_map",
)

#: Buffers that older checkpoints hold; they are no parameters. Frequencies, or what was computed of them.
ROTARY_BUFFER = re.compile(r"(?:.+\.)?(?:(?:\w+_)?inv_freq|(?:cos|sin)_cached|freqs_cis)|(?:.+\.)?rope\.freqs")


class Quantisation(Struct, frozen=True, kw_only=True):
    """What ``quantization_config`` says: the method (gptq, awq, fp8, ...) and its bits a weight."""

    method: str
    bits: int | None


def quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """The quantisation that the checkpoint declares, if any."""
    declared = config.get("quantization_config")
    if not isinstance(declared, dict):
        return None
    method = str(declared.get("quant_method") or declared.get("quant_algo") or "unknown").lower()
    bits = declared.get("bits") or declared.get("w_bit")
    if not isinstance(bits, int):
        bits = 8 if method == "fp8" else None
    return Quantisation(method=method, bits=bits)


def count_parameters(contents: Contents, config: Mapping[str, Any]) -> int | None:
    """Weights of the model as published: packed ones unpacked, scales and buffers not counted.

    None where no header was read (a ``.bin`` checkpoint).
    """
    if not contents.tensors:
        return None
    scheme = quantisation(config)
    return sum(_weights(tensor, scheme) for tensor in contents.tensors)


def rotary_buffers(contents: Contents) -> tuple[TensorInfo, ...]:
    """Rope buffers that lie in the weight files."""
    return tuple(t for t in contents.tensors if ROTARY_BUFFER.fullmatch(t.name))


def _weights(tensor: TensorInfo, scheme: Quantisation | None) -> int:
    if ROTARY_BUFFER.fullmatch(tensor.name):
        return 0
    if scheme is None:
        return tensor.elements
    if tensor.name.endswith(_AUXILIARY):
        return 0
    if scheme.bits and tensor.dtype in ("I32", "U32", "I8", "U8"):
        width = 32 if tensor.dtype in ("I32", "U32") else 8
        return tensor.elements * width // scheme.bits
    return tensor.elements
