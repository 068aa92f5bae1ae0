"""The tokenizer files of a Hugging Face checkpoint, from the keys of a GGUF file.

The tokenizer.json cuts texts as llama.cpp does with the same keys (b11434, ``src/llama-vocab.cpp``), with
transformers and with the tokenizers library alike; for a SentencePiece vocabulary there is a tokenizer.model too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from ctxextend.contents import GgufType, GgufValue
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.vocabulary.folder import MAX_CHARACTERS, PIECES, ROLES, TOKENIZER_CONFIG
from ctxextend.vocabulary.pre_tokenizers import BY_NAME, PreTokenizer, structure_of
from ctxextend.vocabulary.sentencepiece_model import Piece, SentencePieceModel, write_model
from ctxextend.vocabulary.values import (
    ADD_KEYS,
    ADD_SPACE,
    CHAT_TEMPLATE,
    CHAT_TEMPLATES,
    ID_KEYS,
    MERGES,
    MODEL,
    PADDING,
    PRE,
    SCORES,
    TOKENS,
    TYPES,
    TokenType,
    check_distinct,
)

#: The ids that llama.cpp takes for SentencePiece where a file names none.
_PIECE_IDS: Final[Mapping[str, int]] = {"bos": 1, "eos": 2, "unk": 0}
_ADDED: Final = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
_SPACE: Final = "\u2581"


def tokenizer_files(values: Mapping[str, GgufValue]) -> dict[str, bytes]:
    """The files by their names, from all keys of a file with its arrays complete.

    Raises :class:`RefusedError` for a kind of tokenizer that tokenizer.json can't be made for,
    :class:`CheckpointError` for keys that contradict each other.
    """
    vocabulary = _read(values)
    files: dict[str, bytes] = {}
    if vocabulary.pre is None:
        document = _piece_document(vocabulary)
        files[PIECES] = _piece_model(vocabulary)
    else:
        document = _byte_document(vocabulary, vocabulary.pre)
    files["tokenizer.json"] = _encoded(document)
    files[TOKENIZER_CONFIG] = _encoded(_settings(values, vocabulary))
    return files


class _Vocabulary(Struct, frozen=True, kw_only=True):
    """What the keys say. ``pre`` is None for a SentencePiece vocabulary; ``right_stripped`` are ids of tokens
    that take the spaces after them.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    adds: Mapping[str, bool]
    says: Mapping[str, bool]
    pre: PreTokenizer | None
    prefixed: bool
    right_stripped: frozenset[int]

    def kept(self, number: int) -> bool:
        """Whether a place holds a token, and isn't padding."""
        return self.types[number] != TokenType.UNUSED or self.tokens[number] != PADDING.format(number)


def _read(values: Mapping[str, GgufValue]) -> _Vocabulary:
    model = _plain(values, MODEL)
    pre: PreTokenizer | None = None
    if model == "gpt2":
        name = _plain(values, PRE) or "default"
        pre = BY_NAME.get(str(name))
        if pre is None:
            raise _unknown(PRE, ", ".join(sorted(BY_NAME)), str(name))
    elif model != "llama":
        raise _unknown(MODEL, "gpt2 or llama", str(model))
    # llama.cpp gives a name to a token without a text.
    tokens = tuple(token or f"[EMPTY_{i}]" for i, token in enumerate(_list(values, TOKENS, "STRING")))
    if not tokens:
        raise _contradiction(TOKENS, "tokens", "none")
    check_distinct(tokens, TOKENS)
    size = len(tokens)
    types = _list(values, TYPES, "INT32", size=size) or (int(TokenType.NORMAL),) * size
    scores = _list(values, SCORES, "FLOAT32", size=size) or (0.0,) * size
    ids = {} if pre is not None else dict(_PIECE_IDS)
    for role, key in ID_KEYS.items():
        said = _plain(values, key)
        if isinstance(said, int):
            ids[role] = said
    says = {role: bool(_plain(values, key)) for role, key in ADD_KEYS.items() if key in values}
    return _Vocabulary(
        tokens=tokens,
        types=types,
        scores=scores,
        merges=_list(values, MERGES, "STRING"),
        ids={role: number for role, number in ids.items() if 0 <= number < size},
        adds={"bos": pre is None or pre.adds_bos, "eos": False, **says},
        says=says,
        pre=pre,
        prefixed=pre is None and _plain(values, ADD_SPACE) is not False,
        right_stripped=_right_stripped(values, tokens, types),
    )


