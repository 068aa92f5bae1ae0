"""Which layers do what, in every way a config or a class says it. Expected values are written out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from ctxextend.errors import CheckpointError
from ctxextend.families import FAMILIES, LayerPattern
from ctxextend.formats.hf_layers import layer_labels, window_of
from ctxextend.formats.hf_read import head_dim_of, text_config

F, S, L = "full_attention", "sliding_attention", "linear_attention"
LLAMA = FAMILIES["llama"]


def labels(text: Mapping[str, Any], pattern: LayerPattern, *, window: int | None = 4) -> tuple[str, ...]:
    family = msgspec.structs.replace(LLAMA, layer_pattern=pattern, window=window)
    return layer_labels({"num_hidden_layers": 6, **text}, family)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (LayerPattern(kind="every_nth_full", period=3), (S, S, F, S, S, F)),
        (LayerPattern(kind="every_nth_full", period=3, full_first=True), (F, S, S, F, S, S)),
        (LayerPattern(kind="every_nth_full", period=4, last=F), (S, S, S, F, S, F)),
        (LayerPattern(kind="every_nth_full", period=4, first=(F, F)), (F, F, S, F, S, S)),
        (LayerPattern(kind="every_nth_full", period=3, rest_label=L), (L, L, F, L, L, F)),
        (LayerPattern(kind="cycle", cycle=(S, F)), (S, F) * 3),
        (LayerPattern(kind="cycle", cycle=(S,), first=(F,) * 9), (F,) * 6),
    ],
)
def test_patterns(pattern: LayerPattern, expected: tuple[str, ...]) -> None:
    assert labels({}, pattern) == expected


def test_windows_count_only_where_there_is_one_but_other_labels_always() -> None:
    assert labels({}, LayerPattern(kind="every_nth_full", period=3), window=None) == (F,) * 6
    linear = LayerPattern(kind="every_nth_full", period=3, rest_label=L)
    assert labels({}, linear, window=None) == (L, L, F, L, L, F)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (LayerPattern(), {"layer_types": [S, "attention", "mamba", F, F, F]}, (S, F, L, F, F, F)),
        (
            LayerPattern(types_keys=("layer_types", "layers_block_type")),
            {"layers_block_type": ["mamba"] * 5 + ["attention"]},
            (L, L, L, L, L, F),
        ),
        (LayerPattern(surplus=True), {"layer_types": [S] * 6 + [F, F]}, (S,) * 6),
        (
            LayerPattern(codes_key="attn_type_list", codes={0: L, 1: F}),
            {"attn_type_list": [0, 1, 0, 1, 0, 1]},
            (L, F) * 3,
        ),
        (LayerPattern(windows_key="windows"), {"windows": [None, 8, 0, 8, 8, None]}, (F, S, F, S, S, F)),
        (
            LayerPattern(full_indices_key="full_attn_idxs", rest_label="conv"),
            {"full_attn_idxs": [2, 5]},
            ("conv", "conv", F, "conv", "conv", F),
        ),
        (LayerPattern(last=F, last_forced=True), {"layer_types": [S] * 6}, (S, S, S, S, S, F)),
        (LayerPattern(last=F), {"layer_types": [S] * 6}, (S,) * 6),
    ],
)
def test_what_a_config_says_itself(pattern: LayerPattern, text: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert labels(text, pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "text", "key"),
    [
        (LayerPattern(), {"layer_types": [F] * 7}, "layer_types"),
        (LayerPattern(surplus=True), {"layer_types": [F] * 5}, "layer_types"),
        (LayerPattern(codes_key="codes", codes={0: F}), {"codes": [0]}, "codes"),
    ],
)
def test_a_list_of_the_wrong_length_is_broken(pattern: LayerPattern, text: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        labels(text, pattern)
    assert caught.value.key == key


def test_a_window_a_layer_gives_the_window() -> None:
    family = msgspec.structs.replace(LLAMA, layer_pattern=LayerPattern(windows_key="windows"), window=128)
    assert window_of({"windows": [None, 8, 0]}, family) == 8
    assert window_of({"windows": [None, 0]}, family) == 128
    assert window_of({}, family) == 128


def test_layers_that_attend_twice_count_twice() -> None:
    longcat = FAMILIES["longcat_flash"]
    assert len(layer_labels({"num_layers": 28}, longcat)) == 56
    assert len(layer_labels({"num_hidden_layers": 56}, longcat)) == 56
    with pytest.raises(CheckpointError) as caught:
        layer_labels({}, longcat)
    assert caught.value.key == "num_layers"


def test_sizes_that_a_wrappers_text_config_leaves_to_its_class() -> None:
    sizes = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
    family = msgspec.structs.replace(LLAMA, config_paths=(("text_config",), ()), nested_sizes=sizes)
    wrapper = {"model_type": "llava", "text_config": {"model_type": "llama", "max_position_embeddings": 4096}}
    path, text = text_config(wrapper, family)
    assert path == ("text_config",)
    assert (len(layer_labels(text, family)), head_dim_of(text, family)) == (32, 128)
    # Without such sizes, what stands at the top level is read, as before.
    assert text_config(wrapper, msgspec.structs.replace(family, nested_sizes={}))[0] == ()
