"""``ctxextend run`` a second time: nothing stale stands, and nothing is done twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.recipes import (
    CARD,
    CHECKED,
    MATRIX,
    QUICK,
    SERVED,
    bytes_of,
    done,
    edited,
    excerpt,
    flip,
    model,
    states,
    statuses,
    step,
    written,
)
from tests.cli.support import DEMO, driven, finish
from tests.fake_hub import FakeHub, serve
from tests.hub_shell import TOKEN, Run, emptied, published, shell
from tests.lab import stand_in_server
from tests.lab.stand_in_server import StandIn, serving

WEIGHTS = "model.safetensors"
PUBLISHED = CARD.replace("- name: long", "- name: long\n    repo_id: me/long")


@pytest.fixture
def server(here: Path) -> Iterator[StandIn]:
    """What reads texts for a recipe, beside the text."""
    excerpt(here)
    with serving() as running:
        yield running


def read(server: StandIn) -> int:
    """How many texts it has read for an evaluation: those of a smoke test are shorter."""
    return sum(len(body["prompt"]) >= 60 for body in server.asked("/v1/completions"))


# The source changes.


@pytest.mark.parametrize("at", [-1, 300_000], ids=["sampled", "between the samples"])
def test_other_weights_after_a_run_that_failed(run: Run, here: Path, at: int) -> None:
    """A conversion that failed over other weights leaves no claim that the old ones are these."""
    source = model(here)
    recipe = CHECKED.replace("{source}", str(source))
    (here / "recipe.yaml").write_text(recipe)
    assert done(run("run", "recipe.yaml", "--json")) == ["convert", "check"]
    weights = flip(source / WEIGHTS, at)
    script = "from ctxextend.release import steps\ndef fails(*_all, **_more):\n    raise OSError(28, 'No space')\n"
    failing = f"import os\nos.chdir({str(here)!r})\n{script}steps.run_plan = fails"
    failed = finish(driven(failing, "run", "recipe.yaml", "--json"))
    assert failed.code == 1
    assert [each["status"] for each in failed.json["variants"][0]["steps"]] == ["failed", "earlier"]
    assert done(run("run", "recipe.yaml", "--json")) == ["convert", "check"]
    assert (here / "out" / "long" / WEIGHTS).read_bytes() == weights
    assert statuses(run("run", "recipe.yaml", "--json")) == {"unchanged"}


def test_another_tokenizer_is_another_source(run: Run, here: Path) -> None:
    source = model(here)
    (here / "recipe.yaml").write_text(CHECKED.replace("{source}", str(source)))
    done(run("run", "recipe.yaml", "--json"))
    tokenizer = source / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert done(run("run", "recipe.yaml", "--json")) == ["convert", "check"]
    assert (here / "out" / "long" / "tokenizer.json").read_text().endswith(" ")


@pytest.mark.parametrize("at", ["named", "on PATH"])
def test_another_quantizer_writes_anew(run: Run, here: Path, at: str) -> None:
    program = here / "bin" / "llama-quantize"
    program.parent.mkdir()

    def builds(number: int) -> None:
        program.write_text(f'#!/bin/sh\n# build {number}\ncp "$1" "$2"\n')
        program.chmod(0o755)

    builds(1)
    said = f"\n    quantizer: {program}" if at == "named" else ""
    written(here, CHECKED.replace("- name: long", f"- name: long.gguf\n    to: gguf\n    outtypes: q4_k_m{said}"))
    environment = {} if at == "named" else {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    def ran() -> list[str]:
        return done(run("run", "recipe.yaml", "--json", **environment))

    before = os.environ["PATH"]
    try:
        assert ran() == ["convert", "check"]
        assert ran() == []
        builds(2)
        assert ran() == ["convert", "check"]
    finally:
        run("--version", PATH=before)


def test_another_version_does_everything_again(run: Run, here: Path) -> None:
    written(here, QUICK)
    done(run("run", "recipe.yaml", "--no-push", "--json"))
    other = f"import os\nos.chdir({str(here)!r})\nfrom ctxextend import version\nversion.VERSION = '99.0.0'"
    again = finish(driven(other, "run", "recipe.yaml", "--no-push", "--json"))
    assert again.code == 0, again.err
    assert {each["status"] for each in again.json["variants"][0]["steps"]} == {"done"}


# What was written changes.


def test_output_weights_that_somebody_changed_are_not_passed_on(run: Run, hub: FakeHub, here: Path) -> None:
    """The manifest has a checksum of their header alone; what somebody did there is theirs."""
    written(here, PUBLISHED)
    done(run("run", "recipe.yaml", "--no-push", "--json"))
    weights = here / "out" / "long" / WEIGHTS
    flip(weights, -1)
    theirs = weights.read_bytes()
    refused = run("run", "recipe.yaml", "--json")
    assert (refused.code, refused.document["code"]) == (3, "output-changed")
    assert weights.read_bytes() == theirs
    assert not hub.repositories
    done(run("run", "recipe.yaml", "--force", "--json"))
    assert (published(hub, "me/long") / WEIGHTS).read_bytes() == (DEMO / WEIGHTS).read_bytes()


@pytest.mark.parametrize("hashed", [True, False])
def test_a_copied_folder_is_known_again_where_all_of_it_is_hashed(run: Run, here: Path, hashed: bool) -> None:
    """Other times, the same bytes."""
    written(here, PUBLISHED.replace("  - name: long\n", f"  - name: long\n    checksums: {hashed}\n".lower()))
    done(run("run", "recipe.yaml", "--no-push", "--json"))
    os.utime(here / "out" / "long" / WEIGHTS, ns=(0, 0))
    again = run("run", "recipe.yaml", "--no-push", "--json")
    assert again.code == (0 if hashed else 3)
    assert not hashed or statuses(again) == {"unchanged"}


@pytest.mark.parametrize("how", ["edited", "deleted"])
def test_evidence_is_as_it_was_written(run: Run, here: Path, how: str) -> None:
    written(here, CHECKED)
    done(run("run", "recipe.yaml", "--json"))
    found = here / "out" / "evidence" / "long" / "check.json"
    said = found.read_bytes()
    if how == "edited":
        found.write_bytes(said.replace(b'"ok": true', b'"ok": false'))
        assert found.read_bytes() != said
    else:
        found.unlink()
    assert done(run("run", "recipe.yaml", "--json")) == ["check"]
    assert found.read_bytes() == said


@pytest.mark.parametrize("name", ["eval.json", "perplexity.png", "report.html", "smoke.json"])
def test_measurements_are_as_they_were_written(run: Run, here: Path, server: StandIn, name: str) -> None:
    """What is missing is made of the numbers that are kept, and nothing is read again for it."""
    written(here, SERVED, url=server.url)
    assert done(run("run", "recipe.yaml", "--json")) == ["convert", "smoke", "eval", "card"]
    found = here / "out" / "evidence" / "long" / name
    before = read(server)
    found.unlink()
    expected = ["smoke", "eval", "card"] if name == "smoke.json" else ["eval", "card"]
    assert done(run("run", "recipe.yaml", "--json")) == expected
    assert found.is_file()
    assert read(server) == before == 1


def test_an_evaluation_edited_by_hand_is_not_shown(run: Run, here: Path, server: StandIn) -> None:
    written(here, SERVED, url=server.url)
    first = run("run", "recipe.yaml", "--json")
    folder = here / "out" / "evidence" / "long"
    told = f"{step(first, 'eval')['figures']['perplexity@60']:.3g}"
    found = json.loads((folder / "eval.json").read_text())
    found["curves"][0]["whole"] = 1.0
    (folder / "eval.json").write_text(json.dumps(found))
    again = run("run", "recipe.yaml", "--json")
    assert step(again, "eval")["figures"] == step(first, "eval")["figures"]
    assert json.loads((folder / "eval.json").read_text())["curves"][0]["whole"] > 2
    assert told in (folder / "README.md").read_text()


# What is asked changes.


def test_a_section_that_is_taken_out_leaves_the_card(run: Run, hub: FakeHub, here: Path, server: StandIn) -> None:
    """What was measured lies there still, of weights that may be others by now."""
    text = SERVED.replace("- name: long", "- name: long\n    repo_id: me/long")
    written(here, text, url=server.url)
    done(run("run", "recipe.yaml", "--json"))
    assert "evidence/perplexity.png" in (published(hub, "me/long") / "README.md").read_text()
    written(here, text.split("eval:")[0], url=server.url)
    assert done(run("run", "recipe.yaml", "--json")) == ["card", "push"]
    assert (here / "out" / "evidence" / "long" / "eval.json").exists()
    card = (published(hub, "me/long") / "README.md").read_text()
    assert "erplexity at" not in card
    assert "evidence/" not in card
    written(here, text.split("smoke:")[0], url=server.url)
    assert done(run("run", "recipe.yaml", "--json")) == ["card", "push"]
    assert "moke" not in (published(hub, "me/long") / "README.md").read_text()


def test_measurements_of_other_weights_are_no_evidence(run: Run, hub: FakeHub, here: Path, server: StandIn) -> None:
    """Without a card of its own here, what is published is made of what this recipe measures."""
    source = model(here)
    text = SERVED.replace("{source}", str(source)).replace("- name: long", "- name: long\n    repo_id: me/long")
    text = text.replace("card: true\n", "")
    (here / "recipe.yaml").write_text(text.format(url=server.url))
    done(run("run", "recipe.yaml", "--no-push", "--json"))
    flip(source / WEIGHTS, -1)
    (here / "recipe.yaml").write_text(text.split("eval:")[0].format(url=server.url))
    done(run("run", "recipe.yaml", "--json"))
    assert not (published(hub, "me/long") / "evidence").exists()
    assert "erplexity at" not in (published(hub, "me/long") / "README.md").read_text()


def test_a_changed_bound_or_one_length_more_keeps_what_was_measured(run: Run, here: Path, server: StandIn) -> None:
    written(here, SERVED, url=server.url)
    one = step(run("run", "recipe.yaml", "--json"), "eval")["figures"]
    assert read(server) == 1
    longer = SERVED.replace("lengths: [60]", "lengths: [60, 62]")
    written(here, longer, url=server.url)
    found = run("run", "recipe.yaml", "--json")
    assert done(found) == ["eval", "card"]
    assert read(server) == 2
    assert step(found, "eval")["figures"].keys() == {"perplexity@60", "perplexity@62"}
    assert step(found, "eval")["figures"]["perplexity@60"] == one["perplexity@60"]
    written(here, longer.replace("windows: 1", "windows: 1\n  bounds:\n    perplexity-ratio: 2"), url=server.url)
    bound = run("run", "recipe.yaml", "--json")
    assert step(bound, "convert")["status"] == step(bound, "smoke")["status"] == "unchanged"
    assert step(bound, "eval")["status"] != "unchanged"
    assert read(server) == 2


def test_force_measures_again(run: Run, here: Path, server: StandIn) -> None:
    written(here, SERVED, url=server.url)
    done(run("run", "recipe.yaml", "--json"))
    assert done(run("run", "recipe.yaml", "--force", "--json")) == ["convert", "smoke", "eval", "card"]
    assert read(server) == 2


@pytest.mark.parametrize("what", ["text", "weights", "weights between the samples", "target", "server"])
def test_what_was_measured_of_something_else_is_measured_anew(run: Run, here: Path, server: StandIn, what: str) -> None:
    source = model(here)
    text = SERVED.replace("{source}", str(source))
    (here / "recipe.yaml").write_text(text.format(url=server.url))
    done(run("run", "recipe.yaml", "--json"))
    with serving() as other:
        match what:
            case "text":
                (here / "text.txt").write_bytes((DEMO.parent / "heldout.txt").read_bytes()[9000:12000])
            case "target":
                (here / "recipe.yaml").write_text(text.replace("1k", "512").format(url=server.url))
            case "server":
                (here / "recipe.yaml").write_text(text.format(url=other.url))
            case _:
                flip(source / WEIGHTS, -1 if what == "weights" else 300_000)
        found = done(run("run", "recipe.yaml", "--json"))
        assert found[-3:] == ["smoke", "eval", "card"]
        assert ("convert" in found) == (what not in ("text", "server"))
        assert read(server) + read(other) == 2


def test_another_version_of_what_runs_it_measures_anew(run: Run, here: Path, server: StandIn) -> None:
    written(here, SERVED, url=server.url)
    done(run("run", "recipe.yaml", "--json"))
    script = """
