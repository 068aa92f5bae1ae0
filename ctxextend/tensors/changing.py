"""What the changes of a plan do to the tensors of a checkpoint: checked against what is there, before anything is done.

A saved plan may be anybody's: what no plan of ours holds is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, assert_never

import msgspec

from ctxextend.changes import DropTensor, FillSinusoids, PutTensor, ResizeTable, ScaleTensor, Slice, TensorChange
from ctxextend.contents import TensorInfo
from ctxextend.errors import RefusedError
from ctxextend.tensors.products import check_factor

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: The entry of a header of safetensors that is no tensor.
METADATA: Final = "__metadata__"

#: Above this a number is infinite in F32.
_LARGEST_F32: Final = float.fromhex("0x1.fffffep127")

#: The types in which a table of positions is written.
_TABLE_TYPES: Final = ("F32", "F16", "BF16", "F64")


class Factors:
    """What the places along one dimension of a tensor are multiplied by: the product of several changes, once rounded.

    ``axis`` is that dimension; ``sliced``: whether places of it differ. Only for changes that :func:`changed` let pass.
    """

    def __init__(self, changes: Sequence[ScaleTensor]) -> None:
        self.changes = tuple(changes)
        self.axis = next((change.axis for change in changes if change.slices), 0)
        self.sliced = any(change.slices for change in changes)
        self.added_one = changes[0].added_one

    def at(self, places: Array) -> Array:
        """The factor at each of these places (whole numbers), as float64; 1 where nothing changes."""
        import numpy as np

        found = np.ones(len(places))
        for change in self.changes:
            if not change.slices:
                found *= change.factor
                continue
            touched = np.zeros(len(places), bool)
            for part in change.slices:
                at = (places - part.lower) % part.period
                touched |= (places >= part.lower) & (places < part.upper) & (at >= part.start) & (at < part.stop)
            found[touched] *= change.factor
        return found


def by_name(changes: Iterable[TensorChange]) -> dict[str, tuple[TensorChange, ...]]:
    """The changes of each tensor. Several of one are one multiplication; any other change stands alone.

    Raises :class:`RefusedError`.
    """
    found: dict[str, list[TensorChange]] = {}
    for change in changes:
        found.setdefault(change.name, []).append(change)
    for name, several in found.items():
        if name == METADATA:
            raise _unsafe(several[0], "the name of a tensor", METADATA)
        if len(several) > 1 and not _together(several):
            raise _unsafe(several[0], "one change of this tensor, or factors along one dimension", f"{len(several)}")
    return {name: tuple(several) for name, several in found.items()}


def _together(changes: Sequence[TensorChange]) -> bool:
    scales = [change for change in changes if isinstance(change, ScaleTensor)]
    return (
        len(scales) == len(changes)
        and len({change.axis for change in scales if change.slices}) <= 1
        and len({(change.file, change.added_one) for change in scales}) == 1
    )


def changed_tensors(
    tensors: Mapping[str, TensorInfo], changes: Mapping[str, tuple[TensorChange, ...]]
) -> dict[str, TensorInfo]:
    """The tensors as they are after the changes of :func:`by_name`, in their order, new ones at the end.

    Raises :class:`RefusedError` for a change of a tensor that isn't there or has another shape, and for one that no
    plan of ours holds.
    """
    found = dict(tensors)
    for name, several in changes.items():
        after = changed(tensors.get(name), several)
        if after is None:
            del found[name]
        else:
            found[name] = after
    return found


def changed(tensor: TensorInfo | None, changes: tuple[TensorChange, ...]) -> TensorInfo | None:
    """A tensor after its changes, None for one that is dropped. Raises :class:`RefusedError` as said above."""
    change = changes[0]
    if isinstance(change, PutTensor):
        if any(abs(value) > _LARGEST_F32 for value in change.values):
            raise _unsafe(change, "numbers that F32 holds", "larger ones")
        return TensorInfo(name=change.name, dtype="F32", shape=(len(change.values),), file=change.file)
    if tensor is None or tensor.file != change.file:
        raise _stale(change, "a tensor of this file", "none of that name")
    match change:
        case DropTensor():
            return None
        case ScaleTensor():
            for scale in changes:
                assert isinstance(scale, ScaleTensor)
                _check_scale(tensor, scale)
            return tensor
        case ResizeTable():
            return _resized(tensor, change)
        case FillSinusoids():
            return _filled(tensor, change)
        case _:
            assert_never(change)


def _resized(tensor: TensorInfo, change: ResizeTable) -> TensorInfo:
    _check_table(tensor, change)
    if tensor.shape[:1] != (change.rows_before,):
        raise _stale(change, f"{change.rows_before} rows", f"{list(tensor.shape)}")
    if not 0 <= change.reserved < min(change.rows_before, change.rows):
        raise _unsafe(change, "reserved rows, and at least one more", f"{change.reserved} of {change.rows}")
    return msgspec.structs.replace(tensor, shape=(change.rows, *tensor.shape[1:]))


def _filled(tensor: TensorInfo, change: FillSinusoids) -> TensorInfo:
    _check_table(tensor, change)
    if tensor.shape[1:] != (change.dim,):
        raise _stale(change, f"rows of {change.dim}", f"{list(tensor.shape)}")
    if change.rows < 1 or change.dim < 2 or not math.isfinite(change.positions_per_row):
        found = f"{change.rows} of {change.dim}, {change.positions_per_row} apart"
        raise _unsafe(change, "rows of sinusoids", found)
    if not 0 <= change.rows_kept <= change.rows or (change.rows_kept and change.positions_per_row != 1):
        raise _unsafe(change, "rows that are kept, a position apart", f"{change.rows_kept} of {change.rows}")
    return msgspec.structs.replace(tensor, shape=(change.rows, change.dim))


def _check_scale(tensor: TensorInfo, change: ScaleTensor) -> None:
    if not (math.isfinite(change.factor) and change.factor > 0):
        raise _unsafe(change, "a positive factor", f"{change.factor}")
    check_factor(tensor, change.factor, added_one=change.added_one)
    if not change.slices:
        return
    if not 0 <= change.axis < len(tensor.shape):
        raise _stale(change, f"a dimension {change.axis}", f"{list(tensor.shape)}")
    places = tensor.shape[change.axis]
    for part in change.slices:
        if not (0 <= part.lower <= part.upper and 0 <= part.start <= part.stop <= part.period and part.period):
            raise _unsafe(change, "slices in their order", _words(part))
        if part.upper > places:
            raise _stale(change, f"{part.upper} places along dimension {change.axis}", f"{list(tensor.shape)}")


def _check_table(tensor: TensorInfo, change: ResizeTable | FillSinusoids) -> None:
    if tensor.dtype in _TABLE_TYPES:
        return
    raise RefusedError(
        "a table of positions isn't plain floating numbers, and isn't made anew",
        code="source-type",
        file=change.file,
        key=change.name,
        expected=", ".join(_TABLE_TYPES),
        found=tensor.dtype,
        hint="start from the checkpoint that wasn't quantised",
    )


def _words(part: Slice) -> str:
    return f"{part.start} to {part.stop} of each {part.period} from {part.lower} to {part.upper}"


def _stale(change: TensorChange, expected: str, found: str) -> RefusedError:
    """A file that isn't the one that the change was planned for."""
    return RefusedError(
        "the weights aren't those that the plan was made for",
        code="stale-plan",
        file=change.file,
        key=change.name[:200],
        expected=expected[:200],
        found=found[:200],
        hint="make the plan again: ctxextend plan SOURCE --json",
    )


def _unsafe(change: TensorChange, expected: str, found: str) -> RefusedError:
    """A change that no plan of ours holds."""
    return RefusedError(
        "the plan would do to a tensor what no plan does",
        code="unsafe-plan",
        file=change.file,
        key=change.name[:200],
        expected=expected[:200],
        found=found[:200],
        hint="make the plan again: ctxextend plan SOURCE --json",
    )
