"""What a GGUF file's keys mean: layers, geometry, and the scaling that the writer had in mind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.formats.gguf_architectures import ARCHITECTURES, UNREAD, WHOLE_HEADS
from ctxextend.formats.gguf_keys import FREQS, LONG, SHORT, UNROTATED, GgufRope, read_rope
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.rope import RopeTable
from ctxextend.scaling import Linear, LongRope, Scaling, Yarn, table
from tests.gguf_factory import gguf
from tests.methods import closed_forms as paper

SMOLLM2 = Path(__file__).resolve().parents[2] / "assets" / "smollm2-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"
YARN: dict[str, Any] = {
    "context_length": 4096,
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 1024,
}
WINDOW: dict[str, Any] = {"attention__sliding_window": 8}
#: YaRN's temperature for a factor of 4 (eq. 22).
TEMPERATURE = 0.1 * math.log(4.0) + 1.0


def only(rope: GgufRope) -> tuple[Scaling | None, RopeTable]:
    (group,) = rope.groups
    assert group.spec is not None
    return group.scaling, table(group.spec, group.scaling)


def test_the_geometry_of_a_plain_file() -> None:
    rope = read_rope(gguf())
    (group,) = rope.groups
    assert (group.label, group.layers, group.scaling, group.window) == (FULL, (0, 1), None, None)
    assert group.spec is not None
    # 64 over 2 heads.
    assert (group.spec.head_dim, group.spec.rotary_dim, group.spec.rope_theta) == (32, 32, 10000.0)
    assert group.spec.pairing == "interleaved"
    assert (rope.context_length, rope.original_context_length, rope.notes) == (1024, None, ())


@pytest.mark.parametrize(
    ("keys", "head_dim", "rotary_dim"),
    [
        ({"attention__key_length": 128}, 128, 128),
        ({"attention__key_length": 128, "rope__dimension_count": 64}, 128, 64),
        ({"rope__dimension_count": 16}, 32, 16),
        ({"attention__head_count": [4, 4]}, 16, 16),
        ({"attention__head_count": GgufValue(type="UINT16", value=4)}, 16, 16),
    ],
)
def test_the_head(keys: dict[str, Any], head_dim: int, rotary_dim: int) -> None:
    spec = read_rope(gguf("phi3", **keys)).groups[0].spec
    assert spec is not None
    assert (spec.head_dim, spec.rotary_dim, spec.pairing) == (head_dim, rotary_dim, "half")


def test_a_base_that_is_missing() -> None:
    spec = read_rope(gguf(rope__freq_base=None)).groups[0].spec
    assert spec is not None
    assert spec.rope_theta == 10000.0


@pytest.mark.parametrize(
    ("architecture", "keys", "labels"),
    [
        # The patterns of the models' own configs: Gemma 3 has five sliding layers and a full one, Gemma 2 every
        # other, gpt-oss likewise, Cohere 2 every fourth full and without a rope, Olmo 3 every fourth full,
        # SmolLM3 every fourth without a rope, Laguna every fourth full from the first on.
        ("gemma3", {"block_count": 7, "attention__sliding_window": 512}, "SSSSSFS"),
        ("gemma3", {"block_count": 7}, "FFFFFFF"),
        ("gemma2", {"block_count": 4}, "SFSF"),
        ("gpt-oss", {"block_count": 4, "attention__sliding_window": 128}, "SFSF"),
        ("cohere2", {"block_count": 5, "attention__sliding_window": 128}, "SSSFS"),
        ("olmo2", {"block_count": 4, "attention__sliding_window": 128}, "SSSF"),
        ("olmo2", {"block_count": 4}, "FFFF"),
        ("smollm3", {"block_count": 5}, "FFFNF"),
        ("llama4", {"block_count": 5}, "SSSNS"),
        ("llama4", {"block_count": 5, "attention__sliding_window": 0}, "FFFFF"),
        ("laguna", {"block_count": 5, "attention__sliding_window": 128}, "FSSSF"),
        ("gemma4", {**WINDOW, "block_count": 3, "attention__sliding_window_pattern": [True, False, True]}, "SFS"),
        ("gemma3", {**WINDOW, "block_count": 4, "attention__sliding_window_pattern": 2}, "SFSF"),
        # A last layer that predicts a further token.
        ("gemma2", {"block_count": 4, "nextn_predict_layers": 1}, "SFSF"),
        ("gemma2", {"block_count": 3, "nextn_predict_layers": 1}, "SFF"),
        ("qwen3", {"block_count": 3, "attention__sliding_window": 128}, "FFF"),
    ],
)
def test_layers(architecture: str, keys: dict[str, Any], labels: str) -> None:
    rope = read_rope(gguf(architecture, **keys))
    letters = {FULL: "F", SLIDING: "S", UNROTATED: "N"}
    found = {layer: letters[group.label] for group in rope.groups for layer in group.layers}
    assert "".join(found[i] for i in range(len(labels))) == labels
    for group in rope.groups:
        assert group.window == (keys.get("attention__sliding_window") if group.label == SLIDING else None)
        without = group.label == UNROTATED or (architecture == "cohere2" and group.label == FULL)
        assert (group.spec is None) == without


def test_sliding_layers_have_a_base_and_a_head_of_their_own() -> None:
    keys: dict[str, Any] = {
        "attention__sliding_window": 512,
        "block_count": 6,
        "rope__freq_base": 1e6,
        "rope__scaling__type": "linear",
        "rope__scaling__factor": 8.0,
    }
    by_label = {group.label: group for group in read_rope(gguf("gemma3", **keys)).groups}
    full, sliding = by_label[FULL], by_label[SLIDING]
    assert full.spec is not None
    assert sliding.spec is not None
    assert (full.spec.rope_theta, full.scaling) == (1e6, Linear(factor=8.0))
    assert (sliding.spec.rope_theta, sliding.scaling) == (10000.0, None)
    own = read_rope(gguf("gemma3", **keys, rope__freq_base_swa=5000.0, rope__dimension_count_swa=16)).groups
    spec = next(group.spec for group in own if group.label == SLIDING)
    assert spec is not None
    assert (spec.rope_theta, spec.rotary_dim) == (5000.0, 16)


def test_latent_attention_has_the_dimensions_of_its_rope() -> None:
    """DeepSeek-V3: keys of 576 numbers, 64 of them rotated; its mscale_all_dim of 1 stands as 0.1."""
    file = gguf(
        "deepseek2",
        attention__key_length=576,
        rope__dimension_count=64,
        rope__scaling__yarn_log_multiplier=0.1,
        **{**YARN, "rope__scaling__factor": 40.0, "context_length": 163840},
    )
    scaling, found = only(read_rope(file))
    assert isinstance(scaling, Yarn)
    assert len(found.inv_freq) == 32
    assert found.attention_factor == pytest.approx(1.0)
    assert found.softmax_factor == pytest.approx((0.1 * math.log(40.0) + 1.0) ** 2, rel=1e-6)


@pytest.mark.parametrize("kind", ["linear", None])
def test_linear(kind: str | None) -> None:
    scaling, _found = only(read_rope(gguf(rope__scaling__type=kind, rope__scaling__factor=4.0)))
    assert scaling == Linear(factor=4.0)
    assert only(read_rope(gguf(rope__scaling__type="none", rope__scaling__factor=4.0)))[0] is None


def test_an_attention_factor_beside_linear() -> None:
    _scaling, found = only(read_rope(gguf(rope__scaling__factor=4.0, rope__scaling__attn_factor=1.25)))
    assert found.inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 4.0))
    assert found.attention_factor == 1.25


@pytest.mark.parametrize(
    ("keys", "changes", "attention"),
    [
        ({}, {}, TEMPERATURE),
        # The converter's spelling of transformers' attention_factor, beta_fast and beta_slow.
        ({"yarn_attn_factor": 1.0}, {}, 1.0),
        ({"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0}, {"beta_fast": 8.0, "beta_slow": 2.0}, TEMPERATURE),
        # The key that works: a multiple of the paper's.
        ({"attn_factor": 0.5}, {}, 0.5 * TEMPERATURE),
        ({"attn_factor": 0.5, "yarn_attn_factor": 1.0}, {}, 0.5 * TEMPERATURE),
    ],
)
def test_yarn(keys: dict[str, float], changes: dict[str, float], attention: float) -> None:
    said: dict[str, Any] = {f"rope__scaling__{key}": number for key, number in keys.items()}
    scaling, found = only(read_rope(gguf(**YARN, **said)))
    assert isinstance(scaling, Yarn)
    expected = {"beta_fast": 32.0, "beta_slow": 1.0, **changes}
    assert (scaling.beta_fast, scaling.beta_slow) == (expected["beta_fast"], expected["beta_slow"])
    assert (scaling.factor, scaling.original_max_position_embeddings) == (4.0, 1024)
    assert found.attention_factor == pytest.approx(attention, rel=1e-6)


def test_yarn_without_its_original_length_is_noted() -> None:
    rope = read_rope(gguf(**{**YARN, "rope__scaling__original_context_length": None}))
    assert [note.code for note in rope.notes] == ["no-original"]
    scaling, _found = only(rope)
    assert isinstance(scaling, Yarn)
    assert scaling.original_max_position_embeddings == 4096


def test_longrope() -> None:
    keys: dict[str, Any] = {
        **YARN,
        "rope__scaling__type": "longrope",
        "rope__scaling__factor": None,
        "rope__scaling__attn_factor": 1.5,
    }
    lists = {LONG: [2.0] * 16, SHORT: [1.0] * 16}
    scaling, _found = only(read_rope(gguf("phi3", factors=lists, **keys)))
    assert scaling == LongRope(
        short_factor=(1.0,) * 16,
        long_factor=(2.0,) * 16,
        original_max_position_embeddings=1024,
        factor=4.0,
        attention_factor=1.5,
    )
    rope = read_rope(gguf(**keys))
    assert [note.code for note in rope.notes] == ["no-lists"]


def test_a_frequency_tensor() -> None:
    """llama3 as the converter writes it: the published formula's factors."""
    plain = paper.plain(10000.0, 32)
    goal = paper.llama3(plain, 4.0, 1024)
    factors = [old / new for old, new in zip(plain, goal, strict=True)]
    scaling, found = only(read_rope(gguf(factors={FREQS: factors})))
    assert isinstance(scaling, LongRope)
    assert found.inv_freq == pytest.approx(goal, rel=1e-6)
    assert (found.attention_factor, found.switches) == (1.0, ())
    # A factor beside it multiplies.
    _scaling, both = only(read_rope(gguf(factors={FREQS: factors}, rope__scaling__factor=2.0)))
    assert both.inv_freq == pytest.approx([f / 2.0 for f in goal], rel=1e-6)


