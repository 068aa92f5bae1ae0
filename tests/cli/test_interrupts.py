"""Ended in the middle, twice at once, out of room: the target is absent or complete, the source as it was."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import SHARDS, Ran, call, contents, driven, environment, finish, run, tree

YARN = ("--method", "yarn", "--target", "2k", "--link-mode", "copy")

#: The copy stops in the middle of the second shard and says so; a file called GO beside the script lets it go on.
SLOW = """
import os, time
from ctxextend.tensors import copying
true = copying._copy_range
def slow(read, position, write, target, count):
    done = true(read, position, write, target, max(1, min(count, 20_000)))
    if os.environ["STOP_AT"] in os.readlink(f"/proc/self/fd/{write}"):
        open(os.environ["HERE"], "w").close()
        until = time.monotonic() + 60
        while not os.path.exists(os.environ["GO"]) and time.monotonic() < until:
            time.sleep(0.01)
    return done
copying._copy_range = slow
"""

#: Every copy fails as on a full disk, after some bytes.
FULL = """
import errno, os
from ctxextend.tensors import copying
true = copying._copy_range
def full(read, position, write, target, count):
    if os.environ["STOP_AT"] in os.readlink(f"/proc/self/fd/{write}"):
        true(read, position, write, target, 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return true(read, position, write, target, count)
copying._copy_range = full
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds open files through /proc")


def staging(out: Path) -> Path:
    return out.parent / f".{out.name}.ctxextend-staging"


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def in_mid_copy(source: Path, out: Path, *args: str) -> subprocess.Popen[str]:
    """A conversion that is now in the middle of the second shard."""
    here = out.parent / "here"
    here.unlink(missing_ok=True)
    process = driven(
        SLOW,
        "convert",
        source,
        *YARN,
        *args,
        "--out",
        out,
        STOP_AT=SHARDS[1],
        HERE=str(here),
        GO=str(out.parent / "go"),
    )
    wait_for(here, process)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_nothing(number: signal.Signals, source: Path, tmp_path: Path) -> None:
    before, out = tree(source), tmp_path / "new" / "out"
    out.parent.mkdir()
    process = in_mid_copy(source, out)
    assert (staging(out) / SHARDS[1]).exists()
    process.send_signal(number)
    ran = finish(process)
    assert ran == Ran(130, "", ran.err)
    assert ran.err.endswith("error: interrupted; no half output remains\n")
    assert "Traceback" not in ran.err
    assert [path.name for path in out.parent.iterdir()] == ["here"]
    assert tree(source) == before


def test_an_interrupt_as_json(source: Path, tmp_path: Path) -> None:
    process = in_mid_copy(source, tmp_path / "out", "--json")
    process.send_signal(signal.SIGINT)
    ran = finish(process)
    assert (ran.code, ran.err) == (130, "")
    assert (ran.json["code"], ran.json["exit_code"]) == ("interrupted", 130)


def test_an_interrupt_keeps_the_output_that_was_to_be_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("convert", source, "--method", "ntk", "--target", "1k", "--out", out, code=0)
    before = tree(out)
    process = in_mid_copy(source, out, "--force")
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 130
    assert tree(out) == before
    assert not staging(out).exists()


def test_after_a_kill_the_next_run_sweeps_and_succeeds(source: Path, tmp_path: Path) -> None:
    before, out = tree(source), tmp_path / "out"
    process = in_mid_copy(source, out)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert not out.exists()
    assert staging(out).is_dir()
    assert tree(source) == before
    (staging(out) / "folder").mkdir()
    (staging(out) / "link").symlink_to(source)
    run("convert", source, *YARN, "--out", out, code=0)
    assert not staging(out).exists()
    assert set(contents(out)) == {*contents(source), "ctxextend.json"}
    assert tree(source) == before


def test_two_runs_to_one_target_exclude_each_other(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = in_mid_copy(source, out)
    second = run("convert", source, *YARN, "--out", out, "--json", code=1)
    assert second.json["code"] == "busy"
    assert second.json["hint"]
    assert staging(out).is_dir()
    (tmp_path / "go").touch()
    assert finish(first).code == 0
    assert set(contents(out)) == {*contents(source), "ctxextend.json"}
    run("convert", source, *YARN, "--out", out, code=3)


def test_many_runs_at_once_leave_one_output(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = [driven("", "convert", source, *YARN, "--out", out, "-q") for _ in range(4)]
    codes = sorted(finish(process).code for process in runs)
    assert codes[0] == 0
    assert set(codes[1:]) <= {1, 3}
    call("convert", source, *YARN, "--out", tmp_path / "again" / "out", code=0)
    assert contents(out) == contents(tmp_path / "again" / "out")
    assert not staging(out).exists()


def test_a_disk_that_fills_up_in_the_middle(source: Path, tmp_path: Path) -> None:
    before, out = tree(source), tmp_path / "new" / "out"
    ran = finish(driven(FULL, "convert", source, *YARN, "--out", out, "--json", STOP_AT=SHARDS[1]))
    assert ran.code == 1
    assert ran.json["code"] == "disk-full"
    assert ran.json["hint"]
    assert not out.parent.exists()
    assert tree(source) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"ctxextend", os.fsencode(place), b"tmpfs", 0, b"size=100k") != 0:
        pytest.skip(f"a small file system can't be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    libc.umount2(os.fsencode(place), 2)


def test_a_disk_that_is_too_small(source: Path, small_disk: Path) -> None:
    before = tree(source)
    ran = run("convert", source, *YARN, "--out", small_disk / "out", "--json", code=1)
    assert ran.json["code"] == "disk-full"
    assert ran.json["found"].endswith("bytes free")
    assert "--link-mode symlink" in ran.json["hint"]
    assert not list(small_disk.iterdir())
    hard = run("convert", source, *YARN[:4], "--link-mode", "hardlink", "--out", small_disk / "out", "--json", code=1)
    assert hard.json["code"] == "no-link"
    run("convert", source, *YARN[:4], "--link-mode", "symlink", "--out", small_disk / "out", code=0)
    assert tree(source) == before


def test_a_disk_that_is_full_while_files_are_written(source: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 96 * 1024)
    ran = run("convert", source, *YARN, "--config-only", "--out", small_disk / "out", "--json", code=1)
    assert ran.json["code"] == "disk-full"
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_reader_that_goes_away(pristine: Path) -> None:
    command = f"{sys.executable} -m ctxextend plan {pristine} --method yarn --target 2k --json; echo $? >&3"
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", f"{{ {command}; }} 3>&2 | head -c 1"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == "{"
        assert done.stderr.strip() in ("0", "1")
