"""Carrying a recipe out: every variant made ready first, then step after step, each result kept as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ctxextend.apply import encode, output_error
from ctxextend.documents import error_document
from ctxextend.errors import CheckpointError, CtxextendError
from ctxextend.release.audience import Audience
from ctxextend.release.matrix import Shard, select
from ctxextend.release.preparing import Preparation, Prepared, RunOptions, digest, folder_of, one_root
from ctxextend.release.reading import RecipeFile, Variant
from ctxextend.release.results import RunResult, StepResult, VariantResult
from ctxextend.release.state import State, locked, read_state, write_document
from ctxextend.release.steps import Step, steps_of
from ctxextend.release.summary import summary

RESULTS: Final = "results.json"
SUMMARY: Final = "results.md"


def run(
    file: RecipeFile,
    options: RunOptions | None = None,
    *,
    shard: Shard | None = None,
    audience: Audience | None = None,
) -> RunResult:
    """Carry a recipe out, or one shard of it; with ``dry_run`` only tell what would be done.

    Raises :class:`CtxextendError` for what can be refused before anything starts. What goes wrong afterwards is part
    of the result: the variant ends there, and the others go on.
    """
    settings, told = options or RunOptions(), audience or Audience()
    root = one_root(file, settings)
    variants = file.variants if shard is None else select(file.variants, shard)
    preparation = Preparation(file, settings, say=told.say)
    prepared = [preparation.prepare(variant) for variant in variants]
    for each in prepared:
        warnings = {warning.code: warning for output in each.outputs for warning in output.plan.warnings}
        told.warned(tuple(warnings.values()), variant=each.variant.label)
    results = [_variant(each, settings, told) for each in prepared]
    whole = shard is None or shard.count == 1
    found = _result(file, root, results, shard=None if whole else shard, dry_run=settings.dry_run)
    if whole and not settings.dry_run:
        _write(root, found)
    return found


def merge(file: RecipeFile, options: RunOptions | None = None) -> RunResult:
    """Put together what the shards of a recipe have left in its folder.

    Raises :class:`CheckpointError` where a variant is missing, or is of another version of the recipe.
    """
    settings = options or RunOptions()
    root = one_root(file, settings)
    found: list[VariantResult] = []
    for variant in file.variants:
        folder = folder_of(file, variant, settings)
        left = read_state(folder, recipe=file.name)
        if left is None or left.document != document_digest(variant):
            raise CheckpointError(
                "a variant has no results yet" if left is None else "a variant's results are of another recipe text",
                code="incomplete",
                file=str(folder),
                key=variant.label or None,
                expected=f"the results of all {len(file.variants)} variants below {root}",
                found="nothing" if left is None else "what was run before the recipe was changed",
                hint="run its shard, or bring its folder there; a run without --shard does all that is left",
            )
        found.append(left)
    result = _result(file, root, found, shard=None, dry_run=False)
    _write(root, result)
    return result


def document_digest(variant: Variant) -> str:
    """What tells what a recipe says for a variant from anything else."""
    return digest(variant.document)


def _result(
    file: RecipeFile, root: Path, variants: Sequence[VariantResult], *, shard: Shard | None, dry_run: bool
) -> RunResult:
    return RunResult(
        recipe=file.name,
        out=str(root),
        shard=None if shard is None else f"{shard.index}/{shard.count}",
        dry_run=dry_run,
        ok=dry_run or all(variant.ok for variant in variants),
        exit_code=next((variant.exit_code for variant in variants if variant.exit_code), 0),
        variants=tuple(variants),
    )


def _write(root: Path, result: RunResult) -> None:
    write_document(root / RESULTS, encode(result))
    write_document(root / SUMMARY, summary(result).encode())


def _variant(prepared: Prepared, options: RunOptions, audience: Audience) -> VariantResult:
    """Do what is left of a variant."""
    steps = steps_of(prepared)
    result = VariantResult(
        recipe=prepared.recipe,
        label=prepared.variant.label,
        values=prepared.variant.values,
        document=document_digest(prepared.variant),
        folder=prepared.variant.label or ".",
        source=prepared.opened.source.given,
        ok=not steps,
        exit_code=0,
        steps=tuple(_pending(step) for step in steps),
    )
    if options.dry_run:
        before = read_state(prepared.folder, recipe=prepared.recipe)
        return _outlook(State(prepared.folder, result, before), steps, options, audience)
    with locked(prepared.folder):
        state = State(prepared.folder, result, read_state(prepared.folder, recipe=prepared.recipe))
        _carry_out(state, steps, options, audience)
        return state.result


def _pending(step: Step) -> StepResult:
    return StepResult(step=step.name, output=step.output.name, status="pending", inputs="")


def _outlook(state: State, steps: Iterable[Step], options: RunOptions, audience: Audience) -> VariantResult:
    """What would be done: everything, but what stands from an earlier run and depends on nothing that doesn't."""
    found: list[StepResult] = []
    anew: set[str] = set()
    for step in steps:
        pending = _pending(step)
        known = state.known(pending)
        inputs = step.inputs() if step.output.name not in anew else ""
        if known is not None and inputs and not options.force and step.stands(known, inputs):
            pending = msgspec.structs.replace(known, status="unchanged", error=None)
        else:
            anew.add(step.output.name)
        audience.ended(pending)
        found.append(pending)
    return msgspec.structs.replace(state.result, steps=tuple(found), ok=True)


def _carry_out(state: State, steps: Sequence[Step], options: RunOptions, audience: Audience) -> None:
    """Step after step, until one fails."""
    anew: set[str] = set()
    for number, step in enumerate(steps, start=1):
        pending = _pending(step)
        known = state.known(pending)
        try:
            inputs = step.inputs()
        except OSError as error:
            raise output_error(error, step.output.path) from error
        may_stand = not options.force and step.output.name not in anew
        if known is not None and may_stand and step.stands(known, inputs):
            unchanged = msgspec.structs.replace(known, status="unchanged", error=None)
            state.put(unchanged)
            audience.ended(unchanged)
            continue
        anew.add(step.output.name)
        started = msgspec.structs.replace(pending, status="started", inputs=inputs)
        state.put(started)
        audience.begins(started, variant=state.result.label, number=number, of=len(steps))
        done = _done(step, started, known, audience, folder=state.folder)
        state.put(done)
        audience.ended(done)
        if done.error is not None:
            return


def _done(step: Step, started: StepResult, known: StepResult | None, audience: Audience, *, folder: Path) -> StepResult:
    """Do a step; what became of it, well or not."""
    begun = time.monotonic()
    try:
        try:
            outcome = step.do(audience, known)
        except OSError as error:
            raise output_error(error, step.output.path) from error
    except CtxextendError as error:
        return msgspec.structs.replace(
            started,
            status="failed",
            summary=error.message,
            seconds=round(time.monotonic() - begun, 3),
            error=error_document(error),
        )
    return msgspec.structs.replace(
        started,
        status="done" if outcome.error is None else "failed",
        summary=outcome.summary,
        seconds=round(time.monotonic() - begun, 3),
        files=tuple(_relative(path, folder) for path in outcome.files),
        figures=dict(outcome.figures),
        error=None if outcome.error is None else error_document(outcome.error),
    )


def _relative(path: Path, folder: Path) -> str:
    with suppress(ValueError):
        path = path.relative_to(folder)
    return path.as_posix()
