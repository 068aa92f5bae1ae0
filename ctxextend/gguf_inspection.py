"""What a GGUF file means: ropes, lengths, what was done to it, what it costs. Pure.

A file doesn't say which family it was made of; what is known of the families that share its architecture
(which scalings are published, which lengths are overstated) counts where they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET

from ctxextend.contents import Contents, Gguf, Note
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.families import FAMILIES, Family, Origin, Position, find_family
from ctxextend.families.positions import Alibi
from ctxextend.formats.gguf_architectures import OF_FAMILY
from ctxextend.formats.gguf_keys import (
    CONTEXT,
    FINETUNED,
    MAX_ALIBI_BIAS,
    POSITION_TABLE,
    GgufGroup,
    GgufRope,
    Keys,
    find_architecture,
    read_rope,
)
from ctxextend.gguf_record import GgufRecord, find_gguf_record, without_record
from ctxextend.inspection import BaseChoice, Inspection, dtypes_of, groups_of, said_origin
from ctxextend.kv_cache import KvCache, kv_cache
from ctxextend.scaling import Linear, Llama3, LongRope, Scaling, Yarn, table

#: The original length that Llama 3.1 to 3.3 publish, where the file doesn't say one.
_LLAMA3_ORIGINAL: Final = 8192
#: Single precision keeps seven digits.
_SAME: Final = 1e-5

#: What config.json calls the sizes that a KV cache is computed from.
_SIZES: Final = {
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
}


def inspect_gguf(
    contents: Contents,
    *,
    family: str | None = None,
    base: BaseChoice = "auto",
    original_context: int | None = None,
) -> Inspection:
    """What the file of ``contents`` means. ``original_context`` and ``base`` override what would be found.

    Raises :class:`RefusedError` for an architecture that isn't known, :class:`CheckpointError` for values
    that can't be.
    """
    gguf = gguf_of(contents)
    record = find_gguf_record(gguf)
    if record is not None and base == "trained":
        raise _ours_as_base(gguf, record)
    told = UNSET if record is None else record.taken_as
    asked_anew = base not in ("auto", told)
    if base == "auto" and told is not UNSET:
        base = told
    current, rope = read_rope(gguf), read_rope(without_record(gguf, record))
    relatives = _relatives(rope.architecture.name, family)
    row = _family(rope, relatives, family)
    keys = Keys(gguf.values, rope.architecture.name)
    before = tuple(recognised(group, rope.original_context_length) for group in rope.groups)
    origins = {group.label: _origin(group, keys, rope, relatives, base) for group in before}
    # Taken for something else than at the earlier conversion, a scaling tells of another length too.
    known_length = None if asked_anew and any(group.scaling is not None for group in before) else record
    position = _position(rope, contents)
    rows = table_rows(contents) if position == "learned" else None
    if rows is not None:
        trained, known = _in_table(gguf, current, rows, record, original_context)
    else:
        trained, known = _trained(before, origins, rope, relatives, known_length, original_context)
    groups = groups_of(
        tuple(recognised(group, current.original_context_length) for group in current.groups),
        before,
        record_method=record.method if record is not None else None,
        origins=origins,
        trained=trained,
        apart=rope.architecture.sliding is not None and not rope.architecture.sliding.scaled,
    )
    said = map(said_origin, groups)
    notes = (*contents.notes, *rope.notes, *known, *_baked(record), *filter(None, said), *_windows(groups, rope))
    if position != "rope":
        notes = (*notes, Note(code=f"position-{position}", message=_POSITIONS[position]))
    return Inspection(
        name=contents.name,
        source=contents.source,
        revision=contents.revision,
        model_type=rope.architecture.name,
        family=row,
        position=position,
        format="gguf",
        parameters=sum(t.elements for t in contents.tensors if t.name not in gguf.factors),
        size_bytes=contents.size_bytes,
        weight_bytes=contents.weight_bytes,
        dtypes=dtypes_of(contents),
        quantisation=None,
        tied_embeddings=not any(tensor.name == "output.weight" for tensor in contents.tensors),
        trained_context=trained,
        current_context=current.context_length,
        groups=groups if position == "rope" else (),
        kv_cache=_cache(keys, row, [(g.label, g.layers, g.window) for g in groups]),
        notes=tuple(dict.fromkeys(notes)),
        record=None,
        config={},
        rope=None,
        base=base,
    )


#: ALiBi of an architecture of which no family is known: its keys say all.
_SLOPES: Final = Alibi(
    length_key=CONTEXT,
    default_length=1,
    heads_keys=("attention.head_count",),
    heads=1,
    largest_exponent_path=(MAX_ALIBI_BIAS,),
)

#: What is possible for a file without a rope.
_POSITIONS: Final[Mapping[Position, str]] = {
    "learned": "positions are a learned table, one row a token: a longer one is made of the safetensors checkpoint, "
    "and exported",
    "alibi": "positions are ALiBi, a penalty by distance without a length: convert raises the context length that the "
    "file states, and the slopes stay",
}


def _position(rope: GgufRope, contents: Contents) -> Position:
    """How positions reach attention."""
    position = rope.architecture.position
    if position == "alibi" and table_rows(contents) is not None:
        return "learned"
    return position


def table_rows(contents: Contents) -> int | None:
    """The rows of a file's learned table of positions; None where it has none, or not in the parts that are here.

    Of the architectures without a rope, those with a table and mpt look for one.
    """
    row = find_architecture(gguf_of(contents))
    if row is None or not (row.position == "learned" or row.name == "mpt"):
        return None
    return stored_rows(contents)


def stored_rows(contents: Contents) -> int | None:
    """The rows of a table of positions, whether the architecture looks for one or not."""
    return next((tensor.shape[0] for tensor in contents.tensors if tensor.name == POSITION_TABLE), None)


def _in_table(
    gguf: Gguf, rope: GgufRope, rows: int, record: GgufRecord | None, override: int | None
) -> tuple[int, tuple[Note, ...]]:
    """The length in tokens that a table of ``rows`` was trained for, and how that is known.

    Raises :class:`RefusedError` for another one: each position has its own row.
    """
    trained = rows if record is None else record.trained_context
    if override not in (None, trained):
        raise RefusedError(
            "the table of positions says how many were trained",
            code="trained-length-known",
            file=gguf.file,
            key="--original-context",
            expected=str(trained),
            found=str(override),
            hint="leave --original-context away",
        )
    told = f"the rows of {POSITION_TABLE}" if record is None else "the record of an earlier conversion says so"
    notes = [_known(told, trained)]
    if rows != rope.context_length:
        notes.append(Note(code="table-rows", message=other_rows(rope, rows)))
    return trained, tuple(notes)


def other_rows(rope: GgufRope, rows: int) -> str:
    """What a table with another number of rows than the file states does."""
    return (
        f"{POSITION_TABLE} has {rows} rows, and {rope.architecture.name}.{CONTEXT} is {rope.context_length}: no reader "
        "loads such a file"
    )


def _baked(record: GgufRecord | None) -> Iterator[Note]:
    if record is not None and record.baked is not UNSET:
        yield Note(
            code="baked-weights",
            message=f"what an earlier conversion did ({record.method} to {record.target_context}) is partly in the "
            "weights: no extension starts from them",
        )


def gguf_of(contents: Contents) -> Gguf:
    """The header. Raises :class:`CheckpointError` where there is none."""
    if contents.gguf is None:
        raise CheckpointError("this is no GGUF file", code="no-gguf", file=contents.source, found=contents.storage)
    return contents.gguf


def _relatives(architecture: str, given: str | None) -> tuple[Family, ...]:
    """The families whose exports are of this architecture, or the one that the user names."""
    if given is not None:
        return (find_family({}, treat_as=given),)
    return tuple(FAMILIES[name] for name, other in OF_FAMILY.items() if other == architecture)


def _family(rope: GgufRope, relatives: tuple[Family, ...], given: str | None) -> Family:
    """A row that stands for the architecture, by the architecture's name where no family is known for it.

    A file holds one scaling, so no layers are extended apart from the others.
    """
    name = rope.architecture.name
    if given is not None:
        return msgspec.structs.replace(find_family({}, treat_as=given), form="flat")
    if not relatives and rope.architecture.position == "alibi":
        return Family(name=name, model_types=(name,), position="alibi", positions=_SLOPES, kv_cache="unstated")
    if not relatives:
        return Family(name=name, model_types=(name,), kv_cache="unstated")
    named = next((row for row in relatives if row.name == name), relatives[0])
    return msgspec.structs.replace(named, form="flat", labels={})


def recognised(group: GgufGroup, original: int | None) -> GgufGroup:
    """A list of factors that is Llama 3's formula, as that: another factor can then be asked of it.

    ``original`` is the length in tokens that the file says beside it.
    """
    scaling, spec = group.scaling, group.spec
    if spec is None or not isinstance(scaling, LongRope) or scaling.short_factor != scaling.long_factor:
        return group
    if scaling.attention_factor != 1.0:
        return group
    found = table(spec, scaling)
    for length in {_LLAMA3_ORIGINAL, original or _LLAMA3_ORIGINAL}:
        formula = Llama3(
            # Of seven digits the last is noise.
            factor=float(f"{scaling.long_factor[-1]:.6g}"),
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=length,
        )
        if formula.factor > 1.0 and found.error_against(table(spec, formula)) < _SAME:
            return msgspec.structs.replace(group, scaling=formula)
    return group


def _origin(
    group: GgufGroup, keys: Keys, rope: GgufRope, relatives: tuple[Family, ...], choice: BaseChoice
) -> Origin | None:
    """Whether a group's scaling was trained in; None where nothing tells, or the families differ."""
    if group.scaling is None:
        return None
    if choice != "auto":
        return "trained" if choice == "trained" else "bolted-on"
    # Where it doesn't switch the rope off, the file says it itself.
    said = keys.get(FINETUNED)
    if said is not None and said.type == "BOOL" and not rope.architecture.switched:
        return "trained" if said.value else "bolted-on"
    kind = str(type(group.scaling).__struct_config__.tag)
    told = {origin for row in relatives if (origin := row.origins.get(kind)) is not None}
    return told.pop() if len(told) == 1 else None


