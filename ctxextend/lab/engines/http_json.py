"""JSON over HTTP with the standard library: what is tried again, what an error says, and whom the token is shown to."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO, Any, Final
from urllib.parse import urlsplit

from ctxextend.errors import CtxextendError, UsageError

#: Seconds before a busy or broken server is asked again.
BACKOFF: Final = (0.5, 1.0, 2.0)
#: The longest that a server's Retry-After is waited for.
_LONGEST_WAIT: Final = 30.0
_SHOWN: Final = 300


class StatusError(CtxextendError):
    """The server answered with something else than success."""

    def __init__(self, status: int, message: str, *, code: str, found: str, hint: str) -> None:
        super().__init__(message, code=code, found=found, hint=hint)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token to whatever host it names."""

    def redirect_request(self, *_args: object, **_fields: object) -> None:
        return None


def may_send(url: str) -> bool:
    """Whether a key that wasn't given for this server may be sent there.

    Over https, or to an address that doesn't leave the machine or a private network. A host's name says neither.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme != "http":
        return bool(parts.hostname) and parts.scheme == "https"
    address = _address(parts.hostname)
    return _is_loopback(parts.hostname) or (address is not None and address.is_private)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class HttpJson:
    """One server. ``token`` is sent as a bearer token, and shown in no message."""

    def __init__(self, url: str, *, token: str | None, timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                "not the address of a server", code="bad-url", found=parts.scheme or url, hint="http://localhost:8000"
            )
        if parts.username is not None or parts.password is not None:
            raise UsageError("credentials don't belong in an address", code="bad-url", hint="give the key as a token")
        self.url = url
        self._token = token
        self._timeout = timeout
        # A proxy is for the servers of others.
        handlers = [urllib.request.ProxyHandler({})] if _is_loopback(parts.hostname) else []
        self._opener = urllib.request.build_opener(_NoRedirect, *handlers)

    def get(self, path: str) -> dict[str, Any]:
        return self._call(path, None, frozenset())

    def post(self, path: str, body: Mapping[str, Any], *, final: frozenset[int] = frozenset()) -> dict[str, Any]:
        """``final``: statuses that wouldn't change by asking again.

        Raises :class:`StatusError`, and :class:`CtxextendError` when there is no answer or it isn't a JSON object.
        """
        return self._call(path, json.dumps(body).encode(), final)

    def _call(self, path: str, data: bytes | None, final: frozenset[int]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        # The scheme was checked to be HTTP.
        request = urllib.request.Request(self.url + path, data=data, headers=headers)  # noqa: S310
        for wait in (*BACKOFF, None):
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return self._object(answer)
            except urllib.error.HTTPError as error:
                with error:
                    again = error.code not in final and (error.code == 429 or error.code >= 500)
                    if not again or wait is None:
                        raise self._status_error(path, error) from None
                    asked_for = error.headers.get("Retry-After", "")
                time.sleep(min(float(asked_for), _LONGEST_WAIT) if asked_for.isdigit() else wait)
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(error) from None
        raise AssertionError  # the last turn returns or raises

    def _object(self, answer: IO[bytes]) -> dict[str, Any]:
        try:
            value = json.loads(answer.read())
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CtxextendError(
                "the server's answer isn't a JSON object",
                code="bad-answer",
                found=self.url,
                hint="give the address of the OpenAI-compatible interface, such as http://localhost:8000/v1",
            )
        return value

    def _status_error(self, path: str, error: urllib.error.HTTPError) -> StatusError:
        said = self._said(error)
        if error.code in {401, 403}:
            message, code = "the server doesn't accept the credentials", "unauthorized"
            hint = "give the key that the server was started with" if self._token else "the server wants a key"
        elif 300 <= error.code < 400:
            message, code = "the server points to another address, which isn't followed", "redirected"
            hint = f"if you trust it: {self._plain(error.headers.get('Location', 'unknown'))}"
        elif error.code == 404:
            message, code, hint = (
                f"the server has no {path}, or not this model",
                "not-found",
                "see the address and --served-name",
            )
        else:
            message, code, hint = f"the server failed: {said}", "server-failed", "see the server's own log"
        return StatusError(error.code, message, code=code, found=f"{error.code} {said}".strip(), hint=hint)

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The message in an error's body: OpenAI's form, FastAPI's, or text."""
        try:
            body = error.read(100_000).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return ""
        try:
            value = json.loads(body)
        except ValueError:
            value = body
        if isinstance(value, dict):
            value = value.get("error", value)
        if isinstance(value, dict):
            value = value.get("message", value.get("detail", value))
        return self._plain(str(value))

    def _plain(self, text: str) -> str:
        """Of bounded length, on one line, and without the token, which a server may repeat."""
        if self._token:
            text = text.replace(self._token, "***")
        return " ".join(text.split())[:_SHOWN]

    def _no_answer(self, error: Exception) -> CtxextendError:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return CtxextendError(
                f"no answer within {self._timeout:g} seconds",
                code="timeout",
                found=self.url,
                hint="a shorter length, or a longer timeout",
            )
        return CtxextendError(
            "the server can't be reached",
            code="network",
            found=f"{self.url}: {self._plain(str(reason))}",
            hint="start it, or mend the address",
        )
