"""The checksums by which a manifest knows a file: of all of it, or of what stands in front of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from ctxextend.checkpoint.gguf_file import read_part

#: How much is hashed at a time.
_HASH_BYTES: Final = 8 << 20


def sha256_of(path: Path) -> str:
    """The checksum of a whole file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def header_sha256(path: Path, header_bytes: int | None = None) -> str:
    """The checksum of the header of a file of weights: all in front of the data.

    ``header_bytes`` is its size where that is known. Raises :class:`CheckpointError` for a GGUF file whose header
    can't be read.
    """
    if header_bytes is None and path.suffix == ".gguf":
        header_bytes = read_part(path).data_start
    with path.open("rb") as handle:
        if header_bytes is not None:
            return hashlib.sha256(handle.read(header_bytes)).hexdigest()
        prefix = handle.read(8)
        return hashlib.sha256(prefix + handle.read(int.from_bytes(prefix, "little"))).hexdigest()
