"""Baked weights in vLLM: its own model classes, run on a CPU, against transformers' of the unbaked checkpoint.

The classes, their loading of weights, layers, norms and ropes are vLLM's (logits_of_vllm.py says what isn't). A plain
model shows that what stands in for its kernels is right; one that lost its temperature, that this is seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ctxextend.families import FAMILIES
from ctxextend.runtimes.vllm_families import WAYS
from tests.baking.applying import applied
from tests.reference.test_baking import FLOAT32, NOTICED, TRAINED, Tensors, apart, built, made, tokens_of_a_run
from tests.reference.test_vllm import ask

RUN_IN_VLLM: Final = (
    *("cohere", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3", "glm4"),
    *("granite", "hyperclovax", "internlm3", "llama", "minicpm3", "ministral3", "mistral", "nemotron", "phi3"),
    *("qwen2", "qwen3", "stablelm"),
)


class Run(NamedTuple):
    """A checkpoint that vLLM computes, and what transformers computes of another that should be the same."""

    folder: Path
    expected: torch.Tensor


def runs_of(name: str, folder: Path) -> dict[str, Run]:
    folder.mkdir()
    case = made(name, folder, runtimes=("transformers", "vllm"))
    architecture = type(built(case.source, folder / "named")).__name__
    warm = case.warm_logits()
    asked: dict[str, tuple[dict[str, Any], Tensors, torch.Tensor]] = {
        "plain": (case.source, case.tensors, case.logits(case.source, case.tensors, factor=1.0)),
        "baked": (case.cold, applied(case.tensors, case.changes), warm),
        "without": (case.cold, case.tensors, warm),
    }
    # Latent attention reads its temperature elsewhere, and MiniCPM3's class doesn't weigh its softmax.
    if not case.patched and WAYS[name] != "latent" and not FAMILIES[name].softmax_mscale:
        asked["unbaked"] = (case.warm, case.tensors, warm)
    found = {}
    for label, (config, tensors, expected) in asked.items():
        run = folder / f"vllm-{label}"
        run.mkdir()
        (run / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
        save_file(tensors, run / "model.safetensors", metadata={"format": "pt"})
        # A config that isn't extended has cosines up to its own length.
        short = case.patched or label == "plain"
        found[label] = Run(run, expected[:TRAINED] if short else expected)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """How far vLLM's logits are from the expected ones, by family and run: all of them in one process."""
    base = tmp_path_factory.mktemp("vllm")
    ask("logits_of_vllm", [])
    tokens = tokens_of_a_run()[0].tolist()
    asked = {(name, label): run for name in RUN_IN_VLLM for label, run in runs_of(name, base / name).items()}
    answers = ask(
        "logits_of_vllm",
        [
            {"id": f"{name} {label}", "folder": str(run.folder), "tokens": tokens[: len(run.expected)]}
            for (name, label), run in asked.items()
        ],
    )
    found: dict[str, dict[str, float]] = {name: {} for name in RUN_IN_VLLM}
    for (name, label), run in asked.items():
        assert answers[f"{name} {label}"]["error"] is None, answers[f"{name} {label}"]
        found[name][label] = apart(torch.from_numpy(np.load(run.folder / "vllm.npy")), run.expected)
    return found


@pytest.mark.full
@pytest.mark.parametrize("name", RUN_IN_VLLM)
def test_vllm_computes_the_same_of_baked_weights(name: str, runs: dict[str, dict[str, float]]) -> None:
    found = dict(runs[name])
    assert found.pop("without") > NOTICED
    assert {label: off for label, off in found.items() if off >= FLOAT32} == {}
