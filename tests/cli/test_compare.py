"""``ctxextend compare`` as a user calls it: the table, the document, what is refused, what is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import DEMO, Ran, call, driven, finish, read_json, run, tree

pytestmark = pytest.mark.usefixtures("demo_is_left_alone")

TEXT = ("--text", DEMO.parent / "heldout.txt")
TASKS = ("--tasks", "perplexity,short", "--short-lengths", "128")
#: ExLlamaV2 reads no attention factor, so that one of these can't be given to it.
METHODS = ("--methods", "none,yarn,linear,yarn:attention_factor=1.7", "--runtimes", "exllamav2", "--lengths", "1k")
NATIVE = ("none", "yarn", "linear")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The table, from a process of its own that must leave nothing in its folder."""
    folder = tmp_path_factory.mktemp("shown")
    ran = run("compare", DEMO, *TEXT, *TASKS, *METHODS, cwd=folder, code=0)
    assert not list(folder.iterdir())
    return ran


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """The same as JSON, with a report."""
    folder = tmp_path_factory.mktemp("report") / "new" / "compared"
    return call("compare", DEMO, *TEXT, *TASKS, *METHODS, "--report", folder, "--json", code=0), folder


def error_of(source: str | Path, *args: str | Path, code: int) -> dict[str, Any]:
    ran = call("compare", source, *args, "--json", code=code)
    found = dict(ran.json)
    assert (found["schema"], found["exit_code"]) == ("ctxextend.error/1", code)
    assert found["code"] != "bug", found
    assert found.get("hint") or found.get("expected"), found
    return found


def test_the_document(report: tuple[Ran, Path]) -> None:
    document = report[0].json
    assert (document["schema"], document["trained_context"]) == ("ctxextend.compare/1", 256)
    candidates = {candidate["method"]: candidate for candidate in document["candidates"]}
    assert list(candidates) == [*NATIVE, "yarn:attention_factor=1.7"]
    for name in NATIVE:
        candidate = candidates[name]
        assert candidate["refused"] is None
        assert candidate["target"] == 1024
        assert candidate["factor"] == (1 if name == "none" else 4)
        assert candidate["curves"][0]["length"] == 1024
        assert candidate["cost"]["tokens"] > 1024
    # The model as it is has nothing to be held against.
    assert [len(candidates[name]["short"]) for name in NATIVE] == [0, 1, 1]
    assert candidates["none"]["curves"][0]["ratio"] > 2
    assert candidates["yarn"]["curves"][0]["ratio"] < candidates["none"]["curves"][0]["ratio"]


def test_a_method_that_cannot_be_written_is_told_beside_the_others(shown: Ran, report: tuple[Ran, Path]) -> None:
    refused = report[0].json["candidates"][-1]
    assert "exllamav2" in refused["refused"]
    assert (refused["curves"], refused["short"], refused["cost"]) == ([], [], None)
    assert "3 of 4 candidates measured" in shown.out
    assert "not measured:" in shown.out
    assert "exllamav2" in shown.out


def test_the_best_is_named_with_its_reason(shown: Ran, report: tuple[Ran, Path]) -> None:
    document = report[0].json
    whole = {c["method"]: c["curves"][0]["whole"] for c in document["candidates"] if c["refused"] is None}
    (best,) = document["best"]
    rivals = {name: perplexity for name, perplexity in whole.items() if name != "none"}
    assert (best["length"], best["method"], best["factor"]) == (1024, min(rivals, key=lambda m: rivals[m]), 4)
    assert f"{whole[best['method']]:.2f}" in best["reason"]
    assert f"for 1k  {best['method']}" in shown.out


def test_the_table(shown: Ran) -> None:
    assert shown.out.startswith(f"{DEMO}: trained 256 tokens")
    rows = {line.split()[0] for line in shown.out.splitlines() if line.split()}
    assert {"untouched", "yarn", "linear"} <= rows
    assert "short contexts" in shown.out
    assert "\x1b" not in shown.out + shown.err
    first, cost, *steps = shown.err.splitlines()
    assert first == "loading the model ..."
    assert re.match(r"5 measurements: \d+ tokens to read", cost)
    assert steps == [f"{name} to 1k ..." for name in NATIVE]


def test_each_candidate_is_what_its_conversion_would_be(report: tuple[Ran, Path], tmp_path: Path) -> None:
    call("convert", DEMO, "--method", "linear", "--target", "1k", "--out", tmp_path / "linear", code=0)
    args = ("--lengths", "1k", "--windows", "1", "--tasks", "perplexity")
    written = call(
        "eval", tmp_path / "linear", *TEXT, *args, "--against", DEMO, "--short-lengths", "128", "--json", code=0
    )
    candidate = next(c for c in report[0].json["candidates"] if c["method"] == "linear")
    (ours,), (theirs,) = candidate["curves"], written.json["curves"]
    assert ours["whole"] == pytest.approx(theirs["whole"], rel=1e-4)
    assert ours["ratio"] == pytest.approx(theirs["ratio"], rel=1e-4)
    assert candidate["short"][0]["kl"] == pytest.approx(written.json["short"][0]["kl"], rel=1e-3)
    assert candidate["spectrum"][0]["inv_freq"] == pytest.approx(written.json["spectrum"][0]["inv_freq"])


def test_the_report(report: tuple[Ran, Path]) -> None:
    ran, folder = report
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "compare.json", "perplexity.png"} <= names
    assert read_json(folder / "compare.json") == ran.json
    assert "linear" in (folder / "report.html").read_text(encoding="utf-8")
    assert ran.err.splitlines() in ([], [f"the report: {folder / 'report.html'}"])


