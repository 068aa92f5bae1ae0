"""YaRN, and NTK-by-parts, which is YaRN without its temperature."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import msgspec

from ctxextend.methods.base import Base, Options, compose, extension_factor, plain
from ctxextend.scaling import Scaling, Yarn, mscale, table, yarn_ramp


class YarnOptions(Options, frozen=True, kw_only=True):
    """YaRN's parameters, as Hugging Face spells them.

    ``compose`` matters only where a YaRN was trained in: ``table`` scales the trained table;
    ``factor`` raises the trained YaRN's own factor instead, which the runtimes of such a family read
    and which differs in the middle of the spectrum; ``auto`` is the first that can be written.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    compose: Literal["auto", "table", "factor"] = "auto"


class YarnMethod:
    """Slow pairs interpolated, fast pairs kept, a ramp between, and a temperature of ``0.1 ln s + 1``."""

    name: ClassVar[str] = "yarn"
    summary: ClassVar[str] = "YaRN: NTK-by-parts with an attention temperature"
    source: ClassVar[str] = "Peng et al. 2023 (YaRN), arXiv 2309.00071, eqs. 17-22"
    options: ClassVar[type[Options]] = YarnOptions

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        """Raises ``ValueError`` for ``compose=factor`` where no YaRN was trained in."""
        assert isinstance(options, YarnOptions)
        factor = extension_factor(base.context, target)
        if options.compose == "factor":
            return _raised(base, factor, options)
        if not plain(base):
            return _over_table(base, target, options)
        weight = options.mscale_all_dim
        if base.spec.softmax_mscale and weight is None and options.attention_factor is None:
            # Latent attention puts the temperature into its softmax: equal weights leave cos and sin alone.
            return _yarn(base, factor, options, mscale=1.0, mscale_all_dim=1.0)
        return _yarn(base, factor, options, mscale=options.mscale, mscale_all_dim=weight)

    def variants(self, base: Base, options: Options) -> tuple[Options, ...]:
        """Over a trained-in YaRN: first its table scaled, then its own factor raised."""
        assert isinstance(options, YarnOptions)
        if options.compose != "auto" or not isinstance(base.scaling, Yarn):
            return (options,)
        table_first = msgspec.structs.replace(options, compose="table")
        # Raising the factor keeps the trained parameters, so it is no answer to a call that sets others.
        return (table_first, YarnOptions(compose="factor")) if options == YarnOptions() else (table_first,)


class NtkByPartsOptions(Options, frozen=True, kw_only=True):
    """The ramp's bounds, in rotations over the trained length, as YaRN has them."""

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


class NtkByPartsMethod:
    """YaRN's frequencies at a temperature of one."""

    name: ClassVar[str] = "ntk-by-parts"
    summary: ClassVar[str] = "YaRN's frequencies without its temperature"
    source: ClassVar[str] = "Peng et al. 2023 (YaRN), arXiv 2309.00071, eqs. 17-20"
    options: ClassVar[type[Options]] = NtkByPartsOptions

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        assert isinstance(options, NtkByPartsOptions)
        yarn = YarnOptions(
            beta_fast=options.beta_fast,
            beta_slow=options.beta_slow,
            truncate=options.truncate,
            attention_factor=1.0,
        )
        return YarnMethod().solve(base, target, yarn)


def _yarn(
    base: Base, factor: float, options: YarnOptions, *, mscale: float | None, mscale_all_dim: float | None
) -> Yarn:
    return Yarn(
        factor=factor,
        original_max_position_embeddings=base.context,
        beta_fast=options.beta_fast,
        beta_slow=options.beta_slow,
        attention_factor=options.attention_factor,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
        truncate=options.truncate,
    )


def _raised(base: Base, factor: float, options: YarnOptions) -> Yarn:
    trained = base.scaling
    if not isinstance(trained, Yarn):
        raise ValueError("compose=factor raises the factor of a trained-in yarn, and there is none here")
    if options != YarnOptions(compose="factor"):
        raise ValueError("compose=factor keeps the trained yarn's own parameters; set no other")
    return Yarn(
        factor=trained.factor * factor,
        original_max_position_embeddings=trained.original_max_position_embeddings,
        beta_fast=trained.beta_fast,
        beta_slow=trained.beta_slow,
        attention_factor=_own_temperature(trained),
        mscale=trained.mscale,
        mscale_all_dim=trained.mscale_all_dim,
        truncate=trained.truncate,
    )


def _own_temperature(trained: Yarn) -> float | None:
    """A stated temperature that isn't the one of the trained factor; that one follows the factor, stated or not."""
    stated = trained.attention_factor
    weighted = trained.mscale is not None or trained.mscale_all_dim is not None
    if stated is None or (not weighted and math.isclose(stated, mscale(trained.factor), rel_tol=1e-6)):
        return None
    return stated


def _over_table(base: Base, target: int, options: YarnOptions) -> Scaling:
    factor = extension_factor(base.context, target)
    ramp = yarn_ramp(
        base.spec,
        base.context,
        beta_fast=options.beta_fast,
        beta_slow=options.beta_slow,
        truncate=options.truncate,
    )
    scaled = tuple(f * (1.0 - ramp(f)) + f / factor * ramp(f) for f in base.table().inv_freq)
    # What textbook YaRN with these options would put on cos and sin (or into the softmax) for this factor.
    step = _yarn(base, factor, options, mscale=options.mscale, mscale_all_dim=options.mscale_all_dim)
    temperature = table(base.spec, step).attention_factor
    if base.spec.softmax_mscale and options.attention_factor is None:
        weight = options.mscale_all_dim if options.mscale_all_dim is not None else 1.0
        temperature = mscale(factor, weight)
    return compose(base, target, scaled, temperature=temperature)
