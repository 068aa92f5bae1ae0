"""``ctxextend check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ctxextend.apply import Options, carried
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.cli.convert import show_result
from ctxextend.cli.plan import show_plan
from ctxextend.errors import DisagreementError, UsageError
from ctxextend.lengths import parse_tokens
from ctxextend.pipeline import check_source, meaning_of, open_source, repair_source, run_plan
from ctxextend.plan import edits_of


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
    runtimes: o.RuntimesOpt = o.RUNTIMES_DEFAULT,
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
    names = o.runtimes_of(runtimes)
    if not fix and (out is not None or original_context is not None or force or dry_run):
        raise UsageError(
            "--out, --force, --dry-run and --original-context go with --fix", code="bad-option", hint="add --fix"
        )
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    if fix:
        if against is not None:
            raise UsageError(
                "--fix writes what the checkpoint itself means, not --against", code="bad-option", hint="leave one away"
            )
        original = None if original_context is None else parse_tokens(original_context, option="--original-context")
        plan = repair_source(opened, runtimes=names, original_context=original, family=family, allow=o.allowed(allow))
        if dry_run:
            show_plan(console, plan, opened)
            return
        console.warnings(plan.warnings)
        if not edits_of(plan):
            console.note(plan.reasons[0])
        options = Options(link_mode=link_mode, force=force)
        sizes = {file.path: file.size_bytes for file in opened.contents.files}
        with console.progress(sum(sizes.get(name, 0) for name in carried(plan))) as progress:
            path, manifest = run_plan(plan, opened, out, options=options, progress=progress)
        show_result(console, path, manifest)
        return
    found = check_source(
        opened, runtimes=names, against=None if against is None else meaning_of(against), family=family
    )
    if as_json:
        console.document(found)
    else:
        from ctxextend.cli.check_page import check_page

        console.draw(check_page(found, verbose=verbose))
    if not found.ok:
        raise typer.Exit(DisagreementError.exit_code)
