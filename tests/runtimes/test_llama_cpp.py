"""llama.cpp's and Ollama's readers: what they say beside the table, and what they serve."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxextend.contents import Gguf, GgufValue
from ctxextend.errors import CtxextendError
from ctxextend.formats.gguf_architectures import ARCHITECTURES, UNREAD
from ctxextend.formats.gguf_keys import FREQS, LONG, SHORT, read_rope
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.runtimes.llama_cpp import GGUF_READERS, LlamaCpp, Ollama
from tests.gguf_factory import gguf
from tests.methods import closed_forms as paper

YARN: dict[str, Any] = {
    "context_length": 4096,
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 1024,
}
TEMPERATURE = 0.1 * math.log(4.0) + 1.0
GEMMA3: dict[str, Any] = {
    "attention__sliding_window": 512,
    "block_count": 6,
    "context_length": 131072,
    "rope__freq_base": 1e6,
}


@pytest.mark.parametrize("reader", GGUF_READERS, ids=lambda reader: reader.runtime)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_any_architecture_is_answered(reader: Any, architecture: str) -> None:
    sliding = ARCHITECTURES[architecture].sliding
    file = gguf(
        architecture,
        **YARN,
        factors={FREQS: [1.0] * 16} if ARCHITECTURES[architecture].factors == "required" else {},
        attention__sliding_window=256,
        attention__sliding_window_pattern=[True, False] if sliding else None,
    )
    reading = reader.effective(file, length=4096)
    assert reading.problem is None
    assert reading.unknown is None
    assert reading.max_context == 4096
    for found in reading.tables.values():
        assert all(math.isfinite(f) and f > 0.0 for f in found.inv_freq)
        assert found.attention_factor > 0.0
    full = reading.tables.get(FULL)
    if full is not None:
        assert full.inv_freq == pytest.approx(paper.yarn(10000.0, 32, 4.0, 1024), rel=1e-6)
        assert full.attention_factor == pytest.approx(TEMPERATURE, rel=1e-6)


def test_a_latent_softmax_without_its_key() -> None:
    """DeepSeek's yarn without mscale: cos and sin are tempered, and the softmax by the same again, squared."""
    reading = LlamaCpp().effective(gguf("deepseek2", **YARN), length=4096)
    assert reading.tables[FULL].attention_factor == pytest.approx(TEMPERATURE)
    assert reading.tables[FULL].softmax_factor == pytest.approx(TEMPERATURE**2)


@pytest.mark.parametrize("architecture", sorted(UNREAD))
def test_what_was_not_read_is_unknown(architecture: str) -> None:
    reading = LlamaCpp().effective(gguf(architecture), length=1024)
    assert reading.unknown is not None
    assert architecture in reading.unknown
    assert not reading.tables


def test_what_it_does_not_have_is_absent() -> None:
    reading = LlamaCpp().effective(gguf("llama99"), length=1024)
    assert (reading.absent, reading.tables) == (True, {})
    assert "llama99" in str(reading.problem)


@pytest.mark.parametrize(
    "keys",
    [
        {"block_count": 0},
        {"rope__freq_base": 0.0},
        {"rope__scaling__factor": -2.0},
        {"attention__head_count": 0},
        {"rope__freq_base": math.nan},
        {"attention__key_length": 7},
    ],
)
def test_what_can_not_be_is_a_problem(keys: dict[str, Any]) -> None:
    for reader in GGUF_READERS:
        reading = reader.effective(gguf(**keys), length=1024)
        assert reading.problem
        assert not reading.tables


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rope__scaling__factor": 2.0}, "type linear, its default"),
        ({**YARN, "rope__scaling__yarn_attn_factor": 1.0}, "llama.rope.scaling.yarn_attn_factor is never used"),
        ({**YARN, "rope__scaling__yarn_beta_fast": 1.0}, "llama.rope.scaling.yarn_beta_fast is never used"),
        ({**YARN, "rope__scaling__original_context_length": None}, "the context_length 4096 stands in"),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 2.0}, "the factor 2 doesn't count"),
        ({"rope__scaling__type": "longrope"}, "without lists of factors does nothing"),
        ({"factors": {FREQS: [1.0] * 16}, "rope__scaling__factor": 2.0}, "applied beside the tensor"),
    ],
)
def test_how_names_what_counts_and_what_does_not(keys: dict[str, Any], said: str) -> None:
    assert any(said in how for how in LlamaCpp().effective(gguf(**keys), length=4096).how)


