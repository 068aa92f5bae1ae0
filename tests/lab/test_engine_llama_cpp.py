"""GGUF files in llama.cpp itself, held against transformers on the checkpoint they were made of."""

from __future__ import annotations

import ctypes as c
import ctypes.util
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from ctxextend import Recipe, open_source, plan_source, run_plan
from ctxextend.errors import CheckpointError, CtxextendError, RefusedError, UsageError
from ctxextend.lab.engines import Choice, libllama, llama_cpp, need_of, open_engine
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.engines.llama_cpp import LlamaCppEngine, load
from ctxextend.pipeline import inspect_source
from tests.gguf_factory import write_model
from tests.lab.demo import load_model, read_tokens
from tests.reference.libllama import settings_of, weights_of

DEMO = Path(__file__).resolve().parents[2] / "demo"
CONTEXT = 1024


@cache
def text() -> str:
    return (DEMO / "heldout.txt").read_text(encoding="utf-8")[:4000]


@cache
def tokens() -> list[int]:
    return read_tokens(DEMO / "checkpoint", text())


@cache
def model() -> Any:
    return load_model(DEMO / "checkpoint")


@cache
def expected() -> Any:
    """transformers' log-probabilities of the first 900 tokens: more than one batch, and far past the trained length."""
    with torch.inference_mode():
        return torch.log_softmax(model()(input_ids=torch.tensor([tokens()[:900]])).logits[0].double(), -1).numpy()


def losses_of(ids: list[int]) -> Any:
    return -expected()[np.arange(len(ids) - 1), ids[1:]]


def exported(out: Path, **recipe: Any) -> Path:
    source = open_source(DEMO / "checkpoint")
    plan = plan_source(source, Recipe(to="gguf", outtypes=("f32",), **recipe))
    return run_plan(plan, source, out)[0]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("gguf") / "demo.gguf")


@pytest.fixture(scope="module")
def shared(file: Path) -> Iterator[LlamaCppEngine]:
    engine = load(file, context=CONTEXT, exact=True, threads=1, device="cpu")
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: LlamaCppEngine) -> LlamaCppEngine:
    """Without anything kept of an earlier test."""
    shared._keep([], 0)
    assert shared._kept == []
    return shared


class Altered:
    """The library with some functions replaced."""

    def __init__(self, real: Any, **functions: Any) -> None:
        self._real = real
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        return self._functions.get(name) or getattr(self._real, name)


def test_it_tells_what_it_runs(engine: LlamaCppEngine) -> None:
    checked: Engine = engine
    facts = checked.facts
    assert (facts.engine, facts.device, facts.dtype) == ("llama.cpp", "cpu", "all F32")
    assert (facts.vocabulary, facts.context, facts.opening) == (2048, CONTEXT, ())
    assert facts.version.startswith("xllamacpp 20")
    assert facts.weight_bytes == 4 * sum(p.numel() for p in model().parameters())
    assert facts.can == {"losses", "log_probs"}


def test_its_tokens_are_the_checkpoints(engine: LlamaCppEngine) -> None:
    assert engine.encode(text()) == tokens()
    assert engine.decode(tokens()) == text()
    assert engine.encode("") == []
    assert engine.decode([]) == ""
    # The end of a text (1) is left out; a text's own "</s>" is only letters.
    assert engine.decode([*engine.encode("so"), 1]) == "so"
    assert 1 not in engine.encode("</s>")
    assert engine.decode(engine.encode("naïve — 北京 🙂")) == "naïve — 北京 🙂"


