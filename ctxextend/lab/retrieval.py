"""What was planted in a long text, does it come back? A pass key in a filler, several needles in a novel.

The pass key is that of Mohtashami and Jaggi (arXiv 2305.16300, section 4.2): a number told in the middle of
repeated sentences and asked for at the end. The needles are several facts in a document, all asked for at once
(several keys, several queries; RULER, arXiv 2404.06654, section 3). Prompts end where the answer begins, so that base
and instruct models are asked alike; wording is our own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ctxextend.errors import UsageError
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.intervals import wilson
from ctxextend.lab.names import RetrievalTask
from ctxextend.lab.prompts import FILLER, Draws, Plant, Prompt, assemble
from ctxextend.lab.results import Rate, RetrievalCell, RetrievalResult, Settings
from ctxextend.lab.ruler import found_words, variables_prompt, words_prompt

#: Tokens kept for the answer: the key and a few words; a city, seven digits and what stands between for each needle.
PASSKEY_RESERVE: Final = 16
NEEDLE_RESERVE: Final = 20
PASSKEY_DIGITS: Final = 5
NEEDLE_DIGITS: Final = 7

PASSKEY_HEAD: Final = "A pass key is hidden in this text. Find it and remember it.\n\n"
PASSKEY_QUESTION: Final = "\n\nWhat is the pass key? The pass key is"
NEEDLES_HEAD: Final = "Some magic numbers are hidden in this text. Find them and remember them.\n\n"

CITIES: Final = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Moscow", "Cairo", "Tokyo", "Delhi", "Sydney", "Boston",
    "Chicago", "Dallas", "Oslo", "Dublin", "Lisbon", "Prague", "Athens", "Lima", "Havana", "Toronto", "Seoul",
    "Bangkok", "Warsaw", "Stockholm", "Denver", "Miami", "Geneva", "Naples", "Venice", "Milan",
)  # fmt: skip


def passkey_cells(settings: Settings) -> tuple[RetrievalCell, ...]:
    """A cell for each length, depth and sample, deepest first: what stands before the key is the longest then."""
    return tuple(
        RetrievalCell(kind="passkey", length=length, depth=depth, sample=sample)
        for length in settings.lengths
        for depth in sorted(set(settings.depths), reverse=True)
        for sample in range(settings.samples)
    )


def needle_cells(settings: Settings) -> tuple[RetrievalCell, ...]:
    """A cell for each length and sample; the needles of one stand all over the text."""
    return tuple(
        RetrievalCell(kind="needles", length=length, depth=None, sample=sample)
        for length in settings.lengths
        for sample in range(settings.samples)
    )


def measure_retrieval(
    engine: Engine, cell: RetrievalCell, settings: Settings, tokens: Mapping[str, Sequence[int]]
) -> RetrievalResult:
    """Asks one question, of any kind. ``tokens``: the documents, in which needles are hidden."""
    prompt = PROMPTS[cell.kind](engine, cell, settings, tokens)
    answer = engine.decode(engine.generate(prompt.tokens, prompt.reserve))
    count = found_numbers if cell.kind in ("passkey", "needles") else found_words
    return RetrievalResult(
        cell=cell,
        asked=len(prompt.expected),
        found=count(answer, prompt.expected),
        expected=prompt.expected,
        answer=answer,
    )


def rates(results: Iterable[RetrievalResult]) -> tuple[Rate, ...]:
    """By kind (in the order they come), length and depth; depth None, over all of them, stands first.

    The interval takes each thing asked for as a sample of its own, also where one prompt asks for several.
    """
    sums: defaultdict[tuple[RetrievalTask, int, float | None], list[int]] = defaultdict(lambda: [0, 0])
    kinds: dict[RetrievalTask, int] = {}
    for result in results:
        cell = result.cell
        kinds.setdefault(cell.kind, len(kinds))
        for depth in {None, cell.depth}:
            sums[cell.kind, cell.length, depth][0] += result.found
            sums[cell.kind, cell.length, depth][1] += result.asked
    found_rates = []
    for (kind, length, depth), (found, asked) in sorted(
        sums.items(), key=lambda item: (kinds[item[0][0]], item[0][1], -1.0 if item[0][2] is None else item[0][2])
    ):
        low, high = wilson(found, asked)
        found_rates.append(
            Rate(
                kind=kind,
                length=length,
                depth=depth,
                asked=asked,
                found=found,
                rate=found / asked,
                low=low,
                high=high,
            )
        )
    return tuple(found_rates)


def passkey_prompt(engine: Engine, cell: RetrievalCell, settings: Settings) -> Prompt:
    """The key told twice in the middle of the filler, at the end of a sentence."""
    key = Draws(settings.seed, cell.kind, cell.length, cell.depth, cell.sample).digits(PASSKEY_DIGITS)
    told = Plant(depth=cell.depth or 0.0, text=f"\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n")
    filler = engine.encode(FILLER)
    tokens = assemble(
        engine,
        cell.length,
        head=PASSKEY_HEAD,
        filler=filler,
        whole=len(filler),
        plants=[told],
        question=PASSKEY_QUESTION,
        reserve=PASSKEY_RESERVE,
    )
    return Prompt(tokens=tokens, reserve=PASSKEY_RESERVE, expected=(key,))


def needles_prompt(
    engine: Engine, cell: RetrievalCell, settings: Settings, tokens: Mapping[str, Sequence[int]]
) -> Prompt:
    """Facts as paragraphs of their own in the longest document, one at a drawn place of each of equal parts of it."""
    if not any(tokens.values()):
        raise UsageError("needles need a document to be hidden in", code="no-text", hint="give a text with --text")
    if not 1 <= settings.needles <= len(CITIES):
        raise UsageError(
            "too many or too few needles",
            code="needles",
            expected=f"1 to {len(CITIES)}",
            found=str(settings.needles),
            hint="ask for 4",
        )
    draws = Draws(settings.seed, cell.kind, cell.length, cell.depth, cell.sample)
    count = settings.needles
    cities = draws.sample(CITIES, count)
    numbers = [draws.digits(NEEDLE_DIGITS) for _ in cities]
    plants = [
        Plant(
            depth=(index + draws.below(1000) / 1000) / count,
            text=f"\n\nThe magic number of {city} is {number}.\n\n",
        )
        for index, (city, number) in enumerate(zip(cities, numbers, strict=True))
    ]
    asked = draws.sample(cities, count)
    reserve = NEEDLE_RESERVE * count
    built = assemble(
        engine,
        cell.length,
        head=NEEDLES_HEAD,
        filler=max(tokens.values(), key=len),
        whole=1,
        plants=plants,
        question=needles_question(asked),
        reserve=reserve,
    )
    return Prompt(tokens=built, reserve=reserve, expected=tuple(numbers[cities.index(city)] for city in asked))


def needles_question(cities: Sequence[str]) -> str:
    """Asks for all numbers; the answer goes on from the first city's."""
    return f"\n\nWhat are the magic numbers of {', '.join(cities)}?\n\nAnswer: The magic number of {cities[0]} is"


def found_numbers(answer: str, expected: Sequence[str]) -> int:
    """How many of the numbers stand in the answer, none of them a part of a longer one."""
    return len(set(expected) & set(re.findall(r"\d+", answer)))


#: How each kind of question is put, from the engine, the cell, the settings and the documents' tokens.
PROMPTS: Final[
    Mapping[RetrievalTask, Callable[[Engine, RetrievalCell, Settings, Mapping[str, Sequence[int]]], Prompt]]
] = {
    "passkey": lambda engine, cell, settings, _tokens: passkey_prompt(engine, cell, settings),
    "needles": needles_prompt,
    "variables": lambda engine, cell, settings, _tokens: variables_prompt(engine, cell, settings),
    "words": lambda engine, cell, settings, _tokens: words_prompt(engine, cell, settings),
}
