"""``ctxextend inspect``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.documents import inspection_document
from ctxextend.errors import RefusedError, UsageError
from ctxextend.inspection import Inspection
from ctxextend.lengths import parse_bytes, parse_tokens
from ctxextend.pipeline import Opened, inspect_source, open_source, plan_inspected
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe


def inspect(
    source: o.SourceArg,
    target: o.TargetOpt = None,
    memory: Annotated[
        Optional[str],
        typer.Option(help="What length fits beside the weights, such as 80GiB.", show_default=False),
    ] = None,
    original_context: o.OriginalOpt = None,
    base: o.BaseOpt = "auto",
    family: o.FamilyOpt = None,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
) -> None:
    """What a checkpoint's positions are, what was done to them, and what a longer context costs.

    Reads config and headers alone, also of a Hub repository.

    Example: ctxextend inspect ./model --target 128k --memory 80GiB
    """
    wanted = None if target is None else parse_tokens(target, option="--target")
    memory_bytes = None if memory is None else parse_bytes(memory, option="--memory")
    recipe = Recipe(
        target=wanted,
        family=family,
        base=base,
        original_context=None
        if original_context is None
        else parse_tokens(original_context, option="--original-context"),
    )
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    inspection = inspect_source(opened, recipe)
    console = Console(as_json=as_json, quiet=quiet)
    if as_json:
        console.document(inspection_document(inspection, target=wanted, memory_bytes=memory_bytes))
        return
    from ctxextend.cli.pages import inspection_page

    plan = _outlook(opened, inspection, recipe, console) if wanted else None
    console.draw(inspection_page(inspection, target=wanted, memory_bytes=memory_bytes, plan=plan))


def _outlook(opened: Opened, inspection: Inspection, recipe: Recipe, console: Console) -> Plan | None:
    """What auto would do for the target; a refusal is only noted."""
    try:
        return plan_inspected(opened.contents, inspection, recipe)
    except (RefusedError, UsageError) as error:
        console.note(f"note: to {recipe.target} tokens: {error.message}")
        if error.hint:
            console.note(f"   hint: {error.hint}")
        return None
