"""Recipes on the demo checkpoint, and what a run of one has left."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.cli.support import DEMO
from tests.hub_shell import Ran

#: Everything but what runs the model.
QUICK = """\
source: {source}
method: yarn
target: 1k
out: out
outputs:
  - name: long
    repo_id: me/long
  - name: long-GGUF
    to: gguf
    outtypes: [f16, q8_0]
    repo_id: me/long-GGUF
check: true
card: true
"""

MATRIX = """\
source: {source}
out: out
matrix:
  method: [yarn, linear, ntk]
  target: [512, 1k]
outputs:
  - name: long
check: true
"""


def written(here: Path, recipe: str, name: str = "recipe.yaml", **values: object) -> Path:
    """A recipe's file."""
    path = here / name
    path.write_text(recipe.format(source=DEMO, **values))
    return path


def states(ran: Ran, label: str = "") -> list[tuple[str, str, str]]:
    """Of each step of a variant: its name, its output, what became of it."""
    variant = next(each for each in ran.document["variants"] if each["label"] == label)
    return [(step["step"], step["output"], step["status"]) for step in variant["steps"]]


def statuses(ran: Ran, label: str = "") -> set[str]:
    return {status for _step, _output, status in states(ran, label)}


def bytes_of(folder: Path) -> dict[str, str]:
    """Every file below a folder by its checksum."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
