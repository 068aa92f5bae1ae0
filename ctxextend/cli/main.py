"""The entry point: runs the app, and turns whatever escapes into a message and an exit code."""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
import traceback
from types import FrameType
from typing import NoReturn

from ctxextend.cli import app
from ctxextend.cli.console import show_error
from ctxextend.errors import CtxextendError, UsageError
from ctxextend.version import VERSION

INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line; the process ends with the contract's exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
    except CtxextendError as error:
        if os.environ.get("CTXEXTEND_DEBUG") == "1":
            traceback.print_exc()
        show_error(error, as_json=as_json)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was kept\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (such as head): nothing to say, nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last resort: a report instead of a traceback
        sys.exit(_unexpected(error, as_json=as_json))
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception, *, as_json: bool) -> int:
    """A wrong call that Typer found, or a bug of ours."""
    # Typer's own errors have no public base class; they know their exit code and message.
    code, message = getattr(error, "exit_code", None), getattr(error, "format_message", None)
    if isinstance(code, int) and callable(message):
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help" if context is not None else "ctxextend --help"
        show_error(UsageError(str(message()), code="usage", hint=hint), as_json=as_json)
        return code
    if os.environ.get("CTXEXTEND_DEBUG") == "1":
        traceback.print_exc()
        return 1
    bug = CtxextendError(
        f"this is a bug in ctxextend: {type(error).__name__}: {error}",
        code="bug",
        file=_report(error),
        hint="please report it with that file; CTXEXTEND_DEBUG=1 shows the traceback",
    )
    show_error(bug, as_json=as_json)
    return 1


def _report(error: Exception) -> str:
    """A file with what is needed to understand a bug; its path."""
    lines = [
        f"ctxextend {VERSION}, Python {platform.python_version()}, {platform.platform()}\n",
        f"command: {sys.argv[1:2]}\n\n",
        *traceback.format_exception(error),
    ]
    with tempfile.NamedTemporaryFile("w", prefix="ctxextend-bug-", suffix=".txt", delete=False) as report:
        report.writelines(lines)
    return report.name


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: what was staged is removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
