"""How the classes of transformers 4 look at ``rope_scaling``: one row a family, by minor version.

Established by running both ends of every range of ``transformers_4`` on a grid of configs and taking
what fits all answers. A family without a row, and a version without a manner, was not established.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

#: What a class makes of the dictionary. Through the shared functions of ``modeling_rope_utils.py``: ``type-wins``
#: (``type`` overwrites ``rope_type``), ``either`` (``rope_type``, else ``type``), ``rope-type`` (fails without
#: ``rope_type``), ``llama3`` (takes any dictionary for that type). ``two-keys``: exactly ``type`` (linear or dynamic)
#: and ``factor``. ``three-keys``: exactly ``type`` (longrope) and the two lists. ``ignored``: a plain rope, always.
Manner = Literal["either", "type-wins", "rope-type", "ignored", "two-keys", "three-keys", "llama3"]

#: By family: the minor version of 4 that its class came with, and each that its manner changed with; None: unknown.
CLASSES: Final[Mapping[str, tuple[tuple[int, Manner | None], ...]]] = MappingProxyType(
    {
        "apertus": ((56, None),),
        "arcee": ((53, "type-wins"),),
        "aria": ((48, "type-wins"),),
        "bamba": ((48, "either"),),
        "bitnet": ((52, "either"),),
        "chameleon": ((43, None),),
        "cohere": ((43, "ignored"), (45, "rope-type")),
        "cohere2": ((48, "rope-type"),),
        "csm": ((52, None),),
        "deepseek_v2": ((54, "type-wins"),),
        "deepseek_v3": ((51, "type-wins"),),
        "diffllama": ((48, "type-wins"),),
        "doge": ((54, "type-wins"),),
        "dots1": ((53, "either"),),
        "emu3": ((48, None),),
        "ernie4_5": ((54, "type-wins"),),
        "ernie4_5_moe": ((54, None),),
        "evolla": ((54, None),),
        "exaone4": ((54, "either"),),
        "exaone4_unwindowed": ((54, "either"),),
        "falcon": ((43, "two-keys"), (45, "either")),
        "falcon_h1": ((53, "either"),),
        "flex_olmo": ((57, "type-wins"),),
        "gemma": ((43, "ignored"), (48, "either")),
        "gemma2": ((43, "ignored"), (48, "either")),
        "gemma3": ((50, "rope-type"),),
        "gemma3n": ((53, None), (56, "rope-type")),
        "glm": ((46, "ignored"), (48, "either")),
        "glm4": ((51, "either"),),
        "glm4_moe": ((54, "type-wins"),),
        "glm4v": ((53, "type-wins"),),
        "glm4v_moe": ((56, "type-wins"),),
        "gpt_neox": ((43, "two-keys"), (45, "type-wins")),
        "gpt_neox_japanese": ((43, "ignored"), (45, "type-wins")),
        "gpt_oss": ((55, "type-wins"),),
        "granite": ((45, "rope-type"),),
        "granitemoe": ((45, "rope-type"),),
        "granitemoehybrid": ((52, "rope-type"),),
        "granitemoeshared": ((49, "rope-type"),),
        "helium": ((49, "either"),),
        "hunyuan_v1_dense": ((56, None),),
        "hunyuan_v1_moe": ((56, None),),
        "idefics": ((43, None),),
        "jetmoe": ((43, "ignored"), (48, "either")),
        "kyutai_speech_to_text": ((53, "either"),),
        "lfm2": ((54, "either"),),
        "llama": ((43, "type-wins"),),
        "llama4": ((51, "llama3"),),
        "longcat_flash": ((57, None),),
        "minimax": ((53, None),),
        "ministral": ((57, "either"),),
        "mistral": ((43, "ignored"), (48, "either")),
        "mixtral": ((43, "ignored"), (48, "either")),
        "mllama": ((45, None),),
        "modernbert": ((48, None),),
        "modernbert_decoder": ((54, None),),
        "moshi": ((46, "ignored"), (48, "either")),
        "nemotron": ((44, "ignored"),),
        "olmo": ((43, "two-keys"),),
        "olmo2": ((47, "two-keys"),),
        "olmo3": ((57, "rope-type"),),
        "olmoe": ((45, "type-wins"),),
        "persimmon": ((43, "two-keys"), (45, "type-wins")),
        "phi": ((43, "two-keys"), (45, "type-wins")),
        "phi3": ((43, "three-keys"),),
        "phi4_multimodal": ((51, "three-keys"),),
        "phimoe": ((46, None),),
        "qwen2": ((43, "ignored"), (45, "type-wins")),
        "qwen2_5_omni": ((52, None),),
        "qwen2_5_vl": ((49, "type-wins"),),
        "qwen2_moe": ((43, "ignored"), (45, "type-wins")),
        "qwen2_vl": ((45, "type-wins"),),
        "qwen3": ((51, "type-wins"),),
        "qwen3_moe": ((51, "type-wins"),),
        "qwen3_next": ((57, "rope-type"),),
        "qwen3_omni_moe": ((57, None),),
        "qwen3_vl": ((57, None),),
        "qwen3_vl_moe": ((57, None),),
        "seed_oss": ((56, "type-wins"),),
        "smollm3": ((53, "type-wins"),),
        "stablelm": ((43, "two-keys"), (45, "type-wins")),
        "starcoder2": ((43, "ignored"), (45, "type-wins")),
        "vaultgemma": ((57, "either"),),
        "voxtral": ((43, None),),
        "zamba2": ((49, None),),
    }
)

#: Families whose classes came with transformers 5, where their row doesn't say so.
ONLY_IN_5: Final = frozenset({"internlm3", "ministral3"})

#: Families whose ``type`` may be ``mrope``: sections of a plain rope.
SECTIONS: Final = frozenset({"qwen2_5_vl", "qwen2_vl"})
#: The minor version from which the settings may stand in text_config.
NESTED_SINCE: Final[Mapping[str, int]] = MappingProxyType({"qwen2_5_vl": 52, "qwen2_vl": 52})
#: The minor version from which Phi-3's class reads partial_rotary_factor.
PHI3_PARTIAL_SINCE: Final = 48
#: Families whose attention reads the dictionary's factor, and scales its softmax, whatever the type.
FACTOR_ALWAYS: Final = frozenset({"deepseek_v3"})
#: Bases of the classes of 4 that those of 5 don't have, where config.json is silent.
ROPE_THETA: Final[Mapping[str, float]] = MappingProxyType(
    {
        "cohere": 10000.0,
        "falcon_h1": 100000.0,
        "kyutai_speech_to_text": 100000.0,
        "olmo3": 10000.0,
        "persimmon": 25000.0,
    }
)
#: Families whose class takes a head_dim of null for none, from 4.48 on.
NULL_HEAD_DIM: Final = frozenset({"llama", "mistral", "mixtral"})
#: The manners whose functions take a partial_rotary_factor of any config (Olmo's from 4.48 on).
WITH_PARTIAL: Final[frozenset[Manner]] = frozenset({"either", "type-wins", "rope-type", "llama3", "two-keys"})
