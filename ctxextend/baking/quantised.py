"""A change of a quantised weight, passed on to the scales that its integers are multiplied by.

A quantised matrix is ``scale * (integer - zero)``, so that rows are multiplied exactly where each scale covers rows
that are all multiplied or all left: then only the scale is rounded, to its own dtype. What each quantiser stores was
read in the source of what reads it:

* GPTQ: ``qweight`` [in * bits / 32, out], ``scales`` [groups, out] (GPTQModel, ``nn_modules/qlinear/__init__.py``).
* AWQ: ``qweight`` [in, out * bits / 32] with its integers shuffled by eights, ``scales`` [groups, out] in natural
  order (``gemm``); [out, ...] both in ``gemv`` (AutoAWQ, ``modules/linear``, ``utils/packing_utils.py``; vLLM,
  ``quantization/awq_triton.py``).
* FP8: one scale, one a row or one a block (transformers, ``integrations/finegrained_fp8.py`` and ``fbgemm_fp8.py``;
  vLLM, ``quantization/fp8.py``, ``modelopt.py`` and ``quark/schemes/quark_w8a8_fp8.py``).
* compressed-tensors: ``quantization/lifecycle/forward.py`` and ``compressors/`` of that package.
* bitsandbytes in 8 bits: ``SCB`` [out], the largest of each row (``functional.py``, ``int8_vectorwise_dequant``).
* MLX and Metal: ``scales`` and ``biases`` [out, groups], ``scale * integer + bias``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Struct

from ctxextend.changes import ScaleTensor, Slice
from ctxextend.contents import TensorInfo
from ctxextend.errors import RefusedError
from ctxextend.families.wrappers import inner_config

_HINT: Final = (
    "bake the unquantised checkpoint and quantise the result, or leave the temperature out: --bake buffers or none"
)

#: Dtypes that hold a weight, or a scale, as a number of its own.
_PLAIN: Final = frozenset({"F16", "BF16", "F32", "F64"})
_FLOAT8: Final = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_PACKED: Final = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})

#: What stands beside a weight that was quantised.
_BESIDE: Final = (
    "qweight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_global_scale",
    "qscale_weight",
    "scale",
    "scales",
    "SCB",
    "weight.absmax",
)

#: The names of the tensor that an FP8 weight is multiplied by. ``scale`` is DeepSeek V4's, ``qscale_weight`` Mistral's.
_FP8_SCALES: Final = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")

#: Why what a quantiser made can't be scaled by its rows.
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "aqlm": "its weights are sums of entries of codebooks that rows share",
        "vptq": "its weights are entries of codebooks that rows share",
        "spqr": "its scales are themselves packed integers of 3 bits",
        "higgs": "its rows are rotated and looked up in a shared grid",
        "hqq": "its scales are reshaped with the packed weights, and may be integers themselves",
        "quanto": "its weights are stored as parts of tensor subclasses, in the order of a kernel",
        "eetq": "its weights are stored in the order of a kernel",
        "torchao": "its weights are stored as parts of tensor subclasses, in an order that each of them chooses",
        "bitnet": "one scale covers the whole matrix, and runtimes disagree whether it divides or multiplies",
        "mxfp4": "its scales are powers of two",
        "nvfp4": "its scales are stored in the order of a kernel",
        "fp_quant": "its rows are rotated, with scales of 8 bits",
        "sinq": "its scales are shared by rows and by columns",
        "fouroversix": "its scales are numbers of 8 bits",
    }
)

#: Projections and norms that make keys; all others that are baked make queries.
_KEYS: Final = frozenset({"k_proj", "k_norm", "k_layernorm", "key_layernorm", "kv_a_proj_with_mqa", "wk"})

#: Projections that runtimes join into one, for which they take the largest of three global scales.
_JOINED: Final = ("q_proj", "k_proj", "v_proj")


def through_scales(
    change: ScaleTensor, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[ScaleTensor, ...]:
    """What multiplies the rows that ``change`` means: the change itself for a weight that was left as it is.

    ``change`` names ``MODULE.weight`` as an unquantised checkpoint has it, [out, in], and rows of it. Static scales
    that queries or keys are quantised with follow where all of them are multiplied. Raises :class:`RefusedError`
    (``not-bakeable``) where scales can't take it.
    """
    path, _, leaf = change.name.rpartition(".")
    quantisation = _declared(config)
    module = _Module(
        change=change, path=path, tensors=tensors, quantisation=quantisation or {}, method=_method(quantisation, config)
    )
    weight = tensors.get(change.name)
    if leaf != "weight":
        # A bias stays a number whatever was done to the matrix.
        if weight is None or weight.dtype not in _PLAIN:
            raise module.refusal("this is no tensor of plain numbers", weight, expected="F16, BF16, F32 or F64")
        return (change,)
    beside = [name for name in _BESIDE if module.get(name) is not None]
    if weight is not None and weight.dtype in _PLAIN and not beside:
        return (change, *_activations(module, weight.shape[change.axis]))
    if change.axis != 0 or change.added_one:
        raise module.refusal("only rows of a quantised matrix can be multiplied", weight, expected="axis 0")
    if weight is None and not beside:
        raise module.refusal(
            "nothing that a known quantiser stores stands under this name",
            None,
            expected=f"{path}.weight, or one of {', '.join(_BESIDE[:3])}",
        )
    return _METHODS.get(module.method, _unknown)(module)


class _Module(Struct, frozen=True, kw_only=True):
    """A module that was quantised, and what is to happen to its weight."""

    change: ScaleTensor
    path: str
    tensors: Mapping[str, TensorInfo]
    quantisation: Mapping[str, Any]
    method: str

    def get(self, leaf: str) -> TensorInfo | None:
        return self.tensors.get(f"{self.path}.{leaf}")

    def need(self, leaf: str, dtypes: frozenset[str], dimensions: int | None) -> TensorInfo:
        """The tensor of this name. Raises :class:`RefusedError` where it isn't there, or isn't what was expected."""
        found = self.get(leaf)
        shape = "" if dimensions is None else f" of {dimensions} dimensions"
        expected = f"{self.path}.{leaf}{shape} in {' or '.join(sorted(dtypes))}"
        if found is None:
            raise self.refusal("a tensor that belongs to the method is missing", None, expected=expected)
        if found.dtype not in dtypes or dimensions not in (None, len(found.shape)):
            raise self.refusal("a tensor isn't stored as the method stores it", found, expected=expected)
        return found

    def refusal(self, why: str, tensor: TensorInfo | None, *, expected: str) -> RefusedError:
        method = f" ({self.method})" if self.method else ""
        return RefusedError(
            f"{self.change.name}{method} can't be multiplied by {self.change.factor:.6g}: {why}",
            code="not-bakeable",
            file=self.change.file if tensor is None else tensor.file,
            key=self.change.name if tensor is None else tensor.name,
            expected=expected,
            found="nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}",
            hint=_HINT,
        )


def _declared(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says of the quantisation, at its top or in the language model's part."""
    for node in (config, inner_config(config) or {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            found = node.get(key)
            if isinstance(found, dict):
                return found
    return None


def _method(quantisation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> str:
    """The quantiser's name; ``mlx`` for MLX-LM's own, which doesn't say one; empty where nothing is said."""
    if quantisation is None:
        return ""
    name = quantisation.get("quant_method")
    if name:
        return str(name).lower()
    if "compression_config" in config or "config_groups" in quantisation:
        return "compressed-tensors"
    return "mlx" if {"group_size", "bits"} <= quantisation.keys() else ""


# What each quantiser stores.


def _gptq(module: _Module) -> tuple[ScaleTensor, ...]:
    said = module.quantisation
    layout = str(said.get("checkpoint_format") or said.get("format") or "gptq").lower()
    weight = module.need("qweight", _PACKED, 2)
    if layout not in ("gptq", "gptq_v2") or said.get("is_marlin_format"):
        raise module.refusal(
            "it is packed in the order of a kernel", weight, expected="checkpoint_format gptq or gptq_v2"
        )
    scales = module.need("scales", _PLAIN, 2)
    if scales.shape[1] != weight.shape[1]:
        raise module.refusal("the scales aren't one a column", scales, expected=f"[groups, {weight.shape[1]}]")
    return _rows_of(module, weight.shape[1], scales, axis=1)


def _awq(module: _Module) -> tuple[ScaleTensor, ...]:
    said = module.quantisation
    layout = str(said.get("version") or said.get("checkpoint_format") or said.get("format") or "gemm").lower()
    if str(said.get("backend") or "").lower() == "llm-awq":
        layout = "llm-awq"
    bits = said.get("bits") or said.get("w_bit") or 4
    weight = module.need("qweight", frozenset({"I32", "U32"}), 2)
    scales = module.need("scales", _PLAIN, 2)
    if layout == "gemm":
        if scales.shape[1] * bits != weight.shape[1] * 32:
            raise module.refusal(
                "the scales aren't one a column", scales, expected=f"[groups, {weight.shape[1] * 32 // bits}]"
            )
        return _rows_of(module, scales.shape[1], scales, axis=1)
    if layout == "gemv":
        if scales.shape[0] != weight.shape[0]:
            raise module.refusal("the scales aren't one a row", scales, expected=f"[{weight.shape[0]}, groups]")
        return _rows_of(module, weight.shape[0], scales)
    raise module.refusal(f"the version {layout} is packed in the order of a kernel", weight, expected="gemm or gemv")


def _auto_round(module: _Module) -> tuple[ScaleTensor, ...]:
    packing = str(module.quantisation.get("packing_format") or "auto_round:auto_gptq").lower()
    # Both name the layout of the other tool; format, version and the like mean something else in this config.
    as_other = {
        "auto_round:auto_gptq": _gptq,
        "auto_round:gptq": _gptq,
        "auto_round:auto_awq": _awq,
        "auto_round:awq": _awq,
    }
    if packing not in as_other:
        raise module.refusal(
            f"the packing {packing} isn't known", module.get("qweight"), expected=" or ".join(as_other)
        )
    bits = {key: value for key, value in module.quantisation.items() if key == "bits"}
    return as_other[packing](msgspec.structs.replace(module, quantisation=bits))


def _fp8(module: _Module) -> tuple[ScaleTensor, ...]:
    weight = module.need("weight", _FLOAT8, 2)
    block = module.quantisation.get("weight_block_size")
    return _by_grid(module, weight, _only_scale(module, weight), {_pair(block)} - {None}, vector=True)


def _modelopt(module: _Module) -> tuple[ScaleTensor, ...]:
    if module.get("weight_scale_2") is not None:
        weight = module.need("weight", frozenset({"U8"}), 2)
        return _global(module, weight.shape[0], "weight_scale_2", module.change.factor)
    return _fp8(module)


def _compressed(module: _Module) -> tuple[ScaleTensor, ...]:
    packed = module.get("weight_packed")
    weight = (
        module.need("weight", _FLOAT8 | {"I8"}, 2)
        if packed is None
        else module.need("weight_packed", frozenset({"I32", "U8"}), 2)
    )
    rows = weight.shape[0]
    if module.quantisation.get("transform_config") and not _covers(_spans(module, rows), rows):
        raise module.refusal(
            "a transform mixes the rows of this matrix", weight, expected="no transform_config, or all rows multiplied"
        )
    if module.get("weight_global_scale") is not None:
        # It divides: weight = integer * weight_scale / weight_global_scale.
        return _global(module, rows, "weight_global_scale", 1 / module.change.factor)
    scale = module.get("weight_scale")
    if scale is None:
        raise module.refusal("its scale is missing", weight, expected=f"{module.path}.weight_scale")
    groups = module.quantisation.get("config_groups")
    schemes = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) else []
    blocks = {_pair(scheme.get("block_structure")) for scheme in schemes if isinstance(scheme, dict)} - {None}
    return _by_grid(module, weight, scale, blocks, vector=False)


def _bitsandbytes(module: _Module) -> tuple[ScaleTensor, ...]:
    weight = module.get("weight")
    if module.get("SCB") is None or weight is None:
        raise module.refusal(
            "in 4 bits a block of weights runs on from row to row, and its scales are quantised themselves",
            weight,
            expected=f"{module.path}.SCB, of 8 bits",
        )
    weight = module.need("weight", frozenset({"I8"}), 2)
    scale = module.need("SCB", frozenset({"F32"}), 1)
    if scale.shape != weight.shape[:1]:
        raise module.refusal("the scales aren't one a row", scale, expected=f"[{weight.shape[0]}]")
    return _rows_of(module, weight.shape[0], scale)


def _affine(biases: str) -> Callable[[_Module], tuple[ScaleTensor, ...]]:
    """Both halves of ``scale * integer + bias``, [out, groups] each."""

    def scaled(module: _Module) -> tuple[ScaleTensor, ...]:
        weight = module.need("weight", frozenset({"U32"}), 2)
        parts = [module.need(leaf, _PLAIN, 2) for leaf in ("scales", biases)]
        for part in parts:
            if part.shape[0] != weight.shape[0]:
                raise module.refusal("the scales aren't one a row", part, expected=f"[{weight.shape[0]}, groups]")
        return _rows_of(module, weight.shape[0], *parts)

    return scaled


def _unknown(module: _Module) -> tuple[ScaleTensor, ...]:
    if not module.method:
        why = "config.json doesn't say how it was quantised"
    else:
        why = _REASONS.get(module.method, "how this method stores weights isn't known")
    found = module.get("weight") or next(tensor for leaf in _BESIDE if (tensor := module.get(leaf)) is not None)
    known = sorted(name for name in _METHODS if name)
    raise module.refusal(why, found, expected=f"quant_method one of {', '.join(known)}")


_METHODS: Final[Mapping[str, Callable[[_Module], tuple[ScaleTensor, ...]]]] = MappingProxyType(
    {
        "gptq": _gptq,
        "awq": _awq,
        "auto-round": _auto_round,
        "intel/auto-round": _auto_round,
        "fp8": _fp8,
        "mxfp8": _fp8,
        "fbgemm_fp8": _fp8,
        "modelopt": _modelopt,
        "modelopt_fp4": _modelopt,
        "quark": _fp8,
        "compressed-tensors": _compressed,
        "bitsandbytes": _bitsandbytes,
        "mlx": _affine("biases"),
        "metal": _affine("qbiases"),
    }
)


# How scales cover rows.


def _only_scale(module: _Module, weight: TensorInfo) -> TensorInfo:
    found = [tensor for leaf in _FP8_SCALES if (tensor := module.get(leaf)) is not None]
    if len(found) != 1:
        raise module.refusal(
            "it has no scale" if not found else "it has several scales", weight, expected=f"one of {_FP8_SCALES}"
        )
    return found[0]


def _by_grid(
    module: _Module, weight: TensorInfo, scale: TensorInfo, blocks: set[tuple[int, int] | None], *, vector: bool
) -> tuple[ScaleTensor, ...]:
    """A scale for the tensor, for each row ([out] only where ``vector``), for groups in a row, or for each block."""
    rows = weight.shape[0]
    if scale.elements == 1:
        return _rows_of(module, rows, scale, height=rows)
    if scale.shape == (rows,) and vector:
        return _rows_of(module, rows, scale)
    if len(scale.shape) == 2:
        if scale.shape[0] == rows:
            return _rows_of(module, rows, scale)
        grids = {
            block: tuple(map(math.ceil, (rows / block[0], weight.shape[1] / block[1]))) for block in blocks if block
        }
        heights = {block[0] for block, grid in grids.items() if grid == scale.shape}
        if len(heights) == 1:
            return _rows_of(module, rows, scale, height=heights.pop())
    known = ", ".join(f"{block[0]} x {block[1]}" for block in blocks if block)
    raise module.refusal(
        "which rows each of its scales covers isn't known",
        scale,
        expected=f"one scale, one for each of {rows} rows, or one a block{f' of {known}' if known else ''}",
    )


def _rows_of(
    module: _Module, rows: int, *scales: TensorInfo, axis: int = 0, height: int = 1
) -> tuple[ScaleTensor, ...]:
    """The scales of ``height`` rows each, multiplied where their rows are."""
    spans = _spans(module, rows)
    for scale in scales:
        _check_dtype(module, scale)
    torn = next((edge for span in spans for edge in span if edge % height and edge != rows), None)
    if torn is not None:
        raise module.refusal(
            "a scale covers rows that are multiplied and rows that are not",
            scales[0],
            expected=f"scales that part at row {torn} of {rows}, not every {height} rows",
        )
    blocks = tuple((start // height, math.ceil(stop / height)) for start, stop in spans)
    slices = () if _covers(spans, rows) else module.change.slices if height == 1 else _slices(blocks)
    return (
        *(_scaling(scale, module.change.factor, slices=slices, axis=axis) for scale in scales),
        *_activations(module, rows),
    )


def _global(module: _Module, rows: int, leaf: str, factor: float) -> tuple[ScaleTensor, ...]:
    """NVFP4's scale of a whole matrix, above those of its groups, which have too few bits to be multiplied."""
    module.need("weight_scale", frozenset({"F8_E4M3"}), 2)
    scale = module.need(leaf, frozenset({"F32"}), None)
    if scale.elements != 1 or not _covers(_spans(module, rows), rows):
        raise module.refusal(
            "its global scale covers all rows, and those of its groups have 3 bits of precision",
            scale,
            expected="all rows multiplied",
        )
    parent = module.path.rpartition(".")[0]
    others = [f"{parent}.{name}" for name in _JOINED if f"{parent}.{name}" != module.path]
    joined = [name for name in others if f"{name}.{leaf}" in module.tensors]
    if joined:
        # vLLM (modelopt.py, compressed_tensors_w4a4_nvfp4.py) and SGLang do so whatever the values are.
        raise module.refusal(
            f"runtimes join it with {' and '.join(joined)}, and give all of them the largest global scale",
            scale,
            expected="a projection that stands alone",
        )
    return (_scaling(scale, factor), *_activations(module, rows))


def _check_dtype(module: _Module, scale: TensorInfo) -> None:
    power_of_two = math.frexp(module.change.factor)[0] == 0.5
    exponents = scale.dtype == "F8_E8M0" or str(module.quantisation.get("scale_fmt")).lower() == "ue8m0"
    if exponents and scale.dtype in _PLAIN | {"F8_E8M0"}:
        # ue8m0 in float32 is cast to powers of two when it is loaded.
        if power_of_two:
            return
        raise module.refusal("its scales are powers of two, and this factor isn't one", scale, expected="F32")
    if scale.dtype not in _PLAIN:
        raise module.refusal(
            "its scales have too few bits to be multiplied", scale, expected="scales in F16, BF16, F32 or F64"
        )


def _spans(module: _Module, rows: int) -> tuple[tuple[int, int], ...]:
    """The rows that are multiplied, as spans that don't touch. Raises :class:`RefusedError` for rows past the last."""
    spans = sorted(_pieces(module.change.slices)) if module.change.slices else [(0, rows)]
    last = max((stop for _, stop in spans), default=0)
    if last > rows:
        raise module.refusal(
            f"it has {rows} rows, and rows up to {last} were to be multiplied",
            module.get("weight"),
            expected=f"{last} rows",
        )
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


def _pieces(slices: tuple[Slice, ...]) -> Iterator[tuple[int, int]]:
    for piece in slices:
        for base in range(piece.lower, piece.upper, piece.period):
            start, stop = base + piece.start, min(base + piece.stop, piece.upper)
            if start < stop:
                yield start, stop


def _slices(spans: tuple[tuple[int, int], ...]) -> tuple[Slice, ...]:
    return tuple(
        Slice(lower=start, upper=stop, period=stop - start, start=0, stop=stop - start) for start, stop in spans
    )


def _covers(spans: tuple[tuple[int, int], ...], rows: int) -> bool:
    return spans == ((0, rows),)


def _pair(value: Any) -> tuple[int, int] | None:
    """A block's rows and columns; older compressed-tensors wrote ``128x128``."""
    if isinstance(value, str):
        parts = value.split("x")
        value = [int(part) for part in parts] if all(part.isdigit() for part in parts) else None
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(part) is int and part > 0 for part in value):
        return value[0], value[1]
    return None


def _scaling(tensor: TensorInfo, factor: float, *, slices: tuple[Slice, ...] = (), axis: int = 0) -> ScaleTensor:
    return ScaleTensor(file=tensor.file, name=tensor.name, factor=factor, slices=slices, axis=axis)


# Queries and keys that are quantised themselves.


def _activations(module: _Module, rows: int) -> tuple[ScaleTensor, ...]:
    """The static scales that the product of this module is quantised with.

    They were calibrated on what the unbaked model computes, so that a larger product would be clipped. Runtimes read
    ``q_scale`` and ``k_scale`` of the attention, or ``output_scale`` of a projection, as scales for FP8 attention
    and caches (vLLM, ``quantization/kv_cache.py`` and ``model_loader/weight_utils.py``; compressed-tensors,
    ``modeling/attention.py``). Scales of probabilities and of inputs stay: what they are for doesn't change.
    """
    parent, _, own = module.path.rpartition(".")
    letter = "k" if own in _KEYS else "q"
    projection = f"{parent}.{letter}_proj"
    places = [f"{place}.{letter}_scale" for place in (parent, f"{parent}.attn", projection, module.path)]
    outputs = [f"{place}.output_scale" for place in (projection, module.path)]
    shared = [f"{parent}.kv_scale", f"{parent}.attn.kv_scale", f"{parent}.kv_b_proj.k_scale"] if letter == "k" else []
    found = [module.tensors[name] for name in dict.fromkeys((*places, *outputs, *shared)) if name in module.tensors]
    for scale in found:
        if scale.name in shared or not _covers(_spans(module, rows), rows):
            raise module.refusal(
                "a static scale is for what is multiplied and for what is not",
                scale,
                expected="all that it covers multiplied, or scales that are computed as the model runs",
            )
        if scale.name == outputs[0] and module.path != projection:
            raise module.refusal(
                "some runtimes quantise with this scale before this module, others behind it",
                scale,
                expected=f"a {letter}_scale of the attention",
            )
        _check_dtype(module, scale)
    return tuple(_scaling(scale, module.change.factor) for scale in found)
