"""Writing GGUF files from safetensors, any number of types in one pass over the checkpoint.

Every offset is known before the first byte, so headers are written first and threads fill the rest in any order. A
tensor goes through memory in runs of rows; one that keeps its type and order doesn't go through memory at all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ctxextend.checkpoint.gguf_header import read_header
from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError
from ctxextend.exports.layout import Layout, Transpose
from ctxextend.exports.outtypes import NATIVE
from ctxextend.formats.gguf_bytes import (
    DEFAULT_ALIGNMENT,
    Entry,
    data_bytes,
    encode_entry,
    encode_header,
    encode_key,
    offsets,
    padded,
)
from ctxextend.tensors.copying import CHUNK_BYTES, Progress, copy_span, start_writing
from ctxextend.tensors.llama_quantize import Quantizer, no_quantizer, quantise_file
from ctxextend.tensors.operations import Steps
from ctxextend.tensors.quantise import Scratch, convert, encode, encoded_bytes, tensor_type
from ctxextend.tensors.threads import Task, in_threads
from ctxextend.tensors.weights import Reader, Span, Weights, check_numbers

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: About how many elements of a tensor are in memory at once, for each thread: whole rows, and at least one.
BLOCK_ELEMENTS: Final = 1 << 21

#: In so many blocks at most a matrix is transposed.
_TRANSPOSED_BLOCKS: Final = 8


class Output(Struct, frozen=True, kw_only=True):
    """One GGUF checkpoint to write. ``outtype`` is one of ``outtypes.FILE_TYPES``.

    ``path`` is its file, which must not exist. ``keys`` are all its keys, encoded, ``general.file_type`` included;
    ``split_max_size`` is the size in bytes that no file should exceed, by which ``NAME.gguf`` becomes
    ``NAME-00001-of-00003.gguf`` and so on. A tensor is never split: one that is larger gets a larger file.
    """

    path: Path
    outtype: str
    keys: tuple[bytes, ...]
    split_max_size: int | None = None


class GgufFile(Struct, frozen=True, kw_only=True):
    """A file as it will be: its ``header``, and where each tensor's data starts, in bytes from the file's start."""

    path: Path
    size_bytes: int
    header: bytes
    entries: tuple[Entry, ...]
    starts: tuple[int, ...]


def plan_files(output: Output, layouts: Sequence[Layout]) -> tuple[GgufFile, ...]:
    """The files of an output of a native type, with their sizes, without reading or writing anything.

    Raises :class:`OutputError` for what a GGUF file can't hold.
    """
    tied = all(layout.name != "output.weight" for layout in layouts)
    entries = [
        Entry(name=layout.name, dtype=tensor_type(layout, output.outtype, tied=tied), shape=layout.shape)
        for layout in layouts
    ]
    return split_files(output.path, output.keys, entries, output.split_max_size)


def split_files(
    path: Path, keys: Sequence[bytes], entries: Sequence[Entry], max_size: int | None
) -> tuple[GgufFile, ...]:
    """Tensors laid out in one file, or in several of at most ``max_size`` bytes with the keys in the first.

    The names, and the keys that number the files, are those of llama.cpp's ``llama-gguf-split``.
    """
    parts = _parts(keys, entries, max_size) if max_size is not None else [list(entries)]
    count = len(parts)
    if count == 1:
        return (_file(path, keys, parts[0]),)
    name = path.name.removesuffix(".gguf")
    return tuple(
        _file(
            path.with_name(f"{name}-{number + 1:05}-of-{count:05}.gguf"),
            [*(keys if number == 0 else ()), *_split_keys(number, count, len(entries))],
            part,
        )
        for number, part in enumerate(parts)
    )


def needed_bytes(outputs: Sequence[Output], layouts: Sequence[Layout], source: Weights) -> int:
    """The room that writing takes: exact for native types, at most that for others, which go by way of a file.

    Raises :class:`OutputError` for what a GGUF file can't hold.
    """
    native, others = _sorted(outputs)
    needed = sum(file.size_bytes for output in native for file in plan_files(output, layouts))
    if others:
        if _between(native, _lossless(layouts, source), layouts) is None:
            needed += _size(others[0], _lossless(layouts, source), layouts)
        # No type that it writes is larger than Q8_0, and one that is split stands there twice for a while.
        needed += sum((2 if output.split_max_size else 1) * _size(output, "q8_0", layouts) for output in others)
    return needed


def write_gguf(
    outputs: Sequence[Output],
    layouts: Sequence[Layout],
    source: Weights,
    *,
    progress: Progress,
    quantizer: Quantizer | None = None,
) -> tuple[tuple[GgufFile, ...], ...]:
    """Write every output, each block of the source read and decoded once for all; gives the files of each.

    Types that aren't native are made by ``quantizer`` from a file of the type that loses nothing: one of the outputs,
    else one beside the first of them, which is removed. ``progress`` is told how many bytes were written. The bytes
    may not be on the disk yet: staging sees to that.

    Raises :class:`CheckpointError` for a tensor that is missing or has another shape than its layout,
    :class:`RefusedError` for numbers that a type can't hold and where a quantiser is missing, :class:`OutputError`
    where it fails, and :class:`OSError` as the system gives it, with partial files left behind.
    """
    native, others = _sorted(outputs)
    if others and quantizer is None:
        raise no_quantizer(others[0].outtype)
    planned = {output.path: plan_files(output, layouts) for output in native}
    if not others or quantizer is None:
        _write_files([*planned.values()], layouts, source, progress)
        return tuple(planned[output.path] for output in outputs)
    kind = _lossless(layouts, source)
    extra: tuple[GgufFile, ...] = ()
    between = _between(native, kind, layouts)
    if between is None:
        name = others[0].path.with_name(f".{others[0].path.name}.between")
        extra = plan_files(Output(path=name, outtype=kind, keys=others[0].keys), layouts)
        between = extra[0]
    _write_files([*planned.values(), *([extra] if extra else [])], layouts, source, progress)
    for output in others:
        planned[output.path] = write_quantised(quantizer, between.path, output, progress)
    for file in extra:
        file.path.unlink()
    return tuple(planned[output.path] for output in outputs)


def _between(native: Sequence[Output], kind: str, layouts: Sequence[Layout]) -> GgufFile | None:
    """An output that llama.cpp's quantiser can start from: of this type, and not split."""
    plans = (plan_files(output, layouts) for output in native if output.outtype == kind)
    return next((files[0] for files in plans if len(files) == 1), None)


