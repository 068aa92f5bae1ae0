"""The header of a safetensors file, believed only after its sizes are checked against the file.

Format: eight bytes, little endian, the length N of the header; N bytes of JSON; the data. Nothing but
the header is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

from ctxextend.contents import DTYPE_BITS, TensorInfo
from ctxextend.errors import CheckpointError

#: The format's own limit; a larger length is a lie or another kind of file.
MAX_HEADER_BYTES: Final = 100_000_000

#: How much of a broken header's own words a message repeats.
_SHOWN: Final = 120

#: ``read(offset, count)`` gives ``count`` bytes of the file from ``offset``, or fewer at its end.
ReadRange = Callable[[int, int], bytes]


def read_header(file: str, size_bytes: int, read: ReadRange) -> tuple[TensorInfo, ...]:
    """The tensors of one file, in its header's order. Raises :class:`CheckpointError` for a broken one."""
    return tuple(tensor for tensor, _start, _end in read_spans(file, size_bytes, read))


def read_spans(file: str, size_bytes: int, read: ReadRange) -> tuple[tuple[TensorInfo, int, int], ...]:
    """The same with where each tensor's data lies in the file: its first byte, and the byte past its last.

    Raises :class:`CheckpointError` for a broken header.
    """
    prefix = read(0, 8)
    if len(prefix) < 8:
        raise _broken(file, "it is too short for a safetensors file", "at least 8 bytes", f"{len(prefix)}")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise _broken(
            file,
            "its header is longer than the file",
            f"at most {max(0, min(MAX_HEADER_BYTES, size_bytes - 8))} bytes of header",
            f"{length}",
        )
    raw = read(8, length)
    if len(raw) < length:
        raise _broken(file, "it ends inside its header", f"{length} bytes", f"{len(raw)}")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"its header is no JSON ({error})", "a JSON object", "something else") from error
    if not isinstance(header, dict):
        raise _broken(file, "its header is no JSON object", "a JSON object", type(header).__name__)
    tensors = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    base = 8 + length
    return tuple((t, base + start, base + end) for t, start, end in _check(file, size_bytes - base, tensors))


def _check(file: str, data_bytes: int, entries: list[tuple[str, Any]]) -> list[tuple[TensorInfo, int, int]]:
    tensors = [_tensor(file, name, entry) for name, entry in entries]
    position = 0
    for start, end, name in sorted((start, end, tensor.name) for tensor, start, end in tensors):
        if start != position:
            raise _broken(file, "tensors overlap or leave a hole", f"offset {position}", f"{start}", key=name)
        position = end
    if position != data_bytes:
        what = "it is truncated" if position > data_bytes else "it holds bytes that no tensor owns"
        raise _broken(file, what, f"{position} bytes of data by its header", f"{data_bytes}")
    return tensors


def _tensor(file: str, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file, "a tensor lacks a field", "dtype, shape and data_offsets", str(entry), key=name) from error
    numbers = (*shape, start, end)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _broken(file, "a shape or offset is no whole number", "numbers from 0", f"{numbers}", key=name)
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _broken(file, "a dtype is unknown", ", ".join(DTYPE_BITS), f"{dtype}", key=name)
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != end - start:
        raise _broken(
            file,
            "a tensor's size doesn't fit its shape",
            f"{_bytes(bits)} for {dtype}{list(shape)}",
            f"{end - start}",
            key=name,
        )
    return TensorInfo(name=name, dtype=dtype, shape=shape, file=file), start, end


def _bytes(bits: int) -> str:
    # A header can claim numbers that Python itself refuses to print.
    return f"{-(-bits // 8)} bytes" if bits < 1 << 66 else "more bytes than a file can have"


def _broken(file: str, what: str, expected: str, found: str, *, key: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"a weight file is broken: {what}",
        code="broken-weights",
        file=file,
        key=key,
        expected=expected[:_SHOWN],
        found=found[:_SHOWN],
        hint="download or copy the file again, and compare its checksum with the publisher's",
    )
