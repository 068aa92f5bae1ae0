"""Over a scaling that was trained in: the trained table is what is scaled, by hand or by formula."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.methods import METHODS, Base, decode_options
from ctxextend.methods.base import HasVariants
from ctxextend.methods.yarn import YarnOptions
from ctxextend.scaling import Linear, LongRope, Rebase, Yarn, table
from tests.methods import closed_forms as paper
from tests.methods.bases import DEEPSEEK, GEMMA3, GPT_OSS, LLAMA31, PHI3
from tests.methods.test_plain import solve, solved

#: Llama 3.1's trained frequencies: llama3 8x over 8192 on a base of 500000.
TRAINED = paper.llama3(paper.plain(500000.0, 128), 8.0, 8192)


def temperature(factor: float) -> float:
    return 0.1 * math.log(factor) + 1.0


def test_linear_over_llama_3_1_halves_the_trained_table() -> None:
    found = solved("linear", LLAMA31, 262144)
    assert found.inv_freq == pytest.approx([f / 2 for f in TRAINED], rel=1e-12)
    assert found.attention_factor == 1.0
    # Scaling it as if it were plain would start from another table.
    assert found.inv_freq[63] == pytest.approx(500000.0 ** (-126 / 128) / 16)


def test_yarn_over_llama_3_1_ramps_by_wavelength_over_131072() -> None:
    found = solved("yarn", LLAMA31, 524288)
    assert found.inv_freq == pytest.approx(paper.yarn_over(TRAINED, 500000.0, 128, 4.0, 131072), rel=1e-10)
    assert found.attention_factor == pytest.approx(temperature(4.0), rel=1e-12)


def test_ntk_by_parts_over_llama_3_1_has_no_temperature() -> None:
    found = solved("ntk-by-parts", LLAMA31, 524288, beta_fast=16)
    expected = paper.yarn_over(TRAINED, 500000.0, 128, 4.0, 131072, fast=16.0)
    assert found.inv_freq == pytest.approx(expected, rel=1e-10)
    assert found.attention_factor == 1.0


def test_llama3_over_llama_3_1_blends_by_wavelength_over_131072() -> None:
    found = solved("llama3", LLAMA31, 262144)
    assert found.inv_freq == pytest.approx(paper.llama3(TRAINED, 2.0, 131072), rel=1e-12)


def test_ntk_over_llama_3_1_moves_each_trained_pair_as_theta_moves_a_plain_one() -> None:
    ratio = [2.0 ** (128 / 126 * -i / 64) for i in range(64)]
    found = solved("ntk", LLAMA31, 262144)
    assert found.inv_freq == pytest.approx([f * r for f, r in zip(TRAINED, ratio, strict=True)], rel=1e-12)
    assert found.inv_freq[63] == pytest.approx(TRAINED[63] / 2.0, rel=1e-12)


def test_rebase_over_llama_3_1_moves_it_to_the_given_base() -> None:
    ratio = [(1e6 / 500000.0) ** (-i / 64) for i in range(64)]
    found = solved("rebase", LLAMA31, 262144, rope_theta=1e6)
    assert found.inv_freq == pytest.approx([f * r for f, r in zip(TRAINED, ratio, strict=True)], rel=1e-12)


def test_dynamic_over_a_trained_scaling_is_static() -> None:
    # s^2 - s + 1 = 3 at s = 2
    ratio = [3.0 ** (128 / 126 * -i / 64) for i in range(64)]
    found = solved("dynamic", LLAMA31, 262144)
    assert found.inv_freq == pytest.approx([f * r for f, r in zip(TRAINED, ratio, strict=True)], rel=1e-12)
    assert not found.switches


def test_linear_over_gemma_3_multiplies_the_factors_exactly() -> None:
    assert solve("linear", GEMMA3, 262144) == Linear(factor=16.0)
    assert solved("linear", GEMMA3, 262144).inv_freq == pytest.approx(paper.interpolated(1e6, 256, 16.0), rel=1e-12)


def test_ntk_over_gemma_3_keeps_its_factor_and_moves_its_base() -> None:
    scaling = solve("ntk", GEMMA3, 262144)
    assert isinstance(scaling, Linear)
    assert scaling.factor == 8.0
    assert scaling.rope_theta == pytest.approx(1e6 * 2 ** (256 / 254), rel=1e-12)


def test_yarn_over_gemma_3() -> None:
    found = solved("yarn", GEMMA3, 524288)
    expected = paper.yarn_over(paper.interpolated(1e6, 256, 8.0), 1e6, 256, 4.0, 131072)
    assert found.inv_freq == pytest.approx(expected, rel=1e-10)


def test_ntk_over_a_linear_base_of_another_theta() -> None:
    base = Base(spec=GEMMA3.spec, scaling=Linear(factor=8.0, rope_theta=5e5), context=131072)
    ratio = [2.0 ** (256 / 254 * -i / 128) for i in range(128)]
    expected = [f * r for f, r in zip(paper.interpolated(5e5, 256, 8.0), ratio, strict=True)]
    assert solved("ntk", base, 262144).inv_freq == pytest.approx(expected, rel=1e-12)


def test_linear_over_a_rebased_base_starts_from_its_table() -> None:
    base = Base(spec=LLAMA31.spec, scaling=Rebase(rope_theta=1e6), context=131072)
    assert solved("linear", base, 262144).inv_freq == pytest.approx(paper.interpolated(1e6, 128, 2.0), rel=1e-12)


def test_yarn_over_a_trained_yarn_multiplies_the_temperatures() -> None:
    # gpt-oss: yarn 32x over 4096, bounds not rounded
    trained = paper.yarn(150000.0, 64, 32.0, 4096, truncate=False)
    found = solved("yarn", GPT_OSS, 262144)
    assert found.inv_freq == pytest.approx(paper.yarn_over(trained, 150000.0, 64, 2.0, 131072), rel=1e-10)
    assert found.attention_factor == pytest.approx(temperature(32.0) * temperature(2.0), rel=1e-12)


def test_linear_over_a_trained_yarn_keeps_its_temperature() -> None:
    assert solved("linear", GPT_OSS, 262144).attention_factor == pytest.approx(temperature(32.0), rel=1e-12)


def test_yarn_over_latent_attention_multiplies_the_softmax_factors() -> None:
    found = solved("yarn", DEEPSEEK, 327680)
    assert found.attention_factor == pytest.approx(1.0)
    assert found.softmax_factor == pytest.approx((temperature(40.0) * temperature(2.0)) ** 2, rel=1e-12)


def test_yarn_over_latent_attention_with_a_weight_of_its_own() -> None:
    found = solved("yarn", DEEPSEEK, 327680, mscale=0.5, mscale_all_dim=0.5)
    assert found.softmax_factor == pytest.approx((temperature(40.0) * (0.05 * math.log(2) + 1)) ** 2, rel=1e-12)


def test_linear_over_latent_attention_keeps_the_softmax_factor() -> None:
    found = solved("linear", DEEPSEEK, 327680)
    assert found.softmax_factor == pytest.approx(temperature(40.0) ** 2, rel=1e-12)


def test_raising_the_trained_factor_keeps_the_trained_parameters() -> None:
    scaling = solve("yarn", GPT_OSS, 262144, compose="factor")
    assert scaling == Yarn(factor=64.0, original_max_position_embeddings=4096, truncate=False)
    found = table(GPT_OSS.spec, scaling)
    assert found.inv_freq == pytest.approx(paper.yarn(150000.0, 64, 64.0, 4096, truncate=False), rel=1e-10)
    assert found.attention_factor == pytest.approx(temperature(64.0), rel=1e-12)


def test_raising_the_factor_of_deepseek() -> None:
    found = solved("yarn", DEEPSEEK, 327680, compose="factor")
    assert found.softmax_factor == pytest.approx(temperature(80.0) ** 2, rel=1e-12)


def test_raising_the_factor_takes_no_other_parameter() -> None:
    with pytest.raises(ValueError, match="keeps the trained yarn's own parameters"):
        solve("yarn", GPT_OSS, 262144, compose="factor", beta_fast=16)


def variants(base: Base, **options: Any) -> list[str]:
    method = METHODS["yarn"]
    assert isinstance(method, HasVariants)
    found = method.variants(base, decode_options(method, options))
    return [option.compose for option in found if isinstance(option, YarnOptions)]


def test_variants_over_a_trained_yarn_try_the_table_and_then_the_factor() -> None:
    assert variants(GPT_OSS) == ["table", "factor"]


def test_variants_with_parameters_of_ones_own_stay_with_the_table() -> None:
    assert variants(GPT_OSS, beta_fast=16) == ["table"]


@pytest.mark.parametrize("choice", ["table", "factor"])
def test_variants_that_were_settled(choice: str) -> None:
    assert variants(GPT_OSS, compose=choice) == [choice]


def test_variants_without_a_trained_yarn() -> None:
    assert variants(LLAMA31) == ["auto"]


def test_longrope_over_a_trained_longrope_multiplies_the_long_list() -> None:
    # Phi-3-128k: at its trained length of 131072 it uses its long list.
    scaling = solve("longrope", PHI3, 262144, long_factor=[2.0] * 48)
    assert isinstance(scaling, LongRope)
    assert scaling.long_factor == pytest.approx([2.0 * (1.0 + i / 2) for i in range(48)])
    assert scaling.short_factor == pytest.approx([1.0 + i / 2 for i in range(48)])
    assert scaling.original_max_position_embeddings == 131072
    # Trained temperature sqrt(1 + ln 32 / ln 4096) times that of the new step, sqrt(1 + ln 2 / ln 131072).
    found = table(PHI3.spec, scaling)
    assert found.attention_factor == pytest.approx(math.sqrt(17 / 12) * math.sqrt(1 + 1 / 17), rel=1e-12)


def test_linear_over_a_trained_longrope() -> None:
    expected = [f / (1.0 + i / 2) / 2 for i, f in enumerate(paper.plain(10000.0, 96))]
    found = solved("linear", PHI3, 262144)
    assert found.inv_freq == pytest.approx(expected, rel=1e-12)
    assert found.attention_factor == pytest.approx(math.sqrt(17 / 12), rel=1e-12)
    assert not found.switches
