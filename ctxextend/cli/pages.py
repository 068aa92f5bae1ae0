"""The pages that a person reads: an inspection and a plan, drawn with Rich."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ctxextend.changes import Action, Carry, Export, Restore, Rewrite, SetKey, SetTensor
from ctxextend.cli.tensor_page import tensor_lines
from ctxextend.documents import fits, lengths_of_interest
from ctxextend.gguf_record import KEY as RECORD
from ctxextend.inspection import Group, Inspection
from ctxextend.lengths import show_bytes, show_count, show_tokens
from ctxextend.plan import Plan
from ctxextend.rope import RopeTable
from ctxextend.scaling import LongRope, Scaling, table

_BARS = "▁▂▃▄▅▆▇█"
_WIDEST = 64


def inspection_page(
    inspection: Inspection, *, target: int | None, memory_bytes: int | None, plan: Plan | None
) -> RenderableType:
    """Facts, ropes, spectrum, cache, notes."""
    parts: list[RenderableType] = [_facts(inspection)]
    if inspection.groups:
        parts.append(_ropes(inspection.groups))
    for spectrum in _spectra(inspection, plan):
        parts.append(Padding(spectrum, (1, 0, 0, 0)))
    if inspection.kv_cache is not None:
        parts.append(Padding(_cache(inspection, target, memory_bytes), (1, 0, 0, 0)))
    if plan is not None:
        parts.append(Padding(_outlook(plan), (1, 0, 0, 0)))
    parts.append(Padding(_notes(inspection), (1, 0, 0, 0)))
    return Stack(*parts)


def plan_page(plan: Plan) -> RenderableType:
    """What a plan does, to whom, and why."""
    facts = _grid()
    facts.add_row("method", f"[bold]{plan.method}[/] {escape(_options(plan))}")
    facts.add_row("factor", f"{plan.arithmetic}   (target / trained)")
    for reason in plan.reasons:
        facts.add_row("because", escape(reason))
    for group in plan.groups:
        facts.add_row(group.label, _change(plan, group.label))
    for action in plan.actions:
        made = _made(plan, action)
        if made is not None:
            facts.add_row(*map(escape, made))
    for line in tensor_lines(plan.actions):
        facts.add_row(*map(escape, line))
    facts.add_row("output", escape(plan.out))
    return facts


def _made(plan: Plan, action: Action) -> tuple[str, str] | None:
    """What an action does with weights, and how much of it."""
    match action:
        case Carry():
            count = len(action.files)
            what = "the weights" if plan.to == "gguf" and count == 1 else f"{count} file{'' if count == 1 else 's'}"
            return "carried", f"{what}, {show_bytes(action.size_bytes)}, byte for byte"
        case Rewrite():
            files = f"{len(action.files)} file{'' if len(action.files) == 1 else 's'}"
            return "rewritten", f"{files}, {show_bytes(action.size_bytes)}; tensors not named here stay byte for byte"
        case Export():
            parts = "" if action.split_max_size is None else f", in parts of {show_bytes(action.split_max_size)}"
            types = ", ".join(action.outtypes)
            return "exported", f"as {action.architecture}, {types}{parts}: about {show_bytes(action.size_bytes)}"
        case Restore():
            return "written", f"safetensors of {action.dtype}, {show_bytes(action.size_bytes)}, and the tokenizer"
        case _:
            return None


def diff_page(before: str, after: str, name: str) -> Text:
    """A unified diff of one document; long lists are cut in the middle."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{name}", f"b/{name}", lineterm="", n=1)
    text = Text()
    for line in _shortened(list(lines)):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append(line + "\n", style=style)
    return text


def keys_page(actions: Iterable[Action]) -> Text:
    """The changes of a GGUF file, in the manner of a diff; the record is only named."""
    text = Text()
    for action in actions:
        if isinstance(action, SetKey):
            name, sides = action.key, [None if side is None else side.value for side in (action.before, action.after)]
            if name == RECORD:
                sides = [None if side is None else f"({len(side)} bytes)" for side in sides]
        elif isinstance(action, SetTensor):
            name = f"tensor {action.name}"
            sides = [None if side is None else _numbers(side) for side in (action.before, action.after)]
        else:
            continue
        for mark, style, side in zip("-+", ("red", "green"), sides, strict=True):
            if side is not None:
                text.append(f"{mark} {name} = {side}\n", style=style)
    return text


