"""From what a checkpoint is and what is wanted to what will happen: a plan, as a value.

``--dry-run``, ``convert``, recipes and the Python API all make the same plan. It can be printed,
saved, compared and replayed; on the same source it always gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ctxextend.bake import own_buffers, refuse_second_fold, tensor_changes, to_do
from ctxextend.changes import (
    Action,
    DropTensor,
    EditJson,
    PutTensor,
    actions_of,
    digest_of,
    gguf_sha256,
    side_edits,
    taken_back,
    with_record,
)
from ctxextend.contents import Contents
from ctxextend.copies import without_other_weights
from ctxextend.encoding import Chosen, PlanWarning, Verdict, judge, static_tables, warnings_of
from ctxextend.errors import RefusedError
from ctxextend.families import Position
from ctxextend.faults import Subject, faults
from ctxextend.formats.hf_read import read_rope
from ctxextend.formats.hf_write import length_edits
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.inspection import Group, Inspection, window_edits
from ctxextend.lengths import show_tokens
from ctxextend.methods import extension_factor
from ctxextend.methods.auto import TRAINING_FREE_WARNING_ABOVE
from ctxextend.methods.base import Base
from ctxextend.recipe import Recipe, bakes_buffers, resolve_target
from ctxextend.record import InWeights, path_of
from ctxextend.rope import RopeTable
from ctxextend.scaling import Scaling, table
from ctxextend.solving import Solution, Temperature, config_chooser, solve, wanted_bases
from ctxextend.version import VERSION

SCHEMA: Final = "ctxextend.plan/1"

#: Faults that a right conversion can leave in its result: the runtimes differ there however it is written.
_WRITTEN_FAULTS: Final = frozenset({"latent-without-pair", "longrope-switches"})


#: Notes of an inspection that whoever converts must see.
_CARRIED_NOTES: Final = frozenset(
    {
        "params-json",
        "consolidated-weights",
        "auto-map",
        "rotary-buffers",
        "theta-lost",
        "ignored-scaling",
        "edit-undone",
    }
)


class State(Struct, frozen=True, kw_only=True):
    """A group's rope at one end of the plan. ``table`` is at the target; ``encoding`` names the form written."""

    rope_theta: float
    scaling: Scaling | None
    table: RopeTable
    encoding: str | None = None


class PlannedGroup(Struct, frozen=True, kw_only=True):
    """One group of layers, before and after. Layers without a rope have neither.

    ``folded``: the temperature that their weights hold; ``after`` is then what is left to runtimes.
    """

    label: str
    layers: tuple[int, ...]
    extended: bool
    before: State | None
    after: State | None
    folded: Temperature | None = None


class SourceRef(Struct, frozen=True, kw_only=True):
    """What the plan was made for: replaying it on a checkpoint with another config is refused.

    ``config_sha256`` is of config.json, or of what the keys and rope tensors of a GGUF file say.
    """

    name: str
    source: str
    revision: str | None
    config_sha256: str


class Plan(Struct, frozen=True, kw_only=True):
    """What will happen. ``digest`` identifies the change itself, whatever the checkpoint is called.

    ``misread``: the readers that are known to read another table in the result; a warning says so of each.
    ``to``: the format of the result. ``position``: how positions reach attention; ``groups`` are of ropes alone.
    """

    schema: str = SCHEMA
    version: str
    digest: str
    source: SourceRef
    family: str
    method: str
    options: Mapping[str, Any]
    factor: float
    arithmetic: str
    trained_context: int
    current_context: int
    target_context: int
    reasons: tuple[str, ...]
    runtimes: tuple[str, ...]
    misread: tuple[str, ...] = ()
    groups: tuple[PlannedGroup, ...]
    actions: tuple[Action, ...]
    warnings: tuple[PlanWarning, ...]
    out: str
    to: Literal["safetensors", "gguf"] = "safetensors"
    position: Position = "rope"


