"""The smoke test: on the demo checkpoint and its conversions, on what is broken, and on engines that tell less."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctxextend import Options, Recipe, open_source, plan_source, run_plan
from ctxextend.errors import UsageError
from ctxextend.inspection import Inspection
from ctxextend.lab import verbs
from ctxextend.lab.smoke import Job, Limits, SmokeReport, smoke
from ctxextend.lab.texts import Document
from ctxextend.lab.verbs import smoke_source
from ctxextend.pipeline import inspect_source
from tests.lab.toy_engine import ToyEngine, every_number, two_then_four

DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
HELDOUT = str(DEMO.parent / "heldout.txt")
TARGET = 1024


def converted(folder: Path, method: str, source: Path = DEMO) -> Path:
    opened = open_source(source)
    path, _ = run_plan(
        plan_source(opened, Recipe(method=method, target=TARGET)), opened, folder / method, options=Options()
    )
    return path


def smoked(folder: Path, **settings: Any) -> SmokeReport:
    return smoke_source(open_source(folder), length=TARGET, texts=[HELDOUT], **settings)


def failed(report: SmokeReport) -> set[str]:
    assert report.ok is all(check.ok for check in report.checks)
    return {check.name for check in report.checks if not check.ok}


@pytest.mark.parametrize("method", ["yarn", "ntk", "linear", "llama3", "ntk-by-parts", "dynamic"])
def test_a_conversion_of_the_demo_checkpoint_works_at_four_times_its_length(tmp_path: Path, method: str) -> None:
    report = smoked(converted(tmp_path, method))
    assert failed(report) == set()
    assert (report.length, report.trained_context, report.engine, report.device) == (1024, 256, "transformers", "cpu")
    assert [check.name for check in report.checks] == ["positions", "rope", "sense", "decoding", "cached", "passkey"]
    # A model of a million parameters answers no questions, so none is asked past its trained length.
    assert next(check for check in report.checks if check.name == "passkey").skipped
    assert [passage.offset for passage in report.passages] == [0, 128, 256, 512, 896]
    assert report.tokens_per_second > 0
    assert report.peak_memory_bytes is not None


def test_the_untouched_model_fails_past_its_length() -> None:
    report = smoked(DEMO)
    assert failed(report) == {"positions", "sense"}
    end = report.passages[-1]
    assert end.where == "end"
    assert end.ratio is not None
    assert end.ratio > 3


def test_the_untouched_model_works_within_its_length() -> None:
    assert smoke_source(open_source(DEMO), length=256, texts=[HELDOUT]).ok


def test_ntk_is_told_to_be_weak_where_it_is(tmp_path: Path) -> None:
    """Static NTK fails in the last part of its stretch; the mean lets it pass, and the detail says so."""
    report = smoked(converted(tmp_path, "ntk"))
    assert "weak at 896" in next(check.detail for check in report.checks if check.name == "sense")


def test_a_rope_that_is_not_the_planned_one_fails(tmp_path: Path) -> None:
    folder = converted(tmp_path, "yarn")
    config = json.loads((folder / "config.json").read_text())
    for settings in (config["rope_scaling"], config["rope_parameters"]):
        settings["beta_fast"] = 16.0
    (folder / "config.json").write_text(json.dumps(config))
    report = smoked(folder)
    assert failed(report) == {"rope"}
    assert "frequencies are off" in next(check.detail for check in report.checks if check.name == "rope")


def test_weights_that_are_no_numbers_fail(tmp_path: Path) -> None:
    folder = converted(tmp_path, "yarn")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"][0, 0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    report = smoked(folder)
    assert "sense" in failed(report)
    assert "isn't finite" in next(check.detail for check in report.checks if check.name == "sense")


def test_a_cache_that_disagrees_with_a_plain_forward_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctxextend.lab.engines.transformers import TransformersEngine

    plain = TransformersEngine.forward_whole

    def other(self: TransformersEngine, tokens: Any, last: int) -> Any:
        # A forward that has lost the first half of what it should see.
        return plain(self, tokens[len(tokens) // 2 :], last)

    monkeypatch.setattr(TransformersEngine, "forward_whole", other)
    assert failed(smoked(converted(tmp_path, "yarn"))) == {"cached"}


def test_what_a_model_raises_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctxextend.lab.engines.transformers import TransformersEngine

    def out_of_range(self: TransformersEngine, tokens: Any, *, first: int = 1) -> Any:
        torch.zeros(4)[torch.tensor([first + 100])]

    monkeypatch.setattr(TransformersEngine, "losses", out_of_range)
    report = smoked(converted(tmp_path, "yarn"))
    assert failed(report) == {"sense"}
    assert "IndexError" in report.checks[-1].detail


def test_the_last_position_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of learned positions that is one row short fails at the last token alone, where nothing tells of it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_positions=127, n_embd=32, n_layer=1, n_head=2, vocab_size=2048)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    with monkeypatch.context() as untold:
        untold.setattr(verbs, "most_tokens", lambda *_given: None)
        report = smoke_source(open_source(tmp_path), length=128, texts=[HELDOUT])
    assert failed(report) == {"positions", "decoding"}
    assert smoke_source(open_source(tmp_path), length=127, texts=[HELDOUT]).ok


def test_a_rope_that_follows_the_length_is_not_read_anew_for_every_token(tmp_path: Path) -> None:
    opened = open_source(DEMO)
    recipe = Recipe(method="dynamic", target=TARGET, runtimes=("transformers",), carrier="native")
    folder, _ = run_plan(plan_source(opened, recipe), opened, tmp_path / "dynamic", options=Options())
    report = smoked(folder)
    assert failed(report) == set()
    assert next(check for check in report.checks if check.name == "cached").skipped
    # The five offsets are each another table, and so read anew; the tokens of an answer aren't.
    assert report.tokens < 16 * TARGET


# ---------------------------------------------------------------------------------- without a model


def inspection(trained: int = 256) -> Inspection:
    """The demo checkpoint's, as if it were trained for another length and stated a long one."""
    found = inspect_source(open_source(DEMO), Recipe())
    return msgspec.structs.replace(found, trained_context=trained, current_context=4096)


