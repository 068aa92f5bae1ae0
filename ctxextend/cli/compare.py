"""``ctxextend compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from ctxextend.cli import lab_options as lab
from ctxextend.cli import options as o
from ctxextend.errors import UnknownNameError
from ctxextend.lab import asking
from ctxextend.lab.names import TASKS, UNTOUCHED
from ctxextend.lengths import parse_tokens
from ctxextend.pipeline import open_source
from ctxextend.recipe import Recipe, runtimes_of

METHODS_DEFAULT = "none,yarn,ntk,llama3,linear"


def compare(
    source: o.SourceArg,
    lengths: Annotated[str, typer.Option(metavar="LIST", help="The lengths to reach, such as 16k,32k.")],
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="The methods to try; none is the model as it is, ntk:headroom=1.25 sets a parameter.",
            autocompletion=o.complete_methods,
        ),
    ] = METHODS_DEFAULT,
    tasks: Annotated[
        str, typer.Option(metavar="LIST", help=f"Of {', '.join(TASKS)}.", autocompletion=o.complete_tasks)
    ] = "perplexity,passkey,short",
    text: lab.TextOpt = None,
    windows: lab.WindowsOpt = 1,
    samples: lab.SamplesOpt = 1,
    depths: lab.DepthsOpt = "0.1,0.5,0.9",
    short_lengths: lab.ShortOpt = None,
    seed: lab.SeedOpt = 1,
    report: lab.ReportOpt = None,
    device: lab.DeviceOpt = "auto",
    dtype: lab.DtypeOpt = "auto",
    trust_remote_code: lab.RemoteOpt = False,
    original_context: o.OriginalOpt = None,
    base: o.BaseOpt = "auto",
    runtimes: o.RuntimesOpt = o.RUNTIMES_DEFAULT,
    family: o.FamilyOpt = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would cost; measure nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew in a --report folder of another run.")] = False,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
) -> None:
    """Which method to ship: several, measured on one copy of the weights; no checkpoint is written.

    Each length is reached by each method; what that costs within the trained length is measured against the model
    as it is.

    Example: ctxextend compare ./model --methods none,yarn,ntk:headroom=1.25,llama3 --lengths 32k --report compared
    """
    from ctxextend.lab.comparing import Wish
    from ctxextend.lab.verbs import Run, compare_source

    wanted = lab.methods_of(methods)
    for _label, name, _options in wanted:
        if name not in (UNTOUCHED, "auto"):
            _require_method(name)
    targets = asking.lengths_of(lengths, option="--lengths")
    settings = asking.settings_from(
        tasks=tasks,
        lengths=None,
        short_lengths=short_lengths,
        windows=windows,
        samples=samples,
        depths=depths,
        seed=seed,
    )
    lab.require_charts(report)
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    console = lab.console_of(as_json=as_json, quiet=quiet)
    recipe = Recipe(
        base=base,
        family=family,
        runtimes=runtimes_of(runtimes),
        original_context=None
        if original_context is None
        else parse_tokens(original_context, option="--original-context"),
    )
    with lab.resumable(None if dry_run else report):
        with lab.Watch(console, dry_run=dry_run) as watch:
            found = compare_source(
                opened,
                [
                    Wish(label=label, method=name, options=options, target=target)
                    for target in targets
                    for label, name, options in wanted
                ],
                settings,
                recipe=recipe,
                choice=asking.choice_of(engine="auto", device=device, dtype=dtype, trust_remote_code=trust_remote_code),
                texts=text or (),
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
            from ctxextend.cli.evidence_pages import comparison_page

            console.draw(comparison_page(found))
        lab.write(console, report, found)


def _require_method(name: str) -> None:
    """Raises :class:`UnknownNameError` with all that can be compared, the model as it is included."""
    from ctxextend.methods import METHODS, find_method, third_party_methods

    known = {*METHODS, *third_party_methods()}
    if name not in known:
        raise UnknownNameError("method", name, [*known, "auto", UNTOUCHED])
    find_method(name)
