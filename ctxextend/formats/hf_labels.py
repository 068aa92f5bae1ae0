"""The dictionary of rope settings of each label, in families whose classes hold one a layer type.

Each class fills in, lays over and refuses in its own way; the rows say how (``Family.labels`` and the
fields beside it), and this is what their words do. Source: the configuration classes of transformers
5.23, their ``__post_init__`` and ``convert_rope_params_to_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ctxextend.errors import CheckpointError
from ctxextend.families import Family
from ctxextend.families.row import LabelRope
from ctxextend.formats.hf_layers import layer_labels
from ctxextend.formats.rope_keys import type_of

_Settings = Mapping[str, Any] | None

#: What a flat dictionary doesn't say of a label: these are the label's own.
_GEOMETRY: Final = ("rope_theta", "partial_rotary_factor")


def label_settings(
    text: Mapping[str, Any], family: Family, label: str, *, older: _Settings, newer: _Settings
) -> dict[str, Any] | None:
    """One label's settings with its base in them; None where config.json says that it has no rope.

    ``older`` and ``newer`` are rope_scaling and rope_parameters. Raises :class:`CheckpointError` for settings
    that the family's class fails on.
    """
    rope = family.labels.get(label)
    if rope is None:
        raise _unknown(family, label)
    older, newer = _in_force(family, older, newer)
    stated = _by_label(text, family, newer)
    if label in stated:
        settings = _stated(text, family, label, stated[label], rope)
    elif stated and family.incomplete == "fails":
        raise _broken(f"rope_parameters says nothing of {label}: transformers fails on it", f"rope_parameters.{label}")
    else:
        settings = _by_class(text, family, label, rope)
        if settings is not None and newer and family.older_scaling == "replaces" and label in family.flat_labels:
            flat = {key: value for key, value in newer.items() if key not in (*family.labels, *_GEOMETRY)}
            # A flat dictionary's older "type" is known before it is laid over the label's own.
            settings = {**settings, **family.flat_defaults, **flat, "rope_type": type_of(flat)}
    complete = family.older_scaling == "fills" and bool(stated)
    if older and settings is not None and label in family.flat_labels and not complete:
        settings.update(older)
    return settings


def _in_force(family: Family, older: _Settings, newer: _Settings) -> tuple[_Settings, _Settings]:
    """The two dictionaries as the class takes them."""
    match family.older_scaling:
        case "ignored":
            return None, newer
        case "replaces" if older:
            return None, older
        case "refused" if older:
            raise _broken(f"a {family.name} model's rope_scaling beside layer types can't be followed", "rope_scaling")
    return older, newer


def _by_label(text: Mapping[str, Any], family: Family, newer: _Settings) -> dict[str, Any]:
    """The dictionaries that stand under a label."""
    stated = {key: value for key, value in (newer or {}).items() if key in family.labels}
    for label, settings in stated.items():
        if settings is not None and not isinstance(settings, dict):
            raise _broken("a rope setting can't be read", f"rope_parameters.{label}", found=type(settings).__name__)
    if family.incomplete == "rebuilt":
        wanted = set(layer_labels(text, family)) - set(family.unrotated)
        return stated if all(isinstance(stated.get(key), dict) for key in wanted) else {}
    if newer and not stated and not family.flat_labels and family.incomplete == "fails":
        raise _broken(
            "rope_parameters is flat, but this family's class reads one dictionary a layer type: it fails on it",
            "rope_parameters",
        )
    return stated


def theta_place(text: Mapping[str, Any], family: Family, label: str) -> str | None:
    """The older key that states this label's base; None where there is none."""
    return next((key for key in family.labels[label].theta_keys if text.get(key) is not None), None)


def label_head_dim(text: Mapping[str, Any], family: Family, label: str | None) -> int | None:
    """What the layers of one label have for a head, where it isn't what all have."""
    rope = family.labels.get(label or "")
    stated = _of_layers(text, family, label, family.head_dim_key) if rope is not None else None
    if rope is None or stated is not None:
        return stated
    if rope.head_dim_key is not None and isinstance(text.get(rope.head_dim_key), int):
        return int(text[rope.head_dim_key])
    return rope.head_dim


