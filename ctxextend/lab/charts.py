"""The five charts of a report, drawn with matplotlib: PNG for model cards, SVG for the page.

Each chart is drawn twice for the page, for a desk and for a telephone, so that its text keeps its size. The SVG's
colours are CSS variables (``--ink``, ``--series-1`` ...), which the page sets for light and dark. Nothing here
touches pyplot or needs a display, and the same values give the same bytes.

The colours are those of Okabe and Ito, darkened where a label of that colour would be too faint on white; dash and
marker tell lines apart as well.
"""

from __future__ import annotations

import functools
import html
import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ctxextend.lab.engines.host import require_modules
from ctxextend.lengths import show_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Widths in pixels: a column of text, and a telephone of 360 pixels less its margins.
WIDE: Final = 720
NARROW: Final = 328

INK: Final = "#1b1f24"
MUTED: Final = "#5b6470"
LINE: Final = "#d9dde3"
SHADE: Final = "#f2f4f8"
SURFACE: Final = "#fefefe"
#: Colour, dash and marker by a line's style number; 0 is the model as it was trained.
STYLES: Final[tuple[tuple[str, Any, str], ...]] = (
    ("#59616b", (0, (1, 1.5)), "x"),
    ("#0072b2", "solid", "o"),
    ("#c4500a", (0, (5, 2)), "s"),
    ("#00795a", (0, (8, 2, 2, 2)), "^"),
    ("#a8457f", (0, (3, 1.5)), "D"),
    ("#8a6100", (0, (6, 1, 1, 1, 1, 1)), "v"),
    ("#3f51b5", (0, (10, 3)), "P"),
)
#: What each colour is called in the page's style sheet.
VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {INK: "ink", MUTED: "muted", LINE: "line", SHADE: "shade", SURFACE: "surface"}
    | {colour: f"series-{number}" for number, (colour, _dash, _marker) in enumerate(STYLES)}
)

#: What stands where nothing was measured.
NOTHING: Final = "\N{EN DASH}"

_KNOWN: Final = "\N{MULTIPLICATION SIGN}\N{EN DASH}\N{HORIZONTAL ELLIPSIS}"
_FONT: Final = 12
_SMALL: Final = 11
#: Room left and right of what has a title, and above it for that.
_PAD: Final = 14
_TITLE: Final = 36
_LONGEST_LABEL: Final = 22
_LONGEST_HEADING: Final = 40


class Line(Struct, frozen=True, kw_only=True):
    """A labelled line of (x, y); ``style`` indexes :data:`STYLES`, round and round."""

    label: str
    style: int
    points: tuple[tuple[float, float], ...]


class Panel(Struct, frozen=True, kw_only=True):
    """Lines over one x axis that ends at ``end``. ``marks``: labelled values on the axis that counts tokens."""

    heading: str
    end: float
    lines: tuple[Line, ...]
    marks: tuple[tuple[float, str], ...]


class Grid(Struct, frozen=True, kw_only=True):
    """A heat map: shares of one by (row, column). ``divider``: so many columns stand before the line labelled
    ``divider_label``; ``total``: the last row sums the others up.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: Mapping[tuple[int, int], float]
    across: str
    divider: int
    divider_label: str
    total: bool = False


class Bar(Struct, frozen=True, kw_only=True):
    """A horizontal bar of one or more (amount, style) end to end, and the text behind it."""

    label: str
    parts: tuple[tuple[float, int], ...]
    text: str


def require_matplotlib() -> None:
    """Raises :class:`MissingExtraError` where the charts can't be drawn."""
    require_modules("matplotlib")


