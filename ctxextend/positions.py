"""What extends a model without a rope: a larger table, more sinusoids, or a longer length for ALiBi. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, Struct

from ctxextend.changes import DropTensor, FillSinusoids, ResizeTable, TensorChange, as_json, document_of, side_edits
from ctxextend.contents import Contents
from ctxextend.encoding import PlanWarning
from ctxextend.errors import RefusedError, UsageError
from ctxextend.families import Position
from ctxextend.families.positions import Alibi, PositionTable
from ctxextend.formats.hf_positions import FLOATS, GONE, Positions, length_edits, read_positions
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.inspection import Inspection
from ctxextend.methods import POSITION_METHODS, decode_options, find_method
from ctxextend.methods.positions import (
    AbsoluteOptions,
    AlibiOptions,
    PositionMethod,
    SinusoidalOptions,
    method_for,
    other_positions,
)
from ctxextend.plan import require_auto, within_trained
from ctxextend.recipe import Recipe, resolve_target
from ctxextend.record import KEY, Record, baked_source, undo

#: Options of a recipe that speak of a rope, with the value that says nothing.
_OF_A_ROPE: Final[tuple[tuple[str, str, object], ...]] = (
    ("--carrier", "carrier", "auto"),
    ("--layers", "layers", ()),
    ("--sliding-window", "sliding_window", "keep"),
    ("--base", "base", "auto"),
    ("--bake", "bake", "none"),
)

_SOLVED: Final[frozenset[Position]] = frozenset({"learned", "sinusoidal", "alibi"})


class PositionChange(Struct, frozen=True, kw_only=True):
    """What happens to a checkpoint without a rope, counted from what it was before any conversion of ours.

    ``options`` are the method's parameters as they are taken; ``edits`` those of each document, by file. ``method`` is
    ``none`` where the trained length holds the target.
    """

    method: str
    options: Mapping[str, Any]
    target: int
    edits: Mapping[str, tuple[Edit, ...]]
    tensors: tuple[TensorChange, ...]
    reasons: tuple[str, ...]
    warnings: tuple[PlanWarning, ...]


def solve_positions(
    contents: Contents, inspection: Inspection, recipe: Recipe, *, gguf: bool = False
) -> PositionChange:
    """What extends the checkpoint to the recipe's target. ``gguf``: the result is read by llama.cpp alone.

    Raises :class:`RefusedError` for what can't be carried or is of another kind, and :class:`UsageError` for options
    that say nothing here.
    """
    base = base_positions(contents, inspection)
    refuse_rope_options(recipe)
    method = fitting_method(inspection, recipe)
    options = decode_options(method, recipe.options)
    trained = inspection.trained_context
    target = resolve_target(recipe, trained)
    if target <= trained:
        return _nothing(contents, inspection, recipe, base, target)
    lasting: tuple[PlanWarning, ...] = ()
    match options:
        case AbsoluteOptions():
            tensors: tuple[TensorChange, ...] = _resized(contents, inspection, base, target, options)
            reasons, warnings = _about_absolute(base, options, trained, target)
        case SinusoidalOptions():
            tensors = _sinusoids(contents, inspection, base, target, options)
            reasons, warnings = _about_sinusoids(base, options, trained, target, stored=bool(tensors))
        case _:
            _refuse_slopes(inspection, cast(AlibiOptions, options))
            tensors = ()
            reasons, warnings = _about_alibi(base, trained, target)
            if not gguf and _names_transformers(recipe):
                lasting = _rounding(inspection, base, target)
    stale = tuple(DropTensor(file=tensor.file, name=tensor.name) for tensor in base.stale)
    return PositionChange(
        method=method.name,
        options=as_json(options),
        target=target,
        edits={
            "config.json": length_edits(inspection.config, base, target),
            **side_edits(contents, inspection, target),
            **_sentence_edits(contents, inspection, target),
        },
        tensors=(*tensors, *stale),
        reasons=reasons,
        warnings=(*(() if recipe.fine_tune else warnings), *lasting),
    )


def _sentence_edits(contents: Contents, inspection: Inspection, target: int) -> dict[str, tuple[Edit, ...]]:
    """The length at which sentence-transformers cuts texts, which vLLM reads too; a smaller one was a choice."""
    record, file = inspection.record, "sentence_bert_config.json"
    document = apply_edits(document_of(contents, file), undo(record, file) if record is not None else ())
    limit = document.get("max_seq_length")
    if type(limit) is int and inspection.trained_context <= limit < target:
        return {file: (Edit(path=("max_seq_length",), value=target),)}
    return {}


def base_positions(contents: Contents, inspection: Inspection) -> Positions:
    """The positions as they were before a conversion of ours; the tensors are those that stand there now.

    Raises :class:`RefusedError` for a model that has none of these.
    """
    found = read_positions(contents.tensors, contents.config, inspection.family)
    if found is None or inspection.position not in _SOLVED:
        raise RefusedError(
            f"a model of the family {inspection.family.name} has no positions that could be extended",
            code="no-positions",
            file="config.json",
            key="model_type",
            found=str(inspection.model_type),
            hint="'ctxextend inspect' says what is possible for it",
        )
    before = read_positions((), inspection.config, inspection.family)
    assert before is not None
    length, stated, taken = inspection.trained_context, before.stated, before.taken
    return msgspec.structs.replace(found, length=length, stated=stated, taken=taken)


def refuse_rope_options(recipe: Recipe) -> None:
    """Raises :class:`UsageError` for options that speak of a rope."""
    for option, field, silent in _OF_A_ROPE:
        if getattr(recipe, field) != silent:
            raise UsageError(
                "this option speaks of a rope, and the model has none",
                code="bad-option",
                key=option,
                found=str(getattr(recipe, field)),
                hint=f"leave {option} away",
            )


def fitting_method(inspection: Inspection, recipe: Recipe) -> PositionMethod:
    """The method that is asked for, if it fits the model's positions. ``auto`` takes the one there is.

    Raises :class:`RefusedError`, and :class:`UsageError` for parameters without a method.
    """
    fitting = method_for(inspection.position)
    assert fitting is not None
    if recipe.method == "auto":
        if recipe.options:
            raise UsageError(
                "auto takes no parameters", code="bad-parameter", hint=f"name the method: --method {fitting.name}"
            )
        return fitting
    if recipe.method not in POSITION_METHODS:
        # A name that isn't known is refused as such.
        find_method(recipe.method)
    if recipe.method != fitting.name:
        raise other_positions(recipe.method, inspection.position)
    return fitting


def _nothing(
    contents: Contents, inspection: Inspection, recipe: Recipe, base: Positions, target: int
) -> PositionChange:
    """Within the trained length: what an earlier conversion did is taken back, and a length that can't be is mended."""
    trained = inspection.trained_context
    require_auto(recipe, trained, target)
    record = inspection.record
    if inspection.position == "learned" and contents.storage == "safetensors":
        _require_tables(contents, inspection, base)
    if record is not None and record.baked is not UNSET:
        raise _not_to_be_had_back(record)
    read = base.rows is not None and not (base.sinusoids is not None and not base.sinusoids.read)
    held = base.rows - base.reserved if read and base.rows is not None else base.taken
    # What an earlier conversion made of the table says nothing of what config.json should.
    wrong = base.taken < target or (read and base.taken != (held if record is None else trained))
    length = trained if wrong or record is not None else base.taken
    tensors: tuple[TensorChange, ...] = ()
    if read and held != length:
        tensors = _sinusoids(contents, inspection, base, length, SinusoidalOptions())
    return PositionChange(
        method="none",
        options={},
        target=target,
        edits={"config.json": length_edits(inspection.config, base, trained)} if wrong else {},
        tensors=tensors,
        reasons=(within_trained(inspection, target, reverted=record is not None),),
        warnings=(),
    )


