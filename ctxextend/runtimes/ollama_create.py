"""What ``ollama create`` makes of a safetensors checkpoint: its own conversion to GGUF, run by llama.cpp.

Source: Ollama's ``convert/convert_llama.go``, ``convert_qwen2.go``, ``convert_qwen3.go`` and
``convert_phi3.go``, read in its repository of August 2026; and llama.cpp's rules for the keys that they
write (``src/llama-context.cpp``, ``ggml/src/ggml-cpu/ops.cpp``). A finished GGUF doesn't come this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final

import msgspec

from ctxextend.families import Family
from ctxextend.formats.hf_read import HfRope, read_rope
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.base import ORIGINAL, Evidence, Reading, answered, number, serve_command, with_temperature
from ctxextend.runtimes.longrope_lists import one_list
from ctxextend.scaling import Linear, Llama3, Yarn, table

#: What a converter makes of a group: its table, a reading without one, or why it fails.
_Read = RopeTable | Reading | str


class OllamaCreate:
    """0.33: most scalings are dropped; yarn loses its original length. Give Ollama a GGUF instead."""

    runtime: ClassVar[str] = "ollama-create"
    versions: ClassVar[str] = ">=0.33"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, config: Mapping[str, Any], family: Family, *, length: int) -> Reading:
        rope = read_rope(config, family)
        converter = _CONVERTERS.get(family.name)
        if converter is None:
            return Reading(unknown="its converter of this family was not read")
        tables = {}
        for group in rope.groups:
            if group.spec is None:
                continue
            read = converter(rope, group.spec, length)
            if isinstance(read, str):
                return Reading(problem=read)
            if isinstance(read, Reading):
                return read
            tables[group.label] = read
        return Reading(
            tables=tables,
            max_context=rope.max_position_embeddings,
            how=(
                "rope_theta and some keys of rope_scaling, by family; max_position_embeddings",
                *_dropped(rope, family),
            ),
        )

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        modelfile = f"FROM {source}\\nPARAMETER num_ctx {length}\\n"
        return serve_command("printf", modelfile) + " > Modelfile && ollama create long-context -f Modelfile"


def _settings(rope: HfRope) -> Mapping[str, Any]:
    found: Mapping[str, Any] = rope.text.get("rope_scaling") or {}
    return found


def _based(rope: HfRope, spec: RopeSpec) -> RopeSpec | None:
    """The geometry with the top level's base; None where there is none."""
    theta = number(rope.text, "rope_theta")
    return None if not theta else msgspec.structs.replace(spec, rope_theta=theta)


def _llama(rope: HfRope, spec: RopeSpec, _length: int) -> _Read:
    """convert_llama.go: linear by ``type`` alone, llama3 by ``rope_type`` alone; the rest is dropped."""
    text, settings = rope.text, _settings(rope)
    hidden, heads = number(text, "hidden_size"), number(text, "num_attention_heads")
    if not hidden or not heads or hidden // heads != spec.head_dim:
        return Reading(unknown="it writes hidden_size by heads for the dimensions turned, whatever head_dim says")
    based = _based(rope, spec)
    if based is None:
        # No key is written, and llama.cpp's base is 10000; llama3 then writes no factors either.
        return table(msgspec.structs.replace(spec, rope_theta=10000.0), None)
    if settings.get("type") == "linear":
        return table(based, Linear(factor=number(settings, "factor") or 1.0))
    if settings.get("rope_type") == "llama3":
        scaling = Llama3(
            factor=number(settings, "factor") or 8.0,
            low_freq_factor=number(settings, "low_freq_factor") or 1.0,
            high_freq_factor=number(settings, "high_freq_factor") or 4.0,
            original_max_position_embeddings=int(number(settings, ORIGINAL) or 8192),
        )
        return table(based, scaling)
    return table(based, None)


def _qwen2(rope: HfRope, spec: RopeSpec, length: int) -> _Read:
    """convert_qwen2.go:16: the factor is declared as a list of numbers, so that one number isn't read."""
    if _settings(rope).get("factor") is not None:
        return "its converter of this family fails on a factor that is a number"
    return _qwen3(rope, spec, length)


def _qwen3(rope: HfRope, spec: RopeSpec, _length: int) -> _Read:
    """convert_qwen3.go:61-71: type and factor, and no original length, for which llama.cpp takes the stated one."""
    settings = _settings(rope)
    based = _based(rope, spec)
    if based is None:
        return "it writes a base of 0 where the top level has no rope_theta"
    match settings.get("type"):
        case None | "":
            return table(based, None)
        case "yarn":
            scaling = Yarn(
                factor=number(settings, "factor") or 1.0,
                original_max_position_embeddings=rope.max_position_embeddings,
            )
            return table(based, scaling)
        case "mrope" | "default":
            return Reading(unknown="what an empty list of sections does in its GGUF isn't known")
        case other:
            return f"its converter of this family panics on the type {other!r}"


def _phi3(rope: HfRope, spec: RopeSpec, length: int) -> _Read:
    """convert_phi3.go:57-66: the lists always, the temperature by ``type`` alone; llama.cpp picks a list."""
    settings = _settings(rope)
    based = _based(rope, spec)
    original = rope.text.get(ORIGINAL)
    if not settings.get("long_factor") or not settings.get("short_factor"):
        return Reading(unknown="what its empty lists of factors do in the GGUF isn't known")
    if based is None or type(original) is not int or original < 2:
        return f"its converter needs rope_theta and {ORIGINAL} at the top level"
    kind = settings.get("type")
    if kind not in (None, "", "su", "longrope"):
        return f"its converter of this family doesn't read {kind}"
    scaling = one_list(settings, long=length > original, stated=rope.max_position_embeddings, original=original)
    return table(based, scaling if kind else with_temperature(scaling, 1.0))


def _dropped(rope: HfRope, family: Family) -> tuple[str, ...]:
    """What its conversion loses without a word; the table shows what that comes to."""
    settings = _settings(rope)
    read = {
        "llama": settings.get("type") == "linear" or settings.get("rope_type") == "llama3",
        "phi3": bool(settings.get("type")),
    }.get(family.name, False)
    scaled = (settings.get("rope_type") or settings.get("type") or "default") != "default"
    if not scaled or read:
        return ()
    if family.name == "qwen3" and settings.get("type") == "yarn":
        return ("it drops yarn's original length: convert to GGUF and give it the file",)
    return ("it drops this scaling, or a part of it: convert to GGUF and give it the file",)


_CONVERTERS: Final[Mapping[str, Callable[[HfRope, RopeSpec, int], _Read]]] = MappingProxyType(
    {"llama": _llama, "phi3": _phi3, "qwen2": _qwen2, "qwen3": _qwen3}
)
