"""Reading a recipe file: every variant as a value, before anything is started, and the line of all that it says.

``${name}`` in a text is replaced by a variable, or by what every recipe can name: ``name`` (of the source), ``method``
and ``target`` as the file has them, ``recipe`` (the file's name without its ending) and ``label`` (the variant's). The
three keys that these are read from can hold variables, ``${recipe}`` and ``${label}`` only. What is put in is text:
it adds no keys and no lists. Without quotes the result is read anew, so that ``target: ${n}`` can be a number, and
nothing at all where ``n`` is empty; in quotes it stays text.

What a scalar means depends on its key. ``yes``, ``no``, ``on`` and ``off`` are true and false where only that can
stand, and text elsewhere: ``sliding_window: off`` is what it says. Names and commits are never taken for numbers.
Where anything can stand (``options``), what versions of YAML read differently is refused.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

from ctxextend.errors import UsageError, nearest
from ctxextend.release.document import KEYS, MATRIX, VARIABLES, RecipeDocument
from ctxextend.release.located import (
    NULLS,
    SWITCHES,
    TRUTHS,
    Entries,
    Entry,
    Items,
    KeyPath,
    Node,
    Scalar,
    check_text,
    free_value,
    is_endless,
    line_of,
    listed_names,
    number,
    parse,
    read_bytes,
    shown,
    whole,
    wrong,
)
from ctxextend.release.matrix import (
    BUILT_IN,
    Combination,
    combinations,
    fill,
    is_secret,
    kind_of,
    name_of,
    secret_error,
)

#: The keys that ``${name}``, ``${method}`` and ``${target}`` are read from.
_READ_FIRST: Final = ("source", "method", "target")

#: What is text by YAML 1.2 and something else by 1.1: octal numbers, and numbers to the base of 60.
_OLD_NUMBERS: Final = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")

#: Where msgspec says what is wrong: ``... - at `$.outputs[0].name` ``.
_PLACE: Final = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_STEP: Final = re.compile(r"\[(\d+)\]|\.([^.\[\]]+)")

#: What lies beside the outputs.
_TAKEN: Final = frozenset({"evidence", "run.json", "readme.md"})


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


def read_recipe(path: Path, variables: Mapping[str, str] = {}) -> RecipeFile:
    """The recipe in a YAML file, checked whole. ``variables``: from the command line, by name.

    Raises :class:`CheckpointError` for a file that can't be read, and :class:`UsageError` for what it says wrongly:
    with its line, what is expected, and what to write instead. Names of methods and runtimes, lengths and bounds are
    not looked at here.
    """
    raw = read_bytes(path)
    file = str(path)
    root = parse(raw, file)
    _check_top(root, file)
    found = combinations(root, variables, file=file, recipe=path.stem)
    variants = tuple(_variant(one, file, path.stem) for one in found)
    recipe = RecipeFile(
        path=file,
        name=path.stem,
        sha256=hashlib.sha256(raw).hexdigest(),
        variables={
            name: value for name, value in found[0].variables.items() if not any(name in one.values for one in found)
        },
        variants=variants,
    )
    for variant in variants:
        _check_outputs(recipe, variant)
    _check_variants(recipe)
    return recipe


def _variant(one: Combination, file: str, recipe: str) -> Variant:
    reader = _Reader(file, {**one.variables, "recipe": recipe, "label": one.label}, one.entries)
    values = reader.document(one.entries)
    try:
        document = msgspec.convert(values, RecipeDocument)
    except msgspec.ValidationError as error:
        raise _refused(error, values, reader.lines, file) from None
    return Variant(label=one.label, values=one.values, document=document, lines=reader.lines)


def _refused(
    error: msgspec.ValidationError, values: Mapping[str, Any], lines: Mapping[KeyPath, int], file: str
) -> UsageError:
    """What msgspec has against values that are of the right kinds, such as a number beyond a bound of its type."""
    said = str(error)
    place = _PLACE.search(said)
    path: KeyPath = tuple(
        int(index) if index else name for index, name in _STEP.findall(place["path"] if place else "")
    )
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    found: Any = values
    for part in path:
        found = found[part] if isinstance(found, Mapping) and part in found else None
    return wrong(
        "a key has a value that it can't have",
        code="recipe-value",
        file=file,
        line=line,
        path=path,
        expected=shown(_PLACE.sub("", said).removeprefix("Expected ").replace("`", ""), 200),
        found=None if found is None else shown(str(found)),
    )


def _check_top(root: Entries, file: str) -> None:
    for key, entry in root.entries.items():
        if key not in (*KEYS, VARIABLES, MATRIX):
            raise _unknown_key((), key, (*KEYS, VARIABLES, MATRIX), entry.line, file)


def _fields(part: type[Any]) -> Mapping[str, inspect.Field]:
    """The keys that a part of a recipe can have."""
    return _described()[part]


@functools.cache
def _described() -> Mapping[type[Any], Mapping[str, inspect.Field]]:
    """The keys of every part of a recipe."""
    found: dict[type[Any], Mapping[str, inspect.Field]] = {}
    waiting: list[inspect.Type] = [inspect.type_info(RecipeDocument)]
    while waiting:
        match waiting.pop():
            case inspect.StructType() as part:
                found[part.cls] = {field.encode_name: field for field in part.fields}
                waiting += [field.type for field in part.fields]
            case inspect.UnionType() as union:
                waiting += union.types
            case inspect.VarTupleType() as many:
                waiting.append(many.item_type)
            case inspect.DictType() as mapping:
                waiting.append(mapping.value_type)
    return found


def _kinds(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _parts() -> Iterator[tuple[str, type[Any]]]:
    """The keys of a recipe that hold others, with what they are."""
    for name, field in _fields(RecipeDocument).items():
        for kind in _kinds(field.type):
            item = kind.item_type if isinstance(kind, inspect.VarTupleType) else kind
            if isinstance(item, inspect.StructType):
                yield name, item.cls


class _Reader:
    """Turns the nodes of one variant into plain values, each by what its key can be, and notes their lines."""

    def __init__(self, file: str, known: Mapping[str, str], root: Entries) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._file = file
        self._first = dict(known)
        self._known = dict(known)
        self._barred: dict[str, str] = {}
        for key in _READ_FIRST:
            self._name(key, root.entries.get(key))

    def _name(self, key: str, entry: Entry | None) -> None:
        """What ``${name}``, ``${method}`` or ``${target}`` stands for."""
        name = "name" if key == "source" else key
        if entry is None or not isinstance(entry.node, Scalar) or _is_null(entry.node):
            if key == "method":
                self._known[name] = "auto"
            else:
                self._barred[name] = f"the recipe has no {key}; declare a variable instead"
            return
        text = self._filled(entry.node, (key,)).text
        self._known[name] = name_of(text) if key == "source" else text

    def document(self, root: Entries) -> dict[str, Any]:
        """All of it. Raises :class:`UsageError` at the first thing that can't be."""
        values = self._struct(root, RecipeDocument, ())
        if "source" not in values:
            raise wrong(
                "the recipe has no source",
                code="recipe-key",
                file=self._file,
                line=None,
                path=("source",),
                expected="a checkpoint's folder, a GGUF file, or a repository org/name of the Hub",
                hint="add a line such as 'source: org/name'",
            )
        return values

    def _filled(self, node: Scalar, path: KeyPath) -> Scalar:
        early = path[0] in _READ_FIRST
        known = self._first if early else self._known
        barred = self._barred
        if early:
            hint = f"{path[0]} is read before it: a variable, ${{recipe}} and ${{label}} can stand here"
            barred = {name: hint for name in BUILT_IN if name not in known}
        filled = fill(node, known, file=self._file, path=path, barred=barred)
        if filled is not node:
            check_text(filled.text, file=self._file, line=node.line, path=path)
        return filled

    def _struct(self, node: Entries, part: type[Any], path: KeyPath) -> dict[str, Any]:
        fields = _fields(part)
        values = {}
        for key, entry in node.entries.items():
            if key not in fields:
                raise _unknown_key(path, key, tuple(fields), entry.line, self._file)
            self.lines[*path, key] = entry.line
            values[key] = self._value(entry.node, fields[key].type, (*path, key), entry.line)
        return values

    def _value(self, node: Node, kind: inspect.Type, path: KeyPath, line: int) -> Any:
        kinds = _kinds(kind)
        match node:
            case Scalar():
                return self._scalar(self._filled(node, path), kinds, path, line)
            case Items():
                return self._items(node, kinds, path, line)
        for one in kinds:
            match one:
                case inspect.StructType():
                    return self._struct(node, one.cls, path)
                case inspect.DictType():
                    return self._mapping(node, one.value_type, path)
                case inspect.AnyType():
                    return self._mapping(node, one, path)
        raise self._mismatch(node, kinds, path, line)

    def _items(self, node: Items, kinds: tuple[inspect.Type, ...], path: KeyPath, line: int) -> list[Any]:
        for one in kinds:
            if isinstance(one, inspect.VarTupleType | inspect.AnyType):
                kind = one.item_type if isinstance(one, inspect.VarTupleType) else one
                values = []
                for index, item in enumerate(node.items):
                    self.lines[*path, index] = item.line
                    values.append(self._value(item, kind, (*path, index), item.line))
                return values
        raise self._mismatch(node, kinds, path, line)

    def _mapping(self, node: Entries, kind: inspect.Type, path: KeyPath) -> dict[str, Any]:
        values = {}
        for key, entry in node.entries.items():
            if is_secret(key):
                raise secret_error((*path, key), file=self._file, line=entry.line)
            if "${" in key:
                raise wrong(
                    "a key can't be made of variables",
                    code="recipe-key",
                    file=self._file,
                    line=entry.line,
                    path=(*path, key),
                    hint="write the key out; a value can be a variable",
                )
            self.lines[*path, key] = entry.line
            values[key] = self._value(entry.node, kind, (*path, key), entry.line)
        return values

    def _scalar(self, node: Scalar, kinds: tuple[inspect.Type, ...], path: KeyPath, line: int) -> Any:
        """What a scalar means where one of ``kinds`` can stand."""
        text = node.text
        for kind in kinds if node.plain else ():
            match kind:
                case inspect.NoneType() if text in NULLS:
                    return None
                case inspect.BoolType() if text in TRUTHS or text in SWITCHES:
                    return TRUTHS.get(text, SWITCHES.get(text))
                case inspect.IntType() if whole(text) is not None:
                    return whole(text)
                case inspect.FloatType() if number(text) is not None:
                    return number(text)
        for kind in kinds:
            match kind:
                case inspect.LiteralType() if text in kind.values:
                    return text
                case inspect.StrType() if not _is_null(node):
                    return text
                case inspect.AnyType():
                    self._check_clear(node, path)
                    return free_value(node)
        raise self._mismatch(node, kinds, path, line)

    def _check_clear(self, node: Scalar, path: KeyPath) -> None:
        """Raises where a scalar is one thing by YAML 1.1 and another by 1.2, and nothing says which is meant."""
        if not node.plain:
            return
        if is_endless(node.text):
            message, expected, hint = "a key has a value that it can't have", "a finite number", "give a number"
        elif node.text in SWITCHES:
            message, expected = "a value can be read in two ways", "true or false, or a text in quotes"
            hint = f'write {str(SWITCHES[node.text]).lower()}, or "{node.text}"'
        elif _OLD_NUMBERS.fullmatch(node.text):
            message, expected = "a value can be read in two ways", "a decimal number, or a text in quotes"
            hint = f'write the number out, or "{shown(node.text)}"'
        else:
            return
        raise wrong(
            message,
            code="recipe-value",
            file=self._file,
            line=node.line,
            path=path,
            expected=expected,
            found=shown(node.text),
            hint=hint,
        )

    def _mismatch(self, node: Node, kinds: tuple[inspect.Type, ...], path: KeyPath, line: int) -> UsageError:
        return wrong(
            "a key has a value that it can't have",
            code="recipe-value",
            file=self._file,
            line=line,
            path=path,
            expected=_expected(kinds),
            found=kind_of(node),
            hint=_mending(node, kinds, path),
        )


