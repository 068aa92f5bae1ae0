"""What a GGUF export of a safetensors checkpoint would hold, and what llama.cpp would make of it. Pure.

The keys that an export writes are put together from the config; the form of the scaling is chosen as for
a file that exists.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from ctxextend.contents import Gguf, GgufValue
from ctxextend.errors import CtxextendError
from ctxextend.exports.export import groups_of_file, rope_values
from ctxextend.formats.gguf_architectures import OF_FAMILY
from ctxextend.formats.gguf_keys import GgufRope, read_rope
from ctxextend.formats.gguf_write import encodings
from ctxextend.formats.hf_layers import FULL, whole_number
from ctxextend.formats.hf_read import HfRope, RopeGroup
from ctxextend.gguf_encoding import choose_gguf
from ctxextend.rope import RopeSpec
from ctxextend.runtimes.base import Reading
from ctxextend.scaling import Dynamic, Rebase, Scaling, dynamic_theta, table


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
    if all(group.spec is None for group in rope.groups):
        return Outlook(reading=Reading(unknown="no layer of this checkpoint has a rope"))
    try:
        gguf = plain_header(architecture, rope)
        file = read_rope(gguf)
        groups = groups_of_file(file.groups, rope)
        scalings = {label: _scaling(group, target) for label, group in groups.items()}
        own = {label: table(_spec(group), scalings[label], length=target) for label, group in groups.items()}
        candidates = encodings(gguf, file, file.specs, scalings, target=target)
        chosen = choose_gguf(gguf, candidates, own, target=target)
    except CtxextendError as error:
        return Outlook(reading=Reading(problem=error.message + (f": {error.found}" if error.found else "")))
    except ArithmeticError as error:
        return Outlook(reading=Reading(problem=f"no number of a GGUF file holds its rope: {error}"))
    return Outlook(reading=_by_config(chosen.reading, file, rope), form=chosen.encoding.name)


def _by_config(reading: Reading, file: GgufRope, rope: HfRope) -> Reading:
    """The reading by the labels of the config, which differ from the file's where a window is lost."""
    of_layer = {layer: group.label for group in file.groups for layer in group.layers}
    found = {group.label: reading.tables.get(of_layer[group.layers[0]]) for group in rope.groups if group.spec}
    return msgspec.structs.replace(reading, tables={label: t for label, t in found.items() if t is not None})


def _spec(group: RopeGroup) -> RopeSpec:
    assert group.spec is not None
    return group.spec


def _scaling(group: RopeGroup, target: int) -> Scaling:
    """The group's scaling, or the change of base that changes nothing; dynamic as its static equal."""
    if isinstance(group.scaling, Dynamic):
        return Rebase(rope_theta=dynamic_theta(_spec(group), group.scaling, target))
    return group.scaling or Rebase(rope_theta=_spec(group).rope_theta)


def plain_header(architecture: str, rope: HfRope) -> Gguf:
    """The keys of an export that say what a rope is, before any scaling; some layer has one.

    Raises :class:`RefusedError` where none has.
    """
    text = rope.text
    main = next(group for group in (*_full(rope), *rope.groups) if group.spec is not None)
    layers = sum(len(group.layers) for group in rope.groups)
    sizes: dict[str, int] = {
        "block_count": layers,
        "embedding_length": whole_number(text, "hidden_size") or _spec(main).head_dim,
        "attention.head_count": whole_number(text, "num_attention_heads") or 1,
        "attention.key_length": _spec(main).head_dim,
    }
    named = {name: GgufValue(type="UINT32", value=size) for name, size in sizes.items()}
    values = {"general.architecture": GgufValue(type="STRING", value=architecture)}
    values |= {f"{architecture}.{name}": value for name, value in (named | rope_values(architecture, rope)).items()}
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


def _full(rope: HfRope) -> Iterator[RopeGroup]:
    return (group for group in rope.groups if group.label == FULL)
