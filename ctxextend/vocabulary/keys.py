"""The ``tokenizer.*`` keys of a GGUF file, from the tokenizer of a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.vocabulary.byte_pairs import byte_pair_keys
from ctxextend.vocabulary.folder import PIECES, Folder, read_folder
from ctxextend.vocabulary.pieces import piece_keys
from ctxextend.vocabulary.specials import special_keys
from ctxextend.vocabulary.values import ADD_KEYS, ADD_SPACE, ID_KEYS, TOKENS, flag, number

#: Architectures whose converter asks the settings whether a text starts with a space.
_LLAMAS: Final = ("llama", "smollm3", "granite", "granitemoe")
#: Architectures whose texts never start with a space that isn't in them.
_GEMMAS: Final = ("gemma", "gemma2", "gemma3")
#: Vocabularies known by their size alone: CodeLlama's with its infill tokens, and the small Granite's.
_CODE_LLAMA: Final = 32_016
_SMALL_GRANITE: Final = 49_152


def vocabulary_keys(folder: Path, config: Mapping[str, Any], architecture: str) -> dict[str, GgufValue]:
    """All ``tokenizer.*`` keys as llama.cpp's own converter writes them, arrays complete.

    ``config`` is what config.json says, ``architecture`` the GGUF file's. Raises :class:`RefusedError`
    (``unknown-pre-tokenizer``, ``unknown-tokenizer``) for a tokenizer that llama.cpp isn't known to read
    alike, :class:`CheckpointError` for missing and broken files.
    """
    try:
        return _keys(read_folder(folder, config), architecture)
    except RecursionError as error:
        raise CheckpointError(
            "a tokenizer file isn't what it should be",
            code="broken-tokenizer",
            file=str(folder),
            found="objects nested too deep",
            hint="fetch the tokenizer again from where the checkpoint comes from",
        ) from error


def _keys(files: Folder, architecture: str) -> dict[str, GgufValue]:
    merges_bytes = _merges_bytes(files)
    keys = byte_pair_keys(files) if merges_bytes else piece_keys(files, architecture=architecture)
    keys |= special_keys(files, vocabulary_size=keys[TOKENS].length or 0)
    return keys | _of_architecture(files, architecture, merges_bytes=merges_bytes)


def _merges_bytes(files: Folder) -> bool:
    """Whether the tokenizer merges bytes rather than characters."""
    if files.tokenizer is None:
        if (files.path / PIECES).is_file():
            return False
        raise CheckpointError(
            "the checkpoint has no tokenizer that can be read",
            code="no-tokenizer",
            file=str(files.path),
            expected=f"tokenizer.json or {PIECES}",
            found="neither",
            hint="save it beside the weights: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    model, decoder = files.tokenizer["model"], files.tokenizer.get("decoder")
    kind = model.get("type", "BPE")
    if kind == "BPE" and model.get("byte_fallback"):
        return False
    inner = decoder.get("decoders", [decoder]) if isinstance(decoder, Mapping) else []
    inner = inner if isinstance(inner, list) else []
    if kind == "BPE" and any(isinstance(part, Mapping) and part.get("type") == "ByteLevel" for part in inner):
        return True
    raise RefusedError(
        "this kind of tokenizer can't be written for llama.cpp",
        code="unknown-tokenizer",
        file="tokenizer.json",
        key="model.type",
        expected="byte-level BPE, or BPE with byte fallback (SentencePiece)",
        found=f"{kind} without either",
        hint="a converter of llama.cpp may know it: --converter PATH",
    )


def _of_architecture(files: Folder, architecture: str, *, merges_bytes: bool) -> dict[str, GgufValue]:
    """What the converter of one architecture writes beside the rest (llama.cpp b11434, ``conversion/``)."""
    keys: dict[str, GgufValue] = {}
    size = files.number("vocab_size")
    if architecture in _LLAMAS:
        prefix = files.settings.get("add_prefix_space")
        if isinstance(prefix, bool):
            keys[ADD_SPACE] = flag(prefix)
        if size == _CODE_LLAMA:
            keys[ID_KEYS["eot"]] = number(32_010)
        if size == _SMALL_GRANITE:
            keys[ADD_KEYS["bos"]] = flag(False)
    if architecture in _GEMMAS and not merges_bytes:
        keys[ADD_SPACE] = flag(False)
    if architecture == "gemma":
        keys[ID_KEYS["eot"]] = number(107)
    return keys
