"""What llama.cpp and what builds on it will make of a GGUF file, and what is wrong with it. Pure.

The tables are compared with what the file's writer evidently meant: the keys as llama.cpp's own converter
writes them, the dead ones included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from ctxextend.comparison import compare
from ctxextend.contents import Contents, Gguf
from ctxextend.errors import CtxextendError
from ctxextend.faults import Fault, reach_of
from ctxextend.findings import Advice, Check, Meant, assembled, judged
from ctxextend.formats.gguf_keys import (
    ATTENTION,
    CONTEXT,
    FACTOR,
    FINETUNED,
    FREQS,
    ORIGINAL,
    POSITION_TABLE,
    GgufGroup,
    GgufRope,
    read_rope,
)
from ctxextend.formats.gguf_write import GgufEncoding, encodings
from ctxextend.gguf_encoding import choose_gguf
from ctxextend.gguf_inspection import gguf_of, other_rows, table_rows
from ctxextend.rope import RopeSpec
from ctxextend.runtimes import gguf_readers_of
from ctxextend.runtimes.llama_cpp import GGUF_READERS, LlamaCpp, unused_keys
from ctxextend.scaling import LongRope, Rebase, Scaling, Yarn, table

#: Who reads GGUF files: what troubles one troubles the other, which runs it.
_BOTH: Final = ("llama.cpp", "ollama")


def meant_by_gguf(contents: Contents) -> Meant:
    """What a GGUF file's writer meant. Raises :class:`CheckpointError` for values that can't be."""
    rope = read_rope(gguf_of(contents))
    target = table_rows(contents) or _length_meant(rope)
    tables = {g.label: table(g.spec, g.scaling, length=target) for g in rope.groups if g.spec is not None}
    return Meant(tables=tables, target=target, source="what the file's keys were written to mean")


def check_gguf(contents: Contents, *, required: Iterable[str], against: Meant | None = None) -> Check:
    """What each reader of GGUF files makes of ``contents``; those that ``required`` names are required.

    ``against``: what it is held to instead of its own meaning. Raises :class:`CheckpointError` for a file
    that can't be read, :class:`RefusedError` for an architecture of which nothing is known,
    :class:`UsageError` for a version that isn't one.
    """
    gguf = gguf_of(contents)
    rope = read_rope(gguf)
    meant = against or meant_by_gguf(contents)
    wanted = gguf_readers_of(required)
    answers = [
        judged(
            reader,
            reader.effective(gguf, length=meant.target),
            meant,
            source=_served(contents, gguf),
            required=reader in wanted,
        )
        for reader in GGUF_READERS
    ]
    better = _better(gguf, rope, meant, own=against is None)
    advice = Advice(
        length=f"set {gguf.architecture}.{CONTEXT} = {meant.target}",
        # True of a file without the key, and of one whose key says something else than is meant.
        temperature=f"the factor beside llama.cpp's own is {gguf.architecture}.{ATTENTION}: {better}",
        otherwise=better,
    )
    reached = None if against is None else meant.target
    faults = (*_missing(contents), *_table(contents, rope), *_faults(gguf, rope, better, reached))
    return assembled(contents.source, meant, answers, faults, advice)


def _missing(contents: Contents) -> Iterator[Fault]:
    for note in contents.notes:
        if note.code == "missing-shards":
            yield Fault(
                code=note.code,
                message=f"files of a split GGUF are missing: {note.message}",
                fix="fetch all its files into one folder",
                level="error",
                troubles=_BOTH,
            )


def _table(contents: Contents, rope: GgufRope) -> Iterator[Fault]:
    """A table of positions that isn't there, or isn't as long as the file says."""
    rows = table_rows(contents)
    if rows is None and rope.architecture.position == "learned" and not list(_missing(contents)):
        yield Fault(
            code="table-missing",
            message=f"{POSITION_TABLE} isn't in the file, and {rope.architecture.name} has no other positions",
            fix="make the file of its checkpoint anew",
            level="error",
            troubles=_BOTH,
        )
    if rows is not None and rows != rope.context_length:
        yield Fault(
            code="table-rows",
            message=other_rows(rope, rows),
            fix=f"set {rope.architecture.name}.{CONTEXT} = {rows}",
            level="error",
            troubles=_BOTH,
        )


def _served(contents: Contents, gguf: Gguf) -> str:
    """What a server is to be given: of a split file the first one."""
    folder, slash, name = contents.source.rpartition("/")
    first = gguf.file.rpartition("/")[2]
    return f"{folder}{slash}{first}" if name.endswith(".gguf") else contents.source


def _length_meant(rope: GgufRope) -> int:
    """What the file states, or what its yarn reaches where nobody raised that."""
    yarn = _scaled(rope)
    stated = rope.context_length
    if yarn is None or not isinstance(yarn.scaling, Yarn) or rope.original_context_length is None:
        return stated
    return reach_of(yarn.scaling) if stated <= rope.original_context_length else stated


def _scaled(rope: GgufRope) -> GgufGroup | None:
    return next((group for group in rope.groups if group.scaling is not None), None)


def _faults(gguf: Gguf, rope: GgufRope, better: str, wanted: int | None) -> Iterator[Fault]:
    """What the file itself shows. ``wanted``: the length that it is held to, where that isn't its own."""
    name, group = gguf.architecture, _scaled(rope)
    if is_off(gguf, rope):
        yield Fault(
            code="rope-off",
            message=f"{name}.{FINETUNED} is false, by which llama.cpp turns the rope of a {name} off altogether",
            fix=f"remove {name}.{FINETUNED}",
            level="error",
            troubles=_BOTH,
        )
    for note in rope.notes:
        if note.code == "no-original":
            yield Fault(
                code="original-length-missing",
                message=f"{note.message}, and the ramp is placed by a length that was raised",
                fix=f"set {name}.{ORIGINAL} = the length that the weights were trained for",
                level="error",
                troubles=_BOTH,
            )
        else:
            fix = "export the file again with the lists of the checkpoint"
            yield Fault(code=note.code, message=note.message, fix=fix, troubles=_BOTH)
    dead = unused_keys(gguf)
    if dead:
        yield Fault(
            code="dead-keys",
            message=f"{', '.join(dead)}: llama.cpp doesn't read them in a {name}, or overwrites what they say; the "
            "attention factor that counts stands in rope.scaling.attn_factor",
            fix=_together(*(f"remove {key}" for key in dead), better),
            troubles=_BOTH,
        )
    if FREQS in gguf.factors and (gguf.values.get(f"{name}.{FACTOR}")) is not None:
        yield Fault(
            code="factor-and-tensor",
            message=f"{FREQS} stands beside {name}.{FACTOR}: both are applied, one on the other",
            fix=f"remove {name}.{FACTOR}, unless both are meant",
            troubles=_BOTH,
        )
    if group is not None:
        # transformers 5.23 integrations/ggml.py maps the base alone; vLLM 0.33 has no reader of rope_freqs.
        yield Fault(
            code="lost-elsewhere",
            message="transformers and vLLM take a GGUF file's base alone: with them this scaling is lost",
            fix="serve the safetensors checkpoint there",
            level="info",
        )
    scaling = group.scaling if group is not None else None
    if isinstance(scaling, Yarn) and rope.original_context_length is not None:
        reached = reach_of(scaling)
        if reached != rope.context_length:
            yield Fault(
                code="length-mismatch",
                message=f"{name}.{CONTEXT} is {rope.context_length}, but yarn reaches "
                f"{scaling.original_max_position_embeddings} x {scaling.factor:g} = {reached}: llama-server and "
                "Ollama serve no more than is stated",
                fix=f"set {name}.{CONTEXT} = {wanted or reached}",
                troubles=_BOTH,
            )
    if isinstance(scaling, LongRope) and scaling.short_factor != scaling.long_factor:
        yield Fault(
            code="longrope-switches",
            message="llama.cpp takes the long list for every input once the context is larger than "
            f"{scaling.original_max_position_embeddings} tokens, the short one below",
            fix=f"serve short inputs with -c {scaling.original_max_position_embeddings} where they matter",
            level="info",
        )


