"""GGUF plans carried out: to a new file, in place, over split files; verified, and nothing harmed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from gguf import GGUFReader

from ctxextend import checkpoint, pipeline
from ctxextend.apply import Manifest, Options
from ctxextend.contents import Contents, GgufValue
from ctxextend.errors import (
    CheckpointError,
    CtxextendError,
    DisagreementError,
    OutputError,
    RefusedError,
    UsageError,
)
from ctxextend.gguf_apply import convert_gguf, convert_in_place
from ctxextend.gguf_inspection import inspect_gguf
from ctxextend.gguf_plan import make_gguf_plan
from ctxextend.gguf_record import KEY
from ctxextend.gguf_repair import make_gguf_repair
from ctxextend.pipeline import Opened, check_source, open_source, plan_source, repair_source, run_plan
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.runtimes.llama_cpp import LlamaCpp
from ctxextend.tensors import copying, gguf_in_place, places, staging
from tests.file_systems import need_insertion
from tests.gguf_factory import write_model
from tests.reference.libllama import settings_of, weights_of

L = 1024


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf", settings_of("llama"), weights_of("llama"))


def run_in_place(plan: Plan, opened: Opened) -> tuple[Path, Manifest]:
    """Where no file can be edited in place, the test is skipped."""
    assert opened.source.file is not None
    need_insertion(opened.source.file.parent)
    return pipeline.run_in_place(plan, opened)


def read(path: Path) -> Contents:
    return checkpoint.read(checkpoint.resolve(str(path)))


def planned(path: Path, method: str = "yarn", target: int = 4 * L, **recipe: Any) -> Plan:
    contents = read(path)
    return make_gguf_plan(contents, inspect_gguf(contents), Recipe(method=method, target=target, **recipe))


def values(path: Path) -> dict[str, Any]:
    """What another reader finds."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}


