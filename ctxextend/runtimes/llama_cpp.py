"""How llama.cpp reads a rope from a GGUF file, and Ollama, which runs llama.cpp behind its own metadata fixes.

Source: llama.cpp b11434: ``src/llama-model.cpp`` (load_hparams, get_rope_freq_base, get_rope_freq_scale,
get_rope_factors), ``src/llama-context.cpp`` (the constructor), ``src/llama-model-loader.cpp`` (types of keys,
number of tensors), ``ggml/src/ggml-cpu/ops.cpp`` (rope_yarn), ``ggml/src/ggml.c`` (ggml_rope_yarn_corr_dims).
Run as b11549 for the architectures of tests/reference/test_llama_cpp.py. LM Studio runs the same library; what
it does beside it was not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

import msgspec
from msgspec import Struct

from ctxextend.contents import Gguf, GgufType, GgufValue
from ctxextend.formats.gguf_architectures import UNREAD, WHOLE_HEADS, GgufArchitecture, Sliding
from ctxextend.formats.gguf_keys import (
    ALPHA,
    ATTENTION,
    BETA_FAST,
    BETA_SLOW,
    CONTEXT,
    DEFAULT_TYPE,
    EXTRAPOLATION,
    FACTOR,
    FINETUNED,
    FREQS,
    LOG_MULTIPLIER,
    LONG,
    OLD_FACTOR,
    ORIGINAL,
    SHORT,
    SLIDING_THETA,
    THETA,
    TYPE,
    TYPES,
    WINDOW,
    YARN_ATTENTION,
    Keys,
    divide,
    find_architecture,
    geometry,
    has_sliding,
)
from ctxextend.formats.hf_layers import SLIDING
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.base import Evidence, Reading, answered, serve_command
from ctxextend.runtimes.gguf_base import GgufReader
from ctxextend.scaling import Linear, Yarn, mscale, table

#: A context is rounded up to a multiple of this before it is compared with the original length.
PADDING: Final = 256

#: The types that the loader insists on, for the keys that it reads of every architecture.
_KEY_TYPES: Final[Mapping[str, GgufType]] = {
    CONTEXT: "UINT32",
    "embedding_length": "UINT32",
    "block_count": "UINT32",
    "attention.key_length": "UINT32",
    "attention.key_length_swa": "UINT32",
    "rope.dimension_count": "UINT32",
    "rope.dimension_count_swa": "UINT32",
    ORIGINAL: "UINT32",
    THETA: "FLOAT32",
    FACTOR: "FLOAT32",
    ATTENTION: "FLOAT32",
    ALPHA: "FLOAT32",
    TYPE: "STRING",
    FINETUNED: "BOOL",
}
#: Keys that only some architectures read; elsewhere they do nothing, whatever they say.
_SOME_READ: Final = (BETA_FAST, BETA_SLOW, EXTRAPOLATION, YARN_ATTENTION, LOG_MULTIPLIER, SLIDING_THETA)


class LlamaCpp:
    """Builds from b11434 on; older ones were not compared."""

    runtime: ClassVar[str] = "llama.cpp"
    versions: ClassVar[str] = ">=11434"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "run"

    @answered
    def effective(self, gguf: Gguf, *, length: int) -> Reading:
        return _effective(gguf, length)

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """Its server; a context shift is switched off where cached keys carry a temperature."""
        return serve_command("llama-server", "-m", source, "-c", str(length), *reading.flags)


class Ollama:
    """The commit fb30760 of August 2026: llama.cpp, after fixes of files that look like its own older ones.

    It carries b10488, whose rules are taken to be those of b11434.
    """

    runtime: ClassVar[str] = "ollama"
    versions: ClassVar[str] = ">=2026.8"
    current: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "read"

    @answered
    def effective(self, gguf: Gguf, *, length: int) -> Reading:
        values, how = _gemma3_fixes(gguf)
        # num_ctx is clamped to the file's context_length (llm/server.go, sched.go effectiveContext).
        stated = Keys(values, gguf.architecture or "").whole(CONTEXT)
        clamped = min(length, stated) if stated else length
        reading = _effective(msgspec.structs.replace(gguf, values=values), clamped)
        return msgspec.structs.replace(reading, how=(*reading.how, *how), flags=())

    def serve(self, source: str, reading: Reading, *, length: int) -> str:
        """A Modelfile; ``ollama create NAME -f Modelfile`` makes a model of it."""
        path = source if source.startswith(("/", "./", "../", "~")) else f"./{source}"
        return f"FROM {path}\nPARAMETER num_ctx {length}\n"


#: Every reader of GGUF files.
GGUF_READERS: Final[tuple[GgufReader, ...]] = (LlamaCpp(), Ollama())


class _Settings(Struct, frozen=True, kw_only=True):
    """What the loader and the context have made of the keys, before any layer is looked at.

    ``factor`` is 1 over llama.cpp's ``freq_scale``, ``loaded`` what the file says of it; ``attention`` its
    ``yarn_attn_factor``; ``extrapolation`` its ``yarn_ext_factor``; ``original`` the length of the ramp.
    """

    kind: str
    factor: float
    loaded: float
    extrapolation: bool
    attention: float
    weight: float
    original: int
    beta_fast: float
    beta_slow: float
    factors: tuple[float, ...] | None
    switches: tuple[int, ...]


_POSITIONS: Final = {
    "learned": "a table of positions, one row a token; it aborts at a token past the last",
    "alibi": "a penalty by distance, whose slopes follow from the number of heads",
}


def _effective(gguf: Gguf, length: int) -> Reading:
    row = find_architecture(gguf)
    if row is None:
        return _unknown(gguf.architecture)
    keys = Keys(gguf.values, row.name)
    problem = next(_problems(keys, row, gguf.factors), None)
    if problem is not None:
        return Reading(problem=problem)
    if row.position != "rope":
        return Reading(max_context=keys.required(CONTEXT), how=(_POSITIONS[row.position],))
    if "attention.rope_pattern" in {key.removeprefix(f"{row.name}.") for key in gguf.values}:
        return Reading(unknown="the file says layer by layer which has a rope, which was not read")
    settings = _settings(keys, row, gguf.factors, length)
    if settings is None:
        return Reading(unknown=f"a {EXTRAPOLATION} other than 0 and 1 mixes frequencies in a way that isn't modelled")
    off = row.switched and (entry := keys.get(FINETUNED)) is not None and not entry.value
    tables = {}
    for group in geometry(keys, row):
        if group.spec is None:
            continue
        if off:
            tables[group.label] = RopeTable(inv_freq=(0.0,) * len(group.spec.inv_freq()))
            continue
        sliding = row.sliding if group.label == SLIDING else None
        tables[group.label] = _table(group.spec, settings, row, sliding)
    shifted = any(abs(found.attention_factor - 1.0) > 1e-6 for found in tables.values())
    return Reading(
        tables=tables,
        max_context=keys.required(CONTEXT),
        how=tuple(_how(keys, row, settings, off=off)),
        # Every shift turns cached keys with the factor on cos and sin again (src/llama-kv-cache.cpp,
        # build_rope_shift).
        caution="a context shift multiplies cached keys by the attention factor again: leave it off"
        if shifted
        else None,
        flags=("--no-context-shift",) if shifted else (),
    )


def _unknown(name: str | None) -> Reading:
    if name is None:
        return Reading(problem="it fails to load a file without general.architecture")
    if name in UNREAD:
        return Reading(unknown=f"what it does with the rope of a {name} was not read, or it has none")
    return Reading(absent=True, problem=f"it has no architecture {name}")


def _problems(keys: Keys, row: GgufArchitecture, factors: Mapping[str, tuple[float, ...] | None]) -> Iterator[str]:
    """Why the file fails to load, in the order in which the loader would find out."""
    for name in (CONTEXT, "embedding_length", "block_count"):
        if keys.get(name) is None:
            yield f"it fails to load: key not found in model: {keys.full(name)}"
    for name, kind in (*_KEY_TYPES.items(), *_own_types(keys, row)):
        entry = keys.get(name)
        if entry is not None and entry.type != kind:
            yield f"it fails to load: key {keys.full(name)} has wrong type {entry.type} but expected type {kind}"
    scaling = keys.text(TYPE) or DEFAULT_TYPE
    if scaling not in TYPES:
        yield f"it aborts while loading: {keys.full(TYPE)} is {scaling!r}, and it knows {', '.join(TYPES)}"
    yield from _tensor_problems(keys, row, factors, scaling)


def _tensor_problems(
    keys: Keys, row: GgufArchitecture, factors: Mapping[str, tuple[float, ...] | None], kind: str
) -> Iterator[str]:
    specs = [group.spec for group in geometry(keys, row) if group.spec is not None]
    partial = next((spec for spec in specs if spec.rotary_dim != spec.head_dim), None)
    if row.full_head and partial is not None:
        yield f"it fails to load: invalid n_rot: {partial.rotary_dim}, expected {partial.head_dim}"
    if row.name in WHOLE_HEADS and partial is not None:
        yield f"it aborts: its {row.name} rotates whole heads, {partial.head_dim} dimensions, not {partial.rotary_dim}"
    allowed = _allowed(row, kind)
    extra = [name for name in factors if name not in allowed]
    if extra:
        yield f"it fails to load: wrong number of tensors, as a {row.name} has no {extra[0]}" + (
            "" if row.factors != "either" else f" with the type {kind}"
        )
    if row.factors == "required" and FREQS not in factors:
        yield f"it fails to load: missing tensor '{FREQS}'"
    for name in set(factors) & set(allowed):
        values = factors[name]
        pairs = specs[0].rotary_dim // 2 if specs else 0
        if values is None:
            yield f"it fails on {name}, which must be of type F32"
        elif specs and len(values) != pairs:
            yield f"it fails to load: tensor '{name}' has wrong shape; expected {pairs}, got {len(values)}"


def _own_types(keys: Keys, row: GgufArchitecture) -> Iterator[tuple[str, GgufType]]:
    """The types of keys that are read of this architecture only, or only where another is missing."""
    if keys.get(FACTOR) is None:
        yield OLD_FACTOR, "FLOAT32"
    for key in row.reads:
        yield f"rope.scaling.{key}", "FLOAT32"
    if row.log_multiplier is not None:
        yield LOG_MULTIPLIER, "FLOAT32"
    if row.sliding is not None:
        yield WINDOW, "UINT32"
        if row.sliding.reads_theta:
            yield SLIDING_THETA, "FLOAT32"


def _allowed(row: GgufArchitecture, kind: str) -> tuple[str, ...]:
    """The frequency tensors that the loader creates: any other is one too many."""
    lists = (LONG, SHORT)
    match row.factors:
        case "none":
            return ()
        case "freqs" | "required":
            return (FREQS,)
        case "lists":
            return lists
        case "either":
            return lists if kind == "longrope" else (FREQS,)
        case "ignored":
            return lists if row.lists_too and kind == "longrope" else (FREQS,)


def _settings(
    keys: Keys, row: GgufArchitecture, factors: Mapping[str, tuple[float, ...] | None], length: int
) -> _Settings | None:
    kind = keys.text(TYPE) or DEFAULT_TYPE
    stated = keys.number(FACTOR) if keys.get(FACTOR) is not None else keys.number(OLD_FACTOR)
    loaded = stated or 1.0
    factor = 1.0 if kind == "none" else loaded
    # A key that this architecture doesn't read counts as missing.
    own = {name: keys.number(f"rope.scaling.{name}") for name in row.reads}
    extrapolation = own.get("yarn_ext_factor")
    if extrapolation is None or extrapolation < 0.0:
        extrapolation = 1.0 if kind == "yarn" else 0.0
    if extrapolation not in (0.0, 1.0):
        return None
    weight = keys.number(LOG_MULTIPLIER) if row.log_multiplier is not None else None
    weight = (weight or 0.0) / (row.log_multiplier or 1.0)
    if extrapolation:
        # This overwrites a yarn_attn_factor of the file; ggml multiplies by the divisor again.
        attention = mscale(factor)
        if weight:
            own_log = row.scales_own_log and abs(weight - 1.0) > 1e-6
            attention = mscale(factor, weight if own_log else 1.0) / mscale(factor, weight)
        attention /= 1.0 + 0.1 * math.log(factor)
    else:
        attention = own.get("yarn_attn_factor") or 1.0
    multiplier = keys.number(ATTENTION)
    attention *= 1.0 if multiplier is None else multiplier
    context, original = keys.required(CONTEXT), keys.whole(ORIGINAL)
    original = context if original is None else original
    chosen, switches = _factors(row, factors, length=length, original=original)
    fast, slow = own.get("yarn_beta_fast"), own.get("yarn_beta_slow")
    return _Settings(
        kind=kind,
        factor=factor,
        loaded=loaded,
        extrapolation=bool(extrapolation),
        attention=attention,
        weight=weight,
        original=original or context,
        beta_fast=32.0 if fast is None else fast,
        beta_slow=1.0 if slow is None else slow,
        factors=chosen,
        switches=switches,
    )


def _factors(
    row: GgufArchitecture,
    factors: Mapping[str, tuple[float, ...] | None],
    *,
    length: int,
    original: int,
) -> tuple[tuple[float, ...] | None, tuple[int, ...]]:
    """The factors that the frequencies are divided by, and the length at which a context gets others."""
    if row.factors == "ignored":
        return None, ()
    if FREQS in factors:
        return factors[FREQS], ()
    short, long = factors.get(SHORT), factors.get(LONG)
    padded = -(-length // PADDING) * PADDING
    return (long if padded > original else short), () if short == long else (original,)


def _table(spec: RopeSpec, settings: _Settings, row: GgufArchitecture, sliding: Sliding | None) -> RopeTable:
    """One group's table: ggml's rope_yarn, with what the architecture's graph passes to it."""
    factor, attention, extrapolation, factors = (
        settings.factor,
        settings.attention,
        settings.extrapolation,
        settings.factors,
    )
    if sliding is not None:
        # Layers that take freq_scale from the model's own sliding value keep what was loaded, type none or not.
        loaded = settings.loaded if sliding.reads_theta else settings.factor
        factor = loaded if sliding.scaled else 1.0
        if not sliding.tempered:
            attention, extrapolation = 1.0, False
        if not sliding.factors:
            factors = None
    if extrapolation:
        scaled = Yarn(
            factor=factor,
            original_max_position_embeddings=settings.original,
            beta_fast=settings.beta_fast,
            beta_slow=settings.beta_slow,
        )
        inv_freq = table(spec, scaled).inv_freq
        attention *= 1.0 + 0.1 * math.log(factor)
    else:
        inv_freq = table(spec, Linear(factor=factor)).inv_freq
    if factors is not None:
        inv_freq = divide(inv_freq, factors)
    softmax = 1.0
    if row.latent:
        # src/models/deepseek2.cpp: the temperature is undone, and applied to the softmax with the weight's own.
        log = math.log(settings.factor)
        softmax = (settings.attention * (1.0 + 0.1 * log) * (1.0 + 0.1 * settings.weight * log)) ** 2
    return RopeTable(
        inv_freq=inv_freq,
        attention_factor=attention,
        softmax_factor=softmax,
        switches=settings.switches if factors is not None else (),
    )


