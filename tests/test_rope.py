"""RoFormer's frequencies, the geometries that can't exist, and the small arithmetic of tables."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.rope import RopeSpec, RopeTable


def spec(**changes: Any) -> RopeSpec:
    return RopeSpec(**{"rope_theta": 10000.0, "head_dim": 8, "rotary_dim": 8, **changes})


def test_frequencies_of_roformer_equation_15() -> None:
    # 10000 ** (-2i/8) for i = 0..3 is 10 ** -i.
    assert spec().inv_freq() == pytest.approx((1.0, 0.1, 0.01, 0.001), rel=1e-14)


def test_another_base_on_the_same_geometry() -> None:
    assert spec().inv_freq(16.0) == pytest.approx((1.0, 0.5, 0.25, 0.125), rel=1e-14)


def test_exponents_of_a_partial_rope_run_over_the_rotated_part() -> None:
    partial = spec(head_dim=32, rotary_dim=8)
    assert partial.exponent_dim == 8
    assert partial.inv_freq() == pytest.approx((1.0, 0.1, 0.01, 0.001), rel=1e-14)


def test_exponents_of_a_proportional_rope_run_over_the_head_and_the_rest_stands_still() -> None:
    proportional = spec(head_dim=8, rotary_dim=4, layout="proportional")
    assert proportional.exponent_dim == 8
    assert proportional.inv_freq() == pytest.approx((1.0, 0.1, 0.0, 0.0), rel=1e-14)


@pytest.mark.parametrize("theta", [1.0, 0.0, -10000.0, math.inf, math.nan])
def test_a_theta_that_cannot_be(theta: float) -> None:
    with pytest.raises(ValueError, match="rope_theta"):
        spec(rope_theta=theta)


@pytest.mark.parametrize("rotary", [0, -2, 1, 7])
def test_a_rotary_dim_that_cannot_be(rotary: int) -> None:
    with pytest.raises(ValueError, match="rotary_dim must be even and positive"):
        spec(rotary_dim=rotary)


def test_a_rotary_dim_above_the_head() -> None:
    with pytest.raises(ValueError, match="rotary_dim 10 is larger than head_dim 8"):
        spec(rotary_dim=10)


@pytest.mark.parametrize(
    ("frequency", "index"), [(1.0, 0.0), (0.1, 1.0), (0.001, 3.0), (10**-1.5, 1.5), (0.0, math.inf)]
)
def test_where_a_frequency_stands(frequency: float, index: float) -> None:
    assert spec().index_of(frequency) == pytest.approx(index, abs=1e-12)


def test_a_proportional_frequency_stands_where_its_exponent_is() -> None:
    assert spec(rotary_dim=4, layout="proportional").index_of(0.1) == pytest.approx(1.0, abs=1e-12)


def test_stretch_is_base_over_new_and_one_where_both_stand_still() -> None:
    table = RopeTable(inv_freq=(1.0, 0.05, 0.0))
    assert table.stretch((1.0, 0.1, 0.0)) == (1.0, 2.0, 1.0)


def test_stretch_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="tables of 2 and 1 pairs"):
        RopeTable(inv_freq=(1.0,)).stretch((1.0, 0.1))


def test_stretch_refuses_to_stop_a_pair() -> None:
    with pytest.raises(ValueError, match="zero has no finite factor"):
        RopeTable(inv_freq=(1.0, 0.0)).stretch((1.0, 0.1))


def test_error_is_the_worst_relative_one_against_the_other() -> None:
    # |0.5 - 0.4| / 0.4 = 0.25 and |1.1 - 1| / 1 = 0.1
    assert RopeTable(inv_freq=(1.1, 0.5, 0.0)).error_against(RopeTable(inv_freq=(1.0, 0.4, 0.0))) == pytest.approx(0.25)


def test_error_is_not_symmetric() -> None:
    assert RopeTable(inv_freq=(0.4,)).error_against(RopeTable(inv_freq=(0.5,))) == pytest.approx(0.2)


@pytest.mark.parametrize("other", [(1.0,), (1.0, 0.0)])
def test_error_is_infinite_against_another_shape_or_a_stopped_pair(other: tuple[float, ...]) -> None:
    assert RopeTable(inv_freq=(1.0, 0.1)).error_against(RopeTable(inv_freq=other)) == math.inf
