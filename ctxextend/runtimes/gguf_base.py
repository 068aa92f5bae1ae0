"""What a reader of GGUF files is: the table it uses, from the keys and the small rope tensors of a file."""

from __future__ import annotations

from typing import Protocol

from ctxextend.contents import Gguf
from ctxextend.runtimes.base import Reading, Runtime


class GgufReader(Runtime, Protocol):
    """A runtime that reads GGUF files."""

    def effective(self, gguf: Gguf, *, length: int) -> Reading:
        """What it makes of a file that is served at ``length`` tokens."""
        ...
