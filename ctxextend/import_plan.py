"""Plans that make a safetensors checkpoint of a GGUF file, with the rope that other loaders lose. Pure.

The file becomes a config.json that says what the file says; a target is then reached as for any checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from ctxextend.changes import Carry, Restore
from ctxextend.contents import Contents, Document, Gguf, TensorInfo
from ctxextend.encoding import Chosen, PlanWarning, choose_encoding
from ctxextend.errors import UsageError
from ctxextend.export_plan import require_no_method
from ctxextend.exports.reverse import FloatType, Restored, decimal, restored_of
from ctxextend.families import Family, find_family
from ctxextend.formats.gguf_keys import read_rope as read_gguf_rope
from ctxextend.formats.hf_read import read_rope
from ctxextend.formats.hf_write import length_edits
from ctxextend.formats.json_edit import apply_edits
from ctxextend.gguf_inspection import gguf_of, recognised
from ctxextend.gguf_record import GgufRecord, find_gguf_record, require_unbaked, without_record
from ctxextend.inspection import BaseChoice, Inspection, inspect
from ctxextend.plan import Plan, assemble, default_name, make_plan, plain_plan, source_ref
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, Rebase, Scaling, over_base, table
from ctxextend.solving import Solution

_DTYPES: Final[Mapping[str, FloatType]] = MappingProxyType({"f32": "F32", "f16": "F16", "bf16": "BF16"})


def make_import_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for safetensors of an inspected GGUF file. Pure.

    Raises :class:`RefusedError` for an architecture that isn't known, or where no config.json says what the file
    does, and :class:`UsageError`.
    """
    gguf = gguf_of(contents)
    record = find_gguf_record(gguf)
    if recipe.bake != "none":
        raise UsageError(
            "the weights of a GGUF file are restored as they are",
            code="bad-option",
            key="--bake",
            hint="restore first, then bake the safetensors",
        )
    if recipe.target is not None or recipe.factor is not None:
        require_unbaked(record, gguf.file)
    base = without_record(gguf, record)
    restored = restored_of(base, contents.tensors, dtype=dtype_of(recipe))
    family = find_family(restored.config, treat_as=recipe.family)
    document, chosen = _with_rope(restored.config, family, base, recipe)
    virtual = checkpoint_of(contents, restored, document)
    known = inspect(
        virtual,
        family=recipe.family,
        base=_taken_as(inspection, base, recipe),
        original_context=inspection.trained_context,
        sliding_window=recipe.sliding_window,
    )
    name = f"{contents.name}-safetensors"
    if recipe.target is None and recipe.factor is None:
        require_no_method(recipe)
    if recipe.target is not None or recipe.factor is not None:
        plan = make_plan(virtual, known, recipe)
        name = default_name(contents.name, plan.method, plan.target_context)
    elif record is not None and (record.keys or record.tensors):
        plan = _as_converted(virtual, known, recipe, gguf, record)
    else:
        reasons = ("the rope as the file has it" + (f", written as {chosen.encoding.name}" if chosen else ""),)
        plan = plain_plan(
            virtual,
            known,
            recipe,
            {},
            method="none",
            target=known.current_context,
            reasons=reasons,
            warnings=chosen.warnings if chosen is not None else (),
        )
    action = Restore(
        family=restored.family,
        dtype=restored.dtype,
        config=document,
        files=tuple(file.path for file in contents.files),
        size_bytes=sum(tensor.size_bytes for tensor in virtual.tensors),
    )
    notes = tuple(PlanWarning(code=note.code, message=note.message) for note in restored.notes)
    return msgspec.structs.replace(
        plan,
        source=source_ref(contents),
        actions=(*(action for action in plan.actions if not isinstance(action, Carry)), action),
        warnings=(*notes, *plan.warnings),
        out=name,
    )


def dtype_of(recipe: Recipe) -> FloatType | None:
    """The type of the weights that is asked for, if one is. Raises :class:`UsageError` for what isn't one."""
    if not recipe.outtypes:
        return None
    if len(recipe.outtypes) > 1 or recipe.outtypes[0] not in _DTYPES:
        raise UsageError(
            "safetensors are written in one floating type",
            code="unknown-outtype",
            key="--outtype",
            expected=", ".join(_DTYPES),
            found=", ".join(recipe.outtypes),
        )
    return _DTYPES[recipe.outtypes[0]]


