"""The steps of a variant: what each depends on, whether an earlier run's result still stands, and doing it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import msgspec
from msgspec import Struct

from ctxextend.apply import encode
from ctxextend.card.evidence import EVAL, SMOKE
from ctxextend.changes import Export, size_bytes
from ctxextend.errors import CtxextendError, DisagreementError, RefusedError
from ctxextend.hub import Pushed, push_direct, push_path
from ctxextend.hub.parcels import CARD, card_of
from ctxextend.lab.evaluation import fingerprint
from ctxextend.lab.gates import failure_of as gate_failure
from ctxextend.lab.gates import with_defaults
from ctxextend.lab.ledger import NAME as CELLS
from ctxextend.lab.names import ORIGINAL
from ctxextend.lab.report import write_report
from ctxextend.lab.report_folder import CHARTS, PAGE, holds_report
from ctxextend.lab.results import Evaluation
from ctxextend.lab.smoke import failure_of as smoke_failure
from ctxextend.lab.verbs import Laid, Run, eval_source, smoke_source
from ctxextend.lengths import show_bytes, show_tokens
from ctxextend.pipeline import check_source, checkpoints_in, open_source, run_plan
from ctxextend.plan import Plan
from ctxextend.release import asked
from ctxextend.release.audience import Audience
from ctxextend.release.prepared import Output, Prepared, digest, made_it, stamp_of, stats_of, times_of
from ctxextend.release.results import StepName, StepResult
from ctxextend.release.state import sha256_of_file, write_document
from ctxextend.runtimes import gguf_readers_of, readers_of

#: What ``check`` found, in an output's evidence.
CHECK: Final = "check.json"


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of a step. ``files`` were written; a gate that was missed is an ``error``, and they stay."""

    summary: str
    files: tuple[Path, ...] = ()
    stamp: str = ""
    figures: Mapping[str, float | None] = {}
    error: CtxextendError | None = None


class Step(ABC):
    """One step on one output."""

    name: ClassVar[StepName]

    def __init__(self, prepared: Prepared, output: Output) -> None:
        """Of one output of a variant that was made ready."""
        self.prepared = prepared
        self.output = output

    @abstractmethod
    def inputs(self) -> str:
        """A digest of everything that decides the result. To be asked when what comes before it is there."""

    @abstractmethod
    def outlook(self) -> str:
        """What will be done, in a line."""

    @abstractmethod
    def do(self, how: How) -> Outcome:
        """Do it. Raises :class:`CtxextendError` where it can't be done."""

    def stands(self, known: StepResult) -> bool:
        """Whether what an earlier run left, asked the same, is as it was written."""
        return all(sha256_of_file(self.prepared.folder / name) == sha256 for name, sha256 in known.files.items())

    def evidence(self, file: Path) -> Path:
        """Where what is found out of one checkpoint goes: of several in an output each has a folder."""
        return self.output.evidence if file == self.output.path else self.output.evidence / file.stem

    def family(self, file: Path) -> str | None:
        """The family as the recipe names it; a GGUF file says itself."""
        return None if file.suffix == ".gguf" else self.prepared.family


class How(Struct, frozen=True, kw_only=True):
    """How a step is done. ``made``: the outputs that are ours; ``cards``: the cards, as they were written."""

    audience: Audience
    made: tuple[str, ...]
    cards: Mapping[str, str]
    force: bool


class ConvertStep(Step):
    """The conversion itself, as ``ctxextend convert``."""

    name = "convert"

    def inputs(self) -> str:
        """The source, the plan, and how it is written."""
        return self.output.inputs

    def outlook(self) -> str:
        """The arithmetic, and the size of what is written."""
        plan = self.output.plan
        types = next((action.outtypes for action in plan.actions if isinstance(action, Export)), ())
        return f"{_conversion(plan)}; {' '.join((plan.to, *types))}"

    def stands(self, known: StepResult) -> bool:
        """Nobody has touched what was written."""
        return made_it(known, self.output)

    def do(self, how: How) -> Outcome:
        """Write it, in the place of what an earlier run of this recipe wrote."""
        output = self.output
        options = msgspec.structs.replace(output.options, force=output.name in how.made)
        with how.audience.copying(size_bytes(output.plan.actions)) as progress:
            path, manifest = run_plan(
                output.plan, self.prepared.opened, output.path, options=options, progress=progress
            )
        return Outcome(summary=_conversion(manifest.plan), stamp=stamp_of(path))


def _conversion(plan: Plan) -> str:
    if plan.method in ("none", "repair"):
        return plan.method
    return f"{plan.method}: {plan.arithmetic}, {plan.trained_context} -> {plan.target_context} tokens"


