"""The readers of the smaller runtimes: each quirk once.

Expected values: the papers' formulas (``closed_forms``); numbers that the runtimes' own code printed for
these very configs (exllamav3 1.6.5's ``RoPE`` class and onnxruntime-genai 0.18.0's builders, run on the
CPU); and closed forms of the lines that each module's docstring cites.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.families import FAMILIES
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import Reader, Reading
from ctxextend.runtimes.ctranslate2 import CTranslate2
from ctxextend.runtimes.exllama import ExLlamaV2, ExLlamaV3
from ctxextend.runtimes.ollama_create import OllamaCreate
from ctxextend.runtimes.onnxruntime_genai import OnnxRuntimeGenAi
from ctxextend.runtimes.tensorrt_llm import TensorRtLlm
from ctxextend.runtimes.tgi import Tgi
from tests.factories import family_config
from tests.methods import closed_forms as paper

READERS: tuple[Reader, ...] = (
    ExLlamaV3(),
    ExLlamaV2(),
    Tgi(),
    TensorRtLlm(),
    CTranslate2(),
    OnnxRuntimeGenAi(),
    OllamaCreate(),
)

TOP = "original_max_position_embeddings"
SHORT = [1.0 + i for i in range(16)]
LONG = [16.0 - i for i in range(16)]
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, TOP: 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, TOP: 1024}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, TOP: 1024}

PLAIN = paper.plain(10000.0, 32)
#: YaRN eq. 22 for a factor of 4: 1 + 0.1 ln 4.
A0 = 1.0 + 0.1 * math.log(4.0)
#: LongRoPE for 1024 to 4096: sqrt(1 + ln 4 / ln 1024) = sqrt(1.2).
SQRT = math.sqrt(1.2)


def read(reader: Reader, family: str = "llama", scaling: Any = None, *, length: int = 4096, **changes: Any) -> Reading:
    """What a reader makes of a tiny model, stated for 4096 tokens; a change of None takes the key out."""
    row = FAMILIES[family]
    config = family_config(row, **{"rope_scaling": scaling, "max_position_embeddings": 4096, **changes})
    for key in [key for key, value in changes.items() if value is None]:
        del config[key]
    return reader.effective(config, row, length=length)


def said(reading: Reading) -> str:
    """What explains a table that isn't the config's: no caution, which is for tables that are right."""
    assert reading.caution is None
    return "; ".join(reading.how)


def full(reading: Reading) -> RopeTable:
    assert reading.problem is None, reading.problem
    assert reading.unknown is None, reading.unknown
    return reading.tables[FULL]


def holds(found: RopeTable, frequencies: list[float], temperature: float = 1.0) -> None:
    assert found.inv_freq == pytest.approx(frequencies, rel=1e-9)
    assert found.attention_factor == pytest.approx(temperature, rel=1e-9)


def divided(frequencies: list[float], by: list[float]) -> list[float]:
    return [f / factor for f, factor in zip(frequencies, by, strict=True)]


def at(found: RopeTable, pairs: tuple[int, ...]) -> list[float]:
    return [found.inv_freq[pair] for pair in pairs]


def unrounded(theta: float, factor: float, context: int) -> list[float]:
    return paper.yarn(theta, 32, factor, context, truncate=False)


@pytest.mark.parametrize("reader", READERS, ids=[reader.runtime for reader in READERS])
def test_what_every_one_of_them_has(reader: Reader) -> None:
    reading = read(reader)
    holds(full(reading), PLAIN)
    assert reading.max_context == 4096
    assert reading.how
    assert reader.evidence == "read"
    assert read(reader, scaling="yarn").problem
    assert read(reader, scaling={"rope_type": "longrope", "long_factor": 1.0}).problem


FOREIGN: tuple[Any, ...] = (None, 0, -1, 0.5, "x", [], {}, True, math.nan, math.inf, 10**400)
SCALINGS = {"linear": LINEAR, "dynamic": DYNAMIC, "yarn": YARN, "llama3": LLAMA3, "longrope": LONGROPE}
MORE_KEYS = ("type", "rope_type", "mscale", "mscale_all_dim", "long_mscale", "attention_factor", "beta_fast", "alpha")
TOP_KEYS = (TOP, "rope_theta", "model_max_length", "rope_parameters", "partial_rotary_factor", "seq_length", "head_dim")


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("reader", READERS, ids=[reader.runtime for reader in READERS])
def test_no_foreign_value_is_an_exception(reader: Reader, kind: str) -> None:
    """A table, a sentence that says why not, or a sentence that says that it isn't known: exactly one of them."""
    settings = SCALINGS[kind]
    for family in ("llama", "mistral", "phi3", "qwen3", "deepseek_v3", "gemma3"):
        row = FAMILIES[family]
        for value in FOREIGN:
            changed = [{"rope_scaling": {**settings, key: value}} for key in (*settings, *MORE_KEYS)]
            changed += [{"rope_scaling": settings, key: value} for key in TOP_KEYS]
            for changes in changed:
                config = family_config(row, max_position_embeddings=4096, **changes)
                reading = reader.effective(config, row, length=4096)
                said = (bool(reading.tables), reading.problem is not None, reading.unknown is not None)
                assert sum(said) == 1, (family, changes)


