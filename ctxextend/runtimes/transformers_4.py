"""How the releases 4.43 to 4.57 of Hugging Face transformers read a rope from config.json.

Sources: ``modeling_rope_utils.py`` and the classes of the models, run on tiny models of every family
named here, both ends of each range (tests/reference/test_transformers_versions.py). All of them read
the older form alone: ``rope_theta`` at the top level and ``rope_scaling``, whose ``rope_theta`` and
``partial_rotary_factor`` they ignore. The shared functions look for ``original_max_position_embeddings``
in the dictionary for yarn and llama3, and at the top level for longrope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

import msgspec
from msgspec import Struct

from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL
from ctxextend.formats.hf_read import HfRope, head_dim_of, read_rope, text_config
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes import transformers_4_families as known
from ctxextend.runtimes.auto_classes import class_of
from ctxextend.runtimes.base import ORIGINAL, Evidence, Reading, answered, load_snippet, number
from ctxextend.runtimes.transformers_4_families import Manner
from ctxextend.scaling import (
    Dynamic,
    Linear,
    Llama3,
    LongRope,
    Scaling,
    Yarn,
    longrope_attention_factor,
    mscale,
    table,
)

#: What each type must have (the validators' and the functions' own KeyErrors).
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "longrope": ("short_factor", "long_factor"),
}
#: Types whose functions multiply ``head_dim`` as it stands, None included (``getattr`` without ``or``).
_MULTIPLIES_HEAD_DIM: Final = frozenset({"dynamic", "longrope", "yarn"})


#: What Phi-3's class takes for longrope (configuration_phi3.py, ``_rope_scaling_adjustment``).
_LONGROPE: Final = ("longrope", "su", "yarn")

#: The minor version from which yarn reads truncate.
_TRUNCATE_SINCE: Final = 55

#: Which of longrope's lists counts.
Lists = Literal["switching", "short", "by-lengths"]


class Rules(Struct, frozen=True, kw_only=True):
    """What differs between the ranges.

    ``yarn``: its factor and original length ``as-written``; ``by-lengths``: where the dictionary has an
    original length, the factor is the stated length over it; ``over-stated``: the stated length is
    taken for the original one, and ``mscale`` for nothing.
    ``longrope``: ``switching`` by the length of the input; ``short``: the short list whatever the
    length; ``by-lengths``: the long list at any length, if the stated length is above the original.
    """

    first: int
    last: int
    yarn: Literal["as-written", "by-lengths", "over-stated"]
    longrope: Lists
    #: The manners whose models take a partial_rotary_factor of any config, whether their family has one or not.
    partial: frozenset[Manner]
    #: Families whose class leaves head_dim at None where config.json has none, and since which minor version.
    headless: Mapping[str, int] = MappingProxyType({})
    #: Families whose class takes a head_dim of null for none.
    null_head_dim: frozenset[str] = frozenset()
    #: Families whose class doesn't take its head's size from head_dim.
    head_dim_unread: frozenset[str] = frozenset()
    #: The type that a family's model fails on, and since which minor version.
    fails: Mapping[str, tuple[str, int]] = MappingProxyType({})
    #: What a class sets where config.json is silent, where that isn't what transformers 5 sets.
    default_scaling: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    #: longrope's validator compares the attention factor with 0, missing or not.
    attention_factor_needed: bool = False


class _Transformers4:
    """One range of releases of 4."""

    runtime: ClassVar[str] = "transformers"
    versions: ClassVar[str]
    current: ClassVar[bool] = False
    evidence: ClassVar[Evidence] = "run"
    rules: ClassVar[Rules]

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rules = self.rules
        classes = known.CLASSES.get(family.name, ())
        if not classes and (family.only_transformers_5 or family.name in known.ONLY_IN_5):
            return Reading(absent=True, problem="the model came with transformers 5")
        if classes and classes[0][0] > rules.last:
            return Reading(absent=True, problem=f"the model came with transformers 4.{classes[0][0]}")
        manner = next((manner for since, manner in reversed(classes) if since <= rules.last), None)
        path, text = text_config(config, family)
        loader = class_of(text, family)
        if manner is None or (path and rules.last < known.NESTED_SINCE.get(family.name, 0)):
            unread = f"how transformers {self.versions} reads this family was not established"
            return Reading(unknown=unread, loader=loader)
        read = _settings(text, family, manner, rules)
        if isinstance(read, str):
            return Reading(problem=read)
        unknown = _unknown(text, read, family, rules)
        if unknown is not None:
            return Reading(unknown=f"{unknown} in transformers {self.versions} was not established", loader=loader)
        problem = _headless(text, read, family, rules)
        if problem is not None:
            return Reading(problem=problem)
        edits = _without_dictionaries(path, text, family, manner, rules)
        rope = read_rope(apply_edits(dict(config), edits), family)
        tables = {}
        for group in rope.groups:
            if group.spec is None:
                continue
            spec = _partial(group.spec, text, family, manner, rules)
            scaled = family.form != "nested" or group.label == FULL
            scaling = _scaling(read, rope, rules, manner) if scaled else None
            tables[group.label] = table(spec, scaling, length=length)
        return Reading(
            tables=_with_softmax(tables, read, family),
            max_context=_length(rope, read),
            liftable=not _length_counts(text, read, rules),
            how=("rope_theta and rope_scaling; max_position_embeddings",),
            loader=loader,
            caution=f"its class came with transformers 4.{classes[0][0]}" if classes[0][0] > rules.first else None,
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        return load_snippet(source, reading)


class Transformers4(_Transformers4):
    """4.56 and 4.57: the older form alone; longrope's original length only at the top level."""

    versions: ClassVar[str] = "4.56-4.57"
    current: ClassVar[bool] = True
    rules: ClassVar[Rules] = Rules(
        first=56,
        last=57,
        yarn="as-written",
        longrope="switching",
        partial=known.WITH_PARTIAL,
        headless=MappingProxyType({"mistral": 56, "mixtral": 56}),
        null_head_dim=known.NULL_HEAD_DIM,
    )


