"""Which places of which tensors a temperature is put into, worked out by hand for each layout; and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from ctxextend.baking import Fold, fold_temperature, why_not
from ctxextend.changes import ScaleTensor
from ctxextend.errors import RefusedError
from ctxextend.families import FAMILIES
from tests.factories import TINY, TypeAndShape, config, contents

#: 1.5 on cosines and sines: 2.25 on scores, exactly.
FACTOR = 1.5
SQUARE = 2.25
HEAD = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A change, with its places written out. None stands for all of them."""

    factor: float = SQUARE
    places: tuple[int, ...] | None = None
    added_one: bool = False


def fold(*layers: int, **changes: Any) -> Fold:
    plain = {"attention_factor": FACTOR, "rotary_dim": HEAD, "head_dim": HEAD, "layout": "leading"}
    return Fold(layers=layers or (0,), **{**plain, **changes})


def folded(
    family: str, tensors: Mapping[str, TypeAndShape | tuple[int, ...]], *folds: Fold, **config: Any
) -> dict[str, Change]:
    """What is changed. Tensors are F32 unless a type stands with their shape."""
    typed: dict[str, TypeAndShape] = {}
    for name, said in tensors.items():
        typed[name] = said if isinstance(said[0], str) else ("F32", said)
    folds = folds or (fold(),)
    layers = 1 + max(layer for each in folds for layer in each.layers)
    stated = {**TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": layers, **config}
    changes = fold_temperature(contents(stated, tensors=typed), stated, FAMILIES[family], folds)
    assert all(change.file == "model.safetensors" and change.axis == 0 for change in changes)
    assert [change.name for change in changes] == sorted({change.name for change in changes})
    return {
        change.name: Change(factor=change.factor, places=places(change), added_one=change.added_one)
        for change in changes
    }


def places(change: ScaleTensor) -> tuple[int, ...] | None:
    """Slices as the text of :class:`Slice` says: of each period places from lower to upper, those from start."""
    if not change.slices:
        return None
    found: list[int] = []
    for part in change.slices:
        for first in range(part.lower, part.upper, part.period):
            found += range(first + part.start, min(first + part.stop, part.upper))
    return tuple(sorted(found))


def refused(family: str, tensors: Mapping[str, Any], *folds: Fold, **config: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        folded(family, tensors, *folds, **config)
    assert caught.value.code == "not-bakeable"
    assert caught.value.hint
    assert caught.value.file
    assert caught.value.key
    return caught.value


def runs(*bounds: tuple[int, int]) -> tuple[int, ...]:
    """Places from each first to each last."""
    return tuple(place for first, last in bounds for place in range(first, last + 1))


def test_a_projection_of_queries_with_its_bias() -> None:
    tensors = {
        f"model.layers.0.self_attn.{name}": shape
        for name, shape in {
            "q_proj.weight": (32, 64),
            "q_proj.bias": (32,),
            "k_proj.weight": (16, 64),
            "k_proj.bias": (16,),
        }.items()
    }
    assert folded("qwen2", tensors) == {
        "model.layers.0.self_attn.q_proj.bias": Change(),
        "model.layers.0.self_attn.q_proj.weight": Change(),
    }


def test_the_first_dimensions_of_every_head() -> None:
    tensors = {"model.layers.0.self_attn.q_proj.weight": (32, 64), "model.layers.0.self_attn.q_proj.bias": (32,)}
    expected = Change(places=runs((0, 3), (8, 11), (16, 19), (24, 27)))
    assert folded("glm4", tensors, fold(rotary_dim=4)) == dict.fromkeys(sorted(tensors), expected)


def test_a_norm_takes_the_place_of_the_projection() -> None:
    tensors = {"model.layers.0.self_attn.q_proj.weight": (32, 64), "model.layers.0.self_attn.q_norm.weight": (HEAD,)}
    assert folded("qwen3", tensors) == {"model.layers.0.self_attn.q_norm.weight": Change()}


def test_a_norm_that_is_stored_without_its_1() -> None:
    tensors = {"model.layers.5.self_attn.q_norm.weight": (HEAD,)}
    assert folded("gemma3", tensors, fold(5)) == {"model.layers.5.self_attn.q_norm.weight": Change(added_one=True)}


def test_a_part_of_a_norm_over_one_head_and_over_all_of_them() -> None:
    one = {"model.layers.3.self_attn.q_norm.weight": (HEAD,)}
    assert folded("qwen3_next", one, fold(3, rotary_dim=2)) == {
        "model.layers.3.self_attn.q_norm.weight": Change(places=(0, 1), added_one=True)
    }
    every = {"model.layers.0.self_attn.q_norm.weight": (32,)}
    assert folded("minimax_m2", every, fold(rotary_dim=2)) == {
        "model.layers.0.self_attn.q_norm.weight": Change(places=(0, 1, 8, 9, 16, 17, 24, 25))
    }


def test_a_norm_of_each_head_by_itself() -> None:
    name = "model.layers.0.self_attn.q_layernorm.norms.{}.weight"
    tensors = {name.format(head): (HEAD,) for head in range(4)} | {"model.layers.0.self_attn.q_proj.weight": (32, 64)}
    expected = {name.format(head): Change(places=(0, 1)) for head in range(4)}
    assert folded("stablelm", tensors, fold(rotary_dim=2), qk_layernorm=True) == expected
    assert list(folded("stablelm", tensors, fold(rotary_dim=2))) == ["model.layers.0.self_attn.q_proj.weight"]


def test_pairs_of_a_proportional_rope_that_stand_still() -> None:
    """Their cosine is the factor, so all of the head is multiplied."""
    tensors = {"model.layers.5.self_attn.q_norm.weight": (HEAD,)}
    found = folded("gemma4", tensors, fold(5, rotary_dim=2, layout="proportional"))
    assert found == {"model.layers.5.self_attn.q_norm.weight": Change()}


def test_queries_ahead_of_keys_and_values() -> None:
    """Four heads of 8, and two of keys and of values: 64 rows."""
    tensors = {"model.layers.0.self_attn.qkv_proj.weight": (64, 64)}
    found = folded("phi3", tensors, fold(rotary_dim=4))
    assert found == {
        "model.layers.0.self_attn.qkv_proj.weight": Change(places=runs((0, 3), (8, 11), (16, 19), (24, 27)))
    }
    whole = folded("phi3", tensors)
    assert whole == {"model.layers.0.self_attn.qkv_proj.weight": Change(places=runs((0, 31)))}


def test_queries_behind_gates_of_their_size() -> None:
    name = "model.H_module.layers.0.attn.gqkv_proj.weight"
    low = "model.L_module.layers.0.attn.gqkv_proj.weight"
    assert folded("hrm_text", {name: (128, 64), low: (128, 64)}) == {
        name: Change(places=runs((32, 63))),
        low: Change(places=runs((32, 63))),
    }


def test_a_part_of_the_query_of_each_heads_query_key_and_value() -> None:
    """24 rows a head: its query's 8 first, of which 2 are rotated."""
    tensors = {
        "gpt_neox.layers.0.attention.query_key_value.weight": (96, 64),
        "gpt_neox.layers.0.attention.query_key_value.bias": (96,),
        "gpt_neox.layers.0.attention.dense.weight": (64, 32),
    }
    expected = Change(places=(0, 1, 24, 25, 48, 49, 72, 73))
    assert folded("gpt_neox", tensors, fold(rotary_dim=2)) == {
        "gpt_neox.layers.0.attention.query_key_value.bias": expected,
        "gpt_neox.layers.0.attention.query_key_value.weight": expected,
    }


@pytest.mark.parametrize(
    ("config", "rows", "expected"),
    [
        # Two groups of two queries, a key and a value: 32 rows each.
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 64, runs((0, 15), (32, 47))),
        ({"new_decoder_architecture": False, "multi_query": True}, 48, runs((0, 31))),
        (
            {"new_decoder_architecture": False, "multi_query": False},
            96,
            runs((0, 7), (24, 31), (48, 55), (72, 79)),
        ),
    ],
)
def test_the_three_layouts_of_falcon(config: dict[str, Any], rows: int, expected: tuple[int, ...]) -> None:
    name = "transformer.h.0.self_attention.query_key_value.weight"
    assert folded("falcon", {name: (rows, 64)}, **config) == {name: Change(places=expected)}


LATENT = {
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (16 + 4, 64),
    "model.layers.0.self_attn.kv_a_proj_with_mqa.bias": (16 + 4,),
    "model.layers.0.self_attn.kv_a_layernorm.weight": (16,),
    "model.layers.0.self_attn.q_a_proj.weight": (16, 64),
    "model.layers.0.self_attn.q_b_proj.weight": (4 * 10, 16),
}
SIZES = {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5}


def latent(**changes: Any) -> Fold:
    return fold(rotary_dim=4, head_dim=4, **changes)


def test_the_rotated_key_of_latent_attention_and_all_queries() -> None:
    """The key is rotated in the last 4 of 20 rows; all scores are multiplied by 1.25 through the queries."""
    key = Change(places=runs((16, 19)))
    assert folded("deepseek_v3", LATENT, latent(softmax_factor=1.25), **SIZES) == {
        "model.layers.0.self_attn.kv_a_proj_with_mqa.bias": key,
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": key,
        "model.layers.0.self_attn.q_b_proj.weight": Change(factor=1.25),
    }
    only = folded("deepseek_v3", LATENT, latent(attention_factor=1.0, softmax_factor=1.25), **SIZES)
    assert only == {"model.layers.0.self_attn.q_b_proj.weight": Change(factor=1.25)}


def test_queries_of_latent_attention_with_gates_between_them() -> None:
    """15 rows a head: 10 of its query, then 5 of its gate."""
    tensors = LATENT | {"model.layers.0.self_attn.q_b_proj.weight": (4 * 15, 32)}
    found = folded("axk2", tensors, latent(attention_factor=1.0, softmax_factor=1.25), **SIZES)
    assert found == {
        "model.layers.0.self_attn.q_b_proj.weight": Change(
            factor=1.25, places=runs((0, 9), (15, 24), (30, 39), (45, 54))
        )
    }


@pytest.mark.parametrize(
    ("family", "expected"), [("deepseek_v32", runs((0, 3), (12, 15))), ("hy_v4", runs((8, 11), (20, 23)))]
)
def test_an_index_is_multiplied_as_the_scores_that_it_stands_for(family: str, expected: tuple[int, ...]) -> None:
    """Two heads of 12 dimensions, of which the first 4 or the last 4 are rotated."""
    name = "model.layers.0.self_attn.indexer.wq_b.weight"
    found = folded(family, LATENT | {name: (24, 16)}, latent(), **SIZES, index_head_dim=12)
    assert found[name] == Change(places=expected)


def test_each_of_two_attentions_a_layer() -> None:
    name = "model.layers.0.self_attn.{}.kv_a_proj_with_mqa.weight"
    tensors = {name.format(index): (20, 64) for index in range(2)}
    tensors |= {f"model.layers.0.self_attn.{index}.q_b_proj.weight": (40, 16) for index in range(2)}
    found = folded("longcat_flash", tensors, fold(0, 1, rotary_dim=4, head_dim=4), **SIZES)
    assert found == {name.format(index): Change(places=runs((16, 19))) for index in range(2)}


def query(prefix: str, layer: int = 0) -> str:
    return f"{prefix}layers.{layer}.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "language_model.model.",
        "model.language_model.",
        "thinker.model.",
        "text_model.model.",
        "backbone_model.",
        "vlm.model.language_model.",
    ],
)
def test_a_language_model_wherever_its_wrapper_has_it(prefix: str) -> None:
    tensors = {
        query(prefix): (32, 64),
        query("vision_tower.vision_model.encoder."): (32, 64),
        query("model.visual."): (32, 64),
        query("audio_tower."): (32, 64),
        query("talker.model."): (32, 64),
        query("depth_decoder.model."): (32, 64),
        "model.visual.blocks.0.self_attn.q_proj.weight": (32, 64),
    }
    assert folded("llama", tensors) == {query(prefix): Change()}


