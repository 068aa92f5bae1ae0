"""Run by the Python of another transformers: the logits of checkpoints, saved beside their weights.

Reads one JSON object a line (``folder``, ``tokens``, ``name``) and prints one a line: ``folder`` with
``error``, None where ``NAME.npy`` was written into the folder: shape (positions, vocabulary), float32.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch


def save_logits(folder: Path, tokens: list[int], name: str) -> str | None:
    """The logits of every position; an exception of the model's own is told, not raised."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0]
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"[:300]
    np.save(folder / f"{name}.npy", logits.numpy())
    return None


def main() -> None:
    """Answer every line."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        error = save_logits(Path(asked["folder"]), asked["tokens"], asked["name"])
        sys.stdout.write(json.dumps({"folder": asked["folder"], "error": error}) + "\n")


if __name__ == "__main__":
    main()
