"""The demo checkpoint as transformers has it, without anything of the lab in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parents[2] / "demo"


def load_model(folder: Path) -> Any:
    """The model in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def read_tokens(folder: Path, text: str) -> list[int]:
    """The text's token ids, without special ones."""
    from tokenizers import Tokenizer

    encoded: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return encoded
