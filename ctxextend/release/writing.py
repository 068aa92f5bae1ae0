"""A recipe file for a checkpoint: its plan as YAML, with the arithmetic and the reasons in comments."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from ctxextend.card.markdown import one_line
from ctxextend.changes import tensor_changes_of
from ctxextend.errors import CtxextendError, RefusedError
from ctxextend.export_plan import FOLDER
from ctxextend.inspection import Inspection
from ctxextend.lab.names import BOUNDS, ORIGINAL
from ctxextend.lengths import show_bytes, show_tokens
from ctxextend.methods import METHODS, POSITION_METHODS
from ctxextend.methods.auto import TRAINING_FREE_YARN_UP_TO
from ctxextend.pipeline import Opened, plan_inspected
from ctxextend.plan import Plan, PlannedGroup
from ctxextend.recipe import Recipe
from ctxextend.release.state import write_document
from ctxextend.runtimes import GGUF_RUNTIMES
from ctxextend.scaling import LongRope
from ctxextend.version import VERSION

_WIDTH: Final = 118

#: How far a checkpoint is extended when nobody says: as far as YaRN and its like cost little without training.
SUGGESTED_FACTOR: Final = int(TRAINING_FREE_YARN_UP_TO)

#: What short texts may lose past the factor up to which methods cost little: 2 to 16 % were measured at 4x.
_SHORT_REGRESSION_FAR: Final = 0.2

#: The types that are suggested: what is written here, and what most people download.
_OUTTYPES: Final = ("q8_0", "q4_k_m")


class WrittenRecipe(Struct, frozen=True, kw_only=True):
    """What ``recipe init`` wrote: the ``path`` of the file (null: on stdout alone), and its text.

    ``plan``: the digest of the plan that the recipe comes to.
    """

    schema: str = "ctxextend.recipe-init/1"
    path: str | None
    plan: str
    recipe: str


def suggested_target(inspection: Inspection) -> int:
    """A target in tokens for a checkpoint that is given none: twice the trained length, or what it states if more."""
    return max(SUGGESTED_FACTOR * inspection.trained_context, inspection.current_context)


def recipe_for(opened: Opened, inspection: Inspection, recipe: Recipe, plan: Plan) -> str:
    """A commented recipe file that comes to ``plan``, which ``recipe`` came to on ``opened``.

    A Hub repository is pinned to the commit that was read.
    """
    parts = [
        _head(opened, inspection, plan),
        _conversion(opened, inspection, recipe, plan),
        _outputs(opened, inspection, recipe, plan),
        _quality(opened, inspection, recipe, plan),
        ["", "card: true", "# push:", "#   private: true"],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def require_free(path: Path, *, force: bool) -> None:
    """Refuse to write over what is there. Raises :class:`RefusedError`; with ``force`` only for what is no file."""
    if not os.path.lexists(path):
        return
    plain = path.is_file() and not path.is_symlink()
    if force and plain:
        return
    raise RefusedError(
        "the output exists" if plain else "what is there isn't a file, and is left alone",
        code="output-exists",
        file=str(path),
        hint="--force replaces it" if plain else "choose another place with --out",
    )


def write_recipe(path: Path, text: str, *, force: bool) -> None:
    """The recipe's text as a file, whole or not at all. Raises :class:`RefusedError` and :class:`OutputError`."""
    require_free(path, force=force)
    write_document(path, text.encode())


# Comments.


def _head(opened: Opened, inspection: Inspection, plan: Plan) -> Iterator[str]:
    name, trained, target = opened.contents.name, show_tokens(plan.trained_context), show_tokens(plan.target_context)
    if plan.target_context > plan.trained_context:
        title = f"{name} from {trained} to {target}"
        title += "." if plan.method == "none" else f" by {plan.method}."
    else:
        title = f"{name} as it was trained, for {trained}."
    yield from _comment(f"{title} Written by 'ctxextend recipe init' {VERSION}.")
    yield "#"
    yield from _comment(f"Working: {plan.arithmetic} (target / trained length, in tokens).")
    for reason in plan.reasons:
        yield from _comment(_sentence(f"Why: {reason}"))
    known = METHODS.get(plan.method) or POSITION_METHODS.get(plan.method)
    if known is not None:
        yield from _comment(f"Method: {known.summary} ({known.source}).")
    for group in plan.groups:
        yield from _comment(_change(group))
    yield from _memory(inspection, plan)
    if plan.misread:
        yield from _comment(
            f"Read otherwise by {', '.join(plan.misread)}: don't serve it there, or take another method."
        )
    for warning in plan.warnings:
        hint = "" if warning.hint is None else f" {_sentence(f'Hint: {warning.hint}')}"
        yield from _comment(f"{_sentence(f'Warning [{warning.code}]: {warning.message}')}{hint}")


