"""The closed set of scalings that runtimes can express, and the one function that computes a table.

A scaling is spelled as Hugging Face spells it. ``None`` stands for a plain rope. Every other room
that needs frequencies or a temperature calls :func:`table`; no formula is written twice.

Sources: position interpolation, Chen et al. (arXiv 2306.15595) eq. 4; YaRN, Peng et al.
(arXiv 2309.00071) eqs. 16-22; LongRoPE, Ding et al. (arXiv 2402.13753) section 3;
Llama 3.1's scaling as in its reference implementation; DeepSeek-V2 (arXiv 2405.04434) section 3.1.4
for the temperature of latent attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, assert_never

import msgspec
from msgspec import Struct

from ctxextend.rope import RopeSpec, RopeTable

#: A larger number overflows in products with lengths and rotations. What single precision holds, formats know.
_LARGEST: Final = 1e250


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0.0 < value <= _LARGEST:
            raise ValueError(f"{name} must be a positive number, found {value}")


#: Files that keep a base in single precision round it by less.
_SINGLE: Final = 1e-6


class _Scaling(Struct, frozen=True, kw_only=True, tag_field="rope_type", forbid_unknown_fields=True):
    """Common settings of the union: immutable, tagged by ``rope_type``, unknown keys refused."""


class Rebase(_Scaling, frozen=True, tag="default", kw_only=True):
    """Another base: the plain rope of ``rope_theta``. Static NTK-aware scaling is written so."""

    rope_theta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 1.0):
            raise ValueError(f"rope_theta must be a number above 1, found {self.rope_theta}")


class Linear(_Scaling, frozen=True, tag="linear", kw_only=True):
    """Position interpolation: every frequency divided by ``factor``; optionally of another base."""

    factor: float
    rope_theta: float | None = None

    def __post_init__(self) -> None:
        _positive(factor=self.factor, rope_theta=self.rope_theta)


class Dynamic(_Scaling, frozen=True, tag="dynamic", kw_only=True):
    """NTK-aware scaling whose base follows the current length, as transformers computes it."""

    factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _positive(factor=self.factor, original=self.original_max_position_embeddings)


class Yarn(_Scaling, frozen=True, tag="yarn", kw_only=True):
    """YaRN.

    ``attention_factor`` None means the value that ``mscale`` and ``mscale_all_dim`` give, or else the
    paper's.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _positive(
            factor=self.factor,
            original_max_position_embeddings=self.original_max_position_embeddings,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            attention_factor=self.attention_factor,
        )
        for name, weight in (("mscale", self.mscale), ("mscale_all_dim", self.mscale_all_dim)):
            if weight is not None and not (math.isfinite(weight) and mscale(self.factor, weight) > 0.0):
                raise ValueError(f"{name} must give a positive temperature, found {weight}")


class Llama3(_Scaling, frozen=True, tag="llama3", kw_only=True):
    """Llama 3.1's scaling: long wavelengths divided by ``factor``, short ones kept, a blend between."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _positive(
            factor=self.factor,
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
            original_max_position_embeddings=self.original_max_position_embeddings,
        )
        # Equal is a step instead of a blend: Llama 4 Scout has 1.0 and 1.0.
        if self.high_freq_factor < self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must not be below low_freq_factor {self.low_freq_factor}"
            )


class LongRope(_Scaling, frozen=True, tag="longrope", kw_only=True):
    """One factor per pair: ``short_factor`` up to the original length, ``long_factor`` past it.

    With equal lists it carries any static table. ``attention_factor`` None means
    ``sqrt(1 + ln(factor) / ln(original_max_position_embeddings))``. ``mscale_all_dim`` only matters to
    latent attention, whose softmax factor it gives together with ``factor``.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float
    attention_factor: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        if len(self.short_factor) != len(self.long_factor):
            raise ValueError(f"short_factor has {len(self.short_factor)} numbers, long_factor {len(self.long_factor)}")
        for name, values in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            for value in values:
                _positive(**{name: value})
        _positive(factor=self.factor, attention_factor=self.attention_factor)
        if self.original_max_position_embeddings < 2:
            raise ValueError(
                f"original_max_position_embeddings must be at least 2, found {self.original_max_position_embeddings}"
            )