def test_layers_have_the_temperature_of_their_rope() -> None:
    names = [f"model.layers.{layer}.self_attn.q_norm.weight" for layer in range(3)]
    tensors = dict.fromkeys(names, (HEAD,))
    found = folded("gemma3", tensors, fold(2), fold(0, attention_factor=2.0))
    assert found == {names[0]: Change(factor=4.0, added_one=True), names[2]: Change(added_one=True)}


def test_nothing_is_changed_by_a_factor_of_1() -> None:
    tensors = {query("model."): (32, 64)}
    assert folded("llama", tensors, fold(attention_factor=1.0)) == {}


@pytest.mark.parametrize("draft", ["model.layers.1", "mtp.layers.0", "model.mtp.layers.0", "model.mtp_block.0"])
def test_layers_that_predict_further_tokens_share_the_rope(draft: str) -> None:
    tensors = {query("model."): (32, 64), f"{draft}.self_attn.q_proj.weight": (32, 64)}
    assert folded("ernie4_5_moe", tensors) == {name: Change() for name in sorted(tensors)}


def test_layers_that_predict_further_tokens_under_one_of_several_ropes() -> None:
    tensors = {
        "model.layers.0.self_attn.q_norm.weight": (HEAD,),
        "model.layers.0.self_attn.q_proj.weight": (32, 64),
        "mtp.layers.0.self_attn.q_norm.weight": (HEAD,),
    }
    error = refused("mellum", tensors)
    assert "which rope" in error.message
    assert error.key == "mtp.layers.0.self_attn.q_norm"


