"""What a checkpoint without a rope says of its positions: the table in the weights, the length in config.json, slopes.

The table is what was trained; config.json only says how large it is. Where the two differ, the table counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from ctxextend.contents import Note, TensorInfo
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.families import Family, Position
from ctxextend.families.positions import Alibi, PositionTable, Sinusoids
from ctxextend.formats.hf_layers import whole_number
from ctxextend.formats.json_edit import Edit
from ctxextend.formats.rope_keys import LENGTH_SYNONYMS

#: Every key that states a length beside the class's own.
_SYNONYMS: Final = ("max_position_embeddings", "max_source_positions", *LENGTH_SYNONYMS)

#: What the numbers of a table can be stored as, for rows to be computed from them.
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


#: The exponent of the gentlest slope, 2 ** -8 (Press et al., section 3).
USUAL_EXPONENT: Final = 8.0


class Positions(Struct, frozen=True, kw_only=True):
    """The positions of a model without a rope. Lengths count tokens.

    ``path`` is where the language model's settings stand; ``stated`` is the length that config.json gives it (None: it
    doesn't), ``taken`` the one that the class takes then, ``length`` the one that the weights have. ``tables`` and
    ``stale`` are tensors of the checkpoint; of ``rows`` the first ``reserved`` stand for no position. ``sinusoids``:
    the table is computed, with a row of zeros at ``zero_row``.
    ``slopes``: the penalty per token of distance that each head has, in nats, the gentlest last; ``divisor`` is what
    they were divided by, as the scores are, and ``largest_exponent`` the gentlest's before that.
    """

    position: Position
    path: tuple[str, ...]
    length_key: str
    stated: int | None
    taken: int
    length: int
    reserved: int = 0
    counts_reserved: bool = False
    tables: tuple[TensorInfo, ...] = ()
    stale: tuple[TensorInfo, ...] = ()
    sinusoids: Sinusoids | None = None
    zero_row: int | None = None
    slopes: tuple[float, ...] = ()
    divisor: float = 1.0
    largest_exponent: float = USUAL_EXPONENT
    notes: tuple[Note, ...] = ()

    @property
    def rows(self) -> int | None:
        """The rows of the table in the weights."""
        return self.tables[0].shape[0] if self.tables else None

    @property
    def key(self) -> str:
        """Where config.json states the length, as it is shown."""
        return ".".join((*self.path, self.length_key))

    def written(self, length: int) -> int:
        """How config.json states ``length`` tokens."""
        return length + self.reserved if self.counts_reserved else length


def text_of(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """The settings at ``path``, which is there."""
    node: Any = config
    for key in path:
        node = node[key]
    found: Mapping[str, Any] = node
    return found


def position_of(config: Mapping[str, Any], family: Family) -> Position:
    """How positions reach attention in this checkpoint: a key of config.json may say, where the family has both."""
    if family.alibi_key is not None and config.get(family.alibi_key) is True:
        return "alibi"
    facts = family.positions
    if isinstance(facts, PositionTable) and facts.sinusoids_key is not None:
        _path, text = _text(config, family)
        return "sinusoidal" if text.get(facts.sinusoids_key) is True else family.position
    return family.position


def read_positions(tensors: Sequence[TensorInfo], config: Mapping[str, Any], family: Family) -> Positions | None:
    """The positions of a checkpoint with this ``config`` and these ``tensors``; None for a family that isn't known.

    Raises :class:`CheckpointError` for tables or lengths that contradict each other, and :class:`RefusedError` for
    positions of another kind than the family's.
    """
    path, text = _text(config, family)
    match family.positions:
        case PositionTable() as facts:
            return _table(tensors, facts, path, text, position_of(config, family))
        case Alibi() as facts:
            return _alibi(facts, path, text)
        case None:
            return None


def length_edits(config: Mapping[str, Any], positions: Positions, length: int) -> tuple[Edit, ...]:
    """The edits of config.json that state ``length`` tokens, with every synonym that is there and says less."""
    written = positions.written(length)
    edits = [Edit(path=(*positions.path, positions.length_key), value=written)]
    for path in dict.fromkeys((positions.path, ())):
        node = text_of(config, path)
        for key in _SYNONYMS:
            if (*path, key) == edits[0].path or type(node.get(key)) is not int:
                continue
            same = node[key] == positions.written(positions.length)
            if same or node[key] < length:
                edits.append(Edit(path=(*path, key), value=written if same else length))
    return tuple(edits)


def refuse_other_length(positions: Positions | None, trained: int, given: int) -> None:
    """A learned table says itself what was trained. Raises :class:`RefusedError` for another length than its own."""
    if positions is None or not positions.tables or positions.sinusoids is not None or given == trained:
        return
    raise RefusedError(
        "the table of positions says how many were trained",
        code="trained-length-known",
        file=positions.tables[0].file,
        key="--original-context",
        expected=str(trained),
        found=str(given),
        hint="leave --original-context away",
    )


def explain_positions(positions: Positions, trained: int) -> tuple[Note, ...]:
    """What there is, what a longer context takes, and what it costs."""
    match positions.position:
        case "alibi":
            own = _about_alibi(positions.slopes, trained)
        case "sinusoidal":
            own = _about_sinusoids(positions, trained)
        case _:
            own = _about_table(positions, trained)
    return (*positions.notes, *own)


def _about_table(positions: Positions, trained: int) -> tuple[Note, ...]:
    if not positions.tables:
        return (
            Note(
                code="no-table",
                message="the table of positions isn't among the tensors that can be read, so it can't be resized",
            ),
        )
    first = positions.tables[0]
    more = f", and {len(positions.tables) - 1} more of that size" if len(positions.tables) > 1 else ""
    kept = f", of which {positions.reserved} stand for no position" if positions.reserved else ""
    row = first.size_bytes // first.shape[0] * len(positions.tables)
    notes = [
        Note(
            code="position-table",
            message=f"{first.name} has {first.shape[0]} rows{kept}{more}: one for each position up to {trained}, and "
            "no runtime goes past them",
        ),
        Note(
            code="position-cost",
            message=f"--method absolute resizes it, at {row} bytes a position: between the old rows (linear, cubic) "
            "every position moves, repeated (tiled) the first ones stay as they are; ctxextend eval measures what each "
            "costs without fine-tuning",
        ),
    ]
    if positions.stale:
        notes.append(
            Note(
                code="stale-buffers",
                message=_stale_buffers([tensor.name for tensor in positions.stale]),
            )
        )
    return tuple(notes)


def _stale_buffers(names: Sequence[str]) -> str:
    if len(names) == 1:
        said = f"a buffer of the length's size lies in the weights ({names[0]})"
    else:
        said = f"{len(names)} buffers of the length's size lie in the weights ({names[0]}, ...)"
    return f"{said}; transformers computes its own, and a conversion drops what is stored"


def _about_sinusoids(positions: Positions, trained: int) -> tuple[Note, ...]:
    facts = positions.sinusoids
    assert facts is not None
    if not facts.read:
        said = "transformers computes the table by itself" + (
            ", as large as the input needs" if facts.unlimited else ", as large as config.json says"
        )
    elif positions.tables:
        said = f"transformers reads the table from the weights ({positions.tables[0].name})"
    else:
        said = "the table isn't stored in the weights, so transformers computes it"
    inside = facts.read and bool(positions.tables) and not positions.reserved
    return (
        Note(code="position-table", message=said),
        Note(
            code="position-cost",
            message=f"--method sinusoidal goes on past {trained} at the same steps (raised): nothing changes up to it"
            + (", or divides positions by the factor (interpolated): everything moves" if inside else "")
            + "; what lies past it was never trained",
        ),
    )


#: A weight of e^-8, about 0.03 per cent, is taken for none.
GONE: Final = 8.0


def _about_alibi(slopes: tuple[float, ...], trained: int) -> tuple[Note, ...]:
    near = sum(slope * trained > GONE for slope in slopes)
    see = "sees" if near == 1 else "see"
    return (
        Note(
            code="alibi-slopes",
            message=f"{len(slopes)} heads take {slopes[0]:.4g} to {slopes[-1]:.4g} nats off a score for each token of "
            f"distance; {near} of them {see} less than {trained} tokens (a token weighs e^-{GONE:g} of a near one "
            f"{GONE / slopes[0]:.0f} to {GONE / slopes[-1]:.0f} tokens back)",
        ),
        Note(
            code="position-cost",
            message=f"--method alibi raises the length that config.json states and keeps the slopes; the gentlest head "
            f"takes {slopes[-1] * trained:.4g} nats off at {trained} tokens and {4 * slopes[-1] * trained:.4g} at "
            f"{4 * trained}, and no distance past {trained} was ever trained",
        ),
    )


def alibi_slopes(heads: int, *, layout: str = "press", largest_exponent: float = USUAL_EXPONENT) -> tuple[float, ...]:
    """The slope of each head: ``2 ** (-8 i / n)`` for i = 1 to n (Press et al., section 3).

    A number of heads that is no power of two is filled up as the family's code does.
    """
    power = 1 << (heads.bit_length() - 1)
    if power == heads:
        return _geometric(heads, largest_exponent)
    twice = _geometric(2 * power, largest_exponent)
    if layout == "mosaic":
        return (*twice[1::2], *twice[::2])[:heads]
    return (*_geometric(power, largest_exponent), *twice[::2])[:heads]


def _geometric(heads: int, largest_exponent: float) -> tuple[float, ...]:
    return tuple(2.0 ** (-largest_exponent * i / heads) for i in range(1, heads + 1))


def _text(config: Mapping[str, Any], family: Family) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Where the language model's settings stand: its own model type says so."""
    for path in family.config_paths:
        node: Any = config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if path and isinstance(node, dict) and node.get("model_type") in family.model_types:
            return path, node
    return (), config


