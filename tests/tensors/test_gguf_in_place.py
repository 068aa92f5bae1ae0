"""A GGUF file edited where it lies: right, refused with the file untouched, or undone from any state."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import Gguf, GgufEdits, GgufValue
from ctxextend.errors import CheckpointError, OutputError, RefusedError
from ctxextend.gguf_record import PADDING
from ctxextend.tensors import ranges
from ctxextend.tensors.gguf_in_place import edit_in_place, recover
from ctxextend.tensors.gguf_journal import journal_path
from tests.file_systems import need_insertion
from tests.gguf_factory import encode, info, keys, pair, write_model
from tests.reference.libllama import logits, settings_of, weights_of
from tests.tensors.killed import CASES
from tests.tensors.test_gguf_edit import (
    FREQS,
    NAME,
    TOKENS,
    check_edited,
    data_of,
    edits_of,
    files,
    header_of,
    keys_of,
    split,
    write,
)

ROOT = Path(__file__).resolve().parents[2]
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


@pytest.fixture
def where(tmp_path: Path) -> Path:
    need_insertion(tmp_path)
    return tmp_path


def named(length: int) -> GgufEdits:
    return GgufEdits(keys={NAME: GgufValue(type="STRING", value="x" * length)})


def model(path: Path, *, alignment: int = 32, **changes: Any) -> Path:
    """A file of some 90 KB whose tensors' data are all different."""
    rng = np.random.default_rng(1)
    weights = {
        "first": rng.standard_normal(2).astype(np.float32),
        "big": rng.standard_normal((150, 128)).astype(np.float32),
        "middle": rng.standard_normal(9).astype(np.float32),
        "last": rng.standard_normal(600).astype(np.float32),
    }
    own = {**keys(**changes), NAME: "tiny", **({"general.alignment": alignment} if alignment != 32 else {})}
    infos, data = [], b""
    for name, array in weights.items():
        infos.append(info(name, "F32", tuple(reversed(array.shape)), len(data)))
        data += array.tobytes() + bytes(-array.nbytes % alignment)
    path.write_bytes(encode([pair(key, content) for key, content in own.items()], infos, data, alignment=alignment))
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def header_read(path: Path) -> None:
    read_gguf(path)


def refused(path: Path, edits: GgufEdits, why: str) -> RefusedError:
    """The refusal, after which nothing is changed or left."""
    raw, names = path.read_bytes(), names_in(path.parent)
    with pytest.raises(RefusedError, match=why) as caught:
        edit_in_place(path, edits, header_read)
    assert (caught.value.code, caught.value.file) == ("in-place", str(path))
    assert "--out" in str(caught.value.hint)
    assert path.read_bytes() == raw
    assert names_in(path.parent) == names
    return caught.value


@pytest.mark.parametrize("alignment", [8, 32, 4096, 16384])
@pytest.mark.parametrize("length", [0, 3, 20, 40, 70, 3000, 4096, 50000])
def test_the_header_grows_and_shrinks(where: Path, alignment: int, length: int) -> None:
    """Blocks are inserted, whole ones and no more than needed; without change of any tensor."""
    path = model(where / "model.gguf", alignment=alignment)
    before, data, said = header_of(path), data_of(path), keys_of(path)
    size = path.stat().st_size
    edit_in_place(path, named(length), header_read)
    after = header_of(path)
    assert keys_of(path) == {**said, NAME: "x" * length}
    assert data_of(path) == data
    added = after.data_start - before.data_start
    assert added == path.stat().st_size - size
    assert added % max(4096, alignment) == 0
    # A key for the padding, which may be needed, takes up to 37 bytes.
    assert added < max(0, length - 4) + 37 + max(4096, alignment)
    edit_in_place(path, GgufEdits(keys={NAME: GgufValue(type="STRING", value="tiny")}), header_read)
    assert (header_of(path).data_start, keys_of(path), data_of(path)) == (after.data_start, said, data)