Scaling = Rebase | Linear | Dynamic | Yarn | Llama3 | LongRope


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's temperature ``1 / sqrt(t) = 0.1 * weight * ln(factor) + 1``; 1 for a factor up to 1.

    YaRN eq. 22 with weight 1; the weight is DeepSeek's ``mscale``.
    """
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def ntk_exponent(spec: RopeSpec) -> float:
    """``e`` such that ``theta * s ** e`` slows the slowest rotated pair by exactly ``s``.

    ``d / (d - 2)`` for a plain rope: YaRN definition 1, eq. 16.
    """
    slowest = spec.rotary_dim - 2
    if slowest <= 0:
        raise ValueError("NTK-aware scaling needs a rotary_dim of at least 4")
    return spec.exponent_dim / slowest


def dynamic_theta(spec: RopeSpec, scaling: Dynamic, length: int) -> float:
    """The base that transformers' dynamic NTK reaches at ``length`` tokens.

    ``theta * (s * n / L - (s - 1)) ** (d / (d - 2))`` with ``n = max(length, L)``.
    """
    trained = scaling.original_max_position_embeddings
    stretch = scaling.factor * max(length, trained) / trained - (scaling.factor - 1.0)
    return spec.rope_theta * float(stretch ** ntk_exponent(spec))


def yarn_ramp(
    spec: RopeSpec, context: int, *, beta_fast: float, beta_slow: float, truncate: bool
) -> Callable[[float], float]:
    """How much a frequency is interpolated: 0 above ``beta_fast`` rotations over ``context``, 1 below ``beta_slow``.

    Takes an inverse frequency. YaRN eqs. 17-18 in the form that every runtime has: linear in the
    index of the pair, where the paper is linear in rotations, and one minus its gamma. A frequency is
    placed by :meth:`RopeSpec.index_of`, so a table that is not plain is treated by wavelength, and a
    plain one by its own indices.
    """

    def correction_dim(rotations: float) -> float:
        return spec.index_of(rotations * 2.0 * math.pi / context)

    low, high = correction_dim(beta_fast), correction_dim(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.exponent_dim - 1)
    if low == high:
        high += 0.001

    def ramp(inv_freq: float) -> float:
        return min(max((spec.index_of(inv_freq) - low) / (high - low), 0.0), 1.0)

    return ramp


def llama3_smooth(
    inv_freq: float, context: int, *, factor: float, low_freq_factor: float, high_freq_factor: float
) -> float:
    """One frequency after Llama 3.1's scaling over ``context`` tokens."""
    rotations = context * inv_freq / (2.0 * math.pi)
    if rotations < low_freq_factor:
        return inv_freq / factor
    if rotations >= high_freq_factor:
        return inv_freq
    smooth = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return (1.0 - smooth) * inv_freq / factor + smooth * inv_freq


def longrope_attention_factor(factor: float, original: int) -> float:
    """LongRoPE's temperature ``sqrt(1 + ln s / ln L)``, as Phi-3 and transformers compute it."""
    if factor <= 1.0:
        return 1.0
    if original < 2:
        raise ValueError(f"a temperature needs an original length of at least 2, found {original}")
    return math.sqrt(1.0 + math.log(factor) / math.log(original))


