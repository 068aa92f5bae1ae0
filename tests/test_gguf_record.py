"""The record in a GGUF file: what it holds comes back as it was, and one that was tampered with is no record."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from ctxextend.contents import Gguf, GgufEdits, GgufValue
from ctxextend.errors import CheckpointError
from ctxextend.gguf_record import KEY, SCHEMA, GgufRecord, find_gguf_record, recorded, without_record
from tests.gguf_factory import gguf

#: The ends of each type, from the GGUF specification.
EVERY = {
    "UINT8": (0, 255),
    "INT8": (-128, 127),
    "UINT16": (0, 65_535),
    "INT16": (-32_768, 32_767),
    "UINT32": (0, 4_294_967_295),
    "INT32": (-2_147_483_648, 2_147_483_647),
    "UINT64": (0, 18_446_744_073_709_551_615),
    "INT64": (-9_223_372_036_854_775_808, 9_223_372_036_854_775_807),
    "FLOAT32": (0.0, -1.0, 0.10000000149011612, 1e30, 3.4028234663852886e38, 1.401298464324817e-45),
    "FLOAT64": (0.1, 1.7976931348623157e308, 5e-324, 1e16),
    "BOOL": (True, False),
    "STRING": ("", "yarn", '\u00e4\u4f60\U0001f999\x00"\\'),
}
CASES = [
    *(GgufValue(type=kind, value=content) for kind, contents in EVERY.items() for content in contents),  # type: ignore[arg-type]
    *(
        GgufValue(type="ARRAY", item=kind, length=len(contents), value=contents)  # type: ignore[arg-type]
        for kind, contents in EVERY.items()
    ),
    GgufValue(type="ARRAY", item="FLOAT32", length=0, value=()),
]


def record(base: Gguf, wanted: GgufEdits) -> GgufEdits:
    return recorded(base, wanted, version="1.0", method="yarn", trained=1024, target=4096, digest="0" * 64)


def with_values(base: Gguf, **values: GgufValue) -> Gguf:
    return msgspec.structs.replace(base, values={**base.values, **values})


@pytest.mark.parametrize("was", CASES, ids=str)
def test_a_value_of_every_type_comes_back(was: GgufValue) -> None:
    base = with_values(gguf(), **{"llama.some": was})
    edits = record(base, GgufEdits(keys={"llama.new": GgufValue(type="UINT32", value=1)}, removed=("llama.some",)))
    after = with_values(gguf(), **edits.keys)
    found = find_gguf_record(after)
    assert found is not None
    assert dict(found.keys) == {"llama.some": was, "llama.new": None}
    back = without_record(after, found).values
    assert back == base.values
    assert type(back["llama.some"].value) is type(was.value)


def test_tensors_and_lengths_come_back() -> None:
    numbers = (1.0, 0.10000000149011612, 1.0000000150474662e30)
    base = gguf(factors={"rope_freqs.weight": numbers})
    edits = GgufEdits(removed_tensors=("rope_freqs.weight",), tensors={"rope_factors_long.weight": (2.0,)})
    after = with_values(gguf(factors={"rope_factors_long.weight": (2.0,)}), **record(base, edits).keys)
    found = find_gguf_record(after)
    assert found is not None
    assert (found.trained_context, found.target_context) == (1024, 4096)
    assert found.tensors == {"rope_freqs.weight": numbers, "rope_factors_long.weight": None}
    assert without_record(after, found).factors == base.factors


@pytest.mark.parametrize(
    "was",
    [
        GgufValue(type="FLOAT32", value=math.nan),
        GgufValue(type="FLOAT64", value=-math.inf),
        GgufValue(type="STRING", value=None),
        GgufValue(type="ARRAY", item="UINT32", length=5000, value=None),
    ],
    ids=str,
)
def test_what_could_not_come_back_is_refused_before_it_is_taken_away(was: GgufValue) -> None:
    base = with_values(gguf(), **{"llama.some": was})
    with pytest.raises(CheckpointError) as caught:
        record(base, GgufEdits(removed=("llama.some",)))
    assert (caught.value.code, caught.value.key) == ("broken-config", "llama.some")


GOOD: dict[str, Any] = {
    "schema": SCHEMA,
    "version": "1.0",
    "method": "yarn",
    "trained_context": 1024,
    "target_context": 4096,
    "plan": "0" * 64,
    "keys": {"llama.context_length": {"type": "UINT32", "value": 1024}, "llama.rope.scaling.type": None},
    "tensors": {"rope_freqs.weight": [1.0, 2.0]},
}


def said(value: Any) -> dict[str, Any]:
    return {"keys": {"llama.some": value}}


TAMPERED: dict[str, dict[str, Any]] = {
    "text for a number": said({"type": "UINT32", "value": "abc"}),
    "nothing for a number": said({"type": "FLOAT32", "value": None}),
    "no value": said({"type": "UINT32"}),
    "a list for a number": said({"type": "UINT32", "value": [1]}),
    "an object for a text": said({"type": "STRING", "value": {}}),
    "a number for a text": said({"type": "STRING", "value": 5}),
    "a number for a flag": said({"type": "BOOL", "value": 1}),
    "a flag for a number": said({"type": "UINT32", "value": True}),
    "a fraction": said({"type": "INT32", "value": 1.5}),
    "below a type": said({"type": "UINT32", "value": -1}),
    "above a type": said({"type": "UINT8", "value": 256}),
    "above single precision": said({"type": "FLOAT32", "value": 1e300}),
    "above all": said({"type": "UINT64", "value": 10**30}),
    "an array without a type": said({"type": "ARRAY", "value": [1], "length": 1}),
    "an array of arrays": said({"type": "ARRAY", "item": "ARRAY", "value": [[1]], "length": 1}),
    "an array of another length": said({"type": "ARRAY", "item": "UINT32", "value": [1], "length": 2}),
    "an array of another type": said({"type": "ARRAY", "item": "UINT32", "value": ["a"], "length": 1}),
    "an array of nothing": said({"type": "ARRAY", "item": "UINT32", "length": 1}),
    "an unknown type": said({"type": "COMPLEX", "value": 1}),
    "a scalar with a length": said({"type": "UINT32", "value": 1, "length": 1}),
    "a value that is none": said(5),
    "a key of another kind": {"keys": {"general.alignment": {"type": "UINT32", "value": 7}}},
    "no length": {"trained_context": 0},
    "a length below nothing": {"target_context": -4096},
    "a length above all": {"target_context": 1 << 40},
    "a length in words": {"trained_context": "1024"},
    "a tensor of texts": {"tensors": {"rope_freqs.weight": ["a"]}},
    "a tensor of nothing": {"tensors": {"rope_freqs.weight": [None]}},
    "an empty tensor": {"tensors": {"rope_freqs.weight": []}},
    "a tensor of one number": {"tensors": {"rope_freqs.weight": 1.0}},
    "a tensor that is too large": {"tensors": {"rope_freqs.weight": [1e300]}},
    "another tensor": {"tensors": {"token_embd.weight": [1.0]}},
    "another schema": {"schema": "ctxextend.gguf-record/9"},
    "an unknown reading": {"taken_as": "guessed"},
    "no keys": {"keys": None},
}


def holding(text: Any) -> Gguf:
    return with_values(gguf(), **{KEY: GgufValue(type="STRING", value=text)})


def test_the_record_that_is_tampered_with_here_is_a_good_one() -> None:
    found = find_gguf_record(holding(json.dumps(GOOD)))
    assert isinstance(found, GgufRecord)
    assert found.tensors == {"rope_freqs.weight": (1.0, 2.0)}
    assert find_gguf_record(gguf()) is None


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_record_that_was_tampered_with(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_gguf_record(holding(json.dumps({**GOOD, **change})))
    assert (caught.value.code, caught.value.key) == ("broken-record", KEY)


@pytest.mark.parametrize(
    "text",
    [None, "", "null", "[]", "{", '{"schema": "\\ud800"}', json.dumps(GOOD)[:-1], '{"keys":' + '{"a":' * 100_000],
    ids=["none", "empty", "null", "list", "open", "half a character", "cut", "deep"],
)
def test_a_record_that_is_no_record(text: str | None) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_gguf_record(holding(text))
    assert caught.value.code == "broken-record"


def test_a_record_of_another_type() -> None:
    with pytest.raises(CheckpointError) as caught:
        find_gguf_record(with_values(gguf(), **{KEY: GgufValue(type="UINT32", value=1)}))
    assert caught.value.code == "broken-record"


def test_a_deep_value_of_a_record() -> None:
    text = json.dumps({**GOOD, **said({"type": "UINT32", "value": "deep"})})
    with pytest.raises(CheckpointError) as caught:
        find_gguf_record(holding(text.replace('"deep"', "[" * 50_000 + "]" * 50_000)))
    assert caught.value.code == "broken-record"
