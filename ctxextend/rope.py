"""Rotary position embeddings: the geometry, and the table that attention really uses.

Nothing here knows a file format, a model family or a scaling. All numbers are float64.

Conventions: ``inv_freq[i]`` is in radians per token; pair ``i`` of a head is turned by
``position * inv_freq[i]``; ``attention_factor`` multiplies cos *and* sin, so that scores between
rotated dimensions are multiplied by its square.

Source: Su et al., *RoFormer* (arXiv 2104.09864), section 3.2.2, eq. 15.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from msgspec import Struct

#: Which dimensions of a head form a pair: (i, i + d/2), as in GPT-NeoX, or (2i, 2i + 1), as in GPT-J.
Pairing = Literal["half", "interleaved"]

#: ``leading``: the first ``rotary_dim`` dimensions are rotated, and exponents run over ``rotary_dim``.
#: ``proportional``: exponents run over ``head_dim``, and pairs past ``rotary_dim / 2`` stand still.
Layout = Literal["leading", "proportional"]

#: Of a head: far more than any model has, and few enough to work with.
MOST_DIMENSIONS: Final = 65_536


class RopeSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rotary geometry of one group of layers, before anything was done to it.

    ``head_dim`` and ``rotary_dim`` count dimensions, ``rope_theta`` is the base of the exponents.
    ``softmax_mscale`` says that the model multiplies its softmax scale by the square of YaRN's
    ``mscale_all_dim`` temperature (multi-head latent attention, as in DeepSeek-V2 and -V3).

    Raises ``ValueError`` for a geometry that can't exist.
    """

    rope_theta: float
    head_dim: int
    rotary_dim: int
    layout: Layout = "leading"
    pairing: Pairing = "half"
    softmax_mscale: bool = False

    def __post_init__(self) -> None:
        if self.head_dim > MOST_DIMENSIONS:
            raise ValueError(f"no model's heads have {self.head_dim} dimensions")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 1.0):
            raise ValueError(f"rope_theta must be a number above 1, found {self.rope_theta}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even and positive, found {self.rotary_dim}")
        if self.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim {self.rotary_dim} is larger than head_dim {self.head_dim}")

    @property
    def exponent_dim(self) -> int:
        """The dimension over which exponents run: ``theta ** (-2 i / exponent_dim)``."""
        return self.rotary_dim if self.layout == "leading" else self.head_dim

    def inv_freq(self, rope_theta: float | None = None) -> tuple[float, ...]:
        """The plain inverse frequencies, highest first; shape ``(exponent_dim / 2,)``.

        RoFormer eq. 15: ``theta ** (-2 i / d)``. With ``rope_theta``, for another base.
        """
        theta = self.rope_theta if rope_theta is None else rope_theta
        dim = self.exponent_dim
        rotated = tuple(theta ** (-2.0 * i / dim) for i in range(self.rotary_dim // 2))
        return rotated + (0.0,) * (dim // 2 - self.rotary_dim // 2)

    def index_of(self, inv_freq: float) -> float:
        """Where in the plain spectrum a frequency stands: the real ``i`` with ``theta^(-2i/d)`` equal to it.

        Infinity for a frequency of zero.
        """
        if inv_freq <= 0.0:
            return math.inf
        return -self.exponent_dim * math.log(inv_freq) / (2.0 * math.log(self.rope_theta))


class RopeTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What attention uses, at one length: the whole effect of every rope setting.

    ``inv_freq``: radians per token, shape ``(d / 2,)``. ``attention_factor``: on cos and sin.
    ``softmax_factor``: extra factor on all scores (1 except for latent attention).
    ``switches``: the context lengths, in tokens, past which the reader uses another table.
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0
    softmax_factor: float = 1.0
    switches: tuple[int, ...] = ()

    def stretch(self, base: tuple[float, ...]) -> tuple[float, ...]:
        """How much slower each pair turns than in ``base``: ``base / inv_freq``, 1 where both stand still.

        This is what longrope's lists and GGUF's ``rope_freqs`` hold. Raises ``ValueError`` when the
        lengths differ or a pair that turned would have to stand still.
        """
        if len(base) != len(self.inv_freq):
            raise ValueError(f"tables of {len(base)} and {len(self.inv_freq)} pairs")
        if any(new <= 0.0 < old for old, new in zip(base, self.inv_freq, strict=True)):
            raise ValueError("a frequency of zero has no finite factor")
        return tuple(1.0 if old == 0.0 else old / new for old, new in zip(base, self.inv_freq, strict=True))

    def error_against(self, other: RopeTable) -> float:
        """The largest ``|a - b| / b`` over all pairs; two zeros agree; infinity for another shape."""
        if len(self.inv_freq) != len(other.inv_freq):
            return math.inf
        worst = 0.0
        for a, b in zip(self.inv_freq, other.inv_freq, strict=True):
            if a == b:
                continue
            if b == 0.0:
                return math.inf
            worst = max(worst, abs(a - b) / b)
        return worst
