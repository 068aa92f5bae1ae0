"""A reading against the tables that were meant: how far apart they are, and whether that is agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from ctxextend.formats.hf_write import CARRIER_TOLERANCE
from ctxextend.rope import RopeTable
from ctxextend.runtimes import Reading

#: How close a reader's frequencies must come to what was meant, relatively.
TOLERANCE: Final = 1e-5


#: In what a group can differ.
Difference = Literal["layers", "frequencies", "attention factor", "softmax factor"]

#: In what a whole reading can: it fails to load, uses another table, or serves less.
Kind = Literal["fails", "reads-otherwise", "length-below"]


class GroupDifference(Struct, frozen=True, kw_only=True):
    """One group of layers: what the reader uses, and the largest relative error of its frequencies.

    ``found`` is None where the reader sees no such layers.
    """

    label: str
    goal: RopeTable
    found: RopeTable | None
    frequency_error: float = 0.0

    @property
    def differs(self) -> Difference | None:
        """In what it isn't what was meant, if it isn't: the first of these."""
        found, goal = self.found, self.goal
        if found is None:
            return "layers"
        if self.frequency_error > TOLERANCE:
            return "frequencies"
        if abs(found.attention_factor / goal.attention_factor - 1.0) > CARRIER_TOLERANCE:
            return "attention factor"
        if abs(found.softmax_factor / goal.softmax_factor - 1.0) > CARRIER_TOLERANCE:
            return "softmax factor"
        return None

    @property
    def reason(self) -> str | None:
        """The difference in words, with its size."""
        found, goal = self.found, self.goal
        match self.differs:
            case "frequencies":
                if not math.isfinite(self.frequency_error):
                    return "its table has other pairs"
                return f"its frequencies are off by {percent(self.frequency_error)} at most"
            case "attention factor" if found is not None:
                return f"its attention factor is {found.attention_factor:.5g} instead of {goal.attention_factor:.5g}"
            case "softmax factor" if found is not None:
                return f"its softmax factor is {found.softmax_factor:.5g} instead of {goal.softmax_factor:.5g}"
            case None:
                return None
            case _:
                return f"it sees no layers {self.label}"


class Comparison(Struct, frozen=True, kw_only=True):
    """A whole reading: ``reason`` says why it isn't what was meant; None when it is."""

    reason: str | None
    kind: Kind | None = None
    groups: tuple[GroupDifference, ...] = ()

    @property
    def frequency_error(self) -> float:
        """The largest relative error of a frequency in any group."""
        return max((group.frequency_error for group in self.groups), default=0.0)

    @property
    def cost(self) -> str:
        """What the difference comes to, in numbers; empty for a reading without tables."""
        told = [
            f"{group.label}: {_cost(group.found, group.goal, group.frequency_error)}"
            for group in self.groups
            if group.found is not None and group.reason is not None
        ]
        return "; ".join(told)


def compare(reading: Reading, meant: Mapping[str, RopeTable], *, target: int, dynamic: bool = False) -> Comparison:
    """``reading`` against the tables ``meant`` at ``target`` tokens.

    ``dynamic``: the base is meant to follow the length. A reader that has no such model, or of which
    nothing is claimed, has nothing to disagree with.
    """
    if reading.absent or reading.unknown is not None:
        return Comparison(reason=None)
    if reading.problem is not None:
        return Comparison(reason=reading.problem, kind="fails")
    groups = tuple(_group(label, goal, reading.tables.get(label)) for label, goal in meant.items())
    reason = next((group.reason for group in groups if group.reason is not None), None)
    further = [label for label in reading.tables if label not in meant]
    if reason is None and further:
        reason = f"it has layers {further[0]} with a rope of their own, which aren't meant"
    if reason is None and dynamic and any(g.found and g.goal.switches and not g.found.switches for g in groups):
        reason = "its base doesn't follow the length as transformers' does"
    if reason is not None:
        return Comparison(reason=reason, kind="reads-otherwise", groups=groups)
    longest = reading.max_context
    if longest is None or longest >= target or reading.liftable:
        return Comparison(reason=None, groups=groups)
    return Comparison(reason=f"it would serve {longest} tokens only", kind="length-below", groups=groups)


def _cost(found: RopeTable, goal: RopeTable, error: float) -> str:
    """Both sides of a difference; what is equal is left away."""
    parts = [f"frequencies off by {percent(error)} at most"] if error > TOLERANCE else []
    for name in ("attention", "softmax"):
        ours, theirs = getattr(found, f"{name}_factor"), getattr(goal, f"{name}_factor")
        if abs(ours / theirs - 1.0) > CARRIER_TOLERANCE:
            parts.append(f"{name} factor {ours:.5g} instead of {theirs:.5g}")
    return ", ".join(parts)


def percent(error: float) -> str:
    """A relative error as people read it."""
    return f"{100.0 * error:.3g} %" if math.isfinite(error) else "everything"


def _group(label: str, goal: RopeTable, found: RopeTable | None) -> GroupDifference:
    error = 0.0 if found is None else found.error_against(goal)
    return GroupDifference(label=label, goal=goal, found=found, frequency_error=error)
