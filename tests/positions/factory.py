"""Published checkpoints without a rope, by hand: their config.json and the shapes of the tensors that matter here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxextend.contents import Contents
from ctxextend.inspection import Inspection, inspect
from ctxextend.plan import Plan
from ctxextend.position_plan import make_position_plan
from ctxextend.recipe import Recipe
from tests.factories import TypeAndShape, contents

Config = Mapping[str, Any]
Shapes = Mapping[str, TypeAndShape]

#: https://huggingface.co/openai-community/gpt2: its masks are stored, once a layer.
GPT2: tuple[Config, Shapes] = (
    {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    {
        "wpe.weight": ("F32", (1024, 768)),
        "wte.weight": ("F32", (50257, 768)),
        "h.0.attn.bias": ("F32", (1, 1, 1024, 1024)),
        "h.0.attn.c_attn.bias": ("F32", (2304,)),
        "h.11.attn.bias": ("F32", (1, 1, 1024, 1024)),
    },
)
#: https://huggingface.co/facebook/opt-125m
OPT: tuple[Config, Shapes] = (
    {
        "model_type": "opt",
        "hidden_size": 768,
        "max_position_embeddings": 2048,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
    },
    {"model.decoder.embed_positions.weight": ("F16", (2050, 768))},
)
#: https://huggingface.co/FacebookAI/roberta-base
ROBERTA: tuple[Config, Shapes] = (
    {
        "model_type": "roberta",
        "hidden_size": 768,
        "max_position_embeddings": 514,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
    },
    {
        "roberta.embeddings.position_embeddings.weight": ("F32", (514, 768)),
        "roberta.embeddings.position_ids": ("I64", (1, 514)),
    },
)
#: https://huggingface.co/bigscience/bloom-560m
BLOOM: tuple[Config, Shapes] = (
    {"model_type": "bloom", "hidden_size": 1024, "n_head": 16, "n_layer": 24, "seq_length": 2048},
    {"word_embeddings.weight": ("F16", (250880, 1024))},
)
#: https://huggingface.co/mosaicml/mpt-7b
MPT: tuple[Config, Shapes] = (
    {
        "model_type": "mpt",
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch"},
        "d_model": 4096,
        "max_seq_len": 2048,
        "n_heads": 32,
        "n_layers": 32,
    },
    {"transformer.wte.weight": ("BF16", (50432, 4096))},
)
#: https://huggingface.co/tiiuae/falcon-rw-1b
FALCON: tuple[Config, Shapes] = (
    {
        "model_type": "falcon",
        "alibi": True,
        "hidden_size": 2048,
        "multi_query": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
    },
    {"transformer.word_embeddings.weight": ("BF16", (50304, 2048))},
)
#: https://huggingface.co/facebook/bart-base
BART: tuple[Config, Shapes] = (
    {"model_type": "bart", "d_model": 768, "max_position_embeddings": 1024, "pad_token_id": 1},
    {
        "model.encoder.embed_positions.weight": ("F32", (1026, 768)),
        "model.decoder.embed_positions.weight": ("F32", (1026, 768)),
    },
)
#: https://huggingface.co/Helsinki-NLP/opus-mt-en-de, with its tables stored
MARIAN: tuple[Config, Shapes] = (
    {"model_type": "marian", "d_model": 512, "max_position_embeddings": 512, "pad_token_id": 58100},
    {
        "model.encoder.embed_positions.weight": ("F32", (512, 512)),
        "model.decoder.embed_positions.weight": ("F32", (512, 512)),
    },
)
#: https://huggingface.co/facebook/m2m100_418M
M2M_100: tuple[Config, Shapes] = (
    {"model_type": "m2m_100", "d_model": 1024, "max_position_embeddings": 1024, "pad_token_id": 1},
    {
        "model.encoder.embed_positions.weights": ("F32", (1026, 1024)),
        "model.decoder.embed_positions.weights": ("F32", (1026, 1024)),
    },
)


def read(published: tuple[Config, Shapes], **documents: Config) -> tuple[Contents, Inspection]:
    """A published checkpoint and what is found in it; names of further ``documents`` have no .json."""
    config, tensors = published
    found = contents(config, tensors=tensors, documents={f"{name}.json": value for name, value in documents.items()})
    return found, inspect(found)


def planned(published: tuple[Config, Shapes], recipe: Recipe, **documents: Config) -> Plan:
    found, inspection = read(published, **documents)
    return make_position_plan(found, inspection, recipe)
