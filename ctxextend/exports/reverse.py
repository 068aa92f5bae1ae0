"""What a checkpoint of transformers says and holds that is made of a GGUF file: the rows, read backwards. Pure.

The rope is written plain: its base, how much of a head turns, and the windows. How positions are scaled is read
by ``formats/gguf_keys.py`` and written by ``formats/hf_write.py``, as for a checkpoint that exists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from ctxextend.contents import Gguf, Note, TensorInfo
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.exports.export import places
from ctxextend.exports.layout import Operation
from ctxextend.exports.row import EXPERTS, POSITIONS, Key, Row, Settings, Sizes, settings_of, sizes_of
from ctxextend.exports.rows import ROWS
from ctxextend.families import FAMILIES, Family
from ctxextend.formats.gguf_architectures import ARCHITECTURES
from ctxextend.formats.gguf_keys import (
    CONTEXT,
    FREQS,
    LONG,
    PATTERN,
    POSITION_TABLE,
    SHORT,
    UNROTATED,
    WINDOW,
    GgufGroup,
    Keys,
    architecture_of,
    geometry,
)
from ctxextend.formats.gguf_write import single
from ctxextend.formats.hf_layers import FULL, SLIDING
from ctxextend.rope import RopeSpec

#: The floating types of a safetensors file, as its header names them, and what config.json calls them.
FloatType = Literal["F32", "F16", "BF16"]
TORCH_NAMES: Final[Mapping[FloatType, str]] = MappingProxyType({"F32": "float32", "F16": "float16", "BF16": "bfloat16"})

_TIED: Final = "tie_word_embeddings"
_AGAIN: Final = "compare the file's keys and tensors with those of the publisher's"
_STAY: Final = "--to gguf keeps the file's form"
_OUTPUT: Final = "output.weight"
_EMBEDDINGS: Final = "token_embd.weight"

#: What a file that can be doesn't exceed: a count of heads or experts is also one of tensors.
_MOST: Final = 65_536

#: Counts of layers with which llama.cpp scales queries by the width over the heads, and by a head's size
#: with any other (b11434, ``src/models/gemma2.cpp`` and ``gemma3.cpp``).
_SCALED_BY_WIDTH: Final[Mapping[str, int]] = MappingProxyType({"gemma2": 46, "gemma3": 62})

#: Keys of a file that say nothing of what a model computes, or of which the rope's reader takes care.
_OTHER_KEYS: Final = frozenset({CONTEXT, WINDOW, PATTERN, "vocab_size", "tensor_data_layout"})
_OTHER_KEY_PREFIXES: Final = ("rope.",)

#: What llama.cpp computes where a file is silent (b11434, ``llama_hparams``), as the setting that says it.
_UNSAID: Final[Mapping[str, Any]] = MappingProxyType(
    {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0}
)

#: Settings whose null no class takes, where a file's 0 stands for it otherwise.
_NEVER_NULL: Final = frozenset({"first_k_dense_replace"})

#: What latent attention's sizes are called in older files, without ``key_length_mla``, which hold it as the checkpoint
#: does: keys and values of every head in one tensor.
_WHOLE_LATENT: Final = "blk.{bid}.attn_kv_b.weight"
_WHOLE_LATENT_KEYS: Final = (
    Key(name="attention.key_length", config=("qk_nope_head_dim",), added=("qk_rope_head_dim",)),
    Key(name="attention.value_length", config=("v_head_dim",)),
)

#: Lengths that old files leave out, by the dimension of a tensor that has them.
_LENGTHS: Final[Mapping[str, tuple[str, int]]] = MappingProxyType(
    {
        "moe_intermediate_size": ("ffn_gate_exps.weight", 1),
        "shared_expert_intermediate_size": ("ffn_gate_shexp.weight", 0),
    }
)


class Part(Struct, frozen=True, kw_only=True):
    """What one tensor of the GGUF file gives: all of it, or what stands at ``index`` of its first dimension.

    ``operations`` are those that made it of the checkpoint's tensor; they are to be taken back.
    """

    tensor: str
    index: int | None = None
    operations: tuple[Operation, ...] = ()


class Target(Struct, frozen=True, kw_only=True):
    """A tensor of the checkpoint, of ``shape``; each of its elements comes from one of ``parts``.

    ``exact``: kept in single precision whatever the checkpoint's type is, as its class keeps it.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    exact: bool = False