def test_gemma4_says_with_its_tensor_how_much_turns() -> None:
    """Gemma 4's full layers: a quarter of the head turns, with exponents over the whole (proportional)."""
    keys: dict[str, Any] = {
        "block_count": 2,
        "attention__key_length": 64,
        "attention__sliding_window": 8,
        "attention__sliding_window_pattern": [True, False],
    }
    rope = read_rope(gguf("gemma4", factors={FREQS: [1.0] * 8 + [1e30] * 24}, **keys))
    spec = next(group.spec for group in rope.groups if group.label == FULL)
    assert spec is not None
    assert (spec.layout, spec.head_dim, spec.rotary_dim) == ("proportional", 64, 16)
    assert {group.label: group.scaling for group in rope.groups} == {FULL: None, SLIDING: None}


def test_an_alpha_changes_the_base_of_hunyuan() -> None:
    """theta * alpha ** (d / (d - 2)), as HunYuan's own code has it."""
    spec = read_rope(gguf("hunyuan-dense", rope__scaling__alpha=1000.0)).groups[0].spec
    assert spec is not None
    assert spec.rope_theta == pytest.approx(10000.0 * 1000.0 ** (32 / 30), rel=1e-6)
    plain = read_rope(gguf("qwen3", rope__scaling__alpha=1000.0)).groups[0].spec
    assert plain is not None
    assert plain.rope_theta == 10000.0


