"""A method's parameters from plain values, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from ctxextend.errors import UnknownNameError, UsageError
from ctxextend.methods import METHODS, decode_options
from ctxextend.methods.llama3 import Llama3Options
from ctxextend.methods.longrope import LongRopeOptions
from ctxextend.methods.yarn import YarnOptions


def test_defaults_and_values() -> None:
    assert decode_options(METHODS["yarn"], {}) == YarnOptions()
    assert decode_options(METHODS["yarn"], {"beta_fast": 16, "truncate": False}) == YarnOptions(
        beta_fast=16.0, truncate=False
    )
    assert decode_options(METHODS["llama3"], {"high_freq_factor": 8}) == Llama3Options(high_freq_factor=8.0)


def test_lists() -> None:
    found = decode_options(METHODS["longrope"], {"long_factor": [1, 2.5]})
    assert found == LongRopeOptions(long_factor=(1.0, 2.5))


def test_a_parameter_that_is_not_known_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        decode_options(METHODS["yarn"], {"beta_fats": 16})
    assert caught.value.exit_code == 2
    assert caught.value.message == "unknown parameter of yarn: beta_fats"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean beta_fast")
    assert "mscale_all_dim" in caught.value.hint


def test_a_method_without_parameters_says_so() -> None:
    with pytest.raises(UnknownNameError) as caught:
        decode_options(METHODS["linear"], {"factor": 4})
    assert caught.value.hint == "known: none"


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("yarn", "beta_fast", "many"),
        ("yarn", "truncate", 1),
        ("yarn", "compose", "sum"),
        ("longrope", "long_factor", 4.0),
        ("rebase", "rope_theta", [1.0]),
    ],
)
def test_a_value_that_cannot_be_read_names_its_key(method: str, key: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        decode_options(METHODS[method], {key: value})
    assert (caught.value.code, caught.value.exit_code) == ("bad-parameter", 2)
    assert method in caught.value.message
    assert key in f"{caught.value.key} {caught.value.found}"
    assert caught.value.hint is not None
    assert key in caught.value.hint
