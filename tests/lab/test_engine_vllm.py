"""vLLM's offline interface, against a stand-in with its documented names: vLLM itself can't be installed here."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ctxextend import open_source
from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.lab.engines import Choice, open_engine
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.engines.vllm import VllmEngine, load
from tests.lab import stand_in_vllm
from tests.lab.demo import read_tokens
from tests.lab.stand_in_server import log_prob

DEMO = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
CONTEXT = 64
#: Ids of the stand-in: 97 is a letter that 98 follows, and 124 (z) is followed by the end.
LETTER, LAST = 97, ord("z") + 2


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm.module())
    return load(DEMO, context=CONTEXT)


def test_it_isnt_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError) as caught:
        load(DEMO, context=CONTEXT)
    assert (caught.value.code, caught.value.hint) == ("missing-extra", "pip install vllm")


def test_it_loads_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm.module())
    for visible, asked, expected in ((4, None, 4), (0, None, 1), (4, 2, 2)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda visible=visible: visible)
        load(DEMO, context=CONTEXT, tensor_parallel=asked, dtype="float16")
        settings = stand_in_vllm.LLM.made[0].settings
        assert settings["tensor_parallel_size"] == expected
        assert (settings["model"], settings["dtype"], settings["max_model_len"]) == (str(DEMO), "float16", CONTEXT)
        assert settings["enable_prefix_caching"]
        assert not settings["enforce_eager"]
        assert settings["load_format"] == "safetensors"
        assert not settings["trust_remote_code"]


def test_its_own_code_is_run_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm.module())
    opened = open_source(str(DEMO))
    open_engine(opened, Choice(engine="vllm", trust_remote_code=True), length=CONTEXT)
    assert stand_in_vllm.LLM.made[0].settings["trust_remote_code"]


def test_a_device_that_would_do_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm.module())
    stand_in_vllm.LLM.made.clear()
    opened = open_source(str(DEMO))
    for device in ("cpu", "cuda:1"):
        with pytest.raises(UsageError) as caught:
            open_engine(opened, Choice(engine="vllm", device=device), length=CONTEXT)
        assert (caught.value.code, caught.value.key, caught.value.found) == ("bad-option", "--device", device)
    assert not stand_in_vllm.LLM.made
    open_engine(opened, Choice(engine="vllm", device="cuda"), length=CONTEXT)


def test_what_it_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm.module())
    with pytest.raises(CtxextendError) as caught:
        load(DEMO, context=1024)
    assert caught.value.code == "engine-failed"
    assert "max_model_len (1024)" in str(caught.value.found)
    assert "--max-model-len 1024" in str(caught.value.hint)
    with pytest.raises(UsageError):
        load(DEMO, context=1)


def test_it_tells_what_it_runs(engine: VllmEngine) -> None:
    checked: Engine = engine
    facts = checked.facts
    assert (facts.engine, facts.version, facts.dtype) == ("vllm", "0.30.0", "bfloat16")
    assert (facts.vocabulary, facts.context, facts.opening) == (300, CONTEXT, ())
    assert facts.can == {"losses"}
    assert engine.encode("Hello there") == read_tokens(DEMO, "Hello there")
    assert engine.decode([*engine.encode("Hello there"), 1]) == "Hello there"


def test_losses(engine: VllmEngine) -> None:
    tokens = [5, 9, 200, 3, 77, 140]
    expected = [-log_prob(a, b) for a, b in pairwise(tokens)]
    assert engine.losses(tokens) == pytest.approx(expected)
    assert engine.losses(tokens, first=3) == pytest.approx(expected[2:])
    # Each time all of them, since such a request has no use of the cache, and a token that is made.
    assert engine.usage.tokens == 2 * 7
    assert engine.usage.peak_memory_bytes is None


@pytest.mark.parametrize("count", [CONTEXT - 1, CONTEXT])
def test_losses_of_a_whole_context(engine: VllmEngine, count: int) -> None:
    """vLLM refuses a prompt that fills its context: the last token is looked up in what it would say next."""
    tokens = [(index * index) % 251 for index in range(count)]
    assert engine.losses(tokens) == pytest.approx([-log_prob(a, b) for a, b in pairwise(tokens)])


def test_generation(engine: VllmEngine) -> None:
    assert engine.generate([7, LETTER], 4) == [98, 99, 100, 101]
    # Without the token that ends it.
    assert engine.generate([7, LAST - 2], 9) == [LAST - 1, LAST]
    before = engine.usage.tokens
    engine.generate([7, LAST - 2], 9)
    # One token of the prompt was read anew, and three were made.
    assert engine.usage.tokens - before == 1 + 3


def test_never_whole_distributions(engine: VllmEngine) -> None:
    with pytest.raises(RefusedError) as caught:
        engine.log_probs([1, 2, 3])
    assert caught.value.code == "no-logprobs"


def test_too_long(engine: VllmEngine) -> None:
    for wrong in (lambda: engine.losses([5] * (CONTEXT + 1)), lambda: engine.generate([5] * 60, 5)):
        with pytest.raises(UsageError) as caught:
            wrong()
        assert caught.value.code == "too-long"
    with pytest.raises(UsageError, match="nothing predicts"):
        engine.losses([5, 6], first=0)


def test_answers_that_arent_understood(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stand_in_vllm.LLM._one
    for change in (lambda told: None, lambda told: told[:-1], lambda told: [None, *({0: entry} for entry in told[1:])]):

        def altered(self, *args, change=change):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
            output = real(self, *args)
            output.prompt_logprobs = change(output.prompt_logprobs)
            return output

        monkeypatch.setattr(stand_in_vllm.LLM, "_one", altered)
        with pytest.raises(CtxextendError) as caught:
            engine.losses([5, 6, 7])
        assert caught.value.code == "bad-answer"
