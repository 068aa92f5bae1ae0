"""A yarn in the spelling of YaRN's first code, copied into a Llama 2 whose length nobody raised.

``{"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "finetuned": false}`` beside
``"max_position_embeddings": 4096``: half the runtimes serve 4096 tokens, and transformers 4.51 to 4.55 takes
4096 / 4096 = 1 for the factor.
"""

from __future__ import annotations

import pytest

from ctxextend.errors import RefusedError
from ctxextend.inspection import Inspection
from ctxextend.recipe import Recipe
from tests.golden import by_hand
from tests.golden.support import (
    after,
    after_texts,
    changed,
    codes,
    config_of,
    contents,
    group_of,
    inspected,
    planned,
    state_after,
)

MISTAKE = "Llama-2-7b-yarn-unraised"
K128 = 131072


def said(found: Inspection, code: str) -> list[str]:
    return [note.message for note in found.notes if note.code == code]


def test_the_config_is_the_mistake() -> None:
    config = config_of(MISTAKE)
    assert config["rope_scaling"] == {
        "type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "finetuned": False,
    }
    assert config["max_position_embeddings"] == 4096


def test_inspect_explains_each_key() -> None:
    keys = {message.split(":", 1)[0]: message for message in said(inspected(MISTAKE), "rope-key")}
    assert list(keys) == ["type", "factor", "original_max_position_embeddings", "finetuned"]
    assert "the older spelling of rope_type" in keys["type"]
    assert "understood as yarn" in keys["type"]
    assert "divides the slow frequencies" in keys["factor"]
    assert "places the ramp" in keys["original_max_position_embeddings"]
    assert "read by no current runtime" in keys["finetuned"]


def test_inspect_says_that_the_length_was_not_raised() -> None:
    (mismatch,) = said(inspected(MISTAKE), "length-mismatch")
    assert "reaches 131072 tokens but max_position_embeddings is 4096" in mismatch
    assert "vLLM from 0.30" in mismatch


def test_inspect_takes_finetuned_at_its_word() -> None:
    found = inspected(MISTAKE)
    assert group_of(found, "full_attention").origin == "bolted-on"
    assert (found.trained_context, found.current_context) == (4096, 4096)


def test_convert_repairs_it() -> None:
    """Off, and on again at 131072 / 4096 = 32, with the length beside it. theta 10000, d 128.

    The ramp: 128 x ln(20.372) / 18.4207 = 20.94 -> 20 and 128 x ln(651.90) / 18.4207 = 45.03 -> 46.
    Pair 33: ramp 13/26, so 1 - 1/2 x 31/32 = 0.515625 of plain. Pair 63: a 32nd.
    """
    plan = planned(MISTAKE, Recipe(method="yarn", target=K128))
    assert (plan.trained_context, plan.factor) == (4096, 32.0)
    state = state_after(plan)
    for pair, share in {0: 1.0, 20: 1.0, 33: 0.515625, 46: 1 / 32, 63: 1 / 32}.items():
        assert state.table.inv_freq[pair] == pytest.approx(by_hand.plain(1e4, 128, pair) * share, rel=1e-12), pair
    assert state.table.attention_factor == pytest.approx(by_hand.temperature(32.0), rel=1e-15)
    config = after(MISTAKE, plan)
    settings = {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    assert config["rope_scaling"] == settings
    assert config["rope_parameters"] == {**settings, "rope_theta": 10000.0}
    assert config["max_position_embeddings"] == K128
    # 32 times without training is further than anybody measured to work, and that is said.
    assert "far-without-training" in codes(plan)


def test_the_repair_can_be_undone_and_is_recorded() -> None:
    config = after(MISTAKE, planned(MISTAKE, Recipe(method="yarn", target=K128)))
    said_before = config["ctxextend"]["base"]["config.json"]
    assert said_before["values"]["/rope_scaling"] == config_of(MISTAKE)["rope_scaling"]
    assert said_before["values"]["/max_position_embeddings"] == 4096
    assert "/rope_parameters" in said_before["absent"]


def test_the_repaired_config_has_nothing_left_to_complain_about() -> None:
    text = after_texts(MISTAKE, planned(MISTAKE, Recipe(method="yarn", target=K128)))["config.json"]
    found = inspected(contents(MISTAKE, config=text))
    assert not said(found, "length-mismatch")
    assert all("not read" not in message and "read by no" not in message for message in said(found, "rope-key"))
    assert group_of(found, "full_attention").origin == "ours"


def test_a_finetuned_one_is_the_base_itself() -> None:
    """With finetuned true the same settings were trained: 4096 x 32, and there is nothing to extend to 128k."""
    source = changed(
        contents(MISTAKE),
        rope_scaling={**config_of(MISTAKE)["rope_scaling"], "finetuned": True},
    )
    found = inspected(source)
    assert group_of(found, "full_attention").origin == "trained"
    assert found.trained_context == K128
    assert said(found, "length-not-raised")
    with pytest.raises(RefusedError) as caught:
        planned(source, Recipe(method="yarn", target=K128))
    assert caught.value.code == "within-trained"


def test_auto_raises_the_length_of_a_finetuned_one() -> None:
    source = changed(
        contents(MISTAKE),
        rope_scaling={**config_of(MISTAKE)["rope_scaling"], "finetuned": True},
    )
    plan = planned(source, Recipe(target=K128))
    assert plan.method == "none"
    assert after(source, plan)["max_position_embeddings"] == K128
