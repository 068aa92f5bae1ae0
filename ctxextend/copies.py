"""Copies of the weights beside those that a checkpoint is loaded from, which don't follow a change of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ctxextend.changes import Action, Carry, Rewrite
from ctxextend.contents import Contents
from ctxextend.encoding import PlanWarning

#: Whole models for other loaders, by the names that transformers, Mistral and ONNX exporters give them.
_COPIES: Final = re.compile(
    r"(?:pytorch_model.*\.bin|tf_model.*\.h5|flax_model.*\.msgpack|rust_model\.ot|model\.[\w-]+\.safetensors"
    r"|consolidated.*\.(?:pth|safetensors)|original/consolidated.*\.pth|openvino.*|(?:onnx/)?[^/]*\.onnx(?:_data)?"
    r"|onnx/.*|coreml/.*|[^/]*\.(?:tflite|mlmodel))(?:\.index\.json)?"
)
#: What holds weights, wherever it stands.
_WEIGHTS: Final = (".safetensors", ".gguf")
_ADAPTER: Final = "adapter_model."


def without_other_weights(
    actions: tuple[Action, ...], contents: Contents
) -> tuple[tuple[Action, ...], tuple[PlanWarning, ...]]:
    """The actions without copies of the weights for other loaders, since they are the old ones.

    Only where tensors are rewritten; what is left out is said.
    """
    if not any(isinstance(action, Rewrite) for action in actions):
        return actions, ()
    own = {tensor.file for tensor in contents.tensors}
    out = {file.path for file in contents.files if file.path not in own and _COPIES.fullmatch(file.path)}
    if not out:
        return actions, ()
    sizes = {file.path: file.size_bytes for file in contents.files}
    kept: list[Action] = []
    for action in actions:
        if isinstance(action, Carry):
            files = tuple(file for file in action.files if file not in out)
            kept.append(Carry(files=files, size_bytes=sum(sizes[file] for file in files)))
        else:
            kept.append(action)
    warning = PlanWarning(
        code="other-weights-left-out",
        message=f"copies of the weights for other loaders are the old ones and are left out: {', '.join(sorted(out))}",
        hint="make them anew from the result where they are needed",
    )
    return tuple(kept), (warning,)


def beside(contents: Contents) -> Iterator[PlanWarning]:
    """What is said of weights that stay in the folder as they are, while those of the model change."""
    own = {tensor.file for tensor in contents.tensors}
    others = [f.path for f in contents.files if f.path.endswith(_WEIGHTS) and f.path not in own]
    others = [path for path in others if not _COPIES.fullmatch(path)]
    adapters = [path for path in others if path.rpartition("/")[2].startswith(_ADAPTER)]
    for path in adapters:
        yield PlanWarning(
            code="adapter-beside",
            message=f"{path} was trained on the weights as they were, and will see other queries",
            hint="leave --bake temperature away, or train it anew",
        )
    rest = [path for path in others if path not in adapters]
    if rest:
        yield PlanWarning(
            code="weights-beside",
            message=f"other weights in the folder stay as they are: {', '.join(rest)}",
            hint="take them out of the result where they are copies of the model",
        )