def test_a_layer_that_is_missing() -> None:
    error = refused("llama", {query("model."): (32, 64)}, fold(0, 1), num_hidden_layers=2)
    assert error.key == "layers.1.self_attn.q_proj.weight"


def test_tensors_of_other_names() -> None:
    error = refused("llama", {"model.layers.0.attention.wq.weight": (32, 64)})
    assert error.key == "layers.N.self_attn.q_proj.weight"
    adapter = {f"base_model.model.{query('model.')[:-7]}.lora_A.weight": (8, 64)}
    assert refused("llama", adapter).key == "layers.N.self_attn.q_proj.weight"


def test_two_language_models() -> None:
    error = refused("llama", {query("model."): (32, 64), query("language_model.model."): (32, 64)})
    assert error.found == "language_model.model., model."


@pytest.mark.parametrize(
    ("family", "tensor", "rows"),
    [
        ("glm4", "model.layers.0.self_attn.q_proj.weight", 33),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", 32),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", 64),
    ],
)
def test_a_tensor_of_another_shape_than_the_config_gives_it(family: str, tensor: str, rows: int) -> None:
    assert refused(family, {tensor: (rows, 64)}, fold(rotary_dim=4)).found is not None


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("hunyuan_v1_dense", {}, "behind the rotation"),
        ("nanochat", {}, "behind the rotation"),
        ("llama4", {}, "behind the rotation"),
        ("muse_spark", {}, "without weights"),
        ("neomme", {}, "without weights"),
        ("olmo", {"clip_qkv": 8.0}, "clamped"),
        ("olmoe", {"clip_qkv": 8.0}, "clamped"),
    ],
)
def test_what_would_not_be_exact(family: str, config: dict[str, Any], reason: str) -> None:
    tensors = {query("model."): (32, 64), "model.layers.0.self_attn.q_norm.weight": (HEAD,)}
    assert reason in refused(family, tensors, **config).message


