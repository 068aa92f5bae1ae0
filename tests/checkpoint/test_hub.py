"""Reading the Hub with the real client against a Hub on the loopback.

The client reads its environment when it is imported, so it runs in processes of its own: one that is online
and one that isn't, each asked by lines of JSON. Every test has its own cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from ctxextend.checkpoint.directory import read_directory
from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import Contents
from tests.fake_hub import FakeHub, Reply, error, object_id, serve
from tests.gguf_factory import encode, info, keys, pair

ROOT = Path(__file__).parents[2]

TOKEN = "hf_averysecrettokenthatmustnotbeseen"

CLIENT = """
import json, sys, traceback
from pathlib import Path
import msgspec
from ctxextend.checkpoint import hub
from ctxextend.errors import CtxextendError

for line in sys.stdin:
    name, arguments = json.loads(line)
    arguments["cache_dir"] = Path(arguments["cache_dir"])
    try:
        value = getattr(hub, name)(**arguments)
        answer = {"path": str(value)} if isinstance(value, Path) else {"contents": value}
    except CtxextendError as error:
        answer = {"error": error.details(), "report": traceback.format_exc()}
    except Exception:
        answer = {"error": {"code": "bug"}, "report": traceback.format_exc()}
    print(msgspec.json.encode(answer).decode(), flush=True)
