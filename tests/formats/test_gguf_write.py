"""Writing a planned scaling into GGUF keys: what is chosen, what is taken away, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ctxextend.contents import Gguf
from ctxextend.errors import RefusedError
from ctxextend.formats.gguf_architectures import ARCHITECTURES
from ctxextend.formats.gguf_keys import FREQS, LONG, SHORT, read_rope
from ctxextend.formats.gguf_write import applied, encodings
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.gguf_encoding import ChosenGguf, choose_gguf
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Dynamic, Linear, Llama3, LongRope, Rebase, Scaling, Yarn, table
from tests.gguf_factory import gguf
from tests.methods import closed_forms as paper

LENGTH, TARGET = 1024, 4096
TEMPERATURE = 0.1 * math.log(4.0) + 1.0
YARN = Yarn(factor=4.0, original_max_position_embeddings=LENGTH)
LLAMA3 = Llama3(factor=4.0, original_max_position_embeddings=LENGTH)
LISTS = tuple(1.0 + i / 2.0 for i in range(16))


def specs_of(file: Gguf) -> dict[str, RopeSpec]:
    return {group.label: group.spec for group in read_rope(file).groups if group.spec is not None}


def choose(file: Gguf, scaling: Scaling, labels: Sequence[str] | None = None) -> ChosenGguf:
    """The choice for a scaling of some groups (all, or those named), the others staying plain."""
    specs = specs_of(file)
    scalings = {label: scaling for label in specs if labels is None or label in labels}
    planned = {label: table(spec, scalings.get(label), length=TARGET) for label, spec in specs.items()}
    candidates = encodings(file, read_rope(file), specs, scalings, target=TARGET)
    return choose_gguf(file, candidates, planned, target=TARGET)


def refused(file: Gguf, scaling: Scaling, labels: Sequence[str] | None = None) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        choose(file, scaling, labels)
    return caught.value


def said(chosen: ChosenGguf, architecture: str = "llama") -> dict[str, Any]:
    """The keys that are set, without those that every encoding sets alike."""
    usual = ("context_length", "rope.freq_base", "rope.scaling.original_context_length")
    short = {key.removeprefix(f"{architecture}."): value.value for key, value in chosen.encoding.keys.items()}
    assert short["context_length"] == TARGET
    assert short["rope.scaling.original_context_length"] == LENGTH
    return {key.removeprefix("rope.scaling."): value for key, value in short.items() if key not in usual}


ANY = pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3", "gpt-oss", "exaone"])


@ANY
def test_linear(architecture: str) -> None:
    chosen = choose(gguf(architecture), Linear(factor=4.0))
    assert chosen.encoding.name == "native"
    keys = said(chosen, architecture)
    assert (keys["type"], keys["factor"]) == ("linear", 4.0)
    assert chosen.reading.tables[FULL].inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 4.0))
    assert chosen.reading.max_context == TARGET


@ANY
def test_a_base(architecture: str) -> None:
    theta = paper.ntk_theta(10000.0, 32, 4.0)
    chosen = choose(gguf(architecture), Rebase(rope_theta=theta))
    assert chosen.encoding.name == "theta"
    assert chosen.encoding.keys[f"{architecture}.rope.freq_base"].value == pytest.approx(theta, rel=1e-7)
    assert "type" not in said(chosen, architecture)
    assert chosen.reading.tables[FULL].inv_freq == pytest.approx(paper.plain(theta, 32), rel=1e-6)


def test_dynamic_becomes_the_base_that_it_reaches() -> None:
    """theta * (s * n / L - (s - 1)) ** (d / (d - 2)) with n the target: 16 - 3 = 13."""
    chosen = choose(gguf("qwen3"), Dynamic(factor=4.0, original_max_position_embeddings=LENGTH))
    found = chosen.encoding.keys["qwen3.rope.freq_base"].value
    assert found == pytest.approx(10000.0 * 13.0 ** (32 / 30), rel=1e-6)


@ANY
@pytest.mark.parametrize("attention", [None, 1.0, 1.3])
def test_yarn(architecture: str, attention: float | None) -> None:
    yarn = Yarn(factor=4.0, original_max_position_embeddings=LENGTH, attention_factor=attention)
    chosen = choose(gguf(architecture), yarn)
    assert chosen.encoding.name == "native"
    keys = said(chosen, architecture)
    assert (keys["type"], keys["factor"]) == ("yarn", 4.0)
    multiplier = None if attention is None else pytest.approx(attention / TEMPERATURE, rel=1e-6)
    assert keys.get("attn_factor") == multiplier
    found = chosen.reading.tables[FULL]
    assert found.inv_freq == pytest.approx(paper.yarn(10000.0, 32, 4.0, LENGTH), rel=1e-6)
    assert found.attention_factor == pytest.approx(attention or TEMPERATURE, rel=1e-6)


def test_other_betas_of_the_same_ratio_are_another_original_length() -> None:
    yarn = Yarn(factor=4.0, original_max_position_embeddings=LENGTH, beta_fast=16.0, beta_slow=0.5)
    chosen = choose(gguf("qwen3"), yarn)
    assert chosen.encoding.name == "native with another original length"
    assert chosen.encoding.keys["qwen3.rope.scaling.original_context_length"].value == 2 * LENGTH


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3,
        Yarn(factor=4.0, original_max_position_embeddings=LENGTH, beta_fast=8.0),
        Yarn(factor=4.0, original_max_position_embeddings=LENGTH, truncate=False, attention_factor=1.25),
        LongRope(
            short_factor=LISTS,
            long_factor=LISTS,
            factor=4.0,
            original_max_position_embeddings=LENGTH,
            attention_factor=1.5,
        ),
    ],
)
def test_any_other_table_needs_a_tensor(scaling: Scaling) -> None:
    """Exact where the architecture loads one, else refused with the nearest form's distance."""
    goal = table(RopeSpec(rope_theta=10000.0, head_dim=32, rotary_dim=32), scaling, length=TARGET)
    chosen = choose(gguf("llama"), scaling)
    assert chosen.encoding.name == "rope_freqs"
    plain = paper.plain(10000.0, 32)
    expected = [old / new for old, new in zip(plain, goal.inv_freq, strict=True)]
    assert chosen.encoding.tensors[FREQS] == pytest.approx(expected, rel=1e-6)
    keys = said(chosen)
    assert not {"type", "factor"} & set(keys)
    assert keys.get("attn_factor", 1.0) == pytest.approx(goal.attention_factor, rel=1e-6)
    assert choose(gguf("phi3"), scaling).encoding.name == "equal lists"
    error = refused(gguf("qwen3"), scaling)
    assert error.exit_code == 3
    assert error.code == ("unreadable" if isinstance(scaling, Yarn) else "unwritable")


