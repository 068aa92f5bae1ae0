"""Every option that more than one command has, spelled and explained once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from ctxextend.checkpoint import Source, resolve
from ctxextend.errors import UsageError
from ctxextend.lengths import parse_bytes, parse_tokens
from ctxextend.recipe import Recipe, allowed, runtimes_of
from ctxextend.runtimes import DEFAULT_RUNTIMES


def complete_method(incomplete: str) -> list[str]:
    """Names of methods for a shell's completion, built-in ones alone: it loads no plug-in."""
    from ctxextend.methods import METHODS, POSITION_METHODS

    return _beginning(incomplete, ("auto", *METHODS, *POSITION_METHODS))


def complete_methods(incomplete: str) -> list[str]:
    """The same for a list with commas, of methods to compare."""
    from ctxextend.lab.names import UNTOUCHED
    from ctxextend.methods import METHODS

    return _listing(incomplete, (UNTOUCHED, *METHODS))


def complete_family(incomplete: str) -> list[str]:
    """Names of families for a shell's completion."""
    from ctxextend.families import FAMILIES

    return _beginning(incomplete, FAMILIES)


def complete_runtimes(incomplete: str) -> list[str]:
    """Names of runtimes for a shell's completion, in a list with commas."""
    from ctxextend.runtimes import GGUF_RUNTIMES, READERS

    return _listing(incomplete, (*(reader.runtime for reader in READERS), *GGUF_RUNTIMES))


def complete_tasks(incomplete: str) -> list[str]:
    """What can be measured, for a shell's completion, in a list with commas."""
    from ctxextend.lab.names import TASKS

    return _listing(incomplete, TASKS)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _listing(incomplete: str, names: Iterable[str]) -> list[str]:
    """The last part of a list completed, with the parts before it; what is named there isn't offered again."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [before + comma + name for name in _beginning(last, names) if name not in taken]


SourceArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A checkpoint's folder, a GGUF file, or a Hub repository org/name[@revision] (hf:// forces that; "
        "org/name:Q4_K_M and org/name/file.gguf pick a GGUF).",
        show_default=False,
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, errors too.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, warnings or progress.")]
VerboseOpt = Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is done.")]
RevisionOpt = Annotated[
    Optional[str], typer.Option(help="Branch, tag or commit of a Hub repository.", show_default=False)
]
TokenOpt = Annotated[
    Optional[str], typer.Option(help="Hub token; HF_TOKEN or a saved login otherwise.", show_default=False)
]
CacheOpt = Annotated[Optional[Path], typer.Option("--cache-dir", help="The Hub cache to use.", show_default=False)]
MethodOpt = Annotated[
    str,
    typer.Option(
        "--method",
        "-m",
        help="A method ('ctxextend methods' lists them), or auto.",
        autocompletion=complete_method,
    ),
]
TargetOpt = Annotated[
    Optional[str],
    typer.Option("--target", "-t", help="The new context length: 128k is 131072.", show_default=False),
]
FactorOpt = Annotated[
    Optional[str],
    typer.Option("--factor", help="Times the trained length, instead of --target.", show_default=False),
]
OriginalOpt = Annotated[
    Optional[str],
    typer.Option("--original-context", help="The length the weights were trained for.", show_default=False),
]
BaseOpt = Annotated[
    Literal["auto", "trained", "unscaled"],
    typer.Option("--base", help="Whether a scaling that is there was trained in."),
]
SetOpt = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method; @FILE reads JSON.", show_default=False),
]
LayersOpt = Annotated[
    Optional[list[str]],
    typer.Option("--layers", metavar="LABEL", help="Only layers of this type.", show_default=False),
]
WindowOpt = Annotated[
    Literal["keep", "target", "off"],
    typer.Option("--sliding-window", help="Keep a sliding window, widen it to the target, or switch it off."),
]
FineTuneOpt = Annotated[
    Literal["yes", "no"],
    typer.Option("--fine-tune", help="Whether the result will be trained further (for auto)."),
]
FamilyOpt = Annotated[
    Optional[str],
    typer.Option(
        "--family", help="Treat the model as this family.", show_default=False, autocompletion=complete_family
    ),
]
RuntimesOpt = Annotated[
    str,
    typer.Option(
        "--runtimes",
        metavar="LIST",
        help="The runtimes that must agree, comma-separated; NAME@VERSION too.",
        autocompletion=complete_runtimes,
    ),
]
CarrierOpt = Annotated[
    Literal["auto", "native", "factors"],
    typer.Option("--carrier", help="Write the scaling's own form, per-pair factors, or the first that fits."),
]
BakeOpt = Annotated[
    Literal["none", "buffers", "temperature", "all"],
    typer.Option(
        "--bake",
        help="Put the extension into tensors too: the frequencies (buffers), the attention factor into the query "
        "weights (temperature), or both.",
    ),
]
AllowOpt = Annotated[
    Optional[list[str]],
    typer.Option("--allow", metavar="CODE", help="Let this refusal pass.", show_default=False),
]

ToOpt = Annotated[
    Optional[Literal["safetensors", "gguf"]],
    typer.Option("--to", help="The format of the result; the source's otherwise.", show_default=False),
]
OuttypeOpt = Annotated[
    Optional[list[str]],
    typer.Option(
        "--outtype",
        help="The type of the weights in another format: bf16, q8_0, q4_k_m ...; several make several files.",
        show_default=False,
    ),
]
SplitOpt = Annotated[
    Optional[str],
    typer.Option("--split-max-size", help="The size of a GGUF file above which it is split.", show_default=False),
]
ConverterOpt = Annotated[
    Optional[Path],
    typer.Option(
        "--converter",
        help="llama.cpp's convert_hf_to_gguf.py, for architectures that aren't exported here; its rope is corrected.",
        show_default=False,
    ),
]

LinkOpt = Annotated[
    Literal["auto", "reflink", "hardlink", "symlink", "copy"],
    typer.Option("--link-mode", help="How files that stay get there; auto clones, else copies."),
]
ForceOpt = Annotated[bool, typer.Option("--force", help="Replace an earlier output of ctxextend.")]

RUNTIMES_DEFAULT = ",".join(DEFAULT_RUNTIMES)


def source_of(given: str, revision: str | None, token: str | None, cache_dir: Path | None) -> Source:
    """The source as the options name it."""
    return resolve(given, revision=revision, token=token, cache_dir=cache_dir)


def recipe_of(
    *,
    method: str,
    target: str | None,
    factor: str | None,
    original_context: str | None,
    base: Literal["auto", "trained", "unscaled"],
    settings: Iterable[str] | None,
    layers: Iterable[str] | None,
    sliding_window: Literal["keep", "target", "off"],
    fine_tune: Literal["yes", "no"],
    family: str | None,
    runtimes: str,
    carrier: Literal["auto", "native", "factors"],
    bake: Literal["none", "buffers", "temperature", "all"],
    allow: Iterable[str] | None,
    to: Literal["safetensors", "gguf"] | None,
    outtype: Iterable[str] | None,
    split_max_size: str | None,
    converter: Path | None,
) -> Recipe:
    """The recipe that the flags spell. Raises :class:`UsageError` for one that can't be read."""
    names = runtimes_of(runtimes)
    return Recipe(
        method=method,
        target=None if target is None else parse_tokens(target, option="--target"),
        factor=None if factor is None else _number(factor, "--factor"),
        original_context=None
        if original_context is None
        else parse_tokens(original_context, option="--original-context"),
        base=base,
        options=settings_of(settings or ()),
        layers=tuple(layers or ()),
        sliding_window=sliding_window,
        fine_tune=fine_tune == "yes",
        family=family,
        runtimes=names,
        carrier=carrier,
        bake=bake,
        allow=allowed(allow),
        to=to,
        outtypes=tuple(name.strip().lower() for given in outtype or () for name in given.split(",")),
        split_max_size=None if split_max_size is None else parse_bytes(split_max_size, option="--split-max-size"),
        converter=None if converter is None else str(converter),
    )


