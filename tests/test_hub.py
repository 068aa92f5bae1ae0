"""Publishing through the real client against a Hub on the loopback: LFS, copies, one commit, and all that goes wrong.

The path without Xet: HF_HUB_DISABLE_XET is set in the process that runs the command.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.factories import config
from tests.fake_hub import FakeHub, Reply, error, files_of, object_id, serve
from tests.hub_shell import MORE, TARGET, TOKEN, WEIGHTS, Run, Shell, checkpoint, emptied, hows, published, shell


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    home = tmp_path_factory.mktemp("home")
    with serve() as hub, shell(hub, home) as command:
        yield command


@pytest.fixture
def hub(running: Shell, tmp_path: Path) -> FakeHub:
    return emptied(running.hub, tmp_path / "hub")


@pytest.fixture
def run(running: Shell, hub: FakeHub, tmp_path: Path) -> Run:
    assert hub is running.hub
    return Run(running, tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "source")


@pytest.fixture
def converted(run: Run, hub: FakeHub, source: Path, tmp_path: Path) -> Path:
    """A conversion of ``org/tiny``, with its weights here."""
    hub.add("org/tiny", source)
    done = run("convert", "org/tiny", "-m", "yarn", "-t", "4k", "-o", "tiny-4k")
    assert done.code == 0, done.err
    hub.served.clear()
    hub.requests.clear()
    return tmp_path / "tiny-4k"


def asked(hub: FakeHub, ending: str) -> int:
    return sum(request.path.partition("?")[0].endswith(ending) for request in hub.requests)


def test_a_checkpoint_is_published_in_one_commit(run: Run, hub: FakeHub, source: Path) -> None:
    done = run("push", source, TARGET)
    assert done.code == 0, done.err
    repository = hub.repositories[TARGET]
    assert done.out == f"{hub.url}/{TARGET}/commit/{repository.branches['main']}\n"
    assert set(files_of(published(hub))) == {".gitattributes", *files_of(source)}
    for name in files_of(source):
        assert (published(hub) / name).read_bytes() == (source / name).read_bytes()
    # The one that made the repository, and ours.
    assert len(repository.commits) == 2
    assert not repository.private
    assert "6 files uploaded" not in done.err
    assert f"{len(files_of(source))} files uploaded" in done.err


def test_a_second_push_makes_no_commit(run: Run, hub: FakeHub, source: Path) -> None:
    first = run("push", source, TARGET, "--json").document
    assert first["changed"]
    assert first["created"]
    hub.requests.clear()
    second = run("push", source, TARGET, "--json").document
    assert not second["changed"]
    assert second["commit"] == first["commit"]
    assert second["sent_bytes"] == 0
    assert {file["how"] for file in second["files"]} == {"there"}
    assert {request.method for request in hub.requests} == {"GET"}


def test_only_what_changed_is_sent(run: Run, hub: FakeHub, source: Path) -> None:
    run("push", source, TARGET)
    hub.received.clear()
    save_file({"lm_head.weight": np.zeros((64, 64), np.float32)}, source / MORE)
    (source / "config.json").write_text(json.dumps(config(vocab_size=999)))
    done = run("push", source, TARGET, "--json")
    assert {name for name, how in hows(done).items() if how == "uploaded"} == {MORE, "config.json"}
    assert list(hub.received) == [object_id(source / MORE)]
    assert (published(hub) / MORE).read_bytes() == (source / MORE).read_bytes()


def test_a_file_of_the_same_size_is_told_apart(run: Run, hub: FakeHub, source: Path) -> None:
    run("push", source, TARGET)
    raw = bytearray((source / WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (source / WEIGHTS).write_bytes(raw)
    assert hows(run("push", source, TARGET, "--json"))[WEIGHTS] == "uploaded"
    assert (published(hub) / WEIGHTS).read_bytes() == bytes(raw)


def test_large_files_go_in_parts(run: Run, hub: FakeHub, source: Path) -> None:
    hub.part_bytes = 5000
    assert run("push", source, TARGET).code == 0
    assert asked(hub, "/complete") == 2
    assert asked(hub, "/00004") == 2
    assert (published(hub) / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_unchanged_weights_are_copied_by_the_hub(run: Run, hub: FakeHub, converted: Path, source: Path) -> None:
    done = run("push", converted, TARGET, "--json")
    assert done.code == 0, done.out
    assert {name for name, how in hows(done).items() if how == "copied"} == {WEIGHTS, MORE}
    assert not hub.received
    assert done.document["sent_bytes"] < 32_768
    assert (published(hub) / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    assert asked(hub, "/api/models/org/tiny/lfs-files/duplicate") == 1
    again = run("push", converted, TARGET, "--json")
    assert not again.document["changed"]


def test_the_card_is_merged_into_the_sources(run: Run, hub: FakeHub, converted: Path) -> None:
    run("push", converted, TARGET)
    card = (published(hub) / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "base_model: org/tiny" in card
    assert "A tiny model." in card
    assert "vllm serve me/tiny-4k" in card
    assert (converted / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")


def test_no_card_leaves_the_readme_as_it_is(run: Run, hub: FakeHub, converted: Path) -> None:
    run("push", converted, TARGET, "--no-card")
    assert (published(hub) / "README.md").read_bytes() == (converted / "README.md").read_bytes()


def test_a_card_that_was_finished_by_hand_goes_as_it_is(run: Run, hub: FakeHub, converted: Path) -> None:
    run("push", converted, TARGET)
    finished = (published(hub) / "README.md").read_text().replace("A tiny model.", "Mine.") + "\nMore of mine.\n"
    (converted / "README.md").write_text(finished)
    done = run("push", converted, TARGET, "--json")
    assert (published(hub) / "README.md").read_text() == finished
    assert "as it is" in done.document["notes"][0]


def test_weights_that_were_changed_since_are_uploaded(run: Run, hub: FakeHub, converted: Path) -> None:
    """A fine-tune saves weights with the same header over those of the conversion."""
    save_file({"lm_head.weight": np.zeros((64, 64), np.float32)}, converted / MORE)
    done = run("push", converted, TARGET, "--json")
    assert hows(done)[WEIGHTS] == "copied"
    assert hows(done)[MORE] == "uploaded"
    assert (published(hub) / MORE).read_bytes() == (converted / MORE).read_bytes()


def test_weights_outside_xet_are_uploaded(run: Run, hub: FakeHub, converted: Path) -> None:
    hub.xet = False
    done = run("push", converted, TARGET, "--json")
    assert hows(done)[WEIGHTS] == "uploaded"
    assert "Xet" in next(file["reason"] for file in done.document["files"] if file["path"] == WEIGHTS)
    assert (published(hub) / WEIGHTS).exists()


@pytest.mark.parametrize(
    "refusal",
    [
        error(403, message="copying across regions is not supported"),
        error(404, message="no such route"),
        Reply(
            headers={"Content-Type": "application/json"},
            body=json.dumps({"success": [], "failed": [{"sha256": "0" * 64, "error": "another region"}]}).encode(),
        ),
    ],
    ids=["forbidden", "no-route", "failed"],
)
def test_what_the_hub_does_not_copy_is_uploaded(run: Run, hub: FakeHub, converted: Path, refusal: Reply) -> None:
    hub.failures["/api/models/org/tiny/lfs-files/duplicate"] = refusal
    done = run("push", converted, TARGET, "--json")
    assert done.code == 0, done.out
    assert hows(done)[WEIGHTS] == "uploaded"
    assert "refused" in next(file["reason"] for file in done.document["files"] if file["path"] == WEIGHTS)
    assert "doesn't copy" in done.err
    assert len(hub.repositories[TARGET].commits) == 2
    assert (published(hub) / WEIGHTS).read_bytes() == (converted / WEIGHTS).read_bytes()


def test_a_source_that_has_moved_on_is_copied_from_its_commit(
    run: Run, hub: FakeHub, converted: Path, source: Path, tmp_path: Path
) -> None:
    hub.add("org/tiny", checkpoint(tmp_path / "newer", fill=3.0))
    done = run("push", converted, TARGET, "--json")
    assert hows(done)[WEIGHTS] == "copied"
    assert (published(hub) / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_source_that_cannot_be_seen_is_not_made_public(run: Run, hub: FakeHub, converted: Path) -> None:
    del hub.repositories["org/tiny"]
    refused = run("push", converted, TARGET, "--json")
    assert (refused.code, refused.document["code"]) == (3, "restricted-source")
    assert TARGET not in hub.repositories
    done = run("push", converted, TARGET, "--json", "--private")
    assert done.code == 0
    assert hows(done)[WEIGHTS] == "uploaded"


@pytest.mark.parametrize("how", ["gated", "private"])
def test_what_is_not_for_everybody_is_not_published_unasked(
    run: Run, hub: FakeHub, converted: Path, source: Path, how: str
) -> None:
    hub.add("org/tiny", source, gated=how == "gated", private=how == "private")
    refused = run("push", converted, TARGET, "--json")
    assert refused.code == 3
    assert refused.document["code"] == "restricted-source"
    assert how in refused.document["message"]
    assert "--private" in refused.document["hint"]
    assert "--allow restricted" in refused.document["hint"]
    assert TARGET not in hub.repositories
    assert {request.method for request in hub.requests} == {"GET"}
    private = run("push", converted, TARGET, "--private", "--json")
    assert private.code == 0
    assert hub.repositories[TARGET].private
    assert hows(private)[WEIGHTS] == "copied"
    assert run("push", converted, "me/public", "--allow", "restricted").code == 0
    assert not hub.repositories["me/public"].private


def test_a_repository_that_turns_out_to_be_public_gets_nothing(
    run: Run, hub: FakeHub, converted: Path, source: Path
) -> None:
    """Between the first look and the making somebody else made it, in public."""
    hub.add("org/tiny", source, gated=True)
    hub.next_replies[f"/api/models/{TARGET}"] = [error(404, code="RepoNotFound", message="Repository not found")]
    hub.add(TARGET, source)
    refused = run("push", converted, TARGET, "--private", "--json")
    assert (refused.code, refused.document["code"]) == (3, "public-repository")
    assert len(hub.repositories[TARGET].commits) == 1


def test_a_gated_card_without_a_repository_is_recognised(run: Run, hub: FakeHub, source: Path) -> None:
    (source / "README.md").write_text("---\nextra_gated_prompt: Accept the licence.\n---\n# Tiny\n")
    refused = run("push", source, TARGET, "--json")
    assert (refused.code, refused.document["code"]) == (3, "restricted-source")
    assert not hub.repositories


def test_a_licence_of_its_own_is_told(run: Run, converted: Path, source: Path) -> None:
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENCE\n---\n")
    done = run("push", converted, TARGET, "--json")
    assert done.code == 0
    assert any("LICENCE" in note for note in done.document["notes"])


def test_private_is_not_for_a_public_repository_that_is_there(run: Run, hub: FakeHub, source: Path) -> None:
    run("push", source, TARGET)
    refused = run("push", source, TARGET, "--private", "--json")
    assert (refused.code, refused.document["code"]) == (3, "public-repository")
    assert len(hub.repositories[TARGET].commits) == 2


def test_a_branch_is_made(run: Run, hub: FakeHub, source: Path) -> None:
    done = run("push", source, TARGET, "--revision", "long/context", "--json")
    assert done.code == 0, done.out
    assert set(hub.repositories[TARGET].branches) == {"main", "long/context"}
    assert files_of(published(hub)) == [".gitattributes"]
    assert "config.json" in files_of(published(hub, branch="long/context"))
    assert not run("push", source, TARGET, "--revision", "long/context", "--json").document["changed"]


def test_a_pull_request_changes_nothing_else(run: Run, hub: FakeHub, converted: Path) -> None:
    run("push", converted, TARGET)
    before = dict(hub.repositories[TARGET].branches)
    (converted / "config.json").write_text(json.dumps(config(vocab_size=999)))
    hub.readers.add(TOKEN)
    done = run("push", converted, TARGET, "--create-pr", "--json")
    assert done.code == 0, done.out
    assert done.document["pull_request"] == done.document["url"] == f"{hub.url}/{TARGET}/discussions/1"
    after = hub.repositories[TARGET].branches
    assert {name: after[name] for name in before} == before
    assert json.loads((published(hub, branch="refs/pr/1") / "config.json").read_text())["vocab_size"] == 999
    more = run("push", converted, TARGET, "--create-pr", "--revision", "main", "--json")
    assert (more.code, more.document["code"]) == (2, "bad-option")


def test_a_dropped_connection_is_taken_up_again(run: Run, hub: FakeHub, source: Path) -> None:
    """The first file arrives; on the second every attempt of the client's breaks off in the middle."""
    place = f"/lfs-upload/{TARGET}/{object_id(source / MORE)}/whole"
    hub.drops[place], hub.drop_after = 6, 4096
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "network")
    assert "isn't" not in failed.document["message"]
    assert "sent again" in failed.document["hint"]
    assert files_of(published(hub)) == [".gitattributes"]
    assert hub.received[object_id(source / WEIGHTS)] == (source / WEIGHTS).stat().st_size
    hub.received.clear()
    done = run("push", source, TARGET, "--json")
    assert done.code == 0
    assert hows(done)[WEIGHTS] == "there"
    assert hows(done)[MORE] == "uploaded"
    assert list(hub.received) == [object_id(source / MORE)]
    assert (published(hub) / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_connection_that_drops_once_is_no_matter(run: Run, hub: FakeHub, source: Path) -> None:
    hub.drops[f"/lfs-upload/{TARGET}/{object_id(source / MORE)}/whole"] = 1
    hub.drops[f"/api/models/{TARGET}"] = 1
    hub.drops["/api/repos/create"] = 1
    assert run("push", source, TARGET).code == 0
    assert (published(hub) / MORE).read_bytes() == (source / MORE).read_bytes()


def test_a_commit_whose_answer_is_lost_is_not_made_twice(run: Run, hub: FakeHub, source: Path) -> None:
    hub.lost_answers[f"/api/models/{TARGET}/commit/main"] = 1
    done = run("push", source, TARGET, "--json")
    assert done.code == 0, done.out
    assert len(hub.repositories[TARGET].commits) == 2
    assert done.document["changed"]
    assert done.document["commit"] == hub.repositories[TARGET].branches["main"]
    assert hows(done)[WEIGHTS] == "uploaded"


def test_a_pull_request_whose_answer_is_lost_is_not_asked_for_twice(run: Run, hub: FakeHub, source: Path) -> None:
    run("push", source, TARGET, "--include", "config.json")
    hub.lost_answers[f"/api/models/{TARGET}/commit/main"] = 1
    failed = run("push", source, TARGET, "--create-pr", "--json")
    assert (failed.code, failed.document["code"]) == (1, "network")
    assert [name for name in hub.repositories[TARGET].branches if name != "main"] == ["refs/pr/1"]


def test_a_branch_that_moved_is_committed_on_once_more(run: Run, hub: FakeHub, source: Path, tmp_path: Path) -> None:
    """Somebody else commits after we looked: theirs stays, ours comes on top."""
    run("push", source, TARGET, "--include", "config.json")
    stale = json.dumps(
        {"id": TARGET, "sha": hub.repositories[TARGET].branches["main"], "private": False, "siblings": []}
    )
    theirs = tmp_path / "theirs"
    shutil.copytree(published(hub), theirs)
    (theirs / "NOTES.md").write_text("theirs")
    hub.add(TARGET, theirs)
    hub.next_replies[f"/api/models/{TARGET}"] = [
        Reply(headers={"Content-Type": "application/json"}, body=stale.encode())
    ]
    done = run("push", source, TARGET, "--json")
    assert done.code == 0, done.out
    assert (published(hub) / "NOTES.md").read_text() == "theirs"
    # The first push's, the one that was refused, and the one on top of theirs.
    assert asked(hub, "/commit/main") == 3
    assert (published(hub) / WEIGHTS).exists()
    assert sum(hub.received.values()) == sum((source / name).stat().st_size for name in (WEIGHTS, MORE))


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_that_stays_is_told(run: Run, hub: FakeHub, source: Path, status: int) -> None:
    run("push", source, TARGET, "--include", "config.json")
    hub.failures[f"/api/models/{TARGET}/commit/main"] = error(status, message="A commit has happened since.")
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "conflict")
    assert asked(hub, "/commit/main") == 3
    assert "A commit has happened since." in failed.document["found"]


