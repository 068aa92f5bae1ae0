"""What is filled in before a recipe has variants: its variables, what varies, and which machine does which part.

``variables:`` names texts with their defaults; null stands for none, so that the command line must give one. A value
is a text as it stands, not made of other variables. ``matrix:`` has a list for each key that varies: a key of the
recipe, or a variable. What an entry sets is put into the recipe before anything is filled in, so that ``${...}`` in an
entry means what it means in the rest of the file.

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
    number,
    shown,
    whole,
    wrong,
)

T = TypeVar("T")

#: What every recipe can name beside its variables.
BUILT_IN: Final = ("name", "method", "target", "recipe", "label")

#: The most variants that a matrix may have.
MOST_VARIANTS: Final = 10_000

#: The most characters of a label, and of a text once its variables are in it.
LONGEST_LABEL: Final = 100
LONGEST_TEXT: Final = 1 << 16

#: What lies beside the folders of the variants.
_TAKEN: Final = frozenset({"results.json", "results.md", "run.json", "evidence"})

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_USED: Final = re.compile(r"\$\$\{|\$\{\s*([A-Za-z0-9_.-]*)\s*\}|\$\{")
_SHARD: Final = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*")
#: A key that would hold a secret. A tokenizer isn't one.
_SECRET: Final = re.compile(r"(?:^|_)(?:token|api_?key|password|passwd|secret|credentials?)$", re.IGNORECASE)


class Shard(Struct, frozen=True, kw_only=True):
    """One of ``count`` parts of a matrix; ``index`` counts from 1."""

    index: int
    count: int


class Combination(Struct, frozen=True, kw_only=True):
    """One combination of the matrix, or all of a recipe without one, with its variables not filled in yet.

    ``values``: what the matrix chose, as the file says it. ``variables``: all of them, with what was chosen and given.
    """

    label: str
    values: Mapping[str, Any]
    variables: Mapping[str, str]
    entries: Entries


class _Choice(Struct, frozen=True, kw_only=True):
    """One entry of an axis: what it sets, by key."""

    sets: Mapping[str, Entry]


class _Axis(Struct, frozen=True, kw_only=True):
    """What one key of the matrix varies."""

    key: str
    line: int
    choices: tuple[_Choice, ...]


def combinations(root: Entries, given: Mapping[str, str], *, file: str, recipe: str) -> tuple[Combination, ...]:
    """Every combination of a recipe's matrix, the last key varying fastest; one without a label where it has none.

    ``given``: variables of the command line; ``recipe``: the name that ``${recipe}`` has. Raises
    :class:`UsageError` for variables and a matrix that can't be.
    """
    declared = _declared(root, file)
    _check_given(given, declared, file)
    axes = _axes(root, declared, file)
    for axis in axes:
        if axis.key in given and all(axis.key in choice.sets for choice in axis.choices):
            raise wrong(
                "a variable that the matrix sets is given too",
                code="recipe-variable",
                file=file,
                line=axis.line,
                path=(MATRIX, axis.key),
                found=f"--var {axis.key}=...",
                hint=f"leave --var {axis.key} away, or take {axis.key} out of the matrix",
            )
    plain = {key: entry for key, entry in root.entries.items() if key not in (VARIABLES, MATRIX)}
    chosen = [_merged(choices) for choices in itertools.product(*(axis.choices for axis in axes))]
    filled = [_filled_in(declared, given, sets, file) for sets in chosen]
    words = [_label(sets, {**known, "recipe": recipe}) for sets, known in zip(chosen, filled, strict=True)]
    labels = _labels(words, chosen, file, root.entries[MATRIX].line) if axes else [""]
    return tuple(
        Combination(
            label=label,
            values={key: _as_said(entry.node) for key, entry in sets.items()},
            variables=known,
            entries=Entries(
                entries={**plain, **{key: entry for key, entry in sets.items() if key not in declared}}, line=root.line
            ),
        )
        for label, sets, known in zip(labels, chosen, filled, strict=True)
    )


def is_secret(key: str) -> bool:
    """Whether a key is one that would hold a token or a password."""
    return bool(_SECRET.search(key.replace("-", "_")))


def secret_error(key: KeyPath, *, file: str, line: int | None) -> UsageError:
    """What is said of a token in a recipe, without showing it."""
    return wrong(
        "a secret has no place in a recipe, which is kept and published",
        code="recipe-secret",
        file=file,
        line=line,
        path=key,
        hint="take it out of the file; the Hub's token is read from HF_TOKEN (or 'hf auth login' saves it), "
        "a server's key from OPENAI_API_KEY",
    )


def name_of(source: str) -> str:
    """``${name}``: the last part of a source, without ``@revision``, ``:quant``, ``.gguf`` and a split's numbers."""
    text = source.strip()
    if not text.startswith((".", "/", "~")):
        text = text.removeprefix("hf://").partition("@")[0]
    last = text.rstrip("/").rpartition("/")[2].partition(":")[0]
    if last.lower().endswith(".gguf"):
        last = re.sub(r"-[0-9]{5}-of-[0-9]{5}$", "", last[: -len(".gguf")])
    return last


