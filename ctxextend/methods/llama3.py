"""Llama 3.1's scaling."""

from __future__ import annotations

from typing import ClassVar

from ctxextend.methods.base import Base, Options, compose, extension_factor, plain
from ctxextend.scaling import Llama3, Scaling, llama3_smooth


class Llama3Options(Options, frozen=True, kw_only=True):
    """Bounds of the blend, in rotations over the trained length."""

    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


class Llama3Method:
    """Pairs that turn less than ``low_freq_factor`` times are interpolated, more than ``high_freq_factor`` kept."""

    name: ClassVar[str] = "llama3"
    summary: ClassVar[str] = "Llama 3.1's scaling: by wavelength, with a blend, no temperature"
    source: ClassVar[str] = "Llama 3.1's reference implementation (apply_scaling)"
    options: ClassVar[type[Options]] = Llama3Options

    def solve(self, base: Base, target: int, options: Options) -> Scaling:
        assert isinstance(options, Llama3Options)
        factor = extension_factor(base.context, target)
        if options.high_freq_factor <= options.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {options.high_freq_factor} must be above low_freq_factor {options.low_freq_factor}"
            )
        if plain(base):
            return Llama3(
                factor=factor,
                low_freq_factor=options.low_freq_factor,
                high_freq_factor=options.high_freq_factor,
                original_max_position_embeddings=base.context,
            )
        scaled = tuple(
            llama3_smooth(
                f,
                base.context,
                factor=factor,
                low_freq_factor=options.low_freq_factor,
                high_freq_factor=options.high_freq_factor,
            )
            for f in base.table().inv_freq
        )
        return compose(base, target, scaled)