def _is_null(node: Scalar) -> bool:
    return node.plain and node.text in NULLS


def _expected(kinds: tuple[inspect.Type, ...]) -> str:
    """What can stand somewhere, for people."""
    names: list[str] = []
    for kind in kinds:
        match kind:
            case inspect.LiteralType():
                names += [str(value) for value in kind.values]
            case inspect.StrType():
                names.append("a text")
            case inspect.IntType():
                names.append("a whole number")
            case inspect.FloatType():
                names.append("a number")
            case inspect.BoolType():
                names += ["yes", "no"]
            case inspect.VarTupleType():
                names.append("a list")
            case inspect.StructType():
                keys = [*_fields(kind.cls)]
                names.append(f"keys such as {', '.join(keys[:3])}")
            case inspect.DictType():
                names.append("keys with their values")
    return listed_names(names)


def _mending(node: Node, kinds: tuple[inspect.Type, ...], path: KeyPath) -> str | None:
    """An edit that mends a value that can't stand where it does."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    types = {type(kind) for kind in kinds}
    if isinstance(node, Scalar) and _is_null(node):
        if {inspect.StructType, inspect.BoolType} <= types:
            return f"'{key}: yes' takes its defaults"
        return "give a value, or leave the line away for the default"
    if inspect.VarTupleType in types:
        return f"{key} is a list: put '- ' before each of its parts"
    if isinstance(node, Scalar):
        return _mending_scalar(node, kinds, types)
    return "write one value on the line" if isinstance(node, Items) else f"write '{key}: VALUE'"


def _mending_scalar(node: Scalar, kinds: tuple[inspect.Type, ...], types: set[type[inspect.Type]]) -> str | None:
    for kind in kinds:
        if isinstance(kind, inspect.LiteralType):
            near = nearest(node.text.lower(), [str(value) for value in kind.values], 1)
            return f"did you mean {near[0]}?" if near else None
    if not node.plain:
        return "write it without the quotes" if _would_read(node.text, types) else None
    if is_endless(node.text):
        return "give a finite number"
    if re.fullmatch(r"[-+]?0[0-9]+", node.text) and types & {inspect.IntType, inspect.FloatType}:
        return "write it without the leading zero"
    return None


def _would_read(text: str, types: set[type[inspect.Type]]) -> bool:
    return (
        (inspect.BoolType in types and (text in TRUTHS or text in SWITCHES))
        or (inspect.IntType in types and whole(text) is not None)
        or (inspect.FloatType in types and number(text) is not None)
    )


def _unknown_key(path: KeyPath, key: str, known: tuple[str, ...], line: int, file: str) -> UsageError:
    """What is said of a key that can't stand where it does, with the one that was probably meant."""
    if is_secret(key):
        return secret_error((*path, key), file=file, line=line)
    dashed = key.replace("-", "_")
    near = nearest(key.lower(), known, 1)
    elsewhere = [f"{part}.{key}" for part, cls in _parts() if key in _fields(cls)]
    if key in KEYS and path:
        elsewhere.append(f"{key}, at the top of the file")
    if dashed != key and dashed in known:
        hint = f"spell it {dashed}, with an underscore"
    elif elsewhere:
        hint = f"did you mean {listed_names(elsewhere[:3])}?"
    elif key == "set":
        hint = "parameters of the method are keys of options"
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = "take it out"
    return wrong(
        "the recipe has a key that isn't known",
        code="recipe-key",
        file=file,
        line=line,
        path=(*path, key),
        expected=f"one of {', '.join(known)}",
        hint=hint,
    )


