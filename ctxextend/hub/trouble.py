"""What goes wrong on the way to the Hub, by what it means; and how long to wait where waiting helps.

The client repeats by itself what it sends as it uploads. Everything else is repeated here, and no wait that the Hub
asks for is longer than :data:`LONGEST_WAIT_SECONDS`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

from ctxextend.checkpoint.secrets import can_be_shown, told, without_secrets
from ctxextend.errors import CheckpointError, CtxextendError, HubError

if TYPE_CHECKING:
    from httpx2 import Response, TransportError

_Value = TypeVar("_Value")

#: A limit that takes longer to pass is told, not waited for.
LONGEST_WAIT_SECONDS: Final = 120

#: The waits between attempts where the Hub names none.
WAITS_SECONDS: Final = (1, 4, 10)


class Trouble(Struct, frozen=True, kw_only=True):
    """What an error of the client comes down to: the Hub's answer, or that there was none.

    ``status``: of the answer; ``path``: that was asked for; ``wait_seconds``: what the Hub asks to wait. ``repeated``:
    the client has tried again itself.
    """

    status: int | None = None
    path: str = ""
    wait_seconds: int | None = None
    repeated: bool = False
    dropped: bool = False

    @property
    def passes(self) -> bool:
        """Whether the same may work a little later."""
        return not self.repeated and (self.dropped or self.status == 429 or (self.status or 0) >= 500)

    @property
    def conflict(self) -> bool:
        """Whether somebody else has changed the repository meanwhile."""
        return self.status in {409, 412}


def trouble_of(error: BaseException) -> Trouble:
    """What ``error``, or what led to it, was."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    for one in _chain(error):
        if isinstance(one, HfHubHTTPError):
            request = one.response.request
            path = request.url.raw_path.decode("ascii").partition("?")[0]
            return Trouble(
                status=one.response.status_code,
                path=path,
                wait_seconds=_asked_wait(one.response),
                repeated=_repeats(request.method, path),
            )
        if isinstance(one, TransportError):
            method, path = _asked(one)
            return Trouble(dropped=True, path=path, repeated=_repeats(method, path))
    return Trouble()


def _repeats(method: str, path: str) -> bool:
    """Whether the client has tried this again by itself."""
    return method == "PUT" or "/preupload/" in path or "/info/lfs/" in path


def _asked(error: TransportError) -> tuple[str, str]:
    try:
        # A path is kept as it was sent: a branch's name is quoted in it.
        return error.request.method, error.request.url.raw_path.decode("ascii").partition("?")[0]
    except RuntimeError:
        # It broke off before there was a request.
        return "", ""


def patiently(call: Callable[[], _Value], say: Callable[[str], None]) -> _Value:
    """What ``call`` gives, which asks for nothing that may not be asked for twice; tried again where that may help."""
    for wait in (*WAITS_SECONDS, None):
        try:
            return call()
        except Exception as error:
            if not waited(trouble_of(error), wait, say):
                raise
    raise AssertionError


def waited(trouble: Trouble, wait_seconds: int | None, say: Callable[[str], None]) -> bool:
    """Waits until it is worth trying again; whether it is at all. Without ``wait_seconds`` it isn't any more."""
    if wait_seconds is None:
        return False
    seconds = wait_seconds if trouble.wait_seconds is None else trouble.wait_seconds
    if not trouble.passes or seconds > LONGEST_WAIT_SECONDS:
        return False
    what = f"HTTP {trouble.status}" if trouble.status is not None else "a dropped connection"
    say(f"{what} from the Hub: trying again in {seconds} s")
    time.sleep(seconds)
    return True


