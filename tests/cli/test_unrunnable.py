"""What smoke, eval, compare and ``convert --smoke`` refuse to run, as a user sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import DEMO, LLAMA, build, call, contents, run
from tests.lab.without_rope import BART, BERT, GPT2, ROWS, saved

TEXT = ("--text", DEMO.parent / "heldout.txt")
LONGER = "200"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bert") / "bert", "bert", BERT)


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bart") / "bart", "bart", BART)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with a learned table."""
    folder = tmp_path_factory.mktemp("table")
    file = folder / "table.gguf"
    call("convert", saved(folder / "gpt2", "gpt2", GPT2), "--to", "gguf", "--outtype", "f32", "--out", file, code=0)
    return file


def refused(*args: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = call(*args, "--json", code=3).json
    assert found["hint"], found
    return found


@pytest.mark.parametrize("verb", [("smoke",), ("eval", "--lengths", "64"), ("compare", "--lengths", LONGER)])
@pytest.mark.parametrize("kind", ["encoder", "translator"])
def test_what_predicts_no_next_token(request: pytest.FixtureRequest, verb: tuple[str, ...], kind: str) -> None:
    source = request.getfixturevalue(kind)
    found = refused(*verb, source, *TEXT)
    assert (found["code"], found["file"]) == ("no-next-token", str(source))


@pytest.mark.parametrize("kind", ["encoder", "translator"])
@pytest.mark.parametrize("to", [(), ("--target", LONGER)])
def test_a_conversion_of_it_is_not_written_to_be_run(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, to: tuple[str, ...]
) -> None:
    source = request.getfixturevalue(kind)
    before = contents(source)
    to = to or ("--target", str(ROWS))
    assert refused("convert", source, *to, "--out", tmp_path / "out", "--smoke")["code"] == "no-next-token"
    assert not list(tmp_path.iterdir())
    assert contents(source) == before


def test_a_type_without_a_class_is_not_written_to_be_run(tmp_path: Path) -> None:
    """The language model of a wrapper, which transformers makes no model of that goes on from a text."""
    source = build(tmp_path / "source", {**LLAMA, "model_type": "molmo2_text"})
    found = refused("convert", source, "--method", "linear", "--target", "1k", "--out", tmp_path / "out", "--smoke")
    assert (found["code"], found["found"]) == ("no-next-token", "molmo2_text")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_llama_cpp_is_asked_for_no_row_that_a_table_has_not(table: Path) -> None:
    """It would end the whole process, so that these are processes of their own."""
    report = run("smoke", table, "--length", LONGER, *TEXT, "--json", code=4).json
    assert [(check["name"], check["ok"]) for check in report["checks"]] == [("positions", False)]
    assert f"{ROWS} tokens" in report["checks"][0]["detail"]
    found = run("eval", table, "--lengths", f"64,{LONGER}", *TEXT, "--json", code=3).json
    assert (found["code"], found["expected"]) == ("past-positions", f"at most {ROWS} tokens")
    assert "--to gguf" in found["hint"]
    run("smoke", table, *TEXT, "--no-passkey", code=0)
