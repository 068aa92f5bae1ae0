"""A GGUF file with other keys: what was edited is there, and all else is the same bytes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.checkpoint.gguf_header import read_header
from ctxextend.contents import Gguf, GgufEdits, GgufValue
from ctxextend.errors import OutputError
from ctxextend.gguf_record import PADDING
from ctxextend.tensors import copying
from ctxextend.tensors.gguf_edit import edits_by_file, write_edited
from tests.formats.test_gguf_bytes import values
from tests.gguf_factory import encode, info, keys, pair, value, write_model
from tests.reference.libllama import LoadError, logits, settings_of, weights_of

NAME, FREQS = "general.name", "rope_freqs.weight"
NAMED = GgufEdits(keys={NAME: GgufValue(type="STRING", value="another")})
TOKENS = np.arange(40)


def header_of(path: Path) -> Gguf:
    """The header of this very file, where it is one of a split."""
    raw = path.read_bytes()
    return read_header(path.name, len(raw), lambda offset, count: raw[offset : offset + count]).gguf


def edited(source: Path, edits: GgufEdits, target: Path | None = None) -> Path:
    """The edited copy. What progress was told is its size."""
    out = target or source.with_name(f"edited-{source.name}")
    done: list[int] = []
    write_edited(source, out, header_of(source), edits, progress=done.append)
    padding = out.stat().st_size - sum(done)
    assert 0 <= padding < header_of(out).alignment * (len(header_of(out).tensor_spans) + 1)
    return out


def data_of(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor, by the package's reader."""
    from gguf import GGUFReader

    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(str(path)).tensors}


def keys_of(path: Path) -> dict[str, Any]:
    """All keys but the padding, by the package's reader."""
    from gguf import GGUFReader

    fields = GGUFReader(str(path)).fields.items()
    return {name: field.contents() for name, field in fields if not name.startswith("GGUF.") and name != PADDING}


