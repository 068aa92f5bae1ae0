"""Every method on eleven families, written for the default runtimes and run past the trained length.

Transformers 5, transformers 4.57 and MLX-LM load the same random weights under each converted config.
Whoever isn't named by the plan's warnings, or by its refusal, must give the logits of a transformers 5
model with the planned table; whoever is named must really give others. No disagreement is silent, and
no warning is empty.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import msgspec
import numpy as np
import pytest
import torch
from mlx_lm.utils import load_model
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ctxextend.errors import RefusedError
from ctxextend.families import FAMILIES
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from tests.factories import converted, family_config, inspected, planned
from tests.reference.logits_of_model import save_logits

ROOT = Path(__file__).resolve().parents[2]
OLDER = ROOT / ".runtimes" / "transformers-4.57.6"

TRAINED, TARGET, TOKENS = 256, 1024, 320
NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "olmo2", "deepseek_v3", "glm4", "gpt_neox", "gpt_oss")
METHODS = ("linear", "ntk", "dynamic", "ntk-by-parts", "yarn", "llama3", "longrope", "rebase", "auto")
RUNNING = ("transformers 5.x", "transformers 4.56-4.57", "mlx-lm >=0.32")

#: What makes the tiny models two layers deep with every layer and every expert at work: no choice can flip.
SHAPE: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v3": {"first_k_dense_replace": 2, "num_hidden_layers": 2},
    "gemma3": {"num_hidden_layers": 6},
    "gpt_neox": {"intermediate_size": 256},
    # As published: yarn trained in, its bounds not rounded.
    "gpt_oss": {
        "num_experts_per_tok": 2,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": TRAINED // 4,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
}
#: How much more than between unextended models two runtimes may differ; a wrong table moves logits by 0.4 to 15.
MARGIN = 4.0
FLOOR = 1.5e-3
#: What a wrong table moves them by at least.
WRONG = 0.3
#: What an attention factor that is 1e-4 off does to these logits.
CARRIER = 5e-3


class Case(NamedTuple):
    """One cell: the plan, what it says against its runtimes, and each runtime's logits or why it has none."""

    plan: Plan
    refusal: RefusedError | None
    folder: Path
    goal: NDArray[np.float32]
    logits: Mapping[str, NDArray[np.float32] | str]


class Family(NamedTuple):
    """A family's unextended model and how far its runtimes are apart on it."""

    noise: Mapping[str, float]
    plain: NDArray[np.float32]
    cases: Mapping[str, Case]


def source_of(name: str) -> dict[str, Any]:
    family = FAMILIES[name]
    base = family_config(family, num_hidden_layers=2, max_position_embeddings=TRAINED)
    base |= {
        "attention_bias": name.startswith("gpt_"),
        "use_parallel_residual": True,
        "rms_norm_eps": 1e-6,
        "layer_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **SHAPE.get(name, {}),
    }
    if family.form == "phi3":
        base["original_max_position_embeddings"] = TRAINED
    return {"head_dim": 32, **base, "architectures": None}


def recipe_of(name: str, method: str, pairs: int) -> Recipe:
    options: dict[str, Any] = {}
    if method == "longrope":
        options = {"long_factor": [1.0 + 7.0 * i / pairs for i in range(pairs)]}
    if method == "rebase":
        options = {"rope_theta": 250000.0 if name != "gemma3" else 9000000.0}
    return Recipe(method=method, target=TARGET, options=options)


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    """A random model, its weights large enough that attention is sharp: a wrong table moves the logits by far."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def with_config(folder: Path, source: Path, config: Mapping[str, Any]) -> Path:
    """The same weights under another config."""
    folder.mkdir()
    for file in source.glob("*.safetensors*"):
        (folder / file.name).hardlink_to(file)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def goal_logits(source: Path, tables: Mapping[str, RopeTable], tokens: list[int]) -> NDArray[np.float32]:
    """The source's model with the planned tables put into it."""
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").float().eval()
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name.endswith("inv_freq") and "original" not in name:
                label = name.removesuffix("inv_freq").removesuffix("_")
                table = tables[label or "full_attention"]
                buffer.copy_(torch.tensor(table.inv_freq))
                setattr(module, f"{label}_attention_scaling" if label else "attention_scaling", table.attention_factor)
        if hasattr(module, "qk_head_dim") and hasattr(module, "scaling"):
            module.scaling = module.qk_head_dim**-0.5 * tables["full_attention"].softmax_factor
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    found: NDArray[np.float32] = logits.numpy()
    return found


def write_for_mlx(folder: Path) -> None:
    """gpt-oss's experts as MLX-LM has them once loaded: it unpacks the published 4 bit form alone."""
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if ".experts." in name]:
        value = weights.pop(name)
        bias = name.endswith("_bias")
        stem, kind = name.removesuffix("_bias"), "bias" if bias else "weight"
        value = value if bias else value.transpose(1, 2)
        if "gate_up_proj" in stem:
            for offset, part in enumerate(("gate_proj", "up_proj")):
                weights[f"{stem.replace('gate_up_proj', part)}.{kind}"] = value[:, offset::2].contiguous()
        else:
            weights[f"{stem}.{kind}"] = value.contiguous()
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def mlx_logits(folder: Path, tokens: list[int]) -> NDArray[np.float32] | str:
    if config_of(folder)["model_type"] == "gpt_oss":
        write_for_mlx(folder)
    try:
        model, _config = load_model(folder)
        return np.array(model(mx.array([tokens]))[0].astype(mx.float32))
    except Exception as error:  # noqa: BLE001 - what it can't load is an answer
        return f"{type(error).__name__}: {error}"[:300]


