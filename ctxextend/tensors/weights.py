"""The tensors of a safetensors checkpoint, read in runs of rows, with the changes of a plan done to what is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec import Struct

from ctxextend.changes import FillSinusoids, PutTensor, ResizeTable, ScaleTensor, TensorChange
from ctxextend.checkpoint.safetensors_header import read_spans
from ctxextend.contents import TensorInfo
from ctxextend.errors import CheckpointError, OutputError, RefusedError
from ctxextend.tensors.changing import Factors, by_name, changed_tensors
from ctxextend.tensors.operations import runs
from ctxextend.tensors.quantise import ELEMENT_BYTES, Scratch, decode
from ctxextend.tensors.resizing import resized_rows
from ctxextend.tensors.sinusoids import sinusoid_rows

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: The scales of a matrix in F8, one a square of 128 by 128 elements (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
SCALES: Final = "_scale_inv"
SQUARE: Final = 128


class Span(Struct, frozen=True, kw_only=True):
    """Where a tensor's data lies: from ``start`` up to ``stop``, in bytes, of the file ``path``."""

    tensor: TensorInfo
    path: Path
    start: int
    stop: int


class Weights(Struct, frozen=True, kw_only=True):
    """The tensors of a checkpoint by their names: ``spans`` as they lie in its files, ``tensors`` after ``changes``."""

    spans: Mapping[str, Span]
    tensors: Mapping[str, TensorInfo]
    changes: Mapping[str, tuple[TensorChange, ...]]

    def tensor(self, name: str) -> TensorInfo:
        """A tensor as it is after the changes; its ``dtype`` is that of the file.

        Raises :class:`CheckpointError` for one that isn't there.
        """
        if name not in self.tensors:
            raise CheckpointError(
                "a tensor of this architecture is missing",
                code="missing-tensor",
                key=name,
                expected="every tensor that config.json speaks of",
                found=f"{len(self.tensors)} others",
                hint="fetch all files of the checkpoint from one place",
            )
        return self.tensors[name]


def open_weights(folder: Path, files: Iterable[str], changes: Sequence[TensorChange] = ()) -> Weights:
    """The tensors of these files (paths in ``folder``), by their headers, with changes of any of them.

    Raises :class:`CheckpointError` for a broken or missing file, :class:`RefusedError` for changes that don't fit.
    """
    spans: dict[str, Span] = {}
    for file in files:
        path = folder / file
        try:
            with path.open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                for tensor, start, stop in read_spans(file, size, partial(_pread, handle.fileno())):
                    spans[tensor.name] = Span(tensor=tensor, path=path, start=start, stop=stop)
        except OSError as error:
            raise CheckpointError(
                "a file of the checkpoint can't be read",
                code="missing-file",
                file=file,
                found=error.strerror,
                hint="check the file's permissions",
            ) from error
    grouped = by_name(changes)
    tensors = changed_tensors({name: span.tensor for name, span in spans.items()}, grouped)
    return Weights(spans=spans, tensors=tensors, changes=grouped)


