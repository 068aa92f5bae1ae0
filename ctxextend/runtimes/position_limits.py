"""What each runtime makes of a checkpoint without a rope: whether it has such models, and what limits their length.

Read in these sources: transformers 5.23, each family's modeling file (run, ``tests/reference/test_positions.py``,
where 4.57.6 and 4.56.2 run one of each kind);
vLLM, ``transformers_utils/model_arch_config_convertor.py`` (``derive_max_model_len_and_key``), ``config/model.py``
(``_get_and_verify_max_len``) and ``model_executor/models/registry.py``; SGLang,
``srt/utils/hf_transformers_utils.py`` (``get_context_length``) and the files of ``srt/models``; MLX-LM 0.32,
``models/gpt2.py`` and ``models/gpt_bigcode.py`` (run); llama.cpp b11549, its converter's ``conversion`` folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Struct

from ctxextend.families import Family
from ctxextend.families.positions import Alibi
from ctxextend.formats.hf_positions import USUAL_EXPONENT, Positions, text_of
from ctxextend.runtimes.auto_classes import class_of
from ctxextend.runtimes.base import Reading, Runtime

#: What a server assumes that finds no length: vLLM and SGLang alike.
_ASSUMED: Final = 2048

#: The keys among which vLLM takes the smallest, and those of which SGLang takes the first.
_VLLM_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_SGLANG_KEYS: Final = (
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "model_max_length",
    "max_position_embeddings",
)

#: Encoders that vLLM serves for embedding: there the tokenizer's limit counts as well.
_ENCODERS: Final = frozenset({"bert", "roberta", "xlm-roberta"})
_VLLM: Final = _ENCODERS | {"bloom", "falcon", "gpt2", "gpt_bigcode", "mpt", "opt"}
_SGLANG: Final = frozenset({"bert", "gpt2", "gpt_bigcode", "opt", "xlm-roberta"})
#: Those with a GGUF form, and the classes (config.json's ``architectures``) of which the converter makes it. Without
#: classes: ctxextend's own export doesn't ask for one.
_LLAMA_CPP: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "bert": ("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
        "bloom": (),
        "distilbert": ("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"),
        "gpt2": (),
        "gpt_bigcode": ("GPTBigCodeForCausalLM",),
        "mpt": (),
        "roberta": ("RobertaModel", "RobertaForSequenceClassification"),
        "xlm-roberta": ("XLMRobertaModel", "XLMRobertaForSequenceClassification"),
    }
)


class _MlxModel(Struct, frozen=True, kw_only=True):
    """A model file of MLX-LM: what it calls the table, and the keys of config.json that it can't do without."""

    table: str
    keys: tuple[str, ...]


_MLX: Final[Mapping[str, _MlxModel]] = MappingProxyType(
    {
        "gpt2": _MlxModel(table="wpe.weight", keys=("n_ctx", "n_positions")),
        "gpt_bigcode": _MlxModel(table="transformer.wpe.weight", keys=("n_positions", "n_inner")),
    }
)


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What the rules read: the language model's settings, its model type, and limits that stand in other files."""

    positions: Positions
    text: Mapping[str, Any]
    model_type: str
    family: Family
    tokenizer_limit: int | None = None
    sentence_limit: int | None = None


def position_reading(runtime: Runtime, checkpoint: Checkpoint) -> Reading:
    """What a runtime makes of it. Nothing is claimed of one whose sources weren't read for these models."""
    read = _READERS.get(runtime.runtime) if runtime.current else None
    unread = "how it limits models without a rope wasn't read"
    reading = Reading(unknown=unread) if read is None else read(checkpoint)
    return msgspec.structs.replace(reading, loader=class_of(checkpoint.text, checkpoint.family))


