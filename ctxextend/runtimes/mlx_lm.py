"""How MLX-LM reads a rope from config.json.

Source: 0.32.2, run on the CPU for the families it has (tests/reference); ``models/rope_utils.py`` and
the model files. It reads raw config.json: most of its models know the older form alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
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
    ratio_temperature,
    serve_command,
    with_temperature,
    without_factor,
    yarn_pair_temperature,
)
from ctxextend.scaling import Dynamic, LongRope, Scaling, Yarn, table

_ABSENT: Final = frozenset({"falcon", "ministral", "olmo"})

#: Models whose attention builds a plain rope and never looks for a scaling.
_IGNORES_SCALING: Final = frozenset(
    {
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "glm4",
        "gpt_neox",
        "mixtral",
        "phi",
        "qwen3_moe",
        "stablelm",
        "starcoder2",
    }
)
#: The scalings that other models of its own take; None: all that rope_utils.py knows.
_TYPES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "deepseek_v2": ("yarn",),
        "deepseek_v3": ("default", "dynamic", "linear", "llama3", "yarn"),
        "gpt_oss": ("default", "linear", "llama3", "yarn"),
        "internlm3": ("default", "dynamic", "linear"),
        "llama4": ("default", "dynamic", "linear", "llama3", "yarn"),
        "nemotron": ("default",),
        "phi3": ("default", "longrope"),
        "qwen2_moe": ("default",),
    }
)
#: Keys without which its model arguments fail, where config.json has a ``rope_scaling`` at all.
_REQUIRED_KEYS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "internlm3": ("factor", "rope_type"),
        "nemotron": ("factor",),
        "phi3": ("long_factor", "type"),
        "qwen2_moe": ("factor", "type"),
    }
)
#: Keys of the language model's config without which it fails, whatever they say.
_REQUIRED: Final[Mapping[str, str]] = MappingProxyType({"llama4": "rope_scaling", "ministral3": "rope_parameters"})
#: Families whose newer form is read where the older one is missing.
_READS_NEWER_FORM: Final = frozenset({"ministral3", "qwen3"})

#: Where its default base isn't that of the family's transformers class.
_DEFAULT_THETA: Final[Mapping[str, float]] = MappingProxyType(
    {"qwen2": 1000000.0, "smollm3": 10000.0, "starcoder2": 100000.0, "cohere": 8000000.0, "cohere2": 50000.0}
)


class MlxLm:
    """0.32: the older form; no attention_factor; longrope always by its long list."""

    runtime: ClassVar[str] = "mlx-lm"
    versions: ClassVar[str] = ">=0.32"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        if family.name in _ABSENT:
            return Reading(absent=True, problem="it has no such model")
        rope = read_rope(config, family)
        problem = _missing(rope.text, family)
        if problem is not None:
            return Reading(problem=problem)
        tables, longest = {}, rope.max_position_embeddings
        for group in rope.groups:
            if group.spec is None:
                continue
            settings = _settings(rope, group, family)
            spec, scaling, _notes = parse(rope.text, family, settings, length=rope.max_position_embeddings)
            if family.name in _IGNORES_SCALING:
                scaling = None
            read = _group(rope, settings, spec, scaling, family, length)
            if isinstance(read, str):
                return Reading(problem=read)
            tables[group.label] = read
            if isinstance(scaling, Dynamic):
                # It enforces no length: the base follows it as far as the factor was meant for.
                longest = int(rope.max_position_embeddings * scaling.factor)
        return Reading(
            tables=tables,
            max_context=longest,
            how=("rope_theta and rope_scaling of config.json itself; no limit on the length",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """Its server has no flag for the length, and no limit."""
        return serve_command("mlx_lm.server", "--model", source, *reading.flags)


def _missing(text: Mapping[str, Any], family: Family) -> str | None:
    """Which key its model arguments fail without, if one is missing."""
    key = _REQUIRED.get(family.name)
    if key is not None and key not in text:
        return f"its model of this family fails without {key}"
    older = text.get("rope_scaling")
    if isinstance(older, dict) and older:
        missing = [key for key in _REQUIRED_KEYS.get(family.name, ()) if key not in older]
        if missing:
            return f"its model of this family fails on a rope_scaling without {missing[0]}"
    return None


def _settings(rope: HfRope, group: RopeGroup, family: Family) -> dict[str, Any]:
    """The dictionary that this reader sees, with its base in it."""
    text = rope.text
    older, newer = text.get("rope_scaling"), text.get("rope_parameters")
    if family.form == "nested" and group.label != FULL:
        theta = text.get(family.local_theta_key) if family.local_theta_key else text.get("rope_theta")
        return {"rope_type": "default", "rope_theta": theta or family.local_rope_theta}
    use_newer = family.name in _READS_NEWER_FORM and isinstance(newer, dict) and not older
    if family.name == "ministral3" or use_newer:
        return _by_type(group.settings, family)
    settings = _by_type(older if isinstance(older, dict) else {}, family)
    default = _DEFAULT_THETA.get(family.name, family.rope_theta)
    settings["rope_theta"] = text.get(family.theta_keys[0], default)
    return settings


def _by_type(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The settings with the type that counts: ``type`` wins over ``rope_type`` (rope_utils.py:299)."""
    if settings.get("type") and family.name != "internlm3":
        return {**settings, "rope_type": settings["type"]}
    return dict(settings)


def _group(
    rope: HfRope,
    settings: Mapping[str, Any],
    spec: RopeSpec,
    scaling: Scaling | None,
    family: Family,
    length: int,
) -> RopeTable | str:
    if family.name in _IGNORES_SCALING:
        return table(spec, None)
    rope_type = type_of(settings)
    allowed = _TYPES.get(family.name)
    if allowed is not None and rope_type not in allowed:
        return f"its model of this family doesn't read {rope_type}"
    problem = without_factor(settings) or null_original(settings, "llama3", "yarn")
    if problem is not None:
        return problem
    if isinstance(scaling, Yarn):
        rounded = msgspec.structs.replace(scaling, truncate=True)
        temperature = yarn_pair_temperature(scaling, both_needed=False)
        return table(spec, with_temperature(rounded, temperature), length=length)
    if isinstance(scaling, LongRope):
        return _longrope(rope, settings, spec, scaling, family)
    return table(spec, scaling, length=length)


def _longrope(
    rope: HfRope, settings: Mapping[str, Any], spec: RopeSpec, scaling: LongRope, family: Family
) -> RopeTable | str:
    if spec.pairing != "half":
        return "its longrope turns half-split pairs, and this family's are interleaved"
    original = rope.text.get(ORIGINAL, 4096) if family.form == "phi3" else settings.get(ORIGINAL)
    if type(original) is not int or original < 2:
        return f"its longrope fails without a whole {ORIGINAL}"
    temperature = ratio_temperature(rope.max_position_embeddings, original)
    long = msgspec.structs.replace(scaling, short_factor=scaling.long_factor)
    return table(spec, with_temperature(long, temperature))
