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

#: What holds the weights.
Storage = Literal["safetensors", "pytorch", "none"]

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


class Note(Struct, frozen=True, kw_only=True):
    """Something the user should know: a stable ``code`` and one or two sentences."""

    code: str
    message: str


class TensorInfo(Struct, frozen=True, kw_only=True):
    """One tensor of a weight file, from its header. ``file`` is the file that holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * DTYPE_BITS[self.dtype] // 8


class FileInfo(Struct, frozen=True, kw_only=True):
    """One file of a checkpoint. ``etag`` is the Hub's object id where it is known."""

    path: str
    size_bytes: int
    etag: str | None = None


class Document(Struct, frozen=True, kw_only=True):
    """A JSON file: its text as it stands, and what it says."""

    text: str
    value: dict[str, Any]


class Contents(Struct, frozen=True, kw_only=True):
    """A checkpoint, read: its files, its JSON documents and the headers of its weights.

    ``name`` is what an output is named after; ``source`` what the user called it; ``revision`` the
    Hub's commit. ``tokenizer_truncation`` is the ``truncation`` of tokenizer.json.
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

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says."""
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
