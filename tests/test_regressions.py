"""Bugs that were found by using the tool, each with the test that would have caught it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from ctxextend import Options, open_source, plan_source, run_plan
from ctxextend.apply import verify
from ctxextend.changes import Carry
from ctxextend.checkpoint.directory import read_directory
from ctxextend.errors import CheckpointError, DisagreementError, RefusedError, UsageError
from ctxextend.families import FAMILIES
from ctxextend.formats.hf_read import read_rope
from ctxextend.inspection import inspect
from ctxextend.plan import make_plan
from ctxextend.recipe import Recipe
from tests.factories import TINY, family_config


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


def planned_yarn(tmp_path: Path, config: dict[str, Any], **wishes: Any) -> Any:
    recipe = Recipe(**{"method": "yarn", "target": 65536, **wishes})
    contents = read_directory(checkpoint(tmp_path / "m", config))
    inspection = inspect(contents, base=recipe.base, original_context=recipe.original_context)
    return make_plan(contents, inspection, recipe)


LINEAR4 = {"type": "linear", "factor": 4.0}


def test_a_trained_in_linear_says_nothing_of_its_length(tmp_path: Path) -> None:
    """Vicuna-16k states 4096 beside linear 4, LongChat-16k 16384: only the user knows which this is."""
    config = {**TINY, "max_position_embeddings": 4096, "rope_scaling": LINEAR4}
    with pytest.raises(RefusedError) as error:
        planned_yarn(tmp_path, config, base="trained")
    assert error.value.code == "undecidable-length"


def test_a_length_synonym_settles_a_trained_in_linear(tmp_path: Path) -> None:
    config = {**TINY, "max_position_embeddings": 4096, "max_sequence_length": 16384, "rope_scaling": LINEAR4}
    plan = planned_yarn(tmp_path, config, base="trained", method="linear", target=32768)
    assert plan.trained_context == 16384
    assert plan.groups[0].after.scaling.factor == 8.0


def test_a_trained_in_yarn_reaches_what_it_says(tmp_path: Path) -> None:
    """Yarn-Mistral-7b-128k states 32768, but yarn 16 over 8192 reaches 131072."""
    yarn = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192, "finetuned": True}
    config = {**TINY, "max_position_embeddings": 32768, "rope_scaling": yarn}
    plan = planned_yarn(tmp_path, config, target=262144, runtimes=("transformers",))
    assert (plan.trained_context, plan.factor) == (131072, 2.0)


def test_a_trained_in_yarn_without_its_original_length_is_refused(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 32.0, "finetuned": True}
    with pytest.raises(RefusedError) as error:
        planned_yarn(tmp_path, {**TINY, "max_position_embeddings": 131072, "rope_scaling": yarn}, target=1 << 20)
    assert error.value.code == "undecidable-length"


def test_dual_chunk_attention_is_not_training(tmp_path: Path) -> None:
    """Qwen2.5-7B-Instruct-1M states 1010000, trained on 262144."""
    chunk = {"original_max_position_embeddings": 262144}
    config = {**TINY, "model_type": "qwen2", "max_position_embeddings": 1010000, "dual_chunk_attention_config": chunk}
    contents = read_directory(checkpoint(tmp_path / "m", config))
    assert inspect(contents).trained_context == 262144


def test_a_stray_partial_rotary_factor_is_ignored_and_taken_out(tmp_path: Path) -> None:
    plan = planned_yarn(tmp_path, {**TINY, "partial_rotary_factor": 0.5}, target=4096)
    assert len(plan.groups[0].after.table.inv_freq) == 16
    (removed,) = [a for a in plan.actions if getattr(a, "pointer", "") == "/partial_rotary_factor"]
    assert removed.before == 0.5
    assert removed.after is UNSET


def test_a_dictionary_inside_flat_settings_hides_nothing(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "finetuned": False, "meta": {}}
    plan = planned_yarn(tmp_path, {**TINY, "max_position_embeddings": 16384, "rope_scaling": yarn})
    assert (plan.trained_context, plan.factor) == (4096, 16.0)


def test_gpt_neox_reads_its_own_key_for_theta(tmp_path: Path) -> None:
    config = {**TINY, "model_type": "gpt_neox", "rope_theta": 50000, "rotary_pct": 1.0}
    contents = read_directory(checkpoint(tmp_path / "m", config))
    (group,) = inspect(contents).groups
    assert group.spec is not None
    assert group.spec.rope_theta == 10000.0


def test_a_partial_rotary_factor_of_the_newer_form_reaches_older_readers(tmp_path: Path) -> None:
    """phi-2 saved by transformers 5, with another share than the class's 0.5."""
    newer = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    config = {**{k: v for k, v in TINY.items() if k != "rope_theta"}, "model_type": "phi", "rope_parameters": newer}
    plan = planned_yarn(tmp_path, config, target=4096, method="ntk")
    assert plan.groups[0].after.encoding == "theta"
    (added,) = [a for a in plan.actions if getattr(a, "pointer", "") == "/partial_rotary_factor"]
    assert added.after == 0.25