def test_a_limit_is_waited_for(run: Run, hub: FakeHub, source: Path) -> None:
    commit = f"/api/models/{TARGET}/commit/main"
    hub.next_replies[commit] = [Reply(status=429, headers={"Retry-After": "7"})]
    hub.next_replies["/api/repos/create"] = [Reply(status=429, headers={"RateLimit": '"api";r=0;t=55'})]
    done = run("push", source, TARGET)
    assert done.code == 0, done.err
    assert done.slept == [55, 7]
    assert "trying again in 7 s" in done.err
    assert len(hub.repositories[TARGET].commits) == 2


@pytest.mark.parametrize("path", [f"/api/models/{TARGET}/commit/main", f"/api/models/{TARGET}/preupload/main"])
def test_a_limit_of_an_hour_is_told(run: Run, hub: FakeHub, source: Path, path: str) -> None:
    """Of what the client repeats by itself, too, which would wait for it."""
    hub.failures[path] = Reply(status=429, headers={"Retry-After": "3600"})
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "rate-limited")
    assert "3600 s" in failed.document["hint"]
    assert failed.slept == []


def test_an_error_of_the_hub_is_retried_then_told(run: Run, hub: FakeHub, source: Path) -> None:
    commit = f"/api/models/{TARGET}/commit/main"
    hub.next_replies[commit] = [error(500, message="oops"), error(503, message="oops")]
    done = run("push", source, TARGET)
    assert done.code == 0, done.err
    assert done.slept == [1, 4]
    hub.failures["/api/models/me/other/commit/main"] = error(500, message="Internal Error")
    failed = run("push", source, "me/other", "--json")
    assert (failed.code, failed.document["code"]) == (1, "hub-failed")
    assert "500" in failed.document["found"]
    assert failed.slept == [1, 4, 10]
    # Each attempt takes up the uploads of the first.
    assert hub.received[object_id(source / WEIGHTS)] == 2 * (source / WEIGHTS).stat().st_size


