"""The tokenizer of llama.cpp itself, from a GGUF file of which nothing but the vocabulary is loaded."""

from __future__ import annotations

import ctypes as c
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctxextend.checkpoint.gguf_arrays import read_arrays
from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import GgufValue
from tests.gguf_factory import LLAMA, write_model
from tests.reference.libllama import LoadError, library

#: Where ``vocab_only`` stands in ``llama_model_params`` (b11434, ``include/llama.h``): after four pointers.
_VOCABULARY_ONLY = 72

#: Code, numbers, several scripts, emoji with joiners, runs of spaces and newlines, and contractions in any case.
TEXT = (
    'def f(x: int) -> str:\n\treturn f"{x:>10}"  # 1234567 3.14e-10\n\n\n    if a != b && c <= d: pass\r\n\r\n'
    "  two  three   four    \t\t tabs \n \n\n \t\n"
    "Déjà vu à l'œuvre, Größe, señor, Çeşme, naïve café; We'RE they'Ll I'm don't '\n"
    "Съешь же ещё этих мягких французских булок. Ένα φλιτζάνι καφέ, παρακαλώ.\n"
    "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥ नमस्ते दुनिया, आप कैसे हैं? १२३\n"
    "我想在2024年去北京看看。日本語のテキスト、カタカナとひらがな。한국어 문장입니다.\n"
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🏳\ufe0f\u200d🌈 😶\u200d🌫\ufe0f ½ ² ₿ ™ … — “quotes”\n"
    "<tag attr='x'/> $HOME/.config ~a@b.c\n"
    "AbcDEF ABCdef iPhone HTTPServer 0x7F 1e9 100000 10,000.00 \u200bzero width \u00a0nbsp   "
)


@functools.cache
def _library() -> c.CDLL:
    lib = library()
    for name, result, arguments in (
        ("llama_model_get_vocab", c.c_void_p, (c.c_void_p,)),
        (
            "llama_tokenize",
            c.c_int32,
            (c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool),
        ),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class LlamaTokenizer:
    """A loaded vocabulary."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def ids(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        found = (c.c_int32 * room)()
        count = _library().llama_tokenize(self._handle, raw, len(raw), found, room, add_special, parse_special)
        assert count >= 0
        return list(found[:count])


@contextmanager
def llama_tokenizer(path: Path) -> Iterator[LlamaTokenizer]:
    lib = _library()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    c.c_bool.from_address(c.addressof(parameters) + _VOCABULARY_ONLY).value = True
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise LoadError(str(path))
    try:
        yield LlamaTokenizer(lib.llama_model_get_vocab(model))
    finally:
        lib.llama_model_free(model)


def write_vocabulary(path: Path, keys: Mapping[str, GgufValue], **more: Any) -> Path:
    """A GGUF file without tensors that has these keys and those of a tiny Llama."""
    settings = {f"llama.{key}": value for key, value in LLAMA.items()}
    return write_model(path, {"general.architecture": "llama", **settings, **more, **keys}, {})


def all_values(path: Path) -> dict[str, GgufValue]:
    """All keys of a GGUF file, arrays complete."""
    gguf = read_gguf(path).gguf
    assert gguf is not None
    return read_arrays(path, gguf)