def test_slack_is_used_first(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(where / "model.gguf")
    edit_in_place(path, named(1000), header_read)
    assert PADDING in header_of(path).values
    monkeypatch.setattr(ranges, "inserts", lambda _descriptor: False)
    start = header_of(path).data_start
    slack = len(header_of(path).values[PADDING].value)
    inode = path.stat().st_ino
    for more in (0, slack // 2, *range(slack, slack + 38)):
        edit_in_place(path, named(1000 + more), header_read)
        assert header_of(path).data_start == start
    assert PADDING not in header_of(path).values
    refused(path, named(1000 + slack + 38), "room")
    assert path.stat().st_ino == inode


def test_the_same_value_changes_no_byte(where: Path) -> None:
    path = model(where / "model.gguf")
    raw = path.read_bytes()
    edit_in_place(path, GgufEdits(keys={NAME: GgufValue(type="STRING", value="tiny")}), header_read)
    assert path.read_bytes() == raw


def test_tensors(where: Path) -> None:
    path = model(where / "model.gguf")
    data = data_of(path)
    edits = CASES["everything"]
    edit_in_place(path, edits, header_read)
    del data["last"]
    changed = {name: np.asarray(numbers, np.float32).tobytes() for name, numbers in edits.tensors.items()}
    assert data_of(path) == {**data, **changed}
    assert list(data_of(path)) == ["first", "big", "middle", "new"]
    # The last one may be replaced by one of another size.
    edit_in_place(path, GgufEdits(tensors={"new": (2.0,) * 2000}), header_read)
    assert data_of(path)["new"] == np.full(2000, 2.0, np.float32).tobytes()
    assert data_of(path)["big"] == data["big"]


def test_a_file_that_ends_with_its_last_number(where: Path) -> None:
    """Without the padding that writers put at the end."""
    path = model(where / "model.gguf")
    end = max(end for _start, end in header_of(path).tensor_spans.values())
    os.truncate(path, end - 4)
    gone = GgufEdits(removed_tensors=("last",), tensors={"odd": (1.0, 2.0, 3.0)})
    path.write_bytes(model(where / "other.gguf").read_bytes()[:end])
    edit_in_place(path, gone, header_read)
    edit_in_place(path, GgufEdits(tensors={"more": (4.0,)}), header_read)
    assert data_of(path)["odd"] == np.asarray((1.0, 2.0, 3.0), np.float32).tobytes()
    assert data_of(path)["more"] == np.asarray((4.0,), np.float32).tobytes()


def test_data_that_would_move(where: Path) -> None:
    path = model(where / "model.gguf")
    assert "hole" in refused(path, GgufEdits(removed_tensors=("middle",)), "hole").message
    refused(path, GgufEdits(tensors={"middle": (1.0,) * 400}), "move")
    refused(path, GgufEdits(keys={"general.alignment": GgufValue(type="UINT32", value=64)}), "alignment")


def test_a_file_without_tensors(where: Path) -> None:
    """The first file of a split one may have none (``gguf-split --no-tensor-first-split``)."""
    path = split(where, 0)
    said = keys_of(path)
    for edits in (named(1), named(5000), named(2), GgufEdits(tensors={"new": (1.0, 2.0)})):
        edit_in_place(path, edits, lambda path: None)
    after = read_gguf(path)
    assert keys_of(path) == {**said, NAME: "xx", "split.tensors.count": 4}
    assert {tensor.name for tensor in after.tensors} == {FREQS, "b", "c", "new"}
    assert data_of(path) == {"new": np.asarray((1.0, 2.0), np.float32).tobytes()}
    (where / "garbage.gguf").write_bytes(encode([pair(NAME, "x")]) + bytes(2 << 20))
    refused(where / "garbage.gguf", named(3), "no tensors")


# Places where a file isn't the user's alone.


def test_links(where: Path) -> None:
    path = model(where / "model.gguf")
    (where / "link.gguf").symlink_to(path)
    refused(where / "link.gguf", named(3), "symbolic link")
    (where / "hard.gguf").hardlink_to(path)
    refused(path, named(3), "other names")


@pytest.mark.parametrize(
    "name",
    [
        "models--org--name/snapshots/abc/model.gguf",
        "hub/blobs/" + "0123456789abcdef" * 4,
        "hub/blobs/" + "0123456789" * 4,
        ".ollama/models/blobs/model.gguf",
        "store/sha256-" + "0123456789abcdef" * 4,
    ],
)
def test_stores(where: Path, name: str) -> None:
    (where / name).parent.mkdir(parents=True)
    refused(model(where / name), named(3), "belongs to")


def test_what_is_no_file(where: Path) -> None:
    for path in (where, where / "none.gguf"):
        with pytest.raises(RefusedError) as caught:
            edit_in_place(path, named(3), header_read)
        assert caught.value.code == "in-place"
    assert not recover(where / "none.gguf")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ETXTBSY])
