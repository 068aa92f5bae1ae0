"""Which layers of a model do what: labels from config.json, by the family's pattern."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, assert_never

from ctxextend.errors import CheckpointError
from ctxextend.families import Family, LayerPattern

FULL = "full_attention"
SLIDING = "sliding_attention"

#: Layers that attend to nothing: neither a rope nor a cache of keys and values.
STATELESS: Final = frozenset({"conv", "linear_attention", "mamba", "moe", "recurrent"})

#: Older layer types and what transformers 5 makes of them (5.23, configuration_utils.py, _LEGACY_LAYER_TYPE_REMAP).
_RENAMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "attention": "full_attention",
        "deepseek_sparse_attention": "indexed_attention",
        "mamba": "linear_attention",
        "qwen_sparse_attention": "indexed_attention",
    }
)

#: A config that says more is broken; the largest models have a few hundred.
MOST_LAYERS = 10_000


def layer_labels(text: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """One label a layer: the label of its rope where the family has one a label, else its layer type."""
    newer = text.get("rope_parameters")
    own = newer if isinstance(newer, dict) else {}
    return tuple(label if label in own else family.label_of.get(label, label) for label in _layer_types(text, family))


def _layer_types(text: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """One layer type a layer. ``layer_types`` where config.json has it, else the family's pattern."""
    count = _count(text, family)
    pattern = family.layer_pattern
    stated = _stated(text, pattern, count) if pattern.kind != "no_rope_layers" else None
    if stated is not None:
        forced = (pattern.last,) if pattern.last_forced and pattern.last is not None else ()
        return (*stated[: count - len(forced)], *forced)
    labels = _by_pattern(text, family, count)
    labels = (*pattern.first[:count], *labels[len(pattern.first) :])
    return labels if pattern.last is None else (*labels[:-1], pattern.last)


def _by_pattern(text: Mapping[str, Any], family: Family, count: int) -> tuple[str, ...]:
    windowed = window_of(text, family) is not None
    pattern = family.layer_pattern
    match pattern.kind:
        case "uniform":
            return (SLIDING if windowed else FULL,) * count
        case "every_nth_full":
            period = whole_number(text, pattern.period_key) or pattern.period
            rest = FULL if pattern.rest_label == SLIDING and not windowed else pattern.rest_label
            shift = 0 if pattern.full_first else 1
            return tuple(FULL if (i + shift) % period == 0 else rest for i in range(count))
        case "cycle":
            return tuple(pattern.cycle[i % len(pattern.cycle)] for i in range(count))
        case "from_max_window_layers":
            first = _or(whole_number(text, "max_window_layers"), pattern.max_window_layers)
            return tuple(SLIDING if windowed and i >= first else FULL for i in range(count))
        case "even_below_max_window_layers":
            bound = _or(whole_number(text, "max_window_layers"), pattern.max_window_layers)
            return tuple(SLIDING if windowed and i % 2 == 0 and i < bound else FULL for i in range(count))
        case "no_rope_layers":
            return _with_and_without_rope(text, family, count)
        case _:
            assert_never(pattern.kind)


def _count(text: Mapping[str, Any], family: Family) -> int:
    key, times = next(
        ((key, times) for key, times in family.layer_counts if text.get(key) is not None), family.layer_counts[0]
    )
    stated = whole_number(text, key, required=True)
    assert stated is not None
    count = stated * times
    if not 0 < count <= MOST_LAYERS:
        raise CheckpointError(
            "no model has that many layers",
            code="broken-config",
            file="config.json",
            key=key,
            expected=f"1 to {MOST_LAYERS}",
            found=str(count),
            hint=f"set {key} as the model's publisher has it",
        )
    return count


def _stated(text: Mapping[str, Any], pattern: LayerPattern, count: int) -> tuple[str, ...] | None:
    """What config.json says of each layer, as labels, codes, windows or indices; None where it says nothing."""
    for key in pattern.types_keys:
        if isinstance(text.get(key), list):
            return tuple(_RENAMED.get(str(entry), str(entry)) for entry in _one_a_layer(text, key, pattern, count))
    if pattern.codes_key is not None and isinstance(text.get(pattern.codes_key), list):
        entries = _one_a_layer(text, pattern.codes_key, pattern, count)
        return tuple(pattern.codes.get(code, pattern.rest_label) for code in entries if isinstance(code, int))
    if pattern.windows_key is not None and isinstance(text.get(pattern.windows_key), list):
        entries = _one_a_layer(text, pattern.windows_key, pattern, count)
        return tuple(pattern.rest_label if window else FULL for window in entries)
    if pattern.full_indices_key is not None and isinstance(text.get(pattern.full_indices_key), list):
        indices = text[pattern.full_indices_key]
        return tuple(FULL if i in indices else pattern.rest_label for i in range(count))
    return None


def _one_a_layer(text: Mapping[str, Any], key: str, pattern: LayerPattern, count: int) -> list[Any]:
    stated: list[Any] = text[key]
    if len(stated) != count and not (pattern.surplus and len(stated) > count):
        raise CheckpointError(
            f"{key} doesn't have one entry a layer",
            code="broken-config",
            file="config.json",
            key=key,
            expected=f"{count} entries",
            found=f"{len(stated)}",
        )
    return stated[:count]


def window_of(text: Mapping[str, Any], family: Family) -> int | None:
    """The attention window in tokens that config.json sets (or its class does), if it is switched on."""
    if family.window_switch_key is not None and text.get(family.window_switch_key) is not True:
        return None
    windows = text.get(family.layer_pattern.windows_key or "")
    if isinstance(windows, list):
        return next((window for window in windows if isinstance(window, int) and window), family.window)
    if family.window_key not in text:
        return family.window
    return whole_number(text, family.window_key) or None


def whole_number(text: Mapping[str, Any], key: str | None, *, required: bool | None = None) -> int | None:
    """A whole number of config.json, from 0. ``num_hidden_layers`` must be there, others may be missing."""
    if key is None:
        return None
    value = text.get(key)
    if isinstance(value, float) and value.is_integer():
        # Some training tools write lengths as floats; there is one way to read them.
        value = int(value)
    if value is None and not (required if required is not None else key == "num_hidden_layers"):
        return None
    if type(value) is not int or value < 0:
        raise CheckpointError(
            "a number of config.json can't be read",
            code="broken-config",
            file="config.json",
            key=key,
            expected="a whole number",
            found=repr(value) if value is not None else "none",
            hint=f"set {key} as the model's publisher has it",
        )
    return value


def _with_and_without_rope(text: Mapping[str, Any], family: Family, count: int) -> tuple[str, ...]:
    pattern = family.layer_pattern
    stated = text.get("no_rope_layers")
    if isinstance(stated, list) and len(stated) == count:
        rotated = [bool(entry) for entry in stated]
    else:
        period = whole_number(text, pattern.period_key) or pattern.period
        rotated = [(i + 1) % period != 0 for i in range(count)]
    without = family.unrotated[0]
    return tuple(pattern.rope_label if has_rope else without for has_rope in rotated)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
