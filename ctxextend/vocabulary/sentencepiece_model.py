"""SentencePiece models (tokenizer.model), read and written without the library.

A model is one protocol buffer, of which four messages matter; reading them takes fewer lines than keeping a
compiled library, and no file can make it run anything. Source of the field numbers: google/sentencepiece,
``src/sentencepiece_model.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct

from ctxextend.errors import CheckpointError
from ctxextend.vocabulary.values import TokenType

_UNIGRAM: Final = 1
_BPE: Final = 2
#: Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Piece(Struct, frozen=True, kw_only=True):
    """One entry of a vocabulary."""

    text: str
    score: float
    type: TokenType


class SentencePieceModel(Struct, frozen=True, kw_only=True):
    """A model's vocabulary, in the order of ids, and how it treats a text.

    ``unigram``: pieces are chosen by probability rather than merged. ``prefixed``: a text gets a space before it.
    """

    pieces: tuple[Piece, ...]
    unigram: bool
    prefixed: bool


def read_model(data: bytes, file: str) -> SentencePieceModel:
    """A model from its bytes. Raises :class:`CheckpointError` for anything else."""
    pieces: list[Piece] = []
    unigram, prefixed = True, True
    try:
        for number, value in _fields(data):
            match number, value:
                case 1, bytes():
                    fields = dict(_fields(value))
                    score = fields.get(2, b"\0\0\0\0")
                    pieces.append(
                        Piece(
                            text=fields[1].decode(),
                            score=struct.unpack("<f", score)[0],
                            type=TokenType(fields.get(3, TokenType.NORMAL)),
                        )
                    )
                case 2, bytes():
                    unigram = dict(_fields(value)).get(3, _UNIGRAM) == _UNIGRAM
                case 3, bytes():
                    prefixed = bool(dict(_fields(value)).get(3, 1))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise _broken(file, str(error)[:80]) from error
    if not pieces:
        raise _broken(file, "no pieces")
    return SentencePieceModel(pieces=tuple(pieces), unigram=unigram, prefixed=prefixed)


def write_model(model: SentencePieceModel, *, roles: Sequence[int | None]) -> bytes:
    """The bytes of a model; ``roles`` are the ids of the unknown, first, last and padding token."""
    out = bytearray()
    for piece in model.pieces:
        body = _bytes(1, piece.text.encode()) + _tag(2, _FIXED32) + struct.pack("<f", piece.score)
        if piece.type != TokenType.NORMAL:
            body += _number(3, piece.type)
        out += _bytes(1, body)
    trainer = _number(3, _UNIGRAM if model.unigram else _BPE) + _number(4, len(model.pieces))
    trainer += _number(35, int(any(piece.type == TokenType.BYTE for piece in model.pieces)))
    for field, role in zip((40, 41, 42, 43), roles, strict=True):
        # A negative number (there is none) takes ten bytes.
        trainer += _number(field, role if role is not None else (1 << 64) - 1)
    normalizer = _bytes(1, b"identity") + _number(3, int(model.prefixed)) + _number(4, 0)
    return bytes(out + _bytes(2, trainer) + _bytes(3, normalizer))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message, by number: whole numbers, or the bytes of anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif not length:
            raise ValueError(f"a field of type {wire}")
        if at + length > len(data):
            raise ValueError("it ends inside a field")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("a number of more than ten bytes")


def _tag(number: int, wire: int) -> bytes:
    return _packed(number << 3 | wire)


def _number(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _packed(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _tag(number, _BYTES) + _packed(len(value)) + value


def _packed(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _broken(file: str, found: str) -> CheckpointError:
    return CheckpointError(
        "a tokenizer file is no SentencePiece model",
        code="broken-tokenizer",
        file=file,
        expected="a SentencePiece model",
        found=found,
        hint="fetch the tokenizer again from where the checkpoint comes from",
    )
