"""Settings of each label, sizes by label, and what a conversion of such a config changes: all worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ctxextend.errors import CheckpointError
from ctxextend.families import FAMILIES
from ctxextend.formats.hf_read import read_rope, settings_for
from ctxextend.kv_cache import KvCache
from ctxextend.recipe import Recipe
from tests.factories import converted, family_config, inspected, planned

FULL, SLIDING = "full_attention", "sliding_attention"


def after(config: dict[str, Any], method: str = "ntk", *, factor: int = 4, **options: Any) -> dict[str, Any]:
    """What changed in a config: new and different values, and None for what is gone."""
    target = factor * config["max_position_embeddings"]
    recipe = Recipe(method=method, target=target, runtimes=("transformers",), allow=("unreadable",))
    edited = converted(config, planned(config, recipe, **options))
    edited.pop("ctxextend")
    gone = {key: None for key in config if key not in edited}
    return {key: value for key, value in edited.items() if key not in config or config[key] != value} | gone


def ntk(theta: float, dim: int, factor: float = 4.0) -> float:
    """The textbook's base: theta * s ** (d / (d - 2))."""
    return float(theta * factor ** (dim / (dim - 2)))


def test_only_the_extended_labels_base_changes() -> None:
    sliding = {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 1.0}
    full = {"rope_theta": 500000, "rope_type": "default", "partial_rotary_factor": 0.5}
    config = family_config(FAMILIES["laguna"], rope_parameters={SLIDING: sliding, FULL: full})
    del config["rope_theta"]
    # A head of 32 dimensions, half of it turned.
    theta = pytest.approx(ntk(500000.0, 16), rel=1e-12)
    assert after(config) == {
        "max_position_embeddings": 4096,
        "rope_parameters": {SLIDING: sliding, FULL: {**full, "rope_theta": theta}},
    }


