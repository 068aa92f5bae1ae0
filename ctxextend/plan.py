"""From what a checkpoint is and what is wanted to what will happen: a plan, as a value.

``--dry-run``, ``convert``, recipes and the Python API all make the same plan. It can be printed,
saved, compared and replayed; on the same source it always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ctxextend.contents import Contents
from ctxextend.encoding import Chosen, PlanWarning, choose_encoding, misreaders
from ctxextend.errors import RefusedError, UsageError
from ctxextend.formats.hf_write import length_edits
from ctxextend.formats.json_edit import Edit, apply_edits, value_at
from ctxextend.inspection import BaseChoice, Group, Inspection, SlidingWindow, window_edits
from ctxextend.lengths import show_tokens
from ctxextend.methods import Options, decode_options, extension_factor, find_method
from ctxextend.methods.auto import TRAINING_FREE_WARNING_ABOVE, Choice, choices
from ctxextend.methods.base import Base, HasVariants, Method
from ctxextend.record import KEY, Record, before, path_of, pointer, undo
from ctxextend.rope import RopeTable
from ctxextend.runtimes import DEFAULT_RUNTIMES
from ctxextend.scaling import Dynamic, Scaling, table
from ctxextend.version import VERSION

SCHEMA: Final = "ctxextend.plan/1"

Carrier = Literal["auto", "native", "factors"]

#: What an earlier output of ours holds beside the checkpoint's own files: made anew, never carried.
OURS: Final = frozenset({"ctxextend.json", "ctxextend-overrides.json"})

#: Positions are 32-bit whole numbers in every runtime.
LONGEST: Final = 2**31 - 1

#: Above this a tokenizer's model_max_length stands for "no limit".
SENTINEL: Final = 10**18


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user wants. Lengths count tokens; ``target`` or ``factor`` is needed."""

    method: str = "auto"
    target: int | None = None
    factor: float | None = None
    original_context: int | None = None
    base: BaseChoice = "auto"
    options: Mapping[str, Any] = {}
    layers: tuple[str, ...] = ()
    sliding_window: SlidingWindow = "keep"
    fine_tune: bool = False
    family: str | None = None
    runtimes: tuple[str, ...] = DEFAULT_RUNTIMES
    carrier: Carrier = "auto"
    allow: tuple[str, ...] = ()


class State(Struct, frozen=True, kw_only=True):
    """A group's rope at one end of the plan. ``table`` is at the target; ``encoding`` names the form written."""

    rope_theta: float
    scaling: Scaling | None
    table: RopeTable
    encoding: str | None = None


class PlannedGroup(Struct, frozen=True, kw_only=True):
    """One group of layers, before and after. Layers without a rope have neither."""

    label: str
    layers: tuple[int, ...]
    extended: bool
    before: State | None
    after: State | None


class EditJson(Struct, frozen=True, kw_only=True, tag_field="kind", tag="edit-json"):
    """One change of a JSON file at an RFC 6901 pointer. A missing side means that the key isn't there."""

    file: str
    pointer: str
    before: Any | UnsetType = UNSET
    after: Any | UnsetType = UNSET


class Carry(Struct, frozen=True, kw_only=True, tag_field="kind", tag="carry"):
    """Files taken over as they are, never parsed."""

    files: tuple[str, ...]
    size_bytes: int


Action = EditJson | Carry


class SourceRef(Struct, frozen=True, kw_only=True):
    """What the plan was made for: replaying it on a checkpoint with another config is refused."""

    name: str
    source: str
    revision: str | None
    config_sha256: str


class Plan(Struct, frozen=True, kw_only=True):
    """What will happen. ``digest`` identifies the change itself, whatever the checkpoint is called."""

    schema: str = SCHEMA
    version: str
    digest: str
    source: SourceRef
    method: str
    options: Mapping[str, Any]
    factor: float
    arithmetic: str
    trained_context: int
    current_context: int
    target_context: int
    reasons: tuple[str, ...]
    runtimes: tuple[str, ...]
    groups: tuple[PlannedGroup, ...]
    actions: tuple[Action, ...]
    warnings: tuple[PlanWarning, ...]
    out: str