def older_logits(folders: list[Path], tokens: list[int]) -> dict[Path, NDArray[np.float32] | str]:
    """What transformers 4.57 computes in each folder, in a process of its own."""
    assert OLDER.is_dir(), f"{OLDER} is missing: python scripts/fetch_runtimes.py"
    asked = "".join(json.dumps({"folder": str(f), "tokens": tokens, "name": "older"}) + "\n" for f in folders)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("logits_of_model.py"))],
        input=asked,
        env={**os.environ, "PYTHONPATH": str(OLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = {Path(a["folder"]): a["error"] for a in map(json.loads, done.stdout.splitlines()) if "folder" in a}
    return {folder: answers[folder] or np.load(folder / "older.npy") for folder in folders}


def own_logits(folder: Path, tokens: list[int]) -> NDArray[np.float32] | str:
    return save_logits(folder, tokens, "current") or np.load(folder / "current.npy")


def plans_of(name: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Plan | None, RefusedError | None]]:
    pairs = {"glm4": 8, "gpt_neox": 4}.get(name, 16)
    for method in METHODS:
        recipe = recipe_of(name, method, pairs)
        refusal = None
        try:
            plan = planned(config, recipe)
        except RefusedError as error:
            refusal = error
            if error.code == "unwritable":
                yield method, None, error
                continue
            plan = planned(config, msgspec.structs.replace(recipe, allow=("unreadable",)))
        yield method, plan, refusal


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """Everything, computed once: 4.57 answers for all folders in one process."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokens = torch.randint(0, 96, (TOKENS,), generator=torch.Generator().manual_seed(7)).tolist()
    root = tmp_path_factory.mktemp("grid")
    mx.set_default_device(mx.cpu)
    made: dict[str, dict[str, tuple[Plan | None, RefusedError | None, Path]]] = {}
    for name in NAMES:
        config = source_of(name)
        write_model(root / name / "plain", config)
        made[name] = {"plain": (None, None, root / name / "plain")}
        for method, plan, refusal in plans_of(name, config):
            folder = root / name / method
            if plan is not None:
                with_config(folder, root / name / "plain", converted(config, plan))
            made[name][method] = (plan, refusal, folder)
    folders = [folder for cells in made.values() for _plan, _refusal, folder in cells.values() if folder.is_dir()]
    older = older_logits(folders, tokens)
    found = {}
    for name, cells in made.items():
        plain = own_logits(root / name / "plain", tokens)
        assert not isinstance(plain, str), plain
        noise, cases = {}, {}
        for method, (plan, refusal, folder) in cells.items():
            if not folder.is_dir():
                continue
            logits = {"transformers 5.x": own_logits(folder, tokens), "transformers 4.56-4.57": older[folder]}
            own = with_config(root / name / f"{method}-mlx", folder, config_of(folder))
            logits["mlx-lm >=0.32"] = mlx_logits(own, tokens)
            if plan is None:
                # Tables that are put in are rounded once more than those that a model computes.
                tables = {g.label: g.base.table() for g in inspected(source_of(name)).groups if g.base is not None}
                rounding = apart(goal_logits(folder, tables, tokens), plain)
                noise = {runtime: max(apart(own, plain), rounding) for runtime, own in logits.items()}
                continue
            tables = {group.label: group.after.table for group in plan.groups if group.after is not None}
            goal = goal_logits(root / name / "plain", tables, tokens)
            cases[method] = Case(plan=plan, refusal=refusal, folder=folder, goal=goal, logits=logits)
        found[name] = Family(noise=noise, plain=plain, cases=cases)
    return found


def apart(one: NDArray[np.float32] | str, other: NDArray[np.float32]) -> float:
    """The largest difference past the trained length; infinity for a model that can't be loaded."""
    return float("inf") if isinstance(one, str) else float(np.abs(one - other)[TRAINED:].max())


def announced(case: Case) -> set[str]:
    """The runtimes that the plan says don't read it."""
    return set(case.plan.misread)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_no_disagreement_is_silent_and_no_warning_empty(name: str, method: str, grid: dict[str, Family]) -> None:
    family = grid[name]
    case = family.cases.get(method)
    if case is None:
        with pytest.raises(RefusedError) as caught:
            planned(source_of(name), recipe_of(name, method, 16))
        assert caught.value.code == "unwritable"
        return
    if case.refusal is not None:
        assert case.refusal.code == "unreadable"
        assert all(runtime in case.refusal.message for runtime in announced(case))
    told = {w.message.split(" doesn't read", 1)[0] for w in case.plan.warnings if w.code == "unreadable"}
    assert told == announced(case)
    carried = any("carrier" in str(group.after and group.after.encoding) for group in case.plan.groups)
    for runtime in RUNNING:
        noise = family.noise[runtime]
        usual = MARGIN * (noise if np.isfinite(noise) else 0.0) + FLOOR + (CARRIER if carried else 0.0)
        error = apart(case.logits[runtime], case.goal)
        if runtime in announced(case):
            assert error > WRONG, f"{runtime} reads it as planned, though the plan says that it doesn't"
        else:
            assert error <= usual, f"{runtime} is off by {error:.3g} in silence ({case.logits[runtime]!r:.200})"
    assert apart(family.plain, case.goal) > WRONG, "the planned table changes nothing here: no test"
