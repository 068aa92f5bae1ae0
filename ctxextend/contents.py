"""What the pure rooms see of a checkpoint: a plain value, without files or sockets.

The room ``checkpoint/`` makes one from a directory or a Hub repository. Sizes are in bytes, shapes
count elements, paths are relative to the checkpoint and use ``/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct, field

from ctxextend.errors import CheckpointError

#: What holds the weights.
Storage = Literal["safetensors", "pytorch", "gguf", "none"]

#: Bits per element of safetensors dtypes.
DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)

#: GGML types by their number in a GGUF file: their name, the elements of a block, and the bytes of a block.
#: Source: llama.cpp b11434, ``ggml/include/ggml.h`` (numbers) and ``gguf-py/gguf/constants.py`` (sizes).
GGML_TYPES: Mapping[int, tuple[str, int, int]] = MappingProxyType(
    {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 36),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
        40: ("NVFP4", 64, 36),
        41: ("Q1_0", 128, 18),
        42: ("Q2_0", 64, 18),
    }
)
_GGML_BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {name: (elements, size) for name, elements, size in GGML_TYPES.values()}
)

#: The types of a GGUF value, in the order of their numbers.
GgufType = Literal[
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "UINT32",
    "INT32",
    "FLOAT32",
    "BOOL",
    "STRING",
    "ARRAY",
    "UINT64",
    "INT64",
    "FLOAT64",
]


class Note(Struct, frozen=True, kw_only=True):
    """Something the user should know: a stable ``code`` and one or two sentences."""

    code: str
    message: str


class TensorInfo(Struct, frozen=True, kw_only=True):
    """One tensor of a weight file, from its header. ``file`` is the file that holds it.

    ``dtype`` is the file format's own name; ``shape`` has the slowest dimension first in either format.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        bits = DTYPE_BITS.get(self.dtype)
        if bits is not None:
            return self.elements * bits // 8
        elements, size = _GGML_BLOCKS[self.dtype]
        return self.elements // elements * size


class FileInfo(Struct, frozen=True, kw_only=True):
    """One file of a checkpoint. ``etag`` is the Hub's object id where it is known."""

    path: str
    size_bytes: int
    etag: str | None = None


class Document(Struct, frozen=True, kw_only=True):
    """A JSON file: its text as it stands, and what it says."""

    text: str
    value: dict[str, Any]


class GgufValue(Struct, frozen=True, kw_only=True):
    """The value of one GGUF key. ``length`` counts an array's elements, ``item`` is their type.

    ``value`` is a tuple for an array, and None for one too long to keep (a tokenizer's).
    """

    type: GgufType
    value: Any
    item: GgufType | None = None
    length: int | None = None


class Gguf(Struct, frozen=True, kw_only=True):
    """The header of a GGUF file; of a split one, its first file's.

    ``spans`` says where each key with its value lies in ``file``, ``tensor_spans`` where each tensor's
    data does, ``info_spans`` where each tensor's entry in the header does: first byte, and the byte past
    the last. The entries start at ``infos_start``, the data at ``data_start``. ``factors`` holds the
    numbers of the small tensors that change a rope, by their name; None for one that can't be read as
    numbers.
    """

    file: str
    version: int
    alignment: int
    values: Mapping[str, GgufValue]
    spans: Mapping[str, tuple[int, int]]
    info_spans: Mapping[str, tuple[int, int]]
    tensor_spans: Mapping[str, tuple[int, int]]
    infos_start: int
    data_start: int
    factors: Mapping[str, tuple[float, ...] | None] = {}

    @property
    def architecture(self) -> str | None:
        """What ``general.architecture`` says."""
        value = self.values.get("general.architecture")
        return value.value if value is not None and value.type == "STRING" else None

    @property
    def keys(self) -> dict[str, Any]:
        """Every key's plain value."""
        return {key: entry.value for key, entry in self.values.items()}


class GgufEdits(Struct, frozen=True, kw_only=True):
    """Changes of a GGUF file. Keys that are set stay where they stand, new ones come last; ``removed`` go.

    ``tensors`` are small F32 ones of one dimension, replaced or added last; ``removed_tensors`` go.
    """

    keys: Mapping[str, GgufValue] = {}
    removed: tuple[str, ...] = ()
    tensors: Mapping[str, tuple[float, ...]] = {}
    removed_tensors: tuple[str, ...] = ()


class Contents(Struct, frozen=True, kw_only=True):
    """A checkpoint, read: its files, its JSON documents and the headers of its weights.

    ``name`` is what an output is named after; ``source`` what the user called it; ``revision`` the
    Hub's commit. ``tokenizer_truncation`` is the ``truncation`` of tokenizer.json. ``gguf`` is the header
    of a GGUF checkpoint, which has no documents.
    """

    name: str
    source: str
    revision: str | None = None
    storage: Storage
    files: tuple[FileInfo, ...]
    documents: Mapping[str, Document]
    tensors: tuple[TensorInfo, ...] = ()
    tokenizer_truncation: Mapping[str, Any] | None = None
    notes: tuple[Note, ...] = field(default=())
    gguf: Gguf | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says. Raises :class:`CheckpointError` for a checkpoint without one."""
        if "config.json" not in self.documents:
            raise CheckpointError(
                "this checkpoint has no config.json",
                code="no-config",
                file=self.source,
                found=f"a checkpoint of type {self.storage}",
                hint="a GGUF file keeps its settings in its own keys" if self.gguf is not None else None,
            )
        return self.documents["config.json"].value

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def weight_bytes(self) -> int:
        """The size of the weights alone: of the tensors where headers were read, else of the weight files."""
        if self.tensors:
            return sum(tensor.size_bytes for tensor in self.tensors)
        return sum(f.size_bytes for f in self.files if f.path.endswith((".bin", ".pt", ".pth")))
