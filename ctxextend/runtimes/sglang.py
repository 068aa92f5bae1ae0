"""How SGLang reads a rope from config.json.

Source: the wheel of 0.5.23 with transformers 5.19.0, which it requires: ``layers/rotary_embedding/factory.py``, the
model files that ``sglang_families`` names and ``utils/hf_transformers/common.py`` (lengths). All of it was run on a
CPU (tests/reference/test_sglang.py): its own reading of the config, its class of each family and the rope of that
class, with kernels and the server's packages stood in for. Read alone are the command that serves, the code of
wrappers around a language model, and families whose checkpoints bring a configuration class that transformers 5.19
doesn't have (internlm3, iquestcoder).
"""

from __future__ import annotations

from collections.abc import Mapping
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
    number,
    ratio_temperature,
    serve_command,
    stated_length,
    tables_of,
    with_temperature,
    without_factor,
    yarn_pair_temperature,
)
from ctxextend.runtimes.engine_families import UNESTABLISHED, alpha_base, in_a_wrapper, weighs_the_ramp
from ctxextend.runtimes.latent import latent_table
from ctxextend.runtimes.sglang_families import (
    FAILS,
    FIXED_LENGTH,
    FIXED_THETA,
    INCOMPLETE,
    NEEDS_LABELS,
    NEEDS_MSCALES,
    NEEDS_SETTINGS,
    NEEDS_THETA,
    NEEDS_WRAPPER,
    NEWER_FIRST,
    OLDER_FORM,
    ROTARY_DIM,
    SHARED_HEADS,
    TOP_ORIGINAL,
    TOP_THETA,
    UNSCALED_SOFTMAX,
    WAYS,
    WHOLE_THETA,
    WRAPPERS_READ,
    Way,
)
from ctxextend.runtimes.transformers import Transformers5, unread_by_5
from ctxextend.scaling import Dynamic, LongRope, Rebase, Yarn, dynamic_theta, table

#: Keys that the classes of the older form don't read; Olmo 3's has no head_dim either (olmo2.py:100).
_NOT_OLDER: Final = frozenset({ORIGINAL, "rope_parameters"})
_NOT_OLMO3: Final = _NOT_OLDER | {"head_dim", "partial_rotary_factor"}
#: Types that transformers 5 gives an original length where the dictionary has none.
_COMPLETED: Final = ("llama3", "longrope", "yarn")

#: Ways whose code comes from transformers and reads the top level's original length when the model is built.
_READ_IT_AGAIN: Final = ("gemma3", "transformers")
#: Ways that look at no name of a type.
_TYPELESS: Final = ("gemma3", "latent", "plain")
_MSCALES: Final = ("short_mscale", "long_mscale")

_LENGTH_KEYS: Final = (
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "model_max_length",
    "max_position_embeddings",
)


