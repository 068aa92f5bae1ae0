"""A second conversion: to the same target it changes nothing, to another it starts from the base."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ctxextend.changes import EditJson
from ctxextend.contents import Contents
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from tests.golden.support import after_texts, contents, converted, inspected, planned, with_text

#: Name, first target, second target, method: what was trained in, bolted on, plain, nested, latent.
CASES = [
    ("Llama-2-7b-hf", 32768, 131072, "yarn"),
    ("Llama-2-7b-yarn-unraised", 131072, 65536, "yarn"),
    ("Llama-3.1-8B-Instruct", 262144, 524288, "yarn"),
    ("Qwen3-8B", 65536, 131072, "yarn"),
    ("Qwen3-8B-card-yarn", 131072, 65536, "yarn"),
    ("gemma-3-4b-it", 262144, 524288, "linear"),
    ("gemma-3-4b-it", 262144, 524288, "yarn"),
    ("gemma-3-1b-it", 65536, 131072, "yarn"),
    ("gpt-oss-20b", 262144, 524288, "yarn"),
    ("DeepSeek-V3", 262144, 327680, "yarn"),
    ("Olmo-3-1025-7B", 131072, 262144, "yarn"),
    ("Ministral-3-3B-Reasoning-2512", 524288, 1048576, "yarn"),
    ("internlm3-8b-instruct", 65536, 131072, "ntk"),
    ("c4ai-command-r-v01", 262144, 524288, "ntk"),
    ("phi-2", 4096, 8192, "ntk"),
    ("falcon-7b", 4096, 8192, "yarn"),
]


def edits(plan: Plan) -> list[EditJson]:
    return [action for action in plan.actions if isinstance(action, EditJson)]


def settings_of(text: str) -> dict[str, Any]:
    """A config without its record."""
    config: dict[str, Any] = json.loads(text)
    config.pop("ctxextend")
    return config


def once(name: str, target: int, method: str) -> tuple[Contents, Plan]:
    plan = planned(name, Recipe(method=method, target=target))
    return converted(name, plan), plan


@pytest.mark.parametrize(("name", "first", "second", "method"), CASES)
def test_to_the_same_target_nothing_changes(name: str, first: int, second: int, method: str) -> None:
    result, plan = once(name, first, method)
    again = planned(result, Recipe(method=method, target=first))
    assert edits(again) == []
    assert again.digest == plan.digest
    assert (again.factor, again.trained_context) == (plan.factor, plan.trained_context)
    texts = {file: document.text for file, document in result.documents.items()}
    assert all(texts[file] == text for file, text in after_texts(result, again).items())


@pytest.mark.parametrize(("name", "first", "second", "method"), CASES)
def test_to_another_target_it_is_as_if_converted_directly(name: str, first: int, second: int, method: str) -> None:
    result, _plan = once(name, first, method)
    direct, onwards = (
        once(name, second, method)[0],
        converted(result, planned(result, Recipe(method=method, target=second))),
    )
    for file in direct.documents:
        assert onwards.documents[file].value == direct.documents[file].value, file
    assert inspected(onwards).groups == inspected(direct).groups


@pytest.mark.parametrize(("name", "first", "second", "method"), CASES)
def test_the_base_is_remembered(name: str, first: int, second: int, method: str) -> None:
    before = inspected(name)
    found = inspected(once(name, first, method)[0])
    assert found.config == contents(name).config
    assert found.trained_context == before.trained_context
    assert [group.base for group in found.groups] == [group.base for group in before.groups]
    assert "ours" in [group.origin for group in found.groups]


def saved_by_transformers_5(source: Contents) -> Contents:
    """What save_pretrained of transformers 5 makes of a config: the older rope keys dropped, keys sorted.

    ``rope_parameters`` is kept (a layer type at a time, where it is nested), a class's defaults are written out.
    """

    def save(node: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in node.items() if key not in ("rope_scaling", "rope_theta")}
        kept.pop("rope_local_base_freq", None)
        kept["transformers_version"] = "5.23.0"
        kept["dtype"] = kept.pop("torch_dtype", "bfloat16")
        return kept

    config = save(source.config)
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = save(config["text_config"])
    return with_text(source, json.dumps(config, indent=2, sort_keys=True) + "\n")


@pytest.mark.parametrize(("name", "first", "second", "method"), CASES)
def test_after_another_tool_saved_it_the_base_is_still_found(name: str, first: int, second: int, method: str) -> None:
    """The record puts back what was there, so the next conversion is over the same base, to the same table."""
    direct, direct_plan = once(name, second, method)
    saved = saved_by_transformers_5(once(name, first, method)[0])
    plan = planned(saved, Recipe(method=method, target=second))
    assert (plan.trained_context, plan.factor) == (direct_plan.trained_context, direct_plan.factor)
    for group, wanted in zip(plan.groups, direct_plan.groups, strict=True):
        assert group.after == wanted.after
    onwards = settings_of(after_texts(saved, plan)["config.json"])
    wanted_config = settings_of(direct.documents["config.json"].text)
    for key in ("rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings"):
        for node, wanted_node in ((onwards, wanted_config), *_inner(onwards, wanted_config)):
            assert node.get(key) == wanted_node.get(key), key


def _inner(*configs: dict[str, Any]) -> list[tuple[dict[str, Any], ...]]:
    nodes = tuple(config.get("text_config") for config in configs)
    return [tuple(node for node in nodes if isinstance(node, dict))] if isinstance(nodes[0], dict) else []


@pytest.mark.parametrize(("name", "first", "second", "method"), CASES)
def test_what_another_tool_saved_is_put_right_for_the_same_target(
    name: str, first: int, second: int, method: str
) -> None:
    """Transformers 5 drops what transformers 4 and MLX-LM read: the same conversion writes it again."""
    result, plan = once(name, first, method)
    again = planned(saved_by_transformers_5(result), Recipe(method=method, target=first))
    restored = settings_of(after_texts(saved_by_transformers_5(result), again)["config.json"])
    wanted = settings_of(result.documents["config.json"].text)
    for node, wanted_node in ((restored, wanted), *_inner(restored, wanted)):
        assert node.get("rope_scaling") == wanted_node.get("rope_scaling")
        assert node.get("rope_theta") == wanted_node.get("rope_theta")
    assert again.factor == plan.factor


def test_another_method_starts_from_the_base_too() -> None:
    result, _plan = once("Llama-3.1-8B-Instruct", 262144, "yarn")
    recipe = Recipe(method="ntk", target=524288)
    onwards, direct = planned(result, recipe), planned("Llama-3.1-8B-Instruct", recipe)
    assert [group.after for group in onwards.groups] == [group.after for group in direct.groups]
    assert onwards.factor == 4.0


def test_back_within_the_trained_length_auto_plans_nothing() -> None:
    result, _plan = once("Qwen3-8B", 131072, "yarn")
    assert planned(result, Recipe(target=16384)).method == "none"
