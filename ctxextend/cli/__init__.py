"""The command line: one thin file a command. See :mod:`ctxextend.cli.main` for errors and exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from ctxextend.cli.convert import convert
from ctxextend.cli.inspect import inspect
from ctxextend.cli.listings import families, methods, runtimes
from ctxextend.cli.plan import plan
from ctxextend.version import VERSION

app = typer.Typer(
    name="ctxextend",
    help="Extend the context length of language model checkpoints, and show what every runtime makes of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (inspect, plan, convert, methods, families, runtimes):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """Extend the context length of language model checkpoints, and show what every runtime makes of it."""
