"""Running servers: llama-server for real (of the xllamacpp wheel), vLLM and SGLang by a stand-in in their forms."""

from __future__ import annotations

import importlib
import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ctxextend import Recipe, open_source, plan_source, run_plan
from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.engines.endpoint import EndpointEngine, connect
from ctxextend.lab.engines.http_json import HttpJson, StatusError, may_send
from tests.lab.demo import load_model, read_tokens
from tests.lab.stand_in_server import CONTEXT, StandIn, log_prob, serving

DEMO = Path(__file__).resolve().parents[2] / "demo"
SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited for before asking again, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    with serving(request.param) as running:
        yield running


def ids_of(text: str) -> list[int]:
    return [byte + 2 for byte in text.encode()]


def test_what_a_server_tells(server: StandIn) -> None:
    engine: Engine = connect(f"{server.url}/v1/")
    facts = engine.facts
    assert facts.engine == f"{server.kind} at {server.url}"
    assert facts.version == {"vllm": "0.30.0", "sglang": "0.5.12"}[server.kind]
    assert facts.context == CONTEXT
    assert facts.opening == (0,)
    assert facts.can == {"losses"}
    assert engine.usage.peak_memory_bytes is None


def test_its_tokenizer_is_asked(server: StandIn) -> None:
    engine = connect(server.url)
    assert engine.encode("héllo") == ids_of("héllo")
    assert engine.decode([0, *ids_of("héllo"), 1]) == "héllo"


def test_losses(server: StandIn) -> None:
    engine = connect(server.url)
    tokens = [0, *ids_of("a few words")]
    expected = [-log_prob(a, b) for a, b in pairwise(tokens)]
    before = engine.usage
    assert engine.losses(tokens) == pytest.approx(expected)
    assert engine.losses(tokens, first=5) == pytest.approx(expected[4:])
    # Both times all of them, and the token that servers insist on making.
    assert engine.usage.tokens - before.tokens == 2 * (len(tokens) + 1)
    assert engine.usage.seconds > before.seconds
    sent = server.asked("/v1/completions")[-1]
    assert (sent["prompt"], sent["temperature"], sent["max_tokens"], sent["echo"]) == (tokens, 0, 1, True)
    assert sent["repetition_penalty"] == 1


def test_generation(server: StandIn) -> None:
    engine = connect(server.url)
    assert engine.decode(engine.generate(ids_of("a"), 4)) == "bcde"
    assert engine.decode(engine.generate(ids_of("x"), 9)) == "yz"
    sent = server.asked("/v1/completions")[-1]
    assert (sent["model"], sent["prompt"], sent["max_tokens"]) == ("demo", ids_of("x"), 9)
    assert not {"echo", "logprobs"} & set(sent)


def test_what_it_had_kept_isnt_counted() -> None:
    with serving() as server:
        engine = connect(server.url)
        before = engine.usage.tokens
        usage = {"prompt_tokens": 30, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 16}}
        answer = {"choices": [{"text": "bc"}], "usage": usage}
        server.answers["/v1/completions"] = [(200, {}, json.dumps(answer).encode())]
        engine.generate(ids_of("a" * 30), 2)
        assert engine.usage.tokens - before == 30 - 16 + 2


def test_a_tokenizer_of_ones_own() -> None:
    with serving() as server:
        for path in (DEMO / "checkpoint", DEMO / "checkpoint" / "tokenizer.json"):
            engine = connect(server.url, tokenizer=path)
            assert engine.encode("Hello there") == read_tokens(DEMO / "checkpoint", "Hello there")
            assert engine.decode([*engine.encode("Hello there"), 1]) == "Hello there"
            assert engine.facts.opening == ()
        assert server.asked("/tokenize") == []
        with pytest.raises(UsageError) as caught:
            connect(server.url, tokenizer=DEMO)
        assert (caught.value.code, caught.value.file) == ("no-tokenizer", str(DEMO))


