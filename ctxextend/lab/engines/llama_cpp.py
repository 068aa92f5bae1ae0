"""GGUF files through llama.cpp itself, as its own programs read them.

As llama-server does by default: the KV cache in 16 bits, flash attention where the device has it. ``exact``
keeps both in 32 bits, for numbers that are held against another implementation. The context length given
at loading counts: a file with two sets of frequencies (longrope) is read with the long ones as soon as
that length is above the original one.
"""

from __future__ import annotations

import ctypes as c
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ctxextend.errors import CheckpointError, CtxextendError, RefusedError, UsageError
from ctxextend.lab.engines.base import EngineFacts, Usage
from ctxextend.lab.engines.host import peak_memory_bytes
from ctxextend.lab.engines.libllama import (
    F16,
    F32,
    FLASH_ATTENTION_AUTO,
    FLASH_ATTENTION_OFF,
    NO_VOCABULARY,
    Batch,
    Library,
    library,
)

if TYPE_CHECKING:
    import numpy as np

    from ctxextend.lab.engines.base import LogProbs

#: Tokens read at once: llama.cpp's physical batch, which also bounds the buffer of logits (batch times vocabulary).
BATCH_TOKENS: Final = 512
#: Rows whose exponentials are held at once.
_ROWS: Final = 64
_ALL_LAYERS: Final = 999


def load(
    file: Path, *, context: int, device: str = "auto", threads: int | None = None, exact: bool = False
) -> LlamaCppEngine:
    """A GGUF file (of a split one the first shard), for sequences of at most ``context`` tokens.

    ``device``: ``cpu``, or all layers on the GPU: ``auto`` where the build can, any other name always.
    Raises :class:`UsageError` (no llama.cpp, no such device), :class:`RefusedError` (an unknown build, a model that
    doesn't continue text) and :class:`CheckpointError` with what llama.cpp logged.
    """
    if context < 1:
        raise UsageError("the context must be at least one token", code="bad-number", found=str(context))
    lib = library()
    gpu = _on_gpu(lib, device)
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = _ALL_LAYERS if gpu else 0
    # An empty list: a build with a GPU would otherwise still use it for large products.
    nothing = (c.c_void_p * 1)()
    if not gpu:
        parameters.devices = nothing
    with lib.quiet() as log:
        model = lib.llama_model_load_from_file(os.fsencode(file), parameters)
    if not model:
        raise CheckpointError("llama.cpp can't load the file", code="unreadable", file=str(file), found=_told(log))
    if lib.llama_model_has_encoder(model):
        lib.llama_model_free(model)
        raise RefusedError("an encoder-decoder model doesn't continue text", code="not-causal", file=str(file))
    settings = lib.llama_context_default_params()
    settings.n_ctx = context
    settings.n_batch = settings.n_ubatch = settings.n_outputs_max = BATCH_TOKENS
    settings.n_outputs_max_per_seq = BATCH_TOKENS
    settings.n_threads = settings.n_threads_batch = threads or _processors()
    settings.flash_attn_type = FLASH_ATTENTION_OFF if exact else FLASH_ATTENTION_AUTO
    settings.type_k = settings.type_v = F32 if exact else F16
    with lib.quiet() as log:
        handle = lib.llama_init_from_model(model, settings)
    if not handle:
        lib.llama_model_free(model)
        raise CtxextendError(
            f"llama.cpp can't make a context of {context} tokens",
            code="engine-failed",
            file=str(file),
            found=_told(log),
            hint="a shorter length needs less memory",
        )
    return LlamaCppEngine(lib, model, handle, context=context, device="gpu" if gpu else "cpu")


def _on_gpu(lib: Library, device: str) -> bool:
    if device == "cpu":
        return False
    able = bool(lib.llama_supports_gpu_offload())
    if device != "auto" and not able:
        raise UsageError(
            "this build of llama.cpp runs on the CPU only",
            code="no-device",
            expected="auto or cpu",
            found=device,
            hint="--device cpu, or CTXEXTEND_LIBLLAMA=PATH of a libllama built for the device",
        )
    if ":" in device:
        raise UsageError(
            "llama.cpp spreads a model over all GPUs that it sees",
            code="no-device",
            found=device,
            hint=f"CUDA_VISIBLE_DEVICES={device.split(':', 1)[1]} with --device auto",
        )
    return able


