"""Model cards: what is kept and said, that nothing of strangers becomes markup, that the Hub's classes read them."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import ctxextend
from ctxextend.apply import Manifest, OutputFile, Verified, verify
from ctxextend.card import model_card
from ctxextend.card.markdown import BEGIN, END, block, code, one_line, plain, table
from ctxextend.changes import Carry, EditJson, Export, ResizeTable, Restore, SetKey
from ctxextend.contents import GgufValue
from ctxextend.encoding import PlanWarning
from ctxextend.plan import SourceRef
from ctxextend.recipe import Recipe
from ctxextend.release.asked import recipe_of
from ctxextend.release.document import OutputPart
from tests.golden.support import after_texts, contents, planned
from tests.golden.test_recipes import CONFIGS, RECIPES, document_of

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
DASH = "\N{EN DASH}"
COMMIT = "a09a35458c702b33eeacc393d103063234e8bc28"
REPO = "me/Qwen2.5-7B-Instruct-128k"

CARD = """---
license: other
license_name: qwen
license_link: https://example.org/LICENSE
language:
- en
- no
tags:
- chat
datasets: [org/data]
date: 2024-09-16
pipeline_tag: text-generation
library_name: transformers
base_model: Qwen/Qwen2.5-7B
base_model_relation: finetune
extra_gated_prompt: "Say who you are: you"
extra_gated_fields:
  Country: country
  I agree: checkbox
new_version: Qwen/Qwen9
model-index:
- name: Qwen2.5
  results:
  - task: {type: text-generation}
    dataset: {name: MMLU, type: mmlu}
    metrics: [{type: accuracy, value: 74.2}]
---

# Qwen2.5-7B-Instruct

It is *good*.

    @misc{qwen2.5}