def _trained(
    before: tuple[GgufGroup, ...],
    origins: Mapping[str, Origin | None],
    rope: GgufRope,
    relatives: tuple[Family, ...],
    record: GgufRecord | None,
    override: int | None,
) -> tuple[int, tuple[Note, ...]]:
    """The length in tokens that the weights were trained for, and how that is known."""
    if override is not None:
        return override, (_known("it was given (--original-context)", override),)
    if record is not None:
        return record.trained_context, (_known("the record of an earlier conversion says so", record.trained_context),)
    stated, key = rope.context_length, f"{rope.architecture.name}.{CONTEXT}"
    scaled = next((group for group in before if group.scaling is not None), None)
    if scaled is None or origins.get(scaled.label) == "trained":
        overstated = {row.overstated.get(stated, stated) for row in relatives} if scaled is None else {stated}
        trained = overstated.pop() if len(overstated) == 1 else stated
        if trained == stated:
            return stated, (_known(key, stated),)
        message = f"{key} is {stated}, but these models were trained on {trained}; --original-context overrides this"
        return trained, (Note(code="length-overstated", message=message),)
    original = rope.original_context_length
    if original is not None and original <= stated:
        lengths = {row.overstated.get(original, original) for row in relatives}
        trained = lengths.pop() if len(lengths) == 1 else original
        return trained, (_known("the original length beside the scaling that was added", trained),)
    factor = _factor(scaled.scaling)
    return stated, (
        Note(
            code="original-length-unknown",
            message=f"the original length isn't written down: {stated} if {key} wasn't raised with the scaling, "
            f"{int(stated / factor)} if it was; --original-context says which",
        ),
    )


