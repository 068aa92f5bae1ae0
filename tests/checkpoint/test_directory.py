"""Reading a checkpoint's folder: what a good one gives, and what is said of a broken one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ctxextend.checkpoint.directory import read_directory, read_json, read_text
from ctxextend.contents import Contents
from ctxextend.errors import CheckpointError, RefusedError

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_weights(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros((2, 4), np.float16) for name in names}, path)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny-Model"
    write_json(folder / "config.json", {"model_type": "llama", "rope_theta": 10000.0})
    write_weights(folder / "model.safetensors", "embed", "layer")
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "Sharded"
    write_json(folder / "config.json", {"model_type": "llama"})
    for name, shard in zip(("embed", "layer"), SHARDS, strict=True):
        write_weights(folder / shard, name)
    write_json(folder / INDEX, {"weight_map": dict(zip(("embed", "layer"), SHARDS, strict=True))})
    return folder


def broken(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_directory(folder)
    assert caught.value.hint
    return caught.value


def codes(contents: Contents) -> list[str]:
    return [note.code for note in contents.notes]


def test_a_single_file(single: Path) -> None:
    contents = read_directory(single)
    assert (contents.name, contents.source, contents.revision) == ("Tiny-Model", str(single), None)
    assert contents.storage == "safetensors"
    assert contents.config == {"model_type": "llama", "rope_theta": 10000.0}
    assert contents.documents["config.json"].text == (single / "config.json").read_text()
    assert [(file.path, file.size_bytes) for file in contents.files] == [
        (path.name, path.stat().st_size) for path in sorted(single.iterdir())
    ]
    assert {tensor.name for tensor in contents.tensors} == {"embed", "layer"}
    assert contents.weight_bytes == 32
    assert not contents.notes


def test_a_name_and_a_source_of_ones_own(single: Path) -> None:
    contents = read_directory(single, name="name", source="org/name")
    assert (contents.name, contents.source) == ("name", "org/name")


def test_a_folder_named_relatively_has_its_real_name(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(single)
    assert read_directory(Path()).name == "Tiny-Model"


def test_shards(sharded: Path) -> None:
    contents = read_directory(sharded)
    assert {tensor.name: tensor.file for tensor in contents.tensors} == {
        "embed": SHARDS[0],
        "layer": SHARDS[1],
    }


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert {tensor.file for tensor in read_directory(sharded).tensors} == set(SHARDS)


def test_pickled_weights_are_listed_and_not_read(single: Path) -> None:
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    contents = read_directory(single)
    assert (contents.storage, contents.tensors) == ("pytorch", ())
    assert contents.weight_bytes == (single / "pytorch_model.bin").stat().st_size


def test_a_config_alone(single: Path) -> None:
    (single / "model.safetensors").unlink()
    assert read_directory(single).storage == "none"


def test_files_below_are_listed_and_tools_folders_are_not(single: Path) -> None:
    for folder in (".git", ".cache", "__pycache__", ".ipynb_checkpoints", "onnx"):
        write_json(single / folder / "config.json", {})
    paths = [file.path for file in read_directory(single).files]
    assert paths == ["config.json", "model.safetensors", "onnx/config.json"]


def test_the_layout_of_the_hubs_cache(single: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(single.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    contents = read_directory(snapshot, name="Tiny-Model")
    assert [file.path for file in contents.files] == ["config.json", "model.safetensors"]
    assert contents.files[1].size_bytes == (blobs / "1").stat().st_size
    assert len(contents.tensors) == 2


def test_a_link_to_nothing(single: Path) -> None:
    (single / "model.safetensors").unlink()
    (single / "model.safetensors").symlink_to("../blobs/none")
    error = broken(single)
    assert (error.code, error.file, error.found) == ("missing-file", "model.safetensors", "a link to nothing")


def test_what_is_no_file_is_left_out_with_a_note(single: Path, tmp_path: Path) -> None:
    os.mkfifo(single / "pipe")
    (single / "linked").symlink_to(tmp_path)
    contents = read_directory(single)
    assert {file.path for file in contents.files} == {"config.json", "model.safetensors"}
    assert codes(contents) == ["special-file", "linked-folder"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_cannot_be_opened(single: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (single / "tokenizer.json").touch()
    original = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    error = broken(single)
    assert (error.code, error.file, error.found) == ("missing-file", name, "Permission denied")


def test_a_folder_that_cannot_be_opened(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (single / "below").mkdir()
    original = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    error = broken(single)
    assert (error.code, error.file) == ("missing-file", str(single / "below"))


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    error = broken(single)
    assert (error.code, error.found) == ("no-config", "none")


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").touch()
    error = broken(tmp_path)
    assert (error.code, error.found) == ("no-config", "GGUF files (model-Q4_K_M.gguf)")


def test_an_adapter_is_refused_with_its_base(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "org/base"})
    write_weights(tmp_path / "adapter_model.safetensors", "lora")
    with pytest.raises(RefusedError) as caught:
        read_directory(tmp_path)
    assert (caught.value.code, caught.value.found) == ("adapter", "org/base")
    assert "org/base" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'{\n  "a": 1,\n  "b": }\n', "line 3, column 8: Expecting value"),
        (b'{"a": 1', "line 1, column 8: Expecting ',' delimiter"),
        (b"", "line 1, column 1: Expecting value"),
        (b'{"a": "\xff"}', "byte 7 is no UTF-8"),
        (b"[]", "list"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number with too many digits"),
        (b'{"a": ' + b"[" * 100_000, "objects nested too deep"),
    ],
)
def test_a_broken_config_names_its_place(single: Path, raw: bytes, found: str) -> None:
    (single / "config.json").write_bytes(raw)
    error = broken(single)
    assert (error.code, error.file, error.found) == ("broken-json", "config.json", found)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "original/params.json", INDEX])
def test_every_other_document_is_checked_as_well(single: Path, name: str) -> None:
    (single / name).parent.mkdir(exist_ok=True)
    (single / name).write_text("{")
    error = broken(single)
    assert (error.code, error.file) == ("broken-json", name)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    error = broken(sharded)
    assert (error.code, error.file) == ("missing-shard", SHARDS[1])


@pytest.mark.parametrize(
    ("weight_map", "found"),
    [
        ({"embed": SHARDS[1], "layer": SHARDS[1]}, SHARDS[0]),
        ({"embed": SHARDS[0], "layer": SHARDS[1], "head": SHARDS[1]}, "the tensor in no file"),
    ],
)
def test_an_index_that_names_another_file(sharded: Path, weight_map: dict[str, str], found: str) -> None:
    if found == SHARDS[0]:
        weight_map["other"] = SHARDS[0]
        write_weights(sharded / SHARDS[0], "embed", "other")
    write_json(sharded / INDEX, {"weight_map": weight_map})
    error = broken(sharded)
    assert (error.code, error.found) == ("broken-index", found)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "..\\secret", "", "model\0.safetensors"])
def test_an_index_that_points_outside(sharded: Path, path: str) -> None:
    write_json(sharded / INDEX, {"weight_map": {"embed": path}})
    error = broken(sharded)
    assert (error.code, error.file, error.key) == ("unsafe-path", INDEX, "weight_map.embed")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"embed": 1}}])
def test_an_index_without_a_weight_map(sharded: Path, index: dict[str, Any]) -> None:
    write_json(sharded / INDEX, index)
    assert broken(sharded).code == "broken-index"


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    raw = (sharded / SHARDS[1]).read_bytes()
    (sharded / SHARDS[1]).write_bytes(raw[:-1])
    error = broken(sharded)
    assert (error.code, error.file) == ("broken-weights", SHARDS[1])


def test_second_copies_are_noted(single: Path) -> None:
    write_json(single / "config.json", {"auto_map": {"AutoModel": "modeling.Model"}})
    write_json(single / "params.json", {})
    write_json(single / "original" / "params.json", {})
    write_weights(single / "consolidated.safetensors", "embed")
    contents = read_directory(single)
    assert codes(contents) == ["params-json", "params-json", "consolidated-weights", "auto-map"]
    assert {tensor.file for tensor in contents.tensors} == {"model.safetensors"}


@pytest.mark.parametrize(
    ("text", "truncation"),
    [
        ('{"version": "1.0", "truncation": {"max_length": 512}, "model": {}}', {"max_length": 512}),
        ('{"truncation": null, "model": {}}', None),
        ('{"model": {}}', None),
        ("no json", None),
        ("", None),
    ],
)
def test_the_tokenizers_truncation(single: Path, text: str, truncation: dict[str, Any] | None) -> None:
    (single / "tokenizer.json").write_text(text)
    assert read_directory(single).tokenizer_truncation == truncation


def test_only_the_tokenizers_head_is_read(single: Path) -> None:
    head = '{"truncation": {"max_length": 7}, "model": "é'
    (single / "tokenizer.json").write_text(head + "é" * 100_000)
    assert read_directory(single).tokenizer_truncation == {"max_length": 7}


def test_one_document(single: Path) -> None:
    assert read_text(single, "config.json").value["model_type"] == "llama"


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda path: path.write_text("[1.0, 2.5]"), None),
        (lambda path: path.write_text("[1.0,"), "broken-json"),
        (lambda path: path.write_text("[" * 100_000), "broken-json"),
        (lambda path: path.write_bytes(b"\xff"), "broken-json"),
        (lambda path: path.mkdir(), "missing-file"),
        (lambda path: path.parent, "missing-file"),
    ],
)
def test_a_file_of_the_users_own(tmp_path: Path, write: Callable[[Path], Any], code: str | None) -> None:
    path = tmp_path / "factors.json"
    write(path)
    if code is None:
        assert read_json(path) == [1.0, 2.5]
        return
    with pytest.raises(CheckpointError) as caught:
        read_json(path)
    assert (caught.value.code, caught.value.file) == (code, str(path))