class _Solution(Struct, frozen=True, kw_only=True):
    """A method that worked out: its scalings by label and the form that was chosen for them."""

    method: str
    options: Mapping[str, Any]
    scalings: Mapping[str, Scaling]
    chosen: Chosen


def resolve_target(recipe: Recipe, trained: int) -> int:
    """The target length in tokens. Raises :class:`UsageError` for numbers that can't be or don't agree."""
    for name, number in (("--target", recipe.target), ("--factor", recipe.factor)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise UsageError(f"{name} must be a positive number", code="bad-number", key=name, found=str(number))
    asked = recipe.target or trained * (recipe.factor or 1.0)
    if asked > LONGEST:
        raise UsageError(
            "no runtime counts that far",
            code="bad-number",
            key="--target" if recipe.target else "--factor",
            expected=f"at most {LONGEST} tokens",
            found=f"{asked:.6g} tokens",
        )
    if recipe.factor is None:
        if recipe.target is None:
            raise UsageError(
                "how far to extend isn't said",
                code="no-target",
                hint="--target 128k, or --factor 4",
            )
        return recipe.target
    reached = round(trained * recipe.factor)
    if recipe.target is not None and recipe.target not in (int(trained * recipe.factor), reached):
        raise UsageError(
            "--target and --factor don't agree",
            code="target-and-factor",
            expected=f"{trained} x {recipe.factor:g} = {reached}",
            found=f"--target {recipe.target}",
            hint="give only one of them; if the trained length is another, add --original-context",
        )
    return recipe.target or reached


def make_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for ``recipe`` on an inspected checkpoint. Pure.

    Raises :class:`RefusedError` (with the hint that overrides it) and :class:`UsageError`.
    """
    _require_rope(inspection)
    trained = inspection.trained_context
    target = resolve_target(recipe, trained)
    _require_decided(inspection, recipe)
    windows = _window_edits(inspection, recipe, target)
    if target <= trained:
        return _nothing_to_do(contents, inspection, recipe, target)
    factor = extension_factor(trained, target)
    wanted = _wanted(inspection, recipe)
    if not wanted:
        return _lengths_only(contents, inspection, recipe, target, windows)
    solution, reasons = _solve(inspection, recipe, wanted, target, factor, windows)
    return _assemble(contents, inspection, recipe, target=target, solution=solution, windows=windows, reasons=reasons)


def _require_rope(inspection: Inspection) -> None:
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


def _require_decided(inspection: Inspection, recipe: Recipe) -> None:
    for group in inspection.groups:
        if group.origin == "undecided":
            kind = type(group.scaling).__struct_config__.tag if group.scaling is not None else ""
            raise RefusedError(
                f"nothing tells whether the {kind} scaling of {group.label} was trained in or added afterwards",
                code="undecidable-base",
                file="config.json",
                key="rope_scaling",
                expected="a scaling that the family's published models have",
                found=str(kind),
                hint="--base trained if the weights were trained with it (the extension starts from it), "
                "--base unscaled if it was only written into the config (it is taken off first)",
            )
    if recipe.original_context is None:
        for note in inspection.notes:
            if note.code == "original-length-unknown":
                raise RefusedError(
                    f"the trained length can't be told: {note.message}",
                    code="undecidable-length",
                    file="config.json",
                    key="rope_scaling.original_max_position_embeddings",
                    found="none",
                    hint=f"--original-context {inspection.trained_context}, or the length that is true",
                )


def _window_edits(inspection: Inspection, recipe: Recipe, target: int) -> tuple[Edit, ...]:
    """The edits that widen or remove a sliding window."""
    if recipe.sliding_window == "keep" or inspection.rope is None:
        return ()
    return window_edits(inspection.family, inspection.rope, target if recipe.sliding_window == "target" else None)


def _wanted(inspection: Inspection, recipe: Recipe) -> dict[str, Base]:
    """The bases of the layers to extend, by label."""
    ropes = {g.label: g for g in inspection.groups if g.base is not None}
    default = [group.label for group in inspection.groups if group.extendable]
    labels = recipe.layers or tuple(default)
    for label in labels:
        if label not in ropes:
            raise UsageError(
                f"there are no layers with a rope called {label}",
                code="unknown-layers",
                key="--layers",
                expected=", ".join(ropes),
                found=label,
            )
    if inspection.family.form != "nested" and default and set(labels) != set(default):
        raise RefusedError(
            "this family's config holds one rope for all its layers, so they can't be extended apart",
            code="one-rope",
            file="config.json",
            key="rope_scaling",
            expected=", ".join(default),
            found=", ".join(labels),
            hint="leave --layers away",
        )
    return {label: base for label in labels if (base := ropes[label].base) is not None}


def _solve(
    inspection: Inspection,
    recipe: Recipe,
    wanted: Mapping[str, Base],
    target: int,
    factor: float,
    windows: tuple[Edit, ...],
) -> tuple[_Solution, tuple[str, ...]]:
    """The first choice that every runtime reads as planned, and why it was chosen."""
    if recipe.method == "auto":
        if recipe.options:
            raise UsageError("auto takes no parameters", code="bad-parameter", hint="name a method with --method")
        order: Sequence[Choice] = choices(factor, fine_tune=recipe.fine_tune)
    else:
        order = (Choice(method=recipe.method, reason=""),)
    reasons: list[str] = []
    refused: RefusedError | None = None
    for choice in order:
        method = find_method(choice.method)
        try:
            solution = _with_method(inspection, recipe, wanted, target, method, windows)
        except RefusedError as error:
            if error.code != "unreadable":
                raise
            refused = refused or error
            reasons.append(f"not {choice.method}: {error.message}")
            continue
        if choice.reason:
            reasons.append(f"{choice.method}: {choice.reason}")
        return solution, tuple(reasons)
    assert refused is not None
    raise refused


def _with_method(
    inspection: Inspection,
    recipe: Recipe,
    wanted: Mapping[str, Base],
    target: int,
    method: Method,
    windows: tuple[Edit, ...],
) -> _Solution:
    """The method's first variant that the runtimes read alike. Raises the first variant's refusal if none is."""
    options = decode_options(method, recipe.options)
    first = next(iter(wanted.values()))
    variants = method.variants(first, options) if isinstance(method, HasVariants) else (options,)
    refused: RefusedError | None = None
    for variant in variants:
        scalings = _scalings(method, wanted, target, variant)
        try:
            chosen = choose_encoding(
                apply_edits(dict(inspection.config), windows),
                inspection.family,
                {label: base.spec for label, base in wanted.items()},
                scalings,
                target=target,
                required=recipe.runtimes,
                carriers=recipe.carrier,
                method=method.name,
                kept={g.label: g.base.table() for g in inspection.groups if g.base and g.label not in wanted},
                excused=_excused(inspection, recipe, wanted),
                allow="unreadable" in recipe.allow,
            )
        except RefusedError as error:
            refused = refused or error
            continue
        said = _said_options(method, variant)
        if refused is not None:
            wished = _scalings(method, wanted, target, variants[0])
            chosen = _with_caution(chosen, _second_best(wanted, wished, scalings, target, said, refused))
        return _Solution(method=method.name, options=said, scalings=scalings, chosen=chosen)
    assert refused is not None
    raise refused


def _excused(inspection: Inspection, recipe: Recipe, wanted: Mapping[str, Base]) -> frozenset[str]:
    """Runtimes nobody named that already misread a trained-in scaling: no conversion makes them right."""
    if recipe.runtimes != DEFAULT_RUNTIMES or any(base.scaling is None for base in wanted.values()):
        return frozenset()
    return misreaders(
        inspection.config,
        inspection.family,
        {label: base.table() for label, base in wanted.items()},
        trained=inspection.trained_context,
        required=recipe.runtimes,
    )


def _scalings(method: Method, wanted: Mapping[str, Base], target: int, options: Options) -> dict[str, Scaling]:
    try:
        return {label: method.solve(base, target, options) for label, base in wanted.items()}
    except ValueError as error:
        raise UsageError(
            f"{method.name} can't be used here: {error}", code="bad-parameter", hint=_option_hint(method)
        ) from error


def _said_options(method: Method, options: Options) -> dict[str, Any]:
    """The parameters that aren't the method's defaults."""
    default = _as_json(method.options())
    return {key: value for key, value in _as_json(options).items() if value != default[key]}


def _as_json(value: Struct) -> dict[str, Any]:
    """The value as a JSON reader gives it back (lists, not tuples), so that a saved plan equals the one made."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return found


def _with_caution(chosen: Chosen, caution: PlanWarning) -> Chosen:
    return msgspec.structs.replace(chosen, warnings=(caution, *chosen.warnings))


def _second_best(
    wanted: Mapping[str, Base],
    wished: Mapping[str, Scaling],
    taken: Mapping[str, Scaling],
    target: int,
    said: Mapping[str, Any],
    refused: RefusedError,
) -> PlanWarning:
    """What it costs that the first variant couldn't be written."""
    label = next(iter(wanted))
    spec = wanted[label].spec
    best, got = (table(spec, scalings[label], length=target) for scalings in (wished, taken))
    error = got.error_against(best)
    words = " ".join(f"--set {key}={value}" for key, value in said.items())
    return PlanWarning(
        code="second-best",
        message=f"{refused.message}; {words} was taken instead: its frequencies differ from that by "
        f"{100.0 * error:.3g} % at most, its attention factor is {got.attention_factor:.5g} "
        f"(not {best.attention_factor:.5g}), its softmax factor {got.softmax_factor:.5g} "
        f"(not {best.softmax_factor:.5g})",
        hint=f"say {words} to settle it, or name fewer --runtimes",
    )


def _option_hint(method: Method) -> str:
    fields = [field.name for field in msgspec.structs.fields(method.options)]
    return f"parameters of {method.name}: {', '.join(fields)}" if fields else "it has no parameters"


def _assemble(
    contents: Contents,
    inspection: Inspection,
    recipe: Recipe,
    *,
    target: int,
    solution: _Solution,
    windows: tuple[Edit, ...],
    reasons: tuple[str, ...],
) -> Plan:
    trained = inspection.trained_context
    edits = {
        "config.json": (*windows, *solution.chosen.encoding.edits),
        **_side_edits(contents, inspection, target),
    }
    digest = _digest(inspection, edits, method=solution.method, trained=trained, target=target)
    final = _with_record(contents, inspection, edits, digest, method=solution.method, target=target)
    warnings = (
        *solution.chosen.warnings,
        *_warnings(inspection, solution, target=target, fine_tune=recipe.fine_tune),
    )
    return Plan(
        version=VERSION,
        digest=digest,
        source=_source(contents),
        method=solution.method,
        options=solution.options,
        factor=extension_factor(trained, target),
        arithmetic=arithmetic(trained, target),
        trained_context=trained,
        current_context=inspection.current_context,
        target_context=target,
        reasons=reasons,
        runtimes=recipe.runtimes,
        groups=tuple(_planned(group, solution, target) for group in inspection.groups),
        actions=_actions(contents, final),
        warnings=tuple(dict.fromkeys(PlanWarning(code=w.code, message=w.message, hint=w.hint) for w in warnings)),
        out=default_name(contents.name, solution.method, target),
    )


def _nothing_to_do(contents: Contents, inspection: Inspection, recipe: Recipe, target: int) -> Plan:
    """``auto`` within the trained length: a plan that carries everything and changes nothing."""
    trained = inspection.trained_context
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
    stated = inspection.rope.max_position_embeddings if inspection.rope else target
    edits: dict[str, tuple[Edit, ...]] = {}
    if inspection.rope is not None and stated < target:
        edits = {"config.json": length_edits(inspection.config, inspection.rope, trained)}
    return _plain_plan(
        contents,
        inspection,
        recipe,
        edits,
        method="none",
        target=target,
        reasons=(f"none: the weights were trained for {trained} tokens, which holds {target}",),
        warnings=(),
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
    return _plain_plan(
        contents,
        inspection,
        recipe,
        {"config.json": config_edits, **_side_edits(contents, inspection, target)},
        method="none",
        target=target,
        reasons=("none: no layer's rope sees past its window",),
        warnings=(warning,),
    )


def _plain_plan(
    contents: Contents,
    inspection: Inspection,
    recipe: Recipe,
    edits: Mapping[str, tuple[Edit, ...]],
    *,
    method: str,
    target: int,
    reasons: tuple[str, ...],
    warnings: tuple[PlanWarning, ...],
) -> Plan:
    trained = inspection.trained_context
    digest = _digest(inspection, edits, method=method, trained=trained, target=target)
    final = _with_record(contents, inspection, edits, digest, method=method, target=target) if edits else {}
    return Plan(
        version=VERSION,
        digest=digest,
        source=_source(contents),
        method=method,
        options={},
        factor=extension_factor(trained, target) if target > trained else 1.0,
        arithmetic=arithmetic(trained, target),
        trained_context=trained,
        current_context=inspection.current_context,
        target_context=target,
        reasons=reasons,
        runtimes=recipe.runtimes,
        groups=tuple(_planned(group, None, target) for group in inspection.groups),
        actions=_actions(contents, final),
        warnings=warnings,
        out=default_name(contents.name, method, target),
    )


def _side_edits(contents: Contents, inspection: Inspection, target: int) -> dict[str, tuple[Edit, ...]]:
    """The limits of the tokenizer and of generation, judged by what they were before an earlier conversion."""
    edits: dict[str, tuple[Edit, ...]] = {}
    limit = _before_us(contents, inspection, "tokenizer_config.json").get("model_max_length")
    if isinstance(limit, int | float) and not isinstance(limit, bool) and limit < target < SENTINEL:
        edits["tokenizer_config.json"] = (Edit(path=("model_max_length",), value=target),)
    truncation = _before_us(contents, inspection, "tokenizer.json").get("truncation") or {}
    cut = truncation.get("max_length")
    if isinstance(cut, int) and cut < target:
        edits["tokenizer.json"] = (Edit(path=("truncation", "max_length"), value=target),)
    longest = _before_us(contents, inspection, "generation_config.json").get("max_length")
    # A max_length at or above the trained length was meant as the model's own limit; a smaller one is a choice.
    if type(longest) is int and inspection.trained_context <= longest < target:
        edits["generation_config.json"] = (Edit(path=("max_length",), value=target),)
    return edits


def _with_record(
    contents: Contents,
    inspection: Inspection,
    edits: Mapping[str, tuple[Edit, ...]],
    digest: str,
    *,
    method: str,
    target: int,
) -> dict[str, tuple[Edit, ...]]:
    """Edits of the documents as they stand: an earlier conversion undone, the new one and its record done."""
    old = inspection.record
    base_edits = {file: edits.get(file, ()) for file in {*edits, *(old.base if old else ())}}
    base = {}
    for file, wanted in base_edits.items():
        document = _document(contents, file)
        restored = apply_edits(document, undo(old, file)) if old else document
        base[file] = before(restored, wanted)
    record = Record(
        version=VERSION,
        method=method,
        trained_context=inspection.trained_context,
        target_context=target,
        plan=digest,
        base={file: said for file, said in sorted(base.items()) if said.values or said.absent},
    )
    block = Edit(path=(KEY,), value=_as_json(record))
    final: dict[str, tuple[Edit, ...]] = {}
    for file, wanted in base_edits.items():
        undone = undo(old, file) if old else ()
        sequence = (*undone, *wanted, *((block,) if file == "config.json" else ()))
        changed = _net(_document(contents, file), sequence)
        if changed:
            final[file] = changed
    return final


def _net(document: Mapping[str, Any], sequence: Sequence[Edit]) -> tuple[Edit, ...]:
    """One edit for each place whose value really changes, in the order of first mention."""
    final = apply_edits(dict(document), sequence)
    net = []
    for path in dict.fromkeys(edit.path for edit in sequence):
        was, now = value_at(dict(document), path), value_at(final, path)
        if _same(was, now):
            continue
        net.append(Edit(path=path, value=now))
    return tuple(net)


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON text: 8 and 8.0 differ, True and 1 differ, key order counts."""
    if a is UNSET or b is UNSET:
        return a is b
    return json.dumps(a) == json.dumps(b)


def _document(contents: Contents, file: str) -> dict[str, Any]:
    document = contents.documents.get(file)
    if document is not None:
        return document.value
    # tokenizer.json is only known by its truncation; the edit replaces one number in it.
    return {"truncation": dict(contents.tokenizer_truncation or {})} if file == "tokenizer.json" else {}


def _before_us(contents: Contents, inspection: Inspection, file: str) -> dict[str, Any]:
    """A document as it was before an earlier conversion."""
    document = _document(contents, file)
    return apply_edits(document, undo(inspection.record, file)) if inspection.record else document


def _actions(contents: Contents, final: Mapping[str, tuple[Edit, ...]]) -> tuple[Action, ...]:
    actions: list[Action] = []
    for file, edits in sorted(final.items()):
        document = _document(contents, file)
        for edit in edits:
            was = value_at(document, edit.path)
            actions.append(EditJson(file=file, pointer=pointer(edit.path), before=was, after=edit.value))
    carried = [f for f in contents.files if f.path not in final and f.path not in OURS]
    size = sum(file.size_bytes for file in carried)
    return (*actions, Carry(files=tuple(file.path for file in carried), size_bytes=size))


def edits_of(plan: Plan) -> dict[str, tuple[Edit, ...]]:
    """The plan's edits by file, as edits of JSON text."""
    edits: dict[str, list[Edit]] = {}
    for action in plan.actions:
        if isinstance(action, EditJson):
            edits.setdefault(action.file, []).append(Edit(path=path_of(action.pointer), value=action.after))
    return {file: tuple(changes) for file, changes in edits.items()}


def _planned(group: Group, solution: _Solution | None, target: int) -> PlannedGroup:
    if group.spec is None:
        return PlannedGroup(label=group.label, layers=group.layers, extended=False, before=None, after=None)
    was = State(
        rope_theta=group.spec.rope_theta,
        scaling=group.scaling,
        table=table(group.spec, group.scaling, length=target),
    )
    scaling = solution.scalings.get(group.label) if solution else None
    if scaling is None or solution is None or group.base is None:
        return PlannedGroup(label=group.label, layers=group.layers, extended=False, before=was, after=was)
    after = State(
        rope_theta=solution.chosen.rope_theta.get(group.label, group.base.spec.rope_theta),
        scaling=scaling,
        table=table(group.base.spec, scaling, length=target),
        encoding=solution.chosen.encoding.name,
    )
    return PlannedGroup(label=group.label, layers=group.layers, extended=True, before=was, after=after)


def _warnings(inspection: Inspection, solution: _Solution, *, target: int, fine_tune: bool) -> tuple[PlanWarning, ...]:
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
    if any(isinstance(s, Dynamic) for s in solution.scalings.values()) and solution.chosen.encoding.name == "theta":
        found.append(
            PlanWarning(
                code="dynamic-made-static",
                message="the runtimes named don't compute dynamic NTK alike; its static equal at the target is "
                "written as a larger rope_theta, which also holds for short inputs",
                hint="--runtimes transformers,mlx-lm keeps it dynamic",
            )
        )
    carried = {"params-json", "consolidated-weights", "auto-map", "rotary-buffers"}
    found += [PlanWarning(code=n.code, message=n.message) for n in inspection.notes if n.code in carried]
    return tuple(found)


def _digest(
    inspection: Inspection, edits: Mapping[str, tuple[Edit, ...]], *, method: str, trained: int, target: int
) -> str:
    value = {
        "config": inspection.config,
        "edits": {file: msgspec.to_builtins(changes) for file, changes in sorted(edits.items())},
        "method": method,
        "trained": trained,
        "target": target,
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _source(contents: Contents) -> SourceRef:
    text = contents.documents["config.json"].text
    return SourceRef(
        name=contents.name,
        source=contents.source,
        revision=contents.revision,
        config_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def arithmetic(trained: int, target: int) -> str:
    """The factor's working, as it is shown."""
    return f"{target} / {trained} = {target / trained:g}"


def default_name(name: str, method: str, target: int) -> str:
    """``NAME-METHOD-128k``: what the output is called when nothing else is said."""
    return f"{name}-{method}-{show_tokens(target)}"
