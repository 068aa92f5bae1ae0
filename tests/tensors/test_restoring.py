"""Tensors of a GGUF file, back as those of a checkpoint: in small pieces, of every layout and of several types."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import TensorInfo
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.exports.export import Export, export_of
from ctxextend.exports.layout import PairRows, Reshape, Rows
from ctxextend.exports.reverse import FloatType, Part, Restored, Target, restored_of
from ctxextend.families import find_family
from ctxextend.formats.hf_read import read_rope
from ctxextend.tensors import restoring
from ctxextend.tensors.restoring import GgufTensors, pieces_of, planned
from ctxextend.tensors.safetensors_writer import write_shards
from tests.exports.apply_layouts import applied
from tests.gguf_factory import encode, info, keys, pair, write_model

Array = NDArray[Any]

GOLDEN: Final = Path(__file__).resolve().parents[1] / "exports" / "golden"
NAMES: Final = sorted(path.stem for path in GOLDEN.glob("*.json"))


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def weights_of(name: str) -> dict[str, Array]:
    """Random weights that half precision keeps, and keeps with one added; only those of the language model."""
    rng = np.random.default_rng(len(name))
    return {
        tensor: rng.integers(-1024, 1024, shape).astype(np.float32) / np.float32(1024)
        for tensor, shape in golden(name)["shapes"].items()
    }


def export(name: str) -> Export:
    """What our own export of a checkpoint holds; that it is llama.cpp's is shown in ``tests/exports``."""
    config = golden(name)["config"]
    family = find_family(config)
    tensors = {
        tensor: TensorInfo(name=tensor, dtype="F32", shape=tuple(shape), file="")
        for tensor, shape in golden(name)["shapes"].items()
    }
    if family.position != "rope":
        length = next(config[key] for key in ("n_positions", "seq_length", "max_seq_len") if key in config)
        return export_of(family.name, config, tensors, rope=None, length=length)
    return export_of(family.name, config, tensors, rope=read_rope(config, family))


def file_of(name: str, path: Path, weights: Mapping[str, Array], kind: str = "F32") -> Path:
    """A GGUF file; where ``kind`` is F16, its matrices in half precision, and the vectors of Gemma (with one added)."""
    held = export(name)
    arrays = {layout.name: applied(layout, weights) for layout in held.layouts}
    if kind == "F16":
        least = 1 if name == "gemma2" else 2
        arrays = {key: array.astype(np.float16) if array.ndim >= least else array for key, array in arrays.items()}
    return write_model(path, held.values, arrays)


def restored(files: list[Path], folder: Path, dtype: FloatType | None = None) -> tuple[Restored, dict[str, Array]]:
    contents = read_gguf(files[0])
    assert contents.gguf is not None
    found = restored_of(contents.gguf, contents.tensors, dtype=dtype)
    folder.mkdir()
    with GgufTensors(files) as data:
        tensors = planned(found.tensors, data.infos, found.dtype)
        write_shards(folder, tensors, pieces_of(found.tensors, data), progress=lambda _count: None)
    return found, load_file(folder / "model.safetensors")


def expected_of(name: str, weights: Mapping[str, Array]) -> dict[str, Array]:
    if name != "gemma3":
        return dict(weights)
    prefix = "language_model."
    return {key.removeprefix(prefix): array for key, array in weights.items() if key.startswith(prefix)}


@pytest.mark.parametrize("elements", [1, 100, 1 << 20])
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_taken_back(name: str, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "_ELEMENTS", elements)
    weights = weights_of(name)
    _found, back = restored([file_of(name, tmp_path / "a.gguf", weights)], tmp_path / "back")
    expected = expected_of(name, weights)
    assert back.keys() == expected.keys()
    assert all(np.array_equal(back[key], expected[key]) and back[key].dtype == np.float32 for key in expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3", "gpt_neox"])
def test_half_precision_stays_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "_ELEMENTS", 100)
    weights = weights_of(name)
    found, back = restored([file_of(name, tmp_path / "a.gguf", weights, "F16")], tmp_path / "back")
    assert found.dtype == "F16"
    exact = {target.name for target in found.tensors if target.exact}
    for key, array in expected_of(name, weights).items():
        assert back[key].dtype == (np.float32 if key in exact else np.float16)
        assert np.array_equal(back[key].astype(np.float32), array)