from importlib import metadata
true = metadata.version
metadata.version = lambda name: "99.0" if name == "transformers" else true(name)
"""
    again = finish(driven(f"import os\nos.chdir({str(here)!r})\n{script}", "run", "recipe.yaml", "--json"))
    assert again.code == 0, again.err
    statuses_of = [each["status"] for each in again.json["variants"][0]["steps"]]
    assert statuses_of == ["unchanged", "done", "done", "done"]


@pytest.mark.parametrize("at", [-1, 300_000], ids=["sampled", "between the samples"])
def test_another_base_is_measured_again(run: Run, here: Path, at: int) -> None:
    """The one that an output is held against, with other weights."""
    base = model(here)
    excerpt(here)
    held = "tasks: perplexity\n  windows: 1\n  lengths: [64]\n  short_lengths: [64]\n  text: text.txt\n"
    text = CARD + "eval:\n  against: model\n  " + held
    written(here, text)
    same = run("run", "recipe.yaml", "--json")
    # Yarn costs little there: the same model but for its rope.
    assert abs(step(same, "eval")["figures"]["kl@64"]) < 1
    for place in (at, *range(at - 400, at)):
        flip(base / WEIGHTS, place)
    other = run("run", "recipe.yaml", "--json")
    assert done(other) == ["eval", "card"]
    assert step(other, "eval")["figures"]["kl@64"] != step(same, "eval")["figures"]["kl@64"]


def test_what_check_holds_to_is_read_anew(run: Run, here: Path) -> None:
    written(here, CARD.replace("card: true", "check:\n  against: meant"))
    for method in ("yarn", "linear"):
        shutil.rmtree(here / "meant", ignore_errors=True)
        assert run("convert", DEMO, "--method", method, "--target", "1k", "--out", "meant").code == 0
        found = run("run", "recipe.yaml", "--json")
        assert found.code == (0 if method == "yarn" else 5)
    assert [status for _step, _output, status in states(found)] == ["unchanged", "failed"]


# Gates.


def test_a_check_that_fails_ends_with_5(run: Run, hub: FakeHub, here: Path) -> None:
    text = PUBLISHED.replace("card: true", f"check:\n  against: {DEMO}")
    written(here, text)
    found = run("run", "recipe.yaml", "--json")
    assert found.code == found.document["exit_code"] == 5
    assert states(found) == [("convert", "long", "done"), ("check", "long", "failed"), ("push", "long", "pending")]
    assert step(found, "check")["error"]["code"] == "check-failed"
    assert (here / "out" / "evidence" / "long" / "check.json").exists()
    assert not hub.repositories
    again = run("run", "recipe.yaml", "--json")
    assert again.code == 5
    assert states(again) == [("convert", "long", "unchanged"), ("check", "long", "failed"), ("push", "long", "pending")]


def test_a_smoke_test_that_fails_ends_with_4(
    run: Run, hub: FakeHub, here: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the trained length a loss as before it is a hundred times too much."""
    monkeypatch.setattr(stand_in_server, "CONTEXT", 1024)
    text = SERVED.split("eval:")[0].replace("- name: long", "- name: long\n    repo_id: me/long")
    text = text.replace("length: 48", "length: 600\n  passkey: false")
    written(here, f"{text}  max_perplexity_ratio: 0.01\n", url=server.url)
    found = run("run", "recipe.yaml", "--json")
    assert found.code == found.document["exit_code"] == 4
    assert [each[2] for each in states(found)] == ["done", "failed", "pending", "pending"]
    assert (here / "out" / "evidence" / "long" / "smoke.json").exists()
    assert not hub.repositories
    assert run("run", "recipe.yaml", "--json").code == 4
    written(here, text, url=server.url)
    assert done(run("run", "recipe.yaml", "--json")) == ["smoke", "card", "push"]


