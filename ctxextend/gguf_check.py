"""What llama.cpp and what builds on it will make of a GGUF file, and what is wrong with it. Pure.

The tables are compared with what the file's writer evidently meant: the keys as llama.cpp's own converter
writes them, the dead ones included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ctxextend.contents import Contents, Gguf
from ctxextend.errors import CheckpointError, CtxextendError
from ctxextend.faults import Fault, reach_of
from ctxextend.findings import Advice, Check, Meant, assembled, judged
from ctxextend.formats.gguf_keys import CONTEXT, FACTOR, FREQS, GgufGroup, GgufRope, read_rope
from ctxextend.formats.gguf_write import GgufEncoding, encodings
from ctxextend.gguf_encoding import choose_gguf
from ctxextend.runtimes.llama_cpp import GGUF_READERS, unused_keys
from ctxextend.scaling import LongRope, Rebase, Yarn, table

#: Who reads GGUF files: what troubles one troubles the other, which runs it.
_BOTH: Final = ("llama.cpp", "ollama")


def meant_by_gguf(contents: Contents) -> Meant:
    """What a GGUF file's writer meant. Raises :class:`CheckpointError` for values that can't be."""
    rope = read_rope(_gguf(contents))
    target = _length_meant(rope)
    tables = {g.label: table(g.spec, g.scaling, length=target) for g in rope.groups if g.spec is not None}
    return Meant(tables=tables, target=target, source="what the file's keys were written to mean")


def check_gguf(contents: Contents, *, required: Iterable[str], against: Meant | None = None) -> Check:
    """What each reader of GGUF files makes of ``contents``; those that ``required`` names are required.

    ``against``: what it is held to instead of its own meaning. Raises :class:`CheckpointError` for a file
    that can't be read, :class:`RefusedError` for an architecture of which nothing is known.
    """
    gguf = _gguf(contents)
    rope = read_rope(gguf)
    meant = against or meant_by_gguf(contents)
    names = {name.partition("@")[0] for name in required}
    answers = [
        judged(
            reader,
            reader.effective(gguf, length=meant.target),
            meant,
            source=contents.source,
            required=reader.runtime in names,
        )
        for reader in GGUF_READERS
    ]
    better = _better(gguf, rope, meant)
    advice = Advice(
        length=f"set {gguf.architecture}.{CONTEXT} to {meant.target}",
        temperature=better,
        otherwise=better,
    )
    return assembled(contents.source, meant, answers, _faults(gguf, rope), advice)


def _gguf(contents: Contents) -> Gguf:
    if contents.gguf is None:
        raise CheckpointError("this is no GGUF file", code="no-gguf", file=contents.source, found=contents.storage)
    return contents.gguf


def _length_meant(rope: GgufRope) -> int:
    """What the file states, or what its yarn reaches where nobody raised that."""
    yarn = _scaled(rope)
    stated = rope.context_length
    if yarn is None or not isinstance(yarn.scaling, Yarn) or rope.original_context_length is None:
        return stated
    return reach_of(yarn.scaling) if stated <= rope.original_context_length else stated


def _scaled(rope: GgufRope) -> GgufGroup | None:
    return next((group for group in rope.groups if group.scaling is not None), None)


def _faults(gguf: Gguf, rope: GgufRope) -> Iterator[Fault]:
    """What the file itself shows."""
    name, group = gguf.architecture, _scaled(rope)
    for note in rope.notes:
        if note.code == "no-original":
            yield Fault(
                code="original-length-missing",
                message=f"{note.message}, and the ramp is placed by a length that was raised",
                fix=f"set {name}.rope.scaling.original_context_length to the length that the weights were trained for",
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
            fix=f"take them out ({_set(gguf, rope)})",
            troubles=_BOTH,
        )
    if FREQS in gguf.factors and (gguf.values.get(f"{name}.{FACTOR}")) is not None:
        yield Fault(
            code="factor-and-tensor",
            message=f"{FREQS} stands beside {name}.{FACTOR}: both are applied, one on the other",
            fix=f"take {name}.{FACTOR} out, unless both are meant",
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
                fix=f"set {name}.{CONTEXT} to {reached}",
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


def _better(gguf: Gguf, rope: GgufRope, meant: Meant) -> str:
    """The keys that would make llama.cpp read what is meant, or that there are none."""
    try:
        encoding = _encoding(gguf, rope, meant)
    except CtxextendError as error:
        return f"none in this file: {error.message}"
    changes = [f"{key} = {value.value}" for key, value in encoding.keys.items() if gguf.values.get(key) != value]
    changes += [f"without {key}" for key in encoding.removed]
    changes += [f"with the tensor {tensor}" for tensor in encoding.tensors]
    return "; ".join(changes) or "see the other findings"


def _set(gguf: Gguf, rope: GgufRope) -> str:
    """The change that says what the dead keys were meant to say."""
    target = _length_meant(rope)
    tables = {g.label: table(g.spec, g.scaling, length=target) for g in rope.groups if g.spec is not None}
    return _better(gguf, rope, Meant(tables=tables, target=target, source=""))


def _encoding(gguf: Gguf, rope: GgufRope, meant: Meant) -> GgufEncoding:
    groups = [(group, group.spec) for group in rope.groups if group.spec is not None]
    candidates = encodings(
        gguf,
        rope,
        {group.label: spec for group, spec in groups},
        {group.label: group.scaling or Rebase(rope_theta=spec.rope_theta) for group, spec in groups},
        target=meant.target,
    )
    return choose_gguf(gguf, candidates, meant.tables, target=meant.target).encoding
