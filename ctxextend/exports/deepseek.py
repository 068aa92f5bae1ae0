"""Latent attention: DeepSeek V2 and V3."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ctxextend.exports.layout import HeadRows, Operation, Reshape, TransposeHeads
from ctxextend.exports.row import EXPERTS, Fixed, Key, Row, Settings, Sizes
from ctxextend.exports.shared import (
    EMBEDDING,
    EXPERT_KEYS,
    FEED_FORWARD,
    HEAD,
    LAST_NORM,
    NO_BIAS,
    NORMS,
    RMS,
    SILU,
    SIZES,
    experts,
    frozen,
    layer,
    shared_expert,
)


def _key_rows(sizes: Sizes) -> Operation:
    return HeadRows(heads=sizes.heads, start=0, stop=sizes.unrotated)


def _value_rows(sizes: Sizes) -> Operation:
    return HeadRows(heads=sizes.heads, start=sizes.unrotated, stop=sizes.unrotated + sizes.value_dim)


def _turned(sizes: Sizes) -> Operation:
    return TransposeHeads(heads=sizes.heads)


def _each_head(sizes: Sizes) -> Operation:
    return Reshape(shape=(sizes.heads, sizes.value_dim, sizes.kv_rank))


_LATENT_KEYS: Final = (
    *SIZES[:-1],
    Key(name="attention.head_count", config=("num_attention_heads",), twins=("num_key_value_heads",)),
    # Latent attention is run as one head of keys that all queries share.
    Key(name="attention.head_count_kv", config=(), unset=1),
    Key(name="attention.kv_lora_rank", config=("kv_lora_rank",)),
    # The loader wants it of models without one too, but for some counts of layers.
    Key(name="attention.q_lora_rank", config=("q_lora_rank",), unset=0),
    Key(name="rope.dimension_count", config=("qk_rope_head_dim",)),
    Key(name="attention.key_length", config=("kv_lora_rank",), added=("qk_rope_head_dim",)),
    Key(name="attention.value_length", config=("kv_lora_rank",)),
    Key(name="attention.key_length_mla", config=("qk_nope_head_dim",), added=("qk_rope_head_dim",)),
    Key(name="attention.value_length_mla", config=("v_head_dim",)),
    RMS,
    Key(name="leading_dense_block_count", config=("first_k_dense_replace",), unset=0),
    Key(name="expert_count", config=EXPERTS),
    *EXPERT_KEYS[1:],
    Key(name="expert_shared_count", config=("n_shared_experts",)),
    Key(name="expert_group_count", config=("n_group",), optional=True),
    Key(name="expert_group_used_count", config=("topk_group",), optional=True),
    Key(name="expert_weights_scale", config=("routed_scaling_factor",), type="FLOAT32"),
    Key(name="expert_weights_norm", config=("norm_topk_prob",), type="BOOL"),
    Key(name="expert_gating_func", config=("scoring_func",), codes=frozen(softmax=1, sigmoid=2)),
)

_DENSE_FEED_FORWARD: Final = tuple(replace(rule, layers="dense") for rule in FEED_FORWARD)

_LATENT_TENSORS: Final = (
    EMBEDDING,
    *NORMS,
    layer("self_attn.q_proj.weight", "attn_q.weight", "latent_q", "hidden", when=("q_lora_rank", False)),
    layer("self_attn.q_a_proj.weight", "attn_q_a.weight", "q_rank", "hidden", when=("q_lora_rank", True)),
    layer("self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight", "q_rank", when=("q_lora_rank", True)),
    layer("self_attn.q_b_proj.weight", "attn_q_b.weight", "latent_q", "q_rank", when=("q_lora_rank", True)),
    layer("self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight", "latent_cache", "hidden"),
    layer("self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight", "kv_rank"),
    layer("self_attn.kv_b_proj.weight", "attn_k_b.weight", "latent_kv", "kv_rank", do=(_key_rows, _turned)),
    layer("self_attn.kv_b_proj.weight", "attn_v_b.weight", "latent_kv", "kv_rank", do=(_value_rows, _each_head)),
    layer("self_attn.o_proj.weight", "attn_output.weight", "hidden", "latent_values"),
    *_DENSE_FEED_FORWARD,
    *experts(),
    *shared_expert("shared_experts"),
    LAST_NORM,
    HEAD,
)


def _lite_rank(settings: Settings) -> str | None:
    """Layer counts by which the loader knows the variants without a rank of queries (``is_lite``)."""
    layers, vocab = settings.whole("num_hidden_layers"), settings.whole("vocab_size")
    lite = layers in (26, 27) or (layers == 48 and vocab == 128256)
    return f"with {layers} layers the loader doesn't read q_lora_rank" if lite and settings.on("q_lora_rank") else None


def _greedy_groups(settings: Settings) -> str | None:
    if settings.whole("n_group") > 1 and settings.get("topk_method") == "greedy":
        return "the architecture chooses among groups wherever n_group is more than 1"
    return None


def _group_scores(settings: Settings) -> str | None:
    if settings.whole("n_group") > 1:
        return "llama.cpp scores a group of experts by its best two, this model by its best one"
    return None


DEEPSEEK_V2: Final = Row(
    family="deepseek_v2",
    architecture="deepseek2",
    model_type="deepseek_v2",
    model_class="DeepseekV2ForCausalLM",
    keys=_LATENT_KEYS,
    tensors=_LATENT_TENSORS,
    defaults=frozen(
        rms_norm_eps=1e-6,
        first_k_dense_replace=0,
        kv_lora_rank=512,
        q_lora_rank=1536,
        num_local_experts=64,
        n_shared_experts=2,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        routed_scaling_factor=1.0,
        moe_intermediate_size=1407,
        norm_topk_prob=False,
        topk_method="greedy",
        scoring_func="softmax",
        tie_word_embeddings=False,
    ),
    fixed=(
        SILU,
        NO_BIAS,
        Fixed(key="scoring_func", values=("softmax",), default="softmax"),
        Fixed(key="norm_topk_prob", values=(False,), default=False),
        Fixed(key="moe_layer_freq", values=(1,), default=1),
    ),
    refusals=(_lite_rank, _greedy_groups),
    remarks=(_group_scores,),
)

DEEPSEEK_V3: Final = Row(
    family="deepseek_v3",
    architecture="deepseek2",
    model_type="deepseek_v3",
    model_class="DeepseekV3ForCausalLM",
    keys=_LATENT_KEYS,
    tensors=(
        *_LATENT_TENSORS,
        layer("mlp.gate.e_score_correction_bias", "exp_probs_b.bias", "experts", layers="sparse"),
    ),
    defaults=frozen(
        rms_norm_eps=1e-6,
        first_k_dense_replace=3,
        kv_lora_rank=512,
        q_lora_rank=1536,
        num_local_experts=256,
        num_experts_per_tok=8,
        n_shared_experts=1,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        moe_intermediate_size=2048,
        norm_topk_prob=True,
        scoring_func="sigmoid",
        tie_word_embeddings=False,
        num_nextn_predict_layers=1,
    ),
    fixed=(
        SILU,
        NO_BIAS,
        Fixed(key="rope_interleave", values=(True, None), default=True),
        Fixed(key="scoring_func", values=("sigmoid",), default="sigmoid"),
        Fixed(key="moe_layer_freq", values=(1,), default=1),
    ),
    refusals=(_lite_rank,),
    further_layers="num_nextn_predict_layers",
)
