"""The header of a GGUF file, believed only after its counts and offsets are checked against the file.

Format (llama.cpp b11434, ``ggml/include/gguf.h``; the checks are those of its loader, ``ggml/src/gguf.cpp``,
so that what is read here is what it would accept): the magic, a version, the number of tensors and of keys;
the keys with their values; an entry for each tensor; the data, aligned. All numbers are little endian.
Nothing but the header is read, in bounded pieces; :func:`read_floats` reads one small tensor.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final, get_args

from msgspec import Struct

from ctxextend.checkpoint.safetensors_header import ReadRange
from ctxextend.contents import GGML_TYPES, Gguf, GgufType, GgufValue, TensorInfo
from ctxextend.errors import CheckpointError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

#: What no sane file exceeds; more is a lie or another kind of file.
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 1_048_576
MAX_KEY_BYTES: Final = 65_535
MAX_HEADER_BYTES: Final = 1 << 28
MAX_ALIGNMENT: Final = 1 << 20
#: GGML_MAX_NAME and GGML_MAX_DIMS (``ggml/include/ggml.h``): the loader refuses more.
MAX_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4

#: Arrays up to this many elements are kept, as a tokenizer's are longer; and this much text in all.
KEPT_ELEMENTS: Final = 4096
KEPT_TEXT_BYTES: Final = 1 << 24
#: The largest tensor that :func:`read_floats` takes.
MAX_FLOATS: Final = 65_536

_TYPES: Final[tuple[GgufType, ...]] = get_args(GgufType)
_FORMATS: Final[dict[GgufType, str]] = {
    "UINT8": "<B",
    "INT8": "<b",
    "UINT16": "<H",
    "INT16": "<h",
    "UINT32": "<I",
    "INT32": "<i",
    "FLOAT32": "<f",
    "BOOL": "<B",
    "UINT64": "<Q",
    "INT64": "<q",
    "FLOAT64": "<d",
}
#: How much is read at once, and how much of a broken header's own words a message repeats.
_CHUNK: Final = 1 << 18
_SHOWN: Final = 120


class Header(Struct, frozen=True, kw_only=True):
    """One GGUF file's header: its keys with all positions, and its tensors in the file's order."""

    gguf: Gguf
    tensors: tuple[TensorInfo, ...]


def read_header(file: str, size_bytes: int, read: ReadRange) -> Header:
    """The header of one file. Raises :class:`CheckpointError` for a broken one."""
    cursor = _Cursor(file, size_bytes, read)
    version = _version(cursor)
    tensor_count, key_count = cursor.number("UINT64", "the number of tensors"), cursor.number("UINT64", "of keys")
    # An entry of a tensor takes at least 24 bytes, a key with its value at least 14.
    cursor.expect_at_most("tensors", tensor_count, min(MAX_TENSORS, size_bytes // 24))
    cursor.expect_at_most("keys", key_count, min(MAX_KEYS, size_bytes // 14))
    values: dict[str, GgufValue] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        start = cursor.position
        key = cursor.text(MAX_KEY_BYTES, "a key")
        if not key:
            raise cursor.broken("a key is empty", "a name", "none")
        if key in values:
            raise cursor.broken("a key stands twice", "each key once", key, key=key)
        values[key] = _value(cursor, key)
        spans[key] = (start, cursor.position)
    alignment = _alignment(cursor, values.get("general.alignment"))
    infos_start = cursor.position
    entries = [_entry(cursor) for _ in range(tensor_count)]
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise cursor.broken("a tensor stands twice", "each tensor once", entry.name, key=entry.name)
        seen.add(entry.name)
    data_start = -(-cursor.position // alignment) * alignment if entries else cursor.position
    return Header(
        gguf=Gguf(
            file=file,
            version=version,
            alignment=alignment,
            values=values,
            spans=spans,
            info_spans={entry.name: entry.span for entry in entries},
            tensor_spans=_places(cursor, entries, data_start, alignment),
            infos_start=infos_start,
            data_start=data_start,
        ),
        tensors=tuple(TensorInfo(name=e.name, dtype=e.dtype, shape=e.shape, file=file) for e in entries),
    )


def read_floats(header: Header, name: str, read: ReadRange) -> tuple[float, ...] | None:
    """The numbers of one small tensor of type F32; None for another type or a tensor too large for it."""
    tensor = next((t for t in header.tensors if t.name == name), None)
    if tensor is None or tensor.dtype != "F32" or tensor.elements > MAX_FLOATS:
        return None
    start, end = header.gguf.tensor_spans[name]
    raw = read(start, end - start)
    if len(raw) < end - start:
        raise _broken(header.gguf.file, "it ends inside a tensor", f"{end - start} bytes", f"{len(raw)}", key=name)
    return struct.unpack(f"<{tensor.elements}f", raw)


class _Entry(Struct, frozen=True, kw_only=True):
    """A tensor's entry in the header; ``offset`` counts from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    offset: int
    span: tuple[int, int]