def _factor(scaling: Scaling | None) -> float:
    return scaling.factor if isinstance(scaling, Linear | Yarn) and math.isfinite(scaling.factor) else 1.0


def _windows(groups: tuple[Any, ...], rope: GgufRope) -> Iterator[Note]:
    sliding = rope.architecture.sliding
    for group in groups:
        if group.window is not None and sliding is not None and group.spec is not None:
            kept = "shares the file's one scaling" if sliding.scaled else "is kept"
            yield Note(
                code="sliding-window",
                message=f"{len(group.layers)} layers ({group.label}) see a window of {group.window} tokens; their "
                f"rope {kept}",
            )


def _cache(keys: Keys, row: Family, groups: list[tuple[str, tuple[int, ...], int | None]]) -> KvCache | None:
    """The KV cache, by the sizes that the file states; None where layers differ in them."""
    if keys.encodes:
        return None
    text: dict[str, Any] = {}
    for name, key in _SIZES.items():
        entry = keys.get(key)
        if entry is not None and entry.type == "ARRAY":
            return None
        value = keys.whole(key)
        if value is not None:
            text[name] = value
    return kv_cache(text, row, groups=groups)


def _known(how: str, tokens: int) -> Note:
    return Note(code="trained-context", message=f"trained context {tokens}: {how}")


def _ours_as_base(gguf: Gguf, record: GgufRecord) -> RefusedError:
    return RefusedError(
        "an earlier conversion of ctxextend wrote this rope, and extensions start from what was before it",
        code="ours-as-base",
        file=gguf.file,
        key="ctxextend.record",
        found=f"{record.method} to {record.target_context}",
        hint="leave --base away, or start from the file that the weights were trained with",
    )
