"""The tables of a report: every number behind its charts, as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from ctxextend.lab.charts import NOTHING
from ctxextend.lab.names import RetrievalTask
from ctxextend.lab.report_words import (
    KINDS,
    Found,
    by_overall,
    show_change,
    show_perplexity,
    show_ratio,
    show_share,
    span_label,
)
from ctxextend.lab.results import Curve, Rate, Short, Spectrum
from ctxextend.lengths import show_tokens

#: Rows that a table may have and still stand open.
FOLD: Final = 24
_RATE_COLUMNS = ("length", "depth", "found", "rate", "95 % interval")


class Table(Struct, frozen=True, kw_only=True):
    """Numbers as text; the first column names the row, ``words`` are columns that hold no numbers.

    ``folded``: long enough to be shown on demand.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = ()
    folded: bool = False


def curve_summary(curves: Iterable[tuple[str, Curve]], *, named: bool) -> Table:
    """One row a curve; ``named``: the first column says whose it is."""
    columns = ("method", "length", "windows", "perplexity", "past / within")
    rows = tuple(
        (
            label,
            show_tokens(curve.length),
            str(curve.windows),
            show_perplexity(curve.whole),
            show_ratio(curve.ratio),
        )
        for label, curve in curves
    )
    return Table(
        caption="Each length as a whole",
        columns=columns if named else columns[1:],
        rows=rows if named else tuple(row[1:] for row in rows),
    )


def curve_points(curves: Sequence[tuple[str, Curve]], caption: str = "By position") -> Table:
    """One row a stretch of positions, one column a curve."""
    stretches = sorted({(point.start, point.end) for _label, curve in curves for point in curve.points})
    by_stretch = [{(point.start, point.end): point.perplexity for point in curve.points} for _label, curve in curves]
    rows = tuple(
        (span_label(*stretch), *(show_perplexity(values.get(stretch)) for values in by_stretch))
        for stretch in stretches
    )
    columns = ("positions", *(label for label, _curve in curves))
    return Table(caption=caption, columns=columns, rows=rows, folded=len(rows) > FOLD)


def rate_table(rates: Iterable[Rate]) -> Table:
    rows = tuple((KINDS[rate.kind], *_rate_cells(rate)) for rate in rates)
    return Table(caption="What came back", columns=("task", *_RATE_COLUMNS), rows=rows, folded=len(rows) > FOLD)


def depth_table(rows: Iterable[tuple[str, Sequence[Rate]]]) -> Table:
    """Every rate, with whose it is."""
    cells = tuple((label, *_rate_cells(rate)) for label, rates in rows for rate in rates)
    return Table(caption="By depth", columns=("method", *_RATE_COLUMNS), rows=cells, folded=len(cells) > FOLD)


def overall_table(kind: RetrievalTask, rows: Sequence[tuple[str, Sequence[Rate]]]) -> Table:
    """Method by length: how many came back, and the interval of the rate where it was measured as a whole."""
    lengths = sorted({rate.length for _label, rates in rows for rate in rates})
    cells = []
    for label, rates in rows:
        overall = by_overall(rates)
        found = [overall.get((kind, length)) for length in lengths]
        cells.append((label, *(NOTHING if each is None else _found_words(each) for each in found)))
    columns = ("method", *(f"at {show_tokens(length)}" for length in lengths))
    return Table(caption="All depths together, with the 95 % interval", columns=columns, rows=tuple(cells))


def short_table(rows: Sequence[tuple[str, Sequence[Short]]]) -> Table:
    """One row a length; a first column with the method where there are several."""
    columns = ("length", "tokens", "perplexity", "original", "change", "KL, nats a token", "same top token")
    cells = [
        (
            label,
            show_tokens(short.length),
            str(short.count),
            show_perplexity(short.perplexity),
            show_perplexity(short.perplexity_against),
            show_change(short.regression),
            f"{short.kl:.4g}",
            show_share(short.same_top),
        )
        for label, shorts in rows
        for short in shorts
    ]
    if any(label for label, _shorts in rows):
        return Table(caption="Against the original", columns=("method", *columns), rows=tuple(cells))
    return Table(caption="Against the original", columns=columns, rows=tuple(row[1:] for row in cells))


def spectrum_table(label: str, spectra: Sequence[tuple[str, int, Spectrum]]) -> Table:
    """Every pair's wavelength in tokens: as trained, and by line."""
    columns = ("pair", "as trained", *(name for name, _style, _spectrum in spectra))
    every = [spectra[0][2].base, *(spectrum.inv_freq for _name, _style, spectrum in spectra)]
    rows = tuple(
        (str(pair), *("stands still" if value <= 0 else f"{2 * math.pi / value:.5g}" for value in values))
        for pair, values in enumerate(zip(*every, strict=True))
    )
    factors = ", ".join(f"{name} {spectrum.attention_factor:.6g}" for name, _style, spectrum in spectra)
    where = f" of {label}" if label else ""
    caption = f"Wavelengths{where}, tokens; attention factor: {factors}"
    return Table(caption=caption, columns=columns, rows=rows, folded=True)


def _rate_cells(rate: Rate) -> tuple[str, ...]:
    depth = "all" if rate.depth is None else f"{100 * rate.depth:.3g} %"
    found = f"{rate.found} of {rate.asked}"
    return (
        show_tokens(rate.length),
        depth,
        found,
        show_share(rate.rate),
        f"{_percent(rate.low)}{NOTHING}{_percent(rate.high)} %",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def _found_words(found: Found) -> str:
    words = f"{found.found} of {found.asked}"
    if found.low is None or found.high is None:
        return words
    return f"{words} ({_percent(found.low)}{NOTHING}{_percent(found.high)} %)"
