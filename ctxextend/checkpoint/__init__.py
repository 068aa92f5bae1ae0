"""Reading checkpoints: a directory, or a repository of the Hub; their documents and headers only."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from ctxextend.checkpoint.directory import read_directory
from ctxextend.contents import Contents
from ctxextend.errors import CheckpointError, RefusedError, UsageError

__all__ = ["Source", "folder_of", "read", "resolve"]


class Source(Struct, frozen=True, kw_only=True):
    """What the user named: a folder, or a repository with a revision. ``given`` is how it was spelled."""

    given: str
    folder: Path | None = None
    repo_id: str | None = None
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
            raise UsageError("a local folder has no --revision", code="bad-option", found=given)
        return Source(given=given, folder=_folder(path))
    name, _at, inner = given.removeprefix("hf://").partition("@")
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
    return Source(given=given, repo_id=name, revision=inner or revision, token=token, cache_dir=cache_dir)


def read(source: Source) -> Contents:
    """The checkpoint's contents, from its documents and headers alone."""
    if source.folder is not None:
        return read_directory(source.folder, source=source.given)
    from ctxextend.checkpoint.hub import read_hub

    assert source.repo_id is not None
    return read_hub(source.repo_id, revision=source.revision, token=source.token, cache_dir=source.cache_dir)


def folder_of(source: Source, contents: Contents) -> Path:
    """A folder with all files of the checkpoint: itself, or the Hub's cache after a download."""
    if source.folder is not None:
        return source.folder
    from ctxextend.checkpoint.hub import download

    assert source.repo_id is not None
    return download(
        source.repo_id,
        revision=contents.revision or source.revision,
        token=source.token,
        cache_dir=source.cache_dir,
    )


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        raise RefusedError(
            "this version reads safetensors checkpoints, not GGUF files",
            code="gguf",
            file=str(path),
            hint="convert the checkpoint that the file was made from, and export that",
        )
    raise CheckpointError(
        "this is a file, not a checkpoint",
        code="no-source",
        file=str(path),
        expected="the folder that holds config.json",
        hint=f"name the folder: {path.parent}",
    )
