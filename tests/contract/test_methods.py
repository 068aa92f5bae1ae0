"""What every method must do, whatever was trained in."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from ctxextend.methods import METHODS, Base, Method, decode_options
from ctxextend.methods.base import HasVariants, Options
from ctxextend.scaling import table
from tests.methods.bases import DEEPSEEK, GEMMA3, GPT_OSS, LLAMA2, LLAMA31, PARTIAL, PHI3, PROPORTIONAL

BASES = {
    "plain": LLAMA2,
    "partial": PARTIAL,
    "proportional": PROPORTIONAL,
    "linear": GEMMA3,
    "llama3": LLAMA31,
    "yarn": GPT_OSS,
    "latent yarn": DEEPSEEK,
    "longrope": PHI3,
}
METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def options_for(method: Method, base: Base) -> dict[str, Any]:
    """The parameters that a method can't do without."""
    pairs = len(base.spec.inv_freq())
    required: dict[str, dict[str, Any]] = {
        "longrope": {"long_factor": [2.0] * pairs},
        "rebase": {"rope_theta": base.spec.rope_theta * 4},
    }
    return required.get(method.name, {})


@METHOD
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("factor", [1.5, 2, 8])
def test_its_table_fits_the_rope(method: Method, kind: str, factor: float) -> None:
    base = BASES[kind]
    target = int(base.context * factor)
    scaling = method.solve(base, target, decode_options(method, options_for(method, base)))
    after = table(base.spec, scaling, length=target)
    before = base.table()
    assert len(after.inv_freq) == len(before.inv_freq)
    for old, new in zip(before.inv_freq, after.inv_freq, strict=True):
        assert math.isfinite(new)
        assert new > 0.0 if old > 0.0 else new == 0.0
    # Every method extends: no pair turns faster than it did, and one that hasn't turned once by then is slower.
    for old, new in zip(before.inv_freq, after.inv_freq, strict=True):
        assert new <= old * (1 + 1e-12)
        assert new < old or old == 0.0 or old * base.context > 2 * math.pi
    assert math.isfinite(after.attention_factor)
    assert after.attention_factor > 0.0
    assert after.softmax_factor >= 1.0


@METHOD
def test_it_is_pure(method: Method) -> None:
    options = decode_options(method, options_for(method, LLAMA31))
    assert method.solve(LLAMA31, 262144, options) == method.solve(LLAMA31, 262144, options)


@METHOD
def test_it_says_what_it_is(method: Method) -> None:
    assert METHODS[method.name] is method
    assert method.summary
    assert "\n" not in method.summary
    assert any(digit in method.source for digit in "0123456789"), "a paper's year, or a model's version"
    assert inspect.getdoc(type(method))


@METHOD
def test_its_parameters_have_defaults_and_are_explained(method: Method) -> None:
    assert issubclass(method.options, Options)
    assert decode_options(method, {}) == method.options()
    assert inspect.getdoc(method.options)


@METHOD
def test_its_variants_start_where_the_user_stands(method: Method) -> None:
    if isinstance(method, HasVariants):
        for base in BASES.values():
            found = method.variants(base, method.options())
            assert found
            assert all(isinstance(option, method.options) for option in found)


def test_names_are_unique_and_typed_easily() -> None:
    assert len({method.name for method in METHODS.values()}) == len(METHODS) == 8
    assert all(name == name.lower() and " " not in name for name in METHODS)
