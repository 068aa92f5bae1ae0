"""Byte-level BPE, Hugging Face to GGUF and back: the ids are those of llama.cpp, for every pre-tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.vocabulary import tokenizer_files, vocabulary_keys
from ctxextend.vocabulary.pre_hashes import PRE_BY_HASH, PROBE
from ctxextend.vocabulary.pre_tokenizers import BY_NAME, PRE_TOKENIZERS, structure_of
from ctxextend.vocabulary.values import MERGES, PRE, TOKENS, TYPES
from tests.vocabulary.llama_vocabulary import TEXT, all_values, llama_tokenizer, write_vocabulary
from tests.vocabulary.made import CONTROL, SPECIAL_TEXT, around, byte_pairs

PROBE_SHA256 = "a36179c1e2b1cfcfbfad1dc779addad2ffc778201e4cf0d538bddeafa2c526da"
NAMES = [row.name for row in PRE_TOKENIZERS]
LLAMA_3 = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {
                "Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
            },
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    row = BY_NAME[name]
    theirs = byte_pairs(
        tmp_path,
        structure_of(row),
        ignore_merges=row.ignore_merges,
        settings={"clean_up_tokenization_spaces": row.clean_spaces},
        post_processor=around(CONTROL[0], None),
    )
    keys = vocabulary_keys(tmp_path, {"vocab_size": 720}, "qwen2")
    assert BY_NAME[keys[PRE].value].steps == row.steps
    path = write_vocabulary(tmp_path / "model.gguf", keys)
    back = tokenizer_files(all_values(path))
    ours = Tokenizer.from_buffer(back["tokenizer.json"])
    with llama_tokenizer(path) as llama:
        for text in (TEXT, SPECIAL_TEXT, "", " ", "\n", "<tool>x<tool> y"):
            for special in (False, True):
                expected = llama.ids(text, add_special=special)
                assert theirs.encode(text, add_special_tokens=special).ids == expected
                assert ours.encode(text, add_special_tokens=special).ids == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_files_give_the_keys_again(tmp_path: Path, name: str) -> None:
    row = BY_NAME[name]
    byte_pairs(
        tmp_path / "first",
        structure_of(row),
        ignore_merges=row.ignore_merges,
        settings={"clean_up_tokenization_spaces": row.clean_spaces, "chat_template": "{{ messages }}"},
        post_processor=around(CONTROL[0], CONTROL[1], pair=True),
    )
    config = {"vocab_size": 710, "pad_token_id": 1}
    keys = vocabulary_keys(tmp_path / "first", config, "qwen2")
    (tmp_path / "second").mkdir()
    for file, data in tokenizer_files(keys).items():
        (tmp_path / "second" / file).write_bytes(data)
    assert vocabulary_keys(tmp_path / "second", config, "qwen2") == keys


def test_a_tokenizer_of_llama_3_is_recognised_by_its_steps(tmp_path: Path) -> None:
    byte_pairs(tmp_path, LLAMA_3, ignore_merges=True)
    assert vocabulary_keys(tmp_path, {}, "llama")[PRE].value == "llama-bpe"
    byte_pairs(tmp_path, LLAMA_3)
    assert vocabulary_keys(tmp_path, {}, "llama")[PRE].value == "smaug-bpe"


@pytest.mark.parametrize(
    ("clean", "name"), [(True, "starcoder"), (False, "smollm"), (None, "starcoder")], ids=["cleans", "not", "unsaid"]
)
def test_settings_choose_between_those_that_cut_alike(tmp_path: Path, clean: bool | None, name: str) -> None:
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}
    byte_pairs(tmp_path, steps, settings={} if clean is None else {"clean_up_tokenization_spaces": clean})
    assert vocabulary_keys(tmp_path, {}, "llama")[PRE].value == name


def test_a_known_hash_wins_over_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_pairs(tmp_path, BYTES)
    ids = [0, *tokenizer.encode(PROBE).ids]
    known = {hashlib.sha256(str(ids).encode()).hexdigest(): "exaone4"}
    monkeypatch.setattr("ctxextend.vocabulary.byte_pairs.PRE_BY_HASH", known)
    # The ids with the first token that the settings name: readers add it, tokenizer.json doesn't.
    assert vocabulary_keys(tmp_path, {}, "llama")[PRE].value == "exaone4"


def test_another_cut_of_a_known_vocabulary_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_pairs(tmp_path, BYTES)
    digest = hashlib.sha256(str(tokenizer.encode(PROBE).ids).encode()).hexdigest()
    # smollm cuts digit by digit, which this tokenizer.json doesn't.
    monkeypatch.setattr("ctxextend.vocabulary.byte_pairs.PRE_BY_HASH", {digest: "smollm"})
    assert vocabulary_keys(tmp_path, {}, "llama")[PRE].value == "gpt-2"


def test_a_known_hash_is_enough_where_the_steps_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_pairs(tmp_path, {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES]})
    digest = hashlib.sha256(str(tokenizer.encode(PROBE).ids).encode()).hexdigest()
    monkeypatch.setattr("ctxextend.vocabulary.byte_pairs.PRE_BY_HASH", {digest: "viking"})
    assert vocabulary_keys(tmp_path, {}, "llama")[PRE].value == "viking"


def test_hashes_are_whole() -> None:
    assert all(len(key) == 64 and int(key, 16) for key in PRE_BY_HASH)
    # The text of llama.cpp b11434, conversion/base.py.
    assert hashlib.sha256(PROBE.encode()).hexdigest() == PROBE_SHA256


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, BYTES]}},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Lowercase"}},
    ],
    ids=["prefix", "whitespace", "twice", "none", "lowercase"],
)
def test_what_llama_cpp_cannot_cut_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    byte_pairs(tmp_path, BYTES, **change)
    with pytest.raises(RefusedError) as caught:
        vocabulary_keys(tmp_path, {}, "llama")
    assert caught.value.code == "unknown-pre-tokenizer"
    assert json.dumps(next(iter(change.values())))[:30] in (caught.value.found or "")


def test_merges_that_are_ignored_matter(tmp_path: Path) -> None:
    byte_pairs(tmp_path, BYTES, ignore_merges=True)
    with pytest.raises(RefusedError, match="pre-tokenizer"):
        vocabulary_keys(tmp_path, {}, "llama")


def test_types_and_padding(tmp_path: Path) -> None:
    byte_pairs(tmp_path, BYTES)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    last = max(token["id"] for token in document["added_tokens"])
    document["added_tokens"].append(
        {**document["added_tokens"][-1], "id": last + 1, "content": "<|looks|>", "special": False}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    keys = vocabulary_keys(tmp_path, {"vocab_size": last + 4}, "llama")
    tokens, types = keys[TOKENS].value, keys[TYPES].value
    # CONTROL 3, NORMAL 1, USER_DEFINED 4, UNUSED 5: llama.cpp, include/llama.h.
    assert list(zip(tokens, types, strict=True))[:3] == [(CONTROL[0], 3), (CONTROL[1], 3), ("!", 1)]
    assert list(zip(tokens, types, strict=True))[last:] == [
        ("<tool>", 4),
        ("<|looks|>", 3),
        (f"[PAD{last + 2}]", 5),
        (f"[PAD{last + 3}]", 5),
    ]
    with pytest.raises(CheckpointError, match="no rows"):
        vocabulary_keys(tmp_path, {"vocab_size": last}, "llama")


def test_spaces_in_merges_are_written_as_bytes_are(tmp_path: Path) -> None:
    byte_pairs(tmp_path, BYTES)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["merges"].append(["a b", "c"])
    document["model"]["vocab"] |= {"a b": 701, "a bc": 702}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    # gguf-py's vocab.py: a space becomes chr(ord(" ") + 256).
    assert vocabulary_keys(tmp_path, {}, "llama")[MERGES].value[-1] == "aĠb c"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "not JSON"),
        ('{"model": []}', "isn't what it should be"),
        ('{"model": {"type": "BPE", "vocab": [], "merges": []}}', "isn't what it should be"),
        ('{"model": {"type": "WordPiece", "vocab": {}}}', "kind of tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}', "isn't what it should be"),
        ('{"model": {"type": "BPE", "vocab": {"a": null}, "merges": []}}', "isn't what it should be"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises((CheckpointError, RefusedError)) as caught:
        vocabulary_keys(tmp_path, {}, "llama")
    assert caught.value.file == "tokenizer.json"
    assert error in caught.value.message or error == "not JSON"


def test_an_absurd_size_is_named(tmp_path: Path) -> None:
    byte_pairs(tmp_path, BYTES)
    with pytest.raises(CheckpointError) as caught:
        vocabulary_keys(tmp_path, {"vocab_size": 10**12}, "llama")
    assert caught.value.key == "vocab_size"


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        vocabulary_keys(tmp_path, {}, "llama")
