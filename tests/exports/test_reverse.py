"""GGUF files read backwards: the config that the class understands as before, and the tensors that it had.

The files are those that llama.cpp's converter made (``golden/README.md``), without their data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings, strategies
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ctxextend.contents import Gguf, GgufValue, TensorInfo
from ctxextend.errors import CheckpointError, CtxextendError, RefusedError
from ctxextend.exports.reverse import FloatType, Restored, decimal, restored_of, suggested_dtype
from ctxextend.exports.rows import ROWS
from ctxextend.families import FAMILIES, find_family
from ctxextend.formats.hf_read import read_rope
from tests.exports.models import POSITION_MODELS
from tests.gguf_factory import value

GOLDEN: Final = Path(__file__).parent / "golden"
NAMES: Final = sorted(path.stem for path in GOLDEN.glob("*.json"))

KNOWN_ERRORS: Final = ("broken-config", "broken-tensor", "missing-tensor", "unexpressible", "unmapped-tensor")

TOKENS: Final = {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 0}

#: Settings that only the restored config has: what other readers than transformers want said.
SAID: Final = frozenset({"moe_layer_freq", "scoring_func", "topk_method", "sliding_window_pattern", "attention_bias"})
#: What a restored config says otherwise, and why.
OTHERWISE: Final[Mapping[str, Mapping[str, Any]]] = {
    # A dense file of the architecture llama computes the same as the class of that name; it has no window.
    "mistral": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "mlp_bias": False,
        "pretraining_tp": 1,
        "sliding_window": None,
    },
    "mixtral": {"head_dim": 16},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    # The converter leaves the layers that predict further tokens out.
    "deepseek_v3": {"num_nextn_predict_layers": 0},
    # The converter loses this base, so that the file has llama.cpp's own.
    "gpt_neox": {
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    },
    # Other readers look for the base there.
    "gpt_neox_sequential": {"rope_theta": 10000.0},
    # MPT's class alone has it off.
    "mpt": {"use_cache": True},
    "mpt_clipped": {"use_cache": True},
    # Of a wrapper that says these for all its parts, only the language model is in the file.
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def gguf_of(name: str, **changes: Any) -> Gguf:
    """A file's keys with other values, by their names under the architecture's; None takes one out."""
    said = golden(name)
    values = {}
    for key, entry in said["keys"].items():
        content = tuple(entry["value"]) if entry["type"] == "ARRAY" else entry["value"]
        values[key] = GgufValue(
            type=entry["type"],
            value=content,
            item=entry.get("item"),
            length=len(content) if entry["type"] == "ARRAY" else None,
        )
    values["general.architecture"] = value(said["architecture"])
    values |= {f"tokenizer.ggml.{key}": value(number) for key, number in TOKENS.items()}
    for short, content in changes.items():
        key = short.replace("__", ".").removeprefix("_")
        key = key if key.startswith("tokenizer.") else f"{said['architecture']}.{key}"
        values.pop(key, None)
        if content is not None:
            values[key] = value(content)
    return Gguf(
        file="tiny.gguf",
        version=3,
        alignment=32,
        values=values,
        spans={},
        info_spans={},
        tensor_spans={},
        infos_start=0,
        data_start=0,
    )


def tensors_of(name: str, dtype: str = "F32") -> list[TensorInfo]:
    return [
        TensorInfo(name=tensor, dtype=dtype, shape=tuple(shape), file="tiny.gguf")
        for tensor, (shape, _hash) in golden(name)["tensors"].items()
    ]


def restored(name: str, **changes: Any) -> Restored:
    return restored_of(gguf_of(name, **changes), tensors_of(name))


def refused(gguf: Gguf, tensors: Sequence[TensorInfo]) -> CtxextendError:
    with pytest.raises((CheckpointError, RefusedError)) as caught:
        restored_of(gguf, tensors)
    return caught.value


def understood(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the class in transformers makes of a config."""
    found: dict[str, Any] = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)).to_dict()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_class_understands_what_it_did_before(name: str) -> None:
    before = golden(name)["config"]
    expected = understood(before.get("text_config", before)) | dict(OTHERWISE.get(name, {}))
    found = understood(restored(name).config)
    differing = {key for key in expected | found if found.get(key) != expected.get(key)}
    assert {key: (found.get(key), expected.get(key)) for key in differing - SAID} == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_are_those_of_the_class(name: str) -> None:
    prefix = "language_model."
    shapes = {key: tuple(shape) for key, shape in golden(name)["shapes"].items()}
    if name == "gemma3":
        shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    targets = restored(name).tensors
    assert {target.name: target.shape for target in targets} == shapes
    assert len({target.name for target in targets}) == len(targets)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in POSITION_MODELS])
