"""The report of ``eval`` and ``compare``: one page that stands alone, its charts as PNG, and the JSON behind it.

The page is for whoever decides whether to publish: what was measured and whether the gates hold, the few figures
that matter, charts that each say what they show, every number as a table, and how it was measured. It loads nothing:
its content security policy forbids it, and every string of the document is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from ctxextend.errors import OutputError
from ctxextend.lab.charts import NARROW, NOTHING, WIDE, require_matplotlib, to_png, to_svg
from ctxextend.lab.report_figures import Exhibit, at_a_glance, exhibits
from ctxextend.lab.report_folder import CHARTS, PAGE, holds_report
from ctxextend.lab.report_style import STYLE
from ctxextend.lab.report_tables import Table
from ctxextend.lab.report_words import (
    KINDS,
    TIMES,
    bound_words,
    by_overall,
    gate_words,
    longest_curve,
    method_label,
    show_change,
    show_factor,
    show_perplexity,
    show_ratio,
    show_seconds,
    show_share,
    verdict,
)
from ctxextend.lab.results import Comparison, Evaluation, Gate, Settings, Text
from ctxextend.lengths import show_bytes, show_count, show_tokens
from ctxextend.tensors.staging import staged_data

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def write_report(folder: Path, document: Evaluation | Comparison) -> tuple[Path, ...]:
    """Writes ``report.html``, a PNG a chart, and ``eval.json`` or ``compare.json``; their paths, the page first.

    Each file appears whole, under its name at once. Raises :class:`MissingExtraError` before anything is written
    where matplotlib isn't installed, and :class:`OutputError` when a file can't be written.
    """
    require_matplotlib()
    shown = exhibits(document)
    # First the numbers: by them the rest is known as ours, whatever ends this.
    files = {_data_name(document): _json(document), PAGE: report_page(document, shown).encode()}
    for exhibit in shown:
        if exhibit.draw is not None:
            files[f"{exhibit.name}.png"] = to_png(exhibit.draw, f"{_title(document)}: {exhibit.title}")
    try:
        older = [f"{name}.png" for name in CHARTS] if holds_report(folder) else []
        for name, data in files.items():
            with staged_data(folder / name, data):
                pass
        for name in older:
            # A chart of an earlier report must not stand beside newer numbers.
            if name not in files:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            "the report can't be written",
            code="write-failed",
            file=str(folder),
            found=error.strerror or str(error),
            hint="--report DIR names another folder",
        ) from error
    return tuple(folder / name for name in sorted(files, key=lambda name: name != PAGE))


def report_page(document: Evaluation | Comparison, shown: Iterable[Exhibit]) -> str:
    """The page as one HTML document."""
    shown = tuple(shown)
    kind = "Evaluation of an extended context" if isinstance(document, Evaluation) else "Methods compared"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{_text(_title(document))}: {kind.lower()}</title>",
        f"<style>{STYLE}</style></head><body><main>",
        f'<header><p class="kind">{kind}</p><h1>{_name(document.source)}</h1>',
        *(_evaluation_head(document) if isinstance(document, Evaluation) else _comparison_head(document)),
        "</header>",
        *(_section(exhibit) for exhibit in shown),
        '<section aria-labelledby="numbers"><h2 id="numbers">The numbers</h2>',
        "<p>Everything the charts show, and more. Lengths and positions count tokens; 8k is 8192.</p>",
        *_numbers(document, shown),
        "</section>",
        *_how(document),
        _footer(document),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _footer(document: Evaluation | Comparison) -> str:
    made = f"Made by ctxextend {_text(document.version)}."
    return f"<footer>{made} The same numbers for programs: <code>{_data_name(document)}</code>.</footer>"


def _data_name(document: Evaluation | Comparison) -> str:
    return "eval.json" if isinstance(document, Evaluation) else "compare.json"


def _text(value: object) -> str:
    """Escaped for text and attributes; a number stays with its percent sign."""
    return html.escape(str(value)).replace(" %", "&nbsp;%")


def _name(value: str) -> str:
    """A model's name, which may break where it is joined rather than anywhere."""
    return re.sub(r"([/_-])", r"\1<wbr>", _text(value))


def _title(document: Evaluation | Comparison) -> str:
    """The source's last part: a path or a repository's name may be long."""
    return document.source.rstrip("/").rsplit("/", 1)[-1] or document.source