class Transformers451(_Transformers4):
    """4.51 to 4.55: yarn's factor is max_position_embeddings over the original length, whatever is written."""

    versions: ClassVar[str] = "4.51-4.55"
    rules: ClassVar[Rules] = Rules(
        first=51,
        last=55,
        yarn="by-lengths",
        longrope="switching",
        partial=known.WITH_PARTIAL,
        headless=MappingProxyType({"mistral": 52, "mixtral": 52}),
        null_head_dim=known.NULL_HEAD_DIM,
        fails=MappingProxyType({"gpt_oss": ("llama3", 51)}),
        # Without an original length, whose place the stated one takes (4.55.4, configuration_gpt_oss.py:65).
        default_scaling=MappingProxyType(
            {"gpt_oss": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}}
        ),
    )


class Transformers448(_Transformers4):
    """4.48 to 4.50: yarn's ramp lies over max_position_embeddings; longrope keeps its short list at any length."""

    versions: ClassVar[str] = "4.48-4.50"
    rules: ClassVar[Rules] = Rules(
        first=48,
        last=50,
        yarn="over-stated",
        longrope="short",
        partial=known.WITH_PARTIAL,
        null_head_dim=known.NULL_HEAD_DIM,
        fails=MappingProxyType({"qwen2_5_vl": ("dynamic", 48), "qwen2_vl": ("dynamic", 49)}),
    )


class Transformers445(_Transformers4):
    """4.45 to 4.47: yarn's ramp lies over max_position_embeddings; longrope's list is chosen by the config alone."""

    versions: ClassVar[str] = "4.45-4.47"
    rules: ClassVar[Rules] = Rules(
        first=45,
        last=47,
        yarn="over-stated",
        longrope="by-lengths",
        partial=known.WITH_PARTIAL - {"two-keys"},
        head_dim_unread=frozenset({"mixtral", "olmo", "olmo2", "phi3"}),
    )


