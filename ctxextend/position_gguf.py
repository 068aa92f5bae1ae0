"""Plans for GGUF files of models without a rope: ALiBi's length is a key, a learned table is in the weights. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from ctxextend.contents import Contents, Document, Gguf, GgufEdits, GgufValue
from ctxextend.errors import RefusedError
from ctxextend.exports.rows import ROWS
from ctxextend.families.positions import Alibi
from ctxextend.formats.gguf_keys import CONTEXT, MAX_ALIBI_BIAS, POSITION_TABLE, Keys
from ctxextend.gguf_inspection import gguf_of
from ctxextend.gguf_plan import Change, assemble_gguf
from ctxextend.gguf_record import find_gguf_record, require_unbaked, without_record
from ctxextend.inspection import Inspection
from ctxextend.methods import decode_options
from ctxextend.plan import Plan, require_auto, within_trained
from ctxextend.positions import PositionChange, fitting_method, refuse_rope_options, solve_positions
from ctxextend.recipe import Recipe, resolve_target


def make_position_gguf_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for ``recipe`` on an inspected GGUF file without a rope.

    Raises :class:`RefusedError` for a learned table, of which no key makes more rows, and :class:`UsageError`.
    """
    gguf = gguf_of(contents)
    record = find_gguf_record(gguf)
    require_unbaked(record, gguf.file)
    base = without_record(gguf, record)
    facts = inspection.family.positions
    if inspection.position == "alibi" and isinstance(facts, Alibi):
        solved = _solved(contents, inspection, recipe, _as_config(base, facts, inspection.trained_context))
    else:
        solved = _within_table(inspection, recipe, gguf.file)
    length = inspection.trained_context if solved.method == "none" else solved.target
    key = f"{base.architecture}.{CONTEXT}"
    value = GgufValue(type="UINT32", value=length)
    change = Change(
        current=gguf,
        base=base,
        wanted=GgufEdits() if base.values.get(key) == value else GgufEdits(keys={key: value}),
        method=solved.method,
        target=solved.target,
        tables={},
        reasons=solved.reasons,
        reverted=record is not None,
    )
    plan = assemble_gguf(contents, inspection, recipe, change, warnings=solved.warnings)
    return msgspec.structs.replace(plan, position=inspection.position, options=solved.options)


def _solved(contents: Contents, inspection: Inspection, recipe: Recipe, config: dict[str, Any]) -> PositionChange:
    """What extends a checkpoint that says what the file says."""
    document = Document(text=json.dumps(config), value=config)
    checkpoint = msgspec.structs.replace(contents, documents={"config.json": document}, tensors=(), gguf=None)
    return solve_positions(checkpoint, msgspec.structs.replace(inspection, config=config), recipe, gguf=True)


def _within_table(inspection: Inspection, recipe: Recipe, file: str) -> PositionChange:
    """Nothing, for a target that the table holds. Raises :class:`RefusedError` for one past it."""
    refuse_rope_options(recipe)
    decode_options(fitting_method(inspection, recipe), recipe.options)
    trained = inspection.trained_context
    target = resolve_target(recipe, trained)
    if target > trained:
        raise RefusedError(
            f"the table of positions in this file has {trained} rows, and no key makes more of them",
            code="stored-positions",
            file=file,
            key=POSITION_TABLE,
            hint=_from_safetensors(str(inspection.model_type)),
        )
    require_auto(recipe, trained, target)
    return PositionChange(
        method="none",
        options={},
        target=target,
        edits={},
        tensors=(),
        reasons=(within_trained(inspection, target, reverted=False),),
        warnings=(),
    )


def _from_safetensors(architecture: str) -> str:
    """How a file with a larger table is made."""
    if any(row.architecture == architecture for row in ROWS.values()):
        return "start from the safetensors checkpoint, whose table grows while it is exported: --to gguf"
    return (
        "start from the safetensors checkpoint: convert that to safetensors, and export the result with --to gguf "
        "--converter PATH"
    )


#: Architectures whose files say the largest exponent of their slopes; of the others llama.cpp knows it to be 8.
_STATES_BIAS: Final = frozenset({"jais", "mpt"})


def _as_config(gguf: Gguf, facts: Alibi, length: int) -> dict[str, Any]:
    """What config.json would say of ALiBi: the length in tokens, the heads, and the largest exponent where it does."""
    keys = Keys(gguf.values, str(gguf.architecture))
    largest = keys.number(MAX_ALIBI_BIAS) if gguf.architecture in _STATES_BIAS else None
    if gguf.architecture in _STATES_BIAS and not (largest is not None and largest > 0.0):
        # llama.cpp takes a missing one for 0: no positions at all.
        raise keys.broken(MAX_ALIBI_BIAS, "a number above 0", keys.get(MAX_ALIBI_BIAS))
    found: dict[str, Any] = {facts.length_key: length, facts.heads_keys[0]: keys.required("attention.head_count")}
    if facts.largest_exponent_path and largest is not None:
        *path, last = facts.largest_exponent_path
        node = found
        for part in path:
            node = node.setdefault(part, {})
        node[last] = largest
    return found