class Restored(Struct, frozen=True, kw_only=True):
    """A checkpoint: its family, its documents, and its tensors in the order of its class.

    ``notes``: what of the file has no place in it, and what had to be concluded.
    """

    family: str
    dtype: FloatType
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: tuple[Target, ...]
    notes: tuple[Note, ...] = ()


def restored_of(gguf: Gguf, tensors: Sequence[TensorInfo], *, dtype: FloatType | None = None) -> Restored:
    """The checkpoint that a GGUF file holds; ``dtype`` None takes the one that its types suggest.

    Raises :class:`RefusedError` (``unknown-export``) for an architecture without a row, for tensors that no
    class has and for layers that differ, and :class:`CheckpointError` for a value or a tensor that is missing
    or can't be.
    """
    chosen = dtype or suggested_dtype(tensors)
    infos = {tensor.name: tensor for tensor in tensors}
    problem: CheckpointError | RefusedError | None = None
    for row in _candidates(gguf):
        try:
            return _restored(_of_its_time(row, infos), gguf, infos, chosen)
        except (CheckpointError, RefusedError) as error:
            # The likeliest row's problem is the one to tell.
            problem = problem or error
    raise problem or _unknown(gguf)


def suggested_dtype(tensors: Sequence[TensorInfo]) -> FloatType:
    """The type that holds what most elements of the matrices are: theirs, or bfloat16 for quantised ones."""
    counts: dict[FloatType, int] = {"BF16": 0, "F16": 0, "F32": 0}
    for tensor in tensors:
        if len(tensor.shape) > 1:
            match tensor.dtype:
                case "F32" | "F64":
                    counts["F32"] += tensor.elements
                case "F16":
                    counts["F16"] += tensor.elements
                case _:
                    counts["BF16"] += tensor.elements
    return max(counts, key=lambda name: counts[name])


def decimal(value: float) -> float:
    """The shortest decimal that single precision keeps as ``value``: what was written before it was rounded."""
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 9))
    return next((number for number in shorter if single(number) == value), value)


def _candidates(gguf: Gguf) -> list[Row]:
    """The rows of the file's architecture, the likeliest first."""
    rows = [row for row in ROWS.values() if row.architecture == gguf.architecture]
    if not rows:
        return []
    keys = Keys(gguf.values, rows[0].architecture)
    sparse = bool(keys.whole("expert_count"))
    slides = any(group.label == SLIDING for group in geometry(keys, architecture_of(gguf)))

    def differs(row: Row) -> tuple[bool, bool]:
        experts = any(key.name == "expert_count" for key in row.keys)
        return experts != sparse, (FAMILIES[row.family].window is not None) != slides

    return sorted((row for row in rows if not differs(row)[0]), key=differs) or rows


def _of_its_time(row: Row, infos: Mapping[str, TensorInfo]) -> Row:
    """The row as it was when the file was made."""
    if _WHOLE_LATENT.replace("{bid}", "0") not in infos:
        return row
    parts = ("blk.{bid}.attn_k_b.weight", "blk.{bid}.attn_v_b.weight")
    halves = [rule for rule in row.tensors if rule.gguf in parts]
    whole = [replace(rule, gguf=_WHOLE_LATENT, operations=()) for rule in halves[:1]]
    lengths = ("attention.key_length", "attention.value_length")
    keys = [key for key in row.keys if not key.name.startswith(lengths)]
    return replace(
        row,
        keys=(*keys, *_WHOLE_LATENT_KEYS),
        tensors=(*(rule for rule in row.tensors if rule.gguf not in parts), *whole),
    )