def _resized(
    contents: Contents, inspection: Inspection, base: Positions, target: int, options: AbsoluteOptions
) -> tuple[TensorChange, ...]:
    """Every copy of every table, with more rows."""
    _require_tables(contents, inspection, base)
    return tuple(
        ResizeTable(
            file=table.file,
            name=table.name,
            rows_before=base.length + base.reserved,
            rows=target + base.reserved,
            reserved=base.reserved,
            interpolation=options.interpolation,
        )
        for table in base.tables
    )


def _sinusoids(
    contents: Contents, inspection: Inspection, base: Positions, target: int, options: SinusoidalOptions
) -> tuple[TensorChange, ...]:
    """The stored tables with more rows or fewer. What is stored there is kept, or for positions between it has to be
    sinusoids; a table that nobody reads is dropped.
    """
    facts = base.sinusoids
    assert facts is not None
    interpolated = options.positions == "interpolated"
    if interpolated:
        _require_read(base)
    if not facts.read:
        return tuple(DropTensor(file=table.file, name=table.name) for table in base.tables)
    if base.tables:
        _require_tables(contents, inspection, base)
    rows = target + base.reserved
    return tuple(
        FillSinusoids(
            file=table.file,
            name=table.name,
            rows=rows,
            dim=table.shape[1],
            layout=facts.layout,
            positions_per_row=base.length / target if interpolated else 1.0,
            zero_row=base.zero_row,
            # Of a table that is longer than what was trained, by what the user says, no row is lost either.
            rows_kept=0 if interpolated else min(rows, max(base.length, base.taken) + base.reserved),
        )
        for table in base.tables
    )


