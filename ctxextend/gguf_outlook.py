"""What a GGUF export of a safetensors checkpoint would hold, and what llama.cpp would make of it. Pure.

The keys that an export writes are put together from the config; the form of the scaling is chosen as for
a file that exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from ctxextend.contents import Gguf, GgufType, GgufValue
from ctxextend.errors import CtxextendError
from ctxextend.formats.gguf_architectures import OF_FAMILY
from ctxextend.formats.gguf_keys import CONTEXT, PATTERN, SLIDING_THETA, THETA, WINDOW, read_rope
from ctxextend.formats.gguf_write import encodings
from ctxextend.formats.hf_layers import FULL, SLIDING, whole_number
from ctxextend.formats.hf_read import HfRope, RopeGroup
from ctxextend.gguf_encoding import choose_gguf
from ctxextend.runtimes.base import Reading
from ctxextend.scaling import Dynamic, Rebase, Scaling, dynamic_theta, table

_TYPES: Final[Mapping[type, GgufType]] = {int: "UINT32", float: "FLOAT32", str: "STRING"}


class Outlook(Struct, frozen=True, kw_only=True):
    """What llama.cpp would read in an export; ``form`` names how the export holds the scaling, if it can."""

    reading: Reading
    form: str | None = None


def outlook(family: str, rope: HfRope, *, target: int) -> Outlook:
    """The export of a checkpoint of ``family`` whose rope this is, served at ``target`` tokens.

    It says what the checkpoint says: its form is the one that llama.cpp reads as the checkpoint's own table.
    """
    architecture = OF_FAMILY.get(family)
    if architecture is None:
        return Outlook(reading=Reading(unknown="whether this family has a GGUF form was not established"))
    groups = {g.label: g.spec for g in rope.groups if g.spec is not None}
    if not groups:
        return Outlook(reading=Reading(unknown="no layer of this checkpoint has a rope"))
    try:
        scalings = {g.label: _scaling(g, target) for g in rope.groups if g.spec is not None}
        own = {label: table(spec, scalings[label], length=target) for label, spec in groups.items()}
        gguf = _header(architecture, rope)
        file = read_rope(gguf)
        labels = {group.label: group.spec for group in file.groups if group.spec is not None}
        if set(labels) != set(groups):
            said = f"its layers fall into other groups there: {', '.join(sorted(labels))}"
            return Outlook(reading=Reading(unknown=said))
        candidates = encodings(gguf, file, labels, scalings, target=target)
        chosen = choose_gguf(gguf, candidates, own, target=target)
    except CtxextendError as error:
        return Outlook(reading=Reading(problem=error.message + (f": {error.found}" if error.found else "")))
    except ArithmeticError as error:
        return Outlook(reading=Reading(problem=f"no number of a GGUF file holds its rope: {error}"))
    return Outlook(reading=chosen.reading, form=chosen.encoding.name)


def _scaling(group: RopeGroup, target: int) -> Scaling:
    """The group's scaling, or the change of base that changes nothing; dynamic as its static equal."""
    assert group.spec is not None
    if isinstance(group.scaling, Dynamic):
        return Rebase(rope_theta=dynamic_theta(group.spec, group.scaling, target))
    return group.scaling or Rebase(rope_theta=group.spec.rope_theta)


def _header(architecture: str, rope: HfRope) -> Gguf:
    """The keys of an export that say what a rope is, before any scaling; some layer has one."""
    text = rope.text
    groups = {group.label: group for group in rope.groups if group.spec is not None}
    main = groups.get(FULL) or next(iter(groups.values()))
    assert main.spec is not None
    layers = sum(len(group.layers) for group in rope.groups)
    keys: dict[str, Any] = {
        "block_count": layers,
        CONTEXT: rope.max_position_embeddings,
        "embedding_length": whole_number(text, "hidden_size") or main.spec.head_dim,
        "attention.head_count": whole_number(text, "num_attention_heads") or 1,
        "attention.key_length": main.spec.head_dim,
        "rope.dimension_count": main.spec.rotary_dim,
        THETA: main.spec.rope_theta,
    }
    sliding = groups.get(SLIDING)
    if sliding is not None and sliding.spec is not None and sliding.window is not None:
        keys |= {WINDOW: sliding.window, SLIDING_THETA: sliding.spec.rope_theta}
    values = {"general.architecture": _value(architecture)}
    values |= {f"{architecture}.{name}": _value(content) for name, content in keys.items()}
    if sliding is not None:
        slides = tuple(i in sliding.layers for i in range(layers))
        values[f"{architecture}.{PATTERN}"] = GgufValue(type="ARRAY", item="BOOL", length=layers, value=slides)
    return Gguf(
        file="export.gguf",
        version=3,
        alignment=32,
        values=values,
        spans={},
        info_spans={},
        tensor_spans={},
        infos_start=0,
        data_start=0,
    )


def _value(content: str | float) -> GgufValue:
    return GgufValue(type=_TYPES[type(content)], value=content)
