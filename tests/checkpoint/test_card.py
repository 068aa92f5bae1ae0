"""Model cards: what their front matter says, and that a hostile one costs neither memory nor time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ctxextend.checkpoint.card import front_matter, read_card, split_card


def card(folder: Path, matter: str | bytes) -> dict[str, Any]:
    raw = matter if isinstance(matter, bytes) else matter.encode()
    (folder / "README.md").write_bytes(b"---\n" + raw + b"\n---\n# A model\n")
    return read_card(folder)


def test_what_a_card_says(tmp_path: Path) -> None:
    matter = "license: mit\nlanguage:\n- en\n- no\nversion: 1.5\nbase_model: [a/b]\ndate: 2024-02-01\nnothing:"
    found = card(tmp_path, matter)
    assert found.pop("date").isoformat() == "2024-02-01"
    assert found == {
        "license": "mit",
        "language": ["en", False],
        "version": 1.5,
        "base_model": ["a/b"],
        "nothing": None,
    }


@pytest.mark.parametrize("text", ["", "# A model\n", "---\nlicense: mit\n", "text\n---\nlicense: mit\n---\n"])
def test_a_file_without_front_matter_says_nothing(tmp_path: Path, text: str) -> None:
    assert read_card(tmp_path) == {}
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path) == {}


def test_an_alias_of_a_plain_value_is_that_value(tmp_path: Path) -> None:
    assert card(tmp_path, "license: &x mit\nname: *x") == {"license": "mit", "name": "mit"}


LEVELS = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10))
MERGES = "\n".join(f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" for i in range(1, 10))

HOSTILE: dict[str, str | bytes] = {
    "aliases": f"l0: &l0 [a]\n{LEVELS}\ntags: *l9",
    "merged": f"l0: &l0 {{a: b}}\n{MERGES}",
    "of itself": "a: &a [*a]",
    "lists": f"a: {'[' * 300_000}",
    "objects": f"a: {'{a: ' * 200_000}",
    "dashes": f"a:\n  {'- ' * 300_000}",
    "entries": f"a: [{'1,' * 400_000}]",
    "digits": f"a: {'1' * 900_000}",
    "no number": "a: !!int ''",
    "no flag": "a: !!bool maybe",
    "no date": "a: !!timestamp x",
    "no day": "a: 2024-99-99",
    "no time zone": "a: 0001-01-01 00:00:00 +23:59",
    "an object": "a: !!python/object/apply:os.getcwd []",
    "a list as a key": "[a]: b",
    "no YAML": "a: b: c: [",
    "no object": "- a",
    "control characters": b"a: \x00\x07",
    "no UTF-8": b"\xff\xfe\xfd: [",
}


@pytest.mark.parametrize("matter", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_card_says_little_and_stops_nothing(tmp_path: Path, matter: str | bytes) -> None:
    assert set(card(tmp_path, matter)) <= {"a"}


@pytest.mark.parametrize("name", ["aliases", "merged"])
def test_what_unfolds_is_not_unfolded(tmp_path: Path, name: str) -> None:
    tracemalloc.start()
    try:
        assert card(tmp_path, HOSTILE[name]) == {}
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_number_of_sixties_is_left_as_text(tmp_path: Path) -> None:
    text = ":".join(["1"] * 100)
    assert card(tmp_path, f"a: {text}\nb: 1:30") == {"a": text, "b": 90}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("---\na: 1\n---\n# A\n", ("a: 1", "# A\n")),
        ("\N{ZERO WIDTH NO-BREAK SPACE}---\r\na: 1\r\n---\r\n# A", ("a: 1", "# A")),
        # A fence that is indented, or is longer, belongs to the text.
        ("---\na: |\n  ---\nb: 2\n--- \n", ("a: |\n  ---\nb: 2", "")),
        ("---\na: 1\n----\n", ("", "---\na: 1\n----\n")),
        ("# A\n---\na: 1\n---\n", ("", "# A\n---\na: 1\n---\n")),
        ("", ("", "")),
    ],
)
def test_where_front_matter_ends(text: str, wanted: tuple[str, str]) -> None:
    assert split_card(text) == wanted


def test_front_matter_as_the_hub_reads_it() -> None:
    matter = "a: [no, on, 'true', true]\nb: 2024-09-16\nc: 1:30\nd: [0755, 7, 1.5, -2, ~]\ne:"
    assert front_matter(matter) == {
        "a": ["no", "on", "true", True],
        "b": "2024-09-16",
        "c": "1:30",
        "d": ["0755", 7, 1.5, -2, None],
        "e": None,
    }
    assert front_matter("") == front_matter(" \n") == {}


@pytest.mark.parametrize("matter", [*HOSTILE.values(), "a" * 1_100_000], ids=[*HOSTILE, "long"])
def test_hostile_front_matter_is_none_or_little(matter: str | bytes) -> None:
    text = matter if isinstance(matter, str) else matter.decode("utf-8", errors="replace")
    found = front_matter(text)
    assert found is None or set(found) <= {"a"}
