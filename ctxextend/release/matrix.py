"""What varies in a recipe, what its variants are called, and which machine does which of them.

``matrix:`` has a list for each key that varies: a key of the recipe, or a variable. What an entry sets is put into the
recipe before anything is filled in, so that ``${...}`` in an entry means what it means in the rest of the file.

A variant's label is made of what the matrix chose: ``yarn-64k``, ``ntk-headroom-1.25-64k``. It doesn't depend on the
order, so that a variant keeps its folder when others come and go.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct

from ctxextend.errors import UsageError, nearest
from ctxextend.release.document import KEYS, MATRIX, VARIABLES
from ctxextend.release.located import SWITCHES, Node, meaning, shown
from ctxextend.release.variables import declared, name_of, single, texts

T = TypeVar("T")

#: The most variants that a matrix may have, and characters of a label.
MOST_VARIANTS: Final = 10_000
LONGEST_LABEL: Final = 100

#: What lies beside the folders of the variants.
_TAKEN: Final = frozenset({"results.json", "results.md", "run.json", "evidence"})

_SHARD: Final = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*")


class Shard(Struct, frozen=True, kw_only=True):
    """One of ``count`` parts of a matrix; ``index`` counts from 1."""

    index: int
    count: int


class Combination(Struct, frozen=True, kw_only=True):
    """One combination of the matrix, or all of a recipe without one, with its variables not filled in yet.

    ``label``: empty without a matrix. ``values``: what the matrix chose, as the file says it. ``variables``: all of
    them, with what was chosen and given. ``entries``: the keys of the recipe.
    """

    label: str
    values: Mapping[str, Any]
    variables: Mapping[str, str]
    entries: Mapping[str, Node]


def shard_of(text: str) -> Shard:
    """``2/4``: the second of four parts. Raises :class:`UsageError` for what isn't one of them."""
    match = _SHARD.fullmatch(text)
    index, count = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(
            "the shard can't be read" if match is None else "there is no such shard",
            code="bad-shard",
            key="--shard",
            expected="INDEX/COUNT with an index from 1 to the count, such as 1/4",
            found=shown(text),
            hint="shards count from 1: the first of four is 1/4, the last 4/4 (for Slurm, --array=1-4)",
        )
    return Shard(index=index, count=count)


def select(variants: Sequence[T], shard: Shard) -> tuple[T, ...]:
    """The variants of one shard, dealt out in turn: each is in exactly one, and no shard has two more than another."""
    return tuple(variants[shard.index - 1 :: shard.count])


def combinations(root: Mapping[str, Node], given: Mapping[str, str], file: str) -> tuple[Combination, ...]:
    """Every combination of a recipe's matrix, the last key varying fastest; a single one where it has none.

    ``given``: variables of the command line. Raises :class:`UsageError` for variables and a matrix that can't be.
    """
    variables = declared(root, given, file)
    axes = _axes(root, variables, given)
    plain = {key: node for key, node in root.items() if key not in (VARIABLES, MATRIX)}
    chosen = [{key: node for choice in choices for key, node in choice.items()} for choices in itertools.product(*axes)]
    return tuple(
        Combination(
            label=label,
            values={key: node.simple(_as_said) for key, node in sets.items()},
            variables=texts({name: sets.get(name, default) for name, default in variables.items()}),
            entries={**plain, **{key: node for key, node in sets.items() if key in KEYS}},
        )
        for label, sets in zip(_labels(chosen) if axes else [""], chosen, strict=True)
    )


def _axes(
    root: Mapping[str, Node], variables: Mapping[str, Node], given: Mapping[str, str]
) -> list[list[dict[str, Node]]]:
    """What each key of the matrix can set, in the order of the file."""
    matrix = root.get(MATRIX)
    if matrix is None:
        return []
    if not isinstance(matrix.value, Mapping) or not matrix.value:
        raise matrix.wrong(
            "recipe-matrix",
            "the matrix can't be read",
            expected="keys of the recipe or variables, each with a list",
            found=matrix.told,
            hint="such as 'method: [yarn, ntk]' on an indented line; leave 'matrix:' away where nothing varies",
        )
    axes: list[list[dict[str, Node]]] = []
    owners: dict[str, str] = {}
    count = 1
    for key, said in matrix.value.items():
        _check_axis(key, said, root, variables, given)
        axes.append(_choices(key, said, variables))
        for name in {name: None for choice in axes[-1] for name in choice}:
            other = owners.setdefault(name, key)
            if other != key:
                raise said.wrong(
                    "recipe-matrix",
                    "two keys of the matrix set the same",
                    found=f"{name}, which {MATRIX}.{other} sets too",
                    hint=f"set {name} in one of them; what goes together is one entry: {{{other}: A, {key}: B}}",
                )
        count *= len(axes[-1])
        if count > MOST_VARIANTS:
            raise said.wrong(
                "recipe-matrix",
                "the matrix has too many variants",
                expected=f"at most {MOST_VARIANTS}",
                found=f"{count} or more",
                hint="split the recipe in several",
            )
    return axes


