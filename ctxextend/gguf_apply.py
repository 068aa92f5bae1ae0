"""Making a GGUF plan happen: to a new file (or a folder of split ones), or in the file where it lies.

The header is written anew; the tensors' data is copied in the kernel, shared where the file system can, or, in
place, not touched. What was written is read back as llama.cpp would before it appears.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.apply import (
    Manifest,
    Options,
    OutputFile,
    Progress,
    Verified,
    check_actions,
    encode,
    output_error,
    silent,
    stale,
    unsafe,
    verified_of,
)
from ctxextend.changes import SetKey, SetTensor, gguf_edits_of, gguf_sha256
from ctxextend.checkpoint.gguf_file import FACTOR_TENSORS, read_gguf, read_part, shard_name, shard_names
from ctxextend.checkpoint.gguf_header import KEPT_ELEMENTS
from ctxextend.contents import Contents, Gguf, GgufEdits, GgufValue
from ctxextend.encoding import static_tables
from ctxextend.errors import CheckpointError, DisagreementError, OutputError, RefusedError, UsageError
from ctxextend.formats.gguf_keys import CONTEXT
from ctxextend.formats.gguf_write import applied
from ctxextend.gguf_encoding import judge_gguf
from ctxextend.gguf_inspection import gguf_of
from ctxextend.gguf_record import KEY, PADDING, find_gguf_record, without_record
from ctxextend.plan import Plan
from ctxextend.scaling import Dynamic
from ctxextend.tensors.checksums import header_sha256, sha256_of
from ctxextend.tensors.copying import LinkMode, carry
from ctxextend.tensors.gguf_edit import edits_by_file, write_edited
from ctxextend.tensors.gguf_in_place import edit_in_place
from ctxextend.tensors.places import MANIFEST, check_manifest, check_places, check_space, manifest_of
from ctxextend.tensors.staging import staged, staged_data, staged_file, write_file
from ctxextend.version import VERSION


def convert_gguf(
    plan: Plan,
    contents: Contents,
    folder: Path,
    out: Path,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the file of ``plan`` to ``out``: a file, or of a split checkpoint a folder with its files.

    ``folder`` holds the source that ``contents`` was read from. Raises :class:`RefusedError` for an output that
    exists or is the source, :class:`OutputError` when it can't be written, :class:`DisagreementError` when
    what was written isn't read as planned. Nothing of an output remains then, and the source is as it was.
    """
    options = options or Options()
    report = progress or silent
    edits = _planned_edits(plan, contents)
    single = is_single(contents)
    if options.config_only or (single and options.link_mode in ("hardlink", "symlink")):
        raise UsageError(
            "the keys of a GGUF file stand in front of its weights: neither can be written without the other",
            code="bad-option",
            key="--config-only" if options.config_only else "--link-mode",
            hint="--in-place changes the file without rewriting its weights",
        )
    refuse_missing(contents)
    source = folder / contents.files[0].path
    check_places(source, out, force=options.force, single=single)
    try:
        with staged_output(out, single=single, replace=options.force) as staging:
            # Another run may have finished while this one waited for its lock.
            check_places(source, out, force=options.force, single=single)
            _check_space(contents, edits, folder, staging, options.link_mode)
            written = _write(contents, folder, staging, out.name, edits, options=options, report=report)
            found = verify_gguf(plan, *after_edits(contents, edits), written[0])
            manifest = manifest_of_files(plan, staging, written, {written[0]: found}, options)
            write_file(staging / manifest_of(out).name, encode(manifest))
            return manifest
    except OSError as error:
        raise output_error(error, out) from error


def is_single(contents: Contents) -> bool:
    """Whether a GGUF checkpoint is one file, so that an edit of it makes one; a split one makes a folder."""
    return len(shard_names(contents.files[0].path)) == 1


def staged_output(out: Path, *, single: bool, replace: bool) -> AbstractContextManager[Path]:
    """What builds an output of one file, or of a folder."""
    return staged_file(out, manifest_of(out), replace=replace) if single else staged(out, replace=replace)


def _check_space(contents: Contents, edits: GgufEdits, folder: Path, staging: Path, mode: LinkMode) -> None:
    """Whether there is room; a file with another header is written, whatever is done with the others."""
    files = [file.path for file in contents.files]
    if mode in ("hardlink", "symlink"):
        files, mode = list(edits_by_file(contents, edits)), "auto"
    check_space([folder / file for file in files], staging, mode)


