"""What ``--bake`` does to the tensors of a checkpoint: temperature folded into weights, frequencies put into buffers.

Pure. Which weights hold a family's queries is the business of ``baking/``; which buffers its older checkpoints had
stands here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from ctxextend.baking import Fold, fold_temperature
from ctxextend.changes import DropTensor, PutTensor, TensorChange
from ctxextend.contents import Contents, TensorInfo
from ctxextend.encoding import PlanWarning
from ctxextend.errors import RefusedError
from ctxextend.inspection import Group, Inspection
from ctxextend.parameters import rotary_buffers
from ctxextend.recipe import Recipe, bakes_buffers, bakes_temperature
from ctxextend.rope import RopeTable
from ctxextend.solving import Solution, Temperature

#: Families whose class once kept ``inv_freq`` in its checkpoints, and where: transformers up to 4.30 registered
#: these buffers as persistent (``modeling_llama.py``, ``modeling_gpt_neox.py``, ``modeling_gpt_neox_japanese.py``).
BUFFERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama": "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
        "gpt_neox": "gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq",
        "gpt_neox_japanese": "gpt_neox_japanese.layers.{layer}.attention.rotary_emb.inv_freq",
    }
)

_FREQUENCIES: Final = "inv_freq"
_LAYER: Final = re.compile(r"(?<![^.])(\d+)(?![^.])")
#: Parts of a name that belong to what sees or hears, whose ropes are another matter.
_OTHER_TOWERS: Final = re.compile(r"(?:^|[._])(?:vision|visual|audio|vit|vpm|apm)")


def tensor_changes(
    contents: Contents, inspection: Inspection, recipe: Recipe, solution: Solution[Any], tables: Mapping[str, RopeTable]
) -> tuple[tuple[TensorChange, ...], tuple[PlanWarning, ...]]:
    """What happens to tensors, and what is to be said of it. ``tables``: what each group of layers is to have.

    Raises :class:`RefusedError` where it can't be done exactly.
    """
    if recipe.bake == "none":
        return own_buffers(contents, inspection), ()
    _require_weights(contents)
    changes: list[TensorChange] = []
    warnings: list[PlanWarning] = []
    if bakes_temperature(recipe):
        changes += _temperature(contents, inspection, solution.folded)
        warnings += _second_copies(contents, changes)
        if not solution.folded:
            warnings.append(_nothing_to_fold(solution.method))
    if bakes_buffers(recipe):
        changes += _buffers(contents, inspection, tables)
        factors = [found.attention_factor for found in tables.values() if found.attention_factor != 1.0]
        if factors:
            warnings.append(
                PlanWarning(
                    code="buffers-without-temperature",
                    message="buffers hold frequencies alone: what reads only them misses the attention factor of "
                    f"{factors[0]:.6g}",
                    hint="--bake all puts that into the weights",
                )
            )
    else:
        changes += _dropped(contents)
    return tuple(changes), tuple(warnings)


def _second_copies(contents: Contents, changes: Sequence[TensorChange]) -> Iterator[PlanWarning]:
    """Weights in the vendor's own layout, which stay as they are."""
    copies = [file.path for file in contents.files if file.path.rpartition("/")[2].startswith("consolidated")]
    if copies and changes:
        yield PlanWarning(
            code="consolidated-unbaked",
            message=f"{copies[0]} holds the weights once more, without the temperature that these get",
            hint="take it out of the result, or serve with --config-format hf --load-format safetensors",
        )


def own_buffers(contents: Contents, inspection: Inspection) -> tuple[TensorChange, ...]:
    """The buffers of an earlier conversion of ours, which go: they hold the frequencies of that one."""
    record = inspection.record
    return _dropped(contents) if record is not None and record.buffers is True else ()


def _dropped(contents: Contents) -> tuple[TensorChange, ...]:
    return tuple(DropTensor(file=tensor.file, name=tensor.name) for tensor in stale_buffers(contents))


def folded_changes(
    contents: Contents, inspection: Inspection, recipe: Recipe, solution: Solution[Any] | None
) -> tuple[tuple[TensorChange, ...], tuple[PlanWarning, ...]]:
    """What happens to the weights that a GGUF file is made of; its frequency tensor is a matter of the form.

    Raises :class:`RefusedError` where it can't be done exactly.
    """
    if solution is None or not bakes_temperature(recipe):
        return (), ()
    _require_weights(contents)
    if not solution.folded:
        return (), (_nothing_to_fold(solution.method),)
    return _temperature(contents, inspection, solution.folded), ()


