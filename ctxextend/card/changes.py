"""The part of a card that says what was changed: lengths, ropes, settings, tensors, each with its numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, assert_never

from ctxextend.apply import OVERRIDES, Manifest, RewrittenTensor
from ctxextend.card.markdown import NOTHING, code, plain, table
from ctxextend.changes import (
    Carry,
    DropTensor,
    EditJson,
    Export,
    FillSinusoids,
    PutTensor,
    ResizeTable,
    Restore,
    ScaleTensor,
    SetKey,
    SetTensor,
    TensorChange,
    tensor_changes_of,
)
from ctxextend.lengths import show_bytes
from ctxextend.methods import METHODS, POSITION_METHODS
from ctxextend.methods.positions import KINDS
from ctxextend.plan import Plan, PlannedGroup, State
from ctxextend.record import KEY
from ctxextend.scaling import LongRope, Scaling, Yarn

#: A number between two dots, which is a layer's.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
#: Of a longer list of numbers its length is told.
_LISTED = 6
_WIDEST = 300
#: GGUF types of full or half precision.
_WHOLE = frozenset({"f32", "f16", "bf16"})


def changes_part(manifest: Manifest) -> Iterator[str]:
    """The section's lines."""
    plan = manifest.plan
    yield from ("## What was changed", "")
    yield from (f"- {line}" for line in _facts(manifest))
    yield ""
    if plan.groups:
        columns = ("layers", "count", "rope before", "rope after", "turns slower", "attention factor", "written as")
        yield from table(columns, [_group(group) for group in plan.groups], numbers=frozenset({1}))
    rows = list(_settings(plan))
    if rows:
        yield from ("Settings:", "")
        yield from table(("file", "key", "before", "after"), rows)


def _facts(manifest: Manifest) -> Iterator[str]:
    plan = manifest.plan
    if plan.target_context > plan.trained_context:
        yield f"Length: {plain(plan.arithmetic)} (target / trained length, in tokens)."
        yield f"Method: {_method(plan)}"
    if plan.current_context != plan.trained_context and plan.method != "repair":
        yield f"The source states {plan.current_context} tokens; it was trained on {plan.trained_context}."
    if plan.position != "rope":
        yield f"Positions: the model has {KINDS[plan.position]}."
    for reason in plan.reasons:
        yield f"Why: {plain(reason)}"
    for group in plan.groups:
        yield from _temperature(group)
    if not config_only(manifest):
        yield from _weights(plan)
    yield from _tensors(tensor_changes_of(plan.actions))
    rounding = _rounding(manifest.tensors)
    if rounding is not None:
        yield rounding


def _method(plan: Plan) -> str:
    known = METHODS.get(plan.method) or POSITION_METHODS.get(plan.method)
    options = ", ".join(f"{key}={value}" for key, value in plan.options.items())
    name = code(plan.method) + (f" with {code(options)}" if options else "")
    return f"{name}, {plain(known.summary)} ({plain(known.source)})." if known is not None else f"{name}."


def _temperature(group: PlannedGroup) -> Iterator[str]:
    """Where an attention factor comes from, and where it is."""
    if not group.extended or group.after is None:
        return
    label, scaling, folded = code(group.label), group.after.scaling, group.folded
    factor = folded.attention_factor if folded is not None else group.after.table.attention_factor
    plain_yarn = isinstance(scaling, Yarn) and scaling.mscale is None
    worked = plain_yarn and math.isclose(factor, 0.1 * math.log(scaling.factor) + 1.0, rel_tol=1e-9)  # type: ignore[union-attr]
    if worked and isinstance(scaling, Yarn):
        yield f"Attention factor of {label}: 0.1 ln({scaling.factor:.10g}) + 1 = {factor:.6g}."
    if folded is not None:
        square = folded.attention_factor**2 * folded.softmax_factor
        yield (
            f"The temperature of {label} is in the weights: scores are multiplied by {square:.6g} there "
            f"({factor:.6g} squared{'' if folded.softmax_factor == 1.0 else f', times {folded.softmax_factor:.6g}'}), "
            "and runtimes apply none."
        )


def _weights(plan: Plan) -> Iterator[str]:
    changed = bool(tensor_changes_of(plan.actions))
    for action in plan.actions:
        match action:
            case Export():
                types = ", ".join(code(outtype) for outtype in action.outtypes)
                lossy = [outtype for outtype in action.outtypes if outtype not in _WHOLE]
                by = " by llama.cpp's converter" if action.converter else ""
                loss = " Quantised weights differ from the source's." if lossy else ""
                yield f"Weights: exported to GGUF as {code(action.architecture)}, {types}{by}.{loss}"
            case Restore():
                yield (
                    f"Weights: restored from GGUF as safetensors of {code(action.dtype)}; what a quantisation of the "
                    "source lost is not restored."
                )
            case Carry() if not changed:
                yield "Weights: the source's, byte for byte."
    if changed and not any(isinstance(action, Export | Restore) for action in plan.actions):
        yield "Weights: the tensors named here were changed; all others are the source's, byte for byte."


def _tensors(changes: Sequence[TensorChange]) -> Iterator[str]:
    """One line for each kind of change of each kind of tensor, however many layers there are."""
    counted: dict[tuple[str, str], int] = {}
    for change in changes:
        key = (_LAYER.sub("*", change.name), _done(change))
        counted[key] = counted.get(key, 0) + 1
    for (name, done), count in counted.items():
        yield f"Tensors: {f'{count} ' if count > 1 else ''}{code(name)}, {done}."


