"""Fuzzing of the reader of GGUF headers with atheris: anything but a CheckpointError is a finding.

atheris is no dependency. In an environment of its own, which needs nothing else but msgspec:

    pip install atheris msgspec
    PYTHONPATH=. python fuzz/gguf_header.py -max_total_time=60 -max_len=4096 -rss_limit_mb=512 CORPUS

CORPUS is a folder (made if it is missing) that good files are put into first, and to which libFuzzer adds what it
finds. A crash is written to the working directory; the same command with its name runs it again.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from ctxextend.checkpoint.gguf_header import KEPT_TEXT_BYTES, read_floats, read_header
    from ctxextend.contents import GgufValue
    from ctxextend.errors import CheckpointError
    from ctxextend.formats.gguf_bytes import Entry, encode_header, encode_key


def read(raw: bytes) -> None:
    """Read a header from these bytes, of a file that is as long as they are or, by their last bit, says more."""
    size = 1 << 50 if raw and raw[-1] & 1 else len(raw)

    def part(offset: int, count: int) -> bytes:
        assert 0 <= offset < size
        assert count <= KEPT_TEXT_BYTES
        return raw[offset : offset + count]

    try:
        header = read_header("fuzzed.gguf", size, part)
        for tensor in header.tensors:
            read_floats(header, tensor.name, part)
    except CheckpointError:
        return
    assert all(start <= end <= size for start, end in header.gguf.tensor_spans.values())


def seed(corpus: Path) -> None:
    """Good files to start from: every kind of value, several kinds of tensors, both versions."""
    corpus.mkdir(parents=True, exist_ok=True)
    values = [
        GgufValue(type="STRING", value="llama"),
        GgufValue(type="UINT32", value=1024),
        GgufValue(type="INT8", value=-1),
        GgufValue(type="BOOL", value=True),
        GgufValue(type="UINT64", value=1 << 40),
        GgufValue(type="FLOAT64", value=0.1),
        GgufValue(type="ARRAY", item="FLOAT32", length=2, value=(1.0, 2.0)),
        GgufValue(type="ARRAY", item="STRING", length=3, value=("one", "", "naïve")),
        GgufValue(type="ARRAY", item="STRING", length=5000, value=("",) * 5000),
    ]
    keys = [encode_key(f"key.{number}", value) for number, value in enumerate(values)]
    entries = [
        Entry(name="rope_freqs.weight", dtype="F32", shape=(4,)),
        Entry(name="quantised", dtype="Q8_0", shape=(3, 64)),
        Entry(name="scalar", dtype="F16", shape=()),
    ]
    wide = encode_key("general.alignment", GgufValue(type="UINT32", value=64))
    data = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0) + bytes(600)
    files = {
        "empty": encode_header([], []),
        "short": encode_header(keys[:-1], entries) + data,
        "long": encode_header(keys, entries) + data,
        "aligned": encode_header([wide, *keys[:3]], entries, alignment=64, version=2) + data,
    }
    for name, raw in files.items():
        (corpus / name).write_bytes(raw)


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-") and not Path(argument).is_file()]
    for folder in folders[:1]:
        seed(Path(folder))
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
