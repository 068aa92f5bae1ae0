"""Plans that make a GGUF file of a checkpoint without a rope. Pure.

What happens to positions is ``positions.py``'s business. Here it becomes a key, and the table of positions grows while
the export reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET

from ctxextend.changes import DropTensor, Export, gguf_actions
from ctxextend.contents import Contents, Gguf, GgufEdits, GgufValue
from ctxextend.encoding import PlanWarning
from ctxextend.errors import RefusedError
from ctxextend.export_plan import (
    export_name,
    header_of,
    output_bytes,
    outtypes_of,
    plain_export,
    require_no_method,
    require_safetensors,
    says_nothing,
)
from ctxextend.exports.export import Export as Exported
from ctxextend.exports.rows import ROWS
from ctxextend.formats.gguf_architectures import OF_FAMILY
from ctxextend.formats.gguf_keys import CONTEXT
from ctxextend.formats.gguf_write import applied
from ctxextend.formats.hf_positions import read_positions
from ctxextend.gguf_plan import Change, assemble_gguf, settled
from ctxextend.inspection import Inspection
from ctxextend.methods import extension_factor
from ctxextend.plan import Plan, arithmetic, require_rope, source_ref
from ctxextend.positions import PositionChange, refuse_rope_options, solve_positions
from ctxextend.recipe import Recipe
from ctxextend.record import require_unbaked
from ctxextend.runtimes.llama_cpp import LlamaCpp
from ctxextend.runtimes.position_limits import checkpoint_of, position_reading
from ctxextend.version import VERSION

_AS_IT_IS: Final = "the positions as the checkpoint has them"


def make_position_export_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for a GGUF file of an inspected checkpoint without a rope.

    Raises :class:`RefusedError` (with the hint that overrides it), :class:`UsageError`, and
    :class:`CheckpointError` for a checkpoint without safetensors.
    """
    if inspection.position == "rope":
        require_rope(inspection)
    if says_nothing(recipe):
        require_no_method(recipe)
        refuse_rope_options(recipe)
    if recipe.converter is not None or inspection.family.name not in ROWS:
        require_safetensors(contents)
        _require_convertible(contents, inspection)
    if recipe.converter is not None:
        return _converted(contents, inspection, recipe)
    exported = plain_export(contents, inspection)
    plain = header_of(exported)
    warnings: tuple[PlanWarning, ...] = ()
    options: Mapping[str, Any] = {}
    if says_nothing(recipe):
        change = _as_it_is(plain, inspection)
    else:
        solved = _solved(contents, inspection, recipe)
        change, warnings, options = _extended(plain, inspection, solved), solved.warnings, solved.options
    action = _action(contents, recipe, exported.architecture)
    notes = (PlanWarning(code=note.code, message=note.message) for note in exported.notes)
    plan = assemble_gguf(
        contents, inspection, recipe, change, actions=(*change.tensors, action), warnings=(*warnings, *notes)
    )
    name = export_name(contents, recipe, change, action)
    return msgspec.structs.replace(plan, position=inspection.position, options=options, out=name)


def _as_it_is(plain: Gguf, inspection: Inspection) -> Change:
    """The length that the checkpoint has; of one that was extended here, with the record of that."""
    record, length = inspection.record, inspection.current_context
    ours = record is not None and length != inspection.trained_context
    return Change(
        current=plain,
        base=_with_length(plain, inspection.trained_context) if ours else plain,
        wanted=_length(plain, length) if ours else GgufEdits(),
        method=record.method if record is not None else "none",
        target=length,
        tables={},
        reasons=(_AS_IT_IS,),
        baked=record.baked if record is not None else UNSET,
    )


def _solved(contents: Contents, inspection: Inspection, recipe: Recipe) -> PositionChange:
    """What extends it. Raises :class:`RefusedError` for a table that was resized already."""
    require_unbaked(inspection.record)
    return solve_positions(contents, inspection, recipe, gguf=True)


