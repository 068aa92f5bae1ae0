"""SentencePiece vocabularies as llama.cpp's model ``llama``: from tokenizer.model, or from tokenizer.json alone.

llama.cpp merges by scores, the highest first. Where only tokenizer.json is left, its merges say in which order
tokens are made, and the scores are that order; merges that no scores could have given are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from ctxextend.contents import GgufValue
from ctxextend.errors import RefusedError
from ctxextend.vocabulary.byte_pairs import kind_of_added
from ctxextend.vocabulary.folder import (
    ADDED,
    MAX_CHARACTERS,
    PIECES,
    AddedToken,
    Folder,
    added_of_settings,
    json_object,
)
from ctxextend.vocabulary.sentencepiece_model import Piece, SentencePieceModel, read_model
from ctxextend.vocabulary.values import (
    ADD_SPACE,
    MODEL,
    PADDING,
    PRE,
    SCORES,
    TOKENS,
    TYPES,
    TokenType,
    array,
    check_distinct,
    flag,
    text,
)

#: The scores of what isn't merged, as llama.cpp's converter writes them.
_ADDED_SCORE: Final = -1000.0
_PADDING_SCORE: Final = -10000.0
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_FILE: Final = "tokenizer.json"


def piece_keys(folder: Folder, *, architecture: str) -> dict[str, GgufValue]:
    """The keys of the model itself, without special tokens.

    Raises :class:`RefusedError` for a model that llama.cpp would cut texts with in another way.
    """
    raw = folder.read(PIECES)
    model = read_model(raw, PIECES) if raw is not None else _from_json(folder)
    if model.unigram:
        raise _refused(PIECES, "merges (BPE)", "a unigram model")
    size = folder.size(len(model.pieces) - 1)
    blank = (Piece(text=PADDING.format(i), score=_PADDING_SCORE, type=TokenType.UNUSED) for i in range(size))
    pieces = list(blank)
    pieces[: len(model.pieces)] = [_as_converted(piece) for piece in model.pieces[:size]]
    for token, kind in _added(folder, pieces, architecture):
        if token.id < size:
            content = token.content.replace("\u2581", " ") if kind == TokenType.USER_DEFINED else token.content
            pieces[token.id] = Piece(text=content, score=_ADDED_SCORE, type=kind)
    check_distinct((piece.text for piece in pieces), PIECES if raw is not None else _FILE)
    keys = {
        MODEL: text("llama"),
        PRE: text("default"),
        TOKENS: array("STRING", (piece.text for piece in pieces)),
        SCORES: array("FLOAT32", (piece.score for piece in pieces)),
        TYPES: array("INT32", (int(piece.type) for piece in pieces)),
    }
    if not model.prefixed:
        keys[ADD_SPACE] = flag(False)
    return keys


def _as_converted(piece: Piece) -> Piece:
    """A piece as the converter has it: what SentencePiece calls user-defined is one like others."""
    if piece.type != TokenType.USER_DEFINED:
        return piece
    return Piece(text=piece.text, score=piece.score, type=TokenType.NORMAL)


def _added(folder: Folder, pieces: Sequence[Piece], architecture: str) -> Iterator[tuple[AddedToken, TokenType]]:
    """The added tokens with their types, later ones over earlier ones."""
    for content, number in (json_object(folder, ADDED) or {}).items():
        if isinstance(number, int) and number >= 0:
            yield AddedToken(id=number, content=content, special=False), TokenType.USER_DEFINED
    settings = added_of_settings(folder)
    said = {token.id for token in settings}
    for token in (*settings, *folder.added):
        named = token.id in said or architecture == "phi3"
        known = pieces[token.id].type if token.id < len(pieces) else TokenType.UNUSED
        if not named and token.special and known in (TokenType.CONTROL, TokenType.UNKNOWN):
            # tokenizer.json alone repeats what the model says, and the converter doesn't read it.
            continue
        if architecture == "phi3":
            yield token, TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        else:
            yield token, kind_of_added(token.content, special=token.special)


def _from_json(folder: Folder) -> SentencePieceModel:
    """The model that tokenizer.json was converted from, as far as texts can tell."""
    document = folder.tokenizer or {}
    prefixed = _prefixed(document)
    vocabulary: Mapping[str, int] = document["model"]["vocab"]
    added = {token.content: token for token in folder.added}
    scores = _scores(vocabulary, document["model"]["merges"], frozenset(added))
    size = max(vocabulary.values(), default=-1) + 1
    pieces = [Piece(text=PADDING.format(i), score=_PADDING_SCORE, type=TokenType.UNUSED) for i in range(size)]
    unknown = document["model"].get("unk_token")
    for token, number in vocabulary.items():
        kind, score = TokenType.NORMAL, scores.get(token, 0.0)
        if token == unknown and token not in added:
            kind = TokenType.UNKNOWN
        elif _BYTE.fullmatch(token):
            kind = TokenType.BYTE
        pieces[number] = Piece(text=token, score=score, type=kind)
    return SentencePieceModel(pieces=tuple(pieces), unigram=False, prefixed=prefixed)


def _scores(vocabulary: Mapping[str, int], merges: Sequence[Any], added: frozenset[str]) -> dict[str, float]:
    """The score of every token but bytes and added ones: minus its place in the order of merges.

    SentencePiece merges two neighbours wherever the whole is a token, so every such pair must be a merge, and
    all those of one token must follow each other.
    """
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in merges]
    order: dict[str, int] = {}
    for whole, group in groupby(pairs, key="".join):
        if whole in added:
            continue
        if len(whole) > MAX_CHARACTERS:
            raise _refused(_FILE, f"tokens of at most {MAX_CHARACTERS} characters", f"{len(whole)}")
        expected = sum(whole[:i] in vocabulary and whole[i:] in vocabulary for i in range(1, len(whole)))
        if whole in order or whole not in vocabulary or len(list(group)) != expected:
            raise _refused(_FILE, "merges as scores of SentencePiece give them", f"those of {whole!r}"[:80])
        order[whole] = len(order)
    rest = sorted(
        (
            number
            for token, number in vocabulary.items()
            if token not in order and token not in added and not _BYTE.fullmatch(token)
        ),
    )
    by_id = {number: token for token, number in vocabulary.items()}
    scores = {token: -float(place) for token, place in order.items()}
    return scores | {by_id[number]: -float(len(order) + i) for i, number in enumerate(rest)}


def _prefixed(document: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it. Raises :class:`RefusedError` where spaces become something else."""
    normal = _flat(document.get("normalizer"), "normalizers")
    cut = _flat(document.get("pre_tokenizer"), "pretokenizers")
    # Once spaces are replaced, cutting at them does nothing.
    cut = [part for part in cut if not (part.get("type") == "Split" and part.get("pattern") == {"String": " "})]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    if not cut and normal in ([replace], [prepend, replace]):
        return normal[0] == prepend
    match cut:
        case [{"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": str(scheme)}] if not normal:
            if not cut[0].get("split", True):
                return scheme != "never"
    raise _refused(_FILE, "a normalizer that replaces spaces", f"{normal} and {cut}"[:400])


def _flat(part: Any, inner: str) -> list[Mapping[str, Any]]:
    match part:
        case None:
            return []
        case {"type": "Sequence"} if isinstance(part.get(inner), list):
            return [flat for each in part[inner] for flat in _flat(each, inner)]
        case Mapping():
            return [part]
    raise _refused(_FILE, "steps that are objects", ascii(part)[:80])


def _refused(file: str, expected: str, found: str) -> RefusedError:
    return RefusedError(
        "llama.cpp would cut texts in another way than this tokenizer does",
        code="unknown-tokenizer",
        file=file,
        expected=expected,
        found=found,
        hint="add the tokenizer.model that it was made from, or let a converter of llama.cpp try: --converter PATH",
    )
