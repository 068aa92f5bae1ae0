"""Dynamic NTK: the base follows the current length, in the runtimes that do so."""

from __future__ import annotations

from typing import ClassVar

from ctxextend.methods.base import Base, Options, extension_factor, plain
from ctxextend.methods.ntk import rebased
from ctxextend.scaling import Dynamic, Scaling, dynamic_theta


class DynamicMethod:
    """As transformers computes it; where a runtime doesn't, the plan writes its static equal at the target."""

    name: ClassVar[str] = "dynamic"
    summary: ClassVar[str] = "dynamic NTK; its static equal where a runtime computes it otherwise"
    source: ClassVar[str] = "emozilla 2023; Peng et al. 2023 (YaRN), arXiv 2309.00071, section 3.3"
    options: ClassVar[type[Options]] = Options

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        """At the target, ``theta * (s^2 - s + 1) ** (d / (d - 2))``; over a trained-in scaling only that."""
        factor = extension_factor(base.context, target)
        dynamic = Dynamic(factor=factor, original_max_position_embeddings=base.context)
        if plain(base):
            return dynamic
        return rebased(base, target, dynamic_theta(base.spec, dynamic, target))
