"""Where an output may go, and whether it fits there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ctxextend.errors import OutputError, RefusedError
from ctxextend.tensors import places
from ctxextend.tensors.copying import LinkMode
from ctxextend.tensors.places import MANIFEST, check_places, check_space


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "source").mkdir()
    paths = [tmp_path / "source" / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"x" * 1000)
    return paths


@pytest.mark.parametrize(("free", "mode", "fits"), [(1999, "copy", False), (2000, "copy", True), (0, "hardlink", True)])
def test_room_for_copies(
    free: int, mode: LinkMode, fits: bool, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**6, 0, free))
    if fits:
        check_space(files, tmp_path, mode)
        return
    with pytest.raises(OutputError) as caught:
        check_space(files, tmp_path, mode)
    assert (caught.value.code, caught.value.expected, caught.value.found) == (
        "disk-full",
        "2000 bytes",
        f"{free} bytes free",
    )
    assert "hardlink" in (caught.value.hint or "")


@pytest.mark.parametrize("clones", [True, False])
def test_clones_need_no_room(clones: bool, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(_source: Path, target: Path) -> bool:
        target.write_bytes(b"")
        return clones

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**6, 0, 0))
    monkeypatch.setattr(places, "clone", clone)
    if clones:
        check_space(files, tmp_path, "auto")
    else:
        with pytest.raises(OutputError):
            check_space(files, tmp_path, "auto")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_nothing_to_copy_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**6, 0, 0))
    check_space([], tmp_path, "auto")


def refusal(*args: Any, force: bool) -> str:
    with pytest.raises(RefusedError) as caught:
        check_places(*args, force=force)
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("force", [True, False])
def test_apart(force: bool, files: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    check_places(source, tmp_path / "source-out", force=force)
    assert refusal(source, source, force=force) == "output-inside-source"
    assert refusal(source, source / ".." / "source" / "x", force=force) == "output-inside-source"
    assert refusal(source, tmp_path, force=force) == "source-inside-output"
    check_places(None, tmp_path / "out", force=force)


def test_an_output_of_ours_is_replaced_when_asked(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert refusal(None, out, force=True) == "output-exists"
    (out / MANIFEST).write_text("{}")
    assert refusal(None, out, force=False) == "output-exists"
    assert refusal(None, out, force=True) == "output-changed"
    (out / MANIFEST).write_text('{"files": []}')
    check_places(tmp_path / "source", out, force=True)
