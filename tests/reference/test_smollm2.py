"""SmolLM2-135M, a real model: every method to 32k, loaded by transformers, compared with its plan.

``make test-all`` fetches the checkpoint first (scripts/fetch_assets.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ctxextend import Options, Recipe, open_source, plan_source, run_plan

SMOLLM2 = Path(__file__).resolve().parents[2] / "assets" / "smollm2"
TARGET = 32768

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 isn't here: python scripts/fetch_assets.py"),
]

RECIPES: Mapping[str, Recipe] = {
    name: Recipe(method=name, target=TARGET)
    for name in ("linear", "ntk", "dynamic", "ntk-by-parts", "yarn", "llama3", "auto")
} | {
    "yarn with its own parameters": Recipe(
        method="yarn",
        target=TARGET,
        options={"beta_fast": 16, "beta_slow": 2, "attention_factor": 1.2, "truncate": False},
    ),
    "longrope": Recipe(
        method="longrope",
        target=TARGET,
        options={"long_factor": [1.0 + i / 8 for i in range(32)], "short_factor": [1.0 + i / 8 for i in range(32)]},
    ),
    "rebase": Recipe(method="rebase", target=TARGET, options={"rope_theta": 5e6}),
}


def checksums(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def rotary(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb


@pytest.mark.parametrize("name", RECIPES)
def test_a_loaded_conversion_has_the_planned_rope(name: str, tmp_path: Path) -> None:
    before = checksums(SMOLLM2)
    opened = open_source(SMOLLM2)
    plan = plan_source(opened, RECIPES[name])
    out, manifest = run_plan(plan, opened, tmp_path / "out", options=Options(checksums=True))
    (group,) = plan.groups
    assert group.after is not None
    found = rotary(out)
    assert found.inv_freq.tolist() == pytest.approx(list(group.after.table.inv_freq), rel=1e-6, abs=0)
    assert found.attention_scaling == pytest.approx(group.after.table.attention_factor, rel=1e-6)
    after = checksums(out)
    assert after["model.safetensors"] == before["model.safetensors"]
    assert checksums(SMOLLM2) == before
    assert {f.path: f.sha256 for f in manifest.files} == {k: v for k, v in after.items() if k != "ctxextend.json"}
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == TARGET


def test_dynamic_stays_dynamic_where_every_runtime_named_computes_it(tmp_path: Path) -> None:
    opened = open_source(SMOLLM2)
    plan = plan_source(opened, Recipe(method="dynamic", target=TARGET, runtimes=("transformers", "mlx-lm")))
    out, _manifest = run_plan(plan, opened, tmp_path / "out", options=Options(link_mode="symlink"))
    import torch

    (group,) = plan.groups
    assert group.after is not None
    found = rotary(out)
    found(torch.zeros(1), torch.tensor([[TARGET - 1]]))
    assert found.inv_freq.tolist() == pytest.approx(list(group.after.table.inv_freq), rel=1e-6, abs=0)