def test_olmo2_linear_is_written_as_transformers_4_takes_it(tmp_path: Path) -> None:
    wishes = {"method": "linear", "target": 4096, "runtimes": ("transformers",)}
    plan = planned_yarn(tmp_path, {**TINY, "model_type": "olmo2"}, **wishes)
    (older,) = [a.after for a in plan.actions if getattr(a, "pointer", "") == "/rope_scaling"]
    assert older == {"type": "linear", "factor": 4.0}


def test_auto_goes_on_where_a_method_cannot_be_written(tmp_path: Path) -> None:
    """Ministral 3 scales its queries by the original length, so ntk over its yarn has no form."""
    yarn = {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
        "rope_theta": 1000000.0,
    }
    config = {**TINY, "model_type": "ministral3", "max_position_embeddings": 262144, "rope_parameters": yarn}
    plan = planned_yarn(tmp_path, config, method="auto", target=1 << 20)
    assert plan.method == "yarn"
    assert plan.groups[0].after.scaling.factor == 64.0


def test_our_own_rope_is_not_taken_for_trained(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", dict(TINY))
    run_plan(plan_source(open_source(source), Recipe(method="ntk", target=4096)), open_source(source), tmp_path / "o")
    with pytest.raises(RefusedError) as error:
        plan_source(open_source(tmp_path / "o"), Recipe(method="ntk", target=8192, base="trained"))
    assert error.value.code == "ours-as-base"


def test_a_saved_plan_knows_its_family(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", {**TINY, "model_type": "something-new"})
    opened = open_source(source)
    plan = plan_source(opened, Recipe(method="ntk", target=4096, family="llama"))
    _out, manifest = run_plan(plan, opened, tmp_path / "o")
    assert all(found.agrees for found in manifest.verified)


def test_force_leaves_what_the_user_put_there(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", dict(TINY))
    opened, out = open_source(source), tmp_path / "o"
    plan = plan_source(opened, Recipe(method="ntk", target=4096))
    run_plan(plan, opened, out)
    run_plan(plan, opened, out, options=Options(force=True))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError) as error:
        run_plan(plan, opened, out, options=Options(force=True))
    assert error.value.code == "output-changed"
    (out / "notes.txt").unlink()
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace("4096", "4097"))
    with pytest.raises(RefusedError):
        run_plan(plan, opened, out, options=Options(force=True))


def test_one_known_misreader_does_not_switch_verification_off(tmp_path: Path) -> None:
    """gpt-oss: MLX-LM has no truncate and is excused; a wrong factor must still be caught for the others."""
    yarn = {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    }
    config = {
        **TINY,
        "num_hidden_layers": 2,
        "model_type": "gpt_oss",
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rope_scaling": yarn,
    }
    source = checkpoint(tmp_path / "m", config)
    opened = open_source(source)
    plan = plan_source(opened, Recipe(method="yarn", target=262144))
    assert plan.misread == ("mlx-lm >=0.32",)
    out, _manifest = run_plan(plan, opened, tmp_path / "o")
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace('"factor": 64.0', '"factor": 7.0'))
    with pytest.raises(DisagreementError):
        verify(plan, out)


@pytest.mark.parametrize(
    "odd",
    [
        {"rope_theta": 10**400},
        {"rope_theta": "10000"},
        {"num_hidden_layers": 0},
        {"rope_scaling": {"rope_type": "yarn", "factor": 10**400, "original_max_position_embeddings": 512}},
        {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
        {"rope_scaling": {"rope_type": "linear", "factor": -1.0}},
        {"rope_scaling": []},
        {"model_type": "mistral", "sliding_window": "1024"},
        {"model_type": "mistral", "sliding_window": True},
    ],
)
def test_odd_values_are_errors_of_the_checkpoint(odd: dict[str, Any], tmp_path: Path) -> None:
    contents = read_directory(checkpoint(tmp_path / "m", {**TINY, **odd}))
    with pytest.raises(CheckpointError) as error:
        inspect(contents)
    assert error.value.file == "config.json"


@pytest.mark.parametrize("sizes", [{"head_dim": 10**12}, {"hidden_size": 10**12}])
def test_a_head_of_absurd_size_is_told_before_anything_is_computed(sizes: dict[str, int]) -> None:
    """It took all memory: a table has half as many frequencies as a head has dimensions."""
    config = {**family_config(FAMILIES["llama"]), **sizes}
    with pytest.raises(CheckpointError, match="no model's heads have"):
        read_rope(config, FAMILIES["llama"])