class Reader:
    """Reads rows of tensors; a context manager, since it keeps files open. Several threads may share it.

    Rows are counted along a tensor's first dimension, and a scalar is one row.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._opened = ExitStack()
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def descriptor(self, path: Path) -> int:
        """A file that stays open until the reader is closed."""
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = self._opened.enter_context(path.open("rb", buffering=0)).fileno()
            return self._descriptors[path]

    def rows(self, name: str, rows: Array, scratch: Scratch) -> Array:
        """The bytes of these rows as they lie in the file, in this order: one line of uint8 a row, of the scratch.

        Neighbouring rows are read together, whatever the order. Raises :class:`OutputError` for a file that
        became shorter.
        """
        import numpy as np

        span = self.weights.spans[name]
        size = (span.stop - span.start) // (span.tensor.shape or (1,))[0]
        order = np.argsort(rows, kind="stable")
        lines = scratch.array("lines", len(rows) * size, "u1").reshape(len(rows), size)
        for at, first, count in runs(rows[order]):
            self._fill(span, span.start + first * size, lines[at : at + count].reshape(-1))
        if (order[1:] > order[:-1]).all():
            return lines
        moved = scratch.array("moved", len(rows) * size, "u1").reshape(len(rows), size)
        moved[order] = lines
        return moved

    def numbers(self, name: str, rows: Array, scratch: Scratch) -> Array:
        """These rows as float32, in the tensor's shape, F8 multiplied by its scales, changes done.

        What a change makes isn't rounded to the type that the file has. Raises :class:`RefusedError` for a type that
        has no such numbers.
        """
        import numpy as np

        changes = self.weights.changes.get(name, ())
        match changes:
            case (PutTensor(values=values),):
                return np.array(values, np.float32)[rows]
            case (FillSinusoids() as change,):
                numbers: Array = sinusoid_rows(change, rows).astype(np.float32)
                kept = rows < min(change.rows_kept, self.weights.spans[name].tensor.shape[0])
                numbers[kept] = self._stored(name, rows[kept], scratch)
                return numbers
            case (ResizeTable() as change,):
                return resized_rows(lambda old: self._stored(name, old, scratch), change, rows)
        found = self._stored(name, rows, scratch)
        scales = [change for change in changes if isinstance(change, ScaleTensor)]
        if scales:
            # The bytes may be the file's own: they are the scratch's, and nobody else reads them.
            _multiply(found, Factors(scales), rows)
        return found

    def _stored(self, name: str, rows: Array, scratch: Scratch) -> Array:
        """The same of a tensor as it lies in the file, F8 with its scales as they are after changes."""
        import numpy as np

        tensor = self.weights.spans[name].tensor
        raw = self.rows(name, rows, scratch).reshape(-1)
        found = decode(raw, tensor.dtype, scratch).reshape(len(rows), *tensor.shape[1:])
        if tensor.dtype != "F8_E4M3":
            return found
        scales = self.weights.tensor(name + SCALES)
        factors = self.numbers(scales.name, np.arange(scales.shape[0]), Scratch())
        across = np.repeat(factors, SQUARE, axis=1)[:, : tensor.shape[1]]
        found *= across[rows // SQUARE]
        return found

    def _fill(self, span: Span, position: int, target: Array) -> None:
        descriptor = self.descriptor(span.path)
        left = target.data
        while left:
            done = os.preadv(descriptor, [left], position)
            if not done:
                raise shorter(span.path)
            left, position = left[done:], position + done


def _multiply(block: Array, factors: Factors, rows: Array) -> None:
    """Multiply these ``rows`` of a tensor, float32, where they are."""
    import numpy as np

    places = np.arange(block.shape[factors.axis]) if factors.axis else rows
    shape = [1] * block.ndim
    shape[factors.axis] = len(places)
    each = factors.at(places)
    block *= each.astype(np.float32).reshape(shape)
    if factors.added_one:
        block += (each - 1).astype(np.float32).reshape(shape)


def check_numbers(weights: Weights, name: str) -> None:
    """Refuse a tensor that can't be turned into float32: integers, and F8 without scales a square.

    Raises :class:`RefusedError`.
    """
    tensor = weights.tensor(name)
    if tensor.dtype not in ELEMENT_BYTES:
        expected = ", ".join(ELEMENT_BYTES)
    elif tensor.dtype != "F8_E4M3":
        return
    else:
        scales = weights.tensors.get(name + SCALES)
        squares = tuple(-(-size // SQUARE) for size in tensor.shape)
        if len(squares) == 2 and scales is not None and scales.shape == squares:
            check_numbers(weights, scales.name)
            return
        expected = f"{name}{SCALES} of shape {list(squares)}, one scale for {SQUARE} by {SQUARE} elements"
    raise RefusedError(
        "a tensor of this checkpoint isn't plain floating numbers, and isn't guessed at",
        code="source-type",
        file=tensor.file,
        key=name,
        expected=expected,
        found=f"{tensor.dtype}{list(tensor.shape)}",
        hint="start from the checkpoint that wasn't quantised",
    )


def shorter(path: Path) -> OutputError:
    """The error for a file that ends before its header says."""
    return OutputError(
        "a file became shorter while it was read",
        code="source-changed",
        file=str(path),
        hint="let whatever writes it finish, then run again",
    )


def _pread(descriptor: int, offset: int, count: int) -> bytes:
    return os.pread(descriptor, count, offset)
