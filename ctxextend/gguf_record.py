"""The record that a conversion leaves in a GGUF file, by which it is always recognised.

One key, ``ctxextend.record``, holds JSON: what every touched key and rope tensor said before, so that a second
conversion starts from the base. llama.cpp passes over keys that it doesn't know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ctxextend.contents import Gguf, GgufEdits, GgufValue
from ctxextend.errors import CheckpointError

KEY: Final = "ctxextend.record"
SCHEMA: Final = "ctxextend.gguf-record/1"

#: Fills the room that an edit in place leaves in a header: it says nothing.
PADDING: Final = "ctxextend.padding"


class GgufRecord(Struct, frozen=True, kw_only=True):
    """What was done, and what stood there before. Lengths count tokens; ``plan`` is the plan's digest.

    ``keys`` and ``tensors`` hold what is to be put back, None for what wasn't there. ``taken_as``: what a scaling
    among them was taken for.
    """

    schema: str = SCHEMA
    version: str
    method: str
    trained_context: int
    target_context: int
    plan: str
    keys: Mapping[str, GgufValue | None]
    tensors: Mapping[str, tuple[float, ...] | None]
    taken_as: Literal["trained", "unscaled"] | UnsetType = UNSET


def find_gguf_record(gguf: Gguf) -> GgufRecord | None:
    """The record in a file, if it has one. Raises :class:`CheckpointError` for one that was tampered with."""
    entry = gguf.values.get(KEY)
    if entry is None:
        return None
    found = "no text"
    if entry.type == "STRING" and entry.value is not None:
        try:
            record = msgspec.json.decode(entry.value, type=GgufRecord)
        except msgspec.DecodeError as error:
            found = str(error)
        else:
            if record.schema == SCHEMA:
                return record
            found = record.schema
    raise CheckpointError(
        "the record of an earlier conversion can't be read",
        code="broken-record",
        file=gguf.file,
        key=KEY,
        expected=SCHEMA,
        found=found[:200],
        hint="start from the original file, or use the ctxextend version that wrote it",
    )


def without_record(gguf: Gguf, record: GgufRecord | None) -> Gguf:
    """The header's values as they were before a conversion of ours; positions are those of the file as it is."""
    values = {key: value for key, value in gguf.values.items() if key not in (KEY, PADDING)}
    factors = dict(gguf.factors)
    for key, was in (record.keys if record is not None else {}).items():
        values.pop(key, None)
        if was is not None:
            values[key] = was
    for name, numbers in (record.tensors if record is not None else {}).items():
        factors.pop(name, None)
        if numbers is not None:
            factors[name] = numbers
    return msgspec.structs.replace(gguf, values=values, factors=factors)


def recorded(
    base: Gguf,
    wanted: GgufEdits,
    *,
    version: str,
    method: str,
    trained: int,
    target: int,
    digest: str,
    taken_as: Literal["trained", "unscaled"] | UnsetType = UNSET,
) -> GgufEdits:
    """``wanted`` over ``base``, with the record that takes it back."""
    keys = {key: base.values.get(key) for key in (*wanted.keys, *wanted.removed) if _changes(base, wanted, key)}
    tensors = {name: base.factors.get(name) for name in (*wanted.tensors, *wanted.removed_tensors)}
    record = GgufRecord(
        version=version,
        method=method,
        trained_context=trained,
        target_context=target,
        plan=digest,
        keys=dict(sorted(keys.items())),
        tensors=dict(sorted(tensors.items())),
        taken_as=taken_as,
    )
    text = GgufValue(type="STRING", value=msgspec.json.encode(record).decode())
    return msgspec.structs.replace(wanted, keys={**wanted.keys, KEY: text})


def _changes(base: Gguf, wanted: GgufEdits, key: str) -> bool:
    return base.values.get(key) != wanted.keys.get(key)


def net_edits(current: Gguf, base: Gguf, wanted: GgufEdits) -> GgufEdits:
    """What takes the file as it is to ``wanted`` over ``base``: only what really changes."""
    values = {key: value for key, value in base.values.items() if key not in wanted.removed} | dict(wanted.keys)
    factors = {name: n for name, n in base.factors.items() if name not in wanted.removed_tensors}
    factors |= dict(wanted.tensors)
    return GgufEdits(
        keys={key: value for key, value in values.items() if current.values.get(key) != value},
        removed=tuple(key for key in current.values if key not in values and key != PADDING),
        tensors={
            name: numbers
            for name, numbers in factors.items()
            if numbers is not None and current.factors.get(name) != numbers
        },
        removed_tensors=tuple(name for name in current.factors if name not in factors),
    )
