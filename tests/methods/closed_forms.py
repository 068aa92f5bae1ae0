"""The papers' formulas, written down once more and apart from the package: by index and by wavelength.

PI: Chen et al. eq. 4. YaRN: Peng et al. eqs. 16-22 with the ramp over pairs that its authors' code has
(``linear_ramp_mask``). Llama 3.1: ``apply_scaling`` of its reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def plain(theta: float, dim: int) -> list[float]:
    return [1.0 / theta ** (2 * i / dim) for i in range(dim // 2)]


def interpolated(theta: float, dim: int, factor: float) -> list[float]:
    return [f / factor for f in plain(theta, dim)]


def ntk_theta(theta: float, dim: int, factor: float) -> float:
    return theta * math.pow(factor, dim / (dim - 2))


def yarn_bounds(
    theta: float, dim: int, context: int, *, fast: float = 32.0, slow: float = 1.0, truncate: bool = True
) -> tuple[float, float]:
    """The pairs between which the ramp runs: those that turn ``fast`` and ``slow`` times over the context."""

    def pair(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(fast), pair(slow)
    if truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, dim - 1.0)
    return low, high + 0.001 if low == high else high


def yarn(
    theta: float,
    dim: int,
    factor: float,
    context: int,
    *,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
) -> list[float]:
    low, high = yarn_bounds(theta, dim, context, fast=fast, slow=slow, truncate=truncate)
    result = []
    for i, f in enumerate(plain(theta, dim)):
        kept = 1.0 - min(max((i - low) / (high - low), 0.0), 1.0)
        result.append(kept * f + (1.0 - kept) * f / factor)
    return result


def yarn_over(
    frequencies: Sequence[float],
    theta: float,
    dim: int,
    factor: float,
    context: int,
    *,
    fast: float = 32.0,
    slow: float = 1.0,
) -> list[float]:
    """YaRN over a table that is not plain: each frequency stands where a plain one of its wavelength would."""
    low, high = yarn_bounds(theta, dim, context, fast=fast, slow=slow)
    result = []
    for f in frequencies:
        where = dim * math.log(1.0 / f) / (2 * math.log(theta))
        kept = 1.0 - min(max((where - low) / (high - low), 0.0), 1.0)
        result.append(kept * f + (1.0 - kept) * f / factor)
    return result


def llama3(
    frequencies: Sequence[float], factor: float, context: int, *, low: float = 1.0, high: float = 4.0
) -> list[float]:
    result = []
    for f in frequencies:
        wavelength = 2 * math.pi / f
        if wavelength < context / high:
            result.append(f)
        elif wavelength > context / low:
            result.append(f / factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            result.append((1 - smooth) * f / factor + smooth * f)
    return result
