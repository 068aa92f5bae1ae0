"""Where a report goes: into a folder of its own, in which nothing of anybody else is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ctxextend.errors import OutputError, RefusedError
from ctxextend.lab import ledger
from ctxextend.lab.results import COMPARE_SCHEMA, EVAL_SCHEMA

PAGE: Final = "report.html"

#: The numbers behind the page, with what they say of themselves.
DATA: Final = {"eval.json": EVAL_SCHEMA, "compare.json": COMPARE_SCHEMA}

#: The charts that a report may hold.
CHARTS: Final = ("perplexity", "passkey", "needles", "variables", "words", "tasks", "short", "spectrum", "memory")


def require_report_folder(folder: Path, *, sources: Iterable[Path], force: bool) -> None:
    """Raises before hours of measuring where a report can't go, or would replace what isn't ours.

    ``sources``: folders that are never written to. ``force`` lets files of others be replaced, not the rest.
    Raises :class:`RefusedError` (``inside-source``, ``output-exists``), :class:`OutputError` where a file is in
    the way of the folder.
    """
    place = folder.resolve()
    for source in sources:
        apart = source.resolve()
        if place == apart or apart in place.parents:
            raise RefusedError(
                "the report would lie inside the checkpoint, which is never written to",
                code="inside-source",
                file=str(folder),
                key="--report",
                found=str(source),
                hint="another --report folder",
            )
    standing = next(path for path in (place, *place.parents) if path.exists())
    if not standing.is_dir():
        raise OutputError(
            "the report needs a folder, and this is a file",
            code="not-a-folder",
            file=str(folder if standing == place else standing),
            key="--report",
            hint="another --report folder",
        )
    foreign = None if force else next(_foreign(folder), None)
    if foreign is not None:
        raise RefusedError(
            "there is a file that a report would replace, and no report wrote it",
            code="output-exists",
            file=str(foreign),
            key="--report",
            hint="another --report folder, or --force to replace it",
        )


def holds_report(folder: Path) -> bool:
    """Whether the numbers of a report of ours lie there: then the page and the charts are ours as well."""
    return any(_says(folder / name, schema) for name, schema in DATA.items())


def _foreign(folder: Path) -> Iterator[Path]:
    """What stands where a report would write, and isn't of one."""
    for path in sorted({folder / ledger.NAME, *folder.glob("cells-*.jsonl")}):
        if _exists(path) and not _is_ledger(path):
            yield path
    for name, schema in DATA.items():
        if _exists(folder / name) and not _says(folder / name, schema):
            yield folder / name
    if not holds_report(folder):
        yield from filter(_exists, (folder / name for name in (PAGE, *(f"{chart}.png" for chart in CHARTS))))


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _is_ledger(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return ledger.begins_as_ledger(file.readline(1 << 16))


def _says(path: Path, schema: str) -> bool:
    """Whether a file is a document of this schema."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("schema") == schema
