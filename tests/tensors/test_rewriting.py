"""Rewritten safetensors files: torch's own products, every other byte as it was, and the source untouched."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ctxextend.changes import DropTensor, FillSinusoids, PutTensor, ResizeTable, ScaleTensor, Slice, TensorChange
from ctxextend.contents import TensorInfo
from ctxextend.errors import CtxextendError, OutputError, RefusedError
from ctxextend.exports.layout import Layout, PairRows
from ctxextend.tensors import copying, rewriting
from ctxextend.tensors.copying import LinkMode
from ctxextend.tensors.gguf_export import Output, write_gguf
from ctxextend.tensors.products import Rewritten
from ctxextend.tensors.rewriting import rewrite_file, rewritten_bytes, tensors_after
from ctxextend.tensors.weights import Reader, open_weights

FILE: Final = "model.safetensors"

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I32": torch.int32,
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def rewrite(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    changes: Sequence[TensorChange],
    mode: LinkMode = "auto",
    out: str = "out.safetensors",
) -> tuple[tuple[Rewritten, ...], dict[str, torch.Tensor]]:
    """What was made of these tensors; that the source is as it was is checked each time, and the header too."""
    source, target = folder / FILE, folder / out
    save_file(dict(tensors), source, metadata={"format": "pt", "who": "ü"})
    before = hashlib.sha256(source.read_bytes()).digest()
    told: list[int] = []
    found = rewrite_file(source, target, changes, mode=mode, progress=told.append)
    assert hashlib.sha256(source.read_bytes()).digest() == before
    assert sum(told) == target.stat().st_size
    infos = [
        TensorInfo(name=name, dtype=next(k for k, d in DTYPES.items() if d == t.dtype), shape=tuple(t.shape), file=FILE)
        for name, t in tensors.items()
    ]
    assert (
        target.stat().st_size
        <= rewritten_bytes(source.stat().st_size, infos, changes)
        < 10_000 + 2 * sum(t.size_bytes for t in (*infos, *tensors_after(infos, changes)))
    )
    raw = target.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    widths = {name: t.element_size() for name, t in load_file(target).items()}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        assert name == "__metadata__" or entry["data_offsets"][0] % widths[name] == 0
    with safe_open(target, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "who": "ü"}
    return found, load_file(target)


def model(kind: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "q": (torch.randn(48, 20) * 0.1).to(kind),
        "k": torch.randn(16, 20).to(kind),
        "norm": torch.ones(20).to(kind),
        "odd": torch.randn(3, 5).half(),
        "empty": torch.zeros(0, 4),
        "counts": torch.arange(7, dtype=torch.int32),
    }


@pytest.mark.parametrize("elements", [1, 70, 1 << 20])
@pytest.mark.parametrize("mode", ["auto", "copy", "hardlink", "symlink"])
def test_only_the_numbers_that_are_meant_change(
    mode: LinkMode, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "BLOCK_ELEMENTS", elements)
    tensors = model()
    # Rows 2 to 4 of each six from row 12 up to row 36, which cuts none.
    part = Slice(lower=12, upper=36, period=6, start=2, stop=5)
    found, made = rewrite(tmp_path, tensors, [ScaleTensor(file=FILE, name="q", factor=1.3, slices=(part,))], mode)
    rows = [row for row in range(12, 36) if (row - 12) % 6 in (2, 3, 4)]
    expected = tensors["q"].clone()
    expected[rows] = (tensors["q"][rows].double() * 1.3).bfloat16()
    assert (tmp_path / "out.safetensors").is_symlink() is False
    assert not (tmp_path / "out.safetensors").samefile(tmp_path / FILE)
    assert {name: bits(t) for name, t in made.items()} == {n: bits(t) for n, t in (tensors | {"q": expected}).items()}
    (one,) = found
    good = ((expected[rows].double() - tensors["q"][rows].double() * 1.3) / (tensors["q"][rows].double() * 1.3)).abs()
    assert (one.name, one.dtype, one.elements, one.factor, one.exact) == ("q", "BF16", 12 * 20, 1.3, False)
    assert one.rounding == pytest.approx(float(good.max()), rel=1e-12)
    assert 0 < one.rounding <= 2**-8


@pytest.mark.parametrize("elements", [1, 30, 1 << 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_any_dimension(axis: int, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "BLOCK_ELEMENTS", elements)
    tensors = {"w": torch.randn(8, 6, 10), "x": torch.randn(3)}
    part = Slice(lower=1, upper=5, period=3, start=1, stop=3)
    change = ScaleTensor(file=FILE, name="w", factor=1.7, slices=(part,), axis=axis)
    _found, made = rewrite(tmp_path, tensors, [change])
    expected = tensors["w"].clone()
    places = torch.tensor([2, 3])  # Of 1, 2, 3 the last two; of 4, 5, 6 only 4 lies below 5, and it is a first one.
    expected.index_copy_(axis, places, (expected.index_select(axis, places).double() * 1.7).float())
    assert torch.equal(made["w"], expected)
    assert torch.equal(made["x"], tensors["x"])


@pytest.mark.parametrize("factor", [1.3, 0.7124, 1.0986, 4.0])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64"])
def test_products_are_rounded_as_by_torch(dtype: str, factor: float, tmp_path: Path) -> None:
    """Each number that 16 and 8 bits have, as far as its product is one too."""
    kind = DTYPES[dtype]
    if dtype in ("F32", "F64"):
        numbers = torch.randn(5000, dtype=torch.float64).to(kind)
    else:
        width = torch.tensor([], dtype=kind).element_size()
        codes = np.arange(1 << 8 * width).astype(f"u{width}")
        numbers = torch.from_numpy(codes.view(np.uint8)).view(kind)
    exact = numbers.double() * factor
    # numpy's way to F16 has one rounding, torch's two.
    with np.errstate(all="ignore"):
        good = torch.from_numpy(exact.numpy().astype(np.float16)) if dtype == "F16" else exact.to(kind)
    largest = torch.finfo(kind).max
    fits = ~(numbers.double().isfinite() & (exact.abs() > largest))
    numbers, good, exact = numbers[fits], good[fits], exact[fits]
    (one,), made = rewrite(tmp_path, {"w": numbers}, [ScaleTensor(file=FILE, name="w", factor=factor)])
    plain = numbers.double().isfinite()
    assert bits(made["w"][plain]) == bits(good[plain])
    # What is no number, or infinite, keeps its very bits.
    assert bits(made["w"][~plain]) == bits(numbers[~plain])
    normal = plain & (exact.abs() >= torch.finfo(kind).tiny)
    worst = float(((good[normal].double() - exact[normal]) / exact[normal]).abs().max())
    assert one.elements == len(numbers)
    if dtype == "F64":
        assert one.rounding == (0 if factor == 4 else 2**-53)
    else:
        assert one.rounding == pytest.approx(worst, rel=1e-9)
    assert one.rounding <= torch.finfo(kind).eps / 2
    assert one.exact == (factor == 4.0)


def test_a_power_of_two_is_exact_down_to_where_bits_are_lost(tmp_path: Path) -> None:
    normal, tiny = torch.tensor([1.5, 2.0**-13]).half(), torch.tensor([3 * 2.0**-24]).half()
    changes = [ScaleTensor(file=FILE, name=name, factor=0.5) for name in ("normal", "tiny")]
    found, made = rewrite(tmp_path, {"normal": normal, "tiny": tiny}, changes)
    assert [(one.name, one.exact, one.rounding) for one in found] == [("normal", True, 0.0), ("tiny", False, 0.0)]
    # 1.5 steps of the smallest: a tie, to the even one.
    assert made["tiny"].tolist() == [2 * 2.0**-24]


def test_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    codes = torch.tensor([0, 1, 127, 252, 255], dtype=torch.uint8)
    (one,), made = rewrite(
        tmp_path, {"s": codes.view(DTYPES["F8_E8M0"])}, [ScaleTensor(file=FILE, name="s", factor=4.0)]
    )
    assert made["s"].view(torch.uint8).tolist() == [2, 3, 129, 254, 255]
    assert one.exact


def test_one_that_the_model_adds(tmp_path: Path) -> None:
    tensors = {"n": torch.linspace(-0.9, 3, 100).bfloat16(), "m": torch.linspace(-0.9, 3, 100)}
    changes = [ScaleTensor(file=FILE, name=name, factor=1.25, added_one=True) for name in tensors]
    found, made = rewrite(tmp_path, tensors, changes)
    for name, tensor in tensors.items():
        assert torch.equal(made[name], (1.25 * (1 + tensor.double()) - 1).to(tensor.dtype))
    assert not any(one.exact for one in found)
    # Zero becomes 1, in which nothing is lost; a number that vanishes beside 1 is lost, and that is told.
    zero = {"z": torch.zeros(4).bfloat16(), "v": torch.full((4,), 1e-30)}
    changes = [ScaleTensor(file=FILE, name=name, factor=2.0, added_one=True) for name in zero]
    found, made = rewrite(tmp_path, zero, changes, out="other.safetensors")
    assert [(one.name, one.exact) for one in found] == [("z", True), ("v", False)]
    assert made["z"].tolist() == made["v"].tolist() == [1.0] * 4


def test_several_factors_of_one_tensor_are_rounded_once(tmp_path: Path) -> None:
    tensors = {"q": torch.randn(32, 8).bfloat16()}
    rope = Slice(lower=0, upper=32, period=16, start=12, stop=16)
    changes = [
        ScaleTensor(file=FILE, name="q", factor=1.31),
        ScaleTensor(file=FILE, name="q", factor=1.17, slices=(rope,)),
    ]
    (one,), made = rewrite(tmp_path, tensors, changes)
    factors = torch.tensor([1.31 * (1.17 if row % 16 >= 12 else 1) for row in range(32)], dtype=torch.float64)
    assert torch.equal(made["q"], (tensors["q"].double() * factors[:, None]).bfloat16())
    assert (one.elements, one.factor) == (256, None)


def test_a_scalar(tmp_path: Path) -> None:
    (one,), made = rewrite(tmp_path, {"s": torch.tensor(3.0)}, [ScaleTensor(file=FILE, name="s", factor=1.5)])
    assert (made["s"].item(), made["s"].shape, one.exact) == (4.5, (), True)


@pytest.mark.parametrize(
    ("number", "dtype", "factor"),
    [(60000, "F16", 1.2), (448, "F8_E4M3", 1.1), (3e38, "BF16", 1.2), (3e38, "F32", 1.2), (1.7e308, "F64", 1.2)],
)
def test_what_a_type_can_not_hold(number: float, dtype: str, factor: float, tmp_path: Path) -> None:
    tensors = {"w": torch.tensor([1.0, number, 2.0], dtype=torch.float64).to(DTYPES[dtype])}
    with pytest.raises(RefusedError) as caught:
        rewrite(tmp_path, tensors, [ScaleTensor(file=FILE, name="w", factor=factor)])
    error = caught.value
    assert (error.code, error.file, error.key) == ("scale-overflow", FILE, "w")
    assert error.expected
    assert error.found
    assert error.hint


@pytest.mark.parametrize("code", [0, 254])
def test_a_scale_beyond_the_powers_of_two(code: int, tmp_path: Path) -> None:
    tensors = {"s": torch.tensor([code], dtype=torch.uint8).view(DTYPES["F8_E8M0"])}
    with pytest.raises(RefusedError) as caught:
        rewrite(tmp_path, tensors, [ScaleTensor(file=FILE, name="s", factor=4.0 if code else 0.25)])
    assert caught.value.code == "scale-overflow"


CHANGED: Final[tuple[TensorChange, ...]] = (
    DropTensor(file=FILE, name="odd"),
    PutTensor(file=FILE, name="inv_freq", values=(1.0, 0.1, 1e-5)),
    ScaleTensor(file=FILE, name="q", factor=1.5),
    ResizeTable(file=FILE, name="table", rows_before=10, rows=18, reserved=2, interpolation="linear"),
    FillSinusoids(file=FILE, name="waves", rows=9, dim=6, layout="halves", rows_kept=1),
)


@pytest.mark.parametrize("elements", [1, 50, 1 << 20])
def test_tensors_that_go_come_and_grow(elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "BLOCK_ELEMENTS", elements)
    tensors = model() | {"table": torch.randn(10, 4), "waves": torch.zeros(3, 6).half()}
    found, made = rewrite(tmp_path, tensors, CHANGED)
    assert made.keys() == tensors.keys() - {"odd"} | {"inv_freq"}
    for name in tensors.keys() - {change.name for change in CHANGED}:
        assert bits(made[name]) == bits(tensors[name])
    assert torch.equal(made["inv_freq"], torch.tensor([1.0, 0.1, 1e-5]))
    assert torch.equal(made["q"], (tensors["q"].double() * 1.5).bfloat16())
    # Two reserved rows, then the eight positions at every other row.
    assert torch.equal(made["table"][:2], tensors["table"][:2])
    assert torch.equal(made["table"][2::2], tensors["table"][2:])
    assert (made["waves"].shape, made["waves"].dtype) == ((9, 6), torch.float16)
    assert made["waves"][1].tolist() == pytest.approx(
        [wave(10 ** (-4 / 3 * i)) for wave in (np.sin, np.cos) for i in range(3)],
        abs=2**-11,
    )
    told = {one.name: one for one in found}
    assert [one.name for one in found] == [change.name for change in CHANGED]
    # A row is kept.
    assert made["waves"][0].tolist() == [0] * 6
    assert (told["odd"].elements, told["inv_freq"].elements, told["waves"].elements) == (15, 3, 48)
    assert 0 < told["inv_freq"].rounding < 2**-24
    assert not told["inv_freq"].exact
    assert told["table"].exact
    assert 0 < told["waves"].rounding <= 2**-11


def trained_table(dtype: str) -> torch.Tensor:
    """Sinusoids as transformers makes them, and then moved, as by training."""
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    plain: torch.Tensor = MarianSinusoidalPositionalEmbedding(40, 6).create_weight()
    return (plain + 0.05 * torch.randn(40, 6)).to(DTYPES[dtype])


@pytest.mark.parametrize("elements", [1, 50, 1 << 20])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_rows_of_sinusoids_that_were_trained_stay(
    dtype: str, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, and behind them those that transformers computes; cut off again, the same table."""
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    monkeypatch.setattr(rewriting, "BLOCK_ELEMENTS", elements)
    tensors = {"waves": trained_table(dtype), "w": torch.randn(5)}
    fill = FillSinusoids(file=FILE, name="waves", rows=100, dim=6, layout="halves", rows_kept=40)
    _found, made = rewrite(tmp_path, tensors, [fill])
    assert bits(made["waves"][:40]) == bits(tensors["waves"])
    longer = MarianSinusoidalPositionalEmbedding(100, 6).create_weight().to(DTYPES[dtype])
    assert torch.allclose(made["waves"][40:].double(), longer[40:].double(), atol=1e-6 if dtype == "F64" else 0)
    back = FillSinusoids(file=FILE, name="waves", rows=40, dim=6, layout="halves", rows_kept=40)
    _found, taken = rewrite(tmp_path, made, [back], out="back.safetensors")
    assert {name: bits(t) for name, t in taken.items()} == {name: bits(t) for name, t in tensors.items()}


