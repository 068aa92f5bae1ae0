"""The compact pages of ``eval`` and ``compare``: what they say, in 80 columns."""

from __future__ import annotations

import io
import math
import re

import msgspec
import pytest
from rich.console import Console, RenderableType

from ctxextend.cli.evidence_pages import comparison_page, evaluation_page
from ctxextend.lab.results import Sliding
from tests.lab import evidence_factory as factory

CROSS = "\N{MULTIPLICATION SIGN}"


def shown(page: RenderableType, *, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(page)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def row(lines: list[str], start: str) -> list[str]:
    """The cells of the first line that begins so."""
    return re.split(r"\s{2,}", next(line for line in lines if line.startswith(start)))


def test_an_evaluation_tells_perplexity_by_position_with_the_trained_length_marked() -> None:
    lines = shown(evaluation_page(factory.evaluation()))
    rule = "\N{BOX DRAWINGS LIGHT VERTICAL}"
    assert row(lines, "read ") == [
        "read", "2k", "4k", "6k", "8k", rule, "10k", "12k", "14k", "16k", "past/within",
    ]  # fmt: skip
    assert row(lines, "16k ") == [
        "16k", "29.0", "24.0", "25.0", "36.0", rule, "35.0", "25.0", "26.0", "34.0", "1.172",
    ]  # fmt: skip


def test_an_evaluation_tells_rates_by_depth_gates_and_cost() -> None:
    lines = shown(evaluation_page(factory.evaluation()))
    assert row(lines, "passkey 12k") == ["passkey 12k", "75", "50", "25", "100", "100", "70 %", "50-90"]
    assert row(lines, "needles 12k") == ["needles 12k", "37.5 %", "19-100"]
    assert row(lines, "passkey  ") == ["passkey", "missed", "0.7", "at least 0.9", "12288 tokens, all depths"]
    assert row(lines, "kl ") == ["kl", "-", "at most 0.1", "nothing was measured"]
    assert "1 of 4 gates missed." in lines
    assert "cost  1.204M tokens in 1 h 2 min, 323.3 tokens/s, peak 3.0 GiB" in lines


def test_short_contexts_and_sliding_windows_have_their_rows() -> None:
    sliding = Sliding(length=16384, stride=256, windows=9, perplexity=27.31)
    lines = shown(evaluation_page(factory.evaluation(sliding=(sliding,))))
    assert row(lines, "16k               ") == ["16k", "256", "9", "27.3"]
    assert any(
        re.split(r"\s{2,}", line.strip()) == ["8k", "27.9", "25.8", "+8.14 %", "0.043", "94 %"] for line in lines
    )


def test_a_comparison_has_one_row_a_method_and_names_what_to_ship() -> None:
    lines = shown(comparison_page(factory.comparison()))
    assert row(lines, "untouched")[-5:] == ["31.9", "39.3", "175", "691", "24.1"]
    passkeys = [line for line in lines if line.startswith(f"ntk 2{CROSS}") and "90 %" in line]
    assert [re.split(r"\s{2,}", line) for line in passkeys] == [[f"ntk 2{CROSS}", "100 %", "90 %", "45 %"]]
    whole = " ".join(line.strip() for line in lines)
    assert f"for 16k  yarn 2{CROSS}: the lowest perplexity past 8192 tokens (29.8)" in whole
    assert "not measured: longrope needs its factors" in whole


def test_stretches_without_points_are_told_with_the_next() -> None:
    # Points of 4096 tokens have no middle in (0, 2048) or (4096, 6144).
    curve = factory.curve((30.0, 31.0, 32.0, 33.0))
    lines = shown(evaluation_page(factory.evaluation(curves=(curve,))))
    assert row(lines, "read ")[1:3] == ["4k", "8k"]
    assert row(lines, "16k ")[1:3] == ["30.0", "31.0"]


@pytest.mark.parametrize("trained", [256, 8192, 131072])
def test_a_million_tokens_and_perplexities_without_end_fit_in_80_columns(trained: int) -> None:
    curve = factory.curve([1e12, math.inf, *[123456.0] * 62], length=1 << 20, trained=trained)
    document = factory.evaluation(curves=(curve,), trained_context=trained)
    lines = shown(evaluation_page(document))
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line]


def test_names_are_text_and_not_markup() -> None:
    name = "[red]x[/] [link=http://evil.example]y[/link]"
    made = factory.comparison(source=name, notes=(name,))
    best = msgspec.structs.replace(made.best[0], reason=name, method="[bold]m")
    lines = shown(comparison_page(msgspec.structs.replace(made, best=(best,))), width=200)
    assert sum(name in line for line in lines) == 3
    assert any("[bold]m" in line for line in lines)
    assert any(name in line for line in shown(evaluation_page(factory.evaluation(source=name)), width=200))


def test_nothing_measured_is_a_page_all_the_same() -> None:
    empty = factory.evaluation(curves=(), rates=(), short=(), gates=(), notes=())
    assert shown(evaluation_page(empty))[-1].startswith("cost")
    assert shown(comparison_page(factory.comparison(candidates=(), best=())))[-1].startswith("cost")


def test_the_rule_stands_at_the_trained_length_even_where_no_point_does() -> None:
    # One point of 16384 tokens has its middle at 8192: past the trained length.
    lines = shown(evaluation_page(factory.evaluation(curves=(factory.curve((30.0,)),))))
    assert row(lines, "read ")[1:4] == ["8k", "\N{BOX DRAWINGS LIGHT VERTICAL}", "16k"]


def test_the_untouched_model_at_two_lengths_is_told_apart() -> None:
    first = factory.comparison().candidates[0]
    twice = (first, msgspec.structs.replace(first, target=16384))
    lines = shown(comparison_page(factory.comparison(candidates=twice)))
    assert row(lines, "untouched to 8k")
    assert row(lines, "untouched to 16k")


def test_what_was_read_to_the_trained_length_and_no_further_has_no_rule() -> None:
    lines = shown(evaluation_page(factory.evaluation(curves=(factory.curve((30.0, 31.0, 32.0, 33.0), length=8192),))))
    assert row(lines, "read ") == ["read", "2k", "4k", "6k", "8k", "past/within"]
    assert row(lines, "8k ") == ["8k", "30.0", "31.0", "32.0", "33.0"]