def settings_of(pairs: Iterable[str]) -> dict[str, Any]:
    """``key=value`` pairs; a value is JSON where it can be read as such, else text; ``@FILE`` is a JSON file."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                "a parameter can't be read",
                code="bad-parameter",
                key="--set",
                expected="KEY=VALUE",
                found=pair,
                hint="such as --set beta_fast=32; 'ctxextend methods' lists each method's parameters",
            )
        settings[key] = _value(text)
    return settings


def refuse_beside(why: str, **given: object) -> None:
    """Raises :class:`UsageError` for an option that was given and says nothing here."""
    for name, value in given.items():
        if value not in (None, False, "auto"):
            raise UsageError(why, code="bad-option", key=f"--{name.replace('_', '-')}", hint="leave one of them away")


def variables_of(pairs: Iterable[str]) -> dict[str, str]:
    """``--var KEY=VALUE`` pairs, as text. Raises :class:`UsageError` for one that can't be read, or given twice."""
    variables: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key or key in variables:
            raise UsageError(
                "a variable is given twice" if key in variables else "a variable can't be read",
                code="bad-variable",
                key="--var",
                expected="KEY=VALUE",
                found=pair,
                hint="such as --var org=my-org",
            )
        variables[key] = text
    return variables


def _value(text: str) -> Any:
    if text.startswith("@"):
        from ctxextend.checkpoint.directory import read_json

        return read_json(Path(text[1:]))
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"{option} can't be read", code="bad-number", key=option, expected="a number, such as 4", found=repr(text)
        ) from None