def convert_in_place(plan: Plan, contents: Contents, folder: Path) -> Manifest:
    """Change the file itself, without rewriting its weights; of a split checkpoint the one with the keys.

    Where nothing changes, nothing is written, a manifest neither. Raises :class:`RefusedError` with the reason where
    it can't be done safely, :class:`OutputError` and :class:`DisagreementError`: the file is as it was then, but
    where the error (``no-manifest``) says that only the manifest is missing.
    """
    edits = _planned_edits(plan, contents)
    by_file, first = edits_by_file(contents, edits), gguf_of(contents).file
    further = [file for file in by_file if file != first]
    if further:
        raise RefusedError(
            "more than one file of this split checkpoint would change",
            code="in-place",
            file=further[0],
            hint="leave --in-place away: a new folder is written",
        )
    written = [folder / file.path for file in contents.files]
    target = written[[file.path for file in contents.files].index(first)]
    place = target.with_name(f"{target.name}.{MANIFEST}")
    if by_file:
        check_manifest(place, force=True)
    manifests: list[Manifest] = []
    edited = False

    def verify(path: Path) -> None:
        found = {path: verify_gguf(plan, *after_edits(contents, edits), path)}
        manifests.append(manifest_of_files(plan, folder, written, found, Options(), in_place=True))
        if by_file:
            # Already on the disk when the edit can still be undone; it gets its name when it can't be any more.
            beside.enter_context(staged_data(place, encode(manifests[0])))

    try:
        with ExitStack() as beside:
            if by_file:
                edit_in_place(target, by_file[first], verify)
                edited = True
            else:
                verify(target)
    except OSError as error:
        if edited:
            raise _no_manifest(target, error) from error
        raise output_error(error, target) from error
    return manifests[0]


def _no_manifest(target: Path, error: OSError) -> OutputError:
    return OutputError(
        "the file is changed as planned, but its manifest couldn't be put beside it",
        code="no-manifest",
        file=str(target),
        found=error.strerror,
        hint="the record in the file says what was done; 'ctxextend check' reads it",
    )


#: A tensor's type and shape; None for a type that may be any.
Kind = tuple[str | None, tuple[int, ...]]

#: What an edit in place fills up with, and what numbers the files of a split checkpoint, are the writer's own.
_WRITERS_OWN: Final = frozenset({PADDING, "split.no", "split.count", "split.tensors.count"})


class ReadBack(Struct, frozen=True, kw_only=True):
    """What was found in a file that was written, and how many bytes its header has."""

    verified: tuple[Verified, ...]
    header_bytes: int


def verify_gguf(plan: Plan, wanted: Gguf, kinds: Mapping[str, Kind], path: Path) -> ReadBack:
    """Read the file (or the first of several) back. Raises :class:`DisagreementError` if it isn't as planned.

    Its keys are ``wanted``'s, its tensors ``kinds``, and llama.cpp (and what else the plan names) reads the
    planned tables.
    """
    written = read_gguf(path)
    gguf = gguf_of(written)
    _verify_contents(wanted, kinds, written)
    scalings = [g.after.scaling for g in plan.groups if g.extended and g.after is not None]
    planned = {g.label: g.after.table for g in plan.groups if g.after is not None}
    if any(isinstance(scaling, Dynamic) for scaling in scalings):
        planned = static_tables(planned)
    verdicts = judge_gguf(gguf, planned, target=plan.target_context, required=plan.runtimes)
    for verdict in verdicts:
        if not verdict.agrees and verdict.name not in plan.misread:
            raise _disagreement(path, f"{verdict.name} would not read what was planned: {verdict.reason}")
    length = max(plan.target_context, plan.trained_context)
    return ReadBack(
        verified=tuple(verified_of(verdict, length, source=f"./{path.name}") for verdict in verdicts),
        header_bytes=gguf.data_start,
    )


def _verify_contents(wanted: Gguf, kinds: Mapping[str, Kind], written: Contents) -> None:
    """What stands in the new header, against what should."""
    found = gguf_of(written)
    for key in (wanted.values.keys() | found.values.keys()) - _WRITERS_OWN:
        if _kept(wanted.values.get(key)) != _kept(found.values.get(key)):
            raise _disagreement(Path(found.file), f"the key {key} isn't what was planned")
    after: dict[str, Kind] = {tensor.name: (tensor.dtype, tensor.shape) for tensor in written.tensors}
    # In place, a tensor that goes may stay with ones in it, which change nothing.
    idle = {name for name in after.keys() - kinds.keys() if set(found.factors.get(name) or ()) == {1.0}}
    if after.keys() - idle != kinds.keys() or any(
        kind[1] != after[name][1] or kind[0] not in (None, after[name][0]) for name, kind in kinds.items()
    ):
        raise _disagreement(Path(found.file), "its tensors aren't those that were planned")
    for name, numbers in wanted.factors.items():
        if found.factors.get(name) != numbers:
            raise _disagreement(Path(found.file), f"the tensor {name} isn't what was planned")


def _kept(value: GgufValue | None) -> GgufValue | None:
    """A value as a header that was read keeps it: long arrays by their length alone."""
    if value is None or value.length is None or value.length <= KEPT_ELEMENTS:
        return value
    return msgspec.structs.replace(value, value=None)


def after_edits(contents: Contents, edits: GgufEdits) -> tuple[Gguf, dict[str, Kind]]:
    """The header and the tensors that a file has after ``edits``."""
    kinds: dict[str, Kind] = {t.name: (t.dtype, t.shape) for t in contents.tensors}
    kinds = {name: kind for name, kind in kinds.items() if name not in edits.removed_tensors}
    kinds |= {name: ("F32", (len(numbers),)) for name, numbers in edits.tensors.items()}
    return applied(gguf_of(contents), edits), kinds


