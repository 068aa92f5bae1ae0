"""Plans that make a GGUF file of a safetensors checkpoint. Pure.

The plain export is what ``exports/`` says; the scaling is written over it as into a file that exists. Without a
target the file says what the checkpoint says.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from ctxextend.changes import Export
from ctxextend.contents import GGML_TYPES, Contents, Gguf, GgufEdits
from ctxextend.encoding import PlanWarning
from ctxextend.errors import CheckpointError, RefusedError, UsageError
from ctxextend.exports.export import Export as Exported
from ctxextend.exports.export import export_of
from ctxextend.exports.outtypes import FILE_TYPES, NATIVE
from ctxextend.formats.gguf_architectures import OF_FAMILY
from ctxextend.formats.gguf_keys import GgufRope, read_rope
from ctxextend.formats.gguf_write import applied, encodings
from ctxextend.gguf_encoding import choose_gguf, judge_gguf
from ctxextend.gguf_outlook import plain_header
from ctxextend.gguf_plan import Change, assemble_gguf, default_gguf_name, gguf_chooser, planned_tables
from ctxextend.gguf_record import net_edits
from ctxextend.inspection import Group, Inspection
from ctxextend.methods import extension_factor
from ctxextend.plan import Plan, require_auto, require_decided, require_rope
from ctxextend.recipe import Recipe, resolve_target
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes import GGUF_RUNTIMES
from ctxextend.scaling import Dynamic, Rebase, Scaling, dynamic_theta, table
from ctxextend.solving import solve, wanted_bases

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
    inspection = msgspec.structs.replace(inspection, groups=_labelled(inspection, read_rope(plain)))
    change = _as_it_is(plain, inspection) if _says_nothing(recipe) else _extended(plain, inspection, recipe)
    outtypes = outtypes_of(contents, recipe)
    weights = tuple(dict.fromkeys(tensor.file for tensor in contents.tensors))
    action = Export(
        architecture=str(plain.architecture),
        outtypes=outtypes,
        files=weights,
        size_bytes=sum(output_bytes(contents, outtype) for outtype in outtypes),
        split_max_size=recipe.split_max_size,
        converter=recipe.converter,
    )
    warnings = [PlanWarning(code=note.code, message=note.message) for note in notes]
    plan = assemble_gguf(contents, inspection, recipe, change, actions=(action,), warnings=warnings)
    return msgspec.structs.replace(plan, out=_name(contents, recipe, change, outtypes))


def plain_export(contents: Contents, inspection: Inspection) -> Exported:
    """The export of the checkpoint as it was before any scaling was written over it."""
    assert inspection.rope is not None
    _require_safetensors(contents)
    tensors = {tensor.name: tensor for tensor in contents.tensors}
    return export_of(inspection.family.name, inspection.config, tensors, rope=inspection.rope)


def converted_header(contents: Contents, inspection: Inspection) -> Gguf:
    """What llama.cpp's converter says of the rope of a checkpoint, before anything is corrected.

    Raises :class:`RefusedError` for a family whose architecture isn't known: nothing could be said of its file.
    """
    assert inspection.rope is not None
    _require_safetensors(contents)
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


def _require_safetensors(contents: Contents) -> None:
    if contents.storage != "safetensors":
        raise CheckpointError(
            "only safetensors can be exported",
            code="no-safetensors",
            file=contents.source,
            expected="a checkpoint with .safetensors files",
            found=contents.storage,
            hint="save it with save_pretrained of transformers first" if contents.storage == "pytorch" else None,
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


def _says_nothing(recipe: Recipe) -> bool:
    return recipe.target is None and recipe.factor is None


def _labelled(inspection: Inspection, rope: GgufRope) -> tuple[Group, ...]:
    """The checkpoint's groups as the file's layers fall into groups. Raises :class:`RefusedError` where they can't."""
    of_layer = {layer: group for group in inspection.groups for layer in group.layers}
    found = []
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
        found.append(msgspec.structs.replace(first, label=group.label, layers=group.layers))
    return tuple(found)


def _rope(group: Group) -> tuple[object, ...]:
    return group.spec, group.scaling, group.base


