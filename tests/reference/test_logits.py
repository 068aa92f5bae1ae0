"""Logits past the trained length: transformers on a converted config, and attention written out with our table.

The model is a random Llama of two layers in float64, whose rotary module keeps its float32 angles.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from tests.factories import config, converted, planned

TRAINED, TARGET = 64, 256
TOLERANCE = 1e-4
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
SOURCE = config(
    hidden_size=HEADS * HEAD_DIM,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    num_hidden_layers=2,
    max_position_embeddings=TRAINED,
    rms_norm_eps=1e-6,
)

Weights = dict[str, torch.Tensor]

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "ntk": {},
    "dynamic": {},
    "ntk-by-parts": {},
    "yarn": {},
    "llama3": {},
    "longrope": {"long_factor": [1.0 + i / 2 for i in range(HEAD_DIM // 2)]},
    "rebase": {"rope_theta": 250000.0},
}


def rotated(x: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """Pair (i, i + d/2) of each head turned by position times inv_freq[i], and stretched by the attention factor."""
    angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), torch.tensor(table.inv_freq, dtype=x.dtype))
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1) * table.attention_factor


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x @ weight.T).reshape(len(x), -1, HEAD_DIM).transpose(0, 1)


def llama(weights: Weights, tokens: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """A Llama, from its paper and its weights."""
    x = weights["model.embed_tokens.weight"][tokens]
    hidden = torch.full((len(tokens), len(tokens)), -math.inf, dtype=x.dtype).triu(1)
    for layer in range(2):
        part = {name.removeprefix(f"model.layers.{layer}."): value for name, value in weights.items()}
        y = normed(x, part["input_layernorm.weight"])
        q = rotated(heads(y, part["self_attn.q_proj.weight"]), table)
        k = rotated(heads(y, part["self_attn.k_proj.weight"]), table).repeat_interleave(HEADS // KV_HEADS, 0)
        v = heads(y, part["self_attn.v_proj.weight"]).repeat_interleave(HEADS // KV_HEADS, 0)
        scores = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM) + hidden, dim=-1)
        x = x + (scores @ v).transpose(0, 1).flatten(1) @ part["self_attn.o_proj.weight"].T
        y = normed(x, part["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(y @ part["mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ part["mlp.up_proj.weight"].T)) @ part["mlp.down_proj.weight"].T
    return normed(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random, and large enough that attention is sharp: a wrong table moves the logits by far more than rounding."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**SOURCE)).double()
    return {name: torch.randn_like(value) * 0.3 for name, value in model.state_dict().items()}


def theirs(edited: dict[str, Any], weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
    model = LlamaForCausalLM(LlamaConfig(**edited)).double().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]
    assert isinstance(logits, torch.Tensor)
    return logits


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 96, (TARGET,), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("method", METHODS)
def test_logits_past_the_trained_length(method: str, weights: Weights, tokens: torch.Tensor) -> None:
    recipe = Recipe(method=method, target=TARGET, options=METHODS[method], runtimes=("transformers",))
    plan = planned(SOURCE, recipe)
    before, after = plan.groups[0].before, plan.groups[0].after
    assert before is not None
    assert after is not None
    found = theirs(converted(SOURCE, plan), weights, tokens)
    expected = llama(weights, tokens, after.table)
    assert (found - expected).abs().max().item() < TOLERANCE
    # The plain table is told apart by far.
    plain = llama(weights, tokens, before.table)
    assert (found - plain).abs().max().item() > 1000 * TOLERANCE


def test_logits_of_the_source(weights: Weights, tokens: torch.Tensor) -> None:
    plan = planned(SOURCE, Recipe(method="ntk", target=TARGET, runtimes=("transformers",)))
    assert plan.groups[0].before is not None
    expected = llama(weights, tokens[:TRAINED], plan.groups[0].before.table)
    assert (theirs(SOURCE, weights, tokens[:TRAINED]) - expected).abs().max().item() < TOLERANCE


def test_longrope_keeps_short_inputs_on_its_short_list(weights: Weights, tokens: torch.Tensor) -> None:
    options = {**METHODS["longrope"], "attention_factor": 1.0}
    plan = planned(SOURCE, Recipe(method="longrope", target=TARGET, options=options, runtimes=("transformers",)))
    assert plan.groups[0].before is not None
    found = theirs(converted(SOURCE, plan), weights, tokens[:TRAINED])
    expected = llama(weights, tokens[:TRAINED], plan.groups[0].before.table)
    assert (found - expected).abs().max().item() < TOLERANCE
