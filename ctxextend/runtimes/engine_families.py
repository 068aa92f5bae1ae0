"""What the readers of the engines share: the answer for code that wasn't read, and a rule of both factories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ctxextend.families.wrappers import WRAPPERS
from ctxextend.formats.hf_read import HfRope
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeSpec
from ctxextend.runtimes.base import Reading, number
from ctxextend.scaling import Rebase, ntk_exponent

#: The answer for a family outside of a reader's table. Code that wasn't read is never taken for regular.
UNESTABLISHED: Final = Reading(unknown="how its code reads this family was not established")


def in_a_wrapper(config: Mapping[str, Any], read: frozenset[str]) -> bool:
    """Whether the language model stands in a wrapper whose code wasn't read."""
    outer = str(config.get("model_type"))
    return outer in WRAPPERS and outer not in read


def alpha_base(spec: RopeSpec, settings: Mapping[str, Any]) -> Rebase:
    """Dynamic with ``alpha``, as HunYuan has it: one base for every length.

    ``theta * alpha ** (d / (d - 2))``: ``dynamic_ntk_alpha_rope.py`` of vLLM 0.33.0, and the same class of
    SGLang 0.5.23.
    """
    alpha = number(settings, "alpha")
    if alpha is None:
        raise ValueError("alpha must be a number, found none")
    return Rebase(rope_theta=spec.rope_theta * float(alpha ** ntk_exponent(spec)))


def weighs_the_ramp(rope: HfRope) -> bool:
    """Whether a yarn has the ``extrapolation_factor`` of its first code, which no scaling here expresses."""
    return any(
        type_of(group.settings) == "yarn" and number(group.settings, "extrapolation_factor") not in (None, 1.0)
        for group in rope.groups
    )
