"""Prompts of an exact number of tokens: pieces of text planted in a filler, with room for the answer.

Pieces are encoded one by one and put together as token ids, so that what is planted always stands whole and
the filler alone is cut to fit. What is drawn depends on nothing but a label, so any prompt can be made by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from ctxextend.errors import UsageError
from ctxextend.lab.engines.base import Engine

#: A filler of no interest, repeated as often as needed. Own wording after Mohtashami and Jaggi (arXiv 2305.16300).
FILLER = " The river is wide. The hills are low. The wind is mild. One day goes and the next one comes."


class Prompt(Struct, frozen=True, kw_only=True):
    """Token ids, how many tokens are left for the answer, and what it should name."""

    tokens: tuple[int, ...]
    reserve: int
    expected: tuple[str, ...]


class Plant(Struct, frozen=True, kw_only=True):
    """A text that stands at ``depth`` of the filler: 0 its beginning, 1 its end."""

    depth: float
    text: str


class Draws:
    """Numbers that follow from a label alone: SHA-256 of the label and a count, whatever Python or machine."""

    def __init__(self, *label: object) -> None:
        self._label = "/".join(map(str, label))
        self._count = 0

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound`` - 1."""
        self._count += 1
        digest = hashlib.sha256(f"{self._label}#{self._count}".encode()).digest()
        # Of 64 bits: for the bounds drawn here the remainder's bias is below one in 10^12.
        return int.from_bytes(digest[:8], "big") % bound

    def digits(self, count: int) -> str:
        """A number of so many digits, the first not 0."""
        return str(10 ** (count - 1) + self.below(9 * 10 ** (count - 1)))

    def sample(self, items: Sequence[str], count: int) -> list[str]:
        """``count`` different items in a drawn order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def shuffled(self, items: Sequence[str]) -> list[str]:
        """All items in a drawn order (Fisher and Yates)."""
        mixed = list(items)
        for end in range(len(mixed) - 1, 0, -1):
            other = self.below(end + 1)
            mixed[end], mixed[other] = mixed[other], mixed[end]
        return mixed


def assemble(
    engine: Engine,
    length: int,
    *,
    head: str,
    filler: Sequence[int],
    whole: int,
    plants: Sequence[Plant],
    question: str,
    reserve: int,
) -> tuple[int, ...]:
    """``length - reserve`` tokens: the tokenizer's opening, ``head``, the filler with its plants, ``question``.

    ``filler`` is repeated and cut to fit; plants stand at multiples of ``whole`` tokens in it. Raises
    :class:`UsageError` where the pieces alone don't fit.
    """
    first = [*engine.facts.opening, *engine.encode(head)]
    last = engine.encode(question)
    pieces = [(plant.depth, engine.encode(plant.text)) for plant in sorted(plants, key=lambda plant: plant.depth)]
    room = length - reserve - len(first) - len(last) - sum(len(piece) for _depth, piece in pieces)
    if room < 0:
        raise too_short(length, length - room)
    tokens, done = first, 0
    for depth, piece in pieces:
        place = min(round(depth * room / whole), room // whole) * whole
        tokens += _stretch(filler, done, place)
        tokens += piece
        done = place
    return (*tokens, *_stretch(filler, done, room), *last)


#: The code of what is said of a length without room for the question.
NO_ROOM: Final = "short-length"


def too_short(length: int, needed: int) -> UsageError:
    """What is said of a length that a prompt's pieces don't fit in.

    Rounded up: at another length other words are drawn, which may take some tokens more.
    """
    needed = -(-(needed + 32) // 128) * 128
    return UsageError(
        f"{length} tokens are too few for this question",
        code=NO_ROOM,
        expected=f"at least {needed} tokens",
        found=str(length),
        hint=f"leave this length out, or measure from {needed} tokens on",
    )


def _stretch(filler: Sequence[int], start: int, end: int) -> list[int]:
    """Tokens ``start`` to ``end`` of the filler repeated without end."""
    if start == end:
        return []
    first = start // len(filler) * len(filler)
    copies = -(-(end - first) // len(filler))
    return (list(filler) * copies)[start - first : end - first]
