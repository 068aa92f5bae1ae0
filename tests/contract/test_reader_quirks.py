"""Where single readers leave the common rules: each value from a closed form or from the engine's own source."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.families import FAMILIES
from ctxextend.inspection import inspect
from ctxextend.plan import make_plan
from ctxextend.recipe import Recipe
from ctxextend.runtimes import READERS, Reader, Reading
from ctxextend.runtimes.mlx_lm import MlxLm
from ctxextend.runtimes.sglang import Sglang
from ctxextend.runtimes.transformers import Transformers4, Transformers5
from ctxextend.runtimes.transformers_4 import OLDER
from ctxextend.runtimes.vllm import Vllm
from ctxextend.runtimes.vllm_older import VllmOlder
from tests.factories import TINY, contents, family_config
from tests.methods import closed_forms as paper

READER = pytest.mark.parametrize("reader", READERS, ids=[f"{r.runtime} {r.versions}" for r in READERS])
FULL = "full_attention"
SHORT = [1.0 + i for i in range(16)]
LONG = [2.0 + 3.0 * i for i in range(16)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": YARN,
    "llama3": LLAMA3,
    "longrope": LONGROPE,
}
#: 1 + 0.1 ln 4: YaRN eq. 22.
YARN_TEMPERATURE = 1.0 + 0.1 * math.log(4.0)


def read(reader: Reader, family: str, scaling: dict[str, Any] | None, **changes: Any) -> Reading:
    row = FAMILIES[family]
    config = family_config(row, **{"rope_scaling": scaling, "max_position_embeddings": 4096, **changes})
    if changes.get("head_dim", 0) is None:
        del config["head_dim"]
    return reader.effective(config, row, length=4096)


@pytest.mark.parametrize("family", ["olmo", "olmo2"])
@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_olmo_on_transformers_4_takes_two_keys_exactly(family: str, kind: str) -> None:
    assert read(Transformers4(), family, {"type": kind, "factor": 4.0}).problem is None
    for other in (
        {"rope_type": kind, "factor": 4.0},
        {"type": kind, "rope_type": kind, "factor": 4.0},
        {"type": kind, "factor": 4},
        {"type": kind, "factor": 1.0},
    ):
        assert "exactly the keys" in (read(Transformers4(), family, other).problem or ""), other


@pytest.mark.parametrize("family", ["olmo", "olmo2"])
def test_olmo_on_transformers_4_takes_nothing_else(family: str) -> None:
    for other in ({}, {"type": "default"}, {**YARN, "type": "yarn"}, {"type": "yarn", "factor": 4.0}):
        assert read(Transformers4(), family, other).problem, other
    assert read(Transformers4(), family, None).problem is None
    linear = read(Transformers4(), family, {"type": "linear", "factor": 4.0}).tables[FULL]
    assert linear.inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 4.0), rel=1e-9)


def test_gemma3_on_sglang_never_leaves_the_short_list() -> None:
    found = read(Sglang(), "gemma3", {**LONGROPE, "attention_factor": 1.25})
    expected = [f / factor for f, factor in zip(paper.plain(1000000.0, 32), SHORT, strict=True)]
    assert found.tables[FULL].inv_freq == pytest.approx(expected, rel=1e-9)
    assert found.tables[FULL].attention_factor == 1.25
    assert found.tables[FULL].switches == ()
    assert found.tables["sliding_attention"].inv_freq == pytest.approx(paper.plain(10000.0, 32), rel=1e-9)
    by_factor = read(Sglang(), "gemma3", LONGROPE).tables[FULL]
    # sqrt(1 + ln 4 / ln 1024) = sqrt(1.2)
    assert by_factor.attention_factor == pytest.approx(math.sqrt(1.2), rel=1e-9)


def unrounded_yarn(theta: float, dim: int, factor: float, original: int) -> list[float]:
    """YaRN's table with the bounds of the ramp as they come, from the paper's own variables."""

    def index(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low, high = max(index(32.0), 0.0), min(index(1.0), dim - 1.0)
    ramps = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dim // 2)]
    return [f * (1.0 - r) + f / factor * r for f, r in zip(paper.plain(theta, dim), ramps, strict=True)]


def test_gemma3_on_sglang_honours_truncate_where_transformers_does_not() -> None:
    exact = {**YARN, "truncate": False, "attention_factor": 1.5}
    expected = unrounded_yarn(1000000.0, 32, 4.0, 1024)
    found = read(Sglang(), "gemma3", exact).tables[FULL]
    assert found.inv_freq == pytest.approx(expected, rel=1e-9)
    assert found.attention_factor == 1.5
    rounded = read(Transformers5(), "gemma3", exact).tables[FULL]
    assert rounded.inv_freq == pytest.approx(paper.yarn(1000000.0, 32, 4.0, 1024), rel=1e-9)
    assert rounded.inv_freq != pytest.approx(expected, rel=1e-3)


def test_olmo3_on_sglang_has_its_own_temperature() -> None:
    both = read(Sglang(), "olmo3", {**YARN, "attention_factor": 3.0, "attn_factor": 2.0}).tables
    assert both[FULL].inv_freq == pytest.approx(paper.yarn(500000.0, 32, 4.0, 1024), rel=1e-9)
    assert both[FULL].attention_factor == pytest.approx(2.0 * YARN_TEMPERATURE, rel=1e-9)
    assert both["sliding_attention"].inv_freq == pytest.approx(paper.plain(500000.0, 32), rel=1e-9)
    assert both["sliding_attention"].attention_factor == 1.0
    one_of_the_pair = read(Sglang(), "olmo3", {**YARN, "mscale": 2.0}).tables[FULL]
    assert one_of_the_pair.attention_factor == pytest.approx(YARN_TEMPERATURE, rel=1e-9)
    pair = read(Sglang(), "olmo3", {**YARN, "mscale": 2.0, "mscale_all_dim": 1.0}).tables[FULL]
    assert pair.attention_factor == pytest.approx((1.0 + 0.2 * math.log(4.0)) / YARN_TEMPERATURE, rel=1e-9)
    longrope = read(Sglang(), "olmo3", {**LONGROPE, "attention_factor": 3.0}).tables[FULL]
    assert longrope.attention_factor == pytest.approx(math.sqrt(1.2), rel=1e-9)
    # transformers 4 reads the same form with its own rules.
    assert read(Transformers4(), "olmo3", {**YARN, "attention_factor": 3.0}).tables[FULL].attention_factor == 3.0


def test_olmo3_on_sglang_knows_the_older_form_alone() -> None:
    newer = {FULL: {**YARN, "rope_theta": 9.0e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1.0e5}}
    found = read(Sglang(), "olmo3", None, rope_parameters=newer).tables
    for label in (FULL, "sliding_attention"):
        assert found[label].inv_freq == pytest.approx(paper.plain(500000.0, 32), rel=1e-9)


def test_olmo3_on_sglang_multiplies_a_linear_length() -> None:
    assert read(Sglang(), "olmo3", SCALED["linear"]).max_context == 4 * 4096
    assert read(Sglang(), "olmo3", YARN).max_context == 4096
    assert "rope_type" in (read(Sglang(), "olmo3", {"factor": 4.0}).problem or "")


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize(
    ("reader", "family", "failing"),
    [
        (Transformers5(), "mixtral", {"dynamic", "yarn", "longrope"}),
        (Transformers4(), "mixtral", {"dynamic", "yarn", "longrope"}),
        (Transformers4(), "mistral", {"dynamic", "yarn", "longrope"}),
        (Transformers5(), "mistral", set()),
        (Transformers5(), "ministral", set(SCALED)),
        (Vllm(), "ministral", set(SCALED)),
        (Sglang(), "ministral", set(SCALED)),
        (Vllm(), "mixtral", {"longrope"}),
        (Sglang(), "mixtral", {"longrope"}),
        (MlxLm(), "mistral", set()),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "versions", ""),
)
def test_a_missing_head_dim(reader: Reader, family: str, failing: set[str], kind: str) -> None:
    """Run: transformers 5.23 and 4.57.6 multiply None; the engines build on its configuration classes."""
    row = FAMILIES[family]
    config = family_config(row, rope_scaling=SCALED[kind], max_position_embeddings=4096)
    config["head_dim"] = 32
    assert reader.effective(config, row, length=4096).problem is None
    for headless in ({k: v for k, v in config.items() if k != "head_dim"}, {**config, "head_dim": None}):
        problem = reader.effective(headless, row, length=4096).problem
        assert ("without a head_dim" in (problem or "")) == (kind in failing)


@pytest.mark.parametrize("reader", [Transformers5(), Vllm(), Sglang()])
def test_a_ministral_without_head_dim_never_builds(reader: Reader) -> None:
    row = FAMILIES["ministral"]
    config = {key: value for key, value in family_config(row).items() if key != "head_dim"}
    assert reader.effective(config, row, length=1024).problem == "its class fails without a head_dim"


def test_two_types_that_differ() -> None:
    """transformers 4's class and MLX-LM take ``type``, transformers 5 and SGLang ``rope_type``; vLLM refuses."""
    both = {**YARN, "type": "mrope", "mrope_section": [4, 6, 6]}
    yarn, plain = paper.yarn(1000000.0, 32, 4.0, 1024), paper.plain(1000000.0, 32)
    theta = {"rope_theta": 1000000.0, "model_type": "qwen2_vl"}
    for reader, expected in ((Transformers5(), yarn), (Sglang(), yarn), (Transformers4(), plain), (MlxLm(), plain)):
        found = read(reader, "qwen2_vl", both, **theta).tables[FULL]
        assert found.inv_freq == pytest.approx(expected, rel=1e-9), reader.runtime
    assert "rope_type of yarn beside a type of mrope" in (read(Vllm(), "qwen2_vl", both, **theta).problem or "")


