"""The rooms: who may import whom, what the pure ones may touch, and what starting up may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ctxextend"

#: The rooms from the lowest up: a module imports from its own room and from lower ones.
ROOMS = (
    ("version", "errors"),
    ("rope", "contents", "lengths"),
    ("scaling",),
    ("methods", "families"),
    ("formats",),
    ("exports", "runtimes"),
    ("comparison", "record", "gguf_record", "kv_cache", "parameters"),
    ("encoding", "gguf_encoding", "gguf_outlook"),
    ("inspection", "gguf_inspection"),
    ("recipe", "changes", "faults"),
    ("solving", "baking"),
    ("copies",),
    ("bake",),
    ("plan",),
    ("positions",),
    ("gguf_plan", "position_plan"),
    ("export_plan", "import_plan", "position_gguf"),
    ("position_export", "position_import"),
    ("findings",),
    ("check", "gguf_check", "repair", "gguf_repair"),
    ("checkpoint", "tensors", "vocabulary"),
    ("apply", "documents", "card"),
    ("gguf_apply", "export_apply", "import_apply"),
    ("pipeline",),
    ("hub",),
    ("lab",),
    ("release",),
    ("schemas",),
    ("cli",),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
#: The public API and ``python -m ctxextend`` stand outside: they only pass names on.
OUTSIDE = {"__init__", "__main__"}

PURE = {
    room for rooms in ROOMS[: ROOMS.index(("check", "gguf_check", "repair", "gguf_repair")) + 1] for room in rooms
} | {"documents"}
#: Of the standard library, what reads files, the clock or the environment.
IMPURE = {
    "asyncio",
    "datetime",
    "fcntl",
    "glob",
    "io",
    "logging",
    "mmap",
    "os",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
}
HEAVY = ("torch", "transformers", "numpy", "gguf", "safetensors", "huggingface_hub", "rich", "matplotlib")
LONGEST = 650

FILES = sorted(PACKAGE.rglob("*.py"))
MODULE = pytest.mark.parametrize("file", FILES, ids=[file.relative_to(PACKAGE).as_posix() for file in FILES])


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            # ``from ctxextend import plan`` names a room; ``from ctxextend.plan import Plan`` one of its names.
            yield from (
                (f"ctxextend.{alias.name}" for alias in node.names) if node.module == "ctxextend" else [node.module]
            )


def test_every_room_is_known() -> None:
    assert {room_of(file) for file in FILES} - OUTSIDE == set(LEVELS)


@MODULE
def test_lower_rooms_never_import_higher_ones(file: Path) -> None:
    room = room_of(file)
    if room in OUTSIDE:
        return
    for name in imports(file):
        if name.split(".")[0] == "ctxextend":
            other = name.split(".")[1]
            assert other == room or LEVELS[other] <= LEVELS[room], f"{room} imports {name}"


@MODULE
def test_pure_rooms_touch_nothing(file: Path) -> None:
    if room_of(file) not in PURE:
        return
    for name in imports(file):
        top = name.split(".")[0]
        assert top in sys.stdlib_module_names or top in ("msgspec", "ctxextend"), f"imports {name}"
        assert top not in IMPURE, f"imports {name}"
    called = {
        node.func.id
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


@MODULE
def test_no_module_is_too_long_to_read(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh process has loaded after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import ctxextend",
        "import ctxextend.cli.main",
        "from ctxextend.methods import METHODS; from ctxextend.families import FAMILIES",
    ],
)
def test_starting_up_loads_nothing_heavy(statement: str) -> None:
    assert not {name.split(".")[0] for name in loaded_by(statement)} & set(HEAVY)


@pytest.mark.parametrize(
    "verb",
    ["plan_source(opened, ctxextend.Recipe(method='ntk', target=4096))", "check_source(opened)"],
)
def test_the_verbs_on_a_folder_load_nothing_heavy(verb: str, tmp_path: Path) -> None:
    from tests.factories import config, write_checkpoint

    folder = write_checkpoint(tmp_path / "tiny", config())
    statement = f"import ctxextend\nopened = ctxextend.open_source({str(folder)!r})\nctxextend.{verb}"
    assert not {name.split(".")[0] for name in loaded_by(statement)} & set(HEAVY)