def _write_files(
    planned: Sequence[Sequence[GgufFile]], layouts: Sequence[Layout], source: Weights, progress: Progress
) -> None:
    with Reader(source) as reader, ExitStack() as opened:
        places = [_opened(opened, files, progress) for files in planned]
        work = (task for layout in layouts for task in _tasks(reader, layout, [place[layout.name] for place in places]))
        in_threads(work, progress)


def _sorted(outputs: Sequence[Output]) -> tuple[list[Output], list[Output]]:
    """Those of native types, and the others."""
    native = [output for output in outputs if output.outtype in NATIVE]
    return native, [output for output in outputs if output.outtype not in NATIVE]


def _size(output: Output, outtype: str, layouts: Sequence[Layout]) -> int:
    as_type = Output(path=output.path, outtype=outtype, keys=output.keys, split_max_size=output.split_max_size)
    return sum(file.size_bytes for file in plan_files(as_type, layouts))


def _lossless(layouts: Sequence[Layout], source: Weights) -> str:
    """The smallest native type that holds every matrix as it is."""
    matrices = [name for layout in layouts if len(layout.shape) > 1 and not layout.exact for name in layout.sources]
    found = {source.tensor(name).dtype for name in matrices}
    return {"BF16": "bf16", "F16": "f16"}.get(found.pop(), "f32") if len(found) == 1 else "f32"


def write_quantised(quantizer: Quantizer, source: Path, output: Output, progress: Progress) -> tuple[GgufFile, ...]:
    """Write one output of a type that isn't native from the whole GGUF file ``source``; its keys are that file's.

    Raises :class:`OutputError` where the quantiser fails.
    """
    whole = output.path.with_name(f".{output.path.name}.whole")
    quantise_file(quantizer, source, whole, output.outtype)
    return place_whole(whole, output, progress)