def test_two_types_in_other_classes_of_transformers_4() -> None:
    """Llama's class overwrites rope_type with type, Granite's doesn't (configuration files of 4.57.6)."""
    both = {**YARN, "type": "linear"}
    for family, expected in (
        ("llama", paper.interpolated(10000.0, 32, 4.0)),
        ("granite", paper.yarn(10000.0, 32, 4.0, 1024)),
    ):
        found = read(Transformers4(), family, both).tables[FULL]
        assert found.inv_freq == pytest.approx(expected, rel=1e-9), family


@pytest.mark.parametrize(
    ("older", "newer", "refused"),
    [("su", "longrope", False), ("mrope", "default", False), ("longrope", "longrope", False), ("yarn", "linear", True)],
)
def test_vllm_refuses_two_types_but_two_pairs(older: str, newer: str, refused: bool) -> None:
    settings = {**LONGROPE, "rope_type": newer, "type": older}
    assert (read(Vllm(), "llama", settings).problem is not None) is refused


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_one_dictionary_a_layer_type_in_a_flat_family(family: str, key: str) -> None:
    nested = {FULL: {**YARN, "rope_theta": 10000.0}}
    changes = {"rope_parameters": nested} if key == "rope_parameters" else {}
    scaling = nested if key == "rope_scaling" else None
    for reader in (Transformers5(), Vllm(), Sglang()):
        assert "one dictionary a layer type" in (read(reader, family, scaling, **changes).problem or "")
    of_4 = read(Transformers4(), family, scaling, **changes).problem
    assert ("one dictionary a layer type" in (of_4 or "")) == (key == "rope_scaling")


