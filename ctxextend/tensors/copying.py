"""Bytes from one file to another without reading them: cloned, linked, or copied in the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, assert_never

from ctxextend.errors import OutputError

LinkMode = Literal["auto", "reflink", "hardlink", "symlink", "copy"]

#: What really happened to a file.
Carried = Literal["reflink", "hardlink", "symlink", "copy"]

#: How much one kernel call copies: large enough to cost nothing, small enough for progress and Ctrl-C.
CHUNK_BYTES: Final = 64 << 20

#: How much is read at a time where the kernel can't copy.
_READ_BYTES: Final = 8 << 20

#: ``ioctl`` request FICLONE of <linux/fs.h>: share the blocks of another file.
_FICLONE: Final = 0x40049409

#: A flag of sync_file_range(2): begin to write, and don't wait.
_WRITE_RANGE: Final = 2

#: What a file system answers when it can't clone, or not between these two places.
_CANNOT_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})

#: What copy_file_range answers where the kernel can't do it between two file systems.
_CANNOT_RANGE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})

Progress = Callable[[int], None]


def carry(source: Path, target: Path, *, mode: LinkMode, progress: Progress) -> Carried:
    """Make ``target`` the same bytes as ``source``; ``progress`` is told how many bytes are done.

    A link to a file is followed: the Hub's cache is made of links. What was copied may not be on the
    disk yet. Raises :class:`OutputError` when the file system can't do what ``mode`` asks.
    """
    real = source.resolve(strict=True)
    size = real.stat().st_size
    match mode:
        case "hardlink" | "symlink":
            _link(real, target, symbolic=mode == "symlink")
            progress(size)
            return mode
        case "reflink" | "auto":
            if clone(real, target):
                progress(size)
                return "reflink"
            if mode == "reflink":
                raise OutputError(
                    "the file system can't clone files",
                    code="no-reflink",
                    file=str(target),
                    hint="--link-mode auto copies where it can't clone; --link-mode hardlink shares the file",
                )
            copy(real, target, progress=progress)
            return "copy"
        case "copy":
            copy(real, target, progress=progress)
            return "copy"
        case _:
            assert_never(mode)


def clone(source: Path, target: Path) -> bool:
    """Share the source's blocks with a new file, on a file system that can; else leave nothing behind."""
    if sys.platform == "darwin":
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.clonefile(os.fsencode(source), os.fsencode(target), 0) == 0
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            target.unlink()
            if error.errno in _CANNOT_CLONE:
                return False
            raise
    return True


def copy(source: Path, target: Path, *, progress: Progress) -> None:
    """Copy in the kernel where it can. The bytes may not be on the disk yet: staging sees to that, for all at once."""
    with source.open("rb", buffering=0) as read, target.open("xb", buffering=0) as write:
        size = os.fstat(read.fileno()).st_size
        for start in range(0, size, CHUNK_BYTES):
            count = min(CHUNK_BYTES, size - start)
            progress(copy_span(read.fileno(), start, write.fileno(), start, count, file=str(source)))


def copy_span(read: int, position: int, write: int, target: int, count: int, *, file: str) -> int:
    """Copy ``count`` bytes at ``position`` of one open file to ``target`` of another, in the kernel where it can.

    A file system that can share blocks does so where both begin a block. Several threads may copy between the same
    files. Gives ``count``. Raises :class:`OutputError` when the source, called ``file``, has fewer.
    """
    start, left = target, count
    while left > 0:
        done = _copy_range(read, position, write, target, left)
        if not done:
            # The kernel can't, or some file systems' answer of 0 although there is more: reading tells.
            done = _copy_read(read, position, write, target, min(left, _READ_BYTES))
        if done == 0:
            raise OutputError(
                "a file became shorter while it was copied",
                code="source-changed",
                file=file,
                hint="let whatever writes it finish, then run again",
            )
        left, position, target = left - done, position + done, target + done
    start_writing(write, start, count)
    return count


def _copy_range(read: int, position: int, write: int, target: int, count: int) -> int | None:
    if not hasattr(os, "copy_file_range"):
        return None
    try:
        return os.copy_file_range(read, write, count, position, target)
    except OSError as error:
        if error.errno in _CANNOT_RANGE:
            return None
        raise


def _copy_read(read: int, position: int, write: int, target: int, count: int) -> int:
    block = memoryview(os.pread(read, count, position))
    done = 0
    while done < len(block):
        done += os.pwrite(write, block[done:], target + done)
    return done


def start_writing(descriptor: int, position: int, count: int) -> None:
    """Let the disk begin with what was just written at ``position`` while more is made; failing that, it does later."""
    if sys.platform.startswith("linux"):
        offset, length = ctypes.c_int64(position), ctypes.c_int64(count)
        ctypes.CDLL(None).sync_file_range(descriptor, offset, length, _WRITE_RANGE)


def _link(source: Path, target: Path, *, symbolic: bool) -> None:
    try:
        if symbolic:
            target.symlink_to(source)
        else:
            target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        raise OutputError(
            "the file can't be linked there",
            code="no-link",
            file=str(target),
            found=error.strerror,
            hint="--link-mode symlink works between file systems; --link-mode auto copies",
        ) from error
