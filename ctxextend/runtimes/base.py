"""What a runtime is here: a reader that computes, from the values on disk, the table it will use.

Readers are pure. Each rule cites where it was read or how it was run; ``docs/reference/runtimes.md``
says which is which. A runtime has one entry a range of versions that read alike.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, ParamSpec, Protocol

import msgspec
from msgspec import Struct

from ctxextend.errors import CtxextendError
from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, RopeGroup
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeTable
from ctxextend.scaling import LongRope, Scaling, Yarn, longrope_attention_factor, mscale

ORIGINAL: Final = "original_max_position_embeddings"

P = ParamSpec("P")

#: How a reader's rules are known: the runtime was run, or its source was read.
Evidence = Literal["run", "read"]


class Reading(Struct, frozen=True, kw_only=True):
    """What a runtime makes of a config.json. Lengths count tokens.

    ``tables``: one a group of layers with rope, at the length asked for; empty when it can't load the
    model, and then ``problem`` says why. ``absent``: it has no such architecture at all. ``unknown``:
    why nothing is claimed of what it does (code of this family that was not read, code of the
    checkpoint's own). ``liftable``: ``max_context`` is a default that a flag of its server raises, or
    stated only: it is never enforced, and no frequency comes from it.
    ``caution``: what a user must know although the table is right; ``flags``: what its server is given for it;
    ``loader``: the class of transformers that loads it.
    """

    tables: Mapping[str, RopeTable] = {}
    max_context: int | None = None
    how: tuple[str, ...] = ()
    problem: str | None = None
    absent: bool = False
    unknown: str | None = None
    liftable: bool = False
    caution: str | None = None
    flags: tuple[str, ...] = ()
    loader: str = "AutoModelForCausalLM"


class Runtime(Protocol):
    """One runtime over one range of versions, of either format. ``current``: a bare runtime name means it."""

    @property
    def runtime(self) -> str: ...
    @property
    def versions(self) -> str: ...
    @property
    def current(self) -> bool: ...
    @property
    def evidence(self) -> Evidence: ...

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """The command (or snippet) that serves ``source`` at ``length`` tokens, given what the reader reads of it."""
        ...


class Reader(Runtime, Protocol):
    """A runtime that reads config.json."""

    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading: ...


def tables_of(rope: HfRope, read: Callable[[RopeGroup], RopeTable | str]) -> dict[str, RopeTable] | str:
    """The table of every group of layers with a rope, by ``read``; the first of its complaints instead."""
    tables = {}
    for group in rope.groups:
        if group.spec is None:
            continue
        found = read(group)
        if isinstance(found, str):
            return found
        tables[group.label] = found
    return tables


def serve_command(*words: str, environment: str = "") -> str:
    """A shell line of ``words``, quoted where a shell needs it."""
    line = shlex.join(word for word in words if word)
    return f"{environment} {line}" if environment else line


def load_snippet(source: str, reading: Reading) -> str:
    """What loads a checkpoint in transformers: nothing is told of the length, which has no limit there."""
    return f"{reading.loader}.from_pretrained({source!r}, dtype='auto')"


def answered(effective: Callable[P, Reading]) -> Callable[P, Reading]:
    """A reader's answer to any config: what can't be read is a problem, never an exception.

    The last resort for foreign values that no rule foresaw: the numbers that a rule reads go through
    :func:`number`.
    """

    @functools.wraps(effective)
    def answer(*args: P.args, **kwargs: P.kwargs) -> Reading:
        try:
            return effective(*args, **kwargs)
        except CtxextendError as error:
            return Reading(problem=error.message)
        except (ArithmeticError, TypeError, ValueError) as error:
            return Reading(problem=f"the rope settings can't be read: {error}")

    return answer


def number(settings: Mapping[str, Any], key: str) -> float | None:
    """An optional number. Raises ``ValueError`` for anything else, which :func:`answered` reports."""
    value = settings.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, found {value!r}")
    return float(value)


def without_factor(settings: Mapping[str, Any]) -> str | None:
    """Why a reader that takes yarn's factor as it stands fails, where there is none."""
    if type_of(settings) == "yarn" and settings.get("factor") is None:
        return "it fails on yarn without a factor"
    return None


def null_original(settings: Mapping[str, Any], *types: str) -> str | None:
    """Why a reader fails on a stated original length that is null: no default steps in for it."""
    if type_of(settings) in types and ORIGINAL in settings and settings[ORIGINAL] is None:
        return f"it fails on an {ORIGINAL} of null"
    return None


def nested_in_flat(text: Mapping[str, Any], keys: tuple[str, ...]) -> bool:
    """Whether the first of the dictionaries ``keys`` that isn't empty holds one dictionary a layer type.

    Dictionaries under other names are strangers, which transformers keeps and doesn't look into
    (5.23, ``nested_rope_parameter_keys``).
    """
    settings = next((text[key] for key in keys if text.get(key)), None)
    stated = text.get("layer_types")
    labels = set(map(str, stated)) if isinstance(stated, list) else set()
    return isinstance(settings, dict) and any(
        isinstance(value, dict) and (key in labels or key.endswith("_attention")) for key, value in settings.items()
    )


def stated_length(text: Mapping[str, Any], keys: tuple[str, ...], default: int | None) -> int | None:
    """The first of ``keys`` that holds a whole number."""
    return next((text[key] for key in keys if type(text.get(key)) is int), default)


def with_temperature(scaling: Scaling, attention_factor: float) -> Scaling:
    """A yarn or longrope whose temperature is the one that a reader computes its own way."""
    assert isinstance(scaling, Yarn | LongRope)
    return msgspec.structs.replace(scaling, attention_factor=attention_factor)


def yarn_pair_temperature(scaling: Yarn, *, both_needed: bool) -> float:
    """YaRN's temperature from ``mscale`` and ``mscale_all_dim``, for readers without ``attention_factor``.

    ``both_needed``: the pair counts only when both keys are there (SGLang); else each has its own
    default, 1 and 0 (MLX-LM, and DeepSeek's own code).
    """
    weight, weight_all = scaling.mscale, scaling.mscale_all_dim
    if both_needed and (weight is None or weight_all is None):
        return mscale(scaling.factor)
    weight = 1.0 if weight is None else weight
    weight_all = 0.0 if weight_all is None else weight_all
    return mscale(scaling.factor, weight) / mscale(scaling.factor, weight_all)


def ratio_temperature(length: int, original: int) -> float:
    """LongRoPE's temperature from the stated and the original length, whatever ``attention_factor`` says."""
    return longrope_attention_factor(length / original, original)
