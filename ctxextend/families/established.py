"""The families whose reading in every runtime was established one by one, quirks included."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from ctxextend.families.positions import Alibi, Decoder
from ctxextend.families.row import ANY, BY_HAND, TEXT_CONFIG, Family, LayerPattern, origins_of

ROWS: Final = (
    Family(
        # CodeGen's attention builds its sinusoids with a base of 10000 and reads no key.
        name="codegen",
        model_types=("codegen",),
        refusal="its attention code hard-codes a theta of 10000, so no edit of config.json changes the rope",
    ),
    Family(
        # https://huggingface.co/CohereForAI/c4ai-command-r-v01/blob/main/config.json
        name="cohere",
        model_types=("cohere",),
        rope_theta=500000.0,
        max_position_embeddings=8192,
        pairing="interleaved",
        # Command R: 8192 there, and 131072, which it was trained on, in model_max_length.
        trained_context_key="model_max_length",
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/CohereForAI/c4ai-command-r7b-12-2024/blob/main/config.json
        name="cohere2",
        model_types=("cohere2",),
        max_position_embeddings=8192,
        pairing="interleaved",
        layer_pattern=LayerPattern(kind="every_nth_full", period=4, period_key="sliding_window_pattern"),
        window=4096,
        unrotated=("full_attention",),
        origins=ANY,
        remark="layers of full attention have no rope; those with rope see a sliding window only",
    ),
    Family(
        # https://huggingface.co/deepseek-ai/DeepSeek-V2-Lite/blob/main/config.json
        name="deepseek_v2",
        model_types=("deepseek_v2",),
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=2048,
        pairing="interleaved",
        kv_cache="latent",
        softmax_mscale=True,
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json
        name="deepseek_v3",
        model_types=("deepseek_v3",),
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=4096,
        pairing="interleaved",
        kv_cache="latent",
        softmax_mscale=True,
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # https://huggingface.co/tiiuae/falcon-7b/blob/main/config.json
        name="falcon",
        model_types=("falcon",),
        alibi_key="alibi",
        positions=Alibi(
            length_key="max_position_embeddings",
            default_length=2048,
            heads_keys=("num_attention_heads", "n_head"),
            heads=71,
            scaled=True,
            rounded="bfloat16",
            decoder=Decoder(
                layers=("num_hidden_layers", "n_layer"),
                width=("hidden_size",),
                heads_key="num_attention_heads",
                single_key="multi_query",
            ),
        ),
        max_position_embeddings=2048,
        kv_heads_keys=("num_kv_heads",),
        kv_cache="falcon",
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/google/gemma-7b/blob/main/config.json
        name="gemma",
        model_types=("gemma",),
        head_dim=256,
        max_position_embeddings=8192,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/google/gemma-2-9b/blob/main/config.json
        name="gemma2",
        model_types=("gemma2",),
        head_dim=256,
        max_position_embeddings=8192,
        layer_pattern=LayerPattern(kind="every_nth_full", period=2),
        window=4096,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/google/gemma-3-12b-it/blob/main/config.json: linear 8 on full attention
        name="gemma3",
        model_types=("gemma3", "gemma3_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        rope_theta=1000000.0,
        local_theta_key="rope_local_base_freq",
        local_rope_theta=10000.0,
        head_dim=256,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        layer_pattern=LayerPattern(kind="every_nth_full", period=6, period_key="sliding_window_pattern"),
        window=4096,
        origins=origins_of(dynamic="bolted-on", linear="trained"),
    ),
    Family(
        # https://huggingface.co/zai-org/GLM-4-9B-0414: its card adds yarn by hand
        name="glm4",
        model_types=("glm4",),
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        head_dim=128,
        max_position_embeddings=131072,
        pairing="interleaved",
        origins=BY_HAND,
    ),
    Family(
        # https://huggingface.co/EleutherAI/pythia-1.4b/blob/main/config.json
        name="gpt_neox",
        model_types=("gpt_neox",),
        theta_keys=("rotary_emb_base", "rope_theta"),
        partial_rotary_keys=("rotary_pct",),
        partial_rotary_factor=0.25,
        max_position_embeddings=2048,
        kv_heads_keys=(),
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/openai/gpt-oss-20b/blob/main/config.json: yarn 32x over 4096
        name="gpt_oss",
        model_types=("gpt_oss",),
        rope_theta=150000.0,
        head_dim=64,
        max_position_embeddings=131072,
        layer_pattern=LayerPattern(kind="every_nth_full", period=2),
        window=128,
        default_scaling=MappingProxyType(
            {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            }
        ),
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        name="gptj",
        model_types=("gptj",),
        refusal="its attention code hard-codes a theta of 10000, so no edit of config.json changes the rope",
    ),
    Family(
        # https://huggingface.co/ibm-granite/granite-3.1-8b-instruct/blob/main/config.json
        name="granite",
        model_types=("granite",),
        max_position_embeddings=2048,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/internlm/internlm3-8b-instruct/blob/main/config.json: dynamic 6.0, code of its own
        name="internlm3",
        model_types=("internlm3",),
        head_dim=128,
        max_position_embeddings=32768,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json: llama3 8.0 over 8192
        name="llama",
        model_types=("llama",),
        max_position_embeddings=2048,
        origins=origins_of(dynamic="bolted-on", llama3="trained"),
    ),
    Family(
        # https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct/blob/main/config.json
        name="llama4",
        model_types=("llama4", "llama4_text"),
        config_paths=TEXT_CONFIG,
        rope_theta=500000.0,
        head_dim=128,
        max_position_embeddings=131072,
        pairing="interleaved",
        layer_pattern=LayerPattern(kind="no_rope_layers", period=4, rope_label="chunked_attention"),
        window_key="attention_chunk_size",
        window=8192,
        unrotated=("full_attention",),
        origins=origins_of(dynamic="bolted-on", llama3="trained"),
        remark="layers with rope attend within chunks only; those without have their own temperature by position",
    ),
    Family(
        # https://huggingface.co/mistralai/Ministral-8B-Instruct-2410: full and sliding layers of one rope
        name="ministral",
        model_types=("ministral",),
        max_position_embeddings=131072,
        needs_head_dim=True,
        window=4096,
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # https://huggingface.co/mistralai/Ministral-3-8B-Instruct-2512/blob/main/config.json: yarn 16x over 16384
        name="ministral3",
        model_types=("ministral3",),
        config_paths=TEXT_CONFIG,
        rope_theta=1000000.0,
        head_dim=128,
        max_position_embeddings=262144,
        default_scaling=MappingProxyType(
            {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
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
        # https://huggingface.co/mistralai/Mistral-7B-v0.1/blob/main/config.json
        name="mistral",
        model_types=("mistral",),
        config_paths=TEXT_CONFIG,
        max_position_embeddings=131072,
        needs_head_dim=True,
        window=4096,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json
        name="mixtral",
        model_types=("mixtral",),
        rope_theta=1000000.0,
        max_position_embeddings=131072,
        needs_head_dim=True,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/nvidia/Minitron-4B-Base/blob/main/config.json
        name="nemotron",
        model_types=("nemotron",),
        partial_rotary_keys=("partial_rotary_factor", "rope_percent", "rope_percentage"),
        partial_rotary_factor=0.5,
        max_position_embeddings=4096,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/allenai/OLMo-7B-hf/blob/main/config.json
        name="olmo",
        model_types=("olmo",),
        max_position_embeddings=2048,
        older_form_of_two_keys=True,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/allenai/OLMo-2-1124-7B/blob/main/config.json
        name="olmo2",
        model_types=("olmo2",),
        max_position_embeddings=2048,
        older_form_of_two_keys=True,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/allenai/Olmo-3-1025-7B/blob/main/config.json: yarn 8x on full attention
        name="olmo3",
        model_types=("olmo3",),
        form="nested",
        rope_theta=500000.0,
        local_rope_theta=500000.0,
        max_position_embeddings=2048,
        layer_pattern=LayerPattern(kind="every_nth_full", period=4),
        window=4096,
        origins=origins_of(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # https://huggingface.co/microsoft/phi-2/blob/main/config.json
        name="phi",
        model_types=("phi",),
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        max_position_embeddings=2048,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/microsoft/Phi-3-mini-128k-instruct/blob/main/config.json: longrope over 4096
        name="phi3",
        model_types=("phi3",),
        form="phi3",
        partial_rotary_keys=("partial_rotary_factor",),
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rope_types=("longrope",),
        origins=origins_of(dynamic="bolted-on", longrope="trained"),
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json
        name="qwen2",
        model_types=("qwen2",),
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=28),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=BY_HAND,
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/main/config.json
        name="qwen2_5_vl",
        model_types=("qwen2_5_vl", "qwen2_5_vl_text"),
        config_paths=TEXT_CONFIG,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=80),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=BY_HAND,
        # The card: "config.json is set for context length up to 32,768 tokens", and yarn 4 over 32768 beyond.
        overstated=MappingProxyType({128000: 32768}),
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen1.5-MoE-A2.7B/blob/main/config.json
        name="qwen2_moe",
        model_types=("qwen2_moe",),
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="even_below_max_window_layers", max_window_layers=28),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=BY_HAND,
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct/blob/main/config.json
        name="qwen2_vl",
        model_types=("qwen2_vl", "qwen2_vl_text"),
        config_paths=TEXT_CONFIG,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=80),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=BY_HAND,
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen3-8B: trained on 32768, 40960 leaves room for the answer
        name="qwen3",
        model_types=("qwen3",),
        head_dim=128,
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=28),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=BY_HAND,
        overstated=MappingProxyType({40960: 32768}),
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen3-30B-A3B: as Qwen3
        name="qwen3_moe",
        model_types=("qwen3_moe",),
        max_position_embeddings=32768,
        window=4096,
        window_switch_key="use_sliding_window",
        origins=BY_HAND,
        overstated=MappingProxyType({40960: 32768}),
    ),
    Family(
        # https://huggingface.co/HuggingFaceTB/SmolLM3-3B: trained to 65536, its card adds yarn by hand
        name="smollm3",
        model_types=("smollm3",),
        rope_theta=2000000.0,
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="no_rope_layers", period=4, period_key="no_rope_layer_interval"),
        window_switch_key="use_sliding_window",
        unrotated=("no_rope",),
        origins=BY_HAND,
    ),
    Family(
        # https://huggingface.co/stabilityai/stablelm-2-1_6b/blob/main/config.json
        name="stablelm",
        model_types=("stablelm",),
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.25,
        max_position_embeddings=4096,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/bigcode/starcoder2-7b/blob/main/config.json
        name="starcoder2",
        model_types=("starcoder2",),
        max_position_embeddings=4096,
        origins=ANY,
    ),
)
