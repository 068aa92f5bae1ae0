"""llama.cpp, run on exports of models without a rope: its logits are those of transformers, past the trained length.

What extends a checkpoint on the side of transformers is made here, by numpy and by hand: a larger table, and the length
in config.json.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.mpt.modeling_mpt import MptModel, build_mpt_alibi_tensor

from ctxextend.apply import Options
from ctxextend.changes import SetKey
from ctxextend.errors import RefusedError, UsageError
from ctxextend.gguf_apply import convert_in_place
from ctxextend.pipeline import check_source, inspect_source, open_source, run_plan
from ctxextend.plan import Plan
from ctxextend.position_export import make_position_export_plan
from ctxextend.position_gguf import make_position_gguf_plan
from ctxextend.position_import import make_position_import_plan
from ctxextend.recipe import Recipe
from tests.exports.models import POSITION_MODELS, save
from tests.file_systems import need_insertion
from tests.gguf_factory import write_model
from tests.reference.libllama import Array, logits, settings_of, weights_of
from tests.reference.test_gguf_conversions import write_tokenizer

pytest.importorskip("xllamacpp")

TRAINED, TARGET, COUNT, VOCABULARY = 128, 512, 344, 96
#: llama.cpp has GELU in a table of half precision, and its tanh form alone: these differ by 3e-3.
SAME: Final = 6e-3
#: What leaving out one step, or taking the rows of another place, comes to at least.
OTHER: Final = 0.1
#: The key of config.json that states the length, by the model's type.
LENGTHS: Final = {"gpt2": "n_positions", "bloom": "seq_length", "mpt": "max_seq_len"}
ALIBI: Final = [name for name in POSITION_MODELS if not name.startswith("gpt2")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model, made when it is asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save(name, made[name])
            write_tokenizer(made[name])
        return made[name]

    return folder


def tokens(count: int) -> Array:
    return np.random.default_rng(4).integers(6, VOCABULARY, count)


def plan_of(folder: Path, **recipe: Any) -> Plan:
    opened = open_source(folder)
    asked = Recipe(**recipe)
    inspection = inspect_source(opened, asked)
    if opened.contents.gguf is None:
        return make_position_export_plan(opened.contents, inspection, asked)
    make = make_position_import_plan if asked.to == "safetensors" else make_position_gguf_plan
    return make(opened.contents, inspection, asked)


def convert(folder: Path, out: Path, **recipe: Any) -> Path:
    return run_plan(plan_of(folder, **recipe), open_source(folder), out)[0]


def export(folder: Path, out: Path, **recipe: Any) -> Path:
    return convert(folder, out, to="gguf", **{"outtypes": ("f32",), **recipe})


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()


def expected(model: Any, ids: Array) -> Array:
    with torch.no_grad():
        found: Array = model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].float().numpy()
    return found


def difference(path: Path, goal: Array, ids: Array, *, after: int = 0) -> float:
    """The largest difference from position ``after`` on, over how far logits lie apart."""
    found = logits(path, ids, context=max(len(ids), TRAINED), vocabulary=VOCABULARY)
    return float(np.abs(found - goal)[after:].max() / goal[after:].std())


def spread(table: Array, rows: int) -> Array:
    """Position j of the new ones at j / factor of the old ones, as in Position Interpolation (arXiv 2306.15595)."""
    places = np.arange(rows) * len(table) / rows
    return np.stack([np.interp(places, np.arange(len(table)), column) for column in table.T], axis=1).astype("f4")


def tiled(table: Array, rows: int) -> Array:
    return np.tile(table, (-(-rows // len(table)), 1))[:rows]


def extended(source: Path, folder: Path, rows: Callable[[Array, int], Array] | None = None) -> Path:
    """The checkpoint by hand: the length, and where there is a table, that."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config[LENGTHS[config["model_type"]]] = TARGET
    (folder / "config.json").write_text(json.dumps(config))
    if rows is not None:
        weights = load_file(folder / "model.safetensors")
        weights["transformer.wpe.weight"] = np.ascontiguousarray(rows(weights["transformer.wpe.weight"], TARGET))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", POSITION_MODELS)