def _with_rope(
    config: Mapping[str, Any], family: Family, gguf: Gguf, recipe: Recipe
) -> tuple[dict[str, Any], Chosen | None]:
    """The plain config with the scaling that the file has, where it has one."""
    specs, scalings = _scalings(config, family, gguf)
    if not scalings:
        return dict(config), None
    chosen = choose_encoding(
        config,
        family,
        specs,
        scalings,
        target=read_gguf_rope(gguf).context_length,
        required=recipe.runtimes,
        carriers=recipe.carrier,
        method="the file's scaling",
        kept={
            group.label: table(group.spec, None)
            for group in read_rope(config, family).groups
            if group.spec is not None and group.label not in scalings
        },
        allow="unreadable" in recipe.allow,
    )
    return apply_edits(dict(config), chosen.encoding.edits), chosen


def _scalings(config: Mapping[str, Any], family: Family, gguf: Gguf) -> tuple[dict[str, RopeSpec], dict[str, Scaling]]:
    """The plain rope and the scaling of each group that has one, by the labels that the config's layers have."""
    rope = read_gguf_rope(gguf)
    groups = [recognised(group, rope.original_context_length) for group in rope.groups]
    of_layer = {layer: group for group in groups for layer in group.layers}
    specs, scalings = {}, {}
    for group in read_rope(config, family).groups:
        found = of_layer[group.layers[0]]
        if group.spec is None or found.spec is None:
            continue
        scaling = over_base(group.spec, found.spec, found.scaling, length=rope.context_length)
        if isinstance(scaling, Rebase):
            scaling = Rebase(rope_theta=decimal(scaling.rope_theta))
        elif isinstance(scaling, Linear) and scaling.rope_theta is not None:
            scaling = Linear(factor=scaling.factor, rope_theta=decimal(scaling.rope_theta))
        if scaling is not None:
            specs[group.label], scalings[group.label] = group.spec, scaling
    return specs, scalings


def _taken_as(inspection: Inspection, base: Gguf, recipe: Recipe) -> BaseChoice:
    """What the file's scaling is taken for there: what it is taken for here."""
    bases = [group.base for group in inspection.groups if group.base is not None]
    if any(one.scaling is not None for one in bases):
        return "trained"
    scaled = any(group.scaling is not None for group in read_gguf_rope(base).groups)
    return "unscaled" if bases and scaled else recipe.base


def checkpoint_of(contents: Contents, restored: Restored, document: dict[str, Any]) -> Contents:
    """The checkpoint as it will be before any extension."""
    tensors = tuple(
        TensorInfo(
            name=target.name,
            dtype="F32" if target.exact else restored.dtype,
            shape=target.shape,
            file="model.safetensors",
        )
        for target in restored.tensors
    )
    return Contents(
        name=contents.name,
        source=contents.source,
        revision=contents.revision,
        storage="safetensors",
        files=(),
        documents={"config.json": Document(text=json.dumps(document, indent=2) + "\n", value=document)},
        tensors=tensors,
    )


def _as_converted(virtual: Contents, known: Inspection, recipe: Recipe, gguf: Gguf, record: GgufRecord) -> Plan:
    """What an earlier conversion of ours made of the file, carried over with its record."""
    config = virtual.config
    specs, scalings = _scalings(config, known.family, gguf)
    reasons = (f"as the file has it: {record.method} to {record.target_context}",)
    if not scalings:
        assert known.rope is not None
        return plain_plan(
            virtual,
            known,
            recipe,
            {"config.json": length_edits(config, known.rope, record.target_context)},
            method="none",
            target=record.target_context,
            reasons=reasons,
            warnings=(),
        )
    chosen = choose_encoding(
        config,
        known.family,
        specs,
        scalings,
        target=record.target_context,
        required=recipe.runtimes,
        carriers=recipe.carrier,
        method=record.method,
        kept={g.label: g.base.table() for g in known.groups if g.base and g.label not in scalings},
        allow="unreadable" in recipe.allow,
    )
    solution = Solution(method=record.method, options={}, scalings=scalings, chosen=chosen)
    return assemble(
        virtual,
        known,
        recipe,
        target=record.target_context,
        solution=solution,
        windows=(),
        reasons=reasons,
        baked=record.baked,
    )
