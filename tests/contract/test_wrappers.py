"""Checkpoints around a language model: whose row applies, where the edits go, and what transformers reads there."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ctxextend.errors import RefusedError
from ctxextend.families import FAMILIES, WRAPPERS, find_family, flat, multimodal
from ctxextend.families.wrappers import SIZES, TEXT_PATHS
from ctxextend.inspection import inspect
from ctxextend.recipe import Recipe
from tests.factories import TINY, contents, converted, family_config, inspected, planned

YARN = Recipe(method="yarn", target=8192, runtimes=("transformers@5",))
#: Wrappers whose class takes a Llama. The others want an attribute of their own kind inside, or sizes that fit.
WITH_LLAMA = sorted(
    set(WRAPPERS) - {"colpali", "colqwen2", "fun_asr_nano", "gemma4_assistant", "gemma4_unified_assistant", "paligemma"}
)
#: Sizes outside the language model's config that must fit it.
FITTING: dict[str, dict[str, Any]] = {
    "granite_docling": {"vision_config": {"out_hidden_size": 64}},
    "muse_spark": {"audio_config": {"out_hidden_size": 64}, "vision_config": {"out_hidden_size": 64}},
}
#: Model types outside the language model's own in a row.
OUTER = sorted(
    (row.name, model_type)
    for row in (*flat.ROWS, *multimodal.ROWS)
    for model_type in row.model_types[:-1]
    if model_type != "EvollaModel"
)


def text_path(default: PreTrainedConfig) -> tuple[str, ...]:
    """Where a class keeps the config that it calls the language model's."""
    wanted = default.get_text_config(decoder=True)
    for path in TEXT_PATHS:
        node: Any = default
        for key in path:
            node = getattr(node, key, None)
        if node is wanted:
            return path
    raise LookupError(type(default).__name__)


def nested(model_type: str, path: tuple[str, ...], text: dict[str, Any]) -> dict[str, Any]:
    """A config.json of a wrapper with ``text`` at ``path``."""
    node: dict[str, Any] = text
    for key in reversed(path):
        node = {key: node}
    return {"model_type": model_type, **node}


