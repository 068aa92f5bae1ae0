"""What folding a temperature into the weights of a 2.2 GB bf16 Llama costs, beside ``cp -r`` and beside no baking.

Runs are interleaved (one of each, then again), the source is in the page cache for all, and each run ends when its
bytes are on the disk. Printed are medians, their ratio to ``cp -r``, and the peak memory of the process.

    python benchmarks/bake.py [--runs 5] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

HIDDEN, LAYERS, FEED_FORWARD, VOCAB, HEADS, SHARDS = 2048, 19, 5632, 32000, 32, 4

#: The shapes of a layer's matrices.
MATRICES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}
NORMS = ("input_layernorm", "post_attention_layernorm")


class Run(Struct, frozen=True, kw_only=True):
    """One process: wall-clock seconds until the disk has it, and peak memory in bytes."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Make the checkpoint, run everybody in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--make", type=Path, default=None, help="only make the checkpoint, there")
    options = parser.parse_args()
    if options.make is not None:
        make_checkpoint(options.make)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        source = work / "source"
        # In a process of its own: what a run's peak memory is counted from must be small.
        subprocess.run([sys.executable, __file__, "--make", str(source)], check=True)
        size = sum(file.stat().st_size for file in source.iterdir())
        print(f"{size / 1e9:.2f} GB in {SHARDS} shards, the largest tensor {VOCAB * HIDDEN * 2 / 1e6:.0f} MB\n")
        report(interleaved(contenders(source, work / "out"), options.runs, work))


def contenders(source: Path, out: Path) -> dict[str, list[str]]:
    """The commands, by what they are called in the table."""
    ours = [sys.executable, "-m", "ctxextend", "convert", str(source), "-m", "yarn", "-t", "8k", "-q", "-o", str(out)]
    return {
        "cp -r": ["cp", "-r", str(source), str(out)],
        "ctxextend": ours,
        "ctxextend --bake temperature": [*ours, "--bake", "temperature"],
    }


def interleaved(commands: dict[str, list[str]], runs: int, work: Path) -> dict[str, list[Run]]:
    """One uncounted round to warm up, then ``runs`` rounds in which everybody runs once."""
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            shutil.rmtree(work / "out", ignore_errors=True)
            os.sync()
            run = measure(command, work)
            if number:
                found[name].append(run)
    return found


def measure(command: Sequence[str], work: Path) -> Run:
    """Run a process and wait until the file system has written everything."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    subprocess.run(["sync", "-f", str(work)], check=True)
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} failed with {process.returncode}")
    return Run(seconds=time.perf_counter() - start, peak_bytes=usage.ru_maxrss * 1024)


def report(found: dict[str, list[Run]]) -> None:
    """Medians, ratios to cp, memory."""
    reference = statistics.median(run.seconds for run in found["cp -r"])
    print("| | median s | min-max s | times cp -r | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for name, runs in found.items():
        seconds = [run.seconds for run in runs]
        median, peak = statistics.median(seconds), max(run.peak_bytes for run in runs) / 1e6
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        print(f"| {name} | {median:.2f} | {spread} | {median / reference:.2f} | {peak:.0f} |")


def make_checkpoint(folder: Path) -> None:
    """A Llama of 2.2 GB in bfloat16, in shards with an index."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = shapes()
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {name: (torch.randn(tensors[name]) * 0.02).bfloat16() for name in names[shard::SHARDS]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(), indent=2))


def config() -> dict[str, object]:
    """Its config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}{name}.weight": shape for name, shape in MATRICES.items()}
        found |= {f"{prefix}{name}.weight": (HIDDEN,) for name in NORMS}
    return found


if __name__ == "__main__":
    main()
