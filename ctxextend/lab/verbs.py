"""The verbs of the lab, wired: open a checkpoint, run it, measure. The command line and Python both come here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ctxextend.errors import UsageError
from ctxextend.inspection import Inspection
from ctxextend.lab import evaluation as measuring
from ctxextend.lab import positions
from ctxextend.lab.engines import Choice, need_of, open_engine
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.gates import Measured
from ctxextend.lab.ledger import Ledger
from ctxextend.lab.names import ORIGINAL
from ctxextend.lab.results import Cell, Comparison, Evaluation, Settings
from ctxextend.lab.smoke import Job, Limits, Say, SmokeReport, smoke
from ctxextend.lab.texts import read_documents
from ctxextend.pipeline import Opened, inspect_source, rope_meant
from ctxextend.recipe import Recipe


def _quiet(_text: str, _tokens: int = 0) -> None:
    """Nobody is told."""


def smoke_source(
    opened: Opened,
    *,
    length: int | None = None,
    choice: Choice | None = None,
    texts: Sequence[str] = (),
    limits: Limits | None = None,
    passkey: bool = True,
    family: str | None = None,
    say: Say = _quiet,
) -> SmokeReport:
    """Run a checkpoint at ``length`` tokens (its own context without) and see whether it works there.

    Raises :class:`RefusedError` where the memory can't hold that, with the longest length that fits.
    """
    inspection = inspect_source(opened, Recipe(family=family))
    choice = choice or Choice()
    length = length or inspection.current_context
    documents = read_documents(texts)
    meant = rope_meant(opened, inspection, length=length)
    need = need_of(opened, inspection, choice, length=length)
    say("loading the model")
    with closing(open_engine(opened, choice, length=length)) as engine:
        job = Job(
            inspection=inspection,
            length=length,
            tables=None if meant is None else meant.tables,
            dynamic=meant is not None and (meant.dynamic or any(t.switches for t in meant.tables.values())),
            limits=limits or Limits(),
            passkey=passkey,
            needed_bytes=None if need is None else need.total,
        )
        return smoke(engine, job, documents=documents, say=say)


class Laid(Struct, frozen=True, kw_only=True):
    """What a measurement will do. ``tokens`` counts those to read, ``kept`` the cells that an earlier run left."""

    schema: str = "ctxextend.eval-plan/1"
    cells: int
    kept: int
    tokens: int
    flops: float | None


class Run(Struct, frozen=True, kw_only=True):
    """How a measurement goes: where its results are kept, and who is told.

    ``folder`` takes each result as it comes, and a second run goes on from them; ``anew`` throws them away. ``before``
    sees what will be done, and can stop it.
    """

    folder: Path | None = None
    anew: bool = False
    say: Say = _quiet
    before: Callable[[Laid], bool] = lambda _laid: True
    progress: measuring.Progress = _quiet


def eval_source(
    opened: Opened,
    settings: Settings,
    *,
    choice: Choice | None = None,
    against: Opened | None = None,
    original: bool = False,
    texts: Sequence[str] = (),
    bounds: Callable[[Measured], Mapping[str, float]] = lambda _measured: {},
    family: str | None = None,
    how: Run | None = None,
) -> Evaluation | None:
    """Measure a checkpoint along its context. None where ``how.before`` stopped it.

    ``against``: the one it was made of; ``original``: itself, as its record says it was. ``bounds``: from what was
    measured, the gates to hold it to.
    """
    how = how or Run()
    inspection = inspect_source(opened, Recipe(family=family))
    choice = choice or Choice()
    settings = _settled(settings, inspection, held=against is not None or original)
    documents = read_documents(texts)
    longest = max((*settings.lengths, *settings.short_lengths))
    need_of(opened, inspection, choice, length=longest)
    how.say("loading the model")
    with closing(open_engine(opened, choice, length=longest)) as engine:
        found = measuring.material(engine, documents)
        cells = measuring.cells_of(settings, found, trained=inspection.trained_context)
        with closing(
            Ledger(
                how.folder,
                measuring.identity(opened, engine.facts, found, settings, against=against, original=original),
                anew=how.anew,
            )
        ) as ledger:
            if not how.before(_laid(cells, ledger, inspection)):
                return None
            other = _other(opened, inspection, engine, against, choice, settings, original=original, say=how.say)
            try:
                if other is not None:
                    measuring.require_short(engine, other)
                measuring.run(
                    engine, other, cells, found=found, settings=settings, ledger=ledger, progress=how.progress
                )
            finally:
                if other is not None:
                    other.close()
            return measuring.evaluation(
                inspection,
                engine,
                against=ORIGINAL if original else None if against is None else against.source.given,
                settings=settings,
                found=found,
                results=[ledger.results[cell] for cell in cells],
                bounds=bounds,
            )


def compare_source(
    opened: Opened,
    wishes: Iterable[Any],
    settings: Settings,
    *,
    recipe: Recipe,
    choice: Choice | None = None,
    texts: Sequence[str] = (),
    how: Run | None = None,
) -> Comparison | None:
    """Measure several methods on one checkpoint (``wishes``: :class:`ctxextend.lab.comparing.Wish`).

    None where ``how.before`` stopped it.
    """
    how = how or Run()
    from ctxextend.lab import comparing
    from ctxextend.lab.engines.transformers import TransformersEngine

    inspection = inspect_source(opened, recipe)
    comparing.require_comparable(opened, inspection)
    choice = choice or Choice()
    if choice.engine not in ("auto", "transformers") or choice.endpoint is not None:
        raise UsageError(
            "methods are compared in transformers",
            code="bad-engine",
            key="--engine",
            expected="transformers",
            found=choice.endpoint or choice.engine,
            hint="leave --engine away; eval measures one conversion in any engine",
        )
    wanted = tuple(wishes)
    settings = msgspec.structs.replace(
        settings,
        lengths=tuple(sorted({wish.target for wish in wanted})),
        short_lengths=settings.short_lengths or measuring.default_short(inspection.trained_context),
    )
    candidates = comparing.planned(opened, inspection, wanted, recipe)
    documents = read_documents(texts)
    need_of(opened, inspection, choice, length=max(settings.lengths))
    how.say("loading the model")
    with closing(open_engine(opened, choice, length=max(settings.lengths))) as engine:
        assert isinstance(engine, TransformersEngine)
        found = measuring.material(engine, documents)
        cells = [
            cell
            for candidate in candidates
            if candidate.refused is None
            for cell in measuring.cells_of(
                comparing.settings_for(settings, candidate.wish), found, trained=inspection.trained_context
            )
        ]
        if not how.before(_laid(cells, Ledger(None, {}), inspection)):
            return None
        bench = comparing.Bench(
            opened=opened,
            inspection=inspection,
            engine=engine,
            found=found,
            settings=settings,
            folder=how.folder,
            anew=how.anew,
            progress=how.progress,
            say=how.say,
        )
        return comparing.compare(bench, candidates)


def _settled(settings: Settings, inspection: Inspection, *, held: bool) -> Settings:
    """The settings with the lengths that weren't named, and the comparison where there is something to hold against."""
    short: tuple[int, ...] = ()
    tasks = tuple(task for task in settings.tasks if task != "short" or held)
    if held:
        short = settings.short_lengths or measuring.default_short(inspection.trained_context)
        tasks = tasks if "short" in tasks else (*tasks, "short")
    if not tasks:
        raise UsageError(
            "there is nothing to hold the model against",
            code="no-against",
            key="--tasks",
            found="short",
            hint="--against BASE names the checkpoint that it was made of",
        )
    return msgspec.structs.replace(
        settings,
        tasks=tasks,
        lengths=settings.lengths or measuring.default_lengths(inspection),
        short_lengths=short,
    )


