"""Hand-made evaluations and comparisons, in the likeness of SmolLM2-135M (trained to 8192 tokens)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ctxextend.lab.engines.base import EngineFacts
from ctxextend.lab.names import RetrievalTask
from ctxextend.lab.results import (
    Best,
    Candidate,
    Comparison,
    Cost,
    Curve,
    Evaluation,
    Gate,
    MemoryAt,
    Point,
    Rate,
    Settings,
    Short,
    Spectrum,
    Text,
)
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, Rebase, Scaling, Yarn, table

TRAINED = 8192
TARGET = 16384
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)

#: Perplexity of each 2048 tokens of 16384, by method.
CURVES: dict[str, tuple[float, ...]] = {
    "none": (28.7, 22.0, 22.6, 31.4, 31.9, 39.3, 175.0, 691.0),
    "yarn": (29.0, 24.0, 25.0, 36.0, 35.0, 25.0, 26.0, 34.0),
    "ntk": (29.2, 23.1, 24.0, 33.4, 33.5, 24.6, 27.7, 41.9),
    "linear": (47.0, 41.2, 44.0, 63.1, 66.0, 49.5, 52.0, 71.3),
    "dynamic": (29.2, 23.1, 24.0, 33.4, 33.5, 24.6, 27.7, 41.9),
}


def curve(perplexities: Sequence[float], *, length: int = TARGET, trained: int = TRAINED) -> Curve:
    """A curve of equal steps. ``ratio`` is set by hand from the first and the last number."""
    step = length // len(perplexities)
    points = tuple(
        Point(start=index * step, end=(index + 1) * step, count=4 * step, perplexity=value)
        for index, value in enumerate(perplexities)
    )
    whole = sum(perplexities) / len(perplexities)
    past = length > trained
    return Curve(
        length=length, windows=4, whole=whole, points=points, ratio=perplexities[-1] / perplexities[0] if past else None
    )


def rates(kind: RetrievalTask, length: int, found: Sequence[int], *, asked: int = 4) -> tuple[Rate, ...]:
    """One rate a depth, and the one over all of them; the intervals are round numbers."""

    def rate(depth: float | None, hits: int, of: int) -> Rate:
        share = hits / of
        low, high = max(0.0, share - 0.2), min(1.0, share + 0.2)
        return Rate(kind=kind, length=length, depth=depth, asked=of, found=hits, rate=share, low=low, high=high)

    each = tuple(rate(depth, hits, asked) for depth, hits in zip(DEPTHS, found, strict=True))
    return (*each, rate(None, sum(found), asked * len(found)))


def spread_rate(kind: RetrievalTask, length: int, found: int, asked: int) -> Rate:
    share = found / asked
    return Rate(kind=kind, length=length, depth=None, asked=asked, found=found, rate=share, low=share / 2, high=1.0)


def short(length: int, perplexity: float, against: float, kl: float) -> Short:
    return Short(
        length=length,
        count=4 * length,
        perplexity=perplexity,
        perplexity_against=against,
        regression=perplexity / against - 1,
        kl=kl,
        same_top=0.94,
    )


def spectrum(scaling: Scaling | None, length: int = TARGET, label: str = "full_attention") -> Spectrum:
    spec = RopeSpec(rope_theta=100000.0, head_dim=64, rotary_dim=64)
    made = table(spec, scaling, length=length)
    return Spectrum(
        label=label,
        length=length,
        inv_freq=made.inv_freq,
        base=spec.inv_freq(),
        attention_factor=made.attention_factor,
    )


def engine(**changes: Any) -> EngineFacts:
    facts = EngineFacts(
        engine="transformers",
        version="5.23.0",
        device="cpu",
        dtype="float32",
        vocabulary=49152,
        context=TARGET,
        opening=(),
        weight_bytes=16_060_522_496,
        can=frozenset(("losses", "log_probs")),
    )
    return msgspec.structs.replace(facts, **changes)


def settings(**changes: Any) -> Settings:
    made = Settings(
        tasks=("perplexity", "passkey", "needles", "variables", "short"),
        lengths=(2048, 8192, 16384),
        short_lengths=(2048, 8192),
        depths=DEPTHS,
        samples=4,
    )
    return msgspec.structs.replace(made, **changes)


TEXTS = (
    Text(name="pride-and-prejudice", sha256="c1" * 32, tokens=181_244),
    Text(name="on-the-origin-of-species", sha256="9f" * 32, tokens=214_010),
)
COST = Cost(cells=84, tokens=1_204_224, seconds=3725.0, tokens_per_second=323.3, peak_memory_bytes=3_221_225_472)
YARN = Yarn(factor=2.0, original_max_position_embeddings=TRAINED)


def evaluation(**changes: Any) -> Evaluation:
    """A yarn at twice the length that passes three gates and misses one."""
    made = Evaluation(
        version="0.5.0",
        ok=False,
        source="SmolLM2-135M-Instruct-yarn-16k",
        against="HuggingFaceTB/SmolLM2-135M-Instruct",
        method="yarn",
        trained_context=TRAINED,
        current_context=TARGET,
        engine=engine(),
        settings=settings(),
        texts=TEXTS,
        curves=(
            curve((29.4,), length=2048),
            curve((29.1, 24.2, 25.2, 35.6), length=8192),
            curve(CURVES["yarn"]),
        ),
        sliding=(),
        rates=(
            *rates("passkey", 2048, (4, 4, 4, 4, 4)),
            *rates("passkey", 7680, (4, 4, 3, 4, 4)),
            *rates("passkey", 12288, (3, 2, 1, 4, 4)),
            spread_rate("needles", 2048, 15, 16),
            spread_rate("needles", 12288, 6, 16),
            spread_rate("variables", 2048, 9, 10),
        ),
        short=(short(2048, 29.4, 28.7, 0.021), short(8192, 27.9, 25.8, 0.043)),
        gates=(
            Gate(name="perplexity-ratio", bound=1.2, measured=1.1724, ok=True, where="16384 tokens"),
            Gate(name="passkey", bound=0.9, measured=0.7, ok=False, where="12288 tokens, all depths"),
            Gate(name="short-regression", bound=0.1, measured=0.0814, ok=True, where="8192 tokens"),
            Gate(name="kl", bound=0.1, measured=None, ok=True, where=""),
        ),
        spectrum=(spectrum(YARN),),
        memory=(
            MemoryAt(length=8192, kv_cache_bytes=1 << 30),
            MemoryAt(length=32768, kv_cache_bytes=4 << 30),
            MemoryAt(length=131072, kv_cache_bytes=16 << 30),
        ),
        cost=COST,
        notes=("dynamic was measured with its static equal",),
    )
    return msgspec.structs.replace(made, **changes)


def candidate(
    method: str, scaling: Scaling | None, short_kl: float, passkeys: Sequence[int], **changes: Any
) -> Candidate:
    made = Candidate(
        method=method,
        factor=1.0 if method == "none" else 2.0,
        target=TRAINED if method == "none" else TARGET,
        refused=None,
        curves=(curve(CURVES[method][:4], length=8192), curve(CURVES[method])),
        rates=(
            *rates("passkey", 7680, (4, 4, 4, 4, 4)),
            *rates("passkey", 12288, passkeys),
            spread_rate("needles", 12288, sum(passkeys), 40),
        ),
        short=() if method == "none" else (short(8192, CURVES[method][3] * 0.8, 25.8, short_kl),),
        spectrum=(spectrum(scaling),),
        cost=COST,
    )
    return msgspec.structs.replace(made, **changes)


def comparison(**changes: Any) -> Comparison:
    """The untouched model, four methods at twice the length, and one that was refused."""
    ntk = Rebase(rope_theta=204_600.0)
    made = Comparison(
        version="0.5.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        trained_context=TRAINED,
        engine=engine(weight_bytes=269_030_016),
        settings=settings(),
        texts=TEXTS,
        candidates=(
            candidate("none", None, 0.0, (0, 0, 0, 0, 0)),
            candidate("yarn", YARN, 0.043, (3, 2, 1, 4, 4)),
            candidate("ntk", ntk, 0.031, (4, 3, 3, 4, 4)),
            candidate("linear", Linear(factor=2.0), 0.61, (0, 1, 0, 0, 1)),
            candidate("dynamic", ntk, 0.0, (4, 3, 3, 4, 4)),
            Candidate(
                method="longrope",
                factor=2.0,
                target=TARGET,
                refused="longrope needs its factors: --set short_factor=... long_factor=...",
                curves=(),
                rates=(),
                short=(),
                spectrum=(),
                cost=None,
            ),
        ),
        best=(
            Best(
                length=TARGET,
                method="yarn",
                factor=2.0,
                reason="the lowest perplexity past 8192 tokens (29.8), 4 % below ntk, and the passkey comes back",
            ),
        ),
        cost=COST,
        notes=(),
    )
    return msgspec.structs.replace(made, **changes)
