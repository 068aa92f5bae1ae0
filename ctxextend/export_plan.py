"""Plans that make a GGUF file of a safetensors checkpoint. Pure.

The plain export is what ``exports/`` says; the scaling is written over it as into a file that exists. Without a
target the file says what the checkpoint says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import UNSET

from ctxextend.bake import folded_changes
from ctxextend.changes import Export, TensorChange
from ctxextend.contents import GGML_TYPES, Contents, Gguf, GgufEdits, GgufValue
from ctxextend.encoding import PlanWarning
from ctxextend.errors import CheckpointError, RefusedError, UsageError
from ctxextend.exports.export import Export as Exported
from ctxextend.exports.export import export_of
from ctxextend.exports.outtypes import FILE_TYPES, NATIVE
from ctxextend.formats.gguf_architectures import OF_FAMILY
from ctxextend.formats.gguf_keys import ORIGINAL, TYPE, GgufRope, read_rope
from ctxextend.formats.gguf_write import applied, encodings
from ctxextend.gguf_encoding import choose_gguf, judge_gguf
from ctxextend.gguf_outlook import plain_header
from ctxextend.gguf_plan import (
    Change,
    assemble_gguf,
    default_gguf_name,
    lengths_only,
    refuse_native_buffers,
    solved_change,
)
from ctxextend.gguf_record import net_edits
from ctxextend.inspection import Group, Inspection
from ctxextend.plan import Plan, require_auto, require_decided, require_rope, standing_tables
from ctxextend.recipe import Recipe, resolve_target
from ctxextend.record import require_unbaked
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes import GGUF_RUNTIMES
from ctxextend.scaling import Dynamic, Llama3, LongRope, Rebase, Scaling, Yarn, dynamic_theta, over_base, table
from ctxextend.solving import wanted_bases

#: How the Hub calls repositories of several files, which are called by the name in front of it.
FOLDER: Final = "-GGUF"

#: What weights of a safetensors type become when no type is asked for.
_OWN_TYPE: Final[Mapping[str, str]] = MappingProxyType({"F32": "f32", "F64": "f32", "F16": "f16"})


def make_export_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for a GGUF file of an inspected checkpoint. Pure.

    Raises :class:`RefusedError` (with the hint that overrides it), :class:`UsageError`, and
    :class:`CheckpointError` for a checkpoint without safetensors.
    """
    require_rope(inspection)
    if recipe.sliding_window != "keep":
        raise UsageError(
            "the windows of a GGUF file are part of its architecture",
            code="bad-option",
            key="--sliding-window",
            hint="convert to safetensors with it first, then export that",
        )
    if recipe.converter is None:
        exported = plain_export(contents, inspection)
        plain, notes = header_of(exported), exported.notes
    else:
        plain, notes = converted_header(contents, inspection), ()
    refuse_native_buffers(recipe)
    inspection = msgspec.structs.replace(inspection, groups=_labelled(inspection, read_rope(plain)))
    further: tuple[PlanWarning, ...] = ()
    if says_nothing(recipe):
        require_no_method(recipe)
        change = _as_it_is(plain, inspection, recipe)
    else:
        change, further = _extended(plain, inspection, recipe)
    tensors, baking = folded_changes(contents, inspection, recipe, change.solution)
    change = msgspec.structs.replace(change, tensors=tensors)
    if recipe.converter is not None:
        refuse_converter(tensors)
    outtypes = outtypes_of(contents, recipe)
    weights = tuple(dict.fromkeys(tensor.file for tensor in contents.tensors))
    action = Export(
        architecture=str(plain.architecture),
        outtypes=outtypes,
        files=weights,
        size_bytes=sum(output_bytes(contents, outtype) for outtype in outtypes),
        split_max_size=recipe.split_max_size,
        converter=recipe.converter is not None,
    )
    warnings = [*further, *baking, *(PlanWarning(code=note.code, message=note.message) for note in notes)]
    plan = assemble_gguf(contents, inspection, recipe, change, actions=(*tensors, action), warnings=warnings)
    return msgspec.structs.replace(plan, out=export_name(contents, recipe, change, action))


