"""Each release of transformers at an end of a range: its own models against our reading of the same config.

Each release runs in a process of its own (rope_of_model.py), all configs at once. A model that fails is a
problem in the reading and the other way round; one that doesn't exist is absent.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from ctxextend.families import FAMILIES, Family, established
from ctxextend.formats.hf_read import read_rope
from ctxextend.rope import RopeTable
from ctxextend.runtimes import READERS, Reader, Reading
from ctxextend.runtimes.transformers import Transformers5
from ctxextend.runtimes.transformers_4_families import CLASSES, SECTIONS
from ctxextend.runtimes.versions import covers
from scripts.fetch_runtimes import VERSIONS, Version
from tests.factories import family_config
from tests.reference.test_transformers_families import FLOAT32

DRIVER: Final = Path(__file__).with_name("rope_of_model.py")
LENGTHS: Final = (512, 4096, 16384)
ORIGINAL: Final = {"original_max_position_embeddings": 1024}
YARN: Final = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}
LLAMA3: Final = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
#: A config without any rope_scaling, which isn't the same as one of null.
SILENT: Final[dict[str, Any]] = {}

#: The releases that run every day, the older of them for the families of established.py; all run in the full tests.
EVERYDAY: Final = ("4.57.6", "4.51.3", "4.45.2")
#: The families that were established one by one: every kind of config is asked of these.
ONE_BY_ONE: Final = frozenset(row.name for row in established.ROWS)
#: A tower of pictures as small as it gets, for classes that build one.
VISION: Final = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "intermediate_size": 32,
    "fullatt_block_indexes": [0],
}
#: What of a config some releases of one range read otherwise than others: nothing is claimed of it there.
NOT_CLAIMED: Final = {"yarn untruncated": "4.51-4.55"}
#: Failing dictionaries that no publisher writes, and that one release of a range lets through.
NOT_ASKED: Final = {("deepseek_v3", "yarn with a factor of null")}
#: Releases that have a family's wrapper, but not yet the language model on its own, which is what is built here.
NO_TEXT_CLASS: Final = {("llama4", "4.51.3")}


class Grid(NamedTuple):
    """The kinds of config, each as the changes that it makes to a family's plain one."""

    everyday: Mapping[str, dict[str, Any]]
    full: Mapping[str, dict[str, Any]]
    close: Mapping[str, dict[str, Any]]


