"""How Hugging Face transformers reads a rope from config.json.

Sources: ``modeling_rope_utils.py`` and the configuration classes of 5.23.0 and 4.57.6, both run on
tiny models of each family (tests/reference).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.errors import CtxextendError
from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, read_rope, text_config
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import Evidence, Reading
from ctxextend.scaling import Dynamic, LongRope, Rebase, Yarn, longrope_attention_factor, table

#: Families whose classes came with transformers 5.
_ONLY_IN_5: Final = frozenset({"internlm3", "ministral", "ministral3"})


class Transformers5:
    """5.x: ``rope_scaling`` or else ``rope_parameters``; a top-level original length wins."""

    runtime: ClassVar[str] = "transformers"
    versions: ClassVar[str] = "5.x"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        try:
            rope = read_rope(config, family)
        except CtxextendError as error:
            return Reading(problem=error.message)
        return Reading(
            tables=_tables(rope, length, nested_truncate=family.form != "nested"),
            max_context=_length(rope),
            how=("rope_scaling, else rope_parameters; max_position_embeddings",),
        )


class Transformers4:
    """4.56 and 4.57: the older form alone; longrope's original length only at the top level."""

    runtime: ClassVar[str] = "transformers"
    versions: ClassVar[str] = "4.56-4.57"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        if family.name in _ONLY_IN_5:
            return Reading(absent=True, problem="the model came with transformers 5")
        path, text = text_config(config, family)
        try:
            rope = read_rope(apply_edits(dict(config), _older_form(path, text, family)), family)
        except CtxextendError as error:
            return Reading(problem=error.message)
        problem = _unread_by_4(rope, family)
        if problem is not None:
            return Reading(problem=problem)
        if "original_max_position_embeddings" not in text:
            rope = _without_original(rope)
        return Reading(
            tables=_tables(rope, length, nested_truncate=True),
            max_context=_length(rope),
            how=("rope_theta and rope_scaling; max_position_embeddings",),
        )


def _unread_by_4(rope: HfRope, family: Family) -> str | None:
    """Why the family's class of 4.57 doesn't read the scaling, if it doesn't."""
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if group.scaling is None or isinstance(group.scaling, Rebase):
            continue
        if family.name == "nemotron":
            return "its class ignores every scaling"
        if family.name == "llama4" and rope_type != "llama3":
            return "its class takes every scaling for llama3"
        if family.name in ("olmo", "olmo2") and rope_type not in ("linear", "dynamic"):
            return f"its class takes linear and dynamic only, and fails on {rope_type}"
        if family.form == "phi3" and len(rope.text.get("rope_scaling") or {}) != 3:
            return "its class takes exactly the keys type, short_factor and long_factor"
    return None


def _older_form(path: tuple[str, ...], text: Mapping[str, Any], family: Family) -> tuple[Edit, ...]:
    edits = [Edit(path=(*path, "rope_parameters"))]
    if family.form == "nested" and family.local_theta_key is None:
        # Olmo 3's older class has one theta for both layer types.
        local = {"rope_type": "default", "rope_theta": text.get("rope_theta", family.rope_theta)}
        edits = [Edit(path=(*path, "rope_parameters"), value={"sliding_attention": local})]
    return tuple(edits)


def _without_original(rope: HfRope) -> HfRope:
    """Longrope without a top-level original length: the temperature comes from ``factor`` and the length."""
    groups = []
    for group in rope.groups:
        scaling = group.scaling
        if isinstance(scaling, LongRope) and scaling.attention_factor is None:
            attention = longrope_attention_factor(scaling.factor, rope.max_position_embeddings)
            scaling = msgspec.structs.replace(scaling, attention_factor=attention)
        groups.append(msgspec.structs.replace(group, scaling=scaling))
    return msgspec.structs.replace(rope, groups=tuple(groups))


def _tables(rope: HfRope, length: int, *, nested_truncate: bool) -> dict[str, RopeTable]:
    tables = {}
    for group in rope.groups:
        if group.spec is None:
            continue
        scaling = group.scaling
        if isinstance(scaling, Yarn) and not nested_truncate:
            # 5.23 looks for truncate beside the layer types, not in them: it always rounds.
            scaling = msgspec.structs.replace(scaling, truncate=True)
        tables[group.label] = table(group.spec, scaling, length=length)
    return tables


def _length(rope: HfRope) -> int:
    """What it advertises: nothing limits it, and generate() stops at max_position_embeddings."""
    for group in rope.groups:
        if isinstance(group.scaling, Dynamic):
            return int(rope.max_position_embeddings * group.scaling.factor)
    return rope.max_position_embeddings
