"""A conversion's diff is minimal: unknown keys, order and indentation survive in every published config."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from ctxextend.contents import Contents
from ctxextend.errors import RefusedError
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from tests.golden.support import after_texts, changed, contents, inspected, planned, with_text
from tests.golden.test_inspection import WANTED

#: What a conversion may change or add, where the language model's settings stand.
MAY_CHANGE = frozenset(
    {
        "max_position_embeddings",
        "model_max_length",
        "original_max_position_embeddings",
        "head_dim",
        "rope_theta",
        "rotary_emb_base",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
    }
)
#: Families whose rope sees no further than a window: only the stated length changes.
WINDOWED = frozenset(
    {
        "Mistral-7B-v0.1",
        "Phi-3-mini-4k-instruct",
        "starcoder2-7b",
        "c4ai-command-r7b-12-2024",
        "Llama-4-Scout-17B-16E-Instruct",
    }
)
NESTED = frozenset({"gemma-3-4b-it", "Ministral-3-3B-Reasoning-2512", "Llama-4-Scout-17B-16E-Instruct"})
METHODS = ("yarn", "ntk", "linear")


def first_plan(source: str | Contents, factor: float = 2.0) -> Plan:
    """The plan of the first method that this family's readers agree on."""
    for method in METHODS:
        with contextlib.suppress(RefusedError):
            return planned(source, Recipe(method=method, factor=factor))
    # What every method is refused for is the readers named, not the form.
    return planned(source, Recipe(method="linear", factor=factor, runtimes=("transformers",)))


