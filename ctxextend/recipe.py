"""What the user wants: the one value that flags, recipe files and Python callers all build."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from ctxextend.errors import UsageError
from ctxextend.inspection import BaseChoice, SlidingWindow
from ctxextend.record import Bake
from ctxextend.runtimes import DEFAULT_RUNTIMES, readers_of

#: Which forms of a scaling may be written.
Carrier = Literal["auto", "native", "factors"]

#: Positions are 32-bit whole numbers in every runtime.
LONGEST: Final = 2**31 - 1

#: Refusals that ``--allow`` can let pass: of a conversion, and of publishing.
ALLOWABLE: Final = ("unreadable",)
PUBLISHING: Final = ("restricted",)


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user wants. Lengths count tokens; ``target`` or ``factor`` is needed to extend.

    ``to``: the format of the result, the source's without it. ``outtypes``: the types of its weights;
    ``split_max_size`` counts bytes; ``converter`` is the path of llama.cpp's own.
    """

    method: str = "auto"
    target: int | None = None
    factor: float | None = None
    original_context: int | None = None
    base: BaseChoice = "auto"
    options: Mapping[str, Any] = {}
    layers: tuple[str, ...] = ()
    sliding_window: SlidingWindow = "keep"
    fine_tune: bool = False
    family: str | None = None
    runtimes: tuple[str, ...] = DEFAULT_RUNTIMES
    carrier: Carrier = "auto"
    bake: Bake = "none"
    allow: tuple[str, ...] = ()
    to: Literal["safetensors", "gguf"] | None = None
    outtypes: tuple[str, ...] = ()
    split_max_size: int | None = None
    converter: str | None = None


def bakes_temperature(recipe: Recipe) -> bool:
    """Whether the attention factor goes into the weights."""
    return recipe.bake in ("temperature", "all")


def bakes_buffers(recipe: Recipe) -> bool:
    """Whether frequencies go into tensors."""
    return recipe.bake in ("buffers", "all")


def resolve_target(recipe: Recipe, trained: int) -> int:
    """The target length in tokens. Raises :class:`UsageError` for numbers that can't be or don't agree."""
    for name, number in (("--target", recipe.target), ("--factor", recipe.factor)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise UsageError(f"{name} must be a positive number", code="bad-number", key=name, found=str(number))
    asked = recipe.target or trained * (recipe.factor or 1.0)
    if asked > LONGEST:
        raise UsageError(
            "no runtime counts that far",
            code="bad-number",
            key="--target" if recipe.target else "--factor",
            expected=f"at most {LONGEST} tokens",
            found=f"{asked:.6g} tokens",
        )
    if recipe.factor is None:
        if recipe.target is None:
            raise UsageError(
                "how far to extend isn't said",
                code="no-target",
                hint="--target 128k, or --factor 4",
            )
        return recipe.target
    reached = round(trained * recipe.factor)
    if recipe.target is not None and recipe.target not in (int(trained * recipe.factor), reached):
        raise UsageError(
            "--target and --factor don't agree",
            code="target-and-factor",
            expected=f"{trained} x {recipe.factor:g} = {reached}",
            found=f"--target {recipe.target}",
            hint="give only one of them; if the trained length is another, add --original-context",
        )
    return recipe.target or reached


def runtimes_of(listed: str) -> tuple[str, ...]:
    """The names of a comma-separated list. Raises :class:`UsageError` for one that isn't known."""
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    readers_of(names)
    return names or DEFAULT_RUNTIMES


def allowed(codes: Iterable[str] | None, among: tuple[str, ...] = ALLOWABLE) -> tuple[str, ...]:
    """The refusals to let pass. Raises :class:`UsageError` for one that can't be."""
    for code in codes or ():
        if code not in among:
            raise UsageError(
                "there is no refusal of that name to let pass",
                code="unknown-code",
                key="--allow",
                expected=", ".join(among),
                found=code,
            )
    return tuple(codes or ())
