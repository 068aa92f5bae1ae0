"""A variant that can be carried out: its outputs, planned, and what tells whether an earlier run made them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from ctxextend.apply import Options
from ctxextend.findings import Meant
from ctxextend.hub import PushOptions
from ctxextend.pipeline import Opened
from ctxextend.plan import Plan
from ctxextend.release import asked
from ctxextend.release.document import OutputPart
from ctxextend.release.reading import Variant
from ctxextend.release.results import StepResult, VariantResult
from ctxextend.tensors.places import manifest_of


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


def stands(output: Output, before: VariantResult | None) -> bool:
    """Whether an earlier run made this very output, and nobody has touched it since."""
    steps = () if before is None else before.steps
    known = next((step for step in steps if (step.step, step.output) == ("convert", output.name)), None)
    return known is not None and made_it(known, output)


def made_it(known: StepResult, output: Output) -> bool:
    """Whether a conversion that an earlier run finished is still the one that is asked for."""
    finished = known.finished or known.status == "earlier"
    return finished and known.inputs == output.inputs and known.stamp == stamp_of(output.path)


def stamp_of(path: Path) -> str:
    """A digest of the names, sizes and times of an output's files; its manifest's too where that lies beside it."""
    files = [path, manifest_of(path)] if path.suffix == ".gguf" else sorted(path.rglob("*"))
    stats = [(str(file.relative_to(path.parent)), file.stat()) for file in files if file.is_file()]
    return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def times_of(opened: Opened) -> list[tuple[str, int]]:
    """When the source's files were changed, where they lie here: of weights a fingerprint reads samples alone."""
    source = opened.source
    folder = source.folder or (source.file.parent if source.file is not None else None)
    if folder is None:
        return []
    files = ((file.path, folder / file.path) for file in opened.contents.files)
    return [(name, path.stat().st_mtime_ns) for name, path in files if path.exists()]


def programs_of(part: OutputPart) -> list[tuple[str, int, int]]:
    """Of the programs that a recipe names, what tells another build."""
    paths = (Path(name).expanduser() for name in (part.quantizer, part.converter) if name is not None)
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]


def digest(*parts: object) -> str:
    """What tells these values from others."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic", enc_hook=str)).hexdigest()
