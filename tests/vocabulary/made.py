"""Tiny tokenizers for tests, trained on a text of the repository and on the one that is compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.vocabulary.llama_vocabulary import TEXT

HELD_OUT = Path(__file__).resolve().parents[2] / "demo" / "heldout.txt"
CONTROL = ("<|begin|>", "<|end|>")
#: A text with control tokens in it and none that a user may have defined.
SPECIAL_TEXT = f"{CONTROL[0]}system\n{TEXT}{CONTROL[1]}\n {CONTROL[0]}  user{CONTROL[1]}"


@cache
def corpus() -> tuple[str, ...]:
    return (*HELD_OUT.read_text(encoding="utf-8")[:40_000].split("\n\n"), TEXT, TEXT)


def byte_pairs(
    folder: Path,
    cut: Mapping[str, Any],
    *,
    ignore_merges: bool = False,
    size: int = 700,
    settings: Mapping[str, Any] | None = None,
    post_processor: Mapping[str, Any] | None = None,
    **more: Any,
) -> Tokenizer:
    """A byte-level BPE tokenizer in ``folder``; ``more`` replaces parts of its tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    document = json.loads(tokenizer.to_str()) | {"pre_tokenizer": cut}
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens(["<tool>"])
    document = json.loads(tokenizer.to_str()) | {"post_processor": post_processor} | more
    document["model"]["ignore_merges"] = ignore_merges
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    said = {"bos_token": CONTROL[0], "eos_token": CONTROL[1], **(settings or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def around(first: str | None, last: str | None, *, pair: bool = False) -> dict[str, Any]:
    """A post-processor that puts these around a text; ``pair``: the first also between two."""
    ids = {CONTROL[0]: 0, CONTROL[1]: 1}
    before, after = first or "", last or ""
    template = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(),
        pair=f"{before} $A {before if pair else ''} $B:1 {after}".replace("  ", " ").strip(),
        special_tokens=[(token, ids[token]) for token in {before, after} - {""}],
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.post_processor = template
    found: dict[str, Any] = json.loads(tokenizer.to_str())["post_processor"]
    return found


def sentence_pieces(folder: Path, *, size: int = 900, model_type: str = "bpe", prefix: bool = True) -> Any:
    """A model of the sentencepiece library itself in ``folder`` (tokenizer.model)."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus() for line in text.splitlines() if line]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        model_type=model_type,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