def _table(
    tensors: Sequence[TensorInfo],
    facts: PositionTable,
    path: tuple[str, ...],
    text: Mapping[str, Any],
    position: Position,
) -> Positions:
    kind = text.get("position_embedding_type")
    if kind not in (None, "absolute"):
        alibi = kind == "alibi"
        raise RefusedError(
            "this model's own code has ALiBi in place of a table, which transformers doesn't know of"
            if alibi
            else "beside its table this model has positions relative to each other, which transformers 5 doesn't read",
            code="own-positions" if alibi else "relative-positions",
            file="config.json",
            key=".".join((*path, "position_embedding_type")),
            expected="absolute",
            found=str(kind),
            hint="a GGUF file of it (jina-bert-v2) says its length, which can be raised there"
            if alibi
            else "use a checkpoint of the same model with absolute positions",
        )
    reserved, zero_row = _reserved(facts, text)
    computed = facts.sinusoids if position == "sinusoidal" else None
    tables = _held(tensors, facts.names)
    states = whole_number(text, facts.length_key)
    written = facts.default_length if states is None else states
    stated = written - reserved if facts.counts_reserved else written
    length, notes = _length(tables, stated, reserved, facts, path, said=states is not None)
    if length < 1:
        raise CheckpointError(
            "a length of config.json can't be",
            code="broken-config",
            file="config.json",
            key=".".join((*path, facts.length_key)),
            expected=f"more than {reserved if facts.counts_reserved else 0}",
            found=str(written),
        )
    return Positions(
        position=position,
        path=path,
        length_key=facts.length_key,
        stated=stated if states is not None else None,
        taken=stated,
        length=length,
        reserved=reserved,
        counts_reserved=facts.counts_reserved,
        tables=tables,
        stale=_held(tensors, facts.stale),
        sinusoids=computed,
        zero_row=zero_row if computed is not None and computed.padding else None,
        notes=notes,
    )


