"""As a pipeline runs it: no terminal, no standard input, a home that can't be entered, hardly any environment.

``HOME`` is ``/dev/null``, under which nothing can be made or read even by root.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import DEMO, Ran
from tests.fake_hub import FakeHub, serve
from tests.hub_shell import TOKEN, checkpoint, emptied, published

ROOT = Path(__file__).resolve().parents[2]
BARE = {
    "PATH": os.defpath,
    "HOME": os.devnull,
    "TERM": "dumb",
    "CI": "true",
    "NO_COLOR": "1",
    "LANG": "C",
    "COLUMNS": "40",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
#: What other libraries say about a home, about threads, or about what they think of a model's files.
CHATTER = re.compile(
    r"[Mm]atplotlib|TOKENIZERS_PARALLELISM|generation flags|torch_dtype|unauthenticated"
    r"|[a-z]Warning|warn\(|Traceback|%\|"
)


def run(*arguments: str | Path, cwd: Path, code: int = 0, variables: dict[str, str] | None = None) -> Ran:
    """The command with stdin closed and its log in pipes."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "-", sys.executable, "-m", "ctxextend", *map(str, arguments)],
        cwd=cwd,
        env={**BARE, **(variables or {})},
        capture_output=True,
        timeout=120,
        check=False,
    )
    ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert ran.code == code, ran
    for text in (ran.out, ran.err):
        assert "\r" not in text
        assert "\x1b" not in text
        assert "\b" not in text
        assert not CHATTER.search(text), text
    return ran


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted model, and a text."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "text.txt").write_bytes((DEMO.parent / "heldout.txt").read_bytes()[:24_000])
    ran = run("convert", DEMO, "-m", "yarn", "-t", "1k", "--out", "model", cwd=folder)
    assert ran.out == "model\n"
    return folder


@pytest.fixture(scope="module")
def running() -> Iterator[FakeHub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(running: FakeHub, tmp_path: Path) -> FakeHub:
    emptied(running, tmp_path / "hub").add("org/tiny", checkpoint(tmp_path / "source"))
    return running


def online(hub: FakeHub, **more: str) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **more}


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "model"),
        ("plan", DEMO, "-m", "ntk", "-t", "1k"),
        ("check", "model"),
        ("smoke", "model", "--length", "512"),
        ("convert", DEMO, "-m", "yarn", "-t", "1k", "--to", "gguf", "--outtype", "q8_0", "--out", "model.gguf"),
        ("smoke", "model.gguf", "--length", "512"),
        ("methods",),
        ("convert", "--help"),
    ],
    ids=["inspect", "plan", "check", "smoke", "gguf", "smoke-gguf", "methods", "help"],
)
def test_a_log_has_lines_and_nothing_else(place: Path, arguments: tuple[str | Path, ...]) -> None:
    assert run(*arguments, cwd=place).out


def test_the_same_exit_codes(place: Path) -> None:
    run("smoke", DEMO, "--length", "1k", "--no-passkey", cwd=place, code=4)
    run("convert", DEMO, "-m", "yarn", "-t", "1k", "--out", "model", cwd=place, code=3)
    run("plan", DEMO, "-m", "nonsense", "-t", "1k", cwd=place, code=2)
    (place / "broken").mkdir()
    (place / "broken" / "config.json").write_text("{")
    run("inspect", "broken", cwd=place, code=1)


def test_an_evaluation_draws_its_charts_without_a_home(place: Path) -> None:
    options = ("--lengths", "512", "--windows", "1", "--tasks", "perplexity", "--text", "text.txt")
    ran = run("eval", "model", "--against", "original", *options, "--report", "evidence", cwd=place)
    assert "evidence" in ran.err
    assert (place / "evidence" / "report.html").is_file()
    assert list((place / "evidence").glob("*.png"))


def test_pushing_needs_no_home(place: Path, hub: FakeHub) -> None:
    ran = run("push", "model", "me/bare", cwd=place, variables=online(hub, HF_TOKEN=TOKEN))
    assert "model.safetensors" in {file.name for file in published(hub, "me/bare").iterdir()}
    assert TOKEN not in ran.out + ran.err


def test_a_given_token_needs_no_home(place: Path, hub: FakeHub) -> None:
    run("push", "model", "me/given", "--token", TOKEN, cwd=place, variables=online(hub))
    assert published(hub, "me/given").is_dir()


def test_no_token_anywhere_is_told(place: Path, hub: FakeHub) -> None:
    ran = run("push", "model", "me/none", cwd=place, code=1, variables=online(hub))
    assert "no token" in ran.err
    assert "HF_TOKEN" not in ran.out


def test_reading_a_public_repository_needs_a_cache_and_no_login(tmp_path: Path, hub: FakeHub) -> None:
    ran = run("inspect", "org/tiny", "--cache-dir", "cache", cwd=tmp_path, variables=online(hub))
    assert "tiny  (llama)" in ran.out
    ran = run("inspect", "org/tiny", cwd=tmp_path, code=1, variables=online(hub, HF_TOKEN=TOKEN))
    assert "--cache-dir or HF_HOME" in ran.err