class Transformers443(_Transformers4):
    """4.43 and 4.44: as 4.45, but few families scale more than linear and dynamic, or at all."""

    versions: ClassVar[str] = "4.43-4.44"
    rules: ClassVar[Rules] = Rules(
        first=43,
        last=44,
        yarn="over-stated",
        longrope="by-lengths",
        partial=known.WITH_PARTIAL - {"two-keys"},
        head_dim_unread=frozenset(
            {
                "cohere",
                "gpt_neox",
                "llama",
                "mixtral",
                "olmo",
                "phi",
                "phi3",
                "qwen2",
                "qwen2_moe",
                "stablelm",
                "starcoder2",
            }
        ),
        attention_factor_needed=True,
    )


#: The ranges, newest first.
OLDER: Final = (Transformers451(), Transformers448(), Transformers445(), Transformers443())


def _unknown(text: Mapping[str, Any], read: Mapping[str, Any], family: Family, rules: Rules) -> str | None:
    """What of a config isn't known to be read alike by every release of the range, if something isn't."""
    within = rules.first < _TRUNCATE_SINCE <= rules.last and known.CLASSES[family.name][0][0] < _TRUNCATE_SINCE
    if within and read.get("rope_type") == "yarn" and "truncate" in read:
        return "whether yarn's truncate is read"
    if "head_dim" in text and text["head_dim"] is None and family.name not in rules.null_head_dim:
        return "what this family's class does with a head_dim of null"
    odd = family.name in rules.head_dim_unread and text.get("head_dim") is not None
    if odd and text["head_dim"] != head_dim_of({**text, "head_dim": None}, family):
        return "what this family's class does with a head_dim of its own"
    return None


def _headless(text: Mapping[str, Any], read: Mapping[str, Any], family: Family, rules: Rules) -> str | None:
    """Why the family's class fails without a head_dim, if it does."""
    if text.get("head_dim") is not None:
        return None
    if family.name == "ministral":
        return "its class fails without a head_dim"
    since = rules.headless.get(family.name)
    if since is None or read.get("rope_type") not in _MULTIPLIES_HEAD_DIM:
        return None
    return f"its class fails on {read['rope_type']} without a head_dim{_since(since, rules)}"


def _since(minor: int, rules: Rules) -> str:
    """Where a failure begins, if that is within the range."""
    return f", from 4.{minor} on" if minor > rules.first else ""


def _without_dictionaries(
    path: tuple[str, ...], text: Mapping[str, Any], family: Family, manner: Manner, rules: Rules
) -> tuple[Edit, ...]:
    """What leaves the geometry alone, as these releases have it."""
    edits = [Edit(path=(*path, "rope_parameters")), Edit(path=(*path, "rope_scaling"))]
    if family.name == "olmo3":
        # Its class has one theta for both layer types.
        theta = text.get("rope_theta", known.ROPE_THETA["olmo3"])
        local = {"rope_type": "default", "rope_theta": theta}
        edits[0] = Edit(path=(*path, "rope_parameters"), value={"sliding_attention": local})
    theta = known.ROPE_THETA.get(family.name)
    if theta is not None and family.theta_keys[0] not in text:
        edits.append(Edit(path=(*path, family.theta_keys[0]), value=theta))
    if manner == "three-keys" and rules.last < known.PHI3_PARTIAL_SINCE:
        edits.append(Edit(path=(*path, "partial_rotary_factor")))
    return tuple(edits)


def _settings(text: Mapping[str, Any], family: Family, manner: Manner, rules: Rules) -> dict[str, Any] | str:
    """The scaling with its type under ``rope_type``; empty for a plain rope; or why the class fails on it."""
    stated = text.get("rope_scaling", rules.default_scaling.get(family.name, family.default_scaling))
    if stated is None or manner == "ignored":
        return {}
    if not isinstance(stated, Mapping):
        return "rope_scaling must be an object"
    rope_type = _type(stated, manner)
    if rope_type == "mrope" and family.name in known.SECTIONS:
        rope_type = "default"
    problem = _refused(stated, rope_type, family, manner, rules)
    return problem or {**stated, "rope_type": rope_type}


def _type(stated: Mapping[str, Any], manner: Manner) -> Any:
    """Which of the two spellings of the type counts."""
    match manner:
        case "three-keys" if stated.get("type") in _LONGROPE:
            return "longrope"
        case "type-wins" | "two-keys" | "three-keys":
            return stated["type"] if "type" in stated else stated.get("rope_type")
        case "llama3":
            return "llama3"
        case _:
            return stated["rope_type"] if "rope_type" in stated else stated.get("type")


