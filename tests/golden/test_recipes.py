"""The recipes that come with the project: each is read strictly, every output of it planned on its published source."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from ctxextend.changes import changes_nothing, gguf_edits_of
from ctxextend.check import check, meant_by_plan
from ctxextend.checkpoint import Source
from ctxextend.contents import Contents, GgufValue
from ctxextend.gguf_check import check_gguf
from ctxextend.inspection import inspect
from ctxextend.pipeline import Opened, inspect_source, open_source, plan_source
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.release import asked
from ctxextend.release.document import RecipeDocument
from ctxextend.release.reading import read_recipe
from tests.exports.test_published import expected_tensors
from tests.gguf_factory import encode, pair
from tests.golden import by_hand
from tests.golden.support import after, codes, config_of, contents, converted, state_after

RECIPES: Final = Path(__file__).parents[2] / "recipes"
KEYS: Final = Path(__file__).parent / "gguf"
FILES: Final = tuple(sorted(path.name for path in RECIPES.glob("*.yaml")))
GGUF: Final = "qwen3-32b-gguf-128k-yarn.yaml"
CONFIGS: Final = tuple(name for name in FILES if name != GGUF)
FILE = pytest.mark.parametrize("name", FILES)

#: What each comes to: trained context, target, factor, and the form of the settings written.
WANTED: Final[dict[str, tuple[int, int, float, dict[str, Any]]]] = {
    "deepseek-v3-256k-yarn.yaml": (163840, 262144, 1.6, {"rope_type": "yarn", "factor": 64.0}),
    "gemma-3-4b-256k-linear.yaml": (131072, 262144, 2.0, {"rope_type": "linear", "factor": 16.0}),
    "llama-2-7b-128k-yarn.yaml": (4096, 131072, 32.0, {"rope_type": "yarn", "factor": 32.0}),
    "llama-3-8b-32k-ntk.yaml": (8192, 32768, 4.0, {}),
    "llama-3.1-8b-256k-yarn.yaml": (131072, 262144, 2.0, {"rope_type": "longrope"}),
    "mistral-7b-64k-yarn.yaml": (32768, 65536, 2.0, {"rope_type": "yarn", "factor": 2.0}),
    "phi-3.5-mini-256k-yarn.yaml": (131072, 262144, 2.0, {"type": "longrope"}),
    "qwen2.5-7b-instruct-128k-yarn.yaml": (32768, 131072, 4.0, {"rope_type": "yarn", "factor": 4.0}),
    "qwen3-8b-128k-yarn.yaml": (32768, 131072, 4.0, {"rope_type": "yarn", "factor": 4.0}),
    "smollm2-135m-32k-ntk.yaml": (8192, 32768, 4.0, {}),
}

#: The form that each GGUF output has.
FORMS: Final = {
    "gemma-3-4b-256k-linear.yaml": "native",
    "llama-3-8b-32k-ntk.yaml": "theta",
    "llama-3.1-8b-256k-yarn.yaml": "rope_freqs",
    "phi-3.5-mini-256k-yarn.yaml": "equal lists",
    "qwen2.5-7b-instruct-128k-yarn.yaml": "native",
    "qwen3-8b-128k-yarn.yaml": "native",
    "smollm2-135m-32k-ntk.yaml": "theta",
}

#: Bytes of the KV cache a token: layers x 2 (key and value) x heads that keep them x head size x 2 bytes.
CACHE: Final = {
    "gemma-3-4b-256k-linear.yaml": 5 * 2 * 4 * 256 * 2,
    "llama-2-7b-128k-yarn.yaml": 32 * 2 * 32 * 128 * 2,
    "llama-3-8b-32k-ntk.yaml": 32 * 2 * 8 * 128 * 2,
    "llama-3.1-8b-256k-yarn.yaml": 32 * 2 * 8 * 128 * 2,
    "mistral-7b-64k-yarn.yaml": 32 * 2 * 8 * 128 * 2,
    "phi-3.5-mini-256k-yarn.yaml": 32 * 2 * 32 * 96 * 2,
    "qwen2.5-7b-instruct-128k-yarn.yaml": 28 * 2 * 4 * 128 * 2,
    "qwen3-8b-128k-yarn.yaml": 36 * 2 * 8 * 128 * 2,
    GGUF: 64 * 2 * 8 * 128 * 2,
    "smollm2-135m-32k-ntk.yaml": 30 * 2 * 3 * 64 * 2,
}

#: A key that is there as a comment.
KEPT: Final = re.compile(r"^( +)# (\w+: \S+)", re.MULTILINE)


def text_of(name: str) -> str:
    return (RECIPES / name).read_text()


def comment_of(name: str) -> str:
    """The comment at the top, as one line."""
    lines = text_of(name).splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def document_of(name: str) -> RecipeDocument:
    (variant,) = read_recipe(RECIPES / name, {}).variants
    return variant.document


def opened_of(document: RecipeDocument, folder: Path) -> Opened:
    """The published source: a golden config with the tensors that its family has, or a file of golden keys."""
    name = document.source.rpartition("/")[2]
    if ":" in name:
        stem = name.replace("-GGUF:", "-")
        said = json.loads((KEYS / f"{stem}.json").read_text())
        path = folder / f"{stem}.gguf"
        path.write_bytes(encode([pair(key, GgufValue(type=kind, value=value)) for key, (kind, value) in said.items()]))
        return open_source(path)
    tensors = tuple(expected_tensors(config_of(name)).values())
    found = msgspec.structs.replace(contents(name), storage="safetensors", tensors=tensors)
    return Opened(source=Source(given=name), contents=found)


def outputs_of(name: str, folder: Path) -> Iterator[tuple[Opened, Recipe, Plan]]:
    """Every output of a recipe, planned."""
    document = document_of(name)
    opened = opened_of(document, folder)
    for output in document.outputs:
        recipe = asked.recipe_of(document, output)
        yield opened, recipe, plan_source(opened, recipe)


def first(name: str, folder: Path) -> tuple[Contents, Plan]:
    opened, _recipe, plan = next(outputs_of(name, folder))
    return opened.contents, plan


def test_every_recipe_is_expected() -> None:
    assert set(FILES) == {*WANTED, GGUF}


@FILE
def test_it_says_why_and_what(name: str) -> None:
    lines = text_of(name).splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert lines[: len(comment)] == comment
    assert any("Why" in line for line in comment)
    assert any("Working:" in line for line in comment)
    assert all(len(line) <= 120 for line in lines)
    keys = list(yaml.safe_load("\n".join(lines)))
    assert keys[:3] == ["source", "method", "target"]


@FILE
def test_the_arithmetic_in_its_comments(name: str) -> None:
    """Quotients and products of plain numbers, as they stand there."""
    found = re.findall(r"([\d.]+) (/|x) ([\d.]+) = ([\d.]+[\d])", comment_of(name))
    found += re.findall(r"([\d.]+) (/|x) ([\d.]+) = (\d)\b(?![\d.]*\d)", comment_of(name))
    assert found
    for left, sign, right, result in found:
        value = float(left) / float(right) if sign == "/" else float(left) * float(right)
        assert value == pytest.approx(float(result)), (left, sign, right)


@FILE
def test_what_is_the_default_is_not_written(name: str) -> None:
    said = yaml.safe_load(text_of(name))
    default = msgspec.to_builtins(RecipeDocument(source="x"))
    assert not [key for key, value in said.items() if default[key] == value]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_plans_on_its_source(name: str, tmp_path: Path) -> None:
    opened, recipe, plan = next(outputs_of(name, tmp_path))
    trained, target, factor, settings = WANTED[name]
    assert (plan.trained_context, plan.target_context, plan.factor) == (trained, target, factor)
    assert (plan.method, plan.to) == (recipe.method, "safetensors")
    config = after(opened.contents, plan)
    text = config.get("text_config", config)
    written = text.get("rope_scaling") or {}
    assert {key: written.get(key) for key in settings} == settings
    assert text["max_position_embeddings"] == target


@FILE
def test_every_output_is_planned(name: str, tmp_path: Path) -> None:
    found = list(outputs_of(name, tmp_path))
    forms = set()
    for opened, recipe, plan in found:
        assert plan.method == recipe.method
        assert not plan.misread
        assert not {"second-best", "unreadable", "far-without-training", "window-lost"} & set(codes(plan))
        if plan.to == "gguf" and opened.contents.gguf is None:
            forms |= {group.after.encoding for group in plan.groups if group.extended and group.after}
    assert forms == ({FORMS[name]} if name in FORMS else set())
    parts = document_of(name).outputs
    names = {part.name or plan.out for part, (_opened, _recipe, plan) in zip(parts, found, strict=True)}
    assert len(names) == len(found)


@FILE
def test_its_check_passes(name: str, tmp_path: Path) -> None:
    """Every runtime of the plan reads what is written as planned, as 'check: true' asks."""
    assert document_of(name).check is True
    source, plan = first(name, tmp_path)
    meant = meant_by_plan(plan, source="its plan")
    if source.gguf is not None:
        values = dict(source.gguf.values)
        values.update({key: value for key, value in gguf_edits_of(plan.actions).keys.items() if value is not None})
        edited = msgspec.structs.replace(source, gguf=msgspec.structs.replace(source.gguf, values=values))
        found = check_gguf(edited, required=plan.runtimes, against=meant)
    else:
        result = converted(source, plan)
        found = check(result, inspect(result), required=plan.runtimes, against=meant)
    assert found.ok
    assert any(runtime.required for runtime in found.runtimes)


@FILE
def test_what_it_is_held_to(name: str) -> None:
    document = document_of(name)
    smoke = asked.smoke_asked(document.smoke)
    evaluation = asked.eval_asked(document.eval)
    if document.fine_tune or name.startswith("deepseek"):
        assert smoke is None
        assert evaluation is None
        return
    assert smoke is not None
    assert smoke.length is None or WANTED["qwen3-8b-128k-yarn.yaml"][0] < smoke.length
    if name == GGUF:
        return
    assert evaluation is not None
    assert evaluation.settings.lengths == WANTED[name][:2]
    assert evaluation.against == "original"
    assert evaluation.gate or "perplexity-ratio" in evaluation.bounds


@FILE
def test_what_stands_in_comments_can_be_used(name: str, tmp_path: Path) -> None:
    """To publish is to take the comments off."""
    text, count = KEPT.subn(r"\1\2", text_of(name))
    path = tmp_path / name
    path.write_text(text)
    (variant,) = read_recipe(path, {}).variants
    names = [output.repo_id for output in variant.document.outputs]
    assert count >= len(names) or variant.document.fine_tune
    if variant.document.fine_tune:
        return
    assert len({*names}) == len(names)
    last = document_of(name).source.rpartition("/")[2].partition("-GGUF:")[0]
    for output, repo_id in zip(variant.document.outputs, names, strict=True):
        ending = "-GGUF" if output.to == "gguf" else ""
        assert repo_id == f"my-org/{last}-{variant.document.method}-{variant.document.target}{ending}"


@pytest.mark.parametrize("name", sorted(CACHE))
def test_the_memory_that_the_comments_tell(name: str, tmp_path: Path) -> None:
    opened, recipe, plan = next(outputs_of(name, tmp_path))
    bytes_a_token = CACHE[name]
    size = bytes_a_token * plan.target_context
    shown = f"{size / 2**30:g} GiB" if size >= 2**30 else f"{size / 2**20:g} MiB"
    assert f"{bytes_a_token / 1024:g} KiB a token: {shown}" in comment_of(name)
    cache = inspect_source(opened, recipe).kv_cache
    assert cache is not None
    # Gemma's other 29 layers keep 1024 tokens.
    windowed = 29 * 2 * 4 * 256 * 2 * 1024 if name.startswith("gemma") else 0
    assert cache.size_bytes(plan.target_context) == size + windowed


def test_the_memory_of_latent_attention(tmp_path: Path) -> None:
    """61 layers keep 512 + 64 numbers of a token."""
    name = "deepseek-v3-256k-yarn.yaml"
    size = 61 * (512 + 64) * 2 * 262144
    assert f"{size / 2**30:.1f} GiB" in comment_of(name)
    opened, recipe, plan = next(outputs_of(name, tmp_path))
    cache = inspect_source(opened, recipe).kv_cache
    assert cache is not None
    assert cache.size_bytes(plan.target_context) == size


def test_the_layers_of_gemma(tmp_path: Path) -> None:
    """Every sixth of 34 sees everything: five; 29 x 2 x 4 x 256 x 2 bytes of 1024 tokens are 116 MiB."""
    _source, plan = first("gemma-3-4b-256k-linear.yaml", tmp_path)
    assert {group.label: (len(group.layers), group.extended) for group in plan.groups} == {
        "sliding_attention": (29, False),
        "full_attention": (5, True),
    }
    assert 29 * 2 * 4 * 256 * 2 * 1024 / 2**20 == 116


@pytest.mark.parametrize(
    ("name", "theta", "dim", "shown"),
    [("llama-3-8b-32k-ntk.yaml", 500000.0, 128, 2564689), ("smollm2-135m-32k-ntk.yaml", 100000.0, 64, 526644)],
)
def test_the_thetas_that_the_comments_work_out(name: str, theta: float, dim: int, shown: int, tmp_path: Path) -> None:
    """500000 x 5^(128/126) and 100000 x 5^(64/62)."""
    source, plan = first(name, tmp_path)
    written = after(source, plan)["rope_theta"]
    assert written == pytest.approx(theta * 5.0 ** (dim / (dim - 2)), rel=1e-12)
    assert round(written) == shown
    assert f"= {shown}" in comment_of(name)


def test_the_temperatures_that_the_comments_work_out(tmp_path: Path) -> None:
    assert f"= {by_hand.temperature(4.0):.6f}" in comment_of(GGUF)
    _source, plan = first("llama-3.1-8b-256k-yarn.yaml", tmp_path)
    assert state_after(plan).table.attention_factor == pytest.approx(by_hand.temperature(2.0), rel=1e-12)


def test_the_numbers_of_phi(tmp_path: Path) -> None:
    """Everything that its comments work out from the trained list, by hand."""
    name = "phi-3.5-mini-256k-yarn.yaml"
    source, plan = first(name, tmp_path)
    trained = config_of("Phi-3.5-mini-instruct")["rope_scaling"]["long_factor"]
    turning = [
        pair for pair, factor in enumerate(trained) if 131072 * by_hand.plain(10000.0, 96, pair) / factor >= 2 * math.pi
    ]
    comment = comment_of(name)
    assert f"{len(turning)} of {len(trained)} turn fully" in comment
    config = after(source, plan)
    written = config["rope_scaling"]
    assert written["short_factor"] == written["long_factor"]
    assert (round(written["long_factor"][0], 2), round(written["long_factor"][-1], 2)) == (1.08, 129.68)
    assert "from 1.08 to 129.68" in comment
    assert written["long_factor"][-1] == pytest.approx(2.0 * trained[-1], rel=1e-12)
    attention = math.sqrt(1.0 + math.log(32.0) / math.log(4096.0))
    product = attention * by_hand.temperature(2.0)
    assert f"= {attention:.6f} was trained" in comment
    assert f"is {product:.6f}" in comment
    assert config["original_max_position_embeddings"] == by_hand.carrier_original(262144, product) == 2213
    assert "= 2213 is" in comment


def test_the_widened_window_of_mistral(tmp_path: Path) -> None:
    opened, recipe, plan = next(outputs_of("mistral-7b-64k-yarn.yaml", tmp_path))
    assert after(opened.contents, plan)["sliding_window"] == 65536
    # Without that line there is nothing to scale.
    kept = plan_source(opened, msgspec.structs.replace(recipe, sliding_window="keep"))
    assert kept.method == "none"


def test_what_is_lost_of_the_card_of_qwen_is_not_missed(tmp_path: Path) -> None:
    """A checkpoint that has the card's yarn already comes out the same."""
    document = document_of("qwen2.5-7b-instruct-128k-yarn.yaml")
    named = msgspec.structs.replace(document, source="Qwen/Qwen2.5-7B-Instruct-card-yarn")
    opened = opened_of(named, tmp_path)
    carded = after(opened.contents, plan_source(opened, asked.recipe_of(named, named.outputs[0])))
    source, plan = first("qwen2.5-7b-instruct-128k-yarn.yaml", tmp_path)
    fresh = after(source, plan)
    assert carded["rope_scaling"] == fresh["rope_scaling"]
    assert carded["max_position_embeddings"] == fresh["max_position_embeddings"] == 131072


def test_the_edit_of_a_published_file(tmp_path: Path) -> None:
    """Four keys, and the record of it; no tensor, and every byte of the weights."""
    source, plan = first(GGUF, tmp_path)
    assert (plan.trained_context, plan.current_context, plan.target_context) == (32768, 40960, 131072)
    edits = gguf_edits_of(plan.actions)
    assert {key: value.value for key, value in edits.keys.items() if value and key != "ctxextend.record"} == {
        "qwen3.context_length": 131072,
        "qwen3.rope.scaling.type": "yarn",
        "qwen3.rope.scaling.factor": 4.0,
        "qwen3.rope.scaling.original_context_length": 32768,
    }
    assert not edits.tensors
    assert not changes_nothing(plan.actions)
    assert source.gguf is not None
    assert 49152 * CACHE[GGUF] == 12 * 2**30


def test_a_key_that_recipes_do_not_have_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"source": "x", "method": "yarn", "targt": 131072}, RecipeDocument)