def position_chart(panels: Sequence[Panel], *, width: int, title: str | None = None) -> Figure:
    """Perplexity (log axis) over the position in tokens, one panel above the other."""
    sides = (40, _label_room(panels))
    figure, axes = _stack([250 if width < WIDE else 290] * len(panels), width, title, top=46, sides=sides)
    for ax, panel in zip(axes, panels, strict=True):
        _text(ax, 0.0, 1.0, _short(panel.heading, _LONGEST_HEADING), up=26, aside=-sides[0], weight="bold")
        trained = panel.marks[0][0] if panel.marks else math.inf
        if trained < panel.end:
            ax.axvspan(trained, panel.end, color=SHADE, linewidth=0, zorder=0)
        ax.set_xlim(0, panel.end)
        _token_ticks(ax, panel.end, 4 if width < WIDE else 8)
        _log_axis(ax, [y for line in panel.lines for _x, y in line.points], least=3.0)
        for value, label in panel.marks:
            if value <= panel.end:
                ax.axvline(value, color=MUTED, linewidth=1, zorder=1.5)
                share = value / panel.end
                side = "right" if share > 0.75 else "left" if share < 0.25 else "center"
                _text(
                    ax, value, 1.0, label, up=4, size=_SMALL, colour=MUTED, coords="data axes", align=(side, "bottom")
                )
        _draw_lines(ax, panel.lines, markers=True)
        _text(ax, 1.0, 0.0, "position, tokens", up=-20, size=_SMALL, colour=MUTED, align=("right", "top"))
    return figure


def spectrum_chart(panels: Sequence[Panel], *, width: int, title: str | None = None) -> Figure:
    """Wavelength in tokens (log axis) by pair, fast to slow; ``marks`` are lengths, drawn across."""
    sides = (40, _label_room(panels))
    heights = [(260 if width < WIDE else 310) if panel.marks else 190 for panel in panels]
    figure, axes = _stack(heights, width, title, top=30, sides=sides)
    for ax, panel in zip(axes, panels, strict=True):
        _text(ax, 0.0, 1.0, _short(panel.heading, _LONGEST_HEADING), up=10, aside=-sides[0], weight="bold")
        ax.set_xlim(-0.5, panel.end + 0.5)
        step = max(1, round(panel.end / (4 if width < WIDE else 8)))
        ax.set_xticks(range(0, round(panel.end) + 1, step))
        _log_axis(
            ax, [y for line in panel.lines for _x, y in line.points] + [mark for mark, _label in panel.marks], least=1.3
        )
        marks = sorted(panel.marks)
        for number, (value, label) in enumerate(marks):
            ax.axhline(value, color=MUTED, linewidth=1, zorder=1.5)
            # The lower of two stands under its line, so that near ones do not meet.
            under = number == 0 and len(marks) > 1
            _text(
                ax,
                0.01,
                value,
                label,
                up=-3 if under else 3,
                size=_SMALL,
                colour=MUTED,
                coords="axes data",
                align=("left", "top" if under else "bottom"),
            )
        _draw_lines(ax, panel.lines, markers=False)
        _text(ax, 1.0, 0.0, "pair, fast to slow", up=-20, size=_SMALL, colour=MUTED, align=("right", "top"))
    return figure


def grid_chart(grid: Grid, *, width: int, title: str | None = None) -> Figure:
    """A heat map with the numbers in its cells; what isn't measured has a dash."""
    from matplotlib.patches import Rectangle

    label = max(_width(_short(text)) for text in (*grid.rows, grid.across)) + 12
    cell = min(110.0, (width - label - (4 if title is None else 2 * _PAD)) / len(grid.columns))
    gap = 0.25 if grid.total else 0.0
    high = len(grid.rows) + gap
    divided = 0 < grid.divider <= len(grid.columns)
    top, row = (46 if divided else 24), 32
    figure = _figure(width, round(top + high * row + 8), title)
    spare = width - label - cell * len(grid.columns) - (0 if title is None else 2 * _PAD)
    ax = _axes(figure, label, spare, top, 8, title)
    ax.set_xlim(0, len(grid.columns))
    ax.set_ylim(high, 0)
    ax.set_axis_off()
    for number, name in enumerate(grid.rows):
        y = number + (gap if grid.total and number == len(grid.rows) - 1 else 0.0)
        _text(ax, 0, y + 0.5, _short(name), aside=-10, coords="data data", align=("right", "center"))
        for column in range(len(grid.columns)):
            share = grid.shares.get((number, column))
            _cell(ax, Rectangle((column + 0.03, y + 0.04), 0.94, 0.92), share, percent=cell >= 50)
    for number, name in enumerate(grid.columns):
        _text(ax, number + 0.5, 0, name, up=6, coords="data data", align=("center", "bottom"))
    if divided:
        last = grid.divider == len(grid.columns)
        ax.plot([grid.divider] * 2, [-0.85, high], color=MUTED, linewidth=1, clip_on=False)
        side, aside = ("right", -6) if last or grid.divider * cell > width / 2 else ("left", 6)
        _text(
            ax,
            grid.divider,
            0,
            grid.divider_label,
            size=_SMALL,
            colour=MUTED,
            up=24,
            aside=aside,
            coords="data data",
            align=(side, "bottom"),
        )
    _text(
        ax, 0, 0, grid.across, up=6, aside=-10, size=_SMALL, colour=MUTED, coords="data data", align=("right", "bottom")
    )
    return figure


