"""What ``exports/layout.py`` describes, done to numbers: forward into GGUF's layout, and back out of it.

Every operation is one on rows, so a tensor of any size is done in runs of rows: :meth:`Steps.source_rows` says which
rows of the source a run of the target is made of, and :meth:`Steps.forward` makes it of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, assert_never

from ctxextend.errors import CheckpointError
from ctxextend.exports.layout import (
    AddOne,
    HeadRows,
    Operation,
    PairRows,
    Reshape,
    Rows,
    SplitHeads,
    Transpose,
    TransposeHeads,
)

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

Shape = tuple[int, ...]


class Steps:
    """The operations of one tensor, met with the ``source_shape`` it has in the checkpoint.

    ``shape`` is what it becomes. A scalar counts as one row of one element. ``computes``: whether numbers change,
    so that a block must be float32; else any type passes, raw bytes of an element included. Raises
    :class:`CheckpointError` for a tensor that the operations don't fit.
    """

    def __init__(self, operations: Sequence[Operation], source_shape: Shape, *, name: str | None = None) -> None:
        self.operations = tuple(operations)
        self._shapes = [source_shape or (1,)]
        for operation in self.operations:
            self._shapes.append(_shape_after(operation, self._shapes[-1], name))
        self.source_shape = self._shapes[0]
        self.shape = self._shapes[-1]
        self.computes = any(isinstance(operation, AddOne) for operation in self.operations)

    @property
    def plain(self) -> bool:
        """Whether the target's bytes are the source's, in their order."""
        return all(isinstance(operation, Reshape) for operation in self.operations)

    @property
    def unit(self) -> int:
        """A run for :meth:`backward` starts and ends at multiples of this many rows: they are whole rows before."""
        unit = 1
        if any(isinstance(operation, Transpose) for operation in self.operations):
            return max(1, self.shape[0])
        for operation, before, after in self._backwards():
            if isinstance(operation, Reshape):
                row, old = math.prod(after[1:]), math.prod(before[1:])
                unit = math.lcm(unit, math.lcm(row, old) // row) if row and old else 1
                if unit > 1 and operation is not self.operations[-1]:
                    # What follows may scatter the rows that belong together.
                    return max(1, self.shape[0])
        return unit

    def source_rows(self, start: int, stop: int) -> Array:
        """The rows of the source, in the order in which :meth:`forward` takes them, for a run of target rows."""
        return self._wanted(start, stop)[0]

    def forward(self, block: Array, start: int, stop: int) -> Array:
        """The rows ``start`` to ``stop`` of the target, of the source's rows that :meth:`source_rows` names."""
        wanted = self._wanted(start, stop)
        for operation, before, after, rows in zip(
            self.operations, self._shapes, self._shapes[1:], wanted[1:], strict=False
        ):
            match operation:
                case Rows() | PairRows() | SplitHeads() | HeadRows():
                    pass  # Done by the choice of rows.
                case TransposeHeads(heads=heads):
                    block = block.reshape(len(rows), before[0] // heads, *before[1:]).swapaxes(1, 2)
                case Transpose():
                    block = block[:, rows].T
                case AddOne():
                    block = block + block.dtype.type(1)
                case Reshape():
                    block = _reshaped(block, before, after, rows)
                case _:
                    assert_never(operation)
        return block

    def backward(self, block: Array, start: int) -> tuple[Array, Array]:
        """The inverse: which rows of the source a run of target rows from ``start`` holds, and these rows.

        ``start`` and the number of rows are multiples of :attr:`unit`, or reach the end.
        """
        import numpy as np

        wanted = self._wanted(start, start + len(block))
        for (operation, before, _after), rows, moved in zip(
            self._backwards(), wanted[-2::-1], wanted[::-1], strict=False
        ):
            match operation:
                case Rows() | PairRows() | SplitHeads() | HeadRows():
                    pass
                case TransposeHeads():
                    block = block.swapaxes(1, 2).reshape(len(rows), *before[1:])
                case Transpose():
                    # Its columns are rows here, which what follows may have moved.
                    block = block[np.argsort(moved)].T
                case AddOne():
                    block = block - block.dtype.type(1)
                case Reshape():
                    # Rows that it cuts anew are wanted in their order; what follows it may have moved them.
                    ordered = block if rows is moved else block[np.argsort(moved)]
                    block = ordered.reshape(len(rows), *before[1:])
                case _:
                    assert_never(operation)
        return wanted[0], block

    def _backwards(self) -> Iterator[tuple[Operation, Shape, Shape]]:
        return zip(reversed(self.operations), self._shapes[-2::-1], reversed(self._shapes), strict=False)

    def _wanted(self, start: int, stop: int) -> list[Array]:
        """The rows that are needed before each operation, the first one first, and the run itself last."""
        import numpy as np

        wanted = [np.arange(start, stop)]
        for operation, before, after in self._backwards():
            wanted.append(_rows_before(operation, before, after, wanted[-1]))
        return wanted[::-1]


def forward(operations: Sequence[Operation], array: Array) -> Array:
    """The whole of a tensor in GGUF's layout. Raises :class:`CheckpointError` for one that they don't fit."""
    steps = Steps(operations, array.shape)
    stop = steps.shape[0]
    return steps.forward(array.reshape(steps.source_shape)[steps.source_rows(0, stop)], 0, stop)


def backward(operations: Sequence[Operation], array: Array, out: Array) -> None:
    """Write what a tensor in GGUF's layout holds into ``out``, of the source's shape; its other rows stay.

    Several tensors may be parts of one source. Raises :class:`CheckpointError` for shapes that don't fit.
    """
    steps = Steps(operations, out.shape)
    rows, block = steps.backward(array.reshape(steps.shape), 0)
    out.reshape(steps.source_shape)[rows] = block


def runs(rows: Array) -> list[tuple[int, int, int]]:
    """Neighbouring rows as runs: where a run starts in ``rows``, its first row, and how many it has."""
    import numpy as np

    if not len(rows):
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(rows) != 1) + 1))
    counts = np.diff(np.append(starts, len(rows)))
    return [
        (int(start), int(first), int(count)) for start, first, count in zip(starts, rows[starts], counts, strict=True)
    ]


