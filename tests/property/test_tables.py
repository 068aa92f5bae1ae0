"""Laws of scalings and methods, whatever the rope."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ctxextend.methods import METHODS, Base, extension_factor
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Dynamic, Linear, Llama3, LongRope, Scaling, Yarn, table
from tests.methods import closed_forms as paper
from tests.property.strategies import CONTEXTS, FACTORS, bases, specs

#: Methods that answer for any base without parameters.
WITHOUT_PARAMETERS = ("linear", "ntk", "dynamic", "ntk-by-parts", "yarn", "llama3")
#: Those whose frequencies lie between base / factor and base.
INTERPOLATING = ("linear", "ntk", "ntk-by-parts", "yarn", "llama3")

ROUNDING = 1e-9


@given(spec=specs(), context=CONTEXTS)
@settings(max_examples=40, deadline=None)
def test_a_factor_of_one_is_the_identity(spec: RopeSpec, context: int) -> None:
    ones = (1.0,) * len(spec.inv_freq())
    identities: list[Scaling] = [
        Linear(factor=1.0),
        Dynamic(factor=1.0, original_max_position_embeddings=context),
        Yarn(factor=1.0, original_max_position_embeddings=context),
        Llama3(factor=1.0, original_max_position_embeddings=context),
        LongRope(short_factor=ones, long_factor=ones, original_max_position_embeddings=context, factor=1.0),
    ]
    for scaling in identities:
        found = table(spec, scaling, length=context)
        assert found.inv_freq == pytest.approx(spec.inv_freq(), rel=ROUNDING)
        assert (found.attention_factor, found.softmax_factor) == (1.0, 1.0)


@pytest.mark.parametrize("name", WITHOUT_PARAMETERS)
@given(base=bases())
@settings(max_examples=25, deadline=None)
def test_a_method_within_the_trained_length_keeps_the_trained_table(name: str, base: Base) -> None:
    method = METHODS[name]
    found = table(base.spec, method.solve(base, base.context, method.options()), length=base.context)
    assert found.inv_freq == pytest.approx(base.table().inv_freq, rel=ROUNDING)
    assert found.attention_factor == pytest.approx(base.table().attention_factor, rel=ROUNDING)


@pytest.mark.parametrize("name", INTERPOLATING)
@given(base=bases(), factor=FACTORS)
@settings(max_examples=40, deadline=None)
def test_frequencies_lie_between_base_by_factor_and_base(name: str, base: Base, factor: float) -> None:
    target = math.ceil(base.context * factor)
    method = METHODS[name]
    before = base.table().inv_freq
    after = table(base.spec, method.solve(base, target, method.options()), length=target).inv_freq
    exact = extension_factor(base.context, target)
    for old, new in zip(before, after, strict=True):
        assert old / exact * (1 - ROUNDING) <= new <= old * (1 + ROUNDING)


@pytest.mark.parametrize("name", [*INTERPOLATING, "dynamic"])
@given(base=bases(), factor=FACTORS)
@settings(max_examples=25, deadline=None)
def test_frequencies_still_decrease(name: str, base: Base, factor: float) -> None:
    target = math.ceil(base.context * factor)
    method = METHODS[name]
    after = table(base.spec, method.solve(base, target, method.options()), length=target).inv_freq
    assert all(faster >= slower * (1 - ROUNDING) for faster, slower in itertools.pairwise(after))


@given(spec=specs(), context=CONTEXTS, factor=FACTORS)
@settings(max_examples=40, deadline=None)
def test_methods_on_a_plain_table_are_the_textbook(spec: RopeSpec, context: int, factor: float) -> None:
    target = math.ceil(context * factor)
    exact = target / context
    theta, dim = spec.rope_theta, spec.rotary_dim
    base = Base(spec=spec, context=context)
    expected = {
        "linear": paper.interpolated(theta, dim, exact),
        "ntk": paper.plain(paper.ntk_theta(theta, dim, exact), dim),
        "dynamic": paper.plain(paper.ntk_theta(theta, dim, exact**2 - exact + 1), dim),
        "yarn": paper.yarn(theta, dim, exact, context),
        "ntk-by-parts": paper.yarn(theta, dim, exact, context),
        "llama3": paper.llama3(paper.plain(theta, dim), exact, context),
    }
    for name, frequencies in expected.items():
        method = METHODS[name]
        found = table(spec, method.solve(base, target, method.options()), length=target)
        assert found.inv_freq == pytest.approx(frequencies, rel=1e-8), name
        temperature = 0.1 * math.log(exact) + 1.0 if name == "yarn" else 1.0
        assert found.attention_factor == pytest.approx(temperature, rel=1e-12)


@given(context=st.integers(1, 1 << 24), target=st.integers(1, 1 << 30))
@settings(max_examples=300, deadline=None)
def test_the_factor_gives_the_target_exactly(context: int, target: int) -> None:
    assume(target >= context)
    factor = extension_factor(context, target)
    assert int(context * factor) == target
    assert factor == pytest.approx(target / context, rel=1e-14)


@given(base=bases(), factor=FACTORS)
@settings(max_examples=40, deadline=None)
def test_stretch_undoes_itself(base: Base, factor: float) -> None:
    plain = base.spec.inv_freq()
    scaled = table(base.spec, Linear(factor=factor))
    assert scaled.stretch(plain) == pytest.approx([factor] * len(plain), rel=1e-12)
    stretch = base.table().stretch(plain)
    assert [f / s for f, s in zip(plain, stretch, strict=True)] == pytest.approx(base.table().inv_freq, rel=1e-12)
