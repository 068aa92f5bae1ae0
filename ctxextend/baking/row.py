"""What a row says of a family: which tensors its queries come out of, and which places of them are rotated."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

#: How the rows of a tensor follow each other, in units of a head's size.
#: ``heads``: head after head, of queries alone (or of one vector). ``joined``: all heads of queries, then of keys,
#: then of values. ``per_head``: the query, the key and the value of each head. ``per_group``: the queries of each
#: key's group, then that key, then its value.
Arrangement = Literal["heads", "joined", "per_head", "per_group"]


class Site(Struct, frozen=True, kw_only=True):
    """One module of a layer that is multiplied: its weight, and its bias where it has one.

    ``names`` are those under the layer's prefix, the first that is there counts; ``#`` stands for any number. What
    is multiplied is ``rotary_dim`` dimensions of every head, after those that ``before`` names.
    """

    names: tuple[str, ...]
    layout: Arrangement = "heads"
    #: Keys of config.json whose sum is the size of a head here; without any, the rope's own.
    size: tuple[str, ...] = ()
    #: Keys whose sum is the number of dimensions ahead of those that are multiplied; ``-`` takes one away.
    before: tuple[str, ...] = ()
    #: Keys whose sum is the number of dimensions that are multiplied, where it isn't ``rotary_dim``.
    taken: tuple[str, ...] = ()
    #: How many blocks as large as all queries stand ahead of them.
    lead: int = 0
    #: ``attention``: the square of what multiplies cosines and sines. ``softmax``: what multiplies all scores.
    factor: Literal["attention", "softmax"] = "attention"
    #: All of the tensor is multiplied, whatever its shape.
    whole: bool = False
    #: The model adds 1 to the weight that is stored.
    added_one: bool = False
    #: Not every layer has it.
    optional: bool = False


#: Sites of one way in which a checkpoint can hold its queries.
Form = tuple[Site, ...]


class Case(Struct, frozen=True, kw_only=True):
    """What holds instead where config.json says ``value`` at ``key``; ``absent`` is what the class takes it for.

    ``None`` as ``value`` stands for anything but null.
    """

    key: str
    value: Any = None
    absent: Any = None
    forms: tuple[Form, ...] = ()
    refusal: str | None = None


class Row(Struct, frozen=True, kw_only=True):
    """Families with the same tensors. The first of ``cases`` that applies counts, else ``forms``."""

    families: tuple[str, ...]
    forms: tuple[Form, ...] = ()
    cases: tuple[Case, ...] = ()
    #: Why nothing can be put into the weights.
    refusal: str | None = None
    #: Parts of a tensor's name ahead of the layers, beside those of every language model.
    prefixes: tuple[str, ...] = ()
    #: Several stacks of layers, or copies of one, are all multiplied.
    copies: bool = False
    #: Every layer that has the tensor is multiplied: layers share it, or have two, or attend to something else.
    every: bool = False