def test_a_refusal_says_how_near_the_nearest_form_comes() -> None:
    """YaRN with other betas on qwen3: the built-in ramp is off by what the two papers' tables differ."""
    error = refused(gguf("qwen3"), Yarn(factor=4.0, original_max_position_embeddings=LENGTH, beta_fast=8.0))
    mine, goal = paper.yarn(10000.0, 32, 4.0, LENGTH), paper.yarn(10000.0, 32, 4.0, LENGTH, fast=8.0)
    worst = max(abs(a - b) / b for a, b in zip(mine, goal, strict=True))
    assert error.found is not None
    assert f"off by {100 * worst:.3g} % at most" in error.found
    assert "attention factor" not in error.found


def test_longrope_with_two_lists() -> None:
    longrope = LongRope(
        short_factor=(1.0,) * 16,
        long_factor=LISTS,
        factor=4.0,
        original_max_position_embeddings=LENGTH,
        attention_factor=1.5,
    )
    for architecture in ("llama", "phi3"):
        chosen = choose(gguf(architecture), longrope)
        assert chosen.encoding.name == "longrope"
        assert said(chosen, architecture) == {"type": "longrope", "attn_factor": 1.5}
        assert set(chosen.encoding.tensors) == {LONG, SHORT}
        assert chosen.reading.tables[FULL].switches == (LENGTH,)
    assert refused(gguf("qwen3"), longrope).code == "unwritable"


def test_what_is_dead_or_contradicts_goes() -> None:
    stale: dict[str, Any] = {
        "rope__scaling__type": "longrope",
        "rope__scaling__factor": 4.0,
        "rope__scale_linear": 2.0,
        "rope__scaling__attn_factor": 1.1,
        "rope__scaling__yarn_attn_factor": 1.0,
        "rope__scaling__yarn_beta_fast": 8.0,
        "rope__scaling__yarn_ext_factor": 1.0,
    }
    file = gguf("llama", factors={LONG: LISTS, SHORT: LISTS}, **stale)
    plain = gguf("llama")
    specs = specs_of(plain)
    (candidate, *_rest) = encodings(file, read_rope(plain), specs, {FULL: YARN}, target=TARGET)
    after = applied(file, candidate.edits)
    names = {key.removeprefix("llama.rope.") for key in after.values if "rope" in key}
    assert names == {"freq_base", "scaling.type", "scaling.factor", "scaling.original_context_length"}
    assert after.factors == {}
    assert set(candidate.removed_tensors) == {LONG, SHORT}
    chosen = choose_gguf(file, [candidate], {FULL: table(specs[FULL], YARN)}, target=TARGET)
    assert chosen.encoding is candidate