def bar_chart(bars: Sequence[Bar], *, parts: Sequence[tuple[str, int]], width: int, title: str | None = None) -> Figure:
    """Horizontal bars of stacked parts; ``parts`` names them with their styles, none to leave that out."""
    longest = max(_width(bar.text) for bar in bars) + 12
    label = max(_width(_short(bar.label)) for bar in bars) + 12
    top, row = (30 if parts else 6), 34
    figure = _figure(width, top + row * len(bars) + 6, title)
    ax = _axes(figure, label, longest, top, 6, title)
    ends = [sum(amount for amount, _style in bar.parts) for bar in bars]
    low, high = min(0.0, *ends), max(0.0, *ends)
    ax.set_xlim(low, high if high > low else low + 1.0)
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_axis_off()
    for number, (bar, end) in enumerate(zip(bars, ends, strict=True)):
        start = 0.0
        for amount, style in bar.parts:
            hatch = "////" if style != bar.parts[0][1] else None
            colour = _style(style)[0]
            ax.barh(number, amount, 0.6, left=start, color=colour, edgecolor=SURFACE, linewidth=0.8, hatch=hatch)
            start += amount
        _text(ax, 0.0, number, _short(bar.label), aside=-10, coords="axes data", align=("right", "center"))
        _text(ax, max(end, 0.0), number, bar.text, aside=8, coords="data data", align=("left", "center"))
    ax.plot([0, 0], [-0.5, len(bars) - 0.5], color=MUTED, linewidth=1, zorder=3, clip_on=False)
    aside = 0.0
    for name, style in parts:
        _text(ax, 0.0, 1.0, f"\N{BLACK SQUARE} {name}", aside=aside, up=8, colour=_style(style)[0])
        aside += _width(name) + 36
    return figure


@contextmanager
def _quiet() -> Iterator[None]:
    """Without matplotlib's advice on where its cache should be: a home needn't be writable, or be there at all."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@_quiet()
def to_png(draw: Callable[..., Figure], title: str) -> bytes:
    """A chart on white, 2000 pixels wide, with its title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _settings("png"):
        figure = draw(width=WIDE, title=_drawable(title))
        out = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()


@_quiet()
def to_svg(draw: Callable[..., Figure], *, name: str, width: int, description: str) -> str:
    """A chart as an ``svg`` element for a page, without title; ``description`` is read to those who don't see it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with _settings(f"{name}-{width}"):
        figure = draw(width=width, title=None)
        out = io.BytesIO()
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue().decode(), flags=re.DOTALL)
    drawn = drawn[drawn.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', drawn)
    assert view is not None
    body = drawn[drawn.index(">") + 1 :]
    # A page needs neither the groups' names, which would repeat, nor the font: the text takes the page's.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    body = re.sub(r"\(-?0 [-\d.]+ [-\d.]+\)", "(0)", body).replace(' transform="rotate(0)"', "")
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found.group()), body)
    body = re.sub(r"\s*\n\s*", " ", body)
    kind = "wide" if width == WIDE else "narrow"
    return f'<svg class="{kind}" {view.group()} role="img" aria-label="{html.escape(description)}">{body.strip()}'


def _variable(colour: str) -> str:
    name = VARIABLES.get(colour)
    return colour if name is None else f"var(--{name})"


def _settings(salt: str) -> Any:
    """The settings of matplotlib for one chart, put back afterwards."""
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "text.parse_math": False,
            "text.color": INK,
            "font.family": ["DejaVu Sans"],
            "font.size": _FONT,
            "axes.edgecolor": MUTED,
            "axes.linewidth": 1.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.facecolor": "none",
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.labelsize": _SMALL,
            "ytick.labelsize": _SMALL,
            "ytick.major.size": 0,
            "grid.color": LINE,
            "grid.linewidth": 0.8,
            "hatch.linewidth": 0.8,
            "path.simplify": False,
        }
    )


def _figure(width: int, height: int, title: str | None) -> Figure:
    """``height`` is without the title's. One pixel is a point."""
    from matplotlib.figure import Figure

    height += 0 if title is None else _TITLE + _PAD
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none" if title is None else "white")
    if title is not None:
        figure.text(_PAD / width, 1 - 12 / height, title, ha="left", va="top", fontsize=14, fontweight="bold")
    return figure


