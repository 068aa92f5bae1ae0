"""How Hugging Face transformers 5 reads a rope from config.json.

Source: ``modeling_rope_utils.py`` and the configuration classes of 5.23.0, run on tiny models of each
family (tests/reference). The releases of 4 are read by ``transformers_4``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.auto_classes import class_of
from ctxextend.runtimes.base import (
    ORIGINAL,
    Evidence,
    Reading,
    answered,
    load_snippet,
    nested_in_flat,
    null_original,
    number,
)
from ctxextend.runtimes.transformers_4 import Transformers4
from ctxextend.scaling import Dynamic, Yarn, table

__all__ = ["Transformers4", "Transformers5", "newer_alone", "unread_by_5"]

#: Families whose config class has a head_dim of None where config.json has none: yarn, dynamic and longrope
#: multiply it (modeling_rope_utils.py: getattr without ``or``). Mistral's class of 5.x fills it in.
_NEEDS_HEAD_DIM: Final = frozenset({"ministral", "mixtral"})
_MULTIPLIES_HEAD_DIM: Final = frozenset({"dynamic", "longrope", "yarn"})
#: Families whose class declares rope_theta itself, as a number (their configuration files): null is refused.
_DECLARES_THETA: Final = frozenset({"bailing_hybrid", "cohere2_moe", "deepseek_v4"})
#: Families whose class declares a rope_scaling of its own, which it keeps and nothing reads.
_NEWER_ALONE: Final = frozenset({"cohere2_moe"})


class Transformers5:
    """5.x: ``rope_scaling`` or else ``rope_parameters``; a top-level original length wins."""

    runtime: ClassVar[str] = "transformers"
    versions: ClassVar[str] = "5.x"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(newer_alone(config, family), family)
        problem = unread_by_5(rope, family) or _unknown_type(rope, family) or _headless(rope, family)
        if problem is not None:
            return Reading(problem=problem)
        return Reading(
            tables=_tables(rope, family, length),
            max_context=_length(rope),
            liftable=not _length_counts(rope, family),
            how=("rope_scaling, else rope_parameters; max_position_embeddings",),
            loader=class_of(rope.text, family),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        return load_snippet(source, reading)


def unread_by_5(rope: HfRope, family: Family) -> str | None:
    """Why the configuration class of 5.x doesn't read the settings, if it doesn't: engines that build on it neither."""
    if family.form != "nested" and nested_in_flat(rope.text, ("rope_scaling", "rope_parameters")):
        return "its class of this family doesn't read one dictionary a layer type: it fails, or scales nothing"
    problem = _mistyped_length(rope, family) or _null_theta(rope, family)
    if problem is not None:
        return problem
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if group.spec is not None and not _names_a_type(group.settings):
            return "it fails on a rope_type that is empty"
        if rope_type == "yarn" and "factor" not in group.settings:
            return "it fails on yarn without a factor"
        problem = null_original(_standardized(rope, group, family), "llama3", "longrope", "yarn")
        if problem is not None:
            return problem
        if rope_type == "longrope" and family.name in _NEEDS_HEAD_DIM and rope.text.get("head_dim") is None:
            return "its class fails on longrope without a head_dim"
    return None


def newer_alone(config: Mapping[str, Any], family: Family) -> Mapping[str, Any]:
    """A config without the older form, where the family's class of 5.x doesn't read that."""
    if family.name not in _NEWER_ALONE:
        return config
    return {key: value for key, value in config.items() if key != "rope_scaling"}


def _mistyped_length(rope: HfRope, family: Family) -> str | None:
    """Why the class refuses a length: its fields are strict about their types. A missing one has a default."""
    keys = ("max_position_embeddings", ORIGINAL) if family.form == "phi3" else ("max_position_embeddings",)
    for key in keys:
        stated = rope.text.get(key, 1)
        if type(stated) is not int:
            return f"its class refuses a {key} of {_json(stated)}: it must be a whole number"
    return None


def _json(value: Any) -> str:
    return "null" if value is None else str(value)


def _null_theta(rope: HfRope, family: Family) -> str | None:
    """Why a base of null counts: it isn't a missing one, for which the class has its own (standardize_rope_params)."""
    key, text = family.theta_keys[0], rope.text
    if text.get(key, 1) is not None:
        return None
    if family.name in _DECLARES_THETA:
        return f"its class refuses a {key} of null: it must be a number"
    if family.labels:
        return None
    older, newer = text.get("rope_scaling") or {}, text.get("rope_parameters") or {}
    own = {**(newer.get(FULL) or {}), **older} if family.form == "nested" else older or newer or family.default_scaling
    return None if own and "rope_theta" in own else f"a {key} of null leaves it without a base"