def test_an_export_computes_what_transformers_computes(
    models: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    source, ids = models(name), tokens(TRAINED)
    path = export(source, tmp_path / "model.gguf")
    assert difference(path, expected(loaded(source), ids), ids) < SAME


@pytest.mark.parametrize(("interpolation", "rows"), [("linear", spread), ("tiled", tiled)])
def test_an_extended_table_computes_what_transformers_computes(
    models: Callable[[str], Path], tmp_path: Path, interpolation: str, rows: Callable[[Array, int], Array]
) -> None:
    source, ids = models("gpt2"), tokens(COUNT)
    long = extended(source, tmp_path / "long", rows)
    options = {"method": "absolute", "options": {"interpolation": interpolation}}
    path = export(source, tmp_path / "long.gguf", target=TARGET, **options)
    goal = expected(loaded(long), ids)
    assert difference(path, goal, ids) < SAME
    assert difference(path, goal, ids, after=TRAINED) < SAME
    other = extended(source, tmp_path / "other", tiled if rows is spread else spread)
    assert difference(path, expected(loaded(other), ids), ids, after=TRAINED) > OTHER


@pytest.mark.parametrize("name", ALIBI)
def test_alibi_goes_on_as_in_transformers(models: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    source, ids = models(name), tokens(COUNT)
    path = export(source, tmp_path / "long.gguf", factor=4)
    goal = expected(loaded(extended(source, tmp_path / "long")), ids)
    assert difference(path, goal, ids, after=TRAINED) < SAME


@pytest.mark.parametrize("name", ["gpt2", "bloom", "mpt"])
def test_an_extension_is_recognised(models: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    path = export(models(name), tmp_path / "long.gguf", factor=4)
    opened = open_source(path)
    inspection = inspect_source(opened, Recipe())
    assert (inspection.trained_context, inspection.current_context) == (TRAINED, TARGET)
    assert inspection.position == ("learned" if name == "gpt2" else "alibi")
    assert check_source(opened).ok
    fields = GGUFReader(path).fields
    assert fields[f"{name}.context_length"].contents() == TARGET
    assert "ctxextend.record" in fields


@pytest.mark.parametrize("name", ["gpt2", "bloom", "mpt"])
def test_other_types_load_and_are_near(models: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    source, ids = models(name), tokens(COUNT)
    folder = export(source, tmp_path / "long", outtypes=("f32", "f16", "q8_0"), factor=4)
    goal = logits(folder / "long-F32.gguf", ids, context=COUNT, vocabulary=VOCABULARY)
    assert difference(folder / "long-F16.gguf", goal, ids) < 0.05
    assert difference(folder / "long-Q8_0.gguf", goal, ids) < 0.5
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(folder / "long-Q8_0.gguf").tensors}
    assert kinds["blk.0.attn_qkv.weight"] == "Q8_0"
    assert kinds.get("position_embd.weight", "F32") == "F32"


def test_other_precisions_of_the_source(models: Callable[[str], Path], tmp_path: Path) -> None:
    """A table in bfloat16 grows as one in float32 does, and then stands in the file in single precision."""
    source, ids = models("gpt2"), tokens(COUNT)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    write_tokenizer(tmp_path / "half")
    path = export(tmp_path / "half", tmp_path / "long.gguf", factor=4)
    weights = load_file_as_float(tmp_path / "half" / "model.safetensors")
    found = next(t for t in GGUFReader(path).tensors if t.name == "position_embd.weight")
    goal = spread(weights["transformer.wpe.weight"], TARGET)
    # Rounded to the source's type once.
    np.testing.assert_allclose(found.data, goal, rtol=2**-8, atol=1e-6)
    assert np.isfinite(logits(path, ids, context=COUNT, vocabulary=VOCABULARY)).all()


def load_file_as_float(path: Path) -> dict[str, Array]:
    from safetensors.torch import load_file as load

    return {name: weight.float().numpy() for name, weight in load(path).items()}


def test_a_feed_forward_of_its_own_width(tmp_path: Path) -> None:
    """llama.cpp's converter takes four times the width whatever ``n_inner`` says."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": TRAINED}
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_inner=96, initializer_range=0.3)).eval()
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    ids = tokens(TRAINED)
    path = export(tmp_path / "model", tmp_path / "model.gguf")
    assert difference(path, expected(model, ids), ids) < SAME


def test_mpt_as_its_own_code_has_it(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases and other slopes: what transformers' class leaves out, and llama.cpp computes."""
    source, ids = models("mpt"), tokens(TRAINED)
    model = loaded(source)
    torch.manual_seed(6)
    names: dict[str, Any] = {}
    for number, block in enumerate(model.transformer.blocks):
        parts = {
            "norm_1": block.norm_1,
            "norm_2": block.norm_2,
            "attn.Wqkv": block.attn.Wqkv,
            "attn.out_proj": block.attn.out_proj,
            "ffn.up_proj": block.ffn.up_proj,
            "ffn.down_proj": block.ffn.down_proj,
        }
        names |= {f"transformer.blocks.{number}.{name}": part for name, part in parts.items()}
    names["transformer.norm_f"] = model.transformer.norm_f
    weights = load_file(source / "model.safetensors")
    for name, part in names.items():
        part.bias = nn.Parameter(0.3 * torch.randn(part.weight.shape[0]))
        weights |= {f"{name}.{kind}": value.detach().numpy() for kind, value in part.named_parameters()}
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["no_bias"] = False
    config["attn_config"] |= {"alibi_bias_max": 16}
    (folder / "config.json").write_text(json.dumps(config))

    def steeper(_model: Any, heads: int, length: int, *_: Any, device: Any = None) -> Any:
        return build_mpt_alibi_tensor(heads, length, 16, device)

    monkeypatch.setattr(MptModel, "build_mpt_alibi_tensor", steeper)
    path = export(folder, tmp_path / "model.gguf")
    goal = expected(model, ids)
    assert difference(path, goal, ids) < SAME
    assert [w.code for w in plan_of(folder, to="gguf").warnings] == ["approximate-export"]
    monkeypatch.undo()
    assert float(np.abs(expected(model, ids) - goal).max() / goal.std()) > OTHER


# Files that exist.


@pytest.mark.parametrize("name", ["bloom", "mpt_clipped"])
def test_alibi_of_a_file_is_raised(models: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    source, ids = models(name), tokens(COUNT)
    path = export(source, tmp_path / "model.gguf")
    before = path.read_bytes()
    long = convert(path, tmp_path / "long.gguf", factor=4)
    assert path.read_bytes() == before
    goal = expected(loaded(extended(source, tmp_path / "long")), ids)
    assert difference(long, goal, ids, after=TRAINED) < SAME
    inspection = inspect_source(open_source(long), Recipe())
    assert (inspection.trained_context, inspection.current_context) == (TRAINED, TARGET)
    # A second conversion starts from the base; within the trained length nothing of the first remains.
    longer = convert(long, tmp_path / "longer.gguf", target=2 * TARGET)
    assert plan_of(longer, target=2 * TARGET).digest == plan_of(path, target=2 * TARGET).digest
    back = convert(longer, tmp_path / "back.gguf", target=TRAINED)
    assert GGUFReader(back).fields.keys() == GGUFReader(path).fields.keys()
    assert inspect_source(open_source(back), Recipe()).current_context == TRAINED


def test_alibi_of_a_file_is_raised_in_place(models: Callable[[str], Path], tmp_path: Path) -> None:
    need_insertion(tmp_path)
    path = export(models("bloom"), tmp_path / "model.gguf")
    opened = open_source(path)
    convert_in_place(plan_of(path, factor=4), opened.contents, tmp_path)
    assert inspect_source(open_source(path), Recipe()).current_context == TARGET
    assert np.isfinite(logits(path, tokens(COUNT), context=COUNT, vocabulary=VOCABULARY)).all()


@pytest.mark.parametrize("to", ["gguf", "safetensors"])
def test_a_table_in_a_file_that_holds_the_target(models: Callable[[str], Path], tmp_path: Path, to: str) -> None:
    path = export(models("gpt2"), tmp_path / "model.gguf")
    plan = plan_of(path, to=to, target=TRAINED // 2)
    assert (plan.method, plan.trained_context) == ("none", TRAINED)
    assert not any(isinstance(action, SetKey) for action in plan.actions)
    for asked, code in (
        ({"target": TRAINED // 2, "method": "absolute"}, "within-trained"),
        ({"factor": 4.0, "method": "yarn"}, "no-rope"),
        ({"factor": 4.0, "method": "alibi"}, "other-positions"),
    ):
        with pytest.raises(RefusedError) as caught:
            plan_of(path, to=to, **asked)
        assert caught.value.code == code


def test_what_transformers_rounds_is_nothing_to_llama_cpp(models: Callable[[str], Path], tmp_path: Path) -> None:
    """In half precision, at 65536 tokens, it would be tens of nats."""
    half = AutoModelForCausalLM.from_pretrained(models("bloom")).to(torch.bfloat16)
    shutil.copytree(models("bloom"), tmp_path / "half")
    half.save_pretrained(tmp_path / "half")
    path = export(tmp_path / "half", tmp_path / "model.gguf")
    opened = open_source(tmp_path / "half")
    exporting = make_position_export_plan(
        opened.contents, inspect_source(opened, Recipe()), Recipe(to="gguf", target=65536)
    )
    for plan, said in (
        (exporting, False),
        (plan_of(path, to="gguf", target=65536), False),
        (plan_of(path, to="safetensors", target=65536, outtypes=("bf16",)), True),
    ):
        assert ("alibi-rounded" in {warning.code for warning in plan.warnings}) == said


@pytest.mark.parametrize("asked", [{"factor": 4.0}, {"method": "absolute", "factor": 2.0}])
def test_a_table_in_a_file_is_refused(models: Callable[[str], Path], tmp_path: Path, asked: dict[str, Any]) -> None:
    path = export(models("gpt2"), tmp_path / "model.gguf")
    with pytest.raises(RefusedError) as caught:
        plan_of(path, **asked)
    assert (caught.value.code, caught.value.key) == ("stored-positions", "position_embd.weight")
    assert "safetensors" in str(caught.value.hint)


def test_a_table_that_was_extended_is_refused_too(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = export(models("gpt2"), tmp_path / "long.gguf", factor=4)
    with pytest.raises(RefusedError) as caught:
        plan_of(path, target=2 * TARGET)
    assert caught.value.code == "baked-source"


def test_llama_cpp_aborts_past_a_table(models: Callable[[str], Path], tmp_path: Path) -> None:
    """The reader's words for gpt2: the length of its table is the end. In a process of its own, which dies."""
    path = export(models("gpt2"), tmp_path / "model.gguf")
    program = (
        "import sys; from pathlib import Path; from tests.reference.libllama import logits\n"
        "logits(Path(sys.argv[1]), [7] * int(sys.argv[2]), context=256, vocabulary=96)"
    )

    def code(count: int) -> int:
        command = [sys.executable, "-c", program, str(path), str(count)]
        return subprocess.run(command, capture_output=True, check=False, env={"GGML_NO_BACKTRACE": "1"}).returncode

    assert code(TRAINED) == 0
    assert code(TRAINED + 1) == -signal.SIGABRT


@pytest.mark.parametrize(("layers", "position"), [(32, "rope"), (40, "alibi")])
def test_what_a_baichuan_has_goes_by_its_layers(tmp_path: Path, layers: int, position: str) -> None:
    """The 13B passes over every key of a rope, which its files have all the same."""
    weights = weights_of("baichuan")
    for layer in range(2, layers):
        weights |= {f"blk.{layer}.{name[6:]}": array for name, array in weights.items() if name[:6] == "blk.0."}
    scaled = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    files = []
    for name, more in (("plain.gguf", {}), ("scaled.gguf", scaled)):
        said = settings_of("baichuan", block_count=layers, context_length=TRAINED, **more)
        files.append(write_model(tmp_path / name, said, weights))
    plain, other = (logits(path, tokens(TRAINED) % 64, context=TRAINED) for path in files)
    assert inspect_source(open_source(files[0]), Recipe()).position == position
    assert (float(np.abs(plain - other).max() / plain.std()) > OTHER) == (position == "rope")


# Back to safetensors.


@pytest.mark.parametrize("name", ["gpt2", "bloom", "mpt_clipped"])
@pytest.mark.parametrize("factor", [None, 4.0])
def test_a_file_goes_back(models: Callable[[str], Path], tmp_path: Path, name: str, factor: float | None) -> None:
    """Every tensor as it was, the table with the rows that it got; and what was done is known there too."""
    source = models(name)
    path = export(source, tmp_path / "model.gguf", factor=factor)
    back = convert(path, tmp_path / "back", to="safetensors")
    made, wanted = load_file(back / "model.safetensors"), load_file(source / "model.safetensors")
    if factor is not None and name == "gpt2":
        wanted["transformer.wpe.weight"] = spread(wanted["transformer.wpe.weight"], TARGET)
    assert made.keys() == wanted.keys()
    for tensor, array in wanted.items():
        np.testing.assert_allclose(made[tensor], array, rtol=1e-6, atol=1e-6 if "wpe" in tensor else 0, err_msg=tensor)
    length = TRAINED if factor is None else TARGET
    inspection = inspect_source(open_source(back), Recipe())
    assert (inspection.trained_context, inspection.current_context) == (TRAINED, length)
    ids = tokens(length if factor is None else COUNT)
    assert difference(path, expected(loaded(back), ids), ids) < SAME


def test_a_file_goes_back_with_a_longer_length(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = export(models("bloom"), tmp_path / "model.gguf")
    back = convert(path, tmp_path / "back", to="safetensors", factor=4)
    inspection = inspect_source(open_source(back), Recipe())
    assert (inspection.trained_context, inspection.current_context) == (TRAINED, TARGET)
    with pytest.raises(RefusedError) as caught:
        plan_of(export(models("gpt2"), tmp_path / "table.gguf"), to="safetensors", factor=4.0)
    assert caught.value.code == "stored-positions"


# What is refused.


def test_a_method_of_a_rope_is_refused(models: Callable[[str], Path]) -> None:
    with pytest.raises(RefusedError) as caught:
        plan_of(models("gpt2"), to="gguf", method="yarn", target=TARGET)
    assert caught.value.code == "no-rope"


@pytest.mark.parametrize("asked", [{"carrier": "factors"}, {"bake": "all"}, {"sliding_window": "off"}])
def test_an_option_of_a_rope_is_refused(models: Callable[[str], Path], asked: dict[str, Any]) -> None:
    for further in ({}, {"factor": 2.0}):
        with pytest.raises(UsageError) as caught:
            plan_of(models("bloom"), to="gguf", **asked, **further)
        assert caught.value.code in ("bad-option", "no-target")


def test_how_without_how_far_is_refused(models: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(models("gpt2"), to="gguf", method="absolute")
    assert caught.value.code == "no-target"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"activation_function": "relu"}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("mpt", {"attn_config": {"softmax_scale": 0.2}}),
        ("mpt", {"attn_config": {"alibi": False}}),
        ("mpt", {"attn_config": {"qk_ln": True}}),
    ],
)
def test_what_the_architecture_has_not_got_is_refused(
    models: Callable[[str], Path], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    shutil.copytree(models(name), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | changes
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError) as caught:
        plan_of(tmp_path / "model", to="gguf")
    assert caught.value.code in ("unexpressible", "no-alibi")


# Through llama.cpp's converter.


def test_a_converter_is_given_the_checkpoint_as_it_is(models: Callable[[str], Path], tmp_path: Path) -> None:
    """A stand-in that copies a file made before: nothing of it is corrected."""
    source = models("bloom")
    made = export(source, tmp_path / "made.gguf")
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        f"import shutil, sys\nshutil.copyfile({str(made)!r}, sys.argv[sys.argv.index('--outfile') + 1])\n"
    )
    asked = {"to": "gguf", "outtypes": ("f32",), "converter": str(script)}
    opened = open_source(source)
    path, manifest = run_plan(
        plan_of(source, **asked), opened, tmp_path / "model.gguf", options=Options(converter=script)
    )
    assert path.read_bytes() == made.read_bytes()
    assert manifest.plan.position == "alibi"
    with pytest.raises(RefusedError) as caught:
        plan_of(source, **asked, factor=4.0)
    assert caught.value.code == "converter-reads-weights"
    assert caught.value.hint == "leave --converter away"
