"""The JSON documents that others rely on, from the values that the rooms make. Fields are only ever added."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ctxextend.inspection import Group, Inspection

INSPECTION: Final = "ctxextend.inspection/1"

#: The dtypes a KV cache is quoted in, with their bits.
_CACHE_DTYPES: Final = (("float32", 32), ("bfloat16", 16), ("float8", 8))


def inspection_document(
    inspection: Inspection, *, target: int | None = None, memory_bytes: int | None = None
) -> dict[str, Any]:
    """``ctxextend.inspection/1``. ``target`` counts tokens; ``memory_bytes`` asks what length fits in it."""
    document: dict[str, Any] = {
        "schema": INSPECTION,
        "source": inspection.source,
        "revision": inspection.revision,
        "model_type": inspection.model_type,
        "family": inspection.family.name,
        "position": inspection.position,
        "format": inspection.format,
        "parameters": inspection.parameters,
        "size_bytes": inspection.size_bytes,
        "weight_bytes": inspection.weight_bytes,
        "dtypes": dict(inspection.dtypes),
        "quantisation": msgspec.to_builtins(inspection.quantisation),
        "tied_embeddings": inspection.tied_embeddings,
        "trained_context": inspection.trained_context,
        "current_context": inspection.current_context,
        "groups": [_group(group) for group in inspection.groups],
        "kv_cache": _kv_cache(inspection, target),
        "notes": [msgspec.to_builtins(note) for note in inspection.notes],
    }
    if memory_bytes is not None:
        document["fits"] = fits(inspection, memory_bytes)
    return document


def fits(inspection: Inspection, memory_bytes: int) -> dict[str, int | None]:
    """The longest context whose 16-bit cache fits beside the weights; None where the cache isn't known."""
    left = memory_bytes - inspection.weight_bytes
    cache = inspection.kv_cache
    longest = None if cache is None else (cache.longest(left) if left > 0 else 0)
    return {"memory_bytes": memory_bytes, "weight_bytes": inspection.weight_bytes, "context": longest}


def lengths_of_interest(inspection: Inspection, target: int | None) -> tuple[int, ...]:
    """The trained, the current and the target length, each once."""
    lengths = (inspection.trained_context, inspection.current_context, target)
    return tuple(sorted({length for length in lengths if length}))


def _group(group: Group) -> dict[str, Any]:
    spec = group.spec
    return {
        "label": group.label,
        "layers": list(group.layers),
        "theta": spec.rope_theta if spec else None,
        "head_dim": spec.head_dim if spec else None,
        "rotary_dim": spec.rotary_dim if spec else None,
        "scaling": msgspec.to_builtins(group.scaling),
        "origin": None if group.origin == "undecided" else group.origin,
        "window": group.window,
        "extendable": group.extendable,
    }


def _kv_cache(inspection: Inspection, target: int | None) -> dict[str, Any] | None:
    cache = inspection.kv_cache
    if cache is None:
        return None
    at = [
        {"context": length, "dtype": dtype, "bytes": cache.size_bytes(length, bits=bits)}
        for length in lengths_of_interest(inspection, target)
        for dtype, bits in _CACHE_DTYPES
    ]
    return {"bytes_per_token": cache.bytes_per_token, "at": at}
