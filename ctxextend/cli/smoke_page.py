"""What ``smoke`` shows a person: each check in a line, the passages, what it took."""

from __future__ import annotations

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ctxextend.lab.smoke import SmokeReport, memory_line
from ctxextend.lengths import show_tokens


def smoke_page(report: SmokeReport) -> RenderableType:
    """The whole answer."""
    verdict = "[bold green]works[/]" if report.ok else "[bold red]fails[/]"
    runner = f"{report.engine} {report.engine_version}, {report.device}, {report.dtype}"
    title = (
        f"[bold]{escape(report.source)}[/] {verdict} at {show_tokens(report.length)} "
        f"(trained for {show_tokens(report.trained_context)}); {escape(runner)}"
    )
    parts: list[RenderableType] = [title, Padding(_checks(report), (1, 0, 0, 0))]
    if report.passages:
        parts.append(Padding(_passages(report), (1, 0, 0, 0)))
    parts.append(
        Padding(
            f"[dim]{report.tokens} tokens read in {report.seconds:.0f} s, {report.tokens_per_second:.0f} a second; "
            f"{memory_line(report)}[/]",
            (1, 0, 0, 0),
        )
    )
    return Stack(*parts)


def _checks(report: SmokeReport) -> Table:
    listing = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    listing.add_column(no_wrap=True)
    listing.add_column(no_wrap=True)
    listing.add_column()
    for check in report.checks:
        mark = "[dim]--[/]" if check.skipped else "[green]ok[/]" if check.ok else "[bold red]FAIL[/]"
        listing.add_row(mark, check.name, escape(check.detail))
    return listing


def _passages(report: SmokeReport) -> Table:
    listing = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    listing.add_column("the same passages at")
    for column in ("position", "perplexity", "times within"):
        listing.add_column(column, justify="right")
    for passage in report.passages:
        ratio = "" if passage.ratio is None else f"{passage.ratio:.2f}"
        listing.add_row(_PLACES[passage.where], str(passage.offset), f"{passage.perplexity:.2f}", ratio)
    return listing


_PLACES = {
    "start": "the start",
    "before": "before the trained length",
    "after": "the trained length",
    "half": "half of the length",
    "end": "the end",
}
