"""Where one value of config.json makes another model of a family: which row is read then, or why none is.

Source: the modeling file of transformers 5.23 that each entry names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import UNSET, Struct

from ctxextend.families.row import ANY, Family


class Variant(Struct, frozen=True, kw_only=True):
    """An exception to the row called ``family``, by what stands at ``key`` in the language model's config.

    ``null``: the key is there and is null. ``is``: it is ``value``. ``set``: it is there, and neither null,
    false, 0 nor empty. ``other``: it isn't ``value``, or isn't there. ``holds``: it is a list that holds
    ``value``. ``partial``: it is a list of fewer entries than there are layers.
    """

    family: str
    key: tuple[str, ...]
    when: Literal["null", "is", "set", "other", "holds", "partial"]
    value: Any = None
    #: The row that is read then; None: no row is.
    use: str | None = None
    #: Why no row is read.
    refusal: str | None = None
    #: There is no rope at all then.
    without_rope: bool = False

    @property
    def condition(self) -> str:
        """When it applies, in the notation of the key."""
        key = ".".join(self.key)
        match self.when:
            case "null":
                return f"{key} is null"
            case "is":
                return f"{key} is {self.value}"
            case "set":
                return f"{key} is set"
            case "other":
                return f"{key} isn't {self.value}"
            case "holds":
                return f"{key} holds {self.value}"
            case "partial":
                return f"{key} leaves layers out"

    def applies(self, text: Mapping[str, Any]) -> bool:
        """Whether a language model's config is of this kind."""
        found: Any = text
        for key in self.key:
            found = found.get(key, UNSET) if isinstance(found, Mapping) else UNSET
        match self.when:
            case "null":
                return found is None
            case "is":
                return bool(found == self.value)
            case "set":
                return bool(found) and found is not UNSET
            case "other":
                return bool(found != self.value)
            case "holds":
                return isinstance(found, list) and self.value in found
            case "partial":
                layers = text.get("num_hidden_layers")
                return isinstance(found, list) and isinstance(layers, int) and len(found) < layers


_DENSE: Final = (
    "its dense layers have full attention with a rope, the others of full attention have none: one label for two"
)
_LAYERWISE: Final = "rope_scaling_layers lets a scaling count for some layers only: one config, two ropes"
_ROTARY_DIM: Final = "its rotary_dim is another than the 64 of published checkpoints"
_MSCALE: Final = (
    "its short_mscale and long_mscale replace the temperature of its longrope, and no other scaling may stand there"
)

VARIANTS: Final = (
    # modeling_cohere2_moe.py, Cohere2MoeAttention: force_rope.
    Variant(family="cohere2_moe", key=("first_k_dense_replace",), when="set", refusal=_DENSE),
    Variant(family="cohere2_moe", key=("mlp_layer_types",), when="holds", value="dense", refusal=_DENSE),
    # modeling_exaone4.py, Exaone4Attention: rope if the model has no window, or the layer has one.
    Variant(family="exaone4", key=("sliding_window",), when="null", use="exaone4_unwindowed"),
    Variant(family="kolibri1", key=("sliding_window",), when="null", use="kolibri1_unwindowed"),
    # modeling_granitemoehybrid.py, GraniteMoeHybridModel: rotary_emb is None otherwise.
    Variant(
        family="granitemoehybrid",
        key=("position_embedding_type",),
        when="other",
        value="rope",
        without_rope=True,
    ),
    # configuration_minimax_m2.py: published checkpoints state the rotated share so, over heads of 128.
    Variant(family="minimax_m2", key=("rotary_dim",), when="is", value=64, use="minimax_m2_half"),
    Variant(family="minimax_m2", key=("rotary_dim",), when="set", refusal=_ROTARY_DIM),
    # modeling_molmo2.py, Molmo2TextModel: rope_types.
    Variant(family="molmo2", key=("rope_scaling_layers",), when="partial", refusal=_LAYERWISE),
    # modeling_olmo_hybrid.py, OlmoHybridModel: "Released ckpt don't use any ROPE".
    Variant(family="olmo_hybrid", key=("rope_parameters", "rope_theta"), when="null", without_rope=True),
    # modeling_phimoe.py, PhimoeRotaryEmbedding.forward.
    *(
        Variant(family="phimoe", key=(key, "long_mscale"), when="set", refusal=_MSCALE)
        for key in ("rope_scaling", "rope_parameters")
    ),
    # modeling_zamba2.py: its attention turns nothing otherwise.
    Variant(family="zamba2", key=("use_mem_rope",), when="other", value=True, without_rope=True),
)

#: Rows that no model type leads to by itself.
ROWS: Final = (
    Family(
        name="exaone4_unwindowed",
        model_types=("exaone4",),
        max_position_embeddings=2048,
        origins=ANY,
        remark="without a sliding_window every layer has a rope",
    ),
    Family(
        name="kolibri1_unwindowed",
        model_types=("kolibri1",),
        head_dim=128,
        max_position_embeddings=262144,
        origins=ANY,
        only_transformers_5=True,
        remark="without a sliding_window every layer has a rope",
    ),
    Family(
        name="minimax_m2_half",
        model_types=("minimax_m2",),
        only_transformers_5=True,
        rope_theta=5000000.0,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        head_dim=128,
        max_position_embeddings=196608,
        origins=ANY,
        remark="rotary_dim states the rotated share: 64 of 128",
    ),
    Family(
        # configuration_voxtral.py: what its class sets where text_config is silent.
        name="voxtral",
        model_types=("llama",),
        rope_theta=100000000.0,
        head_dim=128,
        max_position_embeddings=131072,
        origins=ANY,
        remark="a Llama inside Voxtral, whose class has defaults of its own",
    ),
)
