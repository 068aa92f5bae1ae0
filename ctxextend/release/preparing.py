"""A recipe's variants made ready: sources read, plans made, everything that can be refused beforehand refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from ctxextend import checkpoint
from ctxextend.apply import check_actions
from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.export_apply import require_export
from ctxextend.findings import Meant
from ctxextend.hub import PushOptions, check_publishing, needs_no_weights, require_name
from ctxextend.lab.charts import require_matplotlib
from ctxextend.lab.engines import engine_for, need_of, usable_engine
from ctxextend.lab.evaluation import fingerprint
from ctxextend.lab.names import ORIGINAL
from ctxextend.lab.runnable import require_next_token, require_runnable
from ctxextend.lab.texts import read_documents
from ctxextend.lab.verbs import settled
from ctxextend.pipeline import Opened, check_run, inspect_source, meaning_of, open_source, plan_source
from ctxextend.recipe import Recipe
from ctxextend.release import asked
from ctxextend.release.document import OutputPart, RecipeDocument
from ctxextend.release.located import located
from ctxextend.release.places import folder_of, require_places
from ctxextend.release.prepared import (
    Output,
    Prepared,
    RunOptions,
    converted,
    digest,
    is_touched,
    made_it,
    programs_of,
    times_of,
)
from ctxextend.release.reading import RecipeFile, Variant
from ctxextend.release.results import EVIDENCE, VariantResult
from ctxextend.release.state import read_state
from ctxextend.release.wording import told
from ctxextend.runtimes import gguf_readers_of, readers_of
from ctxextend.version import VERSION

#: What ``eval.against`` says for the recipe's own source.
SOURCE: Final = "source"


class Preparation:
    """Makes variants ready; each source is read once, and each repository of the Hub asked once."""

    def __init__(self, file: RecipeFile, options: RunOptions, *, say: Callable[[str], None]) -> None:
        """``say`` is told of what takes long, such as a Hub that asks for patience."""
        self.file = file
        self.options = options
        self._say = say
        self._sources: dict[tuple[str, str | None], Opened] = {}
        self._asked: set[tuple[str, str | None]] = set()

    def prepare(self, variant: Variant) -> Prepared:
        """Raises :class:`CtxextendError` for everything that would fail later and can be known now."""
        document = variant.document
        folder = folder_of(self.file, variant, self.options)
        try:
            with self._at(variant, "source", of=f"source {document.source}"):
                opened = self._opened(document)
            before = read_state(folder, recipe=self.file.name)
            with self._at(variant):
                asked.recipe_of(document, OutputPart())
            with self._at(variant, "check"):
                check = asked.check_asked(document.check)
                _require_readers(check, document)
            meant = self._meant(variant, check)
            outputs = [
                self._output(variant, opened, folder, index, check=check if part.local else None, meant=meant)
                for index, part in enumerate(document.outputs)
            ]
            self._require_names(variant, outputs)
            require_places(opened, folder, outputs, before)
            for index, output in enumerate(outputs):
                with self._at(variant, "outputs", index):
                    self._require_output(opened, output, before)
            for output in outputs:
                self._require_runnable(variant, opened, output)
            for index, output in enumerate(outputs):
                with self._at(variant, "outputs", index, "repo_id"):
                    self._require_publishing(opened, output)
        except CtxextendError as error:
            # Of several variants, which it is.
            if variant.label:
                error.message = f"{variant.label}: {error.message}"
            raise
        return Prepared(
            recipe=self.file.name,
            variant=variant,
            folder=folder,
            opened=opened,
            family=document.family,
            outputs=tuple(outputs),
        )

    def _opened(self, document: RecipeDocument) -> Opened:
        key = (document.source, document.revision)
        if key not in self._sources:
            given = checkpoint.resolve(
                document.source,
                revision=document.revision,
                token=self.options.token,
                cache_dir=self.options.cache_dir,
            )
            self._sources[key] = open_source(given)
        return self._sources[key]

    def _output(
        self,
        variant: Variant,
        opened: Opened,
        folder: Path,
        index: int,
        *,
        check: asked.CheckAsked | None,
        meant: Meant | None,
    ) -> Output:
        document = variant.document
        part = document.outputs[index]
        with self._at(variant, "outputs", index, of=f"source {document.source}"):
            recipe = asked.recipe_of(document, part)
            options = asked.options_of(part, force=False)
            plan = plan_source(opened, recipe)
        check_actions(plan, opened.contents)
        name = plan.out if part.name is None else part.name
        plan = msgspec.structs.replace(plan, out=name)
        with self._at(variant, "smoke"):
            smoke = asked.smoke_asked(document.smoke)
        with self._at(variant, "eval"):
            evaluation = asked.eval_asked(document.eval)
        # Of several outputs the first is run, where nothing else is said.
        if not (index == 0 if part.smoke is None else part.smoke):
            smoke = None
        if not (index == 0 if part.eval is None else part.eval):
            evaluation = None
        push = None
        if part.repo_id is not None:
            with self._at(variant, "outputs", index, "repo_id"):
                require_name(part.repo_id)
            with self._at(variant, "push"):
                push = self._push(document, part.repo_id)
        output = Output(
            part=part,
            name=name,
            path=folder / name,
            evidence=folder / EVIDENCE / name,
            plan=plan,
            options=options,
            inputs=digest(VERSION, fingerprint(opened), times_of(opened), plan, options, programs_of(part)),
            check=check,
            meant=meant,
            smoke=smoke,
            evaluation=evaluation,
            base=self._base(variant, opened, evaluation),
            card=document.card and part.local,
            push=push if self.options.push else None,
        )
        self._require_told(variant, opened, output, index)
        return output

    def _push(self, document: RecipeDocument, repo_id: str) -> PushOptions:
        return asked.push_asked(
            document.push,
            repo_id=repo_id,
            token=self.options.token,
            cache_dir=self.options.cache_dir,
            quiet=self.options.quiet,
        )

    def _meant(self, variant: Variant, check: asked.CheckAsked | None) -> Meant | None:
        """What ``check`` holds outputs to, where the recipe names it."""
        if check is None or check.against is None:
            return None
        with self._at(variant, "check", "against", of=f"against {check.against}"):
            return meaning_of(check.against, token=self.options.token, cache_dir=self.options.cache_dir)

    def _base(self, variant: Variant, opened: Opened, evaluation: asked.EvalAsked | None) -> Opened | None:
        """The other checkpoint that ``eval`` holds an output against."""
        if evaluation is None or evaluation.against in (None, ORIGINAL):
            return None
        if evaluation.against == SOURCE:
            return opened
        with self._at(variant, "eval", "against", of=f"against {evaluation.against}"):
            return self._opened(RecipeDocument(source=evaluation.against or ""))

    def _require_told(self, variant: Variant, opened: Opened, output: Output, index: int) -> None:
        """Raises :class:`UsageError` for an output that asks for what the recipe, or its place, doesn't have."""
        part, document = output.part, variant.document
        for name, wanted, section in (("smoke", part.smoke, document.smoke), ("eval", part.eval, document.eval)):
            if wanted and section is False:
                self._refuse(variant, f"there is no {name} section to run on this output", "true", index, name)
        if part.local:
            return
        if part.repo_id is None:
            self._refuse(variant, "an output without a local copy has to be published", "no repo_id", index, "local")
        if output.smoke is not None or output.evaluation is not None:
            self._refuse(variant, "what isn't here can't be run", "smoke or eval of this output", index, "local")
        if not needs_no_weights(output.plan, opened.source, opened.contents):
            self._refuse(variant, "this output's weights have to be made here", "local: false", index, "local")

    def _require_names(self, variant: Variant, outputs: Sequence[Output]) -> None:
        for index, output in enumerate(outputs):
            # Disks that tell no capitals apart have one place for both.
            if any(output.name.lower() == other.name.lower() for other in outputs[:index]):
                self._refuse(variant, "two outputs have one name", output.name, index, "name")

    def _require_output(self, opened: Opened, output: Output, before: VariantResult | None) -> None:
        """Where it goes is free, or holds what this recipe put there; what it takes beside the weights is there."""
        known = converted(output, before)
        if not output.part.local or (known is not None and made_it(known, output) and not self.options.force):
            return
        if known is not None and is_touched(known, output) and not self.options.force:
            raise RefusedError(
                "the output was touched since it was written, and is left alone",
                code="output-changed",
                file=str(output.path),
                expected="the files of the size and time that they were written with",
                hint="move it away, or --force: it is converted anew; with 'checksums: true' copies are known again",
            )
        force = before is not None and output.name in before.made and output.path.exists()
        options = msgspec.structs.replace(output.options, force=force)
        check_run(output.plan, opened, output.path, options=options)
        if output.plan.to == "gguf" and opened.contents.gguf is None:
            require_export(output.plan, opened.contents, opened.source.folder, options)

    def _require_runnable(self, variant: Variant, opened: Opened, output: Output) -> None:
        """What is measured can be: the programs, the texts, the lengths, the memory."""
        same = (output.plan.to == "gguf") == (opened.contents.gguf is not None)
        inspection = inspect_source(opened, Recipe(family=variant.document.family))
        for part, wish in (("smoke", output.smoke), ("eval", output.evaluation)):
            if wish is None:
                continue
            with self._at(variant, part):
                read_documents(wish.text)
                length = _longest(output, wish)
                if isinstance(wish, asked.EvalAsked):
                    require_matplotlib()
                    settled(wish.settings, inspection, held=wish.against is not None)
                    _require_original(output, wish)
                elif length > output.plan.target_context and output.plan.position == "rope":
                    raise UsageError(
                        "the model isn't extended as far as it is to be run",
                        code="too-long",
                        key="--length",
                        expected=f"at most {output.plan.target_context} tokens",
                        found=str(length),
                    )
                if wish.choice.endpoint is not None:
                    usable_engine(opened, wish.choice)
                    require_next_token(opened, inspection)
                    continue
                if engine_for(wish.choice.engine, gguf=output.plan.to == "gguf") == "vllm":
                    _require_vllm()
                else:
                    require_runnable(opened, inspection, output.plan)
                if same:
                    need_of(opened, inspection, wish.choice, length=length)

    def _require_publishing(self, opened: Opened, output: Output) -> None:
        if output.push is None:
            return
        key = (output.push.repo_id, opened.source.repo_id)
        if key not in self._asked:
            check_publishing(output.push, opened.source.repo_id, say=self._say)
            self._asked.add(key)

    @contextmanager
    def _at(self, variant: Variant, *path: str | int, of: str | None = None) -> Iterator[None]:
        """What is said of the recipe's own words is told with the line where they stand.

        ``of``: the checkpoint that is read, for what is wrong in its files.
        """
        try:
            yield
        except CtxextendError as error:
            raise told(error, self.file, variant, *path, of=of) from error

    def _refuse(self, variant: Variant, message: str, found: str, index: int, key: str) -> NoReturn:
        error = UsageError(message, code="recipe-value", found=found)
        raise located(error, self.file, variant, "outputs", index, key)


