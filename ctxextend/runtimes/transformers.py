"""How Hugging Face transformers reads a rope from config.json.

Sources: ``modeling_rope_utils.py`` and the configuration classes of 5.23.0 and 4.57.6, both run on
tiny models of each family (tests/reference).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope, text_config
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import ORIGINAL, Evidence, Reading, answered, nested_in_flat, null_original, without_factor
from ctxextend.scaling import Dynamic, LongRope, Rebase, Yarn, longrope_attention_factor, table

#: Families whose classes came with transformers 5.
_ONLY_IN_5: Final = frozenset({"internlm3", "ministral", "ministral3"})
#: Families whose config class has a head_dim of None where config.json has none: yarn, dynamic and longrope
#: multiply it (modeling_rope_utils.py: getattr without ``or``). Mistral's class of 5.x fills it in.
_NEEDS_HEAD_DIM_IN_5: Final = frozenset({"ministral", "mixtral"})
_NEEDS_HEAD_DIM_IN_4: Final = frozenset({"mistral", "mixtral"})
_MULTIPLIES_HEAD_DIM: Final = frozenset({"dynamic", "longrope", "yarn"})
#: Config classes of 4.57 that overwrite ``rope_type`` with ``type`` where both are there.
_TYPE_WINS_IN_4: Final = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "gpt_neox",
        "gpt_oss",
        "llama",
        "phi",
        "qwen2",
        "qwen2_5_vl",
        "qwen2_moe",
        "qwen2_vl",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)


class Transformers5:
    """5.x: ``rope_scaling`` or else ``rope_parameters``; a top-level original length wins."""

    runtime: ClassVar[str] = "transformers"
    versions: ClassVar[str] = "5.x"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        problem = unread_by_5(rope, family) or _headless(rope, family, _NEEDS_HEAD_DIM_IN_5)
        if problem is not None:
            return Reading(problem=problem)
        return Reading(
            tables=_tables(rope, length, truncate_honoured=family.form != "nested"),
            max_context=_length(rope),
            how=("rope_scaling, else rope_parameters; max_position_embeddings",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        return load_snippet(source)


class Transformers4:
    """4.56 and 4.57: the older form alone; longrope's original length only at the top level."""

    runtime: ClassVar[str] = "transformers"
    versions: ClassVar[str] = "4.56-4.57"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        if family.name in _ONLY_IN_5:
            return Reading(absent=True, problem="the model came with transformers 5")
        path, text = text_config(config, family)
        rope = read_rope(apply_edits(dict(config), _older_form(path, text, family)), family)
        problem = _unread_by_4(rope, family) or _headless(rope, family, _NEEDS_HEAD_DIM_IN_4)
        if problem is not None:
            return Reading(problem=problem)
        if ORIGINAL not in text:
            rope = _without_original(rope)
        return Reading(
            tables=_tables(rope, length, truncate_honoured=True),
            max_context=_length(rope),
            how=("rope_theta and rope_scaling; max_position_embeddings",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        return load_snippet(source)


def load_snippet(source: str) -> str:
    """What loads a checkpoint in Python: nothing is told of the length, which has no limit there."""
    return f"AutoModelForCausalLM.from_pretrained({source!r}, dtype='auto')"


def unread_by_5(rope: HfRope, family: Family) -> str | None:
    """Why the configuration class of 5.x doesn't read the settings, if it doesn't: engines that build on it neither."""
    if family.form != "nested" and nested_in_flat(rope.text, ("rope_scaling", "rope_parameters")):
        return "its class of this family doesn't read one dictionary a layer type: it fails, or scales nothing"
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if rope_type == "yarn" and "factor" not in group.settings:
            return "it fails on yarn without a factor"
        problem = null_original(_standardized(rope, group, family), "llama3", "longrope", "yarn")
        if problem is not None:
            return problem
        if rope_type == "longrope" and family.name in _NEEDS_HEAD_DIM_IN_5 and rope.text.get("head_dim") is None:
            return "its class fails on longrope without a head_dim"
    return None


def _standardized(rope: HfRope, group: RopeGroup, family: Family) -> Mapping[str, Any]:
    """The settings with the top level's original length in them, which wins in the flat form."""
    if family.form == "nested" or ORIGINAL not in rope.text:
        own = family.original_max_position_embeddings
        return group.settings if own is None else {**group.settings, ORIGINAL: own}
    return {**group.settings, ORIGINAL: rope.text[ORIGINAL]}


def _headless(rope: HfRope, family: Family, families: frozenset[str]) -> str | None:
    """Why the family's class fails without a head_dim, if it does."""
    if family.name not in families or rope.text.get("head_dim") is not None:
        return None
    if family.name == "ministral":
        return "its class fails without a head_dim"
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if rope_type in _MULTIPLIES_HEAD_DIM:
            return f"its class fails on {rope_type} without a head_dim"
    return None


def _unread_by_4(rope: HfRope, family: Family) -> str | None:
    """Why the family's class of 4.57 doesn't read the scaling, if it doesn't."""
    if nested_in_flat(rope.text, ("rope_scaling",)):
        return "it fails on a rope_scaling with one dictionary a layer type"
    if family.name in ("olmo", "olmo2") and not _exactly_type_and_factor(rope.text.get("rope_scaling")):
        return "its class takes exactly the keys type (linear or dynamic) and factor (a float above 1)"
    for group in rope.groups:
        problem = without_factor(group.settings) or _without_length_in_4(rope, group)
        if problem is not None and family.name != "nemotron":
            return problem
        rope_type = type_of(group.settings)
        if group.scaling is None or isinstance(group.scaling, Rebase):
            continue
        if family.name == "nemotron":
            return "its class ignores every scaling"
        if family.name == "llama4" and rope_type != "llama3":
            return "its class takes every scaling for llama3"
        if family.form == "phi3" and len(rope.text.get("rope_scaling") or {}) != 3:
            return "its class takes exactly the keys type, short_factor and long_factor"
    return None


def _exactly_type_and_factor(settings: Any) -> bool:
    """What Olmo's classes of 4.57 demand of a rope_scaling that isn't null."""
    if settings is None:
        return True
    factor = settings.get("factor")
    kind = settings.get("type")
    return len(settings) == 2 and kind in ("linear", "dynamic") and isinstance(factor, float) and factor > 1.0


def _without_length_in_4(rope: HfRope, group: RopeGroup) -> str | None:
    """llama3 reads the dictionary's original length and longrope the top level's; yarn does without."""
    if type_of(group.settings) == "longrope":
        return null_original({"rope_type": "longrope", **_only(rope.text, ORIGINAL)}, "longrope")
    return null_original(group.settings, "llama3")


def _only(text: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: text[key]} if key in text else {}


def _older_form(path: tuple[str, ...], text: Mapping[str, Any], family: Family) -> tuple[Edit, ...]:
    edits = [Edit(path=(*path, "rope_parameters"))]
    if family.form == "nested" and family.local_theta_key is None:
        # Olmo 3's older class has one theta for both layer types.
        local = {"rope_type": "default", "rope_theta": text.get("rope_theta", family.rope_theta)}
        edits = [Edit(path=(*path, "rope_parameters"), value={"sliding_attention": local})]
    older = text.get("rope_scaling")
    if family.name in _TYPE_WINS_IN_4 and isinstance(older, dict) and "type" in older:
        edits.append(Edit(path=(*path, "rope_scaling", "rope_type"), value=older["type"]))
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


def _tables(rope: HfRope, length: int, *, truncate_honoured: bool) -> dict[str, RopeTable]:
    tables = {}
    for group in rope.groups:
        if group.spec is None:
            continue
        scaling = group.scaling
        if isinstance(scaling, Yarn) and not truncate_honoured:
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
