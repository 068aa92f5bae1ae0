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
from ctxextend.formats.hf_labels import label_head_dim, label_kv_heads
from ctxextend.formats.hf_layers import STATELESS, whole_number
from ctxextend.formats.hf_read import head_dim_of


class KvCache(Struct, frozen=True, kw_only=True):
    """``layers`` holds (count, window in tokens, numbers a token that one of them keeps)."""

    layers: tuple[tuple[int, int | None, int], ...]

    @property
    def bytes_per_token(self) -> int:
        """Of the whole model, at 16 bits, windows ignored."""
        return 2 * sum(count * numbers for count, _window, numbers in self.layers)

    def size_bytes(self, context: int, *, bits: int = 16) -> int:
        """Of one sequence of ``context`` tokens, windows applied."""
        kept = (
            count * numbers * (context if window is None else min(context, window))
            for count, window, numbers in self.layers
        )
        return sum(kept) * bits // 8

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
    text: Mapping[str, Any], family: Family, *, groups: Iterable[tuple[str, tuple[int, ...], int | None]]
) -> KvCache | None:
    """The cache of a model whose layers are ``groups`` of (label, indices, window); None where a number is missing."""
    if family.kv_cache == "unstated":
        return None
    groups = [(label, indices, window) for label, indices, window in groups if label not in STATELESS]
    own = max((index + 1 for _label, indices, _window in groups for index in indices), default=0)
    own -= _or(whole_number(text, family.kv_shared_key), family.kv_shared)
    layers = []
    for label, indices, window in groups:
        numbers = _numbers(text, family, label)
        if numbers is None:
            return None
        layers.append((sum(index < own for index in indices), window, numbers))
    return KvCache(layers=tuple(layers))


def _numbers(text: Mapping[str, Any], family: Family, label: str) -> int | None:
    """What a layer keeps of one token."""
    if family.kv_cache == "latent":
        rank = whole_number(text, "kv_lora_rank")
        rotated = whole_number(text, "qk_rope_head_dim") or family.head_dim
        if rank is None or rotated is None:
            return None
        index = 0 if family.kv_index is None else _or(whole_number(text, family.kv_index[0]), family.kv_index[1])
        return rank + rotated + index
    heads = label_kv_heads(text, family, label) or _kv_heads(text, family)
    if heads is None:
        return None
    return 2 * heads * (label_head_dim(text, family, label) or head_dim_of(text, family))


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _kv_heads(text: Mapping[str, Any], family: Family) -> int | None:
    queries = whole_number(text, "num_attention_heads") or family.num_attention_heads
    stated = next((whole_number(text, key) for key in family.kv_heads_keys if text.get(key)), None)
    if family.kv_cache == "falcon":
        if text.get("new_decoder_architecture") is True:
            return stated or queries
        return 1 if text.get("multi_query", True) is True else queries
    return stated or family.num_key_value_heads or queries
