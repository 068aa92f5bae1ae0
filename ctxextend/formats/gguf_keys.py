"""What a GGUF file's keys mean: the groups of layers, their rope, and the scaling that its writer meant.

Keys are those of the GGUF specification under the architecture's name; what llama.cpp does with them, dead
and contradictory ones included, is ``runtimes/llama_cpp.py``'s business. Source of names, defaults and
layer patterns: llama.cpp b11434 (``src/llama-arch.cpp``, ``src/llama-model.cpp``, ``conversion/base.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from ctxextend.contents import Gguf, GgufValue, Note
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.formats.gguf_architectures import ARCHITECTURES, UNREAD, WITHOUT_ROPE, GgufArchitecture, Sliding
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.rope import MOST_DIMENSIONS, RopeSpec, RopeTable
from ctxextend.scaling import Linear, LongRope, Scaling, Yarn, mscale, table

FREQS: Final = "rope_freqs.weight"
LONG: Final = "rope_factors_long.weight"
SHORT: Final = "rope_factors_short.weight"
#: The key of ALiBi's largest exponent, of architectures that haven't got it built in.
MAX_ALIBI_BIAS: Final = "attention.max_alibi_bias"
#: A learned table of positions, one row a token.
POSITION_TABLE: Final = "position_embd.weight"

#: The key under the architecture's name that says how positions are scaled, and its other keys.
TYPE: Final = "rope.scaling.type"
FACTOR: Final = "rope.scaling.factor"
OLD_FACTOR: Final = "rope.scale_linear"
ORIGINAL: Final = "rope.scaling.original_context_length"
ATTENTION: Final = "rope.scaling.attn_factor"
YARN_ATTENTION: Final = "rope.scaling.yarn_attn_factor"
BETA_FAST: Final = "rope.scaling.yarn_beta_fast"
BETA_SLOW: Final = "rope.scaling.yarn_beta_slow"
EXTRAPOLATION: Final = "rope.scaling.yarn_ext_factor"
LOG_MULTIPLIER: Final = "rope.scaling.yarn_log_multiplier"
FINETUNED: Final = "rope.scaling.finetuned"
ALPHA: Final = "rope.scaling.alpha"
THETA: Final = "rope.freq_base"
SLIDING_THETA: Final = "rope.freq_base_swa"
CONTEXT: Final = "context_length"
WINDOW: Final = "attention.sliding_window"
PATTERN: Final = "attention.sliding_window_pattern"

#: The types that llama.cpp knows, and the one it takes where there is none.
TYPES: Final = ("none", "linear", "yarn", "longrope")
DEFAULT_TYPE: Final = "linear"
DEFAULT_THETA: Final = 10000.0

#: A pair whose frequency is divided by this or more stands still (the converter writes 1e30 for gemma4).
STILL: Final = 1e20

#: Layers without a rope where others of the same kind have one.
UNROTATED: Final = "no_rope"

_NUMBERS: Final = ("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "UINT64", "INT64", "FLOAT64")
#: A file that says more is broken.
_MOST_LAYERS: Final = 10_000


class GgufGroup(Struct, frozen=True, kw_only=True):
    """Layers that share a rope. ``spec`` is None for layers without one; ``window`` counts tokens.

    ``scaling`` is what the file's writer meant for them.
    """

    label: str
    layers: tuple[int, ...]
    spec: RopeSpec | None
    scaling: Scaling | None = None
    window: int | None = None


class GgufRope(Struct, frozen=True, kw_only=True):
    """The rope of a whole file. Lengths count tokens; An ``original_context_length`` of 0 is None."""

    architecture: GgufArchitecture
    groups: tuple[GgufGroup, ...]
    context_length: int
    original_context_length: int | None
    notes: tuple[Note, ...] = ()

    @property
    def specs(self) -> dict[str, RopeSpec]:
        """The plain rope of every group that has one, by label."""
        return {group.label: group.spec for group in self.groups if group.spec is not None}


class Keys(Struct, frozen=True):
    """A file's values by their names under the architecture's. Any numeric type counts as a number here."""

    values: Mapping[str, GgufValue]
    architecture: str

    def full(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def get(self, name: str) -> GgufValue | None:
        return self.values.get(self.full(name))

    def number(self, name: str) -> float | None:
        """A number. Raises :class:`CheckpointError` for what isn't one."""
        entry = self.get(name)
        if entry is None:
            return None
        if entry.type not in _NUMBERS or not _is_finite(entry.value):
            raise self.broken(name, "a finite number", entry)
        return float(entry.value)

    def whole(self, name: str) -> int | None:
        """A whole number from 0."""
        value = self.number(name)
        if value is None:
            return None
        if value < 0 or not value.is_integer():
            raise self.broken(name, "a whole number", self.values[self.full(name)])
        return int(value)

    def required(self, name: str) -> int:
        """A whole number from 1 that must be there."""
        value = self.whole(name)
        if not value:
            raise self.broken(name, "a whole number above 0", self.get(name))
        return value

    def text(self, name: str) -> str | None:
        entry = self.get(name)
        if entry is None:
            return None
        if entry.type != "STRING":
            raise self.broken(name, "a string", entry)
        return str(entry.value)

    def array(self, name: str) -> tuple[Any, ...] | None:
        """The elements of an array; None where there is no such key or it is no array."""
        entry = self.get(name)
        if entry is None or entry.type != "ARRAY":
            return None
        if entry.value is None or entry.item not in (*_NUMBERS, "BOOL"):
            raise self.broken(name, "a short array of numbers", entry)
        return tuple(entry.value)

    @property
    def encodes(self) -> bool:
        """Whether the model is an encoder: each token sees the whole text, of which nothing is kept."""
        causal = self.get("attention.causal")
        return causal is not None and causal.value is False

    def broken(self, name: str, expected: str, found: GgufValue | None) -> CheckpointError:
        return CheckpointError(
            "a key of the GGUF file can't be read",
            code="broken-config",
            key=self.full(name),
            expected=expected,
            found="none" if found is None else f"{str(found.value)[:60]} of type {found.type}",
            hint="compare the file's keys with those of the publisher's",
        )


