"""The tree of errors: its exit codes are a contract."""

from __future__ import annotations

import pytest

from ctxextend import errors
from ctxextend.errors import CtxextendError, MissingExtraError, UnknownNameError, nearest

EXIT_CODES = {
    "CtxextendError": 1,
    "CheckpointError": 1,
    "OutputError": 1,
    "HubError": 1,
    "UsageError": 2,
    "UnknownNameError": 2,
    "MissingExtraError": 2,
    "RefusedError": 3,
    "GateError": 4,
    "DisagreementError": 5,
}


def classes() -> dict[str, type[CtxextendError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, CtxextendError)
    }


def test_the_exit_codes() -> None:
    assert {name: error.exit_code for name, error in classes().items()} == EXIT_CODES


def test_the_tree_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    drawn = {
        words[0]: int(words[1])
        for line in errors.__doc__.splitlines()
        if len(words := line.strip(" │├└─").split()) > 1 and words[0].endswith("Error") and words[1].isdigit()
    }
    assert drawn == EXIT_CODES


@pytest.mark.parametrize("name", sorted(EXIT_CODES.keys() - {"UnknownNameError", "MissingExtraError"}))
def test_the_details(name: str) -> None:
    error = classes()[name]("what", code="c", file="f", key="k", expected="e", found="g", hint="h")
    assert str(error) == "what"
    assert error.details() == {
        "code": "c",
        "message": "what",
        "file": "f",
        "key": "k",
        "expected": "e",
        "found": "g",
        "hint": "h",
        "exit_code": EXIT_CODES[name],
    }
    assert classes()[name]("what").details() == {"code": "failed", "message": "what", "exit_code": EXIT_CODES[name]}


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    error = UnknownNameError("method", "yarm", ["linear", "yarn"])
    assert (error.code, error.found) == ("unknown-method", "yarm")
    assert error.hint == "did you mean yarn? known: linear, yarn"
    assert UnknownNameError("kind of thing", "zzz", []).code == "unknown-kind-of-thing"
    assert UnknownNameError("method", "zzz", []).hint == "known: none"


def test_nearest() -> None:
    assert nearest("vlm", ["vllm", "sglang"]) == ["vllm"]
    assert nearest("qqqq", ["vllm", "sglang"]) == []
    assert len(nearest("a1", ["a2", "a3", "a4", "a5"])) == 3


def test_a_missing_extra_says_how_to_get_it() -> None:
    assert MissingExtraError("torch", "lab").hint == "pip install 'ctxextend[lab]'"