def is_off(gguf: Gguf, rope: GgufRope) -> bool:
    """Whether a key of the file turns its rope off."""
    said = gguf.values.get(f"{rope.architecture.name}.{FINETUNED}")
    return rope.architecture.switched and said is not None and said.value is False


def _together(*changes: str) -> str:
    """Changes as one line, each once."""
    return "; ".join(dict.fromkeys(part for change in changes for part in change.split("; ")))


def _better(gguf: Gguf, rope: GgufRope, meant: Meant, *, own: bool) -> str:
    """The changes that would make llama.cpp read what is meant, or that there are none.

    ``own``: it is the file's own meaning.
    """
    changes = []
    if is_off(gguf, rope):
        key = f"{rope.architecture.name}.{FINETUNED}"
        gguf = msgspec.structs.replace(gguf, values={k: v for k, v in gguf.values.items() if k != key})
        changes.append(f"remove {key}")
    reading = LlamaCpp().effective(gguf, length=meant.target)
    if reading.unknown is None and compare(reading, meant.tables, target=meant.target).reason is None:
        return "; ".join(changes) or "see the other findings"
    encoding = mending(gguf, rope, meant)
    if encoding is None:
        return _together(*changes, "convert the original checkpoint again: nothing in this file can say what is meant")
    # An original length that nobody stated is not guessed.
    guessed = f"{rope.architecture.name}.{ORIGINAL}" if own and rope.original_context_length is None else None
    changes += [
        f"set {key} = {value.value}"
        for key, value in encoding.keys.items()
        if gguf.values.get(key) != value and key != guessed
    ]
    changes += [f"remove {key}" for key in encoding.removed]
    changes += [f"remove the tensor {tensor}" for tensor in encoding.removed_tensors]
    changes += [
        f"add the tensor {tensor} ({len(numbers)} numbers, convert writes it)"
        for tensor, numbers in encoding.tensors.items()
        if gguf.factors.get(tensor) != numbers
    ]
    return "; ".join(changes) or "see the other findings"