def at(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    node: Any = config
    for key in path:
        node = node[key]
    assert isinstance(node, dict)
    return node


@pytest.mark.parametrize("model_type", sorted(set(WRAPPERS) - {"gemma4_assistant"}))
def test_a_wrapper_is_what_transformers_says(model_type: str) -> None:
    default = CONFIG_MAPPING[model_type]()
    inner = default.get_text_config(decoder=True)
    assert inner.model_type == WRAPPERS[model_type]
    assert text_path(default) in TEXT_PATHS
    key = text_path(default)[0]
    assert type(default).sub_configs[key].__name__ == "AutoConfig", "a fixed language model belongs into its row"


@pytest.mark.parametrize("model_type", WITH_LLAMA)
def test_a_language_model_inside_any_wrapper_is_extended_in_its_place(model_type: str) -> None:
    """The planned table, against the rotary class of the config that transformers' wrapper class hands on."""
    path = text_path(CONFIG_MAPPING[model_type]())
    inside = {key: value for key, value in TINY.items() if key != "architectures"}
    config = nested(model_type, path, inside)
    if path[0] == "vlm_config":
        config["vlm_config"]["model_type"] = "modernvbert"
    plan = planned(config, YARN)
    assert plan.family in ("llama", model_type)
    edited = converted(config, plan)
    assert {key: value for key, value in edited.items() if key not in (path[0], "ctxextend")} == {
        "model_type": model_type
    }
    assert at(edited, path)["max_position_embeddings"] == 8192
    text = CONFIG_MAPPING[model_type].from_dict(edited).get_text_config(decoder=True)
    assert text.model_type == "llama"
    rotary = LlamaRotaryEmbedding(text)
    after = plan.groups[0].after
    assert after is not None
    assert rotary.inv_freq.tolist() == pytest.approx(after.table.inv_freq, rel=2e-6)
    assert rotary.attention_scaling == pytest.approx(after.table.attention_factor)


@pytest.mark.parametrize(("name", "model_type"), OUTER)
def test_a_row_s_own_wrapper_hands_the_written_rope_on(name: str, model_type: str) -> None:
    family = FAMILIES[name]
    path = text_path(CONFIG_MAPPING[model_type]())
    inside = family_config(family)
    config = {**nested(model_type, path, inside), **FITTING.get(model_type, {})}
    method = "yarn" if family.rope_types is None else "ntk"
    plan = planned(config, Recipe(method=method, target=8192, runtimes=("transformers@5",)))
    assert plan.family == name
    edited = converted(config, plan)
    assert set(edited) - {"ctxextend"} == set(config)
    text = CONFIG_MAPPING[model_type].from_dict(edited).get_text_config(decoder=True)
    if plan.method == "none":
        assert text.rope_parameters["rope_type"] == "default"
        return
    written = at(edited, path)["rope_parameters"]
    # configuration_hunyuan_vl.py renames its older key.
    handed = {"xdrope_section": text.rope_parameters.get("mrope_section"), **text.rope_parameters}
    assert {key: handed[key] for key in written} == written
    assert text.max_position_embeddings == 8192


@pytest.mark.parametrize("name", ["cosmos3_edge", "ernie4_5_vl_moe", "glm4v", "hunyuan_vl", "qwen3_5", "qwen3_vl"])
@pytest.mark.parametrize("method", ["ntk", "yarn"])
def test_sections_of_a_rope_over_time_height_and_width_are_kept(name: str, method: str) -> None:
    family = FAMILIES[name]
    if family.rope_types is not None and method == "yarn":
        return
    config = family_config(family)
    edited = converted(config, planned(config, Recipe(method=method, target=8192, runtimes=("transformers@5",))))
    before = {key: value for key, value in config["rope_scaling"].items() if key.startswith(("mrope", "xdrope"))}
    assert before
    assert {key: edited["rope_parameters"][key] for key in before} == before
    assert {key: edited["rope_scaling"][key] for key in before} == before


def test_the_inner_model_type_counts_and_the_class_s_default_without_one() -> None:
    inside = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
    assert find_family({"model_type": "llava", "text_config": {**inside, "model_type": "qwen2"}}).name == "qwen2"
    assert find_family({"model_type": "llava", "text_config": inside}).name == "llama"
    assert find_family({"model_type": "got_ocr2", "text_config": inside}).name == "qwen2"
    assert find_family({"model_type": "voxtral", "text_config": inside}).name == "voxtral"
    assert (
        find_family({"model_type": "kimi_k25", "text_config": {**inside, "model_type": "kimi_k2"}}).name
        == "deepseek_v3"
    )
    assert find_family({"model_type": "instructblip", "text_config": inside}).name == "opt"


def test_a_wrapper_around_an_unknown_language_model_is_refused() -> None:
    with pytest.raises(RefusedError, match="'rwkv'") as caught:
        find_family({"model_type": "llava", "text_config": {"model_type": "rwkv"}})
    assert caught.value.code == "unknown-family"


def test_a_wrapper_treated_as_a_family_is_read_in_its_place() -> None:
    config = {"model_type": "someones_vlm", "text_config": {**TINY, "max_position_embeddings": 2048}}
    found = inspect(contents(config), family="llama")
    assert found.trained_context == 2048
    assert found.rope is not None
    assert found.rope.path == ("text_config",)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_a_text_config_leaves_out_are_the_class_s(name: str) -> None:
    wrapper = "voxtral" if name == "voxtral" else "llava"
    inner = "llama" if name == "voxtral" else name
    text = {"model_type": inner, "max_position_embeddings": 2048}
    said = CONFIG_MAPPING[wrapper].from_dict({"model_type": wrapper, "text_config": dict(text)}).get_text_config()
    found = inspected({"model_type": wrapper, "text_config": text})
    assert found.family.name == name
    assert {key: getattr(said, key) for key in SIZES[name]} == SIZES[name]
    spec = next(group.spec for group in found.groups if group.spec is not None)
    assert spec.head_dim == (getattr(said, "head_dim", None) or said.hidden_size // said.num_attention_heads)
    assert sum(len(group.layers) for group in found.groups) == said.num_hidden_layers


def test_a_config_as_llava_1_5_publishes_it_is_edited_in_its_place() -> None:
    """https://huggingface.co/llava-hf/llava-1.5-7b-hf/blob/main/config.json"""
    text = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "model_type": "llama"}
    config = {"model_type": "llava", "text_config": text}
    edited = converted(config, planned(config, Recipe(method="yarn", target=8192, runtimes=("transformers@5",))))
    assert edited["text_config"]["rope_parameters"]["factor"] == 2.0
    assert edited["text_config"]["max_position_embeddings"] == 8192
    assert "num_hidden_layers" not in edited["text_config"]


VALUES: list[tuple[str, dict[str, Any], str, str]] = [
    ("exaone4", {"sliding_window": None}, "exaone4_unwindowed", "rope"),
    ("exaone4", {"sliding_window": 4096}, "exaone4", "rope"),
    ("granitemoehybrid", {}, "granitemoehybrid", "none"),
    ("granitemoehybrid", {"position_embedding_type": "nope"}, "granitemoehybrid", "none"),
    ("granitemoehybrid", {"position_embedding_type": "rope"}, "granitemoehybrid", "rope"),
    ("kolibri1", {"sliding_window": None}, "kolibri1_unwindowed", "rope"),
    ("minimax_m2", {"rotary_dim": 64}, "minimax_m2_half", "rope"),
    ("minimax_m2", {}, "minimax_m2", "rope"),
    ("olmo_hybrid", {"rope_parameters": {"rope_theta": None, "rope_type": "default"}}, "olmo_hybrid", "none"),
    ("olmo_hybrid", {}, "olmo_hybrid", "rope"),
    ("zamba2", {}, "zamba2", "none"),
    ("zamba2", {"use_mem_rope": True}, "zamba2", "rope"),
]


@pytest.mark.parametrize(("model_type", "values", "name", "position"), VALUES)
def test_a_value_that_makes_another_model(model_type: str, values: dict[str, Any], name: str, position: str) -> None:
    row = find_family({"model_type": model_type, **values})
    assert (row.name, row.position, row.refusal) == (name, position, None)


#: Values with which a family's class does something that can't be said in a row.
NOT_READ: list[tuple[str, dict[str, Any], str]] = [
    ("cohere2_moe", {"first_k_dense_replace": 1}, "dense layers"),
    ("cohere2_moe", {"mlp_layer_types": ["dense", "sparse"]}, "dense layers"),
    ("minimax_m2", {"rotary_dim": 32}, "rotary_dim"),
    ("molmo2", {"rope_scaling_layers": [1], "num_hidden_layers": 2}, "rope_scaling_layers"),
    ("phimoe", {"rope_scaling": {"type": "longrope", "short_mscale": 1.2, "long_mscale": 1.2}}, "long_mscale"),
]


@pytest.mark.parametrize(("model_type", "values", "said"), NOT_READ)
def test_a_value_that_no_row_can_say_is_refused_by_the_inspection(
    model_type: str, values: dict[str, Any], said: str
) -> None:
    found = inspected({**TINY, "model_type": model_type, **values})
    assert found.rope is None
    assert said in found.notes[-1].message


def test_a_list_of_all_layers_is_no_exception() -> None:
    row = find_family({"model_type": "molmo2_text", "rope_scaling_layers": [0, 1], "num_hidden_layers": 2})
    assert row.refusal is None
