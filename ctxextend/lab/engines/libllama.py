"""llama.cpp's C API (``include/llama.h``) by ctypes: as much of it as reading token ids takes.

The structures are those of builds b11434 to b11549. They are passed by value and change between builds, so
the defaults that the library fills in are compared with those known, field by field, before anything is run.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import ctypes.util
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ctxextend.errors import CtxextendError, RefusedError, UsageError

#: Names the shared library to use.
VARIABLE: Final = "CTXEXTEND_LIBLLAMA"
_HINT: Final = "pip install xllamacpp"

F32: Final = 0
F16: Final = 1
FLASH_ATTENTION_OFF: Final = 0
FLASH_ATTENTION_AUTO: Final = -1
NO_VOCABULARY: Final = 0

#: Later builds add fields at the end, which the library reads and writes through these bytes.
_ROOM: Final = 320


class ModelParams(c.Structure):
    """``llama_model_params``, as far as it is set here."""

    _fields_ = (
        ("devices", c.POINTER(c.c_void_p)),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("rest", c.c_uint8 * _ROOM),
    )


class ContextParams(c.Structure):
    """``llama_context_params``, up to the last field that is set here."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("rest", c.c_uint8 * _ROOM),
    )


class Batch(c.Structure):
    """``llama_batch``. Where positions and sequences are null, the tokens continue sequence 0."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.c_void_p),
        ("n_seq_id", c.c_void_p),
        ("seq_id", c.c_void_p),
        ("logits", c.POINTER(c.c_int8)),
    )


#: What the library must have filled in. Types of -1 leave the choice to the file or the device.
_MODEL_DEFAULTS: Final = {"tensor_buft_overrides": None, "n_gpu_layers": -1, "split_mode": 1}
_CONTEXT_DEFAULTS: Final = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_orig_ctx": 0,
    "type_k": F16,
    "type_v": F16,
}

_LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)

#: Name, result, arguments.
_FUNCTIONS: Final[tuple[tuple[str, Any, tuple[Any, ...]], ...]] = (
    ("llama_backend_init", None, ()),
    ("llama_log_set", None, (c.c_void_p, c.c_void_p)),
    ("llama_supports_gpu_offload", c.c_bool, ()),
    ("llama_model_default_params", ModelParams, ()),
    ("llama_context_default_params", ContextParams, ()),
    ("llama_model_load_from_file", c.c_void_p, (c.c_char_p, ModelParams)),
    ("llama_model_free", None, (c.c_void_p,)),
    ("llama_model_size", c.c_uint64, (c.c_void_p,)),
    ("llama_model_desc", c.c_int32, (c.c_void_p, c.c_char_p, c.c_size_t)),
    ("llama_model_has_encoder", c.c_bool, (c.c_void_p,)),
    ("llama_model_get_vocab", c.c_void_p, (c.c_void_p,)),
    ("llama_init_from_model", c.c_void_p, (c.c_void_p, ContextParams)),
    ("llama_free", None, (c.c_void_p,)),
    ("llama_decode", c.c_int32, (c.c_void_p, Batch)),
    ("llama_get_logits", c.POINTER(c.c_float), (c.c_void_p,)),
    ("llama_get_memory", c.c_void_p, (c.c_void_p,)),
    ("llama_memory_clear", None, (c.c_void_p, c.c_bool)),
    ("llama_memory_seq_rm", c.c_bool, (c.c_void_p, c.c_int32, c.c_int32, c.c_int32)),
    ("llama_vocab_type", c.c_int, (c.c_void_p,)),
    ("llama_vocab_n_tokens", c.c_int32, (c.c_void_p,)),
    ("llama_vocab_bos", c.c_int32, (c.c_void_p,)),
    ("llama_vocab_get_add_bos", c.c_bool, (c.c_void_p,)),
    ("llama_vocab_is_eog", c.c_bool, (c.c_void_p, c.c_int32)),
    (
        "llama_tokenize",
        c.c_int32,
        (c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool),
    ),
    (
        "llama_detokenize",
        c.c_int32,
        (c.c_void_p, c.POINTER(c.c_int32), c.c_int32, c.c_char_p, c.c_int32, c.c_bool, c.c_bool),
    ),
)


class Library:
    """A loaded libllama: its functions as attributes, and ``version``."""

    def __init__(self, path: str, version: str) -> None:
        try:
            self._library = c.CDLL(path)
        except OSError as error:
            # The library is there where it is another one that it misses, such as libgomp.so.1 in slim images.
            missing = re.match(r"(lib[\w.+-]+): cannot open shared object file", str(error))
            other = missing is not None and missing[1] not in path
            raise UsageError(
                "the llama.cpp library can't be loaded",
                code="missing-extra",
                file=path,
                found=str(error),
                hint=f"install the system's package with {missing[1]}" if missing is not None and other else _HINT,
            ) from None
        for name, result, arguments in _FUNCTIONS:
            function = getattr(self._library, name, None)
            if function is None:
                raise _unknown_build(path, expected=f"a function {name}", found="none")
            function.restype, function.argtypes = result, arguments
        check_layout(path, self.llama_model_default_params(), self.llama_context_default_params())
        self.version = version or self._own_version()
        with self.quiet():
            # A bare name was found by the system's loader, and the working directory is no place to load code from.
            if Path(path).is_absolute():
                self._load_backends(Path(path).parent)
            self.llama_backend_init()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[list[str]]:
        """What llama.cpp logs meanwhile, kept off stderr: lines of warnings and errors, and others if none came."""
        lines: list[str] = []
        serious: list[str] = []

        def note(level: int, text: bytes, _data: object) -> None:
            (serious if level in {3, 4} else lines).append(text.decode(errors="replace").strip())

        callback = _LogCallback(note)
        before = self._log_callback()
        self.llama_log_set(c.cast(callback, c.c_void_p), None)
        found: list[str] = []
        try:
            yield found
        finally:
            self.llama_log_set(*before)
            found += serious or lines[-3:]

    def _log_callback(self) -> tuple[c.c_void_p, c.c_void_p]:
        """The callback in use and its argument, so that it can be put back."""
        callback, argument = c.c_void_p(), c.c_void_p()
        get = getattr(self._library, "llama_log_get", None)
        if get is not None:
            get(c.byref(callback), c.byref(argument))
        return callback, argument

    def _load_backends(self, folder: Path) -> None:
        """Builds with one library for each kind of processor look for them beside the program, unless told."""
        load = getattr(self._library, "ggml_backend_load_all_from_path", None)
        count = getattr(self._library, "ggml_backend_reg_count", None)
        if load is not None and count is not None:
            count.restype = c.c_size_t
            if count() == 0:
                load.restype, load.argtypes = None, (c.c_char_p,)
                load(os.fsencode(folder))

    def _own_version(self) -> str:
        version = getattr(self._library, "llama_version", None)
        if version is None:
            return "unknown"
        version.restype = c.c_char_p
        return str(version().decode())


def check_layout(path: str, model: c.Structure, context: c.Structure) -> None:
    """Refuse a library whose defaults don't stand where they are expected. Raises :class:`RefusedError`."""
    for parameters, defaults in ((model, _MODEL_DEFAULTS), (context, _CONTEXT_DEFAULTS)):
        for field, expected in defaults.items():
            found = getattr(parameters, field)
            if found != expected:
                raise _unknown_build(path, expected=f"{field} {expected}", found=f"{field} {found}")


