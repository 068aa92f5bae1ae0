"""What the file system of temporary files can do: some tests need more than every one can."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctxextend.tensors import ranges


def inserts(folder: Path) -> bool:
    """Whether blocks can be inserted into files there."""
    probe = folder / "probe"
    probe.touch()
    with probe.open("rb") as handle:
        found = ranges.inserts(handle.fileno())
    probe.unlink()
    return found


def need_insertion(folder: Path) -> None:
    """Skip the test where a file without room in its header can't be edited in place."""
    if not inserts(folder):
        pytest.skip("the file system of temporary files can't insert blocks")
