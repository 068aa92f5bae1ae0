"""What MLX-LM's model arguments need in a tiny config.json, beside what the family's own class needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Without a default in several models' arguments.
COMMON: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-6,
    "norm_eps": 1e-6,
    "norm_epsilon": 1e-6,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "use_qkv_bias": False,
    "layer_norm_bias": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "use_parallel_residual": True,
    "hidden_act": "silu",
}

_ROUTED: Mapping[str, Any] = {"routed_scaling_factor": 1.0, "first_k_dense_replace": 1}
_SHORT_CONV: Mapping[str, Any] = {"conv_bias": False, "conv_L_cache": 3}
_LINEAR: Mapping[str, Any] = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "shared_expert_intermediate_size": 16,
}
_EXAONE: Mapping[str, Any] = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2, "sliding_window": 16}
_GEMMA4: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
}

#: Without a default in one model's arguments, or to leave parts out that aren't looked at.
OWN: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "num_dense_layers": 2},
    "apertus": {"post_norm": True, "qk_norm": True},
    "dots1": _ROUTED,
    "ernie4_5": {"use_bias": False},
    "ernie4_5_moe": {"use_bias": False, "moe_num_experts": 2, "moe_k": 1},
    "exaone4": {**_EXAONE, "rope_scaling": None, "sliding_window_pattern": "LG"},
    "exaone4_unwindowed": {"rope_scaling": None, "sliding_window_pattern": None},
    "exaone_moe": {**_EXAONE, "is_moe_layer": [False] * 2},
    "gemma3n": {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 30.0,
        "activation_sparsity_pattern": [0.0] * 2,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
    },
    "gemma4": _GEMMA4,
    "gemma4_unified": _GEMMA4,
    "glm4_moe": {**_ROUTED, "rope_scaling": None, "use_qk_norm": False, "partial_rotary_factor": 0.5},
    "glm_moe_dsa": {
        **_ROUTED,
        "n_shared_experts": None,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
    },
    "gpt_neox": {"num_attention_heads": 2},
    "granitemoehybrid": {
        "num_hidden_layers": 1,
        "layer_types": ["attention"],
        "num_local_experts": None,
        "shared_intermediate_size": 64,
    },
    "laguna": {"gating": False},
    "lfm2": {
        **_SHORT_CONV,
        "block_dim": 64,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "lfm2_moe": {**_SHORT_CONV, "use_expert_bias": False, "num_dense_layers": 2},
    "longcat_flash": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "routed_scaling_factor": 1.0,
        "mla_scale_q_lora": False,
        "mla_scale_kv_lora": False,
    },
    "mimo_v2_flash": {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"],
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 0],
        "mlp_layer_types": ["dense"] * 2,
        "add_swa_attention_sink_bias": False,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": 16,
        "n_shared_experts": None,
        "routed_scaling_factor": 1.0,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "layernorm_epsilon": 1e-6,
        "rope_theta": 5000000.0,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 48,
        "swa_v_head_dim": 32,
        "partial_rotary_factor": 0.334,
    },
    "minimax": {"shared_intermediate_size": 16, "rotary_dim": 32},
    "minimax_m2_half": {"shared_intermediate_size": 16, "rotary_dim": 64, "head_dim": 128},
    "minicpm3": {"dim_model_base": 64, "scale_depth": 1.0, "scale_emb": 1.0},
    "minimax_m3_vl": {"dense_intermediate_size": 16, "shared_intermediate_size": 16, "mlp_layer_types": ["dense"]},
    "mistral4": {**_ROUTED, "n_shared_experts": 1},
    "olmo_hybrid": {**_LINEAR, "linear_allow_neg_eigval": True},
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_next": {**_LINEAR, "partial_rotary_factor": 0.25, "num_experts": 0},
    "qwen3_vl_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    "solar_open": _ROUTED,
}

#: The language model stands in a wrapper of this model type.
WRAPPED: Mapping[str, str] = {
    "gemma3n": "gemma3n",
    "gemma4_unified": "gemma4_unified",
    "minimax_m3_vl": "minimax_m3_vl",
    "muse_glimmer": "muse_glimmer",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen2_vl": "qwen2_vl",
    "qwen3_5": "qwen3_5",
    "qwen3_5_moe": "qwen3_5_moe",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl_moe",
}
