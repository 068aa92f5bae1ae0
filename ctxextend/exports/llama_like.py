"""Families built like Llama: its norms, attention and gated feed-forward, with small differences."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ctxextend.exports.row import Fixed, Key, Row, pair_k, pair_q
from ctxextend.exports.shared import (
    ATTENTION,
    EMBEDDING,
    EXPERT_KEYS,
    FEED_FORWARD,
    HEAD,
    HEAD_NORMS,
    LAST_NORM,
    LLAMA_KEYS,
    NO_BIAS,
    NORMS,
    OWN_HEAD,
    PAIRED_ATTENTION,
    POST_NORMS,
    SILU,
    experts,
    frozen,
    layer,
    qkv_biases,
    shared_expert,
    whole_heads,
)

_PAIRED_BIASES: Final = (
    layer("self_attn.q_proj.bias", "attn_q.bias", "q", do=(pair_q,), when=("attention_bias", True)),
    layer("self_attn.k_proj.bias", "attn_k.bias", "kv", do=(pair_k,), when=("attention_bias", True)),
    layer("self_attn.v_proj.bias", "attn_v.bias", "kv", when=("attention_bias", True)),
    layer("self_attn.o_proj.bias", "attn_output.bias", "hidden", when=("attention_bias", True)),
)

_FEED_FORWARD_BIASES: Final = (
    layer("mlp.gate_proj.bias", "ffn_gate.bias", "ffn", when=("mlp_bias", True)),
    layer("mlp.up_proj.bias", "ffn_up.bias", "ffn", when=("mlp_bias", True)),
    layer("mlp.down_proj.bias", "ffn_down.bias", "hidden", when=("mlp_bias", True)),
)

_ALL_SPARSE: Final = (
    Fixed(key="decoder_sparse_step", values=(1,), default=1),
    Fixed(key="mlp_only_layers", values=([], None), default=None),
)

LLAMA: Final = Row(
    family="llama",
    architecture="llama",
    model_type="llama",
    model_class="LlamaForCausalLM",
    keys=LLAMA_KEYS,
    tensors=(
        EMBEDDING,
        *NORMS,
        *PAIRED_ATTENTION,
        *_PAIRED_BIASES,
        *FEED_FORWARD,
        *_FEED_FORWARD_BIASES,
        LAST_NORM,
        HEAD,
    ),
    defaults=frozen(rms_norm_eps=1e-6, tie_word_embeddings=False),
    fixed=(SILU,),
)

MISTRAL: Final = Row(
    family="mistral",
    architecture="llama",
    model_type="mistral",
    model_class="MistralForCausalLM",
    keys=LLAMA_KEYS,
    tensors=(EMBEDDING, *NORMS, *PAIRED_ATTENTION, *FEED_FORWARD, LAST_NORM, HEAD),
    defaults=frozen(rms_norm_eps=1e-6, num_key_value_heads=8, tie_word_embeddings=False),
    fixed=(SILU,),
)

MIXTRAL: Final = Row(
    family="mixtral",
    architecture="llama",
    model_type="mixtral",
    model_class="MixtralForCausalLM",
    keys=(
        *LLAMA_KEYS,
        Key(name="expert_count", config=("num_local_experts",)),
        Key(name="expert_used_count", config=("num_experts_per_tok",)),
    ),
    tensors=(
        EMBEDDING,
        *NORMS,
        *PAIRED_ATTENTION,
        *experts("block_sparse_moe", ("w1", "w3", "w2")),
        LAST_NORM,
        HEAD,
    ),
    defaults=frozen(
        rms_norm_eps=1e-5,
        num_key_value_heads=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    ),
    fixed=(SILU,),
)

QWEN2: Final = Row(
    family="qwen2",
    architecture="qwen2",
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    keys=LLAMA_KEYS,
    tensors=(EMBEDDING, *NORMS, *ATTENTION, *qkv_biases(None), *FEED_FORWARD, LAST_NORM, HEAD),
    defaults=frozen(rms_norm_eps=1e-6, num_key_value_heads=32, tie_word_embeddings=False),
    fixed=(SILU,),
    refusals=(whole_heads,),
)

QWEN2_MOE: Final = Row(
    family="qwen2_moe",
    architecture="qwen2moe",
    model_type="qwen2_moe",
    model_class="Qwen2MoeForCausalLM",
    keys=(
        *LLAMA_KEYS,
        *EXPERT_KEYS,
        Key(name="expert_shared_feed_forward_length", config=("shared_expert_intermediate_size",)),
    ),
    tensors=(
        EMBEDDING,
        *NORMS,
        *ATTENTION,
        *qkv_biases("qkv_bias"),
        *experts(),
        *shared_expert("shared_expert"),
        layer("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight", "one", "hidden"),
        LAST_NORM,
        *OWN_HEAD,
    ),
    defaults=frozen(
        rms_norm_eps=1e-6,
        num_key_value_heads=16,
        num_local_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        qkv_bias=True,
        tie_word_embeddings=False,
    ),
    fixed=(SILU, *_ALL_SPARSE, Fixed(key="norm_topk_prob", values=(False,), default=False)),
    refusals=(whole_heads,),
)

QWEN3: Final = Row(
    family="qwen3",
    architecture="qwen3",
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    keys=LLAMA_KEYS,
    tensors=(EMBEDDING, *NORMS, *ATTENTION, *HEAD_NORMS, *FEED_FORWARD, LAST_NORM, HEAD),
    defaults=frozen(rms_norm_eps=1e-6, num_key_value_heads=32, head_dim=128, tie_word_embeddings=False),
    fixed=(SILU, NO_BIAS),
)

QWEN3_MOE: Final = Row(
    family="qwen3_moe",
    architecture="qwen3moe",
    model_type="qwen3_moe",
    model_class="Qwen3MoeForCausalLM",
    keys=(*LLAMA_KEYS, *EXPERT_KEYS),
    tensors=(EMBEDDING, *NORMS, *ATTENTION, *HEAD_NORMS, *experts(), LAST_NORM, HEAD),
    defaults=frozen(
        rms_norm_eps=1e-6,
        intermediate_size=6144,
        num_key_value_heads=4,
        num_local_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        tie_word_embeddings=False,
    ),
    fixed=(SILU, NO_BIAS, *_ALL_SPARSE, Fixed(key="norm_topk_prob", values=(True,), default=False)),
)

PHI3: Final = Row(
    family="phi3",
    architecture="phi3",
    model_type="phi3",
    model_class="Phi3ForCausalLM",
    keys=(*LLAMA_KEYS, Key(name="attention.sliding_window", config=("sliding_window",), unset=0)),
    tensors=(
        EMBEDDING,
        *NORMS,
        layer("self_attn.qkv_proj.weight", "attn_qkv.weight", "qkv", "hidden"),
        ATTENTION[-1],
        layer("mlp.gate_up_proj.weight", "ffn_up.weight", "two_ffn", "hidden"),
        FEED_FORWARD[-1],
        LAST_NORM,
        HEAD,
    ),
    defaults=frozen(rms_norm_eps=1e-5, tie_word_embeddings=False),
    fixed=(SILU, NO_BIAS),
    refusals=(whole_heads,),
)

SMOLLM3: Final = Row(
    family="smollm3",
    architecture="smollm3",
    model_type="smollm3",
    model_class="SmolLM3ForCausalLM",
    keys=LLAMA_KEYS,
    tensors=(EMBEDDING, *NORMS, *PAIRED_ATTENTION, *FEED_FORWARD, LAST_NORM, HEAD),
    defaults=frozen(rms_norm_eps=1e-6, num_key_value_heads=4, tie_word_embeddings=True),
    fixed=(SILU, NO_BIAS, Fixed(key="mlp_bias", values=(False, None), default=False)),
)

OLMO2: Final = Row(
    family="olmo2",
    architecture="olmo2",
    model_type="olmo2",
    model_class="Olmo2ForCausalLM",
    keys=LLAMA_KEYS,
    tensors=(
        EMBEDDING,
        *ATTENTION,
        layer("self_attn.q_norm.weight", "attn_q_norm.weight", "q"),
        layer("self_attn.k_norm.weight", "attn_k_norm.weight", "kv"),
        *POST_NORMS,
        *FEED_FORWARD,
        LAST_NORM,
        *OWN_HEAD,
    ),
    defaults=frozen(rms_norm_eps=1e-5, tie_word_embeddings=False),
    fixed=(SILU, NO_BIAS),
    refusals=(whole_heads,),
)

OLMO3: Final = replace(OLMO2, family="olmo3", model_type="olmo3", model_class="Olmo3ForCausalLM")

GRANITE: Final = Row(
    family="granite",
    architecture="granite",
    model_type="granite",
    model_class="GraniteForCausalLM",
    keys=(
        *LLAMA_KEYS,
        Key(name="attention.scale", config=("attention_multiplier",), type="FLOAT32"),
        Key(name="embedding_scale", config=("embedding_multiplier",), type="FLOAT32"),
        Key(name="residual_scale", config=("residual_multiplier",), type="FLOAT32"),
        Key(name="logit_scale", config=("logits_scaling",), type="FLOAT32"),
    ),
    tensors=LLAMA.tensors,
    defaults=frozen(
        rms_norm_eps=1e-6,
        attention_multiplier=1.0,
        embedding_multiplier=1.0,
        residual_multiplier=1.0,
        logits_scaling=1.0,
        tie_word_embeddings=False,
    ),
    fixed=(SILU,),
)
