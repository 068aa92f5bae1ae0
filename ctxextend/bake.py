"""What ``--bake`` does to the tensors of a checkpoint: temperature folded into weights, frequencies put into buffers.

Pure. Which weights hold a family's queries is the business of ``baking/``; which buffers its older checkpoints had
stands here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from ctxextend.baking import Fold, fold_temperature
from ctxextend.changes import DropTensor, PutTensor, ScaleTensor, TensorChange
from ctxextend.contents import Contents, TensorInfo
from ctxextend.copies import beside
from ctxextend.encoding import PlanWarning
from ctxextend.errors import RefusedError
from ctxextend.inspection import Group, Inspection
from ctxextend.parameters import rotary_buffers
from ctxextend.recipe import Recipe, bakes_buffers, bakes_temperature
from ctxextend.record import baked_source, require_unbaked
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

#: Buffers of the language model's one rope; what others hold (originals, caches, one rope of several) is dropped.
_REPLACED: Final = ("rotary_emb.inv_freq", "rotary_embedding.inv_freq", "rotary_pos_emb.inv_freq", "rope.inv_freq")
_LAYER: Final = re.compile(r"(?<![^.])(\d+)(?![^.])")
#: Parts of a name that belong to what sees or hears, whose ropes are another matter.
_OTHER_TOWERS: Final = re.compile(r"(?:^|[._])(?:vision|visual|audio|vit|vpm|apm|talker|depth|codec)")


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
        warnings += beside(contents) if changes else ()
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


def to_do(
    contents: Contents, inspection: Inspection, tensors: tuple[TensorChange, ...], digest: str
) -> tuple[TensorChange, ...]:
    """The changes of tensors that are still to be made to a source that may be the result of this very change.

    Raises :class:`RefusedError` for weights that another change has already gone into.
    """
    record = inspection.record
    if record is None:
        return tensors
    if record.plan == digest:
        held = {(tensor.file, tensor.name, tensor.dtype, tensor.shape) for tensor in contents.tensors}
        return tuple(change for change in tensors if _is_to_do_again(change, held))
    require_unbaked(record)
    return tensors


def _is_to_do_again(change: TensorChange, held: Container[tuple[str, str, str, tuple[int, ...]]]) -> bool:
    """Whether it isn't in a checkpoint whose record says so: a buffer that was taken out, or put back, since."""
    match change:
        case DropTensor():
            return True
        case PutTensor():
            return (change.file, change.name, "F32", (len(change.values),)) not in held
        case _:
            return False


def refuse_second_fold(contents: Contents, inspection: Inspection, tensors: Sequence[TensorChange]) -> None:
    """Refuse to multiply weights whose manifest says that they were, though the record is gone from their config.

    Raises :class:`RefusedError`.
    """
    manifest = contents.documents.get("ctxextend.json")
    plan = manifest.value.get("plan") if manifest is not None else None
    if not isinstance(plan, dict) or inspection.record is not None:
        return
    folded = any(isinstance(one, dict) and one.get("kind") == "scale-tensor" for one in plan.get("actions") or ())
    if folded and any(isinstance(change, ScaleTensor) for change in tensors):
        method, target = str(plan.get("method")), int(plan.get("target_context") or 0)
        raise baked_source("plan.actions", "ctxextend.json", "temperature", method, target)


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
    held = [tensor for tensor in stale if tensor.name.endswith(_REPLACED)]
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
