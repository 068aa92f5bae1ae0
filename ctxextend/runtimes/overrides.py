"""What makes an engine serve the original files with the new settings: the change without a new checkpoint.

Sources: vLLM 0.33 ``config/model.py:616-687`` (dictionaries are merged into the loaded config), SGLang
0.5.23 ``utils/hf_transformers/config.py:405-425``; transformers' keyword arguments were run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.formats.rope_keys import LENGTH_SYNONYMS

#: What an engine that builds on transformers 5 needs: its own spelling of the rope, and the length, whose key goes by
#: other names in models without a rope.
_KEYS: Final = (
    "max_position_embeddings",
    "rope_parameters",
    "original_max_position_embeddings",
    *LENGTH_SYNONYMS,
)


class Overrides(Struct, frozen=True, kw_only=True, rename={"mlx_lm": "mlx-lm"}):
    """What makes an engine serve the original files with the new settings: a command line or a snippet of each that
    has such models.

    ``config``: the settings themselves.
    """

    schema: str = "ctxextend.overrides/1"
    config: Mapping[str, Any]
    vllm: str | UnsetType = UNSET
    sglang: str | UnsetType = UNSET
    transformers: str
    mlx_lm: str | UnsetType = UNSET


def overrides(edits: Iterable[Edit], *, name: str, target: int, absent: Container[str] = ()) -> Overrides:
    """Command lines (and a snippet) by runtime that serve ``name`` at ``target`` tokens with these edits.

    ``absent``: the runtimes that have no such model.
    """
    wanted = apply_edits({}, (e for e in edits if e.path[-1] in _KEYS and not e.removes))
    text = json.dumps(wanted)
    quoted = shlex.quote(text)
    source = shlex.quote(name)
    return Overrides(
        config=wanted,
        vllm=UNSET if "vllm" in absent else f"vllm serve {source} --hf-overrides {quoted} --max-model-len {target}",
        sglang=UNSET
        if "sglang" in absent
        else f"python -m sglang.launch_server --model-path {source} --json-model-override-args {quoted} "
        f"--context-length {target}",
        transformers="AutoModelForCausalLM.from_pretrained("
        f"{name!r}, config=AutoConfig.from_pretrained('PATH_OF_THIS_FOLDER'))",
        mlx_lm=UNSET
        if "mlx-lm" in absent
        else "takes no override: put this folder's config.json beside a copy of the weights",
    )
