"""The vocabulary of rope settings in config.json: spellings, and what each key does or doesn't do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ctxextend.contents import Note

#: Vendor spellings of a rope type, with the one that is written.
ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "su": "longrope",
        "deepseek_yarn": "yarn",
        # Qwen2-VL's first configs: sections of a plain rope, not a scaling.
        "mrope": "default",
    }
)

#: In a longrope list: a pair that stands still. Its angle stays below 1e-13 at a billion tokens, where a cosine is
#: exactly 1 and a sine vanishes beside it in every number format that attention is computed in; float32 holds its
#: product with any base's power.
STILL: Final = 1e24
#: From here on a factor of a longrope list is read so: nothing smaller than this was ever trained.
STILL_FROM: Final = 1e20

#: The rope types that are understood.
TYPES: Final = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "proportional")

#: Keys that say where a rope is, not how it is scaled: kept whatever is written.
FOREIGN: Final = (
    "mrope_section",
    "mrope_interleaved",
    "partial_rotary_factor",
    "llama_4_scaling_beta",
)

#: Other names under which a config repeats its maximum length.
LENGTH_SYNONYMS: Final = (
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
    "seq_len",
    "model_max_length",
    "max_target_positions",
)

#: What each key of a type does, as current transformers reads it.
_READ: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "default": {},
        "linear": {"factor": "divides every frequency"},
        "dynamic": {"factor": "sets how fast the base grows with the length past max_position_embeddings"},
        "yarn": {
            "factor": "divides the slow frequencies, and sets the attention temperature",
            "original_max_position_embeddings": "places the ramp between fast and slow frequencies",
            "beta_fast": "rotations above which a frequency is kept",
            "beta_slow": "rotations below which a frequency is divided",
            "attention_factor": "replaces the attention temperature; SGLang and MLX-LM don't read it",
            "mscale": "weighs the attention temperature, together with mscale_all_dim",
            "mscale_all_dim": "weighs the attention temperature, together with mscale",
            "truncate": "whether the ramp's bounds are rounded to whole pairs; MLX-LM always rounds",
        },
        "llama3": {
            "factor": "divides the long wavelengths",
            "low_freq_factor": "rotations below which a frequency is divided",
            "high_freq_factor": "rotations above which a frequency is kept",
            "original_max_position_embeddings": "the length that the rotations are counted over",
        },
        "longrope": {
            "short_factor": "divides the frequencies up to the original length",
            "long_factor": "divides the frequencies past the original length",
            "original_max_position_embeddings": "where the lists change over; also sets the temperature",
            "factor": "sets the attention temperature where attention_factor is missing",
            "attention_factor": "replaces the attention temperature; only transformers reads it",
        },
        "proportional": {"factor": "divides every frequency"},
    }
)

#: Keys that current transformers doesn't read, and what they were.
_DEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "finetuned": "read by no current runtime; it told YaRN's first code whether the weights were trained with it",
        "attn_factor": "not read by transformers; SGLang multiplies the temperature by it",
        "extrapolation_factor": "not read by transformers; it was a weight of YaRN's first code",
        "short_mscale": "not read by transformers; vLLM and SGLang take it as the temperature of short inputs",
        "long_mscale": "not read by transformers; vLLM and SGLang take it as the temperature of long inputs",
        "max_position_embeddings": "not read here: the length that counts is the config's own",
        "alpha": "not read by transformers for this type",
    }
)


def type_of(settings: Mapping[str, Any]) -> str:
    """The canonical rope type of a dictionary of settings; the spelling itself when it's unknown."""
    spelled = settings.get("rope_type") or settings.get("type") or "default"
    return ALIASES.get(str(spelled), str(spelled))


def dead_keys(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The keys that current transformers doesn't read in any type, each with what it was or who reads it."""
    return tuple((key, _DEAD[key]) for key in settings if key in _DEAD)


def explain(settings: Mapping[str, Any]) -> tuple[Note, ...]:
    """One note for each key: what it does, or that nothing reads it."""
    rope_type = type_of(settings)
    read = _READ.get(rope_type, {})
    notes = []
    for key, value in settings.items():
        if isinstance(value, dict) or key == "rope_theta":
            continue
        shown = f"{key}: {_short(value)}"
        if key in ("type", "rope_type"):
            said = _said_type(key, str(value), rope_type, "rope_type" in settings)
        elif key in read:
            said = read[key]
        elif key in FOREIGN:
            said = "describes the model, not its scaling; kept as it is"
        else:
            said = _DEAD.get(key, f"not read for the type {rope_type}")
        notes.append(Note(code="rope-key", message=f"{shown}: {said}"))
    return tuple(notes)


def _said_type(key: str, value: str, rope_type: str, has_rope_type: bool) -> str:
    if key == "type" and has_rope_type:
        return "the older spelling of rope_type, kept beside it"
    if key == "type":
        return f"the older spelling of rope_type, understood as {rope_type}"
    return "names the scaling" if value == rope_type else f"understood as {rope_type}"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"[{value[0]}, ... {len(value)} numbers]"
    return value if isinstance(value, str) else json.dumps(value)
