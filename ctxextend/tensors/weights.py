"""The tensors of a safetensors checkpoint, read in runs of rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec import Struct

from ctxextend.checkpoint.safetensors_header import read_spans
from ctxextend.contents import TensorInfo
from ctxextend.errors import CheckpointError, OutputError, RefusedError
from ctxextend.tensors.operations import runs
from ctxextend.tensors.quantise import ELEMENT_BYTES, Scratch, decode

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
    """The tensors of a checkpoint by their names."""

    spans: Mapping[str, Span]

    def span(self, name: str) -> Span:
        """Raises :class:`CheckpointError` for a tensor that isn't there."""
        if name not in self.spans:
            raise CheckpointError(
                "a tensor of this architecture is missing",
                code="missing-tensor",
                key=name,
                expected="every tensor that config.json speaks of",
                found=f"{len(self.spans)} others",
                hint="fetch all files of the checkpoint from one place",
            )
        return self.spans[name]


def open_weights(folder: Path, files: Iterable[str]) -> Weights:
    """The tensors of these files (paths in ``folder``), by their headers.

    Raises :class:`CheckpointError` for a broken or missing file.
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
    return Weights(spans=spans)


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
        """The bytes of these rows, in this order: one line of uint8 a row, in memory of the scratch.

        Neighbouring rows are read together, whatever the order. Raises :class:`OutputError` for a file that
        became shorter.
        """
        import numpy as np

        span = self.weights.span(name)
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
        """These rows as float32, in the tensor's shape, F8 multiplied by its scales.

        Raises :class:`RefusedError` for a type that has no such numbers.
        """
        import numpy as np

        tensor = self.weights.span(name).tensor
        raw = self.rows(name, rows, scratch).reshape(-1)
        found = decode(raw, tensor.dtype, scratch).reshape(len(rows), *tensor.shape[1:])
        if tensor.dtype != "F8_E4M3":
            return found
        scales = self.weights.span(name + SCALES).tensor
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


def check_numbers(weights: Weights, name: str) -> None:
    """Refuse a tensor that can't be turned into float32: integers, and F8 without scales a square.

    Raises :class:`RefusedError`.
    """
    tensor = weights.span(name).tensor
    if tensor.dtype not in ELEMENT_BYTES:
        expected = ", ".join(ELEMENT_BYTES)
    elif tensor.dtype != "F8_E4M3":
        return
    else:
        scales = weights.spans.get(name + SCALES)
        squares = tuple(-(-size // SQUARE) for size in tensor.shape)
        if len(squares) == 2 and scales is not None and scales.tensor.shape == squares:
            check_numbers(weights, scales.tensor.name)
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
