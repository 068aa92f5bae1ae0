"""How TensorRT-LLM's PyTorch backend reads a rope from config.json.

Source, read in its repository of 2026: ``_torch/attention_backend/interface.py`` (``RopeParams``),
``functional.py`` (``RotaryScalingType``, ``RopeEmbeddingUtils``), ``_torch/models/modeling_llama.py``,
``modeling_qwen.py``, ``modeling_qwen3.py``, ``modeling_mistral.py`` and ``_torch/pyexecutor/model_engine.py``
(lengths).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.base import (
    ORIGINAL,
    Evidence,
    Reading,
    answered,
    number,
    serve_command,
    with_temperature,
    yarn_pair_temperature,
)
from ctxextend.runtimes.longrope_lists import one_list
from ctxextend.scaling import Linear, Llama3, Rebase, Yarn, ntk_exponent, table

#: Every type through ``RopeParams``; by one kernel of their own for yarn, and nothing else scaled.
_BY_TABLE: Final = frozenset({"llama", "mistral"})
_BY_KERNEL: Final = frozenset({"qwen2", "qwen3"})

#: What ``RotaryScalingType`` has by name, beside the default (functional.py).
_TYPES: Final = ("default", "dynamic", "linear", "llama3", "longrope", "mrope", "none", "yarn")
#: Types whose factor doesn't multiply the length (model_engine.py, ``_infer_max_seq_len_from_config``).
_NOT_MULTIPLIED: Final = ("llama3", "longrope", "su", "yarn")

_TWO_KERNELS: Final = "its kernel for this family reads yarn by a code of its own, which was not read to the end"
_ORIGINAL_BY_VERSION: Final = f"without an {ORIGINAL} it takes 1024, or the stated length with transformers 5"


class TensorRtLlm:
    """1.3: rope_scaling as transformers has it; no attention_factor, no truncate, dynamic by alpha alone."""

    runtime: ClassVar[str] = "tensorrt-llm"
    versions: ClassVar[str] = ">=1.3"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        if family.name not in _BY_TABLE | _BY_KERNEL:
            return Reading(unknown="its code of this family was not read")
        tables = {}
        kind = "default"
        for group in rope.groups:
            if group.spec is None:
                continue
            kind = str(group.settings.get("type") or group.settings.get("rope_type") or "default")
            reading = _unclaimed(rope, group, kind, family, length)
            if reading is not None:
                return reading
            tables[group.label] = _table(rope, group.spec, kind, group.settings)
        longest = _max_context(rope, kind)
        rows = rope.max_position_embeddings
        return Reading(
            tables=tables,
            max_context=longest,
            how=("rope_scaling; max_position_embeddings, times the factor for some types",),
            caution=None
            if longest <= rows
            else f"it advertises {longest} tokens with a table of {rows} rows: give it --max_seq_len",
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        return serve_command("trtllm-serve", source, "--max_seq_len", str(length), *reading.flags)


def _unclaimed(rope: HfRope, group: RopeGroup, kind: str, family: Family, length: int) -> Reading | None:
    """Where it fails, or where what it does depends on more than the config."""
    settings = group.settings
    original = _original(rope, settings)
    if kind.lower() not in _TYPES:
        return Reading(problem=f"it fails on the rope type {kind!r}")
    if family.name in _BY_KERNEL and kind not in ("default", "mrope", "yarn"):
        # PositionEmbeddingType has no such name (modeling_qwen.py).
        return Reading(problem=f"its model of this family fails on {kind}")
    if family.name in _BY_KERNEL and kind == "yarn":
        return Reading(unknown=_TWO_KERNELS)
    if family.name == "mistral" and kind == "yarn":
        return Reading(unknown="its yarn of this family turns interleaved pairs, for Mistral's own format of weights")
    if kind in ("llama3", "longrope", "yarn") and type(original) is not int:
        return Reading(unknown=_ORIGINAL_BY_VERSION)
    short, long = settings.get("short_factor"), settings.get("long_factor")
    if kind == "longrope" and short != long and isinstance(original, int) and length <= original:
        return Reading(unknown="which list it takes depends on the max_seq_len that its engine sets")
    return None


def _original(rope: HfRope, settings: Mapping[str, Any]) -> Any:
    """The top level's, else the settings'."""
    return rope.text.get(ORIGINAL) or settings.get(ORIGINAL)


def _table(rope: HfRope, spec: RopeSpec, kind: str, settings: Mapping[str, Any]) -> RopeTable:
    original: int = _original(rope, settings)
    match kind.lower():
        case "linear":
            return table(spec, Linear(factor=number(settings, "factor") or 1.0))
        case "dynamic":
            alpha = number({"alpha": 1.0, **settings}, "alpha")
            if alpha is None:
                raise ValueError("its dynamic fails on an alpha of null")
            return table(spec, Rebase(rope_theta=spec.rope_theta * alpha ** ntk_exponent(spec)))
        case "llama3":
            return table(
                spec,
                Llama3(
                    factor=number(settings, "factor") or 1.0,
                    low_freq_factor=number(settings, "low_freq_factor") or 1.0,
                    high_freq_factor=number(settings, "high_freq_factor") or 4.0,
                    original_max_position_embeddings=original,
                ),
            )
        case "yarn":
            return _yarn(spec, settings, original)
        case "longrope":
            return _longrope(rope, spec, settings, original)
        case _:
            return table(spec, None)


def _yarn(spec: RopeSpec, settings: Mapping[str, Any], original: int) -> RopeTable:
    """functional.py, ``create_sinusoidal_positions_yarn``: as DeepSeek; a pair of 1 and 0 where it is missing."""
    scaling = Yarn(
        factor=number(settings, "factor") or 1.0,
        original_max_position_embeddings=original,
        beta_fast=number(settings, "beta_fast") or 32.0,
        beta_slow=number(settings, "beta_slow") or 1.0,
        mscale=number(settings, "mscale"),
        mscale_all_dim=number(settings, "mscale_all_dim"),
    )
    return table(spec, with_temperature(scaling, yarn_pair_temperature(scaling, both_needed=False)))


def _longrope(rope: HfRope, spec: RopeSpec, settings: Mapping[str, Any], original: int) -> RopeTable:
    """functional.py, ``create_sinusoidal_positions_long_rope``: one list, and the temperature of two lengths."""
    stated = rope.max_position_embeddings
    return table(spec, one_list(settings, long=True, stated=stated, original=original))


def _max_context(rope: HfRope, kind: str) -> int:
    longest = rope.max_position_embeddings
    if kind in _NOT_MULTIPLIED:
        return longest
    factors = (number(group.settings, "factor") for group in rope.groups)
    factor = next((found for found in factors if found is not None), 1.0)
    return math.ceil(longest * factor)
