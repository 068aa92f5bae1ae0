"""What many rows share: rules for tensors, keys, and settings that architectures have built in.

Sources of all rows: names, keys and layouts are those of llama.cpp's converter (``conversion/*.py``), what an
architecture loads and has built in that of ``src/models/*.cpp`` (both b11434), class defaults those of
transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from ctxextend.exports.layout import HeadRows, Operation, Reshape
from ctxextend.exports.row import Fixed, Key, Settings, Sizes, TensorRule, pair_k, pair_q

TIED: Final = "tie_word_embeddings"
#: Names that hold no weights.
DROPPED: Final = (r"\.rotary_emb\.inv_freq$",)
#: An operation, once the sizes are known.
Do = Callable[[Sizes], Operation]


def rule(hf: str, gguf: str, *shape: str, do: tuple[Do, ...] = (), **more: Any) -> TensorRule:
    """A tensor of ``shape``, with the operations that make it one of the file."""
    return TensorRule(hf=hf, gguf=gguf, shape=shape, operations=do, **more)


def layer(hf: str, gguf: str, *shape: str, do: tuple[Do, ...] = (), **more: Any) -> TensorRule:
    """A tensor of every layer, by what its names end in."""
    return rule(f"model.layers.{{bid}}.{hf}", f"blk.{{bid}}.{gguf}", *shape, do=do, **more)


EMBEDDING: Final = rule("model.embed_tokens.weight", "token_embd.weight", "vocab", "hidden")
LAST_NORM: Final = rule("model.norm.weight", "output_norm.weight", "hidden")
HEAD: Final = rule("lm_head.weight", "output.weight", "vocab", "hidden", spared=TIED)
#: For architectures whose loader doesn't take the embeddings for it by itself.
OWN_HEAD: Final = (
    rule("lm_head.weight", "output.weight", "vocab", "hidden"),
    rule("model.embed_tokens.weight", "output.weight", "vocab", "hidden", when=(TIED, True)),
)
NORMS: Final = (
    layer("input_layernorm.weight", "attn_norm.weight", "hidden"),
    layer("post_attention_layernorm.weight", "ffn_norm.weight", "hidden"),
)
#: Norms on both sides of attention and feed-forward.
POST_NORMS: Final = (
    layer("post_attention_layernorm.weight", "post_attention_norm.weight", "hidden"),
    layer("post_feedforward_layernorm.weight", "post_ffw_norm.weight", "hidden"),
)
HEAD_NORMS: Final = (
    layer("self_attn.q_norm.weight", "attn_q_norm.weight", "head_dim"),
    layer("self_attn.k_norm.weight", "attn_k_norm.weight", "head_dim"),
)
ATTENTION: Final = (
    layer("self_attn.q_proj.weight", "attn_q.weight", "q", "hidden"),
    layer("self_attn.k_proj.weight", "attn_k.weight", "kv", "hidden"),
    layer("self_attn.v_proj.weight", "attn_v.weight", "kv", "hidden"),
    layer("self_attn.o_proj.weight", "attn_output.weight", "hidden", "q"),
)
#: For architectures whose rope pairs neighbours (LLAMA_ROPE_TYPE_NORM), where the checkpoint pairs halves.
PAIRED_ATTENTION: Final = (
    layer("self_attn.q_proj.weight", "attn_q.weight", "q", "hidden", do=(pair_q,)),
    layer("self_attn.k_proj.weight", "attn_k.weight", "kv", "hidden", do=(pair_k,)),
    *ATTENTION[2:],
)


def qkv_biases(when: str | None) -> tuple[TensorRule, ...]:
    """Biases of queries, keys and values: always, or when a setting is on."""
    on = (when, True) if when is not None else None
    return (
        layer("self_attn.q_proj.bias", "attn_q.bias", "q", when=on),
        layer("self_attn.k_proj.bias", "attn_k.bias", "kv", when=on),
        layer("self_attn.v_proj.bias", "attn_v.bias", "kv", when=on),
    )


FEED_FORWARD: Final = (
    layer("mlp.gate_proj.weight", "ffn_gate.weight", "ffn", "hidden"),
    layer("mlp.up_proj.weight", "ffn_up.weight", "ffn", "hidden"),
    layer("mlp.down_proj.weight", "ffn_down.weight", "hidden", "ffn"),
)


def _gate_half(sizes: Sizes) -> Operation:
    return HeadRows(heads=sizes.experts, start=0, stop=sizes.expert_ffn)


def _up_half(sizes: Sizes) -> Operation:
    return HeadRows(heads=sizes.experts, start=sizes.expert_ffn, stop=2 * sizes.expert_ffn)


def _flat_experts(sizes: Sizes) -> Operation:
    return Reshape(shape=(sizes.experts * 2 * sizes.expert_ffn, sizes.hidden))


def _each_expert(sizes: Sizes) -> Operation:
    return Reshape(shape=(sizes.experts, sizes.expert_ffn, sizes.hidden))


def experts(
    room: str = "mlp", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> tuple[TensorRule, ...]:
    """The router and its experts: one tensor each, or, as transformers 5 holds them, one for all."""
    layers: Literal["sparse"] = "sparse"
    gate, up, down = (f"{room}.experts.{{xid}}.{name}.weight" for name in names)
    both, wide = f"{room}.experts.gate_up_proj", ("experts", "two_expert_ffn", "hidden")
    return (
        layer(f"{room}.gate.weight", "ffn_gate_inp.weight", "experts", "hidden", layers=layers),
        layer(gate, "ffn_gate_exps.weight", "expert_ffn", "hidden", layers=layers),
        layer(both, "ffn_gate_exps.weight", *wide, do=(_flat_experts, _gate_half, _each_expert), layers=layers),
        layer(up, "ffn_up_exps.weight", "expert_ffn", "hidden", layers=layers),
        layer(both, "ffn_up_exps.weight", *wide, do=(_flat_experts, _up_half, _each_expert), layers=layers),
        layer(down, "ffn_down_exps.weight", "hidden", "expert_ffn", layers=layers),
        layer(f"{room}.experts.down_proj", "ffn_down_exps.weight", "experts", "hidden", "expert_ffn", layers=layers),
    )


def shared_expert(name: str) -> tuple[TensorRule, ...]:
    """The expert that every token goes through."""
    layers: Literal["sparse"] = "sparse"
    return (
        layer(f"mlp.{name}.gate_proj.weight", "ffn_gate_shexp.weight", "shared_ffn", "hidden", layers=layers),
        layer(f"mlp.{name}.up_proj.weight", "ffn_up_shexp.weight", "shared_ffn", "hidden", layers=layers),
        layer(f"mlp.{name}.down_proj.weight", "ffn_down_shexp.weight", "hidden", "shared_ffn", layers=layers),
    )


SIZES: Final = (
    Key(name="block_count", config=("num_hidden_layers",)),
    Key(name="embedding_length", config=("hidden_size",)),
    Key(name="feed_forward_length", config=("intermediate_size",)),
    Key(name="vocab_size", config=("vocab_size",)),
    Key(name="attention.head_count", config=("num_attention_heads",)),
)
_KV_HEADS: Final = Key(name="attention.head_count_kv", config=("num_key_value_heads", "num_attention_heads"))
HEAD_DIM: Final = (
    Key(name="attention.key_length", config=("head_dim",)),
    Key(name="attention.value_length", config=("head_dim",)),
)
RMS: Final = Key(name="attention.layer_norm_rms_epsilon", config=("rms_norm_eps",), type="FLOAT32")
COMMON: Final = (*SIZES, _KV_HEADS, *HEAD_DIM)
LLAMA_KEYS: Final = (*COMMON, RMS)
EXPERT_KEYS: Final = (
    Key(name="expert_count", config=("num_experts", "num_local_experts", "n_routed_experts")),
    Key(name="expert_used_count", config=("num_experts_per_tok",)),
    Key(name="expert_feed_forward_length", config=("moe_intermediate_size",)),
)
SILU: Final = Fixed(key="hidden_act", values=("silu", "swish"), default="silu")
#: Names of the tanh form of GELU, the only one that llama.cpp has.
TANH: Final = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
NO_BIAS: Final = Fixed(key="attention_bias", values=(False, None), default=False)


def whole_heads(settings: Settings) -> str | None:
    """Loaders that take the attention's output for as wide as the model."""
    wide = settings.needed("head_dim") * settings.needed("num_attention_heads")
    if wide == settings.needed("hidden_size"):
        return None
    return f"its heads make up {wide} dimensions of {settings.needed('hidden_size')}, and the loader wants all"


def frozen(**values: Any) -> Mapping[str, Any]:
    """A table that nobody changes."""
    return MappingProxyType(values)
