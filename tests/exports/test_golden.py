"""Keys and tensors beside those that llama.cpp's own converter wrote (``golden/README.md``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from ctxextend.contents import GgufValue, TensorInfo
from ctxextend.exports.export import Export, export_of
from ctxextend.exports.rows import ROWS
from ctxextend.families import find_family
from ctxextend.formats.hf_read import read_rope
from tests.exports.apply_layouts import applied

GOLDEN: Final = Path(__file__).parent / "golden"
NAMES: Final = sorted(path.stem for path in GOLDEN.glob("*.json"))

#: Keys that we write and the converter doesn't everywhere: llama.cpp's own default is the same.
SAID: Final = frozenset(
    {
        "vocab_size",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "expert_weights_norm",
        "expert_gating_func",
        "attention.q_lora_rank",
    }
)
#: Where the default isn't the same, and the converter's file is wrong.
CORRECTED: Final = {
    # Its base is 20000, and llama.cpp's default 10000.
    ("gpt_neox", "rope.freq_base"),
    # transformers 5 doesn't save what the class has built in: sigmoid, and llama.cpp's default is softmax.
    ("deepseek_v3", "expert_gating_func"),
    # Without it llama.cpp doesn't load a model of that many layers.
    ("deepseek_v2_lite", "attention.q_lora_rank"),
}
DEFAULTS: Final[Mapping[str, Any]] = {
    "rope.freq_base": 10000.0,
    "expert_weights_norm": False,
    "expert_gating_func": 1,
    "attention.q_lora_rank": None,
}
#: Keys that the converter writes and we don't: the second is dead in the architecture olmo2.
UNSAID: Final = {
    ("phi3", "rope.scaling.original_context_length"): "comes with the scaling",
    ("olmo3", "rope.freq_base_swa"): "dead in this architecture",
}


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def exported(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> Export:
    family = find_family(config)
    tensors = {
        name: TensorInfo(name=name, dtype="F32", shape=tuple(shape), file="model.safetensors")
        for name, shape in shapes.items()
    }
    if family.position != "rope":
        length = next(config[key] for key in ("n_positions", "seq_length", "max_seq_len") if key in config)
        return export_of(family.name, config, tensors, rope=None, length=length)
    return export_of(family.name, config, tensors, rope=read_rope(config, family))


def counted(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """As ``make_golden.py`` counts."""
    start, found = 0, {}
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        found[name] = np.arange(start, start + size, dtype=np.float32).reshape(shapes[name])
        start += size
    return found


def plain(value: GgufValue) -> dict[str, Any]:
    if value.type == "ARRAY":
        return {"type": "ARRAY", "item": value.item, "value": list(value.value)}
    return {"type": value.type, "value": value.value}


@pytest.mark.parametrize("name", NAMES)
def test_keys(name: str) -> None:
    expected = golden(name)
    export = exported(expected["config"], expected["shapes"])
    assert export.architecture == expected["architecture"]
    prefix = f"{export.architecture}."
    ours = {key.removeprefix(prefix): plain(value) for key, value in export.values.items() if key.startswith(prefix)}
    theirs = {key.removeprefix(prefix): value for key, value in expected["keys"].items()}
    for key in ours.keys() & theirs.keys():
        assert ours[key]["type"] == theirs[key]["type"], key
        assert ours[key]["value"] == pytest.approx(theirs[key]["value"], rel=1e-7), key
    said = ours.keys() - theirs.keys()
    assert said <= SAID
    differs = {key for key in said if ours[key]["value"] != default_of(key, ours, expected["config"])}
    assert differs == {key for corrected, key in CORRECTED if corrected == name}
    assert theirs.keys() - ours.keys() == {key for unsaid, key in UNSAID if unsaid == name}


def default_of(key: str, ours: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """What llama.cpp takes for a key that isn't there (``llama_model_base::load_hparams``)."""
    if key == "vocab_size":
        return config.get("text_config", config)["vocab_size"]
    if key == "rope.freq_base_swa":
        return ours["rope.freq_base"]["value"]
    if key in ("attention.key_length", "attention.value_length"):
        return ours["embedding_length"]["value"] // ours["attention.head_count"]["value"]
    return ours["attention.key_length"]["value"] if key == "rope.dimension_count" else DEFAULTS[key]


@pytest.mark.parametrize("name", NAMES)
def test_tensors(name: str) -> None:
    """Every element is where the converter put it: the weights count, and the hash is of the converter's bytes."""
    expected = golden(name)
    export = exported(expected["config"], expected["shapes"])
    weights = counted(expected["shapes"])
    ours = {}
    for layout in export.layouts:
        array = applied(layout, weights)
        ours[layout.name] = [list(layout.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]
    assert ours == expected["tensors"]


@pytest.mark.parametrize("name", NAMES)
def test_what_stays_in_single_precision(name: str) -> None:
    expected = golden(name)
    export = exported(expected["config"], expected["shapes"])
    assert {layout.name for layout in export.layouts if layout.exact} == set(expected["exact"])


def test_every_row_is_compared() -> None:
    families = {find_family(golden(name)["config"]).name for name in NAMES}
    assert families == set(ROWS)
