"""Bugs that were found by using the tool, each with the test that would have caught it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctxextend.changes import Carry
from ctxextend.checkpoint.directory import read_directory
from ctxextend.errors import CheckpointError, UsageError
from ctxextend.inspection import inspect
from ctxextend.plan import make_plan
from ctxextend.recipe import Recipe
from tests.factories import TINY


def checkpoint(folder: Path, config: dict[str, Any], **others: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, text in others.items():
        (folder / name.replace("__", "-")).with_suffix(".json").write_text(text)
    return folder


def test_an_absurd_number_of_layers_is_refused_at_once(tmp_path: Path) -> None:
    contents = read_directory(checkpoint(tmp_path / "m", {**TINY, "num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError) as error:
        inspect(contents)
    assert error.value.key == "num_hidden_layers"


def test_a_target_beyond_every_runtime_is_refused_at_once(tmp_path: Path) -> None:
    contents = read_directory(checkpoint(tmp_path / "m", dict(TINY)))
    with pytest.raises(UsageError, match="counts that far"):
        make_plan(contents, inspect(contents), Recipe(method="yarn", factor=1e9))


def test_a_snapshot_of_the_hub_cache_is_named_after_its_repository(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "models--org--name-7b" / "snapshots" / ("0" * 40), dict(TINY))
    assert read_directory(folder).name == "name-7b"


def test_an_earlier_override_is_not_carried_along(tmp_path: Path) -> None:
    contents = read_directory(checkpoint(tmp_path / "m", dict(TINY), ctxextend__overrides="{}", other="{}"))
    plan = make_plan(contents, inspect(contents), Recipe(method="ntk", target=2048))
    (carry,) = [action for action in plan.actions if isinstance(action, Carry)]
    assert carry.files == ("other.json",)


def test_a_length_written_as_a_float_is_read_and_written_whole(tmp_path: Path) -> None:
    contents = read_directory(checkpoint(tmp_path / "m", {**TINY, "max_position_embeddings": 1024.0}))
    inspection = inspect(contents)
    assert inspection.trained_context == 1024
    assert "float-length" in [note.code for note in inspection.notes]
    plan = make_plan(contents, inspection, Recipe(method="yarn", target=4096))
    assert plan.target_context == 4096


def test_the_page_of_a_scaled_plan_is_drawn(tmp_path: Path) -> None:
    """A yarn has no rope_theta of its own, which once broke the page that describes it."""
    folder = checkpoint(tmp_path / "m", dict(TINY))
    done = subprocess.run(
        [sys.executable, "-m", "ctxextend", "plan", str(folder), "-m", "yarn", "-t", "4k"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "none -> yarn, factor 4, attention factor 1.13863" in " ".join(done.stdout.split())


def test_a_page_says_how_fast_the_fastest_pair_turns(tmp_path: Path) -> None:
    """It once said 6.3 tokens whatever the rope: linear 8 makes it 50.3 (8 times two pi)."""
    folder = checkpoint(tmp_path / "m", {**TINY, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    done = subprocess.run(
        [sys.executable, "-m", "ctxextend", "inspect", str(folder), "--base", "trained"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    assert "50.3 to" in done.stdout
