"""The pass key and the needles: prompts of an exact length, what stands in them, and what counts as found."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from ctxextend.errors import UsageError
from ctxextend.lab.names import RetrievalTask
from ctxextend.lab.prompts import FILLER, Draws
from ctxextend.lab.results import RetrievalCell, RetrievalResult, Settings
from ctxextend.lab.retrieval import (
    CITIES,
    NEEDLE_RESERVE,
    NEEDLES_HEAD,
    PASSKEY_HEAD,
    PASSKEY_QUESTION,
    PASSKEY_RESERVE,
    PROMPTS,
    found_numbers,
    measure_retrieval,
    needle_cells,
    needles_prompt,
    passkey_cells,
    passkey_prompt,
    rates,
)
from tests.lab.toy_engine import BEGINNING, ToyEngine

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {"small": list(b"tiny"), "novel": list(b"She went out. It rained. " * 300)}
LENGTHS = (512, 777, 2048)


def settings(**changed: object) -> Settings:
    values = {"tasks": ("passkey",), "lengths": (1024,), "depths": (0.1, 0.5, 0.9), "samples": 2} | changed
    return Settings(**values)  # type: ignore[arg-type]


def passkey(length: int = 1024, depth: float = 0.5, sample: int = 0) -> RetrievalCell:
    return RetrievalCell(kind="passkey", length=length, depth=depth, sample=sample)


def needles(length: int = 2048, sample: int = 0) -> RetrievalCell:
    return RetrievalCell(kind="needles", length=length, depth=None, sample=sample)


# -------------------------------------------------------------------------------------------- cells


def test_passkey_cells_keep_the_longest_common_beginning() -> None:
    cells = passkey_cells(settings(lengths=(512, 1024), depths=(0.5, 0.1, 0.9)))
    assert [(cell.length, cell.depth, cell.sample) for cell in cells] == [
        (length, depth, sample) for length in (512, 1024) for depth in (0.9, 0.5, 0.1) for sample in (0, 1)
    ]


def test_in_this_order_each_prompt_goes_on_from_the_one_before_up_to_its_key() -> None:
    chosen = settings()
    engine = ToyEngine()
    prompts = [passkey_prompt(engine, cell, chosen).tokens for cell in passkey_cells(chosen)]
    for one, other in pairwise(prompts):
        same = next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        # Counted without the opening token.
        planted = engine.decode(other).index("\n\nThe pass key is")
        assert same - 1 >= planted


def test_needle_cells_have_no_depth() -> None:
    cells = needle_cells(settings(lengths=(512, 1024)))
    assert [(cell.length, cell.depth, cell.sample) for cell in cells] == [
        (length, None, sample) for length in (512, 1024) for sample in (0, 1)
    ]


# ------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("opening", [(), (BEGINNING,), (BEGINNING, BEGINNING)])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_the_passkey_prompt_and_its_answer_fill_the_length_exactly(
    length: int, depth: float, opening: tuple[int, ...]
) -> None:
    engine = ToyEngine(opening=opening)
    prompt = passkey_prompt(engine, passkey(length, depth), settings())
    assert len(prompt.tokens) + PASSKEY_RESERVE == len(prompt.tokens) + prompt.reserve == length
    assert prompt.tokens[: len(opening)] == opening
    assert BEGINNING not in prompt.tokens[len(opening) :]
    text = engine.decode(prompt.tokens)
    (key,) = prompt.expected
    told = f"\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
    assert text.startswith(PASSKEY_HEAD)
    assert text.endswith(PASSKEY_QUESTION)
    assert text.count(key) == 2
    assert re.fullmatch(r"[1-9]\d{4}", key)
    before, after = text.removeprefix(PASSKEY_HEAD).removesuffix(PASSKEY_QUESTION).split(told)
    # Whole sentences before the key; only the filler's end is cut.
    assert before == FILLER * (len(before) // len(FILLER))
    assert after == (FILLER * 99)[: len(after)]
    assert len(before) == pytest.approx(depth * (len(before) + len(after)), abs=len(FILLER))


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_needles_stand_whole_and_spread_over_the_longest_document(length: int, count: int) -> None:
    engine = ToyEngine()
    prompt = needles_prompt(engine, needles(length), settings(needles=count), DOCUMENTS)
    assert len(prompt.tokens) + NEEDLE_RESERVE * count == length
    assert prompt.reserve == NEEDLE_RESERVE * count
    text = engine.decode(prompt.tokens).removeprefix(NEEDLES_HEAD)
    body, question = text.split("\n\nWhat are the magic numbers of ")
    planted = re.findall(r"\n\nThe magic number of (\w+) is (\d{7})\.\n\n", body)
    assert len(dict(planted)) == count
    # Asked for all of them, answered in the order of the question, beginning with the first.
    asked = question.split("?")[0].split(", ")
    assert [dict(planted)[city] for city in asked] == list(prompt.expected)
    assert question.endswith(f"Answer: The magic number of {asked[0]} is")
    # The text between is the document from its beginning, nothing lost.
    rest = re.sub(r"\n\nThe magic number of \w+ is \d{7}\.\n\n", "", body)
    assert rest == ("She went out. It rained. " * 300)[: len(rest)]
    # One in each part of it.
    places = [match.start() for match in re.finditer("\n\nThe magic number", body)]
    for index, place in enumerate(places):
        assert index / count - 0.1 <= place / len(body) <= (index + 1) / count + 0.1


def test_a_short_document_is_repeated() -> None:
    engine = ToyEngine()
    prompt = needles_prompt(engine, needles(), settings(), {"tiny": list(b"abc. ")})
    assert len(prompt.tokens) + prompt.reserve == 2048
    assert "abc. abc. abc. " in engine.decode(prompt.tokens)


@pytest.mark.parametrize("kind", ["passkey", "needles", "variables", "words"])
def test_too_short_a_length_says_what_is_needed(kind: RetrievalTask) -> None:
    cell = RetrievalCell(kind=kind, length=100, depth=0.5 if kind == "passkey" else None, sample=0)
    with pytest.raises(UsageError) as caught:
        PROMPTS[kind](ToyEngine(), cell, settings(), DOCUMENTS)
    assert (caught.value.code, caught.value.found) == ("short-length", "100")
    assert caught.value.expected is not None
    needed = int(re.findall(r"\d+", caught.value.expected)[0])
    changed = RetrievalCell(kind=kind, length=needed, depth=cell.depth, sample=0)
    assert len(PROMPTS[kind](ToyEngine(), changed, settings(), DOCUMENTS).tokens) > 100


@pytest.mark.parametrize("count", [0, len(CITIES) + 1])
def test_needles_have_bounds(count: int) -> None:
    with pytest.raises(UsageError, match="needles") as caught:
        needles_prompt(ToyEngine(), needles(), settings(needles=count), DOCUMENTS)
    assert caught.value.found == str(count)


def test_needles_need_a_document() -> None:
    with pytest.raises(UsageError, match="need a document"):
        needles_prompt(ToyEngine(), needles(), settings(), {"empty": []})


# ------------------------------------------------------------------------------------------- drawing


def test_draws_are_those_of_the_hash() -> None:
    # sha256sum of "1/passkey/1024/0.5/0#1" begins with 16 hex digits that are this number.
    import hashlib

    number = int(hashlib.sha256(b"1/passkey/1024/0.5/0#1").hexdigest()[:16], 16)
    assert Draws(1, "passkey", 1024, 0.5, 0).below(1000) == number % 1000
    assert passkey_prompt(ToyEngine(), passkey(), settings()).expected == (str(10000 + number % 90000),)


def test_every_seed_depth_sample_and_length_has_its_own_key() -> None:
    engine = ToyEngine()
    keys = {
        passkey_prompt(engine, passkey(length, depth, sample), settings(seed=seed)).expected
        for length in (512, 1024)
        for depth in (0.1, 0.9)
        for sample in (0, 1)
        for seed in (1, 2)
    }
    assert len(keys) == 16


def test_a_cell_is_the_same_whatever_was_made_before_it_and_in_another_process() -> None:
    code = (
        "from tests.lab.toy_engine import ToyEngine\n"
        "from tests.lab.test_retrieval import *\n"
        "print(needles_prompt(ToyEngine(), needles(sample=1), settings(), DOCUMENTS).expected)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONHASHSEED": "7"}
    )
    needles_prompt(ToyEngine(), needles(sample=0), settings(), DOCUMENTS)
    again = needles_prompt(ToyEngine(), needles(sample=1), settings(), DOCUMENTS).expected
    assert done.stdout.strip() == str(again)


def test_samples_and_shuffles_hold_everything_once() -> None:
    items = [str(number) for number in range(40)]
    assert sorted(Draws("a").shuffled(items)) == sorted(items)
    assert Draws("a").shuffled(items) != items
    assert len(set(Draws("a").sample(items, 40))) == 40
    assert len({Draws("a", number).below(3) for number in range(50)}) == 3


# ------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (" 12345.", 1),
        (" 12345 and 67890", 2),
        ("12345,12345", 1),
        ("112345", 0),
        ("123456", 0),
        ("0012345", 0),
        ("x12345y", 1),
        ("1 2 3 4 5", 0),
        ("", 0),
    ],
)
def test_a_number_counts_as_a_whole(answer: str, count: int) -> None:
    assert found_numbers(answer, ["12345", "67890"]) == count


def test_the_answer_is_asked_for_with_its_room_and_kept() -> None:
    engine = ToyEngine(answer=lambda _prompt: " 00000 " + "x" * 99)
    result = measure_retrieval(engine, passkey(), settings(), {})
    assert (result.asked, result.found) == (1, 0)
    assert result.answer == " 00000 " + "x" * (PASSKEY_RESERVE - 7)
    assert len(engine.prompts[0]) == 1024 - PASSKEY_RESERVE


def test_what_an_engine_answers_is_counted() -> None:
    assert measure_retrieval(ToyEngine(), passkey(), settings(), {}).found == 1
    found = measure_retrieval(ToyEngine(), needles(), settings(), DOCUMENTS)
    assert (found.asked, found.found) == (4, 4)
    half = ToyEngine(answer=lambda prompt: ", ".join(re.findall(r"\d{7}", prompt)[:2]))
    assert measure_retrieval(half, needles(), settings(), DOCUMENTS).found == 2


# --------------------------------------------------------------------------------------------- rates


def result(cell: RetrievalCell, asked: int, found: int) -> RetrievalResult:
    return RetrievalResult(cell=cell, asked=asked, found=found, expected=("1",) * asked, answer="")


def test_rates_are_by_kind_length_and_depth_and_over_all_depths() -> None:
    found = rates(
        [
            result(needles(2048), 4, 3),
            result(passkey(1024, 0.9), 1, 1),
            result(passkey(1024, 0.1), 1, 0),
            result(passkey(512, 0.1), 1, 1),
            result(passkey(1024, 0.9, sample=1), 1, 1),
            result(needles(2048, sample=1), 4, 0),
        ]
    )
    assert [(rate.kind, rate.length, rate.depth, rate.found, rate.asked) for rate in found] == [
        ("needles", 2048, None, 3, 8),
        ("passkey", 512, None, 1, 1),
        ("passkey", 512, 0.1, 1, 1),
        ("passkey", 1024, None, 2, 3),
        ("passkey", 1024, 0.1, 0, 1),
        ("passkey", 1024, 0.9, 2, 2),
    ]
    assert found[3].rate == pytest.approx(2 / 3)
    # Of 0 in 1 Wilson's upper end is z^2 / (1 + z^2).
    assert (found[4].low, found[4].high) == pytest.approx((0, 3.8415 / 4.8415), abs=1e-4)


def test_no_results_no_rates() -> None:
    nothing: Sequence[RetrievalResult] = ()
    assert rates(nothing) == ()
