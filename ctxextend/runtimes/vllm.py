"""How vLLM reads a rope from config.json.

Source: the wheel of 0.33.0, read: ``config/model.py`` (lengths), ``layers/rotary_embedding`` and the
model files named below; the rope classes and ``deepseek_v2`` were run on the CPU with stand-ins for
the engine. From 0.30 on these rules hold; older versions read YaRN otherwise.
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
    ORIGINAL,
    Evidence,
    Reading,
    answered,
    number,
    ratio_temperature,
    serve_command,
    with_temperature,
    without_factor,
    yarn_pair_temperature,
)
from ctxextend.runtimes.transformers import Transformers5, unread_by_5
from ctxextend.scaling import LongRope, Scaling, Yarn, table

#: Families that vLLM runs through transformers' own model code (models/registry.py:751-768).
_THROUGH_TRANSFORMERS: Final = frozenset(
    {"gpt_neox", "ministral", "olmo", "olmo2", "olmo3", "phi", "smollm3", "starcoder2"}
)
#: Latent attention: every scaling is taken for yarn (deepseek_v2.py:542-561).
_LATENT: Final = frozenset({"deepseek_v2", "deepseek_v3"})
#: Sections of positions survive in the plain and the yarn class only (rotary_embedding/__init__.py).
_SECTIONS: Final = frozenset({"qwen2_vl", "qwen2_5_vl"})
#: longrope asserts half-split pairs (phi3_long_rope_scaled_rope.py:38).
_NOT_NEOX: Final = frozenset({"cohere", "cohere2", "glm4"})

#: What states the length (model_arch_config_convertor.py:374-407); the smallest counts.
_LENGTH_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
#: The pairs of rope_type and type that may differ.
_SAME_TYPE: Final = (("longrope", "su"), ("default", "mrope"))
#: Types whose factor doesn't multiply the length (config/model.py:2598-2634).
_NOT_MULTIPLIED: Final = frozenset({"default", "longrope", "llama3", "yarn"})


class Vllm:
    """0.30 and later: transformers 5's dictionary, with exceptions by family and by type."""

    runtime: ClassVar[str] = "vllm"
    versions: ClassVar[str] = ">=0.30"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        problem = unread_by_5(rope, family) or _two_types(rope)
        if problem is not None:
            return Reading(problem=problem)
        if family.name in _THROUGH_TRANSFORMERS:
            return _through_transformers(config, family, rope, length)
        tables = {}
        for group in rope.groups:
            if group.spec is None:
                continue
            read = without_factor(group.settings) or _group(rope, group, family, length)
            if isinstance(read, str):
                return Reading(problem=read)
            tables[group.label] = read
        return Reading(
            tables=tables,
            max_context=_max_context(rope, family),
            liftable=any(isinstance(group.scaling, LongRope) for group in rope.groups),
            how=("transformers 5's rope_parameters; the smallest stated length",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        refused = reading.max_context is not None and reading.max_context < length and not reading.liftable
        environment = "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1" if refused else ""
        words = ("vllm", "serve", source, "--max-model-len", str(length), *reading.flags)
        return serve_command(*words, environment=environment)


def _through_transformers(config: Mapping[str, Any], family: Family, rope: HfRope, length: int) -> Reading:
    reading = Transformers5().effective(config, family, length=length)
    if reading.problem is not None:
        return reading
    caution: str | None = None
    flags: tuple[str, ...] = ()
    if any(isinstance(group.scaling, LongRope) for group in rope.groups):
        caution = (
            "vLLM runs this family through transformers' code, whose longrope doesn't compile before "
            "transformers 5.21: serve with --enforce-eager"
        )
        flags = ("--enforce-eager",)
    return msgspec.structs.replace(reading, max_context=_max_context(rope, family), caution=caution, flags=flags)


def _group(rope: HfRope, group: RopeGroup, family: Family, length: int) -> RopeTable | str:
    """One group's table, or why the engine fails on it."""
    assert group.spec is not None
    settings, scaling, rope_type = group.settings, group.scaling, type_of(group.settings)
    if family.name == "gpt_oss":
        return _gpt_oss(group, length)
    if family.name in _LATENT:
        return _latent(group, rope_type, length)
    if family.name in _SECTIONS and rope_type not in ("default", "yarn"):
        return f"its {rope_type} class drops the sections of positions (mrope_section)"
    if rope_type == "linear" and type(settings.get("factor")) is int:
        return "it fails on an integer factor"
    if rope_type in ("dynamic", "proportional"):
        # Dynamic needs a key that Hugging Face doesn't have (max_trained_positions), and proportional's
        # factor isn't read: both ropes are plain.
        return table(group.spec, None)
    if isinstance(scaling, LongRope):
        if family.name in _NOT_NEOX:
            return "its longrope takes half-split pairs only"
        return _longrope(rope, group, scaling, length)
    if isinstance(scaling, Yarn) and family.name in _SECTIONS:
        # mrope.py places the ramp over four times the original length for these families.
        placed = _ramp_over(scaling, scaling.original_max_position_embeddings * 4)
        return table(group.spec, placed, length=length)
    return table(group.spec, scaling, length=length)


def _two_types(rope: HfRope) -> str | None:
    """Two spellings of the type that differ, which it refuses (transformers_utils/config.py:620-638)."""
    for group in rope.groups:
        older, newer = group.settings.get("type"), group.settings.get("rope_type")
        if None in (older, newer) or older == newer or (newer, older) in _SAME_TYPE:
            continue
        return f"it fails on a rope_type of {newer} beside a type of {older}"
    return None


def _ramp_over(scaling: Yarn, original: int) -> Yarn:
    return msgspec.structs.replace(scaling, original_max_position_embeddings=original)


def _longrope(rope: HfRope, group: RopeGroup, scaling: LongRope, length: int) -> RopeTable:
    """The list is chosen once, by the length served; the temperature comes from two lengths or its own keys."""
    assert group.spec is not None
    original = scaling.original_max_position_embeddings
    long = length > original
    own = number(group.settings, "long_mscale" if long else "short_mscale")
    temperature = ratio_temperature(rope.max_position_embeddings, original) if own is None else own
    chosen = scaling.long_factor if long else scaling.short_factor
    static = msgspec.structs.replace(scaling, short_factor=chosen, long_factor=chosen)
    return table(group.spec, with_temperature(static, temperature), length=length)


def _latent(group: RopeGroup, rope_type: str, length: int) -> RopeTable | str:
    assert group.spec is not None
    if rope_type == "default":
        return table(group.spec, None)
    if rope_type != "yarn" or not isinstance(group.scaling, Yarn):
        return f"its latent attention takes {rope_type} for yarn"
    if group.settings.get("attention_factor") == 1.0:
        return "an attention_factor of 1 turns yarn into another scaling there"
    scaling: Scaling = msgspec.structs.replace(group.scaling, truncate=True)
    temperature = yarn_pair_temperature(group.scaling, both_needed=False)
    return table(group.spec, with_temperature(scaling, temperature), length=length)


def _gpt_oss(group: RopeGroup, length: int) -> RopeTable | str:
    """Builds a yarn dictionary of its own (gpt_oss.py:111-127)."""
    assert group.spec is not None
    settings = group.settings
    needed = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
    missing = [key for key in needed if settings.get(key) is None]
    if missing:
        return f"its gpt_oss model reads yarn only, and fails without {missing[0]}"
    if not isinstance(group.scaling, Yarn):
        return f"its gpt_oss model takes {type_of(settings)} for yarn"
    bare = msgspec.structs.replace(group.scaling, attention_factor=None, mscale=None, mscale_all_dim=None)
    return table(group.spec, bare, length=length)


def _max_context(rope: HfRope, family: Family) -> int:
    text = rope.text
    lengths = [text[key] for key in _LENGTH_KEYS if type(text.get(key)) is int]
    derived = min(lengths, default=rope.max_position_embeddings)
    own = text.get("model_max_length")
    if type(own) is int and own > 0:
        derived = own
    factor = 1.0
    for group in rope.groups:
        if group.spec is None:
            continue
        rope_type = type_of(group.settings)
        original = text.get(ORIGINAL)
        if rope_type == "longrope" and type(original) is int:
            return original
        if rope_type == "longrope" and family.original_max_position_embeddings is not None:
            return family.original_max_position_embeddings
        if rope_type not in _NOT_MULTIPLIED and family.name != "gemma3":
            factor = number(group.settings, "factor") or 1.0
    return int(derived * factor)