def _not_to_be_had_back(record: Record) -> RefusedError:
    return baked_source(f"{KEY}.baked", "config.json", "positions", record.method, record.target_context)


def _require_read(base: Positions) -> None:
    """Positions between the trained ones need a table that runtimes read. Raises :class:`RefusedError`."""
    facts = base.sinusoids
    assert facts is not None
    if facts.read and base.tables and not base.reserved:
        return
    if not facts.read:
        why = "transformers computes the table of this family by itself, from whole positions, and reads none"
    elif not base.tables:
        why = "the table isn't stored in these weights, so transformers computes it, from whole positions"
    else:
        why = f"positions are counted from {base.reserved} here, and divided they would leave what was trained"
    raise RefusedError(
        f"interpolated positions can't be carried: {why}",
        code="positions-not-carried",
        file=base.tables[0].file if base.tables else None,
        key="positions",
        found="interpolated",
        hint="--set positions=raised (the default) goes on past the trained positions",
    )


def _require_tables(contents: Contents, inspection: Inspection, base: Positions) -> None:
    """Raises :class:`RefusedError` for a table that isn't there, or that can't be computed with."""
    facts = inspection.family.positions
    names = " and ".join(facts.names) if isinstance(facts, PositionTable) else ""
    if not base.tables:
        unread = contents.storage != "safetensors"
        raise RefusedError(
            "the table of positions can't be found in the weights",
            code="no-table",
            file=contents.source,
            expected=f"safetensors with {names}",
            found="weights that aren't safetensors" if unread else "none of that name",
            hint="AutoModel.from_pretrained(...).save_pretrained(...) writes safetensors"
            if unread
            else "fetch the checkpoint again; or, where --family names the family of other models, leave that away",
        )
    for table in base.tables:
        if table.dtype not in FLOATS:
            raise RefusedError(
                "the table of positions is quantised, so no rows between its rows can be computed",
                code="quantised-table",
                file=table.file,
                key=table.name,
                expected=", ".join(sorted(FLOATS)),
                found=table.dtype,
                hint="start from the checkpoint before it was quantised",
            )


def _refuse_slopes(inspection: Inspection, options: AlibiOptions) -> None:
    if options.slopes == "interpolated":
        facts = inspection.family.positions
        exponent = facts.largest_exponent_path if isinstance(facts, Alibi) else ()
        of = (
            f"the number of heads and {'.'.join(exponent)}, whose slopes are others than divided ones"
            if exponent
            else ""
        )
        raise RefusedError(
            f"no format carries divided slopes: every runtime computes them from {of or 'the number of heads alone'}, "
            "and neither config.json nor GGUF has a key for them",
            code="slopes-not-carried",
            key="slopes",
            expected="kept",
            found="interpolated",
            hint="--set slopes=kept (the default): ALiBi was made to be extrapolated",
        )


_EVAL: Final = "ctxextend eval measures it; fine-tune at the new length, and say --fine-tune yes"


