"""Plans that make safetensors of a GGUF file without a rope. Pure."""

from __future__ import annotations

import msgspec

from ctxextend.changes import Carry, Restore, as_json
from ctxextend.contents import Contents
from ctxextend.encoding import PlanWarning
from ctxextend.errors import RefusedError
from ctxextend.export_plan import require_no_method, says_nothing
from ctxextend.exports.reverse import restored_of
from ctxextend.formats.gguf_keys import POSITION_TABLE
from ctxextend.gguf_inspection import gguf_of
from ctxextend.gguf_record import GgufRecord, find_gguf_record, without_record
from ctxextend.import_plan import checkpoint_of, dtype_of
from ctxextend.inspection import Inspection, inspect
from ctxextend.methods import decode_options, extension_factor
from ctxextend.plan import Plan, arithmetic, default_name, source_ref
from ctxextend.position_plan import make_position_plan, plan_of
from ctxextend.positions import PositionChange, fitting_method, refuse_rope_options
from ctxextend.recipe import Recipe, resolve_target
from ctxextend.record import KEY, Record


def make_position_import_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for safetensors of an inspected GGUF file without a rope: as it is, or with a longer length for ALiBi.

    Raises :class:`RefusedError` for an architecture that isn't known and for a table that is to grow at once, and
    :class:`UsageError`.
    """
    gguf = gguf_of(contents)
    record = find_gguf_record(gguf)
    restored = restored_of(without_record(gguf, record), contents.tensors, dtype=dtype_of(recipe))
    baked = record if record is not None and record.baked == "positions" else None
    virtual = checkpoint_of(contents, restored, restored.config)
    known = inspect(virtual, family=recipe.family, original_context=recipe.original_context)
    name = f"{contents.name}-safetensors"
    if not says_nothing(recipe):
        _refuse_growth(inspection, recipe, gguf.file)
        plan = make_position_plan(virtual, known, recipe)
        name = default_name(contents.name, plan.method, plan.target_context)
    else:
        require_no_method(recipe)
        plan = _as_it_is(virtual, known, recipe, record)
    action = Restore(
        family=restored.family,
        dtype=restored.dtype,
        config={**restored.config, **({KEY: as_json(_record(baked))} if baked is not None else {})},
        files=tuple(file.path for file in contents.files),
        size_bytes=sum(tensor.size_bytes for tensor in virtual.tensors),
    )
    if baked is not None:
        plan = _resized_before(plan, baked)
    kept = (action for action in plan.actions if not isinstance(action, Carry))
    notes = tuple(PlanWarning(code=note.code, message=note.message) for note in restored.notes)
    return msgspec.structs.replace(
        plan,
        source=source_ref(contents),
        actions=(*kept, action),
        warnings=(*notes, *plan.warnings),
        out=name,
    )


def _record(found: GgufRecord) -> Record:
    """The record of a table that was resized, as a config.json holds it: nothing can be put back."""
    return Record(
        version=found.version,
        method=found.method,
        trained_context=found.trained_context,
        target_context=found.target_context,
        plan=found.plan,
        base={},
        baked=found.baked,
    )


def _resized_before(plan: Plan, record: GgufRecord) -> Plan:
    """The plan for a table as it is, with what an earlier conversion made of it."""
    return msgspec.structs.replace(
        plan,
        method=record.method,
        trained_context=record.trained_context,
        factor=extension_factor(record.trained_context, record.target_context),
        arithmetic=arithmetic(record.trained_context, record.target_context),
    )


def _refuse_growth(inspection: Inspection, recipe: Recipe, file: str) -> None:
    if inspection.position == "alibi":
        return
    refuse_rope_options(recipe)
    decode_options(fitting_method(inspection, recipe), recipe.options)
    if resolve_target(recipe, inspection.trained_context) > inspection.trained_context:
        raise RefusedError(
            "the table of positions grows in weights that exist, and those of a GGUF file are no safetensors yet",
            code="stored-positions",
            file=file,
            key=POSITION_TABLE,
            hint="restore it first, without --target and --factor; then convert the result",
        )


def _as_it_is(virtual: Contents, known: Inspection, recipe: Recipe, record: GgufRecord | None) -> Plan:
    """The positions that the file has; what an earlier conversion raised is raised there too."""
    if record is not None and record.keys and known.position == "alibi":
        again = msgspec.structs.replace(recipe, method=record.method, target=record.target_context)
        return make_position_plan(virtual, known, again)
    change = PositionChange(
        method="none",
        options={},
        target=known.current_context,
        edits={},
        tensors=(),
        reasons=("the positions as the file has them",),
        warnings=(),
    )
    return plan_of(virtual, known, recipe, change)