def _refused(stated: Mapping[str, Any], rope_type: Any, family: Family, manner: Manner, rules: Rules) -> str | None:
    """Why the class fails on the dictionary, if it does."""
    if rope_type is None and any(isinstance(value, Mapping) for value in stated.values()):
        return "it fails on a rope_scaling with one dictionary a layer type"
    wanted = _DEMANDS.get(manner)
    if wanted is not None and not wanted[0](stated):
        return wanted[1]
    if not isinstance(rope_type, str) or rope_type not in _REQUIRED:
        return f"it knows no rope type {rope_type!r}"
    failing, since = rules.fails.get(family.name, ("", 0))
    if rope_type == failing:
        return f"its class fails on {rope_type}{_since(since, rules)}"
    if family.name in known.FACTOR_ALWAYS and stated.get("factor") is None:
        return f"it fails on {rope_type} without a factor"
    if rope_type == "yarn" and rules.yarn == "by-lengths" and "factor" in stated and ORIGINAL in stated:
        return None  # whatever the factor is, it isn't used
    missing = [key for key in _REQUIRED[rope_type] if stated.get(key) is None]
    return f"it fails on {rope_type} without a {', '.join(missing)}" if missing else None


def _exactly_type_and_factor(stated: Mapping[str, Any]) -> bool:
    """What Olmo's classes, and others of older releases, demand of a rope_scaling that isn't null."""
    factor = stated.get("factor")
    kind = stated.get("type")
    return len(stated) == 2 and kind in ("linear", "dynamic") and isinstance(factor, float) and factor > 1.0


def _exactly_three_keys(stated: Mapping[str, Any]) -> bool:
    return set(stated) == {"type", "short_factor", "long_factor"} and stated["type"] in _LONGROPE


#: What a class demands of the dictionary before anything else, by its manner.
_DEMANDS: Final[Mapping[Manner, tuple[Callable[[Mapping[str, Any]], bool], str]]] = {
    "two-keys": (
        _exactly_type_and_factor,
        "its class takes exactly the keys type (linear or dynamic) and factor (a float above 1)",
    ),
    "three-keys": (
        _exactly_three_keys,
        "its class takes exactly the keys type (longrope), short_factor and long_factor",
    ),
    "rope-type": (lambda stated: "rope_type" in stated, "its class fails on a rope_scaling without a rope_type"),
}


def _partial(spec: RopeSpec, text: Mapping[str, Any], family: Family, manner: Manner, rules: Rules) -> RopeSpec:
    """The shared functions take a partial_rotary_factor of any config, whether its family has one or not."""
    stray = text.get("partial_rotary_factor")
    if stray is None or family.partial_rotary_keys or manner not in rules.partial:
        return spec
    share = number(text, "partial_rotary_factor")
    assert share is not None
    return msgspec.structs.replace(spec, rotary_dim=int(spec.head_dim * share))


def _scaling(read: Mapping[str, Any], rope: HfRope, rules: Rules, manner: Manner) -> Scaling | None:
    """The scaling that the shared functions compute."""
    stated = rope.max_position_embeddings
    match read.get("rope_type"):
        case "linear":
            return Linear(factor=_needed(read, "factor"))
        case "dynamic":
            return Dynamic(factor=_needed(read, "factor"), original_max_position_embeddings=stated)
        case "llama3":
            return Llama3(
                factor=_needed(read, "factor"),
                low_freq_factor=_needed(read, "low_freq_factor"),
                high_freq_factor=_needed(read, "high_freq_factor"),
                original_max_position_embeddings=_whole(_needed(read, ORIGINAL)),
            )
        case "yarn":
            return _yarn(read, stated, rules)
        case "longrope":
            return _longrope(read, rope.text, stated, rules, "switching" if manner == "three-keys" else rules.longrope)
        case _:
            return None