def _right_stripped(values: Mapping[str, GgufValue], tokens: Sequence[str], types: Sequence[int]) -> frozenset[int]:
    """llama.cpp knows Phi-3's tokens that take the spaces after them by the model's name alone."""
    name = str(_plain(values, "general.name") or "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    kept = ("<unk>", "<s>", "<|endoftext|>")
    return frozenset(
        i for i, content in enumerate(tokens) if content == "</s>" or (types[i] in _ADDED and content not in kept)
    )


def _byte_document(vocabulary: _Vocabulary, pre: PreTokenizer) -> dict[str, Any]:
    numbers = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.kept(i)}
    merges = []
    for merge in vocabulary.merges:
        # The first token may be a space, so the one between the two is sought from the second character on.
        left, right = merge[:1] + merge[1:].partition(" ")[0], merge[1:].partition(" ")[2]
        if not right or left + right not in numbers or left not in numbers or right not in numbers:
            raise _contradiction(MERGES, "merges of two tokens into a third", repr(merge[:80]))
        merges.append([left, right])
    added = [i for i in range(len(vocabulary.tokens)) if vocabulary.types[i] in _ADDED]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre.ignore_merges,
        "vocab": numbers,
        "merges": merges,
    }
    plain = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        **_head(vocabulary, added),
        "normalizer": None,
        "pre_tokenizer": structure_of(pre),
        "post_processor": _template(vocabulary) or (plain if vocabulary.says.get("bos") is False else None),
        "decoder": plain,
        "model": model,
    }


def _piece_document(vocabulary: _Vocabulary) -> dict[str, Any]:
    added = [i for i in range(len(vocabulary.tokens)) if vocabulary.types[i] in _ADDED]
    numbers = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.kept(i)}
    unknown = vocabulary.ids.get("unk")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, replace] if vocabulary.prefixed else [replace]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if vocabulary.prefixed:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **_head(vocabulary, added),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": _template(vocabulary),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": numbers,
            "merges": _merges_of_scores(vocabulary, numbers),
        },
    }


def _merges_of_scores(vocabulary: _Vocabulary, numbers: Mapping[str, int]) -> list[list[str]]:
    """Every pair of neighbours that is a token, by its score: llama.cpp merges the highest first."""
    parts = {token for token, i in numbers.items() if vocabulary.types[i] in (TokenType.NORMAL, TokenType.UNUSED)}
    longest = max(map(len, parts), default=0)
    if longest > MAX_CHARACTERS:
        raise _contradiction(TOKENS, f"tokens of at most {MAX_CHARACTERS} characters", f"{longest}")
    merges = [
        (-vocabulary.scores[i], i, -cut, token)
        for token, i in numbers.items()
        if token in parts
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]
    merges.sort()
    return [[token[:-cut], token[-cut:]] for _score, _id, cut, token in merges]


def _piece_model(vocabulary: _Vocabulary) -> bytes:
    roles = [vocabulary.ids.get(role) for role in ("unk", "bos", "eos", "pad")]
    # A model has one unknown token, and what isn't known of a type counts as a plain token.
    kinds = {int(kind): kind for kind in TokenType} | {int(TokenType.UNKNOWN): TokenType.CONTROL}
    pieces = tuple(
        Piece(
            text=token,
            score=vocabulary.scores[i],
            type=TokenType.UNKNOWN if i == roles[0] else kinds.get(vocabulary.types[i], TokenType.NORMAL),
        )
        for i, token in enumerate(vocabulary.tokens)
    )
    return write_model(SentencePieceModel(pieces=pieces, unigram=False, prefixed=vocabulary.prefixed), roles=roles)