def _rows_before(operation: Operation, before: Shape, after: Shape, rows: Array) -> Array:
    import numpy as np

    found: Array
    match operation:
        case Rows(start=start):
            found = rows + start
        case PairRows(heads=heads):
            size = before[0] // heads
            head, at = np.divmod(rows, size)
            found = head * size + (at % 2) * (size // 2) + at // 2
        case SplitHeads(heads=heads, parts=parts):
            size = before[0] // (heads * parts)
            part, at = np.divmod(rows, heads * size)
            head, at = np.divmod(at, size)
            found = (head * parts + part) * size + at
        case HeadRows(heads=heads, start=start, stop=stop):
            head, at = np.divmod(rows, stop - start)
            found = head * (before[0] // heads) + start + at
        case TransposeHeads(heads=heads):
            size = before[0] // heads
            found = np.add.outer(rows * size, np.arange(size)).reshape(-1)
        case Transpose():
            found = np.arange(before[0])
        case AddOne():
            found = rows
        case Reshape() if before[0] == after[0] or not len(rows):
            found = rows
        case Reshape():
            row, old = math.prod(after[1:]), math.prod(before[1:])
            found = np.arange(int(rows.min()) * row // old, -(-(int(rows.max()) + 1) * row // old))
        case _:
            assert_never(operation)
    return found


def _reshaped(block: Array, before: Shape, after: Shape, rows: Array) -> Array:
    """The ``rows`` after a change of shape, of the rows before it that cover them."""
    if before[0] == after[0] or not len(rows):
        return block.reshape(len(rows), *after[1:])
    row, old = math.prod(after[1:]), math.prod(before[1:])
    first, last = int(rows.min()), int(rows.max()) + 1
    skipped = first * row % old
    covered: Array = block.reshape(-1)[skipped : skipped + (last - first) * row].reshape(last - first, *after[1:])
    found: Array = covered[rows - first]
    return found


def _shape_after(operation: Operation, shape: Shape, name: str | None) -> Shape:
    rows, rest = shape[0], shape[1:]
    match operation:
        case Rows(start=start, stop=stop):
            fits, after = 0 <= start < stop <= rows, (stop - start, *rest)
        case PairRows(heads=heads):
            fits, after = rows % (2 * heads) == 0, shape
        case SplitHeads(heads=heads, parts=parts):
            fits, after = rows % (heads * parts) == 0, shape
        case HeadRows(heads=heads, start=start, stop=stop):
            fits = rows % heads == 0 and 0 <= start < stop <= rows // heads
            after = (heads * (stop - start), *rest)
        case TransposeHeads(heads=heads):
            fits = rows % heads == 0 and len(rest) == 1
            after = (heads, *rest, rows // heads)
        case Transpose():
            fits, after = len(rest) == 1, shape[::-1]
        case AddOne():
            fits, after = True, shape
        case Reshape(shape=after):
            fits = math.prod(after) == math.prod(shape) and bool(after)
        case _:
            assert_never(operation)
    if not fits:
        raise CheckpointError(
            "a tensor doesn't have the shape that its architecture gives it",
            code="unexpected-shape",
            key=name,
            expected=f"a shape for {operation!r}",
            found=f"{list(shape)}",
            hint="config.json and the weights disagree; get both from one place",
        )
    return after
