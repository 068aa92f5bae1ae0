"""What is measured, as values: cells (the smallest piece of work), their results, and what they add up to.

A cell's result is one JSON line; everything else is computed from those lines, so that a run that was cut
short goes on where it stopped, and numbers of two runs can be put together.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from ctxextend.lab.engines.base import EngineFacts
from ctxextend.lab.names import RetrievalTask, Task

EVAL_SCHEMA: Final = "ctxextend.eval/1"
COMPARE_SCHEMA: Final = "ctxextend.compare/1"

#: A figure of a model that may be broken: null in JSON where it is no number, or none that a float can hold.
Figure = Annotated[float, Meta(extra_json_schema={"or": {"type": "null"}})]

#: A sum of losses of such a model. The lines of a run keep what it is, as a word.
Sum = Annotated[float, Meta(extra_json_schema={"or": {"enum": ["nan", "inf", "-inf"]}})]


class _Cell(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="task"):
    """Common settings: immutable, tagged by ``task``."""


class PositionCell(_Cell, frozen=True, tag="perplexity", kw_only=True):
    """Read ``length`` tokens of a document, beginning at window number ``window`` of that length.

    ``trained``: the tokens that the weights know; what lies past them is read again with no more than that before it.
    """

    document: str
    length: int
    window: int
    trained: int


class SlidingCell(_Cell, frozen=True, tag="sliding", kw_only=True):
    """Score ``stride`` tokens at the end of the window of ``length`` tokens that begins at token ``start``."""

    document: str
    length: int
    stride: int
    start: int


class RetrievalCell(_Cell, frozen=True, tag="retrieval", kw_only=True):
    """One prompt of exactly ``length`` tokens with room for the answer. ``depth``: 0 the beginning, 1 the end.

    ``depth`` is None where several things stand all over the text.
    """

    kind: RetrievalTask
    length: int
    depth: float | None
    sample: int


class ShortCell(_Cell, frozen=True, tag="short", kw_only=True):
    """Read a window with the model and with the one it is held against."""

    document: str
    length: int
    window: int


Cell = PositionCell | SlidingCell | RetrievalCell | ShortCell


class Bin(Struct, frozen=True, kw_only=True):
    """The losses of the tokens at positions ``start`` to ``end`` (end excluded): how many, and their sum in nats."""

    start: int
    end: int
    count: int
    nats: Sum


class PositionResult(Struct, frozen=True, kw_only=True, tag_field="task", tag="perplexity"):
    """``within``: the losses of the tokens past the trained length, read with no more than it; None where none is."""

    cell: PositionCell
    bins: tuple[Bin, ...]
    within: Bin | None


class SlidingResult(Struct, frozen=True, kw_only=True, tag_field="task", tag="sliding"):
    cell: SlidingCell
    count: int
    nats: Sum


class RetrievalResult(Struct, frozen=True, kw_only=True, tag_field="task", tag="retrieval"):
    """``found`` of ``asked`` things stood in the model's ``answer``; ``expected`` names them."""

    cell: RetrievalCell
    asked: int
    found: int
    expected: tuple[str, ...]
    answer: str


class ShortResult(Struct, frozen=True, kw_only=True, tag_field="task", tag="short"):
    """Sums over ``count`` tokens, in nats: both losses, and KL(against || source). ``same_top`` counts tokens."""

    cell: ShortCell
    count: int
    nats: Sum
    nats_against: Sum
    kl: Sum
    same_top: int


Result = PositionResult | SlidingResult | RetrievalResult | ShortResult


class Point(Struct, frozen=True, kw_only=True):
    """The perplexity of predictions at positions ``start`` to ``end`` (tokens, end excluded), over ``count`` tokens."""

    start: int
    end: int
    count: int
    perplexity: Figure


class Curve(Struct, frozen=True, kw_only=True):
    """Perplexity by position at one length. ``whole`` is of all ``length`` tokens.

    ``ratio``: of the tokens past the trained length, over that of the same tokens read with no more than the trained
    length before them; None where the length doesn't go past it. Below 1 the longer context helps.
    """

    length: int
    windows: int
    whole: Figure
    points: tuple[Point, ...]
    ratio: float | None