def _processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _told(log: Sequence[str]) -> str:
    return "; ".join(line for line in log if line)


class LlamaCppEngine:
    """A model in llama.cpp with one sequence, whose last tokens stay in the KV cache."""

    def __init__(self, lib: Library, model: int, context_handle: int, *, context: int, device: str) -> None:
        self._lib = lib
        self._model: int | None = model
        self._context: int | None = context_handle
        self._vocab = lib.llama_model_get_vocab(model)
        self._kept: list[int] = []
        self._tokens = 0
        self._seconds = 0.0
        self._vocabulary = int(lib.llama_vocab_n_tokens(self._vocab))
        description = c.create_string_buffer(256)
        lib.llama_model_desc(model, description, len(description))
        self._facts = EngineFacts(
            engine="llama.cpp",
            version=lib.version,
            device=device,
            # Architecture, size and the type of the weights.
            dtype=description.value.decode().split(" ", 2)[-1],
            vocabulary=self._vocabulary,
            context=context,
            opening=(lib.llama_vocab_bos(self._vocab),) if lib.llama_vocab_get_add_bos(self._vocab) else (),
            weight_bytes=int(lib.llama_model_size(model)),
            can=frozenset({"losses", "log_probs"}),
        )

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def usage(self) -> Usage:
        """The peak is of the whole process, and unknown on a GPU."""
        peak = peak_memory_bytes() if self._facts.device == "cpu" else None
        return Usage(tokens=self._tokens, seconds=self._seconds, peak_memory_bytes=peak)

    def encode(self, text: str) -> list[int]:
        """Raises :class:`CheckpointError` for a file without a tokenizer."""
        self._require_tokenizer()
        data = text.encode()
        # A token is at least one byte, but for the space that some vocabularies put in front.
        room = (c.c_int32 * (len(data) + 8))()
        with self._lib.quiet():
            count = self._lib.llama_tokenize(self._vocab, data, len(data), room, len(room), False, False)
        if count < 0:
            raise CtxextendError("llama.cpp can't tokenize the text", code="engine-failed")
        return room[:count]

    def decode(self, tokens: Sequence[int]) -> str:
        """Raises :class:`CheckpointError` for a file without a tokenizer."""
        self._require_tokenizer()
        ids = (c.c_int32 * len(tokens))(*tokens)
        size = 16 * len(tokens) + 16
        while True:
            text = c.create_string_buffer(size)
            count = self._lib.llama_detokenize(self._vocab, ids, len(tokens), text, size, False, False)
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            size = -count

    def losses(self, tokens: Sequence[int], *, first: int = 1) -> list[float]:
        """Raises :class:`UsageError` when the tokens don't fit into the context."""
        import numpy as np

        found: list[float] = []
        for start, logits in self._logits(tokens, first):
            targets = np.asarray(tokens[start : start + len(logits)])
            for low in range(0, len(logits), _ROWS):
                rows = _log_softmax(logits[low : low + _ROWS])
                found += (-rows[np.arange(len(rows)), targets[low : low + _ROWS]]).tolist()
        return found

    def log_probs(self, tokens: Sequence[int], *, first: int = 1) -> Iterator[LogProbs]:
        """Raises :class:`UsageError` when the tokens don't fit into the context."""
        for _start, logits in self._logits(tokens, first):
            # llama.cpp's own buffer may be written again before the caller comes back.
            kept = logits.copy()
            for low in range(0, len(kept), _ROWS):
                yield _log_softmax(kept[low : low + _ROWS])

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """Raises :class:`UsageError` when the tokens and the continuation don't fit into the context."""
        self._check(tokens, len(tokens) + count)
        ids = list(tokens)
        while len(ids) < len(tokens) + count:
            best = int(self._read(ids, len(ids) - 1, len(ids))[0].argmax())
            if self._lib.llama_vocab_is_eog(self._vocab, best):
                break
            ids.append(best)
        return ids[len(tokens) :]

    def close(self) -> None:
        with self._lib.quiet():
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def _logits(self, tokens: Sequence[int], first: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """The logits that predict ``tokens[first:]``, batch by batch, each with the first index it predicts."""
        if first < 1:
            raise UsageError("nothing predicts the first token", code="bad-number", found=str(first))
        ids = list(tokens)
        self._check(ids, len(ids))
        for start in range(first, len(ids), BATCH_TOKENS):
            stop = min(start + BATCH_TOKENS, len(ids))
            # An offset of one: a token is predicted where the one before it stands.
            yield start, self._read(ids, start - 1, stop - 1)

    def _check(self, tokens: Sequence[int], length: int) -> None:
        limit = self._facts.context
        if limit is not None and length > limit:
            raise UsageError(
                "the sequence is longer than the context that was asked for",
                code="too-long",
                expected=f"at most {limit} tokens",
                found=f"{length}",
            )
        # llama.cpp reads the embedding of an id that it doesn't have from beyond the table.
        strange = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if strange is not None:
            raise UsageError(
                "a token that the model doesn't have",
                code="unknown-token",
                expected=f"0 to {self._vocabulary - 1}",
                found=str(strange),
            )
        if not tokens:
            raise UsageError("there is no token to read", code="bad-number", expected="at least 1", found="0")

    def _read(self, ids: list[int], start: int, stop: int) -> np.ndarray[Any, Any]:
        """Read ``ids[:stop]``, and give the logits at positions ``start`` to ``stop``: at most a batch of them.

        The array is llama.cpp's own, and good until the next call.
        """
        import numpy as np

        begun = time.perf_counter()
        position = self._keep(ids, start)
        while position < start:
            end = min(position + BATCH_TOKENS, start)
            self._decode(ids[position:end], wanted=False)
            position = end
        self._decode(ids[start:stop], wanted=True)
        logits = self._lib.llama_get_logits(self._context)
        self._seconds += time.perf_counter() - begun
        return np.ctypeslib.as_array(logits, shape=(stop - start, self._vocabulary))

    def _keep(self, ids: list[int], most: int) -> int:
        """Drop from the cache what differs from ``ids``, and what stands at ``most`` and after; how much is left."""
        if self._context is None:
            raise CtxextendError("the engine was closed", code="engine-failed")
        pairs = zip(self._kept[:most], ids, strict=False)
        same = next((index for index, (a, b) in enumerate(pairs) if a != b), min(most, len(self._kept)))
        if same < len(self._kept):
            memory = self._lib.llama_get_memory(self._context)
            # States that can't be turned back (recurrent models) are made anew.
            if not self._lib.llama_memory_seq_rm(memory, 0, same, -1):
                self._lib.llama_memory_clear(memory, True)
                same = 0
            del self._kept[same:]
        return same

    def _decode(self, ids: list[int], *, wanted: bool) -> None:
        """Read at most a batch behind what is kept. ``wanted``: logits of all of them, else of none."""
        count = len(ids)
        batch = Batch(
            n_tokens=count, token=(c.c_int32 * count)(*ids), logits=(c.c_int8 * count)(*[int(wanted)] * count)
        )
        with self._lib.quiet() as log:
            status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise CtxextendError(
                f"llama.cpp can't read {count} tokens after {len(self._kept)}",
                code="engine-failed",
                found=_told(log) or f"status {status}",
                hint="a shorter length needs less memory",
            )
        self._kept += ids
        self._tokens += count

    def _require_tokenizer(self) -> None:
        if self._lib.llama_vocab_type(self._vocab) == NO_VOCABULARY:
            raise CheckpointError("the file holds no tokenizer", code="no-tokenizer")


def _log_softmax(logits: np.ndarray[Any, Any]) -> LogProbs:
    """Of each row, in float32."""
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: LogProbs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
