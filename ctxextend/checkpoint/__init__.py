"""Reading checkpoints: a directory, a GGUF file, or a repository of the Hub; documents and headers only."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from ctxextend.checkpoint.directory import read_directory
from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.checkpoint.gguf_header import MAGIC
from ctxextend.contents import Contents
from ctxextend.errors import CheckpointError, UsageError

__all__ = ["Source", "folder_of", "read", "resolve"]


class Source(Struct, frozen=True, kw_only=True):
    """What the user named: a folder, a GGUF file, or a repository with a revision. ``given``: how it was spelled.

    ``gguf`` names a GGUF of the repository, by its path or its quantisation.
    """

    given: str
    folder: Path | None = None
    file: Path | None = None
    repo_id: str | None = None
    gguf: str | None = None
    revision: str | None = None
    token: str | None = None
    cache_dir: Path | None = None


def resolve(
    given: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
) -> Source:
    """Where ``given`` points: an existing path, else ``org/name[@revision]``; ``hf://`` forces the latter.

    Raises :class:`CheckpointError` for a path that can't be a checkpoint, :class:`UsageError` for two
    revisions that differ.
    """
    path = Path(given).expanduser()
    if not given.startswith("hf://") and path.exists():
        if revision is not None:
            raise UsageError("a local checkpoint has no --revision", code="bad-option", found=given)
        if path.is_file() and _is_gguf(path):
            return Source(given=given, file=path)
        return Source(given=given, folder=_folder(path))
    name, _at, inner = given.removeprefix("hf://").partition("@")
    gguf = _gguf_of(given, name)
    if gguf is not None:
        name = gguf[0]
    if given.startswith(("/", "./", "../", "~")) or name.count("/") != 1:
        raise CheckpointError(
            "there is no such checkpoint",
            code="no-source",
            file=given,
            expected="a folder, or a repository org/name of the Hub",
            found="nothing at this path",
            hint="check the path; a repository is named org/name, or hf://org/name",
        )
    if inner and revision and inner != revision:
        raise UsageError("two revisions are named", code="bad-option", found=f"@{inner} and --revision {revision}")
    return Source(
        given=given,
        repo_id=name,
        gguf=gguf[1] if gguf is not None else None,
        revision=inner or revision,
        token=token,
        cache_dir=cache_dir,
    )


def read(source: Source) -> Contents:
    """The checkpoint's contents, from its documents and headers alone."""
    if source.folder is not None:
        return read_directory(source.folder, source=source.given)
    if source.file is not None:
        return read_gguf(source.file, source=source.given)
    from ctxextend.checkpoint.hub import read_hub, read_hub_gguf

    assert source.repo_id is not None
    if source.gguf is not None:
        return read_hub_gguf(
            source.repo_id,
            source.gguf,
            revision=source.revision,
            token=source.token,
            cache_dir=source.cache_dir,
        )
    return read_hub(source.repo_id, revision=source.revision, token=source.token, cache_dir=source.cache_dir)


def folder_of(source: Source, contents: Contents) -> Path:
    """A folder with all files of the checkpoint: itself, or the Hub's cache after a download.

    Raises :class:`CheckpointError` before a download that can't be whole.
    """
    if source.folder is not None:
        return source.folder
    if source.file is not None:
        return source.file.parent
    missing = next((note.message for note in contents.notes if note.code == "missing-shards"), None)
    if missing is not None:
        raise CheckpointError(
            f"files of a split GGUF are missing: {missing}",
            code="missing-shard",
            file=contents.source,
            expected="all its files in the repository",
            hint="name another --revision, or another file of the repository",
        )
    from ctxextend.checkpoint.hub import download

    assert source.repo_id is not None
    return download(
        source.repo_id,
        revision=contents.revision or source.revision,
        token=source.token,
        cache_dir=source.cache_dir,
        # Of a repository's many GGUF files only those that are meant.
        files=[file.path for file in contents.files] if contents.gguf is not None else None,
    )


def _is_gguf(path: Path) -> bool:
    """By its name, or by its first bytes: the stores of the Hub's client and of Ollama name files otherwise."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    raise CheckpointError(
        "this is a file, not a checkpoint",
        code="no-source",
        file=str(path),
        expected="the folder that holds config.json, or a .gguf file",
        hint=f"name the folder: {path.parent}",
    )


def _gguf_of(given: str, name: str) -> tuple[str, str] | None:
    """The repository and what names a GGUF in it: ``org/name/file.gguf`` or ``org/name:Q4_K_M``."""
    if given.startswith(("/", "./", "../", "~")):
        return None
    parts = name.split("/")
    if len(parts) > 2 and name.endswith(".gguf"):
        return "/".join(parts[:2]), "/".join(parts[2:])
    repository, colon, quantisation = name.partition(":")
    if len(parts) == 2 and colon and quantisation:
        return repository, quantisation
    return None
