"""Families with biased layer norms."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ctxextend.exports.layout import Operation, SplitHeads
from ctxextend.exports.row import Fixed, Key, Row, Sizes, TensorRule
from ctxextend.exports.shared import (
    ATTENTION,
    COMMON,
    DROPPED,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    HEAD_DIM,
    LAST_NORM,
    NORMS,
    OWN_HEAD,
    SILU,
    SIZES,
    TANH,
    TIED,
    Do,
    frozen,
    layer,
    qkv_biases,
    rule,
    whole_heads,
)

_NORM_BIASES: Final = (
    layer("input_layernorm.bias", "attn_norm.bias", "hidden"),
    layer("post_attention_layernorm.bias", "ffn_norm.bias", "hidden"),
    rule("model.norm.bias", "output_norm.bias", "hidden"),
)

#: What a block with a parallel residual hasn't got.
_SECOND: Final = ("ffn_norm.weight", "ffn_norm.bias")

_SEQUENTIAL: Final = ("use_parallel_residual", False)


def _layer_norm(config: str) -> Key:
    return Key(name="attention.layer_norm_epsilon", config=(config,), type="FLOAT32")


_PARALLEL: Final = Key(name="use_parallel_residual", config=("use_parallel_residual",), type="BOOL")

STABLELM: Final = Row(
    family="stablelm",
    architecture="stablelm",
    model_type="stablelm",
    model_class="StableLmForCausalLM",
    keys=(*COMMON, _layer_norm("layer_norm_eps"), _PARALLEL),
    tensors=(
        EMBEDDING,
        *(replace(r, when=_SEQUENTIAL) if r.gguf.endswith(_SECOND) else r for r in (*NORMS, *_NORM_BIASES)),
        *ATTENTION,
        *qkv_biases("use_qkv_bias"),
        layer(
            "self_attn.q_layernorm.norms.{xid}.weight",
            "attn_q_norm.weight",
            "head_dim",
            count="heads",
            when=("qk_layernorm", True),
        ),
        layer(
            "self_attn.k_layernorm.norms.{xid}.weight",
            "attn_k_norm.weight",
            "head_dim",
            count="kv_heads",
            when=("qk_layernorm", True),
        ),
        *FEED_FORWARD,
        LAST_NORM,
        *OWN_HEAD,
    ),
    defaults=frozen(
        layer_norm_eps=1e-5,
        num_key_value_heads=32,
        use_parallel_residual=False,
        use_qkv_bias=False,
        qk_layernorm=False,
        tie_word_embeddings=False,
    ),
    fixed=(SILU,),
    refusals=(whole_heads,),
)

STARCODER2: Final = Row(
    family="starcoder2",
    architecture="starcoder2",
    model_type="starcoder2",
    model_class="Starcoder2ForCausalLM",
    keys=(*COMMON, _layer_norm("norm_epsilon")),
    tensors=(
        EMBEDDING,
        *NORMS,
        *_NORM_BIASES,
        *ATTENTION,
        *qkv_biases(None),
        layer("self_attn.o_proj.bias", "attn_output.bias", "hidden"),
        layer("mlp.c_fc.weight", "ffn_up.weight", "ffn", "hidden"),
        layer("mlp.c_fc.bias", "ffn_up.bias", "ffn"),
        layer("mlp.c_proj.weight", "ffn_down.weight", "hidden", "ffn"),
        layer("mlp.c_proj.bias", "ffn_down.bias", "hidden"),
        LAST_NORM,
        HEAD,
    ),
    defaults=frozen(norm_epsilon=1e-5, num_key_value_heads=2, tie_word_embeddings=True),
    fixed=(
        Fixed(key="hidden_act", values=TANH, default="gelu_pytorch_tanh"),
        Fixed(key="use_bias", values=(True,), default=True),
    ),
    refusals=(whole_heads,),
)


def _parts_apart(sizes: Sizes) -> Operation:
    return SplitHeads(heads=sizes.heads, parts=3)


def _neox(hf: str, gguf: str, *shape: str, do: tuple[Do, ...] = ()) -> TensorRule:
    return rule(f"gpt_neox.layers.{{bid}}.{hf}", f"blk.{{bid}}.{gguf}", *shape, do=do)


GPT_NEOX: Final = Row(
    family="gpt_neox",
    architecture="gptneox",
    model_type="gpt_neox",
    model_class="GPTNeoXForCausalLM",
    keys=(*SIZES, *HEAD_DIM, _layer_norm("layer_norm_eps"), _PARALLEL),
    tensors=(
        rule("gpt_neox.embed_in.weight", "token_embd.weight", "vocab", "hidden"),
        _neox("input_layernorm.weight", "attn_norm.weight", "hidden"),
        _neox("input_layernorm.bias", "attn_norm.bias", "hidden"),
        _neox("attention.query_key_value.weight", "attn_qkv.weight", "qkv", "hidden", do=(_parts_apart,)),
        _neox("attention.query_key_value.bias", "attn_qkv.bias", "qkv", do=(_parts_apart,)),
        _neox("attention.dense.weight", "attn_output.weight", "hidden", "q"),
        _neox("attention.dense.bias", "attn_output.bias", "hidden"),
        _neox("post_attention_layernorm.weight", "ffn_norm.weight", "hidden"),
        _neox("post_attention_layernorm.bias", "ffn_norm.bias", "hidden"),
        _neox("mlp.dense_h_to_4h.weight", "ffn_up.weight", "ffn", "hidden"),
        _neox("mlp.dense_h_to_4h.bias", "ffn_up.bias", "ffn"),
        _neox("mlp.dense_4h_to_h.weight", "ffn_down.weight", "hidden", "ffn"),
        _neox("mlp.dense_4h_to_h.bias", "ffn_down.bias", "hidden"),
        rule("gpt_neox.final_layer_norm.weight", "output_norm.weight", "hidden"),
        rule("gpt_neox.final_layer_norm.bias", "output_norm.bias", "hidden"),
        rule("embed_out.weight", "output.weight", "vocab", "hidden"),
        rule("gpt_neox.embed_in.weight", "output.weight", "vocab", "hidden", when=(TIED, True)),
    ),
    defaults=frozen(layer_norm_eps=1e-5, use_parallel_residual=True, tie_word_embeddings=False),
    fixed=(
        # llama.cpp has the tanh form alone; its own converter takes the exact one for it too.
        Fixed(key="hidden_act", values=("gelu", *TANH), default="gelu"),
        Fixed(key="attention_bias", values=(True, None), default=True),
    ),
    refusals=(whole_heads,),
    dropped=(*DROPPED, r"\.attention\.(masked_)?bias$"),
)
