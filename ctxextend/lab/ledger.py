"""The lines that a run leaves as it goes, so that one that was cut short goes on where it stopped.

``cells.jsonl``: a header that says what the numbers are of, then one result a line. Settings that only add
cells (more lengths, more samples) aren't in the header: a run with more of them takes what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from ctxextend.errors import RefusedError
from ctxextend.lab.results import Cell, Result

NAME: Final = "cells.jsonl"
SCHEMA: Final = "ctxextend.cells/1"

_DECODER: Final = msgspec.json.Decoder(Result)


class Ledger:
    """The results of a run by cell; in memory alone without a folder."""

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], *, name: str = NAME, anew: bool = False
    ) -> None:
        """``identity``: plain values that decide the numbers. ``anew`` throws away what is there.

        Raises :class:`RefusedError` when the folder holds results of something else.
        """
        self.results: dict[Cell, Result] = {}
        self._file: IO[bytes] | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        header = {"schema": SCHEMA, **msgspec.to_builtins(identity)}
        kept = b"" if anew or not path.exists() else path.read_bytes()
        good = self._read(kept, header, path) if kept else 0
        self._file = path.open("r+b" if good else "wb")
        # What a killed run left of its last line.
        self._file.truncate(good)
        self._file.seek(good)
        if not good:
            self._write(json.dumps(header, sort_keys=True).encode())

    def add(self, result: Result) -> None:
        """A result, on the disk before this returns."""
        self.results[result.cell] = result
        self._write(msgspec.json.encode(result))

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, kept: bytes, header: Mapping[str, Any], path: Path) -> int:
        """Take the whole lines; how many bytes they are. Zero for a file that broke off in its header."""
        first, newline, _rest = kept.partition(b"\n")
        if not newline:
            return 0
        try:
            found = json.loads(first)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise _other(path, "schema", SCHEMA, "something else")
        for key in sorted(header.keys() | found.keys()):
            if header.get(key) != found.get(key):
                raise _other(path, key, json.dumps(header.get(key)), json.dumps(found.get(key)))
        good = len(first) + 1
        for line in kept[good:].splitlines(keepends=True):
            try:
                if not line.endswith(b"\n"):
                    break
                result = _DECODER.decode(line)
            except msgspec.DecodeError:
                break
            self.results[result.cell] = result
            good += len(line)
        return good

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


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