def _is_finite(content: Any) -> bool:
    return isinstance(content, int | float) and math.isfinite(content)


def find_architecture(gguf: Gguf) -> GgufArchitecture | None:
    """The row of a file's architecture, as a model of its layers has it; None for one that was not read."""
    name = gguf.architecture or ""
    row = ARCHITECTURES.get(name) or WITHOUT_ROPE.get(name)
    if row is None or row.alibi_layers is None or Keys(gguf.values, name).whole("block_count") != row.alibi_layers:
        return row
    return msgspec.structs.replace(row, position="alibi")


def architecture_of(gguf: Gguf) -> GgufArchitecture:
    """The row of a file's architecture. Raises :class:`RefusedError` for one that was not read."""
    name = gguf.architecture
    row = find_architecture(gguf)
    if row is not None:
        return row
    if name is None:
        raise CheckpointError(
            "the GGUF file doesn't say what it holds",
            code="broken-config",
            file=gguf.file,
            key="general.architecture",
            expected="the name of an architecture",
            found="none",
        )
    why = "has no rope, or one that was not read" if name in UNREAD else "isn't known"
    raise RefusedError(
        f"the architecture {name} {why}",
        code="unknown-architecture",
        file=gguf.file,
        key="general.architecture",
        found=name,
        hint="a newer version of ctxextend may know it",
    )


def read_rope(gguf: Gguf) -> GgufRope:
    """The rope of a file as its writer meant it. Raises :class:`CheckpointError` for values that can't be."""
    row = architecture_of(gguf)
    keys = Keys(gguf.values, row.name)
    context = keys.required(CONTEXT)
    notes: list[Note] = []
    pattern, count = keys.array(PATTERN), keys.required("block_count")
    if pattern is not None and len(pattern) != count:
        message = f"{keys.full(PATTERN)} has {len(pattern)} entries for {count} layers: what is missing doesn't slide"
        notes.append(Note(code="layer-pattern", message=message))
    groups = []
    for group in geometry(keys, row):
        if group.spec is None:
            groups.append(group)
            continue
        sliding = row.sliding if group.label == SLIDING else None
        try:
            spec, scaling = _meant(keys, row, group.spec, sliding, gguf.factors, context, notes)
        except (ArithmeticError, ValueError) as error:
            raise CheckpointError(
                f"the rope settings can't be: {error}",
                code="broken-config",
                file=gguf.file,
                key=keys.full("rope.scaling"),
                hint="compare the file's keys with those of the publisher's",
            ) from error
        groups.append(msgspec.structs.replace(group, spec=spec, scaling=scaling))
    return GgufRope(
        architecture=row,
        groups=tuple(groups),
        context_length=context,
        original_context_length=keys.whole(ORIGINAL) or None,
        notes=tuple(dict.fromkeys(notes)),
    )


def geometry(keys: Keys, row: GgufArchitecture) -> tuple[GgufGroup, ...]:
    """The groups of layers with their plain rope, no scaling read."""
    count = keys.required("block_count")
    if count > _MOST_LAYERS:
        raise keys.broken("block_count", f"at most {_MOST_LAYERS}", keys.get("block_count"))
    windowed = has_sliding(keys, row.sliding, count - (keys.whole("nextn_predict_layers") or 0))
    labels = _labels(keys, row, count, windowed=windowed)
    specs: dict[str, RopeSpec | None] = {UNROTATED: None}
    for label in dict.fromkeys(labels):
        if label != UNROTATED:
            alone = windowed is not None and windowed.alone and label == FULL
            specs[label] = None if alone else _spec(keys, row, windowed if label == SLIDING else None)
    return tuple(
        GgufGroup(
            label=label,
            layers=tuple(i for i, other in enumerate(labels) if other == label),
            spec=specs[label],
            window=keys.whole(WINDOW) if label == SLIDING else None,
        )
        for label in dict.fromkeys(labels)
    )


