"""Blocks of GGUF types as numbers, and numbers as the floating types of safetensors.

The formats of the quantised types are the ``gguf`` package's business. What is done here holds for any whole
number of blocks, so that callers can go through a tensor of any size in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from ctxextend.contents import GGML_TYPES, TensorInfo
from ctxextend.errors import RefusedError
from ctxextend.exports.reverse import FloatType
from ctxextend.tensors.quantise import CHUNK, Scratch, encode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Types of GGML without numbers of their own (indices), or that the ``gguf`` package can't take apart.
UNREADABLE: Final = frozenset({"I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "Q1_0", "Q2_0"})

#: How many elements are taken apart at once: the arrays between fit into a processor's cache.
_AT_ONCE: Final = 1 << 18

_NUMBERS: Final = {name: number for number, (name, _elements, _size) in GGML_TYPES.items()}


def check_readable(tensors: Iterable[TensorInfo]) -> None:
    """Raises :class:`RefusedError` for the first tensor whose type can't be turned into numbers."""
    for tensor in tensors:
        if tensor.dtype in UNREADABLE or tensor.dtype not in _NUMBERS:
            raise RefusedError(
                f"tensors of type {tensor.dtype} can't be turned into numbers",
                code="unreadable-type",
                file=tensor.file,
                key=tensor.name,
                expected="floating numbers, or a quantised type that is known",
                found=tensor.dtype,
                hint="start from a file of another type, such as F16 or Q8_0",
            )


def dequantised(raw: bytes | NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """The numbers of whole blocks of a GGUF type, as one row in their order.

    A NaN or an infinity in the file stays one. Only types that :func:`check_readable` lets pass.
    """
    import numpy as np

    data: NDArray[np.uint8] = np.frombuffer(raw, np.uint8) if isinstance(raw, bytes) else raw.reshape(-1)
    match dtype:
        case "F32":
            return data.view("<f4").astype(np.float32, copy=False)
        case "F64":
            with np.errstate(all="ignore"):
                return data.view("<f8").astype(np.float32)
        case "F16":
            return data.view("<f2").astype(np.float32)
        case "BF16":
            return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        case _:
            return _blocks(data, dtype)


def encoded(values: NDArray[np.float32], dtype: FloatType, *, name: str) -> NDArray[Any]:
    """The numbers as ``dtype``, rounded to the nearest (ties to even), as an array of that many bytes an element.

    16 bits come as they are, for numpy has no BF16. Raises :class:`RefusedError` for a number of the tensor
    ``name`` that F16 can't hold.
    """
    import numpy as np

    if dtype == "F32":
        return values
    flat = np.ascontiguousarray(values).reshape(-1)
    found = np.empty(flat.size, np.uint16)
    scratch = Scratch()
    for start in range(0, flat.size, CHUNK):
        stop = min(start + CHUNK, flat.size)
        encode(flat[start:stop], dtype, found[start:stop].view(np.uint8), scratch, name=name)
    return found.reshape(values.shape)


def _blocks(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    number = _NUMBERS[dtype]
    _name, elements, size = GGML_TYPES[number]
    count = data.size // size
    found = np.empty(count * elements, np.float32)
    step = _AT_ONCE // elements
    # A hostile scale may be infinite: what comes out is then no number, and no reason for a warning.
    with np.errstate(all="ignore"):
        for start in range(0, count, step):
            stop = min(start + step, count)
            rows = data[start * size : stop * size].reshape(1, -1)
            found[start * elements : stop * elements] = quants.dequantize(rows, GGMLQuantizationType(number))[0]
    return found
