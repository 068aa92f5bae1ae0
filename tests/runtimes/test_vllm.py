"""vLLM's ways of reading a family, each from a closed form or from the engine's own source."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.families import FAMILIES
from ctxextend.runtimes.base import Reading
from ctxextend.runtimes.vllm import Vllm
from ctxextend.runtimes.vllm_families import MOVED_BEFORE_0_29, OLDER_WAYS, WAYS
from ctxextend.runtimes.vllm_older import VllmOlder
from tests.factories import family_config
from tests.methods import closed_forms as paper

FULL = "full_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
#: 1 + 0.1 ln 4: YaRN eq. 22.
TEMPERATURE = 1.0 + 0.1 * math.log(4.0)
READERS = pytest.mark.parametrize("reader", [Vllm(), VllmOlder()], ids=[">=0.30", "<=0.29"])


def read(reader: Vllm | VllmOlder, name: str, scaling: dict[str, Any] | None, **changes: Any) -> Reading:
    row = FAMILIES[name]
    config = family_config(row, **{"rope_scaling": scaling, "max_position_embeddings": 4096, **changes})
    return reader.effective(config, row, length=4096)


def base_of(name: str) -> tuple[float, int]:
    """The base and the rotated dimensions that a family's tiny config has, from its plain table."""
    plain = read(Vllm(), name, None).tables[FULL].inv_freq
    dim = 2 * len(plain)
    return plain[1] ** (-dim / 2.0), dim


def test_every_way_is_of_a_family_that_exists() -> None:
    assert {*WAYS, *OLDER_WAYS, *MOVED_BEFORE_0_29} <= set(FAMILIES)


@READERS
def test_a_family_whose_code_was_not_read_is_unknown(reader: Vllm | VllmOlder) -> None:
    for name in ("mistral4", "mistral_large4", "zaya"):
        reading = read(reader, name, None)
        assert reading.unknown is not None
        assert not reading.tables
        assert reading.problem is None


@READERS
def test_a_wrapper_whose_code_was_not_read_is_unknown(reader: Vllm | VllmOlder) -> None:
    inner = family_config(FAMILIES["llama"])
    for outer, unknown in (("llava", False), ("idefics3", False), ("got_ocr2", True), ("janus", True)):
        reading = reader.effective({"model_type": outer, "text_config": inner}, FAMILIES["llama"], length=1024)
        assert (reading.unknown is not None) is unknown, outer


@pytest.mark.parametrize("name", ["olmoe", "glm4_moe", "lfm2", "granitemoe", "qwen3_next", "seed_oss", "minimax_m2"])
def test_a_family_that_takes_the_whole_dictionary(name: str) -> None:
    theta, dim = base_of(name)
    found = read(Vllm(), name, {**YARN, "attention_factor": 1.25}).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.yarn(theta, dim, 4.0, 1024), rel=1e-6)
    assert found.attention_factor == 1.25


@pytest.mark.parametrize("name", ["ernie4_5", "ernie4_5_moe", "cohere2_moe"])
def test_interleaved_pairs_take_no_longrope(name: str) -> None:
    lists = [1.0] * 16
    scaling = {"rope_type": "longrope", "short_factor": lists, "long_factor": lists, "factor": 1.0}
    newer = {"rope_parameters": {**scaling, "rope_theta": 10000.0}}
    assert "half-split pairs" in (read(Vllm(), name, scaling, head_dim=32, **newer).problem or "")
    assert read(Vllm(), name, {"rope_type": "linear", "factor": 4.0}, head_dim=32).tables


@pytest.mark.parametrize(
    ("reader", "name", "placed"),
    [
        (Vllm(), "qwen3_vl", 1024),
        (Vllm(), "glm4v", 4096),
        (Vllm(), "qwen2_5_omni", 4096),
        (VllmOlder(), "qwen3_vl", 4096),
        (VllmOlder(), "qwen2_vl", 4096),
    ],
)
def test_where_sections_of_positions_place_the_ramp(reader: Vllm | VllmOlder, name: str, placed: int) -> None:
    """mrope.py enlarges the length to four times, unless the model file says otherwise (0.33: Qwen3-VL and later)."""
    plain = read(reader, name, {"rope_type": "default", "mrope_section": [5, 5, 6]}).tables[FULL].inv_freq
    dim = 2 * len(plain)
    theta = plain[1] ** (-dim / 2.0)
    found = read(reader, name, {**YARN, "mrope_section": [5, 5, 6]}).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.yarn(theta, dim, 4.0, placed), rel=1e-6)
    dropped = read(reader, name, {"rope_type": "linear", "factor": 4.0, "mrope_section": [5, 5, 6]})
    assert "drops the sections" in (dropped.problem or "")