def _unknown(gguf: Gguf) -> RefusedError:
    known = sorted({row.architecture for row in ROWS.values()})
    return RefusedError(
        f"how a GGUF file of the architecture {gguf.architecture} becomes safetensors isn't known",
        code="unknown-export",
        file=gguf.file,
        key="general.architecture",
        expected=", ".join(known),
        found=str(gguf.architecture),
        hint=_STAY,
    )


def _restored(row: Row, gguf: Gguf, infos: Mapping[str, TensorInfo], dtype: FloatType) -> Restored:
    keys = Keys(gguf.values, row.architecture)
    config = _values(row, keys, infos)
    config |= _switches(row, config, infos)
    table = infos.get(POSITION_TABLE)
    length = keys.required(CONTEXT) if table is None else table.shape[0]
    settings = settings_of(row, {**_spelled(row, config), POSITIONS: length})
    sizes = sizes_of(settings)
    targets = _targets(row, settings, sizes, infos)
    family = FAMILIES[row.family]
    if "head_dim" not in row.defaults and family.head_dim is None and not family.needs_head_dim:
        width = config["hidden_size"] // config["num_attention_heads"]
        config = {key: value for key, value in config.items() if key != "head_dim" or value != width}
    tokens = _tokens(gguf, sizes.vocab)
    rope: dict[str, Any] = {}
    if row.position == "rope":
        rope = _rope(family, keys, geometry(keys, ARCHITECTURES[row.architecture]))
    said = {
        "architectures": [row.model_class],
        "model_type": row.model_type,
        **_spelled(row, {**config, **_built_in(row, config, sizes), "max_position_embeddings": length}),
        **rope,
        "bos_token_id": tokens.get("bos_token_id"),
        "eos_token_id": tokens.get("eos_token_id"),
        "pad_token_id": tokens.get("padding_token_id"),
        "torch_dtype": TORCH_NAMES[dtype],
        "use_cache": True,
    }
    return Restored(
        family=row.family,
        dtype=dtype,
        config=said,
        generation_config=_generation(tokens),
        tensors=targets,
        notes=_notes(row, keys),
    )


# config.json.