def test_an_upload_that_fails_is_told(run: Run, hub: FakeHub, source: Path) -> None:
    hub.failures[f"/lfs-upload/{TARGET}/{object_id(source / MORE)}/whole"] = error(500, message="storage is down")
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "hub-failed")
    assert "Signature" not in failed.out + failed.err
    assert files_of(published(hub)) == [".gitattributes"]


@pytest.mark.parametrize(
    ("path", "reply", "code"),
    [
        ("/api/repos/create", error(401, message="Invalid username or password."), "unauthorized"),
        ("/api/repos/create", error(403, message="You don't have the rights"), "forbidden"),
        ("/api/repos/create", error(404, message="Namespace not found"), "repo-not-found"),
        (f"/api/models/{TARGET}/commit/main", error(403, message="read-only"), "forbidden"),
        (f"/api/models/{TARGET}/commit/main", error(400, message="too many files"), "hub-refused"),
        (f"/{TARGET}.git/info/lfs/objects/batch", error(403, message="storage is full"), "forbidden"),
        (f"/api/models/{TARGET}/preupload/main", Reply(body=b"<html>log in</html>"), "network"),
        ("/api/repos/create", Reply(body=b"<html>log in</html>"), "network"),
    ],
)
def test_what_the_hub_says_no_to(run: Run, hub: FakeHub, source: Path, path: str, reply: Reply, code: str) -> None:
    hub.failures[path] = reply
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, code), failed.out
    assert failed.document["hint"]


