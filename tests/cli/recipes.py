"""Recipes on the demo checkpoint, and what a run of one has left."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

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


#: One output, and a card to read.
CARD = """\
source: {source}
method: yarn
target: 1k
out: out
outputs:
  - name: long
card: true
"""

CHECKED = CARD.replace("card: true", "check: true")

#: Measured through a server, so that no model runs here: the loss of each text, and whether it works.
SERVED = (
    CARD
    + """\
smoke:
  endpoint: {url}
  length: 48
  text: text.txt
eval:
  endpoint: {url}
  lengths: [60]
  tasks: perplexity
  windows: 1
  text: text.txt
"""
)


def excerpt(here: Path) -> Path:
    """The text that a recipe measures on."""
    path = here / "text.txt"
    path.write_bytes((DEMO.parent / "heldout.txt").read_bytes()[:3000])
    return path


def model(here: Path) -> Path:
    """A copy of the demo checkpoint, to be changed."""
    return Path(shutil.copytree(DEMO, here / "model"))


def flip(path: Path, at: int) -> bytes:
    """Another byte at a place of a file; what the file says then."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return bytes(data)


def edited(path: Path) -> str:
    """A line more in a file of text; what it says then."""
    text = path.read_text() + "\nAdded by hand.\n"
    path.write_text(text)
    return text


def step(ran: Ran, name: str, output: str = "long", label: str = "") -> dict[str, Any]:
    """What became of one step."""
    variant = next(each for each in ran.document["variants"] if each["label"] == label)
    found: dict[str, Any] = next(each for each in variant["steps"] if (each["step"], each["output"]) == (name, output))
    return found


def done(ran: Ran, label: str = "") -> list[str]:
    """The steps that a run has done, by name, where nothing went wrong."""
    assert ran.code == 0, ran.err + ran.out
    return [name for name, _output, status in states(ran, label) if status == "done"]
