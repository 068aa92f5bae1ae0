"""What ``ctxextend run`` refuses before anything starts: with the recipe's line and key, alike with ``--dry-run``.

No model is run here. Lines and keys are counted in the recipes below; the demo model was trained for 256 tokens.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from ctxextend.errors import OutputError
from ctxextend.release import RunOptions, read_recipe
from ctxextend.release import run as carried_out
from tests.cli.recipes import MATRIX, QUICK, bytes_of, states, written
from tests.cli.support import DEMO, edit_config
from tests.fake_hub import FakeHub
from tests.hub_shell import TOKEN, Run, checkpoint

#: Six lines; a section that is added begins on the seventh.
SHORT = """\
source: {source}
method: yarn
target: 1k
out: out
outputs:
  - name: long
"""

#: Eight lines; a section that is added begins on the ninth.
GGUF = SHORT.replace("name: long\n", "name: long.gguf\n    to: gguf\n    outtypes: f16\n")

#: What stands where a line of the output is meant: the seventh line of SHORT, the ninth of GGUF.
OUTPUT = "    "


class Row(NamedTuple):
    """A recipe that is refused. ``at``: line and key; ``found``: where it isn't plain of ``text``."""

    text: str
    exit_code: int
    code: str
    at: tuple[int, str]
    found: str | None = None


