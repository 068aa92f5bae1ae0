"""Making a plan happen: into a staging folder, verified there, then renamed into place.

The source is only read. Weights and every other file that the plan doesn't edit are cloned, linked or
copied in the kernel; what is written is read back as each runtime would before anything appears.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from msgspec import UNSET, Struct

from ctxextend.changes import (
    INDEX,
    Action,
    Carry,
    DropTensor,
    EditJson,
    Export,
    PutTensor,
    Restore,
    Rewrite,
    ScaleTensor,
    SetKey,
    SetTensor,
    TensorChange,
    moves_index,
    tensor_changes_of,
)
from ctxextend.checkpoint.directory import read_directory, read_text
from ctxextend.checkpoint.documents import parse_document
from ctxextend.contents import Contents
from ctxextend.encoding import Verdict, judge, static_tables
from ctxextend.errors import (
    CheckpointError,
    CtxextendError,
    DisagreementError,
    OutputError,
    RefusedError,
    UsageError,
)
from ctxextend.families import find_family
from ctxextend.formats.json_edit import Edit, edit_text, value_at
from ctxextend.parameters import ROTARY_BUFFER
from ctxextend.plan import SCHEMA as PLAN_SCHEMA
from ctxextend.plan import Plan, edits_of
from ctxextend.position_plan import verify_positions
from ctxextend.record import KEY, path_of
from ctxextend.runtimes.overrides import overrides
from ctxextend.scaling import Dynamic
from ctxextend.tensors.checksums import header_sha256, sha256_of
from ctxextend.tensors.copying import LinkMode, carry
from ctxextend.tensors.places import MANIFEST, check_places, check_space
from ctxextend.tensors.staging import staged, write_file
from ctxextend.version import VERSION

OVERRIDES: Final = "ctxextend-overrides.json"
SCHEMA: Final = "ctxextend.manifest/1"

#: Called with a file's name and how many more bytes of it are done.
Progress = Callable[[str, int], None]


class OutputFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of the output. ``sha256`` of what was written (of everything with checksums); for weights
    ``header_sha256``, of their header, and for carried ones ``etag``, the Hub's object id. ``rewritten``: weights in
    which some tensors were changed. ``in_place``: a file of the user's, changed where it lies, which no later output
    replaces.
    """

    path: str
    size_bytes: int
    written: bool = False
    rewritten: bool = False
    sha256: str | None = None
    header_sha256: str | None = None
    etag: str | None = None
    in_place: bool = False


