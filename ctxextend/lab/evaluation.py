"""``eval``: how good a model is along its context, measured cell by cell and added up.

What is to be measured is laid out first, with its cost; a folder keeps every result as it comes, and a run
that was cut short goes on from there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from ctxextend.errors import RefusedError, UsageError
from ctxextend.gguf_record import find_gguf_record
from ctxextend.inspection import Inspection
from ctxextend.lab import positions, retrieval, ruler
from ctxextend.lab.engines import Choice
from ctxextend.lab.engines.base import Engine, EngineFacts
from ctxextend.lab.gates import Measured, held
from ctxextend.lab.ledger import Ledger
from ctxextend.lab.names import RetrievalTask, Task
from ctxextend.lab.results import (
    Cell,
    Cost,
    Curve,
    Evaluation,
    MemoryAt,
    PositionCell,
    PositionResult,
    Rate,
    Result,
    RetrievalCell,
    RetrievalResult,
    Settings,
    Short,
    ShortCell,
    ShortResult,
    Sliding,
    SlidingCell,
    SlidingResult,
    Spectrum,
    Text,
)
from ctxextend.lab.texts import Document
from ctxextend.pipeline import Opened
from ctxextend.plan import source_sha256
from ctxextend.scaling import table
from ctxextend.version import VERSION

#: Called with the name of what was measured and the tokens that it was to read; not for what was there already.
Progress = Callable[[str, int], None]

#: Bytes of each of the samples by which weights are told from others.
_SAMPLE: Final = 1 << 16

#: Beside the weights and config.json, what decides the tokens of a text.
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")

#: Tasks that read documents, and so need one that is long enough.
_READING: Final[frozenset[Task]] = frozenset({"perplexity", "sliding", "short"})


class Encoder(Protocol):
    """What turns texts into tokens: an engine, or a tokenizer alone."""

    def encode(self, text: str) -> list[int]: ...


class Material(Struct, frozen=True, kw_only=True):
    """The documents in the model's tokens, without special ones."""

    texts: tuple[Text, ...]
    tokens: Mapping[str, Sequence[int]]


class Summary(Struct, frozen=True, kw_only=True):
    """What the results of one model add up to."""

    curves: tuple[Curve, ...]
    sliding: tuple[Sliding, ...]
    rates: tuple[Rate, ...]
    short: tuple[Short, ...]


def material(encoder: Encoder, documents: Iterable[Document]) -> Material:
    """Every document, tokenised once."""
    tokens = {document.name: encoder.encode(document.text) for document in documents}
    return Material(
        texts=tuple(Text(name=d.name, sha256=d.sha256, tokens=len(tokens[d.name])) for d in documents), tokens=tokens
    )


def cells_of(settings: Settings, found: Material, *, trained: int) -> tuple[Cell, ...]:
    """What is to be measured, in the order that rereads least.

    Raises :class:`UsageError` where a length has no document that fills it.
    """
    longest = max((text.tokens for text in found.texts), default=0)
    needed = max(
        (
            length
            for task, lengths in (
                ("perplexity", settings.lengths),
                ("sliding", settings.lengths),
                ("short", settings.short_lengths),
            )
            if task in settings.tasks
            for length in lengths
        ),
        default=0,
    )
    if needed > longest:
        raise UsageError(
            "no text is long enough for this length",
            code="short-text",
            key="--text",
            expected=f"{needed} tokens",
            found=f"{longest} in the longest of {len(found.texts)}",
            hint="--text FILE takes a longer one; or a shorter --lengths",
        )
    makers: Mapping[Task, Callable[[], Sequence[Cell]]] = {
        "perplexity": lambda: positions.position_cells(settings, found.tokens, trained=trained),
        "sliding": lambda: positions.sliding_cells(settings, found.tokens),
        "short": lambda: positions.short_cells(settings, found.tokens),
        "passkey": lambda: retrieval.passkey_cells(settings),
        "needles": lambda: retrieval.needle_cells(settings),
        "variables": lambda: ruler.variables_cells(settings),
        "words": lambda: ruler.words_cells(settings),
    }
    return tuple(cell for task in settings.tasks for cell in makers[task]())


