"""Several processes that run one model: torchrun on the CPU, and what a process knows of the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctxextend import Recipe, open_source, plan_source, run_plan
from ctxextend.lab.engines import host, ranks

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "checkpoint"


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """``command`` in two processes, which each get one thread."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*start, *command],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    )


def test_alone_a_process_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.is_first()) == (0, True)
    assert ranks.agreed({"a": [1]}) == {"a": [1]}


def test_torchrun_numbers_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (ranks.rank(), ranks.is_first()) == (3, False)
    # Nobody has connected them yet.
    assert ranks.agreed([1, 2]) == [1, 2]


def test_ranks_need_no_torch() -> None:
    script = "import sys; from ctxextend.lab.engines import ranks; ranks.agreed(1); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_memory_isnt_told_where_the_system_doesnt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (host.peak_memory_bytes() or 0) > 10_000_000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert host.peak_memory_bytes() is None


@pytest.mark.full
def test_what_the_first_process_says_holds_for_all(tmp_path: Path) -> None:
    script = tmp_path / "agree.py"
    script.write_text(
        "import pathlib, sys, torch.distributed as processes\n"
        "from ctxextend.lab.engines import ranks\n"
        "processes.init_process_group('gloo')\n"
        "found = ranks.agreed({'mine': ranks.rank(), 'kept': [1.5, None, 'x'] * (ranks.rank() + 1)})\n"
        "pathlib.Path(sys.argv[1], f'{ranks.rank()}').write_text(repr((ranks.is_first(), found)))\n"
        "processes.destroy_process_group()\n"
    )
    run = torchrun(str(script), str(tmp_path))
    assert run.returncode == 0, run.stderr[-2000:]
    for number, first in ((0, True), (1, False)):
        said = (tmp_path / str(number)).read_text()
        assert said == repr((first, {"mine": 0, "kept": [1.5, None, "x"]}))


@pytest.mark.full
def test_smoke_under_torchrun_speaks_once(tmp_path: Path) -> None:
    opened = open_source(str(DEMO))
    run_plan(plan_source(opened, Recipe(method="yarn", target=1024)), opened, tmp_path / "yarn")
    options = ("smoke", str(tmp_path / "yarn"), "--length", "512", "--text", str(DEMO.parent / "heldout.txt"), "--json")
    run = torchrun("-m", "ctxextend", *options)
    # One document and nothing else: json.loads refuses anything behind it.
    report = json.loads(run.stdout)
    assert report["schema"] == "ctxextend.smoke/1", run.stderr[-2000:]
    assert report["device"].endswith("tensor parallel over 2")
    assert report["ok"], report["checks"]
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.full
def test_eval_under_torchrun_writes_once_and_goes_on_together(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    options = (
        "eval",
        str(DEMO),
        "--lengths",
        "128",
        "--tasks",
        "perplexity",
        "--windows",
        "1",
        "--report",
        str(folder),
    )
    text = ("--text", str(DEMO.parent / "heldout.txt"), "--json")
    runs = [torchrun("-m", "ctxextend", *options, *text) for _ in range(2)]
    first, second = (json.loads(run.stdout) for run in runs)
    assert first["curves"] == second["curves"]
    # All of them kept: the second run reads nothing, and no process waits for another.
    assert second["cost"]["tokens"] <= first["cost"]["tokens"]
    shutil.rmtree(folder)
