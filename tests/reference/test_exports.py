"""llama.cpp, run on the export of a tiny model of every family: its logits are those of transformers.

Within the trained context, and past the windows of models whose architecture has any.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.contents import TensorInfo
from ctxextend.exports.export import Export, export_of, values_of
from ctxextend.exports.row import Row, settings_of, sizes_of
from ctxextend.exports.rows import ROWS
from ctxextend.families import find_family
from ctxextend.formats.hf_read import read_rope
from tests.exports.apply_layouts import applied
from tests.exports.models import MODELS, save
from tests.gguf_factory import write_model
from tests.reference.libllama import Array, LoadError, logits

pytest.importorskip("xllamacpp")

VOCABULARY, CONTEXT, WINDOW = 96, 256, 32
#: The largest difference over the logits' standard deviation: two float32 programs differ by 3e-5.
SAME: Final = 1e-4
#: llama.cpp has GELU in a table of half precision, and its tanh form alone: these differ by 3e-3.
GELU: Final = 6e-3
OTHER: Final = 0.1


def export_folder(folder: Path) -> tuple[Export, dict[str, Any]]:
    """The export of a checkpoint with one weight file, and its weights."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    tensors = {
        name: TensorInfo(name=name, dtype="F32", shape=array.shape, file="model.safetensors")
        for name, array in weights.items()
    }
    family = find_family(config)
    return export_of(family.name, config, tensors, rope=read_rope(config, family)), weights


def write(path: Path, export: Export, weights: dict[str, Any]) -> Path:
    settings = {**export.values, "tokenizer.ggml.model": "none"}
    return write_model(path, settings, {layout.name: applied(layout, weights) for layout in export.layouts})


def tokens(count: int) -> Array:
    return np.random.default_rng(4).integers(6, VOCABULARY, count)


def expected(model: Any, ids: Array) -> Array:
    with torch.no_grad():
        found: Array = model(input_ids=torch.tensor(ids)[None]).logits[0].float().numpy()
    return found


#: What published configs always state.
STATED: Final = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    # As many as make the defaults of every class divide.
    "num_attention_heads": 64,
    "num_experts_per_tok": 2,
}
#: Beside that, of latent attention: the class's 128 of both fit its own 128 heads.
LATENT: Final = {"num_key_value_heads": 64, "head_dim": 64}


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.family)
def test_what_a_config_leaves_out_is_what_the_class_has(row: Row) -> None:
    stated = {**STATED, **(LATENT if "kv_lora_rank" in row.defaults else {})}
    config = CONFIG_MAPPING[row.model_type].from_dict(stated)
    silent, said = settings_of(row, stated), settings_of(row, config.to_dict())
    assert values_of(row, silent) == values_of(row, said)
    assert sizes_of(silent) == sizes_of(said)
    switches = {rule.when[0] for rule in row.tensors if rule.when is not None} | {"tie_word_embeddings"}
    assert {key: silent.on(key) for key in switches} == {key: said.on(key) for key in switches}
    for fixed in row.fixed:
        known = getattr(config, fixed.key, fixed.default)
        assert known == fixed.default or not (known or fixed.default), fixed.key
    assert getattr(transformers, row.model_class).config_class is CONFIG_MAPPING[row.model_type]


def difference(found: Array, goal: Array) -> float:
    return float(np.abs(found - goal).max() / goal.std())


@pytest.mark.parametrize("name", MODELS)
def test_logits(tmp_path: Path, name: str) -> None:
    model = save(name, tmp_path / "model")
    export, weights = export_folder(tmp_path / "model")
    path = write(tmp_path / "model.gguf", export, weights)
    # A window that the file can't have is one that these tokens don't leave.
    ids = tokens(WINDOW if any(note.code == "window-lost" for note in export.notes) else CONTEXT - 6)
    goal = expected(model, ids)
    found = logits(path, ids, context=CONTEXT, vocabulary=VOCABULARY)
    gelu = name.startswith(("gemma", "starcoder2", "gpt_neox"))
    assert difference(found, goal) < (GELU if gelu else SAME)


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt_neox"])
def test_a_layout_left_out_is_seen(tmp_path: Path, name: str) -> None:
    """Without the operations, which these leave the shapes as they are, the logits are others."""
    model = save(name, tmp_path / "model")
    export, weights = export_folder(tmp_path / "model")
    raw = tuple(msgspec.structs.replace(layout, operations=()) for layout in export.layouts)
    assert raw != export.layouts
    path = write(tmp_path / "model.gguf", msgspec.structs.replace(export, layouts=raw), weights)
    ids = tokens(WINDOW)
    assert difference(logits(path, ids, context=CONTEXT, vocabulary=VOCABULARY), expected(model, ids)) > OTHER


def test_a_window_that_is_lost_is_told(tmp_path: Path) -> None:
    """Past it llama.cpp computes something else, as the note says."""
    model = save("mistral", tmp_path / "model")
    export, weights = export_folder(tmp_path / "model")
    assert [note.code for note in export.notes] == ["window-lost"]
    ids = tokens(4 * WINDOW)
    found = logits(write(tmp_path / "model.gguf", export, weights), ids, context=CONTEXT, vocabulary=VOCABULARY)
    goal = expected(model, ids)
    assert difference(found[:WINDOW], goal[:WINDOW]) < SAME
    assert difference(found[2 * WINDOW :], goal[2 * WINDOW :]) > OTHER


def test_a_file_without_what_the_converter_leaves_out(tmp_path: Path) -> None:
    """Keys that llama.cpp's converter doesn't write for these models, and that we do."""
    save("deepseek_v2_lite", tmp_path / "lite")
    export, weights = export_folder(tmp_path / "lite")
    del export.values["deepseek2.attention.q_lora_rank"]
    with pytest.raises(LoadError, match=r"key not found in model: deepseek2\.attention\.q_lora_rank"):
        logits(write(tmp_path / "lite.gguf", export, weights), tokens(8), context=CONTEXT, vocabulary=VOCABULARY)
    for name, key in (("deepseek_v3", "deepseek2.expert_gating_func"), ("gpt_neox", "gptneox.rope.freq_base")):
        model = save(name, tmp_path / name)
        export, weights = export_folder(tmp_path / name)
        del export.values[key]
        ids = tokens(CONTEXT - 6)
        found = logits(write(tmp_path / f"{name}.gguf", export, weights), ids, context=CONTEXT, vocabulary=VOCABULARY)
        assert difference(found, expected(model, ids)) > OTHER
