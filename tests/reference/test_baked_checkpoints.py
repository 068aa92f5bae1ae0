"""What ``convert --bake`` writes, whole: run by transformers, by a runtime that knows no YaRN, by llama.cpp and MLX-LM.

Everything is held to the unbaked extension in transformers, on the demo checkpoint in float32, past its trained length.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.cli.support import DEMO, call
from tests.reference.libllama import logits as llama_cpp_logits

COUNT, TARGET = 344, 1024
VOCABULARY = 2048
TOKENS = np.random.default_rng(7).integers(2, VOCABULARY, COUNT)
#: float32, over everything that is summed up.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint in float32, and what convert makes of it."""
    folder = tmp_path_factory.mktemp("baked")
    shutil.copytree(DEMO, folder / "source")
    weights = {name: tensor.float() for name, tensor in load_file(DEMO / "model.safetensors").items()}
    save_file(weights, folder / "source" / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "source" / "config.json", {"torch_dtype": "float32"})
    for name, options in {
        "unbaked": [],
        "temperature": ["--bake", "temperature"],
        "all": ["--bake", "all"],
        "unbaked.gguf": ["--to", "gguf"],
        "temperature.gguf": ["--to", "gguf", "--bake", "temperature"],
        "buffers.gguf": ["--to", "gguf", "--bake", "buffers"],
    }.items():
        done = call("convert", folder / "source", "-m", "yarn", "-t", str(TARGET), *options, "--out", folder / name)
        assert done.code == 0, done.err
    return folder


def edit(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def transformers_logits(folder: Path, buffers: Mapping[str, torch.Tensor] | None = None) -> Any:
    """``buffers``: frequencies that the runtime takes out of the checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for values in (buffers or {}).values():
        model.model.rotary_emb.inv_freq = values
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()


@pytest.fixture(scope="module")
def expected(work: Path) -> Any:
    return transformers_logits(work / "unbaked")


def off(found: Any, expected: Any) -> float:
    """The largest difference, as a part of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ["temperature", "all"])
def test_transformers_computes_the_unbaked_extension(work: Path, expected: Any, name: str) -> None:
    config = json.loads((work / name / "config.json").read_text())
    assert config["rope_parameters"]["attention_factor"] == 1.0
    assert off(transformers_logits(work / name), expected) < TOLERANCE


def test_the_temperature_tells(work: Path, expected: Any, tmp_path: Path) -> None:
    """Without what is in the weights the logits are others: the tolerance above says something."""
    folder = shutil.copytree(work / "temperature", tmp_path / "without")
    shutil.copy(work / "source" / "model.safetensors", folder)
    assert off(transformers_logits(folder), expected) > 100 * TOLERANCE


def test_what_knows_a_plain_rope_alone_and_loads_buffers_computes_yarn(
    work: Path, expected: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(work / "all", tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    plain = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    edit(folder / "config.json", {"rope_parameters": plain, "rope_scaling": None})
    buffers = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.endswith("inv_freq")}
    assert len(buffers) == config["num_hidden_layers"]
    assert all(values.dtype == torch.float32 for values in buffers.values())
    assert off(transformers_logits(folder, buffers), expected) < TOLERANCE
    assert off(transformers_logits(folder), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["unbaked.gguf", "temperature.gguf", "buffers.gguf"])
def test_llama_cpp_computes_the_unbaked_extension(work: Path, expected: Any, name: str) -> None:
    found = llama_cpp_logits(work / name, TOKENS.astype(np.int32), context=COUNT, vocabulary=VOCABULARY)
    # Angles of positions this large are float32 in both programs, and not rounded alike (test_gguf_angles.py).
    assert off(found, expected) < 20 * TOLERANCE


def test_the_gguf_with_the_temperature_in_its_weights_declares_none(work: Path) -> None:
    shown = json.loads(call("check", work / "temperature.gguf", "--json").out)
    (reader,) = (one for one in shown["runtimes"] if one["runtime"] == "llama.cpp")
    assert [group["attention_factor"] for group in reader["groups"]] == pytest.approx([1.0], abs=1e-6)


def test_mlx_lm_ignores_the_factor_and_computes_it_all_the_same(work: Path, expected: Any) -> None:
    mx = pytest.importorskip("mlx.core")
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _config = load_model(work / "temperature")
    found = np.array(model(mx.array(TOKENS[None])).astype(mx.float32))[0]
    assert off(found, expected) < 1e-3


@pytest.mark.parametrize("name", ["temperature", "temperature.gguf"])
def test_what_is_baked_is_never_extended_once_more(work: Path, tmp_path: Path, name: str) -> None:
    done = call("convert", work / name, "-m", "yarn", "-t", str(2 * TARGET), "--out", tmp_path / name)
    assert done.code == 3
    assert "start from the checkpoint that this one was made of" in done.err


def test_nor_on_the_way_back_from_gguf(work: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    assert call("convert", work / "temperature.gguf", "--to", "safetensors", "--out", back).code == 0
    assert json.loads((back / "config.json").read_text())["ctxextend"]["baked"] == "temperature"
    assert call("convert", back, "-m", "yarn", "-t", str(2 * TARGET), "--out", tmp_path / "out").code == 3
    assert call("convert", work / "temperature", "--to", "gguf", "--out", tmp_path / "again.gguf").code == 0
    assert call("convert", tmp_path / "again.gguf", "-t", str(2 * TARGET), "--out", tmp_path / "x.gguf").code == 3
