"""What a recipe's file says, each part with the place where it stands, and errors that tell the place.

Scalars stay text here, since what they mean depends on where they stand: YAML 1.1 reads the ``off`` of
``sliding_window: off`` as false, ``1e-3`` as text, and the ``5e10`` at the start of a commit's name as a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ctxextend.checkpoint.secrets import masked
from ctxextend.errors import CtxextendError, UsageError

if TYPE_CHECKING:
    from ctxextend.release.reading import RecipeFile, Variant

E = TypeVar("E", bound=CtxextendError)

#: Keys from the top of a document down, numbers for places in a list.
KeyPath = tuple[str | int, ...]

NULLS: Final = frozenset({"", "~", "null"})
TRUTHS: Final[Mapping[str, bool]] = {"true": True, "false": False}
#: What YAML 1.1 reads as true and false, and YAML 1.2 as text.
SWITCHES: Final[Mapping[str, bool]] = {"yes": True, "no": False, "on": True, "off": False}
_WHOLE: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17}|[1-9][0-9]{0,2}(?:_[0-9]{3}){1,5})")
_NUMBER: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")

#: No part of a name, a path or a message: control characters but tab and newline, and halves of characters.
_UNSEEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
#: A key that would hold a secret. A tokenizer isn't one.
_SECRET: Final = re.compile(r"(?:\b|_)(?:token|api[_-]?key|password|passwd|secret|credentials?)$", re.IGNORECASE)


class Node(Struct, frozen=True, kw_only=True):
    """A text, a list, or keys with what they say in the order of the file; and where it stands.

    ``plain``: a text without quotes, which may mean a number, yes, no, or nothing. ``line``: of its key where it has
    one, from 1; 0 on the command line.
    """

    value: str | tuple[Node, ...] | Mapping[str, Node]
    plain: bool = False
    file: str
    line: int = 0
    path: KeyPath = ()

    @property
    def is_null(self) -> bool:
        return self.plain and isinstance(self.value, str) and self.value.lower() in NULLS

    @property
    def told(self) -> str:
        """What it is, for people."""
        if not isinstance(self.value, str):
            kind = "list" if isinstance(self.value, tuple) else "mapping"
            return f"a {kind}" if self.value else f"an empty {kind}"
        if self.is_null:
            return "nothing"
        return shown(self.value) if self.plain else f'"{shown(self.value)}", in quotes'

    def parts(self) -> Iterator[Node]:
        """Itself, and all that it holds."""
        yield self
        if not isinstance(self.value, str):
            for part in self.value.values() if isinstance(self.value, Mapping) else self.value:
                yield from part.parts()

    def moved(self, path: KeyPath, change: Callable[[Node], Node] = lambda text: text) -> Node:
        """The same under another path, its texts changed."""
        here = replace(self, path=path)
        match self.value:
            case str():
                return change(here)
            case tuple() as items:
                return replace(here, value=tuple(item.moved((*path, at), change) for at, item in enumerate(items)))
            case entries:
                return replace(here, value={key: said.moved((*path, key), change) for key, said in entries.items()})

    def simple(self, scalar: Callable[[Node], Any]) -> Any:
        """As plain lists and dicts, with what ``scalar`` makes of texts."""
        match self.value:
            case str():
                return scalar(self)
            case tuple() as items:
                return [item.simple(scalar) for item in items]
            case entries:
                return {key: said.simple(scalar) for key, said in entries.items()}

    def wrong(
        self,
        code: str,
        message: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> UsageError:
        """An error about what stands here. Nothing in it looks like a token."""
        return UsageError(
            message,
            code=code,
            file=at_line(self.file, self.line),
            key=_dotted(self.path) or None,
            expected=expected and masked(expected),
            found=found and masked(found),
            hint=hint and masked(hint),
        )

    def check_text(self) -> None:
        """Raises :class:`UsageError` for characters that no name, path or message can have."""
        unseen = _UNSEEN.search(self.value) if isinstance(self.value, str) else None
        if unseen is not None:
            message, found = "a text holds a character that can't be written", f"U+{ord(unseen.group()):04X}"
            raise self.wrong("recipe-value", message, found=found, hint="take it out")

    def check_secret(self) -> None:
        """Raises :class:`UsageError` where the key is one that would hold a token or a password; without showing it."""
        if _SECRET.search(str(self.path[-1])):
            raise self.wrong(
                "recipe-secret",
                "a secret has no place in a recipe, which is kept and published",
                hint="take it out of the file; the Hub's token is read from HF_TOKEN (or 'hf auth login' saves it), "
                "a server's key from OPENAI_API_KEY",
            )


def meaning(text: str) -> Any:
    """What a text without quotes means by the core schema of YAML 1.2; yes, no, on and off are text there."""
    if text.lower() in NULLS:
        return None
    if text.lower() in TRUTHS:
        return TRUTHS[text.lower()]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def line_of(variant: Variant, *path: str | int) -> int | None:
    """The line of a key or, where the file doesn't have it, of the nearest that holds it; None where none does."""
    return next((variant.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in variant.lines), None)


def located(error: E, file: RecipeFile | str, variant: Variant | None, *path: str | int) -> E:
    """A copy of ``error`` that says where in the recipe the value stands that it was raised for.

    ``path``: keys from the top of the recipe down, numbers for places in a list.
    """
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    line = None if variant is None else line_of(variant, *path)
    copied.file = at_line(file if isinstance(file, str) else file.path, line)
    copied.key = _dotted(path) or error.key
    return copied


def at_line(file: str, line: int | None) -> str:
    """``recipe.yaml, line 7``."""
    return f"{file}, line {line}" if line else file


def shown(text: str, longest: int = 80) -> str:
    """A text of the file in a message: on one line, cut, and without what looks like a token."""
    text = masked(text)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _dotted(path: KeyPath) -> str:
    """``outputs[0].name``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in path)
    return text.removeprefix(".")
