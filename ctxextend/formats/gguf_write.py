"""How a planned scaling can be written into a GGUF file: the candidate encodings, best first.

An encoding sets and removes keys, and may add one small tensor or two; everything that would contradict it is
taken away, dead keys included. Which candidate is taken is decided by reading it back (``gguf_encoding.py``).
Which key carries what: llama.cpp b11434, as ``runtimes/llama_cpp.py`` cites it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.contents import Gguf, GgufEdits, GgufValue
from ctxextend.formats.gguf_architectures import GgufArchitecture
from ctxextend.formats.gguf_keys import (
    ATTENTION,
    BETA_FAST,
    BETA_SLOW,
    CONTEXT,
    EXTRAPOLATION,
    FACTOR,
    FREQS,
    LOG_MULTIPLIER,
    LONG,
    OLD_FACTOR,
    ORIGINAL,
    SHORT,
    SLIDING_THETA,
    THETA,
    TYPE,
    YARN_ATTENTION,
    GgufRope,
)
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.scaling import (
    Dynamic,
    Linear,
    Llama3,
    LongRope,
    Rebase,
    Scaling,
    Yarn,
    dynamic_theta,
    mscale,
    table,
)

#: What stands for a pair that doesn't turn (llama.cpp's own converter writes it for gemma4).
STILL_FACTOR: Final = 1e30

#: Every key that says how positions are scaled: what an encoding doesn't set, it takes away.
MANAGED: Final = (
    TYPE,
    FACTOR,
    OLD_FACTOR,
    ATTENTION,
    YARN_ATTENTION,
    BETA_FAST,
    BETA_SLOW,
    EXTRAPOLATION,
    LOG_MULTIPLIER,
)
_TENSORS: Final = (FREQS, LONG, SHORT)

#: The forms that hold one factor a pair.
_ROPE_FREQS: Final = "rope_freqs"
_EQUAL_LISTS: Final = "equal lists"
_CARRIED: Final = frozenset({_ROPE_FREQS, _EQUAL_LISTS})

#: YaRN's own rotations, which llama.cpp has built in.
_BETA_FAST: Final = 32.0
_BETA_SLOW: Final = 1.0


class GgufEncoding(Struct, frozen=True, kw_only=True):
    """One way to write a scaling: whole key names with their values, and the numbers of small F32 tensors.

    ``removed`` and ``removed_tensors`` name what is in the file and contradicts it or does nothing.
    """

    name: str
    keys: Mapping[str, GgufValue]
    removed: tuple[str, ...] = ()
    tensors: Mapping[str, tuple[float, ...]] = {}
    removed_tensors: tuple[str, ...] = ()

    @property
    def carried(self) -> bool:
        """Whether the scaling is written as one factor a pair rather than in its own form."""
        return self.name in _CARRIED

    @property
    def edits(self) -> GgufEdits:
        """The changes alone, numbers as a file keeps them."""
        return GgufEdits(
            keys=self.keys,
            removed=self.removed,
            tensors={name: tuple(map(single, numbers)) for name, numbers in self.tensors.items()},
            removed_tensors=self.removed_tensors,
        )


class _Form(Struct, frozen=True, kw_only=True):
    """A candidate before it meets the file: values by the names of keys under the architecture's."""

    name: str
    theta: float
    keys: Mapping[str, str | int | float]
    tensors: Mapping[str, tuple[float, ...]] = {}


def encodings(
    gguf: Gguf,
    rope: GgufRope,
    specs: Mapping[str, RopeSpec],
    scalings: Mapping[str, Scaling],
    *,
    target: int,
) -> Iterator[GgufEncoding]:
    """The candidates for ``scalings`` by label of the layers they are meant for, best first.

    ``specs`` has the plain rope of every label. A file has one scaling: that of the full layers, or of the
    only ones that have a rope. Sliding layers keep their base unless a change of it is planned. ``target``
    counts tokens. Nothing is yielded where the architecture can express nothing like it.
    """
    label = FULL if FULL in specs else next(iter(specs), None)
    scaling = scalings.get(label) if label is not None else None
    if label is None or scaling is None:
        return
    forms = _forms(rope, specs[label], scaling, target=target)
    while True:
        try:
            form = next(forms, None)
            if form is None:
                return
            encoding = _on_file(gguf, rope, form, specs, scalings, label=label, target=target)
            fits = all(map(_fits, (n for numbers in encoding.tensors.values() for n in numbers)))
        except OverflowError:
            # A number that single precision (or a table) can't hold: this form can't be written.
            continue
        if fits and not _moves_query_scale(gguf, rope, encoding):
            yield encoding


