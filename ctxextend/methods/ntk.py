"""NTK-aware scaling: another base, so that slow pairs are interpolated and fast ones barely touched."""

from __future__ import annotations

from typing import ClassVar

from ctxextend.methods.base import Base, Options, compose, extension_factor, uniform_factor
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, Rebase, Scaling, ntk_exponent


class NtkMethod:
    """``theta' = theta * s ** (d / (d - 2))``: the slowest pair is slowed by exactly ``s``."""

    name: ClassVar[str] = "ntk"
    summary: ClassVar[str] = "static NTK-aware scaling: a larger rope_theta"
    source: ClassVar[str] = "bloc97 2023; Peng et al. 2023 (YaRN), arXiv 2309.00071, eq. 16"
    options: ClassVar[type[Options]] = Options

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        """Exact as a change of theta over a plain or linear base; else pair by pair over its table."""
        factor = extension_factor(base.context, target)
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
