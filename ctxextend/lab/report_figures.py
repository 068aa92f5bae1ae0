"""What a report shows, chosen from the values: each exhibit is a chart, what it says, and the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from ctxextend.lab.charts import (
    NOTHING,
    Bar,
    Grid,
    Line,
    Panel,
    bar_chart,
    grid_chart,
    position_chart,
    spectrum_chart,
)
from ctxextend.lab.names import RetrievalTask
from ctxextend.lab.report_tables import (
    Table,
    curve_points,
    curve_summary,
    depth_table,
    overall_table,
    rate_table,
    short_table,
    spectrum_table,
)
from ctxextend.lab.report_words import (
    KINDS,
    by_overall,
    candidate_labels,
    longest_curve,
    show_change,
    show_perplexity,
    show_ratio,
    show_share,
)
from ctxextend.lab.results import Comparison, Curve, Evaluation, Rate, Short, Spectrum
from ctxextend.lengths import show_bytes, show_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels of a chart at most: the longest lengths.
_PANELS = 3


class Exhibit(Struct, frozen=True, kw_only=True):
    """``name`` is the PNG's, without its ending; ``reading`` what the chart says, in a sentence or two.

    ``draw`` None: there is nothing to draw, only tables.
    """

    name: str
    title: str
    reading: str
    draw: Callable[..., Figure] | None
    tables: tuple[Table, ...]


class _Measured(Struct, frozen=True, kw_only=True):
    """One model's measurements beside others': what an evaluation and a candidate have in common."""

    label: str
    style: int
    curves: tuple[Curve, ...]
    rates: tuple[Rate, ...]
    short: tuple[Short, ...]
    spectrum: tuple[Spectrum, ...]


def exhibits(document: Evaluation | Comparison) -> tuple[Exhibit, ...]:
    """Everything there is something to show of, in the order of the page."""
    if isinstance(document, Evaluation):
        made = [
            _positions_of_one(document),
            _sliding(document),
            *_retrieval_of_one(document),
            _short_of_one(document),
            _spectrum_of_one(document),
            _memory(document),
        ]
    else:
        measured = measured_candidates(document)
        made = [
            _positions_of_many(document, measured),
            *_retrieval_of_many(document, measured),
            _short_of_many(measured),
            _spectrum_of_many(document, measured),
        ]
    return tuple(exhibit for exhibit in made if exhibit is not None)


def measured_candidates(document: Comparison) -> tuple[_Measured, ...]:
    """Candidates that weren't refused; the untouched model has style 0, the others count from 1."""
    kept = [candidate for candidate in document.candidates if candidate.refused is None]
    changed = [candidate for candidate in kept if candidate.method != "none"]
    return tuple(
        _Measured(
            label=label,
            style=0 if candidate.method == "none" else 1 + changed.index(candidate),
            curves=candidate.curves,
            rates=candidate.rates,
            short=candidate.short,
            spectrum=candidate.spectrum,
        )
        for label, candidate in zip(candidate_labels(kept), kept, strict=True)
    )


def _line(label: str, style: int, curve: Curve) -> Line:
    """Each stretch of positions at its middle; what isn't finite is left out."""
    return Line(
        label=label,
        style=style,
        points=tuple(
            ((point.start + point.end) / 2, point.perplexity)
            for point in curve.points
            if point.count and math.isfinite(point.perplexity) and point.perplexity > 0
        ),
    )


def _trained_mark(trained: int) -> tuple[float, str]:
    return float(trained), f"trained: {show_tokens(trained)}"


def _positions_of_one(document: Evaluation) -> Exhibit | None:
    longest = longest_curve(document.curves)
    if longest is None:
        return None
    curves = sorted(document.curves, key=lambda curve: -curve.length)
    lines = tuple(_line(show_tokens(curve.length), 1 + number, curve) for number, curve in enumerate(curves))
    panel = Panel(
        heading="perplexity, by the length that was read" if len(lines) > 1 else "perplexity",
        end=float(longest.length),
        lines=lines,
        marks=(_trained_mark(document.trained_context),),
    )
    return Exhibit(
        name="perplexity",
        title="Perplexity by position",
        reading=f"{_past_words(longest, document.trained_context)} {_POSITIONS}{_left_out(curves)}",
        draw=partial(position_chart, (panel,)),
        tables=(
            curve_summary([("", curve) for curve in document.curves], named=False),
            curve_points([(show_tokens(curve.length), curve) for curve in document.curves]),
        ),
    )


_POSITIONS = "Each point is the perplexity of the text at those positions; lower is better, and level is the aim."


