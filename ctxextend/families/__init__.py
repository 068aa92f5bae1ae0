"""What is known of each model family: where its numbers stand in config.json, and what was trained in.

Data only: one frozen row a family, no behaviour. A key that isn't spelled out in a row doesn't exist
for that family; a model type without a row is refused. The defaults are those of the family's
configuration class in transformers 5.23, which apply when a published config leaves the key out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ctxextend.errors import RefusedError, UnknownNameError, nearest
from ctxextend.families import established
from ctxextend.families.row import UNIFORM, Family, Form, LayerPattern, Origin, Position

__all__ = ["FAMILIES", "UNIFORM", "Family", "Form", "LayerPattern", "Origin", "Position", "find_family"]

_ROWS: Final = (*established.ROWS,)

#: The rows by family name.
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}
)

_BY_MODEL_TYPE: Final = {model_type: row for row in _ROWS for model_type in row.model_types}


#: Wrappers around a language model of any kind: its own model type stands in text_config.
_WRAPPERS: Final = frozenset({"mistral3"})


def find_family(config: Mapping[str, Any], *, treat_as: str | None = None) -> Family:
    """The row for a config.json by its ``model_type``, or the one that the user names with ``treat_as``.

    Raises :class:`RefusedError` for a model type without a row, with the nearest names.
    """
    if treat_as is not None:
        return _named(treat_as)
    model_type = config.get("model_type")
    inner = config.get("text_config")
    if str(model_type) in _WRAPPERS and isinstance(inner, dict):
        model_type = inner.get("model_type")
    row = _BY_MODEL_TYPE.get(str(model_type))
    if row is None:
        near = nearest(str(model_type), _BY_MODEL_TYPE)
        raise RefusedError(
            f"nothing is known of the model type {model_type!r}",
            code="unknown-family",
            file="config.json",
            key="model_type",
            expected="a model type that 'ctxextend families' lists",
            found=repr(model_type),
            hint=(f"the nearest are {', '.join(near)}; " if near else "")
            + "if its rope is read as in one of them: --family NAME",
        )
    return row


def _named(name: str) -> Family:
    row = FAMILIES.get(name) or _BY_MODEL_TYPE.get(name)
    if row is None:
        raise UnknownNameError("family", name, FAMILIES)
    return row
