"""Results as they come, and going on after a run was cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctxextend.errors import RefusedError
from ctxextend.lab.ledger import NAME, Ledger
from ctxextend.lab.results import (
    Bin,
    PositionCell,
    PositionResult,
    Result,
    RetrievalCell,
    RetrievalResult,
    ShortCell,
    ShortResult,
    SlidingCell,
    SlidingResult,
)

IDENTITY = {"checkpoint": "abc", "seed": 1}

RESULTS: tuple[Result, ...] = (
    PositionResult(
        cell=PositionCell(document="emma", length=64, window=0, trained=32),
        bins=(Bin(start=0, end=32, count=31, nats=90.5),),
        within=Bin(start=32, end=64, count=31, nats=88.25),
    ),
    SlidingResult(cell=SlidingCell(document="emma", length=64, stride=8, start=16), count=8, nats=20.25),
    RetrievalResult(
        cell=RetrievalCell(kind="passkey", length=64, depth=0.5, sample=0),
        asked=1,
        found=1,
        expected=("71432",),
        answer=" 71432.\n",
    ),
    ShortResult(
        cell=ShortCell(document="emma", length=64, window=0), count=63, nats=1.0, nats_against=2.0, kl=0.1, same_top=60
    ),
)


def filled(folder: Path) -> Path:
    ledger = Ledger(folder, IDENTITY)
    for result in RESULTS:
        ledger.add(result)
    ledger.close()
    return folder / NAME


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    filled(tmp_path)
    ledger = Ledger(tmp_path, IDENTITY)
    assert ledger.results == {result.cell: result for result in RESULTS}
    ledger.close()


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_that_broke_off_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    ledger = Ledger(tmp_path, IDENTITY)
    assert list(ledger.results) == [result.cell for result in RESULTS[:-1]]
    ledger.add(RESULTS[-1])
    ledger.close()
    again = Ledger(tmp_path, IDENTITY)
    assert len(again.results) == len(RESULTS)
    again.close()


def test_a_header_that_broke_off_begins_anew(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:10])
    ledger = Ledger(tmp_path, IDENTITY)
    assert not ledger.results
    ledger.add(RESULTS[0])
    ledger.close()
    assert len(path.read_bytes().splitlines()) == 2


def test_results_of_another_run_are_refused_and_stay(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before = path.read_bytes()
    with pytest.raises(RefusedError) as error:
        Ledger(tmp_path, {**IDENTITY, "seed": 2})
    assert (error.value.key, error.value.expected, error.value.found) == ("seed", "2", "1")
    assert path.read_bytes() == before
    ledger = Ledger(tmp_path, {**IDENTITY, "seed": 2}, anew=True)
    assert not ledger.results
    ledger.close()


@pytest.mark.parametrize("content", [b'{"schema": "other"}\n', b"[1]\n", b"hello\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(RefusedError):
        Ledger(tmp_path, IDENTITY)
    assert (tmp_path / NAME).read_bytes() == content


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(None, IDENTITY)
    ledger.add(RESULTS[0])
    ledger.close()
    assert list(ledger.results) == [RESULTS[0].cell]
    assert not list(tmp_path.iterdir())
