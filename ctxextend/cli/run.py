"""``ctxextend run``: a recipe, carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import msgspec
import typer

from ctxextend.apply import Progress
from ctxextend.cli import lab_options as lab
from ctxextend.cli import options as o
from ctxextend.cli.console import Console, InterruptError, show_details
from ctxextend.errors import UsageError

if TYPE_CHECKING:
    from ctxextend.lab.verbs import Laid
    from ctxextend.release.audience import Audience
    from ctxextend.release.results import RunResult, StepResult, VariantResult

VarOpt = Annotated[
    Optional[list[str]],
    typer.Option("--var", metavar="KEY=VALUE", help="A variable of the recipe; repeatable.", show_default=False),
]


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    variables: VarOpt = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", help="The folder for everything; the recipe's own otherwise.", show_default=False),
    ] = None,
    shard: Annotated[
        Optional[str],
        typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the matrix.", show_default=False),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Run nothing: put together what all shards have left.")
    ] = False,
    push: Annotated[bool, typer.Option("--push/--no-push", help="Whether anything is published.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate everything and show what would be done; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Do every step, whatever an earlier run left.")] = False,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """Carry a recipe out: convert, check, run, measure, write the card, publish.

    The whole recipe is validated before anything starts. Each step is kept as it ends: the same command goes on where
    an earlier one stopped, and leaves away what would come out the same. Ends with the code of the first variant that
    failed, such as 4 where a gate was missed; nothing of that variant is published then.

    Example: ctxextend run recipe.yaml --var org=my-org
    """
    from ctxextend.release.prepared import RunOptions
    from ctxextend.release.reading import read_recipe
    from ctxextend.release.running import merge as merged
    from ctxextend.release.running import run as carried_out

    _require_alone()
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    file = read_recipe(recipe, o.variables_of(variables or ()))
    options = RunOptions(
        out=out, push=push, force=force, dry_run=dry_run, token=token, cache_dir=cache_dir, quiet=quiet or as_json
    )
    if merge:
        o.refuse_beside("--merge runs nothing", shard=shard is not None, dry_run=dry_run, force=force)
        found = merged(file, options)
    else:
        from ctxextend.release.matrix import shard_of

        part = None if shard is None else shard_of(shard)
        try:
            found = carried_out(file, options, shard=part, audience=_audience(console))
        except KeyboardInterrupt:
            raise InterruptError(
                "interrupted; every step that had ended is kept",
                code="interrupted",
                hint="the same command goes on from there",
            ) from None
    _show(console, found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _require_alone() -> None:
    """Raises :class:`UsageError` under torchrun: several processes would each do all of it."""
    from ctxextend.lab.engines.ranks import processes

    if processes() > 1:
        raise UsageError(
            "a recipe is run by one process",
            code="several-processes",
            expected="1 process",
            found=f"{processes()} of torchrun",
            hint="torchrun is for eval alone; here a model that one GPU can't hold goes over all that it sees "
            "(device: auto), or to a server (endpoint)",
        )


def _audience(console: Console) -> Audience:
    """Somebody who reads the console; of a run in JSON too, which may take hours, what is done is told on stderr."""
    from ctxextend.release.audience import Audience

    class Watching(Audience):
        label = ""

        def variant(self, result: VariantResult) -> None:
            self.label = f"{result.label} " if result.label else ""
            if result.label and result.warnings:
                console.note(f"{result.label}:")
            console.warnings(result.warnings)

        def begins(self, step: StepResult, *, number: int, of: int) -> None:
            console.note(f"[{self.label}{number}/{of}] {step.step} {step.output} ...")

        def ended(self, step: StepResult) -> None:
            console.note(_ended(step, self.label))

        def say(self, text: str) -> None:
            console.detail(f"  {text} ...")

        @contextmanager
        def copying(self, size_bytes: int) -> Iterator[Progress]:
            with console.progress(size_bytes) as progress:
                yield progress

        @contextmanager
        def measuring(self) -> Iterator[tuple[Callable[[Laid], object], Progress]]:
            with lab.Watch(console, dry_run=False, indent="  ") as watch:
                yield watch.before, watch.progress

    return Watching()


def _ended(step: StepResult, label: str) -> str:
    """What became of a step, for people."""
    match step.status:
        case "unchanged":
            return f"{label}{step.step} {step.output}: unchanged, not done again"
        case "pending":
            return f"{label}{step.step} {step.output}: {step.summary}"
        case "failed":
            return f"  failed after {step.seconds:.1f} s: {step.summary}"
        case _:
            return f"  {step.summary} ({step.seconds:.1f} s)"


def _show(console: Console, found: RunResult) -> None:
    """The answer: where everything lies; of what failed the error as any command shows it."""
    if console.as_json:
        console.document(found)
        return
    for variant in found.variants:
        for error in (variant.error, *(step.error for step in variant.steps)):
            if error is not None:
                show_details(msgspec.to_builtins(error), before=f"{variant.label}: " if variant.label else "")
    if not found.variants:
        console.note(f"shard {found.shard} has nothing to do: there are fewer variants")
    console.line(found.out)
