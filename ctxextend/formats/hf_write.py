"""How a scaling can be written into config.json: the candidate encodings of one table, best first.

What is written holds the older form (``rope_theta``, ``rope_scaling``) and the newer one
(``rope_parameters``) with the same values, because transformers 4 and MLX-LM read only the first and
some models only the second. Which candidate is taken is decided by reading it back as each runtime would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, assert_never

import msgspec
from msgspec import UNSET, Struct

from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL, SLIDING, STATELESS
from ctxextend.formats.hf_read import HfRope, head_dim_of, partial_rotary_factor, settings_for
from ctxextend.formats.json_edit import Edit
from ctxextend.formats.rope_keys import FOREIGN, LENGTH_SYNONYMS, STILL, type_of
from ctxextend.rope import RopeSpec
from ctxextend.scaling import (
    Dynamic,
    Linear,
    Llama3,
    LongRope,
    Rebase,
    Scaling,
    Yarn,
    dynamic_theta,
    longrope_attention_factor,
    mscale,
    table,
)

#: A carrier's attention factor is this exact, relatively, or the carrier isn't taken.
CARRIER_TOLERANCE: Final = 1e-4

#: How far the stated length may be raised so that a carrier's temperature comes out exact.
LENGTH_SLACK: Final = 1.001

_ORIGINAL: Final = "original_max_position_embeddings"


class Written(Struct, frozen=True, kw_only=True):
    """One way to write a scaling: the settings dictionary, the base, and the lengths beside it.

    ``length`` is max_position_embeddings; ``top_level_original`` the original length at the top level,
    which is removed when None and there.
    """

    name: str
    settings: Mapping[str, Any]
    rope_theta: float
    length: int
    top_level_original: int | None = None


class Encoding(Struct, frozen=True, kw_only=True):
    """A candidate: its name and the edits of config.json that make it."""

    name: str
    edits: tuple[Edit, ...]


def encodings(
    config: Mapping[str, Any],
    family: Family,
    rope: HfRope,
    specs: Mapping[str, RopeSpec],
    scalings: Mapping[str, Scaling],
    *,
    target: int,
    carriers: str = "auto",
) -> Iterator[Encoding]:
    """The candidates for ``scalings``, by label of the layers they are meant for, best first.

    A flat family has one rope for all labels. ``carriers``: ``auto`` gives native forms and then
    carriers, ``native`` only the first, ``factors`` only the second. ``target`` counts tokens.
    """
    labels = list(scalings) if family.form == "nested" else list(scalings)[:1]
    forms = [
        [
            written
            for written in _candidates(family, rope, specs[label], scalings[label], target=target)
            if carriers == "auto" or written.name.startswith("longrope carrier") == (carriers == "factors")
        ]
        for label in labels
    ]
    for combination in itertools.product(*forms):
        names = dict.fromkeys(written.name for written in combination)
        edits = _edits(config, family, rope, dict(zip(labels, combination, strict=True)))
        yield Encoding(name=" and ".join(names), edits=edits)


def length_edits(config: Mapping[str, Any], rope: HfRope, length: int) -> tuple[Edit, ...]:
    """The edits that state another maximum length, with every synonym that is there."""
    edits = [Edit(path=(*rope.path, "max_position_embeddings"), value=length)]
    for path in dict.fromkeys((rope.path, ())):
        node = rope.text if path == rope.path else config
        if path != rope.path and type(node.get("max_position_embeddings")) is int:
            edits.append(Edit(path=("max_position_embeddings",), value=length))
        for key in LENGTH_SYNONYMS:
            if type(node.get(key)) is int and node[key] < length:
                edits.append(Edit(path=(*path, key), value=length))
    return tuple(edits)


def _candidates(family: Family, rope: HfRope, spec: RopeSpec, scaling: Scaling, *, target: int) -> Iterator[Written]:
    sections = any("mrope_section" in group.settings for group in rope.groups)
    for written in (
        *_native(spec, scaling, target=target, sections=sections),
        *_carriers(spec, scaling, target=target, phi3=family.form == "phi3"),
    ):
        rope_type = written.settings.get("rope_type", written.settings.get("type"))
        unread = family.rope_types is not None and rope_type not in (*family.rope_types, "default")
        if not unread and not _moves_query_scale(rope, written):
            yield written


def _moves_query_scale(rope: HfRope, written: Written) -> bool:
    """Whether a model that scales its queries by position over the original length would get another length."""
    for group in rope.groups:
        if "llama_4_scaling_beta" in group.settings:
            return bool(written.settings.get(_ORIGINAL) != group.settings.get(_ORIGINAL))
    return False


def _native(spec: RopeSpec, scaling: Scaling, *, target: int, sections: bool) -> Iterator[Written]:
    theta = spec.rope_theta
    default = "proportional" if spec.layout == "proportional" else "default"
    if default == "proportional" and isinstance(scaling, Yarn | Llama3):
        # Their functions spread the exponents over the rotated share: another geometry. A carrier can.
        return
    match scaling:
        case Rebase():
            yield Written(name="theta", settings={"rope_type": default}, rope_theta=scaling.rope_theta, length=target)
        case Linear():
            rope_type = "linear" if default == "default" else default
            yield Written(
                name="native",
                settings={"rope_type": rope_type, "factor": scaling.factor},
                rope_theta=scaling.rope_theta or theta,
                length=target,
            )
        case Dynamic():
            # Readers take max_position_embeddings for the trained length here: it must not be raised.
            native = Written(
                name="native",
                settings={"rope_type": "dynamic", "factor": scaling.factor},
                rope_theta=theta,
                length=scaling.original_max_position_embeddings,
            )
            yield from (native,) if default == "default" else ()
            yield Written(
                name="theta",
                settings={"rope_type": default},
                rope_theta=dynamic_theta(spec, scaling, target),
                length=target,
            )
        case Yarn():
            yield from _yarn(spec, scaling, target=target, sections=sections)
        case Llama3():
            settings = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                _ORIGINAL: scaling.original_max_position_embeddings,
            }
            yield Written(name="native", settings=settings, rope_theta=theta, length=target)
        case LongRope():
            if scaling.short_factor != scaling.long_factor:
                yield _longrope(spec, scaling, target)
        case _:
            assert_never(scaling)


def _yarn(spec: RopeSpec, scaling: Yarn, *, target: int, sections: bool) -> Iterator[Written]:
    settings: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": scaling.factor,
        _ORIGINAL: scaling.original_max_position_embeddings,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }
    if not scaling.truncate:
        settings["truncate"] = False
    attention = scaling.attention_factor
    if attention is not None:
        settings["attention_factor"] = attention
    if scaling.mscale is not None:
        settings["mscale"] = scaling.mscale
    if scaling.mscale_all_dim is not None:
        settings["mscale_all_dim"] = scaling.mscale_all_dim
    yield Written(name="native", settings=settings, rope_theta=spec.rope_theta, length=target)
    if attention is None or scaling.factor <= 1.0:
        return
    # The same temperature said in every key that some reader takes it from.
    usual = mscale(scaling.factor)
    if sections:
        said = {"attn_factor": attention / usual}
    elif attention == 1.0:
        weight = 1e-6 if spec.softmax_mscale else 1.0
        said = {"mscale": weight, "mscale_all_dim": weight}
    elif spec.softmax_mscale:
        return
    else:
        said = {"mscale": 10.0 * (attention - 1.0) / math.log(scaling.factor), "mscale_all_dim": 1e-9}
    if spec.softmax_mscale:
        # Beside latent attention vLLM takes an attention_factor of 1 for another type of scaling.
        settings = {key: value for key, value in settings.items() if key != "attention_factor"}
    yield Written(
        name="native, temperature in every key",
        settings={**settings, **said},
        rope_theta=spec.rope_theta,
        length=target,
    )


def _longrope(spec: RopeSpec, scaling: LongRope, target: int) -> Written:
    original = scaling.original_max_position_embeddings
    factor = target / original
    settings: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": _whole_head(spec, scaling.short_factor),
        "long_factor": _whole_head(spec, scaling.long_factor),
        _ORIGINAL: original,
        "factor": factor,
    }
    attention = table(spec, scaling).attention_factor
    if not math.isclose(attention, longrope_attention_factor(factor, original), rel_tol=1e-12):
        settings["attention_factor"] = attention
    return Written(
        name="native",
        settings=settings,
        rope_theta=spec.rope_theta,
        length=target,
        top_level_original=original,
    )


def _carriers(spec: RopeSpec, scaling: Scaling, *, target: int, phi3: bool) -> Iterator[Written]:
    """Longrope with two equal lists: it carries any table that doesn't change with the length."""
    if isinstance(scaling, Rebase):
        return
    if isinstance(scaling, LongRope) and scaling.short_factor != scaling.long_factor and not phi3:
        return
    goal = table(spec, scaling, length=target)
    factors = _whole_head(spec, goal.stretch(spec.inv_freq()))
    short = list(scaling.short_factor) if isinstance(scaling, LongRope) else factors
    if goal.softmax_factor != 1.0:
        yield _latent_carrier(spec, scaling, factors, target)
        return
    lengths = carrier_lengths(goal.attention_factor, target)
    if lengths is None:
        return
    length, original = lengths
    if phi3:
        settings: dict[str, Any] = {"type": "longrope", "short_factor": short, "long_factor": factors}
        name = "longrope carrier" if short == factors else "longrope carrier of the long list"
        yield Written(
            name=name,
            settings=settings,
            rope_theta=spec.rope_theta,
            length=length,
            top_level_original=original,
        )
        return
    settings = {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        _ORIGINAL: original,
        "factor": length / original,
        "attention_factor": goal.attention_factor,
    }
    carrier = Written(
        name="longrope carrier",
        settings=settings,
        rope_theta=spec.rope_theta,
        length=length,
        # vLLM takes a top-level original length for its default maximum.
        top_level_original=original if original == length else None,
    )
    yield carrier
    if carrier.top_level_original is None:
        # TGI and ExLlamaV2 look for it there alone; vLLM's users must then say the length themselves.
        name = "longrope carrier, original length at the top level"
        yield msgspec.structs.replace(carrier, name=name, top_level_original=original)