def test_a_server_that_cant_tokenize() -> None:
    with serving("other") as server:
        missing: tuple[int, dict[str, str], bytes] = (404, {}, b'{"detail": "Not Found"}')
        server.answers = {"/tokenize": [missing], "/v1/tokenize": [missing]}
        with pytest.raises(UsageError) as caught:
            connect(server.url)
    assert caught.value.code == "no-tokenizer"
    assert "--tokenizer PATH" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        # OpenAI's own, and older llama-servers.
        (400, {"error": {"message": "echo and logprobs are not supported together"}}),
        (500, {"error": {"message": "Only no echo is supported"}}),
        # Those that ignore it: nothing, the form of chats, only what was generated.
        (200, {"choices": [{"text": "b", "logprobs": None}]}),
        (200, {"choices": [{"text": "b", "logprobs": {"content": [{"logprob": -1.5}]}}]}),
        (200, {"choices": [{"text": "b", "logprobs": {"token_logprobs": [-1.5]}}]}),
    ],
)
def test_servers_without_log_probabilities_of_prompts(status: int, body: Any, waits: list[float]) -> None:
    with serving() as server:
        server.answers["/v1/completions"] = [(status, {}, json.dumps(body).encode())]
        engine = connect(server.url)
        assert waits == []
        assert engine.facts.can == frozenset()
        asked = len(server.requests)
        with pytest.raises(RefusedError) as caught:
            engine.losses([5, 6, 7])
        assert caught.value.code == "no-logprobs"
        assert "vLLM and SGLang" in str(caught.value.hint)
        assert len(server.requests) == asked
        assert engine.decode(engine.generate(ids_of("a"), 2)) == "bc"


def test_a_tokenizer_that_isnt_the_models() -> None:
    """A server that refuses the ids themselves isn't one that refuses to echo them."""
    said = b'{"error": {"message": "Token id 1126 is out of vocabulary"}}'
    with serving() as server:
        server.answers["/v1/completions"] = [(400, {}, said)] * 2
        with pytest.raises(StatusError, match="out of vocabulary"):
            connect(server.url, tokenizer=DEMO / "checkpoint")


def test_never_whole_distributions(server: StandIn) -> None:
    engine = connect(server.url)
    with pytest.raises(RefusedError) as caught:
        engine.log_probs([1, 2, 3])
    assert caught.value.code == "no-logprobs"


@pytest.mark.parametrize(
    "values", [[None, -1.0, None], [None, -1.0, math.nan], [None, -1.0], [-1.0, -1.0, -1.0], [None] + [-1.0] * 4]
)
def test_losses_that_arent_those_of_the_prompt(values: list[float | None]) -> None:
    with serving() as server:
        engine = connect(server.url)
        answer = {"choices": [{"logprobs": {"token_logprobs": values}}]}
        server.answers["/v1/completions"] = [(200, {}, json.dumps(answer).encode())]
        with pytest.raises(CtxextendError) as caught:
            engine.losses([5, 6, 7])
        assert caught.value.code == "bad-answer"


def test_too_long(server: StandIn) -> None:
    engine = connect(server.url)
    asked = len(server.requests)
    for wrong in (lambda: engine.losses([5] * CONTEXT), lambda: engine.generate([5] * 60, 5)):
        with pytest.raises(UsageError) as caught:
            wrong()
        assert caught.value.code == "too-long"
        assert str(caught.value.hint).startswith(f"--length {CONTEXT - 1}, or serve it with a longer context (--max-")
    # Known without asking.
    assert len(server.requests) == asked
    assert len(engine.losses([5] * (CONTEXT - 1))) == CONTEXT - 2
    with pytest.raises(UsageError, match="nothing predicts"):
        engine.losses([5, 6], first=0)


def test_too_long_as_the_server_says_it(server: StandIn) -> None:
    cards = {"data": [{"id": "demo", "owned_by": server.kind}]}
    server.answers["/v1/models"] = [(200, {}, json.dumps(cards).encode())]
    engine = connect(server.url)
    assert engine.facts.context is None
    with pytest.raises(UsageError) as caught:
        engine.losses([5] * 70)
    assert caught.value.code == "too-long"
    assert "context length" in str(caught.value.found)
    said = b'{"error": {"message": "The decoder prompt (length 70) is longer than the maximum model length of 64."}}'
    server.answers["/v1/completions"] = [(400, {}, said), (413, {}, b"too large for the context size"), (400, {}, b"")]
    for code in ("too-long", "too-long", "server-failed"):
        with pytest.raises(CtxextendError) as other:
            engine.generate([5], 1)
        assert other.value.code == code


