"""Over a plain rope every method is its textbook form, in the textbook's own scaling."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.methods import METHODS, Base, decode_options, extension_factor
from ctxextend.rope import RopeTable
from ctxextend.scaling import Dynamic, Linear, Llama3, LongRope, Rebase, Scaling, Yarn, table
from tests.methods import closed_forms as paper
from tests.methods.bases import LATENT_SPEC, LLAMA2, LLAMA3_SPEC, PARTIAL, PROPORTIONAL


def solve(name: str, base: Base, target: int, **options: Any) -> Scaling:
    method = METHODS[name]
    return method.solve(base, target, decode_options(method, options))


def solved(name: str, base: Base, target: int, **options: Any) -> RopeTable:
    return table(base.spec, solve(name, base, target, **options), length=target)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_linear_is_equation_4(factor: int) -> None:
    target = 4096 * factor
    assert solve("linear", LLAMA2, target) == Linear(factor=float(factor))
    found = solved("linear", LLAMA2, target)
    assert found.inv_freq == pytest.approx(paper.interpolated(10000.0, 128, factor), rel=1e-12)
    assert found.attention_factor == 1.0
    # f(x, m L / L') = f'(x, m): the last position of the target turns as the last trained one did.
    assert found.inv_freq[7] * target == pytest.approx(LLAMA2.table().inv_freq[7] * 4096)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_ntk_is_equation_16(factor: int) -> None:
    scaling = solve("ntk", LLAMA2, 4096 * factor)
    assert isinstance(scaling, Rebase)
    assert scaling.rope_theta == pytest.approx(paper.ntk_theta(10000.0, 128, factor), rel=1e-12)
    assert solved("ntk", LLAMA2, 4096 * factor).inv_freq == pytest.approx(
        paper.plain(10000.0 * factor ** (128 / 126), 128), rel=1e-12
    )


def test_ntk_of_a_partial_rope_takes_the_rotated_dimensions() -> None:
    scaling = solve("ntk", PARTIAL, 4 * 32768)
    assert isinstance(scaling, Rebase)
    assert scaling.rope_theta == pytest.approx(10000.0 * 4 ** (64 / 62), rel=1e-12)


def test_ntk_of_a_proportional_rope_slows_its_slowest_turning_pair_by_the_factor() -> None:
    before, after = PROPORTIONAL.table().inv_freq, solved("ntk", PROPORTIONAL, 4 * 32768).inv_freq
    assert after[0] == 1.0
    assert after[7] == pytest.approx(before[7] / 4.0, rel=1e-12)
    assert after[8:] == before[8:] == (0.0,) * 24


def test_dynamic_reaches_its_static_equal_at_the_target() -> None:
    assert solve("dynamic", LLAMA2, 16384) == Dynamic(factor=4.0, original_max_position_embeddings=4096)
    # s T / L - (s - 1) with T = s L is s^2 - s + 1 = 13.
    expected = paper.plain(10000.0 * 13 ** (128 / 126), 128)
    assert solved("dynamic", LLAMA2, 16384).inv_freq == pytest.approx(expected, rel=1e-12)


def test_yarn_is_equations_17_to_22() -> None:
    assert solve("yarn", LLAMA2, 16384) == Yarn(factor=4.0, original_max_position_embeddings=4096)
    found = solved("yarn", LLAMA2, 16384)
    assert found.inv_freq == pytest.approx(paper.yarn(10000.0, 128, 4.0, 4096), rel=1e-10)
    assert found.attention_factor == pytest.approx(0.1 * math.log(4) + 1, rel=1e-12)


def test_yarn_with_every_parameter() -> None:
    found = solved("yarn", LLAMA2, 16384, beta_fast=16, beta_slow=2, truncate=False, attention_factor=1.25)
    expected = paper.yarn(10000.0, 128, 4.0, 4096, fast=16.0, slow=2.0, truncate=False)
    assert found.inv_freq == pytest.approx(expected, rel=1e-10)
    assert found.attention_factor == 1.25


def test_yarn_with_a_pair_of_weights() -> None:
    found = solved("yarn", LLAMA2, 16384, mscale=1.0, mscale_all_dim=0.5)
    ratio = (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
    assert found.attention_factor == pytest.approx(ratio, rel=1e-12)


def test_yarn_of_latent_attention_puts_its_temperature_into_the_softmax() -> None:
    base = Base(spec=LATENT_SPEC, context=4096)
    found = solved("yarn", base, 4 * 4096)
    assert found.attention_factor == pytest.approx(1.0)
    assert found.softmax_factor == pytest.approx((0.1 * math.log(4) + 1) ** 2, rel=1e-12)


def test_yarn_of_latent_attention_with_a_stated_factor_keeps_its_softmax() -> None:
    found = solved("yarn", Base(spec=LATENT_SPEC, context=4096), 4 * 4096, attention_factor=1.1)
    assert (found.attention_factor, found.softmax_factor) == (1.1, 1.0)


def test_ntk_by_parts_is_yarn_without_its_temperature() -> None:
    found = solved("ntk-by-parts", LLAMA2, 16384)
    assert found.inv_freq == pytest.approx(paper.yarn(10000.0, 128, 4.0, 4096), rel=1e-10)
    assert found.attention_factor == 1.0


def test_ntk_by_parts_on_latent_attention_leaves_the_softmax() -> None:
    found = solved("ntk-by-parts", Base(spec=LATENT_SPEC, context=4096), 16384)
    assert (found.attention_factor, found.softmax_factor) == (1.0, 1.0)


def test_ntk_by_parts_takes_its_bounds() -> None:
    found = solved("ntk-by-parts", LLAMA2, 16384, beta_fast=8, beta_slow=0.5, truncate=False)
    expected = paper.yarn(10000.0, 128, 4.0, 4096, fast=8.0, slow=0.5, truncate=False)
    assert found.inv_freq == pytest.approx(expected, rel=1e-10)


def test_llama3_is_its_reference() -> None:
    base = Base(spec=LLAMA3_SPEC, context=8192)
    assert solve("llama3", base, 65536) == Llama3(factor=8.0, original_max_position_embeddings=8192)
    expected = paper.llama3(paper.plain(500000.0, 128), 8.0, 8192, low=0.5, high=2.0)
    found = solved("llama3", base, 65536, low_freq_factor=0.5, high_freq_factor=2.0)
    assert found.inv_freq == pytest.approx(expected, rel=1e-12)


def test_longrope_divides_each_pair_by_its_own_factor() -> None:
    long = [1.0 + i / 8 for i in range(64)]
    scaling = solve("longrope", LLAMA2, 16384, long_factor=long)
    assert isinstance(scaling, LongRope)
    after = table(LLAMA2.spec, scaling, length=16384)
    assert after.inv_freq == pytest.approx(
        [f / x for f, x in zip(paper.plain(10000.0, 128), long, strict=True)], rel=1e-12
    )
    # sqrt(1 + ln 4 / ln 4096) = sqrt(1 + 1/6)
    assert after.attention_factor == pytest.approx(math.sqrt(7 / 6), rel=1e-12)
    within = table(LLAMA2.spec, scaling, length=4096)
    assert within.inv_freq == pytest.approx(paper.plain(10000.0, 128), rel=1e-12)


def test_longrope_with_a_short_list_and_a_temperature() -> None:
    scaling = solve("longrope", LLAMA2, 16384, long_factor=[4.0] * 64, short_factor=[2.0] * 64, attention_factor=1.125)
    within = table(LLAMA2.spec, scaling, length=4096)
    assert within.inv_freq == pytest.approx(paper.interpolated(10000.0, 128, 2.0), rel=1e-12)
    assert within.attention_factor == 1.125


def test_rebase_writes_the_theta_that_is_given() -> None:
    assert solve("rebase", LLAMA2, 16384, rope_theta=1e6) == Rebase(rope_theta=1e6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("longrope", {}, "needs its factors.*64 numbers"),
        ("longrope", {"long_factor": [2.0] * 63}, "long_factor holds 63 numbers, the rope has 64 pairs"),
        (
            "longrope",
            {"long_factor": [2.0] * 64, "short_factor": [1.0]},
            "short_factor holds 1 numbers, the rope has 64 pairs",
        ),
        ("rebase", {}, "needs the new base"),
        ("yarn", {"compose": "factor"}, "there is none here"),
        ("llama3", {"low_freq_factor": 4.0}, "must be above low_freq_factor"),
        ("yarn", {"beta_fast": -1.0}, "beta_fast must be a positive number"),
    ],
)
def test_what_a_method_refuses(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        solve(name, LLAMA2, 16384, **options)


@pytest.mark.parametrize(("context", "target"), [(163840, 262144), (4096, 131072), (3, 10), (40960, 131071)])
def test_the_factor_never_rounds_the_length_down(context: int, target: int) -> None:
    factor = extension_factor(context, target)
    assert int(context * factor) == target
    assert factor == pytest.approx(target / context, rel=1e-15)


def test_ntk_with_headroom_is_ntk_for_a_longer_target() -> None:
    """Four times with a quarter of headroom: theta * 5 ** (d / (d - 2))."""
    scaling = solve("ntk", LLAMA2, 16384, headroom=1.25)
    assert isinstance(scaling, Rebase)
    assert scaling.rope_theta == pytest.approx(10000.0 * 5.0 ** (128 / 126), rel=1e-12)


@pytest.mark.parametrize("headroom", [0.5, 5.0, float("nan")])
def test_headroom_that_is_none_is_refused(headroom: float) -> None:
    with pytest.raises(ValueError, match="headroom"):
        solve("ntk", LLAMA2, 16384, headroom=headroom)
