"""Reading the JSON documents of a checkpoint, and what decides which weight files belong to it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from ctxextend.contents import Document, Note, Storage, TensorInfo
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.formats.json_edit import leading_member

#: The JSON files that are read where they exist. tokenizer.json is not one: it can be huge.
DOCUMENTS: Final[tuple[str, ...]] = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "sentence_bert_config.json",
    "params.json",
    "original/params.json",
    "adapter_config.json",
    "ctxextend.json",
)

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"

#: Folders that tools keep beside a checkpoint and that are no part of it.
SKIPPED: Final = frozenset({".git", ".cache", "__pycache__", ".ipynb_checkpoints"})

#: How much of tokenizer.json is looked at: ``truncation`` stands at its head.
TOKENIZER_HEAD_BYTES: Final = 1 << 16


def parse_document(file: str, raw: bytes) -> Document:
    """A JSON object from bytes. Raises :class:`CheckpointError` naming the file and the place."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise _no_json(file, f"byte {error.start} is no UTF-8", "UTF-8 text") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise _no_json(file, place, "a JSON object") from error
    except ValueError as error:
        raise _no_json(file, "a number with too many digits", "a JSON object") from error
    except RecursionError as error:
        raise _no_json(file, "objects nested too deep", "a JSON object") from error
    if not isinstance(value, dict):
        raise _no_json(file, type(value).__name__, "a JSON object")
    return Document(text=text, value=value)


def safe_path(file: str, key: str, path: str) -> str:
    """A relative path named by a file of the checkpoint. Raises for one that leaves the folder."""
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise CheckpointError(
            "an index points outside the checkpoint's folder",
            code="unsafe-path",
            file=file,
            key=key,
            expected="a file name inside the folder",
            found=repr(path),
            hint="don't use this checkpoint before you know where it comes from",
        )
    return path


def shards_of(index: Mapping[str, Any]) -> dict[str, str]:
    """The index's ``weight_map``, tensor name to file, every path checked."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(
            "an index has no weight_map",
            code="broken-index",
            file=INDEX,
            key="weight_map",
            expected="an object of tensor names and file names",
            found=type(weight_map).__name__,
            hint="fetch the index again from where the checkpoint comes from",
        )
    return {name: safe_path(INDEX, f"weight_map.{name}", path) for name, path in weight_map.items()}


def weight_files(names: Collection[str], index: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The safetensors files that hold the model: the single file, else the index's, else what there is.

    Sorted. A single file wins over an index, as in transformers. Raises :class:`CheckpointError` for a
    file of the index that isn't among ``names``.
    """
    if SINGLE in names:
        return (SINGLE,)
    if index is None:
        found = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
        return tuple(n for n in found if not n.startswith(("consolidated", "adapter_")))
    files = tuple(sorted(set(shards_of(index).values())))
    for file in files:
        if file not in names:
            raise CheckpointError(
                "a shard is missing",
                code="missing-shard",
                file=file,
                expected=f"the file that {INDEX} names",
                found="none",
                hint="the download or upload is incomplete: fetch the checkpoint again, or name another --revision",
            )
    return files


def storage_of(names: Iterable[str], tensors: Sequence[TensorInfo]) -> Storage:
    """What holds the weights."""
    if tensors:
        return "safetensors"
    return "pytorch" if any(name.endswith((".bin", ".pt", ".pth")) for name in names) else "none"


def truncation_of(head: bytes) -> dict[str, Any] | None:
    """The ``truncation`` of a tokenizer.json, from its first bytes."""
    value = leading_member(head.decode("utf-8", errors="ignore"), "truncation")
    return value if isinstance(value, dict) else None


def check_index(index: Mapping[str, Any], held: Mapping[str, str]) -> None:
    """Every tensor of the index is in the file it names. ``held`` maps tensor names to files.

    An index beside a single file is stale and isn't asked.
    """
    places = shards_of(index)
    if set(held.values()) == {SINGLE} != set(places.values()):
        return
    for name, file in places.items():
        if held.get(name) != file:
            where = held.get(name)
            raise CheckpointError(
                "the index and a weight file disagree",
                code="broken-index",
                file=INDEX,
                key=f"weight_map.{name}",
                expected=file,
                found="the tensor in no file" if where is None else where,
                hint="the download is incomplete or mixed up: fetch the checkpoint again",
            )


def require_config(documents: Mapping[str, Document], names: Iterable[str]) -> None:
    """Raises for a checkpoint without config.json, saying what it seems to be instead."""
    if "config.json" in documents:
        return
    if "adapter_config.json" in documents:
        base = documents["adapter_config.json"].value.get("base_model_name_or_path")
        raise RefusedError(
            "this is a PEFT adapter, not a model: its rope is that of the model it was trained on",
            code="adapter",
            file="adapter_config.json",
            key="base_model_name_or_path",
            found=str(base),
            hint=f"convert the base model ({base}) and load the adapter on the result",
        )
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    raise CheckpointError(
        "this is no checkpoint: it has no config.json",
        code="no-config",
        file="config.json",
        expected="a config.json beside the weights",
        found=f"GGUF files ({', '.join(ggufs[:3])})" if ggufs else "none",
        hint=f"name one of its files: {ggufs[0]}; a quantisation of a repository is org/name:Q4_K_M"
        if ggufs
        else "name the folder that holds config.json",
    )


def second_copies(names: Iterable[str], config: Mapping[str, Any]) -> tuple[Note, ...]:
    """Notes on files that say again what config.json says, and on code that may read something else."""
    present = set(names)
    notes = [
        Note(
            code="params-json",
            message=f"{name} holds a second copy of the rope settings for engines that read the "
            "vendor's format; it is carried along unchanged, so such engines see the old settings",
        )
        for name in ("params.json", "original/params.json")
        if name in present
    ]
    consolidated = sorted(n for n in present if PurePosixPath(n).name.startswith("consolidated"))
    if consolidated:
        notes.append(
            Note(
                code="consolidated-weights",
                message=f"{consolidated[0]} is a second copy of the weights in the vendor's layout; "
                "vLLM can choose it (and params.json) over config.json: serve with --config-format hf",
            )
        )
    if isinstance(config.get("auto_map"), dict):
        notes.append(
            Note(
                code="auto-map",
                message="auto_map names code of the checkpoint's own; if it is loaded "
                "(trust_remote_code), what it reads of the rope settings is unknown",
            )
        )
    return tuple(notes)


def _no_json(file: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "a file can't be read as JSON",
        code="broken-json",
        file=file,
        expected=expected,
        found=found,
        hint=f"mend {file} (python -m json.tool {file} shows the place) or fetch it again",
    )
