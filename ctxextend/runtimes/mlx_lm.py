"""How MLX-LM reads a rope from config.json.

Source: 0.32.2, run on the CPU for the families that ``mlx_families`` has (tests/reference);
``models/rope_utils.py`` and the model files. It reads raw config.json: most of its models know the older
form alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_layers import FULL
from ctxextend.formats.hf_read import HfRope, RopeGroup, parse, read_rope
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.base import (
    ORIGINAL,
    Evidence,
    Reading,
    answered,
    null_original,
    ratio_temperature,
    serve_command,
    with_temperature,
    without_factor,
    yarn_pair_temperature,
)
from ctxextend.runtimes.engine_families import UNESTABLISHED
from ctxextend.runtimes.mlx_families import MODEL_TYPES, MODELS, MlxModel
from ctxextend.scaling import Dynamic, LongRope, Scaling, Yarn, table

_BOTH: Final = ("rope_scaling", "rope_parameters")
#: The original length that its yarn and its llama3 take where the settings have none (rope_utils.py:89-95, 148).
_DEFAULT_ORIGINAL: Final[Mapping[str, int]] = MappingProxyType({"yarn": 4096, "llama3": 8192})


class MlxLm:
    """0.32: the older form; no attention_factor; longrope always by its long list."""

    runtime: ClassVar[str] = "mlx-lm"
    versions: ClassVar[str] = ">=0.32"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        if not _has(config, family):
            return Reading(absent=True, problem="it has no such model")
        rope = read_rope(config, family)
        model = MODELS.get(family.name)
        if model is None:
            return UNESTABLISHED
        problem = model.broken or _missing(rope.text, model)
        if problem is not None:
            return Reading(problem=problem)
        if model.partial is not None and not any(key in rope.text for key in family.partial_rotary_keys):
            rope = msgspec.structs.replace(rope, text={**rope.text, family.partial_rotary_keys[0]: model.partial})
        tables, longest, liftable = {}, rope.max_position_embeddings, True
        for group in rope.groups:
            if group.spec is None:
                continue
            text, settings = _seen(rope, _settings(rope, group, family, model), family)
            spec, scaling, _notes = parse(
                text, family, settings, length=rope.max_position_embeddings, label=group.label
            )
            read = _group(rope, settings, spec, None if model.plain else scaling, family, model, length)
            if isinstance(read, str):
                return Reading(problem=read)
            tables[group.label] = read
            if isinstance(scaling, Dynamic | LongRope) and not model.plain:
                # The base starts to move there, and longrope's temperature is the ratio of the two lengths.
                liftable = False
            if isinstance(scaling, Dynamic) and not model.plain:
                # It enforces no length: the base follows it as far as the factor was meant for.
                longest = int(rope.max_position_embeddings * scaling.factor)
        return Reading(
            tables=tables,
            max_context=longest,
            liftable=liftable,
            how=("rope_theta and rope_scaling of config.json itself; no limit on the length",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """Its server has no flag for the length, and no limit."""
        return serve_command("mlx_lm.server", "--model", source, *reading.flags)


def _has(config: Mapping[str, Any], family: Family) -> bool:
    """Whether there is a file for the checkpoint's model type, a wrapper's included (utils.py, _get_classes)."""
    stated = config.get("model_type")
    return any(name in MODEL_TYPES for name in ((stated,) if isinstance(stated, str) else family.model_types))


def _missing(text: Mapping[str, Any], model: MlxModel) -> str | None:
    """Which key its model can't do without, if one is missing."""
    for key in model.needs:
        if key not in text:
            return f"its model of this family can't do without {key}"
    newer = text.get("rope_parameters")
    if model.form == "older_first" and "rope_theta" not in {**text, **(newer if isinstance(newer, dict) else {})}:
        return "its model of this family can't do without rope_theta"
    for name, needed in zip(_BOTH, (model.needs_in_scaling, model.needs_in_newer), strict=True):
        stated = text.get(name)
        missing = [key for key in needed if key not in stated] if isinstance(stated, dict) and stated else []
        if missing:
            return f"its model of this family fails on a {name} without {missing[0]}"
    return None