class Sliding(Struct, frozen=True, kw_only=True):
    """Sliding-window perplexity at a length (YaRN, arXiv 2309.00071, section 4.3.1): ``stride`` tokens a step."""

    length: int
    stride: int
    windows: int
    perplexity: Figure


class Rate(Struct, frozen=True, kw_only=True):
    """How much of what was asked came back, with the 95 % interval. ``depth`` None: over all depths."""

    kind: RetrievalTask
    length: int
    depth: float | None
    asked: int
    found: int
    rate: float
    low: float
    high: float


class Short(Struct, frozen=True, kw_only=True):
    """A model against the one it was made of, within that one's length.

    ``regression``: perplexity over perplexity_against, less one. ``kl``: mean nats a token. ``same_top``: share.
    """

    length: int
    count: int
    perplexity: Figure
    perplexity_against: Figure
    regression: Figure
    kl: Figure
    same_top: float


class Gate(Struct, frozen=True, kw_only=True):
    """A bound and the figure held to it. ``measured`` None: nothing was measured that it could be held to."""

    name: str
    bound: float
    measured: float | None
    ok: bool
    where: str


class Text(Struct, frozen=True, kw_only=True):
    """A document that was read. ``sha256`` is of its UTF-8 bytes, ``tokens`` counts the model's own."""

    name: str
    sha256: str
    tokens: int


class Spectrum(Struct, frozen=True, kw_only=True):
    """One group's frequencies at ``length``, radians a token, as the model has them and ``base`` as it was trained."""

    label: str
    length: int
    inv_freq: tuple[float, ...]
    base: tuple[float, ...]
    attention_factor: float


class MemoryAt(Struct, frozen=True, kw_only=True):
    """What a sequence of ``length`` tokens needs beside the weights."""

    length: int
    kv_cache_bytes: int


class Cost(Struct, frozen=True, kw_only=True):
    """What a measurement took. ``tokens`` counts those read."""

    cells: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int | None


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the numbers. Lengths and strides count tokens.

    ``windows``: at most so many of a document at a length. ``samples``: prompts for each length and depth.
    """

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    short_lengths: tuple[int, ...] = ()
    windows: int = 4
    stride: int = 256
    depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    samples: int = 2
    needles: int = 4
    seed: int = 1


class Evaluation(Struct, frozen=True, kw_only=True):
    """The whole answer of ``eval``. ``ok``: no gate was missed."""

    schema: str = EVAL_SCHEMA
    version: str
    ok: bool
    source: str
    against: str | None
    method: str | None
    trained_context: int
    current_context: int
    engine: EngineFacts
    settings: Settings
    texts: tuple[Text, ...]
    curves: tuple[Curve, ...]
    sliding: tuple[Sliding, ...]
    rates: tuple[Rate, ...]
    short: tuple[Short, ...]
    gates: tuple[Gate, ...]
    spectrum: tuple[Spectrum, ...]
    memory: tuple[MemoryAt, ...]
    cost: Cost
    notes: tuple[str, ...]


class Candidate(Struct, frozen=True, kw_only=True):
    """What one method at one factor came to. ``refused`` says why nothing was measured."""

    method: str
    factor: float
    target: int
    refused: str | None
    curves: tuple[Curve, ...]
    rates: tuple[Rate, ...]
    short: tuple[Short, ...]
    spectrum: tuple[Spectrum, ...]
    cost: Cost | None


class Best(Struct, frozen=True, kw_only=True):
    """The method to ship for ``length``, and why."""

    length: int
    method: str
    factor: float
    reason: str


class Comparison(Struct, frozen=True, kw_only=True):
    """The whole answer of ``compare``. ``best`` names a method for each length past the trained one."""

    schema: str = COMPARE_SCHEMA
    version: str
    source: str
    trained_context: int
    engine: EngineFacts
    settings: Settings
    texts: tuple[Text, ...]
    candidates: tuple[Candidate, ...]
    best: tuple[Best, ...]
    cost: Cost
    notes: tuple[str, ...]
