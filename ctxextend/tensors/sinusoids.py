"""Tables of sinusoids as families store them, computed in float64.

Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.5, has sin(p / 10000^(2i/d)) and
cos(p / 10000^(2i/d)) at dimensions 2i and 2i + 1. ``interleaved`` is that; ``halves`` has the sines in front of the
cosines; ``tensor2tensor`` has that too, with exponents i / (d/2 - 1), and zeros in the odd dimension at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ctxextend.changes import FillSinusoids
from ctxextend.contents import TensorInfo
from ctxextend.errors import RefusedError

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

_BASE: Final = 10000.0

#: How far a number of at most 1 is off in each type that tables are stored in.
_ROUNDING: Final[Mapping[str, float]] = MappingProxyType(
    {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
)
#: How far an angle of a position is off, a position, where it was computed in float32.
_ANGLE: Final = 2.0**-23


def sinusoid_rows(change: FillSinusoids, rows: Array) -> Array:
    """These ``rows`` of the table as float64: row ``r`` is position ``first + r * positions_per_row``."""
    import numpy as np

    positions = (change.first + rows * change.positions_per_row)[:, None]
    half = change.dim // 2
    found = np.zeros((len(rows), change.dim))
    if change.layout == "tensor2tensor":
        angles = positions * np.exp(np.arange(half) * (-math.log(_BASE) / max(half - 1, 1)))
        np.sin(angles, out=found[:, :half])
        np.cos(angles, out=found[:, half : 2 * half])
    else:
        # Of an odd number of dimensions, one more is a sine.
        angles = positions / np.power(_BASE, np.arange(0, change.dim, 2) / change.dim)
        interleaved = change.layout == "interleaved"
        sines, cosines = np.s_[0::2] if interleaved else np.s_[: change.dim - half], np.s_[1::2]
        np.sin(angles, out=found[:, sines])
        np.cos(angles[:, :half], out=found[:, cosines if interleaved else np.s_[change.dim - half :]])
    if change.zero_row is not None:
        found[rows == change.zero_row] = 0
    return found


def require_sinusoids(change: FillSinusoids, tensor: TensorInfo, rows: Array, stored: Array) -> None:
    """Refuse a table whose ``rows`` (numbers as ``stored``) aren't sinusoids of whole positions, as it is rounded.

    Raises :class:`RefusedError`.
    """
    import numpy as np

    plain = sinusoid_rows(msgspec.structs.replace(change, positions_per_row=1.0), rows)
    off = np.abs(stored - plain).max(axis=1, initial=0)
    lost = np.flatnonzero(~(off <= _ROUNDING[tensor.dtype] + _ANGLE * (change.first + rows)))
    if not len(lost):
        return
    raise RefusedError(
        "the table of sinusoids was trained, and positions between its rows can't be computed",
        code="trained-sinusoids",
        file=tensor.file,
        key=tensor.name,
        expected=f"sinusoids, as exact as {tensor.dtype} holds them",
        found=f"row {rows[lost[0]]} is off by {off[lost[0]]:.2g}",
        hint="--set positions=raised (the default) keeps the rows that there are, and goes on behind them",
    )
