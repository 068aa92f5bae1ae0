"""Which files of a checkpoint here are published, and which of them the Hub has already."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from ctxextend.apply import SCHEMA, Manifest, OutputFile, encode
from ctxextend.checkpoint.card import read_card
from ctxextend.checkpoint.gguf_file import first_shard, shard_names
from ctxextend.errors import CheckpointError, UsageError
from ctxextend.hub.values import Origin, Outgoing, Parcel, PushOptions
from ctxextend.tensors.places import MANIFEST, manifest_of

CARD: Final = "README.md"

#: Folders of other tools, which are no part of a checkpoint.
_LEFT_OUT: Final = frozenset({".git", ".cache", "__pycache__", ".ipynb_checkpoints"})

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def parcel_of(path: Path, options: PushOptions) -> Parcel:
    """What ``path`` holds: a folder, or a GGUF file with its further parts and its manifest; with a card.

    Raises :class:`CheckpointError` where there is no checkpoint, and for a manifest that can't be read.
    """
    files = _folder_files(path) if path.is_dir() else _gguf_files(path)
    places = {file.path: file.file for file in files if file.file is not None}
    manifests = {name: read_manifest(places[name]) for name in places if name.endswith(MANIFEST) and "/" not in name}
    manifest = manifests.get(MANIFEST) or next(iter(manifests.values()), None)
    origins = {name: origin for one in manifests.values() for name, origin in origins_of(one).items()}
    files = [msgspec.structs.replace(file, origin=origins.get(file.path)) for file in files]
    files = with_made(files, [_without_path(name, one) for name, one in manifests.items() if _names_a_path(one)])
    front_matter = read_card(path) if path.is_dir() else {}
    notes: list[str] = []
    if manifest is not None and options.card:
        files = _with_card(files, manifest, options, notes)
    return Parcel(
        name=path.resolve().name,
        files=chosen(files, options),
        manifest=manifest,
        card=front_matter,
        notes=tuple(notes),
    )


def _names_a_path(manifest: Manifest) -> bool:
    """Whether a manifest says where on its maker's disk the source lay."""
    return source_repository(manifest) is None and manifest.plan.source.source != manifest.plan.source.name


def _without_path(name: str, manifest: Manifest) -> Outgoing:
    """The manifest as it is published: with the source's name alone."""
    source = msgspec.structs.replace(manifest.plan.source, source=manifest.plan.source.name)
    plan = msgspec.structs.replace(manifest.plan, source=source)
    data = encode(msgspec.structs.replace(manifest, plan=plan))
    return Outgoing(path=name, size_bytes=len(data), data=data)


def chosen(files: Iterable[Outgoing], options: PushOptions) -> tuple[Outgoing, ...]:
    """Those that the globs leave. Raises :class:`CheckpointError` where that is none."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    ordered = sorted(files, key=lambda file: file.path)
    kept = tuple(
        filter_repo_objects(
            ordered,
            allow_patterns=list(options.include) or None,
            ignore_patterns=list(options.exclude) or None,
            key=lambda file: file.path,
        )
    )
    if not kept:
        raise CheckpointError(
            "no file is left to publish",
            code="nothing-to-push",
            expected=f"one of {len(ordered)} files that --include names and --exclude doesn't",
            found="none",
            hint="a glob is matched against the whole path in the repository: --include '*.safetensors'",
        )
    return kept


def read_manifest(path: Path) -> Manifest:
    """The manifest of an output of ours. Raises :class:`CheckpointError` for anything else."""
    try:
        document = json.loads(path.read_bytes())
        found = msgspec.convert(document, Manifest)
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise _broken_manifest(path, str(error)[:200]) from error
    if found.schema != SCHEMA:
        raise _broken_manifest(path, found.schema)
    return found


def origins_of(manifest: Manifest) -> dict[str, Origin]:
    """Where the Hub has the files that a conversion took over as they were: in the source's repository, in LFS."""
    repo_id, revision = source_repository(manifest), manifest.plan.source.revision
    if repo_id is None or revision is None:
        return {}
    # Of a GGUF file in a repository, its path follows; the further parts of a split one lie beside it.
    beside = PurePosixPath(manifest.plan.source.source.removeprefix(repo_id).lstrip("/")).parent
    return {
        file.path: Origin(repo_id=repo_id, revision=revision, path=str(beside / file.path), sha256=file.etag)
        for file in manifest.files
        if carried(file) and file.etag is not None and in_lfs(file.etag)
    }


def carried(file: OutputFile) -> bool:
    """Whether a conversion took a file over as it was."""
    return not (file.written or file.rewritten or file.in_place)


def in_lfs(etag: str | None) -> bool:
    """Whether the Hub's name of a file is that of one in LFS: its SHA-256."""
    return etag is not None and _SHA256.fullmatch(etag) is not None


def source_repository(manifest: Manifest | None) -> str | None:
    """The repository of the Hub that an output was made from, which its manifest names with a commit."""
    if manifest is None or not _COMMIT.fullmatch(manifest.plan.source.revision or ""):
        return None
    parts = manifest.plan.source.source.split("/")
    return "/".join(parts[:2]) if len(parts) >= 2 and all(parts) else None


