"""What an export to GGUF would hold: this checkpoint's own table, whatever it is compared with."""

from __future__ import annotations

from typing import Any

import pytest

from ctxextend.families import FAMILIES
from ctxextend.formats.hf_layers import FULL
from ctxextend.formats.hf_read import read_rope
from ctxextend.gguf_outlook import Outlook, outlook
from tests.factories import family_config
from tests.methods import closed_forms as paper


def looked(family: str = "llama", **changes: Any) -> Outlook:
    row = FAMILIES[family]
    return outlook(family, read_rope(family_config(row, **changes), row), target=4096)


def test_it_reads_the_checkpoints_own_scaling() -> None:
    found = looked(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024})
    assert found.form == "native"
    assert found.reading.tables[FULL].inv_freq == pytest.approx(paper.yarn(10000.0, 32, 4.0, 1024), rel=1e-6)
    plain = looked()
    assert plain.form == "theta"
    assert plain.reading.tables[FULL].inv_freq == pytest.approx(paper.plain(10000.0, 32), rel=1e-6)


def test_a_table_that_no_form_carries_is_a_problem() -> None:
    """Qwen3's architecture loads no tensor, and its betas aren't read (llama.cpp b11434)."""
    own = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 8.0}
    found = looked("qwen3", rope_scaling=own)
    assert found.form is None
    assert "no form of this table" in (found.reading.problem or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 1e308},
        {"rope_scaling": {"rope_type": "yarn", "factor": 1e200, "original_max_position_embeddings": 1024}},
    ],
)
def test_numbers_past_single_precision_are_a_problem(changes: dict[str, Any]) -> None:
    for family in ("llama", "qwen3"):
        assert looked(family, **changes).reading.problem


def test_layers_without_any_rope_are_unknown() -> None:
    found = looked("smollm3", no_rope_layers=[0], num_hidden_layers=1)
    assert "no layer" in (found.reading.unknown or "")
