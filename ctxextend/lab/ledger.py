"""The lines that a run leaves as it goes, so that one that was cut short goes on where it stopped.

``cells.jsonl``: a header that says what the numbers are of, then one result a line with what it took. Settings that
only add cells (more lengths, more samples) aren't in the header: a run with more of them takes what is there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import msgspec
from msgspec import Struct

from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.lab.engines.ranks import agreed, is_first
from ctxextend.lab.results import Cell, Result
from ctxextend.lengths import show_tokens

NAME: Final = "cells.jsonl"
SCHEMA: Final = "ctxextend.cells/1"

#: How every ledger begins.
_BEGINNING: Final = f'{{"schema": "{SCHEMA}"'.encode()

#: So much of a label is legible in a file's name.
_LEGIBLE: Final = 40


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A result and what it took: the tokens read, by both models where two were, and the seconds."""

    result: Result
    tokens: int = 0
    seconds: float = 0.0


class Ledger:
    """The results of a run by cell; in memory alone without a folder, and in all processes but the first."""

    def __init__(
        self,
        folder: Path | None,
        identity: Mapping[str, Any],
        *,
        name: str = NAME,
        anew: bool = False,
        partial: bool = False,
    ) -> None:
        """Reads what an earlier run left, and writes nothing yet.

        ``identity``: plain values that decide the numbers; ``partial``: some of them, to look only. ``anew`` throws
        away what is there, once something is written. Raises :class:`RefusedError` when the folder holds results of
        something else, :class:`CheckpointError` when a line of them is broken that isn't the last.
        """
        self.entries: dict[Cell, Entry] = {}
        self._path = None if folder is None or not is_first() else folder / name
        self._header: dict[str, Any] = {"schema": SCHEMA, **dict(sorted(msgspec.to_builtins(identity).items()))}
        self._partial = partial
        self._file: IO[bytes] | None = None
        self._good = 0
        if self._path is not None and not anew and self._path.exists():
            self._good = self._read(self._path.read_bytes(), self._path)
        lines = agreed([_encoded(entry).decode() for entry in self.entries.values()])
        self.entries = {entry.result.cell: entry for entry in map(_decoded, lines)}

    @property
    def results(self) -> Mapping[Cell, Result]:
        """What there is so far."""
        return {cell: entry.result for cell, entry in self.entries.items()}

    def __contains__(self, cell: Cell) -> bool:
        return cell in self.entries

    def begin(self) -> None:
        """Make the folder and the file, where they are to be: what can't be written is better known at once."""
        if self._path is None or self._file is not None:
            return
        assert not self._partial
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._good:
            self._file = self._path.open("r+b")
            # What a killed run left of its last line.
            self._file.truncate(self._good)
            self._file.seek(self._good)
            return
        # A link is taken away, not written through.
        self._path.unlink(missing_ok=True)
        self._file = self._path.open("xb")
        self._write(json.dumps(self._header).encode())

    def add(self, result: Result, *, tokens: int = 0, seconds: float = 0.0) -> None:
        """A result and what it took, on the disk before this returns."""
        entry = Entry(result=result, tokens=tokens, seconds=seconds)
        self.begin()
        self._write(_encoded(entry))
        self.entries[result.cell] = entry

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, kept: bytes, path: Path) -> int:
        """Take the whole lines; how many bytes they are. Zero for a file that broke off in its header."""
        first, newline, rest = kept.partition(b"\n")
        if not begins_as_ledger(first):
            raise _other(path, "schema", SCHEMA, "something else")
        if not newline:
            return 0
        try:
            found = json.loads(first)
        except ValueError:
            raise _broken(path, 1) from None
        for key in sorted(self._header.keys() | (set() if self._partial else found.keys())):
            if self._header.get(key) != found.get(key):
                raise _other(path, key, json.dumps(self._header.get(key)), json.dumps(found.get(key)))
        good = len(first) + 1
        lines = rest.splitlines(keepends=True)
        for number, line in enumerate(lines, start=2):
            try:
                entry = _decoded(line)
            except (ValueError, msgspec.MsgspecError):
                if number <= len(lines):
                    raise _broken(path, number) from None
                break
            if not line.endswith(b"\n"):
                break
            self.entries[entry.result.cell] = entry
            good += len(line)
        return good

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def begins_as_ledger(data: bytes) -> bool:
    """Whether a file with this beginning is one of ours, or what a killed run left of one."""
    return data.startswith(_BEGINNING) or _BEGINNING.startswith(data)


def name_for(label: str, target: int) -> str:
    """The file of one candidate: legible as far as names of files are, and another for every label and length."""
    legible = "".join(c if (c.isascii() and c.isalnum()) or c in ".-" else "_" for c in label)[:_LEGIBLE]
    told = hashlib.sha256(f"{label} {target}".encode()).hexdigest()[:8]
    return f"cells-{legible}-{show_tokens(target)}-{told}.jsonl"


def _encoded(entry: Entry) -> bytes:
    """One line of JSON. What it hasn't got, it holds as words: "nan", "inf" and "-inf"."""
    return json.dumps(_worded(msgspec.to_builtins(entry)), allow_nan=False, separators=(",", ":")).encode()


def _worded(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            return {key: _worded(part) for key, part in value.items()}
        case list() | tuple():
            return [_worded(part) for part in value]
        case _:
            return value


def _decoded(line: bytes | str) -> Entry:
    # Not strict: a float's words are read as the float.
    return msgspec.convert(json.loads(line), Entry, strict=False)


def _other(path: Path, key: str, expected: str, found: str) -> RefusedError:
    return RefusedError(
        "the results that lie there are of another run",
        code="other-results",
        file=str(path),
        key=key,
        expected=expected,
        found=found,
        hint="another --report folder, or --force to begin anew there",
    )


def _broken(path: Path, line: int) -> CheckpointError:
    return CheckpointError(
        "the results that lie there are broken in the middle",
        code="broken-results",
        file=str(path),
        key=f"line {line}",
        hint="take that line away to go on with the others, or --force to begin anew",
    )
