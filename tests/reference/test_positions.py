"""Models without a rope: made by transformers, converted, loaded again by transformers and run at the new length."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.changes import Carry, tensor_changes_of
from ctxextend.checkpoint.directory import read_directory
from ctxextend.errors import RefusedError
from ctxextend.formats.json_edit import Edit, edit_text
from ctxextend.inspection import inspect
from ctxextend.plan import Plan, edits_of
from ctxextend.position_plan import make_position_plan
from ctxextend.recipe import Recipe
from ctxextend.tensors.rewriting import rewrite_file
from scripts.fetch_runtimes import VERSIONS

#: Tokens that each model is made for, and that it is brought to.
LENGTH: Final = 16
FACTOR: Final = 4
TARGET: Final = FACTOR * LENGTH

_BERT: Final = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": LENGTH,
}
_ROBERTA: Final = {**_BERT, "max_position_embeddings": LENGTH + 2, "pad_token_id": 1}
_HALVES: Final = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_GPT: Final = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}

#: What each model is made of, by its model type.
LEARNED: Final[Mapping[str, Mapping[str, Any]]] = {
    "albert": {**_BERT, "embedding_size": 8},
    "bart": _HALVES,
    "bert": _BERT,
    "bert-generation": _BERT,
    "biogpt": {**_BERT, "pad_token_id": 1},
    "blenderbot": _HALVES,
    "blenderbot-small": _HALVES,
    "camembert": _ROBERTA,
    "convbert": {**_BERT, "embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1},
    "data2vec-text": _ROBERTA,
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
                   "max_position_embeddings": LENGTH},
    "electra": {**_BERT, "embedding_size": 16},
    "ernie": _BERT,
    "flaubert": {"vocab_size": 40, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": LENGTH},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 8,
                "attention_types": [[["global", "local"], 1]], "max_position_embeddings": LENGTH},
    "longformer": {**_ROBERTA, "attention_window": [8, 8]},
    "mbart": _HALVES,
    "megatron-bert": _BERT,
    "mobilebert": {**_BERT, "embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 1},
    "mpnet": _ROBERTA,
    "mvp": _HALVES,
    "openai-gpt": _GPT,
    "opt": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
            "max_position_embeddings": LENGTH, "word_embed_proj_dim": 16},
    "plbart": _HALVES,
    "rembert": {**_BERT, "input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "roc_bert": {**_BERT, "enable_pronunciation": False, "enable_shape": False},
    "splinter": {**_BERT, "question_token_id": 4},
    "squeezebert": {**_BERT, "embedding_size": 16, "q_groups": 1, "k_groups": 1, "v_groups": 1,
                    "post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1},
    "xlm": {"vocab_size": 40, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": LENGTH},
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "xmod": {**_ROBERTA, "languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
#: One for each shape of table, each position of reserved rows, and each place in config.json.
EVERYDAY: Final = ("bart", "bert", "biogpt", "gpt2", "gpt_neo", "opt", "roberta")

SINUSOIDAL: Final[Mapping[str, Mapping[str, Any]]] = {
    "ctrl": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 24, "n_positions": LENGTH},
    "fsmt": {**{k: v for k, v in _HALVES.items() if k != "vocab_size"}, "src_vocab_size": 40, "tgt_vocab_size": 40,
             "langs": ["en", "de"]},
    "m2m_100": _HALVES,
    "marian": {**_HALVES, "decoder_vocab_size": 40},
    "nllb-moe": {**_HALVES, "num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "pegasus": _HALVES,
    "pegasus_x": {**_HALVES, "block_size": 16, "num_global_tokens": 2},
    "xglm": {"vocab_size": 40, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 24,
             "max_position_embeddings": LENGTH, "pad_token_id": 1},
}  # fmt: skip
#: Those whose table transformers takes from the weights, by its layout.
STORED: Final[Mapping[str, Mapping[str, Any]]] = {
    "distilbert": {**LEARNED["distilbert"], "sinusoidal_pos_embds": True},
    "flaubert": {**LEARNED["flaubert"], "sinusoidal_embeddings": True},
    "marian": SINUSOIDAL["marian"],
    "pegasus": SINUSOIDAL["pegasus"],
    "xlm": {**LEARNED["xlm"], "sinusoidal_embeddings": True},
}

ALIBI: Final[Mapping[str, Mapping[str, Any]]] = {
    "bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4, "seq_length": LENGTH},
    "falcon": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True,
               "max_position_embeddings": LENGTH},
    "mpt": {"vocab_size": 40, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": LENGTH},
}  # fmt: skip

AUTO: Final = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForMaskedLM, AutoModelForQuestionAnswering)


def auto_of(model_type: str) -> Any:
    """The class of models that this type is built as here: both halves of an encoder and decoder."""
    if model_type in ("bart", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"):
        return AutoModelForSeq2SeqLM
    config = type(CONFIG_MAPPING[model_type]())
    return next(auto for auto in AUTO if config in auto._model_mapping)


def made(model_type: str, keys: Mapping[str, Any], folder: Path) -> Any:
    """A random model, saved as transformers does; its tables are as large as the rest of the embeddings."""
    torch.manual_seed(1)
    config = CONFIG_MAPPING[model_type](**keys)
    model = auto_of(model_type).from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not (model_type in {*SINUSOIDAL, *STORED} and "position" in name):
                weight.copy_(torch.randn_like(weight) * (weight.shape[-1] ** -0.5 if "embed" not in name else 1.0))
    model.save_pretrained(folder)
    return auto_of(model_type).from_pretrained(folder).eval()


def converted(folder: Path, out: Path, recipe: Recipe) -> Plan:
    """Carry a plan out by its actions alone."""
    contents = read_directory(folder)
    inspection = inspect(contents, original_context=recipe.original_context)
    plan = make_position_plan(contents, inspection, recipe)
    out.mkdir()
    for action in plan.actions:
        if isinstance(action, Carry):
            for name in action.files:
                shutil.copyfile(folder / name, out / name)
    for name, edits in edits_of(plan).items():
        (out / name).write_text(edit_text((folder / name).read_text(), edits))
    changes = tensor_changes_of(plan.actions)
    for name in dict.fromkeys(change.file for change in changes):
        mine = [change for change in changes if change.file == name]
        rewrite_file(folder / name, out / name, mine, mode="copy", progress=lambda _done: None)
    return plan


def loaded(model_type: str, folder: Path) -> Any:
    """The model that transformers makes of a folder, into which every tensor went."""
    model, info = auto_of(model_type).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def logits(model: Any, length: int) -> torch.Tensor:
    """Of a fixed text of ``length`` tokens, none of which is padding."""
    torch.manual_seed(7)
    ids = torch.randint(5, 40, (1, length))
    more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = model(input_ids=ids, **more)
    scores: torch.Tensor = found.start_logits if hasattr(found, "start_logits") else found.logits
    return scores


def same(found: torch.Tensor, goal: torch.Tensor) -> bool:
    """But for the order of sums, which follows where a file's bytes happen to lie in memory."""
    return torch.allclose(found, goal, atol=1e-5, rtol=1e-5)