@pytest.mark.parametrize(
    "keys",
    [
        {"context_length": None},
        {"context_length": "long"},
        {"context_length": 0},
        {"context_length": 0.5},
        {"block_count": None},
        {"block_count": 1 << 30},
        {"attention__head_count": 0},
        {"attention__head_count": None},
        {"attention__head_count": [math.nan, 2.0]},
        {"attention__head_count": [math.inf, 2.0]},
        {"embedding_length": GgufValue(type="UINT32", value="abc")},
        {"context_length": GgufValue(type="FLOAT32", value=None)},
        {"context_length": GgufValue(type="UINT32", value=(1,))},
        {"rope__freq_base": "high"},
        {"rope__freq_base": 0.5},
        {"rope__freq_base": math.inf},
        {"rope__dimension_count": 7},
        {"rope__scaling__type": 3},
        {"rope__scaling__factor": -1.0},
        {**YARN, "rope__scaling__yarn_beta_fast": -1.0},
    ],
)
def test_what_can_not_be_is_an_error(keys: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_rope(gguf(**keys))
    assert caught.value.code == "broken-config"
    assert caught.value.key is not None
    assert caught.value.key.startswith("llama.")


@pytest.mark.parametrize("factors", [{FREQS: [1.0] * 15}, {FREQS: [0.0] * 16}, {FREQS: [math.nan] * 16}])
def test_a_tensor_that_can_not_be_is_an_error(factors: dict[str, list[float]]) -> None:
    with pytest.raises(CheckpointError):
        read_rope(gguf(factors=factors))


def test_a_sliding_pattern_of_another_length() -> None:
    """llama.cpp takes it, and what is missing for not sliding (get_arr fills an array of zeros)."""
    rope = read_rope(gguf("gemma3", **WINDOW, attention__sliding_window_pattern=[True]))
    assert {group.label: group.layers for group in rope.groups} == {SLIDING: (0,), FULL: (1,)}
    assert [note.code for note in rope.notes] == ["layer-pattern"]
    with pytest.raises(CheckpointError):
        read_rope(gguf("gemma4", **WINDOW))
    with pytest.raises(CheckpointError):
        read_rope(gguf("gemma3", **WINDOW, attention__sliding_window_pattern=["all"]))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        read_rope(gguf(rope__scaling__type="dynamic"))
    assert caught.value.code == "unknown-rope-type"


@pytest.mark.parametrize("architecture", ["step35", "mamba", "llama99"])
def test_an_architecture_that_was_not_read_is_refused(architecture: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_rope(gguf(architecture))
    assert caught.value.found == architecture


def test_a_file_without_an_architecture() -> None:
    file = gguf()
    file.values.pop("general.architecture")  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError):
        read_rope(file)


def test_names_are_those_of_the_package() -> None:
    """Every row is an architecture of the gguf package, but for those that are newer than it."""
    from gguf.constants import MODEL_ARCH_NAMES

    known = set(MODEL_ARCH_NAMES.values())
    assert len(known & set(ARCHITECTURES)) > 85
    newer = {"deepseek32", "granite_swa", "hy_v3", "laguna", "hunyuan_vl", "mellum", "nanbeige"}
    assert set(ARCHITECTURES) - known <= newer
    assert not set(ARCHITECTURES) & UNREAD
    assert set(ARCHITECTURES) >= WHOLE_HEADS


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 isn't here: python scripts/fetch_assets.py")
def test_a_published_file() -> None:
    """SmolLM2-135M by its model card: 30 layers, heads of 64, a base of 100000, 8192 tokens."""
    from ctxextend.checkpoint.gguf_file import read_gguf

    header = read_gguf(SMOLLM2).gguf
    assert header is not None
    rope = read_rope(header)
    (group,) = rope.groups
    assert group.spec is not None
    assert (len(group.layers), group.spec.head_dim, group.spec.rope_theta) == (30, 64, 100000.0)
    assert (rope.context_length, group.scaling) == (8192, None)
