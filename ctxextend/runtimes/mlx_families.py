"""How MLX-LM's model of each family builds its rope: read from 0.32.2 (``mlx_lm/models``), and run (tests/reference).

A family that isn't here was not established. Required keys are those without a default in the model's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct


class MlxModel(Struct, frozen=True, kw_only=True):
    """What one model file makes of the rope settings.

    ``form``: ``older`` reads ``rope_scaling`` and the top level's base; ``older_first`` falls back to
    ``rope_parameters``, and fails without a base in either; ``newer`` reads ``rope_parameters`` alone;
    ``newer_theta`` takes the base from there, or else from the top level, and the scaling from
    ``rope_scaling``; ``by_layer`` has one dictionary a layer type in ``rope_parameters``.
    """

    form: Literal["older", "older_first", "newer", "newer_theta", "by_layer"] = "older"
    #: Its attention builds a plain rope and never looks for a scaling.
    plain: bool = False
    #: The scalings that it takes; None: all that rope_utils.py knows.
    types: tuple[str, ...] | None = None
    #: Where its default base, or its default share of a head, isn't that of the family's transformers class.
    theta: float | None = None
    partial: float | None = None
    #: The windowed layers' own base, where the model has one.
    local_theta_key: str | None = None
    #: Keys of the language model's config without which its arguments fail, or its rope is another one.
    needs: tuple[str, ...] = ()
    #: Keys without which it fails where config.json has a ``rope_scaling`` at all.
    needs_in_scaling: tuple[str, ...] = ()
    #: Keys without which it fails in ``rope_parameters``.
    needs_in_newer: tuple[str, ...] = ()
    #: ``type`` doesn't win over ``rope_type``, as it does in rope_utils.py:299.
    type_loses: bool = False
    #: Why its rope is another one than the model was trained with.
    broken: str | None = None


_THETA: Final = ("rope_theta",)
_THETA_AND_SCALING: Final = ("rope_theta", "rope_scaling")
_ALL_OF_DEEPSEEK: Final = ("default", "dynamic", "linear", "llama3", "yarn")
#: For the query's temperature by position.
_TEMPERED: Final = ("llama_4_scaling_beta", "original_max_position_embeddings")
_PLAIN: Final = MlxModel(plain=True)
_PLAIN_NEEDS_THETA: Final = MlxModel(plain=True, needs=_THETA)
_LATENT: Final = MlxModel(types=_ALL_OF_DEEPSEEK)

MODELS: Final[Mapping[str, MlxModel]] = MappingProxyType(
    {
        "afmoe": MlxModel(),
        "apertus": MlxModel(needs=_THETA),
        "bitnet": MlxModel(theta=10000.0),
        "cohere": MlxModel(plain=True, theta=8000000.0),
        "cohere2": MlxModel(plain=True, theta=50000.0),
        # Its own class, whatever the type says (deepseek_v2.py:178-201).
        "deepseek_v2": MlxModel(types=("yarn",)),
        "deepseek_v3": _LATENT,
        "deepseek_v32": _LATENT,
        "dots1": MlxModel(needs=_THETA),
        "ernie4_5": _PLAIN_NEEDS_THETA,
        "ernie4_5_moe": _PLAIN_NEEDS_THETA,
        "exaone4": MlxModel(needs=_THETA_AND_SCALING),
        "exaone4_unwindowed": MlxModel(needs=_THETA_AND_SCALING),
        "exaone_moe": MlxModel(form="newer_theta", theta=1000000.0),
        "falcon_h1": MlxModel(theta=100000000000.0),
        "gemma": _PLAIN,
        "gemma2": _PLAIN,
        "gemma3": MlxModel(local_theta_key="rope_local_base_freq"),
        "gemma3n": MlxModel(
            plain=True, local_theta_key="rope_local_base_freq", needs=("rope_theta", "rope_local_base_freq")
        ),
        "gemma4": MlxModel(form="by_layer"),
        "gemma4_unified": MlxModel(form="by_layer"),
        # glm.py:58 never looks for partial_rotary_factor.
        "glm": MlxModel(plain=True, broken="its model of this family turns whole heads, which it was not trained with"),
        "glm4": MlxModel(plain=True, needs=("rope_theta", "partial_rotary_factor")),
        "glm4_moe": MlxModel(plain=True, needs=("rope_theta", "rope_scaling", "partial_rotary_factor")),
        "glm4_moe_lite": MlxModel(types=_ALL_OF_DEEPSEEK, theta=1000000.0),
        "glm_moe_dsa": MlxModel(
            form="newer", types=_ALL_OF_DEEPSEEK, needs=("rope_parameters",), needs_in_newer=("rope_theta",)
        ),
        "gpt_neox": MlxModel(plain=True, needs=("rotary_emb_base", "rotary_pct")),
        # No length is handed on (gpt_oss.py:77-82).
        "gpt_oss": MlxModel(types=("default", "linear", "llama3", "yarn")),
        "granite": MlxModel(needs=_THETA),
        "granitemoe": MlxModel(needs=_THETA),
        "granitemoehybrid": MlxModel(form="newer_theta", plain=True),
        "helium": _PLAIN_NEEDS_THETA,
        "hunyuan_v1_dense": MlxModel(plain=True, needs_in_scaling=("alpha", "factor", "type")),
        "internlm3": MlxModel(
            types=("default", "dynamic", "linear"), needs_in_scaling=("factor", "rope_type"), type_loses=True
        ),
        "iquestcoder": MlxModel(),
        # Without it every layer has a whole plain rope of 10000 (laguna.py:66-71).
        "laguna": MlxModel(form="by_layer", needs=("rope_parameters",)),
        "lfm2": MlxModel(form="newer_theta", plain=True),
        "lfm2_moe": MlxModel(form="newer_theta", plain=True),
        "llama": MlxModel(),
        "llama4": MlxModel(types=_ALL_OF_DEEPSEEK, needs=_THETA_AND_SCALING),
        "longcat_flash": MlxModel(types=_ALL_OF_DEEPSEEK, needs=_THETA),
        # Linear is built as a plain rope (mellum.py:41).
        "mellum": MlxModel(
            form="by_layer", types=("default", "dynamic", "llama3", "longrope", "yarn"), needs=("rope_parameters",)
        ),
        "mimo_v2_flash": MlxModel(
            plain=True,
            local_theta_key="swa_rope_theta",
            needs=("rope_theta", "swa_rope_theta", "partial_rotary_factor"),
        ),
        "minimax": MlxModel(plain=True, needs=("rope_theta", "rotary_dim")),
        "minimax_m2": MlxModel(plain=True, needs=("rope_theta", "rotary_dim")),
        "minimax_m2_half": MlxModel(plain=True, needs=("rope_theta", "rotary_dim")),
        "minimax_m3_vl": MlxModel(form="newer"),
        # Its own class takes everything for longrope, with lists of ones (minicpm3.py:86-95).
        "minicpm3": MlxModel(types=("longrope",), theta=1000000.0, needs=("rope_scaling",)),
        "ministral3": MlxModel(form="newer", needs=("rope_parameters",), needs_in_newer=("rope_theta", *_TEMPERED)),
        "mistral4": MlxModel(form="newer", theta=100000.0, needs=("rope_parameters",), needs_in_newer=_TEMPERED),
        "mistral": MlxModel(),
        "mixtral": _PLAIN,
        "muse_glimmer": MlxModel(form="newer_theta", plain=True, theta=500000.0),
        "nanochat": _PLAIN,
        "nemotron": MlxModel(types=("default",), needs_in_scaling=("factor",)),
        "olmo2": MlxModel(),
        "olmo3": MlxModel(needs=_THETA),
        "olmo_hybrid": MlxModel(form="newer_theta", plain=True),
        "olmoe": MlxModel(),
        "phi": MlxModel(plain=True, partial=0.4),
        "phi3": MlxModel(types=("default", "longrope"), needs_in_scaling=("long_factor", "type")),
        "phimoe": MlxModel(
            types=("default",),
            theta=10000.0,
            needs_in_scaling=("short_factor", "long_factor", "short_mscale", "long_mscale"),
        ),
        "qwen2": MlxModel(theta=1000000.0),
        "qwen2_5_vl": MlxModel(theta=1000000.0),
        "qwen2_moe": MlxModel(types=("default",), theta=1000000.0, needs_in_scaling=("factor", "type")),
        "qwen2_vl": MlxModel(theta=1000000.0),
        "qwen3": MlxModel(form="older_first"),
        "qwen3_5": MlxModel(form="newer", theta=100000.0),
        "qwen3_5_moe": MlxModel(form="newer", theta=100000.0),
        "qwen3_moe": _PLAIN_NEEDS_THETA,
        "qwen3_next": MlxModel(needs=("rope_theta", "partial_rotary_factor")),
        "qwen3_vl": MlxModel(form="older_first"),
        "qwen3_vl_moe": _PLAIN_NEEDS_THETA,
        "seed_oss": MlxModel(),
        "smollm3": MlxModel(theta=10000.0),
        "solar_open": MlxModel(plain=True, needs=("rope_theta", "partial_rotary_factor")),
        "stablelm": MlxModel(plain=True, needs=("rope_theta", "partial_rotary_factor")),
        "starcoder2": MlxModel(plain=True, theta=100000.0),
    }
)

#: The model types that it has a file for, or another name of one (utils.py:48-61), among those known here.
MODEL_TYPES: Final = frozenset(
    {
        "afmoe",
        "apertus",
        "bailing_hybrid",
        "bitnet",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "falcon_h1",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma3n",
        "gemma4",
        "gemma4_text",
        "gemma4_unified",
        "glm",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "helium",
        "hunyuan_v1_dense",
        "internlm3",
        "iquestcoder",
        "kimi_k2",
        "kimi_k25",
        "kimi_linear",
        "laguna",
        "lfm2",
        "lfm2_moe",
        "llama",
        "llama4",
        "llama4_text",
        "llava",
        "longcat_flash",
        "mellum",
        "mimo_v2_flash",
        "minicpm3",
        "minimax",
        "minimax_m2",
        "minimax_m3_vl",
        "ministral3",
        "mistral",
        "mistral3",
        "mistral4",
        "mixtral",
        "muse_glimmer",
        "muse_spark",
        "nanochat",
        "nemotron",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "olmoe",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_5_vl",
        "qwen2_moe",
        "qwen2_vl",
        "qwen3",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl",
        "qwen3_vl_moe",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "step3p5",
    }
)
