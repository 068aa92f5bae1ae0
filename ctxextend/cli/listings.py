"""``ctxextend methods | families | runtimes``: what is known, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ctxextend.baking import why_not
from ctxextend.cli import options as o
from ctxextend.cli.console import Console
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
        Console(as_json=True).document({"schema": "ctxextend.methods/1", "methods": rows})
        return
    _draw(
        [(r["name"], r["summary"], ", ".join(r["parameters"])) for r in rows],
        ("method", "what", "parameters"),
    )


def families(as_json: o.JsonOpt = False) -> None:
    """The model families: their positions, and which published scalings were trained in.

    Example: ctxextend families
    """
    rows = [family_row(family) for family in FAMILIES.values()]
    if as_json:
        document = {
            "schema": "ctxextend.families/1",
            "families": rows,
            "wrappers": dict(WRAPPERS),
            "refused": dict(REFUSED),
        }
        Console(as_json=True).document(document)
        return
    shown = [
        (
            r["family"],
            ", ".join(r["model_types"]),
            r["position"],
            ", ".join(r["trained_in"]),
            gguf_cell(r),
            r["refusal"] or "",
        )
        for r in rows
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
        {
            "runtime": reader.runtime,
            "versions": reader.versions,
            "current": reader.current,
            "default": reader.current and reader.runtime in DEFAULT_RUNTIMES,
            "evidence": reader.evidence,
        }
        for reader in readers
    ]
    if as_json:
        Console(as_json=True).document({"schema": "ctxextend.runtimes/1", "runtimes": rows})
        return
    _draw(
        [(str(r["runtime"]), str(r["versions"]), "yes" if r["default"] else "", str(r["evidence"])) for r in rows],
        ("runtime", "versions", "by default", "known because it was"),
    )


def method_rows() -> list[dict[str, Any]]:
    """One row a method, built in or installed."""
    rows = []
    built_in: list[Method | PositionMethod] = [*METHODS.values(), *POSITION_METHODS.values()]
    for method in (*built_in, *(find_method(name) for name in third_party_methods())):
        name = method.name
        fields = msgspec.structs.fields(method.options)
        parameters = {f.name: msgspec.to_builtins(f.default) for f in fields}
        rows.append({"name": name, "summary": method.summary, "source": method.source, "parameters": parameters})
    return rows


def family_row(family: Family) -> dict[str, Any]:
    """What the tables say of a family."""
    return {
        "family": family.name,
        "model_types": list(family.model_types),
        "position": family.position,
        "trained_in": [kind for kind, origin in family.origins.items() if origin == "trained"],
        "added_by_hand": [kind for kind, origin in family.origins.items() if origin == "bolted-on"],
        "refusal": family.refusal,
        "gguf": {"architecture": OF_FAMILY[family.name], "exported": family.name in ROWS}
        if family.name in OF_FAMILY
        else None,
        "not_baked": why_not(family) if family.position == "rope" else None,
    }


def gguf_cell(row: Mapping[str, Any]) -> str:
    """The architecture of a family's GGUF files, and whether another program makes them."""
    gguf = row["gguf"]
    if gguf is None:
        return ""
    return str(gguf["architecture"]) if gguf["exported"] else f"{gguf['architecture']}, by --converter"


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