def test_which_model() -> None:
    with serving(models=("one", "two")) as server:
        with pytest.raises(UsageError) as caught:
            connect(server.url)
        assert (caught.value.code, caught.value.found, caught.value.hint) == (
            "no-model",
            "one, two",
            "--served-name one",
        )
        engine = connect(server.url, model="two")
        engine.generate([5], 1)
        assert server.asked("/v1/completions")[-1]["model"] == "two"
        with pytest.raises(UsageError) as caught:
            connect(server.url, model="three")
        assert caught.value.found == "one, two"
        # A server that has no list of models, and one that doesn't know what the list says.
        server.answers["/v1/models"] = [(404, {}, b"")]
        assert connect(server.url, model="two").facts.context is None
        server.answers["/v1/models"] = [(404, {}, b"")]
        with pytest.raises(StatusError) as absent:
            connect(server.url, model="four")
        assert (absent.value.status, absent.value.code) == (404, "not-found")
        server.answers["/v1/models"] = [(200, {}, b'{"data": []}')]
        with pytest.raises(UsageError, match="no model"):
            connect(server.url)
    with serving(models=("one", "adapter")) as server:
        assert connect(server.url).facts.context == CONTEXT


def test_a_key_is_sent_and_never_shown() -> None:
    with serving(key=SECRET) as server:
        assert connect(server.url, token=SECRET).generate(ids_of("a"), 1) == ids_of("b")
        assert {token for _path, token, _body in server.requests} == {f"Bearer {SECRET}"}
        with pytest.raises(CtxextendError) as caught:
            connect(server.url)
        assert caught.value.code == "unauthorized"
        # The stand-in repeats what it was given.
        with pytest.raises(CtxextendError) as caught:
            connect(server.url, token=f"{SECRET}-but-old")
        assert caught.value.code == "unauthorized"
        assert "***" in str(caught.value.found)
        assert SECRET not in str(caught.value.details())
        server.answers["/v1/models"] = [(403, {}, b"")]
        with pytest.raises(CtxextendError) as caught:
            connect(server.url, token=SECRET)
        assert caught.value.code == "unauthorized"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://api.example.com/v1", True),
        ("http://localhost:8000", True),
        ("http://127.0.0.2:8000", True),
        ("http://[::1]:8000", True),
        ("http://10.1.2.3", True),
        ("http://192.168.1.5:30000/v1", True),
        ("http://[fd00::5]", True),
        ("http://8.8.8.8", False),
        ("http://api.example.com/v1", False),
        ("http://127.0.0.1.example.com", False),
        ("http://localhost.example.com", False),
        ("http://10.1.2.3@example.com", False),
        ("ftp://localhost", False),
        ("http://", False),
    ],
)
def test_where_a_key_of_the_environment_may_go(url: str, safe: bool) -> None:
    assert may_send(url) is safe


def test_it_needs_no_torch() -> None:
    """In a process of its own: a tokenizer.json is all that is read here."""
    script = (
        "import sys; from ctxextend.lab.engines import endpoint; from pathlib import Path\n"
        "endpoint.Tokenizer(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(DEMO / "checkpoint")], check=True)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_isnt_followed(status: int) -> None:
    with serving() as other, serving() as server:
        server.answers["/v1/models"] = [(status, {"Location": f"{other.url}/v1/models"}, b"")]
        with pytest.raises(StatusError) as caught:
            connect(server.url, token=SECRET)
        assert caught.value.code == "redirected"
        assert other.url in str(caught.value.hint)
        assert other.requests == []


def test_busy_servers_are_asked_again(waits: list[float]) -> None:
    with serving() as server:
        engine = connect(server.url)
        server.answers["/v1/completions"] = [(429, {"Retry-After": "7"}, b""), (503, {}, b"loading"), (500, {}, b"")]
        assert engine.generate(ids_of("a"), 1) == ids_of("b")
        assert waits == [7.0, 1.0, 2.0]
        waits.clear()
        server.answers["/v1/completions"] = [(500, {}, b'{"detail": "boom"}')] * 5
        with pytest.raises(StatusError) as caught:
            engine.generate(ids_of("a"), 1)
        assert waits == [0.5, 1.0, 2.0]
        assert len(server.answers["/v1/completions"]) == 1
        assert (caught.value.status, caught.value.found) == (500, "500 boom")
        waits.clear()
        server.answers["/v1/completions"] = [(429, {"Retry-After": "86400"}, b"")]
        engine.generate(ids_of("a"), 1)
        assert waits == [30.0]
        waits.clear()
        server.answers["/v1/completions"] = [(418, {}, b"tea")]
        with pytest.raises(StatusError, match="tea"):
            engine.generate(ids_of("a"), 1)
        assert waits == []


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[1, 2]", b"\xff\xfe", b""])
def test_answers_that_arent_json(body: bytes) -> None:
    with serving() as server:
        server.answers["/v1/models"] = [(200, {}, body)]
        with pytest.raises(CtxextendError) as caught:
            connect(server.url)
        assert caught.value.code == "bad-answer"
        server.answers["/v1/models"] = [(200, {}, b'{"data": {"demo": 1}}')]
        with pytest.raises(CtxextendError) as caught:
            connect(server.url)
        assert caught.value.code == "bad-answer"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/tokenize", b'{"tokens": "a b"}'),
        ("/detokenize", b'{"tokens": [1]}'),
        ("/v1/completions", b'{"choices": []}'),
        ("/v1/completions", b'{"choices": [{"logprobs": null}]}'),
    ],
)
def test_answers_without_what_was_asked(path: str, answer: bytes) -> None:
    with serving() as server:
        engine = connect(server.url)
        server.answers[path] = [(200, {}, answer)]
        asking: dict[str, Callable[[], object]] = {
            "/tokenize": lambda: engine.encode("a"),
            "/detokenize": lambda: engine.decode([5]),
            "/v1/completions": lambda: engine.generate([5], 1),
        }
        with pytest.raises(CtxextendError) as caught:
            asking[path]()
        assert caught.value.code == "bad-answer"


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(CtxextendError) as caught:
        connect(f"http://127.0.0.1:{port}", token=SECRET)
    assert (caught.value.code, caught.value.exit_code) == ("network", 1)
    assert f"127.0.0.1:{port}" in str(caught.value.found)