# The card.


def test_the_card_is_published_as_it_was_edited(run: Run, hub: FakeHub, here: Path) -> None:
    written(here, PUBLISHED)
    done(run("run", "recipe.yaml", "--no-push", "--json"))
    card = here / "out" / "evidence" / "long" / "README.md"
    said = edited(card)
    assert done(run("run", "recipe.yaml", "--json")) == ["push"]
    assert (published(hub, "me/long") / "README.md").read_text() == said
    more = edited(card)
    assert done(run("run", "recipe.yaml", "--json")) == ["push"]
    assert (published(hub, "me/long") / "README.md").read_text() == more
    assert done(run("run", "recipe.yaml", "--force", "--json")) == ["convert", "card", "push"]
    assert card.read_text() == more


def test_an_edited_card_is_never_lost(run: Run, hub: FakeHub, here: Path) -> None:
    """Whatever comes between: a run that refuses, one without a card, one of another output."""
    written(here, PUBLISHED)
    done(run("run", "recipe.yaml", "--no-push", "--json"))
    card = here / "out" / "evidence" / "long" / "README.md"
    said = edited(card)
    changed = PUBLISHED.replace("target: 1k", "target: 512")
    written(here, changed)
    for _again in range(2):
        found = run("run", "recipe.yaml", "--json")
        assert found.code == 3
        assert step(found, "card")["error"]["code"] == "card-changed"
        assert card.read_text() == said
    assert not hub.repositories
    for between in (changed.replace("card: true\n", ""), changed.replace("name: long", "name: other")):
        written(here, between)
        done(run("run", "recipe.yaml", "--no-push", "--json"))
        written(here, changed)
        assert run("run", "recipe.yaml", "--json").code == 3
        assert card.read_text() == said
    # As it was when it was edited: there is nothing to tell that it doesn't.
    written(here, PUBLISHED)
    done(run("run", "recipe.yaml", "--json"))
    assert (published(hub, "me/long") / "README.md").read_text() == said
    written(here, changed)
    card.rename(here / "mine.md")
    done(run("run", "recipe.yaml", "--json"))
    assert "Added by hand." not in card.read_text()


