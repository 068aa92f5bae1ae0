"""What a row says of a model family: where its numbers stand in config.json, and what was trained in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from msgspec import Struct

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


def origins_of(**origins: Origin) -> Mapping[str, Origin]:
    """Origins by scaling type, as a row holds them."""
    return MappingProxyType(dict(origins))


#: Dynamic NTK changes nothing within the trained length; it is never trained in.
ANY: Final = origins_of(dynamic="bolted-on")
#: As ANY, and its cards tell readers to add yarn by hand, as Qwen's do: https://huggingface.co/Qwen/Qwen3-8B
BY_HAND: Final = origins_of(dynamic="bolted-on", yarn="bolted-on")
TEXT_CONFIG: Final = (("text_config",), ())
