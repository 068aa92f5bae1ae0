"""What a plan does to single tensors, and what came of it, in a few lines however many layers there are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

from ctxextend.apply import RewrittenTensor
from ctxextend.changes import (
    Action,
    DropTensor,
    FillSinusoids,
    PutTensor,
    ResizeTable,
    ScaleTensor,
    TensorChange,
    tensor_changes_of,
)

#: A number between two dots, which is a layer's.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def tensor_lines(actions: Sequence[Action]) -> Iterator[tuple[str, str]]:
    """One line for each kind of change of each kind of tensor: a title, and how many tensors of what name."""
    counted: dict[tuple[str, str], int] = {}
    for change in tensor_changes_of(actions):
        where = _LAYER.sub("*", change.name)
        title, said = _said(change)
        counted[title, f"{where}{said}"] = counted.get((title, f"{where}{said}"), 0) + 1
    for (title, said), count in counted.items():
        yield title, said if count == 1 else f"{count} tensors {said}"


def _said(change: TensorChange) -> tuple[str, str]:
    match change:
        case ScaleTensor():
            part = "" if not change.slices else ", the rows that need it"
            return "multiplied", f" by {change.factor:.6g}{part}"
        case DropTensor():
            return "dropped", ""
        case PutTensor():
            return "put", f", {len(change.values)} numbers in F32"
        case ResizeTable():
            return "resized", f" from {change.rows_before} to {change.rows} rows ({change.interpolation})"
        case FillSinusoids():
            kept = f", the first {change.rows_kept} as they are" if change.rows_kept else ""
            return "computed", f", {change.rows} rows{kept}"
        case _:
            assert_never(change)


def rounding_line(tensors: Iterable[RewrittenTensor]) -> str | None:
    """How exact the multiplied numbers are in their dtype; None where none were."""
    scaled = [tensor for tensor in tensors if tensor.factor is not None]
    if not scaled:
        return None
    dtypes = ", ".join(sorted({tensor.dtype for tensor in scaled}))
    count = f"{len(scaled)} tensor{'' if len(scaled) == 1 else 's'} of {dtypes}"
    if all(tensor.exact for tensor in scaled):
        power = all(math.frexp(tensor.factor or 0.0)[0] == 0.5 for tensor in scaled)
        return f"folded into {count}: exact" + (", the factor is a power of two" if power else "")
    worst = max(tensor.rounding for tensor in scaled)
    return f"folded into {count}: rounded by at most {worst:.2g} of a number"
