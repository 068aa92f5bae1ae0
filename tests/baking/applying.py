"""Changes of tensors done with torch in double precision: the oracle of what streams them through files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ctxextend.changes import ScaleTensor


def multiplied(change: ScaleTensor, size: int) -> torch.Tensor:
    """Which places along the change's dimension are multiplied, shape ``(size,)``."""
    if not change.slices:
        return torch.ones(size, dtype=torch.bool)
    index = torch.arange(size)
    chosen = torch.zeros(size, dtype=torch.bool)
    for part in change.slices:
        within = (index - part.lower) % part.period
        chosen |= (index >= part.lower) & (index < part.upper) & (within >= part.start) & (within < part.stop)
    return chosen


def applied(tensors: Mapping[str, torch.Tensor], changes: Iterable[ScaleTensor]) -> dict[str, torch.Tensor]:
    """The tensors as they are after the changes, each in the dtype that it had."""
    after = dict(tensors)
    for change in changes:
        before = after[change.name]
        shape = [1] * before.ndim
        shape[change.axis] = before.shape[change.axis]
        chosen = multiplied(change, before.shape[change.axis]).reshape(shape).expand_as(before)
        exact = before.double()
        exact = (1.0 + exact) * change.factor - 1.0 if change.added_one else exact * change.factor
        after[change.name] = torch.where(chosen, exact, before.double()).to(before.dtype).contiguous()
    return after