def _left_out(curves: Iterable[Curve]) -> str:
    """Says that points are missing, where some are."""
    finite = all(math.isfinite(point.perplexity) for curve in curves for point in curve.points)
    return "" if finite else " Where it is no finite number, no point is drawn."


def _past_words(curve: Curve, trained: int) -> str:
    if curve.ratio is None:
        return f"Nothing was read past the {trained} tokens the model was trained for."
    if not math.isfinite(curve.ratio):
        return f"Past {trained} tokens the perplexity is no longer a finite number."
    change = show_share(abs(curve.ratio - 1))
    how = (
        f"{change} higher than"
        if curve.ratio > 1.005
        else f"{change} lower than"
        if curve.ratio < 0.995
        else "as good as"
    )
    return (
        f"Read to {show_tokens(curve.length)}, the perplexity past {trained} tokens is {how} that of the same text read"
        f" within {trained} (ratio {show_ratio(curve.ratio)})."
    )


def _sliding(document: Evaluation) -> Exhibit | None:
    if not document.sliding:
        return None
    last = max(document.sliding, key=lambda sliding: sliding.length)
    rows = tuple(
        (show_tokens(each.length), str(each.stride), str(each.windows), show_perplexity(each.perplexity))
        for each in document.sliding
    )
    table = Table(caption="Sliding-window perplexity", columns=("length", "stride", "windows", "perplexity"), rows=rows)
    return Exhibit(
        name="sliding",
        title="Sliding-window perplexity",
        reading=f"With {show_tokens(last.length)} tokens of context, {show_perplexity(last.perplexity)}: each token is"
        " scored with nearly the whole window before it (YaRN, section 4.3.1).",
        draw=None,
        tables=(table,),
    )


def _retrieval_of_one(document: Evaluation) -> list[Exhibit]:
    """A grid of depth by length for each task with depths, and one of task by length for the others."""
    made = []
    kinds = [kind for kind in KINDS if any(rate.kind == kind for rate in document.rates)]
    deep = [kind for kind in kinds if any(rate.kind == kind and rate.depth is not None for rate in document.rates)]
    for kind in deep:
        rates = [rate for rate in document.rates if rate.kind == kind]
        made.append(_depth_grid(kind, rates, document.trained_context))
    flat = [kind for kind in kinds if kind not in deep]
    if flat:
        rates = [rate for rate in document.rates if rate.kind in flat]
        names = " and ".join(filter(None, (", ".join(KINDS[kind] for kind in flat[:-1]), KINDS[flat[-1]])))
        grid = _kind_grid([(KINDS[kind], [rate for rate in rates if rate.kind == kind]) for kind in flat], document)
        made.append(
            Exhibit(
                name="tasks" if "needles" in deep else "needles",
                title=names[0].upper() + names[1:],
                reading="The share of what was asked that stood in the answers, everything spread over the whole text.",
                draw=partial(grid_chart, grid),
                tables=(rate_table(rates),),
            )
        )
    return made


def _depth_grid(kind: RetrievalTask, rates: Sequence[Rate], trained: int) -> Exhibit:
    lengths = sorted({rate.length for rate in rates})
    depths: list[float | None] = [*sorted({rate.depth for rate in rates if rate.depth is not None}), None]
    shares = {(depths.index(rate.depth), lengths.index(rate.length)): rate.rate for rate in rates}
    overall = by_overall(rates)
    for column, length in enumerate(lengths):
        shares[len(depths) - 1, column] = overall[kind, length].rate
    grid = Grid(
        rows=tuple("all depths" if depth is None else f"{100 * depth:.3g} %" for depth in depths),
        columns=tuple(map(show_tokens, lengths)),
        shares=shares,
        across="depth",
        total=True,
        divider=_within(lengths, trained),
        divider_label=_trained_mark(trained)[1],
    )
    last = overall[kind, lengths[-1]]
    return Exhibit(
        name=kind,
        title=f"{KINDS[kind][0].upper()}{KINDS[kind][1:]} by length and depth",
        reading=f"At {show_tokens(lengths[-1])}, {last.found} of {last.asked} came back ({show_share(last.rate)})."
        " Depth is where it stood: 0 % the beginning of the text, 100 % its end.",
        draw=partial(grid_chart, grid),
        tables=(rate_table(rates),),
    )