def has_sliding(keys: Keys, sliding: Sliding | None, layers: int) -> Sliding | None:
    """The row's sliding layers, where this file has any."""
    if sliding is None:
        return None
    window = keys.whole(WINDOW)
    there = {
        "always": True,
        "stated": bool(window),
        "unless-zero": window != 0,
        "64-layers": layers == 64,
    }
    return sliding if there[sliding.when] else None


def _labels(keys: Keys, row: GgufArchitecture, count: int, *, windowed: Sliding | None) -> tuple[str, ...]:
    """One label a layer: ``load_swa_pattern`` and ``set_swa_pattern`` of llama.cpp."""
    if row.position != "rope":
        return (UNROTATED,) * count
    labels = [FULL] * count
    # Layers that predict further tokens come last, and don't slide.
    body = count - min(keys.whole("nextn_predict_layers") or 0, count)
    if windowed is not None:
        stated = keys.array(PATTERN)
        if stated is None and windowed.period is None:
            raise keys.broken(PATTERN, "an array with one entry a layer", None)
        if stated is None:
            period = keys.whole(PATTERN)
            period = windowed.period if period is None else period
            full = 0 if windowed.dense_first else (period or 0) - 1
            stated = tuple(not period or i % period != full for i in range(body))
        # Of an array, what is missing doesn't slide.
        labels = [SLIDING if i < len(stated) and stated[i] else FULL for i in range(count)]
    # In llama4 and smollm3 these are every fourth layer; llama4 without a window turns all of them.
    every = (
        None
        if row.sliding is not None and row.sliding.when == "unless-zero" and windowed is None
        else (row.unrotated_every)
    )
    if every is not None:
        labels = [UNROTATED if (i + 1) % every == 0 else label for i, label in enumerate(labels)]
    return tuple(labels)


def _spec(keys: Keys, row: GgufArchitecture, sliding: Sliding | None) -> RopeSpec:
    head_dim = _head_dim(keys)
    rotary = keys.whole("rope.dimension_count") or head_dim
    theta = keys.number(THETA)
    theta = DEFAULT_THETA if theta is None else theta
    if sliding is not None:
        rotary = keys.whole("rope.dimension_count_swa") or rotary
        head_dim = keys.whole("attention.key_length_swa") or head_dim
        if sliding.reads_theta:
            own = keys.number(SLIDING_THETA)
            theta = own if own is not None else theta if sliding.theta is None else sliding.theta
    for name, size in (("rope.dimension_count", rotary), ("attention.key_length", head_dim)):
        if size > MOST_DIMENSIONS:
            raise keys.broken(name, f"at most {MOST_DIMENSIONS} dimensions", keys.get(name))
    alpha = keys.number(ALPHA) if row.alpha else None
    try:
        if alpha is not None and alpha > 0.0:
            theta *= alpha ** (head_dim / (head_dim - 2))
        return RopeSpec(
            rope_theta=theta,
            head_dim=rotary if row.latent else max(head_dim, rotary),
            rotary_dim=rotary,
            pairing=row.pairing,
            softmax_mscale=row.latent,
        )
    except (ArithmeticError, ValueError) as error:
        raise CheckpointError(
            f"the GGUF file's rope can't be: {error}",
            code="broken-config",
            key=keys.full(THETA),
            hint="compare the file's keys with those of the publisher's",
        ) from error


def _head_dim(keys: Keys) -> int:
    stated = keys.whole("attention.key_length")
    if stated:
        return stated
    heads = keys.array("attention.head_count")
    # One number a layer in some files: llama.cpp takes the first layer's.
    count = heads[0] if heads else keys.required("attention.head_count")
    if not _is_finite(count) or count < 1:
        raise keys.broken("attention.head_count", "a whole number above 0", keys.get("attention.head_count"))
    return keys.required("embedding_length") // int(count)


