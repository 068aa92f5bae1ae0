"""The figures that bounds are held to: of each kind the worst that was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from ctxextend.errors import GateError
from ctxextend.lab.names import BOUNDS
from ctxextend.lab.results import Curve, Evaluation, Gate, Rate, Short
from ctxextend.lengths import show_tokens

#: Figure and where it was measured.
Figure = tuple[float, str]


class Measured(Struct, frozen=True, kw_only=True):
    """What gates are held to."""

    curves: Sequence[Curve]
    rates: Sequence[Rate]
    short: Sequence[Short]


def _worst(figures: Iterable[Figure], *, most: bool) -> Figure | None:
    """The figure that a bound is held to; one that is no number is worse than any."""
    found = list(figures)
    none = next((figure for figure in found if math.isnan(figure[0])), None)
    return none or (max if most else min)(found, default=None)


def _ratio(measured: Measured) -> Figure | None:
    found = ((c.ratio, f"at {show_tokens(c.length)}") for c in measured.curves if c.ratio is not None)
    return _worst(found, most=True)


def _rate(kind: str) -> Callable[[Measured], Figure | None]:
    def lowest(measured: Measured) -> Figure | None:
        found = (
            (r.rate, f"at {show_tokens(r.length)}, {r.found} of {r.asked}")
            for r in measured.rates
            if r.kind == kind and r.depth is None
        )
        return _worst(found, most=False)

    return lowest


def _short(figure: Callable[[Short], float], *, most: bool) -> Callable[[Measured], Figure | None]:
    def worst(measured: Measured) -> Figure | None:
        return _worst(((figure(s), f"at {show_tokens(s.length)}") for s in measured.short), most=most)

    return worst


#: The worst figure there is for each bound.
_WORST: Final[Mapping[str, Callable[[Measured], Figure | None]]] = MappingProxyType(
    {
        "perplexity-ratio": _ratio,
        "passkey": _rate("passkey"),
        "needles": _rate("needles"),
        "short-regression": _short(lambda short: short.regression, most=True),
        "kl": _short(lambda short: short.kl, most=True),
        "same-top": _short(lambda short: short.same_top, most=False),
    }
)


def held(measured: Measured, bounds: Mapping[str, float]) -> tuple[Gate, ...]:
    """Each bound with its figure. One that nothing was measured for is missed: it was asked for."""
    return tuple(_held(measured, bounds))


def with_defaults(measured: Measured, bounds: Mapping[str, float]) -> dict[str, float]:
    """The bounds that were named, and the default of every other gate that something was measured for."""
    found = {name: bound.default for name, bound in BOUNDS.items() if _WORST[name](measured) is not None}
    return {**found, **bounds}


def _held(measured: Measured, bounds: Mapping[str, float]) -> Iterator[Gate]:
    for name, bound in bounds.items():
        figure = _WORST[name](measured)
        if figure is None:
            yield Gate(name=name, bound=bound, measured=None, ok=False, where="nothing was measured for it")
            continue
        value, where = figure
        yield Gate(name=name, bound=bound, measured=value, ok=_keeps(value, bound, most=BOUNDS[name].most), where=where)


def _keeps(value: float, bound: float, *, most: bool) -> bool:
    """Whether a figure keeps its bound; one that is no number doesn't."""
    return value <= bound if most else value >= bound


def failure_of(found: Evaluation, *, gate: bool) -> GateError | None:
    """What an evaluation ends with that missed a bound; with ``gate`` also one that could be held to none."""
    missed = [each for each in found.gates if not each.ok]
    if missed:
        worst = missed[0]
        side = "at most" if BOUNDS[worst.name].most else "at least"
        return GateError(
            f"{len(missed)} of {len(found.gates)} bounds missed: {', '.join(each.name for each in missed)}",
            code="gate-missed",
            file=found.source,
            key=BOUNDS[worst.name].option,
            expected=f"{side} {worst.bound:g}",
            found=worst.where if worst.measured is None else f"{worst.measured:.4g} {worst.where}",
        )
    if gate and not found.gates:
        return GateError(
            "nothing was measured that a bound is for",
            code="nothing-held",
            file=found.source,
            key="--gate",
            hint="--lengths past the trained one, --tasks passkey, or --against BASE",
        )
    return None
