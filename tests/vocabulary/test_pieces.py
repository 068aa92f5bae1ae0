"""SentencePiece vocabularies: the ids of llama.cpp are those of the sentencepiece library and of the files made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.vocabulary import tokenizer_files, vocabulary_keys
from ctxextend.vocabulary.sentencepiece_model import read_model, write_model
from ctxextend.vocabulary.values import ADD_SPACE, MODEL, SCORES, TOKENS, TYPES, TokenType
from tests.vocabulary.llama_vocabulary import TEXT, all_values, llama_tokenizer, write_vocabulary
from tests.vocabulary.made import sentence_pieces

SETTINGS = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "added_tokens_decoder": {
        "900": {"content": "<tool>", "special": False},
        "901": {"content": "<|end|>", "special": True},
    },
}
CONFIG = {"vocab_size": 904, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0}
MARKED = f"<s> hello<|end|>\n {TEXT}<tool> x <tool>y<|end|>"


def saved(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["prefixed", "bare"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, bool]:
    folder = tmp_path_factory.mktemp("pieces")
    processor = sentence_pieces(folder, prefix=request.param)
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    return folder, processor, request.param


def test_ids_are_those_of_llama_cpp_and_of_the_library(made: tuple[Path, Any, bool], tmp_path: Path) -> None:
    folder, processor, prefixed = made
    keys = vocabulary_keys(folder, CONFIG, "llama")
    assert (keys.get(ADD_SPACE) is None) == prefixed
    path = write_vocabulary(tmp_path / "model.gguf", keys)
    files = tokenizer_files(all_values(path))
    ours = Tokenizer.from_buffer(files["tokenizer.json"])
    again = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    with llama_tokenizer(path) as llama:
        for text in (TEXT, *TEXT.splitlines(), " ", "a", "  a"):
            expected = llama.ids(text)
            assert processor.encode(text) == expected
            assert again.encode(text) == expected
            assert ours.encode(text, add_special_tokens=False).ids == expected
        for special in (False, True):
            assert ours.encode(MARKED, add_special_tokens=special).ids == llama.ids(MARKED, add_special=special)


def test_keys_are_those_of_the_converter(made: tuple[Path, Any, bool]) -> None:
    folder, processor, _prefixed = made
    keys = vocabulary_keys(folder, CONFIG, "llama")
    count = processor.get_piece_size()
    # llama.cpp b11434, conversion/base.py, _create_vocab_sentencepiece, with the library's own readings.
    assert keys[MODEL].value == "llama"
    tokens, scores, types = (keys[key].value for key in (TOKENS, SCORES, TYPES))
    assert list(tokens[:count]) == [processor.id_to_piece(i) for i in range(count)]
    assert list(scores[:count]) == [processor.get_score(i) for i in range(count)]
    assert list(types[:3]) == [2, 3, 3]
    assert all((types[i] == 6) == processor.is_byte(i) for i in range(count))
    rest = list(zip(tokens, scores, types, strict=True))[count:]
    assert rest == [
        ("<tool>", -1000.0, 4),
        ("<|end|>", -1000.0, 3),
        ("[PAD902]", -10000.0, 5),
        ("[PAD903]", -10000.0, 5),
    ]


def test_the_files_give_the_keys_again(made: tuple[Path, Any, bool], tmp_path: Path) -> None:
    keys = vocabulary_keys(made[0], CONFIG, "llama")
    again = vocabulary_keys(saved(tmp_path / "again", tokenizer_files(keys)), CONFIG, "llama")
    assert again == keys


def test_scores_come_from_merges_where_only_tokenizer_json_is_left(
    made: tuple[Path, Any, bool], tmp_path: Path
) -> None:
    keys = vocabulary_keys(made[0], CONFIG, "llama")
    folder = saved(tmp_path / "alone", tokenizer_files(keys))
    (folder / "tokenizer.model").unlink()
    alone = vocabulary_keys(folder, CONFIG, "llama")
    assert alone[TOKENS] == keys[TOKENS]
    with (
        llama_tokenizer(write_vocabulary(tmp_path / "a.gguf", keys)) as one,
        llama_tokenizer(write_vocabulary(tmp_path / "b.gguf", alone)) as other,
    ):
        for text in (TEXT, MARKED):
            assert other.ids(text, add_special=True) == one.ids(text, add_special=True)


def test_merges_that_no_scores_give_are_refused(made: tuple[Path, Any, bool], tmp_path: Path) -> None:
    files = tokenizer_files(vocabulary_keys(made[0], CONFIG, "llama"))
    document = json.loads(files["tokenizer.json"])
    # One of a token's ways is taken away: llama.cpp would still go it.
    document["model"]["merges"].pop(next(i for i, pair in enumerate(document["model"]["merges"]) if len(pair[0]) > 1))
    folder = saved(tmp_path / "odd", {"tokenizer.json": json.dumps(document).encode()})
    with pytest.raises(RefusedError, match="another way"):
        vocabulary_keys(folder, CONFIG, "llama")


def test_gemma_never_starts_with_a_space(made: tuple[Path, Any, bool]) -> None:
    for architecture in ("gemma", "gemma2", "gemma3"):
        keys = vocabulary_keys(made[0], CONFIG, architecture)
        assert keys[ADD_SPACE].value is False
        # conversion/gemma.py writes the end of a turn for the first alone.
        assert ("tokenizer.ggml.eot_token_id" in keys) == (architecture == "gemma")


def test_unigram_models_are_refused(tmp_path: Path) -> None:
    sentence_pieces(tmp_path, size=600, model_type="unigram")
    with pytest.raises(RefusedError) as caught:
        vocabulary_keys(tmp_path, {}, "llama")
    assert caught.value.code == "unknown-tokenizer"


def test_a_model_is_read_and_written_as_the_library_does(made: tuple[Path, Any, bool]) -> None:
    folder, processor, prefixed = made
    model = read_model((folder / "tokenizer.model").read_bytes(), "tokenizer.model")
    assert (model.unigram, model.prefixed) == (False, prefixed)
    written = write_model(model, roles=(0, 1, 2, None))
    again = sentencepiece.SentencePieceProcessor(model_proto=written)
    assert (again.unk_id(), again.bos_id(), again.eos_id(), again.pad_id()) == (0, 1, 2, -1)
    assert [again.id_to_piece(i) for i in range(again.get_piece_size())] == [piece.text for piece in model.pieces]
    assert [piece.type == TokenType.CONTROL for piece in model.pieces] == [
        processor.is_control(i) for i in range(processor.get_piece_size())
    ]


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x0a\x03\x0a\x01", b"\xff" * 40, b"\x0a\x02\x18\x09", b"\x0b"])
def test_broken_models_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        vocabulary_keys(tmp_path, {}, "llama")
    assert (caught.value.code, caught.value.file) == ("broken-tokenizer", "tokenizer.model")
