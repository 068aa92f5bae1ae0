"""Recipe files: what each may say, where errors point, and that nothing that a file holds escapes as another error."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxextend.errors import CheckpointError, CtxextendError, UnknownNameError, UsageError
from ctxextend.release.document import CheckPart, EvalPart, OutputPart, PushPart, RecipeDocument, SmokePart
from ctxextend.release.located import line_of, located
from ctxextend.release.parsing import MOST_BYTES
from ctxextend.release.reading import RecipeFile, read_recipe
from ctxextend.release.variables import name_of

RECIPES: Final = Path(__file__).parents[2] / "recipes"

WHOLE: Final = """\
# A recipe with everything that is read in a way of its own.
source: Qwen/Qwen3-8B@main
revision: 5e10123
target: 128_000
factor: 4
options:
  beta_fast: 32
  mscale: 1e-3
  truncate: true
  text: "32"
  nothing: ~
  list: [1, 1.5, a]
base: unscaled
layers: full_attention
sliding_window: off
fine_tune: yes
runtimes: [vllm, "llama.cpp"]
out: 010
outputs:
  - to: safetensors
    checksums: on
  - to: gguf
    outtypes: q8_0, q4_k_m
    split_max_size: 40GiB
    name: no
check:
  against: original
smoke: no
eval:
  lengths: [8k, 32768]
  depths:
    - 0.5
    - 1
  bounds: {passkey: .8}
push:
  private: False
"""


def reading(tmp_path: Path, text: str | bytes, **variables: str) -> RecipeFile:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_recipe(path, variables)


def refused(tmp_path: Path, text: str | bytes, **variables: str) -> CtxextendError:
    """The error, with its file's folder left away."""
    with pytest.raises(CtxextendError) as caught:
        reading(tmp_path, text, **variables)
    error = caught.value
    assert error.file is not None
    assert error.file.startswith(str(tmp_path / "recipe.yaml"))
    error.file = error.file.removeprefix(f"{tmp_path}/")
    assert (type(error), error.exit_code) in ((UsageError, 2), (CheckpointError, 1))
    return error


def document(tmp_path: Path, text: str, **variables: str) -> RecipeDocument:
    (variant,) = reading(tmp_path, text, **variables).variants
    return variant.document


def test_everything_that_a_recipe_says(tmp_path: Path) -> None:
    recipe = reading(tmp_path, WHOLE)
    (variant,) = recipe.variants
    assert (recipe.path, recipe.name) == (str(tmp_path / "recipe.yaml"), "recipe")
    assert recipe.sha256 == hashlib.sha256(WHOLE.encode()).hexdigest()
    assert (recipe.variables, variant.label, variant.values) == ({}, "", {})
    assert variant.document == RecipeDocument(
        source="Qwen/Qwen3-8B@main",
        revision="5e10123",
        target=128000,
        factor=4.0,
        options={
            "beta_fast": 32,
            "mscale": 0.001,
            "truncate": True,
            "text": "32",
            "nothing": None,
            "list": [1, 1.5, "a"],
        },
        base="unscaled",
        layers="full_attention",
        sliding_window="off",
        fine_tune=True,
        runtimes=("vllm", "llama.cpp"),
        out="010",
        outputs=(
            OutputPart(to="safetensors", checksums=True),
            OutputPart(to="gguf", outtypes="q8_0, q4_k_m", split_max_size="40GiB", name="no"),
        ),
        check=CheckPart(against="original"),
        smoke=False,
        eval=EvalPart(lengths=("8k", 32768), depths=(0.5, 1.0), bounds={"passkey": 0.8}),
        push=PushPart(private=False),
    )


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    (variant,) = reading(tmp_path, WHOLE).variants
    lines = WHOLE.splitlines()
    assert lines[line_of(variant, "source") - 1].startswith("source:")  # type: ignore[operator]
    assert line_of(variant, "options", "mscale") == 8
    assert line_of(variant, "outputs", 1) == lines.index("  - to: gguf") + 1
    assert line_of(variant, "outputs", 1, "name") == lines.index("    name: no") + 1
    assert line_of(variant, "eval", "depths", 1) == lines.index("    - 1") + 1
    # What the file doesn't say stands where its nearest key does; what has none stands nowhere.
    assert line_of(variant, "outputs", 1, "repo_id") == lines.index("  - to: gguf") + 1
    assert line_of(variant, "eval", "seed") == lines.index("eval:") + 1
    assert line_of(variant, "method") is None
    assert line_of(variant) is None


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_the_project_are_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert all(variant.document.source.count("/") == 1 for variant in recipe.variants)


