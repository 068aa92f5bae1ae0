"""What a config.json means: the rope of each group of layers, as current transformers reads it.

Where a config contradicts itself, the reading is transformers' own and a note says so. Other readers
are the runtimes' business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from ctxextend.contents import Note
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.families import Family
from ctxextend.formats.hf_labels import label_head_dim, label_settings
from ctxextend.formats.hf_layers import FULL, SLIDING, layer_labels, whole_number, window_of
from ctxextend.formats.json_edit import Edit
from ctxextend.formats.rope_keys import STILL_FROM, TYPES, type_of
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Dynamic, Linear, Llama3, LongRope, Scaling, Yarn

_ORIGINAL: Final = "original_max_position_embeddings"

#: Keys of a language model that do nothing where its settings stand in a config of their own.
_ROPE_KEYS: Final = ("rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings")


class RopeGroup(Struct, frozen=True, kw_only=True):
    """Layers that share a rope. ``spec`` is None for layers without one; ``window`` counts tokens.

    ``settings`` is the dictionary that the scaling was read from.
    """

    label: str
    layers: tuple[int, ...]
    spec: RopeSpec | None
    scaling: Scaling | None
    settings: Mapping[str, Any]
    window: int | None = None


class HfRope(Struct, frozen=True, kw_only=True):
    """The rope of a whole config: where its settings stand, its groups, and the length it states."""

    path: tuple[str, ...]
    text: Mapping[str, Any]
    groups: tuple[RopeGroup, ...]
    max_position_embeddings: int
    notes: tuple[Note, ...]


def text_config(config: Mapping[str, Any], family: Family) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Where the language model's settings stand, and what stands there."""
    for path in family.config_paths:
        node: Any = config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and (not path or any(key in node for key, _times in family.layer_counts)):
            return path, node
        if isinstance(node, dict) and family.nested_sizes and not any(key in config for key, _ in family.layer_counts):
            return path, {**family.nested_sizes, **node}
    return (), dict(config)


def read_rope(config: Mapping[str, Any], family: Family) -> HfRope:
    """The rope of ``config``. Raises :class:`CheckpointError` for values that can't be, naming the key."""
    path, text = text_config(config, family)
    length = whole_number(text, "max_position_embeddings") or whole_number(text, family.length_key)
    length = length or family.max_position_embeddings
    if length is None:
        raise CheckpointError(
            "the config doesn't say how long its context is",
            code="broken-config",
            file="config.json",
            key=".".join((*path, "max_position_embeddings")),
            expected="a number of tokens",
            found="none",
            hint="add max_position_embeddings as the model's publisher states it",
        )
    labels = layer_labels(text, family)
    window = window_of(text, family)
    notes = [*_contradictions(text, family), *_lost(config, family), *_beside(config, path, text)]
    groups = []
    for label in dict.fromkeys(labels):
        layers = tuple(i for i, other in enumerate(labels) if other == label)
        plain = label in family.unrotated and not family.labels
        settings = None if plain else _settings_of(text, family, label)
        if settings is None:
            groups.append(RopeGroup(label=label, layers=layers, spec=None, scaling=None, settings={}))
            continue
        spec, scaling, found = parse(text, family, settings, length=length, path=path, label=label)
        notes += [note for note in found if note not in notes]
        groups.append(
            RopeGroup(
                label=label,
                layers=layers,
                spec=spec,
                scaling=scaling,
                settings=settings,
                window=None if label in family.unwindowed else window,
            )
        )
    return HfRope(path=path, text=text, groups=tuple(groups), max_position_embeddings=length, notes=tuple(notes))


def lost_theta(config: Mapping[str, Any], family: Family) -> Edit | None:
    """The edit that brings back a base which stands in rope_parameters alone, hidden by a rope_scaling beside it.

    transformers 5 takes ``rope_scaling or rope_parameters``, then the top level's base, then its own default:
    a scaling added by hand to what it saved itself loses the base. None where nothing is lost.
    """
    path, text = text_config(config, family)
    older, newer = _dictionary(text, "rope_scaling"), _dictionary(text, "rope_parameters")
    key = family.theta_keys[0]
    if family.labels or family.form == "nested" or not older or not newer or key in text or "rope_theta" in older:
        return None
    theta = newer.get("rope_theta")
    return None if theta is None else Edit(path=(*path, key), value=theta)


def settings_for(text: Mapping[str, Any], family: Family, label: str) -> dict[str, Any]:
    """One label's dictionary of rope settings with its ``rope_theta`` in it, as transformers 5 merges them."""
    return _settings_of(text, family, label) or {}


