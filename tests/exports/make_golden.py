"""Run by the Python of a llama.cpp converter (README.md beside ``golden/``): what it makes of checkpoints.

``make_golden.py FOLDER OUT``: FOLDER holds one checkpoint a folder, as ``tests/exports/models.py`` saves them.
Their weights are replaced by counting numbers, so that each element of the result says where it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from conversion import get_model_class  # type: ignore[import-not-found]
from conversion.base import ModelBase, TextModel  # type: ignore[import-not-found]
from gguf import GGUFReader, GGUFValueType, LlamaFileType
from safetensors.numpy import load_file, save_file


def count(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Tensors in the order of their names that count on from one to the next, in float32."""
    start, found = 0, {}
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        found[name] = np.arange(start, start + size, dtype=np.float32).reshape(shapes[name])
        start += size
    assert start < 2**24
    return found


def answer(folder: Path) -> dict[str, Any]:
    """The config and the shapes of one checkpoint, and the keys and tensors of its GGUF file."""
    config = json.loads((folder / "config.json").read_text())
    shapes = {name: list(array.shape) for name, array in load_file(folder / "model.safetensors").items()}
    with tempfile.TemporaryDirectory() as name:
        copy, out = Path(name) / "model", Path(name) / "out.gguf"
        copy.mkdir()
        (copy / "config.json").write_text(json.dumps(config))
        # What gemma3's class counts its vocabulary by.
        vocabulary = {str(i): i for i in range(96)}
        (copy / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
        save_file(count(shapes), copy / "model.safetensors", metadata={"format": "pt"})
        convert(copy, out, LlamaFileType.ALL_F32)
        reader = GGUFReader(out)
        keys = {key: value(field) for key, field in reader.fields.items() if "." in key}
        tensors = {tensor.name: described(tensor) for tensor in reader.tensors}
        convert(copy, out, LlamaFileType.MOSTLY_F16)
        exact = [tensor.name for tensor in GGUFReader(out).tensors if tensor.tensor_type.name == "F32"]
    architecture = keys["general.architecture"]["value"]
    own = {key: entry for key, entry in keys.items() if key.startswith(f"{architecture}.")}
    return {
        "config": config,
        "shapes": shapes,
        "architecture": architecture,
        "keys": own,
        "tensors": tensors,
        "exact": exact,
    }


def convert(folder: Path, out: Path, kind: LlamaFileType) -> None:
    """Without a vocabulary: these checkpoints have none. What transformers 5 calls otherwise has its older name."""
    hparams = ModelBase.load_hparams(folder, False)
    if hparams["model_type"] == "gpt_neox":
        hparams["rotary_pct"] = hparams["rope_parameters"]["partial_rotary_factor"]
    if hparams["model_type"] == "gpt2":
        hparams["n_ctx"] = hparams["n_positions"]
    # Its own code calls MPT's class so.
    model_class = get_model_class(hparams["architectures"][0].replace("MptFor", "MPTFor"))
    model_class.set_vocab = TextModel._set_vocab_none
    if hparams["model_type"] == "stablelm" and model_class.modify_tensors.__name__ != "handed":
        model_class.modify_tensors = handed_on(model_class.modify_tensors)
    model_class(folder, kind, out, eager=True, hparams=hparams).write()


def handed_on(method: Callable[..., Generator[Any, None, Any]]) -> Callable[..., Iterator[Any]]:
    """The tensors that stablelm's method returns at its end, where it should yield them: norms of heads are lost."""

    def handed(*arguments: Any) -> Iterator[Any]:
        yield from (yield from method(*arguments)) or ()

    return handed


def value(field: Any) -> dict[str, Any]:
    """A key's type and value."""
    kinds = [kind.name for kind in field.types]
    found = field.contents()
    if kinds[0] == GGUFValueType.ARRAY.name:
        return {"type": "ARRAY", "item": kinds[1], "value": list(found)}
    return {"type": kinds[0], "value": found}


def described(tensor: Any) -> list[Any]:
    """A tensor's shape, slowest dimension first, and what its bytes hash to."""
    assert tensor.tensor_type.name == "F32"
    shape = [int(size) for size in reversed(tensor.shape)]
    return [shape, hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest()[:16]]


def main() -> None:
    """One process a checkpoint: the converter's map of names remembers the last architecture."""
    folder, out = map(Path, sys.argv[1:])
    for checkpoint in sorted(folder.iterdir()):
        child = os.fork()
        if not child:
            text = json.dumps(answer(checkpoint), indent=None, separators=(",", ":"))
            (out / f"{checkpoint.name}.json").write_text(text + "\n")
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(f"{checkpoint.name}: the converter failed")


if __name__ == "__main__":
    main()
