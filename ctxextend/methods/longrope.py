"""LongRoPE with given factors: one number per pair, found elsewhere (by its search, or by hand)."""

from __future__ import annotations

from typing import ClassVar

from ctxextend.methods.base import Base, Options, extension_factor
from ctxextend.scaling import LongRope, Scaling, longrope_attention_factor


class LongRopeOptions(Options, frozen=True, kw_only=True):
    """``long_factor`` is required, one number per pair; ``short_factor`` (up to the trained length) defaults to ones.

    Factors divide the trained frequencies. ``attention_factor`` defaults to
    ``sqrt(1 + ln(s) / ln(L))``.
    """

    long_factor: tuple[float, ...] = ()
    short_factor: tuple[float, ...] = ()
    attention_factor: float | None = None


class LongRopeMethod:
    """Each pair divided by its own factor; its short list keeps the model as it was within the trained length."""

    name: ClassVar[str] = "longrope"
    summary: ClassVar[str] = "LongRoPE with given factors, one per pair"
    source: ClassVar[str] = "Ding et al. 2024 (LongRoPE), arXiv 2402.13753, section 3"
    options: ClassVar[type[Options]] = LongRopeOptions

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        """Raises ``ValueError`` when a list is missing or doesn't hold one number per pair."""
        assert isinstance(options, LongRopeOptions)
        pairs = len(base.spec.inv_freq())
        if not options.long_factor:
            raise ValueError(f"longrope needs its factors: --set long_factor=@FILE.json, a list of {pairs} numbers")
        short = options.short_factor or (1.0,) * pairs
        for name, factors in (("long_factor", options.long_factor), ("short_factor", short)):
            if len(factors) != pairs:
                raise ValueError(f"{name} holds {len(factors)} numbers, the rope has {pairs} pairs")
        before = base.table()
        factor = extension_factor(base.context, target)
        trained = before.stretch(base.spec.inv_freq())
        attention = options.attention_factor
        if attention is None:
            attention = longrope_attention_factor(factor, base.context)
        return LongRope(
            short_factor=tuple(a * b for a, b in zip(trained, short, strict=True)),
            long_factor=tuple(a * b for a, b in zip(trained, options.long_factor, strict=True)),
            original_max_position_embeddings=base.context,
            factor=factor,
            attention_factor=before.attention_factor * attention,
        )
