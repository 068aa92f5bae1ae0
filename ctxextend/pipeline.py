"""The verbs, wired: read a checkpoint, inspect it, plan, convert. The command line and Python both come here."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from ctxextend import checkpoint
from ctxextend.apply import Manifest, Options, Progress, convert
from ctxextend.checkpoint import Source
from ctxextend.contents import Contents
from ctxextend.errors import RefusedError
from ctxextend.inspection import Inspection, inspect
from ctxextend.plan import Plan, make_plan
from ctxextend.recipe import Recipe
from ctxextend.tensors.places import check_places

__all__ = ["Opened", "inspect_source", "open_source", "plan_source", "run_plan"]


class Opened(Struct, frozen=True, kw_only=True):
    """A source and what was read of it."""

    source: Source
    contents: Contents


def open_source(source: str | Path | Source) -> Opened:
    """Read a checkpoint's documents and headers: a folder, or a Hub repository."""
    found = source if isinstance(source, Source) else checkpoint.resolve(str(source))
    return Opened(source=found, contents=checkpoint.read(found))


def inspect_source(opened: Opened, recipe: Recipe) -> Inspection:
    """What the checkpoint means, with the overrides that the recipe names."""
    return inspect(
        opened.contents,
        family=recipe.family,
        base=recipe.base,
        original_context=recipe.original_context,
        sliding_window=recipe.sliding_window,
    )


def plan_source(opened: Opened, recipe: Recipe) -> Plan:
    """The plan for a recipe."""
    return make_plan(opened.contents, inspect_source(opened, recipe), recipe)


def run_plan(
    plan: Plan,
    opened: Opened,
    out: str | Path | None = None,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Manifest]:
    """Make the plan happen; the output's path and its manifest. Without ``out``, where the plan says."""
    target = Path(out) if out is not None else Path(plan.out)
    settings = options or Options()
    # Before anything is downloaded.
    check_places(opened.source.folder, target, force=settings.force)
    if settings.config_only:
        folder = opened.source.folder or _documents_only(opened)
    else:
        folder = checkpoint.folder_of(opened.source, opened.contents)
    manifest = convert(plan, opened.contents, folder, target, options=settings, progress=progress)
    return target, manifest


def _documents_only(opened: Opened) -> Path:
    """A Hub repository's documents, without its weights."""
    from ctxextend.checkpoint.hub import download

    source = opened.source
    if source.repo_id is None:
        raise RefusedError("there is nothing to read", code="no-source", found=source.given)
    names = [f.path for f in opened.contents.files if f.path in opened.contents.documents]
    tokenizer = [f.path for f in opened.contents.files if f.path == "tokenizer.json"]
    return download(
        source.repo_id,
        revision=opened.contents.revision,
        token=source.token,
        cache_dir=source.cache_dir,
        files=[*names, *tokenizer],
    )