def _how(keys: Keys, row: GgufArchitecture, settings: _Settings, *, off: bool) -> Iterator[str]:
    """What it read, and what it passed over, by the names of the keys."""
    if off:
        yield f"{keys.full(FINETUNED)} is false, which turns the rope of this architecture off"
        return
    said = keys.text(TYPE)
    yield f"type {settings.kind}" + ("" if said is not None else f", its default without {keys.full(TYPE)}")
    if settings.kind == "none" and settings.loaded != 1.0:
        yield f"the factor {settings.loaded:g} doesn't count with the type none"
    if settings.kind == "yarn" and not keys.whole(ORIGINAL):
        yield f"no {keys.full(ORIGINAL)}: the context_length {settings.original} stands in for it"
    if settings.kind == "longrope" and settings.factors is None:
        yield "the type longrope without lists of factors does nothing"
    if settings.factors is not None:
        yield "every frequency is divided by a factor of the file's own tensor"
        if settings.factor != 1.0:
            yield f"the factor {settings.factor:g} is applied beside the tensor"
    yield from (f"{key} is never used" for key in _unused(keys, row, settings))
    if row.sliding is not None and has_sliding(keys, row.sliding, keys.required("block_count")) is None:
        yield "no layer slides in this file"


def unused_keys(gguf: Gguf) -> tuple[str, ...]:
    """The rope keys of a file that llama.cpp doesn't read of its architecture, or overwrites; whole names."""
    row = find_architecture(gguf)
    if row is None:
        return ()
    keys = Keys(gguf.values, row.name)
    settings = _settings(keys, row, gguf.factors, keys.whole(CONTEXT) or 0)
    return () if settings is None else tuple(_unused(keys, row, settings))


