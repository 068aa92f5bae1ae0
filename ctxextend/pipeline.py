"""The verbs, wired: read a checkpoint, inspect it, plan, convert. The command line and Python both come here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ctxextend import checkpoint
from ctxextend.apply import Manifest, Options, Progress, check_actions, convert, plan_from, unsafe
from ctxextend.check import check, meant_by, meant_by_plan
from ctxextend.checkpoint import Source
from ctxextend.checkpoint.directory import read_json
from ctxextend.checkpoint.gguf_file import first_shard, shard_names
from ctxextend.contents import Contents, Note
from ctxextend.errors import RefusedError, UsageError
from ctxextend.export_plan import make_export_plan
from ctxextend.exports.rows import ROWS
from ctxextend.findings import Check, Meant
from ctxextend.gguf_apply import convert_gguf, convert_in_place, is_single, refuse_missing
from ctxextend.gguf_check import check_gguf, meant_by_gguf
from ctxextend.gguf_inspection import inspect_gguf
from ctxextend.gguf_plan import make_gguf_plan
from ctxextend.gguf_repair import make_gguf_repair
from ctxextend.import_plan import make_import_plan
from ctxextend.inspection import Inspection, inspect
from ctxextend.plan import Plan, make_plan
from ctxextend.position_export import make_position_export_plan
from ctxextend.position_gguf import make_position_gguf_plan
from ctxextend.position_import import make_position_import_plan
from ctxextend.position_plan import make_position_plan
from ctxextend.recipe import Recipe
from ctxextend.repair import make_repair
from ctxextend.runtimes import DEFAULT_RUNTIMES
from ctxextend.tensors.converter import find_converter
from ctxextend.tensors.places import MANIFEST, check_places

__all__ = [
    "Opened",
    "check_run",
    "check_source",
    "checkpoints_in",
    "inspect_source",
    "meaning_of",
    "open_source",
    "plan_source",
    "repair_source",
    "rope_meant",
    "run_in_place",
    "run_plan",
]


class Opened(Struct, frozen=True, kw_only=True):
    """A source and what was read of it."""

    source: Source
    contents: Contents


def open_source(source: str | Path | Source) -> Opened:
    """Read a checkpoint's documents and headers: a folder, a GGUF file, or a Hub repository.

    A change of a GGUF file in place that was interrupted is undone first.
    """
    found = source if isinstance(source, Source) else checkpoint.resolve(str(source))
    if found.file is not None:
        from ctxextend.tensors.gguf_in_place import recover

        # Of a split file it is the one with the keys that was edited, whichever is named.
        paths = map(found.file.with_name, shard_names(found.file.name))
        undone = [path.name for path in paths if path.exists() and recover(path)]
        contents = checkpoint.read(found)
        said = "an edit in place that was cut short was undone"
        notes = (Note(code="edit-undone", message=f"{name}: {said}") for name in undone)
        return Opened(source=found, contents=msgspec.structs.replace(contents, notes=(*notes, *contents.notes)))
    return Opened(source=found, contents=checkpoint.read(found))


def inspect_source(opened: Opened, recipe: Recipe) -> Inspection:
    """What the checkpoint means, with the overrides that the recipe names."""
    contents = opened.contents
    if contents.gguf is not None:
        return inspect_gguf(contents, family=recipe.family, base=recipe.base, original_context=recipe.original_context)
    return inspect(
        contents,
        family=recipe.family,
        base=recipe.base,
        original_context=recipe.original_context,
        sliding_window=recipe.sliding_window,
    )


def plan_source(opened: Opened, recipe: Recipe) -> Plan:
    """The plan for a recipe."""
    return plan_inspected(opened.contents, inspect_source(opened, recipe), recipe)


def plan_inspected(contents: Contents, inspection: Inspection, recipe: Recipe) -> Plan:
    """The plan for a recipe on a checkpoint that was inspected."""
    gguf = _writes_gguf(contents, recipe)
    if gguf and contents.gguf is None:
        recipe = _with_converter(inspection, recipe)
    planners = _PLANNERS if inspection.position in ("rope", "none") else _POSITION_PLANNERS
    return planners[contents.gguf is not None, gguf](contents, inspection, recipe)


def _with_converter(inspection: Inspection, recipe: Recipe) -> Recipe:
    """The recipe with llama.cpp's converter: the one it names, or for what isn't exported here the one on PATH."""
    if recipe.converter is None and inspection.family.name in ROWS:
        return recipe
    found = find_converter(Path(recipe.converter) if recipe.converter is not None else None)
    return recipe if found is None else msgspec.structs.replace(recipe, converter=str(found))


#: Who plans for models without a rope.
_POSITION_PLANNERS: Final[Mapping[tuple[bool, bool], Callable[[Contents, Inspection, Recipe], Plan]]] = {
    (False, False): make_position_plan,
    (False, True): make_position_export_plan,
    (True, False): make_position_import_plan,
    (True, True): make_position_gguf_plan,
}

#: Who plans, by whether the source and the result are GGUF.
_PLANNERS: Final[Mapping[tuple[bool, bool], Callable[[Contents, Inspection, Recipe], Plan]]] = {
    (False, False): make_plan,
    (False, True): make_export_plan,
    (True, False): make_import_plan,
    (True, True): make_gguf_plan,
}


def _writes_gguf(contents: Contents, recipe: Recipe) -> bool:
    """Whether the result is GGUF. Raises :class:`UsageError` for options that go with another format."""
    gguf = contents.gguf is not None if recipe.to is None else recipe.to == "gguf"
    same = gguf == (contents.gguf is not None)
    exports = gguf and not same
    for option, given, fits in (
        ("--outtype", recipe.outtypes, not same),
        ("--split-max-size", recipe.split_max_size, exports),
        ("--converter", recipe.converter, exports),
    ):
        if given and not fits:
            raise UsageError(
                "the weights stay as they are here",
                code="bad-option",
                key=option,
                hint="it goes with --to gguf of a safetensors checkpoint"
                + (", and with --to safetensors of a GGUF file" if option == "--outtype" else ""),
            )
    return gguf


def check_source(
    opened: Opened,
    *,
    runtimes: Iterable[str] | None = None,
    against: Meant | None = None,
    family: str | None = None,
) -> Check:
    """What each runtime will make of the checkpoint.

    One of our own is held to the plan in its manifest, and, where ``runtimes`` names none, for the runtimes
    of that plan, but those of which it said that they read something else.
    """
    if opened.contents.gguf is not None:
        _refuse_family(family)
        return check_gguf(opened.contents, required=runtimes or DEFAULT_RUNTIMES, against=against)
    inspection = inspect_source(opened, Recipe(family=family))
    plan = _own_plan(opened.contents, inspection)
    if plan is None or against is not None:
        return check(opened.contents, inspection, required=runtimes or DEFAULT_RUNTIMES, against=against)
    said = f"the plan that it was made by ({plan.method} to {plan.target_context})"
    return check(
        opened.contents,
        inspection,
        required=runtimes or plan.runtimes,
        against=meant_by_plan(plan, source=said),
        excused=() if runtimes else plan.misread,
    )


def meaning_of(named: str, *, token: str | None = None, cache_dir: Path | None = None) -> Meant:
    """What ``--against`` names: a plan (or manifest) in a JSON file, or another checkpoint.

    Raises :class:`RefusedError` for a checkpoint without a rope.
    """
    path = Path(named).expanduser()
    if path.is_file() and path.suffix == ".json":
        return meant_by_plan(plan_from(read_json(path), file=named), source=f"the plan in {named}")
    opened = open_source(checkpoint.resolve(named, token=token, cache_dir=cache_dir))
    if opened.contents.gguf is not None:
        gguf = meant_by_gguf(opened.contents)
        return msgspec.structs.replace(gguf, source=f"{gguf.source} ({named})")
    inspection = inspect_source(opened, Recipe())
    meant = meant_by(opened.contents, inspection)
    if meant is None:
        raise RefusedError(
            "a model without a rope says nothing of another's",
            code="no-rope",
            file=named,
            key="model_type",
            found=str(inspection.model_type),
        )
    return msgspec.structs.replace(meant, source=f"{meant.source} of {named}")


def rope_meant(opened: Opened, inspection: Inspection, *, length: int) -> Meant | None:
    """The rope that a checkpoint is meant to have at ``length`` tokens; None for a model without one.

    Of an output of ours whose table is the same at every length, what its plan says.
    """
    contents = opened.contents
    if contents.gguf is not None:
        return meant_by_gguf(contents)
    meant = meant_by(contents, inspection, length=length)
    plan = _own_plan(contents, inspection)
    if meant is None or plan is None:
        return meant
    planned = meant_by_plan(plan, source="its plan")
    follows = planned.dynamic or any(found.switches for found in planned.tables.values())
    return meant if follows else planned


def repair_source(
    opened: Opened,
    *,
    runtimes: tuple[str, ...] = DEFAULT_RUNTIMES,
    original_context: int | None = None,
    family: str | None = None,
    allow: tuple[str, ...] = (),
) -> Plan:
    """The plan that mends the checkpoint for ``runtimes``."""
    if opened.contents.gguf is not None:
        _refuse_family(family)
        return make_gguf_repair(opened.contents, runtimes=runtimes, original_context=original_context, allow=allow)
    inspection = inspect_source(opened, Recipe(family=family))
    return make_repair(opened.contents, inspection, runtimes=runtimes, original_context=original_context, allow=allow)


def _refuse_family(family: str | None) -> None:
    if family is not None:
        raise UsageError(
            "a GGUF file names its architecture, by which it is checked",
            code="bad-option",
            key="--family",
            hint="leave it away; for convert it says of which family the file was made",
        )


def _own_plan(contents: Contents, inspection: Inspection) -> Plan | None:
    """The plan of the manifest, where this is an output of ours."""
    manifest = contents.documents.get(MANIFEST)
    if manifest is None or inspection.record is None:
        return None
    plan = plan_from(manifest.value, file=MANIFEST)
    return plan if plan.digest == inspection.record.plan else None


def run_plan(
    plan: Plan,
    opened: Opened,
    out: str | Path | None = None,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Manifest]:
    """Make the plan happen; the output's path and its manifest. Without ``out``, where the plan says."""
    settings = options or Options()
    # Before anything is downloaded.
    target = check_run(plan, opened, out, options=settings)
    source = opened.source
    if settings.config_only and opened.contents.gguf is None:
        folder = source.folder or _documents_only(opened)
    else:
        folder = checkpoint.folder_of(source, opened.contents)
    make = _maker(plan, opened.contents)
    manifest = make(plan, opened.contents, folder, target, options=settings, progress=progress)
    return target, manifest


