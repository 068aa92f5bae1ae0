"""Checkpoints without torch: contents as values, and tiny directories of safetensors written by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxextend.contents import DTYPE_BITS, Contents, Document, FileInfo, TensorInfo
from ctxextend.families import Family
from ctxextend.formats.json_edit import apply_edits, edit_text
from ctxextend.inspection import Inspection, inspect
from ctxextend.plan import Plan, edits_of, make_plan
from ctxextend.recipe import Recipe
from tests.family_keys import KEYS as FAMILY_KEYS
from tests.layered_family_keys import KEYS as LAYERED_KEYS

TypeAndShape = tuple[str, tuple[int, ...]]

#: A model small enough for every test: one layer of two heads of 32.
TINY: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "vocab_size": 96,
}

#: Keys of TINY that a family's configs don't have.
_DROPPED: Mapping[str, tuple[str, ...]] = {"gpt_neox": ("rope_theta",)}


def config(**changes: Any) -> dict[str, Any]:
    """A tiny Llama's config.json with ``changes``."""
    return {**TINY, **changes}


def family_config(family: Family, **changes: Any) -> dict[str, Any]:
    """A tiny config.json of a family with plain rope, in the older form of published configs."""
    own = dict(({**FAMILY_KEYS, **LAYERED_KEYS}).get(family.name, {}))
    dropped = _DROPPED.get(family.name, ())
    base = {key: value for key, value in TINY.items() if key not in (*dropped, "architectures")}
    return {**base, "model_type": family.model_types[0], **own, **changes}


def contents(
    config: Mapping[str, Any],
    *,
    name: str = "Tiny",
    text: str | None = None,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
    tensors: Mapping[str, TypeAndShape] | None = None,
    tokenizer_truncation: Mapping[str, Any] | None = None,
) -> Contents:
    """A checkpoint as the pure rooms see it. ``text`` is config.json's own spelling; tensors map to (dtype, shape)."""
    said: dict[str, Mapping[str, Any]] = {"config.json": config, **(documents or {})}
    texts = {path: json.dumps(value, indent=2) for path, value in said.items()}
    if text is not None:
        texts["config.json"] = text
    infos = tuple(
        TensorInfo(name=tensor, dtype=dtype, shape=shape, file="model.safetensors")
        for tensor, (dtype, shape) in (tensors or {}).items()
    )
    files = [FileInfo(path=path, size_bytes=len(value.encode())) for path, value in texts.items()]
    files.append(FileInfo(path="model.safetensors", size_bytes=sum(info.size_bytes for info in infos)))
    return Contents(
        name=name,
        source=name,
        storage="safetensors",
        files=tuple(files),
        documents={path: Document(text=texts[path], value=dict(value)) for path, value in said.items()},
        tensors=infos,
        tokenizer_truncation=tokenizer_truncation,
    )


def inspected(config: Mapping[str, Any], **options: Any) -> Inspection:
    """The inspection of a config alone; ``options`` are those of ``inspect``."""
    return inspect(contents(config), **options)


def planned(config: Mapping[str, Any], recipe: Recipe, **options: Any) -> Plan:
    """The plan for a config alone; ``options`` are those of ``inspect``."""
    checkpoint = contents(config)
    return make_plan(checkpoint, inspect(checkpoint, **options), recipe)


def converted(config: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """config.json as the plan leaves it."""
    return apply_edits(dict(config), edits_of(plan).get("config.json", ()))


def converted_text(text: str, plan: Plan) -> str:
    """The text of config.json as the plan leaves it."""
    return edit_text(text, edits_of(plan).get("config.json", ()))


def write_safetensors(path: Path, tensors: Mapping[str, TypeAndShape]) -> None:
    """A safetensors file of zeros, byte by byte: an 8-byte length, a JSON header, the data."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        elements = 1
        for size in shape:
            elements *= size
        start, end = end, end + elements * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    tensors: Mapping[str, TypeAndShape] | None = None,
    shards: Sequence[Mapping[str, TypeAndShape]] = (),
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """A tiny checkpoint directory: config.json, weights of zeros in one file or in ``shards``, more documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"config.json": config, **(documents or {})}.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    if not shards:
        write_safetensors(folder / "model.safetensors", tensors or {"model.embed_tokens.weight": ("F32", (96, 64))})
        return folder
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    text = json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder
