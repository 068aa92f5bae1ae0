"""A GGUF file is edited where it lies, whatever its size, without rewriting its tensor data.

A header that doesn't fill its room is filled up with a padding key. One that needs more room gets whole blocks
inserted in front of the data, which the file system does by moving its map of the file alone. A journal makes
it safe against a crash at any moment (``gguf_journal.py``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from ctxextend.checkpoint.gguf_header import Header, read_header
from ctxextend.contents import Gguf, GgufEdits
from ctxextend.errors import OutputError, RefusedError
from ctxextend.formats.gguf_architectures import ARCHITECTURES
from ctxextend.formats.gguf_bytes import offsets, padded
from ctxextend.formats.gguf_keys import DEFAULT_TYPE, FREQS, LONG, SHORT, TYPE
from ctxextend.tensors import ranges
from ctxextend.tensors.gguf_edit import EditedHeader, edited_header
from ctxextend.tensors.gguf_journal import Change, Journal, discard, fingerprint, leftovers, load, store, sweep, undo

#: What may lie behind the header of a file without data, and is written again with it.
_MAX_TAIL_BYTES: Final = 1 << 20

#: A file of Ollama's store is named by its digest.
_DIGEST: Final = re.compile(r"sha256[-:][0-9a-f]{64}")
#: One of the Hub's cache is too, in a folder ``blobs``.
_BLOB: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HUB_FOLDER: Final = re.compile(r"(models|datasets|spaces)--.+")

#: What a file system answers that can't insert there after all.
_CANNOT_INSERT: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.EFBIG, errno.EPERM, errno.ENOSYS})


def edit_in_place(path: Path, edits: GgufEdits, verify: Callable[[Path], None]) -> None:
    """Edit the GGUF file ``path``; an interrupted edit of it is undone first.

    ``verify`` reads the result back, and raises where it isn't what was meant: then, and for any other error,
    the file is made what it was. Raises :class:`RefusedError` (``in-place``) where it can't be done safely, or not
    without moving data, and :class:`OutputError` (``busy``) while another run edits the file.
    """
    _check_place(path)
    with _locked(path) as descriptor:
        interrupted = load(path)
        if interrupted is not None:
            undo(path, descriptor, interrupted)
        journal = _journal(path, descriptor, edits)
        _check_alone(path, descriptor)
        try:
            store(path, journal)
        except PermissionError as error:
            raise _refused(path, "no journal can be written beside it", "a folder that can be written to") from error
        try:
            _carry_out(path, descriptor, journal)
            verify(path)
        except BaseException:
            undo(path, descriptor, journal)
            raise
        discard(path)


def recover(path: Path) -> bool:
    """Undo an edit of ``path`` that was interrupted; whether there was one.

    Every command that opens the file calls this first: without a journal it costs a look into the folder.
    Raises :class:`OutputError` while another run edits the file (``busy``) or where it can't be written to
    (``interrupted-edit``), and :class:`CheckpointError` where something else changed it since.
    """
    real = path.resolve()
    if not leftovers(real) or not real.exists():
        return False
    try:
        with _locked(real) as descriptor:
            journal = load(real)
            if journal is not None:
                undo(real, descriptor, journal)
            sweep(real)
            # Without one, the run that held the lock has finished just now.
            return journal is not None
    except RefusedError as error:
        raise OutputError(
            "an edit of this file was interrupted, and can't be undone",
            code="interrupted-edit",
            file=str(real),
            expected=error.expected,
            found=error.found,
            hint="make it writable, and run again",
        ) from error


def _carry_out(path: Path, descriptor: int, journal: Journal) -> None:
    if journal.insert_bytes:
        try:
            ranges.insert(descriptor, journal.insert_at, journal.insert_bytes)
        except OSError as error:
            if error.errno not in _CANNOT_INSERT:
                raise
            raise _no_room(path, error.strerror) from error
        # The old header must not be overwritten before the disk knows where its data went.
        ranges.sync(descriptor)
    for change in journal.changes:
        ranges.write_at(descriptor, change.position + journal.insert_bytes, change.after)
    ranges.write_at(descriptor, 0, journal.header_after)
    ranges.sync(descriptor)


def _journal(path: Path, descriptor: int, edits: GgufEdits) -> Journal:
    """All that the edit will do. Raises :class:`RefusedError` where it would have to move data."""
    size = os.fstat(descriptor).st_size
    header = read_header(path.name, size, partial(_pread, descriptor))
    gguf = header.gguf
    room = gguf.data_start
    old = ranges.read_at(descriptor, 0, room)
    after = edited_header(old, gguf, _kept(path, header, edits), file=str(path))
    if after.alignment != gguf.alignment:
        raise _refused(path, "another alignment moves all data", f"{gguf.alignment}", f"{after.alignment}")
    if max((end for _start, end in gguf.tensor_spans.values()), default=room) == room:
        return _whole(path, descriptor, after, size)
    changes = tuple(_changes(path, descriptor, after, room))
    at, added = _insertion(path, descriptor, after, room)
    untouched = [source for source in after.sources if isinstance(source, tuple)]
    return Journal(
        old_bytes=size,
        insert_at=at,
        insert_bytes=added,
        header_before=old,
        header_after=after.encoded(room + added),
        changes=changes,
        fingerprints=fingerprint(descriptor, untouched),
    )


def _whole(path: Path, descriptor: int, after: EditedHeader, size: int) -> Journal:
    """The edit of a file without data, as the first of a split one can be: it is simply written again."""
    start = padded(after.bare_bytes, after.alignment)
    data = bytearray(after.encoded(start))
    for source, offset in zip(after.sources, offsets(after.entries, after.alignment), strict=True):
        if isinstance(source, bytes):
            data[start + offset :] = source.ljust(padded(len(source), after.alignment), b"\0")
    if size > len(data) + _MAX_TAIL_BYTES:
        raise _refused(path, "it has no tensors, and yet something behind its header", "nothing", f"{size} bytes")
    return Journal(
        old_bytes=size,
        insert_at=0,
        insert_bytes=0,
        header_before=ranges.read_at(descriptor, 0, size),
        header_after=bytes(data).ljust(size, b"\0"),
        changes=(),
        fingerprints=(),
    )


def _kept(path: Path, header: Header, edits: GgufEdits) -> GgufEdits:
    """The edits, with tensors that can't go without leaving a hole kept as ones."""
    gguf, names = header.gguf, list(header.gguf.info_spans)
    tail = len(names)
    while tail and names[tail - 1] in edits.removed_tensors:
        tail -= 1
    ones = {}
    for tensor in header.tensors[:tail]:
        if tensor.name in edits.removed_tensors:
            _check_ones(path, tensor.name, tensor.dtype, gguf, edits)
            ones[tensor.name] = (1.0,) * tensor.elements
    gone = tuple(name for name in edits.removed_tensors if name not in ones)
    return msgspec.structs.replace(edits, tensors={**edits.tensors, **ones}, removed_tensors=gone)


