"""What the shells are offered: by the protocol that their scripts speak, and by the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from ctxextend.families import FAMILIES
from ctxextend.lab.names import TASKS
from ctxextend.methods import METHODS, POSITION_METHODS
from ctxextend.record import Bake
from tests.cli.support import Ran, environment
from tests.test_architecture import HEAVY

#: The command as it is installed, which is what names the shells' variable.
_MAIN = "import sys\nfrom ctxextend.cli.main import main\nsys.argv[0] = 'ctxextend'\nmain()\n"


def asked(folder: Path, *, code: str = _MAIN, **variables: str) -> Ran:
    """The command as a shell's script calls it, in a folder and with a home that nothing must appear in."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(HOME=str(folder), PYTHONPATH=str(Path(__file__).parents[2]), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert list(folder.iterdir()) == []
    return Ran(done.returncode, done.stdout, done.stderr)


def offered(folder: Path, line: str) -> list[str]:
    """What bash gets for a line whose end is to be completed."""
    words = line.split(" ")
    ran = asked(
        folder, _CTXEXTEND_COMPLETE="complete_bash", COMP_WORDS=line.replace(" ", "\n"), COMP_CWORD=str(len(words) - 1)
    )
    assert (ran.code, ran.err) == (0, "")
    return ran.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ctxextend pl", ["plan"]),
        ("ctxextend convert x --bake ", list(get_args(Bake))),
        ("ctxextend convert x --carrier n", ["native"]),
        ("ctxextend convert x --link-mode ref", ["reflink"]),
        ("ctxextend eval x --engine v", ["vllm"]),
        ("ctxextend convert x --sliding", ["--sliding-window"]),
        ("ctxextend plan x --method ", ["auto", *METHODS, *POSITION_METHODS]),
        ("ctxextend convert x -m ntk", ["ntk", "ntk-by-parts"]),
        ("ctxextend inspect x --family ", list(FAMILIES)),
        ("ctxextend plan x --family qwen3_", [name for name in FAMILIES if name.startswith("qwen3_")]),
        ("ctxextend plan x --runtimes sg", ["sglang"]),
        ("ctxextend plan x --runtimes vllm,sg", ["vllm,sglang"]),
        ("ctxextend plan x --runtimes sglang,vllm,sg", []),
        ("ctxextend plan x --runtimes vllm,o", ["vllm,onnxruntime-genai", "vllm,ollama", "vllm,ollama-create"]),
        # A file's name: the shell's own business.
        ("ctxextend plan ", []),
        ("ctxextend convert x --out ", []),
        # A line that makes no sense is no error.
        ("ctxextend plan x --target nonsense --method lin", ["linear"]),
    ],
)
def test_what_is_offered(tmp_path: Path, line: str, expected: list[str]) -> None:
    assert sorted(offered(tmp_path, line)) == sorted(expected)


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_tasks_are_offered(tmp_path: Path, command: str) -> None:
    assert offered(tmp_path, f"ctxextend {command} x --tasks ") == list(TASKS)
    assert offered(tmp_path, f"ctxextend {command} x --tasks passkey,per") == ["passkey,perplexity"]


def test_methods_to_compare_are_offered(tmp_path: Path) -> None:
    assert offered(tmp_path, "ctxextend compare x --methods none,ya") == ["none,yarn"]


def test_runtimes_to_check_are_offered(tmp_path: Path) -> None:
    assert offered(tmp_path, "ctxextend check x --runtimes vllm,sg") == ["vllm,sglang"]


def test_completing_loads_nothing_heavy(tmp_path: Path) -> None:
    for line in ("ctxextend pl", "ctxextend plan x --runtimes ", "ctxextend plan x -m ", "ctxextend plan x --family "):
        code = "import atexit, sys\natexit.register(lambda: print('loaded:', *sys.modules, file=sys.stderr))\n" + _MAIN
        words = str(line.count(" "))
        ran = asked(tmp_path, code=code, _CTXEXTEND_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=words)
        assert ran.err.startswith("loaded:")
        assert not {name.split(".")[0] for name in ran.err.split()} & set(HEAVY)


def installed(folder: Path) -> dict[str, str]:
    """A folder with the command by its name, for the shells' path."""
    folder.mkdir()
    program = folder / "ctxextend"
    program.write_text(f"#!{sys.executable}\n{_MAIN}")
    program.chmod(0o755)
    return environment(
        PATH=f"{folder}:/usr/bin:/bin", HOME=str(folder.parent), PYTHONPATH=str(Path(__file__).parents[2])
    )


def in_shell(shell: str, script: str, folder: Path) -> list[str]:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    quiet = {"bash": ["--noprofile", "--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [found, *quiet, "-c", script],
        cwd=folder,
        env=installed(folder / "bin"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t")[0] for line in done.stdout.split("\n") if line]


def test_bash_completes_by_its_script(tmp_path: Path) -> None:
    script = """
    eval "$(_CTXEXTEND_COMPLETE=source_bash ctxextend)"
    complete -p ctxextend | grep -o '_[a-z_]*'
    COMP_WORDS=(ctxextend plan x --runtimes vllm,sg) COMP_CWORD=4
    _ctxextend_completion ctxextend
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    assert in_shell("bash", script, tmp_path) == ["_ctxextend_completion", "vllm,sglang"]


def test_fish_completes_by_its_script(tmp_path: Path) -> None:
    script = """
    _CTXEXTEND_COMPLETE=source_fish ctxextend | source
    complete --do-complete 'ctxextend plan x --runtimes vllm,sg'
    complete --do-complete 'ctxextend convert x --bake t'
    complete --do-complete 'ctxextend pla'
    """
    assert in_shell("fish", script, tmp_path) == ["vllm,sglang", "temperature", "plan"]


def test_zsh_completes_by_its_script(tmp_path: Path) -> None:
    """Zsh's completion needs a terminal: what its script would hand over is read instead."""
    script = """
    compdef() { print -r -- "$@" }
    _arguments() { print -r -- "$1" }
    eval "$(_CTXEXTEND_COMPLETE=source_zsh ctxextend)"
    words=(ctxextend plan x --runtimes vllm,sg) CURRENT=5
    _ctxextend_completion
    """
    assert in_shell("zsh", script, tmp_path) == ["_ctxextend_completion ctxextend", '*: :(("vllm,sglang"))']