def _head(vocabulary: _Vocabulary, added: Sequence[int]) -> dict[str, Any]:
    tokens = [
        {
            "id": i,
            "content": vocabulary.tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": i in vocabulary.right_stripped,
            # Without a normalizer both mean the same; llama.cpp's converter leaves those that are alone.
            "normalized": vocabulary.pre is not None and vocabulary.types[i] == TokenType.USER_DEFINED,
            "special": vocabulary.types[i] != TokenType.USER_DEFINED,
        }
        for i in added
    ]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens}


def _template(vocabulary: _Vocabulary) -> dict[str, Any] | None:
    """What puts the first and last token around a text; None where neither is added."""
    ends = {}
    for role in ("bos", "eos"):
        if vocabulary.adds[role]:
            if role not in vocabulary.ids:
                raise _contradiction(ID_KEYS[role], "an id, as it is added to every text", "none")
            ends[role] = vocabulary.ids[role]
    if not ends:
        return None

    def special(role: str, part: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": vocabulary.tokens[ends[role]], "type_id": part}}] if role in ends else []

    def sequence(name: str, part: int) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": part}}]

    single = special("bos", 0) + sequence("A", 0) + special("eos", 0)
    between = special("bos", 1) if "sep" in vocabulary.says else []
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": special("bos", 0) + sequence("A", 0) + between + sequence("B", 1) + special("eos", 1),
        "special_tokens": {
            vocabulary.tokens[i]: {
                "id": vocabulary.tokens[i],
                "ids": [i],
                "tokens": [vocabulary.tokens[i]],
            }
            for i in ends.values()
        },
    }


def _settings(values: Mapping[str, GgufValue], vocabulary: _Vocabulary) -> dict[str, Any]:
    settings: dict[str, Any] = {
        f"add_{role}_token": added for role, added in vocabulary.says.items() if role in ("bos", "eos")
    }
    settings |= {f"{role}_token": vocabulary.tokens[vocabulary.ids[role]] for role in ROLES if role in vocabulary.ids}
    settings["clean_up_tokenization_spaces"] = vocabulary.pre is not None and vocabulary.pre.clean_spaces
    context = _plain(values, f"{_plain(values, 'general.architecture')}.context_length")
    if isinstance(context, int):
        settings["model_max_length"] = context
    named = _list(values, CHAT_TEMPLATES, "STRING")
    default = _plain(values, CHAT_TEMPLATE)
    templates = {name: _plain(values, f"{CHAT_TEMPLATE}.{name}") for name in named}
    if templates:
        templates = {"default": default, **templates}
        settings["chat_template"] = [
            {"name": name, "template": template} for name, template in templates.items() if isinstance(template, str)
        ]
    elif isinstance(default, str):
        settings["chat_template"] = default
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return settings


def _plain(values: Mapping[str, GgufValue], key: str) -> Any:
    value = values.get(key)
    return value.value if value is not None else None


def _list(values: Mapping[str, GgufValue], key: str, item: GgufType, *, size: int | None = None) -> tuple[Any, ...]:
    """An array of a type; empty where there is none. ``size``: how many elements it needs at least."""
    value = values.get(key)
    if value is None:
        return ()
    found = value.value
    if not isinstance(found, tuple) or value.item != item or (size is not None and len(found) < size):
        expected = f"an array of {item}" if size is None else f"an array of {size} {item}"
        raise _contradiction(key, expected, f"{value.length} of {value.item or value.type}")
    return found if size is None else found[:size]


def _encoded(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _contradiction(key: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        "the tokenizer of a GGUF file contradicts itself",
        code="broken-tokenizer",
        key=key,
        expected=expected,
        found=found,
        hint="download the file again, or take the tokenizer of the model that it was made from",
    )


def _unknown(key: str, expected: str, found: str) -> RefusedError:
    return RefusedError(
        "this tokenizer can't be written as a tokenizer.json",
        code="unknown-tokenizer",
        key=key,
        expected=expected,
        found=found,
        hint="take the tokenizer of the model that the file was made from",
    )