def _require_readers(check: asked.CheckAsked | None, document: RecipeDocument) -> None:
    """Raises :class:`UsageError` for a check by a runtime that reads none of the outputs."""
    formats = {output.to for output in document.outputs}
    if check is None or check.runtimes is None or None in formats:
        return
    for name in check.runtimes:
        reads = {"gguf": gguf_readers_of((name,)), "safetensors": readers_of((name,))}
        if not any(reads[each] for each in formats if each is not None):
            raise UsageError(
                f"{name} reads none of the outputs",
                code="nobody-reads",
                key="runtimes",
                found=name,
                hint="leave it out of check.runtimes, or add an output that it reads",
            )


def _require_vllm() -> None:
    """Raises :class:`UsageError` where there is no vLLM, which no extra of ours brings."""
    if find_spec("vllm") is None:
        raise UsageError(
            "this needs vllm, which isn't installed", code="missing-extra", key="--engine", hint="pip install vllm"
        )


def _require_original(output: Output, wish: asked.EvalAsked) -> None:
    """Raises :class:`UsageError` for what no config can put back to what it was."""
    inside = output.plan.to == "safetensors" and wish.choice.endpoint is None and wish.choice.engine != "vllm"
    if wish.against == ORIGINAL and not inside:
        raise UsageError(
            "only a safetensors output in transformers can be read as its original",
            code="no-record",
            key="--against",
            found=ORIGINAL,
            hint="against: source",
        )


def _longest(output: Output, wish: asked.SmokeAsked | asked.EvalAsked) -> int:
    """The longest text that will be read, in tokens."""
    said = wish.length if isinstance(wish, asked.SmokeAsked) else max(wish.settings.lengths, default=None)
    return said or max(output.plan.target_context, output.plan.current_context)
