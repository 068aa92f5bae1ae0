"""Layouts carried out with numpy on whole tensors, from what ``exports/layout.py`` says of each operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ctxextend.exports.layout import (
    AddOne,
    HeadRows,
    Layout,
    Operation,
    PairRows,
    Reshape,
    Rows,
    SplitHeads,
    Transpose,
    TransposeHeads,
)

Array = np.ndarray[Any, Any]


def applied(layout: Layout, tensors: Mapping[str, Array]) -> Array:
    """The tensor of the file."""
    made = []
    for source in layout.sources:
        array = tensors[source]
        for operation in layout.operations:
            array = done(operation, array)
        made.append(array)
    array = np.stack(made) if layout.stacked else made[0]
    assert array.shape == layout.shape, layout.name
    return np.ascontiguousarray(array)


def done(operation: Operation, array: Array) -> Array:
    """One operation on one tensor."""
    found: Array = _done(operation, array, array.shape[1:])
    return found


def _done(operation: Operation, array: Any, rest: tuple[int, ...]) -> Any:
    match operation:
        case Rows():
            return array[operation.start : operation.stop]
        case PairRows():
            # Rows 0 ... half - 1 and half ... 2 half - 1 of a head become 0, half, 1, half + 1 ...
            heads = array.reshape(operation.heads, 2, -1, *rest)
            return heads.swapaxes(1, 2).reshape(array.shape)
        case SplitHeads():
            heads = array.reshape(operation.heads, operation.parts, -1, *rest)
            return heads.swapaxes(0, 1).reshape(array.shape)
        case HeadRows():
            heads = array.reshape(operation.heads, -1, *rest)
            return heads[:, operation.start : operation.stop].reshape(-1, *rest)
        case TransposeHeads():
            return array.reshape(operation.heads, -1, *rest).swapaxes(1, 2)
        case Transpose():
            return array.T
        case AddOne():
            return array + array.dtype.type(1)
        case Reshape():
            return array.reshape(operation.shape)
