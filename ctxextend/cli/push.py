"""``ctxextend push``: a checkpoint, published on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.lengths import show_bytes
from ctxextend.recipe import PUBLISHING, allowed

if TYPE_CHECKING:
    from ctxextend.hub.values import Pushed

GlobOpt = Optional[list[str]]


def push(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="What 'ctxextend convert' wrote, or any checkpoint's folder or GGUF file.",
            show_default=False,
        ),
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME; made where it isn't there.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        Optional[str],
        typer.Option(help="The branch to commit to; made where it isn't there.", show_default=False),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Offer it as a pull request.")] = False,
    commit_message: Annotated[
        Optional[str], typer.Option("--commit-message", help="The commit's first line.", show_default=False)
    ] = None,
    commit_description: Annotated[
        Optional[str], typer.Option("--commit-description", help="What the commit says below it.", show_default=False)
    ] = None,
    include: Annotated[
        GlobOpt, typer.Option("--include", metavar="GLOB", help="Only files that match; repeatable.")
    ] = None,
    exclude: Annotated[GlobOpt, typer.Option("--exclude", metavar="GLOB", help="Not these; repeatable.")] = None,
    card: Annotated[
        bool, typer.Option("--card/--no-card", help="Write the model card, or leave README.md as it is.")
    ] = True,
    report: Annotated[
        Optional[Path],
        typer.Option("--report", help="What 'ctxextend eval --report' wrote, for the card.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be copied and uploaded; write nothing.")
    ] = False,
    allow: o.AllowOpt = None,
    token: o.TokenOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """Publish a checkpoint on the Hub, with its model card, in one commit.

    Weights that were taken over unchanged from a repository of the Hub are copied there instead of uploaded. What an
    interrupted push has uploaded isn't uploaded again, and where nothing has changed no commit is made. Uploads go
    through Xet; with HF_HUB_DISABLE_XET=1, or where hf_xet isn't installed, through LFS.

    Example: ctxextend push ./model-128k my-org/model-128k --private
    """
    from ctxextend.hub import PushOptions, push_path

    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    options = PushOptions(
        repo_id=repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=commit_message,
        description=commit_description,
        token=token,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        card=card,
        report=report,
        allow=allowed(allow, PUBLISHING),
        dry_run=dry_run,
        quiet=quiet or as_json,
    )
    console.step(f"comparing {path} with {repo_id}")
    pushed = push_path(path.expanduser(), options, say=console.note)
    if console.as_json:
        console.document(pushed)
    else:
        show_pushed(console, pushed)


def show_pushed(console: Console, pushed: Pushed) -> None:
    """The address of what was published on stdout, and what became of the files."""
    console.line(pushed.url)
    for file in pushed.files:
        how = "there already" if file.how == "there" else file.how
        reason = "" if file.reason is None else f" ({file.reason})"
        console.detail(f"  {how}: {file.path}, {show_bytes(file.size_bytes)}{reason}")
    if pushed.created:
        console.note(f"  {'a new private' if pushed.private else 'a new public'} repository")
    for how, meant in (("copied", "copied on the Hub"), ("uploaded", "uploaded"), ("there", "there already")):
        files = [file for file in pushed.files if file.how == how]
        if files:
            size = show_bytes(sum(file.size_bytes for file in files))
            console.note(f"  {len(files)} file{'s' if len(files) > 1 else ''} {meant}, {size}")
    reasons = dict.fromkeys(file.reason for file in pushed.files if file.reason is not None)
    console.notes(f"  uploaded and not copied: {reason}" for reason in reasons)
    console.notes(f"note: {note}" for note in pushed.notes)
    if pushed.dry_run:
        console.note("nothing was written: this was a dry run")
    elif not pushed.changed:
        console.note("nothing changed: no commit was made")
