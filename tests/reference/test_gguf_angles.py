"""Why llama.cpp's logits differ from transformers' a little more on a blended rope: both round its angles, unlike.

ggml's CPU rope gets pair i's angle from pair i - 1's by a float32 product, and blends YaRN's two angles at every
position; transformers blends frequencies once and multiplies them by the position in float32. On a plain table both
round the fast pairs alike, and the errors cancel; on a blended one they don't. With ggml's angles in place of
transformers' own, an extended export is as near as one that isn't extended: what is written is exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ctxextend.scaling import Scaling, Yarn
from tests.exports.models import save
from tests.reference.libllama import logits
from tests.reference.test_gguf_conversions import VOCABULARY, convert, write_tokenizer

F: Final = np.float32
#: Far enough that the angles are what is rounded most.
TRAINED, COUNT = 256, 344
#: The tiny llama's: dimensions of a head, base, factor.
DIM, BASE, FACTOR = 16, 10000.0, 4.0
POSITIONS: Final = np.arange(COUNT)
TOKENS: Final = np.random.default_rng(5).integers(3, VOCABULARY, COUNT)

YARN: Final = Yarn(factor=FACTOR, original_max_position_embeddings=TRAINED)
METHODS: Final[dict[str, tuple[dict[str, Any], Scaling]]] = {
    "yarn": ({}, YARN),
    # As llama.cpp has it, with the ramp of its own, and as a tensor of factors.
    "yarn in a tensor": (
        {"truncate": False},
        Yarn(factor=FACTOR, original_max_position_embeddings=TRAINED, truncate=False),
    ),
}


def ggml_angles(path: Path) -> Any:
    """What llama.cpp's ggml-cpu/ops.cpp (ggml_rope_cache_init, rope_yarn) makes in float32: (positions, pairs)."""
    file = gguf.GGUFReader(path)
    stated = {name: field.contents() for name, field in file.fields.items() if ".rope." in name}
    factors = next((t.data for t in file.tensors if t.name == "rope_freqs.weight"), np.ones(DIM // 2, F))
    blended = stated.get("llama.rope.scaling.type") == "yarn"
    slowed = F(1.0 / stated["llama.rope.scaling.factor"]) if blended else F(1)
    low, high = (DIM * np.log(TRAINED / (beta * 2 * np.pi)) / (2 * np.log(BASE)) for beta in (32.0, 1.0))
    low, high = F(max(0, np.floor(low))), F(min(DIM - 1, np.ceil(high)))
    columns: list[Any] = []
    theta: Any = POSITIONS.astype(F)
    for pair in range(DIM // 2):
        outer = theta / F(factors[pair])
        angle: Any = slowed * outer
        if blended:
            ramp = F(1) - np.clip((F(pair) - low) / max(F(0.001), high - low), F(0), F(1))
            # The compiler fuses the sum: float64 holds a product of two float32 exactly, and the sum is rounded once.
            angle = F(angle.astype(float) * float(F(1) - ramp) + (outer * ramp).astype(float))
        columns.append(angle)
        theta = theta * F(BASE) ** F(-2.0 / DIM)
    return np.stack(columns, 1).astype(float)


def passed(folder: Path, *, angles: Any = None, temperature: float = 1.0) -> Any:
    """transformers' logits past the trained length; with angles (positions, pairs), these in place of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    if angles is not None:
        both = torch.tensor(np.concatenate([angles, angles], 1)[None])
        turned = both.cos() * temperature, both.sin() * temperature
        model.model.rotary_emb.forward = lambda _hidden, position_ids: turned
    with torch.no_grad():
        return model(torch.tensor(TOKENS)[None]).logits[0, TRAINED:].numpy()


def apart(path: Path, expected: Any) -> float:
    """llama.cpp's largest difference past the trained length, over the spread of the logits."""
    found = logits(path, TOKENS, context=COUNT, vocabulary=VOCABULARY)[TRAINED:]
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("method", METHODS)
def test_with_the_angles_that_ggml_rounds_an_extension_is_as_near_as_the_model_as_it_is(
    method: str, tmp_path: Path
) -> None:
    options, scaling = METHODS[method]
    assert isinstance(scaling, Yarn)
    source = tmp_path / "source"
    save("llama", source)
    write_tokenizer(source)
    plain = apart(convert(source, tmp_path / "plain.gguf", to="gguf", outtypes=("f32",)), passed(source))
    asked = {"method": "yarn", "target": int(TRAINED * FACTOR), "options": options}
    folder = convert(source, tmp_path / "long", **asked, runtimes=("transformers",), allow=("unreadable",))
    path = convert(source, tmp_path / "long.gguf", **asked, to="gguf", outtypes=("f32",))
    # 0.1 ln(4) + 1, the temperature of YaRN (arXiv 2309.00071, eq. 22).
    near = apart(path, passed(folder, angles=ggml_angles(path), temperature=0.1 * float(np.log(FACTOR)) + 1.0))
    assert near <= 2 * plain
    # It is the angles: with transformers' own the two are farther apart than that.
    assert apart(path, passed(folder)) > 2 * near