def table(spec: RopeSpec, scaling: Scaling | None, *, length: int | None = None) -> RopeTable:
    """The table that attention uses under ``scaling`` at a context of ``length`` tokens.

    Without ``length``, for a context long past every switch (for dynamic: the original length).
    Raises ``ValueError`` when a longrope list doesn't have one number per pair.
    """
    plain = spec.inv_freq()
    match scaling:
        case None:
            return RopeTable(inv_freq=plain)
        case Rebase():
            return RopeTable(inv_freq=spec.inv_freq(scaling.rope_theta))
        case Linear():
            frequencies = spec.inv_freq(scaling.rope_theta)
            return RopeTable(inv_freq=tuple(f / scaling.factor for f in frequencies))
        case Dynamic():
            trained = scaling.original_max_position_embeddings
            theta = dynamic_theta(spec, scaling, trained if length is None else length)
            return RopeTable(inv_freq=spec.inv_freq(theta), switches=(trained,))
        case Yarn():
            return _yarn_table(spec, scaling, plain)
        case Llama3():
            return RopeTable(
                inv_freq=tuple(
                    llama3_smooth(
                        f,
                        scaling.original_max_position_embeddings,
                        factor=scaling.factor,
                        low_freq_factor=scaling.low_freq_factor,
                        high_freq_factor=scaling.high_freq_factor,
                    )
                    for f in plain
                )
            )
        case LongRope():
            return _longrope_table(spec, scaling, plain, length)
        case _:
            assert_never(scaling)


def _yarn_table(spec: RopeSpec, scaling: Yarn, plain: tuple[float, ...]) -> RopeTable:
    ramp = yarn_ramp(
        spec,
        scaling.original_max_position_embeddings,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        truncate=scaling.truncate,
    )
    factor = scaling.factor
    inv_freq = tuple(f * (1.0 - ramp(f)) + f / factor * ramp(f) for f in plain)
    attention = scaling.attention_factor
    if attention is None and scaling.mscale and scaling.mscale_all_dim:
        attention = mscale(factor, scaling.mscale) / mscale(factor, scaling.mscale_all_dim)
    if attention is None:
        attention = mscale(factor)
    softmax = 1.0
    if spec.softmax_mscale and scaling.mscale_all_dim:
        softmax = mscale(factor, scaling.mscale_all_dim) ** 2
    return RopeTable(inv_freq=inv_freq, attention_factor=attention, softmax_factor=softmax)


def _longrope_table(spec: RopeSpec, scaling: LongRope, plain: tuple[float, ...], length: int | None) -> RopeTable:
    original = scaling.original_max_position_embeddings
    long = length is None or length > original
    factors = scaling.long_factor if long else scaling.short_factor
    if len(factors) != len(plain):
        raise ValueError(f"longrope lists hold {len(factors)} numbers, the rope has {len(plain)} pairs")
    attention = scaling.attention_factor
    if attention is None:
        attention = longrope_attention_factor(scaling.factor, original)
    softmax = 1.0
    if spec.softmax_mscale and scaling.mscale_all_dim:
        softmax = mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return RopeTable(
        inv_freq=tuple(f / factor for f, factor in zip(plain, factors, strict=True)),
        attention_factor=attention,
        softmax_factor=softmax,
        switches=() if scaling.short_factor == scaling.long_factor else (original,),
    )


def untempered(scaling: Scaling) -> Scaling:
    """The same frequencies without a temperature: cos, sin and the softmax are multiplied by 1."""
    match scaling:
        case Yarn():
            return msgspec.structs.replace(scaling, attention_factor=1.0, mscale=None, mscale_all_dim=None)
        case LongRope():
            return msgspec.structs.replace(scaling, attention_factor=1.0, mscale_all_dim=None)
        case Rebase() | Linear() | Dynamic() | Llama3():
            return scaling
        case _:
            assert_never(scaling)


def over_base(spec: RopeSpec, now: RopeSpec, scaling: Scaling | None, *, length: int) -> Scaling | None:
    """What gives over the plain rope ``spec`` the table that ``scaling`` gives over ``now``, of another base.

    ``length`` counts tokens: a table that changes with the length is taken at it.
    """
    if math.isclose(spec.rope_theta, now.rope_theta, rel_tol=_SINGLE):
        return scaling
    match scaling:
        case None:
            return Rebase(rope_theta=now.rope_theta)
        case Rebase():
            return scaling
        case Linear():
            return Linear(factor=scaling.factor, rope_theta=scaling.rope_theta or now.rope_theta)
        case _:
            found = table(now, scaling, length=length)
            factors = found.stretch(spec.inv_freq())
            return LongRope(
                short_factor=factors,
                long_factor=factors,
                original_max_position_embeddings=max(length, 2),
                factor=1.0,
                attention_factor=found.attention_factor,
            )