def place_whole(whole: Path, output: Output, progress: Progress) -> tuple[GgufFile, ...]:
    """Give a file the name of an output, or take it apart where that is to be split; ``whole`` goes."""
    with whole.open("rb", buffering=0) as handle:
        size, read = os.fstat(handle.fileno()).st_size, handle.fileno()
        header = read_header(whole.name, size, lambda offset, count: os.pread(read, count, offset))
        entries = [Entry(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape) for tensor in header.tensors]
        spans = [header.gguf.tensor_spans[entry.name] for entry in entries]
        if output.split_max_size is None:
            progress(size)
            starts = tuple(start for start, _stop in spans)
            raw = os.pread(read, header.gguf.data_start, 0)
            whole.rename(output.path)
            return (GgufFile(path=output.path, size_bytes=size, header=raw, entries=tuple(entries), starts=starts),)
        keys = [os.pread(read, stop - start, start) for start, stop in header.gguf.spans.values()]
        files = split_files(output.path, keys, entries, output.split_max_size)
        with ExitStack() as opened:
            places = _opened(opened, files, progress)
            for entry, (start, stop) in zip(entries, spans, strict=True):
                place = places[entry.name]
                progress(copy_span(read, start, place.descriptor, place.start, stop - start, file=str(whole)))
    whole.unlink()
    return files


class _Place(Struct, frozen=True, kw_only=True):
    """Where a tensor goes: its type, the file, and its first byte there."""

    kind: str
    descriptor: int
    start: int


