"""The record that a conversion leaves in a GGUF file, by which it is always recognised.

One key, ``ctxextend.record``, holds JSON: what every touched key and rope tensor said before, so that a second
conversion starts from the base. llama.cpp passes over keys that it doesn't know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ctxextend.contents import Gguf, GgufEdits, GgufType, GgufValue
from ctxextend.errors import CheckpointError
from ctxextend.formats.gguf_keys import FREQS, LONG, SHORT
from ctxextend.record import InWeights, baked_source

KEY: Final = "ctxextend.record"
SCHEMA: Final = "ctxextend.gguf-record/1"

#: Fills the room that an edit in place leaves in a header: it says nothing.
PADDING: Final = "ctxextend.padding"

#: A length in tokens: what llama.cpp reads of a file has 32 bits.
_Length = Annotated[int, Meta(ge=1, le=(1 << 32) - 1)]

#: The least and the greatest whole number of each type.
_WHOLE: Final[Mapping[GgufType, tuple[int, int]]] = {
    "UINT8": (0, (1 << 8) - 1),
    "INT8": (-(1 << 7), (1 << 7) - 1),
    "UINT16": (0, (1 << 16) - 1),
    "INT16": (-(1 << 15), (1 << 15) - 1),
    "UINT32": (0, (1 << 32) - 1),
    "INT32": (-(1 << 31), (1 << 31) - 1),
    "UINT64": (0, (1 << 64) - 1),
    "INT64": (-(1 << 63), (1 << 63) - 1),
}
#: The greatest number of single precision.
_MOST_SINGLE: Final = (2.0 - 2.0**-23) * 2.0**127

#: The tensors that a conversion changes, and the most numbers that one of them has.
_TENSORS: Final = frozenset({FREQS, LONG, SHORT})
_MOST_NUMBERS: Final = 65_536


class GgufRecord(Struct, frozen=True, kw_only=True):
    """What was done, and what stood there before. Lengths count tokens; ``plan`` is the plan's digest.

    ``keys`` and ``tensors`` hold what is to be put back, None for what wasn't there. ``taken_as``: what a scaling
    among them was taken for. ``baked``: what is in the weights, which no edit takes out again.
    """

    schema: str = SCHEMA
    version: str
    method: str
    trained_context: _Length
    target_context: _Length
    plan: str
    keys: Mapping[str, GgufValue | None]
    tensors: Mapping[str, tuple[float, ...] | None]
    taken_as: Literal["trained", "unscaled"] | UnsetType = UNSET
    baked: InWeights | UnsetType = UNSET


def require_unbaked(record: GgufRecord | None, file: str) -> None:
    """Refuse to extend weights that an extension has gone into. Raises :class:`RefusedError`."""
    if record is not None and record.baked is not UNSET:
        raise baked_source(f"{KEY}.baked", file, record.baked, record.method, record.target_context)


def find_gguf_record(gguf: Gguf) -> GgufRecord | None:
    """The record in a file, if it has one. Raises :class:`CheckpointError` for one that was tampered with."""
    entry = gguf.values.get(KEY)
    if entry is None:
        return None
    found = "no text"
    if entry.type == "STRING" and entry.value is not None:
        try:
            record = msgspec.json.decode(entry.value, type=GgufRecord)
        except (msgspec.DecodeError, RecursionError) as error:
            found = str(error)
        else:
            odd = _odd_entry(record, gguf.architecture)
            if record.schema == SCHEMA and odd is None:
                return msgspec.structs.replace(record, keys={key: _tupled(was) for key, was in record.keys.items()})
            found = f"another value for {odd}" if record.schema == SCHEMA else record.schema
    raise CheckpointError(
        "the record of an earlier conversion can't be read",
        code="broken-record",
        file=gguf.file,
        key=KEY,
        expected=SCHEMA,
        found=found[:200],
        hint="start from the original file, or use the ctxextend version that wrote it",
    )


def _odd_entry(record: GgufRecord, architecture: str | None) -> str | None:
    """The key or tensor of a record that no conversion has changed, or that a file can't hold what is said of it."""
    keys = (
        key
        for key, was in record.keys.items()
        if not key.startswith(f"{architecture}.") or not (was is None or _holds(was))
    )
    tensors = (
        name
        for name, numbers in record.tensors.items()
        if name not in _TENSORS or not (numbers is None or _are_factors(numbers))
    )
    return next(chain(keys, tensors), None)


def _holds(was: GgufValue) -> bool:
    """Whether a value is one of the type that it names, and finite."""
    if was.type != "ARRAY":
        return was.item is None and was.length is None and _is_of(was.type, was.value)
    if was.item in (None, "ARRAY") or not isinstance(was.value, list | tuple) or was.length != len(was.value):
        return False
    return all(_is_of(was.item, content) for content in was.value)


def _is_of(kind: GgufType, content: Any) -> bool:
    match kind:
        case "STRING":
            return isinstance(content, str)
        case "BOOL":
            return isinstance(content, bool)
        case "FLOAT32":
            return isinstance(content, float) and abs(content) <= _MOST_SINGLE
        case "FLOAT64":
            return isinstance(content, float) and math.isfinite(content)
        case "ARRAY":
            return False
    least, most = _WHOLE[kind]
    return type(content) is int and least <= content <= most


def _are_factors(numbers: tuple[float, ...]) -> bool:
    return 0 < len(numbers) <= _MOST_NUMBERS and all(_is_of("FLOAT32", number) for number in numbers)


def _tupled(was: GgufValue | None) -> GgufValue | None:
    """A value as it is read from a file: JSON has lists for tuples."""
    if was is None or not isinstance(was.value, list):
        return was
    return msgspec.structs.replace(was, value=tuple(was.value))


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
    baked: InWeights | UnsetType = UNSET,
) -> GgufEdits:
    """``wanted`` over ``base``, with the record that takes it back.

    Raises :class:`CheckpointError` for a value that no record can bring back, such as one that isn't finite.
    """
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
        baked=baked,
    )
    odd = _odd_entry(record, base.architecture)
    if odd is not None:
        raise CheckpointError(
            "a value of the GGUF file can't be kept for a way back",
            code="broken-config",
            file=base.file,
            key=odd,
            expected="finite numbers or short texts",
            found=str(keys.get(odd, "other numbers"))[:200],
            hint="compare the file's keys with those of the publisher's",
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
