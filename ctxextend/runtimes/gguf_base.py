"""What a reader of GGUF files is: the table it uses, from the keys and the small rope tensors of a file."""

from __future__ import annotations

from typing import Protocol

from ctxextend.contents import Gguf
from ctxextend.runtimes.base import Evidence, Reading


class GgufReader(Protocol):
    """One runtime over one range of versions. ``current``: a bare runtime name means it."""

    @property
    def runtime(self) -> str: ...
    @property
    def versions(self) -> str: ...
    @property
    def current(self) -> bool: ...
    @property
    def evidence(self) -> Evidence: ...

    def effective(self, gguf: Gguf, *, length: int) -> Reading:
        """What it makes of a file that is served at ``length`` tokens."""
        ...

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """What serves the file ``source`` at ``length`` tokens, given what the reader reads of it."""
        ...
