"""What is known of each model family: where its numbers stand in config.json, and what was trained in.

Data only: one frozen row a family, no behaviour. A key that isn't spelled out in a row doesn't exist
for that family; a model type without a row is refused. The defaults are those of the family's
configuration class in transformers 5.23, which apply when a published config leaves the key out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from msgspec import Struct

from ctxextend.errors import RefusedError, UnknownNameError, nearest
from ctxextend.rope import Pairing

#: How positions reach attention.
Position = Literal["rope", "alibi", "learned", "sinusoidal", "none"]

#: What a scaling found in a checkpoint is: part of the training, or added afterwards.
Origin = Literal["trained", "bolted-on"]

#: How the family's settings are laid out in config.json. ``flat``: one rope for the whole model;
#: ``nested``: one a layer type, where the older keys speak of full attention alone; ``phi3``: flat,
#: and longrope has exactly three keys.
Form = Literal["flat", "nested", "phi3"]


class LayerPattern(Struct, frozen=True, kw_only=True):
    """Which layers do what, where config.json has no ``layer_types``.

    ``uniform``: all alike (all windowed where the window is on). ``every_nth_full``: full attention
    on layers ``period - 1, 2 * period - 1, ...``, windows elsewhere. ``from_max_window_layers``:
    windows from layer ``max_window_layers`` on. ``even_below_max_window_layers``: windows on even
    layers below it. ``no_rope_layers``: layers whose entry is 0 have no rope.
    """

    kind: Literal[
        "uniform",
        "every_nth_full",
        "from_max_window_layers",
        "even_below_max_window_layers",
        "no_rope_layers",
    ] = "uniform"
    period: int = 1
    period_key: str | None = None
    max_window_layers: int = 0
    #: What a layer with rope is called under ``no_rope_layers``.
    rope_label: str = "full_attention"


UNIFORM: Final = LayerPattern()


class Family(Struct, frozen=True, kw_only=True):
    """One row. Lengths count tokens; keys are those of config.json, first match wins."""

    name: str
    model_types: tuple[str, ...]
    position: Position = "rope"
    #: Why a model of this family can't be converted, where it can't.
    refusal: str | None = None
    #: Set: a key of config.json which, when true, turns rope into ALiBi.
    alibi_key: str | None = None
    #: Where the language model's settings stand; () is the top level.
    config_paths: tuple[tuple[str, ...], ...] = ((),)
    form: Form = "flat"
    #: The first is the one that the family's class reads, and is always written.
    theta_keys: tuple[str, ...] = ("rope_theta",)
    rope_theta: float = 10000.0
    #: The sliding layers' own base, where the family has one.
    local_theta_key: str | None = None
    local_rope_theta: float | None = None
    #: Empty for a family that rotates whole heads: the key does nothing good there.
    partial_rotary_keys: tuple[str, ...] = ()
    partial_rotary_factor: float = 1.0
    head_dim_key: str = "head_dim"
    head_dim: int | None = None
    #: transformers 5 fails on scaled ropes when config.json has no head_dim (``null`` counts as none).
    needs_head_dim: bool = False
    max_position_embeddings: int | None = None
    #: The class's own original length, which wins over the one inside the settings.
    original_max_position_embeddings: int | None = None
    pairing: Pairing = "half"
    #: Heads of queries and of the KV cache, where config.json is silent (None: queries as many as it
    #: says, the cache as many as queries).
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    #: The keys whose count of heads the KV cache has.
    kv_heads_keys: tuple[str, ...] = ("num_key_value_heads",)
    #: ``latent``: one compressed vector a token; ``falcon``: one head where multi_query says so.
    kv_cache: Literal["heads", "latent", "falcon"] = "heads"
    layer_pattern: LayerPattern = UNIFORM
    window_key: str = "sliding_window"
    window: int | None = None
    #: A key that must be true for the window to count.
    window_switch_key: str | None = None
    #: Layer labels that have no rope.
    unrotated: tuple[str, ...] = ()
    #: Softmax is scaled by YaRN's mscale_all_dim as well (latent attention).
    softmax_mscale: bool = False
    #: The scaling of the configuration class, where config.json is silent.
    default_scaling: Mapping[str, Any] | None = None
    #: transformers 4 takes exactly the keys type and factor in rope_scaling.
    older_form_of_two_keys: bool = False
    #: The scalings that the family's code reads; None: all.
    rope_types: tuple[str, ...] | None = None
    #: Whether a published scaling of a type was trained in. A type that isn't here is undecidable.
    origins: Mapping[str, Origin] = MappingProxyType({})
    #: Values of max_position_embeddings above what was trained, with what was trained.
    overstated: Mapping[int, int] = MappingProxyType({})
    #: A key that states the trained length where max_position_embeddings says less.
    trained_context_key: str | None = None
    #: Said by inspect: what a reader of this family's configs should know.
    remark: str | None = None


def _origins(**origins: Origin) -> Mapping[str, Origin]:
    return MappingProxyType(dict(origins))


#: Dynamic NTK changes nothing within the trained length; it is never trained in.
_ANY: Final = _origins(dynamic="bolted-on")
#: Qwen's cards tell readers to add yarn by hand: https://huggingface.co/Qwen/Qwen3-8B
_QWEN: Final = _origins(dynamic="bolted-on", yarn="bolted-on")
_TEXT: Final = (("text_config",), ())

_ROWS: Final = (
    Family(
        name="bloom",
        model_types=("bloom",),
        position="alibi",
    ),
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
        origins=_ANY,
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
        origins=_ANY,
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
        origins=_origins(dynamic="bolted-on", yarn="trained"),
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
        origins=_origins(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # https://huggingface.co/tiiuae/falcon-7b/blob/main/config.json
        name="falcon",
        model_types=("falcon",),
        alibi_key="alibi",
        max_position_embeddings=2048,
        kv_heads_keys=("num_kv_heads",),
        kv_cache="falcon",
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/google/gemma-7b/blob/main/config.json
        name="gemma",
        model_types=("gemma",),
        head_dim=256,
        max_position_embeddings=8192,
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/google/gemma-2-9b/blob/main/config.json
        name="gemma2",
        model_types=("gemma2",),
        head_dim=256,
        max_position_embeddings=8192,
        layer_pattern=LayerPattern(kind="every_nth_full", period=2),
        window=4096,
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/google/gemma-3-12b-it/blob/main/config.json: linear 8 on full attention
        name="gemma3",
        model_types=("gemma3", "gemma3_text"),
        config_paths=_TEXT,
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
        origins=_origins(dynamic="bolted-on", linear="trained"),
    ),
    Family(
        # https://huggingface.co/zai-org/GLM-4-9B-0414: its card adds yarn by hand
        name="glm4",
        model_types=("glm4",),
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        max_position_embeddings=131072,
        pairing="interleaved",
        origins=_QWEN,
    ),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        position="learned",
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
        origins=_ANY,
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
        origins=_origins(dynamic="bolted-on", yarn="trained"),
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
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/internlm/internlm3-8b-instruct/blob/main/config.json: dynamic 6.0, code of its own
        name="internlm3",
        model_types=("internlm3",),
        head_dim=128,
        max_position_embeddings=32768,
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json: llama3 8.0 over 8192
        name="llama",
        model_types=("llama",),
        max_position_embeddings=2048,
        origins=_origins(dynamic="bolted-on", llama3="trained"),
    ),
    Family(
        # https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct/blob/main/config.json
        name="llama4",
        model_types=("llama4", "llama4_text"),
        config_paths=_TEXT,
        rope_theta=500000.0,
        head_dim=128,
        max_position_embeddings=131072,
        pairing="interleaved",
        layer_pattern=LayerPattern(kind="no_rope_layers", period=4, rope_label="chunked_attention"),
        window_key="attention_chunk_size",
        window=8192,
        unrotated=("full_attention",),
        origins=_origins(dynamic="bolted-on", llama3="trained"),
        remark="layers with rope attend within chunks only; those without have their own temperature by position",
    ),
    Family(
        # https://huggingface.co/mistralai/Ministral-8B-Instruct-2410: full and sliding layers of one rope
        name="ministral",
        model_types=("ministral",),
        max_position_embeddings=131072,
        needs_head_dim=True,
        window=4096,
        origins=_origins(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # https://huggingface.co/mistralai/Ministral-3-8B-Instruct-2512/blob/main/config.json: yarn 16x over 16384
        name="ministral3",
        model_types=("ministral3",),
        config_paths=_TEXT,
        rope_theta=1000000.0,
        head_dim=128,
        max_position_embeddings=262144,
        default_scaling=MappingProxyType(
            {
                "rope_type": "yarn",
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        ),
        origins=_origins(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        # https://huggingface.co/mistralai/Mistral-7B-v0.1/blob/main/config.json
        name="mistral",
        model_types=("mistral",),
        config_paths=_TEXT,
        max_position_embeddings=131072,
        needs_head_dim=True,
        window=4096,
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json
        name="mixtral",
        model_types=("mixtral",),
        rope_theta=1000000.0,
        max_position_embeddings=131072,
        needs_head_dim=True,
        origins=_ANY,
    ),
    Family(
        name="mpt",
        model_types=("mpt",),
        position="alibi",
    ),
    Family(
        # https://huggingface.co/nvidia/Minitron-4B-Base/blob/main/config.json
        name="nemotron",
        model_types=("nemotron",),
        partial_rotary_keys=("partial_rotary_factor", "rope_percent", "rope_percentage"),
        partial_rotary_factor=0.5,
        max_position_embeddings=4096,
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/allenai/OLMo-7B-hf/blob/main/config.json
        name="olmo",
        model_types=("olmo",),
        max_position_embeddings=2048,
        older_form_of_two_keys=True,
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/allenai/OLMo-2-1124-7B/blob/main/config.json
        name="olmo2",
        model_types=("olmo2",),
        max_position_embeddings=2048,
        older_form_of_two_keys=True,
        origins=_ANY,
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
        origins=_origins(dynamic="bolted-on", yarn="trained"),
    ),
    Family(
        name="opt",
        model_types=("opt",),
        position="learned",
    ),
    Family(
        # https://huggingface.co/microsoft/phi-2/blob/main/config.json
        name="phi",
        model_types=("phi",),
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        max_position_embeddings=2048,
        origins=_ANY,
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
        origins=_origins(dynamic="bolted-on", longrope="trained"),
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json
        name="qwen2",
        model_types=("qwen2",),
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=28),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=_QWEN,
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/main/config.json
        name="qwen2_5_vl",
        model_types=("qwen2_5_vl", "qwen2_5_vl_text"),
        config_paths=_TEXT,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=80),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=_QWEN,
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
        origins=_QWEN,
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct/blob/main/config.json
        name="qwen2_vl",
        model_types=("qwen2_vl", "qwen2_vl_text"),
        config_paths=_TEXT,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        layer_pattern=LayerPattern(kind="from_max_window_layers", max_window_layers=80),
        window=4096,
        window_switch_key="use_sliding_window",
        origins=_QWEN,
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
        origins=_QWEN,
        overstated=MappingProxyType({40960: 32768}),
    ),
    Family(
        # https://huggingface.co/Qwen/Qwen3-30B-A3B: as Qwen3
        name="qwen3_moe",
        model_types=("qwen3_moe",),
        max_position_embeddings=32768,
        window=4096,
        window_switch_key="use_sliding_window",
        origins=_QWEN,
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
        origins=_QWEN,
    ),
    Family(
        # https://huggingface.co/stabilityai/stablelm-2-1_6b/blob/main/config.json
        name="stablelm",
        model_types=("stablelm",),
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.25,
        max_position_embeddings=4096,
        origins=_ANY,
    ),
    Family(
        # https://huggingface.co/bigcode/starcoder2-7b/blob/main/config.json
        name="starcoder2",
        model_types=("starcoder2",),
        max_position_embeddings=4096,
        origins=_ANY,
    ),
)

#: The rows by family name.
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({row.name: row for row in _ROWS})

_BY_MODEL_TYPE: Final = {model_type: row for row in _ROWS for model_type in row.model_types}


#: Wrappers around a language model of any kind: its own model type stands in text_config.
_WRAPPERS: Final = frozenset({"mistral3"})


def find_family(config: Mapping[str, Any], *, treat_as: str | None = None) -> Family:
    """The row for a config.json by its ``model_type``, or the one that the user names with ``treat_as``.

    Raises :class:`RefusedError` for a model type without a row, with the nearest names.
    """
    if treat_as is not None:
        return _named(treat_as)
    model_type = config.get("model_type")
    inner = config.get("text_config")
    if str(model_type) in _WRAPPERS and isinstance(inner, dict):
        model_type = inner.get("model_type")
    row = _BY_MODEL_TYPE.get(str(model_type))
    if row is None:
        near = nearest(str(model_type), _BY_MODEL_TYPE)
        raise RefusedError(
            f"nothing is known of the model type {model_type!r}",
            code="unknown-family",
            file="config.json",
            key="model_type",
            expected="a model type that 'ctxextend families' lists",
            found=repr(model_type),
            hint=(f"the nearest are {', '.join(near)}; " if near else "")
            + "if its rope is read as in one of them: --family NAME",
        )
    return row


def _named(name: str) -> Family:
    row = FAMILIES.get(name) or _BY_MODEL_TYPE.get(name)
    if row is None:
        raise UnknownNameError("family", name, FAMILIES)
    return row
