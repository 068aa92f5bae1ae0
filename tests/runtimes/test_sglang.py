"""SGLang's ways of reading a family, each from a closed form or from a run of its configuration classes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.families import FAMILIES
from ctxextend.runtimes.base import Reading
from ctxextend.runtimes.sglang import Sglang
from ctxextend.runtimes.sglang_families import WAYS
from tests.factories import family_config
from tests.methods import closed_forms as paper

FULL = "full_attention"
SLIDING = "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 4.0}
#: 1 + 0.1 ln 4: YaRN eq. 22.
TEMPERATURE = 1.0 + 0.1 * math.log(4.0)


def read(name: str, scaling: dict[str, Any] | None, **changes: Any) -> Reading:
    row = FAMILIES[name]
    config = family_config(row, **{"rope_scaling": scaling, "max_position_embeddings": 4096, **changes})
    return Sglang().effective(config, row, length=4096)


def test_every_way_is_of_a_family_that_exists() -> None:
    assert set(WAYS) <= set(FAMILIES)


def test_code_that_was_not_read_is_unknown() -> None:
    for name in ("deepseek_v4", "laguna", "mistral4"):
        assert read(name, None).unknown is not None
    inner = family_config(FAMILIES["llama"])
    for outer, unknown in (("llava", False), ("idefics3", True), ("janus", True)):
        reading = Sglang().effective({"model_type": outer, "text_config": inner}, FAMILIES["llama"], length=1024)
        assert (reading.unknown is not None) is unknown, outer
    assert read("llama", {**YARN, "extrapolation_factor": 0.5}).unknown is not None


@pytest.mark.parametrize("name", ["olmoe", "apertus", "arcee", "lfm2", "minimax_m2"])
def test_a_family_that_takes_the_whole_dictionary(name: str) -> None:
    found = read(name, {**YARN, "attn_factor": 0.5}, head_dim=32).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.yarn(10000.0, 32, 4.0, 1024), rel=1e-9)
    assert found.attention_factor == pytest.approx(0.5 * TEMPERATURE, rel=1e-9)


@pytest.mark.parametrize("name", ["granitemoe", "granitemoeshared", "hy_v3"])
def test_a_family_that_reads_no_scaling(name: str) -> None:
    found = read(name, YARN, head_dim=32).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.plain(10000.0, 32), rel=1e-9)
    assert found.attention_factor == 1.0


def test_a_base_that_is_cut_to_a_whole_number() -> None:
    assert read("granitemoe", None, rope_theta=10000.75).tables[FULL].inv_freq == pytest.approx(
        paper.plain(10000.0, 32), rel=1e-9
    )


@pytest.mark.parametrize("name", ["exaone4", "exaone_moe"])
def test_a_base_that_no_config_changes(name: str) -> None:
    """exaone4.py:232 asks for an attribute that transformers 5.19's class doesn't have, and takes 1000000."""
    tables = read(name, None, rope_theta=500000.0, head_dim=32).tables
    assert tables[SLIDING].inv_freq == pytest.approx(paper.plain(1000000.0, 32), rel=1e-9)


def test_full_attention_alone_is_scaled_in_gemma_3n() -> None:
    found = read("gemma3n", LINEAR).tables
    assert found[FULL].inv_freq == pytest.approx(paper.interpolated(1000000.0, 32, 4.0), rel=1e-9)
    assert found[SLIDING].inv_freq == pytest.approx(paper.plain(10000.0, 32), rel=1e-9)


def test_gemma_4_takes_a_type_without_its_keys() -> None:
    """gemma4_causal.py:422: every class is left with a factor of 1, and longrope without its lists."""
    windowed = {"rope_type": "default", "rope_theta": 10000.0}
    settings = {FULL: {**YARN, "rope_theta": 1000000.0}, SLIDING: windowed}
    row = FAMILIES["gemma4"]
    config = {"model_type": "gemma4", "text_config": {**family_config(row), "rope_parameters": settings}}
    found = Sglang().effective(config, row, length=1024).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.plain(1000000.0, 2 * len(found.inv_freq)), rel=1e-9)
    assert found.attention_factor == 1.0


def test_qwen_3_next_knows_the_older_form_alone() -> None:
    """configs/qwen3_next.py, run with transformers 5.19.0: theta 10000 without a key at the top level."""
    linear = read("qwen3_next", LINEAR, rope_theta=500000.0).tables[FULL].inv_freq
    dim = 2 * len(linear)
    assert linear == pytest.approx(paper.interpolated(500000.0, dim, 4.0), rel=1e-9)
    row = FAMILIES["qwen3_next"]
    newer = {key: value for key, value in family_config(row).items() if key not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = {**LINEAR, "rope_theta": 500000.0}
    found = Sglang().effective(newer, row, length=1024).tables[FULL].inv_freq
    assert found == pytest.approx(paper.plain(10000.0, dim), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [("qwen3_next", YARN), ("qwen3_next", LLAMA3), ("olmo3", YARN), ("olmo3", LLAMA3), ("olmo3", LONGROPE)],
)
def test_both_forms_break_a_class_of_the_older_one(name: str, scaling: dict[str, Any]) -> None:
    """Run with transformers 5.19.0: the check of a flat rope_parameters asks for lengths that aren't there yet."""
    both = read(name, scaling, rope_parameters={**scaling, "rope_theta": 10000.0})
    assert "rope_scaling alone" in (both.problem or "")