def _check_ones(path: Path, name: str, dtype: str, gguf: Gguf, edits: GgufEdits) -> None:
    """Whether a frequency tensor of ones is the same as none: where it is loaded, as a frequency over 1 is itself.

    Which tensors an architecture loads, and with which type of scaling: ``formats/gguf_architectures.py``.
    Raises :class:`RefusedError` where the file wouldn't load with it.
    """
    architecture = gguf.architecture or ""
    row, key = ARCHITECTURES.get(architecture), f"{architecture}.{TYPE}"
    values = {name: value for name, value in gguf.values.items() if name not in edits.removed} | dict(edits.keys)
    kind = values[key].value if key in values else DEFAULT_TYPE
    loaded: tuple[str, ...] = ()
    if row is not None:
        lists = row.factors == "lists" or (kind == "longrope" and (row.factors == "either" or row.lists_too))
        loaded = (LONG, SHORT) if lists else (FREQS,) if row.factors != "none" else ()
    if name not in loaded or dtype != "F32":
        raise _refused(
            path,
            f"taking out {name} would leave a hole in its data, which llama.cpp refuses",
            f"the last tensor, or one that a {architecture} loads with the type {kind} and that can be all ones",
            f"{name} of type {dtype}, with others behind it",
        )


def _changes(path: Path, descriptor: int, after: EditedHeader, room: int) -> Iterator[Change]:
    """The tensor bytes that are written. Raises :class:`RefusedError` where any would have to move."""
    places = offsets(after.entries, after.alignment)
    for entry, source, offset in zip(after.entries, after.sources, places, strict=True):
        position = room + offset
        if isinstance(source, bytes):
            before = ranges.read_at(descriptor, position, len(source))
            yield Change(position=position, before=before, after=source)
        elif source[0] != position:
            raise _refused(
                path, "a tensor's data would move", f"{entry.name} at byte {source[0]}", f"at byte {position}"
            )


