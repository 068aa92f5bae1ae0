"""Which form of a scaling is written: the first that every runtime named reads as the planned table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ctxextend.comparison import Comparison, compare
from ctxextend.errors import RefusedError
from ctxextend.families import Family
from ctxextend.formats.hf_read import read_rope
from ctxextend.formats.hf_write import Encoding, encodings
from ctxextend.formats.json_edit import apply_edits
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes import Reader, Reading, readers_of
from ctxextend.runtimes.base import Runtime
from ctxextend.scaling import Dynamic, Scaling, Yarn, table


class PlanWarning(Struct, frozen=True, kw_only=True):
    """Something that a plan can't make right: what, and what to do about it."""

    code: str
    message: str
    hint: str | None = None


class Chosen(Struct, frozen=True, kw_only=True):
    """The form that was chosen, the base it writes for each label, and what its readers do beside.

    ``misread``: the readers that are known to read another table in it.
    """

    encoding: Encoding
    rope_theta: Mapping[str, float]
    misread: tuple[str, ...]
    warnings: tuple[PlanWarning, ...]


class Verdict(Struct, frozen=True, kw_only=True):
    """What one reader makes of one candidate, against the planned tables."""

    reader: Runtime
    reading: Reading
    comparison: Comparison

    @property
    def name(self) -> str:
        """The reader with its versions."""
        return f"{self.reader.runtime} {self.reader.versions}"

    @property
    def agrees(self) -> bool:
        return self.comparison.reason is None

    @property
    def reason(self) -> str | None:
        """Why it isn't the planned table."""
        return self.comparison.reason


def choose_encoding(
    config: Mapping[str, Any],
    family: Family,
    specs: Mapping[str, RopeSpec],
    scalings: Mapping[str, Scaling],
    *,
    target: int,
    required: tuple[str, ...],
    carriers: str,
    method: str,
    kept: Mapping[str, RopeTable] | None = None,
    excused: frozenset[str] = frozenset(),
    allow: bool = False,
) -> Chosen:
    """The first candidate that all ``required`` runtimes read as planned, but those that are ``excused``.

    ``kept``: the tables of layers that must stay as they are. Raises :class:`RefusedError`
    (``unreadable``) naming each runtime that can't and why; with ``allow`` the candidate that most of
    them read is taken instead.
    """
    scaled = {label: table(specs[label], s, length=target) for label, s in scalings.items()}
    planned = {**(kept or {}), **scaled}
    dynamic = any(isinstance(s, Dynamic) for s in scalings.values())
    tried: list[tuple[Encoding, tuple[Verdict, ...]]] = []
    unknown: tuple[Encoding, dict[str, Any], tuple[Verdict, ...]] | None = None
    rope = read_rope(config, family)
    for candidate in encodings(config, family, rope, specs, scalings, target=target, carriers=carriers):
        edited = apply_edits(dict(config), candidate.edits)
        goal = static_tables(planned) if candidate.name == "theta" else planned
        verdicts = judge(edited, family, goal, target=target, required=required, dynamic=dynamic)
        if all(verdict.agrees or verdict.name in excused for verdict in verdicts):
            if all(verdict.reading.unknown is None for verdict in verdicts):
                return _chosen(candidate, edited, family, verdicts, scalings, target, excused)
            # Nothing is known against it; a form of which more is known is better.
            unknown = unknown or (candidate, edited, verdicts)
        tried.append((candidate, verdicts))
    if unknown is not None:
        candidate, edited, verdicts = unknown
        return _chosen(candidate, edited, family, verdicts, scalings, target, excused)
    if not tried:
        raise _no_form(method, family, carriers)
    best, verdicts = max(tried, key=lambda pair: _nearness(pair[1]))
    if allow:
        edited = apply_edits(dict(config), best.edits)
        return _chosen(best, edited, family, verdicts, scalings, target, excused)
    raise _unreadable(method, best, verdicts)


def judge(
    config: Mapping[str, Any],
    family: Family,
    planned: Mapping[str, RopeTable],
    *,
    target: int,
    required: tuple[str, ...],
    dynamic: bool = False,
) -> tuple[Verdict, ...]:
    """What each current reader of the ``required`` runtimes makes of ``config``, against the planned tables."""
    return tuple(
        _verdict(reader, config, family, planned, target=target, dynamic=dynamic) for reader in readers_of(required)
    )


def misreaders(
    config: Mapping[str, Any],
    family: Family,
    tables: Mapping[str, RopeTable],
    *,
    trained: int,
    required: tuple[str, ...],
) -> frozenset[str]:
    """The runtimes that read a checkpoint otherwise than it was trained, before anything was done to it."""
    verdicts = judge(config, family, tables, target=trained, required=required)
    return frozenset(verdict.name for verdict in verdicts if not verdict.agrees)


def warnings_of(verdicts: tuple[Verdict, ...], target: int) -> tuple[PlanWarning, ...]:
    """What is to be said of runtimes where no form was chosen: the rope stays as the checkpoint has it."""
    everyone = frozenset(verdict.name for verdict in verdicts)
    return tuple(cautions(verdicts, target, everyone))


def _verdict(
    reader: Reader,
    config: Mapping[str, Any],
    family: Family,
    planned: Mapping[str, RopeTable],
    *,
    target: int,
    dynamic: bool,
) -> Verdict:
    reading = reader.effective(config, family, length=target)
    comparison = compare(reading, planned, target=target, dynamic=dynamic)
    return Verdict(reader=reader, reading=reading, comparison=comparison)


def static_tables(planned: Mapping[str, RopeTable]) -> dict[str, RopeTable]:
    """Tables that no longer change with the length: what a static equal is held to."""
    return {label: msgspec.structs.replace(goal, switches=()) for label, goal in planned.items()}


