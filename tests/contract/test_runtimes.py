"""What every runtime's reader must do with any family's config."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxextend.errors import UnknownNameError
from ctxextend.families import FAMILIES, Family
from ctxextend.formats.hf_read import read_rope
from ctxextend.runtimes import DEFAULT_RUNTIMES, GGUF_RUNTIMES, READERS, Reader, readers_of
from tests.factories import family_config
from tests.methods import closed_forms as paper

ROTARY = [row for row in FAMILIES.values() if row.position == "rope" and row.refusal is None]
ROW = pytest.mark.parametrize("family", ROTARY, ids=[row.name for row in ROTARY])
READER = pytest.mark.parametrize("reader", READERS, ids=[f"{r.runtime} {r.versions}" for r in READERS])
#: Those that must agree by default: others differ in known ways (tests/runtimes).
_DEFAULT = tuple(reader for reader in READERS if reader.runtime in DEFAULT_RUNTIMES)
BY_DEFAULT = pytest.mark.parametrize("reader", _DEFAULT, ids=[f"{r.runtime} {r.versions}" for r in _DEFAULT])

LISTS = [1.0 + i for i in range(16)]
SCALINGS: dict[str, Any] = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "integer factor": {"type": "linear", "factor": 4},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": LISTS,
        "long_factor": LISTS,
        "original_max_position_embeddings": 1024,
    },
    "proportional": {"rope_type": "proportional", "factor": 2.0},
}
BROKEN: dict[str, Any] = {
    "no object": "yarn",
    "unknown type": {"rope_type": "spiral"},
    "no factor": {"rope_type": "linear"},
    "a factor of zero": {"rope_type": "linear", "factor": 0.0},
    "a factor in words": {"rope_type": "yarn", "factor": "four"},
    "bounds the wrong way round": {**SCALINGS["llama3"], "high_freq_factor": 0.5},
    "a list too short": {**SCALINGS["longrope"], "long_factor": [1.0], "short_factor": [1.0]},
}


@READER
@ROW
def test_a_plain_config_is_read(reader: Reader, family: Family) -> None:
    config = family_config(family, rope_scaling=None, rope_parameters=None)
    config.pop("rope_parameters")
    reading = reader.effective(config, family, length=1024)
    if reading.unknown is not None:
        assert len(reading.unknown) > 10
        assert not reading.tables
        return
    if reading.absent or reading.problem is not None:
        assert reading.problem
        assert not reading.tables
        return
    rope = read_rope(config, family)
    assert set(reading.tables) == {group.label for group in rope.groups if group.spec is not None}
    for group in rope.groups:
        if group.spec is None:
            continue
        found = reading.tables[group.label]
        assert len(found.inv_freq) == len(group.spec.inv_freq())
        assert all(math.isfinite(f) for f in found.inv_freq)
        assert [f > 0.0 for f in found.inv_freq] == [f > 0.0 for f in group.spec.inv_freq()]
        assert found.attention_factor > 0.0
    assert reading.max_context is not None
    assert reading.how


@READER
@pytest.mark.parametrize("kind", SCALINGS)
def test_any_scaling_is_answered_in_any_family(reader: Reader, kind: str) -> None:
    """A table a group or a sentence that says why not; never an exception."""
    for family in ROTARY:
        config = family_config(family, rope_scaling=SCALINGS[kind], max_position_embeddings=4096)
        reading = reader.effective(config, family, length=4096)
        if reading.unknown is not None:
            assert reading.problem is None, family.name
            assert not reading.tables, family.name
        elif reading.problem is None:
            assert reading.tables, family.name
            assert not reading.absent, family.name
        else:
            assert not reading.tables, family.name
            assert len(reading.problem) > 10, family.name


def broken(family: Family, settings: Any) -> dict[str, Any]:
    """Where a family's class looks for settings: one with a dictionary a label may not look at rope_scaling at all."""
    if not family.labels:
        return {"rope_scaling": settings}
    own = {**settings, "rope_theta": 10000.0} if isinstance(settings, dict) else settings
    return {"rope_parameters": dict.fromkeys(family.labels, own)}


