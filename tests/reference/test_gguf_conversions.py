"""What convert writes as GGUF, computed by llama.cpp, against transformers on the same method's safetensors.

Both start from one tiny model of random weights; the tokens go past its trained length. llama.cpp may differ by
twice what it differs by on the model that isn't extended, and by what moving every position by one step of float32
does: both programs round angles to that, and on a blended table not alike (test_gguf_angles.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from ctxextend.errors import RefusedError
from ctxextend.families import find_family
from ctxextend.formats.gguf_architectures import ARCHITECTURES, OF_FAMILY
from ctxextend.gguf_encoding import judge_gguf
from ctxextend.gguf_inspection import gguf_of
from ctxextend.pipeline import inspect_source, open_source, plan_source, run_plan
from ctxextend.recipe import Recipe
from tests.exports.models import MODELS, config_of, save
from tests.reference.libllama import logits
from tests.reference.logits_of_model import save_logits

TRAINED: Final = 256
TARGET: Final = 1024
#: So many tokens are read: a quarter of them past the trained length.
COUNT: Final = 344
VOCABULARY: Final = 96
#: Of those models whose windows llama.cpp hasn't got, the windows go: what is compared is the rope.
WITHOUT_WINDOWS: Final = {"mistral": {"sliding_window": None}}

METHODS: Final[Mapping[str, Mapping[str, Any]]] = {
    "linear": {},
    "yarn": {},
    "yarn without temperature": {"attention_factor": 1.0},
    "ntk": {},
    "dynamic": {},
    "ntk-by-parts": {},
    "llama3": {},
    "longrope": {"long_factor": [1.0 + i / 2 for i in range(64)]},
}
#: Phi-3's class reads LongRoPE alone, whose whole numbers carry a temperature to 1e-4 at a target as short as this:
#: that is what is seen here, on the side of transformers.
INEXACT: Final = {("phi3", "yarn"): 5e-3}
BAKED_EVERY_DAY: Final = ("llama", "qwen3", "gpt_neox", "deepseek_v3")
EVERY_DAY: Final = ("linear", "yarn", "llama3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a model, made when it is asked for."""
    return {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in MODELS}


def folder_of(models: Mapping[str, Path], name: str) -> Path:
    folder = models[name] / "source"
    if not folder.exists():
        save(name, folder)
        changed = json.loads((folder / "config.json").read_text())
        changed |= WITHOUT_WINDOWS.get(name, {})
        (folder / "config.json").write_text(json.dumps(changed, indent=2))
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of as many tokens as the model has embeddings, without merges."""
    alphabet = sorted(ByteLevel.alphabet())[: VOCABULARY - 3]
    names = ["<unk>", "<s>", "</s>", *alphabet]
    tokenizer = Tokenizer(BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, VOCABULARY, COUNT)]


def transformers_logits(folder: Path, tokens: list[int]) -> Any:
    error = save_logits(folder, tokens, "logits")
    assert error is None, error
    return np.load(folder / "logits.npy")


def difference(path: Path, folder: Path, tokens: list[int]) -> float:
    """The largest difference past the trained length, relative to how far logits lie apart."""
    expected = transformers_logits(folder, tokens)
    found = logits(path, np.array(tokens), context=COUNT, vocabulary=VOCABULARY)
    past = slice(TRAINED, None)
    return float(np.abs(found - expected)[past].max() / expected[past].std())


def convert(folder: Path, out: Path, **recipe: Any) -> Path:
    opened = open_source(folder)
    path, _ = run_plan(plan_source(opened, Recipe(**recipe)), opened, out)
    return path


_BASE: dict[str, float] = {}


def noise_of(models: Mapping[str, Path], name: str, tokens: list[int]) -> float:
    """What llama.cpp differs by on the model as it is."""
    if name not in _BASE:
        folder = folder_of(models, name)
        path = convert(folder, models[name] / "base.gguf", to="gguf", outtypes=("f32",))
        _BASE[name] = difference(path, folder, tokens)
    return _BASE[name]


@pytest.mark.parametrize("name", MODELS)
def test_an_export_computes_what_transformers_computes(models: dict[str, Path], name: str, tokens: list[int]) -> None:
    assert noise_of(models, name, tokens) < 2e-3


def full(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.full)


def grid() -> list[Any]:
    return [
        pytest.param(name, method, marks=() if method in EVERY_DAY else pytest.mark.full)
        for name in MODELS
        for method in METHODS
    ]


@pytest.mark.parametrize(("name", "method"), grid())
def test_an_extended_export_computes_what_transformers_computes(
    models: dict[str, Path], tmp_path: Path, name: str, method: str, tokens: list[int]
) -> None:
    source = folder_of(models, name)
    options = dict(METHODS[method])
    if method == "longrope":
        _, pairs = plain_rope(source)
        options["long_factor"] = options["short_factor"] = options["long_factor"][:pairs]
    asked: dict[str, Any] = {"method": method.split(maxsplit=1)[0], "target": TARGET, "options": options}
    refused = refusal(source, tmp_path / "long.gguf", asked)
    assert (refused is not None) is cannot_say(name, method), refused
    if refused is not None:
        assert refused.code in ("unwritable", "unreadable")
        assert refused.hint is not None
        return
    if method == "dynamic":
        asked = {"method": "rebase", "target": TARGET, "options": {"rope_theta": dynamic_base(source)}}
    # Readers other than the transformers that is run here may not agree.
    folder = convert(source, tmp_path / "long", **asked, runtimes=("transformers",), allow=("unreadable",))
    allowed = INEXACT.get((name, method), 2 * noise_of(models, name, tokens) + shaken(folder, tokens))
    assert difference(tmp_path / "long.gguf", folder, tokens) <= allowed


@pytest.mark.parametrize("name", [name if name in BAKED_EVERY_DAY else full(name) for name in MODELS])
def test_a_baked_export_computes_what_the_unbaked_extension_computes(
    models: dict[str, Path], tmp_path: Path, name: str, tokens: list[int]
) -> None:
    """The temperature is in the file's weights, and none is declared."""
    source = folder_of(models, name)
    asked: dict[str, Any] = {"method": "yarn", "target": TARGET}
    folder = convert(source, tmp_path / "long", **asked, runtimes=("transformers",), allow=("unreadable",))
    refused = refusal(source, tmp_path / "baked.gguf", {**asked, "bake": "temperature"})
    # Of windowed layers that keep their rope, a factor of 1 for the others would be taken too.
    assert (refused is not None) is cannot_say(name, "yarn without temperature"), refused
    if refused is not None:
        return
    (reader, *_others) = judge_gguf(
        gguf_of(open_source(tmp_path / "baked.gguf").contents), {}, target=TARGET, required=("llama.cpp",)
    )
    factors = [table.attention_factor for table in reader.reading.tables.values()]
    assert factors == pytest.approx([1.0] * len(factors), abs=1e-6)
    # The weights are rounded once more, to float32.
    allowed = INEXACT.get((name, "yarn"), 2 * noise_of(models, name, tokens) + shaken(folder, tokens) + 1e-5)
    assert difference(tmp_path / "baked.gguf", folder, tokens) <= allowed


