"""What is known of each model family: where its numbers stand in config.json, and what was trained in.

Data only: one frozen row a family, no behaviour. A key that isn't spelled out in a row doesn't exist
for that family; a model type without a row is refused. The defaults are those of the family's
configuration class in transformers 5.23, which apply when a published config leaves the key out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from ctxextend.errors import RefusedError, UnknownNameError, nearest
from ctxextend.families import established, flat, layered, multimodal, refused, variants, without_rope
from ctxextend.families.row import UNIFORM, Family, Form, LabelRope, LayerPattern, Origin, Position
from ctxextend.families.wrappers import SIZES, TEXT_PATHS, WRAPPERS, inner_config, inner_model_type, own_row

__all__ = [
    "FAMILIES",
    "REFUSED",
    "UNIFORM",
    "WRAPPERS",
    "Family",
    "Form",
    "LabelRope",
    "LayerPattern",
    "Origin",
    "Position",
    "find_family",
]


def _placed(row: Family) -> Family:
    """The row as it is read: any language model may stand inside a wrapper, whose paths come first."""
    return msgspec.structs.replace(
        row,
        config_paths=tuple(dict.fromkeys((*TEXT_PATHS, *row.config_paths))),
        nested_sizes=row.nested_sizes or SIZES.get(row.name, row.nested_sizes),
    )


_TYPED: Final = tuple(
    _placed(row) for row in (*established.ROWS, *flat.ROWS, *layered.ROWS, *multimodal.ROWS, *without_rope.ROWS)
)
_ROWS: Final = (*_TYPED, *(_placed(row) for row in variants.ROWS))

#: The rows by family name.
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}
)

#: Why a model type isn't extended.
REFUSED: Final[Mapping[str, str]] = MappingProxyType({**refused.REFUSED, **layered.REFUSED})

_BY_MODEL_TYPE: Final = {model_type: row for row in _TYPED for model_type in row.model_types}


def find_family(config: Mapping[str, Any], *, treat_as: str | None = None) -> Family:
    """The row for a config.json by its ``model_type``, or the one that the user names with ``treat_as``.

    A wrapper's language model counts, by the model type of its own config. Raises :class:`RefusedError`
    for a model type that isn't extended, with the reason, and for one without a row, with the nearest names.
    """
    if treat_as is not None:
        return _named(treat_as)
    inner = inner_config(config)
    outer, text = str(config.get("model_type")), config if inner is None else inner
    model_type = inner_model_type(outer, inner) if outer in WRAPPERS else outer
    own = own_row(outer, model_type)
    if own is not None:
        return FAMILIES[own]
    reason = REFUSED.get(model_type)
    if reason is not None:
        raise RefusedError(
            f"models of the type {model_type!r} aren't extended: {reason}",
            code="refused-family",
            file="config.json",
            key="model_type",
            found=repr(model_type),
            hint="if the rope is read as in a family that 'ctxextend families' lists all the same: --family NAME",
        )
    row = _BY_MODEL_TYPE.get(model_type)
    if row is None:
        raise _unknown(model_type if outer in WRAPPERS else config.get("model_type"))
    return _variant(row, text)


def _variant(row: Family, text: Mapping[str, Any]) -> Family:
    """The row that a language model's own values call for."""
    for variant in variants.VARIANTS:
        if variant.family == row.name and variant.applies(text):
            if variant.use is not None:
                return FAMILIES[variant.use]
            if variant.without_rope:
                return msgspec.structs.replace(row, position="none")
            return msgspec.structs.replace(row, refusal=variant.refusal)
    return row


def _unknown(model_type: object) -> RefusedError:
    near = nearest(str(model_type), _BY_MODEL_TYPE)
    return RefusedError(
        f"nothing is known of the model type {model_type!r}",
        code="unknown-family",
        file="config.json",
        key="model_type",
        expected="a model type that 'ctxextend families' lists",
        found=repr(model_type),
        hint=(f"the nearest are {', '.join(near)}; " if near else "")
        + "if its rope is read as in one of them: --family NAME",
    )


def _named(name: str) -> Family:
    row = FAMILIES.get(name) or _BY_MODEL_TYPE.get(name)
    if row is None:
        raise UnknownNameError("family", name, FAMILIES)
    return row