def test_a_card_is_written_anew_where_a_run_was_killed_before(run: Run, here: Path, server: StandIn) -> None:
    """Between the end of a new measurement and the card."""
    written(here, SERVED, url=server.url)
    done(run("run", "recipe.yaml", "--json"))
    written(here, SERVED.replace("lengths: [60]", "lengths: [62]"), url=server.url)
    script = """
from ctxextend.release.state import State
true = State.put
def put(self, step):
    if step.step == "card":
        os._exit(9)
    true(self, step)
State.put = put
"""
    killed = finish(driven(f"import os\nos.chdir({str(here)!r})\n{script}", "run", "recipe.yaml"))
    assert killed.code == 9
    left = json.loads((here / "out" / "run.json").read_text())
    assert [each["status"] for each in left["steps"]] == ["unchanged", "unchanged", "done", "earlier"]
    assert done(run("run", "recipe.yaml", "--json")) == ["card"]


def test_what_a_killed_run_had_not_come_to_still_stands(run: Run, here: Path) -> None:
    written(here, QUICK)
    done(run("run", "recipe.yaml", "--no-push", "--json"))
    script = """
from ctxextend.release.state import State
true = State.put
def put(self, step):
    true(self, step)
    os._exit(9)
State.put = put
"""
    for _again in range(2):
        killed = finish(driven(f"import os\nos.chdir({str(here)!r})\n{script}", "run", "recipe.yaml", "--no-push"))
        assert killed.code == 9
        left = json.loads((here / "out" / "run.json").read_text())
        assert [each["status"] for each in left["steps"]] == ["unchanged", *["earlier"] * 5]
        assert not left["ok"]
    assert statuses(run("run", "recipe.yaml", "--no-push", "--json")) == {"unchanged"}


