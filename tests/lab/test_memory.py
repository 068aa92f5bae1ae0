"""What reading a text needs, against hand calculations and what the engine really takes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ctxextend import Recipe, open_source, plan_source, run_plan
from ctxextend.errors import RefusedError, UsageError
from ctxextend.inspection import Inspection, inspect
from ctxextend.lab.engines import Choice, need_of, open_engine, whole_of
from ctxextend.lab.memory import (
    EAGER,
    Need,
    Setup,
    Widths,
    attention_of,
    available,
    chunk_tokens,
    estimate,
    host_available,
    longest,
    require,
    whole_tokens,
)
from ctxextend.pipeline import inspect_source
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


#: Llama 3.1 8B's as it lies on a card.
CARD = Setup(weight_bytes=2, on_cpu=False)
FLOAT32 = Setup(weight_bytes=4)


def demo() -> Inspection:
    return inspect(open_source(str(DEMO)).contents)


def test_weights_and_cache_are_exact() -> None:
    need = estimate(demo(), length=1024, setup=FLOAT32)
    # 1.05 million parameters, four bytes each; 4 layers, keys and values, 2 heads of 32, four bytes, 1024 tokens.
    assert need.weights == 1049728 * 4
    assert need.kv_cache == 4 * 2 * 2 * 32 * 4 * 1024
    assert need.total == need.weights + need.kv_cache + need.activations + need.libraries
    assert estimate(demo(), length=1024).weights == 1049728 * 2


def test_the_engine_takes_the_cache_that_was_estimated() -> None:
    from ctxextend.lab.engines.transformers import load

    engine = load(DEMO, longest=512)
    engine.losses(list(range(2, 100)))
    assert engine.cache_bytes == estimate(demo(), length=512, setup=FLOAT32).kv_cache
    assert engine.facts.weight_bytes == estimate(demo(), length=512, setup=FLOAT32).weights


def test_an_8b_model_at_128k_on_a_card_keeps_within_what_was_asked() -> None:
    need = estimate(inspected(LLAMA_8B), length=131072, setup=CARD)
    assert need.kv_cache == 16 << 30
    assert need.activations <= 1.5e9
    there = estimate(inspected(LLAMA_8B), length=131072, setup=Setup(weight_bytes=2))
    # 256 MiB hold 128 tokens of 128256 logits, twelve bytes each, and the CPU's 512 MiB hold 320; no masks are made.
    each = 12 * (14336 + 128256)
    assert (need.activations, there.activations) == (128 * each, 320 * each)


def test_latent_attention_expands_a_layer_of_its_cache() -> None:
    latent = {
        **LLAMA_8B,
        "model_type": "deepseek_v3",
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    need, twice = (estimate(inspected(latent), length=length, setup=CARD) for length in (4096, 8192))
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
        require(inspection, length=131072, memory=memory, setup=CARD)
    assert error.value.code == "not-enough-memory"
    assert "16.0 GiB KV cache" in (error.value.expected or "")
    assert error.value.found == "12.0 GiB free"
    fitting = longest(inspection, memory, setup=CARD)
    assert error.value.hint == f"{fitting} tokens is the longest that fits"
    # 128 KiB of cache a token, some GB beside it.
    assert 60_000 < fitting < 98_304
    assert fitting % 1024 == 0
    assert require(inspection, length=fitting, memory=memory, setup=CARD).total <= memory
    with pytest.raises(RefusedError):
        require(inspection, length=fitting + 1024, memory=memory, setup=CARD)


def test_weights_that_dont_fit_leave_no_length() -> None:
    with pytest.raises(RefusedError) as error:
        require(demo(), length=256, memory=1 << 20, setup=FLOAT32)
    assert "weights alone" in (error.value.hint or "")


def test_a_second_cache_counts() -> None:
    one, two = (estimate(demo(), length=1024, setup=Setup(weight_bytes=4, beside=beside)) for beside in (0, 256))
    # 4 layers, keys and values, 2 heads of 32, four bytes.
    assert two.kv_cache - one.kv_cache == two.total - one.total == 4 * 2 * 2 * 32 * 4 * 256
    opened = open_source(str(DEMO))
    choice = Choice(device="cpu")
    needs = [need_of(opened, inspect(opened.contents), choice, length=1024, beside=beside) for beside in (0, 256)]
    assert needs == [one, two]


def test_without_a_fused_kernel_all_scores_count() -> None:
    # GPT-OSS-like: 64 heads, three times four bytes each, for 64 tokens at the least.
    stated = {**LLAMA_8B, "model_type": "gptj", "num_attention_heads": 64, "n_embd": 4096, "rotary_dim": 64}
    eager, fused = (estimate(inspected({**LLAMA_8B, **more}), length=131072, setup=CARD) for more in (stated, {}))
    assert attention_of(inspected(stated)) == "eager"
    # 64 tokens are read at once there and 128 here, each with its logits and activations.
    beside = 12 * (14336 + 128256)
    assert eager.activations - 64 * beside - (fused.activations - 128 * beside) == 64 * 131072 * 64 * 12


def test_the_cpus_kernel_doesnt_take_heads_of_two_widths() -> None:
    latent = {
        **LLAMA_8B,
        "model_type": "deepseek_v3",
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    for width, pair in ((128, 12 * 32), (192, 0)):
        inspection = inspected({**latent, "v_head_dim": width})
        need = estimate(inspection, length=65536)
        room = 4 << 30
        count = whole_tokens(inspection, need.total - need.activations + room, length=65536)
        # 32 heads' scores of twelve bytes, or nothing; what a layer makes of a token and of its cache.
        a_token = 12 * 14336 + 32 * (128 + 64 + width) * 2
        taken = [pair * n * n + a_token * n + 64 * 12 * 128256 for n in (count, count + 1)]
        assert taken[0] <= room < taken[1]


@pytest.mark.full
def test_what_has_no_fused_kernel_is_what_transformers_says() -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    from ctxextend.families import FAMILIES

    known = {name for family in FAMILIES.values() for name in family.model_types}
    found = set()
    names = {**MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for model_type in known & set(names):
        if not _has_fused_kernel(model_type, names[model_type]):
            found.add(model_type)
    assert found == EAGER


def _has_fused_kernel(model_type: str, name: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    module = MODEL_FOR_CAUSAL_LM_MAPPING._load_attr_from_module
    return bool(module(model_type, name)._supports_sdpa)


def test_a_plain_forward_is_as_long_as_fits_beside_the_rest() -> None:
    inspection = inspected(LLAMA_8B)
    need = estimate(inspection, length=131072, setup=Setup(weight_bytes=2))
    beside = need.total - need.activations
    count = whole_tokens(inspection, beside + (4 << 30), length=131072, setup=Setup(weight_bytes=2))
    # No mask is made; twelve times 14336 bytes are made of a token, and of 64 the logits.
    taken = [12 * 14336 * n + 64 * 12 * 128256 for n in (count, count + 1)]
    assert taken[0] <= 4 << 30 < taken[1]
    assert whole_tokens(inspection, beside, length=131072, setup=Setup(weight_bytes=2)) == 0
    assert whole_tokens(inspection, beside + (4 << 30), length=100, setup=Setup(weight_bytes=2)) == 100
    assert whole_tokens(inspection, None, length=131072) == 131072


def test_only_transformers_reads_without_a_cache() -> None:
    opened = open_source(str(DEMO))
    inspection = inspect(opened.contents)
    assert whole_of(opened, inspection, Choice(device="cpu"), length=512) == 512
    assert whole_of(opened, inspection, Choice(endpoint="http://127.0.0.1:1"), length=512) == 0


def test_llama_cpp_in_32_bits_keeps_twice_the_cache_and_all_scores(tmp_path: Path) -> None:
    opened = open_source(str(DEMO))
    plan = plan_source(opened, Recipe(method="yarn", target=1024, to="gguf"))
    run_plan(plan, opened, tmp_path / "demo.gguf")
    opened = open_source(str(tmp_path / "demo.gguf"))
    inspection = inspect_source(opened, Recipe())
    half, exact = (need_of(opened, inspection, Choice(dtype=dtype), length=1024) for dtype in ("auto", "float32"))
    assert half is not None
    assert exact is not None
    assert (half.kv_cache, exact.kv_cache) == (4 * 2 * 2 * 32 * 2 * 1024, 4 * 2 * 2 * 32 * 4 * 1024)
    # The scores of 512 tokens for each of 4 heads, and their mask.
    assert exact.activations - half.activations == 512 * 1024 * 4 * (4 + 1)
    assert exact.weights == half.weights


@pytest.mark.parametrize(
    ("stated", "dtype", "number"),
    [("float32", "auto", 4), ("bfloat16", "auto", 2), ("bfloat16", "float32", 4), (None, "auto", 2)],
)
def test_on_a_card_numbers_are_as_wide_as_the_checkpoints(
    stated: str | None, dtype: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctxextend.lab.engines.usable_device", lambda _name: "cuda")
    monkeypatch.setattr("ctxextend.lab.engines.available", lambda _device: 1 << 40)
    opened = open_source(str(DEMO))
    inspection = inspect(opened.contents)
    config = {key: value for key, value in inspection.config.items() if key not in ("dtype", "torch_dtype")}
    config |= {"dtype": stated} if stated else {}
    changed = msgspec.structs.replace(inspection, config=config)
    need = need_of(opened, changed, Choice(dtype=dtype), length=1024)
    assert need is not None
    assert (need.weights, need.kv_cache) == (1049728 * number, 4 * 2 * 2 * 32 * number * 1024)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "cudax", "meta"])
def test_a_device_that_isnt_there_is_told_before_memory_is_asked_for(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr("ctxextend.lab.engines.available", lambda _device: 0)
    opened = open_source(str(DEMO))
    with pytest.raises(UsageError) as error:
        need_of(opened, inspect(opened.contents), Choice(device=device), length=64)
    assert (error.value.code, error.value.key, error.value.found) == ("bad-device", "--device", device)


@pytest.mark.parametrize(
    ("choice", "option"),
    [
        (Choice(endpoint="http://127.0.0.1:1", engine="vllm"), "--engine"),
        (Choice(endpoint="http://127.0.0.1:1", device="cpu"), "--device"),
        (Choice(endpoint="http://127.0.0.1:1", dtype="float32"), "--dtype"),
        (Choice(endpoint="http://127.0.0.1:1", trust_remote_code=True), "--trust-remote-code"),
        (Choice(engine="vllm", device="cpu"), "--device"),
    ],
)
def test_options_that_would_do_nothing_are_refused(choice: Choice, option: str) -> None:
    opened = open_source(str(DEMO))
    for call in (
        lambda: need_of(opened, inspect(opened.contents), choice, length=64),
        lambda: open_engine(opened, choice, length=64),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert (error.value.code, error.value.key) == ("bad-option", option)


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
