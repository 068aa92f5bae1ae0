"""Several processes that run one model together, as torchrun starts them: who speaks, and what all go by."""

from __future__ import annotations

import os
from typing import TypeVar

Value = TypeVar("Value")


def rank() -> int:
    """The number of this process among those that torchrun started; 0 where it is alone."""
    stated = os.environ.get("RANK", "")
    return int(stated) if stated.isdecimal() else 0


def processes() -> int:
    """How many processes torchrun started; 1 where this one is alone."""
    stated = os.environ.get("WORLD_SIZE", "")
    return int(stated) if stated.isdecimal() else 1


def is_first() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


def agreed(value: Value) -> Value:
    """The first process' ``value`` (plain: what JSON can hold) in all of them, once the model is loaded.

    Whatever decides what is read must be the same everywhere: a forward waits for all. Every process must call
    this, in the same order.
    """
    if processes() < 2:
        return value
    import torch.distributed as group

    if not group.is_available() or not group.is_initialized() or group.get_world_size() < 2:
        return value
    held: list[Value | None] = [value if group.get_rank() == 0 else None]
    group.broadcast_object_list(held, src=0)
    return held[0]  # type: ignore[return-value]  # filled by the first process