@pytest.mark.parametrize("elements", [1, 1 << 20])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_trained_table_is_not_made_anew(
    dtype: str, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    monkeypatch.setattr(rewriting, "BLOCK_ELEMENTS", elements)
    anew = FillSinusoids(file=FILE, name="waves", rows=80, dim=6, layout="halves", positions_per_row=0.5)
    plain = MarianSinusoidalPositionalEmbedding(40, 6).create_weight().to(DTYPES[dtype])
    _found, made = rewrite(tmp_path, {"waves": plain}, [anew], out="plain.safetensors")
    assert torch.allclose(made["waves"][::2], plain, atol=1e-6)
    moved = plain.clone()
    moved[37, 2] += 0.05
    for table in (trained_table(dtype), moved, torch.full_like(plain, torch.nan)):
        with pytest.raises(RefusedError) as caught:
            rewrite(tmp_path, {"waves": table}, [anew], out=f"{table[0, 0]}.safetensors")
        assert (caught.value.code, caught.value.file, caught.value.key) == ("trained-sinusoids", FILE, "waves")
        assert caught.value.hint
    with pytest.raises(RefusedError, match="trained") as caught:
        rewrite(tmp_path, {"waves": moved}, [anew], out="moved.safetensors")
    assert "row 37" in str(caught.value.found)


def test_the_order_of_the_data_stays(tmp_path: Path) -> None:
    rewrite(tmp_path, model(), [DropTensor(file=FILE, name="k")])

    def order(file: str) -> list[str]:
        raw = (tmp_path / file).read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        del header["__metadata__"]
        return sorted(header, key=lambda name: (*header[name]["data_offsets"], name))

    assert order("out.safetensors") == [name for name in order(FILE) if name != "k"]


def test_a_tensor_that_takes_the_place_of_another(tmp_path: Path) -> None:
    tensors = {"inv_freq": torch.ones(3).half(), "w": torch.ones(2, 2).bfloat16()}
    _found, made = rewrite(tmp_path, tensors, [PutTensor(file=FILE, name="inv_freq", values=(1.0, 0.5))])
    assert torch.equal(made["inv_freq"], torch.tensor([1.0, 0.5]))
    assert torch.equal(made["w"], tensors["w"])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_goes_or_comes_the_rest_stays(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sizes and types in any mixture: everything stays aligned, and every other tensor the same bytes."""
    kinds = data.draw(st.lists(st.sampled_from(["F64", "F32", "BF16", "F8_E4M3"]), min_size=1, max_size=6))
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=len(kinds), max_size=len(kinds)))
    tensors = {
        f"t{i}": torch.arange(size).to(DTYPES[kind]) for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    }
    dropped = data.draw(st.sets(st.sampled_from(sorted(tensors))))
    changes: list[TensorChange] = [DropTensor(file=FILE, name=name) for name in sorted(dropped)]
    changes += [
        PutTensor(file=FILE, name=name, values=(2.5,) * i)
        for i, name in enumerate(data.draw(st.lists(st.sampled_from(["p", "é", "t9"]), unique=True)))
    ]
    _found, made = rewrite(tmp_path_factory.mktemp("any"), tensors, changes)
    assert made.keys() == tensors.keys() - dropped | {change.name for change in changes if change.name not in dropped}
    for name in tensors.keys() - dropped:
        assert bits(made[name]) == bits(tensors[name])


def test_what_would_lie_askew_is_put_in_order(tmp_path: Path) -> None:
    """Bytes that kept a wider tensor aligned, as other writers may have laid them, go."""
    entries = {
        "a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        "b": {"dtype": "F8_E4M3", "shape": [6], "data_offsets": [4, 10]},
        "c": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [10, 12]},
        "d": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    data = bytes(range(12)) + np.array([1.5, 2.5], "<f4").tobytes()
    (tmp_path / FILE).write_bytes(len(header).to_bytes(8, "little") + header + data)
    rewrite_file(
        tmp_path / FILE,
        tmp_path / "out",
        [
            DropTensor(file=FILE, name="b"),
            DropTensor(file=FILE, name="c"),
            PutTensor(file=FILE, name="e", values=(9.0,)),
        ],
        mode="auto",
        progress=lambda _done: None,
    )
    assert (tmp_path / "out").read_bytes().endswith(data[:4] + data[12:] + np.float32(9).tobytes())
    rewrite_file(
        tmp_path / FILE, tmp_path / "odd", [DropTensor(file=FILE, name="c")], mode="auto", progress=lambda _done: None
    )
    # Ten bytes in front of it: the wide one comes first.
    assert (tmp_path / "odd").read_bytes().endswith(data[12:] + data[:10])
    made = load_file(tmp_path / "odd")
    assert (made["d"].tolist(), bits(made["a"]), bits(made["b"])) == ([1.5, 2.5], data[:4], data[4:10])


def table(**changed: Any) -> ResizeTable:
    said: dict[str, Any] = {"rows_before": 16, "rows": 32, "reserved": 2, "interpolation": "linear"} | changed
    return ResizeTable(file=FILE, name="k", **said)


def scale(
    lower: int = 0, upper: int = 48, period: int = 6, start: int = 0, stop: int = 3, axis: int = 0
) -> ScaleTensor:
    part = Slice(lower=lower, upper=upper, period=period, start=start, stop=stop)
    return ScaleTensor(file=FILE, name="q", factor=2.0, slices=(part,), axis=axis)


PLAIN: Final = ScaleTensor(file=FILE, name="q", factor=2.0)
WAVES: Final = FillSinusoids(file=FILE, name="k", rows=8, dim=20, layout="halves")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ([ScaleTensor(file=FILE, name="gone", factor=2.0)], "stale-plan"),
        ([DropTensor(file=FILE, name="gone")], "stale-plan"),
        ([PLAIN, DropTensor(file="other.safetensors", name="k")], "stale-plan"),
        ([scale(upper=49)], "stale-plan"),
        ([scale(axis=2)], "stale-plan"),
        ([scale(axis=-1)], "stale-plan"),
        ([scale(lower=-1)], "unsafe-plan"),
        ([scale(period=0, stop=0)], "unsafe-plan"),
        ([scale(start=4)], "unsafe-plan"),
        ([scale(stop=7)], "unsafe-plan"),
        ([ScaleTensor(file=FILE, name="q", factor=float("nan"))], "unsafe-plan"),
        ([ScaleTensor(file=FILE, name="q", factor=0.0)], "unsafe-plan"),
        ([ScaleTensor(file=FILE, name="counts", factor=2.0)], "scale-type"),
        ([table(rows_before=15)], "stale-plan"),
        ([table(reserved=16)], "unsafe-plan"),
        ([table(reserved=-1)], "unsafe-plan"),
        ([table(rows=2)], "unsafe-plan"),
        (
            [ResizeTable(file=FILE, name="counts", rows_before=7, rows=9, reserved=0, interpolation="tiled")],
            "source-type",
        ),
        ([FillSinusoids(file=FILE, name="k", rows=8, dim=19, layout="halves")], "stale-plan"),
        ([FillSinusoids(file=FILE, name="k", rows=0, dim=20, layout="halves")], "unsafe-plan"),
        ([FillSinusoids(file=FILE, name="k", rows=8, dim=20, layout="halves", rows_kept=9)], "unsafe-plan"),
        ([FillSinusoids(file=FILE, name="k", rows=8, dim=20, layout="halves", rows_kept=-1)], "unsafe-plan"),
        (
            [FillSinusoids(file=FILE, name="k", rows=8, dim=20, layout="halves", rows_kept=4, positions_per_row=0.5)],
            "unsafe-plan",
        ),
        ([PutTensor(file=FILE, name="__metadata__", values=(1.0,))], "unsafe-plan"),
        ([PutTensor(file=FILE, name="p", values=(1e39,))], "unsafe-plan"),
        ([PLAIN, DropTensor(file=FILE, name="q")], "unsafe-plan"),
        ([WAVES, WAVES], "unsafe-plan"),
        ([PLAIN, ScaleTensor(file=FILE, name="q", factor=2.0, added_one=True)], "unsafe-plan"),
        ([scale(), scale(upper=20, axis=1)], "unsafe-plan"),
    ],
)
def test_changes_that_no_plan_holds_are_refused_before_anything_is_written(
    changes: list[TensorChange], code: str, tmp_path: Path
) -> None:
    with pytest.raises(CtxextendError) as caught:
        rewrite(tmp_path, model(), changes)
    assert caught.value.code == code
    assert caught.value.hint
    assert not (tmp_path / "out.safetensors").exists()


def test_a_factor_that_is_no_power_of_two_for_scales_that_are(tmp_path: Path) -> None:
    tensors = {"s": torch.tensor([127], dtype=torch.uint8).view(DTYPES["F8_E8M0"])}
    with pytest.raises(RefusedError) as caught:
        rewrite(tmp_path, tensors, [ScaleTensor(file=FILE, name="s", factor=1.3)])
    assert (caught.value.code, caught.value.found) == ("scale-type", "1.3")


def test_a_file_that_shares_blocks_is_changed_and_its_source_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system clones: here by a copy that stands in for it."""

    def clone(source: Path, target: Path) -> bool:
        target.write_bytes(source.read_bytes())
        return True

    monkeypatch.setattr(rewriting, "clone", clone)
    monkeypatch.setattr(copying, "clone", clone)
    for number, mode in enumerate(("auto", "reflink", "hardlink")):
        _found, made = rewrite(tmp_path, model(), [PLAIN], mode, out=f"{number}.safetensors")  # type: ignore[arg-type]
        expected = model() | {"q": model()["q"] * 2}
        assert {name: bits(t) for name, t in made.items()} == {name: bits(t) for name, t in expected.items()}


def test_shared_blocks_alone_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "clone", lambda _source, _target: False)
    with pytest.raises(OutputError) as caught:
        rewrite(tmp_path, model(), [PLAIN], "reflink")
    assert caught.value.code == "no-reflink"


def test_a_link_to_the_source_is_followed(tmp_path: Path) -> None:
    save_file(model(), tmp_path / "blob")
    (tmp_path / FILE).symlink_to(tmp_path / "blob")
    rewrite_file(tmp_path / FILE, tmp_path / "out", [PLAIN], mode="symlink", progress=lambda _done: None)
    assert not (tmp_path / "out").is_symlink()
    assert torch.equal(load_file(tmp_path / "out")["q"], model()["q"] * 2)
    assert torch.equal(load_file(tmp_path / FILE)["q"], model()["q"])


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    for change in (PLAIN, DropTensor(file=FILE, name="k")):
        with pytest.raises(FileExistsError):
            rewrite(tmp_path, model(), [change])
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("elements", [1, 50, 1 << 20])
def test_a_reader_sees_what_is_written(elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctxextend.tensors.quantise import Scratch

    monkeypatch.setattr(rewriting, "BLOCK_ELEMENTS", elements)
    tensors = model(torch.float32) | {"table": torch.randn(10, 4), "waves": torch.randn(3, 6)}
    columns = Slice(lower=0, upper=20, period=5, start=1, stop=3)
    more = (
        ScaleTensor(file=FILE, name="k", factor=1.7, slices=(columns,), axis=1),
        ScaleTensor(file=FILE, name="norm", factor=1.7, added_one=True),
    )
    _found, made = rewrite(tmp_path, tensors, (*CHANGED, *more))
    weights = open_weights(tmp_path, [FILE], (*CHANGED, *more))
    assert weights.tensors.keys() == made.keys()
    with Reader(weights) as reader:
        for name, good in made.items():
            assert weights.tensor(name).shape == tuple(good.shape)
            if good.dtype == torch.int32 or not good.numel():
                continue
            rows = np.random.default_rng(1).permutation(len(good))
            found = reader.numbers(name, rows, Scratch())
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, good[rows].float(), rtol=3e-7, atol=1e-7)


def exported(folder: Path, layout: Layout, changes: Sequence[TensorChange], outtype: str = "f32") -> Any:
    """One tensor of a GGUF file made of the checkpoint with changes, as the gguf package reads it."""
    output = Output(path=folder / "out.gguf", outtype=outtype, keys=())
    write_gguf([output], [layout], open_weights(folder, [FILE], changes), progress=lambda _done: None)
    (tensor,) = GGUFReader(folder / "out.gguf").tensors
    return np.array(tensor.data)


@pytest.mark.parametrize("operations", [(), (PairRows(heads=2),)])
@pytest.mark.parametrize("outtype", ["f16", "f32"])
def test_an_export_computes_what_changes(outtype: str, operations: tuple[PairRows, ...], tmp_path: Path) -> None:
    """Also where the type stays, so that an unchanged tensor would be copied."""
    matrix = torch.randn(24, 8).half()
    save_file({"w": matrix}, tmp_path / FILE)
    part = Slice(lower=0, upper=24, period=12, start=4, stop=10)
    layout = Layout(name="w.weight", shape=(24, 8), sources=("w",), operations=operations)
    change = ScaleTensor(file=FILE, name="w", factor=1.37, slices=(part,))
    good = matrix.float()
    good[[row for row in range(24) if 4 <= row % 12 < 10]] *= 1.37
    if operations:
        good = good.reshape(2, 2, 6, 8).swapaxes(1, 2).reshape(24, 8)
    found = exported(tmp_path, layout, [change], outtype)
    np.testing.assert_array_equal(found, (good.half() if outtype == "f16" else good).numpy())


def test_an_export_takes_the_new_shape(tmp_path: Path) -> None:
    table = torch.randn(6, 32)
    save_file({"p": table}, tmp_path / FILE)
    change = ResizeTable(file=FILE, name="p", rows_before=6, rows=10, reserved=2, interpolation="tiled")
    layout = Layout(name="position_embd.weight", shape=(10, 32), sources=("p",))
    good = torch.cat((table, table[2:]))
    np.testing.assert_array_equal(exported(tmp_path, layout, [change]), good.numpy())


def test_an_export_multiplies_by_the_changed_scales(tmp_path: Path) -> None:
    matrix, scales = torch.randn(256, 128).to(torch.float8_e4m3fn), torch.rand(2, 1)
    save_file({"w": matrix, "w_scale_inv": scales}, tmp_path / FILE)
    part = Slice(lower=0, upper=2, period=2, start=1, stop=2)
    change = ScaleTensor(file=FILE, name="w_scale_inv", factor=1.5, slices=(part,))
    good = matrix.float() * (scales * torch.tensor([[1], [1.5]])).repeat_interleave(128, 0)
    found = exported(tmp_path, Layout(name="w.weight", shape=(256, 128), sources=("w",)), [change])
    np.testing.assert_array_equal(found, good.numpy())


def test_an_export_misses_what_is_dropped(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 2)}, tmp_path / FILE)
    with pytest.raises(CtxextendError) as caught:
        exported(tmp_path, Layout(name="w.weight", shape=(2, 2), sources=("w",)), [DropTensor(file=FILE, name="w")])
    assert caught.value.code == "missing-tensor"


