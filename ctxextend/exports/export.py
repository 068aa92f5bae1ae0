"""What the GGUF export of a checkpoint holds: its architecture, its keys and its tensors. Pure.

The rope is written plain (its base, how much of a head it turns, and the windows): how positions are scaled
comes after it (``formats/gguf_write.py``), as for a file that exists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, assert_never

from msgspec import Struct

from ctxextend.contents import GgufType, GgufValue, Note, TensorInfo
from ctxextend.errors import CheckpointError, RefusedError, nearest
from ctxextend.exports.layout import (
    AddOne,
    HeadRows,
    Layout,
    Operation,
    PairRows,
    Reshape,
    Rows,
    SplitHeads,
    Transpose,
    TransposeHeads,
)
from ctxextend.exports.row import (
    POSITIONS,
    Key,
    Row,
    Settings,
    Sizes,
    TensorRule,
    broken,
    settings_of,
    sizes_of,
)
from ctxextend.exports.rows import ROWS
from ctxextend.formats.gguf_architectures import ARCHITECTURES
from ctxextend.formats.gguf_keys import (
    CONTEXT,
    PATTERN,
    POSITION_TABLE,
    SLIDING_THETA,
    THETA,
    WINDOW,
    GgufGroup,
    Keys,
    geometry,
)
from ctxextend.formats.gguf_write import single
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.formats.hf_read import HfRope, RopeGroup

_DIMENSIONS: Final = "rope.dimension_count"
#: Routers and the table of positions, which llama.cpp's converter keeps in single precision beside norms, biases and
#: vectors.
_SINGLE: Final = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", POSITION_TABLE)
#: What the names of a quantised checkpoint's further tensors end in.
_QUANTISED: Final = ("_scale", "_scale_inv", ".qweight", ".qzeros", ".scales", ".absmax", ".quant_map")
#: Architectures whose files have a pattern of windows even where it is the usual one (``conversion/olmo.py``).
_PATTERN_SAID: Final = ("olmo2",)


class Export(Struct, frozen=True, kw_only=True):
    """The export of one checkpoint. ``values`` has whole key names, ``general.architecture`` among them.

    ``notes``: what the file can't say, and what of the checkpoint it doesn't hold.
    """

    architecture: str
    values: dict[str, GgufValue]
    layouts: tuple[Layout, ...]
    notes: tuple[Note, ...] = ()


class Place(Struct, frozen=True, kw_only=True):
    """A rule in one layer of a model: ``sources`` by their names in the rule, of ``shape`` each."""

    rule: TensorRule
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    layout: Layout


def row_of(family: str) -> Row:
    """The row of a family. Raises :class:`RefusedError` (``unknown-export``) for one without."""
    row = ROWS.get(family)
    if row is None:
        near = nearest(family, ROWS)
        raise RefusedError(
            f"how a model of the family {family} is written as GGUF isn't known here",
            code="unknown-export",
            expected=", ".join(ROWS),
            found=family,
            hint=f"--converter PATH runs llama.cpp's own converter{f'; near: {near[0]}' if near else ''}",
        )
    return row


def export_of(
    family: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], *, rope: HfRope | None, length: int = 0
) -> Export:
    """What the export of a checkpoint holds. ``rope`` is what ``config`` says of positions.

    Of a model without one, ``length`` is how many tokens it takes: the rows of its table, if it has any. Raises
    :class:`RefusedError` for a family without an export, a setting that the architecture can't express and a tensor
    that has no place in the file, and :class:`CheckpointError` for a value or a tensor that is missing or isn't as the
    config says.
    """
    row = row_of(family)
    text = {**(config if rope is None else rope.text)}
    if rope is None:
        text[POSITIONS] = length
    elif rope.path and "tie_word_embeddings" in config:
        # A wrapper says it for its language model.
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    settings = settings_of(row, text)
    _check_expressible(row, settings)
    sizes = sizes_of(settings)
    values = {"general.architecture": GgufValue(type="STRING", value=row.architecture)}
    if rope is None:
        positions = {CONTEXT: typed("UINT32", settings.needed(POSITIONS), CONTEXT)}
    else:
        positions = rope_values(row.architecture, rope)
    for name, value in (*values_of(row, settings).items(), *positions.items()):
        values[f"{row.architecture}.{name}"] = value
    notes = [*(_check_groups(row, values, rope) if rope is not None else ()), *_remarks(row, settings)]
    layouts, left = _layouts(row, settings, sizes, tensors)
    return Export(architecture=row.architecture, values=values, layouts=layouts, notes=(*notes, *_left_out(left)))


# Keys.


def values_of(row: Row, settings: Settings) -> dict[str, GgufValue]:
    """The row's keys by their names under the architecture's. Raises :class:`CheckpointError` for a missing value."""
    found = ((key.name, _value(key, settings)) for key in row.keys)
    return {name: value for name, value in found if value is not None}


def _value(key: Key, settings: Settings) -> GgufValue | None:
    value = settings.get(*key.config)
    for twin in key.twins:
        if settings.get(twin) not in (None, value):
            raise broken(twin, f"the same as {key.config[0]}: {value}", settings.get(twin))
    if value is None:
        if key.unset is not None:
            return typed(key.type, key.unset, key.name)
        if key.optional:
            return None
    if key.codes:
        if not isinstance(value, str) or value not in key.codes:
            raise broken(key.config[0], " or ".join(key.codes), value)
        return typed(key.type, key.codes[value], key.config[0])
    if key.added and type(value) is int:
        value += sum(settings.needed(other) for other in key.added)
    return typed(key.type, value, key.config[0])


def typed(kind: GgufType, value: Any, key: str) -> GgufValue:
    """A number of config.json's ``key`` as a value of the file, which holds 32 bits of it.

    Raises :class:`CheckpointError` for what can't be one.
    """
    if kind == "BOOL":
        if type(value) is not bool:
            raise broken(key, "true or false", value)
        return GgufValue(type=kind, value=value)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise broken(key, "a number", value)
    if kind == "UINT32":
        if int(value) != value or not 0 <= value < 2**32:
            raise broken(key, "a whole number of 32 bits", value)
        return GgufValue(type=kind, value=int(value))
    try:
        return GgufValue(type=kind, value=single(float(value)))
    except OverflowError as error:
        raise broken(key, "a number that single precision holds", value) from error


def rope_values(architecture: str, rope: HfRope) -> dict[str, GgufValue]:
    """The keys of a rope, plain, by their names under the architecture's; with windows where it has any.

    Raises :class:`RefusedError` (``unexpressible``) for a checkpoint without a rope.
    """
    groups = {group.label: group for group in rope.groups if group.spec is not None}
    main = groups.get(FULL) or next(iter(groups.values()), None)
    if main is None or main.spec is None:
        raise RefusedError(
            "no layer of this checkpoint has a rope",
            code="unexpressible",
            file="config.json",
            hint="--converter PATH runs llama.cpp's own converter",
        )
    values = {
        CONTEXT: typed("UINT32", rope.max_position_embeddings, "max_position_embeddings"),
        THETA: typed("FLOAT32", main.spec.rope_theta, "rope_theta"),
        _DIMENSIONS: typed("UINT32", main.spec.rotary_dim, "head_dim"),
    }
    sliding, own = ARCHITECTURES[architecture].sliding, groups.get(SLIDING)
    if sliding is None or own is None or own.spec is None or own.window is None:
        return values
    values[WINDOW] = typed("UINT32", own.window, "sliding_window")
    if sliding.reads_theta:
        values[SLIDING_THETA] = typed("FLOAT32", own.spec.rope_theta, "rope_theta")
    layers = sum(len(group.layers) for group in rope.groups)
    slides = tuple(i in own.layers for i in range(layers))
    # What the architecture does by itself needn't be said, and was a period for older builds of llama.cpp.
    full = None if sliding.period is None else 0 if sliding.dense_first else sliding.period - 1
    own_pattern = tuple(i % (sliding.period or 1) != full for i in range(layers))
    if slides != own_pattern or architecture in _PATTERN_SAID:
        values[PATTERN] = GgufValue(type="ARRAY", item="BOOL", length=layers, value=slides)
    return values


def groups_of_file(file: Iterable[GgufGroup], rope: HfRope) -> dict[str, RopeGroup]:
    """The config's group of each label in the file that has a rope: labels differ where a window is lost.

    Raises :class:`RefusedError` (``unexpressible``) where layers that the file has in one group are scaled
    differently.
    """
    found = {}
    for group in file:
        own = [other for other in rope.groups if set(other.layers) & set(group.layers)]
        if len({(other.spec, other.scaling) for other in own}) > 1:
            raise RefusedError(
                "layers that are one group in a GGUF file are scaled differently here",
                code="unexpressible",
                file="config.json",
                key="rope_parameters",
                found=", ".join(other.label for other in own),
                hint="scale all layers alike",
            )
        if group.spec is not None:
            found[group.label] = own[0]
    return found


# What the architecture can't express.


def _check_expressible(row: Row, settings: Settings) -> None:
    for fixed in row.fixed:
        found = settings.text.get(fixed.key, fixed.default)
        if found not in fixed.values:
            expected = " or ".join(map(repr, fixed.values))
            raise _unexpressible(row, f"{fixed.key} is {found!r}, and it has {expected} built in", key=fixed.key)
    for check in row.refusals:
        reason = check(settings)
        if reason is not None:
            raise _unexpressible(row, reason)


def _unexpressible(row: Row, reason: str, *, key: str | None = None) -> RefusedError:
    return RefusedError(
        f"a GGUF file of the architecture {row.architecture} computes something else: {reason}",
        code="unexpressible",
        file="config.json",
        key=key,
        hint="no file of llama.cpp's can hold this model as it is",
    )


def _check_groups(row: Row, values: Mapping[str, GgufValue], rope: HfRope) -> Iterator[Note]:
    """That the file's layers turn and slide as the config's do; a window that it hasn't got is told."""
    file = geometry(Keys(values, row.architecture), ARCHITECTURES[row.architecture])
    meant, read = _by_layer(rope.groups), _by_layer(file)
    for layer, (expected, found) in enumerate(zip(meant, read, strict=True)):
        same_rope = expected[1:] == found[1:]
        lost = found[0] is None and expected[0] is not None
        if not same_rope or (expected[0] != found[0] and not lost):
            raise _unexpressible(row, f"layer {layer} has another rope or window there")
    windows = {window for (window, *_), (other, *_) in zip(meant, read, strict=True) if window != other}
    windows = {window for window in windows if window is not None and window < rope.max_position_embeddings}
    if windows:
        message = (
            f"llama.cpp has no windows in the architecture {row.architecture}: layers that look back on "
            f"{', '.join(map(str, sorted(windows)))} tokens will look back on all"
        )
        yield Note(code="window-lost", message=message)


