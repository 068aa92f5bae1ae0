"""From a checkpoint's contents to what it means: ropes, lengths, what was done to it, what it costs.

Pure. Numbers that a person could dispute come with a note that says how they are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Struct

from ctxextend.contents import Contents, Note, Storage
from ctxextend.errors import RefusedError
from ctxextend.families import Family, Origin, Position, find_family
from ctxextend.formats.hf_layers import whole_number
from ctxextend.formats.hf_positions import explain_positions, position_of, read_positions, refuse_other_length, text_of
from ctxextend.formats.hf_read import HfRope, RopeGroup, lost_theta, read_rope, text_config
from ctxextend.formats.json_edit import Edit, apply_edits
from ctxextend.formats.rope_keys import LENGTH_SYNONYMS, explain, type_of
from ctxextend.kv_cache import KvCache, kv_cache
from ctxextend.methods.base import Base
from ctxextend.parameters import Quantisation, count_parameters, quantisation, rotary_buffers
from ctxextend.record import KEY, Record, find_record, undo
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Dynamic, Linear, Llama3, LongRope, Rebase, Scaling, Yarn

#: What a scaling in a checkpoint is: trained in, added afterwards, or written by ctxextend.
GroupOrigin = Literal["trained", "bolted-on", "ours", "undecided"]


#: What a scaling that stands in a checkpoint is taken for: what the family's row says, or as the user does.
BaseChoice = Literal["auto", "trained", "unscaled"]


class Layers(Protocol):
    """A group of layers as a format reads it: its rope and window in tokens, either None where it has none."""

    @property
    def label(self) -> str: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def spec(self) -> RopeSpec | None: ...
    @property
    def scaling(self) -> Scaling | None: ...
    @property
    def window(self) -> int | None: ...


class Group(Struct, frozen=True, kw_only=True):
    """Layers that share a rope: as they stand, and the base that an extension starts from.

    ``spec`` is None for layers without rope. ``window`` counts tokens. ``base`` is None where the
    base can't be told; ``extendable`` says whether an extension touches these layers.
    """

    label: str
    layers: tuple[int, ...]
    spec: RopeSpec | None
    scaling: Scaling | None
    origin: GroupOrigin | None
    window: int | None
    base: Base | None
    extendable: bool


class Inspection(Struct, frozen=True, kw_only=True):
    """Everything that a plan needs to know. Lengths count tokens.

    ``config`` is config.json as it was before any conversion of ours; ``rope`` is read from it. ``base``: what
    was said of a scaling that stood there, now or at an earlier conversion.
    """

    name: str
    source: str
    revision: str | None
    model_type: str | None
    family: Family
    position: Position
    format: Storage
    parameters: int | None
    size_bytes: int
    weight_bytes: int
    dtypes: Mapping[str, int]
    quantisation: Quantisation | None
    tied_embeddings: bool
    trained_context: int
    current_context: int
    groups: tuple[Group, ...]
    kv_cache: KvCache | None
    notes: tuple[Note, ...]
    record: Record | None
    config: Mapping[str, Any]
    rope: HfRope | None
    base: BaseChoice = "auto"


#: What becomes of sliding windows.
SlidingWindow = Literal["keep", "target", "off"]


def inspect(
    contents: Contents,
    *,
    family: str | None = None,
    base: BaseChoice = "auto",
    original_context: int | None = None,
    sliding_window: SlidingWindow = "keep",
) -> Inspection:
    """What ``contents`` means. ``original_context`` and ``base`` override what would be found.

    ``sliding_window``: the layers as they will be once windows are widened to the ``target`` or are ``off``.

    Raises :class:`RefusedError` for a model type that isn't known (``family`` names one to treat it
    as), :class:`CheckpointError` for values that can't be.
    """
    record = find_record(contents.config)
    if record is not None and base == "trained":
        raise RefusedError(
            "an earlier conversion of ctxextend wrote this rope, and extensions start from what was before it",
            code="ours-as-base",
            file="config.json",
            key=KEY,
            found=f"{record.method} to {record.target_context}",
            hint="start from the checkpoint that this one was made of: its weights hold a part of the extension"
            if record.baked is not UNSET
            else f"if the weights were trained on with it, remove {KEY!r} from config.json, then --base trained "
            f"--original-context {record.target_context}",
        )
    told = UNSET if record is None else record.taken_as
    asked_anew = base not in ("auto", told)
    if base == "auto" and told is not UNSET:
        base = told
    config = base_config(contents.config, record)
    row = find_family(config, treat_as=family)
    position = position_of(config, row)
    if position != "rope" or row.refusal is not None:
        return _without_rope(contents, config, row, position, record=record, override=original_context)
    # A base that a scaling added by hand hides is brought back: it is what the weights know.
    config, standing = (_with_base(c, row) for c in (config, contents.config))
    current = read_rope(standing, row)
    rope = current if record is None else read_rope(config, row)
    if sliding_window != "keep":
        refuse_designed_windows(rope, row)
        off = window_edits(row, rope, None) if sliding_window == "off" else ()
        current, rope = (without_windows(apply_edits(dict(c), off), row) for c in (standing, config))
    _path, text = text_config(config, row)
    hidden = [note for note in read_rope(contents.config, row).notes if note.code == "theta-lost"]
    notes = [*contents.notes, *hidden, *rope.notes, *_explained(current)]
    origins = {group.label: _origin(group, row, base) for group in rope.groups}
    # Taken for something else than at the earlier conversion, a scaling tells of another length too.
    known_length = None if asked_anew and any(group.scaling is not None for group in rope.groups) else record
    trained, found = _trained(rope, row, known_length, origins=origins, override=original_context)
    notes += found
    groups = groups_of(
        current.groups,
        rope.groups,
        record_method=record.method if record is not None else None,
        origins=origins,
        trained=trained,
        apart=row.form == "nested",
    )
    notes += (*_about(row, contents, config, groups, record), *_about_lengths(current, record))
    return Inspection(
        name=contents.name,
        source=contents.source,
        revision=contents.revision,
        model_type=_model_type(config),
        family=row,
        position=position,
        format=contents.storage,
        parameters=count_parameters(contents, config),
        size_bytes=contents.size_bytes,
        weight_bytes=contents.weight_bytes,
        dtypes=dtypes_of(contents),
        quantisation=quantisation(config),
        tied_embeddings=_tied(contents, config, text),
        trained_context=trained,
        current_context=_current_context(current),
        groups=groups,
        kv_cache=kv_cache(text, row, groups=[(g.label, g.layers, g.window) for g in groups]),
        notes=tuple(dict.fromkeys(notes)),
        record=record,
        config=config,
        rope=rope,
        base=base,
    )


def _with_base(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    lost = lost_theta(config, family)
    return dict(config) if lost is None else apply_edits(dict(config), (lost,))


def window_edits(family: Family, rope: HfRope, window: int | None) -> tuple[Edit, ...]:
    """The edits that set every layer's window to a number of tokens, or with None take windows off."""
    if family.window_key not in rope.text and family.window is None:
        return ()
    if window is None and family.window_switch_key is not None:
        return (Edit(path=(*rope.path, family.window_switch_key), value=False),)
    return (Edit(path=(*rope.path, family.window_key), value=window),)