@READER
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_a_problem_in_any_family(reader: Reader, kind: str) -> None:
    """But for classes that don't look at the dictionary at all, and those of which nothing is claimed."""
    for family in ROTARY:
        config = family_config(family, **broken(family, BROKEN[kind]))
        reading = reader.effective(config, family, length=4096)
        if reading.tables:
            scaled = reader.effective({**config, **broken(family, SCALINGS["linear"])}, family, length=4096)
            plain = reader.effective({**config, "rope_scaling": None, "rope_parameters": None}, family, length=4096)
            assert reading.tables == scaled.tables == plain.tables, family.name
        else:
            assert reading.problem or reading.unknown, family.name


def expected_of(kind: str) -> list[float]:
    plain = paper.plain(10000.0, 32)
    tables: dict[str, list[float]] = {
        "none": plain,
        "linear": paper.interpolated(10000.0, 32, 4.0),
        "yarn": paper.yarn(10000.0, 32, 4.0, 1024),
        "llama3": paper.llama3(plain, 4.0, 1024),
        "longrope": [f / factor for f, factor in zip(plain, LISTS, strict=True)],
    }
    return tables[kind]


@BY_DEFAULT
@pytest.mark.parametrize("kind", ["none", "linear", "yarn", "llama3", "longrope"])
def test_every_default_reader_has_the_papers_table_for_a_llama(reader: Reader, kind: str) -> None:
    """Where all runtimes agree (field notes, section 1), each reader must as well, with YaRN's own temperature."""
    config = family_config(FAMILIES["llama"], rope_scaling=SCALINGS[kind], max_position_embeddings=4096)
    reading = reader.effective(config, FAMILIES["llama"], length=4096)
    if kind == "longrope" and reader.versions.startswith("4."):
        # Without an original length at the top level they need a factor (modeling_rope_utils.py of 4.43 to 4.57).
        assert "factor" in (reading.problem or "")
        return
    expected = expected_of(kind)
    if kind == "yarn" and reader.versions in ("4.43-4.44", "4.45-4.47", "4.48-4.50"):
        # They take max_position_embeddings for the original length.
        expected = paper.yarn(10000.0, 32, 4.0, 4096)
    found = reading.tables["full_attention"]
    assert found.inv_freq == pytest.approx(expected, rel=1e-9)
    # longrope: sqrt(1 + ln 4 / ln 1024) = sqrt(1.2).
    temperature = {"yarn": 0.1 * math.log(4.0) + 1.0, "longrope": math.sqrt(1.2)}.get(kind, 1.0)
    assert found.attention_factor == pytest.approx(temperature, rel=1e-9)


@pytest.mark.parametrize(
    ("runtime", "kind", "length"),
    [
        ("vllm", "linear", 4 * 4096),
        ("vllm", "yarn", 4096),
        ("vllm", "llama3", 4096),
        ("sglang", "linear", 4 * 4096),
        ("sglang", "yarn", 4096),
        ("sglang", "llama3", 4096),
        ("mlx-lm", "linear", 4096),
        ("transformers", "linear", 4096),
    ],
)
def test_the_length_that_is_advertised(runtime: str, kind: str, length: int) -> None:
    """vLLM and SGLang multiply a stated length by a linear factor, even one that was raised already."""
    config = family_config(FAMILIES["llama"], rope_scaling=SCALINGS[kind], max_position_embeddings=4096)
    for reader in readers_of([runtime]):
        assert reader.effective(config, FAMILIES["llama"], length=4096).max_context == length


@READER
def test_a_reader_says_what_it_is(reader: Reader) -> None:
    assert reader.versions
    assert reader.evidence in ("run", "read")
    same = [other for other in READERS if (other.runtime, other.versions) == (reader.runtime, reader.versions)]
    assert same == [reader]
    assert reader.runtime not in GGUF_RUNTIMES


def test_a_bare_name_means_the_current_versions() -> None:
    assert [reader.versions for reader in readers_of(["transformers"])] == ["5.x", "4.56-4.57"]
    assert readers_of(["llama.cpp"]) == ()
    assert {reader.runtime for reader in readers_of(DEFAULT_RUNTIMES)} == {"transformers", "vllm", "sglang", "mlx-lm"}


def test_an_unknown_runtime_suggests_one() -> None:
    with pytest.raises(UnknownNameError) as caught:
        readers_of(["vlm"])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean vllm")
