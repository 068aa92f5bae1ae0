"""Every error that ctxextend raises on purpose. The exit codes are a contract.

    CtxextendError                1  it failed
    ├── CheckpointError           1  a file of a checkpoint is missing, broken or not what it says
    ├── OutputError               1  the result can't be written (disk full, permissions, lost race)
    ├── HubError                  1  the Hub: network, authentication, a missing repository
    ├── UsageError                2  the call itself is wrong
    │   ├── UnknownNameError      2  an unknown method, family, runtime or parameter
    │   └── MissingExtraError     2  an optional dependency isn't installed
    ├── RefusedError              3  it could be done, but probably should not; the hint overrides it
    ├── GateError                 4  a quality gate failed
    └── DisagreementError         5  a runtime reads something else than was meant

A message says what is wrong; ``file``, ``key``, ``expected`` and ``found`` say where and how;
``hint`` is a command or an edit that mends it. Anything else that escapes is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class CtxextendError(Exception):
    """Base of the tree: one message, and the facts that make it useful.

    ``code`` is a stable, machine-readable name such as ``output-exists``; refusals are let pass
    with ``--allow CODE`` where the hint says so.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str = "failed",
        file: str | None = None,
        key: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.file = file
        self.key = key
        self.expected = expected
        self.found = found
        self.hint = hint

    def details(self) -> dict[str, str | int]:
        """The error as plain values, without the fields that are not set."""
        fields: dict[str, str | int | None] = {
            "code": self.code,
            "message": self.message,
            "file": self.file,
            "key": self.key,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }
        return {name: value for name, value in fields.items() if value is not None}


class CheckpointError(CtxextendError):
    """A file of a checkpoint is missing, broken, or contradicts another."""


class OutputError(CtxextendError):
    """The result can't be written; nothing of it is left behind."""


class HubError(CtxextendError):
    """The Hub can't be reached, or says no."""


class UsageError(CtxextendError):
    """The call is wrong: an option, a number, a combination."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(UsageError):
    """A name that isn't known, with the nearest that are."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, file: str | None = None) -> None:
        names = sorted(known)
        near = nearest(name, names)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(
            f"unknown {kind}: {name}",
            code=f"unknown-{kind.replace(' ', '-')}",
            file=file,
            found=name,
            hint=f"{hint}known: {', '.join(names) if names else 'none'}",
        )


class MissingExtraError(UsageError):
    """An optional dependency isn't installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this needs {module}, which isn't installed",
            code="missing-extra",
            hint=f"pip install 'ctxextend[{extra}]'",
        )


class RefusedError(CtxextendError):
    """Refused rather than guessed. The hint says what overrides it."""

    exit_code: ClassVar[int] = 3


class GateError(CtxextendError):
    """A quality gate failed; the output is kept."""

    exit_code: ClassVar[int] = 4


class DisagreementError(CtxextendError):
    """A runtime reads something else than was meant."""

    exit_code: ClassVar[int] = 5


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that look most like ``name``, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
