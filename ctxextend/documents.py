"""The JSON documents that others rely on and that no other room holds as a value. Fields are only ever added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType

from ctxextend.contents import Note, Storage
from ctxextend.errors import CtxextendError
from ctxextend.families import Position
from ctxextend.inspection import Group, Inspection
from ctxextend.kv_cache import KvCache
from ctxextend.parameters import Quantisation
from ctxextend.scaling import Scaling

#: The dtypes a KV cache is quoted in, with their bits.
_CACHE_DTYPES: Final = (("float32", 32), ("bfloat16", 16), ("float8", 8))


class ErrorDocument(Struct, frozen=True, kw_only=True):
    """Why a command ended: what (``code`` is stable), where (``file`` and ``key``), and what mends it (``hint``)."""

    schema: str = "ctxextend.error/1"
    code: str
    message: str
    file: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    expected: str | UnsetType = UNSET
    found: str | UnsetType = UNSET
    hint: str | UnsetType = UNSET
    exit_code: Literal[1, 2, 3, 4, 5, 130]


class RopeGroup(Struct, frozen=True, kw_only=True):
    """Layers (by index) that share a rope, as they stand; the geometry is null for layers without one.

    ``origin``: where their scaling comes from, null without one or where nothing tells. ``window`` counts tokens.
    ``extendable``: whether an extension touches them.
    """

    label: str
    layers: tuple[int, ...]
    theta: float | None
    head_dim: int | None
    rotary_dim: int | None
    scaling: Scaling | None
    origin: Literal["trained", "bolted-on", "ours"] | None
    window: int | None
    extendable: bool


class CacheAt(Struct, frozen=True, kw_only=True):
    """The KV cache of one sequence of ``context`` tokens, windows applied."""

    context: int
    dtype: str
    bytes: int


class CacheSizes(Struct, frozen=True, kw_only=True):
    """What the KV cache takes. ``bytes_per_token``: of the whole model at 16 bits, windows ignored."""

    bytes_per_token: int
    at: tuple[CacheAt, ...]


class Fits(Struct, frozen=True, kw_only=True):
    """The longest ``context`` whose 16-bit cache fits beside the weights; null where the cache isn't known."""

    memory_bytes: int
    weight_bytes: int
    context: int | None


class InspectionDocument(Struct, frozen=True, kw_only=True):
    """What a checkpoint is. Lengths count tokens; ``dtypes`` counts parameters; ``fits`` answers ``--memory``."""

    schema: str = "ctxextend.inspection/1"
    source: str
    revision: str | None
    model_type: str | None
    family: str
    position: Position
    format: Storage
    parameters: int | None
    size_bytes: int
    weight_bytes: int
    dtypes: Mapping[str, int]
    quantisation: Quantisation | None
    tied_embeddings: bool
    trained_context: int
    current_context: int
    groups: tuple[RopeGroup, ...]
    kv_cache: CacheSizes | None
    notes: tuple[Note, ...]
    fits: Fits | UnsetType = UNSET


class MethodRow(Struct, frozen=True, kw_only=True):
    """A method, its parameters with their defaults, and the paper or program that it comes from."""

    name: str
    summary: str
    source: str
    parameters: Mapping[str, Any]


class MethodsDocument(Struct, frozen=True, kw_only=True):
    """The methods, built in or installed."""

    schema: str = "ctxextend.methods/1"
    methods: tuple[MethodRow, ...]


class FamilyGguf(Struct, frozen=True, kw_only=True):
    """What a family is called in GGUF; ``exported``: by ctxextend, not only by llama.cpp's converter."""

    architecture: str
    exported: bool


class FamilyRow(Struct, frozen=True, kw_only=True):
    """A model family: which published scalings were trained in, and which are only added by hand.

    ``refusal``: why none of its models is extended; ``not_baked``: why its weights can't take an attention factor.
    """

    family: str
    model_types: tuple[str, ...]
    position: Position
    trained_in: tuple[str, ...]
    added_by_hand: tuple[str, ...]
    refusal: str | None
    gguf: FamilyGguf | None
    not_baked: str | None