def refuse_designed_windows(rope: HfRope, family: Family) -> None:
    """Raises :class:`RefusedError` where windowed layers stand beside others by the model's design."""
    windowed = [group for group in rope.groups if group.window is not None]
    apart = len({group.label for group in rope.groups}) > 1
    if windowed and (apart or family.window_key not in rope.text) and family.window_switch_key is None:
        raise RefusedError(
            f"{windowed[0].label} layers are windowed by this model's design, beside others that aren't",
            code="windows-by-design",
            file="config.json",
            key="layer_types",
            hint="leave --sliding-window at keep: the layers of full attention carry the long context",
        )


def without_windows(config: Mapping[str, Any], family: Family) -> HfRope:
    """The rope of a config as if no window held anything back."""
    rope = read_rope(config, family)
    return msgspec.structs.replace(
        rope, groups=tuple(msgspec.structs.replace(group, window=None) for group in rope.groups)
    )


def base_config(config: Mapping[str, Any], record: Record | None) -> dict[str, Any]:
    """config.json as it was before a conversion of ours; as it is, where there was none."""
    if record is None:
        return dict(config)
    restored = apply_edits(dict(config), undo(record, "config.json"))
    restored.pop(KEY, None)
    return restored


def _origin(group: RopeGroup, family: Family, choice: BaseChoice) -> Origin | None:
    """Whether a group's scaling was trained in; None where nothing tells (or there is none)."""
    if group.scaling is None:
        return None
    if choice != "auto":
        return "trained" if choice == "trained" else "bolted-on"
    # jquesnelle's first YaRN configs say it themselves.
    finetuned = group.settings.get("finetuned")
    if isinstance(finetuned, bool):
        return "trained" if finetuned else "bolted-on"
    return family.origins.get(type_of(group.settings))


