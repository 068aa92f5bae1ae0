"""The GitHub Action, the container file and the guide's scripts, run as far as a shell can without either service."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.cli.support import call, environment
from tests.test_docs import console_commands

ROOT = Path(__file__).resolve().parent.parent
GUIDE = "docs/guides/pipelines.md"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
INSTALL, RUN = (step for step in ACTION["runs"]["steps"] if "run" in step)

#: As the runner starts ``shell: bash``.
BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")
SHEBANG = f"#!{sys.executable}\n"
#: Writes its arguments and what it knows of the token, says what a checkpoint might, and ends as it is told.
STUB = """
import json, os, sys
from pathlib import Path
told = Path(os.environ["TOLD"])
lines = told.read_text().splitlines() if told.exists() else []
told.write_text("\\n".join([*lines, json.dumps([*sys.argv[1:]])]) + "\\n")
print(os.environ.get("SAYS", ""))
sys.exit(int(os.environ.get("CODE", "0")))
"""
#: What must stay text.
HOSTILE = "a b'c\"d $(touch pwned) `touch pwned` ; touch pwned # ${HOME} * \\"


class Ran(NamedTuple):
    """What a step left: its exit code and log, the outputs and the summary that it wrote, the calls of a stub."""

    code: int
    out: str
    err: str
    outputs: dict[str, str]
    summary: str
    path: str
    calls: list[list[str]]


class Runner:
    """A folder with the files that a runner gives each step, and programs of our own first on the path."""

    def __init__(self, folder: Path) -> None:
        self.workspace = folder / "workspace"
        self.programs = folder / "bin"
        self._files = folder / "files"
        for place in (self.workspace, self.programs, self._files, folder / "temp"):
            place.mkdir(parents=True)
        self._temp = folder / "temp"

    def program(self, name: str, text: str) -> Path:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def real(self) -> None:
        """The command as it is, from this tree."""
        self.program("ctxextend", f'#!/bin/sh\nexec "{sys.executable}" -m ctxextend "$@"\n')

    def stub(self) -> None:
        self.program("ctxextend", SHEBANG + STUB)

    def __call__(self, script: str, **variables: str) -> Ran:
        given = {"output": "GITHUB_OUTPUT", "summary": "GITHUB_STEP_SUMMARY", "path": "GITHUB_PATH", "told": "TOLD"}
        files = {name: self._files / name for name in given}
        for name, file in files.items():
            file.unlink(missing_ok=True)
            if name != "told":
                file.touch()
        done = subprocess.run(
            [*BASH, script],
            cwd=self.workspace,
            env=environment(
                PATH=f"{self.programs}:{os.environ['PATH']}",
                PYTHONPATH=str(ROOT),
                RUNNER_TEMP=str(self._temp),
                GITHUB_ACTION_PATH=str(ROOT),
                **{given[name]: str(file) for name, file in files.items()},
                **variables,
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        told = files["told"]
        return Ran(
            done.returncode,
            done.stdout,
            done.stderr,
            dict(line.split("=", 1) for line in files["output"].read_text().splitlines()),
            files["summary"].read_text(),
            files["path"].read_text(),
            [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else [],
        )

    def step(self, step: Mapping[str, Any], inputs: Mapping[str, str], **variables: str) -> Ran:
        """A step of the action, with its inputs where the runner would put them."""
        filled = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()} | dict(inputs)
        env = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: filled[found[1]], value)
            for name, value in step["env"].items()
        }
        return self(step["run"], **env, **variables)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def blocks(language: str) -> dict[str, str]:
    """The files that the guide shows, by the name in their first comment."""
    text = (ROOT / GUIDE).read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    named = [(re.search(r"^# (\S+)$", block, re.MULTILINE), block) for block in found]
    return {name[1]: block for name, block in named if name is not None}


def put_recipe(folder: Path) -> None:
    shutil.copytree(ROOT / "demo" / "checkpoint", folder / "demo" / "checkpoint")
    (folder / "recipe.yaml").write_text(blocks("yaml")["recipe.yaml"])


def carry(patterns: list[str], source: Path, target: Path) -> None:
    """What an artifact of these patterns brings from one job's folder to another's."""
    for pattern in patterns:
        for file in source.glob(pattern.rstrip("/") + "/**/*" if pattern.endswith("/") else pattern):
            if file.is_file():
                place = target / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)


# The action's file


def test_no_input_is_put_into_a_script() -> None:
    for step in (INSTALL, RUN):
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


def test_every_input_is_used_and_every_use_is_an_input() -> None:
    runs = json.dumps(ACTION["runs"])
    assert set(re.findall(r"inputs\.([\w-]+)", runs)) == set(ACTION["inputs"])
    text = (ROOT / GUIDE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| [^|]*\| [^|]*\|$", text, re.MULTILINE)
    assert set(re.findall(r"`([a-z-]+)`", " ".join(rows))) == set(ACTION["inputs"])


def test_every_output_is_written(runner: Runner) -> None:
    runner.stub()
    written = runner.step(RUN, {"recipe": "recipe.yaml"}).outputs
    used = re.findall(r"steps\.run\.outputs\.([\w-]+)", json.dumps(ACTION))
    assert set(used) == set(written)


def test_the_example_gives_the_action_inputs_that_it_has() -> None:
    workflow = yaml.safe_load(blocks("yaml")[".github/workflows/release-model.yml"])
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    ours = [step["with"] for step in steps if step["uses"] == "OWNER/ctxextend@REF"]
    assert len(ours) == 2
    assert all(set(given) <= set(ACTION["inputs"]) and given["recipe"] for given in ours)
    assert ours[0]["variables"] == ours[1]["variables"]
    (download,) = (step["with"] for step in steps if step["uses"].startswith("actions/download-artifact@"))
    assert fnmatch.fnmatch(f"{ACTION['inputs']['artifact']['default']}-1-of-2", download["pattern"])
    assert download["path"] == ACTION["inputs"]["out"]["default"]


# Its steps


def test_arguments_arrive_as_they_were_given(runner: Runner) -> None:
    runner.stub()
    inputs = {
        "recipe": HOSTILE,
        "variables": f"org={HOSTILE}\r\n\n  name= two  spaces \n-x=--force",
        "out": HOSTILE.replace("/", ""),
        "shard": "2/4; touch pwned",
        "push": "true",
        "args": f"--cache-dir\n{HOSTILE}\n--force",
    }
    ran = runner.step(RUN, inputs)
    assert ran.code == 0, ran.err
    expected = ["run", f"--out={HOSTILE}", "--push", "--shard=2/4; touch pwned"]
    expected += [f"--var=org={HOSTILE}", "--var=  name= two  spaces ", "--var=-x=--force"]
    assert ran.calls == [[*expected, "--cache-dir", HOSTILE, "--force", "--", HOSTILE]]
    assert list(runner.workspace.iterdir()) == []


def test_a_recipe_is_no_option(runner: Runner) -> None:
    runner.real()
    ran = runner.step(RUN, {"recipe": "--help"})
    assert ran.code != 0
    assert "Usage" not in ran.out


@pytest.mark.parametrize(
    "inputs",
    [
        {"out": "out\nok=true"},
        {"shard": "1/2\nok=true"},
        {"artifact": "a\nok=true"},
        {"out": ""},
        {"push": "yes"},
        {"merge": "$(touch pwned)"},
    ],
    ids=lambda inputs: next(iter(inputs)),
)
def test_what_is_no_value_of_an_input_ends_the_step(runner: Runner, inputs: dict[str, str]) -> None:
    runner.stub()
    ran = runner.step(RUN, {"recipe": "recipe.yaml", **inputs})
    assert (ran.code, ran.calls, ran.outputs) == (2, [], {})
    assert re.fullmatch(r"::error title=ctxextend::[a-z, ]+\n", ran.out)
    assert list(runner.workspace.iterdir()) == []


@pytest.mark.parametrize("code", [0, 1, 4, 130])
def test_the_step_ends_as_the_command_does(runner: Runner, code: int) -> None:
    runner.stub()
    out = runner.workspace / "ctxextend-out"
    out.mkdir()
    (out / "results.json").write_text("{}")
    (out / "results.md").write_text("# A table\n")
    ran = runner.step(RUN, {"recipe": "recipe.yaml"}, CODE=str(code))
    assert ran.code == code
    assert ran.summary == "# A table\n"
    assert ran.outputs == {
        "ok": "true" if code == 0 else "false",
        "exit-code": str(code),
        "out": str(out),
        "results": str(out / "results.json"),
        "artifact": "ctxextend",
    }


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"shard": "2/4"}, "ctxextend-2-of-4"),
        ({"shard": "1/2", "artifact": "mine"}, "mine-1-of-2"),
        ({"artifact": ""}, None),
    ],
)
def test_each_shard_has_an_artifact_of_its_own(runner: Runner, inputs: dict[str, str], named: str | None) -> None:
    runner.stub()
    assert runner.step(RUN, {"recipe": "recipe.yaml", **inputs}).outputs.get("artifact") == named


def test_the_runner_takes_no_command_from_the_log(runner: Runner) -> None:
    runner.stub()
    evil = "::set-output name=ok::true"
    first, said, last = runner.step(RUN, {"recipe": "recipe.yaml"}, SAYS=evil).out.splitlines()
    stopped = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", first)
    assert stopped is not None
    assert (said, last) == (evil, f"::{stopped[1]}::")
    again = runner.step(RUN, {"recipe": "recipe.yaml"}).out.splitlines()[0]
    assert again != first


@pytest.mark.parametrize(
    ("inputs", "torch", "package"),
    [
        ({}, None, f"{ROOT}[all]"),
        ({"torch-index": "https://example.org/cpu"}, "--index-url=https://example.org/cpu", f"{ROOT}[all]"),
        ({"extras": ""}, None, f"{ROOT}"),
        ({"extras": "llama-cpp"}, None, f"{ROOT}[llama-cpp]"),
        (
            {"extras": "lab", "torch-index": HOSTILE, "version": HOSTILE},
            f"--index-url={HOSTILE}",
            f"ctxextend[lab]=={HOSTILE}",
        ),
    ],
    ids=["default", "cpu", "bare", "no-torch", "hostile"],
)
def test_what_is_installed(runner: Runner, inputs: dict[str, str], torch: str | None, package: str) -> None:
    make = """
