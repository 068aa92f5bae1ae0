"""Safetensors files with some of their tensors changed: the others are the same bytes, copied in the kernel.

A tensor that changes goes through memory in runs of rows. Where only numbers change and the file system can share
blocks, the new file shares all that is untouched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ctxextend.changes import FillSinusoids, PutTensor, ResizeTable, ScaleTensor, TensorChange
from ctxextend.checkpoint.safetensors_header import read_spans
from ctxextend.contents import DTYPE_BITS, TensorInfo
from ctxextend.tensors.changing import METADATA, Factors, by_name, changed_tensors
from ctxextend.tensors.copying import CHUNK_BYTES, LinkMode, Progress, carry, clone, copy_span, start_writing
from ctxextend.tensors.operations import runs
from ctxextend.tensors.products import Rewritten, Tally, add_errors, multiply, overflow
from ctxextend.tensors.quantise import Scratch, decode
from ctxextend.tensors.quantise import encode as encode_numbers
from ctxextend.tensors.resizing import resized_rows
from ctxextend.tensors.sinusoids import require_sinusoids, sinusoid_rows
from ctxextend.tensors.threads import Task, in_threads
from ctxextend.tensors.weights import shorter

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: How many elements of a tensor are in memory at once, for each thread: whole rows of one, where a row isn't longer.
BLOCK_ELEMENTS: Final = 1 << 20

#: How much longer a header may become for each tensor, whose offsets have more digits, and for a changed one.
_MORE_DIGITS: Final = 32
_ENTRY_BYTES: Final = 256


class _Source(Struct, frozen=True, kw_only=True):
    """A file that is open for reading: its header, its tensors in the header's order, and where each one's data lies.

    ``spans`` count bytes of the file.
    """

    path: Path
    descriptor: int
    size_bytes: int
    header: bytes
    tensors: Mapping[str, TensorInfo]
    spans: Mapping[str, tuple[int, int]]

    def read(self, position: int, target: Array) -> None:
        """Fill flat uint8. Raises :class:`OutputError` for a file that became shorter."""
        left = target.data
        while left:
            done = os.preadv(self.descriptor, [left], position)
            if not done:
                raise shorter(self.path)
            left, position = left[done:], position + done


class _Copy(Struct, frozen=True, kw_only=True):
    """``count`` bytes of the source, from ``start`` there to ``target``."""

    start: int
    target: int
    count: int


class _Work(Struct, frozen=True, kw_only=True):
    """A task, and where what it writes begins."""

    target: int
    task: Task


class _Job(Struct, frozen=True, kw_only=True):
    """One changed tensor: as it was (None for a new one), as it will be, and where its data lies and goes."""

    changes: tuple[TensorChange, ...]
    before: TensorInfo | None
    after: TensorInfo
    source: _Source
    start: int
    write: int
    target: int
    tally: Tally


def rewrite_file(
    source: Path, target: Path, changes: Sequence[TensorChange], *, mode: LinkMode, progress: Progress
) -> tuple[Rewritten, ...]:
    """Make ``target`` the safetensors file ``source`` with these changes, all of which name it; says what became of
    each changed tensor, in the order in which they are named.

    It is written to, so it is never a link: modes that link do what ``auto`` does. ``progress`` is told how many bytes
    are done: together, the new file's. The bytes may not be on the disk yet: staging sees to that.

    Raises :class:`CheckpointError` for a broken file, :class:`RefusedError` for changes that don't fit it and for
    numbers that a tensor's type can't hold, :class:`OutputError` where ``mode`` is reflink, only numbers change, and
    the file system can't share blocks, and :class:`OSError` as the system gives it. A partial file may be left behind.
    """
    grouped = by_name(changes)
    with ExitStack() as opened:
        real = source.resolve(strict=True)
        file = changes[0].file if changes else source.name
        read = _opened(file, real, opened.enter_context(real.open("rb", buffering=0)).fileno())
        tensors = changed_tensors(read.tensors, grouped)
        scaled = all(isinstance(change, ScaleTensor) for change in changes)
        cloned = scaled and _cloned(real, target, mode)
        write = opened.enter_context(target.open("r+b" if cloned else "xb", buffering=0)).fileno()
        starts = {name: start for name, (start, _stop) in read.spans.items()}
        copies, work = [_Copy(start=0, target=0, count=len(read.header))], []
        size = read.size_bytes
        if not scaled:
            header, starts = _new_header(read, tensors)
            copies, size = [], len(header) + sum(tensor.size_bytes for tensor in tensors.values())
            progress(_write(write, memoryview(header), 0))
        os.truncate(write, size)
        tallies = {name: Tally() for name in grouped}
        for name in sorted(tensors, key=lambda name: starts[name]):
            start, stop = read.spans.get(name, (0, 0))
            if name not in grouped:
                copies.append(_Copy(start=start, target=starts[name], count=stop - start))
                continue
            job = _Job(
                changes=grouped[name],
                before=read.tensors.get(name),
                after=tensors[name],
                source=read,
                start=start,
                write=write,
                target=starts[name],
                tally=tallies[name],
            )
            kept, done = _scaling(job) if isinstance(job.changes[0], ScaleTensor) else _making(job)
            copies += kept
            work += done
        if cloned:
            progress(sum(copy.count for copy in copies))
            copies = []
        work += [_Work(target=part.target, task=partial(_copy, read, write, part)) for part in _spans(copies)]
        # In the order of the file: that is how a disk likes it.
        in_threads((piece.task for piece in sorted(work, key=lambda piece: piece.target)), progress)
    return tuple(
        _rewritten(grouped[name], read.tensors.get(name), tensors.get(name), tallies[name]) for name in grouped
    )


def tensors_after(tensors: Sequence[TensorInfo], changes: Sequence[TensorChange]) -> tuple[TensorInfo, ...]:
    """The tensors of one file after the changes of it. Raises :class:`RefusedError` for changes that don't fit it."""
    return tuple(changed_tensors({tensor.name: tensor for tensor in tensors}, by_name(changes)).values())


