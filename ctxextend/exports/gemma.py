"""The Gemma families: norms stored as their distance from one, and embeddings that serve as the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ctxextend.exports.layout import AddOne, Operation
from ctxextend.exports.row import Fixed, Key, Row, Settings, Sizes, TensorRule
from ctxextend.exports.shared import (
    ATTENTION,
    DROPPED,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    HEAD_NORMS,
    LAST_NORM,
    LLAMA_KEYS,
    NO_BIAS,
    NORMS,
    POST_NORMS,
    TANH,
    TIED,
    frozen,
    layer,
)

_FOUR_NORMS: Final = (
    layer("input_layernorm.weight", "attn_norm.weight", "hidden"),
    layer("pre_feedforward_layernorm.weight", "ffn_norm.weight", "hidden"),
    *POST_NORMS,
)

_ALWAYS_TIED: Final = Fixed(key=TIED, values=(True,), default=True)

_CAUSAL: Final = Fixed(key="use_bidirectional_attention", values=(False, None), default=None)


def _query_scale(layers: int) -> Callable[[Settings], str | None]:
    """Gemma's scale of queries, which goes by the number of layers (``load_arch_hparams``)."""

    def check(settings: Settings) -> str | None:
        expected = settings.needed("head_dim")
        if settings.whole("num_hidden_layers") == layers:
            expected = settings.needed("hidden_size") // settings.needed("num_attention_heads")
        stated = settings.get("query_pre_attn_scalar")
        if stated == expected:
            return None
        return f"query_pre_attn_scalar is {stated}, and the architecture has {expected} built in"

    return check


def _plus_one(sizes: Sizes) -> Operation:  # noqa: ARG001
    return AddOne()


def _gemma(*rules: TensorRule) -> tuple[TensorRule, ...]:
    """The rules, with what norms are multiplied by in place of its distance from one."""
    return tuple(replace(r, operations=(_plus_one,)) if r.hf.endswith("norm.weight") else r for r in rules)


_GEMMA_DEFAULTS: Final = {"rms_norm_eps": 1e-6, "head_dim": 256, "tie_word_embeddings": True}

#: Its loader has no place for an output's own weights.
_NO_HEAD: Final = (*DROPPED, r"^lm_head\.weight$")

GEMMA: Final = Row(
    family="gemma",
    architecture="gemma",
    model_type="gemma",
    model_class="GemmaForCausalLM",
    keys=LLAMA_KEYS,
    tensors=_gemma(EMBEDDING, *NORMS, *ATTENTION, *FEED_FORWARD, LAST_NORM),
    defaults=frozen(**_GEMMA_DEFAULTS, num_key_value_heads=16),
    fixed=(
        # Published configs say "gelu" and mean the tanh form, which the model was trained with.
        Fixed(key="hidden_act", values=(*TANH, "gelu"), default="gelu_pytorch_tanh"),
        Fixed(key="hidden_activation", values=(*TANH, None), default=None),
        NO_BIAS,
        _ALWAYS_TIED,
        _CAUSAL,
    ),
    dropped=_NO_HEAD,
)


def _both_caps(settings: Settings) -> str | None:
    """The graph of Gemma 2 caps scores and logits whatever the file says."""
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return next((f"{key} is off, and the architecture caps always" for key in caps if not settings.on(key)), None)


_TANH_ACTIVATION: Final = Fixed(key="hidden_activation", values=TANH, default="gelu_pytorch_tanh")

GEMMA2: Final = Row(
    family="gemma2",
    architecture="gemma2",
    model_type="gemma2",
    model_class="Gemma2ForCausalLM",
    keys=(
        *LLAMA_KEYS,
        Key(name="attn_logit_softcapping", config=("attn_logit_softcapping",), type="FLOAT32"),
        Key(name="final_logit_softcapping", config=("final_logit_softcapping",), type="FLOAT32"),
    ),
    tensors=_gemma(EMBEDDING, *_FOUR_NORMS, *ATTENTION, *FEED_FORWARD, LAST_NORM),
    defaults=frozen(
        **_GEMMA_DEFAULTS,
        num_key_value_heads=4,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        query_pre_attn_scalar=256,
    ),
    fixed=(_TANH_ACTIVATION, NO_BIAS, _ALWAYS_TIED, _CAUSAL),
    refusals=(_query_scale(46), _both_caps),
    dropped=_NO_HEAD,
)

GEMMA3: Final = Row(
    family="gemma3",
    architecture="gemma3",
    model_type="gemma3_text",
    model_class="Gemma3ForCausalLM",
    keys=(
        *LLAMA_KEYS,
        Key(name="final_logit_softcapping", config=("final_logit_softcapping",), type="FLOAT32", optional=True),
    ),
    tensors=_gemma(EMBEDDING, *_FOUR_NORMS, *ATTENTION, *HEAD_NORMS, *FEED_FORWARD, LAST_NORM, HEAD),
    defaults=frozen(
        **_GEMMA_DEFAULTS,
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        query_pre_attn_scalar=256,
    ),
    fixed=(
        _TANH_ACTIVATION,
        NO_BIAS,
        _CAUSAL,
        Fixed(key="attn_logit_softcapping", values=(None,), default=None),
    ),
    refusals=(_query_scale(62),),
    prefixes=(
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    elsewhere=(r"^(model\.)?(vision_tower|multi_modal_projector)\.",),
)
