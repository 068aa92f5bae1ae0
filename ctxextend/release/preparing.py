"""A recipe's variants made ready: sources read, plans made, everything that can be refused beforehand refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend import checkpoint
from ctxextend.apply import Options, check_actions
from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.findings import Meant
from ctxextend.hub import PushOptions, check_publishing, needs_no_weights
from ctxextend.inspection import Inspection
from ctxextend.lab.charts import require_matplotlib
from ctxextend.lab.engines import need_of
from ctxextend.lab.evaluation import fingerprint
from ctxextend.lab.names import ORIGINAL
from ctxextend.lab.runnable import require_next_token, require_runnable
from ctxextend.lab.texts import read_documents
from ctxextend.pipeline import Opened, check_run, inspect_source, meaning_of, open_source, plan_source
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.release import asked
from ctxextend.release.document import CheckPart, EvalPart, OutputPart, PushPart, RecipeDocument, SmokePart
from ctxextend.release.located import located
from ctxextend.release.reading import RecipeFile, Variant
from ctxextend.release.state import read_state
from ctxextend.tensors.places import is_unchanged
from ctxextend.version import VERSION

#: The folder of what was measured, beside the outputs.
EVIDENCE: Final = "evidence"

#: What ``eval.against`` says for the recipe's own source.
SOURCE: Final = "source"

#: The keys of each section, and of the recipe itself.
_FIELDS: Final[Mapping[str | None, tuple[str, ...]]] = {
    None: RecipeDocument.__struct_fields__,
    "outputs": OutputPart.__struct_fields__,
    "check": CheckPart.__struct_fields__,
    "smoke": SmokePart.__struct_fields__,
    "eval": EvalPart.__struct_fields__,
    "push": PushPart.__struct_fields__,
}
#: Options that are spelled otherwise in a recipe.
_KEYS: Final[Mapping[str, str]] = {"--outtype": "outtypes", "--set": "options", "REPO_ID": "repo_id"}
#: Where a name stands that isn't known.
_UNKNOWN: Final[Mapping[str, str]] = {
    "unknown-method": "method",
    "unknown-runtime": "runtimes",
    "unknown-task": "tasks",
}


class RunOptions(Struct, frozen=True, kw_only=True):
    """How a recipe is carried out. ``out`` instead of the recipe's own; ``push`` False leaves publishing away.

    ``force``: every step is done, whatever an earlier run left.
    """

    out: Path | None = None
    push: bool = True
    force: bool = False
    dry_run: bool = False
    token: str | None = None
    cache_dir: Path | None = None
    quiet: bool = False


class Output(Struct, frozen=True, kw_only=True):
    """One output, planned. ``inputs``: a digest of everything that decides its bytes."""

    part: OutputPart
    name: str
    path: Path
    evidence: Path
    plan: Plan
    options: Options
    inputs: str
    check: asked.CheckAsked | None
    meant: Meant | None
    smoke: asked.SmokeAsked | None
    evaluation: asked.EvalAsked | None
    base: Opened | None
    card: bool
    push: PushOptions | None


class Prepared(Struct, frozen=True, kw_only=True):
    """A variant that can be carried out. ``folder``: where everything of it goes."""

    recipe: str
    variant: Variant
    folder: Path
    opened: Opened
    family: str | None
    outputs: tuple[Output, ...]


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
        with self._within(variant):
            with self._at(variant, "source"):
                opened = self._opened(document)
            before = read_state(folder, recipe=self.file.name)
            made = {} if before is None else {s.output: s for s in before.steps if s.step == "convert"}
            outputs: list[Output] = []
            for index, part in enumerate(document.outputs):
                output = self._output(variant, opened, folder, index, part)
                if any(output.name == other.name for other in outputs):
                    raise self._error(variant, "two outputs have one name", output.name, "outputs", index, "name")
                known = made.get(output.name)
                if known is None or known.inputs != output.inputs or not is_unchanged(output.path):
                    self._require_place(opened, output, ours=known is not None)
                outputs.append(output)
            self._require_runnable(variant, opened, outputs)
            for index, output in enumerate(outputs):
                with self._at(variant, "outputs", index, "repo_id"):
                    self._require_publishing(opened, output)
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

    def _output(self, variant: Variant, opened: Opened, folder: Path, index: int, part: OutputPart) -> Output:
        document = variant.document
        with self._at(variant):
            asked.recipe_of(document, OutputPart())
        with self._at(variant, "outputs", index):
            recipe = asked.recipe_of(document, part)
            options = asked.options_of(part, force=False)
            plan = plan_source(opened, recipe)
        check_actions(plan, opened.contents)
        name = plan.out if part.name is None else part.name
        if Path(name).name != name or name in ("", ".", "..", EVIDENCE) or "\0" in name:
            raise self._error(variant, "an output's name is one of a file or folder", name, "outputs", index, "name")
        plan = msgspec.structs.replace(plan, out=name)
        with self._at(variant, "check"):
            check = asked.check_asked(document.check)
        with self._at(variant, "smoke"):
            smoke = asked.smoke_asked(document.smoke)
        with self._at(variant, "eval"):
            evaluation = asked.eval_asked(document.eval)
        push = None
        if part.repo_id is not None and self.options.push:
            with self._at(variant, "push"):
                push = asked.push_asked(
                    document.push,
                    repo_id=part.repo_id,
                    token=self.options.token,
                    cache_dir=self.options.cache_dir,
                    quiet=self.options.quiet,
                )
        first = index == 0
        runs = (first if part.smoke is None else part.smoke, first if part.eval is None else part.eval)
        check, smoke, evaluation = (
            check if part.local else None,
            smoke if runs[0] else None,
            evaluation if runs[1] else None,
        )
        output = Output(
            part=part,
            name=name,
            path=folder / name,
            evidence=folder / EVIDENCE / name,
            plan=plan,
            options=options,
            inputs=_inputs(opened, plan, options),
            check=check,
            meant=self._meant(variant, check),
            smoke=smoke,
            evaluation=evaluation,
            base=self._base(variant, opened, evaluation),
            card=document.card and part.local,
            push=push,
        )
        self._require_told(variant, opened, output, index)
        return output

    def _meant(self, variant: Variant, check: asked.CheckAsked | None) -> Meant | None:
        """What ``check`` holds outputs to, where the recipe names it."""
        if check is None or check.against is None:
            return None
        with self._at(variant, "check", "against"):
            return meaning_of(check.against, token=self.options.token, cache_dir=self.options.cache_dir)

    def _base(self, variant: Variant, opened: Opened, evaluation: asked.EvalAsked | None) -> Opened | None:
        """The other checkpoint that ``eval`` holds an output against."""
        if evaluation is None or evaluation.against in (None, ORIGINAL):
            return None
        if evaluation.against == SOURCE:
            return opened
        with self._at(variant, "eval", "against"):
            return self._opened(RecipeDocument(source=evaluation.against or ""))

    def _require_told(self, variant: Variant, opened: Opened, output: Output, index: int) -> None:
        """Raises :class:`UsageError` for an output that asks for what the recipe, or its place, doesn't have."""
        part, document = output.part, variant.document
        for name, wanted, section in (("smoke", part.smoke, document.smoke), ("eval", part.eval, document.eval)):
            if wanted and section is False:
                raise self._error(
                    variant, f"there is no {name} section to run on this output", "true", "outputs", index, name
                )
        if part.local:
            return
        if output.push is None and self.options.push:
            raise self._error(
                variant, "an output without a local copy has to be published", "no repo_id", "outputs", index, "local"
            )
        if output.smoke is not None or output.evaluation is not None:
            raise self._error(
                variant, "what isn't here can't be run", "smoke or eval of this output", "outputs", index, "local"
            )
        if not needs_no_weights(output.plan, opened.source, opened.contents):
            raise self._error(
                variant,
                "this output's weights have to be made here",
                "local: false",
                "outputs",
                index,
                "local",
                expected="unchanged safetensors weights of a Hub repository",
            )

    def _require_place(self, opened: Opened, output: Output, *, ours: bool) -> None:
        """Where it goes is free, or holds what an earlier run of this recipe put there."""
        if output.part.local:
            force = ours and output.path.exists()
            check_run(output.plan, opened, output.path, options=msgspec.structs.replace(output.options, force=force))

    def _require_runnable(self, variant: Variant, opened: Opened, outputs: list[Output]) -> None:
        """What is measured can be: the programs, the texts, the memory."""
        inspection: Inspection | None = None
        for output in outputs:
            for part, wish in (("smoke", output.smoke), ("eval", output.evaluation)):
                if wish is None:
                    continue
                inspection = inspection or inspect_source(opened, Recipe(family=variant.document.family))
                with self._at(variant, part):
                    read_documents(wish.text)
                    if wish.choice.endpoint is not None:
                        require_next_token(opened, inspection)
                        continue
                    require_runnable(opened, inspection, output.plan)
                    if (output.plan.to == "gguf") == (opened.contents.gguf is not None):
                        length = _longest(output, wish)
                        need_of(opened, inspection, wish.choice, length=length)
                    if part == "eval":
                        require_matplotlib()

    def _require_publishing(self, opened: Opened, output: Output) -> None:
        if output.push is None:
            return
        key = (output.push.repo_id, opened.source.repo_id)
        if key not in self._asked:
            check_publishing(output.push, opened.source.repo_id, say=self._say)
            self._asked.add(key)

    @contextmanager
    def _at(self, variant: Variant, *path: str | int) -> Iterator[None]:
        """Wrong words are told with the line where they stand."""
        try:
            yield
        except UsageError as error:
            raise located(error, self.file, variant, *_place(error, path)) from error

    @contextmanager
    def _within(self, variant: Variant) -> Iterator[None]:
        """Of several variants, which it is."""
        try:
            yield
        except CtxextendError as error:
            if variant.label:
                error.message = f"{variant.label}: {error.message}"
            raise

    def _error(
        self, variant: Variant, message: str, found: str, *path: str | int, expected: str | None = None
    ) -> UsageError:
        error = UsageError(message, code="recipe-value", found=found, expected=expected)
        return located(error, self.file, variant, *path)