def _settings(rope: HfRope, group: RopeGroup, family: Family, model: MlxModel) -> dict[str, Any]:
    """The dictionary that this reader sees, with its base in it."""
    text = rope.text
    older, newer = (value if isinstance(value := text.get(key), dict) else {} for key in _BOTH)
    default = family.rope_theta if model.theta is None else model.theta
    top = text.get(family.theta_keys[0], default)
    match model.form:
        case "by_layer":
            own = newer.get(group.label)
            settings = _by_type(own if isinstance(own, dict) else group.settings, model)
            return {**settings, "rope_theta": settings.get("rope_theta", 10000.0)}
        case "newer":
            return {"rope_theta": default, **_by_type(newer, model)}
        case "older_first" if newer and not older:
            return {"rope_theta": top, **_by_type(newer, model)}
        case "newer_theta":
            return {**_by_type(older, model), "rope_theta": newer.get("rope_theta", top)}
        case _ if family.form == "nested" and group.label != FULL:
            local = text.get(model.local_theta_key or family.theta_keys[0])
            return {**_share(group, family), "rope_type": "default", "rope_theta": local or family.local_rope_theta}
        case _:
            return {**_share(group, family), **_by_type(older, model), "rope_theta": top}


def _share(group: RopeGroup, family: Family) -> dict[str, Any]:
    """The rotated share, where a family's labels state it outside of the dictionary."""
    share = group.settings.get("partial_rotary_factor") if family.labels else None
    return {} if share is None else {"partial_rotary_factor": share}


def _by_type(settings: Mapping[str, Any], model: MlxModel) -> dict[str, Any]:
    """The settings with the type that counts: ``type`` wins over ``rope_type`` (rope_utils.py:299)."""
    if settings.get("type") and not model.type_loses:
        return {**settings, "rope_type": settings["type"]}
    return dict(settings)


def _seen(rope: HfRope, settings: dict[str, Any], family: Family) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The config and the settings as its rope classes see them.

    The original length stands in the settings, or is a constant; Phi-3's alone stands at the top level.
    """
    if family.form == "phi3":
        return rope.text, settings
    default = _DEFAULT_ORIGINAL.get(type_of(settings))
    if default is not None:
        settings = {ORIGINAL: default, **settings}
    return {key: value for key, value in rope.text.items() if key != ORIGINAL}, settings


def _group(
    rope: HfRope,
    settings: Mapping[str, Any],
    spec: RopeSpec,
    scaling: Scaling | None,
    family: Family,
    model: MlxModel,
    length: int,
) -> RopeTable | str:
    if model.plain:
        return table(spec, None)
    rope_type = type_of(settings)
    if model.types is not None and rope_type not in model.types:
        return f"its model of this family doesn't read {rope_type}"
    problem = without_factor(settings) or null_original(settings, "llama3", "yarn")
    if problem is not None:
        return problem
    if isinstance(scaling, Yarn):
        rounded = msgspec.structs.replace(scaling, truncate=True)
        temperature = yarn_pair_temperature(scaling, both_needed=False)
        return table(spec, with_temperature(rounded, temperature), length=length)
    if isinstance(scaling, LongRope):
        return _longrope(rope, settings, spec, scaling, family)
    return table(spec, scaling, length=length)


def _longrope(
    rope: HfRope, settings: Mapping[str, Any], spec: RopeSpec, scaling: LongRope, family: Family
) -> RopeTable | str:
    if spec.pairing != "half":
        return "its longrope turns half-split pairs, and this family's are interleaved"
    original = rope.text.get(ORIGINAL, 4096) if family.form == "phi3" else settings.get(ORIGINAL)
    if type(original) is not int or original < 2:
        return f"its longrope fails without a whole {ORIGINAL}"
    temperature = ratio_temperature(rope.max_position_embeddings, original)
    long = msgspec.structs.replace(scaling, short_factor=scaling.long_factor)
    return table(spec, with_temperature(long, temperature))
