"""Whichever way a checkpoint goes from safetensors to GGUF and back, an extension means one table.

Each checkpoint is the demo model under other settings. The tables are read back from what was written, not taken from
plans: of a GGUF file as llama.cpp reads it, of a folder as transformers does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from ctxextend import checkpoint
from ctxextend.families import find_family
from ctxextend.pipeline import inspect_source, open_source, plan_source, run_plan
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeTable
from ctxextend.runtimes.llama_cpp import LlamaCpp
from ctxextend.runtimes.transformers import Transformers5

DEMO: Final = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
L: Final = 256
TARGET: Final = 2048

LINEAR: Final = {"rope_type": "linear", "factor": 4.0}
YARN: Final = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L}
LLAMA3: Final = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

#: Settings of config.json, and what the user must say of them.
CASES: Final[Mapping[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "plain": ({}, {}),
    "linear, trained in": ({"rope_scaling": LINEAR}, {"base": "trained", "original_context": L}),
    "linear, added": (
        {"rope_scaling": LINEAR, "max_position_embeddings": 4 * L},
        {"base": "unscaled", "original_context": L},
    ),
    "yarn, added": ({"rope_scaling": YARN, "max_position_embeddings": 4 * L}, {"base": "unscaled"}),
    "yarn, trained in": ({"rope_scaling": YARN, "max_position_embeddings": 4 * L}, {"base": "trained"}),
    "yarn that says it wasn't trained": (
        {"rope_scaling": {**YARN, "finetuned": False}, "max_position_embeddings": 4 * L},
        {},
    ),
    "dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, {}),
    "llama3": ({"rope_scaling": LLAMA3}, {}),
    "llama3, taken off": ({"rope_scaling": LLAMA3}, {"base": "unscaled"}),
    "a window": ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4096}, {}),
}
METHODS: Final = ("ntk", "linear", "yarn")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    return made(request.param, tmp_path)


def made(name: str, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a case, and what is to be said of it."""
    changes, said = CASES[name]
    folder = tmp_path / "source"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
    (folder / "config.json").write_text(json.dumps({"rope_theta": 10000.0, **config, **changes}))
    return folder, dict(said)


def convert(source: Path, out: Path, **recipe: Any) -> Path:
    opened = open_source(source)
    path, _ = run_plan(plan_source(opened, Recipe(**recipe)), opened, out)
    return path


def read(path: Path, length: int) -> RopeTable:
    contents = checkpoint.read(checkpoint.resolve(str(path)))
    if contents.gguf is not None:
        tables = LlamaCpp().effective(contents.gguf, length=length).tables
    else:
        tables = Transformers5().effective(contents.config, find_family(contents.config), length=length).tables
    (found,) = tables.values()
    return found


def same(one: RopeTable, other: RopeTable) -> bool:
    close = abs(one.attention_factor / other.attention_factor - 1.0) < 1e-4
    return close and one.error_against(other) < 2e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_an_extended_file_gives_one_table(
    case: tuple[Path, dict[str, Any]], tmp_path: Path, method: str
) -> None:
    source, said = case
    asked: dict[str, Any] = {"method": method, "target": TARGET}
    if said.get("base") == "trained" and "yarn" in (source / "config.json").read_text() and method == "yarn":
        # Which of its two forms is taken hangs on what the format can hold: one is settled on.
        asked["options"] = {"compose": "factor"}
    direct = convert(source, tmp_path / "direct.gguf", **asked, **said, to="gguf")
    goal = read(direct, TARGET)
    folder = convert(source, tmp_path / "folder", **asked, **said, runtimes=("transformers",))
    assert same(read(folder, TARGET), goal), "the folder"
    assert same(read(convert(folder, tmp_path / "b.gguf", to="gguf"), TARGET), goal), "exported when extended"
    plain = convert(source, tmp_path / "plain.gguf", **said, to="gguf")
    assert same(read(convert(plain, tmp_path / "c.gguf", **asked), TARGET), goal), "extended when exported"
    # From another extension, and from this one, back to the base.
    other = convert(direct, tmp_path / "d.gguf", method="llama3", target=2 * TARGET)
    assert same(read(convert(other, tmp_path / "e.gguf", **asked), TARGET), goal), "the second conversion"
    back = convert(direct, tmp_path / "back", to="safetensors", runtimes=("transformers",))
    assert same(read(back, TARGET), goal), "back to safetensors"
    again = convert(other, tmp_path / "again", **asked, to="safetensors", runtimes=("transformers",))
    assert same(read(again, TARGET), goal), "back, and anew"
    assert same(read(convert(back, tmp_path / "f.gguf", to="gguf"), TARGET), goal), "there, back and there"


def test_as_it_is(case: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    source, said = case
    inspection = inspect_source(open_source(source), Recipe(**said))
    length = inspection.current_context
    goal = read(source, length)
    file = convert(source, tmp_path / "x.gguf", **said, to="gguf")
    assert same(read(file, length), goal)
    found = inspect_source(open_source(file), Recipe())
    assert found.trained_context == inspection.trained_context
    assert found.current_context == length
    back = convert(file, tmp_path / "back", to="safetensors", runtimes=("transformers",))
    assert same(read(back, length), goal)
    # What was said of the scaling once isn't asked again.
    assert inspect_source(open_source(back), Recipe()).trained_context in (inspection.trained_context, length)


@pytest.mark.parametrize("to", ["folder", "gguf"])
@pytest.mark.parametrize("name", ["yarn that says it wasn't trained", "dynamic", "llama3"])
def test_another_view_of_the_base_brings_its_own_length(tmp_path: Path, name: str, to: str) -> None:
    """Taken off, a scaling that was trained in leaves the length from before it, also after a conversion."""
    source, _ = made(name, tmp_path)
    fresh = plan_source(open_source(source), Recipe(method="linear", target=TARGET, base="unscaled"))
    out = tmp_path / ("x.gguf" if to == "gguf" else "x")
    once = convert(source, out, method="linear", target=4 * L, **({"to": "gguf"} if to == "gguf" else {}))
    later = plan_source(open_source(once), Recipe(method="linear", target=TARGET, base="unscaled"))
    assert later.trained_context == fresh.trained_context
    assert later.factor == fresh.factor
