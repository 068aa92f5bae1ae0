"""smoke and eval through a server: llama-server for real, and one that tells losses by a stand-in."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from ctxextend import Recipe, open_source, plan_source, run_plan
from ctxextend.errors import UsageError
from ctxextend.lab.engines import Choice
from ctxextend.lab.results import Settings
from ctxextend.lab.verbs import eval_source, smoke_source
from tests.lab.demo import DEMO
from tests.lab.stand_in_server import CONTEXT, serving

HELDOUT = str(DEMO / "heldout.txt")


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-server on the demo checkpoint, extended to 1024 tokens."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    source = open_source(DEMO / "checkpoint")
    plan = plan_source(source, Recipe(method="yarn", target=1024, to="gguf", outtypes=("f32",)))
    file = run_plan(plan, source, tmp_path_factory.mktemp("gguf") / "demo.gguf")[0]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.port = 1024, 1, 0
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server


def test_llama_server_reads_to_the_end(llama_server: str) -> None:
    source = open_source(DEMO / "checkpoint")
    report = smoke_source(source, length=1024, choice=Choice(endpoint=llama_server), texts=[HELDOUT])
    skipped = {check.name for check in report.checks if check.skipped}
    assert skipped >= {"rope", "decoding", "cached"}
    # The folder that is named states 256 tokens; what is served was extended, and reads on.
    assert [check.name for check in report.checks if not check.ok] == ["positions"]
    assert report.length == 1023
    assert report.tokens > 1000


def test_keys_are_asked_of_llama_server(llama_server: str) -> None:
    settings = Settings(tasks=("passkey",), lengths=(256, 1024), depths=(0.5,), samples=1)
    found = eval_source(
        open_source(DEMO / "checkpoint"), settings, choice=Choice(endpoint=llama_server), texts=[HELDOUT]
    )
    assert found is not None
    assert [(rate.length, rate.asked) for rate in found.rates if rate.depth is None] == [(256, 1), (1024, 1)]


def test_perplexities_of_a_server_leave_room_for_its_token() -> None:
    def evaluated(length: int) -> Any:
        with serving("vllm") as server:
            return eval_source(
                open_source(DEMO / "checkpoint"),
                Settings(tasks=("perplexity",), lengths=(length,), windows=1),
                choice=Choice(endpoint=server.url),
                texts=[HELDOUT],
            )

    with pytest.raises(UsageError) as error:
        evaluated(CONTEXT)
    assert (error.value.key, error.value.expected) == ("--lengths", f"at most {CONTEXT - 1} tokens")
    assert evaluated(CONTEXT - 1).curves[0].length == CONTEXT - 1
