"""What every family's row must hold to."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import ctxextend.families
from ctxextend.errors import RefusedError, UnknownNameError
from ctxextend.families import FAMILIES, Family, find_family
from ctxextend.formats.hf_read import read_rope
from tests.factories import family_config, inspected

ROW = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
ROTARY = [row for row in FAMILIES.values() if row.position == "rope" and row.refusal is None]
ROTARY_ROW = pytest.mark.parametrize("family", ROTARY, ids=[row.name for row in ROTARY])

#: Model types that transformers 5.23 has no class for, and where they are from.
ELSEWHERE: dict[str, str] = {}


def test_rows_are_sorted_and_named_once() -> None:
    rooms = sorted(Path(ctxextend.families.__file__).parent.glob("*.py"))
    assert list(FAMILIES) == sorted(FAMILIES)
    rows = sum(room.read_text(encoding="utf-8").count("    Family(\n") for room in rooms)
    assert rows == len(FAMILIES), "a name that stands twice would hide a row"


def test_a_model_type_belongs_to_one_row() -> None:
    types = [model_type for row in FAMILIES.values() for model_type in row.model_types]
    assert len(types) == len(set(types))


@ROW
def test_its_model_types_exist(family: Family) -> None:
    assert family.model_types
    for model_type in family.model_types:
        assert model_type in CONFIG_MAPPING or model_type in ELSEWHERE
        assert find_family({"model_type": model_type}) is family
    assert find_family({}, treat_as=family.name) is family


@ROTARY_ROW
def test_its_plain_config_is_read(family: Family) -> None:
    rope = read_rope(family_config(family), family)
    layers = sorted(layer for group in rope.groups for layer in group.layers)
    assert layers == list(range(family_config(family)["num_hidden_layers"]))
    assert any(group.spec is not None for group in rope.groups)
    for group in rope.groups:
        assert (group.spec is None) == (group.label in family.unrotated)


@ROTARY_ROW
def test_a_config_of_the_bare_numbers_is_read(family: Family) -> None:
    """Everything else has the class's own default."""
    bare = {
        "model_type": family.model_types[0],
        "num_hidden_layers": 8,
        "hidden_size": 256,
        "num_attention_heads": 4,
    }
    found = inspected(bare)
    assert found.trained_context > 0
    assert found.groups
    spec = next(group.spec for group in found.groups if group.spec is not None)
    assert spec.rope_theta in (family.rope_theta, family.local_rope_theta)


@ROTARY_ROW
def test_its_default_length_and_base_are_those_of_transformers(family: Family) -> None:
    config_class = CONFIG_MAPPING[family.model_types[-1]]
    default = config_class()
    text = default.get_text_config()
    assert family.max_position_embeddings == text.max_position_embeddings
    parameters = text.rope_parameters
    nested = parameters.get("full_attention", parameters)
    assert family.rope_theta == nested["rope_theta"]
    if "sliding_attention" in parameters:
        assert family.local_rope_theta == parameters["sliding_attention"]["rope_theta"]
    if "partial_rotary_factor" in nested:
        assert family.partial_rotary_factor == nested["partial_rotary_factor"]


@ROW
def test_a_family_that_cannot_be_extended_says_why(family: Family) -> None:
    if family in ROTARY:
        return
    found = inspected(family_config(family))
    assert found.rope is None
    assert found.groups == ()
    assert len(found.notes[-1].message) > 20


def test_an_unknown_model_type_is_refused_with_the_nearest() -> None:
    with pytest.raises(RefusedError) as caught:
        find_family({"model_type": "qwen9"})
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None
    assert "qwen3" in caught.value.hint
    assert "--family NAME" in caught.value.hint


@pytest.mark.parametrize("model_type", [None, 7, "", ["llama"]])
def test_a_model_type_that_is_none_is_refused(model_type: object) -> None:
    with pytest.raises(RefusedError):
        find_family({"model_type": model_type})


def test_a_family_by_name_must_be_known() -> None:
    with pytest.raises(UnknownNameError, match="unknown family: lama"):
        find_family({}, treat_as="lama")