def _kind_grid(rows: Sequence[tuple[str, Sequence[Rate]]], document: Evaluation | Comparison) -> Grid:
    """Rows of rates over all depths, by length."""
    lengths = sorted({rate.length for _label, rates in rows for rate in rates})
    shares = {
        (number, lengths.index(length)): found.rate
        for number, (_label, rates) in enumerate(rows)
        for (_kind, length), found in by_overall(rates).items()
    }
    return Grid(
        rows=tuple(label for label, _rates in rows),
        columns=tuple(map(show_tokens, lengths)),
        shares=shares,
        across="length",
        divider=_within(lengths, document.trained_context),
        divider_label=_trained_mark(document.trained_context)[1],
    )


def _within(lengths: Iterable[int], trained: int) -> int:
    return sum(length <= trained for length in lengths)


def _short_of_one(document: Evaluation) -> Exhibit | None:
    if not document.short:
        return None
    bars = tuple(_short_bar(f"at {show_tokens(short.length)}", 1, short) for short in document.short)
    worst = max(document.short, key=lambda short: short.regression)
    return Exhibit(
        name="short",
        title="Short contexts, against the original",
        reading=f"{_regression_words(worst)} KL is the mean divergence from the original, in nats a token: 0 means"
        " the same predictions.",
        draw=partial(bar_chart, bars, parts=()),
        tables=(short_table([("", document.short)]),),
    )


def _regression_words(short: Short) -> str:
    where = f"at {show_tokens(short.length)}"
    if short.regression <= 0:
        below = f"{show_share(-short.regression)} below" if short.regression else "the same as"
        return f"Nothing is lost: even {where}, where it does worst, the perplexity is {below} the original's."
    return f"The most is lost {where}: the perplexity is {show_share(short.regression)} above the original's."


def _short_bar(label: str, style: int, short: Short) -> Bar:
    return Bar(
        label=label,
        parts=((100 * short.regression if math.isfinite(short.regression) else 0.0, style),),
        text=f"{show_change(short.regression)}, KL {short.kl:.2g}",
    )


