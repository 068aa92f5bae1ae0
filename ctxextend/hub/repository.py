"""The repository that is published to, as it is, and made where it isn't there yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from ctxextend.errors import RefusedError
from ctxextend.hub.restrictions import Terms, terms_of
from ctxextend.hub.trouble import patiently
from ctxextend.hub.values import PushOptions

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo


class Held(Struct, frozen=True, kw_only=True):
    """A file of the repository: ``sha256`` of one in LFS, ``git_oid`` of any other."""

    size_bytes: int
    sha256: str | None
    git_oid: str | None


class Repository(Struct, frozen=True, kw_only=True):
    """A repository at a revision. ``exists``: it is there; ``head``: the revision's commit, None where that isn't."""

    exists: bool
    private: bool
    head: str | None = None
    files: Mapping[str, Held] = {}


def find_repository(api: HfApi, options: PushOptions, say: Callable[[str], None]) -> Repository:
    """The repository as it is. Raises what the client raises, but for what isn't there."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def ask(revision: str | None) -> ModelInfo:
        return patiently(lambda: api.model_info(options.repo_id, revision=revision, files_metadata=True), say)

    try:
        info = ask(options.revision)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return Repository(exists=False, private=options.private)
    except RevisionNotFoundError:
        if options.revision is None:
            raise
        return Repository(exists=True, private=bool(ask(None).private))
    files = {
        sibling.rfilename: Held(
            size_bytes=sibling.size or 0,
            sha256=sibling.lfs.sha256 if sibling.lfs is not None else None,
            git_oid=sibling.blob_id,
        )
        for sibling in info.siblings or ()
    }
    return Repository(exists=True, private=bool(info.private), head=info.sha, files=files)


def check_visibility(found: Repository, options: PushOptions) -> None:
    """Raises :class:`RefusedError` where a public repository is there and a private one was asked for."""
    if options.private and not found.private:
        raise RefusedError(
            f"{options.repo_id} is there, and public",
            code="public-repository",
            expected="a new repository, or a private one",
            hint="make it private in its settings, name another, or leave --private away",
        )


def make_repository(api: HfApi, found: Repository, options: PushOptions, say: Callable[[str], None]) -> Repository:
    """The repository, and the branch, after making what wasn't there."""
    if not found.exists:
        private = True if options.private else None
        patiently(lambda: api.create_repo(options.repo_id, private=private, exist_ok=True), say)
        found = find_repository(api, options, say)
    if found.head is None and options.revision is not None:
        branch = options.revision
        patiently(lambda: api.create_branch(options.repo_id, branch=branch, exist_ok=True), say)
        found = find_repository(api, options, say)
    return found


def source_terms(
    api: HfApi, source: str | None, card: Mapping[str, object], options: PushOptions, say: Callable[[str], None]
) -> Terms:
    """Under which terms the source stands: a repository of the Hub as the Hub says now, else what its card says."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if source is None or source == options.repo_id:
        return terms_of(card)
    try:
        info = patiently(lambda: api.model_info(source), say)
    except GatedRepoError:
        return terms_of(card, source=source, gated=True)
    except RepositoryNotFoundError:
        return terms_of(card, source=source, seen=False)
    told: dict[str, object] = vars(info.card_data) if info.card_data is not None else {}
    return terms_of({**card, **told}, source=source, gated=info.gated, private=bool(info.private))
