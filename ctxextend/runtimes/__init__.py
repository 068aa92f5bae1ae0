"""The runtimes: what each reader makes of a checkpoint. One file a runtime, one entry a version range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ctxextend.errors import UnknownNameError, UsageError
from ctxextend.runtimes.base import Evidence, Reader, Reading
from ctxextend.runtimes.ctranslate2 import CTranslate2
from ctxextend.runtimes.exllama import ExLlamaV2, ExLlamaV3
from ctxextend.runtimes.mlx_lm import MlxLm
from ctxextend.runtimes.ollama_create import OllamaCreate
from ctxextend.runtimes.onnxruntime_genai import OnnxRuntimeGenAi
from ctxextend.runtimes.sglang import Sglang
from ctxextend.runtimes.tensorrt_llm import TensorRtLlm
from ctxextend.runtimes.tgi import Tgi
from ctxextend.runtimes.transformers import Transformers5
from ctxextend.runtimes.transformers_4 import OLDER, Transformers4
from ctxextend.runtimes.versions import covers
from ctxextend.runtimes.vllm import Vllm
from ctxextend.runtimes.vllm_older import VllmOlder

__all__ = ["DEFAULT_RUNTIMES", "GGUF_RUNTIMES", "READERS", "Evidence", "Reader", "Reading", "readers_of"]

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
    """The readers of config.json that runtime names mean, newest versions first.

    A bare name means the runtime's current versions; ``name@version`` means those and every older range
    back to the one that holds the version. Raises :class:`UnknownNameError` for a name that isn't known,
    :class:`UsageError` for a version that no range holds.
    """
    wanted: set[tuple[str, str]] = set()
    for spelled in names:
        name, _at, version = spelled.partition("@")
        wanted |= {(reader.runtime, reader.versions) for reader in _readers_of(name, version)}
    return tuple(reader for reader in READERS if (reader.runtime, reader.versions) in wanted)


def _readers_of(name: str, version: str) -> tuple[Reader, ...]:
    ranges = tuple(reader for reader in READERS if reader.runtime == name)
    if not ranges and name not in GGUF_RUNTIMES:
        raise UnknownNameError("runtime", name, {*(reader.runtime for reader in READERS), *GGUF_RUNTIMES})
    if not version or not ranges:
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