def test_a_switch_or_settings(tmp_path: Path) -> None:
    assert document(tmp_path, "source: a\nsmoke: on\neval: {}\ncheck: True").smoke is True
    assert document(tmp_path, "source: a\nsmoke: {length: 8k}").smoke == SmokePart(length="8k")
    assert document(tmp_path, "source: a\neval: {}").eval == EvalPart()


def test_no_number_is_guessed(tmp_path: Path) -> None:
    """What YAML 1.1 reads as 8, 90 and infinity stays text, which the method then refuses."""
    assert document(tmp_path, "source: a\noptions: {a: 010, b: 1:30, c: .inf}").options == {
        "a": "010",
        "b": "1:30",
        "c": ".inf",
    }


def test_aliases_stand_for_values(tmp_path: Path) -> None:
    read = document(tmp_path, "source: a\nruntimes: &r [vllm]\ncheck:\n  runtimes: *r\n")
    assert isinstance(read.check, CheckPart)
    assert read.runtimes == read.check.runtimes == ("vllm",)


@pytest.mark.parametrize(
    ("text", "key", "line", "hint"),
    [
        ("smoke:\n  lenght: 8k", "smoke.lenght", 3, "did you mean length?"),
        ("taget: 8k", "taget", 2, "did you mean target?"),
        ("outtypes: q8_0", "outtypes", 2, "did you mean outputs.outtypes?"),
        ("lengths: 4k", "lengths", 2, "did you mean eval.lengths?"),
        ("smoke: {target: 4k}", "smoke.target", 2, "did you mean target, at the top of the file?"),
        ("outputs:\n- {split-max-size: 1}", "outputs[0].split-max-size", 3, "did you mean split_max_size?"),
        ("fine-tune: yes", "fine-tune", 2, "did you mean fine_tune?"),
        ("set: {a: 1}", "set", 2, "keys of options"),
        ("qqqq: 1", "qqqq", 2, "take it out"),
        ("out: a\nout: b", "out", 3, "keep one of them"),
        ("options: {a: 1,\n a: 1}", "options.a", 3, "keep one of them"),
        ("? [out]\n: a", None, 2, "KEY: VALUE"),
        ("options: {~: a}", "options", 2, "KEY: VALUE"),
        ("options: {'${a}': 1}", "options.${a}", 2, "write the key out"),
        ("options: &o {a: 1}\npush:\n  <<: *o", "push", 4, "write the keys out"),
    ],
)
def test_keys_that_are_not_known(tmp_path: Path, text: str, key: str | None, line: int, hint: str) -> None:
    error = refused(tmp_path, f"source: a\n{text}\n")
    assert (error.code, error.file, error.key) == ("recipe-key", f"recipe.yaml, line {line}", key)
    assert hint in (error.hint or "")


def test_the_known_keys_are_listed(tmp_path: Path) -> None:
    assert refused(tmp_path, "source: a\npush: {x: 1}").expected == (
        "one of private, revision, create_pr, commit_message, commit_description, include, exclude, card, allow"
    )
    assert refused(tmp_path, "method: yarn").key == "source"


