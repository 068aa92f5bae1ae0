"""What became of a recipe, as a page of Markdown: for the summary of a pipeline, or to be read as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ctxextend.card.markdown import plain, table
from ctxextend.documents import ErrorDocument
from ctxextend.release.results import RunResult, Status, StepResult, VariantResult

#: What a page says of a step, the worst first.
_SAID: Final[Mapping[Status, str]] = {
    "failed": "**no**",
    "started": "cut short",
    "pending": "not run",
    "earlier": "not run",
    "done": "yes",
    "unchanged": "yes",
}


def summary(result: RunResult) -> str:
    """A table of the variants and their steps, one of their figures, and what went wrong."""
    good = sum(variant.ok for variant in result.variants)
    lines = [f"# {plain(result.recipe)}", "", f"{good} of {len(result.variants)} variants passed everything.", ""]
    steps = list(dict.fromkeys(step.step for variant in result.variants for step in variant.steps))
    lines += table(
        ("variant", *steps), [(plain(_name(v)), *(_step(v, name) for name in steps)) for v in result.variants]
    )
    figures = list(dict.fromkeys(name for variant in result.variants for name in _figures(variant)))
    if figures:
        lines += table(
            ("", *(plain(_name(variant)) for variant in result.variants)),
            [_row(name, result.variants) for name in figures],
        )
    done = [
        (plain(_name(variant)), step.step, plain(step.output), plain(step.summary))
        for variant in result.variants
        for step in variant.steps
        if step.finished and step.step in ("convert", "check", "smoke", "push")
    ]
    lines += table(("variant", "step", "output", "what"), done) if done else []
    lines += _failures(result.variants)
    return "\n".join(lines).rstrip() + "\n"


def _name(variant: VariantResult) -> str:
    return variant.label or variant.recipe


def _step(variant: VariantResult, name: str) -> str:
    """What became of one step over all outputs: the worst of it."""
    found = {step.status for step in variant.steps if step.step == name}
    return next((said for status, said in _SAID.items() if status in found), "")


def _figures(variant: VariantResult) -> dict[str, float | None]:
    """The figures of a variant; those of further outputs name them."""
    found: dict[str, float | None] = {}
    for step in variant.steps:
        for name, value in step.figures.items():
            found[name if name not in found else f"{step.output}: {name}"] = value
    return found


def _row(name: str, variants: Iterable[VariantResult]) -> tuple[str, ...]:
    values = [_figures(variant).get(name, "") for variant in variants]
    return (
        name,
        *(value if isinstance(value, str) else "none" if value is None else f"{value:.4g}" for value in values),
    )


def _failures(variants: Iterable[VariantResult]) -> Iterator[str]:
    for variant in variants:
        if variant.error is not None:
            said = f"{_name(variant)} ended with {variant.error.exit_code}: {variant.error.message}"
            yield from (f"- {plain(said)}", "")
        for step in variant.steps:
            if step.error is not None:
                yield from (_failure(variant, step, step.error), "")


def _failure(variant: VariantResult, step: StepResult, error: ErrorDocument) -> str:
    facts = [f"{name} {value}" for name, value in (("expected", error.expected), ("found", error.found)) if value]
    told = f": {'; '.join(facts)}" if facts else ""
    where = f"{_name(variant)}, {step.step} of {step.output} ended with {error.exit_code}"
    return f"- {plain(f'{where}: {error.message}{told}')}"
