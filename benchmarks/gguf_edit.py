"""What editing a GGUF file of 2 GB costs, beside ``cp`` and beside the gguf package's ``gguf-new-metadata``.

Runs are interleaved (one of each, then again), the source is in the page cache for all, and each run ends when
its bytes are on the disk: all are followed by a sync of the file system. An edit in place is made of a fresh copy,
which isn't counted. Printed are medians, their ratio to ``cp``, and the peak memory of the process.

    python benchmarks/gguf_edit.py [--runs 5] [--work FOLDER] [--gigabytes 2]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from msgspec import Struct

HIDDEN, FEED_FORWARD, VOCAB, HEADS = 2048, 5632, 32000, 32
LAYER = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN, HIDDEN),
    "attn_v": (HIDDEN, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (FEED_FORWARD, HIDDEN),
    "ffn_up": (FEED_FORWARD, HIDDEN),
    "ffn_down": (HIDDEN, FEED_FORWARD),
}


class Run(Struct, frozen=True, kw_only=True):
    """One process: wall-clock seconds until the disk has it, and peak memory in bytes."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Make the file, run everybody in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--make", type=Path, default=None, help="only make the file, there")
    options = parser.parse_args()
    if options.make is not None:
        make_file(options.make, options.gigabytes)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        source = work / "source.gguf"
        # In a process of its own: what a run's peak memory is counted from must be small.
        command = [sys.executable, __file__, "--make", str(source), "--gigabytes", str(options.gigabytes)]
        subprocess.run(command, check=True)
        print(f"{source.stat().st_size / 1e9:.2f} GB")
        report(interleaved(contenders(source, work / "out.gguf", work / "own.gguf"), source, options.runs, work))


def contenders(source: Path, out: Path, own: Path) -> dict[str, list[str]]:
    """The commands, by what they are called in the table; ``own`` is a copy to be edited in place."""
    convert = [sys.executable, "-m", "ctxextend", "convert", "-q", "--method", "linear", "--factor", "2"]
    # The package's tool can't set a rope; what it sets makes no difference to what it costs.
    metadata = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", "--general-name", "another"]
    return {
        "cp": ["cp", str(source), str(out)],
        "ctxextend, new file": [*convert, str(source), "--out", str(out)],
        "ctxextend, in place": [*convert, str(own), "--in-place"],
        "gguf-new-metadata": [*metadata, str(source), str(out)],
    }


def interleaved(commands: dict[str, list[str]], source: Path, runs: int, work: Path) -> dict[str, list[Run]]:
    """One uncounted round to warm up, then ``runs`` rounds in which everybody runs once."""
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            for file in work.iterdir():
                if file != source:
                    file.unlink()
            if str(work / "own.gguf") in command:
                shutil.copyfile(source, work / "own.gguf")
            os.sync()
            run = measure(command, work)
            if number:
                found[name].append(run)
    return found


def measure(command: Sequence[str], work: Path) -> Run:
    """Run a process and wait until the file system has written everything."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    subprocess.run(["sync", "-f", str(work)], check=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return Run(seconds=time.perf_counter() - start, peak_bytes=usage.ru_maxrss * 1024)


def report(found: dict[str, list[Run]]) -> None:
    """Medians, ratios to cp, memory."""
    reference = statistics.median(run.seconds for run in found["cp"])
    print("| | median s | min-max s | times cp | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for name, runs in found.items():
        seconds = [run.seconds for run in runs]
        median, peak = statistics.median(seconds), max(run.peak_bytes for run in runs) / 1e6
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        print(f"| {name} | {median:.2f} | {spread} | {median / reference:.2f} | {peak:.0f} |")


def make_file(path: Path, gigabytes: float) -> None:
    """A Llama in F16 of about that size, with a tokenizer of 32000 words, written tensor by tensor."""
    block = sum(2 * int(np.prod(shape)) for shape in LAYER.values())
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCAB * HIDDEN) / block))
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("benchmark")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"word{number}" for number in range(VOCAB)])
    writer.add_token_scores([-float(number) for number in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (VOCAB, HIDDEN),
        **{f"blk.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in LAYER.items()},
    }
    types = {name: np.dtype(np.float32 if len(shape) == 1 else np.float16) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        kind = GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType.F16
        size = int(np.prod(shape)) * types[name].itemsize
        writer.add_tensor_info(name, shape, types[name], size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.write_tensor_data((0.02 * rng.standard_normal(shape, np.float32)).astype(types[name]))
    writer.close()


if __name__ == "__main__":
    main()
