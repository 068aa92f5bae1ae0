"""Making an export happen: GGUF files of a safetensors checkpoint, streamed, verified, then put in place.

Floating types and the plain quantised ones are written here in one pass over the checkpoint. What only llama.cpp
writes is made by its quantiser of a floating file; what isn't exported here by its converter, whose rope is then
corrected. Either leaves whole files in the staging folder, which are split at the end where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.apply import (
    Manifest,
    Options,
    Progress,
    check_actions,
    encode,
    output_error,
    silent,
    stale,
    unsafe,
)
from ctxextend.changes import Export, ResizeTable, TensorChange, tensor_changes_of
from ctxextend.checkpoint.card import read_card
from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import Contents, Gguf, GgufEdits, GgufValue
from ctxextend.errors import RefusedError, UsageError
from ctxextend.export_plan import (
    FOLDER,
    converted_header,
    header_of,
    output_bytes,
    plain_export,
    refuse_converter,
)
from ctxextend.exports.general import general_keys
from ctxextend.exports.layout import Layout
from ctxextend.exports.outtypes import FILE_TYPES, NATIVE
from ctxextend.formats.gguf_bytes import encode_key
from ctxextend.formats.gguf_keys import CONTEXT, ORIGINAL, POSITION_TABLE, SLIDING_THETA, THETA
from ctxextend.formats.gguf_write import MANAGED, applied
from ctxextend.gguf_apply import Kind, after_edits, checked_edits, manifest_of_files, staged_output, verify_gguf
from ctxextend.gguf_inspection import gguf_of, stored_rows
from ctxextend.inspection import inspect
from ctxextend.plan import Plan, source_sha256
from ctxextend.position_export import converted_positions
from ctxextend.tensors import converter as converters
from ctxextend.tensors.gguf_edit import write_edited
from ctxextend.tensors.gguf_export import Output, needed_bytes, place_whole, write_gguf, write_quantised
from ctxextend.tensors.llama_quantize import Quantizer, find_quantizer, no_quantizer
from ctxextend.tensors.places import check_places, check_room, manifest_of
from ctxextend.tensors.staging import write_file
from ctxextend.tensors.weights import open_weights
from ctxextend.vocabulary import vocabulary_keys

#: What a quantiser reads of the types that the converter writes, the best to start from first.
_FLOATING: Final = ("bf16", "f32", "f16")


Report = Callable[[int], None]


class Written(Struct, frozen=True, kw_only=True):
    """What was written as one type: its files, and what they must hold."""

    files: tuple[Path, ...]
    header: Gguf
    kinds: Mapping[str, Kind]


def export_gguf(
    plan: Plan,
    contents: Contents,
    folder: Path,
    out: Path,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the GGUF files of ``plan`` to ``out``: one file, or a folder with several.

    ``folder`` holds the source that ``contents`` was read from. Raises :class:`RefusedError` for an output that
    exists or lies inside the source and for what a file can't hold, :class:`OutputError` when it can't be written,
    :class:`DisagreementError` when what was written isn't read as planned. Nothing of an output remains then.
    """
    options = options or Options()
    action = export_action(plan, contents)
    check_export_options(action, options)
    if source_sha256(contents) != plan.source.config_sha256:
        raise stale("config.json", "config.json as it was when the plan was made", "another config.json")
    single = action.single
    check_places(folder, out, force=options.force, single=single)
    job = Job(
        plan=plan,
        contents=contents,
        folder=folder,
        action=action,
        quantizer=_quantizer(action, options),
        converter=_converter(action, options),
    )
    make = _converted if action.converter else _exported
    try:
        with staged_output(out, single=single, replace=options.force) as staging:
            check_places(folder, out, force=options.force, single=single)
            outputs = [
                Output(
                    path=staging / (out.name if single else name_of(out.name, outtype, action.outtypes)),
                    outtype=outtype,
                    keys=(),
                    split_max_size=action.split_max_size,
                )
                for outtype in action.outtypes
            ]
            written = make(job, outputs, partial(progress or silent, out.name))
            found = {made.files[0]: verify_gguf(plan, made.header, made.kinds, made.files[0]) for made in written}
            files = [file for made in written for file in made.files]
            manifest = manifest_of_files(plan, staging, files, found, options)
            write_file(staging / manifest_of(out).name, encode(manifest))
            return manifest
    except OSError as error:
        raise output_error(error, out) from error


def export_action(plan: Plan, contents: Contents) -> Export:
    """What a plan exports. Raises :class:`RefusedError` for a saved plan that isn't one for these ``contents``."""
    check_actions(plan, contents)
    (action,) = (action for action in plan.actions if isinstance(action, Export))
    outtypes = action.outtypes
    if not outtypes or len(set(outtypes)) < len(outtypes) or not FILE_TYPES.keys() >= set(outtypes):
        raise unsafe(contents.source, "outtypes", f"some of {', '.join(FILE_TYPES)}", ", ".join(outtypes) or "none")
    if action.split_max_size is not None and action.split_max_size <= 0:
        raise unsafe(contents.source, "split_max_size", "bytes", str(action.split_max_size))
    if action.converter:
        refuse_converter(tensor_changes_of(plan.actions))
    return action


