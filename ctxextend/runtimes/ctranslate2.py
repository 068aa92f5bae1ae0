"""How CTranslate2's converter reads a rope from config.json, and what its engine makes of it.

Source: the wheel of 4.8.5, read (``converters/transformers.py``, ``specs/attention_spec.py``) and its
engine (``src/layers/attention_layer.cc``); each rule here was run once on tiny models of the families
named, against transformers 5.23 and 4.57.6. The converter loads the config through the transformers
beside it: these are the rules with transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import (
    Evidence,
    Reading,
    answered,
    number,
    tables_of,
)
from ctxextend.scaling import Linear, table

#: Loaders with ``get_rotary_params``, and the base that each takes where the settings hold none.
_READS: Final[Mapping[str, float]] = MappingProxyType(
    {"llama": 10000.0, "mistral": 10000.0, "qwen2": 10000.0, "qwen3": 1000000.0}
)
#: Loaders that look for a top-level rope_theta or for nothing: with transformers 5 the base is 10000, and plain.
_FIXED: Final = frozenset({"falcon", "gemma", "gemma2"})
#: Loaders that fail on attributes that its transformers hasn't got.
_FAILS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gpt_neox": "its loader of this family fails with transformers 5 (rotary_pct)",
        "phi": "its loader of this family fails (n_layer)",
        "phi3": "its loader of this family fails on the rotary_emb of current transformers",
    }
)
#: Families with a loader whose rope was not read, or not confirmed by a run; no others have one.
_UNREAD: Final = frozenset({"gemma3", "gemma4", "gemma4_unified"})
_NO_LIMIT: Final = "rope_scaling through transformers 5; no limit on the length"


class CTranslate2:
    """4.8: plain and linear; a Llama's llama3 is taken and does nothing; the rest fails."""

    runtime: ClassVar[str] = "ctranslate2"
    versions: ClassVar[str] = ">=4.8"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        if family.name in _UNREAD:
            return Reading(unknown="its loader of this family was not read")
        if family.name in _FAILS:
            return Reading(problem=_FAILS[family.name])
        if family.name not in _READS and family.name not in _FIXED:
            return Reading(absent=True, problem="no conversion is registered for this family")
        tables = tables_of(rope, lambda group: _group(group, family))
        if isinstance(tables, str):
            return Reading(problem=tables)
        return Reading(
            tables=tables,
            max_context=rope.max_position_embeddings,
            # Plain and linear ropes are all that it has: nothing comes from the length.
            liftable=True,
            how=(_NO_LIMIT, *_lost(rope, family)),
            caution=_caution(rope, family),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """Nothing is told of the length: the engine's tables grow with the input."""
        return (
            f"ctranslate2.converters.TransformersConverter({source!r}).convert('ctranslate2-model'); "
            "ctranslate2.Generator('ctranslate2-model')"
        )


def _group(group: RopeGroup, family: Family) -> RopeTable | str:
    assert group.spec is not None
    if family.name in _FIXED:
        return table(msgspec.structs.replace(group.spec, rope_theta=10000.0), None)
    kind = group.settings.get("type") or group.settings.get("rope_type") or "default"
    match kind:
        case "default":
            return table(group.spec, None)
        case "linear":
            return table(group.spec, Linear(factor=number(group.settings, "factor") or 1.0))
        case "llama3" if family.name == "llama":
            # Neither the factor nor the original length is stored: the engine divides by 1 (attention_spec.py:83-94).
            return table(group.spec, None)
        case "llama3" | "longrope" | "su":
            return f"its converter leaves out what {kind} needs, and fails"
        case _:
            return f"its converter doesn't implement {kind}"


def _lost(rope: HfRope, family: Family) -> tuple[str, ...]:
    """What its table has lost of the config."""
    if family.name in _FIXED:
        lost = _rebased(rope) or any(group.scaling is not None for group in rope.groups)
        return ("its loader of this family takes a base of 10000, and no scaling",) if lost else ()
    return ("it takes llama3 without a word, and scales nothing",) if _llama3(rope) else ()


def _llama3(rope: HfRope) -> bool:
    return any(group.settings.get("rope_type", group.settings.get("type")) == "llama3" for group in rope.groups)


def _caution(rope: HfRope, family: Family) -> str | None:
    """What is lost beside the transformers that reads the older form alone: the base."""
    if family.name in _FIXED or _llama3(rope):
        return None
    older = rope.text.get("rope_scaling")
    stated = number(rope.text, "rope_theta")
    default = _READS[family.name]
    if older and "rope_theta" not in older and stated not in (None, default):
        return (
            f"beside transformers 4 its converter loses rope_theta and takes {default:.0f}: "
            "install transformers 5, or write rope_theta into rope_scaling as well"
        )
    return None


def _rebased(rope: HfRope) -> bool:
    return any(group.spec is not None and group.spec.rope_theta != 10000.0 for group in rope.groups)
