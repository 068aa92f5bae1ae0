"""MLX-LM, run on the CPU: what its rope modules do to a vector is what our reader says they do.

The rope of a built model turns a probe at position 1: the angle of pair ``i`` is its inverse frequency,
the length of the result its attention factor. Nothing is read from a module's attributes, and the pairs
are those that the family's row names, so a wrong pairing fails too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import nanochat, rope_utils
from mlx_lm.models.deepseek_v2 import DeepseekV2YarnRotaryEmbedding
from mlx_lm.models.hunyuan_v1_dense import DynamicNTKAlphaRoPE
from mlx_lm.utils import _get_classes

from ctxextend.families import FAMILIES, Family
from ctxextend.families.wrappers import WRAPPERS
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from ctxextend.runtimes.mlx_families import MODEL_TYPES, MODELS
from ctxextend.runtimes.mlx_lm import MlxLm
from ctxextend.scaling import Yarn, table
from tests.factories import converted, family_config, inspected, planned
from tests.methods import closed_forms as paper
from tests.reference.mlx_keys import COMMON, OWN, WRAPPED

#: The angles are float32, as are the base's powers they come from.
FLOAT32 = 1e-5
CONTEXT, TARGET = 4096, 32768
NAMES = ("linear", "ntk", "yarn", "llama3")

FOLLOWS = ("llama", "qwen2", "qwen3", "gemma3", "olmo2", "granite", "smollm3", "mistral", "phi3", "deepseek_v3")
IGNORES = ("mixtral", "glm4", "gemma", "gemma2", "cohere", "phi", "stablelm", "starcoder2", "gpt_neox", "qwen3_moe")

ROPES = (
    nn.RoPE,
    rope_utils.SuScaledRoPE,
    rope_utils.Llama3RoPE,
    rope_utils.YarnRoPE,
    rope_utils.DynamicNTKScalingRoPE,
    rope_utils.ProportionalRoPE,
    DeepseekV2YarnRotaryEmbedding,
    DynamicNTKAlphaRoPE,
)

SCALINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "linear by its older key": {"type": "linear", "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "factor": 8.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": CONTEXT},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    },
}
#: What our reader calls unread although it loads: it is silently plain, or taken for another type.
SILENT = {
    *(("deepseek_v2", kind) for kind in ("linear", "linear by its older key", "dynamic", "llama3")),
    *(("glm", kind) for kind in SCALINGS),
    *(("mellum", kind) for kind in ("linear", "linear by its older key")),
    *(("minicpm3", kind) for kind in SCALINGS if kind != "none"),
    ("qwen2_moe", "linear by its older key"),
}
#: What our reader is stricter about than MLX-LM: a spelling that ctxextend never writes.
STRICTER = {("nemotron", "linear by its older key")}
#: Tested by themselves: a shape of config of their own, and a rope that isn't a module.
OTHERWISE = {"llama4", "nanochat"}
EVERY = sorted(name for name in MODELS if name in FAMILIES and name not in OTHERWISE)
#: What a model's arguments, or building it, raise for a config that they can't take.
REFUSED = (TypeError, ValueError, AttributeError, KeyError)


def source_of(name: str, **changes: Any) -> dict[str, Any]:
    """A family's plain config, with what MLX-LM's model arguments need beside."""
    family = FAMILIES[name]
    base = family_config(family, max_position_embeddings=CONTEXT)
    if family.form == "phi3":
        base["original_max_position_embeddings"] = CONTEXT
    return {**COMMON, **base, "head_dim": base.get("head_dim", 32), **OWN.get(name, {}), **changes}


def scaled(name: str, scaling: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """A family's config with a scaling where its model looks for one, in its wrapper if it needs one."""
    model, family = MODELS[name], FAMILIES[name]
    text = source_of(name, **changes)
    settings = {**(scaling or {"rope_type": "default"}), "rope_theta": text.get("rope_theta", 12345.0)}
    if model.needs_in_newer:
        settings = {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": CONTEXT, **settings}
    if model.form == "newer":
        text = {**text, "rope_parameters": settings}
        text.pop("rope_scaling", None)
    elif model.form == "by_layer":
        windowed = {"rope_type": "default", "rope_theta": 10000.0}
        text["rope_parameters"] = {"full_attention": settings, "sliding_attention": windowed}
    elif scaling is not None or "rope_scaling" not in text:
        text["rope_scaling"] = scaling
    outer = WRAPPED.get(name)
    if outer is None:
        return text
    text["model_type"] = family.model_types[-1]
    return {"model_type": outer, "vocab_size": text["vocab_size"], "text_config": text}


def built(config: Mapping[str, Any]) -> nn.Module:
    # Its model files are chosen by model type, and its arguments taken from config.json as it stands.
    model_class, arguments = _get_classes(dict(config))
    return model_class(arguments.from_dict(dict(config)))


def ropes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        # The indexer of sparse attention picks keys, it doesn't attend: its rope has pairs of its own.
        if isinstance(module, ROPES) and "index" not in name:
            yield name, module


def turned(rope: Any, pairs: int, head_dim: int, *, interleaved: bool) -> RopeTable:
    """The table that a rope module applies, from what it does to (1, 0) in every pair at position 1."""
    first = [2 * i if interleaved else i for i in range(pairs)]
    second = [2 * i + 1 if interleaved else i + pairs for i in range(pairs)]
    probe = [0.0] * head_dim
    for index in first:
        probe[index] = 1.0
    result = rope(mx.array(probe).reshape(1, 1, 1, head_dim), offset=1).reshape(head_dim).tolist()
    lengths = {round(math.hypot(result[a], result[b]), 5) for a, b in zip(first, second, strict=True)}
    assert len(lengths) == 1, "one attention factor for all pairs"
    return RopeTable(
        inv_freq=tuple(math.atan2(result[b], result[a]) for a, b in zip(first, second, strict=True)),
        attention_factor=lengths.pop(),
    )


def layer_of(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def agrees(config: Mapping[str, Any], family: Family, *, length: int = TARGET) -> dict[str, RopeTable]:
    """Every layer's rope is what our reader says, which is returned."""
    reading = MlxLm().effective(config, family, length=length)
    assert reading.problem is None
    groups = {
        group.label: group
        for group in inspected({k: v for k, v in config.items() if k != "ctxextend"}, base="trained").groups
    }
    label_of = {layer: label for label, group in groups.items() for layer in group.layers}
    found = list(ropes(built(config)))
    assert found
    for name, module in found:
        label = label_of[layer_of(name)]
        if label not in reading.tables:
            continue  # Cohere 2 makes a rope for layers that never call it
        expected, spec = reading.tables[label], groups[label].spec
        assert spec is not None
        result = turned(module, len(expected.inv_freq), spec.head_dim, interleaved=spec.pairing == "interleaved")
        assert result.inv_freq == pytest.approx(expected.inv_freq, rel=FLOAT32), name
        assert result.attention_factor == pytest.approx(expected.attention_factor, abs=2e-5), name
    return dict(reading.tables)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("name", FOLLOWS)
def test_a_family_that_follows_the_config(name: str, method: str) -> None:
    family = FAMILIES[name]
    config = source_of(name)
    plan = planned(config, Recipe(method=method, target=TARGET, runtimes=("mlx-lm",), allow=("unreadable",)))
    edited = converted(config, plan)
    if MlxLm().effective(edited, family, length=TARGET).problem is not None:
        pytest.fail(f"{method} was written in a form that MLX-LM can't read")
    tables = agrees(edited, family)
    for group in plan.groups:
        if group.after is not None:
            assert tables[group.label].error_against(group.after.table) < FLOAT32


@pytest.mark.parametrize("name", [*FOLLOWS, *IGNORES])
def test_a_plain_rope(name: str) -> None:
    agrees(source_of(name), FAMILIES[name], length=CONTEXT)


@pytest.mark.parametrize("name", IGNORES)
def test_a_family_that_ignores_scaling(name: str) -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    config = source_of(name, rope_scaling=scaling)
    tables = agrees(config, FAMILIES[name])
    plain = inspected(source_of(name)).groups[0]
    assert plain.spec is not None
    assert tables[plain.label].inv_freq == pytest.approx(plain.spec.inv_freq())


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("name", EVERY)
def test_any_scaling_in_any_family(name: str, kind: str) -> None:
    family = FAMILIES[name]
    # With the length not raised, so that dynamic does something; at which it does nothing, seen at position 1.
    config = scaled(name, SCALINGS[kind])
    reading = MlxLm().effective(config, family, length=CONTEXT)
    assert reading.unknown is None
    if reading.problem is None:
        agrees(config, family, length=CONTEXT)
        return
    if (name, kind) in SILENT | STRICTER:
        built(config)
        return
    with pytest.raises(REFUSED):
        loads_and_turns(config)


@pytest.mark.parametrize("name", EVERY)
def test_longrope_in_any_family(name: str) -> None:
    """Its long list turns half-split pairs, whatever the model's pairs are: a reading or a refusal."""
    family = FAMILIES[name]
    group = next(group for group in inspected(scaled(name, None), base="trained").groups if group.spec is not None)
    assert group.spec is not None
    lists = [1.0 + i for i in range(len(group.spec.inv_freq()))]
    scaling = {
        "type": "longrope",
        "rope_type": "longrope",
        "short_factor": [1.0] * len(lists),
        "long_factor": lists,
        "factor": 8.0,
        "original_max_position_embeddings": CONTEXT,
    }
    changes = {"original_max_position_embeddings": CONTEXT} if family.form == "phi3" else {}
    config = scaled(name, scaling, max_position_embeddings=TARGET, **changes)
    reading = MlxLm().effective(config, family, length=TARGET)
    if reading.tables:
        agrees(config, family)
    else:
        assert reading.problem is not None


@pytest.mark.parametrize("name", EVERY)
def test_a_key_that_a_model_cant_do_without(name: str) -> None:
    model, family = MODELS[name], FAMILIES[name]
    for key in model.needs:
        config = scaled(name, None)
        config.get("text_config", config).pop(key, None)
        assert key in (MlxLm().effective(config, family, length=CONTEXT).problem or ""), key
        if name in ("laguna", "mistral4"):
            built(config)  # a plain rope of another base; Mistral 4's fails on its first token
            continue
        with pytest.raises(REFUSED):
            loads_and_turns(config)


@pytest.mark.parametrize("name", EVERY)
def test_the_base_that_a_model_takes_where_config_json_has_none(name: str) -> None:
    model, family = MODELS[name], FAMILIES[name]
    config = scaled(name, None)
    text = config.get("text_config", config)
    for settings in (text, *(value for value in (text.get("rope_parameters") or {},) if isinstance(value, dict))):
        settings.pop("rope_theta", None)
    if MlxLm().effective(config, family, length=CONTEXT).tables:
        agrees(config, family, length=CONTEXT)
    else:
        assert model.needs or model.broken or model.form == "older_first" or name == "deepseek_v2"


@pytest.mark.parametrize("name", EVERY)
def test_the_newer_form_alone_in_any_family(name: str) -> None:
    """Where a model reads it the reading has it, and where it falls back to a default base as well."""
    family = FAMILIES[name]
    if MODELS[name].form in ("newer", "by_layer"):
        pytest.skip("test_any_scaling_in_any_family has them in this form")
    config = scaled(name, None)
    text = config.get("text_config", config)
    text.pop("rope_theta", None)
    text["rope_scaling"] = None
    text["rope_parameters"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0}
    if family.form == "nested":
        windowed = {"rope_type": "default", "rope_theta": 10000.0}
        text["rope_parameters"] = {"full_attention": text["rope_parameters"], "sliding_attention": windowed}
    if MlxLm().effective(config, family, length=CONTEXT).tables:
        agrees(config, family, length=CONTEXT)
        return
    if name == "glm":
        return
    with pytest.raises(REFUSED):
        loads_and_turns(config)


def test_a_share_of_the_head_that_is_missing() -> None:
    """phi.py takes 0.4 of a head where config.json says nothing, transformers half of it."""
    config = source_of("phi")
    del config["partial_rotary_factor"]
    found = agrees(config, FAMILIES["phi"])["full_attention"]
    assert found.inv_freq == pytest.approx(paper.plain(10000.0, 12), rel=1e-9)


@pytest.mark.parametrize(("kind", "original"), [("yarn", 4096), ("llama3", 8192)])
def test_an_original_length_that_is_missing(kind: str, original: int) -> None:
    """A constant of rope_utils.py stands in for it, not the config's own length, and not a top level's key."""
    stated = dict(SCALINGS[kind] or {})
    del stated["original_max_position_embeddings"]
    config = source_of("llama", rope_scaling=stated, max_position_embeddings=TARGET)
    config["original_max_position_embeddings"] = 1024
    found = agrees(config, FAMILIES["llama"])["full_attention"]
    plain = paper.plain(10000.0, 32)
    expected = {"yarn": paper.yarn(10000.0, 32, 8.0, original), "llama3": paper.llama3(plain, 8.0, original)}
    assert found.inv_freq == pytest.approx(expected[kind], rel=1e-9)


def test_the_model_types_are_those_that_it_has_a_file_for() -> None:
    rotary = [row for row in FAMILIES.values() if row.position == "rope" and row.refusal is None]
    known = {name for row in rotary for name in row.model_types}
    # Olmo's file ends the process where a package of another publisher isn't installed.
    for name in (known | set(WRAPPERS)) - {"olmo"}:
        try:
            _get_classes({"model_type": name})
        except ValueError:
            assert name not in MODEL_TYPES, name
        else:
            assert name in MODEL_TYPES, name


def test_a_wrapper_without_a_file_has_no_model() -> None:
    text = source_of("llama")
    for outer, absent in (("llava", False), ("idefics3", True), ("llava_next", True)):
        config = {"model_type": outer, "text_config": text}
        assert MlxLm().effective(config, FAMILIES["llama"], length=CONTEXT).absent is absent


def test_nanochat_turns_backwards_by_the_same_table() -> None:
    """Its rope is a function, over negated frequencies, as transformers' rotate_half has flipped signs."""
    config = source_of("nanochat", rope_scaling=SCALINGS["linear"])
    reading = MlxLm().effective(config, FAMILIES["nanochat"], length=CONTEXT).tables["full_attention"]
    (frequencies,) = {
        tuple(module._rope_freqs.tolist())
        for name, module in built(config).named_modules()
        if name.endswith("attn") and hasattr(module, "_rope_freqs")
    }
    probe = mx.array([1.0] * 16 + [0.0] * 16).reshape(1, 1, 1, 32)
    result = nanochat.apply_rotary_emb(probe, offset=1, freqs=mx.array(frequencies)).reshape(32).tolist()
    turned_by = [math.atan2(result[i + 16], result[i]) for i in range(16)]
    assert turned_by == pytest.approx([-f for f in reading.inv_freq], rel=FLOAT32)


def loads_and_turns(config: Mapping[str, Any]) -> None:
    for _name, rope in ropes(built(config)):
        rope(mx.zeros((1, 1, 1, 256)), offset=1)


@pytest.mark.parametrize("scaling", [None, SCALINGS["llama3"], SCALINGS["linear"]])
def test_llama_4(scaling: dict[str, Any] | None) -> None:
    text = source_of("llama4", rope_scaling=scaling, no_rope_layers=[1, 1, 1, 0], use_qk_norm=True)
    agrees({"model_type": "llama4", "text_config": text}, FAMILIES["llama4"], length=CONTEXT)
    del text["rope_scaling"]
    missing = {"model_type": "llama4", "text_config": text}
    assert MlxLm().effective(missing, FAMILIES["llama4"], length=CONTEXT).problem is not None
    with pytest.raises(TypeError, match="rope_scaling"):
        built(missing)


def test_ministral_3_reads_the_newer_form_alone() -> None:
    family = FAMILIES["ministral3"]
    older = source_of("ministral3", max_position_embeddings=262144)
    assert MlxLm().effective(older, family, length=CONTEXT).problem is not None
    with pytest.raises(TypeError):
        built(older)
    plan = planned(older, Recipe(method="yarn", target=524288, runtimes=("transformers",)))
    tables = agrees(converted(older, plan), family, length=524288)
    assert plan.groups[0].after is not None
    assert tables["full_attention"].error_against(plan.groups[0].after.table) < FLOAT32


def test_gpt_oss_reads_its_yarn_and_always_rounds() -> None:
    scaling = {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
    config = source_of("gpt_oss", rope_theta=150000.0, rope_scaling=scaling, max_position_embeddings=131072)
    tables = agrees(config, FAMILIES["gpt_oss"], length=131072)
    spec = inspected(config).groups[0].spec
    assert spec is not None
    rounded = table(spec, Yarn(factor=32.0, original_max_position_embeddings=4096))
    exact = table(spec, Yarn(factor=32.0, original_max_position_embeddings=4096, truncate=False))
    found = tables["full_attention"]
    assert found.error_against(rounded) < FLOAT32 < found.error_against(exact)


def test_the_newer_form_alone_falls_back_to_a_default_theta() -> None:
    newer = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0}
    config = source_of("llama", rope_parameters=newer)
    del config["rope_theta"]
    tables = agrees(config, FAMILIES["llama"])
    assert tables["full_attention"].inv_freq[-1] == pytest.approx(10000.0 ** (-30 / 32))


def test_qwen3_reads_the_newer_form_where_there_is_no_older() -> None:
    newer = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0}
    config = source_of("qwen3", rope_parameters=newer)
    del config["rope_theta"]
    try:
        tables = agrees(config, FAMILIES["qwen3"])
    except TypeError:
        pytest.skip("its arguments need rope_theta")
    assert tables["full_attention"].inv_freq[-1] == pytest.approx(500000.0 ** (-30 / 32) / 8)


@pytest.mark.parametrize(
    ("keys", "attention"),
    [
        ({}, 0.1 * math.log(8) + 1),
        ({"attention_factor": 1.0}, 0.1 * math.log(8) + 1),
        ({"mscale": 2.0}, 0.2 * math.log(8) + 1),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"truncate": False}, 0.1 * math.log(8) + 1),
    ],
)
def test_the_temperature_of_yarn(keys: dict[str, Any], attention: float) -> None:
    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": CONTEXT, **keys}
    config = source_of("llama", rope_scaling=scaling, max_position_embeddings=TARGET)
    assert agrees(config, FAMILIES["llama"])["full_attention"].attention_factor == pytest.approx(attention)


