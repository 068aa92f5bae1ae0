"""Families whose classes hold one dictionary of rope settings a layer type (transformers 5.23).

The numbers are the configuration classes' own defaults. Origins are ``ANY`` unless a published config
was read: what was trained in can be said with ``--base``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ctxextend.families import latent
from ctxextend.families.row import ANY, TEXT_CONFIG, Family, LabelRope, LayerPattern

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"

#: Model types that can't be converted, and why.
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("t5gemma2", "t5gemma2_decoder", "t5gemma2_encoder", "t5gemma2_text"),
            "its encoder and its decoder have rope settings of their own (encoder.text_config and decoder), which "
            "have to be extended together; a conversion here edits one language model",
        ),
    }
)


def _labels(**ropes: LabelRope) -> Mapping[str, LabelRope]:
    return MappingProxyType(dict(ropes))


#: Gemma 4's: windows turn their heads whole; full attention has larger ones, of which a quarter turns.
_GEMMA4: Final = _labels(
    full_attention=LabelRope(
        rope_theta=1000000.0,
        rope_type="proportional",
        partial_rotary_factor=0.25,
        head_dim_key="global_head_dim",
        head_dim=512,
        kv_heads_key="num_global_key_value_heads",
        kv_heads_switch_key="attention_k_eq_v",
    ),
    sliding_attention=LabelRope(rope_theta=10000.0),
)
#: Set, a value that differs by layer can be read of the whole config (integrations/heterogeneity of transformers 5.23).
_BY_LAYER: Final = "allow_global_per_layer_attribute_access"
_EVERY_SIXTH_AND_LAST: Final = LayerPattern(kind="every_nth_full", period=6, last=FULL, last_forced=True)
#: ModernBERT's: the first layer and every third after it have full attention.
_MODERNBERT: Final = _labels(
    full_attention=LabelRope(rope_theta=160000.0, theta_keys=("global_rope_theta",), unsaid_theta=160000.0),
    sliding_attention=LabelRope(rope_theta=10000.0, theta_keys=("local_rope_theta",), unsaid_theta=10000.0),
)
_THIRDS: Final = LayerPattern(kind="every_nth_full", period=3, period_key="global_attn_every_n_layers", full_first=True)
_ALL_FULL: Final = LayerPattern(kind="cycle", cycle=(FULL,))

_NESTED: Final = (
    Family(
        # Its layers of full attention have no rope, as their null in rope_parameters says.
        name="beam",
        model_types=("beam",),
        form="nested",
        labels=_labels(full_attention=LabelRope(), sliding_attention=LabelRope()),
        newer_form_only=True,
        only_transformers_5=True,
        head_dim=128,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        layer_pattern=LayerPattern(kind="every_nth_full", period=6, last=FULL),
        window=512,
        unrotated=(FULL,),
        origins=ANY,
        remark="layers of full attention have no rope; those with rope see a sliding window only",
    ),
    Family(
        # Its class has no base of its own and fails without rope_parameters; 10000 stands in for it here.
        name="cohere_compass",
        model_types=("cohere_compass", "cohere_compass_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        labels=_labels(full_attention=LabelRope(), sliding_attention=LabelRope()),
        newer_form_only=True,
        only_transformers_5=True,
        max_position_embeddings=8192,
        layer_pattern=_ALL_FULL,
        window=4096,
        origins=ANY,
    ),
    Family(
        # CSA and HCA layers share the rope "compress"; layers of windows alone have "main"
        # (modeling_deepseek_v4.py, DeepseekV4Attention). A flat dictionary is compress's, and its yarn has no
        # temperature.
        name="deepseek_v4",
        model_types=("deepseek_v4",),
        form="nested",
        labels=_labels(
            main=LabelRope(
                theta_keys=("rope_theta",),
                partial_rotary_factor=0.125,
                partial_keys=("partial_rotary_factor",),
                partial_ratio=("qk_rope_head_dim", "head_dim"),
                unsaid_theta=10000.0,
            ),
            compress=LabelRope(
                rope_theta=160000.0,
                theta_keys=("compress_rope_theta",),
                partial_rotary_factor=0.125,
                partial_keys=("partial_rotary_factor",),
                partial_ratio=("qk_rope_head_dim", "head_dim"),
                unsaid_theta=10000.0,
            ),
        ),
        label_of=MappingProxyType(
            {
                "compressed_sparse_attention": "compress",
                "heavily_compressed_attention": "compress",
                SLIDING: "main",
            }
        ),
        older_scaling="replaces",
        flat_labels=("compress",),
        flat_defaults=MappingProxyType({"attention_factor": 1.0}),
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=160000.0,
        local_rope_theta=10000.0,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.125,
        head_dim=512,
        max_position_embeddings=1048576,
        pairing="interleaved",
        kv_cache="unstated",
        layer_pattern=LayerPattern(
            kind="cycle",
            cycle=("heavily_compressed_attention", "compressed_sparse_attention"),
            first=("heavily_compressed_attention", "heavily_compressed_attention"),
            surplus=True,
            codes_key="compress_ratios",
            codes=MappingProxyType({0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}),
        ),
        window=128,
        unwindowed=("compress",),
        origins=ANY,
    ),
    Family(
        name="diffusion_gemma",
        model_types=("diffusion_gemma", "diffusion_gemma_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        labels=_GEMMA4,
        longrope_switch=_BY_LAYER,
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=1000000.0,
        local_rope_theta=10000.0,
        partial_rotary_factor=0.25,
        head_dim=256,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        kv_cache="unstated",
        layer_pattern=_EVERY_SIXTH_AND_LAST,
        window=512,
        origins=ANY,
    ),
    Family(
        # head_dim counts rotated dimensions here: the class sets the share from qk_rope_head_dim by itself.
        name="dots3_note",
        model_types=("dots3_note", "dots3_note_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        labels=_labels(
            indexed_attention=LabelRope(
                rope_theta=80000000.0,
                theta_keys=("rope_theta",),
                unsaid_theta=80000000.0,
            ),
            sliding_attention=LabelRope(
                rope_theta=50000.0,
                theta_keys=("swa_rope_theta",),
                unsaid_theta=80000000.0,
                head_dim_key="swa_qk_rope_head_dim",
                head_dim=64,
            ),
        ),
        label_of=MappingProxyType({FULL: "indexed_attention"}),
        longrope_switch=_BY_LAYER,
        older_scaling="refused",
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=80000000.0,
        local_rope_theta=50000.0,
        head_dim_key="qk_rope_head_dim",
        head_dim=64,
        max_position_embeddings=524288,
        pairing="interleaved",
        kv_cache="unstated",
        layer_pattern=LayerPattern(
            kind="cycle",
            cycle=(SLIDING, "indexed_attention", SLIDING, SLIDING),
            first=("indexed_attention", "indexed_attention"),
        ),
        window=512,
        unwindowed=("indexed_attention",),
        origins=ANY,
    ),
    Family(
        name="embedding_gemma2",
        model_types=("embedding_gemma2", "embedding_gemma2_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        labels=_labels(
            full_attention=LabelRope(rope_theta=1000000.0, head_dim_key="global_head_dim", head_dim=512),
            sliding_attention=LabelRope(),
        ),
        longrope_switch=_BY_LAYER,
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=1000000.0,
        local_rope_theta=10000.0,
        head_dim=256,
        max_position_embeddings=262144,
        kv_cache="unstated",
        layer_pattern=LayerPattern(
            kind="every_nth_full", period=6, period_key="sliding_window_pattern", last=FULL, last_forced=True
        ),
        window=512,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/google/gemma-3n-E4B-it: gated; the class's defaults are that model's
        name="gemma3n",
        model_types=("gemma3n", "gemma3n_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        rope_theta=1000000.0,
        local_theta_key="rope_local_base_freq",
        local_rope_theta=10000.0,
        head_dim=256,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        kv_shared_key="num_kv_shared_layers",
        kv_shared=15,
        layer_pattern=LayerPattern(kind="every_nth_full", period=5),
        window=512,
        origins=ANY,
    ),
    Family(
        name="gemma4",
        model_types=("gemma4", "gemma4_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        labels=_GEMMA4,
        longrope_switch=_BY_LAYER,
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=1000000.0,
        local_rope_theta=10000.0,
        partial_rotary_factor=0.25,
        head_dim=256,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        kv_shared_key="num_kv_shared_layers",
        layer_pattern=_EVERY_SIXTH_AND_LAST,
        window=512,
        origins=ANY,
    ),
    Family(
        name="gemma4_unified",
        model_types=("gemma4_unified", "gemma4_unified_text"),
        config_paths=TEXT_CONFIG,
        form="nested",
        labels=_GEMMA4,
        longrope_switch=_BY_LAYER,
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=1000000.0,
        local_rope_theta=10000.0,
        partial_rotary_factor=0.25,
        head_dim=256,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=262144,
        kv_shared_key="num_kv_shared_layers",
        layer_pattern=_EVERY_SIXTH_AND_LAST,
        window=1024,
        origins=ANY,
    ),
    Family(
        name="laguna",
        model_types=("laguna",),
        form="nested",
        labels=_labels(
            full_attention=LabelRope(rope_theta=500000.0, partial_rotary_factor=0.5),
            sliding_attention=LabelRope(partial_rotary_factor=1.0),
        ),
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=500000.0,
        local_rope_theta=10000.0,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        head_dim=128,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        layer_pattern=_ALL_FULL,
        window=512,
        origins=ANY,
    ),
    Family(
        # Two of four layers are convolutions: neither a rope nor a cache that grows.
        name="lfm3",
        model_types=("lfm3",),
        form="nested",
        labels=_labels(
            full_attention=LabelRope(
                rope_theta=1000000.0, rope_type="proportional", partial_rotary_factor=0.5, unsaid_theta=1000000.0
            ),
            sliding_attention=LabelRope(unsaid_theta=1000000.0),
        ),
        older_scaling="replaces",
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=1000000.0,
        local_rope_theta=10000.0,
        partial_rotary_factor=0.5,
        head_dim=128,
        num_key_value_heads=4,
        max_position_embeddings=128000,
        layer_pattern=LayerPattern(kind="cycle", cycle=(SLIDING, "conv", FULL, "conv"), first=("conv",)),
        window=256,
        unrotated=("conv",),
        origins=ANY,
    ),
    Family(
        name="mellum",
        model_types=("mellum",),
        form="nested",
        labels=_labels(full_attention=LabelRope(rope_theta=500000.0), sliding_attention=LabelRope()),
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=500000.0,
        local_rope_theta=10000.0,
        head_dim=128,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        layer_pattern=_ALL_FULL,
        window=1024,
        origins=ANY,
    ),
    Family(
        # Values have another size than keys, and windows other heads: no size of a cache is claimed.
        name="mimo_v2_flash",
        model_types=("mimo_v2_flash",),
        form="nested",
        labels=_labels(
            full_attention=LabelRope(rope_theta=5000000.0, partial_rotary_factor=0.334),
            sliding_attention=LabelRope(partial_rotary_factor=0.334),
        ),
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=5000000.0,
        local_rope_theta=10000.0,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.334,
        head_dim=192,
        max_position_embeddings=131072,
        kv_cache="unstated",
        layer_pattern=LayerPattern(kind="every_nth_full", period=6, first=(FULL,)),
        window=129,
        origins=ANY,
    ),
    Family(
        # https://huggingface.co/answerdotai/ModernBERT-base/blob/main/config.json
        name="modernbert",
        model_types=("modernbert",),
        form="nested",
        labels=_MODERNBERT,
        older_scaling="updates",
        flat_labels=(FULL, SLIDING),
        incomplete="filled",
        newer_form_only=True,
        rope_theta=160000.0,
        local_rope_theta=10000.0,
        max_position_embeddings=8192,
        kv_cache="unstated",
        layer_pattern=_THIRDS,
        window_key="local_attention",
        window=128,
        origins=ANY,
    ),
    Family(
        name="modernbert_decoder",
        model_types=("modernbert-decoder",),
        form="nested",
        labels=_MODERNBERT,
        older_scaling="updates",
        flat_labels=(FULL, SLIDING),
        incomplete="filled",
        newer_form_only=True,
        rope_theta=160000.0,
        local_rope_theta=10000.0,
        max_position_embeddings=8192,
        kv_heads_keys=(),
        layer_pattern=_THIRDS,
        window_key="local_attention",
        window=128,
        origins=ANY,
    ),
    Family(
        # Every second layer of windows sees 1024 tokens, the others sliding_window.
        name="neomme",
        model_types=("neomme",),
        form="nested",
        labels=_labels(
            full_attention=LabelRope(
                rope_theta=1000000.0,
                theta_keys=("rope_theta",),
                partial_rotary_factor=0.25,
                unsaid_theta=1000000.0,
            ),
            sliding_attention=LabelRope(theta_keys=("rope_theta",), partial_rotary_factor=1.0, unsaid_theta=10000.0),
        ),
        incomplete="filled",
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=1000000.0,
        local_rope_theta=10000.0,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.25,
        head_dim=64,
        max_position_embeddings=16384,
        kv_cache="unstated",
        layer_pattern=LayerPattern(kind="every_nth_full", period=6, last=FULL),
        window=1024,
        window_key="",
        origins=ANY,
    ),
    Family(
        # Its first configs have lists: a base and a rotated share a layer, and rope_scaling for full attention alone.
        name="step3p5",
        model_types=("step3p7", "step3p5"),
        config_paths=TEXT_CONFIG,
        form="nested",
        labels=_labels(
            full_attention=LabelRope(
                theta_keys=("rope_theta",), partial_keys=("partial_rotary_factors",), unsaid_theta=10000.0
            ),
            sliding_attention=LabelRope(
                theta_keys=("rope_theta",), partial_keys=("partial_rotary_factors",), unsaid_theta=10000.0
            ),
        ),
        older_scaling="fills",
        flat_labels=(FULL,),
        incomplete="rebuilt",
        newer_form_only=True,
        only_transformers_5=True,
        partial_rotary_keys=("partial_rotary_factor",),
        head_dim=128,
        kv_heads_keys=("num_key_value_heads", "num_attention_groups"),
        num_key_value_heads=8,
        max_position_embeddings=128000,
        layer_pattern=LayerPattern(kind="cycle", cycle=(FULL,), surplus=True),
        origins=ANY,
    ),
    Family(
        name="ultrabert",
        model_types=("ultrabert",),
        form="nested",
        labels=_labels(
            full_attention=LabelRope(rope_theta=2560000.0, theta_keys=("rope_theta",), unsaid_theta=10000.0),
            sliding_attention=LabelRope(theta_keys=("rope_theta",), unsaid_theta=10000.0),
        ),
        older_scaling="replaces",
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=2560000.0,
        local_rope_theta=10000.0,
        max_position_embeddings=32768,
        kv_cache="unstated",
        layer_pattern=LayerPattern(kind="every_nth_full", period=3, windows_key="attention_windows"),
        window=128,
        origins=ANY,
    ),
    Family(
        # Every layer is attention beside a recurrent state, whose size isn't counted here.
        name="zaya",
        model_types=("zaya",),
        form="nested",
        labels=_labels(
            hybrid=LabelRope(rope_theta=5000000.0, partial_rotary_factor=0.5),
            hybrid_sliding=LabelRope(partial_rotary_factor=0.5),
        ),
        newer_form_only=True,
        only_transformers_5=True,
        rope_theta=5000000.0,
        local_rope_theta=10000.0,
        partial_rotary_keys=("partial_rotary_factor",),
        partial_rotary_factor=0.5,
        head_dim=128,
        max_position_embeddings=131072,
        kv_cache="unstated",
        layer_pattern=LayerPattern(kind="cycle", cycle=("hybrid",)),
        unwindowed=("hybrid",),
        origins=ANY,
    ),
)

ROWS: Final = (*_NESTED, *latent.ROWS)
