"""GGUF values of a vocabulary, and the numbers of its token types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, Final

from ctxextend.contents import GgufType, GgufValue
from ctxextend.errors import CheckpointError


class TokenType(IntEnum):
    """What a token is, as llama.cpp counts (b11434, ``include/llama.h``); SentencePiece counts alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


MODEL: Final = "tokenizer.ggml.model"
PRE: Final = "tokenizer.ggml.pre"
TOKENS: Final = "tokenizer.ggml.tokens"
SCORES: Final = "tokenizer.ggml.scores"
TYPES: Final = "tokenizer.ggml.token_type"
MERGES: Final = "tokenizer.ggml.merges"
ADD_SPACE: Final = "tokenizer.ggml.add_space_prefix"
CHAT_TEMPLATE: Final = "tokenizer.chat_template"
CHAT_TEMPLATES: Final = "tokenizer.chat_templates"

#: The key of a special token's id, by its role; the spelling of ``seperator`` is the format's.
ID_KEYS: Final[Mapping[str, str]] = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
#: The key that says whether a special token is added to a text.
ADD_KEYS: Final[Mapping[str, str]] = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}
#: What a tokenizer's place that no token takes is called.
PADDING: Final = "[PAD{}]"


def text(content: str) -> GgufValue:
    return GgufValue(type="STRING", value=content)


def number(content: int) -> GgufValue:
    return GgufValue(type="UINT32", value=content)


def flag(content: bool) -> GgufValue:
    return GgufValue(type="BOOL", value=content)


def array(item: GgufType, content: Iterable[Any]) -> GgufValue:
    kept = tuple(content)
    return GgufValue(type="ARRAY", item=item, length=len(kept), value=kept)


def check_distinct(tokens: Iterable[str], file: str) -> None:
    """Raise :class:`CheckpointError` for a text that two tokens share: llama.cpp doesn't load such a file."""
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise CheckpointError(
                "two tokens have one text",
                code="broken-tokenizer",
                file=file,
                expected="each token's text once",
                found=repr(token[:80]),
            )
        seen.add(token)
