"""What goes where: stdout is data, stderr is the rest; terminals, help, bugs; the inspection and the listings."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ctxextend.cli import app
from ctxextend.cli.console import InterruptError, show_error
from ctxextend.cli.lab_options import console_of, resumable
from ctxextend.cli.options import settings_of
from ctxextend.errors import RefusedError, UsageError
from ctxextend.lab.asking import bounds_of, require_gated
from ctxextend.lab.names import BOUNDS
from ctxextend.methods import METHODS
from ctxextend.version import VERSION
from tests.cli.support import TRAINED, call, driven, edit_config, environment, finish, run, tree

YARN = ("--method", "yarn", "--target", "2k")
COMMANDS = ("inspect", "plan", "convert", "methods", "families", "runtimes")

#: A bug in the middle of a command.
BUG = """
import ctxextend.pipeline
def broken(*_args, **_more):
    raise ZeroDivisionError("injected")
ctxextend.pipeline.inspect = broken
"""


def on_terminal(*args: str | Path, **env: str) -> str:
    """What a person sees: the command on a terminal of its own, stdout and stderr together."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ctxextend", *map(str, args)],
        env=environment(TERM="xterm-256color", COLUMNS="100", **env),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:
            break
        if not block:
            break
        seen += block
    os.close(leader)
    assert process.wait(timeout=60) == 0, seen
    return seen.decode()


def test_colours_on_a_terminal_only(pristine: Path) -> None:
    assert "\x1b[" in on_terminal("inspect", pristine)
    plain = on_terminal("inspect", pristine, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)
    assert "\x1b" not in run("inspect", pristine, code=0).out


def test_a_conversion_on_a_terminal(pristine: Path, tmp_path: Path) -> None:
    seen = on_terminal("convert", pristine, *YARN, "--out", tmp_path / "out")
    assert str(tmp_path / "out") in seen.replace("\r\n", "")
    assert "reads it as planned" in seen


def test_no_bars_without_a_terminal(pristine: Path, tmp_path: Path) -> None:
    ran = call("convert", pristine, *YARN, "--out", tmp_path / "out", code=0)
    assert "\x1b" not in ran.err
    assert "\r" not in ran.err


def test_quiet_and_verbose(pristine: Path, tmp_path: Path) -> None:
    quiet = run("convert", pristine, *YARN, "--out", tmp_path / "quiet", "-q", code=0)
    assert (quiet.out, quiet.err) == (f"{tmp_path / 'quiet'}\n", "")
    plain = call("convert", pristine, *YARN, "--out", tmp_path / "plain", code=0)
    verbose = call("convert", pristine, *YARN, "--out", tmp_path / "verbose", "-v", code=0)
    assert "carried run.sh" in verbose.err
    assert "carried run.sh" not in plain.err


def test_an_encoding_that_holds_little(pristine: Path) -> None:
    run("inspect", pristine, code=0, PYTHONIOENCODING="ascii")
    ran = run("plan", pristine, *YARN, "--json", code=0, PYTHONIOENCODING="ascii")
    assert ran.json["method"] == "yarn"


def test_the_version_and_the_help() -> None:
    assert run("--version", code=0).out == f"{VERSION}\n"
    shown = run("--help", code=0).out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert "..." not in shown.split("Commands:")[1]
    assert call("-h", code=0).out == call("--help", code=0).out
    nothing = run(code=2)
    assert "Commands:" in nothing.err
    assert "error:" not in nothing.err
    assert not nothing.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_lists_its_options(name: str) -> None:
    shown = call(name, "--help", code=0).out
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    assert options
    assert [option for option in options if option not in shown] == []
    assert f"Example: ctxextend {name}" in " ".join(shown.split())


def test_a_bug_is_one_line_and_a_report(pristine: Path, tmp_path: Path) -> None:
    ran = finish(driven(BUG, "inspect", pristine, "--token", "secret", TMPDIR=str(tmp_path)))
    assert ran.code == 1
    assert not ran.out
    assert ran.err.splitlines()[0] == "error: this is a bug in ctxextend: ZeroDivisionError: injected"
    assert "Traceback" not in ran.err
    (report,) = tmp_path.iterdir()
    assert str(report) in ran.err
    said = report.read_text()
    assert "ZeroDivisionError: injected" in said
    assert VERSION in said
    assert "secret" not in said


