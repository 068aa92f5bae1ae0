"""Numbers of a checkpoint times a factor, rounded once to the type that they have.

A type of 8 or 16 bits has so few numbers that their products are looked up: a table is made once for each type and
factor, in float64, and says of each number what becomes of it and how far that is off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ctxextend.contents import TensorInfo
from ctxextend.errors import RefusedError
from ctxextend.tensors.quantise import CHUNK, Scratch, decode

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: The bytes of an element, the bits of its significand, and its smallest normal number. A number of F8_E8M0 is a
#: power of two, and none is subnormal (OCP Microscaling Formats 1.0, section 5.4.1; the others: section 5.3.1).
_TYPES: Final[Mapping[str, tuple[int, int, float]]] = MappingProxyType(
    {
        "F64": (8, 53, 2.0**-1022),
        "F32": (4, 24, 2.0**-126),
        "BF16": (2, 8, 2.0**-126),
        "F16": (2, 11, 2.0**-14),
        "F8_E5M2": (1, 3, 2.0**-14),
        "F8_E4M3": (1, 4, 2.0**-6),
        "F8_E8M0": (1, 1, 2.0**-127),
    }
)

#: The largest relative error of one rounding of a product to F64.
_DOUBLE: Final = 2.0**-53


class Rewritten(Struct, frozen=True, kw_only=True):
    """What became of one tensor. ``elements`` counts those that were written, or dropped.

    ``factor``: what all of them were multiplied by, None where that is no one number. ``rounding``: the largest
    distance between what was written and the exact value, as a part of that, of those whose exact value isn't below
    the normal range of the ``dtype`` (for F64 a bound). ``exact``: whether each is its exact value, below it too.
    """

    name: str
    dtype: str
    elements: int
    factor: float | None = None
    rounding: float = 0.0
    exact: bool = True


class Tally:
    """What the pieces of a tensor's work found together: how many elements, and how far they are off."""

    def __init__(self) -> None:
        self.elements = 0
        self.rounding = 0.0
        self.exact = True
        self._lock = Lock()

    def add(self, elements: int, rounding: float, *, exact: bool) -> None:
        """Another piece; threads may do it at once."""
        with self._lock:
            self.elements += elements
            self.rounding = max(self.rounding, rounding)
            self.exact = self.exact and exact


class _Table(Struct, frozen=True, kw_only=True):
    """Of each number of a type, by its code: the code of the product, its relative error, whether it has any, and the
    codes whose product the type can't hold.
    """

    codes: Any
    rounding: Any
    inexact: Any
    lost: Any


def check_factor(tensor: TensorInfo, factor: float, *, added_one: bool) -> None:
    """Refuse a tensor whose type can't be multiplied. Raises :class:`RefusedError`."""
    if tensor.dtype in _TYPES and (tensor.dtype != "F8_E8M0" or (_is_power_of_two(factor) and not added_one)):
        return
    known = tensor.dtype in _TYPES
    raise RefusedError(
        "the numbers of a tensor can't take this factor"
        if known
        else "a tensor isn't plain floating numbers, and can't take a factor",
        code="scale-type",
        file=tensor.file,
        key=tensor.name,
        expected="a power of two" if known else ", ".join(_TYPES),
        found=f"{factor!r}" if known else tensor.dtype,
        hint="start from the checkpoint that wasn't quantised, or leave the temperature to the runtimes (--bake none)",
    )


def multiply(raw: Array, tensor: TensorInfo, factor: float, *, added_one: bool, tally: Tally, scratch: Scratch) -> None:
    """Multiply numbers of a ``tensor``, given as bytes (flat uint8), where they are.

    With ``added_one``, ``factor * (1 + w) - 1`` takes the place of ``w``. The product is that in float64, rounded to
    the nearest, ties to even; what is no number, or infinite, stays as it is. Raises :class:`RefusedError` for a
    product that the type can't hold.
    """
    kind = f"u{_TYPES[tensor.dtype][0]}"
    codes = raw.view(kind)
    work = _look_up if _TYPES[tensor.dtype][0] < 4 else _compute
    for start in range(0, len(codes), CHUNK):
        work(codes[start : start + CHUNK], tensor, factor, added_one, tally, scratch)


def add_errors(tally: Tally, written: Array, exact: Array, dtype: str) -> None:
    """Count numbers that were rounded to ``dtype``, which are no products."""
    import numpy as np

    with np.errstate(all="ignore"):
        rounding = np.abs(written - exact) / np.abs(exact)
    rounding[~(np.isfinite(exact) & (np.abs(exact) >= _TYPES[dtype][2]))] = 0
    same = ((written == exact) | ~np.isfinite(exact)).all()
    tally.add(len(exact), float(rounding.max(initial=0)), exact=bool(same))


def _look_up(codes: Array, tensor: TensorInfo, factor: float, added_one: bool, tally: Tally, scratch: Scratch) -> None:
    import numpy as np

    table = _table(tensor.dtype, factor, added_one)
    at = scratch.array("at", len(codes), "i8")
    at[:] = codes
    held = np.flatnonzero(np.bincount(at, minlength=len(table.codes)))
    lost = held[table.lost[held]]
    if len(lost):
        raise _overflow(tensor, float(_numbers(tensor.dtype)[lost[0]]), factor)
    np.take(table.codes, at, out=codes, mode="clip")
    rounding = float(table.rounding[held].max(initial=0))
    tally.add(len(codes), rounding, exact=not table.inexact[held].any())


