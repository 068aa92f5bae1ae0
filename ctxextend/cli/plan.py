"""``ctxextend plan``: what convert would do, without doing it."""

from __future__ import annotations

from ctxextend.apply import edited_texts
from ctxextend.changes import Restore, config_text
from ctxextend.checkpoint.directory import read_text
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.pipeline import Opened, open_source, plan_source
from ctxextend.plan import Plan, edits_of


def plan(
    source: o.SourceArg,
    method: o.MethodOpt = "auto",
    target: o.TargetOpt = None,
    factor: o.FactorOpt = None,
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
    allow: o.AllowOpt = None,
    revision: o.RevisionOpt = None,
    token: o.TokenOpt = None,
    cache_dir: o.CacheOpt = None,
    as_json: o.JsonOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """What an extension changes, and why: the plan that convert carries out.

    With --json it can be saved, compared, and replayed with 'convert --plan'.

    Example: ctxextend plan ./model --method yarn --target 128k
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
        allow=allow,
        to=to,
        outtype=outtype,
        split_max_size=split_max_size,
        converter=converter,
    )
    opened = open_source(o.source_of(source, revision, token, cache_dir))
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    show_plan(console, plan_source(opened, recipe), opened)


def show_plan(console: Console, plan: Plan, opened: Opened) -> None:
    """A plan as JSON, or as a page with the diff of every document it edits."""
    if console.as_json:
        console.document(plan)
        return
    from ctxextend.cli.pages import diff_page, keys_page, plan_page

    contents = opened.contents
    console.detail(f"{contents.source}: {len(contents.files)} files, {len(contents.tensors)} tensors")
    console.detail(f"plan {plan.digest}")
    console.draw(plan_page(plan))
    console.draw(keys_page(plan.actions))
    documents = _documents(plan, opened)
    for name, text in edited_texts(plan, documents).items():
        console.draw(diff_page(documents[name], text, name))
    console.warnings(plan.warnings)


def _documents(plan: Plan, opened: Opened) -> dict[str, str]:
    """The texts that the plan edits; tokenizer.json of a Hub repository isn't fetched for a picture."""
    texts = {}
    for name in edits_of(plan):
        known = opened.contents.documents.get(name)
        if known is not None:
            texts[name] = known.text
        elif opened.source.folder is not None:
            texts[name] = read_text(opened.source.folder, name).text
    for action in plan.actions:
        if isinstance(action, Restore):
            texts["config.json"] = config_text(action)
    return texts
