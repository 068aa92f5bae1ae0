"""Numbers of a checkpoint as the bytes of a GGML type, in float32 between them.

Formats: llama.cpp b11434, ``ggml/src/ggml-common.h`` (blocks) and ``ggml/src/ggml-quants.c`` (the ``_ref`` functions).
The bytes are those of ``gguf.quants.quantize``, which is several times slower: here the extremes of all blocks are
found at once, by passes over the whole run that each halve the distance to a block's end. They differ in two things
that don't change a number: a block whose scale is zero has no codes that hang on how a processor rounds infinity,
and the minimum of a block is never minus zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ctxextend.contents import GGML_TYPES
from ctxextend.errors import RefusedError
from ctxextend.exports.layout import Layout
from ctxextend.exports.outtypes import NATIVE

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

#: Safetensors types that :func:`decode` reads, with the bytes of an element.
ELEMENT_BYTES: Final[Mapping[str, int]] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1})

#: How many elements are done at a time: about what a core's own cache holds, and enough for threads to seldom meet.
#: A multiple of every block.
CHUNK: Final = 1 << 17

_BLOCK: Final = 32
_SIZES: Final[Mapping[str, int]] = MappingProxyType({name: size for name, _elements, size in GGML_TYPES.values()})

#: The number just below a half, as bits of float32. The sum of it and a number, cut, is that number rounded, halves up:
#: a half itself would take the number just below a half to one.
_BELOW_HALF: Final = 0x3EFFFFFF


def tensor_type(layout: Layout, outtype: str, *, tied: bool) -> str:
    """The GGML type of a tensor in a file of a native output type.

    Exact and one-dimensional tensors are F32. A row that isn't a whole number of blocks falls back to F16, as in
    llama.cpp's converter and its llama-quantize. Of the 4- and 5-bit types, the output matrix, and the embedding
    where it is ``tied`` to it, is Q8_0; llama-quantize writes Q6_K there, which is a K-quant.
    """
    if layout.exact or len(layout.shape) < 2:
        return "F32"
    wanted = NATIVE[outtype]
    if wanted in ("F32", "F16", "BF16"):
        return wanted
    if layout.shape[-1] % _BLOCK:
        return "F16"
    head = "token_embd.weight" if tied else "output.weight"
    return "Q8_0" if layout.name == head else wanted


def encoded_bytes(elements: int, kind: str) -> int:
    """The size of so many elements, a whole number of blocks, as a type that can be written."""
    block = 1 if kind in ("F32", "F16", "BF16") else _BLOCK
    return elements // block * _SIZES[kind]


class Scratch:
    """Memory of one thread that is used again and again.

    Fresh arrays of this size come from the system, and each of their pages costs a fault: more than the arithmetic.
    """

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def array(self, name: str, count: int, kind: str) -> Array:
        """``count`` elements of numpy's ``kind``; until the same ``name`` is asked for again."""
        import numpy as np

        size = count * np.dtype(kind).itemsize
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = np.empty(size, np.uint8)
        return self._held[name][:size].view(kind)


