"""Wilson's interval, against published values."""

from __future__ import annotations

import math

import pytest

from ctxextend.lab.intervals import QUANTILE, wilson


@pytest.mark.parametrize(
    ("found", "asked", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(found: int, asked: int, low: float, high: float) -> None:
    assert wilson(found, asked) == pytest.approx((low, high), abs=5e-5)


def test_bounds_solve_the_score_equation() -> None:
    # Wilson's own definition: |rate - p| = z sqrt(p (1 - p) / n) at both ends.
    for bound in wilson(7, 10):
        assert abs(0.7 - bound) == pytest.approx(QUANTILE * math.sqrt(bound * (1 - bound) / 10))


def test_none_and_all_end_at_the_edges_and_mirror_each_other() -> None:
    for asked in (1, 7, 10, 33):
        low, high = wilson(0, asked)
        assert low == 0.0
        assert 0 < high < 1
        mirrored = wilson(asked, asked)
        assert mirrored[1] == 1.0
        assert mirrored[0] == pytest.approx(1 - high)


def test_nothing_asked_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
