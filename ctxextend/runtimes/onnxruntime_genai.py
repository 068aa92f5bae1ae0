"""How the model builder of ONNX Runtime GenAI reads a rope from config.json.

Source: the wheel of onnxruntime-genai 0.18.0, read (``models/builder.py``, ``models/builders/base.py:52-57``
and ``:665-701`` and ``:3297-3395``, ``llama.py``, ``phi.py``), with transformers 5.23: the builders' tables
were computed for tiny models of the families named, and a Llama's and a Mistral's run to the end. It
writes cos and sin into the model: what the engine does is settled when it is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.base import (
    ORIGINAL,
    Evidence,
    Reading,
    answered,
    number,
    serve_command,
    stated_length,
    with_temperature,
)
from ctxextend.runtimes.longrope_lists import two_lists
from ctxextend.scaling import Llama3, Yarn, mscale, table

#: Builders that inherit LlamaModel's ``make_rope_init``, which knows llama3 and nothing else.
_LIKE_LLAMA: Final = frozenset({"llama", "nemotron", "smollm3"})
#: Builders with the base class's: plain, linear and yarn, an error for the rest.
_LIKE_BASE: Final = frozenset({"gemma", "gemma2", "granite", "mistral", "olmo", "phi", "qwen2", "qwen3"})
#: Families that ``models/builder.py`` names whose builder was not read; it has no others.
_UNREAD: Final = frozenset(
    {
        "ernie4_5",
        "gemma4",
        "gemma4_unified",
        "gpt_oss",
        "granitemoehybrid",
        "hunyuan_v1_dense",
        "lfm2",
        "lfm2_moe",
        "ministral3",
        "mistral4",
        "phi4_multimodal",
        "phimoe",
        "qwen2_5_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_vl",
    }
)
_HOW: Final = "rope_parameters of transformers 5; seq_length, else max_position_embeddings"


class OnnxRuntimeGenAi:
    """0.18: a Llama's scaling other than llama3 is lost; elsewhere linear, and yarn with both betas."""

    runtime: ClassVar[str] = "onnxruntime-genai"
    versions: ClassVar[str] = ">=0.18"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        if family.name in _UNREAD:
            return Reading(unknown="its builder of this family was not read")
        if family.name == "gemma3":
            return Reading(problem="its builder fails on one dictionary a layer type, as transformers 5 has it")
        if family.name not in _LIKE_LLAMA | _LIKE_BASE and family.name != "phi3":
            return Reading(absent=True, problem="its builder has no such architecture")
        context = stated_length(rope.text, ("seq_length",), rope.max_position_embeddings)
        assert context is not None
        tables, how = {}, [_HOW]
        for group in rope.groups:
            if group.spec is None:
                continue
            read = _group(rope, group, family, context, length)
            if isinstance(read, str):
                return Reading(problem=read)
            tables[group.label] = read
            rope_type = type_of(group.settings)
            if family.name in _LIKE_LLAMA and rope_type not in ("default", "llama3"):
                how.append(f"its builder of this family takes {rope_type} without a word, and scales nothing")
        return Reading(
            tables=tables,
            max_context=context,
            how=tuple(how),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """Its builder, whose output ``onnxruntime_genai.Model`` loads; the length is the config's."""
        words = ("python", "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", "onnx-model")
        return serve_command(*words, "-p", "int4", "-e", "cpu", *reading.flags)


def _group(rope: HfRope, group: RopeGroup, family: Family, context: int, length: int) -> RopeTable | str:
    assert group.spec is not None
    settings, rope_type = group.settings, type_of(group.settings)
    original = _original(rope, settings, family, context)
    if family.name == "phi3":
        return _phi3(rope, group, context, original, length)
    if family.name in _LIKE_LLAMA:
        scaling = group.scaling
        if not isinstance(scaling, Llama3):
            return table(group.spec, None)
        return table(group.spec, msgspec.structs.replace(scaling, original_max_position_embeddings=original))
    match rope_type:
        case "default":
            return table(group.spec, None)
        case "linear":
            return table(group.spec, group.scaling)
        case "yarn":
            return _yarn(group.spec, settings, original)
        case _:
            return f"its builder of this family doesn't support {rope_type}"


def _original(rope: HfRope, settings: Mapping[str, Any], family: Family, context: int) -> int:
    """The top level's, else the settings', else the length (base.py:53-57 after the settings were spread)."""
    own = family.original_max_position_embeddings
    found = (rope.text.get(ORIGINAL), own, settings.get(ORIGINAL))
    return next((int(value) for value in found if isinstance(value, int | float)), context)


def _yarn(spec: RopeSpec, settings: Mapping[str, Any], original: int) -> RopeTable | str:
    """base.py:3353-3376: the ramp over the whole head, its bounds not rounded, and within the pairs."""
    if spec.rotary_dim != spec.head_dim:
        return "its yarn fails where only a part of a head is turned"
    factor, fast, slow = (number(settings, key) for key in ("factor", "beta_fast", "beta_slow"))
    if not factor or not fast or not slow:
        return "it fails on yarn without a factor, a beta_fast and a beta_slow"
    half = spec.head_dim / 2
    low, high = (
        half * math.log(original / (beta * 2.0 * math.pi)) / math.log(spec.rope_theta) for beta in (fast, slow)
    )
    if not 0.0 < low < high < half - 1.0:
        return f"its yarn fails: the ramp from {low:.2f} to {high:.2f} must lie within the {half:.0f} pairs"
    scaling = Yarn(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=_temperature(settings, factor),
        truncate=False,
    )
    return table(spec, scaling)


def _temperature(settings: Mapping[str, Any], factor: float) -> float:
    """base.py:3301-3323: the ratio of the pair; a lone mscale is the temperature itself; no attention_factor."""
    weight, weight_all = (number({"mscale": settings.get(key, 0)}, "mscale") for key in ("mscale", "mscale_all_dim"))
    if weight is None or weight_all is None:
        raise ValueError("it fails on an mscale of null")
    if weight > 0.0 and weight_all > 0.0:
        return mscale(factor, weight) / mscale(factor, weight_all)
    return weight if weight > 0.0 else mscale(factor)


def _phi3(rope: HfRope, group: RopeGroup, context: int, original: int, length: int) -> RopeTable | str:
    """Two builders, picked by whether the lengths are equal; the list by the largest position (phi.py:73-100)."""
    assert group.spec is not None
    spec, settings, rope_type = group.spec, group.settings, type_of(group.settings)
    if rope.max_position_embeddings == original:
        return table(spec, None) if rope_type == "default" else "its builder of equal lengths doesn't read longrope"
    if rope_type != "longrope":
        return "its builder of two lengths fails without longrope"
    if settings.get("type") not in ("longrope", "su"):
        return "its longrope fails without the key type"
    scaling = two_lists(settings, stated=context, original=original)
    own = number(settings, "long_mscale" if length > original else "short_mscale")
    if own is not None and own > 0.0:
        return table(spec, with_temperature(scaling, own), length=length)
    return table(spec, scaling, length=length)
