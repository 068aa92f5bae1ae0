"""Engines by name: what runs the model that is measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from ctxextend import checkpoint
from ctxextend.errors import MissingExtraError, UsageError
from ctxextend.inspection import Inspection
from ctxextend.lab.engines.base import Engine, EngineFacts, Usage
from ctxextend.lab.memory import Need, available, require
from ctxextend.lab.names import EngineName
from ctxextend.pipeline import Opened

__all__ = ["Choice", "Engine", "EngineFacts", "Usage", "need_of", "open_engine"]


#: Bytes of a number, for the types that are asked for by name.
_NUMBERS: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}


class Choice(Struct, frozen=True, kw_only=True):
    """What is to run the model. ``endpoint``: the URL of a server that runs it already, instead of an engine.

    ``tokenizer``: a tokenizer.json, where a server can't turn text into tokens itself.
    """

    engine: EngineName = "auto"
    endpoint: str | None = None
    served_name: str | None = None
    api_key: str | None = None
    tokenizer: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False


def need_of(opened: Opened, inspection: Inspection, choice: Choice, *, length: int) -> Need | None:
    """The memory that ``length`` tokens will take; None where another program holds the model.

    Raises :class:`RefusedError` where there isn't as much, with the longest length that fits.
    """
    if choice.endpoint is not None:
        return None
    name = engine_of(opened, choice.engine)
    if name == "vllm":
        # It takes what it is given of a card, and says itself what fits.
        return None
    device = _device(choice.device) if name == "transformers" else "cpu"
    number = _NUMBERS.get(choice.dtype, 4 if device == "cpu" else None) if name == "transformers" else None
    masked = name == "transformers" and not device.startswith("cuda")
    return require(inspection, length=length, memory=available(device), dtype_bytes=number, masked=masked)


def _device(name: str) -> str:
    if name != "auto":
        return name
    require_modules("torch")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require_modules(*modules: str) -> None:
    """Raises :class:`MissingExtraError` for a module of the lab that isn't installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "lab")


def open_engine(opened: Opened, choice: Choice, *, length: int) -> Engine:
    """The model, ready for sequences of ``length`` tokens.

    Raises :class:`UsageError` for an engine that can't take this format or isn't installed.
    """
    if choice.endpoint is not None:
        from ctxextend.lab.engines.endpoint import connect

        return connect(
            choice.endpoint,
            model=choice.served_name,
            token=choice.api_key,
            tokenizer=choice.tokenizer or _tokenizer(opened.source.folder),
        )
    name = engine_of(opened, choice.engine)
    folder = checkpoint.folder_of(opened.source, opened.contents)
    if name == "llama.cpp":
        from ctxextend.lab.engines import llama_cpp

        assert opened.contents.gguf is not None
        file = folder / opened.contents.gguf.file.rpartition("/")[2]
        return llama_cpp.load(file, context=length, device=choice.device, exact=choice.dtype == "float32")
    if name == "vllm":
        from ctxextend.lab.engines import vllm

        return vllm.load(folder, context=length, dtype=choice.dtype)
    from ctxextend.lab.engines import transformers

    return transformers.load(
        folder,
        device=choice.device,
        dtype=choice.dtype,
        longest=length,
        trust_remote_code=choice.trust_remote_code,
    )


def engine_of(opened: Opened, name: EngineName) -> EngineName:
    """The engine that a name stands for. Raises :class:`UsageError` for one that can't read the format."""
    gguf = opened.contents.gguf is not None
    if name == "auto":
        return "llama.cpp" if gguf else "transformers"
    if gguf != (name == "llama.cpp"):
        raise UsageError(
            f"{name} doesn't take this format here",
            code="bad-engine",
            key="--engine",
            expected="llama.cpp" if gguf else "transformers or vllm",
            found=name,
            hint="ctxextend convert --to safetensors makes a folder of a GGUF file"
            if gguf
            else "ctxextend convert --to gguf makes a GGUF file of a folder",
        )
    return name


def _tokenizer(folder: Path | None) -> Path | None:
    """The tokenizer of a folder here, where it has one."""
    return folder / "tokenizer.json" if folder is not None and (folder / "tokenizer.json").is_file() else None