def _spelled(row: Row, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as its class calls them, without those that follow from others."""
    found: dict[str, Any] = {}
    implied: Mapping[str, Any] = {}
    if row.derived is not None:
        named = {key: value for key, value in config.items() if key != "intermediate_size"}
        implied = row.derived(Settings(named, row.defaults))
    for key, value in config.items():
        names = row.names.get(key, (key,))
        if not names or (key in implied and implied[key] == value):
            continue
        *path, last = names[0].split(".")
        node = found
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return found


def _values(row: Row, keys: Keys, infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The settings that the row's keys give."""
    if _EMBEDDINGS not in infos:
        raise _missing(_EMBEDDINGS)
    embeddings = infos[_EMBEDDINGS]
    if len(embeddings.shape) != 2:
        raise _broken(embeddings, "two dimensions")
    found: dict[str, Any] = {"vocab_size": embeddings.shape[0]}
    # What is taken off again must be known before.
    for key in sorted((key for key in row.keys if key.config), key=lambda key: len(key.added)):
        name = key.config[0]
        value = _less(key, _value(key, row, keys, infos), found, keys)
        if name == "vocab_size" or (value is None and name not in row.defaults and name in found):
            continue
        if found.get(name, value) != value:
            raise keys.broken(key.name, f"the same as {name}: {found[name]}", keys.get(key.name))
        built_in = _is_built_in(key, value, row, keys)
        if value is not None or (not built_in and (name in row.defaults or key.unset is not None)):
            found |= dict.fromkeys((name, *key.twins), value)
    for name in ("num_attention_heads", "num_key_value_heads", *EXPERTS):
        if (found.get(name) or 0) > _MOST:
            raise CheckpointError(
                "the GGUF file states more heads or experts than a model has",
                code="broken-config",
                key=name,
                expected=f"at most {_MOST}",
                found=str(found[name]),
            )
    return found


def _less(key: Key, value: Any, found: Mapping[str, Any], keys: Keys) -> Any:
    """A key's value without those that are added to it."""
    if value is None or not key.added:
        return value
    left = value - sum(found[other] for other in key.added)
    if left < 1:
        raise keys.broken(key.name, f"more than {' and '.join(key.added)}", keys.get(key.name))
    return left


def _is_built_in(key: Key, value: Any, row: Row, keys: Keys) -> bool:
    """Whether the class has no choice here. Raises :class:`RefusedError` where the file has another one."""
    fixed = next((fixed for fixed in row.fixed if fixed.key == key.config[0]), None)
    if fixed is not None and value is not None and value not in fixed.values:
        raise RefusedError(
            f"{row.model_class} has another {fixed.key} built in",
            code="unexpressible",
            key=keys.full(key.name),
            expected=" or ".join(map(repr, fixed.values)),
            found=repr(value),
            hint=_STAY,
        )
    return fixed is not None


def _value(key: Key, row: Row, keys: Keys, infos: Mapping[str, TensorInfo]) -> Any:
    """What a file says for one key; None for what it is right to be silent on."""
    name = key.config[0]
    entry = keys.get(key.name)
    if entry is None:
        return _unsaid(key, row, keys, infos)
    if key.type == "BOOL":
        if entry.type != "BOOL":
            raise keys.broken(key.name, "true or false", entry)
        return entry.value
    if entry.type == "ARRAY":
        several = keys.array(key.name) or ()
        if len(set(several)) != 1:
            raise RefusedError(
                "the layers of this model differ in size, which its class can't say",
                code="unexpressible",
                key=keys.full(key.name),
                expected="one number for all layers",
                found=str(list(several))[:60],
                hint=_STAY,
            )
        return int(several[0])
    number = keys.number(key.name)
    if key.codes:
        said = next((word for word, code in key.codes.items() if code == number), None)
        if said is None:
            raise keys.broken(key.name, " or ".join(map(str, key.codes.values())), entry)
        return said
    if key.type == "FLOAT32":
        number = decimal(number) if entry.type == "FLOAT32" and number is not None else number
        return int(number) if key.whole and number is not None and number.is_integer() else number
    if number is not None and number == key.unset and name not in _NEVER_NULL:
        return None
    return keys.whole(key.name)


def _unsaid(key: Key, row: Row, keys: Keys, infos: Mapping[str, TensorInfo]) -> Any:
    """What stands for a missing key: what llama.cpp takes, or what a tensor's shape says."""
    name = key.config[0]
    if name in _UNSAID:
        return _UNSAID[name]
    if key.unset is not None:
        return int(key.unset) if name in _NEVER_NULL else None
    if key.optional or name == "vocab_size" or any(fixed.key == name for fixed in row.fixed):
        return None
    if name == "use_parallel_residual":
        return "blk.0.ffn_norm.weight" not in infos
    if name == "head_dim":
        return keys.required("embedding_length") // keys.required("attention.head_count")
    if name == "num_key_value_heads":
        return keys.required("attention.head_count")
    if name in _LENGTHS:
        suffix, dimension = _LENGTHS[name]
        tensor = next((info for info in infos.values() if info.name.endswith(f".{suffix}")), None)
        if tensor is not None and dimension < len(tensor.shape):
            return tensor.shape[dimension]
    raise keys.broken(key.name, "a value", None)


def _switches(row: Row, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The settings that only the tensors tell: whether the head is tied, and which biases and norms there are."""
    found: dict[str, Any] = {}
    if all(fixed.key != _TIED for fixed in row.fixed):
        found[_TIED] = _OUTPUT not in infos
    layers = config["num_hidden_layers"]
    for rule in row.tensors:
        if rule.when is None or rule.when[0] == _TIED:
            continue
        name, needed = rule.when
        # A switch that the file states too may be wrong (StableLM's): llama.cpp goes by the tensors as well.
        if name in config and not isinstance(config[name], bool):
            continue
        there = any(rule.gguf.replace("{bid}", str(bid)) in infos for bid in range(layers))
        if found.setdefault(name, there == needed) != (there == needed):
            raise RefusedError(
                f"the file has some of the tensors that {name} stands for, and {row.model_class} has all or none",
                code="unmapped-tensor",
                key=rule.gguf,
                found="none" if not there else "some",
                hint=_STAY,
            )
    return found


def _built_in(row: Row, config: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """What the architecture computes whatever the file says."""
    found: dict[str, Any] = {}
    for fixed in row.fixed:
        value = fixed.values[0] if fixed.default is None or fixed.default not in fixed.values else fixed.default
        if fixed.key not in config and (value or value == [] or fixed.default is not None):
            found[fixed.key] = value
    if row.family in _SCALED_BY_WIDTH:
        by_width = sizes.layers == _SCALED_BY_WIDTH[row.family]
        found["query_pre_attn_scalar"] = sizes.hidden // sizes.heads if by_width else sizes.head_dim
    if row.further_layers is not None:
        found[row.further_layers] = 0
    if row.family == "deepseek_v2":
        found["topk_method"] = "group_limited_greedy" if (config.get("n_group") or 1) > 1 else "greedy"
    if row.family == "deepseek_v3":
        found["topk_method"] = "noaux_tc"
    return found


def _rope(family: Family, keys: Keys, groups: Sequence[GgufGroup]) -> dict[str, Any]:
    """The plain rope in both forms, with the windows and the layers that differ."""
    main = next((group for group in groups if group.label == FULL and group.spec is not None), None)
    main = main or next((group for group in groups if group.spec is not None), None)
    if main is None or main.spec is None:
        raise RefusedError("no layer of this file has a rope", code="unexpressible", key=keys.full("rope"), hint=_STAY)
    theta, share = decimal(main.spec.rope_theta), _share(main.spec)
    settings: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    found: dict[str, Any] = dict.fromkeys(family.theta_keys, theta)
    if family.partial_rotary_keys:
        settings["partial_rotary_factor"] = share
        found[family.partial_rotary_keys[0]] = share
    elif share != 1.0:
        raise RefusedError(
            f"the class of {family.name} turns whole heads, and this file a part of them",
            code="unexpressible",
            key=keys.full("rope.dimension_count"),
            found=f"{main.spec.rotary_dim} of {main.spec.head_dim}",
            hint=_STAY,
        )
    if family.form == "phi3":
        # transformers 5 fills in 4096 where it is missing.
        found["original_max_position_embeddings"] = keys.required(CONTEXT)
    layers = {layer: group.label for group in groups for layer in group.layers}
    labels = [layers[layer] for layer in sorted(layers)]
    sliding = next((group for group in groups if group.label == SLIDING), None)
    if family.form == "nested":
        own = sliding.spec if sliding is not None else None
        local = decimal(own.rope_theta) if own is not None else family.local_rope_theta or theta
        if family.local_theta_key is not None:
            found[family.local_theta_key] = local
        settings = {FULL: settings, SLIDING: {**settings, "rope_theta": local}}
    found |= {"rope_scaling": None, "rope_parameters": settings}
    if sliding is not None:
        found[family.window_key] = sliding.window
        found["layer_types"] = labels
        found |= _period(family, labels)
    elif family.form == "nested":
        found["layer_types"] = labels
    if UNROTATED in labels:
        found["no_rope_layers"] = [int(label != UNROTATED) for label in labels]
        found |= _period(family, labels)
    return found


def _period(family: Family, labels: Sequence[str]) -> dict[str, int]:
    """The number by which older readers know the pattern, where it is one."""
    key = family.layer_pattern.period_key
    odd = UNROTATED if UNROTATED in labels else FULL
    if key is None or odd not in labels:
        return {}
    period = labels.index(odd) + 1
    regular = all((label == odd) == ((i + 1) % period == 0) for i, label in enumerate(labels))
    return {key: period} if regular else {}


def _share(spec: RopeSpec) -> float:
    """The part of a head that turns, from which readers get the same dimensions by rounding down."""
    share = spec.rotary_dim / spec.head_dim
    return share if int(spec.head_dim * share) == spec.rotary_dim else math.nextafter(share, 1.0)


# Tokens.


def _tokens(gguf: Gguf, vocab: int) -> dict[str, int]:
    """The special tokens by the ends of their keys; without those that lie outside of the vocabulary."""
    found = {}
    for key, entry in gguf.values.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and type(entry.value) is int:
            found[key.removeprefix("tokenizer.ggml.")] = entry.value
    return {name: number for name, number in found.items() if 0 <= number < vocab}


def _generation(tokens: Mapping[str, int]) -> dict[str, Any]:
    """generation_config.json: generation ends at the end of a text, of a turn and of a message."""
    ends = list(
        dict.fromkeys(tokens[f"{end}_token_id"] for end in ("eos", "eot", "eom") if f"{end}_token_id" in tokens)
    )
    said: dict[str, Any] = {
        "bos_token_id": tokens.get("bos_token_id"),
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
        "pad_token_id": tokens.get("padding_token_id"),
    }
    return {key: value for key, value in said.items() if value is not None}


# Tensors.


def _targets(row: Row, settings: Settings, sizes: Sizes, infos: Mapping[str, TensorInfo]) -> tuple[Target, ...]:
    parts: dict[str, list[Part]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    elements: dict[str, int] = {}
    used = {FREQS, LONG, SHORT}
    for options in places(row, settings, sizes):
        place = options[0]
        layout = place.layout
        info = infos.get(layout.name)
        if info is None:
            if not place.rule.optional and (place.rule.spared is None or not settings.on(place.rule.spared)):
                raise _missing(layout.name)
            continue
        if info.shape != layout.shape:
            raise _broken(info, str(list(layout.shape)))
        used.add(info.name)
        for index, name in enumerate(place.sources):
            part = Part(tensor=info.name, index=index if layout.stacked else None, operations=layout.operations)
            parts.setdefault(name, []).append(part)
            shapes[name] = place.shape
            elements[name] = elements.get(name, 0) + info.elements // len(place.sources)
    unused = [name for name in infos if name not in used]
    if unused:
        raise RefusedError(
            f"{len(unused)} tensors of the file have no place in {row.model_class}",
            code="unmapped-tensor",
            key=unused[0],
            found=", ".join(unused[:3]) + (" ..." if len(unused) > 3 else ""),
            hint=_STAY,
        )
    for name, count in elements.items():
        if count != math.prod(shapes[name]):
            raise AssertionError(f"{row.family}: {name} is not covered once")
    return tuple(
        Target(name=name, shape=shapes[name], parts=tuple(held), exact=name.endswith(".e_score_correction_bias"))
        for name, held in parts.items()
    )


def _broken(info: TensorInfo, expected: str) -> CheckpointError:
    return CheckpointError(
        "a tensor isn't as large as the file's keys say",
        code="broken-tensor",
        file=info.file,
        key=info.name,
        expected=expected,
        found=str(list(info.shape)),
        hint=_AGAIN,
    )


def _missing(name: str) -> CheckpointError:
    return CheckpointError(
        "the file has not all tensors that its keys speak of",
        code="missing-tensor",
        key=name,
        expected="a tensor of this name",
        found="none",
        hint=_AGAIN,
    )


def _notes(row: Row, keys: Keys) -> tuple[Note, ...]:
    known = {key.name for key in row.keys} | _OTHER_KEYS
    prefix = f"{row.architecture}."
    named = [key.removeprefix(prefix) for key in keys.values if key.startswith(prefix)]
    unread = [name for name in named if name not in known and not name.startswith(_OTHER_KEY_PREFIXES)]
    if not unread:
        return ()
    rest = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
    message = f"keys of the file that {row.model_class} has no setting for: {', '.join(unread[:5])}{rest}"
    return (Note(code="unread-keys", message=message),)