def decode(raw: Array, dtype: str, scratch: Scratch) -> Array:
    """Numbers of a safetensors ``dtype`` (one of ELEMENT_BYTES), given as bytes (uint8), as flat float32.

    They may be the scratch's, or the bytes themselves.
    """
    import numpy as np

    if dtype == "F32":
        return raw.view(np.float32)
    numbers = scratch.array("numbers", len(raw) // ELEMENT_BYTES[dtype], "f4")
    match dtype:
        case "BF16":
            wide = numbers.view(np.uint32)
            wide[:] = raw.view(np.uint16)
            wide <<= 16
        case "F16":
            numbers[:] = raw.view(np.float16)
        case "F64":
            with np.errstate(over="ignore"):
                numbers[:] = raw.view(np.float64)
        case "F8_E4M3":
            numbers[:] = _f8_numbers()[raw]
        case _:
            raise ValueError(dtype)
    return numbers


def convert(raw: Array, dtype: str, kinds: Sequence[str], scratch: Scratch, *, name: str) -> list[Array]:
    """A run of whole rows, given as bytes of ``dtype``, as the bytes of each of ``kinds``; decoded once for all.

    What it gives may be the scratch's, or ``raw`` itself. ``name`` is the tensor's, for errors. Raises
    :class:`RefusedError` where numbers don't fit the type's range.
    """
    size = ELEMENT_BYTES[dtype]
    elements = len(raw) // size
    outs = [
        raw if kind == dtype else scratch.array(f"out {number}", encoded_bytes(elements, kind), "u1")
        for number, kind in enumerate(kinds)
    ]
    work = [(kind, out) for kind, out in zip(kinds, outs, strict=True) if kind != dtype]
    for start in range(0, elements if work else 0, CHUNK):
        stop = min(start + CHUNK, elements)
        part = raw[start * size : stop * size]
        numbers: Array | None = None
        for kind, out in work:
            place = out[encoded_bytes(start, kind) : encoded_bytes(stop, kind)]
            if (dtype, kind) == ("BF16", "F16"):
                _half_of_brain(part.view("u2"), place.view("u2"), scratch, name)
            else:
                numbers = decode(part, dtype, scratch) if numbers is None else numbers
                encode(numbers, kind, place, scratch, name=name)
    return outs


def encode(numbers: Array, kind: str, out: Array, scratch: Scratch, *, name: str) -> None:
    """Write flat float32 ``numbers`` as a GGML type into ``out``, bytes of the right size.

    Raises :class:`RefusedError` where numbers, or the scales of blocks, don't fit the type's range.
    """
    import numpy as np

    match kind:
        case "F32":
            out.view(np.float32)[:] = numbers
        case "F16":
            try:
                with np.errstate(over="raise"):
                    out.view(np.float16)[:] = numbers
            except FloatingPointError as error:
                raise _too_large(name, "F16") from error
        case "BF16":
            _brain(numbers.view(np.uint32), out.view(np.uint16), scratch)
        case _:
            with np.errstate(all="ignore"):
                scales = _QUANTISERS[kind](numbers, out.reshape(-1, _SIZES[kind]), scratch)
            if not np.isfinite(scales).all():
                raise _too_large(name, kind)


def _brain(bits: Array, out: Array, scratch: Scratch) -> None:
    """To the nearest, halves to even; what is no number stays so."""
    import numpy as np

    rounded = np.right_shift(bits, 16, out=scratch.array("one", len(bits), "u4"))
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    out[:] = rounded
    magnitude = np.bitwise_and(bits, 0x7FFFFFFF, out=rounded)
    if magnitude.max(initial=0) > 0x7F800000:
        odd = np.flatnonzero(magnitude > 0x7F800000)
        out[odd] = (bits[odd] >> 16) | 0x40


def _half_of_brain(bits: Array, out: Array, scratch: Scratch, name: str) -> None:
    """BF16 to F16, exact between F16's smallest normal number and its largest; below, by way of float32."""
    import numpy as np

    magnitude = np.bitwise_and(bits, 0x7FFF, out=scratch.array("one", len(bits), "u2"))
    # 0x4780 is 65536, the first that F16 can't hold; from 0x7F80 on it is infinity or no number.
    if magnitude.max(initial=0) >= 0x4780 and ((magnitude >= 0x4780) & (magnitude < 0x7F80)).any():
        raise _too_large(name, "F16")
    np.left_shift(magnitude, 3, out=out)
    # The exponents differ by 112; the bits that both operations lose are the same.
    out -= (112 << 10) & 0xFFFF
    out &= 0x7FFF
    out |= np.bitwise_and(bits, 0x8000, out=scratch.array("two", len(bits), "u2"))
    # 0x3880 is 2 ** -14.
    odd = np.flatnonzero((magnitude < 0x3880) | (magnitude >= 0x7F80))
    if len(odd):
        out[odd] = (bits[odd].astype(np.uint32) << 16).view(np.float32).astype(np.float16).view(np.uint16)


def _extreme(numbers: Array, choose: Callable[..., Array], scratch: Scratch) -> Array:
    """``choose``'s favourite of every block."""
    count = len(numbers)
    here, names = numbers, ("one", "two")
    for turn, distance in enumerate((16, 8, 4, 2, 1)):
        count -= distance
        # Never into what is read: numpy would copy overlapping operands.
        target = scratch.array(names[turn % 2], count, numbers.dtype.str)
        here = choose(here[:count], here[distance : count + distance], out=target)
    return here[::_BLOCK].copy()


def _inverse(scale: Array) -> Array:
    """One over each scale; zero for one that is zero, or so small that there is no such number."""
    import numpy as np

    inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _q8_0(numbers: Array, out: Array, scratch: Scratch) -> Array:
    import numpy as np

    codes = scratch.array("codes", len(numbers), "f4")
    magnitudes = np.bitwise_and(numbers.view(np.int32), 0x7FFFFFFF, out=codes.view(np.int32))
    scale = _extreme(magnitudes, np.maximum, scratch).view(np.float32) / np.float32(127)
    np.multiply(numbers.reshape(-1, _BLOCK), _inverse(scale)[:, None], out=codes.reshape(-1, _BLOCK))
    # Half away from zero, by what lies just below a half, of the same sign, and the cast, which cuts.
    almost = np.bitwise_and(codes.view(np.uint32), 0x80000000, out=scratch.array("one", len(codes), "u4"))
    almost |= _BELOW_HALF
    codes += almost.view(np.float32)
    np.copyto(out[:, 2:].view(np.int8), codes.reshape(-1, _BLOCK), casting="unsafe")
    return _put(out, 0, scale)


def _symmetric(numbers: Array, out: Array, scratch: Scratch, levels: int) -> Array:
    """Q4_0 and Q5_0: the scale takes the number of the largest magnitude, with its sign, to the lowest code."""
    import numpy as np

    blocks = numbers.reshape(-1, _BLOCK)
    high, low = _extreme(numbers, np.maximum, scratch), _extreme(numbers, np.minimum, scratch)
    peak = np.where(high > -low, high, low)
    ties = np.flatnonzero(high == -low)
    if len(ties):
        # The first of them decides.
        tied = blocks[ties]
        peak[ties] = np.take_along_axis(tied, np.abs(tied).argmax(axis=-1, keepdims=True), axis=-1)[:, 0]
    scale = peak / np.float32(-levels // 2)
    codes = scratch.array("codes", len(numbers), "f4")
    np.multiply(blocks, _inverse(scale)[:, None], out=codes.reshape(-1, _BLOCK))
    codes += np.float32(levels // 2 + 0.5)
    _pack(codes, out, scratch, 2, levels)
    return _put(out, 0, scale)


def _shifted(numbers: Array, out: Array, scratch: Scratch, levels: int) -> Array:
    """Q4_1 and Q5_1: codes count steps of the scale from the block's minimum."""
    import numpy as np

    low = _extreme(numbers, np.minimum, scratch) + np.float32(0)
    scale = (_extreme(numbers, np.maximum, scratch) - low) / np.float32(levels - 1)
    codes = scratch.array("codes", len(numbers), "f4")
    blocks = codes.reshape(-1, _BLOCK)
    np.subtract(numbers.reshape(-1, _BLOCK), low[:, None], out=blocks)
    blocks *= _inverse(scale)[:, None]
    codes += np.float32(0.5)
    _pack(codes, out, scratch, 4, levels)
    return np.concatenate((_put(out, 0, scale), _put(out, 2, low)))


def _put(out: Array, at: int, numbers: Array) -> Array:
    """Write one F16 number a block, ``at`` bytes from its start."""
    import numpy as np

    halves: Array = numbers.astype(np.float16)
    out.view(np.float16)[:, at // 2] = halves
    return halves


def _pack(codes: Array, out: Array, scratch: Scratch, at: int, levels: int) -> None:
    """Write codes of 4 or 5 bits: the fifth bits first, as 32 bits, then nibbles, two halves of a block together."""
    import numpy as np

    np.minimum(codes, np.float32(levels - 1), out=codes)
    whole = scratch.array("one", len(codes), "u1")
    np.copyto(whole, codes, casting="unsafe")
    if levels == 32:
        high = np.packbits(np.right_shift(whole, 4, out=scratch.array("two", len(codes), "u1")), bitorder="little")
        out[:, at : at + 4] = high.reshape(-1, 4)
        whole &= 0x0F
        at += 4
    eight = whole.view(np.uint64).reshape(-1, 4)
    nibbles = np.stack((eight[:, 2] << 4 | eight[:, 0], eight[:, 3] << 4 | eight[:, 1]), axis=-1)
    out[:, at : at + 16] = nibbles.view(np.uint8)


_QUANTISERS: Final[Mapping[str, Callable[[Array, Array, Scratch], Array]]] = MappingProxyType(
    {
        "Q8_0": _q8_0,
        "Q4_0": lambda numbers, out, scratch: _symmetric(numbers, out, scratch, 16),
        "Q5_0": lambda numbers, out, scratch: _symmetric(numbers, out, scratch, 32),
        "Q4_1": lambda numbers, out, scratch: _shifted(numbers, out, scratch, 16),
        "Q5_1": lambda numbers, out, scratch: _shifted(numbers, out, scratch, 32),
    }
)


def _f8_numbers() -> Array:
    """What each byte of F8_E4M3 means (arXiv 2209.05433): 4 bits of exponent, 3 of mantissa, no infinities."""
    import numpy as np

    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    magnitude[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


def _too_large(name: str, kind: str) -> RefusedError:
    return RefusedError(
        f"a tensor has numbers that {kind} can't hold",
        code="out-of-range",
        key=name,
        expected="magnitudes up to 65504, of numbers or of the scales of blocks",
        found="larger ones, or what is no number",
        hint="--outtype bf16 has the range of float32",
    )
