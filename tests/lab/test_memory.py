"""What reading a text needs, against hand calculations and what the engine really takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctxextend import open_source
from ctxextend.errors import RefusedError
from ctxextend.inspection import Inspection, inspect
from ctxextend.lab.memory import Need, Widths, available, chunk_tokens, estimate, host_available, longest, require
from tests.factories import inspected

DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"

#: Llama 3.1 8B: 32 layers of 8 key heads of 128.
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}


def demo() -> Inspection:
    return inspect(open_source(str(DEMO)).contents)


def test_weights_and_cache_are_exact() -> None:
    need = estimate(demo(), length=1024, dtype_bytes=4)
    # 1.05 million parameters, four bytes each; 4 layers, keys and values, 2 heads of 32, four bytes, 1024 tokens.
    assert need.weights == 1049728 * 4
    assert need.kv_cache == 4 * 2 * 2 * 32 * 4 * 1024
    assert need.total == need.weights + need.kv_cache + need.activations + need.libraries
    assert estimate(demo(), length=1024).weights == 1049728 * 2


def test_the_engine_takes_the_cache_that_was_estimated() -> None:
    from ctxextend.lab.engines.transformers import load

    engine = load(DEMO, longest=512)
    engine.losses(list(range(2, 100)))
    assert engine.cache_bytes == estimate(demo(), length=512, dtype_bytes=4).kv_cache
    assert engine.facts.weight_bytes == estimate(demo(), length=512, dtype_bytes=4).weights


def test_an_8b_model_at_128k_on_a_card_keeps_within_what_was_asked() -> None:
    need = estimate(inspected(LLAMA_8B), length=131072, dtype_bytes=2, masked=False)
    assert need.kv_cache == 16 << 30
    assert need.activations <= 1.5e9
    masked = estimate(inspected(LLAMA_8B), length=131072, dtype_bytes=2)
    # 256 MiB hold 128 tokens of 128256 logits, twelve bytes each; their masks are five bytes by 131072.
    assert masked.activations - need.activations == 128 * 5 * 131072


def test_latent_attention_expands_a_layer_of_its_cache() -> None:
    latent = {
        **LLAMA_8B,
        "model_type": "deepseek_v3",
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    need, twice = (estimate(inspected(latent), length=length, dtype_bytes=2, masked=False) for length in (4096, 8192))
    # 32 heads of 128 + 64 and 128, two bytes each.
    assert twice.activations - need.activations == 32 * (128 + 64 + 128) * 2 * 4096


def test_logits_and_masks_of_a_chunk_stay_in_the_budget() -> None:
    widths = Widths(feed_forward=1536, vocabulary=49152, expanded=0, row_bytes=5)
    # 256 MiB / (12 x 49152) = 455 tokens with logits; a mask of 8192 x 5 bytes allows more than the most.
    assert chunk_tokens(8192, widths, answers=True) == 448
    assert chunk_tokens(8192, widths, answers=False) == 2048
    # 256 MiB / (5 x 131072) = 409.
    assert chunk_tokens(131072, widths, answers=False) == 384
    assert chunk_tokens(1 << 30, widths, answers=False) == 64


def test_what_doesnt_fit_is_refused_with_the_longest_that_does() -> None:
    inspection = inspected(LLAMA_8B)
    memory = 12 << 30
    with pytest.raises(RefusedError) as error:
        require(inspection, length=131072, memory=memory, dtype_bytes=2, masked=False)
    assert error.value.code == "not-enough-memory"
    assert "16.0 GiB KV cache" in (error.value.expected or "")
    assert error.value.found == "12.0 GiB free"
    fitting = longest(inspection, memory, dtype_bytes=2, masked=False)
    assert f"--length {fitting} " in (error.value.hint or "")
    # 128 KiB of cache a token, some GB beside it.
    assert 60_000 < fitting < 98_304
    assert fitting % 1024 == 0
    assert require(inspection, length=fitting, memory=memory, dtype_bytes=2, masked=False).total <= memory
    with pytest.raises(RefusedError):
        require(inspection, length=fitting + 1024, memory=memory, dtype_bytes=2, masked=False)


def test_weights_that_dont_fit_leave_no_length() -> None:
    with pytest.raises(RefusedError) as error:
        require(demo(), length=256, memory=1 << 20, dtype_bytes=4)
    assert "weights alone" in (error.value.hint or "")


def test_nothing_is_refused_where_nobody_knows_what_is_free() -> None:
    assert isinstance(require(demo(), length=1 << 20, memory=None), Need)
    assert available("mps") is None


def proc(root: Path, kibibytes: int) -> None:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {kibibytes} kB\n")


def test_the_host_has_what_linux_says(tmp_path: Path) -> None:
    assert host_available(tmp_path) is None
    proc(tmp_path, 4096)
    assert host_available(tmp_path) == 4 << 20


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    proc(tmp_path, 4096)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    (group / "memory.max").write_text("max\n")
    assert host_available(tmp_path) == 4 << 20
    (group / "memory.max").write_text("4000000\n")
    assert host_available(tmp_path) == 1500000
    old = group / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("900000\n")
    (old / "memory.usage_in_bytes").write_text("800000\n")
    assert host_available(tmp_path) == 100000


def test_this_host_has_some() -> None:
    free = available("cpu")
    assert free is None or free > 0
