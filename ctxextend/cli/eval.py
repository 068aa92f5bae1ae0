"""``ctxextend eval``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ctxextend.cli import lab_options as lab
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.lab import asking
from ctxextend.lab.names import BOUNDS, ORIGINAL, TASKS
from ctxextend.pipeline import open_source

if TYPE_CHECKING:
    from ctxextend.lab.gates import Measured
    from ctxextend.lab.results import Evaluation

TASKS_DEFAULT = "perplexity,passkey"


def _bound(name: str) -> typer.models.OptionInfo:
    kind = BOUNDS[name]
    side = "At most" if kind.most else "At least"
    found: typer.models.OptionInfo = typer.Option(
        kind.option, help=f"{side}: {kind.meaning} (--gate: {kind.default:g}).", show_default=False
    )
    return found


def evaluate(
    source: o.SourceArg,
    against: Annotated[
        Optional[str],
        typer.Option(
            metavar="BASE",
            help="The checkpoint that it was made of, to see what short contexts lost; 'original' takes what a "
            "conversion of ctxextend has recorded.",
            show_default=False,
        ),
    ] = None,
    lengths: Annotated[
        Optional[str],
        typer.Option(metavar="LIST", help="Such as 8k,32k; the trained and the stated length.", show_default=False),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"Of {', '.join(TASKS)}; short comes with --against.",
            autocompletion=o.complete_tasks,
        ),
    ] = TASKS_DEFAULT,
    text: lab.TextOpt = None,
    windows: lab.WindowsOpt = 2,
    samples: lab.SamplesOpt = 2,
    depths: lab.DepthsOpt = "0.1,0.3,0.5,0.7,0.9",
    needles: lab.NeedlesOpt = 4,
    stride: lab.StrideOpt = 256,
    short_lengths: lab.ShortOpt = None,
    seed: lab.SeedOpt = 1,
    report: lab.ReportOpt = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Hold what is measured to the default of every bound below.")
    ] = False,
    max_perplexity_ratio: Annotated[Optional[float], _bound("perplexity-ratio")] = None,
    min_passkey: Annotated[Optional[float], _bound("passkey")] = None,
    min_needles: Annotated[Optional[float], _bound("needles")] = None,
    max_short_regression: Annotated[Optional[float], _bound("short-regression")] = None,
    max_kl: Annotated[Optional[float], _bound("kl")] = None,
    min_same_top: Annotated[Optional[float], _bound("same-top")] = None,
    engine: lab.EngineOpt = "auto",
    endpoint: lab.EndpointOpt = None,
    served_name: lab.ServedOpt = None,
    api_key: lab.KeyOpt = None,
    tokenizer: lab.TokenizerOpt = None,
    device: lab.DeviceOpt = "auto",
    dtype: lab.DtypeOpt = "auto",
    trust_remote_code: lab.RemoteOpt = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would cost; measure nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew in a --report folder of another run.")] = False,
    family: o.FamilyOpt = None,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
) -> None:
    """How good a model is along its context: perplexity by position, what it finds, what short contexts lost.

    Ends with 4 when a bound is missed, and says which figure.

    Example: ctxextend eval ./model-yarn-128k --against ./model --lengths 8k,128k --report evidence --gate
    """
    from ctxextend.lab.gates import with_defaults
    from ctxextend.lab.verbs import Run, eval_source

    bounds = asking.bounds_of(
        {
            "perplexity-ratio": max_perplexity_ratio,
            "passkey": min_passkey,
            "needles": min_needles,
            "short-regression": max_short_regression,
            "kl": max_kl,
            "same-top": min_same_top,
        }
    )
    settings = asking.settings_from(
        tasks=tasks,
        lengths=lengths,
        short_lengths=short_lengths,
        windows=windows,
        samples=samples,
        depths=depths,
        needles=needles,
        stride=stride,
        seed=seed,
    )
    if gate:
        asking.require_gated(settings.tasks, against=against is not None)
    choice = asking.choice_of(
        engine=engine,
        endpoint=endpoint,
        served_name=served_name,
        api_key=api_key,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    lab.require_charts(report)
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    original = against == ORIGINAL
    base = None if against is None or original else open_source(o.source_of(against, None, token, cache_dir))
    console = lab.console_of(as_json=as_json, quiet=quiet)

    def held(measured: Measured) -> Mapping[str, float]:
        return with_defaults(measured, bounds) if gate else bounds

    with lab.resumable(None if dry_run else report):
        with lab.Watch(console, dry_run=dry_run) as watch:
            found = eval_source(
                opened,
                settings,
                choice=choice,
                against=base,
                original=original,
                texts=text or (),
                bounds=held,
                family=family,
                how=Run(
                    folder=report,
                    anew=force,
                    dry=dry_run,
                    say=console.step,
                    before=watch.before,
                    progress=watch.progress,
                ),
            )
        if found is None:
            return
        if as_json:
            console.document(lab.plain(found))
        else:
            from ctxextend.cli.evidence_pages import evaluation_page

            console.draw(evaluation_page(found))
        lab.write(console, report, found)
    _end(found, console, gate=gate)


def _end(found: Evaluation, console: Console, *, gate: bool) -> None:
    """Ends with 4 where a bound was missed, or where nothing could be held to any; after saying which."""
    from ctxextend.lab.gates import failure_of

    error = failure_of(found, gate=gate)
    if error is None:
        return
    console.failure(error)
    raise typer.Exit(error.exit_code)