SERVED: list[tuple[Reader, str, str]] = [
    (ExLlamaV3(), "Config.from_directory('model'))", "max_num_tokens=4096)"),
    (ExLlamaV2(), "ExLlamaV2Config('model')", "max_seq_len=4000,"),
    (Tgi(), "text-generation-launcher --model-id model", "--max-total-tokens 4000"),
    (TensorRtLlm(), "trtllm-serve model", "--max_seq_len 4000"),
    (CTranslate2(), "TransformersConverter('model')", "Generator("),
    (OnnxRuntimeGenAi(), "python -m onnxruntime_genai.models.builder -i model", "-e cpu"),
    (OllamaCreate(), "FROM model", "num_ctx 4000"),
]


@pytest.mark.parametrize(("reader", "start", "rest"), SERVED, ids=[reader.runtime for reader, _, _ in SERVED])
def test_how_it_is_served(reader: Reader, start: str, rest: str) -> None:
    line = reader.serve("model", read(reader), length=4000)
    assert start in line
    assert rest in line


# --- ExLlamaV3


@pytest.mark.parametrize(
    ("changes", "settings", "frequencies", "temperature"),
    [
        # As Qwen's card has it: the factor is 1280 / 1024, not 4.
        ({"max_position_embeddings": 1280}, YARN, [0.051414058, 0.0082857143, 0.00014226235], 1.0223143551314209),
        ({}, YARN, [0.038158871, 0.0035714284, 4.4456985e-05], 1.138629436111989),
        # Without an original length: the factor that is written, over the stated length.
        ({}, {"rope_type": "yarn", "factor": 4.0}, [0.056234129, 0.0067857141, 4.4456985e-05], 1.138629436111989),
    ],
)
def test_exllamav3_divides_the_stated_length_by_the_original(
    changes: dict[str, Any], settings: dict[str, Any], frequencies: list[float], temperature: float
) -> None:
    found = full(read(ExLlamaV3(), scaling=settings, **changes))
    assert at(found, (5, 8, 15)) == pytest.approx(frequencies, rel=1e-6)
    assert found.attention_factor == pytest.approx(temperature, rel=1e-9)


def test_exllamav3_reads_yarns_original_length_in_the_dictionary_alone() -> None:
    holds(
        full(read(ExLlamaV3(), scaling=YARN, original_max_position_embeddings=512)),
        paper.yarn(10000.0, 32, 4.0, 1024),
        A0,
    )


@pytest.mark.parametrize(
    ("keys", "temperature"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"attn_factor": 2.0}, A0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, A0),
        ({"attention_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"llama_4_scaling_beta": 0.1}, 1.0),
    ],
)
def test_exllamav3_and_the_keys_of_the_temperature(keys: dict[str, Any], temperature: float) -> None:
    """Its own code gave these for a Llama; the field notes' section 1b has the same."""
    assert full(read(ExLlamaV3(), scaling={**YARN, **keys})).attention_factor == pytest.approx(temperature, rel=1e-9)


