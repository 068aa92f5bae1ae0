"""``--bake``: which tensors a plan changes, that a second conversion knows of it, and what is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ctxextend.apply import Options
from ctxextend.changes import Carry, DropTensor, PutTensor, ScaleTensor, SetTensor, TensorChange, tensor_changes_of
from ctxextend.contents import FileInfo
from ctxextend.errors import RefusedError, UsageError
from ctxextend.inspection import inspect
from ctxextend.pipeline import inspect_source, open_source, plan_source, run_plan
from ctxextend.plan import Plan, make_plan
from ctxextend.recipe import Recipe
from tests.factories import TINY, TypeAndShape, config, contents, write_checkpoint

TRAINED = 1024
PAIRS = 16
#: A tiny llama's attention: two layers, two heads of 32.
ATTENTION: Mapping[str, TypeAndShape] = {
    f"model.layers.{layer}.self_attn.{name}.weight": ("F32", (rows, 64))
    for layer in range(2)
    for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64))
}
LLAMA = config(num_hidden_layers=2)
STALE: Mapping[str, TypeAndShape] = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": ("F16", (PAIRS,)),
    "model.layers.1.self_attn.rotary_emb.inv_freq": ("F32", (PAIRS,)),
    "model.layers.1.self_attn.rotary_emb.cos_cached": ("F32", (1, 1, TRAINED, 2 * PAIRS)),
    "model.vision_tower.blocks.0.rotary_emb.inv_freq": ("F32", (4,)),
}


def halved() -> tuple[float, ...]:
    """Position interpolation by two of the plain spectrum (Chen et al. 2023, eq. 4), in single precision."""
    numbers = [10000.0 ** (-2 * i / 32) / 2 for i in range(PAIRS)]
    return tuple(struct.unpack("<f", struct.pack("<f", number))[0] for number in numbers)


def planned(
    recipe: Recipe, *, said: Mapping[str, Any] = LLAMA, tensors: Mapping[str, TypeAndShape] | None = None
) -> Plan:
    checkpoint = contents(said, tensors={**ATTENTION, **(tensors or {})})
    return make_plan(checkpoint, inspect(checkpoint), recipe)


def changes(recipe: Recipe, **given: Any) -> tuple[TensorChange, ...]:
    return tensor_changes_of(planned(recipe, **given).actions)


def linear(**given: Any) -> Recipe:
    return Recipe(method="linear", target=2 * TRAINED, **given)


def codes(plan: Plan) -> list[str]:
    return [warning.code for warning in plan.warnings]


def test_without_bake_no_tensor_is_touched_and_stale_buffers_are_told_of() -> None:
    plan = planned(linear(), tensors=STALE)
    assert tensor_changes_of(plan.actions) == ()
    assert "rotary-buffers" in codes(plan)


def test_buffers_hold_the_planned_frequencies_where_older_llamas_had_them() -> None:
    found = changes(linear(bake="buffers"))
    assert [type(change) for change in found] == [PutTensor, PutTensor]
    for layer, change in enumerate(found):
        assert isinstance(change, PutTensor)
        assert change.name == f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        assert change.values == pytest.approx(halved(), rel=1e-7)


def test_gpt_neox_has_its_own_names_and_its_rotated_share() -> None:
    said = {
        **{key: value for key, value in TINY.items() if key not in ("rope_theta", "num_key_value_heads")},
        "model_type": "gpt_neox",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
    }
    (change,) = changes(linear(bake="buffers", runtimes=("transformers",)), said=said)
    assert isinstance(change, PutTensor)
    assert change.name == "gpt_neox.layers.0.attention.rotary_emb.inv_freq"
    assert change.values == pytest.approx([10000.0 ** (-2 * i / 8) / 2 for i in range(4)], rel=1e-6)


def test_stale_buffers_are_replaced_or_dropped_and_those_of_a_vision_tower_stay() -> None:
    found = changes(linear(bake="buffers"), tensors=STALE)
    assert {(type(change), change.name) for change in found} == {
        (PutTensor, "model.layers.0.self_attn.rotary_emb.inv_freq"),
        (PutTensor, "model.layers.1.self_attn.rotary_emb.inv_freq"),
        (DropTensor, "model.layers.1.self_attn.rotary_emb.cos_cached"),
    }


def test_one_buffer_for_all_layers_is_replaced_as_it_stands() -> None:
    (change,) = changes(linear(bake="buffers"), tensors={"model.rotary_emb.inv_freq": ("F32", (PAIRS,))})
    assert isinstance(change, PutTensor)
    assert change.name == "model.rotary_emb.inv_freq"
    assert change.values == pytest.approx(halved(), rel=1e-7)


def test_temperature_alone_drops_stale_buffers() -> None:
    found = changes(Recipe(method="yarn", target=4 * TRAINED, bake="temperature"), tensors=STALE)
    assert {change.name for change in found if isinstance(change, DropTensor)} == set(list(STALE)[:3])
    assert {change.name for change in found if isinstance(change, ScaleTensor)} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)
    }


def test_temperature_is_the_square_of_yarns_and_the_config_declares_none() -> None:
    plan = planned(Recipe(method="yarn", target=4 * TRAINED, bake="all"))
    # YaRN eq. 22: 0.1 ln 4 + 1.
    factor = 1.0 + 0.1 * float(np.log(4.0))
    scaled = [change for change in tensor_changes_of(plan.actions) if isinstance(change, ScaleTensor)]
    assert [change.factor for change in scaled] == pytest.approx([factor**2] * 2)
    (group,) = plan.groups
    assert group.after is not None
    assert group.after.table.attention_factor == 1.0
    assert group.folded is not None
    assert group.folded.attention_factor == pytest.approx(factor)
    # Runtimes that ignore attention_factor (SGLang, MLX-LM) are among those that agree.
    assert plan.misread == ()
    assert len([change for change in tensor_changes_of(plan.actions) if isinstance(change, PutTensor)]) == 2


def test_a_method_without_a_temperature_has_nothing_to_fold() -> None:
    plan = planned(linear(bake="temperature"))
    assert tensor_changes_of(plan.actions) == ()
    assert "nothing-to-fold" in codes(plan)


def test_buffers_alone_say_that_the_temperature_is_missing() -> None:
    assert "buffers-without-temperature" in codes(planned(Recipe(method="yarn", target=4 * TRAINED, bake="buffers")))
    assert "buffers-without-temperature" not in codes(planned(Recipe(method="yarn", target=4 * TRAINED, bake="all")))


def test_a_family_that_never_had_buffers_is_refused() -> None:
    said = config(model_type="qwen2", num_hidden_layers=2)
    with pytest.raises(RefusedError, match="qwen2") as caught:
        planned(linear(bake="buffers"), said=said)
    assert caught.value.code == "not-bakeable"
    assert "--to gguf" in str(caught.value.hint)


def test_frequencies_that_follow_the_length_are_refused_and_their_static_equal_is_not() -> None:
    dynamic = Recipe(method="dynamic", target=2 * TRAINED, bake="buffers", runtimes=("transformers", "mlx-lm"))
    with pytest.raises(RefusedError) as caught:
        planned(dynamic)
    assert caught.value.code == "not-bakeable"
    static = changes(msgspec.structs.replace(dynamic, runtimes=("transformers", "vllm", "sglang", "mlx-lm")))
    assert all(isinstance(change, PutTensor) for change in static)
    assert len(static) == 2


def on_disk(folder: Path, tensors: Mapping[str, TypeAndShape] | None = None) -> Path:
    first = {name: said for name, said in ATTENTION.items() if ".0." in name}
    second = {name: said for name, said in ATTENTION.items() if ".1." in name}
    return write_checkpoint(folder, LLAMA, shards=[first, {**second, **(tensors or {})}])


def convert(source: Path, out: Path, recipe: Recipe) -> Plan:
    opened = open_source(source)
    plan = plan_source(opened, recipe)
    run_plan(plan, opened, out)
    return plan


def test_the_index_follows_and_the_file_without_changes_is_the_same(tmp_path: Path) -> None:
    stale = {"model.layers.1.self_attn.rotary_emb.cos_cached": STALE["model.layers.1.self_attn.rotary_emb.cos_cached"]}
    source = on_disk(tmp_path / "source", stale)
    convert(source, tmp_path / "out", linear(bake="buffers"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {name: file.name for file in sorted((tmp_path / "out").glob("*.safetensors")) for name in load_file(file)}
    assert index["weight_map"] == held
    assert set(held) == {*ATTENTION, *(f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2))}
    expected = sum(4 * rows * 64 for _dtype, (rows, _columns) in ATTENTION.values()) + 2 * 4 * PAIRS
    assert index["metadata"]["total_size"] == expected
    written = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert written["model.layers.1.self_attn.rotary_emb.inv_freq"].dtype == np.float32
    np.testing.assert_allclose(written["model.layers.1.self_attn.rotary_emb.inv_freq"], halved(), rtol=1e-7)


def test_a_second_conversion_knows_what_is_in_the_tensors(tmp_path: Path) -> None:
    recipe = Recipe(method="yarn", target=4 * TRAINED, bake="all")
    convert(on_disk(tmp_path / "source"), tmp_path / "baked", recipe)
    again = plan_source(open_source(tmp_path / "baked"), recipe)
    assert all(isinstance(action, Carry) for action in again.actions)
    for other in (
        msgspec.structs.replace(recipe, target=8 * TRAINED),
        msgspec.structs.replace(recipe, bake="none"),
        Recipe(target=TRAINED),
    ):
        with pytest.raises(RefusedError) as caught:
            plan_source(open_source(tmp_path / "baked"), other)
        assert caught.value.code == "baked-source"


def test_buffers_of_ours_follow_the_next_conversion_or_go(tmp_path: Path) -> None:
    convert(on_disk(tmp_path / "source"), tmp_path / "two", linear(bake="buffers"))
    further = Recipe(method="linear", target=4 * TRAINED, bake="buffers")
    convert(tmp_path / "two", tmp_path / "four", further)
    (first,) = (tmp_path / "four").glob("model-00001-*")
    buffer = load_file(first)["model.layers.0.self_attn.rotary_emb.inv_freq"]
    np.testing.assert_allclose(buffer, np.array(halved()) / 2, rtol=1e-7)
    for recipe in (Recipe(method="linear", target=4 * TRAINED), Recipe(target=TRAINED)):
        found = tensor_changes_of(plan_source(open_source(tmp_path / "two"), recipe).actions)
        assert [type(change) for change in found] == [DropTensor, DropTensor]


def test_config_only_writes_no_weights(tmp_path: Path) -> None:
    opened = open_source(on_disk(tmp_path / "source"))
    with pytest.raises(UsageError, match="config-only"):
        run_plan(
            plan_source(opened, linear(bake="buffers")), opened, tmp_path / "out", options=Options(config_only=True)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        ScaleTensor(file="model-00001-of-00002.safetensors", name="not.there", factor=2.0),
        ScaleTensor(file="config.json", name="model.layers.0.self_attn.q_proj.weight", factor=2.0),
        DropTensor(file="../model-00001-of-00002.safetensors", name="model.layers.0.self_attn.q_proj.weight"),
        PutTensor(file="new.safetensors", name="model.rotary_emb.inv_freq", values=(1.0,)),
    ],
)
def test_a_saved_plan_that_names_other_tensors_is_refused(tmp_path: Path, change: TensorChange) -> None:
    opened = open_source(on_disk(tmp_path / "source"))
    plan = plan_source(opened, linear(bake="buffers"))
    changed = msgspec.structs.replace(plan, actions=(*plan.actions, change))
    with pytest.raises(RefusedError) as caught:
        run_plan(changed, opened, tmp_path / "out")
    assert caught.value.code == "stale-plan"
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_gets_its_frequency_tensor(tmp_path: Path) -> None:
    plan = plan_source(open_source("demo/checkpoint"), Recipe(method="yarn", target=1024, to="gguf", bake="buffers"))
    (tensor,) = (action for action in plan.actions if isinstance(action, SetTensor))
    assert tensor.name == "rope_freqs.weight"
    with pytest.raises(UsageError, match="carrier"):
        plan_source(
            open_source("demo/checkpoint"),
            Recipe(method="yarn", target=1024, to="gguf", bake="buffers", carrier="native"),
        )


def converted(tmp_path: Path, recipe: Recipe, tensors: Mapping[str, TypeAndShape] | None = None) -> Path:
    out = tmp_path / "out"
    convert(on_disk(tmp_path / "source", tensors), out, recipe)
    return out


def test_buffers_that_were_taken_out_since_are_put_back(tmp_path: Path) -> None:
    recipe = linear(bake="buffers")
    out = converted(tmp_path, recipe)
    for file in out.glob("*.safetensors"):
        kept = {name: values for name, values in load_file(file).items() if not name.endswith("inv_freq")}
        save_file(kept, file)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if not name.endswith("inv_freq")}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    found = tensor_changes_of(plan_source(open_source(out), recipe).actions)
    assert [type(change) for change in found] == [PutTensor, PutTensor]


def test_stale_buffers_go_with_the_same_change_baked_later(tmp_path: Path) -> None:
    stale = {"model.layers.1.self_attn.rotary_emb.inv_freq": ("F16", (PAIRS,))}
    out = converted(tmp_path, Recipe(method="ntk", target=2 * TRAINED), stale)
    later = plan_source(open_source(out), Recipe(method="ntk", target=2 * TRAINED, bake="temperature"))
    assert [type(change) for change in tensor_changes_of(later.actions)] == [DropTensor]


def test_within_the_trained_length_it_is_said_that_nothing_is_baked() -> None:
    assert "nothing-to-bake" in codes(planned(Recipe(target=TRAINED // 2, bake="all")))


@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.original_inv_freq",
        "model.layers.0.self_attn.rotary_emb_local.inv_freq",
        "model.full_attention_inv_freq",
        "rope.freqs",
        "model.freqs_cis",
    ],
)
def test_buffers_of_other_names_are_dropped(name: str) -> None:
    found = changes(linear(bake="buffers"), tensors={name: ("F32", (PAIRS,))})
    assert DropTensor(file="model.safetensors", name=name) in found


def test_only_copies_of_the_model_are_left_out() -> None:
    checkpoint = contents(LLAMA, tensors=ATTENTION)
    copies = ("pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors", "tf_model.h5")
    others = ("2_Dense/pytorch_model.bin", "colbert_linear.pt", "tokenizer.bin", "training_args.bin", "m.gguf")
    files = [FileInfo(path=path, size_bytes=8) for path in (*copies, *others, "adapter_model.safetensors")]
    checkpoint = msgspec.structs.replace(checkpoint, files=(*checkpoint.files, *files))
    recipe = Recipe(method="yarn", target=4 * TRAINED, bake="temperature")
    plan = make_plan(checkpoint, inspect(checkpoint), recipe)
    (carried,) = (action for action in plan.actions if isinstance(action, Carry))
    assert not set(copies) & set(carried.files)
    assert set(others) <= set(carried.files)
    assert {"other-weights-left-out", "weights-beside", "adapter-beside"} <= set(codes(plan))
    (beside,) = (warning for warning in plan.warnings if warning.code == "weights-beside")
    assert "m.gguf" in beside.message
    plain = make_plan(checkpoint, inspect(checkpoint), Recipe(method="yarn", target=4 * TRAINED))
    assert not {"other-weights-left-out", "weights-beside"} & set(codes(plain))


def test_what_a_bake_mends_is_no_warning_of_it() -> None:
    assert "rotary-buffers" not in codes(planned(linear(bake="buffers"), tensors=STALE))


def test_weights_whose_record_is_gone_are_known_by_their_manifest(tmp_path: Path) -> None:
    out = converted(tmp_path, Recipe(method="yarn", target=4 * TRAINED, bake="temperature"))
    said = json.loads((out / "config.json").read_text())
    del said["ctxextend"]
    (out / "config.json").write_text(json.dumps(said))
    with pytest.raises(RefusedError) as caught:
        plan_source(open_source(out), Recipe(method="yarn", target=8 * TRAINED, base="unscaled", bake="temperature"))
    assert caught.value.code == "baked-source"
    assert caught.value.file == "ctxextend.json"


def test_inspect_says_what_is_in_the_weights(tmp_path: Path) -> None:
    out = converted(tmp_path, Recipe(method="yarn", target=4 * TRAINED, bake="all"))
    notes = [note.code for note in inspect_source(open_source(out), Recipe()).notes]
    assert "baked-weights" in notes
    assert "rotary-buffers" not in notes
    with pytest.raises(RefusedError) as caught:
        inspect_source(open_source(out), Recipe(base="trained"))
    assert "remove" not in str(caught.value.hint)


@pytest.mark.parametrize(
    "change",
    [
        PutTensor(file="model-00001-of-00002.safetensors", name="model.norm.weight", values=(1.0,)),
        PutTensor(
            file="model-00001-of-00002.safetensors",
            name="model.layers.1.self_attn.q_proj.weight",
            values=(1.0,),
        ),
        PutTensor(file="model-00001-of-00002.safetensors", name="model.rotary_emb.inv_freq", values=()),
        DropTensor(file="model-00001-of-00002.safetensors", name="model.layers.0.self_attn.q_proj.weight"),
        ScaleTensor(file="model-00001-of-00002.safetensors", name="model.layers.0.self_attn.q_proj.weight", factor=2.0),
    ],
)
def test_a_saved_plan_does_no_more_than_plans_do(tmp_path: Path, change: TensorChange) -> None:
    opened = open_source(on_disk(tmp_path / "source"))
    plan = plan_source(opened, linear(bake="buffers"))
    changed = msgspec.structs.replace(plan, actions=(*plan.actions, change))
    with pytest.raises(RefusedError) as caught:
        run_plan(changed, opened, tmp_path / "out")
    assert caught.value.code in ("unsafe-plan", "stale-plan")
    assert not (tmp_path / "out").exists()


def test_a_change_that_stands_twice_is_refused(tmp_path: Path) -> None:
    opened = open_source(on_disk(tmp_path / "source"))
    plan = plan_source(opened, Recipe(method="yarn", target=4 * TRAINED, bake="temperature"))
    twice = tensor_changes_of(plan.actions)[:1]
    with pytest.raises(RefusedError) as caught:
        run_plan(msgspec.structs.replace(plan, actions=(*plan.actions, *twice)), opened, tmp_path / "out")
    assert caught.value.code == "unsafe-plan"


def test_a_document_that_is_gone_since_is_nothing_to_take_back(tmp_path: Path) -> None:
    source = on_disk(tmp_path / "source")
    (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": TRAINED}))
    convert(source, tmp_path / "out", linear())
    (tmp_path / "out" / "tokenizer_config.json").unlink()
    convert(tmp_path / "out", tmp_path / "further", Recipe(method="linear", target=4 * TRAINED))
    assert not (tmp_path / "further" / "tokenizer_config.json").exists()