def _main_group(rope: HfRope) -> RopeGroup | None:
    """The group whose scaling decides the length: the first that is scaled, else the first with a rope."""
    scaled = (group for group in rope.groups if group.scaling is not None)
    return next(scaled, next((group for group in rope.groups if group.spec is not None), None))


def _trained(
    rope: HfRope,
    family: Family,
    record: Record | None,
    *,
    origins: Mapping[str, Origin | None],
    override: int | None,
) -> tuple[int, tuple[Note, ...]]:
    """The length that the weights were trained for, and how that is known."""
    if override is not None:
        return override, (_known("it was given (--original-context)", override),)
    if record is not None:
        return record.trained_context, (_known("the record of an earlier conversion says so", record.trained_context),)
    stated = rope.max_position_embeddings
    group = _main_group(rope)
    scaling = group.scaling if group else None
    if group is None or scaling is None or isinstance(scaling, Dynamic | Rebase):
        return _stated(family, rope, stated)
    if origins.get(group.label) == "bolted-on":
        return _under_bolted_on(family, scaling, rope, stated)
    return _with_trained_in(family, group, scaling, rope, stated)


def _with_trained_in(
    family: Family, group: RopeGroup, scaling: Scaling, rope: HfRope, stated: int
) -> tuple[int, tuple[Note, ...]]:
    """The length that weights with a scaling trained in were trained for: with it, so past the original length."""
    published = family.origins.get(type_of(group.settings)) == "trained"
    factor = getattr(scaling, "factor", 1.0)
    if any(note.code == "original-length-missing" for note in rope.notes):
        return stated, (_unknown(stated, int(stated * factor)),)
    reached = _reached(scaling)
    if reached is not None and reached > stated:
        return reached, (
            Note(
                code="length-not-raised",
                message=f"max_position_embeddings is {stated}, but the trained-in scaling reaches {reached}",
            ),
            _known("the trained-in scaling's original length times its factor", reached),
        )
    if isinstance(scaling, Llama3) and stated == scaling.original_max_position_embeddings:
        return stated, (_unknown(stated, int(stated * factor)),)
    if isinstance(scaling, Linear) and not published:
        raised = int(stated * factor)
        if any(rope.text.get(key) == raised for key in LENGTH_SYNONYMS):
            return raised, (_known("another of the config's lengths, the stated one times the factor", raised),)
        return stated, (_unknown(stated, raised),)
    return stated, (_known("max_position_embeddings", stated),)


def _unknown(one: int, other: int) -> Note:
    return Note(
        code="original-length-unknown",
        message=f"the config doesn't say what was trained: {one} if its length goes with the scaling, {other} if it "
        "is still the one from before; --original-context says which",
    )


def _stated(family: Family, rope: HfRope, stated: int) -> tuple[int, tuple[Note, ...]]:
    chunked = rope.text.get("dual_chunk_attention_config")
    before = whole_number(chunked, "original_max_position_embeddings") if isinstance(chunked, dict) else None
    if before is not None and before < stated:
        return before, (
            Note(
                code="length-overstated",
                message=f"max_position_embeddings is {stated}, which dual chunk attention reaches from {before}; "
                "--original-context overrides this",
            ),
        )
    own = whole_number(rope.text, family.trained_context_key)
    if own is not None and own > stated:
        return own, (
            Note(
                code="length-understated",
                message=f"max_position_embeddings is {stated}, but {family.trained_context_key} says {own}, which "
                "these models were trained on; --original-context overrides this",
            ),
        )
    trained = family.overstated.get(stated, stated)
    if trained == stated:
        return stated, (_known("max_position_embeddings", stated),)
    return trained, (
        Note(
            code="length-overstated",
            message=f"max_position_embeddings is {stated}, but these models were trained on {trained}; "
            "--original-context overrides this",
        ),
    )


def _under_bolted_on(family: Family, scaling: Scaling, rope: HfRope, stated: int) -> tuple[int, tuple[Note, ...]]:
    """The length below a scaling that was only written into the config."""
    original = _original(scaling)
    missing = any(note.code == "original-length-missing" for note in rope.notes)
    if original is None or missing:
        factor = scaling.factor if isinstance(scaling, Linear | Yarn) else 1.0
        return stated, (
            Note(
                code="original-length-unknown",
                message=f"the original length isn't written down: {stated} if the config's length wasn't raised "
                f"with the scaling, {int(stated / factor)} if it was; --original-context says which",
            ),
        )
    trained = family.overstated.get(original, original)
    return trained, (_known("the original length beside the scaling that was added", trained),)


def _original(scaling: Scaling | None) -> int | None:
    match scaling:
        case Yarn() | Llama3() | LongRope() | Dynamic():
            return scaling.original_max_position_embeddings
        case _:
            return None


