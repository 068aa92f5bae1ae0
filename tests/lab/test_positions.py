"""Perplexity by position, by sliding windows and against the original: worked out by hand on the toy engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ctxextend.errors import RefusedError, UsageError
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.positions import (
    bin_size,
    curve,
    measure_position,
    measure_short,
    measure_sliding,
    position_cells,
    short,
    short_cells,
    sliding,
    sliding_cells,
    tokens_of,
)
from ctxextend.lab.results import (
    Bin,
    PositionCell,
    PositionResult,
    RetrievalCell,
    Settings,
    ShortCell,
    SlidingCell,
    SlidingResult,
)
from tests.lab.toy_engine import BEGINNING, VOCABULARY, ToyEngine, two_then_four


def settings(**changed: object) -> Settings:
    values = {"tasks": ("perplexity",), "lengths": (64, 100), "windows": 2, "stride": 16} | changed
    return Settings(**values)  # type: ignore[arg-type]


TOKENS = {"long": [number % 256 for number in range(250)], "short": list(range(70))}


def of(loss: Callable[[int], float], opening: tuple[int, ...] = ()) -> ToyEngine:
    return ToyEngine(loss=loss, opening=opening)


# ------------------------------------------------------------------------------------ by position


def test_cells_are_the_first_windows_of_each_document_that_fills_one() -> None:
    cells = [(cell.length, cell.document, cell.window) for cell in position_cells(settings(), TOKENS, trained=64)]
    assert cells == [(64, "long", 0), (64, "long", 1), (64, "short", 0), (100, "long", 0), (100, "long", 1)]


@pytest.mark.parametrize(
    ("length", "size"),
    [(1, 32), (64, 32), (1024, 32), (2048, 32), (4096, 64), (8192, 128), (12288, 128), (16384, 256), (131072, 2048)],
)
def test_bins_are_powers_of_two(length: int, size: int) -> None:
    assert bin_size(length) == size


@pytest.mark.parametrize("opening", [(), (BEGINNING,), (BEGINNING, 7, 8)])
def test_the_engine_reads_its_opening_and_then_the_window(opening: tuple[int, ...]) -> None:
    engine = of(lambda _position: 1.0, opening)
    measure_position(engine, TOKENS, PositionCell(document="long", length=100, window=1, trained=100))
    assert engine.sequences == [(*opening, *TOKENS["long"][100 : 200 - len(opening)])]


def test_losses_go_to_the_bin_of_the_position_that_predicts() -> None:
    # 70 tokens: positions 0 to 68 predict, and the loss made at position p is p.
    result = measure_position(of(float), TOKENS, PositionCell(document="short", length=70, window=0, trained=70))
    assert result.bins == (
        Bin(start=0, end=32, count=32, nats=31 * 32 / 2),
        Bin(start=32, end=64, count=32, nats=63 * 64 / 2 - 31 * 32 / 2),
        Bin(start=64, end=70, count=5, nats=64 + 65 + 66 + 67 + 68),
    )


def test_the_opening_itself_is_never_scored() -> None:
    cell = PositionCell(document="short", length=70, window=0, trained=70)
    # One token before the text: it predicts the first of the text, so nothing is lost.
    assert measure_position(of(float, (BEGINNING,)), TOKENS, cell).bins[0].count == 32
    # Three: those at positions 0 and 1 predict only the opening.
    result = measure_position(of(float, (BEGINNING, 1, 2)), TOKENS, cell)
    assert result.bins[0] == Bin(start=0, end=32, count=30, nats=31 * 32 / 2 - 1)
    assert [part.count for part in result.bins] == [30, 32, 5]


def test_a_last_bin_without_predictions_is_left_out() -> None:
    result = measure_position(of(float), TOKENS, PositionCell(document="short", length=65, window=0, trained=65))
    assert [(part.start, part.end, part.count) for part in result.bins] == [(0, 32, 32), (32, 64, 32)]


def test_the_ratio_is_of_the_same_tokens_read_with_no_more_than_the_trained_length() -> None:
    # Perplexity 8 up to 96, 2 up to 128, 4 from there on. Read again in pieces of 128, of which the second half
    # (positions 64 to 127) is scored, the tokens past 128 are met by 8 and by 2 in turn: 4 in the mean.
    engine = of(lambda position: math.log(8) if position < 96 else two_then_four(128)(position))
    tokens = {"text": list(range(256)) * 4}
    cells = position_cells(settings(lengths=(256,), windows=3), tokens, trained=128)
    assert [(cell.window, cell.trained) for cell in cells] == [(0, 128), (1, 128), (2, 128)]
    measured = [measure_position(engine, tokens, cell) for cell in cells]
    # Two pieces: 64 and 63 predictions.
    nats = (32 * math.log(8) + 32 * math.log(2)) + (32 * math.log(8) + 31 * math.log(2))
    again = measured[0].within
    assert again is not None
    assert (again.start, again.end, again.count) == (128, 256, 127)
    assert again.nats == pytest.approx(nats)
    found = curve(measured, length=256)
    assert found.ratio == pytest.approx(4 / math.exp(nats / 127))
    assert found.windows == 3
    assert [(point.start, point.end, point.count) for point in found.points[-2:]] == [(192, 224, 96), (224, 256, 93)]
    assert [point.perplexity for point in found.points] == pytest.approx([8, 8, 8, 2, 4, 4, 4, 4])
    # 96 predictions of 8, 32 of 2 and 127 of 4.
    assert found.whole == pytest.approx(math.exp((96 * math.log(8) + 32 * math.log(2) + 127 * math.log(4)) / 255))


@pytest.mark.parametrize("opening", [(), (BEGINNING,), (BEGINNING, 7, 8)])
@pytest.mark.parametrize(("length", "trained"), [(200, 64), (130, 64), (250, 96), (100, 65), (97, 63)])
def test_pieces_score_every_token_past_the_trained_length_once(
    length: int, trained: int, opening: tuple[int, ...]
) -> None:
    engine = of(lambda _position: 1.0, opening)
    scored: list[int] = []
    losses = engine.losses

    def record(tokens: list[int], *, first: int = 1) -> list[float]:
        # TOKENS["long"] counts up, so that a token says where it stands.
        assert tuple(tokens[: len(opening)]) == opening
        if len(engine.sequences) > 0:
            scored.extend(tokens[first:])
            assert len(tokens) <= trained + 1
            # At least half of the trained length stands before each token that is scored.
            assert first >= trained - trained // 2
        return losses(tokens, first=first)

    engine.losses = record  # type: ignore[method-assign, assignment]
    cell = PositionCell(document="long", length=length, window=0, trained=trained)
    result = measure_position(engine, TOKENS, cell)
    start = -(-trained // 32) * 32
    # The token predicted at window position p is the document's token p + 1 - len(opening).
    assert scored == [position + 1 - len(opening) for position in range(start, length - 1)]
    assert result.within is not None
    assert result.within.count == sum(part.count for part in result.bins if part.start >= start)


@pytest.mark.parametrize("trained", [100, 99, 97, 1000])
def test_nothing_is_read_again_where_no_bin_lies_past_the_trained_length(trained: int) -> None:
    engine = of(float)
    cell = PositionCell(document="long", length=100, window=0, trained=trained)
    result = measure_position(engine, TOKENS, cell)
    assert result.within is None
    assert len(engine.sequences) == 1
    assert curve([result], length=100).ratio is None


def results(
    length: int, *bins: tuple[int, int, int, float], document: str = "text", within: Bin | None = None
) -> PositionResult:
    return PositionResult(
        cell=PositionCell(document=document, length=length, window=0, trained=64),
        bins=tuple(Bin(start=start, end=end, count=count, nats=nats) for start, end, count, nats in bins),
        within=within,
    )


def test_windows_are_pooled_by_tokens_and_other_lengths_left_out() -> None:
    found = curve(
        [results(64, (0, 32, 30, 30.0)), results(64, (0, 32, 10, 50.0), document="b"), results(32, (0, 32, 31, 999.0))],
        length=64,
    )
    assert found.points[0].perplexity == pytest.approx(math.exp(80 / 40))
    assert found.points[0].count == 40
    assert found.ratio is None


def test_the_bins_past_the_trained_length_are_held_against_what_was_read_again() -> None:
    bins = ((0, 32, 1, 9.0), (32, 64, 1, 1.0), (64, 96, 3, 6.0), (96, 128, 1, 6.0))
    found = curve([results(128, *bins, within=Bin(start=64, end=128, count=4, nats=2.0))], length=128)
    assert found.ratio == pytest.approx(math.exp((6 + 6) / (3 + 1) - 2 / 4))
    # A trained length of 80 straddles the bin from 64 on, which counts on neither side then.
    found = curve([results(128, *bins, within=Bin(start=96, end=128, count=1, nats=2.0))], length=128)
    assert found.ratio == pytest.approx(math.exp(6 - 2))


def test_a_loss_that_no_float_holds_is_infinite() -> None:
    assert curve([results(64, (0, 32, 1, 1e6))], length=64).whole == math.inf


@pytest.mark.parametrize("pool", [lambda: curve([], length=64), lambda: sliding([], length=64)])
def test_nothing_measured_is_an_error(pool: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="nothing was measured at 64 tokens"):
        pool()
    with pytest.raises(UsageError, match="nothing was measured at 64 tokens"):
        short([], length=64)


# --------------------------------------------------------------------------------- sliding window


def test_sliding_windows_begin_at_every_stride() -> None:
    # 250 tokens, windows of 100 every 16: 0, 16, ... 144 are ten.
    cells = sliding_cells(settings(lengths=(100,), windows=100), TOKENS)
    assert [cell.start for cell in cells] == list(range(0, 145, 16))
    assert {cell.document for cell in cells} == {"long"}


def test_few_windows_are_spread_over_the_document() -> None:
    cells = sliding_cells(settings(lengths=(100,), windows=3), TOKENS)
    assert [cell.start for cell in cells] == [0, 3 * 16, 6 * 16]


def test_a_stride_longer_than_the_window_is_the_window() -> None:
    cells = sliding_cells(settings(lengths=(64,), windows=9, stride=256), TOKENS)
    assert [(cell.document, cell.start, cell.stride) for cell in cells] == [
        ("long", 0, 64),
        ("long", 64, 64),
        ("long", 128, 64),
        ("short", 0, 64),
    ]


def test_only_the_last_stride_tokens_are_scored() -> None:
    # Token i is predicted at position i - 1: tokens 84 to 99 at positions 83 to 98.
    cell = SlidingCell(document="long", length=100, stride=16, start=48)
    engine = of(float, (BEGINNING,))
    assert measure_sliding(engine, TOKENS, cell) == SlidingResult(cell=cell, count=16, nats=sum(range(83, 99)))
    assert engine.sequences == [(BEGINNING, *TOKENS["long"][48 : 48 + 99])]


def test_a_window_scored_whole_leaves_its_first_token_out() -> None:
    cell = SlidingCell(document="long", length=64, stride=64, start=0)
    assert measure_sliding(of(lambda _position: 1.0), TOKENS, cell).count == 63


def test_sliding_perplexity_pools_the_windows_of_its_length() -> None:
    def result(start: int, nats: float, length: int = 100) -> SlidingResult:
        return SlidingResult(cell=SlidingCell(document="x", length=length, stride=16, start=start), count=16, nats=nats)

    found = sliding([result(0, 16.0), result(16, 48.0), result(0, 1e3, length=64)], length=100)
    assert (found.length, found.stride, found.windows) == (100, 16, 2)
    assert found.perplexity == pytest.approx(math.exp(2))


# ---------------------------------------------------------------------------- against the original


def test_short_cells_are_at_the_short_lengths() -> None:
    cells = short_cells(settings(short_lengths=(64,), windows=1), TOKENS)
    assert cells == (
        ShortCell(document="long", length=64, window=0),
        ShortCell(document="short", length=64, window=0),
    )


def divergence(original: float, model: float) -> float:
    """KL of two distributions that give one token these probabilities and share the rest evenly among all others."""
    return original * math.log(original / model) + (1 - original) * math.log((1 - original) / (1 - model))


@pytest.mark.parametrize(("rows", "rows_against"), [(7, 7), (7, 3), (64, 5), (1, 64), (63, 64)])
def test_losses_and_divergence_are_those_worked_out_by_hand(rows: int, rows_against: int) -> None:
    model = ToyEngine(loss=lambda position: math.log(4 if position < 32 else 8), rows=rows)
    original = ToyEngine(loss=lambda _position: math.log(2), rows=rows_against)
    cell = ShortCell(document="long", length=64, window=2)
    result = measure_short(model, original, TOKENS, cell)
    assert model.sequences == original.sequences == [(BEGINNING, *TOKENS["long"][128 : 128 + 63])]
    # 63 predictions, at positions 0 to 62.
    assert result.count == result.same_top == 63
    assert result.nats == pytest.approx(32 * math.log(4) + 31 * math.log(8), rel=1e-6)
    assert result.nats_against == pytest.approx(63 * math.log(2), rel=1e-6)
    assert result.kl == pytest.approx(32 * divergence(1 / 2, 1 / 4) + 31 * divergence(1 / 2, 1 / 8), rel=1e-5)
    found = short([result], length=64)
    assert found.kl == pytest.approx(result.kl / 63)
    assert found.same_top == 1
    assert found.perplexity_against == pytest.approx(2)
    assert found.regression == pytest.approx(found.perplexity / 2 - 1)


def test_the_divergence_is_the_originals_against_the_models() -> None:
    half, quarter = ToyEngine(loss=lambda _position: math.log(2)), ToyEngine(loss=lambda _position: math.log(4))
    cell = ShortCell(document="long", length=64, window=0)
    assert measure_short(half, quarter, TOKENS, cell).kl == pytest.approx(63 * divergence(1 / 4, 1 / 2), rel=1e-5)


def test_top_tokens_that_differ_are_counted() -> None:
    # The model rules the token that follows out nearly (1/1000 is below the others' 0.999/256) at positions 40 to 62.
    model = ToyEngine(loss=lambda position: math.log(2 if position < 40 else 1000))
    cell = ShortCell(document="long", length=64, window=0)
    assert measure_short(model, ToyEngine(), TOKENS, cell).same_top == 40
    assert 0.999 / (VOCABULARY - 1) > 1 / 1000


def test_a_token_that_the_original_rules_out_adds_nothing() -> None:
    certain = ToyEngine(loss=lambda _position: 0.0)
    cell = ShortCell(document="long", length=64, window=0)
    assert measure_short(certain, certain, TOKENS, cell).kl == 0
    # All its mass is on one token, to which the model gives 1/2: log 2 for each.
    half = ToyEngine(loss=lambda _position: math.log(2))
    assert measure_short(half, certain, TOKENS, cell).kl == pytest.approx(63 * math.log(2), rel=1e-6)


def test_two_windows_of_a_length_are_pooled() -> None:
    cell = ShortCell(document="long", length=64, window=0)
    low = measure_short(ToyEngine(loss=lambda _: math.log(2)), ToyEngine(), TOKENS, cell)
    high = measure_short(ToyEngine(loss=lambda _: math.log(8)), ToyEngine(), TOKENS, cell)
    assert short([low, high], length=64).perplexity == pytest.approx(4)
    assert short([low, high], length=64).regression == pytest.approx(1)


def test_models_of_another_vocabulary_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ShortCell(document="long", length=64, window=0)
    other = ToyEngine()
    rows = other._rows_of
    monkeypatch.setattr(other, "_rows_of", lambda *given: rows(*given)[:, :-1])
    with pytest.raises(RefusedError, match="share their vocabulary") as caught:
        measure_short(ToyEngine(), other, TOKENS, cell)
    assert (caught.value.expected, caught.value.found) == ("256 tokens", "257 tokens")


# ------------------------------------------------------------------------------------------- costs


def test_costs_count_what_is_read() -> None:
    assert tokens_of(PositionCell(document="x", length=64, window=3, trained=64)) == 64
    # What lies past the trained length is read again, in pieces of which half is scored.
    assert tokens_of(PositionCell(document="x", length=96, window=3, trained=64)) == 96 + 2 * 32
    assert tokens_of(SlidingCell(document="x", length=64, stride=8, start=0)) == 64
    assert tokens_of(ShortCell(document="x", length=64, window=0)) == 128
    assert tokens_of(RetrievalCell(kind="passkey", length=64, depth=0.5, sample=0)) == 64


def test_the_toy_engine_is_an_engine() -> None:
    engine: Engine = ToyEngine()
    assert engine.decode([BEGINNING, *engine.encode("né")]) == "né"
    assert sum(map(math.exp, next(engine.log_probs([1, 2, 3]))[0].tolist())) == pytest.approx(1, rel=1e-5)


def test_a_length_that_the_opening_fills_is_refused() -> None:
    cell = PositionCell(document="a", length=2, window=0, trained=2)
    with pytest.raises(UsageError, match="no room"):
        measure_position(ToyEngine(), {"a": list(range(100))}, cell)
