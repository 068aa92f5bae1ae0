"""From a temperature to the places of tensors that are multiplied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from ctxextend.baking.quantised import through_scales
from ctxextend.baking.row import Form, Row, Site
from ctxextend.baking.rows import BY_FAMILY
from ctxextend.changes import ScaleTensor, Slice
from ctxextend.contents import Contents, TensorInfo
from ctxextend.errors import RefusedError
from ctxextend.families import Family
from ctxextend.formats.hf_layers import layer_labels
from ctxextend.formats.hf_read import text_config
from ctxextend.rope import Layout

#: Types of numbers that can be multiplied as they stand.
_PLAIN_DTYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})

#: Parts of a name that lead to the layers of a language model; any other part belongs to something else.
_PREFIXES: Final = frozenset(
    {
        "backbone_model",
        "esmc",
        "gpt_neox",
        "gpt_neox_japanese",
        "gte",
        "language_model",
        "llm",
        "lm",
        "model",
        "new",
        "nomic_bert",
        "roberta",
        "text_model",
        "thinker",
        "transformer",
        "ultrabert",
        "vlm",
    }
)
#: Layers that predict further tokens under the rope of the others.
_DRAFT: Final = re.compile(r"mtp\w*")
_LAYERS: Final = r"(?:layers|layer|h|blocks|mtp\w*)"
_HINT: Final = (
    "without --bake the config carries the factor, for runtimes that read it; --method ntk and linear have none"
)


class Fold(Struct, frozen=True, kw_only=True):
    """A temperature for the weights of some layers, whose config then declares none.

    ``attention_factor`` is what multiplied cosines and sines: scores of rotated dimensions are multiplied by its
    square. ``softmax_factor`` multiplies all scores (latent attention alone). ``rotary_dim``, ``head_dim`` and
    ``layout`` are those of the rope's geometry (:class:`ctxextend.rope.RopeSpec`).
    """

    layers: tuple[int, ...]
    attention_factor: float
    softmax_factor: float = 1.0
    rotary_dim: int
    head_dim: int
    layout: Layout


class _Found(Struct, frozen=True, kw_only=True):
    """One module of a checkpoint that a site speaks of."""

    path: str
    prefix: str
    layer: int
    draft: bool


class _Model(Struct, frozen=True, kw_only=True):
    """What is asked of a checkpoint while it is folded."""

    config: Mapping[str, Any]
    text: Mapping[str, Any]
    family: Family
    row: Row
    tensors: Mapping[str, TensorInfo]
    layers: int


def fold_temperature(
    contents: Contents, config: Mapping[str, Any], family: Family, folds: Sequence[Fold]
) -> tuple[ScaleTensor, ...]:
    """The changes that put the temperature into the weights: exact but for rounding.

    It goes into the queries alone (into the weights of their norm, where one stands ahead of the rotation), so that
    a cache of keys keeps its scale; with latent attention into the one rotated key a token, which all heads share.

    Raises :class:`RefusedError` (``not-bakeable``) where that isn't exact, or isn't known.
    """
    if contents.storage != "safetensors":
        raise _refusal(
            "only weights in safetensors files are rewritten",
            file=contents.source,
            found=contents.storage,
            hint="save the checkpoint with transformers first: model.save_pretrained(FOLDER)",
        )
    reason = why_not(family)
    if reason is not None:
        raise _refusal(f"the temperature of {family.name} can't be put into its weights: {reason}", found=family.name)
    _path, text = text_config(config, family)
    row = BY_FAMILY[family.name]
    model = _Model(
        config=config,
        text=text,
        family=family,
        row=row,
        tensors={tensor.name: tensor for tensor in contents.tensors},
        layers=len(layer_labels(text, family)),
    )
    form = _present(model, _forms(row, text, family))
    wanted = _by_layer(model, folds)
    changes: dict[str, ScaleTensor] = {}
    for site in form:
        if all(_factor(site, fold) == 1.0 for fold in wanted.values()):
            continue
        found = list(_modules(model, site))
        _complete(model, site, found, wanted)
        for module in found:
            fold = _fold_of(model, module, wanted)
            if fold is not None and _factor(site, fold) != 1.0:
                changes |= {change.name: change for change in _scaled(model, site, module, fold)}
    if not any(site.factor == "softmax" for site in form) and any(fold.softmax_factor != 1.0 for fold in folds):
        raise _refusal(f"nothing is known of a softmax factor in {family.name}", found=family.name)
    return tuple(change for _name, change in sorted(changes.items()))


def why_not(family: Family) -> str | None:
    """Why no temperature can be put into the weights of any model of a family; None where it can."""
    if family.position != "rope":
        return "it has no rope"
    row = BY_FAMILY.get(family.name)
    if row is None:
        return family.refusal or "nothing is known of where its queries come from"
    return row.refusal


def _forms(row: Row, text: Mapping[str, Any], family: Family) -> tuple[Form, ...]:
    """The forms that hold for this config."""
    for case in row.cases:
        said = text.get(case.key)
        said = case.absent if said is None else said
        if said is not None if case.value is None else said == case.value:
            if case.refusal is not None:
                raise _refusal(
                    f"the temperature of this {family.name} can't be put into its weights: {case.refusal}",
                    key=case.key,
                    found=repr(said),
                )
            return case.forms
    return row.forms


def _present(model: _Model, forms: tuple[Form, ...]) -> Form:
    """The form that the checkpoint's tensors have."""
    for form in forms:
        if any(True for site in form for _module in _modules(model, site)):
            return form
    name = forms[0][0].names[0]
    raise _refusal(
        f"no tensor of this checkpoint is named as the queries of {model.family.name} are",
        file=model.family.name,
        key=f"layers.N.{name}.weight",
        hint="is it an adapter, or has another tool renamed the tensors? Save the whole model with transformers first",
    )


