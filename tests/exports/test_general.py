"""The ``general.*`` keys: what the ``gguf`` package writes for the same card, config and name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, Metadata, size_label

from ctxextend.contents import GgufValue
from ctxextend.exports.general import general_keys
from ctxextend.exports.layout import Layout


def theirs(
    name: str, card: dict[str, Any], config: dict[str, Any], counts: tuple[int, int, int, int]
) -> dict[str, Any]:
    metadata = Metadata.apply_metadata_heuristic(Metadata(), card, config, Path("models") / name, counts[0])
    metadata.size_label = metadata.size_label or size_label(*counts)
    writer = GGUFWriter(None, "llama")
    writer.add_type("model")
    metadata.set_gguf_meta_model(writer)
    writer.add_quantization_version(2)
    found = {key: value.value for key, value in writer.kv_data[0].items()}
    del found["general.architecture"]
    return found


def ours(name: str, card: dict[str, Any], config: dict[str, Any], layouts: list[Layout]) -> dict[str, Any]:
    keys = general_keys(name, card, config, layouts)
    return {key: list(value.value) if value.type == "ARRAY" else value.value for key, value in keys.items()}


NAMES = (
    "SmolLM2-135M-Instruct",
    "Llama-3.2-1B",
    "Qwen2.5-1.5B-Instruct-yarn-128k",
    "Mistral-7B-Instruct-v0.2",
    "Mixtral-8x7B-v0.1",
    "bloom-7b1",
    "gemma-2-2b-it",
    "Phi-3-mini-4k-instruct",
    "Phi-3-medium-128k-instruct",
    "llama",
    "some words of a name",
    "deepseek-coder-6.7b-base",
    "starcoder2-3b",
    "pythia-1.4b-deduped-v0",
    "Yi-34B-200K",
    "model-Q4_0",
    "qwen2-0_5b-f16",
    "OLMo-2-1124-7B",
    "granite-3.0-1b-a400m-instruct",
    "t5-small",
    "-x--7B-",
    "7B-chat",
    "v1.2",
    "smollm-small-360M-360M",
)
SIZES = (134_515_008, 1_500_000_000, 7_000_000_000, 46_700_000_000, 600)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_names_are_taken_apart_alike(name: str, size: int) -> None:
    layouts = [Layout(name="token_embd.weight", shape=(size // 10, 10))]
    assert ours(name, {}, {}, layouts) == theirs(name, {}, {}, (size, size, 0, 0))


CARDS: tuple[dict[str, Any], ...] = (
    {"license": "apache-2.0", "language": ["en", "fr"], "tags": ["chat"], "pipeline_tag": "text-generation"},
    {"license": "other", "license_name": "llama3", "license_link": "LICENSE", "language": "en"},
    {
        "license": ["mit", "apache-2.0"],
        "base_model": "meta-llama/Llama-3.2-1B-Instruct",
        "library_name": "transformers",
    },
    {"base_model": ["org-a/some-model-7B-v2", "https://huggingface.co/org-b/other-13b", "https://example.org/x"]},
    {"base_model": "plain-name", "datasets": ["HuggingFaceTB/cosmopedia-v2", "https://huggingface.co/a/b"]},
    {"base_model": [{"name": "A", "organization": "B", "version": "1"}], "dataset": "one/two"},
    {"model_name": "A Name", "model_creator": "Someone", "model_type": "llama", "model_url": "https://example.org"},
    {
        "name": "Own",
        "version": "v3",
        "organization": "Org",
        "basename": "base",
        "finetune": "tuned",
        "size_label": "9B",
    },
    {"base_model": None, "tags": None, "license": None},
)


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("config", [{}, {"_name_or_path": "meta-llama/Llama-2-7b-hf"}, {"_name_or_path": "/a/b/c"}])
def test_cards_are_read_alike(card: dict[str, Any], config: dict[str, Any]) -> None:
    size = 1_235_814_400
    layouts = [Layout(name="token_embd.weight", shape=(size,))]
    expected = theirs("My-Model-1B", dict(card), config, (size, size, 0, 0))
    # An empty list of base models says nothing; the package counts it.
    expected = {key: value for key, value in expected.items() if not (key.endswith(".count") and value == 0)}
    assert ours("My-Model-1B", card, config, layouts) == expected


def test_experts_are_counted() -> None:
    layouts = [
        Layout(name="token_embd.weight", shape=(1000, 64)),
        Layout(name="blk.0.ffn_up_exps.weight", shape=(8, 4096, 1024)),
        Layout(name="blk.1.ffn_up_exps.weight", shape=(8, 4096, 1024)),
    ]
    one, shared = 2 * 4096 * 1024, 64_000
    expected = size_label(shared + 8 * one, shared, one, 8)
    assert ours("experts", {}, {}, layouts)["general.size_label"] == expected


def test_norwegian_is_no_boolean() -> None:
    assert ours("x", {"language": [False, "sv"]}, {}, [])["general.languages"] == ["no", "sv"]


def test_recommended_sampling() -> None:
    generation = {"temperature": 0.5, "top_k": 20, "top_p": 0.75, "do_sample": True, "repetition_penalty": 1.25}
    keys = general_keys("x", {}, {}, [], generation=generation)
    assert {key: (value.type, value.value) for key, value in keys.items() if "sampling" in key} == {
        "general.sampling.temp": ("FLOAT32", 0.5),
        "general.sampling.top_k": ("INT32", 20),
        "general.sampling.top_p": ("FLOAT32", 0.75),
        "general.sampling.penalty_repeat": ("FLOAT32", 1.25),
    }


@pytest.mark.parametrize("odd", [1e300, -1e300, math.inf, math.nan, 10**400, True, "1", None, [1.0]], ids=repr)
@pytest.mark.parametrize("key", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
def test_sampling_that_no_file_can_hold_is_left_out(key: str, odd: Any) -> None:
    keys = general_keys("x", {}, {}, [], generation={key: odd, "top_p" if key != "top_p" else "min_p": 0.5})
    assert [value.value for name, value in keys.items() if "sampling" in name] == [0.5]


def test_a_number_above_a_whole_one_of_a_file_is_left_out() -> None:
    assert "general.sampling.top_k" not in general_keys("x", {}, {}, [], generation={"top_k": 1 << 31})
    keys = general_keys("x", {}, {}, [], generation={"top_k": (1 << 31) - 1})
    assert keys["general.sampling.top_k"].value == 2_147_483_647


def test_lists_of_lists_are_not_unfolded() -> None:
    nested: Any = ["a"]
    for _ in range(40):
        nested = [nested] * 9
    fields = ("license", "tags", "language", "base_model", "datasets", "name", "version")
    keys = general_keys("x", dict.fromkeys(fields, nested), {}, [])
    assert keys == general_keys("x", {}, {}, [])
    card = {"base_model": [{"name": nested, "url": "u"}, nested], "tags": ["b", nested, {"c": "d"}]}
    keys = general_keys("x", card, {}, [])
    assert (keys["general.base_model.count"].value, keys["general.base_model.0.url"].value) == (1, "u")
    assert "general.base_model.0.name" not in keys
    assert keys["general.tags"].value == ("b",)


def texts(keys: dict[str, GgufValue]) -> list[str]:
    return [
        text
        for value in keys.values()
        for text in ((value.value,) if value.type == "STRING" else value.value if value.item == "STRING" else ())
    ]


def test_long_texts_and_lists_are_cut() -> None:
    card = {"license": ["l" * 10_000] * 1000, "tags": ["t"] * 100_000, "base_model": ["a/b"] * 1000, "name": "n" * 9999}
    keys = general_keys("x", card, {"_name_or_path": "c" * 99_999}, [])
    assert max(map(len, texts(keys))) == 4096
    assert (len(keys["general.tags"].value), keys["general.base_model.count"].value) == (1024, 64)
    assert len(keys) < 300


ODD = {
    "long number": 10**5000,
    "long negative number": -(10**5000),
    "bytes": b"raw",
    "object": {"a": "b"},
    "half a character": "half \ud800",
    "no text": "",
    "slash": "/",
    "dash": "-",
    "numbers": "1-2",
    "long size": "9" * 500 + "B",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_values_give_keys_that_can_be_written(odd: Any) -> None:
    fields = ("name", "license", "language", "tags", "datasets", "base_model", "version", "basename", "size_label")
    for card in (dict.fromkeys(fields, odd), {key: [odd] for key in fields}):
        keys = general_keys("x-7B", card, {"_name_or_path": odd}, [Layout(name="blk.0.a_exps.weight", shape=(0, 0, 0))])
        # As a file holds it: any half of a character raises here.
        assert "".join(texts(keys)).encode()
