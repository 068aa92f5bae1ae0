"""What layouts do to numbers, against the definitions in numpy that llama.cpp's converter uses, and their inverses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxextend.errors import CheckpointError
from ctxextend.exports.layout import (
    AddOne,
    HeadRows,
    Operation,
    PairRows,
    Reshape,
    Rows,
    SplitHeads,
    Transpose,
    TransposeHeads,
)
from ctxextend.tensors.operations import Steps, backward, forward, runs

Array = np.ndarray[Any, Any]

HEADS, NOPE, VALUE, LATENT = 3, 4, 2, 5


def paired(array: Array) -> Array:
    """``permute`` of conversion/llama.py."""
    split = array.reshape(HEADS, 2, len(array) // HEADS // 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def parted(array: Array) -> Array:
    """``modify_tensors`` of conversion/gptneox.py."""
    heads = array.reshape(HEADS, 3, -1, *array.shape[1:])
    return np.concatenate([heads[:, part].reshape(-1, *array.shape[1:]) for part in range(3)])


def key_part(array: Array) -> Array:
    """k_b of conversion/deepseek.py."""
    return array.reshape(HEADS, NOPE + VALUE, LATENT)[:, :NOPE].transpose(0, 2, 1)


def value_part(array: Array) -> Array:
    """v_b of conversion/deepseek.py."""
    return array.reshape(HEADS, NOPE + VALUE, LATENT)[:, NOPE:]


LATENT_ROWS = HEADS * (NOPE + VALUE)
CASES: dict[str, tuple[Sequence[Operation], tuple[int, ...], Callable[[Array], Array]]] = {
    "nothing": ((), (6, 4), lambda array: array),
    "rows": ((Rows(start=2, stop=5),), (7, 4), lambda array: array[2:5]),
    "pairs": ((PairRows(heads=HEADS),), (24, 4), paired),
    "pairs of a bias": ((PairRows(heads=HEADS),), (24,), paired),
    "rows, then pairs": ((Rows(start=6, stop=30), PairRows(heads=HEADS)), (40, 4), lambda a: paired(a[6:30])),
    "parts of heads": ((SplitHeads(heads=HEADS, parts=3),), (36, 4), parted),
    "parts of a bias": ((SplitHeads(heads=HEADS, parts=3),), (36,), parted),
    "keys": (
        (HeadRows(heads=HEADS, start=0, stop=NOPE), TransposeHeads(heads=HEADS)),
        (LATENT_ROWS, LATENT),
        key_part,
    ),
    "values": (
        (HeadRows(heads=HEADS, start=NOPE, stop=NOPE + VALUE), Reshape(shape=(HEADS, VALUE, LATENT))),
        (LATENT_ROWS, LATENT),
        value_part,
    ),
    "one more": ((AddOne(),), (7,), lambda array: array + 1.0),
    "a row less": ((Reshape(shape=(6, 4)),), (6, 1, 4), lambda array: array.reshape(6, 4)),
    "a flat one": ((Reshape(shape=(24,)),), (6, 4), lambda array: array.reshape(24)),
    "other rows": ((Reshape(shape=(4, 6)),), (6, 4), lambda array: array.reshape(4, 6)),
    "flat, then pairs": ((Reshape(shape=(24,)), PairRows(heads=HEADS)), (6, 4), lambda a: paired(a.reshape(24))),
    "a row less, then pairs": (
        (Reshape(shape=(12, 4)), PairRows(heads=HEADS)),
        (12, 1, 4),
        lambda array: paired(array.reshape(12, 4)),
    ),
    "columns": ((Transpose(),), (6, 4), lambda array: array.T),
    "columns, then parts": ((Transpose(), SplitHeads(heads=HEADS, parts=3)), (5, 36), lambda array: parted(array.T)),
    "stacked slices": ((Rows(start=1, stop=3), Reshape(shape=(8, 3))), (4, 4, 3), lambda a: a[1:3].reshape(8, 3)),
}
EACH = pytest.mark.parametrize("case", CASES)


def example(case: str) -> tuple[Sequence[Operation], Array, Array]:
    operations, shape, definition = CASES[case]
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return operations, array, definition(array)


@EACH
def test_the_definitions(case: str) -> None:
    operations, array, expected = example(case)
    assert Steps(operations, array.shape).shape == expected.shape
    np.testing.assert_array_equal(forward(operations, array), expected)


@EACH
def test_the_inverse(case: str) -> None:
    operations, array, expected = example(case)
    nothing = np.full(array.shape, -1.0, np.float32)
    backward(operations, expected, nothing)
    kept = nothing != -1
    assert kept.sum() == expected.size
    np.testing.assert_array_equal(nothing[kept], array[kept])


def test_parts_make_a_whole() -> None:
    array = np.arange(LATENT_ROWS * LATENT, dtype=np.float32).reshape(LATENT_ROWS, LATENT)
    whole = np.empty_like(array)
    for case, part in (("keys", key_part), ("values", value_part)):
        backward(CASES[case][0], part(array), whole)
    np.testing.assert_array_equal(whole, array)


@EACH
@given(data=st.data())
def test_any_run_of_rows_is_a_part_of_the_whole(case: str, data: st.DataObject) -> None:
    operations, array, expected = example(case)
    steps = Steps(operations, array.shape)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    rows = steps.source_rows(start, stop)
    np.testing.assert_array_equal(steps.forward(array[rows], start, stop), expected[start:stop])


@EACH
@given(data=st.data())
def test_runs_of_rows_go_back(case: str, data: st.DataObject) -> None:
    operations, array, expected = example(case)
    steps = Steps(operations, array.shape)
    size = steps.unit * data.draw(st.integers(1, len(expected)))
    found = np.full(array.shape, -1.0, np.float32)
    for start in range(0, len(expected), size):
        rows, block = steps.backward(expected[start : start + size], start)
        found[rows] = block
    whole = np.full(array.shape, -1.0, np.float32)
    backward(operations, expected, whole)
    np.testing.assert_array_equal(found, whole)


def test_raw_bytes_are_moved_as_well_as_numbers() -> None:
    array = np.arange(24, dtype=np.uint16).reshape(12, 2)
    np.testing.assert_array_equal(forward((PairRows(heads=3),), array), paired(array))


@pytest.mark.parametrize(
    ("case", "plain", "computes"),
    [
        ("nothing", True, False),
        ("a flat one", True, False),
        ("pairs", False, False),
        ("rows", False, False),
        ("one more", False, True),
    ],
)
def test_what_can_be_copied(case: str, plain: bool, computes: bool) -> None:
    steps = Steps(CASES[case][0], CASES[case][1])
    assert (steps.plain, steps.computes) == (plain, computes)


def test_a_scalar_is_a_row() -> None:
    steps = Steps((), ())
    assert steps.shape == (1,)
    np.testing.assert_array_equal(forward((), np.array(3.0)), [3.0])


@given(st.lists(st.integers(0, 20)))
def test_runs(numbers: list[int]) -> None:
    rows = np.array(numbers, np.int64)
    found = runs(rows)
    assert [first + i for _start, first, count in found for i in range(count)] == numbers
    assert [start for start, _first, _count in found] == [
        sum(count for *_, count in found[:number]) for number in range(len(found))
    ]
    assert all(one + count != other for (_, one, count), (_, other, _) in pairwise(found))


@pytest.mark.parametrize(
    ("operation", "shape"),
    [
        (Rows(start=2, stop=9), (8, 4)),
        (PairRows(heads=3), (9, 4)),
        (SplitHeads(heads=3, parts=3), (12, 4)),
        (HeadRows(heads=3, start=0, stop=5), (12, 4)),
        (HeadRows(heads=3, start=0, stop=2), (13, 4)),
        (TransposeHeads(heads=3), (12,)),
        (Transpose(), (12,)),
        (Reshape(shape=(5, 5)), (6, 4)),
    ],
)
def test_a_shape_that_does_not_fit(operation: Operation, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError) as caught:
        Steps((operation,), shape, name="a.weight")
    assert (caught.value.code, caught.value.key) == ("unexpected-shape", "a.weight")
