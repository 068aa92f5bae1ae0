"""More conversions with their numbers worked by hand: other trained-in scalings, and theta alone."""

from __future__ import annotations

import math

import pytest

from ctxextend.recipe import Recipe
from tests.golden import by_hand
from tests.golden.support import after, codes, config_of, contents, planned, state_after

K256 = 262144
K128 = 131072


def test_ministral_3_keeps_the_original_length_that_its_queries_are_scaled_by() -> None:
    """yarn 16 over 16384, trained to 262144; to 512k: 32 over 16384.

    Its queries grow by 0.1 ln(1 + floor(position / 16384)): another original length would change them all, so
    no carrier is taken, and llama_4_scaling_beta stays.
    """
    name = "Ministral-3-3B-Reasoning-2512"
    plan = planned(name, Recipe(method="yarn", target=524288))
    text = after(name, plan)["text_config"]
    settings = text["rope_parameters"]
    assert (settings["rope_type"], settings["factor"]) == ("yarn", 32.0)
    assert settings["original_max_position_embeddings"] == 16384
    assert settings["llama_4_scaling_beta"] == 0.1
    assert (settings["mscale"], settings["mscale_all_dim"]) == (1.0, 1.0)
    assert text["max_position_embeddings"] == 524288
    assert text["rope_scaling"] == {key: value for key, value in settings.items() if key != "rope_theta"}
    assert "second-best" in codes(plan)


def test_olmo_3_to_128k() -> None:
    """yarn 8 over 8192, with its temperature spelled out, on full attention: times 2 through a carrier.

    Temperature 1.2079442 x 1.0693147 = 1.2916725. Pair 63: an eighth, then behind the ramp: a sixteenth.
    """
    plan = planned("Olmo-3-1025-7B", Recipe(method="yarn", target=K128))
    state = state_after(plan)
    assert state.table.attention_factor == pytest.approx(1.2079441541679836 * by_hand.temperature(2.0), rel=1e-15)
    assert state.table.inv_freq[63] == pytest.approx(by_hand.plain(500000.0, 128, 63) / 16.0, rel=1e-12)
    for pair in range(64):
        trained = by_hand.yarn(500000.0, 128, 8192, 8.0, by_hand.plain(500000.0, 128, pair))
        expected = by_hand.yarn(500000.0, 128, 65536, 2.0, trained)
        assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-12), pair
    config = after("Olmo-3-1025-7B", plan)
    assert config["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 500000.0}
    assert config["layer_types"] == contents("Olmo-3-1025-7B").config["layer_types"]


@pytest.mark.parametrize(
    ("name", "theta", "dim"),
    [
        ("Meta-Llama-3-8B", 500000.0, 128),
        ("phi-2", 10000.0, 32),
        ("pythia-1.4b", 10000.0, 32),
        ("GLM-4-9B-0414", 10000.0, 64),
        ("c4ai-command-r-v01", 8000000.0, 128),
        ("stablelm-2-zephyr-1_6b", 10000.0, 16),
    ],
)
def test_ntk_at_4x_slows_the_slowest_pair_by_exactly_4(name: str, theta: float, dim: int) -> None:
    """theta x 4^(d / (d - 2)), d the rotated dimensions; then theta'^(-(d-2)/d) is theta^(-(d-2)/d) / 4."""
    plan = planned(name, Recipe(method="ntk", factor=4.0))
    state = state_after(plan)
    assert state.encoding == "theta"
    assert state.rope_theta == pytest.approx(theta * 4.0 ** (dim / (dim - 2)), rel=1e-12)
    assert state.table.inv_freq[0] == 1.0
    assert state.table.inv_freq[-1] == pytest.approx(by_hand.plain(theta, dim, dim // 2 - 1) / 4.0, rel=1e-12)
    config = after(name, plan)
    key = "rotary_emb_base" if name == "pythia-1.4b" else "rope_theta"
    assert config[key] == state.rope_theta
    assert config["rope_parameters"]["rope_theta"] == state.rope_theta
    assert config["rope_parameters"]["rope_type"] == "default"


def test_phi_3_5_to_256k_where_phi3_is_read() -> None:
    """longrope is trained in; linear over its long list: twice each number.

    phi3's longrope has three keys, so the temperature sqrt(1 + ln 32 / ln 4096) = 1.1902381 comes from the two
    lengths: 262144^(1 / 1.1902381^2).
    """
    name = "Phi-3.5-mini-instruct"
    readers = ("transformers", "sglang", "mlx-lm")
    plan = planned(name, Recipe(method="linear", target=K256, runtimes=readers))
    state = state_after(plan, "sliding_attention")
    attention = math.sqrt(1.0 + math.log(32.0) / math.log(4096.0))
    assert state.table.attention_factor == pytest.approx(attention, rel=1e-15)
    before, config = config_of(name), after(name, plan)
    for pair in (0, 23, 47):
        expected = by_hand.plain(10000.0, 96, pair) / (2.0 * before["rope_scaling"]["long_factor"][pair])
        assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-12), pair
    settings = config["rope_scaling"]
    assert set(settings) == {"type", "short_factor", "long_factor"}
    assert settings["long_factor"][47] == pytest.approx(2.0 * 64.83999633789062, rel=1e-12)
    original = config["original_max_position_embeddings"]
    assert original == by_hand.carrier_original(config["max_position_embeddings"], attention)
