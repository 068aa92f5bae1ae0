"""Types of GGML: the bytes are those of the gguf package, whatever the type of the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import LlamaFileType
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ctxextend.errors import RefusedError
from ctxextend.exports.layout import Layout
from ctxextend.exports.outtypes import FILE_TYPES, NATIVE
from ctxextend.tensors import quantise as room
from ctxextend.tensors.quantise import (
    Scratch,
    convert,
    decode,
    encoded_bytes,
    tensor_type,
)

Array = np.ndarray[Any, Any]

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
EACH = pytest.mark.parametrize("kind", KINDS)
NUMBERS = st.floats(-60000, 60000, width=32, allow_subnormal=False)


def as_bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def brain(numbers: Array) -> Array:
    """BF16, cut, as 16 bits."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def widened(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def written(numbers: Array, kind: str) -> Array:
    (found,) = convert(as_bytes(numbers), "F32", [kind], Scratch(), name="x")
    return found


def expected(numbers: Array, kind: str) -> Array:
    return as_bytes(quantize(numbers.reshape(-1, 32), GGMLQuantizationType[kind]))


@EACH
def test_random_numbers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK", 256)
    numbers = np.random.default_rng(0).standard_normal(32 * 41).astype(np.float32)
    np.testing.assert_array_equal(written(numbers, kind), expected(numbers, kind))


@EACH
@given(numbers=arrays(np.float32, 64, elements=NUMBERS))
def test_any_numbers(kind: str, numbers: Array) -> None:
    # Which zero is the smallest, the gguf package leaves to the processor.
    numbers += np.float32(0)
    if kind not in ("F32", "F16", "BF16"):
        # A scale that is no normal number has no inverse that is one.
        numbers[np.abs(numbers) < 1e-30] = 0
        if kind in ("Q4_1", "Q5_1"):
            numbers *= np.float32(0.5)
    with np.errstate(all="ignore"):
        good = expected(numbers, kind)
    np.testing.assert_array_equal(written(numbers, kind), good)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
@pytest.mark.parametrize("first", [1.0, -1.0, 0.0, -0.0])
def test_two_largest_magnitudes(kind: str, first: float) -> None:
    numbers = np.zeros(64, np.float32)
    numbers[0], numbers[5], numbers[9] = first, -first, first
    numbers[32:] = numbers[:32] * np.float32(0.3) + np.float32(0.1)
    np.testing.assert_array_equal(written(numbers, kind), expected(numbers, kind))


def test_halves_are_rounded_away_from_zero() -> None:
    """Scale 1, so that the codes are the numbers: halves, and their neighbours on both sides."""
    halves = np.arange(0.5, 31, dtype=np.float32)
    numbers = np.concatenate((halves, np.nextafter(halves, np.float32(0)), np.nextafter(halves, np.float32(99))))
    blocks = np.zeros((6 * len(halves), 32), np.float32)
    blocks[:, 0] = 127
    blocks[: 3 * len(halves), 1], blocks[3 * len(halves) :, 1] = numbers, -numbers
    found = written(blocks.reshape(-1), "Q8_0")
    np.testing.assert_array_equal(found, expected(blocks, "Q8_0"))
    codes = found.reshape(-1, 34)[:, 3].view(np.int8)
    assert codes[:3].tolist() == [1, 2, 3]
    assert codes[len(halves) : len(halves) + 3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_sources(kind: str, dtype: str) -> None:
    numbers = np.random.default_rng(1).standard_normal(320).astype(np.float32)
    raw, exact = {
        "BF16": (brain(numbers), widened(brain(numbers))),
        "F16": (numbers.astype(np.float16), numbers.astype(np.float16).astype(np.float32)),
        "F64": (numbers.astype(np.float64), numbers),
    }[dtype]
    (found,) = convert(as_bytes(raw), dtype, [kind], Scratch(), name="x")
    np.testing.assert_array_equal(found, as_bytes(raw) if kind == dtype else expected(exact, kind))


def test_every_bf16_as_f16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    fits = (bits & 0x7FFF < 0x4780) | (bits & 0x7FFF >= 0x7F80)
    (found,) = convert(as_bytes(bits[fits]), "BF16", ["F16"], Scratch(), name="x")
    np.testing.assert_array_equal(found.view(np.uint16), widened(bits[fits]).astype(np.float16).view(np.uint16))


def test_no_number_stays_none_in_bf16() -> None:
    bits = [0x3FC00000, 0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFF80FFFF, 0x7FFFFFFF, 0xFFFFFFFF]
    numbers = np.array(bits * 4, np.uint32).view(np.float32)
    np.testing.assert_array_equal(written(numbers, "BF16"), expected(numbers, "BF16"))


def test_several_types_at_once() -> None:
    bits = brain(np.random.default_rng(2).standard_normal(640).astype(np.float32))
    found = convert(as_bytes(bits), "BF16", KINDS, Scratch(), name="x")
    for kind, out in zip(KINDS, found, strict=True):
        np.testing.assert_array_equal(out, expected(widened(bits), kind), err_msg=kind)


def test_every_number_of_f8() -> None:
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8)
    good = torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(decode(codes, "F8_E4M3", Scratch()), good)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("number", [1e38, -1e38, np.nan, -np.inf])
