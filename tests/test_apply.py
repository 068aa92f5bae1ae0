"""Carrying out a plan: what is written is verified before it appears, and only what was planned is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctxextend import apply, checkpoint, pipeline
from ctxextend.apply import Options, convert, edited_texts, encode, verify
from ctxextend.changes import Carry, EditJson
from ctxextend.checkpoint import Source
from ctxextend.errors import CheckpointError, CtxextendError, DisagreementError, OutputError, RefusedError
from ctxextend.pipeline import Opened, open_source, plan_source, run_plan
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.tensors.places import MANIFEST
from tests.cli.support import TRAINED, build, edit_config, read_json, sha256, tree

YARN = Recipe(method="yarn", target=4 * TRAINED)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return build(tmp_path / "source")


@pytest.fixture
def opened(source: Path) -> Opened:
    return open_source(source)


def changed(plan: Plan, change: Callable[[EditJson], EditJson]) -> Plan:
    """The plan, with each edit of config.json changed."""
    actions = tuple(change(a) if isinstance(a, EditJson) and a.file == "config.json" else a for a in plan.actions)
    return msgspec.structs.replace(plan, actions=actions)


def test_what_is_not_read_as_planned_does_not_appear(opened: Opened, tmp_path: Path) -> None:
    def wrong(edit: EditJson) -> EditJson:
        if edit.pointer not in ("/rope_parameters", "/rope_scaling") or not isinstance(edit.after, dict):
            return edit
        return msgspec.structs.replace(edit, after={**edit.after, "factor": 2.0})

    before = tree(tmp_path / "source")
    with pytest.raises(DisagreementError) as caught:
        run_plan(changed(plan_source(opened, YARN), wrong), opened, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert caught.value.file == "config.json"
    assert tree(tmp_path / "source") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_length_that_is_not_reached_does_not_appear(opened: Opened, tmp_path: Path) -> None:
    def short(edit: EditJson) -> EditJson:
        return msgspec.structs.replace(edit, after=TRAINED) if edit.pointer == "/max_position_embeddings" else edit

    with pytest.raises(DisagreementError):
        run_plan(changed(plan_source(opened, YARN), short), opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_can_be_verified_again(opened: Opened, tmp_path: Path) -> None:
    plan = plan_source(opened, YARN)
    _path, manifest = run_plan(plan, opened, tmp_path / "out")
    assert verify(plan, tmp_path / "out") == manifest.verified
    edit_config(tmp_path / "out", rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rope_scaling=None)
    with pytest.raises(DisagreementError):
        verify(plan, tmp_path / "out")


def test_the_texts_of_an_edit(opened: Opened) -> None:
    plan = plan_source(opened, YARN)
    texts = {name: document.text for name, document in opened.contents.documents.items()}
    texts["tokenizer.json"] = (Path(opened.contents.source) / "tokenizer.json").read_text()
    edited = edited_texts(plan, texts)
    assert set(edited) == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads(edited["config.json"])
    assert config["max_position_embeddings"] == 4 * TRAINED
    assert config["x_unknown"] == {"kept": [1, 2.5, "ü"]}


@pytest.mark.parametrize(
    ("key", "value"), [("max_position_embeddings", 513), ("rope_scaling", {}), ("rope_parameters", None)]
)
def test_a_document_that_changed_is_refused(key: str, value: Any, opened: Opened) -> None:
    plan = plan_source(opened, YARN)
    texts = {name: document.text for name, document in opened.contents.documents.items()}
    texts["tokenizer.json"] = (Path(opened.contents.source) / "tokenizer.json").read_text()
    texts["config.json"] = json.dumps({**json.loads(texts["config.json"]), key: value})
    with pytest.raises(RefusedError) as caught:
        edited_texts(plan, texts)
    assert (caught.value.code, caught.value.file) == ("stale-plan", "config.json")
    assert f"/{key}" in (caught.value.expected or "")


def test_a_file_that_went_away_since_the_plan(source: Path, opened: Opened, tmp_path: Path) -> None:
    plan = plan_source(opened, YARN)
    (source / "run.sh").unlink()
    with pytest.raises(RefusedError) as caught:
        run_plan(plan, open_source(source), tmp_path / "out")
    assert (caught.value.code, caught.value.file) == ("stale-plan", "run.sh")
    with pytest.raises(CheckpointError) as late:
        run_plan(plan, opened, tmp_path / "out")
    assert late.value.file == str(source / "run.sh")
    assert not (tmp_path / "out").exists()


def test_the_place_is_checked_before_a_download(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "folder_of", lambda *_args: pytest.fail("downloaded"))
    (tmp_path / "out").mkdir()
    remote = Opened(source=Source(given="org/name", repo_id="org/name"), contents=opened.contents)
    with pytest.raises(RefusedError) as caught:
        run_plan(plan_source(opened, YARN), remote, tmp_path / "out")
    assert caught.value.code == "output-exists"


def test_without_a_place_the_plan_names_it(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, _manifest = run_plan(plan_source(opened, YARN), opened)
    assert path == Path("source-yarn-2k")
    assert (tmp_path / path / MANIFEST).is_file()


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, OutputError, "disk-full"),
        (errno.EDQUOT, OutputError, "disk-full"),
        (errno.EACCES, OutputError, "io"),
        (errno.EROFS, OutputError, "io"),
        (errno.EIO, OutputError, "io"),
        (errno.ENOENT, CheckpointError, "io"),
    ],
)
def test_what_the_system_complains_of(
    number: int,
    kind: type[CtxextendError],
    code: str,
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(source: Path, target: Path, **_more: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(number, os.strerror(number), str(source))

    monkeypatch.setattr(apply, "carry", fail)
    with pytest.raises(kind) as caught:
        run_plan(plan_source(opened, YARN), opened, tmp_path / "out")
    assert (caught.value.code, caught.value.exit_code) == (code, 1)
    assert caught.value.found == os.strerror(number)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_progress_counts_every_byte(source: Path, opened: Opened, tmp_path: Path) -> None:
    plan = plan_source(opened, YARN)
    seen: dict[str, int] = {}

    def watch(name: str, done: int) -> None:
        seen[name] = seen.get(name, 0) + done

    for number, mode in enumerate(("auto", "copy", "hardlink")):
        seen.clear()
        options = msgspec.convert({"link_mode": mode}, Options)
        convert(plan, opened.contents, source, tmp_path / str(number), options=options, progress=watch)
        (carried,) = (action for action in plan.actions if isinstance(action, Carry))
        assert seen == {name: (source / name).stat().st_size for name in carried.files}
        assert sum(seen.values()) == carried.size_bytes


def test_the_etags_of_the_hub_are_recorded(source: Path, opened: Opened, tmp_path: Path) -> None:
    files = tuple(msgspec.structs.replace(file, etag=f"etag of {file.path}") for file in opened.contents.files)
    contents = msgspec.structs.replace(opened.contents, files=files)
    manifest = convert(plan_source(opened, YARN), contents, source, tmp_path / "out")
    for file in manifest.files:
        assert file.etag == (None if file.written else f"etag of {file.path}")


def test_an_encoded_value_ends_its_line_and_can_be_read(opened: Opened, tmp_path: Path) -> None:
    assert encode({"a": (1, "ü")}) == b'{\n  "a": [\n    1,\n    "\\u00fc"\n  ]\n}\n'
    path, manifest = run_plan(plan_source(opened, YARN), opened, tmp_path / "out")
    assert (path / MANIFEST).read_bytes() == encode(manifest)
    assert msgspec.convert(read_json(path / MANIFEST), apply.Manifest) == manifest


def test_an_output_is_a_source_like_any_other(opened: Opened, tmp_path: Path) -> None:
    first, _manifest = run_plan(plan_source(opened, YARN), opened, tmp_path / "first")
    again = open_source(first)
    second, manifest = run_plan(plan_source(again, YARN), again, tmp_path / "second")
    assert sha256(first / "config.json") == sha256(second / "config.json")
    assert MANIFEST not in {file.path for file in manifest.files}
    assert read_json(second / MANIFEST)["plan"]["source"]["name"] == "first"


def test_the_documents_of_a_repository_suffice_for_config_only(
    source: Path, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for path in source.glob("*.json"):
        shutil.copy(path, documents)
    remote = Opened(source=Source(given="org/name", repo_id="org/name"), contents=opened.contents)
    monkeypatch.setattr(pipeline, "_documents_only", lambda _opened: documents)
    options = Options(config_only=True)
    path, manifest = run_plan(plan_source(opened, YARN), remote, tmp_path / "out", options=options)
    assert (path / "tokenizer.json").is_file()
    assert all(file.written for file in manifest.files)
