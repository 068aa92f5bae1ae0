"""GGUF files of models without a rope that others made: what limits them, what is possible, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.findings import Check
from ctxextend.inspection import Inspection
from ctxextend.lab.runnable import require_next_token
from ctxextend.pipeline import check_source, inspect_source, open_source, plan_source, repair_source, run_plan
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from tests.gguf_factory import keys, write_model

TRAINED: Final = 64
TABLE: Final = "position_embd.weight"

#: What files of each architecture have beside their sizes, as llama.cpp's converter writes them (b11434).
LEARNED: Final[dict[str, dict[str, Any]]] = {
    "starcoder": {"attention.head_count_kv": 1, "attention.layer_norm_epsilon": 1e-5},
    "bert": {"attention.causal": False, "attention.layer_norm_epsilon": 1e-12, "pooling_type": 1},
}
ALIBI: Final[dict[str, dict[str, Any]]] = {
    "jina-bert-v2": {"attention.causal": False, "attention.layer_norm_epsilon": 1e-12},
    "refact": {"attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5},
    "jais": {"attention.max_alibi_bias": 16.0, "attention.layer_norm_epsilon": 1e-5},
    # The 13B, which nothing but its layers tells from the 7B; the keys of a rope stand in its files too.
    "baichuan": {"block_count": 40, "rope.dimension_count": 16, "attention.layer_norm_rms_epsilon": 1e-6},
}


def written(path: Path, architecture: str, *, rows: int | None = TRAINED, **changes: Any) -> Path:
    """A file of four heads; of its weights only those that tell of positions and types."""
    own = {**LEARNED, **ALIBI}[architecture]
    sizes = {"attention__head_count": 4, "attention__head_count_kv": None, "rope__freq_base": None}
    stated = keys(architecture, **sizes, attention__layer_norm_rms_epsilon=None, context_length=TRAINED)
    stated |= {f"{architecture}.{key}": value for key, value in {**own, **changes}.items() if value is not None}
    weights = {"token_embd.weight": np.zeros((96, 64), "f4")}
    if rows is not None and architecture in LEARNED:
        weights[TABLE] = np.zeros((rows, 64), "f4")
    return write_model(path, stated, weights)


def inspected(path: Path) -> Inspection:
    return inspect_source(open_source(path), Recipe())


def plan_of(path: Path, **asked: Any) -> Plan:
    return plan_source(open_source(path), Recipe(**asked))


def refusal(path: Path, **asked: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        plan_of(path, **asked)
    return caught.value


def severities(found: Check) -> dict[str, str]:
    return {finding.code: finding.severity for finding in found.findings}


@pytest.mark.parametrize("architecture", LEARNED)
def test_a_table_is_what_limits_the_length(tmp_path: Path, architecture: str) -> None:
    path = written(tmp_path / "model.gguf", architecture)
    found = inspected(path)
    assert (found.position, found.trained_context, found.current_context) == ("learned", TRAINED, TRAINED)
    notes = {note.code: note.message for note in found.notes}
    assert TABLE in notes["trained-context"]
    assert "one row a token" in notes["position-learned"]
    checked = check_source(open_source(path))
    assert checked.ok
    assert [report.max_context for report in checked.runtimes] == [TRAINED, TRAINED]


def test_an_encoder_keeps_no_cache(tmp_path: Path) -> None:
    assert inspected(written(tmp_path / "bert.gguf", "bert")).kv_cache is None
    cache = inspected(written(tmp_path / "starcoder.gguf", "starcoder")).kv_cache
    assert cache is not None
    # Two layers, one head of 16 for keys and one for values, two bytes each.
    assert cache.bytes_per_token == 2 * 2 * 16 * 2


@pytest.mark.parametrize("architecture", ["bert", "jina-bert-v2"])
def test_an_encoder_predicts_no_token(tmp_path: Path, architecture: str) -> None:
    opened = open_source(written(tmp_path / "model.gguf", architecture))
    with pytest.raises(RefusedError) as caught:
        require_next_token(opened, inspect_source(opened, Recipe()))
    assert caught.value.code == "no-next-token"
    # There is no config.json to say it in.
    assert "config.json" not in str(caught.value.hint)


@pytest.mark.parametrize("architecture", LEARNED)
def test_a_table_does_not_grow_in_a_file(tmp_path: Path, architecture: str) -> None:
    path = written(tmp_path / "model.gguf", architecture)
    error = refusal(path, method="absolute", target=256)
    assert (error.code, error.key) == ("stored-positions", TABLE)
    # Neither is exported here, so the converter has to come after.
    assert "--converter" in str(error.hint)
    assert refusal(path, method="yarn", target=256).code == "no-rope"
    assert refusal(path, method="alibi", target=256).code == "other-positions"
    within = plan_of(path, target=TRAINED // 2)
    assert (within.method, within.trained_context) == ("none", TRAINED)


@pytest.mark.parametrize("architecture", LEARNED)
def test_no_safetensors_are_made_of_it(tmp_path: Path, architecture: str) -> None:
    error = refusal(written(tmp_path / "model.gguf", architecture), to="safetensors")
    assert (error.code, error.found) == ("unknown-export", architecture)


@pytest.mark.parametrize("architecture", LEARNED)
def test_the_table_counts_and_not_what_is_said_of_it(tmp_path: Path, architecture: str) -> None:
    """The mistake of raising the key alone: llama.cpp makes a table of that size, and refuses another one."""
    path = written(tmp_path / "model.gguf", architecture, context_length=256)
    found = inspected(path)
    assert found.trained_context == TRAINED
    assert "table-rows" in {note.code for note in found.notes}
    checked = check_source(open_source(path))
    assert not checked.ok
    assert severities(checked)["table-rows"] == "error"
    (fault,) = (finding for finding in checked.findings if finding.code == "table-rows")
    assert fault.fix == f"set {architecture}.context_length = {TRAINED}"
    mended, _ = run_plan(repair_source(open_source(path)), open_source(path), tmp_path / "mended.gguf")
    assert inspected(mended).current_context == TRAINED
    assert check_source(open_source(mended)).ok
    with pytest.raises(RefusedError) as caught:
        inspect_source(open_source(path), Recipe(original_context=256))
    assert caught.value.code == "trained-length-known"


@pytest.mark.parametrize("architecture", ALIBI)
def test_alibi_is_raised_whatever_the_architecture(tmp_path: Path, architecture: str) -> None:
    path = written(tmp_path / "model.gguf", architecture)
    found = inspected(path)
    assert (found.position, found.trained_context) == ("alibi", TRAINED)
    plan = plan_of(path, target=256)
    # The gentlest of four heads: 2 to the -8th, or what the file's largest exponent makes of it.
    slope = 2.0 ** -(16 if architecture == "jais" else 8)
    assert f"takes {slope * TRAINED:.3g} nats off at {TRAINED} tokens" in plan.reasons[0]
    long, _ = run_plan(plan, open_source(path), tmp_path / "long.gguf")
    after = inspected(long)
    assert (after.trained_context, after.current_context) == (TRAINED, 256)
    assert check_source(open_source(long)).ok
    assert refusal(path, method="absolute", target=256).code == "other-positions"
    assert refusal(path, method="yarn", target=256).code == "no-rope"


def test_the_smaller_baichuan_has_a_rope(tmp_path: Path) -> None:
    found = inspected(written(tmp_path / "model.gguf", "baichuan", block_count=32))
    assert found.position == "rope"
    assert [len(group.layers) for group in found.groups] == [32]


@pytest.mark.parametrize("architecture", LEARNED)
def test_a_table_that_is_not_there(tmp_path: Path, architecture: str) -> None:
    check = check_source(open_source(written(tmp_path / "x.gguf", architecture, rows=None)))
    assert not check.ok
    assert "table-missing" in {finding.code for finding in check.findings}


def test_a_table_that_nothing_reads_counts_for_nothing(tmp_path: Path) -> None:
    """llama.cpp loads position_embd for none of these."""
    path = written(tmp_path / "x.gguf", "jina-bert-v2")
    with_table = write_model(
        tmp_path / "y.gguf", keys("llama", context_length=1024), {TABLE: np.zeros((TRAINED, 64), "f4")}
    )
    assert inspected(path).position == "alibi"
    assert inspected(with_table).trained_context == 1024
    assert "table-rows" not in {finding.code for finding in check_source(open_source(with_table)).findings}


@pytest.mark.parametrize("bias", [None, 0.0, -3.0])
def test_alibi_without_a_bias_is_no_position_at_all(tmp_path: Path, bias: float | None) -> None:
    changes: dict[str, Any] = {"attention.max_alibi_bias": bias}
    path = written(tmp_path / "x.gguf", "jais", **changes)
    with pytest.raises(CheckpointError) as caught:
        plan_of(path, factor=2.0)
    assert caught.value.key == "jais.attention.max_alibi_bias"
