"""Publishing a conversion of a Hub repository that changes no weights, without having the weights here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from ctxextend.apply import OVERRIDES, Manifest, Options, OutputFile, carried, convert, encode
from ctxextend.changes import tensor_changes_of
from ctxextend.checkpoint import Source
from ctxextend.checkpoint.bars import progress_bars
from ctxextend.checkpoint.card import read_card
from ctxextend.checkpoint.hub import download
from ctxextend.contents import Contents, FileInfo
from ctxextend.hub.parcels import CARD, card_files, chosen, in_lfs, with_made
from ctxextend.hub.pushing import check_options, push
from ctxextend.hub.values import Origin, Outgoing, Parcel, Pushed, PushOptions
from ctxextend.plan import Plan
from ctxextend.tensors.places import MANIFEST


def needs_no_weights(plan: Plan, source: Source, contents: Contents) -> bool:
    """Whether the plan's result is the weights of a Hub repository, as they are there, with other files beside."""
    return (
        source.repo_id is not None
        and contents.gguf is None
        and contents.revision is not None
        and plan.to == "safetensors"
        and not tensor_changes_of(plan.actions)
    )


def push_direct(
    plan: Plan,
    source: Source,
    contents: Contents,
    options: PushOptions,
    *,
    say: Callable[[str], None] = lambda _text: None,
) -> tuple[Manifest, Pushed]:
    """Write what the plan changes, and let the Hub copy the rest from the source; the manifest says what is published.

    Where the Hub can't copy, the weights are fetched into the client's cache and uploaded. Raises as
    :func:`ctxextend.hub.push_path`, and as :func:`ctxextend.apply.convert`.
    """
    check_options(options)
    assert source.repo_id is not None
    assert contents.revision is not None
    repo_id, revision = source.repo_id, contents.revision

    def fetch(names: Sequence[str]) -> Path:
        with progress_bars(shown=not options.quiet):
            return download(repo_id, revision=revision, token=source.token, cache_dir=source.cache_dir, files=names)

    names = set(carried(plan))
    kept = {file.path: file for file in contents.files if file.path in names}
    edited = [name for name in contents.documents if name not in kept]
    tokenizer = [file.path for file in contents.files if file.path == "tokenizer.json"]
    small = [name for name, file in kept.items() if not in_lfs(file.etag)]
    folder = fetch(sorted({*edited, *tokenizer, *small}))
    with tempfile.TemporaryDirectory(prefix="ctxextend-push-") as temporary:
        out = Path(temporary) / "changed"
        manifest = _whole(convert(plan, contents, folder, out, options=Options(config_only=True)), kept.values())
        files = [_made(out, file) for file in manifest.files if file.written]
        made_here = {file.path for file in files}
        files += [_kept(file, folder, repo_id, revision) for name, file in kept.items() if name not in made_here]
        document = encode(manifest)
        files.append(Outgoing(path=MANIFEST, size_bytes=len(document), data=document))
        if options.card:
            card = folder / CARD
            text = card.read_text(encoding="utf-8", errors="replace") if CARD in kept else None
            files = with_made(files, card_files(manifest, text, options))
        parcel = Parcel(
            name=contents.name,
            files=chosen(files, options),
            manifest=manifest,
            card=read_card(folder) if CARD in kept else {},
        )
        return manifest, push(parcel, options, fetch=fetch, say=say)


def _whole(changed: Manifest, kept: Iterable[FileInfo]) -> Manifest:
    """The manifest of the whole output: what was written, without what only a partial output has, and the rest."""
    files = [file for file in changed.files if file.path != OVERRIDES]
    known = {file.path for file in files}
    files += [
        OutputFile(path=file.path, size_bytes=file.size_bytes, etag=file.etag)
        for file in kept
        if file.path not in known
    ]
    return msgspec.structs.replace(changed, files=tuple(sorted(files, key=lambda file: file.path)))


def _made(out: Path, file: OutputFile) -> Outgoing:
    return Outgoing(path=file.path, size_bytes=file.size_bytes, data=(out / file.path).read_bytes())


def _kept(file: FileInfo, folder: Path, repo_id: str, revision: str) -> Outgoing:
    if not in_lfs(file.etag) or file.etag is None:
        return Outgoing(path=file.path, size_bytes=file.size_bytes, file=folder / file.path)
    origin = Origin(repo_id=repo_id, revision=revision, path=file.path, sha256=file.etag)
    return Outgoing(path=file.path, size_bytes=file.size_bytes, origin=origin)