def test_our_own_reader_finds_the_same_rope(name: str) -> None:
    before, after = golden(name)["config"], restored(name).config
    expected = read_rope(before, find_family(before))
    found = read_rope(after, find_family(after))
    assert not found.notes
    assert found.max_position_embeddings == expected.max_position_embeddings
    if name in ("gpt_neox", "mistral"):
        # See OTHERWISE.
        return
    assert [(g.label, g.layers, g.spec, g.scaling, g.window) for g in found.groups] == [
        (g.label, g.layers, g.spec, g.scaling, g.window) for g in expected.groups
    ]


def test_both_forms_say_the_same_base() -> None:
    config = restored("qwen3", rope__freq_base=1000000.0).config
    assert config["rope_theta"] == 1000000.0
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 1000000.0}
    assert config["rope_scaling"] is None


def test_every_row_is_read() -> None:
    families = {find_family(golden(name)["config"]).name for name in NAMES}
    assert families == set(ROWS)
    assert set(ROWS) <= set(FAMILIES)


# Types and numbers.


@pytest.mark.parametrize(
    ("matrices", "expected"),
    [
        (("F32",), "F32"),
        (("F16",), "F16"),
        (("BF16",), "BF16"),
        (("Q4_K", "Q6_K"), "BF16"),
        (("Q8_0", "F16"), "BF16"),
        (("F16", "F16", "Q8_0"), "F16"),
    ],
)
def test_the_type_is_that_of_most_matrices(matrices: tuple[str, ...], expected: FloatType) -> None:
    tensors = [TensorInfo(name=f"w{i}", dtype=d, shape=(2, 256), file="") for i, d in enumerate(matrices)]
    tensors.append(TensorInfo(name="norm", dtype="F32", shape=(1 << 20,), file=""))
    assert suggested_dtype(tensors) == expected


