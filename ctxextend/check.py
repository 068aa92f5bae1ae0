"""What every runtime will make of a checkpoint, ours or not: tables, lengths, and what is wrong. Pure.

The tables are compared with what current transformers reads from the config, or with what a plan or
another checkpoint says (``--against``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.comparison import Comparison, compare
from ctxextend.contents import Contents
from ctxextend.families import Family
from ctxextend.faults import Fault, Level, Subject, faults, length_meant
from ctxextend.formats.hf_read import HfRope, read_rope
from ctxextend.inspection import Inspection
from ctxextend.plan import Plan
from ctxextend.rope import RopeTable
from ctxextend.runtimes import READERS, Reader, Reading, readers_of
from ctxextend.runtimes.transformers import Transformers5
from ctxextend.scaling import Dynamic, Linear, table

SCHEMA: Final = "ctxextend.check/1"


class Meant(Struct, frozen=True, kw_only=True):
    """What a checkpoint is held to: tables by label at ``target`` tokens, and where they come from.

    ``dynamic``: the base is meant to follow the length.
    """

    tables: Mapping[str, RopeTable]
    target: int
    source: str
    dynamic: bool = False


class GroupReport(Struct, frozen=True, kw_only=True):
    """What a runtime uses for one group of layers; ``inv_freq_error``: the largest |a - b| / b against the meaning."""

    label: str
    attention_factor: float
    softmax_factor: float
    inv_freq: tuple[float, ...]
    inv_freq_error: float


class RuntimeReport(Struct, frozen=True, kw_only=True):
    """One runtime over one range of versions. ``reason`` says why it isn't ok; ``unknown`` why nothing is claimed."""

    runtime: str
    versions: str
    required: bool
    ok: bool
    evidence: str
    max_context: int | None
    groups: tuple[GroupReport, ...]
    how: tuple[str, ...]
    reason: str | None
    absent: bool
    unknown: str | None
    serve: str | None


class Finding(Struct, frozen=True, kw_only=True):
    """Something that the user should know or mend. ``runtimes`` names those it troubles; ``runtime`` the only one."""

    code: str
    severity: Level
    runtime: str | None
    runtimes: tuple[str, ...]
    message: str
    fix: str | None


class Check(Struct, frozen=True, kw_only=True):
    """The whole answer. ``ok``: no finding is an error."""

    schema: str = SCHEMA
    ok: bool
    source: str
    against: str
    target_context: int
    runtimes: tuple[RuntimeReport, ...]
    findings: tuple[Finding, ...]


def meant_by(contents: Contents, inspection: Inspection) -> Meant | None:
    """What a checkpoint's own config means: as current transformers reads it. None for a model without a rope."""
    if inspection.rope is None:
        return None
    family = inspection.family
    rope = read_rope(contents.config, family)
    target = length_meant(inspection, rope)
    reading = Transformers5().effective(contents.config, family, length=target)
    groups = (group for group in rope.groups if group.spec is not None)
    tables = reading.tables or {g.label: table(g.spec, g.scaling, length=target) for g in groups if g.spec}
    return Meant(
        tables=tables,
        target=target,
        source="what current transformers reads"
        if reading.problem is None
        else f"what the settings mean, since transformers can't say: {reading.problem}",
        dynamic=_is_dynamic(rope),
    )


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
) -> Check:
    """What each runtime makes of ``contents``, those of ``required`` (names, ``name@version``) first of all.

    ``against``: what it is held to, where that isn't its own meaning. Raises :class:`CheckpointError`
    for a config that can't be read at all.
    """
    meant = against or meant_by(contents, inspection)
    if meant is None or inspection.rope is None:
        return _without_rope(contents, inspection)
    family, config = inspection.family, contents.config
    must = {(reader.runtime, reader.versions) for reader in readers_of(required)}
    judged = []
    for reader in READERS:
        reading = reader.effective(config, family, length=meant.target)
        comparison = compare(reading, meant.tables, target=meant.target, dynamic=meant.dynamic)
        report = _report(reader, reading, comparison, contents, meant, (reader.runtime, reader.versions) in must)
        judged.append((reader, reading, comparison, report))
    reports = tuple(report for *_rest, report in judged)
    rope = read_rope(config, family)
    subject = Subject(contents=contents, inspection=inspection, rope=rope, target=meant.target)
    findings = [_finding(fault, reports) for fault in faults(subject)]
    findings += _unread_temperature(judged, family)
    about = [
        finding
        for _reader, reading, comparison, report in judged
        for finding in _about(report, reading, comparison, meant, rope)
    ]
    findings += _merged(about)
    order = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return Check(
        ok=not any(finding.severity == "error" for finding in findings),
        source=contents.source,
        against=meant.source,
        target_context=meant.target,
        runtimes=tuple(sorted(reports, key=lambda report: not report.required)),
        findings=tuple(dict.fromkeys(findings)),
    )


def _report(
    reader: Reader,
    reading: Reading,
    comparison: Comparison,
    contents: Contents,
    meant: Meant,
    required: bool,
) -> RuntimeReport:
    errors = {group.label: group.frequency_error for group in comparison.groups}
    lost = reading.absent or reading.problem is not None
    return RuntimeReport(
        runtime=reader.runtime,
        versions=reader.versions,
        required=required,
        ok=comparison.reason is None,
        evidence=reader.evidence,
        max_context=reading.max_context,
        groups=tuple(
            GroupReport(
                label=label,
                attention_factor=found.attention_factor,
                softmax_factor=found.softmax_factor,
                inv_freq=found.inv_freq,
                inv_freq_error=errors.get(label, 0.0),
            )
            for label, found in reading.tables.items()
        ),
        how=reading.how,
        reason=comparison.reason or (reading.problem if reading.absent else None),
        absent=reading.absent,
        unknown=reading.unknown,
        serve=None if lost else reader.serve(contents.source, reading, length=meant.target),
    )


