"""What ``check`` shows a person: runtimes in a table, findings, the commands that serve."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ctxextend.comparison import percent
from ctxextend.findings import Check, Finding, RuntimeReport

_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def check_page(found: Check, *, verbose: bool = False) -> RenderableType:
    """The whole answer; ``verbose`` adds what is only for information, and how each runtime comes to its reading."""
    parts: list[RenderableType] = [
        f"[bold]{escape(found.source)}[/] at {found.target_context} tokens, held to {escape(found.against)}",
        Padding(_runtimes(found.runtimes), (1, 0, 0, 0)),
    ]
    shown = [finding for finding in found.findings if verbose or finding.severity != "info"]
    if shown:
        parts.append(Padding(_findings(shown), (1, 0, 0, 0)))
    if len(shown) < len(found.findings):
        more = len(found.findings) - len(shown)
        parts.append(Padding(f"[dim]{more} more for information: -v shows them[/]", (1, 0, 0, 0)))
    if any(finding.severity == "error" and finding.fix is not None for finding in found.findings):
        mend = shlex.join(["ctxextend", "check", found.source, "--fix"])
        parts.append(
            Padding(f"[dim]{escape(mend)} writes a mended copy, where one reading makes sense[/]", (1, 0, 0, 0))
        )
    serving = [report for report in found.runtimes if report.required and report.serve is not None]
    if serving:
        parts.append(Padding(_serving(serving), (1, 0, 0, 0)))
    if verbose:
        parts.append(Padding(_derivations(found.runtimes), (1, 0, 0, 0)))
    return Stack(*parts)


def _runtimes(reports: Iterable[RuntimeReport]) -> Table:
    listing = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("runtime", "", "serves", "frequencies off by", "attention factor", "known by"):
        listing.add_column(column, justify="right" if column == "serves" else "left", no_wrap=column == "runtime")
    for report in reports:
        listing.add_row(
            f"{report.runtime} {escape(report.versions)}",
            _verdict(report),
            "" if report.max_context is None else str(report.max_context),
            _off_by(report),
            ", ".join(dict.fromkeys(f"{group.attention_factor:.6g}" for group in report.groups)),
            report.evidence,
            style="" if report.required else "dim",
        )
    return listing


def _off_by(report: RuntimeReport) -> str:
    errors = [group.inv_freq_error for group in report.groups]
    known = [error for error in errors if error is not None]
    return "" if not errors else "another table" if len(known) < len(errors) else percent(max(known))


def _verdict(report: RuntimeReport) -> str:
    """One word: ``agrees``, ``differs``, ``fails``, ``unknown`` or ``absent``; for information in brackets."""
    if report.absent:
        word = "absent"
    elif report.unknown is not None:
        word = "unknown"
    elif report.ok:
        word = "agrees"
    else:
        word = "differs" if report.groups else "fails"
    if not report.required:
        return f"({word})"
    style = {"agrees": "green", "differs": "bold red", "fails": "bold red"}.get(word, "yellow")
    return f"[{style}]{word}[/]"


def _findings(findings: Iterable[Finding]) -> Table:
    listing = Table.grid(padding=(0, 2))
    listing.add_column(no_wrap=True)
    listing.add_column(overflow="fold")
    for finding in findings:
        style = _STYLES[finding.severity]
        listing.add_row(f"[{style}]{finding.severity}[/]", f"{escape(finding.message)} [dim]\\[{finding.code}][/]")
        if finding.fix is not None and finding.severity != "info":
            listing.add_row("", f"[dim]fix:[/] {escape(finding.fix)}")
    return listing


def _serving(reports: Iterable[RuntimeReport]) -> Table:
    listing = Table.grid(padding=(0, 2))
    listing.add_column(style="dim", no_wrap=True, justify="right")
    listing.add_column(overflow="fold")
    commands: dict[str, list[str]] = {}
    for report in reports:
        commands.setdefault(report.serve or "", []).append(report.runtime)
    for command, names in commands.items():
        listing.add_row(", ".join(dict.fromkeys(names)), escape(command))
    return listing


def _derivations(reports: Iterable[RuntimeReport]) -> Table:
    listing = Table.grid(padding=(0, 2))
    listing.add_column(style="dim", no_wrap=True, justify="right")
    listing.add_column(overflow="fold")
    for report in reports:
        said = "; ".join(filter(None, (*report.how, report.unknown, report.reason)))
        listing.add_row(f"{report.runtime} {escape(report.versions)}", escape(said))
    return listing
