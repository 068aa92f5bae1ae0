"""Mending a checkpoint: the rope that its config means, written so that every required runtime reads it.

Nothing is extended. Where a config says two things and only one makes sense with its length, that one is
taken and said; where both could be meant, the repair is refused. Pure: the repair is a plan like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from ctxextend.changes import actions_of, digest_of, document_of, net_edits, side_edits
from ctxextend.check import is_dynamic, tables_meant
from ctxextend.comparison import compare
from ctxextend.contents import Contents
from ctxextend.encoding import Chosen, PlanWarning, choose_encoding, judge, static_tables
from ctxextend.errors import RefusedError, UsageError
from ctxextend.families import Family
from ctxextend.faults import length_meant, reach_of
from ctxextend.formats.hf_read import HfRope, RopeGroup, lost_theta, read_rope
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.formats.rope_keys import type_of
from ctxextend.inspection import Inspection
from ctxextend.plan import Plan, PlannedGroup, State, arithmetic, default_name, source_ref
from ctxextend.rope import RopeTable
from ctxextend.runtimes.transformers import Transformers5
from ctxextend.scaling import Llama3, LongRope, Rebase, Scaling, Yarn, table
from ctxextend.version import VERSION

METHOD: Final = "repair"
_ORIGINAL: Final = "original_max_position_embeddings"
_DICTIONARIES: Final = ("rope_scaling", "rope_parameters")

#: Contradictions that only the user can resolve: what to do about each.
_TWO_READINGS: Final[Mapping[str, str]] = {
    "theta-twice": "remove the rope_theta that isn't meant",
    "ignored-scaling": "remove rope_scaling; if it is meant: ctxextend convert SOURCE --method yarn --target LENGTH",
    "flat-for-nested": "remove the flat settings; if they are meant: ctxextend convert SOURCE --method yarn "
    "--target LENGTH",
    "flat-beside-nested": "remove the settings at the top level; if they are meant: ctxextend convert SOURCE "
    "--method yarn --target LENGTH writes them where they are read",
}
#: Keys that a rewritten dictionary loses, and that some reader counts with.
_COUNTED: Final = ("attn_factor", "extrapolation_factor", "short_mscale", "long_mscale")


class Resolved(Struct, frozen=True, kw_only=True):
    """A config without contradictions: the edits that make it so, and what was decided."""

    edits: tuple[Edit, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()


def make_repair(
    contents: Contents,
    inspection: Inspection,
    *,
    runtimes: tuple[str, ...],
    original_context: int | None = None,
    allow: tuple[str, ...] = (),
) -> Plan:
    """The plan that writes what the checkpoint means so that all ``runtimes`` read it.

    ``original_context``: the original length in tokens where the config has none. Raises
    :class:`RefusedError` for a config with two readings, for one of our own (which is converted again
    instead), and where no form is read alike; :class:`UsageError` for an original length that isn't missing.
    """
    _refuse(contents, inspection)
    family = inspection.family
    resolved = _resolve(contents.config, family, original_context)
    config = apply_edits(dict(contents.config), resolved.edits)
    rope = read_rope(config, family)
    _refuse_two_readings(rope)
    target = length_meant(inspection, rope)
    meant, _problem = tables_meant(config, family, rope, target)
    ropes = [(group, group.spec) for group in rope.groups if group.spec is not None]
    scaled = {group.label: group.scaling for group, _spec in ropes if group.scaling is not None}
    scalings = scaled or {group.label: Rebase(rope_theta=spec.rope_theta) for group, spec in ropes}
    form: Chosen | None = None
    edits: dict[str, tuple[Edit, ...]] = side_edits(contents, inspection, target)
    healthy = judge(config, family, meant, target=target, required=runtimes, dynamic=is_dynamic(rope))
    if resolved.edits or not all(verdict.agrees for verdict in healthy):
        form = choose_encoding(
            config,
            family,
            {group.label: spec for group, spec in ropes},
            scalings,
            target=target,
            required=runtimes,
            carriers="auto",
            method="what the config means",
            kept={label: found for label, found in meant.items() if label not in scalings},
            allow="unreadable" in allow,
        )
        changed = _keeping(rope, form.encoding.edits)
        _refuse_other_meaning(apply_edits(config, changed), family, meant, target)
        edits["config.json"] = (*resolved.edits, *changed)
    final = {name: net for name, wanted in edits.items() if (net := net_edits(document_of(contents, name), wanted))}
    warnings = (*resolved.warnings, *(form.warnings if form else ()), *_dropped(rope, edits))
    trained = inspection.trained_context
    return Plan(
        version=VERSION,
        digest=digest_of(inspection, edits, method=METHOD, trained=trained, target=target),
        source=source_ref(contents),
        family=family.name,
        method=METHOD,
        options={},
        factor=target / trained,
        arithmetic=arithmetic(trained, target),
        trained_context=trained,
        current_context=inspection.current_context,
        target_context=target,
        reasons=_reasons(final, form),
        runtimes=runtimes,
        groups=tuple(_planned(group, scalings, form, target) for group in rope.groups),
        actions=actions_of(contents, final),
        misread=form.misread if form else (),
        warnings=warnings,
        out=default_name(contents.name, "fixed", target),
    )


def _refuse(contents: Contents, inspection: Inspection) -> None:
    """What can't be mended at all. Raises :class:`RefusedError`."""
    rope = inspection.rope
    if rope is None or all(group.spec is None for group in rope.groups):
        raise RefusedError(
            f"this {inspection.family.name} model has no rope to mend",
            code="no-rope",
            file="config.json",
            key="model_type",
            found=str(inspection.model_type),
        )
    record = inspection.record
    if record is not None:
        raise RefusedError(
            "an earlier conversion of ctxextend wrote this rope, and starts from what was before it",
            code="ours",
            file="config.json",
            key="ctxextend",
            found=f"{record.method} to {record.target_context}",
            hint=f"ctxextend convert {contents.source} --method {record.method} --target {record.target_context}",
        )


