"""Perplexity: by position, by a sliding window, and against the model that another was made of.

A window of ``length`` tokens begins with what the tokenizer puts before a text, which counts towards the length
and is never scored. The position of a prediction is that of the token that makes it, from 0: token i + 1 is
predicted at position i, having seen i + 1 tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ctxextend.errors import RefusedError, UsageError
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.results import (
    Bin,
    Cell,
    Curve,
    Point,
    PositionCell,
    PositionResult,
    Settings,
    Short,
    ShortCell,
    ShortResult,
    Sliding,
    SlidingCell,
    SlidingResult,
)

if TYPE_CHECKING:
    from ctxextend.lab.engines.base import LogProbs

#: Bins are never shorter than this (tokens), and about so many to twice so many a window.
SHORTEST_BIN: Final = 32
BINS: Final = 64


def tokens_of(cell: Cell) -> int:
    """How many tokens a cell has an engine read at most, answers included; what a cache kept comes off this."""
    match cell:
        case ShortCell():
            return 2 * cell.length
        case PositionCell():
            return cell.length + 2 * max(0, cell.length - cell.trained)
        case _:
            return cell.length


# ------------------------------------------------------------------------------------ by position


def position_cells(
    settings: Settings, tokens: Mapping[str, Sequence[int]], *, trained: int
) -> tuple[PositionCell, ...]:
    """A cell for each window: for each length, the first ``settings.windows`` of each document, side by side.

    A length that no document fills has no cell.
    """
    return tuple(
        PositionCell(document=document, length=length, window=window, trained=trained)
        for length in settings.lengths
        for document, window in _windows(tokens, length, settings.windows)
    )


def measure_position(engine: Engine, tokens: Mapping[str, Sequence[int]], cell: PositionCell) -> PositionResult:
    """Reads the window and sums its losses into bins. Raises :class:`RefusedError` where the engine has no losses."""
    window = _read(engine, tokens[cell.document], cell.window * cell.length, cell.length)
    first = _first_scored(engine)
    losses = engine.losses(window, first=first)
    size = bin_size(cell.length)
    bins = []
    for start in range((first - 1) // size * size, cell.length, size):
        end = min(start + size, cell.length)
        # The loss made at position p stands at p - first + 1.
        inside = losses[max(start - first + 1, 0) : end - first + 1]
        if inside:
            bins.append(Bin(start=start, end=end, count=len(inside), nats=math.fsum(inside)))
    return PositionResult(cell=cell, bins=tuple(bins), within=_within(engine, window, cell))


def _within(engine: Engine, window: Sequence[int], cell: PositionCell) -> Bin | None:
    """The losses past the trained length as a model that reads no more than it would have them.

    In pieces of the trained length, of which the second half is scored: what harder text does to the perplexity, it
    does to both.
    """
    size = bin_size(cell.length)
    start, end = -(-cell.trained // size) * size, cell.length - 1
    if start >= end or cell.trained < 2:
        return None
    opening = list(engine.facts.opening)
    half = cell.trained // 2
    before = cell.trained - half - len(opening)
    losses: list[float] = []
    for position in range(start, end, half):
        begin = max(position - before, len(opening))
        piece = [*opening, *window[begin : min(position + half, end) + 1]]
        losses += engine.losses(piece, first=position + 1 - begin + len(opening))
    return Bin(start=start, end=cell.length, count=len(losses), nats=math.fsum(losses))


def bin_size(length: int) -> int:
    """A power of two: a trained length that is one, too, or a multiple of 128 is an edge as far as this allows.

    64 to 128 bins a window from 2048 tokens on.
    """
    return max(SHORTEST_BIN, 1 << max(length // BINS, 1).bit_length() - 1)


def curve(results: Iterable[PositionResult], *, length: int) -> Curve:
    """Pools all windows of ``length``: exp of the mean loss. Raises :class:`UsageError` where there is none.

    Its ratio is over whole bins.
    """
    chosen = [result for result in results if result.cell.length == length]
    counts: defaultdict[tuple[int, int], int] = defaultdict(int)
    sums: defaultdict[tuple[int, int], float] = defaultdict(float)
    for result in chosen:
        for part in result.bins:
            counts[part.start, part.end] += part.count
            sums[part.start, part.end] += part.nats
    edges = sorted(counts)
    if not edges:
        raise _nothing(length)

    def over(chosen_edges: Sequence[tuple[int, int]]) -> float:
        return perplexity_of(sum(sums[edge] for edge in chosen_edges), sum(counts[edge] for edge in chosen_edges))

    again = [result.within for result in chosen if result.within is not None]
    past = [edge for edge in edges if again and edge[0] >= again[0].start]
    within = sum(part.nats for part in again), sum(part.count for part in again)
    return Curve(
        length=length,
        windows=len(chosen),
        whole=over(edges),
        points=tuple(Point(start=edge[0], end=edge[1], count=counts[edge], perplexity=over([edge])) for edge in edges),
        ratio=over(past) / perplexity_of(*within) if again else None,
    )


# --------------------------------------------------------------------------------- sliding window


def sliding_cells(settings: Settings, tokens: Mapping[str, Sequence[int]]) -> tuple[SlidingCell, ...]:
    """The windows that begin at every ``settings.stride`` tokens; at most ``settings.windows`` of a document.

    Where there are more, some evenly spread over the document stand for all of them.
    """
    cells = []
    for length in settings.lengths:
        stride = min(settings.stride, length)
        for document, ids in tokens.items():
            count = (len(ids) - length) // stride + 1 if len(ids) >= length else 0
            chosen = min(count, settings.windows)
            cells += [
                SlidingCell(document=document, length=length, stride=stride, start=index * count // chosen * stride)
                for index in range(chosen)
            ]
    return tuple(cells)


def measure_sliding(engine: Engine, tokens: Mapping[str, Sequence[int]], cell: SlidingCell) -> SlidingResult:
    """The loss of the window's last ``stride`` tokens, of its first window like of every other.

    The method is that of Press et al. (arXiv 2108.12409), as the evaluation of YaRN takes it (arXiv 2309.00071,
    section 4.3.1, S = 256). Its script scores the first window whole and takes the mean of the windows' means, so
    that this window weighs no more than any other. Here it isn't scored whole: its first tokens have seen less
    than ``length - stride`` others, and of few windows it would be most of what is counted. Over the many
    windows of a long document both come to the same.
    """
    window = _read(engine, tokens[cell.document], cell.start, cell.length)
    losses = engine.losses(window, first=max(cell.length - cell.stride, _first_scored(engine)))
    return SlidingResult(cell=cell, count=len(losses), nats=math.fsum(losses))


def sliding(results: Iterable[SlidingResult], *, length: int) -> Sliding:
    """Pools all windows of ``length``. Raises :class:`UsageError` where there is none."""
    chosen = [result for result in results if result.cell.length == length]
    if not chosen:
        raise _nothing(length)
    return Sliding(
        length=length,
        stride=chosen[0].cell.stride,
        windows=len(chosen),
        perplexity=perplexity_of(sum(result.nats for result in chosen), sum(result.count for result in chosen)),
    )


# ---------------------------------------------------------------------------- against the original


def short_cells(settings: Settings, tokens: Mapping[str, Sequence[int]]) -> tuple[ShortCell, ...]:
    """As :func:`position_cells`, at the lengths that the original could do."""
    return tuple(
        ShortCell(document=document, length=length, window=window)
        for length in settings.short_lengths
        for document, window in _windows(tokens, length, settings.windows)
    )


def measure_short(engine: Engine, against: Engine, tokens: Mapping[str, Sequence[int]], cell: ShortCell) -> ShortResult:
    """Both read the same window: their losses, KL(against || engine) and how often both think the same token likeliest.

    Raises :class:`RefusedError` where their distributions are not over the same tokens.
    """
    import numpy as np

    window = _read(engine, tokens[cell.document], cell.window * cell.length, cell.length)
    position = first = _first_scored(engine)
    nats = nats_against = divergence = 0.0
    same = 0
    pairs = _side_by_side(engine.log_probs(window, first=first), against.log_probs(window, first=first))
    for ours, theirs in pairs:
        if ours.shape[1] != theirs.shape[1]:
            raise _unlike("vocabulary", f"{theirs.shape[1]} tokens", f"{ours.shape[1]} tokens")
        rows, targets = np.arange(len(ours)), np.asarray(window[position : position + len(ours)])
        position += len(ours)
        nats -= float(ours[rows, targets].sum(dtype=np.float64))
        nats_against -= float(theirs[rows, targets].sum(dtype=np.float64))
        # A token that the original rules out adds nothing, whatever the model makes of it.
        likely = np.exp(theirs, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            divergence += float(np.where(likely > 0, likely * (theirs - ours), 0.0).sum())
        same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    return ShortResult(
        cell=cell, count=position - first, nats=nats, nats_against=nats_against, kl=divergence, same_top=same
    )


def short(results: Iterable[ShortResult], *, length: int) -> Short:
    """Pools all windows of ``length``. Raises :class:`UsageError` where there is none."""
    chosen = [result for result in results if result.cell.length == length]
    count = sum(result.count for result in chosen)
    if count == 0:
        raise _nothing(length)
    perplexity = perplexity_of(sum(result.nats for result in chosen), count)
    original = perplexity_of(sum(result.nats_against for result in chosen), count)
    return Short(
        length=length,
        count=count,
        perplexity=perplexity,
        perplexity_against=original,
        regression=perplexity / original - 1,
        kl=sum(result.kl for result in chosen) / count,
        same_top=sum(result.same_top for result in chosen) / count,
    )


# ------------------------------------------------------------------------------------------ common


def _windows(tokens: Mapping[str, Sequence[int]], length: int, most: int) -> Iterator[tuple[str, int]]:
    """(document, window number) of the first windows of each document."""
    for document, ids in tokens.items():
        for window in range(min(len(ids) // length, most)):
            yield document, window


def _read(engine: Engine, ids: Sequence[int], start: int, length: int) -> list[int]:
    """``length`` tokens: the opening, then the document's from ``start`` on."""
    opening = engine.facts.opening
    if length <= len(opening) + 1:
        raise UsageError(
            "the length has no room for a text",
            code="bad-number",
            expected=f"more than {len(opening) + 1} tokens",
            found=str(length),
            hint="the tokenizer's own opening counts towards it",
        )
    return [*opening, *ids[start : start + length - len(opening)]]


