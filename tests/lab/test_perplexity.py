"""Perplexity by position, against transformers' own loss and on the demo checkpoint."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ctxextend import Options, Recipe, open_source, plan_source, run_plan
from ctxextend.errors import MissingExtraError, UsageError
from ctxextend.lab import perplexity
from ctxextend.lab.perplexity import load_model, losses, perplexity_by_position, read_tokens

DEMO = Path(__file__).resolve().parents[2] / "demo"


@cache
def tokens() -> list[int]:
    return read_tokens(DEMO / "checkpoint", (DEMO / "heldout.txt").read_text(encoding="utf-8")[:12000])


@cache
def model() -> Any:
    return load_model(DEMO / "checkpoint")


def test_chunks_through_the_cache_give_the_loss_of_one_forward() -> None:
    ids = torch.tensor([tokens()[:200]])
    with torch.inference_mode():
        expected = model()(input_ids=ids, labels=ids).loss.item()
    found = losses(model(), tokens()[:200], chunk=64)
    assert len(found) == 199
    assert sum(found) / len(found) == pytest.approx(expected, rel=1e-5)


def test_windows_are_means_over_positions() -> None:
    text = tokens()[:512]
    windows = perplexity_by_position(model(), text, bounds=(0, 100, 256))
    rows = [losses(model(), text[:256]), losses(model(), text[256:512])]
    by_hand = math.exp(sum(sum(row[:100]) for row in rows) / 200)
    assert [(w.start, w.end) for w in windows] == [(0, 100), (100, 256)]
    assert windows[0].perplexity == pytest.approx(by_hand, rel=1e-6)


def test_a_text_that_fills_no_window_is_refused() -> None:
    with pytest.raises(UsageError, match="too short"):
        perplexity_by_position(model(), tokens()[:100], bounds=(0, 256))


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError) as error:
        perplexity.load_model(DEMO / "checkpoint")
    assert error.value.hint == "pip install 'ctxextend[lab]'"


def test_the_extended_demo_predicts_where_the_original_fails(tmp_path: Path) -> None:
    opened = open_source(DEMO / "checkpoint")
    plan = plan_source(opened, Recipe(method="yarn", target=1024))
    out, _manifest = run_plan(plan, opened, tmp_path / "out", options=Options(link_mode="symlink"))
    bounds = (0, 256, 512, 1024)
    before = perplexity_by_position(model(), tokens(), bounds=bounds, limit=2)
    after = perplexity_by_position(load_model(out), tokens(), bounds=bounds, limit=2)
    assert before[-1].perplexity > 3 * before[0].perplexity
    assert after[-1].perplexity < before[-1].perplexity / 2
    assert after[0].perplexity < 1.3 * before[0].perplexity
