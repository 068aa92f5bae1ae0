"""Tiny models of every family that is exported: their config.json, and random weights that tell positions apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_SIZES: Final = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_WINDOWS: Final = {"sliding_window": 32}
_GEMMA: Final = {"head_dim": 32, "tie_word_embeddings": True}
_SCALED: Final = {**_GEMMA, **_WINDOWS, "query_pre_attn_scalar": 32}
_QWEN_EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT: Final = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}

#: What each model has beside its sizes, by a name; ``model_type`` is its family's.
MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {"model_type": "llama", "rms_norm_eps": 1e-5},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 32},
    "llama_biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", **_WINDOWS},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_moe": {"model_type": "qwen2_moe", **_QWEN_EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 32, **_QWEN_EXPERTS, "norm_topk_prob": True},
    "gemma": {"model_type": "gemma", **_GEMMA},
    "gemma2": {"model_type": "gemma2", **_SCALED, "num_hidden_layers": 3},
    "gemma3_text": {"model_type": "gemma3_text", **_SCALED, "num_hidden_layers": 7},
    "gemma3": {
        "model_type": "gemma3",
        "text_config": {**_SIZES, **_SCALED, "model_type": "gemma3_text", "num_hidden_layers": 7},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 3,
        "boi_token_index": 4,
        "eoi_token_index": 5,
    },
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 256, "partial_rotary_factor": 0.5},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5, "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", **_WINDOWS, "num_hidden_layers": 5},
    "granite": {
        "model_type": "granite",
        "attention_multiplier": 0.2,
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 4.0,
        "attention_bias": True,
    },
    "stablelm": {"model_type": "stablelm", "partial_rotary_factor": 0.25},
    "stablelm_parallel": {
        "model_type": "stablelm",
        "partial_rotary_factor": 0.5,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "use_qkv_bias": True,
    },
    "starcoder2": {"model_type": "starcoder2", "tie_word_embeddings": True, "norm_epsilon": 1e-5},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 20000},
    "gpt_neox_sequential": {"model_type": "gpt_neox", "rotary_pct": 0.5, "use_parallel_residual": False},
    "deepseek_v2": {"model_type": "deepseek_v2", **_LATENT, "routed_scaling_factor": 2.0},
    "deepseek_v2_lite": {"model_type": "deepseek_v2", **_LATENT, "q_lora_rank": None},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **_LATENT,
        "n_group": 4,
        "topk_group": 2,
        "num_nextn_predict_layers": 1,
    },
}

#: Models without a rope: their whole config, since each class calls its sizes otherwise.
POSITION_MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "bloom": {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "seq_length": 128},
    # 6 heads: slopes between the powers of two.
    "bloom_odd": {"model_type": "bloom", "hidden_size": 96, "n_layer": 2, "n_head": 6, "seq_length": 128},
    "mpt": {"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "mpt_clipped": {
        "model_type": "mpt",
        "d_model": 96,
        "n_layers": 2,
        "n_heads": 6,
        "max_seq_len": 128,
        "attn_config": {"clip_qkv": 1.5},
    },
}
_WITHOUT_ROPE: Final = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def config_of(name: str) -> dict[str, Any]:
    """A model's config.json as it is given to the class."""
    if name in POSITION_MODELS:
        return {**_WITHOUT_ROPE, **POSITION_MODELS[name]}
    own = MODELS[name]
    if "text_config" in own:
        return dict(own)
    config = {**_SIZES, **own}
    if own["model_type"] == "gpt_neox":
        # Its class doesn't know the key: as many as heads.
        del config["num_key_value_heads"]
    return config


def save(name: str, folder: Path) -> Any:
    """Make a model, save it as transformers does, and give it back in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stated = config_of(name)
    config = CONFIG_MAPPING[stated["model_type"]].from_dict(stated)
    config._attn_implementation = "eager"
    auto = AutoModelForImageTextToText if "text_config" in stated else AutoModelForCausalLM
    torch.manual_seed(3)
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for key, weight in sorted(model.state_dict().items()):
            weight.copy_(_random(key, weight))
    model.save_pretrained(folder)
    return model


def _random(name: str, weight: Any) -> Any:
    """Weights with which attention is sharp and every norm and bias counts."""
    import torch

    if weight.ndim == 1:
        mean = 1.0 if ("norm" in name or ".ln_" in name) and name.endswith("weight") else 0.0
        return mean + 0.2 * torch.randn_like(weight)
    gain = 8.0 if ("embed" in name and "out" not in name) or name.endswith(("wte.weight", "wpe.weight")) else 1.5
    return torch.randn_like(weight) * gain / weight.shape[-1] ** 0.5