def plain_export(contents: Contents, inspection: Inspection) -> Exported:
    """The export of the checkpoint as it was before any scaling was written over it.

    Of a model without a rope, as it is: with the table of positions that it has.
    """
    require_safetensors(contents)
    tensors = {tensor.name: tensor for tensor in contents.tensors}
    length = inspection.current_context
    return export_of(inspection.family.name, inspection.config, tensors, rope=inspection.rope, length=length)


def converted_header(contents: Contents, inspection: Inspection) -> Gguf:
    """What llama.cpp's converter says of the rope of a checkpoint, before anything is corrected.

    Raises :class:`RefusedError` for a family whose architecture isn't known: nothing could be said of its file.
    """
    assert inspection.rope is not None
    require_safetensors(contents)
    name = inspection.family.name
    if name not in OF_FAMILY:
        raise RefusedError(
            f"what a GGUF file of the family {name} would say of its rope isn't known",
            code="unknown-export",
            file="config.json",
            key="model_type",
            expected=", ".join(OF_FAMILY),
            found=name,
            hint="convert it with llama.cpp's own converter; then 'ctxextend check' says what is read of it",
        )
    return plain_header(OF_FAMILY[name], inspection.rope)


def require_safetensors(contents: Contents) -> None:
    """Refuse weights of another format. Raises :class:`CheckpointError`."""
    if contents.storage != "safetensors":
        raise CheckpointError(
            "only safetensors can be exported",
            code="no-safetensors",
            file=contents.source,
            expected="a checkpoint with .safetensors files",
            found=contents.storage,
            hint="save it with save_pretrained of transformers first" if contents.storage == "pytorch" else None,
        )


def refuse_converter(changes: Sequence[TensorChange]) -> None:
    """Refuse changes of tensors where llama.cpp's converter reads them. Raises :class:`RefusedError`."""
    if changes:
        raise RefusedError(
            "llama.cpp's converter reads the checkpoint's own tensors, and this plan changes some",
            code="converter-reads-weights",
            file=changes[0].file,
            key=changes[0].name,
            expected="tensors as they are",
            found=f"{len(changes)} that change",
            hint="convert to safetensors first, without --to gguf; then export that with --converter",
        )


def header_of(exported: Exported) -> Gguf:
    """The plain export's keys as a header; its positions are nowhere yet."""
    return Gguf(
        file="export.gguf",
        version=3,
        alignment=32,
        values=exported.values,
        spans={},
        info_spans={},
        tensor_spans={},
        infos_start=0,
        data_start=0,
    )


def outtypes_of(contents: Contents, recipe: Recipe) -> tuple[str, ...]:
    """The output types: those asked for, else the one that most weights already have.

    Raises :class:`UsageError` for one that isn't known.
    """
    for name in recipe.outtypes:
        if name not in FILE_TYPES:
            raise UsageError(
                "the output type isn't known",
                code="unknown-outtype",
                key="--outtype",
                expected=", ".join(FILE_TYPES),
                found=name,
            )
    if recipe.outtypes:
        return tuple(dict.fromkeys(recipe.outtypes))
    sizes: dict[str, int] = {}
    for tensor in contents.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default="BF16")
    return (_OWN_TYPE.get(most, "bf16"),)


def output_bytes(contents: Contents, outtype: str) -> int:
    """About how large a file of a type is."""
    elements = sum(tensor.elements for tensor in contents.tensors)
    _, block, size = next(kind for kind in GGML_TYPES.values() if kind[0] == NATIVE.get(outtype, "Q8_0"))
    return elements * size // block


def says_nothing(recipe: Recipe) -> bool:
    """Whether a recipe names no length to extend to."""
    return recipe.target is None and recipe.factor is None


def require_no_method(recipe: Recipe) -> None:
    """Refuse what says how to extend where nothing says how far. Raises :class:`UsageError`."""
    said = {
        "--method": recipe.method != "auto",
        "--set": bool(recipe.options),
        "--layers": bool(recipe.layers),
        "--fine-tune": recipe.fine_tune,
        "--bake": recipe.bake != "none",
    }
    for option, given in said.items():
        if given:
            raise UsageError(
                "how far to extend isn't said",
                code="no-target",
                key=option,
                hint="--target 128k, or --factor 4; without any of them the result says what the source says",
            )


