"""The writer against the safetensors library, byte for byte, and against transformers' way of splitting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save

from ctxextend.contents import TensorInfo
from ctxextend.tensors.safetensors_writer import in_shards, write_shards

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def tensors_of(*shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Tensors of three types, named so that no order of theirs is that of their names."""
    generator = torch.Generator().manual_seed(1)
    kinds = list(DTYPES)
    return {
        f"model.layers.{(7 * i) % 10}.{'ba'[i % 2]}.weight": torch.randn(shape, generator=generator).to(kinds[i % 3])
        for i, shape in enumerate(shapes)
    }


def infos_of(tensors: Mapping[str, torch.Tensor]) -> list[TensorInfo]:
    return [
        TensorInfo(name=name, dtype=DTYPES[tensor.dtype], shape=tuple(tensor.shape), file="")
        for name, tensor in tensors.items()
    ]


def written(folder: Path, tensors: Mapping[str, torch.Tensor], limit: int, step: int = 7) -> tuple[str, ...]:
    """Write in pieces of ``step`` bytes."""
    told: list[int] = []

    def pieces(info: TensorInfo) -> Iterator[tuple[int, bytes]]:
        raw = tensors[info.name].reshape(-1).view(torch.uint8).numpy().tobytes()
        # The odd pieces first: their order is free.
        starts = range(0, len(raw), step)
        yield from ((start, raw[start : start + step]) for start in (*starts[1::2], *starts[::2]))

    infos = in_shards(infos_of(tensors), limit)
    files = write_shards(folder, infos, pieces, progress=told.append)
    assert sum(told) == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return files


SHAPES = ((3, 4), (5,), (2, 3, 4), (), (7, 1), (0, 4), (8,))


def test_one_file_is_what_the_library_writes(tmp_path: Path) -> None:
    tensors = tensors_of(*SHAPES)
    assert written(tmp_path, tensors, 10**9) == ("model.safetensors",)
    expected = save(tensors, metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("limit", [1, 40, 48, 100, 130])
def test_files_are_split_as_transformers_splits_them(tmp_path: Path, limit: int) -> None:
    tensors = tensors_of(*(shape for shape in SHAPES if 0 not in shape))
    files = written(tmp_path, tensors, limit)
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == split.tensor_to_filename
    assert index["metadata"]["total_size"] == split.metadata["total_size"]
    assert set(files) == {*split.filename_to_tensors, "model.safetensors.index.json"}
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    for file, names in split.filename_to_tensors.items():
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == set(names)
            assert all(torch.equal(opened.get_tensor(name), tensors[name]) for name in names)


def test_data_that_does_not_fit_its_shape_is_a_bug(tmp_path: Path) -> None:
    info = TensorInfo(name="w", dtype="F32", shape=(2,), file="model.safetensors")
    with pytest.raises(AssertionError, match="w: 4 bytes of 8"):
        write_shards(tmp_path, [info], lambda _info: [(0, bytes(4))], progress=lambda _count: None)


def test_pieces_may_be_parts_of_an_array(tmp_path: Path) -> None:
    values: Any = np.arange(6, dtype="<f4").reshape(2, 3)
    info = TensorInfo(name="w", dtype="F32", shape=(2, 3), file="model.safetensors")
    write_shards(
        tmp_path,
        [info],
        lambda _info: [(12, values[1:].data), (12, values[:0].data), (0, values[:1].data)],
        progress=lambda _count: None,
    )
    with safe_open(tmp_path / "model.safetensors", framework="np") as opened:
        assert np.array_equal(opened.get_tensor("w"), values)


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    info = TensorInfo(name="w", dtype="F32", shape=(0,), file="model.safetensors")
    with pytest.raises(FileExistsError):
        write_shards(tmp_path, [info], lambda _info: [], progress=lambda _count: None)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
