"""How ExLlamaV3 and ExLlamaV2 read a rope from config.json.

Sources: the wheel of exllamav3 1.6.5, read (``util/rope.py``, ``model/config.py:294-334``, the files of
``architecture/``), its rope functions and its reading of the settings run on the CPU; the wheel of
exllamav2 0.3.2, read (``config.py:320-412``, ``rope.py``, ``device.py:119-165``, ``architecture.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.formats.hf_read import HfRope, RopeGroup, read_rope
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.base import (
    ORIGINAL,
    Evidence,
    Reading,
    answered,
    number,
    stated_length,
    tables_of,
    with_temperature,
)
from ctxextend.runtimes.longrope_lists import one_list
from ctxextend.scaling import Linear, Llama3, LongRope, Yarn, mscale, table

#: Families whose file in exllamav3's ``architecture/`` gives all ropes by ``read_rope_settings_default``.
_V3: Final = frozenset(
    {
        "apertus",
        "arcee",
        "cohere",
        "cohere2",
        "deepseek_v3",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "gemma2",
        "gemma3",
        "glm4",
        "glm4_moe",
        "gpt_oss",
        "hy_v3",
        "llama",
        "minimax_m2",
        "ministral3",
        "mistral",
        "mixtral",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
    }
)
#: Families of ``architecture/architectures.py`` whose ropes were not read; it has no others.
_V3_UNREAD: Final = frozenset(
    {
        "afmoe",
        "bailing_hybrid",
        "deepseek_v4",
        "exaone4",
        "gemma4",
        "gemma4_unified",
        "glm4_moe_lite",
        "glm4v",
        "glm4v_moe",
        "glm_moe_dsa",
        "hyperclovax",
        "iquestcoder",
        "laguna",
        "lfm2",
        "lfm2_moe",
        "mimo_v2_flash",
        "mistral4",
        "mistral_large4",
        "muse_glimmer",
        "muse_glimmer_assistant",
        "olmo_hybrid",
        "qwen2_5_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_next",
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen4_exp",
        "solar_open",
        "step3p5",
    }
)
#: Where its default base isn't 10000 (gemma3.py:100 and :222).
_V3_THETA: Final[Mapping[str, float]] = MappingProxyType({"gemma3": 1000000.0})
#: The spellings that its rope.py has (rope.py:170-186); None is the plain rope.
_V3_TYPES: Final = (None, "default", "linear", "llama3", "longrope", "mrope", "proportional", "su", "yarn")
#: The group size by which its cache grows.
_V3_PAGE: Final = 256

#: Families of exllamav2 with one rope for all layers, by ``rope.py`` (architecture.py).
_V2: Final = frozenset(
    {
        "cohere",
        "gemma",
        "gemma2",
        "glm4",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "starcoder2",
    }
)
#: What states the length in exllamav2, first match (config.py:368-374).
_V2_LENGTH_KEYS: Final = (
    "max_sequence_length",
    "model_max_length",
    "max_position_embeddings",
    "max_seq_len",
    "n_positions",
)

_OTHER_PART: Final = "without a partial_rotary_factor where it looks for one, it turns another part of each head"


class ExLlamaV3:
    """1.6: either dictionary; yarn's factor is the stated length by the original one."""

    runtime: ClassVar[str] = "exllamav3"
    versions: ClassVar[str] = ">=1.6"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        if family.name in _V3_UNREAD:
            return Reading(unknown="its code of this family was not read")
        if family.name not in _V3:
            return Reading(absent=True, problem="it has no such architecture")
        problem = _v3_fails(rope.text, family)
        if problem is not None:
            return Reading(problem=problem)
        tables = tables_of(rope, lambda group: _v3_group(rope, group, family))
        if isinstance(tables, str):
            return Reading(problem=tables)
        return Reading(
            tables=tables,
            max_context=rope.max_position_embeddings,
            how=("rope_scaling, else rope_parameters; max_position_embeddings",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """Its own classes; the cache's size counts whole pages."""
        tokens = -(-length // _V3_PAGE) * _V3_PAGE
        return (
            f"model = Model.from_config(Config.from_directory({source!r})); "
            f"cache = Cache(model, max_num_tokens={tokens}); model.load()"
        )


def _v3_fails(text: Mapping[str, Any], family: Family) -> str | None:
    """Why the family's own file fails on the config, whatever its rope is, or gives it no rope."""
    match family.name:
        case "deepseek_v3" if text.get("n_group") not in (None, 1) or text.get("topk_group") not in (None, 1):
            return "it fails on routing by groups of experts (n_group, topk_group)"
        case "smollm3" if text.get("no_rope_layers") is None:
            return "it fails without no_rope_layers"
        case "cohere2" if not text.get("layer_types") and not text.get("sliding_window_pattern"):
            return "without layer_types and sliding_window_pattern it gives no layer a rope"
        case _:
            return None


def _v3_settings(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dictionary that it reads: ``rope_scaling``, even an empty one, else ``rope_parameters``."""
    found: Mapping[str, Any] = next(
        (text[key] for key in ("rope_scaling", "rope_parameters") if text.get(key) is not None), {}
    )
    return found


def _v3_spec(spec: RopeSpec, text: Mapping[str, Any], family: Family) -> RopeSpec:
    """The geometry: the top level's base and share of a head, else those in ``rope_parameters``."""
    newer = text.get("rope_parameters") or {}
    theta = _v3_number((text, newer), "rope_theta", _V3_THETA.get(family.name, 10000.0))
    partial = _v3_number((text, newer), "partial_rotary_factor", 1.0)
    stated = text.get("rotary_dim")
    rotary = stated if type(stated) is int and stated else int(spec.head_dim * partial)
    if spec.layout == "proportional":
        rotary = spec.rotary_dim
    return msgspec.structs.replace(spec, rope_theta=theta, rotary_dim=rotary)


def _v3_number(places: tuple[Mapping[str, Any], ...], key: str, default: float) -> float:
    """The first number of that name; what isn't one counts as missing."""
    found = (place.get(key) for place in places)
    return next((float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool)), default)


def _v3_group(rope: HfRope, group: RopeGroup, family: Family) -> RopeTable | str:
    assert group.spec is not None
    text = rope.text
    if family.name == "gemma3" and group.label == SLIDING:
        # Its local settings are read from an empty dictionary (gemma3.py:103 and :225).
        return table(msgspec.structs.replace(group.spec, rope_theta=10000.0), None)
    spec = _v3_spec(group.spec, text, family)
    if spec.rotary_dim != group.spec.rotary_dim:
        return _OTHER_PART
    if family.name == "olmo3" and group.label != FULL and text.get("layer_types"):
        return table(spec, None)
    return _v3_table(rope, spec, _v3_settings(text), family)


def _v3_table(rope: HfRope, spec: RopeSpec, settings: Mapping[str, Any], family: Family) -> RopeTable | str:
    kind = settings.get("rope_type", settings.get("type"))
    if kind not in _V3_TYPES:
        return f"it fails on the rope type {kind!r}"
    match kind:
        case "linear" | "proportional":
            found = table(spec, Linear(factor=number(settings, "factor") or 1.0))
        case "llama3":
            found = table(spec, _v3_llama3(settings))
        case "yarn":
            read = _v3_yarn(rope, settings, family)
            if isinstance(read, str):
                return read
            found = table(spec, read)
        case "longrope" | "su":
            read_long = _v3_longrope(rope, settings)
            if isinstance(read_long, str):
                return read_long
            found = table(spec, read_long)
        case _:
            return table(spec, None)
    if family.name != "deepseek_v3":
        return found
    # Folded into the softmax by the dictionary's own factor, not by the ratio of lengths (rope.py:54-69).
    weight = number(settings, "mscale_all_dim")
    factor = number(settings, "factor")
    if weight and factor is None:
        return "it fails on mscale_all_dim without a factor"
    folded = mscale(factor, weight) ** 2 if weight and factor is not None else 1.0
    return msgspec.structs.replace(found, softmax_factor=folded)


def _v3_llama3(settings: Mapping[str, Any]) -> Llama3:
    """Only the dictionary's original length counts, 8192 where it has none (rope.py:214-217)."""
    return Llama3(
        factor=number(settings, "factor") or 8.0,
        low_freq_factor=number(settings, "low_freq_factor") or 1.0,
        high_freq_factor=number(settings, "high_freq_factor") or 4.0,
        original_max_position_embeddings=int(settings.get(ORIGINAL, 8192)),
    )


def _v3_yarn(rope: HfRope, settings: Mapping[str, Any], family: Family) -> Yarn | str:
    """rope.py:262-336: the factor that is written counts only where there is no original length."""
    stated = number(rope.text, "max_position_embeddings")
    if stated is None:
        return "it fails on yarn without max_position_embeddings"
    inside = number(settings, ORIGINAL)
    if inside is not None and inside != int(inside):
        return f"it fails on an {ORIGINAL} that isn't whole"
    original = stated if inside is None else inside
    factor = number(settings, "factor") if inside is None else stated / inside
    if factor is None:
        return "it fails on yarn without a factor and an original length"
    betas = [number({"beta": settings.get(key, usual)}, "beta") for key, usual in (("beta_fast", 32), ("beta_slow", 1))]
    fast, slow = betas
    if fast is None or slow is None:
        return "it fails on a beta of null"
    return Yarn(
        factor=factor,
        original_max_position_embeddings=int(original),
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=_v3_temperature(settings, factor, family),
        truncate=bool(settings.get("truncate", True)),
    )


def _v3_temperature(settings: Mapping[str, Any], factor: float, family: Family) -> float:
    """``attention_factor``, else the pair for latent attention alone, else 1 beside a query temperature."""
    stated = number(settings, "attention_factor")
    if stated is not None:
        return stated
    weight, weight_all = number(settings, "mscale"), number(settings, "mscale_all_dim")
    if family.name == "deepseek_v3" and weight and weight_all:
        return mscale(factor, weight) / mscale(factor, weight_all)
    return 1.0 if settings.get("llama_4_scaling_beta") else mscale(factor)


def _v3_longrope(rope: HfRope, settings: Mapping[str, Any]) -> LongRope | str:
    """One list for good, by the stated length; no attention_factor (rope.py:339-359)."""
    original = settings.get(ORIGINAL, rope.text.get(ORIGINAL))
    if type(original) is not int or original < 2:
        return f"its longrope fails without a whole {ORIGINAL}"
    stated = rope.max_position_embeddings
    return one_list(settings, long=stated > original, stated=stated, original=original)


class ExLlamaV2:
    """0.3: the older form alone; yarn's ramp over the stated length; no dynamic."""

    runtime: ClassVar[str] = "exllamav2"
    versions: ClassVar[str] = ">=0.3"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        if family.name not in _V2:
            return Reading(unknown="its code of this family was not read, or takes it for a Llama")
        settings = rope.text.get("rope_scaling") or {}
        longest = stated_length(rope.text, _V2_LENGTH_KEYS, 2048)
        assert longest is not None
        tables = tables_of(rope, lambda group: _v2_table(rope, group, settings, longest))
        if isinstance(tables, str):
            return Reading(problem=tables)
        return Reading(
            tables=tables,
            max_context=longest,
            how=("rope_theta and rope_scaling; the first stated length, over which it places yarn's ramp",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """Its own classes. The config's own max_seq_len stays: another would move yarn's ramp."""
        return (
            f"model = ExLlamaV2(ExLlamaV2Config({source!r})); "
            f"cache = ExLlamaV2Cache(model, max_seq_len={length}, lazy=True); model.load_autosplit(cache)"
        )


def _v2_table(rope: HfRope, group: RopeGroup, settings: Mapping[str, Any], longest: int) -> RopeTable | str:
    assert group.spec is not None
    older, newer = settings.get("type"), settings.get("rope_type")
    if older and newer:
        return "it fails on a rope_scaling with both type and rope_type"
    theta = number(rope.text, "rope_theta")
    partial = number(rope.text, "partial_rotary_factor")
    rotary = int(group.spec.head_dim * (1.0 if partial is None else partial))
    if rotary != group.spec.rotary_dim:
        return _OTHER_PART
    spec = msgspec.structs.replace(group.spec, rope_theta=10000.0 if theta is None else theta)
    match older or newer:
        case "linear":
            return table(spec, Linear(factor=number(settings, "factor") or 1.0))
        case "llama3":
            return _v2_llama3(spec, settings)
        case "yarn":
            return _v2_yarn(spec, settings, longest)
        case "longrope" | "su":
            return _v2_longrope(rope, spec, settings, longest)
        case _:
            # Whatever else is written there is not looked at.
            return table(spec, None)


def _v2_llama3(spec: RopeSpec, settings: Mapping[str, Any]) -> RopeTable | str:
    factor, low, high = (number(settings, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = number(settings, ORIGINAL)
    if factor is None or low is None or high is None or original is None:
        return "it fails on llama3 without all of its keys"
    scaling = Llama3(
        factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=int(original)
    )
    return table(spec, scaling)


def _v2_yarn(spec: RopeSpec, settings: Mapping[str, Any], longest: int) -> RopeTable | str:
    """rope.py:82-148: the length it serves in place of the original one, which only switches it on."""
    factor, original = number(settings, "factor"), number(settings, ORIGINAL)
    if factor is None or original is None:
        return f"it fails on yarn without a factor and an {ORIGINAL}"
    if longest <= original:
        return table(spec, None)
    scaling = Yarn(factor=factor, original_max_position_embeddings=longest)
    return table(spec, with_temperature(scaling, 0.1 * math.log(factor) + 1.0))


def _v2_longrope(rope: HfRope, spec: RopeSpec, settings: Mapping[str, Any], longest: int) -> RopeTable | str:
    original = rope.text.get(ORIGINAL)
    if type(original) is not int or original < 2:
        return f"its longrope fails without a whole {ORIGINAL} at the top level"
    return table(spec, one_list(settings, long=longest > original, stated=longest, original=original))
