"""The steps of a variant: what each depends on, whether an earlier run's result still stands, and doing it."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

import msgspec
from msgspec import Struct

from ctxextend.apply import Manifest, encode
from ctxextend.card.evidence import EVAL, SMOKE, read_evidence
from ctxextend.changes import size_bytes
from ctxextend.errors import CtxextendError, DisagreementError
from ctxextend.hub import Pushed, push_direct, push_path
from ctxextend.hub.parcels import card_of, read_manifest
from ctxextend.lab.engines.ranks import is_first
from ctxextend.lab.evaluation import fingerprint
from ctxextend.lab.names import ORIGINAL
from ctxextend.lab.results import Evaluation
from ctxextend.lab.verbs import Laid
from ctxextend.lengths import show_bytes, show_tokens
from ctxextend.pipeline import check_source, checkpoints_in, open_source, run_plan
from ctxextend.release import asked
from ctxextend.release.audience import Audience
from ctxextend.release.preparing import Output, Prepared, digest
from ctxextend.release.results import StepName, StepResult
from ctxextend.release.state import write_document
from ctxextend.runtimes import gguf_readers_of, readers_of
from ctxextend.tensors.places import is_unchanged, manifest_of
from ctxextend.version import VERSION

#: What ``check`` found, in an output's evidence.
CHECK: Final = "check.json"
CARD: Final = "README.md"


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of a step. ``files`` were written; a gate that was missed is an ``error``, and they stay."""

    summary: str
    files: tuple[Path, ...] = ()
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
    def do(self, audience: Audience, known: StepResult | None) -> Outcome:
        """Do it; ``known`` is what an earlier run left. Raises :class:`CtxextendError` where it can't be done."""

    def stands(self, known: StepResult, inputs: str) -> bool:
        """Whether what an earlier run left is what this one would make."""
        files = (self.prepared.folder / name for name in known.files)
        return known.finished and known.inputs == inputs and all(file.exists() for file in files)

    def evidence(self, file: Path) -> Path:
        """Where what is found out of one checkpoint goes: of several in an output each has a folder."""
        return self.output.evidence if file == self.output.path else self.output.evidence / file.stem


class ConvertStep(Step):
    """The conversion itself, as ``ctxextend convert``."""

    name = "convert"

    def inputs(self) -> str:
        """The source, the plan, and how it is written."""
        return self.output.inputs

    def stands(self, known: StepResult, inputs: str) -> bool:
        """A run that was killed may have finished it without saying so: then it is there, as this plan makes it."""
        return known.status != "pending" and known.inputs == inputs and self._is_there()

    def _is_there(self) -> bool:
        path = self.output.path
        return is_unchanged(path) and read_manifest(manifest_of(path)).plan == self.output.plan

    def do(self, audience: Audience, known: StepResult | None) -> Outcome:
        """Write it, in the place of what an earlier run of this recipe wrote."""
        output = self.output
        options = msgspec.structs.replace(output.options, force=known is not None)
        with audience.copying(size_bytes(output.plan.actions)) as progress:
            path, manifest = run_plan(
                output.plan, self.prepared.opened, output.path, options=options, progress=progress
            )
        return Outcome(summary=_conversion(manifest), files=(path,))


def _conversion(manifest: Manifest) -> str:
    plan = manifest.plan
    if plan.method in ("none", "repair"):
        return plan.method
    return f"{plan.method}: {plan.arithmetic}, {plan.trained_context} -> {plan.target_context} tokens"


