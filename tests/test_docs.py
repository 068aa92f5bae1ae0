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

from tests.cli.support import call, run
from tests.fake_hub import serve
from tests.hub_shell import TOKEN, emptied, published, shell

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/guides/first-conversion.md",
    "docs/guides/check.md",
    "docs/guides/gguf.md",
    "docs/guides/evidence.md",
    "docs/guides/baking.md",
    "docs/guides/positions.md",
    "docs/guides/recipes.md",
)
PUBLISHING = "docs/guides/publish.md"
OTHER_PAGES = (PUBLISHING, "docs/index.md", "docs/concepts.md", "docs/decisions.md", "docs/evidence.md", "CHANGELOG.md")

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


def put_models_without_rope(folder: Path) -> None:
    """Tiny random models of 64 tokens, with the demo's tokenizer."""
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config

    sizes = {"vocab_size": 2048, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    gpt2 = GPT2Config(**sizes, n_positions=64, n_embd=32)
    bloom = BloomConfig(**sizes, hidden_size=32, seq_length=64)
    for config in (gpt2, bloom):
        place = folder / config.model_type
        AutoModelForCausalLM.from_config(config).save_pretrained(place)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "demo" / "checkpoint" / name, place)


def put_recipes(page: str, folder: Path) -> None:
    """The recipe that comes with the project, which the page shows as it is, and the one of its matrix."""
    whole, matrix = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    ours = (ROOT / "demo" / "recipe.yaml").read_text(encoding="utf-8")
    assert "".join(line for line in ours.splitlines(keepends=True) if not line.startswith("#")) == whole
    shutil.copy(ROOT / "demo" / "recipe.yaml", folder / "demo")
    (folder / "build" / "matrix.yaml").write_text(matrix, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the README in processes of their own, the others in this one."""
    monkeypatch.chdir(workplace)
    if page.endswith("positions.md"):
        put_models_without_rope(workplace)
    if page.endswith("recipes.md"):
        put_recipes(page, workplace)
    commands = list(console_commands(page))
    assert commands
    for command, code in commands:
        words = shlex.split(command)
        assert words[0] == "ctxextend"
        target = workplace / words.pop() if ">" in words else None
        arguments = [word for word in words[1:] if word != ">"]
        done = (run if page == "README.md" else call)(*arguments)
        assert done.code == code, f"{command}\n{done.err}"
        if target is not None:
            target.write_text(done.out, encoding="utf-8")


def test_the_commands_of_the_page_on_publishing_run_in_order(workplace: Path, tmp_path: Path) -> None:
    """Against a Hub on the loopback, whose client needs a process of its own."""
    with serve() as hub, shell(hub, tmp_path) as command:
        emptied(hub, tmp_path / "hub")
        for line, code in console_commands(PUBLISHING):
            ran = command(workplace, *shlex.split(line)[1:], HF_TOKEN=TOKEN)
            assert ran.code == code, f"{line}\n{ran.err}"
        card = published(hub, "my-org/demo-1k") / "README.md"
        assert "ctxextend" in card.read_text(encoding="utf-8")


def test_the_python_example_runs(workplace: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1024 / 256 = 4 ")
    assert (workplace / "build" / "demo-1k-python" / "model.safetensors").is_file()


def test_the_python_example_of_recipes_runs(workplace: Path) -> None:
    shutil.copy(ROOT / "demo" / "recipe.yaml", workplace / "demo")
    text = (ROOT / "docs" / "guides" / "recipes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == str(["convert", "convert", "check", "check", "smoke", "eval", "card", "card"]) + "\n"


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