class CheckStep(Step):
    """What every runtime makes of it, as ``ctxextend check``."""

    name = "check"

    def inputs(self) -> str:
        """The output, and what is asked."""
        return digest(self.name, self.output.inputs, self.output.check, self.output.meant)

    def outlook(self) -> str:
        """Who must agree."""
        wish = self.output.check
        assert wish is not None
        return f"by {', '.join(wish.runtimes or self.output.plan.runtimes)}"

    def do(self, how: How) -> Outcome:  # noqa: ARG002 - as every step
        """Check each checkpoint of the output."""
        wish = self.output.check
        assert wish is not None
        wrong: list[str] = []
        files: list[Path] = []
        names: list[str] = []
        for file in checkpoints_in(self.output.path):
            found = check_source(
                open_source(str(file)),
                runtimes=_readers(wish.runtimes, gguf=file.suffix == ".gguf"),
                against=self.output.meant,
                family=self.family(file),
            )
            files.append(self.evidence(file) / CHECK)
            write_document(files[-1], encode(found))
            names += [runtime.runtime for runtime in found.runtimes if runtime.required]
            wrong += [finding.message for finding in found.findings if finding.severity == "error"]
        if not wrong:
            return Outcome(summary=f"read as planned by {', '.join(dict.fromkeys(names))}", files=tuple(files))
        error = DisagreementError(
            "; ".join(dict.fromkeys(wrong)),
            code="check-failed",
            file=str(self.output.path),
            hint=f"ctxextend check {self.output.path} tells more",
        )
        return Outcome(summary=error.message, files=tuple(files), error=error)


def _readers(names: tuple[str, ...] | None, *, gguf: bool) -> tuple[str, ...] | None:
    """The runtimes that must agree, where one of them reads this format; those of the plan otherwise."""
    find = gguf_readers_of if gguf else readers_of
    return names if names is not None and find(names) else None


class SmokeStep(Step):
    """Whether it works at its length, as ``ctxextend smoke``."""

    name = "smoke"

    @property
    def wish(self) -> asked.SmokeAsked:
        """What is asked."""
        assert self.output.smoke is not None
        return self.output.smoke

    def inputs(self) -> str:
        """The output, what is asked, and what runs it."""
        return digest(self.name, self.output.inputs, _asked(self.wish))

    def outlook(self) -> str:
        """How far it is run, by what."""
        length = self.wish.length or self.output.plan.target_context
        return f"at {show_tokens(length)} tokens, {_engine(self.wish)}"

    def do(self, how: How) -> Outcome:
        """Run each checkpoint of the output."""
        files: list[Path] = []
        said: list[str] = []
        error: CtxextendError | None = None
        for file in checkpoints_in(self.output.path):
            report = smoke_source(
                open_source(str(file)),
                length=self.wish.length,
                choice=self.wish.choice,
                texts=self.wish.text,
                limits=self.wish.limits,
                passkey=self.wish.passkey,
                family=self.family(file),
                say=how.audience.say,
            )
            files.append(self.evidence(file) / SMOKE)
            write_document(files[-1], encode(report))
            passed = sum(check.ok for check in report.checks)
            said.append(
                f"{passed} of {len(report.checks)} checks pass at {show_tokens(report.length)} "
                f"({report.engine}, {report.device}, {report.dtype})"
            )
            error = error or smoke_failure(report)
        summary = "; ".join(dict.fromkeys(said)) if error is None else error.message
        return Outcome(summary=summary, files=tuple(files), error=error)


#: Beside what was measured: a digest of what it was measured of.
_OF: Final = "cells-of.txt"

#: What a report's folder says that holds something else, or something broken: in a folder of ours it is begun anew.
_OTHER_REPORT: Final = frozenset({"other-results", "broken-results", "output-exists"})