def _place(error: UsageError, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Where in the file an option of the command line stands that an error names."""
    spelled = error.key or _UNKNOWN.get(error.code, "")
    name = _KEYS.get(spelled, spelled.removeprefix("--").replace("-", "_"))
    if path[-1:] == (name,):
        return path
    section = next((part for part in path if isinstance(part, str)), None)
    if name in _FIELDS.get(section, ()):
        return (*path, name)
    return (name,) if name in _FIELDS[None] else path


def folder_of(file: RecipeFile, variant: Variant, options: RunOptions) -> Path:
    """Where everything of a variant goes: the recipe's folder, and in it the variant's where there are several."""
    return root_of(file, variant, options) / variant.label


def root_of(file: RecipeFile, variant: Variant, options: RunOptions) -> Path:
    """The recipe's folder: as the command says, else the recipe, else its name here."""
    if options.out is not None:
        return options.out
    said = variant.document.out
    return Path(said).expanduser() if said is not None else Path(file.name)


def one_root(file: RecipeFile, options: RunOptions) -> Path:
    """The folder that all variants share. Raises :class:`RefusedError` where they don't."""
    roots = {root_of(file, variant, options): variant for variant in file.variants}
    if len(roots) > 1:
        raise RefusedError(
            "the variants go to different folders, so that nothing tells where their results belong together",
            code="several-folders",
            file=file.path,
            key="out",
            found=", ".join(sorted(map(str, roots))[:4]),
            hint="leave the matrix out of 'out': each variant has a folder of its own in it",
        )
    return next(iter(roots))


def digest(*parts: object) -> str:
    """What tells these values from others."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic", enc_hook=str)).hexdigest()


def _inputs(opened: Opened, plan: Plan, options: Options) -> str:
    return digest(VERSION, fingerprint(opened), plan, options)


def _longest(output: Output, wish: asked.SmokeAsked | asked.EvalAsked) -> int:
    """The longest text that will be read, in tokens."""
    said: Mapping[str, int | None] = {
        "smoke": wish.length if isinstance(wish, asked.SmokeAsked) else None,
        "eval": max(wish.settings.lengths, default=None) if isinstance(wish, asked.EvalAsked) else None,
    }
    given = next((length for length in said.values() if length is not None), None)
    return given or max(output.plan.target_context, output.plan.current_context)
