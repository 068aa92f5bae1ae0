"""``compare``: the same measurements for several methods and lengths, over one copy of the weights.

Nothing is written: each candidate is the loaded model under the config that its plan would write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ctxextend.errors import RefusedError
from ctxextend.formats.json_edit import apply_edits
from ctxextend.inspection import Inspection
from ctxextend.lab.engines.transformers import TransformersEngine, variant
from ctxextend.lab.evaluation import Material, Progress, cells_of, run, spectra, spent, summary
from ctxextend.lab.ledger import Ledger, name_for
from ctxextend.lab.names import UNTOUCHED
from ctxextend.lab.results import Best, Candidate, Comparison, Cost, Curve, Rate, Settings
from ctxextend.lengths import show_tokens
from ctxextend.methods import extension_factor
from ctxextend.pipeline import Opened, inspect_source, plan_inspected
from ctxextend.plan import Plan, edits_of
from ctxextend.recipe import Recipe
from ctxextend.version import VERSION


class Wish(Struct, frozen=True, kw_only=True):
    """A method to try, with its parameters, and the length to reach in tokens. ``label`` is how it was asked for."""

    label: str
    method: str
    options: Mapping[str, Any]
    target: int


class Planned(Struct, frozen=True, kw_only=True):
    """A wish with its plan; without one, ``refused`` says why (or it is the model as it is)."""

    wish: Wish
    plan: Plan | None
    refused: str | None


def planned(opened: Opened, inspection: Inspection, wishes: Iterable[Wish], recipe: Recipe) -> tuple[Planned, ...]:
    """Each wish's plan. A refusal is kept as a sentence: the others are still worth comparing.

    Raises :class:`UsageError` for a parameter that can't be.
    """
    return tuple(_planned(opened, inspection, wish, recipe) for wish in wishes)


def _planned(opened: Opened, inspection: Inspection, wish: Wish, recipe: Recipe) -> Planned:
    if wish.method == UNTOUCHED:
        return Planned(wish=wish, plan=None, refused=None)
    asked = msgspec.structs.replace(recipe, method=wish.method, options=wish.options, target=wish.target)
    try:
        return Planned(wish=wish, plan=plan_inspected(opened.contents, inspection, asked), refused=None)
    except RefusedError as error:
        return Planned(wish=wish, plan=None, refused=error.message)


def config_of(opened: Opened, plan: Plan | None) -> dict[str, Any]:
    """config.json as the plan would write it, or as it is."""
    if plan is None:
        return opened.contents.config
    return apply_edits(opened.contents.config, edits_of(plan).get("config.json", ()))


def ledger_of(
    candidate: Planned,
    opened: Opened,
    shared: Mapping[str, Any],
    folder: Path | None,
    *,
    anew: bool,
    partial: bool = False,
) -> Ledger:
    """What an earlier run left of a candidate. ``shared``: what decides the numbers of all; ``partial``: some of it."""
    named = {**shared, "config": config_of(opened, candidate.plan)}
    name = name_for(candidate.wish.label, candidate.wish.target)
    return Ledger(folder, named, name=name, anew=anew, partial=partial)


class Bench(Struct, frozen=True, kw_only=True):
    """What all candidates share. ``folder`` keeps results as they come; None keeps none.

    ``shared``: what decides the numbers of all, for their ledgers.
    ``original``: what candidates are held against at short lengths, ``engine`` itself where it is that.
    """

    opened: Opened
    inspection: Inspection
    recipe: Recipe
    shared: Mapping[str, Any]
    engine: TransformersEngine
    original: TransformersEngine
    found: Material
    settings: Settings
    folder: Path | None
    anew: bool
    progress: Progress
    say: Callable[[str], None]


def settings_for(settings: Settings, wish: Wish) -> Settings:
    """What is measured of a candidate: everything at the length it is for, and what it costs at short ones."""
    tasks = settings.tasks
    if wish.method == UNTOUCHED:
        tasks = tuple(task for task in tasks if task != "short")
    return msgspec.structs.replace(settings, lengths=(wish.target,), tasks=tasks)


def compare(bench: Bench, candidates: Iterable[Planned], *, notes: tuple[str, ...] = ()) -> Comparison:
    """Measure every candidate, one after the other."""
    measured = tuple(_measured(bench, candidate) for candidate in candidates)
    trained = bench.inspection.trained_context
    costs = [candidate.cost for candidate in measured if candidate.cost is not None]
    tokens, seconds = sum(cost.tokens for cost in costs), sum(cost.seconds for cost in costs)
    return Comparison(
        version=VERSION,
        source=bench.inspection.source,
        trained_context=trained,
        engine=bench.engine.facts,
        settings=bench.settings,
        texts=bench.found.texts,
        candidates=measured,
        best=tuple(best_of(measured, trained=trained)),
        cost=Cost(
            cells=sum(cost.cells for cost in costs),
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
            peak_memory_bytes=bench.engine.usage.peak_memory_bytes,
        ),
        notes=notes,
    )


def _measured(bench: Bench, candidate: Planned) -> Candidate:
    wish = candidate.wish
    factor = extension_factor(bench.inspection.trained_context, wish.target)
    empty = Candidate(
        method=wish.label,
        factor=1.0 if wish.method == UNTOUCHED else factor,
        target=wish.target,
        refused=candidate.refused,
        curves=(),
        rates=(),
        short=(),
        spectrum=(),
        cost=None,
    )
    if candidate.refused is not None:
        return empty
    bench.say(f"{wish.label} to {show_tokens(wish.target)}")
    settings = settings_for(bench.settings, wish)
    cells = cells_of(settings, bench.found, trained=bench.inspection.trained_context)
    config = config_of(bench.opened, candidate.plan)
    ledger = ledger_of(
        candidate,
        bench.opened,
        bench.shared,
        bench.folder,
        anew=bench.anew,
    )
    # The model as it is, too: what all are made of has room for short texts alone.
    engine = variant(bench.engine, config, longest=wish.target)
    try:
        run(
            engine,
            bench.original,
            cells,
            found=bench.found,
            settings=settings,
            ledger=ledger,
            progress=bench.progress,
        )
    finally:
        ledger.close()
        engine.forget()
        bench.original.forget()
    told = summary((ledger.entries[cell].result for cell in cells), settings)
    changed = msgspec.structs.replace(
        bench.opened.contents,
        documents={
            **bench.opened.contents.documents,
            "config.json": msgspec.structs.replace(bench.opened.contents.documents["config.json"], value=config),
        },
    )
    shown = inspect_source(msgspec.structs.replace(bench.opened, contents=changed), Recipe(family=bench.recipe.family))
    return msgspec.structs.replace(
        empty,
        curves=told.curves,
        rates=told.rates,
        short=told.short,
        spectrum=spectra(shown, length=wish.target),
        cost=spent(ledger, cells, engine),
    )


def best_of(candidates: Iterable[Candidate], *, trained: int) -> Iterator[Best]:
    """For each length past the trained one, the candidate that retrieves most, and predicts best among equals.

    Two rates are equal where the better one's interval reaches down to the other.
    """
    everything = [c for c in candidates if c.refused is None and c.curves and math.isfinite(_curve(c).whole)]
    for target in sorted({c.target for c in everything if c.target > trained}):
        rivals = [c for c in everything if c.target == target and c.method != UNTOUCHED]
        if not rivals:
            continue
        passkeys = {c.method: _passkey(c) for c in rivals}
        rates = [rate for rate in passkeys.values() if rate is not None]
        floor = max(rates, key=lambda rate: rate.rate).low if rates else 0.0
        able = [c for c in rivals if (rate := passkeys[c.method]) is None or rate.rate >= floor]
        best = min(able, key=lambda c: _curve(c).whole)
        yield Best(length=target, method=best.method, factor=best.factor, reason=_reason(best, able, rivals, passkeys))


def _reason(
    best: Candidate, able: list[Candidate], rivals: list[Candidate], passkeys: Mapping[str, Rate | None]
) -> str:
    parts = [f"the lowest perplexity over {show_tokens(best.target)} ({_curve(best).whole:.2f})"]
    if len(able) > 1:
        second = min((c for c in able if c is not best), key=lambda c: _curve(c).whole)
        parts[0] += f", before {second.method} ({_curve(second).whole:.2f})"
    rate = passkeys[best.method]
    if rate is not None:
        parts.append(f"{rate.found} of {rate.asked} pass keys")
    if len(able) < len(rivals):
        behind = ", ".join(c.method for c in rivals if c not in able)
        parts.append(f"fewer pass keys than that: {behind}")
    return "; ".join(parts)


def _curve(candidate: Candidate) -> Curve:
    return candidate.curves[-1]


def _passkey(candidate: Candidate) -> Rate | None:
    found = (r for r in candidate.rates if r.kind == "passkey" and r.depth is None and r.length == candidate.target)
    return next(found, None)


def original_of(engine: TransformersEngine, inspection: Inspection) -> TransformersEngine:
    """The model as its weights know it: itself, or as its record says that it was before ctxextend extended it.

    Of a scaling that was added by somebody else's hand nothing tells what stood there before.
    """
    return engine if inspection.record is None else variant(engine, inspection.config)


def require_comparable(opened: Opened, inspection: Inspection) -> None:
    """Raises :class:`RefusedError` for what can't be put under another config."""
    if opened.contents.gguf is not None:
        raise RefusedError(
            "methods are compared in transformers, which takes a folder",
            code="gguf-compared",
            file=opened.source.given,
            hint="ctxextend convert FILE.gguf --to safetensors makes one",
        )
    if inspection.position != "rope":
        raise RefusedError(
            "this model has no rope to scale",
            code="no-rope",
            file=opened.source.given,
            key="model_type",
            found=str(inspection.model_type),
        )
