"""How SGLang's code of each family builds its rope: the wheel of 0.5.23, one row a family.

Model files are those of ``sglang/srt/models``, configuration classes those of ``sglang/srt/configs`` and of the
transformers that it requires (5.19.0). A family that isn't here was neither read nor run.
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
#: ``fails``: whatever the settings. ``absent``: neither.
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
    "fails",
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
#: granitemoe.py:264, hunyuan_v3.py:382, persimmon.py:92.
_PLAIN: Final = (
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

_UNSHARDED: Final = "it has no class for this family, and refuses to divide transformers' own between GPUs"
#: Why a family fails in any case (models/transformers.py:247; ernie45_moe_vl.py:171).
FAILS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ernie4_5_vl_moe": "its class wants a list of experts' numbers, which the configuration class refuses",
        "flex_olmo": _UNSHARDED,
        "glm": _UNSHARDED,
    }
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
        **dict.fromkeys(FAILS, "fails"),
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
#: Whose top level's original length counts: the model file writes it into the dictionary (apertus.py, arcee.py,
#: exaone4.py, exaone_moe.py, granite.py, hunyuan.py, llama.py and what is built of it), or the class of transformers
#: declares the key (phi3).
TOP_ORIGINAL: Final = frozenset(
    {
        "apertus",
        "arcee",
        "exaone4",
        "exaone4_unwindowed",
        "exaone_moe",
        "granite",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "internlm3",
        "iquestcoder",
        "llama",
        "ministral3",
        "mistral",
        "phi3",
        "voxtral",
    }
)
#: Model files that rotate a share of each head by the top level's partial_rotary_factor, which transformers' code of
#: these families ignores (afmoe.py:333, apertus.py:150, arcee.py:138, falcon_h1.py:139, and what has llama.py:199).
SHARED_HEADS: Final = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "ernie4_5_moe",
        "falcon_h1",
        "internlm3",
        "iquestcoder",
        "llama",
        "ministral3",
        "mistral",
        "voxtral",
    }
)
#: A model file that rotates as many dimensions as rotary_dim says, all without it (minimax_m2.py:673).
ROTARY_DIM: Final = frozenset({"minimax_m2", "minimax_m2_half"})
#: Configuration classes of its own that know rope_scaling alone: transformers' base class then puts rope_parameters
#: over it (afmoe.py, cohere2_moe.py, falcon_h1.py, granitemoehybrid.py and qwen3_5.py of configs).
NEWER_FIRST: Final = frozenset({"afmoe", "cohere2_moe", "falcon_h1", "granitemoehybrid", "qwen3_5", "qwen3_5_moe"})
#: Of these, whose model files look for the base in the dictionary (afmoe.py, falcon_h1.py).
NEEDS_THETA: Final = frozenset({"afmoe", "falcon_h1"})
#: Latent attention whose softmax scale has no factor of yarn's (minicpm3.py).
UNSCALED_SOFTMAX: Final = frozenset({"minicpm3"})
#: Classes that the server reads within their wrapper's config alone: their heads' sizes differ by the layer
#: (utils/hf_transformers/config.py:267).
NEEDS_WRAPPER: Final = frozenset({"gemma4", "gemma4_unified"})
#: A model file that takes the top level's original length, or else this one, for the model's (ministral3.py:126).
FIXED_LENGTH: Final[Mapping[str, int]] = MappingProxyType({"ministral3": 16384})
#: Model files that look their layer types up in rope_parameters, which a flat rope_scaling replaces (mellum.py:353,
#: and gemma4_causal.py:387, which gives every layer a plain rope of base 10000 then).
NEEDS_LABELS: Final = frozenset({"gemma4", "gemma4_unified", "mellum"})
#: A class of transformers that wants both temperatures of longrope, whatever the type (PhimoeConfig).
NEEDS_MSCALES: Final = frozenset({"phimoe"})
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
