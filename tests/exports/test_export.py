"""What an export refuses, repairs and tells, on the models of ``golden/``."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
import numpy as np
import pytest

from ctxextend.errors import CheckpointError, CtxextendError, RefusedError
from ctxextend.exports.export import export_of, groups_of_file
from ctxextend.families import find_family
from ctxextend.formats.gguf_architectures import ARCHITECTURES
from ctxextend.formats.gguf_keys import Keys, geometry
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.formats.hf_read import read_rope
from ctxextend.scaling import Linear
from tests.exports.apply_layouts import applied
from tests.exports.test_golden import counted, exported, golden

Shapes = dict[str, list[int]]


def model(name: str, **changes: Any) -> tuple[dict[str, Any], Shapes]:
    """A model of ``golden/``, some of its config's keys changed."""
    found = golden(name)
    return {**found["config"], **changes}, dict(found["shapes"])


def names_of(name: str, config: Mapping[str, Any], shapes: Shapes) -> set[str]:
    """Names of the file's tensors that the converter's hasn't got, and the other way round."""
    return {layout.name for layout in exported(config, shapes).layouts} ^ set(golden(name)["tensors"])


def hashes(weights: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, list[Any]]:
    layouts = exported(config, {name: array.shape for name, array in weights.items()}).layouts
    made = {layout.name: applied(layout, weights) for layout in layouts}
    return {name: [list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()[:16]] for name, a in made.items()}


def test_a_family_without_an_export_is_refused() -> None:
    config, _shapes = model("llama")
    family = find_family(config)
    with pytest.raises(RefusedError) as caught:
        export_of("falcon", config, {}, rope=read_rope(config, family))
    assert caught.value.code == "unknown-export"
    assert "llama" in (caught.value.expected or "")


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_an_error(name: str) -> None:
    config, shapes = model("llama")
    del shapes[name]
    with pytest.raises(CheckpointError) as caught:
        exported(config, shapes)
    assert (caught.value.code, caught.value.key) == ("missing-tensor", name)


def test_latent_attention_has_as_many_heads_of_keys() -> None:
    with pytest.raises(CheckpointError) as caught:
        exported(*model("deepseek_v2", num_key_value_heads=2))
    assert caught.value.key == "num_key_value_heads"


@pytest.mark.parametrize(
    ("name", "key"), [("qwen3_moe", "num_local_experts"), ("stablelm_parallel", "num_key_value_heads")]
)
def test_more_than_any_model_has_is_an_error(name: str, key: str) -> None:
    """Before a name is made for each of them."""
    with pytest.raises(CheckpointError) as caught:
        exported(*model(name, **{key: 70_000}))
    assert caught.value.expected == "at most 65536"


def test_one_missing_expert_is_an_error() -> None:
    config, shapes = model("mixtral")
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    del shapes[name]
    with pytest.raises(CheckpointError) as caught:
        exported(config, shapes)
    assert caught.value.key == name


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_key_value_heads": 4}, "model.layers.0.self_attn.k_proj.weight"),
        ({"vocab_size": 95}, "model.embed_tokens.weight"),
        ({"head_dim": 32}, "model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_a_tensor_of_another_size_is_an_error(change: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        exported(*model("llama", **change))
    assert (caught.value.code, caught.value.key) == ("broken-tensor", key)
    assert caught.value.expected is not None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "--converter"),
        ("model.layers.2.self_attn.q_proj.weight", "--converter"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "quantised from"),
        ("score.weight", "--converter"),
    ],
)
def test_a_tensor_without_a_place_is_refused(name: str, hint: str) -> None:
    config, shapes = model("llama")
    with pytest.raises(RefusedError) as caught:
        exported(config, {**shapes, name: [64]})
    assert (caught.value.code, caught.value.key) == ("unmapped-tensor", name)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("model_name", "tensor"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ("gemma", "lm_head.weight"),
    ],
)
def test_what_holds_no_weights_is_dropped(model_name: str, tensor: str) -> None:
    config, shapes = model(model_name)
    shapes[tensor] = [1]
    assert not names_of(model_name, config, shapes)
    assert not exported(config, shapes).notes


