"""Where everything of a recipe goes, and that nothing of anybody else lies there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ctxextend.apply import output_error
from ctxextend.errors import OutputError, RefusedError
from ctxextend.pipeline import Opened
from ctxextend.release.prepared import Output, RunOptions
from ctxextend.release.reading import RecipeFile, Variant
from ctxextend.release.results import EVIDENCE, RESULTS, SCHEMA, SUMMARY, VariantResult


def folder_of(file: RecipeFile, variant: Variant, options: RunOptions) -> Path:
    """Where everything of a variant goes: the recipe's folder, and in it the variant's where there are several."""
    return root_of(file, variant, options) / variant.label


def root_of(file: RecipeFile, variant: Variant, options: RunOptions) -> Path:
    """The recipe's folder: as the command says, else the recipe, else its name here."""
    if options.out is not None:
        return Path(options.out)
    said = variant.document.out
    if said is None:
        return Path(file.name)
    return Path(os.path.expanduser(said))  # noqa: PTH111 - Path raises for a user that there isn't


def one_root(file: RecipeFile, options: RunOptions) -> Path:
    """The folder that all variants share. Raises :class:`RefusedError` where they don't."""
    roots = {root_of(file, variant, options) for variant in file.variants}
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


def require_places(opened: Opened, folder: Path, outputs: Sequence[Output], before: VariantResult | None) -> None:
    """A variant's folder can be written to, lies apart from the source, and holds no evidence of anybody else.

    Raises :class:`RefusedError` and :class:`OutputError`.
    """
    standing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise OutputError(
            "nothing can be written there",
            code="not-a-folder" if not standing.is_dir() else "io",
            file=str(standing),
            expected="a folder that may be written to",
            hint="--out names another folder",
        )
    source = opened.source.folder or opened.source.file
    ours = set() if before is None else {*before.made, *(step.output for step in before.steps)}
    for place in (folder, *(output.evidence for output in outputs)):
        if source is not None and _inside(place.resolve(), source.resolve()):
            raise _apart(place, source)
    for output in outputs:
        if source is not None and _inside(source.resolve(), output.evidence.resolve()):
            raise _apart(output.evidence, source)
        for place in (folder / EVIDENCE, output.evidence):
            # A link would take what is written to wherever it leads.
            if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                raise _taken(place)
        if output.name not in ours and output.evidence.exists():
            raise _taken(output.evidence)


def _inside(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _apart(place: Path, source: Path) -> RefusedError:
    return RefusedError(
        "what is written would lie in the source, which is never written to",
        code="inside-source",
        file=str(place),
        found=str(source),
        hint="--out names another folder",
    )


def require_results(root: Path, *, recipe: str) -> None:
    """Raises :class:`RefusedError` where the results of a whole run would replace somebody else's files."""
    results, summary = root / RESULTS, root / SUMMARY
    if os.path.lexists(results) and not _is_ours(results, recipe):
        raise _taken(results)
    if os.path.lexists(summary) and not (results.exists() and summary.is_file()):
        raise _taken(summary)


def forget_results(root: Path) -> None:
    """Take an earlier run's results away: until this one ends they would be taken for its own.

    Raises :class:`OutputError`.
    """
    # The page first: without the other it would be somebody else's.
    for name in (SUMMARY, RESULTS):
        try:
            (root / name).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise output_error(error, root / name) from error


def _is_ours(path: Path, recipe: str) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and (found.get("schema"), found.get("recipe")) == (SCHEMA, recipe)


def _taken(path: Path) -> RefusedError:
    return RefusedError(
        "there is something of somebody else where this run keeps its results",
        code="output-exists",
        file=str(path),
        hint="--out names another folder; or move it away",
    )