@pytest.mark.parametrize(
    "text",
    [
        "token: {}",
        "hf_token: {}",
        "hf-token: {}",
        "push:\n  token: {}",
        "smoke: {{api_key: {}}}",
        "options: {{API_KEY: {}}}",
        "variables: {{my_token: {}}}",
        "matrix: {{token: [{}]}}",
        "password: {}",
    ],
)
def test_secrets_are_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, f"source: a\n{text.format('hunter2')}\n")
    assert error.code == "recipe-secret"
    assert "HF_TOKEN" in (error.hint or "")
    assert "OPENAI_API_KEY" in (error.hint or "")
    assert "hunter2" not in str(error.details())


def test_a_tokenizer_is_no_secret(tmp_path: Path) -> None:
    read = document(tmp_path, "source: a\nsmoke: {tokenizer: b}\n")
    assert read.smoke == SmokePart(tokenizer="b")


def test_a_token_in_another_place_is_masked(tmp_path: Path) -> None:
    for text in ("card: hf_abcdefghijkl", "hf_abcdefghijkl: 1", "card: [*hf_abcdefghijkl]", "out: ${hf_abcdefghijkl}"):
        assert "abcdefghijkl" not in str(refused(tmp_path, f"source: a\n{text}\n").details())
    error = refused(tmp_path, "source: a", hf_token="hf_abcdefghijkl")
    assert error.code == "recipe-secret"
    assert "abcdefghijkl" not in str(error.details())


@pytest.mark.parametrize(
    ("text", "key", "expected", "found", "hint"),
    [
        ("factor: four", "factor", "a number", "four", None),
        ('factor: "4"', "factor", "a number", '"4", in quotes', "without the quotes"),
        ("factor: .inf", "factor", "a number", ".inf", "finite"),
        ("factor: .NaN", "factor", "a number", ".NaN", "finite"),
        ("factor: 1e999", "factor", "a number", "1e999", "finite"),
        ("factor: [4]", "factor", "a number", "a list", "one value"),
        ("eval: {windows: 2.0}", "eval.windows", "a whole number", "2.0", None),
        ("eval: {windows: 010}", "eval.windows", "a whole number", "010", "leading zero"),
        ("eval: {windows: 1:30}", "eval.windows", "a whole number", "1:30", None),
        (f"eval: {{windows: {'9' * 19}}}", "eval.windows", "a whole number", "9" * 19, None),
        ("eval: {windows: yes}", "eval.windows", "a whole number", "yes", None),
        ("card: 1", "card", "yes or no", "1", None),
        ("card: 'yes'", "card", "yes or no", '"yes", in quotes', "without the quotes"),
        ("card:", "card", "yes or no", "nothing", "leave the line away"),
        ("smoke:", "smoke", "yes, no or keys such as engine, endpoint, served_name", "nothing", "'smoke: yes'"),
        ("base: trian", "base", "auto, trained or unscaled", "trian", "did you mean trained?"),
        ("sliding_window: on", "sliding_window", "keep, off or target", "on", None),
        ("outputs: [{to: GGUF}]", "outputs[0].to", "gguf or safetensors", "GGUF", "did you mean gguf?"),
        ("outputs: {to: gguf}", "outputs", "a list", "a mapping", "- "),
        ("outputs: [gguf]", "outputs[0]", "keys such as to, outtypes, split_max_size", "gguf", None),
        ("runtimes: [vllm, null]", "runtimes[1]", "a text", "nothing", "give a value"),
        ("method: {yarn: 1}", "method", "a text", "a mapping", "method: VALUE"),
        ("revision: [a]", "revision", "a text", "a list", "one value"),
        ("options: [a]", "options", "keys with their values", "a list", None),
        ("options: {a: on}", "options.a", "true or false, or a text in quotes", "on", 'true, or "on"'),
        ("options: {a: [No]}", "options.a[0]", "true or false, or a text in quotes", "No", 'false, or "No"'),
        ("eval: {bounds: {kl: low}}", "eval.bounds.kl", "a number", "low", None),
        ("eval: {depths: [0.5, x]}", "eval.depths[1]", "a number", "x", None),
        ('out: "a\\0"', "out", None, "U+0000", "take it out"),
        ('out: "\\ude00\\ud83d"', "out", None, "U+DE00", "take it out"),
        ("out: !!str 1", None, "values without a tag", None, "quotes"),
        ("out: !env HOME", None, "values without a tag", None, "quotes"),
    ],
)
def test_values_of_another_kind(
    tmp_path: Path, text: str, key: str | None, expected: str | None, found: str | None, hint: str | None
) -> None:
    error = refused(tmp_path, f"source: a\n{text}\n")
    assert (error.code, error.file) == ("recipe-value", "recipe.yaml, line 2")
    assert (error.key, error.expected, error.found) == (key, expected, found)
    assert hint is None or hint in (error.hint or "")