def _check_axis(
    key: str, said: Node, root: Mapping[str, Node], variables: Mapping[str, Node], given: Mapping[str, str]
) -> None:
    """Raises for a key that can't vary."""
    _check_settable(key, said, variables)
    if key in root:
        raise said.wrong(
            "recipe-matrix",
            "a key is set by the matrix and beside it",
            found=f"{key} on lines {root[key].line} and {said.line}",
            hint=f"keep one of them; a single value is a line '{key}: VALUE' without a matrix",
        )
    if key in given:
        raise said.wrong(
            "recipe-variable",
            "a variable that the matrix sets is given too",
            found=f"--var {key}=...",
            hint=f"leave --var {key} away, or take {key} out of the matrix",
        )
    if not isinstance(said.value, tuple) or not said.value:
        raise said.wrong(
            "recipe-matrix",
            "a key of the matrix has no list of values",
            expected="a list of at least one value",
            found=said.told,
            hint=f"write {key}: [A, B]",
        )


def _check_settable(key: str, said: Node, variables: Mapping[str, Node]) -> None:
    """Raises for a key that a matrix can't set."""
    known = (*KEYS, *variables)
    if known.count(key) > 1:
        raise said.wrong(
            "recipe-matrix",
            "the matrix sets what is a key of the recipe and a variable",
            found=f"{key}, both",
            hint="give the variable another name",
        )
    if key not in known:
        near = nearest(key, known, 1)
        raise said.wrong(
            "recipe-matrix",
            "the matrix sets what is neither a key of the recipe nor a variable",
            expected=f"one of {', '.join(known)}",
            found=shown(key),
            hint=(f"did you mean {near[0]}? " if near else "")
            + "a key inside another is set with all of it, such as {options: {headroom: 1.25}}; "
            "a name of your own is declared under 'variables:'",
        )


def _choices(key: str, said: Node, variables: Mapping[str, Node]) -> list[dict[str, Node]]:
    """What each entry of a key's list sets."""
    choices: dict[str, dict[str, Node]] = {}
    for item in said.value:
        assert isinstance(item, Node)
        sets = _sets(key, item, variables)
        other = choices.setdefault(_canonical(sets), sets)
        if other is not sets:
            found = f"the same as {MATRIX}.{key}[{[*choices.values()].index(other)}]"
            raise item.wrong("recipe-matrix", "the matrix has a value twice", found=found, hint="keep one of them")
    return [*choices.values()]


def _sets(key: str, item: Node, variables: Mapping[str, Node]) -> dict[str, Node]:
    """What one entry sets: its key, or several where it is a mapping."""
    if isinstance(item.value, tuple):
        raise item.wrong(
            "recipe-matrix",
            "an entry of the matrix is a list",
            expected="a single value, or a mapping of what is set at once",
            found="a list",
            hint=f"to set a list, write {{{key}: [A, B]}}",
        )
    sets = {key: item} if isinstance(item.value, str) else dict(item.value)
    for name, said in sets.items():
        _check_settable(name, said, variables)
    if key not in sets:
        raise item.wrong(
            "recipe-matrix",
            "an entry of the matrix doesn't set its own key",
            expected=f"{key}, with whatever else goes with it",
            found=", ".join(shown(name) for name in sets) or item.told,
            hint=f"write {{{key}: VALUE, ...}}",
        )
    return {name: single(said) if name in variables else said for name, said in sets.items()}


def _as_said(text: Node) -> Any:
    """A value as the file says it: a number where that loses nothing, so not 1.1 for 1.10."""
    value = meaning(str(text.value)) if text.plain else text.value
    return value if value is None or isinstance(value, bool) or str(value) == text.value else text.value


def _canonical(sets: Mapping[str, Node]) -> str:
    """What is set, as a text that is the same for the same."""
    return json.dumps({key: node.simple(lambda text: text.value) for key, node in sets.items()}, sort_keys=True)


def _labels(chosen: Sequence[Mapping[str, Node]]) -> list[str]:
    """What the matrix chose, each in one word.

    Those that differ by capitals alone, too little for every disk, and those too long get the digest of what was
    chosen, which doesn't depend on the order.
    """
    words = ["-".join(word for key, node in sets.items() for word in _words(key, node)) for sets in chosen]
    labels = [re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("-.") for text in words]
    count = Counter(label.lower() for label in labels)
    for at, label in enumerate(labels):
        if not label or count[label.lower()] > 1 or len(label) > LONGEST_LABEL or label.lower() in _TAKEN:
            digest = hashlib.sha256(_canonical(chosen[at]).encode()).hexdigest()[:12]
            labels[at] = f"{(label or 'variant')[: LONGEST_LABEL - 13].rstrip('-.')}-{digest}"
    return labels


def _words(key: str, node: Node, *, inside: bool = False) -> Iterator[str]:
    """A value's part of the label. Texts speak for themselves; numbers, yes and no need their key."""
    match node.value:
        case str() as text:
            speaks = key == "target" or (meaning(text) == text and text.lower() not in SWITCHES)
            if key == "source":
                yield name_of(text)
            else:
                yield text if speaks and not inside else f"{key}-{text or 'none'}"
        case tuple() as items:
            for item in items:
                yield from _words(key, item)
        case entries:
            for name, said in entries.items():
                yield from _words(name, said, inside=True)