MEASURED = """
import sys
from pathlib import Path
from ctxextend.changes import ResizeTable, ScaleTensor, Slice
from ctxextend.tensors import threads
from ctxextend.tensors.rewriting import rewrite_file
threads.THREADS = 2
source = Path(sys.argv[1])
part = Slice(lower=0, upper=1024, period=2, start=0, stop=1)
change = {
    "rows": ScaleTensor(file="a", name="w", factor=1.5),
    "columns": ScaleTensor(file="a", name="w", factor=1.5, slices=(part,), axis=1),
    "table": ResizeTable(file="a", name="w", rows_before=49152, rows=50000, reserved=0, interpolation="cubic"),
}[sys.argv[2]]
rewrite_file(source, source.with_name("out"), [change], mode="copy", progress=lambda count: None)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel doesn't say how much memory was held")
@pytest.mark.parametrize("what", ["rows", "columns", "table"])
def test_a_tensor_is_never_held(what: str, tmp_path: Path) -> None:
    """96 MiB in half precision, by way of a sparse file, in no more than that with all of Python."""
    header = json.dumps({"w": {"dtype": "F16", "shape": [49152, 1024], "data_offsets": [0, 3 << 25]}}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    with (tmp_path / "a").open("r+b") as handle:
        handle.truncate(8 + len(header) + (3 << 25))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "a"), what], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 120