@pytest.mark.parametrize(
    ("raw", "code", "line"),
    [
        (b"source: \xff", "recipe-yaml", ", line 1"),
        ("source: a".encode("utf-16"), "recipe-yaml", ", line 1"),
        (b"source: a\nout: \xc2\x80", "recipe-yaml", ", line 2"),
        (b"source: a\n\tout: b", "recipe-yaml", ", line 2"),
        (b"source: a\nout: b: c", "recipe-yaml", ", line 2"),
        (b"source: a\nlayers: [${a}]", "recipe-yaml", ", line 2"),
        (b"source: a\nout: *b", "recipe-yaml", ", line 2"),
        (b'source: a\nout: "\\U00110000"', "recipe-yaml", ""),
        (b"%YAML 1." + b"9" * 5000 + b"\n---\nsource: a", "recipe-yaml", ""),
        (b"", "recipe-value", ""),
        (b"# nothing\n---\n", "recipe-value", ""),
        (b"- source: a", "recipe-value", ", line 1"),
        (b"source", "recipe-value", ", line 1"),
        (b"source: a\n---\nsource: b", "recipe-value", ", line 2"),
        (b"source: a\noptions: " + b"[" * 5000, "recipe-value", ", line 2"),
        (b"source: a\noptions: &a\n  x: *a", "recipe-value", ", line 3"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, raw: bytes, code: str, line: str) -> None:
    error = refused(tmp_path, raw)
    assert (error.code, error.file) == (code, f"recipe.yaml{line}")
    assert error.exit_code == (1 if code == "recipe-yaml" else 2)
    assert error.hint or not line


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"source: a\n#" + b"x" * MOST_BYTES)
    for name in ("none.yaml", ".", "large.yaml", "nul\0"):
        with pytest.raises(CheckpointError) as caught:
            read_recipe(tmp_path / name)
        assert (caught.value.code, caught.value.exit_code) == ("recipe-file", 1)
    bom = "\ufeffsource: a\r\nout: b\r\n".encode()
    assert reading(tmp_path, bom).variants[0].document.out == "b"


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """Nine levels of nine are 9^9 texts."""
    text = "source: a\noptions:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        text += f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n"
    error = refused(tmp_path, text)
    assert (error.code, error.message) == ("recipe-value", "the recipe holds too much")


def test_variables_and_built_in_names(tmp_path: Path) -> None:
    text = """
source: ${org}/Model-8B@v1
target: ${n}
factor: ${none}
variables: {org: me, n: null, none: '', literal: '$${x}'}
out: ${recipe}/${name}-${method}-${target}
outputs:
- repo_id: "${ org }/$${org}"
  name: "${n}"
  checksums: ${switch}
  outtypes: ["q${n}_0", '$n $$']
options: {list: '${n}'}
push:
  commit_message: |
    From ${literal}
"""
    read = document(tmp_path, text.replace("${switch}", "yes"), n="8")
    assert read.source == "me/Model-8B@v1"
    assert (read.target, read.factor) == (8, None)
    assert read.out == "recipe/Model-8B-auto-8"
    assert read.outputs[0].repo_id == "me/${org}"
    assert read.outputs[0].name == "8"
    assert read.outputs[0].outtypes == ("q8_0", "$n $$")
    assert read.options == {"list": "8"}
    assert read.push.commit_message == "From ${x}\n"
    assert reading(tmp_path, text.replace("${switch}", "yes"), n="8").variables == {
        "org": "me",
        "n": "8",
        "none": "",
        "literal": "${x}",
    }


@pytest.mark.parametrize("value", ["[1, 2]", "{a: 1}", "a: b", "# c", "- a", "x\ny: z", "${org}", "&a", "!!int 1"])
def test_what_is_put_in_is_text(tmp_path: Path, value: str) -> None:
    text = "source: a\nvariables: {v: x, org: o}\nout: ${v}\noptions:\n  a: ${v}\n"
    read = document(tmp_path, text, v=value)
    assert (read.out, read.options) == (value, {"a": value})


@pytest.mark.parametrize(
    ("text", "given", "line", "key", "hint"),
    [
        ("out: ${nam}", {}, ", line 2", "out", "did you mean ${name}?"),
        ("out: ${", {}, ", line 2", "out", "$${"),
        ("out: ${{ name }}", {}, ", line 2", "out", "single braces"),
        ("out: ${}", {}, ", line 2", "out", "declare it"),
        ("out: ${target}", {}, ", line 2", "out", "a line 'target:'"),
        ("method: ${target}", {}, ", line 2", "method", "isn't known in"),
        ("target: ${name}", {}, ", line 2", "target", "isn't known in"),
        ("variables: [a]", {}, ", line 2", "variables", "NAME: DEFAULT"),
        ("variables: {a: [1]}", {}, ", line 2", "variables.a", "one text with commas"),
        ("variables: {label: 1}", {}, ", line 2", "variables.label", "my_label"),
        ("variables: {a-b: 1}", {}, ", line 2", "variables.a-b", ""),
        ("variables: {a: 1, b: '${a}'}", {}, ", line 2", "variables.b", "where they are needed"),
        ("variables: {a: null}", {}, ", line 2", "variables.a", "--var a=VALUE"),
        ("variables: {size: 1}", {"sze": "1"}, "", "--var sze", "did you mean size?"),
        ("out: a", {"size": "1"}, "", "--var size", "'variables:'"),
    ],
)
def test_variables_that_can_not_be(
    tmp_path: Path, text: str, given: dict[str, str], line: str, key: str, hint: str
) -> None:
    error = refused(tmp_path, f"source: a\n{text}\n", **given)
    assert (error.code, error.file, error.key) == ("recipe-variable", f"recipe.yaml{line}", key)
    assert hint in (error.hint or "")


def test_a_variable_can_be_written(tmp_path: Path) -> None:
    assert refused(tmp_path, "source: a\nvariables: {a: 1}", a="\0").found == "U+0000"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("hf://Qwen/Qwen3-8B@refs/pr/1", "Qwen3-8B"),
        ("org/model-GGUF:Q4_K_M", "model-GGUF"),
        ("org/model-GGUF:Q4_K_M@main", "model-GGUF"),
        ("org/model-GGUF/sub/model-q8_0.gguf@main", "model-q8_0"),
        ("org/m-GGUF/model-00001-of-00003.gguf", "model"),
        ("./models/my@model/", "my@model"),
        ("/models/tiny.gguf", "tiny"),
        ("models/tiny", "tiny"),
    ],
)
def test_the_name_of_a_source(source: str, name: str) -> None:
    assert name_of(source) == name