class RewrittenTensor(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tensor that was changed. ``factor``: by what its numbers (all or some) were multiplied.

    ``rounding``: the largest relative error of a number that was written, in the dtype; ``exact``: there is none.
    """

    file: str
    name: str
    dtype: str
    elements: int
    factor: float | None = None
    rounding: float = 0.0
    exact: bool = False


class Verified(Struct, frozen=True, kw_only=True):
    """What one runtime was found to read in the output, and what serves it from inside its folder.

    ``absent``: why a runtime that has no such model reads nothing.
    """

    runtime: str
    versions: str
    agrees: bool
    reason: str | None
    max_context: int | None
    inv_freq_error: float | None
    serve: str | None = None
    absent: str | None = None


class Manifest(Struct, frozen=True, kw_only=True):
    """The record beside the weights: the plan, what the files are, what was verified, which tensors were changed."""

    schema: str = SCHEMA
    version: str
    plan: Plan
    files: tuple[OutputFile, ...]
    verified: tuple[Verified, ...]
    tensors: tuple[RewrittenTensor, ...] = ()


class Options(Struct, frozen=True, kw_only=True):
    """How an output is made; none of this changes what it says.

    ``quantizer``: llama.cpp's, for the GGUF types that only it writes; ``converter``: llama.cpp's, for a plan that
    says so. Those on PATH otherwise. Neither is taken from a plan, which anybody may have written.
    """

    link_mode: LinkMode = "auto"
    checksums: bool = False
    config_only: bool = False
    force: bool = False
    quantizer: Path | None = None
    converter: Path | None = None


def convert(
    plan: Plan,
    contents: Contents,
    folder: Path,
    out: Path,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the checkpoint of ``plan`` to ``out``. ``folder`` holds the source that ``contents`` was read from.

    Raises :class:`RefusedError` for an output that exists or lies inside the source,
    :class:`OutputError` when it can't be written, :class:`DisagreementError` when what was written
    isn't read as planned. Nothing of an output remains then, and the source is as it was.
    """
    options = options or Options()
    report = progress or silent
    check_places(folder, out, force=options.force)
    check_actions(plan, contents)
    check_convert_options(plan, options)
    texts = _edited_texts(plan, contents, folder)
    if moves_index(tensor_changes_of(plan.actions)) and any(file.path == INDEX for file in contents.files):
        texts[INDEX] = _index_text(plan, contents, folder)
    try:
        with staged(out, replace=options.force) as staging:
            # Another run may have finished while this one waited for its lock.
            check_places(folder, out, force=options.force)
            if not options.config_only:
                _check_space(plan, contents, folder, staging, options)
            return _build(plan, contents, folder, staging, texts, options=options, report=report)
    except OSError as error:
        raise output_error(error, out) from error


def _build(
    plan: Plan,
    contents: Contents,
    folder: Path,
    staging: Path,
    texts: Mapping[str, str],
    *,
    options: Options,
    report: Progress,
) -> Manifest:
    files = []
    if options.config_only:
        # Also of a plan that changes nothing, the config says how it is to be served.
        texts = {"config.json": contents.documents["config.json"].text, **texts}
    for name, text in sorted(texts.items()):
        data = text.encode()
        write_file(staging / name, data)
        files.append(written(name, data))
    if not options.config_only:
        files += _carry_all(plan, contents, folder, staging, options, report)
    tensors: list[RewrittenTensor] = []
    for name, changes in _by_file(plan).items():
        made, file = _rewrite(name, changes, folder, staging, options, report)
        tensors += made
        files.append(file)
    if plan.position != "rope":
        verified = verify_without_rope(plan, contents, staging, whole=not options.config_only)
    else:
        if tensors:
            # What was written is a checkpoint: its index and its headers go together.
            read_directory(staging)
        verified = verify(plan, staging)
    if options.config_only:
        absent = {found.runtime for found in verified if found.absent is not None}
        files.append(_write_overrides(plan, contents, staging, absent))
    manifest = Manifest(
        version=VERSION,
        plan=plan,
        files=tuple(sorted(files, key=lambda file: file.path)),
        verified=verified,
        tensors=tuple(tensors),
    )
    write_file(staging / MANIFEST, encode(manifest))
    return manifest


def written(name: str, data: bytes) -> OutputFile:
    """A file that was written with these bytes."""
    return OutputFile(path=name, size_bytes=len(data), written=True, sha256=hashlib.sha256(data).hexdigest())


def _carry_all(
    plan: Plan, contents: Contents, folder: Path, staging: Path, options: Options, report: Progress
) -> list[OutputFile]:
    etags = {file.path: file.etag for file in contents.files}
    weights = {tensor.file for tensor in contents.tensors}
    files = []
    for name in carried(plan):
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        carry(folder / name, target, mode=options.link_mode, progress=partial(report, name))
        size = target.stat().st_size
        files.append(
            OutputFile(
                path=name,
                size_bytes=size,
                sha256=sha256_of(target) if options.checksums else None,
                header_sha256=header_sha256(target) if name in weights else None,
                etag=etags.get(name),
            )
        )
    return files


def _by_file(plan: Plan) -> dict[str, tuple[TensorChange, ...]]:
    """The changes of tensors, by the file that they are made in, in the plan's order."""
    found: dict[str, list[TensorChange]] = {}
    for change in tensor_changes_of(plan.actions):
        found.setdefault(change.file, []).append(change)
    return {file: tuple(changes) for file, changes in found.items()}


def _check_space(plan: Plan, contents: Contents, folder: Path, staging: Path, options: Options) -> None:
    """Refuse before the first byte what can't fit: a file whose header stays may share all but the changed tensors.

    Raises :class:`OutputError`.
    """
    from ctxextend.tensors.rewriting import rewritten_bytes

    shared, more = [folder / name for name in carried(plan)], 0
    sizes = {file.path: file.size_bytes for file in contents.files}
    for name, changes in _by_file(plan).items():
        held = [tensor for tensor in contents.tensors if tensor.file == name]
        if moves_index(changes):
            more += rewritten_bytes(sizes[name], held, changes)
            continue
        touched = {change.name for change in changes}
        more += sum(tensor.size_bytes for tensor in held if tensor.name in touched)
        if options.link_mode in ("hardlink", "symlink"):
            # What is written to can't be linked.
            more += sizes[name]
        else:
            shared.append(folder / name)
    check_space(shared, staging, options.link_mode, more_bytes=more)


def _rewrite(
    name: str,
    changes: tuple[TensorChange, ...],
    folder: Path,
    staging: Path,
    options: Options,
    report: Progress,
) -> tuple[list[RewrittenTensor], OutputFile]:
    """One file of weights with its changes; what became of each tensor, and the file."""
    from ctxextend.tensors.rewriting import rewrite_file

    target = staging / name
    target.parent.mkdir(parents=True, exist_ok=True)
    made = rewrite_file(folder / name, target, changes, mode=options.link_mode, progress=partial(report, name))
    file = OutputFile(
        path=name,
        size_bytes=target.stat().st_size,
        rewritten=True,
        sha256=sha256_of(target) if options.checksums else None,
        header_sha256=header_sha256(target),
    )
    return [RewrittenTensor(file=name, **msgspec.structs.asdict(one)) for one in made], file


def _index_text(plan: Plan, contents: Contents, folder: Path) -> str:
    """The index of a split checkpoint as the changes of tensors leave it."""
    from ctxextend.tensors.rewriting import tensors_after

    index = read_text(folder, INDEX).value
    places = dict(index.get("weight_map", {}))
    sizes = {tensor.name: tensor.size_bytes for tensor in contents.tensors}
    for file, changes in _by_file(plan).items():
        held = [tensor for tensor in contents.tensors if tensor.file == file]
        after = {tensor.name: tensor.size_bytes for tensor in tensors_after(held, changes)}
        for tensor in held:
            places.pop(tensor.name, None)
            sizes.pop(tensor.name, None)
        places |= dict.fromkeys(after, file)
        sizes |= after
    metadata = {**index.get("metadata", {}), "total_size": sum(sizes.values())}
    index = {**index, "metadata": metadata, "weight_map": dict(sorted(places.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def carried(plan: Plan) -> tuple[str, ...]:
    """The files that a plan takes over as they are."""
    return tuple(name for action in plan.actions if isinstance(action, Carry) for name in action.files)


def verify(plan: Plan, output: Path) -> tuple[Verified, ...]:
    """Read ``output`` back as every runtime of the plan would. Raises :class:`DisagreementError` if one differs.

    Not for the runtimes of which the plan itself says that they read something else.
    """
    planned = {g.label: g.after.table for g in plan.groups if g.after is not None}
    scalings = [g.after.scaling for g in plan.groups if g.extended and g.after is not None]
    encodings = {g.after.encoding for g in plan.groups if g.extended and g.after is not None}
    dynamic = any(isinstance(s, Dynamic) for s in scalings) and encodings == {"native"}
    if "theta" in encodings:
        planned = static_tables(planned)
    verdicts = judge(
        read_text(output, "config.json").value,
        find_family({}, treat_as=plan.family),
        planned,
        target=plan.target_context,
        required=plan.runtimes,
        dynamic=dynamic,
    )
    return _as_planned(plan, verdicts)


def verify_without_rope(plan: Plan, contents: Contents, output: Path, *, whole: bool) -> tuple[Verified, ...]:
    """Read ``output`` of a model without a rope back: the tables that it holds, and the length that each runtime of
    the plan serves. ``whole``: the weights are there too.

    Raises :class:`DisagreementError` where a runtime fails on it of which the plan doesn't say so.
    """
    tensors = read_directory(output).tensors if whole else contents.tensors
    config = read_text(output, "config.json").value
    return _as_planned(plan, verify_positions(plan, config, {tensor.name: tensor for tensor in tensors}))


def _as_planned(plan: Plan, verdicts: tuple[Verdict, ...]) -> tuple[Verified, ...]:
    for verdict in verdicts:
        if not verdict.agrees and verdict.name not in plan.misread:
            raise DisagreementError(
                f"{verdict.name} would not read what was planned: {verdict.reason}",
                code="disagreement",
                file="config.json",
                hint="this should not happen: please report it with the output of 'plan --json'",
            )
    return tuple(verified_of(verdict, max(plan.target_context, plan.trained_context)) for verdict in verdicts)


def verified_of(verdict: Verdict, length: int, *, source: str = ".") -> Verified:
    """What a verdict comes to in a manifest; ``source`` is what is served, at ``length`` tokens."""
    reader, reading = verdict.reader, verdict.reading
    lost = reading.absent or reading.problem is not None
    return Verified(
        runtime=reader.runtime,
        versions=reader.versions,
        agrees=verdict.agrees,
        reason=verdict.reason,
        max_context=reading.max_context,
        inv_freq_error=error if math.isfinite(error := verdict.comparison.frequency_error) else None,
        serve=None if lost else reader.serve(source, reading, length=length),
        absent=reading.problem if reading.absent else None,
    )


def plan_from(document: Any, *, file: str) -> Plan:
    """The plan in a JSON document: of ``plan --json``, or the one that a manifest holds.

    Raises :class:`CheckpointError` naming ``file`` for anything else.
    """
    if isinstance(document, dict) and document.get("schema") == SCHEMA:
        document = document.get("plan")
    try:
        plan = msgspec.convert(document, Plan)
    except msgspec.ValidationError as error:
        raise _broken_plan(file, str(error)) from error
    if plan.schema != PLAN_SCHEMA:
        raise _broken_plan(file, plan.schema)
    return plan


def _broken_plan(file: str, found: str) -> CheckpointError:
    return CheckpointError(
        "the plan can't be read",
        code="broken-plan",
        file=file,
        expected=PLAN_SCHEMA,
        found=found,
        hint="make it again: ctxextend plan SOURCE ... --json > plan.json",
    )


def encode(value: Any) -> bytes:
    """A value as indented JSON with a final newline."""
    return (json.dumps(msgspec.to_builtins(value), indent=2) + "\n").encode()


def edited_texts(plan: Plan, documents: Mapping[str, str]) -> dict[str, str]:
    """The text of each of ``documents`` that is edited.

    Raises :class:`RefusedError` when one isn't what the plan was made for.
    """
    texts = {}
    for name, edits in edits_of(plan).items():
        if name not in documents:
            continue
        text = documents[name]
        _check_before(plan, name, parse_document(name, text.encode()).value)
        texts[name] = edit_text(text, edits)
    return texts


def _edited_texts(plan: Plan, contents: Contents, folder: Path) -> dict[str, str]:
    config = contents.documents["config.json"].text
    if hashlib.sha256(config.encode()).hexdigest() != plan.source.config_sha256:
        raise stale("config.json", "config.json as it was when the plan was made", "another config.json")
    documents = {}
    for name in edits_of(plan):
        known = contents.documents.get(name)
        documents[name] = (known or read_text(folder, name)).text
    return edited_texts(plan, documents)


def _check_before(plan: Plan, name: str, document: Mapping[str, Any]) -> None:
    for action in plan.actions:
        if not isinstance(action, EditJson) or action.file != name:
            continue
        found = value_at(dict(document), path_of(action.pointer))
        same = found is action.before if UNSET in (found, action.before) else found == action.before
        if not same:
            raise stale(name, f"{action.pointer}: {action.before}", str(found))


def stale(file: str, expected: str, found: str) -> RefusedError:
    """A source that isn't the one that a plan was made for."""
    return RefusedError(
        "the checkpoint isn't the one that the plan was made for",
        code="stale-plan",
        file=file,
        expected=expected[:200],
        found=found[:200],
        hint="make the plan again: ctxextend plan SOURCE --json",
    )


def _write_overrides(plan: Plan, contents: Contents, staging: Path, absent: Container[str]) -> OutputFile:
    edits: tuple[Edit, ...] = edits_of(plan).get("config.json", ())
    target = max(plan.target_context, plan.trained_context)
    data = encode(overrides(edits, name=contents.source, target=target, absent=absent))
    write_file(staging / OVERRIDES, data)
    return written(OVERRIDES, data)


def check_actions(plan: Plan, contents: Contents) -> None:
    """Refuse a saved plan for a checkpoint of another format, or with files that aren't the source's.

    Raises :class:`RefusedError`.
    """
    allowed, making = _ACTIONS[contents.gguf is not None, plan.to]
    made = [action for action in plan.actions if isinstance(action, Export | Restore)]
    if [type(action) for action in made] != making or not all(isinstance(action, allowed) for action in plan.actions):
        storage = "a GGUF file" if contents.gguf is not None else "a checkpoint of safetensors"
        raise stale(contents.source, f"{storage} and a plan for one, to {plan.to}", "a plan for another format")
    _check_tensors(plan, contents)
    known = {file.path for file in contents.files}
    edited = edits_of(plan) if contents.gguf is None else ()
    for name in (*edited, *carried(plan), *(name for action in made for name in action.files)):
        if name not in known:
            raise stale(name, "a file of the checkpoint", "none of that name")


def _check_tensors(plan: Plan, contents: Contents) -> None:
    """Refuse changes of tensors that aren't there. Raises :class:`RefusedError`."""
    changes = tensor_changes_of(plan.actions)
    rewritten = {file for action in plan.actions if isinstance(action, Rewrite) for file in action.files}
    exported = any(isinstance(action, Export) for action in plan.actions)
    weights = {tensor.file for tensor in contents.tensors}
    places = {tensor.name: tensor.file for tensor in contents.tensors}
    if not exported and rewritten != {change.file for change in changes}:
        raise stale(contents.source, "one file for each change of a tensor", ", ".join(sorted(rewritten)) or "none")
    if any(name in weights and name in rewritten for name in carried(plan)):
        raise stale(contents.source, "files that are either carried or rewritten", "one that is both")
    for change in changes:
        new = isinstance(change, PutTensor) and change.name not in places and change.file in weights
        if places.get(change.name) != change.file and not new:
            raise stale(change.file, "a tensor of the checkpoint", change.name)
        if isinstance(change, PutTensor | DropTensor) and not _BUFFER.search(change.name):
            raise unsafe(change.file, change.name, "a buffer that a class computes by itself", "another tensor")
        if isinstance(change, PutTensor) and not 0 < len(change.values) <= _MOST_FREQUENCIES:
            raise unsafe(change.file, change.name, "some frequencies", f"{len(change.values)} numbers")
    if len(set(changes)) < len(changes):
        raise unsafe(contents.source, "actions", "each change of a tensor once", "the same change twice")
    if not exported and any(isinstance(change, ScaleTensor) for change in changes):
        edits = edits_of(plan).get("config.json", ())
        record = next((edit.value for edit in edits if edit.path == (KEY,)), None)
        if not isinstance(record, dict) or record.get("baked") != "temperature":
            raise unsafe("config.json", KEY, "a record that the weights hold a temperature", "none")


#: Buffers that a plan may put or take away: of ropes, and those of the length's size that older releases saved.
_BUFFER: Final = re.compile(
    ROTARY_BUFFER.pattern
    + r"|(?:.+\.)?(?:position_ids|token_type_ids|attn\.(?:attention\.)?(?:masked_)?bias|transformer\.bias)$"
    + r"|(?:.+\.)?embed_positions\.weights?$"
)
_MOST_FREQUENCIES: Final = 4096


def check_convert_options(plan: Plan, options: Options) -> None:
    """Refuse to leave weights away that a plan changes. Raises :class:`UsageError`."""
    if options.config_only and tensor_changes_of(plan.actions):
        raise UsageError(
            "--config-only writes no weights, and this plan changes some",
            code="bad-option",
            key="--config-only",
            hint="leave it away; --link-mode hardlink shares the files that stay as they are",
        )


_CHANGES: Final[tuple[type[Action], ...]] = get_args(TensorChange)

#: What a plan may do, by whether the source is GGUF and by the format of the result: the actions, and the one by
#: which files of another format are made.
_ACTIONS: Final[Mapping[tuple[bool, str], tuple[tuple[type[Action], ...], list[type[Action]]]]] = {
    (False, "safetensors"): ((EditJson, Carry, Rewrite, *_CHANGES), []),
    (False, "gguf"): ((SetKey, SetTensor, Export, *_CHANGES), [Export]),
    (True, "safetensors"): ((EditJson, Restore), [Restore]),
    (True, "gguf"): ((SetKey, SetTensor, Carry), []),
}


def unsafe(file: str, key: str, expected: str, found: str) -> RefusedError:
    """A plan that would do what no plan of ours does."""
    return RefusedError(
        "the plan would do more than plans do",
        code="unsafe-plan",
        file=file,
        key=key[:200],
        expected=expected[:200],
        found=found[:200],
        hint="make the plan again: ctxextend plan SOURCE --json",
    )


def output_error(error: OSError, out: Path) -> CtxextendError:
    """An operating system's complaint, in terms of what was being done."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            "the disk is full; nothing was kept",
            code="disk-full",
            file=str(out),
            found=os.strerror(error.errno),
            hint="make room, or choose another --out; --link-mode hardlink (symlink to another file system) shares "
            "the weights",
        )
    where = error.filename if isinstance(error.filename, str) else str(out)
    kind = CheckpointError if isinstance(error, FileNotFoundError) else OutputError
    return kind(
        "a file can't be read or written",
        code="io",
        file=where,
        found=error.strerror or str(error),
        hint="check the path and its permissions",
    )


def silent(_name: str, _done: int) -> None:
    """The progress that nobody watches."""
