"""How vLLM reads a rope from config.json.

Source: the wheel of 0.33.0. Its reading of config.json, its lengths and the model classes of the families
in ``tests/reference/test_vllm.py`` were run on a CPU, with stand-ins for the server and its kernels; the other
families that ``vllm_families`` names, those that run through transformers' code and wrappers were read. From
0.30 on these rules hold; ``vllm_older`` has those before. The tokenizer's
``model_max_length`` counts for pooling models with absolute positions alone (config/model.py:2147-2156).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL
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
    tables_of,
    with_temperature,
    without_factor,
)
from ctxextend.runtimes.engine_families import UNESTABLISHED, alpha_base, in_a_wrapper
from ctxextend.runtimes.latent import compressed_table, latent_table
from ctxextend.runtimes.transformers import Transformers5, newer_alone, unread_by_5
from ctxextend.runtimes.vllm_families import STRIPPED_ALONE, WAYS, WRAPPERS_READ, Way
from ctxextend.scaling import LongRope, Yarn, table

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
#: Types whose factor doesn't multiply the length; a stray one in a plain dictionary does (config/model.py:2598-2634).
_NOT_MULTIPLIED: Final = frozenset({"longrope", "llama3", "yarn"})
#: Model types with "gemma3" in their name, whose length no factor multiplies.
_SCALED_LENGTH: Final = frozenset({"gemma3", "gemma3n"})
#: Families whose class sets the share of the head itself (falcon_h1.py:245).
_WHOLE_HEADS: Final = frozenset({"falcon_h1"})
#: Families that publish one dictionary a layer type: an older form, even null, ends in every layer or in none.
_NESTED_ALONE: Final = frozenset({"gemma4", "gemma4_unified", "laguna"})


class Vllm:
    """0.30 and later: transformers 5's dictionary, with exceptions by family and by type."""

    runtime: ClassVar[str] = "vllm"
    versions: ClassVar[str] = ">=0.30"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(newer_alone(config, family), family)
        way = way_of(WAYS, rope, family)
        if way is None or in_a_wrapper(config, WRAPPERS_READ):
            return UNESTABLISHED
        if way == "absent":
            return Reading(absent=True, problem="it has no such model")
        if family.name in _NESTED_ALONE and "rope_scaling" in rope.text:
            return Reading(unknown="its code takes a rope_scaling of this family otherwise than transformers")
        problem = unread_by_5(rope, family) or two_types(rope) or _refused(rope, family) or _null_start(rope)
        if problem is not None:
            return Reading(problem=problem)
        if way == "transformers":
            return _through_transformers(config, family, rope, length)
        tables = tables_of(
            rope,
            lambda group: (
                without_factor(group.settings)
                or _unhashable(group)
                or group_table(rope, _there(rope, group, family, way), way, length)
            ),
        )
        if isinstance(tables, str):
            return Reading(problem=tables)
        longest, rows = _max_context(rope, family), rows_of(rope, way)
        how: tuple[str, ...] = ("transformers 5's rope_parameters; the smallest stated length",)
        if rows is not None and rows < longest:
            longest, how = rows, (*how, f"its cosines and sines end at {rows} positions")
        return Reading(tables=tables, max_context=longest, liftable=is_liftable(rope, family, length), how=how)

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        return serve_line(source, reading, length=length)


def serve_line(source: str, reading: Reading, *, length: int) -> str:
    """What starts the server, of any version."""
    refused = reading.max_context is not None and reading.max_context < length and not reading.liftable
    environment = "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1" if refused else ""
    words = ("vllm", "serve", source, "--max-model-len", str(length), *reading.flags)
    return serve_command(*words, environment=environment)


def way_of(ways: Mapping[str, Way], rope: HfRope, family: Family) -> Way | None:
    """How the family's code builds its rope, if that was read."""
    if family.name in STRIPPED_ALONE and not rope.path:
        return "whole"
    return ways.get(family.name)


