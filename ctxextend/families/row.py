"""What a row says of a model family: where its numbers stand in config.json, and what was trained in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from msgspec import Struct

from ctxextend.families.positions import Alibi, PositionTable
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
    on layers ``period - 1, 2 * period - 1, ...``, ``rest_label`` elsewhere. ``cycle``: the labels of
    ``cycle``, over and over. ``from_max_window_layers``: windows from layer ``max_window_layers`` on.
    ``even_below_max_window_layers``: windows on even layers below it. ``no_rope_layers``: layers whose
    entry is 0 have no rope.
    """

    kind: Literal[
        "uniform",
        "every_nth_full",
        "cycle",
        "from_max_window_layers",
        "even_below_max_window_layers",
        "no_rope_layers",
    ] = "uniform"
    period: int = 1
    period_key: str | None = None
    max_window_layers: int = 0
    #: What a layer with rope is called under ``no_rope_layers``.
    rope_label: str = "full_attention"
    #: What ``every_nth_full`` calls the other layers. Windows only count where the window is on; any other
    #: label (``linear_attention``, ``conv``) stands as it is.
    rest_label: str = "sliding_attention"
    #: ``every_nth_full`` begins with full attention: layers ``0, period, 2 * period, ...`` have it.
    full_first: bool = False
    #: The labels that ``cycle`` repeats.
    cycle: tuple[str, ...] = ()
    #: Labels of the leading layers, and of the last one, whatever the pattern says of them.
    first: tuple[str, ...] = ()
    last: str | None = None
    #: The class gives the last layer its label even where ``layer_types`` says otherwise.
    last_forced: bool = False
    #: Keys of a list with one label a layer, first match wins; older labels are renamed as transformers 5 does.
    types_keys: tuple[str, ...] = ("layer_types",)
    #: A list of labels (or codes) may go on past the layers, for those that predict further tokens.
    surplus: bool = False
    #: A key with one code a layer, where there are no labels, and what each code means; ``rest_label`` for others.
    codes_key: str | None = None
    codes: Mapping[int, str] = MappingProxyType({})
    #: A key with the indices of the layers of full attention, where there are no labels; ``rest_label`` elsewhere.
    full_indices_key: str | None = None
    #: A key with one window a layer (none or 0: full attention), where there are no labels.
    windows_key: str | None = None


UNIFORM: Final = LayerPattern()


class LabelRope(Struct, frozen=True, kw_only=True):
    """The rope of one label in a family that has a dictionary a layer type, as its class sets it by itself."""

    #: Where config.json has no dictionary for this label: the base (the first of ``theta_keys`` that is there, a
    #: number or a list with one a layer, else ``rope_theta``), the type and the rotated share.
    rope_theta: float = 10000.0
    theta_keys: tuple[str, ...] = ()
    rope_type: Literal["default", "proportional"] = "default"
    partial_rotary_factor: float | None = None
    #: Keys of the rotated share (a number, or a list with one a layer), or else two keys whose ratio it is.
    partial_keys: tuple[str, ...] = ()
    partial_ratio: tuple[str, str] | None = None
    #: The base of a dictionary without one, where no key of config.json states it; None: the class fails on it.
    unsaid_theta: float | None = None
    #: Dimensions a head of these layers, where they differ from the others': the key, and the class's default.
    head_dim_key: str | None = None
    head_dim: int | None = None
    #: KV heads of these layers, where they differ, and a key that must be true for that to count.
    kv_heads_key: str | None = None
    kv_heads: int | None = None
    kv_heads_switch_key: str | None = None


#: What a ``rope_scaling`` means to a class with a dictionary a layer type. ``ignored``: nothing.
#: ``replaces``: it stands in for ``rope_parameters``. ``updates``: it is laid over the dictionary of each of
#: ``flat_labels``. ``fills``: as ``updates``, but only where ``rope_parameters`` isn't complete.
#: ``refused``: the class reads it in a way that isn't expressed here.
OlderScaling = Literal["ignored", "replaces", "updates", "fills", "refused"]


