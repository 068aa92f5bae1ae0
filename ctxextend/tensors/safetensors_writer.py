"""Writing safetensors files without holding a tensor: the header with all offsets first, then the data in pieces.

Format: see ``checkpoint/safetensors_header.py``. Names and the index of a split checkpoint are those of
transformers, the order inside a file is that of the safetensors library: the same tensors give the same bytes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ctxextend.contents import DTYPE_BITS, TensorInfo
from ctxextend.tensors.copying import Progress, start_writing

#: The file of a checkpoint that isn't split, and the index of one that is.
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

#: The size of a file above which transformers splits a checkpoint.
MAX_SHARD_BYTES: Final = 5_000_000_000

#: Gives a tensor's data, little endian, in pieces of any size and order: each with its first byte's place in it.
Pieces = Callable[[TensorInfo], Iterable[tuple[int, bytes | memoryview]]]


def in_shards(tensors: Sequence[TensorInfo], max_shard_bytes: int = MAX_SHARD_BYTES) -> tuple[TensorInfo, ...]:
    """The tensors with the file that each goes to; ``max_shard_bytes`` counts data, without headers.

    Files are filled in the order of the tensors; one that is larger than a whole file gets its own, and the
    file before goes on.
    """
    closed: list[list[TensorInfo]] = []
    current: list[TensorInfo] = []
    filled = 0
    for tensor in tensors:
        if tensor.size_bytes > max_shard_bytes:
            closed.append([tensor])
            continue
        if filled + tensor.size_bytes > max_shard_bytes:
            closed.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += tensor.size_bytes
    shards = [*closed, current] if current else closed
    count = len(shards)
    files = {
        tensor.name: f"model-{number:05}-of-{count:05}.safetensors" if count > 1 else SINGLE
        for number, shard in enumerate(shards, start=1)
        for tensor in shard
    }
    return tuple(msgspec.structs.replace(tensor, file=files[tensor.name]) for tensor in tensors)


def write_shards(folder: Path, tensors: Sequence[TensorInfo], pieces: Pieces, *, progress: Progress) -> tuple[str, ...]:
    """Write tensors to the files that they name in ``folder``, and the index where there are several.

    ``pieces`` must cover each tensor once. ``progress`` is told how many bytes of data are done. Gives the names
    of the files written. The bytes may not be on the disk yet: staging sees to that.
    """
    files = tuple(dict.fromkeys(tensor.file for tensor in tensors))
    for file in files:
        held = sorted((t for t in tensors if t.file == file), key=_place)
        with (folder / file).open("xb", buffering=0) as handle:
            header = _header(held)
            place = len(header)
            _write(handle.fileno(), header, 0)
            for tensor in held:
                done = 0
                for offset, piece in pieces(tensor):
                    count = _write(handle.fileno(), piece, place + offset)
                    done += count
                    progress(count)
                if done != tensor.size_bytes:
                    raise AssertionError(f"{tensor.name}: {done} bytes of {tensor.size_bytes}")
                place += done
    if len(files) == 1:
        return files
    index = {
        "metadata": {"total_size": sum(tensor.size_bytes for tensor in tensors)},
        "weight_map": {tensor.name: tensor.file for tensor in sorted(tensors, key=lambda t: t.name)},
    }
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    with (folder / INDEX).open("x", encoding="utf-8", newline="\n") as handle:
        handle.write(text)
    return (*files, INDEX)


def _place(tensor: TensorInfo) -> tuple[int, str]:
    """Wide elements first, so that each tensor is aligned to its own."""
    return -DTYPE_BITS[tensor.dtype], tensor.name


def _header(tensors: Sequence[TensorInfo]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size_bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _write(descriptor: int, data: bytes | memoryview, place: int) -> int:
    """Write all of it, and tell how many bytes that were."""
    view = memoryview(data)
    count = view.nbytes
    # A view of no elements can't be cast.
    left, at = view.cast("B") if count else memoryview(b""), place
    while len(left):
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done
    start_writing(descriptor, place, count)
    return count