def make_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for ``recipe`` on an inspected checkpoint. Pure.

    Raises :class:`RefusedError` (with the hint that overrides it) and :class:`UsageError`.
    """
    require_rope(inspection)
    trained = inspection.trained_context
    target = resolve_target(recipe, trained)
    require_decided(
        inspection,
        recipe,
        file="config.json",
        key="rope_scaling",
        original_key="rope_scaling.original_max_position_embeddings",
    )
    windows = _window_edits(inspection, recipe, target)
    if target <= trained:
        return _nothing_to_do(contents, inspection, recipe, target)
    factor = extension_factor(trained, target)
    wanted = wanted_bases(inspection, recipe)
    if not wanted:
        return _lengths_only(contents, inspection, recipe, target, windows)
    solution, reasons = solve(
        recipe, wanted, target, factor, config_chooser(inspection, recipe, wanted, target, windows)
    )
    return assemble(contents, inspection, recipe, target=target, solution=solution, windows=windows, reasons=reasons)


def require_rope(inspection: Inspection) -> None:
    """Refuse a model that has none, with the reason. Raises :class:`RefusedError`."""
    if inspection.rope is not None:
        return
    family = inspection.family
    note = inspection.notes[-1].message
    raise RefusedError(
        f"a model of the family {family.name} can't be extended by scaling its rope: {note}",
        code="no-rope" if family.refusal is None else "refused-family",
        file="config.json",
        key="model_type",
        found=str(inspection.model_type),
        hint="'ctxextend inspect' says what is possible for it",
    )


def require_decided(inspection: Inspection, recipe: Recipe, *, file: str, key: str, original_key: str) -> None:
    """Refuse what can't be told of the base. ``file`` and the keys say where it stands.

    Raises :class:`RefusedError`.
    """
    for group in inspection.groups:
        if group.origin == "undecided":
            kind = type(group.scaling).__struct_config__.tag if group.scaling is not None else ""
            raise RefusedError(
                f"nothing tells whether the {kind} scaling of {group.label} was trained in or added afterwards",
                code="undecidable-base",
                file=file,
                key=key,
                expected="a scaling that the family's published models have",
                found=str(kind),
                hint="--base trained if the weights were trained with it (the extension starts from it), "
                "--base unscaled if it was only written into the checkpoint (it is taken off first)",
            )
    if recipe.original_context is None:
        for note in inspection.notes:
            if note.code == "original-length-unknown":
                raise RefusedError(
                    f"the trained length can't be told: {note.message}",
                    code="undecidable-length",
                    file=file,
                    key=original_key,
                    found="none",
                    hint=f"--original-context {inspection.trained_context}, or the length that is true",
                )


def _window_edits(inspection: Inspection, recipe: Recipe, target: int) -> tuple[Edit, ...]:
    """The edits that widen or remove a sliding window."""
    if recipe.sliding_window == "keep" or inspection.rope is None:
        return ()
    return window_edits(inspection.family, inspection.rope, target if recipe.sliding_window == "target" else None)


def assemble(
    contents: Contents,
    inspection: Inspection,
    recipe: Recipe,
    *,
    target: int,
    solution: Solution[Chosen],
    windows: tuple[Edit, ...],
    reasons: tuple[str, ...],
    baked: InWeights | UnsetType = UNSET,
) -> Plan:
    """The plan of a solution. ``windows``: the edits of sliding windows; ``baked``: what the weights hold already."""
    trained = inspection.trained_context
    edits = {
        "config.json": (*windows, *solution.chosen.encoding.edits),
        **side_edits(contents, inspection, target),
    }
    groups = planned_groups(
        inspection,
        target,
        scalings=solution.scalings,
        rope_theta=solution.chosen.rope_theta,
        encoding=solution.chosen.encoding.name,
        folded=solution.folded,
    )
    tables = {group.label: group.after.table for group in groups if group.after is not None}
    if solution.chosen.encoding.name == "theta":
        tables = static_tables(tables)
    tensors, baking = tensor_changes(contents, inspection, recipe, solution, tables)
    refuse_second_fold(contents, inspection, tensors)
    digest = digest_of(inspection, edits, method=solution.method, trained=trained, target=target, tensors=tensors)
    final = with_record(
        contents,
        inspection,
        edits,
        digest,
        method=solution.method,
        target=target,
        baked=baked or in_weights(solution),
        buffers=True if bakes_buffers(recipe) else UNSET,
    )
    warnings = (
        *solution.warnings,
        *solution.chosen.warnings,
        *baking,
        *warnings_about(inspection, target=target, fine_tune=recipe.fine_tune),
        *_faults_written(contents, inspection, final, target),
    )
    doing = to_do(contents, inspection, tensors, digest)
    actions, left_out = without_other_weights(actions_of(contents, final, doing), contents)
    if any(isinstance(change, DropTensor | PutTensor) for change in tensors):
        # What they say is mended here.
        warnings = tuple(warning for warning in warnings if warning.code != "rotary-buffers")
    return Plan(
        version=VERSION,
        digest=digest,
        source=source_ref(contents),
        family=inspection.family.name,
        method=solution.method,
        options=solution.options,
        factor=extension_factor(trained, target),
        arithmetic=arithmetic(trained, target),
        trained_context=trained,
        current_context=inspection.current_context,
        target_context=target,
        reasons=reasons,
        runtimes=recipe.runtimes,
        groups=groups,
        actions=actions,
        misread=solution.chosen.misread,
        warnings=tuple(dict.fromkeys((*warnings, *left_out))),
        out=default_name(contents.name, solution.method, target),
    )


def in_weights(solution: Solution[Any]) -> InWeights | UnsetType:
    """What of a solution no edit takes out of the weights again."""
    return "temperature" if solution.folded else UNSET


def _nothing_to_do(contents: Contents, inspection: Inspection, recipe: Recipe, target: int) -> Plan:
    """``auto`` within the trained length: a plan that carries everything and changes nothing."""
    trained = inspection.trained_context
    require_auto(recipe, trained, target)
    stated = inspection.rope.max_position_embeddings if inspection.rope else target
    edits: dict[str, tuple[Edit, ...]] = {}
    if inspection.rope is not None and stated < target:
        edits = {"config.json": length_edits(inspection.config, inspection.rope, trained)}
    return plain_plan(
        contents,
        inspection,
        recipe,
        edits,
        method="none",
        target=target,
        reasons=(within_trained(inspection, target, reverted=inspection.record is not None),),
        warnings=(),
        reverted=inspection.record is not None and not edits,
    )


def within_trained(inspection: Inspection, target: int, *, reverted: bool) -> str:
    """Why nothing is scaled for a target within the trained length."""
    said = f"none: the weights were trained for {inspection.trained_context} tokens, which holds {target}"
    return f"{said}; the earlier extension is taken off" if reverted else said


def require_auto(recipe: Recipe, trained: int, target: int) -> None:
    """Refuse a method named for a target within the trained length. Raises :class:`RefusedError`."""
    if recipe.method != "auto":
        raise RefusedError(
            f"the target lies within the trained length: {target} <= {trained}",
            code="within-trained",
            key="--target",
            expected=f"more than {trained}",
            found=str(target),
            hint="nothing needs to be done (--method auto plans just that); if the weights were trained for less, "
            "say so with --original-context",
        )


def _lengths_only(
    contents: Contents, inspection: Inspection, recipe: Recipe, target: int, windows: tuple[Edit, ...]
) -> Plan:
    """No layer with a rope sees further than its window: only the stated lengths change."""
    assert inspection.rope is not None
    config_edits = (*windows, *length_edits(inspection.config, inspection.rope, target))
    window = next((g.window for g in inspection.groups if g.window is not None), None)
    warning = PlanWarning(
        code="nothing-to-scale",
        message=f"every layer with a rope sees a window of {window} tokens only, so no frequency is scaled; "
        "the stated length is raised",
        hint="--sliding-window off lets them see everything, and scales them",
    )
    return plain_plan(
        contents,
        inspection,
        recipe,
        {"config.json": config_edits, **side_edits(contents, inspection, target)},
        method="none",
        target=target,
        reasons=("none: no layer's rope sees past its window",),
        warnings=(warning,),
    )


def plain_plan(
    contents: Contents,
    inspection: Inspection,
    recipe: Recipe,
    edits: Mapping[str, tuple[Edit, ...]],
    *,
    method: str,
    target: int,
    reasons: tuple[str, ...],
    warnings: tuple[PlanWarning, ...],
    reverted: bool = False,
) -> Plan:
    """The plan of ``edits`` that leave every rope as it is, or ``reverted`` as before an earlier conversion of ours."""
    trained = inspection.trained_context
    digest = digest_of(inspection, edits, method=method, trained=trained, target=target)
    tensors = to_do(contents, inspection, own_buffers(contents, inspection), digest)
    if recipe.bake != "none":
        said = "the rope stays as it is, so nothing is put into tensors"
        warnings = (*warnings, PlanWarning(code="nothing-to-bake", message=said))
    final = taken_back(contents, inspection) if reverted else {}
    if edits:
        final = with_record(contents, inspection, edits, digest, method=method, target=target)
    length = max(target, trained)
    verdicts = _kept(contents, inspection, recipe, final, length, reverted=reverted)
    return Plan(
        version=VERSION,
        digest=digest,
        source=source_ref(contents),
        family=inspection.family.name,
        method=method,
        options={},
        factor=extension_factor(trained, target) if target > trained else 1.0,
        arithmetic=arithmetic(trained, target),
        trained_context=trained,
        current_context=inspection.current_context,
        target_context=target,
        reasons=reasons,
        runtimes=recipe.runtimes,
        misread=tuple(verdict.name for verdict in verdicts if not verdict.agrees),
        groups=planned_groups(inspection, target, reverted=reverted),
        actions=actions_of(contents, final, tensors),
        warnings=(*warnings, *warnings_of(verdicts, length)),
        out=default_name(contents.name, method, target),
    )


def _kept(
    contents: Contents,
    inspection: Inspection,
    recipe: Recipe,
    final: Mapping[str, tuple[Edit, ...]],
    length: int,
    *,
    reverted: bool,
) -> tuple[Verdict, ...]:
    """What each runtime makes of ropes that stay as they are (or were), served at ``length`` tokens."""
    config = apply_edits(contents.config, final.get("config.json", ()))
    tables = standing_tables(inspection, length, reverted=reverted)
    return judge(config, inspection.family, tables, target=length, required=recipe.runtimes)


def edits_of(plan: Plan) -> dict[str, tuple[Edit, ...]]:
    """The plan's edits by file, as edits of JSON text."""
    edits: dict[str, list[Edit]] = {}
    for action in plan.actions:
        if isinstance(action, EditJson):
            edits.setdefault(action.file, []).append(Edit(path=path_of(action.pointer), value=action.after))
    return {file: tuple(changes) for file, changes in edits.items()}