def _reserved(facts: PositionTable, text: Mapping[str, Any]) -> tuple[int, int | None]:
    """How many rows stand in front of the first position, and which of them is the padding token's."""
    if facts.pad_token_id is None:
        return facts.reserved, None
    padding = whole_number(text, "pad_token_id")
    padding = facts.pad_token_id if padding is None else padding
    return facts.reserved or padding + 1, padding


def _length(
    tables: tuple[TensorInfo, ...],
    stated: int,
    reserved: int,
    facts: PositionTable,
    path: tuple[str, ...],
    *,
    said: bool,
) -> tuple[int, tuple[Note, ...]]:
    """The length of the tables, and what config.json says instead."""
    if not tables:
        return stated, () if said else (_assumed(path, facts.length_key, stated),)
    first = tables[0]
    for table in tables:
        if len(table.shape) != 2 or table.shape[0] != first.shape[0]:
            raise CheckpointError(
                "the tables of positions differ, and nothing tells which of them counts",
                code="contradicting-tables",
                file=table.file,
                key=table.name,
                expected=f"{list(first.shape)}, as {first.name}",
                found=str(list(table.shape)),
                hint="fetch the checkpoint again, or leave out the tensors that belong to another model",
            )
    length = first.shape[0] - reserved
    key = ".".join((*path, facts.length_key))
    if length == stated:
        return length, ()
    if not said:
        return length, (
            Note(code="length-from-table", message=f"config.json has no {key}; the table has {length} positions"),
        )
    return length, (
        Note(
            code="length-contradicts-table",
            message=f"{key} means {stated} tokens but {first.name} has {length} positions; the table is what was "
            "trained, and convert writes both alike",
        ),
    )