def test_a_token_that_may_only_read(run: Run, hub: FakeHub, source: Path) -> None:
    hub.readers.add(TOKEN)
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "forbidden")
    assert "HF_TOKEN" in failed.document["hint"]


def test_no_token_and_a_wrong_one(run: Run, hub: FakeHub, source: Path) -> None:
    failed = run("push", source, TARGET, "--json", token=None)
    assert (failed.code, failed.document["code"]) == (1, "unauthorized")
    assert "HF_TOKEN" in failed.document["hint"]
    assert not hub.requests
    failed = run("push", source, TARGET, "--json", token="hf_thisoneisnotknowntoanyone")
    assert (failed.code, failed.document["code"]) == (1, "unauthorized")
    failed = run("push", source, TARGET, "--json", "--token", "hf_this one\nis broken")
    assert (failed.code, failed.document["code"]) == (2, "token")
    assert "broken" not in failed.out + failed.err


@pytest.mark.parametrize(("debug", "given"), [("0", "variable"), ("1", "option")])
def test_a_token_is_never_shown(run: Run, hub: FakeHub, source: Path, debug: str, given: str) -> None:
    """Not where the Hub repeats it, in headers and in bodies, on any route that is asked."""
    echo = f"no right for Bearer {TOKEN} (url https://user:{TOKEN}@hub/?token={TOKEN})"
    for status in (400, 401, 403, 409, 500):
        for path in (
            f"/api/models/{TARGET}",
            "/api/repos/create",
            f"/{TARGET}.git/info/lfs/objects/batch",
            f"/api/models/{TARGET}/preupload/main",
            f"/lfs-upload/{TARGET}/{object_id(source / MORE)}/whole",
            f"/api/models/{TARGET}/commit/main",
        ):
            hub.failures = {path: error(status, code="Odd", message=echo)}
            options = ("--token", TOKEN) if given == "option" else ()
            failed = run(
                "push", source, TARGET, "-v", *options, token=None if options else TOKEN, CTXEXTEND_DEBUG=debug
            )
            if not (path == "/api/repos/create" and status == 409):
                assert failed.code == 1, (status, path, failed.err)
                assert ("Traceback" in failed.err) == (debug == "1")
            assert TOKEN not in failed.err + failed.out
            assert "Signature" not in failed.err
            hub.repositories.pop(TARGET, None)


