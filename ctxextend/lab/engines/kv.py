"""A KV cache that doesn't copy itself at every chunk, and attention that reads it without repeating it.

transformers' own cache joins old and new keys anew at every forward: twice the cache at the peak, and a
copy of all of it a chunk. Here a layer of full attention owns its room from the start and hands out views;
layers of any other kind (sliding, recurrent, shared) stay as transformers makes them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

#: The name under which attention that repeats nothing is known to transformers.
LEAN: Final = "ctxextend_lean"


def preset_cache(config: Any, *, longest: int | None = None) -> Any:
    """An empty cache for a model's ``config``; full attention has room for ``longest`` tokens at once.

    Without ``longest``, and past it, room doubles when it is needed.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    made = DynamicCache(config=config)
    made.layers = [_preset_layer()(longest or 0) if type(layer) is DynamicLayer else layer for layer in made.layers]
    return made


@cache
def _preset_layer() -> Any:
    """The class of a layer with room; made at the first call, when torch is there."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class PresetLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values of shape (batch, heads, tokens, head_dim): views of a larger store."""

        def __init__(self, room: int) -> None:
            super().__init__()
            self.wanted = room
            self.stores: tuple[torch.Tensor, torch.Tensor] | None = None

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            if self.stores is None or end > self.stores[0].shape[-2]:
                self._grow(key_states, value_states, end)
            assert self.stores is not None
            for store, states in zip(self.stores, (key_states, value_states), strict=True):
                store[..., start:end, :] = states
            self.keys, self.values = (store[..., :end, :] for store in self.stores)
            return self.keys, self.values

        def _grow(self, key_states: Any, value_states: Any, end: int) -> None:
            old = 0 if self.stores is None else self.stores[0].shape[-2]
            room = max(end, self.wanted, 2 * old)
            held = (self.keys, self.values)
            grown = []
            for states, kept in zip((key_states, value_states), held, strict=True):
                store = states.new_empty((*states.shape[:-2], room, states.shape[-1]))
                if old:
                    store[..., : kept.shape[-2], :] = kept
                grown.append(store)
            self.stores = (grown[0], grown[1])

        def reset(self) -> None:
            super().reset()
            self.stores = None

    return PresetLayer


def crop(kept: Any, tokens: int, *, read: int) -> bool:
    """Cut a cache that holds ``read`` tokens to its first ``tokens``; False where a layer can't go back.

    A window that has moved has dropped what it would need, and a recurrent state can't be undone.
    """
    if read == tokens:
        return True
    for layer in kept.layers:
        moved = getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window
        if moved or not getattr(layer, "is_croppable", False):
            return False
    for layer in kept.layers:
        layer.crop(tokens - read)
    return True


def size_bytes(kept: Any) -> int:
    """What a cache's keys and values take, the room not yet used included."""
    found = 0
    for layer in kept.layers:
        tensors = getattr(layer, "stores", None) or (getattr(layer, "keys", None), getattr(layer, "values", None))
        found += sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
    return found


def use_lean_attention(model: Any) -> bool:
    """Let a model that attends with torch's scaled dot product do it without repeated keys, on a card without a mask.

    As soon as a chunk follows what is cached, the stock function makes a mask of (chunk, tokens) and repeats keys
    and values for every head of a group, which at 128k costs more than the cache itself; and on the CPU the kernel
    makes numbers of the mask in every layer anew. False, and nothing changed, where the model attends another way or
    has layers that read the mask themselves.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=model.config).layers
    plain = bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if not plain or model.config.get_text_config(decoder=True)._attn_implementation != "sdpa":  # noqa: SLF001
        return False
    _register()
    model.set_attn_implementation(LEAN)
    return True


@cache
def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(LEAN, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(LEAN, _mask)


def _mask(*, q_length: int, kv_length: int, q_offset: int, kv_offset: int, **settings: Any) -> Any:
    """No mask where every query sees all that stands before it; elsewhere the stock one, on the CPU as numbers."""
    import torch
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    on_cpu = _is_cpu(settings.get("device", "cpu"))
    causal = settings.get("mask_function") is causal_mask_function and settings.get("attention_mask") is None
    whole = kv_offset == 0 and kv_length == q_offset + q_length and settings.get("local_size") is None
    if causal and whole and settings.get("allow_is_causal_skip", True):
        return None
    mask = sdpa_mask(q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset, **settings)
    if mask is None or not on_cpu:
        return mask
    return torch.zeros(mask.shape, dtype=settings.get("dtype")).masked_fill_(~mask, float("-inf"))


def _is_cpu(device: Any) -> bool:
    import torch

    return torch.device(device).type == "cpu"


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **settings: Any
) -> tuple[Any, None]:
    """Attention of shape (batch, tokens, heads, head_dim); query, key, value are (batch, heads, tokens, head_dim).

    Without a mask every query sees all that stands before it, the last one everything.
    """
    from torch.nn.attention import bias
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asked, seen = query.shape[2], key.shape[2]
    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = attention_mask
    extra = any(settings.get(name) is not None for name in ("position_bias", "softcap", "s_aux"))
    even = query.shape[-1] == value.shape[-1]
    if (
        mask is None
        and causal
        and not extra
        and asked not in (1, seen)
        and _is_cpu(query.device)
        and even
        and _kernel()
    ):
        return _in_two(query, key, value, scaling).transpose(1, 2).contiguous(), None
    if mask is None and causal and asked not in (1, seen):
        mask = bias.causal_lower_right(asked, seen)
    ours = isinstance(mask, bias.CausalBias)
    if mask is None or extra or not (ours or query.device.type == "cpu"):
        mask = mask._materialize(query.device)[None, None] if ours else mask  # noqa: SLF001
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **settings)  # type: ignore[no-any-return]
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2).contiguous(), None


@cache
def _kernel() -> Any:
    """The CPU's kernel with the logarithms of its sums, which torch's public function keeps; None where it isn't."""
    import torch

    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def _in_two(query: Any, key: Any, value: Any, scaling: float | None) -> Any:
    """Causal attention on the CPU of queries that follow what is cached; shapes as in the kernel.

    Over what is cached nothing is masked, so that the heads of a group are read as more queries of one head; over the
    chunk itself the kernel skips what is masked. The two are weighed by their sums, as the kernel weighs its own blocks
    (Dao et al. 2022, arXiv 2205.14135, section 3.1). A mask would be added in every layer, and for keys and values
    repeated for each head.
    """
    import torch

    batch, heads, asked, width = query.shape
    groups, cached = key.shape[1], key.shape[2] - asked
    own = [states[:, :, cached:].repeat_interleave(heads // groups, dim=1) for states in (key, value)]
    inside, inside_sums = _kernel()(query, *own, 0.0, True, scale=scaling)
    folded = query.reshape(batch, groups, heads // groups * asked, width)
    before, before_sums = _kernel()(folded, key[:, :, :cached], value[:, :, :cached], 0.0, False, scale=scaling)
    share = torch.sigmoid(before_sums.reshape(batch, heads, asked) - inside_sums)
    return torch.lerp(inside, before.reshape(inside.shape), share[..., None].to(inside.dtype))
