"""A checkpoint's own tokenizer, for the engines that take token ids. Needs no torch where there is a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ctxextend.errors import CheckpointError
from ctxextend.lab.engines.host import first_line

#: Where a tokenizer can lie that isn't a tokenizer.json.
_OTHER_TOKENIZERS: Final = ("tokenizer.model", "*.tiktoken", "tekken.json", "vocab.*", "spiece.model", "sentencepiece*")


class Tokenizer:
    """Text to token ids and back, without special ones, and the ids that stand before every text."""

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        file = folder / "tokenizer.json"
        if file.is_file():
            from tokenizers import Tokenizer as Fast

            try:
                fast = Fast.from_file(str(file))
            except Exception as error:
                raise _broken(file, first_line(error)) from error
            fast.no_truncation()
            fast.no_padding()
            self._encode: Callable[[str, bool], list[int]] = lambda text, special: list(
                fast.encode(text, add_special_tokens=special).ids
            )
            self._decode: Callable[[list[int]], str] = lambda ids: str(fast.decode(ids, skip_special_tokens=True))
            # What tokenizer_config.json states goes before tokenizer.json.
            stated = _stated_opening(folder, fast.token_to_id)
        else:
            slow = _slow_tokenizer(folder, trust_remote_code=trust_remote_code)
            self._encode = lambda text, special: list(slow.encode(text, add_special_tokens=special))
            self._decode = lambda ids: str(slow.decode(ids, skip_special_tokens=True))
            stated = None
        self.opening = opening_of(self._encode) if stated is None else stated

    def encode(self, text: str) -> list[int]:
        return self._encode(text, False)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._decode(list(tokens))


def opening_of(encode: Callable[[str, bool], list[int]]) -> tuple[int, ...]:
    """The ids that ``encode`` (a text, whether with special tokens) puts before a text."""
    plain, whole = encode("a", False), encode("a", True)
    starts = (at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain)
    return tuple(whole[: next(starts, 0)])


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none, or nothing readable."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _stated_opening(folder: Path, token_id: Callable[[str], int | None]) -> tuple[int, ...] | None:
    """The ids by ``add_bos_token``, which transformers lets overrule tokenizer.json; None where it isn't there."""
    stated = read_json(folder / "tokenizer_config.json")
    if not isinstance(stated.get("add_bos_token"), bool):
        return None
    token = stated.get("bos_token")
    name = token.get("content") if isinstance(token, dict) else token
    found = token_id(name) if isinstance(name, str) else None
    return (found,) if stated["add_bos_token"] and found is not None else ()


def _slow_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        other = any(any(folder.glob(name)) for name in _OTHER_TOKENIZERS)
        said = first_line(error) if other else "there is none in the folder"
        raise _broken(folder, said) from error


def _broken(file: Path, said: str) -> CheckpointError:
    return CheckpointError(
        f"its tokenizer can't be loaded: {said}",
        code="broken-tokenizer",
        file=str(file),
        hint="put the model's tokenizer.json into the folder",
    )
