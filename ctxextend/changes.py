"""What a plan does to files: edits of JSON documents with the record of what they said, and what is carried.

Pure: works on the documents of :class:`Contents`, as they stand and as they were before an earlier
conversion of ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ctxextend.contents import Contents, Gguf, GgufEdits, GgufValue
from ctxextend.formats.json_edit import Edit, apply_edits, value_at
from ctxextend.inspection import Inspection
from ctxextend.record import KEY, InWeights, Record, before, pointer, undo
from ctxextend.version import VERSION

#: What an earlier output of ours holds beside the checkpoint's own files: made anew, never carried.
OURS: Final = frozenset({"ctxextend.json", "ctxextend-overrides.json"})

#: The index of a checkpoint that is split into several files.
INDEX: Final = "model.safetensors.index.json"

#: Above this a tokenizer's model_max_length stands for "no limit".
SENTINEL: Final = 10**18


class EditJson(Struct, frozen=True, kw_only=True, tag_field="kind", tag="edit-json"):
    """One change of a JSON file at an RFC 6901 pointer. A missing side means that the key isn't there."""

    file: str
    pointer: str
    before: Any | UnsetType = UNSET
    after: Any | UnsetType = UNSET


class Carry(Struct, frozen=True, kw_only=True, tag_field="kind", tag="carry"):
    """Files taken over as they are, never parsed."""

    files: tuple[str, ...]
    size_bytes: int


class SetKey(Struct, frozen=True, kw_only=True, tag_field="kind", tag="set-key"):
    """One key of a GGUF file. A side that is None means that the key isn't there."""

    file: str
    key: str
    before: GgufValue | None = None
    after: GgufValue | None = None


class SetTensor(Struct, frozen=True, kw_only=True, tag_field="kind", tag="set-tensor"):
    """One small F32 tensor of a GGUF file, by its numbers. A side that is None means that it isn't there."""

    file: str
    name: str
    before: tuple[float, ...] | None = None
    after: tuple[float, ...] | None = None


class Export(Struct, frozen=True, kw_only=True, tag_field="kind", tag="export"):
    """A GGUF file of each output type, made of safetensors ``files``; edits of keys are done to the plain export.

    ``split_max_size`` is the size in bytes that no file should exceed. ``converter``: llama.cpp's own makes the
    file before the edits; which program that is, a plan doesn't say.
    """

    architecture: str
    outtypes: tuple[str, ...]
    files: tuple[str, ...]
    size_bytes: int
    split_max_size: int | None = None
    converter: bool = False

    @property
    def single(self) -> bool:
        """Whether it makes one file, rather than a folder with several."""
        return len(self.outtypes) == 1 and self.split_max_size is None


class Restore(Struct, frozen=True, kw_only=True, tag_field="kind", tag="restore"):
    """Safetensors of a ``dtype``, with a tokenizer, made of GGUF ``files``; edits are done to ``config``."""

    family: str
    dtype: Literal["F32", "F16", "BF16"]
    config: dict[str, Any]
    files: tuple[str, ...]
    size_bytes: int


class Slice(Struct, frozen=True, kw_only=True):
    """Places along one dimension of a tensor: of each ``period`` places from ``lower`` up to ``upper``, those from
    ``start`` up to ``stop``.
    """

    lower: int
    upper: int
    period: int
    start: int
    stop: int


class ScaleTensor(Struct, frozen=True, kw_only=True, tag_field="kind", tag="scale-tensor"):
    """Numbers of one tensor of safetensors, multiplied by ``factor`` and rounded to the dtype that they have.

    ``slices`` of the dimension ``axis`` are multiplied, or without any all of it. ``added_one``: the model adds 1 to
    what is stored, so that ``factor * (1 + w) - 1`` takes the place of ``w``.
    """

    file: str
    name: str
    factor: float
    slices: tuple[Slice, ...] = ()
    axis: int = 0
    added_one: bool = False


