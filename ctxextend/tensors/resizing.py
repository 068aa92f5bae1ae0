"""Tables of learned positions with more rows, or fewer: any run of rows is made of a few of the old ones.

Position ``j`` of ``N`` new ones stands at ``j * P / N`` of the ``P`` old ones, as in Position Interpolation (Chen et
al., arXiv 2306.15595, equation 4, there for angles). So the old positions keep their numbers exactly wherever a new
one falls on them: for ``N = k * P``, every k-th row is an old row, bit for bit. Rows past the last old one hold that
one. Aligning both ends instead, at ``j * (P - 1) / (N - 1)``, would keep the first and the last row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ctxextend.changes import ResizeTable

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: Gives rows of the old table as floating numbers, in the order that is asked for.
ReadRows = Callable[["Array"], "Array"]


def resized_rows(read: ReadRows, change: ResizeTable, rows: Array) -> Array:
    """These ``rows`` of the resized table, in the type of the rows that ``read`` gives (float32 or float64).

    The reserved rows, and each row that falls on an old position, are copied. ``linear`` draws a straight line between
    two old rows. ``cubic`` is the spline of Catmull and Rom (1974), the cubic convolution of Keys (1981) with
    a = -1/2, through four of them; a straight line goes on beyond either end, so that straight lines are kept.
    ``tiled`` begins again with the first position after the last.
    """
    import numpy as np

    reserved, old, new = change.reserved, change.rows_before - change.reserved, change.rows - change.reserved
    first = reserved
    positions = np.where(rows < first, 0, rows - first)
    if change.interpolation == "tiled":
        return read(np.where(rows < first, rows, first + positions % old))
    # Whole numbers, so that what falls on an old position is told exactly.
    whole, rest = np.divmod(positions * old, new)
    between = np.where((rows < first) | (whole >= old - 1), 0, rest / new)
    places = np.where(rows < first, rows - first, whole)
    weights, offsets = (_cubic if change.interpolation == "cubic" else _linear)(between, whole, old)
    # Below the first position, places are those of reserved rows, which nothing is added to.
    taps = np.where(between[:, None] == 0, places[:, None], np.clip(places[:, None] + offsets, 0, old - 1))
    wanted, at = np.unique(taps, return_inverse=True)
    table = read(wanted + first)
    at = at.reshape(taps.shape)
    copied = at[:, list(offsets).index(0)]
    found: Array = table[copied]
    made = np.flatnonzero(between)
    if len(made):
        shape = (len(made), *(1,) * (table.ndim - 1))
        total = np.zeros((len(made), *table.shape[1:]), table.dtype)
        # A table may hold what is no number.
        with np.errstate(all="ignore"):
            for number in range(len(offsets)):
                total += weights[made, number].astype(table.dtype).reshape(shape) * table[at[made, number]]
        found[made] = total
    return found


def _linear(between: Array, _whole: Array, _old: int) -> tuple[Array, Array]:
    """The weights of the old rows at these offsets."""
    import numpy as np

    return np.stack((1 - between, between), axis=-1), np.array([0, 1])


def _cubic(between: Array, whole: Array, old: int) -> tuple[Array, Array]:
    import numpy as np

    t = between
    weights = np.stack(
        (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ),
        axis=-1,
    )
    # A row that isn't there, before the first or after the last, lies on the line of the two that are nearest.
    for missing, near, far, ends in ((0, 1, 2, whole == 0), (3, 2, 1, whole >= old - 2)):
        weights[ends, near] += 2 * weights[ends, missing]
        weights[ends, far] -= weights[ends, missing]
        weights[ends, missing] = 0
    return weights, np.array([-1, 0, 1, 2])
