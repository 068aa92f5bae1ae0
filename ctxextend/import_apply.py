"""Making safetensors of a GGUF file happen: weights streamed, documents and tokenizer written, then put in place."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from ctxextend.apply import (
    Manifest,
    Options,
    OutputFile,
    Progress,
    encode,
    output_error,
    sha256_of,
    silent,
    stale,
    verify,
    written,
)
from ctxextend.changes import Restore
from ctxextend.checkpoint.gguf_arrays import read_arrays
from ctxextend.contents import Contents
from ctxextend.errors import UsageError
from ctxextend.exports.reverse import Restored, restored_of
from ctxextend.formats.json_edit import edit_text
from ctxextend.gguf_plan import gguf_of
from ctxextend.gguf_record import find_gguf_record, without_record
from ctxextend.plan import Plan, edits_of, source_sha256
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
    if options.config_only or options.link_mode in ("reflink", "hardlink", "symlink"):
        raise UsageError(
            "the weights of a GGUF file are no safetensors yet: they are written",
            code="bad-option",
            key="--config-only" if options.config_only else "--link-mode",
            hint="leave it away",
        )
    action = next(action for action in plan.actions if isinstance(action, Restore))
    gguf = gguf_of(contents)
    if source_sha256(contents) != plan.source.config_sha256:
        raise stale(gguf.file, "the keys as they were when the plan was made", "other keys")
    base = without_record(gguf, find_gguf_record(gguf))
    restored = restored_of(base, contents.tensors, dtype=action.dtype)
    infos = {tensor.name: tensor for tensor in contents.tensors}
    tensors = planned(restored.tensors, infos, action.dtype)
    check_places(folder / contents.files[0].path, out, force=options.force)
    try:
        with staged(out, replace=options.force) as staging:
            check_places(folder / contents.files[0].path, out, force=options.force)
            check_room(action.size_bytes, staging)
            files = [_document(staging, name, data) for name, data in _documents(plan, action, restored).items()]
            for name, data in tokenizer_files(read_arrays(folder / gguf.file, gguf, gguf.values)).items():
                files.append(_document(staging, name, data))
            report = partial(progress or silent, out.name)
            with GgufTensors([folder / file.path for file in contents.files]) as held:
                names = write_shards(staging, tensors, pieces_of(restored.tensors, held), progress=report)
            files += [_weights(staging, name, checksums=options.checksums) for name in names]
            manifest = Manifest(
                version=VERSION,
                plan=plan,
                files=tuple(sorted(files, key=lambda file: file.path)),
                verified=verify(plan, staging),
            )
            write_file(staging / MANIFEST, encode(manifest))
            return manifest
    except OSError as error:
        raise output_error(error, out) from error


def _documents(plan: Plan, action: Restore, restored: Restored) -> dict[str, bytes]:
    config = json.dumps(action.config, indent=2) + "\n"
    edits = edits_of(plan).get("config.json", ())
    return {
        "config.json": edit_text(config, edits).encode(),
        "generation_config.json": encode(restored.generation_config),
    }


def _document(staging: Path, name: str, data: bytes) -> OutputFile:
    write_file(staging / name, data)
    return written(name, data)


def _weights(staging: Path, name: str, *, checksums: bool) -> OutputFile:
    path = staging / name
    return OutputFile(path=name, size_bytes=path.stat().st_size, sha256=sha256_of(path) if checksums else None)
