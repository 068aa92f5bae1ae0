"""Model types whose positions aren't extended here, and why: ropes, and what other models have instead.

Source: the configuration and modeling files of transformers 5.23, of the module named as the model type
without ``_vision``, ``_encoder`` and the like.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_REASONS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (
        "a vision tower: its rope turns by the row and the column of a patch, not by the position of a token",
        (
            "cohere_compass_vision",
            "dots3_note_vision_encoder",
            "ernie4_5_vl_moe_vision",
            "exaone4_5_vision",
            "gemma4_vision",
            "glm4v_moe_vision",
            "glm4v_vision",
            "glm5_next_vision",
            "glm_ocr_vision",
            "inkling2_vision",
            "kimi_k25_vision",
            "lfm3_vl_vision",
            "llama4_vision_model",
            "minimax_m3_vl_vision",
            "mlcd",
            "mlcd_vision_model",
            "muse_glimmer_vision",
            "muse_spark_vision",
            "paddleocr_vl_vision",
            "pixtral",
            "qwen2_5_omni_vision_encoder",
            "qwen2_5_vl_vision",
            "qwen2_vl_vision",
            "qwen3_5_moe_vision",
            "qwen3_5_vision",
            "qwen3_omni_moe_vision_encoder",
            "qwen3_vl_moe_vision",
            "qwen3_vl_vision",
            "qwen4_exp_vision",
            "step3p5_vision",
            "video_llama_3_vision",
        ),
    ),
    (
        "a model of images or video: its rope turns by the place of a patch, not by the position of a token",
        (
            "edgetam_video",
            "efficientloftr",
            "eomt_dinov3",
            "sam2_video",
            "sam3_tracker_video",
            "sam3_vit_model",
        ),
    ),
    (
        "a vision encoder: its positions are a fixed number of image tokens and queries, not text",
        ("deepseek_ocr2_encoder",),
    ),
    (
        "an audio encoder: its positions are frames of sound, and its length is that of its front end",
        (
            "dots3_note_audio_encoder",
            "glmasr_encoder",
            "lasr_encoder",
            "nemotron3_5_transcribe_asr_audio",
            "nemotron3_5_transcribe_word_timestamp",
            "nemotron3_diarization_audio",
            "pe_audio_encoder",
            "voxtral_realtime_encoder",
        ),
    ),
    (
        "an encoder of sound and video: its positions are frames, not tokens",
        (
            "pe_audio_video_encoder",
            "pe_video_encoder",
        ),
    ),
    (
        "an audio codec: its positions are frames within a window, and it streams over any length",
        (
            "mimi",
            "mimi_decoder",
            "mimi_encoder",
            "neucodec",
            "pocket_tts_audio_tokenizer",
            "pocket_tts_audio_tokenizer_decoder",
            "pocket_tts_audio_tokenizer_encoder",
            "xcodec2",
        ),
    ),
    (
        ("an encoder-decoder of speech: its rope counts the tokens of one utterance, whose sound bounds them"),
        (
            "moonshine",
            "moonshine_streaming",
        ),
    ),
    (
        (
            "an encoder-decoder of speech: text bytes and audio codes have a rope each, in "
            "encoder_config and decoder_config"
        ),
        (
            "dia",
            "dia_decoder",
            "dia_encoder",
        ),
    ),
    (
        "an encoder-decoder: its two halves have a rope each, in configs of their own, and one place is edited here",
        (
            "t5_gemma_module",
            "t5gemma",
        ),
    ),
    (
        (
            "a byte model of four transformers with a rope each: its patcher, encoder, decoder and "
            "global model must agree on the length"
        ),
        (
            "blt",
            "blt_global_transformer",
            "blt_local_decoder",
            "blt_local_encoder",
            "blt_patcher",
        ),
    ),
    (
        "a decoder over codebooks: its positions are the codebooks of one frame, a fixed number",
        (
            "csm_depth_decoder_model",
            "qwen3_omni_moe_talker_code_predictor",
        ),
    ),
    (
        "a part of an Omni checkpoint that speaks what the thinker wrote: it has no checkpoint of its own",
        (
            "qwen2_5_omni_dit",
            "qwen2_5_omni_talker",
            "qwen3_omni_moe_talker_text",
        ),
    ),
    (
        "a model of time series: its positions are patches of a series, not tokens",
        ("timesfm2_5",),
    ),
    (
        (
            "every layer of attention sees a window (attention_window_size), and a recurrence carries "
            "the rest: there is no length to extend"
        ),
        ("recurrent_gemma",),
    ),
    (
        "its base stands once a layer in layer_rope_theta, which wins over the base that a conversion writes",
        (
            "granite_swa",
            "granitemoe_swa",
        ),
    ),
    (
        "its layers attend to all of the page and to a window of the text: neither full attention nor a sliding window",
        (
            "unlimited_ocr",
            "unlimited_ocr_text",
        ),
    ),
    (
        (
            "its sizes and its base stand under keys of its own (n_layers, max_seq_len, "
            "attn_config.rope_theta), and transformers 5 computes the rope without that base"
        ),
        ("dbrx",),
    ),
    (
        (
            "its positions are relative, in buckets that go on past the trained length: there is no table to resize "
            "and no length that config.json could raise"
        ),
        (
            "cpmant",
            "longt5",
            "mt5",
            "pop2piano",
            "switch_transformers",
            "t5",
            "udop",
            "umt5",
        ),
    ),
    (
        (
            "it attends by distances up to a largest one (max_relative_positions), past which all count alike: a "
            "larger table would hold distances that it never saw"
        ),
        (
            "deberta",
            "deberta-v2",
        ),
    ),
    (
        "its positions are sinusoids relative to each other, computed for any length: there is nothing to extend",
        (
            "funnel",
            "xlnet",
        ),
    ),
    (
        "each position is a pair of rows of two small tables, whose sizes must multiply to the length",
        ("reformer",),
    ),
    (
        "it attends to blocks that are drawn at random for its length, so another length makes other connections",
        (
            "big_bird",
            "bigbird_pegasus",
        ),
    ),
    (
        "its encoder and its decoder have lengths of their own, and one length is planned here",
        ("led",),
    ),
    (
        "beside its tables it counts relative positions in buckets that are laid out for the trained length",
        ("prophetnet",),
    ),
    (
        "its tables are stored as whole numbers with a scale, beside the numbers that they were made of",
        ("ibert",),
    ),
    (
        "its code hard-codes a table of sinusoids with a base of 10000, so no edit of config.json changes the rope",
        ("roformer",),
    ),
)

#: The reason, by model type.
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {model_type: reason for reason, model_types in _REASONS for model_type in model_types}
)
