"""YAML with the lines that things stand on: what a recipe file says, before it is asked what it may say.

Of YAML only what says one thing to everybody is read: keys that are text and given once, scalars, lists, aliases.
Tags, merge keys and several documents are refused. Scalars stay text here, since what they mean depends on where they
stand: YAML 1.1 reads the ``off`` of ``sliding_window: off`` as false, ``1e-3`` as text, and the ``5e10`` at the start
of a commit's name as a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, Union

import yaml
from msgspec import Struct

from ctxextend.checkpoint.secrets import masked
from ctxextend.errors import CheckpointError, CtxextendError, UsageError

E = TypeVar("E", bound=CtxextendError)

#: Keys from the top of a document down, numbers for places in a list.
KeyPath = tuple[str | int, ...]

#: The most that a recipe may hold: bytes in the file, scalars and lists once aliases are followed, levels.
MOST_BYTES: Final = 1 << 20
MOST_NODES: Final = 50_000
MOST_LEVELS: Final = 40

NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
TRUTHS: Final[Mapping[str, bool]] = {
    spelled: value
    for name, value in (("true", True), ("false", False))
    for spelled in (name, name.title(), name.upper())
}
#: What YAML 1.1 reads as true and false, and YAML 1.2 as text.
SWITCHES: Final[Mapping[str, bool]] = {
    spelled: value
    for name, value in (("yes", True), ("no", False), ("on", True), ("off", False))
    for spelled in (name, name.title(), name.upper())
}
_WHOLE: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17}|[1-9][0-9]{0,2}(?:_[0-9]{3}){1,5})")
_NUMBER: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_ENDLESS: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
#: No part of a name, a path or a message: control characters but tab and newline, and halves of characters.
_UNSEEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Scalar(Struct, frozen=True, kw_only=True):
    """A text. ``plain``: without quotes, so that it may mean a number, yes, no, or nothing. ``line`` counts from 1."""

    text: str
    plain: bool
    line: int


class Items(Struct, frozen=True, kw_only=True):
    """A list."""

    items: tuple[Node, ...]
    line: int


class Entry(Struct, frozen=True, kw_only=True):
    """What a key says; ``line`` is the key's."""

    node: Node
    line: int


class Entries(Struct, frozen=True, kw_only=True):
    """Keys and what they say, in the order of the file."""

    entries: Mapping[str, Entry]
    line: int


# Read while the module is, where the classes have no | yet for names that come later.
Node = Union[Scalar, Items, Entries]  # noqa: UP007


class HasLines(Protocol):
    """A variant of a recipe, as far as its lines go."""

    @property
    def lines(self) -> Mapping[KeyPath, int]: ...


class HasPath(Protocol):
    """A recipe's file."""

    @property
    def path(self) -> str: ...


def line_of(variant: HasLines, *path: str | int) -> int | None:
    """The line of a key or, where the file doesn't have it, of the nearest that holds it; None where none does."""
    for end in range(len(path), 0, -1):
        if path[:end] in variant.lines:
            return variant.lines[path[:end]]
    return None


def located(error: E, file: HasPath | str, variant: HasLines | None, *path: str | int) -> E:
    """A copy of ``error`` that says where in the recipe the value stands that it was raised for.

    ``path``: keys from the top of the recipe down, numbers for places in a list.
    """
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    copied.file = at_line(
        file if isinstance(file, str) else file.path, None if variant is None else line_of(variant, *path)
    )
    copied.key = dotted(path) or error.key
    return copied


def whole(text: str) -> int | None:
    """A whole number of at most 18 digits, ``128_000`` among them; None for any other text."""
    return int(text) if _WHOLE.fullmatch(text) else None


def number(text: str) -> float | None:
    """A finite number; None for any other text."""
    value = float(text.replace("_", "")) if _NUMBER.fullmatch(text) or _WHOLE.fullmatch(text) else None
    return value if value is not None and abs(value) != float("inf") else None