def test_what_was_measured_is_kept(report: tuple[Ran, Path]) -> None:
    ran, folder = report
    cells = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert len(cells) == len(NATIVE)
    plan = call("compare", DEMO, *TEXT, *TASKS, *METHODS, "--report", folder, "--dry-run", "--json", code=0).json
    assert (plan["cells"], plan["kept"], plan["tokens"]) == (5, 5, 0)
    again = call("compare", DEMO, *TEXT, *TASKS, *METHODS, "--report", folder, code=0)
    assert "5 measurements, 5 of them kept from an earlier run: 0 tokens to read" in again.err
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == cells
    for one, other in zip(ran.json["candidates"], read_json(folder / "compare.json")["candidates"], strict=True):
        assert {**one, "cost": None} == {**other, "cost": None}


def test_results_of_another_run_are_not_mixed(report: tuple[Ran, Path]) -> None:
    _, folder = report
    before = tree(folder)
    found = error_of(DEMO, *TEXT, *TASKS, *METHODS, "--report", folder, "--seed", "7", code=3)
    assert found["code"] == "other-results"
    assert tree(folder) == before


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    args = ("--methods", "yarn,ntk", "--lengths", "512,1k", "--tasks", "perplexity", "--report", tmp_path / "report")
    ran = call("compare", DEMO, *TEXT, *args, "--dry-run", code=0)
    assert re.match(r"4 measurements: \d+ tokens to read", ran.out)
    plan = call("compare", DEMO, *TEXT, *args, "--dry-run", "--json", code=0).json
    assert plan["cells"] == 4
    assert plan["tokens"] >= 2 * (512 + 1024)
    assert not list(tmp_path.iterdir())


def test_within_the_trained_length_there_is_nothing_to_compare() -> None:
    args = ("--methods", "none,ntk", "--lengths", "128", "--tasks", "perplexity")
    document = call("compare", DEMO, *TEXT, *args, "--json", code=0).json
    untouched, ntk = document["candidates"]
    assert untouched["curves"]
    assert "within the trained length" in ntk["refused"]
    assert document["best"] == []


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--methods", "nosuch", "--lengths", "1k"), "nosuch"),
        (("--methods", "yran", "--lengths", "1k"), "did you mean yarn"),
        (("--methods", "yarn:nosuch=1", "--lengths", "1k"), "nosuch"),
        (("--methods", "yarn:attention_factor", "--lengths", "1k"), "attention_factor"),
        (("--methods", "yarn:attention_factor=x", "--lengths", "1k"), "attention_factor"),
        (("--methods", "yarn:attention_factor=nan", "--lengths", "1k"), "attention_factor"),
        (("--methods", ",", "--lengths", "1k"), "--methods"),
        (("--methods", "yarn"), "--lengths"),
        (("--methods", "yarn", "--lengths", ","), "--lengths"),
        (("--methods", "yarn", "--lengths", "abc"), "--lengths"),
        (("--methods", "yarn", "--lengths", "-1"), "--lengths"),
        (("--methods", "yarn", "--lengths", "100k"), "102400"),
        (("--lengths", "1k", "--runtimes", "nosuch"), "nosuch"),
        (("--lengths", "1k", "--tasks", "perplexty"), "did you mean perplexity"),
        (("--lengths", "1k", "--depths", "2"), "--depths"),
        (("--lengths", "1k", "--samples", "0"), "--samples"),
        (("--lengths", "1k", "--device", "nosuch"), "--device"),
    ],
)
def test_a_wrong_call(tmp_path: Path, args: tuple[str, ...], named: str) -> None:
    assert named in str(error_of(DEMO, *TEXT, *args, "--report", tmp_path / "report", code=2))
    assert not list(tmp_path.iterdir())


def test_what_methods_there_are_counts_the_model_as_it_is() -> None:
    hint = error_of(DEMO, *TEXT, "--methods", "nosuch", "--lengths", "1k", code=2)["hint"]
    assert {"auto", "linear", "none", "ntk", "yarn"} <= set(re.findall(r"[\w-]+", hint))


def test_sources_that_cannot_be_compared(tmp_path: Path) -> None:
    call("convert", DEMO, "--to", "gguf", "--out", tmp_path / "demo.gguf", code=0)
    found = error_of(tmp_path / "demo.gguf", *TEXT, "--lengths", "1k", code=3)
    assert "--to safetensors" in found["hint"]
    assert error_of(tmp_path / "nothing", *TEXT, "--lengths", "1k", code=1)["file"] == str(tmp_path / "nothing")


def test_not_enough_memory() -> None:
    # 2048 bytes a token: a tebibyte.
    args = ("--methods", "none,yarn", "--lengths", "512m", "--tasks", "passkey")
    found = error_of(DEMO, *TEXT, *args, code=3)
    assert found["code"] == "not-enough-memory"
    assert re.search(r"\d+ (tokens )?is the longest that fits", found["hint"])
    # Here the option is --lengths.
    assert not re.search(r"--length\b", found["hint"])


def test_without_the_lab(tmp_path: Path) -> None:
    for modules in ("'torch', 'transformers', 'accelerate'", "'matplotlib',"):
        without = f"import sys\nfor name in ({modules}): sys.modules[name] = None"
        args = ("--lengths", "1k", "--report", tmp_path / "report")
        ran = finish(driven(without, "compare", DEMO, *TEXT, *args))
        assert (ran.code, ran.out) == (2, "")
        assert "hint: pip install 'ctxextend[lab]'\n" in ran.err
    assert not list(tmp_path.iterdir())