# Publishing.


def test_what_is_published_is_what_was_written(run: Run, hub: FakeHub, here: Path) -> None:
    written(here, QUICK)
    done(run("run", "recipe.yaml", "--json"))
    for name in ("long", "long-GGUF"):
        local, there = bytes_of(here / "out" / name), bytes_of(published(hub, f"me/{name}"))
        # The manifest goes without the path of the source on this disk.
        assert local.pop("ctxextend.json") != there.pop("ctxextend.json")
        assert {**local, "README.md": there["README.md"], ".gitattributes": there[".gitattributes"]} == there
        card = (published(hub, f"me/{name}") / "README.md").read_bytes()
        assert card == (here / "out" / "evidence" / name / "README.md").read_bytes()
    assert (published(hub, "me/long") / WEIGHTS).read_bytes() == (DEMO / WEIGHTS).read_bytes()


@pytest.mark.parametrize("how", ["revision: next", "exclude: tokenizer.json", "commit_message: Again"])
def test_published_otherwise_is_published_again(run: Run, hub: FakeHub, here: Path, how: str) -> None:
    written(here, PUBLISHED)
    done(run("run", "recipe.yaml", "--json"))
    written(here, f"{PUBLISHED}push:\n  {how}\n")
    assert done(run("run", "recipe.yaml", "--json")) == ["push"]
    assert ("next" in hub.repositories["me/long"].branches) == (how == "revision: next")


