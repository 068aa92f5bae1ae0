"""What every runtime will make of a checkpoint, ours or not: tables, lengths, and what is wrong. Pure.

The tables are compared with what current transformers reads from the config, or with what a plan or
another checkpoint says (``--against``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import msgspec

from ctxextend.contents import Contents
from ctxextend.errors import RefusedError
from ctxextend.families import Family
from ctxextend.faults import Subject, faults, length_meant
from ctxextend.findings import Advice, Check, Finding, Judged, Meant, assembled, judged
from ctxextend.formats.hf_positions import read_positions
from ctxextend.formats.hf_read import HfRope, lost_theta, read_rope
from ctxextend.formats.json_edit import apply_edits
from ctxextend.gguf_outlook import outlook
from ctxextend.inspection import Inspection
from ctxextend.plan import Plan
from ctxextend.rope import RopeTable
from ctxextend.runtimes import READERS, Reading, readers_of
from ctxextend.runtimes.llama_cpp import LlamaCpp
from ctxextend.runtimes.position_limits import checkpoint_of, position_reading
from ctxextend.runtimes.transformers import Transformers5
from ctxextend.scaling import Dynamic, Linear, table


def meant_by(contents: Contents, inspection: Inspection, *, length: int | None = None) -> Meant | None:
    """What a checkpoint's own config means: as current transformers reads it. None for a model without a rope.

    ``length``: in tokens, where another than its own is asked about.

    A base that a scaling added by hand hides is part of the meaning, though transformers loses it.
    """
    if inspection.rope is None:
        return None
    family = inspection.family
    lost = lost_theta(contents.config, family)
    config = apply_edits(contents.config, () if lost is None else (lost,))
    rope = read_rope(config, family)
    target = length or length_meant(inspection, rope)
    tables, problem = tables_meant(config, family, rope, target)
    if not tables:
        return None
    return Meant(
        tables=tables,
        target=target,
        source="what current transformers reads"
        if problem is None
        else f"what the settings say, since transformers can't: {problem}",
        dynamic=is_dynamic(rope),
    )


def tables_meant(
    config: Mapping[str, Any], family: Family, rope: HfRope, target: int
) -> tuple[dict[str, RopeTable], str | None]:
    """What current transformers reads, which is what a config means; what it says where that fails, and why it does."""
    reading = Transformers5().effective(config, family, length=target)
    own = {g.label: table(g.spec, g.scaling, length=target) for g in rope.groups if g.spec is not None}
    return dict(reading.tables or own), reading.problem


def meant_by_plan(plan: Plan, source: str) -> Meant:
    """What a plan says that the checkpoint should be."""
    states = {group.label: group.after for group in plan.groups if group.after is not None}
    extended = [group.after for group in plan.groups if group.extended and group.after is not None]
    dynamic = any(isinstance(s.scaling, Dynamic) and s.encoding == "native" for s in extended)
    tables = {label: state.table for label, state in states.items()}
    if any(state.encoding == "theta" for state in extended):
        tables = {label: msgspec.structs.replace(t, switches=()) for label, t in tables.items()}
    return Meant(tables=tables, target=max(plan.target_context, plan.trained_context), source=source, dynamic=dynamic)


def check(
    contents: Contents,
    inspection: Inspection,
    *,
    required: Iterable[str],
    against: Meant | None = None,
    excused: Container[str] = (),
) -> Check:
    """What each runtime makes of ``contents``, those of ``required`` (names, ``name@version``) first of all.

    ``against``: what it is held to, where that isn't its own meaning. ``excused``: runtimes with their
    versions that aren't required all the same. Raises :class:`CheckpointError` for a config that can't be
    read at all.
    """
    own = meant_by(contents, inspection)
    if own is None:
        if against is not None and against.tables:
            raise RefusedError(
                "this model has no rope to hold to another's",
                code="no-rope",
                file="config.json",
                key="model_type",
                found=str(inspection.model_type),
                hint="leave --against away",
            )
        return _without_rope(contents, inspection, required=tuple(required), against=against, excused=excused)
    meant = against or own
    family, config = inspection.family, contents.config
    required = tuple(required)
    names = {f"{reader.runtime} {reader.versions}" for reader in readers_of(required)}
    answers = [
        judged(
            reader,
            reader.effective(config, family, length=meant.target),
            meant,
            source=contents.source,
            required=(name := f"{reader.runtime} {reader.versions}") in names and name not in excused,
        )
        for reader in READERS
    ]
    rope = read_rope(config, family)
    # llama.cpp reads no folder: what it makes of an export counts only where nothing else was named.
    answers.append(_exported(inspection, rope, meant, required=not names))
    subject = Subject(contents=contents, inspection=inspection, rope=rope, target=meant.target)
    advice = Advice(
        length=f"raise max_position_embeddings to {meant.target}",
        temperature="--fix writes it so that the required runtimes agree, where there is a way"
        if family.form != "phi3"
        else "the family's own form has no key for it",
        otherwise="see the other findings; --fix may mend it",
        multipliers=frozenset(g.scaling.factor for g in rope.groups if isinstance(g.scaling, Linear | Dynamic)),
    )
    return assembled(contents.source, meant, answers, faults(subject), advice)


def _exported(inspection: Inspection, rope: HfRope, meant: Meant, *, required: bool) -> Judged:
    """What llama.cpp would make of an export."""
    found = outlook(inspection.family.name, rope, target=meant.target)
    how = ("nothing: a GGUF file",) if found.form is None else (f"a GGUF export, which would hold it as {found.form}",)
    reading: Reading = msgspec.structs.replace(found.reading, how=(*how, *found.reading.how))
    answer = judged(LlamaCpp(), reading, meant, source="EXPORT.gguf", required=required)
    return msgspec.structs.replace(answer, report=msgspec.structs.replace(answer.report, serve=None))


def _without_rope(
    contents: Contents,
    inspection: Inspection,
    *,
    required: tuple[str, ...],
    against: Meant | None,
    excused: Container[str],
) -> Check:
    """A model whose positions are something else: what each runtime loads, and how long a text it serves.

    ``against``: the plan that it was made by, which says a length and no tables.
    """
    notes = tuple(
        Finding(code=note.code, severity="info", runtime=None, runtimes=(), message=note.message, fix=None)
        for note in inspection.notes
    )
    record, family = inspection.record, inspection.family
    target = inspection.current_context if record is None else max(record.target_context, record.trained_context)
    meant = against or Meant(tables={}, target=target, source="the table, or what config.json states")
    positions = read_positions(contents.tensors, contents.config, family) if inspection.position != "rope" else None
    if positions is None:
        return Check(
            ok=True,
            source=contents.source,
            against="nothing: it has no positions that are read here",
            target_context=target,
            runtimes=(),
            findings=notes,
        )
    documents = {file: document.value for file, document in contents.documents.items()}
    found = checkpoint_of(positions, contents.config, family, documents)
    names = {f"{reader.runtime} {reader.versions}" for reader in readers_of(required)}
    answers = [
        judged(
            reader,
            position_reading(reader, found),
            meant,
            source=contents.source,
            required=(name := f"{reader.runtime} {reader.versions}") in names and name not in excused,
        )
        for reader in READERS
    ]
    exported = judged(LlamaCpp(), position_reading(LlamaCpp(), found), meant, source="EXPORT.gguf", required=not names)
    answers.append(msgspec.structs.replace(exported, report=msgspec.structs.replace(exported.report, serve=None)))
    advice = Advice(
        length=f"raise {positions.key} to {positions.written(meant.target)}",
        temperature="",
        otherwise=f"bring {positions.key} and the table together",
    )
    whole = assembled(contents.source, meant, answers, (), advice)
    return msgspec.structs.replace(whole, findings=(*whole.findings, *notes))


def is_dynamic(rope: HfRope) -> bool:
    """Whether a base of it follows the length."""
    return any(isinstance(group.scaling, Dynamic) for group in rope.groups)
