"""What a model does with a text, and so which of transformers' classes loads it.

Read in the mappings of its 5.23 (``models/auto/modeling_auto.py``); ``tests/lab/test_runnable.py`` holds the rows to
them. A family in neither row is a decoder, which goes on from a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from ctxextend.families import Family

#: ``decoder``: predicts the next token; ``encoder``: each token sees the whole text, and none is predicted from those
#: before it; ``encoder-decoder``: a decoder that follows a text which an encoder has read.
Kind = Literal["decoder", "encoder", "encoder-decoder"]

_ENCODERS: Final = frozenset(
    {
        "bert",
        "distilbert",
        "embedding_gemma2",
        "esmc",
        "eurobert",
        "gte",
        "jina_embeddings_v3",
        "longformer",
        "modernbert",
        "mpnet",
        "neomme",
        "nomic_bert",
        "openai_privacy_filter",
        "roberta",
        "ultrabert",
        "xlm",
    }
)
_ENCODER_DECODERS: Final = frozenset(
    {"bart", "blenderbot", "blenderbot_small", "fsmt", "m2m_100", "marian", "pegasus_x"}
)

#: Keys by which a family of encoders has decoders too: those of BERT and its kin, and XLM's.
_CAUSAL_KEYS: Final = ("is_decoder", "causal")

#: The class of each.
CLASSES: Final[Mapping[Kind, str]] = MappingProxyType(
    {"decoder": "AutoModelForCausalLM", "encoder": "AutoModel", "encoder-decoder": "AutoModelForSeq2SeqLM"}
)


def kind_of(text: Mapping[str, Any], family: Family) -> Kind:
    """What a model of this family is, by ``text``: the settings of its language model."""
    if text.get("is_encoder_decoder") is True:
        return "encoder-decoder"
    if any(text.get(key) is True for key in _CAUSAL_KEYS):
        return "decoder"
    if family.name in _ENCODER_DECODERS and text.get("is_encoder_decoder") is not False:
        return "encoder-decoder"
    return "encoder" if family.name in _ENCODERS else "decoder"


def class_of(text: Mapping[str, Any], family: Family) -> str:
    """The class that loads it, by ``text``: the settings of its language model."""
    return CLASSES[kind_of(text, family)]
