"""Perplexity by position of the demo checkpoint: untouched, and extended four times.

The text is cut into non-overlapping windows of 1024 tokens, each read from position 0. A row
of the table gives, for each range of positions, exp of the mean loss of the next-token
predictions made at those positions, over all windows.

    python demo/measure.py
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

FACTOR = 4
BOUNDS = (0, 128, 256, 384, 512, 768, 1024)


def variants(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each method changes in ``config.json``."""
    original = config["max_position_embeddings"]
    dim = config["head_dim"]
    longer: dict[str, Any] = {"max_position_embeddings": FACTOR * original}
    linear = {"rope_type": "linear", "factor": float(FACTOR)}
    yarn = {
        "rope_type": "yarn",
        "factor": float(FACTOR),
        "original_max_position_embeddings": original,
    }
    return {
        "untouched": {},
        "linear": longer | {"rope_scaling": linear},
        "ntk": longer | {"rope_theta": config["rope_theta"] * FACTOR ** (dim / (dim - 2))},
        "yarn": longer | {"rope_scaling": yarn},
    }


def load(directory: Path, changes: dict[str, Any]) -> LlamaForCausalLM:
    """The checkpoint in float32, with ``changes`` made to its configuration."""
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = LlamaConfig.from_dict(content | changes)
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32)
    return model


def read_windows(directory: Path, text: Path, length: int) -> torch.Tensor:
    """The text as rows of ``length`` tokens; what is left over at its end is dropped."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)


@torch.no_grad()
def losses(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """The mean loss of the prediction made at each position but the last."""
    total = torch.zeros(windows.shape[1] - 1)
    for window in windows:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        total += cross_entropy(logits, window[1:], reduction="none")
    return total / len(windows)


def perplexities(by_position: torch.Tensor) -> list[float]:
    """Perplexity within each range of positions of ``BOUNDS``."""
    return [math.exp(by_position[low:high].mean().item()) for low, high in pairwise(BOUNDS)]


def main() -> None:
    """Measure the variants and print them as a Markdown table."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Measure perplexity by position.")
    parser.add_argument("--checkpoint", type=Path, default=here / "checkpoint")
    parser.add_argument("--text", type=Path, default=here / "heldout.txt")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    windows = read_windows(options.checkpoint, options.text, BOUNDS[-1])
    config = json.loads((options.checkpoint / "config.json").read_text(encoding="utf-8"))
    headings = [f"{low}-{high}" for low, high in pairwise(BOUNDS)]
    print(f"{len(windows)} windows of {windows.shape[1]} tokens")
    print(f"| method | {' | '.join(headings)} |")
    print(f"|---|{'---:|' * len(headings)}")
    for name, changes in variants(config).items():
        row = perplexities(losses(load(options.checkpoint, changes), windows))
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in row)} |", flush=True)


if __name__ == "__main__":
    main()
