"""The command line against a Hub on the loopback, in a process of its own.

The client reads its environment when it is imported, so that a process serves one Hub: each line of JSON that it gets
is one run of the command. Waits between attempts are told, and not waited out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from safetensors.numpy import save_file

from tests.factories import config
from tests.fake_hub import FakeHub

ROOT = Path(__file__).resolve().parent.parent

TOKEN = "hf_averysecrettokenthatmustnotbeseen"
TARGET = "me/tiny-4k"
WEIGHTS = "model-00001-of-00002.safetensors"
MORE = "model-00002-of-00002.safetensors"

_LOOP = """
import contextlib, io, json, logging, os, sys, time

slept = []
time.sleep = slept.append
from ctxextend.cli import main

real_out = sys.stdout
for line in sys.stdin:
    run = json.loads(line)
    os.chdir(run["folder"])
    os.environ.update(run["environment"])
    sys.argv = ["ctxextend", *run["arguments"]]
    slept.clear()
    out, err = io.StringIO(), io.StringIO()
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.setStream(err)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main._run(as_json="--json" in sys.argv)
    for name in run["environment"]:
        os.environ.pop(name)
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.setStream(sys.__stderr__)
    answer = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "slept": list(slept)}
    print(json.dumps(answer), file=real_out, flush=True)
"""


class Ran(NamedTuple):
    """What a run left; ``slept``: the waits between attempts, in seconds."""

    code: int
    out: str
    err: str
    slept: list[float]

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Shell:
    """A process that runs the command against one Hub."""

    def __init__(self, hub: FakeHub, home: Path, **variables: str) -> None:
        self.hub = hub
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            env=environment,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, *arguments: str | Path, **environment: str) -> Ran:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        run = {"folder": str(folder), "arguments": [str(one) for one in arguments], "environment": environment}
        self._process.stdin.write(json.dumps(run) + "\n")
        self._process.stdin.flush()
        return Ran(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


@contextmanager
def shell(hub: FakeHub, home: Path, **variables: str) -> Iterator[Shell]:
    """A running one."""
    with Shell(hub, home, **variables) as running:
        yield running


def emptied(hub: FakeHub, storage: Path) -> FakeHub:
    """A Hub that runs, with nothing left in it but who may write."""
    fresh = FakeHub()
    fresh.url, fresh.storage, fresh.tokens[TOKEN] = hub.url, storage, True
    vars(hub).clear()
    vars(hub).update(vars(fresh))
    return hub


class Run:
    """The command with a token, in the test's own folder."""

    def __init__(self, command: Shell, folder: Path) -> None:
        self._command = command
        self._folder = folder

    def __call__(self, *arguments: str | Path, token: str | None = TOKEN, **environment: str) -> Ran:
        if token is not None:
            environment["HF_TOKEN"] = token
        ran = self._command(self._folder, *arguments, **environment)
        assert TOKEN not in ran.out + ran.err
        return ran


def checkpoint(folder: Path, *, fill: float = 1.0) -> Path:
    """A checkpoint of two files of weights, with a card."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(), indent=2))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Tiny\n\nA tiny model.\n")
    ones = np.full((64, 64), fill, np.float32)
    save_file({"model.embed_tokens.weight": ones}, folder / WEIGHTS)
    save_file({"lm_head.weight": ones * 2}, folder / MORE)
    places = {"model.embed_tokens.weight": WEIGHTS, "lm_head.weight": MORE}
    index = {"metadata": {"total_size": 2 * ones.nbytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def published(hub: FakeHub, repo_id: str = TARGET, branch: str = "main") -> Path:
    repository = hub.repositories[repo_id]
    return repository.commits[repository.branches[branch]]


def hows(ran: Ran) -> dict[str, str]:
    return {file["path"]: file["how"] for file in ran.document["files"]}
