"""Each scaling's table against the formula of its paper, or numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from ctxextend.rope import RopeSpec
from ctxextend.scaling import (
    Dynamic,
    Linear,
    Llama3,
    LongRope,
    Rebase,
    Scaling,
    Yarn,
    dynamic_theta,
    llama3_smooth,
    longrope_attention_factor,
    mscale,
    ntk_exponent,
    table,
    yarn_ramp,
)
from tests.methods import closed_forms as paper

LLAMA2 = RopeSpec(rope_theta=10000.0, head_dim=128, rotary_dim=128)
LLAMA3 = RopeSpec(rope_theta=500000.0, head_dim=128, rotary_dim=128)
SMALL = RopeSpec(rope_theta=10000.0, head_dim=8, rotary_dim=8)
LATENT = RopeSpec(rope_theta=10000.0, head_dim=64, rotary_dim=64, softmax_mscale=True)
#: Gemma 4's kind: a quarter of the pairs turn, and the exponents run over the whole head.
PROPORTIONAL = RopeSpec(rope_theta=10000.0, head_dim=8, rotary_dim=4, layout="proportional")


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-12)


def test_no_scaling_is_the_plain_rope() -> None:
    found = table(SMALL, None)
    assert found.inv_freq == close((1.0, 0.1, 0.01, 0.001))
    assert (found.attention_factor, found.softmax_factor, found.switches) == (1.0, 1.0, ())


def test_rebase_is_the_plain_rope_of_its_theta() -> None:
    assert table(SMALL, Rebase(rope_theta=16.0)).inv_freq == close((1.0, 0.5, 0.25, 0.125))


def test_linear_divides_every_frequency() -> None:
    assert table(SMALL, Linear(factor=4.0)).inv_freq == close((0.25, 0.025, 0.0025, 0.00025))


def test_linear_of_another_base() -> None:
    assert table(SMALL, Linear(factor=2.0, rope_theta=16.0)).inv_freq == close((0.5, 0.25, 0.125, 0.0625))


def test_linear_leaves_pairs_that_stand_still() -> None:
    assert table(PROPORTIONAL, Linear(factor=2.0)).inv_freq == close((0.5, 0.05, 0.0, 0.0))


def test_dynamic_within_the_trained_length_is_plain() -> None:
    scaling = Dynamic(factor=4.0, original_max_position_embeddings=2048)
    assert table(LLAMA2, scaling, length=1000).inv_freq == close(paper.plain(10000.0, 128))
    assert table(LLAMA2, scaling).inv_freq == close(paper.plain(10000.0, 128))


def test_dynamic_past_it_grows_the_base() -> None:
    # 4 x 4096 / 2048 - 3 = 5
    scaling = Dynamic(factor=4.0, original_max_position_embeddings=2048)
    theta = 10000.0 * 5.0 ** (128 / 126)
    assert dynamic_theta(LLAMA2, scaling, 4096) == close(theta)
    found = table(LLAMA2, scaling, length=4096)
    assert found.inv_freq == close(paper.plain(theta, 128))
    assert found.switches == (2048,)


def test_the_ntk_exponent_slows_the_slowest_pair_by_the_factor() -> None:
    assert ntk_exponent(LLAMA2) == close(128 / 126)
    slowest = LLAMA2.inv_freq(10000.0 * 4.0 ** ntk_exponent(LLAMA2))[-1]
    assert slowest == close(LLAMA2.inv_freq()[-1] / 4.0)


def test_the_ntk_exponent_of_a_proportional_rope_slows_its_slowest_turning_pair() -> None:
    # The slowest turning pair has the exponent -2/8: (theta s^e)^(-1/4) = theta^(-1/4) / s, so e = 4.
    assert ntk_exponent(PROPORTIONAL) == 4.0
    assert PROPORTIONAL.inv_freq(10000.0 * 3.0**4) == close((1.0, 0.1 / 3.0, 0.0, 0.0))


def test_ntk_needs_two_pairs() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        ntk_exponent(RopeSpec(rope_theta=10000.0, head_dim=2, rotary_dim=2))


# YaRN


def test_yarn_bounds_worked_out_by_hand() -> None:
    # 128 ln(4096 / (2 pi 32)) / (2 ln 10000) = 20.94; 128 ln(4096 / (2 pi)) / (2 ln 10000) = 45.03.
    ramp = yarn_ramp(LLAMA2, 4096, beta_fast=32.0, beta_slow=1.0, truncate=True)
    weights = [ramp(f) for f in LLAMA2.inv_freq()]
    assert weights[:21] == pytest.approx([0.0] * 21, abs=1e-12)
    assert weights[21] == pytest.approx(1 / 26)
    assert weights[33] == pytest.approx(0.5)
    assert weights[45] == pytest.approx(25 / 26)
    assert weights[46:] == pytest.approx([1.0] * 18, abs=1e-12)


def test_yarn_without_truncation_keeps_the_fractions() -> None:
    ramp = yarn_ramp(LLAMA2, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False)
    low = 128 * math.log(4096 / (64 * math.pi)) / (2 * math.log(10000))
    high = 128 * math.log(4096 / (2 * math.pi)) / (2 * math.log(10000))
    assert (low, high) == pytest.approx((20.944, 45.027), abs=5e-4)
    assert ramp(LLAMA2.inv_freq()[33]) == pytest.approx((33 - low) / (high - low))


def test_yarn_frequencies_at_both_ends_and_in_the_middle() -> None:
    scaling = Yarn(factor=4.0, original_max_position_embeddings=4096)
    found, base = table(LLAMA2, scaling).inv_freq, LLAMA2.inv_freq()
    assert found[:21] == close(base[:21])
    assert found[33] == close(base[33] * (0.5 + 0.5 / 4.0))
    assert found[46:] == close(tuple(f / 4.0 for f in base[46:]))


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (8.0, 0.5), (64.0, 4.0)])
@pytest.mark.parametrize(("theta", "dim", "context"), [(10000.0, 128, 4096), (1e6, 64, 32768), (500000.0, 96, 8192)])
def test_yarn_against_the_paper(theta: float, dim: int, context: int, fast: float, slow: float, truncate: bool) -> None:
    scaling = Yarn(
        factor=8.0,
        original_max_position_embeddings=context,
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
    )
    spec = RopeSpec(rope_theta=theta, head_dim=dim, rotary_dim=dim)
    expected = paper.yarn(theta, dim, 8.0, context, fast=fast, slow=slow, truncate=truncate)
    assert table(spec, scaling).inv_freq == pytest.approx(expected, rel=1e-10)


def test_yarn_of_a_partial_rope_counts_its_rotated_pairs() -> None:
    spec = RopeSpec(rope_theta=10000.0, head_dim=128, rotary_dim=64)
    scaling = Yarn(factor=4.0, original_max_position_embeddings=4096)
    assert table(spec, scaling).inv_freq == pytest.approx(paper.yarn(10000.0, 64, 4.0, 4096), rel=1e-10)


def test_yarn_bounds_that_meet_make_a_step() -> None:
    # Over 4 tokens no pair turns once: both bounds are clamped to pair 0 and the ramp is a step after it.
    ramp = yarn_ramp(SMALL, 4, beta_fast=32.0, beta_slow=1.0, truncate=True)
    assert [ramp(f) for f in SMALL.inv_freq()] == pytest.approx([0.0, 1.0, 1.0, 1.0], abs=1e-9)


def test_yarn_bounds_are_held_within_the_dimension() -> None:
    # 8 ln(100000 / (2 pi 4000)) / (2 ln 100) = 1.2 and 8 ln(100000 / (2 pi)) / (2 ln 100) = 8.4, above the last of 8.
    spec = RopeSpec(rope_theta=100.0, head_dim=8, rotary_dim=8)
    ramp = yarn_ramp(spec, 100000, beta_fast=4000.0, beta_slow=1.0, truncate=True)
    assert [ramp(f) for f in spec.inv_freq()] == pytest.approx([0.0, 0.0, 1 / 6, 2 / 6], abs=1e-9)


def test_yarn_temperature_of_equation_22() -> None:
    assert mscale(4.0) == close(0.1 * math.log(4.0) + 1.0)
    assert mscale(4.0) == pytest.approx(1.1386294361)
    assert mscale(1.0) == mscale(0.5) == 1.0
    assert table(LLAMA2, Yarn(factor=4.0, original_max_position_embeddings=4096)).attention_factor == close(mscale(4.0))


@pytest.mark.parametrize(
    ("keys", "attention"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"attention_factor": 1.5, "mscale": 1.0, "mscale_all_dim": 0.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        # DeepSeek-V2: (0.1 x 0.707 ln 40 + 1) / (0.1 x 0.707 ln 40 + 1)
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(40) + 1) / (0.1 * math.log(40) + 1)),
        # One of the two alone counts for nothing in transformers, and nor does a zero.
        ({"mscale": 2.0}, 0.1 * math.log(40) + 1),
        ({"mscale_all_dim": 2.0}, 0.1 * math.log(40) + 1),
        ({"mscale": 0.0, "mscale_all_dim": 1.0}, 0.1 * math.log(40) + 1),
    ],
)
def test_yarn_temperature_by_its_keys(keys: dict[str, float], attention: float) -> None:
    scaling = Yarn(factor=40.0, original_max_position_embeddings=4096, **keys)  # type: ignore[arg-type]
    found = table(LLAMA2, scaling)
    assert found.attention_factor == close(attention)
    assert found.softmax_factor == 1.0


@pytest.mark.parametrize("weight", [0.707, 1.0])
def test_latent_attention_takes_the_temperature_into_its_softmax(weight: float) -> None:
    # DeepSeek-V2 and -V3: factor 40 over 4096; scores are multiplied by mscale_all_dim's temperature twice.
    scaling = Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=weight, mscale_all_dim=weight)
    found = table(LATENT, scaling)
    assert found.attention_factor == close(1.0)
    assert found.softmax_factor == close((0.1 * weight * math.log(40.0) + 1.0) ** 2)


def test_latent_attention_without_the_key_has_a_plain_softmax() -> None:
    found = table(LATENT, Yarn(factor=40.0, original_max_position_embeddings=4096))
    assert found.softmax_factor == 1.0
    assert found.attention_factor == close(0.1 * math.log(40.0) + 1.0)


# Llama 3.1


def test_llama_3_1_8b_by_hand() -> None:
    scaling = Llama3(factor=8.0, original_max_position_embeddings=8192)
    found, base = table(LLAMA3, scaling).inv_freq, LLAMA3.inv_freq()
    # Wavelengths 2 pi 500000 ** (i / 64): below 2048 up to pair 28, above 8192 from pair 35.
    assert found[:29] == close(base[:29])
    assert found[35:] == close(tuple(f / 8.0 for f in base[35:]))
    # Pair 29 has a wavelength of 2402 tokens: smooth (8192 / 2402 - 1) / 3 = 0.80, so 0.80 + 0.20 / 8 = 0.828.
    assert 2 * math.pi / base[29] == pytest.approx(2401.8, abs=0.5)
    assert found[29] / base[29] == pytest.approx(0.8282, abs=2e-4)


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (0.5, 8.0), (2.0, 3.0)])
@pytest.mark.parametrize("factor", [2.0, 8.0, 32.0])
def test_llama3_against_its_reference(factor: float, low: float, high: float) -> None:
    scaling = Llama3(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=8192)
    expected = paper.llama3(paper.plain(500000.0, 128), factor, 8192, low=low, high=high)
    found = table(LLAMA3, scaling)
    assert found.inv_freq == close(expected)
    assert found.attention_factor == 1.0


# LongRoPE


def longrope(**changes: Any) -> LongRope:
    default = {
        "short_factor": (1.0, 1.0, 1.0, 1.0),
        "long_factor": (1.0, 2.0, 4.0, 8.0),
        "original_max_position_embeddings": 4096,
        "factor": 32.0,
    }
    return LongRope(**{**default, **changes})


@pytest.mark.parametrize(("length", "long"), [(4096, False), (4097, True), (None, True), (1, False)])
def test_longrope_changes_lists_past_the_original_length(length: int | None, long: bool) -> None:
    found = table(SMALL, longrope(), length=length)
    assert found.inv_freq == close((1.0, 0.05, 0.0025, 0.000125) if long else (1.0, 0.1, 0.01, 0.001))
    assert found.switches == (4096,)


def test_longrope_of_one_list_has_no_switch() -> None:
    assert table(SMALL, longrope(short_factor=(1.0, 2.0, 4.0, 8.0))).switches == ()


def test_longrope_temperature_of_phi_3_128k() -> None:
    # sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5/12)
    assert longrope_attention_factor(32.0, 4096) == close(math.sqrt(17 / 12))
    assert table(SMALL, longrope()).attention_factor == close(math.sqrt(17 / 12))
    assert longrope_attention_factor(1.0, 4096) == longrope_attention_factor(0.5, 4096) == 1.0


def test_longrope_temperature_that_is_stated() -> None:
    assert table(SMALL, longrope(attention_factor=0.9)).attention_factor == 0.9


def test_longrope_softmax_factor_only_in_latent_attention() -> None:
    assert table(SMALL, longrope(mscale_all_dim=1.0)).softmax_factor == 1.0
    pairs = {"short_factor": (1.0,) * 32, "long_factor": (2.0,) * 32, "mscale_all_dim": 0.5}
    expected = (0.05 * math.log(32.0) + 1.0) ** 2
    assert table(LATENT, longrope(**pairs)).softmax_factor == close(expected)


def test_longrope_needs_a_number_a_pair() -> None:
    with pytest.raises(ValueError, match="lists hold 4 numbers, the rope has 64 pairs"):
        table(LLAMA2, longrope())


# Values that can't be


@pytest.mark.parametrize("value", [0.0, -1.0, 1e251, math.inf, math.nan])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Linear(factor=value),
        lambda value: Linear(factor=1.0, rope_theta=value),
        lambda value: Dynamic(factor=value, original_max_position_embeddings=4096),
        lambda value: Yarn(factor=value, original_max_position_embeddings=4096),
        lambda value: Yarn(factor=4.0, original_max_position_embeddings=4096, beta_fast=value),
        lambda value: Yarn(factor=4.0, original_max_position_embeddings=4096, beta_slow=value),
        lambda value: Yarn(factor=4.0, original_max_position_embeddings=4096, attention_factor=value),
        lambda value: Llama3(factor=value, original_max_position_embeddings=4096),
        lambda value: Llama3(factor=2.0, low_freq_factor=value, original_max_position_embeddings=4096),
        lambda value: longrope(factor=value),
        lambda value: longrope(attention_factor=value),
        lambda value: longrope(long_factor=(1.0, 1.0, 1.0, value)),
        lambda value: longrope(short_factor=(value, 1.0, 1.0, 1.0)),
    ],
)
def test_a_number_that_must_be_positive(make: Callable[[float], Scaling], value: float) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        make(value)


@pytest.mark.parametrize("theta", [1.0, 0.0, math.inf, math.nan])
def test_rebase_needs_a_base_above_one(theta: float) -> None:
    with pytest.raises(ValueError, match="above 1"):
        Rebase(rope_theta=theta)


def test_an_original_length_must_be_positive() -> None:
    with pytest.raises(ValueError, match="original"):
        Yarn(factor=4.0, original_max_position_embeddings=0)
    with pytest.raises(ValueError, match="original"):
        Dynamic(factor=4.0, original_max_position_embeddings=0)
    with pytest.raises(ValueError, match="at least 2"):
        longrope(original_max_position_embeddings=1)


def test_llama3_bounds_must_be_in_order() -> None:
    with pytest.raises(ValueError, match=r"high_freq_factor 0\.5 must not be below low_freq_factor 1\.0"):
        Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=0.5, original_max_position_embeddings=8192)


def test_llama3_bounds_that_meet_make_a_step() -> None:
    # Llama 4 Scout: a pair that turns less than once over the original length is divided, any other kept.
    scaling = Llama3(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=8192)
    expected = [f / 16.0 if 8192 * f < 2 * math.pi else f for f in LLAMA3.inv_freq()]
    assert table(LLAMA3, scaling).inv_freq == close(expected)
    # Exactly one turn is kept, and divides nothing by zero: pi radians a token over two tokens.
    assert llama3_smooth(math.pi, 2, factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0) == math.pi


def test_longrope_lists_must_be_as_long_as_each_other() -> None:
    with pytest.raises(ValueError, match="short_factor has 1 numbers, long_factor 4"):
        longrope(short_factor=(1.0,))
