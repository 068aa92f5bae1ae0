"""Run in a process of its own: the logits of checkpoints in SGLang's own models, saved beside their weights.

Reads one JSON object a line (``folder``, ``tokens``, ``name``) and prints one a line: ``id`` (the folder) with
``error``, None where ``NAME.npy`` was written into the folder: shape (positions, vocabulary), float32.
The model, its loading of weights and its attention (the backend torch_native) are SGLang's; stood in for are the
memory of keys and values, and the choice of the positions that logits are wanted of.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.reference import sglang_on_cpu
from tests.reference.rope_of_sglang import LLAMA


class Memory:
    """Keys and values of one request, in the order of its tokens: what a pool of many requests holds of it."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def set_kv_buffer(self, layer: Any, _where: Any, key: torch.Tensor, value: torch.Tensor | None) -> None:
        key = key.view(-1, layer.tp_k_head_num, layer.qk_head_dim)
        # Of latent attention the value is the key's first part.
        value = key[..., : layer.v_head_dim] if value is None else value.view(*key.shape[:2], layer.v_head_dim)
        self.kept[layer.layer_id] = key, value

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        return self.kept[layer][0]

    def get_value_buffer(self, layer: int) -> torch.Tensor:
        return self.kept[layer][1]


def save_logits(folder: Path, tokens: list[int], name: str) -> str | None:
    """The logits of every position; an exception of SGLang's own is told, not raised."""
    try:
        found = logits(folder, torch.tensor(tokens))
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"[:300]
    np.save(folder / f"{name}.npy", found.float().numpy())
    return None


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    config = sglang_on_cpu.module("configs.model_config").ModelConfig(str(folder), dtype="float32")
    model = sglang_on_cpu.built(config)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {key: tensor.float() for key, tensor in load_file(file).items()}
    loader = sglang_on_cpu.module("model_loader.loader").DefaultModelLoader
    with torch.no_grad():
        loader.load_weights_and_postprocess(model, iter(tensors.items()), torch.device("cpu"))
        return run(model.eval(), tokens)


def run(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """One request, all its tokens at once."""
    batches = sglang_on_cpu.module("model_executor.forward_batch_info")
    contexts = sglang_on_cpu.module("model_executor.forward_context")
    processing = sglang_on_cpu.module("layers.logits_processor")
    count, positions = len(tokens), torch.arange(len(tokens))
    runner = SimpleNamespace(
        device="cpu",
        req_to_token_pool=SimpleNamespace(req_to_token=positions[None]),
        token_to_kv_pool=Memory(),
    )
    backend = sglang_on_cpu.module("layers.attention.torch_native_backend").TorchNativeAttnBackend(runner)
    batch = batches.ForwardBatch(
        forward_mode=batches.ForwardMode.EXTEND,
        batch_size=1,
        input_ids=tokens,
        req_pool_indices=torch.tensor([0]),
        seq_lens=torch.tensor([count]),
        out_cache_loc=positions,
        seq_lens_sum=count,
        positions=positions,
        extend_num_tokens=count,
        extend_seq_lens=torch.tensor([count]),
        extend_prefix_lens=torch.tensor([0]),
        extend_start_loc=torch.tensor([0]),
        extend_prefix_lens_cpu=[0],
        extend_seq_lens_cpu=[count],
        seq_lens_cpu=torch.tensor([count]),
    )
    extend, processor = backend.forward_extend, model.logits_processor

    def remembering(query: Any, key: Any, value: Any, layer: Any, *arguments: Any, **named: Any) -> Any:
        # Latent attention writes its compressed keys to the memory and hands whole ones over, as other backends take
        # them; this one takes them from the memory alone.
        runner.token_to_kv_pool.set_kv_buffer(layer, None, key, value)
        return extend(query, key, value, layer, *arguments, **{**named, "save_kv_cache": False})

    def every_position(_tokens: Any, hidden: torch.Tensor, head: Any, metadata: Any, *_rest: Any) -> Any:
        metadata = processing.LogitsMetadata.from_forward_batch(metadata)
        return processor._get_logits(hidden, head, metadata)

    # Its own forward keeps the last position alone, or log probabilities.
    processor.forward = every_position
    backend.forward_extend = remembering
    backend.init_forward_metadata(batch)
    with contexts.forward_context(contexts.ForwardContext(attn_backend=backend)):
        found = model.forward(tokens, positions, batch)
    assert isinstance(found, torch.Tensor)
    return found


def main() -> None:
    """Answer every line of standard input."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(LLAMA))
        sglang_on_cpu.start(Path(scratch))
        for line in sys.stdin:
            asked = json.loads(line)
            error = save_logits(Path(asked["folder"]), asked["tokens"], asked["name"])
            print(json.dumps({"id": asked["folder"], "error": error}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