def test_exllamav3_honours_betas_and_truncate() -> None:
    exact = full(read(ExLlamaV3(), scaling={**YARN, "truncate": False}))
    holds(exact, unrounded(10000.0, 4.0, 1024), A0)
    others = full(read(ExLlamaV3(), scaling={**YARN, "beta_fast": 16.0, "beta_slow": 2.0}))
    holds(others, paper.yarn(10000.0, 32, 4.0, 1024, fast=16.0, slow=2.0), A0)
    assert "null" in (read(ExLlamaV3(), scaling={**YARN, "beta_fast": None}).problem or "")


def test_exllamav3_takes_the_pair_for_latent_attention_alone() -> None:
    """1.0648216253695715 is what its code gave for 4096 by 1024 tokens; the softmax goes by the written factor."""
    pair = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}
    assert full(read(ExLlamaV3(), "deepseek_v3", pair)).attention_factor == pytest.approx(1.0648216253695715)
    short = full(read(ExLlamaV3(), "deepseek_v3", pair, max_position_embeddings=2048))
    half = 1.0 + 0.1 * math.log(2.0)
    assert short.attention_factor == pytest.approx(half / (1.0 + 0.05 * math.log(2.0)), rel=1e-9)
    assert short.softmax_factor == pytest.approx((1.0 + 0.05 * math.log(4.0)) ** 2, rel=1e-9)


def test_exllamav3_picks_one_list_by_the_stated_length() -> None:
    """With a temperature of the two lengths, whatever attention_factor says."""
    settings = {**LONGROPE, "attention_factor": 1.5}
    for length in (512, 4096):
        holds(full(read(ExLlamaV3(), scaling=settings, length=length)), divided(PLAIN, LONG), SQRT)
        kept = read(ExLlamaV3(), scaling={**settings, TOP: 4096}, length=length)
        holds(full(kept), divided(PLAIN, SHORT), 1.0)


def test_exllamav3_needs_a_length_for_longrope() -> None:
    bare = {key: value for key, value in LONGROPE.items() if key != TOP}
    assert "without a whole" in (read(ExLlamaV3(), scaling=bare).problem or "")
    holds(full(read(ExLlamaV3(), scaling=bare, original_max_position_embeddings=1024)), divided(PLAIN, LONG), SQRT)


@pytest.mark.parametrize("kind", ["dynamic", "deepseek_yarn"])
def test_exllamav3_refuses_other_types(kind: str) -> None:
    assert f"fails on the rope type '{kind}'" in (read(ExLlamaV3(), scaling={**YARN, "rope_type": kind}).problem or "")


def test_exllamav3_reads_the_base_at_the_top_level_or_in_the_newer_form() -> None:
    newer = read(ExLlamaV3(), rope_theta=None, rope_parameters={**YARN, "rope_theta": 500000.0})
    holds(full(newer), paper.yarn(500000.0, 32, 4.0, 1024), A0)
    inside = read(ExLlamaV3(), scaling={**YARN, "rope_theta": 500000.0}, rope_theta=None)
    holds(full(inside), paper.yarn(10000.0, 32, 4.0, 1024), A0)


def test_exllamav3_and_gemma3() -> None:
    """Windowed layers are plain; one dictionary a layer type has no type, so that nothing is scaled."""
    older = read(ExLlamaV3(), "gemma3", {"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=20000.0)
    holds(full(older), paper.interpolated(1000000.0, 32, 8.0))
    holds(older.tables[SLIDING], PLAIN)
    nested = {
        FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000000.0},
        SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    }
    newer = read(ExLlamaV3(), "gemma3", rope_theta=None, rope_parameters=nested)
    holds(full(newer), paper.plain(1000000.0, 32))


def test_exllamav3_scales_every_layer_of_an_olmo3_without_layer_types() -> None:
    scaled = paper.yarn(500000.0, 32, 4.0, 1024)
    layers: dict[str, Any] = {"num_hidden_layers": 4, "sliding_window": 16, "rope_theta": 500000.0}
    without = read(ExLlamaV3(), "olmo3", YARN, **layers)
    holds(without.tables[SLIDING], scaled, A0)
    stated = read(ExLlamaV3(), "olmo3", YARN, **layers, layer_types=[SLIDING, SLIDING, SLIDING, FULL])
    holds(stated.tables[SLIDING], paper.plain(500000.0, 32))
    holds(full(stated), scaled, A0)


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("deepseek_v3", {"n_group": 8}, "groups of experts"),
        ("smollm3", {}, "without no_rope_layers"),
        ("cohere2", {}, "no layer a rope"),
        ("glm4", {"partial_rotary_factor": None}, "another part of each head"),
    ],
)
def test_exllamav3_fails_on_some_configs(family: str, changes: dict[str, Any], problem: str) -> None:
    assert problem in (read(ExLlamaV3(), family, **changes).problem or "")


