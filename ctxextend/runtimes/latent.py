"""Latent attention in vLLM and SGLang: every scaling is taken for the yarn of DeepSeek's own code.

Sources: vLLM 0.33.0 ``models/deepseek_v2.py:542-561`` with ``rotary_embedding/deepseek_scaling_rope.py``;
SGLang 0.5.23 ``models/deepseek_v2.py:2065`` with ``rotary_embedding/factory.py`` (deepseek_yarn).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ctxextend.formats.hf_read import RopeGroup
from ctxextend.formats.rope_keys import type_of
from ctxextend.rope import RopeTable
from ctxextend.runtimes.base import number, with_temperature, yarn_pair_temperature
from ctxextend.scaling import Yarn, table

#: DeepSeek-V4's two ropes: the keys of their bases at the top level, and what the class has without them.
_BASES: Final = {"main": ("rope_theta", 10000.0), "compress": ("compress_rope_theta", 160000.0)}


def latent_table(group: RopeGroup, *, length: int, attn_factor: bool) -> RopeTable | str:
    """One group's table, or why the engine gets it wrong.

    The ramp's bounds are always rounded, and the temperature comes from mscale (default 1) and
    mscale_all_dim (default 0), never from attention_factor. ``attn_factor``: that key multiplies it.
    """
    assert group.spec is not None
    rope_type = type_of(group.settings)
    if rope_type == "default":
        return table(group.spec, None)
    if rope_type != "yarn" or not isinstance(group.scaling, Yarn):
        return f"its latent attention takes {rope_type} for yarn"
    rounded = msgspec.structs.replace(group.scaling, truncate=True)
    temperature = yarn_pair_temperature(group.scaling, both_needed=False)
    if attn_factor:
        stated = number(group.settings, "attn_factor")
        temperature *= 1.0 if stated is None else stated
    return table(group.spec, with_temperature(rounded, temperature), length=length)


def compressed_table(group: RopeGroup, text: Mapping[str, Any], *, length: int) -> RopeTable | str:
    """DeepSeek-V4 in vLLM: layers that compress take every scaling for yarn without a temperature, others are plain.

    The bases are the top level's, whatever the dictionaries say (vllm/models/deepseek_v4/common/rope.py).
    """
    assert group.spec is not None
    key, default = _BASES.get(group.label, _BASES["main"])
    spec = msgspec.structs.replace(group.spec, rope_theta=float(text.get(key) or default))
    rope_type = type_of(group.settings)
    if group.label != "compress" or rope_type == "default":
        return table(spec, None)
    if rope_type != "yarn" or not isinstance(group.scaling, Yarn):
        return f"its latent attention takes {rope_type} for yarn"
    rounded = msgspec.structs.replace(group.scaling, truncate=True)
    return table(spec, with_temperature(rounded, 1.0), length=length)