class _Cursor:
    """Reads on through a file, a chunk at a time; no length that the file states is believed before it fits."""

    def __init__(self, file: str, size_bytes: int, read: ReadRange) -> None:
        self.file = file
        self.size_bytes = size_bytes
        self.position = 0
        self._read = read
        self.kept = 0
        self._chunk = b""
        self._chunk_start = 0

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes."""
        start = self.position - self._chunk_start
        if start + count <= len(self._chunk):
            self.position += count
            return self._chunk[start : start + count]
        self._check(count, what)
        self._chunk = self._read(self.position, min(max(count, _CHUNK), self.size_bytes - self.position))
        self._chunk_start = self.position
        if len(self._chunk) < count:
            raise self.ended(what, count, len(self._chunk))
        self.position += count
        return self._chunk[:count]

    def skip(self, count: int, what: str) -> None:
        """Pass over ``count`` bytes without reading them."""
        self._check(count, what)
        self.position += count

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over ``count`` strings, each of which states its length: a tokenizer has hundreds of thousands."""
        unpack = struct.Struct("<Q").unpack_from
        while count:
            length = self.length(what)
            self.position += length
            count -= 1
            at, end = self.position - self._chunk_start, len(self._chunk) - 8
            while count and at <= end:
                at += 8 + unpack(self._chunk, at)[0]
                count -= 1
            self.position = self._chunk_start + at
            self._check(0, what)

    def _check(self, count: int, what: str) -> None:
        """Whether ``count`` more bytes can be part of a header."""
        if count > self.size_bytes - self.position:
            raise self.ended(what, count, self.size_bytes - self.position)
        if self.position + count > MAX_HEADER_BYTES:
            raise self.broken("its header is longer than any", f"at most {MAX_HEADER_BYTES} bytes", f"more, in {what}")

    def number(self, kind: GgufType, what: str) -> Any:
        form = _FORMATS[kind]
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def length(self, what: str, most: int = MAX_HEADER_BYTES) -> int:
        """The length of a string, believed up to ``most`` bytes."""
        length: int = self.number("UINT64", what)
        most = min(most, self.size_bytes - self.position)
        if length > most:
            raise self.broken(
                f"{what} is longer than can be", f"at most {most} bytes at byte {self.position}", f"{length}"
            )
        return length

    def text(self, most: int, what: str) -> str:
        raw = self.take(self.length(what, most), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is no UTF-8", "UTF-8", repr(raw[:40])) from error

    def expect_at_most(self, what: str, found: int, most: int) -> None:
        if found > most:
            raise self.broken(
                f"it states more {what} than it can hold", f"at most {most} in {self.size_bytes} bytes", f"{found}"
            )

    def ended(self, what: str, count: int, left: int) -> CheckpointError:
        return self.broken(
            f"it ends inside {what}", f"{count} more bytes at byte {self.position}", f"{max(left, 0)} bytes"
        )

    def broken(self, what: str, expected: str, found: str, *, key: str | None = None) -> CheckpointError:
        return _broken(self.file, what, expected, found, key=key)


def _version(cursor: _Cursor) -> int:
    magic = cursor.take(4, "its magic")
    if magic != MAGIC:
        raise cursor.broken("it is no GGUF file", f"{MAGIC!r} at its start", repr(magic))
    version: int = cursor.number("UINT32", "its version")
    if version & 0xFFFF == 0:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise cursor.broken("it is big-endian, or no GGUF file", "little-endian numbers", f"version {swapped} swapped")
    if version not in VERSIONS:
        raise cursor.broken("its version isn't known", "2 or 3", f"{version}")
    return version


def _value(cursor: _Cursor, key: str) -> GgufValue:
    kind = _type(cursor, key)
    if kind != "ARRAY":
        return GgufValue(type=kind, value=_scalar(cursor, kind, key))
    item, count = _type(cursor, key), cursor.number("UINT64", f"the array {key}")
    if item == "ARRAY":
        raise cursor.broken("an array holds arrays", "an array of numbers or strings", "ARRAY", key=key)
    smallest = 8 if item == "STRING" else struct.calcsize(_FORMATS[item])
    if count > (cursor.size_bytes - cursor.position) // smallest:
        most = (cursor.size_bytes - cursor.position) // smallest
        raise cursor.broken("an array is longer than the file", f"at most {most} of {item}", f"{count}", key=key)
    if count <= KEPT_ELEMENTS:
        kept = tuple(_scalar(cursor, item, key) for _ in range(count))
        return GgufValue(type="ARRAY", item=item, length=count, value=kept)
    if item == "STRING":
        cursor.skip_strings(count, f"a string of {key}")
    else:
        cursor.skip(count * smallest, f"the array {key}")
    return GgufValue(type="ARRAY", item=item, length=count, value=None)


def _type(cursor: _Cursor, key: str) -> GgufType:
    number: int = cursor.number("UINT32", f"the type of {key}")
    if number >= len(_TYPES):
        raise cursor.broken("a value's type isn't known", f"a number from 0 to {len(_TYPES) - 1}", f"{number}", key=key)
    return _TYPES[number]


def _scalar(cursor: _Cursor, kind: GgufType, key: str) -> Any:
    if kind == "STRING":
        what = f"the value of {key}"
        length = cursor.length(what)
        cursor.kept += length
        if cursor.kept > KEPT_TEXT_BYTES:
            cursor.skip(length, what)
            return None
        # llama.cpp takes any bytes for a string; what is no UTF-8 is only shown otherwise.
        return cursor.take(length, what).decode(errors="replace")
    number = cursor.number(kind, f"the value of {key}")
    return number != 0 if kind == "BOOL" else number


def _alignment(cursor: _Cursor, stated: GgufValue | None) -> int:
    if stated is None:
        return DEFAULT_ALIGNMENT
    value: Any = stated.value
    if stated.type != "UINT32" or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.broken(
            "its alignment can't be",
            f"a power of two of type UINT32, up to {MAX_ALIGNMENT}",
            f"{str(value)[:40]} of type {stated.type}",
            key="general.alignment",
        )
    return int(value)


def _entry(cursor: _Cursor) -> _Entry:
    start = cursor.position
    name = cursor.text(MAX_NAME_BYTES, "a tensor's name")
    count: int = cursor.number("UINT32", f"the tensor {name}")
    if count > MAX_DIMENSIONS:
        raise cursor.broken("a tensor has too many dimensions", f"at most {MAX_DIMENSIONS}", f"{count}", key=name)
    # The file has the fastest dimension first.
    dimensions = [cursor.number("UINT64", f"the tensor {name}") for _ in range(count)]
    number: int = cursor.number("UINT32", f"the tensor {name}")
    if number not in GGML_TYPES:
        raise cursor.broken("a tensor's type isn't known", "a type of GGML", f"number {number}", key=name)
    dtype, block, block_bytes = GGML_TYPES[number]
    elements = math.prod(dimensions)
    row = dimensions[0] if dimensions else 1
    if elements >= 1 << 63 or any(dimension >= 1 << 63 for dimension in dimensions):
        raise cursor.broken(
            "a tensor is larger than any", "fewer than 2^63 elements", f"{_shape(dimensions)}", key=name
        )
    if row % block:
        raise cursor.broken(
            f"a row of a {dtype} tensor is no whole number of blocks", f"a multiple of {block}", f"{row}", key=name
        )
    offset: int = cursor.number("UINT64", f"the tensor {name}")
    return _Entry(
        name=name,
        dtype=dtype,
        shape=tuple(reversed(dimensions)),
        size_bytes=elements // block * block_bytes,
        offset=offset,
        span=(start, cursor.position),
    )


def _places(cursor: _Cursor, entries: list[_Entry], data_start: int, alignment: int) -> dict[str, tuple[int, int]]:
    """Where each tensor's data lies. llama.cpp takes only data in the entries' order, padded, without holes."""
    places, position = {}, 0
    for entry in entries:
        if entry.offset % alignment:
            raise cursor.broken(
                "a tensor isn't aligned", f"a multiple of {alignment}", f"offset {entry.offset}", key=entry.name
            )
        if entry.offset != position:
            raise cursor.broken(
                "tensors overlap or leave a hole", f"offset {position}", f"{entry.offset}", key=entry.name
            )
        start, end = data_start + entry.offset, data_start + entry.offset + entry.size_bytes
        if end > cursor.size_bytes:
            raise cursor.broken(
                "it is truncated",
                f"data up to byte {end}" if end < 1 << 66 else "data that a file can have",
                f"{cursor.size_bytes} bytes",
                key=entry.name,
            )
        places[entry.name] = (start, end)
        position += -(-entry.size_bytes // alignment) * alignment
    return places


def _shape(dimensions: list[int]) -> str:
    return " x ".join(str(dimension) for dimension in dimensions)


def _broken(file: str, what: str, expected: str, found: str, *, key: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"a GGUF file is broken: {what}",
        code="broken-weights",
        file=file,
        key=key if key is None else key[:_SHOWN],
        expected=expected[:_SHOWN],
        found=found[:_SHOWN],
        hint="download or copy the file again, and compare its checksum with the publisher's",
    )
