"""The record that a conversion leaves in config.json, by which it is always recognised.

A top-level ``"ctxextend"`` object holds what every touched document said before, so that a second
conversion starts from the base however often config.json was saved by other tools in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ctxextend.errors import CheckpointError
from ctxextend.formats.json_edit import Edit, value_at

KEY: Final = "ctxextend"
SCHEMA: Final = "ctxextend.record/1"


class Before(Struct, frozen=True, kw_only=True):
    """What one document said before: values to put back (by JSON pointer), and keys that weren't there."""

    values: dict[str, Any] = {}
    absent: tuple[str, ...] = ()


class Record(Struct, frozen=True, kw_only=True):
    """The block itself. ``base`` maps file names to what they said; ``plan`` is the plan's digest.

    ``taken_as``: what the user said of the scaling that stood there, where nothing else tells.
    """

    schema: str = SCHEMA
    version: str
    method: str
    trained_context: int
    target_context: int
    plan: str
    base: dict[str, Before]
    taken_as: Literal["trained", "unscaled"] | UnsetType = UNSET


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