@pytest.mark.parametrize(("dtype", "said"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_the_config_says_the_type(dtype: FloatType, said: str) -> None:
    found = restored_of(gguf_of("llama"), tensors_of("llama"), dtype=dtype)
    assert (found.dtype, found.config["torch_dtype"]) == (dtype, said)
    assert understood(found.config)["dtype"] == said


@pytest.mark.parametrize("number", [1e-5, 1e-6, 0.22, 10000.0, 1000000.0, 8.0, 0.0078125, 12.0, 2.5, 58233.13])
def test_a_number_comes_back_as_it_was_written(number: float) -> None:
    assert decimal(value(number).value) == number


def test_a_number_that_is_no_short_decimal_stays() -> None:
    assert decimal(value(1.0 / 3.0).value) == pytest.approx(1.0 / 3.0, rel=1e-7)
    assert value(decimal(value(1.0 / 3.0).value)) == value(1.0 / 3.0)


# Tokens.


def test_generation_ends_at_every_end() -> None:
    assert restored("llama").generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    several = restored("llama", tokenizer__ggml__eot_token_id=5, tokenizer__ggml__eom_token_id=2)
    assert several.generation_config["eos_token_id"] == [2, 5]
    assert several.config["eos_token_id"] == 2


def test_a_token_outside_of_the_vocabulary_is_none() -> None:
    found = restored("llama", tokenizer__ggml__padding_token_id=2**32 - 1, tokenizer__ggml__bos_token_id=None)
    assert (found.config["pad_token_id"], found.config["bos_token_id"]) == (None, None)
    assert found.generation_config == {"eos_token_id": 2}


# Files of other times and other hands.


def test_what_old_files_leave_out_is_what_llama_cpp_takes() -> None:
    keys = ("attention__key_length", "attention__value_length", "vocab_size", "rope__dimension_count")
    assert restored("llama", **dict.fromkeys(keys)).config == restored("llama").config
    assert restored("qwen2_moe", expert_feed_forward_length=None).config["moe_intermediate_size"] == 24
    shared = restored("qwen2_moe", expert_shared_feed_forward_length=None).config
    assert shared["shared_expert_intermediate_size"] == 40
    groups = ("expert_group_count", "expert_group_used_count", "expert_gating_func")
    deepseek = restored("deepseek_v3", **dict.fromkeys(groups)).config
    assert (deepseek["n_group"], deepseek["topk_group"], deepseek["scoring_func"]) == (1, 1, "sigmoid")
    heads = restored("gpt_neox", attention__head_count_kv=None)
    assert heads.config["num_attention_heads"] == 4


def test_latent_attention_of_older_files_is_in_one_tensor() -> None:
    """llama.cpp loads ``attn_kv_b`` where the keys of the newer form are missing (b11434, ``deepseek2.cpp``)."""
    lengths = {"attention__key_length": 24, "attention__value_length": 20, "attention__head_count_kv": 4}
    missing = dict.fromkeys(("attention__key_length_mla", "attention__value_length_mla"))
    tensors = [t for t in tensors_of("deepseek_v2") if not t.name.endswith(("attn_k_b.weight", "attn_v_b.weight"))]
    tensors += [
        TensorInfo(name=f"blk.{i}.attn_kv_b.weight", dtype="F32", shape=(4 * 36, 24), file="tiny.gguf") for i in (0, 1)
    ]
    found = restored_of(gguf_of("deepseek_v2", **lengths, **missing), tensors)
    assert found.config == restored("deepseek_v2").config
    (part,) = next(t for t in found.tensors if t.name == "model.layers.1.self_attn.kv_b_proj.weight").parts
    assert (part.tensor, part.index, part.operations) == ("blk.1.attn_kv_b.weight", None, ())


def test_frequency_tensors_are_the_rope_reader_s_business() -> None:
    factors = [
        TensorInfo(name=f"{name}.weight", dtype="F32", shape=(8,), file="tiny.gguf")
        for name in ("rope_freqs", "rope_factors_long", "rope_factors_short")
    ]
    found = restored_of(gguf_of("llama"), [*tensors_of("llama"), *factors])
    assert found.tensors == restored("llama").tensors


def test_a_tied_head_is_not_written() -> None:
    without = [tensor for tensor in tensors_of("llama") if tensor.name != "output.weight"]
    found = restored_of(gguf_of("llama"), without)
    assert found.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in {target.name for target in found.tensors}
    assert restored("llama").config["tie_word_embeddings"] is False


def test_a_bias_of_routing_stays_exact() -> None:
    exact = {target.name for target in restored("deepseek_v3").tensors if target.exact}
    assert exact == {"model.layers.1.mlp.gate.e_score_correction_bias"}


def test_layers_of_one_size_may_be_listed() -> None:
    assert restored("llama", attention__head_count_kv=(2, 2)).config == restored("llama").config
    error = refused(gguf_of("llama", attention__head_count_kv=(2, 1)), tensors_of("llama"))
    assert (error.code, error.key, error.exit_code) == ("unexpressible", "llama.attention.head_count_kv", 3)


def test_keys_that_no_setting_stands_for_are_told() -> None:
    assert not restored("llama").notes
    (note,) = restored("llama", attention__max_alibi_bias=8.0).notes
    assert note.code == "unread-keys"
    assert "attention.max_alibi_bias" in note.message


def test_the_tensors_tell_what_a_switch_says_wrongly() -> None:
    """Old files of StableLM say that it is parallel where their second norms say that it isn't."""
    assert restored("stablelm", use_parallel_residual=True).config == restored("stablelm").config
    assert restored("stablelm").config["use_parallel_residual"] is False
    assert restored("stablelm_parallel", use_parallel_residual=False).config["use_parallel_residual"] is True
    assert restored("gpt_neox_sequential").config["use_parallel_residual"] is False


# What can't be read.


def test_an_architecture_without_a_row_is_refused() -> None:
    gguf = gguf_of("llama")
    values = {**gguf.values, "general.architecture": value("command-r")}
    error = refused(Gguf(**{**{f: getattr(gguf, f) for f in gguf.__struct_fields__}, "values": values}), [])
    assert (error.code, error.found, error.exit_code) == ("unknown-export", "command-r", 3)


def test_a_tensor_without_a_place_is_refused() -> None:
    extra = TensorInfo(name="blk.0.attn_sinks.weight", dtype="F32", shape=(4,), file="tiny.gguf")
    error = refused(gguf_of("llama"), [*tensors_of("llama"), extra])
    assert (error.code, error.key) == ("unmapped-tensor", "blk.0.attn_sinks.weight")


@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "output_norm.weight", "token_embd.weight"])
def test_a_missing_tensor_is_told(name: str) -> None:
    error = refused(gguf_of("llama"), [tensor for tensor in tensors_of("llama") if tensor.name != name])
    assert (error.code, error.key) == ("missing-tensor", name)