def _chosen(
    candidate: Encoding,
    edited: Mapping[str, Any],
    family: Family,
    verdicts: tuple[Verdict, ...],
    scalings: Mapping[str, Scaling],
    target: int,
    excused: frozenset[str],
) -> Chosen:
    written = {group.label: group.spec for group in read_rope(edited, family).groups}
    thetas = {label: spec.rope_theta for label in scalings if (spec := written[label]) is not None}
    return Chosen(
        encoding=candidate,
        rope_theta=thetas,
        misread=tuple(verdict.name for verdict in verdicts if not verdict.agrees),
        warnings=(*cautions(verdicts, target, excused), *_by_form(candidate, scalings)),
    )


def cautions(verdicts: Iterable[Verdict], target: int, excused: frozenset[str]) -> Iterator[PlanWarning]:
    """What is to be said of readers that don't agree, aren't known, or serve another length than ``target``."""
    for verdict in verdicts:
        reading, who = verdict.reading, verdict.name
        if not verdict.agrees:
            source = "; it reads the checkpoint itself otherwise than it was trained" if verdict.name in excused else ""
            message = f"{who} doesn't read the planned table: {verdict.reason}{source}"
            yield PlanWarning(code="unreadable", message=message)
        if reading.absent:
            yield PlanWarning(code="runtime-absent", message=f"{who} can't run this model: {reading.problem}")
        if reading.unknown is not None:
            yield PlanWarning(code="runtime-unknown", message=f"{who}: {reading.unknown}")
        if reading.caution is not None:
            yield PlanWarning(code="runtime-caution", message=f"{who}: {reading.caution}")
        longest = reading.max_context
        if longest is not None and longest > target:
            yield PlanWarning(
                code="length-above",
                message=f"{who} will advertise {longest} tokens, more than the {target} that are planned: it "
                "multiplies the stated length by the factor",
                hint=_length_flag(verdict.reader.runtime, target),
            )
        if longest is not None and longest < target and verdict.agrees:
            yield PlanWarning(
                code="length-below",
                message=f"{who} serves {longest} tokens unless it is told otherwise",
                hint=_length_flag(verdict.reader.runtime, target),
            )


def _length_flag(runtime: str, target: int) -> str:
    flags = {"vllm": "--max-model-len", "sglang": "--context-length", "llama.cpp": "-c"}
    return f"serve with {flags.get(runtime, 'a length limit of')} {target}"


def _by_form(candidate: Encoding, scalings: Mapping[str, Scaling]) -> Iterator[PlanWarning]:
    if any(isinstance(s, Yarn) for s in scalings.values()) and candidate.name.startswith("native"):
        yield PlanWarning(
            code="older-transformers",
            message="transformers before 4.51 takes the raised length for the original one in yarn: its "
            "frequencies would be off by up to 124 %",
            hint="ask for transformers 4.56 or later beside the checkpoint; --runtimes transformers@4.43 looks for a "
            "form that older ones read as well",
        )
    if any(isinstance(s, Dynamic) for s in scalings.values()) and candidate.name == "theta":
        yield PlanWarning(
            code="dynamic-made-static",
            message="the runtimes named don't compute dynamic NTK alike; its static equal at the target is "
            "written as a larger rope_theta, which also holds for short inputs",
            hint="--runtimes transformers,mlx-lm keeps it dynamic",
        )


def _no_form(method: str, family: Family, carriers: str) -> RefusedError:
    return RefusedError(
        f"{method} over this base can't be written into the config of a {family.name} model",
        code="unwritable",
        file="config.json",
        key="rope_scaling",
        found=f"--carrier {carriers}",
        hint="--carrier auto allows the other forms"
        if carriers != "auto"
        else "a method that the family's own scaling can express, such as its own with another factor"
        if method == "ntk"
        else "--method ntk changes rope_theta alone",
    )


def _temperature_alone(verdict: Verdict) -> bool:
    """Whether a reader differs in nothing but the factors on cos and sin or on the softmax."""
    found = {group.differs for group in verdict.comparison.groups} - {None}
    return (
        verdict.comparison.kind == "reads-otherwise" and bool(found) and found <= {"attention factor", "softmax factor"}
    )


def _nearness(verdicts: tuple[Verdict, ...]) -> tuple[int, float]:
    """How near a candidate comes: how many readers agree, then how little the worst of the others is off."""
    return sum(v.agrees for v in verdicts), -max(v.comparison.frequency_error for v in verdicts)


def _unreadable(method: str, best: Encoding, verdicts: tuple[Verdict, ...]) -> RefusedError:
    bad = [v for v in verdicts if not v.agrees]
    failing = {v.reader.runtime for v in bad}
    good = [name for name in dict.fromkeys(v.reader.runtime for v in verdicts) if name not in failing]
    said = "; ".join(f"{v.name}: {v.comparison.cost or v.reason}" for v in bad)
    hints = []
    if good:
        hints.append(f"--runtimes {','.join(good)} if the others don't matter")
    if all(_temperature_alone(verdict) for verdict in bad):
        hints.append("--bake temperature puts the factor into the weights, where nothing needs to read it")
    if method != "ntk":
        hints.append("--method ntk changes rope_theta alone, which most read")
    return RefusedError(
        f"no way to write {method} is read alike by all the runtimes named; as {best.name}, the nearest: {said}",
        code="unreadable",
        expected="one table in every runtime",
        found=f"{len(bad)} of {len(verdicts)} readers use another one, or fail",
        hint="; ".join((*hints, "--allow unreadable writes it all the same")),
    )
