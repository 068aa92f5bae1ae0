"""``ctxextend check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import msgspec
import typer

from ctxextend.apply import Options
from ctxextend.changes import changes_nothing, size_bytes
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.cli.convert import show_result
from ctxextend.cli.plan import show_plan
from ctxextend.errors import DisagreementError, UsageError
from ctxextend.lengths import parse_tokens
from ctxextend.pipeline import Opened, check_source, meaning_of, open_source, repair_source, run_plan
from ctxextend.plan import Plan
from ctxextend.recipe import allowed, runtimes_of
from ctxextend.runtimes import DEFAULT_RUNTIMES


def check(
    source: o.SourceArg,
    against: Annotated[
        Optional[str],
        typer.Option(
            metavar="PLAN|SOURCE",
            help="What it should be: a plan's JSON file, or another checkpoint.",
            show_default=False,
        ),
    ] = None,
    runtimes: Annotated[
        Optional[str],
        typer.Option(
            metavar="LIST",
            help=f"The runtimes that must agree, comma-separated; NAME@VERSION too. Otherwise those of the plan "
            f"that made the checkpoint, or {o.RUNTIMES_DEFAULT}.",
            show_default=False,
            autocompletion=o.complete_runtimes,
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write a mended copy that every required runtime reads alike.")
    ] = False,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", help="Where --fix writes to; NAME-fixed-128k otherwise.", show_default=False),
    ] = None,
    original_context: Annotated[
        Optional[str],
        typer.Option(help="For --fix: the original length, where the config has none.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --fix: show the diff; write nothing.")] = False,
    link_mode: o.LinkOpt = "auto",
    force: o.ForceOpt = False,
    allow: o.AllowOpt = None,
    family: o.FamilyOpt = None,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """What every runtime will make of a checkpoint: its length, its frequencies, and what is wrong with it.

    Ends with 5 when a runtime of --runtimes reads something else than is meant; a name with a version,
    such as transformers@4.45, asks for all versions from that one on. Others are shown for information.

    Example: ctxextend check ./model --runtimes transformers,vllm
    """
    names = None if runtimes is None else runtimes_of(runtimes)
    only_with_fix = (out, original_context, allow, force or None, dry_run or None, None if link_mode == "auto" else 1)
    if not fix and any(given is not None for given in only_with_fix):
        raise UsageError(
            "--out, --force, --dry-run, --link-mode, --allow and --original-context go with --fix",
            code="bad-option",
            hint="add --fix",
        )
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    if fix:
        if against is not None:
            raise UsageError(
                "--fix writes what the checkpoint itself means, not --against", code="bad-option", hint="leave one away"
            )
        plan = repair_source(
            opened,
            runtimes=names or DEFAULT_RUNTIMES,
            original_context=None
            if original_context is None
            else parse_tokens(original_context, option="--original-context"),
            family=family,
            allow=allowed(allow),
        )
        _mend(console, opened, plan, out, Options(link_mode=link_mode, force=force), dry_run=dry_run)
        return
    meant = None if against is None else meaning_of(against, token=token, cache_dir=cache_dir)
    found = check_source(opened, runtimes=names, against=meant, family=family)
    if as_json:
        console.document(found)
    else:
        from ctxextend.cli.check_page import check_page

        console.draw(check_page(found, verbose=verbose))
    if not found.ok:
        raise typer.Exit(DisagreementError.exit_code)


def _mend(console: Console, opened: Opened, plan: Plan, out: Path | None, options: Options, *, dry_run: bool) -> None:
    """Carry a repair out, or show it; one that has nothing to mend writes nothing."""
    if out is not None:
        plan = msgspec.structs.replace(plan, out=out.name)
    if dry_run:
        show_plan(console, plan, opened)
        return
    console.warnings(plan.warnings)
    if changes_nothing(plan.actions):
        if console.as_json:
            console.document(plan)
        console.note(plan.reasons[0])
        return
    with console.progress(size_bytes(plan.actions)) as progress:
        path, manifest = run_plan(plan, opened, out, options=options, progress=progress)
    show_result(console, path, manifest)