def applied(gguf: Gguf, edits: GgufEdits) -> Gguf:
    """The header as the edits leave it, for reading back: positions are those of the old file."""
    values = {key: value for key, value in gguf.values.items() if key not in edits.removed}
    factors = {name: numbers for name, numbers in gguf.factors.items() if name not in edits.removed_tensors}
    return msgspec.structs.replace(gguf, values={**values, **edits.keys}, factors={**factors, **edits.tensors})


def single(number: float) -> float:
    """A number as a file keeps it, in single precision. Raises :class:`OverflowError` for one that is too large."""
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


def _fits(number: float) -> bool:
    """Whether a factor of a tensor is still one in single precision."""
    return single(number) > 0.0


def _forms(rope: GgufRope, spec: RopeSpec, scaling: Scaling, *, target: int) -> Iterator[_Form]:
    row, theta = rope.architecture, spec.rope_theta
    match scaling:
        case Rebase():
            yield _Form(name="theta", theta=scaling.rope_theta, keys={})
        case Dynamic():
            # No file says that a base follows the length: the one that it reaches is written.
            yield _Form(name="theta", theta=dynamic_theta(spec, scaling, target), keys={})
        case Linear():
            keys: dict[str, str | int | float] = {TYPE: "linear", FACTOR: scaling.factor}
            keys |= _untempered(row, scaling.factor)
            yield _Form(name="native", theta=scaling.rope_theta or theta, keys=keys)
        case Yarn():
            yield from _yarn(row, spec, scaling)
        case LongRope() if scaling.short_factor != scaling.long_factor:
            yield from _switching(row, spec, scaling)
            return
        case LongRope() | Llama3():
            pass
    yield from _carriers(rope, spec, table(spec, scaling, length=target))


def _yarn(row: GgufArchitecture, spec: RopeSpec, scaling: Yarn) -> Iterator[_Form]:
    keys: dict[str, str | int | float] = {TYPE: "yarn", FACTOR: scaling.factor}
    keys |= _temperature(row, scaling.factor, table(spec, scaling))
    original = scaling.original_max_position_embeddings
    built_in = (scaling.beta_fast, scaling.beta_slow) == (_BETA_FAST, _BETA_SLOW)
    if {"yarn_beta_fast", "yarn_beta_slow"} <= row.reads:
        betas = {BETA_FAST: scaling.beta_fast, BETA_SLOW: scaling.beta_slow}
        yield _Form(name="native", theta=spec.rope_theta, keys={**keys, ORIGINAL: original, **betas})
        return
    # The ramp knows only the original length over each beta: 2 L with 32 and 1 is L with 16 and 0.5.
    moved = original * _BETA_FAST / scaling.beta_fast
    same_ratio = math.isclose(scaling.beta_fast / scaling.beta_slow, _BETA_FAST / _BETA_SLOW, rel_tol=1e-9)
    if not built_in and same_ratio and moved.is_integer():
        name = "native with another original length"
        yield _Form(name=name, theta=spec.rope_theta, keys={**keys, ORIGINAL: int(moved)})
        return
    name = "native" if built_in and scaling.truncate else "native without its own ramp"
    yield _Form(name=name, theta=spec.rope_theta, keys={**keys, ORIGINAL: original})


def _temperature(row: GgufArchitecture, factor: float, goal: RopeTable) -> dict[str, float]:
    """The keys that give a yarn file its factors on cos and sin and on the softmax.

    With ``k`` for the logarithm's weight: cos and sin get ``attn_factor * m(1) / m(k)`` (no quotient where
    the weight is taken for both), and latent attention's softmax the square of that times ``m(k)``.
    """
    log = 0.1 * math.log(factor)
    weight = 0.0
    if row.latent and row.log_multiplier is not None and log > 0.0:
        weight = (math.sqrt(goal.softmax_factor) / goal.attention_factor - 1.0) / log
        weight = 0.0 if abs(weight) < 1e-9 else weight
    implied = mscale(factor)
    if weight:
        implied = 1.0 if row.scales_own_log else mscale(factor) / mscale(factor, weight)
    keys = {}
    if weight and row.log_multiplier is not None:
        keys[LOG_MULTIPLIER] = weight * row.log_multiplier
    return keys | _multiplier(goal.attention_factor / implied)


def _untempered(row: GgufArchitecture, factor: float) -> dict[str, float]:
    """What keeps latent attention's softmax as it was under a linear factor.

    llama.cpp multiplies it by the square of ``m(1) m(k)`` whatever the type (``src/models/deepseek2.cpp``):
    the weight ``k`` makes that 1.
    """
    log = 0.1 * math.log(factor)
    if not row.latent or row.log_multiplier is None or log == 0.0:
        return {}
    return {LOG_MULTIPLIER: (1.0 / (1.0 + log) - 1.0) / log * row.log_multiplier}


