"""vLLM's own code against our reading of the same config.json: its model classes, built on a CPU.

The code runs in a process of its own (rope_of_vllm.py), all configs at once. A class that fails is a problem in the
reading, and the other way round, but for settings that the class takes for something else without a word: those are
problems too, and are shown to give another rope than transformers does.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ctxextend.families import FAMILIES, Family
from ctxextend.formats.hf_layers import FULL
from ctxextend.formats.hf_read import read_rope
from ctxextend.runtimes.base import Reading
from ctxextend.runtimes.transformers import Transformers5
from ctxextend.runtimes.vllm import Vllm
from ctxextend.runtimes.vllm_families import WAYS
from scripts.fetch_runtimes import VLLM
from tests.factories import family_config
from tests.reference.test_transformers_families import FLOAT32
from tests.reference.test_transformers_versions import LENGTHS, ONE_BY_ONE, YARN, grid, scaled

ROOT: Final = Path(__file__).parent.parent.parent
#: What published configs name, where transformers' class is called otherwise.
ARCHITECTURES: Final = {"phimoe": "PhiMoEForCausalLM"}
#: The pairs that get_rope is told of, whatever the class's own are: some classes reorder weights that they load.
PAIRINGS: Final = {"whole": "half", "interleaved": "interleaved"}
#: Families with a model file whose class isn't built here.
NOT_BUILT: Final = frozenset(
    {
        # Wrappers with towers, or classes that a wrapper's config alone leads to.
        *("aria", "cohere_compass", "cosmos3_edge", "ernie4_5_vl_moe", "gemma4_unified", "glm4v", "glm4v_moe"),
        *("glm_ocr", "molmo2", "muse_glimmer", "paddleocr_vl", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl"),
        *("qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe"),
        # Kernels of a GPU at import or in the constructor: indexes, states, one attention of its own.
        *("deepseek_v32", "deepseek_v4", "flint", "glm_moe_dsa", "olmo_hybrid", "qwen3_5", "qwen3_5_moe"),
        *("qwen3_next", "qwen4_exp"),
        # Keys or layers that the tiny configs of this test don't have.
        *("afmoe", "glm4_moe", "glm4_moe_lite", "hy_v3", "lfm2", "lfm2_moe", "longcat_flash", "minimax_m2"),
        *("minimax_m2_half", "step3p5"),
    }
)
#: Families of one dictionary a layer type, of whose older form nothing is claimed.
OTHERWISE: Final = frozenset({"gemma4", "laguna"})
BUILT: Final = sorted(
    name for name, way in WAYS.items() if way not in ("absent", "transformers") and name not in NOT_BUILT
)


def kinds_of(family: Family, plain: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    specs = [group.spec for group in read_rope(plain, family).groups if group.spec is not None]
    pairs = len(specs[0].inv_freq())
    of_all = grid(pairs).close if family.name in ONE_BY_ONE else grid(pairs).full
    nested = {
        group.label: {**(YARN if group.label == FULL else {"rope_type": "default"}), "rope_theta": 10000.0}
        for group in read_rope(plain, family).groups
    }
    published = {"one dictionary for each layer type": {"rope_parameters": nested}} if family.form == "nested" else {}
    return {
        **of_all,
        **published,
        "yarn without its temperature": scaled({**YARN, "attention_factor": 1.0}),
        "yarn that isn't applied": scaled({**YARN, "apply_yarn_scaling": False}),
        "yarn with its first code's keys": scaled({**YARN, "attn_factor": 0.5, "extrapolation_factor": 0.5}),
        "yarn with a pair of other weights": scaled({**YARN, "mscale": 0.5, "mscale_all_dim": 1.0}),
        "yarn with every key": scaled({**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25}),
        "dynamic with alpha": scaled({"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}),
        "a stray factor": scaled({"rope_type": "default", "factor": 2.0}),
        "a length of the model's own": {"model_max_length": 2048},
        "two lengths": {"seq_length": 2048},
    }


def lengths_of(kind: str) -> tuple[int, ...]:
    """The lengths that are served: of the others no number depends on one."""
    return LENGTHS if "longrope" in kind or "older name" in kind else LENGTHS[1:2]


def configs_of(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    family = FAMILIES[name]
    plain = family_config(family, max_position_embeddings=4096)
    model_type = plain["model_type"]
    plain["architectures"] = [ARCHITECTURES.get(name) or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    for kind, changes in kinds_of(family, plain).items():
        if name not in OTHERWISE or "rope_scaling" not in changes:
            yield kind, {**plain, **changes}


def ask(driver: str, questions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What vLLM's code answers, by question."""
    if not VLLM.folder.is_dir():
        pytest.skip("vLLM's modules aren't set up: python scripts/fetch_runtimes.py --all")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(VLLM.folder)}
    asked = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run(
        [sys.executable, "-m", f"tests.reference.{driver}"],
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(questions)
    return {answer["id"]: answer for answer in answers}


@functools.cache
def answers() -> dict[str, dict[str, Any]]:
    """All that is asked, in one process."""
    return ask(
        "rope_of_vllm",
        [
            {"id": f"{name} {kind}", "config": config, "lengths": lengths_of(kind)}
            for name in BUILT
            for kind, config in configs_of(name)
        ],
    )


def ropes_at(answer: Mapping[str, Any], length: int) -> dict[int, list[dict[str, Any]]]:
    """The ropes at a length, by layer."""
    found: dict[int, list[dict[str, Any]]] = {}
    for rope in answer["ropes"]:
        layer = re.search(r"(?:layers|h)\.(\d+)\.", rope["module"])
        assert layer is not None, rope["module"]
        if rope["length"] == length:
            found.setdefault(int(layer.group(1)), []).append(rope)
    return found


def same(reading: Reading, config: dict[str, Any], family: Family, answer: Mapping[str, Any], length: int) -> None:
    """Every layer with a rope has the table that was read."""
    found = ropes_at(answer, length)
    compared = set()
    for group in read_rope(config, family).groups:
        if group.spec is None:
            continue
        table = reading.tables[group.label]
        for rope in (rope for layer in group.layers for rope in found.get(layer, [])):
            assert rope["inv_freq"] == pytest.approx(table.inv_freq, rel=FLOAT32)
            assert rope["attention"] == pytest.approx(table.attention_factor, rel=FLOAT32)
            assert rope["pairing"] == PAIRINGS.get(WAYS[family.name], group.spec.pairing)
            if family.softmax_mscale:
                size = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
                assert rope["scale"] * size**0.5 == pytest.approx(table.softmax_factor, rel=FLOAT32)
            compared.add(group.label)
    assert compared == set(reading.tables)


def agrees(config: dict[str, Any], family: Family, lengths: tuple[int, ...], answer: Mapping[str, Any]) -> None:
    readings = {length: Vllm().effective(config, family, length=length) for length in lengths}
    first = readings[lengths[0]]
    assert not first.absent
    assert first.unknown is None
    if "error" in answer:
        assert "tests/" not in answer["where"], "the driver fails, not vLLM"
        assert first.problem is not None, answer
        return
    if first.problem is not None:
        with pytest.raises((AssertionError, KeyError)):
            same(Transformers5().effective(config, family, length=lengths[0]), config, family, answer, lengths[0])
        return
    for length, reading in readings.items():
        same(reading, config, family, answer, length)
    rows = min(rope["rows"] for rope in answer["ropes"])
    assert first.max_context == min(answer["started"], rows)


def disagreements(name: str) -> Iterator[str]:
    for kind, config in configs_of(name):
        try:
            agrees(config, FAMILIES[name], lengths_of(kind), answers()[f"{name} {kind}"])
        except AssertionError as error:
            yield f"{kind}: {error}"


@pytest.mark.full
@pytest.mark.parametrize("name", BUILT)
def test_the_reading_is_what_the_model_class_computes(name: str) -> None:
    assert list(disagreements(name)) == []