def _json(document: Evaluation | Comparison) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=2) + b"\n"


def _evaluation_head(document: Evaluation) -> list[str]:
    trained, current = document.trained_context, document.current_context
    lead = f"Trained for {trained} tokens, set for {current}"
    lead += f" ({show_factor(current / trained)})" if current != trained else ""
    lead += f" with {document.method}" if document.method else ""
    read = max((curve.length for curve in document.curves), default=0)
    lead += f"; read to {read} tokens" if read else ""
    lead += f"; held against {document.against}" if document.against else ""
    tone = "" if not document.gates else "good" if document.ok else "bad"
    gates = "".join(map(_gate, sorted(document.gates, key=lambda gate: gate.ok)))
    return [
        f'<p class="lead">{_text(lead)}.</p>',
        f'<div class="verdict {tone}"><strong>{_text(verdict(document))}</strong>',
        f"<ul>{gates}</ul></div>" if gates else "</div>",
        *_tiles(_evaluation_figures(document)),
    ]


def _gate(gate: Gate) -> str:
    word, tone = (
        ("missed", "bad") if not gate.ok else (NOTHING, "none") if gate.measured is None else ("passed", "good")
    )
    return f'<li><span class="word {tone}">{word}</span>{_text(gate_words(gate))}</li>'


def _evaluation_figures(document: Evaluation) -> list[tuple[str, str, str]]:
    """(what, number, where): perplexity past the trained length, each task at its longest, short contexts, memory."""
    made = []
    curve = longest_curve(document.curves)
    if curve is not None and curve.ratio is not None:
        where = (
            f"to {show_tokens(curve.length)}, over the same text read within {show_tokens(document.trained_context)}"
        )
        made.append(("perplexity past the trained length", f"{show_ratio(curve.ratio)}{TIMES}", where))
    elif curve is not None:
        made.append(("perplexity", show_perplexity(curve.whole), f"at {show_tokens(curve.length)}"))
    overall = by_overall(document.rates)
    for kind, name in KINDS.items():
        lengths = [length for each, length in overall if each == kind]
        if lengths and len(made) < 3:
            found = overall[kind, max(lengths)]
            where = f"{found.found} of {found.asked} at {show_tokens(max(lengths))}"
            made.append((name, show_share(found.rate), where))
    if document.short:
        worst = max(document.short, key=lambda short: short.regression)
        where = f"perplexity at {show_tokens(worst.length)}, KL {worst.kl:.2g}"
        made.append(("short contexts, at worst", show_change(worst.regression), where))
    if document.memory and len(made) < 4:
        last = max(document.memory, key=lambda memory: memory.length)
        made.append(("KV cache", show_bytes(last.kv_cache_bytes), f"at {show_tokens(last.length)}"))
    return made


def _comparison_head(document: Comparison) -> list[str]:
    names = [candidate for candidate in document.candidates if candidate.refused is None]
    lead = f"Trained for {document.trained_context} tokens; {len(names)} of {len(document.candidates)} candidates"
    lead += " measured, in one run on the same texts"
    best = "".join(
        f'<li><span class="word good">{show_tokens(each.length)}</span>'
        f"<b>{_text(method_label(each.method, each.factor))}</b>: {_text(each.reason)}</li>"
        for each in sorted(document.best, key=lambda each: each.length)
    )
    ship = "Which to ship, by the length to reach" if best else "No method can be named for a longer context."
    refused = [
        f"<li>{_text(method_label(candidate.method, candidate.factor))}: {_text(candidate.refused)}</li>"
        for candidate in document.candidates
        if candidate.refused is not None
    ]
    return [
        f'<p class="lead">{_text(lead)}.</p>',
        f'<div class="verdict {"good" if best else ""}"><strong>{ship}</strong>',
        f"<ul>{best}</ul></div>" if best else "</div>",
        _table(at_a_glance(document)) if names else "",
        f"<h3>Not measured</h3><ul>{''.join(refused)}</ul>" if refused else "",
    ]


def _tiles(figures: Iterable[tuple[str, str, str]]) -> list[str]:
    tiles = "".join(
        f"<div><dt>{_text(what)}</dt><dd>{_text(number)}</dd><dd>{_text(where)}</dd></div>"
        for what, number, where in figures
    )
    return [f'<dl class="figures">{tiles}</dl>'] if tiles else []


