"""The verbs of the lab, wired: open a checkpoint, run it, measure. The command line and Python both come here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, Struct

from ctxextend import checkpoint
from ctxextend.errors import RefusedError, UsageError
from ctxextend.inspection import Inspection
from ctxextend.lab import evaluation as measuring
from ctxextend.lab import positions
from ctxextend.lab.engines import Choice, engine_of, need_of, open_engine, whole_of
from ctxextend.lab.engines.base import Engine, EngineFacts
from ctxextend.lab.engines.tokenizer import Tokenizer
from ctxextend.lab.gates import Measured
from ctxextend.lab.ledger import Ledger
from ctxextend.lab.names import ORIGINAL
from ctxextend.lab.report_folder import require_report_folder
from ctxextend.lab.results import Cell, Comparison, Evaluation, Settings
from ctxextend.lab.runnable import more_positions, most_tokens, require_next_token, require_positions
from ctxextend.lab.smoke import WHOLE, Job, Limits, Say, SmokeReport, smoke
from ctxextend.lab.texts import read_documents
from ctxextend.pipeline import Opened, inspect_source, rope_meant
from ctxextend.recipe import Recipe

if TYPE_CHECKING:
    from ctxextend.lab.comparing import Wish


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

    Raises :class:`RefusedError` where the memory can't hold that, with the longest length that fits, and for a model
    that predicts no next token.
    """
    inspection = inspect_source(opened, Recipe(family=family))
    require_next_token(opened, inspection)
    choice = choice or Choice()
    length = length or inspection.current_context
    most = most_tokens(opened, inspection, choice)
    # Nothing is read past the last position, so that there has to be no room for it.
    room = length if most is None else min(length, most)
    documents = read_documents(texts)
    meant = rope_meant(opened, inspection, length=length)
    need = need_of(opened, inspection, choice, length=room)
    whole = min(WHOLE, whole_of(opened, inspection, choice, length=room))
    say("loading the model")
    with closing(open_engine(opened, choice, length=room)) as engine:
        if choice.endpoint is not None and engine.facts.context is not None:
            # A server always makes a token, and wants room for it.
            length = min(length, engine.facts.context - 1)
        job = Job(
            inspection=inspection,
            length=length,
            tables=None if meant is None else meant.tables,
            dynamic=meant is not None and (meant.dynamic or any(t.switches for t in meant.tables.values())),
            limits=limits or Limits(),
            passkey=passkey,
            needed_bytes=None if need is None else need.total,
            whole=whole,
            most=most,
            more=more_positions(opened, inspection, length),
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

    ``folder`` takes each result as it comes, and a second run goes on from them; ``anew`` throws them away, and what
    others have put there. ``before`` sees what will be done, and can stop it; ``dry`` stops it in any case, before
    weights are loaded where the tokens can be counted without them.
    """

    folder: Path | None = None
    anew: bool = False
    dry: bool = False
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
    require_next_token(opened, inspection)
    choice = choice or Choice()
    settings = settled(settings, inspection, held=against is not None or original)
    require_positions(opened, inspection, choice, length=max(settings.lengths), option="--lengths")
    if against is not None:
        _require_other(against, choice, settings)
    _require_folder(how, opened, against)
    if original:
        _require_record(opened, inspection, choice)
    documents = read_documents(texts)
    longest = max((*settings.lengths, *settings.short_lengths))
    need_of(opened, inspection, choice, length=longest, beside=max(settings.short_lengths) if original else 0)

    def laid_out(
        encoder: measuring.Encoder, facts: EngineFacts | None
    ) -> tuple[measuring.Material, list[Cell], Ledger]:
        found = measuring.material(encoder, documents)
        cells = measuring.cells_of(settings, found, trained=inspection.trained_context)
        named = measuring.identity(opened, facts, found, settings, against=against, original=original, choice=choice)
        return found, list(cells), Ledger(how.folder, named, anew=how.anew, partial=facts is None)

    tokenizer = _tokenizer(opened, choice) if how.dry else None
    if tokenizer is not None:
        _found, cells, ledger = laid_out(tokenizer, None)
        how.before(_laid(cells, ledger, inspection))
        return None
    how.say("loading the model")
    with ExitStack() as stack:
        engine = stack.enter_context(closing(open_engine(opened, choice, length=longest)))
        _require_room(engine, choice, settings, longest)
        found, cells, ledger = laid_out(engine, engine.facts)
        stack.enter_context(closing(ledger))
        if not how.before(_laid(cells, ledger, inspection)) or how.dry:
            return None
        other = _other(inspection, engine, against, choice, settings, original=original, say=how.say)
        if other is not None:
            stack.enter_context(closing(other))
            measuring.require_short(engine, other)
        measuring.run(engine, other, cells, found=found, settings=settings, ledger=ledger, progress=how.progress)
        return measuring.evaluation(
            inspection,
            engine,
            method=measuring.method_of(opened, inspection),
            against=ORIGINAL if original else None if against is None else against.source.given,
            settings=settings,
            found=found,
            ledger=ledger,
            cells=cells,
            bounds=bounds,
        )


def _require_room(engine: Engine, choice: Choice, settings: Settings, longest: int) -> None:
    """Raises :class:`UsageError` for lengths without room for the token that a server makes after a text."""
    context = engine.facts.context
    reads = {"perplexity", "sliding"} & set(settings.tasks)
    room = context if context is None or not reads else context - 1
    if choice.endpoint is not None and room is not None and longest > room:
        raise UsageError(
            "the server has no room for this length",
            code="too-long",
            key="--lengths",
            expected=f"at most {room} tokens",
            found=str(longest),
            hint=f"--lengths {room}, or serve it with a longer context",
        )


def compare_source(
    opened: Opened,
    wishes: Iterable[Wish],
    settings: Settings,
    *,
    recipe: Recipe,
    choice: Choice | None = None,
    texts: Sequence[str] = (),
    how: Run | None = None,
) -> Comparison | None:
    """Measure several methods on one checkpoint.

    None where ``how.before`` stopped it.
    """
    how = how or Run()
    from ctxextend.lab import comparing
    from ctxextend.lab.engines.transformers import TransformersEngine

    inspection = inspect_source(opened, recipe)
    require_next_token(opened, inspection)
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
    settings, notes = _without_unknown(settings, inspection)
    short = "short" in settings.tasks
    settings = msgspec.structs.replace(
        settings,
        lengths=tuple(sorted({wish.target for wish in wanted})),
        short_lengths=_short_lengths(settings, inspection) if short else (),
    )
    _require_folder(how, opened)
    candidates = comparing.planned(opened, inspection, wanted, recipe)
    documents = read_documents(texts)
    room = max(settings.short_lengths, default=1)
    need_of(opened, inspection, choice, length=max(settings.lengths), beside=room)

    def laid_out(
        encoder: measuring.Encoder, facts: EngineFacts | None
    ) -> tuple[measuring.Material, Mapping[str, object], Laid]:
        found = measuring.material(encoder, documents)
        shared = measuring.identity(opened, facts, found, settings, against=None)
        laid = [
            _laid(
                measuring.cells_of(
                    comparing.settings_for(settings, candidate.wish), found, trained=inspection.trained_context
                ),
                comparing.ledger_of(candidate, opened, shared, how.folder, anew=how.anew, partial=facts is None),
                inspection,
            )
            for candidate in candidates
            if candidate.refused is None
        ]
        return found, shared, _together(laid)

    tokenizer = _tokenizer(opened, choice) if how.dry else None
    if tokenizer is not None:
        how.before(laid_out(tokenizer, None)[-1])
        return None
    how.say("loading the model")
    with closing(open_engine(opened, choice, length=room)) as engine:
        assert isinstance(engine, TransformersEngine)
        found, shared, laid = laid_out(engine, engine.facts)
        if not how.before(laid) or how.dry:
            return None
        bench = comparing.Bench(
            opened=opened,
            inspection=inspection,
            recipe=recipe,
            shared=shared,
            engine=engine,
            original=comparing.original_of(engine, inspection) if short else engine,
            found=found,
            settings=settings,
            folder=how.folder,
            anew=how.anew,
            progress=how.progress,
            say=how.say,
        )
        return comparing.compare(bench, candidates, notes=notes)


def _without_unknown(settings: Settings, inspection: Inspection) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a comparison without short contexts where nothing tells what the model was, and a note of that.

    Raises :class:`UsageError` for short lengths that nothing is measured at, :class:`RefusedError` where nothing is
    left to measure.
    """
    rest = tuple(task for task in settings.tasks if task != "short")
    if rest == settings.tasks:
        if settings.short_lengths:
            raise _short_unused("short to --tasks")
        return settings, ()
    if all(group.scaling is None or group.origin != "bolted-on" for group in inspection.groups):
        return settings, ()
    if not rest:
        raise RefusedError(
            "what this model was before somebody scaled it isn't recorded",
            code="no-record",
            file=inspection.source,
            key="--tasks",
            found="short",
            hint="compare the checkpoint that it was made of",
        )
    note = "Short contexts weren't measured: what this model was before somebody scaled it isn't recorded."
    return msgspec.structs.replace(settings, tasks=rest, short_lengths=()), (note,)


def _require_folder(how: Run, *checkpoints: Opened | None) -> None:
    """Raises where the folder of ``how`` isn't one for a report of these checkpoints."""
    if how.folder is not None:
        folders = [opened.source.folder for opened in checkpoints if opened is not None]
        sources = [folder for folder in folders if folder is not None]
        require_report_folder(how.folder, sources=sources, force=how.anew)


def _tokenizer(opened: Opened, choice: Choice) -> Tokenizer | None:
    """The tokenizer that the engine will use, without the engine; None where only the engine has it.

    That is so of a GGUF file, of a server, and of a repository, whose files are fetched together.
    """
    if choice.endpoint is not None or opened.source.folder is None:
        return None
    if engine_of(opened, choice.engine) == "llama.cpp":
        return None
    folder = checkpoint.folder_of(opened.source, opened.contents)
    return Tokenizer(folder, trust_remote_code=choice.trust_remote_code)


def settled(settings: Settings, inspection: Inspection, *, held: bool) -> Settings:
    """The settings with the lengths that weren't named, and the comparison where there is something to hold against.

    Raises :class:`UsageError` for a comparison with nothing.
    """
    tasks = settings.tasks
    if not held:
        if "short" in tasks:
            raise UsageError(
                "there is nothing to hold the model against",
                code="no-against",
                key="--tasks",
                found="short",
                hint="--against BASE names the checkpoint that it was made of",
            )
        if settings.short_lengths:
            raise _short_unused("--against BASE")
    elif "short" not in tasks:
        tasks = (*tasks, "short")
    return msgspec.structs.replace(
        settings,
        tasks=tasks,
        lengths=settings.lengths or measuring.default_lengths(inspection),
        short_lengths=_short_lengths(settings, inspection) if held else (),
    )


def _short_lengths(settings: Settings, inspection: Inspection) -> tuple[int, ...]:
    """Those that were named, or the usual ones. Raises :class:`UsageError` for one that the original couldn't do."""
    trained = inspection.trained_context
    beyond = [length for length in settings.short_lengths if length > trained]
    if beyond:
        raise UsageError(
            "the original wasn't trained for this length, so that it says nothing there",
            code="bad-option",
            key="--short-lengths",
            expected=f"at most {trained} tokens",
            found=f"{max(beyond)}",
        )
    return settings.short_lengths or measuring.default_short(trained)


def _short_unused(needed: str) -> UsageError:
    return UsageError(
        "short lengths are for holding the model against another, which isn't asked for",
        code="no-against",
        key="--short-lengths",
        hint=f"add {needed}",
    )


def _laid(cells: Sequence[Cell], ledger: Ledger, inspection: Inspection) -> Laid:
    left = [cell for cell in cells if cell not in ledger]
    costs = [measuring.flops_of(cell, inspection) for cell in left]
    known = [cost for cost in costs if cost is not None]
    return Laid(
        cells=len(cells),
        kept=len(cells) - len(left),
        tokens=sum(map(positions.tokens_of, left)),
        flops=sum(known) if len(known) == len(costs) else None,
    )


def _together(parts: Sequence[Laid]) -> Laid:
    """What several measurements will do one after the other."""
    known = [part.flops for part in parts if part.flops is not None]
    return Laid(
        cells=sum(part.cells for part in parts),
        kept=sum(part.kept for part in parts),
        tokens=sum(part.tokens for part in parts),
        flops=sum(known) if len(known) == len(parts) else None,
    )


def _require_record(opened: Opened, inspection: Inspection, choice: Choice) -> None:
    """Raises :class:`UsageError` where a checkpoint can't be put back to what it was, for what its weights hold too."""
    inside = choice.endpoint is None and engine_of(opened, choice.engine) == "transformers"
    if inspection.record is None or not inside:
        raise UsageError(
            "this checkpoint doesn't tell what it was",
            code="no-record",
            key="--against",
            expected="a folder that ctxextend converted, in transformers",
            found=opened.source.given,
            hint="--against BASE names the checkpoint that it was made of",
        )
    if inspection.record.baked is not UNSET:
        raise UsageError(
            "the conversion went into this checkpoint's weights, and its config alone doesn't put them back",
            code="baked-source",
            key="--against",
            found=opened.source.given,
            hint="--against BASE names the checkpoint that it was made of",
        )


def _require_other(against: Opened, choice: Choice, settings: Settings) -> None:
    """Raises :class:`RefusedError` for a model that can't be run at the short lengths, before any is loaded."""
    inspection = inspect_source(against, Recipe())
    require_next_token(against, inspection)
    require_positions(against, inspection, choice, length=max(settings.short_lengths), option="--short-lengths")


def _other(
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

        assert isinstance(engine, TransformersEngine)
        return variant(engine, inspection.config, longest=max(settings.short_lengths))
    if against is None:
        return None
    longest = max(settings.short_lengths)
    need_of(against, inspect_source(against, Recipe()), choice, length=longest)
    say("loading the one it is held against")
    return open_engine(against, choice, length=longest)
