"""The runtimes: what each reader makes of a checkpoint. One file a runtime, one entry a version range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ctxextend.errors import UnknownNameError
from ctxextend.runtimes.base import Evidence, Reader, Reading
from ctxextend.runtimes.mlx_lm import MlxLm
from ctxextend.runtimes.sglang import Sglang
from ctxextend.runtimes.transformers import Transformers4, Transformers5
from ctxextend.runtimes.vllm import Vllm

__all__ = ["DEFAULT_RUNTIMES", "GGUF_RUNTIMES", "READERS", "Evidence", "Reader", "Reading", "readers_of"]

READERS: Final[tuple[Reader, ...]] = (Transformers5(), Transformers4(), Vllm(), Sglang(), MlxLm())

#: Those that read a GGUF file, which a conversion of a safetensors checkpoint doesn't write.
GGUF_RUNTIMES: Final = ("llama.cpp",)

#: Those that must agree when the user names none.
DEFAULT_RUNTIMES: Final = ("transformers", "vllm", "sglang", "llama.cpp", "mlx-lm")


def readers_of(names: Iterable[str]) -> tuple[Reader, ...]:
    """The readers that bare runtime names mean: their current versions that read config.json.

    Raises :class:`UnknownNameError` for a name that isn't known.
    """
    known = {reader.runtime for reader in READERS}
    wanted = list(names)
    for name in wanted:
        if name not in known and name not in GGUF_RUNTIMES:
            raise UnknownNameError("runtime", name, [*known, *GGUF_RUNTIMES])
    return tuple(reader for reader in READERS if reader.runtime in wanted and reader.current)