def test_an_opening_token_is_told(tmp_path: Path, file: Path) -> None:
    import shutil

    from gguf import GGUFReader, GGUFWriter

    # The file of the fixture with one more key, written by the gguf package.
    reader = GGUFReader(file)
    writer = GGUFWriter(tmp_path / "bos.gguf", "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in {"general.architecture", "tokenizer.ggml.add_bos_token"}:
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    writer.add_add_bos_token(True)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = load(tmp_path / "bos.gguf", context=16, threads=1, device="cpu")
    assert opened.facts.opening == (0,)
    assert 0 not in opened.encode("a text")
    opened.close()
    shutil.rmtree(tmp_path)


def test_losses_are_those_of_transformers(engine: LlamaCppEngine) -> None:
    found = engine.losses(tokens()[:900])
    assert len(found) == 899
    assert np.abs(found - losses_of(tokens()[:900])).max() < 1e-3


def test_losses_from_the_middle(engine: LlamaCppEngine) -> None:
    found = engine.losses(tokens()[:900], first=700)
    assert np.abs(found - losses_of(tokens()[:900])[699:]).max() < 1e-3
    assert engine.losses(tokens()[:1]) == []


def test_distributions_are_those_of_transformers(engine: LlamaCppEngine) -> None:
    found = np.concatenate(list(engine.log_probs(tokens()[:900], first=300)))
    assert found.shape == (600, 2048)
    assert found.dtype == np.float32
    assert np.abs(found - expected()[299:899]).max() < 1e-3
    assert np.abs(np.exp(found.astype(np.float64)).sum(axis=1) - 1).max() < 1e-5


def test_generation_is_that_of_transformers(engine: LlamaCppEngine) -> None:
    ids = tokens()[:100]
    out = model().generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, 100:].tolist()
    assert engine.generate(ids, 40) == out
    assert engine.generate(ids, 0) == []


