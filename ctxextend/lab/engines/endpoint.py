"""Any server that is already running and speaks OpenAI's completions: vLLM, SGLang, llama-server. Needs no torch.

Prompts are sent as token ids, so that a measurement means the same tokens everywhere. vLLM and SGLang give a
prompt's log-probabilities back (``echo`` with ``logprobs``); llama-server ignores the one and has only
those of generated tokens. A request of two tokens at the beginning finds out which it is. No server gives whole
distributions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.lab.engines.base import Capability, EngineFacts, Usage
from ctxextend.lab.engines.http_json import HttpJson, StatusError
from ctxextend.lab.engines.tokenizer import Tokenizer, opening_of

if TYPE_CHECKING:
    from ctxextend.lab.engines.base import LogProbs

#: What a server says of itself (``owned_by`` in /v1/models): where its version stands.
_VERSIONS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "vllm": (("/version", "version"),),
    "sglang": (("/server_info", "version"), ("/get_server_info", "version")),
    "llamacpp": (("/props", "build_info"),),
}
#: Greedy, whatever the model's generation_config.json says. The last is an extension that both have.
_GREEDY: Final = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
#: In what vLLM, SGLang and llama-server say of a prompt that is too long.
_LENGTH_WORDS: Final = ("context length", "context size", "model length", "max_model_len")
_PLAIN: Final = {"vllm": {"repetition_penalty": 1}, "sglang": {"repetition_penalty": 1}}


class ServerTokenizer:
    """/tokenize and /detokenize: vLLM's form, which SGLang has under /v1 and with other words, or llama-server's."""

    def __init__(self, http: HttpJson, model: str, kind: str) -> None:
        self._http = http
        self._model = model
        self._kind = kind
        self.opening = opening_of(lambda text, special: self._ids(text, special=special))

    def encode(self, text: str) -> list[int]:
        return self._ids(text, special=False)

    def decode(self, tokens: Sequence[int]) -> str:
        answer = self._beside("/detokenize", {"model": self._model, "tokens": list(tokens)})
        text = next((answer[key] for key in ("prompt", "text", "content") if isinstance(answer.get(key), str)), None)
        if text is None:
            raise _not_understood("no text of tokens")
        return str(text)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        if self._kind == "llamacpp":
            body = {"content": text, "add_special": special, "parse_special": False}
        else:
            body = {"model": self._model, "prompt": text, "add_special_tokens": special}
        ids = self._beside("/tokenize", body).get("tokens")
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise _not_understood("no list of tokens")
        return ids

    def _beside(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """An answer to what OpenAI's interface doesn't have, and servers therefore have at either place."""
        for place in (path, f"/v1{path}"):
            try:
                return self._http.post(place, body)
            except StatusError as error:
                if error.status not in {404, 405}:
                    raise
        raise UsageError(
            "the server can't tokenize a text",
            code="no-tokenizer",
            found=self._http.url,
            hint="--tokenizer PATH of a tokenizer.json",
        )


def connect(
    url: str, *, model: str | None = None, token: str | None = None, tokenizer: Path | None = None, timeout: float = 600
) -> EndpointEngine:
    """The server at ``url`` (with or without ``/v1``).

    ``tokenizer``: a tokenizer.json or its folder, else the server's own is asked. ``timeout``: seconds that one
    answer may take. Raises :class:`UsageError` (address, model, tokenizer) and :class:`CtxextendError` (unreachable,
    refused credentials, an answer that isn't understood).
    """
    http = HttpJson(url.rstrip("/").removesuffix("/v1"), token=token, timeout=timeout)
    card = _model_card(http, model)
    kind = str(card.get("owned_by", ""))
    name = str(card.get("id", model))
    tokens = _local_tokenizer(tokenizer) if tokenizer is not None else ServerTokenizer(http, name, kind)
    meta = card["meta"] if isinstance(card.get("meta"), dict) else {}
    asked = _Completions(http, name, _PLAIN.get(kind, {}))
    able = _tells_losses(asked, tokens.encode("one two three"))
    facts = EngineFacts(
        engine=f"{kind or 'unknown server'} at {http.url}",
        version=_version(http, kind),
        device="unknown",
        dtype=str(meta.get("ftype", "unknown")),
        vocabulary=_count(meta.get("n_vocab")),
        context=_count(card.get("max_model_len")) or _count(meta.get("n_ctx")) or _props_context(http, kind),
        opening=tokens.opening,
        weight_bytes=_count(meta.get("size")),
        can=frozenset[Capability]({"losses"} if able else ()),
    )
    return EndpointEngine(asked, tokens, facts)


class EndpointEngine:
    """A model behind a server."""

    def __init__(self, completions: _Completions, tokenizer: Tokenizer | ServerTokenizer, facts: EngineFacts) -> None:
        self._completions = completions
        self._tokenizer = tokenizer
        self._facts = facts

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def usage(self) -> Usage:
        """Tokens as the server counts them; its memory is its own affair."""
        return Usage(tokens=self._completions.tokens, seconds=self._completions.seconds, peak_memory_bytes=None)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def losses(self, tokens: Sequence[int], *, first: int = 1) -> list[float]:
        """Raises :class:`UsageError` when one more token than ``tokens`` doesn't fit: servers insist on making one."""
        if "losses" not in self._facts.can:
            raise RefusedError(
                "the server doesn't give the log-probabilities of a prompt",
                code="no-logprobs",
                found=self._facts.engine,
                hint="vLLM and SGLang give them; a GGUF file can be read with --engine llama.cpp",
            )
        if first < 1:
            raise UsageError("nothing predicts the first token", code="bad-number", found=str(first))
        self._check(len(tokens) + 1)
        return _losses_of(self._completions.ask(tokens, 1, echo=True, logprobs=1), len(tokens))[first - 1 :]

    def log_probs(self, tokens: Sequence[int], *, first: int = 1) -> Iterator[LogProbs]:
        """Always raises :class:`RefusedError`."""
        raise RefusedError(
            f"a server doesn't give the whole distributions that predict {len(tokens) - first} tokens",
            code="no-logprobs",
            found=self._facts.engine,
            hint="measure the checkpoint itself, without --endpoint",
        )

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """The answer's text, tokenized anew. Raises :class:`UsageError` when it wouldn't fit into the context."""
        self._check(len(tokens) + count)
        text = _choice(self._completions.ask(tokens, count)).get("text")
        if not isinstance(text, str):
            raise _not_understood("a completion without text")
        return self.encode(text)[:count]

    def close(self) -> None:
        """Nothing is kept here."""

    def _check(self, length: int) -> None:
        limit = self._facts.context
        if limit is not None and length > limit:
            expected, most = f"at most {limit} tokens, one of them generated", f"--length {limit - 1}"
            raise _too_long(expected=expected, found=str(length), shorter=most)


class _Completions:
    """POST /v1/completions, and what it has cost."""

    def __init__(self, http: HttpJson, model: str, plain: Mapping[str, Any]) -> None:
        self._http = http
        self._fixed = {"model": model, **_GREEDY, **plain}
        self.tokens = 0
        self.seconds = 0.0

    def ask(
        self, tokens: Sequence[int], count: int, *, final: frozenset[int] = frozenset(), **settings: Any
    ) -> dict[str, Any]:
        """Raises :class:`UsageError` for a prompt that is too long, else as :meth:`HttpJson.post` does."""
        begun = time.perf_counter()
        body = {**self._fixed, "prompt": list(tokens), "max_tokens": count, **settings}
        try:
            answer = self._http.post("/v1/completions", body, final=final)
        except StatusError as error:
            said = error.message.lower()
            if error.status in {400, 413, 422} and any(word in said for word in _LENGTH_WORDS):
                raise _too_long(expected=None, found=error.found) from None
            raise
        self.seconds += time.perf_counter() - begun
        usage = answer.get("usage") or {}
        kept = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.tokens += usage.get("prompt_tokens", len(tokens)) - kept + usage.get("completion_tokens", count)
        return answer


def _tells_losses(completions: _Completions, tokens: list[int]) -> bool:
    """Whether the server gives a prompt's log-probabilities. Others refuse the request (400, 422, 500) or ignore it."""
    refusals = frozenset({400, 422, 500, 501})
    try:
        answer = completions.ask(tokens, 1, echo=True, logprobs=1, final=refusals)
        _losses_of(answer, len(tokens))
    except StatusError as error:
        if error.status not in refusals:
            raise
        # If it refuses the plain request too, that is the error to tell.
        completions.ask(tokens, 1, final=refusals)
        return False
    except CtxextendError as error:
        if error.code != "bad-answer":
            raise
        return False
    return True


def _losses_of(answer: dict[str, Any], count: int) -> list[float]:
    """The losses (nats) of all but the first of an echoed prompt's ``count`` tokens."""
    logprobs = _choice(answer).get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    # The last one, where there is one more, is of the token that was generated.
    if not isinstance(values, list) or len(values) not in {count, count + 1} or values[0] is not None:
        raise _not_understood(f"no token_logprobs of the {count} tokens of the prompt")
    found = values[1:count]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in found):
        raise _not_understood("token_logprobs that aren't numbers")
    return [-float(value) for value in found]


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _not_understood("no choices")
    return choices[0]