def _section(exhibit: Exhibit) -> str:
    head = f'<section aria-labelledby="{exhibit.name}"><h2 id="{exhibit.name}">{_text(exhibit.title)}</h2>'
    head += f"<p>{_text(exhibit.reading)}</p>"
    if exhibit.draw is None:
        return f"{head}</section>"
    described = f"{exhibit.title}. {exhibit.reading} The numbers stand in a table below."
    drawn = "".join(
        to_svg(exhibit.draw, name=exhibit.name, width=width, description=described) for width in (WIDE, NARROW)
    )
    return f"{head}<figure>{drawn}</figure></section>"


def _numbers(document: Evaluation | Comparison, shown: Iterable[Exhibit]) -> list[str]:
    made = []
    if isinstance(document, Evaluation) and document.gates:
        rows = tuple(
            (
                gate.name,
                bound_words(gate),
                NOTHING if gate.measured is None else f"{gate.measured:.6g}",
                "passed" if gate.ok and gate.measured is not None else "not measured" if gate.ok else "missed",
                gate.where,
            )
            for gate in document.gates
        )
        columns = ("gate", "bound", "measured", "verdict", "where")
        made.append(_table(Table(caption="Gates", columns=columns, rows=rows, words=(1, 3, 4))))
    for exhibit in shown:
        made += [f"<h3>{_text(exhibit.title)}</h3>", *map(_table, exhibit.tables)]
    return made


def _table(table: Table) -> str:
    """A table in a box of its own that scrolls, which the keyboard can reach; a long one folds."""
    caption = _text(table.caption)
    kinds = [' class="words"' if number in table.words else "" for number in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{kind}>{_text(column)}</th>' for kind, column in zip(kinds, table.columns, strict=True)
    )
    rows = ""
    for row in table.rows:
        cells = "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True))
        rows += f'<tr><th scope="row">{_text(row[0])}</th>{cells}</tr>'
    box = (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table aria-label="{caption}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    if table.folded:
        return f"<details><summary>{caption}</summary>{box}</details>"
    return f'<p class="caption">{caption}</p>{box}'


def _how(document: Evaluation | Comparison) -> list[str]:
    engine, cost = document.engine, document.cost
    facts = [
        ("engine", f"{engine.engine} {engine.version}"),
        ("device", f"{engine.device}, {engine.dtype}"),
        ("weights", "not told by the engine" if engine.weight_bytes is None else show_bytes(engine.weight_bytes)),
        *_settings(document.settings),
        ("cost", f"{cost.cells} measurements, {show_count(cost.tokens)} tokens read in {show_seconds(cost.seconds)}"),
        ("speed", f"{cost.tokens_per_second:.4g} tokens a second"),
    ]
    if cost.peak_memory_bytes is not None:
        facts.append(("peak memory", show_bytes(cost.peak_memory_bytes)))
    if engine.opening:
        facts.append(
            ("opening", f"token{'s' if len(engine.opening) > 1 else ''} {', '.join(map(str, engine.opening))}")
        )
    listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    notes = "".join(f"<li>{_text(note)}</li>" for note in document.notes)
    return [
        '<section aria-labelledby="how"><h2 id="how">How it was measured</h2>',
        f'<dl class="how">{listed}{_texts(document.texts)}</dl>',
        f"<h3>Notes</h3><ul>{notes}</ul>" if notes else "",
        "</section>",
    ]


def _texts(texts: Iterable[Text]) -> str:
    return "".join(
        f"<dt>text</dt><dd>{_text(text.name)}, {text.tokens} tokens<br><code>sha256 {_text(text.sha256)}</code></dd>"
        for text in texts
    )


def _settings(settings: Settings) -> list[tuple[str, str]]:
    """What decides the numbers, by the names of the options."""
    made = [
        ("tasks", ", ".join(settings.tasks)),
        ("lengths", ", ".join(map(show_tokens, settings.lengths))),
        ("short lengths", ", ".join(map(show_tokens, settings.short_lengths)) or NOTHING),
        ("windows", f"at most {settings.windows} of a text at a length"),
        ("depths", ", ".join(f"{100 * depth:.3g} %" for depth in settings.depths)),
        ("samples", f"{settings.samples} for each length and depth"),
        ("needles", f"{settings.needles} in a prompt"),
        ("seed", str(settings.seed)),
    ]
    return made + ([("stride", f"{settings.stride} tokens")] if "sliding" in settings.tasks else [])
