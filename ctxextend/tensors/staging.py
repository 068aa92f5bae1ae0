"""An output that appears whole or not at all.

A run builds in ``.NAME.ctxextend-staging`` beside the target, holds a lock on that folder while it
does, and renames it at the end. The lock dies with its process, so a folder that can be locked is
stale and is swept; a folder that can't belongs to another run on the same target.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ctxextend.errors import OutputError

#: renameat2(2): swap two names in one step (Linux).
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100

#: In the staging folder of one file, from when it is published: what its manifest's name held before, if anything.
_BEFORE: Final = ".ctxextend-before"


def staging_path(target: Path) -> Path:
    """Where the output of ``target`` is built."""
    return target.parent / f".{target.name}.ctxextend-staging"


@contextmanager
def staged(target: Path, *, replace: bool) -> Iterator[Path]:
    """A folder to build in, which becomes ``target`` when the block ends well and vanishes when it doesn't.

    ``replace``: an existing target is swapped out at the end and removed. Raises
    :class:`OutputError` when another run works on the same target.
    """
    with _building(target) as staging:
        yield staging
        _sync_all(staging)
        if replace and target.exists():
            _swap(staging, target)
        else:
            _rename(staging, target)
        sync(target.parent)


@contextmanager
def staged_file(target: Path, manifest: Path, *, replace: bool) -> Iterator[Path]:
    """A folder to build one file in, which goes beside ``target`` with its ``manifest`` when the block ends well.

    The manifest goes first, so ``target`` is complete when it is there; without ``replace`` nothing that is there
    is touched. Whatever ends the run, either both are new or both are as they were: what a kill leaves between is
    taken back by the next run (:func:`settle`). Raises :class:`OutputError` when another run works on the same
    target, and when either name was taken meanwhile.
    """
    with _building(target, manifest) as staging:
        yield staging
        _sync_all(staging)
        try:
            _publish(staging, target, manifest, replace=replace)
        except BaseException:
            _take_back(staging, target, manifest)
            raise
        sync(target.parent)


def settle(target: Path, manifest: Path) -> None:
    """Take back what a run that was killed published of ``target`` by half; nothing while another run works on it.

    To be called before it is judged what is there.
    """
    staging = staging_path(target)
    if not (staging / _BEFORE).is_file():
        return
    with suppress(OutputError):
        descriptor = _locked_folder(staging)
        try:
            _take_back(staging, target, manifest)
        finally:
            os.close(descriptor)


def _publish(staging: Path, target: Path, manifest: Path, *, replace: bool) -> None:
    for path in () if replace else (target, manifest):
        if os.path.lexists(path):
            raise _taken(path)
    write_file(staging / _BEFORE, manifest.read_bytes() if manifest.exists() else b"")
    sync(staging / _BEFORE)
    sync(staging)
    for path in (manifest, target):
        if replace:
            (staging / path.name).replace(path)
        else:
            _appear(staging / path.name, path)


def _take_back(staging: Path, target: Path, manifest: Path) -> None:
    """Undo a publication that didn't reach its end, from whatever it left."""
    before = staging / _BEFORE
    if not before.is_file():
        return
    if not _published(staging, target) and _published(staging, manifest):
        said = before.read_bytes()
        if said:
            (staging / manifest.name).unlink(missing_ok=True)
            write_file(staging / manifest.name, said)
            (staging / manifest.name).replace(manifest)
        else:
            manifest.unlink(missing_ok=True)
    before.unlink()


def _published(staging: Path, path: Path) -> bool:
    """Whether the file of the staging folder has its name outside: it was moved there, or is the same file."""
    staged_one = staging / path.name
    return not staged_one.exists() or (path.exists() and staged_one.samefile(path))


@contextmanager
def _building(target: Path, manifest: Path | None = None) -> Iterator[Path]:
    """The locked and empty folder beside ``target``; what is left of it at the end vanishes."""
    staging = staging_path(target)
    made = _make_parents(target.parent)
    descriptor = _locked_folder(staging)
    try:
        if manifest is not None:
            _take_back(staging, target, manifest)
        _sweep(staging)
        yield staging
    finally:
        # Only what is still ours: another run may already build its own folder under the same name.
        if _is(descriptor, staging):
            shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)
        # Only those that hold nothing: an output that appeared keeps its folder.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _appear(path: Path, target: Path) -> None:
    """Give a file a name that nobody has yet."""
    try:
        target.hardlink_to(path)
    except FileExistsError as error:
        raise _taken(target) from error
    except OSError:
        # A file system without hard links.
        if os.path.lexists(target):
            raise _taken(target) from None
        path.rename(target)


def _taken(target: Path) -> OutputError:
    return OutputError(
        "something else appeared where the output should go",
        code="busy",
        file=str(target),
        hint="choose another --out, or remove what is there and run again",
    )


@contextmanager
def staged_data(path: Path, data: bytes) -> Iterator[None]:
    """A file's new bytes, on the disk before the block begins and under their name when it ended well."""
    part = path.with_name(f".{path.name}.ctxextend-part")
    # What a run that was killed left, or a link of somebody's.
    part.unlink(missing_ok=True)
    try:
        write_file(part, data)
        sync(part)
        yield
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """A new file with these bytes; on the disk when the staging is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as handle:
        handle.write(data)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder; those that weren't there before, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _locked_folder(staging: Path) -> int:
    while True:
        with suppress(FileExistsError):
            staging.mkdir()
        try:
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise OutputError(
                "another run is writing the same output",
                code="busy",
                file=str(staging),
                hint="wait for it, or choose another --out",
            ) from error
        if _is(descriptor, staging):
            return descriptor
        # The other run renamed its folder into place between our open and our lock.
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sweep(staging: Path) -> None:
    for entry in staging.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_all(staging: Path) -> None:
    """Wait until every file and name is on the disk: once for all, so that the disk writes while files are copied."""
    for folder, _folders, names in os.walk(staging):
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                sync(path)
        sync(Path(folder))


def _rename(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise _taken(target) from error


def _swap(staging: Path, target: Path) -> None:
    """Exchange the two names in one step where the kernel can; the old output is then removed."""
    # Held until it is gone: under the staging name, another run would take it for stale and sweep it.
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _exchanged(staging, target):
            shutil.rmtree(staging, ignore_errors=True)
            return
        old = target.parent / f".{target.name}.ctxextend-old"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        staging.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(descriptor)


def _exchanged(one: Path, other: Path) -> bool:
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if exchange is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
