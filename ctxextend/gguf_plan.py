"""Plans for GGUF files: the keys and small rope tensors that make llama.cpp read the planned table. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ctxextend.changes import Action, Carry, TensorChange, gguf_actions, gguf_sha256
from ctxextend.contents import Contents, Gguf, GgufEdits, GgufValue
from ctxextend.encoding import PlanWarning, cautions, static_tables
from ctxextend.errors import UsageError
from ctxextend.formats.gguf_keys import CONTEXT, FACTOR, TYPE, read_rope
from ctxextend.formats.gguf_write import applied, encodings
from ctxextend.gguf_encoding import ChosenGguf, choose_gguf, judge_gguf
from ctxextend.gguf_inspection import gguf_of
from ctxextend.gguf_record import find_gguf_record, net_edits, recorded, require_unbaked, without_record
from ctxextend.inspection import Inspection
from ctxextend.methods import extension_factor
from ctxextend.methods.base import Base
from ctxextend.plan import (
    Plan,
    arithmetic,
    default_name,
    in_weights,
    planned_groups,
    require_auto,
    require_decided,
    source_ref,
    standing_tables,
    warnings_about,
    within_trained,
)
from ctxextend.recipe import Recipe, bakes_buffers, bakes_temperature, resolve_target
from ctxextend.record import InWeights
from ctxextend.rope import RopeTable
from ctxextend.runtimes import GGUF_RUNTIMES, gguf_readers_of
from ctxextend.scaling import Dynamic, Scaling, table
from ctxextend.solving import Chooser, Solution, solve, wanted_bases
from ctxextend.version import VERSION


class Change(Struct, frozen=True, kw_only=True):
    """What becomes of a file: ``base`` with the edits ``wanted``, where ``current`` lies now.

    ``tables``: what each group is to have at ``target`` tokens. ``solution`` is None where no rope is scaled.
    ``recorded``: the file will know what was done to it; ``marked``: also where nothing is changed. ``reverted``:
    what isn't scaled is as before an earlier conversion of ours. ``baked``: what the weights hold beside; ``tensors``:
    what is done to the source's as they are read.
    """

    current: Gguf
    base: Gguf
    wanted: GgufEdits
    method: str
    target: int
    tables: Mapping[str, RopeTable]
    reasons: tuple[str, ...]
    solution: Solution[ChosenGguf] | None = None
    recorded: bool = True
    marked: bool = False
    reverted: bool = False
    baked: InWeights | UnsetType = UNSET
    tensors: tuple[TensorChange, ...] = ()


def make_gguf_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for ``recipe`` on an inspected GGUF file. Pure.

    Raises :class:`RefusedError` (with the hint that overrides it) and :class:`UsageError`.
    """
    gguf = gguf_of(contents)
    if recipe.sliding_window != "keep":
        raise UsageError(
            "the windows of a GGUF file are part of its architecture",
            code="bad-option",
            file=gguf.file,
            key="--sliding-window",
            hint="leave it at keep, or convert the safetensors checkpoint and export that",
        )
    if bakes_temperature(recipe):
        raise UsageError(
            "the weights of a GGUF file stay as they are, and llama.cpp takes a temperature from its key",
            code="bad-option",
            file=gguf.file,
            key="--bake",
            expected="none, or buffers for the frequency tensor",
            found=recipe.bake,
            hint="bake the safetensors checkpoint, and export that: --to gguf --bake temperature",
        )
    refuse_native_buffers(recipe)
    record = find_gguf_record(gguf)
    require_unbaked(record, gguf.file)
    trained = inspection.trained_context
    target = resolve_target(recipe, trained)
    name = gguf.architecture
    require_decided(inspection, recipe, file=gguf.file, key=f"{name}.{TYPE}", original_key=f"{name}.{FACTOR}")
    base = without_record(gguf, record)
    if target <= trained:
        require_auto(recipe, trained, target)
        return assemble_gguf(contents, inspection, recipe, _within_trained(gguf, inspection, base, target))
    wanted = wanted_bases(inspection, recipe)
    if not wanted:
        change, caution = lengths_only(gguf, base, inspection, target)
        return assemble_gguf(contents, inspection, recipe, change, warnings=(caution,))
    change = solved_change(gguf, base, inspection, recipe, wanted, target)
    return assemble_gguf(contents, inspection, recipe, change)


def refuse_native_buffers(recipe: Recipe) -> None:
    """Raises :class:`UsageError` where the frequency tensor is asked for and forbidden at once."""
    if bakes_buffers(recipe) and recipe.carrier == "native":
        raise UsageError(
            "the frequency tensor of a GGUF file is a carrier, and only native forms are allowed",
            code="bad-option",
            key="--carrier",
            expected="auto or factors beside --bake buffers",
            found=recipe.carrier,
            hint="leave one of them away",
        )


