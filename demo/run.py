"""``make demo``: a real conversion, proven with real numbers.

Inspects the checkpoint that comes with the project (trained to 256 tokens), extends it four times with
YaRN, inspects the result, and measures on held-out text how well both predict, by position.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers.utils import logging

from ctxextend.lab.perplexity import Window, load_model, perplexity_by_position, read_tokens

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "checkpoint"
OUTPUT = HERE / "output"
BOUNDS = (0, 128, 256, 384, 512, 768, 1024)
WINDOWS = 10


def main() -> None:
    """The whole demonstration; ends non-zero when the extended model is not the better one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="how much held-out text is read")
    windows = parser.parse_args().windows
    logging.disable_progress_bar()
    run("inspect", shown(CHECKPOINT), "--target", "1k")
    results = {"untouched": CHECKPOINT}
    for method in ("linear", "ntk", "yarn"):
        out = OUTPUT / f"demo-{method}-1k"
        quiet = () if method == "yarn" else ("--quiet",)
        run("convert", shown(CHECKPOINT), "-m", method, "-t", "1k", "-o", shown(out), "--force", *quiet)
        results[method] = out
    run("inspect", shown(results["yarn"]))
    measured = {name: measure(folder, windows) for name, folder in results.items()}
    show(measured, windows)
    untouched, yarn = measured["untouched"][-1], measured["yarn"][-1]
    if not yarn.perplexity < untouched.perplexity / 2:
        sys.exit("the extended model does not predict where the original fails")
    print(
        f"\nAt positions {yarn.start} to {yarn.end}, four times the trained length, the perplexity is "
        f"{yarn.perplexity:.1f} with YaRN and {untouched.perplexity:.0f} untouched."
    )


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run(*arguments: str) -> None:
    """One ctxextend command, shown as it is typed."""
    print(f"\n$ ctxextend {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "ctxextend", *arguments], check=True)


def measure(folder: Path, windows: int) -> tuple[Window, ...]:
    """Perplexity by position on the held-out text, of a checkpoint loaded as anyone would load it."""
    tokens = read_tokens(CHECKPOINT, (HERE / "heldout.txt").read_text(encoding="utf-8"))
    return perplexity_by_position(load_model(folder), tokens, bounds=BOUNDS, limit=windows)


def show(measured: Mapping[str, Sequence[Window]], count: int) -> None:
    """The table of perplexities."""
    first = next(iter(measured.values()))
    print(f"\nPerplexity on held-out text by position ({count} windows of {BOUNDS[-1]} tokens):\n")
    print(f"{'':12}" + "".join(f"{f'{w.start}-{w.end}':>10}" for w in first))
    for name, windows in measured.items():
        print(f"{name:12}" + "".join(f"{w.perplexity:>10.1f}" for w in windows))


if __name__ == "__main__":
    main()
