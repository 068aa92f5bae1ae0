"""From safetensors to GGUF and back through the verbs: types, splits, other programs, records, refusals."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import load_file

from ctxextend.apply import Manifest, Options
from ctxextend.errors import CtxextendError, OutputError, RefusedError, UsageError
from ctxextend.exports.outtypes import NATIVE
from ctxextend.pipeline import check_source, inspect_source, open_source, plan_source, run_plan
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe

DEMO = Path(__file__).resolve().parents[1] / "demo" / "checkpoint"
L = 256


def converted(source: Path, out: Path, options: Options | None = None, **recipe: Any) -> tuple[Path, Manifest]:
    opened = open_source(source)
    return run_plan(plan_source(opened, Recipe(**recipe)), opened, out, options=options)


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


def edited(folder: Path, **changes: Any) -> Path:
    """A copy of the demo checkpoint with other settings."""
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value != "none at all"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("outtype", sorted(NATIVE))
def test_every_type_that_is_written_here(tmp_path: Path, outtype: str) -> None:
    path, manifest = converted(DEMO, tmp_path / "x.gguf", to="gguf", outtypes=(outtype,))
    found = types(path)
    assert found["blk.0.ffn_up.weight"] == NATIVE[outtype]
    assert found["blk.0.attn_norm.weight"] == "F32"
    assert fields(path)["llama.context_length"] == L
    assert all(verified.agrees for verified in manifest.verified)


def test_without_a_type_it_is_the_checkpoints_own(tmp_path: Path) -> None:
    path, _ = converted(DEMO, tmp_path / "x.gguf", to="gguf")
    assert types(path)["blk.0.ffn_up.weight"] == "BF16"


def test_several_types_and_parts_make_a_folder(tmp_path: Path) -> None:
    opened = open_source(DEMO)
    plan = plan_source(opened, Recipe(to="gguf", outtypes=("f16", "q8_0"), split_max_size=1_000_000))
    assert plan.out == "checkpoint-GGUF"
    out, manifest = run_plan(plan, opened, tmp_path / "Demo-GGUF")
    names = sorted(path.name for path in out.iterdir())
    assert names[-1] == "ctxextend.json"
    assert names[0].startswith("Demo-F16-00001-of-0000")
    assert any(name.startswith("Demo-Q8_0-00001-of-0000") for name in names)
    assert sorted(file.path for file in manifest.files) == names[:-1]
    for name in names[:-1]:
        assert (out / name).stat().st_size <= 1_100_000
    assert check_source(open_source(out / names[0])).ok


def test_a_published_scaling_is_exported_as_it_is_read(tmp_path: Path) -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    source = edited(tmp_path / "source", rope_scaling=llama3, rope_parameters="none at all")
    path, _ = converted(source, tmp_path / "x.gguf", to="gguf")
    assert "rope_freqs.weight" in types(path)
    # Nothing was done to it, and what its scaling was taken for is known.
    assert json.loads(fields(path)["ctxextend.record"])["method"] == "none"
    # What was trained in is the base of a later conversion, also of one that goes on from our own file.
    long, _ = converted(source, tmp_path / "long.gguf", to="gguf", method="llama3", target=4 * L)
    inspection = inspect_source(open_source(long), Recipe())
    assert [group.origin for group in inspection.groups] == ["ours"]
    plan = plan_source(open_source(long), Recipe(method="llama3", target=8 * L))
    direct = plan_source(open_source(source), Recipe(to="gguf", method="llama3", target=8 * L))
    assert after(plan) == pytest.approx(after(direct), rel=1e-6)


def after(plan: Plan) -> tuple[float, ...]:
    (group,) = plan.groups
    assert group.after is not None
    return group.after.table.inv_freq


def test_a_converted_folder_is_exported_with_its_record(tmp_path: Path) -> None:
    folder, _ = converted(DEMO, tmp_path / "long", method="yarn", target=4 * L)
    path, manifest = converted(folder, tmp_path / "x.gguf", to="gguf")
    found = fields(path)
    assert found["llama.rope.scaling.type"] == "yarn"
    assert found["llama.context_length"] == 4 * L
    assert manifest.plan.method == "yarn"
    inspection = inspect_source(open_source(path), Recipe())
    assert (inspection.trained_context, inspection.current_context) == (L, 4 * L)


@pytest.mark.parametrize("method", ["yarn", "linear", "ntk", "llama3"])
def test_there_and_back(tmp_path: Path, method: str) -> None:
    gguf, _ = converted(DEMO, tmp_path / "x.gguf", to="gguf", method=method, target=4 * L)
    back, manifest = converted(gguf, tmp_path / "back", to="safetensors")
    first, second = load_file_bits(DEMO), load_file_bits(back)
    # A tied head is written once, as transformers writes it.
    assert second.keys() == first.keys()
    assert all(np.array_equal(second[name], first[name]) for name in first)
    assert manifest.plan.target_context == 4 * L
    assert manifest.plan.method == method
    direct, _ = converted(DEMO, tmp_path / "direct", method=method, target=4 * L)
    one, other = (inspect_source(open_source(folder), Recipe()) for folder in (back, direct))
    for here, there in zip(one.groups, other.groups, strict=True):
        assert here.origin == there.origin == "ours"
        assert here.base is not None
        assert there.base is not None
        assert here.base.table().error_against(there.base.table()) < 1e-6
    assert check_source(open_source(back), against=None).ok
    assert (back / "tokenizer.json").is_file()


def load_file_bits(folder: Path) -> dict[str, Any]:
    """The tensors as their bits: numpy has no bfloat16."""
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return {
        name: np.frombuffer(
            raw[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]], np.uint8
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def test_another_target_on_the_way_back(tmp_path: Path) -> None:
    gguf, _ = converted(DEMO, tmp_path / "x.gguf", to="gguf", method="ntk", target=2 * L, outtypes=("q8_0",))
    back, _ = converted(gguf, tmp_path / "back", to="safetensors", method="yarn", target=4 * L, outtypes=("f32",))
    config = json.loads((back / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 4.0
    assert config["rope_theta"] == 10000.0
    assert load_file(back / "model.safetensors")["model.norm.weight"].dtype == np.float32


def fake(folder: Path, name: str, body: str) -> Path:
    """A program in Python."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path