def _axes(figure: Figure, left: float, right: float, top: float, bottom: float, title: str | None) -> Axes:
    """Axes with margins in pixels."""
    width, height = figure.get_size_inches() * 72
    if title is not None:
        left, right, top, bottom = left + _PAD, right + _PAD, top + _TITLE, bottom + _PAD
    return figure.add_axes((left / width, bottom / height, (width - left - right) / width, 1 - (top + bottom) / height))


def _stack(
    heights: Sequence[int], width: int, title: str | None, *, top: int, sides: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Axes one above the other, each with ``top`` pixels for its heading, and room for ticks below."""
    figure = _figure(width, sum(heights), title)
    axes = []
    for number in range(len(heights)):
        above, below = sum(heights[:number]), sum(heights[number + 1 :])
        ax = _axes(figure, *sides, top + above, 38 + below, title)
        ax.grid(visible=True, axis="y")
        ax.set_axisbelow(True)
        axes.append(ax)
    return figure, axes


def _text(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    *,
    coords: str = "axes axes",
    aside: float = 0.0,
    up: float = 0.0,
    align: tuple[str, str] = ("left", "bottom"),
    size: int = _FONT,
    colour: str = INK,
    weight: str = "normal",
) -> None:
    """Text ``aside`` and ``up`` pixels from (x, y). ``coords`` says of each whether it is ``data`` or a share of the
    axes; ``align`` where the text's own anchor is.
    """
    across, along = ("data" if coord == "data" else "axes fraction" for coord in coords.split())
    ax.annotate(
        text,
        (x, y),
        xycoords=(across, along),
        xytext=(aside, up),
        textcoords="offset points",
        ha=align[0],
        va=align[1],
        fontsize=size,
        color=colour,
        fontweight=weight,
        annotation_clip=False,
    )


def _draw_lines(ax: Axes, lines: Sequence[Line], *, markers: bool) -> None:
    """The lines, and their labels right of the axes, moved apart where they would meet."""
    ends: list[tuple[float, float, Line]] = []
    for line in lines:
        colour, dash, marker = _style(line.style)
        xs, ys = zip(*line.points, strict=True) if line.points else ((), ())
        ax.plot(
            xs,
            ys,
            color=colour,
            linestyle=dash,
            linewidth=1.8,
            marker=marker if markers else None,
            markersize=5,
            markerfacecolor=SURFACE,
            markeredgecolor=colour,
            markeredgewidth=1.3,
            zorder=3,
            solid_capstyle="round",
        )
        if line.points:
            x, y = ax.transAxes.inverted().transform(ax.transData.transform(line.points[-1]))
            if x < 0.8:
                # It ends before the others: its label stands at its end, not in their margin.
                _text(
                    ax,
                    *line.points[-1],
                    _short(line.label),
                    up=8,
                    colour=colour,
                    coords="data data",
                    align=("center", "bottom"),
                )
            else:
                ends.append((float(x), float(y), line))
    height = float(ax.get_window_extent().height)
    places = _spread([y * height for _x, y, _line in ends], gap=15.0, high=height)
    for (x, y, line), place in zip(ends, places, strict=True):
        at = place / height
        if abs(place - y * height) > 3:
            (joint,) = ax.plot([x + 0.01, 1.0, 1.015], [y, at, at], color=LINE, linewidth=0.8, zorder=1)
            joint.set_transform(ax.transAxes)
            joint.set_clip_on(False)
        _text(ax, 1.0, at, _short(line.label), aside=9, colour=_style(line.style)[0], align=("left", "center"))


def _spread(wanted: Sequence[float], *, gap: float, high: float) -> list[float]:
    """Places as near to the wanted ones as a gap between each two and the ends 0 and ``high`` allow."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [0.0] * len(wanted)
    floor = -math.inf
    for index in order:
        floor = max(wanted[index], floor + gap)
        places[index] = floor
    ceiling = high
    for index in reversed(order):
        ceiling = min(places[index], ceiling)
        places[index] = ceiling
        ceiling -= gap
    return places


def _log_axis(ax: Axes, values: Iterable[float], *, least: float) -> None:
    """A log y axis round the values, with five ticks or so at round numbers.

    ``least``: the ends differ by this factor at least, so that noise on a level line stays small.
    """
    from matplotlib.ticker import NullLocator

    known = [value for value in values if value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    room = max((high / low) ** 0.08, math.sqrt(least * low / high), 1.02)
    low, high = low / room, high * room
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ticks = log_ticks(low, high)
    ax.set_yticks(ticks, [_tick(tick) for tick in ticks])
    ax.yaxis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: 1, 2 and 5 of each decade, thinned or refined to about five."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [digit * 10.0**decade for decade in decades for digit in digits]
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
    ]
    for step in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        size = step * 10.0 ** math.floor(math.log10(low))
        first = math.ceil(low / size)
        choices.append([round(size * number, 10) for number in range(first, min(first + 12, int(high / size) + 1))])
    found: list[float] = []
    for choice in choices:
        found = [tick for tick in choice if low <= tick <= high]
        if len(found) >= 4:
            break
    return found[:: math.ceil(len(found) / 8)] if found else [low]


def _tick(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _token_ticks(ax: Axes, end: float, most: int) -> None:
    """Ticks at multiples of a power of two (or of ten where the length is round in tens)."""
    step = 2.0 ** math.ceil(math.log2(max(end, 2) / most))
    ticks = [step * number for number in range(int(end / step) + 1)]
    ax.set_xticks(ticks, [show_tokens(round(tick)) for tick in ticks])


def _label_room(panels: Iterable[Panel]) -> float:
    return max((_width(_short(line.label)) for panel in panels for line in panel.lines), default=0.0) + 14


@functools.cache
def _width(text: str) -> float:
    """Of a text in the charts' font, in pixels. DejaVu Sans is wide: what the page uses needs no more."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=_FONT, usetex=False).get_extents().width)


def _short(label: str, longest: int = _LONGEST_LABEL) -> str:
    """What fits beside a chart: a plugin's method, or a group of layers, may have any name."""
    label = _drawable(label)
    return label if len(label) <= longest else label[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _drawable(text: str) -> str:
    """What the charts' font has: a name may hold anything."""
    return "".join(
        letter if letter.isprintable() and (letter.isascii() or letter in _KNOWN) else "?" for letter in text
    )


def _style(number: int) -> tuple[str, Any, str]:
    """Style 0 is kept for the model as it was trained; the rest go round, each round with other dashes."""
    if number == 0:
        return STYLES[0]
    turn, place = divmod(number - 1, len(STYLES) - 1)
    _colour, dash, marker = STYLES[1 + (place + turn) % (len(STYLES) - 1)]
    return STYLES[1 + place][0], dash, marker


def _cell(ax: Axes, place: Any, share: float | None, *, percent: bool) -> None:
    """One cell: the deeper the colour, the more was found, and the text still readable on it in light and dark."""
    place.set(facecolor=STYLES[1][0], alpha=None, linewidth=0)
    frame = type(place)(place.get_xy(), place.get_width(), place.get_height(), facecolor="none", edgecolor=LINE)
    if share:
        place.set_alpha(0.08 + 0.47 * share)
        ax.add_patch(place)
    ax.add_patch(frame)
    x, y = place.get_xy()
    text = NOTHING if share is None else f"{100 * share:.0f}" + (" %" if percent else "")
    _text(
        ax,
        x + place.get_width() / 2,
        y + place.get_height() / 2,
        text,
        colour=MUTED if share is None else INK,
        coords="data data",
        align=("center", "center"),
    )
