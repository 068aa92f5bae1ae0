"""Reading a checkpoint on the Hub: its documents, and its headers by range requests; never its weights.

huggingface_hub is imported where it is used: it is slow to load, and reads its environment when it is.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ctxextend.checkpoint.bars import progress_bars
from ctxextend.checkpoint.directory import read_directory, read_text
from ctxextend.checkpoint.documents import (
    DOCUMENTS,
    INDEX,
    SKIPPED,
    TOKENIZER,
    TOKENIZER_HEAD_BYTES,
    check_index,
    parse_document,
    require_config,
    safe_path,
    second_copies,
    storage_of,
    truncation_of,
    weight_files,
)
from ctxextend.checkpoint.gguf_file import first_shard, gguf_contents, read_gguf_in, shards_among
from ctxextend.checkpoint.safetensors_header import read_header
from ctxextend.checkpoint.secrets import can_be_shown, check_token, told
from ctxextend.contents import Contents, FileInfo, Note, TensorInfo
from ctxextend.errors import CheckpointError, HubError, UsageError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_CONFIG: Final = "config.json"

#: Most safetensors headers fit in this much, so that one request does for a shard.
_HEAD_BYTES: Final = 100_000

#: A file up to this much is fetched for what its answer tells.
_SMALL_BYTES: Final = 1 << 16

#: How many requests run at a time.
_CONNECTIONS: Final = 8

#: Folders that reading a directory leaves out are not downloaded either.
_SKIPPED_PATTERNS: Final = [f"{before}{name}/*" for name in sorted(SKIPPED) for before in ("", "*/")]

#: What the operating system says when a download can't be kept.
_CACHE_TROUBLE: Final = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EIO,
    }
)


class _Repository(Struct, frozen=True, kw_only=True):
    """A repository as the user named it, and what it takes to read it."""

    repo_id: str
    revision: str | None
    token: str | None
    cache_dir: Path | None

    @property
    def name(self) -> str:
        return self.repo_id.rpartition("/")[2]


class _RemoteFile:
    """The beginning of a file on the Hub, as far as it was asked for; no byte is fetched twice."""

    def __init__(self, repository: _Repository, commit: str, file: FileInfo) -> None:
        self._repository = repository
        self._commit = commit
        self._file = file
        self._head = b""

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``, or fewer at the file's end."""
        end = min(offset + count, self._file.size_bytes)
        if end > len(self._head):
            fetched = max(end, min(_HEAD_BYTES, self._file.size_bytes))
            self._head += _fetch_range(self._repository, self._commit, self._file.path, len(self._head), fetched)
        return self._head[offset:end]


def read_hub(
    repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: Path | None = None
) -> Contents:
    """What a repository holds; offline, what the local cache holds of it.

    Raises :class:`HubError` where the Hub can't be read, :class:`CheckpointError` for a broken checkpoint
    and :class:`UsageError` for what is no repository's name.
    """
    from huggingface_hub import is_offline_mode

    repository = _repository(repo_id, revision, token, cache_dir)
    with _explained(repository):
        return _read_cached(repository) if is_offline_mode() else _read_online(repository)


def read_hub_gguf(
    repo_id: str, named: str, *, revision: str | None = None, token: str | None = None, cache_dir: Path | None = None
) -> Contents:
    """A GGUF checkpoint of a repository: its path, or its quantisation such as ``Q4_K_M``; headers alone.

    Raises as :func:`read_hub`, and :class:`UsageError` where several files have that quantisation.
    """
    from huggingface_hub import is_offline_mode

    repository = _repository(repo_id, revision, token, cache_dir)
    with _explained(repository):
        if is_offline_mode():
            return _cached_gguf(repository, named)
        commit, files = _listing(repository)
        held = {file.path: file for file in files}
        path = _gguf_path(held, named)
        present, missing = shards_among(path, held)
        parts = [(held[name], partial(_fetch, repository, commit, name)) for name in present]
        found = gguf_contents(parts, missing=missing, source=f"{repo_id}/{path}", revision=commit)
        _learn_revision(repository, commit, files)
        return found


def _cached_gguf(repository: _Repository, named: str) -> Contents:
    """The same from the local cache, which may lack some of the repository's files."""
    folder, _complete = _snapshot(repository)
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf") if path.is_file()}
    try:
        path = _gguf_path(held, named)
    except CheckpointError as error:
        raise _not_cached(repository, named) from error
    return read_gguf_in(folder, path, source=f"{repository.repo_id}/{path}", revision=folder.name)