def check_export_options(action: Export, options: Options) -> None:
    """Refuse options that would do nothing for an export. Raises :class:`UsageError`."""
    for option, given, why in (
        ("--config-only", options.config_only, "the keys of a GGUF file stand in front of its weights"),
        ("--link-mode", options.link_mode != "auto", "the weights are written in another format"),
        ("--converter", options.converter is not None and not action.converter, "the plan needs no converter"),
        (
            "--quantizer",
            options.quantizer is not None and _quantised(action) is None,
            f"{', '.join(action.outtypes)} need no quantiser",
        ),
    ):
        if given:
            raise UsageError(f"{option} says nothing here: {why}", code="bad-option", key=option, hint="leave it away")


def require_export(plan: Plan, contents: Contents, folder: Path | None, options: Options) -> None:
    """What an export needs beside the weights: other programs, and, where the source is here, its tokenizer.

    Raises as :func:`export_gguf` would, before anything is written.
    """
    action = export_action(plan, contents)
    check_export_options(action, options)
    _quantizer(action, options)
    if _converter(action, options) is None and folder is not None:
        header_and_layouts(plan, contents, folder)


def name_of(out: str, outtype: str, outtypes: tuple[str, ...]) -> str:
    """What a file is called in the folder ``out``: after it, and after its type where there are several."""
    stem = out.removesuffix(FOLDER)
    return f"{stem}.gguf" if len(outtypes) == 1 else f"{stem}-{outtype.upper()}.gguf"


class Job(Struct, frozen=True, kw_only=True):
    """What an export is made of."""

    plan: Plan
    contents: Contents
    folder: Path
    action: Export
    quantizer: Quantizer | None
    converter: Path | None


def _quantised(action: Export) -> str | None:
    """The first type that needs llama.cpp's quantiser."""
    direct = converters.TYPES if action.converter else NATIVE
    return next((outtype for outtype in action.outtypes if outtype not in direct), None)


def _quantizer(action: Export, options: Options) -> Quantizer | None:
    """llama.cpp's quantiser, where one is needed. Raises :class:`RefusedError` where there is none."""
    needed = _quantised(action)
    if needed is None:
        return None
    found = find_quantizer(options.quantizer)
    if found is None:
        raise no_quantizer(needed)
    return found


def _converter(action: Export, options: Options) -> Path | None:
    """llama.cpp's converter, where one is needed. Raises :class:`RefusedError` where there is none."""
    if not action.converter:
        return None
    found = converters.find_converter(options.converter)
    if found is None:
        raise RefusedError(
            "the plan needs llama.cpp's converter, and none was found",
            code="no-converter",
            expected=f"{' or '.join(converters.NAMES)} on PATH",
            found="none",
            hint="--converter PATH names the script of a checkout of llama.cpp",
        )
    return found


def _exported(job: Job, outputs: Sequence[Output], report: Report) -> list[Written]:
    """The types in one pass over the checkpoint, and those that are quantised from one of them."""
    header, layouts = header_and_layouts(job.plan, job.contents, job.folder)
    kinds: dict[str, Kind] = {layout.name: (None, layout.shape) for layout in layouts}
    typed = [typed_header(header, output.outtype) for output in outputs]
    keyed = [
        msgspec.structs.replace(output, keys=tuple(encode_key(key, value) for key, value in own.values.items()))
        for output, own in zip(outputs, typed, strict=True)
    ]
    weights = open_weights(job.folder, job.action.files, changes=tensor_changes_of(job.plan.actions))
    check_room(needed_bytes(keyed, layouts, weights), outputs[0].path.parent)
    made = write_gguf(keyed, layouts, weights, progress=report, quantizer=job.quantizer)
    return [
        Written(files=tuple(file.path for file in files), header=own, kinds=kinds)
        for files, own in zip(made, typed, strict=True)
    ]


def _converted(job: Job, outputs: Sequence[Output], report: Report) -> list[Written]:
    """What llama.cpp's converter makes, with the rope that is planned; other types are quantised from one of its."""
    staging = outputs[0].path.parent
    check_room(2 * sum(output_bytes(job.contents, outtype) for outtype in (*job.action.outtypes, "bf16")), staging)
    direct = [output.outtype for output in outputs if output.outtype in converters.TYPES]
    source = next((outtype for outtype in _FLOATING if outtype in direct), _FLOATING[0])
    if len(direct) < len(outputs) and source not in direct:
        direct.append(source)
    wholes = {outtype: staging / f".{outtype}.gguf" for outtype in direct}
    # Each output is told of once: where it is made, or where it is corrected.
    held = {
        outtype: _corrected(job, whole, outtype, report if outtype in job.action.outtypes else _unheard)
        for outtype, whole in wholes.items()
    }
    made = {
        output.path: write_quantised(job.quantizer, wholes[source], output, report)
        for output in outputs
        if output.outtype not in wholes and job.quantizer is not None
    }
    made |= {
        output.path: place_whole(wholes.pop(output.outtype), output, _unheard)
        for output in outputs
        if output.path not in made
    }
    for whole in wholes.values():
        whole.unlink()
    header, kinds = held.get(source) or next(iter(held.values()))
    return [
        Written(
            files=tuple(file.path for file in made[output.path]),
            header=typed_header(held.get(output.outtype, (header, kinds))[0], output.outtype),
            kinds=kinds,
        )
        for output in outputs
    ]