def fill(
    scalar: Scalar,
    known: Mapping[str, str],
    *,
    file: str,
    path: KeyPath,
    barred: Mapping[str, str] = {},
) -> Scalar:
    """A scalar with ``${name}`` replaced; ``$${`` is a literal ``${``. What is put in isn't looked at again.

    ``barred``: names that are known but can't be used here, with why. Raises :class:`UsageError` for an unknown name.
    """
    if "${" not in scalar.text:
        return scalar

    parts: list[str] = []
    end = size = 0
    for match in _USED.finditer(scalar.text):
        parts.append(scalar.text[end : match.start()])
        parts.append("${" if match.group() == "$${" else _looked_up(match, scalar, known, file, path, barred))
        end = match.end()
        size += len(parts[-2]) + len(parts[-1])
        if size > LONGEST_TEXT:
            raise wrong(
                "a text is too long once its variables are in it",
                code="recipe-variable",
                file=file,
                line=scalar.line,
                path=path,
                expected=f"at most {LONGEST_TEXT} characters",
                hint="shorten the variables",
            )
    parts.append(scalar.text[end:])
    return Scalar(text="".join(parts), plain=scalar.plain, line=scalar.line)


def _looked_up(
    match: re.Match[str], scalar: Scalar, known: Mapping[str, str], file: str, path: KeyPath, barred: Mapping[str, str]
) -> str:
    name = match.group(1)
    if name in known:
        return known[name]
    found = match.group()
    if name is None:
        message, expected = "a variable can't be read", "${name}"
        found = scalar.text[match.start() : match.start() + 20]
        hint = "write ${name} with single braces; $${ stands for a ${ that is meant"
    elif name in barred:
        message, expected, hint = f"${{{name}}} can't be used here", None, barred[name]
    else:
        names = sorted(known)
        near = nearest(name, names, 1)
        message, expected = "there is no variable of that name", ", ".join(names)
        hint = f"did you mean ${{{near[0]}}}? " if near else ""
        hint += f"declare it: 'variables:' with a line '{name or 'name'}: VALUE'; $${{ stands for a ${{ that is meant"
    raise wrong(
        message,
        code="recipe-variable",
        file=file,
        line=scalar.line,
        path=path,
        expected=expected,
        found=shown(found),
        hint=hint,
    )


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


def _declared(root: Entries, file: str) -> dict[str, Scalar]:
    """The variables with what the file says of them."""
    entry = root.entries.get(VARIABLES)
    if entry is None:
        return {}
    if not isinstance(entry.node, Entries):
        raise wrong(
            "variables can't be read",
            code="recipe-variable",
            file=file,
            line=entry.line,
            path=(VARIABLES,),
            expected="names with their defaults",
            found=kind_of(entry.node),
            hint="a line 'NAME: DEFAULT' for each, indented; 'NAME: null' for one that must be given with --var",
        )
    declared = {}
    for name, said in entry.node.entries.items():
        _check_variable(name, said, file)
        assert isinstance(said.node, Scalar)
        declared[name] = said.node
    return declared


