"""What a command prints, and where: stdout is data, everything else goes to stderr.

Rich is loaded when something is drawn, not before: it costs a third of a second.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from ctxextend.documents import error_document
from ctxextend.errors import CtxextendError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

    from ctxextend.apply import Progress
    from ctxextend.encoding import PlanWarning


INTERRUPTED = 130


class Console:
    """One invocation's output: as JSON or for people, and how much of it; nothing at all where it is ``mute``."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False, mute: bool = False
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet or mute
        self.verbose = verbose and not mute
        self._mute = mute

    def document(self, value: Any) -> None:
        """One JSON document on stdout. In ASCII: a file name needn't be text that stdout can write."""
        self._write(json.dumps(_finite(msgspec.to_builtins(value)), indent=2, allow_nan=False) + "\n")

    def line(self, text: str = "") -> None:
        """A line of data on stdout."""
        self._write(text + "\n")

    def failure(self, error: CtxextendError) -> None:
        """Why the command ends as it does, beside its document: in JSON the document has told already."""
        if not (self.as_json or self._mute):
            show_error(error, as_json=False)

    def draw(self, *parts: RenderableType) -> None:
        """Something drawn by Rich, on stdout; plain text where that is no terminal."""
        self._draw(sys.stdout, parts)

    def draw_note(self, *parts: RenderableType) -> None:
        """Something drawn by Rich, on stderr, unless quiet."""
        if not self.quiet:
            self._draw(sys.stderr, parts)

    def _write(self, text: str) -> None:
        if not self._mute:
            sys.stdout.write(text)

    def _draw(self, stream: TextIO, parts: Iterable[RenderableType]) -> None:
        if self._mute:
            return
        console = self._rich(stream)
        if console.is_terminal:
            console.print(*parts, sep="\n")
            return
        with console.capture() as drawn:
            console.print(*parts, sep="\n")
        # Rich fills its tables with blanks, which would be noise in a file.
        stream.write("".join(line.rstrip() + "\n" for line in drawn.get().splitlines()))

    def note(self, text: str) -> None:
        """Something worth knowing, on stderr, unless quiet."""
        if not self.quiet:
            sys.stderr.write(text + "\n")

    def notes(self, texts: Iterable[str]) -> None:
        """Several of them."""
        for text in texts:
            self.note(text)

    def detail(self, text: str) -> None:
        """Something only ``-v`` shows."""
        if self.verbose:
            sys.stderr.write(text + "\n")

    def step(self, text: str) -> None:
        """What is done next, on stderr, while somebody waits or a log is kept; not in JSON."""
        if not self.as_json:
            self.note(f"{text} ...")

    def warnings(self, warnings: Iterable[PlanWarning]) -> None:
        """The plan's warnings, on stderr; in JSON they are part of the document."""
        if self.as_json:
            return
        for warning in warnings:
            self.note(f"warning: {warning.message} [{warning.code}]")
            if warning.hint:
                self.note(f"   hint: {warning.hint}")

    @contextmanager
    def progress(self, total_bytes: int) -> Iterator[Progress]:
        """A bar for long copies, on a terminal only."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield lambda _name, _done: None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=self._rich(sys.stderr), transient=True) as bar:
            task = bar.add_task("copying", total=total_bytes)
            yield lambda name, done: bar.update(task, advance=done, description=name[-40:])

    @contextmanager
    def counting(self, total: int) -> Iterator[Progress]:
        """A bar for long measurements, with the time that is left, on a terminal only. Counts tokens."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield lambda _name, _done: None
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._rich(sys.stderr), transient=True) as bar:
            task = bar.add_task("measuring", total=total)
            yield lambda name, done: bar.update(task, advance=done, description=name[-40:])

    def _rich(self, stream: Any) -> RichConsole:
        from rich.console import Console as RichConsole

        plain = bool(os.environ.get("NO_COLOR"))
        width = None if stream.isatty() else 110
        return RichConsole(file=stream, no_color=plain, highlight=False, width=width, soft_wrap=False)


def _finite(value: Any) -> Any:
    """A document's value with null for numbers that JSON hasn't got: what is beyond counting, and what is none."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(part) for key, part in value.items()}
        case list() | tuple():
            return [_finite(part) for part in value]
        case _:
            return value


class InterruptError(CtxextendError):
    """Ctrl-C, or a signal that asks the process to end."""

    exit_code = INTERRUPTED


def show_error(error: CtxextendError, *, as_json: bool) -> None:
    """An error as every command shows it: JSON on stdout, or lines on stderr.

    Of several processes that torchrun started only the first writes to stdout; what another has to say is said on
    stderr with its number, since it may be the only one that fails.
    """
    from ctxextend.lab.engines.ranks import rank

    if as_json and rank() == 0:
        sys.stdout.write(json.dumps(msgspec.to_builtins(error_document(error)), indent=2) + "\n")
        return
    show_details(error.details(), before=f"rank {rank()}: " if rank() else "")


def show_details(details: Mapping[str, object], *, before: str = "") -> None:
    """An error's fields as lines on stderr; ``before`` says whose it is."""
    where = ", ".join(str(details[part]) for part in ("file", "key") if part in details)
    lines = [f"{before}error: {details['message']}"]
    if where:
        lines.append(f"   where: {where}")
    lines += [f"{part:>8}: {details[part]}" for part in ("expected", "found", "hint") if part in details]
    sys.stderr.write("\n".join(lines) + "\n")