def _settings_of(text: Mapping[str, Any], family: Family, label: str) -> dict[str, Any] | None:
    """As :func:`settings_for`; None for a label that config.json gives no rope."""
    older, newer = _dictionary(text, "rope_scaling"), _dictionary(text, "rope_parameters")
    if family.labels:
        if label in family.unrotated and label not in family.labels:
            return None
        return label_settings(text, family, label, older=older, newer=newer)
    if family.form == "nested":
        return _nested_settings(text, family, label, older, newer)
    settings = dict(older or newer or family.default_scaling or {})
    inner = next((settings[key] for key in (label, FULL) if isinstance(settings.get(key), dict)), None)
    settings = settings if inner is None else dict(inner)
    settings.setdefault("rope_theta", _first(text, family.theta_keys[:1], family.rope_theta))
    return _with_alpha(text, family, settings) if family.static_alpha and settings.get("alpha") else settings


def _with_alpha(text: Mapping[str, Any], family: Family, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A fixed alpha's base: a plain rope (5.23, modeling_hunyuan_v1_dense.py, compute_ntk_alpha_rope_parameters)."""
    if type_of(settings) != "dynamic":
        return dict(settings)
    reader = _Settings(settings, "rope_scaling")
    dim = head_dim_of(text, family)
    theta = reader.number("rope_theta") * reader.number("alpha") ** (dim / (dim - 2))
    kept = {key: value for key, value in settings.items() if key not in ("alpha", "factor", "type")}
    return {**kept, "rope_type": "default", "rope_theta": theta}


def _nested_settings(
    text: Mapping[str, Any],
    family: Family,
    label: str,
    older: Mapping[str, Any] | None,
    newer: Mapping[str, Any] | None,
) -> dict[str, Any]:
    settings = dict((newer or {}).get(label) or {"rope_type": "default"})
    if label == SLIDING:
        local = family.local_rope_theta
        if family.local_theta_key is not None:
            local = text.get(family.local_theta_key, local)
        settings.setdefault("rope_theta", local)
        return settings
    settings.update(older or {})
    settings.setdefault("rope_theta", _first(text, family.theta_keys[:1], family.rope_theta))
    return settings


def parse(
    text: Mapping[str, Any],
    family: Family,
    settings: Mapping[str, Any],
    *,
    length: int,
    path: tuple[str, ...] = (),
    label: str | None = None,
) -> tuple[RopeSpec, Scaling | None, tuple[Note, ...]]:
    """Geometry and scaling of one dictionary of settings, with notes on what it leaves open.

    ``label``: whose settings they are, where a family's labels differ in the size of a head.
    """
    where = ".".join((*path, "rope_scaling" if _dictionary(text, "rope_scaling") else "rope_parameters"))
    rope_type = type_of(settings)
    if rope_type not in TYPES:
        raise RefusedError(
            f"the rope type {rope_type!r} isn't known",
            code="unknown-rope-type",
            file="config.json",
            key=f"{where}.rope_type",
            expected=", ".join(TYPES),
            found=repr(rope_type),
            hint="if it is another name for one of these, write that name into config.json",
        )
    by_class = family.original_max_position_embeddings is not None and _ORIGINAL not in text
    if by_class:
        text = {_ORIGINAL: family.original_max_position_embeddings, **text}
    if family.form == "nested":
        # 5.23, modeling_rope_utils.py, standardize_rope_params: the top level's counts for flat settings alone.
        text = {key: value for key, value in text.items() if key != _ORIGINAL}
    head_dim = label_head_dim(text, family, label) or head_dim_of(text, family)
    spec = _spec(text, family, settings, proportional=rope_type == "proportional", path=path, head_dim=head_dim)
    reader = _Settings(settings, where)
    try:
        scaling, notes = _scaling(rope_type, reader, text, length=length)
    except (ArithmeticError, ValueError) as error:
        raise CheckpointError(
            f"the rope settings can't be: {error}",
            code="broken-config",
            file="config.json",
            key=where,
            found=str({k: v for k, v in settings.items() if not isinstance(v, list)}),
            hint="compare them with the publisher's config.json",
        ) from error
    if isinstance(scaling, LongRope):
        spec, scaling = _standing_still(spec, scaling)
    if isinstance(scaling, LongRope) and len(scaling.long_factor) != len(spec.inv_freq()):
        raise CheckpointError(
            "a longrope list doesn't have one number a pair",
            code="broken-config",
            file="config.json",
            key=f"{where}.long_factor",
            expected=f"{len(spec.inv_freq())} numbers (half the rotary dimension {spec.rotary_dim})",
            found=f"{len(scaling.long_factor)}",
        )
    return spec, scaling, notes


def _standing_still(spec: RopeSpec, scaling: LongRope) -> tuple[RopeSpec, LongRope]:
    """A longrope that holds the last pairs of whole heads still is one over a proportional rope."""
    turning = [factor < STILL_FROM for factor in scaling.long_factor]
    count = sum(turning)
    alike = turning == [factor < STILL_FROM for factor in scaling.short_factor]
    if count == len(turning) or not count or not alike or not all(turning[:count]) or spec.rotary_dim != spec.head_dim:
        return spec, scaling
    ones = (1.0,) * (len(turning) - count)
    return (
        msgspec.structs.replace(spec, layout="proportional", rotary_dim=2 * count),
        msgspec.structs.replace(
            scaling,
            short_factor=(*scaling.short_factor[:count], *ones),
            long_factor=(*scaling.long_factor[:count], *ones),
        ),
    )


def _spec(
    text: Mapping[str, Any],
    family: Family,
    settings: Mapping[str, Any],
    *,
    proportional: bool,
    path: tuple[str, ...],
    head_dim: int,
) -> RopeSpec:
    partial, theta = partial_rotary_factor(text, family, settings), settings["rope_theta"]
    try:
        return RopeSpec(
            # transformers keeps a string as it is, and fails on it later.
            rope_theta=math.nan if isinstance(theta, str | bool) else float(theta),
            head_dim=head_dim,
            rotary_dim=2 * int(partial * head_dim // 2) if proportional else int(head_dim * partial),
            layout="proportional" if proportional else "leading",
            pairing="half" if text.get(family.interleave_key or "") is False else family.pairing,
            softmax_mscale=family.softmax_mscale,
        )
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the rope's geometry can't be: {error}",
            code="broken-config",
            file="config.json",
            key=".".join((*path, "rope_theta")) if isinstance(theta, str | bool) else None,
            found=f"rope_theta {theta!r}, head_dim {head_dim}, partial rotary factor {partial!r}",
            hint="compare these values with the publisher's config.json",
        ) from error


def partial_rotary_factor(text: Mapping[str, Any], family: Family, settings: Mapping[str, Any]) -> Any:
    """The share of a head that is rotated: inside the settings, at the top level, or the family's default."""
    inside = settings.get("partial_rotary_factor")
    if family.labels:
        read = bool(family.partial_rotary_keys) or type_of(settings) == "proportional"
        return inside if inside is not None and read else 1.0
    if inside is not None and (family.partial_rotary_keys or type_of(settings) == "proportional"):
        return inside
    return _first(text, family.partial_rotary_keys, family.partial_rotary_factor)


def head_dim_of(text: Mapping[str, Any], family: Family) -> int:
    """Dimensions a head that a rope can turn: the family's key, its default, or hidden size by heads."""
    stated = whole_number(text, family.head_dim_key) or family.head_dim
    if stated:
        return stated
    hidden = whole_number(text, "hidden_size", required=True)
    heads = whole_number(text, "num_attention_heads", required=True)
    if not hidden or not heads or hidden % heads:
        raise CheckpointError(
            "the size of a head can't be worked out",
            code="broken-config",
            file="config.json",
            key=family.head_dim_key,
            expected="a hidden_size that num_attention_heads divides",
            found=f"{hidden} and {heads}",
        )
    return hidden // heads


class _Settings:
    """Numbers of a settings dictionary, with the key's name in every complaint."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def number(self, key: str) -> float:
        value = self.optional(key)
        if value is None:
            raise self._bad(key, "a number")
        return value

    def optional(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(key, "a number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(type(v) in (int, float) for v in value):
            raise self._bad(key, "a list of numbers")
        return tuple(float(v) for v in value)

    def _bad(self, key: str, expected: str) -> CheckpointError:
        found = self.values.get(key)
        return CheckpointError(
            "a rope setting can't be read",
            code="broken-config",
            file="config.json",
            key=f"{self.where}.{key}",
            expected=expected,
            found="none" if found is None else repr(found)[:80],
            hint="compare it with the publisher's config.json",
        )


def _scaling(
    rope_type: str, settings: _Settings, text: Mapping[str, Any], *, length: int
) -> tuple[Scaling | None, tuple[Note, ...]]:
    match rope_type:
        case "linear":
            return Linear(factor=settings.number("factor")), ()
        case "proportional":
            factor = settings.optional("factor") or 1.0
            return (Linear(factor=factor) if factor != 1.0 else None), ()
        case "dynamic":
            return Dynamic(factor=settings.number("factor"), original_max_position_embeddings=length), ()
        case "yarn":
            return _yarn(settings, text, length)
        case "llama3":
            original, notes = _original(settings, text, length)
            return (
                Llama3(
                    factor=settings.number("factor"),
                    low_freq_factor=settings.number("low_freq_factor"),
                    high_freq_factor=settings.number("high_freq_factor"),
                    original_max_position_embeddings=original,
                ),
                notes,
            )
        case "longrope":
            return _longrope(settings, text, length)
        case _:
            return None, ()


def _yarn(settings: _Settings, text: Mapping[str, Any], length: int) -> tuple[Yarn, tuple[Note, ...]]:
    original, notes = _original(settings, text, length)
    if original <= 0:
        raise ValueError(f"original_max_position_embeddings must be positive, found {original}")
    factor = settings.optional("factor")
    truncate = settings.values.get("truncate", True)
    return (
        Yarn(
            factor=length / original if factor is None else factor,
            original_max_position_embeddings=original,
            beta_fast=settings.optional("beta_fast") or 32.0,
            beta_slow=settings.optional("beta_slow") or 1.0,
            attention_factor=settings.optional("attention_factor"),
            mscale=settings.optional("mscale"),
            mscale_all_dim=settings.optional("mscale_all_dim"),
            truncate=truncate if isinstance(truncate, bool) else True,
        ),
        notes,
    )


def _longrope(settings: _Settings, text: Mapping[str, Any], length: int) -> tuple[LongRope, tuple[Note, ...]]:
    original, notes = _original(settings, text, length)
    if original <= 0:
        raise ValueError(f"original_max_position_embeddings must be positive, found {original}")
    factor = settings.optional("factor")
    return (
        LongRope(
            short_factor=settings.numbers("short_factor"),
            long_factor=settings.numbers("long_factor"),
            original_max_position_embeddings=original,
            factor=length / original if factor is None else factor,
            attention_factor=settings.optional("attention_factor"),
            mscale_all_dim=settings.optional("mscale_all_dim"),
        ),
        notes,
    )


def _original(settings: _Settings, text: Mapping[str, Any], length: int) -> tuple[int, tuple[Note, ...]]:
    """The original length: the top level's wins over the dictionary's, and the stated length stands in."""
    key = _ORIGINAL
    inside, outside = settings.optional(key), text.get(key)
    if isinstance(outside, int) and not isinstance(outside, bool):
        if inside is not None and int(inside) != outside:
            return outside, (
                Note(
                    code="original-length-twice",
                    message=f"{key} is {outside} at the top level and {int(inside)} in {settings.where}; "
                    "transformers 5, vLLM and SGLang take the top level's",
                ),
            )
        return outside, ()
    if inside is None:
        return length, (
            Note(
                code="original-length-missing",
                message=f"{settings.where} has no {key}: readers take max_position_embeddings ({length}) "
                "for it, which is wrong once that was raised",
            ),
        )
    return int(inside), ()


def _misplaced(
    text: Mapping[str, Any],
    family: Family,
    older: Mapping[str, Any] | None,
    newer: Mapping[str, Any] | None,
) -> Iterator[Note]:
    """Settings that stand where this family's code doesn't want them."""
    places = [d for d in (text, older, newer) if d and d.get("partial_rotary_factor") not in (None, 1.0)]
    proportional = any(d and type_of(d) == "proportional" for d in (older, newer))
    own = "partial_rotary_factor" in family.kept_keys or bool(family.labels)
    if places and not family.partial_rotary_keys and not proportional and not own:
        yield Note(
            code="stray-partial-rotary",
            message="partial_rotary_factor does not belong to this family: transformers ignores it for a plain "
            "rope and breaks on it for a scaled one; convert takes it out",
        )
    for name, settings in (("rope_scaling", older), ("rope_parameters", newer)):
        if settings and family.form != "nested" and isinstance(settings.get(FULL), dict):
            yield Note(
                code="nested-for-flat",
                message=f"{name} holds one dictionary a layer type, but this family reads one for all its layers: "
                "transformers 5 fails on it; convert writes it flat",
            )


def _contradictions(text: Mapping[str, Any], family: Family) -> tuple[Note, ...]:
    """Notes on settings that stand twice and differ, or where nobody of this family looks for them."""
    older, newer = _dictionary(text, "rope_scaling"), _dictionary(text, "rope_parameters")
    return (
        *_misplaced(text, family, older, newer),
        *_twice(text, family, older, newer),
        *_out_of_sight(text, family, older, newer),
        *_mistyped(text, older, newer),
    )


def _twice(
    text: Mapping[str, Any], family: Family, older: Mapping[str, Any] | None, newer: Mapping[str, Any] | None
) -> Iterator[Note]:
    """Settings that stand twice and differ; of a rope a layer type, those of full attention."""
    if family.labels:
        return
    beside = newer
    if family.form == "nested":
        inner = (newer or {}).get(FULL)
        beside = inner if isinstance(inner, dict) else None
    if older and beside:
        a, b = ({k: v for k, v in d.items() if k not in ("type", "rope_theta")} for d in (older, beside))
        a["rope_type"], b["rope_type"] = type_of(older), type_of(beside)
        if a != b:
            yield Note(
                code="both-dictionaries",
                message="rope_scaling and rope_parameters differ; transformers takes rope_scaling, "
                "some MLX-LM models and converters take the other",
            )
    key = family.theta_keys[0]
    places = {key: text.get(key)}
    for name, node in (("rope_scaling", older), ("rope_parameters", beside)):
        places[f"{name}.rope_theta"] = node.get("rope_theta") if node else None
    stated = {where: value for where, value in places.items() if type(value) in (int, float)}
    if len(set(stated.values())) > 1:
        said = ", ".join(f"{value} in {where}" for where, value in stated.items())
        yield Note(code="theta-twice", message=f"the base stands twice and differs: {said}")


def _out_of_sight(
    text: Mapping[str, Any], family: Family, older: Mapping[str, Any] | None, newer: Mapping[str, Any] | None
) -> Iterator[Note]:
    """Settings in a form that some readers, or all, pass over."""
    if newer and not older and "rope_theta" not in text and family.form == "flat":
        yield Note(
            code="new-form-only",
            message="the rope stands in rope_parameters alone: transformers 4 and most of MLX-LM's models "
            "don't look there and fall back to a theta of 10000; what convert writes holds both forms",
        )
    if newer and family.form == "nested" and any(key in newer for key in ("rope_type", "type", "factor")):
        yield Note(
            code="flat-for-nested",
            message="rope_parameters is flat, but this family reads one dictionary a layer type in it: "
            "transformers 5 falls back to its defaults",
        )
    if older and type_of(older) != "default" and family.labels and family.older_scaling == "ignored":
        yield Note(
            code="ignored-scaling",
            message="rope_scaling does nothing in this family: its class reads rope_parameters by layer type alone",
        )


def _mistyped(
    text: Mapping[str, Any], older: Mapping[str, Any] | None, newer: Mapping[str, Any] | None
) -> Iterator[Note]:
    """Numbers of a type that some readers fail on."""
    if isinstance(text.get("max_position_embeddings"), float):
        yield Note(
            code="float-length",
            message="max_position_embeddings is a float: transformers 5 refuses it; convert writes a whole number",
        )
    for settings in (older, newer):
        if settings and type_of(settings) == "linear" and type(settings.get("factor")) is int:
            yield Note(
                code="integer-factor",
                message=f"factor is the integer {settings['factor']}: vLLM and SGLang fail on it; it must be a float",
            )


def _lost(config: Mapping[str, Any], family: Family) -> Iterator[Note]:
    lost = lost_theta(config, family)
    if lost is not None:
        yield Note(
            code="theta-lost",
            message=f"the base {lost.value} stands in rope_parameters alone, which rope_scaling hides: transformers 5, "
            f"vLLM and SGLang fall back to {family.rope_theta:g}",
        )


def _beside(config: Mapping[str, Any], path: tuple[str, ...], text: Mapping[str, Any]) -> tuple[Note, ...]:
    """A note on settings at the top level that nobody reads, because the language model has its own config.

    Copies that say the same do no harm.
    """
    idle = [key for key in _ROPE_KEYS if path and config.get(key) is not None and config[key] != text.get(key)]
    if not idle:
        return ()
    return (
        Note(
            code="flat-beside-nested",
            message=f"{', '.join(idle)} at the top level does nothing: the language model reads {'.'.join(path)}",
        ),
    )


def _dictionary(text: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = text.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CheckpointError(
            "a rope setting can't be read",
            code="broken-config",
            file="config.json",
            key=key,
            expected="an object",
            found=type(value).__name__,
        )
    return value or None


def _first(text: Mapping[str, Any], keys: tuple[str, ...], default: float) -> Any:
    return next((text[key] for key in keys if text.get(key) is not None), default)