"""


class Answer(msgspec.Struct):
    """What a call gave."""

    contents: Contents | None = None
    path: str | None = None
    error: dict[str, Any] | None = None
    report: str = ""


class Client:
    """A process that reads the Hub, and what it wrote to stderr."""

    def __init__(self, endpoint: str, home: Path, **variables: str) -> None:
        environment = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **variables,
        }
        self._log = home / "stderr"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CLIENT],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)

    def call(self, function: str, **arguments: Any) -> Answer:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([function, arguments], default=str), file=self._process.stdin, flush=True)
        return msgspec.json.decode(self._process.stdout.readline(), type=Answer)

    def read(self, repo_id: str, cache: Path, **arguments: Any) -> Contents:
        answer = self.call("read_hub", repo_id=repo_id, cache_dir=cache, **arguments)
        assert answer.contents, answer.report
        return answer.contents

    def read_gguf(self, repo_id: str, named: str, cache: Path, **arguments: Any) -> Contents:
        answer = self.call("read_hub_gguf", repo_id=repo_id, named=named, cache_dir=cache, **arguments)
        assert answer.contents, answer.report
        return answer.contents

    def download(self, repo_id: str, cache: Path, **arguments: Any) -> Path:
        answer = self.call("download", repo_id=repo_id, cache_dir=cache, **arguments)
        assert answer.path, answer.report
        return Path(answer.path)

    def refused(self, repo_id: str, cache: Path, function: str = "read_hub", **arguments: Any) -> dict[str, Any]:
        answer = self.call(function, repo_id=repo_id, cache_dir=cache, **arguments)
        assert answer.error, "it went well"
        shown = json.dumps(answer.error) + answer.report + self._log.read_text()
        assert TOKEN not in shown
        assert answer.error["code"] != "bug", answer.report
        assert answer.error["exit_code"] != 1 or "hint" in answer.error
        return answer.error


@pytest.fixture(scope="module")
def running() -> Iterator[FakeHub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(running: FakeHub) -> FakeHub:
    running.repositories.clear()
    running.tokens = {TOKEN: True}
    running.failures.clear()
    running.ranges = True
    running.requests.clear()
    running.served.clear()
    return running


@pytest.fixture(scope="module")
def online(running: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(running.url, tmp_path_factory.mktemp("online")) as client:
        yield client


@pytest.fixture(scope="module")
def offline(running: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(running.url, tmp_path_factory.mktemp("offline"), HF_HUB_OFFLINE="1") as client:
        yield client


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def write_sharded(folder: Path, *, shards: int = 3, elements: int = 500_000) -> Path:
    """A checkpoint with everything that reading looks at, and a little that it doesn't."""
    names = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    (folder / "original").mkdir(parents=True)
    (folder / ".ipynb_checkpoints").mkdir()
    for number, name in enumerate(names):
        save_file({f"layers.{number}.weight": np.zeros(elements, np.float32)}, folder / name)
    weight_map = {f"layers.{number}.weight": name for number, name in enumerate(names)}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    write_json(folder / "config.json", {"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}})
    write_json(folder / "generation_config.json", {"max_length": 64})
    write_json(folder / "original" / "params.json", {"rope_theta": 10000.0})
    write_json(folder / ".ipynb_checkpoints" / "config.json", {})
    vocabulary = {f"token {n}": n for n in range(20_000)}
    write_json(folder / "tokenizer.json", {"truncation": {"max_length": 512}, "vocabulary": vocabulary})
    (folder / "README.md").write_text("# A model\n")
    return folder


def write_single(folder: Path, elements: int = 100) -> Path:
    folder.mkdir(parents=True)
    save_file({"weight": np.zeros(elements, np.float32)}, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "llama"})
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def comparable(contents: Contents) -> Contents:
    """Without what only the Hub knows."""
    files = tuple(replace(file, etag=None) for file in contents.files)
    return replace(contents, files=files, revision=None)


def here(folder: Path) -> Contents:
    return read_directory(folder, name="model", source="org/model")


def test_the_client_is_not_loaded_before_it_is_needed() -> None:
    script = "import sys, ctxextend.checkpoint.hub; print({'huggingface_hub', 'httpx2'} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_sharded_repository_reads_as_its_folder(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "model")
    commit = hub.add("org/model", folder)
    contents = online.read("org/model", cache)
    assert comparable(contents) == here(folder)
    assert contents.revision == commit
    assert contents.tokenizer_truncation == {"max_length": 512}
    assert {file.path: file.etag for file in contents.files} == {
        file.path: object_id(folder / file.path) for file in contents.files
    }


def test_weight_files_are_never_fetched(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    hub.add("org/model", write_sharded(tmp_path / "model"))
    online.read("org/model", cache)
    shards = {name: sent for name, sent in hub.served.items() if name.endswith(".safetensors")}
    assert len(shards) == 3
    assert set(shards.values()) == {100_000}
    assert hub.served["org/model/tokenizer.json"] == 1 << 16
    assert sum("/api/" in request.path for request in hub.requests) == 1


def test_a_second_read_takes_the_documents_from_the_cache(
    hub: FakeHub, online: Client, cache: Path, tmp_path: Path
) -> None:
    hub.add("org/model", write_single(tmp_path / "model"))
    first = online.read("org/model", cache)
    sent = hub.served["org/model/config.json"]
    assert online.read("org/model", cache) == first
    assert hub.served["org/model/config.json"] == sent


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "notes.txt"])
def test_other_layouts_read_as_their_folders(
    hub: FakeHub, online: Client, cache: Path, tmp_path: Path, weights: str
) -> None:
    folder = write_single(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / weights)
    (folder / "empty.txt").touch()
    hub.add("org/model", folder)
    assert comparable(online.read("org/model", cache)) == here(folder)


def test_a_long_header_takes_a_second_request_and_no_byte_twice(
    hub: FakeHub, online: Client, cache: Path, tmp_path: Path
) -> None:
    folder = write_single(tmp_path / "model")
    tensors = {f"a.rather.long.name.for.a.tensor.{n}": np.zeros(64, np.float32) for n in range(2000)}
    save_file(tensors, folder / "model.safetensors")
    with (folder / "model.safetensors").open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    assert length > 100_000
    hub.add("org/model", folder)
    assert comparable(online.read("org/model", cache)) == here(folder)
    assert hub.served["org/model/model.safetensors"] == 8 + length
    hub.ranges = False
    assert comparable(online.read("org/model", cache)) == here(folder)


def test_a_server_without_ranges_is_cut_off_after_the_header(
    hub: FakeHub, online: Client, cache: Path, tmp_path: Path
) -> None:
    folder = write_single(tmp_path / "model", elements=8_000_000)
    hub.add("org/model", folder)
    hub.ranges = False
    assert comparable(online.read("org/model", cache)) == here(folder)
    assert hub.served["org/model/model.safetensors"] < (folder / "model.safetensors").stat().st_size