def rewritten_bytes(size_bytes_of_source: int, tensors: Sequence[TensorInfo], changes: Sequence[TensorChange]) -> int:
    """At most how large a file of this size becomes; ``tensors`` are all of its.

    Raises :class:`RefusedError` for changes that don't fit it.
    """
    after = tensors_after(tensors, changes)
    if all(isinstance(change, ScaleTensor) for change in changes):
        return size_bytes_of_source
    data = sum(tensor.size_bytes for tensor in after) - sum(tensor.size_bytes for tensor in tensors)
    entries = sum(len(json.dumps(change.name)) + _ENTRY_BYTES for change in changes)
    return size_bytes_of_source + data + entries + _MORE_DIGITS * len(after)


def _opened(file: str, path: Path, descriptor: int) -> _Source:
    size = os.fstat(descriptor).st_size
    found = read_spans(file, size, lambda offset, count: os.pread(descriptor, count, offset))
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    return _Source(
        path=path,
        descriptor=descriptor,
        size_bytes=size,
        header=os.pread(descriptor, 8 + length, 0),
        tensors={tensor.name: tensor for tensor, _start, _stop in found},
        spans={tensor.name: (start, stop) for tensor, start, stop in found},
    )


def _cloned(source: Path, target: Path, mode: LinkMode) -> bool:
    if mode == "reflink":
        # It says so where it can't.
        return carry(source, target, mode=mode, progress=lambda _done: None) == "reflink"
    return mode != "copy" and clone(source, target)