def test_half_of_the_biases_are_refused() -> None:
    tensors = [tensor for tensor in tensors_of("llama_biased") if not tensor.name.endswith("attn_output.bias")]
    error = refused(gguf_of("llama_biased"), tensors)
    assert error.code == "unmapped-tensor"
    assert "attention_bias" in error.message


def test_a_tensor_of_another_size_is_told() -> None:
    error = refused(gguf_of("llama", feed_forward_length=64), tensors_of("llama"))
    assert (error.code, error.key) == ("broken-tensor", "blk.0.ffn_gate.weight")
    assert (error.expected, error.found) == ("[64, 64]", "[48, 64]")


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("llama", {"embedding_length": None}, "llama.embedding_length"),
        ("llama", {"embedding_length": "wide"}, "llama.embedding_length"),
        ("llama", {"attention__layer_norm_rms_epsilon": None}, "llama.attention.layer_norm_rms_epsilon"),
        ("llama", {"context_length": 0}, "llama.context_length"),
        ("llama", {"attention__value_length": 8}, "llama.attention.value_length"),
        ("stablelm", {"use_parallel_residual": 1}, "stablelm.use_parallel_residual"),
        ("deepseek_v2", {"attention__key_length_mla": 8}, "deepseek2.attention.key_length_mla"),
        ("deepseek_v2", {"expert_gating_func": 9}, "deepseek2.expert_gating_func"),
    ],
)
def test_a_value_that_cannot_be_is_told(name: str, changes: dict[str, Any], key: str) -> None:
    error = refused(gguf_of(name, **changes), tensors_of(name))
    assert (error.code, error.key, error.exit_code) == ("broken-config", key, 1)


def test_what_the_class_has_built_in_otherwise_is_refused() -> None:
    error = refused(gguf_of("deepseek_v2", expert_gating_func=2), tensors_of("deepseek_v2"))
    assert (error.code, error.key) == ("unexpressible", "deepseek2.expert_gating_func")
    error = refused(gguf_of("qwen3", rope__dimension_count=16), tensors_of("qwen3"))
    assert (error.code, error.key, error.found) == ("unexpressible", "qwen3.rope.dimension_count", "16 of 32")


STRANGE: Final = (
    *(0, 1, 3, -1, 2**31, 2**32 - 1, 0.0, -1.5, 1e38, float("inf"), float("nan"), "x", True, (1, 2), (0, 0), ("a",)),
    GgufValue(type="ARRAY", item="STRING", length=9999, value=None),
    GgufValue(type="ARRAY", item="UINT32", length=0, value=()),
    GgufValue(type="STRING", value=None),
    None,
)


@given(data=strategies.data())
@settings(max_examples=300, deadline=None)
def test_any_value_gives_a_checkpoint_or_a_clear_error(data: strategies.DataObject) -> None:
    name = data.draw(strategies.sampled_from(NAMES))
    keys = sorted(key.split(".", 1)[1].replace(".", "__") for key in golden(name)["keys"])
    changes = data.draw(strategies.dictionaries(strategies.sampled_from(keys), strategies.sampled_from(STRANGE)))
    tensors = tensors_of(name)
    at = data.draw(strategies.integers(0, len(tensors) - 1))
    shape = tensors[at].shape
    shapes = [shape, shape, (), (0,), (*shape, 1), shape[:1], (2**40, 2)]
    tensors[at] = msgspec.structs.replace(tensors[at], shape=data.draw(strategies.sampled_from(shapes)))
    refusal, said = None, ""
    try:
        found = restored_of(gguf_of(name, **changes), tensors)
        said = json.dumps([found.config, found.generation_config], allow_nan=False)
    except CtxextendError as error:
        refusal = error.code
    assert said or refusal in KNOWN_ERRORS


@pytest.mark.parametrize("key", ["expert_count", "attention__head_count", "block_count"])
def test_absurd_counts_cost_nothing(key: str) -> None:
    error = refused(gguf_of("mixtral", **{key: 2**32 - 1}), tensors_of("mixtral"))
    assert error.exit_code == 1