def _change(group: PlannedGroup) -> str:
    count = f"{len(group.layers)} layer{'' if len(group.layers) == 1 else 's'}"
    if group.after is None:
        return f"{group.label}, {count}: no rope."
    if not group.extended:
        return f"{group.label}, {count}: the rope is kept."
    after = group.after
    scaling = after.scaling
    numbers = {name: getattr(scaling, name, None) for name in ("factor", "rope_theta")}
    said = [f"{name} {number:.10g}" for name, number in numbers.items() if number is not None]
    if isinstance(scaling, LongRope):
        said.append(f"{len(scaling.long_factor)} factors")
    said.append(f"attention factor {after.table.attention_factor:.6g}")
    return f"{group.label}, {count}: {', '.join(said)}; written as {after.encoding}."


def _memory(inspection: Inspection, plan: Plan) -> Iterator[str]:
    cache = inspection.kv_cache
    if cache is None:
        return
    length = max(plan.target_context, plan.trained_context)
    weights = f", beside {show_bytes(inspection.weight_bytes)} of weights" if inspection.weight_bytes else ""
    yield from _comment(
        f"KV cache: {show_bytes(cache.bytes_per_token)} a token, {show_bytes(cache.size_bytes(length))} for one text "
        f"of {length} tokens, at 16 bits{weights}."
    )


