"""The names of ``import ctxextend``: few, sorted, documented, and used as their page says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import typing
from pathlib import Path

import pytest

import ctxextend
from ctxextend.version import VERSION
from tests.factories import config, write_checkpoint


def test_the_names_are_sorted_and_there() -> None:
    assert list(ctxextend.__all__) == sorted(ctxextend.__all__)
    assert len(set(ctxextend.__all__)) == len(ctxextend.__all__)
    for name in ctxextend.__all__:
        assert hasattr(ctxextend, name), name


def test_nothing_else_is_offered() -> None:
    public = {
        name
        for name, value in vars(ctxextend).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name not in ctxextend.__all__
    }
    assert public == {"VERSION"}  # which __version__ repeats


@pytest.mark.parametrize("name", ctxextend.__all__)
def test_each_name_is_documented(name: str) -> None:
    value = getattr(ctxextend, name)
    if name == "__version__":
        assert value == VERSION
        return
    if typing.get_origin(value) is not None or isinstance(value, type(int | str)):
        # A union of classes is documented by its members.
        for member in typing.get_args(value):
            assert inspect.getdoc(member)
        return
    documentation = value.__doc__
    assert documentation
    assert not documentation.startswith(f"{name}("), "a generated signature is no documentation"


def test_a_star_import_gives_them_all() -> None:
    module = importlib.import_module("ctxextend")
    assert {name for name in module.__all__ if not name.startswith("__")} <= set(dir(module))


def test_the_example_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint is the demo's: 256 tokens, made 1024."""
    write_checkpoint(tmp_path / "demo" / "checkpoint", config(max_position_embeddings=256))
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(ctxextend, report=True)
    assert result.attempted >= 4
    assert result.failed == 0


def test_the_verbs_from_a_folder_to_a_folder(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny", config())
    opened = ctxextend.open_source(source)
    plan = ctxextend.plan_source(opened, ctxextend.Recipe(method="ntk", target=4096))
    out, manifest = ctxextend.run_plan(plan, opened, tmp_path / "out")
    assert manifest.plan.digest == plan.digest
    again = ctxextend.inspect_source(ctxextend.open_source(out), ctxextend.Recipe())
    assert (again.trained_context, again.current_context) == (1024, 4096)
