"""The methods: strategies that choose a scaling. An open set.

Built-in ones stand in :data:`METHODS`; other distributions add theirs through the entry-point group
``ctxextend.methods``, each entry an object that satisfies :class:`Method`. A plug-in answers with a
built-in scaling, so a plan stays readable without it. ``auto`` is not a method but a choice among
them: see :mod:`ctxextend.methods.auto`. Those for models without a rope choose no scaling: they stand in
:data:`POSITION_METHODS`.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import msgspec

from ctxextend.errors import UnknownNameError, UsageError
from ctxextend.methods.base import Base, Method, Options, extension_factor
from ctxextend.methods.dynamic import DynamicMethod
from ctxextend.methods.linear import LinearMethod
from ctxextend.methods.llama3 import Llama3Method
from ctxextend.methods.longrope import LongRopeMethod
from ctxextend.methods.ntk import NtkMethod
from ctxextend.methods.positions import POSITION_METHODS, other_positions
from ctxextend.methods.rebase import RebaseMethod
from ctxextend.methods.yarn import NtkByPartsMethod, YarnMethod

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "METHODS",
    "POSITION_METHODS",
    "Base",
    "Method",
    "Options",
    "decode_options",
    "extension_factor",
    "find_method",
    "third_party_methods",
]

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            LinearMethod(),
            NtkMethod(),
            DynamicMethod(),
            NtkByPartsMethod(),
            YarnMethod(),
            Llama3Method(),
            LongRopeMethod(),
            RebaseMethod(),
        )
    }
)

#: The entry-point group of methods from other distributions.
GROUP = "ctxextend.methods"


def third_party_methods() -> dict[str, EntryPoint]:
    """The entry points of other distributions, by method name, not loaded.

    Raises :class:`UsageError` when one takes the name of a built-in method.
    """
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in (*METHODS, *POSITION_METHODS, "auto"):
            raise UsageError(
                f"the method {entry.name} of {_distribution(entry)} has the name of a built-in one",
                code="method-clash",
                hint=f"uninstall {_distribution(entry)}, or ask its authors for another name",
            )
        found[entry.name] = entry
    return found


def find_method(name: str) -> Method:
    """The method of that name that scales a rope.

    Raises :class:`UnknownNameError`, :class:`RefusedError` for one of models without a rope, and :class:`UsageError`
    if a plug-in is broken.
    """
    if name in METHODS:
        return METHODS[name]
    if name in POSITION_METHODS:
        raise other_positions(name, "rope")
    others = third_party_methods()
    if name not in others:
        raise UnknownNameError("method", name, [*METHODS, *POSITION_METHODS, *others, "auto"])
    entry = others[name]
    try:
        method = entry.load()
    except Exception as error:
        raise UsageError(
            f"the method {name} of {_distribution(entry)} can't be loaded: {error}",
            code="broken-plugin",
            hint=f"reinstall {_distribution(entry)}",
        ) from error
    if not all(hasattr(method, part) for part in ("name", "summary", "source", "options", "solve")):
        raise UsageError(
            f"the method {name} of {_distribution(entry)} doesn't have the parts of a method",
            code="broken-plugin",
            hint="see docs/concepts.md, 'A method of your own'",
        )
    return typing.cast(Method, method)


class Named(Protocol):
    """What has parameters, and a name by which a message calls it."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> type[Options]: ...


def decode_options(method: Named, values: Mapping[str, object]) -> Options:
    """The method's parameters from plain values. Raises :class:`UsageError` naming the parameter."""
    known = [field.name for field in msgspec.structs.fields(method.options)]
    for key in values:
        if key not in known:
            raise UnknownNameError(f"parameter of {method.name}", key, known)
    try:
        return msgspec.convert(dict(values), method.options)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `float`, got `str` - at `$.beta_fast`", and other things in the same form.
        wrong = re.match(r"(?:Expected (?P<expected>.+), got )?(?P<found>.+) - at `\$\.(?P<key>\w+)", str(error))
        said = wrong.groupdict() if wrong else {"expected": None, "found": str(error), "key": None}
        raise UsageError(
            f"a parameter of {method.name} can't be read",
            code="bad-parameter",
            key=said["key"],
            expected=said["expected"],
            found=said["found"],
            hint=f"its parameters: {', '.join(known) if known else 'none'} (--set name=value)",
        ) from error


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
