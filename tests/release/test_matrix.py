"""What varies in a recipe: which variants there are, what they are called, and which machine does which."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxextend.errors import UsageError
from ctxextend.release.located import line_of
from ctxextend.release.matrix import LONGEST_LABEL, Shard, select, shard_of
from ctxextend.release.reading import RecipeFile, read_recipe

LABEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def reading(tmp_path: Path, text: str, **variables: str) -> RecipeFile:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return read_recipe(path, variables)


def labels(tmp_path: Path, text: str, **variables: str) -> list[str]:
    return [variant.label for variant in reading(tmp_path, text, **variables).variants]


def refused(tmp_path: Path, text: str, **variables: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        reading(tmp_path, text, **variables)
    return caught.value


TEXT: Final = """\
source: org/model
options: {beta_fast: 16}
variables: {tag: plain, org: me}
matrix:
  method:
    - yarn
    - {method: ntk, options: {headroom: 1.25}}
  target: [64k, 131072]
  tag: [a, b]
out: ${org}
outputs:
  - repo_id: ${org}/${name}-${label}-${tag}
"""


def test_the_product_in_the_order_of_the_file(tmp_path: Path) -> None:
    recipe = reading(tmp_path, TEXT)
    assert [variant.label for variant in recipe.variants] == [
        "yarn-64k-a",
        "yarn-64k-b",
        "yarn-131072-a",
        "yarn-131072-b",
        "ntk-headroom-1.25-64k-a",
        "ntk-headroom-1.25-64k-b",
        "ntk-headroom-1.25-131072-a",
        "ntk-headroom-1.25-131072-b",
    ]
    last = recipe.variants[-1]
    assert last.values == {"method": "ntk", "options": {"headroom": 1.25}, "target": 131072, "tag": "b"}
    assert (last.document.method, last.document.target) == ("ntk", 131072)
    # What an entry sets replaces what stands beside the matrix, and nothing is mixed.
    assert last.document.options == {"headroom": 1.25}
    assert recipe.variants[0].document.options == {"beta_fast": 16}
    assert [variant.document.outputs[0].repo_id for variant in recipe.variants[:2]] == [
        "me/model-yarn-64k-a-a",
        "me/model-yarn-64k-b-b",
    ]
    assert recipe.variables == {"org": "me"}


def test_lines_are_those_of_the_matrix(tmp_path: Path) -> None:
    yarn, *_others, ntk = reading(tmp_path, TEXT).variants
    assert (line_of(yarn, "method"), line_of(ntk, "method")) == (6, 7)
    assert (line_of(yarn, "options", "beta_fast"), line_of(ntk, "options", "headroom")) == (2, 7)
    assert line_of(ntk, "target") == 8
    assert line_of(ntk, "tag") is None


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ("factor: [2, 4.0]", ["factor-2", "factor-4.0"]),
        ("fine_tune: [yes, no]", ["fine_tune-yes", "fine_tune-no"]),
        ("factor: [2, null]", ["factor-2", "factor-null"]),
        ("method: [yarn]", ["yarn"]),
        ("source: [Qwen/Qwen3-8B@main, /models/tiny.gguf]", ["Qwen3-8B", "tiny"]),
        ("runtimes: ['vllm,sglang', {runtimes: [a, b]}]", ["vllm-sglang", "a-b"]),
        ("smoke: [{smoke: {length: 8k}}, no]", ["length-8k", "smoke-no"]),
        ("n: [1, two, '-3']", ["n-1", "two", "n-3"]),
        ("method: ['-.a..', 'b//c d']", ["a", "b-c-d"]),
        ("revision: ['x-${n}', '${name}-y']", ["x-n", "name-y"]),
    ],
)
def test_labels_say_what_was_chosen(tmp_path: Path, matrix: str, wanted: list[str]) -> None:
    if not matrix.startswith("source"):
        matrix += "\nsource: org/model"
    text = "variables: {n: 1}\nmatrix:\n  " + matrix
    assert labels(tmp_path, text) == wanted


def test_labels_that_would_be_the_same_are_told_apart_whatever_the_order(tmp_path: Path) -> None:
    text = "matrix: {{source: [{}]}}\n"
    one, other, third = labels(tmp_path, text.format("a/Model, b/model, c/other"))
    assert re.fullmatch(r"Model-[0-9a-f]{12}", one)
    assert re.fullmatch(r"model-[0-9a-f]{12}", other)
    assert third == "other"
    assert one.lower() != other.lower()
    assert labels(tmp_path, text.format("c/other, b/model, d/x, a/Model")) == ["other", other, "x", one]


def test_labels_that_no_folder_can_have_get_a_digest(tmp_path: Path) -> None:
    long, longer, empty, taken = labels(
        tmp_path, f"source: a\nmatrix: {{method: [{'x' * 101}, {'x' * 102}, /, results.json, {'y' * 100}]}}\n"
    )[:4]
    assert len(long) == len(longer) == LONGEST_LABEL
    assert long != longer
    assert re.fullmatch(r"variant-[0-9a-f]{12}", empty)
    assert re.fullmatch(r"results.json-[0-9a-f]{12}", taken)


def test_without_a_matrix_there_is_one_variant(tmp_path: Path) -> None:
    assert labels(tmp_path, "source: a") == [""]


def test_values_lose_nothing(tmp_path: Path) -> None:
    recipe = reading(tmp_path, "source: a\nmatrix: {revision: [1.10, 5e1, yes, true, ~, '4']}\n")
    assert [variant.values["revision"] for variant in recipe.variants] == ["1.10", "5e1", "yes", True, None, "4"]
    assert [variant.document.revision for variant in recipe.variants] == ["1.10", "5e1", "yes", "true", None, "4"]


def test_variables_in_a_matrix(tmp_path: Path) -> None:
    """A variable that each entry sets needs no default; one that some set has it for the others."""
    text = """