def test_llama_4_without_its_norm() -> None:
    assert folded("llama4", {query("language_model.model."): (32, 64)}, use_qk_norm=False)


def test_a_softmax_factor_where_no_row_has_a_place_for_it() -> None:
    assert "softmax" in refused("llama", {query("model."): (32, 64)}, fold(softmax_factor=1.2)).message


def test_layers_that_share_their_rotated_key() -> None:
    """Only the first of three layers keeps one; the index of the second is multiplied as well."""
    tensors = {
        "layers.0.attention.wkv_a_with_mqa.weight": (20, 64),
        "layers.0.attention.wq.weight": (40, 64),
        "layers.1.attention.wq.weight": (40, 64),
        "layers.1.attention.indexer.wq_b.weight": (24, 64),
        "layers.2.attention.wq.weight": (40, 64),
    }
    one = fold(0, 1, 2, rotary_dim=4, head_dim=4)
    assert folded("mistral_large4", tensors, one, **SIZES, index_head_dim=12) == {
        "layers.0.attention.wkv_a_with_mqa.weight": Change(places=runs((16, 19))),
        "layers.1.attention.indexer.wq_b.weight": Change(places=runs((0, 3), (12, 15))),
    }
    both = fold(0, 1, 2, rotary_dim=4, head_dim=4, softmax_factor=1.25)
    assert "softmax" in refused("mistral_large4", tensors, both, **SIZES, index_head_dim=12).message