def _whole_head(spec: RopeSpec, factors: Sequence[float]) -> list[float]:
    """One number a pair: longrope's function turns whole heads, so pairs that stand still are held there."""
    turning = spec.rotary_dim // 2
    return [*factors[:turning], *[STILL] * (len(factors) - turning)]


def _latent_carrier(spec: RopeSpec, scaling: Scaling, factors: list[float], target: int) -> Written:
    """The carrier where the softmax has a factor of its own: only transformers reads it beside longrope."""
    goal = table(spec, scaling, length=target)
    original = target // 2
    factor = target / original
    settings = {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        _ORIGINAL: original,
        "factor": factor,
        "attention_factor": goal.attention_factor,
        "mscale_all_dim": 10.0 * (math.sqrt(goal.softmax_factor) - 1.0) / math.log(factor),
    }
    return Written(
        name="longrope carrier with a softmax factor",
        settings=settings,
        rope_theta=spec.rope_theta,
        length=target,
    )


def carrier_lengths(attention_factor: float, target: int) -> tuple[int, int] | None:
    """A stated and an original length from which readers compute ``attention_factor`` as ``sqrt(ln n / ln o)``.

    None where no pair gives it to :data:`CARRIER_TOLERANCE`: below 1, or for a short target, where
    whole numbers are too coarse. The stated length is raised by at most 0.1 % when that is needed.
    """
    if attention_factor == 1.0:
        return target, target
    if attention_factor < 1.0:
        return None
    for length in range(target, int(target * LENGTH_SLACK) + 1):
        original = round(length ** (1.0 / attention_factor**2))
        if original < 2:
            return None
        reached = longrope_attention_factor(length / original, original)
        if abs(reached / attention_factor - 1.0) <= CARRIER_TOLERANCE:
            return length, original
    return None