def test_what_can_not_be_written(where: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = model(where / "model.gguf")
    true = os.open

    def open_(name: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_RDWR and not flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return true(name, flags, *rest)

    monkeypatch.setattr(os, "open", open_)
    refused(path, named(3), "written")
    journal_path(path).write_text("x")
    with pytest.raises(OutputError) as caught:
        recover(path)
    assert caught.value.code == "interrupted-edit"


def test_a_folder_that_can_not_be_written(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(where / "model.gguf")

    def open_(self: Path, *_arguments: Any, **_named: Any) -> Any:
        raise PermissionError(errno.EACCES, "no", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_)
        with pytest.raises(RefusedError, match="journal"):
            edit_in_place(path, named(3), lambda _path: None)


def test_a_file_that_somebody_reads(where: Path) -> None:
    """A server that maps the model would see its bytes move."""
    path = model(where / "model.gguf")
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ):
        refused(path, named(3), "has it open")
    edit_in_place(path, named(3), header_read)


def test_one_at_a_time(where: Path) -> None:
    path = model(where / "model.gguf")
    raw = path.read_bytes()
    seen: list[OutputError] = []

    def verify(path: Path) -> None:
        for call in (lambda: edit_in_place(path, named(4), header_read), lambda: recover(path)):
            with pytest.raises(OutputError) as caught:
                call()
            seen.append(caught.value)

    edit_in_place(path, named(3), verify)
    assert [error.code for error in seen] == ["busy", "busy"]
    assert path.read_bytes() != raw
    with path.open("rb") as handle:
        fcntl.flock(handle.fileno(), fcntl.LOCK_SH)
        with pytest.raises(OutputError):
            edit_in_place(path, named(4), header_read)


# What goes wrong on the way.


class WrongError(Exception):
    """The result isn't what was meant."""


@pytest.mark.parametrize("case", CASES)
def test_a_result_that_is_wrong_is_undone(where: Path, case: str) -> None:
    path = model(where / "model.gguf")
    raw = path.read_bytes()

    def verify(path: Path) -> None:
        assert path.read_bytes() != raw
        assert journal_path(path).exists()
        raise WrongError

    with pytest.raises(WrongError):
        edit_in_place(path, CASES[case], verify)
    assert path.read_bytes() == raw
    assert names_in(where) == [path.name]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC])
