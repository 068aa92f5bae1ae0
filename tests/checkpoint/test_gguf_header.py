"""The header of a GGUF file: what a good one gives, and that no broken one is believed."""

from __future__ import annotations

import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxextend.checkpoint import folder_of, read, resolve
from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.checkpoint.gguf_header import KEPT_ELEMENTS, KEPT_TEXT_BYTES, Header, read_floats, read_header
from ctxextend.contents import GGML_TYPES, GgufValue
from ctxextend.errors import CheckpointError, UsageError
from tests.gguf_factory import FORMATS, LLAMA, NUMBERS, encode, info, keys, pair, string, write_model

FILE = "model.gguf"


def parsed(raw: bytes, size_bytes: int | None = None) -> Header:
    size = len(raw) if size_bytes is None else size_bytes
    return read_header(FILE, size, lambda offset, count: raw[offset : offset + count])


def broken(raw: bytes, size_bytes: int | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        parsed(raw, size_bytes)
    error = caught.value
    assert (error.code, error.file) == ("broken-weights", FILE)
    assert error.hint
    assert error.expected
    assert error.found is not None
    assert len(f"{error.expected}{error.found}") < 300
    return error


def good(alignment: int = 32) -> bytes:
    """Two tensors: 2 x 32 numbers of F32, and 3 rows of 32 of Q8_0 (a block of 34 bytes each)."""
    pairs = [pair("general.architecture", "llama"), pair("llama.context_length", 1024)]
    if alignment != 32:
        pairs.append(pair("general.alignment", alignment))
    infos = [info("a", "F32", (32, 2), 0), info("b", "Q8_0", (32, 3), 256)]
    return encode(pairs, infos, bytes(256 + 102), alignment=alignment)


EVERY_TYPE: dict[str, Any] = {
    "t.u8": GgufValue(type="UINT8", value=255),
    "t.i8": GgufValue(type="INT8", value=-128),
    "t.u16": GgufValue(type="UINT16", value=65535),
    "t.i16": GgufValue(type="INT16", value=-32768),
    "t.u32": GgufValue(type="UINT32", value=2**32 - 1),
    "t.i32": GgufValue(type="INT32", value=-(2**31)),
    "t.f32": GgufValue(type="FLOAT32", value=0.5),
    "t.bool": GgufValue(type="BOOL", value=True),
    "t.string": GgufValue(type="STRING", value="naïve ✓"),
    "t.u64": GgufValue(type="UINT64", value=2**64 - 1),
    "t.i64": GgufValue(type="INT64", value=-(2**63)),
    "t.f64": GgufValue(type="FLOAT64", value=0.1),
    "t.array": GgufValue(type="ARRAY", item="INT32", length=3, value=(1, -2, 3)),
    "t.strings": GgufValue(type="ARRAY", item="STRING", length=2, value=("a", "")),
}


def test_every_type_of_value_is_read() -> None:
    header = parsed(encode([pair(key, content) for key, content in EVERY_TYPE.items()]))
    assert header.gguf.values == EVERY_TYPE
    assert header.gguf.keys["t.strings"] == ("a", "")
    assert header.tensors == ()


@pytest.mark.parametrize("version", [2, 3])
def test_positions_are_those_of_the_bytes(version: int) -> None:
    pairs = [pair("general.architecture", "llama"), pair("llama.rope.freq_base", 1e4)]
    infos = [info("a", "F32", (3,), 0), info("b", "F16", (2, 5), 32)]
    raw = encode(pairs, infos, bytes(64), version=version)
    gguf = parsed(raw).gguf
    assert (gguf.version, gguf.architecture, gguf.alignment) == (version, "llama", 32)
    assert [raw[start:end] for start, end in gguf.spans.values()] == pairs
    assert [raw[start:end] for start, end in gguf.info_spans.values()] == infos
    assert raw[gguf.infos_start :].startswith(infos[0])
    assert gguf.data_start == len(raw) - 64
    assert gguf.data_start % 32 == 0
    sizes = {name: (start - gguf.data_start, end - start) for name, (start, end) in gguf.tensor_spans.items()}
    assert sizes == {"a": (0, 12), "b": (32, 20)}


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_the_alignment_of_the_file_counts(alignment: int) -> None:
    header = parsed(good(alignment))
    assert header.gguf.alignment == alignment
    assert header.gguf.data_start == len(good(alignment)) - 358


def test_sizes_are_those_of_ggml_blocks() -> None:
    """Bytes of a block by the package's own table, but for two: Q8_1's is wrong in it, Q2_0 came later."""
    from gguf.constants import GGML_QUANT_SIZES

    ours = {name: (elements, size) for name, elements, size in GGML_TYPES.values()}
    theirs = {kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {name: sizes for name, sizes in ours.items() if name not in ("Q8_1", "Q2_0")} == {
        name: sizes for name, sizes in theirs.items() if name != "Q8_1"
    }
    header = parsed(good())
    assert [(t.name, t.dtype, t.shape, t.size_bytes) for t in header.tensors] == [
        ("a", "F32", (2, 32), 256),
        ("b", "Q8_0", (3, 32), 102),
    ]


def test_what_the_package_writes_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

    path = tmp_path / FILE
    writer = GGUFWriter(str(path), "llama")
    writer.add_uint32("llama.context_length", 4096)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    writer.add_bool("llama.rope.scaling.finetuned", val=True)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(9000)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 9000)
    writer.add_array("llama.attention.head_count", [4, 4, 2])
    writer.add_string("general.name", "naïve")
    writer.add_tensor("token_embd.weight", np.zeros((6, 64), np.float16))
    writer.add_tensor("rope_freqs.weight", np.arange(1, 17, dtype=np.float32))
    writer.add_tensor("q", np.zeros((4, 34), np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    contents = read_gguf(path)
    gguf = contents.gguf
    assert gguf is not None
    reader = GGUFReader(str(path))
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert set(gguf.values) == set(fields)
    for name, field in fields.items():
        entry = gguf.values[name]
        assert NUMBERS[entry.type] == field.types[0]
        if entry.value is None:
            assert entry.length == len(field.contents()) > KEPT_ELEMENTS
        else:
            found = list(entry.value) if entry.type == "ARRAY" else entry.value
            assert found == field.contents()
    assert {tensor.name for tensor in contents.tensors} == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        mine = next(t for t in contents.tensors if t.name == tensor.name)
        assert mine.dtype == tensor.tensor_type.name
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert mine.size_bytes == tensor.n_bytes
        assert gguf.tensor_spans[tensor.name] == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
    assert gguf.factors == {"rope_freqs.weight": tuple(float(i) for i in range(1, 17))}
    assert (contents.name, contents.storage, contents.documents) == ("model", "gguf", {})


def test_only_the_header_is_read_in_pieces() -> None:
    tokens = struct.pack("<IIQ", NUMBERS["ARRAY"], NUMBERS["STRING"], 100_000) + string("x" * 20) * 100_000
    raw = encode([string("tokens") + tokens], [info("a", "F32", (1 << 20,), 0)], bytes(4 << 20))
    asked: list[tuple[int, int]] = []

    def read_range(offset: int, count: int) -> bytes:
        asked.append((offset, count))
        return raw[offset : offset + count]

    header = read_header(FILE, len(raw), read_range)
    assert header.gguf.values["tokens"].value is None
    assert max(count for _offset, count in asked) <= 1 << 18
    # A last piece may reach into the data, by less than its own length.
    assert max(offset + count for offset, count in asked) < header.gguf.data_start + (1 << 18)


def test_text_past_a_limit_is_not_kept() -> None:
    long = GgufValue(type="STRING", value="x" * (KEPT_TEXT_BYTES // 2 + 1))
    values = parsed(encode([pair("one", long), pair("two", long), pair("three", 3)])).gguf.values
    assert (values["one"].value, values["two"].value, values["three"].value) == (long.value, None, 3)


def test_floats_of_a_small_tensor() -> None:
    raw = encode(
        [], [info("f", "F32", (3,), 0), info("h", "F16", (3,), 32)], struct.pack("<3f", 1.0, 2.5, 1e30) + bytes(60)
    )
    header = parsed(raw)

    def read_range(offset: int, count: int) -> bytes:
        return raw[offset : offset + count]

    assert read_floats(header, "f", read_range) == struct.unpack("<3f", struct.pack("<3f", 1.0, 2.5, 1e30))
    assert read_floats(header, "h", read_range) is None
    assert read_floats(header, "none", read_range) is None
    with pytest.raises(CheckpointError, match="ends inside a tensor"):
        read_floats(header, "f", lambda offset, count: b"")


def test_a_file_that_ends_anywhere() -> None:
    raw = good()
    for length in range(len(raw)):
        broken(raw[:length])


@pytest.mark.parametrize("length", [0, 3, 4, 8, 16, 23, 40, 100])
def test_a_reading_that_ends_before_the_file_should(length: int) -> None:
    assert "ends inside" in broken(good()[:length], size_bytes=len(good())).message


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"ggml" + good()[4:], "no GGUF file"),
        (encode(version=1), "version"),
        (encode(version=4), "version"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (encode(counts=(1 << 63, 0)), "more tensors"),
        (encode(counts=(0, 1 << 63)), "more keys"),
        (encode(counts=(0, 3)), "more keys"),
        (encode([pair("a", 1), pair("a", 1)]), "twice"),
        (encode([pair("", 1)]), "empty"),
        (encode([struct.pack("<Q", 1 << 62) + bytes(64)]), "longer than can be"),
        (encode([struct.pack("<Q", 70_000) + bytes(80_000)]), "longer than can be"),
        (encode([string(b"\xff\xfe") + struct.pack("<II", 4, 1)]), "UTF-8"),
        (encode([string("a") + struct.pack("<I", 13) + bytes(64)]), "type isn't known"),
        (encode([string("a") + struct.pack("<IIQ", 9, 13, 0) + bytes(64)]), "type isn't known"),
        (encode([string("a") + struct.pack("<IIQ", 9, 9, 0) + bytes(64)]), "holds arrays"),
        (encode([string("a") + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(64)]), "longer than the file"),
        (encode([string("a") + struct.pack("<IIQ", 9, 8, 5000) + bytes(8 * 2499)]), "longer than the file"),
        (encode([string("a") + struct.pack("<IIQ", 9, 8, 5000) + bytes(8 * 4999) + b"\xff" * 8]), "ends inside"),
        (encode([string("a") + struct.pack("<IQ", 8, 1 << 40) + bytes(64)]), "longer than can be"),
        (encode([pair("general.alignment", 0)]), "alignment"),
        (encode([pair("general.alignment", 48)]), "alignment"),
        (encode([pair("general.alignment", 1 << 30)]), "alignment"),
        (encode([pair("general.alignment", GgufValue(type="UINT64", value=32))]), "alignment"),
        (encode([pair("general.alignment", "32")]), "alignment"),
        (encode([], [info("t", "F32", (1,), 0), info("t", "F32", (1,), 32)], bytes(64)), "twice"),
        (encode([], [info("x" * 64, "F32", (1,), 0)], bytes(64)), "longer than can be"),
        (encode([], [info("t", "F32", (1, 1, 1, 1, 1), 0)], bytes(64)), "too many dimensions"),
        (encode([], [info("t", "F32", (1,), 0)[:-12] + struct.pack("<IQ", 99, 0)], bytes(64)), "type isn't known"),
        (encode([], [info("t", "F32", (1,), 0)[:-12] + struct.pack("<IQ", 4, 0)], bytes(64)), "type isn't known"),
        (encode([], [info("t", "F32", (1 << 40, 1 << 40), 0)], bytes(64)), "larger than any"),
        (encode([], [info("t", "F32", (1 << 63, 0), 0)], bytes(64)), "larger than any"),
        (encode([], [info("t", "Q8_0", (33,), 0)], bytes(64)), "whole number of blocks"),
        (encode([], [info("t", "F32", (1,), 4)], bytes(64)), "aligned"),
        (encode([], [info("t", "F32", (1,), 32)], bytes(64)), "overlap or leave a hole"),
        (encode([], [info("t", "F32", (9,), 0), info("u", "F32", (9,), 32)], bytes(128)), "overlap or leave a hole"),
        (encode([], [info("t", "F32", (1,), 0), info("u", "F32", (1,), 0)], bytes(128)), "overlap or leave a hole"),
        (encode([], [info("t", "F32", (17,), 0)], bytes(64)), "truncated"),
        (encode([], [info("t", "F32", (1 << 60,), 0)], bytes(64)), "truncated"),
    ],
)
def test_what_is_broken_is_named(raw: bytes, said: str) -> None:
    assert said in broken(raw).message


def test_a_lie_allocates_nothing() -> None:
    """A header that claims gigabytes, in a file that is said to have them, costs a chunk."""
    claims = [
        encode([string("a") + struct.pack("<IQ", 8, 1 << 27)], counts=(1, 1)),
        encode([string("a") + struct.pack("<IIQ", 9, 4, 1 << 25)], counts=(1, 1)),
        encode([string("a") + struct.pack("<IIQ", 9, 8, 1 << 27)], counts=(1, 1)),
        encode(counts=(1 << 20, 1 << 16)),
    ]
    tracemalloc.start()
    for raw in claims:
        broken(raw, size_bytes=1 << 40)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_header_longer_than_any() -> None:
    """A string that a file of a terabyte could hold, and no header does."""
    raw = encode([string("a") + struct.pack("<IQ", 8, (1 << 28) - 40) + bytes(600)], counts=(0, 2))
    assert "longer than" in broken(raw, size_bytes=1 << 40).message


@given(st.binary(max_size=400))
def test_any_bytes_are_answered(raw: bytes) -> None:
    with suppress(CheckpointError):
        parsed(b"GGUF" + raw)


@given(st.data())
def test_a_file_with_changed_bytes_is_answered(data: st.DataObject) -> None:
    raw = bytearray(
        encode([pair(key, content) for key, content in EVERY_TYPE.items()], [info("a", "F32", (2,), 0)], bytes(8))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CheckpointError):
        header = parsed(bytes(raw))
        assert all(0 <= start <= end <= len(raw) for start, end in header.gguf.tensor_spans.values())


NUMBER_TYPES = [kind for kind in FORMATS if kind not in ("BOOL", "FLOAT32", "FLOAT64")]


def numbers(kind: str) -> st.SearchStrategy[int]:
    bits = 8 * struct.calcsize(FORMATS[kind])
    return (
        st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if kind.startswith("I") else st.integers(0, (1 << bits) - 1)
    )


VALUES = st.one_of(
    *(st.builds(lambda value, kind=kind: GgufValue(type=kind, value=value), numbers(kind)) for kind in NUMBER_TYPES),
    st.builds(lambda value: GgufValue(type="FLOAT32", value=value), st.floats(width=32, allow_nan=False)),
    st.builds(lambda value: GgufValue(type="STRING", value=value), st.text()),
    st.builds(
        lambda value: GgufValue(type="ARRAY", item="STRING", length=len(value), value=tuple(value)), st.lists(st.text())
    ),
)


@given(st.dictionaries(st.text(min_size=1).filter(lambda key: key != "general.alignment"), VALUES, max_size=8))
def test_what_is_written_is_read_back(values: dict[str, GgufValue]) -> None:
    raw = encode([pair(key, content) for key, content in values.items()])
    gguf = parsed(raw).gguf
    assert gguf.values == values
    assert b"".join(raw[start:end] for start, end in gguf.spans.values()) == raw[24 : gguf.infos_start]


def tiny(path: Path, **tensors: Any) -> Path:
    weights = {name.replace("__", "."): np.asarray(array, np.float32) for name, array in tensors.items()}
    return write_model(path, keys(), weights or {"token_embd.weight": np.zeros((4, 64), np.float32)})


def test_a_file_is_a_checkpoint(tmp_path: Path) -> None:
    path = tiny(tmp_path / "Tiny-F32.gguf")
    source = resolve(str(path))
    assert (source.file, source.folder, source.repo_id) == (path, None, None)
    contents = read(source)
    assert folder_of(source, contents) == tmp_path
    assert (contents.name, contents.storage) == ("Tiny-F32", "gguf")
    assert contents.weight_bytes == 4 * 64 * 4
    assert contents.size_bytes == path.stat().st_size
    assert contents.gguf is not None
    assert contents.gguf.keys["llama.context_length"] == LLAMA["context_length"]
    with pytest.raises(CheckpointError) as caught:
        _ = contents.config
    assert caught.value.code == "no-config"


@pytest.mark.parametrize(
    ("given", "repository", "named"),
    [
        ("org/name/file.gguf", "org/name", "file.gguf"),
        ("hf://org/name/sub/file.gguf@main", "org/name", "sub/file.gguf"),
        ("org/name:Q4_K_M", "org/name", "Q4_K_M"),
        ("org/name@v1", "org/name", None),
    ],
)
def test_a_file_of_the_hub_is_named(given: str, repository: str, named: str | None) -> None:
    source = resolve(given)
    assert (source.repo_id, source.gguf) == (repository, named)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    """Opening one would wait for a writer."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError) as caught:
        resolve(str(pipe))
    assert caught.value.code == "no-source"


def test_a_file_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        resolve(str(tiny(tmp_path / "tiny.gguf")), revision="main")


def test_a_split_file_is_read_whole(tmp_path: Path) -> None:
    tiny(tmp_path / "big-00001-of-00002.gguf", token_embd__weight=[[1.0]])
    tiny(tmp_path / "big-00002-of-00002.gguf", rope_freqs__weight=[1.0, 2.0])
    for number in (1, 2):
        contents = read_gguf(tmp_path / f"big-0000{number}-of-00002.gguf")
        assert contents.name == "big"
        assert [tensor.file for tensor in contents.tensors] == ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]
        assert len(contents.files) == 2
        assert contents.notes == ()
        assert contents.gguf is not None
        assert contents.gguf.file == "big-00001-of-00002.gguf"
        assert contents.gguf.factors == {"rope_freqs.weight": (1.0, 2.0)}


def test_a_split_file_with_parts_missing(tmp_path: Path) -> None:
    first = tiny(tmp_path / "big-00001-of-00003.gguf")
    contents = read_gguf(first)
    assert [note.code for note in contents.notes] == ["missing-shards"]
    first.rename(tmp_path / "big-00002-of-00003.gguf")
    with pytest.raises(CheckpointError) as caught:
        read_gguf(tmp_path / "big-00002-of-00003.gguf")
    assert (caught.value.code, caught.value.file) == ("missing-shard", "big-00001-of-00003.gguf")
    with pytest.raises(CheckpointError) as caught:
        read_gguf(tmp_path / "big-00004-of-00003.gguf")
    assert caught.value.code == "missing-shard"


def test_a_split_file_that_holds_a_tensor_twice(tmp_path: Path) -> None:
    tiny(tmp_path / "big-00001-of-00002.gguf", a=[1.0])
    tiny(tmp_path / "big-00002-of-00002.gguf", a=[1.0])
    with pytest.raises(CheckpointError) as caught:
        read_gguf(tmp_path / "big-00001-of-00002.gguf")
    assert (caught.value.key, caught.value.file) == ("a", "big-00002-of-00002.gguf")


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_gguf(tmp_path / "none.gguf")
    assert caught.value.code == "missing-file"