def test_numbers_out_of_range(kind: str, dtype: str, number: float) -> None:
    numbers = np.ones(64, np.float32)
    numbers[40] = number
    raw = as_bytes(numbers if dtype == "F32" else brain(numbers))
    if kind == "F16" and not np.isfinite(number):
        # F16 has these.
        (found,) = convert(raw, dtype, [kind], Scratch(), name="x")
        np.testing.assert_array_equal(found.view(np.float16)[40], np.float16(number))
        return
    with pytest.raises(RefusedError) as caught:
        convert(raw, dtype, [kind], Scratch(), name="x.weight")
    assert (caught.value.code, caught.value.key) == ("out-of-range", "x.weight")


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_a_minimum_out_of_range(kind: str) -> None:
    with pytest.raises(RefusedError):
        written(np.full(32, -1e6, np.float32), kind)


def test_a_scale_too_small_to_turn_round() -> None:
    numbers = np.full(32, 1e-42, np.float32)
    for kind in KINDS[3:]:
        found = written(numbers, kind)
        assert np.isfinite(dequantize(found.reshape(1, -1), GGMLQuantizationType[kind])).all(), kind


def test_the_table_of_file_types() -> None:
    names = {
        name.removeprefix("MOSTLY_").removeprefix("ALL_").lower(): number.value
        for name, number in LlamaFileType.__members__.items()
    }
    assert dict(FILE_TYPES).items() <= names.items()
    assert NATIVE.keys() <= FILE_TYPES.keys()


@EACH
def test_sizes(kind: str) -> None:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    assert encoded_bytes(64, kind) == 64 // block * size


@pytest.mark.parametrize(
    ("layout", "outtype", "tied", "kind"),
    [
        (Layout(name="a.weight", shape=(4, 64)), "q4_0", False, "Q4_0"),
        (Layout(name="a.weight", shape=(4, 64), exact=True), "q4_0", False, "F32"),
        (Layout(name="a.bias", shape=(64,)), "f16", False, "F32"),
        (Layout(name="a.weight", shape=(64, 33)), "q8_0", False, "F16"),
        (Layout(name="a.weight", shape=(64, 33)), "bf16", False, "BF16"),
        (Layout(name="output.weight", shape=(4, 64)), "q5_1", False, "Q8_0"),
        (Layout(name="token_embd.weight", shape=(4, 64)), "q5_1", False, "Q5_1"),
        (Layout(name="token_embd.weight", shape=(4, 64)), "q4_1", True, "Q8_0"),
        (Layout(name="token_embd.weight", shape=(4, 64)), "bf16", True, "BF16"),
        (Layout(name="output.weight", shape=(4, 64)), "f32", False, "F32"),
    ],
)
def test_the_type_of_a_tensor(layout: Layout, outtype: str, tied: bool, kind: str) -> None:
    assert tensor_type(layout, outtype, tied=tied) == kind