def _learn_revision(repository: _Repository, commit: str, files: Iterable[FileInfo]) -> None:
    """Asks for a small file by the revision's name, so that the cache learns which commit it is.

    A repository of GGUF files has no config.json for that; on the Hub nearly all have a .gitattributes.
    """
    small = [file for file in files if 0 < file.size_bytes <= _SMALL_BYTES]
    if small and repository.revision != commit:
        _cached(repository, repository.revision, min(small, key=lambda file: file.size_bytes).path)


def _gguf_path(held: Iterable[str], named: str) -> str:
    """The file that a path or a quantisation names; of a split one, its first file, even where that isn't there."""
    files = sorted({first_shard(path) for path in held if path.endswith(".gguf")})
    if named.endswith(".gguf"):
        found = [path for path in files if path == first_shard(named)]
    else:
        # Q4_K is meant before Q4_K_M, but may stand for it.
        quantisation = [
            re.compile(rf"(^|[-._/]){re.escape(named)}([{after}]|$)", re.IGNORECASE) for after in ("-./", "-./_")
        ]
        found = next((hits for q in quantisation if (hits := [path for path in files if q.search(path)])), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"several GGUF files are {named}",
            code="several-files",
            expected="one file",
            found=", ".join(found),
            hint="name it by its path: org/name/FILE.gguf",
        )
    raise CheckpointError(
        "the repository has no such GGUF file",
        code="no-source",
        file=named,
        expected=", ".join(files) or "a GGUF file, and it has none",
        found="none of that name",
    )


def _fetch(repository: _Repository, commit: str, name: str, offset: int, count: int) -> bytes:
    return _fetch_range(repository, commit, name, offset, offset + count)


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    files: Sequence[str] | None = None,
) -> Path:
    """The folder of the local cache with ``files`` (all without it), after fetching what wasn't there."""
    from huggingface_hub import is_offline_mode, snapshot_download

    repository = _repository(repo_id, revision, token, cache_dir)
    expected = files or ()
    with _explained(repository), progress_bars():
        if files is None and not is_offline_mode():
            # The client falls back on a cache that may lack files; so what there should be is asked first.
            expected = [file.path for file in _listing(repository)[1]]
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=repository.token,
            cache_dir=cache_dir,
            allow_patterns=None if files is None else [escape(name) for name in files],
            ignore_patterns=_SKIPPED_PATTERNS,
        )
    missing = [name for name in expected if not (Path(folder) / name).is_file()]
    if missing:
        raise HubError(
            f"{repo_id} wasn't downloaded completely",
            code="network",
            file=missing[0],
            expected=f"{len(expected)} files",
            found=f"{len(missing)} missing",
            hint="check that the repository has it, and run the command again: it goes on where it stopped",
        )
    return Path(folder)


def _repository(repo_id: str, revision: str | None, token: str | None, cache_dir: Path | None) -> _Repository:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(
            "this is neither an existing path nor the name of a repository",
            code="repo-id",
            expected="ORG/NAME, of letters, digits, '-', '_' and '.'",
            found=repo_id,
            hint="check the path, or name a repository of the Hub as ORG/NAME",
        ) from error
    check_token(token)
    return _Repository(repo_id=repo_id, revision=revision, token=token or None, cache_dir=cache_dir)


def _read_online(repository: _Repository) -> Contents:
    commit, files = _listing(repository)
    held = {file.path: file for file in files}
    wanted = [name for name in (*DOCUMENTS, INDEX) if name in held]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        texts = dict(zip(wanted, pool.map(lambda n: _document(repository, commit, n), wanted), strict=True))
        documents = {name: parse_document(name, raw) for name, raw in texts.items() if name != INDEX}
        require_config(documents, held)
        index = parse_document(INDEX, texts[INDEX]).value if INDEX in texts else None
        weights = [held[name] for name in weight_files(held, index)]
        headers = pool.map(lambda file: _header(repository, commit, file), weights)
        tensors = tuple(tensor for header in headers for tensor in header)
    if index is not None:
        check_index(index, {tensor.name: tensor.file for tensor in tensors})
    return Contents(
        name=repository.name,
        source=repository.repo_id,
        revision=commit,
        storage=storage_of(held, tensors),
        files=files,
        documents=documents,
        tensors=tensors,
        tokenizer_truncation=_truncation(repository, commit, held.get(TOKENIZER)),
        notes=second_copies(held, documents[_CONFIG].value),
    )