def _assumed(path: tuple[str, ...], key: str, length: int) -> Note:
    return Note(
        code="length-assumed",
        message=f"config.json has no {'.'.join((*path, key))}, so {length} tokens are taken for the trained length, as "
        "runtimes take them; --original-context overrides this",
    )


def _held(tensors: Iterable[TensorInfo], names: tuple[str, ...]) -> tuple[TensorInfo, ...]:
    """The tensors of these names, however many wrappers put their own in front: every copy of them."""
    endings = tuple(f".{name}" for name in names)
    return tuple(tensor for tensor in tensors if tensor.name in names or tensor.name.endswith(endings))


def _alibi(facts: Alibi, path: tuple[str, ...], text: Mapping[str, Any]) -> Positions:
    switch = _at(text, facts.switch_path) if facts.switch_path else True
    if switch is False:
        raise RefusedError(
            "config.json switches ALiBi off, and this family has no other positions in transformers",
            code="no-alibi",
            file="config.json",
            key=".".join((*path, *facts.switch_path)),
            expected="true",
            found="false",
            hint="if the weights were trained with ALiBi, say so there",
        )
    stated = whole_number(text, facts.length_key)
    heads = next((n for key in facts.heads_keys if (n := whole_number(text, key))), facts.heads)
    largest = _at(text, facts.largest_exponent_path) if facts.largest_exponent_path else None
    exponent = float(largest) if isinstance(largest, int | float) and not isinstance(largest, bool) else USUAL_EXPONENT
    slopes = alibi_slopes(heads, layout=facts.layout, largest_exponent=exponent)
    size = (whole_number(text, "hidden_size") or 64 * heads) // heads
    divisor = math.sqrt(size) if facts.scaled else 1.0
    notes: tuple[Note, ...] = () if stated else (_assumed(path, facts.length_key, facts.default_length),)
    if exponent != USUAL_EXPONENT:
        notes += (_other_exponent(".".join((*path, *facts.largest_exponent_path)), exponent),)
    return Positions(
        position="alibi",
        path=path,
        length_key=facts.length_key,
        stated=stated,
        taken=stated or facts.default_length,
        length=stated or facts.default_length,
        slopes=tuple(sorted((slope / divisor for slope in slopes), reverse=True)),
        divisor=divisor,
        largest_exponent=exponent,
        notes=notes,
    )


def _other_exponent(key: str, exponent: float) -> Note:
    return Note(
        code="alibi-exponent",
        message=f"{key} is {exponent:g}, by which the slopes are told here; transformers doesn't read it, and takes "
        f"those of {USUAL_EXPONENT:g}",
    )


def _at(text: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    node: Any = text
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node
