"""``ctxextend run`` as a user sees it: in one go, resumed, killed at any step, split among machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.recipes import MATRIX, QUICK, bytes_of, states, statuses, written
from tests.cli.support import DEMO
from tests.fake_hub import FakeHub
from tests.hub_shell import ROOT, TOKEN, Run, checkpoint, emptied, published


def test_the_demo_recipe_in_one_command(run: Run, hub: FakeHub, here: Path) -> None:
    (here / "demo").symlink_to(DEMO.parent)
    before = bytes_of(DEMO)
    first = run("run", "demo/recipe.yaml", "--var", "org=me", "--json")
    assert first.code == 0, first.err + first.out
    assert states(first) == [
        ("convert", "demo-1k", "done"),
        ("convert", "demo-1k-GGUF", "done"),
        ("check", "demo-1k", "done"),
        ("check", "demo-1k-GGUF", "done"),
        ("smoke", "demo-1k", "done"),
        ("eval", "demo-1k", "done"),
        ("card", "demo-1k", "done"),
        ("card", "demo-1k-GGUF", "done"),
        ("push", "demo-1k", "done"),
        ("push", "demo-1k-GGUF", "done"),
    ]
    out = here / "build" / "demo-release"
    files = published(hub, "me/demo-1k")
    assert (files / "model.safetensors").read_bytes() == (DEMO / "model.safetensors").read_bytes()
    assert json.loads((files / "config.json").read_text())["max_position_embeddings"] == 1024
    card = (files / "README.md").read_text()
    assert "perplexity" in card
    assert "evidence/perplexity.png" in card
    assert (files / "evidence" / "perplexity.png").exists()
    assert card == (out / "evidence" / "demo-1k" / "README.md").read_text()
    assert sorted(path.name for path in published(hub, "me/demo-1k-GGUF").glob("*.gguf")) == [
        "demo-1k-F16.gguf",
        "demo-1k-Q8_0.gguf",
    ]
    assert hub.repositories["me/demo-1k"].private
    assert json.loads((out / "results.json").read_text()) == first.document
    assert "| recipe | yes | yes | yes | yes | yes | yes |" in (out / "results.md").read_text()
    assert bytes_of(DEMO) == before
    assert not any(TOKEN.encode() in path.read_bytes() for path in here.rglob("*") if path.is_file())
    asked = len(hub.requests)
    again = run("run", "demo/recipe.yaml", "--var", "org=me", "--json")
    assert statuses(again) == {"unchanged"}
    # What is left is the question whether the repositories may still be written to.
    assert {request.method for request in hub.requests[asked:]} == {"GET"}


#: The recipe that comes with the project, which measures too; its outputs and repositories named as those of the other.
DEMONSTRATION: Final = (
    (DEMO.parent / "recipe.yaml")
    .read_text(encoding="utf-8")
    .replace("demo-1k", "long")
    .replace("${org}", "me")
    .replace("variables:\n  org: null\n", "")
    .replace("demo/", f"{DEMO.parent}/")
)


@pytest.mark.parametrize(
    ("recipe", "count"), [(QUICK, 8), pytest.param(DEMONSTRATION, 10, marks=pytest.mark.full)], ids=["quick", "demo"]
)
@pytest.mark.parametrize("when", ["before it is done", "after it was done"])
def test_killed_at_every_step_it_goes_on(
    run: Run, hub: FakeHub, here: Path, when: str, recipe: str, count: int
) -> None:
    """SIGKILL when a step was begun, and when it was done and nobody had put that down: the next run finishes."""
    written(here, recipe)
    whole = run("run", "recipe.yaml", "--out", "whole", "--json")
    assert whole.code == 0, whole.err + whole.out
    steps = states(whole)
    assert len(steps) == count
    for number in range(len(steps)):
        emptied(hub, here.parent / f"hub-{number}")
        out = here / f"killed-{number}"
        killed(here, hub, number, when=when, out=out)
        done = run("run", "recipe.yaml", "--out", out, "--json")
        assert done.code == 0, done.err + done.out
        # What had no end put down is done anew: nothing else tells what it was made of.
        assert [each[2] for each in states(done)] == ["unchanged"] * number + ["done"] * (len(steps) - number)
        for name in ("long", "long-GGUF"):
            assert bytes_of(out / name) == bytes_of(here / "whole" / name)
            assert set(bytes_of(published(hub, f"me/{name}"))) >= set(bytes_of(out / name))


_KILLED = """
import os, signal, sys
from ctxextend.release.state import State
number, when = int(sys.argv.pop(1)), sys.argv.pop(1)
put, begun = State.put, [-1]
def watched(self, step):
    begun[0] += step.status == "started"
    if begun[0] == number and (step.status == "done") == (when == "after it was done"):
        if step.status == "started":
            put(self, step)
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, step)
State.put = watched
from ctxextend.cli.main import main
main()
"""


def killed(here: Path, hub: FakeHub, number: int, *, when: str, out: Path) -> None:
    """A run that is killed in its ``number``-th step."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(here / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
    }
    ran = subprocess.run(
        [sys.executable, "-c", _KILLED, str(number), when, "run", "recipe.yaml", "--out", str(out)],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr


def test_an_interrupt_keeps_what_had_ended(here: Path) -> None:
    written(here, QUICK)
    code = """
import sys
from ctxextend.release.state import State
put, seen = State.put, [0]
def counted(self, step):
    put(self, step)
    seen[0] += 1
    if seen[0] == 5:
        raise KeyboardInterrupt
State.put = counted
from ctxextend.cli.main import main
main()
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, "run", "recipe.yaml", "--no-push", "-q"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 130
    assert "every step that had ended is kept" in ran.stderr
    left = json.loads((here / "out" / "run.json").read_text())
    assert [step["status"] for step in left["steps"]] == ["done", "done", "started", *["pending"] * 3]


def test_a_changed_recipe_does_what_changed(run: Run, here: Path) -> None:
    written(here, QUICK)
    run("run", "recipe.yaml", "--no-push")
    written(here, QUICK.replace("check: true", "check:\n  runtimes: [transformers, vllm]"))
    done = run("run", "recipe.yaml", "--no-push", "--json")
    assert [status for step, _output, status in states(done) if step == "convert"] == ["unchanged"] * 2
    assert [status for step, _output, status in states(done) if step == "check"] == ["done"] * 2
    before = (here / "out" / "long" / "config.json").read_text()
    written(here, QUICK.replace("target: 1k", "target: 512"))
    done = run("run", "recipe.yaml", "--no-push", "--json")
    assert statuses(done) == {"done"}
    after = json.loads((here / "out" / "long" / "config.json").read_text())
    assert after["max_position_embeddings"] == 512
    assert json.loads(before)["max_position_embeddings"] == 1024


def test_a_changed_source_is_converted_anew(run: Run, here: Path) -> None:
    """The same names, sizes and config, other weights: as after another day of training."""
    source = shutil.copytree(DEMO, here / "model")
    (here / "recipe.yaml").write_text(QUICK.format(source=source))
    run("run", "recipe.yaml", "--no-push")
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (source / "model.safetensors").write_bytes(weights)
    done = run("run", "recipe.yaml", "--no-push", "--json")
    assert statuses(done) == {"done"}
    assert (here / "out" / "long" / "model.safetensors").read_bytes() == bytes(weights)


def test_force_does_everything_again(run: Run, here: Path) -> None:
    written(here, QUICK)
    run("run", "recipe.yaml", "--no-push")
    assert statuses(run("run", "recipe.yaml", "--no-push", "--force", "--json")) == {"done"}


def test_an_output_that_somebody_changed_is_left_alone(run: Run, here: Path) -> None:
    written(here, QUICK)
    run("run", "recipe.yaml", "--no-push")
    config = here / "out" / "long" / "config.json"
    config.write_text(config.read_text() + "\n")
    done = run("run", "recipe.yaml", "--no-push", "--json")
    assert done.code == 3
    assert done.document["code"] == "output-changed"
    assert config.read_text().endswith("\n\n")


def test_an_output_that_is_gone_is_made_again(run: Run, here: Path) -> None:
    written(here, QUICK)
    run("run", "recipe.yaml", "--no-push")
    shutil.rmtree(here / "out" / "long")
    done = run("run", "recipe.yaml", "--no-push", "--json")
    assert done.code == 0
    assert {output for _step, output, status in states(done) if status == "done"} == {"long"}


def test_a_matrix_in_shards_is_the_matrix_whole(run: Run, here: Path) -> None:
    written(here, MATRIX)
    whole = run("run", "recipe.yaml", "--out", "whole", "--json")
    assert whole.code == 0, whole.err + whole.out
    assert len(whole.document["variants"]) == 6
    early = run("run", "recipe.yaml", "--merge", "--json")
    assert early.code == 1
    assert early.document["code"] == "incomplete"
    labels: list[str] = []
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        part = run("run", "recipe.yaml", "--shard", shard, "--json")
        assert part.code == 0
        assert part.document["shard"] == shard
        labels += [variant["label"] for variant in part.document["variants"]]
        assert not (here / "out" / "results.json").exists()
    assert sorted(labels) == sorted(variant["label"] for variant in whole.document["variants"])
    merged = run("run", "recipe.yaml", "--merge", "--json")
    assert merged.code == 0
    assert timeless(merged.document) == timeless(whole.document)
    assert (here / "out" / "results.md").read_text() == (here / "whole" / "results.md").read_text()
    written(here, MATRIX.replace("check: true", "check: false"))
    changed = run("run", "recipe.yaml", "--merge", "--json")
    assert changed.code == 1
    assert changed.document["found"] == "results of what the recipe said before it was changed"


def timeless(document: dict[str, Any]) -> dict[str, Any]:
    """A result without what another run in another folder has otherwise."""
    variants = [{**variant, "steps": list(map(without_time, variant["steps"]))} for variant in document["variants"]]
    return {**document, "variants": variants, "out": ""}


def without_time(step: dict[str, Any]) -> dict[str, Any]:
    return {**step, "seconds": 0, "stamp": "", "files": sorted(step["files"])}


GATED = """\
source: {source}
target: 1k
out: out
matrix:
  method: [linear, yarn]
outputs:
  - name: long
    repo_id: me/long-${{method}}
eval:
  lengths: [512]
  tasks: perplexity
  text: {text}
  windows: 1
  against: source
  short_lengths: [64]
  bounds:
    short-regression: 0.5
"""


def test_a_missed_gate_keeps_the_output_and_publishes_nothing(run: Run, hub: FakeHub, here: Path) -> None:
    """On the demo model linear costs much in short contexts and yarn little (docs/evidence.md)."""
    written(here, GATED, text=DEMO.parent / "heldout.txt")
    done = run("run", "recipe.yaml")
    assert done.code == 4, done.err
    assert "linear: error: 1 of 1 bounds missed: short-regression" in done.err
    assert set(hub.repositories) == {"me/long-yarn"}
    assert (here / "out" / "linear" / "long" / "config.json").exists()
    results = json.loads((here / "out" / "results.json").read_text())
    assert [variant["ok"] for variant in results["variants"]] == [False, True]
    assert [variant["exit_code"] for variant in results["variants"]] == [4, 0]
    linear = results["variants"][0]["steps"]
    assert [(step["step"], step["status"]) for step in linear] == [
        ("convert", "done"),
        ("eval", "failed"),
        ("push", "pending"),
    ]
    assert linear[1]["error"]["code"] == "gate-missed"
    page = (here / "out" / "results.md").read_text()
    assert "1 of 2 variants passed everything." in page
    assert "| linear | yes | **no** | not run |" in page
    # A gate that is given way to: the numbers are there, and aren't measured again.
    written(here, GATED.replace("0.5", "5.0"), text=DEMO.parent / "heldout.txt")
    again = run("run", "recipe.yaml")
    assert again.code == 0, again.err
    assert set(hub.repositories) == {"me/long-yarn", "me/long-linear"}


def test_a_dry_run_writes_nothing(run: Run, hub: FakeHub, here: Path) -> None:
    written(here, QUICK)
    done = run("run", "recipe.yaml", "--dry-run", "--json")
    assert done.code == 0
    assert statuses(done) == {"pending"}
    assert not (here / "out").exists()
    assert not hub.repositories
    run("run", "recipe.yaml", "--no-push")
    told = run("run", "recipe.yaml", "--dry-run", "--json")
    assert [status for step, _output, status in states(told) if step != "push"] == ["unchanged"] * 6
    assert [status for step, _output, status in states(told) if step == "push"] == ["pending"] * 2


def test_two_runs_exclude_each_other(run: Run, here: Path) -> None:
    from ctxextend.release.state import locked

    written(here, QUICK)
    with locked(here / "out"):
        done = run("run", "recipe.yaml", "--no-push", "--json")
    assert done.code == 1
    assert done.document["variants"][0]["error"]["code"] == "busy"
    assert not (here / "out" / "run.json").exists()


def test_without_a_local_copy_the_hub_copies_the_weights(run: Run, hub: FakeHub, here: Path) -> None:
    hub.add("org/tiny", checkpoint(here.parent / "source"))
    text = "source: org/tiny\nmethod: yarn\ntarget: 4k\nout: out\noutputs:\n  - repo_id: me/tiny-4k\n    local: false\n"
    (here / "recipe.yaml").write_text(text)
    done = run("run", "recipe.yaml", "--json")
    assert done.code == 0, done.err + done.out
    assert states(done) == [("push", "tiny-yarn-4k", "done")]
    pushed = json.loads((here / "out" / "evidence" / "tiny-yarn-4k" / "push.json").read_text())
    assert {file["how"] for file in pushed["files"] if file["path"].endswith(".safetensors")} == {"copied"}
    assert not list(here.rglob("*.safetensors"))