def test_sliding_layers_keep_their_rope() -> None:
    """gemma3 has keys for it; in gpt-oss and gemma2 the factor reaches every layer, so that it is refused."""
    window: dict[str, Any] = {"attention__sliding_window": 512, "block_count": 6}
    chosen = choose(gguf("gemma3", **window, rope__freq_base=1e6), Linear(factor=4.0), [FULL])
    assert chosen.encoding.keys["gemma3.rope.freq_base_swa"].value == 10000.0
    assert chosen.reading.tables[SLIDING].inv_freq == pytest.approx(paper.plain(10000.0, 32))
    rebased = choose(gguf("gemma2", **window), Rebase(rope_theta=50000.0), [FULL])
    assert rebased.encoding.keys["gemma2.rope.freq_base_swa"].value == 10000.0
    assert rebased.reading.tables[SLIDING].inv_freq == pytest.approx(paper.plain(10000.0, 32))
    error = refused(gguf("gemma2", **window), Linear(factor=4.0), [FULL])
    assert error.found is not None
    assert "sliding_attention: frequencies off by 75 % at most" in error.found


def test_a_temperature_reaches_the_sliding_layers_of_gemma3() -> None:
    window: dict[str, Any] = {"attention__sliding_window": 512, "block_count": 6}
    assert choose(gguf("gemma3", **window), YARN, [FULL]).encoding.name == "native"
    own = Yarn(factor=4.0, original_max_position_embeddings=LENGTH, attention_factor=1.0)
    error = refused(gguf("gemma3", **window), own, [FULL])
    assert error.found is not None
    assert f"attention factor {1.0 / TEMPERATURE:.5g} instead of 1" in error.found
    # olmo2's sliding layers have none of it.
    assert choose(gguf("olmo2", **window), own, [FULL]).encoding.name == "native"


def test_gemma3_always_says_its_type() -> None:
    """Else Ollama would add a factor of 8."""
    chosen = choose(gguf("gemma3"), Rebase(rope_theta=50000.0))
    assert said(chosen, "gemma3") == {"type": "linear", "factor": 1.0}


@pytest.mark.parametrize("architecture", ["deepseek2", "deepseek32", "mistral4"])
@pytest.mark.parametrize(
    "yarn",
    [
        Yarn(factor=4.0, original_max_position_embeddings=LENGTH, mscale=1.0, mscale_all_dim=1.0),
        Yarn(factor=4.0, original_max_position_embeddings=LENGTH, mscale=0.707, mscale_all_dim=0.707),
        Yarn(factor=4.0, original_max_position_embeddings=LENGTH, mscale=1.0, mscale_all_dim=0.5),
        YARN,
    ],
)
def test_the_temperature_of_latent_attention(architecture: str, yarn: Yarn) -> None:
    file = gguf(architecture, rope__dimension_count=64, attention__key_length=576)
    chosen = choose(file, yarn)
    assert chosen.encoding.name == "native"
    found = chosen.reading.tables[FULL]
    weight, weight_all = yarn.mscale, yarn.mscale_all_dim
    # DeepSeek's own code: m(mscale) / m(mscale_all_dim) on cos and sin, m(mscale_all_dim) squared on the softmax.
    expected = (0.1 * (1.0 if weight is None else weight) * math.log(4.0) + 1.0) / (
        0.1 * (weight_all or 0.0) * math.log(4.0) + 1.0
    )
    assert found.attention_factor == pytest.approx(expected, rel=1e-6)
    assert found.softmax_factor == pytest.approx((0.1 * (weight_all or 0.0) * math.log(4.0) + 1.0) ** 2, rel=1e-6)