def test_what_exllamav3_has_not() -> None:
    assert read(ExLlamaV3(), "falcon").absent
    assert read(ExLlamaV3(), "qwen2_5_vl").unknown


# --- ExLlamaV2


def test_exllamav2_places_the_ramp_over_the_stated_length() -> None:
    settings = {**YARN, "attention_factor": 1.5, "beta_fast": 8.0, "truncate": False}
    holds(full(read(ExLlamaV2(), scaling=settings)), paper.yarn(10000.0, 32, 4.0, 4096), A0)


def test_exllamav2_leaves_yarn_off_up_to_the_original_length() -> None:
    holds(full(read(ExLlamaV2(), scaling=YARN, max_position_embeddings=1024)), PLAIN)


def test_exllamav2_takes_the_first_stated_length() -> None:
    reading = read(ExLlamaV2(), scaling=YARN, model_max_length=2048)
    assert reading.max_context == 2048
    holds(full(reading), paper.yarn(10000.0, 32, 4.0, 2048), A0)


def test_exllamav2_refuses_both_spellings() -> None:
    assert "both type and rope_type" in (read(ExLlamaV2(), scaling={**LINEAR, "type": "linear"}).problem or "")
    holds(full(read(ExLlamaV2(), scaling={"type": "linear", "factor": 4.0})), paper.interpolated(10000.0, 32, 4.0))


def test_exllamav2_does_not_look_at_dynamic() -> None:
    holds(full(read(ExLlamaV2(), scaling=DYNAMIC, length=16384)), PLAIN)


def test_exllamav2_reads_longropes_length_at_the_top_level() -> None:
    assert "top level" in (read(ExLlamaV2(), scaling=LONGROPE).problem or "")
    long = read(
        ExLlamaV2(), scaling={**LONGROPE, "attention_factor": 1.5}, length=512, original_max_position_embeddings=1024
    )
    holds(full(long), divided(PLAIN, LONG), SQRT)
    holds(full(read(ExLlamaV2(), scaling=LONGROPE, original_max_position_embeddings=4096)), divided(PLAIN, SHORT))


def test_exllamav2_does_not_read_the_newer_form() -> None:
    holds(full(read(ExLlamaV2(), rope_theta=None, rope_parameters={**YARN, "rope_theta": 500000.0})), PLAIN)


def test_exllamav2_on_llama3_and_on_what_it_takes_for_a_llama() -> None:
    holds(full(read(ExLlamaV2(), scaling=LLAMA3)), paper.llama3(PLAIN, 4.0, 1024))
    assert read(ExLlamaV2(), "falcon").unknown


# --- TGI


def test_tgi_takes_linear_and_scales_nothing() -> None:
    reading = read(Tgi(), scaling=LINEAR)
    holds(full(reading), PLAIN)
    assert "scales nothing" in said(reading)


def test_tgi_follows_the_length_under_dynamic() -> None:
    """The base at 16384 tokens: theta * (4 * 16384 / 4096 - 3) ** (32 / 30)."""
    reading = read(Tgi(), scaling=DYNAMIC, length=16384)
    holds(full(reading), paper.plain(10000.0 * 13.0 ** (32 / 30), 32))
    assert full(reading).switches == (4096,)
    assert reading.max_context == 4096


