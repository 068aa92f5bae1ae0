"""GGUF on the command line: saved plans that say more than plans do, options that say nothing, interrupts."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import Ran, call, contents, driven, finish, read_json, write_json
from tests.cli.test_interrupts import staging, wait_for
from tests.file_systems import need_insertion

DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
YARN = ("--method", "yarn", "--target", "1k")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that no test changes, without a manifest."""
    path = tmp_path_factory.mktemp("exported") / "tiny.gguf"
    call("convert", DEMO, "--to", "gguf", "--out", path, code=0)
    path.with_name("tiny.gguf.ctxextend.json").unlink()
    return path


@pytest.fixture
def gguf(exported: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(exported.read_bytes())
    return path


def saved(tmp_path: Path, source: Path, *args: str, change: Callable[[Any], None] = lambda _plan: None) -> Path:
    """A plan in a file, as somebody changed it."""
    plan = call("plan", source, *args, "--json", code=0).json
    change(plan)
    path = tmp_path / "plan.json"
    write_json(path, plan)
    return path


def action(plan: Any, kind: str, **fields: Any) -> Any:
    return next(a for a in plan["actions"] if a["kind"] == kind and all(a[k] == v for k, v in fields.items()))


def refused(source: Path, plan: Path, out: Path | None, *args: str, code: int = 3) -> Any:
    """What a saved plan is refused with; nothing is written."""
    before = contents(plan.parent)
    where = () if out is None else ("--out", out)
    error = call("convert", source, "--plan", plan, *where, *args, "--json", code=code).json
    assert contents(plan.parent) == before
    return error


def set_record(plan: Any, **changes: Any) -> None:
    """The record that the plan writes, with other entries."""
    after = action(plan, "set-key", key="ctxextend.record")["after"]
    record = json.loads(after["value"])
    after["value"] = json.dumps({**record, **{k: {**record[k], **v} for k, v in changes.items()}})


def more(kind: str, **fields: Any) -> Callable[[Any], None]:
    return lambda plan: plan["actions"].append({"kind": kind, **fields})


WORD = {"type": "STRING", "value": "x"}


@pytest.mark.parametrize(
    "change",
    [
        more("set-key", file="tiny.gguf", key="tokenizer.chat_template", after=WORD),
        more("set-key", file="tiny.gguf", key="general.alignment", after={"type": "UINT32", "value": 64}),
        more("set-key", file="tiny.gguf", key="llama.block_count", after={"type": "UINT32", "value": 1}),
        more("set-key", file="tiny.gguf", key="llama.rope.x", after={"type": "STRING", "value": 5}),
        more("set-key", file="tiny.gguf", key="llama.rope.x", after={"type": "ARRAY", "item": "UINT8", "value": 5}),
        more("set-tensor", file="tiny.gguf", name="output_norm.weight", after=[1.0]),
        lambda plan: set_record(plan, keys={"llama.block_count": None}),
        lambda plan: set_record(plan, keys={"llama.rope.freq_base": {"type": "FLOAT32", "value": 1.0}}),
    ],
    ids=["template", "alignment", "layers", "no string", "no array", "tensor", "undoes more", "undoes otherwise"],
)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_plan_changes_the_rope_alone(
    gguf: Path, tmp_path: Path, change: Callable[[Any], None], *, in_place: bool
) -> None:
    plan = saved(tmp_path, gguf, *YARN, change=change)
    where = (None, "--in-place") if in_place else (tmp_path / "x.gguf",)
    assert refused(gguf, plan, *where)["code"] == "unsafe-plan"


def test_the_record_is_that_of_the_plan(gguf: Path, tmp_path: Path) -> None:
    plan = saved(tmp_path, gguf, *YARN, change=lambda plan: plan.update(digest="0" * 64))
    assert refused(gguf, plan, tmp_path / "x.gguf")["code"] == "stale-plan"


@pytest.mark.parametrize("out", ["../x.gguf", "/x.gguf", "a/x.gguf", "..", "", "x\0.gguf"])
def test_a_plan_names_no_other_folder(gguf: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plan = saved(tmp_path, gguf, *YARN, change=lambda plan: plan.update(out=out))
    assert refused(gguf, plan, None)["code"] == "unsafe-plan"
    folder = saved(tmp_path, DEMO, *YARN, change=lambda plan: plan.update(out=out.removesuffix(".gguf")))
    assert refused(DEMO, folder, None)["code"] == "unsafe-plan"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"outtypes": []}, "unsafe-plan"),
        ({"outtypes": ["q9"]}, "unsafe-plan"),
        ({"outtypes": ["f16", "f16"]}, "unsafe-plan"),
        ({"split_max_size": -1}, "unsafe-plan"),
        ({"files": ["../other.safetensors"]}, "stale-plan"),
    ],
)
def test_an_export_is_of_the_checkpoint_and_of_types_that_exist(
    tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    plan = saved(tmp_path, DEMO, "--to", "gguf", change=lambda plan: action(plan, "export").update(change))
    assert refused(DEMO, plan, tmp_path / "x.gguf")["code"] == code


def test_an_export_sets_keys_of_the_rope_alone(tmp_path: Path) -> None:
    change = more("set-key", file="export.gguf", key="tokenizer.chat_template", after=WORD)
    plan = saved(tmp_path, DEMO, "--to", "gguf", *YARN, change=change)
    assert refused(DEMO, plan, tmp_path / "x.gguf")["code"] == "unsafe-plan"


def edit(plan: Any, pointer: str, value: Any) -> None:
    plan["actions"].insert(0, {"kind": "edit-json", "file": "config.json", "pointer": pointer, "after": value})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda plan: action(plan, "restore")["config"].update(auto_map={"AutoModel": "a/b--c.D"}), "unsafe-plan"),
        (lambda plan: action(plan, "restore")["config"].update(num_hidden_layers=3), "unsafe-plan"),
        (lambda plan: action(plan, "restore")["config"].pop("vocab_size"), "unsafe-plan"),
        (lambda plan: edit(plan, "/auto_map", {"AutoModel": "a/b--c.D"}), "unsafe-plan"),
        (lambda plan: action(plan, "restore").update(files=["/etc/passwd"]), "stale-plan"),
    ],
    ids=["code", "layers", "less", "code by an edit", "files"],
)
def test_a_config_is_what_the_file_gives(gguf: Path, tmp_path: Path, change: Callable[[Any], None], code: str) -> None:
    plan = saved(tmp_path, gguf, "--to", "safetensors", *YARN, change=change)
    assert refused(gguf, plan, tmp_path / "back")["code"] == code


