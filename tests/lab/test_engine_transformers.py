"""The transformers engine, against plain forwards of transformers' own models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from ctxextend import Recipe, open_source
from ctxextend.errors import CheckpointError, CtxextendError, MissingExtraError, RefusedError, UsageError
from ctxextend.lab import memory
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.engines.transformers import TransformersEngine, load, variant
from ctxextend.pipeline import inspect_source

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "checkpoint"

TINY: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LATENT: Mapping[str, Any] = {
    **TINY,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
}
GEMMA: Mapping[str, Any] = {
    **TINY,
    "model_type": "gemma3_text",
    "head_dim": 16,
    "num_hidden_layers": 6,
    "sliding_window": 50,
}
LONGROPE: Mapping[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 16,
    "long_factor": [1.0 + i / 4 for i in range(16)],
    "original_max_position_embeddings": 256,
    "factor": 4.0,
}
SCALINGS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "longrope": LONGROPE,
}


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks even for texts of a few hundred tokens."""
    monkeypatch.setattr(memory, "LONGEST_CPU_CHUNK", 64)


@cache
def demo() -> TransformersEngine:
    return load(DEMO)


def text(count: int, *, start: int = 0) -> list[int]:
    words = (DEMO.parent / "heldout.txt").read_text(encoding="utf-8")[:40000]
    return demo().encode(words)[start : start + count]


def plain(model: Any, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """Log-probabilities that predict ``tokens[1:]`` by one forward of a model."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, :-1]
        found: np.ndarray[Any, Any] = torch.log_softmax(logits.float(), -1).numpy()
    return found


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def checkpoint(folder: Path, **changes: Any) -> Path:
    """The demo checkpoint with another config.json."""
    shutil.copytree(DEMO, folder)
    stated = json.loads((DEMO / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **changes}))
    return folder


def made(stated: Mapping[str, Any], folder: Path) -> Path:
    """A checkpoint of random weights, beside the demo's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[stated["model_type"]].from_dict(dict(stated)))
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    assert level == logging.get_verbosity()
    shutil.copy(DEMO / "tokenizer.json", folder)
    return folder


def together(engine: TransformersEngine, tokens: Sequence[int], first: int = 1) -> np.ndarray[Any, Any]:
    return np.concatenate(list(engine.log_probs(tokens, first=first)))


def test_it_is_an_engine() -> None:
    engine: Engine = demo()
    facts = engine.facts
    assert (facts.engine, facts.device, facts.dtype, facts.vocabulary) == ("transformers", "cpu", "float32", 2048)
    # 1.05 million bfloat16 numbers in the file, four bytes each here.
    assert facts.weight_bytes == 2 * sum(
        weight.numel() * 2 for weight in AutoModelForCausalLM.from_pretrained(DEMO, dtype="auto").parameters()
    )
    assert facts.opening == ()


def test_chunks_through_the_cache_predict_what_one_forward_does() -> None:
    tokens = text(400)
    engine = load(DEMO)
    expected = plain(loaded(DEMO), tokens)
    parts = list(engine.log_probs(tokens))
    assert len(parts) > 4
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-4)
    by_hand = [-float(row[token]) for row, token in zip(expected, tokens[1:], strict=True)]
    np.testing.assert_allclose(engine.losses(tokens), by_hand, atol=1e-4)
    np.testing.assert_allclose(engine.losses(tokens, first=321), by_hand[320:], atol=1e-4)
    np.testing.assert_allclose(engine.forward_whole(tokens, 5)[:-1], expected[-4:], atol=1e-5)


def test_what_two_texts_begin_with_is_read_once() -> None:
    engine = load(DEMO)
    one = text(300)
    two = [*one[:200], *text(60, start=700)]
    engine.losses(one)
    before = engine.usage.tokens
    assert before == 299
    np.testing.assert_allclose(together(engine, two, first=150), plain(loaded(DEMO), two)[149:], atol=1e-4)
    assert engine.usage.tokens - before == 259 - 149