def test_another_hub_has_nothing_yet(run: Run, hub: FakeHub, here: Path, tmp_path: Path) -> None:
    written(here, PUBLISHED)
    done(run("run", "recipe.yaml", "--json"))
    (tmp_path / "home").mkdir()
    with serve() as other, shell(other, tmp_path / "home") as command:
        emptied(other, tmp_path / "other")
        assert done(Run(command, here)("run", "recipe.yaml", "--json")) == ["push"]
        assert bytes_of(published(other, "me/long")) == bytes_of(published(hub, "me/long"))


def test_what_was_pushed_is_told_anew_where_the_record_is_gone(run: Run, hub: FakeHub, here: Path) -> None:
    written(here, PUBLISHED)
    done(run("run", "recipe.yaml", "--json"))
    (here / "out" / "evidence" / "long" / "push.json").unlink()
    again = run("run", "recipe.yaml", "--json")
    assert done(again) == ["push"]
    assert step(again, "push")["summary"].endswith("nothing changed")
    assert len(hub.repositories["me/long"].messages) == 1
    assert not any(TOKEN.encode() in path.read_bytes() for path in here.rglob("*") if path.is_file())


# Names, types, formats.


def test_an_output_renamed_and_back(run: Run, here: Path) -> None:
    for name, target in (("long", "1k"), ("other", "1k"), ("long", "512")):
        text = CARD.replace("name: long", f"name: {name}").replace("target: 1k", f"target: {target}")
        written(here, text)
        assert done(run("run", "recipe.yaml", "--json")) == ["convert", "card"]
    config = json.loads((here / "out" / "long" / "config.json").read_text())
    assert config["max_position_embeddings"] == 512


