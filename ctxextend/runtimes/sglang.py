"""How SGLang reads a rope from config.json.

Source: the wheel of 0.5.23, read: ``layers/rotary_embedding/factory.py``, the model files named below
and ``utils/hf_transformers/common.py`` (lengths).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.errors import CtxextendError
from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import (
    Evidence,
    Reading,
    ratio_temperature,
    stated_length,
    with_temperature,
    yarn_pair_temperature,
)
from ctxextend.runtimes.transformers import Transformers4, Transformers5
from ctxextend.scaling import Dynamic, LongRope, Rebase, Yarn, dynamic_theta, table

#: Model files that call get_rope without the scaling (mixtral.py:174, gemma.py:130, gemma2.py:154, ...).
_IGNORES_SCALING: Final = frozenset({"gemma", "gemma2", "mixtral", "olmo", "phi", "stablelm", "starcoder2"})
#: Families without a class of their own, run through transformers.
_THROUGH_TRANSFORMERS: Final = frozenset({"gpt_neox", "ministral", "nemotron", "smollm3"})
_LATENT: Final = frozenset({"deepseek_v2", "deepseek_v3"})
_SECTIONS: Final = frozenset({"qwen2_vl", "qwen2_5_vl"})
_NOT_NEOX: Final = frozenset({"cohere", "cohere2", "glm4"})
#: Model files that truncate the base to a whole number (mixtral.py:178, starcoder2.py:107, llama4.py:294).
_WHOLE_THETA: Final = frozenset({"llama4", "mixtral", "starcoder2"})

_LENGTH_KEYS: Final = (
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "model_max_length",
    "max_position_embeddings",
)


class Sglang:
    """0.5: transformers 5's dictionary; no attention_factor; several families ignore scaling altogether."""

    runtime: ClassVar[str] = "sglang"
    versions: ClassVar[str] = ">=0.5"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        if family.name == "falcon":
            return Reading(absent=True, problem="it has no class for this family")
        try:
            rope = read_rope(config, family)
        except CtxextendError as error:
            return Reading(problem=error.message)
        longest = _max_context(rope, family)
        if family.name in _THROUGH_TRANSFORMERS or family.name == "gemma3":
            # Gemma 3 calls transformers' own functions, truncate included (gemma3_causal.py:415-443).
            reading = Transformers5().effective(config, family, length=length)
            return msgspec.structs.replace(reading, max_context=longest)
        if family.name == "olmo3":
            # Its own configuration class knows the older form only (configs/olmo3.py).
            reading = Transformers4().effective(config, family, length=length)
            return msgspec.structs.replace(reading, max_context=longest)
        tables = {}
        for group in rope.groups:
            if group.spec is None:
                continue
            read = _group(rope, group, family, length)
            if isinstance(read, str):
                return Reading(problem=read)
            tables[group.label] = read
        return Reading(
            tables=tables,
            max_context=longest,
            how=("transformers 5's rope_parameters; the first stated length, times the factor for some types",),
        )


def _group(rope: HfRope, group: RopeGroup, family: Family, length: int) -> RopeTable | str:
    assert group.spec is not None
    spec = group.spec
    if family.name in _WHOLE_THETA:
        spec = msgspec.structs.replace(spec, rope_theta=float(int(spec.rope_theta)))
    settings, scaling, rope_type = group.settings, group.scaling, type_of(group.settings)
    if _unscaled(group, family):
        return table(spec, None)
    if rope_type == "linear" and type(settings.get("factor")) is int:
        return "it fails on an integer factor"
    if family.name in _LATENT:
        return _latent(group, rope_type, length)
    if family.name in _SECTIONS and (rope_type != "yarn" or {"mscale", "mscale_all_dim"} & set(settings)):
        return f"its {rope_type} class fails on sections of positions (mrope_section) with these keys"
    if isinstance(scaling, Dynamic):
        # One base for every length: the one of the length that it derives itself.
        whole = int(rope.max_position_embeddings * scaling.factor)
        return table(spec, Rebase(rope_theta=dynamic_theta(spec, scaling, whole)))
    if isinstance(scaling, Yarn):
        temperature = yarn_pair_temperature(settings, both_needed=True)
        temperature *= float(settings.get("attn_factor") or 1.0)
        return table(spec, with_temperature(scaling, temperature), length=length)
    if isinstance(scaling, LongRope):
        return _longrope(rope, group, scaling, family, length)
    return table(spec, scaling, length=length)


def _unscaled(group: RopeGroup, family: Family) -> bool:
    """Whether these layers get a plain rope whatever the config says."""
    by_layer = family.name == "olmo2" and group.label != FULL
    return by_layer or family.name in _IGNORES_SCALING or type_of(group.settings) in ("default", "proportional")


def _longrope(rope: HfRope, group: RopeGroup, scaling: LongRope, family: Family, length: int) -> RopeTable | str:
    assert group.spec is not None
    if family.name in _NOT_NEOX:
        return "its longrope takes half-split pairs only"
    original = scaling.original_max_position_embeddings
    own = group.settings.get("long_mscale" if length > original else "short_mscale")
    by_lengths = ratio_temperature(rope.max_position_embeddings, original)
    return table(group.spec, with_temperature(scaling, by_lengths if own is None else float(own)), length=length)


def _latent(group: RopeGroup, rope_type: str, length: int) -> RopeTable | str:
    """Every type is taken for yarn (deepseek_v2.py:2065); no attention_factor, no truncate."""
    assert group.spec is not None
    if rope_type != "yarn" or not isinstance(group.scaling, Yarn):
        return f"its latent attention takes {rope_type} for yarn"
    scaling = msgspec.structs.replace(group.scaling, truncate=True)
    temperature = yarn_pair_temperature(group.settings, both_needed=False)
    return table(group.spec, with_temperature(scaling, temperature), length=length)


def _max_context(rope: HfRope, family: Family) -> int:
    derived = stated_length(rope.text, _LENGTH_KEYS, rope.max_position_embeddings)
    assert derived is not None
    if family.form == "nested":
        return derived
    for group in rope.groups:
        settings = group.settings
        if "original_max_position_embeddings" in settings or type_of(settings) in ("llama3", "default"):
            continue
        return int(derived * float(settings.get("factor") or 1.0))
    return derived