class Sglang:
    """0.5: transformers 5's dictionary; no attention_factor; several families ignore scaling altogether."""

    runtime: ClassVar[str] = "sglang"
    versions: ClassVar[str] = ">=0.5"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        way = WAYS.get(family.name)
        if way == "absent":
            return Reading(absent=True, problem="it has no class for this family")
        if way == "fails":
            return Reading(problem=FAILS[family.name])
        rope = read_rope(config, family)
        if family.name in NEWER_FIRST and rope.text.get("rope_parameters"):
            rope = read_rope({key: value for key, value in rope.text.items() if key != "rope_scaling"}, family)
        if way is None or in_a_wrapper(config, WRAPPERS_READ):
            return UNESTABLISHED
        problem = _unread(rope, family, way)
        if problem is not None:
            return Reading(problem=problem)
        rope = _as_read(rope, family)
        if weighs_the_ramp(rope):
            return Reading(unknown="an extrapolation_factor weighs yarn's ramp there, which isn't worked out here")
        longest = _max_context(rope, family)
        if way == "transformers":
            reading = Transformers5().effective(config, family, length=length)
            # Transformers enforces no length; this server does.
            limited = msgspec.structs.replace(reading, max_context=longest, liftable=False)
            return limited if reading.tables else reading
        tables = tables_of(rope, lambda group: _group(rope, group, family, way, length))
        if isinstance(tables, str):
            return Reading(problem=tables)
        return Reading(
            tables=tables,
            max_context=longest,
            how=("transformers 5's rope_parameters; the first stated length, times the factor for some types",),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        refused = reading.max_context is not None and reading.max_context < length
        environment = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1" if refused else ""
        words = ("python", "-m", "sglang.launch_server", "--model-path", source, "--context-length", str(length))
        return serve_command(*words, *reading.flags, environment=environment)


def _unread(rope: HfRope, family: Family, way: Way) -> str | None:
    """Why the config doesn't load: its class is transformers 5's, but for a few families."""
    older, newer = rope.text.get("rope_scaling"), rope.text.get("rope_parameters")
    if family.name in NEEDS_WRAPPER and not rope.path:
        return "it fails on the language model's config without its wrapper's"
    if family.name in NEEDS_SETTINGS and not older and not newer:
        return "it fails without rope_parameters (rope_type default will do)"
    if way not in _TYPELESS and any(
        "su" in (group.settings.get("rope_type"), group.settings.get("type")) for group in rope.groups if group.spec
    ):
        return "it knows no rope type 'su'"
    if family.name not in OLDER_FORM:
        text = {key: value for key, value in rope.text.items() if key != ORIGINAL or way in _READ_IT_AGAIN}
        read = rope if family.form == "phi3" else msgspec.structs.replace(rope, text=text)
        return unread_by_5(read, family) or _flat_beside_older(rope, family) or _refused(rope, family)
    if isinstance(older, dict) and not {"rope_type", "type"} & set(older):
        return "it fails on a rope_scaling without a rope_type"
    if isinstance(newer, dict) and type_of(newer) in _COMPLETED:
        return f"its configuration class fails on rope_parameters of {type_of(newer)}: it reads rope_scaling alone"
    for group in rope.groups:
        problem = null_original(group.settings, *_COMPLETED)
        if problem is not None:
            return problem
    return _flat_beside_older(rope, family)


def _flat_beside_older(rope: HfRope, family: Family) -> str | None:
    older, newer = rope.text.get("rope_scaling"), rope.text.get("rope_parameters")
    if family.form == "nested" and older and newer and not (isinstance(newer, dict) and FULL in newer):
        return "it fails on a rope_scaling beside a rope_parameters without layer types"
    return None


def _refused(rope: HfRope, family: Family) -> str | None:
    """Why the settings fail in the validation of the configuration class, or in the model file after it."""
    newer = rope.text.get("rope_parameters")
    if family.name in NEEDS_THETA and isinstance(newer, dict) and newer and "rope_theta" not in newer:
        return "it fails on rope_parameters without a rope_theta"
    if family.name in NEEDS_LABELS and "rope_scaling" in rope.text and not (isinstance(newer, dict) and FULL in newer):
        return "it finds no settings of a layer type: it fails, or scales nothing"
    for group in rope.groups:
        rope_type = type_of(group.settings)
        if group.spec is None or rope_type == "default":
            continue
        if family.rope_types and not family.labels and rope_type not in family.rope_types:
            return f"its class takes no {rope_type}: only {', '.join(family.rope_types)}"
        if family.name in NEEDS_MSCALES and None in (number(group.settings, key) for key in _MSCALES):
            return f"its class fails on a {rope_type} without {' and '.join(_MSCALES)}"
    return None


def _as_read(rope: HfRope, family: Family) -> HfRope:
    """The rope as the family's configuration class has it, where that is one of its own."""
    theta: Any = None
    if family.name in OLDER_FORM:
        rope = _older_form(rope, family)
    elif family.name == "gemma3" and ORIGINAL in rope.text:
        rope = _with_top_original(rope, family)
    elif ORIGINAL in rope.text and not (family.name in TOP_ORIGINAL and rope.text[ORIGINAL]):
        rope = _without_top_original(rope, family)
    if family.name in TOP_THETA:
        theta = rope.text.get("rope_theta", TOP_THETA[family.name])
    theta = FIXED_THETA.get(family.name, theta)
    if theta is None:
        return rope
    groups = tuple(
        group
        if group.spec is None
        else msgspec.structs.replace(group, spec=msgspec.structs.replace(group.spec, rope_theta=float(theta)))
        for group in rope.groups
    )
    return msgspec.structs.replace(rope, groups=groups)


def _without_top_original(rope: HfRope, family: Family) -> HfRope:
    """The dictionary's own original length, or else the stated length: transformers 5 completes it before it knows
    the top level's, and looks again in its model classes alone.
    """
    text = {key: value for key, value in rope.text.items() if key != ORIGINAL}
    groups = []
    for group in rope.groups:
        scaled = group.spec is not None and type_of(group.settings) != "default"
        groups.append(_reread(rope, group, text, group.settings, family) if scaled else group)
    return msgspec.structs.replace(rope, groups=tuple(groups))


def _with_top_original(rope: HfRope, family: Family) -> HfRope:
    """The top level's original length in the settings of full attention, which the model file makes flat."""
    original = number(rope.text, ORIGINAL)
    if original is None:
        raise ValueError(f"{ORIGINAL} is null")
    groups = []
    for group in rope.groups:
        settings = {**group.settings, ORIGINAL: int(original)}
        full = group.label == FULL and group.spec is not None
        groups.append(_reread(rope, group, rope.text, settings, family) if full else group)
    return msgspec.structs.replace(rope, groups=tuple(groups))


def _reread(
    rope: HfRope, group: RopeGroup, text: Mapping[str, Any], settings: Mapping[str, Any], family: Family
) -> RopeGroup:
    spec, scaling, _notes = parse(text, family, settings, length=rope.max_position_embeddings, label=group.label)
    return msgspec.structs.replace(group, spec=spec, scaling=scaling, settings=settings)


def _older_form(rope: HfRope, family: Family) -> HfRope:
    """The older form alone, one base for all layers; in Olmo 3 the scaling is full attention's (olmo2.py:110-144).

    Nothing merges the top level's original length into the settings.
    """
    dropped = _NOT_OLMO3 if family.name == "olmo3" else _NOT_OLDER
    text = {key: value for key, value in rope.text.items() if key not in dropped}
    theta = text.get("rope_theta", OLDER_FORM[family.name])
    groups = []
    for group in rope.groups:
        if group.spec is None:
            groups.append(group)
            continue
        older = text.get("rope_scaling") if family.name != "olmo3" or group.label == FULL else None
        settings = {**(older or {"rope_type": "default"}), "rope_theta": theta}
        settings.pop("partial_rotary_factor", None)
        spec, scaling, _notes = parse(text, family, settings, length=rope.max_position_embeddings)
        groups.append(msgspec.structs.replace(group, spec=spec, scaling=scaling, settings=settings))
    return msgspec.structs.replace(rope, text=text, groups=tuple(groups))


def _gemma3(group: RopeGroup, length: int) -> RopeTable:
    """The functions of transformers on full attention's dictionary, with no length (gemma3_causal.py:415-443).

    So truncate counts, unlike in transformers, and longrope never leaves its short list. Dynamic is
    updated as there. Windowed layers are plain (gemma3_causal.py:596-601).
    """
    assert group.spec is not None
    scaling = group.scaling if group.label == FULL else None
    if isinstance(scaling, LongRope):
        scaling = msgspec.structs.replace(scaling, long_factor=scaling.short_factor)
    return table(group.spec, scaling, length=length)


def _rotated(rope: HfRope, spec: RopeSpec, family: Family) -> RopeSpec:
    """The geometry as the model file takes it."""
    if family.name in UNSCALED_SOFTMAX:
        return msgspec.structs.replace(spec, softmax_mscale=False)
    # Latent attention has a part of its heads for the rope, and turns all of it.
    rotary_dim: float | None = spec.head_dim if WAYS[family.name] == "latent" else None
    if family.name in ROTARY_DIM:
        rotary_dim = number(rope.text, "rotary_dim") or spec.head_dim
    share = number(rope.text, "partial_rotary_factor")
    if family.name in SHARED_HEADS and share is not None:
        rotary_dim = spec.head_dim * share
    return spec if rotary_dim is None else msgspec.structs.replace(spec, rotary_dim=int(rotary_dim))


def _group(rope: HfRope, group: RopeGroup, family: Family, way: Way, length: int) -> RopeTable | str:
    """One group's table, or why the engine fails on it."""
    assert group.spec is not None
    if way == "gemma3":
        return _gemma3(group, length)
    spec, rope_type = _rotated(rope, group.spec, family), type_of(group.settings)
    if family.name in WHOLE_THETA:
        spec = msgspec.structs.replace(spec, rope_theta=float(int(spec.rope_theta)))
    if way == "type_only":
        # Each class then takes a factor of 1; longrope's has no list to take.
        return "it gives its longrope no lists" if rope_type == "longrope" else table(spec, None)
    windowed = way == "full_only" and group.label != FULL
    if way == "plain" or windowed or rope_type in ("default", "proportional"):
        return table(spec, None)
    return without_factor(group.settings) or _scaled(rope, group, spec, family, way, length)


def _scaled(rope: HfRope, group: RopeGroup, spec: RopeSpec, family: Family, way: Way, length: int) -> RopeTable | str:
    settings, scaling, rope_type = group.settings, group.scaling, type_of(group.settings)
    if rope_type == "linear" and type(settings.get("factor")) is int:
        return "it fails on an integer factor"
    if way == "latent":
        return latent_table(msgspec.structs.replace(group, spec=spec), length=length, attn_factor=True)
    sectioned = way == "sections" and "mrope_section" in settings
    if sectioned and (rope_type != "yarn" or {"mscale", "mscale_all_dim"} & set(settings)):
        return f"its {rope_type} class fails on sections of positions (mrope_section) with these keys"
    if isinstance(scaling, Dynamic) and "alpha" in settings:
        return table(spec, alpha_base(spec, settings))
    if isinstance(scaling, Dynamic):
        # One base for every length: the one of the length that it derives itself.
        whole = int(rope.max_position_embeddings * scaling.factor)
        return table(spec, Rebase(rope_theta=dynamic_theta(spec, scaling, whole)))
    if isinstance(scaling, Yarn):
        temperature = yarn_pair_temperature(scaling, both_needed=True)
        temperature *= number(settings, "attn_factor") or 1.0
        return table(spec, with_temperature(scaling, temperature), length=length)
    if isinstance(scaling, LongRope):
        longest = rope.max_position_embeddings
        if family.name in FIXED_LENGTH:
            longest = rope.text.get(ORIGINAL, FIXED_LENGTH[family.name])
        return _longrope(longest, group, spec, scaling, way, length)
    return table(spec, scaling, length=length)


def _longrope(
    longest: int, group: RopeGroup, spec: RopeSpec, scaling: LongRope, way: Way, length: int
) -> RopeTable | str:
    if way == "interleaved" or (way == "sections" and spec.pairing == "interleaved"):
        return "its longrope takes half-split pairs only"
    original = scaling.original_max_position_embeddings
    own = number(group.settings, "long_mscale" if length > original else "short_mscale")
    by_lengths = ratio_temperature(longest, original)
    return table(spec, with_temperature(scaling, by_lengths if own is None else own), length=length)


def _max_context(rope: HfRope, family: Family) -> int:
    """The first stated length, times the factor of a flat dictionary (utils/hf_transformers/common.py:668-694).

    The dictionary is transformers 5's, which has an original length for the types that need one: those
    multiply nothing. A factor beside rope_type default does.
    """
    derived = stated_length(rope.text, _LENGTH_KEYS, rope.max_position_embeddings)
    assert derived is not None
    if family.form == "nested" and family.name not in OLDER_FORM:
        return derived
    settings = _whole_dictionary(rope, family)
    rope_type = type_of(settings)
    completed = rope_type in _COMPLETED and family.name not in INCOMPLETE
    if ORIGINAL in settings or completed or rope_type == "llama3":
        return derived
    return int(derived * (number(settings, "factor") or 1.0))


def _whole_dictionary(rope: HfRope, family: Family) -> Mapping[str, Any]:
    """The one dictionary that speaks for the whole model; empty where no layer has a rope."""
    if family.name in OLDER_FORM:
        return rope.text.get("rope_scaling") or {}
    return next((group.settings for group in rope.groups if group.spec is not None), {})
