"""``auto``: which method to take, as a table of decisions with the evidence for each.

It never claims more than was measured. Every row names its measurement; the plan prints it. When a
runtime that must agree can't read the first choice, the next row's choice is tried, and that is said.

============  ===============  ================================  ===========================================
fine-tuning   factor           choices, best first               evidence
============  ===============  ================================  ===========================================
any           up to 1          none                              the weights already reach the length
no            up to 2          yarn, ntk, linear                 SmolLM2-135M at 2x (docs/evidence.md)
no            above 2          ntk with headroom, yarn, linear   SmolLM2-135M at 4x (docs/evidence.md)
yes           up to 16         ntk, yarn, linear                 Lu et al. 2024 (8x, 16x), LongRoPE2 (16x)
yes           above 16         yarn, ntk, linear                 YaRN tables 2 and 5 (32x, 600 steps)
============  ===============  ================================  ===========================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

#: Up to here YaRN was the better of the two without training, above it static NTK with headroom.
TRAINING_FREE_YARN_UP_TO: Final = 2.0

#: Static NTK without training holds for about four fifths of its stretch.
TRAINING_FREE_HEADROOM: Final = 1.25

#: Up to here the controlled studies of fine-tuned models go.
FINE_TUNED_NTK_UP_TO: Final = 16.0

#: Above this factor nobody measured a training-free extension that kept its quality.
TRAINING_FREE_WARNING_ABOVE: Final = 4.0


class Choice(Struct, frozen=True, kw_only=True):
    """A method with its parameters, and why it is preferred."""

    method: str
    reason: str
    options: Mapping[str, Any] = {}


def choices(factor: float, *, fine_tune: bool) -> tuple[Choice, ...]:
    """The methods for a factor, best first, each with its evidence. Empty when there is nothing to do."""
    if factor <= 1.0:
        return ()
    linear = Choice(method="linear", reason="the worst of those measured without training, but the simplest to read")
    return (*(_fine_tuned(factor) if fine_tune else _training_free(factor)), linear)


def _training_free(factor: float) -> tuple[Choice, Choice]:
    headroom = {"headroom": TRAINING_FREE_HEADROOM}
    if factor <= TRAINING_FREE_YARN_UP_TO:
        return (
            Choice(
                method="yarn",
                reason="without training, up to 2x: on SmolLM2-135M at 2x YaRN predicted the whole target best (26.69; "
                "static NTK 26.96, llama3 27.31, dynamic 27.34, linear 54.22)",
            ),
            Choice(method="ntk", options=headroom, reason="the next best of those measured without training"),
        )
    return (
        Choice(
            method="ntk",
            options=headroom,
            reason="without training, above 2x: on SmolLM2-135M at 4x static NTK with a quarter of headroom predicted "
            "the whole target as well as YaRN (29.80, 29.86; llama3 38.62) and the trained length better; without its "
            "headroom the last eighth fails. On the small demo model llama3's scaling is best at 4x and static NTK "
            "weak: ctxextend compare measures yours",
        ),
        Choice(method="yarn", reason="the next best of those measured without training"),
    )


def _fine_tuned(factor: float) -> tuple[Choice, Choice]:
    if factor <= FINE_TUNED_NTK_UP_TO:
        return (
            Choice(
                method="ntk",
                reason="fine-tuned, up to 16x: with equal training, NTK-aware scaling was better than YaRN on RULER in "
                "two controlled studies (Lu et al. 2024, arXiv 2409.12181; LongRoPE2, arXiv 2502.20082)",
            ),
            Choice(method="yarn", reason="the other method that was measured fine-tuned"),
        )
    return (
        Choice(
            method="yarn",
            reason="fine-tuned, above 16x: YaRN reached 32x with 600 steps (Peng et al. 2023, tables 2 and 5); no "
            "study of fine-tuned NTK goes as far",
        ),
        Choice(method="ntk", reason="the other method that was measured fine-tuned"),
    )
