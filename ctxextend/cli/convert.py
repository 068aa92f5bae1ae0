"""``ctxextend convert``: a plan, made to happen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import msgspec
import typer

from ctxextend.apply import OVERRIDES, Manifest, Options, check_actions, plan_from
from ctxextend.changes import size_bytes
from ctxextend.checkpoint.directory import read_json
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.cli.plan import show_plan
from ctxextend.errors import CtxextendError, GateError, UsageError
from ctxextend.lengths import show_bytes
from ctxextend.pipeline import (
    check_run,
    checkpoints_in,
    inspect_source,
    open_source,
    plan_source,
    run_in_place,
    run_plan,
)
from ctxextend.plan import Plan
from ctxextend.recipe import PUBLISHING, Recipe

if TYPE_CHECKING:
    from ctxextend.hub import Pushed, PushOptions
    from ctxextend.lab.smoke import SmokeReport
    from ctxextend.pipeline import Opened

OutOpt = Annotated[
    Optional[Path],
    typer.Option("--out", "-o", help="Where to; NAME-METHOD-128k[.gguf] here otherwise.", show_default=False),
]


def convert(
    source: o.SourceArg,
    method: o.MethodOpt = "auto",
    target: o.TargetOpt = None,
    factor: o.FactorOpt = None,
    out: OutOpt = None,
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
    to: o.ToOpt = None,
    outtype: o.OuttypeOpt = None,
    split_max_size: o.SplitOpt = None,
    converter: o.ConverterOpt = None,
    plan_file: Annotated[
        Optional[Path],
        typer.Option("--plan", help="Carry out a saved plan; no method options beside it.", show_default=False),
    ] = None,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Write the changed files alone, and each engine's override.")
    ] = False,
    link_mode: o.LinkOpt = "auto",
    quantizer: Annotated[
        Optional[Path],
        typer.Option(
            help="llama.cpp's llama-quantize or libllama, for types such as q4_k_m; the one on PATH otherwise.",
            show_default=False,
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Change a GGUF file where it lies, without rewriting its weights.")
    ] = False,
    checksums: Annotated[bool, typer.Option("--checksums", help="Hash every file, not the headers alone.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Then run the result at its length; kept, with exit 4, where that fails.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its diff; write nothing.")] = False,
    force: o.ForceOpt = False,
    push: Annotated[
        Optional[str],
        typer.Option(
            metavar="REPO_ID",
            help="Then publish it there as 'ctxextend push' does; of a Hub repository's unchanged weights without a "
            "local copy, where --out asks for none.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make a new repository private.")] = False,
    allow: o.AllowOpt = None,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """Extend a checkpoint's context, or change its format: the source untouched, unless --in-place asks for it.

    A folder becomes a folder, a GGUF file a GGUF file, with the same weights; --to changes the format. What was
    written is read back as each runtime would before it appears.

    Example: ctxextend convert ./model --method yarn --target 128k --out ./model-128k
    """
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
        allow=[code for code in allow or () if push is None or code not in PUBLISHING],
        to=to,
        outtype=outtype,
        split_max_size=split_max_size,
        converter=converter,
    )
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    publishing = _publishing(console, push, private=private, allow=allow, token=token, config_only=config_only)
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    plan = plan_source(opened, recipe) if plan_file is None else _saved_plan(plan_file, recipe)
    check_actions(plan, opened.contents)
    if out is not None:
        plan = msgspec.structs.replace(plan, out=out.name)
    if dry_run:
        show_plan(console, plan, opened)
        return
    if publishing is not None:
        from ctxextend.hub import check_publishing, needs_no_weights

        # Before anything is downloaded or written for it.
        check_publishing(publishing, opened.source.repo_id, say=console.note)
        local = out is not None or smoke or in_place
        if not local and needs_no_weights(plan, opened.source, opened.contents):
            console.warnings(plan.warnings)
            _push_direct(console, plan, opened, publishing)
            return
    if smoke:
        _require_runnable(plan, opened, recipe, config_only=config_only)
    if in_place:
        o.refuse_beside(
            "--in-place writes no output that this could be said of",
            out=out,
            force=force,
            config_only=config_only,
            checksums=checksums,
            link_mode=link_mode,
            quantizer=quantizer,
            converter=converter,
        )
        console.warnings(plan.warnings)
        _finish(console, *run_in_place(plan, opened), smoke=smoke, family=family, publishing=publishing)
        return
    options = Options(
        link_mode=link_mode,
        checksums=checksums,
        config_only=config_only,
        force=force,
        quantizer=quantizer,
        converter=converter,
    )
    check_run(plan, opened, out, options=options)
    console.warnings(plan.warnings)
    with console.progress(size_bytes(plan.actions)) as progress:
        path, manifest = run_plan(plan, opened, out, options=options, progress=progress)
    _finish(console, path, manifest, smoke=smoke, family=family, publishing=publishing)


def _publishing(
    console: Console,
    repo_id: str | None,
    *,
    private: bool,
    allow: list[str] | None,
    token: str | None,
    config_only: bool,
) -> PushOptions | None:
    """How the result is published, if it is. Raises :class:`UsageError` for what goes without it, or not with it."""
    if repo_id is None:
        if private:
            raise UsageError(
                "--private says how --push makes a repository", code="bad-option", key="--private", hint="add --push"
            )
        return None
    if config_only:
        raise UsageError(
            "--config-only writes no checkpoint that could be published",
            code="bad-option",
            key="--config-only",
            hint="leave it away: weights that stay as they are aren't downloaded for --push either",
        )
    from ctxextend.hub import PushOptions

    return PushOptions(
        repo_id=repo_id,
        private=private,
        token=token,
        allow=tuple(code for code in allow or () if code in PUBLISHING),
        quiet=console.quiet or console.as_json,
    )


def _push_direct(console: Console, plan: Plan, opened: Opened, publishing: PushOptions) -> None:
    """Publish without a local copy of the weights."""
    from ctxextend.cli.push import show_pushed
    from ctxextend.hub import push_direct

    console.step(f"publishing {publishing.repo_id} without a local copy of the weights")
    manifest, pushed = push_direct(plan, opened.source, opened.contents, publishing, say=console.note)
    if console.as_json:
        console.document({**msgspec.to_builtins(manifest), "push": msgspec.to_builtins(pushed)})
        return
    show_pushed(console, pushed)
    _show_read(console, manifest)


def _require_runnable(plan: Plan, opened: Opened, recipe: Recipe, *, config_only: bool) -> None:
    """Before anything is written. Raises :class:`UsageError` and :class:`RefusedError` for what can't be run then."""
    if config_only:
        raise UsageError(
            "--config-only writes no weights that could be run",
            code="bad-option",
            key="--smoke",
            hint="leave one of them away",
        )
    from ctxextend.lab.runnable import require_runnable

    require_runnable(opened, inspect_source(opened, recipe), plan)


