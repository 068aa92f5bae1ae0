"""How vLLM's code of each family builds its rope: read from the wheels of 0.33.0 and 0.29.0, one row a family.

Model files are those of ``vllm/model_executor/models``. A family that isn't here was not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

#: ``whole``: get_rope takes the whole dictionary, pairs half-split. ``interleaved``: the same, pairs
#: interleaved. ``sections``: positions in three rows (``mrope_section``), the ramp where YaRN has it.
#: ``sections_enlarged``: the same, the ramp over four times the original length. ``latent``: latent
#: attention, which takes every type for yarn. ``compressed``: the same, with two bases. ``plain``: no
#: scaling is read. ``gpt_oss``: a yarn dictionary of its own. ``transformers``: no model file, so
#: transformers' code. ``absent``: neither.
Way = Literal[
    "whole",
    "interleaved",
    "sections",
    "sections_enlarged",
    "latent",
    "compressed",
    "plain",
    "gpt_oss",
    "transformers",
    "absent",
]

_WHOLE: Final = (
    "afmoe",  # afmoe.py:230, on layers with a window
    "apertus",
    "aria",  # aria.py:262 builds on llama.py
    "cohere_compass",  # cohere_compass.py:2150, and no rope where a layer type has no dictionary
    "exaone4",
    "exaone4_unwindowed",
    "exaone_moe",
    "falcon",
    "falcon_h1",
    "flint",  # vllm/models/flint/model.py:287
    "gemma",
    "gemma2",
    "gemma3",  # gemma3.py:157 takes the layer type's dictionary, as do gemma3n, gemma4 and laguna
    "gemma3n",
    "gemma4",
    "gemma4_unified",  # gemma4_unified.py:296 builds Gemma4ForCausalLM
    "glm4_moe",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "hrm_text",
    "hy_v3",
    "hyperclovax",
    "internlm3",
    "iquestcoder",
    "laguna",
    "lfm2",
    "lfm2_moe",
    "llama",
    "llama4",
    "minicpm3",
    "minimax_m2",
    "minimax_m2_half",
    "ministral3",
    "mistral",
    "mixtral",
    "molmo2",  # molmo2.py:940, where rope_scaling_layers doesn't leave layers out
    "muse_glimmer",
    "nemotron",
    "olmo_hybrid",
    "olmoe",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "stablelm",
    "step3p5",  # step3p5.py:86-93, as transformers' class nests older configs of lists
    "voxtral",
    "zamba2",
)
#: is_neox_style=False: commandr.py:231, cohere2_moe.py:247, ernie45.py:51, ernie45_moe.py:276, glm4.py:115,
#: vllm/models/hy_v4/nvidia/attention.py:425.
_INTERLEAVED: Final = ("cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "glm4", "hy_v4")
#: These pass mrope_positions_factor (qwen3_vl.py:1818-1831, qwen3_vl_moe.py:77, qwen3_5.py:165,
#: vllm/models/qwen4_exp/nvidia/qsa.py:430): 1 where no video tokens are pruned.
_SECTIONS: Final = ("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp")
#: These don't: mrope.py enlarges the length to four times, over which the ramp is placed as well.
_SECTIONS_ENLARGED: Final = (
    "cosmos3_edge",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "paddleocr_vl",
    "qwen2_5_omni",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_omni_moe",
)
#: deepseek_v2.py:542-561, vllm/models/deepseek_v32/attention.py:154-163, AXK1.py:335-352, glm4_moe_lite.py:104,
#: longcat_flash.py:70.
_LATENT: Final = (
    "axk1",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "longcat_flash",
)
#: ernie45_vl_moe.py:155-162.
_PLAIN: Final = ("ernie4_5_vl_moe",)
#: models/registry.py:751-768, and classes without a model file whose attention transformers lets it replace.
_TRANSFORMERS: Final = (
    "arcee",
    "bitnet",
    "cwm",
    "dots1",
    "emu3",
    "flex_olmo",
    "glm",
    "gpt_neox",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hunyuan_vl",
    "jais2",
    "kolibri1",
    "kolibri1_unwindowed",
    "mellum",
    "ministral",
    "nanochat",
    "olmo",
    "olmo2",
    "olmo3",
    "persimmon",
    "phi",
    "seed_oss",
    "smollm3",
    "solar_open",
    "starcoder2",
    "vaultgemma",
)
#: No model file; lfm3 and granite_docling came with a transformers that 0.33 doesn't allow (5.21 and later),
#: and GPT-NeoX-Japanese's attention can't be replaced.
_ABSENT: Final = ("gpt_neox_japanese", "granite_docling", "lfm3")

WAYS: Final[Mapping[str, Way]] = MappingProxyType(
    {
        **dict.fromkeys(_WHOLE, "whole"),
        **dict.fromkeys(_INTERLEAVED, "interleaved"),
        **dict.fromkeys(_SECTIONS, "sections"),
        **dict.fromkeys(_SECTIONS_ENLARGED, "sections_enlarged"),
        **dict.fromkeys(_LATENT, "latent"),
        **dict.fromkeys(_PLAIN, "plain"),
        **dict.fromkeys(_TRANSFORMERS, "transformers"),
        **dict.fromkeys(_ABSENT, "absent"),
        "deepseek_v4": "compressed",
        "gpt_oss": "gpt_oss",
    }
)

#: Families whose text-only models lose their sections before anything reads them (models/config.py:980-992).
STRIPPED_ALONE: Final = frozenset({"qwen3_5", "qwen3_5_moe", "qwen4_exp"})
#: Wrappers with a model file, which builds the language model by the inner config. Of others nothing is known.
WRAPPERS_READ: Final = frozenset(
    {
        "audioflamingo3",
        "cohere2_vision",
        "exaone4_5",
        "glmasr",
        "granite_speech",
        "granite_speech_plus",
        "idefics3",
        "internvl",
        "kimi_k25",
        "lfm2_vl",
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "mistral3",
        "moss_transcribe_diarize",
        "paligemma",
        "qianfan_ocr",
        "qwen2_audio",
        "qwen3_asr",
        "shieldgemma2",
        "smolvlm",
        "voxtral",
    }
)

#: Where 0.29 and older differ. Model files that were given up for transformers' code after 0.29:
#: arcee.py, cwm (llama.py), gpt_neox.py:92, jais2.py:160, mellum.py:89, phi.py:112, seed_oss.py:158; glm.py:22.
_OLDER: Final[Mapping[str, Way]] = MappingProxyType(
    {
        **dict.fromkeys(("arcee", "cwm", "gpt_neox", "jais2", "mellum", "phi", "seed_oss"), "whole"),
        "glm": "interleaved",
        # get_rope has no mrope_positions_factor there: every such family's length is enlarged (mrope.py).
        **dict.fromkeys(_SECTIONS, "sections_enlarged"),
    }
)
#: Not read there: families of newer versions, and those that fell to transformers' code without a list.
_OLDER_UNREAD: Final = frozenset(
    {
        "bitnet",
        "cohere_compass",
        "deepseek_v4",
        "dots1",
        "emu3",
        "flint",
        "gpt_neox_japanese",
        "granite_docling",
        "helium",
        "hunyuan_vl",
        "kolibri1",
        "kolibri1_unwindowed",
        "lfm3",
        "molmo2",
        "nanochat",
        "persimmon",
        "solar_open",
        "step3p5",
    }
)
OLDER_WAYS: Final[Mapping[str, Way]] = MappingProxyType(
    {name: way for name, way in {**WAYS, **_OLDER}.items() if name not in _OLDER_UNREAD}
)
#: Families that had a model file in 0.18 and run through transformers' code in 0.29.
MOVED_BEFORE_0_29: Final = frozenset(
    {"flex_olmo", "hunyuan_v1_dense", "hunyuan_v1_moe", "olmo", "olmo2", "olmo3", "starcoder2"}
)
