"""Run in a process of its own: what SGLang's own model of each config.json rotates by.

Reads one JSON object a line (``id``, ``config``, ``lengths``, ``language_model``) and prints one a line: ``error``, or
``ropes`` (``module``, ``length``, ``inv_freq``, ``attention``, ``pairing``) with ``softmax``, ``context`` and
``class``. SGLang reads the config, finds the class and builds it; ``language_model`` (module and class) is what a
wrapper's model file builds of the config of its language model, built here without the wrapper.
The numbers come from what a rotary module does to the unit vectors of a head, not from its attributes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.reference import rope_of_model, sglang_on_cpu

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 96,
}


def answer(question: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the model of one config does; an exception of its own is the answer's ``error``."""
    (folder / "config.json").write_text(json.dumps(question["config"]))
    factory = sglang_on_cpu.module("layers.rotary_embedding.factory")
    # Ropes are shared by their settings, and some types forget a part of them.
    factory._ROPE_DICT.clear()
    try:
        config = sglang_on_cpu.module("configs.model_config").ModelConfig(str(folder))
        model = built(question, config)
        with torch.no_grad():
            ropes = [rope for length in question["lengths"] for rope in ropes_of(model, length)]
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {
        "ropes": ropes,
        "softmax": softmax_factors(model),
        "context": config.context_len,
        "class": type(model).__name__,
    }


def built(question: Mapping[str, Any], config: Any) -> torch.nn.Module:
    if "language_model" in question:
        file, name, of_wrapper = question["language_model"]
        given = config.hf_config if of_wrapper else config.hf_text_config
        model = sglang_on_cpu.constructed(getattr(sglang_on_cpu.module(f"models.{file}"), name), given)
    else:
        model = sglang_on_cpu.built(config)
    assert isinstance(model, torch.nn.Module)
    return model


def ropes_of(model: torch.nn.Module, length: int) -> Iterator[dict[str, Any]]:
    """The ropes of every rotary module, at a length.

    Where a model file hands cosines and sines to its layers (Gemma 3, and all that transformers' code computes), the
    modules of the layers aren't used.
    """
    handed = [name for name, module in model.named_modules() if rope_of_model.rotates(module) and "vis" not in name]
    if handed:
        yield from rope_of_model.ropes_of(model, length)
        return
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if "vis" not in name}
    rotary = {name: module for name, module in modules.items() if size_of_cache(module)}
    if not rotary:
        raise LookupError("no module of the model has cosines and sines")
    for name, module in rotary.items():
        yield {"module": name, "length": length, **rope(module, length)}


def size_of_cache(module: torch.nn.Module) -> int:
    """How many dimensions of a head a rotary module turns; 0 for other modules."""
    caches = [buffer for name, buffer in module.named_buffers(recurse=False) if "cos_sin_cache" in name]
    return int(caches[0].shape[-1]) if caches else 0


def rope(module: Any, length: int) -> dict[str, Any]:
    """Frequencies, temperature and layout out of what becomes of a head's unit vectors at positions 0 and 1."""
    size, turned = module.head_size, size_of_cache(module)
    longest = len(module.cos_sin_cache) if hasattr(module, "cos_sin_cache") else module.max_position_embeddings
    positions = torch.tensor([0, 1, min(length, longest) - 1])
    unit = torch.eye(size).reshape(1, size * size).repeat(len(positions), 1)
    rows = positions.expand(3, -1) if "MRotaryEmbedding" in {base.__name__ for base in type(module).__mro__} else None
    if "Deepseek" in type(module).__name__:
        unit = unit.reshape(len(positions), size, size)
    query, key = module(positions if rows is None else rows, unit.clone(), unit.clone())
    assert torch.equal(query, key)
    at_0, at_1, _last = query.reshape(len(positions), size, size).double()
    attention = float(at_0[0, 0])
    for pairing, first, second in (
        ("half", range(turned // 2), range(turned // 2, turned)),
        ("interleaved", range(0, turned, 2), range(1, turned, 2)),
    ):
        pairs = list(zip(first, second, strict=True))
        angles = [float(torch.atan2(at_1[a, b], at_1[a, a])) for a, b in pairs]
        if all(
            torch.allclose(found, turn(angles, pairs, size, attention), rtol=0, atol=1e-5)
            for found, angles in ((at_0, [0.0] * len(pairs)), (at_1, angles))
        ):
            return {"inv_freq": angles, "attention": attention, "pairing": pairing}
    raise LookupError(f"{type(module).__name__} doesn't rotate pairs by one angle each")


def turn(angles: list[float], pairs: list[tuple[int, int]], size: int, attention: float) -> torch.Tensor:
    """What becomes of each unit vector, a row each, when pairs are turned and the rest stands still."""
    found = torch.eye(size, dtype=torch.float64)
    for angle, (a, b) in zip(torch.tensor(angles, dtype=torch.float64), pairs, strict=True):
        found[a, a] = found[b, b] = angle.cos() * attention
        found[a, b], found[b, a] = angle.sin() * attention, -angle.sin() * attention
    return found


def softmax_factors(model: torch.nn.Module) -> list[float]:
    """What layers of latent attention multiply their usual softmax scale by."""
    latent = [module for module in model.modules() if hasattr(module, "kv_lora_rank") and hasattr(module, "scaling")]
    return sorted({float(module.scaling) * int(module.qk_head_dim) ** 0.5 for module in latent})  # type: ignore[arg-type]


def main() -> None:
    """Answer every line of standard input."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(LLAMA))
        sglang_on_cpu.start(folder)
        for i, line in enumerate(sys.stdin):
            question = json.loads(line)
            # Configs are remembered by their folder.
            own = folder / str(i)
            own.mkdir()
            print(json.dumps({"id": question["id"], **answer(question, own)}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