def test_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(CtxextendError) as caught:
            connect(address, timeout=0.2)
    assert caught.value.code == "timeout"


def test_a_connection_that_breaks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _address = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(CtxextendError) as caught:
            connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert caught.value.code == "network"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://localhost", "file:///etc/hostname", "", "http://", f"http://me:{SECRET}@localhost"]
)
def test_addresses_that_arent_servers(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        connect(url)
    assert caught.value.code == "bad-url"
    assert SECRET not in str(caught.value.details())


def test_a_proxy_isnt_asked_for_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving() as server:
        assert HttpJson(server.url, token=None, timeout=5).get("/version") == {"version": "0.30.0"}


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-server itself, on the demo checkpoint."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    source = open_source(DEMO / "checkpoint")
    plan = plan_source(source, Recipe(to="gguf", outtypes=("f32",)))
    file = run_plan(plan, source, tmp_path_factory.mktemp("gguf") / "demo.gguf")[0]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.port = 256, 1, 0
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    parameters.api_keys = [SECRET]
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server


def test_llama_server_for_real(llama_server: str) -> None:
    engine: EndpointEngine = connect(llama_server, token=SECRET)
    facts = engine.facts
    assert facts.engine == f"llamacpp at {llama_server}"
    assert (facts.context, facts.vocabulary, facts.dtype) == (256, 2048, "all F32")
    assert facts.opening == ()
    assert facts.can == frozenset()
    text = (DEMO / "heldout.txt").read_text(encoding="utf-8")[:300]
    tokens = read_tokens(DEMO / "checkpoint", text)
    assert engine.encode(text) == tokens
    assert engine.decode(tokens) == text
    # A text's own "</s>" is only letters.
    assert 1 not in engine.encode("</s>")
    model = load_model(DEMO / "checkpoint")
    before = engine.usage.tokens
    expected = model.generate(torch.tensor([tokens]), max_new_tokens=16, do_sample=False)[0, len(tokens) :].tolist()
    assert engine.generate(tokens, 16) == expected
    assert engine.usage.tokens - before == len(tokens) + 16
    # The same again: all but the last token of the prompt was kept.
    before = engine.usage.tokens
    engine.generate(tokens, 16)
    assert engine.usage.tokens - before < len(tokens)
    with pytest.raises(RefusedError) as caught:
        engine.losses(tokens)
    assert caught.value.code == "no-logprobs"


def test_llama_servers_own_refusals(llama_server: str) -> None:
    with pytest.raises(CtxextendError) as caught:
        connect(llama_server, token="wrong")
    assert caught.value.code == "unauthorized"
    engine = connect(llama_server, token=SECRET)
    with pytest.raises(UsageError) as long:
        engine._completions.ask([5] * 300, 1)
    assert long.value.code == "too-long"
    assert "256 tokens" in str(long.value.found)
