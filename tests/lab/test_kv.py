"""The cache with room of its own, and attention without a mask, against transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.nn.attention import bias
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.lab.engines import kv

TINY: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
WINDOWED: Mapping[str, Any] = {**TINY, "sliding_window": 50, "num_hidden_layers": 6}

RECURRENT: Mapping[str, Any] = {
    **TINY,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


def model(model_type: str, stated: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type].from_dict({"model_type": model_type, **stated})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tokens(count: int = 200) -> torch.Tensor:
    return torch.randint(1, 128, (1, count), generator=torch.Generator().manual_seed(1))


def chunked(made: Any, ids: torch.Tensor, cache: Any, *, chunk: int = 48) -> torch.Tensor:
    """Logits of every position, read ``chunk`` tokens at a time."""
    with torch.inference_mode():
        pieces = [ids[:, start : start + chunk] for start in range(0, ids.shape[1], chunk)]
        return torch.cat([made(input_ids=piece, past_key_values=cache).logits[0] for piece in pieces])


def states(count: int) -> torch.Tensor:
    return torch.randn(1, 2, count, 16)


@pytest.mark.parametrize(
    ("model_type", "stated"), [("llama", TINY), ("gemma3_text", WINDOWED), ("qwen3_next", RECURRENT)]
)
@pytest.mark.parametrize("longest", [None, 120, 512])
def test_the_cache_holds_what_transformers_own_does(
    model_type: str, stated: Mapping[str, Any], longest: int | None
) -> None:
    made, ids = model(model_type, stated), tokens()
    cache = kv.preset_cache(made.config, longest=longest)
    stock = DynamicCache(config=made.config)
    expected = chunked(made, ids, stock)
    assert torch.equal(chunked(made, ids, cache), expected)
    for ours, theirs in zip(cache.layers, stock.layers, strict=True):
        if getattr(theirs, "keys", None) is not None:
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)
        assert type(ours) is type(theirs) or type(theirs).__name__ == "DynamicLayer"


def test_room_is_taken_once_and_never_moved() -> None:
    (layer, *_) = kv.preset_cache(model("llama", TINY).config, longest=100).layers
    keys, values = layer.update(states(40), states(40))
    where = keys.data_ptr(), values.data_ptr()
    assert keys.shape == (1, 2, 40, 16)
    for _ in range(3):
        keys, values = layer.update(states(20), states(20))
        assert (keys.data_ptr(), values.data_ptr()) == where
    assert layer.get_seq_length() == 100
    assert layer.stores[0].shape[-2] == 100


def test_without_a_length_room_doubles_and_keeps_what_it_held() -> None:
    (layer, *_) = kv.preset_cache(model("llama", TINY).config).layers
    first = states(40)
    layer.update(first, first)
    assert layer.stores[0].shape[-2] == 40
    second = states(1)
    keys, values = layer.update(second, -second)
    assert layer.stores[0].shape[-2] == 80
    assert torch.equal(keys, torch.cat((first, second), dim=-2))
    assert torch.equal(values, torch.cat((first, -second), dim=-2))


def test_a_cut_forgets_and_keeps_its_room() -> None:
    cache = kv.preset_cache(model("llama", TINY).config, longest=64)
    first, second = states(40), states(5)
    for layer in cache.layers:
        layer.update(first, first)
    assert kv.crop(cache, 10, read=40)
    assert cache.get_seq_length() == 10
    keys, _values = cache.layers[0].update(second, second)
    assert torch.equal(keys, torch.cat((first[:, :, :10], second), dim=-2))
    assert kv.crop(cache, 0, read=15)
    assert cache.get_seq_length() == 0
    # 4 layers, keys and values, 2 heads of 16, four bytes; room for 64 in those that were used.
    assert kv.size_bytes(cache) == 4 * 2 * 2 * 16 * 4 * 64
    cache.reset()
    assert kv.size_bytes(cache) == 0


def test_a_window_that_has_moved_cant_go_back() -> None:
    made = model("gemma3_text", WINDOWED)
    for count, can in ((40, True), (60, False)):
        cache = kv.preset_cache(made.config)
        chunked(made, tokens(count), cache)
        assert kv.crop(cache, 30, read=count) is can
        assert cache.get_seq_length() == (30 if can else count)
    assert kv.crop(cache, 60, read=60)


def test_a_recurrent_state_cant_go_back() -> None:
    made = model("qwen3_next", RECURRENT)
    cache = kv.preset_cache(made.config)
    chunked(made, tokens(40), cache)
    assert not kv.crop(cache, 30, read=40)


@pytest.mark.parametrize(
    ("model_type", "stated"),
    [
        ("llama", TINY),
        ("gemma3_text", WINDOWED),
        ("mistral", {**TINY, "sliding_window": 50}),
        ("llama4_text", {**TINY, "num_local_experts": 2, "attention_chunk_size": 64, "intermediate_size_mlp": 96}),
        ("gpt_neox", TINY),
    ],
)
def test_without_a_mask_logits_are_those_with_one(
    model_type: str, stated: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ids = model(model_type, stated), tokens()
    expected = chunked(made, ids, kv.preset_cache(made.config))
    assert kv.use_lean_attention(made)
    made_without: list[tuple[int, int]] = []
    lower_right = bias.causal_lower_right

    def counted(asked: int, seen: int) -> Any:
        made_without.append((asked, seen))
        return lower_right(asked, seen)

    monkeypatch.setattr(bias, "causal_lower_right", counted)
    on_cpu = chunked(made, ids, kv.preset_cache(made.config))
    assert not made_without
    torch.testing.assert_close(on_cpu, expected, atol=2e-6, rtol=1e-5)
    # What a card does, which makes no mask.
    monkeypatch.setattr(kv, "_is_cpu", lambda _device: False)
    found = chunked(made, ids, kv.preset_cache(made.config))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    # Whole chunks at the end and decoding alike.
    torch.testing.assert_close(chunked(made, ids[:, :60], kv.preset_cache(made.config), chunk=1), expected[:60])
    full = [layer for layer in kv.preset_cache(made.config).layers if type(layer).__name__ == "PresetLayer"]
    # Four chunks of 48 and 8 follow the first, in every layer of full attention.
    assert [seen for _asked, seen in made_without] == [end for end in (96, 144, 192, 200) for _ in full]


@pytest.mark.parametrize("settings", [{"position_bias": torch.zeros(1, 4, 8, 24)}, {"is_causal": False}])
def test_what_isnt_plain_causal_attention_goes_to_the_stock_function(settings: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 8, 16), torch.randn(1, 4, 24, 16), torch.randn(1, 4, 24, 16)
    scores = query @ key.transpose(-1, -2) / 4
    if settings.get("is_causal", True):
        scores = scores.masked_fill(~torch.ones(8, 24).tril(16).bool(), float("-inf"))
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    found, _ = kv._attend(torch.nn.Module(), query, key, value, None, **settings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_models_that_attend_another_way_are_left_alone() -> None:
    made = model("gemma3_text", WINDOWED)
    made.set_attn_implementation("eager")
    assert not kv.use_lean_attention(made)
    assert made.config._attn_implementation == "eager"
    recurrent = model("qwen3_next", RECURRENT)
    assert not kv.use_lean_attention(recurrent)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_a_long_chunk_needs_no_mask() -> None:
    stated = {**TINY, "hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "vocab_size": 512}
    made = model("llama", stated).to("cuda", torch.bfloat16)
    assert kv.use_lean_attention(made)
    ids = torch.randint(1, 128, (1, 32768), device="cuda")
    cache = kv.preset_cache(made.config, longest=32768)
    with torch.inference_mode():
        made(input_ids=ids[:, :30720], past_key_values=cache, logits_to_keep=1)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made(input_ids=ids[:, 30720:], past_key_values=cache, logits_to_keep=1)
    # A mask would be 2048 x 32768 bytes, repeated keys and values 64 MiB.
    assert torch.cuda.max_memory_allocated() - before < 48 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_sees_what_is_cached_and_itself(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped heads, against scores that are masked and summed plainly, in float64."""
    torch.manual_seed(0)
    asked, seen = 330, 900
    query, key, value = (
        torch.randn(1, heads, tokens, 16, dtype=dtype) for heads, tokens in ((4, asked), (2, seen), (2, seen))
    )
    repeated = [part.repeat_interleave(2, dim=1).double() for part in (key, value)]
    scores = (query.double() @ repeated[0].transpose(-1, -2) * 0.3).masked_fill(
        ~torch.ones(asked, seen).tril(seen - asked).bool(), float("-inf")
    )
    wanted = (scores.softmax(-1) @ repeated[1]).transpose(1, 2)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    found, _ = kv._attend(torch.nn.Module(), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(found.double(), wanted, atol=bound, rtol=bound)
    # A build of torch that hasn't got the kernel.
    monkeypatch.setattr(kv, "_kernel", lambda: None)
    without, _ = kv._attend(torch.nn.Module(), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(without.double(), wanted, atol=bound, rtol=bound)
