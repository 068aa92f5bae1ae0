"""Plans from one format to the other: what they refuse, what they take over, and what they say of lost windows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ctxextend.changes import changes_nothing, gguf_edits_of
from ctxextend.errors import RefusedError, UsageError
from ctxextend.pipeline import check_source, open_source, plan_source, run_plan
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from tests.test_gguf_plan import contents, converted, planned, said

DEMO = Path(__file__).resolve().parents[1] / "demo" / "checkpoint"
L = 256
WINDOWED = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}


def edited(folder: Path, **changes: Any) -> Path:
    shutil.copytree(DEMO, folder)
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def plan_of(source: Path, **recipe: Any) -> Plan:
    return plan_source(open_source(source), Recipe(**recipe))


def convert(source: Path, out: Path, **recipe: Any) -> Path:
    opened = open_source(source)
    path, _ = run_plan(plan_source(opened, Recipe(**recipe)), opened, out)
    return path


def codes(plan: Plan) -> set[str]:
    return {warning.code for warning in plan.warnings}


@pytest.mark.parametrize("to", ["gguf", "safetensors"])
@pytest.mark.parametrize(
    "recipe", [{"method": "yarn"}, {"options": {"x": 1}}, {"layers": ("full_attention",)}, {"fine_tune": True}]
)
def test_how_to_extend_is_nothing_without_how_far(tmp_path: Path, recipe: dict[str, Any], to: Any) -> None:
    source = DEMO if to == "gguf" else convert(DEMO, tmp_path / "x.gguf", to="gguf")
    with pytest.raises(UsageError) as error:
        plan_of(source, to=to, **recipe)
    assert error.value.code == "no-target"


def test_a_carrier_can_be_chosen_for_what_stands_there(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L}
    source = edited(tmp_path / "source", rope_scaling=yarn, rope_parameters=None, max_position_embeddings=4 * L)
    assert gguf_edits_of(plan_of(source, to="gguf", carrier="factors").actions).tensors
    assert not gguf_edits_of(plan_of(source, to="gguf").actions).tensors


def test_layers_whose_window_is_lost_are_extended(tmp_path: Path) -> None:
    """llama.cpp lets them see everything, so their rope must reach that far."""
    source = edited(tmp_path / "source", **WINDOWED)
    plan = plan_of(source, to="gguf", method="yarn", target=4 * L)
    assert all(group.extended for group in plan.groups)
    assert "window-lost" in codes(plan)


def test_a_length_that_only_windows_made_possible_is_not_exported(tmp_path: Path) -> None:
    source = edited(tmp_path / "source", **WINDOWED)
    folder = convert(source, tmp_path / "long", target=4 * L)
    with pytest.raises(RefusedError) as error:
        plan_of(folder, to="gguf")
    assert error.value.code == "window-lost"
    assert f"--target {4 * L}" in (error.value.hint or "")
    assert plan_of(folder, to="gguf", method="yarn", target=4 * L).method == "yarn"


def test_windows_that_a_file_has_let_its_length_be_raised() -> None:
    # cohere2: only its sliding layers have a rope, and they see 512 tokens.
    source = contents(
        "cohere2", block_count=4, context_length=1024, attention__sliding_window=512, attention__key_length=32
    )
    plan = planned(source, "auto", 4096)
    assert plan.method == "none"
    assert "nothing-to-scale" in codes(plan)
    assert said(plan) == {"cohere2.context_length": 4096}


def test_within_the_trained_length_an_extension_is_taken_off() -> None:
    source = contents()
    once = converted(source, planned(source, "yarn", 4096))
    plan = planned(once, "auto", 512)
    assert not plan.misread
    assert "taken off" in plan.reasons[0]
    after = converted(once, plan)
    assert after.gguf is not None
    assert source.gguf is not None
    assert after.gguf.values == source.gguf.values
    assert changes_nothing(planned(after, "auto", 512).actions)


def test_the_same_of_a_folder(tmp_path: Path) -> None:
    long = convert(DEMO, tmp_path / "long", method="yarn", target=4 * L)
    back = convert(long, tmp_path / "back", target=L)
    assert (back / "config.json").read_bytes() == (DEMO / "config.json").read_bytes()
    assert check_source(open_source(back)).ok


def test_what_a_file_reaches_is_the_target_of_its_safetensors(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L}
    source = edited(tmp_path / "source", rope_scaling=yarn, rope_parameters=None, max_position_embeddings=4 * L)
    file = convert(source, tmp_path / "x.gguf", to="gguf", base="unscaled")
    plan = plan_of(file, to="safetensors")
    assert plan.target_context == 4 * L
    assert "length-above" not in codes(plan)


def test_a_file_whose_length_alone_was_raised_comes_back(tmp_path: Path) -> None:
    file = convert(DEMO, tmp_path / "x.gguf", to="gguf")
    # Trained for more than it says: only the length is raised.
    longer = convert(file, tmp_path / "y.gguf", original_context=2 * L, target=2 * L)
    back = convert(longer, tmp_path / "back", to="safetensors")
    assert json.loads((back / "config.json").read_text())["max_position_embeddings"] == 2 * L


def test_a_family_that_is_named_decides() -> None:
    yarn: dict[str, Any] = {
        "context_length": 4096,
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 1024,
    }
    with pytest.raises(RefusedError):
        planned(contents(**yarn), "yarn", 8192)
    # Qwen's cards tell readers to add yarn.
    assert planned(contents(**yarn), "yarn", 8192, family="qwen2").trained_context == 1024


def test_overstated_original_lengths_are_known_too() -> None:
    source = contents(
        "qwen3",
        context_length=163840,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=40960,
    )
    assert planned(source, "yarn", 262144).trained_context == 32768


@pytest.mark.parametrize(("recipe", "length"), [({}, 4 * L), ({"method": "yarn", "target": 8 * L}, 8 * L)])
def test_the_tokenizer_knows_the_length(tmp_path: Path, recipe: dict[str, Any], length: int) -> None:
    file = convert(DEMO, tmp_path / "x.gguf", to="gguf", method="yarn", target=4 * L)
    back = convert(file, tmp_path / "back", to="safetensors", **recipe)
    assert json.loads((back / "tokenizer_config.json").read_text())["model_max_length"] == length


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    file = convert(DEMO, tmp_path / "x.gguf", to="gguf")
    blob = file.rename(tmp_path / "sha256-0123")
    assert open_source(blob).contents.gguf is not None
