"""What a wrong call, a broken checkpoint or a bad place gets: an exit code, where, and a way out. Nothing is harmed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import INDEX, SHARDS, Ran, as_hub_cache, call, edit_config, read_json, run, tree, write_json
from tests.gguf_factory import encode, pair

YARN = ("--method", "yarn", "--target", "2k")


def error_of(ran: Ran) -> dict[str, Any]:
    document = ran.json
    assert document["schema"] == "ctxextend.error/1"
    assert document["exit_code"] == ran.code
    return dict(document)


def refused(source: Path, out: Path, *args: str | Path, code: int) -> dict[str, Any]:
    """The error of a conversion that must fail and leave everything as it was."""
    before, around = tree(source), sorted(out.parent.iterdir())
    ran = call("convert", source, *(args or YARN), "--out", out, "--json", code=code)
    assert not ran.err
    assert tree(source) == before
    assert sorted(out.parent.iterdir()) == around
    shown = call("convert", source, *(args or YARN), "--out", out, code=code)
    error = error_of(ran)
    assert not shown.out
    assert f"error: {error['message']}" in shown.err
    for part in ("file", "key", "expected", "found", "hint"):
        assert str(error.get(part, "")) in shown.err
    assert error["hint"]
    return error


def cut(path: Path, count: int) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:count])


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_json(folder: Path) -> None:
    (folder / "config.json").write_text('{\n  "model_type": "llama",\n  "rope_theta": 1e4,,\n}\n')


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def missing_shard(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()


def dangling_shard(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).symlink_to("nowhere")


def truncated_shard(folder: Path) -> None:
    cut(folder / SHARDS[1], (folder / SHARDS[1]).stat().st_size - 10)


def empty_shard(folder: Path) -> None:
    cut(folder / SHARDS[0], 0)


def cut_header(folder: Path) -> None:
    cut(folder / SHARDS[0], 40)


def lying_size(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["lm_head.weight"]["shape"] = [10**12, 10**12]

    rewrite_header(folder / SHARDS[1], change)


def lying_length(folder: Path) -> None:
    raw = (folder / SHARDS[0]).read_bytes()
    (folder / SHARDS[0]).write_bytes(struct.pack("<Q", 1 << 62) + raw[8:])


def index_outside(folder: Path) -> None:
    write_json(folder / INDEX, {"weight_map": {"lm_head.weight": "../../etc/passwd"}})


def index_absolute(folder: Path) -> None:
    write_json(folder / INDEX, {"weight_map": {"lm_head.weight": "/etc/passwd"}})


def broken_index(folder: Path) -> None:
    index = read_json(folder / INDEX)
    index["weight_map"]["no.such.tensor"] = SHARDS[0]
    write_json(folder / INDEX, index)


def broken_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")


BROKEN: dict[str, tuple[Callable[[Path], None], str, str | None, str]] = {
    "no config": (no_config, "config.json", None, "no-config"),
    "broken JSON": (broken_json, "config.json", None, "broken-json"),
    "a list for a config": (list_config, "config.json", None, "broken-json"),
    "a missing shard": (missing_shard, SHARDS[1], None, "missing-shard"),
    "a link to nothing": (dangling_shard, SHARDS[1], None, "missing-file"),
    "a truncated shard": (truncated_shard, SHARDS[1], None, "broken-weights"),
    "an empty shard": (empty_shard, SHARDS[0], None, "broken-weights"),
    "a cut header": (cut_header, SHARDS[0], None, "broken-weights"),
    "a header that lies about a size": (lying_size, SHARDS[1], "lm_head.weight", "broken-weights"),
    "a header that lies about its length": (lying_length, SHARDS[0], None, "broken-weights"),
    "an index that leaves the folder": (index_outside, INDEX, "weight_map.lm_head.weight", "unsafe-path"),
    "an index with an absolute path": (index_absolute, INDEX, "weight_map.lm_head.weight", "unsafe-path"),
    "an index of other tensors": (broken_index, INDEX, "weight_map.no.such.tensor", "broken-index"),
    "a broken tokenizer config": (broken_tokenizer_config, "tokenizer_config.json", None, "broken-json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints(case: str, source: Path, tmp_path: Path) -> None:
    spoil, file, key, code = BROKEN[case]
    spoil(source)
    error = refused(source, tmp_path / "out", code=1)
    assert (error["file"], error.get("key"), error["code"]) == (file, key, code)


def test_broken_json_names_the_place(source: Path) -> None:
    broken_json(source)
    ran = run("inspect", source, code=1)
    assert "line 3, column 21" in ran.err
    assert "config.json" in ran.err


UNKNOWN = {
    "method": (("--method", "yarm", "--target", "2k"), "did you mean yarn"),
    "parameter": ((*YARN, "--set", "beta_fst=3"), "did you mean beta_fast"),
    "family": ((*YARN, "--family", "lama"), "did you mean llama"),
    "runtime": ((*YARN, "--runtimes", "vlm"), "did you mean vllm"),
    "option": ((*YARN, "--tarjet", "2k"), "did you mean --target"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_names(kind: str, source: Path, tmp_path: Path) -> None:
    args, meant = UNKNOWN[kind]
    error = refused(source, tmp_path / "out", *args, code=2)
    assert meant in error["hint"]
    assert error["code"].startswith("unknown-")


def test_an_unknown_option_is_a_usage_error_in_a_process(pristine: Path) -> None:
    ran = run("plan", pristine, "--tarjet", "2k", code=2)
    assert "error: unknown option: --tarjet" in ran.err
    assert not ran.out
    error = error_of(run("plan", pristine, "--tarjet", "2k", "--json", code=2))
    assert error["found"] == "--tarjet"


@pytest.mark.parametrize("args", [("plan",), ("plan", ".", "--base", "foo"), ("nosuch",), ("plan", ".", "a", "b")])
def test_other_wrong_calls(args: tuple[str, ...]) -> None:
    ran = call(*args, code=2)
    assert ran.err.startswith("error: ")
    assert "--help" in ran.err
    assert "Value error" not in ran.err


WRONG_NUMBERS = (
    *[("--factor", value) for value in ("nan", "inf", "-inf", "-4", "0", "1e308", "1e300", "1e9", "four")],
    *[("--target", value) for value in ("nan", "inf", "-4", "0", "1.0001k", "99999999999m", "4096m", "", "1g")],
    ("--original-context", "0"),
    ("--original-context", "nan"),
)


@pytest.mark.parametrize(("option", "value"), WRONG_NUMBERS)
def test_numbers_that_can_not_be(option: str, value: str, source: Path, tmp_path: Path) -> None:
    also = () if option in ("--factor", "--target") else ("--target", "2k")
    ran = call("plan", source, "--method", "yarn", f"{option}={value}", *also, "--json", code=2)
    error = error_of(ran)
    assert error["key"] == option
    assert error["found"]


@pytest.mark.parametrize("setting", ["beta_fast", "=3", "beta_fast=x", "beta_fast=-1", "beta_fast=NaN"])
def test_parameters_that_can_not_be(setting: str, source: Path, tmp_path: Path) -> None:
    refused(source, tmp_path / "out", *YARN, "--set", setting, code=2)


def test_target_and_factor_must_agree(source: Path, tmp_path: Path) -> None:
    error = refused(source, tmp_path / "out", "--method", "yarn", "--target", "2k", "--factor", "3", code=2)
    assert error["expected"] == "512 x 3 = 1536"
    call("plan", source, "--method", "yarn", "--target", "2k", "--factor", "4", code=0)


def test_target_or_factor_is_needed(source: Path, tmp_path: Path) -> None:
    error = refused(source, tmp_path / "out", "--method", "yarn", code=2)
    assert "--target" in error["hint"]


@pytest.mark.parametrize("how", [("--target", "512"), ("--target", "256"), ("--factor", "1"), ("--factor", "0.5")])
def test_within_the_trained_length(how: tuple[str, str], source: Path, tmp_path: Path) -> None:
    error = refused(source, tmp_path / "out", "--method", "yarn", *how, code=3)
    assert "--original-context" in error["hint"]
    assert error["code"] == "within-trained"
    plan = call("plan", source, *how, "--json", code=0).json
    assert plan["method"] == "none"
    assert [action["kind"] for action in plan["actions"]] == ["carry"]


def test_an_output_that_exists(source: Path, tmp_path: Path) -> None:
    for name in ("file", "folder", "empty"):
        place = tmp_path / "places" / name
        place.parent.mkdir(exist_ok=True)
        if name == "file":
            place.write_text("mine")
        else:
            place.mkdir()
        if name == "folder":
            (place / "config.json").write_text("{}")
        for force in ((), ("--force",)):
            error = refused(source, place, *YARN, *force, code=3)
            assert error["code"] == "output-exists"
    dangling = tmp_path / "places" / "dangling"
    dangling.symlink_to("nowhere")
    refused(source, dangling, *YARN, "--force", code=3)
    assert dangling.is_symlink()


def test_a_link_to_an_output_is_not_replaced(source: Path, tmp_path: Path) -> None:
    call("convert", source, *YARN, "--out", tmp_path / "real", code=0)
    (tmp_path / "link").symlink_to("real")
    refused(source, tmp_path / "link", *YARN, "--force", code=3)


def test_output_and_source_lie_apart(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for out in (source, source / "out", source / "extras" / "out", tmp_path / "link" / "out"):
        error = refused(source, out, code=3)
        assert error["code"] == "output-inside-source"
    for force in ((), ("--force",)):
        assert refused(source, tmp_path, *YARN, *force, code=3)["code"] == "source-inside-output"


def test_the_place_is_checked_before_anything_else_is_said(source: Path) -> None:
    ran = call("convert", source, *YARN, "--out", source / "out", code=3)
    assert "warning" not in ran.err


def test_a_place_that_can_not_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = tree(source)
    error = error_of(call("convert", source, *YARN, "--out", tmp_path / "file" / "out", "--json", code=1))
    assert str(tmp_path / "file") in error["file"]
    assert tree(source) == before


@pytest.mark.parametrize(
    ("given", "code"),
    [("./nothing", "no-source"), ("nothing", "no-source"), ("a" * 5000, "io")],
)
def test_a_source_that_is_not_there(given: str, code: str) -> None:
    error = error_of(call("inspect", given, "--json", code=1))
    assert error["code"] == code
    assert error["hint"]


def test_a_file_for_a_source(source: Path) -> None:
    error = error_of(call("inspect", source / "config.json", "--json", code=1))
    assert str(source) in error["hint"]
    (source.parent / "model.gguf").write_bytes(encode([pair("general.architecture", "llama")]))
    error = error_of(call("inspect", source.parent / "model.gguf", "--json", code=1))
    assert error["key"] == "llama.context_length"


def test_an_adapter_is_explained(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter" / "adapter_config.json", {"base_model_name_or_path": "org/base"})
    assert "org/base" in error_of(call("inspect", tmp_path / "adapter", "--json", code=3))["hint"]


def test_an_unknown_model_type(source: Path, tmp_path: Path) -> None:
    edit_config(source, model_type="lama")
    error = refused(source, tmp_path / "out", code=3)
    assert error["file"] == "config.json"
    assert "--family" in error["hint"]
    assert "llama" in error["hint"]
    call("convert", source, *YARN, "--family", "llama", "--out", tmp_path / "out", code=0)


def test_a_model_without_a_rope(source: Path, tmp_path: Path) -> None:
    edit_config(source, model_type="gpt2", n_positions=1024)
    error = refused(source, tmp_path / "out", code=3)
    assert error["code"] == "no-rope"
    assert "learned" in call("inspect", source, code=0).out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
def test_folders_without_permission(source: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    error = refused(source, closed / "out", code=1)
    assert error["found"] == "Permission denied"
    (source / SHARDS[0]).chmod(0)
    error = error_of(call("inspect", source, "--json", code=1))
    assert error["file"] == SHARDS[0]


def test_a_blob_that_is_gone_from_the_hub_cache(pristine: Path, tmp_path: Path) -> None:
    snapshot = as_hub_cache(pristine, tmp_path / "cache")
    (snapshot / SHARDS[0]).resolve().unlink()
    error = error_of(call("convert", snapshot, *YARN, "--out", tmp_path / "out", "--json", code=1))
    assert error["file"] == SHARDS[0]
