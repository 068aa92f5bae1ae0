"""YAML with the lines that things stand on.

Of YAML only what says one thing to everybody is read: keys that are text and given once, scalars, lists, aliases.
Tags, merge keys and several documents are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from msgspec.structs import replace

from ctxextend.errors import CheckpointError, UsageError
from ctxextend.release.located import KeyPath, Node, at_line, shown

#: The most that a recipe may hold: bytes in the file, keys and values once aliases are followed, levels.
MOST_BYTES: Final = 1 << 20
MOST_NODES: Final = 50_000
MOST_LEVELS: Final = 40

#: What mends a line, by what PyYAML says of it.
_HINTS: Final = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "a text with ': ' in it is quoted; a key on a line of its own is indented "
    "like its neighbours",
    "alias": "a text that starts with * is quoted",
    "special characters": "save the file as UTF-8, and take control characters out",
    "": "look at the quotes, brackets and indentation of this line and of the one before",
}


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
            hint="check the path; 'ctxextend recipe init SOURCE -o recipe.yaml' writes one",
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


def parse(raw: bytes, file: str) -> Mapping[str, Node]:
    """The keys at the top of a recipe.

    Raises :class:`CheckpointError` for bytes that are no YAML, and :class:`UsageError` for YAML that a recipe isn't
    written in.
    """
    # What isn't UTF-8 becomes characters that PyYAML refuses with their place.
    text = raw.decode("utf-8-sig", "surrogateescape")
    try:
        composed = _composed(text, file)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an escape or a directive with too large a number
        raise _unreadable(text, file, error) from None
    root = Node(value="", plain=True, file=file) if composed is None else _Tree(file).node(composed)
    if not isinstance(root.value, Mapping):
        raise (replace(root, line=0) if root.is_null else root).wrong(
            "recipe-value",
            "the recipe is empty" if root.is_null else "the recipe has no keys",
            expected="keys such as source, method and target",
            found=root.told,
            hint="write 'KEY: VALUE' on a line each; 'ctxextend recipe init SOURCE -o recipe.yaml' writes one",
        )
    return root.value


class _Loader(yaml.SafeLoader):
    """The safe loader, which here makes nothing of what it reads: every scalar is text, and nothing has a tag."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute
    levels = 0
    file = ""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        place = Node(value="", file=self.file, line=event.start_mark.line + 1)
        if getattr(event, "tag", None) is not None:
            hint = "take the word with the ! away; a text that starts with ! is written in quotes"
            raise place.wrong("recipe-value", "tags aren't read here", expected="values without a tag", hint=hint)
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise _too_deep(place)
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


def _composed(text: str, file: str) -> yaml.Node | None:
    """The one document of ``text``, as PyYAML composes it; None where there is none."""
    loader = _Loader(text)
    loader.file = file
    root = loader.get_node() if loader.check_node() else None
    if loader.check_node():
        second = loader.peek_event()  # type: ignore[no-untyped-call]
        raise Node(value="", file=file, line=second.start_mark.line + 1).wrong(
            "recipe-value",
            "the file holds several documents",
            expected="one recipe a file",
            hint="write each to a file of its own; several methods or targets are a matrix",
        )
    return root


def _unreadable(text: str, file: str, error: Exception) -> CheckpointError:
    """What PyYAML says of a file, without the part of the file that it would show."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = getattr(error, "position", None) if mark is None else mark.index
    line = None if position is None else text.count("\n", 0, position) + 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "an escape that can't be"
    said = text.splitlines()[line - 1 : line] if line else []
    if any("${" in part and ("[" in part or part.count("{") > part.count("${")) for part in said):
        hint = 'inside [...] and {...} a variable is quoted: "${name}"; or write one a line'
    else:
        hint = next(hint for sign, hint in _HINTS.items() if sign in problem)
    return CheckpointError(
        "the recipe can't be read as YAML",
        code="recipe-yaml",
        file=at_line(file, line),
        expected="YAML",
        found=shown(problem.removeprefix("found "), 200),
        hint=hint,
    )


def _too_deep(place: Node) -> UsageError:
    return place.wrong(
        "recipe-value",
        "the recipe is nested too deep",
        expected=f"at most {MOST_LEVELS} levels",
        hint="no part of a recipe needs more than five, and none can hold an alias of itself",
    )


class _Tree:
    """Makes nodes of PyYAML's. What an alias stands for is made each time, and counts each time."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._count = 0

    def node(self, made: yaml.Node, path: KeyPath = (), line: int | None = None) -> Node:
        """Raises :class:`UsageError` for what a recipe can't hold."""
        plain = isinstance(made, yaml.ScalarNode) and made.style is None
        node = Node(value="", plain=plain, file=self._file, line=line or made.start_mark.line + 1, path=path)
        self._count += 1
        if self._count > MOST_NODES:
            hint = "what an alias stands for counts each time; write fewer"
            raise node.wrong(
                "recipe-value", "the recipe holds too much", expected=f"at most {MOST_NODES} values", hint=hint
            )
        if len(path) > MOST_LEVELS:
            raise _too_deep(node)
        match made:
            case yaml.SequenceNode():
                return replace(node, value=tuple(self.node(item, (*path, at)) for at, item in enumerate(made.value)))
            case yaml.MappingNode():
                return replace(node, value=self._entries(made, node))
            case _:
                # PyYAML leaves a character that JSON escapes in two halves as two.
                text = made.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
                node = replace(node, value=text)
                node.check_text()
                return node

    def _entries(self, made: yaml.MappingNode, holder: Node) -> Mapping[str, Node]:
        entries: dict[str, Node] = {}
        for said, value in made.value:
            key = replace(holder, value="", line=said.start_mark.line + 1)
            if isinstance(said, yaml.ScalarNode):
                key = self.node(said, holder.path)
            name = str(key.value)
            if not isinstance(said, yaml.ScalarNode) or key.is_null:
                found = "nothing" if key.is_null else "a list or a mapping"
                expected, hint = "a name before the colon", "write 'KEY: VALUE'"
                raise key.wrong("recipe-key", "a key isn't text", expected=expected, found=found, hint=hint)
            if key.plain and name == "<<":
                hint = "write the keys out; an alias (*name) can stand for a whole value"
                raise key.wrong("recipe-key", "merge keys aren't read here", found="<<", hint=hint)
            key = replace(key, path=(*holder.path, name))
            key.check_secret()
            if name in entries:
                found = f"lines {entries[name].line} and {key.line}"
                raise key.wrong("recipe-key", "a key is given twice", found=found, hint="keep one of them")
            if "${" in name:
                hint = "write the key out; a value can be a variable"
                raise key.wrong("recipe-key", "a key can't be made of variables", hint=hint)
            entries[name] = self.node(value, key.path, key.line)
        return entries
