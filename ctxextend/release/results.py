"""What became of a recipe: of each step, of each variant, of the whole. Written as it goes, printed at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from ctxextend.documents import ErrorDocument
from ctxextend.version import VERSION

SCHEMA: Final = "ctxextend.run/1"
VARIANT_SCHEMA: Final = "ctxextend.run-variant/1"

StepName = Literal["convert", "check", "smoke", "eval", "card", "push"]

#: done: by this run; unchanged: by an earlier one, of the same inputs; started: cut short; pending: not come to.
Status = Literal["done", "unchanged", "failed", "started", "pending"]


class StepResult(Struct, frozen=True, kw_only=True):
    """One step on one output. ``inputs``: a digest of everything that decides its result; ``files``: what it wrote.

    Paths are relative to the variant's folder. ``figures``: numbers that tell variants apart, such as
    ``perplexity@8192`` (tokens); null for one that isn't finite.
    """

    step: StepName
    output: str
    status: Status
    inputs: str
    summary: str = ""
    seconds: float = 0.0
    files: tuple[str, ...] = ()
    figures: Mapping[str, float | None] = {}
    error: ErrorDocument | None = None

    @property
    def finished(self) -> bool:
        """Whether it has a result that stands."""
        return self.status in ("done", "unchanged")


class VariantResult(Struct, frozen=True, kw_only=True):
    """One variant. ``label`` names it in the matrix, ``values`` are what the matrix chose; ``document``: a digest of
    what the recipe says for it. ``folder`` is relative to the recipe's output folder.
    """

    schema: str = VARIANT_SCHEMA
    version: str = VERSION
    recipe: str
    label: str
    values: Mapping[str, Any]
    document: str
    folder: str
    source: str
    ok: bool
    exit_code: int
    steps: tuple[StepResult, ...]


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
