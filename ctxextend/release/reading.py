"""Reading a recipe file: every variant as a value, before anything is started, and the line of all that it says.

What a scalar means depends on its key. ``yes``, ``no``, ``on`` and ``off`` are true and false where only that can
stand, and text elsewhere: ``sliding_window: off`` is what it says. Names and commits are never taken for numbers.
Where anything can stand (``options``), what versions of YAML read differently is refused.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import UNSET, Struct
from msgspec.structs import replace

from ctxextend.errors import UsageError, nearest
from ctxextend.release.document import KEYS, MATRIX, VARIABLES, RecipeDocument
from ctxextend.release.located import SWITCHES, KeyPath, Node, located, meaning, shown
from ctxextend.release.matrix import Combination, combinations
from ctxextend.release.parsing import parse, read_bytes
from ctxextend.release.variables import filled

#: What can stand for a type, for people.
_NAMES: Final[Mapping[Any, tuple[str, ...]]] = {
    str: ("a text",),
    int: ("a whole number",),
    float: ("a number",),
    bool: ("yes", "no"),
    tuple: ("a list",),
    Mapping: ("keys with their values",),
}

#: An output's name: that of a file, none of those that lie beside it.
_NAME: Final = re.compile(
    r"(?!(?:evidence|(?:run|results)\.json|(?:results|readme)\.md)$)[^\s./\\-](?:[^/\\\n\t]*[^/\\\s])?", re.IGNORECASE
)
_NAME_EXPECTED: Final = "a name without slashes, no dot or dash first; not evidence, run.json, readme.md, results.*"


class Variant(Struct, frozen=True, kw_only=True):
    """One variant of a recipe.

    ``label``: its name, empty in a recipe without a matrix. ``values``: what the matrix chose, as the file says it.
    ``lines``: of every key and every entry of a list in ``document``, from 1.
    """

    label: str
    values: Mapping[str, Any]
    document: RecipeDocument
    lines: Mapping[KeyPath, int]


class RecipeFile(Struct, frozen=True, kw_only=True):
    """A recipe as it was read.

    ``path``: as it was given. ``name``: of the file, without its ending. ``sha256``: of its bytes. ``variables``:
    their texts, from the command line or by default; those that the matrix sets are in each variant's ``values``.
    """

    path: str
    name: str
    sha256: str
    variables: Mapping[str, Any]
    variants: tuple[Variant, ...]


def read_recipe(path: str | Path, variables: Mapping[str, str] = {}) -> RecipeFile:
    """The recipe in a YAML file, checked whole. ``variables``: from the command line, by name.

    Raises :class:`CheckpointError` for a file that can't be read, and :class:`UsageError` for what it says wrongly:
    with its line, what is expected, and what to write instead. Names of methods and runtimes, lengths and bounds are
    not looked at here.
    """
    path = Path(path)
    raw = read_bytes(path)
    root = parse(raw, str(path))
    for key, node in root.items():
        if key not in (*KEYS, VARIABLES, MATRIX):
            raise _unknown_key(node, (*KEYS, VARIABLES, MATRIX))
    found = combinations(root, variables, str(path))
    varying = {name for one in found for name in one.values}
    recipe = RecipeFile(
        path=str(path),
        name=path.stem,
        sha256=hashlib.sha256(raw).hexdigest(),
        variables={name: text for name, text in found[0].variables.items() if name not in varying},
        variants=tuple(_variant(one, path) for one in found),
    )
    for variant in recipe.variants:
        _check_names(recipe, variant)
    _check_repositories(recipe)
    return recipe


def _variant(one: Combination, path: Path) -> Variant:
    entries = filled(one.entries, {**one.variables, "recipe": path.stem, "label": one.label})
    if "source" not in entries:
        raise Node(value="", file=str(path), path=("source",)).wrong(
            "recipe-key",
            "the recipe has no source",
            expected="a checkpoint's folder, a GGUF file, or a repository org/name of the Hub",
            hint="add a line such as 'source: org/name'",
        )
    return Variant(
        label=one.label,
        values=one.values,
        document=_part(entries, RecipeDocument),
        lines={part.path: part.line for node in entries.values() for part in node.parts()},
    )


@functools.cache
def _fields(part: type[Struct]) -> Mapping[str, tuple[Any, ...]]:
    """The keys that a part of a recipe can have, each with the types that it can be."""
    return {name: _kinds(hint) for name, hint in get_type_hints(part).items()}


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _part_of(kinds: tuple[Any, ...]) -> type[Struct] | None:
    """The part of a recipe, with keys of its own, that can stand there."""
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Struct)), None)


def _inner(kinds: tuple[Any, ...], holder: type[Any]) -> tuple[Any, ...] | None:
    """What can stand in a list, or by the keys of a mapping; None where there can be none."""
    return next((_kinds(get_args(kind)[holder is Mapping]) for kind in kinds if get_origin(kind) is holder), None)


def _part(entries: Mapping[str, Node], part: type[Struct]) -> Any:
    """A part of a recipe. Raises :class:`UsageError` at the first thing that can't be."""
    fields = _fields(part)
    for key, node in entries.items():
        if key not in fields:
            raise _unknown_key(node, fields)
    return part(**{key: _value(node, fields[key]) for key, node in entries.items()})


def _value(node: Node, kinds: tuple[Any, ...]) -> Any:
    """What a node means where one of ``kinds`` can stand."""
    if Any in kinds:
        return node.simple(_anything)
    match node.value:
        case str():
            value = _scalar(node, kinds)
            if value is not UNSET:
                return value
        case tuple() as items:
            if (inner := _inner(kinds, tuple)) is not None:
                return tuple(_value(item, inner) for item in items)
        case entries:
            if (part := _part_of(kinds)) is not None:
                return _part(entries, part)
            if (inner := _inner(kinds, Mapping)) is not None:
                return {key: _value(said, inner) for key, said in entries.items()}
    raise node.wrong(
        "recipe-value",
        "a key has a value that it can't have",
        expected=_expected(kinds),
        found=node.told,
        hint=_mending(node, kinds),
    )