@pytest.mark.parametrize(
    ("keys", "temperature"),
    [
        ({"attention_factor": 1.5, "beta_fast": 8.0, "truncate": False}, A0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.5}, 1.0 + 0.05 * math.log(4.0)),
    ],
)
def test_tgi_reads_the_pair_and_nothing_else_of_yarn(keys: dict[str, Any], temperature: float) -> None:
    holds(full(read(Tgi(), scaling={**YARN, **keys})), paper.yarn(10000.0, 32, 4.0, 1024), temperature)


def test_tgi_reads_longropes_length_at_the_top_level() -> None:
    assert "top level" in (read(Tgi(), scaling=LONGROPE).problem or "")
    reading = read(Tgi(), scaling={**LONGROPE, "attention_factor": 1.5}, original_max_position_embeddings=1024)
    holds(full(reading), divided(PLAIN, LONG), SQRT)
    assert "by the short list and the rest by the long one" in (reading.caution or "")
    equal = read(Tgi(), scaling={**LONGROPE, "short_factor": LONG}, original_max_position_embeddings=1024)
    assert equal.caution is None


def test_tgi_multiplies_the_angles_by_mscale() -> None:
    settings = {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.25}
    reading = read(Tgi(), scaling=settings, original_max_position_embeddings=1024)
    holds(full(reading), [1.25 * f for f in divided(PLAIN, LONG)], 1.0)
    assert "angles" in "; ".join(reading.how)


def test_tgi_does_not_see_the_newer_form() -> None:
    holds(full(read(Tgi(), rope_theta=None, rope_parameters={**YARN, "rope_theta": 500000.0})), PLAIN)


def test_what_is_not_known_of_tgi() -> None:
    assert read(Tgi(), "qwen3").unknown
    assert "head_dim" in (read(Tgi(), head_dim=16).unknown or "")
    assert read(Tgi(), "mistral", head_dim=16).tables
    assert "type and rope_type" in (read(Tgi(), scaling={**YARN, "type": "linear"}).unknown or "")
    assert "without a type" in (read(Tgi(), scaling={"factor": 4.0}).problem or "")


# --- TensorRT-LLM


def test_tensorrt_llm_multiplies_a_stated_length_by_a_linear_factor() -> None:
    reading = read(TensorRtLlm(), scaling=LINEAR)
    holds(full(reading), paper.interpolated(10000.0, 32, 4.0))
    assert reading.max_context == 4 * 4096
    assert "4096 rows" in (reading.caution or "")
    for kept in (YARN, LLAMA3, LONGROPE):
        assert read(TensorRtLlm(), scaling={**kept, "factor": 4.0}).max_context == 4096


def test_tensorrt_llm_follows_alpha_in_dynamic_and_not_the_length() -> None:
    holds(full(read(TensorRtLlm(), scaling=DYNAMIC, length=16384)), PLAIN)
    scaled = full(read(TensorRtLlm(), scaling={**DYNAMIC, "alpha": 8.0}))
    holds(scaled, paper.plain(paper.ntk_theta(10000.0, 32, 8.0), 32))


@pytest.mark.parametrize(
    ("keys", "temperature"),
    [
        ({"attention_factor": 1.5, "truncate": False}, A0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.5}, 1.0 + 0.05 * math.log(4.0)),
    ],
)
def test_tensorrt_llm_reads_betas_and_the_pair_of_yarn(keys: dict[str, Any], temperature: float) -> None:
    settings = {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, **keys}
    expected = paper.yarn(10000.0, 32, 4.0, 1024, fast=16.0, slow=2.0)
    holds(full(read(TensorRtLlm(), scaling=settings)), expected, temperature)
    above = read(TensorRtLlm(), scaling={**settings, TOP: 64}, original_max_position_embeddings=1024)
    holds(full(above), expected, temperature)


def test_tensorrt_llm_takes_the_long_list() -> None:
    holds(
        full(read(TensorRtLlm(), scaling={**LONGROPE, "attention_factor": 1.5})),
        divided(PLAIN, LONG),
        SQRT,
    )
    assert "max_seq_len" in (read(TensorRtLlm(), scaling=LONGROPE, length=512).unknown or "")
    equal = read(TensorRtLlm(), scaling={**LONGROPE, "short_factor": LONG}, length=512)
    holds(full(equal), divided(PLAIN, LONG), SQRT)


