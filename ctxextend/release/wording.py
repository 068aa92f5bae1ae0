"""Errors that speak of the command line, in the words of a recipe: its keys, and the line where they stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from ctxextend.errors import CtxextendError
from ctxextend.release.document import CheckPart, EvalPart, OutputPart, PushPart, RecipeDocument, SmokePart
from ctxextend.release.located import located
from ctxextend.release.reading import RecipeFile, Variant

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
_KEYS: Final[Mapping[str, str]] = {
    "--outtype": "outtypes",
    "--set": "options",
    "--out": "name",
    "REPO_ID": "repo_id",
    "--max-short-regression": "bounds",
    "--max-kl": "bounds",
    "--min-same-top": "bounds",
    "--min-needles": "bounds",
}
#: Where a name stands that isn't known.
_UNKNOWN: Final[Mapping[str, str]] = {
    "unknown-method": "method",
    "unknown-runtime": "runtimes",
    "unknown-task": "tasks",
}

#: An option, with the value that follows it.
_OPTION: Final = re.compile(r"--([a-z][a-z-]*)(?: (?=[A-Z0-9@'\"./]))?")
#: Options that the command line of ``run`` has itself.
_OWN: Final = frozenset({"out", "force", "no-push", "var", "shard", "token", "cache-dir"})

E = TypeVar("E", bound=CtxextendError)


def told(error: E, file: RecipeFile, variant: Variant, *path: str | int) -> E:
    """The error as one of the recipe: where its key stands, or else what ``path`` names."""
    found = located(error, file, variant, *_place(error, path))
    found.message = _in_keys(found.message)
    found.args = (found.message,)
    if found.hint is not None:
        found.hint = _in_keys(found.hint)
    return found


def _place(error: CtxextendError, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    spelled = error.key or _UNKNOWN.get(error.code, "")
    name = _KEYS.get(spelled, spelled.removeprefix("--").replace("-", "_"))
    if path[-1:] == (name,):
        return path
    section = next((part for part in path if isinstance(part, str)), None)
    if name in _FIELDS.get(section, ()):
        return (*path, name)
    if section == "eval" and name in ("max_perplexity_ratio", "min_passkey"):
        return (*path, "bounds")
    return (name,) if name in _FIELDS[None] else path


def _in_keys(text: str) -> str:
    """``--sliding-window target`` as ``sliding_window: target``."""

    def key(found: re.Match[str]) -> str:
        option = f"--{found[1]}"
        if found[1] in _OWN and option not in _KEYS:
            return found[0]
        name = _KEYS.get(option, found[1].replace("-", "_"))
        return f"{name}: " if found[0].endswith(" ") else name

    return _OPTION.sub(key, text)
