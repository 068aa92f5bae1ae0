"""The charts' own arithmetic, what the SVG may hold, and that the same values give the same bytes."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from ctxextend.errors import MissingExtraError
from ctxextend.lab import charts
from ctxextend.lab.charts import (
    NARROW,
    STYLES,
    VARIABLES,
    WIDE,
    Bar,
    Grid,
    Line,
    Panel,
    bar_chart,
    grid_chart,
    log_ticks,
    position_chart,
    require_matplotlib,
    spectrum_chart,
    to_png,
    to_svg,
)

PANEL = Panel(
    heading="perplexity",
    end=16384.0,
    lines=(
        Line(label="untouched", style=0, points=((4096.0, 28.7), (12288.0, 691.0))),
        Line(label="<b>$x^2$ & more", style=1, points=((4096.0, 29.0), (12288.0, 34.0))),
    ),
    marks=((8192.0, "trained: 8k"),),
)
GRID = Grid(
    rows=("10 %", "all depths"),
    columns=("2k", "12k"),
    shares={(0, 0): 1.0, (0, 1): 0.25, (1, 0): 1.0},
    across="depth",
    divider=1,
    divider_label="trained: 8k",
    total=True,
)
BARS = (
    Bar(label="8k", parts=((15.0, 1), (1.0, 2)), text="16 GiB"),
    Bar(label="128k", parts=((15.0, 1), (16.0, 2)), text="31 GiB"),
)
CHARTS = {
    "positions": partial(position_chart, (PANEL,)),
    "spectrum": partial(spectrum_chart, (PANEL,)),
    "grid": partial(grid_chart, GRID),
    "bars": partial(bar_chart, BARS, parts=(("weights", 1), ("KV cache", 2))),
}
EVERY = pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)


def texts(svg: str) -> list[str]:
    return [found.strip() for found in re.findall(r"<text[^>]*>(.*?)</text>", svg)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.0, 10000.0, [1, 10, 100, 1000, 10000]),
        (20.0, 700.0, [20, 50, 100, 200, 500]),
        (17.0, 50.0, [20, 30, 40, 50]),
        (1.0, 2.0, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]),
        (30.0, 31.0, [30.0, 30.2, 30.4, 30.6, 30.8, 31.0]),
    ],
)
def test_a_log_axis_has_round_ticks(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e9), (5.0, 5.0001), (99.0, 101.0), (6.28, 888888.0)])
def test_a_log_axis_has_some_ticks_and_not_too_many(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)


def test_labels_that_would_meet_are_moved_apart_and_keep_their_order() -> None:
    places = charts._spread([50.0, 52.0, 51.0, 198.0, 199.0], gap=15.0, high=200.0)
    ordered = sorted(places)
    assert all(after - before >= 15.0 for before, after in pairwise(ordered))
    assert places[0] < places[2] < places[1] < places[3] < places[4] <= 200.0


def test_labels_with_room_stay_where_they_belong() -> None:
    assert charts._spread([10.0, 150.0], gap=15.0, high=200.0) == [10.0, 150.0]


@EVERY
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_an_svg_refers_to_nothing_outside_and_takes_the_pages_colours(draw: Any, width: int) -> None:
    svg = to_svg(draw, name="one", width=width, description='says "what" it shows')
    assert "http" not in svg
    assert set(re.findall(r'href="(.)', svg)) <= {"#"}
    assert "font-family" not in svg
    assert 'aria-label="says &quot;what&quot; it shows"' in svg
    assert f'viewBox="0 0 {width} ' in svg
    names = set(re.findall(r"var\(--([a-z0-9-]+)\)", svg))
    assert names
    assert names <= set(VARIABLES.values())
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    # What is referred to is there, and no name stands twice.
    names_of = re.findall(r'\bid="([^"]*)"', svg)
    assert len(names_of) == len(set(names_of))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) <= set(names_of)


@EVERY
def test_the_same_values_give_the_same_bytes(draw: Any) -> None:
    assert to_svg(draw, name="one", width=WIDE, description="") == to_svg(draw, name="one", width=WIDE, description="")
    assert to_png(draw, "A title") == to_png(draw, "A title")


def test_two_drawings_of_a_page_share_no_name() -> None:
    wide, narrow = (to_svg(CHARTS["positions"], name="one", width=width, description="") for width in (WIDE, NARROW))
    assert not set(re.findall(r'\bid="([^"]*)"', wide)) & set(re.findall(r'\bid="([^"]*)"', narrow))


def test_lines_are_labelled_at_their_end_in_text_that_is_escaped() -> None:
    shown = texts(to_svg(CHARTS["positions"], name="one", width=WIDE, description=""))
    assert "untouched" in shown
    assert "trained: 8k" in shown
    assert "&lt;b&gt;$x^2$ &amp; more" in shown


def test_cells_hold_their_numbers_and_a_dash_where_nothing_was_measured() -> None:
    wide = texts(to_svg(CHARTS["grid"], name="one", width=WIDE, description=""))
    assert [cell for cell in wide if cell.endswith("0 %") or cell in ("25 %", charts.NOTHING)] == [
        "10 %", "100 %", "25 %", "100 %", charts.NOTHING,
    ]  # fmt: skip


def test_a_colour_and_a_dash_are_never_shared_by_the_first_thirty_lines() -> None:
    styles = [charts._style(number) for number in range(31)]
    assert len({(colour, str(dash), marker) for colour, dash, marker in styles}) == 31
    assert styles[0] == STYLES[0]
    assert STYLES[0] not in styles[1:]


def test_a_png_is_2000_pixels_wide_and_bears_no_date() -> None:
    png = to_png(CHARTS["bars"], "Memory")
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 2000
    assert b"tIME" not in png
    assert b"Software" not in png


def test_a_name_that_the_font_lacks_is_drawn_without_a_warning() -> None:
    assert to_png(CHARTS["bars"], "模型 \x00 $\\frac$ 🦙").startswith(b"\x89PNG")


def test_nothing_of_matplotlibs_settings_or_figures_is_left_behind() -> None:
    import matplotlib as mpl
    from matplotlib import _pylab_helpers

    before = dict(mpl.rcParams)
    to_png(CHARTS["grid"], "A title")
    assert dict(mpl.rcParams) == before
    assert not _pylab_helpers.Gcf.figs


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError) as error:
        require_matplotlib()
    assert error.value.hint == "pip install 'ctxextend[lab]'"


def test_a_name_of_any_length_leaves_room_for_the_chart() -> None:
    name = "n" * 300
    panel = Panel(heading=name, end=16384.0, lines=(Line(label=name, style=1, points=((1.0, 2.0),)),), marks=())
    grid = Grid(rows=(name,), columns=("2k",), shares={}, across="length", divider=1, divider_label="trained: 8k")
    bar = Bar(label=name, parts=((1.0, 1),), text="+95.7 %, KL 0.61")
    for draw in (
        partial(position_chart, (panel,)),
        partial(spectrum_chart, (panel,)),
        partial(grid_chart, grid),
        partial(bar_chart, (bar,), parts=()),
    ):
        assert "nnn\N{HORIZONTAL ELLIPSIS}" in to_svg(draw, name="one", width=NARROW, description="")