def test_generation_stops_where_the_model_ends(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.generate(tokens()[:100], 8)
    end = whole[5]
    monkeypatch.setattr(engine, "_lib", Altered(engine._lib, llama_vocab_is_eog=lambda _vocab, token: token == end))
    assert engine.generate(tokens()[:100], 8) == whole[: whole.index(end)]


def test_what_was_read_is_kept(engine: LlamaCppEngine) -> None:
    ids = tokens()[:900]
    fresh = engine.losses(ids, first=600)
    read = engine.usage.tokens
    # Half of it differs: 599 tokens stay, the last of which predicts the first one asked for.
    other = [*ids[:700], *reversed(ids[700:])]
    engine.losses(other, first=650)
    assert engine.usage.tokens - read == 899 - 649
    read = engine.usage.tokens
    again = engine.losses(ids, first=600)
    assert engine.usage.tokens - read == 899 - 599
    assert again == pytest.approx(fresh, abs=1e-4)
    continued = engine.generate(ids[:400], 2)
    assert continued[0] != ids[400]
    read = engine.usage.tokens
    assert engine.losses(ids, first=600) == pytest.approx(fresh, abs=1e-4)
    assert engine.usage.tokens - read == 899 - 400


def test_interleaved_readings_dont_mix(engine: LlamaCppEngine) -> None:
    ids = tokens()[:900]
    halves = engine.log_probs(ids)
    found = [next(halves)]
    assert np.abs(engine.losses(ids[100:400]) - np.array(shifted(ids[100:400]))).max() < 1e-3
    found += list(halves)
    assert np.abs(np.concatenate(found) - expected()[:899]).max() < 1e-3


def shifted(ids: list[int]) -> list[float]:
    with torch.inference_mode():
        logits = model()(input_ids=torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none").tolist()


def test_a_state_that_cant_be_turned_back_is_made_anew(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_lib", Altered(engine._lib, llama_memory_seq_rm=lambda *_: False))
    engine.losses(tokens()[:500])
    read = engine.usage.tokens
    found = engine.losses(tokens()[:300], first=200)
    assert engine.usage.tokens - read == 299
    assert np.abs(found - losses_of(tokens()[:300])[199:]).max() < 1e-3


def test_usage_grows(engine: LlamaCppEngine) -> None:
    before = engine.usage
    engine.losses(tokens()[:64])
    after = engine.usage
    assert after.tokens - before.tokens == 63
    assert after.seconds > before.seconds
    # The weights alone are 4 MB, and torch is loaded beside them.
    assert after.peak_memory_bytes is not None
    assert 10_000_000 < after.peak_memory_bytes < 100_000_000_000


def test_as_servers_run_it(file: Path) -> None:
    """Sixteen bits in the cache and the device's attention: near, and not the same."""
    engine = load(file, context=CONTEXT, threads=1)
    found = engine.losses(tokens()[:600])
    off = np.abs(found - losses_of(tokens()[:600])).max()
    assert 1e-4 < off < 0.1
    engine.close()


def test_a_split_file_by_its_first_shard(tmp_path: Path) -> None:
    out = exported(tmp_path / "split", split_max_size=1_500_000)
    shards = sorted(out.rglob("*.gguf")) if out.is_dir() else sorted(out.parent.glob("*.gguf"))
    assert len(shards) > 1
    engine = load(shards[0], context=128, exact=True, threads=1, device="cpu")
    assert np.abs(engine.losses(tokens()[:128]) - losses_of(tokens()[:128])).max() < 1e-3
    engine.close()


def test_too_long_and_unknown_tokens(engine: LlamaCppEngine) -> None:
    for wrong in (
        lambda: engine.losses([5] * (CONTEXT + 1)),
        lambda: list(engine.log_probs([5] * (CONTEXT + 1))),
        lambda: engine.generate([5] * 1000, 25),
    ):
        with pytest.raises(UsageError) as caught:
            wrong()
        assert caught.value.code == "too-long"
        assert caught.value.expected == "at most 1024 tokens"
    assert len(engine.losses([5] * CONTEXT, first=CONTEXT - 1)) == 1
    for ids in ([3, 2048], [3, -1]):
        with pytest.raises(UsageError) as caught:
            engine.losses(ids)
        assert (caught.value.code, caught.value.expected) == ("unknown-token", "0 to 2047")
    with pytest.raises(UsageError, match="nothing predicts"):
        engine.losses([1, 2], first=0)
    with pytest.raises(UsageError, match="no token"):
        engine.generate([], 3)


def test_what_cant_be_loaded_says_why_and_stderr_stays_clean(
    tmp_path: Path, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model at all")
    for path in (broken, tmp_path / "absent.gguf"):
        with pytest.raises(CheckpointError) as caught:
            load(path, context=16)
        assert caught.value.file == str(path)
    assert "failed to open" in str(caught.value.found)
    # Four times the trained length, of which llama.cpp would warn.
    load(file, context=CONTEXT, threads=1).close()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_the_callback_of_others_is_put_back(file: Path) -> None:
    lib = libllama.library()
    heard: list[bytes] = []
    callback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda _level, said, _data: heard.append(said))
    before = lib._log_callback()
    lib.llama_log_set(c.cast(callback, c.c_void_p), None)
    try:
        load(file, context=16, threads=1).close()
        assert heard == []
        assert lib._log_callback()[0].value == c.cast(callback, c.c_void_p).value
    finally:
        lib.llama_log_set(*before)


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf", settings_of("llama"), weights_of("llama"))
    engine = load(path, context=16, threads=1, device="cpu")
    assert len(engine.losses([1, 2, 3])) == 2
    for wrong in (lambda: engine.encode("a"), lambda: engine.decode([1])):
        with pytest.raises(CheckpointError) as caught:
            wrong()
        assert caught.value.code == "no-tokenizer"
    engine.close()
    with pytest.raises(CtxextendError, match="closed"):
        engine.losses([1, 2])


def test_a_context_that_cant_be_made(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = Altered(libllama.library(), llama_init_from_model=lambda *_: None)
    monkeypatch.setattr(llama_cpp, "library", lambda: lib)
    with pytest.raises(CtxextendError) as caught:
        load(file, context=4096)
    assert caught.value.code == "engine-failed"
    assert "4096" in caught.value.message


def test_a_reading_that_fails(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_lib", Altered(engine._lib, llama_decode=lambda *_: -3))
    with pytest.raises(CtxextendError) as caught:
        engine.losses(tokens()[:20])
    assert (caught.value.code, caught.value.found) == ("engine-failed", "status -3")


@pytest.mark.parametrize(
    ("choice", "option"),
    [
        (Choice(dtype="bfloat16"), "--dtype"),
        (Choice(dtype="float16", engine="llama.cpp"), "--dtype"),
        (Choice(trust_remote_code=True), "--trust-remote-code"),
    ],
)
def test_options_that_would_do_nothing_are_refused(file: Path, choice: Choice, option: str) -> None:
    opened = open_source(str(file))
    inspection = inspect_source(opened, Recipe())
    for call in (
        lambda: need_of(opened, inspection, choice, length=16),
        lambda: open_engine(opened, choice, length=16),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert (caught.value.code, caught.value.key) == ("bad-option", option)


def test_devices(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        load(file, context=16, device="cuda")
    assert caught.value.code == "no-device"
    able = Altered(libllama.library(), llama_supports_gpu_offload=lambda: True)
    assert [llama_cpp._on_gpu(able, name) for name in ("auto", "cuda", "cpu")] == [True, True, False]  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        llama_cpp._on_gpu(able, "cuda:1")  # type: ignore[arg-type]
    assert caught.value.hint == "CUDA_VISIBLE_DEVICES=1 with --device auto"


class Shifted(c.Structure):
    """The context's parameters as a build would have them that put one more number behind n_seq_max."""

    _fields_ = (
        *libllama.ContextParams._fields_[:4],
        ("n_more", c.c_uint32),
        *libllama.ContextParams._fields_[4:-1],
    )


def test_another_layout_is_refused() -> None:
    lib = libllama.library()
    model, context = lib.llama_model_default_params(), lib.llama_context_default_params()
    libllama.check_layout("known.so", model, context)
    damaged = Shifted.from_buffer_copy(bytes(context))
    with pytest.raises(RefusedError) as caught:
        libllama.check_layout("other.so", model, damaged)
    assert (caught.value.code, caught.value.file) == ("unknown-build", "other.so")
    assert caught.value.expected != caught.value.found
    model.split_mode = 7
    with pytest.raises(RefusedError) as caught:
        libllama.check_layout("other.so", model, context)
    assert (caught.value.expected, caught.value.found) == ("split_mode 1", "split_mode 7")


@pytest.mark.parametrize("field", ["n_batch", "flash_attn_type", "rope_freq_base", "yarn_ext_factor", "type_v"])
def test_each_field_that_is_set_is_guarded(field: str) -> None:
    lib = libllama.library()
    context = lib.llama_context_default_params()
    setattr(context, field, 3)
    with pytest.raises(RefusedError):
        libllama.check_layout("other.so", lib.llama_model_default_params(), context)


def test_a_library_of_ones_own(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    own = next(Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so"))
    monkeypatch.setenv(libllama.VARIABLE, str(own))
    engine = load(file, context=16, threads=1)
    # What the library says of itself, since no package does.
    assert engine.facts.version[0].isdigit()
    engine.close()
    other = tmp_path / "libllama.so"
    other.write_bytes(b"no library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(libllama.VARIABLE, "./libllama.so")
    with pytest.raises(UsageError) as caught:
        load(file, context=16)
    assert (caught.value.file, caught.value.hint) == (str(other), "pip install xllamacpp")
    # A library, but not llama.cpp.
    libc = ctypes.util.find_library("c")
    if libc is not None:
        monkeypatch.setenv(libllama.VARIABLE, libc)
        with pytest.raises(RefusedError) as refused:
            load(file, context=16)
        assert refused.value.code == "unknown-build"


def test_where_the_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "lib" / "libllama.so").touch()
    real = importlib.util.find_spec
    missing = {"xllamacpp"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"llama-cpp-python": "0.3.36"}[name])
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libllama.so.0" if name == "llama" else None)
    monkeypatch.syspath_prepend(tmp_path)
    assert libllama._found() == (str(package / "lib" / "libllama.so"), "llama-cpp-python 0.3.36")
    missing.add("llama_cpp")
    assert libllama._found() == ("libllama.so.0", "")
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    with pytest.raises(UsageError) as caught:
        libllama._found()
    assert (caught.value.code, caught.value.hint) == ("missing-extra", "pip install xllamacpp")


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("libgomp.so.1: cannot open shared object file: No such file or directory", "libgomp.so.1"),
        ("/somewhere/libllama.so: cannot open shared object file: No such file or directory", "pip install"),
    ],
)
def test_what_a_library_misses_is_what_the_hint_names(said: str, hint: str) -> None:
    """As glibc's loader says it, of a slim image without OpenMP's library, and of a path with nothing there."""
    with mock.patch("ctypes.CDLL", side_effect=OSError(said)), pytest.raises(UsageError) as raised:
        libllama.Library("/somewhere/libllama.so", "")
    assert raised.value.hint is not None
    assert hint in raised.value.hint
