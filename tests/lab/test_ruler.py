"""Variable tracking and word extraction: prompts of an exact length that have one right answer."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from ctxextend.errors import UsageError
from ctxextend.lab.names import RetrievalTask
from ctxextend.lab.results import RetrievalCell, Settings
from ctxextend.lab.retrieval import measure_retrieval
from ctxextend.lab.ruler import (
    CHAIN,
    COMMON,
    COMMON_TIMES,
    RARE_TIMES,
    RESERVE,
    VARIABLES_HEAD,
    WORDS_HEAD,
    WORDS_QUESTION,
    found_words,
    variables_cells,
    variables_prompt,
    words_cells,
    words_prompt,
)
from tests.lab.toy_engine import BEGINNING, ToyEngine

SETTINGS = Settings(tasks=("variables", "words"), lengths=(1024, 1500), samples=2)


def cell(kind: RetrievalTask, length: int, sample: int = 0) -> RetrievalCell:
    return RetrievalCell(kind=kind, length=length, depth=None, sample=sample)


def test_cells_are_by_length_and_sample() -> None:
    for kind, cells in (("variables", variables_cells(SETTINGS)), ("words", words_cells(SETTINGS))):
        assert [(one.kind, one.length, one.depth, one.sample) for one in cells] == [
            (kind, length, None, sample) for length in (1024, 1500) for sample in (0, 1)
        ]


# ---------------------------------------------------------------------------------------- variables


def follow(text: str, value: str) -> list[str]:
    """The variables that have ``value``, by carrying out the assignments in the order of the text."""
    values: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
        values[name] = values.get(source, source)
    return [name for name, held in values.items() if held == value]


@pytest.mark.parametrize("length", [700, 1024, 4001])
@pytest.mark.parametrize("opening", [(), (BEGINNING,)])
def test_following_the_assignments_gives_the_expected_variables(length: int, opening: tuple[int, ...]) -> None:
    engine = ToyEngine(opening=opening)
    for sample in range(20):
        prompt = variables_prompt(engine, cell("variables", length, sample), SETTINGS)
        assert len(prompt.tokens) + prompt.reserve == length
        assert prompt.reserve == RESERVE
        text = engine.decode(prompt.tokens)
        assert text.startswith(VARIABLES_HEAD)
        asked = re.search(r"\n\nQuestion: Which 5 variables have the value (\d{5})\?\nAnswer:$", text)
        assert asked is not None
        assert follow(text.removeprefix(VARIABLES_HEAD), asked[1]) == list(prompt.expected)
        assert len(set(prompt.expected)) == CHAIN


def test_the_worked_example_of_the_variables_is_right() -> None:
    assert follow(VARIABLES_HEAD, "31415") == ["KOBA", "TIRU", "NEFO"]
    assert VARIABLES_HEAD.endswith("Which 3 variables have the value 31415?\nAnswer: KOBA, TIRU, NEFO\n\n")


def test_the_chain_stands_all_over_the_text() -> None:
    engine = ToyEngine()
    text = engine.decode(variables_prompt(engine, cell("variables", 16384), SETTINGS).tokens)
    places = [match.start() / len(text) for match in re.finditer(r"\n\nVAR \w+ = (?:VAR )?\w+\.\n\n", text)]
    assert len(places) == CHAIN
    for index, place in enumerate(places):
        assert index / CHAIN - 0.03 <= place <= (index + 1) / CHAIN + 0.03


# -------------------------------------------------------------------------------------------- words


def listed(text: str) -> Counter[str]:
    body = text.removeprefix(WORDS_HEAD).removesuffix(WORDS_QUESTION)
    return Counter(re.findall(r" (\w+),", body))


@pytest.mark.parametrize("length", [1600, 2048, 3001, 20000])
@pytest.mark.parametrize("opening", [(), (BEGINNING,)])
def test_counting_gives_the_expected_words(length: int, opening: tuple[int, ...]) -> None:
    engine = ToyEngine(opening=opening)
    prompt = words_prompt(engine, cell("words", length), SETTINGS)
    assert len(prompt.tokens) + prompt.reserve == length
    text = engine.decode(prompt.tokens)
    assert text.startswith(WORDS_HEAD)
    assert text.endswith(WORDS_QUESTION)
    counts = listed(text)
    assert sorted(word for word, _count in counts.most_common(COMMON)) == sorted(prompt.expected)
    rare = {count for word, count in counts.items() if word not in prompt.expected}
    assert rare == {RARE_TIMES}
    common = {counts[word] for word in prompt.expected}
    assert len(common) == 1
    assert common.pop() >= 2 * RARE_TIMES


def test_a_length_with_too_few_common_words_is_refused() -> None:
    # Half of the list for the common words, each at least twice as often as a rare one, eight bytes each time.
    least = len(WORDS_HEAD) + len(WORDS_QUESTION) + RESERVE + 2 * COMMON * 2 * RARE_TIMES * len(" katofi,")
    words_prompt(ToyEngine(opening=()), cell("words", least), SETTINGS)
    with pytest.raises(UsageError, match="are too few"):
        words_prompt(ToyEngine(opening=()), cell("words", least - 1), SETTINGS)


def test_common_words_come_thirty_times_where_there_is_room() -> None:
    engine = ToyEngine()
    prompt = words_prompt(engine, cell("words", 20000), SETTINGS)
    counts = listed(engine.decode(prompt.tokens))
    assert {counts[word] for word in prompt.expected} == {COMMON_TIMES}
    # Of 20,000 tokens hardly any are filler: a word and its comma are eight bytes.
    assert sum(counts.values()) * 8 > 20000 - len(WORDS_HEAD) - len(WORDS_QUESTION) - RESERVE - 100


class UnevenEngine(ToyEngine):
    """A tokenizer that has tokens of its own for some syllables: words differ in size, as they do in real ones."""

    def encode(self, text: str) -> list[int]:
        return [ord(part[0]) for part in re.findall("[bdfg][aei]|[mn][ou].|.", text, re.DOTALL)]


def test_words_of_different_sizes_fill_the_length_exactly() -> None:
    for length in (1400, 1800, 6000):
        for sample in range(12):
            prompt = words_prompt(UnevenEngine(), cell("words", length, sample), SETTINGS)
            assert len(prompt.tokens) + prompt.reserve == length


def test_the_list_is_mixed() -> None:
    engine = ToyEngine()
    prompt = words_prompt(engine, cell("words", 20000), SETTINGS)
    words = re.findall(r" (\w+),", engine.decode(prompt.tokens).removeprefix(WORDS_HEAD))
    places = [index for index, word in enumerate(words) if word == prompt.expected[0]]
    quarters = Counter(4 * place // len(words) for place in places)
    assert set(quarters) == {0, 1, 2, 3}


def test_the_worked_example_of_the_words_is_right() -> None:
    body, question = WORDS_HEAD.split("\n\nQuestion: ")
    counts = Counter(re.findall(r"\w+", body.split("Words:")[1]))
    top = [word for word, _count in counts.most_common(2)]
    assert counts[top[1]] > counts.most_common(3)[2][1]
    assert question.startswith("Which 2 words are listed most often?\nAnswer: " + ", ".join(top))


def test_samples_and_seeds_have_their_own_words() -> None:
    engine = ToyEngine()
    other = Settings(tasks=(), lengths=(2048,), seed=2)
    expected = {
        words_prompt(engine, cell("words", 2048, sample), chosen).expected
        for sample in (0, 1)
        for chosen in (SETTINGS, other)
    }
    assert len(expected) == 4
    one, two = (words_prompt(engine, cell("words", 2048), SETTINGS) for _ in range(2))
    assert one == two


# ------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (" bado, kelu", 2),
        ("bado bado", 1),
        ("badox, xkelu", 0),
        ("BADO", 0),
        ("1.bado\n2.kelu", 2),
        ("", 0),
    ],
)
def test_a_word_counts_as_a_whole(answer: str, count: int) -> None:
    assert found_words(answer, ["bado", "kelu"]) == count


def test_both_kinds_are_measured_like_the_others() -> None:
    def solve(prompt: str) -> str:
        if prompt.startswith(VARIABLES_HEAD):
            value = re.findall(r"value (\d+)", prompt)[-1]
            return ", ".join(follow(prompt.removeprefix(VARIABLES_HEAD), value))
        return ", ".join(word for word, _count in listed(prompt).most_common(COMMON))

    for kind in ("variables", "words"):
        result = measure_retrieval(ToyEngine(answer=solve), cell(kind, 2048), SETTINGS, {})
        assert (result.asked, result.found) == (5, 5)
        wrong = measure_retrieval(ToyEngine(answer=lambda _: " none of them"), cell(kind, 2048), SETTINGS, {})
        assert (wrong.asked, wrong.found) == (5, 0)
