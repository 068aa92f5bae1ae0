"""The files made from a GGUF file: as transformers reads them, and what can't be made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.vocabulary import tokenizer_files, vocabulary_keys
from ctxextend.vocabulary.values import MERGES, MODEL, PRE, SCORES, TOKENS, TYPES, array, flag, number, text
from tests.vocabulary.llama_vocabulary import llama_tokenizer, write_vocabulary
from tests.vocabulary.made import CONTROL, SPECIAL_TEXT, around, byte_pairs, sentence_pieces

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tiny(**changes: GgufValue | None) -> dict[str, GgufValue]:
    """A vocabulary of a few tokens; None takes a key away."""
    values = {
        MODEL: text("gpt2"),
        PRE: text("gpt-2"),
        TOKENS: array("STRING", ["a", "b", "ab", "<s>", "[PAD4]"]),
        TYPES: array("INT32", [1, 1, 1, 3, 5]),
        MERGES: array("STRING", ["a b"]),
        "tokenizer.ggml.bos_token_id": number(3),
    }
    named = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in {**values, **named}.items() if value is not None}


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_transformers_reads_them_as_llama_cpp_does(tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    config: dict[str, Any] = {"vocab_size": 920, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0}
    source = tmp_path / "source"
    if kind == "bytes":
        byte_pairs(source, BYTES, post_processor=around(*CONTROL))
    else:
        sentence_pieces(source)
        added = {"900": {"content": CONTROL[0], "special": True}, "901": {"content": CONTROL[1], "special": True}}
        settings = {"add_bos_token": True, "add_eos_token": True, "added_tokens_decoder": added}
        (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    values = vocabulary_keys(source, config, "llama")
    path = write_vocabulary(tmp_path / "model.gguf", values)
    made = tmp_path / "made"
    made.mkdir()
    more = {"general.architecture": text("llama"), "llama.context_length": number(4096)}
    for name, data in tokenizer_files({**values, **more}).items():
        (made / name).write_bytes(data)
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer.model_max_length == 4096
    assert (tokenizer.bos_token, tokenizer.eos_token) == (CONTROL if kind == "bytes" else ("<s>", "</s>"))
    with llama_tokenizer(path) as llama:
        for special in (False, True):
            ids = llama.ids(SPECIAL_TEXT, add_special=special)
            assert tokenizer.encode(SPECIAL_TEXT, add_special_tokens=special) == ids
        plain = llama.ids("Ein Satz, a sentence.")
        assert tokenizer.decode(plain) == "Ein Satz, a sentence."


def test_padding_is_no_token() -> None:
    document = json.loads(tokenizer_files(tiny())["tokenizer.json"])
    assert document["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2, "<s>": 3}
    assert document["model"]["merges"] == [["a", "b"]]
    assert [token["content"] for token in document["added_tokens"]] == ["<s>"]


def test_ids_out_of_range_are_no_tokens() -> None:
    minus = GgufValue(type="INT32", value=-1)
    settings = json.loads(tokenizer_files(tiny(bos_token_id=number(99), eos_token_id=minus))["tokenizer_config.json"])
    assert "bos_token" not in settings
    assert "eos_token" not in settings


def test_tokens_of_phi_3_take_the_spaces_after_them() -> None:
    values = tiny(
        model=text("llama"),
        tokens=array("STRING", ["<unk>", "<s>", "</s>", "<|user|>", "a"]),
        token_type=array("INT32", [2, 3, 4, 3, 1]),
        scores=array("FLOAT32", [0.0] * 5),
    )

    def stripped(name: str) -> list[str]:
        files = tokenizer_files({**values, "general.name": text(name)})
        return [token["content"] for token in json.loads(files["tokenizer.json"])["added_tokens"] if token["rstrip"]]

    # llama.cpp b11434, src/llama-vocab.cpp: by the model's name alone.
    assert stripped("Phi-3-mini") == ["</s>", "<|user|>"]
    assert stripped("Llama") == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": text("bert")}, MODEL),
        ({"model": None}, MODEL),
        ({"pre": text("kimi-k2")}, PRE),
    ],
)
def test_other_kinds_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(RefusedError) as caught:
        tokenizer_files(tiny(**changes))
    assert (caught.value.code, caught.value.key) == ("unknown-tokenizer", key)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tokens": None}, TOKENS),
        ({"tokens": array("STRING", ["a", "a", "ab", "<s>", "x"])}, None),
        ({"token_type": array("INT32", [1, 1])}, TYPES),
        ({"scores": text("none")}, SCORES),
        ({"tokens": array("INT32", [1, 2, 3])}, TOKENS),
        ({"token_type": array("STRING", ["a"] * 5)}, TYPES),
        ({"merges": array("STRING", ["a c"])}, MERGES),
        ({"merges": array("STRING", ["ab"])}, MERGES),
        ({"add_eos_token": flag(True)}, "tokenizer.ggml.eos_token_id"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], key: str | None) -> None:
    with pytest.raises(CheckpointError) as caught:
        tokenizer_files(tiny(**changes))
    assert caught.value.code == "broken-tokenizer"
    assert caught.value.key == key


def test_a_file_without_a_pre_tokenizer_is_read_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    byte_pairs(tmp_path, BYTES)
    values = vocabulary_keys(tmp_path, {}, "llama")
    del values[PRE]
    path = write_vocabulary(tmp_path / "model.gguf", values)
    from tokenizers import Tokenizer

    ours = Tokenizer.from_buffer(tokenizer_files(values)["tokenizer.json"])
    with llama_tokenizer(path) as llama:
        assert ours.encode(SPECIAL_TEXT, add_special_tokens=False).ids == llama.ids(SPECIAL_TEXT)