def _comment(text: str, indent: str = "") -> Iterator[str]:
    """Text of whatever origin as comment lines: it can't end the comment."""
    width = _WIDTH - len(indent)
    for line in textwrap.wrap(one_line(text), width, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _sentence(text: str) -> str:
    """What others say, as a sentence."""
    said = one_line(text)
    return said if said.endswith((".", "!", "?")) else f"{said}."


# The keys.


def _conversion(opened: Opened, inspection: Inspection, recipe: Recipe, plan: Plan) -> Iterator[str]:
    """What a conversion is made of; what is the default isn't written."""
    settled = _settled(opened, inspection, recipe, plan)
    values: dict[str, Any] = {"source": _source(opened)}
    if opened.source.repo_id is not None:
        values["revision"] = opened.contents.revision or opened.source.revision
    values |= {"method": settled.method, "target": _length(plan.target_context), "options": dict(settled.options)}
    default = Recipe()
    for name in ("base", "layers", "sliding_window", "fine_tune", "family", "runtimes", "carrier", "bake", "allow"):
        if getattr(recipe, name) != getattr(default, name):
            values[name] = msgspec.to_builtins(getattr(recipe, name))
    if recipe.original_context is not None:
        values["original_context"] = _length(recipe.original_context)
    for key, value in values.items():
        if value not in (None, {}):
            yield from _written(key, value)


def _source(opened: Opened) -> str:
    """The source as a recipe names it, its revision apart."""
    source = opened.source
    if source.repo_id is None:
        return source.given
    quantisation = source.gguf is not None and not source.gguf.endswith(".gguf")
    named = "" if source.gguf is None else f"{':' if quantisation else '/'}{source.gguf}"
    # What was forced to be a repository may be a folder of that name too.
    forced = "hf://" if source.given.startswith("hf://") else ""
    return f"{forced}{source.repo_id}{named}"


def _settled(opened: Opened, inspection: Inspection, recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with the method that ``auto`` chose named, where that comes to the same plan."""
    settled = msgspec.structs.replace(recipe, target=plan.target_context, factor=None)
    if recipe.method != "auto":
        return settled
    for options in ({}, plan.options):
        named = msgspec.structs.replace(settled, method=plan.method, options=dict(options))
        try:
            if plan_inspected(opened.contents, inspection, named).digest == plan.digest:
                return named
        except CtxextendError:
            continue
    return settled


def _written(key: str, value: Any, indent: str = "") -> Iterator[str]:
    """A key with its value, quoted where YAML needs it, and with what would stand for a variable taken literally."""
    parts = isinstance(value, dict | list | tuple)
    text = yaml.safe_dump(
        {key: _literal(value)},
        # Lists of scalars in one line; a lone scalar by its key.
        default_flow_style=None if parts else False,
        width=_WIDTH if parts else math.inf,
        sort_keys=False,
        allow_unicode=True,
    )
    yield from (f"{indent}{line}" for line in text.splitlines())


def _length(tokens: int) -> int | str:
    """As people write it."""
    shown = show_tokens(tokens)
    return int(shown) if shown.isdigit() else shown


def _literal(value: Any) -> Any:
    match value:
        case str():
            return value.replace("${", "$${")
        case Mapping():
            return {_literal(key): _literal(part) for key, part in value.items()}
        case list() | tuple():
            return [_literal(part) for part in value]
        case _:
            return value


# What is made of it, and what it is held to.


def _outputs(opened: Opened, inspection: Inspection, recipe: Recipe, plan: Plan) -> Iterator[str]:
    name = one_line(plan.out).replace(" ", "-")
    gguf = name.removesuffix(".gguf").removesuffix(FOLDER) + FOLDER
    yield "outputs:"
    yield f"  - to: {plan.to}"
    yield f"    # repo_id: my-org/{gguf if plan.to == 'gguf' else name}"
    if plan.to == "gguf":
        return
    wanted = msgspec.structs.replace(recipe, target=plan.target_context, factor=None, to="gguf", outtypes=_OUTTYPES)
    try:
        plan_inspected(opened.contents, inspection, wanted)
    except CtxextendError as error:
        yield from _comment(_sentence(f"Not as GGUF: {error.message}"), "  ")
        return
    yield from _comment("As GGUF too; q4_k_m needs llama-quantize on PATH:", "  ")
    yield "  # - to: gguf"
    yield f"  #   outtypes: [{', '.join(_OUTTYPES)}]"
    yield f"  #   # repo_id: my-org/{gguf}"


def _quality(opened: Opened, inspection: Inspection, recipe: Recipe, plan: Plan) -> Iterator[str]:
    readers = [name for name in plan.runtimes if plan.to != "gguf" or name.partition("@")[0] in GGUF_RUNTIMES]
    yield ""
    if readers:
        apart = f", but for {', '.join(plan.misread)}" if plan.misread else ""
        yield from _comment(f"Held to the plan in {', '.join(readers)}{apart}.")
    yield "check: true"
    try:
        from ctxextend.lab.runnable import require_next_token

        require_next_token(opened, inspection)
    except RefusedError as error:
        yield from _comment(_sentence(f"No smoke, no eval: {error.message}"))
        return
    if recipe.fine_tune:
        yield from _comment("smoke and eval come after the training, of its result.")
        return
    yield "smoke: true"
    yield from _evaluation(plan)


def _evaluation(plan: Plan) -> Iterator[str]:
    """Perplexity past the trained length, and what texts lose that the source could read."""
    extended = plan.target_context > plan.trained_context
    lengths = [plan.trained_context, plan.target_context] if extended else [plan.target_context]
    far = plan.target_context > TRAINING_FREE_YARN_UP_TO * plan.trained_context
    bounds = {"perplexity-ratio": BOUNDS["perplexity-ratio"].default} if extended else {}
    bounds["short-regression"] = _SHORT_REGRESSION_FAR if far else BOUNDS["short-regression"].default
    yield "eval:"
    # One model under two configs where that is all that differs: half the memory, and no second download.
    same = plan.to == "safetensors" and plan.position == "rope" and not tensor_changes_of(plan.actions)
    yield f"  against: {ORIGINAL if same and extended else 'source'}"
    yield from _written("lengths", [_length(length) for length in lengths], "  ")
    yield "  bounds:"
    for name, bound in bounds.items():
        kind = BOUNDS[name]
        about = "; without training, 4x cost 2 to 16 %" if name == "short-regression" and far else ""
        yield from _comment(f"At {'most' if kind.most else 'least'}: {kind.meaning}{about}.", "    ")
        yield f"    {name}: {bound:g}"
    yield from _comment("For a model that finds them within its trained length:", "    ")
    yield f"    # passkey: {BOUNDS['passkey'].default:g}"
