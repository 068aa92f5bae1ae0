"""Every command and every Python example that the public texts show is run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/guides/first-conversion.md",
    "docs/guides/check.md",
    "docs/guides/gguf.md",
    "docs/guides/evidence.md",
)
OTHER_PAGES = ("docs/index.md", "docs/concepts.md", "docs/decisions.md", "docs/evidence.md", "CHANGELOG.md")

#: Shown commands that set up or call everything else: CI runs the first two, set-up does the installing.
SET_UP = ("make ", "pip ")


def console_commands(page: str) -> Iterator[tuple[str, int]]:
    """Each command with the exit code that the page says it ends with."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ ") and not line[2:].startswith(SET_UP):
                command, _comment, said = line[2:].partition("  # ")
                code = re.match(r"ends with (\d+)", said)
                yield command, int(code[1]) if code else 0


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "demo" / "checkpoint", tmp_path / "demo" / "checkpoint")
    shutil.copy(ROOT / "demo" / "heldout.txt", tmp_path / "demo")
    (tmp_path / "build").mkdir()
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page: str, workplace: Path) -> None:
    commands = list(console_commands(page))
    assert commands
    for command, code in commands:
        words = shlex.split(command)
        assert words[0] == "ctxextend"
        target = workplace / words.pop() if ">" in words else None
        arguments = [word for word in words[1:] if word != ">"]
        done = subprocess.run(
            [sys.executable, "-m", "ctxextend", *arguments], cwd=workplace, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{command}\n{done.stderr}"
        if target is not None:
            target.write_text(done.stdout, encoding="utf-8")


def test_the_python_example_runs(workplace: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1024 / 256 = 4 ")
    assert (workplace / "build" / "demo-1k-python" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), link


def test_the_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_first_two_commands_of_the_readme_are_the_set_up() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\$ (.+)$", text, re.MULTILINE)[:2] == ["make demo", "make test"]


def test_the_guide_names_every_finding() -> None:
    from ctxextend.faults import _FROM_NOTES

    sources = [ROOT / "ctxextend" / name for name in ("faults.py", "findings.py", "gguf_check.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    codes = {
        code for text in texts for code in re.findall(r'code="([a-z-]+)"|said\("([a-z-]+)"', text) for code in code
    }
    guide = (ROOT / "docs" / "guides" / "check.md").read_text(encoding="utf-8")
    missing = [code for code in sorted({*codes, *_FROM_NOTES} - {"", "no-gguf"}) if f"`{code}`" not in guide]
    assert not missing