def _scalar(node: Node, kinds: tuple[Any, ...]) -> Any:
    """What a text means where one of ``kinds`` can stand; UNSET where it can be none of them."""
    text = str(node.value)
    value = meaning(text) if node.plain else text
    if node.plain and bool in kinds:
        value = SWITCHES.get(text.lower(), value)
    if type(value) is int and int not in kinds and float in kinds:
        value = float(value)
    if type(value) in kinds:
        return value
    return text if text in _literals(kinds) or (str in kinds and not node.is_null) else UNSET


def _anything(node: Node) -> Any:
    """What a text means where anything can stand. Raises for yes, no, on and off, which may be texts there."""
    text = str(node.value)
    if node.plain and text.lower() in SWITCHES:
        raise node.wrong(
            "recipe-value",
            "a value can be read in two ways",
            expected="true or false, or a text in quotes",
            found=text,
            hint=f'write {str(SWITCHES[text.lower()]).lower()}, or "{text}"',
        )
    return meaning(text) if node.plain else text


def _literals(kinds: tuple[Any, ...]) -> list[str]:
    return sorted(value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))


def _either(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _expected(kinds: tuple[Any, ...]) -> str:
    """What can stand somewhere, for people."""
    names = _literals(kinds) + [name for kind in kinds for name in _NAMES.get(get_origin(kind) or kind, ())]
    part = _part_of(kinds)
    if part is not None:
        names.append(f"keys such as {', '.join([*_fields(part)][:3])}")
    return _either(names)


def _mending(node: Node, kinds: tuple[Any, ...]) -> str | None:
    """An edit that mends a value that can't stand where it does."""
    key = next(part for part in reversed(node.path) if isinstance(part, str))
    if node.is_null:
        edit = f"write '{key}: yes'" if bool in kinds else "give a value"
        return f"{edit}, or leave the line away for the default"
    if _inner(kinds, tuple) is not None:
        return f"{key} is a list: put '- ' before each of its parts"
    if not isinstance(node.value, str):
        return f"write one value: '{key}: VALUE'" if _part_of(kinds) is None else "write 'KEY: VALUE' on a line each"
    if not node.plain and _scalar(replace(node, plain=True), kinds) is not UNSET:
        return "write it without the quotes"
    if int in kinds or float in kinds:
        return "write a finite decimal number, without a leading zero"
    near = nearest(node.value.lower(), _literals(kinds), 1)
    return f"did you mean {near[0]}?" if near else None


def _unknown_key(node: Node, known: Collection[str]) -> UsageError:
    """What is said of a key that can't stand where it does, with the one that was probably meant."""
    key = str(node.path[-1])
    near = nearest(key.lower().replace("-", "_"), known, 1)
    elsewhere = [f"{key}, at the top of the file"] if key in KEYS else []
    for name, kinds in _fields(RecipeDocument).items():
        part = _part_of(_inner(kinds, tuple) or kinds)
        if part is not None and key in _fields(part):
            elsewhere.append(f"{name}.{key}")
    if elsewhere:
        hint = f"did you mean {_either(elsewhere[:3])}?"
    elif key == "set":
        hint = "parameters of the method are keys of options"
    else:
        hint = f"did you mean {near[0]}?" if near else "take it out"
    message, expected = "the recipe has a key that isn't known", f"one of {', '.join(known)}"
    return node.wrong("recipe-key", message, expected=expected, hint=hint)


def _check_names(recipe: RecipeFile, variant: Variant) -> None:
    """Raises where the outputs of a variant are none, or would be written over each other."""
    if not variant.document.outputs:
        raise _output_error(recipe, variant, (), "the recipe has no outputs", hint="leave the key away for one")
    names: dict[str, int] = {}
    for index, output in enumerate(variant.document.outputs):
        if output.name is None:
            continue
        place = (index, "name")
        if not _NAME.fullmatch(output.name):
            message, hint = "an output's name can't be that of a file here", "the folder is said by 'out'"
            found = shown(output.name) or "an empty text"
            raise _output_error(recipe, variant, place, message, expected=_NAME_EXPECTED, found=found, hint=hint)
        first = names.setdefault(output.name.lower(), index)
        if first != index:
            found, hint = f"{shown(output.name)}, as outputs[{first}] has", "give each a name of its own"
            raise _output_error(recipe, variant, place, "two outputs have the same name", found=found, hint=hint)


def _check_repositories(recipe: RecipeFile) -> None:
    """Raises where two outputs, of whatever variants, would be published over each other."""
    published: dict[tuple[str, str | None], str] = {}
    for variant in recipe.variants:
        push = variant.document.push
        for index, output in enumerate(variant.document.outputs):
            if output.repo_id is None:
                continue
            other = published.get((output.repo_id.lower(), push.revision))
            if other == variant.label or (other is not None and not push.create_pr):
                message, found = "two outputs are published to the same repository", shown(output.repo_id)
                hint = "give each a repository of its own; several types of GGUF files are one output's outtypes"
                if other != variant.label:
                    hint = "tell the variants apart: repo_id: org/${name}-${label}"
                raise _output_error(recipe, variant, (index, "repo_id"), message, found=found, hint=hint)
            published[output.repo_id.lower(), push.revision] = variant.label


def _output_error(recipe: RecipeFile, variant: Variant, place: KeyPath, message: str, **told: str) -> UsageError:
    return located(UsageError(message, code="recipe-value", **told), recipe, variant, "outputs", *place)
