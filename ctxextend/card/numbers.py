"""The part of a card that shows what was measured: numbers, where they come from, and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ctxextend.card.evidence import CHARTS, FOLDER, Curve, Evaluation, Evidence, Point, Smoke
from ctxextend.card.markdown import NOTHING, code, plain, table
from ctxextend.card.matter import TASKS
from ctxextend.errors import RefusedError
from ctxextend.lengths import show_bytes, show_tokens
from ctxextend.plan import Plan

#: So many stretches of positions are shown; the picture has all of them.
_STRETCHES = 8


def require_evidence_of(evidence: Evidence, plan: Plan) -> None:
    """Refuse numbers that were measured on something else. Raises :class:`RefusedError`."""
    evaluation, smoke = evidence.evaluation, evidence.smoke
    facts: list[tuple[str, int | str, int | str]] = []
    if evaluation is not None:
        facts.append(("trained length", plan.trained_context, evaluation.trained_context))
        facts.append(("length", max(plan.target_context, plan.trained_context), evaluation.current_context))
        if evaluation.method is not None and plan.method not in ("none", "repair"):
            facts.append(("method", plan.method, evaluation.method))
    if smoke is not None:
        facts.append(("trained length", plan.trained_context, smoke.trained_context))
    for what, expected, found in facts:
        if expected != found:
            raise RefusedError(
                f"this evidence is of another model: its {what} isn't the plan's",
                code="foreign-evidence",
                expected=str(expected),
                found=str(found),
                hint="measure the result itself: ctxextend eval PATH --report DIR",
            )


def evaluation_part(evidence: Evidence) -> Iterator[str]:
    """The section's lines."""
    yield from ("## Evaluation", "")
    if evidence.evaluation is not None:
        yield from _measured(evidence.evaluation)
        for name in evidence.pictures:
            caption = CHARTS.get(name.removesuffix(".png"), name)
            yield from (f"![{plain(caption)}]({FOLDER}/{name})", "")
    if evidence.smoke is not None:
        yield from _smoked(evidence.smoke)


def _measured(found: Evaluation) -> Iterator[str]:
    engine = found.engine
    ran = f"{plain(engine.engine)} {plain(engine.version)} on {plain(engine.device)}, {plain(engine.dtype)}"
    texts = "; ".join(
        f"{code(text.name)} ({text.tokens} tokens, sha256 {code(text.sha256[:16])})" for text in found.texts
    )
    of = code(found.source.rstrip("/").rsplit("/", 1)[-1])
    yield f"Measured on {of} by ctxextend {plain(found.version)} with {ran}." + (f" Texts: {texts}." if texts else "")
    yield ""
    yield from _curves(found.curves, found.trained_context)
    if found.sliding:
        rows = [
            (show_tokens(each.length), str(each.stride), str(each.windows), show_number(each.perplexity))
            for each in found.sliding
        ]
        yield from ("Sliding-window perplexity:", "")
        yield from table(("length", "stride", "windows", "perplexity"), rows, numbers=frozenset(range(4)))
    overall = [rate for rate in found.rates if rate.depth is None]
    if overall:
        rates = [
            (
                plain(TASKS.get(rate.kind, rate.kind)),
                show_tokens(rate.length),
                f"{rate.found} of {rate.asked}",
                f"{100 * rate.rate:.3g} %",
                f"{100 * rate.low:.3g}{NOTHING}{100 * rate.high:.3g} %",
            )
            for rate in overall
        ]
        yield from ("What was asked for at the end of a text, and came back:", "")
        columns = ("task", "length", "found", "rate", "95 % interval")
        yield from table(columns, rates, numbers=frozenset({1, 2, 3, 4}))
    yield from _short(found)
    if found.gates:
        rows = [
            (
                code(gate.name),
                f"{gate.bound:.4g}",
                show_number(gate.measured, digits=4),
                ("passed" if gate.measured is not None else "not measured") if gate.ok else "**missed**",
            )
            for gate in found.gates
        ]
        yield from ("Gates:", "")
        yield from table(("gate", "bound", "measured", "verdict"), rows, numbers=frozenset({1, 2}))
    if found.memory:
        sizes = ", ".join(f"{show_bytes(one.kv_cache_bytes)} at {show_tokens(one.length)}" for one in found.memory)
        yield from (f"KV cache: {sizes}.", "")


def _curves(curves: Sequence[Curve], trained: int) -> Iterator[str]:
    if not curves:
        return
    rows = [
        (show_tokens(curve.length), str(curve.windows), show_number(curve.whole), show_number(curve.ratio, digits=3))
        for curve in curves
    ]
    yield (
        f"Perplexity, and of what lies past the trained {trained} tokens over that of the same tokens read with at "
        f"most {trained} before them (1: the extension costs nothing there; below 1 the longer context helps):"
    )
    yield ""
    yield from table(("length", "windows", "perplexity", "past / within"), rows, numbers=frozenset(range(4)))
    longest = max(curves, key=lambda curve: curve.length)
    stretches = pooled(longest.points)
    if len(stretches) > 1:
        yield from (f"By position, at {show_tokens(longest.length)}:", "")
        row = [
            (f"{start}{NOTHING}{end}", show_number(perplexity), str(count))
            for start, end, count, perplexity in stretches
        ]
        yield from table(("positions", "perplexity", "tokens"), row, numbers=frozenset(range(3)))


def _short(found: Evaluation) -> Iterator[str]:
    if not found.short:
        return
    against = "the original" if found.against in (None, "original") else code(str(found.against).rsplit("/", 1)[-1])
    rows = [
        (
            show_tokens(short.length),
            show_number(short.perplexity),
            show_number(short.perplexity_against),
            NOTHING if short.regression is None else f"{100 * short.regression:+.3g} %",
            NOTHING if short.kl is None else f"{short.kl:.3g}",
            f"{100 * short.same_top:.3g} %",
        )
        for short in found.short
    ]
    yield from (f"Short contexts, against {against}:", "")
    columns = ("length", "perplexity", "original", "change", "KL, nats a token", "same top token")
    yield from table(columns, rows, numbers=frozenset(range(6)))


def _smoked(smoke: Smoke) -> Iterator[str]:
    ran = f"{plain(smoke.engine)} {plain(smoke.engine_version)} on {plain(smoke.device)}, {plain(smoke.dtype)}"
    yield f"Smoke test at {smoke.length} tokens ({ran}): {'passed' if smoke.ok else '**failed**'}."
    yield ""
    rows = [
        (code(check.name), "not asked" if check.skipped else "ok" if check.ok else "**failed**", plain(check.detail))
        for check in smoke.checks
    ]
    yield from table(("check", "verdict", "detail"), rows)


def pooled(points: Sequence[Point]) -> list[tuple[int, int, int, float | None]]:
    """At most eight stretches of positions: start, end, tokens, and the perplexity over all their tokens."""
    size = math.ceil(len(points) / _STRETCHES)
    made = []
    for first in range(0, len(points), size or 1):
        part = points[first : first + size]
        count = sum(point.count for point in part)
        known = [point.perplexity for point in part]
        perplexity = None
        if count and all(value is not None and value > 0 for value in known):
            nats = sum(point.count * math.log(point.perplexity or 1.0) for point in part)
            perplexity = math.exp(nats / count)
        made.append((part[0].start, part[-1].end, count, perplexity))
    return made


def show_number(value: float | None, *, digits: int | None = None) -> str:
    """A number in some four figures, or with so many ``digits`` after the point; a dash where it isn't finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if digits is not None and abs(value) < 100:
        return f"{value:.{digits}f}"
    if abs(value) >= 1e5:
        return f"{value:.1e}"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