def _nothing_to_fold(method: str) -> PlanWarning:
    return PlanWarning(
        code="nothing-to-fold",
        message=f"{method} has an attention factor of 1: there is nothing to put into the weights",
    )


def folds(inspection: Inspection, folded: Mapping[str, Temperature]) -> tuple[Fold, ...]:
    """The temperatures with the layers and the geometry that they are for."""
    return tuple(
        Fold(
            layers=group.layers,
            attention_factor=folded[group.label].attention_factor,
            softmax_factor=folded[group.label].softmax_factor,
            rotary_dim=group.spec.rotary_dim,
            head_dim=group.spec.head_dim,
            layout=group.spec.layout,
        )
        for group in inspection.groups
        if group.label in folded and group.spec is not None
    )


def stale_buffers(contents: Contents) -> tuple[TensorInfo, ...]:
    """The language model's rope buffers in the weights: of frequencies, and of cosines and sines."""
    return tuple(tensor for tensor in rotary_buffers(contents) if not _OTHER_TOWERS.search(tensor.name))


def _temperature(
    contents: Contents, inspection: Inspection, folded: Mapping[str, Temperature]
) -> tuple[TensorChange, ...]:
    if not folded:
        return ()
    return fold_temperature(contents, inspection.config, inspection.family, folds(inspection, folded))


def _require_weights(contents: Contents) -> None:
    if contents.storage != "safetensors":
        raise RefusedError(
            "only the tensors of safetensors can be rewritten",
            code="no-safetensors",
            file=contents.source,
            key="--bake",
            expected="a checkpoint with .safetensors files",
            found=contents.storage,
            hint="save it with save_pretrained of transformers first" if contents.storage == "pytorch" else None,
        )


def _buffers(contents: Contents, inspection: Inspection, tables: Mapping[str, RopeTable]) -> Iterator[TensorChange]:
    """The buffers as they are to be: those in the file replaced, what can't be right dropped, else new ones."""
    if any(found.switches for found in tables.values()):
        raise RefusedError(
            "frequencies that change with the length can't be put into buffers",
            code="not-bakeable",
            file="config.json",
            key="--bake",
            expected="one table for all lengths",
            found="a table that changes",
            hint="a method whose table stays the same, such as yarn or ntk",
        )
    of_layer = {layer: group for group in inspection.groups for layer in group.layers}
    stale = stale_buffers(contents)
    held = [tensor for tensor in stale if tensor.name.endswith(_FREQUENCIES)]
    for tensor in stale:
        found = _numbers(tensor, of_layer, tables) if tensor in held else None
        if found is None:
            yield DropTensor(file=tensor.file, name=tensor.name)
        else:
            yield PutTensor(file=tensor.file, name=tensor.name, values=found)
    if held:
        return
    name = BUFFERS.get(inspection.family.name)
    if name is None:
        raise RefusedError(
            f"no class of the family {inspection.family.name} ever read rope buffers, so nothing would read these",
            code="not-bakeable",
            file="config.json",
            key="--bake",
            expected=f"a checkpoint that has such buffers, or one of the families {', '.join(BUFFERS)}",
            found=inspection.family.name,
            hint="leave --bake buffers away: the config carries the frequencies; for llama.cpp --to gguf --bake "
            "buffers writes its frequency tensor",
        )
    first = min(tensor.file for tensor in contents.tensors)
    for layer, group in sorted(of_layer.items()):
        if group.label in tables:
            yield PutTensor(file=first, name=name.format(layer=layer), values=_single(tables[group.label]))


def _numbers(
    tensor: TensorInfo, of_layer: Mapping[int, Group], tables: Mapping[str, RopeTable]
) -> tuple[float, ...] | None:
    """What a buffer is to hold: its layer's frequencies, or those of all layers; None for a layer without a rope.

    Raises :class:`RefusedError` for one buffer for layers that turn differently.
    """
    layer = _LAYER.search(tensor.name)
    if layer is not None:
        group = of_layer.get(int(layer[1]))
        return None if group is None or group.label not in tables else _single(tables[group.label])
    spectra = {found.inv_freq for found in tables.values()}
    if len(spectra) > 1:
        raise RefusedError(
            "one buffer for all layers can't hold the frequencies of layers that turn differently",
            code="not-bakeable",
            file=tensor.file,
            key=tensor.name,
            expected="one rope for all layers",
            found=f"{len(spectra)}",
            hint="leave --bake buffers away: the config carries the frequencies",
        )
    return _single(next(iter(tables.values())))


def _single(found: RopeTable) -> tuple[float, ...]:
    """Frequencies as a buffer keeps them, in single precision."""
    count = len(found.inv_freq)
    return struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *found.inv_freq))
