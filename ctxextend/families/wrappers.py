"""Checkpoints around a language model of any kind: their outer model types, and where the inner one stands.

The inner config's own ``model_type`` says which family's row applies; where it names none, the wrapper's
configuration class has a default. Source: the configuration classes of transformers 5.23
(``sub_configs`` and ``get_text_config``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final


def _sizes(layers: int, hidden: int, heads: int, kv_heads: int | None = None) -> Mapping[str, int]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return MappingProxyType(sizes if kv_heads is None else {**sizes, "num_key_value_heads": kv_heads})


#: Where a language model's settings stand inside a wrapper, deepest first: Omni checkpoints (the thinker),
#: retrievers and judges (the vision-language model inside), all others.
TEXT_PATHS: Final = (
    ("thinker_config", "text_config"),
    ("vlm_config", "text_config"),
    ("text_config", "text_config"),
    ("text_config",),
)

#: The wrapper's model type, and the language model that its class takes where the inner config names none.
WRAPPERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "audioflamingo3": "qwen2",
        "aya_vision": "cohere2",
        "blip-2": "opt",
        "cohere2_vision": "cohere2",
        "colmodernvbert": "modernbert",
        "colpali": "gemma",
        "colqwen2": "qwen2_vl_text",
        "cosmos3_omni": "qwen3_vl_text",
        "deepseek_vl": "llama",
        "deepseek_vl_hybrid": "llama",
        "exaone4_5": "exaone4",
        "fast_vlm": "qwen2",
        "fun_asr_nano": "qwen3",
        "fuyu": "persimmon",
        "gemma4_assistant": "gemma4_text",
        "gemma4_unified_assistant": "gemma4_unified_text",
        "glm46v": "glm4v_text",
        "glmasr": "llama",
        "glmga": "glm4v_text",
        "got_ocr2": "qwen2",
        "granite_speech": "granite",
        "granite_speech_plus": "granite",
        "hyperclovax_vision_v2": "hyperclovax",
        "idefics2": "mistral",
        "idefics3": "llama",
        "instructblip": "opt",
        "instructblipvideo": "opt",
        "internvl": "qwen2",
        "janus": "llama",
        "jev": "qwen3_5_text",
        "kimi_k25": "deepseek_v3",
        "lfm2_vl": "lfm2",
        "lfm3_vl": "lfm3",
        "lighton_ocr": "qwen3",
        "llava": "llama",
        "llava_next": "llama",
        "llava_next_video": "llama",
        "llava_onevision": "qwen2",
        "minicpm_ocr": "qwen3_5_text",
        "minicpmv4_6": "qwen3_5_text",
        "minicpmv4_7": "qwen3_5_text",
        "mistral3": "mistral",
        "modernvbert": "modernbert",
        "moss_transcribe_diarize": "qwen3",
        "musicflamingo": "qwen2",
        "nemo_speechlm": "nemotron_h",
        "nemotron_h_omni": "nemotron_h",
        "ovis2": "qwen2",
        "paligemma": "gemma",
        "pe_audio": "modernbert",
        "pe_audio_video": "modernbert",
        "pe_video": "modernbert",
        "perception_lm": "llama",
        "pp_chart2table": "qwen2",
        "qianfan_ocr": "qwen3",
        "qwen2_audio": "qwen2",
        "qwen3_asr": "qwen3",
        "shieldgemma2": "gemma3_text",
        "smolvlm": "llama",
        "ultravbert": "ultrabert",
        "vibevoice": "qwen2",
        "vibevoice_asr": "qwen2",
        "video_llama_3": "qwen2",
        "video_llava": "llama",
        "vipllava": "llama",
        "voxtral": "llama",
    }
)

#: Inner model types that a wrapper's class renames (configuration_exaone4_5.py, configuration_kimi_k25.py).
_RENAMED: Final[Mapping[str, str]] = MappingProxyType({"exaone4_5_text": "exaone4", "kimi_k2": "deepseek_v3"})

#: Wrappers that set values of their own where the inner config is silent: the row that has them.
#: configuration_voxtral.py, __post_init__.
_OWN_DEFAULTS: Final[Mapping[tuple[str, str], str]] = MappingProxyType({("voxtral", "llama"): "voxtral"})

#: Sizes that a language model's class has by itself, where published wrappers' text_config leaves them out
#: (https://huggingface.co/llava-hf/llava-1.5-7b-hf/blob/main/config.json does), by family.
SIZES: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "cohere2": _sizes(40, 8192, 64),
        "gemma": _sizes(28, 3072, 16, 16),
        "gemma2": _sizes(26, 2304, 8, 4),
        "granite": _sizes(32, 4096, 32),
        "lfm2": _sizes(32, 2560, 32, 8),
        "llama": _sizes(32, 4096, 32),
        "mistral": _sizes(32, 4096, 32, 8),
        "persimmon": _sizes(36, 4096, 64),
        "qwen2": _sizes(32, 4096, 32, 32),
        "qwen3": _sizes(32, 4096, 32, 32),
        "voxtral": _sizes(30, 3072, 32, 8),
    }
)


def inner_model_type(wrapper: str, inner: Mapping[str, Any] | None) -> str:
    """The language model's model type inside a wrapper, or its class's default."""
    stated = str((inner or {}).get("model_type") or WRAPPERS[wrapper])
    return _RENAMED.get(stated, stated)


def own_row(wrapper: str, inner: str) -> str | None:
    """The name of the row for a language model whose wrapper has defaults of its own, if there is one."""
    return _OWN_DEFAULTS.get((wrapper, inner))


def inner_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The language model's config inside a wrapper's; None where there is none."""
    for path in TEXT_PATHS:
        node: Any = config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            return node
    return None
