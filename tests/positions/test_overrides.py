"""What serves the original files of a model without a rope at another length."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ctxextend.plan import edits_of
from ctxextend.position_plan import verify_positions
from ctxextend.recipe import Recipe
from ctxextend.runtimes.overrides import overrides
from tests.positions.factory import BLOOM, FALCON, MPT, planned


@pytest.mark.parametrize(
    ("published", "key"), [(BLOOM, "seq_length"), (MPT, "max_seq_len"), (FALCON, "max_position_embeddings")]
)
def test_the_length_goes_by_the_names_of_the_families(published: Any, key: str) -> None:
    plan = planned(published, Recipe(target=8192))
    said = overrides(edits_of(plan)["config.json"], name="org/model", target=8192)
    assert said.config == {key: 8192}
    assert f'{{"{key}": 8192}}' in str(said.vllm)


def test_what_has_no_such_model_serves_none() -> None:
    plan = planned(BLOOM, Recipe(target=8192))
    verdicts = verify_positions(plan, {**BLOOM[0], "seq_length": 8192}, {})
    absent = {verdict.reader.runtime for verdict in verdicts if verdict.reading.absent}
    said = overrides((), name="org/model", target=8192, absent=absent)
    assert set(msgspec.to_builtins(said)) == {"schema", "config", "vllm", "transformers"}