def tables(folder: Path) -> dict[str, torch.Tensor]:
    names = ("wpe.weight", "positions_embed.weight", "position_embeddings.weight", "embed_positions.weight")
    return {name: t for name, t in load_file(folder / "model.safetensors").items() if name.endswith(names)}


def full(names: Mapping[str, Any], everyday: tuple[str, ...]) -> list[Any]:
    return [name if name in everyday else pytest.param(name, marks=pytest.mark.full) for name in names]


@pytest.mark.parametrize("model_type", full(LEARNED, EVERYDAY))
def test_learned(tmp_path: Path, model_type: str) -> None:
    """Tiled: the same model within the old length. Linear: each old row at its multiple, bit for bit."""
    before = made(model_type, LEARNED[model_type], tmp_path / "model")
    goal = logits(before, LENGTH)
    for interpolation in ("tiled", "linear"):
        out = tmp_path / interpolation
        options = {"interpolation": interpolation}
        plan = converted(tmp_path / "model", out, Recipe(method="absolute", target=TARGET, options=options))
        assert plan.trained_context == LENGTH
        model = loaded(model_type, out)
        assert torch.isfinite(logits(model, TARGET)).all()
        old, new = tables(tmp_path / "model"), tables(out)
        assert old.keys() == new.keys()
        assert len(old) == (2 if model.config.is_encoder_decoder else 1)
        for name, table in old.items():
            reserved = len(table) - LENGTH
            assert len(new[name]) == TARGET + reserved
            assert torch.equal(new[name][:reserved], table[:reserved])
            rows = new[name][reserved:]
            if interpolation == "tiled":
                assert torch.equal(rows, table[reserved:].repeat(FACTOR, 1))
            else:
                assert torch.equal(rows[::FACTOR], table[reserved:])
                assert torch.allclose(rows[1], table[reserved] * 0.75 + table[reserved + 1] * 0.25, atol=1e-6)
        if interpolation == "tiled":
            assert same(logits(model, LENGTH), goal)
        else:
            assert not torch.allclose(logits(model, LENGTH), goal, atol=1e-2)
        again = converted(
            out, tmp_path / f"{interpolation}-again", Recipe(method="absolute", target=TARGET, options=options)
        )
        assert all(isinstance(action, Carry) for action in again.actions)