class Family(Struct, frozen=True, kw_only=True):
    """One row. Lengths count tokens; keys are those of config.json, first match wins."""

    name: str
    model_types: tuple[str, ...]
    position: Position = "rope"
    #: Why a model of this family can't be converted, where it can't.
    refusal: str | None = None
    #: Set: a key of config.json which, when true, turns rope into ALiBi.
    alibi_key: str | None = None
    #: What there is instead of a rope; of a family with ``alibi_key``, where that is true.
    positions: PositionTable | Alibi | None = None
    #: Where the language model's settings stand; () is the top level.
    config_paths: tuple[tuple[str, ...], ...] = ((),)
    form: Form = "flat"
    #: Of a ``nested`` family: its labels with what the class sets for each. Empty for Gemma 3's form, where
    #: ``rope_theta`` and ``rope_scaling`` speak of full attention and ``local_rope_theta`` of the windows.
    labels: Mapping[str, LabelRope] = MappingProxyType({})
    #: The label whose dictionary a layer type reads, where it isn't its own name.
    label_of: Mapping[str, str] = MappingProxyType({})
    older_scaling: OlderScaling = "ignored"
    #: The labels that a flat ``rope_scaling`` (or ``rope_parameters``) speaks of; without any, the class fails on it.
    flat_labels: tuple[str, ...] = ()
    #: Keys that a flat dictionary gets where it hasn't got them.
    flat_defaults: Mapping[str, Any] = MappingProxyType({})
    #: What the class does with a ``rope_parameters`` that lacks a label: it fails, fills that label in, or sets
    #: all of them by itself.
    incomplete: Literal["fails", "filled", "rebuilt"] = "fails"
    #: The class reads the newer form (``rope_parameters``) alone, or takes harm from the older one beside it.
    newer_form_only: bool = False
    #: A key that must be true for the class to take longrope: transformers 5.23 validates it by a head_dim of the
    #: whole model, which fails where layers differ in it unless this is said.
    longrope_switch: str | None = None
    #: The class came with transformers 5: no release of 4 has it.
    only_transformers_5: bool = False
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
    #: Another key that the class takes for max_position_embeddings.
    length_key: str | None = None
    #: Keys that count layers, and how many layers of attention each of those counts for.
    layer_counts: tuple[tuple[str, int], ...] = (("num_hidden_layers", 1),)
    #: The class's own original length, which wins over the one inside the settings.
    original_max_position_embeddings: int | None = None
    pairing: Pairing = "half"
    #: A key that says false where pairs are halves of a head after all.
    interleave_key: str | None = None
    #: Keys of the settings that describe the model rather than its scaling, beside those of every family: kept.
    kept_keys: tuple[str, ...] = ()
    #: Sizes that the class has by itself (num_hidden_layers, hidden_size, num_attention_heads ...), where a
    #: wrapper's text_config leaves them out.
    nested_sizes: Mapping[str, int] = MappingProxyType({})
    #: Heads of queries and of the KV cache, where config.json is silent (None: queries as many as it
    #: says, the cache as many as queries).
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    #: The keys whose count of heads the KV cache has.
    kv_heads_keys: tuple[str, ...] = ("num_key_value_heads",)
    #: ``latent``: one compressed vector a token; ``falcon``: one head where multi_query says so; ``unstated``:
    #: no size is claimed (encoders keep none; some caches don't follow from config.json alone).
    kv_cache: Literal["heads", "latent", "falcon", "unstated"] = "heads"
    #: How many of the last layers keep no cache of their own: the key, and the class's default.
    kv_shared_key: str | None = None
    kv_shared: int = 0
    #: The key (and the class's default) of what an index keeps a token beside a latent cache.
    kv_index: tuple[str, int] | None = None
    layer_pattern: LayerPattern = UNIFORM
    #: Empty where the window isn't one key's number.
    window_key: str = "sliding_window"
    window: int | None = None
    #: A key that must be true for the window to count.
    window_switch_key: str | None = None
    #: Layer labels that have no rope (of a family with ``labels``: unless config.json gives them one).
    unrotated: tuple[str, ...] = ()
    #: Layer labels that the window doesn't hold back.
    unwindowed: tuple[str, ...] = ("full_attention",)
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
    #: A "dynamic" with an ``alpha`` is none: the base is rope_theta * alpha ** (d / (d - 2)), whatever the length.
    static_alpha: bool = False
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