def test_tied_embeddings_are_written_once() -> None:
    config, shapes = model("llama", tie_word_embeddings=True)
    del shapes["lm_head.weight"]
    assert names_of("llama", config, shapes) == {"output.weight"}


def test_tied_embeddings_of_which_a_copy_is_kept() -> None:
    """transformers 5.23 doesn't tie what the checkpoint has two of; neither does the converter."""
    config, shapes = model("llama", tie_word_embeddings=True)
    assert not names_of("llama", config, shapes)


def test_tied_embeddings_are_copied_for_a_loader_that_wants_them_twice() -> None:
    """``src/models/olmo2.cpp`` requires output.weight."""
    config, shapes = model("olmo2", tie_word_embeddings=True)
    del shapes["lm_head.weight"]
    sources = {layout.name: layout.sources for layout in exported(config, shapes).layouts}
    assert sources["output.weight"] == sources["token_embd.weight"] == ("model.embed_tokens.weight",)


@pytest.mark.parametrize("body", ["model.language_model.", "language_model.model."])
def test_the_language_model_of_a_wrapper(body: str) -> None:
    """Both spellings of Gemma 3: transformers 4.52 changed it, and 5 saves the older one again."""
    config, shapes = model("gemma3")
    renamed = {name.replace("language_model.model.", body): shape for name, shape in shapes.items()}
    export = exported(config, renamed)
    assert {layout.name for layout in export.layouts} == set(golden("gemma3")["tensors"])
    assert all(source in renamed for layout in export.layouts for source in layout.sources)
    assert [note.code for note in export.notes] == ["left-out"]


def test_one_tensor_under_two_names_is_an_error() -> None:
    config, shapes = model("gemma3")
    shapes["model.language_model.norm.weight"] = shapes["language_model.model.norm.weight"]
    with pytest.raises(CheckpointError, match="stand for one"):
        exported(config, shapes)


def test_layers_that_predict_further_tokens_are_left_out_and_told() -> None:
    config, shapes = model("deepseek_v3")
    further = {"model.layers.2.eh_proj.weight": [64, 128], "model.layers.2.input_layernorm.weight": [64]}
    export = exported(config, {**shapes, **further})
    assert {layout.name for layout in export.layouts} == set(golden("deepseek_v3")["tensors"])
    assert [note.message for note in export.notes] == [
        "2 tensors of layers that predict further tokens aren't in the file"
    ]
    with pytest.raises(RefusedError):
        exported(config, {**shapes, "model.layers.3.input_layernorm.weight": [64]})


@pytest.mark.parametrize(
    ("name", "room"),
    [("qwen3_moe", "mlp"), ("qwen2_moe", "mlp"), ("deepseek_v3", "mlp"), ("mixtral", "block_sparse_moe")],
)
def test_experts_in_one_tensor_are_the_same_file(name: str, room: str) -> None:
    """As transformers 5 holds them: gate and up one after the other, all experts in one tensor."""
    config, shapes = model(name)
    weights = counted(shapes)
    gate, up, down = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for layer in range(2):
        base = f"model.layers.{layer}.{room}.experts"
        if f"{base}.0.{gate}.weight" not in weights:
            continue
        count = sum(key.startswith(f"{base}.") and key.endswith(f".{gate}.weight") for key in weights)
        parts = [[weights.pop(f"{base}.{i}.{part}.weight") for part in (gate, up, down)] for i in range(count)]
        weights[f"{base}.gate_up_proj"] = np.stack([np.concatenate(part[:2]) for part in parts])
        weights[f"{base}.down_proj"] = np.stack([part[2] for part in parts])
    assert hashes(weights, config) == golden(name)["tensors"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("qwen2", {"head_dim": 32}),
        ("qwen2_moe", {"norm_topk_prob": True}),
        ("qwen2_moe", {"decoder_sparse_step": 2}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("qwen3_moe", {"mlp_only_layers": [0]}),
        ("gemma", {"tie_word_embeddings": False}),
        ("gemma2", {"query_pre_attn_scalar": 16}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}),
        ("smollm3", {"mlp_bias": True}),
        ("starcoder2", {"use_bias": False}),
        ("gpt_neox", {"attention_bias": False}),
        ("deepseek_v2", {"norm_topk_prob": True}),
        ("deepseek_v2", {"n_group": 2}),
        # The loader knows the lite variant, which has no rank of queries, by its 27 layers.
        ("deepseek_v2", {"num_hidden_layers": 27}),
        ("deepseek_v3", {"num_hidden_layers": 27}),
        ("deepseek_v3", {"rope_interleave": False}),
        ("deepseek_v3", {"scoring_func": "softmax"}),
    ],
)
def test_what_the_architecture_cannot_compute_is_refused(name: str, change: dict[str, Any]) -> None:
    """Each of these llama.cpp has built in, and would ignore in silence (or fail to load)."""
    config, shapes = model(name, **change)
    with pytest.raises(RefusedError) as caught:
        exported(config, shapes)
    assert caught.value.code == "unexpressible"