@pytest.mark.parametrize(
    ("family", "scaling", "why"),
    [
        ("llama", {"rope_type": "yarn", "factor": 4.0}, "takes 1024"),
        ("mistral", YARN, "interleaved"),
        ("qwen3", YARN, "kernel"),
        ("gemma", None, "not read"),
    ],
)
def test_what_is_not_known_of_tensorrt_llm(family: str, scaling: Any, why: str) -> None:
    reading = read(TensorRtLlm(), family, scaling)
    assert why in (reading.unknown or "")
    assert reading.problem is None
    assert not reading.tables


@pytest.mark.parametrize(
    ("family", "scaling"), [("qwen2", LINEAR), ("qwen3", LLAMA3), ("llama", {**LONGROPE, "rope_type": "su"})]
)
def test_where_tensorrt_llm_fails(family: str, scaling: dict[str, Any]) -> None:
    assert "fails on" in (read(TensorRtLlm(), family, scaling).problem or "")


# --- CTranslate2: each of these was run, against transformers' logits of the same weights


def test_ctranslate2_takes_llama3_and_scales_nothing() -> None:
    reading = read(CTranslate2(), scaling=LLAMA3)
    holds(full(reading), PLAIN)
    assert "scales nothing" in said(reading)
    for family in ("mistral", "qwen2", "qwen3"):
        assert "leaves out" in (read(CTranslate2(), family, LLAMA3).problem or ""), family


@pytest.mark.parametrize("scaling", [YARN, DYNAMIC])
def test_ctranslate2_does_not_implement_some(scaling: dict[str, Any]) -> None:
    assert "doesn't implement" in (read(CTranslate2(), scaling=scaling).problem or "")


def test_ctranslate2_fails_on_longrope() -> None:
    assert "leaves out" in (read(CTranslate2(), scaling=LONGROPE).problem or "")
    assert "rotary_emb" in (read(CTranslate2(), "phi3").problem or "")


def test_ctranslate2_loses_the_base_beside_transformers_4() -> None:
    """The older form with a base of its own: with transformers 4.57.6 a Llama came out at 10000, a Qwen3 at 1e6."""
    reading = read(CTranslate2(), scaling=LINEAR, rope_theta=500000.0)
    holds(full(reading), paper.interpolated(500000.0, 32, 4.0))
    assert "loses rope_theta and takes 10000" in (reading.caution or "")
    assert "takes 1000000" in (read(CTranslate2(), "qwen3", LINEAR, rope_theta=500000.0).caution or "")
    both = {**LINEAR, "rope_theta": 500000.0}
    assert read(CTranslate2(), scaling=both, rope_theta=500000.0).caution is None
    assert read(CTranslate2(), scaling=LINEAR).caution is None
    assert read(CTranslate2(), rope_theta=500000.0).caution is None


@pytest.mark.parametrize("family", ["falcon", "gemma"])
def test_ctranslate2_takes_a_base_of_10000_for_some(family: str) -> None:
    reading = read(CTranslate2(), family, YARN, rope_theta=500000.0)
    holds(full(reading), PLAIN)
    assert "a base of 10000" in said(reading)
    assert "a base of 10000" not in said(read(CTranslate2(), family))
    assert "a base of 10000" in said(read(CTranslate2(), family, rope_theta=500000.0))


def test_what_ctranslate2_has_not() -> None:
    assert read(CTranslate2(), "mixtral").absent
    assert read(CTranslate2(), "gemma3").unknown


# --- ONNX Runtime GenAI


@pytest.mark.parametrize("scaling", [LINEAR, DYNAMIC, {**YARN, "beta_fast": 32.0, "beta_slow": 1.0}, LONGROPE])
@pytest.mark.parametrize("family", ["llama", "smollm3"])
def test_onnxruntime_genai_loses_a_llamas_scaling(family: str, scaling: dict[str, Any]) -> None:
    reading = read(OnnxRuntimeGenAi(), family, scaling, rope_theta=10000.0)
    (table,) = {found.inv_freq for found in reading.tables.values()}
    assert table == pytest.approx(PLAIN, rel=1e-9)
    assert "scales nothing" in said(reading)


