"""Mending a GGUF file: what its keys mean, written so that llama.cpp reads it. Pure.

The meaning stays; only the form changes. A file that needs nothing gets a plan without edits.
"""

from __future__ import annotations

import msgspec

from ctxextend.comparison import compare
from ctxextend.contents import Contents, Gguf, GgufEdits, GgufValue
from ctxextend.errors import RefusedError, UsageError
from ctxextend.formats.gguf_keys import CONTEXT, FINETUNED, ORIGINAL, TYPE, GgufRope, read_rope
from ctxextend.formats.gguf_write import applied
from ctxextend.gguf_check import is_off, meant_by_gguf, mending
from ctxextend.gguf_inspection import gguf_of, inspect_gguf
from ctxextend.gguf_plan import Change, assemble_gguf, default_gguf_name
from ctxextend.gguf_record import find_gguf_record
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.repair import METHOD
from ctxextend.runtimes.llama_cpp import LlamaCpp, unused_keys


def make_gguf_repair(
    contents: Contents, *, runtimes: tuple[str, ...], original_context: int | None = None, allow: tuple[str, ...] = ()
) -> Plan:
    """The plan that mends the file of ``contents``. ``original_context``: of a yarn that doesn't state it.

    Raises :class:`RefusedError` for keys with more than one sensible reading, for an output of ours, and where
    nothing in the file can say what is meant.
    """
    gguf = gguf_of(contents)
    record = find_gguf_record(gguf)
    if record is not None:
        raise RefusedError(
            "an earlier conversion of ctxextend wrote this rope, and starts from what was before it",
            code="ours",
            file=gguf.file,
            key="ctxextend.record",
            found=f"{record.method} to {record.target_context}",
            hint=f"ctxextend convert {contents.source} --method {record.method} --target {record.target_context}",
        )
    first = _said(gguf, read_rope(gguf), original_context)
    stated = msgspec.structs.replace(contents, gguf=applied(gguf, first))
    meant = meant_by_gguf(stated)
    wanted = _wanted(gguf_of(stated), read_rope(gguf_of(stated)), stated)
    change = Change(
        current=gguf,
        base=gguf,
        wanted=_both(first, wanted),
        method=METHOD,
        target=meant.target,
        tables=meant.tables,
        reasons=(
            "nothing: llama.cpp reads the file as it is meant"
            if wanted == GgufEdits() == first
            else "what the keys mean, written so that llama.cpp reads it",
        ),
        recorded=False,
    )
    recipe = Recipe(runtimes=runtimes, allow=allow)
    plan = assemble_gguf(contents, inspect_gguf(stated), recipe, change)
    return msgspec.structs.replace(plan, out=default_gguf_name(contents, "fixed", meant.target))


def _said(gguf: Gguf, rope: GgufRope, original_context: int | None) -> GgufEdits:
    """The original length that the user states, where the file has none. Raises where it is needed, or isn't."""
    missing = next((note for note in rope.notes if note.code == "no-original"), None)
    if missing is None:
        if original_context is not None:
            raise UsageError(
                "--original-context is for a scaling without an original length, and this one has it",
                code="bad-option",
                key="--original-context",
                hint="leave it away",
            )
        return GgufEdits()
    key = f"{gguf.architecture}.{ORIGINAL}"
    if original_context is None:
        raise RefusedError(
            f"the keys can be read in two ways: {missing.message}",
            code="two-readings",
            file=gguf.file,
            key=key,
            expected="the length that the weights were trained for",
            found="none",
            hint="--original-context says it",
        )
    return GgufEdits(keys={key: GgufValue(type="UINT32", value=original_context)})


def _wanted(gguf: Gguf, rope: GgufRope, contents: Contents) -> GgufEdits:
    """What has to change."""
    meant = meant_by_gguf(contents)
    dead = unused_keys(gguf)
    reading = LlamaCpp().effective(gguf, length=meant.target)
    same = reading.unknown is None and compare(reading, meant.tables, target=meant.target).reason is None
    if same and not dead and rope.context_length == meant.target:
        return GgufEdits()
    off = f"{rope.architecture.name}.{FINETUNED}" if is_off(gguf, rope) else None
    gone = tuple(key for key in (*dead, off) if key is not None)
    if same:
        length = GgufValue(type="UINT32", value=meant.target)
        return GgufEdits(keys={f"{rope.architecture.name}.{CONTEXT}": length}, removed=gone)
    without = applied(gguf, GgufEdits(removed=(off,) if off is not None else ()))
    encoding = mending(without, read_rope(without), meant)
    if encoding is None:
        raise RefusedError(
            f"nothing in a GGUF file of the architecture {rope.architecture.name} can say what this one means",
            code="unwritable",
            file=gguf.file,
            key=f"{rope.architecture.name}.{TYPE}",
            hint="convert the original checkpoint again: ctxextend convert SOURCE --to gguf",
        )
    return _both(GgufEdits(removed=gone), encoding.edits)


def _both(first: GgufEdits, then: GgufEdits) -> GgufEdits:
    """One edit after the other."""
    keys = {**{key: value for key, value in first.keys.items() if key not in then.removed}, **then.keys}
    return GgufEdits(
        keys=keys,
        removed=tuple(dict.fromkeys(key for key in (*first.removed, *then.removed) if key not in keys)),
        tensors=then.tensors,
        removed_tensors=then.removed_tensors,
    )
