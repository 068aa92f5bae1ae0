"""``auto``'s table of decisions, as its page states it."""

from __future__ import annotations

import pytest

from ctxextend.methods import METHODS
from ctxextend.methods.auto import choices


@pytest.mark.parametrize("fine_tune", [True, False])
@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_there_is_nothing_to_do_within_the_trained_length(factor: float, fine_tune: bool) -> None:
    assert choices(factor, fine_tune=fine_tune) == ()


@pytest.mark.parametrize(
    ("factor", "fine_tune", "order"),
    [
        (1.5, False, ["yarn", "ntk", "linear"]),
        (2.0, False, ["yarn", "ntk", "linear"]),
        (2.01, False, ["ntk", "yarn", "linear"]),
        (4.0, False, ["ntk", "yarn", "linear"]),
        (32.0, False, ["ntk", "yarn", "linear"]),
        (2.0, True, ["ntk", "yarn", "linear"]),
        (16.0, True, ["ntk", "yarn", "linear"]),
        (16.01, True, ["yarn", "ntk", "linear"]),
        (64.0, True, ["yarn", "ntk", "linear"]),
    ],
)
def test_the_order_of_choices(factor: float, fine_tune: bool, order: list[str]) -> None:
    found = choices(factor, fine_tune=fine_tune)
    assert [choice.method for choice in found] == order
    assert all(choice.method in METHODS and choice.reason for choice in found)


@pytest.mark.parametrize(("factor", "evidence"), [(2.0, "SmolLM2-135M at 2x"), (4.0, "SmolLM2-135M at 4x")])
def test_the_first_choice_names_its_measurement(factor: float, evidence: str) -> None:
    assert evidence in choices(factor, fine_tune=False)[0].reason


@pytest.mark.parametrize(("factor", "evidence"), [(8.0, "2409.12181"), (32.0, "Peng et al. 2023")])
def test_the_first_choice_of_a_fine_tuned_model_names_its_study(factor: float, evidence: str) -> None:
    assert evidence in choices(factor, fine_tune=True)[0].reason