@pytest.mark.parametrize(
    ("outputs", "line", "key", "message"),
    [
        ("[]", 2, "outputs", "no outputs"),
        ("\n- name: a\n- {name: b}\n- name: A", 5, "outputs[2].name", "same name"),
        ("\n- repo_id: o/a\n- to: gguf\n  repo_id: O/a", 5, "outputs[1].repo_id", "same repository"),
        ("[{name: ../a}]", 2, "outputs[0].name", "that of a file"),
        ("[{name: a/b}]", 2, "outputs[0].name", "that of a file"),
        ("[{name: ''}]", 2, "outputs[0].name", "that of a file"),
        ("[{name: Evidence}]", 2, "outputs[0].name", "that of a file"),
    ],
)
def test_outputs_that_are_in_each_others_way(tmp_path: Path, outputs: str, line: int, key: str, message: str) -> None:
    error = refused(tmp_path, f"source: a\noutputs: {outputs}\n")
    assert (error.file, error.key) == (f"recipe.yaml, line {line}", key)
    assert message in error.message


def test_variants_are_not_published_over_each_other(tmp_path: Path) -> None:
    text = "source: a\noutputs: [{repo_id: o/a}]\nmatrix: {method: [yarn, ntk]}\n"
    assert "${label}" in (refused(tmp_path, text).hint or "")
    for other in (
        text.replace("o/a", '"o/a-${label}"'),
        text + 'push: {revision: "${label}"}',
        text + "push: {create_pr: yes}",
    ):
        assert len(reading(tmp_path, other).variants) == 2