def _by_layer(groups: Collection[RopeGroup] | Collection[GgufGroup]) -> list[tuple[Any, ...]]:
    """One entry a layer: its window, base and rotated dimensions."""
    found: dict[int, tuple[Any, ...]] = {}
    for group in groups:
        spec = group.spec
        rope = (None, None) if spec is None else (single(spec.rope_theta), spec.rotary_dim)
        found |= dict.fromkeys(group.layers, (group.window, *rope))
    return [found[layer] for layer in sorted(found)]


def _remarks(row: Row, settings: Settings) -> Iterator[Note]:
    for check in row.remarks:
        message = check(settings)
        if message is not None:
            yield Note(code="approximate-export", message=message)


# Tensors.


def places(row: Row, settings: Settings, sizes: Sizes) -> Iterator[tuple[Place, ...]]:
    """Each tensor that a file may have, with the rules that could make it, best first; in the file's order."""
    for first, rules in _by_target(row, settings).items():
        repeated = "{bid}" in first
        for bid in range(sizes.layers) if repeated else (0,):
            dense = bid < sizes.dense_layers
            counted = [rule for rule in rules if rule.layers == "all" or (rule.layers == "dense") == dense]
            if counted:
                yield tuple(_place(rule, sizes, bid) for rule in counted)


def _by_target(row: Row, settings: Settings) -> dict[str, list[TensorRule]]:
    found: dict[str, list[TensorRule]] = {}
    for rule in row.tensors:
        if rule.when is None or settings.on(rule.when[0]) == rule.when[1]:
            found.setdefault(rule.gguf, []).append(rule)
    return found


