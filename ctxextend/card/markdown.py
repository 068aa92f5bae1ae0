"""Text of others, safe in Markdown: names, messages and commands that can neither break a table nor become markup."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

#: What stands around our part of a card, each on a line of its own: by these a later card finds it again.
BEGIN: Final = "<!-- ctxextend:begin -->"
END: Final = "<!-- ctxextend:end -->"

#: What is shown where there is nothing to say.
NOTHING: Final = "\N{EN DASH}"

#: Marks that are markup wherever they stand. What HTML, mathematics and tables look for first becomes an entity: a
#: backslash wouldn't hide it from them.
_MARKS: Final = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "\\": "&#92;",
        "`": "&#96;",
        "|": "&#124;",
        "$": "&#36;",
        "*": "\\*",
        "[": "\\[",
        "]": "\\]",
        "~": "\\~",
        "#": "\\#",
    }
)
#: An underscore inside a word is no markup.
_EMPHASIS: Final = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
#: What makes an item or a rule of a line that begins with it.
_LEADING: Final = re.compile(r"^(?:(\d+)([.)])(?=\s|$)|([-+=]))")
#: In addresses that readers make links of by themselves.
_ADDRESS: Final = re.compile(r"(?<=:)/(?=/)|(?<=www)\.|@(?=\w)", re.IGNORECASE)
#: Controls, marks of direction, half characters, and breaks of lines.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def one_line(text: str) -> str:
    """The text without line breaks and without what can't be seen; runs of spaces become one."""
    spaced = "".join(" " if mark.isspace() else mark for mark in text)
    return " ".join(_seen(spaced).split())


def plain(text: str) -> str:
    """A line of text that reads as it stands, wherever in a card it is put."""
    marked = _EMPHASIS.sub(r"\\_", one_line(text).translate(_MARKS))
    apart = _ADDRESS.sub(lambda found: f"&#{ord(found.group())};", marked)
    return _LEADING.sub(lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", apart)


def code(text: str) -> str:
    """A code span of one line."""
    shown = one_line(text)
    if not shown:
        return NOTHING
    ticks = "`" * (_longest_run(shown) + 1)
    room = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{room}{shown}{room}{ticks}"


def block(text: str, language: str) -> list[str]:
    """A block of code, its lines as they stand, and an empty line."""
    lines = [_seen(line.expandtabs(4)) for line in text.splitlines()]
    # A line that looks like one of our marks would be taken for it.
    lines = [f" {line}" if line.strip() in (BEGIN, END) else line for line in lines]
    ticks = "`" * max(3, _longest_run("\n".join(lines)) + 1)
    return [f"{ticks}{language}", *lines, ticks, ""]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: frozenset[int] = frozenset()) -> list[str]:
    """A table of cells that are Markdown already, and an empty line; columns of ``numbers`` stand at the right."""
    ruler = ["---:" if place in numbers else "---" for place in range(len(columns))]
    # In a table a pipe splits code spans as well, unless a backslash stands before it, which isn't shown.
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (columns, ruler, *rows)]
    return [*(f"| {' | '.join(row)} |" for row in lines), ""]


def _seen(text: str) -> str:
    return "".join(mark for mark in text if unicodedata.category(mark) not in _UNSEEN)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