def test_a_revision_is_a_branch_or_a_commit(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    hub.add("org/model", write_single(tmp_path / "main"))
    folder = write_single(tmp_path / "other", elements=7)
    commit = hub.add("org/model", folder, branch="a/branch")
    by_branch = online.read("org/model", cache, revision="a/branch")
    assert comparable(by_branch) == here(folder)
    assert online.read("org/model", cache, revision=commit) == by_branch
    assert by_branch.revision == commit


def test_a_token_opens_private_and_gated_repositories(
    hub: FakeHub, online: Client, cache: Path, tmp_path: Path
) -> None:
    folder = write_single(tmp_path / "model")
    hub.add("org/model", folder, private=True, gated=True)
    assert comparable(online.read("org/model", cache, token=TOKEN)) == here(folder)
    assert {request.token for request in hub.requests} == {TOKEN}


def test_a_missing_repository(hub: FakeHub, online: Client, cache: Path) -> None:
    assert not hub.repositories
    for token in (None, TOKEN):
        details = online.refused("org/none", cache, token=token)
        assert details["code"] == "repo-not-found"
        assert details["message"] == "no such folder, and no such repository on the Hub: org/none"
        assert "hf auth login" in details["hint"]


def test_a_private_repository_looks_missing(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    hub.add("org/model", write_single(tmp_path / "model"), private=True)
    assert online.refused("org/model", cache)["code"] == "repo-not-found"


def test_a_missing_revision(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    hub.add("org/model", write_single(tmp_path / "model"))
    details = online.refused("org/model", cache, revision="v9")
    assert (details["code"], details["found"]) == ("revision-not-found", "v9")
    assert "--revision" in details["hint"]


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_gated_repository(hub: FakeHub, online: Client, cache: Path, tmp_path: Path, token: str | None) -> None:
    hub.tokens = {TOKEN: False}
    hub.add("org/model", write_single(tmp_path / "model"), gated=True)
    details = online.refused("org/model", cache, token=token)
    assert details["code"] == "gated-repo"
    assert f"{hub.url}/org/model" in details["hint"]


def test_a_refused_token(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    hub.tokens = {}
    hub.add("org/model", write_single(tmp_path / "model"))
    details = online.refused("org/model", cache, token=TOKEN)
    assert details["code"] == "unauthorized"
    assert "--token" in details["hint"]


def test_an_answer_that_repeats_the_token_is_not_repeated(hub: FakeHub, online: Client, cache: Path) -> None:
    hub.failures["/api/models/org/model"] = error(403, message=f"no such token: {TOKEN}")
    details = online.refused("org/model", cache, token=TOKEN)
    assert (details["code"], details["found"]) == ("unauthorized", "HTTP 403: no such token: ***")


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_of_the_server(hub: FakeHub, online: Client, cache: Path, status: int) -> None:
    hub.failures["/api/models/org/model"] = error(status, message="not now")
    details = online.refused("org/model", cache)
    assert (details["code"], details["found"]) == ("network", f"HTTP {status}: not now")


@pytest.mark.parametrize(
    "body",
    [b"<html>Log in</html>", b"[]", b"{}", b'{"id": "x"}', b'{"id": "x", "sha": "1", "siblings": [{}]}'],
)
def test_an_answer_that_is_no_hubs(hub: FakeHub, online: Client, cache: Path, body: bytes) -> None:
    hub.failures["/api/models/org/model"] = Reply(body=body)
    details = online.refused("org/model", cache)
    assert (details["code"], details["message"]) == ("network", "the answer isn't that of a Hub")


def test_a_listing_that_points_outside(hub: FakeHub, online: Client, cache: Path) -> None:
    siblings = [{"rfilename": "../../evil", "size": 1}]
    body = json.dumps({"id": "org/model", "sha": "0" * 40, "siblings": siblings}).encode()
    hub.failures["/api/models/org/model"] = Reply(body=body)
    assert online.refused("org/model", cache)["code"] == "unsafe-path"


def test_an_unreachable_hub(cache: Path, tmp_path: Path) -> None:
    with Client("http://user:password@127.0.0.1:9", tmp_path) as client:
        details = client.refused("org/model", cache, token=TOKEN)
    assert details["code"] == "network"
    assert "HF_ENDPOINT" in details["hint"]
    assert "password" not in json.dumps(details)


@pytest.mark.parametrize("name", ["a/b/c", "../model", "org/model.git", "", "org/mo del"])
def test_what_is_no_repositorys_name(online: Client, cache: Path, name: str) -> None:
    details = online.refused(name, cache)
    assert (details["code"], details["exit_code"]) == ("repo-id", 2)


@pytest.mark.parametrize("end", ["\n", "é", " x"])
def test_a_token_that_cannot_be_sent(online: Client, cache: Path, end: str) -> None:
    details = online.refused("org/model", cache, token=TOKEN + end)
    assert (details["code"], details["exit_code"]) == ("token", 2)


def test_a_cache_that_cannot_be_written(hub: FakeHub, online: Client, tmp_path: Path) -> None:
    hub.add("org/model", write_single(tmp_path / "model"))
    (tmp_path / "file").touch()
    assert online.refused("org/model", tmp_path / "file" / "cache")["code"] == "cache"


def test_an_index_that_points_outside(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "model", elements=10)
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"w": "../../secret"}})
    hub.add("org/model", folder)
    assert online.refused("org/model", cache)["code"] == "unsafe-path"


def test_a_shard_that_was_not_uploaded(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "model", elements=10)
    (folder / "model-00002-of-00003.safetensors").unlink()
    hub.add("org/model", folder)
    details = online.refused("org/model", cache)
    assert (details["code"], details["file"]) == ("missing-shard", "model-00002-of-00003.safetensors")


def test_an_index_that_names_another_shard(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "model", elements=10)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["layers.0.weight"] = "model-00002-of-00003.safetensors"
    write_json(folder / "model.safetensors.index.json", index)
    hub.add("org/model", folder)
    assert online.refused("org/model", cache)["code"] == "broken-index"


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_weight_file(hub: FakeHub, online: Client, cache: Path, tmp_path: Path, kept: int) -> None:
    folder = write_single(tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:kept])
    hub.add("org/model", folder)
    assert online.refused("org/model", cache)["code"] == "broken-weights"


