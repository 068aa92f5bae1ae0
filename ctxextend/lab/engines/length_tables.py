"""Ropes whose frequencies depend on how long the text is, held to one length while it is read in pieces.

transformers sets a dynamic or longrope table by the positions of each forward. Of a text that is read in
chunks the first ones would be turned by other frequencies than the last, which no forward over the whole
text does. Here every piece is turned as the whole would be.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any


class LengthTables:
    """The rope modules of a model that change with the length of the text."""

    def __init__(self, model: Any) -> None:
        self._length = 0
        self._set: Hashable = ()
        self._modules = [module for module in model.modules() if any(_changing(module))]
        for module in self._modules:
            module.register_forward_pre_hook(self._see_the_end, with_kwargs=True)
            module.register_forward_hook(_drop_the_end)

    def set_length(self, tokens: int) -> Hashable:
        """Turn what comes as in a text of ``tokens``. Equal values of two lengths: their tables are the same."""
        wanted = tuple(
            tokens > original if kind == "longrope" else max(tokens, original)
            for module in self._modules
            for _label, kind, original in _changing(module)
        )
        if wanted != self._set:
            self.reset()
        self._length, self._set = tokens, wanted
        return wanted

    def reset(self) -> None:
        """Back to the tables of a model that was just loaded: a dynamic one doesn't shrink by itself."""
        for module in self._modules:
            for label, kind, original in _changing(module):
                prefix = f"{label}_" if label else ""
                table = getattr(module, f"{prefix}original_inv_freq").clone()
                module.register_buffer(f"{prefix}inv_freq", table, persistent=False)
                if kind == "dynamic":
                    setattr(module, f"{prefix}max_seq_len_cached", original)
        self._length, self._set = 0, ()

    def _see_the_end(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Add the text's last position to those asked for."""
        import torch

        named = "position_ids" in kwargs
        positions = kwargs["position_ids"] if named else args[1]
        end = torch.full_like(positions[..., :1], max(self._length - 1, 0))
        positions = torch.cat((positions, torch.maximum(end, positions[..., -1:])), dim=-1)
        if named:
            return args, {**kwargs, "position_ids": positions}
        return (args[0], positions, *args[2:]), kwargs


def _drop_the_end(_module: Any, _args: Any, turned: Any) -> Any:
    """What was asked for, of cosines and sines (..., positions, dimensions)."""
    if isinstance(turned, tuple):
        return tuple(part[..., :-1, :] for part in turned)
    return turned[..., :-1, :]


def _changing(module: Any) -> Iterator[tuple[str, str, int]]:
    """Label, kind and original length in tokens of each of a module's tables that change with the length."""
    stated = getattr(module, "rope_type", None)
    kinds = stated if isinstance(stated, dict) else {"": stated}
    for label, kind in kinds.items():
        if not isinstance(kind, str) or not hasattr(module, "original_max_seq_len"):
            continue
        if "dynamic" in kind:
            yield label, "dynamic", int(module.original_max_seq_len)
        elif kind == "longrope":
            parameters = module.config.rope_parameters
            parameters = parameters[label] if label else parameters
            yield label, "longrope", int(parameters["original_max_position_embeddings"])
