"""Byte-level BPE: the vocabulary, merges and pre-tokenizer of tokenizer.json as llama.cpp's model ``gpt2``.

The pre-tokenizer is recognised as llama.cpp's converter does it, by a hash over the ids of a fixed text; for a
vocabulary that isn't known, by the steps that tokenizer.json spells out. Nothing else is taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.vocabulary.folder import ROLES, TOKENIZER_CONFIG, Folder, added_of_settings, token_text
from ctxextend.vocabulary.pre_hashes import PRE_BY_HASH, PROBE
from ctxextend.vocabulary.pre_tokenizers import BY_NAME, PreTokenizer, by_structure, steps_of
from ctxextend.vocabulary.values import (
    MERGES,
    MODEL,
    PADDING,
    PRE,
    TOKENS,
    TYPES,
    TokenType,
    array,
    check_distinct,
    text,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILE = "tokenizer.json"
_SHOWN = 400


def byte_pair_keys(folder: Folder) -> dict[str, GgufValue]:
    """The keys of the model itself, without special tokens.

    Raises :class:`RefusedError` ``unknown-pre-tokenizer``, and :class:`CheckpointError` for ids that the
    model has no row for.
    """
    tokenizer = _library(folder)
    tokens, types = _tokens(folder, tokenizer)
    return {
        MODEL: text("gpt2"),
        PRE: text(pre_tokenizer(folder, tokenizer)),
        TOKENS: array("STRING", tokens),
        TYPES: array("INT32", types),
        MERGES: array("STRING", _merges(folder)),
    }


def pre_tokenizer(folder: Folder, tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises :class:`RefusedError` for one that it has none for."""
    said = folder.tokenizer or {}
    model, cut, normal = said["model"], said.get("pre_tokenizer"), said.get("normalizer")
    whole_words = bool(model.get("ignore_merges"))
    steps = steps_of(cut)
    row = None
    plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if steps is not None and plain and _harmless(normal):
        cleans = folder.settings.get("clean_up_tokenization_spaces")
        row = by_structure(steps, ignore_merges=whole_words, clean_spaces=cleans if isinstance(cleans, bool) else None)
    known = _known(folder, tokenizer)
    if known is not None and (row is None or _same(BY_NAME.get(known), row)):
        return known
    if row is not None:
        # A known vocabulary with another cut: the ids of the fixed text don't tell them apart, other texts do.
        return row.name
    found = {"pre_tokenizer": cut, "normalizer": normal, "ignore_merges": whole_words}
    raise RefusedError(
        "llama.cpp has no pre-tokenizer that is known to cut texts as this one does",
        code="unknown-pre-tokenizer",
        file=_FILE,
        key="pre_tokenizer",
        expected="one of the pre-tokenizers of llama.cpp",
        found=json.dumps(found, ensure_ascii=False)[:_SHOWN],
        hint="a converter of a newer llama.cpp may know it: --converter PATH",
    )


def _known(folder: Folder, tokenizer: Tokenizer) -> str | None:
    """The name by the hash over the ids of the fixed text."""
    with _library_errors():
        probes = list(_probes(folder, tokenizer))
    hashes = (hashlib.sha256(str(ids).encode()).hexdigest() for ids in probes)
    return next((PRE_BY_HASH[found] for found in hashes if found in PRE_BY_HASH), None)


def _same(known: PreTokenizer | None, found: PreTokenizer) -> bool:
    """Whether two cut alike; one that isn't written down here is taken at its word."""
    return known is None or (known.steps, known.ignore_merges) == (found.steps, found.ignore_merges)


def _harmless(normalizer: Any) -> bool:
    """Whether a normalizer leaves text in the usual form alone. llama.cpp has none for BPE, for Qwen's NFC either."""
    match normalizer:
        case None | {"type": "NFC"}:
            return True
        case {"type": "Sequence", "normalizers": list(parts)}:
            return all(_harmless(part) for part in parts)
    return False