def without(settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def scaled(settings: Any, **changes: Any) -> dict[str, Any]:
    return {"rope_scaling": settings, **changes}


def grid(pairs: int) -> Grid:
    """The kinds of config for a rope of so many pairs."""
    lists = {"short_factor": [1.0 + i / 8 for i in range(pairs)], "long_factor": [2.0 + 3.0 * i for i in range(pairs)]}
    longrope = {"rope_type": "longrope", **lists}
    everyday = {
        "plain": SILENT,
        "linear": scaled({"type": "linear", "factor": 4.0}),
        "yarn": scaled(YARN),
        "yarn as cards have it": scaled(YARN, max_position_embeddings=1280),
        "llama3": scaled(LLAMA3),
        "longrope": scaled({**longrope, "factor": 4.0, **ORIGINAL}),
        "longrope, three keys": scaled({"type": "longrope", **lists}, **ORIGINAL),
    }
    full = {
        "another base": {"rope_theta": 123456.0},
        "null": scaled(None),
        "default": scaled({"rope_type": "default"}),
        "linear by rope_type": scaled({"rope_type": "linear", "factor": 4.0}),
        "linear with a whole factor": scaled({"type": "linear", "factor": 4}),
        "dynamic": scaled({"rope_type": "dynamic", "factor": 4.0}),
        "yarn by type": scaled({**without(YARN, "rope_type"), "type": "yarn"}),
        "yarn with a pair of weights": scaled({**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}),
        "yarn beside another type": scaled({**YARN, "type": "linear"}),
        "yarn beside the newer form": scaled(YARN, rope_parameters={"rope_type": "linear", "factor": 8.0}),
        "longrope by the top level": scaled(longrope, **ORIGINAL),
        "a share of the head": {"partial_rotary_factor": 0.5},
    }
    close = {
        "empty": scaled({}),
        "no type": scaled({"factor": 4.0}),
        "an unknown type": scaled({"rope_type": "spiral", "factor": 2.0}),
        "an older name": scaled({**without(longrope, "rope_type"), "type": "su"}),
        "the newer form alone": {"rope_parameters": {**YARN, "rope_theta": 500000.0}},
        "one dictionary a layer type": scaled({"full_attention": YARN}),
        "a base in the dictionary": scaled({**YARN, "rope_theta": 500000.0}),
        "a share of the head, scaled": scaled(YARN, partial_rotary_factor=0.5),
        "linear without a factor": scaled({"rope_type": "linear"}),
        "linear below one": scaled({"rope_type": "linear", "factor": 0.5}),
        "dynamic over a short length": scaled({"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=1024),
        "yarn without an original length": scaled(without(YARN, "original_max_position_embeddings")),
        "yarn with an original length of null": scaled({**YARN, "original_max_position_embeddings": None}),
        "yarn over the top level's length": scaled(YARN, original_max_position_embeddings=2048),
        "yarn, length not raised": scaled(YARN, max_position_embeddings=1024),
        "yarn with a temperature": scaled({**YARN, "attention_factor": 1.25}),
        "yarn with one weight": scaled({**YARN, "mscale": 2.0}),
        "yarn with a factor of null": scaled({**YARN, "factor": None}),
        "yarn without a factor": scaled(without(YARN, "factor")),
        "yarn below one": scaled({**YARN, "factor": 0.5}),
        "yarn with other bounds": scaled({**YARN, "beta_fast": 16.0, "beta_slow": 2.0}),
        "yarn untruncated": scaled({**YARN, "truncate": False}),
        "llama3 without an original length": scaled(without(LLAMA3, "original_max_position_embeddings")),
        "llama3 over the top level's length": scaled(LLAMA3, original_max_position_embeddings=2048),
        "longrope without a factor": scaled({**longrope, **ORIGINAL}),
        "longrope with a temperature": scaled({**longrope, "factor": 4.0, "attention_factor": 1.25}),
        "longrope with both lengths": scaled({**longrope, **ORIGINAL}, original_max_position_embeddings=2048),
        "longrope with a length of null": scaled({**longrope, "factor": 4.0}, original_max_position_embeddings=None),
        "longrope, length not raised": scaled({**longrope, "factor": 4.0}, max_position_embeddings=1024, **ORIGINAL),
    }
    return Grid(everyday, {**everyday, **full}, {**everyday, **full, **close})


def reader_of(version: str) -> Reader:
    return next(r for r in READERS if r.runtime == "transformers" and covers(r.versions, version))


def minor(version: str) -> int:
    return int(version.split(".")[1])


def claimed(version: str) -> list[str]:
    """The families that a release has and whose reading in it is claimed."""
    found = []
    for name, classes in CLASSES.items():
        manners = [manner for since, manner in classes if since <= minor(version)]
        if name in FAMILIES and manners and manners[-1] is not None:
            found.append(name)
    return sorted(found)


def configs_of(family: Family, *, everyday: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    plain = family_config(family, max_position_embeddings=4096)
    specs = [group.spec for group in read_rope(plain, family).groups if group.spec is not None]
    kinds = grid(len(specs[0].inv_freq()))
    chosen = kinds.everyday if everyday else kinds.close if family.name in ONE_BY_ONE else kinds.full
    for kind, changes in chosen.items():
        if (family.name, kind) not in NOT_ASKED:
            config = {**plain, **changes}
            if family.name in SECTIONS:
                config |= {"model_type": family.name, "vision_config": VISION}
            yield kind, config


def ask(questions: list[dict[str, Any]], version: Version | None) -> dict[str, dict[str, Any]]:
    """What a release answers, by question; without one, the transformers of this environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    if version is not None:
        reason = version.unavailable()
        if reason is not None:
            pytest.skip(reason)
        if not version.folder.is_dir():
            pytest.fail(f"transformers {version.transformers} isn't set up: python scripts/fetch_runtimes.py")
        environment["PYTHONPATH"] = str(version.folder)
    asked = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run(
        [sys.executable, str(DRIVER)], input=asked, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, *answers = (json.loads(line) for line in done.stdout.splitlines())
    if version is not None:
        assert said["version"] == version.transformers
    assert len(answers) == len(questions)
    return {answer["id"]: answer for answer in answers}


@functools.cache
def answers_of(version: Version, *, everyday: bool) -> dict[str, dict[str, Any]]:
    """All that one release is asked, in one process."""
    questions: list[dict[str, Any]] = [
        {"id": name, "model_types": row.model_types} for name, row in FAMILIES.items() if row.position == "rope"
    ]
    for name in claimed(version.transformers):
        if everyday and version is not VERSIONS[0] and name not in ONE_BY_ONE:
            continue
        for kind, config in configs_of(FAMILIES[name], everyday=everyday):
            questions.append({"id": f"{name} {kind}", "config": config, "lengths": LENGTHS})
    return ask(questions, version)


def same(reading: Reading, answer: Mapping[str, Any], length: int) -> None:
    """Every rope that the model computes at a length is the one that was read, and nothing else was read."""
    found = [rope for rope in answer["ropes"] if rope["length"] == length]
    assert found
    local = any("local" in rope["module"] for rope in found)
    seen = set()
    for rope in found:
        tables = tables_of(reading, rope["module"], local=local)
        for label, table in tables.items():
            assert rope["inv_freq"] == pytest.approx(table.inv_freq, rel=FLOAT32)
            assert rope["attention"] == pytest.approx(table.attention_factor, rel=FLOAT32)
            seen.add(label)
    assert seen == set(reading.tables)
    if answer["softmax"]:
        expected = {table.softmax_factor for table in reading.tables.values()}
        assert answer["softmax"] == pytest.approx(sorted(expected), rel=1e-9)


def tables_of(reading: Reading, module: str, *, local: bool) -> Mapping[str, RopeTable]:
    """The tables that a rotary module stands for: its layer type's, or all of them."""
    for label in ("sliding_attention", "full_attention", "chunked_attention"):
        if label in module or (label == "sliding_attention" and "local" in module):
            return {label: reading.tables[label]} if label in reading.tables else {}
    return {"full_attention": reading.tables["full_attention"]} if local else reading.tables


def agrees(reader: Reader, family: Family, kind: str, config: dict[str, Any], answer: Mapping[str, Any]) -> None:
    readings = {length: reader.effective(config, family, length=length) for length in LENGTHS}
    first = readings[LENGTHS[0]]
    assert not first.absent
    assert "absent" not in answer
    if first.unknown is not None:
        assert NOT_CLAIMED.get(kind) == reader.versions
        return
    if "error" in answer:
        assert all(reading.problem for reading in readings.values()), answer["error"]
        return
    for length, reading in readings.items():
        assert reading.problem is None
        same(reading, answer, length)
    if kind != "dynamic" and not kind.startswith("dynamic "):
        assert first.max_context == answer["mpe"]


def later(reading: Reading, version: str) -> bool:
    """Whether a reading says of itself that it holds for later releases of the range only."""
    said = reading.problem or ""
    return ", from 4." in said and minor(version) < int(said.split(", from 4.")[1].split()[0])


def disagreements(version: Version, name: str, *, everyday: bool) -> Iterator[str]:
    family, reader = FAMILIES[name], reader_of(version.transformers)
    answers = answers_of(version, everyday=everyday)
    for kind, config in configs_of(family, everyday=everyday):
        answer = answers[f"{name} {kind}"]
        if "absent" in answer and (name, version.transformers) in NO_TEXT_CLASS:
            continue
        said = reader.effective(config, family, length=LENGTHS[0])
        if later(said, version.transformers):
            if "without a head_dim" not in (said.problem or ""):
                if "ropes" not in answer:
                    yield f"{kind}: {answer}"
                continue
            # This release works the head's size out by itself.
            config["head_dim"] = 32
        try:
            agrees(reader, family, kind, config, answer)
        except AssertionError as error:
            yield f"{kind}: {error}"


def cases(*, everyday: bool) -> list[Any]:
    return [
        pytest.param(version, name, id=f"{version.transformers} {name}")
        for version in VERSIONS
        if not everyday or version.transformers in EVERYDAY
        for name in claimed(version.transformers)
        if not everyday or version is VERSIONS[0] or name in ONE_BY_ONE
    ]


@pytest.mark.parametrize(("version", "name"), cases(everyday=True))
def test_the_reading_is_what_the_model_computes(version: Version, name: str) -> None:
    assert list(disagreements(version, name, everyday=True)) == []


@pytest.mark.full
@pytest.mark.parametrize(("version", "name"), cases(everyday=False))
def test_the_reading_is_what_the_model_computes_of_any_config(version: Version, name: str) -> None:
    assert list(disagreements(version, name, everyday=False)) == []


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(v, id=v.transformers, marks=() if v.transformers in EVERYDAY else pytest.mark.full)
        for v in VERSIONS
    ],
)
def test_a_family_is_absent_where_its_class_is(version: Version) -> None:
    """Within a range that a class came with, the reading says with which release."""
    answers = answers_of(version, everyday=version.transformers in EVERYDAY)
    for name, row in FAMILIES.items():
        if row.position != "rope" or row.refusal is not None:
            continue
        reading = reader_of(version.transformers).effective(family_config(row), row, length=1024)
        if answers[name]["known"]:
            assert not reading.absent, name
        elif not reading.absent and reading.unknown is None:
            assert "came with" in (reading.caution or ""), name


#: What only the readings of transformers 5 itself must hold, beside test_transformers_families.py.
OF_5: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    # Phi-3's class takes longrope alone.
    ("phi3", scaled({"rope_type": "linear", "factor": 4.0})),
    ("phi3", scaled(YARN)),
    ("phi3", scaled(LLAMA3)),
    # Only Phi-3's class translates the older name.
    ("llama", scaled({**without(YARN, "rope_type"), "type": "su"})),
    # Families that rotate whole heads: a share of them counts for scaled ropes.
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama", scaled(YARN, partial_rotary_factor=0.5)),
    ("llama", scaled({**YARN, "partial_rotary_factor": 0.5})),
    # A dictionary under a name that is no layer type is a stranger.
    ("llama", scaled({**YARN, "remarks": {"by": "hand"}})),
    ("qwen3", scaled({**YARN, "remarks": {"by": "hand"}})),
    # The top level's original length counts in flat settings alone.
    ("llama", scaled(YARN, original_max_position_embeddings=2048)),
    ("gemma3", scaled(YARN, original_max_position_embeddings=2048)),
    ("gemma3", scaled(YARN, rope_parameters={"rope_type": "linear", "factor": 8.0})),
)


@functools.cache
def answers_of_5() -> dict[str, dict[str, Any]]:
    asked = [
        {"id": str(i), "config": config_of_5(name, changes), "lengths": LENGTHS}
        for i, (name, changes) in enumerate(OF_5)
    ]
    return ask(asked, None)


def config_of_5(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {**family_config(FAMILIES[name], max_position_embeddings=4096), **changes}


@pytest.mark.parametrize("index", range(len(OF_5)), ids=lambda i: f"{OF_5[i][0]} {i}")
def test_transformers_5_by_itself(index: int) -> None:
    name, changes = OF_5[index]
    answer = answers_of_5()[str(index)]
    agrees(Transformers5(), FAMILIES[name], "of 5", config_of_5(name, changes), answer)
