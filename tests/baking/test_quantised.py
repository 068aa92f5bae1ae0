"""Scales of quantised weights: what comes out of them is multiplied in the rows that are meant, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ctxextend.baking.quantised import through_scales
from ctxextend.changes import ScaleTensor, Slice
from ctxextend.contents import TensorInfo
from ctxextend.errors import RefusedError
from tests.baking.quantised_formats import (
    ATTENTION,
    AWQ,
    BY_ROWS,
    CASES,
    CHANNEL,
    COLUMNS,
    FACTOR,
    FILE,
    GROUPS,
    HEAD,
    MODULE,
    ROWS,
    WEIGHT,
    WHOLE,
    Array,
    Stored,
    applied,
    awq_gemm,
    change,
    compressed,
    fp8,
    gptq,
    nvfp4,
    pack_quantized,
)

EACH = pytest.mark.parametrize("case", CASES)


def after(stored: Stored, scalings: tuple[ScaleTensor, ...]) -> Array:
    """The matrix that the changed tensors mean. Only numbers with a point were changed."""
    values = stored.values()
    for scaling in scalings:
        leaf = scaling.name.removeprefix(f"{MODULE}.")
        assert scaling.file == FILE
        assert values[leaf].dtype.kind == "f"
        values[leaf] = applied(values[leaf], scaling)
    return stored.dequantise(values)


def assert_rows(stored: Stored, case: str, *, factor: float = FACTOR, precision: float = 1e-6) -> None:
    was = stored.dequantise(stored.values())
    now = after(stored, through_scales(change(case, factor=factor), stored.infos, stored.config))
    rows = np.isin(np.arange(len(was)), CASES[case][1])
    np.testing.assert_allclose(now[rows], factor * was[rows], rtol=precision)
    np.testing.assert_array_equal(now[~rows], was[~rows])
    assert np.any(was[rows] != 0)


@EACH
@pytest.mark.parametrize("name", BY_ROWS)
def test_rows_with_scales_of_their_own(name: str, case: str) -> None:
    assert_rows(BY_ROWS[name](), case)


@pytest.mark.parametrize("name", WHOLE)
def test_one_scale_takes_all_rows(name: str) -> None:
    assert_rows(WHOLE[name](), "full")
    assert_rows(WHOLE[name](), "spelled-out")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("case", ["partial-rotary", "fused-queries"])
def test_one_scale_refuses_some_rows(name: str, case: str) -> None:
    stored = WHOLE[name]()
    error = refused(stored.infos, stored.config, case)
    assert error.key is not None
    assert error.key.startswith(f"{MODULE}.weight_")
    assert error.file == FILE


@pytest.mark.parametrize("stored", [gptq(4, "gptq", desc_act=False, dtype="F16"), awq_gemm(AWQ, "F16")])
def test_half_precision_rounds_once_and_powers_of_two_not_at_all(stored: Stored) -> None:
    assert_rows(stored, "partial-rotary", precision=2**-11)
    assert_rows(stored, "partial-rotary", factor=2.0, precision=0)


def test_auto_round_packs_as_gptq_unless_it_says_otherwise() -> None:
    stored = gptq(4, "gptq", desc_act=False)
    said = {"quant_method": "auto-round", "bits": 4, "format": "int"}
    assert_rows(Stored(said, stored.tensors, stored.dequantise), "partial-rotary")
    unknown = {**said, "packing_format": "auto_round:fp8"}
    assert "auto_round:fp8" in refused(stored.infos, {"quantization_config": unknown}).message


def test_mlx_reads_what_was_meant() -> None:
    mx = pytest.importorskip("mlx.core")
    weight = mx.array(np.random.default_rng(0).normal(size=(ROWS, 64)).astype(np.float32))
    codes, scale, bias = (np.array(part) for part in mx.quantize(weight, group_size=32, bits=4))

    def dequantise(values: Mapping[str, Array]) -> Array:
        parts = (mx.array(values[leaf]) for leaf in ("weight", "scales", "biases"))
        return np.array(mx.dequantize(*parts, group_size=32, bits=4))

    stored = Stored(
        {"bits": 4, "group_size": 32},
        {"weight": ("U32", codes), "scales": ("F32", scale), "biases": ("F32", bias)},
        dequantise,
    )
    # Numbers near the bias cancel: the error is one of the whole scale, not of the number.
    was = stored.dequantise(stored.values())
    now = after(stored, through_scales(change("partial-rotary"), stored.infos, stored.config))
    rows = np.isin(np.arange(ROWS), CASES["partial-rotary"][1])
    np.testing.assert_allclose(now[rows], FACTOR * was[rows], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(now[~rows], was[~rows])


# Blocks.

DEEPSEEK = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 16]}


@pytest.mark.parametrize("case", ["full", "spelled-out", "fused-queries"])
@pytest.mark.parametrize("scale", ["weight_scale_inv", "scale", "qscale_weight"])
def test_blocks_that_end_where_the_rows_do(case: str, scale: str) -> None:
    assert_rows(fp8(DEEPSEEK, scale, (4, 2), block=16), case)


@pytest.mark.parametrize("structure", [[16, 16], "16x16"])
def test_blocks_of_compressed_tensors(structure: object) -> None:
    said = compressed("float-quantized", {"num_bits": 8, "strategy": "block", "block_structure": structure})
    assert_rows(fp8(said, "weight_scale", (4, 2), block=16), "fused-queries")


def test_a_torn_block_is_named() -> None:
    stored = fp8(DEEPSEEK, "weight_scale_inv", (4, 2), block=16)
    error = refused(stored.infos, stored.config, "partial-rotary")
    assert error.key == f"{MODULE}.weight_scale_inv"
    assert error.found == "F32 [4, 2]"
    assert error.expected == "scales that part at row 4 of 64, not every 16 rows"


def large(rows: int, columns: int, blocks: tuple[int, int], dtype: str = "F32") -> dict[str, TensorInfo]:
    shapes = {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": (dtype, blocks)}
    return {
        f"{MODULE}.{leaf}": TensorInfo(name=f"{MODULE}.{leaf}", dtype=kind, shape=shape, file=FILE)
        for leaf, (kind, shape) in shapes.items()
    }


def test_deepseeks_rope_rows_have_a_block_of_their_own() -> None:
    """kv_a_proj_with_mqa: 512 latent rows, and 64 of rope in the fifth block of 128, half of which isn't there."""
    rope = ScaleTensor(
        file=FILE, name=WEIGHT, factor=FACTOR, slices=(Slice(lower=512, upper=576, period=64, start=0, stop=64),)
    )
    config = {"quantization_config": {**DEEPSEEK, "weight_block_size": [128, 128]}}
    (found,) = through_scales(rope, large(576, 7168, (5, 56)), config)
    assert found == ScaleTensor(
        file=FILE,
        name=f"{MODULE}.weight_scale_inv",
        factor=FACTOR,
        slices=(Slice(lower=4, upper=5, period=1, start=0, stop=1),),
    )