#: Stands in for llama-quantize: it copies the file and says which type it has.
QUANTISER = """
import sys
from gguf import GGUFReader
from gguf.constants import LlamaFileType
source, target, kind = sys.argv[1:4]
reader = GGUFReader(source)
raw = bytearray(open(source, "rb").read())
field = reader.fields["general.file_type"]
place = field.offset + sum(int(part.nbytes) for part in field.parts[:-1])
raw[place:place + 4] = LlamaFileType["MOSTLY_" + kind].value.to_bytes(4, "little")
open(target, "wb").write(raw)
"""


@pytest.mark.parametrize("others", [(), ("f16",), ("q8_0",)])
def test_what_only_llama_cpp_writes_is_made_by_its_quantiser(tmp_path: Path, others: tuple[str, ...]) -> None:
    program = fake(tmp_path / "bin", "llama-quantize", QUANTISER)
    out = tmp_path / ("x.gguf" if not others else "x")
    outtypes = ("q4_k_m", *others)
    path, manifest = converted(DEMO, out, Options(quantizer=program), to="gguf", outtypes=outtypes)
    files = [path] if not others else [path / file.path for file in manifest.files]
    # 15: MOSTLY_Q4_K_M.
    assert fields(files[0])["general.file_type"] == 15
    assert len(files) == len(outtypes)
    left = [entry.name for entry in (path if others else tmp_path).iterdir() if entry.name.startswith(".")]
    assert not left


