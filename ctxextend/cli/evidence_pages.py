"""What ``eval`` and ``compare`` show in the terminal: the numbers that decide, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ctxextend.lab.report_words import (
    KINDS,
    Found,
    bound_words,
    by_overall,
    candidate_labels,
    method_label,
    pooled,
    position_bounds,
    show_change,
    show_perplexity,
    show_ratio,
    show_seconds,
    show_share,
    verdict,
)
from ctxextend.lab.results import Comparison, Cost, Curve, Evaluation, Gate, Rate, Short
from ctxextend.lengths import show_bytes, show_count, show_tokens

#: Depths that a row of 80 columns holds beside the lengths.
_DEPTHS = 7
_RULE = "\N{BOX DRAWINGS LIGHT VERTICAL}"


def evaluation_page(document: Evaluation) -> RenderableType:
    """Perplexity by position, retrieval, short contexts, gates, cost."""
    method = f" with {escape(document.method)}" if document.method else ""
    lengths = f"trained {document.trained_context}, set for {document.current_context} tokens"
    parts: list[RenderableType] = [f"[bold]{escape(document.source)}[/]: {lengths}{method}"]
    curves = [(show_tokens(curve.length), curve) for curve in document.curves]
    if curves:
        parts.append(_below(_positions("read", curves, document.trained_context)))
    if document.sliding:
        parts.append(_below(_sliding(document)))
    if document.rates:
        parts.append(_below(_depths(document.rates)))
    if document.short:
        parts.append(_below(_short([("", document.short)])))
    if document.gates:
        parts.append(_below(_gates(document.gates)))
        style = "green" if document.ok else "bold red"
        parts.append(f"[{style}]{verdict(document)}[/]")
    parts.append(_below(_closing(document.cost, document.notes)))
    return Stack(*parts)


def comparison_page(document: Comparison) -> RenderableType:
    """The same measurements, one row a method, and which to ship."""
    kept = [candidate for candidate in document.candidates if candidate.refused is None]
    measured = list(zip(candidate_labels(kept), kept, strict=True))
    count = f"{len(measured)} of {len(document.candidates)} candidates measured"
    parts: list[RenderableType] = [
        f"[bold]{escape(document.source)}[/]: trained {document.trained_context} tokens, {count}"
    ]
    for length in sorted({curve.length for _label, candidate in measured for curve in candidate.curves}, reverse=True):
        # What was read within the trained length tells methods apart less, and stands in the report.
        curves = [(label, curve) for label, each in measured for curve in each.curves if curve.length == length]
        if length > document.trained_context or len(parts) == 1:
            parts.append(_below(_positions(f"to {show_tokens(length)}", curves, document.trained_context)))
    if any(candidate.rates for _label, candidate in measured):
        parts.append(_below(_found([(label, candidate.rates) for label, candidate in measured])))
    if any(candidate.short for _label, candidate in measured):
        parts.append(_below(_short([(label, candidate.short) for label, candidate in measured])))
    refused = [candidate for candidate in document.candidates if candidate.refused is not None]
    if refused:
        listing = _grid()
        for candidate in refused:
            label = method_label(candidate.method, candidate.factor)
            listing.add_row(escape(label), f"[yellow]not measured:[/] {escape(candidate.refused or '')}")
        parts.append(_below(listing))
    if document.best:
        listing = _grid()
        for best in sorted(document.best, key=lambda best: best.length):
            label = escape(method_label(best.method, best.factor))
            listing.add_row(f"for {show_tokens(best.length)}", f"[bold green]{label}[/]: {escape(best.reason)}")
        parts.append(_below(listing))
    parts.append(_below(_closing(document.cost, document.notes)))
    return Stack(*parts)


def _below(content: RenderableType) -> Padding:
    return Padding(content, (1, 0, 0, 0))


def _table(title: str, columns: Iterable[str], *, ruled: int | None = None) -> Table:
    """``ruled``: the column that a rule stands before, set by hand since Rich would rule them all."""
    listing = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    listing.add_column(title, no_wrap=True, min_width=12)
    for number, column in enumerate(columns):
        if number == ruled:
            listing.add_column(_RULE, style="dim", header_style="dim")
        listing.add_column(column, justify="right", no_wrap=True)
    return listing


def _positions(title: str, curves: Sequence[tuple[str, Curve]], trained: int) -> Stack:
    """Perplexity between positions; what stands right of the rule lies past the trained length."""
    bounds = position_bounds(trained, max(curve.length for _label, curve in curves))
    # A stretch that no point has its middle in is told together with the next.
    cells = [pooled(curve.points, bounds) for _label, curve in curves]
    columns = zip(bounds[1:], zip(*cells, strict=True), strict=True)
    filled = [end for end, column in columns if any(column) or end == trained]
    # The last one reaches to the end of what was read.
    filled = [*(filled if filled[-1:] == [trained] != [bounds[-1]] else filled[:-1]), bounds[-1]]
    bounds = (0, *filled)
    ruled = sum(bound <= trained for bound in filled) if filled and filled[-1] > trained else None
    listing = _table(title, [*map(show_tokens, filled), "past/within"], ruled=ruled)
    for label, curve in curves:
        row = ["" if value is None else show_perplexity(value) for value in pooled(curve.points, bounds)]
        if ruled is not None:
            row.insert(ruled, _RULE)
        listing.add_row(escape(label), *row, "" if curve.ratio is None else show_ratio(curve.ratio))
    rule = f"; right of the rule, past the trained {show_tokens(trained)}" if ruled is not None else ""
    return Stack(f"[dim]perplexity up to each position{rule}[/]", listing)


def _sliding(document: Evaluation) -> Table:
    listing = _table("sliding window", ("stride", "windows", "perplexity"))
    for each in document.sliding:
        listing.add_row(show_tokens(each.length), str(each.stride), str(each.windows), show_perplexity(each.perplexity))
    return listing


def _depths(rates: Sequence[Rate]) -> Table:
    """One row a task and length: the rate at each depth, and over all with its interval."""
    depths = sorted({rate.depth for rate in rates if rate.depth is not None})
    depths = depths if len(depths) <= _DEPTHS else []
    listing = _table("found at depth", [*(f"{100 * depth:.3g} %" for depth in depths), "all", "95 %"])
    order = list(KINDS)
    by_depth = {(rate.kind, rate.length, rate.depth): rate.rate for rate in rates}
    for (kind, length), found in sorted(
        by_overall(rates).items(), key=lambda item: (order.index(item[0][0]), item[0][1])
    ):
        cells = [by_depth.get((kind, length, depth)) for depth in depths]
        shown = ["" if cell is None else f"{100 * cell:.0f}" for cell in cells]
        listing.add_row(f"{kind} {show_tokens(length)}", *shown, show_share(found.rate), _interval(found))
    return listing


def _found(rows: Sequence[tuple[str, Sequence[Rate]]]) -> Table:
    """One row a method, one column a task and length."""
    overall = [(label, by_overall(rates)) for label, rates in rows]
    kinds = list(KINDS)
    keys = sorted({key for _label, found in overall for key in found}, key=lambda key: (kinds.index(key[0]), key[1]))
    listing = _table("found", [f"{kind}\n{show_tokens(length)}" for kind, length in keys])
    for label, found in overall:
        listing.add_row(escape(label), *(show_share(found[key].rate) if key in found else "" for key in keys))
    return listing


def _interval(found: Found) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:.0f}-{100 * found.high:.0f}"


def _short(rows: Sequence[tuple[str, Sequence[Short]]]) -> Table:
    listing = _table("short contexts", ("at", "perplexity", "original", "change", "KL", "same top"))
    for label, shorts in rows:
        for short in shorts:
            listing.add_row(
                escape(label),
                show_tokens(short.length),
                show_perplexity(short.perplexity),
                show_perplexity(short.perplexity_against),
                show_change(short.regression),
                f"{short.kl:.3g}",
                show_share(short.same_top),
            )
    return listing


def _gates(gates: Iterable[Gate]) -> Table:
    listing = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    listing.add_column("gate", no_wrap=True)
    listing.add_column("", no_wrap=True)
    listing.add_column("measured", justify="right", no_wrap=True)
    listing.add_column("asked", no_wrap=True)
    listing.add_column("where", overflow="fold")
    for gate in gates:
        word = "[bold red]missed[/]" if not gate.ok else "[dim]-[/]" if gate.measured is None else "[green]passed[/]"
        measured = "" if gate.measured is None else f"{gate.measured:.4g}"
        listing.add_row(
            escape(gate.name),
            word,
            measured,
            bound_words(gate),
            "nothing was measured" if gate.measured is None else escape(gate.where),
        )
    return listing


def _closing(cost: Cost, notes: Iterable[str]) -> Table:
    listing = _grid()
    for note in notes:
        listing.add_row("note", escape(note))
    peak = "" if cost.peak_memory_bytes is None else f", peak {show_bytes(cost.peak_memory_bytes)}"
    speed = f"{cost.tokens_per_second:.4g} tokens/s"
    listing.add_row("cost", f"{show_count(cost.tokens)} tokens in {show_seconds(cost.seconds)}, {speed}{peak}")
    return listing


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
