"""How sure a rate is that was counted in few samples."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

#: The two-sided 95 % quantile of the normal distribution, 1.95996.
QUANTILE: Final = NormalDist().inv_cdf(0.975)


def wilson(found: int, asked: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212); (0, 1) where nothing was asked.

    Unlike the usual mean and standard error it stays within 0 and 1, and isn't empty when all or none were found.
    """
    if asked == 0:
        return 0.0, 1.0
    rate, square = found / asked, QUANTILE**2
    middle = rate + square / (2 * asked)
    spread = QUANTILE * math.sqrt(rate * (1 - rate) / asked + square / (4 * asked**2))
    low, high = ((middle + sign * spread) / (1 + square / asked) for sign in (-1, 1))
    # Rounding may leave 0 of n a hair above 0, n of n a hair below 1.
    return (0.0 if found == 0 else low), (1.0 if found == asked else high)