def test_another_order_of_windows_is_written_where_the_architecture_takes_one() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    config, shapes = model("gemma2", layer_types=kinds)
    export = exported(config, shapes)
    assert export.values["gemma2.attention.sliding_window_pattern"].value == (False, True, True)


def groups(config: dict[str, Any], shapes: Shapes) -> dict[str, str]:
    """The label in config.json of each in the file."""
    export = exported(config, shapes)
    file = geometry(Keys(export.values, export.architecture), ARCHITECTURES[export.architecture])
    found = groups_of_file(file, read_rope(config, find_family(config)))
    return {label: group.label for label, group in found.items()}


def test_groups_of_the_file() -> None:
    assert groups(*model("gemma2")) == {SLIDING: SLIDING, FULL: FULL}
    assert groups(*model("mistral")) == {FULL: SLIDING}
    assert groups(*model("smollm3")) == {FULL: FULL}
    # Two groups of the config that llama.cpp has as one.
    windowed = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 32}
    kinds = ["full_attention", "sliding_attention"]
    assert groups(*model("qwen2", **windowed, layer_types=kinds)) == {FULL: FULL}


def test_layers_of_one_group_that_are_scaled_differently_are_refused() -> None:
    config, shapes = model("qwen2", use_sliding_window=True, sliding_window=32, layer_types=[FULL, SLIDING])
    rope = read_rope(config, find_family(config))
    first, second = rope.groups
    apart = msgspec.structs.replace(rope, groups=(first, msgspec.structs.replace(second, scaling=Linear(factor=2.0))))
    export = exported(config, shapes)
    file = geometry(Keys(export.values, export.architecture), ARCHITECTURES[export.architecture])
    with pytest.raises(RefusedError, match="scaled differently"):
        groups_of_file(file, apart)


#: Values that no key should have.
ODD: Final[tuple[Any, ...]] = (None, -1, 0, 1e300, 2**70, 1.5, "four", True, [], {}, float("nan"))


def odd_configs() -> Iterator[tuple[dict[str, Any], Shapes]]:
    for name in ("llama", "gemma3", "stablelm_parallel", "deepseek_v3", "qwen2_moe"):
        config, shapes = model(name)
        for key in config:
            for odd in ODD:
                yield {**config, key: odd}, shapes
        for key in config.get("text_config", ()):
            changed = copy.deepcopy(config)
            changed["text_config"][key] = 2**70
            yield changed, shapes


def test_odd_values_are_errors_of_ours() -> None:
    """Whatever stands in a config: an export or one of our own errors, without a great allocation."""
    worked = 0
    for config, shapes in odd_configs():
        with suppress(CtxextendError):
            exported(config, shapes)
            worked += 1
    assert worked
