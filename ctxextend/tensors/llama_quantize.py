"""The types that only llama.cpp writes (K-quants and the like), by its ``llama-quantize`` or its library.

Source: llama.cpp b11434, ``include/llama.h`` (llama_model_quantize, llama_model_quantize_params) and
``tools/quantize/quantize.cpp`` (the program's arguments). The library runs in a process of its own, since it
aborts the process that it doesn't like the file of.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct

from ctxextend.errors import OutputError, RefusedError
from ctxextend.exports.outtypes import FILE_TYPES

PROGRAM: Final = "llama-quantize"

#: How much of what it said last a message repeats.
_SHOWN: Final = 400


class Quantizer(Struct, frozen=True, kw_only=True):
    """A ``llama-quantize`` program, or a library of llama.cpp that exports ``llama_model_quantize``."""

    path: Path
    library: bool = False


def find_quantizer(path: Path | None = None) -> Quantizer | None:
    """The program or library at ``path`` (a file, or a folder that holds one), else the program on PATH.

    None where nothing is found. Raises :class:`RefusedError` for a ``path`` that is neither.
    """
    if path is None:
        found = shutil.which(PROGRAM)
        return Quantizer(path=Path(found)) if found is not None else None
    for candidate in _candidates(path):
        if _is_library(candidate):
            return Quantizer(path=candidate, library=True)
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return Quantizer(path=candidate)
    raise RefusedError(
        "this is no quantiser",
        code="no-quantizer",
        file=str(path),
        expected=f"an executable {PROGRAM}, or a libllama library",
        found="a folder without one" if path.is_dir() else "another file" if path.exists() else "nothing",
        hint="give the path of a build of llama.cpp",
    )


def no_quantizer(outtype: str) -> RefusedError:
    """The error for a type that needs one where there is none."""
    return RefusedError(
        f"{outtype} is written by llama.cpp's quantiser, and none was found",
        code="no-quantizer",
        expected=f"{PROGRAM} on PATH",
        found="none",
        hint=f"install llama.cpp, or name its {PROGRAM} or libllama with --quantizer PATH; q8_0 to q4_0 need none",
    )


def quantise_file(quantizer: Quantizer, source: Path, target: Path, outtype: str) -> None:
    """Write a GGUF file of a type of FILE_TYPES from one of floating numbers; ``target`` must not exist.

    Raises :class:`OutputError` with what llama.cpp said last when it fails.
    """
    threads = str(os.cpu_count() or 1)
    if quantizer.library:
        module = [sys.executable, "-m", "ctxextend.tensors.llama_quantize"]
        command = [*module, str(quantizer.path), str(FILE_TYPES[outtype]), str(source), str(target), threads]
    else:
        command = [str(quantizer.path), str(source), str(target), outtype.upper(), threads]
    # Both write a log of many lines, to either stream; names of tensors in it may be anything.
    done = subprocess.run(  # noqa: S603
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode == 0 and target.is_file():
        return
    said = done.stdout.decode(errors="replace").strip()[-_SHOWN:]
    raise OutputError(
        f"llama.cpp's quantiser failed to write {outtype}",
        code="quantizer-failed",
        file=str(quantizer.path),
        expected="exit code 0, and a file",
        found=f"exit code {done.returncode}: {said}",
        hint="try another build of llama.cpp, or a type that needs none, such as q8_0",
    )


def _candidates(path: Path) -> list[Path]:
    return [path / PROGRAM, *sorted(path.glob("libllama.*"))] if path.is_dir() else [path]


def _is_library(path: Path) -> bool:
    return path.is_file() and bool({".so", ".dylib"} & set(path.suffixes))


class _Parameters(ctypes.Structure):
    """The first fields of llama_model_quantize_params, and room for the rest."""

    _fields_ = (("threads", ctypes.c_int32), ("file_type", ctypes.c_int), ("rest", ctypes.c_char * 248))


def _main(library: str, file_type: str, source: str, target: str, threads: str) -> int:
    lib = ctypes.CDLL(library)
    for name, result, arguments in (
        ("llama_backend_init", None, ()),
        ("llama_model_quantize_default_params", _Parameters, ()),
        ("llama_model_quantize", ctypes.c_uint32, (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Parameters))),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if hasattr(lib, "ggml_backend_load_all_from_path"):
        # Builds with a library for each processor find theirs here.
        lib.ggml_backend_load_all_from_path(os.fsencode(Path(library).parent))
    lib.llama_backend_init()
    parameters = lib.llama_model_quantize_default_params()
    parameters.threads, parameters.file_type = int(threads), int(file_type)
    return int(lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
