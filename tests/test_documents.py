"""The fields of the JSON documents that others rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctxextend.documents import fits, inspection_document, lengths_of_interest
from ctxextend.inspection import Inspection
from ctxextend.pipeline import inspect_source, open_source
from ctxextend.recipe import Recipe
from tests.cli.support import LLAMA, MISTRAL, TRAINED, build

FIELDS = {
    "schema",
    "model_type",
    "position",
    "format",
    "parameters",
    "size_bytes",
    "trained_context",
    "current_context",
    "groups",
    "kv_cache",
    "notes",
}
GROUP_FIELDS = {"label", "layers", "theta", "head_dim", "rotary_dim", "scaling", "origin", "window"}


def inspected(folder: Path, **config: Any) -> Inspection:
    build(folder, {**LLAMA, **config})
    return inspect_source(open_source(folder), Recipe())


def printed(inspection: Inspection, *, target: int | None = None) -> Any:
    """The document as a reader of its JSON has it."""
    return msgspec.json.decode(msgspec.json.encode(inspection_document(inspection, target=target)))


@pytest.fixture
def plain(tmp_path: Path) -> Inspection:
    return inspected(tmp_path / "plain")


def test_the_fields(plain: Inspection) -> None:
    document = printed(plain)
    assert set(document) >= FIELDS
    assert all(set(group) >= GROUP_FIELDS for group in document["groups"])
    assert set(document["kv_cache"]) == {"bytes_per_token", "at"}
    assert "fits" not in document


def test_a_scaling_and_its_origin(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    (group,) = printed(inspected(tmp_path / "x", rope_scaling=scaling))["groups"]
    assert group["scaling"]["rope_type"] == "llama3"
    assert group["scaling"]["factor"] == 8.0
    assert group["origin"] == "trained"


def test_an_undecided_origin_is_none_of_the_contract(tmp_path: Path) -> None:
    inspection = inspected(tmp_path / "x", rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert inspection.groups[0].origin == "undecided"
    document = printed(inspection)
    assert document["groups"][0]["origin"] is None
    assert "origin-undecided" in [note["code"] for note in document["notes"]]


def test_a_model_without_a_rope(tmp_path: Path) -> None:
    document = printed(inspected(tmp_path / "x", model_type="gpt2", n_positions=1024))
    assert set(document) >= FIELDS
    assert (document["position"], document["groups"], document["kv_cache"]) == ("learned", [], None)
    memory = fits(inspected(tmp_path / "y", model_type="gpt2", n_positions=1024), 1 << 30)
    assert memory.context is None


def test_the_lengths_of_interest(plain: Inspection) -> None:
    assert lengths_of_interest(plain, None) == (TRAINED,)
    assert lengths_of_interest(plain, 4 * TRAINED) == (TRAINED, 4 * TRAINED)
    assert lengths_of_interest(plain, 128) == (128, TRAINED)


def test_what_fits(plain: Inspection) -> None:
    assert fits(plain, 10).context == 0
    assert fits(plain, plain.weight_bytes).context == 0
    # Two layers, two key-value heads of 16, keys and values, two bytes each: 256 bytes a token.
    assert fits(plain, plain.weight_bytes + 2559).context == 9
    assert fits(plain, plain.weight_bytes + 2560).context == 10


def test_windows_are_applied_to_the_cache(tmp_path: Path) -> None:
    folder = build(tmp_path / "x", MISTRAL)
    document = printed(inspect_source(open_source(folder), Recipe()), target=4 * TRAINED)
    assert document["groups"][0]["window"] == 128
    assert document["kv_cache"]["bytes_per_token"] == 256
    sizes = {row["context"]: row["bytes"] for row in document["kv_cache"]["at"] if row["dtype"] == "bfloat16"}
    assert sizes == {TRAINED: 256 * 128, 4 * TRAINED: 256 * 128}
