"""The golden conversions: what was trained in is the base, what was bolted on is taken off first.

Each docstring works the numbers by hand (``ln`` is natural); :mod:`tests.golden.by_hand` computes them
a second time, and both are held against the plan and against the config.json that it writes.

Where a ramp stands: pair ``d ln(L / (2 pi b)) / (2 ln theta)`` turns ``b`` times within ``L`` tokens; YaRN's
ramp runs from ``b`` = 32 (rounded down) to ``b`` = 1 (rounded up).
"""

from __future__ import annotations

import math

import pytest

from ctxextend.recipe import Recipe
from tests.golden import by_hand
from tests.golden.support import after, after_texts, codes, config_of, planned, planned_group, state_after

K256 = 262144
K128 = 131072


def test_llama_3_1_to_256k() -> None:
    """Base: theta 500000, d 128, llama3 8x over 8192 (low 1, high 4), trained to 131072. Factor 2.

    Llama 3.1's own scaling: pairs turn 4 times within 8192 at 28.2 and once at 35.0, so pairs up to 28 are
    plain, 29 to 34 are blended and from 35 on an eighth.
    YaRN over that, at 131072: 128 x ln(651.90) / 26.2447 = 31.6 -> 31 and 128 x ln(20860.8) / 26.2447 = 48.5
    -> 49. A frequency that is a k-th of plain stands ln(k) x 64 / ln(500000) = 4.8772 ln(k) pairs further on.
    * Pair 28 stands at 28, before 31: kept.
    * Pair 32: 1.84385 turns, blend 0.281283, so 0.371123 of plain; it stands at 36.834, ramp 0.32413, and
      1 - 0.32413 / 2 of that remains: 0.310977 of plain.
    * Pair 35: an eighth, stands at 35 + 10.1417 = 45.142, ramp 0.78565: 0.607176 / 8 = 0.075897 of plain.
    * Pair 63: an eighth and behind the ramp: a sixteenth.
    Temperature 0.1 ln 2 + 1 = 1.0693147.
    """
    plan = planned("Llama-3.1-8B-Instruct", Recipe(method="yarn", target=K256))
    assert (plan.trained_context, plan.factor, plan.arithmetic) == (K128, 2.0, "262144 / 131072 = 2")
    state = state_after(plan)
    frequencies = state.table.inv_freq
    assert len(frequencies) == 64
    for pair, share in {0: 1.0, 28: 1.0, 32: 0.310977, 35: 0.075897, 63: 1 / 16}.items():
        assert frequencies[pair] == pytest.approx(by_hand.plain(500000.0, 128, pair) * share, rel=1e-5), pair
    for pair in range(64):
        trained = by_hand.llama3(by_hand.plain(500000.0, 128, pair))
        assert frequencies[pair] == pytest.approx(by_hand.yarn(500000.0, 128, K128, 2.0, trained), rel=1e-12), pair
    assert state.table.attention_factor == pytest.approx(1.0693147180559945, rel=1e-15)
    assert state.table.attention_factor == pytest.approx(by_hand.temperature(2.0), rel=1e-15)
    # llama3 can't say this: longrope with equal lists carries it.
    assert state.encoding == "longrope carrier"


