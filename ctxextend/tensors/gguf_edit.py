"""A GGUF file with other keys: the new header, and a new file with the same tensor data behind it.

Keys that don't change keep their very bytes. Tensor data lies in the entries' order without holes, as
llama.cpp wants it. The data keep their distance from the blocks of the file system (a padding key makes up
for what the header grew or shrank), so that a file system can share them between the old and the new file.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.contents import GGML_TYPES, Contents, Gguf, GgufEdits, GgufValue
from ctxextend.errors import OutputError
from ctxextend.formats.gguf_bytes import (
    DEFAULT_ALIGNMENT,
    Entry,
    data_bytes,
    encode_entry,
    encode_header,
    encode_key,
    offsets,
    padded,
)
from ctxextend.gguf_record import PADDING
from ctxextend.tensors.copying import CHUNK_BYTES, copy_span
from ctxextend.tensors.threads import Task, in_threads

#: How many tensors all files of a split checkpoint have together; llama.cpp counts (``llama-model-loader.cpp``).
TENSOR_COUNT: Final = "split.tensors.count"

#: The blocks of file systems that share them. A constant, since the same edit must give the same bytes anywhere.
_BLOCK_BYTES: Final = 4096

#: Magic, version and two counts.
_FIXED_BYTES: Final = 24
_SMALLEST_FILLER: Final = encode_key(PADDING, GgufValue(type="UINT8", value=0))
_EMPTY_FILLER_BYTES: Final = len(encode_key(PADDING, GgufValue(type="STRING", value="")))


class EditedHeader(Struct, frozen=True, kw_only=True):
    """What a file holds after an edit: encoded keys, entries, and where each tensor's bytes come from.

    ``sources`` has a span of the old file, or the bytes themselves, for each of ``entries``.
    """

    keys: tuple[bytes, ...]
    entries: tuple[Entry, ...]
    sources: tuple[tuple[int, int] | bytes, ...]
    alignment: int
    version: int

    @property
    def bare_bytes(self) -> int:
        """The size of the header without any padding."""
        return _FIXED_BYTES + sum(map(len, self.keys)) + sum(len(encode_entry(entry, 0)) for entry in self.entries)

    @property
    def data_bytes(self) -> int:
        """The size of all data, padded."""
        return data_bytes(self.entries, self.alignment)

    def fits(self, room: int) -> bool:
        """Whether a padding key can make the data start at byte ``room``."""
        return _filler(self.bare_bytes, room, self.alignment) is not None

    def encoded(self, room: int) -> bytes:
        """The header, ``room`` bytes long: one that fits."""
        filler = _filler(self.bare_bytes, room, self.alignment)
        assert filler is not None
        keys = [*self.keys, filler] if filler else self.keys
        return encode_header(keys, self.entries, alignment=self.alignment, version=self.version)


def edited_header(old: bytes, gguf: Gguf, edits: GgufEdits, *, file: str) -> EditedHeader:
    """The header of ``gguf`` after ``edits``; ``old`` are the bytes of the file's header, ``file`` is its name.

    A key that is both set and removed is set. A replaced tensor stays in its place where it keeps its size,
    and goes last otherwise. A count of tensors in a split file follows. Raises :class:`OutputError` where
    ``gguf`` was read from other bytes.
    """
    _check_same(old, gguf, file)
    tensors = dict(_edited_tensors(old, gguf, edits))
    changed = dict(edits.keys)
    count = gguf.values.get(TENSOR_COUNT)
    if count is not None and count.value is not None and TENSOR_COUNT not in changed:
        total = count.value + len(tensors) - len(gguf.info_spans)
        changed[TENSOR_COUNT] = msgspec.structs.replace(count, value=total)
    gone = {*edits.removed, PADDING} - set(changed)
    keys = []
    for key, (start, end) in gguf.spans.items():
        if key not in gone:
            keys.append(encode_key(key, changed.pop(key)) if key in changed else old[start:end])
    keys += [encode_key(key, value) for key, value in changed.items()]
    alignment = gguf.alignment
    if "general.alignment" in edits.keys:
        alignment = edits.keys["general.alignment"].value
    elif "general.alignment" in edits.removed:
        alignment = DEFAULT_ALIGNMENT
    return EditedHeader(
        keys=tuple(keys),
        entries=tuple(entry for entry, _source in tensors.values()),
        sources=tuple(source for _entry, source in tensors.values()),
        alignment=alignment,
        version=gguf.version,
    )


def write_edited(source: Path, target: Path, gguf: Gguf, edits: GgufEdits, *, progress: Callable[[int], None]) -> None:
    """Write the file ``source``, whose header is ``gguf``, to the new file ``target`` with ``edits``.

    ``progress`` is told how many bytes were written since it was last told. What was written may not be on
    the disk yet. Raises :class:`OutputError` where the source changed since its header was read.
    """
    with source.open("rb", buffering=0) as read, target.open("xb", buffering=0) as write:
        after = edited_header(read_old_header(read, gguf, source), gguf, edits, file=str(source))
        runs = list(_runs(after))
        start = _data_start(after, runs)
        write_all(write, after.encoded(start))
        progress(start)
        write.truncate(start + after.data_bytes)
        in_threads((task for run in runs for task in _tasks(read, write, start, run)), progress)


def _tasks(read: io.FileIO, write: io.FileIO, start: int, run: _Run) -> Iterator[Task]:
    """The pieces of a run; the data begin at ``start`` of the new file."""
    target = start + run.offset
    if isinstance(run.source, bytes):
        yield partial(os.pwrite, write.fileno(), run.source, target)
        return
    position, end = run.source
    while position < end:
        # Up to the next block first: from there on, whole blocks can be shared.
        count = min(-position % _BLOCK_BYTES or CHUNK_BYTES, end - position)
        yield partial(copy_span, read.fileno(), position, write.fileno(), target, count, file=str(read.name))
        position, target = position + count, target + count


def edits_by_file(contents: Contents, edits: GgufEdits) -> dict[str, GgufEdits]:
    """Which edits concern which file of a GGUF checkpoint; files that none concerns aren't named.

    Keys and new tensors belong to the first file, changed and removed tensors to the one that holds them.
    The first file's count of tensors is set where another file loses one.
    """
    assert contents.gguf is not None
    first, homes = contents.gguf.file, {tensor.name: tensor.file for tensor in contents.tensors}
    found: dict[str, GgufEdits] = {}
    for file in dict.fromkeys((first, *homes.values())):
        own = GgufEdits(
            keys=edits.keys if file == first else {},
            removed=edits.removed if file == first else (),
            tensors={name: numbers for name, numbers in edits.tensors.items() if homes.get(name, first) == file},
            removed_tensors=tuple(name for name in edits.removed_tensors if homes.get(name) == file),
        )
        if own != GgufEdits():
            found[file] = own
    count = contents.gguf.values.get(TENSOR_COUNT)
    if count is not None and any(edit.removed_tensors for file, edit in found.items() if file != first):
        total = len(homes.keys() - set(edits.removed_tensors) | edits.tensors.keys())
        keys = {TENSOR_COUNT: msgspec.structs.replace(count, value=total), **edits.keys}
        found[first] = msgspec.structs.replace(found.get(first, GgufEdits()), keys=keys)
    return found


def read_old_header(read: io.FileIO, gguf: Gguf, path: Path) -> bytes:
    """The bytes in front of the data. Raises :class:`OutputError` where the file isn't as long as it was."""
    end = max((end for _start, end in gguf.tensor_spans.values()), default=gguf.data_start)
    if os.fstat(read.fileno()).st_size < end:
        raise _changed(str(path))
    parts, position = [], 0
    while position < gguf.data_start:
        part = os.pread(read.fileno(), gguf.data_start - position, position)
        if not part:
            raise _changed(str(path))
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def write_all(write: io.FileIO, data: bytes) -> None:
    """Write all of ``data`` where the file stands."""
    view = memoryview(data)
    while view:
        view = view[write.write(view) :]