def test_deepseeks_query_heads_of_192_rows_share_blocks() -> None:
    rope = (Slice(lower=0, upper=768, period=192, start=128, stop=192),)
    config = {"quantization_config": {**DEEPSEEK, "weight_block_size": [128, 128]}}
    with pytest.raises(RefusedError, match="multiplied and rows that are not"):
        through_scales(
            ScaleTensor(file=FILE, name=WEIGHT, factor=FACTOR, slices=rope), large(768, 1536, (6, 12)), config
        )


@pytest.mark.parametrize(
    ("block", "blocks"),
    [(None, (5, 56)), ([128, 128], (4, 56)), ([128, 128], (5, 57)), ([64, 64], (5, 56)), ([128, 128], (1, 576))],
)
def test_blocks_that_cover_unknown_rows_are_refused(block: object, blocks: tuple[int, int]) -> None:
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    assert "isn't known" in refused(large(576, 7168, blocks), config).message


# Dtypes of scales.


def test_scales_that_are_powers_of_two_take_only_those() -> None:
    infos = large(64, 32, (4, 2), "F8_E8M0")
    (found,) = through_scales(change("fused-queries", factor=0.5), infos, {"quantization_config": DEEPSEEK})
    assert found.factor == 0.5
    assert found.slices == (Slice(lower=0, upper=2, period=2, start=0, stop=2),)
    assert "powers of two" in refused(infos, {"quantization_config": DEEPSEEK}).message


