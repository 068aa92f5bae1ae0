"""Hostile GGUF headers: whatever is done to a good one, a clear error or a header that holds."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxextend.checkpoint.gguf_header import KEPT_TEXT_BYTES, Header, read_floats, read_header
from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError
from tests.gguf_factory import encode, info, pair, string

FILE = "model.gguf"

#: Every kind of value, in an order in which each is followed by something.
PAIRS = [
    pair("general.architecture", "llama"),
    pair("general.alignment", 32),
    pair("flag", GgufValue(type="BOOL", value=True)),
    pair("small", GgufValue(type="INT8", value=-1)),
    pair("wide", GgufValue(type="UINT64", value=1 << 40)),
    pair("double", GgufValue(type="FLOAT64", value=0.1)),
    pair("numbers", GgufValue(type="ARRAY", item="FLOAT32", length=4, value=(1.0, 2.0, 3.0, 4.0))),
    pair("tokens", GgufValue(type="ARRAY", item="STRING", length=3, value=("one", "", "naïve"))),
    pair("many", GgufValue(type="ARRAY", item="STRING", length=4200, value=("t",) * 4200)),
]
INFOS = [
    info("rope_freqs.weight", "F32", (4,), 0),
    info("quantised", "Q8_0", (64, 3), 32),
    info("half", "F16", (5, 2), 256),
    info("scalar", "F32", (), 288),
]
GOOD = encode(PAIRS, INFOS, bytes(320))
#: The long array makes the rest of the file hard to hit: mutations are made to this one as well.
SHORT = encode(PAIRS[:-1], INFOS, bytes(320))

#: Numbers at the edges of types, of the file, and of what is multiplied and added to them.
EDGES = [0, 1, 2, 7, 31, 33, *(1 << bits for bits in (16, 27, 28, 31, 32, 40, 60, 61, 62, 63))]
EDGES += [edge - 1 for edge in EDGES[6:]] + [(1 << 64) - 1, (1 << 64) - 32, len(SHORT), len(SHORT) - 24]


def answered(raw: bytes, size_bytes: int | None = None) -> Header | None:
    """The header, or None for an error that says what is wrong; neither costs memory or many readings."""
    size = len(raw) if size_bytes is None else size_bytes
    readings = 0

    def read(offset: int, count: int) -> bytes:
        nonlocal readings
        readings += 1
        assert 0 <= offset <= size
        assert 0 <= count <= size - offset
        assert count <= KEPT_TEXT_BYTES
        return raw[offset : offset + count]

    header = None
    tracemalloc.start()
    try:
        header = read_header(FILE, size, read)
        for tensor in header.tensors if size_bytes is None else ():
            read_floats(header, tensor.name, read)
    except CheckpointError as error:
        refusal = error
    finally:
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20
    assert readings < 20
    if header is None:
        assert (refusal.code, refusal.file) == ("broken-weights", FILE)
        assert refusal.hint
        assert len(str(refusal.details())) < 1000
        return None
    check(header, size)
    return header


def check(header: Header, size: int) -> None:
    """Whether everything lies where it can: in order, in the file, without overlapping."""
    gguf = header.gguf
    spans = [*gguf.spans.values(), *gguf.info_spans.values()]
    assert [start for start, _end in spans] == [24, *(end for _start, end in spans)][: len(spans)]
    assert all(start < end <= gguf.data_start <= size for start, end in spans)
    assert gguf.alignment > 0
    for (start, end), tensor in zip(gguf.tensor_spans.values(), header.tensors, strict=True):
        assert start % gguf.alignment == 0
        assert gguf.data_start <= start <= end <= size
        assert end - start == tensor.size_bytes
    assert all(one[1] <= other[0] for one, other in pairwise(gguf.tensor_spans.values()))


def test_the_good_ones_are_read() -> None:
    for raw in (GOOD, SHORT):
        header = answered(raw)
        assert header is not None
        assert [tensor.size_bytes for tensor in header.tensors] == [16, 204, 20, 4]
    assert answered(encode()) is not None


def test_a_file_that_ends_anywhere() -> None:
    """The last 28 bytes are padding, which no tensor needs."""
    header = answered(SHORT)
    assert header is not None
    end = max(end for _start, end in header.gguf.info_spans.values())
    for length in range(len(SHORT) - 28):
        assert answered(SHORT[:length]) is None
        # As a server would send it that says how long the file is, and stops.
        assert length >= end or answered(SHORT[:length], size_bytes=1 << 50) is None


def test_any_bit_may_be_wrong() -> None:
    for position in range(len(SHORT) - 320):
        for bit in (0, 3, 7):
            changed = bytearray(SHORT)
            changed[position] ^= 1 << bit
            answered(bytes(changed))


@pytest.mark.parametrize("edge", EDGES)
def test_any_number_may_be_any_other(edge: int) -> None:
    """At every byte: every count, length, offset, dimension, type and version is among them."""
    for position in range(4, len(SHORT) - 320):
        for form in ("<Q", "<I") if edge < 1 << 32 else ("<Q",):
            raw = struct.pack(form, edge)
            answered(SHORT[:position] + raw + SHORT[position + len(raw) :])


Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """One thing that can be done to any bytes. Places are fractions, so that they fit what is left of the file."""
    kind = draw(st.sampled_from(["cut", "bits", "wide", "narrow", "drop", "repeat", "insert", "swap", "big-endian"]))
    where, length = draw(st.integers(0, len(SHORT))), draw(st.integers(1, 40))
    edge, extra = draw(st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)), draw(st.binary(max_size=60))

    def mutate(raw: bytes) -> bytes:
        at = where % (len(raw) + 1)
        head, part, tail = raw[:at], raw[at : at + length], raw[at + length :]
        match kind:
            case "cut":
                return head
            case "bits":
                return head + bytes(byte ^ (edge & 0xFF) for byte in part) + tail
            case "wide":
                return head + struct.pack("<Q", edge) + raw[at + 8 :]
            case "narrow":
                return head + struct.pack("<I", edge & 0xFFFFFFFF) + raw[at + 4 :]
            case "drop":
                return head + tail
            case "repeat":
                return head + part * 2 + tail
            case "insert":
                return head + extra + part + tail
            case "swap":
                return head + part[::-1] + tail
            case _:
                return head + raw[at : at + 8][::-1] + raw[at + 8 :]

    return mutate


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([GOOD, SHORT]), st.lists(mutations(), min_size=1, max_size=5), st.booleans())
def test_whatever_is_done_to_a_file(raw: bytes, changes: list[Mutation], lies: bool) -> None:
    for change in changes:
        raw = change(raw)
    answered(raw, size_bytes=1 << 50 if lies else None)


KEYS = st.lists(st.sampled_from(PAIRS) | st.binary(max_size=40), max_size=6)
ENTRIES = st.builds(
    lambda name, dimensions, kind, offset: (
        string(name)
        + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        + struct.pack("<IQ", kind, offset)
    ),
    st.sampled_from(["a", "b", "x" * 63, "x" * 64, ""]),
    st.lists(st.sampled_from([0, 1, 2, 32, 256, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63]), max_size=5),
    st.integers(0, 45),
    st.sampled_from([0, 32, 64, 1 << 32, (1 << 64) - 32, 1]),
)


@settings(max_examples=300, deadline=None)
@given(KEYS, st.lists(ENTRIES, max_size=4), st.none() | st.tuples(*[st.sampled_from(EDGES)] * 2), st.integers(0, 5))
@example([PAIRS[1], PAIRS[1]], [], None, 3)
@example([], [INFOS[0], INFOS[0]], None, 3)
def test_headers_of_parts(
    keys: list[bytes], entries: list[bytes], counts: tuple[int, int] | None, version: int
) -> None:
    """Good and bad parts in any order: keys that stand twice, tensors that overlap, sizes that overflow."""
    header = answered(encode(keys, entries, bytes(1024), counts=counts, version=version))
    if header is not None and counts is None:
        assert version in (2, 3)
        assert len(set(keys)) == len(keys)
        assert len(header.tensors) == len(entries)


@pytest.mark.parametrize("version", [2, 3])
def test_the_other_order_of_bytes(version: int) -> None:
    swapped = b"GGUF" + struct.pack(">IQQ", version, len(INFOS), len(PAIRS))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_header(FILE, len(GOOD), lambda offset, count: (swapped + GOOD[24:])[offset : offset + count])
