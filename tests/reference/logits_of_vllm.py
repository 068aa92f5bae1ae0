"""Run in a process of its own: the logits that vLLM's model classes compute of checkpoints, on a CPU.

Reads one JSON object a line (``id``, ``folder``, ``tokens``) and prints one a line: ``id`` with ``error``, None where
``vllm.npy`` was written into the folder: shape (positions, vocabulary), float32. The class, its loading of weights,
its layers, norms and rope are vLLM's. Attention is written out here: vLLM's is compiled, over a cache in blocks.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.reference.vllm_on_cpu import build, model_config, part, stand_in


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
) -> torch.Tensor:
    """Causal attention over one sequence; shape ``(tokens, heads * head size)``."""
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    groups = query.shape[0] // key.shape[0]
    key, value = (part.repeat_interleave(groups, dim=0) for part in (key, value))
    scores = query @ key.transpose(1, 2) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])
    seen = distance >= 0
    if window:
        seen &= distance < window
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return (weights @ value).transpose(0, 1).flatten(1)


def attend(layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What an attention layer computes, by what its class was told."""
    return attention(
        query.reshape(-1, layer.num_heads, layer.head_size),
        key.reshape(-1, layer.num_kv_heads, layer.head_size),
        value.reshape(-1, layer.num_kv_heads, layer.head_size_v),
        scale=layer.impl.scale,
        window=layer.sliding_window,
        cap=layer.impl.logits_soft_cap,
    )


def attend_latent(
    layer: Any,
    query: torch.Tensor,
    latent: torch.Tensor,
    turned_key: torch.Tensor,
    *_rest: Any,
    **_options: Any,
) -> torch.Tensor:
    """Latent attention as a prompt has it: keys and values out of what is kept of them."""
    heads, plain = layer.num_heads, layer.qk_nope_head_dim
    unpacked = layer.kv_b_proj(latent)[0].view(-1, heads, plain + layer.v_head_dim)
    key, value = unpacked.split([plain, layer.v_head_dim], dim=-1)
    turned = turned_key.reshape(-1, 1, layer.qk_rope_head_dim).expand(-1, heads, -1)
    return attention(query, torch.cat([key, turned], dim=-1), value, scale=layer.scale)


def save_logits(folder: Path, tokens: list[int]) -> str | None:
    """The logits of every position; an exception of vLLM's own is told, not raised."""
    try:
        with torch.no_grad():
            settings = model_config(folder)
            settings.max_model_len = settings.get_and_verify_max_len(len(tokens))
            model = build(settings)
            model.load_weights(load_file(folder / "model.safetensors").items())
            part("model_executor.model_loader.utils").process_weights_after_loading(
                model, settings, torch.device("cpu")
            )
            hidden = model(torch.tensor(tokens), torch.arange(len(tokens)))
            logits = model.compute_logits(hidden)
    except Exception:  # noqa: BLE001
        return traceback.format_exc()[-1500:]
    np.save(folder / "vllm.npy", logits.numpy())
    return None


def main() -> None:
    """Answer every line of standard input."""
    warnings.simplefilter("ignore")
    stand_in()
    layers = part("model_executor.layers.attention")
    layers.Attention.forward = attend
    layers.MLAAttention.forward = attend_latent
    for line in sys.stdin:
        asked = json.loads(line)
        error = save_logits(Path(asked["folder"]), asked["tokens"])
        print(json.dumps({"id": asked["id"], "error": error}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
