"""How SGLang reads a rope from config.json.

Source: the wheel of 0.5.23, read: ``layers/rotary_embedding/factory.py``, the model files named below
and ``utils/hf_transformers/common.py`` (lengths).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL
from ctxextend.formats.hf_read import HfRope, RopeGroup, parse, read_rope
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.base import (
    ORIGINAL,
    Evidence,
    Reading,
    answered,
    null_original,
    number,
    ratio_temperature,
    serve_command,
    stated_length,
    with_temperature,
    without_factor,
    yarn_pair_temperature,
)
from ctxextend.runtimes.transformers import Transformers5, unread_by_5
from ctxextend.scaling import Dynamic, LongRope, Rebase, Yarn, dynamic_theta, table

#: Model files that call get_rope without the scaling (mixtral.py:174, gemma.py:130, gemma2.py:154, ...).
_IGNORES_SCALING: Final = frozenset({"gemma", "gemma2", "mixtral", "olmo", "phi", "stablelm", "starcoder2"})
#: Families without a class of their own, run through transformers.
_THROUGH_TRANSFORMERS: Final = frozenset({"gpt_neox", "ministral", "nemotron", "smollm3"})
_LATENT: Final = frozenset({"deepseek_v2", "deepseek_v3"})
_SECTIONS: Final = frozenset({"qwen2_vl", "qwen2_5_vl"})
_NOT_NEOX: Final = frozenset({"cohere", "cohere2", "glm4"})
#: Keys that its class for Olmo 3 doesn't read.
_NOT_OLMO3: Final = frozenset({ORIGINAL, "head_dim", "partial_rotary_factor", "rope_parameters"})
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

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        if family.name == "falcon":
            return Reading(absent=True, problem="it has no class for this family")
        rope = read_rope(config, family)
        if family.name == "olmo3":
            rope = _olmo3(rope, family)
        problem = _unread(rope, family)
        if problem is not None:
            return Reading(problem=problem)
        longest = _max_context(rope, family)
        if family.name in _THROUGH_TRANSFORMERS:
            reading = Transformers5().effective(config, family, length=length)
            return reading if reading.problem else msgspec.structs.replace(reading, max_context=longest)
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

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        refused = reading.max_context is not None and reading.max_context < length
        environment = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1" if refused else ""
        words = ("python", "-m", "sglang.launch_server", "--model-path", source, "--context-length", str(length))
        return serve_command(*words, *reading.flags, environment=environment)


def _unread(rope: HfRope, family: Family) -> str | None:
    """Why the config doesn't load: its class is transformers 5's, but for Olmo 3."""
    if family.name != "olmo3":
        return unread_by_5(rope, family)
    older = rope.text.get("rope_scaling")
    if isinstance(older, dict) and not {"rope_type", "type"} & set(older):
        return "it fails on a rope_scaling without a rope_type"
    for group in rope.groups:
        problem = null_original(group.settings, "llama3", "longrope", "yarn")
        if problem is not None:
            return problem
    return None


def _olmo3(rope: HfRope, family: Family) -> HfRope:
    """Olmo 3 as its own configuration class and olmo2.py:110-144 have it: the older form, one base for all layers.

    Nothing merges the top level's original length into the settings, and the head's size isn't a key.
    """
    text = {key: value for key, value in rope.text.items() if key not in _NOT_OLMO3}
    theta = text.get("rope_theta", 10000.0)
    groups = []
    for group in rope.groups:
        older = text.get("rope_scaling") if group.label == FULL else None
        settings = {**(older or {"rope_type": "default"}), "rope_theta": theta}
        spec, scaling, _notes = parse(text, family, settings, length=rope.max_position_embeddings)
        groups.append(msgspec.structs.replace(group, spec=spec, scaling=scaling, settings=settings))
    return msgspec.structs.replace(rope, text=text, groups=tuple(groups))


def _gemma3(group: RopeGroup, length: int) -> RopeTable:
    """The functions of transformers on full attention's dictionary, with no length (gemma3_causal.py:415-443).

    So truncate counts, unlike in transformers, and longrope never leaves its short list. Dynamic is
    updated as there. Windowed layers are plain (gemma3_causal.py:596-601).
    """
    assert group.spec is not None
    scaling = group.scaling if group.label == FULL else None
    if isinstance(scaling, LongRope):
        scaling = msgspec.structs.replace(scaling, long_factor=scaling.short_factor)
    return table(group.spec, scaling, length=length)


def _group(rope: HfRope, group: RopeGroup, family: Family, length: int) -> RopeTable | str:
    assert group.spec is not None
    if family.name == "gemma3":
        return _gemma3(group, length)
    spec = group.spec
    if family.name in _WHOLE_THETA:
        spec = msgspec.structs.replace(spec, rope_theta=float(int(spec.rope_theta)))
    if _unscaled(group, family):
        return table(spec, None)
    return without_factor(group.settings) or _scaled(rope, group, spec, family, length)


def _scaled(rope: HfRope, group: RopeGroup, spec: RopeSpec, family: Family, length: int) -> RopeTable | str:
    settings, scaling, rope_type = group.settings, group.scaling, type_of(group.settings)
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
        temperature = yarn_pair_temperature(scaling, both_needed=True)
        temperature *= number(settings, "attn_factor") or 1.0
        return table(spec, with_temperature(scaling, temperature), length=length)
    if isinstance(scaling, LongRope):
        return _longrope(rope, group, scaling, family, length)
    return table(spec, scaling, length=length)


def _unscaled(group: RopeGroup, family: Family) -> bool:
    """Whether these layers get a plain rope whatever the config says."""
    by_layer = family.name in ("olmo2", "olmo3") and group.label != FULL
    return by_layer or family.name in _IGNORES_SCALING or type_of(group.settings) in ("default", "proportional")


def _longrope(rope: HfRope, group: RopeGroup, scaling: LongRope, family: Family, length: int) -> RopeTable | str:
    assert group.spec is not None
    if family.name in _NOT_NEOX:
        return "its longrope takes half-split pairs only"
    original = scaling.original_max_position_embeddings
    own = number(group.settings, "long_mscale" if length > original else "short_mscale")
    by_lengths = ratio_temperature(rope.max_position_embeddings, original)
    return table(group.spec, with_temperature(scaling, by_lengths if own is None else own), length=length)


def _latent(group: RopeGroup, rope_type: str, length: int) -> RopeTable | str:
    """Every type is taken for yarn (deepseek_v2.py:2065); no attention_factor, no truncate."""
    assert group.spec is not None
    if rope_type != "yarn" or not isinstance(group.scaling, Yarn):
        return f"its latent attention takes {rope_type} for yarn"
    scaling = msgspec.structs.replace(group.scaling, truncate=True)
    temperature = yarn_pair_temperature(group.scaling, both_needed=False)
    return table(group.spec, with_temperature(scaling, temperature), length=length)


def _max_context(rope: HfRope, family: Family) -> int:
    derived = stated_length(rope.text, _LENGTH_KEYS, rope.max_position_embeddings)
    assert derived is not None
    if family.name == "gemma3":
        return derived
    for group in rope.groups:
        settings = group.settings
        if ORIGINAL in settings or type_of(settings) in ("llama3", "default"):
            continue
        return int(derived * (number(settings, "factor") or 1.0))
    return derived
