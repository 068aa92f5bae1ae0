"""What is refused rather than guessed, with its exit code and the hint that overrides it."""

from __future__ import annotations

import pytest

from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.recipe import Recipe
from tests.golden import by_hand
from tests.golden.support import after, changed, contents, inspected, planned, state_after

K16 = 16384
K128 = 131072
LLAMA = "Llama-2-7b-hf"
LINEAR4 = {"type": "linear", "factor": 4.0}


def refused(source: object, recipe: Recipe) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        planned(source, recipe)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


def test_a_linear_llama_that_nobody_vouches_for() -> None:
    """LongChat's linear was trained in, a user's was not: nothing in the config tells."""
    error = refused(changed(contents(LLAMA), rope_scaling=LINEAR4), Recipe(method="yarn", target=K128))
    assert error.code == "undecidable-base"
    assert (error.file, error.key) == ("config.json", "rope_scaling")
    assert "--base trained" in (error.hint or "")
    assert "--base unscaled" in (error.hint or "")


def test_a_linear_llama_trained_with_it() -> None:
    """LongChat's way: 16384 stated, linear 4 trained in; to 32k it becomes linear 8, exactly."""
    source = changed(contents(LLAMA), rope_scaling=LINEAR4, max_position_embeddings=K16)
    plan = planned(source, Recipe(method="linear", target=32768, base="trained", original_context=K16))
    assert (plan.trained_context, plan.factor) == (K16, 2.0)
    assert after(source, plan)["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert state_after(plan).table.inv_freq[63] == pytest.approx(by_hand.plain(1e4, 128, 63) / 8.0, rel=1e-15)


def test_a_linear_llama_that_was_only_written() -> None:
    """Taken off. linear has no original length, so the trained one has to be said: 4096, and 131072 / 4096 = 32."""
    source = changed(contents(LLAMA), rope_scaling=LINEAR4, max_position_embeddings=K16)
    error = refused(source, Recipe(method="yarn", target=K128, base="unscaled"))
    assert error.code == "undecidable-length"
    assert "--original-context" in (error.hint or "")
    plan = planned(source, Recipe(method="yarn", target=K128, base="unscaled", original_context=4096))
    assert plan.factor == 32.0
    settings = after(source, plan)["rope_scaling"]
    assert (settings["rope_type"], settings["factor"]) == ("yarn", 32.0)
    assert state_after(plan).table.inv_freq[63] == pytest.approx(by_hand.plain(1e4, 128, 63) / 32.0, rel=1e-15)


@pytest.mark.parametrize("name", ["Mistral-7B-v0.3", "granite-3.3-8b-instruct", "pythia-1.4b", "phi-2"])
def test_a_yarn_where_the_family_publishes_none(name: str) -> None:
    settings = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    source = changed(contents(name), rope_scaling=settings)
    assert refused(source, Recipe(method="ntk", factor=4.0)).code == "undecidable-base"


@pytest.mark.parametrize("name", ["Qwen2.5-7B-Instruct", "Qwen3-8B"])
def test_a_bolted_on_yarn_without_its_original_length(name: str) -> None:
    """Readers take the stated length for it; whether that was raised with the scaling, nothing tells."""
    source = changed(contents(name), rope_scaling={"type": "yarn", "factor": 4.0})
    error = refused(source, Recipe(method="yarn", target=K128))
    assert error.code == "undecidable-length"
    assert (error.file, error.key) == ("config.json", "rope_scaling.original_max_position_embeddings")
    plan = planned(source, Recipe(method="yarn", target=K128, original_context=32768))
    assert (plan.trained_context, plan.factor) == (32768, 4.0)
    assert after(source, plan)["rope_scaling"]["original_max_position_embeddings"] == 32768


@pytest.mark.parametrize("name", ["gpt-j-6b", "codegen-350M-mono"])
def test_code_that_hard_codes_its_base(name: str) -> None:
    error = refused(name, Recipe(method="yarn", factor=4.0))
    assert error.code == "refused-family"
    assert "hard-codes a theta of 10000" in error.message


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "positions are a learned table"),
        ("opt-125m", "positions are a learned table"),
        ("bloom-560m", "positions are ALiBi"),
        ("mpt-7b", "positions are ALiBi"),
        ("falcon-rw-1b", "positions are ALiBi"),
    ],
)
def test_positions_that_are_no_rope(name: str, why: str) -> None:
    error = refused(name, Recipe(method="yarn", factor=4.0))
    assert error.code == "no-rope"
    assert why in error.message


@pytest.mark.parametrize(("model_type", "near"), [("lama", "llama"), ("qwen4", "qwen3"), ("gema3", "gemma3")])
def test_a_model_type_without_a_row(model_type: str, near: str) -> None:
    source = changed(contents(LLAMA), model_type=model_type)
    with pytest.raises(RefusedError) as caught:
        inspected(source)
    error = caught.value
    assert (error.exit_code, error.code, error.key) == (3, "unknown-family", "model_type")
    assert near in (error.hint or "")
    assert "--family" in (error.hint or "")


def test_treating_it_as_a_family_that_is_not_known_either() -> None:
    with pytest.raises(UsageError) as caught:
        inspected(LLAMA, Recipe(family="lama"))
    assert caught.value.exit_code == 2
    assert "llama" in (caught.value.hint or "")


@pytest.mark.parametrize(("name", "target"), [("Llama-3.1-8B-Instruct", K128), ("gpt-oss-20b", 65536)])
def test_a_target_within_what_was_trained(name: str, target: int) -> None:
    assert refused(name, Recipe(method="yarn", target=target)).code == "within-trained"
    # auto has nothing to do there, and says so without failing.
    plan = planned(name, Recipe(target=target))
    assert (plan.method, plan.factor) == ("none", 1.0)
    assert after(name, plan) == contents(name).config


def test_a_target_and_a_factor_that_disagree() -> None:
    with pytest.raises(UsageError) as caught:
        planned("Qwen3-8B", Recipe(method="yarn", target=K128, factor=3.2))
    # 40960 x 3.2 is 131072, and that is the trap: 32768 was trained.
    assert (caught.value.exit_code, caught.value.code) == (2, "target-and-factor")
    assert planned("Qwen3-8B", Recipe(method="yarn", target=K128, factor=4.0)).factor == 4.0


def test_a_method_that_a_named_runtime_does_not_read() -> None:
    """MLX-LM's and SGLang's Gemma 2 never look at a scaling; ntk is only another theta."""
    error = refused("gemma-2-9b", Recipe(method="yarn", factor=4.0))
    assert error.code == "unreadable"
    assert "mlx-lm" in error.message
    assert "sglang" in error.message
    assert planned("gemma-2-9b", Recipe(method="yarn", factor=4.0, runtimes=("transformers", "vllm"))).factor == 4.0
    assert planned("gemma-2-9b", Recipe(factor=4.0)).method == "ntk"


def test_a_rope_type_that_is_not_known() -> None:
    source = changed(contents(LLAMA), rope_scaling={"type": "dynamic-yarn", "factor": 4.0})
    with pytest.raises(CtxextendError) as caught:
        inspected(source)
    assert (caught.value.exit_code, caught.value.code) == (3, "unknown-rope-type")
    assert caught.value.key == "rope_scaling.rope_type"