def test_offline_a_downloaded_repository_reads_as_its_folder(
    hub: FakeHub, online: Client, offline: Client, cache: Path, tmp_path: Path
) -> None:
    folder = write_sharded(tmp_path / "model", elements=10)
    commit = hub.add("org/model", folder)
    online.download("org/model", cache)
    hub.requests.clear()
    contents = offline.read("org/model", cache)
    assert comparable(contents) == here(folder)
    assert contents.revision == commit
    assert offline.read("org/model", cache, revision=commit) == contents
    assert not hub.requests


def test_offline_the_documents_are_read_without_the_weights(
    hub: FakeHub, online: Client, offline: Client, cache: Path, tmp_path: Path
) -> None:
    hub.add("org/single", write_single(tmp_path / "single"))
    hub.add("org/sharded", write_sharded(tmp_path / "sharded", elements=10))
    for repo_id in hub.repositories:
        seen = online.read(repo_id, cache)
        contents = offline.read(repo_id, cache)
        assert contents.documents == seen.documents
        assert (contents.tensors, contents.storage, contents.revision) == ((), "none", seen.revision)
        assert [n.code for n in contents.notes] == [*(n.code for n in seen.notes), "partial-cache"]
        assert "the weights" in contents.notes[-1].message


def test_offline_weights_are_read_where_only_others_lack(
    hub: FakeHub, online: Client, offline: Client, cache: Path, tmp_path: Path
) -> None:
    folder = write_single(tmp_path / "model")
    (folder / "README.md").touch()
    hub.add("org/model", folder)
    online.download("org/model", cache, files=["config.json", "model.safetensors"])
    contents = offline.read("org/model", cache)
    assert contents.tensors == here(folder).tensors
    assert [note.code for note in contents.notes] == ["partial-cache"]
    assert "some files" in contents.notes[0].message


