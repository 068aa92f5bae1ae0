"""How SGLang's code of each family builds its rope: read from the wheel of 0.5.23, one row a family.

Model files are those of ``sglang/srt/models``, configuration classes those of ``sglang/srt/configs``,
which were run with the transformers that it pins (5.19.0). A family that isn't here was not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

#: ``whole``: get_rope takes the whole dictionary, pairs half-split. ``interleaved``: the same, pairs
#: interleaved. ``sections``: positions in three rows (``mrope_section``). ``latent``: latent attention,
#: which takes every type for yarn. ``plain``: no scaling is read. ``full_only``: layers of full attention
#: take their dictionary whole, the others a plain rope. ``type_only``: the type without its keys.
#: ``gemma3``: transformers' own functions. ``transformers``: no model file, so transformers' code.
#: ``absent``: neither.
Way = Literal[
    "whole",
    "interleaved",
    "sections",
    "latent",
    "plain",
    "full_only",
    "type_only",
    "gemma3",
    "transformers",
    "absent",
]

_WHOLE: Final = (
    "afmoe",
    "apertus",
    "arcee",
    "exaone4",
    "exaone4_unwindowed",
    "exaone_moe",
    "falcon_h1",
    "glm4_moe",  # glm4_moe.py:278
    "gpt_oss",
    "granite",
    "granitemoehybrid",
    "hrm_text",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "internlm3",
    "iquestcoder",
    "lfm2",
    "lfm2_moe",
    "llama",
    "llama4",
    "mellum",  # mellum.py:354 takes the layer type's dictionary
    "minicpm3",
    "minimax_m2",
    "minimax_m2_half",
    "ministral3",
    "mistral",
    "olmoe",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "voxtral",
)
#: is_neox_style=False: commandr.py:200, cohere2_moe.py:195, ernie4.py:168, glm4.py:180.
_INTERLEAVED: Final = ("cohere", "cohere2", "cohere2_moe", "ernie4_5_moe", "glm4")
_SECTIONS: Final = (
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
)
#: deepseek_v2.py:2065; glm4_moe.py:1284 and glm4_moe_lite.py:83 build on it.
_LATENT: Final = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")
#: mixtral.py:174, gemma.py:130, gemma2.py:154, olmo.py:87, phi.py:69, stablelm.py:146, starcoder2.py:103,
#: ernie45_moe_vl.py:124, granitemoe.py:264, hunyuan_v3.py:382, persimmon.py:92.
_PLAIN: Final = (
    "ernie4_5_vl_moe",
    "gemma",
    "gemma2",
    "granitemoe",
    "granitemoeshared",
    "hy_v3",
    "mixtral",
    "olmo",
    "persimmon",
    "phi",
    "stablelm",
    "starcoder2",
)
#: olmo2.py:133-144, gemma3n_causal.py:387-407.
_FULL_ONLY: Final = ("gemma3n", "olmo2", "olmo3")
#: gemma4_causal.py:388-424.
_TYPE_ONLY: Final = ("gemma4", "gemma4_unified")
#: Classes without a model file whose attention transformers lets it replace (model_loader/utils.py:111-190).
_TRANSFORMERS: Final = (
    "bitnet",
    "cwm",
    "dots1",
    "ernie4_5",
    "flex_olmo",
    "glm",
    "gpt_neox",
    "helium",
    "hyperclovax",
    "jais2",
    "ministral",
    "nanochat",
    "nemotron",
    "seed_oss",
    "smollm3",
    "solar_open",
    "vaultgemma",
)
#: No model file, and no attention that can be replaced, or no class in transformers 5.19.
_ABSENT: Final = (
    "bamba",
    "falcon",
    "gpt_neox_japanese",
    "granite_docling",
    "lfm3",
    "olmo_hybrid",
    "zamba2",
)

WAYS: Final[Mapping[str, Way]] = MappingProxyType(
    {
        **dict.fromkeys(_WHOLE, "whole"),
        **dict.fromkeys(_INTERLEAVED, "interleaved"),
        **dict.fromkeys(_SECTIONS, "sections"),
        **dict.fromkeys(_LATENT, "latent"),
        **dict.fromkeys(_PLAIN, "plain"),
        **dict.fromkeys(_FULL_ONLY, "full_only"),
        **dict.fromkeys(_TYPE_ONLY, "type_only"),
        **dict.fromkeys(_TRANSFORMERS, "transformers"),
        **dict.fromkeys(_ABSENT, "absent"),
        "gemma3": "gemma3",
    }
)

#: Model files that truncate the base to a whole number (mixtral.py:178, starcoder2.py:107, llama4.py:294,
#: granitemoe.py:268, phimoe.py:303).
WHOLE_THETA: Final = frozenset({"granitemoe", "granitemoeshared", "llama4", "mixtral", "phimoe", "starcoder2"})
#: Model files that look for an attribute which transformers 5's class doesn't have, and so always take this base
#: (exaone4.py:232, exaone_moe.py:436).
FIXED_THETA: Final[Mapping[str, float]] = MappingProxyType(
    dict.fromkeys(("exaone4", "exaone4_unwindowed", "exaone_moe"), 1000000.0)
)
#: Configuration classes of its own that know the older form alone, with their default base (qwen3_next.py:198-236,
#: olmo3.py). The base class checks a flat rope_parameters beside it before the lengths are known, and fails.
OLDER_FORM: Final[Mapping[str, float]] = MappingProxyType({"olmo3": 10000.0, "qwen3_next": 10000.0})
#: A class of its own whose base is the top level's alone, with its default (granitemoehybrid.py:158, 224).
TOP_THETA: Final[Mapping[str, float]] = MappingProxyType({"granitemoehybrid": 10000.0})
#: A class of its own that fails where config.json has neither dictionary (qwen3_5.py:25-34 of configs, then get_rope).
NEEDS_SETTINGS: Final = frozenset({"qwen3_5", "qwen3_5_moe"})
#: Classes of its own whose dictionary transformers doesn't complete: a missing original length stays missing.
INCOMPLETE: Final = frozenset({"olmo3", "qwen3_5", "qwen3_5_moe", "qwen3_next"})
#: Wrappers with a model file, which builds the language model by the inner config. Of others nothing is known.
WRAPPERS_READ: Final = frozenset(
    {
        "cohere2_vision",
        "glmasr",
        "kimi_k25",
        "lfm2_vl",
        "llava",
        "mistral3",
        "qwen2_audio",
        "qwen3_asr",
        "shieldgemma2",
        "voxtral",
    }
)
