"""The methods for models without a rope, by how their positions reach attention. What they do: ``positions.py``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

from ctxextend.errors import RefusedError
from ctxextend.families import Position
from ctxextend.methods.base import Options


class AbsoluteOptions(Options, frozen=True, kw_only=True):
    """How the rows between the old ones come about."""

    interpolation: Literal["linear", "cubic", "tiled"] = "linear"


class SinusoidalOptions(Options, frozen=True, kw_only=True):
    """Whether the table goes on at the same steps, or steps are divided by the factor."""

    positions: Literal["raised", "interpolated"] = "raised"


class AlibiOptions(Options, frozen=True, kw_only=True):
    """What becomes of the slopes."""

    slopes: Literal["kept", "interpolated"] = "kept"


class PositionMethod(Struct, frozen=True, kw_only=True):
    """A method for one kind of positions. ``options`` is the class of its parameters."""

    name: str
    position: Position
    summary: str
    source: str
    options: type[Options]


POSITION_METHODS: Final[Mapping[str, PositionMethod]] = MappingProxyType(
    {
        method.name: method
        for method in (
            PositionMethod(
                name="absolute",
                position="learned",
                summary="a learned table of positions is resized, linearly, cubically or tiled",
                source="Devlin et al. 2018, arXiv 1810.04805 (the tables); Beltagy et al. 2020, arXiv 2004.05150, "
                "section 5 (tiled)",
                options=AbsoluteOptions,
            ),
            PositionMethod(
                name="sinusoidal",
                position="sinusoidal",
                summary="a table of sinusoids goes on, or its positions are divided by the factor",
                source="Vaswani et al. 2017, arXiv 1706.03762, section 3.5",
                options=SinusoidalOptions,
            ),
            PositionMethod(
                name="alibi",
                position="alibi",
                summary="the length that config.json states is raised, the slopes are kept",
                source="Press et al. 2022, arXiv 2108.12409, section 3",
                options=AlibiOptions,
            ),
        )
    }
)

#: What a kind of positions is called.
KINDS: Final[Mapping[Position, str]] = MappingProxyType(
    {
        "rope": "a rope",
        "learned": "a learned table of positions",
        "sinusoidal": "a table of sinusoids",
        "alibi": "ALiBi",
        "none": "no positions of its own",
    }
)


def method_for(position: Position) -> PositionMethod | None:
    """The method for models with these positions, if there is one."""
    return next((method for method in POSITION_METHODS.values() if method.position == position), None)


def other_positions(name: str, position: Position) -> RefusedError:
    """A method for positions of another kind than the model's."""
    wanted = POSITION_METHODS.get(name)
    fitting = method_for(position)
    return RefusedError(
        f"the method {name} is for models with {KINDS[wanted.position if wanted else 'rope']}, "
        f"and this one has {KINDS[position]}",
        code="no-rope" if wanted is None else "other-positions",
        key="--method",
        expected="linear, ntk, yarn or another that scales a rope" if fitting is None else fitting.name,
        found=name,
        hint="--method auto takes one that fits" if fitting is None else f"--method {fitting.name}, or auto",
    )