def test_the_weight_of_deepseek_v3_is_the_converters() -> None:
    """The converter writes 0.1 * mscale_all_dim, and nothing else, for DeepSeek-V3's pair of ones."""
    yarn = Yarn(factor=40.0, original_max_position_embeddings=LENGTH, mscale=1.0, mscale_all_dim=1.0)
    chosen = choose(gguf("deepseek2", rope__dimension_count=64, attention__key_length=576), yarn)
    keys = said(chosen, "deepseek2")
    assert keys["yarn_log_multiplier"] == pytest.approx(0.1, rel=1e-6)
    assert "attn_factor" not in keys


def test_mistral3_writes_its_betas_and_keeps_its_original_length() -> None:
    yarn = Yarn(factor=4.0, original_max_position_embeddings=LENGTH, beta_fast=8.0, beta_slow=2.0)
    keys = said(choose(gguf("mistral3"), yarn), "mistral3")
    assert (keys["yarn_beta_fast"], keys["yarn_beta_slow"]) == (8.0, 2.0)
    # Queries are scaled by position over it: no encoding may move it.
    file = gguf("mistral3", attention__temperature_scale=0.1)
    moved = Yarn(factor=4.0, original_max_position_embeddings=512)
    assert choose(file, moved).encoding.name == "rope_freqs"
    chosen = choose(file, Linear(factor=4.0))
    assert chosen.encoding.keys["mistral3.rope.scaling.original_context_length"].value == LENGTH


def test_gemma4_keeps_the_tensor_that_it_needs() -> None:
    keys: dict[str, Any] = {
        "block_count": 2,
        "attention__key_length": 64,
        "attention__sliding_window": 8,
        "attention__sliding_window_pattern": [True, False],
        "rope__freq_base": 1e6,
    }
    file = gguf("gemma4", factors={FREQS: [1.0] * 8 + [1e30] * 24}, **keys)
    chosen = choose(file, Rebase(rope_theta=4e6), [FULL])
    assert chosen.encoding.name == "theta"
    assert chosen.encoding.tensors[FREQS] == file.factors[FREQS]
    # Any table of the turning pairs fits the tensor; the others stand still.
    scaling = LongRope(
        short_factor=(2.0,) * 32,
        long_factor=(2.0,) * 32,
        factor=1.0,
        original_max_position_embeddings=LENGTH,
        attention_factor=1.0,
    )
    carried = choose(file, scaling, [FULL])
    assert carried.encoding.tensors[FREQS] == pytest.approx([2.0] * 8 + [1e30] * 24)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_any_architecture_is_answered(architecture: str) -> None:
    """A form that reads as planned, or a refusal: never another table. Keys alone carry linear, theta and yarn."""
    sliding = ARCHITECTURES[architecture].sliding
    file = gguf(
        architecture,
        factors={FREQS: [1.0] * 16} if architecture == "gemma4" else None,
        attention__sliding_window=512,
        attention__sliding_window_pattern=[sliding.alone, sliding.alone] if sliding else None,
    )
    scalings: Mapping[str, Scaling] = {"linear": Linear(factor=4.0), "theta": Rebase(rope_theta=50000.0), "yarn": YARN}
    for name, scaling in scalings.items():
        # glm-dsa tempers its softmax under any factor, and reads no key that says how much.
        if architecture == "glm-dsa" and name != "theta":
            assert refused(file, scaling).code == "unreadable"
            continue
        chosen = choose(file, scaling)
        for label, spec in specs_of(file).items():
            goal = table(spec, scaling, length=TARGET)
            assert chosen.reading.tables[label].error_against(goal) < 1e-5
            assert chosen.reading.tables[label].attention_factor == pytest.approx(goal.attention_factor, rel=1e-5)
            assert chosen.reading.tables[label].softmax_factor == pytest.approx(goal.softmax_factor, rel=1e-5)
    tensor = ARCHITECTURES[architecture].factors not in ("none", "ignored")
    if tensor:
        assert choose(file, LLAMA3).encoding.tensors
    else:
        assert refused(file, LLAMA3).code == "unwritable"


@pytest.mark.parametrize(
    "scaling",
    [Rebase(rope_theta=1e308), Yarn(factor=1e200, original_max_position_embeddings=LENGTH), Linear(factor=1e200)],
)
def test_numbers_that_single_precision_cannot_hold_have_no_form(scaling: Scaling) -> None:
    """The largest single is about 3.4e38: no key and no tensor says these, in no architecture."""
    for architecture in ("llama", "qwen3", "phi3"):
        file = gguf(architecture)
        found = list(encodings(file, read_rope(file), specs_of(file), {FULL: scaling}, target=TARGET))
        assert [encoding.name for encoding in found if encoding.name in ("native", "theta")] == []
