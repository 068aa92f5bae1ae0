"""What each family's class needs in a tiny config.json, beside what every model has.

Of the families that were established one by one it is written down; of the others it is derived from the
configuration class of transformers: its own defaults, with everything that makes a model large made small.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from ctxextend.families import flat, multimodal, variants

#: Sizes by the name of their key: the first pattern that is found counts.
_SMALL: Final[tuple[tuple[str, int], ...]] = (
    (r"^head_dim$|^kv_channels$", 32),
    (r"per_tok|topk|top_k$|moe_k$|^n_group$|shared_experts", 1),
    (r"intermediate_size|ffn_dim|ffn_hidden|^moe_.*size$", 32),
    (r"^(n|num)_(routed_|local_)?experts$|moe_num_experts$", 2),
    (r"^sliding_window$", 16),
    (r"_vocab_size|vocab_size_", 96),
    (r"^linear_num", 2),
    (r"^linear_.*head_dim$", 16),
)
#: Ids of tokens that must lie within a vocabulary of 96.
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


class Derived(Mapping[str, Any]):
    """The keys of a model type, worked out when first asked for; ``own`` keys win."""

    def __init__(self, model_type: str, own: Mapping[str, Any]) -> None:
        self.model_type = model_type
        self.own = own

    @cached_property
    def keys_of_class(self) -> dict[str, Any]:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        default = CONFIG_MAPPING[self.model_type]()
        stated = default.to_dict()
        found: dict[str, Any] = {"model_type": self.model_type}
        for key, value in stated.items():
            small = next((size for pattern, size in _SMALL if re.search(pattern, key)), None)
            if small is not None and type(value) is int:
                found[key] = small
        found |= {key: 1 for key in _TOKENS if type(stated.get(key)) is int and stated[key] >= 96}
        labels = getattr(default, "layer_types", None) or ["full_attention"]
        found["num_hidden_layers"] = max(labels.index(label) for label in labels) + 1
        return found | dict(self.own)

    def __getitem__(self, key: str) -> Any:
        return self.keys_of_class[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_of_class)

    def __len__(self) -> int:
        return len(self.keys_of_class)


#: A rope over time, height and width, of 16 and of 8 pairs.
_SECTIONS: Final = {"rope_type": "default", "mrope_section": [8, 4, 4]}
_SECTIONS_OF_8: Final = {"rope_type": "default", "mrope_section": [2, 3, 3]}
#: What can't be derived: sizes that hang together, and values that the class has no default for.
_OWN: Final[Mapping[str, Mapping[str, Any]]] = {
    "cosmos3_edge": {"rope_scaling": _SECTIONS},
    "deepseek_ocr2": {"mlp_layer_types": ["dense"]},
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {
        "n_routed_experts": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "ernie4_5_vl_moe": {"rope_scaling": {"rope_type": "default", "mrope_section": [5, 5, 6]}},
    "esmc": {"num_key_value_heads": 2},
    "exaone4_unwindowed": {"sliding_window": None, "layer_types": ["full_attention"], "num_hidden_layers": 1},
    "flint": {"num_hidden_layers": 5},
    "glm4v": {"partial_rotary_factor": 0.5, "rope_scaling": _SECTIONS_OF_8},
    "glm4v_moe": {"rope_scaling": _SECTIONS_OF_8},
    "glm_image": {"rope_scaling": _SECTIONS},
    "glm_ocr": {"partial_rotary_factor": 0.5, "rope_scaling": _SECTIONS_OF_8},
    "gpt_neox_japanese": {"rotary_pct": 0.5},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 64}},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "num_hidden_layers": 2,
        "position_embedding_type": "rope",
    },
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32},
    "hunyuan_vl": {"head_dim": 32, "rope_scaling": {"rope_type": "default", "xdrope_section": [4, 4, 4, 4]}},
    "idefics": {
        "vision_config": {"embed_dim": 32, "image_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2},
        "use_resampler": False,
        "cross_layer_interval": 1,
    },
    "kolibri1_unwindowed": {"sliding_window": None, "layer_types": ["full_attention"], "num_hidden_layers": 1},
    "kyutai_speech_to_text": {
        "audio_pad_token_id": 95,
        "codebook_vocab_size": 8,
        "num_codebooks": 1,
        "pad_token_id": 3,
    },
    "lfm2": {"full_attn_idxs": [1], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "minimax_m2_half": {"head_dim": 128, "rotary_dim": 64},
    "minimax_m3_vl": {"partial_rotary_factor": 0.5},
    "paddleocr_vl": {"rope_scaling": _SECTIONS},
    "phi4_multimodal": {
        "original_max_position_embeddings": 1024,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "nemo_conv_channels": 16,
            "ext_pw_out_channel": 32,
        },
    },
    "pocket_tts": {"flow_head_config": {"condition_dim": 64}},
    "qwen2_5_omni": {"rope_scaling": _SECTIONS},
    "qwen3_5": {
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
    },
    "qwen3_vl": {"rope_scaling": {"rope_type": "default", "mrope_section": [8, 4, 4], "mrope_interleaved": True}},
    "qwen4_exp": {
        "indexer_n_heads": 1,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "partial_rotary_factor": 0.5,
        "ple_layer_ids": [],
    },
    "solar_open": {"partial_rotary_factor": 0.5},
    "voxtral": {"head_dim": 32},
    "zamba2": {
        "attention_head_dim": 64,
        "layers_block_type": ["linear_attention", "hybrid"],
        "n_mamba_heads": 2,
        "num_hidden_layers": 2,
        "use_mem_rope": True,
    },
}

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
KEYS = {
    **KEYS,
    "deepseek_v3": {**KEYS["deepseek_v2"], "n_shared_experts": 1},
    **{
        row.name: Derived(row.model_types[-1], _OWN.get(row.name, {}))
        for row in (*flat.ROWS, *multimodal.ROWS, *variants.ROWS)
    },
}
