"""Position interpolation: every position is divided by the factor."""

from __future__ import annotations

from typing import ClassVar

from ctxextend.methods.base import Base, Options, compose, extension_factor, uniform_factor
from ctxextend.scaling import Linear, Scaling


class LinearMethod:
    """Chen et al. eq. 4: ``f(x, m L / L')``, that is every inverse frequency divided by ``L' / L``."""

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "position interpolation (PI): every frequency divided by the factor"
    source: ClassVar[str] = "Chen et al. 2023, arXiv 2306.15595, eq. 4"
    options: ClassVar[type[Options]] = Options

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        """Over a base that is itself linear the factors multiply, exactly."""
        factor = extension_factor(base.context, target)
        uniform = uniform_factor(base)
        if uniform is not None:
            return Linear(factor=uniform * factor)
        return compose(base, target, tuple(f / factor for f in base.table().inv_freq))
