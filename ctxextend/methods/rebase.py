"""A theta of the user's: for weights that were, or will be, trained with it."""

from __future__ import annotations

from typing import ClassVar

from ctxextend.methods.base import Base, Options
from ctxextend.methods.ntk import rebased
from ctxextend.scaling import Scaling


class RebaseOptions(Options, frozen=True, kw_only=True):
    """``rope_theta`` is required: the new base."""

    rope_theta: float | None = None


class RebaseMethod:
    """Writes the given ``rope_theta``, as adjusted-base-frequency models such as Code Llama are trained."""

    name: ClassVar[str] = "rebase"
    summary: ClassVar[str] = "a rope_theta of your own (adjusted base frequency)"
    source: ClassVar[str] = "Xiong et al. 2023, arXiv 2309.16039, section 4.1"
    options: ClassVar[type[Options]] = RebaseOptions

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        """Raises ``ValueError`` without a ``rope_theta``."""
        assert isinstance(options, RebaseOptions)
        if options.rope_theta is None:
            raise ValueError("rebase needs the new base: --set rope_theta=NUMBER")
        return rebased(base, target, options.rope_theta)