def _names_a_type(settings: Mapping[str, Any]) -> bool:
    """Whether the type is stated, or missing for the default: null is looked up as a name (a KeyError)."""
    return bool(settings["rope_type"] if "rope_type" in settings else settings.get("type", "default"))


def _standardized(rope: HfRope, group: RopeGroup, family: Family) -> Mapping[str, Any]:
    """The settings with the top level's original length in them, which wins in the flat form."""
    if family.form == "nested" or ORIGINAL not in rope.text:
        own = family.original_max_position_embeddings
        return group.settings if own is None else {**group.settings, ORIGINAL: own}
    return {**group.settings, ORIGINAL: rope.text[ORIGINAL]}


def _unknown_type(rope: HfRope, family: Family) -> str | None:
    """Why the class doesn't know a type, if it doesn't: engines that build on it translate older names first."""
    for group in rope.groups:
        spelled = group.settings.get("rope_type") or group.settings.get("type")
        if spelled == "su" and family.form != "phi3":
            return "it knows no rope type 'su'"
        if spelled == "su" and ORIGINAL not in group.settings:
            return f"its class fails on the rope type 'su' without an {ORIGINAL} beside it"
        rope_type = type_of(group.settings)
        if family.rope_types is not None and not family.labels and rope_type not in ("default", *family.rope_types):
            return f"its class takes no {rope_type}: only {', '.join(family.rope_types)}"
    older, newer = rope.text.get("rope_scaling"), rope.text.get("rope_parameters")
    if family.form == "nested" and not family.labels and older and newer and FULL not in newer:
        return "its class fails on a rope_scaling beside a rope_parameters without layer types"
    return None


def _headless(rope: HfRope, family: Family) -> str | None:
    """Why the family's class fails without a head_dim, if it does."""
    if family.name not in _NEEDS_HEAD_DIM or rope.text.get("head_dim") is not None:
        return None
    if family.name == "ministral":
        return "its class fails without a head_dim"
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if rope_type in _MULTIPLIES_HEAD_DIM:
            return f"its class fails on {rope_type} without a head_dim"
    return None


def _tables(rope: HfRope, family: Family, length: int) -> dict[str, RopeTable]:
    tables = {}
    for group in rope.groups:
        if group.spec is None:
            continue
        scaling = group.scaling
        if isinstance(scaling, Yarn) and family.form == "nested":
            # 5.23 looks for truncate beside the layer types, not in them: it always rounds.
            scaling = msgspec.structs.replace(scaling, truncate=True)
        tables[group.label] = table(_rotated(group, rope, family), scaling, length=length)
    return tables


def _rotated(group: RopeGroup, rope: HfRope, family: Family) -> RopeSpec:
    """Where a family rotates whole heads, the shared functions of the scalings still read a share of them."""
    assert group.spec is not None
    if group.scaling is None or family.partial_rotary_keys or family.labels or group.spec.layout != "leading":
        return group.spec
    share = number(group.settings, "partial_rotary_factor")
    share = number(rope.text, "partial_rotary_factor") if share is None else share
    if share is None:
        return group.spec
    return msgspec.structs.replace(group.spec, rotary_dim=int(group.spec.head_dim * share))


def _length_counts(rope: HfRope, family: Family) -> bool:
    """Whether the stated length enters the computation: as dynamic's, as an original one, as longrope's factor."""
    for group in rope.groups:
        rope_type, settings = type_of(group.settings), _standardized(rope, group, family)
        if rope_type == "dynamic" or (rope_type == "longrope" and settings.get("attention_factor") is None):
            return True
        if rope_type in ("llama3", "longrope", "yarn") and settings.get(ORIGINAL) is None:
            return True
        if rope_type == "yarn" and settings.get("factor") is None:
            return True
    return False


def _length(rope: HfRope) -> int:
    """What it advertises: nothing limits it, and generate() stops at max_position_embeddings."""
    for group in rope.groups:
        if isinstance(group.scaling, Dynamic):
            return int(rope.max_position_embeddings * group.scaling.factor)
    return rope.max_position_embeddings
