"""Families of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), and those whose such heads have no rope.

The rope turns ``qk_rope_head_dim`` dimensions of each head. All the classes here multiply their softmax
scale by YaRN's mscale_all_dim, whatever the rope's type (``yarn_apply_mscale`` in each modeling file of
transformers 5.23).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from ctxextend.families.row import ANY, TEXT_CONFIG, Family, LayerPattern, origins_of

INDEXED: Final = "indexed_attention"

#: An index chooses which tokens a query sees; none is out of reach, so no window.
_INDEXED: Final = LayerPattern(kind="cycle", cycle=(INDEXED,))

ROWS: Final = (
    Family(
        name="axk1",
        model_types=("axk1",),
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=32768,
        pairing="interleaved",
        interleave_key="rope_interleave",
        kv_cache="latent",
        softmax_mscale=True,
        origins=ANY,
    ),
    Family(
        name="axk2",
        model_types=("axk2",),
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=32,
        max_position_embeddings=131072,
        pairing="interleaved",
        kv_cache="latent",
        kv_index=("index_head_dim", 128),
        softmax_mscale=True,
        layer_pattern=_INDEXED,
        unwindowed=(INDEXED,),
        origins=ANY,
    ),
    Family(
        name="bailing_hybrid",
        model_types=("bailing_hybrid",),
        only_transformers_5=True,
        rope_theta=6000000.0,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=262144,
        length_key="model_max_length",
        pairing="interleaved",
        kv_cache="latent",
        softmax_mscale=True,
        layer_pattern=LayerPattern(
            kind="every_nth_full", period=6, period_key="layer_group_size", rest_label="linear_attention"
        ),
        unrotated=("linear_attention",),
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/deepseek-ai/DeepSeek-V3.2-Exp/blob/main/config.json: yarn 40x over 4096
        name="deepseek_v32",
        model_types=("deepseek_v32",),
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=163840,
        pairing="interleaved",
        kv_cache="latent",
        kv_index=("index_head_dim", 128),
        softmax_mscale=True,
        layer_pattern=_INDEXED,
        unwindowed=(INDEXED,),
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        name="glm4_moe_lite",
        model_types=("glm4_moe_lite",),
        only_transformers_5=True,
        partial_rotary_keys=("partial_rotary_factor",),
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=202752,
        pairing="interleaved",
        interleave_key="rope_interleave",
        kv_cache="latent",
        softmax_mscale=True,
        origins=ANY,
    ),
    Family(
        # Latent attention without positions beside linear layers.
        name="glm5_next",
        model_types=("glm5_next", "glm5_next_text"),
        position="none",
    ),
    Family(
        # Some layers take their index from another, which keeps it: no size of a cache is claimed.
        name="glm_moe_dsa",
        model_types=("glm_moe_dsa",),
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=202752,
        pairing="interleaved",
        kv_cache="unstated",
        softmax_mscale=True,
        layer_pattern=_INDEXED,
        unwindowed=(INDEXED,),
        origins=ANY,
    ),
    Family(
        name="hy_v4",
        model_types=("hy_v4",),
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=262144,
        kv_cache="unstated",
        softmax_mscale=True,
        layer_pattern=_INDEXED,
        unwindowed=(INDEXED,),
        origins=ANY,
    ),
    Family(
        # Latent attention without positions beside linear layers.
        name="kimi_linear",
        model_types=("kimi_linear",),
        position="none",
    ),
    Family(
        # https://huggingface.co/meituan-longcat/LongCat-Flash-Chat: each of num_layers attends twice
        name="longcat_flash",
        model_types=("longcat_flash",),
        rope_theta=10000000.0,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=131072,
        layer_counts=(("num_layers", 2), ("num_hidden_layers", 1)),
        pairing="interleaved",
        kv_cache="latent",
        softmax_mscale=True,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/openbmb/MiniCPM3-4B/blob/main/config.json: longrope over 32768
        name="minicpm3",
        model_types=("minicpm3",),
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=32,
        max_position_embeddings=32768,
        kv_cache="latent",
        softmax_mscale=True,
        origins=origins_of(dynamic="bolted-on", longrope="trained"),
    ),
    Family(
        # Its class: yarn 128x over 8192, whose functions take head_dim (with the part that isn't turned) times the
        # share inside rope_parameters; a rope_scaling would lose that share.
        name="mistral4",
        model_types=("mistral4",),
        config_paths=TEXT_CONFIG,
        newer_form_only=True,
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=1048576,
        pairing="interleaved",
        interleave_key="rope_interleave",
        kv_cache="latent",
        softmax_mscale=True,
        kept_keys=("partial_rotary_factor",),
        default_scaling=MappingProxyType(
            {
                "rope_type": "yarn",
                "factor": 128.0,
                "original_max_position_embeddings": 8192,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        ),
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # Its class: yarn 2048x over 512 without a temperature, and queries scaled by the logarithm of their position.
        name="mistral_large4",
        model_types=("mistral_large4", "mistral_large4_text"),
        config_paths=TEXT_CONFIG,
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=1048576,
        pairing="interleaved",
        kv_cache="unstated",
        softmax_mscale=True,
        layer_pattern=LayerPattern(
            kind="no_rope_layers", period=4, period_key="no_rope_layer_interval", rope_label=INDEXED
        ),
        unrotated=("no_rope",),
        unwindowed=(INDEXED,),
        default_scaling=MappingProxyType(
            {
                "rope_type": "yarn",
                "factor": 2048.0,
                "original_max_position_embeddings": 512,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "attention_factor": 1.0,
            }
        ),
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        name="youtu",
        model_types=("youtu",),
        only_transformers_5=True,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=131072,
        pairing="interleaved",
        interleave_key="rope_interleave",
        kv_cache="latent",
        softmax_mscale=True,
        origins=ANY,
    ),
)
