"""Ranges of versions as readers state them: ``5.x``, ``4.56-4.57``, ``>=0.30``, ``<=0.29``."""

from __future__ import annotations

from ctxextend.errors import UsageError


def covers(versions: str, wanted: str) -> bool:
    """Whether a stated range holds a version; ``4.45`` stands for all of its patches.

    Raises :class:`UsageError` for a version that isn't numbers and dots.
    """
    found = parsed(wanted)
    if versions.startswith(">="):
        return found >= parsed(versions[2:])
    if versions.startswith("<="):
        return found[: len(last := parsed(versions[2:]))] <= last
    if versions.endswith(".x"):
        return found[: len(line := parsed(versions[:-2]))] == line
    first, _dash, last_said = versions.partition("-")
    last = parsed(last_said or first)
    return parsed(first) <= found and found[: len(last)] <= last


def parsed(version: str) -> tuple[int, ...]:
    """The numbers of a version. Raises :class:`UsageError` for anything else."""
    parts = version.split(".")
    if not all(part.isdecimal() for part in parts):
        raise UsageError(
            "a runtime's version can't be read",
            code="bad-version",
            key="--runtimes",
            expected="numbers and dots, such as transformers@4.45",
            found=version,
        )
    return tuple(int(part) for part in parts)
