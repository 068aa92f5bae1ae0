"""Language models inside checkpoints that see or hear, with one rope for all their layers; as :mod:`flat`.

Where a checkpoint's outer model type always holds the same language model, it stands in that model's row;
wrappers around any language model are in :mod:`wrappers`. The ropes of vision towers, audio encoders and
codecs count patches or frames, and are left alone.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from ctxextend.families.row import ANY, Family, LayerPattern, origins_of

#: configuration_qwen3_5.py: full attention on every fourth layer, or as the key says.
_EVERY_FOURTH: Final = LayerPattern(
    kind="every_nth_full", period=4, period_key="full_attention_interval", rest_label="linear_attention"
)

ROWS: Final[tuple[Family, ...]] = (
    Family(
        name="aria",
        model_types=("aria", "aria_text"),
        max_position_embeddings=2048,
        origins=ANY,
    ),
    Family(
        name="chameleon",
        model_types=("chameleon",),
        max_position_embeddings=4096,
        origins=ANY,
    ),
    Family(
        # configuration_cosmos3_edge.py, validate_architecture: no other type than default.
        name="cosmos3_edge",
        model_types=("cosmos3_edge", "cosmos3_edge_text"),
        only_transformers_5=True,
        rope_theta=100000000.0,
        head_dim=128,
        max_position_embeddings=131072,
        rope_types=(),
        default_scaling=MappingProxyType(
            {"rope_type": "default", "rope_theta": 100000000.0, "mrope_section": [24, 20, 20]}
        ),
        origins=ANY,
    ),
    Family(
        name="csm",
        model_types=("csm",),
        rope_theta=500000.0,
        max_position_embeddings=2048,
        remark="the backbone's rope; the depth decoder has one of its own, over codebooks, which is left alone",
        origins=ANY,
    ),
    Family(
        name="deepseek_ocr2",
        model_types=("deepseek_ocr2", "deepseek_ocr2_text"),
        only_transformers_5=True,
        max_position_embeddings=2048,
        origins=ANY,
    ),
    Family(
        name="emu3",
        model_types=("emu3", "emu3_text_model"),
        rope_theta=1000000.0,
        max_position_embeddings=9216,
        origins=ANY,
    ),
    Family(
        # modeling_ernie4_5_vl_moe.py: its rotary class raises for any type but default.
        name="ernie4_5_vl_moe",
        model_types=("ernie4_5_vl_moe", "ernie4_5_vl_moe_text"),
        only_transformers_5=True,
        rope_theta=500000.0,
        max_position_embeddings=131072,
        pairing="interleaved",
        rope_types=(),
        origins=ANY,
    ),
    Family(
        name="evolla",
        model_types=("EvollaModel", "evolla"),
        rope_theta=500000.0,
        max_position_embeddings=8192,
        origins=ANY,
    ),
    Family(
        name="glm4v",
        model_types=("glm4v", "glm4v_text"),
        partial_rotary_keys=("partial_rotary_factor",),
        max_position_embeddings=32768,
        pairing="interleaved",
        origins=ANY,
    ),
    Family(
        name="glm4v_moe",
        model_types=("glm4v_moe", "glm4v_moe_text"),
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        max_position_embeddings=65536,
        origins=ANY,
    ),
    Family(
        name="glm_image",
        model_types=("glm_image", "glm_image_text"),
        only_transformers_5=True,
        partial_rotary_keys=("partial_rotary_factor",),
        max_position_embeddings=131072,
        origins=ANY,
    ),
    Family(
        name="glm_ocr",
        model_types=("glm_ocr", "glm_ocr_text"),
        only_transformers_5=True,
        partial_rotary_keys=("partial_rotary_factor",),
        max_position_embeddings=131072,
        pairing="interleaved",
        origins=ANY,
    ),
    Family(
        name="gradium_phonon_tts",
        model_types=("gradium_phonon_tts",),
        only_transformers_5=True,
        max_position_embeddings=8192,
        origins=ANY,
    ),
    Family(
        name="granite4_vision",
        model_types=("granite4_vision", "granite4_vision_text"),
        only_transformers_5=True,
        max_position_embeddings=2048,
        origins=ANY,
    ),
    Family(
        name="granite_docling",
        model_types=("granite_docling", "granite_docling_text"),
        only_transformers_5=True,
        max_position_embeddings=32768,
        origins=ANY,
    ),
    Family(
        # The scaling of its class.
        name="higgs_audio_v2",
        model_types=("higgs_audio_v2",),
        only_transformers_5=True,
        rope_theta=500000.0,
        head_dim=128,
        max_position_embeddings=2048,
        default_scaling=MappingProxyType(
            {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "high_freq_factor": 0.5,
                "low_freq_factor": 0.125,
                "original_max_position_embeddings": 1024,
            }
        ),
        origins=origins_of(dynamic="bolted-on", llama3="trained"),
    ),
    Family(
        name="hunyuan_vl",
        model_types=("hunyuan_vl", "hunyuan_vl_text"),
        only_transformers_5=True,
        max_position_embeddings=2048,
        kept_keys=("xdrope_section",),
        static_alpha=True,
        origins=ANY,
    ),
    Family(
        name="idefics",
        model_types=("idefics",),
        max_position_embeddings=2048,
        origins=ANY,
    ),
    Family(
        name="kyutai_speech_to_text",
        model_types=("kyutai_speech_to_text",),
        max_position_embeddings=750,
        window=375,
        origins=ANY,
    ),
    Family(
        name="minimax_m3_vl",
        model_types=("minimax_m3_vl", "minimax_m3_vl_text"),
        only_transformers_5=True,
        rope_theta=5000000.0,
        partial_rotary_keys=("partial_rotary_factor",),
        head_dim=128,
        max_position_embeddings=524288,
        origins=ANY,
    ),
    Family(
        name="mllama",
        model_types=("mllama", "mllama_text_model"),
        rope_theta=500000.0,
        max_position_embeddings=131072,
        remark="its layers of cross attention see the image and have no rope",
        origins=ANY,
    ),
    Family(
        name="molmo2",
        model_types=("molmo2", "molmo2_text"),
        only_transformers_5=True,
        head_dim=128,
        max_position_embeddings=36864,
        origins=ANY,
    ),
    Family(
        name="moshi",
        model_types=("moshi",),
        max_position_embeddings=3000,
        window=3000,
        origins=ANY,
    ),
    Family(
        # modeling_muse_glimmer.py: no rope on full attention (layer_rope_theta of 0).
        name="muse_glimmer",
        model_types=("muse_glimmer", "muse_glimmer_text"),
        only_transformers_5=True,
        head_dim=128,
        max_position_embeddings=131072,
        layer_pattern=LayerPattern(kind="every_nth_full", period=4),
        window=2048,
        unrotated=("full_attention",),
        remark="layers of full attention have no rope; those with rope see a sliding window only",
        origins=ANY,
    ),
    Family(
        # As Muse Glimmer.
        name="muse_spark",
        model_types=("muse_spark", "muse_spark_text"),
        only_transformers_5=True,
        rope_theta=500000.0,
        head_dim=64,
        max_position_embeddings=1048576,
        layer_pattern=LayerPattern(
            # Every fourth, counted back from the last of 62.
            kind="cycle",
            cycle=("sliding_attention", "full_attention", "sliding_attention", "sliding_attention"),
        ),
        window=2048,
        unrotated=("full_attention",),
        remark="layers of full attention have no rope; those with rope see a sliding window only",
        # A rope_theta beside no rope_parameters does nothing.
        default_scaling=MappingProxyType({"rope_type": "default", "rope_theta": 500000.0}),
        origins=ANY,
    ),
    Family(
        name="paddleocr_vl",
        model_types=("paddleocr_vl", "paddleocr_vl_text"),
        only_transformers_5=True,
        rope_theta=500000.0,
        head_dim=128,
        max_position_embeddings=131072,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/microsoft/Phi-4-multimodal-instruct/blob/main/config.json: longrope over 4096
        name="phi4_multimodal",
        model_types=("phi4_multimodal",),
        partial_rotary_keys=("partial_rotary_factor",),
        max_position_embeddings=131072,
        form="phi3",
        original_max_position_embeddings=4096,
        rope_types=("longrope",),
        origins=origins_of(dynamic="bolted-on", longrope="trained"),
    ),
    Family(
        name="pocket_tts",
        model_types=("pocket_tts",),
        only_transformers_5=True,
        max_position_embeddings=8192,
        origins=ANY,
    ),
    Family(
        name="qwen2_5_omni",
        model_types=("qwen2_5_omni", "qwen2_5_omni_thinker", "qwen2_5_omni_text"),
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=28),
        window=32768,
        window_switch_key="use_sliding_window",
        origins=ANY,
        remark="the thinker's rope; the talker has one of its own, which is left alone",
    ),
    Family(
        name="qwen3_5",
        model_types=("qwen3_5", "qwen3_5_text"),
        only_transformers_5=True,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.25,
        head_dim=256,
        max_position_embeddings=32768,
        layer_pattern=_EVERY_FOURTH,
        unrotated=("linear_attention",),
        origins=ANY,
    ),
    Family(
        name="qwen3_5_moe",
        model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
        only_transformers_5=True,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.25,
        head_dim=256,
        max_position_embeddings=32768,
        layer_pattern=_EVERY_FOURTH,
        unrotated=("linear_attention",),
        origins=ANY,
    ),
    Family(
        name="qwen3_omni_moe",
        model_types=("qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_omni_moe_text"),
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        remark="the thinker's rope; the talker has one of its own, which is left alone",
        origins=ANY,
    ),
    Family(
        name="qwen3_vl",
        model_types=("qwen3_vl", "qwen3_vl_text"),
        rope_theta=500000.0,
        head_dim=128,
        max_position_embeddings=128000,
        origins=ANY,
    ),
    Family(
        name="qwen3_vl_moe",
        model_types=("qwen3_vl_moe", "qwen3_vl_moe_text"),
        rope_theta=500000.0,
        max_position_embeddings=128000,
        origins=ANY,
    ),
    Family(
        name="qwen4_exp",
        model_types=("qwen4_exp", "qwen4_exp_text"),
        only_transformers_5=True,
        partial_rotary_keys=("partial_rotary_factor",),
        head_dim=256,
        max_position_embeddings=32768,
        layer_pattern=_EVERY_FOURTH,
        unrotated=("linear_attention",),
        unwindowed=("full_attention", "indexed_attention"),
        origins=ANY,
    ),
    Family(
        name="voxtral_realtime",
        model_types=("voxtral_realtime", "voxtral_realtime_text"),
        only_transformers_5=True,
        max_position_embeddings=131072,
        window=4096,
        origins=ANY,
    ),
)