@lru_cache(maxsize=8)
def _table(dtype: str, factor: float, added_one: bool) -> _Table:
    import numpy as np

    numbers = _numbers(dtype)
    finite = np.isfinite(numbers)
    exact = _product(numbers, factor, added_one=added_one)
    own = np.arange(len(numbers))
    codes, inside = _nearest(exact, numbers, signed=dtype != "F8_E8M0")
    codes = np.where(finite, codes, own).astype(f"u{_TYPES[dtype][0]}")
    rounding, inexact = _errors(numbers[codes], exact, numbers, dtype, factor, added_one=added_one)
    # A power of two has no neighbour that it could be rounded to: what isn't one of the type's is lost.
    lost = ~inside | ((exact != numbers[codes]) if dtype == "F8_E8M0" else False)
    return _Table(codes=codes, rounding=rounding, inexact=inexact & finite, lost=lost & finite)


def _compute(codes: Array, tensor: TensorInfo, factor: float, added_one: bool, tally: Tally, scratch: Scratch) -> None:
    import numpy as np

    numbers = codes.view(f"f{codes.itemsize}")
    exact = scratch.array("exact", len(numbers), "f8")
    exact[:] = numbers
    exact = _product(exact, factor, added_one=added_one)
    written = scratch.array("written", len(numbers), numbers.dtype.str)
    with np.errstate(over="ignore"):
        written[:] = exact
    if not np.isfinite(written).all():
        finite = np.isfinite(numbers)
        lost = np.flatnonzero(finite & ~np.isfinite(written))
        if len(lost):
            raise _overflow(tensor, float(numbers[lost[0]]), factor)
        written.view(codes.dtype)[~finite] = codes[~finite]
    with np.errstate(invalid="ignore"):
        rounding, inexact = _errors(written, exact, numbers, tensor.dtype, factor, added_one=added_one)
    inexact &= np.isfinite(exact)
    tally.add(len(codes), float(rounding.max(initial=0)), exact=not inexact.any())
    numbers[:] = written


def _product(numbers: Array, factor: float, *, added_one: bool) -> Array:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = numbers * factor
        if added_one:
            found += factor - 1
    return found


def _errors(
    written: Array, exact: Array, numbers: Array, dtype: str, factor: float, *, added_one: bool
) -> tuple[Array, Array]:
    """The relative error of each product that is normal, else 0; and whether it has any error at all."""
    import numpy as np

    _size, bits, least = _TYPES[dtype]
    with np.errstate(all="ignore"):
        rounding = np.abs(written - exact) / np.abs(exact)
        rounding[~(np.isfinite(exact) & (np.abs(exact) >= least))] = 0
        inexact = written != exact
        if bits + _bits(factor) > 53 and not _is_power_of_two(factor):
            # The product in float64 was rounded itself.
            inexact |= exact != 0
            if dtype == "F64":
                rounding[exact != 0] = _DOUBLE
        if added_one:
            # A number may be lost beside the one.
            inexact |= (written.astype(np.float64) + 1) / factor - 1 != numbers
        elif dtype == "F64":
            # Below the normal range, the product lost bits in float64 already.
            inexact |= exact / factor != numbers
    return rounding, inexact


@lru_cache(maxsize=8)
def _numbers(dtype: str) -> Array:
    """What each code of a type means, as float64."""
    import numpy as np

    match dtype:
        case "BF16":
            found = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
        case "F16":
            found = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
        case "F8_E5M2":
            # The upper half of F16.
            found = (np.arange(256, dtype=np.uint16) << np.uint16(8)).view(np.float16)
        case "F8_E4M3":
            found = decode(np.arange(256, dtype=np.uint8), dtype, Scratch())
        case _:
            found = np.exp2(np.arange(256.0) - 127)
            found[255] = np.nan
    with np.errstate(invalid="ignore"):
        wide: Array = found.astype(np.float64)
    return wide


def _nearest(exact: Array, numbers: Array, *, signed: bool) -> tuple[Array, Array]:
    """The code of the nearest number, ties to the even one, and whether there is one: codes grow with magnitudes."""
    import numpy as np

    codes = len(numbers) // 2 if signed else len(numbers)
    magnitudes = numbers[:codes][np.isfinite(numbers[:codes])]
    between = (magnitudes[:-1] + magnitudes[1:]) / 2
    size = np.abs(exact)
    found = np.searchsorted(between, size)
    tied = np.append(between, np.inf)[found] == size
    found += tied & (found % 2 == 1)
    inside = size < magnitudes[-1] + (magnitudes[-1] - magnitudes[-2]) / 2
    return found + (codes * np.signbit(exact) if signed else 0), inside


def _bits(factor: float) -> int:
    """How many bits the factor's significand has, without the zeros at its end."""
    number = abs(factor.as_integer_ratio()[0])
    return (number // (number & -number)).bit_length() if number else 0


def _is_power_of_two(factor: float) -> bool:
    return math.frexp(factor)[0] == 0.5


def _overflow(tensor: TensorInfo, number: float, factor: float) -> RefusedError:
    return overflow(tensor, f"{number:g} times {factor:g}")


def overflow(tensor: TensorInfo, found: str) -> RefusedError:
    """The error for a number that the tensor's type can't hold."""
    return RefusedError(
        f"a tensor would get numbers that {tensor.dtype} can't hold",
        code="scale-overflow",
        file=tensor.file,
        key=tensor.name,
        expected=f"numbers of {tensor.dtype}",
        found=found,
        hint="start from a checkpoint in bfloat16 or float32, or leave the weights as they are (--bake none)",
    )