class EvalStep(Step):
    """How good it is along its context, as ``ctxextend eval``; what was measured already isn't measured again."""

    name = "eval"

    @property
    def wish(self) -> asked.EvalAsked:
        """What is asked."""
        assert self.output.evaluation is not None
        return self.output.evaluation

    def inputs(self) -> str:
        """The output, what is asked, what it is held against, and what runs it."""
        return digest(self.name, self._of(), _asked(self.wish))

    def _of(self) -> str:
        """What the numbers are of: whatever else is asked, those of anything else are none of these."""
        base = self.output.base
        return digest(self.output.inputs, None if base is None else (fingerprint(base), times_of(base)))

    def outlook(self) -> str:
        """What is measured how far, and what it is held to."""
        settings = self.wish.settings
        lengths = ", ".join(show_tokens(length) for length in settings.lengths) or "the usual lengths"
        bounds = [f"{name} {bound:g}" for name, bound in self.wish.bounds.items()]
        held = f"; held to {', '.join(bounds) or 'the default bounds'}" if bounds or self.wish.gate else "; no bound"
        return f"{', '.join(settings.tasks)} at {lengths}, {_engine(self.wish)}{held}"

    def do(self, how: How) -> Outcome:
        """Measure each checkpoint of the output."""
        files: list[Path] = []
        figures: dict[str, float | None] = {}
        error: CtxextendError | None = None
        for file in checkpoints_in(self.output.path):
            folder = self.evidence(file)
            self._make_ready(folder)
            try:
                found = self._measured(file, folder, how.audience, anew=how.force)
            except CtxextendError as other:
                if other.code not in _OTHER_REPORT:
                    raise
                found = self._measured(file, folder, how.audience, anew=True)
            files += write_report(folder, found)
            prefix = "" if file == self.output.path else f"{file.stem}: "
            figures |= {f"{prefix}{name}": value for name, value in figures_of(found).items()}
            error = error or gate_failure(found, gate=self.wish.gate)
        said = ", ".join(f"{name} {'none' if value is None else f'{value:.4g}'}" for name, value in figures.items())
        summary = said if error is None else f"{error.message}; {said}"
        return Outcome(summary=summary, files=tuple(files), figures=figures, error=error)

    def _make_ready(self, folder: Path) -> None:
        """Take away what was measured of something else, which samples of its weights may not tell from this.

        And pages and charts that have lost their numbers: a report would be refused for them.
        """
        if not holds_report(folder):
            for name in (EVAL, PAGE, *(f"{chart}.png" for chart in CHARTS)):
                (folder / name).unlink(missing_ok=True)
        of = self._of().encode()
        if not (folder / _OF).is_file() or (folder / _OF).read_bytes() != of:
            (folder / CELLS).unlink(missing_ok=True)
            write_document(folder / _OF, of)

    def _measured(self, file: Path, folder: Path, audience: Audience, *, anew: bool) -> Evaluation:
        wish = self.wish
        with audience.measuring() as (told, progress):

            def before(laid: Laid) -> bool:
                told(laid)
                return True

            found = eval_source(
                open_source(str(file)),
                wish.settings,
                choice=wish.choice,
                against=self.output.base,
                original=wish.against == ORIGINAL,
                texts=wish.text,
                bounds=lambda measured: with_defaults(measured, wish.bounds) if wish.gate else wish.bounds,
                family=self.family(file),
                how=Run(folder=folder, anew=anew, say=audience.say, before=before, progress=progress),
            )
        assert found is not None
        return found


def figures_of(found: Evaluation) -> dict[str, float | None]:
    """The numbers that tell one result from another, by name and length in tokens."""
    figures: dict[str, float | None] = {}
    for curve in found.curves:
        figures[f"perplexity@{curve.length}"] = curve.whole
        if curve.ratio is not None:
            figures[f"perplexity-ratio@{curve.length}"] = curve.ratio
    figures |= {f"sliding@{each.length}": each.perplexity for each in found.sliding}
    figures |= {f"{rate.kind}@{rate.length}": rate.rate for rate in found.rates if rate.depth is None}
    for short in found.short:
        figures[f"short-regression@{short.length}"] = short.regression
        figures[f"kl@{short.length}"] = short.kl
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}


class CardStep(Step):
    """The model card, to be read before it is published, and to be edited where it says too little."""

    name = "card"

    def inputs(self) -> str:
        """The output, what is known of how good it is, and where it goes."""
        return digest(self.name, self.output.inputs, self.output.part.repo_id, _evidence(self.output))

    def outlook(self) -> str:
        """Where it goes."""
        return str(self._path)

    @property
    def _path(self) -> Path:
        return self.output.evidence / CARD

    def stands(self, known: StepResult) -> bool:  # noqa: ARG002 - as every step
        """It is there: what somebody has written into it since is meant."""
        return self._path.is_file()

    def do(self, how: How) -> Outcome:
        """Write it beside the evidence. Raises :class:`RefusedError` where that would lose what somebody wrote."""
        folder, measured = report_of(self.output)
        text = card_of(self.output.path, repo_id=self.output.part.repo_id, report=folder, measured=measured)
        written = how.cards.get(self._path.relative_to(self.prepared.folder).as_posix())
        new, there = hashlib.sha256(text).hexdigest(), sha256_of_file(self._path)
        if there in ("", new, written):
            write_document(self._path, text)
            return Outcome(summary=f"{show_bytes(len(text))}: {self._path}", files=(self._path,))
        if new == written:
            return Outcome(summary=f"as it was edited: {self._path}")
        raise RefusedError(
            "somebody has written into the card, and what it tells of has changed",
            code="card-changed",
            file=str(self._path),
            hint="move it away: a new one is written, into which your part can go again",
        )


