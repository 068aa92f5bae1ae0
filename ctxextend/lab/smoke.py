"""``smoke``: does the checkpoint really run at the new length, and does it still make sense there?

Minutes, not a benchmark. Every check runs the model itself, at the length that is asked for, through the
KV cache, as its users will.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from ctxextend.errors import CtxextendError, GateError, UsageError
from ctxextend.inspection import Inspection
from ctxextend.lab import retrieval
from ctxextend.lab.engines.base import Engine
from ctxextend.lab.names import SMOKE_PASSKEY, SMOKE_PERPLEXITY_RATIO
from ctxextend.lab.positions import perplexity_of
from ctxextend.lab.prompts import NO_ROOM
from ctxextend.lab.results import Figure, RetrievalCell, Settings
from ctxextend.lab.texts import Document
from ctxextend.lengths import show_bytes, show_tokens
from ctxextend.rope import RopeTable
from ctxextend.version import VERSION

if TYPE_CHECKING:
    from ctxextend.lab.engines.transformers import TransformersEngine

SCHEMA: Final = "ctxextend.smoke/1"

#: The longest passage that is read at every offset, and how many of them.
_PASSAGE: Final = 256
_PASSAGES: Final = 2

#: Tokens that are decoded one at a time at the trained length and at the end.
_STEPS: Final = 16

#: A plain forward reads no more than this: it takes time and memory that the chunks are there to save.
WHOLE: Final = 16384

#: Depths of the pass keys, deepest first: what stands before one is read once.
_DEPTHS: Final = (0.9, 0.5, 0.1)

#: Within its trained length a model is asked at no more than this many tokens.
_WITHIN: Final = 2048

#: A model that answers fewer of the keys within its trained length isn't asked beyond it.
_ANSWERS: Final = 2 / 3

#: What may differ between a token read alone and the same one read with all before it: mean nats of divergence.
_CACHE_KL: Final[Mapping[str, float]] = {"float32": 1e-4}
_CACHE_KL_HALF: Final = 2e-2

#: From here on an offset is called out, though the mean decides.
_WEAK: Final = 2.0


class Limits(Struct, frozen=True, kw_only=True):
    """The gates of a smoke test, which asks whether a model works, not how well.

    ``perplexity_ratio``: the geometric mean, over the offsets past the trained length, of the passages'
    perplexity over that within it. ``passkey``: the share of keys that come back at the length.
    """

    perplexity_ratio: float = SMOKE_PERPLEXITY_RATIO
    passkey: float = SMOKE_PASSKEY


class SmokeCheck(Struct, frozen=True, kw_only=True):
    """One check. A ``skipped`` one is ok, and its detail says why nothing was asked."""

    name: str
    ok: bool
    detail: str
    skipped: bool = False


class Passage(Struct, frozen=True, kw_only=True):
    """The perplexity of the same passages when they begin at a position, and how that compares with within."""

    where: str
    offset: int
    perplexity: Figure
    ratio: float | None


class SmokeReport(Struct, frozen=True, kw_only=True):
    """The whole answer. Lengths count tokens; ``needed_bytes`` is what was estimated before anything was loaded."""

    schema: str = SCHEMA
    version: str
    ok: bool
    source: str
    length: int
    trained_context: int
    engine: str
    engine_version: str
    device: str
    dtype: str
    checks: tuple[SmokeCheck, ...]
    passages: tuple[Passage, ...]
    needed_bytes: int | None
    kv_cache_bytes: int | None
    weight_bytes: int | None
    peak_memory_bytes: int | None
    tokens: int
    tokens_per_second: float
    seconds: float


def failure_of(report: SmokeReport) -> GateError | None:
    """What a report that isn't ok ends with; None for one that is."""
    if report.ok:
        return None
    failed = [check for check in report.checks if not check.ok]
    return GateError(
        f"{len(failed)} of {len(report.checks)} checks failed: {', '.join(check.name for check in failed)}",
        code="smoke-failed",
        file=report.source,
        found="; ".join(f"{check.name}: {check.detail}" for check in failed),
    )


