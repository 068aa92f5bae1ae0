"""One commit of many files: what the Hub has is left away or copied there, the rest is uploaded before it.

The client sends weights through Xet where the package hf_xet is installed, and through LFS otherwise or with
HF_HUB_DISABLE_XET=1. Only of LFS is it known beforehand what an earlier attempt has sent; Xet finds that out for each
piece of a file as it goes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct

from ctxextend.hub.parcels import git_oid
from ctxextend.hub.repository import Held, Repository, find_repository
from ctxextend.hub.trouble import WAITS_SECONDS, Trouble, patiently, trouble_of, waited
from ctxextend.hub.values import How, Origin, Outgoing, PushedFile, PushOptions
from ctxextend.tensors.checksums import sha256_of

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationCopy, HfApi

#: Files that are hashed at a time.
_HASHERS: Final = 4

#: The Hub tells of this many paths, or objects, at a time.
_BATCH: Final = 250

#: Downloads files of the source, by their paths there, and gives their folder.
Fetch = Callable[[Sequence[str]], Path]


class Sent(Struct, frozen=True, kw_only=True):
    """What a commit came to. ``commit`` is the newest one where nothing was to be changed."""

    commit: str | None
    pull_request: str | None
    changed: bool
    files: tuple[PushedFile, ...]


class Sending:
    """Files on their way into a repository, and what is known of them meanwhile.

    Bytes that aren't here are fetched only where the Hub can't copy them.
    """

    def __init__(
        self,
        api: HfApi,
        files: Sequence[Outgoing],
        options: PushOptions,
        *,
        fetch: Fetch | None,
        say: Callable[[str], None],
    ) -> None:
        self._api = api
        self._files = {file.path: file for file in files}
        self._options = options
        self._fetch = fetch
        self._say = say
        self._sha256: dict[str, str] = {}
        self._uploads: dict[str, CommitOperationAdd] = {}
        self._uploads_head: str | None = None
        self._stored: dict[str, bool] = {}
        #: Of each file that the Hub may have elsewhere: why it can't be copied, or None.
        self._copies: dict[str, str | None] = {}

    def outlook(self, found: Repository) -> tuple[PushedFile, ...]:
        """What would become of each file."""
        self._confirm_origins(found)
        return self._told(self._sorted(found))

    def send(self, found: Repository, *, message: str) -> Sent:
        """Everything, in one commit on what ``found`` holds. Raises what the client raises.

        Where the repository has changed meanwhile, the commit is made once more on what it holds then; where it isn't
        known whether a commit arrived, the repository tells. A pull request is asked for only once.
        """
        from httpx2 import TransportError
        from huggingface_hub.errors import FileDuplicationError, HfHubHTTPError

        first, waits, conflicts = found.head, iter(WAITS_SECONDS), 0
        self._confirm_origins(found)
        told: tuple[PushedFile, ...] | None = None
        while True:
            hows = self._sorted(found)
            if set(hows.values()) <= {"there"}:
                files = told or self._told(hows)
                return Sent(commit=found.head, pull_request=None, changed=found.head != first, files=files)
            operations = self._operations(hows, found.head)
            told = self._told(hows)
            try:
                made = self._commit(operations, found, message)
            except FileDuplicationError as error:
                self._upload_instead(str(error))
                continue
            except (HfHubHTTPError, TransportError, RuntimeError) as error:
                trouble = trouble_of(error)
                if not self._may_repeat(trouble):
                    raise
                if trouble.conflict and trouble.path.endswith(f"/commit/{self._branch}") and not conflicts:
                    conflicts += 1
                    self._say(f"{self._options.repo_id} has changed meanwhile: trying again on what it holds now")
                elif not waited(trouble, next(waits, None), self._say):
                    if not trouble.path.endswith("/lfs-files/duplicate"):
                        raise
                    self._upload_instead(f"HTTP {trouble.status}" if trouble.status else "the connection broke off")
                    continue
                found = find_repository(self._api, self._options, self._say)
                continue
            return Sent(commit=made.oid, pull_request=made.pr_url, changed=True, files=told)

    @property
    def _branch(self) -> str:
        return quote(self._options.revision or "main", safe="")

    def _may_repeat(self, trouble: Trouble) -> bool:
        """Whether asking again can't open a second pull request."""
        lost = trouble.dropped or (trouble.status or 0) >= 500
        return not (self._options.create_pr and lost and "/commit/" in trouble.path)

    def _commit(
        self, operations: Sequence[CommitOperationAdd | CommitOperationCopy], found: Repository, message: str
    ) -> CommitInfo:
        options = self._options
        made: CommitInfo = self._api.create_commit(
            options.repo_id,
            operations,
            commit_message=message,
            commit_description=options.description,
            revision=options.revision,
            create_pr=options.create_pr,
            parent_commit=None if options.create_pr else found.head,
        )
        return made

    def _sorted(self, found: Repository) -> dict[str, How]:
        """What is to be done with each file."""
        self._hash(found)
        return {
            path: "there"
            if self._unchanged(file, found.files.get(path))
            else "copied"
            if self._can_copy(file)
            else "uploaded"
            for path, file in self._files.items()
        }

    def _told(self, hows: Mapping[str, How]) -> tuple[PushedFile, ...]:
        return tuple(
            PushedFile(
                path=path,
                size_bytes=self._files[path].size_bytes,
                how="there" if how == "uploaded" and self._stored.get(path, False) else how,
                reason=self._copies.get(path) if how == "uploaded" else None,
            )
            for path, how in hows.items()
        )

    def _hash(self, found: Repository) -> None:
        """The checksums that are needed: where one decides, and without Xet of all that may be uploaded."""
        wanted = []
        for path, file in self._files.items():
            held = found.files.get(path)
            decides = file.origin is not None or (held is not None and held.size_bytes == file.size_bytes)
            uploads = not self._options.dry_run and not _has_xet()
            if path not in self._sha256 and (file.data is not None or file.file is not None) and (decides or uploads):
                wanted.append(path)
        if len(wanted) == 0:
            return
        with ThreadPoolExecutor(_HASHERS) as pool:
            self._sha256 |= dict(zip(wanted, pool.map(lambda path: _sha256(self._files[path]), wanted), strict=True))

    def _digest(self, file: Outgoing) -> str | None:
        if file.data is None and file.file is None and file.origin is not None:
            return file.origin.sha256
        return self._sha256.get(file.path)

    def _unchanged(self, file: Outgoing, held: Held | None) -> bool:
        if held is None or held.size_bytes != file.size_bytes:
            return False
        if held.sha256 is not None:
            return held.sha256 == self._digest(file)
        data = file.data if file.file is None else file.file.read_bytes()
        return data is not None and git_oid(data) == held.git_oid

    def _can_copy(self, file: Outgoing) -> bool:
        return file.path in self._copies and self._copies[file.path] is None

    def _confirm_origins(self, found: Repository) -> None:
        """Learn which files the Hub can copy: unchanged here, and kept in Xet at their source."""
        self._hash(found)
        by_source: dict[tuple[str, str], list[Origin]] = {}
        paths: dict[Origin, str] = {}
        for path, file in self._files.items():
            if file.origin is None or self._unchanged(file, found.files.get(path)):
                continue
            if self._digest(file) != file.origin.sha256:
                self._copies[path] = "it isn't the source's any more"
                continue
            paths[file.origin] = path
            by_source.setdefault((file.origin.repo_id, file.origin.revision), []).append(file.origin)
        for (repo_id, revision), origins in by_source.items():
            kept = self._kept_by(repo_id, revision, origins)
            self._copies |= {paths[origin]: reason for origin, reason in kept.items()}

    def _kept_by(self, repo_id: str, revision: str, origins: Sequence[Origin]) -> dict[Origin, str | None]:
        """Of each file of a source, why it can't be copied from there, or None."""
        from huggingface_hub.errors import HfHubHTTPError

        held: dict[str, Any] = {}
        try:
            for batch in _batches([origin.path for origin in origins]):
                asked = self._paths_info(repo_id, revision, batch)
                held |= {entry.path: entry for entry in asked}
        except HfHubHTTPError as error:
            return dict.fromkeys(origins, f"{repo_id} can't be read: HTTP {error.response.status_code}")
        kept: dict[Origin, str | None] = {}
        for origin in origins:
            entry = held.get(origin.path)
            lfs = getattr(entry, "lfs", None)
            if lfs is None or lfs.sha256 != origin.sha256:
                kept[origin] = f"{repo_id} doesn't hold it at this commit"
            elif not getattr(entry, "xet_hash", None):
                kept[origin] = f"{repo_id} keeps it outside Xet, from where the Hub doesn't copy"
            else:
                kept[origin] = None
        return kept

    def _paths_info(self, repo_id: str, revision: str, paths: Sequence[str]) -> Sequence[Any]:
        return patiently(lambda: self._api.get_paths_info(repo_id, list(paths), revision=revision), self._say)

    def _upload_instead(self, why: str) -> None:
        """Give up copying: the files are uploaded."""
        short = " ".join(why.split())[:160]
        self._say(f"the Hub doesn't copy the weights ({short}): uploading them")
        self._copies |= {
            path: f"the Hub refused to copy it: {short}" for path, reason in self._copies.items() if reason is None
        }

    def _operations(self, hows: Mapping[str, How], head: str | None) -> list[CommitOperationAdd | CommitOperationCopy]:
        """What the client is asked to do; what it has uploaded it knows by its own operations."""
        from huggingface_hub import CommitOperationCopy

        if head != self._uploads_head:
            # An operation remembers which files the commit under it held.
            self._uploads, self._uploads_head = {}, head
        self._bring([path for path, how in hows.items() if how == "uploaded"])
        operations: list[CommitOperationAdd | CommitOperationCopy] = []
        for path, how in hows.items():
            origin = self._files[path].origin
            if how == "uploaded":
                operations.append(self._upload(path))
            elif how == "copied" and origin is not None:
                operations.append(
                    CommitOperationCopy(
                        src_path_in_repo=origin.path,
                        path_in_repo=path,
                        src_revision=origin.revision,
                        src_repo_id=origin.repo_id,
                        src_repo_type="model",
                    )
                )
        self._ask_what_is_stored([path for path, how in hows.items() if how == "uploaded"])
        return operations

    def _bring(self, paths: Sequence[str]) -> None:
        """The bytes of files that aren't here."""
        missing = {
            path: origin.path
            for path in paths
            if self._files[path].file is None
            and self._files[path].data is None
            and (origin := self._files[path].origin) is not None
        }
        if not missing or self._fetch is None:
            return
        self._say(f"fetching {len(missing)} file{'s' if len(missing) > 1 else ''} that can't be copied on the Hub")
        folder = self._fetch(list(missing.values()))
        for path, inner in missing.items():
            self._files[path] = msgspec.structs.replace(self._files[path], file=folder / inner)
        if not _has_xet():
            self._sha256 |= {path: _sha256(self._files[path]) for path in missing}

    def _upload(self, path: str) -> CommitOperationAdd:
        from huggingface_hub import CommitOperationAdd

        if path not in self._uploads:
            file = self._files[path]
            content = file.data if file.file is None else str(file.file)
            assert content is not None
            operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
            if path in self._sha256:
                # So it isn't read another time for that.
                operation.upload_info.sha256 = bytes.fromhex(self._sha256[path])
            self._uploads[path] = operation
        return self._uploads[path]

    def _ask_what_is_stored(self, paths: Sequence[str]) -> None:
        """Learn which files an earlier attempt has uploaded; the client asks the same, and doesn't tell."""
        from huggingface_hub.lfs import post_lfs_batch_info

        wanted = [path for path in paths if path not in self._stored and self._files[path].size_bytes]
        if _has_xet():
            return
        for batch in _batches(wanted):
            objects, _errors, _transfer = post_lfs_batch_info(
                [self._uploads[path].upload_info for path in batch],
                token=self._options.token,
                repo_type="model",
                repo_id=self._options.repo_id,
                revision=None if self._options.create_pr else self._branch,
            )
            stored = {one["oid"] for one in objects if one.get("actions") is None}
            self._stored |= {path: self._sha256[path] in stored for path in batch}


def _sha256(file: Outgoing) -> str:
    if file.file is not None:
        return sha256_of(file.file)
    from hashlib import sha256

    return sha256(file.data or b"").hexdigest()


def _has_xet() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def _batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]