def _numbers(numbers: tuple[float, ...]) -> str:
    shown = " ".join(f"{number:.6g}" for number in numbers[:4])
    return f"{len(numbers)} numbers: {shown} ... {numbers[-1]:.6g}" if len(numbers) > 4 else shown


def name_table(rows: Iterable[tuple[str, ...]], columns: tuple[str, ...]) -> Table:
    """A plain table for the listings."""
    listing = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        listing.add_column(column, no_wrap=index == 0, overflow="fold")
    for row in rows:
        listing.add_row(*(escape(cell) for cell in row))
    return listing


def describe(scaling: Scaling | None) -> str:
    """A scaling in a few words."""
    match scaling:
        case None:
            return "none"
        case LongRope():
            kind = "one list" if scaling.short_factor == scaling.long_factor else "short and long list"
            return f"longrope, {kind} of {len(scaling.long_factor)} factors"
        case _:
            tag = scaling.__struct_config__.tag
            kind = "theta" if tag == "default" else str(tag)
            numbers = {name: getattr(scaling, name, None) for name in ("factor", "rope_theta")}
            return ", ".join([kind, *(f"{name} {n:.10g}" for name, n in numbers.items() if n is not None)])


def _facts(inspection: Inspection) -> Table:
    facts = _grid()
    kind = inspection.model_type or "?"
    family = "" if kind == inspection.family.name else f", read as {inspection.family.name}"
    facts.add_row("model", f"[bold]{escape(inspection.name)}[/]  ({escape(kind)}{family})")
    parameters = "?" if inspection.parameters is None else show_count(inspection.parameters)
    dtypes = ", ".join(inspection.dtypes) or inspection.format
    scheme = inspection.quantisation
    if scheme is not None:
        dtypes += f"; {scheme.method}" + (f" {scheme.bits} bit" if scheme.bits else "")
    tied = ", tied embeddings" if inspection.tied_embeddings else ""
    weights = f"{parameters} parameters, {show_bytes(inspection.weight_bytes)} ({dtypes}){tied}"
    facts.add_row("weights", "none in this place" if inspection.format == "none" else weights)
    facts.add_row("positions", inspection.position)
    trained = f"[bold]{inspection.trained_context}[/] tokens trained"
    facts.add_row("context", f"{trained}, {inspection.current_context} as the config stands")
    return facts


def _ropes(groups: tuple[Group, ...]) -> Table:
    listing = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("layers", "count", "theta", "rotary", "window", "scaling", "origin"):
        listing.add_column(column)
    for group in groups:
        spec = group.spec
        rotary = "no rope" if spec is None else f"{spec.rotary_dim} of {spec.head_dim}"
        listing.add_row(
            group.label,
            str(len(group.layers)),
            "" if spec is None else f"{spec.rope_theta:.10g}",
            rotary,
            "" if group.window is None else show_tokens(group.window),
            describe(group.scaling),
            group.origin or "",
        )
    return listing


def _spectra(inspection: Inspection, plan: Plan | None) -> Iterable[Text]:
    after = {g.label: g.after.table for g in plan.groups if g.extended and g.after} if plan else {}
    for group in inspection.groups:
        if group.spec is None or not group.extendable:
            continue
        now = table(group.spec, group.scaling, length=inspection.current_context)
        if group.origin == "ours" and group.base is not None:
            yield spectrum(group.label, group.base.table(), now, trained=inspection.trained_context)
        else:
            yield spectrum(group.label, now, after.get(group.label), trained=inspection.trained_context)