def _finding(fault: Fault, reports: Iterable[RuntimeReport]) -> Finding:
    """A fault with its severity: an error where a runtime that it troubles is required and reads something else."""
    hit = any(report.required and not report.ok and _troubled(fault, report) for report in reports)
    return Finding(
        code=fault.code,
        severity="error" if hit else fault.level,
        runtime=fault.troubles[0] if len(fault.troubles) == 1 else None,
        runtimes=fault.troubles,
        message=fault.message,
        fix=fault.fix,
    )


def _troubled(fault: Fault, report: RuntimeReport) -> bool:
    return report.runtime in fault.troubles or f"{report.runtime} {report.versions}" in fault.troubles


def _unread_temperature(
    judged: Iterable[tuple[Reader, Reading, Comparison, RuntimeReport]], family: Family
) -> Iterator[Finding]:
    """The runtimes whose frequencies are right and whose attention factor isn't: they don't read the key for it."""
    by_value: dict[float, list[RuntimeReport]] = {}
    wanted = 1.0
    for _reader, _reading, comparison, report in judged:
        for group in comparison.groups:
            if group.found is None or group.differs != "attention factor":
                continue
            by_value.setdefault(round(group.found.attention_factor, 6), []).append(report)
            wanted = group.goal.attention_factor
    for value, reports in by_value.items():
        names = tuple(dict.fromkeys(f"{report.runtime} {report.versions}" for report in reports))
        yield Finding(
            code="attention-factor-ignored",
            severity="error" if any(report.required for report in reports) else "info",
            runtime=names[0] if len(names) == 1 else None,
            runtimes=names,
            message=f"{', '.join(names)}: the frequencies are right, but the attention factor is {value:g} instead of "
            f"{wanted:.6g}: the key that sets it isn't read there",
            fix="--fix writes it so that the required runtimes agree, where there is a way"
            if family.form != "phi3"
            else "the family's own form has no key for it",
        )


def _about(
    report: RuntimeReport, reading: Reading, comparison: Comparison, meant: Meant, rope: HfRope
) -> Iterator[Finding]:
    """What is to be said of one runtime, without its name: it disagrees, can't, isn't known, has another length."""
    name = f"{report.runtime} {report.versions}"

    def said(code: str, severity: Level, message: str, fix: str | None = None) -> Finding:
        found = severity if report.required else "info"
        return Finding(code=code, severity=found, runtime=name, runtimes=(name,), message=message, fix=fix)

    if reading.absent:
        yield said("no-such-model", "warning", f"{reading.problem}")
        return
    if reading.unknown is not None:
        yield said("unknown", "warning", reading.unknown)
        return
    longest, target = reading.max_context, meant.target
    match comparison.kind:
        case "length-below":
            fix = f"raise max_position_embeddings to {target}"
            yield said("length-below", "error", f"{report.reason}, not {target}", fix)
        case None if longest is not None and longest < target:
            message = f"it serves {longest} tokens unless it is told otherwise"
            yield said("length-below", "warning", message, report.serve)
        case None:
            pass
        case "reads-otherwise" if _by_temperature_alone(comparison):
            # Said once for all runtimes with this temperature.
            pass
        case kind:
            yield said(kind, "error", f"{report.reason}", "see the other findings; --fix may mend it")
    if longest is not None and longest > target:
        factors = {g.scaling.factor for g in rope.groups if isinstance(g.scaling, Linear | Dynamic)}
        times = next((factor for factor in factors if int(target * factor) == longest), None)
        why = "" if times is None else f": it multiplies the stated length by the factor {times:g} again"
        code = "length-above" if times is None else "length-multiplied"
        yield said(
            code,
            "warning",
            f"it advertises {longest} tokens, more than the {target} that are meant{why}",
            report.serve,
        )
    if reading.caution is not None:
        yield said("caution", "warning", reading.caution, report.serve)


def _merged(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings that say the same of several runtimes, as one; each with the names before what is said."""
    groups: dict[Finding, list[str]] = {}
    for finding in findings:
        alike = msgspec.structs.replace(finding, runtime=None, runtimes=())
        groups.setdefault(alike, []).extend(finding.runtimes)
    for alike, names in groups.items():
        yield msgspec.structs.replace(
            alike,
            runtime=names[0] if len(names) == 1 else None,
            runtimes=tuple(names),
            message=f"{', '.join(names)}: {alike.message}",
        )


def _by_temperature_alone(comparison: Comparison) -> bool:
    return {group.differs for group in comparison.groups} <= {None, "attention factor"}


def _without_rope(contents: Contents, inspection: Inspection) -> Check:
    """A model whose positions are something else: nothing is read alike or otherwise."""
    findings = tuple(
        Finding(code=note.code, severity="info", runtime=None, runtimes=(), message=note.message, fix=None)
        for note in inspection.notes
    )
    return Check(
        ok=True,
        source=contents.source,
        against=f"its positions are {inspection.position}",
        target_context=inspection.current_context,
        runtimes=(),
        findings=findings,
    )


def _is_dynamic(rope: HfRope) -> bool:
    return any(isinstance(group.scaling, Dynamic) for group in rope.groups)
