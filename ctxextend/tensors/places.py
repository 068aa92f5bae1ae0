"""Where an output may go, and whether it fits there: refused before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend.checkpoint.gguf_file import name_of, shard_names
from ctxextend.errors import CheckpointError, OutputError, RefusedError, UsageError
from ctxextend.tensors.checksums import header_sha256, sha256_of
from ctxextend.tensors.copying import LinkMode, carry, clone
from ctxextend.tensors.staging import settle

#: The file by which an output of ours is known.
MANIFEST: Final = "ctxextend.json"

#: An output of this ending is one file, with its manifest beside it.
GGUF: Final = ".gguf"


#: The scheme of every manifest of ours.
_SCHEMA: Final = "ctxextend.manifest/"


class _File(Struct, frozen=True, kw_only=True):
    """What a manifest says of a file, as far as it tells whether that is still the same."""

    path: str
    size_bytes: int
    sha256: str | None = None
    header_sha256: str | None = None
    in_place: bool = False


class _Manifest(Struct, frozen=True, kw_only=True):
    """The part of a manifest that lists files."""

    schema: str
    files: tuple[_File, ...]


def manifest_of(out: Path) -> Path:
    """Where the manifest of an output lies: inside a folder, beside a file."""
    return out.with_name(f"{out.name}.{MANIFEST}") if out.suffix == GGUF else out / MANIFEST


def check_places(source: Path | None, out: Path, *, force: bool, single: bool = False) -> None:
    """Refuse an output that would harm something. ``source`` is the folder or file, where it lies here.

    ``single``: the output is one GGUF file; what a killed run left of it by half is taken back first. Raises
    :class:`RefusedError`, and :class:`UsageError` for a name that says something else of the output.
    """
    _check_name(out, single=single)
    if single:
        settle(out, manifest_of(out))
    target = out.resolve()
    if source is not None:
        _check_apart(source.resolve(), target, out)
    if not os.path.lexists(out):
        if single:
            check_manifest(manifest_of(out), force=force)
        return
    whole = out.is_file() if single else out.is_dir()
    ours = whole and not out.is_symlink() and manifest_of(out).is_file()
    if not ours or not force:
        raise RefusedError(
            "the output exists" if not force else "what is there isn't an output of ctxextend, and is left alone",
            code="output-exists",
            file=str(out),
            hint="--force replaces it (the old one goes when the new one is complete)"
            if ours
            else "choose another place with --out",
        )
    manifest = _read_manifest(manifest_of(out))
    if manifest is not None and any(file.in_place for file in manifest.files):
        raise RefusedError(
            "what is there was changed in place: it is a file of yours, and is left alone",
            code="output-in-place",
            file=str(out),
            hint="choose another place with --out",
        )
    changed = manifest_of(out).name if manifest is None else _changed(out, manifest)
    if changed is not None:
        raise RefusedError(
            "the output was changed since ctxextend wrote it, and is left alone",
            code="output-changed",
            file=str(out.with_name(changed) if single else out / changed),
            expected=f"the files that {manifest_of(out).name} lists, as they were written",
            hint="move what is yours out of there, or choose another place with --out",
        )


def _check_name(out: Path, *, single: bool) -> None:
    """Whether the name says what the output is: a file, not one of several, or a folder."""
    if single == (out.suffix == GGUF) and (not single or shard_names(out.name) == [out.name]):
        return
    stem = out.name.removesuffix(GGUF)
    name = (name_of(out.name) if single else stem) or "long"
    raise UsageError(
        "the output is one GGUF file, and its name says otherwise"
        if single
        else "the output is a folder, and its name is that of a GGUF file",
        code="bad-out",
        key="--out",
        found=str(out),
        hint=f"--out {out.with_name(f'{name}{GGUF}' if single else name)}" if out.name else "give it a name",
    )


def check_manifest(manifest: Path, *, force: bool) -> None:
    """Refuse to take the place of what isn't a manifest of ours, or of one unless that was asked for.

    Raises :class:`RefusedError`.
    """
    if not os.path.lexists(manifest):
        return
    ours = manifest.is_file() and not manifest.is_symlink() and _read_manifest(manifest) is not None
    if not (force and ours):
        raise RefusedError(
            "where the manifest should go, there is something",
            code="output-exists",
            file=str(manifest),
            hint="--force replaces it" if ours else "move it away, or choose another place with --out",
        )


def _read_manifest(path: Path) -> _Manifest | None:
    """A manifest of ours; None for anything else."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found.schema.startswith(_SCHEMA) else None