def test_llama_3_1_to_256k_as_it_is_written() -> None:
    """The original length is the one beside which readers compute the temperature: 262144^(1/1.0693147^2) = 54806."""
    plan = planned("Llama-3.1-8B-Instruct", Recipe(method="yarn", target=K256))
    before, config = config_of("Llama-3.1-8B-Instruct"), after("Llama-3.1-8B-Instruct", plan)
    settings = config["rope_scaling"]
    assert config["max_position_embeddings"] == K256
    assert config["rope_theta"] == before["rope_theta"] == 500000.0
    # vLLM would take a top-level original length for its default maximum.
    assert "original_max_position_embeddings" not in config
    assert config["rope_parameters"] == {**settings, "rope_theta": 500000.0}
    assert settings["rope_type"] == "longrope"
    assert settings["short_factor"] == settings["long_factor"]
    assert len(settings["long_factor"]) == 64
    assert settings["long_factor"][63] == pytest.approx(16.0, rel=1e-12)
    assert settings["long_factor"][32] == pytest.approx(1 / 0.310977, rel=1e-5)
    original = settings["original_max_position_embeddings"]
    assert original == by_hand.carrier_original(K256, by_hand.temperature(2.0)) == 54806
    assert settings["factor"] == K256 / original
    assert by_hand.ratio_temperature(K256, original) == pytest.approx(by_hand.temperature(2.0), rel=1e-4)
    assert settings["attention_factor"] == pytest.approx(by_hand.temperature(2.0), rel=1e-15)
    # Nothing of the llama3 settings is left for a reader to trip over.
    assert not {"low_freq_factor", "high_freq_factor"} & set(settings)
    assert '"model_max_length": 262144' in after_texts("Llama-3.1-8B-Instruct", plan)["tokenizer_config.json"]


def test_gemma_3_to_256k_linear() -> None:
    """Full attention: theta 1e6, d 256, linear 8 trained to 131072; times 2 is linear 16, exactly.

    The sliding layers' rope of 10000 stays: their window never sees further than 1024 tokens.
    """
    plan = planned("gemma-3-4b-it", Recipe(method="linear", target=K256))
    assert (plan.trained_context, plan.factor) == (K128, 2.0)
    state = state_after(plan)
    assert state.encoding == "native"
    assert state.table.attention_factor == 1.0
    for pair in (0, 1, 64, 127):
        expected = 1000000.0 ** (-2.0 * pair / 256) / 16.0
        assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-15), pair
    untouched = planned_group(plan, "sliding_attention")
    assert not untouched.extended
    assert untouched.before == untouched.after
    assert untouched.after is not None
    assert untouched.after.table.inv_freq[127] == pytest.approx(10000.0 ** (-254.0 / 256), rel=1e-15)


