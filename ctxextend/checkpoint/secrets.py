"""Keeping the Hub's token to ourselves: out of messages, logs and tracebacks."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from ctxextend.errors import UsageError


def check_token(token: str | None) -> None:
    """Raises :class:`UsageError` for a token, given or saved, that no header can hold; without showing it."""
    from huggingface_hub import get_token

    _forget_unreadable_login()
    sent = token or get_token() or ""
    if not sent.isascii() or not sent.isprintable() or " " in sent:
        raise UsageError(
            "the Hub's token holds characters that no token has",
            code="token",
            hint="copy the token again from https://huggingface.co/settings/tokens",
        )


def _forget_unreadable_login() -> None:
    """A login that lies where nobody may look is none, as one that isn't there is.

    The client would end every call with it, those with a token of their own too: ``HOME`` is ``/dev/null``, or another
    user's, where services and containers run.
    """
    from huggingface_hub import constants

    try:
        Path(constants.HF_TOKEN_PATH).read_bytes()
    except FileNotFoundError:
        pass
    except OSError:
        constants.HF_TOKEN_PATH = os.devnull


def without_secrets(text: str, token: str | None) -> str:
    """``text`` without ``token``, the saved one, whatever looks like one, and what signs or opens an address."""
    from huggingface_hub import get_token

    for secret in {token, get_token()} - {None, ""}:
        text = text.replace(str(secret), "***")
    text = masked(text)
    text = re.sub(r"(\w://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)
    return re.sub(r"(://)[^/@\s]+@", r"\1", text)


def told(text: str, token: str | None) -> str:
    """A foreign text as one short line without secrets."""
    return " ".join(without_secrets(text, token).split())[:200]


def can_be_shown(error: BaseException, token: str | None) -> bool:
    """Whether a traceback of ``error``, with all that led to it, holds no secret."""
    report = "".join(traceback.format_exception(error))
    return report == without_secrets(report, token)


def masked(text: str) -> str:
    """``text`` without what looks like a token of the Hub."""
    return re.sub(r"\bhf_\w{8,}", "***", text)