def test_scales_that_are_loaded_as_powers_of_two_take_only_those() -> None:
    config = {"quantization_config": {**DEEPSEEK, "scale_fmt": "ue8m0"}}
    assert through_scales(change(factor=2.0), large(64, 32, (4, 2)), config)
    assert "powers of two" in refused(large(64, 32, (4, 2)), config).message


@pytest.mark.parametrize("dtype", ["U8", "F8_E4M3"])
def test_scales_of_eight_bits_are_refused(dtype: str) -> None:
    error = refused(large(64, 32, (4, 2), dtype), {"quantization_config": DEEPSEEK}, factor=2.0)
    assert "too few bits" in error.message
    assert error.found == f"{dtype} [4, 2]"


# NVFP4 in joined projections.


@pytest.mark.parametrize("modelopt", [True, False])
def test_a_global_scale_that_runtimes_join_is_refused(modelopt: bool) -> None:
    stored = nvfp4(modelopt=modelopt)
    leaf = "weight_scale_2" if modelopt else "weight_global_scale"
    key = TensorInfo(name=f"{ATTENTION}.k_proj.{leaf}", dtype="F32", shape=(), file=FILE)
    error = refused({**stored.infos, key.name: key}, stored.config)
    assert f"{ATTENTION}.k_proj" in error.message
    assert error.key == f"{MODULE}.{leaf}"


def test_int4_with_a_second_scale_is_no_nvfp4() -> None:
    stored = nvfp4(modelopt=True)
    infos = stored.infos
    infos[f"{MODULE}.weight_scale"] = TensorInfo(
        name=f"{MODULE}.weight_scale", dtype="F32", shape=(ROWS, GROUPS), file=FILE
    )
    assert "isn't stored as" in refused(infos, stored.config).message


# What was left as it is.


def info(name: str, dtype: str = "BF16", shape: tuple[int, ...] = (ROWS, COLUMNS)) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape, file=FILE)


@pytest.mark.parametrize(
    "quantisation", [{"quant_method": "gptq"}, {"quant_method": "mxfp4"}, {"quant_method": "bitsandbytes"}, None]
)
def test_a_weight_that_was_left_alone_is_changed_itself(quantisation: object) -> None:
    config = {} if quantisation is None else {"quantization_config": quantisation}
    wanted = change("partial-rotary")
    assert through_scales(wanted, {WEIGHT: info(WEIGHT)}, config) == (wanted,)


def test_norms_and_biases_beside_a_quantised_matrix() -> None:
    stored = gptq(4, "gptq", desc_act=False)
    norm, bias = f"{ATTENTION}.q_norm.weight", f"{MODULE}.bias"
    infos = {**stored.infos, norm: info(norm, "F16", (HEAD,)), bias: info(bias, "F16", (ROWS,))}
    of_norm = ScaleTensor(file=FILE, name=norm, factor=FACTOR, added_one=True)
    assert through_scales(of_norm, infos, stored.config) == (of_norm,)
    of_bias = change("partial-rotary", name=bias)
    assert through_scales(of_bias, infos, stored.config) == (of_bias,)


def test_the_scales_of_another_file() -> None:
    stored = fp8({"quant_method": "fp8"}, "weight_scale", ())
    infos = stored.infos
    infos[f"{MODULE}.weight_scale"] = TensorInfo(
        name=f"{MODULE}.weight_scale", dtype="F32", shape=(), file="model-00002-of-00002.safetensors"
    )
    (found,) = through_scales(change(), infos, stored.config)
    assert found.file == "model-00002-of-00002.safetensors"


def test_a_config_inside_a_wrapper() -> None:
    stored = gptq(4, "gptq", desc_act=False)
    (found,) = through_scales(change(), stored.infos, {"text_config": stored.config})
    assert found.axis == 1


def test_an_older_key_for_compressed_tensors() -> None:
    stored = pack_quantized(4, (ROWS, 1))
    said = {key: value for key, value in stored.quantisation.items() if key != "quant_method"}
    assert through_scales(change(), stored.infos, {"compression_config": said})


# Refusals.


