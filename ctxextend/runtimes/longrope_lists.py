"""LongRoPE as the smaller engines read it: their lists, and one list for good with a temperature of two lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxextend.runtimes.base import ratio_temperature
from ctxextend.scaling import LongRope


def factors(settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """One of the two lists. Raises ``ValueError`` where it isn't a list of numbers."""
    found = settings.get(key)
    if not isinstance(found, list) or not all(type(value) in (int, float) for value in found):
        raise ValueError(f"{key} must be a list of numbers")
    return tuple(float(value) for value in found)


def one_list(settings: Mapping[str, Any], *, long: bool, stated: int, original: int) -> LongRope:
    """One list whatever the input, and ``sqrt(1 + ln(stated / original) / ln(original))`` for the temperature."""
    chosen = factors(settings, "long_factor" if long else "short_factor")
    return LongRope(
        short_factor=chosen,
        long_factor=chosen,
        original_max_position_embeddings=original,
        factor=max(stated / original, 1.0),
        attention_factor=ratio_temperature(stated, original),
    )


def two_lists(settings: Mapping[str, Any], *, stated: int, original: int) -> LongRope:
    """Both lists, changing over at ``original``, with the same temperature for both."""
    return LongRope(
        short_factor=factors(settings, "short_factor"),
        long_factor=factors(settings, "long_factor"),
        original_max_position_embeddings=original,
        factor=max(stated / original, 1.0),
        attention_factor=ratio_temperature(stated, original),
    )