def planned_groups(
    inspection: Inspection,
    target: int,
    *,
    scalings: Mapping[str, Scaling] | None = None,
    rope_theta: Mapping[str, float] | None = None,
    encoding: str | None = None,
    reverted: bool = False,
    folded: Mapping[str, Temperature] | None = None,
) -> tuple[PlannedGroup, ...]:
    """Every group before and after: those with ``scalings`` by label are extended, written as ``encoding``.

    ``rope_theta`` is the base that is written, where it isn't the group's own; ``target`` counts tokens.
    ``reverted``: the others are as before an earlier conversion of ours.
    """
    planned = tuple(
        msgspec.structs.replace(
            _planned(group, (scalings or {}).get(group.label), (rope_theta or {}).get(group.label), encoding, target),
            folded=(folded or {}).get(group.label),
        )
        for group in inspection.groups
    )
    if not reverted:
        return planned
    bases = {group.label: group.base for group in inspection.groups if group.base is not None}
    return tuple(
        msgspec.structs.replace(group, after=_standing(bases[group.label])) if group.label in bases else group
        for group in planned
    )


def _standing(base: Base) -> State:
    return State(rope_theta=base.spec.rope_theta, scaling=base.scaling, table=base.table())


def standing_tables(inspection: Inspection, length: int, *, reverted: bool = False) -> dict[str, RopeTable]:
    """The table that each group has at ``length`` tokens, or ``reverted`` had before a conversion of ours."""
    return {
        group.label: group.base.table()
        if reverted and group.base is not None
        else table(group.spec, group.scaling, length=length)
        for group in inspection.groups
        if group.spec is not None
    }