def small(path: Path, **changes: Any) -> Path:
    """A file with a long array between its keys, and three tensors."""
    rng = np.random.default_rng(0)
    return write_model(
        path,
        {
            **keys(**changes),
            NAME: "tiny",
            "tokenizer.ggml.tokens": [f"token {i}" for i in range(6000)],
            "tokenizer.ggml.model": "none",
        },
        {
            FREQS: np.arange(1, 17, dtype=np.float32),
            "token_embd.weight": rng.standard_normal((3, 64)).astype(np.float32),
            "output_norm.weight": rng.standard_normal(5).astype(np.float32),
        },
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small(tmp_path / "model.gguf")


def test_unchanged_keys_keep_their_bytes_and_place(source: Path) -> None:
    changed = GgufEdits(
        keys={
            "new": GgufValue(type="BOOL", value=True),
            "llama.context_length": GgufValue(type="UINT32", value=4096),
            NAME: GgufValue(type="STRING", value="a longer name"),
        },
        removed=("llama.block_count", "not.there"),
    )
    out = edited(source, changed)
    before, after = header_of(source), header_of(out)
    expected = [key for key in before.spans if key != "llama.block_count"]
    assert [key for key in after.spans if key != PADDING] == [*expected, "new"]
    old, new = source.read_bytes(), out.read_bytes()
    for key in expected:
        same = old[slice(*before.spans[key])] == new[slice(*after.spans[key])]
        assert same == (key not in changed.keys)
    assert keys_of(out) == {
        **{key: content for key, content in keys_of(source).items() if key != "llama.block_count"},
        "llama.context_length": 4096,
        NAME: "a longer name",
        "new": True,
    }
    assert data_of(out) == data_of(source)


def test_the_source_is_not_touched(source: Path, tmp_path: Path) -> None:
    raw = source.read_bytes()
    edited(source, NAMED)
    assert source.read_bytes() == raw
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(FileExistsError):
        write_edited(source, taken, header_of(source), NAMED, progress=lambda _count: None)
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("version", [2, 3])
def test_nothing_edited_gives_the_same_header(tmp_path: Path, version: int) -> None:
    source = tmp_path / "model.gguf"
    infos = [info("a", "F32", (3,), 0), info("b", "Q8_0", (32, 2), 32)]
    data = os.urandom(32) + os.urandom(68)
    source.write_bytes(encode([pair(NAME, "x")], infos, data, version=version))
    # The last tensor is padded, as the format wants it.
    assert edited(source, GgufEdits()).read_bytes() == source.read_bytes() + bytes(28)


def test_data_keep_their_distance_from_blocks(source: Path) -> None:
    """Only then a file system can share them."""
    before = header_of(source)
    for name in ("x", "x" * 3000, "x" * 9000):
        edits = GgufEdits(keys={NAME: GgufValue(type="STRING", value=name)})
        out = edited(source, edits, source.with_name(f"{len(name)}.gguf"))
        after = header_of(out)
        assert (after.data_start - before.data_start) % 4096 == 0
        assert data_of(out) == data_of(source)
    # Editing again doesn't pile up padding.
    again = edited(out, GgufEdits(keys={NAME: GgufValue(type="STRING", value="tiny")}))
    assert header_of(again).data_start == before.data_start
    assert PADDING not in header_of(again).values


def test_most_of_the_data_keep_their_distance(tmp_path: Path) -> None:
    """What stands behind a removed tensor moves; where that is most of it, the header makes up for it."""
    big = {"big": np.ones((64, 64), np.float32), "last": np.ones(3, np.float32)}
    weights = {"first": np.ones(7, np.float32), FREQS: np.ones(16, np.float32), **big}
    source = write_model(tmp_path / "model.gguf", {**keys(), NAME: "tiny"}, weights)
    out = edited(source, GgufEdits(removed_tensors=(FREQS,)))
    moved = header_of(out).tensor_spans["big"][0] - header_of(source).tensor_spans["big"][0]
    assert moved % 4096 == 0
    assert data_of(out) == {name: raw for name, raw in data_of(source).items() if name != FREQS}


def test_pieces_are_copied_from_the_start_of_a_block(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, asked = os.copy_file_range, []

    def copy_file_range(read: int, write: int, count: int, position: int, target: int) -> int:
        asked.append((position % 4096, target % 4096))
        return true(read, write, count, position, target)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    weights = {"big": np.ones((64, 64), np.float32)}
    edited(write_model(source.with_name("big.gguf"), keys(), weights), NAMED)
    # All but the piece in front of the first block.
    assert sorted(asked)[:-1] == [(0, 0)]


def test_a_kernel_that_can_not_copy(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(copying, "_READ_BYTES", 100)
    assert data_of(edited(source, NAMED)) == data_of(source)


def test_tensors_are_replaced_added_and_removed(source: Path) -> None:
    before = data_of(source)
    halves = tuple(0.5 for _ in range(16))
    raw = struct.pack("<16f", *halves)
    others = {name: data for name, data in before.items() if name != FREQS}

    replaced = data_of(edited(source, GgufEdits(tensors={FREQS: halves})))
    assert replaced == {**before, FREQS: raw}
    assert list(replaced) == list(before)

    moved = data_of(edited(source, GgufEdits(tensors={FREQS: halves * 2}), source.with_name("a.gguf")))
    assert moved == {**others, FREQS: raw * 2}
    assert list(moved) == [*others, FREQS]

    edits = GgufEdits(tensors={"new": (1.0, 2.0, 3.0)}, removed_tensors=(FREQS, "none"))
    out = edited(source, edits, source.with_name("b.gguf"))
    assert data_of(out) == {**others, "new": struct.pack("<3f", 1.0, 2.0, 3.0)}
    # Without a hole, or no reader would take it; and padded at its end.
    assert (out.stat().st_size - header_of(out).data_start) % 32 == 0


def test_another_alignment(source: Path, tmp_path: Path) -> None:
    wide = edited(source, GgufEdits(keys={"general.alignment": GgufValue(type="UINT32", value=256)}))
    gguf = header_of(wide)
    assert gguf.alignment == 256
    assert all(start % 256 == 0 for start, _end in gguf.tensor_spans.values())
    assert data_of(wide) == data_of(source)
    back = edited(wide, GgufEdits(removed=("general.alignment",)))
    assert (header_of(back).alignment, data_of(back)) == (32, data_of(source))


def split(folder: Path, first: int) -> Path:
    """Three tensors in two files, the first one with ``first`` of them, as llama.cpp's splitter makes them."""
    weights = {FREQS: np.ones(16, np.float32), "b": np.full(4, 2.0, np.float32), "c": np.full(4, 3.0, np.float32)}
    for number in (1, 2):
        part = dict(list(weights.items())[:first] if number == 1 else list(weights.items())[first:])
        entries = []
        for index, (name, array) in enumerate(part.items()):
            entries.append(
                info(name, "F32", array.shape, sum(-(-a.nbytes // 32) * 32 for a in list(part.values())[:index]))
            )
        own = keys() if number == 1 else {}
        counts = {
            "split.no": GgufValue(type="UINT16", value=number - 1),
            "split.count": GgufValue(type="UINT16", value=2),
            "split.tensors.count": GgufValue(type="INT32", value=3),
        }
        data = b"".join(a.tobytes() + bytes(-a.nbytes % 32) for a in part.values())
        pairs = [pair(key, value(content)) for key, content in {**own, **counts}.items()]
        (folder / f"model-0000{number}-of-00002.gguf").write_bytes(encode(pairs, entries, data))
    return folder / "model-00001-of-00002.gguf"


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_split_file(tmp_path: Path, first: int) -> None:
    """The count that llama.cpp compares with what it finds follows; a tensor is changed in the file that holds it."""
    path = split(tmp_path, first)
    contents = read_gguf(path)
    assert {tensor.name for tensor in contents.tensors} == {FREQS, "b", "c"}
    for number, (edits, expected) in enumerate(
        (
            (GgufEdits(tensors={"new": (1.0,)}), {FREQS, "b", "c", "new"}),
            (GgufEdits(removed_tensors=(FREQS,)), {"b", "c"}),
            (GgufEdits(removed_tensors=("c",), tensors={"new": (1.0,), FREQS: (2.0,) * 16}), {FREQS, "b", "new"}),
            (NAMED, {FREQS, "b", "c"}),
        )
    ):
        out = tmp_path / f"{number}"
        out.mkdir()
        parts = edits_by_file(contents, edits)
        assert set(parts) <= {file.path for file in contents.files}
        for file in contents.files:
            edited(tmp_path / file.path, parts.get(file.path, GgufEdits()), out / file.path)
        after = read_gguf(out / path.name)
        assert {tensor.name for tensor in after.tensors} == expected
        assert after.gguf is not None
        assert after.gguf.values["split.tensors.count"] == GgufValue(type="INT32", value=len(expected))
        assert after.gguf.factors.get(FREQS) == (
            None if FREQS not in expected else (edits.tensors.get(FREQS) or (1.0,) * 16)
        )


def test_a_source_that_changed(source: Path, tmp_path: Path) -> None:
    gguf = header_of(source)
    raw = source.read_bytes()
    start = gguf.spans["llama.block_count"][0]
    for number, changed in enumerate(
        (
            raw[:-64],
            raw[:1000],
            raw[: start + 8] + b"x" + raw[start + 9 :],
            raw[:8] + b"\7" + raw[9:],
            small(tmp_path / "other.gguf", vocab_size=3).read_bytes(),
        )
    ):
        source.write_bytes(changed)
        with pytest.raises(OutputError) as caught:
            write_edited(source, tmp_path / str(number), gguf, NAMED, progress=lambda _count: None)
        assert (caught.value.code, caught.value.file) == ("source-changed", str(source))


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, GgufValue], dict[str, Any], int]:
    """Random keys and tensors, and an alignment."""
    names = st.text("abcdefgh.é", min_size=1, max_size=12)
    own = draw(st.dictionaries(names, values(), max_size=6))
    alignment = draw(st.sampled_from([8, 32, 64, 8192]))
    if alignment != 32:
        own["general.alignment"] = GgufValue(type="UINT32", value=alignment)
    sizes = draw(st.dictionaries(names, st.integers(1, 3000), max_size=5))
    weights = {name: np.random.default_rng(size).integers(0, 255, size, np.uint8) for name, size in sizes.items()}
    return own, weights, alignment


@st.composite
def edits_of(draw: st.DrawFn, own: dict[str, GgufValue], weights: dict[str, Any]) -> GgufEdits:
    names = st.sampled_from([*own, "new.key", "newer"]) if own else st.just("new.key")
    tensors = st.sampled_from([*weights, "new.weight"])
    changed = draw(st.dictionaries(names.filter(lambda name: name != "general.alignment"), values(), max_size=4))
    removed = draw(st.lists(names.filter(lambda name: name not in changed and name != "general.alignment")))
    numbers = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=600).map(tuple)
    new = draw(st.dictionaries(tensors, numbers, max_size=2))
    gone = draw(st.lists(tensors.filter(lambda name: name not in new), unique=True)) if len(new) <= len(weights) else []
    return GgufEdits(keys=changed, removed=tuple(removed), tensors=new, removed_tensors=tuple(gone))


def write(path: Path, own: dict[str, GgufValue], weights: dict[str, Any], alignment: int) -> Path:
    """By the tests' own writer: bytes as I8, one dimension."""
    infos, data = [], b""
    for name, array in weights.items():
        infos.append(info(name, "I8", array.shape, len(data)))
        data += array.tobytes() + bytes(-len(array) % alignment)
    pairs = [pair(key, content) for key, content in own.items()]
    path.write_bytes(encode(pairs, infos, data, alignment=alignment))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_any_edit_of_any_file(tmp_path: Path, data: st.DataObject) -> None:
    own, weights, alignment = data.draw(files())
    edits = data.draw(edits_of(own, weights))
    for name in ("source.gguf", "edited.gguf"):
        (tmp_path / name).unlink(missing_ok=True)
    source = write(tmp_path / "source.gguf", own, weights, alignment)
    out = edited(source, edits, tmp_path / "edited.gguf")
    check_edited(read_gguf(out).gguf, out, header_of(source).values, weights, edits)


def check_edited(
    gguf: Gguf | None, path: Path, own: Any, weights: dict[str, Any], edits: GgufEdits, *, kept: tuple[str, ...] = ()
) -> None:
    """Whether a file holds what it should after edits, and, but for ``kept``, nothing more."""
    assert gguf is not None
    values = {key: content for key, content in own.items() if key not in edits.removed} | dict(edits.keys)
    found = {key: content for key, content in gguf.values.items() if key != PADDING}
    # Numbers that aren't any are the same as they are written.
    assert str(found) == str(values)
    raw = path.read_bytes()
    arrays = {name: array.tobytes() for name, array in weights.items() if name not in edits.removed_tensors}
    arrays |= {name: struct.pack(f"<{len(numbers)}f", *numbers) for name, numbers in edits.tensors.items()}
    data = {name: raw[start:end] for name, (start, end) in gguf.tensor_spans.items() if name not in kept}
    assert data == arrays


def test_llama_cpp_gives_the_same_logits(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    source = write_model(tmp_path / "model.gguf", settings_of("llama"), weights_of("llama"))
    expected = logits(source, TOKENS, context=64)
    out = edited(source, NAMED)
    assert np.array_equal(logits(out, TOKENS, context=64), expected)
    ones = edited(source, GgufEdits(tensors={FREQS: (1.0,) * 16}), tmp_path / "ones.gguf")
    assert np.array_equal(logits(ones, TOKENS, context=64), expected)
    halves = edited(source, GgufEdits(tensors={FREQS: (0.5,) * 16}), tmp_path / "halves.gguf")
    assert np.abs(logits(halves, TOKENS, context=64) - expected).max() > 0.1
    back = edited(halves, GgufEdits(removed_tensors=(FREQS,)), tmp_path / "back.gguf")
    assert np.array_equal(logits(back, TOKENS, context=64), expected)
    with pytest.raises(LoadError):
        logits(edited(source, GgufEdits(tensors={"nobody.weight": (1.0,)}), tmp_path / "n.gguf"), TOKENS, context=64)


@pytest.mark.parametrize("first", [0, 5])
def test_llama_cpp_counts_the_tensors_of_a_split_file(tmp_path: Path, first: int) -> None:
    pytest.importorskip("xllamacpp")
    whole = write_model(tmp_path / "model.gguf", settings_of("llama"), weights_of("llama"))
    expected = logits(whole, TOKENS, context=64)
    path = split_model(tmp_path, first)
    assert np.array_equal(logits(path, TOKENS, context=64), expected)
    contents = read_gguf(path)
    parts = edits_by_file(contents, GgufEdits(tensors={FREQS: (1.0,) * 16}))
    assert list(parts) == [path.name]
    out = tmp_path / "out"
    out.mkdir()
    for file in contents.files:
        edited(tmp_path / file.path, parts.get(file.path, GgufEdits()), out / file.path)
    assert np.array_equal(logits(out / path.name, TOKENS, context=64), expected)


def split_model(folder: Path, first: int) -> Path:
    """The tiny Llama in two files, the first one with ``first`` of its tensors."""
    weights = list(weights_of("llama").items())
    for number, part in ((1, weights[:first]), (2, weights[first:])):
        own = {key: value(content) for key, content in settings_of("llama").items()} if number == 1 else {}
        own["split.no"] = GgufValue(type="UINT16", value=number - 1)
        own["split.count"] = GgufValue(type="UINT16", value=2)
        own["split.tensors.count"] = GgufValue(type="INT32", value=len(weights))
        infos, data = [], b""
        for name, array in part:
            infos.append(info(name, "F32", tuple(reversed(array.shape)), len(data)))
            data += array.tobytes() + bytes(-array.nbytes % 32)
        pairs = [pair(key, content) for key, content in own.items()]
        (folder / f"split-0000{number}-of-00002.gguf").write_bytes(encode(pairs, infos, data))
    return folder / "split-00001-of-00002.gguf"
