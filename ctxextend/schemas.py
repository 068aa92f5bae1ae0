"""JSON Schemas (draft 2020-12) of every JSON document that ctxextend prints or writes.

They are made from the values themselves, so that a document and its schema can't part. They say what this version
writes: fields are only ever added, and a document of an older one may lack those that came later.

>>> from ctxextend.schemas import schema_of
>>> schema_of("plan")["$id"]
'urn:ctxextend:plan:1'
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import msgspec.inspect
from msgspec import UNSET, Struct, UnsetType

from ctxextend.apply import Manifest
from ctxextend.documents import (
    ErrorDocument,
    FamiliesDocument,
    InspectionDocument,
    MethodsDocument,
    RuntimesDocument,
)
from ctxextend.errors import UnknownNameError
from ctxextend.findings import Check
from ctxextend.gguf_record import GgufRecord
from ctxextend.hub.values import Pushed
from ctxextend.lab import ledger
from ctxextend.lab.results import Comparison, Evaluation
from ctxextend.lab.smoke import SmokeReport
from ctxextend.lab.verbs import Laid
from ctxextend.plan import Plan
from ctxextend.record import Record
from ctxextend.release.results import RunResult, VariantResult
from ctxextend.release.writing import WrittenRecipe
from ctxextend.runtimes.overrides import Overrides

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class PrintedManifest(Manifest, frozen=True, kw_only=True):
    """What was written: the plan, what the files are, what was verified, which tensors were changed.

    In what is printed alone, ``path``: where the output lies, ``smoke``: what ``convert --smoke`` found in each output,
    and ``push``: what became of it on the Hub.
    """

    path: str | UnsetType = UNSET
    smoke: tuple[SmokeReport, ...] | UnsetType = UNSET
    push: Pushed | UnsetType = UNSET


class LedgerHeader(Struct, frozen=True, kw_only=True):
    """The first line: what the results are of. ``ctxextend`` is its version, without the last number.

    ``checkpoint`` and ``against`` are fingerprints (``original``: the checkpoint as it was before a conversion),
    ``opening`` the tokens that stand before every text, ``texts`` have a name, a SHA-256 and a number of tokens.
    ``config``: of one method among several that are compared, what it makes of config.json.
    """

    schema: str = ledger.SCHEMA
    ctxextend: str
    checkpoint: str
    against: str | None
    engine: str
    engine_version: str
    device: str
    dtype: str
    opening: tuple[int, ...]
    endpoint: str | None
    served_name: str | None
    tokenizer: str | None
    texts: tuple[tuple[str, str, int], ...]
    seed: int
    needles: int
    config: Mapping[str, Any] | UnsetType = UNSET


class Published(Struct, frozen=True, kw_only=True):
    """A document: what it is, in Markdown where it appears, and the value that it holds (any of several).

    ``description``: of several; one describes itself.
    """

    title: str
    where: str
    types: tuple[type[Struct], ...]
    description: str | None = None

    @property
    def schema(self) -> str:
        """What its ``schema`` field says, such as ``ctxextend.plan/1``."""
        field = next(field for field in msgspec.structs.fields(self.types[0]) if field.name == "schema")
        return str(field.default)

    @property
    def name(self) -> str:
        """The name alone, such as ``plan``."""
        return self.schema.removeprefix("ctxextend.").partition("/")[0]


_DOCUMENTS: Final = (
    Published(
        title="Why a command ended",
        where="every command with `--json`, in place of its own document",
        types=(ErrorDocument,),
    ),
    Published(title="What a checkpoint is", where="`inspect --json`", types=(InspectionDocument,)),
    Published(
        title="What will happen",
        where="`plan --json`, `convert --dry-run --json`, `check --fix --dry-run --json`; in every manifest; "
        "`--plan` and `--against` read it",
        types=(Plan,),
    ),
    Published(
        title="What was written",
        where="`convert --json`, `check --fix --json`; `ctxextend.json` in a converted folder, "
        "`FILE.ctxextend.json` beside a GGUF file",
        types=(PrintedManifest,),
    ),
    Published(
        title="What a conversion of the config alone is served with",
        where="`ctxextend-overrides.json`, which `convert --config-only` writes",
        types=(Overrides,),
    ),
    Published(
        title="The record in a converted checkpoint",
        where="`config.json` under the key `ctxextend`",
        types=(Record,),
    ),
    Published(
        title="The record in a converted GGUF file",
        where="the text of the key `ctxextend.record`",
        types=(GgufRecord,),
    ),
    Published(title="What every runtime reads", where="`check --json`", types=(Check,)),
    Published(
        title="Whether it runs", where="`smoke --json`; in the manifest of `convert --smoke`", types=(SmokeReport,)
    ),
    Published(title="How good it is", where="`eval --json`; `eval.json` in a `--report` folder", types=(Evaluation,)),
    Published(
        title="Which method is best",
        where="`compare --json`; `compare.json` in a `--report` folder",
        types=(Comparison,),
    ),
    Published(
        title="What a measurement will cost",
        where="`eval --dry-run --json`, `compare --dry-run --json`",
        types=(Laid,),
    ),
    Published(
        title="A line of what was measured so far",
        where="`cells.jsonl` (of a comparison `cells-*.jsonl`) in a `--report` folder, a document a line",
        types=(LedgerHeader, ledger.Entry),
        description="The first line is a LedgerHeader: what the results are of. Every other is an Entry: a result and "
        "what it took. Lines are written as they come, so that a run that was cut short goes on from there.",
    ),
    Published(title="What was published", where="`push --json`; in the manifest of `convert --push`", types=(Pushed,)),
    Published(title="A recipe for a checkpoint", where="`recipe init --json`", types=(WrittenRecipe,)),
    Published(
        title="What became of a recipe",
        where="`run --json`; `results.json` in a recipe's folder",
        types=(RunResult,),
    ),
    Published(
        title="What became of one variant of a recipe",
        where="`run.json` in its folder, written as the run goes",
        types=(VariantResult,),
    ),
    Published(title="The methods", where="`methods --json`", types=(MethodsDocument,)),
    Published(title="The families", where="`families --json`", types=(FamiliesDocument,)),
    Published(title="The runtimes", where="`runtimes --json`", types=(RuntimesDocument,)),
)


#: Every document by its name, such as ``plan`` or ``gguf-record``.
DOCUMENTS: Final[Mapping[str, Published]] = {document.name: document for document in _DOCUMENTS}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of a document, whole in itself. Raises :class:`UnknownNameError`."""
    if name not in DOCUMENTS:
        raise UnknownNameError("schema", name, DOCUMENTS)
    document = DOCUMENTS[name]
    roots, parts = msgspec.json.schema_components(document.types, ref_template="#/$defs/{name}")
    structs = {
        found.cls.__name__: found for root in document.types for found in _structs(msgspec.inspect.type_info(root))
    }
    defs = {title: _tidy(_emitted(part, structs[title])) for title, part in parts.items()}
    head = {"$schema": DIALECT, "$id": re.sub(r"[./]", ":", f"urn:{document.schema}"), "title": document.title}
    if document.description is not None:
        return {**head, "description": document.description, "type": "object", "anyOf": list(roots), "$defs": defs}
    root = defs.pop(document.types[0].__name__)
    del root["title"]
    return {**head, **root, "$defs": defs}


