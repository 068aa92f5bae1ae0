"""``ctxextend eval`` as a user calls it: the document, the report, going on after an interrupt, bounds, wrong calls."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ctxextend.lab.ledger import Ledger
from tests.cli.support import DEMO, Ran, call, driven, finish, read_json, run, tree

pytestmark = pytest.mark.usefixtures("demo_is_left_alone")

TEXT = ("--text", DEMO.parent / "heldout.txt")
#: Two windows at each of two lengths, and a pass key at each depth and length.
SMALL = (*TEXT, "--lengths", "256,512", "--windows", "2", "--depths", "0.2,0.8", "--samples", "1")
CELLS = 2 * 2 + 2 * 2
#: The least there is to measure.
ONE = (*TEXT, "--lengths", "512", "--windows", "1", "--tasks", "perplexity")

#: A seed with which Python has the capabilities of an engine in no alphabetical order.
UNSORTED = "1"

#: After its first result the command waits to be ended.
SLOW = """
import time
from ctxextend.lab.ledger import Ledger
true = Ledger.add
def add(self, *args, **more):
    true(self, *args, **more)
    time.sleep(60)
Ledger.add = add
"""


class Reported(NamedTuple):
    """A run with a report: what it said, and where its report lies."""

    ran: Ran
    folder: Path

    @property
    def document(self) -> Any:
        return read_json(self.folder / "eval.json")

    @property
    def cells(self) -> list[Any]:
        """The header and every result, without what it cost."""
        lines = map(json.loads, (self.folder / "cells.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in ("seconds", "tokens")} for line in lines]


@pytest.fixture(scope="module")
def yarn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint at four times its length, which no test changes."""
    out = tmp_path_factory.mktemp("made") / "yarn"
    call("convert", DEMO, "--method", "yarn", "--target", "1k", "--out", out, code=0)
    return out


