"""The runtimes: what each reader makes of a checkpoint. One file a runtime, one entry a version range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from ctxextend.errors import UnknownNameError, UsageError
from ctxextend.runtimes.base import Evidence, Reader, Reading
from ctxextend.runtimes.ctranslate2 import CTranslate2
from ctxextend.runtimes.exllama import ExLlamaV2, ExLlamaV3
from ctxextend.runtimes.gguf_base import GgufReader
from ctxextend.runtimes.llama_cpp import GGUF_READERS
from ctxextend.runtimes.mlx_lm import MlxLm
from ctxextend.runtimes.ollama_create import OllamaCreate
from ctxextend.runtimes.onnxruntime_genai import OnnxRuntimeGenAi
from ctxextend.runtimes.sglang import Sglang
from ctxextend.runtimes.tensorrt_llm import TensorRtLlm
from ctxextend.runtimes.tgi import Tgi
from ctxextend.runtimes.transformers import Transformers5
from ctxextend.runtimes.transformers_4 import OLDER, Transformers4
from ctxextend.runtimes.versions import covers, parsed
from ctxextend.runtimes.vllm import Vllm
from ctxextend.runtimes.vllm_older import VllmOlder

__all__ = [
    "DEFAULT_RUNTIMES",
    "GGUF_RUNTIMES",
    "READERS",
    "Evidence",
    "Reader",
    "Reading",
    "gguf_readers_of",
    "readers_of",
]

AnyReader = TypeVar("AnyReader", Reader, GgufReader)

#: Every reader of config.json, a runtime's newest versions first.
READERS: Final[tuple[Reader, ...]] = (
    Transformers5(),
    Transformers4(),
    *OLDER,
    Vllm(),
    VllmOlder(),
    Sglang(),
    MlxLm(),
    ExLlamaV3(),
    ExLlamaV2(),
    Tgi(),
    TensorRtLlm(),
    CTranslate2(),
    OnnxRuntimeGenAi(),
    OllamaCreate(),
)

#: Those that read a GGUF file, which a conversion of a safetensors checkpoint doesn't write.
GGUF_RUNTIMES: Final = ("llama.cpp", "ollama")

#: Those that must agree when the user names none.
DEFAULT_RUNTIMES: Final = ("transformers", "vllm", "sglang", "llama.cpp", "mlx-lm")


def readers_of(names: Iterable[str]) -> tuple[Reader, ...]:
    """The readers of config.json that runtime names mean, newest versions first; case doesn't count.

    A bare name means the runtime's current versions; ``name@version`` means those and every older range
    back to the one that holds the version. Raises :class:`UnknownNameError` for a name that isn't known,
    :class:`UsageError` for a version that no range holds.
    """
    wanted: set[tuple[str, str]] = set()
    for spelled in names:
        name, version = _taken_apart(spelled)
        ranges = tuple(reader for reader in READERS if reader.runtime == name)
        if not ranges and name not in GGUF_RUNTIMES:
            raise UnknownNameError("runtime", name, {*(reader.runtime for reader in READERS), *GGUF_RUNTIMES})
        if ranges:
            wanted |= {(reader.runtime, reader.versions) for reader in _within(ranges, name, version)}
        else:
            _within(tuple(reader for reader in GGUF_READERS if reader.runtime == name), name, version)
    return tuple(reader for reader in READERS if (reader.runtime, reader.versions) in wanted)


def gguf_readers_of(names: Iterable[str]) -> tuple[GgufReader, ...]:
    """The readers of GGUF files among ``names``, spelled as for :func:`readers_of`; other names mean none."""
    wanted: set[tuple[str, str]] = set()
    for spelled in names:
        name, version = _taken_apart(spelled)
        ranges = tuple(reader for reader in GGUF_READERS if reader.runtime == name)
        wanted |= {(reader.runtime, reader.versions) for reader in _within(ranges, name, version) if ranges}
    return tuple(reader for reader in GGUF_READERS if (reader.runtime, reader.versions) in wanted)


def _taken_apart(spelled: str) -> tuple[str, str | None]:
    """A name in lower case and its version, if it has one. Raises :class:`UsageError` where either is empty."""
    name, at, version = spelled.strip().partition("@")
    if not name:
        raise UsageError(
            "a runtime without a name",
            code="unknown-runtime",
            key="--runtimes",
            expected="names with commas between them, such as transformers,vllm",
            found=repr(spelled),
        )
    if at:
        # Its spelling counts whichever range is meant.
        parsed(version)
    return name.lower(), version if at else None


def _within(ranges: tuple[AnyReader, ...], name: str, version: str | None) -> tuple[AnyReader, ...]:
    """The current ones, and those back to the one that holds the version."""
    if version is None or not ranges:
        return tuple(reader for reader in ranges if reader.current)
    oldest = next((i for i, reader in enumerate(ranges) if covers(reader.versions, version)), None)
    if oldest is None:
        raise UsageError(
            f"how {name} {version} reads a rope isn't known",
            code="unknown-version",
            key="--runtimes",
            expected=", ".join(reader.versions for reader in ranges),
            found=f"{name}@{version}",
            hint=f"--runtimes {name} means its current versions",
        )
    return tuple(reader for i, reader in enumerate(ranges) if reader.current or i <= oldest)
