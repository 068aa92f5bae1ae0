"""What can be measured, and the bounds that it can be held to, by name.

Light enough for every start of the command line: plain values alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, get_args

#: What can be measured.
Task = Literal["perplexity", "sliding", "passkey", "needles", "variables", "words", "short"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)

#: Tasks in which something in the context is to be found and answered.
RetrievalTask = Literal["passkey", "needles", "variables", "words"]

#: What runs a model; ``auto`` takes llama.cpp for a GGUF file and transformers for anything else.
EngineName = Literal["auto", "transformers", "llama.cpp", "vllm"]

#: What ``--against`` says for the checkpoint as it was before ctxextend changed its config.
ORIGINAL: Final = "original"

#: The code of every refusal of a model that doesn't go on from a text.
NOT_CAUSAL: Final = "no-next-token"

#: The name of the model as it is, among the methods that are compared.
UNTOUCHED: Final = "none"

#: The bounds of a smoke test, which asks whether a model works, not how well.
SMOKE_PERPLEXITY_RATIO: Final = 2.0
SMOKE_PASSKEY: Final = 0.5


class Bound(NamedTuple):
    """A bound of ``eval``: its option, what ``--gate`` holds it to, and whether that is the most it may be."""

    option: str
    default: float
    most: bool
    meaning: str


#: Every bound by the name that it has in results. Where the defaults come from: docs/guides/evidence.md.
BOUNDS: Final[Mapping[str, Bound]] = MappingProxyType(
    {
        "perplexity-ratio": Bound(
            "--max-perplexity-ratio",
            1.25,
            most=True,
            meaning="perplexity past the trained length over that of the same text read within it",
        ),
        "passkey": Bound(
            "--min-passkey",
            0.8,
            most=False,
            meaning="share of pass keys that come back, at the length where it is lowest",
        ),
        "needles": Bound(
            "--min-needles",
            0.5,
            most=False,
            meaning="share of planted facts that come back, at the length where it is lowest",
        ),
        "short-regression": Bound(
            "--max-short-regression",
            0.05,
            most=True,
            meaning="perplexity over the original's at lengths it could do, less one",
        ),
        "kl": Bound(
            "--max-kl",
            0.1,
            most=True,
            meaning="mean KL divergence from the original in nats a token, at lengths it could do",
        ),
        "same-top": Bound(
            "--min-same-top",
            0.85,
            most=False,
            meaning="share of positions where the most likely token is the original's",
        ),
    }
)