def _tasks(reader: Reader, layout: Layout, places: Sequence[_Place]) -> Iterator[Task]:
    """The pieces of one tensor's work; each gives the bytes that it wrote."""
    if layout.values is not None:
        yield partial(_write_values, layout, places)
        return
    elements = math.prod(layout.shape) // len(layout.sources)
    for number, name in enumerate(layout.sources):
        tensor = reader.weights.tensor(name)
        steps = Steps(layout.operations, tensor.shape, name=name)
        _check_shape(layout, steps, name)
        if (
            not steps.computes
            and name not in reader.weights.changes
            and all(place.kind == tensor.dtype for place in places)
        ):
            moved = steps.plain
        else:
            moved = False
            check_numbers(reader.weights, name)
        # Experts lie one behind the other.
        at = [
            _Place(
                kind=place.kind,
                descriptor=place.descriptor,
                start=place.start + encoded_bytes(number * elements, place.kind),
            )
            for place in places
        ]
        if moved:
            yield from _copies(reader, reader.weights.spans[name], at)
            continue
        rows = steps.shape[0]
        step = max(1, BLOCK_ELEMENTS // max(1, elements // rows)) if rows else 1
        if any(isinstance(operation, Transpose) for operation in layout.operations):
            # Every block is made of all rows of the source, which is read once a block.
            step = max(step, -(-rows // _TRANSPOSED_BLOCKS))
        for start in range(0, rows, step):
            yield partial(_convert_rows, reader, steps, name, start, min(start + step, rows), at)


def _check_shape(layout: Layout, steps: Steps, name: str) -> None:
    count, expected = (layout.shape[0], layout.shape[1:]) if layout.stacked else (1, layout.shape)
    if steps.shape == expected and len(layout.sources) == count:
        return
    raise CheckpointError(
        "a tensor has another shape than config.json gives it",
        code="unexpected-shape",
        key=name,
        expected=f"{list(expected)} as {layout.name}",
        found=f"{list(steps.shape)}",
        hint="config.json and the weights disagree; get both from one place",
    )


def _convert_rows(reader: Reader, steps: Steps, name: str, start: int, stop: int, places: Sequence[_Place]) -> int:
    """Rows of one tensor, read once and written as each type."""
    import numpy as np

    scratch = _scratch()
    tensor = reader.weights.tensor(name)
    rows = steps.source_rows(start, stop)
    kinds = [place.kind for place in places]
    if steps.computes or name in reader.weights.changes or tensor.dtype == "F8_E4M3":
        block = steps.forward(reader.numbers(name, rows, scratch), start, stop)
        raw, dtype = np.ascontiguousarray(block).reshape(-1).view(np.uint8), "F32"
    else:
        lines = reader.rows(name, rows, scratch)
        # Of an element, only the size matters where it is moved.
        width = tensor.size_bytes // max(1, tensor.elements)
        items = lines.view(f"u{width}").reshape(len(rows), *tensor.shape[1:])
        block = steps.forward(items, start, stop)
        raw, dtype = np.ascontiguousarray(block).reshape(-1).view(np.uint8), tensor.dtype
    elements = (stop - start) * math.prod(steps.shape[1:])
    first = elements // (stop - start) * start
    done = 0
    for place, out in zip(places, convert(raw, dtype, kinds, scratch, name=name), strict=True):
        done += _write(place.descriptor, out.data, place.start + encoded_bytes(first, place.kind))
    return done


_THREAD: Final = local()


def _scratch() -> Scratch:
    """The memory of this thread; it goes with the thread."""
    if not hasattr(_THREAD, "scratch"):
        _THREAD.scratch = Scratch()
    found: Scratch = _THREAD.scratch
    return found


def _write_values(layout: Layout, places: Sequence[_Place]) -> int:
    import numpy as np

    numbers = np.array(layout.values, np.float32)
    done = 0
    for place in places:
        out = np.empty(encoded_bytes(len(numbers), place.kind), np.uint8)
        encode(numbers, place.kind, out, Scratch(), name=layout.name)
        done += _write(place.descriptor, out.data, place.start)
    return done


def _copies(reader: Reader, span: Span, places: Sequence[_Place]) -> Iterator[Task]:
    """The bytes of a tensor as they are, in the kernel where it can."""
    for place in places:
        for done in range(0, span.stop - span.start, CHUNK_BYTES):
            count = min(CHUNK_BYTES, span.stop - span.start - done)
            yield partial(_copy, reader, span.path, span.start + done, place.descriptor, place.start + done, count)


def _copy(reader: Reader, path: Path, position: int, write: int, target: int, count: int) -> int:
    return copy_span(reader.descriptor(path), position, write, target, count, file=str(path))


def _write(descriptor: int, data: memoryview, position: int) -> int:
    """Write all of it; gives how many bytes that were."""
    left, at = data, position
    while left:
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done
    start_writing(descriptor, position, len(data))
    return len(data)


def _opened(opened: ExitStack, files: Iterable[GgufFile], progress: Progress) -> Mapping[str, _Place]:
    """Make an output's files, with their headers, and say where each tensor goes."""
    places: dict[str, _Place] = {}
    for file in files:
        descriptor = opened.enter_context(file.path.open("xb", buffering=0)).fileno()
        # What pads a tensor is never written: a file's unwritten bytes are zeros.
        os.truncate(descriptor, file.size_bytes)
        _write(descriptor, memoryview(file.header), 0)
        progress(file.size_bytes - sum(entry.size_bytes for entry in file.entries))
        for entry, start in zip(file.entries, file.starts, strict=True):
            places[entry.name] = _Place(kind=entry.dtype, descriptor=descriptor, start=start)
    return places


def _file(path: Path, keys: Sequence[bytes], entries: Sequence[Entry]) -> GgufFile:
    header = encode_header(keys, entries)
    return GgufFile(
        path=path,
        size_bytes=len(header) + data_bytes(entries, DEFAULT_ALIGNMENT),
        header=header,
        entries=tuple(entries),
        starts=tuple(len(header) + offset for offset in offsets(entries, DEFAULT_ALIGNMENT)),
    )


def _parts(keys: Sequence[bytes], entries: Sequence[Entry], max_size: int) -> list[list[Entry]]:
    """The tensors of each file, in order, as many as fit."""
    numbering = 24 + sum(len(key) for key in _split_keys(0, 1, len(entries)))
    parts: list[list[Entry]] = [[]]
    head, data = numbering + sum(len(key) for key in keys), 0
    for entry in entries:
        more = len(encode_entry(entry, 0)), padded(entry.size_bytes, DEFAULT_ALIGNMENT)
        if parts[-1] and padded(head + more[0], DEFAULT_ALIGNMENT) + data + more[1] > max_size:
            parts.append([])
            head, data = numbering, 0
        parts[-1].append(entry)
        head, data = head + more[0], data + more[1]
    return parts


def _split_keys(number: int, count: int, tensors: int) -> list[bytes]:
    return [
        encode_key("split.no", GgufValue(type="UINT16", value=number)),
        encode_key("split.count", GgufValue(type="UINT16", value=count)),
        encode_key("split.tensors.count", GgufValue(type="INT32", value=tensors)),
    ]