def quantised_model(path: Path, kind: GGMLQuantizationType) -> dict[str, Array]:
    """One projection that pairs rows, in blocks, beside embeddings; what the file's numbers are."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((64, 64), np.float32),
        "b": rng.standard_normal((3, 64, 96), np.float32),
    }
    blocks = {key: quants.quantize(array, kind) for key, array in arrays.items()}
    _write_blocks(path, blocks, kind)
    return {key: quants.dequantize(raw, kind).reshape(arrays[key].shape) for key, raw in blocks.items()}


def _write_blocks(path: Path, blocks: Mapping[str, Array], kind: GGMLQuantizationType) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    for key, raw in blocks.items():
        writer.add_tensor(key, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("elements", [1, 500, 1 << 20])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_rows_are_taken_apart_and_put_back(
    kind: str, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "_ELEMENTS", elements)
    numbers = quantised_model(tmp_path / "a.gguf", GGMLQuantizationType[kind])
    targets = [
        Target(name="q", shape=(64, 64), parts=(Part(tensor="a", operations=(PairRows(heads=4),)),)),
        *(Target(name=f"e.{i}", shape=(64, 96), parts=(Part(tensor="b", index=i),)) for i in range(3)),
    ]
    with GgufTensors([tmp_path / "a.gguf"]) as data:
        tensors = planned(targets, data.infos, "F32")
        write_shards(tmp_path, tensors, pieces_of(targets, data), progress=lambda _count: None)
    back = load_file(tmp_path / "model.safetensors")
    # Rows 0 to 7 and 8 to 15 of a head had become neighbours.
    apart = numbers["a"].reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64)
    assert np.array_equal(back["q"], apart)
    assert all(np.array_equal(back[f"e.{i}"], numbers["b"][i]) for i in range(3))


def test_pieces_are_whole_blocks_and_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector in blocks, and rows that were cut in two: a piece of one element would be neither."""
    monkeypatch.setattr(restoring, "_ELEMENTS", 1)
    kind = GGMLQuantizationType.Q8_0
    values = np.random.default_rng(1).standard_normal((8, 32), np.float32)
    vector, matrix = quants.quantize(values.reshape(1, -1), kind)[0], quants.quantize(values, kind)
    _write_blocks(tmp_path / "a.gguf", {"v": vector, "m": matrix}, kind)
    targets = [
        Target(name="v", shape=(256,), parts=(Part(tensor="v"),)),
        Target(name="m", shape=(4, 64), parts=(Part(tensor="m", operations=(Reshape(shape=(8, 32)),)),)),
    ]
    with GgufTensors([tmp_path / "a.gguf"]) as data:
        tensors = planned(targets, data.infos, "F32")
        write_shards(tmp_path, tensors, pieces_of(targets, data), progress=lambda _count: None)
    back = load_file(tmp_path / "model.safetensors")
    assert np.array_equal(back["v"], quants.dequantize(vector, kind))
    assert np.array_equal(back["m"], quants.dequantize(matrix, kind).reshape(4, 64))


def test_a_split_file_is_read_from_all_its_files(tmp_path: Path) -> None:
    weights = weights_of("llama")
    whole = GGUFReader(file_of("llama", tmp_path / "a.gguf", weights))
    arrays = {tensor.name: tensor.data.reshape(tensor.shape[::-1]) for tensor in whole.tensors}
    names = list(arrays)
    files = [tmp_path / f"b-0000{n}-of-00002.gguf" for n in (1, 2)]
    for file, held in zip(files, (names[:7], names[7:]), strict=True):
        write_model(file, export("llama").values, {name: arrays[name] for name in held})
    _found, back = restored(files, tmp_path / "back")
    assert all(np.array_equal(back[key], array) for key, array in weights.items())


