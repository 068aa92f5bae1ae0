"""What reading a long text in chunks costs on the CPU, beside one plain forward of transformers.

Both answer the same question, the loss of every token: the plain forward makes the logits of all positions at
once, the engine reads chunks through its KV cache and makes logits a chunk at a time. float32, a process for each
run, runs interleaved. Printed are medians of the time inside the model and of processor time over all threads, their
ratios, and how far the resident memory rose above what it was with the weights loaded, less the KV cache (Linux: from
/proc). On a machine that others use too, only the processor time says something.

    python benchmarks/prefill.py [--runs 3] [--lengths 2048 8192] [--checkpoint assets/smollm2] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "demo" / "heldout.txt"
NAMES = {"plain": "transformers, one forward", "chunked": "ctxextend, in chunks"}


class Run(Struct, frozen=True, kw_only=True):
    """One process: seconds and processor seconds, bytes above weights and KV cache, mean loss in nats."""

    seconds: float
    processor_seconds: float
    above_bytes: int
    loss: float


def main() -> None:
    """Run both in turn at each length and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "assets" / "smollm2")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=list(NAMES), default=None, help="one run of one of them, as JSON")
    options = parser.parse_args()
    if options.only is not None:
        (length,) = options.lengths
        run = measure(options.only, options.checkpoint, length, options.threads)
        print(json.dumps(msgspec.to_builtins(run)))
        return
    print("| tokens | | s | min-max s | times | processor s | times | MB above weights and cache | mean loss |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for length in options.lengths:
        found: dict[str, list[Run]] = {name: [] for name in NAMES}
        for _ in range(options.runs):
            for name, runs in found.items():
                runs.append(in_a_process(name, options.checkpoint, length, options.threads))
        report(length, found)


def in_a_process(name: str, checkpoint: Path, length: int, threads: int) -> Run:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--checkpoint", str(checkpoint)]
    command += ["--lengths", str(length), "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return msgspec.json.decode(done.stdout, type=Run)


def report(length: int, found: dict[str, list[Run]]) -> None:
    """Two rows of the table."""
    reference = statistics.median(run.seconds for run in found["plain"])
    processor = statistics.median(run.processor_seconds for run in found["plain"])
    for name, runs in found.items():
        seconds = [run.seconds for run in runs]
        median, above = statistics.median(seconds), max(run.above_bytes for run in runs) / 1e6
        busy = statistics.median(run.processor_seconds for run in runs)
        spread = f"{min(seconds):.1f}-{max(seconds):.1f}"
        print(
            f"| {length} | {NAMES[name]} | {median:.1f} | {spread} | {median / reference:.2f} "
            f"| {busy:.1f} | {busy / processor:.2f} | {above:.0f} | {runs[0].loss:.4f} |",
            flush=True,
        )


def measure(name: str, checkpoint: Path, length: int, threads: int) -> Run:
    """Load, then read ``length`` tokens and find the loss of each but the first."""
    import torch

    from ctxextend.lab.engines.transformers import load

    torch.set_num_threads(threads)
    engine = load(checkpoint, device="cpu", dtype="float32", longest=length)
    tokens = engine.encode(TEXT.read_text(encoding="utf-8"))
    tokens = (tokens * (length // len(tokens) + 1))[:length]
    # What loading took at its peak doesn't count: the high-water mark begins anew.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    loaded = memory("VmRSS")
    begun = time.process_time()
    if name == "chunked":
        losses = engine.losses(tokens)
        return Run(
            seconds=engine.usage.seconds,
            processor_seconds=time.process_time() - begun,
            above_bytes=memory("VmHWM") - loaded - engine.cache_bytes,
            loss=sum(losses) / len(losses),
        )
    cache, seconds, loss = plain(engine.model, torch.tensor([tokens]))
    busy = time.process_time() - begun
    return Run(seconds=seconds, processor_seconds=busy, above_bytes=memory("VmHWM") - loaded - cache, loss=loss)


def plain(model: Any, ids: Any) -> tuple[int, float, float]:
    """Bytes of the cache, seconds in the model, and the mean loss, by transformers alone."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.inference_mode():
        start = time.perf_counter()
        output = model(input_ids=ids)
        seconds = time.perf_counter() - start
        cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
        return cache, seconds, float(cross_entropy(output.logits[0, :-1], ids[0, 1:]))


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