@pytest.mark.parametrize("model_type", full(SINUSOIDAL, ("marian", "m2m_100", "xglm")))
def test_sinusoids_go_on(tmp_path: Path, model_type: str) -> None:
    """As if transformers had built the model for the new length: the same logits within the old one, and past it."""
    before = made(model_type, SINUSOIDAL[model_type], tmp_path / "model")
    goal = logits(before, LENGTH)
    plan = converted(tmp_path / "model", tmp_path / "out", Recipe(method="sinusoidal", target=TARGET))
    assert plan.trained_context == LENGTH
    model = loaded(model_type, tmp_path / "out")
    assert same(logits(model, LENGTH), goal)
    key = "n_positions" if model_type == "ctrl" else "max_position_embeddings"
    larger = auto_of(model_type).from_config(CONFIG_MAPPING[model_type](**{**SINUSOIDAL[model_type], key: TARGET}))
    state = {name: t for name, t in before.state_dict().items() if "embed_positions" not in name}
    larger.load_state_dict(state, strict=False)
    assert torch.allclose(logits(larger.eval(), TARGET), logits(model, TARGET), atol=1e-5)


@pytest.mark.parametrize("positions", ["raised", "interpolated"])
@pytest.mark.parametrize("model_type", full(STORED, ("distilbert", "marian")))
def test_stored_sinusoids_are_read(tmp_path: Path, model_type: str, positions: str) -> None:
    """A table in the weights wins over the one that the class would compute."""
    model = made(model_type, STORED[model_type], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    held = load_file(file)
    where = "position_embeddings.weight" if model_type in LEARNED else "embed_positions.weight"
    computed = {name: t.detach().clone() for name, t in model.state_dict().items() if name.endswith(where)}
    save_file({**held, **computed}, file, metadata={"format": "pt"})
    goal = logits(model, LENGTH)
    converted(
        tmp_path / "model",
        tmp_path / "out",
        Recipe(method="sinusoidal", target=TARGET, options={"positions": positions}),
    )
    found = loaded(model_type, tmp_path / "out")
    assert torch.isfinite(logits(found, TARGET)).all()
    for name, table in computed.items():
        rows = found.state_dict()[name]
        assert len(rows) == TARGET
        kept = rows[:LENGTH] if positions == "raised" else rows[::FACTOR]
        assert torch.allclose(kept, table, atol=1e-6)
    assert torch.allclose(logits(found, LENGTH), goal, atol=1e-5) == (positions == "raised")


@pytest.mark.parametrize("model_type", full(STORED, ("marian",)))
def test_a_trained_table_of_sinusoids(tmp_path: Path, model_type: str) -> None:
    """transformers trains these tables with the rest of the model: what they became is kept, and had back."""
    model = made(model_type, STORED[model_type], tmp_path / "model")
    where = "position_embeddings.weight" if model_type in LEARNED else "embed_positions.weight"
    moved = {name: weight for name, weight in model.named_parameters() if name.endswith(where)}
    assert moved
    with torch.no_grad():
        for weight in moved.values():
            weight.add_(0.2 * torch.randn_like(weight))
    # Some classes leave the table away when they save, as if it couldn't have changed.
    file = tmp_path / "model" / "model.safetensors"
    held = {**load_file(file), **{name: weight.detach().clone() for name, weight in moved.items()}}
    save_file(held, file, metadata={"format": "pt"})
    goal = logits(loaded(model_type, tmp_path / "model"), LENGTH)
    assert not torch.allclose(goal, logits(made(model_type, STORED[model_type], tmp_path / "plain"), LENGTH), atol=1e-3)
    converted(tmp_path / "model", tmp_path / "out", Recipe(target=TARGET))
    longer = loaded(model_type, tmp_path / "out")
    assert same(logits(longer, LENGTH), goal)
    assert torch.isfinite(logits(longer, TARGET)).all()
    converted(tmp_path / "out", tmp_path / "back", Recipe(target=LENGTH))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    options = {"positions": "interpolated"}
    with pytest.raises(RefusedError) as caught:
        converted(tmp_path / "model", tmp_path / "no", Recipe(method="sinusoidal", target=TARGET, options=options))
    assert caught.value.code == "trained-sinusoids"


def test_config_and_table_have_one_length_afterwards(tmp_path: Path) -> None:
    """Where the length is told, or config.json has none: both models fail to load before."""
    made("pegasus", SINUSOIDAL["pegasus"], tmp_path / "told")
    model = CONFIG_MAPPING["pegasus"](**SINUSOIDAL["pegasus"])
    assert model.max_position_embeddings == LENGTH
    converted(tmp_path / "told", tmp_path / "longer", Recipe(target=LENGTH + 5, original_context=2 * LENGTH))
    assert logits(loaded("pegasus", tmp_path / "longer"), 2 * LENGTH).shape[1] == 2 * LENGTH
    made("gpt2", _GPT, tmp_path / "silent")
    config = tmp_path / "silent" / "config.json"
    config.write_text(edit_text(config.read_text(), (Edit(path=("n_positions",)),)))
    converted(tmp_path / "silent", tmp_path / "said", Recipe(target=LENGTH))
    assert logits(loaded("gpt2", tmp_path / "said"), LENGTH).shape[1] == LENGTH


@pytest.mark.parametrize("model_type", ALIBI)
def test_alibi(tmp_path: Path, model_type: str) -> None:
    """Nothing changes within the trained length; past it the model runs, which MPT's class refused before."""
    before = made(model_type, ALIBI[model_type], tmp_path / "model")
    goal = logits(before, LENGTH)
    if model_type == "mpt":
        with pytest.raises(RuntimeError):
            logits(before, TARGET)
    plan = converted(tmp_path / "model", tmp_path / "out", Recipe(method="alibi", target=TARGET))
    assert plan.trained_context == LENGTH
    model = loaded(model_type, tmp_path / "out")
    assert same(logits(model, LENGTH), goal)
    assert torch.isfinite(logits(model, TARGET)).all()


@pytest.mark.parametrize(
    ("model_type", "stale"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": (1, 1, LENGTH, LENGTH), "transformer.h.0.attn.masked_bias": ()}),
        ("gpt_neo", {"transformer.h.0.attn.attention.bias": (1, 1, LENGTH, LENGTH)}),
        ("bert", {"bert.embeddings.position_ids": (1, LENGTH)}),
        ("m2m_100", {"model.decoder.embed_positions.weights": (LENGTH + 2, 16)}),
    ],
)
def test_what_older_checkpoints_hold(tmp_path: Path, model_type: str, stale: Mapping[str, tuple[int, ...]]) -> None:
    """Buffers of the old length's size are gone, and a stored table that nobody reads."""
    keys = {**LEARNED, **SINUSOIDAL}[model_type]
    made(model_type, keys, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    held = load_file(file)
    save_file({**held, **{name: torch.ones(shape) for name, shape in stale.items()}}, file, metadata={"format": "pt"})
    converted(tmp_path / "model", tmp_path / "out", Recipe(target=TARGET))
    after = load_file(tmp_path / "out" / "model.safetensors")
    loaded(model_type, tmp_path / "out")
    assert after.keys() == held.keys()


def test_gpt2_in_mlx_lm(tmp_path: Path) -> None:
    """In the form in which GPT-2 was published, past the length that it was made for."""
    mlx = pytest.importorskip("mlx.core")
    from mlx_lm.utils import load_model

    made("gpt2", _GPT, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    held = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    save_file({**held, "h.0.attn.bias": torch.ones(1, 1, LENGTH, LENGTH)}, file, metadata={"format": "pt"})
    config = tmp_path / "model" / "config.json"
    config.write_text(edit_text(config.read_text(), (Edit(path=("n_ctx",), value=LENGTH),)))
    plan = converted(tmp_path / "model", tmp_path / "out", Recipe(target=TARGET))
    assert not plan.misread
    model, _config = load_model(tmp_path / "out")
    torch.manual_seed(7)
    ids = torch.randint(5, 40, (1, TARGET))
    found = torch.tensor(model(mlx.array(ids.tolist())).tolist())
    assert torch.allclose(found, logits(loaded("gpt2", tmp_path / "out"), TARGET), atol=1e-3)


def test_gpt_bigcode_in_mlx_lm(tmp_path: Path) -> None:
    """It loads with a number for ``n_inner`` alone, which transformers writes as null where none is given."""
    mlx = pytest.importorskip("mlx.core")
    from mlx_lm.utils import load_model

    made("gpt_bigcode", _GPT, tmp_path / "null")
    with pytest.raises(TypeError):
        load_model(tmp_path / "null")
    made("gpt_bigcode", {**_GPT, "n_inner": 64}, tmp_path / "model")
    plan = converted(tmp_path / "model", tmp_path / "out", Recipe(target=TARGET))
    assert not plan.misread
    model, _config = load_model(tmp_path / "out")
    torch.manual_seed(7)
    ids = torch.randint(5, 40, (1, TARGET))
    found = torch.tensor(model(mlx.array(ids.tolist())).tolist())
    assert torch.allclose(found, logits(loaded("gpt_bigcode", tmp_path / "out"), TARGET), atol=1e-3)


#: Run by the Python of another transformers: a folder and a class a line; prints the logits at the target's length.
_RUN: Final = """
import json, sys
import torch, transformers
for line in sys.stdin:
    folder, auto = line.split()
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    torch.manual_seed(7)
    ids = torch.randint(5, 40, (1, int(sys.argv[1])))
    # 4.56 has no cache for a decoder with more layers than the encoder.
    more = {"decoder_input_ids": ids.flip(1), "use_cache": False} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = model(input_ids=ids, **more).logits
    print(json.dumps([transformers.__version__, found.tolist()]))
"""
#: Those of each kind that the releases of 4 run too.
_OLDER: Final = (
    "bart",
    "bert",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "opt",
    "roberta",
    "m2m_100",
    "marian",
    "xglm",
    *ALIBI,
)


@pytest.mark.parametrize("release", ["4.57.6", pytest.param("4.56.2", marks=pytest.mark.full)])
def test_the_releases_before(tmp_path: Path, release: str) -> None:
    """They compute what transformers 5 does, past the length that each model was made for."""
    version = next(version for version in VERSIONS if version.transformers == release)
    reason = version.unavailable()
    if reason is not None:
        pytest.skip(reason)
    goals, asked = [], ""
    for model_type in _OLDER:
        folder, out = tmp_path / model_type, tmp_path / f"{model_type}-out"
        made(model_type, {**LEARNED, **SINUSOIDAL, **ALIBI}[model_type], folder)
        converted(folder, out, Recipe(target=TARGET))
        goals.append(logits(loaded(model_type, out), TARGET))
        asked += f"{out} {auto_of(model_type).__name__}\n"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": str(version.folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(TARGET)],
        input=asked, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {said for said, _found in answers} == {release}
    for model_type, goal, (_said, found) in zip(_OLDER, goals, answers, strict=True):
        assert torch.allclose(torch.tensor(found), goal, atol=1e-4), model_type


@pytest.mark.full
def test_a_table_inside_a_wrapper(tmp_path: Path) -> None:
    """BLIP-2's language model is an OPT, whose settings stand in text_config."""
    from transformers import AutoModelForImageTextToText, Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**sizes, image_size=8, patch_size=4),
        qformer_config=Blip2QFormerConfig(**sizes, vocab_size=40, encoder_hidden_size=16),
        text_config=OPTConfig(**LEARNED["opt"]),
        num_query_tokens=2,
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "model")
    plan = converted(tmp_path / "model", tmp_path / "out", Recipe(target=TARGET))
    assert plan.trained_context == LENGTH
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ids = torch.randint(5, 40, (1, TARGET))
    with torch.no_grad():
        found = model.language_model(input_ids=ids).logits
    assert found.shape == (1, TARGET, 40)
    assert torch.isfinite(found).all()


def test_alibi_is_rounded_as_a_plan_says() -> None:
    """Between the last tokens of 8192, in the steepest of 16 heads: up to 2 nats in float16, 16 in bfloat16."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    mask = torch.ones(1, 8192, dtype=torch.long)
    exact = build_alibi_tensor(mask, 16, torch.float32)[0, 0, -32:]
    for dtype, lost in ((torch.float16, 2.0), (torch.bfloat16, 16.0)):
        rounded = build_alibi_tensor(mask, 16, dtype)[0, 0, -32:].float()
        off = (rounded - exact).abs().max().item()
        assert lost / 4 < off <= lost


@pytest.mark.parametrize("target", [8000, 8191, 8192])
def test_rounding_below_a_power_of_two(target: int) -> None:
    """The steepest of 4 heads, 1/4: at most 4 nats. Falcon's is divided afterwards, by the root of the head's size."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcons

    mask = torch.ones(1, target, dtype=torch.long)
    exact = torch.arange(target) / 4
    bloom = build_alibi_tensor(mask, 4, torch.bfloat16)[0, 0].float()
    assert 2 < (bloom - exact).abs().max().item() <= 4
    falcon = falcons(mask, 4, torch.float32)[0, 0]
    assert 1 < ((falcon - exact) / 8**0.5).abs().max().item() <= 1.4143


def test_mpt_takes_the_same_slopes_whatever_its_config_says(tmp_path: Path) -> None:
    """alibi_bias_max, by which it was trained elsewhere, isn't read."""
    models = [made("mpt", {**ALIBI["mpt"], "attn_config": {"alibi_bias_max": n}}, tmp_path / str(n)) for n in (8, 16)]
    assert [model.config.attn_config.alibi_bias_max for model in models] == [8, 16]
    assert torch.equal(*(logits(model, LENGTH) for model in models))
