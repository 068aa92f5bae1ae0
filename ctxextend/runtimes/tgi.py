"""How Text Generation Inference reads a rope from config.json.

Source: the server's ``layers/rotary.py`` (``PositionRotaryEmbedding.static``) and the model files that
give it ``config.rope_theta``, read in the repository of January 2026. It loads the config through
transformers 4, so the newer form alone is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, read_rope
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
from ctxextend.runtimes.longrope_lists import two_lists
from ctxextend.scaling import Dynamic, Llama3, Yarn, table

#: Families whose model file calls ``static`` with the config and its base (custom_modeling/flash_*.py).
_READ: Final = frozenset({"gemma", "llama", "mistral", "mixtral", "qwen2"})
#: Those whose head may have a size of its own; the others divide hidden_size by the heads.
_OWN_HEAD_DIM: Final = frozenset({"gemma", "mistral"})

_PER_POSITION: Final = (
    "it turns positions below the original length by the short list and the rest by the long one, within one input"
)
_SCALES_ANGLES: Final = "short_mscale and long_mscale multiply its angles, not its temperature: take them out"
_LINEAR: Final = "it takes linear without a word, and scales nothing"


class Tgi:
    """3.x: transformers 4's rope_scaling; linear does nothing; no attention_factor, no betas."""

    runtime: ClassVar[str] = "tgi"
    versions: ClassVar[str] = ">=3.3"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        unknown = _unknown(rope, family)
        if unknown is not None:
            return Reading(unknown=unknown)
        settings = rope.text.get("rope_scaling")
        kind = None if settings is None else settings.get("rope_type", settings.get("type"))
        if settings is not None and kind is None:
            return Reading(problem="it fails on a rope_scaling without a type")
        tables = {}
        for group in rope.groups:
            if group.spec is None:
                continue
            theta = number(rope.text, "rope_theta")
            spec = msgspec.structs.replace(group.spec, rope_theta=family.rope_theta if theta is None else theta)
            read = _table(rope, spec, kind, settings or {}, length)
            if isinstance(read, str):
                return Reading(problem=read)
            tables[group.label] = read
        return Reading(
            tables=tables,
            max_context=rope.max_position_embeddings,
            how=(
                "rope_theta and rope_scaling, unless ROPE_SCALING is set; max_position_embeddings",
                *_surprising(kind, settings or {}),
            ),
            # No one table says this: the long list's stands for the positions past the original length.
            caution=_PER_POSITION if _mixes(kind, settings or {}) else None,
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        words = ("--model-id", source, "--max-input-tokens", str(length - 1), "--max-total-tokens", str(length))
        return serve_command("text-generation-launcher", *words, *reading.flags)


def _unknown(rope: HfRope, family: Family) -> str | None:
    """Why nothing is claimed of it, if nothing is."""
    if family.name not in _READ:
        return "its code of this family was not read"
    text = rope.text
    hidden, heads, stated = (text.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    own = stated is not None and type(hidden) is int and type(heads) is int and stated * heads != hidden
    if own and family.name not in _OWN_HEAD_DIM:
        return "whether its code of this family looks at head_dim isn't known"
    settings = text.get("rope_scaling")
    if isinstance(settings, dict) and len({settings.get(key) for key in ("rope_type", "type")} - {None}) > 1:
        return "which of type and rope_type counts depends on its transformers"
    return None


def _surprising(kind: str | None, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes its table another than the config's."""
    if kind == "linear":
        return (_LINEAR,)
    both = kind in ("longrope", "su") and {"short_mscale", "long_mscale"} <= set(settings)
    return (_SCALES_ANGLES,) if both else ()


def _mixes(kind: str | None, settings: Mapping[str, Any]) -> bool:
    return kind in ("longrope", "su") and settings.get("short_factor") != settings.get("long_factor")


def _table(rope: HfRope, spec: RopeSpec, kind: str | None, settings: Mapping[str, Any], length: int) -> RopeTable | str:
    match kind:
        case None | "default" | "linear":
            return table(spec, None)
        case "dynamic":
            factor = number(settings, "factor")
            if factor is None:
                return "it fails on dynamic without a factor"
            scaling = Dynamic(factor=factor, original_max_position_embeddings=rope.max_position_embeddings)
            return table(spec, scaling, length=length)
        case "llama3":
            return _llama3(spec, settings)
        case "yarn":
            return _yarn(spec, settings)
        case "longrope" | "su":
            return _longrope(rope, spec, settings, length)
        case _:
            return f"it fails on the rope type {kind!r}"


def _llama3(spec: RopeSpec, settings: Mapping[str, Any]) -> RopeTable | str:
    factor, low, high = (number(settings, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = number(settings, ORIGINAL)
    if factor is None or low is None or high is None or original is None:
        return "it fails on llama3 without all of its keys"
    scaling = Llama3(
        factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=int(original)
    )
    return table(spec, scaling)


def _yarn(spec: RopeSpec, settings: Mapping[str, Any]) -> RopeTable | str:
    """rotary.py, ``YarnPositionRotaryEmbedding``: 32 and 1, whole pairs; a pair of 1 and 0 where it is missing."""
    factor, original = number(settings, "factor"), number(settings, ORIGINAL)
    if factor is None or original is None:
        return f"it fails on yarn without a factor and an {ORIGINAL}"
    scaling = Yarn(
        factor=factor,
        original_max_position_embeddings=int(original),
        mscale=number(settings, "mscale"),
        mscale_all_dim=number(settings, "mscale_all_dim"),
    )
    return table(spec, with_temperature(scaling, yarn_pair_temperature(scaling, both_needed=False)))


def _longrope(rope: HfRope, spec: RopeSpec, settings: Mapping[str, Any], length: int) -> RopeTable | str:
    """rotary.py: the top level's original length alone; both mscale keys together multiply the angles."""
    original = rope.text.get(ORIGINAL)
    if type(original) is not int or original < 2:
        return f"its longrope fails without a whole {ORIGINAL} at the top level"
    scaling = two_lists(settings, stated=rope.max_position_embeddings, original=original)
    if not {"short_mscale", "long_mscale"} <= set(settings):
        return table(spec, scaling, length=length)
    mscale = number(settings, "long_mscale" if length > original else "short_mscale") or 1.0
    plain = table(spec, with_temperature(scaling, 1.0), length=length)
    return msgspec.structs.replace(plain, inv_freq=tuple(f * mscale for f in plain.inv_freq))