def test_both_forms_of_a_type_without_a_length() -> None:
    """OLMo 3's class is transformers' own by then, which looks for layer types in a flat dictionary."""
    both = {
        name: read(name, LINEAR, rope_parameters={**LINEAR, "rope_theta": 10000.0}) for name in ("qwen3_next", "olmo3")
    }
    assert both["qwen3_next"].problem is None
    assert both["olmo3"].problem is not None


def test_granite_hybrids_base_stands_at_the_top_level() -> None:
    """configs/granitemoehybrid.py:158, 224; its scaling is read from either form."""
    row = FAMILIES["granitemoehybrid"]
    newer = {key: value for key, value in family_config(row).items() if key not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = {**LINEAR, "rope_theta": 500000.0}
    found = Sglang().effective(newer, row, length=1024).tables[FULL].inv_freq
    assert found == pytest.approx(paper.interpolated(10000.0, 32, 4.0), rel=1e-9)


def test_qwen_3_5_fails_without_rope_settings() -> None:
    """configs/qwen3_5.py:25-34 leaves an empty dictionary, on which get_rope raises (run with 5.19.0)."""
    row = FAMILIES["qwen3_5"]
    config = {key: value for key, value in family_config(row).items() if key not in ("rope_scaling", "rope_parameters")}
    assert "without rope_parameters" in (Sglang().effective(config, row, length=1024).problem or "")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    assert Sglang().effective(config, row, length=1024).tables


def test_dynamic_with_alpha_is_another_base() -> None:
    found = read("llama", {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.plain(10000.0 * 1000.0 ** (32 / 30), 32), rel=1e-9)


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (YARN, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 4096),
        (LLAMA3, 4096),
        (LONGROPE, 4096),
        (LINEAR, 16384),
        ({"rope_type": "dynamic", "factor": 4.0}, 16384),
        ({"rope_type": "default", "factor": 4.0}, 16384),
        ({**LINEAR, "original_max_position_embeddings": 1024}, 4096),
    ],
)
def test_the_length_rule(scaling: dict[str, Any], length: int) -> None:
    """get_context_length's own code (utils/hf_transformers/common.py:677-694) over transformers 5.19.0's configs.

    Transformers fills a missing original length in for the types that need one, and so nothing multiplies.
    """
    assert read("llama", scaling).max_context == length


@pytest.mark.parametrize(
    ("name", "scaling", "length"),
    [
        ("qwen3_next", {"rope_type": "yarn", "factor": 4.0}, 16384),
        ("qwen3_next", YARN, 4096),
        ("olmo3", {"rope_type": "yarn", "factor": 4.0}, 16384),
        ("gemma3", LINEAR, 4096),
        ("gemma3n", LINEAR, 4096),
    ],
)
def test_the_length_rule_in_other_classes(name: str, scaling: dict[str, Any], length: int) -> None:
    """A class of SGLang's own isn't filled in, and one dictionary a layer type has no factor of its own."""
    assert read(name, scaling).max_context == length


def test_latent_attention_reads_attn_factor() -> None:
    (found,) = read("glm4_moe_lite", {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "attn_factor": 0.5}).tables.values()
    assert found.attention_factor == pytest.approx(0.5, rel=1e-9)
    assert "takes linear for yarn" in (read("deepseek_v32", LINEAR).problem or "")


def test_absent_families() -> None:
    for name in ("falcon", "lfm3", "olmo_hybrid", "zamba2", "bamba"):
        assert read(name, None).absent
