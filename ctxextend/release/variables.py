"""Variables: names with texts, and the ``${name}`` that they are put in for.

``variables:`` names them with their defaults; null stands for none, so that the command line must give one. A value is
a text as it stands, not made of other variables. Beside them every recipe can name ``name`` (of the source),
``method`` and ``target`` as the file has them, ``recipe`` (the file's name without its ending) and ``label`` (the
variant's). The three keys that these are read from can hold variables, ``${recipe}`` and ``${label}`` only.

What is put in is text: it adds no keys and no lists. Without quotes the result is read anew, so that ``target: ${n}``
can be a number, and nothing at all where ``n`` is empty; in quotes it stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ctxextend.errors import nearest
from ctxextend.release.document import VARIABLES
from ctxextend.release.located import Node, shown

#: What every recipe can name beside its variables.
BUILT_IN: Final = ("name", "method", "target", "recipe", "label")
#: The keys that the first three are read from.
_READ_FIRST: Final = {"source": "name", "method": "method", "target": "target"}

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_USED: Final = re.compile(r"\$\$\{|\$\{\s*([A-Za-z0-9_.-]*)\s*\}|\$\{")
_LITERAL: Final = "$${ stands for a ${ that is meant"


def declared(root: Mapping[str, Node], given: Mapping[str, str], file: str) -> dict[str, Node]:
    """Every variable, as the command line gives it or else the file.

    Raises :class:`UsageError` for those that can't be, and for ``given`` ones that the recipe doesn't have.
    """
    said = root.get(VARIABLES)
    if said is not None and not isinstance(said.value, Mapping):
        raise said.wrong(
            "recipe-variable",
            "variables can't be read",
            expected="names with their defaults",
            found=said.told,
            hint="a line 'NAME: DEFAULT' for each, indented; 'NAME: null' for one that must be given with --var",
        )
    found: dict[str, Node] = {}
    for name, default in said.value.items() if said is not None and isinstance(said.value, Mapping) else ():
        if name in BUILT_IN or not _NAME.fullmatch(name):
            raise default.wrong(
                "recipe-variable",
                "a variable can't have this name",
                expected=f"letters, digits and underscores, no digit first; other than {', '.join(BUILT_IN)}",
                found=shown(name),
                hint=f"call it my_{name}, and write ${{my_{name}}}" if name in BUILT_IN else None,
            )
        found[name] = single(default)
    for name, text in given.items():
        node = Node(value=text, file=file, path=(f"--var {name}",))
        node.check_secret()
        if name not in found:
            near = nearest(name, found, 1)
            raise node.wrong(
                "recipe-variable",
                "the recipe has no variable of that name",
                expected=", ".join(found) or "no variables: the recipe declares none",
                hint=(f"did you mean {near[0]}? " if near else "")
                + "a recipe declares its variables under 'variables:'; its keys are changed in the file",
            )
        node.check_text()
        found[name] = node
    return found


def single(node: Node) -> Node:
    """A variable's value. Raises :class:`UsageError` where it isn't one text that stands for itself."""
    if not isinstance(node.value, str):
        raise node.wrong(
            "recipe-variable",
            "a variable isn't a single value",
            expected="a text or a number",
            found=node.told,
            hint="a list goes in as one text with commas; a mapping over keys of the recipe belongs in the matrix",
        )
    if any(match.group() != "$${" for match in _USED.finditer(node.value)):
        hint = f"use both where they are needed: ${{one}}-${{other}}; {_LITERAL}"
        raise node.wrong("recipe-variable", "a variable can't be made of others", found=shown(node.value), hint=hint)
    return replace(node, value=node.value.replace("$${", "${"))


def texts(variables: Mapping[str, Node]) -> dict[str, str]:
    """What each stands for. Raises :class:`UsageError` where one has no value."""
    for name, node in variables.items():
        if node.is_null:
            raise node.wrong(
                "recipe-variable",
                "a variable has no value",
                expected="a value from the command line",
                hint=f"--var {name}=VALUE, or a default in the file ('' for an empty one)",
            )
    return {name: str(node.value) for name, node in variables.items()}


def filled(entries: Mapping[str, Node], known: Mapping[str, str]) -> dict[str, Node]:
    """A variant's keys with every ``${name}`` replaced; ``known``: all but what is read from the keys themselves.

    Raises :class:`UsageError` for names that there aren't.
    """
    first = {key: _filled(entries[key], key, known) for key in _READ_FIRST if key in entries}
    names = {**known, "method": "auto"}
    for key, node in first.items():
        if isinstance(node.value, str) and not node.is_null:
            names[_READ_FIRST[key]] = name_of(node.value) if key == "source" else node.value
    return {key: first[key] if key in first else _filled(node, key, names) for key, node in entries.items()}


def _filled(node: Node, key: str, known: Mapping[str, str]) -> Node:
    """What is put in isn't looked at again; ``$${`` is a literal ``${``."""

    def put_in(text: Node) -> Node:
        value = _USED.sub(lambda used: "${" if used[0] == "$${" else _looked_up(used, text, known), str(text.value))
        return replace(text, value=value)

    return node.moved((key,), put_in)


def _looked_up(used: re.Match[str], node: Node, known: Mapping[str, str]) -> str:
    name = used[1]
    if name in known:
        return known[name]
    expected, found = ", ".join(sorted(known)), shown(used[0])
    if name is None:
        message, hint = "a variable can't be read", f"write ${{name}} with single braces; {_LITERAL}"
        expected, found = "${name}", shown(used.string[used.start() :], 20)
    elif name in BUILT_IN:
        message, line = f"${{{name}}} can't be used here", "source" if name == "name" else name
        hint = f"it is read from a line '{line}:', and isn't known in {', '.join(_READ_FIRST)} themselves; "
        hint += "declare a variable instead"
    else:
        message, near = "there is no variable of that name", nearest(name, known, 1)
        hint = f"did you mean ${{{near[0]}}}? " if near else ""
        hint += f"declare it: 'variables:' with a line '{name or 'name'}: VALUE'; {_LITERAL}"
    raise node.wrong("recipe-variable", message, expected=expected, found=found, hint=hint)


def name_of(source: str) -> str:
    """``${name}``: the last part of a source, without ``@revision``, ``:quant``, ``.gguf`` and a split's numbers."""
    text = source.strip()
    if not text.startswith((".", "/", "~")):
        text = text.removeprefix("hf://").partition("@")[0]
    last = text.rstrip("/").rpartition("/")[2].partition(":")[0]
    if last.lower().endswith(".gguf"):
        last = re.sub(r"-[0-9]{5}-of-[0-9]{5}$", "", last[: -len(".gguf")])
    return last