def run(
    engine: Engine,
    against: Engine | None,
    cells: Iterable[Cell],
    *,
    found: Material,
    settings: Settings,
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Measure every cell that the ledger doesn't have yet, and keep what each took of both models.

    Raises :class:`UsageError` before the first where a length is too short for a question.
    """
    cells = tuple(cells)
    shortest: dict[RetrievalTask, RetrievalCell] = {}
    for cell in cells:
        if isinstance(cell, RetrievalCell) and cell.length < getattr(shortest.get(cell.kind), "length", math.inf):
            shortest[cell.kind] = cell
    for kind, cell in shortest.items():
        retrieval.PROMPTS[kind](engine, cell, settings, found.tokens)
    ledger.begin()
    engines = (engine,) if against is None or against is engine else (engine, against)
    for cell in cells:
        if cell in ledger:
            continue
        before = [one.usage for one in engines]
        result = _measure(engine, against, cell, found=found, settings=settings)
        after = [one.usage for one in engines]
        ledger.add(
            result,
            tokens=sum(usage.tokens for usage in after) - sum(usage.tokens for usage in before),
            seconds=sum(usage.seconds for usage in after) - sum(usage.seconds for usage in before),
        )
        progress(name_of(cell), positions.tokens_of(cell))


def _measure(engine: Engine, against: Engine | None, cell: Cell, *, found: Material, settings: Settings) -> Result:
    match cell:
        case PositionCell():
            return positions.measure_position(engine, found.tokens, cell)
        case SlidingCell():
            return positions.measure_sliding(engine, found.tokens, cell)
        case ShortCell():
            assert against is not None
            return positions.measure_short(engine, against, found.tokens, cell)
        case RetrievalCell():
            return retrieval.measure_retrieval(engine, cell, settings, found.tokens)


def flops_of(cell: Cell, inspection: Inspection) -> float | None:
    """The operations that reading a cell takes: two a weight and token, four a pair of tokens and attention width.

    None where the number of weights isn't known. Experts that aren't chosen count as if they were.
    """
    if inspection.parameters is None:
        return None
    once = _flops(cell.length, inspection)
    match cell:
        case ShortCell():
            return 2.0 * once
        case PositionCell():
            again = 2.0 * max(0, cell.length - cell.trained) / max(cell.trained, 1)
            return once + again * _flops(cell.trained, inspection)
        case _:
            return once


def _flops(length: int, inspection: Inspection) -> float:
    """Of one reading of ``length`` tokens."""
    widths = sum(
        len(group.layers) * _attention_width(inspection) * min(1.0, 2.0 * (group.window or length) / length)
        for group in inspection.groups
    )
    return 2.0 * (inspection.parameters or 0) * length + 2.0 * widths * length * length


def _attention_width(inspection: Inspection) -> int:
    """Query heads times their size, which is about the hidden size where nothing tells."""
    text = inspection.rope.text if inspection.rope is not None else inspection.config
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    sizes = [group.spec.head_dim for group in inspection.groups if group.spec is not None]
    if isinstance(heads, int) and sizes:
        return heads * sizes[0]
    return hidden if isinstance(hidden, int) else 0


def name_of(cell: Cell) -> str:
    """A cell as progress shows it."""
    match cell:
        case RetrievalCell():
            depth = "" if cell.depth is None else f" at {cell.depth:.0%}"
            return f"{cell.kind} {cell.length}{depth}"
        case ShortCell():
            return f"against {cell.length}"
        case SlidingCell():
            return f"sliding {cell.length}"
        case PositionCell():
            return f"{cell.document} {cell.length}"


def summary(results: Iterable[Result], settings: Settings) -> Summary:
    """What results add up to, by length."""
    everything = tuple(results)
    read = [r for r in everything if isinstance(r, PositionResult)]
    slid = [r for r in everything if isinstance(r, SlidingResult)]
    held_against = [r for r in everything if isinstance(r, ShortResult)]
    return Summary(
        curves=tuple(
            positions.curve(read, length=length)
            for length in settings.lengths
            if any(r.cell.length == length for r in read)
        ),
        sliding=tuple(
            positions.sliding(slid, length=length)
            for length in settings.lengths
            if any(r.cell.length == length for r in slid)
        ),
        rates=retrieval.rates([r for r in everything if isinstance(r, RetrievalResult)]),
        short=tuple(
            positions.short(held_against, length=length)
            for length in settings.short_lengths
            if any(r.cell.length == length for r in held_against)
        ),
    )


def identity(
    opened: Opened,
    facts: EngineFacts | None,
    found: Material,
    settings: Settings,
    *,
    against: Opened | None,
    original: bool = False,
    choice: Choice | None = None,
) -> dict[str, Any]:
    """What decides the numbers of a cell, for the ledger's header.

    Without ``facts`` (the model isn't loaded) what only a loaded model tells is left out.
    """
    choice = choice or Choice()
    return {
        "ctxextend": ".".join(VERSION.split(".")[:2]),
        "checkpoint": fingerprint(opened),
        "against": "original" if original else None if against is None else fingerprint(against),
        **(_chosen(choice) if facts is None else _running(facts)),
        "endpoint": None if choice.endpoint is None else _address(choice.endpoint),
        "served_name": choice.served_name,
        "tokenizer": None if choice.tokenizer is None else _sha256(choice.tokenizer),
        "texts": [[text.name, text.sha256, text.tokens] for text in found.texts],
        "seed": settings.seed,
        "needles": settings.needles,
    }


def _running(facts: EngineFacts) -> dict[str, Any]:
    return {
        "engine": facts.engine,
        "engine_version": facts.version,
        "device": facts.device,
        "dtype": facts.dtype,
        "opening": list(facts.opening),
    }


def _chosen(choice: Choice) -> dict[str, Any]:
    """What is known of that before the model is loaded: what isn't left to it."""
    return {} if choice.dtype == "auto" else {"dtype": choice.dtype}


def _address(url: str) -> str:
    """A server's address without a name, password or key that may stand in it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def fingerprint(opened: Opened) -> str:
    """What tells a checkpoint from another, from all that decides its numbers.

    Its settings and revision, its tokenizer (a GGUF file's whole header), and of each weight file here its size and
    three samples.
    """
    contents = opened.contents
    digest = hashlib.sha256(f"{source_sha256(contents)} {contents.revision}".encode())
    folder = opened.source.folder or (opened.source.file.parent if opened.source.file is not None else None)
    for tokenizer in () if opened.source.folder is None else (opened.source.folder / name for name in _TOKENIZERS):
        digest.update(f"{tokenizer.name} {_sha256(tokenizer) if tokenizer.is_file() else None}\n".encode())
    for file in sorted(contents.files, key=lambda file: file.path):
        if not file.path.endswith((".safetensors", ".gguf", ".bin")):
            continue
        digest.update(f"{file.path} {file.size_bytes}\n".encode())
        if folder is not None:
            header = contents.gguf.data_start if contents.gguf is not None and contents.gguf.file == file.path else 0
            with (folder / file.path).open("rb") as weights:
                for start in (0, file.size_bytes // 2, max(0, file.size_bytes - _SAMPLE)):
                    weights.seek(start)
                    digest.update(weights.read(_SAMPLE if start else max(_SAMPLE, header)))
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def default_lengths(inspection: Inspection) -> tuple[int, ...]:
    """The trained length and the one that the checkpoint states, each once."""
    return tuple(sorted({inspection.trained_context, max(inspection.current_context, inspection.trained_context)}))


def default_short(trained: int) -> tuple[int, ...]:
    """Lengths at which a model is held against its original: a quarter of the trained one, and it, up to 8192."""
    longest = min(trained, 8192)
    return tuple(sorted({max(longest // 4, 1), longest}))


def require_short(engine: Engine, against: Engine) -> None:
    """Raises :class:`RefusedError` where two engines can't be held against each other token by token."""
    for one in (engine, against):
        if "log_probs" not in one.facts.can:
            raise RefusedError(
                "this engine gives no distributions, which holding one model against another needs",
                code="no-logprobs",
                key="--against",
                found=one.facts.engine,
                hint="--engine transformers, or llama.cpp with GGUF files; or leave --against away",
            )
    for what, ours, theirs in (
        ("vocabulary", f"{engine.facts.vocabulary} tokens", f"{against.facts.vocabulary} tokens"),
        ("tokens before a text", str(list(engine.facts.opening)), str(list(against.facts.opening))),
    ):
        if ours != theirs:
            raise RefusedError(
                f"the two models don't share their {what}, so that their predictions can't be held against each other",
                code="unlike-models",
                key="--against",
                expected=theirs,
                found=ours,
                hint="--against takes the checkpoint that this one was made of",
            )


def spectra(inspection: Inspection, *, length: int) -> tuple[Spectrum, ...]:
    """Each group's frequencies at ``length`` tokens, as it is and as it was trained."""
    return tuple(
        Spectrum(
            label=group.label,
            length=length,
            inv_freq=(now := table(group.spec, group.scaling, length=length)).inv_freq,
            base=group.base.table().inv_freq if group.base is not None else now.inv_freq,
            attention_factor=now.attention_factor,
        )
        for group in inspection.groups
        if group.spec is not None
    )


def memory_at(inspection: Inspection, lengths: Iterable[int]) -> tuple[MemoryAt, ...]:
    """The KV cache at lengths, at 16 bits; empty where the cache isn't known."""
    cache = inspection.kv_cache
    if cache is None:
        return ()
    return tuple(MemoryAt(length=n, kv_cache_bytes=cache.size_bytes(n)) for n in lengths)


def spent(ledger: Ledger, cells: Iterable[Cell], engine: Engine) -> Cost:
    """What all these cells took, in this run or an earlier one. The memory is this run's."""
    entries = [ledger.entries[cell] for cell in cells]
    tokens, seconds = sum(entry.tokens for entry in entries), math.fsum(entry.seconds for entry in entries)
    return Cost(
        cells=len(entries),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        peak_memory_bytes=engine.usage.peak_memory_bytes,
    )


def method_of(opened: Opened, inspection: Inspection) -> str | None:
    """The method of the conversion of ours that a checkpoint records, if there was one."""
    gguf = opened.contents.gguf
    record = inspection.record if gguf is None else find_gguf_record(gguf)
    return None if record is None else record.method


def evaluation(
    inspection: Inspection,
    engine: Engine,
    *,
    method: str | None,
    against: str | None,
    settings: Settings,
    found: Material,
    ledger: Ledger,
    cells: Iterable[Cell],
    bounds: Callable[[Measured], Mapping[str, float]],
    notes: tuple[str, ...] = (),
) -> Evaluation:
    """The document of a run. ``bounds``: from what was measured, the bounds to hold it to."""
    measured_cells = tuple(cells)
    told = summary((ledger.entries[cell].result for cell in measured_cells), settings)
    measured = Measured(curves=told.curves, rates=told.rates, short=told.short)
    gates = held(measured, bounds(measured))
    lengths = sorted({*settings.lengths, inspection.trained_context})
    return Evaluation(
        version=VERSION,
        ok=all(gate.ok for gate in gates),
        source=inspection.source,
        against=against,
        method=method,
        trained_context=inspection.trained_context,
        current_context=inspection.current_context,
        engine=engine.facts,
        settings=settings,
        texts=found.texts,
        curves=told.curves,
        sliding=told.sliding,
        rates=told.rates,
        short=told.short,
        gates=gates,
        spectrum=spectra(inspection, length=max(lengths)),
        memory=memory_at(inspection, lengths),
        cost=spent(ledger, measured_cells, engine),
        notes=notes,
    )