def _about_absolute(
    base: Positions, options: AbsoluteOptions, trained: int, target: int
) -> tuple[tuple[str, ...], tuple[PlanWarning, ...]]:
    reason = f"absolute: positions are a learned table of {trained} rows, so a longer context needs {target} rows"
    tables = f" (in {len(base.tables)} tensors)" if len(base.tables) > 1 else ""
    if options.interpolation == "tiled":
        said = (
            f"the table repeats after {trained} positions: within them the model is exactly what it was, but past them "
            f"it takes token p for token p - {trained}, which costs something without fine-tuning"
        )
    else:
        said = (
            f"the {trained} rows are spread over {target} positions, and those between them were never trained: "
            "without fine-tuning the model gets worse at every length, the shortest too"
        )
    return (f"{reason}{tables}",), (PlanWarning(code="untrained-positions", message=said, hint=_EVAL),)


def _about_sinusoids(
    base: Positions, options: SinusoidalOptions, trained: int, target: int, *, stored: bool
) -> tuple[tuple[str, ...], tuple[PlanWarning, ...]]:
    facts = base.sinusoids
    assert facts is not None
    read = "is read from the weights" if facts.read and stored else "is computed by whoever runs the model"
    also = ", and the copy in the weights, which nobody reads, is dropped" if stored and not facts.read else ""
    reason = f"sinusoidal: the table {read}{also}"
    if options.positions == "interpolated":
        said = (
            f"positions are divided by {target / trained:g}: every step is smaller than the ones that were trained, so "
            "without fine-tuning the model gets worse at every length"
        )
    else:
        said = (
            f"positions from {trained} on were never seen: up to there the model is what it was, past it quality falls "
            "without fine-tuning"
        )
    return (reason,), (PlanWarning(code="untrained-positions", message=said, hint=_EVAL),)


#: Bits of a fraction, by the type of the weights.
_FRACTION_BITS: Final[Mapping[str, int]] = MappingProxyType({"BF16": 7, "F16": 10})


def _rounding(inspection: Inspection, base: Positions, target: int) -> tuple[PlanWarning, ...]:
    """What is lost where transformers rounds a bias that is as large as the text is long.

    Half of the last place of the steepest head's penalty for the last token, before it is divided as the scores are.
    """
    facts = inspection.family.positions
    if not isinstance(facts, Alibi) or facts.rounded is None:
        return ()
    stored = "BF16" if facts.rounded == "bfloat16" else next(iter(inspection.dtypes), "F32")
    if stored not in _FRACTION_BITS:
        return ()
    _fraction, exponent = math.frexp(base.slopes[0] * base.divisor * (target - 1))
    lost = 2.0 ** (exponent - 2 - _FRACTION_BITS[stored]) / base.divisor
    if lost < _WORTH_SAYING:
        return ()
    said = (
        f"transformers rounds the penalty for the distance from the text's start to {stored}: at {target} tokens the "
        f"steepest head is off by up to {lost:.3g} nats, even among neighbours"
    )
    hint = None if facts.rounded == "bfloat16" else "load it in float32 (dtype='float32') there"
    return (PlanWarning(code="alibi-rounded", message=said, hint=hint),)


def _names_transformers(recipe: Recipe) -> bool:
    return any(name.partition("@")[0].strip().lower() == "transformers" for name in recipe.runtimes)


#: Nats.
_WORTH_SAYING: Final = 0.5


def _about_alibi(base: Positions, trained: int, target: int) -> tuple[tuple[str, ...], tuple[PlanWarning, ...]]:
    gentlest = base.slopes[-1]
    far = gentlest * target
    reason = (
        f"alibi: the penalty by distance goes on as it is; the gentlest head takes {gentlest * trained:.3g} nats off "
        f"at {trained} tokens and {far:.3g} at {target}"
    )
    fades = ", so the model goes on predicting but uses little of what is so far back" if far > GONE else ""
    said = (
        f"distances past {trained} were never trained; in the gentlest head a token {target} back weighs e^-{far:.3g} "
        f"of a near one{fades}"
    )
    return (reason,), (PlanWarning(code="far-tokens-fade", message=said, hint="ctxextend eval measures it"),)
