"""Families without a rope: a learned table of positions (GPT-2), or ALiBi (BLOOM, MPT).

Beside the sources of all rows (``shared.py``): MPT's settings that transformers' class passes over are those of the
models' own code (llm-foundry, ``modeling_mpt.py``), which llama.cpp computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ctxextend.exports.layout import Operation, SplitHeads, Transpose
from ctxextend.exports.row import Fixed, Key, Row, Settings, Sizes, TensorRule
from ctxextend.exports.shared import SIZES, TANH, TIED, Do, frozen, rule
from ctxextend.formats.gguf_keys import MAX_ALIBI_BIAS

#: ALiBi's largest bias (arXiv 2108.12409, section 3): the slopes of 8 heads are 2^-1 ... 2^-8. BLOOM has it built in.
_BIAS_MAX: Final = 8

_EPSILON: Final = Key(name="attention.layer_norm_epsilon", config=("layer_norm_epsilon",), type="FLOAT32")
#: Settings that none of these classes has.
_NONE: Final[Mapping[str, tuple[str, ...]]] = {"num_key_value_heads": (), "head_dim": ()}


def _transposed(_sizes: Sizes) -> Operation:
    return Transpose()


def _parts_apart(sizes: Sizes) -> Operation:
    return SplitHeads(heads=sizes.heads, parts=3)


def _four_widths(settings: Settings) -> Mapping[str, Any]:
    """Feed-forwards are four times as wide as the model, unless another width is said."""
    return {"intermediate_size": settings.whole("intermediate_size") or 4 * settings.needed("hidden_size")}


def _both(hf: str, gguf: str, *shape: str, do: tuple[Do, ...] = (), **bias: Any) -> tuple[TensorRule, ...]:
    """A weight, whose shape begins with its outputs, and its bias."""
    outputs = shape[-1] if _transposed in do else shape[0]
    kept = () if _transposed in do else do
    return (
        rule(f"{hf}.weight", f"{gguf}.weight", *shape, do=do),
        rule(f"{hf}.bias", f"{gguf}.bias", outputs, do=kept, **bias),
    )


_H: Final = "transformer.h.{bid}"
_BLK: Final = "blk.{bid}"
#: The names of a checkpoint that was saved without its head.
_HEADLESS: Final = tuple(
    (name, f"transformer.{name}") for name in ("h.", "wte.", "wpe.", "ln_f.", "word_embeddings.", "word_embeddings_")
)

GPT2: Final = Row(
    family="gpt2",
    architecture="gpt2",
    model_type="gpt2",
    model_class="GPT2LMHeadModel",
    keys=(*SIZES, _EPSILON),
    tensors=(
        rule("transformer.wte.weight", "token_embd.weight", "vocab", "hidden"),
        rule("transformer.wpe.weight", "position_embd.weight", "positions", "hidden"),
        *_both(f"{_H}.ln_1", f"{_BLK}.attn_norm", "hidden"),
        *_both(f"{_H}.attn.c_attn", f"{_BLK}.attn_qkv", "hidden", "qkv", do=(_transposed,)),
        *_both(f"{_H}.attn.c_proj", f"{_BLK}.attn_output", "hidden", "hidden", do=(_transposed,)),
        *_both(f"{_H}.ln_2", f"{_BLK}.ffn_norm", "hidden"),
        *_both(f"{_H}.mlp.c_fc", f"{_BLK}.ffn_up", "hidden", "ffn", do=(_transposed,)),
        *_both(f"{_H}.mlp.c_proj", f"{_BLK}.ffn_down", "ffn", "hidden", do=(_transposed,)),
        *_both("transformer.ln_f", "output_norm", "hidden"),
        rule("lm_head.weight", "output.weight", "vocab", "hidden", spared=TIED),
    ),
    defaults=frozen(
        vocab_size=50257,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
    ),
    fixed=(
        # llama.cpp has the tanh form alone; its own converter takes the exact one for it too.
        Fixed(key="activation_function", values=(*TANH, "gelu"), default="gelu_new"),
        Fixed(key="scale_attn_weights", values=(True,), default=True),
        Fixed(key="scale_attn_by_inverse_layer_idx", values=(False,), default=False),
        Fixed(key="add_cross_attention", values=(False,), default=False),
    ),
    prefixes=_HEADLESS,
    dropped=(r"\.attn\.(masked_)?bias$",),
    names={
        **_NONE,
        "hidden_size": ("n_embd", "hidden_size"),
        "num_hidden_layers": ("n_layer", "num_hidden_layers"),
        "num_attention_heads": ("n_head", "num_attention_heads"),
        "intermediate_size": ("n_inner",),
        "max_position_embeddings": ("n_positions", "max_position_embeddings"),
    },
    derived=_four_widths,
    position="learned",
)

BLOOM: Final = Row(
    family="bloom",
    architecture="bloom",
    model_type="bloom",
    model_class="BloomForCausalLM",
    keys=(*SIZES, Key(name="attention.head_count_kv", config=("num_attention_heads",)), _EPSILON),
    tensors=(
        rule("transformer.word_embeddings.weight", "token_embd.weight", "vocab", "hidden"),
        *_both("transformer.word_embeddings_layernorm", "token_embd_norm", "hidden"),
        *_both(f"{_H}.input_layernorm", f"{_BLK}.attn_norm", "hidden"),
        *_both(f"{_H}.self_attention.query_key_value", f"{_BLK}.attn_qkv", "qkv", "hidden", do=(_parts_apart,)),
        *_both(f"{_H}.self_attention.dense", f"{_BLK}.attn_output", "hidden", "hidden"),
        *_both(f"{_H}.post_attention_layernorm", f"{_BLK}.ffn_norm", "hidden"),
        *_both(f"{_H}.mlp.dense_h_to_4h", f"{_BLK}.ffn_up", "ffn", "hidden"),
        *_both(f"{_H}.mlp.dense_4h_to_h", f"{_BLK}.ffn_down", "hidden", "ffn"),
        *_both("transformer.ln_f", "output_norm", "hidden"),
        rule("lm_head.weight", "output.weight", "vocab", "hidden", spared=TIED),
    ),
    defaults=frozen(
        vocab_size=250880,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
    ),
    fixed=(Fixed(key="apply_residual_connection_post_layernorm", values=(False,), default=False),),
    prefixes=_HEADLESS,
    names={
        **_NONE,
        "hidden_size": ("hidden_size", "n_embed"),
        "num_hidden_layers": ("n_layer", "num_hidden_layers"),
        "num_attention_heads": ("n_head", "num_attention_heads"),
        "intermediate_size": (),
        "max_position_embeddings": ("seq_length",),
    },
    derived=_four_widths,
    position="alibi",
)


def _other_slopes(settings: Settings) -> str | None:
    bias = settings.get("alibi_bias_max")
    if bias == _BIAS_MAX:
        return None
    return (
        f"its slopes go by an alibi_bias_max of {bias}, as in the model's own code; transformers' class takes "
        f"{_BIAS_MAX} whatever is said"
    )


#: The models' own code has biases then; transformers' class never has, and writes none.
_BIASED: Final[Mapping[str, Any]] = {"when": ("no_bias", False), "optional": True}
_BLOCKS: Final = "transformer.blocks.{bid}"

MPT: Final = Row(
    family="mpt",
    architecture="mpt",
    model_type="mpt",
    model_class="MptForCausalLM",
    keys=(
        *SIZES,
        _EPSILON,
        Key(name="attention.clamp_kqv", config=("clip_qkv",), type="FLOAT32", optional=True),
        Key(name=MAX_ALIBI_BIAS, config=("alibi_bias_max",), type="FLOAT32", whole=True),
    ),
    tensors=(
        rule("transformer.wte.weight", "token_embd.weight", "vocab", "hidden"),
        *_both(f"{_BLOCKS}.norm_1", f"{_BLK}.attn_norm", "hidden", **_BIASED),
        *_both(f"{_BLOCKS}.attn.Wqkv", f"{_BLK}.attn_qkv", "qkv", "hidden", **_BIASED),
        *_both(f"{_BLOCKS}.attn.out_proj", f"{_BLK}.attn_output", "hidden", "hidden", **_BIASED),
        *_both(f"{_BLOCKS}.norm_2", f"{_BLK}.ffn_norm", "hidden", **_BIASED),
        *_both(f"{_BLOCKS}.ffn.up_proj", f"{_BLK}.ffn_up", "ffn", "hidden", **_BIASED),
        *_both(f"{_BLOCKS}.ffn.down_proj", f"{_BLK}.ffn_down", "hidden", "ffn", **_BIASED),
        *_both("transformer.norm_f", "output_norm", "hidden", **_BIASED),
        rule("lm_head.weight", "output.weight", "vocab", "hidden", spared=TIED),
    ),
    defaults=frozen(
        vocab_size=50368,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=16,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
        no_bias=True,
        alibi_bias_max=_BIAS_MAX,
    ),
    fixed=(
        # Without it the models' own code has a learned table, and transformers' class ALiBi all the same.
        Fixed(key="alibi", values=(True,), default=True),
        # llama.cpp b11549 loads such norms, and aborts at the first token: it reshapes queries that aren't contiguous.
        Fixed(key="qk_ln", values=(False,), default=False),
        Fixed(key="attn_type", values=("multihead_attention",), default="multihead_attention"),
        Fixed(key="softmax_scale", values=(None,), default=None),
        Fixed(key="prefix_lm", values=(False,), default=False),
        Fixed(key="rope", values=(False, None), default=None),
        Fixed(key="logit_scale", values=(None,), default=None),
        Fixed(key="norm_type", values=("low_precision_layernorm", "layernorm"), default="low_precision_layernorm"),
    ),
    remarks=(_other_slopes,),
    names={
        **_NONE,
        "hidden_size": ("d_model", "hidden_size"),
        "num_hidden_layers": ("n_layers", "num_hidden_layers"),
        "num_attention_heads": ("n_heads", "num_attention_heads"),
        "intermediate_size": (),
        "max_position_embeddings": ("max_seq_len",),
        **{
            key: (f"attn_config.{key}",)
            for key in (
                *("alibi", "alibi_bias_max", "clip_qkv", "qk_ln"),
                *("attn_type", "softmax_scale", "prefix_lm", "rope"),
            )
        },
    },
    derived=_four_widths,
    position="alibi",
)