def test_gemma_3_to_256k_linear_as_it_is_written() -> None:
    """Where the language model reads, in text_config: the older form, and the newer one a layer type."""
    config = after("gemma-3-4b-it", planned("gemma-3-4b-it", Recipe(method="linear", target=K256)))
    before = config_of("gemma-3-4b-it")
    text = config.pop("text_config")
    assert text == {
        **before["text_config"],
        "rope_scaling": {"rope_type": "linear", "factor": 16.0},
        # The class's 131072 and 1e6 aren't in the sparse config: they must be said now.
        "max_position_embeddings": K256,
        "rope_theta": 1000000.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 16.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    record = config.pop("ctxextend")
    assert (record["trained_context"], record["target_context"]) == (K128, K256)
    assert config == {key: value for key, value in before.items() if key != "text_config"}


def test_gemma_3_to_256k_yarn() -> None:
    """YaRN over linear 8: theta 1e6, d 256. An eighth of plain stands 128 ln 8 / ln 1e6 = 19.266 pairs further.

    The ramp over 131072: 256 x ln(651.90) / 27.631 = 60.04 -> 60 and 256 x ln(20860.8) / 27.631 = 92.15 -> 93.
    * Pair 40 stands at 59.27, before the ramp: 1/8 as trained.
    * Pair 57 stands at 76.266: ramp 16.266 / 33 = 0.492912, so (1 - 0.246456) / 8 = 0.094193 of plain.
    * Pair 127 is behind it: 1/16.
    """
    plan = planned("gemma-3-4b-it", Recipe(method="yarn", target=K256))
    state = state_after(plan)
    assert state.encoding == "longrope carrier"
    for pair, share in {0: 1 / 8, 40: 1 / 8, 57: 0.094193, 127: 1 / 16}.items():
        assert state.table.inv_freq[pair] == pytest.approx(by_hand.plain(1e6, 256, pair) * share, rel=1e-5), pair
    for pair in range(128):
        trained = by_hand.plain(1e6, 256, pair) / 8.0
        expected = by_hand.yarn(1e6, 256, K128, 2.0, trained)
        assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-12), pair
    assert state.table.attention_factor == pytest.approx(by_hand.temperature(2.0), rel=1e-15)
    assert not planned_group(plan, "sliding_attention").extended
    text = after("gemma-3-4b-it", plan)["text_config"]
    assert text["rope_scaling"]["rope_type"] == "longrope"
    assert text["rope_parameters"]["full_attention"] == {**text["rope_scaling"], "rope_theta": 1000000.0}
    assert text["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert "original_max_position_embeddings" not in text


def test_gpt_oss_to_256k() -> None:
    """Base: yarn 32 over 4096, bounds not rounded, theta 150000, d 64, trained to 131072.

    vLLM's gpt_oss reads yarn alone, so the trained yarn's own factor is raised: 32 x 2 = 64 over 4096. Its
    ramp runs from 64 x ln(20.372) / 23.8368 = 8.0929 to 64 x ln(651.90) / 23.8368 = 17.3980, as trained.
    * Pair 8 is before it: plain.
    * Pair 12: ramp 3.9071 / 9.3051 = 0.419889, so 1 - 0.419889 x 63/64 = 0.586672 of plain.
    * Pair 31: a 64th.
    Temperature 0.1 ln 64 + 1 = 1.4158883.
    """
    plan = planned("gpt-oss-20b", Recipe(method="yarn", target=K256))
    assert (plan.trained_context, plan.factor, plan.options) == (K128, 2.0, {"compose": "factor"})
    assert {"second-best", "sliding-shares-rope"} <= set(codes(plan))
    for label in ("full_attention", "sliding_attention"):
        state = state_after(plan, label)
        assert state.encoding == "native"
        for pair, share in {0: 1.0, 8: 1.0, 12: 0.586672, 31: 1 / 64}.items():
            expected = by_hand.plain(150000.0, 64, pair) * share
            assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-5), pair
        for pair in range(32):
            expected = by_hand.yarn(150000.0, 64, 4096, 64.0, by_hand.plain(150000.0, 64, pair), truncate=False)
            assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-12), pair
        assert state.table.attention_factor == pytest.approx(1.4158883083359672, rel=1e-15)
    config = after("gpt-oss-20b", plan)
    settings = {
        "rope_type": "yarn",
        "factor": 64.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    }
    assert config["rope_scaling"] == settings
    assert config["rope_parameters"] == {**settings, "rope_theta": 150000.0}
    assert config["max_position_embeddings"] == K256
    # 150000 stays the whole number that it was.
    assert '"rope_theta": 150000,' in after_texts("gpt-oss-20b", plan)["config.json"]
    # What the model's own code calls its first length isn't the maximum.
    assert config["initial_context_length"] == 4096


def test_gpt_oss_to_256k_composed() -> None:
    """For transformers alone the trained table itself is scaled: its temperature times 0.1 ln 2 + 1.

    Pair 31: a 32nd, trained, and behind the ramp over 131072: a 64th. Pair 8: before both.
    """
    plan = planned("gpt-oss-20b", Recipe(method="yarn", target=K256, runtimes=("transformers",)))
    state = state_after(plan)
    assert state.encoding == "longrope carrier"
    for pair in range(32):
        trained = by_hand.yarn(150000.0, 64, 4096, 32.0, by_hand.plain(150000.0, 64, pair), truncate=False)
        expected = by_hand.yarn(150000.0, 64, K128, 2.0, trained)
        assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-12), pair
    assert state.table.inv_freq[31] == pytest.approx(by_hand.plain(150000.0, 64, 31) / 64.0, rel=1e-12)
    expected = (0.1 * math.log(32.0) + 1.0) * (0.1 * math.log(2.0) + 1.0)
    assert state.table.attention_factor == pytest.approx(expected, rel=1e-15)


