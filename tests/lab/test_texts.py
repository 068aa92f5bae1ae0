"""The texts: the two that come along, and every kind of file that a user may give."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pytest

from ctxextend.errors import CtxextendError, UsageError
from ctxextend.lab import texts
from ctxextend.lab.texts import Document, builtin_names, read_documents

ROOT = Path(__file__).resolve().parents[2]


def test_both_novels_are_read_where_nothing_is_given() -> None:
    persuasion, emma = read_documents(())
    assert (persuasion.name, emma.name) == builtin_names() == ("persuasion", "emma")
    # Bytes and lines counted from the R data itself, title pages left out.
    assert (len(persuasion.text), persuasion.text.count("\n") + 1) == (466812, 8316)
    assert (len(emma.text), emma.text.count("\n") + 1) == (882990, 16224)
    assert persuasion.text.startswith("Chapter 1\n\n\nSir Walter Elliot, of Kellynch Hall")
    assert emma.text.startswith("CHAPTER I\n\n\nEmma Woodhouse, handsome, clever, and rich")
    assert "\nCHAPTER II\n" in emma.text
    assert "\nVOLUME II\n" in emma.text
    assert emma.text.rstrip().endswith("FINIS")


def test_the_readme_of_the_texts_states_their_checksums() -> None:
    readme = (ROOT / "ctxextend" / "lab" / "data" / "README.md").read_text(encoding="utf-8")
    for document in read_documents(()):
        assert f"`{document.sha256}`" in readme


@pytest.mark.full
def test_emma_has_the_tokens_that_the_reference_was_taken_on() -> None:
    file = ROOT / "assets" / "smollm2" / "tokenizer.json"
    if not file.exists():
        pytest.skip("assets/smollm2 isn't there: scripts/fetch_assets.py fetches it")
    from tokenizers import Tokenizer

    (emma,) = read_documents(["emma"])
    count = len(Tokenizer.from_file(str(file)).encode(emma.text, add_special_tokens=False).ids)
    # The whole novel with its title page has about 221,850.
    assert count == pytest.approx(221_850, abs=50)


def test_checksum_is_of_the_utf8_bytes() -> None:
    assert Document(name="x", text="né").sha256 == hashlib.sha256(b"n\xc3\xa9").hexdigest()


def test_plain_and_packed_files_hold_the_same_text(tmp_path: Path) -> None:
    raw = "Grüße\r\nzwei".encode()
    (tmp_path / "one.txt").write_bytes(raw)
    (tmp_path / "two.MD").write_bytes(b"\xef\xbb\xbf" + raw)
    (tmp_path / "three.txt.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "four.txt.xz").write_bytes(lzma.compress(raw))
    names = ["one.txt", "two.MD", "three.txt.gz", "four.txt.xz"]
    found = read_documents([str(tmp_path / name) for name in names])
    assert [document.name for document in found] == names
    assert {document.text for document in found} == {"Grüße\r\nzwei"}


def test_each_line_of_json_is_a_document(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a\u2028b", "meta": 1}, ensure_ascii=False), "", '{"text": "second\\nline"}']
    file = tmp_path / "many.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = read_documents([str(file)])
    assert [(document.name, document.text) for document in found] == [
        ("many.jsonl.gz:1", "a\u2028b"),
        ("many.jsonl.gz:3", "second\nline"),
    ]


def test_a_folder_gives_its_text_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "notes.md"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "c.txt").mkdir()
    assert [document.name for document in read_documents([str(tmp_path)])] == ["a.txt", "b.txt"]


def refused(given: Path | str) -> CtxextendError:
    with pytest.raises(CtxextendError) as caught:
        read_documents([str(given)])
    assert caught.value.hint
    return caught.value


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    error = refused("no/such.txt")
    assert (error.code, error.file) == ("text-missing", "no/such.txt")
    assert error.hint is not None
    assert "emma" in error.hint
    assert refused(tmp_path).code == "text-missing"


@pytest.mark.parametrize("name", ["book.pdf", "book", "book.gz", ".txt.zip"])
def test_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    error = refused(tmp_path / name)
    assert (type(error), error.code) == (UsageError, "text-kind")


def test_what_is_not_utf8_is_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"ab\xe9")
    error = refused(tmp_path / "latin.txt")
    assert (error.code, error.found) == ("text-encoding", "0xe9 at byte 2")


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_what_is_empty_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name).code == "text-empty"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "text-line"),
        ("[1]", "text-line"),
        ('{"txt": "a"}', "text-line"),
        ('{"text": 1}', "text-line"),
        ("[" * 200_000, "text-line"),
        ('{"text": " "}', "text-empty"),
        ('{"text": "\\ud83d"}', "text-encoding"),
    ],
)
def test_a_line_without_text_is_named(tmp_path: Path, line: str, code: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "good"}\n' + line, encoding="utf-8")
    error = refused(tmp_path / "x.jsonl")
    assert error.code == code
    assert "2" in str(error.key)


@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.xz"])
def test_broken_archives_are_refused(tmp_path: Path, name: str) -> None:
    packed = gzip.compress(b"text " * 1000) if name.endswith("gz") else lzma.compress(b"text " * 1000)
    for content in (b"no archive at all", packed[: len(packed) // 2], packed[:12] + b"\xff" * 8 + packed[20:]):
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name).code == "text-broken"


def test_reading_is_bounded_over_all_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LARGEST_BYTES", 1 << 20)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    assert refused(tmp_path / "bomb.txt.gz").code == "text-size"
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" * (600 << 10), encoding="utf-8")
    assert len(read_documents([str(tmp_path / "a.txt")])) == 1
    with pytest.raises(UsageError, match="more text"):
        read_documents([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert refused(tmp_path).code == "text-size"


def test_one_name_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="two documents have the name emma"):
        read_documents(["emma", "emma"])