def test_onnxruntime_genai_reads_a_llamas_llama3() -> None:
    holds(full(read(OnnxRuntimeGenAi(), scaling=LLAMA3)), paper.llama3(PLAIN, 4.0, 1024))
    assert "scales nothing" not in said(read(OnnxRuntimeGenAi(), scaling=LLAMA3))
    assert "doesn't support" in (read(OnnxRuntimeGenAi(), "mistral", LLAMA3).problem or "")


BETAS = {**YARN, "beta_fast": 32.0, "beta_slow": 1.0}


@pytest.mark.parametrize(
    ("keys", "frequencies", "temperature"),
    [
        ({}, [0.5623414, 0.041018, 0.0085405], 1.13862943649292),
        ({"attention_factor": 1.5}, [0.5623414, 0.041018, 0.0085405], 1.13862943649292),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, [0.5623414, 0.041018, 0.0085405], 1.0648216009140015),
        ({"mscale": 0.7}, [0.5623414, 0.041018, 0.0085405], 0.7),
    ],
)
def test_onnxruntime_genais_yarn(keys: dict[str, Any], frequencies: list[float], temperature: float) -> None:
    """The numbers are those of its own builder for a Mistral: bounds not rounded, a lone mscale the temperature."""
    found = full(read(OnnxRuntimeGenAi(), "mistral", {**BETAS, **keys}))
    assert at(found, (1, 5, 7)) == pytest.approx(frequencies, rel=1e-5)
    assert found.attention_factor == pytest.approx(temperature, rel=1e-6)
    assert found.inv_freq == pytest.approx(unrounded(10000.0, 4.0, 1024), rel=1e-9)


def test_onnxruntime_genai_takes_the_top_levels_original_length() -> None:
    found = full(read(OnnxRuntimeGenAi(), "mistral", BETAS, original_max_position_embeddings=2048))
    assert at(found, (5, 7)) == pytest.approx([0.0494531, 0.011208], rel=1e-5)


@pytest.mark.parametrize(
    ("family", "scaling", "changes", "problem"),
    [
        ("mistral", YARN, {}, "without a factor, a beta_fast and a beta_slow"),
        ("phi", BETAS, {"partial_rotary_factor": 0.5}, "only a part of a head"),
        # 16 ln(65536 / 2 pi) / ln 10000 = 16.07, past the last of 16 pairs.
        ("mistral", {**BETAS, TOP: 65536}, {"max_position_embeddings": 262144}, "must lie within the 16 pairs"),
        ("mistral", DYNAMIC, {}, "doesn't support dynamic"),
        ("qwen3", LONGROPE, {}, "doesn't support longrope"),
        ("gemma3", None, {}, "one dictionary a layer type"),
        ("phi3", {**LONGROPE}, {TOP: 1024}, "without the key type"),
        ("phi3", None, {TOP: 1024}, "two lengths fails without longrope"),
        ("phi3", {**LONGROPE, "type": "longrope"}, {TOP: 4096}, "equal lengths"),
    ],
)
def test_where_onnxruntime_genais_builder_fails(
    family: str, scaling: Any, changes: dict[str, Any], problem: str
) -> None:
    assert problem in (read(OnnxRuntimeGenAi(), family, scaling, **changes).problem or "")


def test_onnxruntime_genai_and_phi3() -> None:
    settings = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    holds(
        full(read(OnnxRuntimeGenAi(), "phi3", settings, original_max_position_embeddings=1024)),
        divided(PLAIN, LONG),
        1.0954451150103321,
    )
    below = read(OnnxRuntimeGenAi(), "phi3", settings, length=512, original_max_position_embeddings=1024)
    holds(full(below), divided(PLAIN, SHORT), 1.0954451150103321)
    own = {**settings, "short_mscale": 1.1, "long_mscale": 1.25}
    assert full(read(OnnxRuntimeGenAi(), "phi3", own, original_max_position_embeddings=1024)).attention_factor == 1.25
    holds(full(read(OnnxRuntimeGenAi(), "phi3", original_max_position_embeddings=4096)), PLAIN)


