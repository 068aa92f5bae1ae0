"""Special tokens, flags and chat templates: what the ``gguf`` package writes for the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, SpecialVocab

from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError
from ctxextend.vocabulary import tokenizer_files, vocabulary_keys
from tests.vocabulary.made import CONTROL, around, byte_pairs

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FIRST, LAST = CONTROL
#: What the vocabulary itself is, which the package's class has no part in.
MODEL = ("model", "pre", "tokens", "token_type", "merges")


def theirs(folder: Path) -> dict[str, Any]:
    writer = GGUFWriter(None, "llama")
    SpecialVocab(folder).add_to_gguf(writer, quiet=True)
    return {key: value.value for key, value in writer.kv_data[0].items() if key.startswith("tokenizer.")}


def ours(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    keys = vocabulary_keys(folder, config, "qwen2")
    return {
        key: list(value.value) if value.type == "ARRAY" else value.value
        for key, value in keys.items()
        if key.removeprefix("tokenizer.ggml.") not in MODEL
    }


def made(folder: Path, config: dict[str, Any], settings: dict[str, Any], post_processor: Any) -> None:
    byte_pairs(folder, BYTES, size=300, settings=settings, post_processor=post_processor)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


PROCESSORS: dict[str, Any] = {
    "none": None,
    "bytes": BYTES,
    "first": around(FIRST, None),
    "last": around(None, LAST),
    "both": around(FIRST, LAST),
    "pair": around(FIRST, None, pair=True),
    "both pair": around(FIRST, LAST, pair=True),
    "swapped": around(LAST, FIRST),
    "sequence": {"type": "Sequence", "processors": [BYTES, around(FIRST, None, pair=True)]},
    "roberta": {
        "type": "RobertaProcessing",
        "sep": [LAST, 1],
        "cls": [FIRST, 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    },
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flags": {"add_bos_token": False, "add_eos_token": True},
    "no names": {"bos_token": None, "eos_token": None},
    "objects": {"eos_token": {"content": LAST, "special": True}, "pad_token": "<tool>", "unk_token": "nothing"},
    "classifier": {"bos_token": None, "cls_token": FIRST, "sep_token": LAST, "eos_token": None},
    "mask": {"mask_token": "<tool>", "sep_token": LAST},
}
CONFIG = {"vocab_size": 320, "bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": 9, "unk_token_id": None}


@pytest.mark.parametrize("processor", ["none", "first", "last", "both", "pair", "both pair"])
@pytest.mark.parametrize("settings", ["plain", "classifier", "mask"])
def test_the_package_agrees(tmp_path: Path, processor: str, settings: str) -> None:
    made(tmp_path, CONFIG, SETTINGS[settings], PROCESSORS[processor])
    assert ours(tmp_path, CONFIG) == theirs(tmp_path)


@pytest.mark.parametrize("processor", ["none", "first", "pair"])
@pytest.mark.parametrize("settings", ["objects"])
def test_the_package_agrees_on_objects(tmp_path: Path, processor: str, settings: str) -> None:
    made(tmp_path, CONFIG, SETTINGS[settings], PROCESSORS[processor])
    assert ours(tmp_path, CONFIG) == theirs(tmp_path)


#: Where the package on PyPI is older: what gguf-py of llama.cpp b11434 writes for the same folder.
NEWER: dict[tuple[str, str], dict[str, Any]] = {
    ("bytes", "plain"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": False,
        "add_eos_token": False,
    },
    ("bytes", "flags"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": False,
        "add_eos_token": False,
    },
    ("bytes", "no names"): {"bos_token_id": 7, "padding_token_id": 9, "add_bos_token": False, "add_eos_token": False},
    ("bytes", "mask"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "seperator_token_id": 1,
        "mask_token_id": 300,
        "padding_token_id": 9,
        "add_bos_token": False,
        "add_eos_token": False,
    },
    ("swapped", "plain"): {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "eot_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
    },
    ("swapped", "flags"): {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "eot_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
    },
    ("swapped", "no names"): {
        "bos_token_id": 1,
        "eos_token_id": 0,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
    },
    ("swapped", "mask"): {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "seperator_token_id": 1,
        "mask_token_id": 300,
        "eot_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
    },
    ("sequence", "plain"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_sep_token": False,
    },
    ("sequence", "flags"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_sep_token": False,
    },
    ("sequence", "no names"): {
        "bos_token_id": 0,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_sep_token": False,
    },
    ("sequence", "mask"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "seperator_token_id": 1,
        "mask_token_id": 300,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_sep_token": False,
    },
    ("roberta", "plain"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "seperator_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
        "add_sep_token": True,
    },
    ("roberta", "flags"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "seperator_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
        "add_sep_token": True,
    },
    ("roberta", "no names"): {
        "seperator_token_id": 1,
        "bos_token_id": 7,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
        "add_sep_token": True,
    },
    ("roberta", "mask"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "seperator_token_id": 1,
        "mask_token_id": 300,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
        "add_sep_token": True,
    },
    ("first", "flags"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
    },
    ("first", "no names"): {"bos_token_id": 0, "padding_token_id": 9, "add_bos_token": True},
    ("both", "flags"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
    },
    ("both", "no names"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_eos_token": True,
    },
    ("pair", "flags"): {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "padding_token_id": 9,
        "add_bos_token": True,
        "add_sep_token": False,
        "add_eos_token": True,
    },
    ("pair", "no names"): {"bos_token_id": 0, "padding_token_id": 9, "add_bos_token": True, "add_sep_token": False},
}


@pytest.mark.parametrize(("processor", "settings"), NEWER)
def test_what_newer_sources_write(tmp_path: Path, processor: str, settings: str) -> None:
    made(tmp_path, CONFIG, SETTINGS[settings], PROCESSORS[processor])
    assert ours(tmp_path, CONFIG) == {
        f"tokenizer.ggml.{key}": value for key, value in NEWER[processor, settings].items()
    }


def test_ids_of_a_nested_config(tmp_path: Path) -> None:
    config = {"text_config": {"vocab_size": 320, "bos_token_id": 3, "eos_token_id": 4}}
    made(tmp_path, config, {"bos_token": None, "eos_token": None}, None)
    assert ours(tmp_path, config) == theirs(tmp_path)


TEMPLATES: dict[str, dict[str, str]] = {
    "file": {"chat_template.jinja": "{{ a }}"},
    "object": {"chat_template.json": '{"chat_template": "{{ b }}"}'},
    "folder": {"chat_template.jinja": "{{ a }}", "additional_chat_templates/tool-use.jinja": "{{ é }}"},
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("said", [None, "{{ settings }}"])
def test_templates_of_files(tmp_path: Path, name: str, said: str | None) -> None:
    made(tmp_path, CONFIG, {} if said is None else {"chat_template": said}, None)
    for file, text in TEMPLATES[name].items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert ours(tmp_path, CONFIG) == theirs(tmp_path)


def test_named_templates_go_there_and_back(tmp_path: Path) -> None:
    said = [{"name": "default", "template": "{{ a }}"}, {"name": "rag", "template": "{{ b }}"}]
    made(tmp_path, CONFIG, {"chat_template": said}, None)
    assert ours(tmp_path, CONFIG) == theirs(tmp_path)
    files = tokenizer_files(vocabulary_keys(tmp_path, CONFIG, "qwen2"))
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == said


def test_a_template_of_other_bytes_is_named(tmp_path: Path) -> None:
    made(tmp_path, CONFIG, {}, None)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError) as caught:
        vocabulary_keys(tmp_path, CONFIG, "llama")
    assert caught.value.file == "chat_template.jinja"


def test_what_single_architectures_say(tmp_path: Path) -> None:
    made(tmp_path, CONFIG, {"add_prefix_space": False}, around(FIRST, None))

    def value(architecture: str, key: str, **more: Any) -> Any:
        found = vocabulary_keys(tmp_path, {**CONFIG, **more}, architecture).get(f"tokenizer.ggml.{key}")
        return found.value if isinstance(found, GgufValue) else None

    # llama.cpp b11434, conversion/llama.py: LlamaModel.set_vocab.
    assert value("llama", "add_space_prefix") is False
    assert value("qwen2", "add_space_prefix") is None
    assert value("llama", "add_bos_token") is True
    assert value("llama", "add_bos_token", vocab_size=49_152) is False
    assert value("qwen2", "add_bos_token", vocab_size=49_152) is True
    assert value("llama", "eot_token_id", vocab_size=32_016) == 32_010
