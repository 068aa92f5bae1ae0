"""Questions that take more than finding: variables that hand a value on, and the commonest words of a long list.

After RULER (Hsieh et al., arXiv 2404.06654, section 3: multi-hop tracing and aggregation), in its completion
form with one worked example. Wording and words are our own, so rates are not to be held against those of its tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from ctxextend.lab.engines.base import Engine
from ctxextend.lab.names import RetrievalTask
from ctxextend.lab.prompts import FILLER, Draws, Plant, Prompt, assemble, too_short
from ctxextend.lab.results import RetrievalCell, Settings

#: Tokens kept for the answer: five names or words, spelled out by a tokenizer that knows none of them.
RESERVE: Final = 64

#: A chain is a value and so many variables (RULER: 4 hops).
CHAIN: Final = 5
VALUE_DIGITS: Final = 5
VARIABLES_HEAD: Final = (
    "Variables are hidden in this text. Some are given a value, others are given what another has.\n\n"
    "VAR KOBA = 31415. VAR TIRU = VAR KOBA. VAR NEFO = VAR TIRU.\n\n"
    "Question: Which 3 variables have the value 31415?\nAnswer: KOBA, TIRU, NEFO\n\n"
)

#: So many common words are asked for. RULER lists common words 30 times and rare ones 3 times.
COMMON: Final = 5
COMMON_TIMES: Final = 30
RARE_TIMES: Final = 3
FEWEST_TIMES: Final = 2 * RARE_TIMES
WORDS_HEAD: Final = (
    "Some words are listed more often than others.\n\n"
    "Words: katofi, bulema, rosadi, katofi, bulema, mipoga, katofi, bulema, dulavo, katofi, bulema\n\n"
    "Question: Which 2 words are listed most often?\nAnswer: katofi, bulema\n\n"
    "Words:"
)
WORDS_QUESTION: Final = f"\n\nQuestion: Which {COMMON} words are listed most often?\nAnswer:"

CONSONANTS: Final = "bdfgklmnprstvz"
VOWELS: Final = "aeiou"


def variables_cells(settings: Settings) -> tuple[RetrievalCell, ...]:
    """A cell for each length and sample."""
    return _cells("variables", settings)


def words_cells(settings: Settings) -> tuple[RetrievalCell, ...]:
    """A cell for each length and sample."""
    return _cells("words", settings)


def variables_prompt(engine: Engine, cell: RetrievalCell, settings: Settings) -> Prompt:
    """One chain: a value, the variable that it is given to, and four that take it from one another, in this order.

    Each stands at a drawn place of its own part of the filler. Raises :class:`UsageError` for too short a length.
    """
    draws = Draws(settings.seed, cell.kind, cell.length, cell.sample)
    names = [word.upper() for word in _made_up(draws, CHAIN, syllables=2, but={"koba", "tiru", "nefo"})]
    value = draws.digits(VALUE_DIGITS)
    sources = [value, *(f"VAR {name}" for name in names)]
    plants = [
        Plant(depth=(index + draws.below(1000) / 1000) / CHAIN, text=f"\n\nVAR {name} = {source}.\n\n")
        for index, (name, source) in enumerate(zip(names, sources, strict=False))
    ]
    filler = engine.encode(FILLER)
    tokens = assemble(
        engine,
        cell.length,
        head=VARIABLES_HEAD,
        filler=filler,
        whole=len(filler),
        plants=plants,
        question=f"\n\nQuestion: Which {CHAIN} variables have the value {value}?\nAnswer:",
        reserve=RESERVE,
    )
    return Prompt(tokens=tokens, reserve=RESERVE, expected=tuple(names))


def words_prompt(engine: Engine, cell: RetrievalCell, settings: Settings) -> Prompt:
    """A shuffled list: the common words 30 times each, or as often as half of the room allows, the rest rare ones.

    The few tokens that are left over between the list and the question hold filler. Raises :class:`UsageError` where
    the common words can't be listed twice as often as the rare ones.
    """
    label = (settings.seed, cell.kind, cell.length, cell.sample)
    head, last = engine.encode(WORDS_HEAD), engine.encode(WORDS_QUESTION)
    fixed = len(engine.facts.opening) + len(head) + len(last) + RESERVE
    room = cell.length - fixed
    common = _made_up(Draws(*label, "common"), COMMON, syllables=3)
    once = len(engine.encode(_listed(common)))
    times = min(COMMON_TIMES, room // 2 // once)
    if times < FEWEST_TIMES:
        raise too_short(cell.length, fixed + 2 * FEWEST_TIMES * once)

    def listed(rare: int) -> list[int]:
        others = _made_up(Draws(*label, "rare"), rare, syllables=3, but=set(common))
        return engine.encode(_listed(Draws(*label, "order").shuffled(common * times + others * RARE_TIMES)))

    # How many rare words fit is known once they are encoded: first a guess by the size of the common ones, corrected
    # by what it came to and a little less, then less still until they fit.
    rare = (room - times * once) * COMMON // (once * RARE_TIMES)
    rare = rare * (room - times * once) // max(1, len(listed(rare)) - times * once)
    rare -= rare // 500
    while len(body := listed(rare)) > room:
        rare -= 1 + (len(body) - room) * COMMON // (once * RARE_TIMES)
    filler = engine.encode(FILLER)
    left = room - len(body)
    padding = (filler * (left // len(filler) + 1))[:left]
    tokens = (*engine.facts.opening, *head, *body, *padding, *last)
    return Prompt(tokens=tokens, reserve=RESERVE, expected=tuple(common))


def found_words(answer: str, expected: Iterable[str]) -> int:
    """How many of the words stand in the answer, none of them a part of a longer one."""
    return len(set(expected) & set(re.findall(r"\w+", answer)))


def _cells(kind: RetrievalTask, settings: Settings) -> tuple[RetrievalCell, ...]:
    return tuple(
        RetrievalCell(kind=kind, length=length, depth=None, sample=sample)
        for length in settings.lengths
        for sample in range(settings.samples)
    )


def _made_up(draws: Draws, count: int, *, syllables: int, but: Iterable[str] = ()) -> list[str]:
    """Different words of syllables like "ka": there are 4,900 of two and 343,000 of three."""
    seen, words = set(but), list[str]()
    while len(words) < count:
        word = "".join(
            CONSONANTS[draws.below(len(CONSONANTS))] + VOWELS[draws.below(len(VOWELS))] for _ in range(syllables)
        )
        if word not in seen:
            seen.add(word)
            words.append(word)
    return words


def _listed(words: Sequence[str]) -> str:
    return "".join(f" {word}," for word in words)