def data(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def split(path: Path, folder: Path) -> list[Path]:
    """The model in two files, as llama-gguf-split writes them."""
    weights = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
    names, parts = list(weights), []
    for number, held in enumerate((names[:5], names[5:])):
        target = folder / f"tiny-{number + 1:05}-of-00002.gguf"
        own: dict[str, Any] = {
            **(settings_of("llama") if number == 0 else {"general.architecture": "llama"}),
            "split.no": GgufValue(type="UINT16", value=number),
            "split.count": GgufValue(type="UINT16", value=2),
            "split.tensors.count": GgufValue(type="INT32", value=len(names)),
        }
        parts.append(write_split(target, own, {name: weights[name] for name in held}))
    return parts


def write_split(path: Path, settings: dict[str, Any], weights: dict[str, Any]) -> Path:
    """As ``write_model``, which has no small whole numbers."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), settings["general.architecture"])
    for key, content in settings.items():
        if isinstance(content, GgufValue):
            add = {"UINT16": writer.add_uint16, "INT32": writer.add_int32}[content.type]
            add(key, content.value)
        elif key != "general.architecture":
            kinds: dict[type, Any] = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kinds[type(content)](key, content)
    for name, array in weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("method", ["yarn", "linear", "ntk", "llama3", "dynamic"])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_file_says_what_was_planned_and_its_weights_are_the_same(
    source: Path, tmp_path: Path, method: str, *, in_place: bool
) -> None:
    before, weights, bytes_before = values(source), data(source), digest(source)
    opened = open_source(source)
    plan = plan_source(opened, Recipe(method=method, target=4 * L))
    out = tmp_path / "out" / "long.gguf"
    path, manifest = run_in_place(plan, opened) if in_place else run_plan(plan, opened, out)
    assert path == (source if in_place else out)
    after = values(path)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert "llama.context_length" in changed
    assert changed <= {"ctxextend.padding"} | {a.key for a in plan.actions if hasattr(a, "key")}
    found = data(path)
    assert {name: found[name] for name in weights} == weights
    assert all(verified.agrees for verified in manifest.verified)
    assert {verified.runtime for verified in manifest.verified} == {"llama.cpp"}
    beside = json.loads(path.with_name(f"{path.name}.ctxextend.json").read_bytes())
    assert beside["plan"]["digest"] == plan.digest
    assert beside["files"][0]["path"] == path.name
    if not in_place:
        assert digest(source) == bytes_before
    assert check_source(open_source(path)).ok


def test_another_method_and_back_gives_the_same_keys(source: Path, tmp_path: Path) -> None:
    first = tmp_path / "a.gguf"
    opened = open_source(source)
    run_plan(plan_source(opened, Recipe(method="llama3", target=4 * L)), opened, first)
    opened = open_source(first)
    run_in_place(plan_source(opened, Recipe(method="linear", target=8 * L)), opened)
    run_in_place(plan_source(open_source(first), Recipe(method="llama3", target=4 * L)), open_source(first))
    second = tmp_path / "b.gguf"
    run_plan(plan_source(open_source(source), Recipe(method="llama3", target=4 * L)), open_source(source), second)
    left, right = values(first), values(second)
    left.pop("ctxextend.padding", None)
    assert left == {key: value for key, value in right.items() if key != "ctxextend.padding"}
    assert data(first) == data(second)


def test_in_place_twice_changes_nothing(source: Path) -> None:
    opened = open_source(source)
    run_in_place(plan_source(opened, Recipe(method="yarn", target=4 * L)), opened)
    once = digest(source)
    opened = open_source(source)
    run_in_place(plan_source(opened, Recipe(method="yarn", target=4 * L)), opened)
    assert digest(source) == once


@pytest.mark.parametrize("in_place", [False, True])
def test_a_split_checkpoint_changes_in_its_first_file_alone(source: Path, tmp_path: Path, *, in_place: bool) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    first, second = split(source, folder)
    rest = digest(second)
    opened = open_source(first)
    plan = plan_source(opened, Recipe(method="llama3", target=4 * L))
    assert plan.out == "tiny-llama3-4k"
    if in_place:
        run_in_place(plan, opened)
    else:
        out, manifest = run_plan(plan, opened, tmp_path / "long")
        first, second = (out / f"long-{number:05}-of-00002.gguf" for number in (1, 2))
        assert [file.path for file in manifest.files] == [first.name, second.name]
        assert (out / "ctxextend.json").is_file()
    assert digest(second) == rest
    after = values(first)
    assert after["llama.context_length"] == 4 * L
    # One tensor more than the weights.
    assert after["split.tensors.count"] == len(weights_of("llama")) + 1
    assert check_source(open_source(first)).ok


def test_a_missing_part_is_refused(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    first, second = split(source, folder)
    second.unlink()
    opened = open_source(first)
    plan = plan_source(opened, Recipe(method="yarn", target=4 * L))
    with pytest.raises(CheckpointError) as error:
        run_plan(plan, opened, tmp_path / "long")
    assert error.value.code == "missing-shard"
    assert not (tmp_path / "long").exists()


def refused(plan: Plan, path: Path, out: Path, **options: Any) -> CtxextendError:
    before = {entry.name: digest(entry) for entry in path.parent.iterdir() if entry.is_file()}
    with pytest.raises(CtxextendError) as error:
        convert_gguf(plan, read(path), path.parent, out, options=Options(**options))
    assert {entry.name: digest(entry) for entry in path.parent.iterdir() if entry.is_file()} == before
    return error.value


def test_what_is_there_is_left_alone(source: Path) -> None:
    plan = planned(source)
    taken = source.with_name("taken.gguf")
    taken.write_bytes(b"mine")
    assert refused(plan, source, taken).code == "output-exists"
    assert refused(plan, source, taken, force=True).code == "output-exists"
    assert refused(plan, source, source).code == "output-is-source"
    assert isinstance(refused(plan, source, source.with_name("x.gguf"), link_mode="hardlink"), UsageError)
    assert isinstance(refused(plan, source, source.with_name("x.gguf"), config_only=True), UsageError)


def test_force_replaces_an_output_of_ours(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    convert_gguf(planned(source), read(source), tmp_path, out)
    other = planned(source, "ntk")
    assert refused(other, source, out).code == "output-exists"
    convert_gguf(other, read(source), tmp_path, out, options=Options(force=True))
    assert values(out)["llama.rope.freq_base"] > 10000.0
    with out.open("ab") as handle:
        handle.write(b"edited")
    assert refused(other, source, out, force=True).code == "output-changed"


def test_a_plan_for_other_keys_is_stale(source: Path) -> None:
    plan = planned(source)
    opened = open_source(source)
    run_in_place(plan_source(opened, Recipe(method="ntk", target=2 * L)), opened)
    assert refused(plan, source, source.with_name("x.gguf")).code == "stale-plan"
    with pytest.raises(RefusedError):
        convert_in_place(plan, read(source), source.parent)


def test_a_file_that_is_read_otherwise_never_appears(source: Path, tmp_path: Path) -> None:
    plan = planned(source)
    group = plan.groups[0]
    assert group.after is not None
    wrong = msgspec.structs.replace(group.after.table, attention_factor=2.0)
    lying = msgspec.structs.replace(
        plan,
        groups=(msgspec.structs.replace(group, after=msgspec.structs.replace(group.after, table=wrong)),),
    )
    before = digest(source)
    with pytest.raises(DisagreementError, match="attention factor"):
        convert_gguf(lying, read(source), tmp_path, tmp_path / "x.gguf")
    need_insertion(tmp_path)
    with pytest.raises(DisagreementError, match="attention factor"):
        convert_in_place(lying, read(source), tmp_path)
    assert digest(source) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tiny.gguf"]


def test_only_a_file_can_change_where_it_lies(source: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked.gguf"
    os.link(source, linked)
    before = digest(source)
    opened = open_source(source)
    with pytest.raises(RefusedError, match="in place"):
        run_in_place(plan_source(opened, Recipe(method="yarn", target=4 * L)), opened)
    assert digest(source) == before


STALE = {
    "context_length": 4 * L,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": L,
}


@pytest.mark.parametrize(
    ("changes", "gone", "length"),
    [
        # As the stock converter writes transformers' attention_factor: llama.cpp doesn't read it.
        ({**STALE, "rope.scaling.yarn_attn_factor": 1.0}, "llama.rope.scaling.yarn_attn_factor", 4 * L),
        ({**STALE, "context_length": L}, None, 4 * L),
    ],
    ids=["dead key", "length"],
)
def test_a_repair_writes_what_is_meant(tmp_path: Path, changes: dict[str, Any], gone: str | None, length: int) -> None:
    settings = settings_of("llama") | {f"llama.{key}": value for key, value in changes.items()}
    path = write_model(tmp_path / "tiny.gguf", settings, weights_of("llama"))
    opened = open_source(path)
    assert not check_source(opened).ok
    plan = repair_source(opened)
    assert plan.method == "repair"
    fixed, _ = run_plan(plan, opened, tmp_path / "fixed.gguf")
    after = values(fixed)
    assert after["llama.context_length"] == length
    assert KEY not in after
    assert gone is None or gone not in after
    assert check_source(open_source(fixed)).ok


def test_a_repair_needs_the_original_length_where_nothing_says_it(tmp_path: Path) -> None:
    settings = settings_of("llama") | {f"llama.{key}": value for key, value in STALE.items()}
    del settings["llama.rope.scaling.original_context_length"]
    path = write_model(tmp_path / "tiny.gguf", settings, weights_of("llama"))
    opened = open_source(path)
    with pytest.raises(RefusedError) as error:
        repair_source(opened)
    assert error.value.code == "two-readings"
    fixed, _ = run_plan(repair_source(opened, original_context=L), opened, tmp_path / "fixed.gguf")
    assert values(fixed)["llama.rope.scaling.original_context_length"] == L
    assert check_source(open_source(fixed)).ok


def test_what_is_right_needs_no_repair(source: Path) -> None:
    contents = read(source)
    plan = make_gguf_repair(contents, runtimes=("llama.cpp",))
    assert not [action for action in plan.actions if action.__struct_config__.tag != "carry"]
    with pytest.raises(UsageError):
        make_gguf_repair(contents, runtimes=("llama.cpp",), original_context=L)


def test_an_output_of_ours_is_not_repaired(source: Path) -> None:
    opened = open_source(source)
    run_in_place(plan_source(opened, Recipe(method="yarn", target=4 * L)), opened)
    with pytest.raises(RefusedError) as error:
        repair_source(open_source(source))
    assert error.value.code == "ours"


def test_a_change_in_place_is_undone_where_its_manifest_cannot_be_written(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(source)
    beside = source.with_name("tiny.gguf.ctxextend.json")

    def full(path: Path, _data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = open_source(source)
    plan = plan_source(opened, Recipe(method="yarn", target=4 * L))
    monkeypatch.setattr(staging, "write_file", full)
    with pytest.raises(OutputError) as error:
        run_in_place(plan, opened)
    assert error.value.code == "disk-full"
    assert digest(source) == before
    assert [path.name for path in source.parent.iterdir()] == ["tiny.gguf"]
    monkeypatch.undo()
    # An older manifest stays until there is a new one.
    run_in_place(plan, opened)
    once, said = digest(source), beside.read_bytes()
    opened = open_source(source)
    monkeypatch.setattr(staging, "write_file", full)
    with pytest.raises(OutputError):
        run_in_place(plan_source(opened, Recipe(method="ntk", target=4 * L)), opened)
    assert (digest(source), beside.read_bytes()) == (once, said)


def test_a_manifest_that_gets_no_name_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_source(source)

    def late(path: Path, _target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "replace", late)
    with pytest.raises(OutputError) as error:
        run_in_place(plan_source(opened, Recipe(method="yarn", target=4 * L)), opened)
    assert error.value.code == "no-manifest"
    assert values(source)["llama.context_length"] == 4 * L
    assert [path.name for path in source.parent.iterdir()] == ["tiny.gguf"]


def test_where_nothing_changes_nothing_is_written(source: Path) -> None:
    opened = open_source(source)
    _path, manifest = run_in_place(plan_source(opened, Recipe(target=L)), opened)
    assert manifest.plan.method == "none"
    assert [path.name for path in source.parent.iterdir()] == ["tiny.gguf"]


def test_what_was_changed_in_place_is_never_replaced(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "mine.gguf"
    mine.parent.mkdir()
    mine.write_bytes(source.read_bytes())
    opened = open_source(mine)
    run_in_place(plan_source(opened, Recipe(method="ntk", target=4 * L)), opened)
    assert refused(planned(source), source, mine, force=True).code == "output-in-place"


def test_a_manifest_of_others_is_left_alone(source: Path) -> None:
    beside = source.with_name("tiny.gguf.ctxextend.json")
    beside.write_text("mine")
    opened, before = open_source(source), digest(source)
    with pytest.raises(RefusedError) as error:
        run_in_place(plan_source(opened, Recipe(method="yarn", target=4 * L)), opened)
    assert error.value.file == str(beside)
    assert (digest(source), beside.read_text()) == (before, "mine")
    other = source.with_name("x.gguf.ctxextend.json")
    other.write_text("mine")
    for force in (True, False):
        assert refused(planned(source), source, source.with_name("x.gguf"), force=force).file == str(other)


def test_an_edit_of_the_same_size_is_a_change(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    convert_gguf(planned(source), read(source), tmp_path, out)
    size = out.stat().st_size
    opened = open_source(out)
    run_in_place(plan_source(opened, Recipe(method="yarn", target=2 * L)), opened)
    (manifest,) = [json.loads(path.read_bytes()) for path in tmp_path.glob("out.gguf.ctxextend.json")]
    # As an editor of GGUF files does it, which knows nothing of manifests.
    del manifest["files"][0]["in_place"]
    raw = bytearray(out.read_bytes())
    assert len(raw) == size
    place = raw.index(b"llama.context_length") + len(b"llama.context_length") + 4
    raw[place : place + 4] = (512).to_bytes(4, "little")
    out.write_bytes(raw)
    out.with_name("out.gguf.ctxextend.json").write_text(json.dumps(manifest))
    assert refused(planned(source), source, out, force=True).code == "output-changed"


@pytest.mark.parametrize("named", [0, 1])
def test_an_interrupted_edit_of_a_split_file_is_undone_whichever_is_named(
    source: Path, tmp_path: Path, named: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    parts = split(source, folder)
    before = [digest(part) for part in parts]
    opened = open_source(parts[0])
    plan = plan_source(opened, Recipe(method="yarn", target=4 * L))
    # As after a kill: changed, and not undone.
    with monkeypatch.context() as killed:
        killed.setattr(gguf_in_place, "undo", lambda *_args: None)
        killed.setattr("ctxextend.gguf_apply.verify_gguf", _killed)
        with pytest.raises(KeyboardInterrupt):
            run_in_place(plan, opened)
    assert digest(parts[0]) != before[0]
    open_source(parts[named])
    assert [digest(part) for part in parts] == before
    assert sorted(entry.name for entry in folder.iterdir()) == [part.name for part in parts]


def _killed(*_args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("mode", ["auto", "reflink", "copy", "hardlink", "symlink"])
def test_a_split_file_is_carried_as_asked(
    source: Path, tmp_path: Path, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    first, second = split(source, folder)
    opened = open_source(first)
    plan = plan_source(opened, Recipe(method="llama3", target=4 * L))
    monkeypatch.setattr(copying, "clone", lambda *_paths: False)
    monkeypatch.setattr(places, "clone", lambda *_paths: False)
    if mode == "reflink":
        with pytest.raises(OutputError) as error:
            run_plan(plan, opened, tmp_path / "long", options=Options(link_mode=mode))
        assert error.value.code == "no-reflink"
        return
    # The file with the keys is written whatever is done with the other.
    needed = first.stat().st_size + (0 if "link" in mode else second.stat().st_size)
    for free in (needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: SimpleNamespace(free=free))
        if free < needed:
            with pytest.raises(OutputError) as error:
                run_plan(plan, opened, tmp_path / "long", options=Options(link_mode=mode))
            assert error.value.code == "disk-full"
        else:
            run_plan(plan, opened, tmp_path / "long", options=Options(link_mode=mode))
    assert (tmp_path / "long" / "long-00002-of-00002.gguf").samefile(second) == ("link" in mode)


def test_an_edit_by_reflink_needs_a_file_system_that_can(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "clone", lambda *_paths: False)
    error = refused(planned(source), source, source.with_name("x.gguf"), link_mode="reflink")
    assert error.code == "no-reflink"


def test_also_a_plan_of_nothing_is_verified(source: Path, tmp_path: Path) -> None:
    plan = planned(source, "auto", L)
    assert (plan.method, plan.misread) == ("none", ())
    (group,) = plan.groups
    assert group.after is not None
    wrong = msgspec.structs.replace(group.after.table, attention_factor=2.0)
    after = msgspec.structs.replace(group.after, table=wrong)
    lying = msgspec.structs.replace(plan, groups=(msgspec.structs.replace(group, after=after),))
    with pytest.raises(DisagreementError):
        convert_gguf(lying, read(source), tmp_path, tmp_path / "x.gguf")
    # Unless the plan says so itself.
    told = msgspec.structs.replace(lying, misread=(f"{LlamaCpp.runtime} {LlamaCpp.versions}",))
    assert not convert_gguf(told, read(source), tmp_path, tmp_path / "x.gguf").verified[0].agrees


def test_one_file_is_named_as_one(source: Path, tmp_path: Path) -> None:
    for name in ("long", "long-00001-of-00002.gguf"):
        error = refused(planned(source), source, tmp_path / name)
        assert (error.code, error.hint) == ("bad-out", f"--out {tmp_path / 'long.gguf'}")
