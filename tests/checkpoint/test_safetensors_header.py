"""The header of a safetensors file: what a good one gives, and that no broken one is believed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ctxextend.checkpoint.safetensors_header import read_header, read_spans
from ctxextend.contents import TensorInfo
from ctxextend.errors import CheckpointError

FILE = "model.safetensors"


def read(raw: bytes, size_bytes: int | None = None) -> tuple[TensorInfo, ...]:
    size = len(raw) if size_bytes is None else size_bytes
    return read_header(FILE, size, lambda offset, count: raw[offset : offset + count])


def encode(header: Any, data_bytes: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def tensor(start: Any, end: Any, *, dtype: Any = "F32", shape: Any = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - start) // 4] if shape is None else shape,
        "data_offsets": [start, end],
    }


def broken(raw: bytes, size_bytes: int | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read(raw, size_bytes)
    error = caught.value
    assert (error.code, error.file) == ("broken-weights", FILE)
    assert error.hint
    assert len(f"{error.expected}{error.found}") < 300
    return error


def test_where_data_lies(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "b": np.arange(6, dtype=np.float16),
        "a": np.arange(5, dtype=np.int64),
        "empty": np.zeros(0, np.int8),
    }
    save_file(tensors, tmp_path / FILE)
    raw = (tmp_path / FILE).read_bytes()
    found = read_spans(FILE, len(raw), lambda offset, count: raw[offset : offset + count])
    assert {tensor.name: raw[start:end] for tensor, start, end in found} == {
        name: array.tobytes() for name, array in tensors.items()
    }


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "b": np.zeros((2, 3), np.float16),
        "a": np.zeros((5,), np.int64),
        "scalar": np.zeros((), np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    found = {tensor.name: tensor for tensor in read((tmp_path / FILE).read_bytes())}
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "b": ("F16", (2, 3)),
        "a": ("I64", (5,)),
        "scalar": ("F32", ()),
        "empty": ("F32", (0, 4)),
    }
    assert {info.file for info in found.values()} == {FILE}
    assert sum(info.size_bytes for info in found.values()) == 2 * 6 + 8 * 5 + 4


def test_the_order_is_that_of_the_header() -> None:
    raw = encode({"z": tensor(4, 8), "a": tensor(0, 4)}, 8)
    assert [info.name for info in read(raw)] == ["z", "a"]


def test_dtypes_narrower_than_a_byte_are_read() -> None:
    (info,) = read(encode({"w": tensor(0, 3, dtype="F4", shape=[6])}, 3))
    assert info.size_bytes == 3


def test_only_the_header_is_read() -> None:
    raw = encode({"w": tensor(0, 400)}, 400)
    asked: list[tuple[int, int]] = []

    def read_range(offset: int, count: int) -> bytes:
        asked.append((offset, count))
        return raw[offset : offset + count]

    read_header(FILE, len(raw), read_range)
    assert asked == [(0, 8), (8, len(raw) - 408)]


@pytest.mark.parametrize("raw", [b"", b"1234567"])
def test_a_file_that_is_too_short(raw: bytes) -> None:
    assert broken(raw).found == str(len(raw))


@pytest.mark.parametrize("length", [3, 100_000_001, 1 << 63])
def test_a_header_longer_than_the_file(length: int) -> None:
    error = broken(length.to_bytes(8, "little") + b"{}")
    assert (error.expected, error.found) == ("at most 2 bytes of header", str(length))


def test_a_header_longer_than_any_is_not_read() -> None:
    broken((100_000_001).to_bytes(8, "little"), size_bytes=1 << 40)


def test_a_reading_that_ends_inside_the_header() -> None:
    raw = encode({"w": tensor(0, 4)}, 4)
    assert "ends inside" in broken(raw[:20], size_bytes=len(raw)).message


@pytest.mark.parametrize(
    "header",
    [b"not json", b"\xff\xfe\xff", b"{", b"[]", b"3", b"[" * 100_000, b'{"w": ' + b"9" * 5000 + b"}"],
)
def test_a_header_that_is_no_json_object(header: bytes) -> None:
    assert "JSON" in broken(encode(header)).message


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "F32",
        {},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": None},
    ],
)
def test_a_tensor_that_lacks_a_field(entry: Any) -> None:
    error = broken(encode({"w": entry}, 4))
    assert (error.key, error.expected) == ("w", "dtype, shape and data_offsets")


@pytest.mark.parametrize("dtype", ["F31", "f32", "", None, 32, ["F32"], {}])
def test_an_unknown_dtype(dtype: Any) -> None:
    error = broken(encode({"w": tensor(0, 4, dtype=dtype)}, 4))
    assert (error.message, error.found) == ("a weight file is broken: a dtype is unknown", str(dtype))


@pytest.mark.parametrize(
    "entry",
    [
        tensor(-4, 0, shape=[1]),
        tensor(0, -4, shape=[1]),
        tensor(0, 4, shape=[-1]),
        tensor(0, 4, shape=[True]),
        tensor(0, 4.0, shape=[1]),
        tensor(0, "4", shape=[1]),
        tensor(0, 4, shape=["1"]),
        tensor(0, 4, shape=[1.0]),
        tensor(0, float("nan"), shape=[1]),
    ],
)
def test_a_shape_or_offset_that_is_no_whole_number(entry: Any) -> None:
    assert "no whole number" in broken(encode({"w": entry}, 4)).message


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (tensor(0, 4, shape=[2]), "8 bytes for F32[2]"),
        (tensor(0, 4, shape=[]), "8 bytes for F64[]"),
        (tensor(0, 4, shape=[0]), "0 bytes for F32[0]"),
        (tensor(4, 0, shape=[1]), "4 bytes for F32[1]"),
        (tensor(0, 4, shape=[7]), "4 bytes for F4[7]"),
        (tensor(0, 4, shape=[1 << 40, 1 << 40]), "more bytes than a file can have for F32["),
        (tensor(0, 4, shape=[10**4000, 10**4000]), "more bytes than a file can have for F32["),
    ],
)
def test_a_shape_that_lies(entry: dict[str, Any], expected: str) -> None:
    dtype = expected.partition(" for ")[2].partition("[")[0]
    error = broken(encode({"w": {**entry, "dtype": dtype}}, 4))
    assert error.expected
    assert error.expected.startswith(expected)


@pytest.mark.parametrize("second", [(0, 8), (4, 12), (12, 16)])
def test_an_overlap_or_a_hole(second: tuple[int, int]) -> None:
    error = broken(encode({"a": tensor(0, 8), "b": tensor(*second)}, second[1]))
    assert (error.key, error.expected) == ("b", "offset 8")


def test_a_hole_at_the_beginning() -> None:
    assert broken(encode({"a": tensor(4, 8)}, 8)).expected == "offset 0"


def test_truncated_data() -> None:
    error = broken(encode({"a": tensor(0, 8)}, 7))
    assert (error.expected, error.found) == ("8 bytes of data by its header", "7")
    assert "truncated" in error.message


def test_data_that_no_tensor_owns() -> None:
    assert "no tensor owns" in broken(encode({"a": tensor(0, 8)}, 9)).message


@given(st.binary(max_size=80), st.integers(0, 100))
def test_noise_is_an_error_and_never_a_bug(noise: bytes, data_bytes: int) -> None:
    for raw in (noise, encode(noise, data_bytes)):
        with suppress(CheckpointError):
            read(raw)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "U8", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.text(max_size=3),
        _VALUES | st.fixed_dictionaries({"dtype": _VALUES, "shape": _VALUES, "data_offsets": _VALUES}),
        max_size=3,
    ),
    st.integers(0, 100),
)
def test_any_json_is_read_or_an_error(header: dict[str, Any], data_bytes: int) -> None:
    with suppress(CheckpointError):
        tensors = read(encode(header, data_bytes))
        assert sum(info.size_bytes for info in tensors) == data_bytes
