"""Tables of positions resized: values by hand, and properties that the formulas have on paper."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import pytest
import torch

from ctxextend.changes import ResizeTable
from ctxextend.tensors.resizing import resized_rows

Array = np.ndarray[Any, Any]
Kind = Literal["linear", "cubic", "tiled"]

KINDS: Final[tuple[Kind, ...]] = ("linear", "cubic", "tiled")


def resized(table: Array, rows: int, kind: Kind, reserved: int = 0, step: int | None = None) -> Array:
    """The whole table, in runs of ``step`` rows."""
    change = ResizeTable(file="a", name="w", rows_before=len(table), rows=rows, reserved=reserved, interpolation=kind)
    step = step or rows
    runs = [np.arange(start, min(start + step, rows)) for start in range(0, rows, step)]
    return np.concatenate([resized_rows(lambda wanted: table[wanted], change, run) for run in runs])


def column(*values: float) -> Array:
    return np.array(values, np.float32)[:, None]


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        ("linear", 6, [0, 1, 2, 5, 8, 8]),
        # At 0, 3/5, 6/5, 9/5, 12/5.
        ("linear", 5, [0, 1.2, 3.2, 6.8, 8]),
        ("linear", 2, [0, 5]),
        # Halfway: (-a + 9b + 9c - d) / 16, with 0 - 2 in front of the first row, and 8 + 6 behind the last.
        ("cubic", 6, [0, (2 + 18 - 8) / 16, 2, (18 + 72 - 14) / 16, 8, 8]),
        ("tiled", 7, [0, 2, 8, 0, 2, 8, 0]),
        ("tiled", 2, [0, 2]),
    ],
)
def test_by_hand(kind: Kind, rows: int, expected: list[float]) -> None:
    np.testing.assert_allclose(resized(column(0, 2, 8), rows, kind)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reserved", [0, 1, 2])
@pytest.mark.parametrize("times", [2, 3, 4])
def test_old_positions_are_kept_bit_for_bit(kind: Kind, reserved: int, times: int) -> None:
    table = np.random.default_rng(0).standard_normal((reserved + 9, 5), np.float32)
    table[-1, 0], table[reserved + 3, 1] = np.inf, -0.0
    found = resized(table, reserved + 9 * times, kind, reserved)
    assert found.dtype == np.float32
    assert found[:reserved].tobytes() == table[:reserved].tobytes()
    kept = found[reserved : reserved + 9] if kind == "tiled" else found[reserved::times]
    assert kept.tobytes() == table[reserved:].tobytes()


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("rows", [5, 12, 17, 40])
def test_straight_lines_stay_straight_up_to_the_last_row(kind: Kind, rows: int) -> None:
    old = np.arange(8)
    table = np.stack((3 - 2 * old, 0.25 * old), axis=1).astype(np.float32)
    at = np.minimum(np.arange(rows) * 8 / rows, 7)
    np.testing.assert_allclose(
        resized(table, rows, kind), np.stack((3 - 2 * at, 0.25 * at), axis=1), rtol=1e-6, atol=1e-6
    )


def test_cubic_is_keys_convolution_as_torch_has_it_but_for_its_constant() -> None:
    """torch has a = -3/4; half way, the distance to the straight line grows with a: 3/32 of four rows, for our 1/16."""
    table = np.random.default_rng(1).standard_normal((12, 1), np.float32)
    sharp = torch.nn.functional.interpolate(
        torch.from_numpy(table.reshape(1, 1, 12, 1)), size=(23, 1), mode="bicubic", align_corners=True
    ).reshape(-1)
    # The last of ours is past the last old row.
    ours, straight = resized(table, 24, "cubic")[:-1, 0], resized(table, 24, "linear")[:-1, 0]
    inner = np.arange(3, 19, 2)
    np.testing.assert_allclose((sharp.numpy() - straight)[inner] / 1.5, (ours - straight)[inner], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 3, 7])
def test_any_run_of_rows_is_the_same(kind: Kind, step: int) -> None:
    table = np.random.default_rng(2).standard_normal((11, 3), np.float32)
    np.testing.assert_array_equal(resized(table, 29, kind, 2, step), resized(table, 29, kind, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_one_old_position_is_all_that_there_is(kind: Kind) -> None:
    assert resized(column(9, 4), 5, kind, reserved=1)[:, 0].tolist() == [9, 4, 4, 4, 4]


def test_two_old_positions() -> None:
    np.testing.assert_allclose(resized(column(1, 2), 8, "cubic")[:, 0], [1, 1.25, 1.5, 1.75, 2, 2, 2, 2], rtol=1e-6)


def test_a_run_reads_few_rows() -> None:
    read: list[Array] = []

    def rows(wanted: Array) -> Array:
        read.append(wanted)
        return np.zeros((len(wanted), 2), np.float32)

    change = ResizeTable(file="a", name="w", rows_before=1000, rows=4000, reserved=0, interpolation="cubic")
    resized_rows(rows, change, np.arange(2000, 2040))
    (wanted,) = read
    assert wanted.tolist() == list(range(499, 512))