def _modules(model: _Model, site: Site) -> Iterator[_Found]:
    """Every module that a site names, under the prefixes of a language model."""
    for name in site.names:
        under = re.escape(name).replace(r"\#", r"\d+").replace("#", r"\d+")
        pattern = re.compile(rf"((?:[^.]+\.)*?)({_LAYERS})\.(\d+)\.({under})\.(?:[^.]+|weight\..+)")
        found: dict[str, _Found] = {}
        for tensor in model.tensors:
            match = pattern.fullmatch(tensor)
            if match is None:
                continue
            prefix, container, layer, module = match.groups()
            draft = _draft(model, f"{prefix}{container}", int(layer))
            if draft is None:
                continue
            path = f"{prefix}{container}.{layer}.{module}"
            found[path] = _Found(path=path, prefix=prefix, layer=int(layer), draft=draft)
        if found:
            yield from found.values()
            return


def _draft(model: _Model, path: str, layer: int) -> bool | None:
    """Whether layers of that path predict further tokens; None for what isn't the language model."""
    parts = path.split(".")
    drafts = [part for part in parts if _DRAFT.fullmatch(part)]
    known = _PREFIXES | set(model.row.prefixes)
    if any(part not in known and part not in drafts for part in parts[:-1]):
        return None
    return bool(drafts) or (layer >= model.layers and not model.row.every)


def _by_layer(model: _Model, folds: Sequence[Fold]) -> dict[int, Fold]:
    """The fold of each layer. A row of shared tensors can't tell layers apart."""
    if model.row.every and len({(f.attention_factor, f.softmax_factor) for f in folds}) > 1:
        raise _refusal(
            f"layers of {model.family.name} share their weights, and these have different temperatures",
            found=", ".join(f"{fold.attention_factor:.6g}" for fold in folds),
        )
    return {layer: fold for fold in folds for layer in fold.layers}


def _fold_of(model: _Model, module: _Found, wanted: Mapping[int, Fold]) -> Fold | None:
    """The fold that counts for a module's layer."""
    if not (module.draft or model.row.every):
        return wanted.get(module.layer)
    first = next(iter(wanted.values()))
    if module.draft and (model.family.form == "nested" or len({_numbers(fold) for fold in wanted.values()}) > 1):
        raise _refusal(
            f"the checkpoint has layers that predict further tokens, and it isn't known which rope of "
            f"{model.family.name} is theirs",
            file=model.tensors[next(name for name in model.tensors if name.startswith(module.path))].file,
            key=module.path,
            hint=f"take them out of the checkpoint; or: {_HINT}",
        )
    return first


def _numbers(fold: Fold) -> tuple[float | str, ...]:
    return (fold.attention_factor, fold.softmax_factor, fold.rotary_dim, fold.head_dim, fold.layout)


def _complete(model: _Model, site: Site, found: Iterable[_Found], wanted: Mapping[int, Fold]) -> None:
    """Raises where a layer's tensor is missing, or is there twice."""
    own = [module for module in found if not module.draft]
    places: dict[tuple[int, str], set[str]] = {}
    for module in own:
        below = module.path.split(f"{module.layer}.", 1)[1]
        places.setdefault((module.layer, below), set()).add(module.prefix)
    twice = next((key for key, prefixes in places.items() if len(prefixes) > 1), None)
    if twice is not None and not model.row.copies:
        raise _refusal(
            "the checkpoint has two language models, and it isn't known which of them is meant",
            key=f"{twice[0]}.{twice[1]}",
            found=", ".join(sorted(places[twice])),
        )
    if site.optional or (model.row.every and own):
        return
    held = {module.layer for module in own}
    missing = sorted(set(wanted) - held)
    if missing:
        raise _refusal(
            f"the weights of layer {missing[0]} aren't in the checkpoint under the name that {model.family.name} has",
            key=f"layers.{missing[0]}.{site.names[0]}.weight",
            hint="is a file missing, or is it an adapter? Save the whole model with transformers first",
        )


def _factor(site: Site, fold: Fold) -> float:
    return fold.softmax_factor if site.factor == "softmax" else fold.attention_factor**2


