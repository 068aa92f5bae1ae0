"""GGUF files from safetensors: the bytes that the gguf package writes, in any number of types and files at once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import save_file

from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError, CtxextendError, OutputError, RefusedError
from ctxextend.exports.layout import AddOne, Layout, PairRows, Reshape, Rows
from ctxextend.exports.outtypes import FILE_TYPES, NATIVE
from ctxextend.formats.gguf_bytes import encode_key
from ctxextend.tensors import gguf_export as room
from ctxextend.tensors.gguf_export import GgufFile, Output, needed_bytes, plan_files, write_gguf
from ctxextend.tensors.llama_quantize import Quantizer, find_quantizer
from ctxextend.tensors.weights import open_weights
from tests.gguf_factory import value
from tests.reference.libllama import logits, settings_of, weights_of

Array = np.ndarray[Any, Any]

HEADS = {"attn_q.weight": 2, "attn_k.weight": 1}
PAIRED = {name: PairRows(heads=heads) for name, heads in HEADS.items()}


def permuted_back(array: Array, heads: int) -> Array:
    """What Hugging Face has of a matrix that llama.cpp's converter has permuted: neighbours become halves."""
    return array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


class Model:
    """A tiny Llama: its arrays as they are in GGUF, and the checkpoint that they come from."""

    def __init__(self, folder: Path, *, dtype: str = "F32") -> None:
        arrays = weights_of("llama")
        if dtype == "F16":
            arrays = {name: array.astype(np.float16).astype(np.float32) for name, array in arrays.items()}
        self.arrays: dict[str, Array] = arrays
        folder.mkdir()
        source = {}
        for name, array in arrays.items():
            heads = next((heads for end, heads in HEADS.items() if name.endswith(end)), None)
            source[f"hf.{name}"] = array if heads is None else permuted_back(array, heads)
        kind = {"F32": np.float32, "F16": np.float16}[dtype]
        source = {name: np.ascontiguousarray(array.astype(kind)) for name, array in source.items()}
        names = sorted(source)
        save_file({name: source[name] for name in names[::2]}, folder / "a.safetensors")
        save_file({name: source[name] for name in names[1::2]}, folder / "b.safetensors")
        self.layouts = [
            Layout(
                name=name,
                shape=array.shape,
                sources=(f"hf.{name}",),
                operations=tuple(step for end, step in PAIRED.items() if name.endswith(end)),
            )
            for name, array in arrays.items()
        ]
        self.settings = {**settings_of("llama"), "general.name": "tiny"}
        self.weights = open_weights(folder, ["a.safetensors", "b.safetensors"])

    @property
    def bytes_of_matrices(self) -> int:
        """Without norms, which are F32 in the checkpoint and in every file, and so are copied."""
        return sum(array.nbytes for array in self.arrays.values() if array.ndim > 1)

    def keys(self, outtype: str) -> tuple[bytes, ...]:
        pairs = {key: value(content) for key, content in self.settings.items()}
        pairs["general.file_type"] = GgufValue(type="UINT32", value=FILE_TYPES[outtype])
        return tuple(encode_key(key, entry) for key, entry in pairs.items())

    def output(self, path: Path, outtype: str, split_max_size: int | None = None) -> Output:
        return Output(path=path, outtype=outtype, keys=self.keys(outtype), split_max_size=split_max_size)

    def written_by_gguf(self, path: Path, outtype: str) -> bytes:
        """The same file by the gguf package."""
        writer = GGUFWriter(str(path), "llama")
        add: dict[str, Any] = {"UINT32": writer.add_uint32, "FLOAT32": writer.add_float32, "STRING": writer.add_string}
        for key, content in self.settings.items():
            if key != "general.architecture":
                entry = value(content)
                add[entry.type](key, entry.value)
        writer.add_uint32("general.file_type", FILE_TYPES[outtype])
        for name, array in self.arrays.items():
            better = {"output.weight": "Q8_0"} if outtype in ("q4_0", "q4_1", "q5_0", "q5_1") else {}
            kind = GGMLQuantizationType[better.get(name, NATIVE[outtype]) if array.ndim > 1 else "F32"]
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "source")