def is_endless(text: str) -> bool:
    """Whether a plain scalar stands for infinity, for no number, or for one past what floats hold."""
    return bool(_ENDLESS.fullmatch(text)) or (bool(_NUMBER.fullmatch(text)) and number(text) is None)


def free_value(node: Node) -> Any:
    """What a node means where anything may stand, by the core schema of YAML 1.2; yes, no, on and off are text."""
    match node:
        case Items():
            return [free_value(item) for item in node.items]
        case Entries():
            return {key: free_value(entry.node) for key, entry in node.entries.items()}
    if not node.plain:
        return node.text
    if node.text in NULLS:
        return None
    if node.text in TRUTHS:
        return TRUTHS[node.text]
    for value in (whole(node.text), number(node.text)):
        if value is not None:
            return value
    return node.text


def dotted(path: KeyPath) -> str:
    """``outputs[0].name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}"
    return text.removeprefix(".")


def shown(text: str, longest: int = 80) -> str:
    """A text of the file in a message: on one line, cut, and without what looks like a token."""
    text = masked(text)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def listed_names(names: list[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def at_line(file: str, line: int | None) -> str:
    """``recipe.yaml, line 7``."""
    return file if line is None else f"{file}, line {line}"


def wrong(
    message: str,
    *,
    code: str,
    file: str,
    line: int | None,
    path: KeyPath = (),
    expected: str | None = None,
    found: str | None = None,
    hint: str | None = None,
) -> UsageError:
    """An error about what a recipe says, with its line. Nothing in it looks like a token."""
    return UsageError(
        message,
        code=code,
        file=at_line(file, line),
        key=dotted(path) or None,
        expected=expected and masked(expected),
        found=found and masked(found),
        hint=hint and masked(hint),
    )


def check_text(text: str, *, file: str, line: int | None, path: KeyPath = ()) -> None:
    """Raises :class:`UsageError` for characters that no name, path or message can have."""
    unseen = _UNSEEN.search(text)
    if unseen is not None:
        raise wrong(
            "a text holds a character that can't be written",
            code="recipe-value",
            file=file,
            line=line,
            path=path,
            found=f"U+{ord(unseen.group()):04X}",
            hint="take it out",
        )


def read_bytes(path: Path) -> bytes:
    """A recipe's bytes. Raises :class:`CheckpointError` where there is no such file, or one too large to be one."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise CheckpointError(
            "the recipe can't be read",
            code="recipe-file",
            file=shown(str(path), 500),
            expected="a YAML file",
            found="nothing at this path" if missing else getattr(error, "strerror", None) or "a path that can't be",
            hint="check the path; 'ctxextend recipe init SOURCE -o recipe.yaml' writes one"
            if missing
            else "name the recipe's file, and see that it may be read",
        ) from None
    if len(raw) > MOST_BYTES:
        raise CheckpointError(
            "the recipe is too large to be one",
            code="recipe-file",
            file=str(path),
            expected=f"at most {MOST_BYTES} bytes",
            hint="name the recipe's YAML file, or split it in several",
        )
    return raw