#: Called with what is done next.
Say = Callable[[str], None]


class Job(Struct, frozen=True, kw_only=True):
    """What a smoke test looks at. ``tables``: what the rope should be at ``length``; None without a rope.

    ``dynamic``: the rope follows the length, so that what was read in pieces isn't what is read at once. ``whole``: the
    tokens that one plain forward may read. ``most``: the longest text that there are positions for, if any is, and
    ``more`` what makes more of them.
    """

    inspection: Inspection
    length: int
    tables: Mapping[str, RopeTable] | None
    dynamic: bool
    limits: Limits
    passkey: bool
    needed_bytes: int | None
    whole: int = WHOLE
    most: int | None = None
    more: str = ""


def smoke(engine: Engine, job: Job, *, documents: Sequence[Document], say: Say) -> SmokeReport:
    """Run every check. Raises :class:`UsageError` for texts that can't fill the length."""
    filler, passages = _texts(engine, documents, job)
    run = _Run(engine=engine, job=job, filler=filler, passages=passages, say=say)
    checks = tuple(run.checks())
    usage, facts = engine.usage, engine.facts
    cache = job.inspection.kv_cache
    bits = 32 if facts.dtype == "float32" else 16
    return SmokeReport(
        version=VERSION,
        ok=all(check.ok for check in checks),
        source=job.inspection.source,
        length=job.length,
        trained_context=job.inspection.trained_context,
        engine=facts.engine,
        engine_version=facts.version,
        device=facts.device,
        dtype=facts.dtype,
        checks=checks,
        passages=tuple(run.read),
        needed_bytes=job.needed_bytes,
        kv_cache_bytes=None if cache is None else cache.size_bytes(job.length, bits=bits),
        weight_bytes=facts.weight_bytes,
        peak_memory_bytes=usage.peak_memory_bytes,
        tokens=usage.tokens,
        tokens_per_second=usage.tokens / usage.seconds if usage.seconds > 0 else 0.0,
        seconds=usage.seconds,
    )


