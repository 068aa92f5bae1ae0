"""Published models: their configs under ``tests/golden/configs``, with the tensors that the rows expect of them.

The numbers of parameters are those that the Hub states on each model's page, known by heart: what the rows
expect must come to them exactly. (Of DeepSeek-V3 and Gemma 3 4B the Hub counts more: the layer that predicts
further tokens, and the vision tower.)
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import pytest

from ctxextend.contents import TensorInfo
from ctxextend.exports.export import Export, export_of, places, row_of
from ctxextend.exports.row import settings_of, sizes_of
from ctxextend.families import find_family
from ctxextend.formats.hf_read import read_rope

CONFIGS: Final = Path(__file__).parents[1] / "golden" / "configs"

PARAMETERS: Final = {
    "DeepSeek-V2-Lite": 15_706_484_224,
    "Llama-2-7b-hf": 6_738_415_616,
    "Meta-Llama-3-8B": 8_030_261_248,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mixtral-8x7B-v0.1": 46_702_792_704,
    "OLMo-2-1124-7B": 7_298_617_344,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "Phi-4-mini-instruct": 3_836_021_760,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-4B-Instruct-2507": 4_022_468_096,
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM3-3B": 3_075_098_624,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b-it": 999_885_952,
    "gemma-7b": 8_537_680_896,
    "pythia-1.4b": 1_414_647_808,
    "stablelm-2-zephyr-1_6b": 1_644_515_328,
    "starcoder2-7b": 7_173_923_840,
}


def expected_tensors(config: dict[str, Any]) -> dict[str, TensorInfo]:
    family = find_family(config)
    row = row_of(family.name)
    settings = settings_of(row, read_rope(config, family).text)
    found = {}
    for options in places(row, settings, sizes_of(settings)):
        place = options[0]
        if place.rule.spared is None or not settings.on(place.rule.spared):
            for name in place.sources:
                found[name] = TensorInfo(name=name, dtype="BF16", shape=place.shape, file="model.safetensors")
    return found


def export(name: str, **changes: Any) -> tuple[Export, dict[str, TensorInfo]]:
    config = {**json.loads((CONFIGS / name / "config.json").read_text()), **changes}
    family, tensors = find_family(config), expected_tensors(config)
    return export_of(family.name, config, tensors, rope=read_rope(config, family)), tensors


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    found, tensors = export(name)
    assert sum(math.prod(tensor.shape) for tensor in tensors.values()) == PARAMETERS[name]
    assert {source for layout in found.layouts for source in layout.sources} == set(tensors)
    # Nothing is written twice, and nothing is lost on the way.
    assert sum(math.prod(layout.shape) for layout in found.layouts) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "window"), [("Mistral-7B-v0.1", 4096), ("Phi-3-mini-4k-instruct", 2047), ("starcoder2-7b", 4096)]
)
def test_windows_that_llama_cpp_has_not_are_told(name: str, window: int) -> None:
    (note,) = export(name)[0].notes
    assert note.code == "window-lost"
    assert f" {window} tokens" in note.message


def test_a_window_as_long_as_the_context_loses_nothing() -> None:
    assert not export("Phi-4-mini-instruct")[0].notes


def test_numbers_of_experts() -> None:
    """DeepSeek-V3's own config.json: 256 experts in 8 groups of which 4 count, 3 dense layers, sigmoid scores."""
    values = export("DeepSeek-V3")[0].values
    said = {key.removeprefix("deepseek2."): value.value for key, value in values.items()}
    expected = {
        "expert_count": 256,
        "expert_used_count": 8,
        "expert_group_count": 8,
        "expert_group_used_count": 4,
        "expert_shared_count": 1,
        "leading_dense_block_count": 3,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "attention.key_length": 576,
        "attention.key_length_mla": 192,
    }
    assert {key: said[key] for key in expected} == expected


def test_groups_of_experts_that_llama_cpp_scores_otherwise_are_told() -> None:
    """DeepSeek-V2's own choice (arXiv 2405.04434, section 2.2.2): groups by their best expert."""
    (note,) = export("DeepSeek-V2-Lite", n_group=8, topk_group=3, topk_method="group_limited_greedy")[0].notes
    assert note.code == "approximate-export"
