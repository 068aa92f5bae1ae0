"""The front matter of a model card: what README.md says of licence, languages and base models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

#: A card's front matter is a page or two; more is something else.
_MOST_BYTES: Final = 1 << 20
_FENCE: Final = "---"


def read_card(folder: Path) -> dict[str, Any]:
    """The YAML at the head of README.md; empty where there is none, or it can't be read.

    A card is beside the point of a conversion, so a broken one stops nothing.
    """
    import yaml

    try:
        with (folder / "README.md").open("rb") as handle:
            lines = handle.read(_MOST_BYTES).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    if not lines or lines[0].strip() != _FENCE:
        return {}
    ends = [number for number, line in enumerate(lines[1:], start=1) if line.strip() == _FENCE]
    if not ends:
        return {}
    try:
        found = yaml.safe_load("\n".join(lines[1 : ends[0]]))
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
