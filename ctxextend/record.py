"""The record that a conversion leaves in config.json, by which it is always recognised.

A top-level ``"ctxextend"`` object holds what every touched document said before, so that a second
conversion starts from the base however often config.json was saved by other tools in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.formats.json_edit import Edit, value_at

#: What is put into the tensors: the frequencies, the temperature, both, or nothing.
Bake = Literal["none", "buffers", "temperature", "all"]

#: What no edit of a document or key takes out of the weights again.
InWeights = Literal["temperature", "positions"]

KEY: Final = "ctxextend"
SCHEMA: Final = "ctxextend.record/1"


class Before(Struct, frozen=True, kw_only=True):
    """What one document said before: values to put back (by JSON pointer), and keys that weren't there."""

    values: dict[str, Any] = {}
    absent: tuple[str, ...] = ()


class Record(Struct, frozen=True, kw_only=True):
    """The block itself. ``base`` maps file names to what they said; ``plan`` is the plan's digest.

    ``taken_as``: what the user said of the scaling that stood there, where nothing else tells. ``baked``: what is in
    the weights, which no edit takes out again; ``buffers``: the rope buffers among the tensors are ours.
    """

    schema: str = SCHEMA
    version: str
    method: str
    trained_context: int
    target_context: int
    plan: str
    base: dict[str, Before]
    taken_as: Literal["trained", "unscaled"] | UnsetType = UNSET
    baked: InWeights | UnsetType = UNSET
    buffers: bool | UnsetType = UNSET


def baked_source(key: str, file: str, baked: InWeights, method: str, target: int) -> RefusedError:
    """Weights that an extension has gone into, where they would be extended once more."""
    what = "the temperature" if baked == "temperature" else "the positions"
    return RefusedError(
        f"an earlier conversion put {what} of its extension into these weights, and no edit takes that out again",
        code="baked-source",
        file=file,
        key=key,
        expected="weights as they were trained",
        found=f"{method} to {target} tokens",
        hint="start from the checkpoint that this one was made of",
    )


def require_unbaked(record: Record | None) -> None:
    """Refuse to extend weights that an extension has gone into. Raises :class:`RefusedError`."""
    if record is not None and record.baked is not UNSET:
        raise baked_source(f"{KEY}.baked", "config.json", record.baked, record.method, record.target_context)


def find_record(config: Mapping[str, Any]) -> Record | None:
    """The record in a config.json, if it has one. Raises :class:`CheckpointError` for one that was tampered with."""
    block = config.get(KEY)
    if block is None:
        return None
    try:
        record = msgspec.convert(block, Record)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            "the record of an earlier conversion can't be read",
            code="broken-record",
            file="config.json",
            key=KEY,
            expected=SCHEMA,
            found=str(error),
            hint="start from the original checkpoint; or, if these settings are meant, "
            f"remove the key {KEY!r} and say what they are with --base trained|unscaled",
        ) from error
    if record.schema != SCHEMA:
        raise CheckpointError(
            "the record of an earlier conversion is of another version",
            code="broken-record",
            file="config.json",
            key=f"{KEY}.schema",
            expected=SCHEMA,
            found=record.schema,
            hint="use the ctxextend version that wrote it, or start from the original checkpoint",
        )
    return record


def before(document: Mapping[str, Any], edits: Iterable[Edit]) -> Before:
    """What ``document`` says wherever ``edits`` would change it."""
    values: dict[str, Any] = {}
    absent = []
    for edit in edits:
        path = _existing(document, edit.path)
        value = value_at(dict(document), path)
        if value is UNSET:
            absent.append(pointer(path))
        else:
            values[pointer(path)] = value
    return Before(values=values, absent=tuple(dict.fromkeys(absent)))


def undo(record: Record, file: str) -> tuple[Edit, ...]:
    """The edits that take one document back to what it said before."""
    said = record.base.get(file, Before())
    restored = [Edit(path=path_of(where), value=value) for where, value in said.values.items()]
    return (*restored, *(Edit(path=path_of(where)) for where in said.absent))


def pointer(path: tuple[str, ...]) -> str:
    """A path as a JSON pointer (RFC 6901)."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)


def path_of(where: str) -> tuple[str, ...]:
    """A JSON pointer as a path."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in where.split("/")[1:])


def _existing(document: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """The path, cut where the document ends: a new object is taken back whole."""
    for depth in range(1, len(path)):
        if value_at(dict(document), path[:depth]) is UNSET:
            return path[:depth]
    return path
