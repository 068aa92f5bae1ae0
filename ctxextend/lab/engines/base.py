"""What every engine answers, whatever runs the model: token ids in, numbers out.

A measurement is written once, over this protocol. An engine keeps what it has read of the last token
ids and reads only what differs where its cache allows it: measurements that share a beginning are
cheaper in an order that keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np

    #: Shape (positions, vocabulary), float32.
    LogProbs = np.ndarray[Any, np.dtype[np.float32]]

#: What an engine can be asked for beside text: each token's loss, whole distributions.
Capability = Literal["losses", "log_probs"]


class EngineFacts(Struct, frozen=True, kw_only=True):
    """What ran a measurement. Sizes are in bytes; None where the engine doesn't tell.

    ``context``: the longest sequence in tokens that the engine takes; ``opening``: the tokens that its tokenizer
    puts before a text (a beginning-of-sequence token, or nothing).
    """

    engine: str
    version: str
    device: str
    dtype: str
    vocabulary: int | None
    context: int | None
    opening: tuple[int, ...]
    weight_bytes: int | None
    can: frozenset[Capability]


class Usage(Struct, frozen=True, kw_only=True):
    """What an engine has done so far. ``tokens`` counts those it read, without those it had kept."""

    tokens: int
    seconds: float
    peak_memory_bytes: int | None


class Engine(Protocol):
    """One loaded model."""

    @property
    def facts(self) -> EngineFacts: ...

    @property
    def usage(self) -> Usage: ...

    def encode(self, text: str) -> list[int]:
        """A text's token ids, without special ones."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones left out."""

    def losses(self, tokens: Sequence[int], *, first: int = 1) -> list[float]:
        """The loss in nats of each of ``tokens[first:]``, predicted from all that stands before it.

        Raises :class:`RefusedError` where the engine can't.
        """

    def log_probs(self, tokens: Sequence[int], *, first: int = 1) -> Iterator[LogProbs]:
        """The log-probabilities (nats) that predict ``tokens[first:]``, some positions at a time, in order.

        Raises :class:`RefusedError` where the engine can't.
        """

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """The most likely continuation, at most ``count`` tokens; shorter where the model ends it."""

    def close(self) -> None:
        """Give the memory back."""