def job(**changes: Any) -> Job:
    settings: dict[str, Any] = {
        "inspection": inspection(),
        "length": TARGET,
        "tables": None,
        "dynamic": False,
        "limits": Limits(),
        "passkey": False,
        "needed_bytes": None,
    }
    return Job(**{**settings, **changes})


DOCUMENTS = (Document(name="one", text="a quick brown fox " * 400), Document(name="two", text="over lazy dogs " * 200))


def run(engine: ToyEngine, **changes: Any) -> SmokeReport:
    return smoke(engine, job(**changes), documents=DOCUMENTS, say=lambda _text: None)


def sense(report: SmokeReport) -> tuple[bool, str]:
    return next((check.ok, check.detail) for check in report.checks if check.name == "sense")


def test_the_mean_of_the_offsets_is_geometric() -> None:
    """As much as within, twice and four times that, at the three offsets past it: the cube root of 8."""

    def loss(position: int) -> float:
        return math.log(2) if position < 384 else math.log(4) if position < 800 else math.log(8)

    ok, detail = sense(run(ToyEngine(loss=loss), limits=Limits(perplexity_ratio=2.01)))
    assert ok
    assert "2.00 times" in detail
    assert "896 (4.0 times)" in detail
    ok, _detail = sense(run(ToyEngine(loss=loss), limits=Limits(perplexity_ratio=1.99)))
    assert not ok


@pytest.mark.parametrize(
    ("length", "offsets"),
    [
        # The opening token stands first; a passage is half of the trained length, or a quarter of the length.
        (1024, [1, 128, 256, 512, 896]),
        (512, [1, 128, 256, 384]),
        (256, [1, 128, 192]),
        (100, [1, 50, 75]),
    ],
)
def test_every_place_is_read_once(length: int, offsets: list[int]) -> None:
    report = run(ToyEngine(), length=length)
    assert [passage.offset for passage in report.passages] == offsets


def test_the_passages_never_stand_in_what_fills_the_context() -> None:
    engine = ToyEngine()
    run(engine)
    read = {engine.decode(sequence) for sequence in engine.sequences}
    assert any("dogs" in text for text in read)
    assert all("fox" not in text.split("dogs")[-1] for text in read if "dogs" in text)


def test_an_engine_without_losses_is_read_to_the_end() -> None:
    engine = ToyEngine(can=frozenset())
    report = run(engine)
    assert report.ok
    assert len(engine.prompts[0]) == TARGET - 16
    assert {check.name for check in report.checks if check.skipped} >= {"rope", "decoding", "cached"}


def test_keys_are_asked_of_a_model_that_finds_them_within_its_length() -> None:
    def asked(engine: ToyEngine) -> tuple[bool, bool]:
        report = run(engine, passkey=True, inspection=inspection(1024), length=4096)
        check = next(check for check in report.checks if check.name == "passkey")
        return check.ok, check.skipped

    def short_sighted(prompt: str) -> str:
        return every_number(prompt) if len(prompt) < 2000 else "I don't know"

    assert asked(ToyEngine()) == (True, False)
    assert asked(ToyEngine(answer=short_sighted)) == (False, False)
    # One that can't answer even there tells nothing about the length.
    assert asked(ToyEngine(answer=lambda _prompt: "none")) == (True, True)


def test_keys_are_asked_at_no_more_than_the_length() -> None:
    engine = ToyEngine()
    report = run(engine, passkey=True, inspection=inspection(4096), length=1024)
    assert {len(prompt) for prompt in engine.prompts} == {1024 - 16}
    assert "3 of 3 keys came back at 1k" in report.checks[-1].detail


def test_a_model_that_does_not_say_what_it_was_trained_for_is_held_to_its_beginning() -> None:
    report = run(ToyEngine(loss=two_then_four(512)), inspection=inspection(0))
    assert [(passage.where, passage.offset) for passage in report.passages] == [
        ("start", 1),
        ("half", 512),
        ("before", 768),
    ]


def test_an_error_without_a_message_is_told() -> None:
    def nothing(_position: int) -> float:
        raise ValueError

    report = run(ToyEngine(loss=nothing))
    assert report.checks[-1].detail == "ValueError: it says no more"


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        smoke(ToyEngine(), job(), documents=(Document(name="one", text="short"),), say=lambda _text: None)
    assert error.value.code == "short-text"


def test_a_length_that_is_too_short_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        run(ToyEngine(), length=20)
    assert error.value.key == "--length"
