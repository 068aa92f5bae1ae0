"""Kills an edit in place at every step, and its undoing at every step: run in a process of its own.

    python -m tests.tensors.killed FILE CASE

A step is a call that changes the disk, or waits for it; a process is killed before it, after it and, of a
write, in its middle. Prints how many steps an edit and an undoing have.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctxextend.checkpoint.gguf_header import read_header
from ctxextend.contents import GgufEdits, GgufValue
from ctxextend.tensors import gguf_journal, ranges
from ctxextend.tensors.gguf_in_place import edit_in_place, recover
from ctxextend.tensors.gguf_journal import journal_path

LONG = GgufValue(type="STRING", value="x" * 17000)
CASES = {
    "insertion": GgufEdits(keys={"general.name": LONG}),
    "padding": GgufEdits(removed=("general.name",)),
    "tensors": GgufEdits(tensors={"first": (4.0, 5.0), "new": (1.0,) * 300}, removed_tensors=("last",)),
    "everything": GgufEdits(
        keys={"general.name": LONG}, tensors={"first": (4.0, 5.0), "new": (1.0,) * 300}, removed_tensors=("last",)
    ),
}


class Steps:
    """Counts steps, and kills the process at one of them."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.step()
            result = call(*arguments, **named)
            self.step()
            return result

        return wrapped

    def writing(self, write_at: Callable[[int, int, bytes], None]) -> Callable[[int, int, bytes], None]:
        def wrapped(descriptor: int, position: int, data: bytes) -> None:
            self.step()
            # A write is cut at the end of a page, or where the disk lost power, at that of a sector.
            half = max(0, (position + len(data) // 2) // 512 * 512 - position)
            write_at(descriptor, position, data[:half])
            self.step()
            write_at(descriptor, position + half, data[half:])
            self.step()

        return wrapped

    def install(self) -> None:
        owners = dict.fromkeys(("insert", "collapse", "truncate", "sync"), ranges)
        for name, owner in (*owners.items(), ("sync", gguf_journal), ("rename", Path), ("unlink", Path)):
            setattr(owner, name, self.around(getattr(owner, name)))
        vars(ranges)["write_at"] = self.writing(ranges.write_at)


def survives(work: Callable[[], None], last: int) -> bool:
    """Whether a child that is killed after ``last`` steps ends before that."""
    child = os.fork()
    if child == 0:
        Steps(last).install()
        failed = True
        try:
            work()
            failed = False
        finally:
            os._exit(failed)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the edit itself failed"
    return os.WIFEXITED(status)


def readable(path: Path) -> None:
    raw = path.read_bytes()
    read_header(path.name, len(raw), lambda offset, count: raw[offset : offset + count])


def main(file: Path, case: str) -> None:
    old, copy = file.read_bytes(), file.with_name("copy.gguf")
    edits, undoing = 0, 0

    def edit() -> None:
        edit_in_place(copy, CASES[case], readable)

    def again() -> None:
        copy.unlink(missing_ok=True)
        shutil.copyfile(file, copy)

    def expect(whole: bytes) -> None:
        assert copy.read_bytes() == whole, f"killed after {edits} steps, undone after {undoing}"
        assert set(file.parent.iterdir()) == {file, copy}
        assert not recover(copy)

    again()
    edit()
    new = copy.read_bytes()
    assert new != old
    finished, first = False, 0
    while True:
        again()
        if survives(edit, edits):
            break
        journal = journal_path(copy).exists()
        assert recover(copy) == journal
        # The edit is done when its journal is gone: but for that, the file is what it was.
        finished = finished or (not journal and copy.read_bytes() != old)
        expect(new if finished else old)
        first = first if journal or finished else edits
        edits += 1
    expect(new)
    assert finished
    # The undoing, killed at each of its steps, of an edit that was killed at every third of its own.
    most = 0
    for at in range(first + 1, edits - 3, 3):
        undoing = 0
        while True:
            again()
            survives(edit, at)
            done = survives(lambda: void(recover(copy)), undoing)
            recover(copy)
            expect(old)
            if done:
                break
            undoing += 1
        most = max(most, undoing)
    sys.stdout.write(f"{edits} {most}\n")


def void(_result: object) -> None:
    """A function's result is of no interest."""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
