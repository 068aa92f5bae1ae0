"""What a report says in words and short numbers; the page and the terminal share it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from ctxextend.lab.charts import NOTHING
from ctxextend.lab.names import BOUNDS, RetrievalTask
from ctxextend.lab.results import Candidate, Curve, Evaluation, Gate, Point, Rate
from ctxextend.lengths import show_tokens

#: Times, as in ``2x``.
TIMES: Final = "\N{MULTIPLICATION SIGN}"

#: The tasks of retrieval in the order they are shown, as they are called.
KINDS: Final[Mapping[RetrievalTask, str]] = MappingProxyType(
    {
        "passkey": "passkey",
        "needles": "needles",
        "variables": "variable tracking",
        "words": "word extraction",
    }
)


class Found(Struct, frozen=True, kw_only=True):
    """``found`` of ``asked`` things at a length, whatever the depth; ``low`` and ``high`` where they are known."""

    asked: int
    found: int
    low: float | None
    high: float | None

    @property
    def rate(self) -> float:
        return self.found / self.asked if self.asked else 0.0


def show_perplexity(value: float | None) -> str:
    """Three digits or so, and five letters at most; a dash for what isn't there."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    if value >= 99999.5:
        return f"{value:.0e}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def show_ratio(value: float | None) -> str:
    """Past the trained length over within it: 1.172, 24.1, 1165."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value < 10 else show_perplexity(value)


def show_share(share: float) -> str:
    """0.925 as 92.5 %, 1 as 100 %."""
    return f"{100 * share:.3g} %"


def show_change(change: float) -> str:
    """A signed share: 0.0312 as +3.12 %."""
    return f"{100 * change:+.3g} %" if change else "0 %"


def show_seconds(seconds: float) -> str:
    """12.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def show_factor(factor: float) -> str:
    return f"{factor:.4g}{TIMES}"


def candidate_labels(candidates: Sequence[Candidate]) -> list[str]:
    """``yarn 2x``, with a real cross; ``untouched`` for the model as it is; with the target where two are alike."""
    labels = [method_label(candidate.method, candidate.factor) for candidate in candidates]
    return [
        f"{label} to {show_tokens(candidate.target)}" if labels.count(label) > 1 else label
        for label, candidate in zip(labels, candidates, strict=True)
    ]


def method_label(method: str, factor: float) -> str:
    return "untouched" if method == "none" else f"{method} {show_factor(factor)}"


def bound_words(gate: Gate) -> str:
    """``at most 1.1`` or ``at least 0.9``; the bare number for a gate of another version."""
    kind = BOUNDS.get(gate.name)
    side = "" if kind is None else "at most " if kind.most else "at least "
    return f"{side}{gate.bound:.4g}"


def gate_words(gate: Gate) -> str:
    """A gate's figure, its bound and the place, in a sentence's part."""
    if gate.measured is None:
        return f"{gate.name}: nothing was measured for it, {bound_words(gate)} was asked"
    place = f" ({gate.where})" if gate.where else ""
    return f"{gate.name}: {gate.measured:.4g}, {bound_words(gate)} was asked{place}"


def verdict(document: Evaluation) -> str:
    """How many gates passed, in one sentence."""
    gates = document.gates
    missed = sum(not gate.ok for gate in gates)
    unmeasured = sum(gate.ok and gate.measured is None for gate in gates)
    if not gates:
        return "Measured; no gate was set."
    if missed:
        return f"{missed} of {len(gates)} gates missed."
    held = len(gates) - unmeasured
    all_held = "The gate passed." if len(gates) == 1 else f"All {len(gates)} gates passed."
    return all_held if not unmeasured else f"{held} of {len(gates)} gates passed; {unmeasured} had nothing to measure."


def by_overall(rates: Iterable[Rate]) -> dict[tuple[RetrievalTask, int], Found]:
    """All depths together by task and length: as measured, else summed over the depths (then without interval)."""
    overall: dict[tuple[RetrievalTask, int], Found] = {}
    sums: dict[tuple[RetrievalTask, int], tuple[int, int]] = {}
    for rate in rates:
        key = (rate.kind, rate.length)
        if rate.depth is None:
            overall[key] = Found(asked=rate.asked, found=rate.found, low=rate.low, high=rate.high)
        else:
            asked, found = sums.get(key, (0, 0))
            sums[key] = (asked + rate.asked, found + rate.found)
    for key, (asked, found) in sums.items():
        overall.setdefault(key, Found(asked=asked, found=found, low=None, high=None))
    return overall


def longest_curve(curves: Iterable[Curve]) -> Curve | None:
    return max(curves, key=lambda curve: curve.length, default=None)


def position_bounds(trained: int, longest: int) -> tuple[int, ...]:
    """Where a small table cuts positions: quarters of the trained length, then quarters up to twice it, or
    doublings where there is more; four past the trained length at most.
    """
    quarters = [trained * quarter // 4 for quarter in range(5)]
    if longest <= 2 * trained:
        past = [trained * quarter // 4 for quarter in range(5, 9)]
    else:
        past = [trained * 2**power for power in range(1, 32)]
    past = [bound for bound in past if bound < longest]
    return (*(bound for bound in quarters if bound < longest), *past[-3:], longest)


def pooled(points: Sequence[Point], bounds: Sequence[int]) -> list[float | None]:
    """The perplexity between each two bounds, over the points whose middle lies there, by their tokens."""
    cells: list[float | None] = []
    for low, high in pairwise(bounds):
        inside = [point for point in points if 2 * low <= point.start + point.end < 2 * high and point.count]
        tokens = sum(point.count for point in inside)
        if not tokens:
            cells.append(None)
        elif any(point.perplexity <= 0 or not math.isfinite(point.perplexity) for point in inside):
            cells.append(math.inf)
        else:
            cells.append(math.exp(sum(point.count * math.log(point.perplexity) for point in inside) / tokens))
    return cells


def span_label(start: int, end: int) -> str:
    """``6k-8k``, with a real dash, or in tokens where a bound isn't whole in k."""
    return f"{show_tokens(start)}{NOTHING}{show_tokens(end)}"
