"""From a recipe to a scaling that the runtimes can read: methods tried in order, each by its variants.

How a scaling is written, and which form is taken, is the format's business: a :class:`Chooser` answers that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from ctxextend.changes import as_json
from ctxextend.encoding import Chosen, PlanWarning, choose_encoding, misreaders
from ctxextend.errors import RefusedError, UsageError
from ctxextend.formats.hf_write import encodings
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.inspection import Inspection
from ctxextend.methods import Options, decode_options, find_method
from ctxextend.methods.auto import Choice, choices
from ctxextend.methods.base import Base, HasVariants, Method
from ctxextend.recipe import Recipe, bakes_temperature
from ctxextend.runtimes import DEFAULT_RUNTIMES
from ctxextend.scaling import Scaling, table, untempered

Form = TypeVar("Form")

#: ``choose(method, scalings)``: the form of the scalings by label that every runtime reads as planned. Raises
#: :class:`RefusedError` with the code ``unreadable`` or ``unwritable`` where there is none.
Chooser = Callable[[str, Mapping[str, Scaling]], Form]


class Temperature(Struct, frozen=True, kw_only=True):
    """What is left to the weights: the factor on cos and sin, and that on the softmax."""

    attention_factor: float
    softmax_factor: float


class Solution(Struct, Generic[Form], frozen=True, kw_only=True):
    """A method that worked out: its scalings by label, the form that was chosen for them, and what that costs.

    ``folded``: the temperature that the scalings left behind, by label, since the weights are to hold it.
    """

    method: str
    options: Mapping[str, Any]
    scalings: Mapping[str, Scaling]
    chosen: Form
    warnings: tuple[PlanWarning, ...] = ()
    folded: Mapping[str, Temperature] = {}


def wanted_bases(inspection: Inspection, recipe: Recipe) -> dict[str, Base]:
    """The bases of the layers to extend, by label."""
    ropes = {g.label: g for g in inspection.groups if g.base is not None}
    default = [group.label for group in inspection.groups if group.extendable]
    labels = recipe.layers or tuple(default)
    for label in labels:
        if label not in ropes:
            raise UsageError(
                f"there are no layers with a rope called {label}",
                code="unknown-layers",
                key="--layers",
                expected=", ".join(ropes),
                found=label,
            )
    if inspection.family.form != "nested" and default and set(labels) != set(default):
        raise RefusedError(
            "this family's config holds one rope for all its layers, so they can't be extended apart",
            code="one-rope",
            file="config.json",
            key="rope_scaling",
            expected=", ".join(default),
            found=", ".join(labels),
            hint="leave --layers away",
        )
    return {label: base for label in labels if (base := ropes[label].base) is not None}


def solve(
    recipe: Recipe,
    wanted: Mapping[str, Base],
    target: int,
    factor: float,
    choose: Chooser[Form],
) -> tuple[Solution[Form], tuple[str, ...]]:
    """The first choice of a method that every runtime reads as planned, and why it was chosen.

    Where the recipe puts the temperature into the weights, what runtimes must read is the scaling without it.
    """
    if recipe.method == "auto":
        if recipe.options:
            raise UsageError("auto takes no parameters", code="bad-parameter", hint="name a method with --method")
        order: Sequence[Choice] = choices(factor, fine_tune=recipe.fine_tune)
    else:
        order = (Choice(method=recipe.method, reason="", options=recipe.options),)
    reasons: list[str] = []
    refused: RefusedError | None = None
    for choice in order:
        method = find_method(choice.method)
        try:
            solution = _with_method(wanted, target, method, choice.options, choose, fold=bakes_temperature(recipe))
        except RefusedError as error:
            if error.code not in ("unreadable", "unwritable"):
                raise
            refused = refused or error
            reasons.append(f"not {choice.method}: {error.message}")
            continue
        if choice.reason:
            reasons.append(f"{choice.method}: {choice.reason}")
        return solution, tuple(reasons)
    assert refused is not None
    raise refused


def _with_method(
    wanted: Mapping[str, Base],
    target: int,
    method: Method,
    given: Mapping[str, Any],
    choose: Chooser[Form],
    *,
    fold: bool,
) -> Solution[Form]:
    """The method's first variant that the runtimes read alike. Raises the first variant's refusal if none is."""
    options = decode_options(method, given)
    first = next(iter(wanted.values()))
    variants = method.variants(first, options) if isinstance(method, HasVariants) else (options,)
    refused: RefusedError | None = None
    for variant in variants:
        full = _scalings(method, wanted, target, variant)
        scalings = {label: untempered(scaling) for label, scaling in full.items()} if fold else full
        try:
            chosen = choose(method.name, scalings)
        except RefusedError as error:
            refused = refused or error
            continue
        said = _said_options(method, variant)
        warnings: tuple[PlanWarning, ...] = ()
        if refused is not None:
            wished = _scalings(method, wanted, target, variants[0])
            warnings = (_second_best(wanted, wished, full, target, said, refused),)
        return Solution(
            method=method.name,
            options=said,
            scalings=scalings,
            chosen=chosen,
            warnings=warnings,
            folded=_folded(wanted, full, target) if fold else {},
        )
    assert refused is not None
    raise refused


def config_chooser(
    inspection: Inspection, recipe: Recipe, wanted: Mapping[str, Base], target: int, windows: tuple[Edit, ...]
) -> Chooser[Chosen]:
    """Forms of a config.json, whose sliding windows ``windows`` changes."""
    config = apply_edits(dict(inspection.config), windows)
    kept = {g.label: g.base.table() for g in inspection.groups if g.base and g.label not in wanted}
    excused = _excused(inspection, recipe, wanted)
    specs = {label: base.spec for label, base in wanted.items()}

    def choose(method: str, scalings: Mapping[str, Scaling]) -> Chosen:
        return choose_encoding(
            config,
            inspection.family,
            specs,
            scalings,
            target=target,
            required=recipe.runtimes,
            carriers=recipe.carrier,
            method=method,
            kept=kept,
            excused=excused,
            allow="unreadable" in recipe.allow,
        )

    return choose


def _excused(inspection: Inspection, recipe: Recipe, wanted: Mapping[str, Base]) -> frozenset[str]:
    """Readers nobody named that misread a trained-in scaling however it is written: no conversion mends that."""
    trained_in = {label: base.scaling for label, base in wanted.items() if base.scaling is not None}
    rope, trained = inspection.rope, inspection.trained_context
    if recipe.runtimes != DEFAULT_RUNTIMES or rope is None or len(trained_in) != len(wanted):
        return frozenset()
    specs = {label: base.spec for label, base in wanted.items()}
    tables = {label: base.table() for label, base in wanted.items()}
    found: frozenset[str] | None = None
    for form in encodings(inspection.config, inspection.family, rope, specs, trained_in, target=trained):
        config = apply_edits(dict(inspection.config), form.edits)
        wrong = misreaders(config, inspection.family, tables, trained=trained, required=recipe.runtimes)
        found = wrong if found is None else found & wrong
    return found or frozenset()


def _folded(wanted: Mapping[str, Base], scalings: Mapping[str, Scaling], target: int) -> dict[str, Temperature]:
    """The temperatures that aren't 1."""
    tables = {label: table(base.spec, scalings[label], length=target) for label, base in wanted.items()}
    return {
        label: Temperature(attention_factor=found.attention_factor, softmax_factor=found.softmax_factor)
        for label, found in tables.items()
        if (found.attention_factor, found.softmax_factor) != (1.0, 1.0)
    }


