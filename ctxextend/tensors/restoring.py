"""The tensors of a GGUF file as those of a safetensors checkpoint: taken apart, turned back and rounded, in pieces.

What is made of what is ``exports/reverse.py``'s business. A piece is a run of a GGUF tensor's rows, so that no
tensor is ever held; its rows go to their places in the checkpoint's tensor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from ctxextend.checkpoint.gguf_header import read_header
from ctxextend.contents import DTYPE_BITS, GGML_TYPES, TensorInfo
from ctxextend.errors import CheckpointError
from ctxextend.exports.reverse import FloatType, Part, Target
from ctxextend.tensors.dequantise import check_readable, dequantised, encoded
from ctxextend.tensors.operations import Steps, runs
from ctxextend.tensors.safetensors_writer import MAX_SHARD_BYTES, Pieces, in_shards

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: How many elements are held at once: some tens of megabytes with all that is made of them on the way.
_ELEMENTS: Final = 1 << 20

#: Elements a block, and bytes a block, of each type.
_BLOCKS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {name: (elements, size) for name, elements, size in GGML_TYPES.values()}
)

#: The types whose bytes can be carried as they are, with what numpy is to take them for.
_PLAIN: Final[Mapping[str, str]] = MappingProxyType({"F32": "<f4", "F16": "<u2", "BF16": "<u2"})


class GgufTensors:
    """The data of a GGUF checkpoint, open for reading; ``files`` are all of a split one's.

    Raises :class:`CheckpointError` for a file that is broken, or shorter than its header says.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self._reads: dict[str, Callable[[int, int], bytes]] = {}
        self._starts: dict[str, int] = {}
        self._stack = ExitStack()
        with ExitStack() as opened:
            for path in files:
                handle = opened.enter_context(path.open("rb", buffering=0))
                read = partial(_pread, handle.fileno())
                header = read_header(path.name, os.fstat(handle.fileno()).st_size, read)
                for tensor in header.tensors:
                    self.infos[tensor.name] = tensor
                    self._reads[tensor.name] = read
                    self._starts[tensor.name] = header.gguf.tensor_spans[tensor.name][0]
            self._stack = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, name: str, start: int, count: int) -> bytes:
        """``count`` bytes of a tensor's data from its byte ``start`` on."""
        raw = self._reads[name](self._starts[name] + start, count)
        if len(raw) < count:
            raise CheckpointError(
                "a GGUF file became shorter while it was read",
                code="source-changed",
                file=self.infos[name].file,
                key=name,
                expected=f"{count} bytes",
                found=f"{len(raw)}",
                hint="let whatever writes it finish, then run again",
            )
        return raw


def planned(
    targets: Iterable[Target], infos: Mapping[str, TensorInfo], dtype: FloatType, *, max_shard_bytes: int | None = None
) -> tuple[TensorInfo, ...]:
    """The tensors to write, with their types and files; nothing is read.

    Raises :class:`RefusedError` for a type that has no numbers, :class:`CheckpointError` for a tensor that its
    operations don't fit.
    """
    found = []
    for target in targets:
        check_readable(infos[part.tensor] for part in target.parts)
        for part in target.parts:
            info = infos[part.tensor]
            steps = Steps(part.operations, target.shape, name=part.tensor)
            shape = info.shape if part.index is None else info.shape[1:]
            if steps.shape != (shape or (1,)):
                raise CheckpointError(
                    "a tensor doesn't have the shape that its architecture gives it",
                    code="unexpected-shape",
                    file=info.file,
                    key=part.tensor,
                    expected=str(list(steps.shape)),
                    found=str(list(shape)),
                )
        kind = "F32" if target.exact else dtype
        found.append(TensorInfo(name=target.name, dtype=kind, shape=target.shape, file=""))
    return in_shards(found, MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes)


def pieces_of(targets: Iterable[Target], data: GgufTensors) -> Pieces:
    """The data of each tensor that :func:`planned` gives, for the writer."""
    by_name = {target.name: target for target in targets}

    def pieces(info: TensorInfo) -> Iterator[tuple[int, memoryview]]:
        for part in by_name[info.name].parts:
            yield from _pieces(info, part, data)

    return pieces


def _pieces(info: TensorInfo, part: Part, data: GgufTensors) -> Iterator[tuple[int, memoryview]]:
    """One part's rows at their places, in the checkpoint's tensor ``info``."""
    import numpy as np

    source = data.infos[part.tensor]
    steps = Steps(part.operations, info.shape, name=part.tensor)
    if not math.prod(steps.shape):
        return
    elements, size = _BLOCKS[source.dtype]
    row = math.prod(steps.shape[1:])
    skipped = (part.index or 0) * math.prod(steps.shape)
    carried = source.dtype == info.dtype and not steps.computes
    row_bytes = math.prod(steps.source_shape[1:]) * DTYPE_BITS[info.dtype] // 8
    unit = math.lcm(steps.unit, math.lcm(row, elements) // row)
    step = max(_ELEMENTS // (row * unit), 1) * unit
    for start in range(0, steps.shape[0], step):
        stop = min(start + step, steps.shape[0])
        first, last = (skipped + start * row) // elements, (skipped + stop * row) // elements
        raw = data.read(part.tensor, first * size, (last - first) * size)
        numbers: Array = np.frombuffer(raw, _PLAIN[source.dtype]) if carried else dequantised(raw, source.dtype)
        rows, block = steps.backward(numbers.reshape(stop - start, *steps.shape[1:]), start)
        if not carried:
            block = encoded(block, info.dtype, name=info.name)  # type: ignore[arg-type]
        yield from _placed(rows, block, row_bytes)


def _placed(rows: Array, block: Array, row_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Rows as runs of neighbours, each with the byte at which it starts."""
    import numpy as np

    if np.any(rows[1:] < rows[:-1]):
        order = np.argsort(rows)
        rows, block = rows[order], block[order]
    block = np.ascontiguousarray(block)
    for at, first, count in runs(rows):
        yield first * row_bytes, block[at : at + count].data


def _pread(descriptor: int, offset: int, count: int) -> bytes:
    return os.pread(descriptor, count, offset)
