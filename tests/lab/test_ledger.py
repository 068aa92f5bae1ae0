"""Results as they come, and going on after a run was cut short."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import pytest

from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.lab.ledger import NAME, Ledger, name_for
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


def test_what_a_cell_took_is_kept_beside_its_result(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, IDENTITY)
    ledger.add(RESULTS[0], tokens=64, seconds=0.1 + 0.2)
    ledger.close()
    (entry,) = Ledger(tmp_path, IDENTITY).entries.values()
    assert (entry.tokens, entry.seconds) == (64, 0.1 + 0.2)


def test_figures_that_are_no_numbers_are_there_again(tmp_path: Path) -> None:
    """A model that breaks past its length gives such figures, and what comes after them is kept all the same."""
    broken = ShortResult(
        cell=ShortCell(document="nan", length=64, window=0),
        count=63,
        nats=math.nan,
        nats_against=math.inf,
        kl=-math.inf,
        same_top=0,
    )
    told = RetrievalResult(
        cell=RetrievalCell(kind="words", length=64, depth=None, sample=0),
        asked=3,
        found=1,
        expected=("nan", "1", "null"),
        answer="inf",
    )
    ledger = Ledger(tmp_path, IDENTITY)
    for result in (broken, told, RESULTS[0]):
        ledger.add(result, seconds=0.25)
    ledger.close()
    again = Ledger(tmp_path, IDENTITY).results
    assert list(again) == [broken.cell, told.cell, RESULTS[0].cell]
    assert repr(again[broken.cell]) == repr(broken)
    assert (again[told.cell], again[RESULTS[0].cell]) == (told, RESULTS[0])
    # Plain JSON, which knows no NaN: other programs read these lines too.
    lines = (tmp_path / NAME).read_bytes().splitlines()
    assert [msgspec.json.decode(line)["result"]["task"] for line in lines[1:]] == ["short", "retrieval", "perplexity"]


@pytest.mark.parametrize("line", [b"{", b'{"result": null}', b"\xff", b""])
def test_a_line_that_is_broken_in_the_middle_is_named_and_nothing_is_lost(tmp_path: Path, line: bytes) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[2] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as error:
        Ledger(tmp_path, IDENTITY)
    assert (error.value.file, error.value.key) == (str(path), "line 3")
    assert "--force" in (error.value.hint or "")
    assert path.read_bytes() == before
    ledger = Ledger(tmp_path, IDENTITY, anew=True)
    ledger.begin()
    ledger.close()
    assert len(path.read_bytes().splitlines()) == 1


def test_a_ledger_that_is_looked_at_writes_nothing(tmp_path: Path) -> None:
    Ledger(tmp_path / "none", IDENTITY).close()
    assert not list(tmp_path.iterdir())
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    before = path.read_bytes()
    # Some of what decides the numbers is enough to look, and what is known must agree.
    assert len(Ledger(tmp_path, {"seed": 1}, partial=True).results) == len(RESULTS) - 1
    with pytest.raises(RefusedError):
        Ledger(tmp_path, {"seed": 2}, partial=True)
    assert not Ledger(tmp_path, IDENTITY, anew=True).results
    assert path.read_bytes() == before


def test_a_link_is_taken_away_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / NAME).symlink_to(tmp_path / "mine")
    ledger = Ledger(tmp_path / "report", IDENTITY, anew=True)
    ledger.add(RESULTS[0])
    ledger.close()
    assert (tmp_path / "mine").read_text() == "mine"
    assert len((tmp_path / "report" / NAME).read_bytes().splitlines()) == 2


def test_one_process_of_several_writes_and_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Ledger(filled(tmp_path).parent, IDENTITY)
    sent: list[list[str]] = []

    def send(lines: list[str]) -> list[str]:
        sent.append(lines)
        return lines

    monkeypatch.setattr("ctxextend.lab.ledger.agreed", send)
    Ledger(tmp_path, IDENTITY)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("ctxextend.lab.ledger.agreed", lambda _lines: sent[0])
    other = Ledger(tmp_path / "other", IDENTITY)
    assert other.entries == first.entries
    other.add(RESULTS[0])
    other.close()
    assert not (tmp_path / "other").exists()


def test_every_label_and_length_has_a_file_of_its_own_with_a_name_that_files_can_have() -> None:
    labels = ("ntk:a=1", "ntk_a=1", "yarn", "長", "x" * 400, "x" * 401, "../up")
    names = {name_for(label, target) for label in labels for target in (1000, 1024, 2048)}
    assert len(names) == 3 * len(labels)
    assert all(re.fullmatch(r"cells-[A-Za-z0-9._-]{1,100}\.jsonl", name) for name in names)
    assert name_for("yarn", 32768).startswith("cells-yarn-32k-")


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


@pytest.mark.parametrize("content", [b'{"schema": "other"}\n', b"[1]\n", b"hello\n", b"hello", b'{"schema": "oth'])
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
