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
from mlx_lm.models import rope_utils
from mlx_lm.models.deepseek_v2 import DeepseekV2YarnRotaryEmbedding
from mlx_lm.utils import _get_classes

from ctxextend.families import FAMILIES, Family
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from ctxextend.runtimes.mlx_lm import MlxLm
from ctxextend.scaling import Yarn, table
from tests.factories import converted, family_config, inspected, planned

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
    DeepseekV2YarnRotaryEmbedding,
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
    ("qwen2_moe", "linear by its older key"),
}
#: What our reader is stricter about than MLX-LM: a spelling that ctxextend never writes.
STRICTER = {("nemotron", "linear by its older key")}
#: Read as sections of positions by a vision model, or by a model type that only its wrapper has.
OTHERWISE = {"qwen2_vl", "qwen2_5_vl", "ministral3", "llama4"}
EVERY = sorted(
    row.name
    for row in FAMILIES.values()
    if row.position == "rope"
    and row.refusal is None
    and row.name not in OTHERWISE
    and not MlxLm().effective({}, row, length=1).absent
)


def source_of(name: str, **changes: Any) -> dict[str, Any]:
    """A family's plain config, with what MLX-LM's model arguments need beside."""
    family = FAMILIES[name]
    needed = {
        "rms_norm_eps": 1e-6,
        "layer_norm_eps": 1e-6,
        "norm_eps": 1e-6,
        "norm_epsilon": 1e-6,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_qkv_bias": False,
        "layer_norm_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "use_parallel_residual": True,
        "hidden_act": "silu",
    }
    base = family_config(family, max_position_embeddings=CONTEXT)
    if family.form == "phi3":
        base["original_max_position_embeddings"] = CONTEXT
    if name == "gpt_neox":
        needed["num_attention_heads"] = 2
    return {**needed, **base, "head_dim": base.get("head_dim", 32), **changes}


def built(config: Mapping[str, Any]) -> nn.Module:
    # Its model files are chosen by model type, and its arguments taken from config.json as it stands.
    model_class, arguments = _get_classes(dict(config))
    return model_class(arguments.from_dict(dict(config)))


def ropes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, ROPES):
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
    config = source_of(name, rope_scaling=SCALINGS[kind])
    if MlxLm().effective(config, family, length=CONTEXT).problem is None:
        agrees(config, family, length=CONTEXT)
        return
    if (name, kind) in SILENT | STRICTER:
        built(config)
        return
    with pytest.raises((TypeError, ValueError, AttributeError, KeyError)):
        loads_and_turns(config)


def loads_and_turns(config: Mapping[str, Any]) -> None:
    for _name, rope in ropes(built(config)):
        rope(mx.zeros((1, 1, 1, 32)), offset=1)


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