def test_a_file_system_that_can_not_insert(where: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = model(where / "model.gguf")

    def insert(_descriptor: int, _position: int, _count: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ranges, "insert", insert)
    if number == errno.ENOSPC:
        raw = path.read_bytes()
        with pytest.raises(OSError, match="space"):
            edit_in_place(path, named(5000), header_read)
        assert path.read_bytes() == raw
        assert names_in(where) == [path.name]
    else:
        refused(path, named(5000), "room")


def test_a_disk_that_is_full(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the journal, the tensor or the header."""
    path = model(where / "model.gguf")
    raw = path.read_bytes()
    true = ranges.write_at
    for fails in range(3):
        calls = [0]

        def write_at(descriptor: int, position: int, data: bytes, fails: int = fails, calls: list[int] = calls) -> None:
            calls[0] += 1
            if calls[0] == fails + 1:
                true(descriptor, position, data[: max(0, len(data) // 2 // 512 * 512 - position % 512)])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            true(descriptor, position, data)

        with monkeypatch.context() as patched:
            patched.setattr(ranges, "write_at", write_at)
            with pytest.raises(OSError, match="space"):
                edit_in_place(path, GgufEdits(keys=named(5000).keys, tensors={"new": (1.0,)}), header_read)
        recover(path)
        assert path.read_bytes() == raw
        assert names_in(where) == [path.name]


@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_step(where: Path, case: str) -> None:
    path = model(where / "model.gguf")
    command = [sys.executable, "-m", "tests.tensors.killed", str(path), case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    edits, undoing = map(int, done.stdout.split())
    # The journal is written, synced, renamed and removed; the header is written and synced.
    assert edits >= 20
    assert undoing > 8


# States that only a power cut leaves, made by hand.


@contextmanager
def interrupted(path: Path, edits: GgufEdits, stop: str) -> Iterator[int]:
    """The file as an edit leaves it that stops before the call ``stop`` of ``ranges``; the bytes to insert."""
    with pytest.MonkeyPatch.context() as patched:
        added = []
        true_insert = ranges.insert

        def insert(descriptor: int, position: int, count: int) -> None:
            added.append(count)
            if stop == "insert":
                raise WrongError
            true_insert(descriptor, position, count)

        def stopped(*_arguments: Any) -> None:
            raise WrongError

        patched.setattr(ranges, "insert", insert)
        patched.setattr("ctxextend.tensors.gguf_in_place.undo", stopped)
        with pytest.raises(WrongError):
            edit_in_place(path, edits, stopped)
    assert journal_path(path).exists()
    yield added[0]


def changed(path: Path, change: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        change(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("alignment", [32, 4096, 16384])
def test_an_insertion_that_is_half_done(where: Path, alignment: int) -> None:
    """Extents are moved one by one, the last one first, in a file that has its new size already."""
    original = model(where / "original.gguf", alignment=alignment)
    raw = original.read_bytes()
    start = header_of(original).data_start // 4096 * 4096
    path = where / "model.gguf"
    for gap in [*range(start, len(raw), 4096), len(raw)]:
        shutil.copyfile(original, path)
        with interrupted(path, CASES["everything"], "insert") as added:
            if gap == len(raw):
                os.truncate(path, gap + added)
            else:
                changed(path, lambda descriptor, gap=gap: ranges.insert(descriptor, gap, added))  # type: ignore[misc]
            assert path.stat().st_size == len(raw) + added
            assert recover(path)
        assert path.read_bytes() == raw, gap
        assert not recover(path)


def test_an_undoing_that_is_half_done(where: Path) -> None:
    """The gap wanders to the file's end, while the new header is still there."""
    original = model(where / "original.gguf")
    raw = original.read_bytes()
    path = where / "model.gguf"
    for gap in range(4096, len(raw), 4096):
        shutil.copyfile(original, path)
        with interrupted(path, CASES["everything"], "verify") as added:

            def wander(descriptor: int, gap: int = gap, added: int = added) -> None:
                ranges.truncate(descriptor, len(raw) + added)
                ranges.collapse(descriptor, 0, added)
                ranges.insert(descriptor, gap, added)

            changed(path, wander)
            assert recover(path)
        assert path.read_bytes() == raw, gap


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(chosen=st.lists(st.booleans(), min_size=100, max_size=100), case=st.sampled_from(["insertion", "everything"]))
def test_sectors_that_were_not_written(where: Path, chosen: list[bool], case: str) -> None:
    """Of what wasn't synced yet, any sector may be the old one."""
    path = model(where / "model.gguf")
    raw = path.read_bytes()
    with interrupted(path, CASES[case], "verify") as added:
        new = path.read_bytes()
        start = header_of(path).data_start
        before = bytes(added) + raw
        mixed = b"".join(
            (new if chosen[at // 512 % 100] else before)[at : at + 512] for at in range(0, start // 512 * 512, 512)
        )
        path.write_bytes(mixed + new[len(mixed) :])
        assert recover(path)
    assert path.read_bytes() == raw


def test_something_else_changed_the_file(where: Path) -> None:
    original = model(where / "original.gguf")
    size = original.stat().st_size
    path = where / "model.gguf"
    edits = CASES["everything"]

    def byte_at(position: int) -> Callable[[int], None]:
        return lambda descriptor: ranges.write_at(descriptor, position, b"\xaa\x55\xaa")

    after: Gguf | None = None
    with interrupted(Path(shutil.copyfile(original, path)), edits, "verify"):
        after = header_of(path)
        assert recover(path)
    places = {
        "the header": 40,
        "its end": after.data_start - 500,
        "the big tensor": after.tensor_spans["big"][0],
        "a small one": after.tensor_spans["middle"][0] + 8,
        "the new one": after.tensor_spans["new"][0] + 600,
    }
    changes: dict[str, Callable[[int], None]] = {name: byte_at(place) for name, place in places.items()}
    changes["cut"] = lambda descriptor: ranges.truncate(descriptor, 5000)
    changes["too short"] = lambda descriptor: ranges.truncate(descriptor, size + 100)
    changes["too long"] = lambda descriptor: ranges.truncate(descriptor, size + (1 << 20))
    for name, change in changes.items():
        shutil.copyfile(original, path)
        with interrupted(path, edits, "verify"):
            changed(path, change)
            raw, journal = path.read_bytes(), journal_path(path).read_bytes()
            for call in (lambda: recover(path), lambda: edit_in_place(path, named(3), header_read)):
                with pytest.raises(CheckpointError) as caught:
                    call()
                assert caught.value.code == "interrupted-edit", name
                assert str(journal_path(path)) in str(caught.value.hint)
            assert path.read_bytes() == raw
            assert journal_path(path).read_bytes() == journal
        journal_path(path).unlink()


def test_a_journal_that_is_broken(where: Path) -> None:
    path = model(where / "model.gguf")
    with interrupted(path, named(5000), "verify"):
        good = journal_path(path).read_bytes()
    raw = path.read_bytes()
    for broken in (b"", good[:100], good[:-1], good[:-1] + b"x", good + b"x", b"x" + good[1:]):
        journal_path(path).write_bytes(broken)
        with pytest.raises(CheckpointError) as caught:
            recover(path)
        assert caught.value.code == "broken-journal"
        assert path.read_bytes() == raw
    journal_path(path).unlink()
    (where / "elsewhere").write_bytes(good)
    journal_path(path).symlink_to(where / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        recover(path)
    assert path.read_bytes() == raw


def test_recovery_follows_a_link_and_the_next_edit_recovers(where: Path) -> None:
    path = model(where / "model.gguf")
    raw = path.read_bytes()
    (where / "link.gguf").symlink_to(path)
    with interrupted(path, named(5000), "verify"):
        assert recover(where / "link.gguf")
    assert path.read_bytes() == raw
    with interrupted(path, named(5000), "verify"):
        edit_in_place(path, named(3), header_read)
    assert keys_of(path)[NAME] == "xxx"
    assert not journal_path(path).exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_any_edit_of_any_file(where: Path, data: st.DataObject) -> None:
    own, weights, alignment = data.draw(files())
    edits = data.draw(edits_of(own, weights))
    path = where / "model.gguf"
    path.unlink(missing_ok=True)
    write(path, own, weights, alignment)
    raw, before = path.read_bytes(), header_of(path).values
    refusal: RefusedError | None = None
    try:
        edit_in_place(path, edits, lambda _path: None)
    except RefusedError as error:
        refusal = error
    if refusal is not None:
        assert refusal.code == "in-place"
        assert "hole" in refusal.message or "move" in refusal.message
        assert path.read_bytes() == raw
    else:
        check_edited(read_gguf(path).gguf, path, before, weights, edits)
    assert names_in(where) == [path.name]


# What llama.cpp makes of it.


def tiny(path: Path, tensors: dict[str, Any], architecture: str = "llama", **changes: Any) -> Path:
    arrays = {name: np.asarray(numbers, np.float32) for name, numbers in tensors.items()}
    return write_model(path, settings_of(architecture, **changes), {**arrays, **weights_of(architecture)})


def test_llama_cpp_gives_the_same_logits(where: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tiny(where / "model.gguf", {})
    expected = logits(path, TOKENS, context=64)
    for edits in (named(10), named(9000), GgufEdits(tensors={FREQS: (1.0,) * 16}, removed=(NAME,))):
        edit_in_place(path, edits, header_read)
        assert np.array_equal(logits(path, TOKENS, context=64), expected)
    edit_in_place(path, GgufEdits(tensors={FREQS: (0.5,) * 16}), header_read)
    assert np.abs(logits(path, TOKENS, context=64) - expected).max() > 0.1
    edit_in_place(path, GgufEdits(removed_tensors=(FREQS,)), header_read)
    assert np.array_equal(logits(path, TOKENS, context=64), expected)
    assert FREQS not in header_of(path).tensor_spans


@pytest.mark.parametrize(
    ("architecture", "names", "changes"),
    [
        ("llama", (FREQS,), {}),
        ("llama", (LONG, SHORT), {"rope__scaling__type": "longrope"}),
        ("phi3", (LONG, SHORT), {"rope__dimension_count": 32}),
    ],
)
def test_ones_are_the_same_as_none(where: Path, architecture: str, names: tuple[str, ...], changes: Any) -> None:
    """A frequency tensor that others follow is made one of ones: the logits are those of a file without."""
    pytest.importorskip("xllamacpp")
    expected = logits(tiny(where / "plain.gguf", {}, architecture, **changes), TOKENS, context=64)
    tensors = {name: np.linspace(1.0, 3.0, 16) for name in names}
    path = tiny(where / "model.gguf", tensors, architecture, **changes)
    assert np.abs(logits(path, TOKENS, context=64) - expected).max() > 0.1
    edit_in_place(path, GgufEdits(removed_tensors=names), header_read)
    assert read_gguf(path).gguf.factors == dict.fromkeys(names, (1.0,) * 16)  # type: ignore[union-attr]
    assert np.array_equal(logits(path, TOKENS, context=64), expected)


def test_ones_that_would_not_load(where: Path) -> None:
    """A llama loads the lists with the type longrope only, and rope_freqs with any other."""
    kind = "llama.rope.scaling.type"
    lists = tiny(where / "lists.gguf", {LONG: np.ones(16), SHORT: np.ones(16)}, rope__scaling__type="longrope")
    refused(lists, GgufEdits(removed=(kind,), removed_tensors=(LONG, SHORT)), "hole")
    freqs = tiny(where / "freqs.gguf", {FREQS: np.ones(16)})
    longrope = GgufEdits(keys={kind: GgufValue(type="STRING", value="longrope")}, removed_tensors=(FREQS,))
    refused(freqs, longrope, "hole")
    refused(tiny(where / "qwen3.gguf", {FREQS: np.ones(16)}, "qwen3"), GgufEdits(removed_tensors=(FREQS,)), "hole")
    half = write_model(
        where / "half.gguf", settings_of("llama"), {FREQS: np.ones(16, np.float16), **weights_of("llama")}
    )
    refused(half, GgufEdits(removed_tensors=(FREQS,)), "hole")