def _texts(engine: Engine, documents: Sequence[Document], job: Job) -> tuple[list[int], list[list[int]]]:
    """What fills the context, as many tokens as it holds, and the passages, which don't stand in it.

    A text that is too short is repeated: only the passages are judged, which it doesn't hold.
    """
    trained = job.inspection.trained_context or job.length
    size = min(_PASSAGE, max(trained // 2, 1), max(job.length // 4, 1))
    if size < 8:
        raise UsageError(
            "too short a length to test",
            code="bad-number",
            key="--length",
            expected="at least 32 tokens",
            found=str(job.length),
        )
    first, rest = documents[0], documents[1:]
    tokens = engine.encode(first.text)
    wanted = size * _PASSAGES
    other = engine.encode(rest[0].text) if rest else tokens[-wanted:]
    if not rest:
        tokens = tokens[:-wanted]
    if len(other) < wanted or len(tokens) < size:
        raise UsageError(
            "the text is too short",
            code="short-text",
            key="--text",
            expected=f"{2 * wanted} tokens",
            found=f"{len(tokens) + len(other)}",
            hint="leave --text away for the novel that comes with ctxextend",
        )
    filler = (tokens * (job.length // len(tokens) + 1))[: job.length]
    # From the middle: beginnings of books are title pages.
    start = (len(other) - wanted) // 2
    return filler, [other[start + i * size : start + (i + 1) * size] for i in range(_PASSAGES)]


class _Run:
    """The checks of one smoke test, in order."""

    def __init__(self, *, engine: Engine, job: Job, filler: list[int], passages: list[list[int]], say: Say) -> None:
        self.engine = engine
        self.job = job
        self.say = say
        self.passages = passages
        self.read: list[Passage] = []
        # A model that doesn't say what it was trained for is held to its beginning.
        self.trained = job.inspection.trained_context or job.length
        opening = list(engine.facts.opening)
        self.context = (opening + filler)[: job.length]
        self.opening = len(opening)

    def checks(self) -> Iterator[SmokeCheck]:
        yield self.positions()
        if self.job.most is not None and self.job.length > self.job.most:
            # Past a table transformers raises, and llama.cpp ends the process.
            return
        yield self.rope()
        for check in (self.sense, self.decoding, self.cached, self.passkey):
            try:
                yield check()
            except CtxextendError:
                raise
            except (RuntimeError, IndexError, ValueError) as error:
                # What a model raises when its positions run out, or its memory does.
                said = (str(error).splitlines() or ["it says no more"])[0]
                yield SmokeCheck(name=check.__name__, ok=False, detail=f"{type(error).__name__}: {said}")
                return

    def positions(self) -> SmokeCheck:
        """Whether the length is one that the checkpoint itself states, so that runtimes will serve it."""
        stated, most = self.job.inspection.current_context, self.job.most
        if most is not None and self.job.length > most:
            return SmokeCheck(
                name="positions",
                ok=False,
                detail=f"the model has positions for {most} tokens and fails past them, so that nothing was run: "
                f"{self.job.length} were asked for; {self.job.more}",
            )
        ok = self.job.length <= stated
        said = f"the checkpoint states {stated} tokens"
        return SmokeCheck(
            name="positions",
            ok=ok,
            detail=said if ok else f"{said}, and runtimes stop there: {self.job.length} were asked for",
        )

    def rope(self) -> SmokeCheck:
        """Whether the rope in the loaded model is the one that is meant, in float32."""
        if self.job.tables is None:
            return _skipped("rope", "this model has no rope")
        if self.engine.facts.engine != "transformers":
            return _skipped("rope", "only transformers shows what is inside; ctxextend check tells what others read")
        from ctxextend.lab.inside import compare_inside, ropes_inside

        self.say("comparing the rope inside the model")
        found = ropes_inside(self._transformers().model, length=self.job.length)
        answers = compare_inside(found, self.job.tables)
        wrong = [answer for answer in answers if not answer.ok]
        detail = "; ".join(answer.detail for answer in wrong or answers)
        return SmokeCheck(name="rope", ok=not wrong, detail=detail)

    def sense(self) -> SmokeCheck:
        """The passages at growing offsets, in one reading to the last position."""
        if "losses" not in self.engine.facts.can:
            return self._prefill()
        for where, offset in self.offsets():
            self.say(f"reading to {offset}")
            nats = [loss for passage in self.passages for loss in self._losses_at(offset, passage)]
            perplexity = perplexity_of(sum(nats), len(nats))
            self.read.append(Passage(where=where, offset=offset, perplexity=perplexity, ratio=None))
        if not all(math.isfinite(passage.perplexity) for passage in self.read):
            return SmokeCheck(name="sense", ok=False, detail=f"a loss isn't finite: {_listed(self.read)}")
        within = [p.perplexity for p in self.read if p.where in ("start", "before")]
        base = max(within)
        self.read = [msgspec.structs.replace(p, ratio=p.perplexity / base) for p in self.read]
        past = [p.perplexity / base for p in self.read if p.offset >= self.trained]
        if not past:
            return SmokeCheck(name="sense", ok=True, detail=f"within the trained length: {_listed(self.read)}")
        ratio = math.exp(sum(map(math.log, past)) / len(past))
        limit = self.job.limits.perplexity_ratio
        weak = [p for p in self.read if p.offset >= self.trained and p.perplexity / base > _WEAK]
        note = f"; weak at {', '.join(f'{p.offset} ({p.perplexity / base:.1f} times)' for p in weak)}" if weak else ""
        return SmokeCheck(
            name="sense",
            ok=ratio <= limit,
            detail=f"the same passages past {show_tokens(self.trained)}: {ratio:.2f} times the perplexity within "
            f"(at most {limit:g}){note}",
        )

    def offsets(self) -> tuple[tuple[str, int], ...]:
        """Where the passages begin, in order, each place once."""
        size, length, trained = len(self.passages[0]), self.job.length, min(self.trained, self.job.length)
        places = {
            "start": self.opening,
            "before": trained - size,
            "after": trained,
            "half": length // 2,
            "end": length - size,
        }
        seen: dict[int, str] = {}
        for where, offset in places.items():
            if self.opening <= offset <= length - size:
                seen.setdefault(offset, where)
        return tuple((where, offset) for offset, where in sorted(seen.items()))

    def decoding(self) -> SmokeCheck:
        """Tokens one at a time across the trained length and to the last position: every loss finite."""
        if "losses" not in self.engine.facts.can:
            return _skipped("decoding", "this engine gives no log-probabilities of a prompt")
        if self.job.dynamic:
            return self._answering()
        told = []
        for end in self._ends():
            self.say(f"decoding to {end}")
            stepped = self._stepped(end)
            if not all(map(math.isfinite, stepped)):
                return SmokeCheck(name="decoding", ok=False, detail=f"a loss before {end} isn't finite")
            told.append(f"{end - _STEPS} to {end}: {sum(stepped) / len(stepped):.3f} nats")
        return SmokeCheck(name="decoding", ok=True, detail=f"one token at a time, {', '.join(told)}")

    def _answering(self) -> SmokeCheck:
        """A rope that follows the length would be another at every token, and all be read anew: it answers instead."""
        for end in self._ends():
            self.say(f"answering at {end}")
            self.engine.generate(self.context[: end - _STEPS], _STEPS)
        said = " and ".join(str(end - _STEPS) for end in self._ends())
        return SmokeCheck(name="decoding", ok=True, detail=f"it goes on from {said} tokens, with one rope an answer")

    def cached(self) -> SmokeCheck:
        """One plain forward against the same tokens through the cache."""
        if self.engine.facts.engine != "transformers":
            return _skipped("cached", "only transformers can read without its cache")
        if self.job.dynamic:
            return _skipped("cached", "this rope follows the length: what is read in pieces differs by design")
        end = min(self._ends()[0], self.job.whole)
        if end < 2 * _STEPS:
            return _skipped("cached", "the memory has no room for a plain forward beside the rest")
        count = min(_STEPS, end - 1)
        engine = self._transformers()
        self.say(f"one plain forward over {end} tokens")
        import numpy as np

        pieces = list(engine.log_probs(self.context[: end - count + 1], first=end - count))
        for last in range(end - count + 2, end + 1):
            pieces += engine.log_probs(self.context[:last], first=last - 1)
        one = np.concatenate(pieces).astype(np.float64)
        # The last token's own prediction is of what follows it.
        two = engine.forward_whole(self.context[: end - 1], count).astype(np.float64)
        # Rounding can leave less than nothing of what is nothing.
        kl = abs(float((np.exp(two) * (two - one)).sum(-1).mean()))
        same = int((one.argmax(-1) == two.argmax(-1)).sum())
        bound = _CACHE_KL.get(engine.facts.dtype, _CACHE_KL_HALF)
        return SmokeCheck(
            name="cached",
            ok=kl <= bound,
            detail=f"{kl:.1e} nats from a plain forward at {end - count} to {end} (at most {bound:g}), "
            f"{same} of {count} the same token",
        )

    def passkey(self) -> SmokeCheck:
        """Pass keys at the length, asked of a model that answers them within its trained length."""
        if not self.job.passkey:
            return _skipped("passkey", "not asked for")
        short = min(_WITHIN, self.trained, self.job.length)
        within = self._asked(short)
        if within is None:
            return _skipped("passkey", f"{short} tokens, within its trained length, have no room for the question")
        if sum(within) / len(within) < _ANSWERS:
            return _skipped(
                "passkey", f"it answers {sum(within)} of {len(within)} within its trained length (at {short} tokens)"
            )
        found = within if short == self.job.length else self._asked(self.job.length)
        if found is None:
            return _skipped("passkey", f"{self.job.length} tokens have no room for the question")
        rate, limit = sum(found) / len(found), self.job.limits.passkey
        where = ", ".join(f"{depth:.0%} {'yes' if hit else 'no'}" for depth, hit in zip(_DEPTHS, found, strict=True))
        return SmokeCheck(
            name="passkey",
            ok=rate >= limit,
            detail=f"{sum(found)} of {len(found)} keys came back at {show_tokens(self.job.length)} ({where}), "
            f"{sum(within)} of {len(within)} at {show_tokens(short)}; at least {limit:.0%} wanted",
        )

    def _prefill(self) -> SmokeCheck:
        """What can be seen of an engine that tells no losses: that it reads to the end and goes on."""
        self.say(f"reading to {self.job.length}")
        answer = self.engine.generate(self.context[: self.job.length - _STEPS], _STEPS)
        return SmokeCheck(
            name="sense",
            ok=True,
            detail=f"it read {self.job.length - _STEPS} tokens and answered {len(answer)}; it gives no "
            "log-probabilities of a prompt, so that the passages couldn't be judged",
        )

    def _losses_at(self, offset: int, passage: Sequence[int]) -> list[float]:
        """The losses of a passage that begins at a position; of its first token only what follows it tells."""
        tokens = [*self.context[:offset], *passage]
        return self.engine.losses(tokens, first=offset + 1)

    def _stepped(self, end: int) -> list[float]:
        """The losses of tokens that are each read alone.

        In transformers the last one is at position ``end`` - 1: what it predicts is past the length, so that any token
        will do. Other engines take no more tokens than the length.
        """
        extra = self.engine.facts.engine == "transformers"
        text = [*self.context[:end], self.context[0]] if extra else self.context[:end]
        losses: list[float] = []
        for last in range(len(text) - _STEPS + 1, len(text) + 1):
            losses += self.engine.losses(text[:last], first=last - 1)
        return losses

    def _ends(self) -> tuple[int, ...]:
        """Where decoding ends: past the trained length, where that lies within, and at the last position."""
        across = self.trained + _STEPS // 2
        return (across, self.job.length) if across < self.job.length else (self.job.length,)

    def _asked(self, length: int) -> list[bool] | None:
        """Whether the key at each depth came back; None where ``length`` has no room for it."""
        self.say(f"pass keys at {length}")
        settings = Settings(tasks=("passkey",), lengths=(length,), depths=_DEPTHS, samples=1)
        cells = [RetrievalCell(kind="passkey", length=length, depth=depth, sample=0) for depth in _DEPTHS]
        try:
            return [retrieval.measure_retrieval(self.engine, cell, settings, {}).found == 1 for cell in cells]
        except UsageError as error:
            if error.code != NO_ROOM:
                raise
            return None

    def _transformers(self) -> TransformersEngine:
        from ctxextend.lab.engines.transformers import TransformersEngine

        assert isinstance(self.engine, TransformersEngine)
        return self.engine


def memory_line(report: SmokeReport) -> str:
    """Peak memory against what was expected, as a page shows it."""
    parts = [f"peak {show_bytes(report.peak_memory_bytes)}" if report.peak_memory_bytes is not None else "peak unknown"]
    parts += [
        f"{name} {show_bytes(size)}"
        for name, size in (("weights", report.weight_bytes), ("KV cache", report.kv_cache_bytes))
        if size is not None
    ]
    return ", ".join(parts)


def _skipped(name: str, why: str) -> SmokeCheck:
    return SmokeCheck(name=name, ok=True, detail=why, skipped=True)


def _listed(passages: Sequence[Passage]) -> str:
    return ", ".join(f"{p.perplexity:.1f} at {p.offset}" for p in passages)
