"""Which form of a scaling is written into a GGUF file: the first that llama.cpp reads as the planned table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from msgspec import Struct

from ctxextend.comparison import Comparison, compare
from ctxextend.contents import Gguf
from ctxextend.encoding import Verdict
from ctxextend.errors import RefusedError
from ctxextend.formats.gguf_write import GgufEncoding, applied
from ctxextend.rope import RopeTable
from ctxextend.runtimes import gguf_readers_of
from ctxextend.runtimes.base import Reading
from ctxextend.runtimes.llama_cpp import LlamaCpp

_HINT: Final = "--method yarn with its own betas, linear or ntk: keys alone carry them in every architecture"


class ChosenGguf(Struct, frozen=True, kw_only=True):
    """The encoding that was taken, and what the reader makes of the file with it.

    ``cost``: in what the reading isn't what was planned, where that was allowed.
    """

    encoding: GgufEncoding
    reading: Reading
    cost: str | None = None


def choose_gguf(
    gguf: Gguf,
    candidates: Iterable[GgufEncoding],
    planned: Mapping[str, RopeTable],
    *,
    target: int,
    carriers: Literal["auto", "native", "factors"] = "auto",
    allow: bool = False,
) -> ChosenGguf:
    """The first candidate whose reading is the planned table of every label, at ``target`` tokens.

    ``carriers``: ``native`` leaves out the forms with one factor a pair, ``factors`` all others. ``allow``:
    the nearest one is taken where none is right. Raises :class:`RefusedError` (``unreadable``) naming the
    nearest one and its cost, or (``unwritable``) where the architecture has no form at all.
    """
    reader = LlamaCpp()
    misses: list[tuple[GgufEncoding, Reading, Comparison, str]] = []
    for candidate in candidates:
        if carriers != "auto" and candidate.carried != (carriers == "factors"):
            continue
        reading = reader.effective(applied(gguf, candidate.edits), length=target)
        comparison = compare(reading, planned, target=target)
        # Here a reader of which nothing is claimed is no agreement.
        reason = reading.unknown or comparison.reason
        if reason is None:
            return ChosenGguf(encoding=candidate, reading=reading)
        misses.append((candidate, reading, comparison, comparison.cost or reason))
    if not misses:
        raise _unwritable(gguf, carriers)
    # One that isn't read at all has no groups to be near with.
    nearest, reading, compared, cost = min(misses, key=lambda miss: (not miss[2].groups, miss[2].frequency_error))
    if allow and compared.groups:
        return ChosenGguf(encoding=nearest, reading=reading, cost=cost)
    raise RefusedError(
        f"no form of this table in a GGUF file of the architecture {gguf.architecture} is read by "
        f"{LlamaCpp.runtime} as planned",
        code="unreadable",
        file=gguf.file,
        expected="the planned table",
        found=f"nearest: {nearest.name}: {cost}",
        hint=f"{_HINT}; --allow unreadable writes the nearest all the same",
    )


def judge_gguf(
    gguf: Gguf, planned: Mapping[str, RopeTable], *, target: int, required: Iterable[str]
) -> tuple[Verdict, ...]:
    """What llama.cpp, and the other readers of GGUF files among ``required``, make of a file served at ``target``."""
    readers = gguf_readers_of(dict.fromkeys((LlamaCpp.runtime, *required)))
    verdicts = []
    for reader in readers:
        reading = reader.effective(gguf, length=target)
        verdicts.append(Verdict(reader=reader, reading=reading, comparison=compare(reading, planned, target=target)))
    return tuple(verdicts)


def _unwritable(gguf: Gguf, carriers: str) -> RefusedError:
    return RefusedError(
        f"a GGUF file of the architecture {gguf.architecture} has no form for this table",
        code="unwritable",
        file=gguf.file,
        found="no key or tensor that its loader takes" if carriers == "auto" else f"--carrier {carriers}",
        hint=_HINT if carriers == "auto" else "--carrier auto allows the other forms",
    )