def _new_header(source: _Source, tensors: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The header for these tensors, and where each one's data begins in the file."""
    order = _data_order(source, tensors)
    offsets, end = {}, 0
    for name in order:
        offsets[name] = end
        end += tensors[name].size_bytes
    old: dict[str, Any] = json.loads(source.header[8:])
    entries: dict[str, Any] = {}
    for name in (*old, *(name for name in tensors if name not in old)):
        if name == METADATA:
            entries[name] = old[name]
        elif name in tensors:
            entries[name] = _entry(tensors[name], offsets[name])
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    header = len(raw).to_bytes(8, "little") + raw
    return header, {name: len(header) + offset for name, offset in offsets.items()}


def _entry(tensor: TensorInfo, start: int) -> dict[str, Any]:
    offsets = [start, start + tensor.size_bytes]
    return {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}


def _data_order(source: _Source, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The order of the data: the file's own, if it leaves every tensor at a multiple of its element's size."""
    order = [name for name in sorted(source.spans, key=source.spans.__getitem__) if name in tensors]
    for name in tensors:
        if name not in source.spans:
            # Behind the last that has elements as wide.
            wide = [at for at, other in enumerate(order) if _width(tensors[other]) >= _width(tensors[name])]
            order.insert(wide[-1] + 1 if wide else 0, name)
    end = 0
    for name in order:
        if end % _width(tensors[name]):
            return sorted(order, key=lambda name: -_width(tensors[name]))
        end += tensors[name].size_bytes
    return order


def _width(tensor: TensorInfo) -> int:
    """The bytes of an element; 1 for those of fewer bits."""
    return max(1, DTYPE_BITS[tensor.dtype] // 8)


def _scaling(job: _Job) -> tuple[list[_Copy], list[_Work]]:
    """What of a tensor is copied, and what is multiplied."""
    lines, size = _Lines(job), _width(job.after)
    copies, work, done = [], [], 0
    for first, last in lines.blocks():
        start = first * size
        copies.append(_Copy(start=job.start + done, target=job.target + done, count=start - done))
        work.append(_Work(target=job.target + start, task=partial(_scale, job, lines, first, last)))
        done = last * size
    copies.append(_Copy(start=job.start + done, target=job.target + done, count=job.after.size_bytes - done))
    return copies, work


class _Lines:
    """A tensor as lines of ``width`` elements that have one factor each: a place of the dimension that is sliced."""

    def __init__(self, job: _Job) -> None:
        import numpy as np

        self.factors = Factors([change for change in job.changes if isinstance(change, ScaleTensor)])
        self.elements = job.after.elements
        shape, axis = job.after.shape, self.factors.axis
        self.width, self._places = (
            (math.prod(shape[axis + 1 :]), shape[axis]) if self.factors.sliced else (max(1, self.elements), 1)
        )
        # Of a dimension that isn't too long for it, worked out once.
        short = self._places <= BLOCK_ELEMENTS
        self._known: Array | None = self.factors.at(np.arange(self._places)) if short else None
        self._values = np.unique(self._known) if self._known is not None else None

    def at(self, first: int, last: int) -> Array:
        """The factors of the lines that hold these elements."""
        import numpy as np

        places = np.arange(first // self.width, -(-last // self.width)) % self._places
        return self.factors.at(places) if self._known is None else self._known[places]

    def values(self, factors: Array) -> Array:
        """What differs among these factors, or more."""
        import numpy as np

        return np.unique(factors) if self._values is None else self._values

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Runs of elements from a first that changes up to a last: of several lines, or a part of one."""
        import numpy as np

        if not self.elements:
            return
        step = max(1, BLOCK_ELEMENTS // self.width) * self.width
        for start in range(0, self.elements, step):
            touched = np.flatnonzero(self.at(start, min(start + step, self.elements)) != 1)
            if not len(touched):
                continue
            first, last = (start + int(line) * self.width for line in (touched[0], touched[-1] + 1))
            for part in range(first, last, BLOCK_ELEMENTS):
                yield part, min(part + BLOCK_ELEMENTS, last)


def _scale(job: _Job, lines: _Lines, first: int, last: int) -> int:
    """Multiply these elements, and write them."""
    import numpy as np

    scratch, size = _scratch(), _width(job.after)
    raw = scratch.array("raw", (last - first) * size, "u1")
    job.source.read(job.start + first * size, raw)
    factors = lines.at(first, last)
    one = lines.factors.added_one
    for factor in lines.values(factors):
        chosen = np.flatnonzero(factors == factor)
        if factor == 1 or not len(chosen):
            continue
        if len(chosen) == len(factors):
            multiply(raw, job.after, float(factor), added_one=one, tally=job.tally, scratch=scratch)
            continue
        rows = raw.reshape(len(factors), -1)
        part = rows[chosen]
        multiply(part.reshape(-1), job.after, float(factor), added_one=one, tally=job.tally, scratch=scratch)
        rows[chosen] = part
    return _write(job.write, raw.data, job.target + first * size)


def _making(job: _Job) -> tuple[list[_Copy], list[_Work]]:
    """What is copied of a tensor that is made anew (the rows that a table of sinusoids keeps), and the runs of rows
    that are made.
    """
    if not job.after.elements:
        return [], []
    rows = job.after.shape[0]
    row = job.after.elements // rows
    step = max(1, BLOCK_ELEMENTS // row)
    kept = _kept_rows(job, step)
    work = [
        _Work(
            target=job.target + start * row * _width(job.after),
            task=partial(_make, job, start, min(start + step, rows)),
        )
        for start in range(kept, rows, step)
    ]
    return [_Copy(start=job.start, target=job.target, count=kept * row * _width(job.after))], work


def _kept_rows(job: _Job, step: int) -> int:
    """How many rows stay the same bytes. Raises :class:`RefusedError` for a trained table that would keep none."""
    import numpy as np

    (change,) = job.changes
    if not isinstance(change, FillSinusoids) or job.before is None:
        return 0
    held = job.before.shape[0]
    if not change.rows_kept:
        for start in range(0, held, step):
            rows = np.arange(start, min(start + step, held))
            require_sinusoids(change, job.before, rows, _old_rows(job, rows))
    return min(change.rows_kept, held, change.rows)


def _make(job: _Job, start: int, stop: int) -> int:
    """Make these rows, and write them."""
    import numpy as np

    (change,) = job.changes
    rows = np.arange(start, stop)
    numbers: Array
    if isinstance(change, PutTensor):
        numbers = np.array(change.values[start:stop])
    elif isinstance(change, FillSinusoids):
        numbers = sinusoid_rows(change, rows)
    else:
        assert isinstance(change, ResizeTable)
        numbers = resized_rows(partial(_old_rows, job), change, rows)
    flat = np.ascontiguousarray(numbers).reshape(-1)
    raw = _rounded(flat, job.after, job.tally)
    row = len(raw) // (stop - start)
    return _write(job.write, raw.data, job.target + start * row)


def _old_rows(job: _Job, rows: Array) -> Array:
    """Rows of the table as it was, in their order: float64 for F64, else float32."""
    import numpy as np

    assert job.before is not None
    size = job.before.size_bytes // job.before.shape[0]
    raw = np.empty(len(rows) * size, np.uint8)
    for at, first, count in runs(rows):
        job.source.read(job.start + first * size, raw[at * size : (at + count) * size])
    found: Array = raw.view(np.float64) if job.before.dtype == "F64" else decode(raw, job.before.dtype, Scratch())
    return found.reshape(len(rows), *job.before.shape[1:])


def _rounded(numbers: Array, tensor: TensorInfo, tally: Tally) -> Array:
    """Floating numbers as the bytes of a tensor of F32, F16, BF16 or F64, by way of float32 but for the last."""
    import numpy as np

    if tensor.dtype == "F64":
        tally.add(len(numbers), 0.0, exact=True)
        return numbers.astype(np.float64).view(np.uint8)
    raw = np.empty(len(numbers) * _width(tensor), np.uint8)
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
        if tensor.dtype == "F16":
            raw.view(np.float16)[:] = single
        else:
            encode_numbers(single, tensor.dtype, raw, Scratch(), name=tensor.name)
    written = decode(raw, tensor.dtype, Scratch())
    lost = np.flatnonzero(np.isfinite(numbers) & ~np.isfinite(written))
    if len(lost):
        raise overflow(tensor, f"{numbers[lost[0]]:g}")
    add_errors(tally, written, numbers, tensor.dtype)
    return raw


def _rewritten(
    changes: tuple[TensorChange, ...], before: TensorInfo | None, after: TensorInfo | None, tally: Tally
) -> Rewritten:
    """What became of a tensor; a dropped one counts what it had."""
    tensor = after or before
    assert tensor is not None
    scales = {change.factor for change in changes if isinstance(change, ScaleTensor)}
    return Rewritten(
        name=tensor.name,
        dtype=tensor.dtype,
        elements=tensor.elements if after is None else tally.elements,
        factor=scales.pop() if len(scales) == 1 and len(changes) == 1 else None,
        rounding=tally.rounding,
        exact=tally.exact,
    )


def _spans(copies: Iterable[_Copy]) -> Iterator[_Copy]:
    """Copies in the order of the new file, neighbours as one, in parts that a kernel's call does."""
    start, target, count = 0, 0, 0
    for copy in (*(copy for copy in copies if copy.count), _Copy(start=-1, target=-1, count=0)):
        if copy.start == start + count and copy.target == target + count:
            count += copy.count
            continue
        for done in range(0, count, CHUNK_BYTES):
            yield _Copy(start=start + done, target=target + done, count=min(CHUNK_BYTES, count - done))
        start, target, count = copy.start, copy.target, copy.count


def _copy(source: _Source, write: int, part: _Copy) -> int:
    return copy_span(source.descriptor, part.start, write, part.target, part.count, file=str(source.path))


_THREAD: Final = local()


def _scratch() -> Scratch:
    """The memory of this thread; it goes with the thread."""
    if not hasattr(_THREAD, "scratch"):
        _THREAD.scratch = Scratch()
    found: Scratch = _THREAD.scratch
    return found


def _write(descriptor: int, data: memoryview, position: int) -> int:
    """Write all of it; gives how many bytes that were."""
    left, at = data, position
    while left:
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done
    start_writing(descriptor, position, len(data))
    return len(data)