def _check_variable(name: str, said: Entry, file: str) -> None:
    path = (VARIABLES, name)
    if is_secret(name):
        raise secret_error(path, file=file, line=said.line)
    if name in BUILT_IN:
        raise wrong(
            "a variable has the name of a built-in one",
            code="recipe-variable",
            file=file,
            line=said.line,
            path=path,
            expected=f"a name other than {', '.join(BUILT_IN)}",
            hint=f"call it my_{name}, and write ${{my_{name}}}",
        )
    if not _VARIABLE.fullmatch(name):
        raise wrong(
            "a variable can't have this name",
            code="recipe-variable",
            file=file,
            line=said.line,
            path=path,
            expected="letters, digits and underscores, no digit first, at most 64",
            found=shown(name),
        )
    _check_variable_value(said.node, path, said.line, file)


def _check_variable_value(node: Node, path: KeyPath, line: int, file: str) -> None:
    if not isinstance(node, Scalar):
        raise wrong(
            "a variable isn't a single value",
            code="recipe-variable",
            file=file,
            line=line,
            path=path,
            expected="a text or a number",
            found=kind_of(node),
            hint="a list goes in as one text with commas; a mapping over keys of the recipe belongs in the matrix",
        )
    if re.search(r"(?<!\$)\$\{", node.text):
        raise wrong(
            "a variable can't be made of others",
            code="recipe-variable",
            file=file,
            line=line,
            path=path,
            found=shown(node.text),
            hint="use both where they are needed: ${one}-${other}; $${ stands for a ${ that is meant",
        )


