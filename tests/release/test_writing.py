"""Recipes written for a checkpoint: what they say, and that they come to the very plan they were written for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from ctxextend.checkpoint import Source
from ctxextend.errors import RefusedError, UsageError
from ctxextend.pipeline import Opened, inspect_source, open_source, plan_inspected, plan_source
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.release import asked
from ctxextend.release.document import EvalPart, RecipeDocument
from ctxextend.release.reading import read_recipe
from ctxextend.release.writing import recipe_for, suggested_target, write_recipe
from tests.factories import config as tiny
from tests.factories import contents, write_checkpoint
from tests.fake_hub import serve
from tests.gguf_factory import encode, keys, pair
from tests.hub_shell import checkpoint
from tests.positions.factory import BART, BLOOM, GPT2, OPT, ROBERTA, Config, Shapes

ROOT: Final = Path(__file__).resolve().parents[2]
DEMO: Final = ROOT / "demo" / "checkpoint"

#: The command as a process of its own, whether or not the command line knows the sub-command yet.
_COMMAND: Final = """
import ctxextend.cli as command
from ctxextend.cli.main import main
from ctxextend.cli.recipe import app

if not any(group.name == "recipe" for group in command.app.registered_groups):
    command.app.add_typer(app, name="recipe")
main()
"""


def written(opened: Opened, recipe: Recipe) -> tuple[str, Plan]:
    inspection = inspect_source(opened, recipe)
    plan = plan_inspected(opened.contents, inspection, recipe)
    return recipe_for(opened, inspection, recipe, plan), plan


def read_back(text: str, folder: Path) -> RecipeDocument:
    path = folder / "written.yaml"
    path.write_text(text)
    (variant,) = read_recipe(path, {}).variants
    return variant.document


def digest_of(opened: Opened, document: RecipeDocument) -> str:
    """Of the plan that the first output comes to."""
    return plan_source(opened, asked.recipe_of(document, document.outputs[0])).digest


def agreed(opened: Opened, recipe: Recipe, folder: Path) -> tuple[str, RecipeDocument]:
    """What is written, after it was read back and came to the same plan."""
    text, plan = written(opened, recipe)
    document = read_back(text, folder)
    assert digest_of(opened, document) == plan.digest
    return text, document


def published(model: tuple[Config, Shapes]) -> Opened:
    config, tensors = model
    return Opened(source=Source(given="Tiny"), contents=contents(config, tensors=tensors))


def gguf_file(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.gguf"
    path.write_bytes(encode([pair(key, value) for key, value in keys(**changes).items()]))
    return path


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(target=512),
        Recipe(target=1024),
        Recipe(target=1000, fine_tune=True),
        Recipe(factor=3.0, method="yarn", options={"beta_fast": 16.0}),
        Recipe(target=1024, method="ntk"),
        Recipe(target=1024, method="dynamic"),
        Recipe(target=1024, method="llama3", runtimes=("vllm", "transformers@4.45")),
        Recipe(target=1024, method="linear", carrier="factors", original_context=128),
        Recipe(target=1024, method="yarn", bake="temperature"),
        Recipe(target=1024, method="longrope", options={"long_factor": [float(n) for n in range(1, 17)]}),
        Recipe(target=128),
    ],
    ids=lambda recipe: f"{recipe.method}-{recipe.target}",
)
def test_it_comes_to_the_same_plan(recipe: Recipe, tmp_path: Path) -> None:
    _text, document = agreed(open_source(DEMO), recipe, tmp_path)
    assert document.source == str(DEMO)
    assert document.runtimes is None or tuple(document.runtimes) == recipe.runtimes


@pytest.mark.parametrize("model", [GPT2, OPT, BLOOM], ids=["gpt2", "opt", "bloom"])
def test_models_without_a_rope(model: tuple[Config, Shapes], tmp_path: Path) -> None:
    text, document = agreed(published(model), Recipe(target=4096), tmp_path)
    assert document.method in ("absolute", "alibi")
    assert document.smoke is True
    assert "rope" not in re.sub(r"#.*Not as GGUF.*", "", text)


@pytest.mark.parametrize("model", [ROBERTA, BART], ids=["roberta", "bart"])
def test_what_predicts_no_next_token_is_not_run(model: tuple[Config, Shapes], tmp_path: Path) -> None:
    text, document = agreed(published(model), Recipe(target=2048), tmp_path)
    assert document.smoke is False
    assert document.eval is False
    assert "No smoke, no eval: this model is an encoder" in text


def test_a_gguf_file(tmp_path: Path) -> None:
    path = gguf_file(tmp_path)
    text, document = agreed(open_source(path), Recipe(target=4096, method="yarn"), tmp_path)
    assert document.source == str(path)
    (output,) = document.outputs
    assert output.to == "gguf"
    assert "# Held to the plan in llama.cpp.\n" in text
    assert "As GGUF too" not in text
    assert isinstance(document.eval, EvalPart)
    assert document.eval.against == "source"


def test_what_it_says_of_the_demo(tmp_path: Path) -> None:
    """4 layers x 2 x 2 heads x 32 numbers x 2 bytes are 1 KiB a token, and 1024 tokens 1 MiB."""
    text, document = agreed(open_source(DEMO), Recipe(target=1024), tmp_path)
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert comment.startswith("checkpoint from 256 to 1k by ntk. ")
    assert "Working: 1024 / 256 = 4 (target / trained length, in tokens)." in comment
    assert "Why: ntk: without training, above 2x" in comment
    assert "KV cache: 1.0 KiB a token, 1.0 MiB for one text of 1024 tokens" in comment
    # 10000 x 5^(32/30): a quarter of headroom over 4.
    assert f"full_attention, 4 layers: rope_theta {10000.0 * 5.0 ** (32 / 30):.10g}, attention factor 1" in comment
    assert "Held to the plan in transformers, vllm, sglang, llama.cpp, mlx-lm." in comment
    assert (document.method, document.target, document.options) == ("ntk", "1k", {"headroom": 1.25})
    assert (document.check, document.smoke, document.card) == (True, True, True)
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(("target", "lengths", "short"), [(512, (256, 512), 0.05), (1024, (256, 1024), 0.2)])
def test_what_it_is_held_to(target: int, lengths: tuple[int, ...], short: float, tmp_path: Path) -> None:
    """Texts that the source could read may lose little up to 2x, and more past it."""
    _text, document = agreed(open_source(DEMO), Recipe(target=target), tmp_path)
    evaluation = asked.eval_asked(document.eval)
    assert evaluation is not None
    assert evaluation.against == "original"
    assert evaluation.settings.lengths == lengths
    assert evaluation.bounds == {"perplexity-ratio": 1.25, "short-regression": short}


@pytest.mark.parametrize("recipe", [Recipe(target=512, method="yarn", bake="temperature"), Recipe(target=128)])
def test_what_its_config_does_not_put_back_is_held_against_the_source(recipe: Recipe, tmp_path: Path) -> None:
    """What went into the weights, and a result that has no record since nothing was done."""
    _text, document = agreed(open_source(DEMO), recipe, tmp_path)
    evaluation = asked.eval_asked(document.eval)
    assert evaluation is not None
    assert evaluation.against == "source"


def test_within_the_trained_length_only_short_texts_are_held(tmp_path: Path) -> None:
    text, document = agreed(open_source(DEMO), Recipe(target=128), tmp_path)
    evaluation = asked.eval_asked(document.eval)
    assert evaluation is not None
    assert evaluation.settings.lengths == (128,)
    assert evaluation.bounds == {"short-regression": 0.05}
    assert document.method == "auto"
    assert text.startswith("# checkpoint as it was trained, for 256.")


def test_what_is_trained_afterwards_is_measured_afterwards(tmp_path: Path) -> None:
    text, document = agreed(open_source(DEMO), Recipe(target=8192, method="yarn", fine_tune=True), tmp_path)
    assert (document.smoke, document.eval) == (False, False)
    assert document.fine_tune
    assert "after the training" in text


def test_who_reads_it_otherwise_is_named(tmp_path: Path) -> None:
    """CTranslate2 reads llama3's scaling as another table; it is let pass by name."""
    recipe = Recipe(target=1024, method="llama3", runtimes=("transformers", "ctranslate2"), allow=("unreadable",))
    text, plan = written(open_source(DEMO), recipe)
    (reader,) = plan.misread
    assert f"# Read otherwise by {reader}: " in text
    assert f"# Held to the plan in transformers, ctranslate2, but for {reader}." in text
    assert digest_of(open_source(DEMO), read_back(text, tmp_path)) == plan.digest


