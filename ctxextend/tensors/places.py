"""Where an output may go, and whether it fits there: refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ctxextend.errors import OutputError, RefusedError
from ctxextend.tensors.copying import LinkMode, clone

#: The file by which an output of ours is known.
MANIFEST: Final = "ctxextend.json"

#: An output of this ending is one file, with its manifest beside it.
GGUF: Final = ".gguf"


def manifest_of(out: Path) -> Path:
    """Where the manifest of an output lies: inside a folder, beside a file."""
    return out.with_name(f"{out.name}.{MANIFEST}") if out.suffix == GGUF else out / MANIFEST


def check_places(source: Path | None, out: Path, *, force: bool) -> None:
    """Refuse an output that would harm something. ``source`` is the folder or file, where it lies here.

    Raises :class:`RefusedError`.
    """
    target = out.resolve()
    if source is not None:
        _check_apart(source.resolve(), target, out)
    if not (out.exists() or out.is_symlink()):
        return
    whole = out.is_file() if out.suffix == GGUF else out.is_dir()
    ours = whole and not out.is_symlink() and manifest_of(out).is_file()
    changed = _changed(out) if force and ours else None
    if force and ours and changed is None:
        return
    if changed is not None:
        raise RefusedError(
            "the output was changed since ctxextend wrote it, and is left alone",
            code="output-changed",
            file=str(out.with_name(changed) if out.is_file() else out / changed),
            expected=f"the files that {manifest_of(out).name} lists, as they were written",
            hint="move what is yours out of there, or choose another place with --out",
        )
    raise RefusedError(
        "the output exists" if not force else "what is there isn't an output of ctxextend, and is left alone",
        code="output-exists",
        file=str(out),
        hint="--force replaces it (the old one goes when the new one is complete)"
        if ours
        else "choose another place with --out",
    )


def _changed(out: Path) -> str | None:
    """The first file of an earlier output that isn't as its manifest says; None where all are."""
    manifest = manifest_of(out)
    try:
        listed = {str(entry["path"]): entry for entry in json.loads(manifest.read_bytes())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return manifest.name
    if out.is_file():
        found = {out.name: out}
    else:
        found = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if not path.is_dir()}
        found.pop(MANIFEST, None)
    for name in sorted({*found, *listed}):
        path, entry = found.get(name), listed.get(name)
        if path is None or entry is None or not path.exists() or path.stat().st_size != entry["size_bytes"]:
            return name
        if entry.get("written") and hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            return name
    return None


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


def check_space(files: Sequence[Path], staging: Path, mode: LinkMode) -> None:
    """Refuse before the first byte when copies can't fit; clones and links need no room.

    Raises :class:`OutputError`.
    """
    if not files or mode in ("hardlink", "symlink", "reflink"):
        return
    if mode == "auto" and _clones(files[0], staging):
        return
    check_room(sum(file.stat().st_size for file in files), staging, hint=_sharing_hint(files[0], staging))


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


def _clones(source: Path, staging: Path) -> bool:
    probe = staging / ".probe"
    try:
        return clone(source.resolve(), probe)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
