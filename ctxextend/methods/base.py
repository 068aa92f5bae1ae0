"""What a method is: it looks at what the weights were trained with and chooses a scaling.

A method sees a :class:`Base` (a geometry, the scaling that was trained in, the trained length)
and a target, and returns a scaling of the same geometry. It writes itself over the base's *table*;
when the base is plain that is its textbook form, with the textbook's own scaling as the answer.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from msgspec import Struct

from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.scaling import Linear, LongRope, Scaling, table


class Base(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is extended: ``scaling`` is what was trained in (None: a plain rope), ``context`` counts tokens."""

    spec: RopeSpec
    scaling: Scaling | None = None
    context: int

    def table(self) -> RopeTable:
        """The table that the weights know, at the trained length."""
        return table(self.spec, self.scaling, length=self.context)


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A method's parameters. A method without any uses this class as it stands."""


class Method(Protocol):
    """One strategy. Built-in methods are instances in this package; others come by entry point.

    ``name`` is what ``--method`` takes, ``summary`` one line, ``source`` the paper and equation,
    ``options`` the class of its parameters. ``solve`` is pure; it raises ``ValueError`` with a
    sentence when the method can't serve this base or target.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> type[Options]: ...

    def solve(self, base: Base, target: int, options: Options) -> Scaling: ...


@runtime_checkable
class HasVariants(Protocol):
    """A method with more than one way over some bases, tried in order until runtimes can read one."""

    def variants(self, base: Base, options: Options) -> tuple[Options, ...]: ...


def extension_factor(context: int, target: int) -> float:
    """``target / context`` as a float that never rounds the length down: ``int(context * factor) >= target``.

    Readers multiply and truncate; 1.6 times 163840 must not become 262143. Both count tokens.
    """
    factor = target / context
    while int(context * factor) < target:
        factor = math.nextafter(factor, math.inf)
    return factor


def plain(base: Base) -> bool:
    """Whether the base is a rope to which nothing was done."""
    return base.scaling is None


def uniform_factor(base: Base) -> float | None:
    """The one number by which the base divides the plain spectrum (1 for a plain rope), if there is one."""
    match base.scaling:
        case None:
            return 1.0
        case Linear(rope_theta=None):
            return base.scaling.factor
        case _:
            return None


def compose(
    base: Base,
    target: int,
    inv_freq: tuple[float, ...],
    *,
    temperature: float = 1.0,
) -> LongRope:
    """The scaling that gives ``inv_freq`` over ``base``'s geometry, whatever was trained in.

    The base's temperature is kept and multiplied by ``temperature``: on cos and sin, or, where the
    model scales its softmax instead (latent attention), there. ``target`` counts tokens.
    """
    before = base.table()
    plain_inv_freq = base.spec.inv_freq()
    factors = RopeTable(inv_freq=inv_freq).stretch(plain_inv_freq)
    factor = extension_factor(base.context, target)
    attention, weight = before.attention_factor, None
    if base.spec.softmax_mscale:
        softmax = math.sqrt(before.softmax_factor) * temperature
        weight = 10.0 * (softmax - 1.0) / math.log(factor) if softmax != 1.0 else None
    else:
        attention *= temperature
    return LongRope(
        short_factor=factors,
        long_factor=factors,
        original_max_position_embeddings=base.context,
        factor=factor,
        attention_factor=attention,
        mscale_all_dim=weight,
    )
