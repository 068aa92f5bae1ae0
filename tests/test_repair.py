"""``check --fix``: what a config means, written so that all read it; refused where it could mean two things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ctxextend.check import check, meant_by
from ctxextend.errors import RefusedError
from ctxextend.families import FAMILIES
from ctxextend.inspection import inspect
from ctxextend.plan import Plan, edits_of, make_plan
from ctxextend.recipe import Recipe
from ctxextend.repair import make_repair
from ctxextend.runtimes import DEFAULT_RUNTIMES
from tests.factories import config, contents, converted, family_config
from tests.test_check import TRAPS, YARN, L, T, deepseek, llama, newer_only, qwen3


def repaired(value: Mapping[str, Any], **options: Any) -> Plan:
    source = contents(value)
    return make_repair(source, inspect(source), runtimes=options.pop("runtimes", DEFAULT_RUNTIMES), **options)


@pytest.mark.parametrize(
    "trap",
    [
        "the model card's form",
        "the newer form alone",
        "an attention factor",
        "dynamic for a server",
        "an integer factor",
        "a stale synonym",
    ],
)
def test_a_repaired_checkpoint_means_the_same_and_is_read_alike(trap: str) -> None:
    broken = TRAPS[trap][0]
    source = contents(broken)
    meant = meant_by(source, inspect(source))
    assert meant is not None
    after = contents(converted(broken, repaired(broken)))
    found = check(after, inspect(after), required=DEFAULT_RUNTIMES, against=meant if not meant.dynamic else None)
    assert found.ok, [finding.message for finding in found.findings]
    assert found.target_context == meant.target
    own = check(after, inspect(after), required=DEFAULT_RUNTIMES)
    assert own.ok


def test_dynamic_becomes_the_base_that_it_reaches() -> None:
    """theta 10000, d 32, factor 4: at 4 L the base is theta (4 x 4 - 3)^(32/30) (transformers, dynamic NTK)."""
    after = converted(TRAPS["dynamic for a server"][0], repaired(TRAPS["dynamic for a server"][0]))
    assert after["rope_theta"] == pytest.approx(10000.0 * 13.0 ** (32 / 30), rel=1e-12)
    assert after["rope_parameters"] == {"rope_type": "default", "rope_theta": after["rope_theta"]}
    assert after["max_position_embeddings"] == 4 * L


def test_the_card_form_gets_its_length_and_both_dictionaries() -> None:
    after = converted(TRAPS["the model card's form"][0], repaired(TRAPS["the model card's form"][0]))
    assert after["max_position_embeddings"] == T
    assert after["rope_scaling"]["factor"] == 4.0
    assert after["rope_parameters"] == {**after["rope_scaling"], "rope_theta": 1000000.0}
    assert "ctxextend" not in after


def test_a_healthy_checkpoint_needs_nothing() -> None:
    plan = repaired(qwen3(rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}))
    assert not edits_of(plan)
    assert plan.reasons[0].startswith("nothing")


def test_a_scaling_beside_a_plain_dictionary_was_meant() -> None:
    broken = llama(rope_scaling=YARN, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    plan = repaired(broken)
    assert next(warning.code for warning in plan.warnings) == "repaired"
    assert converted(broken, plan)["rope_parameters"]["factor"] == 4.0


def test_of_two_original_lengths_the_one_that_goes_with_the_length_is_taken() -> None:
    broken = llama(rope_scaling=YARN, original_max_position_embeddings=4096)
    plan = repaired(broken)
    assert any("goes with the stated length" in warning.message for warning in plan.warnings)
    after = converted(broken, plan)
    assert after["rope_scaling"]["original_max_position_embeddings"] == L
    assert after.get("original_max_position_embeddings") in (None, L)


def test_of_two_dictionaries_the_one_that_goes_with_the_length_is_taken() -> None:
    broken = llama(rope_scaling={**YARN, "factor": 8.0}, rope_parameters={**YARN, "rope_theta": 1e4})
    assert converted(broken, repaired(broken))["rope_scaling"]["factor"] == 4.0


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            llama(rope_scaling={**YARN, "factor": 8.0}, rope_parameters={**YARN, "factor": 2.0, "rope_theta": 1e4}),
            "neither would go",
        ),
        (
            llama(
                rope_scaling={**YARN, "beta_fast": 16.0},
                rope_parameters={**YARN, "rope_theta": 1e4},
            ),
            "both would go",
        ),
        (llama(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "--original-context"),
        (TRAPS["a flat override beside a nested config"][0], "at the top level"),
        (TRAPS["two thetas"][0], "rope_theta"),
    ],
)
def test_two_readings_are_refused(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        repaired(broken)
    assert caught.value.code == "two-readings"
    assert said in str(caught.value.hint)


def test_a_missing_original_length_can_be_given() -> None:
    broken = llama(rope_scaling={"rope_type": "yarn", "factor": 4.0})
    after = converted(broken, repaired(broken, original_context=L))
    assert after["rope_scaling"]["original_max_position_embeddings"] == L
    assert after["max_position_embeddings"] == T


def test_one_of_ours_is_converted_again_instead() -> None:
    source = contents(config())
    ours = converted(source.config, make_plan(source, inspect(source), Recipe(method="yarn", target=4096)))
    with pytest.raises(RefusedError) as caught:
        repaired(ours)
    assert caught.value.code == "ours"
    assert caught.value.hint == "ctxextend convert Tiny --method yarn --target 4096"


def test_what_no_form_makes_alike_is_refused_with_its_cost() -> None:
    """Mixtral's scaling is ignored by SGLang and MLX-LM: a plain rope, three parts off where yarn divides by four."""
    broken = family_config(FAMILIES["mixtral"], max_position_embeddings=T, rope_scaling=YARN)
    with pytest.raises(RefusedError) as caught:
        repaired(broken)
    assert caught.value.code == "unreadable"
    assert "frequencies off by 300 % at most, attention factor 1 instead of 1.1386" in caught.value.message
    mended = converted(broken, repaired(broken, runtimes=("transformers", "vllm")))
    assert mended["head_dim"] == 32


def test_a_latent_pair_is_not_invented() -> None:
    """What DeepSeek was trained with can't be known from a yarn without the pair: the meaning stays."""
    after = converted(deepseek(), repaired(deepseek()))
    assert "mscale" not in after["rope_scaling"]


def test_the_newer_form_alone_keeps_its_meaning() -> None:
    broken = newer_only(qwen3(rope_scaling=YARN))
    after = converted(broken, repaired(broken))
    assert after["rope_theta"] == 1000000.0
    assert after["rope_scaling"]["factor"] == 4.0