def test_sections_that_config_json_does_not_have_are_not_dropped() -> None:
    """transformers_utils/config.py (uses_mrope): positions have three rows where the settings name sections."""
    found = read(Vllm(), "qwen2_vl", {"rope_type": "linear", "factor": 4.0}, rope_theta=10000.0).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 4.0), rel=1e-9)


def test_a_text_model_alone_loses_its_sections() -> None:
    """models/config.py:980-992: Qwen3.5's text-only class takes one row of positions."""
    row = FAMILIES["qwen3_5"]
    scaling = {"rope_type": "linear", "factor": 4.0, "mrope_section": [2, 1, 1]}
    text = family_config(row, rope_scaling=scaling, max_position_embeddings=4096)
    assert Vllm().effective(text, row, length=4096).tables
    wrapped = {"model_type": "qwen3_5", "text_config": text}
    assert "drops the sections" in (Vllm().effective(wrapped, row, length=4096).problem or "")


@pytest.mark.parametrize("name", ["glm4_moe_lite", "glm_moe_dsa", "deepseek_v32"])
def test_latent_attention_takes_everything_for_yarn(name: str) -> None:
    pair = {**YARN, "mscale": 0.5, "mscale_all_dim": 1.0}
    found = read(Vllm(), name, pair).tables
    (table,) = found.values()
    assert table.attention_factor == pytest.approx((1.0 + 0.05 * math.log(4.0)) / TEMPERATURE, rel=1e-9)
    assert table.softmax_factor == pytest.approx(TEMPERATURE**2, rel=1e-9)
    linear = read(Vllm(), name, {"rope_type": "linear", "factor": 4.0})
    assert linear.problem == "its latent attention takes linear for yarn"


def test_deepseek_v4_has_two_bases_and_no_temperature() -> None:
    """vllm/models/deepseek_v4/common/rope.py: the top level's bases, mscale and mscale_all_dim set to 0."""
    found = read(Vllm(), "deepseek_v4", YARN, rope_theta=50000.0, compress_rope_theta=160000.0).tables
    dim = 2 * len(found["main"].inv_freq)
    assert found["main"].inv_freq == pytest.approx(paper.plain(50000.0, dim), rel=1e-9)
    assert found["compress"].inv_freq == pytest.approx(paper.yarn(160000.0, dim, 4.0, 1024), rel=1e-9)
    assert found["compress"].attention_factor == 1.0
    linear = read(Vllm(), "deepseek_v4", {"rope_type": "linear", "factor": 4.0})
    assert linear.problem == "its latent attention takes linear for yarn"


def test_a_rope_that_reads_no_scaling() -> None:
    scaling = {"rope_type": "linear", "factor": 4.0, "mrope_section": [5, 5, 6]}
    found = read(Vllm(), "ernie4_5_vl_moe", scaling, rope_theta=500000.0).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.plain(500000.0, 2 * len(found.inv_freq)), rel=1e-9)


def test_dynamic_with_alpha_is_another_base() -> None:
    """dynamic_ntk_alpha_rope.py: theta * alpha ** (d / (d - 2)), at every length."""
    for reader in (Vllm(), VllmOlder()):
        found = read(reader, "llama", {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}).tables[FULL]
        assert found.inv_freq == pytest.approx(paper.plain(10000.0 * 1000.0 ** (32 / 30), 32), rel=1e-9)
    assert "alpha" in (read(Vllm(), "llama", {"rope_type": "dynamic", "factor": 1.0, "alpha": None}).problem or "")


@READERS
def test_a_stray_factor_in_a_plain_dictionary_multiplies_the_length(reader: Vllm | VllmOlder) -> None:
    """config/model.py:2598-2634 excludes types by name, and default isn't one of them; the cosines end before."""
    rows = 4096 if isinstance(reader, Vllm) else 2 * 4096
    assert read(reader, "llama", {"rope_type": "default", "factor": 2.0}).max_context == rows
    assert read(reader, "gemma3", {"rope_type": "linear", "factor": 2.0}).max_context == 4096
    assert read(reader, "gemma3n", None).max_context == 4096


