"""Errors that speak of the command line, in the words of a recipe: its keys, and the line where they stand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from msgspec import Struct

from ctxextend.errors import CtxextendError, UsageError
from ctxextend.inspection import BaseChoice, SlidingWindow
from ctxextend.lab.names import BOUNDS, EngineName
from ctxextend.methods import METHODS
from ctxextend.recipe import ALLOWABLE, PUBLISHING, Carrier
from ctxextend.record import Bake
from ctxextend.release.document import CheckPart, EvalPart, OutputPart, PushPart, RecipeDocument, SmokePart, listed
from ctxextend.release.located import KeyPath, at_line, line_of, located
from ctxextend.release.reading import RecipeFile, Variant
from ctxextend.runtimes import READERS
from ctxextend.tensors.copying import LinkMode

#: The keys of each section, and of the recipe itself.
_FIELDS: Final[Mapping[str | None, tuple[str, ...]]] = {
    None: RecipeDocument.__struct_fields__,
    "outputs": OutputPart.__struct_fields__,
    "check": CheckPart.__struct_fields__,
    "smoke": SmokePart.__struct_fields__,
    "eval": EvalPart.__struct_fields__,
    "push": PushPart.__struct_fields__,
}
#: Options that are spelled otherwise in a recipe.
_KEYS: Final[Mapping[str, str]] = {"--outtype": "outtypes", "--set": "options", "REPO_ID": "repo_id"}
#: The bounds of ``eval`` by their options.
_BOUNDS: Final[Mapping[str, str]] = {bound.option: name for name, bound in BOUNDS.items()}

#: Where the words stand that an error without a key is about.
_PLACES: Final[Mapping[str, str]] = {
    "unknown-method": "method",
    "unknown-runtime": "runtimes",
    "unknown-task": "tasks",
    "unknown-family": "family",
    "no-target": "target",
    "unreadable": "method",
    "unwritable": "method",
    "bad-parameter": "options",
    "no-quantizer": "outtypes",
    "not-enough-memory": "length",
}
#: What mends in a recipe what is mended otherwise on the command line.
_HINTS: Final[Mapping[str, str]] = {
    "repo-id": "such as repo_id: my-org/model-128k",
    "bad-engine": "leave engine away: the output's format decides",
    "output-exists": "move it away, or name another folder with --out",
}

#: A method's parameter; and an option, with the word that follows it.
_PARAMETER: Final = re.compile(r"--set (\w+)=([^\s,;)]+)")
_OPTION: Final = re.compile(r"--([a-z][a-z-]*)(?: (?=(?P<value>[A-Z0-9@'\"./]|[a-z][a-z0-9-]*)))?")
#: A command, whose options are its own.
_COMMAND: Final = re.compile(r"ctxextend \w+ [^']*--")
#: Options that the command line of ``run`` has itself.
_OWN: Final = frozenset({"out", "force", "no-push", "var", "shard", "token", "cache-dir"})
#: Keys that nothing follows but their value, and words that are an option's value and no part of the sentence.
_VALUED: Final = frozenset({"method", "revision"})
_VALUES: Final = frozenset(
    {
        *METHODS,
        *(reader.runtime for reader in READERS),
        *ALLOWABLE,
        *PUBLISHING,
        *("auto", "cpu", "cuda", "safetensors", "gguf", "float32", "bfloat16", "float16", "refs"),
        *(word for kind in (BaseChoice, SlidingWindow, EngineName, Carrier, Bake, LinkMode) for word in get_args(kind)),
    }
)

E = TypeVar("E", bound=CtxextendError)


def told(error: E, file: RecipeFile, variant: Variant, *path: str | int, of: str | None = None) -> E:
    """The error as one of the recipe: where its key stands, or else what ``path`` names.

    What is wrong in a file of the checkpoint ``of`` stays there, and that is named.
    """
    if error.file is not None and error.file.split(", line ")[0] == file.path:
        return error
    section = next((part for part in path if isinstance(part, str)), None)
    named = _naming(error, variant, path)
    if named is not None or _is_ours(error):
        place = named or _place(error, section, path)
        found = located(error, file, variant, *place)
        if line_of(variant, *place) is None:
            # What isn't said is missed where the conversion is said.
            line = line_of(variant, "method") or line_of(variant, "source")
            found.file = at_line(file.path, line)
    else:
        found = located(error, file, None)
        found.file, found.key = error.file, error.key
        if of is not None:
            found.message = f"{of}: {found.message}"
    if named is not None:
        found.found = error.file if error.found is None else f"{error.file}: {error.found}"
    else:
        found.found = found.found and _in_keys(found.found, section)
    found.expected = found.expected and _in_keys(found.expected, section)
    found.message = _in_keys(found.message, section)
    found.args = (found.message,)
    if error.code == "bad-out" and error.hint is not None and error.hint.startswith("--out "):
        found.hint = f"name: {Path(error.hint.removeprefix('--out ')).name}"
    else:
        found.hint = _HINTS.get(error.code, found.hint and _in_keys(found.hint, section))
    return found


def _is_ours(error: CtxextendError) -> bool:
    """Whether an error is about what the recipe says, and not about a file that it names."""
    if error.file is None or isinstance(error, UsageError):
        return True
    return error.code in _PLACES if error.key is None else error.key.startswith("--")


def _naming(error: CtxextendError, variant: Variant, path: KeyPath) -> KeyPath | None:
    """The place where the recipe names the very file that an error is about."""
    if error.file is None or not path:
        return None
    part: Any = variant.document
    for at, key in enumerate(path):
        if isinstance(key, int):
            part = part[key]
        elif isinstance(part, Struct):
            part = getattr(part, key)
        else:
            return None
        if _is_same(part, error.file):
            return path[: at + 1]
    if not isinstance(part, Struct):
        return None
    return next(((*path, name) for name in part.__struct_fields__ if _is_same(getattr(part, name), error.file)), None)


def _is_same(said: object, file: str) -> bool:
    """Whether a value of the recipe is this path, or lists it."""
    texts = (said,) if isinstance(said, str) else said if isinstance(said, tuple) else ()
    parts = [part for text in texts if isinstance(text, str) for part in (text, *listed(text))]
    return any(Path(os.path.expanduser(part)) == Path(file) for part in parts)  # noqa: PTH111 - it raises


def _place(error: CtxextendError, section: str | None, path: KeyPath) -> KeyPath:
    spelled = error.key or _PLACES.get(error.code) or _first_option(error.message)
    if error.code.startswith("unknown-parameter") and error.found is not None:
        return ("options", error.found)
    if error.code == "bad-parameter":
        return ("options",) if error.key is None else ("options", error.key)
    if error.code == "bad-out":
        return (*path, "name")
    if error.code == "unknown-bound" and error.found is not None:
        return (*path, "bounds", error.found)
    if section == "eval" and spelled in _BOUNDS:
        return (*path, "bounds", _BOUNDS[spelled])
    name = _KEYS.get(spelled, spelled.removeprefix("--").replace("-", "_"))
    if path[-1:] == (name,):
        return path
    if name in _FIELDS.get(section, ()):
        return (*path, name)
    if path[-1:] == ("repo_id",) and name in _FIELDS["push"]:
        return ("push", name)
    return (name,) if name in _FIELDS[None] else path


def _first_option(message: str) -> str:
    """The option that a message is about; empty where it speaks of none."""
    found = _OPTION.search(message)
    return "" if found is None else f"--{found[1]}"


def _in_keys(text: str, section: str | None) -> str:
    """``--sliding-window target`` as ``sliding_window: target``."""
    if _COMMAND.search(text):
        return text

    def parameter(found: re.Match[str]) -> str:
        value = "[...]" if found[2].startswith("@") else found[2]
        return f"options: {{{found[1]}: {value}}}"

    def key(found: re.Match[str]) -> str:
        option = f"--{found[1]}"
        if section == "eval" and option in _BOUNDS:
            name = f"bounds.{_BOUNDS[option]}"
        else:
            name = _KEYS.get(option, found[1].replace("-", "_"))
            if found[1] in _OWN or not (option in _KEYS or any(name in names for names in _FIELDS.values())):
                return found[0]
        value = found["value"]
        if value is None:
            return name
        is_value = name in _VALUED or value in _VALUES or not value[0].islower()
        return f"{name}: " if is_value else f"{name} "

    return _OPTION.sub(key, _PARAMETER.sub(parameter, text))
