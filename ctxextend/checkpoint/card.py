"""Model cards: their front matter, which says what README.md has of licence, languages and base models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

#: A card's front matter is a page or two; more is something else.
_MOST_BYTES: Final = 1 << 20
#: So are its entries: lists of lists of results are the most of it, and take the reader long.
_MOST_NODES: Final = 1 << 16
_MOST_LEVELS: Final = 32
#: A number or a date isn't longer; what is, is kept as text, as some forms take long to work out.
_LONGEST_NUMBER: Final = 64
_FENCE: Final = "---"
_TEXT: Final = "tag:yaml.org,2002:str"

#: What the Hub takes for the front matter of a card: the fences stand at the beginning of a line.
_MATTER: Final = re.compile(r"\A\s*---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)", re.DOTALL)

#: What plain words mean in YAML 1.2, as the Hub reads them: ``no`` is Norwegian there and a date is text.
_CORE: Final = {
    "tag:yaml.org,2002:bool": (re.compile("true|True|TRUE|false|False|FALSE"), "tTfF"),
    "tag:yaml.org,2002:null": (re.compile("~|null|Null|NULL|"), ("~", "n", "N", "")),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), "-+0123456789"),
    "tag:yaml.org,2002:float": (re.compile(r"[-+]?[0-9]+\.[0-9]+"), "-+0123456789"),
}


def read_card(folder: Path) -> dict[str, Any]:
    """The YAML at the head of README.md; empty where there is none, or it can't be read.

    A card is beside the point of a conversion, so a broken one stops nothing. Aliases of anything but plain
    values count as broken: a few of them unfold into more than fits the memory.
    """
    try:
        with (folder / "README.md").open("rb") as handle:
            lines = handle.read(_MOST_BYTES).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    if not lines or lines[0].strip() != _FENCE:
        return {}
    ends = [number for number, line in enumerate(lines[1:], start=1) if line.strip() == _FENCE]
    return (_parsed("\n".join(lines[1 : ends[0]])) or {}) if ends else {}


def split_card(text: str) -> tuple[str, str]:
    """A card's front matter, without its fences, and what follows it. Without any the first is empty."""
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    found = _MATTER.match(text)
    return (found.group(1), text[found.end() :]) if found else ("", text)


def front_matter(matter: str) -> dict[str, Any] | None:
    """What front matter says, each word as the Hub takes it; None where it can't be read."""
    if len(matter) > _MOST_BYTES:
        return None
    return _parsed(matter, core=True) if matter.strip() else {}


def _parsed(text: str, *, core: bool = False) -> dict[str, Any] | None:
    """The YAML object of a text, or None. ``core``: plain words are read as YAML 1.2 has them."""
    import yaml

    class Bounded(yaml.SafeLoader):
        """The safe loader, which gives up where a text holds more than a card does."""

        nodes = levels = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            is_alias = self.check_event(yaml.AliasEvent)
            self.nodes += 1
            self.levels += 1
            if self.nodes > _MOST_NODES or self.levels > _MOST_LEVELS:
                raise yaml.YAMLError("more than a card holds")
            node = super().compose_node(parent, index)
            self.levels -= 1
            if isinstance(node, yaml.ScalarNode):
                if len(node.value) > _LONGEST_NUMBER:
                    node.tag = _TEXT
            elif is_alias:
                raise yaml.YAMLError("an alias of a list or an object")
            return node

    class Core(Bounded):
        """Its plain words are those of YAML 1.2."""

    Core.yaml_implicit_resolvers = {}
    for tag, (pattern, first) in _CORE.items():
        Core.add_implicit_resolver(tag, re.compile(f"^(?:{pattern.pattern})$"), list(first))
    try:
        found = yaml.load(text, Loader=Core if core else Bounded)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        # A value that isn't of the type that its tag names makes the library raise any of these.
        return None
    return found if isinstance(found, dict) else None