class FamiliesDocument(Struct, frozen=True, kw_only=True):
    """The families. ``wrappers``: the language model in each wrapper; ``refused``: model types, and why."""

    schema: str = "ctxextend.families/1"
    families: tuple[FamilyRow, ...]
    wrappers: Mapping[str, str]
    refused: Mapping[str, str]


class RuntimeRow(Struct, frozen=True, kw_only=True):
    """A runtime over one range of versions. ``default``: it must agree unless ``--runtimes`` names others.

    ``evidence``: how its reading is known.
    """

    runtime: str
    versions: str
    current: bool
    default: bool
    evidence: str


class RuntimesDocument(Struct, frozen=True, kw_only=True):
    """The runtimes whose reading of a checkpoint is known."""

    schema: str = "ctxextend.runtimes/1"
    runtimes: tuple[RuntimeRow, ...]


def error_document(error: CtxextendError) -> ErrorDocument:
    """``ctxextend.error/1``."""
    details: dict[str, Any] = error.details()
    return ErrorDocument(**details)


def inspection_document(
    inspection: Inspection, *, target: int | None = None, memory_bytes: int | None = None
) -> InspectionDocument:
    """``ctxextend.inspection/1``. ``target`` counts tokens; ``memory_bytes`` asks what length fits in it."""
    return InspectionDocument(
        source=inspection.source,
        revision=inspection.revision,
        model_type=inspection.model_type,
        family=inspection.family.name,
        position=inspection.position,
        format=inspection.format,
        parameters=inspection.parameters,
        size_bytes=inspection.size_bytes,
        weight_bytes=inspection.weight_bytes,
        dtypes=dict(inspection.dtypes),
        quantisation=inspection.quantisation,
        tied_embeddings=inspection.tied_embeddings,
        trained_context=inspection.trained_context,
        current_context=inspection.current_context,
        groups=tuple(_group(group) for group in inspection.groups),
        kv_cache=None
        if inspection.kv_cache is None
        else _cache(inspection.kv_cache, lengths_of_interest(inspection, target)),
        notes=inspection.notes,
        fits=UNSET if memory_bytes is None else fits(inspection, memory_bytes),
    )


def fits(inspection: Inspection, memory_bytes: int) -> Fits:
    """The longest context whose 16-bit cache fits beside the weights; None where the cache isn't known."""
    left = memory_bytes - inspection.weight_bytes
    cache = inspection.kv_cache
    longest = None if cache is None else (cache.longest(left) if left > 0 else 0)
    return Fits(memory_bytes=memory_bytes, weight_bytes=inspection.weight_bytes, context=longest)


def lengths_of_interest(inspection: Inspection, target: int | None) -> tuple[int, ...]:
    """The trained, the current and the target length, each once."""
    lengths = (inspection.trained_context, inspection.current_context, target)
    return tuple(sorted({length for length in lengths if length}))


def _group(group: Group) -> RopeGroup:
    spec = group.spec
    return RopeGroup(
        label=group.label,
        layers=group.layers,
        theta=spec.rope_theta if spec else None,
        head_dim=spec.head_dim if spec else None,
        rotary_dim=spec.rotary_dim if spec else None,
        scaling=group.scaling,
        origin=None if group.origin == "undecided" else group.origin,
        window=group.window,
        extendable=group.extendable,
    )


def _cache(cache: KvCache, lengths: tuple[int, ...]) -> CacheSizes:
    at = tuple(
        CacheAt(context=length, dtype=dtype, bytes=cache.size_bytes(length, bits=bits))
        for length in lengths
        for dtype, bits in _CACHE_DTYPES
    )
    return CacheSizes(bytes_per_token=cache.bytes_per_token, at=at)
