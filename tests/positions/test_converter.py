"""Exports of models without a rope through llama.cpp's converter, for which a script stands in that copies a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import save_file

from ctxextend.apply import Options
from ctxextend.errors import RefusedError
from ctxextend.pipeline import check_source, inspect_source, open_source, plan_source, run_plan
from ctxextend.recipe import Recipe
from tests.gguf_factory import keys, write_model
from tests.positions.test_gguf_files import TABLE

TRAINED, TARGET = 64, 256
SIZES: Final = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ROBERTA: Final[dict[str, Any]] = {
    "model_type": "roberta",
    "architectures": ["RobertaModel"],
    # Two rows stand in front of the first position (fairseq counts from the one after the padding token's).
    "max_position_embeddings": TRAINED + 2,
    "pad_token_id": 1,
    **SIZES,
}
BIGCODE: Final[dict[str, Any]] = {
    "model_type": "gpt_bigcode",
    "architectures": ["GPTBigCodeForCausalLM"],
    "n_positions": TRAINED,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
}
BLOOM: Final[dict[str, Any]] = {"model_type": "bloom", "seq_length": TRAINED, "n_head": 4, "n_layer": 2}


def checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = {"roberta": "embeddings.position_embeddings.weight", "gpt_bigcode": "transformer.wpe.weight"}
    rows = {"roberta": TRAINED + 2, "gpt_bigcode": TRAINED}
    weights = {"embeddings.word_embeddings.weight": np.zeros((96, 64), "f4")}
    if config["model_type"] in names:
        table = np.random.default_rng(1).standard_normal((rows[config["model_type"]], 64), "f4")
        weights[names[config["model_type"]]] = table
    save_file(weights, folder / "model.safetensors")
    return folder


def converter(folder: Path, architecture: str, *, length: int, rows: int | None) -> Path:
    """A converter that writes a file of ``rows`` positions, whatever it is given."""
    sizes = {"attention__head_count": 4, "attention__head_count_kv": None, "rope__freq_base": None}
    weights = {"token_embd.weight": np.zeros((96, 64), "f4")}
    if rows is not None:
        weights[TABLE] = np.zeros((rows, 64), "f4")
    stated = keys(architecture, **sizes, context_length=length) | {"general.file_type": 0}
    write_model(folder / "made.gguf", stated, weights)
    script = folder / "convert_hf_to_gguf.py"
    made = str(folder / "made.gguf")
    script.write_text(f"import shutil, sys\nshutil.copyfile({made!r}, sys.argv[sys.argv.index('--outfile') + 1])\n")
    return script


def exported(source: Path, script: Path, out: Path) -> Path:
    recipe = Recipe(to="gguf", outtypes=("f32",), converter=str(script))
    opened = open_source(source)
    return run_plan(plan_source(opened, recipe), opened, out, options=Options(converter=script))[0]


def extended(source: Path, out: Path) -> Path:
    opened = open_source(source)
    return run_plan(plan_source(opened, Recipe(target=TARGET)), opened, out)[0]


@pytest.mark.parametrize(("config", "architecture"), [(ROBERTA, "bert"), (BIGCODE, "starcoder")])
def test_what_was_done_before_is_known_in_the_file(tmp_path: Path, config: dict[str, Any], architecture: str) -> None:
    source = extended(checkpoint(tmp_path / "model", config), tmp_path / "long")
    script = converter(tmp_path, architecture, length=TARGET, rows=TARGET)
    path = exported(source, script, tmp_path / "long.gguf")
    found = inspect_source(open_source(path), Recipe())
    assert (found.position, found.trained_context, found.current_context) == ("learned", TRAINED, TARGET)
    assert check_source(open_source(path)).ok
    added = GGUFReader(path).fields.keys() - GGUFReader(tmp_path / "made.gguf").fields.keys()
    assert "ctxextend.record" in added
    assert all(key.startswith("ctxextend.") for key in added)
    with pytest.raises(RefusedError) as caught:
        plan_source(open_source(path), Recipe(target=2 * TARGET))
    assert caught.value.code == "baked-source"


def test_a_checkpoint_as_it_was_trained_is_left_as_the_converter_makes_it(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model", ROBERTA)
    path = exported(source, converter(tmp_path, "bert", length=TRAINED, rows=TRAINED), tmp_path / "model.gguf")
    assert path.read_bytes() == (tmp_path / "made.gguf").read_bytes()


@pytest.mark.parametrize(
    ("config", "architecture", "rows", "code"),
    [
        # As the class of another model leaves it: the rows in front are still there.
        (ROBERTA, "bert", TRAINED + 2, "other-table"),
        (ROBERTA, "bert", None, "other-table"),
        (BLOOM, "bloom", TRAINED, "other-table"),
        (ROBERTA, "jina-bert-v2", TRAINED, "other-architecture"),
    ],
)
def test_a_file_of_other_positions_is_refused(
    tmp_path: Path, config: dict[str, Any], architecture: str, rows: int | None, code: str
) -> None:
    source = checkpoint(tmp_path / "model", config)
    script = converter(tmp_path, architecture, length=rows or TRAINED, rows=rows)
    with pytest.raises(RefusedError) as caught:
        exported(source, script, tmp_path / "model.gguf")
    assert caught.value.code == code
    assert not (tmp_path / "model.gguf").exists()


def test_the_length_of_alibi_is_the_checkpoints(tmp_path: Path) -> None:
    """What a converter takes for it is another key in some classes, or a number of its own."""
    source = checkpoint(tmp_path / "model", BLOOM)
    path = exported(source, converter(tmp_path, "bloom", length=2048, rows=None), tmp_path / "model.gguf")
    found = inspect_source(open_source(path), Recipe())
    assert (found.position, found.trained_context, found.current_context) == ("alibi", TRAINED, TRAINED)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**ROBERTA, "architectures": ["RobertaForMaskedLM"]}, "says RobertaForMaskedLM; saved by AutoModel it is"),
        ({**ROBERTA, "model_type": "camembert", "architectures": ["CamembertModel"]}, "the position 2 before its own"),
        ({**ROBERTA, "model_type": "data2vec-text"}, "no models of the type data2vec-text"),
        ({**BIGCODE, "multi_query": False}, "one key-value head"),
        ({"model_type": "opt", "max_position_embeddings": TRAINED}, "no models of the type opt"),
        ({"model_type": "falcon", "alibi": True, **SIZES}, "a rope"),
    ],
)
@pytest.mark.parametrize("asked", [{"converter": "anywhere"}, {}])
def test_what_its_converter_does_not_make_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], said: str, asked: dict[str, Any]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = checkpoint(tmp_path / "model", config)
    if asked:
        asked = {"converter": str(converter(tmp_path, "bert", length=TRAINED, rows=TRAINED))}
    opened = open_source(source)
    with pytest.raises(RefusedError) as caught:
        plan_source(opened, Recipe(to="gguf", **asked))
    assert caught.value.code == "unknown-export"
    assert said in str(caught.value)
    (report,) = (report for report in check_source(opened).runtimes if report.runtime == "llama.cpp")
    assert (report.absent, report.max_context) == (True, None)