def _through_transformers(config: Mapping[str, Any], family: Family, rope: HfRope, length: int) -> Reading:
    reading = Transformers5().effective(config, family, length=length)
    if not reading.tables:
        return reading
    caution: str | None = None
    flags: tuple[str, ...] = ()
    if any(isinstance(group.scaling, LongRope) for group in rope.groups):
        caution = (
            "vLLM runs this family through transformers' code, whose longrope doesn't compile before "
            "transformers 5.21: serve with --enforce-eager"
        )
        flags = ("--enforce-eager",)
    return msgspec.structs.replace(
        reading,
        max_context=_max_context(rope, family),
        # Transformers enforces no length; this server does.
        liftable=is_liftable(rope, family, length),
        caution=caution,
        flags=flags,
    )


def group_table(rope: HfRope, group: RopeGroup, way: Way, length: int) -> RopeTable | str:
    """One group's table, or why the engine fails on it."""
    assert group.spec is not None
    match way:
        case "gpt_oss":
            return _gpt_oss(group, length)
        case "latent":
            # As the class has it: this turns the softmax's own factor off (deepseek_v2.py:545).
            if type_of(group.settings) == "yarn" and group.settings.get("attention_factor") == 1.0:
                return "an attention_factor of 1 turns yarn into another scaling there"
            return latent_table(group, length=length, attn_factor=False)
        case "compressed":
            return compressed_table(group, rope.text, length=length)
        case "plain":
            return table(group.spec, None)
        case "sections" | "sections_enlarged" if "mrope_section" in group.settings:
            return _sectioned(group, enlarged=way == "sections_enlarged", length=length)
        case _:
            return _whole(rope, group, interleaved=way == "interleaved", length=length)


def _sectioned(group: RopeGroup, *, enlarged: bool, length: int) -> RopeTable | str:
    """Sections of positions survive in the plain and the yarn class only (rotary_embedding/__init__.py)."""
    assert group.spec is not None
    scaling, rope_type = group.scaling, type_of(group.settings)
    if rope_type not in ("default", "yarn"):
        return f"its {rope_type} class drops the sections of positions (mrope_section)"
    if isinstance(scaling, Yarn) and enlarged:
        # mrope.py places the ramp over four times the original length.
        original = scaling.original_max_position_embeddings * 4
        scaling = msgspec.structs.replace(scaling, original_max_position_embeddings=original)
    return table(group.spec, scaling, length=length)


def _whole(rope: HfRope, group: RopeGroup, *, interleaved: bool, length: int) -> RopeTable | str:
    """get_rope with the whole dictionary (rotary_embedding/__init__.py:33-326)."""
    assert group.spec is not None
    settings, scaling, rope_type = group.settings, group.scaling, type_of(group.settings)
    if rope_type == "linear" and type(settings.get("factor")) is int:
        return "it fails on an integer factor"
    if rope_type == "dynamic" and "alpha" in settings:
        return table(group.spec, alpha_base(group.spec, settings))
    if rope_type in ("dynamic", "proportional"):
        # Dynamic needs a key that Hugging Face doesn't have (max_trained_positions), and proportional's
        # factor isn't read: both ropes are plain.
        return table(group.spec, None)
    if isinstance(scaling, LongRope):
        # Phi-3's class asserts half-split pairs (phi3_long_rope_scaled_rope.py:38).
        return "its longrope takes half-split pairs only" if interleaved else _longrope(rope, group, scaling, length)
    return table(group.spec, scaling, length=length)


def _there(rope: HfRope, group: RopeGroup, family: Family, way: Way) -> RopeGroup:
    """The geometry that get_rope is given, where it isn't the one of transformers' class.

    A share of the head counts in every family, scaled or not; what multiplies the softmax, in ``deepseek_v2`` and its
    like alone.
    """
    if group.spec is None or way in ("compressed", "gpt_oss", "plain"):
        return group
    spec = msgspec.structs.replace(group.spec, softmax_mscale=group.spec.softmax_mscale and way == "latent")
    share = number(group.settings, "partial_rotary_factor")
    share = number(rope.text, "partial_rotary_factor") if share is None else share
    counts = not family.partial_rotary_keys and family.name not in _WHOLE_HEADS and spec.layout == "leading"
    if share is not None and counts:
        spec = msgspec.structs.replace(spec, rotary_dim=int(spec.head_dim * share))
    return msgspec.structs.replace(group, spec=spec)


def _unhashable(group: RopeGroup) -> str | None:
    """Why get_rope fails on a setting that is no number or name: it keeps ropes by all of their settings."""
    for key, value in group.settings.items():
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, dict | list) for part in parts):
            return f"it fails on a {key} that holds dictionaries or lists"
    return None