def test_offline_what_is_not_cached_is_an_error(
    hub: FakeHub, online: Client, offline: Client, cache: Path, tmp_path: Path
) -> None:
    folder = write_single(tmp_path / "model")
    hub.add("org/model", folder)
    assert offline.refused("org/model", cache)["code"] == "offline"
    online.download("org/model", cache, files=["model.safetensors"])
    details = offline.refused("org/model", cache)
    assert details["code"] == "offline"
    assert "hf download org/model" in details["hint"]
    assert offline.refused("org/model", cache, revision="v9")["code"] == "offline"
    assert offline.refused("org/other", cache, "download")["code"] == "offline"


def test_a_download_is_the_folder(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "model", elements=10)
    commit = hub.add("org/model", folder)
    downloaded = online.download("org/model", cache, revision=commit)
    assert (downloaded / "README.md").read_text() == "# A model\n"
    assert read_directory(downloaded, name="model", source="org/model") == here(folder)


def test_a_download_takes_names_and_not_patterns(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    folder = write_single(tmp_path / "model")
    for name in ("odd[1]*.txt", "odd1x.txt"):
        (folder / name).touch()
    hub.add("org/model", folder)
    downloaded = online.download("org/model", cache, files=["odd[1]*.txt"])
    assert [path.name for path in downloaded.iterdir()] == ["odd[1]*.txt"]


def test_a_download_lacks_nothing_in_silence(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    commit = hub.add("org/model", write_single(tmp_path / "model"))
    online.read("org/model", cache)
    details = online.refused("org/model", cache, "download", files=["config.json", "none.json"])
    assert (details["code"], details["file"]) == ("network", "none.json")
    hub.tokens = {}
    details = online.refused("org/model", cache, "download", revision=commit, token=TOKEN)
    assert details["code"] == "unauthorized"


def test_a_download_that_fell_back_on_the_cache_is_an_error(
    hub: FakeHub, online: Client, cache: Path, tmp_path: Path
) -> None:
    commit = hub.add("org/model", write_single(tmp_path / "model"))
    online.read("org/model", cache)
    hub.failures[f"/api/models/org/model/tree/{commit}"] = error(403, message="not now")
    details = online.refused("org/model", cache, "download")
    assert (details["code"], details["file"]) == ("network", "model.safetensors")


def write_gguf(path: Path, name: str = "token_embd.weight", **changes: Any) -> Path:
    """A file with the keys of a tiny model and one tensor of four numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = [pair(key, content) for key, content in keys(**changes).items()]
    path.write_bytes(encode(pairs, [info(name, "F32", [4], 0)], bytes(16)))
    return path


def write_ggufs(folder: Path, *, shards: tuple[int, ...] = (1, 2, 3)) -> Path:
    """A repository as publishers have them: quantisations side by side, a split one in a folder, and documents."""
    for name in ("tiny-Q4_K_M.gguf", "tiny-Q4_K_S.gguf", "tiny-Q6_K.gguf", "tiny-Q6_K_L.gguf"):
        write_gguf(folder / name)
    for number in shards:
        write_gguf(folder / "Q8_0" / f"tiny-Q8_0-{number:05}-of-00003.gguf", f"blk.{number}.weight")
    (folder / ".gitattributes").write_text("*.gguf filter=lfs\n")
    return folder


FIRST = "Q8_0/tiny-Q8_0-00001-of-00003.gguf"


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("q4_k_m", "tiny-Q4_K_M.gguf"),
        ("tiny-Q4_K_S.gguf", "tiny-Q4_K_S.gguf"),
        ("Q6_K", "tiny-Q6_K.gguf"),
        ("Q6_K_L", "tiny-Q6_K_L.gguf"),
        ("Q8_0", FIRST),
        (FIRST, FIRST),
        ("Q8_0/tiny-Q8_0-00002-of-00003.gguf", FIRST),
    ],
)
def test_a_gguf_reads_as_the_file_here(
    hub: FakeHub, online: Client, offline: Client, cache: Path, tmp_path: Path, named: str, file: str
) -> None:
    folder = write_ggufs(tmp_path / "ggufs")
    commit = hub.add("org/ggufs", folder)
    contents = online.read_gguf("org/ggufs", named, cache)
    assert (contents.source, contents.revision) == (f"org/ggufs/{file}", commit)
    assert contents.files[0].path == file
    assert contents.gguf is not None
    assert contents.gguf.file == file
    local = read_gguf(folder / file)
    assert contents.name == local.name == ("tiny-Q8_0" if file == FIRST else file.removesuffix(".gguf"))
    assert [(t.name, t.shape) for t in contents.tensors] == [(t.name, t.shape) for t in local.tensors]
    assert (contents.gguf.values, contents.notes) == (local.gguf.values if local.gguf else None, ())
    assert offline.call("read_hub_gguf", repo_id="org/ggufs", named=named, cache_dir=cache).error is not None
    # What is read of it is what a conversion fetches, and offline it is found again under the same names.
    fetched = [each.path for each in contents.files]
    downloaded = online.download("org/ggufs", cache, revision=commit, files=fetched)
    assert sorted(path.relative_to(downloaded).as_posix() for path in downloaded.rglob("*.gguf")) == fetched
    hub.requests.clear()
    again = offline.read_gguf("org/ggufs", named, cache)
    assert again == comparable_gguf(contents)
    assert offline.read_gguf("org/ggufs", named, cache, revision=commit) == again
    assert offline.download("org/ggufs", cache, revision=commit, files=fetched) == downloaded
    assert not hub.requests


def comparable_gguf(contents: Contents) -> Contents:
    """Without what the cache doesn't know."""
    return replace(contents, files=tuple(replace(file, etag=None) for file in contents.files))


def test_files_of_a_split_gguf_that_the_hub_lacks_are_noted(
    hub: FakeHub, online: Client, offline: Client, cache: Path, tmp_path: Path
) -> None:
    commit = hub.add("org/ggufs", write_ggufs(tmp_path / "ggufs", shards=(1, 2)))
    contents = online.read_gguf("org/ggufs", "Q8_0", cache)
    assert [note.code for note in contents.notes] == ["missing-shards"]
    assert "tiny-Q8_0-00003-of-00003.gguf" in contents.notes[0].message
    assert len(contents.files) == 2
    online.download("org/ggufs", cache, revision=commit, files=[file.path for file in contents.files])
    assert [note.code for note in offline.read_gguf("org/ggufs", "Q8_0", cache).notes] == ["missing-shards"]


@pytest.mark.parametrize("named", ["Q8_0", "Q8_0/tiny-Q8_0-00002-of-00003.gguf"])
def test_a_split_gguf_without_its_first_file_is_broken(
    hub: FakeHub, online: Client, cache: Path, tmp_path: Path, named: str
) -> None:
    hub.add("org/ggufs", write_ggufs(tmp_path / "ggufs", shards=(2, 3)))
    details = online.refused("org/ggufs", cache, "read_hub_gguf", named=named)
    assert (details["code"], details["file"]) == ("missing-shard", FIRST)


def test_a_gguf_that_is_no_single_one(hub: FakeHub, online: Client, cache: Path, tmp_path: Path) -> None:
    hub.add("org/ggufs", write_ggufs(tmp_path / "ggufs"))
    details = online.call("read_hub_gguf", repo_id="org/ggufs", named="Q4_K", cache_dir=cache).error
    assert details is not None
    assert (details["code"], details["found"]) == ("several-files", "tiny-Q4_K_M.gguf, tiny-Q4_K_S.gguf")


def test_offline_a_gguf_of_a_download_is_read(
    hub: FakeHub, online: Client, offline: Client, cache: Path, tmp_path: Path
) -> None:
    hub.add("org/ggufs", write_ggufs(tmp_path / "ggufs"))
    assert offline.refused("org/ggufs", cache, "read_hub_gguf", named="Q4_K_M")["code"] == "offline"
    online.download("org/ggufs", cache)
    for named, file in (("Q4_K_M", "tiny-Q4_K_M.gguf"), (FIRST, FIRST), ("Q8_0", FIRST)):
        assert offline.read_gguf("org/ggufs", named, cache).files[0].path == file
    details = offline.refused("org/ggufs", cache, "read_hub_gguf", named="sub/none.gguf")
    assert details["code"] == "offline"
    assert "hf download org/ggufs sub/none.gguf" in details["hint"]
    assert offline.refused("org/ggufs", cache, "read_hub_gguf", named="Q2_K")["code"] == "offline"
