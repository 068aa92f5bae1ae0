"""The bytes of a GGUF header: those that the gguf package writes, and nothing that llama.cpp refuses."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxextend.contents import GGML_TYPES, GgufValue
from ctxextend.errors import OutputError
from ctxextend.formats.gguf_bytes import Entry, data_bytes, encode_header, encode_key, offsets
from tests.gguf_factory import pair

UNSIGNED = {"UINT8": 8, "UINT16": 16, "UINT32": 32, "UINT64": 64}
SIGNED = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(0, (1 << bits) - 1) for kind, bits in UNSIGNED.items()},
    **{kind: st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) for kind, bits in SIGNED.items()},
    "FLOAT32": st.floats(width=32),
    "FLOAT64": st.floats(),
    "BOOL": st.booleans(),
    "STRING": st.text(),
}


@st.composite
def values(draw: st.DrawFn) -> GgufValue:
    kind: Any = draw(st.sampled_from([*SCALARS, "ARRAY"]))
    if kind != "ARRAY":
        return GgufValue(type=kind, value=draw(SCALARS[kind]))
    item: Any = draw(st.sampled_from(list(SCALARS)))
    items = tuple(draw(st.lists(SCALARS[item], max_size=5)))
    return GgufValue(type="ARRAY", item=item, length=len(items), value=items)


@given(st.text(min_size=1), values())
def test_a_key_is_what_the_format_says(key: str, value: GgufValue) -> None:
    """Against the tests' own writer, which knows the format from its description."""
    assert encode_key(key, value) == pair(key, value)


def test_a_header_is_the_one_that_the_package_writes(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.add_uint32("llama.context_length", 4096)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    writer.add_bool("llama.rope.scaling.finetuned", val=True)
    writer.add_uint64("u", 1 << 40)
    writer.add_array("tokens", ["naïve", "", "✓"])
    writer.add_array("head_counts", [4, 4, 2])
    writer.add_string("general.name", "naïve")
    writer.add_tensor("a", np.zeros((6, 5), np.float16))
    writer.add_tensor("b", np.arange(1, 8, dtype=np.float32))
    writer.add_tensor("c", np.zeros((3, 2, 68), np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    entries = [
        Entry(name="a", dtype="F16", shape=(6, 5)),
        Entry(name="b", dtype="F32", shape=(7,)),
        Entry(name="c", dtype="Q8_0", shape=(3, 2, 64)),
    ]
    header = encode_header(
        [
            encode_key("general.architecture", GgufValue(type="STRING", value="llama")),
            encode_key("llama.context_length", GgufValue(type="UINT32", value=4096)),
            encode_key("llama.rope.freq_base", GgufValue(type="FLOAT32", value=500000.0)),
            encode_key("llama.rope.scaling.finetuned", GgufValue(type="BOOL", value=True)),
            encode_key("u", GgufValue(type="UINT64", value=1 << 40)),
            encode_key("tokens", GgufValue(type="ARRAY", item="STRING", length=3, value=("naïve", b"", "✓"))),
            encode_key("head_counts", GgufValue(type="ARRAY", item="INT32", length=3, value=(4, 4, 2))),
            encode_key("general.name", GgufValue(type="STRING", value="naïve")),
        ],
        entries,
    )
    written = path.read_bytes()
    assert written.startswith(header)
    # 60 bytes of F16, 28 of F32, and 12 blocks of 34 bytes.
    assert [entry.size_bytes for entry in entries] == [60, 28, 408]
    assert offsets(entries, 32) == (0, 64, 96)
    assert data_bytes(entries, 32) == 512 == len(written) - len(header)


def test_sizes_are_those_of_the_package() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    theirs = {kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    for name, block, _size in GGML_TYPES.values():
        # Its entry for Q8_1 is wrong, and Q2_0 came later.
        if name not in ("Q8_1", "Q2_0"):
            elements, size = theirs[name]
            assert Entry(name="t", dtype=name, shape=(2, 3 * block)).size_bytes == 6 * block // elements * size


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_the_data_start_behind_it(alignment: int, version: int) -> None:
    key = encode_key("general.alignment", GgufValue(type="UINT32", value=alignment))
    header = encode_header([key], [Entry(name="t", dtype="F32", shape=())], alignment=alignment, version=version)
    assert header[:24] == b"GGUF" + struct.pack("<IQQ", version, 1, 1)
    assert len(header) % alignment == 0
    assert len(header.rstrip(b"\0")) + alignment > len(header) - 24
    assert offsets([Entry(name=n, dtype="F32", shape=(3,)) for n in "ab"], alignment) == (0, max(alignment, 16))


def test_an_alignment_is_said() -> None:
    with pytest.raises(ValueError, match="needs its key"):
        encode_header([], [], alignment=64)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", GgufValue(type="UINT32", value=1)),
        ("x" * 65536, GgufValue(type="UINT32", value=1)),
        ("\ud800", GgufValue(type="UINT32", value=1)),
        ("k", GgufValue(type="UINT32", value=1 << 32)),
        ("k", GgufValue(type="UINT32", value=-1)),
        ("k", GgufValue(type="UINT8", value=256)),
        ("k", GgufValue(type="INT64", value=1 << 63)),
        ("k", GgufValue(type="UINT32", value=1.5)),
        ("k", GgufValue(type="FLOAT32", value=1e39)),
        ("k", GgufValue(type="FLOAT32", value="1")),
        ("k", GgufValue(type="STRING", value="\ud800")),
        ("k", GgufValue(type="ARRAY", item="ARRAY", length=0, value=())),
        ("k", GgufValue(type="ARRAY", item="UINT32", length=9000, value=None)),
        ("k", GgufValue(type="ARRAY", item="UINT8", length=1, value=(256,))),
    ],
)
def test_a_value_that_no_file_holds(key: str, value: GgufValue) -> None:
    with pytest.raises(OutputError) as caught:
        encode_key(key, value)
    assert caught.value.code == "gguf-limits"
    assert caught.value.expected
    assert len(caught.value.key or "") <= 120


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (Entry(name="x" * 64, dtype="F32", shape=(1,)), "too long"),
        (Entry(name="é" * 32, dtype="F32", shape=(1,)), "too long"),
        (Entry(name="t", dtype="Q4_9", shape=(1,)), "type"),
        (Entry(name="t", dtype="F32", shape=(1, 1, 1, 1, 1)), "dimensions"),
        (Entry(name="t", dtype="F32", shape=(1 << 40, 1 << 40)), "shape"),
        (Entry(name="t", dtype="F32", shape=(0, 1 << 63)), "shape"),
        (Entry(name="t", dtype="F32", shape=(-1,)), "shape"),
        (Entry(name="t", dtype="Q8_0", shape=(32, 33)), "whole number of blocks"),
        (Entry(name="t", dtype="Q4_K", shape=(256, 128)), "whole number of blocks"),
        (Entry(name="twice", dtype="F32", shape=(1,)), "twice"),
    ],
)
def test_a_tensor_that_llama_cpp_does_not_load(entry: Entry, said: str) -> None:
    with pytest.raises(OutputError, match=said) as caught:
        encode_header([], [Entry(name="twice", dtype="F32", shape=(1,)), entry])
    assert caught.value.code == "gguf-limits"


def test_the_longest_name_is_taken() -> None:
    assert b"x" * 63 in encode_header([], [Entry(name="x" * 63, dtype="F32", shape=(1,))])
