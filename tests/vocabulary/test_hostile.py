"""Tokenizers that are broken on purpose or by accident: an error of ours, or keys that a file can hold."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ctxextend.checkpoint.documents import parse_document
from ctxextend.contents import Document, GgufValue
from ctxextend.errors import CheckpointError, CtxextendError, RefusedError
from ctxextend.vocabulary import folder, tokenizer_files, vocabulary_keys

DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
#: So few tokens that hundreds of broken ones are read in a second.
SIZE = 300
SPACE = "\u2581"

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1 << 31, 1 << 70, 10**400, 1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "\x00", "BPE", "Sequence", [], {}, [1], [None], [[]], [["a"]], ["a b c"], {"a": 1}, {"type": "X"}),
    *({"content": 5}, "half \ud800", {"content": "\udfff"}),
)


@cache
def bytes_merged() -> dict[str, dict[str, Any]]:
    """The demo's tokenizer, cut down."""
    found = {name: json.loads((DEMO / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")}
    model, added = found["tokenizer.json"]["model"], found["tokenizer.json"]["added_tokens"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < SIZE}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    model["merges"] = [pair for pair in pairs if "".join(pair) in model["vocab"]]
    assert all(token["id"] < SIZE for token in added)
    found["tokenizer_config.json"] |= {
        "added_tokens_decoder": {str(token["id"]): token for token in added},
        "chat_template": [{"name": "default", "template": "x"}, {"name": "tool", "template": "y"}],
    }
    return found


@cache
def characters_merged() -> dict[str, dict[str, Any]]:
    """A tokenizer as SentencePiece's are converted, without its tokenizer.model."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), SPACE, "a", "b", f"{SPACE}a", "ab"]
    normal = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "byte_fallback": True,
        "vocab": {piece: number for number, piece in enumerate(pieces)},
        "merges": [[SPACE, "a"], ["a", "b"]],
    }
    document = {
        "added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": normal},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": model,
    }
    return {"tokenizer.json": document, "tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": True}}


KINDS = {"bytes": (bytes_merged, SIZE), "characters": (characters_merged, 264)}


def places(value: Any, chance: random.Random, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to a document's parts; of a long list or vocabulary to a few entries."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, part in entries if len(entries) < 30 else chance.sample(entries, 6):
        yield (*place, key)
        yield from places(part, chance, (*place, key))


def broken(document: Any, chance: random.Random) -> None:
    """Takes one part of a document away, or puts another in its place."""
    found = list(places(document, chance))
    if not found:
        return
    *way, last = chance.choice(found)
    for key in way:
        document = document[key]
    if chance.random() < 0.3:
        del document[last]
    else:
        document[last] = copy.deepcopy(chance.choice(ODD))


def write(place: Path, files: dict[str, dict[str, Any]]) -> Path:
    for name, document in files.items():
        (place / name).write_text(json.dumps(document))
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_broken_here_is_good(kind: str, tmp_path: Path) -> None:
    make, size = KINDS[kind]
    keys = vocabulary_keys(write(tmp_path, make()), {"vocab_size": size}, "llama")
    assert keys["tokenizer.ggml.tokens"].length == size


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_tokenizer_is_an_error_of_ours_or_can_be_written(kind: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    make, size = KINDS[kind]
    for _ in range(30):
        files: dict[str, dict[str, Any]] = copy.deepcopy({**make(), "config.json": {"vocab_size": size}})
        for _change in range(chance.choice((1, 1, 2))):
            broken(files[chance.choice(("tokenizer.json", "tokenizer.json", *files))], chance)
        try:
            keys = vocabulary_keys(write(tmp_path, files), files["config.json"], chance.choice(("llama", "phi3")))
        except CtxextendError:
            continue
        for key, value in keys.items():
            check(key, value)


def check(key: str, value: GgufValue) -> None:
    """Whether a file can hold a key and its value."""
    assert key.encode()
    items = value.value if value.type == "ARRAY" else (value.value,)
    ranges = {"UINT32": (0, (1 << 32) - 1), "INT32": (-(1 << 31), (1 << 31) - 1)}
    for item in items:
        match value.item or value.type:
            case "STRING":
                assert item.encode() or not item
            case "BOOL":
                assert isinstance(item, bool)
            case "FLOAT32":
                assert isinstance(item, float)
            case kind:
                assert ranges[kind][0] <= item <= ranges[kind][1]


def refused(place: Path, files: dict[str, dict[str, Any]], size: int) -> CtxextendError:
    with pytest.raises((CheckpointError, RefusedError)) as caught:
        vocabulary_keys(write(place, files), {"vocab_size": size}, "llama")
    return caught.value


@pytest.mark.parametrize("merge", [5, None, [], ["a"], ["a", 1], ["a", "b", "c"], {"a": "b"}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_two_texts(kind: str, merge: Any, tmp_path: Path) -> None:
    make, size = KINDS[kind]
    files = copy.deepcopy(make())
    files["tokenizer.json"]["model"]["merges"].append(merge)
    error = refused(tmp_path, files, size)
    assert (error.code, error.key) == ("broken-tokenizer", "model.merges")


@pytest.mark.parametrize("step", ["x", 5, [], {"type": "Sequence", "normalizers": 5}])
def test_a_normalizer_that_is_none(step: Any, tmp_path: Path) -> None:
    files = copy.deepcopy(characters_merged())
    files["tokenizer.json"]["normalizer"] = {"type": "Sequence", "normalizers": [step]}
    assert refused(tmp_path, files, 264).code == "unknown-tokenizer"


def deep_parse(file: str, raw: bytes) -> Document:
    """As newer Pythons read JSON: deeper than their own functions may call each other."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        return parse_document(file, raw)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "added_tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_nested_too_deep(kind: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, size = KINDS[kind]
    files = copy.deepcopy(make())
    files["tokenizer.json"][part] = "deep" if part != "added_tokens" else ["deep"]
    text = json.dumps(files["tokenizer.json"])
    inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "added_tokens": "content"}[part]
    write(tmp_path, files)
    for depth in (100, 400, 1200):
        steps = f'{{"type": "Sequence", "{inner}": [' * depth + '{"type": "X"}' + "]}" * depth
        (tmp_path / "tokenizer.json").write_text(text.replace('"deep"', steps))
        with pytest.raises(CtxextendError):
            vocabulary_keys(tmp_path, {"vocab_size": size}, "llama")
    monkeypatch.setattr(folder, "parse_document", deep_parse)
    with pytest.raises(CtxextendError):
        vocabulary_keys(tmp_path, {"vocab_size": size}, "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_none(kind: str, tmp_path: Path) -> None:
    make, size = KINDS[kind]
    for name, key in (("tokenizer_config.json", "bos_token"), ("tokenizer_config.json", "chat_template")):
        files = copy.deepcopy(make())
        files[name][key] = "\ud800"
        error = refused(tmp_path, files, size)
        assert (error.code, error.file) == ("broken-tokenizer", name)
    # Both halves are one.
    files = copy.deepcopy(make())
    files["tokenizer_config.json"]["chat_template"] = "\U0001f999"
    assert "\\ud83e\\udd99" in json.dumps(files)
    keys = vocabulary_keys(write(tmp_path, files), {"vocab_size": size}, "llama")
    assert keys["tokenizer.chat_template"].value == "\U0001f999"


@pytest.mark.parametrize("size", [-5, 1 << 23, 10**400])
@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_of_a_size_that_can_not_be(kind: str, size: int, tmp_path: Path) -> None:
    error = refused(tmp_path, KINDS[kind][0](), size)
    assert (error.code, error.key) == ("broken-tokenizer", "vocab_size")


def test_a_panic_of_the_library_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = copy.deepcopy(bytes_merged())
    files["tokenizer.json"]["model"]["continuing_subword_prefix"] = "a prefix that is longer than any token is"
    assert refused(tmp_path, files, SIZE).code == "broken-tokenizer"
    assert "panicked" in capfd.readouterr().err


def test_a_token_too_long_to_be_looked_for_in_parts(tmp_path: Path) -> None:
    files = copy.deepcopy(characters_merged())
    model = files["tokenizer.json"]["model"]
    model["vocab"] |= {"c" * 200_000: 264, "d": 265, "c" * 200_000 + "d": 266}
    model["merges"].append(["c" * 200_000, "d"])
    assert refused(tmp_path, files, 267).found == "200001"


def test_a_token_of_a_gguf_too_long_to_be_looked_for_in_parts() -> None:
    tokens = ("<unk>", "<s>", "</s>", "c" * 200_000)
    values = {
        "tokenizer.ggml.model": GgufValue(type="STRING", value="llama"),
        "tokenizer.ggml.tokens": GgufValue(type="ARRAY", item="STRING", length=4, value=tokens),
        "tokenizer.ggml.token_type": GgufValue(type="ARRAY", item="INT32", length=4, value=(2, 3, 3, 1)),
    }
    with pytest.raises(CheckpointError) as caught:
        tokenizer_files(values)
    assert (caught.value.code, caught.value.found) == ("broken-tokenizer", "200000")