def test_a_bug_as_json_and_with_its_traceback(pristine: Path, tmp_path: Path) -> None:
    ran = finish(driven(BUG, "inspect", pristine, "--json", TMPDIR=str(tmp_path), CTXEXTEND_DEBUG="1"))
    assert ran.code == 1
    assert (ran.json["code"], ran.json["exit_code"]) == ("bug", 1)
    assert Path(ran.json["file"]).is_file()
    assert "Traceback (most recent call last)" in ran.err
    nowhere = finish(driven(BUG + "import tempfile\ntempfile.tempdir = '/proc/nowhere'\n", "inspect", pristine))
    assert nowhere.code == 1
    assert "this is a bug" in nowhere.err
    assert "Traceback" not in nowhere.err


def test_the_traceback_of_a_refusal_is_shown_when_asked_for(pristine: Path) -> None:
    ran = run("plan", pristine, code=2, CTXEXTEND_DEBUG="1")
    assert "Traceback" in ran.err
    assert "error: how far to extend" in ran.err


def test_the_inspection_document(pristine: Path) -> None:
    document = run("inspect", pristine, "--target", "2k", "--json", code=0).json
    assert document["schema"] == "ctxextend.inspection/1"
    assert (document["model_type"], document["position"], document["format"]) == ("llama", "rope", "safetensors")
    assert document["parameters"] == 2 * 256 * 64 + 2 * (64 * 64 + 32 * 64 + 64 * 128)
    assert document["size_bytes"] == sum(p.stat().st_size for p in pristine.rglob("*") if p.is_file())
    assert (document["trained_context"], document["current_context"]) == (TRAINED, TRAINED)
    (group,) = document["groups"]
    assert group["label"] == "full_attention"
    assert group["layers"] == [0, 1]
    assert (group["theta"], group["head_dim"], group["rotary_dim"]) == (10000.0, 16, 16)
    assert group["scaling"] is group["origin"] is group["window"] is None
    # Two layers, two key-value heads of 16, keys and values, two bytes each.
    assert document["kv_cache"]["bytes_per_token"] == 2 * 2 * 16 * 2 * 2
    at = {(row["context"], row["dtype"]): row["bytes"] for row in document["kv_cache"]["at"]}
    assert at[4 * TRAINED, "bfloat16"] == 256 * 4 * TRAINED
    assert at[TRAINED, "float32"] == 2 * at[TRAINED, "bfloat16"]
    assert all({"code", "message"} <= set(note) for note in document["notes"])


def test_the_inspection_of_an_output_of_ours(pristine: Path, tmp_path: Path) -> None:
    call("convert", pristine, *YARN, "--out", tmp_path / "out", code=0)
    document = call("inspect", tmp_path / "out", "--json", code=0).json
    assert (document["trained_context"], document["current_context"]) == (TRAINED, 4 * TRAINED)
    assert document["groups"][0]["origin"] == "ours"
    assert document["groups"][0]["scaling"]["rope_type"] == "yarn"


def test_the_inspection_of_a_window(windowed: Path) -> None:
    document = call("inspect", windowed, "--target", "2k", "--json", code=0).json
    assert document["groups"][0]["window"] == 128
    at = {(row["context"], row["dtype"]): row["bytes"] for row in document["kv_cache"]["at"]}
    assert at[4 * TRAINED, "bfloat16"] == at[TRAINED, "bfloat16"] == 256 * 128


def test_the_page_of_an_inspection(pristine: Path) -> None:
    before = tree(pristine)
    ran = call("inspect", pristine, "--target", "2k", "--memory", "1MiB", code=0)
    assert f"{TRAINED} tokens trained" in ran.out
    assert "wavelength" in ran.out
    assert "2048 / 512 = 4" in ran.out
    # 2**20 bytes less 122880 of weights, at 256 bytes a token.
    assert "in 1.0 MiB: 3616 tokens fit" in ran.out
    assert tree(pristine) == before


