"""``make demo``: a real conversion, proven with real numbers.

Extends the checkpoint that comes with the project (trained to 256 tokens) four times, runs it there, and
measures on held-out text how well each method predicts: the untouched model fails, the extended one doesn't.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "checkpoint"
HELDOUT = HERE / "heldout.txt"
OUTPUT = HERE / "output"
WINDOWS = 10
METHODS = "none,linear,ntk,ntk-by-parts,llama3,yarn"
GATE_MISSED = 4


def main() -> None:
    """The whole demonstration; ends non-zero when the extended model is not the better one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="how much held-out text is read")
    windows = parser.parse_args().windows
    run("inspect", shown(CHECKPOINT), "--target", "1k")
    yarn = shown(OUTPUT / "demo-yarn-1k")
    run("convert", shown(CHECKPOINT), "-m", "yarn", "-t", "1k", "-o", yarn, "--force")
    run("inspect", yarn)
    run("smoke", shown(CHECKPOINT), "--length", "1k", expected=GATE_MISSED)
    run("smoke", yarn)
    report = shown(OUTPUT / "compared")
    run(
        *("compare", shown(CHECKPOINT), "--methods", METHODS, "--lengths", "1k", "--tasks", "perplexity,short"),
        *("--text", shown(HELDOUT), "--windows", str(windows), "--report", report, "--force"),
    )
    measured = json.loads((OUTPUT / "compared" / "compare.json").read_text(encoding="utf-8"))
    found = {candidate["method"]: candidate for candidate in measured["candidates"]}
    untouched, extended = at_the_end(found["none"]), at_the_end(found["yarn"])
    if not extended < untouched / 2:
        sys.exit("the extended model does not predict where the original fails")
    print(
        f"\nIn the last quarter of four times the trained length, the perplexity is {extended:.1f} with YaRN and "
        f"{untouched:.0f} untouched. The page with the charts: {report}/report.html"
    )


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run(*arguments: str, expected: int = 0) -> None:
    """One ctxextend command, shown as it is typed; ``expected`` is the exit code that it must end with."""
    print(f"\n$ ctxextend {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "ctxextend", *arguments], check=False).returncode
    if code != expected:
        sys.exit(f"it ended with {code} instead of {expected}")


def at_the_end(candidate: Mapping[str, Any]) -> float:
    """The perplexity of a candidate in the last quarter of the positions: the mean of its bins, which are alike."""
    points = candidate["curves"][-1]["points"]
    last = points[-len(points) // 4 :]
    return float(sum(point["perplexity"] for point in last) / len(last))


if __name__ == "__main__":
    main()