def _as_it_is(plain: Gguf, inspection: Inspection) -> Change:
    """The scaling that the checkpoint has, in the form that llama.cpp reads."""
    target = inspection.current_context
    scalings = {g.label: _static(g.spec, g.scaling, target) for g in inspection.groups if g.spec is not None}
    edits, form = _written(plain, inspection, scalings, target)
    record = inspection.record
    base = plain if record is None else _base(plain, inspection)
    return Change(
        current=plain,
        base=plain if base is None else base,
        wanted=edits if base is None or base is plain else net_edits(base, plain, edits),
        method="none" if record is None else record.method,
        target=target,
        tables=_tables(inspection, scalings, target),
        reasons=("the rope as the checkpoint has it" + (f", written as {form}" if form else ""),),
        recorded=record is not None and base is not None,
    )


def _written(
    plain: Gguf, inspection: Inspection, scalings: Mapping[str, Scaling], target: int
) -> tuple[GgufEdits, str | None]:
    """What makes llama.cpp read these scalings over the plain export, and the form's name; nothing where it does."""
    tables = _tables(inspection, scalings, target)
    if all(v.agrees for v in judge_gguf(plain, tables, target=target, required=GGUF_RUNTIMES)):
        return GgufEdits(), None
    rope = read_rope(plain)
    specs = {group.label: group.spec for group in rope.groups if group.spec is not None}
    chosen = choose_gguf(plain, encodings(plain, rope, specs, scalings, target=target), tables, target=target)
    return chosen.encoding.edits, chosen.encoding.name


def _tables(inspection: Inspection, scalings: Mapping[str, Scaling], target: int) -> dict[str, RopeTable]:
    return {
        group.label: table(group.spec, scalings[group.label], length=target)
        for group in inspection.groups
        if group.spec is not None
    }


def _base(plain: Gguf, inspection: Inspection) -> Gguf | None:
    """The header with what was trained in, which a later conversion starts from; None where no form holds that."""
    bases = {group.label: group.base for group in inspection.groups if group.base is not None}
    if all(base.scaling is None for base in bases.values()):
        return plain
    trained = inspection.trained_context
    scalings = {label: _static(base.spec, base.scaling, trained) for label, base in bases.items()}
    try:
        return applied(plain, _written(plain, inspection, scalings, trained)[0])
    except RefusedError:
        return None


def _static(spec: RopeSpec, scaling: Scaling | None, target: int) -> Scaling:
    """A scaling, or the change of base that changes nothing; a dynamic one as its equal at the target."""
    if isinstance(scaling, Dynamic):
        return Rebase(rope_theta=dynamic_theta(spec, scaling, target))
    return scaling or Rebase(rope_theta=spec.rope_theta)


def _extended(plain: Gguf, inspection: Inspection, recipe: Recipe) -> Change:
    trained = inspection.trained_context
    target = resolve_target(recipe, trained)
    require_decided(inspection, recipe, file="config.json", key="rope_scaling", original_key="rope_scaling")
    if target <= trained:
        require_auto(recipe, trained, target)
        return _as_it_is(plain, inspection)
    wanted = wanted_bases(inspection, recipe)
    if not wanted:
        raise RefusedError(
            "no layer of this checkpoint has a rope that sees past its window",
            code="nothing-to-scale",
            file="config.json",
            key="sliding_window",
        )
    factor = extension_factor(trained, target)
    base = _base(plain, inspection)
    start = plain if base is None else base
    choose = gguf_chooser(start, read_rope(start), inspection, recipe, target)
    solution, reasons = solve(recipe, wanted, target, factor, choose)
    return Change(
        current=plain,
        base=start,
        wanted=solution.chosen.encoding.edits,
        method=solution.method,
        target=target,
        tables=planned_tables(inspection, solution.scalings, target),
        reasons=reasons,
        solution=solution,
        recorded=base is not None,
    )


def _name(contents: Contents, recipe: Recipe, change: Change, outtypes: tuple[str, ...]) -> str:
    """A file, or of several the folder that holds them."""
    name = default_gguf_name(contents, change.method, change.target).removesuffix(".gguf")
    if _says_nothing(recipe):
        name = f"{contents.name}-{outtypes[0].upper()}" if len(outtypes) == 1 else f"{contents.name}{FOLDER}"
    one = len(outtypes) == 1 and recipe.split_max_size is None
    return f"{name}.gguf" if one else name
