"""Special tokens, what is added to every text, and chat templates: the keys that llama.cpp's converter writes.

Which file wins follows gguf-py of llama.cpp b11434 (``gguf/vocab.py``, ``SpecialVocab``): the post-processor of
tokenizer.json over tokenizer_config.json, and both over config.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ctxextend.contents import GgufValue
from ctxextend.errors import CheckpointError
from ctxextend.vocabulary.folder import ROLES, TEMPLATE, TEMPLATE_JSON, TEMPLATES, Folder, json_object, read_file
from ctxextend.vocabulary.values import ADD_KEYS, CHAT_TEMPLATE, CHAT_TEMPLATES, ID_KEYS, array, flag, number, text


def special_keys(folder: Folder, *, vocabulary_size: int) -> dict[str, GgufValue]:
    """The ids of special tokens, the flags that add them, and the chat templates."""
    names = {role: folder.token(role) for role in ROLES}
    names["bos"] = names["bos"] or names["cls"]
    names["eos"] = names["eos"] or names["sep"]
    adds = _adds(folder, names)
    for role in names:
        said = folder.settings.get(f"add_{role}_token")
        if isinstance(said, bool):
            adds.setdefault(role, said)
    ids: dict[str, int] = {}
    by_text = {token.content: token.id for token in reversed(folder.added)}
    for role, name in names.items():
        known = by_text.get(name) if name is not None else None
        found = known if known is not None and known < vocabulary_size else folder.number(f"{role}_token_id")
        if found is not None and 0 <= found < vocabulary_size:
            ids[role] = found
    keys = {ID_KEYS[role]: number(token) for role, token in ids.items() if role in ID_KEYS}
    keys |= {ADD_KEYS[role]: flag(added) for role, added in adds.items() if role in ADD_KEYS}
    return keys | _templates(folder)


def _adds(folder: Folder, names: dict[str, str | None]) -> dict[str, bool]:
    """What the post-processor adds; ``names`` gets the roles that it gives to tokens."""
    adds: dict[str, bool] = {}
    for part in _processors((folder.tokenizer or {}).get("post_processor")):
        match part.get("type"):
            case "ByteLevel":
                adds.setdefault("bos", False)
                adds.setdefault("eos", False)
            case "RobertaProcessing":
                adds |= dict.fromkeys(("bos", "eos", "sep"), True)
                for role in ("cls", "sep"):
                    names[role] = names[role] or _first_of(part.get(role))
            case "TemplateProcessing":
                _template_adds(part, names, adds)
    return adds


def _template_adds(part: Mapping[str, Any], names: dict[str, str | None], adds: dict[str, bool]) -> None:
    single, pair = _symbols(part.get("single")), _symbols(part.get("pair"))
    first = single[0][1] if len(single) > 1 and single[0][0] else None
    last = single[-1][1] if len(single) > 1 and single[-1][0] else None
    if first is not None:
        names["bos"] = names["bos"] or first
        names["cls"] = names["cls"] or first
        adds["bos"] = first in (names["bos"], names["cls"])
    if last is not None:
        if last != names["eos"]:
            # What ends a text isn't what the settings call its end: that ends a turn, then.
            names["eom" if "eot" in names else "eot"] = names["eos"]
            names["eos"] = last
        adds["eos"] = True
    inner = pair[1 if first is not None and pair[:1] == [(True, first)] else 0 :]
    inner = inner[: -1 if last is not None and inner[-1:] == [(True, last)] else None]
    between = inner[1:-1]
    if inner[:1] == [(False, "A")] and inner[-1:] == [(False, "B")] and between:
        ends = (names["sep"], names["eos"])
        opens = between[0][0] and between[0][1] in ends and last is None
        adds["sep"] = opens or (len(between) == 2 and between[1][0] and between[1][1] in ends)
        if adds["sep"]:
            names["sep"] = names["sep"] or names["eos"]


def _first_of(token: Any) -> str | None:
    """The text of a token that stands there with its id."""
    return token[0] if isinstance(token, list) and token and isinstance(token[0], str) else None


def _processors(part: Any) -> Iterator[Mapping[str, Any]]:
    match part:
        case {"processors": list(parts)}:
            yield from (inner for inner in parts if isinstance(inner, Mapping))
        case Mapping():
            yield part


def _symbols(template: Any) -> list[tuple[bool, str]]:
    """A template's parts: whether each is a special token, and its name."""
    symbols = []
    for part in template if isinstance(template, list) else []:
        match part:
            case {"SpecialToken": {"id": str(name)}}:
                symbols.append((True, name))
            case {"Sequence": {"id": str(name)}}:
                symbols.append((False, name))
    return symbols


def _templates(folder: Folder) -> dict[str, GgufValue]:
    said = folder.settings.get("chat_template")
    if said is None:
        said = _template_files(folder)
    if isinstance(said, str):
        return {CHAT_TEMPLATE: text(said)}
    named: dict[str, str] = {}
    for choice in said if isinstance(said, list) else []:
        match choice:
            case {"name": str(name), "template": str(template)} if name:
                # Only letters and digits of ASCII stand in a key.
                named[re.sub(r"[^A-Za-z0-9]", "_", name)] = template
    default = named.pop("default", None)
    keys = {f"{CHAT_TEMPLATE}.{name}": text(template) for name, template in named.items()}
    if named:
        keys[CHAT_TEMPLATES] = array("STRING", named)
    if default is not None:
        keys[CHAT_TEMPLATE] = text(default)
    return keys


def _template_files(folder: Folder) -> Any:
    raw = folder.read(TEMPLATE)
    if raw is None:
        return (json_object(folder, TEMPLATE_JSON) or {}).get("chat_template")
    default = _utf8(raw, TEMPLATE)
    more = sorted((folder.path / TEMPLATES).glob("*.jinja"))
    if not more:
        return default
    named = [{"name": path.stem, "template": _utf8(read_file(path) or b"", path.name)} for path in more]
    return [{"name": "default", "template": default}, *named]


def _utf8(raw: bytes, file: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            "a chat template is no UTF-8", code="broken-tokenizer", file=file, expected="UTF-8 text"
        ) from error