def _planned(
    group: Group, scaling: Scaling | None, rope_theta: float | None, encoding: str | None, target: int
) -> PlannedGroup:
    if group.spec is None:
        return PlannedGroup(label=group.label, layers=group.layers, extended=False, before=None, after=None)
    was = State(
        rope_theta=group.spec.rope_theta,
        scaling=group.scaling,
        table=table(group.spec, group.scaling, length=target),
    )
    if scaling is None or group.base is None:
        return PlannedGroup(label=group.label, layers=group.layers, extended=False, before=was, after=was)
    after = State(
        rope_theta=group.base.spec.rope_theta if rope_theta is None else rope_theta,
        scaling=scaling,
        table=table(group.base.spec, scaling, length=target),
        encoding=encoding,
    )
    return PlannedGroup(label=group.label, layers=group.layers, extended=True, before=was, after=after)


def warnings_about(inspection: Inspection, *, target: int, fine_tune: bool) -> tuple[PlanWarning, ...]:
    """What is to be said of extending this checkpoint to ``target`` tokens, however it is written."""
    found = []
    factor = target / inspection.trained_context
    if factor > TRAINING_FREE_WARNING_ABOVE and not fine_tune:
        found.append(
            PlanWarning(
                code="far-without-training",
                message=f"{factor:g} times the trained length: without fine-tuning, what was measured "
                f"(up to {TRAINING_FREE_WARNING_ABOVE:g}x) already loses quality",
                hint="fine-tune with the extended config and say --fine-tune yes, or take a smaller factor",
            )
        )
    for group in inspection.groups:
        if group.extendable and group.window is not None and group.window < target:
            hint = "--sliding-window target widens the window to the target"
            if group.window >= inspection.trained_context:
                said = f"{group.label}: the window of {group.window} tokens held the trained length but not the target"
                found.append(PlanWarning(code="window-below-target", message=said, hint=hint))
            else:
                said = (
                    f"{group.label} sees {group.window} tokens only, but shares its rope with the layers that are "
                    "extended: this family's config holds one rope"
                )
                found.append(PlanWarning(code="sliding-shares-rope", message=said))
    found += [PlanWarning(code=n.code, message=n.message) for n in inspection.notes if n.code in _CARRIED_NOTES]
    return tuple(found)


