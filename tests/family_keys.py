"""What each family's class needs in a tiny config.json, beside what every model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What a family's class needs beside TINY, spelled as its published configs spell it (transformers 4).
KEYS: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {"num_hidden_layers": 4, "sliding_window": 16},
    "deepseek_v2": {
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "num_key_value_heads": 2,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "num_hidden_layers": 2, "sliding_window": 16, "query_pre_attn_scalar": 32},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "num_hidden_layers": 6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 16,
        "query_pre_attn_scalar": 32,
    },
    "glm4": {"head_dim": 32, "partial_rotary_factor": 0.5, "pad_token_id": None},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    "gpt_oss": {
        "head_dim": 32,
        "num_hidden_layers": 2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "sliding_window": 16,
    },
    "internlm3": {"head_dim": 32},
    "llama4": {
        "model_type": "llama4_text",
        "head_dim": 32,
        "num_hidden_layers": 4,
        "num_local_experts": 1,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 256,
        "intermediate_size_mlp": 64,
        "interleave_moe_layer_step": 1,
    },
    "ministral": {"head_dim": 32, "sliding_window": None},
    "ministral3": {"head_dim": 32},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": None},
    "nemotron": {"partial_rotary_factor": 0.5},
    "olmo3": {"num_hidden_layers": 4, "rope_theta": 500000.0, "sliding_window": 16},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"original_max_position_embeddings": 1024, "pad_token_id": 0},
    "qwen2_5_vl": {"model_type": "qwen2_5_vl_text"},
    "qwen2_moe": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen2_vl": {"model_type": "qwen2_vl_text"},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 32},
    "smollm3": {"num_hidden_layers": 4, "pad_token_id": 0},
    "stablelm": {"partial_rotary_factor": 0.25},
}
KEYS = {**KEYS, "deepseek_v3": {**KEYS["deepseek_v2"], "n_shared_experts": 1}}
