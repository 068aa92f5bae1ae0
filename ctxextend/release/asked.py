"""What a recipe asks, in the library's own values. Everything that can be refused by reading alone is refused here.

The key of an error is the command line's option, as for every reader of these words; who knows the file makes of it
where that stands there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from ctxextend.apply import Options
from ctxextend.errors import UsageError
from ctxextend.hub import PushOptions
from ctxextend.lab import asking
from ctxextend.lab.engines import Choice
from ctxextend.lab.names import BOUNDS, SMOKE_PASSKEY, SMOKE_PERPLEXITY_RATIO
from ctxextend.lab.results import Settings
from ctxextend.lab.smoke import Limits
from ctxextend.lengths import parse_bytes, parse_tokens
from ctxextend.recipe import PUBLISHING, Recipe, allowed, runtimes_of
from ctxextend.release.document import (
    CheckPart,
    EnginePart,
    EvalPart,
    Lengths,
    OutputPart,
    PushPart,
    RecipeDocument,
    SmokePart,
    listed,
)


class CheckAsked(Struct, frozen=True, kw_only=True):
    """What must agree. ``runtimes`` None: those of the plan."""

    runtimes: tuple[str, ...] | None
    against: str | None


class SmokeAsked(Struct, frozen=True, kw_only=True):
    """A smoke test. ``length`` counts tokens; None: the checkpoint's own."""

    length: int | None
    choice: Choice
    text: tuple[str, ...]
    limits: Limits
    passkey: bool


class EvalAsked(Struct, frozen=True, kw_only=True):
    """An evaluation. ``against``: ``source`` (the recipe's), ``original``, or a checkpoint."""

    settings: Settings
    choice: Choice
    text: tuple[str, ...]
    against: str | None
    gate: bool
    bounds: Mapping[str, float]


def recipe_of(document: RecipeDocument, output: OutputPart) -> Recipe:
    """The conversion of one output. Raises :class:`UsageError`."""
    split = output.split_max_size
    return Recipe(
        method=document.method,
        target=_tokens(document.target, "--target"),
        factor=document.factor,
        original_context=_tokens(document.original_context, "--original-context"),
        base=document.base,
        options=document.options,
        layers=listed(document.layers),
        sliding_window=document.sliding_window,
        fine_tune=document.fine_tune,
        family=document.family,
        runtimes=runtimes_of(",".join(listed(document.runtimes))),
        carrier=document.carrier,
        bake=document.bake,
        allow=allowed(listed(document.allow)),
        to=output.to,
        outtypes=tuple(name.lower() for name in listed(output.outtypes)),
        split_max_size=None if split is None else parse_bytes(str(split), option="--split-max-size"),
        converter=output.converter,
    )


def options_of(output: OutputPart, *, force: bool) -> Options:
    """How it is written."""
    return Options(
        link_mode=output.link_mode,
        checksums=output.checksums,
        force=force,
        quantizer=None if output.quantizer is None else Path(output.quantizer).expanduser(),
        converter=None if output.converter is None else Path(output.converter).expanduser(),
    )


def check_asked(part: bool | CheckPart) -> CheckAsked | None:
    """What ``check`` says. Raises :class:`UsageError`."""
    if part is False:
        return None
    settings = CheckPart() if part is True else part
    names = listed(settings.runtimes)
    return CheckAsked(runtimes=runtimes_of(",".join(names)) if names else None, against=settings.against)


def smoke_asked(part: bool | SmokePart) -> SmokeAsked | None:
    """What ``smoke`` says. Raises :class:`UsageError`."""
    if part is False:
        return None
    settings = SmokePart() if part is True else part
    ratio, passkey = settings.max_perplexity_ratio, settings.min_passkey
    return SmokeAsked(
        length=_tokens(settings.length, "--length"),
        choice=_choice(settings),
        text=listed(settings.text),
        limits=asking.limits_of(
            SMOKE_PERPLEXITY_RATIO if ratio is None else ratio, SMOKE_PASSKEY if passkey is None else passkey
        ),
        passkey=settings.passkey,
    )


def eval_asked(part: bool | EvalPart) -> EvalAsked | None:
    """What ``eval`` says. Raises :class:`UsageError`."""
    if part is False:
        return None
    asked = EvalPart() if part is True else part
    unknown = next((name for name in asked.bounds if name not in BOUNDS), None)
    if unknown is not None:
        raise UsageError(
            "there is no such bound",
            code="unknown-bound",
            key="--bounds",
            expected=", ".join(BOUNDS),
            found=unknown,
        )
    settings = asking.settings_from(
        tasks=",".join(listed(asked.tasks)),
        lengths=_lengths(asked.lengths),
        short_lengths=_lengths(asked.short_lengths),
        windows=asked.windows,
        samples=asked.samples,
        depths=asked.depths if isinstance(asked.depths, str) else ",".join(map(str, asked.depths)),
        needles=asked.needles,
        stride=asked.stride,
        seed=asked.seed,
    )
    if asked.gate:
        asking.require_gated(settings.tasks, against=asked.against is not None)
    asking.require_measured(asked.bounds, settings.tasks, against=asked.against is not None)
    return EvalAsked(
        settings=settings,
        choice=_choice(asked),
        text=listed(asked.text),
        against=asked.against,
        gate=asked.gate,
        bounds=asking.bounds_of(asked.bounds),
    )


def push_asked(part: PushPart, *, repo_id: str, token: str | None, cache_dir: Path | None, quiet: bool) -> PushOptions:
    """How an output is published. Raises :class:`UsageError`."""
    return PushOptions(
        repo_id=repo_id,
        private=part.private,
        revision=part.revision,
        create_pr=part.create_pr,
        message=part.commit_message,
        description=part.commit_description,
        token=token,
        cache_dir=cache_dir,
        include=listed(part.include),
        exclude=listed(part.exclude),
        card=part.card,
        allow=allowed(listed(part.allow), PUBLISHING),
        quiet=quiet,
    )


def _choice(part: EnginePart) -> Choice:
    return asking.choice_of(
        engine=part.engine,
        endpoint=part.endpoint,
        served_name=part.served_name,
        tokenizer=None if part.tokenizer is None else Path(part.tokenizer).expanduser(),
        device=part.device,
        dtype=part.dtype,
        trust_remote_code=part.trust_remote_code,
    )


def _tokens(given: int | str | None, option: str) -> int | None:
    return None if given is None else parse_tokens(str(given), option=option)


def _lengths(given: Lengths | None) -> str | None:
    if given is None:
        return None
    parts: Iterable[int | str] = given if isinstance(given, tuple) else (given,)
    return ",".join(map(str, parts))
