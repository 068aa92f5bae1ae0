"""Bytes from one file to another: whole, durable, whatever the kernel answers."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ctxextend.errors import OutputError
from ctxextend.tensors import copying
from ctxextend.tensors.copying import carry, clone, copy


class Watch:
    """Counts the bytes that are reported."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, count: int) -> None:
        self.done += count


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(300_000))
    return path


def failing(number: int, after: int = 0) -> Any:
    """copy_file_range that works ``after`` times and then fails."""
    true, calls = os.copy_file_range, [0]

    def copy_file_range(read: int, write: int, count: int, *places: int) -> int:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        return true(read, write, min(count, 1000), *places)

    return copy_file_range


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("after", [0, 2])
def test_a_kernel_that_can_not(
    number: int, after: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(number, after))
    watch = Watch()
    copy(source, tmp_path / "target", progress=watch)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert watch.done == 300_000


def test_a_kernel_that_answers_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_args: 0)
    copy(source, tmp_path / "target", progress=Watch())
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_a_system_without_the_call(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(copying, "_READ_BYTES", 1000)
    copy(source, tmp_path / "target", progress=Watch())
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_pieces(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK_BYTES", 70_000)
    seen: list[int] = []
    copy(source, tmp_path / "target", progress=seen.append)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert sum(seen) == 300_000
    assert len(seen) == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_other_errors_are_passed_on(number: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        copy(source, tmp_path / "target", progress=Watch())


def test_a_source_that_shrinks(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK_BYTES", 100_000)
    with pytest.raises(OutputError) as caught:
        copy(source, tmp_path / "target", progress=lambda _count: os.truncate(source, 100_000))
    assert caught.value.code == "source-changed"
    assert caught.value.file == str(source)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    for mode in ("auto", "copy"):
        carry(tmp_path / "source", tmp_path / mode, mode=mode, progress=Watch())
        assert (tmp_path / mode).read_bytes() == b""


def test_nothing_is_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    for mode in ("auto", "copy", "hardlink", "symlink"):
        with pytest.raises(FileExistsError):
            carry(source, tmp_path / "target", mode=mode, progress=Watch())
    assert (tmp_path / "target").read_text() == "mine"


def test_a_link_is_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("source")
    (tmp_path / "chain").symlink_to("link")
    for mode in ("auto", "copy", "hardlink"):
        carry(tmp_path / "chain", tmp_path / mode, mode=mode, progress=Watch())
        assert not (tmp_path / mode).is_symlink()
        assert (tmp_path / mode).read_bytes() == source.read_bytes()
    carry(tmp_path / "chain", tmp_path / "symlink", mode="symlink", progress=Watch())
    assert (tmp_path / "symlink").readlink() == source.resolve()


def test_modes_are_new(source: Path, tmp_path: Path) -> None:
    source.chmod(0o400)
    carry(source, tmp_path / "target", mode="copy", progress=Watch())
    assert (tmp_path / "target").stat().st_mode & 0o600 == 0o600


def test_a_clone_or_nothing(source: Path, tmp_path: Path) -> None:
    made = clone(source, tmp_path / "target")
    assert (tmp_path / "target").exists() == made


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_a_link_that_can_not_be(number: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_more: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(OutputError) as caught:
        carry(source, tmp_path / "target", mode="hardlink", progress=Watch())
    assert caught.value.code == "no-link"
    assert "--link-mode" in (caught.value.hint or "")