def differing(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Keys whose JSON text differs, either way."""
    return {
        key
        for key in {*before, *after}
        if key not in before or key not in after or json.dumps(before[key]) != json.dumps(after[key])
    }


@pytest.mark.parametrize("name", WANTED)
def test_only_what_must_change_does(name: str) -> None:
    source = contents(name)
    text = after_texts(source, first_plan(source))["config.json"]
    before, after = source.config, json.loads(text)
    nested = {"text_config"} if name in NESTED else set()
    changes = differing(before, after)
    assert "ctxextend" in changes
    assert changes - {"ctxextend"} <= (nested or MAY_CHANGE)
    if nested:
        assert differing(before["text_config"], after["text_config"]) <= MAY_CHANGE
    if name in WINDOWED:
        inner = (before["text_config"], after["text_config"]) if nested else (before, after)
        assert differing(*inner) - {"ctxextend"} == {"max_position_embeddings"}


@pytest.mark.parametrize("name", WANTED)
def test_order_survives_and_what_is_new_stands_last(name: str) -> None:
    source = contents(name)
    before, after = source.config, json.loads(after_texts(source, first_plan(source))["config.json"])
    nodes = [(before, after)]
    if name in NESTED:
        nodes.append((before["text_config"], after["text_config"]))
    for old, new in nodes:
        kept = [key for key in old if key in new]
        assert list(new)[: len(kept)] == kept
        assert set(old) - set(new) <= {"original_max_position_embeddings"}


@pytest.mark.parametrize("name", WANTED)
def test_no_other_line_of_the_text_changes(name: str) -> None:
    """As a line diff shows it: the lines that vanish are those of the keys that change."""
    source = contents(name)
    text = source.documents["config.json"].text
    new = after_texts(source, first_plan(source))["config.json"]
    gone = [line for line in text.splitlines() if line.rstrip(",") not in {n.rstrip(",") for n in new.splitlines()}]
    inside = {key for value in (source.config, source.config.get("text_config", {})) for key in _inner_keys(value)}
    for line in gone:
        key = line.strip().split('"')[1] if '"' in line else ""
        number = line.strip().rstrip(",").replace(".", "").isdigit()
        assert key in MAY_CHANGE | inside or number, line
    assert new.endswith("}\n")


def _inner_keys(config: dict[str, Any]) -> set[str]:
    """The keys of the dictionaries that are replaced as a whole."""
    replaced = (config.get("rope_scaling"), config.get("rope_parameters"))
    return {key for settings in replaced if isinstance(settings, dict) for key in settings}


@pytest.mark.parametrize("indent", [1, 4, "\t", None])
@pytest.mark.parametrize("name", ["Meta-Llama-3-8B", "gemma-3-4b-it", "Qwen3-8B-card-yarn"])
def test_indentation_survives(name: str, indent: int | str | None) -> None:
    source = with_text(contents(name), json.dumps(contents(name).config, indent=indent))
    text = after_texts(source, first_plan(source))["config.json"]
    assert text == json.dumps(json.loads(text), indent=indent)


@pytest.mark.parametrize("name", WANTED)
def test_keys_that_nobody_knows_survive_where_they_stand(name: str) -> None:
    config = contents(name).config
    strange = {"zz_vendor": {"rope": [1, 2.50, "\u00e9"], "n": 1e-05}, **config, "aa_vendor": None}
    text = json.dumps(strange, indent=2, ensure_ascii=False)
    source = with_text(contents(name), text)
    after = after_texts(source, first_plan(source))["config.json"]
    assert after.startswith(text[: text.index(f'"{next(iter(config))}"')])
    assert '"aa_vendor": null' in after
    assert json.loads(after)["zz_vendor"] == strange["zz_vendor"]


@pytest.mark.parametrize("name", sorted(NESTED - WINDOWED))
def test_nested_models_are_written_where_they_read(name: str) -> None:
    source = contents(name)
    after = json.loads(after_texts(source, first_plan(source))["config.json"])
    assert set(after) - set(source.config) == {"ctxextend"}
    assert {"rope_scaling", "rope_parameters", "max_position_embeddings"} <= set(after["text_config"])
    assert after["vision_config"] == source.config["vision_config"]


def test_sections_of_positions_survive() -> None:
    """Qwen2-VL: mrope_section describes the model; the type mrope would hide a scaling."""
    source = contents("Qwen2.5-VL-7B-Instruct")
    plan = planned(source, Recipe(method="yarn", target=131072, runtimes=("transformers", "sglang")))
    after = json.loads(after_texts(source, plan)["config.json"])
    assert plan.factor == 4.0
    assert after["rope_scaling"]["mrope_section"] == [16, 24, 24]
    assert after["rope_scaling"]["rope_type"] == "yarn"
    assert "type" not in after["rope_scaling"]
    assert not {"mscale", "mscale_all_dim"} & set(after["rope_scaling"])
    assert after["max_position_embeddings"] == 131072
    assert after["vision_config"] == source.config["vision_config"]


def test_partial_rotation_stays_where_older_readers_look() -> None:
    for name in ("phi-2", "GLM-4-9B-0414", "pythia-1.4b", "stablelm-2-zephyr-1_6b", "Minitron-4B-Base"):
        source = contents(name)
        after = json.loads(after_texts(source, planned(source, Recipe(method="ntk", factor=2.0)))["config.json"])
        for key in ("partial_rotary_factor", "rotary_pct"):
            assert after.get(key) == source.config.get(key)
        found = inspected(with_text(source, json.dumps(after)))
        assert [g.spec.rotary_dim for g in found.groups if g.spec] == [
            g.spec.rotary_dim for g in inspected(source).groups if g.spec
        ]


def test_a_whole_number_for_theta_stays_one() -> None:
    text = after_texts("SmolLM2-135M-Instruct", planned("SmolLM2-135M-Instruct", Recipe(method="yarn", factor=4.0)))
    assert '  "rope_theta": 100000,\n' in text["config.json"]
    assert '"model_max_length": 32768' in text["tokenizer_config.json"]


def test_a_sentinel_is_no_limit() -> None:
    for name, method in (("Llama-2-7b-hf", "yarn"), ("gemma-3-4b-it", "linear")):
        assert list(after_texts(name, planned(name, Recipe(method=method, factor=2.0)))) == ["config.json"]


def test_synonyms_of_the_length_are_raised_where_they_are() -> None:
    source = changed(contents("Llama-2-7b-hf"), max_sequence_length=4096, n_ctx=4096, seq_length=1 << 20)
    after = json.loads(after_texts(source, planned(source, Recipe(method="ntk", factor=4.0)))["config.json"])
    assert (after["max_sequence_length"], after["n_ctx"]) == (16384, 16384)
    # A longer one is no copy of the length.
    assert after["seq_length"] == 1 << 20
    assert "model_max_length" not in after