def test_what_stands_in_comments_can_be_used(tmp_path: Path) -> None:
    """Publishing, and the GGUF export: another output with a name of its own, which can be planned."""
    opened = open_source(DEMO)
    text, _plan = written(opened, Recipe(target=512))
    head, outputs, rest = text.partition("outputs:\n")
    # Prose begins with a capital letter; what stands in the commented output has comments of its own.
    for _ in range(2):
        rest = re.sub(r"^( *)# (?=[ #a-z-])", r"\1", rest, flags=re.MULTILINE)
    document = read_back(head + outputs + rest, tmp_path)
    folder, gguf = document.outputs
    assert (folder.to, gguf.to) == ("safetensors", "gguf")
    assert document.push.private
    assert (folder.repo_id, gguf.repo_id) == ("my-org/checkpoint-yarn-512", "my-org/checkpoint-yarn-512-GGUF")
    plan = plan_source(opened, asked.recipe_of(document, gguf))
    assert (plan.to, plan.method, plan.target_context) == ("gguf", "yarn", 512)
    assert plan.out == "checkpoint-yarn-512-GGUF"
    evaluation = asked.eval_asked(document.eval)
    assert evaluation is not None
    assert evaluation.bounds["passkey"] == 0.8


def test_a_family_that_is_not_exported_has_no_gguf_output(tmp_path: Path) -> None:
    text, _document = agreed(published(BLOOM), Recipe(target=4096), tmp_path)
    assert "# Not as GGUF: " in text
    assert "to: gguf" not in text


