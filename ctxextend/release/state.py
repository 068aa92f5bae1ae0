"""The file ``run.json`` of a variant's folder: what was begun and what came of it, so that a run can go on.

It is written before a step begins and after it has ended, in one rename each time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ctxextend.apply import encode, output_error
from ctxextend.errors import CheckpointError, OutputError, RefusedError
from ctxextend.release.results import STATE, VARIANT_SCHEMA, StepResult, VariantResult, judged
from ctxextend.tensors.checksums import sha256_of
from ctxextend.tensors.staging import staged_data

#: What a run holds while it works in a folder.
_LOCK: Final = ".run.lock"


def read_state(folder: Path, *, recipe: str) -> VariantResult | None:
    """What an earlier run of this recipe left in a folder; None where nothing is.

    Raises :class:`RefusedError` for a ``run.json`` of anything else, :class:`CheckpointError` for a broken one.
    """
    path = folder / STATE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise output_error(error, path) from error
    try:
        found = msgspec.json.decode(data, type=VariantResult)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if VARIANT_SCHEMA.encode() not in data and data.strip(b"\0"):
            raise _foreign(path, VARIANT_SCHEMA, str(error)[:200]) from error
        raise CheckpointError(
            "the record of an earlier run can't be read",
            code="broken-state",
            file=str(path),
            expected=VARIANT_SCHEMA,
            found=str(error)[:200],
            hint=f"move {folder} away, or run with another --out: everything is done anew there",
        ) from error
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
        left = {} if before is None else {(each.step, each.output): each for each in before.steps}
        self.folder = folder
        self._earlier = {
            place: msgspec.structs.replace(each, status="earlier")
            for place, each in left.items()
            if each.finished or each.status == "earlier"
        }
        made, cards = ((), {}) if before is None else (before.made, before.cards)
        steps = [self._earlier.get((each.step, each.output), each) for each in result.steps]
        self.result = judged(msgspec.structs.replace(result, made=made, cards=cards), steps=steps)

    def known(self, step: StepResult) -> StepResult | None:
        """The result that an earlier run has of this step."""
        return self._earlier.get((step.step, step.output))

    def put(self, step: StepResult) -> None:
        """Keep what became of a step."""
        place = (step.step, step.output)
        made, cards = self.result.made, self.result.cards
        if step.step == "convert" and step.output not in made:
            made = (*made, step.output)
        if step.step == "card" and step.status == "done":
            cards = {**cards, **step.files}
        steps = [step if (each.step, each.output) == place else each for each in self.result.steps]
        self.result = judged(msgspec.structs.replace(self.result, made=made, cards=cards), steps=steps)
        write_document(self.folder / STATE, encode(self.result))


def write_document(path: Path, data: bytes) -> None:
    """A file's new bytes, whole or not at all. Raises :class:`OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_data(path, data):
            pass
    except OSError as error:
        raise output_error(error, path) from error


def sha256_of_file(path: Path) -> str:
    """The checksum of a file; empty for one that isn't there."""
    try:
        return sha256_of(path)
    except OSError:
        return ""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made where it isn't there, for one run at a time. Raises :class:`OutputError`.

    The lock is on a file in it, opened for writing as network file systems want it, and dies with its process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / _LOCK).open("ab")
    except OSError as error:
        raise output_error(error, folder) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                "another run works in this folder",
                code="busy",
                file=str(folder),
                hint="wait for it, or choose another --out",
            ) from error
        except OSError as error:
            raise output_error(error, folder) from error
        yield