"""


def made(recipe: str, folder: Path) -> Manifest:
    """The manifest of a worked recipe, on the published config of its source, as a repository of the Hub."""
    document = document_of(recipe)
    checkpoint = msgspec.structs.replace(
        contents(document.source.split("/")[-1]), source=document.source, revision=COMMIT
    )
    plan = planned(checkpoint, recipe_of(document, OutputPart()))
    for file, text in after_texts(checkpoint, plan).items():
        (folder / file).write_text(text)
    return Manifest(version="0.1.0", plan=plan, files=(), verified=verify(plan, folder))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return made("qwen2.5-7b-instruct-128k-yarn.yaml", tmp_path_factory.mktemp("qwen"))


def with_plan(manifest: Manifest, **changes: Any) -> Manifest:
    return msgspec.structs.replace(manifest, plan=msgspec.structs.replace(manifest.plan, **changes))


def card_of(manifest: Manifest, source_card: str | None = None, **options: Any) -> tuple[dict[str, Any], str]:
    """A card's metadata, as the Hub's classes have it, and its text."""
    repo_id = options.pop("repo_id", REPO)
    text = model_card(manifest, source_card=source_card, repo_id=repo_id, **options)
    card = ModelCard(text)
    found = yaml.safe_load(text.split("---\n")[1])
    # What goes through their classes comes back the same: nothing in it is lost on the way to the Hub.
    assert yaml.safe_load(str(card).split("---\n")[1]) == found
    lines = card.text.splitlines()
    assert lines.count(BEGIN) == lines.count(END) == 1
    return found, card.text


def rendered(text: str) -> str:
    made: str = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    return made


def local(manifest: Manifest, name: str = "checkpoint", source: str = "/home/alice/models/checkpoint") -> Manifest:
    return with_plan(manifest, source=SourceRef(name=name, source=source, revision=None, config_sha256="0"))


# ---- front matter


def test_the_sources_front_matter_stays(qwen: Manifest) -> None:
    found, _text = card_of(qwen, CARD)
    assert found == {
        "license": "other",
        "license_name": "qwen",
        "license_link": "https://example.org/LICENSE",
        # Not false, and not a date: the Hub reads YAML 1.2.
        "language": ["en", "no"],
        "datasets": ["org/data"],
        "date": "2024-09-16",
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "extra_gated_prompt": "Say who you are: you",
        "extra_gated_fields": {"Country": "country", "I agree": "checkbox"},
        "base_model": "Qwen/Qwen2.5-7B-Instruct",
        "base_model_relation": "finetune",
        "tags": ["chat", "long-context", "context-extension", "yarn", "ctxextend"],
    }


def test_a_source_without_a_card(qwen: Manifest) -> None:
    found, text = card_of(qwen)
    assert list(found) == ["base_model", "base_model_relation", "tags"]
    assert "Below is the card" not in text


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [("chat", ["chat"]), ("[chat, 3, yarn, gguf]", ["chat", "yarn"]), ("{a: b}", []), ("", [])],
)
def test_tags_of_any_kind(qwen: Manifest, tags: str, wanted: list[str]) -> None:
    found, _text = card_of(qwen, f"---\ntags: {tags}\n---\n")
    assert found["tags"] == list(dict.fromkeys([*wanted, "long-context", "context-extension", "yarn", "ctxextend"]))


def test_keys_that_the_hubs_classes_fail_on_are_left_out(qwen: Manifest) -> None:
    found, _text = card_of(qwen, "---\nself: a\nignore_metadata_errors: b\neval_results: c\n1: d\nmetrics: [x]\n---\n")
    assert set(found) == {"metrics", "base_model", "base_model_relation", "tags"}


def test_front_matter_that_is_no_yaml_is_shown(qwen: Manifest) -> None:
    found, text = card_of(qwen, "---\nlicense: mit: [\n---\n# A model\n")
    assert "license" not in found
    assert "```text\nlicense: mit: [\n```" in text
    assert text.endswith("\n# A model\n")


def gguf(manifest: Manifest, **changes: Any) -> Manifest:
    """An export of two types."""
    keys = SetKey(file="export.gguf", key="qwen2.context_length", after=GgufValue(type="UINT32", value=131072))
    export = Export(architecture="qwen2", outtypes=("q8_0", "f16"), files=("model.safetensors",), size_bytes=3)
    verified = Verified(
        runtime="llama.cpp",
        versions=">=11434",
        agrees=True,
        reason=None,
        max_context=131072,
        inv_freq_error=0.0,
        serve="llama-server -m './my model-Q8_0.gguf' -c 131072 --no-context-shift",
    )
    files = (
        OutputFile(path="my model-Q8_0.gguf", size_bytes=3 << 20),
        OutputFile(path="my model-F16.gguf", size_bytes=5 << 20),
    )
    planned = with_plan(manifest, actions=(keys, export), to="gguf", **changes)
    return msgspec.structs.replace(planned, files=files, verified=(verified,))


OURS = f"---\nbase_model: Qwen/Qwen2.5-7B-Instruct\n---\n\n{BEGIN}\nours\n{END}\n\n# Original\n"
OTHER = SourceRef(name="A", source="org/A", revision=COMMIT, config_sha256="0")
NOWHERE = SourceRef(name="A", source="../models/A", revision=None, config_sha256="0")


@pytest.mark.parametrize(
    ("card", "source", "to", "wanted"),
    [
        # The repository that it was made of, whatever that was made of.
        (CARD, OTHER, "safetensors", ("org/A", "finetune")),
        (None, OTHER, "gguf", ("org/A", "quantized")),
        # An earlier output of ours: both are made of the same; but a quantisation is one of what was quantised.
        (OURS, OTHER, "safetensors", ("Qwen/Qwen2.5-7B-Instruct", "finetune")),
        (OURS, OTHER, "gguf", ("org/A", "quantized")),
        # Nothing tells the repository: what the card says stays, and isn't embellished.
        (CARD, NOWHERE, "safetensors", ("Qwen/Qwen2.5-7B", "finetune")),
        (CARD, NOWHERE, "gguf", ("Qwen/Qwen2.5-7B", "quantized")),
        (
            "---\nbase_model: [a/b, c/d]\nbase_model_relation: merge\n---\n",
            NOWHERE,
            "safetensors",
            (["a/b", "c/d"], "merge"),
        ),
        ("---\nbase_model: a/b\nbase_model_relation: cousin\n---\n", NOWHERE, "safetensors", ("a/b", None)),
        ("---\nbase_model: {a: b}\n---\n", NOWHERE, "safetensors", (None, None)),
        (None, NOWHERE, "gguf", (None, None)),
        # A path in two parts is no repository.
        (None, msgspec.structs.replace(NOWHERE, source="demo/checkpoint"), "safetensors", (None, None)),
        # Nothing is its own base.
        (f"---\nbase_model: [{REPO}, a/b]\n---\n", NOWHERE, "safetensors", ("a/b", None)),
        (CARD, msgspec.structs.replace(OTHER, source=REPO), "safetensors", ("Qwen/Qwen2.5-7B", "finetune")),
    ],
)
def test_the_chain_of_bases(
    qwen: Manifest, card: str | None, source: SourceRef, to: str, wanted: tuple[Any, str | None]
) -> None:
    manifest = with_plan(gguf(qwen) if to == "gguf" else qwen, source=source)
    found, _text = card_of(manifest, card)
    assert (found.get("base_model"), found.get("base_model_relation")) == wanted


def test_a_gguf_of_a_repository(qwen: Manifest) -> None:
    source = msgspec.structs.replace(OTHER, source="org/A-GGUF/A-Q4_K_M.gguf")
    found, _text = card_of(with_plan(qwen, source=source, to="gguf"))
    assert found["base_model"] == "org/A-GGUF"


def test_what_gguf_is_called(qwen: Manifest) -> None:
    found, text = card_of(gguf(qwen), CARD)
    assert (found["library_name"], found["tags"][-1]) == ("gguf", "gguf")
    assert "as GGUF, its context extended from 32768 to 131072 tokens" in text
    assert "- Weights: exported to GGUF as `qwen2`, `q8_0`, `f16`. Quantised weights differ from the source's." in text
    assert f"| `GGUF` | `qwen2.context_length` | {DASH} | `131072` |" in text
    assert "| `my model-F16.gguf` | 5.0 MiB |" in text
    assert f"llama-server -hf {REPO} --hf-file 'my model-Q8_0.gguf' -c 131072 --no-context-shift\n" in text


def test_safetensors_of_a_gguf_are_no_gguf_any_more(qwen: Manifest) -> None:
    restore = Restore(family="qwen2", dtype="BF16", config={}, files=("a.gguf",), size_bytes=1)
    found, text = card_of(with_plan(qwen, actions=(restore,)), "---\nlibrary_name: gguf\ntags: [gguf]\n---\n")
    assert (found["library_name"], "gguf" in found["tags"]) == ("transformers", False)
    assert "restored from GGUF as safetensors of `BF16`" in text


# ---- what is said


def test_what_was_changed_and_the_arithmetic(qwen: Manifest) -> None:
    _found, text = card_of(qwen)
    lines = text.splitlines()
    assert lines[2] == "# Qwen2.5-7B-Instruct-128k"
    assert lines[4] == (
        "[Qwen/Qwen2.5-7B-Instruct](https://huggingface.co/Qwen/Qwen2.5-7B-Instruct), its context extended from 32768 "
        "to 131072 tokens by `yarn`, without any training. Made by ctxextend 0.1.0."
    )
    assert f"The source's revision: `{COMMIT}`." in lines
    assert "- Length: 131072 / 32768 = 4 (target / trained length, in tokens)." in lines
    # ln 4 = 1.386294
    assert "- Attention factor of `full_attention`: 0.1 ln(4) + 1 = 1.13863." in lines
    assert "- Weights: the source's, byte for byte." in lines
    group = "| `full_attention` | 28 | `theta 1000000` | `theta 1000000, yarn 4` | 1 to 4 times | 1.13863 | `native` |"
    assert group in lines
    assert "| `config.json` | `max_position_embeddings` | `32768` | `131072` |" in lines
    # The record that a conversion leaves is no setting.
    assert "`ctxextend`" not in text


def test_what_runtimes_read_and_how_they_are_served(qwen: Manifest) -> None:
    _found, text = card_of(qwen)
    assert "| vllm | `>=0.30` | as planned | 131072 |" in text
    assert f"vllm `>=0.30`:\n\n```sh\nvllm serve {REPO} --max-model-len 131072\n```\n" in text
    assert f"AutoModelForCausalLM.from_pretrained('{REPO}', dtype='auto')" in text
    _found, text = card_of(qwen, repo_id=None)
    assert "\nvllm serve . --max-model-len 131072\n" in text
    assert text.splitlines()[2] == "# Qwen2.5-7B-Instruct-yarn-128k"


COMMANDS = [
    (
        "vllm",
        'VLLM_X=1 vllm serve . --hf-overrides \'{"a": "."}\'',
        f'VLLM_X=1 vllm serve {REPO} --hf-overrides \'{{"a": "."}}\'',
    ),
    ("mlx-lm", "mlx_lm.server --model .", f"mlx_lm.server --model {REPO}"),
    (
        "tgi",
        "text-generation-launcher --model-id . --max-total-tokens 8",
        f"text-generation-launcher --model-id {REPO} --max-total-tokens 8",
    ),
    (
        "ctranslate2",
        "ctranslate2.converters.TransformersConverter('.').convert('m')",
        f"TransformersConverter('{REPO}').convert('m')",
    ),
    ("ollama", "FROM ./a.gguf\nPARAMETER num_ctx 8\n", f"```text\nFROM hf.co/{REPO}:a.gguf\nPARAMETER num_ctx 8\n```"),
    ("llama.cpp", "llama-server -m ./a.gguf -c 8", f"llama-server -hf {REPO} --hf-file a.gguf -c 8"),
    # These take a folder alone.
    ("exllamav3", "model = Model.from_config(Config.from_directory('.'))", "Config.from_directory('.'))"),
    (
        "ollama-create",
        "printf 'FROM .\\n' > Modelfile && ollama create x",
        "printf 'FROM .\\n' > Modelfile && ollama create x",
    ),
]


@pytest.mark.parametrize(("runtime", "serve", "wanted"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_commands_name_the_repository(qwen: Manifest, runtime: str, serve: str, wanted: str) -> None:
    found = Verified(
        runtime=runtime, versions="1", agrees=True, reason=None, max_context=8, inv_freq_error=0.0, serve=serve
    )
    _found, text = card_of(msgspec.structs.replace(qwen, verified=(found,)))
    assert wanted in text
    assert (f"`hf download {REPO} --local-dir .`" in text) == (runtime in ("exllamav3", "ollama-create"))


def test_what_is_misread_is_said_and_not_served(qwen: Manifest) -> None:
    wrong = Verified(
        runtime="sglang",
        versions=">=0.5",
        agrees=False,
        reason="another | theta",
        max_context=None,
        inv_freq_error=1.0,
        serve="sglang-command",
    )
    absent = Verified(
        runtime="mlx-lm",
        versions=">=0.32",
        agrees=True,
        reason=None,
        max_context=None,
        inv_freq_error=None,
        absent="no such model",
    )
    warning = PlanWarning(code="misread", message="sglang reads another theta", hint="use vllm")
    manifest = with_plan(qwen, misread=("sglang >=0.5", "tgi >=3"), warnings=(warning,))
    _found, text = card_of(msgspec.structs.replace(manifest, verified=(wrong, absent)))
    assert "| sglang | `>=0.5` | **not as planned**: another &#124; theta | no limit |" in text
    assert f"| mlx-lm | `>=0.32` | nothing: no such model | {DASH} |" in text
    assert "sglang-command" not in text
    limits = text[text.index("## Limits") :]
    assert "- tgi &gt;=3 is known to read it otherwise." in limits
    assert "- sglang reads another theta (use vllm)" in limits
    assert "- Quality was not measured." in limits
    assert "- No training was done for the positions past 32768." in limits


def test_how_to_reproduce(qwen: Manifest) -> None:
    _found, text = card_of(qwen, command="ctxextend convert Qwen/Qwen2.5-7B-Instruct --method yarn --target 128k")
    assert "```sh\nctxextend convert Qwen/Qwen2.5-7B-Instruct --method yarn --target 128k\n```" in text
    assert (
        f"```sh\nhf download {REPO} ctxextend.json --local-dir .\n"
        f"ctxextend convert Qwen/Qwen2.5-7B-Instruct@{COMMIT} --plan ctxextend.json "
        "--out Qwen2.5-7B-Instruct-yarn-128k\n```"
    ) in text
    assert f"Digest of the plan: `{qwen.plan.digest}`." in text
    alone = msgspec.structs.replace(gguf(qwen), files=(OutputFile(path="a.gguf", size_bytes=1),))
    assert "--plan a.gguf.ctxextend.json" in card_of(alone)[1]


def test_weights_with_a_temperature_in_them(tmp_path: Path) -> None:
    opened = ctxextend.open_source(DEMO)
    plan = ctxextend.plan_source(opened, Recipe(method="yarn", target=1024, bake="temperature"))
    _path, manifest = ctxextend.run_plan(plan, opened, tmp_path / "out")
    _found, text = card_of(manifest)
    # 1.138629 squared
    assert "scores are multiplied by 1.29648 there (1.13863 squared), and runtimes apply none" in text
    assert "- Tensors: 4 `model.layers.*.self_attn.q_proj.weight`, multiplied by 1.29648." in text
    # Half of the last of BF16's eight bits: 2^-8 = 0.0039.
    rounding = re.search(r"- Rounding: each product is off by at most (\S+) of itself in `BF16`\.", text)
    assert rounding is not None
    assert 0.0 < float(rounding[1]) <= 0.0040
    assert "| 1 (1.13863 in the weights) |" in text


def test_positions_without_a_rope(qwen: Manifest) -> None:
    resize = ResizeTable(
        file="model.safetensors",
        name="wpe.weight",
        rows_before=130,
        rows=514,
        reserved=2,
        interpolation="linear",
    )
    manifest = with_plan(
        qwen, method="absolute", options={"interpolation": "linear"}, groups=(), actions=(resize,), position="learned"
    )
    _found, text = card_of(manifest)
    assert "- Method: `absolute` with `interpolation=linear`, a learned table of positions is resized" in text
    assert "- Positions: the model has a learned table of positions." in text
    assert "- Tensors: `wpe.weight`, resized from 130 to 514 rows (linear, the first 2 kept)." in text


def test_settings_alone(qwen: Manifest) -> None:
    manifest = msgspec.structs.replace(qwen, files=(OutputFile(path="ctxextend-overrides.json", size_bytes=1),))
    _found, text = card_of(manifest)
    assert "There are no weights here" in text
    assert "- Weights:" not in text
    assert "vllm serve" not in text


@pytest.mark.parametrize(
    ("method", "said"), [("none", "no rope was scaled"), ("repair", "its settings for 32768 tokens mended")]
)
def test_nothing_is_claimed_that_was_not_done(qwen: Manifest, method: str, said: str) -> None:
    found, text = card_of(
        with_plan(qwen, method=method, target_context=32768, actions=(Carry(files=(), size_bytes=0),))
    )
    assert said in text
    assert found["tags"] == ["ctxextend"]
    for claim in ("extended", "- Length:", "No training", "Quality"):
        assert claim not in text


@pytest.mark.parametrize("recipe", CONFIGS)
def test_the_card_of_each_worked_recipe(recipe: str, tmp_path: Path) -> None:
    manifest = made(recipe, tmp_path)
    plan = manifest.plan
    found, text = card_of(manifest, CARD, repo_id="me/made")
    assert found["base_model"] == plan.source.source
    working = re.search(r"Working: (\d+ / \d+ = [\d.]*\d)", (RECIPES / recipe).read_text())
    assert working is not None
    assert f"- Length: {working[1]} (target / trained length, in tokens)." in text
    assert f"\nvllm serve me/made --max-model-len {plan.target_context}\n" in text
    page = rendered(text)
    # Every row has as many cells as its table's head: nothing breaks one.
    for shown in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        assert len({len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr>.*?</tr>", shown, re.DOTALL)}) == 1


# ---- again


def test_a_second_card_takes_the_place_of_the_first(qwen: Manifest) -> None:
    first = model_card(qwen, source_card=CARD, repo_id=REPO)
    assert model_card(qwen, source_card=first, repo_id=REPO) == first
    assert model_card(qwen, source_card=first.replace("\n", "\r\n"), repo_id=REPO) == first
    other = model_card(with_plan(qwen, method="ntk"), source_card=first, repo_id=REPO)
    assert other.count(BEGIN) == 1
    assert other.count("# Qwen2.5-7B-Instruct\n") == 1
    assert "`yarn`," not in other
    assert other.endswith("It is *good*.\n\n    @misc{qwen2.5}\n")


def test_the_sources_own_text_stays_as_it_is(qwen: Manifest) -> None:
    _found, text = card_of(qwen, CARD)
    assert text.endswith(CARD.split("---\n", 2)[2])
    assert text.index(END) < text.index("# Qwen2.5-7B-Instruct\n")
    assert "Below is the card of [Qwen/Qwen2.5-7B-Instruct]" in text


# ---- strangers


HOSTILE = (
    f"a|b\n{END}\n# x <script>alert(1)</script> <!-- [l](http://evil.example) "
    "`c` **b** ~~s~~ \\(x\\) $$y$$ &lt; www.evil.example"
)


def test_nothing_of_strangers_becomes_markup(qwen: Manifest) -> None:
    warning = PlanWarning(code="x", message=HOSTILE, hint=HOSTILE)
    edit = EditJson(file=HOSTILE, pointer=f"/{HOSTILE}", before={HOSTILE: HOSTILE}, after=["`", "|"])
    group = msgspec.structs.replace(qwen.plan.groups[0], label=HOSTILE)
    wrong = Verified(
        runtime=HOSTILE, versions=HOSTILE, agrees=True, reason=None, max_context=1, inv_freq_error=0.0, serve=HOSTILE
    )
    manifest = with_plan(
        local(qwen, name=HOSTILE, source=HOSTILE),
        warnings=(warning,),
        reasons=(HOSTILE,),
        actions=(edit,),
        groups=(group,),
        method=HOSTILE,
        options={HOSTILE: HOSTILE},
        misread=(HOSTILE,),
        arithmetic=HOSTILE,
        out=HOSTILE,
        version=HOSTILE,
        digest=HOSTILE,
    )
    manifest = msgspec.structs.replace(manifest, version=HOSTILE, verified=(wrong,))
    found, text = card_of(manifest, repo_id=None, command=HOSTILE)
    assert found["tags"][2] == HOSTILE
    ours = text[text.index(BEGIN) + len(BEGIN) : text.index(f"\n{END}\n")]
    page = rendered(ours)
    markup = set(re.findall(r"<([a-z!/]+[0-9]?)", page))
    names = "h1 h2 p ul li table thead tbody tr th td pre code"
    assert markup <= {form for name in names.split() for form in (name, f"/{name}")} | {"strong", "/strong"} - {
        "strong"
    }
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["What was changed", "Runtimes", "Limits", "How to reproduce"]
    for shown in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        assert len({len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr>.*?</tr>", shown, re.DOTALL)}) == 1


TEXTS = st.text(st.sampled_from("ab1 _*`|<>&\\[]()#~-+.$!:/@\n\t\"'{}=w"), max_size=40) | st.text(max_size=20)


@given(TEXTS)
@example("1. one")
@example("- a")
@example("__init__ _a_ a_b")
@example("&amp; <b> `x`")
def test_plain_text_reads_as_it_stands(text: str) -> None:
    page = rendered(f"{plain(text)}\n")
    assert html.unescape(re.sub(r"\A<p>|</p>\n\Z", "", page)) == one_line(text)


@given(TEXTS)
@example("``a`")
@example("a|b")
@example("\\|")
def test_code_reads_as_it_stands_in_a_table(text: str) -> None:
    page = rendered("\n".join(table(("a", "b"), [(code(text), plain(text))])))
    first, second = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    wanted = one_line(text)
    assert html.unescape(second) == wanted
    assert html.unescape(re.sub(r"\A<code>|</code>\Z", "", first)) == (wanted or DASH)


@given(st.lists(TEXTS, max_size=3).map("\n".join))
@example("a\n````\n# b")
def test_a_block_ends_where_it_should(text: str) -> None:
    page = rendered("\n".join([*block(text, "sh"), "after"]))
    assert page.count("<pre>") == 1
    assert page.endswith("</code></pre>\n<p>after</p>\n")


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("ctxextend convert a/b --token hf_abcdefghij --out 'x y'", "ctxextend convert a/b --out 'x y'"),
        ("ctxextend push x a/b --token=secret", "ctxextend push x a/b"),
        ("HF_TOKEN=hf_abcdefghij ctxextend push x a/b", "HF_TOKEN=TOKEN ctxextend push x a/b"),
        ("ctxextend 'unbalanced hf_abcdefghij", "ctxextend 'unbalanced TOKEN"),
    ],
)
def test_a_token_never_gets_into_a_card(qwen: Manifest, command: str, wanted: str) -> None:
    _found, text = card_of(qwen, command=command)
    assert f"```sh\n{wanted}\n```" in text
    assert not re.search("hf_abc|secret", text)


def test_a_folder_of_the_users_is_not_told(qwen: Manifest) -> None:
    manifest = local(qwen)
    _found, text = card_of(manifest, CARD)
    assert "/home/alice" not in text
    assert "`checkpoint`, its context extended" in text
    assert "ctxextend convert PATH_OF_THE_SOURCE --plan ctxextend.json" in text