def test_each_type_of_a_gguf_output_is_checked(run: Run, here: Path) -> None:
    """One that isn't run, beside one that is."""
    both = "- name: long\n  - name: long-GGUF\n    to: gguf\n    outtypes: [f16, q8_0]\n    smoke: false"
    written(here, CHECKED.replace("- name: long", both) + "card: true\n")
    found = run("run", "recipe.yaml", "--json")
    assert done(found) == ["convert", "convert", "check", "check", "card", "card"]
    folder = here / "out" / "evidence" / "long-GGUF"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        "long-F16/check.json",
        "long-Q8_0/check.json",
    }
    assert step(found, "check", "long-GGUF")["summary"] == "read as planned by llama.cpp"
    (folder / "long-Q8_0" / "check.json").unlink()
    again = run("run", "recipe.yaml", "--json")
    assert [each[:2] for each in states(again) if each[2] == "done"] == [("check", "long-GGUF"), ("card", "long-GGUF")]


@pytest.mark.parametrize("to", ["gguf", "safetensors"])
def test_a_gguf_file_is_a_source_too(run: Run, here: Path, to: str) -> None:
    assert run("convert", DEMO, "--to", "gguf", "--outtype", "f16", "--out", "tiny.gguf").code == 0
    name = "long.gguf" if to == "gguf" else "long"
    text = CHECKED.replace("{source}", "tiny.gguf").replace("- name: long", f"- name: {name}\n    to: {to}")
    (here / "recipe.yaml").write_text(text + "card: true\n")
    assert done(run("run", "recipe.yaml", "--json")) == ["convert", "check", "card"]
    assert statuses(run("run", "recipe.yaml", "--json")) == {"unchanged"}
    flip(here / "tiny.gguf", -1)
    assert done(run("run", "recipe.yaml", "--json")) == ["convert", "check", "card"]


# What is told.


def test_the_page_of_results(run: Run, here: Path) -> None:
    """Of a matrix: what each step came to, by hand from what the plans say (512 / 256 = 2)."""
    text = MATRIX.replace("[yarn, linear, ntk]", "[yarn, linear]").replace("[512, 1k]", "[512]")
    written(here, text)
    run("run", "recipe.yaml", "--json")
    assert (here / "out" / "results.md").read_text() == (
        "# recipe\n"
        "\n"
        "2 of 2 variants passed everything.\n"
        "\n"
        "| variant | convert | check |\n"
        "| --- | --- | --- |\n"
        "| yarn-512 | yes | yes |\n"
        "| linear-512 | yes | yes |\n"
        "\n"
        "| variant | step | output | what |\n"
        "| --- | --- | --- | --- |\n"
        "| yarn-512 | convert | long | yarn: 512 / 256 = 2, 256 -&gt; 512 tokens |\n"
        "| yarn-512 | check | long | read as planned by transformers, vllm, sglang, mlx-lm |\n"
        "| linear-512 | convert | long | linear: 512 / 256 = 2, 256 -&gt; 512 tokens |\n"
        "| linear-512 | check | long | read as planned by transformers, vllm, sglang, mlx-lm |\n"
    )


def test_figures_stand_side_by_side(run: Run, here: Path, server: StandIn) -> None:
    text = SERVED.replace("method: yarn", "matrix:\n  method: [yarn, linear]").replace("card: true\n", "")
    written(here, text, url=server.url)
    found = run("run", "recipe.yaml", "--json")
    assert found.code == 0, found.err
    number = f"{step(found, 'eval', label='yarn')['figures']['perplexity@60']:.4g}"
    page = (here / "out" / "results.md").read_text()
    # One server for both: the same numbers.
    assert f"|  | yarn | linear |\n| --- | --- | --- |\n| perplexity@60 | {number} | {number} |\n" in page


def test_a_broken_record_is_told(run: Run, here: Path) -> None:
    written(here, CHECKED)
    done(run("run", "recipe.yaml", "--json"))
    record = here / "out" / "run.json"
    whole = record.read_bytes()
    for broken in (whole[: len(whole) // 2], bytes(len(whole)), b""):
        record.write_bytes(broken)
        found = run("run", "recipe.yaml", "--json")
        assert (found.code, found.document["code"]) == (1, "broken-state")
        assert record.read_bytes() == broken
    assert (here / "out" / "long" / WEIGHTS).read_bytes() == (DEMO / WEIGHTS).read_bytes()