def test_longrope_always_takes_the_long_list_and_its_temperature_from_the_lengths() -> None:
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 16,
        "long_factor": [1.0 + i for i in range(16)],
        "original_max_position_embeddings": CONTEXT,
        "attention_factor": 1.5,
    }
    config = source_of("llama", rope_scaling=scaling, max_position_embeddings=TARGET)
    found = agrees(config, FAMILIES["llama"], length=CONTEXT)["full_attention"]
    # sqrt(1 + ln 8 / ln 4096) = sqrt(1 + 1/4)
    assert found.attention_factor == pytest.approx(math.sqrt(1.25))
    assert found.inv_freq[1] == pytest.approx(10000.0 ** (-2 / 32) / 2)


def test_dynamic_follows_the_length() -> None:
    config = source_of("llama", rope_scaling={"rope_type": "dynamic", "factor": 8.0})
    _name, module = next(iter(ropes(built(config))))
    reading = MlxLm().effective(config, FAMILIES["llama"], length=TARGET).tables["full_attention"]
    probe = mx.array([1.0] * 16 + [0.0] * 16).reshape(1, 1, 1, 32)
    result = module(probe, offset=TARGET - 1).reshape(32).tolist()
    for i in range(4, 16):
        angle = (TARGET - 1) * reading.inv_freq[i]
        # The angle is the position times a float32 frequency: its rounding grows with it.
        assert result[i] == pytest.approx(math.cos(angle), abs=1e-6 * angle + 1e-5)
        assert result[i + 16] == pytest.approx(math.sin(angle), abs=1e-6 * angle + 1e-5)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_latent_attention_scales_its_softmax(weight: float) -> None:
    scaling = {
        "type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": CONTEXT,
        "mscale": weight,
        "mscale_all_dim": weight,
    }
    config = source_of("deepseek_v3", rope_scaling=scaling, max_position_embeddings=TARGET)
    expected = agrees(config, FAMILIES["deepseek_v3"])["full_attention"].softmax_factor
    assert expected == pytest.approx((0.1 * weight * math.log(8) + 1) ** 2)
    scales = {
        float(module.scale)
        for name, module in built(config).named_modules()
        if name.endswith("self_attn") and hasattr(module, "scale")
    }
    assert sorted(scales) == pytest.approx([expected / math.sqrt(48)])
