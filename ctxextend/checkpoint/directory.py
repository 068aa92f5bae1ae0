"""Reading a checkpoint that lies in a directory: its documents and headers, never its weights."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from ctxextend.checkpoint.documents import (
    DOCUMENTS,
    INDEX,
    SKIPPED,
    TOKENIZER,
    TOKENIZER_HEAD_BYTES,
    check_index,
    parse_document,
    require_config,
    second_copies,
    storage_of,
    truncation_of,
    weight_files,
)
from ctxextend.checkpoint.safetensors_header import read_header
from ctxextend.contents import Contents, Document, FileInfo, Note, TensorInfo
from ctxextend.errors import CheckpointError


def read_directory(path: Path, *, name: str | None = None, source: str | None = None) -> Contents:
    """What lies in ``path``. Raises :class:`CheckpointError` naming the file for anything broken."""
    files, notes = _files(path)
    names = [file.path for file in files]
    sizes = {file.path: file.size_bytes for file in files}
    documents = {n: parse_document(n, _read(path, n)) for n in DOCUMENTS if n in sizes}
    require_config(documents, names)
    index = _index(path, sizes)
    tensors = _tensors(path, sizes, index)
    config = documents["config.json"].value
    return Contents(
        name=name or _name_of(path.resolve()),
        source=source or str(path),
        storage=storage_of(names, tensors),
        files=files,
        documents=documents,
        tensors=tensors,
        tokenizer_truncation=_truncation(path) if TOKENIZER in sizes else None,
        notes=(*notes, *second_copies(names, config)),
    )


def _name_of(path: Path) -> str:
    """What an output is named after: the folder, or the repository whose snapshot in the Hub's cache it is."""
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return path.name


def read_text(path: Path, name: str) -> Document:
    """One JSON document of a checkpoint, whole."""
    return parse_document(name, _read(path, name))


def _files(path: Path) -> tuple[tuple[FileInfo, ...], tuple[Note, ...]]:
    found, notes = [], []
    for full, relative in _walk(path):
        try:
            status = full.stat()
        except OSError as error:
            raise CheckpointError(
                "a file of the checkpoint can't be read",
                code="missing-file",
                file=relative,
                expected="a file",
                found="a link to nothing" if full.is_symlink() else (error.strerror or str(error)),
                hint="the download is incomplete: fetch the checkpoint again",
            ) from error
        if stat.S_ISREG(status.st_mode):
            found.append(FileInfo(path=relative, size_bytes=status.st_size))
        elif not stat.S_ISDIR(status.st_mode):
            notes.append(Note(code="special-file", message=f"{relative} is no ordinary file and is left out"))
        else:
            notes.append(Note(code="linked-folder", message=f"{relative} is a link to a folder and is left out"))
    return tuple(sorted(found, key=lambda file: file.path)), tuple(notes)


def _walk(path: Path) -> Iterator[tuple[Path, str]]:
    """Files, and links to anything; real folders are entered, linked ones are not."""
    for folder, folders, names in os.walk(path, onerror=_refuse_folder):
        folders[:] = sorted(f for f in folders if f not in SKIPPED)
        linked = [f for f in folders if (Path(folder) / f).is_symlink()]
        for name in (*sorted(names), *linked):
            full = Path(folder) / name
            yield full, full.relative_to(path).as_posix()


def _refuse_folder(error: OSError) -> None:
    # Without this, os.walk would leave the folder's files out in silence.
    raise CheckpointError(
        "a folder of the checkpoint can't be read",
        code="missing-file",
        file=str(error.filename),
        found=error.strerror,
        hint="check the folder's permissions",
    ) from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BufferedReader]:
    try:
        with (path / name).open("rb") as handle:
            yield handle
    except OSError as error:
        raise CheckpointError(
            "a file of the checkpoint can't be read",
            code="missing-file",
            file=name,
            found=error.strerror,
            hint="check the file's permissions",
        ) from error


def _read(path: Path, name: str) -> bytes:
    with _opened(path, name) as handle:
        return handle.read()


def _index(path: Path, sizes: dict[str, int]) -> dict[str, Any] | None:
    return parse_document(INDEX, _read(path, INDEX)).value if INDEX in sizes else None


def _tensors(path: Path, sizes: dict[str, int], index: dict[str, Any] | None) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    for name in weight_files(sizes, index):
        with _opened(path, name) as handle:
            tensors += read_header(name, sizes[name], partial(_pread, handle.fileno()))
    if index is not None:
        check_index(index, {tensor.name: tensor.file for tensor in tensors})
    return tuple(tensors)


def _pread(descriptor: int, offset: int, count: int) -> bytes:
    return os.pread(descriptor, count, offset)


def _truncation(path: Path) -> dict[str, Any] | None:
    with _opened(path, TOKENIZER) as handle:
        return truncation_of(handle.read(TOKENIZER_HEAD_BYTES))


def read_json(path: Path) -> Any:
    """A JSON file of the user's own (a plan, a list of factors). Raises :class:`CheckpointError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            "a file can't be read", code="missing-file", file=str(path), found=error.strerror
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "a file can't be read as JSON", code="broken-json", file=str(path), found=str(error)
        ) from error