def _check_given(given: Mapping[str, str], declared: Mapping[str, Scalar], file: str) -> None:
    """Raises for variables of the command line that the recipe doesn't have. Values aren't shown."""
    for name, value in given.items():
        if is_secret(name):
            raise secret_error((f"--var {name}",), file=file, line=None)
        if name not in declared:
            near = nearest(name, declared, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise wrong(
                "the recipe has no variable of that name",
                code="recipe-variable",
                file=file,
                line=None,
                path=(f"--var {name}",),
                expected=", ".join(declared) or "no variables: the recipe declares none",
                found=shown(name),
                hint=f"{hint}a recipe declares its variables under 'variables:'; its keys are changed in the file",
            )
        check_text(value, file=file, line=None, path=(f"--var {name}",))


def _filled_in(
    declared: Mapping[str, Scalar], given: Mapping[str, str], chosen: Mapping[str, Entry], file: str
) -> dict[str, str]:
    """Every variable's value: what the matrix chose, else what was given, else the default."""
    values: dict[str, str] = {}
    for name, default in declared.items():
        entry = chosen.get(name)
        if entry is not None:
            assert isinstance(entry.node, Scalar)
            values[name] = _unescaped(entry.node.text)
        elif name in given:
            values[name] = given[name]
        elif default.plain and default.text in NULLS:
            raise wrong(
                "a variable has no value",
                code="recipe-variable",
                file=file,
                line=default.line,
                path=(VARIABLES, name),
                expected="a value from the command line",
                hint=f"--var {name}=VALUE, or a default in the file ('' for an empty one)",
            )
        else:
            values[name] = _unescaped(default.text)
    return values


def _unescaped(text: str) -> str:
    return text.replace("$${", "${")


def _axes(root: Entries, declared: Mapping[str, Scalar], file: str) -> tuple[_Axis, ...]:
    """What varies, in the order of the file."""
    entry = root.entries.get(MATRIX)
    if entry is None:
        return ()
    if not isinstance(entry.node, Entries) or not entry.node.entries:
        raise wrong(
            "the matrix can't be read",
            code="recipe-matrix",
            file=file,
            line=entry.line,
            path=(MATRIX,),
            expected="keys of the recipe or variables, each with a list",
            found=kind_of(entry.node),
            hint="such as 'method: [yarn, ntk]' on an indented line; leave 'matrix:' away where nothing varies",
        )
    axes: list[_Axis] = []
    owners: dict[str, str] = {}
    count = 1
    for key, said in entry.node.entries.items():
        axis = _axis(key, said, root, declared, file)
        for name in dict.fromkeys(name for choice in axis.choices for name in choice.sets):
            if name in owners:
                raise wrong(
                    "two keys of the matrix set the same",
                    code="recipe-matrix",
                    file=file,
                    line=said.line,
                    path=(MATRIX, key),
                    found=f"{name}, which {MATRIX}.{owners[name]} sets too",
                    hint=f"set {name} in one of them; what goes together is one entry: {{{owners[name]}: A, {key}: B}}",
                )
            owners[name] = key
        axes.append(axis)
        count *= len(axis.choices)
        if count > MOST_VARIANTS:
            raise wrong(
                "the matrix has too many variants",
                code="recipe-matrix",
                file=file,
                line=said.line,
                path=(MATRIX, key),
                expected=f"at most {MOST_VARIANTS}",
                found=f"{count} or more",
                hint="split the recipe in several",
            )
    return tuple(axes)


def _axis(key: str, said: Entry, root: Entries, declared: Mapping[str, Scalar], file: str) -> _Axis:
    """One key of the matrix. Raises :class:`UsageError` for one that can't vary."""
    path = (MATRIX, key)
    _check_settable(key, declared, path, said.line, file)
    if key in root.entries:
        raise wrong(
            "a key is set by the matrix and beside it",
            code="recipe-matrix",
            file=file,
            line=said.line,
            path=path,
            found=f"{key} on lines {root.entries[key].line} and {said.line}",
            hint=f"keep one of them; a single value is a line '{key}: VALUE' without a matrix",
        )
    if not isinstance(said.node, Items) or not said.node.items:
        raise wrong(
            "a key of the matrix has no list of values",
            code="recipe-matrix",
            file=file,
            line=said.line,
            path=path,
            expected="a list of at least one value",
            found="an empty list" if isinstance(said.node, Items) else kind_of(said.node),
            hint=f"write {key}: [A, B]",
        )
    choices = []
    seen: dict[str, int] = {}
    for index, item in enumerate(said.node.items):
        choice = _choice(key, item, (*path, index), declared, file)
        same = _canonical(choice.sets)
        if same in seen:
            raise wrong(
                "the matrix has a value twice",
                code="recipe-matrix",
                file=file,
                line=item.line,
                path=(*path, index),
                found=f"the same as {MATRIX}.{key}[{seen[same]}]",
                hint="keep one of them",
            )
        seen[same] = index
        choices.append(choice)
    return _Axis(key=key, line=said.line, choices=tuple(choices))


def _check_settable(key: str, declared: Mapping[str, Scalar], path: KeyPath, line: int, file: str) -> None:
    """Raises for a key that a matrix can't set."""
    if is_secret(key):
        raise secret_error(path, file=file, line=line)
    if key in KEYS and key in declared:
        raise wrong(
            "the matrix sets what is a key of the recipe and a variable",
            code="recipe-matrix",
            file=file,
            line=line,
            path=path,
            found=f"{key}, both",
            hint="give the variable another name",
        )
    if key not in KEYS and key not in declared:
        near = nearest(key, (*KEYS, *declared), 1)
        dashed = key.replace("-", "_")
        hint = f"did you mean {dashed if dashed in KEYS else near[0]}? " if near or dashed in KEYS else ""
        raise wrong(
            "the matrix sets what is neither a key of the recipe nor a variable",
            code="recipe-matrix",
            file=file,
            line=line,
            path=path,
            expected=f"one of {', '.join((*KEYS, *declared))}",
            found=shown(key),
            hint=f"{hint}a key inside another is set with all of it, such as {{options: {{headroom: 1.25}}}}; "
            "a name of your own is declared under 'variables:'",
        )


def _choice(key: str, item: Node, path: KeyPath, declared: Mapping[str, Scalar], file: str) -> _Choice:
    """What one entry sets: its key, or several where it is a mapping."""
    if isinstance(item, Items):
        raise wrong(
            "an entry of the matrix is a list",
            code="recipe-matrix",
            file=file,
            line=item.line,
            path=path,
            expected="a single value, or a mapping of what is set at once",
            found="a list",
            hint=f"to set a list, write {{{key}: [A, B]}}",
        )
    sets = {key: Entry(node=item, line=item.line)} if isinstance(item, Scalar) else dict(item.entries)
    for name, entry in sets.items():
        place = path if isinstance(item, Scalar) else (*path, name)
        _check_settable(name, declared, place, entry.line, file)
        if name in declared:
            _check_variable_value(entry.node, place, entry.line, file)
    if key not in sets:
        raise wrong(
            "an entry of the matrix doesn't set its own key",
            code="recipe-matrix",
            file=file,
            line=item.line,
            path=path,
            expected=f"{key}, with whatever else goes with it",
            found=", ".join(shown(name) for name in sets) or "an empty mapping",
            hint=f"write {{{key}: VALUE, ...}}",
        )
    return _Choice(sets=sets)


def _merged(choices: Sequence[_Choice]) -> dict[str, Entry]:
    return {key: entry for choice in choices for key, entry in choice.sets.items()}


def kind_of(node: Node) -> str:
    """What a node is, for people."""
    match node:
        case Items():
            return "a list"
        case Entries():
            return "a mapping" if node.entries else "an empty mapping"
    if node.plain and node.text in NULLS:
        return "nothing"
    return shown(node.text) if node.plain else f'"{shown(node.text)}", in quotes'


def _as_said(node: Node) -> Any:
    """A value as the file says it: a number where that loses nothing, so not 1.1 for 1.10."""
    match node:
        case Items():
            return [_as_said(item) for item in node.items]
        case Entries():
            return {key: _as_said(entry.node) for key, entry in node.entries.items()}
    value = free_value(node)
    return value if value is None or isinstance(value, bool) or str(value) == node.text else node.text


def _texts(node: Node) -> Any:
    match node:
        case Items():
            return [_texts(item) for item in node.items]
        case Entries():
            return {key: _texts(entry.node) for key, entry in node.entries.items()}
    return node.text


def _canonical(sets: Mapping[str, Entry]) -> str:
    """What is set, as a text that is the same for the same."""
    return json.dumps({key: _texts(entry.node) for key, entry in sets.items()}, sort_keys=True)


def _label(sets: Mapping[str, Entry], known: Mapping[str, str]) -> str:
    """What the matrix chose, in one word. It may be that of another variant, empty, or too long."""
    words = itertools.chain.from_iterable(_words(key, entry.node, known, top=True) for key, entry in sets.items())
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))
    return re.sub(r"-{2,}", "-", text).strip("-.")


