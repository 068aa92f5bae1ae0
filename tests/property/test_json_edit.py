"""Edits of a JSON text: the same document as edits of its value, and no other byte touched."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ctxextend.formats.json_edit import Edit, apply_edits, edit_text, leading_member, value_at

KEYS = st.sampled_from(["a", "b", "rope", "max_len", "ключ", 'qu"ote', "back\\slash", "sl/ash", "", "\U0001f600"])
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5)
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(tuple)
EDITS = st.lists(
    st.builds(Edit, path=PATHS, value=VALUES) | st.builds(Edit, path=PATHS),
    max_size=4,
)
#: How files are laid out: one line, two or four spaces, tabs, a Windows editor's line ends, escapes or not.
LAYOUTS = {
    "one line": {},
    "compact": {"separators": (",", ":")},
    "two spaces": {"indent": 2},
    "four spaces": {"indent": 4},
    "tabs": {"indent": "\t"},
    "unicode": {"indent": 2, "ensure_ascii": False},
}
LAYOUT = st.sampled_from(sorted(LAYOUTS))


def spell(document: dict[str, Any], layout: str, *, windows: bool = False) -> str:
    text = json.dumps(document, **LAYOUTS[layout]) + "\n"  # type: ignore[arg-type]
    return text.replace("\n", "\r\n") if windows else text


@given(layout=LAYOUT, document=DOCUMENTS, edits=EDITS, windows=st.booleans())
@settings(max_examples=150, deadline=None)
@example(layout="tabs", document={}, edits=[Edit(path=("a", "b"), value={"b": 1})], windows=True)
def test_the_text_says_what_the_value_says(
    layout: str, document: dict[str, Any], edits: list[Edit], windows: bool
) -> None:
    before = deepcopy(document)
    text = edit_text(spell(document, layout, windows=windows), edits)
    expected = apply_edits(document, edits)
    assert json.loads(text) == expected
    # Key order, and 1 against 1.0 and true, count as well.
    assert json.dumps(json.loads(text)) == json.dumps(expected)
    assert document == before
    if windows and layout not in ("one line", "compact"):
        assert "\n" not in text.replace("\r\n", "")


@given(layout=LAYOUT, document=DOCUMENTS, path=PATHS, value=VALUES, windows=st.booleans())
@settings(max_examples=60, deadline=None)
def test_taking_an_inserted_key_out_again_gives_the_text_back(
    layout: str, document: dict[str, Any], path: tuple[str, ...], value: Any, windows: bool
) -> None:
    parent = value_at(document, path[:-1])
    assume(isinstance(parent, dict) and path[-1] not in parent)
    text = spell(document, layout, windows=windows)
    inserted = edit_text(text, [Edit(path=path, value=value)])
    assert value_at(json.loads(inserted), path) == value
    restored = edit_text(inserted, [Edit(path=path)])
    if parent:
        assert restored == text
    else:
        # "{}" has no layout of its own to come back to; what it says is the same.
        assert json.loads(restored) == document


@given(layout=LAYOUT, document=DOCUMENTS, value=SCALARS, windows=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_replaced_value_is_the_only_thing_that_changes(
    layout: str, document: dict[str, Any], value: Any, windows: bool, data: st.DataObject
) -> None:
    scalars = [key for key, said in document.items() if not isinstance(said, dict | list)]
    assume(scalars)
    key = data.draw(st.sampled_from(scalars))
    changed = edit_text(spell(document, layout, windows=windows), [Edit(path=(key,), value=value)])
    # The same document with a mark in the value's place, and the mark replaced by the value.
    marked = spell({**document, key: "@mark@"}, layout, windows=windows)
    assert changed == marked.replace('"@mark@"', json.dumps(value, ensure_ascii=False))


@given(document=DOCUMENTS, path=PATHS)
@settings(max_examples=60, deadline=None)
def test_removing_what_is_not_there_touches_nothing(document: dict[str, Any], path: tuple[str, ...]) -> None:
    assume(json.dumps(apply_edits(document, [Edit(path=path)])) == json.dumps(document))
    text = spell(document, "two spaces")
    assert edit_text(text, [Edit(path=path)]) == text


@given(document=DOCUMENTS, key=KEYS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_leading_member_is_read_from_a_cut_text(document: dict[str, Any], key: str) -> None:
    assume(key in document)
    whole = {**document, "tail": ["x"] * 5}
    text = json.dumps(whole, indent=2)
    assert leading_member(text[: text.index('"tail"') + 12], key) == document[key]


CONFIG = {"hidden_size": 64, "rope_scaling": None, "rope_theta": 10000.0}


def test_one_line_stays_one_line() -> None:
    edits = [Edit(path=("rope_theta",), value=5e5), Edit(path=("rope_scaling",), value={"factor": 4.0})]
    assert edit_text('{"rope_theta": 1e4, "rope_scaling": null}', edits) == (
        '{"rope_theta": 500000.0, "rope_scaling": {"factor": 4.0}}'
    )


def test_tabs_are_kept() -> None:
    text = '{\n\t"a": 1,\n\t"rope_scaling": null\n}\n'
    edits = [Edit(path=("rope_scaling",), value={"factor": 4.0}), Edit(path=("b",), value=2)]
    assert edit_text(text, edits) == ('{\n\t"a": 1,\n\t"rope_scaling": {\n\t\t"factor": 4.0\n\t},\n\t"b": 2\n}\n')


def test_windows_line_ends_are_kept() -> None:
    text = '{\r\n  "a": 1\r\n}\r\n'
    assert edit_text(text, [Edit(path=("b",), value={"c": 2})]) == (
        '{\r\n  "a": 1,\r\n  "b": {\r\n    "c": 2\r\n  }\r\n}\r\n'
    )


def test_unusual_spelling_elsewhere_is_kept() -> None:
    # Numbers, escapes and spaces that no printer would write again.
    text = '{ "a" :1.50E+3 ,\n    "n\\u00e9" : "\\u0041\\/" ,"rope_theta":10000.0\n ,"z":[ 1,2 ]}'
    assert edit_text(text, [Edit(path=("rope_theta",), value=5.0)]) == text.replace("10000.0", "5.0")


def test_unicode_is_written_as_it_is() -> None:
    assert edit_text('{"a": "é"}', [Edit(path=("ключ",), value="ü")]) == '{"a": "é", "ключ": "ü"}'


def test_a_key_that_stands_twice_counts_as_its_last() -> None:
    text = '{"a": 1, "b": 2, "a": 3}'
    assert edit_text(text, [Edit(path=("a",), value=9)]) == '{"a": 1, "b": 2, "a": 9}'
    assert edit_text(text, [Edit(path=("a",))]) == '{"b": 2}'


def test_removal_takes_its_comma_with_it() -> None:
    text = '{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}'
    assert edit_text(text, [Edit(path=("a",))]) == '{\n  "b": 2,\n  "c": 3\n}'
    assert edit_text(text, [Edit(path=("b",))]) == '{\n  "a": 1,\n  "c": 3\n}'
    assert edit_text(text, [Edit(path=("c",))]) == '{\n  "a": 1,\n  "b": 2\n}'


@pytest.mark.parametrize("text", ["[]", "1", '"a"', ""])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        edit_text(text, [Edit(path=("a",), value=1)])


def test_the_value_at_a_path() -> None:
    assert value_at(CONFIG, ("hidden_size",)) == 64
    assert value_at(CONFIG, ()) == CONFIG
