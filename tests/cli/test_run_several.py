"""``ctxextend run`` of a matrix: one variant goes wrong, another run is at work, shards don't belong together."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from ctxextend.errors import CtxextendError
from ctxextend.release.state import locked
from tests.cli.recipes import CHECKED, MATRIX, done, flip, model, written
from tests.cli.support import DEMO, driven, finish
from tests.hub_shell import Run

WEIGHTS = "model.safetensors"


def test_what_goes_wrong_in_one_variant_ends_that_one(run: Run, here: Path) -> None:
    """Whatever it is: a bug, memory that runs out, a file that is gone while the step is asked for."""
    written(here, MATRIX)
    for where in ("CheckStep.do", "CheckStep.inputs"):
        kind, name = where.split(".")
        script = f"""
import os
os.chdir({str(here)!r})
from ctxextend.release import steps
true = steps.{kind}.{name}
def wrong(self, *rest):
    if self.prepared.variant.label == "linear-512":
        raise MemoryError("no more")
    return true(self, *rest)
steps.{kind}.{name} = wrong
"""
        ran = finish(driven(script, "run", "recipe.yaml", "--json", "--out", name))
        assert ran.code == 1, ran.err
        assert [each["ok"] for each in ran.json["variants"]] == [
            each["label"] != "linear-512" for each in ran.json["variants"]
        ]
        failed = next(each for each in ran.json["variants"] if not each["ok"])
        assert failed["label"] == "linear-512"
        assert "MemoryError" in json.dumps(failed)
        assert "bug" in json.dumps(failed)
        page = (here / name / "results.md").read_text()
        assert "5 of 6 variants passed everything." in page
        assert "MemoryError: no more" in page


def test_a_variant_that_another_run_works_on_is_told(run: Run, here: Path) -> None:
    written(here, MATRIX)
    with locked(here / "out" / "yarn-1k"):
        found = run("run", "recipe.yaml", "--json")
    assert found.code == 1
    busy = [each for each in found.document["variants"] if not each["ok"]]
    assert [(each["label"], each["error"]["code"]) for each in busy] == [("yarn-1k", "busy")]
    assert not json.loads((here / "out" / "results.json").read_text())["ok"]
    assert done(run("run", "recipe.yaml", "--json"), "yarn-1k") == ["convert", "check"]


def test_a_lock_that_cannot_be_had_is_not_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = []
    for number in (errno.EWOULDBLOCK, errno.ENOLCK, errno.EACCES):

        def refuses(_file: object, _how: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuses)
        with pytest.raises(CtxextendError) as caught, locked(tmp_path):
            pass
        codes.append(caught.value.code)
    assert codes == ["busy", "io", "io"]


def test_a_run_that_is_refused_leaves_no_result(run: Run, here: Path) -> None:
    """An earlier one's would be taken for its."""
    written(here, CHECKED)
    done(run("run", "recipe.yaml", "--json"))
    for name in ("results.json", "results.md"):
        assert (here / "out" / name).exists()
    written(here, CHECKED.replace("target: 1k", "target: 100"))
    assert run("run", "recipe.yaml", "--dry-run").code == 3
    assert (here / "out" / "results.json").exists()
    assert run("run", "recipe.yaml").code == 3
    for name in ("results.json", "results.md"):
        assert not (here / "out" / name).exists()
    # A step that hasn't come to its turn is no result either.
    assert json.loads((here / "out" / "run.json").read_text())["ok"]


def test_shards_that_were_cut_short_are_not_merged(run: Run, here: Path) -> None:
    written(here, MATRIX)
    done(run("run", "recipe.yaml", "--json"), "yarn-512")
    script = """
from ctxextend.release import steps
def killed(self, how):
    os._exit(9)
steps.CheckStep.do = killed
"""
    killed = finish(driven(f"import os\nos.chdir({str(here)!r})\n{script}", "run", "recipe.yaml", "--force"))
    assert killed.code == 9
    merged = run("run", "recipe.yaml", "--merge", "--json")
    assert (merged.code, merged.document["code"], merged.document["key"]) == (1, "incomplete", "yarn-512")
    assert merged.document["found"] == "a run that was cut short, or isn't at its end"
    assert not (here / "out" / "results.json").exists()
    done(run("run", "recipe.yaml", "--json"), "yarn-512")
    assert run("run", "recipe.yaml", "--merge", "--json").code == 0


def test_shards_of_different_states_are_not_merged(run: Run, here: Path) -> None:
    source = model(here)
    (here / "recipe.yaml").write_text(MATRIX.replace("{source}", str(source)))
    done(run("run", "recipe.yaml", "--shard", "1/2", "--json"), "yarn-512")
    flip(source / WEIGHTS, -1)
    run("run", "recipe.yaml", "--shard", "2/2", "--json")
    mixed = run("run", "recipe.yaml", "--merge", "--json")
    assert (mixed.code, mixed.document["code"]) == (1, "incomplete")
    assert "state of the source" in mixed.document["found"]
    done(run("run", "recipe.yaml", "--json"), "yarn-512")
    record = here / "out" / "ntk-1k" / "run.json"
    found = json.loads(record.read_text())
    record.write_text(json.dumps({**found, "version": "0.0.1"}))
    older = run("run", "recipe.yaml", "--merge", "--json")
    assert (older.code, older.document["key"]) == (1, "ntk-1k")
    assert "version of ctxextend" in older.document["found"]


def test_a_failed_variant_gives_the_merged_result_its_code(run: Run, here: Path) -> None:
    """Linear at 512 isn't what the plan of yarn says."""
    text = MATRIX.replace("check: true", f"check:\n  against: {DEMO}").replace("[512, 1k]", "[512]")
    written(here, text.replace("[yarn, linear, ntk]", "[yarn, linear]"))
    for shard in ("1/2", "2/2"):
        assert run("run", "recipe.yaml", "--shard", shard).code == 5
    merged = run("run", "recipe.yaml", "--merge", "--json")
    assert merged.code == merged.document["exit_code"] == 5
    assert not merged.document["ok"]
    assert "0 of 2 variants passed everything." in (here / "out" / "results.md").read_text()