def test_plans_are_replayed(gguf: Path, tmp_path: Path) -> None:
    for number, (source, args) in enumerate(
        [(gguf, YARN), (gguf, ("--to", "safetensors", *YARN)), (DEMO, ("--to", "gguf", *YARN))]
    ):
        plan = saved(tmp_path, source, *args)
        name = "x" if "safetensors" in args else "x.gguf"
        direct, replayed = (tmp_path / f"{number}{way}" / name for way in "ab")
        call("convert", source, *args, "--out", direct, code=0)
        call("convert", source, "--plan", plan, "--out", replayed, code=0)
        assert contents(direct.parent) == contents(replayed.parent)


@pytest.mark.parametrize("args", [(), ("--to", "gguf"), ("--to", "safetensors")])
def test_a_plan_for_another_format(gguf: Path, tmp_path: Path, args: tuple[str, ...]) -> None:
    made, other = (DEMO, gguf) if args != ("--to", "safetensors") else (gguf, DEMO)
    plan = saved(tmp_path, made, *args, *YARN)
    for more_args in ((), ("--dry-run",), ("--in-place",)):
        out = None if more_args == ("--in-place",) else tmp_path / "x"
        assert refused(other, plan, out, *more_args)["code"] == "stale-plan"


def cohere(folder: Path) -> Path:
    """A family that isn't exported here."""
    folder.mkdir()
    for path in DEMO.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = read_json(DEMO / "config.json")
    write_json(folder / "config.json", {**config, "model_type": "cohere"})
    return folder


def test_a_plan_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, program = cohere(tmp_path / "source"), tmp_path / "convert_hf_to_gguf.py"
    program.write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    plan = saved(tmp_path, source, "--to", "gguf", "--converter", str(program))
    assert action(read_json(plan), "export")["converter"] is True
    assert str(program) not in plan.read_text()
    error = refused(source, plan, tmp_path / "x.gguf")
    assert error["code"] == "no-converter"
    assert "--converter" in error["hint"]
    assert not (tmp_path / "ran").exists()
    # Named beside the plan it runs (and writes nothing, which is told).
    error = call(
        "convert", source, "--plan", plan, "--converter", program, "--out", tmp_path / "x.gguf", "--json", code=1
    ).json
    assert error["code"] == "converter-failed"
    assert (tmp_path / "ran").exists()
    changed = saved(
        tmp_path,
        source,
        "--to",
        "gguf",
        "--converter",
        str(program),
        change=lambda plan: action(plan, "export").update(converter=str(program)),
    )
    assert refused(source, changed, tmp_path / "x.gguf", code=1)["code"] == "broken-plan"


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (("--config-only",), "--config-only"),
        (("--link-mode", "copy"), "--link-mode"),
        (("--link-mode", "hardlink"), "--link-mode"),
        (("--quantizer", sys.executable), "--quantizer"),
        (("--outtype", "q8_0,f16", "--quantizer", sys.executable), "--quantizer"),
    ],
)
def test_options_that_say_nothing_for_an_export(tmp_path: Path, args: tuple[str, ...], key: str) -> None:
    error = call("convert", DEMO, "--to", "gguf", *args, "--out", tmp_path / "x", "--json", code=2).json
    assert (error["code"], error["key"]) == ("bad-option", key)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (("--quantizer", sys.executable), "--quantizer"),
        (("--in-place", "--quantizer", sys.executable), "--quantizer"),
        (("--to", "safetensors", "--link-mode", "copy"), "--link-mode"),
        (("--to", "safetensors", "--quantizer", sys.executable), "--quantizer"),
    ],
)
def test_options_that_say_nothing_for_a_file(gguf: Path, args: tuple[str, ...], key: str) -> None:
    before = contents(gguf.parent)
    error = call("convert", gguf, *YARN, *args, "--json", code=2).json
    assert (error["code"], error["key"]) == ("bad-option", key)
    assert contents(gguf.parent) == before