def _probes(folder: Folder, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of the fixed text, with what readers add to it: tokenizer.json and the settings may differ."""
    yield tokenizer.encode(PROBE).ids
    bare = tokenizer.encode(PROBE, add_special_tokens=False).ids
    bos, eos = (
        [] if (name := folder.token(role)) is None or (i := tokenizer.token_to_id(name)) is None else [i]
        for role in ("bos", "eos")
    )
    yield from (bare, bos + bare, bare + eos, bos + bare + eos)


def _library(folder: Folder) -> Tokenizer:
    """The tokenizer as transformers has it: with the tokens that the settings add."""
    from tokenizers import AddedToken, Tokenizer

    with _library_errors():
        tokenizer = Tokenizer.from_file(str(folder.path / _FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    more = {token.content: token.special for token in added_of_settings(folder)}
    named = [folder.settings.get(f"{role}_token") for role in ROLES]
    extra = folder.settings.get("additional_special_tokens")
    for value in (*named, *(extra if isinstance(extra, list) else ())):
        name = token_text(value)
        if name and tokenizer.token_to_id(name) is not None:
            more[name] = True
    for content, special in more.items():
        if content not in known:
            tokenizer.add_tokens([AddedToken(content, special=special, normalized=not special)])
    return tokenizer


@contextmanager
def _library_errors() -> Iterator[None]:
    """Turns whatever the tokenizers library raises into a :class:`CheckpointError`."""
    try:
        yield
    except BaseException as error:
        # A panic of the library's Rust is no Exception, and its class can't be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"the tokenizers library can't read the tokenizer: {str(error)[:_SHOWN]}",
            code="broken-tokenizer",
            file=_FILE,
        ) from error


def _tokens(folder: Folder, tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    added = tokenizer.get_added_tokens_decoder()
    by_id = {number: token for token, number in (folder.tokenizer or {})["model"]["vocab"].items()}
    by_id |= {number: token.content for number, token in added.items()}
    size = folder.size(max(by_id, default=-1))
    if max(by_id, default=0) >= size:
        raise CheckpointError(
            "the tokenizer has ids that the model has no rows for",
            code="tokenizer-mismatch",
            file=_FILE,
            expected=f"ids below config.json's vocab_size of {size}",
            found=f"{max(by_id)}: {by_id[max(by_id)]!r}"[:_SHOWN],
            hint=f"take tokens away from {_FILE} and {TOKENIZER_CONFIG}, or resize the model's embeddings",
        )
    tokens, types = [], []
    for number in range(size):
        token, kind = by_id.get(number), TokenType.NORMAL
        if token is None:
            token, kind = PADDING.format(number), TokenType.UNUSED
        elif number in added:
            if not added[number].normalized:
                with _library_errors():
                    ids = tokenizer.encode(token, add_special_tokens=False).ids
                    text_of = tokenizer.decode(ids, skip_special_tokens=False)
                # A letter that stands for a byte in the vocabulary would be read as that byte.
                token = token if "\ufffd" in text_of else text_of
            kind = kind_of_added(token, special=added[number].special)
            if kind == TokenType.USER_DEFINED:
                token = token.replace("\u2581", " ")
        tokens.append(token)
        types.append(int(kind))
    check_distinct(tokens, _FILE)
    return tokens, types


def kind_of_added(token: str, *, special: bool) -> TokenType:
    """An added token's type. Some publishers forgot to call control tokens special: these texts are ones.

    Source of the texts: llama.cpp b11434, ``conversion/base.py``, ``does_token_look_special``.
    """
    looks = (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<\uff5c") and token.endswith("\uff5c>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )
    return TokenType.CONTROL if special or looks else TokenType.USER_DEFINED


def _merges(folder: Folder) -> list[str]:
    merges = (folder.tokenizer or {})["model"]["merges"]
    joined = []
    for merge in merges:
        if isinstance(merge, str):
            joined.append(merge)
            continue
        whole = f"{merge[0]} {merge[1]}"
        if whole.count(" ") > 1:
            # A space stands between the two: one inside is written as byte-level BPE writes it.
            whole = " ".join(part.replace(" ", "\u0120") for part in merge)
        joined.append(whole)
    return joined