def _labelled(inspection: Inspection, rope: GgufRope) -> tuple[Group, ...]:
    """The checkpoint's groups as the file's layers fall into groups, with the windows that the file has.

    Raises :class:`RefusedError` where they can't.
    """
    of_layer = {layer: group for group in inspection.groups for layer in group.layers}
    found: list[Group] = []
    for group in rope.groups:
        members = list({id(of_layer[layer]): of_layer[layer] for layer in group.layers}.values())
        first = members[0]
        if any(_rope(member) != _rope(first) for member in members[1:]):
            raise RefusedError(
                f"layers that have one rope in a GGUF file of the architecture {rope.architecture.name} have several "
                "in this checkpoint",
                code="unexpressible",
                file="config.json",
                found=", ".join(member.label for member in members),
                hint="no file of llama.cpp's can hold this model as it is",
            )
        free = group.window is None and first.window is not None
        found.append(
            msgspec.structs.replace(
                first,
                label=group.label,
                layers=group.layers,
                window=group.window,
                # Without its window a layer sees everything.
                extendable=first.extendable or (free and first.spec is not None),
            )
        )
    return tuple(found)


def _rope(group: Group) -> tuple[object, ...]:
    return group.spec, group.scaling, group.base


def _as_it_is(plain: Gguf, inspection: Inspection, recipe: Recipe) -> Change:
    """The scaling that the checkpoint has, in the form that llama.cpp reads; what it was taken for is recorded."""
    target, record = inspection.current_context, inspection.record
    scalings = _over_plain(plain, {g.label: (g.spec, g.scaling) for g in inspection.groups}, target)
    _require_windows(plain, inspection, scalings)
    edits, form = _written(plain, inspection, scalings, target, recipe)
    base = _base(plain, inspection, recipe)
    dynamic = any(isinstance(group.scaling, Dynamic) for group in inspection.groups)
    decided = all(group.base is not None for group in inspection.groups if group.spec is not None)
    # The file's own scaling is what the next conversion finds: nothing was done to it, and what it is is recorded.
    own = record is None and edits != GgufEdits() and not dynamic
    if base is None or not decided:
        start, wanted = plain, edits
    elif own:
        start, wanted = applied(plain, edits), GgufEdits()
    else:
        start, wanted = base, net_edits(base, plain, edits)
    return Change(
        current=plain,
        base=start,
        wanted=wanted,
        method="none" if record is None else record.method,
        target=target,
        tables=_tables(plain, scalings, target) if dynamic else standing_tables(inspection, target),
        reasons=("the rope as the checkpoint has it" + (f", written as {form}" if form else ""),),
        recorded=base is not None and decided,
        marked=own,
        baked=UNSET if record is None else record.baked,
    )


def _require_windows(plain: Gguf, inspection: Inspection, scalings: Mapping[str, Scaling]) -> None:
    """Refuse a length that only windows made possible, in a file that has none. Raises :class:`RefusedError`."""
    extended = inspection.current_context > inspection.trained_context
    scaled = any(group.scaling is not None for group in inspection.groups)
    free = any(group.spec is not None and group.window is None for group in inspection.groups)
    if (
        extended
        and free
        and not scaled
        and scalings
        and inspection.record is not None
        and inspection.record.method == "none"
    ):
        raise RefusedError(
            f"a GGUF file of the architecture {plain.architecture} hasn't got the windows that make "
            f"{inspection.current_context} tokens possible without a scaling",
            code="window-lost",
            file="config.json",
            key="sliding_window",
            hint=f"--method yarn --target {inspection.current_context} scales the rope for a file without windows",
        )


def _over_plain(
    plain: Gguf, ropes: Mapping[str, tuple[RopeSpec | None, Scaling | None]], target: int
) -> dict[str, Scaling]:
    """Each group's scaling over the plain export's rope, or the change of base that changes nothing."""
    specs = read_rope(plain).specs
    found: dict[str, Scaling] = {}
    for label, (spec, scaling) in ropes.items():
        if spec is None:
            continue
        static = Rebase(rope_theta=dynamic_theta(spec, scaling, target)) if isinstance(scaling, Dynamic) else scaling
        over = over_base(specs[label], spec, static, length=target)
        found[label] = over or Rebase(rope_theta=spec.rope_theta)
    return found


