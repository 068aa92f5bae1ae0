"""The options of the commands that run a model, spelled and explained once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Self

import msgspec
import typer

from ctxextend.apply import Progress
from ctxextend.cli.console import Console, InterruptError
from ctxextend.cli.options import settings_of
from ctxextend.errors import UsageError
from ctxextend.lab.names import EngineName

if TYPE_CHECKING:
    from ctxextend.lab.results import Comparison, Evaluation
    from ctxextend.lab.verbs import Laid

EngineOpt = Annotated[
    EngineName,
    typer.Option("--engine", help="What runs the model; auto: llama.cpp for GGUF, else transformers."),
]
EndpointOpt = Annotated[
    Optional[str],
    typer.Option(
        metavar="URL",
        help="An OpenAI-compatible server that runs the model already (vLLM, SGLang, llama-server).",
        show_default=False,
    ),
]
ServedOpt = Annotated[
    Optional[str],
    typer.Option(
        "--served-name", help="The model's name there; the first that it serves otherwise.", show_default=False
    ),
]
KeyOpt = Annotated[
    Optional[str],
    typer.Option(
        "--api-key",
        help="The server's key; otherwise OPENAI_API_KEY, which goes to https and private addresses alone.",
        show_default=False,
    ),
]
TokenizerOpt = Annotated[
    Optional[Path],
    typer.Option(
        "--tokenizer",
        help="A tokenizer.json, for a server that can't tokenise; the source's own otherwise.",
        show_default=False,
    ),
]
DeviceOpt = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:1; others are passed on, and weren't tested.")
]
DtypeOpt = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option("--dtype", help="auto: the checkpoint's own on a GPU, float32 on a CPU."),
]
RemoteOpt = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that the checkpoint brings along.")
]
TextOpt = Annotated[
    Optional[list[str]],
    typer.Option(
        "--text",
        metavar="FILE",
        help="What is read: text, .jsonl, .gz, .xz or a folder; emma and persuasion come with ctxextend.",
        show_default=False,
    ),
]
ReportOpt = Annotated[
    Optional[Path],
    typer.Option(
        "--report",
        metavar="DIR",
        help="Write a page, charts and numbers there; a run that was cut short goes on from them.",
        show_default=False,
    ),
]
WindowsOpt = Annotated[int, typer.Option("--windows", min=1, help="At most so many windows of a text at a length.")]
SamplesOpt = Annotated[int, typer.Option("--samples", min=1, help="Prompts for each length and depth.")]
DepthsOpt = Annotated[str, typer.Option("--depths", help="Where keys are planted: 0 the beginning, 1 the end.")]
NeedlesOpt = Annotated[int, typer.Option("--needles", min=1, help="Facts in each prompt of the needles task.")]
StrideOpt = Annotated[int, typer.Option("--stride", min=1, help="Tokens a step of the sliding task.")]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, help="Decides keys, names and their places.")]
ShortOpt = Annotated[
    Optional[str],
    typer.Option(
        "--short-lengths",
        metavar="LIST",
        help="Where the model is held against its original; a quarter of the trained length, and it.",
        show_default=False,
    ),
]


def plain(document: Evaluation | Comparison) -> Any:
    """A document as plain values, the same for the same numbers: a set is sorted."""
    return msgspec.to_builtins(document, order="deterministic")


def console_of(*, as_json: bool, quiet: bool) -> Console:
    """The console of a command that several processes may run together: the first of them speaks."""
    from ctxextend.lab.engines.ranks import is_first

    return Console(as_json=as_json, quiet=quiet, mute=not is_first())


@contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """An interrupt says what is kept in a report's folder, and how to go on.

    Raises :class:`InterruptError` for the interrupt, where something is kept.
    """
    try:
        yield
    except KeyboardInterrupt:
        if folder is None or not any(folder.glob("cells*.jsonl")):
            raise
        raise InterruptError(
            "interrupted; what was measured is kept",
            code="interrupted",
            file=str(folder),
            hint="the same command goes on from there",
        ) from None


class Watch:
    """What a person sees of a long measurement: its cost before, a bar while it runs."""

    def __init__(self, console: Console, *, dry_run: bool, indent: str = "") -> None:
        self._console = console
        self._indent = indent
        self._dry_run = dry_run
        self._stack = ExitStack()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def before(self, laid: Laid) -> bool:
        """Show what will be done; whether to go on."""
        if self._dry_run:
            if self._console.as_json:
                self._console.document(laid)
            else:
                self._console.line(_cost(laid))
            return False
        if not self._console.as_json:
            self._console.note(f"{self._indent}{_cost(laid)}")
        self._bar = self._stack.enter_context(self._console.counting(laid.tokens))
        return True

    def progress(self, name: str, tokens: int) -> None:
        """Something was measured."""
        if self._bar is not None:
            self._bar(name, tokens)


def _cost(laid: Laid) -> str:
    kept = f", {laid.kept} of them kept from an earlier run" if laid.kept else ""
    work = "" if laid.flops is None else f", about {laid.flops / 1e12:.3g} TFLOP"
    return f"{laid.cells} measurements{kept}: {laid.tokens} tokens to read{work}"


def require_charts(folder: Path | None) -> None:
    """Raises :class:`MissingExtraError` where a report is wanted and can't be drawn, before hours of measuring."""
    if folder is not None:
        from ctxextend.lab.charts import require_matplotlib

        require_matplotlib()


def write(console: Console, folder: Path | None, document: Evaluation | Comparison) -> None:
    """The report, where one is wanted."""
    from ctxextend.lab.engines.ranks import is_first

    if folder is None or not is_first():
        return
    from ctxextend.lab.report import write_report

    paths = write_report(folder, document)
    console.note(f"the report: {next((path for path in paths if path.suffix == '.html'), folder)}")


def methods_of(listed: str) -> tuple[tuple[str, str, Mapping[str, Any]], ...]:
    """``ntk:headroom=1.25,yarn``: (as it was typed, method, parameters) of each. Raises :class:`UsageError`."""
    found: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
    for part in listed.split(","):
        label = part.strip()
        if not label:
            continue
        name, *parameters = label.split(":")
        found[label] = (label, name, settings_of(parameters))
    if not found:
        raise UsageError(
            "no method is named", code="bad-option", key="--methods", expected="such as yarn,ntk,linear", found=listed
        )
    return tuple(found.values())
