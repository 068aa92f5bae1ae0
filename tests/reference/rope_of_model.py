"""Run by the Python of another transformers: what its own model of each config.json computes.

Reads one JSON object a line (``id``, ``config``, ``lengths``) and prints one a line: ``absent``,
``error``, or ``ropes`` (``module``, ``length``, ``inv_freq``, ``attention``) with ``softmax`` and
``mpe``. For ``model_types`` instead of a config it prints whether one of them is ``known``.
The numbers come from the cosines and sines that a model's rotary module returns, not from its
attributes: positions 0 and 1, in a batch whose last position is ``length - 1``. So whatever a class
ignores, overwrites or divides elsewhere is in them.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """What the model of one config does; an exception of its own is the answer's ``error``."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "model_types" in question:
        return {"known": any(model_type in CONFIG_MAPPING for model_type in question["model_types"])}
    given = dict(question["config"])
    model_type = given.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        return {"absent": True}
    try:
        config = CONFIG_MAPPING[model_type].from_dict({"model_type": model_type, **given})
        if type(config) not in AutoModel._model_mapping.keys():  # noqa: SIM118
            return {"absent": True}
        inner = config.get_text_config() if hasattr(config, "get_text_config") else config
        if type(inner) in AutoModel._model_mapping.keys():  # noqa: SIM118
            config = inner
        with torch.no_grad():
            model = AutoModel.from_config(config)
            ropes = [rope for length in question["lengths"] for rope in ropes_of(model, length)]
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"ropes": ropes, "softmax": softmax_factors(model), "mpe": getattr(config, "max_position_embeddings", None)}


def ropes_of(model: torch.nn.Module, length: int) -> Iterator[dict[str, Any]]:
    """The ropes of every rotary module that is used.

    Releases around 4.45 hand the model's own cosines down to layers that have a module of their own for
    callers from outside: those of the layers don't count then.
    """
    modules = {name: module for name, module in model.named_modules() if rotates(module) and "vis" not in name}
    outside = {name: module for name, module in modules.items() if "layers." not in name}
    if not modules:
        raise LookupError("no module of the model has inverse frequencies")
    for name, module in (outside or modules).items():
        for label in labels_of(module):
            frequencies, attention = rope(*turned(module, length, label))
            yield {
                "module": f"{name}.{label}" if label else name,
                "length": length,
                "inv_freq": frequencies,
                "attention": attention,
            }


def rotates(module: torch.nn.Module) -> bool:
    """Whether a module holds inverse frequencies."""
    return any(name.endswith("inv_freq") for name, _buffer in module.named_buffers(recurse=False))


def labels_of(module: torch.nn.Module) -> list[str]:
    """The layer types of a module that holds one rope each; one empty label for a plain one."""
    names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("_inv_freq")]
    labels = [name.removesuffix("_inv_freq") for name in names if "original" not in name]
    return labels or [""]


def turned(module: torch.nn.Module, length: int, label: str) -> Pair:
    """Cosines and sines of the first two positions, last dimension first pair to last."""
    hidden = torch.zeros(1, 1, 3, 8)
    positions = torch.tensor([[0, 1, length - 1]])
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        ((hidden, positions), {}),
        ((hidden, positions.expand(3, 1, 3)), {}),
        ((hidden,), {"seq_len": length}),
    )
    if label:
        calls = (((hidden, positions), {"layer_type": label}),)
    first: Exception | None = None
    for arguments, named in calls:
        try:
            found = module(*arguments, **named)
            break
        except Exception as error:  # noqa: BLE001
            first = first or error
    else:
        assert first is not None
        raise first
    if torch.is_tensor(found) and found.is_complex():
        found = (found.real, found.imag)
    cos, sin = (part.reshape(-1, *part.shape[-2:])[0][:2].double() for part in found)
    return cos, sin


def rope(cos: torch.Tensor, sin: torch.Tensor) -> tuple[list[float], float]:
    """Frequencies (one a pair) and temperature out of the rows of positions 0 and 1."""
    attention = float(cos[0, 0])
    assert torch.all(cos[0] == cos[0, 0]), "position 0 has more than one temperature"
    angles = torch.atan2(sin[1], cos[1])
    if len(angles) > 1 and len(angles) % 2 == 0:
        half = len(angles) // 2
        if torch.equal(angles[:half], angles[half:]):
            angles = angles[:half]
        elif torch.equal(angles[0::2], angles[1::2]):
            angles = angles[0::2]
    return angles.tolist(), attention


def softmax_factors(model: torch.nn.Module) -> list[float]:
    """What layers of latent attention multiply their usual softmax scale by."""
    factors = set()
    for module in model.modules():
        size = getattr(module, "qk_head_dim", None) or getattr(module, "q_head_dim", None)
        scale = getattr(module, "scaling", None) or getattr(module, "softmax_scale", None)
        if isinstance(size, int) and isinstance(scale, float):
            factors.add(scale * size**0.5)
    return sorted(factors)


def main() -> None:
    """Answer every line of standard input."""
    warnings.simplefilter("ignore")
    import transformers
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    torch.set_num_threads(1)
    print(json.dumps({"version": transformers.__version__}), flush=True)  # noqa: T201
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps({"id": question["id"], **answer(question)}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