def _edits(config: Mapping[str, Any], family: Family, rope: HfRope, forms: Mapping[str, Written]) -> tuple[Edit, ...]:
    if family.labels:
        return _label_edits(config, family, rope, forms)
    if family.form == "nested":
        return _nested_edits(config, family, rope, forms)
    written = next(iter(forms.values()))
    settings = {**dict(written.settings), **_foreign(family, rope)}
    edits = [*length_edits(config, rope, written.length)]
    edits += _newer_form_alone(family, rope, written) if family.newer_form_only else ()
    edits += () if family.newer_form_only else _older_edits(family, rope, settings, written)
    edits.append(Edit(path=(*rope.path, "rope_parameters"), value=_newer(family, rope, settings, written)))
    edits += (*_original_edits(family, rope, written), *_partial_edits(family, rope))
    scaled = settings.get("rope_type") != "default"
    if family.needs_head_dim and scaled and rope.text.get("head_dim") is None:
        edits.append(Edit(path=(*rope.path, "head_dim"), value=head_dim_of(rope.text, family)))
    return tuple(edits)


def _nested_edits(
    config: Mapping[str, Any], family: Family, rope: HfRope, forms: Mapping[str, Written]
) -> tuple[Edit, ...]:
    """A rope a layer type: the older keys speak of full attention, and of the sliding layers' base."""
    newer = {label: settings_for(rope.text, family, label) for label in (FULL, SLIDING)}
    edits = list(length_edits(config, rope, max(written.length for written in forms.values())))
    for label, written in forms.items():
        newer[label] = _newer(family, rope, dict(written.settings), written)
        if label == FULL:
            edits += _older_edits(family, rope, dict(written.settings), written)
            edits += _original_edits(family, rope, written)
        elif family.local_theta_key is not None:
            theta = _as_stated(rope.text.get(family.local_theta_key), written.rope_theta)
            edits.append(Edit(path=(*rope.path, family.local_theta_key), value=theta))
    if FULL not in forms:
        # The newer form is complete, so the older one must say the same of the layers that stay.
        kept = {key: value for key, value in newer[FULL].items() if key != "rope_theta"}
        if kept != {"rope_type": "default"}:
            edits.append(Edit(path=(*rope.path, "rope_scaling"), value=kept))
    edits.append(Edit(path=(*rope.path, "rope_parameters"), value=newer))
    return tuple(edits)


