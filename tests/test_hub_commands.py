"""The commands on a repository of the Hub: what is fetched, and that the result is that of a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from tests.fake_hub import FakeHub, Repository, serve
from tests.gguf_factory import encode, info, keys, pair, value

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "checkpoint"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve() as running:
        running.repositories["org/demo"] = Repository(commits={COMMIT: DEMO}, branches={"main": COMMIT})
        yield running


def ctxextend(hub: FakeHub, home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-m", "ctxextend", *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def weight_bytes_served(hub: FakeHub) -> int:
    return sum(count for label, count in hub.served.items() if "model.safetensors" in label)


def test_inspect_and_plan_fetch_no_weights(hub: FakeHub, tmp_path: Path) -> None:
    done = ctxextend(hub, tmp_path, "inspect", "org/demo", "--target", "1k", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["trained_context"], document["revision"]) == (256, COMMIT)
    assert document["parameters"] > 1_000_000
    plan = ctxextend(hub, tmp_path, "plan", "hf://org/demo@main", "-m", "yarn", "-t", "1k", "--json")
    assert json.loads(plan.stdout)["factor"] == 4.0
    assert weight_bytes_served(hub) < (DEMO / "model.safetensors").stat().st_size


def test_config_only_fetches_no_weights(hub: FakeHub, tmp_path: Path) -> None:
    done = ctxextend(hub, tmp_path, "convert", "org/demo", "-m", "yarn", "-t", "1k", "--config-only")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "demo-yarn-1k\n"
    out = tmp_path / "demo-yarn-1k"
    assert not list(out.glob("*.safetensors"))
    overrides = json.loads((out / "ctxextend-overrides.json").read_text())
    assert "vllm serve org/demo --hf-overrides" in overrides["vllm"]
    assert overrides["config"]["rope_parameters"]["factor"] == 4.0
    assert weight_bytes_served(hub) < (DEMO / "model.safetensors").stat().st_size


def test_convert_gives_what_a_folder_gives(hub: FakeHub, tmp_path: Path) -> None:
    done = ctxextend(hub, tmp_path, "convert", "org/demo", "-m", "yarn", "-t", "1k", "-o", "from-hub")
    assert done.returncode == 0, done.stderr
    local = ctxextend(hub, tmp_path, "convert", str(DEMO), "-m", "yarn", "-t", "1k", "-o", "from-folder")
    assert local.returncode == 0, local.stderr
    for file in DEMO.iterdir():
        assert (tmp_path / "from-hub" / file.name).read_bytes() == (tmp_path / "from-folder" / file.name).read_bytes()
        assert not (tmp_path / "from-hub" / file.name).is_symlink()
    manifest = json.loads((tmp_path / "from-hub" / "ctxextend.json").read_text())
    assert manifest["plan"]["source"]["revision"] == COMMIT
    weights = next(file for file in manifest["files"] if file["path"] == "model.safetensors")
    assert len(weights["etag"]) == 64


def test_a_name_that_is_nowhere(hub: FakeHub, tmp_path: Path) -> None:
    done = ctxextend(hub, tmp_path, "inspect", "org/nothing", "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert error["schema"] == "ctxextend.error/1"
    assert error["code"] == "repo-not-found"
    assert "hint" in error


@pytest.fixture
def ggufs(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A repository with three GGUF files of a yarn whose attention factor stands in a dead key."""
    folder = tmp_path / "ggufs"
    (folder / "sub").mkdir(parents=True)
    yarn: dict[str, Any] = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 1024,
        "rope__scaling__yarn_attn_factor": 1.0,
        "context_length": 4096,
    }
    whole = encode([pair(key, content) for key, content in keys(**yarn).items()])
    for name in ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "sub/tiny-q8_0-more.gguf"):
        (folder / name).write_bytes(whole)
    hub.repositories["org/ggufs"] = Repository(commits={COMMIT: folder}, branches={"main": COMMIT})
    return hub


@pytest.mark.parametrize(
    "named", ["org/ggufs:q4_k_m", "org/ggufs/tiny-Q8_0.gguf", "hf://org/ggufs/sub/tiny-q8_0-more.gguf"]
)
def test_check_reads_a_gguf_of_the_hub(named: str, ggufs: FakeHub, tmp_path: Path) -> None:
    done = ctxextend(ggufs, tmp_path, "check", named, "--json")
    assert done.returncode == 5, done.stderr
    found = json.loads(done.stdout)
    assert "dead-keys" in [finding["code"] for finding in found["findings"]]
    assert found["target_context"] == 4096