def solved_change(
    current: Gguf, base: Gguf, inspection: Inspection, recipe: Recipe, wanted: Mapping[str, Base], target: int
) -> Change:
    """What extends the layers ``wanted`` to ``target`` tokens, in a form that llama.cpp reads as planned.

    Raises :class:`RefusedError` where there is none.
    """
    factor = extension_factor(inspection.trained_context, target)
    solution, reasons = solve(recipe, wanted, target, factor, _chooser(base, inspection, recipe, target))
    return Change(
        current=current,
        base=base,
        wanted=solution.chosen.encoding.edits,
        method=solution.method,
        target=target,
        tables=planned_tables(inspection, solution.scalings, target),
        reasons=reasons,
        solution=solution,
        baked=in_weights(solution),
    )


def _chooser(base: Gguf, inspection: Inspection, recipe: Recipe, target: int) -> Chooser[ChosenGguf]:
    """Forms in a GGUF file whose header, before anything is done to it, is ``base``."""
    rope = read_rope(base)

    def choose(_method: str, scalings: Mapping[str, Scaling]) -> ChosenGguf:
        return choose_gguf(
            base,
            encodings(base, rope, rope.specs, scalings, target=target),
            planned_tables(inspection, scalings, target),
            target=target,
            carriers="factors" if bakes_buffers(recipe) else recipe.carrier,
            allow="unreadable" in recipe.allow,
        )

    return choose


def planned_tables(inspection: Inspection, scalings: Mapping[str, Scaling], target: int) -> dict[str, RopeTable]:
    """The table that each group with a rope is to have at ``target`` tokens; those without a scaling keep theirs."""
    bases: dict[str, Base] = {g.label: g.base for g in inspection.groups if g.base is not None}
    planned = {
        label: table(base.spec, scalings[label], length=target) if label in scalings else base.table()
        for label, base in bases.items()
    }
    # No file says that a base follows the length: its static equal is written.
    return static_tables(planned) if any(isinstance(s, Dynamic) for s in scalings.values()) else planned


def gguf_warnings(chosen: ChosenGguf, scalings: Mapping[str, Scaling]) -> Iterator[PlanWarning]:
    """What is to be said of the form that was chosen."""
    if chosen.cost is not None:
        yield PlanWarning(code="unreadable", message=f"llama.cpp doesn't read the planned table: {chosen.cost}")
    if any(isinstance(scaling, Dynamic) for scaling in scalings.values()):
        yield PlanWarning(
            code="dynamic-made-static",
            message="no GGUF file says that a base follows the length; its static equal at the target is written as "
            "a larger rope.freq_base, which also holds for short inputs",
        )


def _within_trained(current: Gguf, inspection: Inspection, base: Gguf, target: int) -> Change:
    """The file as it is, or was before a conversion of ours; a stated length below the target is raised."""
    stated, key = read_rope(base).context_length, f"{base.architecture}.{CONTEXT}"
    trained = inspection.trained_context
    raised = stated < target
    reverted = find_gguf_record(current) is not None
    return Change(
        current=current,
        base=base,
        wanted=GgufEdits(keys={key: GgufValue(type="UINT32", value=trained)}) if raised else GgufEdits(),
        method="none",
        target=target,
        tables=standing_tables(inspection, target, reverted=reverted),
        reasons=(within_trained(inspection, target, reverted=reverted),),
        reverted=reverted,
    )


def lengths_only(current: Gguf, base: Gguf, inspection: Inspection, target: int) -> tuple[Change, PlanWarning]:
    """No layer with a rope sees further than its window: only the stated length changes; and what to say of it."""
    window = next((group.window for group in inspection.groups if group.window is not None), None)
    change = Change(
        current=current,
        base=base,
        wanted=GgufEdits(keys={f"{current.architecture}.{CONTEXT}": GgufValue(type="UINT32", value=target)}),
        method="none",
        target=target,
        tables=standing_tables(inspection, target),
        reasons=("none: no layer's rope sees past its window",),
    )
    return change, PlanWarning(
        code="nothing-to-scale",
        message=f"every layer with a rope sees a window of {window} tokens only, so no frequency is scaled; the stated "
        "length is raised",
    )


