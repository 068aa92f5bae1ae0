"""An engine without a model: one token a byte, losses by a rule of the position, answers from a function.

The probability of the token that really follows is exp(-loss(position)), position counting from 0 the token that
makes the prediction; the rest of the probability is shared evenly by all other tokens. So every loss, every
perplexity and every KL divergence can be worked out by hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ctxextend.errors import RefusedError
from ctxextend.lab.engines.base import Capability, EngineFacts, Usage

if TYPE_CHECKING:
    from ctxextend.lab.engines.base import LogProbs

#: The 256 bytes, and a beginning-of-sequence token.
BEGINNING = 256
VOCABULARY = 257


def two_then_four(trained: int) -> Callable[[int], float]:
    """Perplexity 2 at positions before ``trained``, 4 from there on."""
    return lambda position: math.log(2) if position < trained else math.log(4)


def every_number(prompt: str) -> str:
    """Answers with every different number of the prompt: finds whatever number was planted."""
    return " " + ", ".join(dict.fromkeys(re.findall(r"\d+", prompt)))


class ToyEngine:
    """Satisfies ``Engine``. ``prompts`` keeps what ``generate`` was asked, ``sequences`` what was scored."""

    def __init__(
        self,
        *,
        loss: Callable[[int], float] | None = None,
        answer: Callable[[str], str] = every_number,
        opening: tuple[int, ...] = (BEGINNING,),
        can: frozenset[Capability] = frozenset({"losses", "log_probs"}),
        rows: int = 7,
        context: int | None = None,
    ) -> None:
        self._loss = loss or two_then_four(256)
        self._answer = answer
        self._rows = rows
        self._read = 0
        self.closed = False
        self.prompts: list[tuple[int, ...]] = []
        self.sequences: list[tuple[int, ...]] = []
        self.facts = EngineFacts(
            engine="toy",
            version="1",
            device="cpu",
            dtype="float32",
            vocabulary=VOCABULARY,
            context=context,
            opening=opening,
            weight_bytes=0,
            can=can,
        )

    @property
    def usage(self) -> Usage:
        return Usage(tokens=self._read, seconds=self._read / 1000, peak_memory_bytes=None)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token != BEGINNING).decode(errors="replace")

    def losses(self, tokens: Sequence[int], *, first: int = 1) -> list[float]:
        self._begin("losses", tokens)
        return [self._loss(position - 1) for position in range(first, len(tokens))]

    def log_probs(self, tokens: Sequence[int], *, first: int = 1) -> Iterator[LogProbs]:
        self._begin("log_probs", tokens)
        for start in range(first, len(tokens), self._rows):
            yield self._rows_of(tokens, start, min(start + self._rows, len(tokens)))

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        self._read += len(tokens)
        self.prompts.append(tuple(tokens))
        return self.encode(self._answer(self.decode(tokens)))[:count]

    def close(self) -> None:
        self.closed = True

    def _begin(self, capability: Capability, tokens: Sequence[int]) -> None:
        if capability not in self.facts.can:
            raise RefusedError(f"the toy engine gives no {capability}", code=f"no-{capability.replace('_', '-')}")
        self._read += len(tokens)
        self.sequences.append(tuple(tokens))

    def _rows_of(self, tokens: Sequence[int], start: int, end: int) -> LogProbs:
        import numpy as np

        found = np.empty((end - start, VOCABULARY), dtype=np.float32)
        for row, position in enumerate(range(start, end)):
            likely = math.exp(-self._loss(position - 1))
            found[row] = math.log((1 - likely) / (VOCABULARY - 1)) if likely < 1 else -math.inf
            found[row, tokens[position]] = -self._loss(position - 1)
        return found
