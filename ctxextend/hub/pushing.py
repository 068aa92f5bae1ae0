"""Publishing a parcel: the checks before, the commit, and what to tell of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ctxextend.checkpoint.bars import progress_bars
from ctxextend.checkpoint.secrets import check_token
from ctxextend.errors import CheckpointError, UsageError
from ctxextend.hub.parcels import default_message, parcel_of, source_repository
from ctxextend.hub.repository import Repository, check_visibility, find_repository, make_repository, source_terms
from ctxextend.hub.restrictions import Terms, refuse_restricted
from ctxextend.hub.sending import Fetch, Sending, Sent
from ctxextend.hub.trouble import guarded, offline, unauthorized
from ctxextend.hub.values import Parcel, Pushed, PushOptions
from ctxextend.version import VERSION

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push_path(path: Path, options: PushOptions, *, say: Callable[[str], None] = lambda _text: None) -> Pushed:
    """Publish what lies at ``path`` (a checkpoint's folder, or a GGUF file with its manifest) in one commit.

    Weights that a conversion took over from a repository of the Hub are copied by the Hub, where they are the same
    bytes still. ``say`` is told what is done. Raises :class:`HubError` for what the Hub says no to,
    :class:`RefusedError` for a source that isn't for everybody, :class:`CheckpointError` for what is no checkpoint.
    """
    if not path.exists():
        raise CheckpointError(
            "there is nothing to publish",
            code="no-source",
            file=str(path),
            expected="a checkpoint's folder, or a GGUF file",
            found="nothing of that name",
            hint="check the path",
        )
    check_options(options)
    return push(parcel_of(path, options), options, say=say)


def check_options(options: PushOptions) -> None:
    """Before anything is read or made. Raises :class:`UsageError` for what no repository is called, a token that no
    header can hold and options that contradict each other, :class:`HubError` offline or without any token.
    """
    from huggingface_hub import get_token, is_offline_mode

    require_name(options.repo_id)
    check_token(options.token)
    if options.create_pr and options.revision is not None:
        raise UsageError(
            "a pull request is opened against the main branch",
            code="bad-option",
            key="--create-pr",
            found=f"--revision {options.revision}",
            hint="leave one of them away; --revision refs/pr/N adds to a pull request that is there",
        )
    if is_offline_mode():
        raise offline(options.repo_id)
    if not options.dry_run and not (options.token or get_token()):
        raise unauthorized(options.repo_id, "no token")


def require_name(repo_id: str) -> None:
    """Raises :class:`UsageError` for what no repository is called."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise _no_name(repo_id) from error
    if "/" not in repo_id:
        raise _no_name(repo_id)


def check_publishing(
    options: PushOptions, source: str | None, *, say: Callable[[str], None] = lambda _text: None
) -> None:
    """What can be known of a push before there is anything to push; ``source``: the Hub repository that it is made of.

    Raises as :func:`push_path`.
    """
    check_options(options)
    with guarded(options.repo_id, options.token):
        _checked(_api(options), source, {}, options, say)


def push(
    parcel: Parcel,
    options: PushOptions,
    *,
    fetch: Fetch | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Pushed:
    """Publish a parcel in one commit; ``fetch`` gets the bytes that aren't here, where the Hub can't copy them."""
    api = _api(options)
    with guarded(options.repo_id, options.token), progress_bars(shown=not options.quiet):
        found, terms = _checked(api, source_repository(parcel.manifest), parcel.card, options, say)
        notes = (*parcel.notes, *((terms.note,) if terms.note is not None else ()))
        sending = Sending(api, parcel.files, options, fetch=fetch, say=say)
        if options.dry_run:
            files = sending.outlook(found)
            changes = any(file.how != "there" for file in files)
            sent = Sent(commit=found.head, pull_request=None, changed=changes, files=files)
            return _pushed(api, sent, options, found, created=not found.exists, notes=notes)
        created = not found.exists
        found = make_repository(api, found, options, say)
        # Who owns the name may have decided that its repositories are public or private; that is known only now.
        check_visibility(found, options)
        refuse_restricted(terms, options.repo_id, private=found.private, allow=options.allow)
        sent = sending.send(found, message=options.message or default_message(parcel.name, parcel.manifest))
        return _pushed(api, sent, options, found, created=created, notes=notes)


def _api(options: PushOptions) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=options.token, library_name="ctxextend", library_version=VERSION)


def _checked(
    api: HfApi,
    source: str | None,
    card: Mapping[str, object],
    options: PushOptions,
    say: Callable[[str], None],
) -> tuple[Repository, Terms]:
    """The repository as it is, and the terms of the source, which allow to publish it there."""
    found = find_repository(api, options, say)
    check_visibility(found, options)
    terms = source_terms(api, source, card, options, say)
    refuse_restricted(terms, options.repo_id, private=found.private, allow=options.allow)
    return found, terms


def _pushed(
    api: HfApi, sent: Sent, options: PushOptions, found: Repository, *, created: bool, notes: tuple[str, ...]
) -> Pushed:
    url = f"{api.endpoint}/{options.repo_id}"
    if sent.pull_request is not None:
        url = sent.pull_request
    elif sent.commit is not None:
        url = f"{url}/commit/{sent.commit}"
    return Pushed(
        repo_id=options.repo_id,
        url=url,
        revision=options.revision or "main",
        private=found.private,
        created=created,
        changed=sent.changed,
        commit=sent.commit,
        pull_request=sent.pull_request,
        dry_run=options.dry_run,
        sent_bytes=sum(file.size_bytes for file in sent.files if file.how == "uploaded"),
        files=sent.files,
        notes=notes,
    )


def _no_name(found: str) -> UsageError:
    return UsageError(
        "this is no name of a repository",
        code="repo-id",
        key="REPO_ID",
        expected="OWNER/NAME, of letters, digits, '-', '_' and '.'",
        found=found,
        hint="such as ctxextend push ./model-128k my-org/model-128k",
    )
