"""Reading a GGUF checkpoint: one file, or the files that llama.cpp's splitter makes of one."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from ctxextend.checkpoint.gguf_header import read_floats, read_header
from ctxextend.checkpoint.safetensors_header import ReadRange
from ctxextend.contents import Contents, FileInfo, Gguf, Note, TensorInfo
from ctxextend.errors import CheckpointError

#: The tensors by which a file changes its rope (llama.cpp b11434, ``src/llama-arch.cpp``, LLM_TENSOR_NAMES).
FACTOR_TENSORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

#: How llama.cpp names the files of a split one (``llama_split_path``): numbers from 1, of five digits.
_SHARD: Final = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_gguf(path: Path, *, source: str | None = None) -> Contents:
    """A GGUF file's header, with the tensors of its other files where it is split.

    Raises :class:`CheckpointError` naming the file for anything broken.
    """
    return read_gguf_in(path.parent, path.name, source=source or str(path))


def read_gguf_in(folder: Path, file: str, *, source: str, revision: str | None = None) -> Contents:
    """The same of a ``file`` below ``folder``, which the paths of the contents are relative to."""
    path = folder / file
    with ExitStack() as opened:
        try:
            # A checkpoint of one file doesn't need the names beside it.
            beside = [each.name for each in path.parent.iterdir()] if is_shard(file) else [path.name]
            present = {PurePosixPath(file).with_name(name).as_posix() for name in beside}
            shards, missing = shards_among(file, present)
            parts = [_opened(opened, folder, shard) for shard in shards]
            return gguf_contents(parts, missing=missing, source=source, revision=revision)
        except OSError as error:
            raise _unreadable(path, error) from error


def gguf_contents(
    parts: Sequence[tuple[FileInfo, ReadRange]],
    *,
    missing: Sequence[str],
    source: str,
    revision: str | None = None,
) -> Contents:
    """What the files of a GGUF checkpoint hold, the first one first, wherever they are read from.

    ``missing`` are the names of files that a split one has and that aren't there.
    """
    headers = [read_header(file.path, file.size_bytes, read) for file, read in parts]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    _check_unique(tensors)
    factors = {
        tensor.name: read_floats(header, tensor.name, read)
        for header, (_file, read) in zip(headers, parts, strict=True)
        for tensor in header.tensors
        if tensor.name in FACTOR_TENSORS
    }
    return Contents(
        name=name_of(PurePosixPath(parts[0][0].path).name),
        source=source,
        revision=revision,
        storage="gguf",
        files=tuple(file for file, _read in parts),
        documents={},
        tensors=tensors,
        notes=_notes(missing),
        gguf=msgspec.structs.replace(headers[0].gguf, factors=factors),
    )


def name_of(file: str) -> str:
    """What an output is named after: the file, without its number where it is split."""
    match = _SHARD.fullmatch(file)
    return match["name"] if match is not None else file.removesuffix(".gguf")


def is_shard(file: str) -> bool:
    """Whether a path is that of one file of several."""
    return _SHARD.fullmatch(file) is not None


def shard_names(file: str) -> list[str]:
    """The names of all files of the checkpoint that ``file`` belongs to; itself where it isn't split."""
    match = _SHARD.fullmatch(file)
    if match is None:
        return [file]
    count = int(match["count"])
    return [shard_name(match["name"], number, count) for number in range(1, count + 1)]


def first_shard(file: str) -> str:
    """The first of these names."""
    match = _SHARD.fullmatch(file)
    return file if match is None else shard_name(match["name"], 1, int(match["count"]))


def shard_name(name: str, number: int, count: int) -> str:
    """What the file ``number``, from 1, of ``count`` is called."""
    return f"{name}-{number:05}-of-{count:05}.gguf"


def read_part(path: Path) -> Gguf:
    """The header of one file alone, of a split checkpoint or not; rope tensors aren't read."""
    with ExitStack() as opened:
        file, read = _opened(opened, path.parent, path.name)
        return read_header(file.path, file.size_bytes, read).gguf


def shards_among(file: str, present: Collection[str]) -> tuple[list[str], list[str]]:
    """The files of the checkpoint that ``file`` belongs to: those that are ``present``, in order, and the others.

    Raises :class:`CheckpointError` for a number that can't be, and where the first one is missing.
    """
    match = _SHARD.fullmatch(file)
    if match is None:
        return [file], []
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise CheckpointError(
            "a split file's name can't be",
            code="missing-shard",
            file=file,
            expected=f"a number from 1 to {count}",
            found=match["number"],
        )
    names = shard_names(file)
    if names[0] not in present:
        raise CheckpointError(
            "the first file of a split GGUF is missing, and with it all settings",
            code="missing-shard",
            file=names[0],
            expected="the first file beside the others",
            found="none",
            hint="fetch all its files into one folder",
        )
    return [name for name in names if name in present], [name for name in names if name not in present]


def _opened(stack: ExitStack, folder: Path, file: str) -> tuple[FileInfo, ReadRange]:
    path = folder / file
    try:
        handle = stack.enter_context(path.open("rb"))
        size = os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    return FileInfo(path=file, size_bytes=size), partial(_pread, handle.fileno())


def _pread(descriptor: int, offset: int, count: int) -> bytes:
    return os.pread(descriptor, count, offset)


def _check_unique(tensors: tuple[TensorInfo, ...]) -> None:
    held: dict[str, str] = {}
    for tensor in tensors:
        if tensor.name in held:
            raise CheckpointError(
                "two files of a split GGUF hold the same tensor",
                code="broken-weights",
                file=tensor.file,
                key=tensor.name,
                expected="each tensor once",
                found=f"the same in {held[tensor.name]}",
                hint="fetch all its files from one place",
            )
        held[tensor.name] = tensor.file


def _notes(missing: Sequence[str]) -> tuple[Note, ...]:
    if not missing:
        return ()
    rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    message = f"{', '.join(missing[:3])}{rest}: not beside the first file; their tensors are unknown"
    return (Note(code="missing-shards", message=message),)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        "a file of the checkpoint can't be read",
        code="missing-file",
        file=str(path),
        found=error.strerror,
        hint="check the file's permissions",
    )