def test_a_converter_says_nothing_beside_a_plan_that_needs_none(gguf: Path, tmp_path: Path) -> None:
    for source, args in ((DEMO, ("--to", "gguf")), (DEMO, YARN), (gguf, YARN)):
        plan = saved(tmp_path, source, *args)
        error = refused(source, plan, tmp_path / "x", "--converter", sys.executable, code=2)
        assert (error["code"], error["key"]) == ("bad-option", "--converter")


@pytest.mark.parametrize("args", [(), ("--fix",)])
def test_a_file_is_checked_by_its_architecture(gguf: Path, args: tuple[str, ...]) -> None:
    error = call("check", gguf, *args, "--family", "qwen2", "--json", code=2).json
    assert (error["code"], error["key"]) == ("bad-option", "--family")


@pytest.mark.parametrize(
    ("args", "out"),
    [
        (("--to", "gguf", "--split-max-size", "1M"), "x.gguf"),
        (("--to", "gguf", "--outtype", "f16,q8_0"), "x.gguf"),
        (("--to", "gguf"), "x"),
        (YARN, "x.gguf"),
    ],
)
def test_a_name_that_says_something_else(tmp_path: Path, args: tuple[str, ...], out: str) -> None:
    # What a split file would be called.
    mine = tmp_path / "x-00001-of-00003.gguf"
    mine.write_bytes(b"mine")
    error = call("convert", DEMO, *args, "--out", tmp_path / out, "--json", code=2).json
    assert error["code"] == "bad-out"
    assert contents(tmp_path).keys() == {mine.name}


def test_a_file_needs_its_ending_and_a_folder_none(gguf: Path, tmp_path: Path) -> None:
    error = call("convert", gguf, *YARN, "--out", tmp_path / "long", "--json", code=2).json
    assert (error["code"], error["hint"]) == ("bad-out", f"--out {tmp_path / 'long.gguf'}")
    error = call("convert", gguf, "--to", "safetensors", "--out", tmp_path / "x.gguf", "--json", code=2).json
    assert error["code"] == "bad-out"


def test_the_config_of_an_import_is_shown(gguf: Path) -> None:
    shown = call("convert", gguf, "--to", "safetensors", *YARN, "--dry-run", code=0).out
    assert '+  "max_position_embeddings": 1024,' in shown


#: Stops in the middle of the writing, when bytes of a GGUF file are there.
SLOW_EXPORT = """
import os, time
from ctxextend.tensors import gguf_export
true = gguf_export._write
def slow(descriptor, data, position):
    done = true(descriptor, data, position)
    open(os.environ["HERE"], "w").close()
    time.sleep(0.2)
    return done
gguf_export._write = slow
"""

#: Stops when the file is changed and not yet verified.
SLOW_EDIT = """
import os, time
from ctxextend import gguf_apply
def slow(*_args):
    open(os.environ["HERE"], "w").close()
    time.sleep(60)
gguf_apply.verify_gguf = slow
"""


def interrupted(script: str, number: signal.Signals, here: Path, *args: str | Path) -> Ran:
    process = driven(script, "convert", *args, HERE=str(here))
    wait_for(here, process)
    process.send_signal(number)
    ran = finish(process)
    here.unlink()
    return ran


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="no signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.gguf"
    ran = interrupted(SLOW_EXPORT, number, tmp_path / "here", DEMO, "--to", "gguf", "--outtype", "q8_0", "--out", out)
    assert ran == Ran(130, "", "error: interrupted; no half output remains\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_edit_is_undone(number: signal.Signals, gguf: Path) -> None:
    need_insertion(gguf.parent)
    before = contents(gguf.parent)
    ran = interrupted(SLOW_EDIT, number, gguf.parent / "here", gguf, *YARN, "--in-place")
    assert ran.code == 130
    assert ran.err.endswith("error: interrupted; no half output remains\n")
    assert contents(gguf.parent) == before


def test_after_a_kill_the_next_export_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    ran = interrupted(SLOW_EXPORT, signal.SIGKILL, tmp_path / "here", DEMO, "--to", "gguf", "--out", out)
    assert ran.code == -signal.SIGKILL
    assert staging(out).is_dir()
    call("convert", DEMO, "--to", "gguf", "--out", out, code=0)
    assert contents(tmp_path).keys() == {"x.gguf", "x.gguf.ctxextend.json"}
