"""Plans: their document, their page, their replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctxextend.plan import Plan
from tests.cli.support import TRAINED, call, contents, edit_config, read_json, run, tree, write_json

YARN = ("--method", "yarn", "--target", "2k")


def saved(source: Path, folder: Path, *args: str) -> Path:
    path = folder / "plan.json"
    path.write_text(call("plan", source, *(args or YARN), "--json", code=0).out)
    return path


def test_the_document(pristine: Path) -> None:
    plan = run("plan", pristine, *YARN, "--json", code=0).json
    assert plan["schema"] == "ctxextend.plan/1"
    assert (plan["method"], plan["factor"]) == ("yarn", 4.0)
    assert (plan["trained_context"], plan["target_context"]) == (TRAINED, 4 * TRAINED)
    assert plan["out"] == "tiny-yarn-2k"
    (group,) = plan["groups"]
    assert (group["label"], group["layers"], group["extended"]) == ("full_attention", [0, 1], True)
    assert group["before"]["scaling"] is None
    assert group["after"]["scaling"]["rope_type"] == "yarn"
    assert group["after"]["encoding"] == "native"
    assert len(group["after"]["table"]["inv_freq"]) == 8
    assert group["after"]["table"]["attention_factor"] == pytest.approx(1.1386294361119891, rel=1e-12)
    assert {action["kind"] for action in plan["actions"]} == {"edit-json", "carry"}
    assert all({"code", "message", "hint"} <= set(warning) for warning in plan["warnings"])
    assert json.loads(msgspec.json.encode(msgspec.convert(plan, Plan))) == plan


def test_the_page(pristine: Path) -> None:
    ran = run("plan", pristine, *YARN, code=0)
    assert "2048 / 512 = 4" in ran.out
    assert "+++ b/config.json" in ran.out
    assert '+  "max_position_embeddings": 2048,' in ran.out
    assert "+++ b/tokenizer.json" in ran.out
    assert not [line for line in ran.out.splitlines() if line.endswith(" ")]
    assert "\x1b" not in ran.out
    assert "warning: " in ran.err
    assert not call("plan", pristine, *YARN, "-q", code=0).err
    assert "files, " in call("plan", pristine, *YARN, "-v", code=0).err


def test_a_dry_run_writes_nothing_and_is_the_plan(source: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    ran = run("convert", source, *YARN, "--dry-run", "--json", cwd=tmp_path, code=0)
    assert ran.out == call("plan", source, *YARN, "--json", code=0).out
    page = call("convert", source, *YARN, "--dry-run", code=0)
    assert page.out == call("plan", source, *YARN, code=0).out
    assert tree(tmp_path) == before


def test_a_replay_gives_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    plan = saved(pristine, tmp_path)
    call("convert", pristine, *YARN, "--out", tmp_path / "a" / "out", code=0)
    call("convert", pristine, "--plan", plan, "--out", tmp_path / "b" / "out", code=0)
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "b" / "out")
    manifest = tmp_path / "a" / "out" / "ctxextend.json"
    call("convert", pristine, "--plan", manifest, "--out", tmp_path / "c" / "out", code=0)
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "c" / "out")


def test_a_replay_takes_no_method_options(pristine: Path, tmp_path: Path) -> None:
    plan = saved(pristine, tmp_path)
    for args in (("--method", "yarn"), ("--target", "2k"), ("--set", "beta_fast=3"), ("--base", "trained")):
        ran = call("convert", pristine, "--plan", plan, *args, "--out", tmp_path / "out", "--json", code=2)
        assert ran.json["key"] == "--plan"
    assert not (tmp_path / "out").exists()


def test_a_replay_on_another_source_is_refused(source: Path, tmp_path: Path) -> None:
    plan = saved(source, tmp_path)
    edit_config(source, rope_theta=20000.0)
    error = call("convert", source, "--plan", plan, "--out", tmp_path / "out", "--json", code=3).json
    assert (error["code"], error["file"]) == ("stale-plan", "config.json")
    assert "ctxextend plan" in error["hint"]
    assert not (tmp_path / "out").exists()


def test_a_replay_after_a_limit_changed_is_refused(source: Path, tmp_path: Path) -> None:
    plan = saved(source, tmp_path)
    write_json(source / "tokenizer_config.json", {"model_max_length": 7})
    error = call("convert", source, "--plan", plan, "--out", tmp_path / "out", "--json", code=3).json
    assert (error["code"], error["file"]) == ("stale-plan", "tokenizer_config.json")


@pytest.mark.parametrize("said", ["{", "[]", "{}", '"x"', None])
def test_a_broken_plan_file(said: str | None, pristine: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if said is not None:
        path.write_text(said)
    error = call("convert", pristine, "--plan", path, "--out", tmp_path / "out", "--json", code=1).json
    assert error["file"] == str(path)
    assert not (tmp_path / "out").exists()


def test_a_plan_of_another_schema(pristine: Path, tmp_path: Path) -> None:
    path = saved(pristine, tmp_path)
    write_json(path, {**read_json(path), "schema": "ctxextend.plan/2"})
    error = call("convert", pristine, "--plan", path, "--out", tmp_path / "out", "--json", code=1).json
    assert (error["code"], error["found"]) == ("broken-plan", "ctxextend.plan/2")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "gone.txt", "extras/../../secret"])
@pytest.mark.parametrize("kind", ["carry", "edit"])
def test_a_plan_can_not_name_files_of_others(name: str, kind: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    path = saved(source, tmp_path)
    plan: dict[str, Any] = read_json(path)
    if kind == "carry":
        plan["actions"][-1]["files"].append(name)
    else:
        plan["actions"].insert(0, {"kind": "edit-json", "file": name, "pointer": "/a", "after": 1})
    write_json(path, plan)
    before = tree(tmp_path)
    error = call("convert", source, "--plan", path, "--out", tmp_path / "out", "--json", code=3).json
    assert (error["code"], error["file"]) == ("stale-plan", name)
    assert tree(tmp_path) == before


def test_settings_from_a_file(pristine: Path, tmp_path: Path) -> None:
    factors = [1.0 + index / 2 for index in range(8)]
    write_json(tmp_path / "factors.json", factors)
    args = ("--method", "longrope", "--target", "2k", "--set", f"long_factor=@{tmp_path / 'factors.json'}")
    plan = call("plan", pristine, *args, "--json", code=0).json
    assert plan["groups"][0]["after"]["scaling"]["long_factor"] == factors
    page = call("plan", pristine, *args, code=0)
    assert "short and long list of 8 factors" in page.out
    missing = call("plan", pristine, *YARN, "--set", f"beta_fast=@{tmp_path / 'none.json'}", "--json", code=1).json
    assert missing["file"] == str(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    broken = call("plan", pristine, *YARN, "--set", f"beta_fast=@{tmp_path / 'bad.json'}", "--json", code=1).json
    assert broken["code"] == "broken-json"


def test_settings_are_said(pristine: Path) -> None:
    plan = call("plan", pristine, *YARN, "--set", "beta_fast=16", "--set", "truncate=false", "--json", code=0).json
    assert plan["options"] == {"beta_fast": 16.0, "truncate": False}
    assert plan["groups"][0]["after"]["scaling"]["truncate"] is False


def test_layers(pristine: Path) -> None:
    named = call("plan", pristine, *YARN, "--layers", "full_attention", "--json", code=0)
    assert named.out == call("plan", pristine, *YARN, "--json", code=0).out
    error = call("plan", pristine, *YARN, "--layers", "nope", "--json", code=2).json
    assert error["expected"] == "full_attention"


def test_a_carrier(pristine: Path) -> None:
    plan = call("plan", pristine, *YARN, "--carrier", "factors", "--json", code=0).json
    assert plan["groups"][0]["after"]["encoding"] != "native"
    native = call("plan", pristine, *YARN, "--carrier", "native", "--json", code=0).json
    assert native["groups"][0]["after"]["encoding"] == "native"
    written = next(a["after"] for a in plan["actions"] if a.get("pointer") == "/rope_parameters")
    assert written["rope_type"] == "longrope"


def test_what_a_runtime_can_not_read(pristine: Path, tmp_path: Path) -> None:
    """An untruncated yarn ramp is read by some engines only: refused with ways out, or allowed by name."""
    args = (*YARN, "--set", "truncate=false", "--carrier", "native")
    error = call("convert", pristine, *args, "--out", tmp_path / "out", "--json", code=3).json
    assert error["code"] == "unreadable"
    assert "--runtimes" in error["hint"]
    assert "--allow unreadable" in error["hint"]
    assert not (tmp_path / "out").exists()
    allowed = (*args, "--allow", "unreadable")
    manifest = call("convert", pristine, *allowed, "--out", tmp_path / "out", "--json", code=0).json
    assert "unreadable" in [warning["code"] for warning in manifest["plan"]["warnings"]]
    assert [reader for reader in manifest["verified"] if not reader["agrees"] and reader["reason"]]


def test_only_named_refusals_can_be_let_pass(pristine: Path) -> None:
    error = call("plan", pristine, *YARN, "--allow", "nothing", "--json", code=2).json
    assert (error["key"], error["expected"]) == ("--allow", "unreadable")


def test_sliding_windows(windowed: Path) -> None:
    def config_edits(plan: dict[str, Any]) -> dict[str, Any]:
        return {a["pointer"]: a.get("after") for a in plan["actions"] if a.get("file") == "config.json"}

    kept = call("plan", windowed, "--target", "2k", "--json", code=0).json
    assert kept["method"] == "none"
    assert [warning["code"] for warning in kept["warnings"]] == ["nothing-to-scale"]
    assert "/sliding_window" not in config_edits(kept)
    wide = call("plan", windowed, *YARN, "--sliding-window", "target", "--json", code=0).json
    assert config_edits(wide)["/sliding_window"] == 4 * TRAINED
    assert wide["groups"][0]["extended"]


def test_a_window_that_is_switched_off(windowed: Path) -> None:
    plan = call("plan", windowed, *YARN, "--sliding-window", "off", "--json", code=0).json
    edits = {a["pointer"]: a.get("after") for a in plan["actions"] if a.get("file") == "config.json"}
    assert edits["/sliding_window"] is None
    assert plan["groups"][0]["extended"]


def test_auto_says_why(pristine: Path) -> None:
    plan = call("plan", pristine, "--target", "2k", "--json", code=0).json
    assert plan["method"] == "ntk"
    assert "SmolLM2" in plan["reasons"][0]
    tuned = call("plan", pristine, "--factor", "32", "--fine-tune", "yes", "--json", code=0).json
    assert tuned["method"] == "yarn"
    far = call("plan", pristine, "--factor", "32", "--json", code=0).json
    assert "far-without-training" in [warning["code"] for warning in far["warnings"]]


def test_the_factor_reaches_the_target(pristine: Path) -> None:
    for target in (1000, 1234, 4095, 100_000):
        plan = call("plan", pristine, "--method", "linear", "--target", str(target), "--json", code=0).json
        assert plan["target_context"] == target
        assert int(TRAINED * plan["factor"]) == target


def test_json_is_json(pristine: Path) -> None:
    def no_constants(name: str) -> None:
        raise AssertionError(name)

    for args in (("plan", pristine, *YARN), ("inspect", pristine), ("methods",), ("families",), ("runtimes",)):
        json.loads(call(*args, "--json", code=0).out, parse_constant=no_constants)