def _check_outputs(recipe: RecipeFile, variant: Variant) -> None:
    """Raises where the outputs of a variant are none, or would be written or published over each other."""
    outputs = variant.document.outputs
    if not outputs:
        raise _output_error("the recipe has no outputs", recipe, variant, (), hint="leave outputs away for the default")
    names: dict[str, int] = {}
    for index, output in enumerate(outputs):
        if output.name is None:
            continue
        name = output.name
        if not name or name != name.strip() or name.startswith((".", "-")) or set("/\\\n\t") & set(name):
            raise _output_error(
                "an output's name can't be that of a file",
                recipe,
                variant,
                (index, "name"),
                expected="a name without slashes, dots or dashes before it",
                found=shown(name) or "an empty text",
                hint="the folder is said by 'out'",
            )
        if name.lower() in _TAKEN:
            raise _output_error(
                "an output has the name of what lies beside it",
                recipe,
                variant,
                (index, "name"),
                found=name,
                hint="give it another name",
            )
        if name.lower() in names:
            raise _output_error(
                "two outputs have the same name",
                recipe,
                variant,
                (index, "name"),
                found=f"{shown(name)}, as outputs[{names[name.lower()]}] has",
                hint="give each a name of its own",
            )
        names[name.lower()] = index


def _check_variants(recipe: RecipeFile) -> None:
    """Raises where two outputs would be published over each other."""
    taken: dict[tuple[str, str | None], KeyPath] = {}
    for variant in recipe.variants:
        push = variant.document.push
        for index, output in enumerate(variant.document.outputs):
            if output.repo_id is None:
                continue
            place = (output.repo_id.lower(), push.revision)
            other = taken.get(place)
            if other is not None and (other[0] == variant.label or not push.create_pr):
                raise _output_error(
                    "two outputs are published to the same repository",
                    recipe,
                    variant,
                    (index, "repo_id"),
                    found=shown(output.repo_id),
                    hint="give each a repository of its own; several types of GGUF files are one output's outtypes"
                    if other[0] == variant.label
                    else "tell the variants apart: repo_id: org/${name}-${label}",
                )
            taken[place] = (variant.label, index)


def _output_error(
    message: str,
    recipe: RecipeFile,
    variant: Variant,
    path: KeyPath,
    *,
    expected: str | None = None,
    found: str | None = None,
    hint: str,
) -> UsageError:
    return wrong(
        message,
        code="recipe-value",
        file=recipe.path,
        line=line_of(variant, "outputs", *path),
        path=("outputs", *path),
        expected=expected,
        found=found,
        hint=hint,
    )