class PushStep(Step):
    """Publishing, as ``ctxextend push``."""

    name = "push"

    @property
    def _card(self) -> Path | None:
        """The card that was written before, where the recipe asks for one."""
        return self.output.evidence / CARD if self.output.card else None

    def inputs(self) -> str:
        """What goes there, and how."""
        assert self.output.push is not None
        how = msgspec.structs.replace(self.output.push, token=None, cache_dir=None, quiet=False)
        card = "" if self._card is None else sha256_of_file(self._card)
        where = os.environ.get("HF_ENDPOINT")
        return digest(self.name, self.output.inputs, how, card, _evidence(self.output), where)

    def outlook(self) -> str:
        """Where to."""
        assert self.output.push is not None
        return f"{self.output.push.repo_id}, {'private' if self.output.push.private else 'public'} if it is new"

    def do(self, how: How) -> Outcome:
        """Publish it in one commit."""
        output = self.output
        assert output.push is not None
        folder, measured = report_of(output)
        options = msgspec.structs.replace(output.push, report=folder, measured=measured, card_file=self._card)
        if output.part.local:
            pushed = push_path(output.path, options, say=how.audience.say)
        else:
            opened = self.prepared.opened
            _manifest, pushed = push_direct(output.plan, opened.source, opened.contents, options, say=how.audience.say)
        path = output.evidence / "push.json"
        write_document(path, encode(pushed))
        return Outcome(summary=_published(pushed), files=(path,))


def _published(pushed: Pushed) -> str:
    return f"{pushed.url}, {show_bytes(pushed.sent_bytes)} sent" if pushed.changed else f"{pushed.url}, nothing changed"


def report_of(output: Output) -> tuple[Path | None, tuple[str, ...]]:
    """The folder of an output's evidence that its card shows (of several checkpoints the first's), and what of it.

    Only what this recipe measures counts: something older may lie beside it.
    """
    measured = (
        *((EVAL,) if output.evaluation is not None else ()),
        *((SMOKE,) if output.smoke is not None else ()),
    )
    if not measured:
        return None, ()
    files = checkpoints_in(output.path)
    return output.evidence if files == [output.path] else output.evidence / files[0].stem, measured


def _evidence(output: Output) -> dict[str, str]:
    """What this recipe has measured of an output, by checksum."""
    folder, measured = report_of(output) if output.path.exists() else (None, ())
    found = [] if folder is None else sorted(output.evidence.rglob("*.json"))
    return {
        path.relative_to(output.evidence).as_posix(): sha256_of_file(path) for path in found if path.name in measured
    }


def _asked(wish: asked.SmokeAsked | asked.EvalAsked) -> object:
    """What is asked, of what texts, and the versions of what runs the model; another key of a server is no matter."""
    choice = msgspec.structs.replace(wish.choice, api_key=None)
    files = [*wish.text, *((str(choice.tokenizer),) if choice.tokenizer is not None else ())]
    return msgspec.structs.replace(wish, choice=choice), _texts(files), _versions()


def _engine(wish: asked.SmokeAsked | asked.EvalAsked) -> str:
    return f"device {wish.choice.device}" if wish.choice.endpoint is None else "the server"


def _versions() -> dict[str, str]:
    """Of the packages that decide numbers, those that are installed."""
    found = {}
    for name in ("torch", "transformers", "xllamacpp", "vllm"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _texts(given: Iterable[str]) -> list[tuple[str, int, int]]:
    """What tells the files of texts from what they were before; built-in ones don't change."""
    tops = (Path(name).expanduser() for name in given)
    return stats_of(path for top in tops for path in (sorted(top.rglob("*")) if top.is_dir() else [top]))


#: The order of the work: what costs little comes first, and nothing is published before every gate was passed.
_ORDER: Final[tuple[type[Step], ...]] = (ConvertStep, CheckStep, SmokeStep, EvalStep, CardStep, PushStep)


def steps_of(prepared: Prepared) -> list[Step]:
    """Every step of a variant, in the order in which they are done."""
    return [kind(prepared, output) for kind in _ORDER for output in prepared.outputs if _wanted(kind.name, output)]


def _wanted(name: StepName, output: Output) -> bool:
    match name:
        case "convert":
            return output.part.local
        case "check":
            return output.check is not None
        case "smoke":
            return output.smoke is not None
        case "eval":
            return output.evaluation is not None
        case "card":
            return output.card
        case "push":
            return output.push is not None
