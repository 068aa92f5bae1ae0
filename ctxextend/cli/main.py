"""The entry point: runs the app, and turns whatever escapes into a message and an exit code."""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
import tempfile
import traceback
from io import TextIOWrapper
from types import FrameType
from typing import Any, NoReturn

from ctxextend.checkpoint.secrets import masked
from ctxextend.cli import app_for
from ctxextend.cli.console import INTERRUPTED, InterruptError, show_error
from ctxextend.errors import CtxextendError, OutputError, UsageError, nearest
from ctxextend.version import VERSION

#: What ends a run from outside as Ctrl-C does: what was staged is removed.
_ENDING = (signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


def main() -> NoReturn:
    """Run the command line; the process ends with the contract's exit code."""
    # What was imported lives as long as the process: looking through it at its end takes a tenth of a short run.
    gc.freeze()
    for number in _ENDING:
        # nohup has SIGHUP ignored, and means it.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        # A file's name can be more than the terminal's encoding holds; better an escape than an error.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    as_json = "--json" in sys.argv
    try:
        code = _run(as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away (such as head): nothing to say, nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(*, as_json: bool) -> int:
    """The exit code of what the arguments say, after whatever went wrong was shown."""
    try:
        code = app_for(sys.argv[1:])(standalone_mode=False)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: a report instead of a traceback
        if os.environ.get("CTXEXTEND_DEBUG") == "1":
            traceback.print_exc()
        shown = _shown(error)
        show_error(shown, as_json=as_json)
        return shown.exit_code
    if code == INTERRUPTED:
        show_error(InterruptError("interrupted; no half output remains", code="interrupted"), as_json=as_json)
    return code if isinstance(code, int) else 0


def _shown(error: Exception) -> CtxextendError:
    """What escaped, as an error to show: ours, a wrong call that Typer found, the system's, or a bug."""
    if isinstance(error, CtxextendError):
        return error
    # Typer's own errors have no public base class; they know their exit code and message.
    if isinstance(getattr(error, "exit_code", None), int) and callable(getattr(error, "format_message", None)):
        return _wrong_call(error)
    if isinstance(error, OSError):
        return OutputError(
            "a file can't be read or written",
            code="io",
            file=error.filename if isinstance(error.filename, str) else None,
            found=error.strerror or str(error),
            hint="check the path and its permissions",
        )
    return CtxextendError(
        masked(f"this is a bug in ctxextend: {type(error).__name__}: {error}"),
        code="bug",
        file=_report(error),
        hint="please report it with that file; CTXEXTEND_DEBUG=1 shows the traceback",
    )


def _wrong_call(error: Any) -> UsageError:
    context = getattr(error, "ctx", None)
    page = f"{context.command_path} --help" if context is not None else "ctxextend --help"
    option = getattr(error, "option_name", None)
    if isinstance(option, str) and hasattr(error, "possibilities"):
        near = nearest(option, (name for p in context.command.params for name in p.opts), 1) if context else []
        meant = f"did you mean {near[0]}? " if near else ""
        return UsageError(f"unknown option: {option}", code="unknown-option", found=option, hint=f"{meant}see {page}")
    # A token may have slipped to a place where none belongs.
    message = masked(str(error.format_message()).replace("Value error, ", ""))
    return UsageError(message, code="usage", hint=f"see {page}")


def _report(error: Exception) -> str | None:
    """A file with what is needed to understand a bug; its path. None where none can be written."""
    lines = [
        f"ctxextend {VERSION}, Python {platform.python_version()}, {platform.platform()}\n",
        f"command: {sys.argv[1:2]}\n\n",
        masked("".join(traceback.format_exception(error))),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ctxextend-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as report:
            report.writelines(lines)
    except OSError:
        return None
    return report.name


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
