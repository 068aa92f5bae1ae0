"""What convert writes as GGUF, computed by llama.cpp, against transformers on the same method's safetensors.

Both start from one tiny model of random weights; the tokens go past its trained length. llama.cpp may differ by
twice what it differs by on the model that isn't extended: in root mean square over several texts, as the largest of
thousands of roundings is chance. Texts are short, because both programs round angles to float32, unlike on a
blended table (test_gguf_angles.py): at hundreds of positions that is more than all else they round.
"""

from __future__ import annotations

import json
import math
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

TRAINED: Final = 64
TARGET: Final = 256
#: So many tokens a text has: half of them past the trained length.
COUNT: Final = 128
TEXTS: Final = 4
VOCABULARY: Final = 96
#: Of those models whose windows llama.cpp hasn't got, the windows go: what is compared is the rope.
WITHOUT_WINDOWS: Final = {"mistral": {"sliding_window": None}}

#: llama.cpp keeps the table of this activation in half precision.
GELU: Final = ("gemma", "gpt_neox", "starcoder2")
LENGTHS: Final = ("max_position_embeddings", "original_max_position_embeddings")

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
#: Phi-3's class reads LongRoPE alone, whose whole numbers can't carry a temperature at a target as short as this: its
#: rope is given 0.1 ln(4) + 1 (arXiv 2309.00071, eq. 22) in transformers.
UNSAID: Final = {("phi3", "yarn"): 0.1 * math.log(TARGET / TRAINED) + 1.0}


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
        for section in (changed, changed.get("text_config", {})):
            section |= {key: TRAINED for key in LENGTHS if key in section}
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
def texts() -> Any:
    """Token ids of shape ``(TEXTS, COUNT)``."""
    return np.random.default_rng(5).integers(3, VOCABULARY, (TEXTS, COUNT))


def transformers_logits(folder: Path, texts: Any, *, attention_factor: float | None = None) -> Any:
    """Shape ``(TEXTS, COUNT, VOCABULARY)``, in float32; with an attention factor, that in place of the config's."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    if attention_factor is not None:
        (rope,) = [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]
        assert rope.attention_scaling == 1.0
        rope.attention_scaling = attention_factor
    with torch.no_grad():
        return model(torch.tensor(texts)).logits.numpy()


def difference(path: Path, folder: Path, texts: Any, *, attention_factor: float | None = None) -> float:
    """Root mean square past the trained length, relative to how far logits lie apart."""
    expected = transformers_logits(folder, texts, attention_factor=attention_factor)[:, TRAINED:]
    found = np.stack([logits(path, text, context=COUNT, vocabulary=VOCABULARY) for text in texts])[:, TRAINED:]
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


def convert(folder: Path, out: Path, **recipe: Any) -> Path:
    opened = open_source(folder)
    path, _ = run_plan(plan_source(opened, Recipe(**recipe)), opened, out)
    return path


_BASE: dict[str, float] = {}


def noise_of(models: Mapping[str, Path], name: str, texts: Any) -> float:
    """What llama.cpp differs by on the model as it is."""
    if name not in _BASE:
        folder = folder_of(models, name)
        path = convert(folder, models[name] / "base.gguf", to="gguf", outtypes=("f32",))
        _BASE[name] = difference(path, folder, texts)
    return _BASE[name]


@pytest.mark.parametrize("name", MODELS)
def test_an_export_computes_what_transformers_computes(models: dict[str, Path], name: str, texts: Any) -> None:
    assert noise_of(models, name, texts) < (5e-4 if name.startswith(GELU) else 5e-6)


def test_the_bound_sees_a_base_that_is_off_by_a_hundred_thousandth(
    models: dict[str, Path], tmp_path: Path, texts: Any
) -> None:
    source = folder_of(models, "llama")
    asked = {"method": "rebase", "target": TARGET}
    folder = as_safetensors(source, tmp_path / "long", {**asked, "options": {"rope_theta": 4e5}}, None)
    options = {"rope_theta": 4e5 * (1 + 1e-5)}
    path = convert(source, tmp_path / "off.gguf", **asked, options=options, to="gguf", outtypes=("f32",))
    assert difference(path, folder, texts) > 4 * noise_of(models, "llama", texts)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_an_extended_export_computes_what_transformers_computes(
    models: dict[str, Path], tmp_path: Path, name: str, method: str, texts: Any
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
    factor = UNSAID.get((name, method))
    folder = as_safetensors(source, tmp_path / "long", asked, factor)
    found = difference(tmp_path / "long.gguf", folder, texts, attention_factor=factor)
    assert found <= 2 * noise_of(models, name, texts)


@pytest.mark.parametrize("name", MODELS)
def test_a_baked_export_computes_what_the_unbaked_extension_computes(
    models: dict[str, Path], tmp_path: Path, name: str, texts: Any
) -> None:
    """The temperature is in the file's weights, and none is declared."""
    source = folder_of(models, name)
    asked: dict[str, Any] = {"method": "yarn", "target": TARGET}
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
    factor = UNSAID.get((name, "yarn"))
    folder = as_safetensors(source, tmp_path / "long", asked, factor)
    found = difference(tmp_path / "baked.gguf", folder, texts, attention_factor=factor)
    assert found <= 2 * noise_of(models, name, texts)


def as_safetensors(source: Path, out: Path, asked: Mapping[str, Any], factor: float | None) -> Path:
    """The same method for transformers, without the attention factor that its rope is going to be given."""
    options = {**asked.get("options", {}), **({} if factor is None else {"attention_factor": 1.0})}
    # Readers other than the transformers that is run here may not agree.
    return convert(source, out, **{**asked, "options": options}, runtimes=("transformers",), allow=("unreadable",))


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