def _insertion(path: Path, descriptor: int, after: EditedHeader, room: int) -> tuple[int, int]:
    """Where blocks are inserted and how many bytes, none where the header fits into its old ``room``."""
    if after.fits(room):
        return 0, 0
    if not ranges.inserts(descriptor):
        raise _no_room(path, "a file system that can't insert blocks (ext4 and XFS can)")
    block = ranges.block_bytes(descriptor)
    unit = max(block, after.alignment)
    added = unit
    while not after.fits(room + added):
        added += unit
    return room // block * block, added


def _check_place(path: Path) -> None:
    """Refuse a file that others share, or that isn't where a person put it."""
    try:
        found = path.lstat()
    except FileNotFoundError as error:
        raise _refused(path, "it isn't there", "a file") from error
    if stat.S_ISLNK(found.st_mode):
        raise _refused(path, "it is a symbolic link", "the file itself", str(path.readlink()))
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, "it is no regular file", "a file")
    if found.st_nlink > 1:
        raise _refused(path, "it has other names, which would change with it", "one link", f"{found.st_nlink} links")
    real = path.resolve()
    if any(_HUB_FOLDER.fullmatch(part) for part in real.parts) or (
        real.parent.name == "blobs" and _BLOB.fullmatch(real.name)
    ):
        raise _refused(path, "it belongs to a cache of the Hugging Face Hub", "a file of your own", str(real))
    if _DIGEST.fullmatch(real.name) or ".ollama" in real.parts:
        raise _refused(path, "it belongs to Ollama, which knows it by its checksum", "a file of your own", str(real))


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, open, and locked against other runs of ours. Raises :class:`OutputError` where one holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
            raise
        raise _refused(path, "it can't be written to", "a file that can be written to", error.strerror) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise OutputError(
                "another run is editing this file", code="busy", file=str(path), hint="wait for it, and run again"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _check_alone(path: Path, descriptor: int) -> None:
    """Refuse a file that another program has open: a server that maps it would read bytes that move.

    A write lease is only given where nobody else has the file open or mapped (Linux, ``fcntl(2)``); where
    there are no leases, nothing is known.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return
    try:
        # Should somebody open it just now, the notice must not end this process, as that of a lease does.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            return
        raise _refused(path, "another program has it open", "a file that nobody reads meanwhile") from error
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _pread(descriptor: int, offset: int, count: int) -> bytes:
    return os.pread(descriptor, count, offset)


def _no_room(path: Path, found: str | None) -> RefusedError:
    return _refused(path, "its header has no room for the change", "room, or blocks that can be inserted", found)


def _refused(path: Path, why: str, expected: str, found: str | None = None) -> RefusedError:
    return RefusedError(
        f"the file can't be edited in place: {why}",
        code="in-place",
        file=str(path),
        expected=expected,
        found=found,
        hint="write a new file with --out",
    )