def nothing(_count: int) -> None:
    pass


def write(
    model: Model, outputs: Sequence[Output], *, quantizer: Quantizer | None = None
) -> tuple[tuple[GgufFile, ...], ...]:
    seen: list[int] = []
    files = write_gguf(outputs, model.layouts, model.weights, progress=seen.append, quantizer=quantizer)
    if quantizer is None:
        assert sum(seen) == sum(file.size_bytes for part in files for file in part)
    for file in (file for part in files for file in part):
        assert file.path.stat().st_size == file.size_bytes
    return files


@pytest.mark.parametrize("outtype", NATIVE)
@pytest.mark.parametrize("rows", [1, 7, 1 << 15])
def test_the_bytes_of_the_gguf_package(
    outtype: str, rows: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", 64 * rows)
    write(model, [model.output(tmp_path / "out.gguf", outtype)])
    assert (tmp_path / "out.gguf").read_bytes() == model.written_by_gguf(tmp_path / "good.gguf", outtype)


def test_several_types_in_one_pass(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counted(monkeypatch)
    write(model, [model.output(tmp_path / f"{outtype}.gguf", outtype) for outtype in NATIVE])
    assert sum(reads) == model.bytes_of_matrices
    for outtype in NATIVE:
        good = model.written_by_gguf(tmp_path / "good.gguf", outtype)
        assert (tmp_path / f"{outtype}.gguf").read_bytes() == good, outtype


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads from here on."""
    true, reads = os.preadv, list[int]()

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        done = true(descriptor, buffers, offset)
        reads.append(done)
        return done

    monkeypatch.setattr(os, "preadv", preadv)
    return reads


def test_a_large_tensor_goes_through_in_blocks(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", 640)
    reads = counted(monkeypatch)
    write(model, [model.output(tmp_path / "out.gguf", "q8_0")])
    assert max(reads) <= 640 * 4
    assert sum(reads) == model.bytes_of_matrices


@pytest.mark.parametrize("answer", [None, errno.EXDEV, errno.ENOSYS, 0])
def test_what_keeps_its_type_does_not_go_through_memory(
    answer: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tmp_path / "source", dtype="F32")
    reads = counted(monkeypatch)
    monkeypatch.setattr(room, "CHUNK_BYTES", 1000)

    def copy_file_range(*_arguments: int) -> int:
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    if answer is not None:
        monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    write(model, [model.output(tmp_path / "out.gguf", "f32")])
    assert (tmp_path / "out.gguf").read_bytes() == model.written_by_gguf(tmp_path / "good.gguf", "f32")
    moved = [span for name, span in model.weights.spans.items() if name.endswith(tuple(HEADS))]
    assert sum(reads) == sum(span.stop - span.start for span in moved)


def test_a_copy_that_fails(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_file_range(*_arguments: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write(model, [model.output(tmp_path / "out.gguf", "f32")])


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_full_disk(after: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = os.pwrite, [0]

    def pwrite(descriptor: int, data: Any, position: int) -> int:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(descriptor, data[:100], position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        write(model, [model.output(tmp_path / "out.gguf", "q8_0")])
    assert caught.value.errno == errno.ENOSPC


def test_writes_that_are_cut_short(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, position: true(descriptor, data[:100], position))
    write(model, [model.output(tmp_path / "out.gguf", "q8_0")])
    assert (tmp_path / "out.gguf").read_bytes() == model.written_by_gguf(tmp_path / "good.gguf", "q8_0")


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_a_source_that_became_shorter(outtype: str, model: Model, tmp_path: Path) -> None:
    for file in ("a", "b"):
        os.truncate(tmp_path / "source" / f"{file}.safetensors", 5000)
    with pytest.raises(OutputError) as caught:
        write(model, [model.output(tmp_path / "out.gguf", outtype)])
    assert caught.value.code == "source-changed"


def test_a_target_that_exists(model: Model, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write(model, [model.output(tmp_path / "out.gguf", "f16")])
    assert (tmp_path / "out.gguf").read_bytes() == b"mine"


def made(folder: Path, arrays: dict[str, Array], layout: Layout, outtype: str = "f32") -> Array:
    """One tensor, as the gguf package reads it."""
    save_file(arrays, folder / "model.safetensors")
    output = Output(path=folder / "out.gguf", outtype=outtype, keys=())
    write_gguf([output], [layout], open_weights(folder, ["model.safetensors"]), progress=nothing)
    (tensor,) = GGUFReader(folder / "out.gguf").tensors
    return np.array(tensor.data)


def test_experts_are_stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", 100)
    arrays = {f"e{i}": np.random.default_rng(i).standard_normal((8, 32)).astype(np.float16) for i in range(3)}
    layout = Layout(name="exps.weight", shape=(3, 8, 32), sources=tuple(arrays), stacked=True)
    found = made(tmp_path, arrays, layout, "q8_0")
    good = quantize(np.stack(list(arrays.values())).astype(np.float32), GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(found, good)


def test_one_is_added_in_float32(tmp_path: Path) -> None:
    norm = np.array([0.0001, -0.3, 2.0], np.float16)
    layout = Layout(name="norm.weight", shape=(3,), sources=("n",), operations=(AddOne(),))
    found = made(tmp_path, {"n": norm}, layout, "f16")
    np.testing.assert_array_equal(found, norm.astype(np.float32) + np.float32(1))


def test_parts_of_a_stacked_tensor(tmp_path: Path) -> None:
    fused = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    steps = (Reshape(shape=(24, 5)), Rows(start=6, stop=18), Reshape(shape=(2, 6, 5)))
    found = made(tmp_path, {"f": fused}, Layout(name="p.weight", shape=(2, 6, 5), sources=("f",), operations=steps))
    np.testing.assert_array_equal(found, fused[1:3])


def test_numbers_of_no_source(tmp_path: Path) -> None:
    layout = Layout(name="rope_freqs.weight", shape=(3,), values=(1.0, 0.1, 8.0), exact=True)
    found = made(tmp_path, {"x": np.zeros(1, np.float32)}, layout, "q8_0")
    np.testing.assert_array_equal(found, np.array([1.0, 0.1, 8.0], np.float32))


def test_f8_in_squares(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    torch.manual_seed(0)
    matrix = torch.randn(200, 256).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 2)
    save_torch({"w": matrix, "w_scale_inv": scales}, tmp_path / "model.safetensors")
    layout = Layout(name="w.weight", shape=(200, 256), sources=("w",), operations=(PairRows(heads=2),))
    output = Output(path=tmp_path / "out.gguf", outtype="f32", keys=())
    write_gguf([output], [layout], open_weights(tmp_path, ["model.safetensors"]), progress=nothing)
    whole = matrix.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :256]
    good = whole.reshape(2, 2, 50, 256).swapaxes(1, 2).reshape(200, 256).numpy()
    np.testing.assert_array_equal(GGUFReader(tmp_path / "out.gguf").tensors[0].data, good)


@pytest.mark.parametrize(
    ("layout", "kind", "code"),
    [
        (Layout(name="a", shape=(4, 4), sources=("gone",)), CheckpointError, "missing-tensor"),
        (Layout(name="a", shape=(4, 5), sources=("float",)), CheckpointError, "unexpected-shape"),
        (Layout(name="a", shape=(2, 4, 4), sources=("float",), stacked=True), CheckpointError, "unexpected-shape"),
        (Layout(name="a", shape=(4, 4), sources=("whole",)), RefusedError, "source-type"),
        (Layout(name="a", shape=(4, 4), sources=("huge",)), RefusedError, "out-of-range"),
    ],
)
def test_what_can_not_be_exported(layout: Layout, kind: type[CtxextendError], code: str, tmp_path: Path) -> None:
    arrays: dict[str, Array] = {
        "float": np.ones((4, 4), np.float32),
        "whole": np.ones((4, 4), np.int32),
        "huge": np.full((4, 4), 1e9, np.float32),
    }
    with pytest.raises(kind) as caught:
        made(tmp_path, arrays, layout, "f16")
    assert caught.value.code == code


@pytest.mark.parametrize("scales", [None, (1, 2)])
def test_f8_without_its_scales(scales: tuple[int, int] | None, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    tensors = {"w": torch.zeros(200, 256).to(torch.float8_e4m3fn)}
    if scales is not None:
        tensors["w_scale_inv"] = torch.ones(scales)
    save_torch(tensors, tmp_path / "model.safetensors")
    layout = Layout(name="w.weight", shape=(200, 256), sources=("w",))
    output = Output(path=tmp_path / "out.gguf", outtype="f32", keys=())
    with pytest.raises(RefusedError) as caught:
        write_gguf([output], [layout], open_weights(tmp_path, ["model.safetensors"]), progress=nothing)
    assert (caught.value.code, caught.value.key) == ("source-type", "w")


TOKENS = np.arange(3, 40)


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_llama_cpp_reads_splits(outtype: str, model: Model, tmp_path: Path) -> None:
    ((whole,),) = write(model, [model.output(tmp_path / "whole.gguf", outtype)])
    (files,) = write(model, [model.output(tmp_path / "split.gguf", outtype, split_max_size=40_000)])
    count = len(files)
    assert count > 2
    assert [file.path.name for file in files] == [f"split-{n + 1:05}-of-{count:05}.gguf" for n in range(count)]
    assert sorted(path.name for path in tmp_path.glob("split*")) == [file.path.name for file in files]
    assert all(file.size_bytes <= 40_000 or len(file.entries) == 1 for file in files)
    np.testing.assert_array_equal(logits(files[0].path, TOKENS, context=64), logits(whole.path, TOKENS, context=64))


def test_the_keys_of_splits(model: Model, tmp_path: Path) -> None:
    (files,) = write(model, [model.output(tmp_path / "split.gguf", "f16", split_max_size=20_000)])
    readers = [GGUFReader(file.path) for file in files]
    for number, reader in enumerate(readers):
        fields = reader.fields
        assert fields["split.no"].contents() == number
        assert fields["split.count"].contents() == len(files)
        assert fields["split.tensors.count"].contents() == len(model.arrays)
        assert [str(fields[key].types[0].name) for key in ("split.no", "split.count", "split.tensors.count")] == [
            "UINT16",
            "UINT16",
            "INT32",
        ]
        assert ("general.name" in fields) == (number == 0)
    names = [tensor.name for reader in readers for tensor in reader.tensors]
    assert names == list(model.arrays)


def test_files_are_as_full_as_they_can_be(model: Model, tmp_path: Path) -> None:
    (whole,) = plan_files(model.output(tmp_path / "a.gguf", "f16"), model.layouts)
    fits = plan_files(model.output(tmp_path / "a.gguf", "f16", split_max_size=whole.size_bytes + 150), model.layouts)
    assert [file.path.name for file in fits] == ["a.gguf"]
    assert fits == (whole,)
    files = plan_files(model.output(tmp_path / "a.gguf", "f16", split_max_size=20_000), model.layouts)
    for file, following in pairwise(files):
        assert file.size_bytes + following.entries[0].size_bytes + 200 > 20_000


def fake(folder: Path, script: str) -> Quantizer:
    program = folder / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    found = find_quantizer(program.parent)
    assert found == Quantizer(path=program)
    return found


def test_types_of_llama_cpp(model: Model, tmp_path: Path) -> None:
    """A program that notes how it was called and makes the file that it was given."""
    quantizer = fake(tmp_path, f'echo "$1 $3" >> {tmp_path}/calls; cp "$1" "$2"')
    out = tmp_path / "out"
    out.mkdir()
    outputs = [
        model.output(out / "a.gguf", "q4_k_m"),
        model.output(out / "b.gguf", "q8_0"),
        model.output(out / "c.gguf", "q6_k", split_max_size=40_000),
    ]
    needed = needed_bytes(outputs, model.layouts, model.weights)
    files = write(model, outputs, quantizer=quantizer)
    between = out / ".a.gguf.between"
    assert (tmp_path / "calls").read_text().splitlines() == [f"{between} Q4_K_M", f"{between} Q6_K"]
    good = model.written_by_gguf(tmp_path / "good.gguf", "f32")
    keys = len(b"".join(model.keys("f32")))
    assert (out / "a.gguf").read_bytes()[24 + keys :] == good[24 + keys :]
    assert (out / "b.gguf").read_bytes() == model.written_by_gguf(tmp_path / "good.gguf", "q8_0")
    assert sorted(path.name for path in out.iterdir()) == sorted(file.path.name for part in files for file in part)
    assert len(files[2]) > 2
    np.testing.assert_array_equal(
        logits(files[2][0].path, TOKENS, context=64), logits(out / "a.gguf", TOKENS, context=64)
    )
    assert needed > sum(file.size_bytes for file in files[1]) + between_size(model, tmp_path)


def between_size(model: Model, folder: Path) -> int:
    return plan_files(model.output(folder / "x.gguf", "f32"), model.layouts)[0].size_bytes


def test_the_file_between_loses_nothing_and_adds_nothing(tmp_path: Path) -> None:
    model = Model(tmp_path / "source", dtype="F16")
    quantizer = fake(tmp_path, 'cp "$1" "$2"')
    write(model, [model.output(tmp_path / "a.gguf", "q4_k_m")], quantizer=quantizer)
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds == {"F16", "F32"}


def test_an_output_serves_as_the_file_between(model: Model, tmp_path: Path) -> None:
    quantizer = fake(tmp_path, f'echo "$1" >> {tmp_path}/calls; cp "$1" "$2"')
    out = tmp_path / "out"
    out.mkdir()
    outputs = [model.output(out / "a.gguf", "q4_k_m"), model.output(out / "b.gguf", "f32")]
    needed = needed_bytes(outputs, model.layouts, model.weights)
    write(model, outputs, quantizer=quantizer)
    assert (tmp_path / "calls").read_text().splitlines() == [str(out / "b.gguf")]
    assert sorted(path.name for path in out.iterdir()) == ["a.gguf", "b.gguf"]
    assert needed < 2 * between_size(model, tmp_path)


@pytest.mark.parametrize("before", ["", 'cp "$1" "$2"; '])
def test_a_quantiser_that_fails(before: str, model: Model, tmp_path: Path) -> None:
    quantizer = fake(tmp_path, f"{before}echo 'this needs more' >&2; exit 3")
    with pytest.raises(OutputError) as caught:
        write(model, [model.output(tmp_path / "a.gguf", "q4_k_m")], quantizer=quantizer)
    assert caught.value.code == "quantizer-failed"
    assert "this needs more" in str(caught.value.found)
    assert "3" in str(caught.value.found)


def test_a_quantiser_that_writes_nothing(model: Model, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write(model, [model.output(tmp_path / "a.gguf", "q4_k_m")], quantizer=fake(tmp_path, "true"))
    assert caught.value.code == "quantizer-failed"


def test_no_quantiser(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_quantizer() is None
    with pytest.raises(RefusedError) as caught:
        write(model, [model.output(tmp_path / "a.gguf", "q4_k_m")])
    assert caught.value.code == "no-quantizer"
    assert "--quantizer" in str(caught.value.hint)
    assert not (tmp_path / "a.gguf").exists()


def test_where_a_quantiser_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = fake(tmp_path, "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_quantizer() == find_quantizer(quantizer.path) == quantizer
    library = tmp_path / "lib" / "libllama.v1.so"
    library.parent.mkdir()
    library.touch()
    assert find_quantizer(library.parent) == find_quantizer(library) == Quantizer(path=library, library=True)
    for wrong in (tmp_path / "gone", tmp_path, model_file(tmp_path)):
        with pytest.raises(RefusedError) as caught:
            find_quantizer(wrong)
        assert caught.value.code == "no-quantizer"


def model_file(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.touch()
    return path