def check_run(plan: Plan, opened: Opened, out: str | Path | None, *, options: Options) -> Path:
    """Where the plan's result goes: ``out``, else where the plan says.

    Raises :class:`RefusedError` for a plan that isn't one for this checkpoint and for a place that is taken, and
    :class:`UsageError` for options that say nothing here.
    """
    contents = opened.contents
    single = False
    check_actions(plan, contents)
    if plan.to == "gguf" and contents.gguf is None:
        from ctxextend.export_apply import check_export_options, export_action

        action = export_action(plan, contents)
        check_export_options(action, options)
        single = action.single
    else:
        for option, given in (("--quantizer", options.quantizer), ("--converter", options.converter)):
            if given is not None:
                raise UsageError(
                    "the weights stay as they are here, or are written without it",
                    code="bad-option",
                    key=option,
                    hint="it goes with --to gguf of a safetensors checkpoint",
                )
        if plan.to == "gguf":
            refuse_missing(contents)
            single = is_single(contents)
        elif contents.gguf is not None:
            from ctxextend.import_apply import check_import_options, restore_action

            check_import_options(options)
            restore_action(plan, contents)
    target = Path(out) if out is not None else _named(plan)
    check_places(opened.source.folder or opened.source.file, target, force=options.force, single=single)
    return target


