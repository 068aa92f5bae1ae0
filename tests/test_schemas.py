"""The published schemas: valid, complete, held by what the commands really print, and failed by what is broken."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file

from ctxextend.cli import main as entry
from ctxextend.errors import DisagreementError, UnknownNameError
from ctxextend.lab import report, verbs
from ctxextend.lab.texts import read_documents
from ctxextend.pipeline import open_source
from ctxextend.schemas import DOCUMENTS, schema_of
from tests.cli.support import DEMO, LLAMA, build, call, edit_config, read_json
from tests.factories import TINY, TypeAndShape, write_checkpoint
from tests.fake_hub import serve
from tests.file_systems import inserts
from tests.hub_shell import TARGET, Run, checkpoint, emptied, shell

PACKAGE = Path(__file__).resolve().parents[1] / "ctxextend"
PUBLISHED = PACKAGE.parent / "docs" / "reference" / "schemas"
NAMES = pytest.mark.parametrize("name", DOCUMENTS)

YARN = ("--method", "yarn", "--target", "1k")
WEIGHTS = "model.safetensors"

#: By name, every document that was printed or written: what it came of, and what it says.
Printed = Mapping[str, list[tuple[str, Any]]]


class Book:
    """Keeps every document with what it came of."""

    def __init__(self) -> None:
        self.documents: defaultdict[str, list[tuple[str, Any]]] = defaultdict(list)

    def keep(self, document: Any, of: str, name: str | None = None) -> Any:
        named = re.fullmatch(r"ctxextend\.([a-z-]+)/1", str(document.get("schema")))
        assert named or name, f"{of} printed a document without a schema"
        self.documents[name or named[1]].append((of, document))  # type: ignore[index]
        return document

    def call(self, *args: str | Path, code: int = 0) -> Any:
        """What a command prints with ``--json``."""
        return self.keep(call(*args, "--json", code=code).json, " ".join(map(str, args)))

    def lines(self, *files: Path) -> None:
        """The lines of a run."""
        for file in files:
            for line in file.read_text().splitlines():
                self.keep(json.loads(line), file.name, "cells")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schemas")


@pytest.fixture(scope="module")
def text(place: Path) -> tuple[str, str]:
    """The option for the beginning of the held-out text."""
    file = place / "text.txt"
    file.write_bytes((DEMO.parent / "heldout.txt").read_bytes()[:8_000])
    return "--text", str(file)


@pytest.fixture(scope="module")
def book(place: Path, text: tuple[str, str]) -> Book:
    """Every command, on what makes it say different things."""
    book = Book()
    listings(book)
    conversions(book, place)
    without_rope(book, place)
    other_weights(book, place)
    checks(book, place)
    # What is drawn and how long the text is are no matter here.
    with mock.patch.object(report, "exhibits", return_value=()):
        measurements(book, place, text)
    with mock.patch.object(verbs, "read_documents", return_value=read_documents(text[1:])):
        smokes(book, place, text)
    recipes(book, place, text)
    errors(book, place)
    pushes(book, place)
    return book


def listings(book: Book) -> None:
    for name in ("methods", "families", "runtimes"):
        book.call(name)


def conversions(book: Book, place: Path) -> None:
    book.call("inspect", DEMO)
    book.call("inspect", DEMO, "--target", "1k", "--memory", "1GiB")
    for method in ("yarn", "ntk", "linear", "dynamic", "llama3", "auto"):
        book.call("plan", DEMO, "--method", method, "--target", "1k")
    book.call("plan", DEMO, "--target", "128")
    factors = "long_factor=" + json.dumps([4.0] * 16)
    book.call("plan", DEMO, "--method", "longrope", "--target", "1k", "--set", factors)
    saved = place / "plan.json"
    saved.write_text(json.dumps(book.call("plan", DEMO, *YARN)))
    book.call("convert", DEMO, "--plan", saved, "--out", place / "yarn")
    book.keep(read_json(place / "yarn" / "ctxextend.json"), "ctxextend.json")
    book.keep(read_json(place / "yarn" / "config.json")["ctxextend"], "config.json")
    book.call("inspect", place / "yarn")
    book.call("plan", place / "yarn", "--method", "ntk", "--target", "2k")
    book.call("convert", DEMO, *YARN, "--bake", "all", "--checksums", "--out", place / "baked")
    book.keep(read_json(place / "baked" / "config.json")["ctxextend"], "config.json of a baked one")
    book.call("convert", DEMO, *YARN, "--config-only", "--out", place / "overrides")
    book.keep(read_json(place / "overrides" / "ctxextend-overrides.json"), "ctxextend-overrides.json")
    gguf = place / "demo.gguf"
    book.call("convert", DEMO, "--target", "256", "--to", "gguf", "--outtype", "f32", "--out", gguf)
    book.keep(read_json(place / "demo.gguf.ctxextend.json"), "demo.gguf.ctxextend.json")
    book.call("inspect", gguf, "--target", "1k", "--memory", "1GiB")
    book.call("check", gguf)
    book.call("plan", gguf, *YARN)
    book.call("plan", gguf, *YARN, "--carrier", "factors")
    if inserts(place):
        book.call("convert", gguf, *YARN, "--in-place")
    else:
        book.call("convert", gguf, *YARN, "--out", place / "long.gguf")
        gguf = place / "long.gguf"
    book.call("inspect", gguf)
    contents = open_source(gguf).contents
    assert contents.gguf is not None
    book.keep(json.loads(contents.gguf.values["ctxextend.record"].value), "ctxextend.record")
    book.call("convert", gguf, "--method", "ntk", "--target", "1k", "--to", "safetensors", "--out", place / "restored")


def without_rope(book: Book, place: Path) -> None:
    table: Mapping[str, TypeAndShape] = {"wpe.weight": ("F32", (64, 32)), "wte.weight": ("F32", (96, 32))}
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 64, "vocab_size": 96}
    write_checkpoint(place / "gpt2", {"model_type": "gpt2", **sizes}, tensors=table)
    book.call("inspect", place / "gpt2")
    book.call("convert", place / "gpt2", "--method", "absolute", "--target", "128", "--out", place / "gpt2-128")
    book.keep(read_json(place / "gpt2-128" / "config.json")["ctxextend"], "config.json of a learned table")
    stored: Mapping[str, TypeAndShape] = {
        f"model.{part}.embed_positions.weight": ("F32", (64, 32)) for part in ("encoder", "decoder")
    }
    marian = {"model_type": "marian", "d_model": 32, "max_position_embeddings": 64, "pad_token_id": 5}
    write_checkpoint(place / "marian", marian, tensors=stored)
    book.call("plan", place / "marian", "--method", "sinusoidal", "--target", "128")
    write_checkpoint(place / "odd", {"model_type": "bert"})
    book.call("inspect", place / "odd")


def other_weights(book: Book, place: Path) -> None:
    """Queries of which a part is turned, a table of a rope that isn't wanted any more; quantised weights."""
    attention = "gpt_neox.layers.0.attention."
    tensors: Mapping[str, TypeAndShape] = {
        f"{attention}query_key_value.weight": ("F32", (192, 64)),
        f"{attention}query_key_value.bias": ("F32", (192,)),
        f"{attention}dense.weight": ("F32", (64, 64)),
        f"{attention}rotary_emb.inv_freq": ("F32", (4,)),
    }
    keys = {key: value for key, value in TINY.items() if key not in ("rope_theta", "num_key_value_heads")}
    neox = {**keys, "model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000}
    write_checkpoint(place / "neox", neox, tensors=tensors)
    bake = ("--bake", "temperature", "--runtimes", "transformers")
    book.call("convert", place / "neox", "--method", "yarn", "--target", "4k", *bake, "--out", place / "neox-4k")
    write_checkpoint(place / "gptq", {**TINY, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    book.call("inspect", place / "gptq")


def checks(book: Book, place: Path) -> None:
    book.call("check", place / "yarn")
    book.call("check", place / "yarn", "--against", place / "plan.json")
    book.call("check", DEMO, "--against", place / "yarn", code=5)
    build(place / "mistaken", {**LLAMA, "max_position_embeddings": 2048})
    edit_config(place / "mistaken", rope_scaling={"type": "yarn", "factor": 4.0})
    book.call("check", place / "mistaken", code=5)
    fix = ("check", place / "mistaken", "--fix", "--original-context", "512")
    book.call(*fix, "--dry-run")
    book.call(*fix, "--out", place / "mended")
    book.call("check", place / "gpt2-128")


def measurements(book: Book, place: Path, text: tuple[str, str]) -> None:
    broken = place / "broken"
    shutil.copytree(DEMO, broken)
    weights = load_file(broken / WEIGHTS)
    weights["model.layers.3.mlp.down_proj.weight"][0].fill_(float("nan"))
    save_file(weights, broken / WEIGHTS, metadata={"format": "pt"})
    few = ("--lengths", "320", "--windows", "1", "--samples", "1", "--depths", "0.5")
    tasks = ("--tasks", "perplexity,sliding,passkey", "--against", "original", "--short-lengths", "64")
    measured = ("eval", place / "yarn", *text, *few, *tasks)
    book.call(*measured, "--dry-run")
    book.call(*measured, "--gate", "--report", place / "report", code=4)
    book.keep(read_json(place / "report" / "eval.json"), "eval.json")
    book.lines(place / "report" / "cells.jsonl")
    one = ("--tasks", "perplexity", "--max-perplexity-ratio", "2")
    book.call("eval", broken, *text, *few, *one, "--report", place / "nan", code=4)
    book.keep(read_json(place / "nan" / "eval.json"), "eval.json of a broken model")
    book.lines(place / "nan" / "cells.jsonl")
    short = ("--tasks", "perplexity,passkey,short", "--short-lengths", "64")
    compared = ("compare", DEMO, *text, *few, *short, "--methods", "none,yarn")
    book.call(*compared, "--dry-run")
    book.call(*compared, "--report", place / "comparison")
    book.keep(read_json(place / "comparison" / "compare.json"), "compare.json")
    book.lines(*sorted((place / "comparison").glob("cells-*.jsonl")))


def smokes(book: Book, place: Path, text: tuple[str, str]) -> None:
    book.call("smoke", place / "broken", "--length", "64", *text, code=4)
    to_gguf = ("--to", "gguf", "--outtype", "f16", "--out", place / "smoked.gguf")
    book.call("convert", DEMO, "--method", "yarn", "--target", "512", *to_gguf, "--smoke")


def recipes(book: Book, place: Path, text: tuple[str, str]) -> None:
    """Written, carried out, failed; with numbers that are finite and others."""
    book.call("recipe", "init", DEMO, "--target", "1k")
    book.call("recipe", "init", DEMO, "--target", "1k", "--out", place / "begun.yaml")
    recipe = place / "recipe.yaml"
    matrix = f"matrix:\n  source: [{DEMO}, {place / 'broken'}]\nmethod: yarn\ntarget: 1k\nout: {place / 'run'}\n"
    measured = (
        f"eval: {{lengths: [320], tasks: perplexity, windows: 1, text: {text[1]}, bounds: {{perplexity-ratio: 2}}}}\n"
    )
    recipe.write_text(f"{matrix}outputs: [{{name: long}}]\n{measured}")
    book.call("run", recipe, "--dry-run")
    book.call("run", recipe, code=4)
    book.call("run", recipe, "--shard", "1/2")
    book.call("run", recipe, "--merge", code=4)
    for state in sorted((place / "run").rglob("run.json")):
        book.keep(read_json(state), "run.json")
    book.keep(read_json(place / "run" / "results.json"), "results.json")


def errors(book: Book, place: Path) -> None:
    """One of each exit code, as a command ends with it; ``check`` prints its own document with 5."""
    (place / "empty").mkdir()
    book.call("inspect", place / "empty", code=1)
    book.call("plan", DEMO, "--method", "yarm", "--target", "1k", code=2)
    book.call("plan", DEMO, "--no-such-option", code=2)
    book.call("convert", DEMO, *YARN, "--out", place / "yarn", code=3)
    build(place / "half")
    book.call("convert", place / "half", "--method", "yarn", "--target", "1k", "--smoke", "--out", place / "x", code=4)
    for ended, code in ((KeyboardInterrupt(), 130), (DisagreementError("no"), 5), (ValueError("a bug"), 1)):
        with mock.patch.object(entry, "app_for", side_effect=ended):
            book.call("inspect", DEMO, code=code)


def pushes(book: Book, place: Path) -> None:
    """To a Hub on the loopback, from a process of its own."""
    (place / "home").mkdir()
    with serve() as running, shell(running, place / "home") as command:
        hub = emptied(running, place / "hub")
        source = checkpoint(place / "source")
        hub.add("org/tiny", source)
        run = Run(command, place)
        book.keep(run("push", source, TARGET, "--dry-run", "--json").document, "push --dry-run")
        direct = ("convert", "org/tiny", "-m", "yarn", "-t", "4k", "--push", TARGET)
        book.keep(run(*direct, "--json").document, "convert --push")
        book.keep(run("push", source, TARGET, "--create-pr", "--json").document, "push --create-pr")


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(schema)


def closed(part: Any) -> Any:
    """The same schema with no other fields than those that it lists."""
    if isinstance(part, list):
        return [closed(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    inside = {key: closed(inner) for key, inner in part.items()}
    return {**inside, "additionalProperties": False} if isinstance(part.get("required"), list) else inside


def objects(schema: Any, value: Any, defs: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every object of a document that holds, with its schema."""
    if "$ref" in schema:
        yield from objects(defs[schema["$ref"].removeprefix("#/$defs/")], value, defs)
    elif "anyOf" in schema:
        held = next(part for part in schema["anyOf"] if validator({**part, "$defs": defs}).is_valid(value))
        yield from objects(held, value, defs)
    elif isinstance(value, dict):
        if "required" in schema:
            yield schema, value
        for key, inner in list(value.items()):
            yield from objects(
                schema.get("properties", {}).get(key, schema.get("additionalProperties", {})), inner, defs
            )
    elif isinstance(value, list):
        for inner in value:
            yield from objects(schema.get("items") or {}, inner, defs)


@NAMES
def test_a_schema_is_valid_and_says_what_it_is(name: str) -> None:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:ctxextend:{name}:1"
    assert schema["title"]
    assert schema["description"]
    first = schema["$defs"]["LedgerHeader"] if name == "cells" else schema
    assert first["properties"]["schema"] == {"const": f"ctxextend.{name}/1"}
    assert "schema" in first["required"]


@NAMES
def test_a_schema_is_whole_in_itself_and_lets_fields_be_added(name: str) -> None:
    schema = schema_of(name)
    text = json.dumps(schema)
    used = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', text))
    assert text.count('"$ref"') == len(re.findall(r'"\$ref": "#/\$defs/', text))
    assert used == set(schema["$defs"])
    assert '"additionalProperties": false' not in text
    assert "``" not in text
    assert "None" not in text


def test_every_schema_that_the_code_names_is_published() -> None:
    named = {
        found
        for file in PACKAGE.rglob("*.py")
        for found in re.findall(r"ctxextend\.[a-z-]+/[0-9]+\b", file.read_text(encoding="utf-8"))
    }
    assert named == {document.schema for document in DOCUMENTS.values()}
    assert {path.name for path in PUBLISHED.iterdir()} == {f"{name}.json" for name in DOCUMENTS}


@NAMES
def test_what_is_published_is_what_the_code_says(name: str) -> None:
    assert read_json(PUBLISHED / f"{name}.json") == schema_of(name)


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(UnknownNameError) as caught:
        schema_of("plans")
    assert "did you mean plan" in str(caught.value.hint)


@NAMES
def test_real_documents_hold(name: str, book: Book) -> None:
    """And have no field that the schema doesn't list."""
    judge = validator(closed(schema_of(name)))
    assert book.documents[name]
    for of, document in book.documents[name]:
        wrong = [f"{of}: {error.json_path}: {error.message[:300]}" for error in judge.iter_errors(document)]
        assert not wrong, wrong[:3]


@NAMES
def test_a_document_without_a_required_field_fails(name: str, book: Book) -> None:
    schema = schema_of(name)
    judge, defs, tried = validator(schema), schema["$defs"], set()
    for _of, document in book.documents[name]:
        for part, found in objects(schema, document, defs):
            for field in list(found):
                if (part["title"], field) in tried:
                    continue
                tried.add((part["title"], field))
                kept = dict(found)
                del found[field]
                assert judge.is_valid(document) is (field not in part["required"]), f"{part['title']}.{field}"
                found.clear()
                found.update(kept)
        assert judge.is_valid(document)
    assert tried


@NAMES
def test_a_document_of_another_version_or_kind_fails(name: str, book: Book) -> None:
    judge = validator(schema_of(name))
    _of, document = book.documents[name][0]
    for other in (f"ctxextend.{name}/2", "ctxextend.other/1", None):
        assert not judge.is_valid({**document, "schema": other})
    for field in document:
        if field not in ("options", "parameters"):
            assert not judge.is_valid({**document, field: {"a thing": object}}) or isinstance(document[field], dict)


def test_every_exit_code_has_its_error(book: Book) -> None:
    assert {document["exit_code"] for _of, document in book.documents["error"]} == {1, 2, 3, 4, 5, 130}


def test_all_that_the_schemas_describe_was_seen(book: Book) -> None:
    """So that what holds is no schema of which nothing is ever printed."""
    seen, described = set(), set()
    for name in DOCUMENTS:
        schema = schema_of(name)
        described |= set(schema["$defs"])
        for _of, document in book.documents[name]:
            seen |= {part["title"] for part, _found in objects(schema, document, schema["$defs"])}
    assert not described - seen


def test_what_is_no_number_is_null_or_a_word(book: Book) -> None:
    broken = next(document for of, document in book.documents["eval"] if of == "eval.json of a broken model")
    assert broken["curves"][0]["whole"] is None
    words = {
        line["result"]["bins"][0]["nats"]
        for of, line in book.documents["cells"]
        if line.get("result", {}).get("task") == "perplexity"
    }
    assert "nan" in words
