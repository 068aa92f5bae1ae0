"""What the lab can run: a model that predicts the next token, and no more of a text than it has positions for.

Both are known from the config and the tensors' names and shapes, before any weight is read.
"""

from __future__ import annotations

from msgspec import UNSET

from ctxextend.errors import RefusedError
from ctxextend.formats.gguf_keys import POSITION_TABLE, Keys
from ctxextend.formats.hf_positions import read_positions
from ctxextend.formats.hf_read import text_config
from ctxextend.inspection import Inspection
from ctxextend.lab.engines import Choice, engine_of, require_modules
from ctxextend.lab.engines.libllama import library
from ctxextend.lab.names import NOT_CAUSAL
from ctxextend.pipeline import Opened
from ctxextend.plan import Plan
from ctxextend.runtimes.auto_classes import kind_of


def require_next_token(opened: Opened, inspection: Inspection) -> None:
    """Raises :class:`RefusedError` for a model that isn't trained to predict the next token of a text."""
    _path, text = text_config(inspection.config, inspection.family)
    gguf = opened.contents.gguf
    encodes = gguf is not None and Keys(gguf.values, str(gguf.architecture)).encodes
    kind = "encoder" if encodes else kind_of(text, inspection.family)
    if kind == "decoder":
        return
    why = "this model is an encoder: each token sees the whole text, and the next one isn't predicted"
    hint = "measure it at the task that it was trained for"
    if kind == "encoder" and gguf is None:
        hint += "; if it was trained as a decoder, say so in config.json (is_decoder)"
    elif kind != "encoder":
        why = "this model is an encoder with a decoder: it answers a text that was read, and doesn't go on from one"
    raise RefusedError(
        why,
        code=NOT_CAUSAL,
        file=opened.source.given,
        key="model_type",
        expected="a model that predicts the next token",
        found=str(inspection.model_type),
        hint=hint,
    )


def require_runnable(opened: Opened, inspection: Inspection, plan: Plan) -> None:
    """Raises before anything is written where what the plan makes of the source couldn't be run here.

    :class:`RefusedError` for a model that can't be, :class:`UsageError` for what isn't installed.
    """
    require_next_token(opened, inspection)
    if plan.to == "gguf":
        library()
        return
    require_modules("torch", "transformers", "accelerate")
    if opened.contents.gguf is None:
        from ctxextend.lab.engines.transformers import require_class

        require_class(opened.contents.config, file="config.json")


def most_tokens(opened: Opened, inspection: Inspection, choice: Choice) -> int | None:
    """The longest text that the model has positions for, past which it fails; None where nothing ends."""
    contents = opened.contents
    if contents.gguf is not None:
        # llama.cpp computes the penalty of ALiBi for any distance; rows that aren't there abort the whole process.
        rows = (tensor.shape[0] for tensor in contents.tensors if tensor.name == POSITION_TABLE)
        return next(rows, None)
    if inspection.position in ("rope", "none"):
        return None
    found = read_positions(contents.tensors, contents.config, inspection.family)
    if found is None or (found.sinusoids is not None and found.sinusoids.unlimited):
        return None
    if found.position == "alibi":
        inside = choice.endpoint is None and engine_of(opened, choice.engine) == "transformers"
        facts = inspection.family.positions
        return found.length if inside and getattr(facts, "limits_transformers", False) else None
    return found.length


def require_positions(opened: Opened, inspection: Inspection, choice: Choice, *, length: int, option: str) -> None:
    """Raises :class:`RefusedError` for a ``length`` in tokens, given by ``option``, past the model's last position."""
    most = most_tokens(opened, inspection, choice)
    if most is None or length <= most:
        return
    raise RefusedError(
        "the model has no positions for a text of this length, and fails there",
        code="past-positions",
        file=opened.source.given,
        key=option,
        expected=f"at most {most} tokens",
        found=str(length),
        hint=more_positions(opened, inspection, length),
    )


def more_positions(opened: Opened, inspection: Inspection, length: int) -> str:
    """What makes positions for ``length`` tokens: weights that were resized, or lie in a GGUF file, aren't resized."""
    if opened.contents.gguf is not None and inspection.position != "alibi":
        return f"ctxextend convert BASE --target {length} --to gguf, of the folder that it was made of, makes more"
    if inspection.record is not None and inspection.record.baked is not UNSET:
        return f"ctxextend convert BASE --target {length}, of the checkpoint that it was made of, makes more"
    return f"ctxextend convert {opened.source.given} --target {length} makes more"