def test_onnxruntime_genais_length_and_linear() -> None:
    reading = read(OnnxRuntimeGenAi(), "mistral", LINEAR, seq_length=512)
    assert reading.max_context == 512
    holds(full(reading), paper.interpolated(10000.0, 32, 4.0))
    assert read(OnnxRuntimeGenAi(), "mixtral").absent
    assert read(OnnxRuntimeGenAi(), "gpt_oss").unknown


# --- Ollama's own conversion


def test_ollama_reads_linear_by_type_and_llama3_by_rope_type() -> None:
    holds(full(read(OllamaCreate(), scaling={"type": "linear", "factor": 4.0})), paper.interpolated(10000.0, 32, 4.0))
    dropped = read(OllamaCreate(), scaling=LINEAR)
    holds(full(dropped), PLAIN)
    assert "drops this scaling" in said(dropped)
    holds(full(read(OllamaCreate(), scaling=LLAMA3)), paper.llama3(PLAIN, 4.0, 1024))
    by_type = {**{key: value for key, value in LLAMA3.items() if key != "rope_type"}, "type": "llama3"}
    holds(full(read(OllamaCreate(), scaling=by_type)), PLAIN)


@pytest.mark.parametrize("scaling", [YARN, DYNAMIC, LONGROPE, {**YARN, "type": "yarn"}])
def test_ollama_drops_the_rest_of_a_llama(scaling: dict[str, Any]) -> None:
    reading = read(OllamaCreate(), scaling=scaling)
    holds(full(reading), PLAIN)
    assert "give it the file" in said(reading)


def test_ollama_loses_the_newer_forms_base() -> None:
    holds(full(read(OllamaCreate(), rope_theta=None, rope_parameters={**LLAMA3, "rope_theta": 500000.0})), PLAIN)
    assert "a base of 0" in (read(OllamaCreate(), "qwen3", rope_theta=None).problem or "")


def test_ollama_loses_a_qwen3s_original_length() -> None:
    reading = read(OllamaCreate(), "qwen3", {**YARN, "type": "yarn", "attention_factor": 1.5}, rope_theta=10000.0)
    holds(full(reading), paper.yarn(10000.0, 32, 4.0, 4096), A0)
    assert "original length" in said(reading)
    dropped = read(OllamaCreate(), "qwen3", YARN, rope_theta=10000.0)
    holds(full(dropped), PLAIN)
    assert "drops this scaling" in said(dropped)


def test_ollama_panics_on_a_qwens_other_types() -> None:
    assert "panics on the type 'linear'" in (
        read(OllamaCreate(), "qwen3", {"type": "linear", "factor": 4.0}).problem or ""
    )
    assert "factor that is a number" in (read(OllamaCreate(), "qwen2", YARN).problem or "")
    assert read(OllamaCreate(), "qwen3", {"type": "default"}).unknown


def test_ollama_and_phi3() -> None:
    """The temperature only by ``type``; the list by the length that llama.cpp serves."""
    lists = {"short_factor": SHORT, "long_factor": LONG}
    long = full(read(OllamaCreate(), "phi3", {"type": "longrope", **lists}, original_max_position_embeddings=1024))
    holds(long, divided(PLAIN, LONG), SQRT)
    assert long.switches == ()
    below = read(
        OllamaCreate(), "phi3", {"type": "longrope", **lists}, length=512, original_max_position_embeddings=1024
    )
    holds(full(below), divided(PLAIN, SHORT), SQRT)
    spelled = read(OllamaCreate(), "phi3", {"rope_type": "longrope", **lists}, original_max_position_embeddings=1024)
    holds(full(spelled), divided(PLAIN, LONG), 1.0)
    assert read(OllamaCreate(), "phi3", original_max_position_embeddings=1024).unknown


def test_what_is_not_known_of_ollama() -> None:
    assert "head_dim" in (read(OllamaCreate(), head_dim=16).unknown or "")
    assert "not read" in (read(OllamaCreate(), "gemma3").unknown or "")
