"""``ctxextend smoke``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ctxextend.cli import lab_options as lab
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.lab import asking
from ctxextend.lab.names import SMOKE_PASSKEY, SMOKE_PERPLEXITY_RATIO
from ctxextend.lengths import parse_tokens
from ctxextend.pipeline import open_source

if TYPE_CHECKING:
    from ctxextend.lab.smoke import SmokeReport


def smoke(
    source: o.SourceArg,
    length: Annotated[
        Optional[str],
        typer.Option("--length", "-l", help="Run at this length; the checkpoint's own otherwise.", show_default=False),
    ] = None,
    engine: lab.EngineOpt = "auto",
    endpoint: lab.EndpointOpt = None,
    served_name: lab.ServedOpt = None,
    api_key: lab.KeyOpt = None,
    tokenizer: lab.TokenizerOpt = None,
    device: lab.DeviceOpt = "auto",
    dtype: lab.DtypeOpt = "auto",
    text: lab.TextOpt = None,
    max_perplexity_ratio: Annotated[
        float,
        typer.Option(help="Of the same passages past the trained length over within it: the mean of the offsets."),
    ] = SMOKE_PERPLEXITY_RATIO,
    min_passkey: Annotated[
        float, typer.Option(min=0, max=1, help="The share of pass keys that must come back at the length.")
    ] = SMOKE_PASSKEY,
    passkey: Annotated[bool, typer.Option("--passkey/--no-passkey", help="Whether pass keys are asked for.")] = True,
    trust_remote_code: lab.RemoteOpt = False,
    family: o.FamilyOpt = None,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
) -> None:
    """Run a checkpoint at its new length: does it work there, and does it still make sense?

    The rope inside the model, a reading to the last position through the KV cache, decoding across the trained
    length, the same passage at growing offsets, pass keys. Ends with 4 when a check fails.

    Example: ctxextend smoke ./model-yarn-128k --length 128k
    """
    from ctxextend.lab.verbs import smoke_source

    limits = asking.limits_of(max_perplexity_ratio, min_passkey)
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    console = lab.console_of(as_json=as_json, quiet=quiet)
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
    report = smoke_source(
        opened,
        length=None if length is None else parse_tokens(length, option="--length"),
        choice=choice,
        texts=text or (),
        limits=limits,
        passkey=passkey,
        family=family,
        say=console.step,
    )
    if as_json:
        console.document(report)
    else:
        from ctxextend.cli.smoke_page import smoke_page

        console.draw(smoke_page(report))
    end_with(console, report)


def end_with(console: Console, report: SmokeReport) -> None:
    """Ends with 4 for a report that isn't ok, after saying what failed."""
    from ctxextend.lab.smoke import failure_of

    error = failure_of(report)
    if error is None:
        return
    console.failure(error)
    raise typer.Exit(error.exit_code)
