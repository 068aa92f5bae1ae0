"""The published configs as checkpoints, and what a plan makes of their documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from ctxextend.apply import edited_texts
from ctxextend.contents import Contents, Document, FileInfo
from ctxextend.inspection import Group, Inspection, inspect
from ctxextend.plan import Plan, PlannedGroup, State, make_plan
from ctxextend.recipe import Recipe

CONFIGS: Final = Path(__file__).parent / "configs"

#: Every golden config by name.
NAMES: Final = tuple(sorted(path.name for path in CONFIGS.iterdir()))


def contents(name: str, **texts: str) -> Contents:
    """A golden checkpoint; ``texts`` replaces documents by their stem (``config=...``)."""
    found = {path.name: path.read_text() for path in sorted((CONFIGS / name).iterdir())}
    found.update({f"{stem}.json": text for stem, text in texts.items()})
    return Contents(
        name=name,
        source=name,
        storage="none",
        files=tuple(FileInfo(path=path, size_bytes=len(text.encode())) for path, text in found.items()),
        documents={path: Document(text=text, value=json.loads(text)) for path, text in found.items()},
    )


def config_of(name: str) -> dict[str, Any]:
    """A golden config.json, parsed."""
    config: dict[str, Any] = json.loads((CONFIGS / name / "config.json").read_text())
    return config


def changed(source: Contents, **keys: Any) -> Contents:
    """The checkpoint with top-level keys of config.json replaced."""
    return with_text(source, json.dumps({**source.config, **keys}, indent=2) + "\n")


def with_text(source: Contents, text: str) -> Contents:
    """The checkpoint with another config.json."""
    document = Document(text=text, value=json.loads(text))
    return msgspec.structs.replace(source, documents={**source.documents, "config.json": document})


def inspected(source: str | Contents, recipe: Recipe | None = None) -> Inspection:
    """The inspection of a golden config as a recipe would have it."""
    recipe = recipe or Recipe()
    return inspect(
        contents(source) if isinstance(source, str) else source,
        family=recipe.family,
        base=recipe.base,
        original_context=recipe.original_context,
        sliding_window=recipe.sliding_window,
    )


def planned(source: str | Contents, recipe: Recipe) -> Plan:
    """The plan of a recipe on a golden config."""
    checkpoint = contents(source) if isinstance(source, str) else source
    return make_plan(checkpoint, inspected(checkpoint, recipe), recipe)


def after_texts(source: str | Contents, plan: Plan) -> dict[str, str]:
    """The texts of the edited documents, and of config.json in any case."""
    checkpoint = contents(source) if isinstance(source, str) else source
    documents = {name: document.text for name, document in checkpoint.documents.items()}
    return {"config.json": documents["config.json"], **edited_texts(plan, documents)}


def after(source: str | Contents, plan: Plan) -> dict[str, Any]:
    """config.json after the plan, parsed."""
    config: dict[str, Any] = json.loads(after_texts(source, plan)["config.json"])
    return config


def converted(source: str | Contents, plan: Plan) -> Contents:
    """The checkpoint after the plan."""
    checkpoint = contents(source) if isinstance(source, str) else source
    texts = after_texts(checkpoint, plan)
    documents = {name: Document(text=text, value=json.loads(text)) for name, text in texts.items()}
    return msgspec.structs.replace(checkpoint, documents={**checkpoint.documents, **documents})


def group_of(found: Inspection, label: str) -> Group:
    """One group of an inspection."""
    return next(group for group in found.groups if group.label == label)


def planned_group(plan: Plan, label: str) -> PlannedGroup:
    """One group of a plan."""
    return next(group for group in plan.groups if group.label == label)


def state_after(plan: Plan, label: str = "full_attention") -> State:
    """What a group's rope will be."""
    state = planned_group(plan, label).after
    assert state is not None
    return state


def codes(plan: Plan) -> list[str]:
    """The codes of a plan's warnings."""
    return [warning.code for warning in plan.warnings]