def _reached(scaling: Scaling | None) -> int | None:
    """The length that a scaling is made for, where it says so itself."""
    match scaling:
        case Yarn():
            return int(scaling.original_max_position_embeddings * scaling.factor)
        case _:
            return None


def _known(how: str, tokens: int) -> Note:
    return Note(code="trained-context", message=f"trained context {tokens}: {how}")


def groups_of(
    current: Sequence[Layers],
    before: Sequence[Layers],
    *,
    record_method: str | None,
    origins: Mapping[str, Origin | None],
    trained: int,
    apart: bool,
) -> tuple[Group, ...]:
    """The groups as they stand, each with its base from ``before`` an earlier conversion of ours.

    ``record_method`` is that conversion's; ``apart``: windowed layers have a rope of their own. ``trained``
    counts tokens.
    """
    bases = {group.label: group for group in before}
    full = {g.label for g in before if g.spec is not None and (g.window is None or g.window >= trained)}
    groups = []
    for group in current:
        base = bases.get(group.label, group)
        origin = origins.get(base.label)
        # One rope for the whole model can't be kept for some layers; a rope a layer type can.
        extendable = group.label in full or (bool(full) and not apart and base.spec is not None)
        groups.append(
            Group(
                label=group.label,
                layers=group.layers,
                spec=group.spec,
                scaling=group.scaling,
                origin=_shown_origin(group, base, origin, record_method),
                window=group.window,
                base=_base(base, origin, trained),
                extendable=extendable,
            )
        )
    return tuple(groups)


def _shown_origin(group: Layers, base: Layers, origin: Origin | None, record_method: str | None) -> GroupOrigin | None:
    changed = (group.scaling, group.spec) != (base.scaling, base.spec)
    # What was bolted on is taken off first: where it stands all the same, it was written anew.
    anew = origin == "bolted-on" and record_method not in (None, "none")
    if record_method is not None and (changed or anew):
        return "ours"
    if group.scaling is None:
        return None
    return origin or "undecided"


def _base(group: Layers, origin: Origin | None, trained: int) -> Base | None:
    if group.spec is None:
        return None
    match group.scaling, origin:
        case None, _:
            return Base(spec=group.spec, context=trained)
        case _, "bolted-on":
            return Base(spec=group.spec, context=trained)
        case _, "trained":
            return Base(spec=group.spec, scaling=group.scaling, context=trained)
        case _:
            return None


def _explained(rope: HfRope) -> tuple[Note, ...]:
    """What each key of each scaling does, once."""
    notes = [note for g in rope.groups if g.scaling is not None for note in explain(g.settings)]
    return tuple(dict.fromkeys(notes))


def _about_lengths(current: HfRope, record: Record | None) -> tuple[Note, ...]:
    """Whether the stated length and the scaling go together."""
    group = _main_group(current)
    reached = _reached(group.scaling) if group else None
    stated = current.max_position_embeddings
    if reached is None or reached == stated or record is not None:
        return ()
    return (
        Note(
            code="length-mismatch",
            message=f"the scaling reaches {reached} tokens but max_position_embeddings is {stated}: vLLM from 0.30 "
            f"and SGLang serve {stated}, older vLLM {reached}, and transformers 4.51 to 4.55 computes another "
            "factor; convert writes both alike",
        ),
    )


def _about(
    family: Family, contents: Contents, config: Mapping[str, Any], groups: tuple[Group, ...], record: Record | None
) -> tuple[Note, ...]:
    notes = [said_origin(group) for group in groups]
    windowed = [group for group in groups if group.window is not None]
    for group in windowed:
        changed = "is extended" if len(groups) == 1 else "is changed with the others: the config holds one rope"
        kept = changed if group.extendable else "is kept"
        notes.append(
            Note(
                code="sliding-window",
                message=f"{len(group.layers)} layers ({group.label}) see a window of {group.window} tokens; "
                f"their rope {kept}",
            )
        )
    buffers = rotary_buffers(contents)
    if record is not None and record.baked is not UNSET:
        notes.append(
            Note(
                code="baked-weights",
                message=f"the attention factor of an earlier conversion ({record.method} to {record.target_context}) "
                "is in the weights, and the config declares what is left: no extension starts from them",
            )
        )
    if buffers and (record is None or record.buffers is not True):
        notes.append(
            Note(
                code="rotary-buffers",
                message=f"{len(buffers)} rope buffers lie in the weights ({buffers[0].name}, ...); transformers "
                "computes its own and ignores them, a runtime that loads them ignores the config; convert --bake "
                "buffers replaces them, the other kinds of --bake drop them",
            )
        )
    for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers"):
        if config.get(key):
            notes.append(
                Note(
                    code="draft-layers",
                    message=f"{config[key]} layers predict further tokens ({key}); they share the model's rope "
                    "and are extended with it",
                )
            )
    if isinstance(config.get("quantization_config"), dict):
        notes.append(
            Note(
                code="quantised",
                message="the weights are quantised; an extension by configuration touches none",
            )
        )
    if family.remark is not None:
        notes.append(Note(code="family", message=family.remark))
    return tuple(note for note in notes if note is not None)


