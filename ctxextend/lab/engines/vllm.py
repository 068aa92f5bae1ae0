"""vLLM's offline interface (``vllm.LLM``): the checkpoint as vLLM serves it, without a server.

Written after vLLM's documentation (``LLM``, ``SamplingParams``, ``RequestOutput``) and tested against a stand-in of
those names; it was not run with vLLM itself. A request for a prompt's log-probabilities doesn't use what the
prefix cache holds; a generation does.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.lab.engines.base import EngineFacts, Usage
from ctxextend.lab.engines.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ctxextend.lab.engines.base import LogProbs

#: Tokens read at once. A prompt's log-probabilities take a float a token of these and of the vocabulary.
BATCH_TOKENS: Final = 2048


def load(
    folder: Path,
    *,
    context: int,
    tensor_parallel: int | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> VllmEngine:
    """The checkpoint in ``folder``, for sequences of at most ``context`` tokens, over all visible GPUs by default.

    Raises :class:`UsageError` when vLLM isn't installed, and :class:`CtxextendError` with what it said when it can't
    load the checkpoint.
    """
    if context < 2:
        raise UsageError("the context must be at least two tokens", code="bad-number", found=str(context))
    try:
        vllm: Any = importlib.import_module("vllm")
    except ImportError as error:
        raise UsageError(
            "this needs vllm, which isn't installed", code="missing-extra", found=str(error), hint="pip install vllm"
        ) from None
    try:
        llm = vllm.LLM(
            model=str(folder),
            dtype=dtype,
            # Never a pickle.
            load_format="safetensors",
            trust_remote_code=trust_remote_code,
            max_model_len=context,
            tensor_parallel_size=tensor_parallel or _visible_gpus(),
            enable_prefix_caching=True,
            enable_chunked_prefill=True,
            max_num_batched_tokens=BATCH_TOKENS,
            max_num_seqs=1,
            # No cap: one whole distribution is asked for where a prompt fills the context.
            max_logprobs=-1,
            enforce_eager=False,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise CtxextendError(
            "vLLM can't load the checkpoint",
            code="engine-failed",
            file=str(folder),
            found=" ".join(str(error).split())[:500],
            hint=f"see what it says: vllm serve {folder} --max-model-len {context}",
        ) from error
    return VllmEngine(vllm, llm, Tokenizer(folder, trust_remote_code=trust_remote_code), context=context)


def _visible_gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


class VllmEngine:
    """A model in vLLM, asked one sequence at a time."""

    def __init__(self, vllm: Any, llm: Any, tokenizer: Tokenizer, *, context: int) -> None:
        self._vllm = vllm
        self._llm = llm
        self._tokenizer = tokenizer
        self._context = context
        self._tokens = 0
        self._seconds = 0.0
        config = llm.llm_engine.model_config
        self._facts = EngineFacts(
            engine="vllm",
            version=str(vllm.__version__),
            device="gpu",
            dtype=str(config.dtype).removeprefix("torch."),
            vocabulary=int(config.get_vocab_size()),
            context=context,
            opening=tokenizer.opening,
            weight_bytes=None,
            can=frozenset({"losses"}),
        )

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def usage(self) -> Usage:
        """Without a peak: the memory is reserved beforehand, whatever is asked."""
        return Usage(tokens=self._tokens, seconds=self._seconds, peak_memory_bytes=None)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def losses(self, tokens: Sequence[int], *, first: int = 1) -> list[float]:
        """Raises :class:`UsageError` when the tokens don't fit into the context."""
        if first < 1:
            raise UsageError("nothing predicts the first token", code="bad-number", found=str(first))
        self._check(len(tokens))
        ids = list(tokens)
        # vLLM always makes a token, and wants room for it: the last one of a full context is looked up there.
        full = len(ids) == self._context
        prompt = ids[:-1] if full else ids
        output = self._ask(prompt, max_tokens=1, prompt_logprobs=0, **({"logprobs": -1} if full else {}))
        entries = list(output.prompt_logprobs or ())[1:]
        if full:
            entries += list(output.outputs[0].logprobs or ())[:1]
        if len(entries) != len(ids) - 1:
            raise CtxextendError(
                "vLLM's answer isn't understood",
                code="bad-answer",
                expected=f"{len(ids) - 1} log-probabilities",
                found=str(len(entries)),
            )
        return [_loss(entry, token) for entry, token in zip(entries, ids[1:], strict=True)][first - 1 :]

    def log_probs(self, tokens: Sequence[int], *, first: int = 1) -> Iterator[LogProbs]:
        """Always raises :class:`RefusedError`: vLLM would make an object of each number."""
        raise RefusedError(
            f"vLLM doesn't give the whole distributions that predict {len(tokens) - first} tokens",
            code="no-logprobs",
            found="vllm",
            hint="--engine transformers",
        )

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """Raises :class:`UsageError` when the tokens and the continuation don't fit into the context."""
        self._check(len(tokens) + count)
        answer = self._ask(list(tokens), max_tokens=count).outputs[0]
        found = [int(token) for token in answer.token_ids]
        # Without stop strings, what stops is a token that ends the text, and it comes along.
        return found[:-1] if answer.finish_reason == "stop" else found

    def close(self) -> None:
        self._llm = None

    def _check(self, length: int) -> None:
        if length > self._context:
            raise UsageError(
                "the sequence is longer than the context that was asked for",
                code="too-long",
                expected=f"at most {self._context} tokens",
                found=str(length),
            )

    def _ask(self, tokens: list[int], **settings: Any) -> Any:
        """The one ``RequestOutput`` of a greedy request."""
        begun = time.perf_counter()
        prompt = self._vllm.TokensPrompt(prompt_token_ids=tokens)
        parameters = self._vllm.SamplingParams(temperature=0, **settings)
        output = self._llm.generate([prompt], parameters, use_tqdm=False)[0]
        self._seconds += time.perf_counter() - begun
        self._tokens += len(tokens) - (output.num_cached_tokens or 0) + len(output.outputs[0].token_ids)
        return output


def _loss(entry: Mapping[int, Any] | None, token: int) -> float:
    """From ``{token id: Logprob}``, which has the token itself beside the likeliest ones."""
    found = None if entry is None else entry.get(token)
    if found is None or not math.isfinite(found.logprob):
        raise CtxextendError(
            "vLLM gives no log-probability of a token of the prompt", code="bad-answer", found=f"token {token}"
        )
    return -float(found.logprob)