import os, shutil, sys
from pathlib import Path
assert os.environ["HF_TOKEN"] == ""
if sys.argv[1:3] == ["-m", "venv"]:
    place = Path(sys.argv[3]) / "bin"
    place.mkdir(parents=True)
    shutil.copy(__file__, place / "python")
"""
    runner.program("python", SHEBANG + make + STUB)
    ran = runner.step(INSTALL, inputs)
    assert ran.code == 0, ran.err
    venv, *installed = ran.calls
    assert venv[:2] == ["-m", "venv"]
    assert ran.path == f"{venv[2]}/bin\n"
    constraint = [] if "version" in inputs else ["--constraint", str(ROOT / "constraints.txt")]
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraint]
    alone = [] if torch is None else [[*pip, "--no-deps", torch, "torch"]]
    assert installed == [*alone, [*pip, "--", package]]
    assert list(runner.workspace.iterdir()) == []


def test_shards_and_their_merge(runner: Runner, tmp_path: Path) -> None:
    """The command as it is: two jobs, what their artifacts bring, and the job that merges them."""
    runner.real()
    put_recipe(runner.workspace)
    (upload,) = (step["with"] for step in ACTION["runs"]["steps"] if "upload-artifact" in step.get("uses", ""))
    merging = Runner(tmp_path / "merging")
    merging.real()
    put_recipe(merging.workspace)
    given = {"recipe": "recipe.yaml", "variables": "org=my-org\n"}
    for shard in ("1/2", "2/2"):
        ran = runner.step(RUN, {**given, "shard": shard})
        assert (ran.code, ran.outputs["ok"], ran.outputs["results"]) == (0, "true", ""), ran.err
        patterns = [line.replace("${{ steps.run.outputs.out }}/", "") for line in upload["path"].splitlines()]
        carry(patterns, Path(ran.outputs["out"]), merging.workspace / "ctxextend-out")
        shutil.rmtree(ran.outputs["out"])
    assert not list(merging.workspace.rglob("*.gguf"))
    ran = merging.step(RUN, {**given, "merge": "true"})
    assert (ran.code, ran.outputs["ok"]) == (0, "true"), ran.err
    assert {"yarn", "ntk"} <= set(re.findall(r"\w+", ran.summary))
    results = json.loads(Path(ran.outputs["results"]).read_text())
    assert (results["schema"], results["ok"]) == ("ctxextend.run/1", True)


def test_a_missing_shard_is_told(runner: Runner) -> None:
    runner.real()
    put_recipe(runner.workspace)
    given = {"recipe": "recipe.yaml", "variables": "org=my-org"}
    assert runner.step(RUN, {**given, "shard": "1/2"}).code == 0
    ran = runner.step(RUN, {**given, "merge": "true"})
    assert (ran.code, ran.outputs["ok"], ran.outputs["results"]) == (1, "false", "")
    assert "ntk" in ran.err


# The guide


def test_the_guides_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_recipe(tmp_path)
    commands = list(console_commands(GUIDE))
    assert len(commands) == 5
    for command, code in commands:
        assert call(*shlex.split(command)[1:]).code == code, command


def test_the_guides_links_lead_somewhere() -> None:
    text = (ROOT / GUIDE).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / GUIDE).parent.joinpath(link).exists(), link


def test_the_gitlab_jobs(runner: Runner, tmp_path: Path) -> None:
    runner.real()
    put_recipe(runner.workspace)
    jobs = yaml.safe_load(blocks("yaml")[".gitlab-ci.yml"])
    variables = {"HF_ORG": jobs["variables"]["HF_ORG"], "CI_NODE_TOTAL": str(jobs[".shard"]["parallel"])}

    def script(name: str) -> str:
        return "\n".join(jobs[name]["script"])

    assert runner(script("validate"), **variables).code == 0
    assert sorted(path.name for path in runner.workspace.iterdir()) == ["demo", "recipe.yaml"]
    last = Runner(tmp_path / "last")
    last.real()
    put_recipe(last.workspace)
    for index in ("1", "2"):
        ran = runner(script(".shard"), CI_NODE_INDEX=index, **variables, **jobs["gate"]["variables"])
        assert ran.code == 0, ran.err
        carry(jobs[".shard"]["artifacts"]["paths"], runner.workspace, last.workspace)
        shutil.rmtree(runner.workspace / "out")
    ran = last(script("results"), **variables)
    assert ran.code == 0, ran.err
    assert "| yarn |" in ran.out
    runner.stub()
    ran = runner(script(".shard"), CI_NODE_INDEX="2", **variables, **jobs["publish"]["variables"])
    expected = "run recipe.yaml --var org=my-org --out out --shard 2/2 --push"
    assert ran.calls == [expected.split()]
    assert {jobs[name]["stage"] for name in jobs if "stage" in jobs[name]} == set(jobs["stages"])


def test_the_slurm_scripts(runner: Runner) -> None:
    scripts = blocks("bash")
    first, last = re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", scripts["shard.sbatch"], re.MULTILINE)[0]
    assert first == "1"
    runner.real()
    put_recipe(runner.workspace)
    task = scripts["shard.sbatch"]
    assert runner(task, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_TASK_COUNT=last).code == 0
    assert runner(scripts["merge.sbatch"]).code == 1
    # The second alone, once more: Slurm then counts one task.
    assert runner(task, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_TASK_COUNT="1", SHARDS="2").code == 0
    ran = runner(scripts["merge.sbatch"])
    assert ran.code == 0, ran.err
    assert (runner.workspace / "out" / "results.json").is_file()


@pytest.mark.parametrize("answer", ["4711", "4711;cluster"])
def test_the_merge_waits_for_the_whole_array(runner: Runner, answer: str) -> None:
    runner.program("sbatch", SHEBANG + STUB)
    ran = runner(blocks("bash")["submit.sh"], SAYS=answer)
    assert ran.code == 0, ran.err
    assert ran.calls == [["--parsable", "shard.sbatch"], ["--dependency=afterany:4711", "merge.sbatch"]]


def test_hf_reads_the_jobs_options(runner: Runner) -> None:
    """The client as it is; nothing is submitted, and no address that answers is known to it."""
    client = Path(sys.executable).parent / "hf"
    if not client.exists():
        pytest.skip("no hf beside this Python")
    text = (ROOT / GUIDE).read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(for shard.*?)```", text, re.DOTALL)
    dry = """
