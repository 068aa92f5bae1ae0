"""Tiny quantised matrices, and what they mean: the dequantisers are written from the formats' descriptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from ctxextend.changes import ScaleTensor, Slice
from ctxextend.contents import TensorInfo

Array = np.ndarray[Any, Any]

ATTENTION = "model.layers.0.self_attn"
MODULE = f"{ATTENTION}.q_proj"
WEIGHT = f"{MODULE}.weight"
FACTOR = 1.3
FILE = "model-00001-of-00002.safetensors"

#: 64 rows of 32 columns: 4 heads of 16 rows, in groups of 16 columns.
ROWS, COLUMNS, GROUP, HEAD = 64, 32, 16, 16
GROUPS = COLUMNS // GROUP

#: What is multiplied, with the rows by hand: all, the first 4 of every head, the queries of a fused projection.
CASES = {
    "full": ((), range(ROWS)),
    "spelled-out": ((Slice(lower=0, upper=64, period=16, start=0, stop=16),), range(ROWS)),
    "partial-rotary": (
        (Slice(lower=0, upper=64, period=16, start=0, stop=4),),
        (0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51),
    ),
    "fused-queries": ((Slice(lower=0, upper=32, period=32, start=0, stop=32),), range(32)),
    "two-slices": (
        (
            Slice(lower=0, upper=16, period=16, start=8, stop=16),
            Slice(lower=32, upper=64, period=32, start=1, stop=3),
        ),
        (8, 9, 10, 11, 12, 13, 14, 15, 33, 34),
    ),
}
NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


class Stored(Struct, frozen=True):
    """A quantised matrix as it stands in a file: each tensor's dtype there and its numbers."""

    quantisation: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, Array]]
    dequantise: Callable[[Mapping[str, Array]], Array]
    also: Mapping[str, Any] = {}

    @property
    def config(self) -> dict[str, Any]:
        return {"model_type": "llama", "quantization_config": dict(self.quantisation), **self.also}

    @property
    def infos(self) -> dict[str, TensorInfo]:
        return {
            f"{MODULE}.{leaf}": TensorInfo(name=f"{MODULE}.{leaf}", dtype=dtype, shape=array.shape, file=FILE)
            for leaf, (dtype, array) in self.tensors.items()
        }

    def values(self) -> dict[str, Array]:
        return {leaf: array for leaf, (_, array) in self.tensors.items()}


def change(case: str = "full", *, factor: float = FACTOR, name: str = WEIGHT) -> ScaleTensor:
    return ScaleTensor(file=FILE, name=name, factor=factor, slices=CASES[case][0])


def applied(array: Array, scaling: ScaleTensor) -> Array:
    """What the changed tensor holds, place by place as a Slice says."""
    places = {
        base + place
        for piece in scaling.slices
        for base in range(piece.lower, piece.upper, piece.period)
        for place in range(piece.start, piece.stop)
        if base + place < piece.upper
    }
    mask = np.ones(array.shape, bool)
    if scaling.slices:
        along = np.isin(np.arange(array.shape[scaling.axis]), sorted(places))
        mask = np.broadcast_to(
            np.expand_dims(along, tuple(a for a in range(array.ndim) if a != scaling.axis)), mask.shape
        )
    return np.where(mask, array.astype(np.float64) * scaling.factor, array).astype(array.dtype)


def integers(bits: int, shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 2**bits, shape)


def scales(*shape: int, dtype: str = "F32", seed: int = 1) -> Array:
    found: Array = np.random.default_rng(seed).uniform(0.01, 0.02, shape).astype(NUMPY[dtype])
    return found


def packed(numbers: Array, bits: int, axis: int) -> Array:
    """Integers one behind the other along an axis, the lowest bits of 32-bit words first."""
    moved = np.moveaxis(numbers, axis, -1)
    each = (moved[..., None] >> np.arange(bits)) & 1
    flat = each.reshape(*moved.shape[:-1], -1).astype(np.uint8)
    words = np.ascontiguousarray(np.packbits(flat, axis=-1, bitorder="little")).view("<i4")
    return np.moveaxis(words, -1, axis)


