"""How a tensor of a GGUF file is made from tensors of a safetensors checkpoint: data, and no arithmetic.

Shapes have the slowest dimension first. Each operation names what llama.cpp's layout of an architecture asks
for; ``tensors/`` carries them out on bytes, and takes them back when a GGUF file becomes safetensors.
"""

from __future__ import annotations

from msgspec import Struct


class Rows(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The rows ``start`` to ``stop`` of the first dimension: one part of a fused tensor."""

    start: int
    stop: int


class PairRows(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """In each of ``heads`` equal runs of rows, rows i and i + half become neighbours 2i and 2i + 1.

    What the interleaved ropes of GGUF (LLAMA_ROPE_TYPE_NORM) need of q and k that pair halves.
    """

    heads: int


class SplitHeads(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Rows that lie head by head, each with its ``parts`` (q, k, v), then lie part by part, each with its heads."""

    heads: int
    parts: int


class HeadRows(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Of each of ``heads`` equal runs of rows, the rows ``start`` to ``stop``."""

    heads: int
    start: int
    stop: int


class TransposeHeads(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Each of ``heads`` equal runs of rows is transposed: (heads x rows, columns) becomes (heads, columns, rows)."""

    heads: int


class Transpose(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Rows become columns: transformers' Conv1D holds a matrix as (inputs, outputs)."""


class AddOne(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One is added to every element: Gemma's norms are stored as their distance from one."""


class Reshape(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The same elements in another shape."""

    shape: tuple[int, ...]


Operation = Rows | PairRows | SplitHeads | HeadRows | TransposeHeads | Transpose | AddOne | Reshape


class Layout(Struct, frozen=True, kw_only=True):
    """One tensor of the GGUF file, by its name and ``shape`` there.

    ``sources`` are the checkpoint's tensors that it is made of: one, or with ``stacked`` several that are
    laid one after the other along a new first dimension (experts). ``operations`` are done to each source,
    in order, before stacking. ``exact``: F32 whatever type is asked for (norms, biases, routers).
    ``values``: the numbers of a tensor that is made of none (rope factors).
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()
    stacked: bool = False
    exact: bool = False
    values: tuple[float, ...] | None = None
