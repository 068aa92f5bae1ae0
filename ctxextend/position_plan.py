"""The plan for a model without a rope: its table resized or its length raised, and the files that follow. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from ctxextend.bake import to_do
from ctxextend.changes import (
    DropTensor,
    FillSinusoids,
    ResizeTable,
    TensorChange,
    actions_of,
    digest_of,
    taken_back,
    with_record,
)
from ctxextend.comparison import compare
from ctxextend.contents import Contents, TensorInfo
from ctxextend.copies import without_other_weights
from ctxextend.encoding import PlanWarning, Verdict
from ctxextend.families import Family, find_family
from ctxextend.formats.hf_positions import read_positions
from ctxextend.formats.json_edit import apply_edits
from ctxextend.inspection import Inspection
from ctxextend.methods import extension_factor
from ctxextend.plan import Plan, arithmetic, default_name, source_ref
from ctxextend.positions import PositionChange, solve_positions
from ctxextend.recipe import Recipe
from ctxextend.runtimes import DEFAULT_RUNTIMES, readers_of
from ctxextend.runtimes.position_limits import checkpoint_of, position_reading
from ctxextend.version import VERSION


def make_position_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for ``recipe`` on an inspected checkpoint without a rope.

    Raises :class:`RefusedError` (with the hint that overrides it) and :class:`UsageError`.
    """
    return plan_of(contents, inspection, recipe, solve_positions(contents, inspection, recipe))


def plan_of(contents: Contents, inspection: Inspection, recipe: Recipe, change: PositionChange) -> Plan:
    """The plan that carries out a ``change``."""
    trained, target = inspection.trained_context, change.target
    digest = digest_of(
        inspection, change.edits, method=change.method, trained=trained, target=target, tensors=change.tensors
    )
    # Rows that were kept can be had back by cutting off the others.
    resized = any(
        isinstance(tensor, ResizeTable) or (isinstance(tensor, FillSinusoids) and not tensor.rows_kept)
        for tensor in change.tensors
    )
    final = taken_back(contents, inspection)
    if change.edits:
        final = with_record(
            contents,
            inspection,
            change.edits,
            digest,
            method=change.method,
            target=target,
            baked="positions" if resized else UNSET,
        )
    tensors = to_do(contents, inspection, change.tensors, digest)
    verdicts = judge_positions(
        _after(contents.tensors, tensors),
        apply_edits(contents.config, final.get("config.json", ())),
        inspection.family,
        target=max(target, trained),
        required=recipe.runtimes,
        documents={
            file: apply_edits(document.value, final.get(file, ())) for file, document in contents.documents.items()
        },
    )
    actions, left_out = without_other_weights(actions_of(contents, final, tensors), contents)
    return Plan(
        version=VERSION,
        digest=digest,
        source=source_ref(contents),
        family=inspection.family.name,
        method=change.method,
        options=change.options,
        factor=extension_factor(trained, target) if target > trained else 1.0,
        arithmetic=arithmetic(trained, target),
        trained_context=trained,
        current_context=inspection.current_context,
        target_context=target,
        reasons=change.reasons,
        runtimes=recipe.runtimes,
        misread=tuple(verdict.name for verdict in verdicts if not verdict.agrees),
        groups=(),
        actions=actions,
        warnings=(*change.warnings, *left_out, *_about(verdicts, recipe)),
        out=default_name(contents.name, change.method, target),
        position=inspection.position,
    )


def verify_positions(plan: Plan, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[Verdict, ...]:
    """What each runtime of the plan makes of its result: its ``config`` and its ``tensors`` by name."""
    return judge_positions(
        tuple(tensors.values()),
        config,
        find_family({}, treat_as=plan.family),
        target=max(plan.target_context, plan.trained_context),
        required=plan.runtimes,
    )


def judge_positions(
    tensors: Sequence[TensorInfo],
    config: Mapping[str, Any],
    family: Family,
    *,
    target: int,
    required: tuple[str, ...],
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Verdict, ...]:
    """What each current reader of the ``required`` runtimes makes of a checkpoint without a rope, at ``target``."""
    positions = read_positions(tensors, config, family)
    assert positions is not None
    found = checkpoint_of(positions, config, family, documents)
    verdicts = []
    for reader in readers_of(required):
        reading = position_reading(reader, found)
        verdicts.append(Verdict(reader=reader, reading=reading, comparison=compare(reading, {}, target=target)))
    return tuple(verdicts)


def _after(tensors: Sequence[TensorInfo], changes: Sequence[TensorChange]) -> tuple[TensorInfo, ...]:
    """The tensors as the changes of tables leave them."""
    rows = {(c.file, c.name): c.rows for c in changes if isinstance(c, ResizeTable | FillSinusoids)}
    dropped = {(c.file, c.name) for c in changes if isinstance(c, DropTensor)}
    return tuple(
        msgspec.structs.replace(tensor, shape=(rows[place], *tensor.shape[1:])) if place in rows else tensor
        for tensor in tensors
        if (place := (tensor.file, tensor.name)) not in dropped
    )


def _about(verdicts: Iterable[Verdict], recipe: Recipe) -> Iterator[PlanWarning]:
    """The runtimes that don't serve the result; those that have no such models only where they were named."""
    for verdict in verdicts:
        if verdict.reason is not None:
            yield PlanWarning(code="runtime-fails", message=f"{verdict.name}: {verdict.reason}")
        elif verdict.reading.absent and recipe.runtimes != DEFAULT_RUNTIMES:
            yield PlanWarning(code="no-such-model", message=f"{verdict.name}: {verdict.reading.problem}")