def shaken(folder: Path, tokens: list[int]) -> float:
    """What transformers' logits change by, over their spread, when positions are one float32 step off: up and down.

    A frequency that is wrong by a millionth moves them farther.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    ropes = [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]
    assert ropes
    signs = torch.arange(len(tokens)) % 2 * 2 - 1

    def step(positions: Any) -> Any:
        return torch.nextafter(positions.float(), positions.float() + signs)

    def move(_module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        moved = (*given[:1], *map(step, given[1:2]), *given[2:])
        return moved, {key: step(value) if key == "position_ids" else value for key, value in named.items()}

    with torch.no_grad():
        before = model(torch.tensor([tokens])).logits[0, TRAINED:]
        for rope in ropes:
            rope.register_forward_pre_hook(move, with_kwargs=True)
        after = model(torch.tensor([tokens])).logits[0, TRAINED:]
    return float((after - before).abs().max() / before.std())


def refusal(source: Path, out: Path, asked: Mapping[str, Any]) -> RefusedError | None:
    """Export, or why that is refused."""
    try:
        convert(source, out, **asked, to="gguf", outtypes=("f32",))
    except RefusedError as refused:
        return refused
    return None


def cannot_say(name: str, method: str) -> bool:
    """Whether a file of this model's architecture has no form of a method (what llama.cpp b11434 loads)."""
    config = config_of(name)
    row = ARCHITECTURES[OF_FAMILY[find_family(config).name]]
    windows = config.get("text_config", config).get("sliding_window") is not None and name not in WITHOUT_WINDOWS
    sliding = row.sliding if windows else None
    match method:
        case "llama3" | "longrope":
            return row.factors in ("none", "ignored")
        case "ntk" | "dynamic":
            # One base for all layers, of which some must keep theirs.
            return sliding is not None and not sliding.scaled and not sliding.reads_theta
        case "yarn without temperature" | "ntk-by-parts":
            # One multiplier for all layers, of which some must keep theirs.
            return sliding is not None and not sliding.scaled and sliding.tempered
        case _:
            return False


def plain_rope(folder: Path) -> tuple[float, int]:
    """The base of the layers that are extended, and how many pairs they turn."""
    inspection = inspect_source(open_source(folder), Recipe())
    spec = next(group.spec for group in inspection.groups if group.extendable and group.spec is not None)
    return spec.rope_theta, spec.rotary_dim // 2


def dynamic_base(folder: Path) -> float:
    """The base at the target, by transformers' formula: theta * (s * n / L - (s - 1)) ** (d / (d - 2))."""
    theta, pairs = plain_rope(folder)
    factor = TARGET / TRAINED
    return float(theta * (factor * TARGET / TRAINED - (factor - 1)) ** (pairs / (pairs - 1)))
