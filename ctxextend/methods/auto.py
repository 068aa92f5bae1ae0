"""``auto``: which method to take, as a table of decisions with the evidence for each.

It never claims more than was measured. Every row names its measurement; the plan prints it. When a
runtime that must agree can't read the first choice, the next row's choice is tried, and that is said.

============  ===============  ==========================  ==============================================
fine-tuning   factor           choices, best first         evidence
============  ===============  ==========================  ==============================================
any           up to 1          none                        the weights already reach the length
no            up to 2          yarn, ntk, linear           measured here on SmolLM2-135M, 2x
no            above 2          ntk, yarn, linear           measured here on SmolLM2-135M, 4x
yes           up to 16         ntk, yarn, linear           Lu et al. 2024 (8x, 16x), LongRoPE2 (16x)
yes           above 16         yarn, ntk, linear           YaRN tables 2 and 5 (32x, 600 steps)
============  ===============  ==========================  ==============================================
"""

from __future__ import annotations

from msgspec import Struct

#: Up to here YaRN was the better of the two without training, above it static NTK was.
TRAINING_FREE_YARN_UP_TO = 2.0

#: Up to here the controlled studies of fine-tuned models go.
FINE_TUNED_NTK_UP_TO = 16.0

#: Above this factor nobody measured a training-free extension that kept its quality.
TRAINING_FREE_WARNING_ABOVE = 4.0


class Choice(Struct, frozen=True, kw_only=True):
    """A method and why it is preferred."""

    method: str
    reason: str


def choices(factor: float, *, fine_tune: bool) -> tuple[Choice, ...]:
    """The methods for a factor, best first, each with its evidence. Empty when there is nothing to do."""
    if factor <= 1.0:
        return ()
    if fine_tune:
        return _fine_tuned(factor)
    yarn = Choice(
        method="yarn",
        reason=f"without training, up to {TRAINING_FREE_YARN_UP_TO:g}x: at 2x on SmolLM2-135M YaRN's perplexity "
        "past the trained length was the lowest of those measured, with little lost before it",
    )
    ntk = Choice(
        method="ntk",
        reason=f"without training, above {TRAINING_FREE_YARN_UP_TO:g}x: at 4x on SmolLM2-135M static NTK's "
        "perplexity was below YaRN's at every position measured",
    )
    first, second = (yarn, ntk) if factor <= TRAINING_FREE_YARN_UP_TO else (ntk, yarn)
    return (
        first,
        Choice(method=second.method, reason="the next best of those measured without training"),
        _linear(),
    )


def _fine_tuned(factor: float) -> tuple[Choice, ...]:
    ntk = Choice(
        method="ntk",
        reason="fine-tuned, up to 16x: with equal training, NTK-aware scaling was better than YaRN on RULER in two "
        "controlled studies (Lu et al. 2024, arXiv 2409.12181; LongRoPE2, arXiv 2502.20082)",
    )
    yarn = Choice(
        method="yarn",
        reason="fine-tuned, above 16x: YaRN reached 32x with 600 steps (Peng et al. 2023, tables 2 and 5); "
        "no study of fine-tuned NTK goes as far",
    )
    first, second = (ntk, yarn) if factor <= FINE_TUNED_NTK_UP_TO else (yarn, ntk)
    return (
        first,
        Choice(method=second.method, reason="the other method that was measured fine-tuned"),
        _linear(),
    )


def _linear() -> Choice:
    return Choice(method="linear", reason="every runtime reads it; the worst of those measured without training")