def is_proven(out: Path) -> bool:
    """Whether an output of ours is there, with a checksum of every file in its manifest, and each as that says."""
    manifest = _read_manifest(manifest_of(out)) if out.exists() else None
    if manifest is None or any(file.sha256 is None for file in manifest.files):
        return False
    return _changed(out, manifest) is None


def _changed(out: Path, manifest: _Manifest) -> str | None:
    """The first file of an earlier output that isn't as its manifest says; None where all are."""
    listed = {file.path: file for file in manifest.files}
    if out.is_file():
        found = {out.name: out}
    else:
        found = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if not path.is_dir()}
        found.pop(MANIFEST, None)
    return next((name for name in sorted({*found, *listed}) if not _same(found.get(name), listed.get(name))), None)


def _same(path: Path | None, file: _File | None) -> bool:
    if path is None or file is None or not path.exists() or path.stat().st_size != file.size_bytes:
        return False
    if file.sha256 is not None:
        return sha256_of(path) == file.sha256
    try:
        return file.header_sha256 is None or header_sha256(path) == file.header_sha256
    except CheckpointError:
        return False


def _check_apart(source: Path, target: Path, out: Path) -> None:
    if target == source and source.is_file():
        raise RefusedError(
            "the output is the source itself",
            code="output-is-source",
            file=str(out),
            hint="--in-place changes the file where it lies; or choose another place with --out",
        )
    if target == source or source in target.parents:
        raise RefusedError(
            "the output lies inside the source, which is never written to",
            code="output-inside-source",
            file=str(out),
            found=str(source),
            hint="choose another place with --out",
        )
    if target in source.parents:
        raise RefusedError(
            "the source lies inside the output",
            code="source-inside-output",
            file=str(out),
            found=str(source),
            hint="choose another place with --out",
        )


def check_space(files: Sequence[Path], staging: Path, mode: LinkMode, *, more_bytes: int = 0) -> None:
    """Refuse before the first byte when copies can't fit; clones and links need no room.

    ``more_bytes`` are written beside, whatever the mode. Raises :class:`OutputError`, also where clones are asked for
    and can't be made.
    """
    if mode == "reflink" and files:
        _check_clones(files[0], staging)
    shared = not files or mode in ("hardlink", "symlink", "reflink") or (mode == "auto" and _clones(files[0], staging))
    if shared:
        if more_bytes:
            check_room(more_bytes, staging)
        return
    copied = sum(file.stat().st_size for file in files)
    check_room(copied + more_bytes, staging, hint=_sharing_hint(files[0], staging))


def check_room(needed: int, staging: Path, *, hint: str = "make room, or choose another --out") -> None:
    """Refuse before the first byte what can't fit. Raises :class:`OutputError`."""
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise OutputError(
            "there isn't enough room for the output",
            code="disk-full",
            file=str(staging.parent),
            expected=f"{needed} bytes",
            found=f"{free} bytes free",
            hint=hint,
        )


def _sharing_hint(file: Path, staging: Path) -> str:
    """A link mode that works from there to here; hard links don't cross file systems."""
    mode = "hardlink" if file.stat().st_dev == staging.stat().st_dev else "symlink"
    return f"make room, or choose another --out; --link-mode {mode} shares the weights instead of copying them"


def _check_clones(source: Path, staging: Path) -> None:
    probe = staging / ".probe"
    try:
        carry(source, probe, mode="reflink", progress=lambda _done: None)
    finally:
        probe.unlink(missing_ok=True)


def _clones(source: Path, staging: Path) -> bool:
    probe = staging / ".probe"
    try:
        return clone(source.resolve(), probe)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