def _unused(keys: Keys, row: GgufArchitecture, settings: _Settings) -> Iterator[str]:
    read = {f"rope.scaling.{key}" for key in row.reads}
    if row.log_multiplier is not None:
        read.add(LOG_MULTIPLIER)
    if row.sliding is not None and row.sliding.reads_theta:
        read.add(SLIDING_THETA)
    for name in _SOME_READ:
        overwritten = name == YARN_ATTENTION and settings.extrapolation
        if keys.get(name) is not None and (name not in read or overwritten):
            yield keys.full(name)


def _gemma3_fixes(gguf: Gguf) -> tuple[Mapping[str, GgufValue], tuple[str, ...]]:
    """Keys that Ollama adds to a gemma3 that looks like one of its own older conversions.

    llama/compat/llama-ollama-compat.cpp, detect_ollama_gemma3 and handle_gemma3.
    """
    values = dict(gguf.values)
    if gguf.architecture != "gemma3" or not _looks_like_ollamas(gguf):
        return values, ()
    sources = {THETA: "rope.global.freq_base", SLIDING_THETA: "rope.local.freq_base"}
    defaults = {THETA: 1000000.0, SLIDING_THETA: 10000.0}
    for name, older in sources.items():
        missing = GgufValue(type="FLOAT32", value=defaults[name])
        values.setdefault(f"gemma3.{name}", values.get(f"gemma3.{older}", missing))
    said = values.get(f"gemma3.{CONTEXT}")
    if said is None or said.type != "UINT32" or said.value < 131072:
        return values, ()
    added = []
    for name, value in (
        (TYPE, GgufValue(type="STRING", value="linear")),
        (FACTOR, GgufValue(type="FLOAT32", value=8.0)),
    ):
        if f"gemma3.{name}" not in values:
            values[f"gemma3.{name}"] = value
            added.append(f"it adds gemma3.{name} = {value.value}, as the file looks like one of its own")
    return values, tuple(added)


def _looks_like_ollamas(gguf: Gguf) -> bool:
    named = (
        "gemma3.mm.tokens_per_image",
        "gemma3.rope.global.freq_base",
        "gemma3.rope.local.freq_base",
        "tokenizer.ggml.add_padding_token",
        "tokenizer.ggml.add_unknown_token",
    )
    return (
        any(key in gguf.values for key in named)
        or any(name.startswith(("v.", "mm.")) for name in gguf.info_spans)
        or "gemma3.attention.layer_norm_rms_epsilon" not in gguf.values
    )