def _meant(
    keys: Keys,
    row: GgufArchitecture,
    spec: RopeSpec,
    sliding: Sliding | None,
    factors: Mapping[str, tuple[float, ...] | None],
    context: int,
    notes: list[Note],
) -> tuple[RopeSpec, Scaling | None]:
    """What was meant for one group: its geometry (gemma4's tensor says how much of it turns) and scaling."""
    scaled = sliding is None or sliding.scaled
    lists = (factors.get(SHORT), factors.get(LONG)) if sliding is None or sliding.factors else (None, None)
    freqs = factors.get(FREQS) if sliding is None or sliding.factors else None
    scaling, attention = _by_type(keys, row, context, notes) if scaled else (None, 1.0)
    if row.factors == "required" and freqs is not None and len(freqs) == spec.rotary_dim // 2:
        turning = sum(factor < STILL for factor in freqs)
        if turning < len(freqs) and all(factor < STILL for factor in freqs[:turning]):
            spec = msgspec.structs.replace(spec, rotary_dim=2 * turning, layout="proportional")
            freqs = (*freqs[:turning], *(1.0,) * (len(freqs) - turning))
        if all(factor == 1.0 for factor in freqs):
            freqs = None
    short, long = lists
    if short is not None and long is not None:
        original = keys.whole(ORIGINAL) or context
        return spec, LongRope(
            short_factor=short,
            long_factor=long,
            original_max_position_embeddings=original,
            factor=max(context / original, 1.0),
            attention_factor=attention,
        )
    if keys.text(TYPE) == "longrope" and scaled:
        notes.append(
            Note(code="no-lists", message="the type is longrope, but the file has no lists: nothing says which")
        )
    if freqs is None and (isinstance(scaling, Yarn) or attention == 1.0):
        return spec, scaling
    return spec, _carried(spec, scaling, freqs, attention, context)


def _by_type(keys: Keys, row: GgufArchitecture, context: int, notes: list[Note]) -> tuple[Linear | Yarn | None, float]:
    """The scaling that the type names, and the factor on cos and sin beside it."""
    kind = keys.text(TYPE)
    factor = keys.number(FACTOR) or keys.number(OLD_FACTOR) or 1.0
    attention = keys.number(ATTENTION)
    attention = 1.0 if attention is None else attention
    match kind:
        case None | "linear":
            return (None if factor == 1.0 else Linear(factor=factor)), attention
        case "none" | "longrope":
            return None, attention
        case "yarn":
            return _yarn(keys, row, factor, attention, context, notes), 1.0
        case _:
            raise RefusedError(
                f"the rope type {kind!r} isn't known",
                code="unknown-rope-type",
                key=keys.full(TYPE),
                expected=", ".join(TYPES),
                found=repr(kind),
            )


def _yarn(keys: Keys, row: GgufArchitecture, factor: float, multiplier: float, context: int, notes: list[Note]) -> Yarn:
    """YaRN as meant: llama.cpp's converter writes transformers' ``attention_factor`` as ``yarn_attn_factor``."""
    original = keys.whole(ORIGINAL)
    if not original:
        notes.append(
            Note(
                code="no-original",
                message=f"yarn without {keys.full(ORIGINAL)}: readers take {context}, the context_length, for it",
            )
        )
    stated, weight = keys.number(YARN_ATTENTION), keys.number(LOG_MULTIPLIER)
    if weight is not None and row.log_multiplier is not None:
        weight /= row.log_multiplier
    fast, slow = keys.number(BETA_FAST), keys.number(BETA_SLOW)
    attention = stated
    if multiplier != 1.0:
        attention = multiplier * (mscale(factor) if not weight else 1.0)
    return Yarn(
        factor=factor,
        original_max_position_embeddings=original or context,
        beta_fast=32.0 if fast is None else fast,
        beta_slow=1.0 if slow is None else slow,
        attention_factor=attention,
        mscale=weight or None,
        mscale_all_dim=weight or None,
    )


def _carried(
    spec: RopeSpec, scaling: Scaling | None, freqs: tuple[float, ...] | None, attention: float, context: int
) -> LongRope:
    """A table that no other scaling spells: one factor a pair, at every length."""
    before = table(spec, scaling)
    divided = before.inv_freq if freqs is None else divide(before.inv_freq, freqs)
    factors = RopeTable(inv_freq=divided).stretch(spec.inv_freq())
    return LongRope(
        short_factor=factors,
        long_factor=factors,
        original_max_position_embeddings=max(context, 2),
        factor=1.0,
        attention_factor=before.attention_factor * attention,
    )


def divide(inv_freq: tuple[float, ...], factors: tuple[float, ...]) -> tuple[float, ...]:
    """Frequencies over a tensor's factors. Raises ``ValueError`` for another number of them, or one that can't be."""
    if len(inv_freq) != len(factors):
        raise ValueError(f"a frequency tensor holds {len(factors)} numbers, the rope has {len(inv_freq)} pairs")
    if not all(factor > 0.0 and math.isfinite(factor) for factor in factors):
        raise ValueError("a frequency tensor holds a number that is not above 0")
    return tuple(0.0 if d >= STILL else f / d for f, d in zip(inv_freq, factors, strict=True))
