"""As much of ``vllm`` as is documented of ``LLM``, ``SamplingParams``, ``TokensPrompt`` and ``RequestOutput``.

vLLM can't be installed here. Parameters are spelled out, so that a name that vLLM doesn't have fails, and what it
refuses is refused: a context beyond the configuration's, and a prompt that leaves no room for one token. The model
is the rule of ``stand_in_server``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from tests.lab.stand_in_server import END, following, log_prob

VOCABULARY = 300


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str
    index: int = 0
    text: str = ""
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    num_cached_tokens: int | None
    finished: bool = True


@dataclass
class ModelConfig:
    dtype: str = "torch.bfloat16"

    def get_vocab_size(self) -> int:
        return VOCABULARY


@dataclass
class Engine:
    model_config: ModelConfig = field(default_factory=ModelConfig)


class LLM:
    """The last one made is in ``made``."""

    made: list[LLM] = []  # noqa: RUF012

    def __init__(  # noqa: PLR0913
        self,
        model: str,
        *,
        dtype: str = "auto",
        load_format: str = "auto",
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        enable_prefix_caching: bool | None = None,
        enable_chunked_prefill: bool | None = None,
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int | None = None,
        max_logprobs: int = 20,
        enforce_eager: bool = False,
    ) -> None:
        longest = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
        if max_model_len is not None and max_model_len > longest:
            raise ValueError(f"User-specified max_model_len ({max_model_len}) is greater than the derived {longest}")
        self.settings = {key: value for key, value in locals().items() if key not in {"self", "longest"}}
        self.max_model_len = max_model_len or longest
        self.max_logprobs = max_logprobs
        self.llm_engine = Engine()
        self.kept: list[int] = []
        LLM.made[:] = [self]

    def generate(
        self, prompts: list[TokensPrompt], sampling_params: SamplingParams, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert not use_tqdm
        return [self._one(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    def _one(self, prompt: list[int], settings: SamplingParams) -> RequestOutput:
        if len(prompt) >= self.max_model_len:
            raise ValueError(f"The decoder prompt (length {len(prompt)}) plus the number of requested output tokens")
        if settings.logprobs == -1 and self.max_logprobs != -1:
            raise ValueError("Requested sample logprobs of -1, which is greater than max allowed: 20")
        assert settings.temperature == 0
        made: list[int] = []
        room = min(settings.max_tokens or 16, self.max_model_len - len(prompt))
        while len(made) < room and END not in made:
            made.append(following((prompt + made)[-1]))
        told: list[dict[int, Logprob] | None] | None = None
        kept = 0
        if settings.prompt_logprobs is not None:
            pairs = pairwise(prompt)
            told = [None, *({token: Logprob(log_prob(before, token))} for before, token in pairs)]
        else:
            kept = len(prompt) - 1 if prompt == self.kept else 0
        self.kept = prompt
        shown = None
        if settings.logprobs is not None:
            top = range(VOCABULARY) if settings.logprobs == -1 else [following(prompt[-1])]
            shown = [{token: Logprob(log_prob(prompt[-1], token)) for token in top}]
        reason = "stop" if END in made else "length"
        return RequestOutput(prompt, told, [CompletionOutput(made, shown, reason)], kept)


def module() -> ModuleType:
    """To stand in ``sys.modules``."""
    stand_in: Any = ModuleType("vllm")
    stand_in.__version__ = "0.30.0"
    for thing in (LLM, SamplingParams, TokensPrompt):
        setattr(stand_in, thing.__name__, thing)
    return stand_in  # type: ignore[no-any-return]
