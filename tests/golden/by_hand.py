"""The arithmetic, written down a second time from the papers with ``math`` alone.

Nothing here imports the package: these are the numbers that its answers are held to.
"""

from __future__ import annotations

import math


def plain(theta: float, dim: int, pair: int) -> float:
    """RoFormer eq. 15: how far pair ``i`` turns a token, in radians."""
    return math.pow(theta, -2.0 * pair / dim)


def place(theta: float, dim: int, frequency: float) -> float:
    """The (real) index at which a frequency stands in the plain spectrum."""
    return -math.log(frequency) * dim / (2.0 * math.log(theta))


def turning(theta: float, dim: int, context: int, turns: float) -> float:
    """The (real) index of the pair that turns ``turns`` times within ``context`` tokens."""
    return dim * math.log(context / (turns * 2.0 * math.pi)) / (2.0 * math.log(theta))


def ramp(theta: float, dim: int, context: int, frequency: float, *, truncate: bool = True, fast: float = 32.0) -> float:
    """YaRN's ramp for a frequency: 0 is kept, 1 is divided by the factor."""
    low, high = turning(theta, dim, context, fast), turning(theta, dim, context, 1.0)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return min(max((place(theta, dim, frequency) - low) / (high - low), 0.0), 1.0)


def yarn(theta: float, dim: int, context: int, factor: float, frequency: float, *, truncate: bool = True) -> float:
    """One frequency after YaRN by ``factor`` over ``context``."""
    share = ramp(theta, dim, context, frequency, truncate=truncate)
    return frequency * (1.0 - share) + frequency / factor * share


def llama3(frequency: float, *, factor: float = 8.0, low: float = 1.0, high: float = 4.0, context: int = 8192) -> float:
    """One frequency after Llama 3.1's scaling."""
    turns = context * frequency / (2.0 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    share = (turns - low) / (high - low)
    return frequency * share + frequency / factor * (1.0 - share)


def temperature(factor: float) -> float:
    """YaRN eq. 22: what cos and sin are multiplied by."""
    return 0.1 * math.log(factor) + 1.0


def carrier_original(length: int, attention: float) -> int:
    """The original length beside which ``sqrt(1 + ln(length / o) / ln(o))`` is ``attention``.

    ``1 + (ln n - ln o) / ln o = ln n / ln o``, so ``o = n ** (1 / attention ** 2)``.
    """
    return round(math.exp(math.log(length) / attention**2))


def ratio_temperature(length: int, original: int) -> float:
    """LongRoPE's temperature as a reader computes it from the two lengths."""
    return math.sqrt(math.log(length) / math.log(original))
