"""What a check answers with: a report a runtime, findings, and how they come from readings.

The same for a config.json and a GGUF file. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.comparison import Comparison, compare
from ctxextend.faults import Fault, Level
from ctxextend.rope import RopeTable
from ctxextend.runtimes import Reading
from ctxextend.runtimes.base import Runtime

SCHEMA: Final = "ctxextend.check/1"

_ORDER: Final[Mapping[Level, int]] = {"error": 0, "warning": 1, "info": 2}


class Meant(Struct, frozen=True, kw_only=True):
    """What a checkpoint is held to: tables by label at ``target`` tokens, and where they come from.

    ``dynamic``: the base is meant to follow the length.
    """

    tables: Mapping[str, RopeTable]
    target: int
    source: str
    dynamic: bool = False


class GroupReport(Struct, frozen=True, kw_only=True):
    """What a runtime uses for one group of layers; ``inv_freq_error``: the largest |a - b| / b against the meaning.

    None where the two have nothing to compare: another number of pairs, or a pair that should stand still.
    """

    label: str
    attention_factor: float
    softmax_factor: float
    inv_freq: tuple[float, ...]
    inv_freq_error: float | None


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


class Judged(Struct, frozen=True, kw_only=True):
    """One runtime's reading against what is meant, and the report of it."""

    reading: Reading
    comparison: Comparison
    report: RuntimeReport

    @property
    def name(self) -> str:
        """The runtime with its versions."""
        return f"{self.report.runtime} {self.report.versions}"


class Advice(Struct, frozen=True, kw_only=True):
    """What mends what runtimes do, in the words of the format: a length that is too short, anything else.

    ``multipliers``: factors that some runtimes multiply a stated length by.
    """

    length: str
    temperature: str
    otherwise: str
    multipliers: frozenset[float] = frozenset()


def judged(runtime: Runtime, reading: Reading, meant: Meant, *, source: str, required: bool) -> Judged:
    """A reading, compared and reported. ``source`` is what its serve command names."""
    comparison = compare(reading, meant.tables, target=meant.target, dynamic=meant.dynamic)
    errors = {g.label: g.frequency_error for g in comparison.groups if math.isfinite(g.frequency_error)}
    lost = reading.absent or reading.problem is not None
    report = RuntimeReport(
        runtime=runtime.runtime,
        versions=runtime.versions,
        required=required,
        ok=comparison.reason is None,
        evidence=runtime.evidence,
        max_context=reading.max_context,
        groups=tuple(
            GroupReport(
                label=label,
                attention_factor=found.attention_factor,
                softmax_factor=found.softmax_factor,
                inv_freq=found.inv_freq,
                inv_freq_error=errors.get(label),
            )
            for label, found in reading.tables.items()
        ),
        how=reading.how,
        reason=comparison.reason or (reading.problem if reading.absent else None),
        absent=reading.absent,
        unknown=reading.unknown,
        serve=None if lost else runtime.serve(source, reading, length=meant.target),
    )
    return Judged(reading=reading, comparison=comparison, report=report)


def assembled(source: str, meant: Meant, answers: Sequence[Judged], found: Iterable[Fault], advice: Advice) -> Check:
    """The whole answer: faults of the files with their severity, then what each runtime does."""
    reports = tuple(answer.report for answer in answers)
    findings = [_finding(fault, reports) for fault in found]
    findings += _unread_temperature(answers, advice)
    findings += _nobody(answers)
    findings += _merged(finding for answer in answers for finding in _about(answer, meant, advice))
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    return Check(
        ok=not any(finding.severity == "error" for finding in findings),
        source=source,
        against=meant.source,
        target_context=meant.target,
        runtimes=tuple(sorted(reports, key=lambda report: not report.required)),
        findings=tuple(dict.fromkeys(findings)),
    )


def _nobody(answers: Iterable[Judged]) -> Iterator[Finding]:
    """An error where nothing that is required is known to read the checkpoint: then nothing was checked."""
    required = [answer for answer in answers if answer.report.required]
    if any(not answer.report.absent and answer.report.unknown is None for answer in required):
        return
    yield Finding(
        code="nobody-reads",
        severity="error",
        runtime=None,
        runtimes=tuple(answer.name for answer in required),
        message="of the runtimes named, none is known to read a checkpoint of this kind, so nothing was checked",
        fix="name others with --runtimes; 'ctxextend runtimes' lists them",
    )


def _finding(fault: Fault, reports: Iterable[RuntimeReport]) -> Finding:
    """A fault with its severity: an error where a runtime that it troubles is required and reads something else."""
    hit = any(report.required and not report.ok and _troubled(fault, report) for report in reports)
    return Finding(
        code=fault.code,
        # What is only worth knowing is never to blame.
        severity="error" if hit and fault.level != "info" else fault.level,
        runtime=fault.troubles[0] if len(fault.troubles) == 1 else None,
        runtimes=fault.troubles,
        message=fault.message,
        fix=fault.fix,
    )


def _troubled(fault: Fault, report: RuntimeReport) -> bool:
    return report.runtime in fault.troubles or f"{report.runtime} {report.versions}" in fault.troubles


def _unread_temperature(answers: Iterable[Judged], advice: Advice) -> Iterator[Finding]:
    """The runtimes whose frequencies are right and whose attention factor isn't, once for each value of it."""
    by_values: dict[tuple[float, float], list[Judged]] = {}
    for answer in answers:
        for group in answer.comparison.groups:
            if group.found is not None and group.differs == "attention factor":
                values = (round(group.found.attention_factor, 6), round(group.goal.attention_factor, 6))
                by_values.setdefault(values, []).append(answer)
    for (value, wanted), hit in by_values.items():
        names = tuple(dict.fromkeys(answer.name for answer in hit))
        yield Finding(
            code="attention-factor-ignored",
            severity="error" if any(answer.report.required for answer in hit) else "info",
            runtime=names[0] if len(names) == 1 else None,
            runtimes=names,
            message=f"{', '.join(names)}: the frequencies are right, but the attention factor is {value:g} instead of "
            f"{wanted:g}",
            fix=advice.temperature,
        )


def _about(answer: Judged, meant: Meant, advice: Advice) -> Iterator[Finding]:
    """What is to be said of one runtime, without its name: it disagrees, can't, isn't known, has another length."""
    report, reading, comparison, name = answer.report, answer.reading, answer.comparison, answer.name

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
            yield said("length-below", "error", f"{report.reason}, not {target}", advice.length)
        case None if longest is not None and longest < target:
            message = f"it serves {longest} tokens unless it is told otherwise"
            yield said("length-below", "warning", message, report.serve)
        case None:
            pass
        case "reads-otherwise" if _by_temperature_alone(comparison):
            # Said once for all runtimes with this temperature.
            pass
        case kind:
            yield said(kind, "error", f"{report.reason}", advice.otherwise)
    if longest is not None and longest > target:
        times = next((factor for factor in advice.multipliers if int(target * factor) == longest), None)
        why = "" if times is None else f": it multiplies the stated length by the factor {times:g} again"
        code = "length-above" if times is None else "length-multiplied"
        message = f"it advertises {longest} tokens, more than the {target} that are meant{why}"
        yield said(code, "warning", message, report.serve)
    if reading.caution is not None:
        yield said("caution", "warning", reading.caution, report.serve if reading.flags else None)


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
    differs = {group.differs for group in comparison.groups}
    return "attention factor" in differs and differs <= {None, "attention factor"}