def test_large_checkpoints_are_split(tmp_path: Path) -> None:
    path = file_of("llama", tmp_path / "a.gguf", weights_of("llama"))
    contents = read_gguf(path)
    assert contents.gguf is not None
    found = restored_of(contents.gguf, contents.tensors)
    infos = {tensor.name: tensor for tensor in contents.tensors}
    assert {t.file for t in planned(found.tensors, infos, "F32")} == {"model.safetensors"}
    split = planned(found.tensors, infos, "F32", max_shard_bytes=50_000)
    assert len({t.file for t in split}) > 2
    # The order is the file's: a layer's tensors stay together.
    assert [t.name for t in split] == [target.name for target in found.tensors]


def test_a_type_without_numbers_is_refused() -> None:
    infos = {"a": TensorInfo(name="a", dtype="I32", shape=(4,), file="a.gguf")}
    with pytest.raises(RefusedError) as caught:
        planned([Target(name="w", shape=(4,), parts=(Part(tensor="a"),))], infos, "F32")
    assert (caught.value.code, caught.value.key) == ("unreadable-type", "a")


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((4, 4), Part(tensor="a", operations=(Rows(start=0, stop=3),))),
        ((6, 4), Part(tensor="a", operations=(PairRows(heads=4),))),
        ((2, 4), Part(tensor="a", index=0)),
    ],
)
def test_a_shape_that_does_not_fit_is_told_before_anything_is_read(shape: tuple[int, ...], part: Part) -> None:
    infos = {"a": TensorInfo(name="a", dtype="F32", shape=(4, 4), file="a.gguf")}
    with pytest.raises(CheckpointError) as caught:
        planned([Target(name="w", shape=shape, parts=(part,))], infos, "F32")
    assert (caught.value.code, caught.value.key) == ("unexpected-shape", "a")


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    path = file_of("llama", tmp_path / "a.gguf", weights_of("llama"))
    with GgufTensors([path]) as data:
        name = list(data.infos)[-1]
        with path.open("r+b") as handle:
            handle.truncate(path.stat().st_size - 64)
        with pytest.raises(CheckpointError) as caught:
            data.read(name, 0, data.infos[name].size_bytes)
    assert (caught.value.code, caught.value.key) == ("source-changed", name)


def test_a_broken_header_is_told_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(CheckpointError):
        GgufTensors([tmp_path / "a.gguf"])


MEASURED = """
import sys
from pathlib import Path
from ctxextend.exports.reverse import Part, Target
from ctxextend.exports.layout import PairRows
from ctxextend.tensors.restoring import GgufTensors, pieces_of, planned
from ctxextend.tensors.safetensors_writer import write_shards
path = Path(sys.argv[1])
parts = (Part(tensor="w", operations=(PairRows(heads=64),)),)
targets = [Target(name="w", shape=(65536, 1024), parts=parts)]
with GgufTensors([path]) as data:
    tensors = planned(targets, data.infos, "BF16")
    write_shards(path.parent, tensors, pieces_of(targets, data), progress=lambda count: None)
# Not ru_maxrss: a child has its parent's.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel doesn't say how much memory was held")
def test_a_tensor_is_never_held(tmp_path: Path) -> None:
    """256 MiB in single precision, by way of a sparse file, in less than 128 MiB of memory."""
    path = tmp_path / "a.gguf"
    path.write_bytes(encode([pair(*item) for item in keys().items()], [info("w", "F32", (1024, 65536), 0)]))
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size + (1 << 28))
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 128
    with safe_open(tmp_path / "model.safetensors", framework="np") as opened:
        assert opened.get_slice("w").get_shape() == [65536, 1024]