def card_files(manifest: Manifest, source_card: str | None, options: PushOptions) -> list[Outgoing]:
    """README.md for what the manifest records, merged into its source's, and the pictures that it shows.

    Raises :class:`UsageError` where the folder that was named holds no report.
    """
    from ctxextend.card import model_card, pictures_of, read_evidence

    evidence, pictures = None, {}
    if options.report is not None:
        evidence = read_evidence(options.report, options.measured)
        if evidence is None:
            raise UsageError(
                "there is no report in this folder",
                code="no-report",
                key="--report",
                expected="eval.json or smoke.json",
                found=str(options.report),
                hint="ctxextend eval PATH --report DIR writes one",
            )
        pictures = pictures_of(evidence, options.report)
    if options.card_file is not None:
        data = options.card_file.read_bytes()
    else:
        text = model_card(manifest, source_card=source_card, repo_id=options.repo_id or None, evidence=evidence)
        data = text.encode()
    card = Outgoing(path=CARD, size_bytes=len(data), data=data)
    return [card, *(Outgoing(path=name, size_bytes=file.stat().st_size, file=file) for name, file in pictures.items())]


def card_of(path: Path, *, repo_id: str | None, report: Path | None, measured: tuple[str, ...]) -> bytes:
    """The card that an output would be published with; ``report`` and ``measured`` as in :class:`PushOptions`.

    Raises as :func:`parcel_of`, and :class:`CheckpointError` for what no conversion wrote.
    """
    parcel = parcel_of(path, PushOptions(repo_id=repo_id or "", report=report, measured=measured))
    card = next((file for file in parcel.files if file.path == CARD), None)
    if card is None or card.data is None:
        raise _broken_manifest(manifest_of(path), "a README.md that isn't made of it")
    return card.data


def git_oid(data: bytes) -> str:
    """What git, and so the Hub, calls a file outside LFS."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _with_card(files: list[Outgoing], manifest: Manifest, options: PushOptions, notes: list[str]) -> list[Outgoing]:
    """The files with a card of ours, but where one was written since the conversion: by somebody with more to say."""
    from ctxextend.card.markdown import BEGIN

    readme = next((file.file for file in files if file.path == CARD), None)
    if readme is None:
        return with_made(files, card_files(manifest, None, options))
    data = readme.read_bytes()
    text = data.decode("utf-8", errors="replace")
    taken_over = next((file for file in manifest.files if file.path == CARD and carried(file)), None)
    written_since = taken_over is None or not _same(taken_over, data)
    if BEGIN in text and written_since and options.report is None:
        notes.append("README.md has its part about the conversion, and goes as it is")
        return files
    return with_made(files, card_files(manifest, text, options))


def with_made(files: Iterable[Outgoing], made: Sequence[Outgoing]) -> list[Outgoing]:
    """The files with those that were made, which stand before others of the same path."""
    names = {file.path for file in made}
    return [*(file for file in files if file.path not in names), *made]


def _same(file: OutputFile, data: bytes) -> bool:
    """Whether a file is still the one that was taken over, as far as the manifest tells."""
    if file.size_bytes != len(data):
        return False
    if file.sha256 is not None:
        return file.sha256 == hashlib.sha256(data).hexdigest()
    return file.etag is None or in_lfs(file.etag) or file.etag == git_oid(data)


def _folder_files(folder: Path) -> list[Outgoing]:
    found = []
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if _LEFT_OUT.isdisjoint(inner.parts) and path.is_file():
            found.append(Outgoing(path=inner.as_posix(), size_bytes=path.stat().st_size, file=path))
    if not any(_is_checkpoint(file.path) for file in found):
        raise CheckpointError(
            "this folder holds no checkpoint",
            code="no-source",
            file=str(folder),
            expected="config.json, adapter_config.json or a .gguf file",
            hint="name the folder that 'ctxextend convert' wrote",
        )
    return found


def _is_checkpoint(name: str) -> bool:
    return name in ("config.json", "adapter_config.json", MANIFEST) or name.endswith(".gguf")


def _gguf_files(path: Path) -> list[Outgoing]:
    """A GGUF file, the further parts of a split one, and the manifest beside it."""
    if not path.exists():
        raise CheckpointError(
            "there is nothing at this path",
            code="no-source",
            file=str(path),
            expected="a checkpoint's folder, or a .gguf file",
            hint="check the path; 'ctxextend convert' prints it",
        )
    if path.suffix != ".gguf":
        raise CheckpointError(
            "this file is no checkpoint",
            code="no-source",
            file=str(path),
            expected="a checkpoint's folder, or a .gguf file",
            hint=f"name the folder: {path.parent}",
        )
    parts = [path.with_name(name) for name in shard_names(path.name)]
    for part in parts:
        if not part.is_file():
            raise CheckpointError(
                "a part of this split file is missing", code="missing-shard", file=str(part), expected="all its parts"
            )
    beside = (manifest_of(place) for place in (path, path.with_name(first_shard(path.name))))
    found = {place.name: place for place in (*parts, *beside) if place.is_file()}
    return [Outgoing(path=name, size_bytes=place.stat().st_size, file=place) for name, place in found.items()]


def _broken_manifest(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        "the manifest can't be read",
        code="broken-manifest",
        file=str(path),
        expected=SCHEMA,
        found=found,
        hint="convert again with this version of ctxextend, or publish without it: remove the manifest",
    )


def default_message(name: str, manifest: Manifest | None) -> str:
    """The commit's first line."""
    if manifest is None:
        return f"Upload {name} with ctxextend"
    plan = manifest.plan
    if plan.method in ("none", "repair"):
        return f"Upload {plan.source.name} with ctxextend"
    return f"Extend {plan.source.name} to {plan.target_context} tokens ({plan.method}) with ctxextend"
