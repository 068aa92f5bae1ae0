"""What a runtime is here: a reader that computes, from the values on disk, the table it will use.

Readers are pure. Each rule cites where it was read or how it was run; ``docs/reference/runtimes.md``
says which is which. A runtime has one entry a range of versions that read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from ctxextend.families import Family
from ctxextend.rope import RopeTable
from ctxextend.scaling import LongRope, Scaling, Yarn, longrope_attention_factor, mscale

#: How a reader's rules are known: the runtime was run, or its source was read.
Evidence = Literal["run", "read"]


class Reading(Struct, frozen=True, kw_only=True):
    """What a runtime makes of a config.json. Lengths count tokens.

    ``tables``: one a group of layers with rope, at the length asked for; empty when it can't load the
    model, and then ``problem`` says why. ``absent``: it has no such architecture at all. ``liftable``:
    ``max_context`` is a default that a flag of its server raises. ``caution``: what a user must know
    although the table is right.
    """

    tables: Mapping[str, RopeTable] = {}
    max_context: int | None = None
    how: tuple[str, ...] = ()
    problem: str | None = None
    absent: bool = False
    liftable: bool = False
    caution: str | None = None


class Reader(Protocol):
    """One runtime over one range of versions. ``current``: a bare runtime name means it."""

    @property
    def runtime(self) -> str: ...
    @property
    def versions(self) -> str: ...
    @property
    def current(self) -> bool: ...
    @property
    def evidence(self) -> Evidence: ...

    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading: ...


def stated_length(text: Mapping[str, Any], keys: tuple[str, ...], default: int | None) -> int | None:
    """The first of ``keys`` that holds a whole number."""
    return next((text[key] for key in keys if type(text.get(key)) is int), default)


def with_temperature(scaling: Scaling, attention_factor: float) -> Scaling:
    """A yarn or longrope whose temperature is the one that a reader computes its own way."""
    assert isinstance(scaling, Yarn | LongRope)
    return msgspec.structs.replace(scaling, attention_factor=attention_factor)


def yarn_pair_temperature(settings: Mapping[str, Any], *, both_needed: bool) -> float:
    """YaRN's temperature from ``mscale`` and ``mscale_all_dim``, for readers without ``attention_factor``.

    ``both_needed``: the pair counts only when both keys are there (SGLang); else each has its own
    default, 1 and 0 (MLX-LM, and DeepSeek's own code).
    """
    factor = float(settings["factor"])
    weight, weight_all = settings.get("mscale"), settings.get("mscale_all_dim")
    if both_needed and (weight is None or weight_all is None):
        return mscale(factor)
    weight = 1.0 if weight is None else float(weight)
    weight_all = 0.0 if weight_all is None else float(weight_all)
    return mscale(factor, weight) / mscale(factor, weight_all)


def ratio_temperature(length: int, original: int) -> float:
    """LongRoPE's temperature from the stated and the original length, whatever ``attention_factor`` says."""
    return longrope_attention_factor(length / original, original)
