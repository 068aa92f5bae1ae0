"""What the KV cache of a model takes at a length, by its architecture.

Per layer and token: two vectors a KV head (grouped or multi-query attention), or one compressed vector
and the rotated part of the key (latent attention, DeepSeek-V2 section 2.1.2). A layer with a window
keeps no more tokens than its window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from ctxextend.families import Family
from ctxextend.formats.hf_layers import whole_number
from ctxextend.formats.hf_read import head_dim_of


class KvCache(Struct, frozen=True, kw_only=True):
    """Numbers a token that one layer keeps, and the windows. ``layers`` holds (count, window in tokens)."""

    numbers_per_token: int
    layers: tuple[tuple[int, int | None], ...]

    @property
    def bytes_per_token(self) -> int:
        """Of the whole model, at 16 bits, windows ignored."""
        return self.numbers_per_token * 2 * sum(count for count, _window in self.layers)

    def size_bytes(self, context: int, *, bits: int = 16) -> int:
        """Of one sequence of ``context`` tokens, windows applied."""
        tokens = sum(count * (context if window is None else min(context, window)) for count, window in self.layers)
        return tokens * self.numbers_per_token * bits // 8

    def longest(self, memory_bytes: int) -> int:
        """The longest context whose cache fits, at 16 bits; 0 when not one token does."""
        low, high = 0, 1
        while self.size_bytes(high) <= memory_bytes and high < 1 << 40:
            low, high = high, high * 2
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self.size_bytes(middle) <= memory_bytes else (low, middle)
        return low


def kv_cache(
    text: Mapping[str, Any], family: Family, *, groups: Iterable[tuple[tuple[int, ...], int | None]]
) -> KvCache | None:
    """The cache of a model whose layers are ``groups`` of (indices, window); None where a number is missing."""
    layers = tuple((len(indices), window) for indices, window in groups)
    if family.kv_cache == "latent":
        rank = whole_number(text, "kv_lora_rank")
        rotated = whole_number(text, "qk_rope_head_dim") or family.head_dim
        if rank is None or rotated is None:
            return None
        return KvCache(numbers_per_token=rank + rotated, layers=layers)
    heads = _kv_heads(text, family)
    if heads is None:
        return None
    return KvCache(numbers_per_token=2 * heads * head_dim_of(text, family), layers=layers)


def _kv_heads(text: Mapping[str, Any], family: Family) -> int | None:
    queries = whole_number(text, "num_attention_heads") or family.num_attention_heads
    stated = next((whole_number(text, key) for key in family.kv_heads_keys if text.get(key)), None)
    if family.kv_cache == "falcon":
        if text.get("new_decoder_architecture") is True:
            return stated or queries
        return 1 if text.get("multi_query", True) is True else queries
    return stated or family.num_key_value_heads or queries
