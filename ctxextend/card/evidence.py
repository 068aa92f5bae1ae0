"""What ``eval --report`` and ``smoke --json`` left in a folder, as far as a card shows it.

Read by the published schemas (``ctxextend.eval/1``, ``ctxextend.smoke/1``) and not by the classes that write them:
a card is made where none of what measures is installed, and of reports of other versions too.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from ctxextend.errors import CheckpointError

#: The files that are read, with what they say of themselves.
EVAL: Final = "eval.json"
SMOKE: Final = "smoke.json"
SCHEMAS: Final = {EVAL: "ctxextend.eval/1", SMOKE: "ctxextend.smoke/1"}

#: The charts that a report may hold, in the order in which they are shown. ``NAME.png`` each.
CHARTS: Final = {
    "perplexity": "Perplexity by position",
    "passkey": "Pass keys by length and depth",
    "needles": "Needles by length and depth",
    "variables": "Variable tracking by length",
    "words": "Word extraction by length",
    "tasks": "Tasks by length",
    "short": "Short contexts against the original",
    "spectrum": "The spectrum of the rope before and after",
    "memory": "The KV cache by length",
}

#: Where in the repository the charts lie.
FOLDER: Final = "evidence"

#: A report is some hundred kilobytes; more is something else.
_MOST_BYTES: Final = 1 << 26


class Engine(Struct, frozen=True, kw_only=True):
    """What ran a measurement."""

    engine: str
    version: str
    device: str
    dtype: str


class Text(Struct, frozen=True, kw_only=True):
    """A document that was read; ``tokens`` counts the model's own."""

    name: str
    sha256: str
    tokens: int


class Point(Struct, frozen=True, kw_only=True):
    """The perplexity of ``count`` predictions at positions ``start`` to ``end``; None where it wasn't finite."""

    start: int
    end: int
    count: int
    perplexity: float | None


class Curve(Struct, frozen=True, kw_only=True):
    """Perplexity at one length; ``ratio``: past the trained length over that of the same tokens read within it."""

    length: int
    windows: int
    whole: float | None
    points: tuple[Point, ...]
    ratio: float | None


class Sliding(Struct, frozen=True, kw_only=True):
    """Sliding-window perplexity at a length; ``stride`` counts tokens."""

    length: int
    stride: int
    windows: int
    perplexity: float | None


class Rate(Struct, frozen=True, kw_only=True):
    """``found`` of ``asked`` came back, with the 95 % interval; ``depth`` None: over all depths."""

    kind: str
    length: int
    depth: float | None
    asked: int
    found: int
    rate: float
    low: float
    high: float


class Short(Struct, frozen=True, kw_only=True):
    """Against the original at a length that it could do: perplexities, mean KL in nats a token, same top tokens."""

    length: int
    count: int
    perplexity: float | None
    perplexity_against: float | None
    regression: float | None
    kl: float | None
    same_top: float


class Gate(Struct, frozen=True, kw_only=True):
    """A bound and the figure held to it."""

    name: str
    bound: float
    measured: float | None
    ok: bool


class Memory(Struct, frozen=True, kw_only=True):
    """What a sequence of ``length`` tokens needs beside the weights."""

    length: int
    kv_cache_bytes: int


class Evaluation(Struct, frozen=True, kw_only=True):
    """What ``eval`` measured. Lengths count tokens."""

    schema: str
    version: str
    ok: bool
    source: str
    against: str | None
    method: str | None
    trained_context: int
    current_context: int
    engine: Engine
    texts: tuple[Text, ...]
    curves: tuple[Curve, ...]
    sliding: tuple[Sliding, ...]
    rates: tuple[Rate, ...]
    short: tuple[Short, ...]
    gates: tuple[Gate, ...]
    memory: tuple[Memory, ...]

    @property
    def longest(self) -> int:
        """The longest text that was read, in tokens."""
        lengths = [one.length for one in self.curves]
        lengths += [one.length for one in self.sliding]
        return max((*lengths, *(one.length for one in self.rates)), default=0)


class SmokeCheck(Struct, frozen=True, kw_only=True):
    """One check of a smoke test."""

    name: str
    ok: bool
    detail: str
    skipped: bool = False


class Smoke(Struct, frozen=True, kw_only=True):
    """What ``smoke`` found at ``length`` tokens."""

    schema: str
    version: str
    ok: bool
    length: int
    trained_context: int
    engine: str
    engine_version: str
    device: str
    dtype: str
    checks: tuple[SmokeCheck, ...]


class Evidence(Struct, frozen=True, kw_only=True):
    """What is known of how good a result is. ``pictures`` are names of PNG files in the folder that it was read from.

    A card shows them from the repository's folder ``evidence``: :func:`pictures_of` says what goes where.
    """

    evaluation: Evaluation | None = None
    smoke: Smoke | None = None
    pictures: tuple[str, ...] = ()


Read = TypeVar("Read", Evaluation, Smoke)


def read_evidence(folder: Path, names: Collection[str] = (EVAL, SMOKE)) -> Evidence | None:
    """What the folder of ``eval --report`` holds, and a ``smoke.json`` in it; None where neither is there.

    Only the ``names`` are read. Raises :class:`CheckpointError` for a report that can't be read.
    """
    evaluation = _read(folder / EVAL, Evaluation) if EVAL in names else None
    smoke = _read(folder / SMOKE, Smoke) if SMOKE in names else None
    if evaluation is None and smoke is None:
        return None
    # Charts without numbers could be of anything.
    charts = (f"{name}.png" for name in CHARTS) if evaluation is not None else ()
    pictures = tuple(name for name in charts if (folder / name).is_file())
    return Evidence(evaluation=evaluation, smoke=smoke, pictures=pictures)


def pictures_of(evidence: Evidence, folder: Path) -> dict[str, Path]:
    """The files that a card with this evidence shows, by their path in the repository."""
    return {f"{FOLDER}/{name}": folder / name for name in evidence.pictures}


def _read(path: Path, kind: type[Read]) -> Read | None:
    wanted = SCHEMAS[path.name]
    try:
        with path.open("rb") as handle:
            raw = handle.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _broken(path, wanted, error.strerror or str(error)) from error
    try:
        document: Any = msgspec.json.decode(raw)
        found = document.get("schema") if isinstance(document, dict) else None
        if found != wanted:
            raise _broken(path, wanted, str(found)[:100])
        return msgspec.convert(document, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(path, wanted, str(error)) from error


def _broken(path: Path, wanted: str, found: str) -> CheckpointError:
    return CheckpointError(
        "the evidence can't be read",
        code="broken-evidence",
        file=str(path),
        expected=wanted,
        found=found,
        hint="make it again: ctxextend eval PATH --report DIR, ctxextend smoke PATH --json > DIR/smoke.json",
    )