source: ${model}
variables: {model: null, size: none}
matrix:
  model: [a/x, {model: b/y, size: '$${big}'}]
out: o
push: {commit_message: '${size}'}
"""
    recipe = reading(tmp_path, text)
    assert [variant.document.source for variant in recipe.variants] == ["a/x", "b/y"]
    assert [variant.document.push.commit_message for variant in recipe.variants] == ["none", "${big}"]
    given_too = reading(tmp_path, text, size="small")
    assert [variant.document.push.commit_message for variant in given_too.variants] == ["small", "${big}"]
    error = refused(tmp_path, text, model="c/z")
    assert (error.code, error.key) == ("recipe-variable", "matrix.model")
    error = refused(tmp_path, text.replace("size: none", "size: null"))
    assert (error.code, error.key) == ("recipe-variable", "variables.size")


@pytest.mark.parametrize(
    ("matrix", "key", "found", "hint"),
    [
        ("[a]", "matrix", "a list", "method: [yarn, ntk]"),
        ("{}", "matrix", "an empty mapping", "leave"),
        ("null", "matrix", "nothing", "leave"),
        ("{method: []}", "matrix.method", "an empty list", "method: [A, B]"),
        ("{method: yarn}", "matrix.method", "yarn", "method: [A, B]"),
        ("{metod: [yarn]}", "matrix.metod", "metod", "did you mean method?"),
        ("{fine-tune: [yes]}", "matrix.fine-tune", "fine-tune", "did you mean fine_tune?"),
        ("{sizes: [1]}", "matrix.sizes", "sizes", "did you mean size?"),
        ("{matrix: [1]}", "matrix.matrix", "matrix", "neither"),
        ("{method: [yarn, 'yarn']}", "matrix.method[1]", "the same as matrix.method[0]", "keep one"),
        ("{method: [yarn, {method: yarn}]}", "matrix.method[1]", "the same as matrix.method[0]", "keep one"),
        ("{method: [[yarn, ntk]]}", "matrix.method[0]", "a list", "{method: [A, B]}"),
        ("{options: [{headroom: 1}]}", "matrix.options[0].headroom", "headroom", "{options: {headroom: 1.25}}"),
        ("{method: [{options: {a: 1}}]}", "matrix.method[0]", "options", "{method: VALUE, ...}"),
        (
            "{method: [{method: ntk, target: 4k}], target: [1k]}",
            "matrix.target",
            "target, which matrix.method sets too",
            "{method: A, target: B}",
        ),
        ("{revision: [a]}", "matrix.revision", "revision on lines 3 and 4", "keep one"),
        ("{card: [yes]}", "matrix.card", "card, both", "another name"),
    ],
)
def test_a_matrix_that_can_not_be(tmp_path: Path, matrix: str, key: str, found: str, hint: str) -> None:
    text = f"source: a\nvariables: {{size: 1, card: 2}}\nrevision: r\nmatrix: {matrix}\n"
    error = refused(tmp_path, text)
    assert (error.code, error.key, error.found) == ("recipe-matrix", key, found)
    assert error.file == f"{tmp_path}/recipe.yaml, line 4"
    assert hint in f"{error.message} {error.hint}"


def test_a_variable_of_the_matrix_is_a_single_value(tmp_path: Path) -> None:
    text = "source: a\nvariables: {size: 1, other: 2}\nmatrix: {size: [{size: [1]}]}\n"
    assert refused(tmp_path, text).key == "matrix.size[0].size"
    assert refused(tmp_path, text.replace("{size: [1]}", "'${other}'")).key == "matrix.size[0]"


def test_a_matrix_is_bounded(tmp_path: Path) -> None:
    def axis(name: str, count: int) -> str:
        return f"  {name}: [{', '.join(f'v{number}' for number in range(count))}]\n"

    text = "source: a\nmatrix:\n" + axis("method", 100)
    assert len(reading(tmp_path, text + axis("target", 100)).variants) == 10_000
    error = refused(tmp_path, text + axis("target", 101))
    assert (error.expected, error.found, error.key) == ("at most 10000", "10100 or more", "matrix.target")


def test_shards_are_read() -> None:
    assert shard_of("2/4") == Shard(index=2, count=4)
    assert shard_of(" 1 / 1 ") == Shard(index=1, count=1)


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "0/0", "1/0", "-1/4", "1/-4", "1", "", "/", "1/", "a/b", "1/2/3", "1.0/2", "\u0661/\u0664"]
)
def test_shards_that_there_are_not(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        shard_of(text)
    assert (caught.value.code, caught.value.key, caught.value.exit_code) == ("bad-shard", "--shard", 2)
    assert "count from 1" in (caught.value.hint or "")


def test_shards_are_dealt_out_in_turn() -> None:
    assert select("abcdefg", Shard(index=1, count=3)) == ("a", "d", "g")
    assert select("abcdefg", Shard(index=3, count=3)) == ("c", "f")
    assert select("ab", Shard(index=3, count=3)) == ()


@given(st.integers(0, 200), st.integers(1, 50))
def test_every_variant_is_in_exactly_one_shard(variants: int, count: int) -> None:
    parts = [select(range(variants), shard_of(f"{index}/{count}")) for index in range(1, count + 1)]
    assert sorted(variant for part in parts for variant in part) == list(range(variants))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_labels_are_always_folders_and_never_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=120) | st.sampled_from(["a", "A", "../x"])
    axes = st.dictionaries(
        st.sampled_from(["method", "target", "revision", "family"]),
        st.lists(texts.filter(lambda text: "${" not in text), min_size=1, max_size=4, unique=True),
        min_size=1,
    )

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(axes)
    def check(matrix: dict[str, list[Any]]) -> None:
        import json

        path.write_text(f"source: a\nmatrix: {json.dumps(matrix)}\n")
        variants = read_recipe(path).variants
        found = [variant.label for variant in variants]
        assert len(found) == math.prod(len(values) for values in matrix.values())
        assert len({label.lower() for label in found}) == len(found)
        assert all(LABEL.fullmatch(label) for label in found)
        for variant in variants:
            assert {key: getattr(variant.document, key) for key in matrix} == variant.values

    check()