def parse(raw: bytes, file: str) -> Entries:
    """The keys at the top of a recipe.

    Raises :class:`CheckpointError` for bytes that are no YAML, and :class:`UsageError` for YAML that a recipe isn't
    written in.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(
            file,
            raw[: error.start].count(b"\n") + 1,
            expected="UTF-8 text",
            found=f"byte {error.start} is none",
            hint="save the file as UTF-8",
        ) from None
    composed = _composed(text, file)
    if composed is None or _is_nothing(composed):
        raise wrong(
            "the recipe is empty",
            code="recipe-value",
            file=file,
            line=None,
            expected="keys such as source, method and target",
            hint="'ctxextend recipe init SOURCE -o recipe.yaml' writes one to start from",
        )
    root = _Tree(file).node(composed, ())
    if not isinstance(root, Entries):
        raise wrong(
            "the recipe has no keys",
            code="recipe-value",
            file=file,
            line=root.line,
            expected="keys such as source, method and target",
            found="a list" if isinstance(root, Items) else "a text",
            hint="write 'KEY: VALUE' on a line each, without a '-' before them; one file is one recipe",
        )
    return root


class _Loader(yaml.SafeLoader):
    """The safe loader, which here makes nothing of what it reads: every scalar is text, and nothing has a tag."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute
    _levels = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise _TagError(None, None, "a tag", event.start_mark)
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise _DepthError(None, None, "too deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node


class _TagError(yaml.MarkedYAMLError):
    """A tag, such as !!int or !env."""


class _DepthError(yaml.MarkedYAMLError):
    """More levels than a recipe has."""


def _composed(text: str, file: str) -> yaml.Node | None:
    """The one document of ``text``, as PyYAML composes it."""
    try:
        loader = _Loader(text)
        try:
            if not loader.check_node():
                return None
            root = loader.get_node()
            if loader.check_node():
                second = loader.peek_event()  # type: ignore[no-untyped-call]
                raise wrong(
                    "the file holds several documents",
                    code="recipe-value",
                    file=file,
                    line=second.start_mark.line + 1,
                    expected="one recipe a file",
                    hint="write each to a file of its own; several methods or targets are a matrix",
                )
        finally:
            loader.dispose()
    except _TagError as error:
        raise wrong(
            "tags aren't read here",
            code="recipe-value",
            file=file,
            line=_line_of(error),
            expected="values without a tag",
            hint="take the word with the ! away; a text that starts with ! is written in quotes",
        ) from None
    except _DepthError as error:
        raise _too_deep(file, _line_of(error)) from None
    except yaml.MarkedYAMLError as error:
        raise _broken(text, file, error) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        raise _unreadable(
            file,
            before.count("\n") + 1,
            expected="text",
            found=f"the character U+{int(error.character):04X}",
            hint="take it out",
        ) from None
    except (ValueError, yaml.YAMLError):
        # A number in a directive or an escape that Python can't hold; PyYAML lets these through.
        raise _unreadable(file, None, expected="YAML", found="an escape or a directive that can't be") from None
    return root


def _line_of(error: yaml.MarkedYAMLError) -> int | None:
    mark = error.problem_mark or error.context_mark
    return None if mark is None else mark.line + 1


def _broken(text: str, file: str, error: yaml.MarkedYAMLError) -> CheckpointError:
    """What PyYAML says of a file, without the part of the file that it would show."""
    line = _line_of(error)
    problem = error.problem or "it can't be read"
    lines = text.splitlines()
    said = lines[line - 1] if line is not None and line <= len(lines) else ""
    if "'\\t'" in problem:
        hint = "indent with spaces, not with tabs"
    elif "${" in said and ("[" in said or said.count("{") > said.count("${")):
        hint = 'inside [...] and {...} a variable is quoted: "${name}"; or write one a line'
    elif "mapping values are not allowed" in problem:
        hint = "a text with ': ' in it is quoted; a key on a line of its own is indented like its neighbours"
    elif "alias" in problem:
        hint = "a text that starts with * is quoted"
    else:
        hint = "look at the quotes, brackets and indentation of this line and of the one before"
    return _unreadable(file, line, expected="YAML", found=shown(problem.removeprefix("found "), 200), hint=hint)


def _unreadable(file: str, line: int | None, *, expected: str, found: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(
        "the recipe can't be read as YAML",
        code="recipe-yaml",
        file=at_line(file, line),
        expected=expected,
        found=found,
        hint=hint,
    )


def _too_deep(file: str, line: int | None) -> UsageError:
    return wrong(
        "the recipe is nested too deep",
        code="recipe-value",
        file=file,
        line=line,
        expected=f"at most {MOST_LEVELS} levels",
        hint="no part of a recipe needs more than five",
    )


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NULLS


def _joined(text: str) -> str:
    """A text in which JSON's way to escape a character in two halves is read as one, which PyYAML doesn't do."""
    return re.sub("[\ud800-\udbff][\udc00-\udfff]", _whole_character, text)


def _whole_character(halves: re.Match[str]) -> str:
    return halves.group().encode("utf-16", "surrogatepass").decode("utf-16")


class _Tree:
    """Makes nodes of PyYAML's. One that is named by several aliases is made once, and counted each time."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._made: dict[int, tuple[Node, int, int]] = {}
        self._open: set[int] = set()

    def node(self, node: yaml.Node, path: KeyPath) -> Node:
        """Raises :class:`UsageError` for what a recipe can't hold."""
        return self._of(node, path)[0]

    def _of(self, node: yaml.Node, path: KeyPath) -> tuple[Node, int, int]:
        """A node, how many it holds with itself, and how many levels."""
        made = self._made.get(id(node))
        if made is not None:
            return made
        line = node.start_mark.line + 1
        if id(node) in self._open:
            raise wrong(
                "an alias names what it is a part of",
                code="recipe-value",
                file=self._file,
                line=line,
                path=path,
                hint="write the values out",
            )
        if len(path) > MOST_LEVELS:
            raise _too_deep(self._file, line)
        self._open.add(id(node))
        match node:
            case yaml.SequenceNode():
                parts = [self._of(item, (*path, index)) for index, item in enumerate(node.value)]
                result: Node = Items(items=tuple(part[0] for part in parts), line=line)
            case yaml.MappingNode():
                parts, result = self._mapping(node, path, line)
            case _:
                assert isinstance(node, yaml.ScalarNode)
                text = _joined(node.value)
                check_text(text, file=self._file, line=line, path=path)
                parts, result = [], Scalar(text=text, plain=node.style is None, line=line)
        size = 1 + sum(part[1] for part in parts)
        levels = 1 + max((part[2] for part in parts), default=0)
        if size > MOST_NODES:
            raise wrong(
                "the recipe holds too much",
                code="recipe-value",
                file=self._file,
                line=line,
                path=path,
                expected=f"at most {MOST_NODES} values",
                hint="what an alias stands for counts each time; write fewer",
            )
        if levels > MOST_LEVELS:
            raise _too_deep(self._file, line)
        self._open.discard(id(node))
        self._made[id(node)] = (result, size, levels)
        return result, size, levels

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, line: int) -> tuple[list[tuple[Node, int, int]], Entries]:
        entries: dict[str, Entry] = {}
        parts = []
        for key_node, value in node.value:
            key_line = key_node.start_mark.line + 1
            key = self._key(key_node, path, key_line)
            if key in entries:
                raise wrong(
                    "a key is given twice",
                    code="recipe-key",
                    file=self._file,
                    line=key_line,
                    path=(*path, key),
                    found=f"lines {entries[key].line} and {key_line}",
                    hint="keep one of them",
                )
            part = self._of(value, (*path, key))
            parts.append(part)
            entries[key] = Entry(node=part[0], line=key_line)
        return parts, Entries(entries=entries, line=line)

    def _key(self, node: yaml.Node, path: KeyPath, line: int) -> str:
        if not isinstance(node, yaml.ScalarNode) or (node.style is None and node.value in NULLS):
            raise wrong(
                "a key isn't text",
                code="recipe-key",
                file=self._file,
                line=line,
                path=path,
                expected="a name before the colon",
                found="nothing" if isinstance(node, yaml.ScalarNode) else "a list or a mapping",
                hint="write 'KEY: VALUE'",
            )
        if node.style is None and node.value == "<<":
            raise wrong(
                "merge keys aren't read here",
                code="recipe-key",
                file=self._file,
                line=line,
                path=path,
                found="<<",
                hint="write the keys out; an alias (*name) can stand for a whole value",
            )
        text = _joined(node.value)
        check_text(text, file=self._file, line=line, path=path)
        return text
