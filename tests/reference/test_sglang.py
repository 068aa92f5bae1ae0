"""SGLang itself: the rope that its own model of a config makes, against our reading of the same config.

Its modules run on the CPU in a process of their own (rope_of_sglang.py), all configs at once: it reads config.json,
finds the class, builds it and rotates with it. A model that fails is a problem in the reading and the other way round.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from ctxextend.families import FAMILIES, Family
from ctxextend.formats.hf_read import read_rope
from ctxextend.runtimes.base import Reading
from ctxextend.runtimes.sglang import Sglang
from ctxextend.runtimes.sglang_families import NEEDS_SETTINGS, WAYS
from scripts.fetch_runtimes import PINNED_BY_SGLANG, SGLANG
from tests.factories import family_config
from tests.reference import test_transformers_versions as versions
from tests.reference.test_transformers_families import FLOAT32

ROOT: Final = Path(__file__).resolve().parents[2]
#: The version that it requires; configuration classes differ between versions of 5.
TRANSFORMERS: Final = PINNED_BY_SGLANG.folder
LENGTHS: Final = (512, 4096)

#: Classes that transformers' own mapping of model types doesn't name: published configs name them.
ARCHITECTURES: Final = {"phimoe": "PhiMoEForCausalLM"}
#: What the model file of a wrapper builds, and whether it does by the wrapper's config or its language model's.
LANGUAGE_MODELS: Final = {
    "ernie4_5_vl_moe": ("ernie45_moe_vl", "Ernie4_5_VLMoeModel", False),
    "gemma4": ("gemma4_causal", "Gemma4TextModel", False),
    "gemma4_unified": ("gemma4_causal", "Gemma4TextModel", False),
    "glm4v": ("glm4", "Glm4Model", False),
    "glm4v_moe": ("glm4_moe", "Glm4MoeModel", False),
    "glm_ocr": ("glm4", "Glm4Model", False),
    "qwen2_5_vl": ("qwen2", "Qwen2Model", False),
    "qwen2_vl": ("qwen2", "Qwen2Model", False),
    "qwen3_omni_moe": ("qwen3_vl_moe", "Qwen3MoeLLMModel", False),
    "qwen3_vl": ("qwen3_vl", "Qwen3LLMModel", True),
    "qwen3_vl_moe": ("qwen3_vl_moe", "Qwen3MoeLLMModel", False),
}
#: Wrappers whose own config is needed.
WRAPPERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma4": {"model_type": "gemma4"},
    "gemma4_unified": {"model_type": "gemma4_unified"},
    "qwen3_vl": {"model_type": "qwen3_vl", "vision_config": {"depth": 1, "deepstack_visual_indexes": [0]}},
}
#: Families that are newer than SGLang's transformers: their checkpoints bring configuration classes of their own.
UNKNOWN_TO_IT: Final = frozenset({"internlm3", "iquestcoder"})
NOT_ASKED: Final = {
    # Its rotary module turns half of a head and its layers whole ones, which fails when they are run.
    ("gemma3", "a share of the head, scaled"),
    # Its long list has no positions past the top level's original length, so nothing is computed with it there.
    ("ministral3", "longrope by the top level"),
    ("ministral3", "longrope with both lengths"),
    ("ministral3", "longrope, three keys"),
}
#: Ways that look at no type: they compute where transformers, and the reading with it, refuses a dictionary.
LENIENT: Final = ("latent", "plain", "type_only")
#: How its registry says that there is no class, or transformers' that there is no configuration.
NO_CLASS: Final = ("has no SGlang implementation", "does not recognize this architecture")
SCALINGS: Final[Mapping[str, dict[str, Any]]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": versions.LLAMA3,
    "yarn": versions.YARN,
    "yarn untruncated": {**versions.YARN, "truncate": False},
}
WINDOWED: Final = {"rope_type": "default", "rope_theta": 20000.0}
#: Kinds of config for families with one dictionary a layer type.
LABELLED: Final[dict[str, dict[str, Any]]] = {
    f"{name} a layer type": {
        "rope_parameters": {"full_attention": {**settings, "rope_theta": 500000.0}, "sliding_attention": WINDOWED}
    }
    for name, settings in SCALINGS.items()
}
#: Weights are rearranged when they are loaded, from interleaved pairs to halves.
REARRANGED: Final = frozenset({"llama4"})
#: Keys that published configs have and SGLang's code asks for.
OWN: Final[Mapping[str, Mapping[str, Any]]] = {
    "deepseek_v2": {"moe_layer_freq": 1},
    "deepseek_v3": {"moe_layer_freq": 1},
    "deepseek_v32": {"moe_layer_freq": 1},
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [16, 16],
        "moe_layer_end_index": [0, 0],
        "moe_layer_start_index": [0, 0],
    },
    "exaone4": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window_pattern": "LLLG"},
    "exaone_moe": {"is_moe_layer": [False, True, True, True]},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh"},
    "glm_moe_dsa": {"moe_layer_freq": 1},
    "granitemoehybrid": {"mamba_n_heads": 2},
    "hunyuan_v1_moe": {"moe_intermediate_size": 16, "num_shared_expert": 1, "use_mixed_mlp_moe": True},
    "hy_v3": {"route_norm": True},
    "minimax_m2": {"scoring_func": "sigmoid"},
    "minimax_m2_half": {"scoring_func": "sigmoid"},
    "qwen3_next": {"full_attention_interval": 4, "linear_num_key_heads_cpu": 2, "linear_num_value_heads_cpu": 2},
    "qwen3_5": {"full_attention_interval": 4, "linear_num_key_heads_cpu": 2, "linear_num_value_heads_cpu": 2},
    "qwen3_5_moe": {"full_attention_interval": 4, "linear_num_key_heads_cpu": 2, "linear_num_value_heads_cpu": 2},
}
EVERYDAY: Final = (
    *("cohere", "deepseek_v3", "gemma3", "glm4", "gpt_oss", "llama", "mixtral", "olmo3", "phi3", "qwen2_vl", "qwen3"),
    "smollm3",
)
ASKED: Final = tuple(name for name in WAYS if name not in UNKNOWN_TO_IT)


def configs_of(family: Family, *, everyday: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    kinds = dict(versions.configs_of(family, everyday=everyday))
    if not everyday:
        own = own_kinds(kinds["longrope"]) | (LABELLED if family.form == "nested" else {})
        kinds |= {kind: {**kinds["plain"], **changes} for kind, changes in own.items()}
    for kind, config in kinds.items():
        if (family.name, kind) in NOT_ASKED:
            continue
        inner = {**config, "architectures": [architecture(family)], **OWN.get(family.name, {})}
        outer = WRAPPERS.get(family.name)
        yield kind, inner if outer is None else {**outer, "architectures": ["Wrapper"], "text_config": inner}


def own_kinds(longrope: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The kinds of config with keys that SGLang reads and transformers doesn't."""
    temperatures = {"short_mscale": 1.25, "long_mscale": 1.5}
    return {
        "dynamic with alpha": versions.scaled({"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}),
        "longrope with two temperatures": versions.scaled({**longrope["rope_scaling"], **temperatures}),
        "yarn with attn_factor": versions.scaled({**versions.YARN, "attn_factor": 0.5}),
    }


def architecture(family: Family) -> str:
    from transformers.models.auto import modeling_auto as auto

    model_type = family_config(family)["model_type"]
    for mapping in (ARCHITECTURES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES):
        if model_type in mapping:
            return str(mapping[model_type])
    return "TextModel"


def ask(questions: list[dict[str, Any]], driver: str) -> dict[str, dict[str, Any]]:
    """What SGLang answers, by question."""
    if not (SGLANG.folder.is_dir() and TRANSFORMERS.is_dir()):
        pytest.skip("SGLang's modules, or its transformers, aren't here: python scripts/fetch_runtimes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment["PYTHONPATH"] = os.pathsep.join((str(TRANSFORMERS), str(SGLANG.folder)))
    asked = "".join(json.dumps(question) + "\n" for question in questions)
    command = [sys.executable, "-m", f"tests.reference.{driver}"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(questions)
    return {answer["id"]: answer for answer in answers}


@functools.cache
def answers_of(*, everyday: bool) -> dict[str, dict[str, Any]]:
    questions = []
    for name in EVERYDAY if everyday else ASKED:
        for kind, config in configs_of(FAMILIES[name], everyday=everyday):
            question = {"id": f"{name} {kind}", "config": config, "lengths": LENGTHS}
            if name in LANGUAGE_MODELS:
                question["language_model"] = LANGUAGE_MODELS[name]
            questions.append(question)
    return ask(questions, "rope_of_sglang")


def labels_of(module: str, family: Family, config: dict[str, Any], modules: list[str]) -> set[str]:
    """The groups of layers whose rope a module is."""
    groups = [group for group in read_rope(config, family).groups if group.spec is not None]
    if "layers." in module:
        layer = int(module.partition("layers.")[2].partition(".")[0])
        return {group.label for group in groups if layer in group.layers}
    for label in ("sliding_attention", "full_attention"):
        if label in module or (label == "sliding_attention" and "local" in module):
            return {label}
    return {"full_attention"} if any("local" in other for other in modules) else {group.label for group in groups}


def agrees(family: Family, kind: str, config: dict[str, Any], answer: Mapping[str, Any]) -> None:
    way = WAYS[family.name]
    readings = {length: Sglang().effective(config, family, length=length) for length in LENGTHS}
    first = readings[LENGTHS[0]]
    assert first.unknown is None
    if "error" in answer:
        assert all(reading.problem for reading in readings.values()), answer["error"]
        assert kind != "plain" or way in ("absent", "fails") or family.name in NEEDS_SETTINGS, answer["error"]
        assert not first.absent or kind != "plain" or any(words in answer["error"] for words in NO_CLASS), answer[
            "error"
        ]
        return
    assert not first.problem or way in LENIENT, first.problem
    if first.problem:
        return
    assert first.max_context == answer["context"]
    stated = read_rope(config, family).max_position_embeddings
    for length, reading in readings.items():
        if length <= min(answer["context"], stated):
            same(reading, family, config, answer, length)


def same(reading: Reading, family: Family, config: dict[str, Any], answer: Mapping[str, Any], length: int) -> None:
    """Every rope of the model is the one that was read for its layers, and nothing else was read."""
    found = [rope for rope in answer["ropes"] if rope["length"] == length]
    pairing = {group.label: group.spec.pairing for group in read_rope(config, family).groups if group.spec}
    seen = set()
    for rope in found:
        for label in labels_of(rope["module"], family, config, [rope["module"] for rope in found]):
            table = reading.tables[label]
            assert rope["inv_freq"] == pytest.approx(table.inv_freq, rel=FLOAT32)
            assert rope["attention"] == pytest.approx(table.attention_factor, rel=FLOAT32)
            # An index has pairs of its own, and transformers' rotary modules know no pairs.
            if "pairing" in rope and "indexer" not in rope["module"] and family.name not in REARRANGED:
                assert rope["pairing"] == pairing[label]
            seen.add(label)
    assert seen == set(reading.tables)
    if answer["softmax"]:
        expected = {table.softmax_factor for table in reading.tables.values()}
        assert answer["softmax"] == pytest.approx(sorted(expected), rel=1e-9)


def disagreements(name: str, *, everyday: bool) -> Iterator[str]:
    answers = answers_of(everyday=everyday)
    for kind, config in configs_of(FAMILIES[name], everyday=everyday):
        try:
            agrees(FAMILIES[name], kind, config, answers[f"{name} {kind}"])
        except AssertionError as error:
            yield f"{kind}: {error}"


@pytest.mark.parametrize("name", EVERYDAY)
def test_the_reading_is_what_its_model_rotates_by(name: str) -> None:
    assert list(disagreements(name, everyday=True)) == []


@pytest.mark.full
@pytest.mark.parametrize("name", ASKED)
def test_the_reading_is_what_its_model_rotates_by_of_any_config(name: str) -> None:
    assert list(disagreements(name, everyday=False)) == []