def refused(
    infos: Mapping[str, TensorInfo], config: Mapping[str, Any], case: str = "full", *, factor: float = FACTOR
) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        through_scales(change(case, factor=factor), infos, config)
    error = caught.value
    assert error.code == "not-bakeable"
    assert error.exit_code == 3
    assert error.key
    assert error.file == FILE
    assert error.expected
    assert error.found
    assert error.hint is not None
    assert "--bake buffers" in error.hint
    assert "unquantised" in error.hint
    return error


@pytest.mark.parametrize(
    ("method", "tensors", "why"),
    [
        ("aqlm", {"codes": "I8", "codebooks": "F16", "scales": "F16"}, "codebooks"),
        ("hqq", {"weight": "U8", "scale": "F16"}, "reshaped"),
        ("eetq", {"weight": "I8", "weight_scales": "F16"}, "order of a kernel"),
        ("bitnet", {"weight": "U8", "weight_scale": "BF16"}, "whole matrix"),
        ("torchao", {"weight": "I8", "scale": "F32"}, "tensor subclasses"),
        ("spqr", {"weight": "I32"}, "packed integers"),
        ("a-new-one", {"qweight": "I32", "scales": "F16"}, "isn't known"),
        ("", {"weight": "F8_E4M3", "weight_scale": "F32"}, "doesn't say"),
        ("bitsandbytes", {"weight": "U8", "weight.absmax": "U8"}, "4 bits"),
        ("gptq", {"qweight": "I32"}, "missing"),
        ("fp8", {"weight": "F8_E4M3"}, "no scale"),
        ("fp8", {"weight": "F8_E4M3", "weight_scale": "F32", "weight_scale_inv": "F32"}, "several scales"),
        ("fp8", {"weight": "BF16", "weight_scale": "F32"}, "isn't stored as"),
        ("compressed-tensors", {"weight_packed": "I32", "scale_packed": "F16"}, "missing"),
        ("compressed-tensors", {"weight": "BF16", "weight_scale": "BF16"}, "isn't stored as"),
        ("gptq", {}, "nothing that a known quantiser stores"),
    ],
)
def test_what_is_refused_says_why(method: str, tensors: Mapping[str, str], why: str) -> None:
    infos = {f"{MODULE}.{leaf}": info(f"{MODULE}.{leaf}", dtype) for leaf, dtype in tensors.items()}
    error = refused(infos, {"quantization_config": {"quant_method": method}} if method else {})
    assert why in error.message


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"quant_method": "awq", "version": "marlin"}, "marlin"),
        ({"quant_method": "awq", "version": "gemv_fast"}, "gemv_fast"),
        ({"quant_method": "awq", "backend": "llm-awq", "version": "gemm"}, "llm-awq"),
        ({"quant_method": "awq", "version": "gemv"}, "one a row"),
        ({"quant_method": "awq", "version": "gemm", "bits": 8}, "one a column"),
        ({"quant_method": "gptq"}, "one a column"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "order of a kernel"),
        ({"quant_method": "gptq", "is_marlin_format": True}, "order of a kernel"),
    ],
)
def test_other_packings_are_refused(said: Mapping[str, Any], why: str) -> None:
    stored = awq_gemm(AWQ)
    assert why in refused(stored.infos, {"quantization_config": said}).message


def test_a_vector_is_no_channel_scale_in_compressed_tensors() -> None:
    """Its dequantiser spreads a vector over the columns."""
    stored = fp8(compressed("float-quantized", CHANNEL), "weight_scale", (ROWS,))
    assert "isn't known" in refused(stored.infos, stored.config).message


def test_transformed_rows_are_multiplied_together_or_not_at_all() -> None:
    stored = pack_quantized(4, (ROWS, 1))
    config = {"quantization_config": {**stored.quantisation, "transform_config": {"config_groups": {"R1": {}}}}}
    assert through_scales(change(), stored.infos, config)
    assert "transform" in refused(stored.infos, config, "partial-rotary").message


@pytest.mark.parametrize("wrong", [{"axis": 1}, {"added_one": True}])
def test_only_rows_of_a_quantised_matrix(wrong: Mapping[str, Any]) -> None:
    stored = gptq(4, "gptq", desc_act=False)
    with pytest.raises(RefusedError, match="only rows"):
        through_scales(ScaleTensor(file=FILE, name=WEIGHT, factor=FACTOR, **wrong), stored.infos, stored.config)


