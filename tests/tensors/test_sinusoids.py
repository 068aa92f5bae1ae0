"""Tables of sinusoids, as transformers' own modules compute them."""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np
import pytest
import torch

from ctxextend.changes import FillSinusoids
from ctxextend.tensors.sinusoids import sinusoid_rows

Array = np.ndarray[Any, Any]


def filled(rows: int, dim: int, **said: Any) -> Array:
    change = FillSinusoids(file="a", name="w", rows=rows, dim=dim, **said)
    return sinusoid_rows(change, np.arange(rows))


def class_of(family: str, name: str) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)


HALVES: Final = {
    "marian": "MarianSinusoidalPositionalEmbedding",
    "pegasus": "PegasusSinusoidalPositionalEmbedding",
    "informer": "InformerSinusoidalPositionalEmbedding",
    "roformer": "RoFormerSinusoidalPositionalEmbedding",
}


@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("family", HALVES)
def test_halves_bit_for_bit(family: str, dim: int) -> None:
    good = class_of(family, HALVES[family])(50, dim).create_weight()
    np.testing.assert_array_equal(filled(50, dim, layout="halves").astype(np.float32), good.numpy())


TENSOR2TENSOR: Final = {
    "m2m_100": "M2M100SinusoidalPositionalEmbedding",
    "xglm": "XGLMSinusoidalPositionalEmbedding",
    "fsmt": "SinusoidalPositionalEmbedding",
}


@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("family", TENSOR2TENSOR)
def test_tensor2tensor(family: str, dim: int) -> None:
    good = class_of(family, TENSOR2TENSOR[family]).get_embedding(600, dim, 1).numpy()
    found = filled(600, dim, layout="tensor2tensor", zero_row=1)
    # Theirs are angles in float32, up to 600 and so 2 ** -15 off.
    np.testing.assert_allclose(found, good, atol=600 * 2**-23)
    assert not found[1].any()
    if dim % 2:
        assert not found[:, -1].any()


@pytest.mark.parametrize("dim", [16, 7])
def test_interleaved_bit_for_bit(dim: int) -> None:
    module = importlib.import_module("transformers.models.xlm.modeling_xlm")
    good = module.create_sinusoidal_embeddings(40, dim, torch.empty(40, dim))
    np.testing.assert_array_equal(filled(40, dim, layout="interleaved").astype(np.float32), good.numpy())


@pytest.mark.parametrize("layout", ["halves", "tensor2tensor", "interleaved"])
def test_positions_between_and_a_first_one(layout: str) -> None:
    """Every second row of the finer table is a row of the coarser; a later first position is a later row."""
    whole = filled(20, 8, layout=layout)
    np.testing.assert_allclose(filled(40, 8, layout=layout, positions_per_row=0.5)[::2], whole, atol=1e-12)
    np.testing.assert_array_equal(filled(15, 8, layout=layout, first=5), whole[5:])


def test_any_rows_in_any_order() -> None:
    change = FillSinusoids(file="a", name="w", rows=9, dim=6, layout="halves", zero_row=4)
    rows = np.array([8, 4, 0])
    np.testing.assert_array_equal(sinusoid_rows(change, rows), filled(9, 6, layout="halves", zero_row=4)[rows])
