"""A conversion through a real process: what is written, what is carried, and that the source stays as it was."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.support import (
    SHARDS,
    TRAINED,
    as_hub_cache,
    build,
    call,
    contents,
    edit_config,
    read_json,
    run,
    sha256,
    tree,
    write_json,
)

TARGET = 4 * TRAINED
YARN = ("--method", "yarn", "--target", "2k")
WRITTEN = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_conversion(pristine: Path, tmp_path: Path) -> None:
    before = tree(pristine)
    out = tmp_path / "out"
    ran = run("convert", pristine, *YARN, "--out", out, code=0)
    assert ran.out == f"{out}\n"
    assert "2048 / 512 = 4" in ran.err
    assert "transformers 5.x: reads it as planned, serves 2048" in ran.err
    assert tree(pristine) == before
    was, now = contents(pristine), contents(out)
    assert set(now) == {*was, "ctxextend.json"}
    assert {name for name in was if now[name] != was[name]} == WRITTEN
    config = read_json(out / "config.json")
    assert config["max_position_embeddings"] == TARGET
    assert config["rope_scaling"]["rope_type"] == config["rope_parameters"]["rope_type"] == "yarn"
    assert config["ctxextend"]["target_context"] == TARGET
    assert read_json(out / "tokenizer_config.json")["model_max_length"] == TARGET
    assert read_json(out / "tokenizer.json")["truncation"]["max_length"] == TARGET
    assert read_json(out / "generation_config.json")["max_length"] == TARGET


def test_the_diff_of_the_config_is_minimal(pristine: Path, tmp_path: Path) -> None:
    call("convert", pristine, "--method", "ntk", "--target", "2k", "--out", tmp_path / "out", code=0)
    old = (pristine / "config.json").read_text().splitlines()
    new = (tmp_path / "out" / "config.json").read_text().splitlines()
    gone = [line.strip() for line in old if line not in new]
    assert gone == ['"max_position_embeddings": 512,', '"rope_theta": 10000.0,']
    assert list(read_json(tmp_path / "out" / "config.json"))[: len(read_json(pristine / "config.json"))] == list(
        read_json(pristine / "config.json")
    )


def test_the_output_is_named_after_what_was_done(pristine: Path, tmp_path: Path) -> None:
    ran = run("convert", pristine, *YARN, cwd=tmp_path, code=0)
    assert ran.out == "tiny-yarn-2k\n"
    assert (tmp_path / "tiny-yarn-2k" / "config.json").is_file()


def test_modes_are_sane(pristine: Path, tmp_path: Path) -> None:
    call("convert", pristine, *YARN, "--out", tmp_path / "out", code=0)
    mask = 0o022
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        mode = path.stat().st_mode
        assert mode & 0o600 == 0o600
        assert not mode & mask & 0o002


def test_the_manifest_tells_the_truth(pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = call("convert", pristine, *YARN, "--out", out, "--json", code=0)
    assert not ran.err
    manifest = read_json(out / "ctxextend.json")
    assert ran.json == {**manifest, "path": str(out)}
    assert manifest["schema"] == "ctxextend.manifest/1"
    assert manifest["plan"]["source"]["config_sha256"] == sha256(pristine / "config.json")
    files = {file["path"]: file for file in manifest["files"]}
    assert set(files) == set(contents(pristine))
    for name, file in files.items():
        assert file["size_bytes"] == (out / name).stat().st_size
        assert file.get("written", False) == (name in WRITTEN)
        assert ("sha256" in file) == (name in WRITTEN)
        assert file.get("sha256", sha256(out / name)) == sha256(out / name)
        assert ("header_sha256" in file) == (name in SHARDS)
    for name in SHARDS:
        raw = (out / name).read_bytes()
        header = raw[: 8 + int.from_bytes(raw[:8], "little")]
        assert files[name]["header_sha256"] == hashlib.sha256(header).hexdigest()
    assert all(reader["agrees"] and reader["max_context"] == TARGET for reader in manifest["verified"])
    assert {reader["runtime"] for reader in manifest["verified"]} >= {"transformers", "vllm", "sglang", "mlx-lm"}


def test_checksums_hash_everything(pristine: Path, tmp_path: Path) -> None:
    manifest = call("convert", pristine, *YARN, "--out", tmp_path / "out", "--checksums", "--json", code=0).json
    assert {f["path"]: f["sha256"] for f in manifest["files"]} == {
        name: digest for name, digest in contents(tmp_path / "out").items() if name != "ctxextend.json"
    }


@pytest.mark.parametrize("mode", ["auto", "hardlink", "symlink", "copy", "reflink"])
def test_link_modes(mode: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before, was = tree(source), contents(source)
    ran = call("convert", source, *YARN, "--out", out, "--link-mode", mode)
    if mode == "reflink" and ran.code:
        assert ran.code == 1
        assert "can't clone" in ran.err
        assert "--link-mode auto" in ran.err
        assert not out.exists()
        pytest.skip("this file system can't clone files")
    assert ran.code == 0
    shard = out / SHARDS[0]
    assert shard.is_symlink() == (mode == "symlink")
    assert shard.samefile(source / SHARDS[0]) == (mode in ("hardlink", "symlink"))
    assert not (out / "config.json").is_symlink()
    assert not (out / "config.json").samefile(source / "config.json")
    assert {n: d for n, d in contents(out).items() if n not in {*WRITTEN, "ctxextend.json"}} == {
        n: d for n, d in was.items() if n not in WRITTEN
    }
    assert tree(source) == before


@pytest.mark.parametrize("mode", ["auto", "hardlink"])
def test_the_links_of_the_hub_cache_are_resolved(mode: str, pristine: Path, tmp_path: Path) -> None:
    snapshot = as_hub_cache(pristine, tmp_path / "cache")
    before = tree(tmp_path / "cache")
    call("convert", snapshot, *YARN, "--out", tmp_path / "out", "--link-mode", mode, code=0)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    for name in SHARDS:
        assert sha256(tmp_path / "out" / name) == sha256(pristine / name)
    assert tree(tmp_path / "cache") == before


def test_the_same_plan_gives_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    for where in ("a", "b"):
        call("convert", pristine, *YARN, "--out", tmp_path / where / "out", code=0)
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "b" / "out")


def test_converting_again_changes_nothing(pristine: Path, tmp_path: Path) -> None:
    call("convert", pristine, *YARN, "--out", tmp_path / "once", code=0)
    call("convert", tmp_path / "once", *YARN, "--out", tmp_path / "twice", code=0)
    once, twice = contents(tmp_path / "once"), contents(tmp_path / "twice")
    del once["ctxextend.json"], twice["ctxextend.json"]
    assert once == twice
    call("convert", pristine, "--method", "linear", "--target", "1k", "--out", tmp_path / "straight", code=0)
    call("convert", tmp_path / "once", "--method", "linear", "--target", "1k", "--out", tmp_path / "around", code=0)
    straight, around = contents(tmp_path / "straight"), contents(tmp_path / "around")
    for name in WRITTEN - {"config.json"}:
        assert straight[name] == around[name]
    configs = [read_json(tmp_path / name / "config.json") for name in ("straight", "around")]
    assert configs[0] == configs[1]


def test_config_only(pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = call("convert", pristine, *YARN, "--out", out, "--config-only", code=0)
    assert str(out / "ctxextend-overrides.json") in ran.err
    assert set(contents(out)) == {*WRITTEN, "ctxextend.json", "ctxextend-overrides.json"}
    config, overrides = read_json(out / "config.json"), read_json(out / "ctxextend-overrides.json")
    assert overrides["schema"] == "ctxextend.overrides/1"
    assert overrides["config"] == {key: config[key] for key in ("max_position_embeddings", "rope_parameters")}
    for engine, option in (("vllm", "--hf-overrides"), ("sglang", "--json-model-override-args")):
        words = shlex.split(overrides[engine])
        assert json.loads(words[words.index(option) + 1]) == overrides["config"]
        assert words[-1] == str(TARGET)
    files = {file["path"] for file in read_json(out / "ctxextend.json")["files"]}
    assert files == {*WRITTEN, "ctxextend-overrides.json"}


def test_config_only_of_a_plan_that_changes_nothing(pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("convert", pristine, "--target", "256", "--out", out, "--config-only", code=0)
    assert sha256(out / "config.json") == sha256(pristine / "config.json")
    overrides = read_json(out / "ctxextend-overrides.json")
    assert overrides["config"] == {}
    assert overrides["vllm"].endswith(f"--max-model-len {TRAINED}")
    files = {file["path"]: file for file in read_json(out / "ctxextend.json")["files"]}
    assert files["config.json"]["sha256"] == sha256(out / "config.json")


def test_a_pickled_checkpoint_is_carried_and_never_opened(tmp_path: Path) -> None:
    source = build(tmp_path / "source")
    for path in source.glob("model*"):
        path.unlink()
    # Unpickling this would end the process with code 7.
    (source / "pytorch_model.bin").write_bytes(b"cposix\n_exit\n(I7\ntR.")
    call("inspect", source, code=0)
    call("convert", source, *YARN, "--out", tmp_path / "out", code=0)
    assert sha256(tmp_path / "out" / "pytorch_model.bin") == sha256(source / "pytorch_model.bin")
    assert read_json(tmp_path / "out" / "config.json")["max_position_embeddings"] == TARGET


def test_limits_that_are_larger_stay(source: Path, tmp_path: Path) -> None:
    write_json(source / "tokenizer_config.json", {"model_max_length": 10**30})
    write_json(source / "generation_config.json", {"max_length": 20})
    write_json(source / "tokenizer.json", {"truncation": {"max_length": 10**6}, "model": {}})
    ran = call("convert", source, *YARN, "--out", tmp_path / "out", code=0)
    assert ran.code == 0
    for name in WRITTEN - {"config.json"}:
        assert sha256(tmp_path / "out" / name) == sha256(source / name)


def test_limits_that_are_not_there_are_not_added(source: Path, tmp_path: Path) -> None:
    write_json(source / "tokenizer_config.json", {"tokenizer_class": "X"})
    write_json(source / "tokenizer.json", {"truncation": None, "model": {}})
    (source / "generation_config.json").unlink()
    call("convert", source, *YARN, "--out", tmp_path / "out", code=0)
    assert read_json(tmp_path / "out" / "tokenizer_config.json") == {"tokenizer_class": "X"}
    assert read_json(tmp_path / "out" / "tokenizer.json")["truncation"] is None
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_force_replaces_an_output_of_ours_whole(pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("convert", pristine, *YARN, "--out", out, code=0)
    (out / "added.txt").write_text("by hand")
    ran = run("convert", pristine, *YARN, "--out", out, code=3)
    assert "--force" in ran.err
    assert (out / "added.txt").exists()
    kept = call("convert", pristine, "--method", "ntk", "--target", "1k", "--out", out, "--force", code=3)
    assert "added.txt" in kept.err
    assert (out / "added.txt").read_text() == "by hand"
    (out / "added.txt").unlink()
    call("convert", pristine, "--method", "ntk", "--target", "1k", "--out", out, "--force", code=0)
    assert read_json(out / "config.json")["max_position_embeddings"] == 2 * TRAINED
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_auto_within_the_trained_length_carries_everything(pristine: Path, tmp_path: Path) -> None:
    ran = call("convert", pristine, "--target", "256", "--out", tmp_path / "out", code=0)
    assert "none: the weights were trained for 512 tokens, which holds 256" in ran.err
    now = contents(tmp_path / "out")
    del now["ctxextend.json"]
    assert now == contents(pristine)


def test_leftovers_of_other_tools_are_not_carried(source: Path, tmp_path: Path) -> None:
    (source / ".cache" / "huggingface").mkdir(parents=True)
    (source / ".cache" / "huggingface" / "x.metadata").write_text("x")
    (source / "link").symlink_to(tmp_path)
    call("convert", source, *YARN, "--out", tmp_path / "out", code=0)
    assert not (tmp_path / "out" / ".cache").exists()
    assert not (tmp_path / "out" / "link").exists()


def test_names_that_are_no_text(source: Path, tmp_path: Path) -> None:
    name = b"\xff.txt".decode(errors="surrogateescape")
    try:
        (source / name).write_text("kept")
    except OSError:
        pytest.skip("this file system takes no such name")
    ran = run("convert", source, *YARN, "--out", tmp_path / "out", "--json", "-v", code=0)
    assert name in {file["path"] for file in ran.json["files"]}
    assert (tmp_path / "out" / name).read_text() == "kept"


def test_base_and_original_length(source: Path, tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    edit_config(source, rope_scaling=scaling, max_position_embeddings=2 * TRAINED)
    refused = run("convert", source, *YARN, "--out", tmp_path / "no", code=3)
    assert "--base trained" in refused.err
    assert not (tmp_path / "no").exists()
    call(
        "convert",
        source,
        *YARN,
        "--base",
        "trained",
        "--original-context",
        str(2 * TRAINED),
        "--out",
        tmp_path / "trained",
        code=0,
    )
    trained = read_json(tmp_path / "trained" / "ctxextend.json")["plan"]
    assert (trained["trained_context"], trained["factor"]) == (2 * TRAINED, 2.0)
    off = ("--base", "unscaled", "--original-context", str(TRAINED))
    call("convert", source, *YARN, *off, "--out", tmp_path / "off", code=0)
    plan = read_json(tmp_path / "off" / "ctxextend.json")["plan"]
    assert (plan["trained_context"], plan["factor"]) == (TRAINED, 4.0)
    assert plan["groups"][0]["before"]["scaling"]["rope_type"] == "linear"


def test_a_relative_source_and_a_place_that_does_not_exist_yet(source: Path, tmp_path: Path) -> None:
    run("convert", source.name, *YARN, "-o", "a/b/out", cwd=tmp_path, code=0)
    assert (tmp_path / "a" / "b" / "out" / "config.json").is_file()
    shutil.rmtree(tmp_path / "a")
    run("convert", source.name, *YARN, "-o", "a/b/out", "--link-mode", "copy", "-q", cwd=tmp_path, code=0)