def _yarn(read: Mapping[str, Any], stated: int, rules: Rules) -> Yarn:
    original = stated
    if rules.yarn == "by-lengths" and ORIGINAL in read:
        # transformers issue 38224: the factor that is written isn't used.
        original = _whole(_needed(read, ORIGINAL))
        factor = stated / original
    else:
        factor = _needed(read, "factor")
        if rules.yarn == "as-written":
            original = _whole(number(read, ORIGINAL) or stated)
    paired = rules.yarn != "over-stated"
    attention = number(read, "attention_factor")
    if attention is None and not paired:
        attention = 0.1 * math.log(factor) + 1.0
    truncate = read.get("truncate", True) if rules.last >= _TRUNCATE_SINCE else True
    return Yarn(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=number(read, "beta_fast") or 32.0,
        beta_slow=number(read, "beta_slow") or 1.0,
        attention_factor=attention,
        mscale=number(read, "mscale") if paired else None,
        mscale_all_dim=number(read, "mscale_all_dim") if paired else None,
        truncate=bool(truncate),
    )


def _longrope(read: Mapping[str, Any], text: Mapping[str, Any], stated: int, rules: Rules, lists: Lists) -> LongRope:
    """The original length is the top level's or else the stated one; the dictionary's isn't looked at."""
    outside = number(text, ORIGINAL)
    if outside is None and ORIGINAL in text:
        raise ValueError(f"longrope fails on an {ORIGINAL} of null at the top level")
    if outside is None:
        original, factor = stated, number(read, "factor")
    else:
        original, factor = _whole(outside), stated / outside
    attention = number(read, "attention_factor")
    if attention is None:
        if rules.attention_factor_needed and lists != "switching":
            raise ValueError("longrope needs an attention_factor")
        if factor is None:
            raise ValueError("longrope needs a factor, or original_max_position_embeddings at the top level")
        attention = longrope_attention_factor(factor, original)
    short, long = _numbers(read, "short_factor"), _numbers(read, "long_factor")
    match lists:
        case "short":
            long = short
        case "by-lengths":
            if factor is None:
                raise ValueError("longrope needs a factor, or original_max_position_embeddings at the top level")
            short = long = long if factor > 1.0 else short
        case "switching":
            pass
    return LongRope(
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=original,
        factor=factor or 1.0,
        attention_factor=attention,
    )


def _with_softmax(tables: Mapping[str, RopeTable], read: Mapping[str, Any], family: Family) -> dict[str, RopeTable]:
    """DeepSeek-V3's class multiplies its softmax scale whatever the type; V2's of these releases never does."""
    if family.name not in known.FACTOR_ALWAYS or not read or not read.get("mscale_all_dim"):
        return {label: msgspec.structs.replace(found, softmax_factor=1.0) for label, found in tables.items()}
    factor = mscale(_needed(read, "factor"), _needed(read, "mscale_all_dim")) ** 2
    return {label: msgspec.structs.replace(found, softmax_factor=factor) for label, found in tables.items()}


def _length_counts(text: Mapping[str, Any], read: Mapping[str, Any], rules: Rules) -> bool:
    """Whether the stated length enters the computation (:func:`_scaling`)."""
    match read.get("rope_type"):
        case "dynamic":
            return True
        case "yarn":
            return rules.yarn != "as-written" or number(read, ORIGINAL) is None
        case "longrope":
            # Only the switch between the lists is left where both of these are stated.
            stated = number(text, ORIGINAL) is not None and number(read, "attention_factor") is not None
            return not stated or rules.longrope == "by-lengths"
        case _:
            return False


def _length(rope: HfRope, read: Mapping[str, Any]) -> int:
    """What it advertises: nothing limits it, and generate() stops at max_position_embeddings."""
    if read.get("rope_type") == "dynamic":
        return int(rope.max_position_embeddings * _needed(read, "factor"))
    return rope.max_position_embeddings


def _needed(settings: Mapping[str, Any], key: str) -> float:
    value = number(settings, key)
    if value is None:
        raise ValueError(f"{key} must be a number, found none")
    return value


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError(f"{ORIGINAL} must be a whole number, found {value}")
    return int(value)


def _numbers(settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = settings.get(key)
    if not isinstance(value, list) or not all(type(v) in (int, float) for v in value):
        raise ValueError(f"{key} must be a list of numbers")
    return tuple(float(v) for v in value)