def _written(
    plain: Gguf, inspection: Inspection, scalings: Mapping[str, Scaling], target: int, recipe: Recipe
) -> tuple[GgufEdits, str | None]:
    """What makes llama.cpp read these scalings over the plain export, and the form's name; nothing where it does."""
    tables = _tables(plain, scalings, target)
    if all(v.agrees for v in judge_gguf(plain, tables, target=target, required=GGUF_RUNTIMES)):
        return GgufEdits(), None
    rope = read_rope(plain)
    chosen = choose_gguf(
        plain,
        encodings(plain, rope, rope.specs, scalings, target=target),
        tables,
        target=target,
        carriers=recipe.carrier,
        allow="unreadable" in recipe.allow,
    )
    return _with_original(plain, chosen.encoding.edits, inspection), chosen.encoding.name


def _with_original(plain: Gguf, edits: GgufEdits, inspection: Inspection) -> GgufEdits:
    """The edits with the original length that the checkpoint's scaling states, or without one where it states none."""
    key = f"{plain.architecture}.{ORIGINAL}"
    stated = [
        scaling.original_max_position_embeddings
        for group in inspection.groups
        for scaling in (group.scaling, group.base.scaling if group.base is not None else None)
        if isinstance(scaling, Yarn | Llama3 | LongRope)
    ]
    kind = edits.keys.get(f"{plain.architecture}.{TYPE}")
    if kind is not None and kind.value in ("yarn", "longrope"):
        return edits
    keys = {name: value for name, value in edits.keys.items() if name != key}
    if stated:
        keys[key] = GgufValue(type="UINT32", value=stated[0])
    return msgspec.structs.replace(edits, keys=keys)


def _tables(plain: Gguf, scalings: Mapping[str, Scaling], target: int) -> dict[str, RopeTable]:
    return {label: table(spec, scalings[label], length=target) for label, spec in read_rope(plain).specs.items()}


def _base(plain: Gguf, inspection: Inspection, recipe: Recipe) -> Gguf | None:
    """The header with what was trained in, which a later conversion starts from; None where no form holds that."""
    bases = {group.label: group.base for group in inspection.groups if group.base is not None}
    if all(base.scaling is None for base in bases.values()):
        return plain
    trained = inspection.trained_context
    ropes = {label: (base.spec, base.scaling) for label, base in bases.items()}
    try:
        edits, _form = _written(plain, inspection, _over_plain(plain, ropes, trained), trained, recipe)
    except RefusedError:
        return None
    return applied(plain, edits)


def _extended(plain: Gguf, inspection: Inspection, recipe: Recipe) -> tuple[Change, tuple[PlanWarning, ...]]:
    trained = inspection.trained_context
    target = resolve_target(recipe, trained)
    require_decided(inspection, recipe, file="config.json", key="rope_scaling", original_key="rope_scaling")
    if target <= trained:
        require_auto(recipe, trained, target)
        return _as_it_is(plain, inspection, recipe), ()
    require_unbaked(inspection.record)
    wanted = wanted_bases(inspection, recipe)
    base = _base(plain, inspection, recipe)
    start = plain if base is None else base
    if not wanted:
        change, caution = lengths_only(plain, start, inspection, target)
        return change, (caution,)
    change = solved_change(plain, start, inspection, recipe, wanted, target)
    return msgspec.structs.replace(change, recorded=base is not None), ()


def export_name(contents: Contents, recipe: Recipe, change: Change, action: Export) -> str:
    """A file, or of several the folder that holds them."""
    name = default_gguf_name(contents, change.method, change.target).removesuffix(".gguf")
    if says_nothing(recipe):
        outtypes = action.outtypes
        name = f"{contents.name}-{outtypes[0].upper()}" if len(outtypes) == 1 else contents.name
    return f"{name}.gguf" if action.single else f"{name}{FOLDER}"
