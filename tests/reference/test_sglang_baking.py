"""SGLang itself on baked weights: it ignores attention factors, and computes them all the same.

Its own models, weight loading, ropes and attention run on the CPU in a process of their own (logits_of_sglang.py), the
tiny models of test_baking.py all at once; held to what transformers computes unbaked, with the factor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.baking.applying import applied
from tests.cli.support import call
from tests.reference.test_baking import FLOAT32, NOTICED, TARGET, Case, Tensors, apart, made, tokens_of_a_run
from tests.reference.test_sglang import OWN, ROOT, architecture, ask
from tests.reference.test_smollm2 import SMOLLM2

EVERYDAY: Final = ("deepseek_v3", "gemma3", "llama", "phi3", "qwen3")
#: Families that its backend torch_native computes: no sinks, no caps of scores, no state of convolutions, and experts
#: by torch. What they need of a config for SGLang and transformers to mean the same model.
BAKED: Final[Mapping[str, Mapping[str, Any]]] = {
    **{
        name: {}
        for name in (
            *EVERYDAY,
            *("arcee", "cohere", "deepseek_v2", "ernie4_5_moe", "gemma", "glm4", "glm4_moe", "glm4_moe_lite"),
            *("granite", "granitemoe", "granitemoeshared", "hrm_text", "mellum", "ministral3", "mistral", "mixtral"),
            *("olmo2", "persimmon", "qwen2", "qwen3_moe", "stablelm", "starcoder2", "voxtral"),
        )
    },
    "exaone4_unwindowed": {"rope_theta": 1000000.0},
    "gemma2": {"attn_logit_softcapping": None, "sliding_window": 4096},
    "olmo3": {},
}
#: Whose model file has transformers' own functions, factors included.
WITH_FACTORS: Final = frozenset({"gemma3"})


def asked(folder: Path, config: Mapping[str, Any], tensors: Tensors, tokens: list[int]) -> dict[str, Any]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {"id": str(folder), "folder": str(folder), "tokens": tokens, "name": "sglang"}


def found(folder: Path, answers: Mapping[str, Mapping[str, Any]]) -> torch.Tensor:
    assert answers[str(folder)]["error"] is None
    return torch.from_numpy(np.load(folder / "sglang.npy"))


def long(case: Case, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose stated length the run doesn't pass: SGLang has no rope beyond."""
    return {**config, "max_position_embeddings": TARGET, "architectures": [architecture(case.family)]}


Answered = tuple[dict[str, Case], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    return cases(EVERYDAY, tmp_path_factory)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    return cases(tuple(BAKED), tmp_path_factory)


def cases(names: tuple[str, ...], folders: pytest.TempPathFactory) -> Answered:
    """Every case, and what SGLang answers of it, in one process.

    Four times each: the weights as they are without a scaling, with the scaling and a factor of 1, with the factor in
    config.json, and baked.
    """
    questions, built = [], {}
    tokens = tokens_of_a_run()[0].tolist()
    for name in names:
        case = built[name] = made(
            name, folders.mktemp(name), runtimes=("transformers", "sglang"), **OWN.get(name, {}), **BAKED[name]
        )
        baked = applied(case.tensors, case.changes)
        for title, config, tensors in (
            ("plain", case.source, case.tensors),
            ("unbaked", case.cold, case.tensors),
            ("declared", case.warm, case.tensors),
            ("baked", case.cold, baked),
        ):
            questions.append(asked(case.folder / title, long(case, config), tensors, tokens))
    return built, ask(questions, "logits_of_sglang")


def agrees(name: str, answered: Answered) -> None:
    built, answers = answered
    case = built[name]
    plain, unbaked, declared, baked = (
        found(case.folder / title, answers) for title in ("plain", "unbaked", "declared", "baked")
    )
    # The models are the same to begin with.
    assert apart(plain, case.logits(case.source, case.tensors, factor=1.0)) < FLOAT32
    assert apart(unbaked, case.cold_logits(case.tensors)) < FLOAT32
    expected = case.warm_logits()
    assert apart(baked, expected) < FLOAT32
    assert apart(unbaked, expected) > NOTICED
    if name in WITH_FACTORS:
        assert apart(declared, expected) < FLOAT32
    else:
        assert apart(declared, expected) > NOTICED


@pytest.mark.parametrize("name", EVERYDAY)
def test_it_computes_of_baked_weights_what_transformers_computes_unbaked(name: str, few: Answered) -> None:
    agrees(name, few)


@pytest.mark.full
@pytest.mark.parametrize("name", BAKED)
def test_it_computes_of_baked_weights_what_transformers_computes_unbaked_in_every_family(
    name: str, many: Answered
) -> None:
    agrees(name, many)


@pytest.mark.full
@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 isn't here: python scripts/fetch_assets.py")
def test_a_real_model_with_a_temperature_in_its_weights(tmp_path: Path) -> None:
    """SmolLM2 to 32k with a factor whose square, 2, is exact in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    tokens = tokenizer((ROOT / "README.md").read_text(encoding="utf-8"))["input_ids"][:256]
    factor = 2.0**0.5
    names = "transformers,sglang"
    for name, options in {
        "unbaked": ["--set", f"attention_factor={factor!r}", "--runtimes", "transformers"],
        "baked": ["--set", f"attention_factor={factor!r}", "--bake", "temperature", "--runtimes", names],
        "cold": ["--set", "attention_factor=1.0", "--runtimes", names],
    }.items():
        done = call("convert", SMOLLM2, "-m", "yarn", "-t", "32k", *options, "--out", tmp_path / name)
        assert done.code == 0, done.err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "unbaked", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model.eval()(torch.tensor([tokens])).logits[0]
    folders = [tmp_path / name for name in ("unbaked", "baked", "cold")]
    questions = [{"id": str(f), "folder": str(f), "tokens": tokens, "name": "sglang"} for f in folders]
    answers = ask(questions, "logits_of_sglang")
    unbaked, baked, cold = (found(folder, answers) for folder in folders)
    assert apart(baked, expected) < FLOAT32
    assert apart(unbaked, expected) > NOTICED
    assert apart(cold, expected) > NOTICED


def test_what_it_loads_is_what_was_saved(few: Answered) -> None:
    """The comparison isn't of a file with itself: other settings give other logits."""
    built, answers = few
    case = built["llama"]
    assert set(load_file(case.folder / "baked" / "model.safetensors")) == set(case.tensors)
    assert apart(found(case.folder / "plain", answers), found(case.folder / "unbaked", answers)) > NOTICED