def test_rows_past_the_last_one() -> None:
    stored = gptq(4, "gptq", desc_act=False)
    past = ScaleTensor(
        file=FILE, name=WEIGHT, factor=FACTOR, slices=(Slice(lower=0, upper=80, period=16, start=0, stop=4),)
    )
    with pytest.raises(RefusedError, match="64 rows, and rows up to 68"):
        through_scales(past, stored.infos, stored.config)


# Queries that are quantised as the model runs, with a scale from the file.


@pytest.mark.parametrize(
    "name", [f"{ATTENTION}.q_scale", f"{ATTENTION}.attn.q_scale", f"{MODULE}.q_scale", f"{MODULE}.output_scale"]
)
def test_a_static_scale_of_queries_follows(name: str) -> None:
    stored = fp8({"quant_method": "fp8"}, "weight_scale", (ROWS, 1))
    scale = info(name, "F32", ())
    key = info(f"{ATTENTION}.k_scale", "F32", ())
    infos = {**stored.infos, name: scale, key.name: key}
    first, second = through_scales(change(), infos, stored.config)
    assert first.name == f"{MODULE}.weight_scale"
    assert second == ScaleTensor(file=FILE, name=name, factor=FACTOR)
    error = refused(infos, stored.config, "partial-rotary")
    assert error.key == name


def test_a_static_scale_of_queries_follows_a_norm() -> None:
    norm, scale = f"{ATTENTION}.q_norm.weight", f"{ATTENTION}.q_scale"
    infos = {norm: info(norm, shape=(HEAD,)), scale: info(scale, "F32", (1,))}
    wanted = ScaleTensor(file=FILE, name=norm, factor=FACTOR)
    assert through_scales(wanted, infos, {}) == (wanted, ScaleTensor(file=FILE, name=scale, factor=FACTOR))


def test_a_scale_between_projection_and_norm_is_read_in_two_ways() -> None:
    norm, scale = f"{ATTENTION}.q_norm.weight", f"{MODULE}.output_scale"
    infos = {norm: info(norm, shape=(HEAD,)), scale: info(scale, "F32", (1,))}
    with pytest.raises(RefusedError, match="others behind it") as caught:
        through_scales(ScaleTensor(file=FILE, name=norm, factor=FACTOR), infos, {})
    assert caught.value.key == scale


@pytest.mark.parametrize("name", ["k_scale", "kv_scale"])
def test_rope_rows_of_keys_share_the_caches_scale(name: str) -> None:
    latent = f"{ATTENTION}.kv_a_proj_with_mqa.weight"
    infos = {latent: info(latent, shape=(576, 32)), f"{ATTENTION}.{name}": info(f"{ATTENTION}.{name}", "F32", ())}
    rope = (Slice(lower=512, upper=576, period=64, start=0, stop=64),)
    with pytest.raises(RefusedError, match="static scale") as caught:
        through_scales(ScaleTensor(file=FILE, name=latent, factor=FACTOR, slices=rope), infos, {})
    assert caught.value.key == f"{ATTENTION}.{name}"


def test_a_scale_that_keys_share_with_values_stays_theirs() -> None:
    name, shared = f"{ATTENTION}.k_proj.weight", f"{ATTENTION}.kv_scale"
    infos = {name: info(name), shared: info(shared, "F32", ())}
    with pytest.raises(RefusedError, match="static scale") as caught:
        through_scales(change(name=name), infos, {})
    assert caught.value.key == shared


def test_scales_of_the_cache_stay_where_only_queries_change() -> None:
    fused = f"{ATTENTION}.qkv_proj.weight"
    infos = {fused: info(fused)}
    infos |= {f"{ATTENTION}.{leaf}": info(f"{ATTENTION}.{leaf}", "F32", ()) for leaf in ("k_scale", "v_scale")}
    infos |= {f"{MODULE}.input_scale": info(f"{MODULE}.input_scale", "F32", ())}
    wanted = change("fused-queries", name=fused)
    assert through_scales(wanted, infos, {}) == (wanted,)
