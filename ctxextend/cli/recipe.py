"""``ctxextend recipe``: what has to do with recipe files but running them, which is ``ctxextend run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import msgspec
import typer

from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.pipeline import inspect_source, open_source, plan_inspected

app = typer.Typer(name="recipe", help="Write a recipe for 'ctxextend run'.", rich_markup_mode=None)


@app.callback()
def root() -> None:
    """Write a recipe for 'ctxextend run'."""


@app.command(short_help="Write a recipe for a checkpoint.")
def init(
    source: o.SourceArg,
    method: o.MethodOpt = "auto",
    target: Annotated[
        Optional[str],
        typer.Option("--target", "-t", help="The new context length; twice the trained one without it."),
    ] = None,
    factor: o.FactorOpt = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", metavar="FILE", help="The file to write; stdout without it.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    original_context: o.OriginalOpt = None,
    base: o.BaseOpt = "auto",
    settings: o.SetOpt = None,
    layers: o.LayersOpt = None,
    sliding_window: o.WindowOpt = "keep",
    fine_tune: o.FineTuneOpt = "no",
    family: o.FamilyOpt = None,
    runtimes: o.RuntimesOpt = o.RUNTIMES_DEFAULT,
    carrier: o.CarrierOpt = "auto",
    bake: o.BakeOpt = "none",
    allow: o.AllowOpt = None,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """A recipe for a checkpoint: how it is extended and why, what is written, what it is held to.

    The conversion is planned, not made. A Hub repository is pinned to its commit. Publishing and GGUF exports are
    there as comments.

    Example: ctxextend recipe init ./model --target 128k --out model-128k.yaml
    """
    from ctxextend.release.writing import WrittenRecipe, recipe_for, require_free, suggested_target, write_recipe

    recipe = o.recipe_of(
        method=method,
        target=target,
        factor=factor,
        original_context=original_context,
        base=base,
        settings=settings,
        layers=layers,
        sliding_window=sliding_window,
        fine_tune=fine_tune,
        family=family,
        runtimes=runtimes,
        carrier=carrier,
        bake=bake,
        allow=allow,
        to=None,
        outtype=None,
        split_max_size=None,
        converter=None,
    )
    if out is not None:
        # Before anything is read of a repository.
        require_free(out, force=force)
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    inspection = inspect_source(opened, recipe)
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    if recipe.target is None and recipe.factor is None:
        recipe = msgspec.structs.replace(recipe, target=suggested_target(inspection))
        console.note(f"note: no --target was given; {recipe.target} tokens are taken, --target says another length")
    plan = plan_inspected(opened.contents, inspection, recipe)
    text = recipe_for(opened, inspection, recipe, plan)
    if out is not None:
        write_recipe(out, text, force=force)
    if as_json:
        path = None if out is None else str(out)
        console.document(WrittenRecipe(path=path, plan=plan.digest, recipe=text))
    elif out is None:
        console.line(text.rstrip("\n"))
    else:
        console.line(str(out))
    console.warnings(plan.warnings)