def _named(plan: Plan) -> Path:
    """The output as the plan names it. Raises :class:`RefusedError` for a path: anybody may have written the plan."""
    if plan.out in ("", "..") or Path(plan.out).name != plan.out or "\0" in plan.out:
        raise unsafe(plan.source.name, "out", "a name without a folder", plan.out)
    return Path(plan.out)


def _maker(plan: Plan, contents: Contents) -> Callable[..., Manifest]:
    """What carries a plan out; tokenizers and quantisation are only loaded for what needs them."""
    if plan.to == "gguf":
        if contents.gguf is not None:
            return convert_gguf
        from ctxextend.export_apply import export_gguf

        return export_gguf
    if contents.gguf is None:
        return convert
    from ctxextend.import_apply import import_gguf

    return import_gguf


def checkpoints_in(output: Path) -> list[Path]:
    """The checkpoints that a conversion has written: a folder of safetensors, or each GGUF file by its first part."""
    if output.is_file() or (output / "config.json").exists():
        return [output]
    files = sorted(output.glob("*.gguf"))
    return [file for file in files if first_shard(file.name) == file.name]


def run_in_place(plan: Plan, opened: Opened) -> tuple[Path, Manifest]:
    """Make the plan happen in the GGUF file itself; its path and its manifest.

    Raises :class:`UsageError` for another source.
    """
    check_actions(plan, opened.contents)
    file = opened.source.file
    if file is None or plan.to != "gguf":
        raise UsageError(
            "only a GGUF file here can be changed where it lies",
            code="bad-option",
            key="--in-place",
            expected="the path of a .gguf file",
            found=opened.source.given,
            hint="leave --in-place away: the output goes to another place",
        )
    return file, convert_in_place(plan, opened.contents, file.parent)


def _documents_only(opened: Opened) -> Path:
    """A Hub repository's documents, without its weights."""
    from ctxextend.checkpoint.hub import download

    source = opened.source
    if source.repo_id is None:
        raise RefusedError("there is nothing to read", code="no-source", found=source.given)
    names = [f.path for f in opened.contents.files if f.path in opened.contents.documents]
    tokenizer = [f.path for f in opened.contents.files if f.path == "tokenizer.json"]
    return download(
        source.repo_id,
        revision=opened.contents.revision,
        token=source.token,
        cache_dir=source.cache_dir,
        files=[*names, *tokenizer],
    )