@pytest.mark.parametrize(
    ("name", "scaling", "changes", "rows"),
    [
        # Each number is the length of the table that vLLM 0.33.0 makes (cos_sin_cache.shape[0], run).
        ("llama", {"rope_type": "dynamic", "factor": 4.0}, {}, 4096),
        ("llama", {"rope_type": "linear", "factor": 4.0}, {}, 16384),
        ("llama", {"rope_type": "linear", "factor": 4.0}, {"model_max_length": 8192}, 16384),
        ("llama", None, {"model_max_length": 8192}, 4096),
        ("gemma3", {"rope_type": "linear", "factor": 0.5}, {}, 2048),
        ("llama", YARN, {"max_position_embeddings": 8192}, 4096),
    ],
)
def test_the_length_ends_with_the_cosines(
    name: str, scaling: dict[str, Any] | None, changes: dict[str, Any], rows: int
) -> None:
    assert read(Vllm(), name, scaling, **changes).max_context == rows


@pytest.mark.parametrize("name", ["llama", "qwen3", "deepseek_v3"])
def test_a_share_of_the_head_counts_in_every_family(name: str) -> None:
    """rotary_embedding/__init__.py: rotary_dim is the head's size times partial_rotary_factor, scaled or not."""
    theta, dim = base_of(name)
    (plain,) = read(Vllm(), name, None, partial_rotary_factor=0.5).tables.values()
    assert plain.inv_freq == pytest.approx(paper.plain(theta, dim // 2), rel=1e-9)
    (scaled,) = read(Vllm(), name, YARN, partial_rotary_factor=0.5).tables.values()
    assert scaled.inv_freq == pytest.approx(paper.yarn(theta, dim // 2, 4.0, 1024), rel=1e-6)


def test_falcon_h1_sets_the_share_itself() -> None:
    """falcon_h1.py:245: attn_rotary_emb or the head's size, over what the dictionary says."""
    assert read(Vllm(), "falcon_h1", None, partial_rotary_factor=0.5) == read(Vllm(), "falcon_h1", None)


def test_cohere_2_moe_reads_the_newer_form_alone() -> None:
    """Cohere2MoeConfig declares a rope_scaling, which nothing moves to rope_parameters (5.20.2 and 5.23.0, run)."""
    linear = {"rope_type": "linear", "factor": 4.0}
    theta, dim = 10000.0, 32
    ignored = next(iter(read(Vllm(), "cohere2_moe", linear).tables.values()))
    assert ignored.inv_freq == pytest.approx(paper.plain(theta, dim), rel=1e-9)
    newer = read(Vllm(), "cohere2_moe", None, rope_parameters={**linear, "rope_theta": theta}).tables.values()
    assert next(iter(newer)).inv_freq == pytest.approx(paper.interpolated(theta, dim, 4.0), rel=1e-9)


@pytest.mark.parametrize("name", ["gemma4", "laguna"])
def test_nothing_is_claimed_of_an_older_form_beside_layer_types(name: str) -> None:
    """Run: a rope_scaling of null makes gemma4's full layers plain, and one of linear scales its windows too."""
    assert read(Vllm(), name, None).unknown is not None
    assert read(Vllm(), name, {"rope_type": "linear", "factor": 4.0}).unknown is not None
    row = FAMILIES[name]
    assert Vllm().effective(family_config(row), row, length=1024).tables


def test_gpt_oss_builds_a_dictionary_without_the_share() -> None:
    """gpt_oss.py:111-127 hands five keys on."""
    full = {**YARN, "beta_fast": 32.0, "beta_slow": 1.0}
    whole = read(Vllm(), "gpt_oss", full).tables[FULL]
    assert read(Vllm(), "gpt_oss", full, partial_rotary_factor=0.5).tables[FULL] == whole


def test_minicpm3_does_not_weigh_its_softmax() -> None:
    """minicpm3.py:82: the scale is the head's size alone, where transformers multiplies it by mscale squared."""
    pair = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
    (found,) = read(Vllm(), "minicpm3", pair).tables.values()
    assert found.softmax_factor == 1.0


@pytest.mark.parametrize(
    ("name", "scaling", "changes", "reason"),
    [
        # Phi3Config takes longrope alone (transformers 5.20.2 and 5.23.0, run): so does vLLM, which reads with it.
        ("phi3", YARN, {}, "takes no yarn"),
        ("phi3", {"rope_type": "linear", "factor": 4.0}, {}, "takes no linear"),
        ("phi3", {"type": "su", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}, {}, "older name su"),
        # get_rope keeps ropes by their settings: TypeError: unhashable type: 'dict'.
        ("llama", {**YARN, "remarks": {"by": "hand"}}, {}, "dictionaries or lists"),
        ("gemma3", {FULL: YARN}, {}, "dictionaries or lists"),
        # config/model.py:2646: int(None).
        (
            "gemma3",
            {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 4.0},
            {"original_max_position_embeddings": None},
            "of null",
        ),
        ("gemma3", YARN, {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "beside a rope_parameters"),
        # PhimoeConfig.validate_rope: short_mscale field must be a number, got None.
        ("phimoe", YARN, {}, "without a short_mscale"),
    ],
)
def test_what_it_fails_on(name: str, scaling: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    assert reason in (read(Vllm(), name, scaling, **changes).problem or "")


def test_absent_families() -> None:
    for name in ("lfm3", "gpt_neox_japanese"):
        assert read(Vllm(), name, None).absent


@pytest.mark.parametrize(
    ("keys", "temperature"),
    [
        ({}, TEMPERATURE),
        ({"attention_factor": 1.0}, TEMPERATURE),
        ({"attn_factor": 0.5}, 0.5 * TEMPERATURE),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, TEMPERATURE),
    ],
)
def test_yarn_before_0_30_has_the_keys_of_its_first_code(keys: dict[str, float], temperature: float) -> None:
    found = read(VllmOlder(), "llama", {**YARN, **keys}).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.yarn(10000.0, 32, 4.0, 1024), rel=1e-9)
    assert found.attention_factor == pytest.approx(temperature, rel=1e-9)


def test_the_length_before_0_30_is_yarns_own() -> None:
    """The Qwen3 cards' form: 40960 stated, 32768 original, factor 4. 131072 then, 40960 since (PR 56446)."""
    card = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read(VllmOlder(), "qwen3", card, max_position_embeddings=40960).max_context == 131072
    assert read(Vllm(), "qwen3", card, max_position_embeddings=40960).max_context == 40960


def test_latent_attention_before_0_30() -> None:
    """attn_factor multiplies its temperature, and an attention_factor of 1 changes nothing."""
    scaling = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "attn_factor": 0.5, "attention_factor": 1.0}
    (found,) = read(VllmOlder(), "deepseek_v3", scaling).tables.values()
    assert found.attention_factor == pytest.approx(0.5, rel=1e-9)
    assert found.softmax_factor == pytest.approx(TEMPERATURE**2, rel=1e-9)
    assert "another scaling" in (read(Vllm(), "deepseek_v3", scaling).problem or "")


def test_what_differs_before_0_30_is_unknown() -> None:
    for scaling in (
        {"rope_type": "dynamic", "factor": 4.0},
        {**YARN, "extrapolation_factor": 0.5},
        {**YARN, "apply_yarn_scaling": False},
    ):
        reading = read(VllmOlder(), "llama", scaling)
        assert reading.unknown is not None
        assert not reading.tables
    assert read(VllmOlder(), "olmo", {"rope_type": "linear", "factor": 4.0}).unknown is not None


def test_a_family_that_moved_to_transformers_code_is_known_where_both_agree() -> None:
    assert read(VllmOlder(), "starcoder2", YARN).tables[FULL].attention_factor == pytest.approx(TEMPERATURE)
    assert read(VllmOlder(), "starcoder2", {**YARN, "attention_factor": 1.25}).unknown is not None
    # gpt_neox had a model file up to 0.29.
    assert read(VllmOlder(), "gpt_neox", {**YARN, "attention_factor": 1.25}).tables[FULL].attention_factor != 1.25
    assert read(Vllm(), "gpt_neox", {**YARN, "attention_factor": 1.25}).tables[FULL].attention_factor == 1.25


def test_what_only_some_older_versions_read_is_a_caution() -> None:
    assert "always rounds" in (read(VllmOlder(), "llama", {**YARN, "truncate": False}).caution or "")
    newer = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    row = FAMILIES["llama"]
    config = {key: value for key, value in family_config(row, rope_parameters=newer).items() if key != "rope_theta"}
    assert "transformers 4" in (VllmOlder().effective(config, row, length=1024).caution or "")
    assert read(VllmOlder(), "llama", YARN).caution is None