def _extended(plain: Gguf, inspection: Inspection, solved: PositionChange) -> Change:
    # What the export leaves out needn't be dropped.
    tensors = tuple(change for change in solved.tensors if not isinstance(change, DropTensor))
    return Change(
        current=plain,
        base=_with_length(plain, inspection.trained_context),
        wanted=_length(plain, solved.target) if solved.method != "none" else GgufEdits(),
        method=solved.method,
        target=solved.target,
        tables={},
        reasons=solved.reasons,
        baked="positions" if tensors else UNSET,
        tensors=tensors,
    )


def _length(header: Gguf, length: int) -> GgufEdits:
    """The edits that state a length in tokens."""
    return GgufEdits(keys={f"{header.architecture}.{CONTEXT}": GgufValue(type="UINT32", value=length)})


def _with_length(header: Gguf, length: int) -> Gguf:
    return applied(header, _length(header, length))


def _action(contents: Contents, recipe: Recipe, architecture: str) -> Export:
    outtypes = outtypes_of(contents, recipe)
    return Export(
        architecture=architecture,
        outtypes=outtypes,
        files=tuple(dict.fromkeys(tensor.file for tensor in contents.tensors)),
        size_bytes=sum(output_bytes(contents, outtype) for outtype in outtypes),
        split_max_size=recipe.split_max_size,
        converter=recipe.converter is not None,
    )


# Through llama.cpp's converter.


def _converted(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The file that llama.cpp's converter makes, with the length and the record of the checkpoint.

    Raises :class:`RefusedError` for an extension: the converter reads the checkpoint where it lies.
    """
    name = inspection.family.name
    if not says_nothing(recipe):
        own = "leave --converter away" if name in ROWS else "convert to safetensors first, without --to gguf"
        raise RefusedError(
            "llama.cpp's converter reads the checkpoint as it is, so what it makes can't be extended on the way",
            code="converter-reads-weights",
            key="--converter",
            expected="no --target and no --factor",
            hint=f"{own}{'' if name in ROWS else '; then export that with --converter'}",
        )
    length = inspection.current_context
    plain = converted_positions(inspection)
    action = _action(contents, recipe, str(plain.architecture))
    change = _as_it_is(plain, inspection)
    digest, edits = settled(change, inspection)
    return Plan(
        version=VERSION,
        digest=digest,
        source=source_ref(contents),
        family=name,
        method=change.method,
        options={},
        factor=extension_factor(inspection.trained_context, length) if length > inspection.trained_context else 1.0,
        arithmetic=arithmetic(inspection.trained_context, length),
        trained_context=inspection.trained_context,
        current_context=length,
        target_context=length,
        reasons=(_AS_IT_IS,),
        runtimes=recipe.runtimes,
        groups=(),
        actions=(*gguf_actions(plain, edits), action),
        warnings=(),
        out=export_name(contents, recipe, change, action),
        to="gguf",
        position=inspection.position,
    )


def _require_convertible(contents: Contents, inspection: Inspection) -> None:
    """Raises :class:`RefusedError` for a model of which llama.cpp's converter makes no file, or a wrong one."""
    positions = read_positions(contents.tensors, contents.config, inspection.family)
    if positions is None:
        return
    reading = position_reading(LlamaCpp(), checkpoint_of(positions, contents.config, inspection.family))
    if reading.problem is None:
        return
    raise RefusedError(
        f"llama.cpp can't have this model: {reading.problem}",
        code="unknown-export",
        file="config.json",
        key="model_type",
        found=str(inspection.model_type),
        hint="convert it to safetensors, without --to gguf: 'ctxextend check' says which runtimes serve that",
    )


def converted_positions(inspection: Inspection) -> Gguf:
    """What llama.cpp's converter is to say of the positions of a checkpoint."""
    architecture = OF_FAMILY.get(inspection.family.name, inspection.family.name)
    name = GgufValue(type="STRING", value=architecture)
    header = header_of(Exported(architecture=architecture, values={"general.architecture": name}, layouts=()))
    return _with_length(header, inspection.current_context)
