"""The tokenizer files of a Hugging Face checkpoint, read once and checked for the shape that the rest expects."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ctxextend.checkpoint.documents import TOKENIZER, parse_document
from ctxextend.errors import CheckpointError

#: No tokenizer is larger; what is, isn't read.
MAX_BYTES: Final = 1 << 28
#: No vocabulary has more tokens: a higher id is a lie that would fill the memory with padding.
MAX_TOKENS: Final = 1 << 22
#: No token is longer, and one that is would take long to be looked for in parts.
MAX_CHARACTERS: Final = 1024

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
PIECES: Final = "tokenizer.model"
TEMPLATE: Final = "chat_template.jinja"
TEMPLATE_JSON: Final = "chat_template.json"
TEMPLATES: Final = "additional_chat_templates"
ADDED: Final = "added_tokens.json"

#: The special tokens that tokenizer_config.json and config.json name, in llama.cpp's converter's order.
ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


#: Half of a character, as JSON can spell it: no file can hold it, and no library takes it.
_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class AddedToken(Struct, frozen=True, kw_only=True):
    """A token that is cut out of a text before anything else is done with it."""

    id: int
    content: str
    special: bool


class Folder(Struct, frozen=True, kw_only=True):
    """What a checkpoint's folder says of its tokenizer. ``tokenizer`` is tokenizer.json, None where there is none."""

    path: Path
    tokenizer: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def added(self) -> tuple[AddedToken, ...]:
        """The added tokens of tokenizer.json, by id; raises :class:`CheckpointError` for malformed ones."""
        entries = (self.tokenizer or {}).get("added_tokens") or []
        return tuple(sorted((_added(entry) for entry in entries), key=lambda token: token.id))

    def read(self, name: str) -> bytes | None:
        """The bytes of one file; None where there is none."""
        return read_file(self.path / name)

    def token(self, role: str) -> str | None:
        """The text of a special token, as tokenizer_config.json names it."""
        return token_text(self.settings.get(f"{role}_token"))

    def number(self, key: str) -> int | None:
        """A whole number of config.json, or of its ``text_config``."""
        nested = self.config.get("text_config")
        for source in (self.config, nested if isinstance(nested, Mapping) else {}):
            value = source.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def size(self, highest: int) -> int:
        """How many tokens the model has rows for; ``highest`` is the tokenizer's highest id.

        Raises :class:`CheckpointError` for more than can be.
        """
        size = self.number("vocab_size_per_layer_input") or self.number("vocab_size") or highest + 1
        if not 0 < size <= MAX_TOKENS:
            raise _malformed("config.json", "vocab_size", f"1 to {MAX_TOKENS}", _shown(size))
        return size


def read_folder(path: Path, config: Mapping[str, Any]) -> Folder:
    """The tokenizer files of ``path``. Raises :class:`CheckpointError` for broken JSON and files that can't be read."""
    tokenizer = _document(path, TOKENIZER)
    if tokenizer is not None:
        model = tokenizer.get("model")
        if not isinstance(model, dict) or not isinstance(tokenizer.get("added_tokens") or [], list):
            raise _malformed(TOKENIZER, "model", "an object", type(model).__name__)
        if model.get("type", "BPE") == "BPE" and not (
            isinstance(model.get("vocab"), dict) and isinstance(model.get("merges"), list)
        ):
            raise _malformed(TOKENIZER, "model.vocab", "an object, with a list of merges", "another shape")
        if model.get("type", "BPE") == "BPE":
            odd = [i for i in model["vocab"].values() if type(i) is not int or not 0 <= i < MAX_TOKENS]
            if odd:
                raise _malformed(TOKENIZER, "model.vocab", f"ids below {MAX_TOKENS}", _shown(odd[0]))
            for merge in model["merges"]:
                if not _is_merge(merge):
                    raise _malformed(TOKENIZER, "model.merges", "two texts", _shown(merge))
    return Folder(path=path, tokenizer=tokenizer, settings=_document(path, TOKENIZER_CONFIG) or {}, config=config)


def read_file(path: Path) -> bytes | None:
    """The bytes of a file of bounded size; None where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(
            f"a tokenizer file can't be read: {error.strerror}", code="unreadable-file", file=path.name
        ) from error
    if len(data) > MAX_BYTES:
        raise _malformed(path.name, None, f"at most {MAX_BYTES} bytes", "more")
    return data


def json_object(folder: Folder, name: str) -> dict[str, Any] | None:
    """A JSON object beside the tokenizer; None where there is none."""
    return _document(folder.path, name)


def token_text(value: Any) -> str | None:
    """A token's text, from either way in which it is written."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def added_of_settings(folder: Folder) -> tuple[AddedToken, ...]:
    """The added tokens of tokenizer_config.json (``added_tokens_decoder``), in its order."""
    entries = folder.settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, Mapping):
        raise _malformed(TOKENIZER_CONFIG, "added_tokens_decoder", "an object", type(entries).__name__)
    return tuple(
        _added({"id": int(number) if str(number).isdecimal() else None, **entry})
        for number, entry in entries.items()
        if isinstance(entry, Mapping)
    )


def _added(entry: Any) -> AddedToken:
    match entry:
        case {"id": int(number), "content": str(content)} if 0 <= number < MAX_TOKENS and content:
            return AddedToken(id=number, content=content, special=bool(entry.get("special")))
    raise _malformed(TOKENIZER, "added_tokens", "an id and its content", _shown(entry))


def _is_merge(merge: Any) -> bool:
    """Whether a merge is one text with a space in it, or two texts."""
    match merge:
        case str() | [str(), str()]:
            return True
    return False


def _document(path: Path, name: str) -> dict[str, Any] | None:
    raw = read_file(path / name)
    if raw is None:
        return None
    value = parse_document(name, raw).value
    if _HALF.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _malformed(name, None, "whole characters", _shown(error.object[error.start])) from error
    return value


def _shown(value: Any) -> str:
    """What was found, in short; a whole number may have too many digits to be written out."""
    return f"a number of {value.bit_length()} bits" if type(value) is int and value >> 64 else ascii(value)[:80]


def _malformed(file: str, key: str | None, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        "a tokenizer file isn't what it should be",
        code="broken-tokenizer",
        file=file,
        key=key,
        expected=expected,
        found=found,
        hint="fetch the tokenizer again from where the checkpoint comes from",
    )
