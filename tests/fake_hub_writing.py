"""What the Hub on the loopback does when it is written to: repositories, branches, LFS uploads, copies and commits.

The rules are those that the client relies on: a commit names files in LFS by checksums that the repository's store
has to hold, a parent that isn't the branch's newest commit is refused with 412, and nothing of an upload is believed
that doesn't have its checksum.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.fake_hub import (
    LFS_SUFFIXES,
    REPO,
    FakeHub,
    Reply,
    Repository,
    Request,
    as_json,
    entry,
    error,
    files_of,
    found_in,
    object_id,
)


def _refused(hub: FakeHub, request: Request, *, write: bool = True) -> Reply | None:
    """What somebody gets who may not."""
    if request.token is None:
        return error(401, message="Invalid username or password.")
    if write and request.token in hub.readers:
        return error(403, message="Forbidden: you don't have write access")
    return None


def _body(request: Request) -> Any:
    return json.loads(request.body)


def _create_repo(hub: FakeHub, request: Request) -> Reply:
    refused = _refused(hub, request)
    if refused is not None:
        return refused
    asked = _body(request)
    repo_id = f"{asked['organization']}/{asked['name']}"
    url = {"url": f"{hub.url}/{repo_id}"}
    if repo_id in hub.repositories:
        return Reply(status=409, body=json.dumps({"error": "You already created this model repo", **url}).encode())
    repository = Repository(private=asked.get("visibility") == "private")
    hub.repositories[repo_id] = repository
    folder = _new_folder(hub)
    (folder / ".gitattributes").write_text("".join(f"*{s} filter=lfs diff=lfs merge=lfs\n" for s in LFS_SUFFIXES))
    _commit_folder(repository, folder, "main")
    return as_json(url)


def _new_folder(hub: FakeHub) -> Path:
    assert hub.storage is not None, "set FakeHub.storage before something is written"
    folder = hub.storage / f"commit-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    return folder


def _commit_folder(repository: Repository, folder: Path, branch: str) -> str:
    commit = hashlib.sha1(uuid.uuid4().bytes, usedforsecurity=False).hexdigest()
    repository.commits[commit] = folder
    repository.branches[branch] = commit
    return commit


def _create_branch(hub: FakeHub, request: Request, *, repo: str, branch: str) -> Reply:
    refused = _refused(hub, request)
    if refused is not None:
        return refused
    repository = hub.repositories[repo]
    if branch in repository.branches:
        return error(409, message="Reference already exists")
    repository.branches[branch] = repository.branches["main"]
    return as_json({})


def _validate_yaml(_hub: FakeHub, request: Request) -> Reply:
    content = _body(request)["content"]
    parts = content.split("---\n")
    try:
        told = yaml.safe_load(parts[1]) if content.startswith("---\n") else {}
    except yaml.YAMLError:
        told = None
    if isinstance(told, dict):
        return as_json({"errors": [], "warnings": []})
    errors = {"errors": [{"message": "the front matter can't be read"}], "warnings": []}
    return Reply(status=400, body=json.dumps(errors).encode())


def _preupload(hub: FakeHub, request: Request, *, repo: str, revision: str) -> Reply:
    wants_pr = "create_pr" in parse_qs(urlsplit(request.path).query)
    found = _refused(hub, request, write=not wants_pr) or found_in(hub, request, repo, revision)
    if isinstance(found, Reply):
        return found
    _commit, folder = found
    held = set(files_of(folder))
    files = []
    for file in _body(request)["files"]:
        path = file["path"]
        mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
        known = {"oid": object_id(folder / path)} if path in held else {}
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
    return as_json({"files": files})


def _holds(hub: FakeHub, repo: str, oid: str) -> bool:
    """Whether a repository's LFS store holds an object: uploaded, copied, or in a commit."""
    repository = hub.repositories[repo]
    if oid not in repository.stored:
        repository.stored |= {
            object_id(folder / path)
            for folder in repository.commits.values()
            for path in files_of(folder)
            if path.endswith(LFS_SUFFIXES)
        }
    return oid in repository.stored


def _lfs_batch(hub: FakeHub, request: Request, *, repo: str) -> Reply:
    asked = _body(request)
    # Whoever may read may offer a pull request, and then names no branch.
    refused = _refused(hub, request, write="ref" in asked)
    if refused is not None:
        return refused
    objects = []
    for one in asked["objects"]:
        oid, size = one["oid"], one["size"]
        told: dict[str, Any] = {"oid": oid, "size": size}
        if not _holds(hub, repo, oid):
            place = f"{hub.url}/lfs-upload/{repo}/{oid}"
            upload: dict[str, Any] = {"href": f"{place}/whole?X-Amz-Signature=secret"}
            if hub.part_bytes is not None and size > hub.part_bytes:
                count = -(-size // hub.part_bytes)
                parts = {f"{n:05}": f"{place}/{n:05}?X-Amz-Signature=secret" for n in range(1, count + 1)}
                upload = {"href": f"{place}/complete", "header": {"chunk_size": str(hub.part_bytes), **parts}}
            told["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/lfs-verify/{repo}"}}
        objects.append(told)
    return as_json({"transfer": "basic", "objects": objects})


def _lfs_put(hub: FakeHub, request: Request, *, repo: str, oid: str, part: str) -> Reply:
    if request.token is not None:
        return error(400, message="a signed address gets no token")
    assert hub.storage is not None
    with hub.lock:
        hub.received[oid] += len(request.body)
    place = hub.storage / "lfs" / oid
    place.parent.mkdir(parents=True, exist_ok=True)
    if part != "whole":
        place.with_name(f"{oid}.{part}").write_bytes(request.body)
        return Reply(headers={"ETag": f'"{part}"'})
    return _keep(hub, repo, oid, request.body)