def _scaled(model: _Model, site: Site, module: _Found, fold: Fold) -> Iterator[ScaleTensor]:
    """The change of a module's weight, and of its bias."""
    weight, bias = (model.tensors.get(f"{module.path}.{leaf}") for leaf in ("weight", "bias"))
    slices = _slices(model, site, module, fold, weight)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        change = ScaleTensor(
            file=tensor.file if tensor is not None else _any_file(model, module),
            name=f"{module.path}.{name}",
            factor=_factor(site, fold),
            slices=slices,
            added_one=site.added_one and name == "weight",
        )
        yield from through_scales(change, model.tensors, model.config)


def _any_file(model: _Model, module: _Found) -> str:
    return next(tensor.file for name, tensor in model.tensors.items() if name.startswith(f"{module.path}."))


def _slices(model: _Model, site: Site, module: _Found, fold: Fold, weight: TensorInfo | None) -> tuple[Slice, ...]:
    """The rows that are multiplied; none for all of them."""
    if site.whole:
        if site.factor == "attention" and fold.rotary_dim != fold.head_dim:
            raise _odd(model, module, f"{fold.rotary_dim} of {fold.head_dim} dimensions a head rotated")
        return ()
    size = _sum(model, site.size) if site.size else fold.head_dim
    # Pairs that stand still in a proportional rope have a cosine all the same, which is the factor.
    rotated = size if fold.layout == "proportional" else min(fold.rotary_dim, size)
    start = _sum(model, site.before)
    stop = start + (_sum(model, site.taken) if site.taken else rotated)
    if stop > size:
        raise _odd(model, module, f"{stop} of {size} dimensions a head")
    # What stands packed has another number of rows, which only the config tells.
    rows = weight.shape[0] if weight is not None and weight.dtype in _PLAIN_DTYPES else None
    if site.layout != "heads":
        return _among_others(model, site, module, size, (start, stop), rows)
    if (start, stop) == (0, size):
        return ()
    rows = _whole_number(model, "num_attention_heads") * size if rows is None else rows
    if rows % size:
        raise _odd(model, module, f"{rows} rows, heads of {size}")
    return (Slice(lower=0, upper=rows, period=size, start=start, stop=stop),)


def _among_others(
    model: _Model, site: Site, module: _Found, size: int, part: tuple[int, int], rows: int | None
) -> tuple[Slice, ...]:
    """The rows of queries in a tensor that holds keys and values as well."""
    start, stop = part
    heads = _whole_number(model, "num_attention_heads")
    if site.layout == "joined":
        lower = site.lead * heads * size
        upper = lower + heads * size
        if rows is not None and not upper < rows:
            raise _odd(model, module, f"{rows} rows, {heads} heads of {size}")
        return (Slice(lower=lower, upper=upper, period=size, start=start, stop=stop),)
    groups = heads if site.layout == "per_head" else _groups(model, heads)
    queries = heads // groups
    period = (queries + 2) * size
    if rows is not None and rows != groups * period:
        raise _odd(model, module, f"{rows} rows, expected {groups * period}")
    heads_of_a_group = [(head + start, head + stop) for head in range(0, queries * size, size)]
    parts = [(0, queries * size)] if (start, stop) == (0, size) else heads_of_a_group
    return tuple(Slice(lower=0, upper=groups * period, period=period, start=first, stop=last) for first, last in parts)


def _groups(model: _Model, heads: int) -> int:
    """Heads of keys."""
    stated = next((model.text[key] for key in model.family.kv_heads_keys if model.text.get(key)), heads)
    return int(stated)


def _sum(model: _Model, keys: tuple[str, ...]) -> int:
    """The sum of what stands at keys; a minus in front of a key takes it away."""
    return sum(-_whole_number(model, k[1:]) if k.startswith("-") else _whole_number(model, k) for k in keys)


def _whole_number(model: _Model, key: str) -> int:
    value = model.text.get(key)
    if value is None and model.family.kv_index is not None and key == model.family.kv_index[0]:
        value = model.family.kv_index[1]
    if value is None and key == "num_attention_heads":
        value = model.family.num_attention_heads
    if type(value) is not int or value <= 0:
        raise _refusal(
            "the place of the queries in a tensor can't be worked out",
            key=key,
            expected="a whole number",
            found=repr(value),
            hint=f"set {key} as the model's publisher has it",
        )
    return value


def _odd(model: _Model, module: _Found, found: str) -> RefusedError:
    return _refusal(
        f"a tensor hasn't got the shape that the config of {model.family.name} gives it",
        file=_any_file(model, module),
        key=module.path,
        found=found,
    )


def _refusal(
    message: str,
    *,
    file: str | None = None,
    key: str | None = None,
    expected: str | None = None,
    found: str | None = None,
    hint: str = _HINT,
) -> RefusedError:
    return RefusedError(
        message,
        code="not-bakeable",
        file=file or "config.json",
        key=key or "model_type",
        expected=expected,
        found=found,
        hint=hint,
    )