def mending(gguf: Gguf, rope: GgufRope, meant: Meant) -> GgufEncoding | None:
    """The keys and tensors that say what is meant: in the file's own type of scaling, else as one factor a pair."""
    specs = rope.specs
    own = {g.label: g.scaling or Rebase(rope_theta=g.spec.rope_theta) for g in rope.groups if g.spec is not None}
    for scalings in (own, _retempered(own, meant), _carriers(rope, specs, meant)):
        try:
            candidates = encodings(gguf, rope, specs, scalings, target=meant.target)
            return choose_gguf(gguf, candidates, meant.tables, target=meant.target).encoding
        except (CtxextendError, ArithmeticError, ValueError):
            continue
    return None


def _retempered(scalings: Mapping[str, Scaling], meant: Meant) -> dict[str, Scaling]:
    """The file's own scalings with the attention factor that is meant."""
    return {
        label: msgspec.structs.replace(scaling, attention_factor=meant.tables[label].attention_factor)
        if isinstance(scaling, Yarn | LongRope) and label in meant.tables
        else scaling
        for label, scaling in scalings.items()
    }


def _carriers(rope: GgufRope, specs: Mapping[str, RopeSpec], meant: Meant) -> dict[str, Scaling]:
    """Each table that is meant as one list of factors over the file's plain rope, where it can be one."""
    found: dict[str, Scaling] = {}
    for label, goal in meant.tables.items():
        plain = specs[label].inv_freq() if label in specs else ()
        if len(plain) == len(goal.inv_freq) and all(goal.inv_freq):
            factors = goal.stretch(plain)
            found[label] = LongRope(
                short_factor=factors,
                long_factor=factors,
                original_max_position_embeddings=max(rope.context_length, 2),
                factor=1.0,
                attention_factor=goal.attention_factor,
            )
    return found