@pytest.mark.parametrize(
    ("named", "code", "said"),
    [
        ("org/ggufs:Q8_0", 2, "tiny-Q8_0.gguf"),
        ("org/ggufs:Q2_K", 1, "no such GGUF file"),
        ("org/ggufs/none.gguf", 1, "tiny-Q4_K_M.gguf"),
        ("org/demo:Q8_0", 1, "it has none"),
    ],
)
def test_a_gguf_of_the_hub_that_is_not_one_file(
    named: str, code: int, said: str, ggufs: FakeHub, tmp_path: Path
) -> None:
    done = ctxextend(ggufs, tmp_path, "check", named)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


@pytest.fixture
def models(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A repository with a whole GGUF, one in a folder, one in two files, and one of whose three files one lacks."""
    folder = tmp_path / "models"
    for name in ("tiny-Q4_0.gguf", "sub/tiny-Q5_0.gguf"):
        write_part(folder / name, keys(), "token_embd.weight")
    for count, present, name in ((2, (1, 2), "Q6_K/tiny-Q6_K"), (3, (1, 2), "tiny-Q8_0")):
        for number in present:
            own = {
                "split.no": value(number - 1, "UINT16"),
                "split.count": value(count, "UINT16"),
                "split.tensors.count": value(count, "INT32"),
            }
            settings = {**(keys() if number == 1 else {"general.architecture": "llama"}), **own}
            write_part(folder / f"{name}-{number:05}-of-{count:05}.gguf", settings, f"blk.{number}.attn_q.weight")
    (folder / ".gitattributes").write_text("*.gguf filter=lfs\n")
    hub.repositories["org/models"] = Repository(commits={COMMIT: folder}, branches={"main": COMMIT})
    return hub


def write_part(path: Path, settings: dict[str, Any], name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = [pair(key, content) for key, content in settings.items()]
    path.write_bytes(encode(pairs, [info(name, "F32", [8], 0)], bytes(range(32))))


@pytest.mark.parametrize(
    ("named", "files", "out"),
    [
        ("org/models:Q4_0", ["tiny-Q4_0.gguf"], "tiny-Q4_0-yarn-4k.gguf"),
        ("org/models/sub/tiny-Q5_0.gguf", ["sub/tiny-Q5_0.gguf"], "tiny-Q5_0-yarn-4k.gguf"),
        ("hf://org/models:Q5_0@main", ["sub/tiny-Q5_0.gguf"], "tiny-Q5_0-yarn-4k.gguf"),
        (
            "org/models:Q6_K",
            ["Q6_K/tiny-Q6_K-00001-of-00002.gguf", "Q6_K/tiny-Q6_K-00002-of-00002.gguf"],
            "tiny-Q6_K-yarn-4k",
        ),
    ],
)
def test_a_gguf_of_the_hub_is_converted_as_one_here(
    named: str, files: list[str], out: str, models: FakeHub, tmp_path: Path
) -> None:
    done = ctxextend(models, tmp_path, "convert", named, "-m", "yarn", "-t", "4k")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    # No other file of the repository was fetched.
    assert {label for label in models.served if label.endswith(".gguf")} == {f"org/models/{file}" for file in files}
    folder = tmp_path / "models"
    arguments = ("-m", "yarn", "-t", "4k", "-o", "local.gguf" if len(files) == 1 else "local")
    local = ctxextend(models, tmp_path, "convert", str(folder / files[0]), *arguments)
    assert local.returncode == 0, local.stderr
    assert parts(tmp_path / out) == parts(tmp_path / arguments[-1])
    # Offline the same comes of what is in the cache now.
    asked = len(models.requests)
    again = ctxextend(models, tmp_path, "convert", named, "-m", "yarn", "-t", "4k", "--force", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{out}\n"
    assert len(models.requests) == asked


def parts(path: Path) -> list[dict[str, Any]]:
    """The tensors and the keys of a file, or of each of a folder, but for the record, which names the source."""
    found = []
    for file in sorted(path.glob("*.gguf")) if path.is_dir() else [path]:
        reader = GGUFReader(file)
        said = {name: field.contents() for name, field in reader.fields.items() if name != "ctxextend.record"}
        found.append({**said, **{tensor.name: tensor.data.tobytes() for tensor in reader.tensors}})
    return found


def test_part_of_a_split_gguf_of_the_hub_is_not_converted(models: FakeHub, tmp_path: Path) -> None:
    done = ctxextend(models, tmp_path, "convert", "org/models:Q8_0", "-m", "yarn", "-t", "4k")
    assert done.returncode == 1
    assert "tiny-Q8_0-00003-of-00003.gguf" in done.stderr
    assert not list(tmp_path.glob("*yarn*"))
    # It is told before anything is downloaded.
    assert not list((tmp_path / "hf").rglob("*.gguf"))
