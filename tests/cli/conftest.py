"""Checkpoints that the command-line tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import DEMO, MISTRAL, build, tree
from tests.fake_hub import FakeHub, serve
from tests.hub_shell import Run, Shell, emptied, shell


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return build(tmp_path_factory.mktemp("pristine") / "tiny")


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a sliding window, which no test changes."""
    return build(tmp_path_factory.mktemp("windowed") / "tiny", MISTRAL)


@pytest.fixture(scope="session")
def excerpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The option for a quarter of the held-out text: llama.cpp takes seconds to find the tokens of the whole."""
    file = tmp_path_factory.mktemp("excerpt") / "excerpt.txt"
    file.write_bytes((DEMO.parent / "heldout.txt").read_bytes()[:24_000])
    return "--text", file


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    """A copy for this test alone."""
    return Path(shutil.copytree(pristine, tmp_path / "source"))


@pytest.fixture(scope="module")
def demo_is_left_alone() -> Iterator[None]:
    """Whatever a module runs on the demo checkpoint, it stays as it is."""
    before = tree(DEMO)
    yield
    assert tree(DEMO) == before


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The command in a process that speaks to a Hub on the loopback."""
    with serve() as hub, shell(hub, tmp_path_factory.mktemp("home")) as command:
        yield command


@pytest.fixture
def hub(running: Shell, tmp_path: Path) -> FakeHub:
    """That Hub, empty."""
    return emptied(running.hub, tmp_path / "hub")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the command runs."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def run(running: Shell, hub: FakeHub, here: Path) -> Run:
    """The command with a token."""
    assert hub is running.hub
    return Run(running, here)
