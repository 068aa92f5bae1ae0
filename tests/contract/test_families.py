"""What every family's row must hold to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import ctxextend.families
from ctxextend.errors import RefusedError, UnknownNameError
from ctxextend.families import FAMILIES, REFUSED, WRAPPERS, Family, find_family, variants
from ctxextend.formats.hf_layers import layer_labels
from ctxextend.formats.hf_read import read_rope
from tests.factories import family_config, inspected

ROW = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
ROTARY = [row for row in FAMILIES.values() if row.position == "rope" and row.refusal is None]
ROTARY_ROW = pytest.mark.parametrize("family", ROTARY, ids=[row.name for row in ROTARY])

#: Rows that a value of config.json leads to, beside the model type.
VARIANTS = {row.name for row in variants.ROWS}
#: Model types whose class can't be built without arguments, and the language model inside.
NOT_BY_DEFAULT = {"gemma4_assistant": "gemma4_text", "nougat": "mbart"}
#: Values without which a class has no rope, or the row is another.
SWITCHES: dict[str, dict[str, Any]] = {
    "exaone4_unwindowed": {"sliding_window": None},
    "granitemoehybrid": {"position_embedding_type": "rope", "layer_types": ["attention"] * 8},
    "kolibri1_unwindowed": {"sliding_window": None},
    "minimax_m2_half": {"rotary_dim": 64},
    "voxtral": {
        "model_type": "voxtral",
        "text_config": {"num_hidden_layers": 8, "hidden_size": 256, "num_attention_heads": 4},
    },
    "zamba2": {"use_mem_rope": True, "layers_block_type": ["hybrid"] * 8},
}


def test_rows_are_sorted_and_named_once() -> None:
    rooms = sorted(Path(ctxextend.families.__file__).parent.glob("*.py"))
    assert list(FAMILIES) == sorted(FAMILIES)
    rows = sum(room.read_text(encoding="utf-8").count("    Family(\n") for room in rooms)
    assert rows == len(FAMILIES), "a name that stands twice would hide a row"


def test_a_model_type_belongs_to_one_table() -> None:
    types = [model_type for row in FAMILIES.values() if row.name not in VARIANTS for model_type in row.model_types]
    types += [*REFUSED, *WRAPPERS]
    assert len(types) == len(set(types))


def text_of(model_type: str) -> PreTrainedConfig | None:
    """The configuration of a model type's language model, or of the model itself, with its defaults."""
    if model_type in NOT_BY_DEFAULT:
        return text_of(NOT_BY_DEFAULT[model_type])
    default: PreTrainedConfig = CONFIG_MAPPING[model_type]()
    return default.get_text_config(decoder=True)


def test_every_model_type_with_a_rope_is_known() -> None:
    """A row, a wrapper or a refusal: a new transformers with new model types fails here."""
    rotary = [name for name in CONFIG_MAPPING if getattr(text_of(name), "rope_parameters", None) is not None]
    assert len(rotary) > 300
    known = {model_type for row in FAMILIES.values() for model_type in row.model_types}
    assert sorted(set(rotary) - known - set(WRAPPERS) - set(REFUSED)) == []


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_model_type_is_refused_with_its_reason(model_type: str) -> None:
    with pytest.raises(RefusedError) as caught:
        find_family({"model_type": model_type})
    assert caught.value.code == "refused-family"
    assert REFUSED[model_type] in str(caught.value)


def test_what_is_refused_exists_and_has_a_reason() -> None:
    assert set(REFUSED) <= set(CONFIG_MAPPING)
    assert all(len(reason) > 20 for reason in REFUSED.values())


@ROW
def test_its_model_types_exist(family: Family) -> None:
    assert family.model_types
    for model_type in family.model_types:
        assert model_type in CONFIG_MAPPING
        if family.name not in VARIANTS:
            assert find_family({"model_type": model_type}).name == family.name
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
        **SWITCHES.get(family.name, {}),
    }
    found = inspected(bare)
    assert found.family == family
    assert found.trained_context > 0
    assert found.groups
    spec = next(group.spec for group in found.groups if group.spec is not None)
    by_class = [rope.rope_theta for rope in family.labels.values()]
    assert spec.rope_theta in (family.rope_theta, family.local_rope_theta, *by_class)


@ROTARY_ROW
def test_its_default_length_and_base_are_those_of_transformers(family: Family) -> None:
    config_class = CONFIG_MAPPING["voxtral" if family.name == "voxtral" else family.model_types[-1]]
    default = config_class()
    text = default.get_text_config()
    assert family.max_position_embeddings == text.max_position_embeddings
    parameters = text.rope_parameters
    if family.labels:
        return
    nested = parameters.get("full_attention", parameters)
    assert family.rope_theta == nested["rope_theta"]
    if "sliding_attention" in parameters:
        assert family.local_rope_theta == parameters["sliding_attention"]["rope_theta"]
    if "partial_rotary_factor" in nested and family.kv_cache != "latent":
        assert family.partial_rotary_factor == nested["partial_rotary_factor"]


#: Where the labels differ by name alone, or every config.json states what its layers are.
OTHER_LABELS = {"bamba", "falcon_h1", "granitemoehybrid", "mistral_large4", "qwen4_exp", "smollm3", "zamba2"}


@pytest.mark.parametrize("family", [row for row in ROTARY if row.name not in VARIANTS], ids=lambda row: row.name)
def test_layers_without_a_word_are_those_of_transformers(family: Family) -> None:
    labels = getattr(CONFIG_MAPPING[family.model_types[-1]]().get_text_config(), "layer_types", None)
    if not labels or family.labels or family.name in OTHER_LABELS:
        return
    assert layer_labels({"num_hidden_layers": len(labels)}, family) == tuple(labels)


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