def spectrum(label: str, before: RopeTable, after: RopeTable | None, *, trained: int) -> Text:
    """Wavelengths by pair, fast to slow, and how much slower each pair turns afterwards."""
    text = Text()
    text.append(f"{label}: ", style="bold")
    full = sum(1 for f in before.inv_freq if f * trained >= 2.0 * math.pi)
    text.append(f"{full} of {len(before.inv_freq)} pairs turn fully within {trained} tokens\n")
    waves = [math.log(2.0 * math.pi / f) if f > 0 else None for f in before.inv_freq]
    later = [math.log(2.0 * math.pi / f) if f > 0 else None for f in after.inv_freq] if after else []
    known = [wave for wave in (*waves, *later) if wave is not None]
    low, high = min(known), max(known)
    rows = [("wavelength", waves)] + ([("after", later)] if after else [])
    for name, row in rows:
        turning = [wave for wave in row if wave is not None]
        text.append(f"{name:>11} ")
        text.append(_sparkline(row, low, high), style="cyan" if name != "after" else "green")
        text.append(f"  {math.exp(min(turning)):.3g} to {math.exp(max(turning)):.3g} tokens\n")
    if after is not None:
        ratios = [a / b if b > 0 else 1.0 for a, b in zip(before.inv_freq, after.inv_freq, strict=True)]
        text.append(f"{'slowed':>11} ")
        text.append(_sparkline([math.log(max(r, 1e-9)) for r in ratios], 0.0, math.log(max(2.0, *ratios))), "green")
        text.append(f"  {min(ratios):.3g} to {max(ratios):.3g} times")
        if after.attention_factor != 1.0:
            text.append(f"; attention factor {after.attention_factor:.5g}")
    text.rstrip()
    return text


def _sparkline(values: list[float | None] | list[float], low: float, high: float) -> str:
    step = max(1, math.ceil(len(values) / _WIDEST))
    span = (high - low) or 1.0
    cells = []
    for value in values[::step]:
        level = 0.0 if value is None else (value - low) / span
        cells.append(" " if value is None else _BARS[min(max(round(level * 7), 0), 7)])
    return "".join(cells)


def _cache(inspection: Inspection, target: int | None, memory_bytes: int | None) -> Stack:
    cache = inspection.kv_cache
    assert cache is not None
    listing = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("KV cache at", "16 bit", "8 bit", "with the weights"):
        listing.add_column(column, justify="left" if column.startswith("KV") else "right")
    for length in lengths_of_interest(inspection, target):
        size = cache.size_bytes(length)
        listing.add_row(
            f"{length} tokens",
            show_bytes(size),
            show_bytes(cache.size_bytes(length, bits=8)),
            show_bytes(size + inspection.weight_bytes),
        )
    parts: list[RenderableType] = [listing]
    if memory_bytes is not None:
        longest = fits(inspection, memory_bytes).context
        parts.append(f"in {show_bytes(memory_bytes)}: {longest} tokens fit beside the weights (16 bit cache)")
    return Stack(*parts)


def _outlook(plan: Plan) -> Table:
    outlook = _grid()
    outlook.add_row(f"to {show_tokens(plan.target_context)}", f"{plan.method}: {plan.arithmetic}")
    for reason in plan.reasons:
        outlook.add_row("because", escape(reason))
    return outlook


def _notes(inspection: Inspection) -> Table:
    notes = _grid()
    for note in inspection.notes:
        notes.add_row(note.code, escape(note.message))
    return notes


def _change(plan: Plan, label: str) -> str:
    group = next(group for group in plan.groups if group.label == label)
    count = f"{len(group.layers)} layers: "
    if group.before is None or group.after is None:
        return count + "no rope"
    if not group.extended:
        return count + f"kept ({describe(group.before.scaling)})"
    after = group.after
    factor = f", attention factor {after.table.attention_factor:.6g}"
    if group.folded is not None:
        factor += f" ({group.folded.attention_factor:.6g} in the weights)"
    return f"{count}{describe(group.before.scaling)} -> {describe(after.scaling)}{factor}; written as {after.encoding}"


def _options(plan: Plan) -> str:
    return "(" + ", ".join(f"{k}={v}" for k, v in plan.options.items()) + ")" if plan.options else ""


def _shortened(lines: list[str]) -> list[str]:
    """Runs of more than eight lines that only list numbers are cut to their ends."""
    kept: list[str] = []
    run: list[str] = []
    for line in [*lines, ""]:
        body = line[1:].strip().rstrip(",")
        if line and body.replace(".", "", 1).replace("e-", "", 1).isdigit():
            run.append(line)
            continue
        kept += run if len(run) <= 8 else [*run[:2], f"{run[0][0]} ... {len(run) - 4} more numbers", *run[-2:]]
        run = []
        kept.append(line)
    return kept[:-1]


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
