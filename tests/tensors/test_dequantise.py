"""Every GGUF type as numbers: the same bits as llama.cpp's own functions give."""

from __future__ import annotations

import ctypes
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ctxextend.contents import GGML_TYPES, TensorInfo
from ctxextend.errors import RefusedError
from ctxextend.exports.reverse import FloatType
from ctxextend.tensors.dequantise import check_readable, dequantised, encoded

pytest.importorskip("xllamacpp")

from tests.reference.libllama import library

#: What takes each quantised type apart in llama.cpp (``ggml/src/ggml-quants.h``, b11434).
QUANTISED = tuple(
    name
    for name, elements, _size in GGML_TYPES.values()
    if elements > 1 and name not in ("Q8_1", "Q8_K", "Q1_0", "Q2_0")
)
SIZES = {name: (elements, size) for name, elements, size in GGML_TYPES.values()}
#: More than is taken apart at once, and no multiple of it.
BLOCKS = (1 << 18) // 32 + 3


def random_bytes(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def by_llama_cpp(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    elements, size = SIZES[dtype]
    found = np.empty(len(raw) // size * elements, np.float32)
    name = dtype if dtype.endswith("_K") else dtype.lower()
    function = getattr(library(), f"dequantize_row_{name[0].lower()}{name[1:]}")
    function.restype, function.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function(raw.ctypes.data, found.ctypes.data, found.size)
    return found


def same_bits(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Equal to the last bit; any NaN is as good as another."""
    return bool(
        found.dtype == expected.dtype
        and np.array_equal(found, expected, equal_nan=True)
        and np.array_equal(np.signbit(found[expected == 0]), np.signbit(expected[expected == 0]))
    )


@pytest.mark.parametrize("dtype", QUANTISED)
def test_quantised_blocks_are_the_numbers_of_llama_cpp(dtype: str) -> None:
    elements, size = SIZES[dtype]
    raw = random_bytes(BLOCKS * 32 // elements * size)
    found, expected = dequantised(raw, dtype), by_llama_cpp(raw, dtype)
    assert np.isfinite(expected).mean() > 0.9
    assert same_bits(found, expected)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16), ("F64", torch.float64)],
)
def test_floats_are_the_numbers_of_torch(dtype: str, kind: torch.dtype) -> None:
    raw = random_bytes(4096 * 8)
    expected = torch.frombuffer(bytearray(raw.tobytes()), dtype=kind).to(torch.float32).numpy()
    assert same_bits(dequantised(raw.tobytes(), dtype), expected)


@pytest.mark.parametrize("dtype", get_args(FloatType))
def test_numbers_are_rounded_as_torch_rounds(dtype: FloatType) -> None:
    # Every exponent, halves between two numbers of 16 bits among them, and what is no number.
    bits = np.concatenate([np.arange(0, 1 << 32, 0x8000, dtype=np.uint64), [0x3F808000, 0x3F818000, 0x38800001]])
    values = bits.astype(np.uint32).view(np.float32)
    if dtype == "F16":
        values = values[~(np.abs(values) > 65504.0)]
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    expected = torch.from_numpy(values).to(kind)
    found = encoded(values.reshape(3, -1) if len(values) % 3 == 0 else values, dtype, name="w").reshape(-1)
    back = torch.frombuffer(bytearray(found.tobytes()), dtype=kind)
    assert same_bits(back.to(torch.float32).numpy(), expected.to(torch.float32).numpy())


def test_a_number_that_float16_cannot_hold_is_refused() -> None:
    values = np.array([1.0, -70000.0, np.inf], np.float32)
    with pytest.raises(RefusedError) as caught:
        encoded(values, "F16", name="model.norm.weight")
    assert (caught.value.code, caught.value.key) == ("out-of-range", "model.norm.weight")
    assert encoded(values[[0, 2]], "F16", name="w").view(np.float16).tolist() == [1.0, np.inf]


@pytest.mark.parametrize("dtype", ["I32", "Q8_K", "Q1_0"])
def test_a_type_that_has_no_numbers_is_refused(dtype: str) -> None:
    tensors = [
        TensorInfo(name=f"t.{kind}", dtype=kind, shape=(256,), file="a.gguf") for kind in (*QUANTISED, "F64", dtype)
    ]
    check_readable(tensors[:-1])
    with pytest.raises(RefusedError) as caught:
        check_readable(tensors)
    assert (caught.value.code, caught.value.key) == ("unreadable-type", f"t.{dtype}")


def test_every_type_that_is_let_pass_can_be_read() -> None:
    for dtype, (elements, size) in SIZES.items():
        tensor = TensorInfo(name="t", dtype=dtype, shape=(elements,), file="a.gguf")
        try:
            check_readable([tensor])
        except RefusedError:
            continue
        assert dequantised(bytes(size), dtype).shape == (elements,)