def test_errors_of_other_parsers_get_their_place(tmp_path: Path) -> None:
    recipe = reading(tmp_path, WHOLE)
    (variant,) = recipe.variants
    raised = UnknownNameError("runtime", "vlm", ["vllm"])
    error = located(raised, recipe, variant, "runtimes", 0)
    assert isinstance(error, UnknownNameError)
    assert (error.file, error.key) == (f"{tmp_path}/recipe.yaml, line 17", "runtimes[0]")
    assert (error.message, error.hint, str(error)) == (raised.message, raised.hint, str(raised))
    assert (raised.file, raised.key) == (None, None)
    assert located(raised, "r.yaml", variant, "method").file == "r.yaml"
    assert located(UsageError("no", key="--var a"), recipe, None).key == "--var a"


def test_nothing_but_our_errors_for_any_text(tmp_path: Path) -> None:
    path = tmp_path / "fuzzed.yaml"

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"%#?,$ \n\t~01.", max_size=80).map(str.encode))
    def check(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            read_recipe(path)
        except CtxextendError as error:
            str(error.details()).encode()

    check()


MATRIX: Final = "variables: {v: 1, w: x}\nmatrix:\n  v: [2, 3]\n  method: [yarn, {method: ntk, options: {a: 1.5}}]\n"


def test_nothing_but_our_errors_for_a_changed_recipe(tmp_path: Path) -> None:
    path = tmp_path / "fuzzed.yaml"
    whole = (WHOLE.replace("5e10123", "${v}-${w}") + MATRIX).encode()
    pieces = [
        b"",
        b"[",
        b"}",
        b": ",
        b"\n",
        b"\n- ",
        b"null",
        b"${v}",
        b"${",
        b"yes",
        b"1",
        b"'",
        b"&a ",
        b"*a",
        b"\xff",
    ]
    change = st.tuples(st.integers(0, len(whole)), st.integers(0, 12), st.sampled_from(pieces))
    seen = {"read": 0}

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(change, max_size=3))
    def check(changes: list[tuple[int, int, bytes]]) -> None:
        raw = whole
        for start, length, piece in changes:
            raw = raw[:start] + piece + raw[start + length :]
        path.write_bytes(raw)
        try:
            read_recipe(path)
            seen["read"] += 1
        except CtxextendError as error:
            str(error.details()).encode()

    check()
    assert seen["read"]


def test_values_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Any options that JSON can say are YAML, and are read as JSON does."""
    import json

    path = tmp_path / "options.yaml"
    scalars: st.SearchStrategy[Any] = (
        st.none()
        | st.booleans()
        | st.integers(-(10**17), 10**17)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).filter(lambda text: "${" not in text)
    )
    names = st.text("abcdefgh", min_size=1, max_size=5)
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
    )

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(names, values, max_size=4))
    def check(options: dict[str, Any]) -> None:
        path.write_text("source: a\noptions: " + json.dumps(options))
        (variant,) = read_recipe(path).variants
        assert variant.document.options == options
        assert json.dumps(variant.document.options) == json.dumps(options)

    check()
