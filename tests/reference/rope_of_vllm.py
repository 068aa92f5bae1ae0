"""Run in a process of its own: what vLLM's code, on a CPU, makes of each config.json.

Reads one JSON object a line (``id``, ``config``, ``lengths``) and prints one a line: ``error``, or ``started`` (the
length that it starts with unasked) and ``ropes``: one a layer and length. The numbers come from vectors that each
layer's rope turned, at positions 0 and 1, not from its attributes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.reference.vllm_on_cpu import build, model_config, stand_in


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM makes of one config; an exception of its own is the answer's ``error``."""
    ropes = []
    started = None
    try:
        for length in question["lengths"]:
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                (Path(folder) / "config.json").write_text(json.dumps(question["config"]))
                model = model_config(Path(folder))
                model.max_model_len = None
                started = model.get_and_verify_max_len(None)
                model.max_model_len = model.get_and_verify_max_len(length)
                ropes += list(ropes_of(build(model), length))
    except Exception as error:  # noqa: BLE001
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('/vllm/')[2]}:{place.lineno}"
        return {"error": f"{type(error).__name__}: {error}"[:300], "where": where}
    return {"started": started, "ropes": ropes}


def ropes_of(model: torch.nn.Module, length: int) -> Iterator[dict[str, Any]]:
    """The ropes of every layer."""
    for name, module in model.named_modules(remove_duplicate=False):
        caches = [cache for key, cache in module.named_buffers(recurse=False) if key.endswith("cos_sin_cache")]
        if not caches:
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        attention = getattr(parent, "attn", None) or getattr(parent, "mla_attn", None)
        yield {
            "module": name,
            "length": length,
            "rows": caches[0].shape[0],
            "scale": getattr(attention, "scale", None) or getattr(parent, "scaling", None),
            **turned(module),
        }


def turned(rope: Any) -> dict[str, Any]:
    """Frequencies (one a pair), temperature and pairing, out of unit vectors turned at positions 0 and 1."""
    size = rope.rotary_dim
    rows = 3 if hasattr(rope, "mrope_section") and rope.mrope_section else None

    def at(position: int) -> torch.Tensor:
        positions = torch.full((rope.head_size,), position)
        if rows is not None:
            positions = positions.expand(rows, -1)
        vectors = torch.eye(rope.head_size)
        if type(rope).__name__.startswith("Deepseek"):
            # Latent attention hands its vectors over head by head.
            vectors = vectors[:, None]
        found, key = rope(positions, vectors.clone(), vectors.clone())
        assert torch.equal(found, key), "queries and keys are turned alike"
        assert isinstance(found, torch.Tensor)
        return found.reshape(rope.head_size, -1)[:size, :size].double()

    still, moved = at(0), at(1)
    temperature = float(still[0, 0])
    assert torch.equal(still, temperature * torch.eye(size, dtype=still.dtype)), "more than one temperature"
    half = torch.count_nonzero(moved[0, 1:2]) == 0 or size == 2
    first = torch.arange(size // 2) if half else torch.arange(0, size, 2)
    second = first + (size // 2 if half else 1)
    angles = torch.atan2(moved[first, second], moved[first, first])
    return {"inv_freq": angles.tolist(), "attention": temperature, "pairing": "half" if half else "interleaved"}


def main() -> None:
    """Answer every line of standard input."""
    warnings.simplefilter("ignore")
    stand_in()
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps({"id": question["id"], **answer(question)}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