def _unknown_build(path: str, *, expected: str, found: str) -> CtxextendError:
    return RefusedError(
        "this build of llama.cpp lays out its parameters in another way",
        code="unknown-build",
        file=path,
        expected=expected,
        found=found,
        hint=f"{_HINT}=={_KNOWN_VERSION} and unset {VARIABLE}",
    )


#: An xllamacpp with the layout above.
_KNOWN_VERSION: Final = "2026.10.11549"


def library() -> Library:
    """The llama.cpp that CTXEXTEND_LIBLLAMA names, else xllamacpp's, llama-cpp-python's, or the system's.

    Raises :class:`UsageError` when there is none, and :class:`RefusedError` when its build isn't known.
    """
    return _loaded(*_found())


@functools.cache
def _loaded(path: str, version: str) -> Library:
    return Library(path, version)


def _found() -> tuple[str, str]:
    """Path and version of the library; the version empty where only the library can tell."""
    named = os.environ.get(VARIABLE)
    if named:
        return (str(Path(named).resolve()) if os.sep in named else named), ""
    for package, distribution, patterns in (
        ("xllamacpp", "xllamacpp", ("xllamacpp*.so", "xllamacpp*.pyd")),
        ("llama_cpp", "llama-cpp-python", ("lib/libllama.so", "lib/libllama.dylib", "lib/llama.dll")),
    ):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            files = [file for pattern in patterns for file in sorted(Path(folder).glob(pattern))]
            if files:
                return str(files[0]), f"{distribution} {importlib.metadata.version(distribution)}"
    system = ctypes.util.find_library("llama")
    if system is not None:
        return system, ""
    raise UsageError("llama.cpp isn't installed", code="missing-extra", hint=_HINT)