def _laid(cells: Sequence[Cell], ledger: Ledger, inspection: Inspection) -> Laid:
    left = [cell for cell in cells if cell not in ledger.results]
    costs = [measuring.flops_of(cell, inspection) for cell in left]
    known = [cost for cost in costs if cost is not None]
    return Laid(
        cells=len(cells),
        kept=len(cells) - len(left),
        tokens=sum(map(positions.tokens_of, left)),
        flops=sum(known) if len(known) == len(costs) else None,
    )


def _other(
    opened: Opened,
    inspection: Inspection,
    engine: Engine,
    against: Opened | None,
    choice: Choice,
    settings: Settings,
    *,
    original: bool,
    say: Say,
) -> Engine | None:
    """The model that the first is held against."""
    if original:
        from ctxextend.lab.engines.transformers import TransformersEngine, variant

        if inspection.record is None or not isinstance(engine, TransformersEngine):
            raise UsageError(
                "this checkpoint doesn't tell what it was",
                code="no-record",
                key="--against",
                expected="a folder that ctxextend converted, in transformers",
                found=opened.source.given,
                hint="--against BASE names the checkpoint that it was made of",
            )
        return variant(engine, inspection.config)
    if against is None:
        return None
    longest = max(settings.short_lengths)
    need_of(against, inspect_source(against, Recipe()), choice, length=longest)
    say("loading the one it is held against")
    return open_engine(against, choice, length=longest)
