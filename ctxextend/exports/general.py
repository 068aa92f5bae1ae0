"""The ``general.*`` keys of an export: what the model is called, how large it is, and what its card says of it.

Which names are read from what, and how a model's name is taken apart, follows llama.cpp b11434
(``gguf-py/gguf/metadata.py`` and ``utility.py``), so that files are found under the names that their users expect.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from ctxextend.contents import GgufType, GgufValue
from ctxextend.exports.layout import Layout

#: The version of the quantised formats (``ggml/include/ggml.h``, GGML_QNT_VERSION).
_QUANTIZATION_VERSION: Final = 2

#: Fields of a card that become a key of the same meaning, in the order in which they are asked.
_CARD: Final[Mapping[str, tuple[str, ...]]] = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
_BASE_MODELS: Final = ("base_model", "base_models", "base_model_sources")
_DATASETS: Final = ("datasets", "dataset", "dataset_sources")
#: What a card may say of a base model or a dataset, when it says more than its name.
_ORIGIN: Final = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
#: Keys of generation_config.json that are recommendations for sampling.
_SAMPLING: Final[Mapping[str, tuple[GgufType, tuple[str, ...]]]] = {
    "top_k": ("INT32", ("top_k",)),
    "top_p": ("FLOAT32", ("top_p",)),
    "min_p": ("FLOAT32", ("min_p",)),
    "temp": ("FLOAT32", ("temperature",)),
    "penalty_repeat": ("FLOAT32", ("penalty_repeat", "repetition_penalty")),
}

_VERSION: Final = re.compile(r"(v|iter)?\d+(\.\d+)*", re.IGNORECASE)
_ENCODING: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(r"((A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_TUNED: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_HUB: Final = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")

#: A card says no more than this; what a hostile one says beyond isn't taken.
_MOST_CHARACTERS: Final = 4096
_MOST_WORDS: Final = 1024
_MOST_ORIGINS: Final = 64
#: A whole number of more bits isn't written out.
_MOST_BITS: Final = 256
_MOST_INT32: Final = (1 << 31) - 1


class _Name(Struct, frozen=True, kw_only=True):
    """A model's name, taken apart."""

    full: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def general_keys(
    name: str,
    card: Mapping[str, Any],
    config: Mapping[str, Any],
    layouts: Iterable[Layout],
    *,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, GgufValue]:
    """The ``general.*`` keys but the architecture, the alignment and the file type.

    ``name`` is what the checkpoint is called (a folder's name, or ``organisation/name``), ``card`` the front
    matter of its README.md, ``layouts`` the tensors of the export, ``generation`` what generation_config.json
    says. The card wins over config.json's ``_name_or_path``, and that over ``name``.
    """
    parameters, shared, expert, experts = _counts(layouts)
    fields = {field: _text(_first(card, names)) for field, names in _CARD.items()}
    said = config.get("_name_or_path")
    for known in (said if isinstance(said, str) and said.count("/") <= 1 else None, name):
        text = _scalar(known)
        if not text:
            continue
        taken = _taken_apart(text, parameters)
        found = {
            "name": _title(taken.full),
            "organization": _title(taken.organization),
            "basename": taken.basename,
            "finetune": taken.finetune,
            "version": taken.version,
            "size_label": taken.size_label,
        }
        fields |= {field: value for field, value in found.items() if fields[field] is None}
    if fields["size_label"] is None and parameters:
        fields["size_label"] = f"{experts}x{_rounded(shared + expert)}" if experts else _rounded(parameters)
    keys = {"general.type": _string("model")}
    keys |= {f"general.{field}": _string(value) for field, value in fields.items() if value is not None}
    keys |= _sampling(generation or {})
    for what, fields_of in (("base_model", _BASE_MODELS), ("dataset", _DATASETS)):
        keys |= _origins(what, _listed(card, fields_of)[:_MOST_ORIGINS], parameters)
    for key, names in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        words = [_word(item) for each in names for item in _listed(card, (each,))]
        listed = [word for word in words if word is not None][:_MOST_WORDS]
        if listed:
            keys[f"general.{key}"] = GgufValue(type="ARRAY", item="STRING", length=len(listed), value=tuple(listed))
    keys["general.quantization_version"] = _number(_QUANTIZATION_VERSION)
    return keys