def _disagreement(path: Path, message: str) -> DisagreementError:
    return DisagreementError(
        message,
        code="disagreement",
        file=path.name,
        hint="this should not happen: please report it with the output of 'plan --json'",
    )


def refuse_missing(contents: Contents) -> None:
    """Refuse a split file of which others aren't there. Raises :class:`CheckpointError`."""
    for note in contents.notes:
        if note.code == "missing-shards":
            raise CheckpointError(
                f"files of a split GGUF are missing: {note.message}",
                code="missing-shard",
                file=contents.source,
                hint="fetch all its files into one folder; --in-place needs the first one alone",
            )


def _planned_edits(plan: Plan, contents: Contents) -> GgufEdits:
    """The plan's edits. Raises :class:`RefusedError` where the file isn't what the plan was made for."""
    check_actions(plan, contents)
    gguf = gguf_of(contents)
    if gguf_sha256(gguf) != plan.source.config_sha256:
        raise stale(gguf.file, "the keys as they were when the plan was made", "other keys")
    edits = checked_edits(plan, gguf)
    if KEY in edits.keys:
        # Taken back, it must give what the file was before: nothing else could be told of it later.
        after, before = (without_record(g, find_gguf_record(g)) for g in (applied(gguf, edits), gguf))
        if (after.values, after.factors) != (before.values, before.factors):
            raise unsafe(gguf.file, KEY, "a record of what was in the file", "another one")
    return edits


def checked_edits(plan: Plan, gguf: Gguf) -> GgufEdits:
    """The plan's edits of a file, or export, that says what ``gguf`` does: of its rope and lengths alone.

    Raises :class:`RefusedError` for others, and where something else stands there than the plan says.
    """
    for action in plan.actions:
        match action:
            case SetKey():
                _check_key(action.key, gguf)
                _check_value(action.key, action.after, gguf)
                if gguf.values.get(action.key) != action.before:
                    raise stale(gguf.file, f"{action.key}: {action.before}", f"{gguf.values.get(action.key)}")
            case SetTensor():
                _check_tensor(action.name, gguf)
                if gguf.factors.get(action.name) != action.before:
                    raise stale(gguf.file, f"the tensor {action.name} as it was", "another one")
    edits = gguf_edits_of(plan.actions)
    if KEY in edits.keys:
        record = find_gguf_record(applied(gguf, edits))
        if record is None or record.plan != plan.digest:
            raise stale(gguf.file, f"the record of the plan {plan.digest}", "that of another plan")
        for key in record.keys:
            _check_key(key, gguf)
        for name in record.tensors:
            _check_tensor(name, gguf)
    return edits


def _check_key(key: str, gguf: Gguf) -> None:
    name = gguf.architecture
    if key not in (f"{name}.{CONTEXT}", KEY) and not key.startswith(f"{name}.rope."):
        raise unsafe(gguf.file, key, f"keys of {name}'s rope, and its length", key)


def _check_value(key: str, value: GgufValue | None, gguf: Gguf) -> None:
    """What plans set are single values; whether a number fits its type is seen when it is written."""
    if value is None or value.type == "ARRAY":
        fits = value is None
    elif value.type in ("STRING", "BOOL"):
        fits = isinstance(value.value, str if value.type == "STRING" else bool)
    else:
        fits = type(value.value) in (int, float)
    if not fits:
        raise unsafe(gguf.file, key, "one value of the type that it names", f"{value}")


def _check_tensor(name: str, gguf: Gguf) -> None:
    if name not in FACTOR_TENSORS:
        raise unsafe(gguf.file, name, ", ".join(FACTOR_TENSORS), name)


def _write(
    contents: Contents,
    folder: Path,
    staging: Path,
    name: str,
    edits: GgufEdits,
    *,
    options: Options,
    report: Progress,
) -> list[Path]:
    by_file = edits_by_file(contents, edits)
    first, count = gguf_of(contents).file, len(contents.files)
    written = []
    for number, file in enumerate(contents.files, start=1):
        target = staging / (name if count == 1 else shard_name(name, number, count))
        source, done = folder / file.path, partial(report, file.path)
        if file.path in by_file:
            header = gguf_of(contents) if file.path == first else read_part(source)
            write_edited(source, target, header, by_file[file.path], progress=done)
        else:
            carry(source, target, mode=options.link_mode, progress=done)
        written.append(target)
    return written


def manifest_of_files(
    plan: Plan,
    root: Path,
    written: Iterable[Path],
    found: Mapping[Path, ReadBack],
    options: Options,
    *,
    in_place: bool = False,
) -> Manifest:
    """The manifest of GGUF files in ``root``, of which some were read back; ``in_place``: they were there before."""
    files = tuple(
        OutputFile(
            path=path.relative_to(root).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=sha256_of(path) if options.checksums else None,
            header_sha256=header_sha256(path, found[path].header_bytes if path in found else None),
            in_place=in_place,
        )
        for path in written
    )
    verified = next((back.verified for back in found.values()), ())
    return Manifest(version=VERSION, plan=plan, files=files, verified=verified)