def test_a_repository_is_pinned(tmp_path: Path) -> None:
    commit = "1234567890" * 4
    found = contents(tiny(), name="tiny")
    for given, source, repo in (
        ("org/tiny@main", "org/tiny", Source(given="org/tiny@main", repo_id="org/tiny", revision="main")),
        ("hf://org/tiny", "hf://org/tiny", Source(given="hf://org/tiny", repo_id="org/tiny")),
        ("org/tiny:Q4_K_M", "org/tiny:Q4_K_M", Source(given="org/tiny:Q4_K_M", repo_id="org/tiny", gguf="Q4_K_M")),
        ("x", "org/tiny/a/b.gguf", Source(given="x", repo_id="org/tiny", gguf="a/b.gguf")),
    ):
        opened = Opened(source=repo, contents=_at(found, commit))
        _text, document = agreed(opened, Recipe(target=8192), tmp_path)
        # A commit of digits alone is no number.
        assert (given, document.source, document.revision) == (given, source, commit)


def _at(found: Any, commit: str) -> Any:
    import msgspec

    return msgspec.structs.replace(found, revision=commit)


@pytest.mark.parametrize(
    "name", ["a: b #c", "${x} $${y}", 'it\'s "quoted"', "0123", "yes", "[1]", "- x", "é ü 好", "x\nmethod: evil", " x "]
)
def test_names_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    """A name can neither end a comment nor be anything but text."""
    folder = tmp_path / name
    write_checkpoint(folder, tiny())
    source = open_source(str(folder))
    text, document = agreed(source, Recipe(target=8192), tmp_path)
    assert document.source == str(folder)
    assert "\nmethod: evil" not in text
    lone = Opened(source=Source(given=name, folder=folder), contents=source.contents)
    assert read_back(written(lone, Recipe(target=8192))[0], tmp_path).source == name


def test_the_length_that_is_suggested() -> None:
    """Twice what was trained; but no shorter than what is stated."""
    opened = open_source(DEMO)
    assert suggested_target(inspect_source(opened, Recipe())) == 512
    assert suggested_target(inspect_source(opened, Recipe(original_context=64))) == 256


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_recipe(path, "one\n", force=False)
    with pytest.raises(RefusedError) as error:
        write_recipe(path, "two\n", force=False)
    assert error.value.code == "output-exists"
    assert "--force" in (error.value.hint or "")
    assert path.read_text() == "one\n"
    write_recipe(path, "two\n", force=True)
    assert path.read_text() == "two\n"
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    for taken in (link, tmp_path):
        with pytest.raises(RefusedError):
            write_recipe(taken, "three\n", force=True)
    assert path.read_text() == "two\n"


def run(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", _COMMAND, "recipe", "init", *map(str, arguments)],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(tmp_path: Path) -> None:
    done = run(tmp_path, DEMO, "--out", "sub/demo.yaml", "-t", "1k")
    assert (done.returncode, done.stdout) == (0, "sub/demo.yaml\n")
    text = (tmp_path / "sub/demo.yaml").read_text()
    assert run(tmp_path, DEMO, "-t", "1k").stdout == text
    refused = run(tmp_path, DEMO, "--out", "sub/demo.yaml", "--json")
    assert refused.returncode == 3
    assert json.loads(refused.stdout)["code"] == "output-exists"
    assert (tmp_path / "sub/demo.yaml").read_text() == text
    again = run(tmp_path, DEMO, "--out", "sub/demo.yaml", "--json", "--force", "-m", "yarn")
    document = json.loads(again.stdout)
    assert set(document) == {"schema", "path", "plan", "recipe"}
    assert (document["schema"], document["path"]) == ("ctxextend.recipe-init/1", "sub/demo.yaml")
    assert document["recipe"] == (tmp_path / "sub/demo.yaml").read_text()
    # Without a target twice the trained length, which is said.
    assert "512" in again.stderr
    assert document["plan"] == plan_source(open_source(DEMO), Recipe(method="yarn", target=512)).digest


def test_the_command_on_a_repository(tmp_path: Path) -> None:
    with serve() as hub:
        commit = hub.add("org/tiny", checkpoint(tmp_path / "source"))
        done = run(tmp_path, "org/tiny", "-t", "4k", "-m", "yarn", "--json", HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        document = read_back(json.loads(done.stdout)["recipe"], tmp_path)
        assert (document.source, document.revision) == ("org/tiny", commit)
        assert document.method == "yarn"


def test_a_wrong_call(tmp_path: Path) -> None:
    done = run(tmp_path, DEMO, "-m", "yarnn", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["code"] == "unknown-method"
    with pytest.raises(UsageError):
        written(open_source(DEMO), Recipe(method="auto", options={"x": 1}, target=512))