def test_offline_is_said_before_anything_is_asked(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    with shell(hub, tmp_path, HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN) as offline:
        failed = offline(tmp_path, "push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "offline")
    assert "HF_HUB_OFFLINE" in failed.document["hint"]
    assert not hub.requests


def test_no_hub_at_all(tmp_path: Path, source: Path) -> None:
    nowhere = FakeHub()
    nowhere.url = "http://127.0.0.1:9"
    with shell(nowhere, tmp_path, HF_TOKEN=TOKEN) as lost:
        failed = lost(tmp_path, "push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "network")
    assert failed.slept == [1, 4, 10]


def test_a_broken_card_is_told_before_anything_is_uploaded(run: Run, hub: FakeHub, source: Path) -> None:
    (source / "README.md").write_text("---\nlicense: [\n---\n")
    failed = run("push", source, TARGET, "--json")
    assert (failed.code, failed.document["code"]) == (1, "bad-card")
    assert failed.document["file"] == "README.md"
    assert not hub.received


def test_the_bytes_on_the_hub_are_those_of_the_manifest(run: Run, hub: FakeHub, converted: Path) -> None:
    run("push", converted, TARGET)
    manifest = json.loads((published(hub) / "ctxextend.json").read_text())
    for file in manifest["files"]:
        if file["path"] != "README.md":
            raw = (published(hub) / file["path"]).read_bytes()
            assert len(raw) == file["size_bytes"]
            if "sha256" in file:
                assert hashlib.sha256(raw).hexdigest() == file["sha256"]


def test_no_path_of_the_makers_disk_is_published(run: Run, hub: FakeHub, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    assert run("convert", source, "--method", "linear", "--target", "4k", "--out", out).code == 0
    assert str(source) in (out / "ctxextend.json").read_text()
    assert run("push", out, TARGET).code == 0
    for path in published(hub).rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
    manifest = json.loads((published(hub) / "ctxextend.json").read_text())
    assert manifest["plan"]["source"]["source"] == manifest["plan"]["source"]["name"] == "source"


def test_a_path_that_is_not_there_is_told_before_the_token(run: Run, tmp_path: Path) -> None:
    failed = run("push", tmp_path / "nowhere", TARGET, "--json", token=None)
    assert (failed.code, failed.document["code"]) == (1, "no-source")