def _words(key: str, node: Node, known: Mapping[str, str], *, top: bool) -> Iterator[str]:
    """A value's part of the label. Texts speak for themselves; numbers, yes and no need their key."""
    match node:
        case Items():
            for item in node.items:
                yield from _words(key, item, known, top=True)
            return
        case Entries():
            for name, entry in node.entries.items():
                yield from _words(name, entry.node, known, top=False)
            return
    text = _USED.sub(lambda match: known.get(match.group(1) or "", match.group(1) or ""), node.text)
    if key == "source":
        yield name_of(text)
    elif top and (key == "target" or not _needs_key(text)):
        yield text
    else:
        yield f"{key}-{text or 'none'}"


def _needs_key(text: str) -> bool:
    return text in NULLS or text in TRUTHS or text in SWITCHES or whole(text) is not None or number(text) is not None


def _labels(labels: Sequence[str], chosen: Sequence[Mapping[str, Entry]], file: str, line: int) -> list[str]:
    """Labels that differ, by capitals alone too little for every disk.

    Those that don't, and those too long, get the digest of what was chosen, which doesn't depend on the order.
    """
    counts = Counter(label.lower() for label in labels)
    unique = [
        label
        if label and counts[label.lower()] == 1 and len(label) <= LONGEST_LABEL and label.lower() not in _TAKEN
        else _with_digest(label, sets)
        for label, sets in zip(labels, chosen, strict=True)
    ]
    for label, count in Counter(label.lower() for label in unique).items():
        if count > 1:
            raise wrong(
                "two variants of the matrix would have one label",
                code="recipe-matrix",
                file=file,
                line=line,
                path=(MATRIX,),
                found=label,
                hint="change one of the texts that they are told apart by",
            )
    return unique


def _with_digest(label: str, sets: Mapping[str, Entry]) -> str:
    digest = hashlib.sha256(_canonical(sets).encode()).hexdigest()[:12]
    return f"{(label or 'variant')[: LONGEST_LABEL - 13].rstrip('-.')}-{digest}"
