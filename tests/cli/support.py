"""A tiny checkpoint with everything that a real one has, and ways to run the command on it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

from ctxextend.cli.main import main

#: The checkpoint that comes with the project.
DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"

TRAINED = 512
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": TRAINED,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 256,
    "x_unknown": {"kept": [1, 2.50, "ü"]},
}

#: Every layer sees a window of its config, as Mistral-7B-v0.1's do.
MISTRAL: Mapping[str, Any] = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 128,
}


class Ran(NamedTuple):
    """What a run of the command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def build(folder: Path, config: Mapping[str, Any] = LLAMA) -> Path:
    """A sharded checkpoint of some 300 kB: weights, tokenizer, limits, extra files, a subfolder."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(
        folder / "tokenizer_config.json", {"model_max_length": TRAINED, "tokenizer_class": "PreTrainedTokenizerFast"}
    )
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": TRAINED, "strategy": "LongestFirst", "stride": 0},
            "padding": None,
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"},
        },
    )
    write_json(folder / "generation_config.json", {"max_length": TRAINED, "do_sample": False})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (folder / "extras" / "deep").mkdir(parents=True)
    (folder / "extras" / "deep" / "notes.txt").write_text("kept\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    write_weights(folder, config)
    return folder


def write_weights(folder: Path, config: Mapping[str, Any]) -> None:
    random = np.random.default_rng(0)
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    head_dim = hidden // config["num_attention_heads"]
    shards: tuple[dict[str, Any], ...] = ({}, {})

    def put(shard: int, name: str, *shape: int) -> None:
        shards[shard][name] = random.standard_normal(shape).astype(np.float16)

    put(0, "model.embed_tokens.weight", vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        put(layer % 2, prefix + "self_attn.q_proj.weight", hidden, hidden)
        put(layer % 2, prefix + "self_attn.k_proj.weight", config["num_key_value_heads"] * head_dim, hidden)
        put(layer % 2, prefix + "mlp.down_proj.weight", hidden, config["intermediate_size"])
    put(1, "lm_head.weight", vocabulary, hidden)
    for name, tensors in zip(SHARDS, shards, strict=True):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in zip(SHARDS, shards, strict=True) for tensor in tensors}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})


def edit_config(folder: Path, **changes: Any) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, **changes})


def as_hub_cache(folder: Path, cache: Path) -> Path:
    """The checkpoint as the Hub's cache lays it out: a snapshot of links to blobs. Answers the snapshot."""
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / ("ab" * 20)
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / sha256(file)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every entry of a folder: its mode, when it was last written, and what it says."""
    state = {}
    for path in sorted((folder, *folder.rglob("*"))):
        status = path.lstat()
        said = str(path.readlink()) if path.is_symlink() else sha256(path) if path.is_file() else "folder"
        state[path.relative_to(folder).as_posix()] = (status.st_mode, status.st_mtime_ns, said)
    return state


def contents(folder: Path) -> dict[str, str]:
    """The checksum of every file of a folder."""
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def environment(**more: str) -> dict[str, str]:
    """The environment of a run: no colour or Hub settings of whoever runs the tests."""
    dropped = ("NO_COLOR", "FORCE_COLOR", "CTXEXTEND_", "HF_", "COLUMNS", "COVERAGE_", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}


def run(*args: str | Path, cwd: Path | None = None, code: int | None = None, **env: str) -> Ran:
    """``python -m ctxextend`` in a process of its own; ``code`` is the exit code that it must have."""
    done = subprocess.run(
        [sys.executable, "-m", "ctxextend", *map(str, args)],
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ran = Ran(done.returncode, done.stdout, done.stderr)
    assert code is None or ran.code == code, ran
    assert "Traceback" not in ran.err or env.get("CTXEXTEND_DEBUG"), ran.err
    return ran


def driven(script: str, *args: str | Path, **env: str) -> subprocess.Popen[str]:
    """The command in a process of its own, after ``script`` has changed something in it. Not waited for."""
    # Whoever runs the tests may have been started with these ignored (nohup, a job in the background).
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    heard += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{heard}{script}\nfrom ctxextend.cli.main import main\nmain()", *map(str, args)],
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=120)
    return Ran(process.returncode, out, err)


def call(*args: str | Path, code: int | None = None) -> Ran:
    """The same command line in this process, where a process of its own would show nothing more."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ended: Any = None
    try:
        with (
            mock.patch.object(sys, "argv", ["ctxextend", *map(str, args)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
    except SystemExit as stop:
        ended = stop.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    ran = Ran(ended, out.getvalue(), err.getvalue())
    assert code is None or ran.code == code, ran
    return ran
