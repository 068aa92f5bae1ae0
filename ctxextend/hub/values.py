"""What is published, how, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from ctxextend.apply import Manifest

SCHEMA: Final = "ctxextend.push/1"

#: The refusal to publish what its source keeps from the public; ``--allow`` knows it by this name.
RESTRICTED: Final = "restricted"

#: copied: by the Hub itself, from the repository that the weights come from; uploaded: sent; there: the Hub had it.
How = Literal["copied", "uploaded", "there"]


class Origin(Struct, frozen=True, kw_only=True):
    """Where the Hub has a file already: at a commit of a repository, in LFS, under its checksum."""

    repo_id: str
    revision: str
    path: str
    sha256: str


class Outgoing(Struct, frozen=True, kw_only=True):
    """One file to publish: its bytes in a ``file`` or as ``data``, or neither where only the ``origin`` has them."""

    path: str
    size_bytes: int
    file: Path | None = None
    data: bytes | None = None
    origin: Origin | None = None


class Parcel(Struct, frozen=True, kw_only=True):
    """What goes into one commit. ``manifest``: of an output of ours; ``card``: the front matter of its source's card.

    ``notes``: what the user should know about how it was put together.
    """

    name: str
    files: tuple[Outgoing, ...]
    manifest: Manifest | None = None
    card: dict[str, object] = {}
    notes: tuple[str, ...] = ()


class PushOptions(Struct, frozen=True, kw_only=True):
    """Where to and how. ``private`` is how a new repository is made; ``allow`` names refusals to let pass.

    ``include`` and ``exclude`` are globs over the paths in the repository. ``quiet`` keeps the client's own progress
    bars away. ``report``: the folder of ``eval --report``, for the card, and ``measured`` what counts of it;
    ``card_file``: a card that is published as it is.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    description: str | None = None
    token: str | None = None
    cache_dir: Path | None = None
    report: Path | None = None
    measured: tuple[str, ...] = ("eval.json", "smoke.json")
    card_file: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    card: bool = True
    allow: tuple[str, ...] = ()
    dry_run: bool = False
    quiet: bool = False


class PushedFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one file. ``reason``: why a file that the Hub could have copied was uploaded."""

    path: str
    size_bytes: int
    how: How
    reason: str | None = None


class Pushed(Struct, frozen=True, kw_only=True):
    """What a push did, or would do. ``commit`` is the branch's newest, made by this push where ``changed``.

    ``sent_bytes``: the sizes of the files that were uploaded. Of a dry run into a repository that isn't there yet,
    ``commit`` is None.
    """

    schema: str = SCHEMA
    repo_id: str
    url: str
    revision: str
    private: bool
    created: bool
    changed: bool
    commit: str | None
    pull_request: str | None
    dry_run: bool
    sent_bytes: int
    files: tuple[PushedFile, ...]
    notes: tuple[str, ...]
