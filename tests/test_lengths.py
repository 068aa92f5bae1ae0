"""Lengths and sizes as people type them and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxextend.errors import UsageError
from ctxextend.lengths import parse_bytes, parse_tokens, show_bytes, show_count, show_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("128k", 131072),
        ("128K", 131072),
        ("1m", 1048576),
        ("1M", 1048576),
        ("1.5k", 1536),
        ("0.5m", 524288),
        ("32768", 32768),
        (" 8k ", 8192),
        ("8 k", 8192),
        ("1", 1),
    ],
)
def test_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text, option="--target") == tokens


@pytest.mark.parametrize(
    "text",
    ["", " ", "k", "0", "0k", "-1", "-8k", "+8k", "nan", "inf", "1e3", "8kb", "8g", "1.0001k", "1.5", "8k8", "١٢"],
)
def test_what_are_no_tokens(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tokens(text, option="--target")
    assert (caught.value.code, caught.value.key) == ("bad-number", "--target")
    assert "128k" in (caught.value.expected or "")
    assert caught.value.found == repr(text)


def test_a_number_of_any_length_is_answered() -> None:
    with pytest.raises(UsageError):
        parse_tokens("9" * 400, option="--target")
    with pytest.raises(UsageError):
        parse_tokens("9" * 400 + "m", option="--target")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 << 30),
        ("24g", 24 << 30),
        ("24gb", 24 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("512", 512),
        ("512b", 512),
        ("1TiB", 1 << 40),
    ],
)
def test_bytes(text: str, size: int) -> None:
    assert parse_bytes(text, option="--memory") == size


@given(st.integers(min_value=1, max_value=1 << 31))
def test_what_is_shown_can_be_typed(tokens: int) -> None:
    assert parse_tokens(show_tokens(tokens), option="--target") == tokens


@pytest.mark.parametrize(
    ("tokens", "text"), [(131072, "128k"), (1 << 20, "1m"), (1536, "1536"), (1023, "1023"), (3 << 19, "1536k")]
)
def test_shown_tokens(tokens: int, text: str) -> None:
    assert show_tokens(tokens) == text


def test_shown_sizes() -> None:
    assert [show_bytes(size) for size in (0, 1023, 1024, 1536, 5 << 30, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]
    assert [show_count(count) for count in (7, 1000, 134_515_008, 10**12)] == ["7", "1K", "134.5M", "1T"]