class CheckStep(Step):
    """What every runtime makes of it, as ``ctxextend check``."""

    name = "check"

    def inputs(self) -> str:
        """The output, and what is asked."""
        return digest(self.name, self.output.inputs, self.output.check, self.output.meant)

    def do(self, audience: Audience, known: StepResult | None) -> Outcome:  # noqa: ARG002 - as every step
        """Check each checkpoint of the output."""
        wish = self.output.check
        assert wish is not None
        wrong: list[str] = []
        files: list[Path] = []
        count = 0
        for file in checkpoints_in(self.output.path):
            gguf = file.suffix == ".gguf"
            found = check_source(
                open_source(str(file)),
                runtimes=_readers(wish.runtimes, gguf=gguf),
                against=self.output.meant,
                family=None if gguf else self.prepared.family,
            )
            files.append(self.evidence(file) / CHECK)
            write_document(files[-1], encode(found))
            count = max(count, sum(runtime.required for runtime in found.runtimes))
            wrong += [finding.message for finding in found.findings if finding.severity == "error"]
        if not wrong:
            names = "runtime" if count == 1 else "runtimes"
            return Outcome(summary=f"read as planned by {count} required {names}", files=tuple(files))
        error = DisagreementError(
            f"{'; '.join(dict.fromkeys(wrong))}",
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

    def inputs(self) -> str:
        """The output, and what is asked."""
        wish = self.output.smoke
        assert wish is not None
        return digest(self.name, self.output.inputs, _without_key(wish), _texts(wish.text))

    def do(self, audience: Audience, known: StepResult | None) -> Outcome:  # noqa: ARG002 - as every step
        """Run each checkpoint of the output."""
        from ctxextend.lab.smoke import failure_of
        from ctxextend.lab.verbs import smoke_source

        wish = self.output.smoke
        assert wish is not None
        files: list[Path] = []
        said: list[str] = []
        error: CtxextendError | None = None
        for file in checkpoints_in(self.output.path):
            report = smoke_source(
                open_source(str(file)),
                length=wish.length,
                choice=wish.choice,
                texts=wish.text,
                limits=wish.limits,
                passkey=wish.passkey,
                family=None if file.suffix == ".gguf" else self.prepared.family,
                say=audience.say,
            )
            files.append(self.evidence(file) / SMOKE)
            write_document(files[-1], encode(report))
            passed = sum(check.ok for check in report.checks)
            said.append(
                f"{passed} of {len(report.checks)} checks pass at {show_tokens(report.length)} "
                f"({report.engine}, {report.device}, {report.dtype})"
            )
            error = error or failure_of(report)
        return Outcome(summary="; ".join(dict.fromkeys(said)), files=tuple(files), error=error)


class EvalStep(Step):
    """How good it is along its context, as ``ctxextend eval``; what was measured already isn't measured again."""

    name = "eval"

    def inputs(self) -> str:
        """The output, and what is asked."""
        wish = self.output.evaluation
        assert wish is not None
        base = None if self.output.base is None else fingerprint(self.output.base)
        return digest(self.name, self.output.inputs, _without_key(wish), base, _texts(wish.text))

    def do(self, audience: Audience, known: StepResult | None) -> Outcome:
        """Measure each checkpoint of the output."""
        from ctxextend.lab.gates import failure_of
        from ctxextend.lab.report import write_report

        files: list[Path] = []
        figures: dict[str, float | None] = {}
        error: CtxextendError | None = None
        wish = self.output.evaluation
        assert wish is not None
        # What an earlier run measured of something else isn't gone on from.
        anew = known is not None and known.inputs not in ("", self.inputs())
        for file in checkpoints_in(self.output.path):
            folder = self.evidence(file)
            found = self._measured(file, folder, audience, anew=anew)
            if is_first():
                write_report(folder, found)
            files.append(folder / EVAL)
            prefix = "" if file == self.output.path else f"{file.stem}: "
            figures |= {f"{prefix}{name}": value for name, value in figures_of(found).items()}
            error = error or failure_of(found, gate=wish.gate)
        said = ", ".join(f"{name} {'none' if value is None else f'{value:.4g}'}" for name, value in figures.items())
        return Outcome(summary=said, files=tuple(files), figures=figures, error=error)

    def _measured(self, file: Path, folder: Path, audience: Audience, *, anew: bool) -> Evaluation:
        from ctxextend.lab.gates import with_defaults
        from ctxextend.lab.verbs import Run, eval_source

        wish = self.output.evaluation
        assert wish is not None
        original = wish.against == ORIGINAL
        with audience.measuring() as (told, progress):

            def before(laid: Laid) -> bool:
                told(laid)
                return True

            found = eval_source(
                open_source(str(file)),
                wish.settings,
                choice=wish.choice,
                against=self.output.base,
                original=original,
                texts=wish.text,
                bounds=lambda measured: with_defaults(measured, wish.bounds) if wish.gate else wish.bounds,
                family=None if file.suffix == ".gguf" else self.prepared.family,
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
    finite = msgspec.json.decode(msgspec.json.encode(figures))
    return dict(finite)


class CardStep(Step):
    """The model card, to be read before it is published."""

    name = "card"

    def inputs(self) -> str:
        """The output, what is known of how good it is, and where it goes."""
        return digest(self.name, VERSION, self.output.inputs, self.output.part.repo_id, _evidence(self.output))

    def do(self, audience: Audience, known: StepResult | None) -> Outcome:  # noqa: ARG002 - as every step
        """Write it beside the evidence."""
        text = card_of(self.output.path, repo_id=self.output.part.repo_id, report=report_of(self.output))
        path = self.output.evidence / CARD
        write_document(path, text)
        return Outcome(summary=f"{show_bytes(len(text))}: {path}", files=(path,))


class PushStep(Step):
    """Publishing, as ``ctxextend push``."""

    name = "push"

    def inputs(self) -> str:
        """What goes there, and how."""
        wish = self.output.push
        assert wish is not None
        how = msgspec.structs.replace(wish, token=None, cache_dir=None, quiet=False)
        return digest(
            self.name, VERSION, self.output.inputs, how, _evidence(self.output), os.environ.get("HF_ENDPOINT")
        )

    def do(self, audience: Audience, known: StepResult | None) -> Outcome:  # noqa: ARG002 - as every step
        """Publish it in one commit."""
        output = self.output
        assert output.push is not None
        options = msgspec.structs.replace(output.push, report=report_of(output))
        if output.part.local:
            pushed = push_path(output.path, options, say=audience.say)
        else:
            opened = self.prepared.opened
            _manifest, pushed = push_direct(output.plan, opened.source, opened.contents, options, say=audience.say)
        path = output.evidence / "push.json"
        write_document(path, encode(pushed))
        return Outcome(summary=_published(pushed), files=(path,))


def _published(pushed: Pushed) -> str:
    return f"{pushed.url}, {show_bytes(pushed.sent_bytes)} sent" if pushed.changed else f"{pushed.url}, nothing changed"


def report_of(output: Output) -> Path | None:
    """The folder of an output's evidence that its card shows; of several checkpoints the first's."""
    if not output.part.local or not output.path.exists():
        return None
    files = checkpoints_in(output.path)
    folder = output.evidence if files in ([], [output.path]) else output.evidence / files[0].stem
    return folder if read_evidence(folder) is not None else None


def _evidence(output: Output) -> dict[str, str]:
    """What was measured of an output, by checksum."""
    found = sorted(output.evidence.rglob("*.json")) if output.evidence.is_dir() else []
    return {
        path.relative_to(output.evidence).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.name in (EVAL, SMOKE)
    }


def _texts(given: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """What tells the files of texts from what they were before; built-in ones don't change."""
    found: list[tuple[str, int, int]] = []
    for name in given:
        top = Path(name).expanduser()
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                stat = path.stat()
                found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return found


def _without_key(wish: asked.SmokeAsked | asked.EvalAsked) -> object:
    """What is asked, without a server's key: another key is no other question."""
    return msgspec.structs.replace(wish, choice=msgspec.structs.replace(wish.choice, api_key=None))


#: The order of the work: what costs little comes first, and nothing is published before every gate was passed.
_ORDER: Final[tuple[type[Step], ...]] = (ConvertStep, CheckStep, SmokeStep, EvalStep, CardStep, PushStep)


def steps_of(prepared: Prepared) -> list[Step]:
    """Every step of a variant, in the order in which they are done."""
    return [kind(prepared, output) for kind in _ORDER for output in prepared.outputs if _wanted(kind, output)]


def _wanted(kind: type[Step], output: Output) -> bool:
    wanted: Mapping[str, bool] = {
        "convert": output.part.local,
        "check": output.check is not None,
        "smoke": output.smoke is not None,
        "eval": output.evaluation is not None,
        "card": output.card,
        "push": output.push is not None,
    }
    return wanted[kind.name]
