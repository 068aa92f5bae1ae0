"""The file ``run.json`` of a variant's folder: what was begun and what came of it, so that a run can go on.

It is written before a step begins and after it has ended, in one rename each time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ctxextend.apply import encode, output_error
from ctxextend.errors import OutputError, RefusedError
from ctxextend.release.results import VARIANT_SCHEMA, StepResult, VariantResult
from ctxextend.tensors.staging import staged_data

NAME: Final = "run.json"


def read_state(folder: Path, *, recipe: str) -> VariantResult | None:
    """What an earlier run of this recipe left in a folder; None where nothing is.

    Raises :class:`RefusedError` for a ``run.json`` of anything else.
    """
    path = folder / NAME
    try:
        found = msgspec.json.decode(path.read_bytes(), type=VariantResult)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _foreign(path, VARIANT_SCHEMA, str(error)[:200]) from error
    if found.schema != VARIANT_SCHEMA:
        raise _foreign(path, VARIANT_SCHEMA, found.schema)
    if found.recipe != recipe:
        raise _foreign(path, f"a run of {recipe}", f"a run of {found.recipe}")
    return found


def _foreign(path: Path, expected: str, found: str) -> RefusedError:
    return RefusedError(
        "another file stands where this run keeps its results",
        code="output-exists",
        file=str(path),
        expected=expected,
        found=found,
        hint="--out names another folder; or move the file away",
    )


class State:
    """The results of a variant as they come, each kept on the disk."""

    def __init__(self, folder: Path, result: VariantResult, before: VariantResult | None) -> None:
        """``result`` lists every step as pending; ``before`` is what an earlier run left."""
        self.folder = folder
        self.result = result
        self._before = {} if before is None else {(step.step, step.output): step for step in before.steps}

    def known(self, step: StepResult) -> StepResult | None:
        """What an earlier run left of this step."""
        return self._before.get((step.step, step.output))

    def put(self, step: StepResult) -> None:
        """Keep what became of a step."""
        where = (step.step, step.output)
        steps = tuple(step if (each.step, each.output) == where else each for each in self.result.steps)
        failed = next((each.error for each in steps if each.error is not None), None)
        code = 0 if failed is None else failed.exit_code
        self.result = msgspec.structs.replace(
            self.result, steps=steps, ok=all(each.finished for each in steps), exit_code=code
        )
        self.save()

    def save(self) -> None:
        """Write it. Steps that this run hasn't come to are kept as an earlier one left them."""
        steps = [
            self._before.get((step.step, step.output), step) if step.status == "pending" else step
            for step in self.result.steps
        ]
        write_document(self.folder / NAME, encode(msgspec.structs.replace(self.result, steps=tuple(steps))))


def write_document(path: Path, data: bytes) -> None:
    """A file's new bytes, whole or not at all. Raises :class:`OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_data(path, data):
            pass
    except OSError as error:
        raise output_error(error, path) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made where it isn't there, for one run at a time. Raises :class:`OutputError`.

    The lock is on the folder itself and dies with its process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise output_error(error, folder) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                "another run works in this folder",
                code="busy",
                file=str(folder),
                hint="wait for it, or choose another --out",
            ) from error
        yield
    finally:
        os.close(descriptor)
