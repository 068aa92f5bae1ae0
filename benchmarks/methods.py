"""Which method keeps a real model predicting past its trained length, without training: perplexity by position.

Converts a checkpoint with each method, loads the result as anyone would, and reads the beginning of a long
text once, in float32 on the CPU. SmolLM2-135M (8192 trained) and 16384 tokens take about three minutes a row.

    python benchmarks/methods.py assets/smollm2 novel.txt --factor 4 --tokens 16384 [--methods yarn,ntk]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ctxextend import Options, Recipe, open_source, plan_source, run_plan
from ctxextend.lab.perplexity import load_model, losses, read_tokens

METHODS = "untouched,ntk,yarn,ntk-by-parts,dynamic,llama3,linear"


def main() -> None:
    """One row a method: the whole text, then each window of the trained length's quarter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--factor", type=float, default=4.0)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--methods", default=METHODS)
    options = parser.parse_args()
    tokens = read_tokens(options.checkpoint, options.text.read_text(encoding="utf-8"))[: options.tokens]
    step = 2048
    bounds = range(0, len(tokens), step)
    print(
        f"| {options.factor:g}x, {len(tokens)} tokens | all | " + " | ".join(f"{b}-{b + step}" for b in bounds) + " |"
    )
    print("|---|" + "---:|" * (len(bounds) + 1))
    for method in options.methods.split(","):
        found = measure(options.checkpoint, method, options.factor, tokens)
        windows = [perplexity(found[start : start + step]) for start in bounds]
        print(f"| {method} | " + " | ".join(f"{p:.2f}" for p in (perplexity(found), *windows)) + " |", flush=True)


def measure(checkpoint: Path, method: str, factor: float, tokens: Sequence[int]) -> list[float]:
    """The losses of one method's conversion; of the checkpoint itself for ``untouched``."""
    if method == "untouched":
        return losses(load_model(checkpoint), tokens)
    with tempfile.TemporaryDirectory() as folder:
        opened = open_source(checkpoint)
        plan = plan_source(opened, Recipe(method=method, factor=factor))
        out, _manifest = run_plan(plan, opened, Path(folder) / "out", options=Options(link_mode="symlink"))
        return losses(load_model(out), tokens)


def perplexity(found: Sequence[float]) -> float:
    """Of some losses, in nats."""
    return math.exp(sum(found) / len(found))


if __name__ == "__main__":
    main()
