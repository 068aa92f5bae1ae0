"""SmolLM2-135M as GGUF: llama.cpp's logits on real text past the length it is taken to be trained for.

The model is said to be trained for 512 tokens, so that a text of 768 goes past it in seconds. llama.cpp may differ from
transformers, on the same numbers, by twice what it differs by on the model that isn't extended.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from ctxextend.pipeline import open_source, plan_source, run_plan
from ctxextend.recipe import Recipe
from tests.reference.libllama import logits

ROOT: Final = Path(__file__).resolve().parents[2]
MODEL: Final = ROOT / "assets" / "smollm2"
FILE: Final = ROOT / "assets" / "smollm2-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINED: Final = 512
TARGET: Final = 2048
COUNT: Final = 768
VOCABULARY: Final = 49152

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not MODEL.is_dir(), reason="the real model isn't there: python scripts/fetch_assets.py"),
]


@cache
def tokens() -> tuple[int, ...]:
    from tokenizers import Tokenizer

    text = (ROOT / "demo" / "heldout.txt").read_text(encoding="utf-8")
    ids: list[int] = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids
    return tuple(ids[:COUNT])


def transformers_logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([tokens()])).logits[0].numpy()


def difference(gguf: Path, folder: Path) -> float:
    """Root mean square past the trained length: of rounded weights, single logits say little."""
    found = logits(gguf, np.array(tokens()), context=COUNT, vocabulary=VOCABULARY)
    off = (found - transformers_logits(folder))[TRAINED:]
    return float(np.sqrt(np.mean(off**2)))


def convert(source: Path, out: Path, **recipe: Any) -> Path:
    opened = open_source(source)
    path, _ = run_plan(plan_source(opened, Recipe(**recipe)), opened, out)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("base")
    found = {}
    for outtype in ("f16", "q8_0"):
        path = convert(MODEL, folder / f"{outtype}.gguf", to="gguf", outtypes=(outtype,))
        found[outtype] = difference(path, MODEL)
        path.unlink()
    return found


@pytest.mark.parametrize("method", ["yarn", "ntk", "llama3"])
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_an_extended_export(tmp_path: Path, base: dict[str, float], outtype: str, method: str) -> None:
    asked: dict[str, Any] = {"method": method, "target": TARGET, "original_context": TRAINED}
    gguf = convert(MODEL, tmp_path / "long.gguf", to="gguf", outtypes=(outtype,), **asked)
    folder = convert(MODEL, tmp_path / "long", **asked)
    found = difference(gguf, folder)
    assert found <= 2 * base[outtype], base
    # The comparison is worth something: another table is far from it (llama.cpp rounds activations as well, to q8).
    assert difference(gguf, MODEL) > (10 if outtype == "f16" else 3) * found


@pytest.mark.parametrize("in_place", [False, True])
def test_a_published_file_extended_and_taken_back(tmp_path: Path, *, in_place: bool) -> None:
    import shutil

    from ctxextend.pipeline import run_in_place

    copy = tmp_path / "model.gguf"
    shutil.copyfile(FILE, copy)
    opened = open_source(copy)
    plan = plan_source(opened, Recipe(method="yarn", target=TARGET, original_context=TRAINED))
    path, _ = run_in_place(plan, opened) if in_place else run_plan(plan, opened, tmp_path / "long.gguf")
    back = convert(path, tmp_path / "back", to="safetensors", outtypes=("f32",))
    plain = convert(FILE, tmp_path / "plain", to="safetensors", outtypes=("f32",))
    assert difference(path, back) <= 2 * difference(FILE, plain)
    assert difference(path, plain) > 3 * difference(path, back)