def unpacked(words: Array, bits: int, axis: int) -> Array:
    moved = np.ascontiguousarray(np.moveaxis(words, axis, -1)).astype("<i4")
    flat = np.unpackbits(moved.view(np.uint8), axis=-1, bitorder="little")
    each = flat.reshape(*moved.shape[:-1], -1, bits).astype(np.int64)
    return np.moveaxis((each << np.arange(bits)).sum(-1), -1, axis)


def float8(codes: Array) -> Array:
    """E4M3 without infinities: a sign, 4 bits of exponent with bias 7, 3 of mantissa."""
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    found: Array = sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return found


def float4(codes: Array) -> Array:
    """E2M1, the lower half of a byte first."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    both = np.stack([table[codes & 15], table[codes >> 4]], axis=-1)
    return both.reshape(*codes.shape[:-1], -1)


# The formats.


def gptq(bits: int, layout: str, *, desc_act: bool, dtype: str = "F32") -> Stored:
    """qweight packed along the inputs, qzeros along the outputs, less one in the first version."""
    index = (
        np.random.default_rng(2).permutation(np.arange(COLUMNS) // GROUP) if desc_act else np.arange(COLUMNS) // GROUP
    )
    plus = 1 if layout == "gptq" else 0

    def dequantise(values: Mapping[str, Array]) -> Array:
        number = unpacked(values["qweight"], bits, 0)
        zero = unpacked(values["qzeros"], bits, 1) + plus
        group = values["g_idx"]
        found: Array = (values["scales"].astype(np.float64)[group] * (number - zero[group])).T
        return found

    return Stored(
        {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": desc_act, "checkpoint_format": layout},
        {
            "qweight": ("I32", packed(integers(bits, (COLUMNS, ROWS)), bits, 0)),
            "qzeros": ("I32", packed(integers(bits, (GROUPS, ROWS), 3), bits, 1)),
            "scales": (dtype, scales(GROUPS, ROWS, dtype=dtype)),
            "g_idx": ("I32", index.astype(np.int32)),
        },
        dequantise,
    )


#: Of eight outputs in a row, the one that stands at each place of an AWQ word.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_gemm(quantisation: Mapping[str, Any], dtype: str = "F32") -> Stored:
    def shuffled(numbers: Array) -> Array:
        eights = numbers.reshape(len(numbers), -1, 8)[..., list(AWQ_ORDER)]
        return packed(eights.reshape(len(numbers), -1), 4, 1)

    def straight(words: Array) -> Array:
        eights = unpacked(words, 4, 1).reshape(len(words), -1, 8)
        found = np.empty_like(eights)
        for place, output in enumerate(AWQ_ORDER):
            found[..., output] = eights[..., place]
        return found.reshape(len(words), -1)

    def dequantise(values: Mapping[str, Array]) -> Array:
        group = np.arange(COLUMNS) // GROUP
        zero, scale = straight(values["qzeros"])[group], values["scales"].astype(np.float64)[group]
        found: Array = ((straight(values["qweight"]) - zero) * scale).T
        return found

    return Stored(
        quantisation,
        {
            "qweight": ("I32", shuffled(integers(4, (COLUMNS, ROWS)))),
            "qzeros": ("I32", shuffled(integers(4, (GROUPS, ROWS), 3))),
            "scales": (dtype, scales(GROUPS, ROWS, dtype=dtype)),
        },
        dequantise,
    )


def awq_gemv() -> Stored:
    """Packed along the inputs in their order; zeros and scales padded to eight groups."""

    def dequantise(values: Mapping[str, Array]) -> Array:
        group = np.arange(COLUMNS) // GROUP
        zero = unpacked(values["qzeros"], 4, 1)[:, group]
        found: Array = (unpacked(values["qweight"], 4, 1) - zero) * values["scales"].astype(np.float64)[:, group]
        return found

    return Stored(
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMV"},
        {
            "qweight": ("I32", packed(integers(4, (ROWS, COLUMNS)), 4, 1)),
            "qzeros": ("I32", packed(integers(4, (ROWS, 8), 3), 4, 1)),
            "scales": ("F32", scales(ROWS, 8)),
        },
        dequantise,
    )


def fp8(quantisation: Mapping[str, Any], scale: str, shape: tuple[int, ...], *, block: int = 0) -> Stored:
    """Codes of 8 bits times a scale that is spread over them: as numbers spread, or a block of rows and columns."""

    def dequantise(values: Mapping[str, Array]) -> Array:
        factor = values[scale].astype(np.float64)
        if block:
            factor = factor.repeat(block, 0)[:ROWS].repeat(block, 1)[:, :COLUMNS]
        elif factor.shape == (ROWS,):
            factor = factor[:, None]
        found: Array = float8(values["weight"]) * factor
        return found

    codes = integers(8, (ROWS, COLUMNS)).astype(np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x41  # no NaN
    return Stored(quantisation, {"weight": ("F8_E4M3", codes), scale: ("F32", scales(*shape))}, dequantise)


def whole_numbers(quantisation: Mapping[str, Any], shape: tuple[int, ...], *, zeros: bool = False) -> Stored:
    """int8 of compressed-tensors: one scale, one a row, or one a group of a row."""

    def dequantise(values: Mapping[str, Array]) -> Array:
        factor = values["weight_scale"].astype(np.float64)
        zero = values["weight_zero_point"] if zeros else np.zeros(shape)
        if factor.ndim == 2 and factor.shape[1] == GROUPS:
            factor, zero = factor.repeat(GROUP, 1), zero.repeat(GROUP, 1)
        found: Array = (values["weight"] - zero) * factor
        return found

    weight = (integers(8, (ROWS, COLUMNS)) - 128).astype(np.int8)
    tensors = {"weight": ("I8", weight), "weight_scale": ("F32", scales(*shape))}
    if zeros:
        tensors["weight_zero_point"] = ("I8", (integers(4, shape, 3) - 8).astype(np.int8))
    return Stored(quantisation, tensors, dequantise)


def pack_quantized(bits: int, shape: tuple[int, ...], *, zeros: bool = False, dtype: str = "F32") -> Stored:
    """Integers stored plus half their range, packed along the inputs; zero points along the outputs."""
    half = 2 ** (bits - 1)

    def dequantise(values: Mapping[str, Array]) -> Array:
        number = unpacked(values["weight_packed"], bits, 1) - half
        factor = values["weight_scale"].astype(np.float64)
        zero = unpacked(values["weight_zero_point"], bits, 0) - half if zeros else np.zeros(shape)
        if len(shape) == 2:
            factor, zero = factor.repeat(COLUMNS // shape[1], 1), zero.repeat(COLUMNS // shape[1], 1)
        found: Array = (number - zero) * factor
        return found

    tensors = {
        "weight_packed": ("I32", packed(integers(bits, (ROWS, COLUMNS)), bits, 1)),
        "weight_scale": (dtype, scales(*shape, dtype=dtype)),
        "weight_shape": ("I64", np.array([ROWS, COLUMNS])),
    }
    if zeros:
        tensors["weight_zero_point"] = ("I32", packed(integers(bits, shape, 3), bits, 0))
    weights = {"num_bits": bits, "type": "int", "symmetric": not zeros}
    return Stored(compressed("pack-quantized", weights), tensors, dequantise)


def compressed(layout: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": dict(weights)}},
        "ignore": ["lm_head"],
    }


def nvfp4(*, modelopt: bool) -> Stored:
    """4-bit numbers times a scale of 8 bits a group; ModelOpt multiplies by the global scale, the other divides."""
    group = integers(8, (ROWS, GROUPS), 5).astype(np.uint8) & 0x77
    weight = integers(8, (ROWS, COLUMNS // 2)).astype(np.uint8)
    names = ("weight", "weight_scale_2") if modelopt else ("weight_packed", "weight_global_scale")

    def dequantise(values: Mapping[str, Array]) -> Array:
        overall = float(values[names[1]].item())
        factor = float8(values["weight_scale"]).repeat(GROUP, 1) * (overall if modelopt else 1 / overall)
        found: Array = float4(values[names[0]]) * factor
        return found

    said = (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}
        if modelopt
        else compressed("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 16})
    )
    overall = np.array(0.003, np.float32) if modelopt else np.array([712.0], np.float32)
    return Stored(
        said, {names[0]: ("U8", weight), "weight_scale": ("F8_E4M3", group), names[1]: ("F32", overall)}, dequantise
    )


def int8_rows() -> Stored:
    """bitsandbytes: the largest of each row stands for 127."""

    def dequantise(values: Mapping[str, Array]) -> Array:
        found: Array = values["weight"] * (values["SCB"].astype(np.float64)[:, None] / 127)
        return found

    return Stored(
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {
            "weight": ("I8", (integers(8, (ROWS, COLUMNS)) - 128).astype(np.int8)),
            "SCB": ("F32", scales(ROWS)),
            "weight_format": ("U8", np.array(0, np.uint8)),
        },
        dequantise,
    )


def affine(biases: str, quantisation: Mapping[str, Any], also: Mapping[str, Any] | None = None) -> Stored:
    def dequantise(values: Mapping[str, Array]) -> Array:
        scale, bias = (values[leaf].astype(np.float64).repeat(GROUP, 1) for leaf in ("scales", biases))
        found: Array = unpacked(values["weight"], 4, 1) * scale + bias
        return found

    return Stored(
        quantisation,
        {
            "weight": ("U32", packed(integers(4, (ROWS, COLUMNS)), 4, 1).view(np.uint32)),
            "scales": ("F32", scales(ROWS, GROUPS)),
            biases: ("F32", scales(ROWS, GROUPS, seed=7)),
        },
        dequantise,
        also or {},
    )


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel"}

#: Formats whose scales are for single rows, or for groups in a row: any rows can be multiplied.
BY_ROWS: dict[str, Callable[[], Stored]] = {
    "gptq-4": lambda: gptq(4, "gptq", desc_act=False),
    "gptq-4-act-order": lambda: gptq(4, "gptq", desc_act=True),
    "gptq-2": lambda: gptq(2, "gptq", desc_act=False),
    "gptq-3": lambda: gptq(3, "gptq_v2", desc_act=False),
    "gptq-8-v2": lambda: gptq(8, "gptq_v2", desc_act=True),
    "awq-gemm": lambda: awq_gemm(AWQ),
    "awq-gemv": awq_gemv,
    "auto-round-awq": lambda: awq_gemm(
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq", "version": "x"}
    ),
    "fp8-rows": lambda: fp8({"quant_method": "fp8"}, "weight_scale", (ROWS, 1)),
    "fbgemm": lambda: fp8({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "weight_scale", (ROWS, 1)),
    "modelopt-rows": lambda: fp8(
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, "weight_scale", (ROWS,)
    ),
    "quark-rows": lambda: fp8({"quant_method": "quark"}, "weight_scale", (ROWS,)),
    "float-quantized": lambda: fp8(compressed("float-quantized", CHANNEL), "weight_scale", (ROWS, 1)),
    "int-quantized": lambda: whole_numbers(compressed("int-quantized", {"num_bits": 8}), (ROWS, 1)),
    "int-quantized-zeros": lambda: whole_numbers(compressed("naive-quantized", {}), (ROWS, GROUPS), zeros=True),
    "pack-quantized-groups": lambda: pack_quantized(4, (ROWS, GROUPS)),
    "pack-quantized-zeros": lambda: pack_quantized(4, (ROWS, GROUPS), zeros=True),
    "pack-quantized-channel": lambda: pack_quantized(8, (ROWS, 1)),
    "bitsandbytes": int8_rows,
    "metal": lambda: affine("qbiases", {"quant_method": "metal", "bits": 4, "group_size": GROUP}),
    "mlx": lambda: affine("biases", {"bits": 4, "group_size": GROUP}, {"quantization": {"bits": 4, "group_size": 16}}),
}

#: Formats with one scale for all rows.
WHOLE: dict[str, Callable[[], Stored]] = {
    "fp8-tensor": lambda: fp8({"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale", ()),
    "fp8-tensor-inv": lambda: fp8({"quant_method": "fp8", "weight_block_size": None}, "weight_scale_inv", ()),
    "modelopt": lambda: fp8({"quant_method": "modelopt", "quant_algo": "FP8"}, "weight_scale", ()),
    "quark": lambda: fp8({"quant_method": "quark"}, "weight_scale", ()),
    "float-quantized": lambda: fp8(compressed("float-quantized", {"num_bits": 8}), "weight_scale", (1,)),
    "int-quantized": lambda: whole_numbers(compressed("int-quantized", {"num_bits": 8}), (1,)),
    "pack-quantized": lambda: pack_quantized(4, (1,)),
    "modelopt-nvfp4": lambda: nvfp4(modelopt=True),
    "nvfp4-pack-quantized": lambda: nvfp4(modelopt=False),
}