def _keep(hub: FakeHub, repo: str, oid: str, data: bytes) -> Reply:
    assert hub.storage is not None
    if hashlib.sha256(data).hexdigest() != oid:
        return error(400, message="these bytes have another checksum")
    (hub.storage / "lfs" / oid).write_bytes(data)
    with hub.lock:
        hub.repositories[repo].stored.add(oid)
    return Reply(headers={"ETag": f'"{oid}"'})


def _lfs_complete(hub: FakeHub, request: Request, *, repo: str, oid: str) -> Reply:
    assert hub.storage is not None
    parts = [hub.storage / "lfs" / f"{oid}.{part['etag'].strip(chr(34))}" for part in _body(request)["parts"]]
    return _keep(hub, repo, oid, b"".join(part.read_bytes() for part in parts))


def _lfs_verify(hub: FakeHub, request: Request, *, repo: str) -> Reply:
    return as_json({}) if _holds(hub, repo, _body(request)["oid"]) else error(404, message="no such object")


def _paths_info(hub: FakeHub, request: Request, *, repo: str, revision: str) -> Reply:
    found = found_in(hub, request, repo, revision)
    if isinstance(found, Reply):
        return found
    _commit, folder = found
    held = set(files_of(folder))
    paths = parse_qs(request.body.decode()).get("paths", [])
    return as_json([entry(hub, folder, path) for path in paths if path in held])


def _duplicate(hub: FakeHub, request: Request, *, repo: str) -> Reply:
    asked = _body(request)
    refused = _refused(hub, request) or _may_not_read(hub, request, repo)
    if refused is not None:
        return refused
    done, failed = [], []
    for file in asked["files"]:
        oid = file["sha256"]
        if _holds(hub, repo, oid) and file["xetHash"] == oid[::-1]:
            hub.repositories[asked["target"]["name"]].stored.add(oid)
            done.append(oid)
        else:
            failed.append({"sha256": oid, "error": "no such file in the source"})
    return as_json({"success": done, "failed": failed})


def _may_not_read(hub: FakeHub, request: Request, repo: str) -> Reply | None:
    if hub.repositories[repo].gated and not hub.tokens.get(request.token or ""):
        return error(403, code="GatedRepo", message="Access is restricted")
    return None


def _commit(hub: FakeHub, request: Request, *, repo: str, revision: str) -> Reply:
    wants_pr = "create_pr" in parse_qs(urlsplit(request.path).query)
    found = _refused(hub, request, write=not wants_pr) or found_in(hub, request, repo, revision)
    if isinstance(found, Reply):
        return found
    head, parent = found
    lines = [json.loads(line) for line in request.body.splitlines()]
    expected = lines[0]["value"].get("parentCommit")
    if expected is not None and expected != head:
        return error(412, message="A commit has happened since. Please refresh and try again.")
    repository = hub.repositories[repo]
    folder = _new_folder(hub)
    shutil.copytree(parent, folder, dirs_exist_ok=True)
    for line in lines[1:]:
        value = line["value"]
        target = folder / value["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if line["key"] == "file":
            target.write_bytes(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile" and _holds(hub, repo, value["oid"]):
            shutil.copyfile(_object(hub, value["oid"]), target)
        else:
            return error(400, message=f"the store doesn't hold {value['path']}")
    branch, pull_request = revision, None
    if wants_pr:
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
        branch, pull_request = f"refs/pr/{number}", f"{hub.url}/{repo}/discussions/{number}"
    oid = _commit_folder(repository, folder, branch)
    header = lines[0]["value"]
    repository.messages[oid] = (header["summary"], header["description"])
    return as_json(
        {
            "commitUrl": f"{hub.url}/{repo}/commit/{oid}",
            "commitOid": oid,
            "pullRequestUrl": pull_request,
            "success": True,
        }
    )


def _object(hub: FakeHub, oid: str) -> Path:
    """A file with these bytes, uploaded or in any commit."""
    assert hub.storage is not None
    uploaded = hub.storage / "lfs" / oid
    if uploaded.exists():
        return uploaded
    return next(
        folder / path
        for repository in hub.repositories.values()
        for folder in repository.commits.values()
        for path in files_of(folder)
        if path.endswith(LFS_SUFFIXES) and object_id(folder / path) == oid
    )


_POST, _PUT = frozenset({"POST"}), frozenset({"PUT"})
_OID = r"(?P<oid>[0-9a-f]{64})"

#: As in fake_hub: methods, the path they match, and what answers.
WRITING: list[tuple[frozenset[str], re.Pattern[str], Callable[..., Reply]]] = [
    (_POST, re.compile(r"/api/repos/create"), _create_repo),
    (_POST, re.compile(r"/api/validate-yaml"), _validate_yaml),
    (_POST, re.compile(rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)"), _create_branch),
    (_POST, re.compile(rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)"), _preupload),
    (_POST, re.compile(rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)"), _paths_info),
    (_POST, re.compile(rf"/api/models/{REPO}/lfs-files/duplicate"), _duplicate),
    (_POST, re.compile(rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)"), _commit),
    (_POST, re.compile(rf"/{REPO}\.git/info/lfs/objects/batch"), _lfs_batch),
    (_PUT, re.compile(rf"/lfs-upload/{REPO}/{_OID}/(?P<part>\w+)"), _lfs_put),
    (_POST, re.compile(rf"/lfs-upload/{REPO}/{_OID}/complete"), _lfs_complete),
    (_POST, re.compile(rf"/lfs-verify/{REPO}"), _lfs_verify),
]
