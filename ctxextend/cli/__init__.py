"""The command line: one thin file a command. See :mod:`ctxextend.cli.main` for errors and exit codes."""

from __future__ import annotations

import copy
from typing import Annotated, Final

import typer

from ctxextend.cli.check import check
from ctxextend.cli.compare import compare
from ctxextend.cli.convert import convert
from ctxextend.cli.eval import evaluate
from ctxextend.cli.inspect import inspect
from ctxextend.cli.listings import families, methods, runtimes
from ctxextend.cli.plan import plan
from ctxextend.cli.push import push
from ctxextend.cli.recipe import app as recipe
from ctxextend.cli.run import run
from ctxextend.cli.smoke import smoke
from ctxextend.version import VERSION

app = typer.Typer(
    name="ctxextend",
    help="Extend the context length of language model checkpoints, and show what every runtime makes of it.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
#: Each command with the line that ``ctxextend --help`` shows of it: short enough not to be cut.
_COMMANDS: Final = (
    (inspect, "What a checkpoint is: ropes, lengths, memory."),
    (plan, "What an extension changes, and why."),
    (convert, "Extend a checkpoint's context."),
    (check, "What every runtime will make of a checkpoint."),
    (smoke, "Run a checkpoint at its new length."),
    (evaluate, "How good a model is along its context."),
    (compare, "Which method to ship, by measurement."),
    (push, "Publish a checkpoint on the Hub."),
    (run, "Carry a recipe out, step by step."),
    (methods, "The methods and their parameters."),
    (families, "The model families that are known."),
    (runtimes, "The runtimes whose reading is known."),
)
for command, summary in _COMMANDS:
    app.command("eval" if command is evaluate else None, short_help=summary)(command)
app.add_typer(recipe)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _asked: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """Extend the context length of language model checkpoints, and show what every runtime makes of it."""
    if context.invoked_subcommand is None:
        # Asked for nothing: the help, as something other than data, and not as a success.
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def app_for(arguments: list[str]) -> typer.Typer:
    """The app with the command alone that the arguments name first, where they name one; the whole app else.

    Typer builds every command that it has at each start, a fifth of what a short run takes.
    """
    kept = [
        row for row in app.registered_commands if row.callback and (row.name or row.callback.__name__) in arguments[:1]
    ]
    if not kept:
        return app
    narrowed = copy.copy(app)
    narrowed.registered_commands, narrowed.registered_groups = kept, []
    return narrowed