def _first_scored(engine: Engine) -> int:
    """The first token that has something before it and isn't of the opening."""
    return max(1, len(engine.facts.opening))


def _side_by_side(one: Iterator[LogProbs], other: Iterator[LogProbs]) -> Iterator[tuple[LogProbs, LogProbs]]:
    """Two streams of rows, cut where either is: an engine chooses how many positions it gives at a time."""
    left = next(one, None)
    right = next(other, None)
    while left is not None and right is not None:
        rows = min(len(left), len(right))
        yield left[:rows], right[:rows]
        left = left[rows:] if len(left) > rows else next(one, None)
        right = right[rows:] if len(right) > rows else next(other, None)


def perplexity_of(nats: float, count: int) -> float:
    """exp(mean loss); infinite where a float can't hold it."""
    try:
        return math.exp(nats / count)
    except OverflowError:
        return math.inf


def _nothing(length: int) -> UsageError:
    return UsageError(
        f"nothing was measured at {length} tokens",
        code="nothing-measured",
        hint=f"give a text of at least {length} tokens",
    )


def _unlike(what: str, expected: str, found: str) -> RefusedError:
    return RefusedError(
        f"the two models don't share their {what}, so that their predictions can't be held against each other",
        code="unlike-models",
        expected=expected,
        found=found,
        hint="hold the model against the one that it was made of",
    )
