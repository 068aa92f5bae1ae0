"""llama.cpp, run on tiny models: its logits are those of a forward pass with the table that our reader predicts.

Positions reach past the original length. A forward pass with another table (the one that a dead key asks
for, or the plain one) gives clearly different logits, so that agreement says something.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxextend.checkpoint.gguf_file import read_gguf
from ctxextend.contents import Gguf, GgufValue
from ctxextend.errors import RefusedError
from ctxextend.formats.gguf_architectures import ARCHITECTURES
from ctxextend.formats.gguf_keys import Keys, geometry, read_rope
from ctxextend.formats.gguf_write import applied, encodings
from ctxextend.gguf_encoding import choose_gguf
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.runtimes.llama_cpp import LlamaCpp
from ctxextend.scaling import Linear, Llama3, LongRope, Rebase, Scaling, Yarn, mscale, table
from tests.gguf_factory import write_model
from tests.reference.libllama import (
    LATENT,
    LoadError,
    Rope,
    forward,
    latent_weights,
    logits,
    settings_of,
    weights_of,
)

pytest.importorskip("xllamacpp")

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / "assets" / "smollm2-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"

CONTEXT, ORIGINAL, TOKENS = 1024, 256, 600
#: Logits have a standard deviation of 3; two float32 programs differ by some 0.0005.
SAME, OTHER = 0.01, 0.3

SPEC = RopeSpec(rope_theta=10000.0, head_dim=32, rotary_dim=32)
PAIRS = SPEC.rotary_dim // 2
LISTED = tuple(1.0 + i / 2.0 for i in range(PAIRS))
YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
WITH_ORIGINAL = {**YARN, "rope__scaling__original_context_length": ORIGINAL}
WINDOW = {"attention__sliding_window": 4096, "attention__sliding_window_pattern": 2}
FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


def meant(scaling: Scaling | None, attention: float | None = None) -> RopeTable:
    found = table(SPEC, scaling)
    return found if attention is None else RopeTable(inv_freq=found.inv_freq, attention_factor=attention)


def yarn(**changes: Any) -> Yarn:
    return Yarn(**{"factor": 4.0, "original_max_position_embeddings": ORIGINAL, **changes})


def carrier(scaling: Scaling) -> dict[str, tuple[float, ...]]:
    return {FREQS: table(SPEC, scaling).stretch(SPEC.inv_freq())}


LLAMA3 = Llama3(factor=4.0, original_max_position_embeddings=ORIGINAL)
A0 = mscale(4.0)
PLAIN = meant(None)

#: What is in the file (keys, tensors), and the table that it ought to give: of HF's scaling of that name.
RIGHT: dict[str, tuple[dict[str, Any], dict[str, tuple[float, ...]], RopeTable]] = {
    "none": ({}, {}, PLAIN),
    "a base": ({"rope__freq_base": 80000.0}, {}, meant(Rebase(rope_theta=80000.0))),
    "yarn": (WITH_ORIGINAL, {}, meant(yarn())),
    "yarn and a factor": (
        {**WITH_ORIGINAL, "rope__scaling__attn_factor": 1.3 / A0},
        {},
        meant(yarn(attention_factor=1.3)),
    ),
    "another original length is other betas": (
        {**YARN, "rope__scaling__original_context_length": 2 * ORIGINAL},
        {},
        meant(yarn(beta_fast=16.0, beta_slow=0.5)),
    ),
    "linear with an attention factor": (
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0, "rope__scaling__attn_factor": 1.2},
        {},
        RopeTable(inv_freq=tuple(f / 4.0 for f in PLAIN.inv_freq), attention_factor=1.2),
    ),
}
#: The same for architectures that load frequency tensors.
CARRIED: dict[str, tuple[dict[str, Any], dict[str, tuple[float, ...]], RopeTable]] = {
    "llama3": ({}, carrier(LLAMA3), meant(LLAMA3)),
    "yarn without rounding": (
        {"rope__scaling__attn_factor": A0, "rope__scaling__type": "none"},
        carrier(yarn(truncate=False)),
        meant(yarn(truncate=False)),
    ),
    "longrope": (
        {
            "rope__scaling__type": "longrope",
            "rope__scaling__original_context_length": ORIGINAL,
            "rope__scaling__attn_factor": 1.1,
        },
        {LONG: LISTED, SHORT: (1.0,) * PAIRS},
        RopeTable(
            inv_freq=tuple(f / d for f, d in zip(PLAIN.inv_freq, LISTED, strict=True)),
            attention_factor=1.1,
        ),
    ),
    "longrope within the original length": (
        {"rope__scaling__type": "longrope", "rope__scaling__original_context_length": CONTEXT},
        {LONG: LISTED, SHORT: (1.25,) * PAIRS},
        RopeTable(inv_freq=tuple(f / 1.25 for f in PLAIN.inv_freq)),
    ),
}
#: What is in the file, and the table that its writer meant, which llama.cpp doesn't use.
MISREAD: dict[str, tuple[dict[str, Any], dict[str, tuple[float, ...]], RopeTable]] = {
    "yarn without its original length": (YARN, {}, meant(yarn())),
    "a dead attention factor": (
        {**WITH_ORIGINAL, "rope__scaling__yarn_attn_factor": 1.0},
        {},
        meant(yarn(attention_factor=1.0)),
    ),
    "a dead beta": ({**WITH_ORIGINAL, "rope__scaling__yarn_beta_fast": 8.0}, {}, meant(yarn(beta_fast=8.0))),
    "a factor of the type none": (
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
        {},
        RopeTable(inv_freq=tuple(f / 4.0 for f in PLAIN.inv_freq)),
    ),
    "longrope without lists": (
        {"rope__scaling__type": "longrope", "rope__scaling__original_context_length": ORIGINAL},
        {},
        RopeTable(inv_freq=tuple(f / d for f, d in zip(PLAIN.inv_freq, LISTED, strict=True))),
    ),
}
MISREAD_CARRIED: dict[str, tuple[dict[str, Any], dict[str, tuple[float, ...]], RopeTable]] = {
    "a tensor and a factor": ({**WITH_ORIGINAL}, carrier(yarn()), meant(yarn())),
    "longrope and a factor": (
        {
            "rope__scaling__type": "longrope",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": ORIGINAL,
        },
        {LONG: LISTED, SHORT: LISTED},
        RopeTable(inv_freq=tuple(f / d for f, d in zip(PLAIN.inv_freq, LISTED, strict=True))),
    ),
}


def tokens() -> Any:
    return np.random.default_rng(1).integers(0, 64, TOKENS)


def write(
    folder: Path, architecture: str, keys: Mapping[str, Any], tensors: Mapping[str, tuple[float, ...]]
) -> tuple[Path, dict[str, Any]]:
    latent = architecture == "deepseek2"
    weights = latent_weights() if latent else weights_of(architecture)
    keys = {**LATENT, **keys} if latent else keys
    extra = {name: np.asarray(numbers, np.float32) for name, numbers in tensors.items()}
    return write_model(folder / "tiny.gguf", settings_of(architecture, **keys), {**weights, **extra}), weights


def labels(gguf: Gguf) -> list[str]:
    row = ARCHITECTURES[gguf.architecture or ""]
    groups = geometry(Keys(gguf.values, row.name), row)
    return [label for _layer, label in sorted((layer, group.label) for group in groups for layer in group.layers)]


def computed(architecture: str, weights: Mapping[str, Any], ropes: list[RopeTable]) -> Any:
    layers: list[Rope] = [(rope.inv_freq, rope.attention_factor, rope.softmax_factor) for rope in ropes]
    return forward(architecture, weights, tokens(), layers, pairing=ARCHITECTURES[architecture].pairing)


def difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def check(
    folder: Path, architecture: str, keys: Mapping[str, Any], tensors: Mapping[str, tuple[float, ...]]
) -> tuple[Any, dict[str, Any], list[RopeTable]]:
    """Its logits are those of the predicted table. They are given back with the weights and the table by layer."""
    path, weights = write(folder, architecture, keys, tensors)
    gguf = read_gguf(path).gguf
    assert gguf is not None
    reading = LlamaCpp().effective(gguf, length=CONTEXT)
    assert reading.problem is None, reading.problem
    assert reading.max_context == CONTEXT
    predicted = [reading.tables[label] for label in labels(gguf)]
    found = logits(path, tokens(), context=CONTEXT)
    assert difference(found, computed(architecture, weights, predicted)) < SAME
    return found, weights, predicted


def same_table(a: RopeTable, b: RopeTable) -> bool:
    return a.error_against(b) < 1e-6 and math.isclose(a.attention_factor, b.attention_factor, rel_tol=1e-6)


@pytest.mark.parametrize("form", [*RIGHT, *CARRIED])
@pytest.mark.parametrize("architecture", ["llama", "mistral3", "qwen2", "qwen3"])
def test_it_reads_what_was_meant(tmp_path: Path, architecture: str, form: str) -> None:
    keys, tensors, goal = (RIGHT | CARRIED)[form]
    if tensors and ARCHITECTURES[architecture].factors == "none":
        path, _weights = write(tmp_path, architecture, keys, tensors)
        contents = read_gguf(path)
        assert contents.gguf is not None
        said = LlamaCpp().effective(contents.gguf, length=CONTEXT).problem
        assert said is not None
        assert "wrong number of tensors" in said
        with pytest.raises(LoadError, match="wrong number of tensors"):
            logits(path, tokens(), context=CONTEXT)
        return
    found, weights, predicted = check(tmp_path, architecture, keys, tensors)
    assert all(same_table(rope, goal) for rope in predicted)
    if form != "none":
        assert difference(found, computed(architecture, weights, [PLAIN] * 2)) > OTHER


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("spelling", ["rope__scaling__factor", "rope__scale_linear"])
@pytest.mark.parametrize("kind", ["linear", None])
def test_linear_needs_no_type(tmp_path: Path, architecture: str, spelling: str, kind: str | None) -> None:
    found, weights, predicted = check(tmp_path, architecture, {spelling: 4.0, "rope__scaling__type": kind}, {})
    assert predicted[0].inv_freq == pytest.approx([f / 4.0 for f in PLAIN.inv_freq], rel=1e-6)
    assert difference(found, computed(architecture, weights, [PLAIN] * 2)) > OTHER


@pytest.mark.parametrize("form", [*MISREAD, *MISREAD_CARRIED])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_it_misreads_as_predicted(tmp_path: Path, architecture: str, form: str) -> None:
    keys, tensors, goal = (MISREAD | MISREAD_CARRIED)[form]
    if tensors and architecture != "llama":
        return
    found, weights, predicted = check(tmp_path, architecture, keys, tensors)
    assert not same_table(predicted[0], goal)
    assert difference(found, computed(architecture, weights, [goal] * 2)) > OTHER


def test_mistral3_reads_betas_and_the_logarithms_weight(tmp_path: Path) -> None:
    keys = {
        **WITH_ORIGINAL,
        "rope__scaling__yarn_beta_fast": 8.0,
        "rope__scaling__yarn_beta_slow": 2.0,
        "rope__scaling__yarn_log_multiplier": 1.0,
    }
    found, weights, predicted = check(tmp_path, "mistral3", keys, {})
    goal = meant(yarn(beta_fast=8.0, beta_slow=2.0, attention_factor=1.0))
    assert same_table(predicted[0], goal)
    assert difference(found, computed("mistral3", weights, [meant(yarn())] * 2)) > OTHER


@pytest.mark.parametrize("kind", [None, "longrope"])
def test_phi3_takes_lists_whatever_the_type(tmp_path: Path, kind: str | None) -> None:
    keys = {"rope__scaling__type": kind, "rope__scaling__original_context_length": ORIGINAL}
    found, weights, predicted = check(tmp_path, "phi3", keys, {LONG: LISTED, SHORT: (1.0,) * PAIRS})
    assert predicted[0].switches == (ORIGINAL,)
    assert difference(found, computed("phi3", weights, [PLAIN] * 2)) > OTHER


@pytest.mark.parametrize(
    ("keys", "attention", "softmax"),
    [
        ({}, 1.0, 1.0),
        # DeepSeek-V3's mscale and mscale_all_dim of 1, as the converter writes them; then 0.707 for both.
        ({**WITH_ORIGINAL, "rope__scaling__yarn_log_multiplier": 0.1}, 1.0, A0**2),
        ({**WITH_ORIGINAL, "rope__scaling__yarn_log_multiplier": 0.0707}, 1.0, mscale(4.0, 0.707) ** 2),
        # What no key was written for: the softmax is tempered beside cos and sin, even under a linear factor.
        (WITH_ORIGINAL, A0, A0**2),
        ({"rope__scaling__factor": 4.0}, 1.0, A0**2),
        # A weight below zero undoes it: transformers' yarn without mscale_all_dim.
        (
            {
                **WITH_ORIGINAL,
                "rope__scaling__yarn_log_multiplier": 0.1 * (1.0 / A0 - 1.0) / (A0 - 1.0),
                "rope__scaling__attn_factor": A0,
            },
            A0,
            1.0,
        ),
    ],
)
def test_latent_attention(tmp_path: Path, keys: dict[str, Any], attention: float, softmax: float) -> None:
    found, weights, predicted = check(tmp_path, "deepseek2", keys, {})
    assert predicted[0].attention_factor == pytest.approx(attention, rel=1e-6)
    assert predicted[0].softmax_factor == pytest.approx(softmax, rel=1e-6)
    inv_freq = predicted[0].inv_freq
    other = RopeTable(inv_freq=inv_freq, attention_factor=attention, softmax_factor=1.1 * softmax)
    assert difference(found, computed("deepseek2", weights, [other] * 2)) > OTHER


SLIDING_YARN = {**WITH_ORIGINAL, **WINDOW, "rope__freq_base": 100000.0, "rope__freq_base_swa": 20000.0}


@pytest.mark.parametrize("keys", [SLIDING_YARN, {**SLIDING_YARN, "rope__scaling__attn_factor": 1.2}])
@pytest.mark.parametrize("architecture", ["gemma3", "olmo2"])
def test_sliding_layers_have_their_own_rope(tmp_path: Path, architecture: str, keys: dict[str, Any]) -> None:
    """Neither is scaled there; gemma3 has its own base and the factor on cos and sin, olmo2 neither."""
    found, weights, predicted = check(tmp_path, architecture, keys, {})
    sliding, full = predicted
    base = 20000.0 if architecture == "gemma3" else 100000.0
    multiplier = keys.get("rope__scaling__attn_factor", 1.0)
    assert sliding.inv_freq == pytest.approx(SPEC.inv_freq(base), rel=1e-6)
    assert sliding.attention_factor == pytest.approx(multiplier if architecture == "gemma3" else 1.0, rel=1e-6)
    assert full.attention_factor == pytest.approx(A0 * multiplier, rel=1e-6)
    assert difference(found, computed(architecture, weights, [full, full])) > OTHER


@pytest.mark.parametrize("kind", ["linear", "yarn", "none"])
def test_a_factor_reaches_the_sliding_layers_of_gemma2(tmp_path: Path, kind: str) -> None:
    """Even with the type none, which keeps it from the full ones; they have a base of their own."""
    keys = {**SLIDING_YARN, "rope__scaling__type": kind, "rope__scaling__attn_factor": 1.2}
    found, weights, (sliding, full) = check(tmp_path, "gemma2", keys, {})
    scaling = yarn() if kind == "yarn" else Linear(factor=4.0)
    spec = RopeSpec(rope_theta=20000.0, head_dim=32, rotary_dim=32)
    assert sliding.inv_freq == pytest.approx(table(spec, scaling).inv_freq, rel=1e-6)
    assert sliding.attention_factor == full.attention_factor
    if kind == "none":
        assert full.inv_freq == pytest.approx(SPEC.inv_freq(100000.0), rel=1e-6)
    plain = RopeTable(inv_freq=spec.inv_freq(), attention_factor=sliding.attention_factor)
    assert difference(found, computed("gemma2", weights, [plain, full])) > OTHER


@pytest.mark.parametrize(
    ("architecture", "keys", "tensors", "said"),
    [
        ("llama", {"rope__scaling__type": "longrope"}, {FREQS: LISTED}, "wrong number of tensors"),
        ("llama", {}, {LONG: LISTED, SHORT: LISTED}, "wrong number of tensors"),
        ("phi3", {}, {FREQS: LISTED}, "wrong number of tensors"),
        ("llama", {}, {FREQS: LISTED[:-1]}, "has wrong shape"),
        ("llama", {"rope__dimension_count": 16}, {}, "invalid n_rot"),
        ("qwen3", {"rope__scaling__factor": 4}, {}, "has wrong type"),
        ("qwen3", {"rope__freq_base": GgufValue(type="FLOAT64", value=1e4)}, {}, "has wrong type"),
        ("qwen3", {"context_length": None}, {}, "key not found in model"),
    ],
)
def test_it_fails_to_load_as_predicted(
    tmp_path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, tuple[float, ...]], said: str
) -> None:
    path, _weights = write(tmp_path, architecture, keys, tensors)
    gguf = read_gguf(path).gguf
    assert gguf is not None
    reading = LlamaCpp().effective(gguf, length=CONTEXT)
    assert reading.problem is not None
    assert said in reading.problem
    assert not reading.tables
    with pytest.raises(LoadError, match=said):
        logits(path, tokens(), context=CONTEXT)


@pytest.mark.parametrize(
    ("architecture", "keys"), [("llama", {"rope__scaling__type": "dynamic"}), ("qwen3", {"rope__dimension_count": 16})]
)
def test_it_aborts_as_predicted(tmp_path: Path, architecture: str, keys: dict[str, Any]) -> None:
    path, _weights = write(tmp_path, architecture, keys, {})
    gguf = read_gguf(path).gguf
    assert gguf is not None
    problem = LlamaCpp().effective(gguf, length=CONTEXT).problem
    assert problem is not None
    assert "aborts" in problem
    code = f"from tests.reference.libllama import logits; logits({str(path)!r}, [1], context=256)"
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False, env=environment)
    # Killed by the library's own abort, rather than ended by Python.
    assert done.returncode < 0


def test_a_partial_rope(tmp_path: Path) -> None:
    """Exponents run over the rotated dimensions, and only they carry the temperature."""
    found, weights, predicted = check(tmp_path, "phi3", {**WITH_ORIGINAL, "rope__dimension_count": 16}, {})
    goal = table(RopeSpec(rope_theta=10000.0, head_dim=32, rotary_dim=16), yarn())
    assert same_table(predicted[0], goal)
    assert difference(found, computed("phi3", weights, [meant(yarn())] * 2)) > OTHER


@pytest.mark.parametrize("architecture", ["granite", "llama"])
def test_a_granite_that_was_not_fine_tuned_has_no_rope(tmp_path: Path, architecture: str) -> None:
    """The same key does nothing in a llama."""
    keys = {"rope__scaling__finetuned": False, "logit_scale": 1.0}
    found, weights, predicted = check(tmp_path, architecture, keys, {})
    still = RopeTable(inv_freq=(0.0,) * PAIRS)
    other = PLAIN if architecture == "granite" else still
    assert all(same_table(rope, still) == (architecture == "granite") for rope in predicted)
    assert difference(found, computed(architecture, weights, [other] * 2)) > OTHER


ENCODED: dict[str, Scaling] = {
    "linear": Linear(factor=4.0),
    "theta": Rebase(rope_theta=80000.0),
    "yarn": yarn(),
    "ntk-by-parts": yarn(attention_factor=1.0),
    "yarn with other betas": yarn(beta_fast=16.0, beta_slow=0.5),
    "yarn without rounding": yarn(truncate=False),
    "llama3": LLAMA3,
    "longrope": LongRope(
        short_factor=(1.0,) * PAIRS,
        long_factor=LISTED,
        factor=4.0,
        original_max_position_embeddings=ORIGINAL,
        attention_factor=1.1,
    ),
}
#: Those that need a tensor, which qwen3 and deepseek2 don't load.
TENSORS = ("yarn without rounding", "llama3", "longrope")


@pytest.mark.parametrize("form", ENCODED)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3", "deepseek2"])
def test_a_chosen_encoding_gives_the_planned_logits(tmp_path: Path, architecture: str, form: str) -> None:
    """Over a file full of stale keys: what is written is what llama.cpp computes with."""
    scaling = ENCODED[form]
    stale = {
        **YARN,
        "context_length": ORIGINAL,
        "rope__scaling__factor": 2.0,
        "rope__scaling__attn_factor": 1.5,
        "rope__scaling__yarn_attn_factor": 1.0,
    }
    path, weights = write(tmp_path, architecture, {"context_length": ORIGINAL}, {})
    before = read_gguf(path).gguf
    assert before is not None
    file = read_gguf(write(tmp_path, architecture, stale, {})[0]).gguf
    assert file is not None
    specs = {group.label: group.spec for group in read_rope(before).groups if group.spec is not None}
    planned = {label: table(spec, scaling, length=CONTEXT) for label, spec in specs.items()}
    candidates = encodings(file, read_rope(before), specs, dict.fromkeys(specs, scaling), target=CONTEXT)
    if architecture in ("qwen3", "deepseek2") and form in TENSORS:
        with pytest.raises(RefusedError):
            choose_gguf(file, candidates, planned, target=CONTEXT)
        return
    chosen = choose_gguf(file, candidates, planned, target=CONTEXT)
    after = applied(file, chosen.encoding.edits)
    extra = {name: np.asarray(numbers, np.float32) for name, numbers in chosen.encoding.tensors.items()}
    out = write_model(tmp_path / "out.gguf", dict(after.values), {**weights, **extra})
    (goal,) = planned.values()
    found = logits(out, tokens(), context=CONTEXT)
    assert difference(found, computed(architecture, weights, [goal] * 2)) < SAME
    assert difference(found, computed(architecture, weights, [PLAIN] * 2)) > OTHER


@pytest.mark.full
@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 isn't here: python scripts/fetch_assets.py")
def test_the_real_model_has_the_predicted_rope(tmp_path: Path) -> None:
    """SmolLM2's own file under yarn: its keys in front of the same tensors, against transformers with our table."""
    import torch
    from transformers import AutoModelForCausalLM

    contents = read_gguf(SMOLLM2)
    assert contents.gguf is not None
    reading = LlamaCpp().effective(contents.gguf, length=512)
    (rope,) = reading.tables.values()
    model = AutoModelForCausalLM.from_pretrained(ROOT / "assets" / "smollm2", dtype=torch.float32)
    rotary = model.model.rotary_emb
    ids = np.random.default_rng(2).integers(0, 49152, 256)

    def expected(rope: RopeTable) -> Any:
        rotary.inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32)
        rotary.attention_scaling = rope.attention_factor
        with torch.no_grad():
            return model(torch.tensor(ids)[None]).logits[0].numpy()

    found = logits(SMOLLM2, ids, context=512, vocabulary=49152)
    # The weights are quantised in both; llama.cpp multiplies quantised weights with quantised activations.
    near = np.abs(found - expected(rope)).mean()
    other = RopeTable(inv_freq=tuple(f / 2.0 for f in rope.inv_freq))
    assert near < 0.25
    assert np.abs(found - expected(other)).mean() > 4 * near