@pytest.fixture(scope="module")
def whole(yarn: Path, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A run that nobody ended, in a process of its own. Its folder isn't changed."""
    folder = tmp_path_factory.mktemp("whole") / "new" / "report"
    return Reported(run("eval", yarn, *SMALL, "--report", folder, code=0, PYTHONHASHSEED=UNSORTED), folder)


@pytest.fixture(scope="module")
def gated() -> Ran:
    """The untouched model past its length, held to every default, as JSON."""
    args = ("--lengths", "1k", "--windows", "1", "--tasks", "perplexity", "--short-lengths", "128")
    return call("eval", DEMO, *TEXT, *args, "--against", DEMO, "--gate", "--json", code=4)


def figures(document: Any) -> Any:
    """What was measured, without what it cost."""
    return {key: value for key, value in document.items() if key not in ("cost", "engine")}


def error_of(source: str | Path, *args: str | Path, code: int) -> dict[str, Any]:
    ran = call("eval", source, *args, "--json", code=code)
    found = dict(ran.json)
    assert (found["schema"], found["exit_code"]) == ("ctxextend.error/1", code)
    assert found["code"] != "bug", found
    assert found.get("hint") or found.get("expected"), found
    return found


def test_the_document(whole: Reported) -> None:
    document = whole.document
    assert (document["schema"], document["ok"], document["method"]) == ("ctxextend.eval/1", True, "yarn")
    assert (document["trained_context"], document["current_context"]) == (256, 1024)
    assert [(curve["length"], curve["windows"]) for curve in document["curves"]] == [(256, 2), (512, 2)]
    within, past = document["curves"]
    assert within["ratio"] is None
    assert 0.5 < past["ratio"] < 1.5
    assert past["points"][-1]["end"] == 512
    overall = [rate for rate in document["rates"] if rate["depth"] is None]
    assert [(rate["kind"], rate["length"], rate["asked"]) for rate in overall] == [
        ("passkey", 256, 2),
        ("passkey", 512, 2),
    ]
    assert (document["cost"]["cells"], document["against"], document["short"]) == (CELLS, None, [])
    assert document["gates"] == []
    # The same run gives the same bytes, whatever order Python has its sets in today.
    assert document["engine"]["can"] == ["log_probs", "losses"]


def test_the_report(whole: Reported, yarn: Path) -> None:
    names = {path.name for path in whole.folder.iterdir()}
    assert {"report.html", "eval.json", "cells.jsonl", "perplexity.png"} <= names
    assert all((whole.folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in names if name.endswith("png"))
    page = (whole.folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert f"{yarn.name}</h1>" in page
    header, *results = whole.cells
    assert header["schema"] == "ctxextend.cells/1"
    assert len(results) == CELLS
    # Nothing half-written, nothing that only the program needs.
    assert all(name.endswith((".html", ".json", ".jsonl", ".png")) for name in names)


def test_the_page(whole: Reported, yarn: Path) -> None:
    assert whole.ran.out.splitlines()[0] == f"{yarn}: trained 256, set for 1024 tokens with yarn"
    assert "perplexity up to each position" in whole.ran.out
    assert "passkey 512" in whole.ran.out
    assert "\x1b" not in whole.ran.out + whole.ran.err
    first, cost, last = whole.ran.err.splitlines()
    assert first == "loading the model ..."
    assert re.match(rf"{CELLS} measurements: \d+ tokens to read, about [\d.e-]+ TFLOP$", cost)
    assert last == f"the report: {whole.folder / 'report.html'}"


def test_what_was_measured_is_kept(whole: Reported, yarn: Path) -> None:
    before = (whole.folder / "cells.jsonl").read_bytes()
    document = whole.document
    again = call("eval", yarn, *SMALL, "--report", whole.folder, code=0)
    assert f"{CELLS} measurements, {CELLS} of them kept from an earlier run: 0 tokens to read" in again.err
    assert (whole.folder / "cells.jsonl").read_bytes() == before
    assert figures(whole.document) == figures(document)


def test_what_a_run_would_cost_counts_what_is_kept(whole: Reported, yarn: Path) -> None:
    before = tree(whole.folder)
    plan = call("eval", yarn, *SMALL, "--report", whole.folder, "--dry-run", "--json", code=0).json
    assert tree(whole.folder) == before
    assert (plan["cells"], plan["kept"], plan["tokens"]) == (CELLS, CELLS, 0)


def terminated(folder: Path, *args: str | Path) -> Ran:
    """A run in a process of its own, ended from outside once the folder holds the header and a result."""
    process = driven(SLOW, *args)
    cells, until = folder / "cells.jsonl", time.monotonic() + 90
    while not (cells.exists() and cells.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    return finish(process)


def interrupted(*args: str | Path) -> Ran:
    """A run in this process that meets Ctrl-C after its first result."""
    add, handler = Ledger.add, signal.signal(signal.SIGINT, signal.default_int_handler)

    def add_and_end(ledger: Ledger, *given: Any, **more: Any) -> None:
        add(ledger, *given, **more)
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Ledger, "add", add_and_end)
            return call(*args)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_run_that_was_ended_goes_on(whole: Reported, yarn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    args = ("eval", yarn, *SMALL, "--report", folder)
    first = terminated(folder, *args, "--json")
    assert (first.code, first.err) == (130, "")
    assert (first.json["schema"], first.json["code"]) == ("ctxextend.error/1", "interrupted")
    assert [path.name for path in folder.iterdir()] == ["cells.jsonl"]
    assert len((folder / "cells.jsonl").read_text().splitlines()) == 2
    # It goes on from there: one result more.
    second = interrupted(*args)
    assert (second.code, second.out) == (130, "")
    assert f"{CELLS} measurements, 1 of them kept from an earlier run" in second.err
    assert [path.name for path in folder.iterdir()] == ["cells.jsonl"]
    assert len((folder / "cells.jsonl").read_text().splitlines()) == 3
    # A machine that stopped in the middle of a line.
    with (folder / "cells.jsonl").open("a") as cells:
        cells.write('{"task":"perplexity","cell":{"ta')
    found = Reported(call(*args, code=0), folder)
    assert f"{CELLS} measurements, 2 of them kept from an earlier run" in found.ran.err
    assert figures(found.document) == figures(whole.document)
    assert found.cells == whole.cells
    # What is kept is told, for whoever thinks that hours are lost.
    assert str(folder) in first.out
    assert str(folder) in second.err.partition("error: interrupted")[2]


def test_results_of_another_run_are_not_mixed(yarn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    call("eval", yarn, *ONE, "--report", folder, code=0)
    before = tree(folder)
    for source, *other in ((DEMO,), (yarn, "--seed", "2"), (yarn, "--dtype", "bfloat16")):
        found = error_of(source, *ONE, *other, "--report", folder, code=3)
        assert (found["code"], found["file"]) == ("other-results", str(folder / "cells.jsonl"))
        assert "--force" in found["hint"]
    assert tree(folder) == before
    call("eval", DEMO, *ONE, "--report", folder, "--force", code=0)
    assert read_json(folder / "eval.json")["source"] == str(DEMO)


def test_more_of_the_same_takes_what_is_there(yarn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    call("eval", yarn, *ONE, "--report", folder, code=0)
    ran = call(
        "eval", yarn, *TEXT, "--lengths", "256,512", "--windows", "1", "--tasks", "perplexity", "--report", folder
    )
    assert "2 measurements, 1 of them kept from an earlier run" in ran.err


def test_the_untouched_model_misses_its_bounds(gated: Ran) -> None:
    document = gated.json
    assert (document["schema"], document["ok"]) == ("ctxextend.eval/1", False)
    assert not gated.err
    gates = {gate["name"]: gate for gate in document["gates"]}
    assert list(gates) == ["perplexity-ratio", "short-regression", "kl", "same-top"]
    assert [name for name, gate in gates.items() if not gate["ok"]] == ["perplexity-ratio"]
    assert gates["perplexity-ratio"]["measured"] == document["curves"][0]["ratio"] > 2
    # Against itself nothing was lost.
    assert (gates["short-regression"]["measured"], gates["kl"]["measured"], gates["same-top"]["measured"]) == (
        pytest.approx(0, abs=1e-9),
        pytest.approx(0, abs=1e-6),
        1,
    )


def test_a_bound_that_is_missed_is_told_with_its_figure(gated: Ran) -> None:
    args = ("--lengths", "1k", "--windows", "1", "--tasks", "perplexity")
    ran = call("eval", DEMO, *TEXT, *args, "--max-perplexity-ratio", "1.5", code=4)
    told = ran.err.partition("error: ")[2]
    assert told.startswith("1 of 1 bounds missed: perplexity-ratio\n")
    assert "--max-perplexity-ratio" in told
    assert "expected: at most 1.5\n" in told
    assert f"found: {gated.json['curves'][0]['ratio']:.4g} at 1k" in told
    assert "missed" in ran.out
    assert "error" not in ran.out


def test_every_bound_by_its_option(yarn: Path) -> None:
    small = (*TEXT, "--lengths", "1k", "--windows", "1", "--depths", "0.5", "--samples", "1", "--needles", "2")
    args = (*small, "--tasks", "perplexity,passkey,needles", "--short-lengths", "128", "--against", DEMO)
    strict = {
        "--max-perplexity-ratio": ("perplexity-ratio", "0.001"),
        "--min-passkey": ("passkey", "1"),
        "--min-needles": ("needles", "1"),
        "--max-short-regression": ("short-regression", "0.0001"),
        "--max-kl": ("kl", "0.0001"),
        "--min-same-top": ("same-top", "1"),
    }
    asked = [part for option, (_name, bound) in strict.items() for part in (option, bound)]
    ran = call("eval", yarn, *args, *asked, "--json", code=4)
    gates = {gate["name"]: gate for gate in ran.json["gates"]}
    assert {name: gate["bound"] for name, gate in gates.items()} == {
        name: float(bound) for name, bound in strict.values()
    }
    assert not any(gate["ok"] for gate in gates.values())
    loose = ["100", "0", "0", "100", "100", "0"]
    asked = [part for option, bound in zip(strict, loose, strict=True) for part in (option, bound)]
    assert call("eval", yarn, *args, *asked, "--json", code=0).json["ok"] is True


def test_a_bound_that_nothing_was_measured_for_is_missed(yarn: Path) -> None:
    ran = call("eval", yarn, *ONE, "--min-needles", "0.1", code=4)
    assert "1 of 1 bounds missed: needles" in ran.err
    assert "nothing was measured for it" in ran.err


@pytest.mark.parametrize("option", ["--max-perplexity-ratio", "--max-short-regression", "--max-kl", "--min-same-top"])
def test_a_bound_that_is_no_number(yarn: Path, option: str) -> None:
    for bound in ("nan", "x"):
        found = error_of(yarn, *ONE, option, bound, "--dry-run", code=2)
        assert option in (found.get("key") or found["message"])


@pytest.mark.parametrize("option", ["--min-passkey", "--min-needles", "--min-same-top"])
@pytest.mark.parametrize("bound", ["-1", "2"])
def test_a_share_lies_between_0_and_1(yarn: Path, option: str, bound: str) -> None:
    found = error_of(yarn, *ONE, option, bound, "--dry-run", code=2)
    assert option in (found.get("key") or found["message"])


def test_against_what_it_was(yarn: Path) -> None:
    args = (*ONE, "--short-lengths", "128")
    recorded = call("eval", yarn, *args, "--against", "original", "--json", code=0).json
    named = call("eval", yarn, *args, "--against", DEMO, "--json", code=0).json
    assert (recorded["against"], named["against"]) == ("original", str(DEMO))
    (one,), (other,) = recorded["short"], named["short"]
    assert one == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in other.items()}
    # yarn without training changes short contexts a little.
    assert 0 < one["kl"] < 1


def test_against_what_nobody_recorded(tmp_path: Path) -> None:
    found = error_of(DEMO, *ONE, "--against", "original", "--report", tmp_path / "report", code=2)
    assert "--against BASE" in found["hint"]
    assert not list(tmp_path.iterdir())
    assert error_of(DEMO, *ONE, "--against", tmp_path / "nothing", code=1)["file"] == str(tmp_path / "nothing")
    assert error_of(DEMO, *TEXT, "--tasks", "short", code=2)["key"] == "--tasks"


def test_a_dry_run_measures_and_writes_nothing(yarn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = call("eval", yarn, *SMALL, "--report", tmp_path / "report", "--dry-run", code=0)
    assert re.fullmatch(rf"{CELLS} measurements: \d+ tokens to read, about [\d.e-]+ TFLOP\n", ran.out)
    plan = call("eval", yarn, *SMALL, "--report", tmp_path / "report", "--dry-run", "--json", code=0).json
    assert (plan["schema"], plan["cells"], plan["kept"]) == ("ctxextend.eval-plan/1", CELLS, 0)
    assert f" {plan['tokens']} tokens" in ran.out
    # Each window and each prompt once, and past the trained length again with no more than that before.
    assert plan["tokens"] >= 4 * 256 + 4 * 512
    assert not list(tmp_path.iterdir())


def test_without_a_report_nothing_is_written(yarn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(yarn)
    ran = call("eval", yarn, *ONE, "--json", code=0)
    assert ran.json["curves"][0]["length"] == 512
    assert not ran.err
    assert tree(yarn) == before
    assert not list(tmp_path.iterdir())


def test_quiet(yarn: Path) -> None:
    assert not call("eval", yarn, *ONE, "-q", code=0).err


def test_gguf_files_give_the_same_figures(yarn: Path, tmp_path: Path, excerpt: tuple[str, Path]) -> None:
    one = (*excerpt, *ONE[2:])
    args = ("--method", "yarn", "--target", "1k", "--to", "gguf", "--outtype", "f32")
    call("convert", DEMO, *args, "--out", tmp_path / "yarn.gguf", code=0)
    file = run("eval", tmp_path / "yarn.gguf", *one, "--json", code=0)
    assert not file.err
    folder = call("eval", yarn, *one, "--json", code=0).json
    (ours,), (theirs,) = folder["curves"], file.json["curves"]
    assert ours["whole"] == pytest.approx(theirs["whole"], rel=2e-3)
    assert ours["ratio"] == pytest.approx(theirs["ratio"], rel=2e-3)
    assert file.json["engine"]["engine"] == "llama.cpp"
    # Its record says so, as that of a folder does.
    assert file.json["method"] == folder["method"] == "yarn"


def test_names_of_tasks(yarn: Path) -> None:
    found = error_of(yarn, *ONE, "--tasks", "perplexty", code=2)
    assert "did you mean perplexity" in found["hint"]
    assert error_of(yarn, *ONE, "--tasks", "nonsense", code=2)["found"] == "nonsense"
    assert error_of(yarn, *ONE, "--tasks", ",", code=2)["key"] == "--tasks"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--depths", "2"),
        ("--depths", "-0.1"),
        ("--depths", "nan"),
        ("--depths", ""),
        ("--lengths", "0"),
        ("--lengths", "abc"),
        ("--lengths", ","),
        ("--short-lengths", "-5"),
        ("--windows", "0"),
        ("--samples", "0"),
        ("--stride", "0"),
        ("--needles", "0"),
        ("--seed", "-1"),
        ("--engine", "nosuch"),
        ("--dtype", "float7"),
        ("--engine", "llama.cpp"),
    ],
)
def test_a_wrong_value(yarn: Path, option: str, value: str) -> None:
    found = error_of(yarn, *TEXT, option, value, "--dry-run", code=2)
    assert option in (found.get("key") or found["message"])


def test_a_text_too_short_for_the_length(yarn: Path, tmp_path: Path) -> None:
    report = ("--report", tmp_path / "report")
    found = error_of(yarn, *TEXT, "--lengths", "100k", "--tasks", "perplexity", *report, code=2)
    assert found["expected"] == "102400 tokens"
    # As many as the demo's own tokenizer makes of it.
    from tokenizers import Tokenizer

    text = (DEMO.parent / "heldout.txt").read_text(encoding="utf-8")
    tokens = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert str(len(tokens)) in found["found"]
    assert not list(tmp_path.iterdir())


def test_a_length_too_short_for_the_question_is_told_before_anything_is_measured(yarn: Path, tmp_path: Path) -> None:
    args = (*TEXT, "--lengths", "32,512", "--tasks", "perplexity,passkey", "--report", tmp_path / "report")
    found = error_of(yarn, *args, code=2)
    assert "32 tokens" in found["message"]
    assert (
        not list(tmp_path.glob("report/*")) or len((tmp_path / "report" / "cells.jsonl").read_bytes().splitlines()) == 1
    )


def test_a_report_where_none_can_be(yarn: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    found = error_of(yarn, *ONE, "--report", tmp_path / "file", code=1)
    assert found["file"] == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_report_without_matplotlib_is_refused_at_once(yarn: Path, tmp_path: Path) -> None:
    without = "import sys\nsys.modules['matplotlib'] = None"
    ran = finish(driven(without, "eval", yarn, *ONE, "--report", tmp_path / "report"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: this needs matplotlib, which isn't installed\n    hint: pip install 'ctxextend[lab]'\n"
    assert not list(tmp_path.iterdir())


def test_not_enough_memory(tmp_path: Path) -> None:
    # Without tasks that read texts, so that only the memory is in the way.
    args = ("--lengths", "512m", "--tasks", "passkey", "--report", tmp_path / "report")
    found = error_of(DEMO, *TEXT, *args, code=3)
    assert found["code"] == "not-enough-memory"
    assert re.search(r"\d+ (tokens )?is the longest that fits", found["hint"])
    # Here the option is --lengths.
    assert not re.search(r"--length\b", found["hint"])
    assert not list(tmp_path.iterdir())
