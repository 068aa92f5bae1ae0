"""How vLLM up to 0.29 reads a rope from config.json: YaRN in the words of its first code.

Source: the wheel of 0.29.0, read (``config/model.py``, ``layers/rotary_embedding``, the model files that
``vllm_families`` names), with those of 0.18.0 and 0.11.0 beside it. Where they differ nothing is
claimed, or a caution says so. PR 56446 brought transformers' keys with 0.30.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import (
    Evidence,
    Reading,
    answered,
    number,
    tables_of,
    with_temperature,
    without_factor,
)
from ctxextend.runtimes.engine_families import UNESTABLISHED, in_a_wrapper, weighs_the_ramp
from ctxextend.runtimes.latent import latent_table
from ctxextend.runtimes.transformers import Transformers5, unread_by_5
from ctxextend.runtimes.vllm import (
    group_table,
    is_liftable,
    longrope_context,
    multiplied,
    serve_line,
    stated_context,
    two_types,
    way_of,
)
from ctxextend.runtimes.vllm_families import MOVED_BEFORE_0_29, OLDER_WAYS, WRAPPERS_READ, Way
from ctxextend.scaling import Yarn, mscale

_HOW: Final = "rope_scaling or rope_parameters; yarn's factor times its original length, else the smallest stated one"


class VllmOlder:
    """Up to 0.29: ``attn_factor`` weighs YaRN's temperature, and nothing replaces it."""

    runtime: ClassVar[str] = "vllm"
    versions: ClassVar[str] = "<=0.29"
    current: ClassVar[bool] = False
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        way = way_of(OLDER_WAYS, rope, family)
        if way is None or in_a_wrapper(config, WRAPPERS_READ):
            return UNESTABLISHED
        problem = unread_by_5(rope, family) or two_types(rope)
        if problem is not None:
            return Reading(problem=problem)
        differs = _differs(rope, family)
        if differs is not None:
            return Reading(unknown=differs)
        if way == "transformers":
            return _through_transformers(config, family, rope, length)
        return _own(rope, family, way, length)

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        return serve_line(source, reading, length=length)


def _own(rope: HfRope, family: Family, way: Way, length: int) -> Reading:
    tables = tables_of(rope, lambda group: without_factor(group.settings) or _group(rope, group, way, length))
    if isinstance(tables, str):
        return Reading(problem=tables)
    return Reading(
        tables=tables,
        max_context=_max_context(rope, family),
        liftable=is_liftable(rope, family, length),
        how=(_HOW,),
        caution=_caution(rope),
    )


def _differs(rope: HfRope, family: Family) -> str | None:
    """Settings that these versions read in more than one way."""
    if family.older_form_of_two_keys and any(group.scaling is not None for group in rope.groups):
        return "some of these versions run with transformers 4, whose class of this family refuses most scalings"
    if weighs_the_ramp(rope):
        return "an extrapolation_factor weighs yarn's ramp there, which isn't worked out here"
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if rope_type == "yarn" and group.settings.get("apply_yarn_scaling", True) is not True:
            return "apply_yarn_scaling is read from 0.14 on alone"
        if rope_type == "dynamic" and "alpha" not in group.settings:
            # 0.18: the base of factor times the length, for every length; 0.24: none without max_trained_positions.
            return "its dynamic rope differs within these versions: one fixed base first, then none"
    return None


def _group(rope: HfRope, group: RopeGroup, way: Way, length: int) -> RopeTable | str:
    if way == "latent":
        return latent_table(group, length=length, attn_factor=True)
    if isinstance(group.scaling, Yarn) and way != "gpt_oss":
        stated = number(group.settings, "attn_factor")
        temperature = mscale(group.scaling.factor) * (1.0 if stated is None else stated)
        group = msgspec.structs.replace(group, scaling=with_temperature(group.scaling, temperature))
    return group_table(rope, group, way, length)


def _through_transformers(config: Mapping[str, Any], family: Family, rope: HfRope, length: int) -> Reading:
    """Transformers' code, where a model file that these versions had first gives the same tables."""
    reading = Transformers5().effective(config, family, length=length)
    if not reading.tables:
        return reading
    if family.name in MOVED_BEFORE_0_29:
        own = _own(rope, family, "whole", length)
        if own.tables != reading.tables:
            return Reading(unknown="these versions changed from a model file of their own to transformers' code")
    return msgspec.structs.replace(
        reading,
        max_context=_max_context(rope, family),
        liftable=is_liftable(rope, family, length),
        caution=_caution(rope),
    )


def _caution(rope: HfRope) -> str | None:
    """What only some of these versions make of the config."""
    text = rope.text
    if text.get("rope_parameters") and not text.get("rope_scaling") and "rope_theta" not in text:
        return (
            "vLLM before 0.24 also runs with transformers 4, which doesn't read rope_parameters: "
            "it falls back to a default theta and no scaling"
        )
    if any(isinstance(group.scaling, Yarn) and not group.scaling.truncate for group in rope.groups):
        return "vLLM before 0.14 always rounds the bounds of yarn's ramp: it doesn't read truncate"
    return None


def _max_context(rope: HfRope, family: Family) -> int:
    """YaRN's original length times its factor, whatever max_position_embeddings says (config/model.py)."""
    started = longrope_context(rope, family)
    if started is not None:
        return started
    for group in rope.groups:
        if isinstance(group.scaling, Yarn) and family.name not in ("gemma3", "gemma3n"):
            return int(group.scaling.original_max_position_embeddings * group.scaling.factor)
    return int(multiplied(rope, family, stated_context(rope)))