def test_a_token_more_costs_a_token() -> None:
    engine, tokens = load(DEMO), text(300)
    engine.losses(tokens[:280])
    before = engine.usage.tokens
    rows = [together(engine, tokens[: end + 1], first=end)[0] for end in range(280, 290)]
    assert engine.usage.tokens - before == 10
    np.testing.assert_allclose(np.stack(rows), plain(loaded(DEMO), tokens)[279:289], atol=1e-4)


def test_reading_something_else_in_between_changes_nothing() -> None:
    engine, tokens = load(DEMO), text(300)
    parts = []
    for part in engine.log_probs(tokens):
        parts.append(part)
        engine.losses(text(30, start=900))
    np.testing.assert_allclose(np.concatenate(parts), plain(loaded(DEMO), tokens), atol=1e-4)


def test_logits_are_made_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(DEMO)
    made: list[int] = []
    forward = engine.model.lm_head.forward

    def counted(hidden: torch.Tensor) -> Any:
        made.append(hidden.shape[1])
        return forward(hidden)

    monkeypatch.setattr(engine.model.lm_head, "forward", counted)
    engine.losses(text(400), first=391)
    assert sum(made) < 20
    made.clear()
    engine.forget()
    engine.losses(text(400))
    assert max(made) == 64


def test_a_large_vocabulary_makes_chunks_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LONGEST_CPU_CHUNK", 2048)
    monkeypatch.setattr(memory, "CPU_CHUNK_BYTES", 2048 * 12 * 128)
    assert [len(part) for part in load(DEMO).log_probs(text(400))] == [128, 128, 128, 15]


def test_the_answer_is_what_generate_of_transformers_gives() -> None:
    tokens = text(150)
    ids = torch.tensor([tokens])
    expected = loaded(DEMO).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert demo().generate(tokens, 40) == expected[0, 150:].tolist()


def test_an_answer_stops_where_the_model_ends_it(tmp_path: Path) -> None:
    tokens = text(150)
    answer = demo().generate(tokens, 10)
    engine = load(checkpoint(tmp_path / "ends", eos_token_id=[1, answer[4]]))
    assert engine.generate(tokens, 10) == answer[: answer.index(answer[4])]


