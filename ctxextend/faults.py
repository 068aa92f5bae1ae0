"""What is wrong in a checkpoint's files, whoever reads them: one rule a trap.

A rule looks at the files alone and says which runtimes it troubles; whether they really read something
else is what their readers find. Sources of the traps: docs/reference/runtimes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

from ctxextend.contents import Contents, Note
from ctxextend.formats.hf_read import HfRope, RopeGroup
from ctxextend.formats.rope_keys import LENGTH_SYNONYMS, dead_keys
from ctxextend.inspection import Inspection
from ctxextend.scaling import Dynamic, LongRope, Yarn

#: How bad it is by itself. What makes a required runtime read something else is an error in any case.
Level = Literal["error", "warning", "info"]

ORIGINAL: Final = "original_max_position_embeddings"

#: Those that vLLM, SGLang or ExLlamaV2 read.
_READ_SYNONYMS: Final = tuple(key for key in LENGTH_SYNONYMS if key != "n_ctx")

#: Above this a tokenizer's model_max_length stands for "no limit".
_NO_LIMIT: Final = 10**18


class Fault(Struct, frozen=True, kw_only=True):
    """One thing that is wrong. ``troubles`` names runtimes, with versions where only some are meant."""

    code: str
    message: str
    fix: str
    level: Level = "warning"
    troubles: tuple[str, ...] = ()


class Subject(Struct, frozen=True, kw_only=True):
    """What the rules look at: the files, what they mean now, and the length in tokens that they mean."""

    contents: Contents
    inspection: Inspection
    rope: HfRope
    target: int

    @property
    def scaled(self) -> RopeGroup | None:
        """The group whose scaling counts: the first that has one."""
        return next((group for group in self.rope.groups if group.scaling is not None), None)


def faults(subject: Subject) -> tuple[Fault, ...]:
    """Every fault that the files show."""
    found = [fault for rule in _RULES for fault in rule(subject)]
    return tuple(dict.fromkeys(found))


def length_meant(inspection: Inspection, rope: HfRope) -> int:
    """The length in tokens that a config means: what it states, or what its scaling reaches where nobody raised that.

    A yarn over 32768 by 4 beside a stated length that is still the trained one (or the 40960 that Qwen3
    states for 32768) means 131072; a linear factor of 4 beside 4096, and 16384 under another name, 16384.
    """
    stated = inspection.current_context
    group = next((group for group in rope.groups if group.scaling is not None), None)
    if group is None or isinstance(group.scaling, Dynamic):
        return stated
    if isinstance(group.scaling, Yarn):
        original = group.scaling.original_max_position_embeddings
        trained = inspection.family.overstated.get(stated, stated)
        return reach_of(group.scaling) if trained <= original and not _missing_original(rope) else stated
    return max(stated, inspection.trained_context) if inspection.record is None else stated


def reach_of(scaling: Yarn) -> int:
    """The length in tokens that a yarn is made for."""
    return round(scaling.original_max_position_embeddings * scaling.factor)


def _missing_original(rope: HfRope) -> bool:
    return any(note.code == "original-length-missing" for note in rope.notes)


def _length_mismatch(subject: Subject) -> Iterator[Fault]:
    group = subject.scaled
    if group is None or not isinstance(group.scaling, Yarn) or _missing_original(subject.rope):
        return
    stated, reached = subject.rope.max_position_embeddings, reach_of(group.scaling)
    if stated == reached:
        return
    original = group.scaling.original_max_position_embeddings
    arithmetic = f"{original} x {group.scaling.factor:g} = {reached}"
    yield Fault(
        code="length-mismatch",
        message=f"max_position_embeddings is {stated}, but yarn reaches {arithmetic}: vLLM from 0.30 and SGLang "
        f"serve {stated} tokens, vLLM to 0.29 serves {reached}; transformers 4.51 to 4.55 and ExLlamaV3 take "
        "max_position_embeddings divided by the original length for the factor",
        fix=f"set max_position_embeddings to {reached}"
        + (f", or the factor to {stated / original:g}" if stated > reached else ""),
        troubles=("vllm", "sglang", "transformers 4.51-4.55", "exllamav3"),
    )


def _dynamic(subject: Subject) -> Iterator[Fault]:
    group = subject.scaled
    if group is None or not isinstance(group.scaling, Dynamic):
        return
    yield Fault(
        code="dynamic-for-a-server",
        message="dynamic NTK changes the base with the length: keys that lie in a cache were turned by other bases, "
        "vLLM computes a plain rope, SGLang one base for all lengths, and GGUF can't say it",
        fix="convert with --method dynamic: it writes the static equal, a larger rope_theta, for servers",
        troubles=("vllm", "sglang", "exllamav3", "exllamav2", "llama.cpp"),
    )


def _two_lists(subject: Subject) -> Iterator[Fault]:
    group = subject.scaled
    if group is None or not isinstance(group.scaling, LongRope):
        return
    if group.scaling.short_factor == group.scaling.long_factor:
        return
    original = group.scaling.original_max_position_embeddings
    yield Fault(
        code="longrope-switches",
        message=f"longrope's two lists change over at {original} tokens: transformers by each input, vLLM once by "
        "the length served, SGLang by the batch, llama.cpp by the context size, MLX-LM never (always the long one)",
        fix=f"serve short inputs with a length limit of {original} where they matter",
    )


def _latent_without_pair(subject: Subject) -> Iterator[Fault]:
    group = subject.scaled
    if group is None or not isinstance(group.scaling, Yarn) or not subject.inspection.family.softmax_mscale:
        return
    one, other = group.scaling.mscale, group.scaling.mscale_all_dim
    if one is not None and one == other:
        return
    said = "mscale and mscale_all_dim are missing" if one is other is None else f"mscale {one}, mscale_all_dim {other}"
    yield Fault(
        code="latent-without-pair",
        message=f"latent attention with yarn, and {said}: llama.cpp multiplies the softmax by a temperature of its "
        "own unless the two are there and equal",
        fix='write "mscale": 1.0 and "mscale_all_dim": 1.0 if the model was trained so',
        troubles=("llama.cpp", "ollama"),
    )


def _query_scale(subject: Subject) -> Iterator[Fault]:
    published = (subject.inspection.family.default_scaling or {}).get(ORIGINAL)
    for group in subject.rope.groups:
        if "llama_4_scaling_beta" not in group.settings or published is None:
            continue
        stated = group.settings.get(ORIGINAL)
        if stated != published:
            yield Fault(
                code="query-scale-moved",
                message=f"this model scales its queries by their position over {ORIGINAL} (llama_4_scaling_beta): "
                f"with {stated} instead of {published} it computes something else from the first tokens on",
                fix=f"set {ORIGINAL} to {published} and reach the length by the factor",
                level="error",
            )


def _two_spellings(subject: Subject) -> Iterator[Fault]:
    older = subject.rope.text.get("rope_scaling")
    if isinstance(older, dict) and {"type", "rope_type"} <= set(older):
        yield Fault(
            code="two-spellings",
            message=f"rope_scaling has type {older['type']!r} beside rope_type {older['rope_type']!r}: ExLlamaV2 fails "
            "on both, vLLM where they differ, and transformers 4 and MLX-LM prefer type",
            fix="leave type away",
            level="info",
            troubles=("vllm", "exllamav2"),
        )


def _dead_keys(subject: Subject) -> Iterator[Fault]:
    group = subject.scaled
    dead = () if group is None else dead_keys(group.settings)
    if dead:
        said = "; ".join(f"{key}: {what}" for key, what in dead)
        yield Fault(
            code="dead-keys",
            message=f"keys of older code that transformers passes over: {said}",
            fix="leave them away",
            level="info",
            troubles=("vllm", "sglang"),
        )


def _sections(subject: Subject) -> Iterator[Fault]:
    group = subject.scaled
    if group is None or not isinstance(group.scaling, Yarn) or "mrope_section" not in group.settings:
        return
    yield Fault(
        code="mrope-ramp",
        message="yarn beside sections of positions (mrope_section): vLLM places the ramp of Qwen2-VL and Qwen2.5-VL "
        "over four times the original length",
        fix="convert with --method ntk: it changes rope_theta alone, which all read alike",
        troubles=("vllm",),
    )


def _short_synonyms(subject: Subject) -> Iterator[Fault]:
    for key in _READ_SYNONYMS:
        value = subject.rope.text.get(key)
        if type(value) is int and 0 < value < subject.target:
            yield Fault(
                code="stale-length",
                message=f"{key} still says {value}: vLLM takes the smallest of the stated lengths, SGLang and "
                "ExLlamaV2 the first that they find",
                fix=f"set {key} to {subject.target}",
                troubles=("vllm", "sglang", "exllamav2"),
            )


def _side_limits(subject: Subject) -> Iterator[Fault]:
    documents = subject.contents.documents
    tokenizer = documents["tokenizer_config.json"].value if "tokenizer_config.json" in documents else {}
    limit = tokenizer.get("model_max_length")
    if isinstance(limit, int | float) and not isinstance(limit, bool) and limit < subject.target < _NO_LIMIT:
        yield Fault(
            code="tokenizer-limit",
            message=f"tokenizer_config.json says model_max_length {limit:g}: transformers warns above it and "
            "truncates to it where truncation is asked for",
            fix=f"set model_max_length to {subject.target}",
        )
    cut = (subject.contents.tokenizer_truncation or {}).get("max_length")
    if isinstance(cut, int) and cut < subject.target:
        yield Fault(
            code="tokenizer-truncates",
            message=f"tokenizer.json truncates every input to {cut} tokens",
            fix=f"set truncation.max_length to {subject.target}",
        )


#: What becomes of the notes of reading: runtimes troubled, level, and what mends it.
_FROM_NOTES: Final[Mapping[str, tuple[tuple[str, ...], Level, str]]] = MappingProxyType(
    {
        "new-form-only": (
            ("transformers 4.56-4.57", "transformers 4.51-4.55", "mlx-lm"),
            "warning",
            "write rope_theta and rope_scaling beside rope_parameters, with the same values",
        ),
        "both-dictionaries": (("mlx-lm", "llama.cpp"), "warning", "make rope_parameters say what rope_scaling says"),
        "theta-twice": (("transformers", "mlx-lm"), "warning", "make both thetas equal"),
        "original-length-twice": (
            ("transformers", "vllm", "sglang", "mlx-lm"),
            "warning",
            f"remove the top-level {ORIGINAL}, or make both equal",
        ),
        "original-length-missing": (
            (),
            "error",
            f"write {ORIGINAL}; 'check --fix --original-context N' does it when N is known",
        ),
        "integer-factor": (("vllm", "sglang"), "warning", "write the factor as a float, such as 4.0"),
        "theta-lost": (
            ("transformers", "vllm", "sglang"),
            "error",
            "write rope_theta at the top level, and the same scaling into both dictionaries; --fix does",
        ),
        "ignored-scaling": ((), "error", "write it into the dictionaries of rope_parameters; convert does"),
        "original-length-unknown": ((), "warning", "say which with --original-context when it is converted"),
        "flat-beside-nested": ((), "error", "write the settings where the language model reads them; convert does"),
        "flat-for-nested": ((), "error", "write one dictionary a layer type; convert does"),
        "nested-for-flat": (("transformers", "vllm", "sglang"), "warning", "write one dictionary for all layers"),
        "stray-partial-rotary": (("transformers", "vllm"), "warning", "leave partial_rotary_factor away"),
        "float-length": (("transformers", "vllm"), "warning", "write the length as a whole number"),
        "params-json": (("vllm",), "warning", "serve with --config-format hf, or take params.json out"),
        "consolidated-weights": (("vllm",), "warning", "serve with --config-format hf"),
        "auto-map": ((), "warning", "serve without trust_remote_code where the runtime has the model itself"),
        "baked-weights": ((), "info", "nothing; another extension starts from the original checkpoint"),
        "rotary-buffers": ((), "info", "nothing, unless a runtime loads them: then take them out of the weights"),
    }
)


_OF_INSPECTION: Final = frozenset({"rotary-buffers", "baked-weights", "original-length-unknown"})


def _noted(subject: Subject) -> Iterator[Fault]:
    """What reading the files noted by the way."""
    # The inspection's other notes are of the base, before an earlier conversion.
    own = (note for note in subject.inspection.notes if note.code in _OF_INSPECTION)
    notes: tuple[Note, ...] = (*subject.rope.notes, *subject.contents.notes, *own)
    for note in notes:
        known = _FROM_NOTES.get(note.code)
        if known is not None:
            troubles, level, fix = known
            yield Fault(code=note.code, message=note.message, fix=fix, level=level, troubles=troubles)


_RULES: Final[tuple[Callable[[Subject], Iterator[Fault]], ...]] = (
    _length_mismatch,
    _noted,
    _latent_without_pair,
    _query_scale,
    _dynamic,
    _two_lists,
    _sections,
    _dead_keys,
    _two_spellings,
    _short_synonyms,
    _side_limits,
)
