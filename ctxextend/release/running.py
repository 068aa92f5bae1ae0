"""Carrying a recipe out: every variant made ready first, then step after step, each result kept as it comes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from ctxextend.apply import encode, output_error
from ctxextend.checkpoint.secrets import masked
from ctxextend.documents import error_document
from ctxextend.errors import CheckpointError, CtxextendError
from ctxextend.lab.evaluation import fingerprint
from ctxextend.release.audience import Audience
from ctxextend.release.matrix import Shard, select
from ctxextend.release.places import folder_of, forget_results, one_root, require_results
from ctxextend.release.prepared import Prepared, RunOptions, digest
from ctxextend.release.preparing import Preparation
from ctxextend.release.reading import RecipeFile, Variant
from ctxextend.release.results import RESULTS, SUMMARY, RunResult, StepResult, VariantResult, judged
from ctxextend.release.state import State, locked, read_state, sha256_of_file, write_document
from ctxextend.release.steps import How, Step, steps_of
from ctxextend.release.summary import summary


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
    whole = shard is None or shard.count == 1
    if whole:
        require_results(root, recipe=file.name)
    if whole and not settings.dry_run:
        forget_results(root)
    variants = file.variants if shard is None else select(file.variants, shard)
    preparation = Preparation(file, settings, say=told.say)
    prepared = [preparation.prepare(variant) for variant in variants]
    results = [_variant(each, settings, told) for each in prepared]
    found = _result(file, root, results, shard=None if whole else shard, dry_run=settings.dry_run)
    if whole and not settings.dry_run:
        _write(root, found)
    return found


def merge(file: RecipeFile, options: RunOptions | None = None) -> RunResult:
    """Put together what the shards of a recipe have left in its folder.

    Raises :class:`CheckpointError` where a variant is missing or unfinished, or is of another version of the recipe,
    of the source or of ctxextend than the others.
    """
    settings = options or RunOptions()
    root = one_root(file, settings)
    require_results(root, recipe=file.name)
    found: list[VariantResult] = []
    for variant in file.variants:
        folder = folder_of(file, variant, settings)
        left = read_state(folder, recipe=file.name)
        if left is None:
            raise _incomplete(folder, variant, "no results")
        if left.document != document_digest(variant):
            raise _incomplete(folder, variant, "results of what the recipe said before it was changed")
        if not left.ok and not left.exit_code:
            raise _incomplete(folder, variant, "a run that was cut short, or isn't at its end")
        same = next((other for other in found if other.source == left.source), left)
        for what, one, other in (
            ("version of ctxextend", left.version, found[0].version if found else left.version),
            ("state of the source", left.fingerprint, same.fingerprint),
        ):
            if one != other:
                raise _incomplete(folder, variant, f"results of another {what} than those of {same.label}")
        found.append(left)
    result = _result(file, root, found, shard=None, dry_run=False)
    _write(root, result)
    return result


def _incomplete(folder: Path, variant: Variant, found: str) -> CheckpointError:
    return CheckpointError(
        "the results aren't those of one whole run",
        code="incomplete",
        file=str(folder),
        key=variant.label or None,
        expected="every variant's, of the same recipe, source and version",
        found=found,
        hint="run its shard, or bring its folder there; a run without --shard does all that is left",
    )


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
    """Do what is left of a variant, or tell what that is."""
    steps = steps_of(prepared)
    warnings = {warning.code: warning for output in prepared.outputs for warning in output.plan.warnings}
    result = VariantResult(
        recipe=prepared.recipe,
        label=prepared.variant.label,
        values=prepared.variant.values,
        document=document_digest(prepared.variant),
        fingerprint=fingerprint(prepared.opened),
        folder=prepared.variant.label or ".",
        source=prepared.opened.source.given,
        ok=not steps,
        exit_code=0,
        warnings=tuple(warnings.values()),
        steps=tuple(StepResult(step=s.name, output=s.output.name, status="pending", inputs="") for s in steps),
    )
    audience.variant(result)
    if options.dry_run:
        state = State(prepared.folder, result, read_state(prepared.folder, recipe=prepared.recipe))
        return _outlook(state, steps, options, audience)
    try:
        with locked(prepared.folder):
            state = State(prepared.folder, result, read_state(prepared.folder, recipe=prepared.recipe))
            _carry_out(state, steps, options, audience)
            return state.result
    except Exception as error:
        if os.environ.get("CTXEXTEND_DEBUG") == "1":
            raise
        # Such as another run in this folder: the other variants have folders of their own.
        failed = msgspec.structs.replace(result, error=error_document(_as_ours(error, prepared.folder)))
        return judged(failed, steps=result.steps)


def _kept(step: Step, left: StepResult, state: State, options: RunOptions, anew: set[str]) -> StepResult | None:
    """An earlier run's result of a step where it stands; nothing stands after what is done anew for its output."""
    known = state.known(left)
    may_stand = known is not None and not options.force and step.output.name not in anew
    if known is not None and may_stand and known.inputs == step.inputs() and step.stands(known):
        return msgspec.structs.replace(known, status="unchanged", error=None)
    anew.add(step.output.name)
    return None