def _counts(layouts: Iterable[Layout]) -> tuple[int, int, int, int]:
    """All parameters, those outside experts, those of one expert a layer, and the experts a layer."""
    total = shared = one = experts = stacks = 0
    for layout in layouts:
        size = math.prod(layout.shape)
        total += size
        if "_exps." in layout.name and len(layout.shape) >= 3:
            count = layout.shape[-2 if ".bias" in layout.name else -3]
            one, experts, stacks = one + size // max(count, 1), experts + count, stacks + 1
        else:
            shared += size
    return total, shared, one, experts // stacks if stacks else 0


def _rounded(parameters: int) -> str:
    """A count of parameters as labels write it, with two digits at least: ``135M``, ``1.5B``."""
    scale, suffix = next(
        ((scale, suffix) for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if parameters > scale), (1e3, "K")
    )
    scaled = parameters / scale
    return f"{scaled:.{max(2 - len(str(round(scaled)).lstrip('0')), 0)}f}{suffix}"


def _taken_apart(model: str, parameters: int) -> _Name:
    """The parts of ``organisation/Base-1.5B-Instruct-v2``; words with spaces are a name and nothing else."""
    if " " in model:
        return _Name(full=model)
    organization, _, full = model.rpartition("/") if model.count("/") == 1 else ("", "", model)
    parts = [part for part in full.split("-") if part]
    kinds: list[set[str]] = []
    for place, part in enumerate(parts):
        known, parts[place] = _kind_of(part, parameters, first=place == 0)
        kinds.append(set() if known is None else {known})
    if any(
        character.isdecimal() for part, kind in zip(parts, kinds, strict=True) if "size" in kind for character in part
    ):
        # A size in numbers makes one in words a name.
        for part, kind in zip(parts, kinds, strict=True):
            if part.isalpha():
                kind.discard("size")
    _name_the_rest(parts, kinds)

    def joined(wanted: str, *, unlike: str = "") -> str | None:
        chosen = [part for part, kind in zip(parts, kinds, strict=True) if wanted in kind and unlike not in kind]
        return "-".join(dict.fromkeys(chosen) if wanted == "size" else chosen) or None

    basename, finetune, size = joined("base"), joined("finetune"), joined("size")
    version = joined("version", unlike="base")
    return _Name(
        full=full,
        organization=organization if organization and not organization.startswith(".") else None,
        # A name alone could be anything.
        basename=basename if finetune or size or version else None,
        finetune=finetune,
        version=version,
        size_label=size,
    )


def _kind_of(part: str, parameters: int, *, first: bool) -> tuple[str | None, str]:
    """What one part of a name is, None where only its place tells, and how it is written then."""
    if _VERSION.fullmatch(part):
        return "version", part
    if _ENCODING.fullmatch(part):
        return "type", part.upper()
    if not first and _SIZE.fullmatch(part):
        return _size_of(part.replace("_", "."), parameters)
    if not first and _TUNED.fullmatch(part):
        return "finetune", part
    return None, part


def _size_of(part: str, parameters: int) -> tuple[str, str]:
    if part[-1].isdecimal():
        # Bloom's 7b1 is 7.1B.
        part = f"{part[:-2]}.{part[-1]}{part[-2]}"
    if part[-2].isdecimal():
        part = part[:-1] + part[-1].upper()
    try:
        said = float(part[:-1]) * 1000.0 ** " KMBT".find(part[-1])
    except ValueError:
        return "size", part
    if parameters and abs(said - parameters) > 7 * parameters // 8:
        # As far from the model's size as this, it counts tokens.
        return "finetune", part[:-1] + part[-1].lower()
    return "size", part