def _refused(rope: HfRope, family: Family) -> str | None:
    """Why transformers' configuration class, which it reads with, fails: on both forms at once, and those of Phi-3."""
    older, newer = rope.text.get("rope_scaling"), rope.text.get("rope_parameters")
    if family.form == "nested" and not family.labels and older and newer and FULL not in newer:
        return "it fails on a rope_scaling beside a rope_parameters without layer types"
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if family.name == "phimoe" and rope_type != "default":
            missing = [key for key in ("short_mscale", "long_mscale") if number(group.settings, key) is None]
            if missing:
                return f"its configuration class fails on {rope_type} without a {missing[0]}"
        if family.form != "phi3" or rope_type == "default" or not family.rope_types:
            continue
        if rope_type not in family.rope_types:
            return f"its configuration class takes no {rope_type}: only {', '.join(family.rope_types)}"
        if "su" in (group.settings.get("rope_type"), group.settings.get("type")) and ORIGINAL not in group.settings:
            return f"it fails on the older name su without an {ORIGINAL} beside it"
    return None


def _null_start(rope: HfRope) -> str | None:
    """Why the length that longrope starts with can't be worked out (config/model.py:2646)."""
    longrope = any(type_of(group.settings) == "longrope" for group in rope.groups)
    return f"it fails on an {ORIGINAL} of null" if longrope and rope.text.get(ORIGINAL, 1) is None else None


def two_types(rope: HfRope) -> str | None:
    """Two spellings of the type that differ, which it refuses (transformers_utils/config.py:620-638)."""
    for group in rope.groups:
        older, newer = group.settings.get("type"), group.settings.get("rope_type")
        if None in (older, newer) or older == newer or (newer, older) in _SAME_TYPE:
            continue
        return f"it fails on a rope_type of {newer} beside a type of {older}"
    return None


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


def stated_context(rope: HfRope) -> int:
    """The smallest stated length, or the one that stands for it (model_arch_config_convertor.py:374-407)."""
    text = rope.text
    own = text.get("model_max_length")
    if type(own) is int and own > 0:
        return own
    return min((text[key] for key in _LENGTH_KEYS if type(text.get(key)) is int), default=rope.max_position_embeddings)


def multiplied(rope: HfRope, family: Family, derived: float) -> float:
    """The length times the last factor of the types that multiply it."""
    factor = 1.0
    for group in rope.groups:
        if type_of(group.settings) not in _NOT_MULTIPLIED and "factor" in group.settings:
            factor = number(group.settings, "factor") or 1.0
    return derived if family.name in _SCALED_LENGTH else derived * factor


def rows_of(rope: HfRope, way: Way) -> int | None:
    """The positions that the tables of cosines have, in tokens: past them an index is out of range.

    Yarn's has the original length's multiple (yarn_scaling_rope.py), linear's the stated one's, longrope's what is
    started with, every other the stated length (base.py), four times for enlarged sections (mrope.py).
    """
    found = []
    for group in rope.groups:
        rope_type, stated = type_of(group.settings), rope.max_position_embeddings
        if isinstance(group.scaling, Yarn):
            found.append(int(group.scaling.original_max_position_embeddings * group.scaling.factor))
        elif rope_type == "linear":
            found.append(int(stated * (number(group.settings, "factor") or 1.0)))
        elif group.spec is not None and rope_type != "longrope":
            found.append(stated * 4 if way == "sections_enlarged" and "mrope_section" in group.settings else stated)
    return min(found, default=None)


def is_liftable(rope: HfRope, family: Family, length: int) -> bool:
    """Whether the length that longrope starts with is only a default, below what is stated."""
    started = longrope_context(rope, family)
    return started is not None and int(multiplied(rope, family, stated_context(rope))) >= length


def longrope_context(rope: HfRope, family: Family) -> int | None:
    """The length that longrope starts with: the top level's original one (config/model.py:2642-2652)."""
    if not any(type_of(group.settings) == "longrope" for group in rope.groups):
        return None
    original = rope.text.get(ORIGINAL)
    return original if type(original) is int else family.original_max_position_embeddings


def _max_context(rope: HfRope, family: Family) -> int:
    started = longrope_context(rope, family)
    return int(multiplied(rope, family, stated_context(rope))) if started is None else started