def _place(rule: TensorRule, sizes: Sizes, bid: int) -> Place:
    name = rule.hf.replace("{bid}", str(bid))
    stacked = "{xid}" in name
    sources = tuple(name.replace("{xid}", str(i)) for i in range(getattr(sizes, rule.count))) if stacked else (name,)
    shape = tuple(getattr(sizes, size) for size in rule.shape)
    operations = tuple(make(sizes) for make in rule.operations)
    after = shape
    for operation in operations:
        after = shape_after(after, operation)
    after = (len(sources), *after) if stacked else after
    target = rule.gguf.replace("{bid}", str(bid))
    layout = Layout(
        name=target,
        shape=after,
        sources=sources,
        operations=operations,
        stacked=stacked,
        exact=_is_exact(target, after),
    )
    return Place(rule=rule, sources=sources, shape=shape, layout=layout)


def _is_exact(name: str, shape: tuple[int, ...]) -> bool:
    plain = len(shape) == 1 or not name.endswith(".weight") or name.endswith("_norm.weight")
    return plain or name.endswith(_SINGLE)


def shape_after(shape: tuple[int, ...], operation: Operation) -> tuple[int, ...]:
    """The shape of a tensor that ``operation`` was done to."""
    match operation:
        case Rows():
            return (operation.stop - operation.start, *shape[1:])
        case HeadRows():
            return (operation.heads * (operation.stop - operation.start), *shape[1:])
        case TransposeHeads():
            return (operation.heads, shape[1], shape[0] // operation.heads)
        case Transpose():
            return shape[::-1]
        case Reshape():
            return operation.shape
        case PairRows() | SplitHeads() | AddOne():
            return shape
        case _:
            assert_never(operation)


def _layouts(
    row: Row, settings: Settings, sizes: Sizes, tensors: Mapping[str, TensorInfo]
) -> tuple[tuple[Layout, ...], dict[str, int]]:
    """The file's tensors, and how many of the checkpoint's have no place in it, by what they are."""
    left: dict[str, int] = {}
    actual: dict[str, str] = {}
    for name in tensors:
        plain = _plain_name(row, name)
        reason = _reason_to_leave(row, settings, sizes, plain)
        if reason is None:
            if plain in actual:
                raise CheckpointError(
                    "two tensors of the checkpoint stand for one", code="broken-tensor", key=name, found=actual[plain]
                )
            actual[plain] = name
        elif reason:
            left[reason] = left.get(reason, 0) + 1
    layouts: list[Layout] = []
    used: set[str] = set()
    for options in places(row, settings, sizes):
        chosen = next((place for place in options if all(s in actual for s in place.sources)), None)
        if chosen is None:
            first = options[0]
            if not first.rule.optional and (first.rule.spared is None or not settings.on(first.rule.spared)):
                raise _missing(first, actual)
            continue
        for source in chosen.sources:
            _check_shape(tensors[actual[source]], chosen.shape)
        used.update(chosen.sources)
        names = tuple(actual[source] for source in chosen.sources)
        layouts.append(_named(chosen.layout, names))
    unused = sorted(actual[name] for name in actual.keys() - used)
    if unused:
        raise _unmapped(row, unused)
    return tuple(layouts), left


def _named(layout: Layout, names: tuple[str, ...]) -> Layout:
    """The layout with the checkpoint's own names."""
    return Layout(
        name=layout.name,
        shape=layout.shape,
        sources=names,
        operations=layout.operations,
        stacked=layout.stacked,
        exact=layout.exact,
    )


def _plain_name(row: Row, name: str) -> str:
    """A tensor's name as the rules have it."""
    for prefix, plain in row.prefixes:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def _reason_to_leave(row: Row, settings: Settings, sizes: Sizes, name: str) -> str | None:
    """Why a tensor isn't exported, empty for what holds no weights; None for one that must be."""
    if any(re.search(pattern, name) for pattern in row.dropped):
        return ""
    if any(re.search(pattern, name) for pattern in row.elsewhere):
        return "of other parts than the language model"
    if row.further_layers is not None:
        found = re.match(r"model\.layers\.(\d+)\.", name)
        past = int(found[1]) - sizes.layers if found else -1
        if 0 <= past < settings.whole(row.further_layers):
            return "of layers that predict further tokens"
    return None


def _left_out(left: Mapping[str, int]) -> Iterator[Note]:
    for reason, count in left.items():
        yield Note(code="left-out", message=f"{count} tensors {reason} aren't in the file")


def _unmapped(row: Row, names: list[str]) -> RefusedError:
    quantised = any(name.endswith(_QUANTISED) for name in names)
    return RefusedError(
        f"{len(names)} tensors of the checkpoint have no place in a GGUF file of the architecture {row.architecture}",
        code="unmapped-tensor",
        key=names[0],
        found=", ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
        hint="export the checkpoint that it was quantised from"
        if quantised
        else "--converter PATH runs llama.cpp's own converter",
    )


def _missing(place: Place, actual: Collection[str]) -> CheckpointError:
    name = next(source for source in place.sources if source not in actual)
    return CheckpointError(
        "the checkpoint has not all tensors that its config speaks of",
        code="missing-tensor",
        key=name,
        expected=f"a tensor of shape {list(place.shape)}",
        found="none",
    )


def _check_shape(tensor: TensorInfo, expected: tuple[int, ...]) -> None:
    if tensor.shape == expected:
        return
    raise CheckpointError(
        "a tensor isn't as large as the config says",
        code="broken-tensor",
        file=tensor.file,
        key=tensor.name,
        expected=str(list(expected)),
        found=str(list(tensor.shape)),
    )
