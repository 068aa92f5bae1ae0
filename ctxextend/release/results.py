"""What became of a recipe: of each step, of each variant, of the whole. Written as it goes, printed at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ctxextend.documents import ErrorDocument
from ctxextend.encoding import PlanWarning
from ctxextend.version import VERSION

SCHEMA: Final = "ctxextend.run/1"
VARIANT_SCHEMA: Final = "ctxextend.run-variant/1"

#: The files beside the outputs: of a variant, and of all of them together.
STATE: Final = "run.json"
RESULTS: Final = "results.json"
SUMMARY: Final = "results.md"
#: The folder of what was measured.
EVIDENCE: Final = "evidence"

StepName = Literal["convert", "check", "smoke", "eval", "card", "push"]

#: done: by this run; unchanged: by an earlier one, of the same inputs; earlier: by an earlier one, and this run hasn't
#: come to it; started: cut short; pending: never done.
Status = Literal["done", "unchanged", "earlier", "failed", "started", "pending"]


class StepResult(Struct, frozen=True, kw_only=True):
    """One step on one output. ``inputs``: a digest of everything that decides its result.

    ``files``: the evidence that it wrote, by path in the variant's folder, with SHA-256. ``stamp``: of a conversion, a
    digest of its files' names, sizes and times, which tells whether somebody has touched them. ``figures``: numbers
    that tell variants apart, such as ``perplexity@8192`` (tokens); null for one that isn't finite.
    """

    step: StepName
    output: str
    status: Status
    inputs: str
    summary: str = ""
    seconds: float = 0.0
    files: Mapping[str, str] = {}
    stamp: str = ""
    figures: Mapping[str, float | None] = {}
    error: ErrorDocument | None = None

    @property
    def finished(self) -> bool:
        """Whether this run has a result that stands."""
        return self.status in ("done", "unchanged")


class VariantResult(Struct, frozen=True, kw_only=True):
    """One variant. ``label`` names it in the matrix, ``values`` are what the matrix chose.

    ``document``: a digest of what the recipe says for it; ``fingerprint``: of the source. ``folder`` is relative to the
    recipe's. ``made``: the outputs that runs of this recipe have ever written there; ``cards``: their cards by path,
    with SHA-256 as they were written. ``error``: why it wasn't begun.
    """

    schema: str = VARIANT_SCHEMA
    version: str = VERSION
    recipe: str
    label: str
    values: Mapping[str, Any]
    document: str
    fingerprint: str
    folder: str
    source: str
    ok: bool
    exit_code: int
    warnings: tuple[PlanWarning, ...] = ()
    made: tuple[str, ...] = ()
    cards: Mapping[str, str] = {}
    steps: tuple[StepResult, ...]
    error: ErrorDocument | None = None


class RunResult(Struct, frozen=True, kw_only=True):
    """The whole run, or one shard of it. ``exit_code``: of the first variant that isn't ok."""

    schema: str = SCHEMA
    version: str = VERSION
    recipe: str
    out: str
    shard: str | None
    dry_run: bool
    ok: bool
    exit_code: int
    variants: tuple[VariantResult, ...]


def judged(result: VariantResult, *, steps: Iterable[StepResult]) -> VariantResult:
    """A variant with these steps: ok where every one has a result of this run, else with the code of what failed."""
    found = tuple(steps)
    error = result.error or next((step.error for step in found if step.error is not None), None)
    return msgspec.structs.replace(
        result,
        steps=found,
        ok=error is None and all(step.finished for step in found),
        exit_code=0 if error is None else error.exit_code,
    )