def _listing(repository: _Repository) -> tuple[str, tuple[FileInfo, ...]]:
    """The commit that the revision means, and its files."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(
            repository.repo_id,
            revision=repository.revision,
            files_metadata=True,
            token=repository.token,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
    except HfHubHTTPError:
        # Some of them are ValueErrors, too.
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_hub("something else") from error
    if info.sha is None or info.siblings is None:
        raise _no_hub("no commit or no files")
    files = []
    for sibling in info.siblings:
        path = safe_path(repository.repo_id, "siblings", sibling.rfilename)
        if sibling.size is None:
            raise _no_hub(f"{path} without its size")
        if not SKIPPED.intersection(PurePosixPath(path).parts[:-1]):
            etag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
            files.append(FileInfo(path=path, size_bytes=sibling.size, etag=etag))
    return info.sha, tuple(sorted(files, key=lambda file: file.path))


def _document(repository: _Repository, commit: str, name: str) -> bytes:
    if name == _CONFIG and repository.revision != commit:
        # Asked by the revision's name once: so the cache learns which commit it is, and can be read offline.
        _cached(repository, repository.revision, name)
    return _cached(repository, commit, name).read_bytes()


def _cached(repository: _Repository, revision: str | None, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        """No progress bar: the documents are a few kilobytes."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    path = hf_hub_download(
        repository.repo_id,
        name,
        revision=revision,
        token=repository.token,
        cache_dir=repository.cache_dir,
        tqdm_class=Silent,
    )
    return Path(path)


def _header(repository: _Repository, commit: str, file: FileInfo) -> tuple[TensorInfo, ...]:
    return read_header(file.path, file.size_bytes, _RemoteFile(repository, commit, file).read)


def _truncation(repository: _Repository, commit: str, file: FileInfo | None) -> dict[str, Any] | None:
    if file is None or not file.size_bytes:
        return None
    head = _fetch_range(repository, commit, file.path, 0, min(TOKENIZER_HEAD_BYTES, file.size_bytes))
    return truncation_of(head)


def _fetch_range(repository: _Repository, commit: str, name: str, start: int, end: int) -> bytes:
    """The bytes from ``start`` to before ``end``, or fewer if the answer ends."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    headers = {
        **build_hf_headers(token=repository.token),
        "Range": f"bytes={start}-{end - 1}",
        # A compressed answer counts its offsets otherwise, and some servers then send the whole file.
        "Accept-Encoding": "identity",
    }
    received = bytearray()
    with http_stream_backoff(
        "GET",
        hf_hub_url(repository.repo_id, name, revision=commit),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        # The client can't repeat a request whose answer breaks off while it is being read.
        retry_on_exceptions=(),
    ) as response:
        hf_raise_for_status(response)
        # 200 instead of 206: a proxy took the range away, and the file comes from its beginning.
        skipped = start if response.status_code == 200 else 0
        for chunk in response.iter_bytes():
            received += chunk
            if len(received) >= skipped + end - start:
                break
    return bytes(received[skipped : skipped + end - start])


def _read_cached(repository: _Repository) -> Contents:
    folder, complete = _snapshot(repository)
    if not any((folder / name).exists() for name in (_CONFIG, "adapter_config.json")):
        raise _not_cached(repository)
    try:
        contents = read_directory(folder, name=repository.name, source=repository.repo_id)
    except CheckpointError as error:
        if error.code != "missing-shard":
            raise
        contents = _without_weights(folder, repository)
    notes = contents.notes
    if not complete or contents.storage == "none":
        notes = (*notes, _partial(repository, folder, has_weights=contents.storage != "none"))
    return replace(contents, revision=folder.name, notes=notes)


def _snapshot(repository: _Repository) -> tuple[Path, bool]:
    """The folder of the cache, and whether nothing is known to lack in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        folder, complete = (
            snapshot_download(
                repository.repo_id,
                revision=repository.revision,
                cache_dir=repository.cache_dir,
                ignore_patterns=_SKIPPED_PATTERNS,
                local_files_only=True,
            ),
            True,
        )
    except IncompleteSnapshotError as error:
        folder, complete = error.snapshot_path, False
    except LocalEntryNotFoundError as error:
        raise _not_cached(repository) from error
    return Path(folder), complete


