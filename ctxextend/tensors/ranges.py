"""What an edit in place does to an open file: bytes at a place, and whole blocks put in or taken out.

Blocks are moved by the file system's map of the file alone (Linux, ``fallocate(2)``), however many bytes
lie behind them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from typing import Final

#: Modes of fallocate of <linux/falloc.h>.
_COLLAPSE: Final = 0x08
_INSERT: Final = 0x20

#: Magic numbers of the file systems (<linux/magic.h>) that insert ranges and, stopped half way by a power cut,
#: leave a state that ``gguf_journal`` knows: ext4 and XFS make the file longer first, then move its extents
#: one by one, the last one first.
_INSERTING: Final = frozenset({0xEF53, 0x58465342})


def read_at(descriptor: int, position: int, count: int) -> bytes:
    """Up to ``count`` bytes from there on; fewer only where the file ends."""
    parts = []
    while count > 0 and (part := os.pread(descriptor, count, position)):
        parts.append(part)
        position, count = position + len(part), count - len(part)
    return b"".join(parts)


def write_at(descriptor: int, position: int, data: bytes) -> None:
    """Put all of ``data`` there."""
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, position)
        view, position = view[done:], position + done


def truncate(descriptor: int, size_bytes: int) -> None:
    """Make the file as long as that."""
    os.ftruncate(descriptor, size_bytes)


def sync(descriptor: int) -> None:
    """Wait until the disk has it."""
    os.fsync(descriptor)


def block_bytes(descriptor: int) -> int:
    """The size of the file system's blocks."""
    return os.fstatvfs(descriptor).f_bsize


def inserts(descriptor: int) -> bool:
    """Whether the file lies where blocks can be inserted."""
    if not sys.platform.startswith("linux"):
        return False
    # The first member of struct statfs is the file system's number; the whole has 120 bytes.
    buffer = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None, use_errno=True).fstatfs(descriptor, buffer):
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF in _INSERTING


def insert(descriptor: int, position: int, count: int) -> None:
    """Put ``count`` zeros there, in front of what was there: both whole blocks. Raises :class:`OSError`."""
    _fallocate(descriptor, _INSERT, position, count)


def collapse(descriptor: int, position: int, count: int) -> None:
    """Take ``count`` bytes out, from there on: both whole blocks, and not the file's last. Raises :class:`OSError`."""
    _fallocate(descriptor, _COLLAPSE, position, count)


def holes(descriptor: int, position: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where no blocks lie behind the file's zeros, from ``position`` on: first byte, and the byte past the last."""
    while position < size_bytes:
        start = os.lseek(descriptor, position, os.SEEK_HOLE)
        if start >= size_bytes:
            return
        try:
            position = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            position = size_bytes
        yield start, position


def _fallocate(descriptor: int, mode: int, position: int, count: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(descriptor, mode, position, count):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