class _Run(Struct, frozen=True, kw_only=True):
    """Bytes that are written in one go, ``offset`` bytes behind the start of the data."""

    offset: int
    source: tuple[int, int] | bytes


def _runs(after: EditedHeader) -> Iterator[_Run]:
    """Data that lie one behind the other in both files are copied together, with the padding between them."""
    places = offsets(after.entries, after.alignment)
    run: _Run | None = None
    for source, offset in zip(after.sources, places, strict=True):
        if run is not None and isinstance(run.source, tuple) and isinstance(source, tuple):
            first, _end = run.source
            if source[0] - first == offset - run.offset:
                run = _Run(offset=run.offset, source=(first, source[1]))
                continue
        if run is not None:
            yield run
        run = _Run(offset=offset, source=source)
    if run is not None:
        yield run


def _data_start(after: EditedHeader, runs: list[_Run]) -> int:
    """Where the data start: with the longest run as far from a block's start as in the old file."""
    copied = [
        (source[1] - source[0], source[0] - run.offset) for run in runs if isinstance(source := run.source, tuple)
    ]
    bare = after.bare_bytes
    start = padded(bare, after.alignment)
    if not copied:
        return start
    _size, distance = max(copied)
    block = max(_BLOCK_BYTES, after.alignment)
    if distance % after.alignment == 0:
        start += (distance - start) % block
        while _filler(bare, start, after.alignment) is None:
            start += block
    return start