def test_a_config_that_says_nothing_is_given_every_label() -> None:
    """A class that finds rope_parameters doesn't fill in what is missing."""
    config = family_config(FAMILIES["gemma4"])
    del config["rope_theta"]
    # Eight of 32 pairs turn, over the exponents of a whole head of 64: theta ** (2 * 7 / 64) grows by 4.
    theta = pytest.approx(1000000.0 * 4.0 ** (64 / 14), rel=1e-12)
    assert after(config) == {
        "max_position_embeddings": 4096,
        "rope_parameters": {
            FULL: {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": 0.25},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def test_linear_over_a_proportional_rope_is_its_factor() -> None:
    changed = after(family_config(FAMILIES["gemma4"]), "linear")["rope_parameters"][FULL]
    assert changed == {
        "rope_type": "proportional",
        "factor": 4.0,
        "rope_theta": 1000000.0,
        "partial_rotary_factor": 0.25,
    }


def test_lists_of_one_base_a_layer_follow() -> None:
    config = family_config(
        FAMILIES["step3p5"],
        num_hidden_layers=3,
        layer_types=[FULL, SLIDING, FULL],
        rope_theta=[5000000.0, 10000.0, 5000000.0],
        partial_rotary_factors=[0.5, 1.0, 0.5],
    )
    theta = pytest.approx(ntk(5000000.0, 16), rel=1e-12)
    assert after(config) == {
        "max_position_embeddings": 4096,
        "rope_theta": [theta, 10000.0, theta],
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        },
    }


def test_a_key_of_its_own_for_a_labels_base_follows() -> None:
    config = family_config(FAMILIES["modernbert"])
    changed = after(config)
    assert changed["global_rope_theta"] == changed["rope_parameters"][FULL]["rope_theta"]
    assert changed["global_rope_theta"] == pytest.approx(ntk(160000.0, 32), rel=1e-12)
    assert "local_rope_theta" not in changed
    del config["global_rope_theta"]
    assert after(config)["global_rope_theta"] == changed["global_rope_theta"], "transformers 4 knows no other"


def test_an_older_scaling_that_speaks_of_both_labels_is_taken_apart() -> None:
    """ModernBERT's class lays rope_scaling over both labels: left beside rope_parameters it would scale again."""
    config = family_config(FAMILIES["modernbert"], rope_scaling={"rope_type": "linear", "factor": 2.0})
    changed = after(config, "linear", base="trained", original_context=1024)
    assert changed["rope_scaling"] is None
    assert changed["rope_parameters"][FULL]["factor"] == 8.0
    assert changed["rope_parameters"][SLIDING]["factor"] == 2.0


def test_a_flat_yarn_of_deepseek_v4_becomes_its_labels() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    config = family_config(FAMILIES["deepseek_v4"], rope_scaling=yarn)
    main, compress = (settings_for(config, FAMILIES["deepseek_v4"], label) for label in ("main", "compress"))
    assert main == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    own = {"rope_theta": 160000.0, "partial_rotary_factor": 0.5, "attention_factor": 1.0}
    assert compress == {**yarn, "rope_type": "yarn", **own}
    changed = after(config, "yarn", base="unscaled")
    assert changed["rope_scaling"] is None
    assert changed["rope_parameters"]["main"] == main


@pytest.mark.parametrize(
    ("name", "outer", "inner", "expected"),
    [
        # The top level's counts for flat settings alone (modeling_rope_utils.py, standardize_rope_params).
        ("llama", 128, 512, 128),
        ("gemma3", 128, 512, 512),
        ("gemma3", 128, None, 1024),
        ("olmo3", 128, 512, 512),
        ("gemma3n", 128, 512, 512),
        ("laguna", 128, 512, 512),
    ],
)
def test_whose_original_length_counts(name: str, outer: int, inner: int | None, expected: int) -> None:
    family = FAMILIES[name]
    yarn: dict[str, Any] = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
    if inner is not None:
        yarn["original_max_position_embeddings"] = inner
    flat = {"rope_scaling": yarn} if family.form == "flat" else {}
    nested = {"rope_parameters": dict.fromkeys((FULL, SLIDING), yarn)} if family.form == "nested" else {}
    config = family_config(family, original_max_position_embeddings=outer, **flat, **nested)
    group = next(group for group in read_rope(config, family).groups if group.label == FULL)
    assert getattr(group.scaling, "original_max_position_embeddings", None) == expected


def cache(name: str, **changes: Any) -> KvCache | None:
    return inspected(family_config(FAMILIES[name], **changes)).kv_cache


def test_a_cache_counts_each_labels_heads() -> None:
    """Two vectors a KV head: 5 layers of windows keep 2 * 32 numbers, the one of full attention 2 * 64."""
    found = cache("gemma4")
    assert found is not None
    assert found.bytes_per_token == 2 * (5 * 64 + 128)
    assert found.size_bytes(100) == 2 * (5 * 64 * 16 + 128 * 100)


@pytest.mark.parametrize(
    ("name", "changes", "numbers"),
    [
        ("gemma4", {"attention_k_eq_v": True, "num_global_key_value_heads": 2}, 5 * 64 + 2 * 2 * 64),
        ("gemma4", {"attention_k_eq_v": False, "num_global_key_value_heads": 2}, 5 * 64 + 2 * 64),
        ("gemma4", {"per_layer_config": {"5": {"head_dim": 128, "num_key_value_heads": 2}}}, 5 * 64 + 2 * 2 * 128),
        # The last two layers use what others keep: one of windows and the one of full attention.
        ("gemma4", {"num_kv_shared_layers": 2}, 4 * 64),
        # Its class shares 15 of the layers by itself.
        ("gemma3n", {"num_hidden_layers": 20, "num_kv_shared_layers": None}, 5 * 2 * 32),
        # Latent attention keeps the compressed vector and the turned part: 16 + 32; linear layers keep nothing.
        ("bailing_hybrid", {}, 48),
        ("longcat_flash", {"num_layers": 3}, 6 * 48),
        # An index keeps a key of its own a token.
        ("deepseek_v32", {}, 48 + 64),
        # Two of six layers have keys and values, the others are convolutions.
        ("lfm3", {}, 2 * 2 * 32),
    ],
)
def test_numbers_a_token(name: str, changes: dict[str, Any], numbers: int) -> None:
    given = {key: value for key, value in changes.items() if value is not None}
    config = family_config(FAMILIES[name], **given)
    for key in changes.keys() - given.keys():
        del config[key]
    found = inspected(config).kv_cache
    assert found is not None
    assert found.bytes_per_token == 2 * numbers


@pytest.mark.parametrize("name", ["modernbert", "deepseek_v4", "mimo_v2_flash"])
def test_a_cache_that_does_not_follow_from_the_config_is_not_claimed(name: str) -> None:
    assert cache(name) is None


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("gemma4", {"layer_types": ["chunked_attention"] * 6}, "layer_types"),
        ("laguna", {"rope_parameters": {FULL: "yarn"}}, "rope_parameters.full_attention"),
        ("dots3_note", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling"),
    ],
)
def test_what_cannot_be_followed_is_said_with_its_key(name: str, changes: dict[str, Any], key: str) -> None:
    family = FAMILIES[name]
    with pytest.raises(CheckpointError) as caught:
        read_rope(family_config(family, **changes), family)
    assert caught.value.key == key
