"""GGUF files for tests: headers as values, bytes of whole files by hand, and tiny models that llama.cpp loads."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ctxextend.contents import GGML_TYPES, Gguf, GgufType, GgufValue

NUMBERS = {kind: number for number, kind in enumerate(get_args(GgufType))}
FORMATS = {
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "FLOAT32": "f",
    "BOOL": "?",
    "UINT64": "Q",
    "INT64": "q",
    "FLOAT64": "d",
}
GGML_NUMBERS = {name: number for number, (name, _elements, _size) in GGML_TYPES.items()}

#: A tiny Llama: two layers, two heads of 32.
LLAMA: Mapping[str, Any] = {
    "block_count": 2,
    "context_length": 1024,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
}


def value(content: Any, kind: str | None = None) -> GgufValue:
    """A value with the type that llama.cpp expects: UINT32, FLOAT32 (rounded to it), BOOL or STRING."""
    if isinstance(content, GgufValue):
        return content
    if isinstance(content, list | tuple):
        first = value(content[0])
        return GgufValue(type="ARRAY", item=first.type, length=len(content), value=tuple(content))
    own = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}[type(content)] if kind is None else kind
    if own == "FLOAT32":
        content = struct.unpack("<f", struct.pack("<f", content))[0]
    return GgufValue(type=own, value=content)  # type: ignore[arg-type]


def keys(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """The keys of a tiny model; a double underscore stands for a dot, and None takes a key away."""
    said = {**LLAMA, **{key.replace("__", "."): content for key, content in changes.items()}}
    named = {f"{architecture}.{key}": content for key, content in said.items() if content is not None}
    return {"general.architecture": architecture, **named}


def gguf(
    architecture: str = "llama",
    *,
    factors: Mapping[str, Sequence[float] | None] | None = None,
    tensors: Sequence[str] = (),
    **changes: Any,
) -> Gguf:
    """A header as a value."""
    return Gguf(
        file="tiny.gguf",
        version=3,
        alignment=32,
        values={key: value(content) for key, content in keys(architecture, **changes).items()},
        spans={},
        info_spans=dict.fromkeys(tensors, (0, 0)),
        tensor_spans={},
        infos_start=0,
        data_start=0,
        factors={
            name: None if numbers is None else tuple(value(float(n)).value for n in numbers)
            for name, numbers in (factors or {}).items()
        },
    )


def string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: str, content: Any) -> bytes:
    return string(content) if kind == "STRING" else struct.pack(f"<{FORMATS[kind]}", content)


def pair(key: str, content: Any) -> bytes:
    """A key with its value."""
    entry = value(content)
    raw = string(key) + struct.pack("<I", NUMBERS[entry.type])
    if entry.type == "ARRAY":
        assert entry.item is not None
        raw += struct.pack("<IQ", NUMBERS[entry.item], len(entry.value))
        return raw + b"".join(scalar(entry.item, item) for item in entry.value)
    return raw + scalar(entry.type, entry.value)


def info(name: str, dtype: str, dimensions: Sequence[int], offset: int) -> bytes:
    """A tensor's entry, with the fastest dimension first, as the file has them."""
    numbers = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return string(name) + numbers + struct.pack("<IQ", GGML_NUMBERS[dtype], offset)


def encode(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file. ``counts``: what it states, of tensors and of keys."""
    stated = counts if counts is not None else (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *stated) + b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def write_model(
    path: Path,
    settings: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> Path:
    """A model with the ``gguf`` package: ``settings`` are whole keys, ``weights`` arrays."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), value(settings["general.architecture"]).value)
    add: dict[str, Any] = {
        "UINT32": writer.add_uint32,
        "INT32": writer.add_int32,
        "FLOAT32": writer.add_float32,
        "FLOAT64": writer.add_float64,
        "BOOL": writer.add_bool,
        "STRING": writer.add_string,
        "ARRAY": writer.add_array,
    }
    for key, content in settings.items():
        if key != "general.architecture":
            entry = value(content)
            add[entry.type](key, list(entry.value) if entry.type == "ARRAY" else entry.value)
    for name, array in weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
