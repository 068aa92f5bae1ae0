"""Where an output may go, and whether it fits there."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ctxextend.errors import OutputError, RefusedError, UsageError
from ctxextend.tensors import places
from ctxextend.tensors.copying import LinkMode
from ctxextend.tensors.places import MANIFEST, check_manifest, check_places, check_space


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


def listing(*files: dict[str, Any]) -> str:
    return json.dumps({"schema": "ctxextend.manifest/1", "files": files})


def test_an_output_of_ours_is_replaced_when_asked(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert refusal(None, out, force=True) == "output-exists"
    (out / MANIFEST).write_text("{}")
    assert refusal(None, out, force=False) == "output-exists"
    assert refusal(None, out, force=True) == "output-changed"
    (out / MANIFEST).write_text(listing())
    check_places(tmp_path / "source", out, force=True)


@pytest.mark.parametrize(
    ("name", "single", "hint"),
    [
        ("long", True, "long.gguf"),
        ("long.GGUF", True, ".gguf"),
        ("long-00001-of-00002.gguf", True, "long.gguf"),
        ("long.gguf", False, "long"),
        (".gguf", True, ".gguf"),
    ],
)
def test_a_name_that_says_something_else(name: str, single: bool, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_places(None, tmp_path / name, force=True, single=single)
    assert caught.value.code == "bad-out"
    assert (caught.value.hint or "").endswith(hint)


def test_names_that_fit(tmp_path: Path) -> None:
    check_places(None, tmp_path / "long.gguf", force=False, single=True)
    check_places(None, tmp_path / "long-00001-of-00001.gguf", force=False, single=True)
    check_places(None, tmp_path / "long", force=False)


def entry(path: Path, **said: Any) -> dict[str, Any]:
    return {"path": path.name, "size_bytes": path.stat().st_size, **said}


@pytest.mark.parametrize(
    "said",
    [
        "{}",
        "[]",
        "no json",
        json.dumps({"schema": "another", "files": []}),
        json.dumps({"schema": "ctxextend.manifest/1", "files": [{"path": "x.gguf"}]}),
        json.dumps({"schema": "ctxextend.manifest/1", "files": ["x.gguf"]}),
        json.dumps({"schema": "ctxextend.manifest/1", "files": [{"path": "x.gguf", "size_bytes": "1"}]}),
    ],
)
def test_what_is_no_manifest_lets_nothing_be_replaced(said: str, tmp_path: Path) -> None:
    out, beside = tmp_path / "x.gguf", tmp_path / "x.gguf.ctxextend.json"
    out.write_bytes(b"x")
    beside.write_text(said)
    with pytest.raises(RefusedError) as caught:
        check_places(None, out, force=True, single=True)
    assert (caught.value.code, caught.value.file) == ("output-changed", str(beside))
    # Nor is it itself, where the file is gone.
    out.unlink()
    for force in (True, False):
        with pytest.raises(RefusedError) as caught:
            check_places(None, out, force=force, single=True)
        assert (caught.value.code, caught.value.file) == ("output-exists", str(beside))
    with pytest.raises(RefusedError):
        check_manifest(beside, force=True)


def test_a_manifest_without_its_file_goes_when_asked(tmp_path: Path) -> None:
    out, beside = tmp_path / "x.gguf", tmp_path / "x.gguf.ctxextend.json"
    beside.write_text(listing())
    with pytest.raises(RefusedError) as caught:
        check_places(None, out, force=False, single=True)
    assert caught.value.file == str(beside)
    check_places(None, out, force=True, single=True)


def test_a_header_of_the_same_size_is_a_change(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    weights = out / "x.safetensors"
    header = b'{"a":1}'
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"data")
    digest = hashlib.sha256(len(header).to_bytes(8, "little") + header).hexdigest()
    (out / MANIFEST).write_text(listing(entry(weights, header_sha256=digest)))
    check_places(None, out, force=True)
    weights.write_bytes(len(header).to_bytes(8, "little") + b'{"a":2}' + b"data")
    assert refusal(None, out, force=True) == "output-changed"


def test_a_checksum_of_what_was_carried_counts_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_bytes(b"1")
    (out / MANIFEST).write_text(listing(entry(out / "a", sha256=hashlib.sha256(b"1").hexdigest())))
    check_places(None, out, force=True)
    (out / "a").write_bytes(b"2")
    assert refusal(None, out, force=True) == "output-changed"


def test_a_file_that_was_changed_in_place_is_never_replaced(tmp_path: Path) -> None:
    out, beside = tmp_path / "x.gguf", tmp_path / "x.gguf.ctxextend.json"
    out.write_bytes(b"x")
    beside.write_text(listing(entry(out)))
    check_places(None, out, force=True, single=True)
    beside.write_text(listing(entry(out, in_place=True)))
    with pytest.raises(RefusedError) as caught:
        check_places(None, out, force=True, single=True)
    assert caught.value.code == "output-in-place"


def test_clones_that_cannot_be_made_are_an_error(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctxextend.tensors.copying.clone", lambda *_paths: False)
    with pytest.raises(OutputError) as caught:
        check_space(files, tmp_path, "reflink")
    assert caught.value.code == "no-reflink"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