def assemble_gguf(
    contents: Contents,
    inspection: Inspection,
    recipe: Recipe,
    change: Change,
    *,
    actions: tuple[Action, ...] | None = None,
    warnings: Iterable[PlanWarning] = (),
) -> Plan:
    """The plan of a change. ``actions``: what is done beside the edits; by default, the files are carried."""
    trained, target, method, solution = inspection.trained_context, change.target, change.method, change.solution
    digest, edits = settled(change, inspection)
    final = applied(change.current, edits)
    verdicts = judge_gguf(final, change.tables, target=target, required=recipe.runtimes)
    said: list[PlanWarning] = [*warnings]
    if solution is not None:
        said += [*solution.warnings, *gguf_warnings(solution.chosen, solution.scalings)]
        said += warnings_about(inspection, target=target, fine_tune=recipe.fine_tune)
    said += [
        *_removals(change.base, change.wanted),
        *_unheard(recipe),
        *cautions(verdicts, max(target, trained), frozenset()),
    ]
    written = {label: spec.rope_theta for label, spec in read_rope(final).specs.items()}
    return Plan(
        version=VERSION,
        digest=digest,
        source=source_ref(contents),
        family=inspection.family.name,
        method=method,
        options=solution.options if solution is not None else {},
        factor=extension_factor(trained, target) if target > trained else 1.0,
        arithmetic=arithmetic(trained, target),
        trained_context=trained,
        current_context=inspection.current_context,
        target_context=target,
        reasons=change.reasons,
        runtimes=recipe.runtimes,
        misread=tuple(verdict.name for verdict in verdicts if not verdict.agrees),
        groups=planned_groups(
            inspection,
            target,
            scalings=solution.scalings if solution is not None else {},
            rope_theta=written,
            encoding=solution.chosen.encoding.name if solution is not None else None,
            reverted=change.reverted,
            folded=solution.folded if solution is not None else {},
        ),
        actions=(*gguf_actions(change.current, edits), *(_carried(contents) if actions is None else actions)),
        warnings=tuple(dict.fromkeys(said)),
        out=default_gguf_name(contents, method, target),
        to="gguf",
    )


def settled(change: Change, inspection: Inspection) -> tuple[str, GgufEdits]:
    """The digest of a change, and the edits of the file as it lies, with the record that takes them back."""
    trained, base, wanted = inspection.trained_context, change.base, change.wanted
    digest = _digest(change, trained=trained)
    if change.recorded and (change.marked or wanted != GgufEdits()):
        wanted = recorded(
            base,
            wanted,
            version=VERSION,
            method=change.method,
            trained=trained,
            target=change.target,
            digest=digest,
            taken_as=_taken_as(inspection, base),
            baked=change.baked,
        )
    return digest, net_edits(change.current, base, wanted)


def _taken_as(inspection: Inspection, base: Gguf) -> Literal["trained", "unscaled"] | UnsetType:
    """What a scaling in the base is taken for: a file alone doesn't tell of which family it is."""
    bases = [group.base for group in inspection.groups if group.base is not None]
    if any(one.scaling is not None for one in bases):
        return "trained"
    scaled = bool(bases) and any(group.scaling is not None for group in read_rope(base).groups)
    return "unscaled" if scaled else UNSET


def _removals(base: Gguf, wanted: GgufEdits) -> Iterator[PlanWarning]:
    """What the source's writer had put there, and is taken away."""
    gone = [*(key for key in wanted.removed if key in base.values), *wanted.removed_tensors]
    if gone:
        yield PlanWarning(
            code="removed-keys",
            message=f"{', '.join(gone)}: dead in this architecture, or contradicting the new scaling; taken away",
        )


def _unheard(recipe: Recipe) -> Iterator[PlanWarning]:
    if not gguf_readers_of(recipe.runtimes):
        yield PlanWarning(
            code="no-reader-named",
            message=f"none of the runtimes named reads GGUF files ({', '.join(recipe.runtimes)}); the file is held to "
            "what llama.cpp reads",
            hint=f"--runtimes {','.join(GGUF_RUNTIMES)}",
        )


def _carried(contents: Contents) -> tuple[Action, ...]:
    return (Carry(files=tuple(file.path for file in contents.files), size_bytes=contents.size_bytes),)


def default_gguf_name(contents: Contents, method: str, target: int) -> str:
    """``NAME-METHOD-128k.gguf``; without the ending for the folder that a split file becomes."""
    name = default_name(contents.name, method, target)
    return name if len(contents.files) > 1 and contents.gguf is not None else f"{name}.gguf"


def _digest(change: Change, *, trained: int) -> str:
    value = {
        "base": gguf_sha256(change.base),
        "edits": msgspec.to_builtins(change.wanted),
        "method": change.method,
        "trained": trained,
        "target": change.target,
    }
    if change.tensors:
        value["tensors"] = msgspec.to_builtins(change.tensors)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
