"""Who is told what a run does: nobody, unless the command line or a caller listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ctxextend.apply import Progress, silent
from ctxextend.lab.verbs import Laid
from ctxextend.release.results import StepResult, VariantResult


class Audience:
    """Told of each step as it comes; every method may be overridden."""

    def variant(self, result: VariantResult) -> None:
        """A variant begins; it brings the warnings of its plans."""

    def begins(self, step: StepResult, *, number: int, of: int) -> None:
        """A step begins: the ``number``-th ``of`` all in its variant."""

    def ended(self, step: StepResult) -> None:
        """It has ended, well or not, or is as it was."""

    def say(self, text: str) -> None:
        """What is done next within a step."""

    @contextmanager
    def copying(self, _size_bytes: int) -> Iterator[Progress]:
        """While a conversion writes."""
        yield silent

    @contextmanager
    def measuring(self) -> Iterator[tuple[Callable[[Laid], object], Progress]]:
        """While an evaluation reads: told what it will take, and of each result."""
        yield (lambda _laid: None), silent