def _wavelengths(inv_freq: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(pair, tokens a turn); a pair that stands still has none."""
    return tuple((float(pair), 2 * math.pi / value) for pair, value in enumerate(inv_freq) if value > 0)


def _spectrum_panels(
    label: str, spectra: Sequence[tuple[str, int, Spectrum]], target: int, trained: int
) -> list[Panel]:
    """The wavelengths with the lengths across them, and below how much slower each pair turns than it was trained."""
    base = spectra[0][2].base
    # A model as it was trained would only cover the line of the base.
    changed = [each for each in spectra if each[2].inv_freq != base]
    waves = [Line(label="as trained", style=0, points=_wavelengths(base))]
    waves += [Line(label=name, style=style, points=_wavelengths(made.inv_freq)) for name, style, made in changed]
    marks = [_trained_mark(trained)]
    marks += [(float(target), f"target: {show_tokens(target)}")] if target > trained else []
    where, end = f" ({label})" if label else "", float(len(base) - 1)
    panels = [Panel(heading=f"wavelength, tokens{where}", end=end, lines=tuple(waves), marks=tuple(marks))]
    if changed:
        slowed = tuple(Line(label=name, style=style, points=_slowed(base, made)) for name, style, made in changed)
        panels.append(Panel(heading=f"slowed, times{where}", end=end, lines=slowed, marks=()))
    return panels


def _slowed(base: Sequence[float], spectrum: Spectrum) -> tuple[tuple[float, float], ...]:
    pairs = enumerate(zip(base, spectrum.inv_freq, strict=True))
    return tuple((float(pair), old / new) for pair, (old, new) in pairs if old > 0 and new > 0)


def _spectrum_of_one(document: Evaluation) -> Exhibit | None:
    labels = list(dict.fromkeys(spectrum.label for spectrum in document.spectrum))
    if not labels:
        return None
    panels, tables = [], []
    for label in labels:
        mine = sorted((s for s in document.spectrum if s.label == label), key=lambda spectrum: -spectrum.length)
        # Only a reader that changes its table with the length has several.
        distinct = {spectrum.inv_freq: spectrum for spectrum in reversed(mine)}
        name = document.method or "as it is"
        spectra = [
            (name if len(distinct) == 1 else f"{name} at {show_tokens(spectrum.length)}", 1 + number, spectrum)
            for number, spectrum in enumerate(sorted(distinct.values(), key=lambda spectrum: -spectrum.length))
        ]
        shown = label if len(labels) > 1 else ""
        panels += _spectrum_panels(shown, spectra, document.current_context, document.trained_context)
        tables.append(spectrum_table(shown, spectra))
    first = max(document.spectrum, key=lambda spectrum: spectrum.length)
    return Exhibit(
        name="spectrum",
        title="Frequencies",
        reading=_spectrum_words(first, document.trained_context),
        draw=partial(spectrum_chart, panels),
        tables=tuple(tables),
    )


def _spectrum_words(spectrum: Spectrum, trained: int) -> str:
    turning = [value for value in spectrum.base if value > 0]
    full = sum(2 * math.pi / value <= trained for value in turning)
    ratios = [base / now for base, now in zip(spectrum.base, spectrum.inv_freq, strict=True) if now > 0]
    slowed = f"slowed {min(ratios):.3g} to {max(ratios):.3g} times" if ratios else "standing still"
    return (
        f"{full} of {len(spectrum.base)} pairs turn fully within the trained length; pairs are {slowed}."
        " A pair above the line of its length never saw a full turn in training."
    )


def _memory(document: Evaluation) -> Exhibit | None:
    if not document.memory:
        return None
    weights = document.engine.weight_bytes
    rows = sorted(document.memory, key=lambda memory: memory.length)
    parts = (("weights", 1), ("KV cache", 2)) if weights is not None else (("KV cache", 2),)
    bars = tuple(
        Bar(
            label=show_tokens(row.length),
            parts=(*(((float(weights), 1),) if weights is not None else ()), (float(row.kv_cache_bytes), 2)),
            text=show_bytes(row.kv_cache_bytes + (weights or 0)),
        )
        for row in rows
    )
    last = rows[-1]
    beside = "" if weights is None else f" beside {show_bytes(weights)} of weights"
    cells = tuple(
        (
            show_tokens(row.length),
            NOTHING if weights is None else show_bytes(weights),
            show_bytes(row.kv_cache_bytes),
            show_bytes(row.kv_cache_bytes + (weights or 0)),
        )
        for row in rows
    )
    table = Table(caption="Memory of one sequence", columns=("length", "weights", "KV cache", "together"), rows=cells)
    return Exhibit(
        name="memory",
        title="Memory",
        reading=f"One sequence of {show_tokens(last.length)} tokens keeps {show_bytes(last.kv_cache_bytes)} of KV"
        f" cache{beside}; activations come on top.",
        draw=partial(bar_chart, bars, parts=parts),
        tables=(table,),
    )


def _positions_of_many(document: Comparison, measured: Sequence[_Measured]) -> Exhibit | None:
    lengths = sorted({curve.length for each in measured for curve in each.curves})
    if not lengths:
        return None
    trained = document.trained_context
    shown = [length for length in lengths if length > trained][-_PANELS:] or lengths[-1:]
    panels, tables = (
        [],
        [curve_summary([(each.label, curve) for each in measured for curve in each.curves], named=True)],
    )
    for length in lengths:
        mine = [(each, curve) for each in measured for curve in each.curves if curve.length == length]
        if length in shown:
            panels.append(
                Panel(
                    heading=f"perplexity, reading {show_tokens(length)}",
                    end=float(length),
                    lines=tuple(_line(each.label, each.style, curve) for each, curve in mine),
                    marks=(_trained_mark(trained),),
                )
            )
        tables.append(
            curve_points([(each.label, curve) for each, curve in mine], f"By position, reading {show_tokens(length)}")
        )
    longest = [(each.label, curve) for each in measured for curve in each.curves if curve.length == lengths[-1]]
    known = [pair for pair in longest if pair[1].ratio is not None and math.isfinite(pair[1].whole)]
    levelled = min(known, key=lambda pair: pair[1].whole, default=None)
    words = (
        ""
        if levelled is None
        else (
            f"Read to {show_tokens(lengths[-1])}, {levelled[0]} has the lowest perplexity of the whole"
            f" ({show_perplexity(levelled[1].whole)}). "
        )
    )
    return Exhibit(
        name="perplexity",
        title="Perplexity by position",
        reading=words + _POSITIONS + _left_out(curve for each in measured for curve in each.curves),
        draw=partial(position_chart, panels),
        tables=tuple(tables),
    )


def _retrieval_of_many(document: Comparison, measured: Sequence[_Measured]) -> list[Exhibit]:
    """For each task one grid of method by length, over all depths."""
    made = []
    for kind, name in KINDS.items():
        rows = [(each.label, [rate for rate in each.rates if rate.kind == kind]) for each in measured]
        rows = [(label, rates) for label, rates in rows if rates]
        if not rows:
            continue
        grid = _kind_grid(rows, document)
        deep = any(rate.depth is not None for _label, rates in rows for rate in rates)
        tables = (overall_table(kind, rows), *((depth_table(rows),) if deep else ()))
        made.append(
            Exhibit(
                name=kind,
                title=f"{name[0].upper()}{name[1:]} by method and length",
                reading=_leaders(kind, rows),
                draw=partial(grid_chart, grid),
                tables=tables,
            )
        )
    return made


def _leaders(kind: RetrievalTask, rows: Sequence[tuple[str, Sequence[Rate]]]) -> str:
    """Who found the most at the longest length, in a sentence."""
    last = max(rate.length for _label, rates in rows for rate in rates)
    overall = [(label, by_overall(rates).get((kind, last))) for label, rates in rows]
    shares = {label: found.rate for label, found in overall if found is not None}
    best = max(shares.values())
    leaders = [label for label, share in shares.items() if share == best]
    if best == 0:
        return f"At {show_tokens(last)}, no method found anything."
    if len(leaders) == len(shares) > 1:
        return f"At {show_tokens(last)}, all found the same share: {show_share(best)}."
    names = " and ".join(leaders) if len(leaders) < 4 else f"{len(leaders)} of {len(shares)} methods"
    return f"At {show_tokens(last)}, {names} found the most: {show_share(best)}."


def _short_of_many(measured: Sequence[_Measured]) -> Exhibit | None:
    rows = [(each, short) for each in measured for short in each.short]
    if not rows:
        return None
    several = len({short.length for _each, short in rows}) > 1
    bars = tuple(
        _short_bar(f"{each.label}, {show_tokens(short.length)}" if several else each.label, each.style, short)
        for each, short in rows
    )
    least, short = min(rows, key=lambda row: row[1].kl)
    return Exhibit(
        name="short",
        title="Short contexts, against the original",
        reading=f"{least.label} stays nearest to the original (KL {short.kl:.2g} nats a token at"
        f" {show_tokens(short.length)}). Bars show how much the perplexity rises.",
        draw=partial(bar_chart, bars, parts=()),
        tables=(short_table([(each.label, each.short) for each in measured]),),
    )


def _spectrum_of_many(document: Comparison, measured: Sequence[_Measured]) -> Exhibit | None:
    labels = list(dict.fromkeys(spectrum.label for each in measured for spectrum in each.spectrum))
    if not labels:
        return None
    target = max(candidate.target for candidate in document.candidates if candidate.refused is None)
    panels, tables = [], []
    for label in labels:
        spectra = []
        for each in measured:
            mine = [spectrum for spectrum in each.spectrum if spectrum.label == label]
            if mine:
                spectra.append((each.label, each.style, max(mine, key=lambda spectrum: spectrum.length)))
        shown = label if len(labels) > 1 else ""
        panels += _spectrum_panels(shown, spectra, target, document.trained_context)
        tables.append(spectrum_table(shown, spectra))
    return Exhibit(
        name="spectrum",
        title="Frequencies",
        reading="How many tokens each pair of dimensions takes for a full turn. Methods differ in which pairs they"
        " slow: those that never saw a full turn in training stand above the trained length.",
        draw=partial(spectrum_chart, panels),
        tables=tuple(tables),
    )


def at_a_glance(document: Comparison) -> Table:
    """One row a measured candidate: the figures that decide, each at the longest length it was measured at."""
    measured = measured_candidates(document)
    lengths = [curve.length for each in measured for curve in each.curves]
    longest = max(lengths, default=0)
    overall = [by_overall(each.rates) for each in measured]
    asked = {
        kind: max((length for found in overall for each, length in found if each == kind), default=0) for kind in KINDS
    }
    kinds = [kind for kind in KINDS if asked[kind]]
    columns = ["method"]
    columns += [f"perplexity to {show_tokens(longest)}", "past / within"] if lengths else []
    columns += [f"{KINDS[kind]} at {show_tokens(asked[kind])}" for kind in kinds]
    with_short = any(each.short for each in measured)
    columns += ["short, at worst", "KL, at worst"] if with_short else []
    rows = []
    for each, found in zip(measured, overall, strict=True):
        row = [each.label]
        if lengths:
            curve = next((curve for curve in each.curves if curve.length == longest), None)
            row.append(show_perplexity(None if curve is None else curve.whole))
            row.append(show_ratio(None if curve is None else curve.ratio))
        row += [
            show_share(found[kind, asked[kind]].rate) if (kind, asked[kind]) in found else NOTHING for kind in kinds
        ]
        if with_short:
            row.append(show_change(max(short.regression for short in each.short)) if each.short else NOTHING)
            row.append(f"{max(short.kl for short in each.short):.2g}" if each.short else NOTHING)
        rows.append(tuple(row))
    return Table(caption="At a glance", columns=tuple(columns), rows=tuple(rows))