def _label_edits(
    config: Mapping[str, Any], family: Family, rope: HfRope, forms: Mapping[str, Written]
) -> tuple[Edit, ...]:
    """A dictionary a label, all of them: a class that finds one doesn't add its own for the others."""
    stated = rope.text.get("rope_parameters")
    kept = stated if isinstance(stated, dict) else {}
    newer = {key: value for key, value in kept.items() if key in rope_labels(family, rope)}
    edits = list(length_edits(config, rope, max(written.length for written in forms.values())))
    for label in rope_labels(family, rope):
        if label in forms:
            newer[label] = _of_label(family, rope, label, forms[label])
            edits += _label_theta_edits(family, rope, label, forms[label])
        elif not isinstance(newer.get(label), dict) or rope.text.get("rope_scaling"):
            newer[label] = settings_for(rope.text, family, label) or None
    if rope.text.get("rope_scaling") is not None:
        full = forms.get(FULL)
        if family.older_scaling != "fills":
            # Beside a complete rope_parameters it does harm or nothing.
            edits.append(Edit(path=(*rope.path, "rope_scaling")))
        elif full is not None:
            edits.append(Edit(path=(*rope.path, "rope_scaling"), value=dict(full.settings)))
    if family.longrope_switch is not None and any(w.settings.get("rope_type") == "longrope" for w in forms.values()):
        edits.append(Edit(path=(*rope.path, family.longrope_switch), value=True))
    edits.append(Edit(path=(*rope.path, "rope_parameters"), value=newer))
    return tuple(edits)


def rope_labels(family: Family, rope: HfRope) -> tuple[str, ...]:
    """The labels that rope_parameters must hold: the family's, and those of layers that could have a rope."""
    used = (group.label for group in rope.groups if group.label not in STATELESS)
    return tuple(dict.fromkeys((*family.labels, *used)))


def _of_label(family: Family, rope: HfRope, label: str, written: Written) -> dict[str, Any]:
    before = settings_for(rope.text, family, label)
    kept = {key: before[key] for key in (*FOREIGN, *family.kept_keys) if key in before}
    if STILL in written.settings.get("long_factor", ()):
        # The list says which pairs turn; longrope would take the share for a smaller rotary dimension.
        kept.pop("partial_rotary_factor", None)
    theta = _as_stated(before.get("rope_theta"), written.rope_theta)
    return {**dict(written.settings), "rope_theta": theta, **kept}


def _label_theta_edits(family: Family, rope: HfRope, label: str, written: Written) -> Iterator[Edit]:
    """The base of a label where older readers look for it, if only this label's layers are meant there."""
    keys = family.labels[label].theta_keys
    key = next((key for key in keys if key in rope.text), None)
    shared = any(key in other.theta_keys for name, other in family.labels.items() if name != label)
    if (
        key is None
        and keys
        and not family.only_transformers_5
        and written.rope_theta != family.labels[label].rope_theta
    ):
        yield Edit(path=(*rope.path, keys[0]), value=written.rope_theta)
    elif key is not None and isinstance(rope.text[key], list):
        layers = {layer for group in rope.groups if group.label == label for layer in group.layers}
        entries = [_as_stated(v, written.rope_theta) if i in layers else v for i, v in enumerate(rope.text[key])]
        yield Edit(path=(*rope.path, key), value=entries)
    elif key is not None and not shared:
        yield Edit(path=(*rope.path, key), value=_as_stated(rope.text[key], written.rope_theta))


