"""Tiny random models without a rope, as transformers saves them, with the tokenizer of the demo checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from ctxextend.families import find_family
from ctxextend.runtimes.auto_classes import class_of
from tests.lab.demo import DEMO

#: The positions that each of them has.
ROWS: Final = 96

_SIZES: Final = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT: Final = {**_SIZES, "intermediate_size": 32, "max_position_embeddings": ROWS}
BART: Final = {
    "vocab_size": 2048,
    "d_model": 32,
    "max_position_embeddings": ROWS,
    **{f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in (("layers", 1), ("ffn_dim", 32))},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
DISTILBERT: Final = {
    "vocab_size": 2048,
    "dim": 32,
    "hidden_dim": 32,
    "n_layers": 1,
    "n_heads": 2,
    "max_position_embeddings": ROWS,
}
GPT2: Final = {"vocab_size": 2048, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": ROWS}
MPT: Final = {"vocab_size": 2048, "d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": ROWS}
CTRL: Final = {"vocab_size": 2048, "n_embd": 32, "dff": 32, "n_layer": 1, "n_head": 2, "n_positions": ROWS}
BLOOM: Final = {"vocab_size": 2048, "hidden_size": 32, "n_layer": 1, "n_head": 2, "seq_length": ROWS}
XGLM: Final = {
    "vocab_size": 2048,
    "d_model": 32,
    "ffn_dim": 32,
    "num_layers": 1,
    "attention_heads": 2,
    "max_position_embeddings": ROWS,
}


def saved(folder: Path, model_type: str, sizes: dict[str, Any]) -> Path:
    """A random model of this type in ``folder``."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**sizes)
    loader = class_of(config.to_dict(), find_family(config.to_dict()))
    getattr(transformers, loader).from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / "checkpoint" / name, folder)
    return folder
