"""Engines by name: what runs the model that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from ctxextend import checkpoint
from ctxextend.errors import UsageError
from ctxextend.formats.hf_read import text_config
from ctxextend.inspection import Inspection
from ctxextend.lab.engines.base import Engine, EngineFacts, Usage
from ctxextend.lab.engines.host import require_modules, usable_device
from ctxextend.lab.memory import Need, Setup, available, require, whole_tokens
from ctxextend.lab.names import EngineName
from ctxextend.pipeline import Opened

__all__ = ["Choice", "Engine", "EngineFacts", "Usage", "need_of", "open_engine", "require_modules", "whole_of"]


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


def need_of(opened: Opened, inspection: Inspection, choice: Choice, *, length: int, beside: int = 0) -> Need | None:
    """The memory that ``length`` tokens will take; None where another program holds the model.

    ``beside``: the tokens of a second cache, of a model that shares the weights.

    Raises :class:`RefusedError` where there isn't as much, with the longest length that fits;
    :class:`UsageError` for a device that isn't there and options that this engine has no use for.
    """
    held = _held(opened, inspection, choice, beside=beside)
    if held is None:
        return None
    device, setup = held
    return require(inspection, length=length, memory=available(device), setup=setup)


def whole_of(opened: Opened, inspection: Inspection, choice: Choice, *, length: int, beside: int = 0) -> int:
    """The longest text that one plain forward can read beside a cache of ``length`` tokens; at most ``length``.

    To be asked before the model is loaded, as :func:`need_of` is, and raising as it does. 0 where the engine can't.
    """
    held = _held(opened, inspection, choice, beside=beside)
    if held is None or engine_of(opened, choice.engine) != "transformers":
        return 0
    device, setup = held
    return whole_tokens(inspection, available(device), length=length, setup=setup)


def _held(opened: Opened, inspection: Inspection, choice: Choice, *, beside: int) -> tuple[str, Setup] | None:
    """Where the model will be held, and how; None where another program does."""
    name = usable_engine(opened, choice)
    # vLLM takes what it is given of a card, and says itself what fits.
    if name is None or name == "vllm":
        return None
    if name == "llama.cpp":
        exact = choice.dtype == "float32"
        scores = _exact_scores(opened) if exact else 0
        return "cpu", Setup(cache_bytes=4 if exact else 2, beside=beside, score_bytes=scores)
    device = usable_device(choice.device)
    number = _NUMBERS.get(choice.dtype, 4 if device == "cpu" else _own_bytes(inspection))
    return device, Setup(weight_bytes=number, on_cpu=not device.startswith("cuda"), beside=beside)


def _exact_scores(opened: Opened) -> int:
    """What llama.cpp's scores and mask take for a token of the text, in 32 bits, without flash attention."""
    from ctxextend.lab.engines.llama_cpp import BATCH_TOKENS

    gguf = opened.contents.gguf
    assert gguf is not None
    heads = gguf.keys.get(f"{gguf.architecture}.attention.head_count")
    counts = [count for count in (heads if isinstance(heads, tuple) else (heads,)) if isinstance(count, int)]
    return 4 * BATCH_TOKENS * (max(counts, default=0) + 1)


def _own_bytes(inspection: Inspection) -> int | None:
    """The bytes of a number by the type that config.json states, else by the weights; None where nothing tells."""
    _path, text = text_config(inspection.config, inspection.family)
    stated = (part.get(key) for part in (inspection.config, text) for key in ("dtype", "torch_dtype"))
    known = (_NUMBERS.get(str(name).removeprefix("torch.")) for name in stated)
    found = next((size for size in known if size is not None), None)
    if found is None and inspection.quantisation is None and inspection.parameters:
        found = round(inspection.weight_bytes / inspection.parameters) or None
    return found


def open_engine(opened: Opened, choice: Choice, *, length: int) -> Engine:
    """The model, ready for sequences of ``length`` tokens.

    Raises :class:`UsageError` for an engine that can't take this format or isn't installed, a device that isn't
    there, and options that this engine has no use for.
    """
    name = usable_engine(opened, choice)
    if choice.endpoint is not None:
        from ctxextend.lab.engines.endpoint import connect

        return connect(
            choice.endpoint,
            model=choice.served_name,
            token=choice.api_key,
            tokenizer=choice.tokenizer or _tokenizer(opened.source.folder),
        )
    folder = checkpoint.folder_of(opened.source, opened.contents)
    if name == "llama.cpp":
        from ctxextend.lab.engines import llama_cpp

        assert opened.contents.gguf is not None
        file = folder / opened.contents.gguf.file.rpartition("/")[2]
        return llama_cpp.load(file, context=length, device=choice.device, exact=choice.dtype == "float32")
    if name == "vllm":
        from ctxextend.lab.engines import vllm

        return vllm.load(folder, context=length, dtype=choice.dtype, trust_remote_code=choice.trust_remote_code)
    from ctxextend.lab.engines import transformers

    return transformers.load(
        folder,
        device=choice.device,
        dtype=choice.dtype,
        longest=length,
        trust_remote_code=choice.trust_remote_code,
    )


def usable_engine(opened: Opened, choice: Choice) -> EngineName | None:
    """The engine that is to run, None for a server. Raises :class:`UsageError` for options that would do nothing."""
    if choice.endpoint is not None:
        given: Mapping[str, tuple[object, object]] = {
            "--engine": (choice.engine, "auto"),
            "--device": (choice.device, "auto"),
            "--dtype": (choice.dtype, "auto"),
            "--trust-remote-code": (choice.trust_remote_code, False),
        }
        for option, (found, unset) in given.items():
            if found != unset:
                raise _idle(option, found, "the server has loaded the model already")
        return None
    name = engine_of(opened, choice.engine)
    if name == "vllm" and choice.device not in ("auto", "cuda"):
        raise _idle("--device", choice.device, "vLLM takes the GPUs that it sees: CUDA_VISIBLE_DEVICES names them")
    if name == "llama.cpp" and choice.dtype not in ("auto", "float32"):
        raise _idle("--dtype", choice.dtype, "a GGUF file's weights are of the type they are; float32 is for the cache")
    if name == "llama.cpp" and choice.trust_remote_code:
        raise _idle("--trust-remote-code", True, "a GGUF file brings no code")
    return name


def _idle(option: str, found: object, why: str) -> UsageError:
    return UsageError(
        f"{option} does nothing here: {why}",
        code="bad-option",
        key=option,
        found=None if found is True else str(found),
        hint=f"leave {option} away",
    )


def engine_of(opened: Opened, name: EngineName) -> EngineName:
    """The engine that a name stands for. Raises :class:`UsageError` for one that can't read the format."""
    return engine_for(name, gguf=opened.contents.gguf is not None)


def engine_for(name: EngineName, *, gguf: bool) -> EngineName:
    """The same for a format alone."""
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
