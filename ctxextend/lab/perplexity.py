"""Perplexity by position: how well a model predicts text, the deeper into its context it gets.

The one question of a longer context that needs no task: does the loss at position 20000 stay what it
is at position 2000? Loads a checkpoint as its users do, in float32, and reads a text in chunks through
the KV cache, so that memory grows with the length and not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct

from ctxextend.errors import MissingExtraError, UsageError

#: Tokens read at once: large enough to keep the matrix products busy, small enough for their logits.
CHUNK_TOKENS = 1024


class Window(Struct, frozen=True, kw_only=True):
    """The perplexity of the predictions made at positions ``start`` to ``end`` (tokens, end excluded)."""

    start: int
    end: int
    perplexity: float


def load_model(folder: Path) -> Any:
    """The checkpoint as a causal language model in float32 on the CPU. Raises :class:`MissingExtraError`."""
    _require("torch", "transformers")
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def read_tokens(folder: Path, text: str) -> list[int]:
    """The text in the checkpoint's own tokens, without special ones. Raises :class:`MissingExtraError`."""
    _require("tokenizers")
    from tokenizers import Tokenizer

    encoded: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return encoded


def losses(model: Any, tokens: Sequence[int], *, chunk: int = CHUNK_TOKENS) -> list[float]:
    """The loss (nats) of each next-token prediction, made at positions 0 to ``len(tokens) - 2``."""
    import torch
    from torch.nn.functional import cross_entropy

    found: list[float] = []
    cache = None
    ids = torch.tensor([list(tokens)])
    with torch.inference_mode():
        for start in range(0, ids.shape[1] - 1, chunk):
            end = min(start + chunk, ids.shape[1] - 1)
            output = model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            loss = cross_entropy(output.logits[0].float(), ids[0, start + 1 : end + 1], reduction="none")
            found += loss.tolist()
    return found


def perplexity_by_position(
    model: Any, tokens: Sequence[int], *, bounds: Sequence[int], limit: int | None = None
) -> tuple[Window, ...]:
    """Perplexity between each two of ``bounds`` (positions), over the text cut into windows of the last bound.

    ``limit``: at most this many windows. Raises :class:`UsageError` when the text doesn't fill one.
    """
    length = bounds[-1]
    count = len(tokens) // length
    if count == 0:
        raise UsageError(
            "the text is too short", code="short-text", expected=f"{length} tokens", found=f"{len(tokens)}"
        )
    rows = [
        losses(model, tokens[start : start + length]) for start in range(0, count * length, length)[: limit or count]
    ]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return tuple(
        Window(start=low, end=high, perplexity=math.exp(_mean(means[low:high]))) for low, high in pairwise(bounds)
    )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _require(*modules: str) -> None:
    import importlib.util

    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "lab")
