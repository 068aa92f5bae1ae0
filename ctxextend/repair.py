"""Mending a checkpoint: the rope that its config means, written so that every required runtime reads it.

Nothing is extended. Where a config says two things and only one makes sense with its length, that one is
taken and said; where both could be meant, the repair is refused. Pure: the repair is a plan like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from ctxextend.changes import actions_of, digest_of, document_of, net_edits, side_edits
from ctxextend.contents import Contents
from ctxextend.encoding import Chosen, PlanWarning, choose_encoding
from ctxextend.errors import RefusedError
from ctxextend.families import Family
from ctxextend.faults import length_meant, reach_of
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.formats.rope_keys import type_of
from ctxextend.inspection import Inspection
from ctxextend.plan import Plan, PlannedGroup, State, arithmetic, default_name, source_ref
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Llama3, LongRope, Rebase, Scaling, Yarn, table
from ctxextend.version import VERSION

METHOD: Final = "repair"
_ORIGINAL: Final = "original_max_position_embeddings"
_DICTIONARIES: Final = ("rope_scaling", "rope_parameters")

#: Contradictions that only the user can resolve: what to do about each.
_TWO_READINGS: Final[Mapping[str, str]] = {
    "theta-twice": "remove the rope_theta that isn't meant",
    "flat-beside-nested": "remove the settings at the top level; if they are meant: ctxextend convert SOURCE "
    "--method yarn --target LENGTH writes them where they are read",
}


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
    instead), and where no form is read alike.
    """
    _refuse(contents, inspection)
    family = inspection.family
    resolved = _resolve(contents.config, family, original_context)
    config = apply_edits(dict(contents.config), resolved.edits)
    rope = read_rope(config, family)
    target = length_meant(inspection, rope)
    ropes = [(group, group.spec) for group in rope.groups if group.spec is not None]
    specs: dict[str, RopeSpec] = {group.label: spec for group, spec in ropes}
    scalings = {g.label: g.scaling or Rebase(rope_theta=spec.rope_theta) for g, spec in ropes}
    chosen = choose_encoding(
        config,
        family,
        specs,
        scalings,
        target=target,
        required=runtimes,
        carriers="auto",
        method="what the config means",
        allow="unreadable" in allow,
    )
    edits = {
        "config.json": (*resolved.edits, *chosen.encoding.edits),
        **side_edits(contents, inspection, target),
    }
    final = {name: net for name, wanted in edits.items() if (net := net_edits(document_of(contents, name), wanted))}
    return Plan(
        version=VERSION,
        digest=digest_of(inspection, edits, method=METHOD, trained=inspection.trained_context, target=target),
        source=source_ref(contents),
        family=family.name,
        method=METHOD,
        options={},
        factor=target / inspection.trained_context,
        arithmetic=arithmetic(inspection.trained_context, target),
        trained_context=inspection.trained_context,
        current_context=inspection.current_context,
        target_context=target,
        reasons=_reasons(final, chosen),
        runtimes=runtimes,
        groups=tuple(_planned(group, scalings, chosen, target) for group in rope.groups),
        actions=actions_of(contents, final),
        misread=chosen.misread,
        warnings=(*resolved.warnings, *chosen.warnings),
        out=default_name(contents.name, "fixed", target),
    )


def _refuse(contents: Contents, inspection: Inspection) -> None:
    """What can't be mended without knowing more. Raises :class:`RefusedError`."""
    if inspection.rope is None:
        raise RefusedError(
            f"a model of the family {inspection.family.name} has no rope to mend",
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
    for note in inspection.rope.notes:
        if note.code in _TWO_READINGS:
            raise _ambiguous(note.message, hint=_TWO_READINGS[note.code])


def _resolve(config: Mapping[str, Any], family: Family, original_context: int | None) -> Resolved:
    """The config with one reading. Raises :class:`RefusedError` where two make sense, or none."""
    rope = read_rope(config, family)
    notes = {note.code: note.message for note in rope.notes}
    if "original-length-missing" in notes:
        if original_context is None:
            stated = rope.max_position_embeddings
            raise _ambiguous(
                notes["original-length-missing"],
                hint=f"--original-context {stated} if the length wasn't raised with the scaling, else the length "
                "that the weights were trained for",
            )
        return Resolved(edits=tuple(_original_edits(rope, original_context)))
    if "both-dictionaries" in notes and _only_older_scaled(rope):
        said = "rope_scaling has a scaling and rope_parameters has none: the scaling was taken, as transformers does"
        newer = Edit(path=(*rope.path, "rope_parameters"))
        return Resolved(edits=(newer,), warnings=(PlanWarning(code="repaired", message=said),))
    for code, variants in (("original-length-twice", _one_original), ("both-dictionaries", _one_dictionary)):
        if code in notes:
            return _only_sensible(config, family, rope, tuple(variants(rope)), notes[code])
    return Resolved()


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


def _reasons(final: Mapping[str, tuple[Edit, ...]], chosen: Chosen) -> tuple[str, ...]:
    if not final:
        return ("nothing: every required runtime reads the checkpoint as it is",)
    return (f"what the config means, written as {chosen.encoding.name}, which every required runtime reads alike",)


def _planned(group: RopeGroup, scalings: Mapping[str, Scaling], chosen: Chosen, target: int) -> PlannedGroup:
    if group.spec is None:
        return PlannedGroup(label=group.label, layers=group.layers, extended=False, before=None, after=None)
    scaling = scalings[group.label]
    now = table(group.spec, group.scaling, length=target)
    return PlannedGroup(
        label=group.label,
        layers=group.layers,
        extended=True,
        before=State(rope_theta=group.spec.rope_theta, scaling=group.scaling, table=now),
        after=State(
            rope_theta=chosen.rope_theta.get(group.label, group.spec.rope_theta),
            scaling=scaling,
            table=table(group.spec, scaling, length=target),
            encoding=chosen.encoding.name,
        ),
    )