@contextmanager
def guarded(repo_id: str, token: str | None) -> Iterator[None]:
    """While the Hub is written to: what the client raises becomes a :class:`HubError` without secrets, what it logs is
    rid of them, and a wait beyond the limit isn't begun.
    """
    from httpx2 import HTTPError
    from huggingface_hub import get_session
    from huggingface_hub.errors import EntryNotFoundError, FileDuplicationError

    def redact(record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage(), token), ()
        return True

    def bound(response: Response) -> None:
        wait = _asked_wait(response)
        if response.status_code in {429, 503} and wait is not None and wait > LONGEST_WAIT_SECONDS:
            raise _rate_limited(f"HTTP {response.status_code}", wait)

    handlers = logging.getLogger("huggingface_hub").handlers
    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "response": [*hooks["response"], bound]}
    for handler in handlers:
        handler.addFilter(redact)
    try:
        yield
    except CtxextendError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError, KeyError, EntryNotFoundError, FileDuplicationError) as error:
        raise _hub_error(repo_id, token, error) from (error if can_be_shown(error, token) else None)
    finally:
        for handler in handlers:
            handler.removeFilter(redact)
        session.event_hooks = hooks


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, from the outside in."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _asked_wait(response: Response) -> int | None:
    """How many seconds the Hub asks to wait."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    after = response.headers.get("Retry-After", "").strip()
    return int(after) if after.isdecimal() else None


def _hub_error(repo_id: str, token: str | None, error: Exception) -> CtxextendError:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

    for one in _chain(error):
        if isinstance(one, CtxextendError):
            return one
        if isinstance(one, OfflineModeIsEnabled):
            return offline(repo_id)
        if isinstance(one, RevisionNotFoundError):
            return _no_revision(repo_id)
        if isinstance(one, HfHubHTTPError):
            if isinstance(error, ValueError) and one.response.request.url.path.endswith("/validate-yaml"):
                return _bad_card(told(str(error), token))
            return _answered(repo_id, token, one)
    trouble = trouble_of(error)
    found = told(f"{type(error).__name__}: {error}", token)
    if trouble.dropped:
        return HubError(
            "the connection to the Hub broke off",
            code="network",
            found=found,
            hint="check the connection, HTTPS_PROXY and HF_ENDPOINT, and run the same command again: files that are "
            "uploaded already aren't sent again",
        )
    for one in _chain(error):
        if isinstance(one, OSError):
            return CheckpointError(
                "a file that was to be uploaded can't be read",
                code="io",
                file=one.filename if isinstance(one.filename, str) else None,
                found=one.strerror or found,
                hint="check the path and its permissions, and run the same command again",
            )
    return HubError(
        "the answer isn't that of a Hub",
        code="network",
        found=found,
        hint="check HF_ENDPOINT, and whether a proxy or a log-in page stands between",
    )


def _answered(repo_id: str, token: str | None, error: Exception) -> HubError:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    assert isinstance(error, HfHubHTTPError)
    response = error.response
    found = told(f"HTTP {response.status_code}: {error.server_message or response.reason_phrase}", token)
    match response.status_code:
        case 404:
            return _no_repository(repo_id, found)
        case 401 if isinstance(error, RepositoryNotFoundError):
            return _no_repository(repo_id, found)
        case 401:
            return unauthorized(repo_id, found)
        case 403:
            return HubError(
                f"this token may not write to {repo_id}",
                code="forbidden",
                found=found,
                hint="give a token with the right to write to its owner's repositories (HF_TOKEN, --token), or offer "
                "the change with --create-pr",
            )
        case 409 | 412:
            return HubError(
                f"{repo_id} was changed by somebody else meanwhile",
                code="conflict",
                found=found,
                hint="run the same command again: files that are uploaded already aren't sent again",
            )
        case 429:
            return _rate_limited(found, _asked_wait(response))
        case status if status >= 500:
            return HubError(
                "the Hub answers with an error",
                code="hub-failed",
                found=found,
                hint="run the same command again later: files that are uploaded already aren't sent again; "
                "https://status.huggingface.co tells whether the Hub is down",
            )
    return HubError(
        "the Hub refuses",
        code="hub-refused",
        file=repo_id,
        found=found,
        hint="what it says above tells why; run the command with -v to see each file",
    )


def unauthorized(repo_id: str, found: str) -> HubError:
    """No token, or one that the Hub doesn't know."""
    return HubError(
        f"the Hub wants to know who writes to {repo_id}",
        code="unauthorized",
        found=found,
        hint="log in with `hf auth login`, or give a token that may write with HF_TOKEN or --token",
    )


def offline(repo_id: str) -> HubError:
    """HF_HUB_OFFLINE is set."""
    return HubError(
        f"offline, and {repo_id} is on the Hub",
        code="offline",
        found="HF_HUB_OFFLINE is set",
        hint="unset HF_HUB_OFFLINE",
    )


def _no_repository(repo_id: str, found: str) -> HubError:
    return HubError(
        f"there is no repository {repo_id}, or this token may not see it",
        code="repo-not-found",
        found=found,
        hint="check the name and its owner, and that the token (HF_TOKEN, --token) may write there",
    )


def _no_revision(repo_id: str) -> HubError:
    return HubError(
        f"{repo_id} has no such revision",
        code="revision-not-found",
        hint="name a branch with --revision; it is made where it isn't there yet",
    )


def _bad_card(found: str) -> HubError:
    return HubError(
        "the Hub doesn't take the model card",
        code="bad-card",
        file="README.md",
        found=found,
        hint="mend the front matter of README.md, or leave it away with --exclude README.md",
    )


def _rate_limited(found: str, wait_seconds: int | None) -> HubError:
    return HubError(
        "the Hub's limit of requests is reached",
        code="rate-limited",
        found=found,
        hint=("wait" if wait_seconds is None else f"wait {wait_seconds} s")
        + ", and run the same command again: files that are uploaded already aren't sent again",
    )