@pytest.mark.parametrize("stated", [GEMMA, LATENT], ids=["gemma3_text", "deepseek_v3"])
def test_windows_and_latent_attention_are_read_in_chunks_too(stated: Mapping[str, Any], tmp_path: Path) -> None:
    folder = made(stated, tmp_path / "made")
    engine, model = load(folder), loaded(folder)
    one, two = text(220), [*text(100), *text(80, start=500)]
    np.testing.assert_allclose(together(engine, one), plain(model, one), atol=1e-4)
    np.testing.assert_allclose(together(engine, two), plain(model, two), atol=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_tables_that_change_with_the_length_are_those_of_the_whole_text(kind: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / kind, rope_scaling=SCALINGS[kind], max_position_embeddings=256)
    engine = load(folder)
    for count in (600, 400, 100, 300):
        tokens = text(count)
        # A fresh model each time: dynamic tables don't shrink again by themselves.
        expected = plain(loaded(folder), tokens)
        np.testing.assert_allclose(together(engine, [*tokens, 0], first=60)[:-1], expected[59:], atol=1e-4)
        np.testing.assert_allclose(engine.forward_whole(tokens, count)[:-1], expected, atol=1e-4)
    engine.forget()
    assert torch.equal(engine.model.model.rotary_emb.inv_freq, loaded(folder).model.rotary_emb.inv_freq)


@pytest.mark.parametrize("kind", sorted(SCALINGS))
def test_a_variant_is_the_checkpoint_that_would_be_written(kind: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / kind, rope_scaling=SCALINGS[kind])
    found = variant(demo(), json.loads((folder / "config.json").read_text()))
    tokens = text(400)
    for count in (400, 100):
        assert np.array_equal(
            found.forward_whole(tokens[:count], count), load(folder).forward_whole(tokens[:count], count)
        )
    assert not np.array_equal(found.forward_whole(tokens, 1), demo().forward_whole(tokens, 1))
    _same_weights(demo(), found)


@pytest.mark.parametrize(
    ("stated", "scaled"),
    [
        (
            LATENT,
            {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 10000.0},
        ),
        (
            GEMMA,
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
    ],
    ids=["deepseek_v3", "gemma3_text"],
)
def test_a_variant_has_what_is_set_when_a_model_is_made(
    stated: Mapping[str, Any], scaled: Mapping[str, Any], tmp_path: Path
) -> None:
    folder = made(stated, tmp_path / "made")
    source = load(folder)
    written = {**json.loads((folder / "config.json").read_text()), "rope_parameters": dict(scaled)}
    found = variant(source, written)
    (folder / "config.json").write_text(json.dumps(written))
    tokens = text(200)
    expected = load(folder).forward_whole(tokens, 200)
    assert np.array_equal(found.forward_whole(tokens, 200), expected)
    assert not np.array_equal(source.forward_whole(tokens, 200), expected)
    _same_weights(source, found)


def _same_weights(one: TransformersEngine, other: TransformersEngine) -> None:
    ours = dict(other.model.named_parameters())
    assert all(ours[name].data_ptr() == weight.data_ptr() for name, weight in one.model.named_parameters())
    assert {b.dtype for name, b in other.model.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_a_variant_of_another_architecture_is_refused() -> None:
    stated = {**json.loads((DEMO / "config.json").read_text()), "num_hidden_layers": 2}
    with pytest.raises(CheckpointError, match="don't fit"):
        variant(demo(), stated)


def test_text_goes_through_the_checkpoints_own_tokenizer(tmp_path: Path) -> None:
    tokens = demo().encode("The river ran through the valley.")
    assert demo().decode(tokens) == "The river ran through the valley."
    folder = checkpoint(tmp_path / "opened")
    stated = json.loads((DEMO / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**stated, "add_bos_token": True}))
    opened = load(folder)
    assert opened.facts.opening == (0,)
    assert opened.encode("The river ran through the valley.") == tokens
    assert opened.decode([0, *tokens]) == "The river ran through the valley."


def test_an_opening_is_read_off_the_tokenizers_own_template(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "template")
    stated = json.loads((DEMO / "tokenizer.json").read_text())
    stated["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(stated))
    assert load(folder).facts.opening == (0,)


def test_usage_and_memory_are_counted() -> None:
    engine = load(DEMO, longest=1024)
    engine.losses(text(100))
    assert engine.usage.tokens == 99
    assert engine.usage.seconds > 0
    assert engine.usage.peak_memory_bytes is not None
    # 4 layers, keys and values, 2 heads of 32, four bytes, room for all 1024 tokens.
    assert engine.cache_bytes == 4 * 2 * 2 * 32 * 4 * 1024
    engine.forget()
    assert engine.cache_bytes == 0


def test_dtypes_go_by_name() -> None:
    assert load(DEMO, dtype="bfloat16").facts.dtype == "bfloat16"
    assert load(DEMO, dtype="bfloat16").facts.weight_bytes == (demo().facts.weight_bytes or 0) // 2
    with pytest.raises(UsageError, match="unknown data type"):
        load(DEMO, dtype="int3")


def test_a_device_that_isnt_there_is_the_users_error() -> None:
    with pytest.raises(UsageError, match="can't use this device") as error:
        load(DEMO, device="xpu")
    assert error.value.key == "--device"


def test_what_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(MissingExtraError, match="accelerate") as error:
        load(DEMO)
    assert error.value.hint == "pip install 'ctxextend[lab]'"


@pytest.mark.parametrize("device", ["cuda:99", "cudax", "meta"])
def test_a_name_that_is_no_device_is_the_users_error(device: str) -> None:
    with pytest.raises(UsageError) as error:
        load(DEMO, device=device)
    assert (error.value.code, error.value.key, error.value.found) == ("bad-device", "--device", device)


def test_under_torchrun_the_device_isnt_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError) as error:
        load(DEMO, device="cpu")
    assert (error.value.code, error.value.key) == ("bad-option", "--device")


def test_a_pickle_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(loaded(DEMO).state_dict(), folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("a pickle was read"))
    with pytest.raises(RefusedError) as error:
        load(folder)
    assert (error.value.code, error.value.file) == ("pickled-weights", str(folder / "pytorch_model.bin"))
    assert "safetensors" in (error.value.hint or "")
    # Nor beside a safetensors file that holds something else.
    shutil.copy(DEMO / "model.safetensors", folder / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="can't load") as found:
        load(folder)
    assert found.value.code == "cannot-load"


def test_an_eager_model_is_read_in_chunks_whose_scores_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made({**TINY, "model_type": "gemma2", "head_dim": 16, "sliding_window": 50}, tmp_path / "made")
    monkeypatch.setattr(memory, "LONGEST_CPU_CHUNK", 512)
    engine = load(folder)
    # 4 heads, three times four bytes; 256 tokens of 400 keys each.
    monkeypatch.setattr(memory, "CPU_CHUNK_BYTES", 4 * 12 * 400 * 256)
    assert engine._chunks(400)[0] == 256
    opened = open_source(str(folder))
    widths = memory.widths_of(inspect_source(opened, Recipe()), on_cpu=True)
    assert widths is not None
    assert widths.row_bytes == 4 * 12


def test_a_variant_takes_the_room_that_it_is_given() -> None:
    engine = load(DEMO, longest=512)
    stated = json.loads((DEMO / "config.json").read_text())
    for longest, room in ((None, 512), (128, 128)):
        found = variant(engine, stated, longest=longest)
        found.losses(text(50))
        assert found.cache_bytes == 4 * 2 * 2 * 32 * 4 * room


def _broken(folder: Path, how: str) -> None:
    stated = json.loads((folder / "config.json").read_text())
    if how == "code":
        stated |= {"model_type": "ours", "auto_map": {"AutoConfig": "ours.Config"}}
    elif how == "type":
        stated["model_type"] = "ours"
    elif how == "encoder":
        stated["model_type"] = "vit"
    elif how == "layers":
        stated["num_hidden_layers"] = 6
    elif how == "shapes":
        stated["intermediate_size"] = 512
    else:
        (folder / "model.safetensors").write_bytes(b"no weights")
    (folder / "config.json").write_text(json.dumps(stated))


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [
        ("code", RefusedError, "remote-code"),
        ("type", CheckpointError, "unknown-model-type"),
        ("encoder", RefusedError, "no-next-token"),
        ("layers", CheckpointError, "broken-weights"),
        ("shapes", CheckpointError, None),
        ("bytes", CheckpointError, "cannot-load"),
    ],
)
def test_what_cant_be_loaded_says_why(how: str, kind: type[CtxextendError], code: str | None, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / how)
    _broken(folder, how)
    with pytest.raises(kind) as error:
        load(folder)
    assert code is None or error.value.code == code
    assert error.value.hint
    if how == "code":
        assert "--trust-remote-code" in error.value.hint


def test_a_forward_that_fails_leaves_nothing_half_read(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, tokens = load(DEMO), text(200)
    layer = engine.model.model.layers[2]
    with monkeypatch.context() as patched:
        patched.setattr(layer, "forward", lambda *_a, **_k: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        with pytest.raises(RefusedError, match="out of memory"):
            engine.losses(tokens)
    np.testing.assert_allclose(together(engine, tokens), plain(loaded(DEMO), tokens), atol=1e-4)


@pytest.mark.full
def test_tensor_parallel_under_torchrun_predicts_the_same() -> None:
    script = (
        "import sys; from pathlib import Path; from ctxextend.lab.engines.transformers import load\n"
        "engine = load(Path(sys.argv[1])); losses = engine.losses(list(range(2, 90)))\n"
        "sys.stdout.write(f'FOUND {engine.facts.device} | {sum(losses)}\\n')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    run = subprocess.run(
        [*command, sys.executable, "-c", script, str(DEMO)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("FOUND")]
    assert len(lines) == 2, run.stderr[-2000:]
    expected = sum(demo().losses(list(range(2, 90))))
    for line in lines:
        shown, found = line.removeprefix("FOUND").split("|")
        assert shown.strip() == "cpu, tensor parallel over 2"
        assert float(found) == pytest.approx(expected, rel=1e-4)