def test_grok_reads_what_others_do_not() -> None:
    keys: dict[str, Any] = {
        **YARN,
        "rope__scaling__yarn_beta_fast": 8.0,
        "rope__scaling__yarn_beta_slow": 2.0,
        "rope__scaling__yarn_attn_factor": 0.5,
    }
    file = gguf("grok", **keys)
    reading = LlamaCpp().effective(file, length=4096)
    assert reading.tables[FULL].inv_freq == pytest.approx(
        paper.yarn(10000.0, 32, 4.0, 1024, fast=8.0, slow=2.0), rel=1e-6
    )
    # Under yarn even its own attention factor is overwritten.
    assert reading.tables[FULL].attention_factor == pytest.approx(TEMPERATURE)
    assert any("yarn_attn_factor is never used" in how for how in reading.how)
    mixed: dict[str, Any] = {**YARN, "rope__scaling__yarn_ext_factor": 0.5}
    assert LlamaCpp().effective(gguf("grok", **mixed), length=4096).unknown
    off: dict[str, Any] = {**YARN, "rope__scaling__yarn_ext_factor": 0.0, "rope__scaling__yarn_attn_factor": 1.25}
    reading = LlamaCpp().effective(gguf("grok", **off), length=4096)
    assert reading.tables[FULL].inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 4.0))
    assert reading.tables[FULL].attention_factor == 1.25


def test_the_type_none_leaves_a_factor_to_sliding_layers_with_a_value_of_their_own() -> None:
    keys: dict[str, Any] = {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}
    reading = LlamaCpp().effective(gguf("gemma2", **keys), length=1024)
    assert reading.tables[FULL].inv_freq == pytest.approx(paper.plain(10000.0, 32))
    assert reading.tables[SLIDING].inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 4.0))


@pytest.mark.parametrize(("length", "long"), [(1024, False), (1000, False), (1025, True), (4096, True)])
def test_the_context_chooses_between_lists(length: int, long: bool) -> None:
    keys: dict[str, Any] = {**YARN, "rope__scaling__type": "longrope", "rope__scaling__factor": None}
    file = gguf("phi3", factors={LONG: [2.0] * 16, SHORT: [1.0] * 16}, **keys)
    found = LlamaCpp().effective(file, length=length).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 2.0 if long else 1.0))
    assert found.switches == (1024,)


def test_a_context_is_rounded_up_before_it_is_compared() -> None:
    """1000 tokens make a context of 1024 (llama-context.cpp, GGML_PAD to 256), which is past 1000."""
    keys: dict[str, Any] = {"rope__scaling__original_context_length": 1000}
    file = gguf("phi3", factors={LONG: [2.0] * 16, SHORT: [1.0] * 16}, **keys)
    found = LlamaCpp().effective(file, length=1000).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 2.0))


def test_what_serves_a_file() -> None:
    reader = LlamaCpp()
    plain = reader.effective(gguf(rope__scaling__factor=4.0), length=1024)
    assert reader.serve("my model.gguf", plain, length=1024) == "llama-server -m 'my model.gguf' -c 1024"
    tempered = reader.effective(gguf(**YARN), length=4096)
    assert tempered.caution is not None
    assert reader.serve("m.gguf", tempered, length=4096) == "llama-server -m m.gguf -c 4096 --no-context-shift"


def test_what_makes_an_ollama_model() -> None:
    reading = Ollama().effective(gguf(**YARN), length=4096)
    assert Ollama().serve("m.gguf", reading, length=4096) == "FROM ./m.gguf\nPARAMETER num_ctx 4096\n"
    assert Ollama().serve("/models/m.gguf", reading, length=8) == "FROM /models/m.gguf\nPARAMETER num_ctx 8\n"


def test_ollama_never_goes_past_the_stated_length() -> None:
    """num_ctx is clamped to context_length, so that the short list counts."""
    keys: dict[str, Any] = {"context_length": 1024, "rope__scaling__original_context_length": 1024}
    file = gguf("phi3", factors={LONG: [2.0] * 16, SHORT: [1.0] * 16}, **keys)
    assert Ollama().effective(file, length=4096).tables[FULL].inv_freq == pytest.approx(paper.plain(10000.0, 32))
    assert LlamaCpp().effective(file, length=4096).tables[FULL].inv_freq != pytest.approx(paper.plain(10000.0, 32))


def both(file: Gguf) -> tuple[float, float]:
    """By how much llama.cpp and Ollama slow the full layers of a gemma3."""
    first = paper.plain(1e6, 32)[0]
    a, b = (reader.effective(file, length=4096).tables[FULL].inv_freq[0] for reader in (LlamaCpp(), Ollama()))
    return first / a, first / b


@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({}, (1.0, 1.0)),
        ({"mm__tokens_per_image": 256}, (1.0, 8.0)),
        ({"attention__layer_norm_rms_epsilon": None}, (1.0, 8.0)),
        ({"rope__local__freq_base": 10000.0}, (1.0, 8.0)),
        ({"tensors": ["v.patch.weight"]}, (1.0, 8.0)),
        ({"tensors": ["blk.0.attn_v.weight"]}, (1.0, 1.0)),
        # A type alone is not enough: the factor is added on its own.
        ({"mm__tokens_per_image": 256, "rope__scaling__type": "linear"}, (1.0, 8.0)),
        ({"mm__tokens_per_image": 256, "rope__scaling__type": "linear", "rope__scaling__factor": 1.0}, (1.0, 1.0)),
        ({"mm__tokens_per_image": 256, "rope__scaling__factor": 16.0}, (16.0, 16.0)),
        ({"mm__tokens_per_image": 256, "context_length": 32768}, (1.0, 1.0)),
    ],
)
def test_ollama_adds_a_factor_to_a_gemma3_of_its_own(changes: dict[str, Any], factors: tuple[float, float]) -> None:
    assert both(gguf("gemma3", **{**GEMMA3, **changes})) == pytest.approx(factors)


