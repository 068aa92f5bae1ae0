"""``ctxextend methods | families | runtimes``: what is known, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ctxextend.baking import why_not
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.documents import (
    FamiliesDocument,
    FamilyGguf,
    FamilyRow,
    MethodRow,
    MethodsDocument,
    RuntimeRow,
    RuntimesDocument,
)
from ctxextend.exports.rows import ROWS
from ctxextend.families import FAMILIES, REFUSED, WRAPPERS, Family
from ctxextend.families.variants import VARIANTS
from ctxextend.formats.gguf_architectures import OF_FAMILY
from ctxextend.methods import METHODS, POSITION_METHODS, Method, find_method, third_party_methods
from ctxextend.methods.positions import PositionMethod
from ctxextend.runtimes import DEFAULT_RUNTIMES, READERS, Reader
from ctxextend.runtimes.gguf_base import GgufReader
from ctxextend.runtimes.llama_cpp import GGUF_READERS


def methods(as_json: o.JsonOpt = False) -> None:
    """The methods, their parameters and where they come from.

    Example: ctxextend methods
    """
    rows = method_rows()
    if as_json:
        Console(as_json=True).document(MethodsDocument(methods=tuple(rows)))
        return
    _draw(
        [(row.name, row.summary, ", ".join(row.parameters)) for row in rows],
        ("method", "what", "parameters"),
    )


def families(as_json: o.JsonOpt = False) -> None:
    """The model families: their positions, and which published scalings were trained in.

    Example: ctxextend families
    """
    rows = [family_row(family) for family in FAMILIES.values()]
    if as_json:
        found = FamiliesDocument(families=tuple(rows), wrappers=dict(WRAPPERS), refused=dict(REFUSED))
        Console(as_json=True).document(found)
        return
    shown = [
        (
            row.family,
            ", ".join(row.model_types),
            row.position,
            ", ".join(row.trained_in),
            gguf_cell(row),
            row.refusal or "",
        )
        for row in rows
    ]
    _draw(shown, ("family", "model types", "positions", "trained in", "GGUF", "refused because"))
    _draw(wrapper_rows(), ("\nlanguage model inside", "\nmodel types around it, or around any other in text_config"))
    unbaked = [(names, reason) for reason, names in unbaked_rows()]
    _draw(unbaked, ("\nnot with --bake temperature", "\nbecause"))
    refused = [(str(len(kinds.split(", "))), f"{reason}: {kinds}") for reason, kinds in refused_rows()]
    _draw(refused, ("\nrefused", "\nbecause, and the model types"))


def runtimes(as_json: o.JsonOpt = False) -> None:
    """The runtimes whose reading of a checkpoint is known, and how it is known.

    Example: ctxextend runtimes
    """
    readers: tuple[Reader | GgufReader, ...] = (*READERS, *GGUF_READERS)
    rows = [
        RuntimeRow(
            runtime=reader.runtime,
            versions=reader.versions,
            current=reader.current,
            default=reader.current and reader.runtime in DEFAULT_RUNTIMES,
            evidence=reader.evidence,
        )
        for reader in readers
    ]
    if as_json:
        Console(as_json=True).document(RuntimesDocument(runtimes=tuple(rows)))
        return
    _draw(
        [(row.runtime, row.versions, "yes" if row.default else "", row.evidence) for row in rows],
        ("runtime", "versions", "by default", "known because it was"),
    )


def method_rows() -> list[MethodRow]:
    """One row a method, built in or installed."""
    rows = []
    built_in: list[Method | PositionMethod] = [*METHODS.values(), *POSITION_METHODS.values()]
    for method in (*built_in, *(find_method(name) for name in third_party_methods())):
        fields = msgspec.structs.fields(method.options)
        parameters = {f.name: msgspec.to_builtins(f.default) for f in fields}
        rows.append(MethodRow(name=method.name, summary=method.summary, source=method.source, parameters=parameters))
    return rows


def family_row(family: Family) -> FamilyRow:
    """What the tables say of a family."""
    architecture = OF_FAMILY.get(family.name)
    return FamilyRow(
        family=family.name,
        model_types=tuple(family.model_types),
        position=family.position,
        trained_in=tuple(kind for kind, origin in family.origins.items() if origin == "trained"),
        added_by_hand=tuple(kind for kind, origin in family.origins.items() if origin == "bolted-on"),
        refusal=family.refusal,
        gguf=None if architecture is None else FamilyGguf(architecture=architecture, exported=family.name in ROWS),
        not_baked=why_not(family) if family.position == "rope" else None,
    )


def gguf_cell(row: FamilyRow) -> str:
    """The architecture of a family's GGUF files, and whether another program makes them."""
    if row.gguf is None:
        return ""
    return row.gguf.architecture if row.gguf.exported else f"{row.gguf.architecture}, by --converter"


def unbaked_rows() -> list[tuple[str, str]]:
    """Why families with a rope have no temperature in their weights, and which."""
    reasons: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        reason = why_not(family) if family.position == "rope" and family.refusal is None else None
        if reason is not None:
            reasons.setdefault(reason, []).append(family.name)
    return [(reason, ", ".join(names)) for reason, names in reasons.items()]


def wrapper_rows() -> list[tuple[str, str]]:
    """The language model that each wrapper's class takes by default, and the wrappers."""
    inside: dict[str, list[str]] = {}
    for wrapper, model_type in sorted(WRAPPERS.items()):
        inside.setdefault(model_type, []).append(wrapper)
    return [(model_type, ", ".join(wrappers)) for model_type, wrappers in sorted(inside.items())]


def refused_rows() -> list[tuple[str, str]]:
    """Why model types aren't extended, and which."""
    reasons: dict[str, list[str]] = {}
    for model_type, reason in sorted(REFUSED.items()):
        reasons.setdefault(reason, []).append(model_type)
    return [(reason, ", ".join(model_types)) for reason, model_types in reasons.items()]


def variant_rows() -> list[tuple[str, str, str]]:
    """The values that make another model of a family, and what is done then."""
    rows = []
    for variant in VARIANTS:
        then = f"read as {variant.use}" if variant.use else f"refused: {variant.refusal}"
        rows.append((variant.family, variant.condition, "there is no rope" if variant.without_rope else then))
    return rows


def _draw(rows: Sequence[tuple[str, ...]], columns: tuple[str, ...]) -> None:
    from ctxextend.cli.pages import name_table

    Console().draw(name_table(rows, columns))
