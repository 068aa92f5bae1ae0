"""A variant that can be carried out: its outputs, planned, and what tells whether an earlier run made them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from ctxextend.apply import Options
from ctxextend.errors import RefusedError
from ctxextend.exports.outtypes import NATIVE
from ctxextend.findings import Meant
from ctxextend.hub import PushOptions
from ctxextend.pipeline import Opened
from ctxextend.plan import Plan
from ctxextend.release import asked
from ctxextend.release.document import OutputPart, listed
from ctxextend.release.reading import Variant
from ctxextend.release.results import StepResult, VariantResult
from ctxextend.tensors.converter import find_converter
from ctxextend.tensors.llama_quantize import find_quantizer
from ctxextend.tensors.places import is_proven, manifest_of


class RunOptions(Struct, frozen=True, kw_only=True):
    """How a recipe is carried out. ``out`` instead of the recipe's own; ``push`` False leaves publishing away.

    ``force``: every step is done, whatever an earlier run left.
    """

    out: str | Path | None = None
    push: bool = True
    force: bool = False
    dry_run: bool = False
    token: str | None = None
    cache_dir: Path | None = None
    quiet: bool = False


class Output(Struct, frozen=True, kw_only=True):
    """One output, planned. ``inputs``: a digest of everything that decides its bytes."""

    part: OutputPart
    name: str
    path: Path
    evidence: Path
    plan: Plan
    options: Options
    inputs: str
    check: asked.CheckAsked | None
    meant: Meant | None
    smoke: asked.SmokeAsked | None
    evaluation: asked.EvalAsked | None
    base: Opened | None
    card: bool
    push: PushOptions | None


class Prepared(Struct, frozen=True, kw_only=True):
    """A variant that can be carried out. ``folder``: where everything of it goes."""

    recipe: str
    variant: Variant
    folder: Path
    opened: Opened
    family: str | None
    outputs: tuple[Output, ...]


def converted(output: Output, before: VariantResult | None) -> StepResult | None:
    """What an earlier run that finished the conversion put down of it."""
    for step in () if before is None else before.steps:
        if (step.step, step.output) == ("convert", output.name) and (step.finished or step.status == "earlier"):
            return step
    return None


def is_touched(known: StepResult, output: Output) -> bool:
    """Whether somebody may have changed what a conversion has written; where all of it is hashed, whether somebody has.

    What isn't there any more isn't touched.
    """
    path = output.path
    return path.exists() and known.stamp != stamp_of(path) and not is_proven(path)


def made_it(known: StepResult, output: Output) -> bool:
    """Whether a conversion that an earlier run finished is the one that is asked for, and as it was written."""
    return known.inputs == output.inputs and output.path.exists() and not is_touched(known, output)


def stamp_of(path: Path) -> str:
    """A digest of the names, sizes and times of an output's files; its manifest's too where that lies beside it."""
    files = [path, manifest_of(path)] if path.suffix == ".gguf" else sorted(path.rglob("*"))
    return digest([(str(Path(name).relative_to(path.parent)), *stat) for name, *stat in stats_of(files)])


def stats_of(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Of each file that is there its path, its size in bytes, and when it was changed, in nanoseconds."""
    stats = ((str(file), file.stat()) for file in files if file.is_file())
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def times_of(opened: Opened) -> list[tuple[str, int]]:
    """When the source's files were changed, where they lie here: of weights a fingerprint reads samples alone."""
    source = opened.source
    folder = source.folder or (source.file.parent if source.file is not None else None)
    if folder is None:
        return []
    files = ((file.path, folder / file.path) for file in opened.contents.files)
    return [(name, path.stat().st_mtime_ns) for name, path in files if path.exists()]


def programs_of(part: OutputPart) -> list[tuple[str, int, int]]:
    """Of the programs that write an output, which a recipe names or are on PATH, what tells another build."""
    if part.to != "gguf":
        return []
    found: list[Path] = []
    quantizer, converter = (
        None if name is None else Path(name).expanduser() for name in (part.quantizer, part.converter)
    )
    # One that isn't there is told where it is needed.
    with suppress(RefusedError):
        if any(name.lower() not in NATIVE for name in listed(part.outtypes)) and (program := find_quantizer(quantizer)):
            found.append(program.path)
    with suppress(RefusedError):
        if (script := find_converter(converter)) is not None:
            found.append(script)
    return stats_of(found)


def digest(*parts: object) -> str:
    """What tells these values from others."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic", enc_hook=str)).hexdigest()
