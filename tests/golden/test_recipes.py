"""The recipes that come with the project: each is read strictly and planned on the config of its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from ctxextend.lengths import parse_tokens
from ctxextend.recipe import Recipe
from tests.golden.support import NAMES, after, codes, config_of, planned

RECIPES: Final = Path(__file__).parents[2] / "recipes"
FILES: Final = tuple(sorted(path.name for path in RECIPES.glob("*.yaml")))

#: What each comes to: trained context, target, factor, and the form of the settings written.
WANTED: Final[dict[str, tuple[int, int, float, dict[str, Any]]]] = {
    "deepseek-v3-256k-yarn.yaml": (163840, 262144, 1.6, {"rope_type": "yarn", "factor": 64.0}),
    "gemma-3-4b-256k-linear.yaml": (131072, 262144, 2.0, {"rope_type": "linear", "factor": 16.0}),
    "llama-2-7b-128k-yarn.yaml": (4096, 131072, 32.0, {"rope_type": "yarn", "factor": 32.0}),
    "llama-3-8b-32k-ntk.yaml": (8192, 32768, 4.0, {}),
    "llama-3.1-8b-256k-yarn.yaml": (131072, 262144, 2.0, {"rope_type": "longrope"}),
    "mistral-7b-64k-yarn.yaml": (32768, 65536, 2.0, {"rope_type": "yarn", "factor": 2.0}),
    "qwen2.5-7b-instruct-128k-yarn.yaml": (32768, 131072, 4.0, {"rope_type": "yarn", "factor": 4.0}),
    "qwen3-8b-128k-yarn.yaml": (32768, 131072, 4.0, {"rope_type": "yarn", "factor": 4.0}),
    "smollm2-135m-32k-ntk.yaml": (8192, 32768, 4.0, {}),
}


def loaded(name: str) -> tuple[str, Recipe]:
    """A recipe file: the golden config of its source, and the recipe itself."""
    values = yaml.safe_load((RECIPES / name).read_text())
    source = values.pop("source")
    values["target"] = parse_tokens(str(values["target"]), option="target")
    return source.split("/")[-1], msgspec.convert(values, Recipe)


def test_every_recipe_is_expected() -> None:
    assert set(FILES) == set(WANTED)


@pytest.mark.parametrize("name", FILES)
def test_it_says_why_and_what(name: str) -> None:
    lines = (RECIPES / name).read_text().splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert lines[: len(comment)] == comment
    assert any("Why" in line for line in comment)
    assert any("Working:" in line for line in comment)
    keys = list(yaml.safe_load("\n".join(lines)))
    assert keys[:3] == ["source", "method", "target"]
    assert set(keys) - {"source"} <= {field.name for field in msgspec.structs.fields(Recipe)}


@pytest.mark.parametrize("name", FILES)
def test_it_plans_on_its_source(name: str) -> None:
    source, recipe = loaded(name)
    assert source in NAMES
    plan = planned(source, recipe)
    trained, target, factor, settings = WANTED[name]
    assert (plan.trained_context, plan.target_context, plan.factor) == (trained, target, factor)
    assert plan.method == recipe.method
    assert not {"second-best", "unreadable", "far-without-training"} & set(codes(plan))
    config = after(source, plan)
    text = config.get("text_config", config)
    written = text.get("rope_scaling") or {}
    assert {key: written.get(key) for key in settings} == settings
    assert text["max_position_embeddings"] == target


def test_the_thetas_that_the_comments_work_out() -> None:
    """500000 x 4^(128/126) and 100000 x 4^(64/62)."""
    for name, theta in (("llama-3-8b-32k-ntk.yaml", 2044497), ("smollm2-135m-32k-ntk.yaml", 418294)):
        source, recipe = loaded(name)
        dim = config_of(source)["hidden_size"] // config_of(source)["num_attention_heads"]
        written = after(source, planned(source, recipe))["rope_theta"]
        assert round(written) == theta
        assert written == pytest.approx(config_of(source)["rope_theta"] * 4.0 ** (dim / (dim - 2)), rel=1e-12)


def test_the_widened_window_of_mistral() -> None:
    source, recipe = loaded("mistral-7b-64k-yarn.yaml")
    config = after(source, planned(source, recipe))
    assert config["sliding_window"] == 65536
    # Without that line there is nothing to scale.
    kept = planned(source, msgspec.structs.replace(recipe, sliding_window="keep"))
    assert kept.method == "none"


def test_a_key_that_recipes_do_not_have_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"method": "yarn", "targt": 131072}, Recipe)