def _outlook(state: State, steps: Iterable[Step], options: RunOptions, audience: Audience) -> VariantResult:
    """What would be done."""
    found: list[StepResult] = []
    anew: set[str] = set()
    for step, left in zip(steps, state.result.steps, strict=True):
        kept = _kept(step, left, state, options, anew)
        told = kept or StepResult(
            step=step.name, output=step.output.name, status="pending", inputs="", summary=step.outlook()
        )
        audience.ended(told)
        found.append(told)
    return msgspec.structs.replace(state.result, steps=tuple(found), ok=True)


def _carry_out(state: State, steps: Sequence[Step], options: RunOptions, audience: Audience) -> None:
    """Step after step, until one fails."""
    anew: set[str] = set()
    for number, (step, left) in enumerate(zip(steps, state.result.steps, strict=True), start=1):
        kept = _kept(step, left, state, options, anew)
        if kept is not None:
            state.put(kept)
            audience.ended(kept)
            continue
        started = StepResult(step=step.name, output=step.output.name, status="started", inputs=step.inputs())
        state.put(started)
        audience.begins(started, number=number, of=len(steps))
        how = How(audience=audience, made=state.result.made, cards=state.result.cards, force=options.force)
        done = _done(step, started, how, folder=state.folder)
        state.put(done)
        audience.ended(done)
        if done.error is not None:
            return


def _done(step: Step, started: StepResult, how: How, *, folder: Path) -> StepResult:
    """Do a step; what became of it, well or not."""
    begun = time.monotonic()
    try:
        outcome = step.do(how)
    except Exception as error:
        if os.environ.get("CTXEXTEND_DEBUG") == "1":
            raise
        failure = _as_ours(error, step.output.path)
        return msgspec.structs.replace(
            started,
            status="failed",
            summary=failure.message,
            seconds=round(time.monotonic() - begun, 3),
            error=error_document(failure),
        )
    return msgspec.structs.replace(
        started,
        status="done" if outcome.error is None else "failed",
        summary=outcome.summary,
        seconds=round(time.monotonic() - begun, 3),
        files={path.relative_to(folder).as_posix(): sha256_of_file(path) for path in outcome.files},
        stamp=outcome.stamp,
        figures=dict(outcome.figures),
        error=None if outcome.error is None else error_document(outcome.error),
    )


def _as_ours(error: Exception, path: Path) -> CtxextendError:
    """What escaped a step, as an error to show: ours, the system's, or another's."""
    if isinstance(error, CtxextendError):
        return error
    if isinstance(error, OSError):
        return output_error(error, path)
    return CtxextendError(
        masked(f"{type(error).__name__}: {error}")[:2000],
        code="bug",
        file=str(path),
        hint="where that isn't memory that ran out, please report it; CTXEXTEND_DEBUG=1 shows the traceback",
    )