class DropTensor(Struct, frozen=True, kw_only=True, tag_field="kind", tag="drop-tensor"):
    """One tensor of safetensors that the result hasn't got."""

    file: str
    name: str


class PutTensor(Struct, frozen=True, kw_only=True, tag_field="kind", tag="put-tensor"):
    """One small F32 tensor of safetensors of one dimension, by its numbers; it takes the place of one of its name."""

    file: str
    name: str
    values: tuple[float, ...]


class ResizeTable(Struct, frozen=True, kw_only=True, tag_field="kind", tag="resize-table"):
    """A table with a row a position, brought from ``rows_before`` to ``rows``, the ``reserved`` first ones kept.

    ``linear`` and ``cubic`` interpolate between the old rows, ``tiled`` repeats them.
    """

    file: str
    name: str
    rows_before: int
    rows: int
    reserved: int
    interpolation: Literal["linear", "cubic", "tiled"]


class FillSinusoids(Struct, frozen=True, kw_only=True, tag_field="kind", tag="fill-sinusoids"):
    """A stored table of sinusoids with ``rows`` positions of ``positions_per_row`` each.

    The first ``rows_kept`` stay the bytes that they are, as far as the table has them, for training may have moved
    them. With none kept the whole table is computed anew, which is refused where it doesn't hold sinusoids.

    ``layout``: ``halves`` has all sines in front of all cosines (Marian, Pegasus), ``tensor2tensor`` too, with
    exponents over half - 1 (M2M-100, XGLM); ``zero_row`` is a row of zeros (a padding token's) or None. ``first`` is
    the position of row 0.
    """

    file: str
    name: str
    rows: int
    dim: int
    layout: Literal["halves", "tensor2tensor", "interleaved"]
    positions_per_row: float = 1.0
    first: int = 0
    zero_row: int | None = None
    rows_kept: int = 0


#: What is done to the tensors of safetensors.
TensorChange = ScaleTensor | DropTensor | PutTensor | ResizeTable | FillSinusoids


class Rewrite(Struct, frozen=True, kw_only=True, tag_field="kind", tag="rewrite"):
    """Files of safetensors in which tensors are changed; their other tensors keep their bytes.

    The index of a split checkpoint follows where it has to. ``size_bytes`` counts the files as they are.
    """

    files: tuple[str, ...]
    size_bytes: int


Action = EditJson | Carry | SetKey | SetTensor | Export | Restore | Rewrite | TensorChange


def config_text(restore: Restore) -> str:
    """The config.json that edits are done to, as text."""
    return json.dumps(restore.config, indent=2) + "\n"


def changes_nothing(actions: Sequence[Action]) -> bool:
    """Whether a plan with these actions takes everything over as it is."""
    return all(isinstance(action, Carry) for action in actions)


def size_bytes(actions: Sequence[Action]) -> int:
    """How much is copied or written, about."""
    return sum(action.size_bytes for action in actions if isinstance(action, Carry | Export | Restore | Rewrite))


def tensor_changes_of(actions: Sequence[Action]) -> tuple[TensorChange, ...]:
    """The changes of tensors among a plan's actions."""
    return tuple(action for action in actions if isinstance(action, TensorChange))


def moves_index(changes: Iterable[TensorChange]) -> bool:
    """Whether the index of a split checkpoint says something else afterwards: names or sizes."""
    return any(not isinstance(change, ScaleTensor) for change in changes)


