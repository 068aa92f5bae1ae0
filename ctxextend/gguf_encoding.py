"""Which form of a scaling is written into a GGUF file: the first that llama.cpp reads as the planned table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from ctxextend.comparison import Comparison, compare
from ctxextend.contents import Gguf
from ctxextend.errors import RefusedError
from ctxextend.formats.gguf_write import GgufEncoding, applied
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import Reading
from ctxextend.runtimes.llama_cpp import LlamaCpp


class ChosenGguf(Struct, frozen=True, kw_only=True):
    """The encoding that was taken, and what the reader makes of the file with it."""

    encoding: GgufEncoding
    reading: Reading


def choose_gguf(
    gguf: Gguf,
    candidates: Iterable[GgufEncoding],
    planned: Mapping[str, RopeTable],
    *,
    target: int,
) -> ChosenGguf:
    """The first candidate whose reading is the planned table of every label, at ``target`` tokens.

    Raises :class:`RefusedError` (``unreadable``) naming the nearest one and its cost, or (``unwritable``)
    where the architecture has no form at all.
    """
    reader = LlamaCpp()
    misses: list[tuple[GgufEncoding, Comparison, str]] = []
    for candidate in candidates:
        reading = reader.effective(applied(gguf, candidate), length=target)
        comparison = compare(reading, planned, target=target)
        # Here a reader of which nothing is claimed is no agreement.
        reason = reading.unknown or comparison.reason
        if reason is None:
            return ChosenGguf(encoding=candidate, reading=reading)
        misses.append((candidate, comparison, comparison.cost or reason))
    raise _refused(gguf, misses)


def _refused(gguf: Gguf, misses: list[tuple[GgufEncoding, Comparison, str]]) -> RefusedError:
    name = gguf.architecture
    if not misses:
        return RefusedError(
            f"a GGUF file of the architecture {name} has no form for this table",
            code="unwritable",
            file=gguf.file,
            found="no key or tensor that its loader takes",
            hint="--method yarn, linear or ntk: keys alone carry them in every architecture",
        )
    # One that isn't read at all has no groups to be near with.
    nearest, _, cost = min(misses, key=lambda miss: (not miss[1].groups, miss[1].frequency_error))
    return RefusedError(
        f"no form of this table in a GGUF file of the architecture {name} is read by {LlamaCpp.runtime} as planned",
        code="unreadable",
        file=gguf.file,
        expected="the planned table",
        found=f"nearest: {nearest.name}: {cost}",
        hint="--method yarn with its own betas, linear or ntk: keys alone carry them in every architecture",
    )