def _structs(part: Any) -> Iterator[msgspec.inspect.StructType]:
    """The values inside a type, it itself among them."""
    if isinstance(part, tuple):
        for inner in part:
            yield from _structs(inner)
    elif isinstance(part, Struct):
        if isinstance(part, msgspec.inspect.StructType):
            yield part
        for name in part.__struct_fields__:
            yield from _structs(getattr(part, name))


def _emitted(part: Mapping[str, Any], struct: msgspec.inspect.StructType) -> dict[str, Any]:
    """A value's schema as it is written, where msgspec's is of what can be read: a field with a default is written too.

    Other fields are allowed everywhere: later versions add some.
    """
    omits = struct.cls.__struct_config__.omit_defaults
    properties = {name: dict(field) for name, field in part["properties"].items()}
    required = list(part["required"])
    for field in struct.fields:
        found = properties[field.encode_name]
        if field.name == "schema":
            properties["schema"] = {"const": field.default}
        if field.required or omits:
            continue
        optional = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
        found.pop("default", None)
        if not optional:
            required.append(field.encode_name)
    ordered = [name for name in properties if name in required]
    told = {"description": _plain(inspect.getdoc(struct.cls) or "")} if struct.cls.__doc__ else {}
    return {"title": part["title"], **told, "type": "object", "properties": properties, "required": ordered}


def _tidy(part: Any) -> Any:
    """Plain JSON Schema: without OpenAPI's ``discriminator``, one value as ``const``, ``or`` as another possibility."""
    match part:
        case {"or": other, **rest}:
            return {"anyOf": [_tidy(rest), other]}
        case {"enum": [only], **rest}:
            return {**rest, "const": only}
        case dict():
            return {key: _tidy(inner) for key, inner in part.items() if key != "discriminator"}
        case list():
            return [_tidy(inner) for inner in part]
        case _:
            return part


def _plain(text: str) -> str:
    """A docstring for readers of JSON: paragraphs of one line, without what it raises in Python."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    told = (paragraph for paragraph in paragraphs if not paragraph.startswith("Raises "))
    return re.sub(r"\bNone\b", "null", "\n\n".join(told).replace("``", "`"))
