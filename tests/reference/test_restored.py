"""Models of every exported family, through a GGUF file and back: transformers gives the same logits, to the last bit.

The real one, SmolLM2 in four bits, comes out as transformers' own reader of GGUF files writes it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import TensorInfo
from ctxextend.exports.export import export_of
from ctxextend.exports.reverse import FloatType, Restored, restored_of
from ctxextend.families import find_family
from ctxextend.formats.hf_read import read_rope
from ctxextend.tensors.restoring import GgufTensors, pieces_of, planned
from ctxextend.tensors.safetensors_writer import write_shards
from tests.exports.apply_layouts import applied
from tests.exports.models import MODELS, save
from tests.gguf_factory import write_model

Logits = NDArray[np.float32]

ROOT: Final = Path(__file__).resolve().parents[2]
OLDER: Final = ROOT / ".runtimes" / "transformers-4.57.6"
SMOLLM2: Final = ROOT / "assets" / "smollm2-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"

TOKENS: Final = {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 0}
#: Past the windows of the models, but for mistral's: the architecture llama has none, and its file can't say it.
LENGTH: Final[Mapping[str, int]] = {"mistral": 32}
#: The older transformers computes experts and latent attention in another order: the last bits differ.
ROUNDING: Final = 1e-5


class Case(NamedTuple):
    expected: Logits
    folder: Path


def restore(gguf: Path, folder: Path, *, dtype: FloatType | None = None, shard: int | None = None) -> Restored:
    contents = read_gguf(gguf)
    assert contents.gguf is not None
    found = restored_of(contents.gguf, contents.tensors, dtype=dtype)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(found.config))
    (folder / "generation_config.json").write_text(json.dumps(found.generation_config))
    with GgufTensors([gguf]) as data:
        tensors = planned(found.tensors, data.infos, found.dtype, max_shard_bytes=shard)
        write_shards(folder, tensors, pieces_of(found.tensors, data), progress=lambda _count: None)
    return found


def written_as_gguf(folder: Path, path: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    family = find_family(config)
    tensors = {
        name: TensorInfo(name=name, dtype="F32", shape=array.shape, file="model.safetensors")
        for name, array in weights.items()
    }
    export = export_of(family.name, config, tensors, rope=read_rope(config, family))
    keys = {**export.values, **{f"tokenizer.ggml.{key}": number for key, number in TOKENS.items()}}
    return write_model(path, keys, {layout.name: applied(layout, weights) for layout in export.layouts})


def tokens_of(name: str) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    found: list[int] = torch.randint(3, 96, (LENGTH.get(name, 48),), generator=generator).tolist()
    return found


def run(model: Any, name: str) -> Logits:
    with torch.no_grad():
        found: Logits = model(input_ids=torch.tensor([tokens_of(name)])).logits[0].numpy()
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    root = tmp_path_factory.mktemp("restored")
    found = {}
    for name in MODELS:
        expected = run(save(name, root / name), name)
        restore(written_as_gguf(root / name, root / f"{name}.gguf"), root / f"{name}-back", shard=100_000)
        found[name] = Case(expected, root / f"{name}-back")
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_the_same(name: str, cases: Mapping[str, Case]) -> None:
    case = cases[name]
    model, report = AutoModelForCausalLM.from_pretrained(
        case.folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert np.array_equal(run(model.eval(), name), case.expected)
    assert model.generation_config.eos_token_id == TOKENS["eos_token_id"]


@pytest.fixture(scope="module")
def older(cases: Mapping[str, Case]) -> dict[str, str | None]:
    """What transformers 4.57 says of each folder, in a process of its own."""
    assert OLDER.is_dir(), f"{OLDER} is missing: python scripts/fetch_runtimes.py"
    asked = "".join(
        json.dumps({"folder": str(case.folder), "tokens": tokens_of(name), "name": "older"}) + "\n"
        for name, case in cases.items()
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("logits_of_model.py"))],
        input=asked,
        env={**os.environ, "PYTHONPATH": str(OLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(answer["folder"]).name.removesuffix("-back"): answer["error"] for answer in answers}


@pytest.mark.parametrize("name", MODELS)
def test_the_older_transformers_computes_the_same(
    name: str, cases: Mapping[str, Case], older: Mapping[str, str | None]
) -> None:
    assert older[name] is None
    found = np.load(cases[name].folder / "older.npy")
    assert np.abs(found - cases[name].expected).max() <= ROUNDING


@pytest.mark.full
def test_smollm2_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """``scripts/fetch_assets.py`` has transformers dequantise the same file and save it in bfloat16."""
    folder = ROOT / "assets" / "smollm2"
    found = restore(SMOLLM2, tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    expected = LlamaConfig.from_pretrained(folder).to_dict()
    # The other reader takes single precision for what was written; 1e-5 is what the model's publisher has.
    expected["rms_norm_eps"] = 1e-5
    understood = LlamaConfig.from_pretrained(tmp_path / "back").to_dict()
    differing = {key for key in expected | understood if expected.get(key) != understood.get(key)}
    assert differing <= {"unk_token_id"}
    assert found.generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