def _unheard(_done: int) -> None:
    """The progress of what isn't an output of its own."""


def _corrected(job: Job, target: Path, outtype: str, report: Report) -> tuple[Gguf, dict[str, Kind]]:
    """One file of the converter's, corrected; gives its keys and tensors, of whatever type."""
    assert job.converter is not None
    raw = target.with_name(f"{target.name}.raw")
    converters.run_converter(job.converter, job.folder, raw, outtype)
    found = read_gguf(raw)
    edits = corrections(job.plan, job.contents, found)
    write_edited(raw, target, gguf_of(found), edits, progress=report)
    raw.unlink()
    header, kinds = after_edits(found, edits)
    return header, {name: (None, shape) for name, (_type, shape) in kinds.items()}


def header_and_layouts(plan: Plan, contents: Contents, folder: Path) -> tuple[Gguf, tuple[Layout, ...]]:
    """All keys of the export, the tokenizer's and the model card's among them, and its tensors, edits applied."""
    inspection = inspect(contents, family=plan.family)
    exported = plain_export(contents, inspection)
    edits = checked_edits(plan, header_of(exported))
    generation = contents.documents.get("generation_config.json")
    known = general_keys(
        contents.name,
        read_card(folder),
        inspection.config,
        exported.layouts,
        generation=generation.value if generation is not None else None,
    )
    tokenizer = vocabulary_keys(folder, inspection.config, exported.architecture)
    architecture = {key: value for key, value in exported.values.items() if key == "general.architecture"}
    values = {**architecture, **known, **exported.values, **tokenizer}
    header = header_of(msgspec.structs.replace(exported, values=values))
    factors = tuple(
        Layout(name=name, shape=(len(numbers),), values=numbers, exact=True) for name, numbers in edits.tensors.items()
    )
    changes = tensor_changes_of(plan.actions)
    return applied(header, edits), (*(_resized(layout, changes) for layout in exported.layouts), *factors)


def _resized(layout: Layout, changes: Sequence[TensorChange]) -> Layout:
    """A table of positions with the rows that it will have."""
    rows = (change.rows for change in changes if isinstance(change, ResizeTable) and change.name in layout.sources)
    return next((msgspec.structs.replace(layout, shape=(count, *layout.shape[1:])) for count in rows), layout)


def corrections(plan: Plan, contents: Contents, found: Contents) -> GgufEdits:
    """What takes the rope and the length of a converter's file to the planned ones: its dead keys go, those come.

    Raises :class:`RefusedError` where the file is of another architecture than was planned for, or has another table
    of positions.
    """
    inspection = inspect(contents, family=plan.family)
    rope = plan.position == "rope"
    plain = converted_header(contents, inspection) if rope else converted_positions(inspection)
    planned, file = applied(plain, checked_edits(plan, plain)), gguf_of(found)
    name = planned.architecture
    if file.architecture != name:
        raise RefusedError(
            f"the converter wrote the architecture {file.architecture}, which wasn't planned for",
            code="other-architecture",
            file=contents.source,
            expected=str(name),
            found=str(file.architecture),
            hint="--family names the family whose rope it has",
        )
    if not rope:
        _require_table(plan, found)
    managed = {f"{name}.{key}" for key in MANAGED}
    ours = managed | {f"{name}.{key}" for key in (CONTEXT, ORIGINAL, THETA, SLIDING_THETA)}
    wanted = {k: value for k, value in planned.values.items() if k in ours or k.startswith("ctxextend.")}
    factors = {factor: numbers for factor, numbers in planned.factors.items() if numbers is not None}
    return GgufEdits(
        keys={key: value for key, value in wanted.items() if file.values.get(key) != value},
        removed=tuple(key for key in file.values if key in managed and key not in wanted),
        tensors={factor: numbers for factor, numbers in factors.items() if file.factors.get(factor) != numbers},
        removed_tensors=tuple(factor for factor in file.factors if factor not in factors),
    )


def _require_table(plan: Plan, found: Contents) -> None:
    """Raises :class:`RefusedError` where a converter's file has another table of positions than was planned for."""
    rows, planned = stored_rows(found), None if plan.position == "alibi" else plan.target_context
    if rows != planned:
        raise RefusedError(
            "the converter wrote another table of positions than the checkpoint has",
            code="other-table",
            file=found.source,
            key=POSITION_TABLE,
            expected="none" if planned is None else f"{planned} rows",
            found="none" if rows is None else f"{rows} rows",
            hint="a converter of another llama.cpp may keep what this one changes: --converter PATH",
        )


def typed_header(header: Gguf, outtype: str) -> Gguf:
    """The header of a file of an output type."""
    kind = GgufValue(type="UINT32", value=FILE_TYPES[outtype])
    return msgspec.structs.replace(header, values={**header.values, "general.file_type": kind})