def _name_the_rest(parts: list[str], kinds: list[set[str]]) -> None:
    """The parts before the first that is known are the base's name, unknown ones after it the fine-tune's."""
    at_start = True
    for part, kind in zip(parts, kinds, strict=True):
        if at_start and ((not kind and part[0].isalpha()) or "version" in kind):
            kind.add("base")
        else:
            at_start = False
            if not kind:
                kind.add("finetune")
    for kind in reversed(kinds):
        if "base" not in kind or len(kind) == 1:
            break
        kind.remove("base")


def _origins(what: str, listed: list[Any], parameters: int) -> dict[str, GgufValue]:
    known = [fields for entry in listed if (fields := dict(_origin(entry, parameters)))]
    if not known:
        return {}
    keys = {f"general.{what}.count": _number(len(known))}
    for place, fields in enumerate(known):
        keys |= {f"general.{what}.{place}.{field}": _string(value) for field, value in fields.items()}
    return keys


def _origin(entry: Any, parameters: int) -> Iterator[tuple[str, str]]:
    if isinstance(entry, Mapping):
        stated = ((field, _scalar(entry.get(field))) for field in _ORIGIN)
        yield from ((field, value) for field, value in stated if value is not None)
        return
    said = _scalar(entry)
    if said is None:
        return
    url = said if said.startswith(("http://", "https://", "ssh://")) else None
    hub = _HUB.fullmatch(said)
    if url is None or hub is not None:
        taken = _taken_apart(hub[1] if hub is not None else said, parameters)
        yield "name", _title(taken.full) or taken.full
        if taken.version is not None:
            yield "version", taken.version
        if taken.organization is not None:
            yield "organization", _title(taken.organization) or taken.organization
            url = url or f"https://huggingface.co/{taken.organization}/{taken.full}"
    if url is not None:
        yield "repo_url", url


def _sampling(generation: Mapping[str, Any]) -> dict[str, GgufValue]:
    keys = {}
    for field, (kind, names) in _SAMPLING.items():
        kept = _held(_first(generation, names), kind)
        if kept is not None:
            keys[f"general.sampling.{field}"] = GgufValue(type=kind, value=kept)
    return keys


def _held(value: Any, kind: GgufType) -> int | float | None:
    """A number as a file holds it; None for what is none, or can't be held."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        if kind == "INT32":
            return int(value) if abs(int(value)) <= _MOST_INT32 else None
        single: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except (OverflowError, ValueError, struct.error):
        return None
    return single if math.isfinite(single) else None


def _title(name: str | None) -> str | None:
    """Words with a capital, but for versions, numbers and what has capitals of its own."""
    if name is None:
        return None
    words = name.replace("-", " ").split()
    plain = re.compile(r"v\d+(\.\d+)*|\d.*")
    return " ".join(word.title() if word.islower() and not plain.fullmatch(word) else word for word in words)


def _first(source: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((source[name] for name in names if source.get(name) is not None), None)


def _listed(card: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    value = _first(card, names)
    if value is None:
        return []
    return value[:_MOST_WORDS] if isinstance(value, list) else [value]


def _text(value: Any) -> str | None:
    """A field of a card: plain values, of a list those that are in it."""
    if not isinstance(value, list):
        return _scalar(value)
    parts = (_scalar(item) for item in value[:_MOST_ORIGINS])
    return _cut(",".join(part for part in parts if part is not None)) or None


def _word(item: Any) -> str | None:
    # YAML reads Norwegian's code as a no.
    return "no" if item is False else _scalar(item)


def _scalar(value: Any) -> str | None:
    """A plain value as text that a file can hold; None for anything else."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return None
    return _cut(str(value)) if isinstance(value, str | int | float) else None


def _cut(content: str) -> str:
    """As much of a text as is taken. A half of a pair of surrogates is no character, and no file can hold one."""
    return content[:_MOST_CHARACTERS].encode("utf-8", errors="replace").decode()


def _string(content: str) -> GgufValue:
    return GgufValue(type="STRING", value=content)


def _number(content: int) -> GgufValue:
    return GgufValue(type="UINT32", value=content)
