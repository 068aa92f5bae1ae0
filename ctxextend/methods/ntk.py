"""NTK-aware scaling: another base, so that slow pairs are interpolated and fast ones barely touched."""

from __future__ import annotations

from typing import ClassVar, Final

from ctxextend.methods.base import Base, Options, compose, extension_factor, uniform_factor
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, Rebase, Scaling, ntk_exponent

#: More than this isn't headroom but another target.
MOST_HEADROOM: Final = 4.0


class NtkOptions(Options, frozen=True, kw_only=True):
    """``headroom`` stretches further than the target needs: without training, the last part of it fails otherwise."""

    headroom: float = 1.0


class NtkMethod:
    """``theta' = theta * s ** (d / (d - 2))``: the slowest pair is slowed by exactly ``s`` (times the headroom)."""

    name: ClassVar[str] = "ntk"
    summary: ClassVar[str] = "static NTK-aware scaling: a larger rope_theta"
    source: ClassVar[str] = "bloc97 2023; Peng et al. 2023 (YaRN), arXiv 2309.00071, eq. 16"
    options: ClassVar[type[Options]] = NtkOptions

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        """Exact as a change of theta over a plain or linear base; else pair by pair over its table."""
        assert isinstance(options, NtkOptions)
        if not 1.0 <= options.headroom <= MOST_HEADROOM:
            raise ValueError(f"headroom must be from 1 to {MOST_HEADROOM:g}, found {options.headroom}")
        factor = extension_factor(base.context, target) * options.headroom
        return rebased(base, target, ntk_theta(base.spec, factor))


def ntk_theta(spec: RopeSpec, factor: float) -> float:
    """The base for a stretch of ``factor``: YaRN eq. 16, over the dimensions that are rotated."""
    return spec.rope_theta * float(factor ** ntk_exponent(spec))


def rebased(base: Base, target: int, rope_theta: float) -> Scaling:
    """The base's table as if its plain rope had ``rope_theta``."""
    uniform = uniform_factor(base)
    if uniform is None:
        before, plain_before = base.table().inv_freq, base.spec.inv_freq()
        plain_after = base.spec.inv_freq(rope_theta)
        moved = tuple(
            f * (new / old) if old else f for f, old, new in zip(before, plain_before, plain_after, strict=True)
        )
        return compose(base, target, moved)
    if uniform == 1.0:
        return Rebase(rope_theta=rope_theta)
    return Linear(factor=uniform, rope_theta=rope_theta)
