"""The complete arrays of a GGUF file: those of a tokenizer, which the header's reading passes over.

Nothing is read but what the checked spans of the header say, one key at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from ctxextend.contents import Gguf, GgufValue
from ctxextend.errors import CheckpointError
from ctxextend.formats.gguf_bytes import LETTERS, TYPE_NUMBERS


def read_arrays(path: Path, gguf: Gguf, keys: Iterable[str] | None = None) -> dict[str, GgufValue]:
    """The values of those of ``keys`` that the file has (None: of all), arrays whole.

    ``path`` is the file that ``gguf`` was read from. Raises :class:`CheckpointError` for a file that has
    changed since, and for a string that is no UTF-8.
    """
    values: dict[str, GgufValue] = {}
    try:
        with path.open("rb") as file:
            for key in gguf.values if keys is None else keys:
                value = gguf.values.get(key)
                if value is None:
                    continue
                if value.type == "ARRAY":
                    start, end = gguf.spans[key]
                    file.seek(start)
                    value = msgspec.structs.replace(value, value=_array(gguf, key, value, file.read(end - start)))
                values[key] = value
    except OSError as error:
        raise CheckpointError(
            f"a GGUF file can't be read: {error.strerror}", code="unreadable-file", file=gguf.file
        ) from error
    return values


def _array(gguf: Gguf, key: str, value: GgufValue, raw: bytes) -> tuple[Any, ...]:
    """The elements of an array from the bytes of its key and value."""
    name = key.encode()
    item, count = value.item or "STRING", value.length or 0
    head = struct.pack("<Q", len(name)) + name
    head += struct.pack("<IIQ", TYPE_NUMBERS["ARRAY"], TYPE_NUMBERS[item], count)
    if not raw.startswith(head):
        raise _changed(gguf, key)
    if item != "STRING":
        packed = struct.Struct(f"<{count}{LETTERS[item]}")
        if len(raw) != len(head) + packed.size:
            raise _changed(gguf, key)
        return packed.unpack_from(raw, len(head))
    texts: list[str] = []
    at, unpack = len(head), struct.Struct("<Q").unpack_from
    try:
        for _ in range(count):
            start = at + 8
            at = start + unpack(raw, at)[0]
            texts.append(raw[start:at].decode())
    except struct.error as error:
        raise _changed(gguf, key) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            "a text of an array is no UTF-8",
            code="broken-weights",
            file=gguf.file,
            key=key,
            expected="UTF-8",
            found=repr(raw[start:at][:40]),
        ) from error
    if at != len(raw):
        raise _changed(gguf, key)
    return tuple(texts)


def _changed(gguf: Gguf, key: str) -> CheckpointError:
    return CheckpointError(
        "a GGUF file has changed since its header was read",
        code="changed-file",
        file=gguf.file,
        key=key,
        expected="the array that the header told of",
        found="other bytes",
        hint="run the command again when nothing writes to the file",
    )