def changed(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


#: Every recipe that is refused for what it says, by what is wrong with it.
ROWS = {
    # The conversion.
    "a target that can't be read": Row(changed(SHORT, ("1k", "much")), 2, "bad-number", (3, "target"), "'much'"),
    "a target within the trained length": Row(changed(SHORT, ("1k", "100")), 3, "within-trained", (3, "target"), "100"),
    "no target": Row(changed(SHORT, ("target: 1k\n", "")), 2, "no-target", (2, "target")),
    "a target and another factor": Row(
        changed(SHORT, ("1k", "1k\nfactor: 8")), 2, "target-and-factor", (3, "target"), "target: 1024"
    ),
    "an unknown method": Row(changed(SHORT, ("yarn", "yarm")), 2, "unknown-method", (2, "method"), "yarm"),
    "an unknown option of a method": Row(
        changed(SHORT, ("1k", "1k\noptions:\n  betta_fast: 3")),
        2,
        "unknown-parameter-of-yarn",
        (5, "options.betta_fast"),
        "betta_fast",
    ),
    "an option of another kind": Row(
        changed(SHORT, ("1k", "1k\noptions:\n  beta_slow: 1\n  beta_fast: none")),
        2,
        "bad-parameter",
        (6, "options.beta_fast"),
        "`str`",
    ),
    "an option that is missing": Row(changed(SHORT, ("yarn", "longrope")), 2, "bad-parameter", (2, "options")),
    "a method for other models": Row(changed(SHORT, ("yarn", "alibi")), 3, "other-positions", (2, "method"), "alibi"),
    "an unknown family": Row(changed(SHORT, ("1k", "1k\nfamily: lama")), 2, "unknown-family", (4, "family"), "lama"),
    "unknown layers": Row(changed(SHORT, ("1k", "1k\nlayers: [no]")), 2, "unknown-layers", (4, "layers"), "no"),
    "an unknown refusal": Row(changed(SHORT, ("1k", "1k\nallow: all")), 2, "unknown-code", (4, "allow"), "all"),
    "a runtime of an unknown version": Row(
        changed(SHORT, ("1k", "1k\nruntimes: [vllm, transformers@4.40]")),
        2,
        "unknown-version",
        (4, "runtimes"),
        "transformers@4.40",
    ),
    "a scaling that a runtime can't read": Row(
        changed(GGUF, ("1k", "1k\ncarrier: native\noptions:\n  truncate: false")), 3, "unreadable", (2, "method")
    ),
    "a revision of a folder": Row(
        changed(SHORT, ("{source}", "{source}\nrevision: main")), 2, "bad-option", (2, "revision"), str(DEMO)
    ),
    "no such folder": Row(
        changed(SHORT, ("{source}", "./nowhere")), 1, "no-source", (1, "source"), "./nowhere: nothing at this path"
    ),
    "no such repository": Row(changed(SHORT, ("{source}", "org/none")), 1, "repo-not-found", (1, "source"), "org/none"),
    # The outputs.
    "an unknown type": Row(
        changed(GGUF, ("f16", "[f16, f17]")), 2, "unknown-outtype", (8, "outputs[0].outtypes"), "f17"
    ),
    "types of safetensors": Row(SHORT + OUTPUT + "outtypes: f16\n", 2, "bad-option", (7, "outputs[0].outtypes")),
    "no llama-quantize": Row(changed(GGUF, ("f16", "q4_k_m")), 3, "no-quantizer", (8, "outputs[0].outtypes"), "none"),
    "no such llama-quantize": Row(
        changed(GGUF, ("f16", "q4_k_m\n    quantizer: /nowhere/q")),
        3,
        "no-quantizer",
        (9, "outputs[0].quantizer"),
        "/nowhere/q: nothing",
    ),
    "no such converter": Row(
        GGUF + OUTPUT + "converter: /nowhere/c\n",
        3,
        "no-converter",
        (9, "outputs[0].converter"),
        "/nowhere/c: nothing",
    ),
    "a link mode for what is written anew": Row(
        GGUF + OUTPUT + "link_mode: hardlink\n", 2, "bad-option", (9, "outputs[0].link_mode")
    ),
    "a split of what stays as it is": Row(
        SHORT + OUTPUT + "split_max_size: 1GB\n", 2, "bad-option", (7, "outputs[0].split_max_size")
    ),
    "a folder called as a file": Row(
        changed(SHORT, ("name: long", "name: long.gguf")), 2, "bad-out", (6, "outputs[0].name"), "out/long.gguf"
    ),
    "a file called as a folder": Row(
        changed(GGUF, ("name: long.gguf", "name: long")), 2, "bad-out", (6, "outputs[0].name"), "out/long"
    ),
    **{
        f"an output called {name}": Row(
            changed(SHORT, ("name: long", f"name: {name}")), 2, "recipe-value", (6, "outputs[0].name"), name
        )
        for name in (
            *("run.json", "results.json", "results.md", "evidence", "README.md", "Evidence", "RUN.JSON"),
            *(".run.lock", "../long", "a/b", ".hidden", "-long"),
        )
    },
    "two outputs of one name": Row(SHORT + "  - name: Long\n", 2, "recipe-value", (7, "outputs[1].name")),
    "two outputs of the plan's name": Row(
        changed(SHORT, ("- name: long", "- name: Checkpoint-yarn-1k\n  - checksums: true")),
        2,
        "recipe-value",
        (7, "outputs[1].name"),
        "checkpoint-yarn-1k",
    ),
    "no name of a repository": Row(
        SHORT + OUTPUT + "repo_id: nobody\n", 2, "repo-id", (7, "outputs[0].repo_id"), "nobody"
    ),
    "neither here nor published": Row(SHORT + OUTPUT + "local: false\n", 2, "recipe-value", (7, "outputs[0].local")),
    "weights that aren't on the Hub": Row(
        SHORT + OUTPUT + "local: false\n    repo_id: me/long\n", 2, "recipe-value", (7, "outputs[0].local")
    ),
    "a smoke test that isn't described": Row(
        SHORT + OUTPUT + "smoke: true\n", 2, "recipe-value", (7, "outputs[0].smoke")
    ),
    "an evaluation that isn't described": Row(
        SHORT + OUTPUT + "eval: true\n", 2, "recipe-value", (7, "outputs[0].eval")
    ),
    # The check.
    "an unknown runtime": Row(
        SHORT + "check:\n  runtimes: [vllm, vlm]\n", 2, "unknown-runtime", (8, "check.runtimes"), "vlm"
    ),
    "a runtime that reads no output": Row(
        GGUF + "check:\n  runtimes: [llama.cpp, mlx-lm]\n", 2, "nobody-reads", (10, "check.runtimes"), "mlx-lm"
    ),
    "no such plan to hold it against": Row(
        SHORT + "check:\n  against: ./nowhere\n",
        1,
        "no-source",
        (8, "check.against"),
        "./nowhere: nothing at this path",
    ),
    # The smoke test.
    "a smoke test past the target": Row(SHORT + "smoke:\n  length: 2k\n", 2, "too-long", (8, "smoke.length"), "2048"),
    "vLLM where there is none": Row(SHORT + "smoke:\n  engine: vllm\n", 2, "missing-extra", (8, "smoke.engine")),
    "vLLM for a GGUF file": Row(GGUF + "smoke:\n  engine: vllm\n", 2, "bad-engine", (10, "smoke.engine"), "vllm"),
    "llama.cpp for a folder": Row(
        SHORT + "smoke:\n  engine: llama.cpp\n", 2, "bad-engine", (8, "smoke.engine"), "llama.cpp"
    ),
    "an engine beside a server": Row(
        SHORT + "smoke:\n  endpoint: http://127.0.0.1:9\n  engine: vllm\n",
        2,
        "bad-option",
        (9, "smoke.engine"),
        "vllm",
    ),
    "a server's name without a server": Row(
        SHORT + "smoke:\n  served_name: it\n", 2, "bad-option", (8, "smoke.served_name")
    ),
    "a device that isn't there": Row(
        SHORT + "smoke:\n  device: cudda\n", 2, "bad-device", (8, "smoke.device"), "cudda"
    ),
    "a share of more than all": Row(
        SHORT + "smoke:\n  min_passkey: 2\n", 2, "bad-number", (8, "smoke.min_passkey"), "2"
    ),
    "no such text": Row(
        SHORT + "smoke:\n  text: [emma, nowhere.txt]\n", 1, "text-missing", (8, "smoke.text"), "nowhere.txt"
    ),
    # 800 GiB of KV cache: 400 x 2^20 tokens, 4 layers, 2 heads of 32, keys and values, 2 bytes.
    "no memory": Row(changed(SHORT, ("1k", "400m")) + "smoke: true\n", 3, "not-enough-memory", (7, "smoke.length")),
    # The evaluation.
    "a short task against nothing": Row(SHORT + "eval:\n  tasks: short\n", 2, "no-against", (8, "eval.tasks"), "short"),
    "short lengths against nothing": Row(
        SHORT + "eval:\n  short_lengths: [64]\n", 2, "no-against", (8, "eval.short_lengths")
    ),
    "short lengths beyond the trained": Row(
        SHORT + "eval:\n  against: source\n  short_lengths: [64, 512]\n",
        2,
        "bad-option",
        (9, "eval.short_lengths"),
        "512",
    ),
    "the original of a GGUF file": Row(
        GGUF + "eval:\n  against: original\n", 2, "no-record", (10, "eval.against"), "original"
    ),
    "vLLM to measure where there is none": Row(
        SHORT + "eval:\n  engine: vllm\n", 2, "missing-extra", (8, "eval.engine")
    ),
    "a bound that nothing measures": Row(
        SHORT + "eval:\n  tasks: perplexity\n  bounds:\n    passkey: 0.5\n",
        2,
        "nothing-to-hold",
        (10, "eval.bounds.passkey"),
    ),
    "a bound against nothing": Row(
        SHORT + "eval:\n  bounds:\n    kl: 0.5\n", 2, "nothing-to-hold", (9, "eval.bounds.kl")
    ),
    "a gate without a bound": Row(
        SHORT + "eval:\n  tasks: words\n  gate: true\n", 2, "nothing-to-hold", (9, "eval.gate"), "words"
    ),
    "an unknown bound": Row(
        SHORT + "eval:\n  bounds:\n    passkey: 0.5\n    nonsense: 1\n",
        2,
        "unknown-bound",
        (10, "eval.bounds.nonsense"),
        "nonsense",
    ),
    "a bound that can't be held": Row(
        SHORT + "eval:\n  bounds:\n    passkey: 2\n", 2, "bad-number", (9, "eval.bounds.passkey"), "2"
    ),
    "an unknown task": Row(SHORT + "eval:\n  tasks: [perplexty]\n", 2, "unknown-task", (8, "eval.tasks"), "perplexty"),
    "no window": Row(SHORT + "eval:\n  windows: 0\n", 2, "bad-number", (8, "eval.windows"), "0"),
    "a depth outside": Row(SHORT + "eval:\n  depths: [0.5, 2]\n", 2, "bad-number", (8, "eval.depths"), "'2.0'"),
    "no such text to measure": Row(
        SHORT + "eval:\n  text: nowhere.txt\n", 1, "text-missing", (8, "eval.text"), "nowhere.txt"
    ),
    "no such checkpoint to hold it against": Row(
        SHORT + "eval:\n  against: ./nowhere\n",
        1,
        "no-source",
        (8, "eval.against"),
        "./nowhere: nothing at this path",
    ),
    # Publishing.
    "an unknown refusal of publishing": Row(
        SHORT + OUTPUT + "repo_id: me/long\npush:\n  allow: [all]\n", 2, "unknown-code", (9, "push.allow"), "all"
    ),
}


def refused(run: Run, here: Path, *options: str) -> dict[str, Any]:
    """The error of ``recipe.yaml``: the same with and without ``--dry-run``, and nothing is written by either."""
    before = listing(here), bytes_of(here)
    dry, done = (run("run", "recipe.yaml", "--json", *options, *more) for more in (("--dry-run",), ()))
    assert (listing(here), bytes_of(here)) == before
    # What is free of the memory differs from one moment to the next.
    passing = ("found", "hint") if done.document["code"] == "not-enough-memory" else ()
    assert [(key, value) for key, value in dry.document.items() if key not in passing] == [
        (key, value) for key, value in done.document.items() if key not in passing
    ]
    assert dry.code == done.code == done.document["exit_code"]
    assert done.document["schema"] == "ctxextend.error/1"
    return done.document


def listing(folder: Path) -> list[str]:
    """Everything below, empty folders and links too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


#: Options that the command has: a recipe's user can give no others.
OPTIONS = {
    *("--var", "--out", "--shard", "--merge", "--push", "--no-push", "--dry-run", "--force", "--token", "--cache-dir"),
    *("--json", "--quiet", "--verbose", "--help"),
}


def assert_in_recipe_words(error: dict[str, Any]) -> None:
    for part in ("message", "key", "expected", "found", "hint"):
        assert set(re.findall(r"--[a-z][a-z-]*", error.get(part, ""))) <= OPTIONS, error[part]
    # What mends a recipe is a line of it, or another call of 'run': no other command.
    assert not re.search(r"ctxextend (?!run\b|families|recipe)[a-z]+", error.get("hint", ""))


def test_the_options_are_those_of_the_command(run: Run) -> None:
    """What the rows below let pass is what there is."""
    assert set(re.findall(r"--[a-z][a-z-]*", run("run", "--help", COLUMNS="200").out)) >= OPTIONS


@pytest.mark.parametrize("name", ROWS)
def test_wrong_words_are_told_with_their_line(run: Run, hub: FakeHub, here: Path, name: str) -> None:
    row = ROWS[name]
    written(here, row.text)
    error = refused(run, here, "--no-push")
    line, key = row.at
    told = (error["exit_code"], error["code"], error["file"], error["key"])
    assert told == (row.exit_code, row.code, f"recipe.yaml, line {line}", key)
    if row.found is not None:
        assert error["found"] == row.found
    assert_in_recipe_words(error)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("changes", "exit_code", "code", "at", "found"),
    [
        (
            {"push": "push:\n  create_pr: true\n  revision: dev\n"},
            2,
            "bad-option",
            (9, "push.create_pr"),
            "revision: dev",
        ),
        ({"token": "none"}, 1, "unauthorized", (7, "outputs[0].repo_id"), None),
    ],
)
def test_what_the_hub_would_refuse_is_known_before(
    run: Run,
    hub: FakeHub,
    here: Path,
    changes: dict[str, str],
    exit_code: int,
    code: str,
    at: tuple[int, str],
    found: str | None,
) -> None:
    text = SHORT + OUTPUT + "repo_id: me/long\n" + changes.get("push", "")
    written(here, text)
    token = None if "token" in changes else TOKEN
    error = run("run", "recipe.yaml", "--json", token=token).document
    assert run("run", "recipe.yaml", "--json", "--dry-run", token=token).document == error
    assert (error["exit_code"], error["code"]) == (exit_code, code)
    assert (error["file"], error["key"]) == (f"recipe.yaml, line {at[0]}", at[1])
    if found is not None:
        assert error["found"] == found
    assert_in_recipe_words(error)
    assert listing(here) == ["recipe.yaml"]
    assert not hub.repositories


#: A check against another checkpoint reads its config alone.
UNREAD = ("its weights", "check")

#: A checkpoint that is broken: how, what is said then, and of which file.
BROKEN = {
    "its config": ("config.json", b"{", 1, "broken-json", "a file can't be read as JSON"),
    "its weights": (
        "model.safetensors",
        b"abc",
        1,
        "broken-weights",
        "a weight file is broken: it is too short for a safetensors file",
    ),
}


@pytest.mark.parametrize(
    ("broken", "place"),
    [(broken, place) for broken in BROKEN for place in ("source", "check", "eval") if (broken, place) != UNREAD],
)
def test_a_broken_checkpoint_is_named(run: Run, here: Path, broken: str, place: str) -> None:
    """Several are named by one recipe: ``config.json`` alone says too little."""
    file, data, exit_code, code, message = BROKEN[broken]
    (shutil.copytree(DEMO, here / "model") / file).write_bytes(data)
    if place == "source":
        written(here, changed(SHORT, ("{source}", "model")))
        named = "source model"
    else:
        written(here, f"{SHORT}{place}:\n  against: model\n")
        named = "against model"
    error = refused(run, here)
    told = (error["exit_code"], error["code"], error["file"], error["message"])
    assert told == (exit_code, code, file, f"{named}: {message}")
    assert_in_recipe_words(error)


def test_what_the_source_leaves_open_is_asked_in_recipe_words(run: Run, here: Path) -> None:
    source = shutil.copytree(DEMO, here / "model")
    written(here, changed(SHORT, ("{source}", "model")))
    edit_config(source, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["file"]) == (3, "undecidable-base", "config.json")
    assert error["message"].startswith("source model: ")
    assert "base: trained if" in error["hint"]
    assert "base: unscaled if" in error["hint"]
    assert_in_recipe_words(error)
    edit_config(source, rope_scaling=None, model_type="nobody-knows")
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["key"]) == (3, "unknown-family", "model_type")
    assert error["hint"].endswith("family: NAME")


def test_without_a_tokenizer_there_is_no_gguf(run: Run, here: Path) -> None:
    source = shutil.copytree(DEMO, here / "model")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    written(here, changed(GGUF, ("{source}", "model")))
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["file"]) == (1, "no-tokenizer", "model")


def test_of_several_variants_it_says_which(run: Run, here: Path) -> None:
    """The second can't be: the first isn't begun."""
    written(here, MATRIX.replace("target: [512, 1k]", "target: [512, 100]"))
    error = refused(run, here)
    assert (error["exit_code"], error["code"]) == (3, "within-trained")
    assert error["message"].startswith("yarn-100: ")
    assert (error["file"], error["key"], error["found"]) == ("recipe.yaml, line 5", "target", "100")
    shutil.copytree(DEMO, here / "other")
    (here / "other" / "config.json").write_text("{")
    text = MATRIX.replace("source: {source}\n", "").replace("matrix:", "matrix:\n  source: [{source}, other]")
    written(here, text)
    error = refused(run, here)
    assert error["message"] == "other-yarn-512: source other: a file can't be read as JSON"


#: Where somebody has something already: what lies there, and what the refusal names.
FOREIGN = {
    "a page of results": ("out/results.md", "out/results.md"),
    "results": ("out/results.json", "out/results.json"),
    "evidence": ("out/evidence/long/eval.json", "out/evidence/long"),
    "a file called evidence": ("out/evidence", "out/evidence"),
    "an output": ("out/long/config.json", "out/long"),
    "a file called as the output": ("out/long", "out/long"),
    "a state": ("out/run.json", "out/run.json"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_somebody_elses_is_left_alone(run: Run, here: Path, what: str) -> None:
    place, named = FOREIGN[what]
    written(here, SHORT + "check: true\n")
    theirs = here / place
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"mine": 1}')
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["file"]) == (3, "output-exists", named)
    # --force takes nothing of somebody else's either, so that nothing says it did.
    assert "--force" not in error["hint"]
    assert refused(run, here, "--force") == error


@pytest.mark.parametrize("name", ["results.md", "results.json"])
def test_a_folder_where_the_results_go(run: Run, here: Path, name: str) -> None:
    written(here, SHORT)
    (here / "out" / name).mkdir(parents=True)
    if name == "results.md":
        (here / "out" / "results.json").write_text(json.dumps({"schema": "ctxextend.run/1", "recipe": "recipe"}))
    error = refused(run, here)
    assert (error["code"], error["file"]) == ("output-exists", f"out/{name}")


def test_evidence_of_a_new_output_may_be_somebody_elses(run: Run, here: Path) -> None:
    """A run went through here: that makes its own evidence its own, and no other."""
    written(here, SHORT + "check: true\n")
    assert run("run", "recipe.yaml").code == 0
    theirs = here / "out" / "evidence" / "more" / "check.json"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    assert run("run", "recipe.yaml").code == 0
    written(here, changed(SHORT, ("name: long", "name: long\n  - name: more")) + "check: true\n")
    done = run("run", "recipe.yaml", "--json")
    assert (done.code, done.document["file"]) == (3, "out/evidence/more")
    assert theirs.read_text() == "mine"


@pytest.mark.parametrize("place", ["evidence", "evidence/long"])
@pytest.mark.parametrize("to", ["a folder", "nothing"])
def test_evidence_goes_over_no_link(run: Run, here: Path, place: str, to: str) -> None:
    written(here, SHORT + "check: true\n")
    link = here / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(here / "elsewhere")
    if to == "a folder":
        (here / "elsewhere").mkdir()
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["file"]) == (3, "output-exists", f"out/{place}")
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("source", "out", "named"),
    [
        ("model", "model", "model"),
        ("model", "model/out", "model/out"),
        ("out/evidence/long", "out", "out/evidence/long"),
        ("out/evidence/long/model", "out", "out/evidence/long"),
        ("out/long", "out", "out/long"),
        ("out/long/model", "out", "out/long"),
        ("model", "link", "link"),
    ],
)
def test_the_source_lies_apart(run: Run, here: Path, source: str, out: str, named: str) -> None:
    shutil.copytree(DEMO, here / source)
    if out == "link":
        (here / "link").symlink_to(here / "model")
    written(here, changed(SHORT, ("{source}", source), ("out: out", f"out: {out}")))
    error = refused(run, here)
    assert (error["exit_code"], error["file"]) == (3, named)
    assert error["code"] in {"inside-source", "output-inside-source", "source-inside-output"}
    assert_in_recipe_words(error)


@pytest.mark.parametrize(("out", "named"), [("file", "file"), ("file/below", "file"), ("dangling", "dangling")])
def test_out_is_no_folder(run: Run, here: Path, out: str, named: str) -> None:
    (here / "file").write_text("mine")
    (here / "dangling").symlink_to(here / "nothing")
    written(here, changed(SHORT, ("out: out", f"out: {out}")))
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["file"]) == (1, "not-a-folder", str(here / named))


def test_out_cannot_be_written(here: Path) -> None:
    """Who may write everywhere, as in a container, is told otherwise by the system alone."""
    file = read_recipe(written(here, changed(SHORT, ("out: out", f"out: {here}/a/b"))))

    def access(path: Path, mode: int) -> bool:
        return not (Path(path) == here and mode == os.W_OK)

    for dry in (True, False):
        with mock.patch("os.access", access), pytest.raises(OutputError) as raised:
            carried_out(file, RunOptions(dry_run=dry))
        assert (raised.value.code, raised.value.file) == ("io", str(here))
        assert listing(here) == ["recipe.yaml"]


def test_a_home_of_nobody(run: Run, here: Path) -> None:
    written(here, changed(SHORT, ("out: out", "out: ~nobody-of-this-name/out")))
    assert run("run", "recipe.yaml", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("left", "exit_code", "code"),
    [
        (b'{"schema": "ctxextend.run-variant/1", "rec', 1, "broken-state"),
        (b'{"schema": "ctxextend.run-variant/1"}', 1, "broken-state"),
        (b"", 1, "broken-state"),
        (b"\0" * 4096, 1, "broken-state"),
        (b'{"scores": [1, 2]}', 3, "output-exists"),
        (b"\xff\xfe", 3, "output-exists"),
        (b"[" * 100_000, 3, "output-exists"),
    ],
)
def test_a_state_that_cannot_be_read(run: Run, here: Path, left: bytes, exit_code: int, code: str) -> None:
    """Cut off, or zeros where the power went away, or of another program: it stays, and so does all beside it."""
    written(here, SHORT)
    (here / "out").mkdir()
    (here / "out" / "run.json").write_bytes(left)
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["file"]) == (exit_code, code, "out/run.json")
    assert "--out" in error["hint"]


def test_two_recipes_do_not_share_a_folder(run: Run, here: Path) -> None:
    written(here, QUICK)
    run("run", "recipe.yaml", "--no-push")
    written(here, QUICK, name="other.yaml")
    before = bytes_of(here)
    done = run("run", "other.yaml", "--no-push", "--json")
    assert done.code == 3
    assert (done.document["code"], done.document["file"]) == ("output-exists", "out/results.json")
    assert bytes_of(here) == before
    # Of a run that never ended there is the state alone.
    for name in ("results.json", "results.md"):
        (here / "out" / name).unlink()
    done = run("run", "other.yaml", "--no-push", "--json")
    assert (done.document["expected"], done.document["found"]) == ("a run of other", "a run of recipe")


def test_the_variants_go_to_one_folder(run: Run, here: Path) -> None:
    written(here, MATRIX.replace("out: out", "out: out/${{method}}"))
    error = refused(run, here)
    assert (error["exit_code"], error["code"], error["key"]) == (3, "several-folders", "out")


def test_a_folder_in_use_keeps_its_lock_alone(run: Run, here: Path) -> None:
    from ctxextend.release.state import locked

    written(here, SHORT)
    with locked(here / "out"):
        done = run("run", "recipe.yaml", "--json")
    assert (done.code, done.document["variants"][0]["error"]["code"]) == (1, "busy")
    assert listing(here / "out") == [".run.lock", "results.json", "results.md"]


def test_without_a_local_copy_nothing_is_checked_here(run: Run, hub: FakeHub, here: Path) -> None:
    """``check`` and ``card`` of the whole recipe are of the outputs that are here (docs/guides/recipes.md)."""
    hub.add("org/tiny", checkpoint(here.parent / "source"))
    text = changed(SHORT, ("{source}", "org/tiny"), ("1k", "4k")) + OUTPUT + "repo_id: me/tiny-4k\n    local: false\n"
    written(here, text + "check: true\ncard: true\n")
    done = run("run", "recipe.yaml", "--dry-run", "--json")
    assert done.code == 0, done.out + done.err
    assert states(done) == [("push", "long", "pending")]
    written(here, text + "    smoke: true\nsmoke: true\n")
    error = refused(run, here)
    assert (error["exit_code"], error["code"]) == (2, "recipe-value")
    assert (error["file"], error["key"]) == ("recipe.yaml, line 8", "outputs[0].local")


def test_torchrun_does_not_run_a_recipe(run: Run, here: Path) -> None:
    written(here, QUICK)
    done = run("run", "recipe.yaml", "--json", WORLD_SIZE="2", RANK="0")
    assert (done.code, done.document["code"]) == (2, "several-processes")
    assert listing(here) == ["recipe.yaml"]


@pytest.mark.parametrize("option", [("--shard", "1/2"), ("--dry-run",), ("--force",)])
def test_merging_runs_nothing(run: Run, here: Path, option: tuple[str, ...]) -> None:
    written(here, QUICK)
    done = run("run", "recipe.yaml", "--merge", *option, "--json")
    assert (done.code, done.document["key"]) == (2, option[0])
    assert listing(here) == ["recipe.yaml"]


@pytest.mark.parametrize("shard", ["0/4", "5/4", "2", "a/b", "1/0"])
def test_a_shard_that_there_is_not(run: Run, here: Path, shard: str) -> None:
    written(here, MATRIX)
    done = run("run", "recipe.yaml", "--shard", shard, "--json")
    assert (done.code, done.document["code"], done.document["key"]) == (2, "bad-shard", "--shard")
    assert listing(here) == ["recipe.yaml"]


def test_no_recipe(run: Run, here: Path) -> None:
    done = run("run", "recipe.yaml", "--json")
    assert (done.code, done.document["code"], done.document["file"]) == (1, "recipe-file", "recipe.yaml")
    assert not listing(here)
