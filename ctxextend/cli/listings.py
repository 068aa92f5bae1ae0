"""``ctxextend methods | families | runtimes``: what is known, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ctxextend.cli import options as o
from ctxextend.cli.console import Console
from ctxextend.families import FAMILIES, Family
from ctxextend.methods import METHODS, find_method, third_party_methods
from ctxextend.runtimes import READERS


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
        Console(as_json=True).document({"schema": "ctxextend.families/1", "families": rows})
        return
    shown = [
        (
            r["family"],
            ", ".join(r["model_types"]),
            r["position"],
            ", ".join(r["trained_in"]),
            r["refusal"] or "",
        )
        for r in rows
    ]
    _draw(shown, ("family", "model types", "positions", "trained in", "refused because"))


def runtimes(as_json: o.JsonOpt = False) -> None:
    """The runtimes whose reading of a config is known, and how it is known.

    Example: ctxextend runtimes
    """
    rows = [
        {"runtime": r.runtime, "versions": r.versions, "current": r.current, "evidence": r.evidence} for r in READERS
    ]
    if as_json:
        Console(as_json=True).document({"schema": "ctxextend.runtimes/1", "runtimes": rows})
        return
    _draw(
        [(r.runtime, r.versions, r.evidence) for r in READERS],
        ("runtime", "versions", "known because it was"),
    )


def method_rows() -> list[dict[str, Any]]:
    """One row a method, built in or installed."""
    rows = []
    for name in (*METHODS, *third_party_methods()):
        method = find_method(name)
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
    }


def _draw(rows: Sequence[tuple[str, ...]], columns: tuple[str, ...]) -> None:
    from ctxextend.cli.pages import name_table

    Console().draw(name_table(rows, columns))