def _finish(
    console: Console,
    path: Path,
    manifest: Manifest,
    *,
    smoke: bool,
    family: str | None,
    publishing: PushOptions | None,
) -> None:
    """Show what was written; with ``smoke`` run it then, and end with 4 where that fails; publish what is left."""
    document = _printed(path, manifest)
    if not console.as_json:
        show_result(console, path, manifest)
    if smoke:
        reports = _smoked(console, path, family=family)
        document["smoke"] = msgspec.to_builtins(reports)
        failed = not all(report.ok for report in reports)
        if console.as_json and failed:
            console.document(document)
        from ctxextend.cli.smoke import end_with

        for report in reports:
            end_with(console, report)
    if publishing is not None:
        document["push"] = msgspec.to_builtins(_push_output(console, path, publishing))
    if console.as_json:
        console.document(document)


def _push_output(console: Console, path: Path, publishing: PushOptions) -> Pushed:
    """Publish what was written; it stays, whatever comes of that."""
    from ctxextend.cli.push import show_pushed
    from ctxextend.hub import push_path

    console.step(f"publishing {path} as {publishing.repo_id}")
    try:
        pushed = push_path(path, publishing, say=console.note)
    except CtxextendError as error:
        again = f"{path} is written and stays: ctxextend push {path} {publishing.repo_id} publishes it"
        error.hint = again if error.hint is None else f"{error.hint}; {again}"
        raise
    if not console.as_json:
        show_pushed(console, pushed)
    return pushed


def _smoked(console: Console, path: Path, *, family: str | None) -> list[SmokeReport]:
    """What running each output came to, shown."""
    from ctxextend.lab.verbs import smoke_source

    reports: list[SmokeReport] = []
    try:
        for output in checkpoints_in(path):
            # A GGUF file names its architecture itself.
            known_as = None if output.suffix == ".gguf" else family
            reports.append(smoke_source(open_source(str(output)), family=known_as, say=console.step))
    except CtxextendError as error:
        raise GateError(
            f"the result was written, but not run: {error.message}",
            code="not-smoked",
            file=str(path),
            expected=error.expected,
            found=error.found,
            hint=error.hint,
        ) from error
    if not console.as_json:
        from ctxextend.cli.smoke_page import smoke_page

        for report in reports:
            # What convert prints is the output's path alone.
            console.draw_note(smoke_page(report))
    return reports


def _saved_plan(path: Path, recipe: Recipe) -> Plan:
    """A plan from ``plan --json``. Raises :class:`UsageError` when method options stand beside it.

    A converter may: a plan doesn't say which program it is.
    """
    if msgspec.structs.replace(recipe, converter=None) != Recipe():
        raise UsageError(
            "a saved plan says everything about the method itself",
            code="plan-and-options",
            key="--plan",
            hint="leave the method's options away, or make a new plan with them",
        )
    return plan_from(read_json(path), file=str(path))


def _printed(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The manifest as it is printed, with where the output lies."""
    return {**msgspec.to_builtins(manifest), "path": str(path)}


def show_result(console: Console, path: Path, manifest: Manifest) -> None:
    """What was written where, and what each runtime reads in it."""
    if console.as_json:
        console.document(_printed(path, manifest))
        return
    console.line(str(path))
    _show_read(console, manifest)
    if any(file.path == OVERRIDES for file in manifest.files):
        console.note(f"  {path / OVERRIDES} holds the override that each engine takes")


def _show_read(console: Console, manifest: Manifest) -> None:
    """What was done, and what each runtime reads in it."""
    from ctxextend.cli.tensor_page import rounding_line

    plan = manifest.plan
    if plan.method in ("none", "repair"):
        console.notes(plan.reasons)
    else:
        console.note(f"{plan.method}: {plan.arithmetic}, {plan.trained_context} -> {plan.target_context} tokens")
    for file in manifest.files:
        how = "written" if file.written else "rewritten" if file.rewritten else "carried"
        console.detail(f"  {how} {file.path}, {show_bytes(file.size_bytes)}")
    rounding = rounding_line(manifest.tensors)
    if rounding is not None:
        console.note(f"  {rounding}")
    for found in manifest.verified:
        verdict = "reads it as planned" if found.agrees else f"does not: {found.reason}"
        if found.absent is not None:
            verdict = found.absent
        length = "" if found.max_context is None else f", serves {found.max_context}"
        console.note(f"  {found.runtime} {found.versions}: {verdict}{length}")