def _newer_form_alone(family: Family, rope: HfRope, written: Written) -> Iterator[Edit]:
    """Keys of the older form are kept true where they are there, and never added."""
    for key in family.theta_keys:
        if key in rope.text:
            yield Edit(path=(*rope.path, key), value=_as_stated(rope.text[key], written.rope_theta))
    if "rope_scaling" in rope.text:
        yield Edit(path=(*rope.path, "rope_scaling"))


def _older_edits(family: Family, rope: HfRope, settings: Mapping[str, Any], written: Written) -> Iterator[Edit]:
    for key in family.theta_keys:
        if key == family.theta_keys[0] or key in rope.text:
            theta = _as_stated(rope.text.get(key), written.rope_theta)
            yield Edit(path=(*rope.path, key), value=theta)
    if settings != {"rope_type": "default"}:
        two = family.older_form_of_two_keys and settings.get("rope_type") == "linear"
        older = {"type": "linear", "factor": settings["factor"]} if two else dict(settings)
        yield Edit(path=(*rope.path, "rope_scaling"), value=older)
    elif rope.text.get("rope_scaling", UNSET) is not UNSET:
        yield Edit(path=(*rope.path, "rope_scaling"), value=None)


def _newer(family: Family, rope: HfRope, settings: Mapping[str, Any], written: Written) -> dict[str, Any]:
    """The dictionary of transformers 5: the same settings with their base."""
    rope_type = settings.get("rope_type") or settings["type"]
    newer = {"rope_type": rope_type, **settings, "rope_theta": written.rope_theta}
    source = rope.text.get("rope_parameters")
    if family.partial_rotary_keys and isinstance(source, dict) and "partial_rotary_factor" in source:
        newer.setdefault("partial_rotary_factor", source["partial_rotary_factor"])
    return newer


def _foreign(family: Family, rope: HfRope) -> dict[str, Any]:
    """Keys of the source's dictionary that describe the model rather than its scaling."""
    kept: dict[str, Any] = {}
    for group in rope.groups:
        kept.update({key: group.settings[key] for key in (*FOREIGN, *family.kept_keys) if key in group.settings})
    proportional = any(group.spec is not None and group.spec.layout == "proportional" for group in rope.groups)
    older = rope.text.get("rope_scaling")
    stated = isinstance(older, dict) and "partial_rotary_factor" in older and bool(family.partial_rotary_keys)
    if not (proportional or stated or "partial_rotary_factor" in family.kept_keys):
        # Older readers know it at the top level alone.
        kept.pop("partial_rotary_factor", None)
    return kept


def _partial_edits(family: Family, rope: HfRope) -> Iterator[Edit]:
    """The rotated share at the top level, where older readers look for it; none where it doesn't belong."""
    key = "partial_rotary_factor"
    settings = next((group.settings for group in rope.groups if group.spec is not None), {})
    if not family.partial_rotary_keys:
        if key in rope.text and key not in family.kept_keys and type_of(settings) != "proportional":
            yield Edit(path=(*rope.path, key))
        return
    share = partial_rotary_factor(rope.text, family, settings)
    if share != family.partial_rotary_factor and not any(k in rope.text for k in family.partial_rotary_keys):
        yield Edit(path=(*rope.path, family.partial_rotary_keys[0]), value=share)


def _original_edits(family: Family, rope: HfRope, written: Written) -> Iterator[Edit]:
    original = _top_level_original(family, rope, written)
    if original is not None or _ORIGINAL in rope.text:
        yield Edit(path=(*rope.path, _ORIGINAL), value=UNSET if original is None else original)


def _top_level_original(family: Family, rope: HfRope, written: Written) -> int | None:
    if written.top_level_original is not None:
        return written.top_level_original
    if family.form == "phi3":
        # transformers 5 fills in 4096 where the key is missing: state the length itself.
        return written.length if _ORIGINAL in rope.text else None
    inside = written.settings.get(_ORIGINAL)
    if _ORIGINAL in rope.text and written.name.startswith("native"):
        return inside if isinstance(inside, int) else None
    return None


def _as_stated(before: Any, theta: float) -> Any:
    """The number as the config spells it where it doesn't change: 10000 stays 10000."""
    return before if before is not None and before == theta else theta