def _model_card(http: HttpJson, model: str | None) -> dict[str, Any]:
    """The entry of /v1/models for ``model``, or for the only one that isn't an adapter."""
    try:
        data = http.get("/v1/models").get("data")
    except StatusError as error:
        if error.status != 404 or model is None:
            raise
        return {"id": model}
    if not isinstance(data, list) or not all(isinstance(card, dict) for card in data):
        raise _not_understood("no list of models")
    names = [str(card.get("id")) for card in data]
    if model is None:
        base = [card for card in data if not card.get("parent")]
        if len(base) == 1:
            return dict(base[0])
        raise UsageError(
            "the server has several models" if base else "the server has no model",
            code="no-model",
            found=", ".join(names) or "none",
            hint=f"--served-name {names[0]}" if names else "wait until it has loaded one",
        )
    for card in data:
        if card.get("id") == model or model in (card.get("aliases") or ()):
            return dict(card)
    raise UsageError(
        f"the server has no model {model}", code="no-model", found=", ".join(names), hint=f"--served-name {names[0]}"
    )


def _version(http: HttpJson, kind: str) -> str:
    """As the server tells it: an extra that is never worth an error."""
    for path, key in _VERSIONS.get(kind, ()):
        try:
            return str(http.get(path)[key])
        except (CtxextendError, KeyError):
            continue
    return "unknown"


def _props_context(http: HttpJson, kind: str) -> int | None:
    """The length that llama-server was started with, where /v1/models doesn't say it."""
    if kind != "llamacpp":
        return None
    try:
        settings = http.get("/props").get("default_generation_settings")
    except CtxextendError:
        return None
    return _count(settings.get("n_ctx")) if isinstance(settings, dict) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _local_tokenizer(path: Path) -> Tokenizer:
    """Of a checkpoint's folder, or of the folder that a tokenizer.json stands in."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(
            "there is no tokenizer.json",
            code="no-tokenizer",
            file=str(path),
            hint="--tokenizer PATH of a tokenizer.json",
        )
    return Tokenizer(folder)


def _not_understood(found: str) -> CtxextendError:
    return CtxextendError("the server's answer isn't understood", code="bad-answer", found=found)


def _too_long(*, expected: str | None, found: str | None, shorter: str = "a shorter length") -> UsageError:
    return UsageError(
        "the sequence is longer than what the server takes",
        code="too-long",
        expected=expected,
        found=found,
        hint=f"{shorter}, or serve it with a longer context (--max-model-len, --context-length, --ctx-size)",
    )
