"""Making safetensors of a GGUF file happen: weights streamed, documents and tokenizer written, then put in place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from ctxextend.apply import (
    Manifest,
    Options,
    OutputFile,
    Progress,
    check_actions,
    encode,
    output_error,
    silent,
    stale,
    unsafe,
    verify,
    verify_without_rope,
    written,
)
from ctxextend.changes import EditJson, Restore, config_text
from ctxextend.checkpoint.gguf_arrays import read_arrays
from ctxextend.contents import Contents
from ctxextend.errors import UsageError
from ctxextend.exports.reverse import Restored, restored_of
from ctxextend.families import FAMILIES
from ctxextend.formats.json_edit import edit_text
from ctxextend.formats.rope_keys import LENGTH_SYNONYMS
from ctxextend.gguf_inspection import gguf_of
from ctxextend.gguf_record import find_gguf_record, without_record
from ctxextend.plan import Plan, edits_of, source_sha256
from ctxextend.record import KEY, path_of
from ctxextend.tensors.checksums import header_sha256, sha256_of
from ctxextend.tensors.places import MANIFEST, check_places, check_room
from ctxextend.tensors.restoring import GgufTensors, pieces_of, planned
from ctxextend.tensors.safetensors_writer import write_shards
from ctxextend.tensors.staging import staged, write_file
from ctxextend.version import VERSION
from ctxextend.vocabulary import tokenizer_files


def import_gguf(
    plan: Plan,
    contents: Contents,
    folder: Path,
    out: Path,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the checkpoint of ``plan`` to the folder ``out``; ``folder`` holds the GGUF files of ``contents``.

    Raises :class:`RefusedError` for an output that exists and for types without numbers, :class:`OutputError` when
    it can't be written, :class:`DisagreementError` when what was written isn't read as planned. Nothing of an
    output remains then.
    """
    options = options or Options()
    check_import_options(options)
    action = restore_action(plan, contents)
    gguf = gguf_of(contents)
    if source_sha256(contents) != plan.source.config_sha256:
        raise stale(gguf.file, "the keys as they were when the plan was made", "other keys")
    base = without_record(gguf, find_gguf_record(gguf))
    restored = restored_of(base, contents.tensors, dtype=action.dtype)
    _check_config(plan, action, restored)
    infos = {tensor.name: tensor for tensor in contents.tensors}
    tensors = planned(restored.tensors, infos, action.dtype)
    check_places(folder / contents.files[0].path, out, force=options.force)
    try:
        with staged(out, replace=options.force) as staging:
            check_places(folder / contents.files[0].path, out, force=options.force)
            check_room(action.size_bytes, staging)
            files = [_document(staging, name, data) for name, data in _documents(plan, action, restored).items()]
            tokenizer = tokenizer_files(read_arrays(folder / gguf.file, gguf, gguf.values))
            for name, data in _with_length(plan, tokenizer).items():
                files.append(_document(staging, name, data))
            report = partial(progress or silent, out.name)
            with GgufTensors([folder / file.path for file in contents.files]) as held:
                names = write_shards(staging, tensors, pieces_of(restored.tensors, held), progress=report)
            files += [_weights(staging, name, checksums=options.checksums) for name in names]
            if plan.position == "rope":
                verified = verify(plan, staging)
            else:
                verified = verify_without_rope(plan, contents, staging, whole=True)
            manifest = Manifest(
                version=VERSION,
                plan=plan,
                files=tuple(sorted(files, key=lambda file: file.path)),
                verified=verified,
            )
            write_file(staging / MANIFEST, encode(manifest))
            return manifest
    except OSError as error:
        raise output_error(error, out) from error


def check_import_options(options: Options) -> None:
    """Refuse options that would do nothing here. Raises :class:`UsageError`."""
    if options.config_only or options.link_mode != "auto":
        raise UsageError(
            "the weights of a GGUF file are no safetensors yet: they are written",
            code="bad-option",
            key="--config-only" if options.config_only else "--link-mode",
            hint="leave it away",
        )


def restore_action(plan: Plan, contents: Contents) -> Restore:
    """What a plan restores. Raises :class:`RefusedError` for a saved plan that isn't one for these ``contents``."""
    check_actions(plan, contents)
    (action,) = (action for action in plan.actions if isinstance(action, Restore))
    if action.files != tuple(file.path for file in contents.files):
        raise stale(contents.source, "all files of the checkpoint", ", ".join(action.files))
    return action


def _check_config(plan: Plan, action: Restore, restored: Restored) -> None:
    """Hold the plan's config.json to what the file gives now: only what it says of the rope and of lengths may differ.

    Raises :class:`RefusedError`: nothing else of a config (such as code that it names) comes in by a plan.
    """
    family = FAMILIES[restored.family]
    own = (family.local_theta_key, family.window_key, family.window_switch_key, family.longrope_switch)
    free = {*_ROPE_KEYS, *family.theta_keys, *family.partial_rotary_keys, *(key for key in own if key is not None)}
    free |= {key for label in family.labels.values() for key in label.theta_keys}
    said = {
        key for key in action.config.keys() | restored.config.keys() if _differ(action.config, restored.config, key)
    }
    for edit in plan.actions:
        if isinstance(edit, EditJson):
            if edit.file != "config.json":
                raise unsafe(edit.file, edit.pointer, "edits of config.json", edit.file)
            said |= set(path_of(edit.pointer)[:1])
    for key in sorted(map(str, said - free)):
        raise unsafe("config.json", key, f"{restored.config.get(key)}", f"{action.config.get(key)}")


#: The settings of a rope and of lengths, beside those that a family has names of its own for.
_ROPE_KEYS: Final = (
    "rope_parameters",
    "rope_scaling",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "head_dim",
    *LENGTH_SYNONYMS,
    KEY,
)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    """Whether a setting is another as JSON has it."""
    return (key in one) != (key in other) or json.dumps(one.get(key)) != json.dumps(other.get(key))


def _documents(plan: Plan, action: Restore, restored: Restored) -> dict[str, bytes]:
    edits = edits_of(plan).get("config.json", ())
    return {
        "config.json": edit_text(config_text(action), edits).encode(),
        "generation_config.json": encode(restored.generation_config),
    }


def _with_length(plan: Plan, tokenizer: Mapping[str, bytes]) -> dict[str, bytes]:
    """A tokenizer's files, with the length in tokens that the checkpoint has in the end."""
    settings = json.loads(tokenizer["tokenizer_config.json"])
    length = max(plan.target_context, plan.trained_context)
    return {**tokenizer, "tokenizer_config.json": encode({**settings, "model_max_length": length})}


def _document(staging: Path, name: str, data: bytes) -> OutputFile:
    write_file(staging / name, data)
    return written(name, data)


def _weights(staging: Path, name: str, *, checksums: bool) -> OutputFile:
    path = staging / name
    return OutputFile(
        path=name,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path) if checksums else None,
        header_sha256=header_sha256(path),
    )