def test_the_quantiser_on_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake(tmp_path / "bin", "llama-quantize", QUANTISER)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    path, _ = converted(DEMO, tmp_path / "x.gguf", to="gguf", outtypes=("q4_k_m",))
    assert path.is_file()


def failing(out: Path, options: Options | None = None, source: Path = DEMO, **recipe: Any) -> CtxextendError:
    with pytest.raises(CtxextendError) as error:
        converted(source, out, options, **recipe)
    assert not out.exists()
    assert not [entry for entry in out.parent.iterdir() if "staging" in entry.name]
    return error.value


def test_without_a_quantiser_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = failing(tmp_path / "x.gguf", to="gguf", outtypes=("q4_k_m",))
    assert error.code == "no-quantizer"
    assert "--quantizer" in (error.hint or "")
    broken = fake(tmp_path / "bin", "llama-quantize", "raise SystemExit('no such tensor')")
    error = failing(tmp_path / "y.gguf", Options(quantizer=broken), to="gguf", outtypes=("q4_k_m",))
    assert isinstance(error, OutputError)
    assert "no such tensor" in (error.found or "")


#: Stands in for llama.cpp's converter: the stock one writes an attention factor as a key that nothing reads.
CONVERTER = """
import sys, numpy as np
from gguf import GGUFWriter
target = sys.argv[sys.argv.index("--outfile") + 1]
writer = GGUFWriter(target, "command-r")
for key, value in {"block_count": 1, "embedding_length": 64, "context_length": 256, "vocab_size": 96,
                   "attention.head_count": 2, "attention.key_length": 32, "rope.dimension_count": 32}.items():
    writer.add_uint32("command-r." + key, value)
writer.add_float32("command-r.rope.freq_base", 10000.0)
writer.add_string("command-r.rope.scaling.type", "none")
writer.add_float32("command-r.rope.scaling.yarn_attn_factor", 1.0)
writer.add_uint32("general.file_type", 0)
writer.add_tensor("token_embd.weight", np.zeros((96, 64), np.float32))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


@pytest.fixture
def cohere(tmp_path: Path) -> Path:
    """A family that isn't exported here."""
    return edited(
        tmp_path / "source",
        model_type="cohere",
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        head_dim="none at all",
        rope_scaling=None,
        rope_parameters="none at all",
    )


@pytest.mark.parametrize("script", ["convert_hf_to_gguf.py", "convert-hf-to-gguf"])
def test_another_architecture_is_left_to_llama_cpps_converter(tmp_path: Path, cohere: Path, script: str) -> None:
    program = fake(tmp_path / "bin", script, CONVERTER)
    asked: dict[str, Any] = {"to": "gguf", "outtypes": ("f32",), "converter": str(program.parent)}
    options = Options(converter=program.parent)
    path, manifest = converted(cohere, tmp_path / "x.gguf", options, method="yarn", target=4 * L, **asked)
    found = fields(path)
    assert found["command-r.rope.scaling.type"] == "yarn"
    assert found["command-r.rope.scaling.factor"] == 4.0
    assert found["command-r.context_length"] == 4 * L
    assert "command-r.rope.scaling.yarn_attn_factor" not in found
    assert all(verified.agrees for verified in manifest.verified)
    assert inspect_source(open_source(path), Recipe()).trained_context == L


@pytest.mark.parametrize(
    ("exported", "outtypes"),
    [(True, ("f32",)), (True, ("f16", "q8_0")), (False, ("f32",)), (False, ("f32", "q4_k_m"))],
)
def test_progress_tells_of_every_byte_once(
    tmp_path: Path, cohere: Path, exported: bool, outtypes: tuple[str, ...]
) -> None:
    converter = fake(tmp_path / "bin", "convert-hf-to-gguf", CONVERTER)
    quantizer = fake(tmp_path / "bin", "llama-quantize", QUANTISER)
    opened = open_source(DEMO if exported else cohere)
    plan = plan_source(opened, Recipe(to="gguf", outtypes=outtypes, converter=None if exported else str(converter)))
    options = Options(converter=None if exported else converter, quantizer=quantizer if "q4_k_m" in outtypes else None)
    told: list[int] = []
    out = tmp_path / ("x.gguf" if len(outtypes) == 1 else "x")
    _, manifest = run_plan(plan, opened, out, options=options, progress=lambda _name, done: told.append(done))
    written = sum(file.size_bytes for file in manifest.files)
    # What pads a tensor isn't told of.
    assert 0.99 * written <= sum(told) <= written


