"""Edits of a JSON text that leave every other byte as it was.

A config is a document that people diff. Parsing and printing it again would reorder nothing but
still respell numbers, escapes and spacing, so values are replaced where they stand, new keys are
appended to their object, and removed ones take their comma with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()


class Edit(Struct, frozen=True, kw_only=True):
    """One change at ``path`` (keys from the top): a new value, or removal when ``value`` is unset."""

    path: tuple[str, ...]
    value: Any = UNSET

    @property
    def removes(self) -> bool:
        return isinstance(self.value, UnsetType)


class _Member(Struct, frozen=True):
    key: str
    start: int
    value_start: int
    end: int


def apply_edits(document: dict[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """The parsed document after the edits; the one given is left alone."""
    result = deepcopy(document)
    for edit in edits:
        node = result
        for key in edit.path[:-1]:
            inner = node.get(key)
            if not isinstance(inner, dict):
                if edit.removes:
                    break
                inner = node[key] = {}
            node = inner
        else:
            if edit.removes:
                node.pop(edit.path[-1], None)
            else:
                node[edit.path[-1]] = deepcopy(edit.value)
    return result


def edit_text(text: str, edits: Sequence[Edit]) -> str:
    """The text after the edits. Raises ``ValueError`` if it is no JSON object."""
    for edit in edits:
        text = _remove(text, edit.path) if edit.removes else _set(text, edit.path, edit.value)
    return text


def value_at(document: dict[str, Any], path: Sequence[str]) -> Any:
    """The value at ``path``, or ``msgspec.UNSET`` where there is none."""
    node: Any = document
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return UNSET
        node = node[key]
    return node


def leading_member(text: str, key: str) -> Any:
    """The value of a top-level key from the head of a long document; UNSET if the head doesn't hold it."""
    try:
        for member_key, _start, value_start in _keys(text, _skip(text, 0)):
            if member_key == key:
                return _DECODER.raw_decode(text, value_start)[0]
    except (ValueError, IndexError, RecursionError):
        return UNSET
    return UNSET


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _keys(text: str, position: int) -> Iterable[tuple[str, int, int]]:
    if text[position : position + 1] != "{":
        raise ValueError("not a JSON object")
    position = _skip(text, position + 1)
    while text[position] != "}":
        start = position
        key, position = _DECODER.raw_decode(text, position)
        value_start = _skip(text, _skip(text, position) + 1)
        yield key, start, value_start
        _value, position = _DECODER.raw_decode(text, value_start)
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _members(text: str, position: int) -> list[_Member]:
    members = []
    for key, start, value_start in _keys(text, position):
        _value, end = _DECODER.raw_decode(text, value_start)
        members.append(_Member(key, start, value_start, end))
    return members


def _find(members: Sequence[_Member], key: str) -> _Member | None:
    # A key that stands twice counts as its last one, as every JSON reader here has it.
    return next((member for member in reversed(members) if member.key == key), None)


def _set(text: str, path: tuple[str, ...], value: Any) -> str:
    position = _skip(text, 0)
    for depth, key in enumerate(path):
        members = _members(text, position)
        found = _find(members, key)
        rest = path[depth + 1 :]
        if found is None:
            return _insert(text, position, members, key, _nest(rest, value), depth + 1)
        if rest and text[found.value_start] == "{":
            position = found.value_start
            continue
        printed = _print(text, _nest(rest, value), depth + 1)
        return text[: found.value_start] + printed + text[found.end :]
    raise ValueError("an edit needs a path")


def _nest(path: Sequence[str], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _insert(text: str, position: int, members: list[_Member], key: str, value: Any, depth: int) -> str:
    entry = f"{json.dumps(key, ensure_ascii=False)}: {_print(text, value, depth)}"
    unit = _indent(text)
    if members:
        last = members[-1]
        separator = ", " if unit is None else "," + _newline(text) + unit * depth
        return text[: last.end] + separator + entry + text[last.end :]
    if unit is None:
        return text[: position + 1] + entry + text[_skip(text, position + 1) :]
    open_, close = _newline(text) + unit * depth, _newline(text) + unit * (depth - 1)
    return text[: position + 1] + open_ + entry + close + text[_skip(text, position + 1) :]


def _remove(text: str, path: tuple[str, ...]) -> str:
    position = _skip(text, 0)
    for depth, key in enumerate(path):
        members = _members(text, position)
        found = _find(members, key)
        if found is None:
            return text
        if depth + 1 < len(path):
            if text[found.value_start] != "{":
                return text
            position = found.value_start
            continue
        index = members.index(found)
        if index > 0:
            cut = text[: members[index - 1].end] + text[found.end :]
        elif len(members) > 1:
            cut = text[: found.start] + text[members[1].start :]
        else:
            cut = text[: position + 1] + text[_skip(text, found.end) :]
        # The same key may stand twice; a removal means both.
        return _remove(cut, path)
    raise ValueError("an edit needs a path")


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent(text: str) -> str | None:
    """One level of the text's indentation; None for a text that stands on one line."""
    match = re.search(r"\{[ \t]*\r?\n([ \t]+)", text)
    return match.group(1) if match else None


def _print(text: str, value: Any, depth: int) -> str:
    unit = _indent(text)
    if unit is None:
        return json.dumps(value, ensure_ascii=False)
    printed = json.dumps(value, ensure_ascii=False, indent=unit)
    return printed.replace("\n", _newline(text) + unit * depth)