def test_vllm_multiplies_model_max_length_too() -> None:
    """config/model.py:2598-2634: the factor multiplies whatever length was derived; dynamic's table ends before."""
    for scaling, length in (
        (SCALED["linear"], 4 * 2048),
        (SCALED["dynamic"], 4096),
        (YARN, 2048),
        (LLAMA3, 2048),
        (None, 2048),
    ):
        assert read(Vllm(), "llama", scaling, model_max_length=2048).max_context == length
    stated = read(Vllm(), "llama", LONGROPE, model_max_length=2048, original_max_position_embeddings=1024)
    assert stated.max_context == 1024


def test_mlx_lm_limits_no_dynamic_rope() -> None:
    assert read(MlxLm(), "llama", SCALED["dynamic"]).max_context == 4 * 4096
    assert read(MlxLm(), "llama", SCALED["linear"]).max_context == 4096
    # Its Mixtral builds a plain rope whatever the config says.
    assert read(MlxLm(), "mixtral", SCALED["dynamic"]).max_context == 4096


def test_dynamic_stays_native_for_transformers_and_mlx_lm() -> None:
    checkpoint = contents(TINY)
    recipe = Recipe(factor=4.0, method="dynamic", runtimes=("transformers", "mlx-lm"))
    plan = make_plan(checkpoint, inspect(checkpoint), recipe)
    after = plan.groups[0].after
    assert after is not None
    assert after.encoding == "native"