def _refuse_two_readings(rope: HfRope) -> None:
    for note in rope.notes:
        if note.code in _TWO_READINGS:
            raise _ambiguous(note.message, hint=_TWO_READINGS[note.code])


def _refuse_other_meaning(
    edited: Mapping[str, Any], family: Family, meant: Mapping[str, RopeTable], target: int
) -> None:
    """Settings that transformers takes otherwise than they read: writing them anew would change the model."""
    now = Transformers5().effective(edited, family, length=target)
    comparison = compare(now, static_tables(meant), target=target)
    if comparison.kind == "reads-otherwise":
        raise _ambiguous(
            f"transformers takes its settings otherwise than they say ({comparison.cost})",
            hint="remove the key that transformers passes over (truncate beside layer types, a partial_rotary_factor "
            "that isn't the family's), or convert anew from the publisher's config",
        )


def _keeping(rope: HfRope, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """The edits, with the key that says whether the weights were trained with the scaling."""
    said = next((g.settings["finetuned"] for g in rope.groups if "finetuned" in g.settings), None)
    if said is None:
        return edits
    return tuple(
        msgspec.structs.replace(edit, value={**edit.value, "finetuned": said})
        if edit.path[-1] in _DICTIONARIES and isinstance(edit.value, dict)
        else edit
        for edit in edits
    )


def _dropped(rope: HfRope, edits: Mapping[str, tuple[Edit, ...]]) -> Iterator[PlanWarning]:
    lost = [key for group in rope.groups for key in _COUNTED if key in group.settings]
    if lost and "config.json" in edits:
        yield PlanWarning(
            code="dropped-keys",
            message=f"{', '.join(dict.fromkeys(lost))}: transformers passes over them, and they are left away",
        )


def _resolve(config: Mapping[str, Any], family: Family, original_context: int | None) -> Resolved:
    """The config with one reading: one contradiction after the other. Raises where two make sense, or none."""
    edits: tuple[Edit, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()
    notes = {note.code for note in read_rope(config, family).notes}
    if original_context is not None and "original-length-missing" not in notes:
        raise UsageError(
            "--original-context is for a scaling without an original length, and this one has it",
            code="bad-option",
            key="--original-context",
            hint="leave it away",
        )
    for step in (_base, _missing_original, _dictionaries, _originals):
        standing = apply_edits(dict(config), edits)
        found = step(standing, family, read_rope(standing, family), original_context)
        edits, warnings = (*edits, *found.edits), (*warnings, *found.warnings)
    return Resolved(edits=edits, warnings=warnings)


def _said(rope: HfRope, code: str) -> str | None:
    return next((note.message for note in rope.notes if note.code == code), None)


def _base(config: Mapping[str, Any], family: Family, rope: HfRope, _given: int | None) -> Resolved:
    lost, message = lost_theta(config, family), _said(rope, "theta-lost")
    if lost is None or message is None:
        return Resolved()
    return Resolved(
        edits=(lost,), warnings=(PlanWarning(code="repaired", message=f"{message}; {lost.value} was taken"),)
    )


def _missing_original(config: Mapping[str, Any], family: Family, rope: HfRope, given: int | None) -> Resolved:
    message = _said(rope, "original-length-missing")
    if message is None:
        return Resolved()
    stated = rope.max_position_embeddings
    factor = next((g.scaling.factor for g in rope.groups if isinstance(g.scaling, Yarn)), 1.0)
    if given is None:
        raise _ambiguous(
            message,
            hint=f"--original-context {stated} if the length wasn't raised with the scaling, {round(stated / factor)} "
            "if it was, else the length that the weights were trained for",
        )
    edits = tuple(_original_edits(rope, given))
    if not _makes_sense(read_rope(apply_edits(dict(config), edits), family)):
        raise _ambiguous(
            f"an original length of {given} doesn't go with the factor and the stated length of {stated}",
            hint=f"--original-context {round(stated / factor)} does",
        )
    return Resolved(edits=edits)


def _dictionaries(config: Mapping[str, Any], family: Family, rope: HfRope, _given: int | None) -> Resolved:
    message = _said(rope, "both-dictionaries")
    if message is None:
        return Resolved()
    if family.form == "nested":
        raise _ambiguous(message, hint="make rope_parameters say what rope_scaling says, or take one out")
    if _only_older_scaled(rope):
        said = "rope_scaling has a scaling and rope_parameters has none: the scaling was taken, as transformers does"
        newer = Edit(path=(*rope.path, "rope_parameters"))
        return Resolved(edits=(newer,), warnings=(PlanWarning(code="repaired", message=said),))
    return _only_sensible(config, family, rope, tuple(_one_dictionary(rope)), message)


def _originals(config: Mapping[str, Any], family: Family, rope: HfRope, _given: int | None) -> Resolved:
    message = _said(rope, "original-length-twice")
    if message is None:
        return Resolved()
    return _only_sensible(config, family, rope, tuple(_one_original(rope)), message)


def _only_sensible(
    config: Mapping[str, Any],
    family: Family,
    rope: HfRope,
    variants: tuple[tuple[str, tuple[Edit, ...]], ...],
    message: str,
) -> Resolved:
    """The variant that goes with the stated length, if exactly one does."""
    sensible = [
        (said, edits) for said, edits in variants if _makes_sense(read_rope(apply_edits(dict(config), edits), family))
    ]
    if len(sensible) != 1:
        raise _ambiguous(
            message,
            hint=f"{'both' if sensible else 'neither'} would go with the stated length of "
            f"{rope.max_position_embeddings}: take out the one that isn't meant",
        )
    said, edits = sensible[0]
    warning = PlanWarning(code="repaired", message=f"{message}; {said} goes with the stated length and was taken")
    return Resolved(edits=edits, warnings=(warning,))


def _makes_sense(rope: HfRope) -> bool:
    """Whether the scaling and the stated length go together."""
    stated = rope.max_position_embeddings
    for group in rope.groups:
        match group.scaling:
            case Yarn():
                if stated not in (reach_of(group.scaling), group.scaling.original_max_position_embeddings):
                    return False
            case Llama3() | LongRope():
                if group.scaling.original_max_position_embeddings >= stated:
                    return False
            case _:
                pass
    return True


def _original_edits(rope: HfRope, original: int) -> Iterator[Edit]:
    for key in _DICTIONARIES:
        if rope.text.get(key):
            yield Edit(path=(*rope.path, key, _ORIGINAL), value=original)


def _only_older_scaled(rope: HfRope) -> bool:
    """A scaling that was added to rope_scaling beside a plain rope_parameters: it was meant."""
    older, newer = (rope.text[key] for key in _DICTIONARIES)
    return type_of(older) != "default" and type_of(newer) == "default"


def _one_original(rope: HfRope) -> Iterator[tuple[str, tuple[Edit, ...]]]:
    outer = rope.text[_ORIGINAL]
    yield f"the one in the settings, not the top level's {outer},", (Edit(path=(*rope.path, _ORIGINAL)),)
    yield f"the top level's {outer}", tuple(_original_edits(rope, outer))


def _one_dictionary(rope: HfRope) -> Iterator[tuple[str, tuple[Edit, ...]]]:
    for key, other in (_DICTIONARIES, _DICTIONARIES[::-1]):
        yield key, (Edit(path=(*rope.path, other)),)


def _ambiguous(message: str, *, hint: str) -> RefusedError:
    return RefusedError(
        f"the config can be read in two ways: {message}",
        code="two-readings",
        file="config.json",
        expected="one sensible reading",
        hint=hint,
    )


def _reasons(final: Mapping[str, tuple[Edit, ...]], form: Chosen | None) -> tuple[str, ...]:
    if not final:
        return ("nothing: every required runtime reads the checkpoint as it is",)
    if form is None:
        return ("the limits beside the config; every required runtime reads the config as it is",)
    return (f"what the config means, written as {form.encoding.name}, which every required runtime reads alike",)


def _planned(group: RopeGroup, scalings: Mapping[str, Scaling], form: Chosen | None, target: int) -> PlannedGroup:
    if group.spec is None:
        return PlannedGroup(label=group.label, layers=group.layers, extended=False, before=None, after=None)
    now = table(group.spec, group.scaling, length=target)
    before = State(rope_theta=group.spec.rope_theta, scaling=group.scaling, table=now)
    if form is None or group.label not in scalings:
        return PlannedGroup(label=group.label, layers=group.layers, extended=False, before=before, after=before)
    scaling = scalings[group.label]
    return PlannedGroup(
        label=group.label,
        layers=group.layers,
        extended=True,
        before=before,
        after=State(
            rope_theta=form.rope_theta.get(group.label, group.spec.rope_theta),
            scaling=scaling,
            table=table(group.spec, scaling, length=target),
            encoding=form.encoding.name,
        ),
    )
