"""The texts that are measured on: two novels that come along, or the user's own files.

What is read is bounded: an archive that unpacks without end, or a file of a terabyte, is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import IO, Final, cast
from zlib import error as ZlibError  # noqa: N812 - named like the class that it is

from msgspec import Struct

from ctxextend.errors import CtxextendError, UsageError

#: The most that all texts of a run may have together, unpacked.
LARGEST_BYTES: Final = 512 << 20

BUILTIN: Final = ("persuasion", "emma")
PLAIN: Final = frozenset({".txt", ".md"})
PACKED: Final = frozenset({".gz", ".xz"})


class Document(Struct, frozen=True, kw_only=True):
    """One text. ``name`` is a built-in name, a file's, or ``FILE:LINE`` of a line of JSON."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text's UTF-8 bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def builtin_names() -> tuple[str, ...]:
    """The documents that come along: Jane Austen's Persuasion and Emma, from their first chapter on."""
    return BUILTIN


def read_documents(given: Sequence[str] = ()) -> tuple[Document, ...]:
    """The documents that ``given`` names, in this order; both built-in ones where nothing is given.

    Each is a built-in name, a ``.txt`` or ``.md`` file, a ``.jsonl`` file with a ``text`` in each line (each a
    document), any of them packed as ``.gz`` or ``.xz``, or a folder of ``.txt`` files. Raises
    :class:`CtxextendError` for one that is missing, empty, broken or too large.
    """
    documents: list[Document] = []
    left = LARGEST_BYTES
    for name in given or BUILTIN:
        for document in _documents(name, left):
            if document.name in {other.name for other in documents}:
                raise UsageError(
                    f"two documents have the name {document.name}",
                    code="text-name",
                    hint="give each text once, and files different names",
                )
            left -= len(document.text.encode())
            documents.append(document)
    return tuple(documents)


def _documents(given: str, limit: int) -> Iterator[Document]:
    """What one name stands for, at most ``limit`` bytes in all."""
    if given in BUILTIN:
        packed = files("ctxextend.lab").joinpath("data", f"{given}.txt.xz").read_bytes()
        yield Document(name=given, text=lzma.decompress(packed).decode())
        return
    path = Path(given)
    if path.is_dir():
        yield from _folder(path, limit)
        return
    if not path.exists():
        raise CtxextendError(
            f"there is no text {given}",
            code="text-missing",
            file=given,
            hint=f"give a file, a folder of .txt files, or one of {', '.join(BUILTIN)}",
        )
    yield from _file(path, limit)


def _folder(path: Path, limit: int) -> Iterator[Document]:
    found = sorted(file for file in path.iterdir() if file.suffix == ".txt" and file.is_file())
    if not found:
        raise CtxextendError(
            "the folder has no text",
            code="text-missing",
            file=str(path),
            expected="files ending in .txt",
            hint="name the files one by one if they end in something else",
        )
    for file in found:
        for document in _file(file, limit):
            limit -= len(document.text.encode())
            yield document


def _file(path: Path, limit: int) -> Iterator[Document]:
    """The documents of one file, told apart by how its name ends."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind not in PLAIN and kind != ".jsonl":
        raise UsageError(
            "what kind of text this is can't be told from its name",
            code="text-kind",
            file=str(path),
            expected=".txt, .md or .jsonl, as it is or packed as .gz or .xz",
            found=path.name,
            hint="rename the file, to .txt if it is plain text",
        )
    text = _decoded(path, _bytes(path, limit))
    if kind == ".jsonl":
        yield from _lines(path, text)
    else:
        yield _filled(path, path.name, text)


def _bytes(path: Path, limit: int) -> bytes:
    """The file's bytes, unpacked."""
    try:
        with _opened(path) as stream:
            raw = stream.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, ZlibError) as error:
        raise CtxextendError(
            f"the file can't be unpacked: {error}",
            code="text-broken",
            file=str(path),
            hint="fetch it again; gzip -t or xz -t says whether it is whole",
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CtxextendError(
            f"the file can't be read: {reason}",
            code="text-broken",
            file=str(path),
            hint="see that it is a file and may be read",
        ) from error
    if len(raw) > limit:
        raise UsageError(
            "this is more text than is read",
            code="text-size",
            file=str(path),
            expected=f"at most {LARGEST_BYTES >> 20} MiB in all, unpacked",
            hint="give a part of it: a document only has to be longer than the longest length",
        )
    return raw


def _opened(path: Path) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        case ".xz":
            return lzma.open(path, "rb")
        case _:
            return path.open("rb")


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CtxextendError(
            "the text isn't UTF-8",
            code="text-encoding",
            file=str(path),
            expected="UTF-8",
            found=f"0x{raw[error.start]:02x} at byte {error.start}",
            hint=f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} (or from what it was written in)",
        ) from error


def _lines(path: Path, text: str) -> Iterator[Document]:
    """One document a line; empty lines are passed over."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise _empty(path)
    for number, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _no_text(path, number, f"no JSON: {error}") from error
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise _no_text(path, number, "no text")
        yield _filled(path, f"{path.name}:{number}", value["text"])


def _no_text(path: Path, number: int, found: str) -> CtxextendError:
    return CtxextendError(
        "a line has no text",
        code="text-line",
        file=str(path),
        key=f"line {number}",
        expected='an object with a string "text"',
        found=found,
        hint=f"see it with: sed -n {number}p {path.name}",
    )


def _filled(path: Path, name: str, text: str) -> Document:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can write half a surrogate pair, which is no text that any tokenizer takes.
        raise CtxextendError(
            "the text has half a character",
            code="text-encoding",
            file=str(path),
            key=name,
            found=f"character {error.start}",
            hint="write the JSON again with whole characters",
        ) from error
    if not text.strip():
        raise _empty(path, name)
    return Document(name=name, text=text)


def _empty(path: Path, name: str | None = None) -> CtxextendError:
    return CtxextendError(
        "the text is empty", code="text-empty", file=str(path), key=name, hint="give a text, or leave this one out"
    )