def test_the_converter_on_path_is_found_and_a_missing_one_told(
    tmp_path: Path, cohere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    error = failing(tmp_path / "x.gguf", source=cohere, to="gguf")
    assert error.code == "unknown-export"
    assert "--converter" in (error.hint or "")
    program = fake(tmp_path / "bin", "convert-hf-to-gguf", CONVERTER)
    monkeypatch.setenv("PATH", str(program.parent))
    path, _ = converted(cohere, tmp_path / "x.gguf", to="gguf", outtypes=("f32",))
    assert path.is_file()


def test_a_converter_that_fails_or_writes_another_architecture(tmp_path: Path, cohere: Path) -> None:
    broken = fake(tmp_path / "bin", "convert-hf-to-gguf", "raise SystemExit('Model not supported')")
    asked: dict[str, Any] = {"to": "gguf", "outtypes": ("f32",)}
    error = failing(tmp_path / "x.gguf", Options(converter=broken), source=cohere, converter=str(broken), **asked)
    assert isinstance(error, OutputError)
    assert "Model not supported" in (error.found or "")
    other = fake(tmp_path / "bin", "convert-hf-to-gguf", CONVERTER.replace("command-r", "falcon"))
    error = failing(tmp_path / "x.gguf", Options(converter=other), source=cohere, converter=str(other), **asked)
    assert error.code == "other-architecture"
    with pytest.raises(RefusedError, match="no converter"):
        converted(cohere, tmp_path / "x.gguf", converter=str(tmp_path / "nothing"), **asked)


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ({"outtypes": ("q8_0",), "method": "yarn", "target": 4 * L}, "--outtype"),
        ({"split_max_size": 1 << 20, "method": "yarn", "target": 4 * L}, "--split-max-size"),
        ({"converter": "x", "method": "yarn", "target": 4 * L}, "--converter"),
        ({"to": "gguf", "outtypes": ("q9",)}, "--outtype"),
        ({"to": "gguf", "sliding_window": "off"}, "--sliding-window"),
    ],
)
def test_options_that_say_nothing_here_are_refused(tmp_path: Path, recipe: dict[str, Any], key: str) -> None:
    error = failing(tmp_path / "x.gguf", **recipe)
    assert isinstance(error, UsageError)
    assert error.key == key


def test_safetensors_have_one_type(tmp_path: Path) -> None:
    gguf, _ = converted(DEMO, tmp_path / "x.gguf", to="gguf")
    for outtypes in (("q8_0",), ("f16", "f32")):
        error = failing(tmp_path / "back", source=gguf, to="safetensors", outtypes=outtypes)
        assert error.code == "unknown-outtype"
    error = failing(tmp_path / "back", Options(link_mode="hardlink"), source=gguf, to="safetensors")
    assert isinstance(error, UsageError)


def test_no_architecture_no_safetensors(tmp_path: Path) -> None:
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "command-r")
    for key, value in {
        "block_count": 1,
        "embedding_length": 64,
        "context_length": L,
        "attention.head_count": 2,
    }.items():
        writer.add_uint32(f"command-r.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert failing(tmp_path / "back", source=tmp_path / "x.gguf", to="safetensors").code == "unknown-export"


def test_a_window_that_is_lost_is_told(tmp_path: Path) -> None:
    source = edited(tmp_path / "source", model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=32)
    plan = plan_source(open_source(source), Recipe(to="gguf"))
    assert "window-lost" in {warning.code for warning in plan.warnings}