def _done(change: TensorChange) -> str:
    match change:
        case ScaleTensor():
            part = " where it meets the rope" if change.slices else ""
            return f"multiplied by {change.factor:.6g}{part}"
        case DropTensor():
            return "dropped"
        case PutTensor():
            return f"put in, {len(change.values)} numbers in F32"
        case ResizeTable():
            kept = f", the first {change.reserved} kept" if change.reserved else ""
            return f"resized from {change.rows_before} to {change.rows} rows ({change.interpolation}{kept})"
        case FillSinusoids():
            kept = f", the first {change.rows_kept} as they were" if change.rows_kept else ""
            return f"computed, {change.rows} rows{kept}"
        case _:
            assert_never(change)


def _rounding(tensors: Sequence[RewrittenTensor]) -> str | None:
    """How exact the multiplied numbers are in their dtype; None where none were."""
    scaled = [tensor for tensor in tensors if tensor.factor is not None]
    if not scaled:
        return None
    dtypes = ", ".join(code(dtype) for dtype in sorted({tensor.dtype for tensor in scaled}))
    if all(tensor.exact for tensor in scaled):
        return f"Rounding: none, the products are exact in {dtypes}."
    worst = max(tensor.rounding for tensor in scaled)
    return f"Rounding: each product is off by at most {worst:.2g} of itself in {dtypes}."


def _group(group: PlannedGroup) -> tuple[str, ...]:
    count, before, after = str(len(group.layers)), group.before, group.after
    if before is None or after is None:
        return (code(group.label), count, "no rope", "no rope", NOTHING, NOTHING, NOTHING)
    if not group.extended and before == after:
        return (code(group.label), count, _rope(before), "kept", NOTHING, NOTHING, NOTHING)
    factor = f"{after.table.attention_factor:.6g}"
    if group.folded is not None:
        factor += f" ({group.folded.attention_factor:.6g} in the weights)"
    if after.table.softmax_factor != 1.0:
        factor += f", softmax {after.table.softmax_factor:.6g}"
    written = NOTHING if after.encoding is None else code(after.encoding)
    return (code(group.label), count, _rope(before), _rope(after), _slowed(before, after), factor, written)


def _rope(state: State) -> str:
    """A rope in a few words: its theta, and what was done to it."""
    theta = f"theta {state.rope_theta:.10g}"
    scaling = _scaling(state.scaling)
    return code(f"{theta}, {scaling}" if scaling else theta)


def _scaling(scaling: Scaling | None) -> str:
    match scaling:
        case None:
            return ""
        case LongRope():
            lists = "one list" if scaling.short_factor == scaling.long_factor else "two lists"
            return f"longrope with {lists} of {len(scaling.long_factor)} factors"
        case _:
            tag, factor = scaling.__struct_config__.tag, getattr(scaling, "factor", None)
            # A new base is told by its theta.
            return "" if tag == "default" else f"{tag} {factor:.10g}"


def _slowed(before: State, after: State) -> str:
    """How many times slower the pairs turn, from the least to the most."""
    ratios = [a / b for a, b in zip(before.table.inv_freq, after.table.inv_freq, strict=True) if b > 0.0]
    if not ratios:
        return NOTHING
    low, high = f"{min(ratios):.4g}", f"{max(ratios):.4g}"
    if (low, high) == ("1", "1"):
        return NOTHING
    return f"{low} times" if low == high else f"{low} to {high} times"


def _settings(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Each setting before and after, but the record that a conversion leaves."""
    for action in plan.actions:
        match action:
            case EditJson() if action.pointer.split("/")[1:2] != [KEY]:
                yield (code(action.file), code(action.pointer.lstrip("/")), _value(action.before), _value(action.after))
            case SetKey() if not action.key.startswith(f"{KEY}."):
                values = [None if side is None else side.value for side in (action.before, action.after)]
                sides = [
                    NOTHING if side is None else _value(value)
                    for side, value in zip((action.before, action.after), values, strict=True)
                ]
                yield (code("GGUF"), code(action.key), *sides)
            case SetTensor():
                yield (
                    code("GGUF"),
                    f"tensor {code(action.name)}",
                    *(NOTHING if side is None else code(_list(side)) for side in (action.before, action.after)),
                )
            case _:
                pass


def _value(value: Any) -> str:
    """A value as JSON, long lists by their length; a dash for a key that isn't there."""
    if not isinstance(value, str | int | float | bool | list | tuple | dict | None):
        return NOTHING
    text = json.dumps(_short(value), ensure_ascii=False)
    return code(text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "\N{HORIZONTAL ELLIPSIS}")


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return _list(value) if len(value) > _LISTED else [_short(one) for one in value]
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return value


def _list(values: Sequence[Any]) -> str:
    """How many numbers there are, and the first and the last of them."""
    ends = [f"{one:.6g}" if isinstance(one, float) else str(one) for one in (*values[:1], *values[-1:])]
    return f"{len(values)} values: {' ... '.join(ends)}"


def config_only(manifest: Manifest) -> bool:
    """Whether the result is the changed settings alone, with the override that each engine takes."""
    return any(file.path == OVERRIDES for file in manifest.files)


def size_words(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Each GGUF file and its size."""
    for file in manifest.files:
        if file.path.endswith(".gguf"):
            yield code(file.path), show_bytes(file.size_bytes)
