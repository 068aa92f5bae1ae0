"""Bytes at a place, and blocks put in and taken out of a file."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxextend.tensors import ranges
from tests.file_systems import need_insertion


def file_system(path: Path) -> str:
    """The type of the file system, as the kernel lists it."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    return next((line[line.index("-") + 1] for line in lines if line[2] == number), "unknown")


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([number]) * 4096 for number in range(1, 6)) + b"end")
    found = os.open(path, os.O_RDWR)
    yield found
    os.close(found)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's list of mounts")
def test_it_is_known_where_blocks_can_be_inserted(tmp_path: Path, descriptor: int) -> None:
    assert ranges.inserts(descriptor) == (file_system(tmp_path) in ("ext4", "xfs"))


def test_blocks_are_inserted_and_taken_out(tmp_path: Path, descriptor: int) -> None:
    need_insertion(tmp_path)
    size = os.fstat(descriptor).st_size
    before = ranges.read_at(descriptor, 0, size + 1)
    block = ranges.block_bytes(descriptor)
    ranges.insert(descriptor, block, 2 * block)
    after = ranges.read_at(descriptor, 0, size + 3 * block)
    assert after == before[:block] + bytes(2 * block) + before[block:]
    assert list(ranges.holes(descriptor, 0, len(after))) == [(block, 3 * block)]
    assert list(ranges.holes(descriptor, 2 * block, len(after))) == [(2 * block, 3 * block)]
    ranges.collapse(descriptor, block, 2 * block)
    assert ranges.read_at(descriptor, 0, size + 1) == before
    assert list(ranges.holes(descriptor, 0, size)) == []
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        ranges.insert(descriptor, 1, block)


def test_a_hole_at_the_end(descriptor: int) -> None:
    ranges.truncate(descriptor, 1 << 20)
    ((start, end),) = ranges.holes(descriptor, 0, 1 << 20)
    assert (start % 4096, end) == (0, 1 << 20)


def test_reading_ends_with_the_file(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    assert ranges.read_at(descriptor, size - 3, 100) == b"end"
    assert ranges.read_at(descriptor, size + 5, 100) == b""
    ranges.write_at(descriptor, size + 1, b"more")
    assert ranges.read_at(descriptor, size - 1, 100) == b"d\0more"


def test_calls_that_do_less_than_they_were_asked(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda file, count, position: read(file, min(count, 7), position))
    monkeypatch.setattr(os, "pwrite", lambda file, data, position: write(file, data[:3], position))
    ranges.write_at(descriptor, 10, b"0123456789abcdef")
    assert ranges.read_at(descriptor, 8, 20) == b"\1\1" + b"0123456789abcdef" + b"\1\1"