def test_ollama_knows_its_older_names_of_gemma3s_bases() -> None:
    keys: dict[str, Any] = {
        **GEMMA3,
        "rope__freq_base": None,
        "rope__global__freq_base": 500000.0,
        "context_length": 32768,
    }
    reading = Ollama().effective(gguf("gemma3", **keys), length=4096)
    assert reading.tables[FULL].inv_freq == pytest.approx(paper.plain(500000.0, 32))
    assert reading.tables[SLIDING].inv_freq == pytest.approx(paper.plain(10000.0, 32))
    # llama.cpp itself knows neither name.
    assert LlamaCpp().effective(gguf("gemma3", **keys), length=4096).tables[FULL].inv_freq == pytest.approx(
        paper.plain(10000.0, 32)
    )


def test_layers_whose_rope_the_file_lists_are_unknown() -> None:
    pattern = GgufValue(type="ARRAY", item="BOOL", length=2, value=(True, False))
    file = gguf(
        "granite_swa",
        attention__rope_pattern=pattern,
        attention__sliding_window=8,
        attention__sliding_window_pattern=[True, False],
    )
    assert LlamaCpp().effective(file, length=1024).unknown


WHOLE = st.integers(0, 64) | st.integers(0, (1 << 32) - 1)
FLOAT = st.floats(width=32) | st.floats(0.125, 64.0, width=32)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=2),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.lists(st.text(max_size=2), min_size=1, max_size=2),
    st.just(GgufValue(type="ARRAY", item="UINT32", length=10_000, value=None)),
)
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "block_count": WHOLE,
    "context_length": WHOLE,
    "embedding_length": WHOLE,
    "attention__head_count": WHOLE,
    "attention__key_length": WHOLE,
    "attention__sliding_window": WHOLE,
    "attention__sliding_window_pattern": WHOLE | st.lists(st.booleans(), min_size=1, max_size=4),
    "nextn_predict_layers": WHOLE,
    "rope__dimension_count": WHOLE,
    "rope__dimension_count_swa": WHOLE,
    "rope__freq_base": FLOAT,
    "rope__freq_base_swa": FLOAT,
    "rope__scale_linear": FLOAT,
    "rope__scaling__alpha": FLOAT,
    "rope__scaling__attn_factor": FLOAT,
    "rope__scaling__factor": FLOAT,
    "rope__scaling__finetuned": st.booleans(),
    "rope__scaling__original_context_length": WHOLE,
    "rope__scaling__type": st.sampled_from(["none", "linear", "yarn", "longrope", "dynamic", ""]),
    "rope__scaling__yarn_attn_factor": FLOAT,
    "rope__scaling__yarn_beta_fast": FLOAT,
    "rope__scaling__yarn_beta_slow": FLOAT,
    "rope__scaling__yarn_ext_factor": FLOAT,
    "rope__scaling__yarn_log_multiplier": FLOAT,
}
FILES = st.fixed_dictionaries({}, optional=KEYS) | st.fixed_dictionaries(
    {}, optional={key: right | ODD for key, right in KEYS.items()}
)
FACTORS = st.dictionaries(
    st.sampled_from([FREQS, LONG, SHORT]),
    st.none() | st.lists(FLOAT, min_size=16, max_size=16) | st.just([1.0]),
)


@settings(deadline=None)
@given(st.sampled_from(sorted(ARCHITECTURES)), FILES, FACTORS)
def test_any_file_is_answered(architecture: str, keys: dict[str, Any], factors: dict[str, Any]) -> None:
    """A table of finite numbers, or a sentence that says why not; never an exception that isn't ours."""
    file = gguf(architecture, factors=factors, **keys)
    for reader in GGUF_READERS:
        reading = reader.effective(file, length=2048)
        if reading.problem is not None or reading.unknown is not None:
            assert not reading.tables
            continue
        for found in reading.tables.values():
            assert all(math.isfinite(f) for f in (*found.inv_freq, found.attention_factor, found.softmax_factor))
    with suppress(CtxextendError):
        read_rope(file)


@pytest.mark.parametrize("key", ["rope__dimension_count", "attention__key_length", "embedding_length"])
def test_a_head_that_no_model_has(key: str) -> None:
    for reader in GGUF_READERS:
        assert reader.effective(gguf("phi3", **{key: (1 << 32) - 2}), length=1024).problem  # type: ignore[arg-type]
