"""Bounds, and the worst figure there is for each."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.lab.gates import Measured, held, with_defaults
from ctxextend.lab.names import BOUNDS, RetrievalTask
from ctxextend.lab.results import Curve, Rate, Short


def curve(length: int, ratio: float | None) -> Curve:
    return Curve(length=length, windows=1, whole=20.0, points=(), ratio=ratio)


def rate(kind: RetrievalTask, length: int, found: int, *, depth: float | None = None) -> Rate:
    return Rate(kind=kind, length=length, depth=depth, asked=10, found=found, rate=found / 10, low=0.0, high=1.0)


def short(length: int, **figures: float) -> Short:
    told: dict[str, Any] = {"regression": 0.0, "kl": 0.0, "same_top": 1.0, **figures}
    return Short(length=length, count=10, perplexity=1.0, perplexity_against=1.0, **told)


MEASURED = Measured(
    curves=(curve(8192, None), curve(16384, 1.1), curve(32768, 5.4)),
    rates=(
        rate("passkey", 8192, 10),
        rate("passkey", 16384, 7),
        # A single depth isn't what a bound is held to.
        rate("passkey", 16384, 0, depth=0.1),
        rate("needles", 16384, 5),
    ),
    short=(short(2048, regression=0.01, kl=0.02, same_top=0.99), short(8192, regression=0.07, kl=0.2, same_top=0.8)),
)


@pytest.mark.parametrize(
    ("name", "bound", "measured", "ok", "where"),
    [
        ("perplexity-ratio", 5.5, 5.4, True, "at 32k"),
        ("perplexity-ratio", 5.3, 5.4, False, "at 32k"),
        ("passkey", 0.7, 0.7, True, "at 16k, 7 of 10"),
        ("passkey", 0.8, 0.7, False, "at 16k, 7 of 10"),
        ("needles", 0.6, 0.5, False, "at 16k, 5 of 10"),
        ("short-regression", 0.05, 0.07, False, "at 8k"),
        ("kl", 0.3, 0.2, True, "at 8k"),
        ("same-top", 0.9, 0.8, False, "at 8k"),
    ],
)
def test_a_bound_is_held_to_the_worst_figure(name: str, bound: float, measured: float, ok: bool, where: str) -> None:
    (gate,) = held(MEASURED, {name: bound})
    assert (gate.name, gate.bound, gate.measured, gate.ok, gate.where) == (name, bound, measured, ok, where)


def test_a_bound_that_nothing_was_measured_for_is_missed() -> None:
    (gate,) = held(Measured(curves=(), rates=(), short=()), {"passkey": 0.5})
    assert not gate.ok
    assert gate.measured is None


@pytest.mark.parametrize(("name", "figure"), [("perplexity-ratio", math.nan), ("perplexity-ratio", math.inf)])
def test_a_figure_that_is_no_number_keeps_no_bound(name: str, figure: float) -> None:
    (gate,) = held(Measured(curves=(curve(1024, figure),), rates=(), short=()), {name: 1e9})
    assert not gate.ok


@pytest.mark.parametrize("ratios", [(1.0, math.nan), (math.nan, 1.0)])
def test_a_figure_that_is_no_number_is_the_worst_wherever_it_stands(ratios: tuple[float, float]) -> None:
    measured = Measured(curves=(curve(1024, ratios[0]), curve(2048, ratios[1])), rates=(), short=())
    (gate,) = held(measured, {"perplexity-ratio": 2.0})
    assert not gate.ok


def test_defaults_are_held_to_what_was_measured_alone() -> None:
    bounds = with_defaults(Measured(curves=(curve(1024, 1.1),), rates=(), short=()), {})
    assert bounds == {"perplexity-ratio": BOUNDS["perplexity-ratio"].default}
    assert with_defaults(MEASURED, {"kl": 0.5})["kl"] == 0.5
    assert set(with_defaults(MEASURED, {})) == set(BOUNDS)