def test_layers_that_share_their_queries_under_two_temperatures() -> None:
    tensors = {"model.layers.1.shared_transformer.self_attn.q_proj.weight": (32, 64)}
    error = refused("zamba2", tensors, fold(1), fold(0, attention_factor=2.0))
    assert "share their weights" in error.message
    assert folded("zamba2", tensors, fold(1, 0))


def test_a_part_of_a_head_where_no_family_has_one() -> None:
    tensors = {"model.layers.0.shared_transformer.self_attn.q_proj.weight": (32, 64)}
    assert refused("zamba2", tensors, fold(rotary_dim=4)).found == "4 of 8 dimensions a head rotated"


def test_weights_that_are_not_in_safetensors() -> None:
    stated = dict(TINY)
    pickled = msgspec.structs.replace(contents(stated), storage="pytorch")
    with pytest.raises(RefusedError) as caught:
        fold_temperature(pickled, stated, FAMILIES["llama"], (fold(),))
    assert (caught.value.code, caught.value.found) == ("not-bakeable", "pytorch")
    assert "save_pretrained" in str(caught.value.hint)


def test_a_key_of_the_config_that_is_missing() -> None:
    config = {**SIZES, "kv_lora_rank": None}
    assert refused("deepseek_v3", LATENT, latent(), **config).key == "kv_lora_rank"


def test_quantised_rows_are_passed_on_to_their_scales() -> None:
    """GPTQ: 8 columns of integers a row; each scale of an output that is rotated."""
    module = "model.layers.0.self_attn.q_proj"
    tensors: dict[str, TypeAndShape | tuple[int, ...]] = {
        f"{module}.qweight": ("I32", (8, 32)),
        f"{module}.qzeros": ("I32", (1, 4)),
        f"{module}.scales": ("F16", (1, 32)),
        f"{module}.g_idx": ("I32", (64,)),
        f"{module}.bias": ("F16", (32,)),
    }
    quantisation = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
    stated = config(num_attention_heads=4, quantization_config=quantisation)
    typed: dict[str, Any] = dict(tensors)
    changes = fold_temperature(contents(stated, tensors=typed), stated, FAMILIES["glm4"], (fold(rotary_dim=4),))
    rotated = runs((0, 3), (8, 11), (16, 19), (24, 27))
    assert {change.name: (change.axis, places(change)) for change in changes} == {
        f"{module}.bias": (0, rotated),
        f"{module}.scales": (1, rotated),
    }


def test_every_family_with_a_rope_has_a_row_or_a_reason() -> None:
    known = [row for row in FAMILIES.values() if row.position == "rope"]
    unknown = [row.name for row in known if (why_not(row) or "").startswith("nothing is known")]
    assert not unknown
    assert why_not(FAMILIES["llama"]) is None
    assert why_not(FAMILIES["gpt2"]) == "it has no rope"
    assert "behind the rotation" in str(why_not(FAMILIES["nanochat"]))
    assert why_not(FAMILIES["codegen"]) == FAMILIES["codegen"].refusal
