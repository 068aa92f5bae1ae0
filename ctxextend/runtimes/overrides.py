"""What makes an engine serve the original files with the new settings: the change without a new checkpoint.

Sources: vLLM 0.33 ``config/model.py:616-687`` (dictionaries are merged into the loaded config), SGLang
0.5.23 ``utils/hf_transformers/config.py:405-425``; transformers' keyword arguments were run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any, Final

from ctxextend.formats.json_edit import Edit, apply_edits

#: What an engine that builds on transformers 5 needs: its own spelling of the rope, and the length.
_KEYS: Final = ("max_position_embeddings", "rope_parameters", "original_max_position_embeddings")


def overrides(edits: Iterable[Edit], *, name: str, target: int) -> dict[str, Any]:
    """Command lines (and a snippet) by runtime that serve ``name`` at ``target`` tokens with these edits."""
    wanted = apply_edits({}, (e for e in edits if e.path[-1] in _KEYS and not e.removes))
    text = json.dumps(wanted)
    quoted = shlex.quote(text)
    source = shlex.quote(name)
    return {
        "schema": "ctxextend.overrides/1",
        "config": wanted,
        "vllm": f"vllm serve {source} --hf-overrides {quoted} --max-model-len {target}",
        "sglang": f"python -m sglang.launch_server --model-path {source} --json-model-override-args {quoted} "
        f"--context-length {target}",
        "transformers": "AutoModelForCausalLM.from_pretrained("
        f"{name!r}, config=AutoConfig.from_pretrained('PATH_OF_THIS_FOLDER'))",
        "mlx-lm": "takes no override: put this folder's config.json beside a copy of the weights",
    }