def said_origin(group: Group) -> Note | None:
    """What an extension does with the scaling that a group has."""
    match group.origin:
        case "trained":
            said = "it was trained in and is part of the base"
        case "bolted-on":
            said = "it was added without training and is taken off first"
        case "ours":
            said = "an earlier conversion of ctxextend wrote it; the next one starts from the base"
        case "undecided":
            said = "nothing tells whether it was trained in: --base trained|unscaled"
        case None:
            return None
    return Note(code=f"origin-{group.origin}", message=f"the scaling of {group.label}: {said}")


def _current_context(rope: HfRope) -> int:
    group = _main_group(rope)
    if group is not None and isinstance(group.scaling, Dynamic):
        return int(rope.max_position_embeddings * group.scaling.factor)
    return rope.max_position_embeddings


def dtypes_of(contents: Contents) -> dict[str, int]:
    """Bytes a dtype."""
    sizes: dict[str, int] = {}
    for tensor in contents.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _tied(contents: Contents, config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    stated = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if isinstance(stated, bool):
        return stated
    names = {tensor.name for tensor in contents.tensors}
    return bool(names) and not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in names)


def _model_type(config: Mapping[str, Any]) -> str | None:
    value = config.get("model_type")
    return value if isinstance(value, str) else None


def _without_rope(
    contents: Contents,
    config: Mapping[str, Any],
    family: Family,
    position: Position,
    *,
    record: Record | None,
    override: int | None,
) -> Inspection:
    standing = read_positions(contents.tensors, contents.config, family) if position != "rope" else None
    default = family.max_position_embeddings or 0
    current = standing.length if standing is not None else whole_number(config, "max_position_embeddings") or default
    trained = current if record is None else record.trained_context
    if override is not None:
        refuse_other_length(standing, trained, override)
        trained = override
    about = () if standing is None else explain_positions(standing, trained)
    return Inspection(
        name=contents.name,
        source=contents.source,
        revision=contents.revision,
        model_type=_model_type(config),
        family=family,
        position=position,
        format=contents.storage,
        parameters=count_parameters(contents, config),
        size_bytes=contents.size_bytes,
        weight_bytes=contents.weight_bytes,
        dtypes=dtypes_of(contents),
        quantisation=quantisation(config),
        tied_embeddings=_tied(contents, config, config),
        trained_context=trained,
        current_context=current,
        groups=(),
        kv_cache=None if standing is None else _decoder_cache(family, text_of(config, standing.path)),
        notes=(
            *contents.notes,
            *about,
            *((Note(code="family", message=family.remark),) if family.remark is not None else ()),
            Note(code=f"position-{position}", message=_position(family, position)),
        ),
        record=record,
        config=config,
        rope=None,
    )


def _decoder_cache(family: Family, text: Mapping[str, Any]) -> KvCache | None:
    """The KV cache of a decoder without a rope; None for encoders, and where a number is missing."""
    decoder = family.positions.decoder if family.positions is not None else None
    if decoder is None:
        return None
    layers = next((n for key in decoder.layers if (n := whole_number(text, key, required=False))), None)
    width = next((n for key in decoder.width if (n := whole_number(text, key))), None)
    if layers is None or width is None:
        return None
    if decoder.single_key is not None and text.get(decoder.single_key, True) is True:
        heads = whole_number(text, decoder.heads_key)
        if not heads:
            return None
        width //= heads
    return KvCache(layers=((layers, None, 2 * width),))


def _position(family: Family, position: Position) -> str:
    match position:
        case "learned":
            return "positions are a learned table: a longer context needs a larger table, not a scaled rope"
        case "alibi":
            return "positions are ALiBi: a penalty by distance without a length; there is no rope to scale"
        case "sinusoidal":
            return "positions are a fixed sinusoidal table: there is no rope to scale"
        case "none":
            return "the model has no positions of its own"
        case "rope":
            return f"the rope can't be changed: {family.refusal}"