def _faults_written(
    contents: Contents, inspection: Inspection, final: Mapping[str, tuple[Edit, ...]], target: int
) -> Iterator[PlanWarning]:
    """What check would find in the result that no form mends."""
    config = apply_edits(contents.config, final.get("config.json", ()))
    subject = Subject(
        contents=contents, inspection=inspection, rope=read_rope(config, inspection.family), target=target
    )
    for fault in faults(subject):
        if fault.code in _WRITTEN_FAULTS:
            yield PlanWarning(code=fault.code, message=fault.message, hint=fault.fix)


def source_ref(contents: Contents) -> SourceRef:
    """What the plan is for, with the checksum of what it says."""
    return SourceRef(
        name=contents.name,
        source=contents.source,
        revision=contents.revision,
        config_sha256=source_sha256(contents),
    )


def source_sha256(contents: Contents) -> str:
    """The checksum by which a plan knows its source: of config.json, or of a GGUF file's keys."""
    if contents.gguf is not None:
        return gguf_sha256(contents.gguf)
    return hashlib.sha256(contents.documents["config.json"].text.encode()).hexdigest()


def arithmetic(trained: int, target: int) -> str:
    """The factor's working, as it is shown."""
    return f"{target} / {trained} = {target / trained:g}"


def default_name(name: str, method: str, target: int) -> str:
    """``NAME-METHOD-128k``: what the output is called when nothing else is said."""
    return f"{name}-{method}-{show_tokens(target)}"
