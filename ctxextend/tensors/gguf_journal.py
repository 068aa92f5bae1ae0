"""The journal of an edit in place, and how an interrupted edit is undone.

The journal lies beside the file and is complete on the disk before the first change. An edit then goes:

    1  blocks are inserted at ``insert_at`` (where the header must grow), and synced
    2  tensor bytes are written, over old ones or behind the end, then the header; and synced
    3  the result is verified, and the journal removed

Undoing finds out how far it came, takes the blocks out, writes the old bytes back, and cuts the file to its
old size; it can itself be interrupted at any point and begun again. Positions are those of the old file. What
is found must be what the edit or its undoing leaves: the start of every tensor's data, and in whatever
is rewritten each sector either old or new. Else something other than the edit changed the file, and both are
left as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.errors import CheckpointError
from ctxextend.tensors import ranges
from ctxextend.tensors.staging import sync

_MAGIC: Final = b"ctxextend journal 1\n"
_MAX_BYTES: Final = 1 << 30

#: How many bytes of each tensor a fingerprint covers, and its own size.
_PRINTED_BYTES: Final = 256
_PRINT_BYTES: Final = 16

#: What a disk writes whole or not at all.
_SECTOR_BYTES: Final = 512


class Change(Struct, frozen=True, kw_only=True):
    """Tensor bytes at ``position``: before the edit (what the file had of them), and after it."""

    position: int
    before: bytes
    after: bytes


class Fingerprint(Struct, frozen=True, kw_only=True):
    """A digest of the ``count`` bytes at ``position``."""

    position: int
    count: int
    digest: bytes


class Journal(Struct, frozen=True, kw_only=True):
    """An edit. ``insert_bytes`` is 0 where none are inserted; the new header is longer by them then."""

    old_bytes: int
    insert_at: int
    insert_bytes: int
    header_before: bytes
    header_after: bytes
    changes: tuple[Change, ...]
    fingerprints: tuple[Fingerprint, ...]

    @property
    def most_bytes(self) -> int:
        """The size of the file when all is written."""
        ends = [change.position + len(change.after) for change in self.changes]
        return max(len(self.header_after), self.insert_bytes + max([self.old_bytes, *ends]))


def journal_path(path: Path) -> Path:
    """Where the journal of ``path`` lies."""
    return path.with_name(f".{path.name}.ctxextend-journal")


def leftovers(path: Path) -> bool:
    """Whether a run on ``path`` left anything: a journal, or the part of one."""
    return any(os.path.lexists(left) for left in (journal_path(path), _part(path)))


def sweep(path: Path) -> None:
    """Remove the part of a journal that a run left before it changed anything."""
    _part(path).unlink(missing_ok=True)


def fingerprint(descriptor: int, spans: Sequence[tuple[int, int]]) -> tuple[Fingerprint, ...]:
    """The fingerprints of data at these spans of the file."""
    found = []
    for start, end in spans:
        raw = ranges.read_at(descriptor, start, min(end - start, _PRINTED_BYTES))
        found.append(Fingerprint(position=start, count=len(raw), digest=_digest(raw)))
    return tuple(found)


def store(path: Path, journal: Journal) -> None:
    """Put the journal of ``path`` on the disk, whole."""
    payload = msgspec.msgpack.encode(journal)
    part = _part(path)
    # What a run that was killed left, or a link of somebody's.
    sweep(path)
    with part.open("xb", buffering=0) as handle:
        ranges.write_at(handle.fileno(), 0, _MAGIC + hashlib.sha256(payload).digest() + payload)
        ranges.sync(handle.fileno())
    part.rename(journal_path(path))
    sync(path.parent)


def load(path: Path) -> Journal | None:
    """The journal of ``path``, if there is one. Raises :class:`CheckpointError` for a broken one."""
    target = journal_path(path)
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        raw = ranges.read_at(descriptor, 0, _MAX_BYTES)
    finally:
        os.close(descriptor)
    start = len(_MAGIC) + hashlib.sha256().digest_size
    payload = raw[start:]
    try:
        if raw[:start] == _MAGIC + hashlib.sha256(payload).digest():
            return msgspec.msgpack.decode(payload, type=Journal)
    except msgspec.DecodeError:
        pass
    raise CheckpointError(
        "the journal of an interrupted edit is broken; neither it nor the model was touched",
        code="broken-journal",
        file=str(target),
        hint=f"compare the checksum of {path.name} with the publisher's; if it is whole, remove the journal",
    )


def discard(path: Path) -> None:
    """Remove the journal of ``path`` for good."""
    journal_path(path).unlink()
    sync(path.parent)


def undo(path: Path, descriptor: int, journal: Journal) -> None:
    """Make the file what it was, from wherever the edit or an earlier undoing stopped; then remove the journal.

    Raises :class:`CheckpointError`, and changes nothing, where something else changed the file.
    """
    size = os.fstat(descriptor).st_size
    gap = _gap(descriptor, journal, size)
    if gap is None:
        raise CheckpointError(
            "an edit was interrupted, and something else changed the file since; nothing was touched",
            code="interrupted-edit",
            file=str(path),
            expected=f"a file between {journal.old_bytes} and {journal.most_bytes} bytes, as the edit left it",
            found=f"another one, of {size} bytes",
            hint=f"if you replaced the file, remove {journal_path(path)}; if not, download the model again",
        )
    if gap < journal.old_bytes:
        ranges.truncate(descriptor, journal.old_bytes + journal.insert_bytes)
        ranges.collapse(descriptor, gap, journal.insert_bytes)
        ranges.sync(descriptor)
    for change in journal.changes:
        ranges.write_at(descriptor, change.position, change.before)
    ranges.write_at(descriptor, 0, journal.header_before)
    ranges.truncate(descriptor, journal.old_bytes)
    ranges.sync(descriptor)
    discard(path)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.ctxextend-journal-part")


def _gap(descriptor: int, journal: Journal, size: int) -> int | None:
    """Where inserted blocks lie, in front of data that moved; the old size where none moved; None for no such state.

    A power cut can leave them anywhere behind ``insert_at``: extents move one by one, the last one first when
    blocks are inserted, the first one first when they are taken out, and the gap lies between those that
    have moved and those that haven't. It is a hole then. Not so where the insertion is complete, as the header
    may fill it.
    """
    old, added = journal.old_bytes, journal.insert_bytes
    candidates: Iterator[int] | Sequence[int] = ()
    if size == old or (not added and old <= size <= journal.most_bytes):
        candidates = (old,)
    elif added and old + added < size <= journal.most_bytes:
        candidates = (journal.insert_at,)
    elif added and size == old + added:
        candidates = _possible(descriptor, journal, size)
    return next((gap for gap in candidates if _plausible(descriptor, journal, gap)), None)


def _possible(descriptor: int, journal: Journal, size: int) -> Iterator[int]:
    """Where the gap of a file that was made longer may be."""
    yield journal.insert_at
    added = journal.insert_bytes
    for start, end in ranges.holes(descriptor, journal.insert_at, size):
        if end - start >= added and start + added < size:
            yield start
    if not any(ranges.read_at(descriptor, journal.old_bytes, added)):
        yield journal.old_bytes


def _plausible(descriptor: int, journal: Journal, gap: int) -> bool:
    """Whether all that is found is old or new where it should be, if the gap is there."""
    added, at = journal.insert_bytes, journal.insert_at

    def found(position: int, count: int) -> bytes:
        """What now stands where the old file had ``count`` bytes at ``position``."""
        near = max(0, min(count, gap - position))
        far = ranges.read_at(descriptor, position + near + added, count - near) if near < count else b""
        return ranges.read_at(descriptor, position, near) + far

    before, after = journal.header_before, journal.header_after
    if added and gap == at:
        versions = [before[:at] + bytes(added) + before[at:], after]
        header = ranges.read_at(descriptor, 0, len(after))
    else:
        # Where the gap is past the header, it has none of its blocks.
        versions = [before, after[:at] + after[at + added :] if added else after]
        header = found(0, max(map(len, versions)))
    return (
        _mixed(header, versions)
        and all(_mixed(found(c.position, len(c.after)), [c.before, c.after], c.position) for c in journal.changes)
        and all(_digest(found(p.position, p.count)) == p.digest for p in journal.fingerprints)
    )


def _mixed(found: bytes, versions: Sequence[bytes], position: int = 0) -> bool:
    """Whether each sector is that of one of the versions. What a version lacks at its end is zeros."""
    count = max(map(len, versions))
    found, *versions = (part.ljust(count, b"\0") for part in (found, *versions))
    if found in versions:
        return True
    start = 0
    while start < count:
        end = start + _SECTOR_BYTES - (position + start) % _SECTOR_BYTES
        if all(found[start:end] != version[start:end] for version in versions):
            return False
        start = end
    return True


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=_PRINT_BYTES).digest()