def test_yarn_without_a_factor() -> None:
    """transformers 5 derives it for null (4096 / 1024 = 4) and refuses a missing key; all others fail on both."""
    null = {**YARN, "factor": None}
    missing = {key: value for key, value in YARN.items() if key != "factor"}
    found = read(Transformers5(), "llama", null).tables[FULL]
    assert found.inv_freq == pytest.approx(paper.yarn(10000.0, 32, 4.0, 1024), rel=1e-9)
    assert found.attention_factor == pytest.approx(YARN_TEMPERATURE, rel=1e-9)
    for reader in (Transformers4(), Transformers5(), Vllm(), VllmOlder(), Sglang(), MlxLm()):
        assert "yarn without a factor" in (read(reader, "llama", missing).problem or "")
        if not isinstance(reader, Transformers5):
            assert "yarn without a factor" in (read(reader, "llama", null).problem or "")


@pytest.mark.parametrize("kind", ["yarn", "longrope", "llama3"])
def test_an_original_length_of_null(kind: str) -> None:
    settings = {**SCALED[kind], "original_max_position_embeddings": None}
    for reader in (Transformers5(), Vllm(), Sglang(), MlxLm()):
        assert read(reader, "llama", settings).problem, reader.runtime


FOREIGN: tuple[Any, ...] = (None, 0, -1, -4096, 0.5, "x", [], {}, True, math.nan, math.inf, 10**400)


@READER
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("value", FOREIGN, ids=lambda value: repr(value)[:12])
def test_no_foreign_value_is_an_exception(reader: Reader, kind: str, value: Any) -> None:
    keys = (*SCALED[kind], "attn_factor", "mscale", "long_mscale", "attention_factor", "truncate", "beta_fast", "type")
    for family in ("llama", "deepseek_v3", "gemma3", "gpt_oss", "olmo2", "olmo3", "phi3", "qwen2_vl", "qwen3"):
        for key in keys:
            reading = read(reader, family, {**SCALED[kind], key: value})
            assert ((reading.problem or reading.unknown) is None) == bool(reading.tables), (family, key)
        for key in ("original_max_position_embeddings", "rope_theta", "model_max_length", "rope_parameters"):
            reading = read(reader, family, SCALED[kind], **{key: value})
            assert ((reading.problem or reading.unknown) is None) == bool(reading.tables), (family, key)


