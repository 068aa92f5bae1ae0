"""An output that appears whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ctxextend.errors import OutputError
from ctxextend.tensors import staging as room
from ctxextend.tensors.staging import settle, staged, staged_data, staged_file, staging_path, write_file


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out, replace=False) as staging:
        write_file(staging / "deep" / "file", b"x")
        assert staging == staging_path(out)
        assert not out.exists()
    assert (out / "deep" / "file").read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_it_vanishes_when_something_goes_wrong(error: type[BaseException], tmp_path: Path) -> None:
    def spoiled() -> None:
        with staged(tmp_path / "new" / "deep" / "out", replace=False) as staging:
            write_file(staging / "file", b"x")
            raise error

    with pytest.raises(error):
        spoiled()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="x"), staged(tmp_path / "old" / "new" / "out", replace=False):
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]
    assert list((tmp_path / "old").iterdir()) == []


def test_two_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out, replace=False) as staging:
        write_file(staging / "file", b"x")
        with pytest.raises(OutputError) as caught, staged(out, replace=False):
            pytest.fail("both have the lock")
        assert caught.value.code == "busy"
        assert (staging / "file").exists()
    assert (out / "file").exists()


def test_what_is_stale_is_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stale = staging_path(out)
    (stale / "folder").mkdir(parents=True)
    (stale / "folder" / "file").touch()
    (stale / "link").symlink_to(tmp_path)
    with staged(out, replace=False) as staging:
        assert list(staging.iterdir()) == []
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replacement_is_whole(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(room, "_exchanged", lambda *_names: False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with staged(out, replace=True) as staging:
        write_file(staging / "new", b"x")
        assert (out / "old").exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def late() -> None:
        with staged(out, replace=False) as staging:
            write_file(staging / "mine", b"x")
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(OutputError) as caught:
        late()
    assert caught.value.code == "busy"
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [out]


def test_the_staging_folder_of_the_next_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our rename and our end, another run may start to build under the same name."""
    out = tmp_path / "out"

    def next_run(_folder: Path) -> None:
        staging_path(out).mkdir(exist_ok=True)

    with staged(out, replace=False) as staging:
        write_file(staging / "file", b"x")
        monkeypatch.setattr(room, "sync", lambda folder: next_run(folder) if folder == tmp_path else None)
    assert staging_path(out).is_dir()


def test_a_file_is_written_once(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"x")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "file", b"y")
    assert (tmp_path / "file").read_bytes() == b"x"


def open_files() -> int:
    table = Path("/proc/self/fd")
    return len(list(table.iterdir())) if table.is_dir() else 0


def test_no_file_is_left_open(tmp_path: Path) -> None:
    before = open_files()
    for _ in range(3):
        with staged(tmp_path / "out", replace=True) as staging:
            write_file(staging / "file", b"x")
        with pytest.raises(ValueError, match="x"), staged(tmp_path / "other", replace=False):
            raise ValueError("x")
    assert open_files() == before


def manifest_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def build(out: Path, said: bytes, *, replace: bool = False, late: Callable[[], object] = lambda: None) -> None:
    """One file with its manifest; ``late`` is what happens elsewhere meanwhile."""
    with staged_file(out, manifest_beside(out), replace=replace) as staging:
        write_file(staging / out.name, said)
        write_file(staging / manifest_beside(out).name, said)
        late()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_file_appears_with_its_manifest(tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.gguf"
    build(out, b"1")
    assert files(out.parent) == {"x.gguf": b"1", "x.gguf.json": b"1"}
    build(out, b"2", replace=True)
    assert files(out.parent) == {"x.gguf": b"2", "x.gguf.json": b"2"}
    assert out.stat().st_nlink == 1


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", ["x.gguf", "x.gguf.json"])
def test_a_name_that_is_taken_meanwhile_stays_alone(
    name: str, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", none)
    out = tmp_path / "x.gguf"
    with pytest.raises(OutputError) as caught:
        build(out, b"mine", late=lambda: (tmp_path / name).write_bytes(b"theirs"))
    assert (caught.value.code, caught.value.file) == ("busy", str(tmp_path / name))
    assert files(tmp_path) == {name: b"theirs"}


def none(*_names: object) -> None:
    raise PermissionError("no hard links here")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_is_published_by_half(
    error: type[BaseException], replace: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.gguf"
    if replace:
        build(out, b"old")
    before = files(tmp_path)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", none)
    true, name = (Path.replace, "replace") if replace else (room._appear, "_appear")

    def ended(path: Path, other: Path) -> object:
        if other == out:
            raise error
        return true(path, other)

    monkeypatch.setattr(Path if replace else room, name, ended)
    with pytest.raises(error):
        build(out, b"new", replace=replace)
    assert files(tmp_path) == before


#: A run that is killed when the manifest has its name and the file hasn't.
KILLED = """
import os, sys
from pathlib import Path
from ctxextend.tensors import staging as room
out, said, replace, links = Path(sys.argv[1]), sys.argv[2].encode(), sys.argv[3] == "True", sys.argv[4] == "True"
beside = out.with_name(out.name + ".json")
moved, appear = Path.replace, room._appear
Path.replace = lambda path, other: os._exit(9) if other == out else moved(path, other)
room._appear = lambda path, other: os._exit(9) if other == out else appear(path, other)
def none(*_names):
    raise PermissionError
if not links:
    Path.hardlink_to = none
with room.staged_file(out, beside, replace=replace) as staging:
    (staging / out.name).write_bytes(said)
    (staging / beside.name).write_bytes(said)
"""


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("replace", [True, False])
def test_what_a_kill_leaves_is_taken_back(replace: bool, links: bool, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    if replace:
        build(out, b"old")
    before = files(tmp_path)
    command = [sys.executable, "-c", KILLED, str(out), "new", str(replace), str(links)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 9
    assert manifest_beside(out).read_bytes() == b"new"
    settle(out, manifest_beside(out))
    staging = staging_path(out)
    assert files_but(tmp_path, staging) == before
    # Once is enough: what somebody puts there since is left alone.
    manifest_beside(out).write_bytes(b"theirs")
    settle(out, manifest_beside(out))
    assert manifest_beside(out).read_bytes() == b"theirs"
    manifest_beside(out).unlink()
    build(out, b"again", replace=replace)
    assert files(tmp_path) == {"x.gguf": b"again", "x.gguf.json": b"again"}


def files_but(folder: Path, other: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path != other}


def test_what_a_run_at_work_published_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.gguf"
    true = room._appear

    def meanwhile(path: Path, other: Path) -> None:
        settle(out, manifest_beside(out))
        true(path, other)

    monkeypatch.setattr(room, "_appear", meanwhile)
    build(out, b"1")
    assert files(tmp_path) == {"x.gguf": b"1", "x.gguf.json": b"1"}


def test_data_gets_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"old")
    with staged_data(path, b"new"):
        assert path.read_bytes() == b"old"
    assert files(tmp_path) == {"x.json": b"new"}
    with pytest.raises(KeyboardInterrupt), staged_data(path, b"newer"):
        raise KeyboardInterrupt
    assert files(tmp_path) == {"x.json": b"new"}
