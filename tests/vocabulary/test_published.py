"""Published vocabularies, those that llama.cpp tests itself with, and SmolLM2's: there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ctxextend.vocabulary import tokenizer_files, vocabulary_keys
from ctxextend.vocabulary.values import ID_KEYS, TOKENS, TYPES
from tests.vocabulary.llama_vocabulary import TEXT, all_values, llama_tokenizer, write_vocabulary

ASSETS = Path(__file__).resolve().parents[2] / "assets"
VOCABULARIES = ASSETS / "vocabularies"
NAMES = (
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gpt-neox",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
    "starcoder",
)
#: What today's converter writes otherwise than the one that wrote a file: the types of tokens that only look like
#: control tokens, Phi-3's second unknown tokens, and flags that a file leaves to the reader.
CHANGED = {
    "command-r": {"tokenizer.ggml.token_type"},
    "deepseek-coder": {"tokenizer.ggml.token_type"},
    "gpt-neox": {"tokenizer.ggml.pre"},
    "llama-bpe": {"tokenizer.ggml.add_bos_token"},
    "phi-3": {"tokenizer.ggml.token_type", "tokenizer.ggml.scores"},
}

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not VOCABULARIES.exists(), reason="they aren't here: python scripts/fetch_assets.py"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_vocabulary(tmp_path: Path, name: str) -> None:
    path = VOCABULARIES / f"{name}.gguf"
    values = all_values(path)
    for file, data in tokenizer_files(values).items():
        (tmp_path / file).write_bytes(data)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    specials = [
        token for token, kind in zip(values[TOKENS].value, values[TYPES].value, strict=True) if kind in (2, 3, 4)
    ]
    marked = [f"a {token} b{token}  c" for token in specials[:12]]
    with llama_tokenizer(path) as llama:
        for text in (TEXT, *marked, *published_texts(name)):
            for special in (False, True):
                found = tokenizer.encode(text, add_special_tokens=special).ids
                assert found == llama.ids(text, add_special=special), text
    for text, ids in zip(published_texts(name), published_ids(name), strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
    config: dict[str, Any] = {"vocab_size": values[TOKENS].length}
    config |= {f"{role}_token_id": values[key].value for role, key in ID_KEYS.items() if key in values}
    keys = vocabulary_keys(tmp_path, config, values["general.architecture"].value)
    given = {key: value for key, value in values.items() if key.startswith("tokenizer.")}
    changed = {key for key in keys.keys() | given.keys() if keys.get(key) != given.get(key)}
    assert changed == CHANGED.get(name, set())


def test_smollm2(tmp_path: Path) -> None:
    folder = ASSETS / "smollm2"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    keys = vocabulary_keys(folder, config, "llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Its hash is smollm's, but transformers has made this tokenizer.json from a GGUF file without the cut at digits.
    assert keys["tokenizer.ggml.pre"].value == "gpt-2"
    text = f"<|im_start|>user\n{TEXT}<|im_end|>\n<|endoftext|> x"
    with llama_tokenizer(write_vocabulary(tmp_path / "model.gguf", keys)) as llama:
        assert llama.ids(text) == tokenizer.encode(text, add_special_tokens=False).ids


def published_texts(name: str) -> list[str]:
    path = VOCABULARIES / f"{name}.gguf.inp"
    return path.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")[:-1] if path.exists() else []


def published_ids(name: str) -> list[list[int]]:
    """What the publishers' own tokenizers give."""
    path = VOCABULARIES / f"{name}.gguf.out"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [[int(number) for number in line.split()] for line in lines]