def test_a_foreign_attn_factor_says_what_is_wrong() -> None:
    problem = read(Sglang(), "llama", {**YARN, "attn_factor": "x"}).problem
    assert problem is not None
    assert "attn_factor must be a number" in problem


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"max_position_embeddings": 4096.0}, "max_position_embeddings of 4096.0"),
        ({"max_position_embeddings": None}, "max_position_embeddings of null"),
        ({"rope_theta": None}, "rope_theta of null"),
        ({"rope_scaling": {"rope_type": None, "factor": 2.0}}, "rope_type that is empty"),
        ({"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}}, "rope_type that is empty"),
        ({"rope_scaling": {"type": None, "factor": 2.0}}, "rope_type that is empty"),
        ({"rope_scaling": {"rope_type": "", "factor": 2.0}}, "rope_type that is empty"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_what_the_classes_of_transformers_5_refuse(family: str, changes: dict[str, Any], why: str) -> None:
    """Run with 5.23: StrictDataclassFieldValidationError, TypeError (None ** Tensor) and KeyError None."""
    for reader in (Transformers5(), Vllm(), VllmOlder(), Sglang()):
        config = family_config(FAMILIES[family], **{"max_position_embeddings": 4096, **changes})
        assert why in (reader.effective(config, FAMILIES[family], length=4096).problem or ""), reader.runtime


def test_null_beside_another_base_or_a_missing_key_is_read_by_transformers_5() -> None:
    """Run with 5.23: the dictionary's base counts, and the class has a default for what is missing."""
    row = FAMILIES["llama"]
    beside = read(Transformers5(), "llama", {**SCALED["linear"], "rope_theta": 10000.0}, rope_theta=None)
    assert beside.tables[FULL].inv_freq == pytest.approx(paper.interpolated(10000.0, 32, 4.0), rel=1e-9)
    for key in ("max_position_embeddings", "rope_theta"):
        config = {k: v for k, v in family_config(row).items() if k != key}
        assert Transformers5().effective(config, row, length=1024).problem is None
    assert read(Transformers5(), "apertus", None, rope_scaling={}, rope_theta=None).problem is None


@pytest.mark.parametrize(
    ("reader", "free", "bound"),
    [
        (Transformers5(), ("linear", "yarn", "llama3"), ("dynamic", "longrope")),
        (Transformers4(), ("linear", "yarn", "llama3"), ("dynamic",)),
        (OLDER[0], ("linear", "llama3"), ("yarn", "dynamic")),
        (OLDER[1], ("linear", "llama3"), ("yarn", "dynamic")),
        (MlxLm(), ("linear", "yarn", "llama3"), ("dynamic", "longrope")),
        (Sglang(), (), ("linear", "yarn", "llama3")),
        (Vllm(), (), ("linear", "yarn", "llama3")),
    ],
    ids=lambda value: getattr(value, "versions", ""),
)
def test_who_enforces_no_length(reader: Reader, free: tuple[str, ...], bound: tuple[str, ...]) -> None:
    """A stated length below what is meant is only stated there, unless a frequency or a temperature comes from it."""
    for kind in (*free, *bound):
        found = read(reader, "llama", SCALED[kind], max_position_embeddings=2048)
        assert found.tables, kind
        assert found.liftable is (kind in free), kind


@pytest.mark.parametrize("reader", [Vllm(), VllmOlder(), Sglang()])
def test_a_server_that_runs_transformers_code_still_caps(reader: Reader) -> None:
    seen = 0
    for family in FAMILIES.values():
        if family.position != "rope" or family.refusal is not None:
            continue
        found = reader.effective(family_config(family), family, length=4096)
        seen += bool(found.tables)
        assert not found.liftable, family.name
    assert seen > 20


def test_a_stated_length_does_not_matter_to_yarn_in_older_vllm() -> None:
    """config/model.py of 0.29: the original length times the factor, 1024 x 4."""
    for stated in (1024, 2048, 4096, 16384):
        assert read(VllmOlder(), "llama", YARN, max_position_embeddings=stated).max_context == 4096
