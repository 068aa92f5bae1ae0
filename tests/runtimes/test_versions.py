"""``NAME@VERSION``: which ranges of versions a name means."""

from __future__ import annotations

import pytest

from ctxextend.errors import UsageError
from ctxextend.runtimes import gguf_readers_of, readers_of
from ctxextend.runtimes.versions import covers


@pytest.mark.parametrize(
    ("versions", "wanted", "held"),
    [
        ("5.x", "5", True),
        ("5.x", "5.23.0", True),
        ("5.x", "4.57", False),
        ("4.56-4.57", "4.57.6", True),
        ("4.56-4.57", "4.56", True),
        ("4.56-4.57", "4.55.4", False),
        ("4.56-4.57", "5.0", False),
        (">=0.30", "0.30", True),
        (">=0.30", "1.0", True),
        (">=0.30", "0.29.1", False),
        ("<=0.29", "0.29.1", True),
        ("<=0.29", "0.8.5", True),
        ("<=0.29", "0.30.0", False),
    ],
)
def test_a_range_holds_a_version(versions: str, wanted: str, held: bool) -> None:
    assert covers(versions, wanted) is held


@pytest.mark.parametrize("wanted", ["", "new", "4.x", "4..5", "v4.45"])
def test_a_version_is_numbers_and_dots(wanted: str) -> None:
    with pytest.raises(UsageError, match="version can't be read"):
        covers("4.56-4.57", wanted)


def test_a_version_widens_a_name_down_to_its_range() -> None:
    readers = readers_of(["transformers@4.57", "sglang"])
    assert [(r.runtime, r.versions) for r in readers][:2] == [("transformers", "5.x"), ("transformers", "4.56-4.57")]
    assert readers_of(["transformers@5.1"]) == readers_of(["transformers"])


def test_a_version_that_no_range_holds_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError) as caught:
        readers_of(["transformers@4.2"])
    assert caught.value.code == "unknown-version"
    assert caught.value.expected is not None
    assert "4.56-4.57" in caught.value.expected


@pytest.mark.parametrize("name", ["llama.cpp@banana", "vllm@", "ollama@", "transformers@", "sglang@x"])
def test_a_version_that_is_none_is_refused_for_every_runtime(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        readers_of([name])
    assert caught.value.code == "bad-version"


@pytest.mark.parametrize("name", ["", " ", "@5"])
def test_a_runtime_needs_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="without a name"):
        readers_of(["vllm", name])


def test_the_case_of_a_name_does_not_count() -> None:
    assert readers_of(["vLLM", "MLX-LM", "Llama.cpp"]) == readers_of(["vllm", "mlx-lm"])
    assert readers_of(["SGLang@0.5"]) == readers_of(["sglang"])
    assert [reader.runtime for reader in gguf_readers_of(["Ollama", "vllm"])] == ["ollama"]
