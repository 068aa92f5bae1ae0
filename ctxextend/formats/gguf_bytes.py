"""The bytes of a GGUF header: keys with their values, the entries of tensors, and the whole of it.

Format (llama.cpp b11434, ``ggml/include/gguf.h``): the magic, a version, the number of tensors and of keys; the
keys; the entries; then the data, aligned. All numbers are little endian. What the loader (``ggml/src/gguf.cpp``)
refuses is refused here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final, get_args

from msgspec import Struct

from ctxextend.contents import GGML_TYPES, GgufType, GgufValue
from ctxextend.errors import OutputError

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32

#: GGML_MAX_NAME and GGML_MAX_DIMS (``ggml/include/ggml.h``), and what a key may have.
MAX_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_KEY_BYTES: Final = 65_535

#: The number of each type of value, and how ``struct`` packs it.
TYPE_NUMBERS: Final[Mapping[GgufType, int]] = MappingProxyType(
    {kind: number for number, kind in enumerate(get_args(GgufType))}
)
LETTERS: Final[Mapping[GgufType, str]] = MappingProxyType(
    {
        "UINT8": "B",
        "INT8": "b",
        "UINT16": "H",
        "INT16": "h",
        "UINT32": "I",
        "INT32": "i",
        "FLOAT32": "f",
        "BOOL": "?",
        "UINT64": "Q",
        "INT64": "q",
        "FLOAT64": "d",
    }
)
#: Of each type of tensor: its number, the elements of a block, and the bytes of a block.
_BLOCKS: Final[Mapping[str, tuple[int, int, int]]] = MappingProxyType(
    {name: (number, elements, size) for number, (name, elements, size) in GGML_TYPES.items()}
)


class Entry(Struct, frozen=True, kw_only=True):
    """A tensor as the header names it: ``dtype`` is a name of GGML_TYPES, ``shape`` has the slowest dimension first."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """The size of its data, without padding."""
        _number, elements, size = _BLOCKS[self.dtype]
        return math.prod(self.shape) // elements * size


def padded(count: int, alignment: int) -> int:
    """The next multiple of ``alignment``, in bytes."""
    return -(-count // alignment) * alignment


def encode_key(key: str, value: GgufValue) -> bytes:
    """A key with its value. Strings may be given as bytes.

    Raises :class:`OutputError` for what a file can't hold: an empty or overlong key, a number that its type
    doesn't hold, an array of arrays.
    """
    raw = _string(key, key)
    if not 0 < len(raw) - 8 <= MAX_KEY_BYTES:
        raise _refused(
            "a key's name can't be", f"1 to {MAX_KEY_BYTES} bytes", f"{len(raw) - 8} bytes", key=key or "(empty)"
        )
    head = raw + struct.pack("<I", TYPE_NUMBERS[value.type])
    if value.type != "ARRAY":
        return head + _items(value.type, (value.value,), key)
    if value.item is None or value.item == "ARRAY" or value.value is None:
        raise _refused("an array can't be written", "an array of numbers or strings", f"of {value.item}", key=key)
    return head + struct.pack("<IQ", TYPE_NUMBERS[value.item], len(value.value)) + _items(value.item, value.value, key)


def offsets(entries: Sequence[Entry], alignment: int) -> tuple[int, ...]:
    """Where the data of each tensor starts, counted from the start of all data: one behind the other, padded."""
    sizes = (padded(entry.size_bytes, alignment) for entry in entries)
    return tuple(accumulate(sizes, initial=0))[: len(entries)]


def data_bytes(entries: Sequence[Entry], alignment: int) -> int:
    """The size of all data, the padding behind the last tensor included."""
    return sum(padded(entry.size_bytes, alignment) for entry in entries)


def encode_entry(entry: Entry, offset: int) -> bytes:
    """A tensor's entry; ``offset`` counts from the start of the data, in bytes.

    Raises :class:`OutputError` for what llama.cpp doesn't load.
    """
    name = _string(entry.name, entry.name)
    if len(name) - 8 > MAX_NAME_BYTES:
        raise _refused(
            "a tensor's name is too long", f"at most {MAX_NAME_BYTES} bytes", f"{len(name) - 8}", key=entry.name
        )
    if entry.dtype not in _BLOCKS:
        raise _refused("a tensor's type isn't known", "a type of GGML", entry.dtype, key=entry.name)
    if len(entry.shape) > MAX_DIMENSIONS:
        raise _refused(
            "a tensor has too many dimensions", f"at most {MAX_DIMENSIONS}", f"{len(entry.shape)}", key=entry.name
        )
    if math.prod(entry.shape) >= 1 << 63 or any(not 0 <= size < 1 << 63 for size in entry.shape):
        raise _refused("a tensor's shape can't be", "fewer than 2^63 elements", f"{entry.shape}", key=entry.name)
    number, block, _size = _BLOCKS[entry.dtype]
    row = entry.shape[-1] if entry.shape else 1
    if row % block:
        raise _refused(
            f"a row of a {entry.dtype} tensor is no whole number of blocks",
            f"a multiple of {block}",
            f"{row}",
            key=entry.name,
        )
    # The file has the fastest dimension first.
    dimensions = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
    return name + dimensions + struct.pack("<IQ", number, offset)


def encode_header(
    keys: Sequence[bytes], entries: Sequence[Entry], *, alignment: int = DEFAULT_ALIGNMENT, version: int = 3
) -> bytes:
    """A whole header of encoded keys, padded, so that the data starts right behind it.

    Raises :class:`OutputError` for what llama.cpp doesn't load, and :class:`ValueError` where ``keys`` don't
    state an alignment other than 32.
    """
    stated = encode_key("general.alignment", GgufValue(type="UINT32", value=alignment))
    if alignment != DEFAULT_ALIGNMENT and stated not in keys:
        raise ValueError(f"an alignment of {alignment} bytes needs its key")
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _refused("a tensor stands twice", "each tensor once", twice, key=twice)
    parts, offset = [MAGIC + struct.pack("<IQQ", version, len(entries), len(keys)), *keys], 0
    for entry in entries:
        parts.append(encode_entry(entry, offset))
        offset += padded(entry.size_bytes, alignment)
    head = b"".join(parts)
    return head.ljust(padded(len(head), alignment), b"\0")


def _items(kind: GgufType, values: Sequence[Any], key: str) -> bytes:
    if kind == "STRING":
        return b"".join(_string(value, key) for value in values)
    try:
        return struct.pack(f"<{len(values)}{LETTERS[kind]}", *values)
    except (struct.error, OverflowError, TypeError) as error:
        raise _refused("a number doesn't fit its type", f"numbers of type {kind}", str(error), key=key) from error


def _string(text: str | bytes, key: str) -> bytes:
    try:
        raw = text if isinstance(text, bytes) else text.encode()
    except UnicodeEncodeError as error:
        raise _refused("a text is no UTF-8", "text that UTF-8 can hold", str(error), key=repr(key)) from error
    return struct.pack("<Q", len(raw)) + raw


def _refused(what: str, expected: str, found: str, *, key: str) -> OutputError:
    return OutputError(
        f"a GGUF file can't hold this: {what}", code="gguf-limits", key=key[:120], expected=expected, found=found[:120]
    )
