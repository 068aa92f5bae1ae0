"""Plans for GGUF files of models without a rope: ALiBi's length is a key, a learned table is in the weights. Pure."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ctxextend.contents import Contents, Document, Gguf, GgufEdits, GgufValue
from ctxextend.errors import RefusedError
from ctxextend.families.positions import Alibi
from ctxextend.formats.gguf_keys import CONTEXT, MAX_ALIBI_BIAS, POSITION_TABLE, Keys
from ctxextend.gguf_inspection import gguf_of
from ctxextend.gguf_plan import Change, assemble_gguf
from ctxextend.gguf_record import find_gguf_record, require_unbaked, without_record
from ctxextend.inspection import Inspection
from ctxextend.plan import Plan
from ctxextend.positions import PositionChange, solve_positions
from ctxextend.recipe import Recipe


def make_position_gguf_plan(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for ``recipe`` on an inspected GGUF file without a rope.

    Raises :class:`RefusedError` for a learned table, of which no key makes more rows, and :class:`UsageError`.
    """
    gguf = gguf_of(contents)
    record = find_gguf_record(gguf)
    require_unbaked(record, gguf.file)
    base = without_record(gguf, record)
    facts = inspection.family.positions
    if inspection.position != "alibi" or not isinstance(facts, Alibi):
        raise RefusedError(
            f"the table of positions in this file has {inspection.current_context} rows, and no key makes more of them",
            code="stored-positions",
            file=gguf.file,
            key=POSITION_TABLE,
            hint="start from the safetensors checkpoint, whose table grows while it is exported: --to gguf",
        )
    solved = _solved(contents, inspection, recipe, _as_config(base, facts, inspection.trained_context))
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
    return solve_positions(checkpoint, msgspec.structs.replace(inspection, config=config), recipe)


def _as_config(gguf: Gguf, facts: Alibi, length: int) -> dict[str, Any]:
    """What config.json would say of ALiBi: the length in tokens, the heads, and the largest exponent where it does."""
    keys = Keys(gguf.values, str(gguf.architecture))
    found: dict[str, Any] = {facts.length_key: length, facts.heads_keys[0]: keys.required("attention.head_count")}
    largest = keys.number(MAX_ALIBI_BIAS)
    if facts.largest_exponent_path and largest is not None:
        *path, last = facts.largest_exponent_path
        node = found
        for part in path:
            node = node.setdefault(part, {})
        node[last] = largest
    return found