def side_edits(contents: Contents, inspection: Inspection, target: int) -> dict[str, tuple[Edit, ...]]:
    """The limits of the tokenizer and of generation, judged by what they were before an earlier conversion."""
    edits: dict[str, tuple[Edit, ...]] = {}
    limit = _before_us(contents, inspection, "tokenizer_config.json").get("model_max_length")
    if isinstance(limit, int | float) and not isinstance(limit, bool) and limit < target < SENTINEL:
        edits["tokenizer_config.json"] = (Edit(path=("model_max_length",), value=target),)
    truncation = _before_us(contents, inspection, "tokenizer.json").get("truncation") or {}
    cut = truncation.get("max_length")
    if isinstance(cut, int) and cut < target:
        edits["tokenizer.json"] = (Edit(path=("truncation", "max_length"), value=target),)
    longest = _before_us(contents, inspection, "generation_config.json").get("max_length")
    # A max_length at or above the trained length was meant as the model's own limit; a smaller one is a choice.
    if type(longest) is int and inspection.trained_context <= longest < target:
        edits["generation_config.json"] = (Edit(path=("max_length",), value=target),)
    return edits


def with_record(
    contents: Contents,
    inspection: Inspection,
    edits: Mapping[str, tuple[Edit, ...]],
    digest: str,
    *,
    method: str,
    target: int,
    baked: InWeights | UnsetType = UNSET,
    buffers: bool | UnsetType = UNSET,
) -> dict[str, tuple[Edit, ...]]:
    """Edits of the documents as they stand: an earlier conversion undone, the new one and its record done."""
    old = inspection.record
    # A document that is gone since needn't be taken back.
    recorded = [file for file in (old.base if old else ()) if _is_there(contents, file)]
    base_edits = {file: edits.get(file, ()) for file in {*edits, *recorded}}
    base = {}
    for file, wanted in base_edits.items():
        document = document_of(contents, file)
        restored = apply_edits(document, undo(old, file)) if old else document
        base[file] = before(restored, wanted)
    record = Record(
        version=VERSION,
        method=method,
        trained_context=inspection.trained_context,
        target_context=target,
        plan=digest,
        base={file: said for file, said in sorted(base.items()) if said.values or said.absent},
        taken_as=UNSET if inspection.base == "auto" else inspection.base,
        baked=baked,
        buffers=buffers,
    )
    block = Edit(path=(KEY,), value=as_json(record))
    final: dict[str, tuple[Edit, ...]] = {}
    for file, wanted in base_edits.items():
        undone = undo(old, file) if old else ()
        sequence = (*undone, *wanted, *((block,) if file == "config.json" else ()))
        changed = net_edits(document_of(contents, file), sequence)
        if changed:
            final[file] = changed
    return final


def taken_back(contents: Contents, inspection: Inspection) -> dict[str, tuple[Edit, ...]]:
    """Edits that leave every document as it was before an earlier conversion of ours."""
    record = inspection.record
    files = (*record.base, "config.json") if record is not None else ()
    final = {}
    for file in dict.fromkeys(files):
        undone = undo(record, file) if record is not None else ()
        changed = net_edits(
            document_of(contents, file), (*undone, *((Edit(path=(KEY,)),) if file == "config.json" else ()))
        )
        if changed:
            final[file] = changed
    return final


def net_edits(document: Mapping[str, Any], sequence: Sequence[Edit]) -> tuple[Edit, ...]:
    """One edit for each place of ``document`` that ``sequence`` really changes, in the order of first mention."""
    final = apply_edits(dict(document), sequence)
    net = []
    for path in dict.fromkeys(edit.path for edit in sequence):
        was, now = value_at(dict(document), path), value_at(final, path)
        if _same(was, now):
            continue
        net.append(Edit(path=path, value=now))
    return tuple(net)


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON text: 8 and 8.0 differ, True and 1 differ, key order counts."""
    if a is UNSET or b is UNSET:
        return a is b
    return json.dumps(a) == json.dumps(b)


def document_of(contents: Contents, file: str) -> dict[str, Any]:
    """What a JSON file of the checkpoint says; empty for one that isn't there."""
    document = contents.documents.get(file)
    if document is not None:
        return document.value
    # tokenizer.json is only known by its truncation; the edit replaces one number in it.
    return {"truncation": dict(contents.tokenizer_truncation or {})} if file == "tokenizer.json" else {}


