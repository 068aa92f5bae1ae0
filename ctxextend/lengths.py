"""Lengths and sizes as people type them: 128k, 1m, 80GiB."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ctxextend.errors import UsageError

_TOKENS: Final[Mapping[str, int]] = MappingProxyType({"": 1, "k": 1 << 10, "m": 1 << 20})
_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "": 1,
        "b": 1,
        "k": 1 << 10,
        "kib": 1 << 10,
        "kb": 10**3,
        "m": 1 << 20,
        "mib": 1 << 20,
        "mb": 10**6,
        "g": 1 << 30,
        "gib": 1 << 30,
        "gb": 10**9,
        "t": 1 << 40,
        "tib": 1 << 40,
        "tb": 10**12,
    }
)
_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_tokens(text: str, *, option: str) -> int:
    """``128k`` is 131072, ``1m`` 1048576, a plain number what it says. Raises :class:`UsageError`."""
    return _parse(text, _TOKENS, option=option, example="128k, 1m or 32768")


def parse_bytes(text: str, *, option: str) -> int:
    """``80GiB``, ``24g`` or a number of bytes. Raises :class:`UsageError`."""
    return _parse(text, _BYTES, option=option, example="80GiB, 24g or a number of bytes")


def _parse(text: str, units: Mapping[str, int], *, option: str, example: str) -> int:
    match = _NUMBER.fullmatch(text.strip())
    unit = match.group(2).lower() if match else ""
    value = float(match.group(1)) * units[unit] if match and unit in units else math.nan
    if not (math.isfinite(value) and value >= 1 and value == int(value)):
        raise UsageError(
            f"{option} can't be read",
            code="bad-number",
            key=option,
            expected=f"a positive whole number: {example}",
            found=repr(text),
        )
    return int(value)


def show_tokens(tokens: int) -> str:
    """131072 as 128k, 1048576 as 1m, other numbers as they are."""
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def show_bytes(size: int) -> str:
    """A size in the largest binary unit that keeps it above one."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def show_count(count: int) -> str:
    """134515008 as 134.5M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)
