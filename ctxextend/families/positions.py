"""What a row says of positions that aren't a rope: a table with a row a position, sinusoids, or ALiBi."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Decoder(Struct, frozen=True, kw_only=True):
    """Where the sizes of a decoder's KV cache stand: keys of its layers and of its width, first match wins.

    ``heads_key``: the key of its heads, of which the cache has one where ``single_key`` isn't false.
    """

    layers: tuple[str, ...]
    width: tuple[str, ...]
    heads_key: str | None = None
    single_key: str | None = None


class Sinusoids(Struct, frozen=True, kw_only=True):
    """How a table of sinusoids is computed (the layouts are those of ``FillSinusoids``), and who computes it.

    ``read``: transformers takes the table from the weights where it is stored there; else it always computes it.
    ``unlimited``: it computes a larger one by itself, or needs none, whatever length config.json states.
    ``padding``: the row of the padding token is zero.
    """

    layout: Literal["halves", "tensor2tensor", "interleaved"]
    read: bool
    unlimited: bool = False
    padding: bool = False


class PositionTable(Struct, frozen=True, kw_only=True):
    """A table with a row a position. Names of tensors are endings, from a dot on: wrappers put more in front."""

    #: The tables that are added to the embeddings (an encoder's and a decoder's). One of sinusoids may be in no file.
    names: tuple[str, ...]
    #: The key of config.json that the class reads, and what it takes where that key isn't there.
    length_key: str = "max_position_embeddings"
    default_length: int
    #: Rows in front of the first position.
    reserved: int = 0
    #: The class counts from the row after the padding token's: the default of ``pad_token_id``, where it reads that.
    pad_token_id: int | None = None
    #: The length that config.json states counts the reserved rows too.
    counts_reserved: bool = False
    #: Buffers of the length's size that older checkpoints hold (masks, counted positions); current ones compute them.
    stale: tuple[str, ...] = ()
    #: The rows are computed; with a ``sinusoids_key``, only where that key of config.json is true.
    sinusoids: Sinusoids | None = None
    sinusoids_key: str | None = None
    #: The sizes of a model that keeps a cache of its own text alone.
    decoder: Decoder | None = None


class Alibi(Struct, frozen=True, kw_only=True):
    """ALiBi: a penalty of slope times distance a head (Press et al., arXiv 2108.12409, section 3)."""

    #: The key of config.json by which runtimes limit the length, and the length where it isn't there.
    length_key: str
    default_length: int
    #: Keys of the number of heads, first match wins, and the class's default.
    heads_keys: tuple[str, ...]
    heads: int
    #: Where the number of heads is no power of two: ``press`` adds every other slope of twice as many, ``mosaic``
    #: takes every other one of the next power of two first.
    layout: Literal["press", "mosaic"] = "press"
    #: Where the exponent of the gentlest slope stands (8 where it doesn't).
    largest_exponent_path: tuple[str, ...] = ()
    #: Where config.json says that there is no ALiBi, if it can, and what it must say for there to be.
    switch_path: tuple[str, ...] = ()
    #: The penalty is divided by the root of the head's size, as the scores are.
    scaled: bool = False
    #: transformers builds the bias for the stated length, and fails past it.
    limits_transformers: bool = False
    #: transformers computes the bias from the start of the text and rounds it: in the type of the weights, or always.
    rounded: Literal["weights", "bfloat16"] | None = None
    decoder: Decoder | None = None