def _without_weights(folder: Path, repository: _Repository) -> Contents:
    """The documents of a folder whose index names shards that aren't there."""
    files = tuple(
        FileInfo(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    names = [file.path for file in files]
    documents = {name: read_text(folder, name) for name in DOCUMENTS if name in names}
    require_config(documents, names)
    return Contents(
        name=repository.name,
        source=repository.repo_id,
        storage="none",
        files=files,
        documents=documents,
        notes=second_copies(names, documents[_CONFIG].value),
    )


def _partial(repository: _Repository, folder: Path, *, has_weights: bool) -> Note:
    lacking = "some files" if has_weights else "the weights, or some of them,"
    return Note(
        code="partial-cache",
        message=f"offline, and {lacking} of {repository.repo_id} aren't in the local cache: "
        f"hf download {repository.repo_id} --revision {folder.name} fetches them",
    )


@contextmanager
def _explained(repository: _Repository) -> Iterator[None]:
    """Turns what the client raises into a :class:`HubError` that says what to do, and holds no token."""
    from httpx2 import HTTPError

    try:
        yield
    except (HTTPError, OSError) as error:
        shown = can_be_shown(error, repository.token)
        raise _hub_error(repository, error) from (error if shown else None)


def _hub_error(repository: _Repository, error: Exception) -> HubError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        # So the client says that its cache didn't help either; the cause is what went wrong.
        error = error.__cause__
    match error:
        case GatedRepoError():
            found = _gated(repository)
        case RepositoryNotFoundError():
            found = _no_repository(repository)
        case RevisionNotFoundError():
            found = _no_revision(repository)
        case OfflineModeIsEnabled():
            found = _not_cached(repository)
        case HfHubHTTPError():
            found = _refused(repository, error)
        case OSError(errno=number) if number in _CACHE_TROUBLE:
            found = _no_cache(error)
        case _:
            found = _unreachable(repository, error)
    return found


def _unreachable(repository: _Repository, error: Exception) -> HubError:
    return HubError(
        "the Hub can't be reached",
        code="network",
        found=told(f"{type(error).__name__}: {error}", repository.token),
        hint="check the connection, HTTPS_PROXY and HF_ENDPOINT; HF_HUB_OFFLINE=1 reads what is in the cache; if "
        "something on this machine was meant, there is nothing at that path",
    )


def _refused(repository: _Repository, error: HfHubHTTPError) -> HubError:
    status = error.response.status_code
    found = told(f"HTTP {status}: {error.server_message or error.response.reason_phrase}", repository.token)
    if status in {401, 403}:
        return HubError(
            f"the Hub doesn't let this token read {repository.repo_id}",
            code="unauthorized",
            found=found,
            hint="log in with `hf auth login`, or give a token that may with --token or HF_TOKEN",
        )
    return HubError(
        "the Hub answers with an error",
        code="network",
        found=found,
        hint="wait for the limit to pass, and log in with `hf auth login` for a higher one"
        if status == 429
        else "try again later; https://status.huggingface.co tells whether the Hub is down",
    )


def _gated(repository: _Repository) -> HubError:
    from huggingface_hub import constants

    return HubError(
        f"{repository.repo_id} is gated: its publisher wants a licence accepted first",
        code="gated-repo",
        hint=told(f"accept it at {constants.ENDPOINT}/{repository.repo_id}, then ", repository.token)
        + "log in with `hf auth login` or give --token",
    )


def _no_repository(repository: _Repository) -> HubError:
    folder = "" if Path(repository.repo_id).exists() else "no such folder, and "
    return HubError(
        f"{folder}no such repository on the Hub: {repository.repo_id}",
        code="repo-not-found",
        found=repository.repo_id,
        hint="check the name; for a private repository log in with `hf auth login` or give --token",
    )


def _no_revision(repository: _Repository) -> HubError:
    return HubError(
        f"{repository.repo_id} has no such revision",
        code="revision-not-found",
        found=repository.revision or "main",
        hint="name a branch, a tag or a whole commit hash with --revision",
    )


def _not_cached(repository: _Repository, named: str | None = None) -> HubError:
    """``named``: the GGUF of the repository that was asked for."""
    revision = f" --revision {repository.revision}" if repository.revision else ""
    meant = repository.repo_id if named is None else f"{named} of {repository.repo_id}"
    file = f" {named}" if named is not None and named.endswith(".gguf") else ""
    return HubError(
        f"offline, and {meant} isn't in the local cache",
        code="offline",
        found=f"revision {repository.revision or 'main'}",
        hint=f"online: hf download {repository.repo_id}{file}{revision}; or unset HF_HUB_OFFLINE",
    )


def _no_cache(error: OSError) -> HubError:
    return HubError(
        "what comes from the Hub can't be kept",
        code="cache",
        file=str(error.filename) if error.filename else None,
        found=error.strerror,
        hint="name another folder with --cache-dir or HF_HOME",
    )


def _no_hub(found: str) -> HubError:
    return HubError(
        "the answer isn't that of a Hub",
        code="network",
        expected="a repository's commit and its files with their sizes",
        found=found,
        hint="check HF_ENDPOINT, and whether a proxy or a log-in page stands between",
    )
