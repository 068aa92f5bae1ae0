"""An output that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctxextend.errors import OutputError
from ctxextend.tensors import staging as room
from ctxextend.tensors.staging import staged, staging_path, write_file


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