def test_deepseek_v3_to_256k() -> None:
    """Base: yarn 40 over 4096, theta 10000, d 64, trained to 163840. 262144 / 163840 = 1.6; 40 x 1.6 = 64.

    Latent attention takes every scaling for yarn in vLLM and SGLang, so the factor is raised. The ramp runs
    from 64 x ln(20.372) / 18.4207 = 10.47 -> 10 to 64 x ln(651.90) / 18.4207 = 22.51 -> 23.
    * Pair 16: ramp 6/13, so 1 - 6/13 x 63/64 = 0.545673 of 0.01.
    * Pair 31: a 64th.
    cos and sin: (0.1 ln 64 + 1) / (0.1 ln 64 + 1) = 1; softmax: 1.4158883^2 = 2.0047397.
    """
    plan = planned("DeepSeek-V3", Recipe(method="yarn", target=K256))
    assert (plan.trained_context, plan.factor, plan.arithmetic) == (163840, 1.6, "262144 / 163840 = 1.6")
    assert int(163840 * plan.factor) == K256
    assert plan.options == {"compose": "factor"}
    assert "second-best" in codes(plan)
    state = state_after(plan)
    assert state.encoding == "native"
    for pair, share in {0: 1.0, 10: 1.0, 16: 0.545673, 23: 1 / 64, 31: 1 / 64}.items():
        assert state.table.inv_freq[pair] == pytest.approx(by_hand.plain(1e4, 64, pair) * share, rel=1e-5), pair
    for pair in range(32):
        expected = by_hand.yarn(1e4, 64, 4096, 64.0, by_hand.plain(1e4, 64, pair))
        assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-12), pair
    assert state.table.attention_factor == 1.0
    assert state.table.softmax_factor == pytest.approx((0.1 * math.log(64.0) + 1.0) ** 2, rel=1e-15)
    config, before = after("DeepSeek-V3", plan), config_of("DeepSeek-V3")
    settings = {
        "rope_type": "yarn",
        "factor": 64.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    assert config["rope_scaling"] == settings
    assert config["rope_parameters"] == {**settings, "rope_theta": 10000.0}
    assert config["max_position_embeddings"] == K256
    assert config["quantization_config"] == before["quantization_config"]
    # A whole number where vLLM and SGLang want a float is mended on the way.
    assert '"factor": 64.0' in after_texts("DeepSeek-V3", plan)["config.json"]


def test_deepseek_v3_to_256k_composed() -> None:
    """For transformers alone: YaRN 1.6 over the trained table, at 163840.

    Ramp: 64 x ln(814.87) / 18.4207 = 23.29 -> 23 and 64 x ln(26075.9) / 18.4207 = 35.33 -> 36; a k-th of plain
    stands 3.474356 ln(k) pairs further on.
    * Pair 16: trained 1 - 6/13 x 39/40 = 0.55 of 0.01; stands at 18.08, before the ramp: kept.
    * Pair 20: trained 1 - 10/13 x 39/40 = 0.25 of plain; stands at 24.816, ramp 0.139729, times
      1 - 0.139729 x 0.375 = 0.947602: 0.236900 of plain.
    * Pair 31: a 40th, stands at 43.8, behind the ramp: a 64th.
    softmax: (0.1 ln 40 + 1)^2 x (0.1 ln 1.6 + 1)^2 = 1.8738539 x 1.0962098 = 2.0541373.
    """
    plan = planned("DeepSeek-V3", Recipe(method="yarn", target=K256, runtimes=("transformers",)))
    assert plan.options == {"compose": "table"}
    state = state_after(plan)
    assert state.encoding == "longrope carrier with a softmax factor"
    for pair, share in {0: 1.0, 16: 0.55, 20: 0.2369005, 31: 1 / 64}.items():
        assert state.table.inv_freq[pair] == pytest.approx(by_hand.plain(1e4, 64, pair) * share, rel=1e-5), pair
    for pair in range(32):
        trained = by_hand.yarn(1e4, 64, 4096, 40.0, by_hand.plain(1e4, 64, pair))
        expected = by_hand.yarn(1e4, 64, 163840, 1.6, trained)
        assert state.table.inv_freq[pair] == pytest.approx(expected, rel=1e-12), pair
    assert state.table.attention_factor == 1.0
    softmax = (by_hand.temperature(40.0) * by_hand.temperature(1.6)) ** 2
    assert state.table.softmax_factor == pytest.approx(softmax, rel=1e-12)
    assert state.table.softmax_factor == pytest.approx(2.0541373, rel=1e-7)
    settings = after("DeepSeek-V3", plan)["rope_scaling"]
    assert settings["long_factor"][31] == pytest.approx(64.0, rel=1e-12)
    # What transformers' latent attention makes of the pair of keys: (0.1 x weight x ln factor + 1)^2.
    weight, factor = settings["mscale_all_dim"], settings["factor"]
    assert (0.1 * weight * math.log(factor) + 1.0) ** 2 == pytest.approx(softmax, rel=1e-12)


@pytest.mark.parametrize("name", ["Qwen3-8B-card-yarn", "Qwen2.5-7B-Instruct-card-yarn"])
def test_qwen_with_its_cards_yarn_to_128k(name: str) -> None:
    """Bolted on: taken off, then 32768 x 4, not 40960 x 3.2, and not 4 x 4.

    theta 1e6, d 128: 128 x ln(162.97) / 27.631 = 23.6 -> 23 and 128 x ln(5215.2) / 27.631 = 39.65 -> 40.
    * Pair 23: plain. Pair 31: ramp 8/17, so 1 - 8/17 x 3/4 = 11/17 of plain. Pair 63: a quarter.
    Temperature 0.1 ln 4 + 1 = 1.1386294.
    """
    plan = planned(name, Recipe(method="yarn", target=K128))
    assert (plan.trained_context, plan.factor, plan.arithmetic) == (32768, 4.0, "131072 / 32768 = 4")
    state = state_after(plan)
    assert state.encoding == "native"
    for pair, share in {0: 1.0, 23: 1.0, 31: 11 / 17, 40: 1 / 4, 63: 1 / 4}.items():
        assert state.table.inv_freq[pair] == pytest.approx(by_hand.plain(1e6, 128, pair) * share, rel=1e-12), pair
    assert state.table.attention_factor == pytest.approx(1.1386294361119891, rel=1e-15)
    config = after(name, plan)
    settings = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    assert config["rope_scaling"] == settings
    assert config["rope_parameters"] == {**settings, "rope_theta": 1000000.0}
    # Exactly the original length times the factor: what every reader agrees on.
    assert config["max_position_embeddings"] == 4 * 32768
    assert config["rope_theta"] == 1000000


def test_qwen_with_and_without_its_cards_yarn_come_out_alike() -> None:
    bare, carded = (after(name, planned(name, Recipe(method="yarn", target=K128))) for name in _QWEN3)
    for config in (bare, carded):
        config.pop("ctxextend")
    assert bare == carded


_QWEN3 = ("Qwen3-8B", "Qwen3-8B-card-yarn")


def test_other_factors_replace_the_cards() -> None:
    """Qwen3 with its card's yarn to 64k: factor 2, not 4 x 2 and not 4 / 2."""
    plan = planned("Qwen3-8B-card-yarn", Recipe(method="yarn", target=65536))
    config = after("Qwen3-8B-card-yarn", plan)
    assert plan.factor == 2.0
    assert (config["rope_scaling"]["factor"], config["max_position_embeddings"]) == (2.0, 65536)