def label_kv_heads(text: Mapping[str, Any], family: Family, label: str | None) -> int | None:
    """The KV heads of the layers of one label, where they aren't what all have."""
    rope = family.labels.get(label or "")
    stated = _of_layers(text, family, label, "num_key_value_heads") if rope is not None else None
    if rope is None or stated is not None:
        return stated
    if rope.kv_heads_switch_key is not None and text.get(rope.kv_heads_switch_key) is not True:
        return None
    if rope.kv_heads_key is not None and isinstance(text.get(rope.kv_heads_key), int):
        return int(text[rope.kv_heads_key])
    return rope.kv_heads


def _of_layers(text: Mapping[str, Any], family: Family, label: str | None, key: str) -> int | None:
    """A whole number that ``per_layer_config`` sets for the first layer of a label, as transformers 5 saves it."""
    layers = text.get("per_layer_config")
    if not isinstance(layers, dict) or label is None:
        return None
    index = next((i for i, other in enumerate(layer_labels(text, family)) if other == label), None)
    own = layers.get(str(index), layers.get(label))
    value = own.get(key) if isinstance(own, dict) else None
    return value if type(value) is int else None


def _stated(
    text: Mapping[str, Any], family: Family, label: str, settings: Any, rope: LabelRope
) -> dict[str, Any] | None:
    if settings is None:
        if label in family.unrotated:
            return None
        # The classes that fill in take null for nothing said; the others have no rope there.
        return _by_class(text, family, label, rope) if family.incomplete == "filled" else None
    own = dict(settings)
    if own.get("rope_theta") is None:
        if rope.unsaid_theta is None:
            raise _broken("a dictionary of rope settings has no base", f"rope_parameters.{label}.rope_theta")
        keys = (*rope.theta_keys, *family.theta_keys)
        theta = next((text[key] for key in keys if text.get(key) is not None), rope.unsaid_theta)
        own["rope_theta"] = _at(theta, text, family, label)
    if family.incomplete == "filled" and rope.partial_rotary_factor is not None:
        own.setdefault("partial_rotary_factor", rope.partial_rotary_factor)
    return own


def _by_class(text: Mapping[str, Any], family: Family, label: str, rope: LabelRope) -> dict[str, Any] | None:
    """What the class sets for a label of which config.json says nothing."""
    if label in family.unrotated:
        return None
    key = theta_place(text, family, label)
    settings: dict[str, Any] = {"rope_type": rope.rope_type}
    settings["rope_theta"] = rope.rope_theta if key is None else _at(text[key], text, family, label)
    share = next((text[key] for key in rope.partial_keys if text.get(key) is not None), None)
    if share is None and rope.partial_ratio is not None and text.get(rope.partial_ratio[0]) is not None:
        share = text[rope.partial_ratio[0]] / text.get(rope.partial_ratio[1], family.head_dim)
    if share is None:
        share = rope.partial_rotary_factor
    if share is not None:
        settings["partial_rotary_factor"] = _at(share, text, family, label)
    return settings


def _at(value: Any, text: Mapping[str, Any], family: Family, label: str) -> Any:
    """A number, or of a list with one a layer that of the label's first layer."""
    if not isinstance(value, list):
        return value
    labels = layer_labels(text, family)
    index = labels.index(label) if label in labels else 0
    return value[index] if index < len(value) else None


def _unknown(family: Family, label: str) -> CheckpointError:
    return _broken(
        f"a {family.name} model has no layers called {label}",
        "layer_types",
        expected=", ".join((*family.labels, *family.unrotated)),
        found=label,
    )


def _broken(message: str, key: str, *, expected: str | None = None, found: str | None = None) -> CheckpointError:
    return CheckpointError(
        message,
        code="broken-config",
        file="config.json",
        key=key,
        expected=expected,
        found=found,
        hint="compare it with the publisher's config.json",
    )