def _filler(bare: int, room: int, alignment: int) -> bytes | None:
    """The padding key with which a header of ``bare`` bytes ends at ``room``; empty where none is needed.

    None where there is too little room, or too much for the alignment and too little for a key.
    """
    gap = room - bare
    if gap < 0 or room % alignment:
        return None
    if gap < alignment:
        return b""
    if gap >= _EMPTY_FILLER_BYTES:
        # Blanks: they cost a reader nothing, and whoever prints them sees nothing.
        return encode_key(PADDING, GgufValue(type="STRING", value=" " * (gap - _EMPTY_FILLER_BYTES)))
    if len(_SMALLEST_FILLER) <= gap < len(_SMALLEST_FILLER) + alignment:
        return _SMALLEST_FILLER
    return None


def _edited_tensors(
    old: bytes, gguf: Gguf, edits: GgufEdits
) -> Iterator[tuple[str, tuple[Entry, tuple[int, int] | bytes]]]:
    """Every tensor of the new file in its order: its entry, and where its bytes come from."""
    last = []
    for name, (start, end) in gguf.info_spans.items():
        entry, span = _entry(old[start:end]), gguf.tensor_spans[name]
        if name in edits.tensors:
            new, raw = _floats(name, edits.tensors[name])
            if padded(len(raw), gguf.alignment) == padded(span[1] - span[0], gguf.alignment):
                yield name, (new, raw)
            else:
                last.append(name)
        elif name not in edits.removed_tensors:
            yield name, (entry, span)
    last += [name for name in edits.tensors if name not in gguf.info_spans]
    for name in last:
        yield name, _floats(name, edits.tensors[name])


def _floats(name: str, numbers: tuple[float, ...]) -> tuple[Entry, bytes]:
    return Entry(name=name, dtype="F32", shape=(len(numbers),)), struct.pack(f"<{len(numbers)}f", *numbers)


def _entry(raw: bytes) -> Entry:
    """A tensor's entry, from its bytes in a header that was read before."""
    (length,) = struct.unpack_from("<Q", raw)
    (count,) = struct.unpack_from("<I", raw, 8 + length)
    *dimensions, number, _offset = struct.unpack_from(f"<{count}QIQ", raw, 12 + length)
    return Entry(name=raw[8 : 8 + length].decode(), dtype=GGML_TYPES[number][0], shape=tuple(reversed(dimensions)))


def _check_same(old: bytes, gguf: Gguf, file: str) -> None:
    """Whether these bytes have the keys and entries that were read, where they were read."""
    counts = struct.pack("<IQQ", gguf.version, len(gguf.info_spans), len(gguf.spans))
    named = [*gguf.spans.items(), *gguf.info_spans.items()]
    ends = [_FIXED_BYTES, *(end for _name, (_start, end) in named)]
    same = old[4:_FIXED_BYTES] == counts and ends[-1] <= len(old)
    for (name, (start, end)), before in zip(named, ends[:-1], strict=True):
        raw = struct.pack("<Q", len(name.encode())) + name.encode()
        same = same and start == before and old[start:end].startswith(raw)
    if not same:
        raise _changed(file)


def _changed(file: str) -> OutputError:
    return OutputError(
        "the file changed since its header was read",
        code="source-changed",
        file=file,
        hint="let whatever writes it finish, then run again",
    )
