"""A server on the loopback that answers in the documented forms of vLLM and SGLang, which can't be run here.

Forms: vLLM 0.2x and 0.30 (/v1/models, /v1/completions with echo, /tokenize, /detokenize, /version), SGLang 0.5
(/v1/models, /v1/completions, /v1/tokenize, /v1/detokenize, /server_info). The model behind it is a rule of two
numbers that a test can work out by hand.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

#: Token ids: 0 begins a text, 1 ends it, a byte is its value and two.
BEGINNING, END = 0, 1
CONTEXT = 64


def log_prob(before: int, token: int) -> float:
    """Of ``token`` after ``before``."""
    return -((before * 31 + token * 17) % 100 + 1) / 50


def following(token: int) -> int:
    """What the model says next: the next letter, and an end after z."""
    return END if token == ord("z") + 2 else token + 1


class StandIn(ThreadingHTTPServer):
    """``requests`` keeps (path, token of the header, body); what stands in ``answers`` for a path comes first.

    An answer is (status, headers, bytes).
    """

    daemon_threads = True

    def __init__(self, kind: str, models: Sequence[str] = ("demo",), key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind = kind
        self.models = models
        self.key = key
        self.requests: list[tuple[str, str | None, Any]] = []
        self.answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, path: str) -> list[Any]:
        return [body for asked, _token, body in self.requests if asked == path]


@contextmanager
def serving(kind: str = "vllm", **settings: Any) -> Iterator[StandIn]:
    with StandIn(kind, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *_args: Any) -> None:
        pass

    def _answer(self, body: Any) -> None:
        server = self.server
        authorization = self.headers.get("Authorization")
        server.requests.append((self.path, authorization, body))
        if server.answers.get(self.path):
            self._send(*server.answers[self.path].pop(0))
        elif server.key is not None and authorization != f"Bearer {server.key}":
            self._send_json(401, {"error": f"Unauthorized: {authorization}"})
        else:
            self._send_json(*_route(server, self.path, body))

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            # The client has gone.
            self.close_connection = True


def _route(server: StandIn, path: str, body: Any) -> tuple[int, Any]:
    sglang = server.kind == "sglang"
    prefix = "/v1" if sglang else ""
    if path == "/v1/models":
        return 200, {"object": "list", "data": [_card(server, name) for name in server.models]}
    if path == ("/server_info" if sglang else "/version"):
        return 200, {"version": "0.5.12" if sglang else "0.30.0"}
    if path == f"{prefix}/tokenize":
        ids = [byte + 2 for byte in body["prompt"].encode()]
        ids = [BEGINNING, *ids] if body["add_special_tokens"] else ids
        return 200, {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids}
    if path == f"{prefix}/detokenize":
        text = bytes(token - 2 for token in body["tokens"] if token > END).decode()
        return 200, {"text" if sglang else "prompt": text}
    if path == "/v1/completions":
        return _complete(server, body)
    return 404, {"detail": "Not Found"}


def _card(server: StandIn, name: str) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": 1, "owned_by": server.kind, "root": name, "parent": None}
    if name.startswith("adapter"):
        return {**card, "parent": server.models[0], "max_model_len": None}
    return {**card, "max_model_len": CONTEXT}


def _complete(server: StandIn, body: Any) -> tuple[int, Any]:
    prompt, count = body["prompt"], body["max_tokens"]
    if body["model"] not in server.models:
        return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
    if len(prompt) + count > CONTEXT:
        return 400, _too_long(server, len(prompt), count)
    assert body["temperature"] == 0
    made: list[int] = []
    while len(made) < count and END not in made:
        made.append(following((prompt + made)[-1]))
    text = bytes((token - 2) % 256 for token in made if token > END).decode(errors="replace")
    logprobs = None
    if body.get("logprobs"):
        whole = prompt + made
        values = [None, *(log_prob(a, b) for a, b in pairwise(whole))]
        shown = values if body.get("echo") else values[len(prompt) :]
        logprobs = {"tokens": ["?"] * len(shown), "token_logprobs": shown, "text_offset": [], "top_logprobs": []}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(made), "prompt_tokens_details": None}
    reason = "stop" if END in made else "length"
    return 200, {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}], "usage": usage}


def _too_long(server: StandIn, length: int, count: int) -> Any:
    if server.kind == "sglang":
        said = f"The input ({length} tokens) is longer than the model's context length ({CONTEXT} tokens)."
        return {"object": "error", "message": said, "type": "BadRequest", "code": 400}
    said = f"This model's maximum context length is {CONTEXT} tokens. However, you requested {length + count} tokens."
    return {"error": {"message": said, "type": "BadRequestError", "param": None, "code": 400}}