def _scalings(method: Method, wanted: Mapping[str, Base], target: int, options: Options) -> dict[str, Scaling]:
    try:
        return {label: method.solve(base, target, options) for label, base in wanted.items()}
    except ValueError as error:
        raise UsageError(
            f"{method.name} can't be used here: {error}", code="bad-parameter", hint=_option_hint(method)
        ) from error


def _said_options(method: Method, options: Options) -> dict[str, Any]:
    """The parameters that aren't the method's defaults."""
    default = as_json(method.options())
    return {key: value for key, value in as_json(options).items() if value != default[key]}


def _second_best(
    wanted: Mapping[str, Base],
    wished: Mapping[str, Scaling],
    taken: Mapping[str, Scaling],
    target: int,
    said: Mapping[str, Any],
    refused: RefusedError,
) -> PlanWarning:
    """What it costs that the first variant couldn't be written."""
    label = next(iter(wanted))
    spec = wanted[label].spec
    best, got = (table(spec, scalings[label], length=target) for scalings in (wished, taken))
    words = " ".join(f"--set {key}={value}" for key, value in said.items())
    differences = [f"frequencies by {100.0 * got.error_against(best):.3g} % at most"]
    for name in ("attention_factor", "softmax_factor"):
        ours, theirs = getattr(got, name), getattr(best, name)
        if ours != theirs:
            differences.append(f"{name} {ours:.5g} instead of {theirs:.5g}")
    return PlanWarning(
        code="second-best",
        message=f"{refused.message}; {words} was taken instead, which differs from it: {', '.join(differences)}",
        hint=f"say {words} to settle it, or name fewer --runtimes",
    )


def _option_hint(method: Method) -> str:
    fields = [field.name for field in msgspec.structs.fields(method.options)]
    return f"parameters of {method.name}: {', '.join(fields)}" if fields else "it has no parameters"