def _multiplier(attention: float) -> dict[str, float]:
    return {} if math.isclose(attention, 1.0, rel_tol=1e-7) else {ATTENTION: attention}


def _switching(row: GgufArchitecture, spec: RopeSpec, scaling: LongRope) -> Iterator[_Form]:
    """LongRoPE's two lists, where the architecture loads them."""
    if row.factors not in ("lists", "either"):
        return
    keys: dict[str, str | int | float] = {
        TYPE: "longrope",
        ORIGINAL: scaling.original_max_position_embeddings,
        **_multiplier(table(spec, scaling).attention_factor),
    }
    tensors = {LONG: scaling.long_factor, SHORT: scaling.short_factor}
    yield _Form(name="longrope", theta=spec.rope_theta, keys=keys, tensors=tensors)


def _carriers(rope: GgufRope, spec: RopeSpec, goal: RopeTable) -> Iterator[_Form]:
    """Any table that doesn't change with the length, as one factor a pair."""
    row = rope.architecture
    plain = msgspec.structs.replace(spec, layout="leading", rotary_dim=spec.exponent_dim).inv_freq()
    factors = tuple(STILL_FACTOR if new == 0.0 else old / new for old, new in zip(plain, goal.inv_freq, strict=True))
    keys = _multiplier(goal.attention_factor)
    if row.factors in ("freqs", "either", "required"):
        yield _Form(name=_ROPE_FREQS, theta=spec.rope_theta, keys=keys, tensors={FREQS: factors})
    if row.factors in ("lists", "either"):
        tensors = {LONG: factors, SHORT: factors}
        lists: dict[str, str | int | float] = {TYPE: "longrope", **keys}
        yield _Form(name=_EQUAL_LISTS, theta=spec.rope_theta, keys=lists, tensors=tensors)


def _on_file(
    gguf: Gguf,
    rope: GgufRope,
    form: _Form,
    specs: Mapping[str, RopeSpec],
    scalings: Mapping[str, Scaling],
    *,
    label: str,
    target: int,
) -> GgufEncoding:
    row = rope.architecture
    # Stated always, since it is the context_length, which moves, where it is missing.
    original = rope.original_context_length or rope.context_length
    keys: dict[str, str | int | float] = {CONTEXT: target, ORIGINAL: original, THETA: form.theta, **form.keys}
    if row.name == "gemma3":
        # Ollama adds a linear factor of 8 to files that look like its own and don't say otherwise.
        keys = {TYPE: "linear", FACTOR: 1.0, **keys}
    if row.sliding is not None and row.sliding.reads_theta and SLIDING in specs:
        keys[SLIDING_THETA] = form.theta if label == SLIDING else _own_theta(specs[SLIDING], scalings, target)
    tensors = dict(form.tensors)
    if row.factors == "required" and FREQS not in tensors:
        # It doesn't load without; what is there says how much of a head turns.
        kept = gguf.factors.get(FREQS)
        tensors |= {} if kept is None else {FREQS: kept}
    whole = {f"{row.name}.{name}": _value(content) for name, content in keys.items()}
    managed = [f"{row.name}.{name}" for name in MANAGED]
    return GgufEncoding(
        name=form.name,
        keys=whole,
        removed=tuple(key for key in managed if key in gguf.values and key not in whole),
        tensors=tensors,
        removed_tensors=tuple(name for name in _TENSORS if name in gguf.factors and name not in tensors),
    )


def _own_theta(spec: RopeSpec, scalings: Mapping[str, Scaling], target: int) -> float:
    """The base of sliding layers beside full ones."""
    match scalings.get(SLIDING):
        case Rebase() as changed:
            return changed.rope_theta
        case Dynamic() as changed:
            return dynamic_theta(spec, changed, target)
        case _:
            return spec.rope_theta


def _value(content: str | float) -> GgufValue:
    if isinstance(content, str):
        return GgufValue(type="STRING", value=content)
    if isinstance(content, int):
        return GgufValue(type="UINT32", value=content)
    return GgufValue(type="FLOAT32", value=single(content))


def _moves_query_scale(gguf: Gguf, rope: GgufRope, encoding: GgufEncoding) -> bool:
    """Whether a model that scales queries by position over the original length would get another one."""
    row = rope.architecture
    if not row.temperature_by_original or f"{row.name}.attention.temperature_scale" not in gguf.values:
        return False
    now = rope.original_context_length or rope.context_length
    return bool(encoding.keys[f"{row.name}.{ORIGINAL}"].value != now)
