"""``eval`` and ``compare``: what is laid out, measured, resumed and added up."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctxextend import Options, Recipe, open_source, plan_source, run_plan
from ctxextend.errors import RefusedError, UsageError
from ctxextend.lab import evaluation as measuring
from ctxextend.lab.comparing import Wish, best_of, config_of
from ctxextend.lab.engines import Choice
from ctxextend.lab.ledger import NAME, Ledger, name_for
from ctxextend.lab.names import UNTOUCHED
from ctxextend.lab.results import Candidate, Comparison, Curve, Evaluation, Rate, Settings
from ctxextend.lab.texts import Document
from ctxextend.lab.verbs import Laid, Run, compare_source, eval_source
from ctxextend.pipeline import inspect_source
from tests.lab.toy_engine import ToyEngine, two_then_four

DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
HELDOUT = str(DEMO.parent / "heldout.txt")

SETTINGS = Settings(
    tasks=("perplexity", "sliding", "passkey", "needles", "short"),
    lengths=(512, 1024),
    short_lengths=(128,),
    windows=2,
    stride=64,
    depths=(0.5,),
    samples=1,
)
DOCUMENTS = (Document(name="fox", text="the quick brown fox jumps over it. " * 100),)


def toy_run(engine: ToyEngine, ledger: Ledger, settings: Settings = SETTINGS, stop: int | None = None) -> list[str]:
    """Measure with an engine without a model; ``stop`` interrupts after so many cells. What progress was told."""
    found = measuring.material(engine, DOCUMENTS)
    cells = measuring.cells_of(settings, found, trained=256)
    told: list[str] = []

    def progress(name: str, _tokens: int) -> None:
        told.append(name)
        if len(told) == stop:
            raise KeyboardInterrupt

    try:
        measuring.run(engine, ToyEngine(), cells, found=found, settings=settings, ledger=ledger, progress=progress)
    except KeyboardInterrupt:
        assert stop is not None
    finally:
        ledger.close()
    return told


def test_results_add_up_by_length() -> None:
    ledger = Ledger(None, {})
    toy_run(ToyEngine(loss=two_then_four(256)), ledger)
    told = measuring.summary(ledger.results.values(), SETTINGS)
    assert [curve.length for curve in told.curves] == [512, 1024]
    assert [curve.windows for curve in told.curves] == [2, 2]
    # Perplexity 4 past 256 tokens, and 2 of the same tokens with no more than 256 before them.
    assert [curve.ratio for curve in told.curves] == pytest.approx([2.0, 2.0])
    assert [found.perplexity for found in told.sliding] == pytest.approx([4.0, 4.0])
    assert [(rate.kind, rate.length) for rate in told.rates if rate.depth is None] == [
        ("passkey", 512),
        ("passkey", 1024),
        ("needles", 512),
        ("needles", 1024),
    ]
    (short,) = told.short
    assert (short.length, short.same_top) == (128, 1.0)
    assert short.regression == pytest.approx(0.0)


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, stop: int) -> None:
    whole = Ledger(tmp_path / "whole", {})
    toy_run(ToyEngine(), whole)
    toy_run(ToyEngine(), Ledger(tmp_path / "cut", {}), stop=stop)
    engine = ToyEngine()
    again = Ledger(tmp_path / "cut", {})
    assert len(again.results) == stop
    toy_run(engine, again)
    assert again.results == whole.results
    # The cost is that of all cells, whoever measured them; a toy reads a thousand tokens a second.
    cost = measuring.spent(again, again.results, engine)
    assert (cost.cells, cost.tokens) == (len(whole.results), sum(entry.tokens for entry in whole.entries.values()))
    assert cost.tokens_per_second == pytest.approx(1000)
    assert cost.tokens > engine.usage.tokens > 0
    # What was there wasn't measured again.
    asked = len(engine.sequences) + len(engine.prompts)
    fresh = ToyEngine()
    toy_run(fresh, Ledger(None, {}))
    assert asked < len(fresh.sequences) + len(fresh.prompts)


def test_what_both_models_read_is_counted_and_told() -> None:
    """A window of 128 tokens by each; what is there already isn't told again, as the bar's total leaves it out."""
    settings = msgspec.structs.replace(SETTINGS, tasks=("short",), windows=1)
    ledger = Ledger(None, {})
    assert toy_run(ToyEngine(), ledger, settings) == ["against 128"]
    assert measuring.spent(ledger, ledger.results, ToyEngine()).tokens == 2 * 128
    assert toy_run(ToyEngine(), ledger, settings) == []


def test_a_length_too_short_for_a_question_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    engine = ToyEngine()
    settings = msgspec.structs.replace(SETTINGS, tasks=("perplexity", "passkey"), lengths=(32, 512))
    with pytest.raises(UsageError):
        toy_run(engine, Ledger(tmp_path / "report", {}), settings)
    assert not engine.sequences
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_held_against_each_other_are_refused() -> None:
    one = ToyEngine()
    measuring.require_short(one, ToyEngine())
    other = ToyEngine()
    other.facts = msgspec.structs.replace(other.facts, vocabulary=300)
    for against, code in (
        (ToyEngine(can=frozenset({"losses"})), "no-logprobs"),
        (other, "unlike-models"),
        (ToyEngine(opening=()), "unlike-models"),
    ):
        with pytest.raises(RefusedError) as error:
            measuring.require_short(one, against)
        assert (error.value.code, error.value.key) == (code, "--against")


def test_more_samples_take_what_is_there(tmp_path: Path) -> None:
    toy_run(ToyEngine(), Ledger(tmp_path, {}))
    engine = ToyEngine()
    ledger = Ledger(tmp_path, {})
    before = len(ledger.results)
    toy_run(engine, ledger, msgspec.structs.replace(SETTINGS, samples=2))
    # One more pass key and one more text with needles at each of two lengths.
    assert len(ledger.results) == before + 4
    assert len(engine.prompts) == 4


@pytest.mark.parametrize(
    ("task", "change"), [("perplexity", {"lengths": (8192,)}), ("sliding", {"lengths": (8192,)}), ("short", {})]
)
def test_a_text_that_fills_no_window_is_refused(task: str, change: dict[str, Any]) -> None:
    settings = msgspec.structs.replace(SETTINGS, tasks=(task,), short_lengths=(8192,), **change)
    found = measuring.material(ToyEngine(), DOCUMENTS)
    with pytest.raises(UsageError) as error:
        measuring.cells_of(settings, found, trained=256)
    assert (error.value.key, error.value.expected) == ("--text", "8192 tokens")


def test_operations_are_counted() -> None:
    """2 * 1049728 weights * n, and 2 * 4 layers * 128 wide * n * n; the trained length again for what is past it."""
    inspection = inspect_source(open_source(DEMO), Recipe())
    found = measuring.material(ToyEngine(), DOCUMENTS)
    within, past = measuring.cells_of(
        Settings(tasks=("perplexity",), lengths=(256, 512), windows=1), found, trained=256
    )
    one, two = (2 * 1049728 * n + 2 * 4 * 128 * n * n for n in (256, 512))
    assert measuring.flops_of(within, inspection) == one
    assert measuring.flops_of(past, inspection) == two + 2 * one


def test_weights_are_known_by_more_than_their_size(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(DEMO, copy)
    same = measuring.fingerprint(open_source(copy))
    assert same == measuring.fingerprint(open_source(DEMO))
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "model.safetensors").write_bytes(raw)
    assert measuring.fingerprint(open_source(copy)) != same


# -------------------------------------------------------------------------------- the real engines


def converted(folder: Path, method: str, **recipe: Any) -> Path:
    opened = open_source(DEMO)
    path, _ = run_plan(
        plan_source(opened, Recipe(method=method, target=1024, **recipe)),
        opened,
        folder / f"{method}{'.gguf' if recipe else ''}",
        options=Options(),
    )
    return path


REAL = Settings(tasks=("perplexity", "passkey"), lengths=(256, 1024), windows=1, depths=(0.2, 0.8), samples=1)
SHORT = msgspec.structs.replace(REAL, short_lengths=(128,))


def evaluated(folder: Path, settings: Settings = REAL, **given: Any) -> Evaluation:
    found = eval_source(open_source(folder), settings, texts=[HELDOUT], **given)
    assert found is not None
    return found


def test_the_original_is_read_out_of_the_record(tmp_path: Path) -> None:
    """Held against the checkpoint it was made of, and against what its record says of that one: the same."""
    yarn = converted(tmp_path, "yarn")
    one = evaluated(yarn, SHORT, against=open_source(DEMO))
    two = evaluated(yarn, SHORT, original=True)
    assert one.short == two.short
    (short,) = one.short
    assert short.kl > 0.01
    assert (one.against, two.against) == (str(DEMO), "original")


def test_a_model_against_itself_lost_nothing() -> None:
    (short,) = evaluated(DEMO, SHORT, against=open_source(DEMO)).short
    assert (short.regression, short.kl, short.same_top) == (0.0, 0.0, 1.0)


def test_engines_agree_on_the_same_inputs(tmp_path: Path) -> None:
    """transformers on the folder and llama.cpp on its float32 export: perplexities, and the answers to keys."""
    settings = msgspec.structs.replace(REAL, tasks=("perplexity", "sliding", "passkey"))
    one = evaluated(converted(tmp_path, "yarn"), settings)
    gguf = converted(tmp_path, "yarn", to="gguf", outtypes=("f32",))
    two = evaluated(gguf, settings, choice=Choice(dtype="float32"))
    assert (one.engine.engine, two.engine.engine) == ("transformers", "llama.cpp")
    assert one.texts == two.texts
    for ours, theirs in zip(one.curves, two.curves, strict=True):
        assert [p.perplexity for p in ours.points] == pytest.approx([p.perplexity for p in theirs.points], rel=2e-4)
        assert (ours.ratio is None) is (theirs.ratio is None) is (ours.length == 256)
        assert (ours.ratio or 0.0) == pytest.approx(theirs.ratio or 0.0, rel=2e-4)
    assert [s.perplexity for s in one.sliding] == pytest.approx([s.perplexity for s in two.sliding], rel=2e-4)
    assert [(r.kind, r.length, r.depth, r.found) for r in one.rates] == [
        (r.kind, r.length, r.depth, r.found) for r in two.rates
    ]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(REAL, tasks=("passkey",))
    evaluated(DEMO, settings, how=Run(folder=tmp_path))
    with pytest.raises(RefusedError) as error:
        evaluated(converted(tmp_path, "ntk"), settings, how=Run(folder=tmp_path))
    assert error.value.key == "checkpoint"


def test_what_it_costs_is_told_before_and_can_stop_it(tmp_path: Path) -> None:
    told: list[Laid] = []

    def stop(laid: Laid) -> bool:
        told.append(laid)
        return False

    assert eval_source(open_source(DEMO), REAL, texts=[HELDOUT], how=Run(folder=tmp_path, before=stop)) is None
    # 256, 1024 and what is past 256 once more twice over; two keys at each length.
    assert told[0].tokens == 256 + (1024 + 2 * 768) + 2 * (256 + 1024)
    assert (told[0].cells, told[0].kept) == (6, 0)
    evaluated(DEMO, REAL, how=Run(folder=tmp_path))
    eval_source(open_source(DEMO), REAL, texts=[HELDOUT], how=Run(folder=tmp_path, before=stop))
    assert (told[1].kept, told[1].tokens) == (6, 0)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads weights fails."""

    def never(*_args: object, **_named: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("ctxextend.lab.verbs.open_engine", never)


def test_what_it_costs_is_told_without_loading_weights(
    tmp_path: Path, unloaded: None, request: pytest.FixtureRequest
) -> None:
    told: list[Laid] = []

    def before(laid: Laid) -> bool:
        told.append(laid)
        return True

    for dtype in ("auto", "bfloat16"):
        how = Run(folder=tmp_path / "report", dry=True, before=before)
        assert eval_source(open_source(DEMO), REAL, texts=[HELDOUT], how=how, choice=Choice(dtype=dtype)) is None
        assert (
            compare_source(open_source(DEMO), [wish("yarn")], COMPARED, recipe=Recipe(), texts=[HELDOUT], how=how)
            is None
        )
    assert not list(tmp_path.iterdir())
    tokens = 256 + (1024 + 2 * 768) + 2 * (256 + 1024)
    assert [(laid.cells, laid.kept, laid.tokens) for laid in told] == 2 * [
        (6, 0, tokens), (2, 0, 1024 + 2 * 768 + 2 * 128)
    ]  # fmt: skip
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.undo()
    evaluated(DEMO, REAL, how=Run(folder=tmp_path))
    lines = (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join(lines[:4]) + lines[4][:5])
    cut = (tmp_path / NAME).read_bytes()
    eval_source(open_source(DEMO), REAL, texts=[HELDOUT], how=Run(folder=tmp_path, dry=True, before=before))
    assert (told[-1].cells, told[-1].kept) == (6, 3)
    # Of other numbers than these would be.
    with pytest.raises(RefusedError) as error:
        eval_source(
            open_source(DEMO), REAL, texts=[HELDOUT], how=Run(folder=tmp_path, dry=True), choice=Choice(dtype="float16")
        )
    assert error.value.key == "dtype"
    assert (tmp_path / NAME).read_bytes() == cut


@pytest.mark.parametrize(
    ("change", "against", "key"),
    [
        ({"tasks": ("perplexity", "short")}, False, "--tasks"),
        ({"short_lengths": (128,)}, False, "--short-lengths"),
        ({"short_lengths": (128, 512)}, True, "--short-lengths"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_short_contexts_that_nothing_can_be_held_against(change: dict[str, Any], against: bool, key: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluated(DEMO, msgspec.structs.replace(REAL, **change), against=open_source(DEMO) if against else None)
    assert error.value.key == key


@pytest.mark.usefixtures("unloaded")
def test_a_report_that_cannot_go_there_is_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text('{"mine": 1}')
    for folder, code in ((tmp_path, "output-exists"), (DEMO / "report", "inside-source")):
        with pytest.raises(RefusedError) as error:
            evaluated(DEMO, how=Run(folder=folder))
        assert error.value.code == code
        with pytest.raises(RefusedError) as error:
            compared(wish("yarn"), how=Run(folder=folder))
        assert error.value.code == code
    shutil.copytree(DEMO, tmp_path / "base")
    with pytest.raises(RefusedError) as error:
        evaluated(DEMO, against=open_source(tmp_path / "base"), how=Run(folder=tmp_path / "base" / "new"))
    assert error.value.code == "inside-source"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["eval.json"]
    assert not (DEMO / "report").exists()


def test_a_tokenizer_and_a_server_tell_results_apart(tmp_path: Path) -> None:
    engine = ToyEngine()
    found = measuring.material(engine, DOCUMENTS)

    def named(folder: Path = DEMO, **choice: Any) -> dict[str, Any]:
        return measuring.identity(
            open_source(folder), engine.facts, found, SETTINGS, against=None, choice=Choice(**choice)
        )

    shutil.copytree(DEMO, tmp_path / "copy")
    assert named() == named(tmp_path / "copy")
    file = tmp_path / "copy" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    changed = named(tmp_path / "copy")
    assert {key for key, value in named().items() if changed[key] != value} == {"checkpoint"}
    # No name and no key of whoever asks is written down.
    server = named(endpoint="https://me:secret@host:8000/v1/?key=secret", served_name="a", api_key="secret")
    assert server["endpoint"] == "https://host:8000/v1"
    assert "secret" not in str(server)
    assert server != named(endpoint="https://host:8000/v1", served_name="b")
    assert named(tokenizer=file)["tokenizer"] != named(tokenizer=DEMO / "tokenizer.json")["tokenizer"]
    assert named()["ctxextend"] == "0.1"


def test_the_keys_of_a_gguf_file_tell_results_apart(tmp_path: Path) -> None:
    gguf = converted(tmp_path, "yarn", to="gguf", outtypes=("f32",))
    same = measuring.fingerprint(open_source(gguf))
    raw = bytearray(gguf.read_bytes())
    # A token of its vocabulary, which is past the first sample.
    end = open_source(gguf).contents.gguf.spans["tokenizer.ggml.tokens"][1]  # type: ignore[union-attr]
    raw[end - 1] ^= 1
    gguf.write_bytes(raw)
    assert measuring.fingerprint(open_source(gguf)) != same


# ----------------------------------------------------------------------------------------- compare

COMPARED = Settings(tasks=("perplexity", "short"), lengths=(), short_lengths=(128,), windows=1)


def wish(method: str, target: int = 1024, **options: Any) -> Wish:
    return Wish(label=method, method=method, options=options, target=target)


def compared(*wishes: Wish, how: Run | None = None, settings: Settings = COMPARED, **recipe: Any) -> Comparison:
    found = compare_source(
        open_source(DEMO), wishes, settings, recipe=Recipe(**recipe), texts=[HELDOUT], how=how or Run()
    )
    assert found is not None
    return found


def test_a_candidate_is_measured_as_its_conversion_is(tmp_path: Path) -> None:
    """The same numbers, to the last bit, as of the checkpoint that convert writes."""
    found = compared(wish(UNTOUCHED), wish("yarn"), wish("linear"))
    assert [candidate.method for candidate in found.candidates] == ["none", "yarn", "linear"]
    for candidate in found.candidates:
        folder = DEMO if candidate.method == UNTOUCHED else converted(tmp_path, candidate.method)
        settings = Settings(tasks=("perplexity",), lengths=(1024,), windows=1)
        assert evaluated(folder, settings).curves == candidate.curves
    untouched, yarn, linear = (candidate.curves[0].ratio for candidate in found.candidates)
    assert untouched is not None
    assert yarn is not None
    assert linear is not None
    assert untouched > 3 * yarn
    assert linear < 1.1
    assert [best.method for best in found.best] == ["yarn"]


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in DEMO.iterdir()}
    monkeypatch.chdir(tmp_path)
    compared(wish("ntk"))
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in DEMO.iterdir()} == before


def test_what_a_runtime_cannot_read_is_refused_beside_the_others() -> None:
    """ExLlamaV2 takes no attention factor; a linear rope it reads."""
    found = compared(wish("yarn", attention_factor=1.7), wish("linear"), runtimes=("exllamav2",), carrier="native")
    yarn, linear = found.candidates
    assert yarn.refused is not None
    assert not yarn.curves
    assert linear.refused is None
    assert [best.method for best in found.best] == ["linear"]


def test_candidates_resume_each_by_itself(tmp_path: Path) -> None:
    compared(wish("yarn"), how=Run(folder=tmp_path))
    told: list[str] = []
    again = compared(
        wish("yarn"), wish("linear"), how=Run(folder=tmp_path, progress=lambda name, _tokens: told.append(name))
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [name_for("linear", 1024), name_for("yarn", 1024)]
    # Only linear was measured; what yarn took is told all the same, the model that it is held against included.
    assert len(told) == 2
    for candidate in again.candidates:
        assert candidate.cost is not None
        assert candidate.cost.tokens >= 1024 + 2 * 768 / 2 + 2 * 128 - 2
    laid: list[Laid] = []

    def before(each: Laid) -> bool:
        laid.append(each)
        return True

    how = Run(folder=tmp_path, dry=True, before=before)
    compare_source(
        open_source(DEMO),
        [wish("yarn"), wish("ntk"), wish("linear")],
        COMPARED,
        recipe=Recipe(),
        texts=[HELDOUT],
        how=how,
    )
    assert [(each.cells, each.kept) for each in laid] == [(6, 4)]


def test_the_config_of_a_candidate_is_the_one_that_convert_writes(tmp_path: Path) -> None:
    opened = open_source(DEMO)
    plan = plan_source(opened, Recipe(method="yarn", target=1024))
    written = json.loads((converted(tmp_path, "yarn") / "config.json").read_text())
    assert config_of(opened, plan) == written


def test_only_a_folder_with_a_rope_is_compared(tmp_path: Path) -> None:
    gguf = converted(tmp_path, "yarn", to="gguf", outtypes=("f32",))
    with pytest.raises(RefusedError) as error:
        compare_source(open_source(gguf), [wish("yarn")], COMPARED, recipe=Recipe())
    assert "--to safetensors" in (error.value.hint or "")


def candidate(method: str, whole: float, found: int | None, *, target: int = 16384) -> Candidate:
    rates = (
        ()
        if found is None
        else (
            Rate(
                kind="passkey",
                length=target,
                depth=None,
                asked=10,
                found=found,
                rate=found / 10,
                low=found / 10 - 0.2,
                high=1.0,
            ),
        )
    )
    return Candidate(
        method=method,
        factor=2.0,
        target=target,
        refused=None,
        curves=(Curve(length=target, windows=1, whole=whole, points=(), ratio=1.0),),
        rates=rates,
        short=(),
        spectrum=(),
        cost=None,
    )


@pytest.mark.parametrize(
    ("candidates", "best"),
    [
        # The lowest perplexity, where all find as much.
        ([candidate("a", 30.0, 10), candidate("b", 29.0, 9)], "b"),
        # One that finds far less doesn't win by predicting better.
        ([candidate("a", 30.0, 10), candidate("b", 29.0, 2)], "a"),
        # Without keys perplexity alone decides; the model as it is isn't a method to ship.
        ([candidate("a", 30.0, None), candidate("b", 29.0, None), candidate(UNTOUCHED, 20.0, None)], "b"),
    ],
)
def test_the_best_finds_most_and_then_predicts_best(candidates: list[Candidate], best: str) -> None:
    (found,) = best_of(candidates, trained=8192)
    assert (found.method, found.length) == (best, 16384)


def test_within_the_trained_length_nothing_is_best() -> None:
    assert not list(best_of([candidate("a", 30.0, 10, target=4096)], trained=8192))


def test_perplexities_that_are_no_numbers_are_told_as_infinite() -> None:
    ledger = Ledger(None, {})
    toy_run(ToyEngine(loss=lambda _position: 1e6), ledger)
    assert measuring.summary(ledger.results.values(), SETTINGS).curves[0].whole == math.inf