def _is_there(contents: Contents, file: str) -> bool:
    return file in contents.documents or any(known.path == file for known in contents.files)


def _before_us(contents: Contents, inspection: Inspection, file: str) -> dict[str, Any]:
    """A document as it was before an earlier conversion; empty for one that isn't there."""
    if not _is_there(contents, file):
        return {}
    document = document_of(contents, file)
    return apply_edits(document, undo(inspection.record, file)) if inspection.record else document


def actions_of(
    contents: Contents, final: Mapping[str, tuple[Edit, ...]], tensors: Sequence[TensorChange] = ()
) -> tuple[Action, ...]:
    """The edits and ``tensors`` as actions, and the files that are taken over."""
    actions: list[Action] = []
    for file, edits in sorted(final.items()):
        document = document_of(contents, file)
        for edit in edits:
            was = value_at(document, edit.path)
            actions.append(EditJson(file=file, pointer=pointer(edit.path), before=was, after=edit.value))
    changed = {change.file for change in tensors}
    made = {*final, *OURS, *changed, *((INDEX,) if moves_index(tensors) else ())}
    if changed:
        rewritten = [file for file in contents.files if file.path in changed]
        size = sum(file.size_bytes for file in rewritten)
        actions += [*tensors, Rewrite(files=tuple(file.path for file in rewritten), size_bytes=size)]
    carried = [file for file in contents.files if file.path not in made]
    size = sum(file.size_bytes for file in carried)
    return (*actions, Carry(files=tuple(file.path for file in carried), size_bytes=size))


def gguf_actions(gguf: Gguf, edits: GgufEdits) -> tuple[SetKey | SetTensor, ...]:
    """Each change of a GGUF file with what stood there."""
    keys = [
        SetKey(file=gguf.file, key=key, before=gguf.values.get(key), after=edits.keys.get(key))
        for key in (*edits.removed, *edits.keys)
    ]
    tensors = [
        SetTensor(file=gguf.file, name=name, before=gguf.factors.get(name), after=edits.tensors.get(name))
        for name in (*edits.removed_tensors, *edits.tensors)
    ]
    return (*keys, *tensors)


def gguf_edits_of(actions: Sequence[Action]) -> GgufEdits:
    """The changes of a GGUF file among a plan's actions."""
    keys = [action for action in actions if isinstance(action, SetKey)]
    tensors = [action for action in actions if isinstance(action, SetTensor)]
    return GgufEdits(
        keys={action.key: action.after for action in keys if action.after is not None},
        removed=tuple(action.key for action in keys if action.after is None),
        tensors={action.name: action.after for action in tensors if action.after is not None},
        removed_tensors=tuple(action.name for action in tensors if action.after is None),
    )


def gguf_sha256(gguf: Gguf) -> str:
    """The checksum of what a GGUF file's keys and rope tensors say, the kept ones."""
    value = {"values": msgspec.to_builtins(gguf.values), "factors": msgspec.to_builtins(gguf.factors)}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of(
    inspection: Inspection,
    edits: Mapping[str, tuple[Edit, ...]],
    *,
    method: str,
    trained: int,
    target: int,
    tensors: Sequence[TensorChange] = (),
) -> str:
    """What identifies a change, whatever the checkpoint is called.

    What is dropped is no part of it: of the result there is nothing to drop.
    """
    value: dict[str, Any] = {
        "config": inspection.config,
        "edits": {file: msgspec.to_builtins(changes) for file, changes in sorted(edits.items())},
        "method": method,
        "trained": trained,
        "target": target,
    }
    kept = [change for change in tensors if not isinstance(change, DropTensor)]
    if kept:
        value["tensors"] = msgspec.to_builtins(kept)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_json(value: Struct) -> dict[str, Any]:
    """The value as a JSON reader gives it back (lists, not tuples), so that a saved plan equals the one made."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return found
