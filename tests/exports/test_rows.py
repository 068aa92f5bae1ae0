"""The rows beside what is known elsewhere of the same families and architectures."""

from __future__ import annotations

import pytest

from ctxextend.exports.row import Row, pair_k, pair_q
from ctxextend.exports.rows import ROWS
from ctxextend.families import FAMILIES
from ctxextend.formats.gguf_architectures import ARCHITECTURES, OF_FAMILY, WITHOUT_ROPE

ALL = pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.family)


@ALL
def test_the_architecture_is_that_of_the_family(row: Row) -> None:
    assert OF_FAMILY[row.family] == row.architecture
    assert row.model_type in FAMILIES[row.family].model_types


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.position == "rope"], ids=lambda row: row.family)
def test_heads_are_paired_as_the_architecture_turns_them(row: Row) -> None:
    """Rows change places exactly where the checkpoint pairs halves and llama.cpp neighbours."""
    moved = [rule for rule in row.tensors if {pair_q, pair_k} & set(rule.operations)]
    pairings = FAMILIES[row.family].pairing, ARCHITECTURES[row.architecture].pairing
    assert bool(moved) == (pairings == ("half", "interleaved"))
    assert pairings != ("interleaved", "half")
    assert {rule.operations for rule in moved if ".q_proj." in rule.hf} <= {(pair_q,)}
    assert {rule.operations for rule in moved if ".k_proj." in rule.hf} <= {(pair_k,)}


@ALL
def test_positions_are_those_of_the_family_and_the_architecture(row: Row) -> None:
    known = {**ARCHITECTURES, **WITHOUT_ROPE}[row.architecture]
    assert row.position == FAMILIES[row.family].position == known.position


@ALL
def test_a_key_is_said_once(row: Row) -> None:
    names = [key.name for key in row.keys]
    assert len(names) == len(set(names))


@ALL
def test_every_tensor_can_be_taken_back(row: Row) -> None:
    """A checkpoint's tensor is one rule's, but for kv_b and fused experts, whose halves are, and tied embeddings."""
    for rule in row.tensors:
        others = [other for other in row.tensors if other.hf == rule.hf and other is not rule]
        parts = "kv_b_proj" in rule.hf or "gate_up_proj" in rule.hf or "embed" in rule.hf
        assert not others or parts, rule.hf
