"""``ctxextend push`` and ``convert --push`` as a user sees them; what goes wrong on the Hub is in test_hub.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.support import DEMO
from tests.fake_hub import FakeHub, error, files_of, object_id
from tests.gguf_factory import encode, keys, pair
from tests.hub_shell import MORE, TARGET, TOKEN, WEIGHTS, Run, checkpoint, hows, published

DIRECT = ("convert", "org/tiny", "-m", "yarn", "-t", "4k", "--push", TARGET)


@pytest.fixture
def source(hub: FakeHub, tmp_path: Path) -> Path:
    """The folder that is ``org/tiny`` on the Hub."""
    folder = checkpoint(tmp_path / "source")
    hub.add("org/tiny", folder)
    return folder


def gguf(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode([pair(key, content) for key, content in keys().items()]))
    return path


def test_a_dry_run_writes_nothing(run: Run, hub: FakeHub, source: Path) -> None:
    done = run("push", source, TARGET, "--dry-run", "-v")
    assert done.code == 0, done.err
    assert done.out == f"{hub.url}/{TARGET}\n"
    assert f"uploaded: {WEIGHTS}" in done.err
    assert "nothing was written" in done.err
    assert {request.method for request in hub.requests} == {"GET"}
    assert TARGET not in hub.repositories


def test_a_dry_run_tells_what_would_be_copied(run: Run, hub: FakeHub, source: Path) -> None:
    run("convert", "org/tiny", "-m", "yarn", "-t", "4k", "-o", "out")
    told = run("push", "out", TARGET, "--dry-run", "--json")
    assert hows(told)[WEIGHTS] == "copied"
    assert told.document["dry_run"]
    assert told.document["commit"] is None
    assert TARGET not in hub.repositories
    done = run("push", "out", TARGET, "--json")
    assert done.document["files"] == told.document["files"]


def test_globs_choose_the_files(run: Run, hub: FakeHub, source: Path) -> None:
    done = run("push", source, TARGET, "--include", "*.safetensors", "--include", "config*", "--exclude", "*-00002-*")
    assert done.code == 0, done.err
    assert files_of(published(hub)) == [".gitattributes", "config.json", WEIGHTS]
    none = run("push", source, TARGET, "--include", "*.onnx", "--json")
    assert (none.code, none.document["code"]) == (1, "nothing-to-push")


def test_the_commit_says_what_was_asked(run: Run, hub: FakeHub, source: Path) -> None:
    run("push", source, TARGET, "--commit-message", "Longer", "--commit-description", "Much longer.")
    repository = hub.repositories[TARGET]
    assert repository.messages[repository.branches["main"]] == ("Longer", "Much longer.")
    run("push", source, "me/other")
    other = hub.repositories["me/other"]
    assert other.messages[other.branches["main"]][0] == "Upload source with ctxextend"
    run(*DIRECT[:-1], "me/third")
    third = hub.repositories["me/third"]
    assert third.messages[third.branches["main"]][0] == "Extend tiny to 4096 tokens (yarn) with ctxextend"


def test_quiet_says_the_address_alone(run: Run, source: Path) -> None:
    done = run("push", source, TARGET, "-q")
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert done.err == ""


def test_other_tools_folders_stay_here(run: Run, hub: FakeHub, source: Path) -> None:
    for name in (".git/config", ".cache/huggingface/download/x.lock", "__pycache__/modeling.pyc"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text("x")
    (source / "sub").mkdir()
    (source / "sub" / "kept.txt").write_text("x")
    run("push", source, TARGET)
    assert [name for name in files_of(published(hub)) if "/" in name] == ["sub/kept.txt"]


def test_a_gguf_file_goes_with_its_manifest(run: Run, hub: FakeHub, here: Path) -> None:
    gguf(here / "tiny.gguf")
    done = run("convert", "tiny.gguf", "-m", "linear", "-t", "4k", "-o", "tiny-4k.gguf")
    assert done.code == 0, done.err
    done = run("push", "tiny-4k.gguf", TARGET, "--json")
    assert done.code == 0, done.out
    expected = [".gitattributes", "README.md", "tiny-4k.gguf", "tiny-4k.gguf.ctxextend.json"]
    assert files_of(published(hub)) == expected
    assert (published(hub) / "tiny-4k.gguf").read_bytes() == (here / "tiny-4k.gguf").read_bytes()


def test_a_folder_of_gguf_files(run: Run, hub: FakeHub, here: Path) -> None:
    done = run("convert", DEMO, "-m", "linear", "-t", "1k", "--to", "gguf", "--outtype", "f16,q8_0", "-o", "ggufs")
    assert done.code == 0, done.err
    done = run("push", "ggufs", TARGET, "--json")
    assert done.code == 0, done.out
    assert set(files_of(published(hub))) == {".gitattributes", "README.md", *files_of(here / "ggufs")}
    assert sum(name.endswith(".gguf") for name in files_of(published(hub))) == 2


def test_a_part_of_a_split_file_brings_the_others(run: Run, hub: FakeHub, here: Path) -> None:
    names = ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]
    gguf(here / names[0])
    failed = run("push", names[0], TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "missing-shard")
    gguf(here / names[1])
    assert run("push", names[1], TARGET).code == 0
    assert files_of(published(hub)) == [".gitattributes", *names]


@pytest.mark.parametrize("name", ["missing", "empty", "notes.txt"])
def test_what_is_no_checkpoint(run: Run, hub: FakeHub, here: Path, name: str) -> None:
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("x")
    failed = run("push", name, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "no-source")
    assert not hub.requests


def test_a_broken_manifest(run: Run, source: Path) -> None:
    (source / "ctxextend.json").write_text('{"schema": "ctxextend.manifest/1"}')
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "broken-manifest")


@pytest.mark.parametrize("repo_id", ["tiny", "a/b/c", "me/bad name", "me/.."])
def test_what_no_repository_is_called(run: Run, source: Path, repo_id: str) -> None:
    failed = run("push", source, repo_id, "--json")
    assert (failed.code, failed.document["code"]) == (2, "repo-id")


def test_only_its_own_refusal_can_be_allowed(run: Run, source: Path) -> None:
    assert run("push", source, TARGET, "--allow", "unreadable", "--json").document["code"] == "unknown-code"
    assert run(*DIRECT[:-2], "--allow", "restricted", "--dry-run", "--json").document["code"] == "unknown-code"
    assert run(*DIRECT, "--allow", "restricted", "--json").code == 0


def test_a_report_goes_into_the_card_with_its_pictures(run: Run, hub: FakeHub, here: Path) -> None:
    run("convert", DEMO, "-m", "yarn", "-t", "1k", "-o", "out")
    none = run("push", "out", TARGET, "--report", here, "--json")
    assert (none.code, none.document["code"]) == (2, "no-report")
    checks = [{"name": "finite", "ok": True, "detail": "all numbers are finite"}]
    smoke = {"schema": "ctxextend.smoke/1", "version": "0.1.0", "ok": True, "length": 1024, "trained_context": 256}
    smoke |= {"engine": "transformers", "engine_version": "5", "device": "cpu", "dtype": "float32", "checks": checks}
    (here / "smoke.json").write_text(json.dumps(smoke))
    done = run("push", "out", TARGET, "--report", here)
    assert done.code == 0, done.err
    assert "1024" in (published(hub) / "README.md").read_text()
    assert "cpu" in (published(hub) / "README.md").read_text()


def test_publishing_without_a_local_copy(run: Run, hub: FakeHub, source: Path, here: Path) -> None:
    done = run(*DIRECT, "--json")
    assert done.code == 0, done.out
    pushed = done.document["push"]
    assert {file["path"] for file in pushed["files"] if file["how"] == "copied"} == {WEIGHTS, MORE}
    assert not hub.received
    assert not list(here.iterdir())
    got = published(hub)
    assert json.loads((got / "config.json").read_text())["max_position_embeddings"] == 4096
    assert (got / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    # Their headers were read by a range, which of so small files is the whole; nothing else was.
    assert hub.served[f"org/tiny/{WEIGHTS}"] <= (source / WEIGHTS).stat().st_size
    assert not any(request.method == "HEAD" and request.path.endswith("safetensors") for request in hub.requests)
    again = run(*DIRECT, "--json")
    assert not again.document["push"]["changed"]


def test_it_is_what_a_local_conversion_gives(run: Run, hub: FakeHub, source: Path) -> None:
    run(*DIRECT)
    run("convert", "org/tiny", "-m", "yarn", "-t", "4k")
    run("push", "tiny-yarn-4k", "me/local")
    direct, local = published(hub), published(hub, "me/local")
    assert files_of(direct) == files_of(local)
    for name in files_of(direct):
        if name not in ("ctxextend.json", "README.md"):
            assert (direct / name).read_bytes() == (local / name).read_bytes()
    documents = [json.loads((folder / "ctxextend.json").read_text()) for folder in (direct, local)]
    for document in documents:
        document["plan"].pop("out")
        document["files"] = [{k: v for k, v in file.items() if k != "header_sha256"} for file in document["files"]]
    assert documents[0] == documents[1]
    assert "ctxextend-overrides.json" not in files_of(direct)
    cards = [(folder / "README.md").read_text() for folder in (direct, local)]
    assert cards[0].replace(TARGET, "me/local").replace("# tiny-4k", "# local") == cards[1]


def test_what_cannot_be_copied_is_fetched_and_uploaded(run: Run, hub: FakeHub, source: Path, here: Path) -> None:
    hub.failures["/api/models/org/tiny/lfs-files/duplicate"] = error(403, message="another region")
    done = run(*DIRECT, "--json")
    assert done.code == 0, done.out
    told = {file["path"]: file for file in done.document["push"]["files"]}
    assert told[WEIGHTS]["how"] == "uploaded"
    assert "another region" in told[WEIGHTS]["reason"] or "403" in told[WEIGHTS]["reason"]
    assert (published(hub) / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    assert not list(here.iterdir())


def test_with_out_the_result_stays(run: Run, hub: FakeHub, source: Path, here: Path) -> None:
    done = run(*DIRECT, "-o", "kept")
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["kept", f"{hub.url}/{TARGET}/commit/{hub.repositories[TARGET].branches['main']}"]
    assert (here / "kept" / WEIGHTS).exists()
    assert "2 files copied" in done.err


def test_baked_weights_are_uploaded(run: Run, hub: FakeHub, here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    hub.add("org/demo", folder)
    done = run("convert", "org/demo", "-m", "yarn", "-t", "1k", "--bake", "temperature", "--push", TARGET, "--json")
    assert done.code == 0, done.out
    told = {file["path"]: file["how"] for file in done.document["push"]["files"]}
    assert told["model.safetensors"] == "uploaded"
    out = here / done.document["plan"]["out"]
    assert object_id(published(hub) / "model.safetensors") == object_id(out / "model.safetensors")
    assert object_id(out / "model.safetensors") != object_id(DEMO / "model.safetensors")


def test_a_local_conversion_is_published(run: Run, hub: FakeHub, source: Path, here: Path) -> None:
    done = run("convert", source, "-m", "yarn", "-t", "4k", "--push", TARGET, "--private")
    assert done.code == 0, done.err
    assert (here / "source-yarn-4k" / WEIGHTS).exists()
    assert hub.repositories[TARGET].private
    assert (published(hub) / WEIGHTS).exists()


def test_what_was_written_stays_when_publishing_fails(run: Run, hub: FakeHub, source: Path, here: Path) -> None:
    hub.failures[f"/api/models/{TARGET}/commit/main"] = error(403, message="no")
    failed = run("convert", source, "-m", "yarn", "-t", "4k", "--push", TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "forbidden")
    assert f"ctxextend push source-yarn-4k {TARGET}" in failed.document["hint"]
    hub.failures.clear()
    assert run("push", here / "source-yarn-4k", TARGET).code == 0


@pytest.mark.parametrize("options", [(), ("--bake", "buffers"), ("-o", "kept")])
def test_a_gated_source_is_refused_before_anything_is_done(
    run: Run, hub: FakeHub, source: Path, here: Path, options: tuple[str, ...]
) -> None:
    hub.add("org/tiny", source, gated=True)
    before = hub.served[f"org/tiny/{WEIGHTS}"]
    failed = run(*DIRECT, *options, "--json")
    assert (failed.code, failed.document["code"]) == (3, "restricted-source")
    assert TARGET not in hub.repositories
    assert not list(here.iterdir())
    assert hub.served[f"org/tiny/{WEIGHTS}"] <= before + (source / WEIGHTS).stat().st_size


def test_options_that_say_nothing(run: Run, source: Path) -> None:
    assert run(*DIRECT[:-2], "--private", "--json").document["key"] == "--private"
    assert run(*DIRECT, "--config-only", "--json").document["key"] == "--config-only"


def test_a_token_in_the_wrong_place_is_not_repeated(run: Run, source: Path) -> None:
    failed = run("push", source, TARGET, TOKEN)
    assert failed.code == 2
    assert "***" in failed.err
    assert run("push", source, TARGET, f"--tokn={TOKEN}").code == 2


def test_no_token_is_said_before_anything_is_done(run: Run, hub: FakeHub, source: Path, here: Path) -> None:
    failed = run("convert", source, "-m", "yarn", "-t", "4k", "--push", TARGET, "--json", token=None)
    assert (failed.code, failed.document["code"]) == (1, "unauthorized")
    assert not list(here.iterdir())