def checkpoint_of(
    positions: Positions,
    config: Mapping[str, Any],
    family: Family,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> Checkpoint:
    """The ``config`` as the rules read it, with the limits of tokenizer_config.json and sentence_bert_config.json."""
    text = text_of(config, positions.path)
    said = documents or {}
    return Checkpoint(
        positions=positions,
        text=text,
        model_type=str(text.get("model_type")),
        family=family,
        tokenizer_limit=_whole(said.get("tokenizer_config.json", {}).get("model_max_length")),
        sentence_limit=_whole(said.get("sentence_bert_config.json", {}).get("max_seq_length")),
    )


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _transformers(found: Checkpoint) -> Reading:
    positions = found.positions
    sinusoids, key = positions.sinusoids, positions.key
    if sinusoids is None or sinusoids.read:
        problem = _mismatch(positions)
        if problem is not None:
            return Reading(problem=problem)
    facts = found.family.positions
    if positions.position == "alibi" and isinstance(facts, Alibi) and not facts.limits_transformers:
        return Reading(how=(f"no limit: the penalty is computed for the text at hand, {key} isn't read",))
    caution = None
    if positions.largest_exponent != USUAL_EXPONENT:
        caution = (
            f"it takes the slopes of {USUAL_EXPONENT:g} and doesn't read {_exponent_key(found)}, which says "
            f"{positions.largest_exponent:g}: a model that was trained with that computes something else there"
        )
    if sinusoids is not None and sinusoids.unlimited:
        return Reading(how=("no limit: the table is computed, and grows with the text",))
    what = "the table's rows" if positions.tables else key
    return Reading(max_context=positions.taken, how=(f"{what}; it fails past them",), caution=caution)


def _exponent_key(found: Checkpoint) -> str:
    facts = found.family.positions
    return ".".join((*found.positions.path, *(facts.largest_exponent_path if isinstance(facts, Alibi) else ())))


def _mismatch(positions: Positions) -> str | None:
    """Why a table doesn't go into the class, where config.json states another size."""
    if not positions.tables or positions.taken == positions.length:
        return None
    return (
        f"it fails to load: {positions.key} makes a table of {positions.taken + positions.reserved} rows, "
        f"and {positions.tables[0].name} has {positions.rows}"
    )


def _vllm(found: Checkpoint) -> Reading:
    if found.model_type not in _VLLM:
        return _absent("vLLM")
    lengths = {key: value for key in _VLLM_KEYS if (value := _whole(found.text.get(key))) is not None}
    lengths |= _by_class(found)
    # The smallest counts, but for model_max_length, which replaces it.
    key, longest = min(lengths.items(), key=lambda item: item[1], default=("no key at all", _ASSUMED))
    overriding = _whole(found.text.get("model_max_length"))
    if overriding:
        key, longest = "model_max_length", overriding
    if found.model_type in _ENCODERS:
        limit = found.tokenizer_limit
        if limit is not None and limit < longest:
            key, longest = "the tokenizer's model_max_length", limit
        if found.sentence_limit is not None:
            key, longest = "sentence_bert_config.json's max_seq_length", found.sentence_limit
    return _served(found, longest, key)


def _sglang(found: Checkpoint) -> Reading:
    if found.model_type not in _SGLANG:
        return _absent("SGLang")
    lengths = {key: value for key in _SGLANG_KEYS if (value := _whole(found.text.get(key))) is not None}
    # Its classes are transformers', where n_positions goes by this name too.
    lengths = {"max_position_embeddings": found.positions.written(found.positions.taken), **lengths}
    key = next((key for key in _SGLANG_KEYS if key in lengths), None)
    return _served(found, lengths[key] if key is not None else _ASSUMED, key or "no key at all")


def _by_class(found: Checkpoint) -> dict[str, int]:
    """The length that transformers' class has as an attribute, where config.json is silent. BLOOM's has none."""
    positions = found.positions
    if positions.stated is not None or positions.length_key == "seq_length":
        return {}
    return {positions.length_key: positions.written(positions.taken)}


def _served(found: Checkpoint, longest: int, key: str) -> Reading:
    problem = _mismatch(found.positions)
    if problem is not None:
        return Reading(problem=problem)
    held = found.positions.length if found.positions.position != "alibi" else None
    if held is not None and longest > held:
        return Reading(
            max_context=held,
            how=(f"{key} = {longest}, of which the table holds {held}",),
            liftable=True,
            caution=f"it accepts {longest} tokens ({key}), but the table holds {held}, past which it fails: give it "
            "the length",
        )
    return Reading(max_context=longest, how=(f"{key} = {longest}",))


def _mlx_lm(found: Checkpoint) -> Reading:
    model = _MLX.get(found.model_type)
    if model is None:
        return _absent("MLX-LM")
    missing = next((key for key in model.keys if found.text.get(key) is None), None)
    if missing is not None:
        # It leaves n_ctx away, and writes null for n_inner.
        return _absent("MLX-LM", f"it fails without a number for {missing} in config.json; transformers writes none")
    positions = found.positions
    if any(table.name != model.table for table in positions.tables):
        return _absent("MLX-LM", f"it calls the table {model.table}, not {positions.tables[0].name}")
    problem = _mismatch(positions)
    if problem is not None:
        return Reading(problem=problem)
    return Reading(max_context=positions.length, how=("the table's rows; nothing stops it past them",))


def _llama_cpp(found: Checkpoint) -> Reading:
    if found.positions.position == "alibi" and found.family.alibi_key is not None:
        return _absent("llama.cpp", "it gives every model of this architecture a rope")
    why = _without_gguf(found)
    if why is not None:
        return _absent("llama.cpp", why)
    problem = _mismatch(found.positions)
    if problem is not None:
        return Reading(problem=problem)
    return Reading(
        max_context=found.positions.length,
        how=("a GGUF export, whose context_length is this; past a table it fails, past ALiBi's it only warns",),
    )


def _without_gguf(found: Checkpoint) -> str | None:
    """Why llama.cpp's converter makes no file of a checkpoint, or none that computes the same; None where it does."""
    if found.model_type == "camembert":
        reserved = found.positions.reserved
        return (
            f"its converter leaves the {reserved} rows in front of the first position in a camembert's table, so every "
            f"token would get the position {reserved} before its own"
        )
    if found.model_type == "gpt_bigcode" and found.text.get("multi_query") is False:
        return "its converter gives every gpt_bigcode one key-value head, and this one (multi_query false) has more"
    classes = _LLAMA_CPP.get(found.model_type)
    if classes is None:
        return f"its converter has no models of the type {found.model_type}"
    stated = found.text.get("architectures")
    if not classes or not isinstance(stated, list) or not stated or stated[0] in classes:
        return None
    bare = f"; saved by AutoModel it is a {classes[0]}" if classes[0].endswith("Model") else ""
    return f"its converter takes {' and '.join(classes)}, and config.json's architectures says {stated[0]}{bare}"


def _absent(runtime: str, why: str | None = None) -> Reading:
    return Reading(absent=True, problem=why or f"{runtime} has no models of this type")


_READERS: Final[Mapping[str, Callable[[Checkpoint], Reading]]] = MappingProxyType(
    {
        "transformers": _transformers,
        "vllm": _vllm,
        "sglang": _sglang,
        "mlx-lm": _mlx_lm,
        "llama.cpp": _llama_cpp,
    }
)