def test_what_fits_in_memory(pristine: Path) -> None:
    fits = call("inspect", pristine, "--memory", "1MiB", "--json", code=0).json["fits"]
    assert fits == {"memory_bytes": 1 << 20, "weight_bytes": 122880, "context": ((1 << 20) - 122880) // 256}
    assert call("inspect", pristine, "--memory", "1k", "--json", code=0).json["fits"]["context"] == 0
    for wrong in ("0", "-1", "lots", "nan"):
        assert call("inspect", pristine, f"--memory={wrong}", "--json", code=2).json["key"] == "--memory"


def test_a_target_that_would_be_refused_is_only_noted(source: Path) -> None:
    edit_config(source, rope_scaling={"rope_type": "linear", "factor": 2.0})
    ran = call("inspect", source, "--target", "2k", code=0)
    assert "note: to 2048 tokens" in ran.err
    assert "--base" in ran.err


def test_the_listings() -> None:
    for name in ("methods", "families", "runtimes"):
        document = call(name, "--json", code=0).json
        assert document["schema"] == f"ctxextend.{name}/1"
        assert document[name]
        assert call(name, code=0).out.splitlines()[0].startswith(("method", "family", "runtime"))
    named = {row["name"]: row for row in call("methods", "--json", code=0).json["methods"]}
    assert set(named) >= set(METHODS)
    assert "beta_fast" in named["yarn"]["parameters"]


def test_settings_are_json_where_they_can_be() -> None:
    pairs = ["a=1", "b=1.5", "c=true", "d=null", "e=[1, 2]", "f=text", 'g="1"', "h=x=y", "i="]
    assert settings_of(pairs) == {
        "a": 1,
        "b": 1.5,
        "c": True,
        "d": None,
        "e": [1, 2],
        "f": "text",
        "g": "1",
        "h": "x=y",
        "i": "",
    }


def test_heavy_libraries_stay_out() -> None:
    heavy = ["torch", "transformers", "numpy", "safetensors", "huggingface_hub", "rich", "gguf"]
    script = f"import ctxextend.cli.main, sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []


def test_of_several_processes_the_first_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RefusedError("no", hint="yes")

    def said() -> tuple[str, str]:
        console = console_of(as_json=False, quiet=False)
        console.line("data")
        console.draw("drawn")
        console.step("step")
        console.document({"a": 1})
        console.failure(error)
        show_error(error, as_json=True)
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    out, err = said()
    assert "data\ndrawn\n" in out
    assert '"a": 1' in out
    assert '"schema": "ctxextend.error/1"' in out
    assert err == "step ...\nerror: no\n    hint: yes\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    # What ends another process is told with its number: it may be the only one that fails.
    assert said() == ("", "rank 1: error: no\n    hint: yes\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl", -1.0), ("kl", math.nan), ("kl", math.inf), ("passkey", 1.5), ("same-top", -0.1), ("needles", math.nan)],
)
def test_bounds_that_nothing_could_be_held_to(name: str, value: float) -> None:
    with pytest.raises(UsageError) as error:
        bounds_of({"perplexity-ratio": 100.0, name: value})
    assert error.value.key == BOUNDS[name].option


def test_bounds_that_can_be_held() -> None:
    assert bounds_of({"kl": 0.0, "passkey": 1.0, "perplexity-ratio": 100.0, "needles": None}) == {
        "kl": 0.0,
        "passkey": 1.0,
        "perplexity-ratio": 100.0,
    }


def test_a_gate_that_would_hold_nothing_is_a_wrong_call() -> None:
    require_gated(("sliding", "passkey"), against=False)
    require_gated(("sliding",), against=True)
    with pytest.raises(UsageError) as error:
        require_gated(("sliding", "words"), against=False)
    assert error.value.key == "--gate"


def test_an_interrupt_says_what_is_kept(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(KeyboardInterrupt), resumable(folder):
            raise KeyboardInterrupt
    (tmp_path / "cells-yarn.jsonl").touch()
    with pytest.raises(InterruptError) as error, resumable(tmp_path):
        raise KeyboardInterrupt
    assert (error.value.exit_code, error.value.file) == (130, str(tmp_path))
    assert "same command" in (error.value.hint or "")
