"""Which layers of a model do what: labels from config.json, by the family's pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from ctxextend.errors import CheckpointError
from ctxextend.families import Family

FULL = "full_attention"
SLIDING = "sliding_attention"

#: A config that says more is broken; the largest models have a few hundred.
MOST_LAYERS = 10_000


def layer_labels(text: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """One label a layer. ``layer_types`` where config.json has it, else the family's pattern."""
    count = whole_number(text, "num_hidden_layers")
    assert count is not None
    if not 0 < count <= MOST_LAYERS:
        raise CheckpointError(
            "no model has that many layers",
            code="broken-config",
            file="config.json",
            key="num_hidden_layers",
            expected=f"1 to {MOST_LAYERS}",
            found=str(count),
            hint="set num_hidden_layers as the model's publisher has it",
        )
    stated = text.get("layer_types")
    if isinstance(stated, list) and family.layer_pattern.kind != "no_rope_layers":
        if len(stated) != count:
            raise CheckpointError(
                "layer_types doesn't have one entry a layer",
                code="broken-config",
                file="config.json",
                key="layer_types",
                expected=f"{count} entries",
                found=f"{len(stated)}",
            )
        return tuple(str(label) for label in stated)
    windowed = window_of(text, family) is not None
    pattern = family.layer_pattern
    match pattern.kind:
        case "uniform":
            return (SLIDING if windowed else FULL,) * count
        case "every_nth_full":
            period = whole_number(text, pattern.period_key) or pattern.period
            return tuple(FULL if (i + 1) % period == 0 or not windowed else SLIDING for i in range(count))
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


def window_of(text: Mapping[str, Any], family: Family) -> int | None:
    """The attention window in tokens that config.json sets (or its class does), if it is switched on."""
    if family.window_switch_key is not None and text.get(family.window_switch_key) is not True:
        return None
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