import os, sys
os.execv(PROGRAM, ["hf", *sys.argv[1:3], "--dry-run", "--namespace", "my-org", *sys.argv[3:]])
"""
    runner.program("hf", SHEBANG + dry.replace("PROGRAM", repr(str(client))))
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    ran = runner(script, HF_TOKEN="hf_none", **nowhere)
    assert ran.code == 0, ran.err
    assert ran.out.count("dry run") + ran.err.count("dry run") == 2
    assert re.findall(r"--shard (\d/\d)", ran.out) == ["1/2", "2/2"]
    # An option that it doesn't know would be taken for the image.
    for key, value in (("image", "python:3.12"), ("flavor", "l4x1"), ("timeout", "2h"), ("secrets", "HF_TOKEN=\\*+")):
        assert len(re.findall(rf"^ +{key} +{value}$", ran.out, re.MULTILINE)) == 2, ran.out


# The container


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    joined = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def test_what_the_container_is_made_of_is_there_and_let_in() -> None:
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    ignore = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied)
    assert all((ROOT / source).exists() for source in copied)
    # What the build of the package reads beside the package.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"pyproject.toml", "ctxextend", project["readme"], *project["license-files"]} <= set(copied)


def test_the_container_installs_what_the_project_pins() -> None:
    runs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(runs) == 2
    assert all("-c constraints.txt" in rest for rest in runs)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    defaults = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert defaults["EXTRAS"] in extras
    assert defaults["TORCH_INDEX"] == ACTION["inputs"]["torch-index"]["default"]


def test_the_container_runs_as_nobody_in_particular() -> None:
    found = dict(instructions())
    assert found["USER"].isdigit()
    assert int(found["USER"]) > 0
    assert json.loads(found["ENTRYPOINT"]) == ["ctxextend"]
    assert "HF_HOME=/cache/huggingface" in found["ENV"]
    assert found["VOLUME"] == "/cache"
    assert ("RUN", "mkdir -m 1777 /cache /data") in instructions()
