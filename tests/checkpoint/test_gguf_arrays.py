"""Complete arrays, as the ``gguf`` package wrote them, and files that change underneath."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ctxextend.checkpoint.gguf_arrays import read_arrays
from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import Gguf, GgufValue
from ctxextend.errors import CheckpointError
from tests.gguf_factory import keys, write_model

TEXTS = tuple(f"é{'x' * (i % 7)}{i}" for i in range(5000))
NUMBERS = tuple(struct.unpack("<f", struct.pack("<f", -i / 3))[0] for i in range(5000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    arrays = {
        "texts": GgufValue(type="ARRAY", item="STRING", length=5000, value=TEXTS),
        "numbers": GgufValue(type="ARRAY", item="FLOAT32", length=5000, value=NUMBERS),
        "few": GgufValue(type="ARRAY", item="INT32", length=2, value=(-1, 2)),
    }
    return write_model(tmp_path / "model.gguf", {**keys(), **arrays}, {})


def header(file: Path) -> Gguf:
    gguf = read_gguf(file).gguf
    assert gguf is not None
    return gguf


def test_arrays_are_whole(file: Path) -> None:
    gguf = header(file)
    assert gguf.values["texts"].value is None
    values = read_arrays(file, gguf)
    assert list(values) == list(gguf.values)
    assert values["texts"].value == TEXTS
    assert values["numbers"].value == NUMBERS
    assert values["few"].value == (-1, 2)
    assert values["general.architecture"].value == "llama"
    assert list(read_arrays(file, gguf, ["few", "none"])) == ["few"]


@pytest.mark.parametrize("change", [-9, 9], ids=["shorter", "longer"])
@pytest.mark.parametrize("key", ["texts", "numbers"])
def test_a_changed_file_is_named(file: Path, key: str, change: int) -> None:
    gguf = header(file)
    start, end = gguf.spans[key]
    raw = bytearray(file.read_bytes())
    if change < 0:
        del raw[end + change :]
    else:
        # A length or count that doesn't fit what the header said.
        at = start + 8 + len(key) + 8
        raw[at] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_arrays(file, gguf)
    assert (caught.value.code, caught.value.key) == ("changed-file", key)


def test_texts_end_where_their_array_does(file: Path) -> None:
    gguf = header(file)
    _start, end = gguf.spans["texts"]
    raw = bytearray(file.read_bytes())
    # The last text's length, a byte less.
    raw[end - len(TEXTS[-1].encode()) - 8] -= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_arrays(file, gguf)
    assert caught.value.code == "changed-file"


def test_a_text_that_is_none_is_named(file: Path) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw.replace(TEXTS[9].encode(), b"\xff" * len(TEXTS[9].encode()), 1))
    with pytest.raises(CheckpointError) as caught:
        read_arrays(file, header(file))
    assert (caught.value.code, caught.value.key) == ("broken-weights", "texts")


def test_a_missing_file_is_named(file: Path) -> None:
    gguf = header(file)
    file.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        read_arrays(file, gguf)
