"""What a recipe file may say, as values: one of these for each variant, after variables and matrix are filled in.

The keys are those of the command line, without dashes. Lengths are ``128k`` or numbers of tokens; where the command
line has a comma-separated list, a list does too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ctxextend.inspection import BaseChoice, SlidingWindow
from ctxextend.lab.names import EngineName
from ctxextend.recipe import Carrier
from ctxextend.record import Bake
from ctxextend.tensors.copying import LinkMode

#: A comma-separated text, or the list that it stands for.
Listed = str | tuple[str, ...]

#: Lengths in tokens: ``8k,32k``, ``32768``, or a list of either.
Lengths = int | str | tuple[int | str, ...]


class OutputPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One result of the conversion.

    ``name``: of its file or folder; ``repo_id``: where on the Hub it is published. ``smoke`` and ``eval``: whether it
    is run for these; of several outputs only the first is, where nothing says otherwise. ``local: false``: published
    without a copy here, weights that don't change being copied inside the Hub.
    """

    to: Literal["safetensors", "gguf"] | None = None
    outtypes: Listed = ()
    split_max_size: int | str | None = None
    name: str | None = None
    repo_id: str | None = None
    link_mode: LinkMode = "auto"
    checksums: bool = False
    quantizer: str | None = None
    converter: str | None = None
    smoke: bool | None = None
    eval: bool | None = None
    local: bool = True


class CheckPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each runtime must make of every output: as ``ctxextend check``.

    Of ``runtimes`` those count that read an output's format; where none does, those that the plan was made for.
    """

    runtimes: Listed | None = None
    against: str | None = None


class EnginePart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs a model. A server's key is never in a file: OPENAI_API_KEY has it."""

    engine: EngineName = "auto"
    endpoint: str | None = None
    served_name: str | None = None
    tokenizer: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    text: Listed = ()


class SmokePart(EnginePart, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the model works at its new length: as ``ctxextend smoke``; ``None`` is that command's default."""

    length: int | str | None = None
    max_perplexity_ratio: float | None = None
    min_passkey: float | None = None
    passkey: bool = True


class EvalPart(EnginePart, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How good it is along its context: as ``ctxextend eval``.

    ``against``: ``source`` for the recipe's, ``original``, or another checkpoint. ``gate`` holds it to every default
    bound; ``bounds`` names single ones (``perplexity-ratio``, ``passkey`` ...).
    """

    against: str | None = None
    lengths: Lengths | None = None
    tasks: Listed = ("perplexity", "passkey")
    windows: int = 2
    samples: int = 2
    depths: str | tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    needles: int = 4
    stride: int = 256
    short_lengths: Lengths | None = None
    seed: int = 1
    gate: bool = False
    bounds: Mapping[str, float] = {}


class PushPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How outputs with a ``repo_id`` are published: as ``ctxextend push``. A token is never in a file: HF_TOKEN."""

    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None
    include: Listed = ()
    exclude: Listed = ()
    card: bool = True
    allow: Listed = ()


class RecipeDocument(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant of a recipe: a conversion, what is written of it, what it is held to, and where it goes.

    ``out``: the folder that everything is written to. ``card``: whether the model card is written there too, to be
    read before it is published.
    """

    source: str
    revision: str | None = None
    method: str = "auto"
    target: int | str | None = None
    factor: float | None = None
    options: Mapping[str, Any] = {}
    original_context: int | str | None = None
    base: BaseChoice = "auto"
    layers: Listed = ()
    sliding_window: SlidingWindow = "keep"
    fine_tune: bool = False
    family: str | None = None
    runtimes: Listed | None = None
    carrier: Carrier = "auto"
    bake: Bake = "none"
    allow: Listed = ()
    out: str | None = None
    outputs: tuple[OutputPart, ...] = (OutputPart(),)
    check: bool | CheckPart = False
    smoke: bool | SmokePart = False
    eval: bool | EvalPart = False
    card: bool = False
    push: PushPart = PushPart()


#: Keys of a file that are filled in before there are variants: names with their values, and what varies.
VARIABLES: Final = "variables"
MATRIX: Final = "matrix"

#: Keys that a variant of the matrix may set: the conversion's, and those of the whole file that name one thing.
KEYS: Final = tuple(field.name for field in msgspec.structs.fields(RecipeDocument))


def listed(given: Listed | None) -> tuple[str, ...]:
    """The parts of a list, however it was given."""
    parts = given.split(",") if isinstance(given, str) else given or ()
    return tuple(part.strip() for part in parts if part.strip())
