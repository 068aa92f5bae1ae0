"""llama.cpp itself, through the C API that the xllamacpp wheel's library exports, and tiny models for it.

Structures are those of ``include/llama.h`` (b11434), with room at the end for fields that later builds add.
"""

from __future__ import annotations

import ctypes as c
import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ctxextend.lab.engines.libllama import ContextParams
from tests.gguf_factory import keys

Array = np.ndarray[Any, Any]

VOCABULARY = 64
_F32 = 0
_FLASH_ATTENTION_OFF = 0


class ModelParams(c.Structure):
    _fields_ = (
        ("devices", c.c_void_p),
        ("buffer_types", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("rest", c.c_char * 320),
    )


class Batch(c.Structure):
    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


class LoadError(Exception):
    """llama.cpp said no; the message is what it logged."""


_LOG: list[str] = []
_LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


def _note(_level: int, text: bytes, _data: object) -> None:
    _LOG.append(text.decode(errors="replace"))


_log = _LogCallback(_note)


@functools.cache
def library() -> c.CDLL:
    found = importlib.util.find_spec("xllamacpp")
    assert found is not None
    assert found.submodule_search_locations is not None
    lib = c.CDLL(str(Path(found.submodule_search_locations[0]) / "xllamacpp.abi3.so"))
    for name, result, arguments in (
        ("llama_backend_init", None, ()),
        ("llama_log_set", None, (_LogCallback, c.c_void_p)),
        ("llama_model_default_params", ModelParams, ()),
        ("llama_context_default_params", ContextParams, ()),
        ("llama_model_load_from_file", c.c_void_p, (c.c_char_p, ModelParams)),
        ("llama_init_from_model", c.c_void_p, (c.c_void_p, ContextParams)),
        ("llama_batch_init", Batch, (c.c_int32, c.c_int32, c.c_int32)),
        ("llama_batch_free", None, (Batch,)),
        ("llama_decode", c.c_int32, (c.c_void_p, Batch)),
        ("llama_get_logits", c.POINTER(c.c_float), (c.c_void_p,)),
        ("llama_model_n_ctx_train", c.c_int32, (c.c_void_p,)),
        ("llama_free", None, (c.c_void_p,)),
        ("llama_model_free", None, (c.c_void_p,)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(_log, None)
    lib.llama_backend_init()
    return lib


def logits(path: Path, tokens: Array, *, context: int, vocabulary: int = VOCABULARY) -> Array:
    """The logits at every position, in float32 throughout. Raises :class:`LoadError`."""
    lib = library()
    _LOG.clear()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise LoadError("".join(_LOG))
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = context, context, context
    settings.n_threads, settings.n_threads_batch = 1, 1
    settings.flash_attn_type = _FLASH_ATTENTION_OFF
    settings.type_k, settings.type_v = _F32, _F32
    handle = lib.llama_init_from_model(model, settings)
    assert handle, "".join(_LOG)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    try:
        assert lib.llama_decode(handle, batch) == 0
        found: Array = np.array(np.ctypeslib.as_array(lib.llama_get_logits(handle), shape=(len(tokens), vocabulary)))
        return found
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(handle)
        lib.llama_model_free(model)


def settings_of(architecture: str, **changes: Any) -> dict[str, Any]:
    """All keys of a tiny model without a tokenizer."""
    return {
        **keys(architecture, **{"vocab_size": VOCABULARY, **changes}),
        "tokenizer.ggml.model": "none",
    }


def weights_of(architecture: str, *, seed: int = 0) -> dict[str, Any]:
    """Random weights of a tiny model with two heads and one key-value head, in llama.cpp's layout."""
    rng = np.random.default_rng(seed)
    layers, width, head, inner = 2, 64, 32, 96

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Array:
        return np.asarray(rng.standard_normal((rows, columns)) * gain / np.sqrt(columns), np.float32)

    def vector(size: int, mean: float = 1.0) -> Array:
        return np.asarray(mean + 0.1 * rng.standard_normal(size), np.float32)

    weights: dict[str, Any] = {
        "token_embd.weight": matrix(VOCABULARY, width, 8.0),
        "output_norm.weight": vector(width),
        "output.weight": matrix(VOCABULARY, width, 3.0),
    }
    for layer in range(layers):
        block = {
            "attn_norm.weight": vector(width),
            "attn_q.weight": matrix(2 * head, width, 2.0),
            "attn_k.weight": matrix(head, width, 2.0),
            "attn_v.weight": matrix(head, width, 2.0),
            "attn_output.weight": matrix(width, 2 * head, 2.0),
            "ffn_norm.weight": vector(width),
            "ffn_gate.weight": matrix(inner, width),
            "ffn_up.weight": matrix(inner, width),
            "ffn_down.weight": matrix(width, inner),
        }
        _adapt(architecture, block, vector)
        weights |= {f"blk.{layer}.{name}": array for name, array in block.items()}
    if architecture == "gemma2":
        # Tied, and so of the outputs' size.
        del weights["output.weight"]
        weights["token_embd.weight"] *= np.float32(0.4)
    return weights


#: Vectors that blocks of an architecture have beside a llama's: size and mean.
_VECTORS: Mapping[str, Mapping[str, tuple[int, float]]] = {
    "qwen2": {"attn_q.bias": (64, 0.0), "attn_k.bias": (32, 0.0), "attn_v.bias": (32, 0.0)},
    "qwen3": {"attn_q_norm.weight": (32, 1.5), "attn_k_norm.weight": (32, 1.5)},
    "gemma2": {"post_attention_norm.weight": (64, 1.0), "post_ffw_norm.weight": (64, 1.0)},
    "gemma3": {
        "attn_q_norm.weight": (32, 1.5),
        "attn_k_norm.weight": (32, 1.5),
        "post_attention_norm.weight": (64, 1.0),
        "post_ffw_norm.weight": (64, 1.0),
    },
    "olmo2": {
        "attn_q_norm.weight": (64, 1.5),
        "attn_k_norm.weight": (32, 1.5),
        "post_attention_norm.weight": (64, 1.0),
        "post_ffw_norm.weight": (64, 1.0),
    },
}


def _adapt(architecture: str, block: dict[str, Array], vector: Callable[[int, float], Array]) -> None:
    """Make a llama's block one of another architecture."""
    block |= {name: vector(size, mean) for name, (size, mean) in _VECTORS.get(architecture, {}).items()}
    if architecture == "olmo2":
        del block["attn_norm.weight"], block["ffn_norm.weight"]
    if architecture == "phi3":
        block["attn_qkv.weight"] = np.concatenate([block.pop(f"attn_{part}.weight") for part in "qkv"])
        block["ffn_up.weight"] = np.concatenate([block.pop("ffn_gate.weight"), block["ffn_up.weight"]])


#: What a forward pass needs to know of a layer's rope: frequencies, the factor on cos and sin, that on scores.
Rope = tuple[tuple[float, ...], float, float]


def forward(
    architecture: str, weights: Mapping[str, Array], tokens: Array, ropes: list[Rope], *, pairing: str
) -> Array:
    """The logits of such a model in float64, written from the models' papers; one rope a layer."""
    return _Forward(architecture, weights, pairing).run(tokens, ropes)


#: A tiny latent attention: two heads of 16 plain and 32 rotated dimensions, over 24 latent ones.
LATENT: Mapping[str, Any] = {
    "attention__key_length": 56,
    "attention__value_length": 24,
    "attention__key_length_mla": 48,
    "attention__value_length_mla": 32,
    "attention__q_lora_rank": 40,
    "attention__kv_lora_rank": 24,
    "rope__dimension_count": 32,
    "leading_dense_block_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
}


def latent_weights(*, seed: int = 0) -> dict[str, Any]:
    """Weights of a tiny DeepSeek-V2 without experts, for the keys of LATENT."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> Array:
        return np.asarray(rng.standard_normal(shape) * 2.0 / np.sqrt(shape[-1]), np.float32)

    weights = {name: array for name, array in weights_of("llama", seed=seed).items() if "attn_" not in name}
    for layer in range(2):
        weights |= {
            f"blk.{layer}.attn_{name}.weight": array
            for name, array in {
                "norm": np.ones(64, np.float32),
                "q_a": matrix(40, 64),
                "q_a_norm": np.full(40, 1.2, np.float32),
                "q_b": matrix(2 * 48, 40),
                "kv_a_mqa": matrix(24 + 32, 64),
                "kv_a_norm": np.full(24, 0.9, np.float32),
                "k_b": matrix(2, 24, 16),
                "v_b": matrix(2, 32, 24),
                "output": matrix(64, 64),
            }.items()
        }
    return weights


class _Forward:
    def __init__(self, architecture: str, weights: Mapping[str, Array], pairing: str) -> None:
        self.architecture = architecture
        self.weights = weights
        self.pairing = pairing

    def run(self, tokens: Array, ropes: list[Rope]) -> Array:
        x = self.weights["token_embd.weight"][tokens].astype(np.float64)
        if self.architecture in ("gemma2", "gemma3"):
            x = x * np.sqrt(x.shape[-1])
        before = self.architecture != "olmo2"
        for layer, rope in enumerate(ropes):
            at = f"blk.{layer}"
            y = self.norm(x, f"{at}.attn_norm.weight") if before else x
            x = x + self.after(self.attention(y, at, rope), f"{at}.post_attention_norm.weight")
            y = self.norm(x, f"{at}.ffn_norm.weight") if before else x
            x = x + self.after(self.feed_forward(y, at), f"{at}.post_ffw_norm.weight")
        x = self.norm(x, "output_norm.weight")
        if self.architecture == "gemma2":
            return np.asarray(30.0 * np.tanh(self.linear(x, "token_embd") / 30.0))
        return self.linear(x, "output")

    def attention(self, y: Array, at: str, rope: Rope) -> Array:
        width = y.shape[-1]
        head = width // 2
        if self.architecture == "deepseek2":
            return self.latent_attention(y, at, rope)
        if self.architecture == "phi3":
            q, k, v = np.split(self.linear(y, f"{at}.attn_qkv"), [width, width + head], axis=-1)
        else:
            q, k, v = (self.linear(y, f"{at}.attn_{part}") for part in "qkv")
        if self.architecture == "olmo2":
            q, k = self.norm(q, f"{at}.attn_q_norm.weight"), self.norm(k, f"{at}.attn_k_norm.weight")
        q, k, v = q.reshape(-1, 2, head), k.reshape(-1, 1, head), v.reshape(-1, 1, head)
        if self.architecture in ("qwen3", "gemma3"):
            q, k = self.norm(q, f"{at}.attn_q_norm.weight"), self.norm(k, f"{at}.attn_k_norm.weight")
        q, k = self.turn(q, rope), self.turn(k, rope)
        scores = np.einsum("qhd,kd->hqk", q, k[:, 0]) * rope[2] / np.sqrt(head)
        if self.architecture == "gemma2":
            # Gemma 2 (arXiv 2408.00118), section 2: soft caps of 50 on scores and 30 on logits.
            scores = 50.0 * np.tanh(scores / 50.0)
        shares = self.shares(scores)
        return self.linear(np.einsum("hqk,kd->qhd", shares, v[:, 0]).reshape(len(y), -1), f"{at}.attn_output")

    def latent_attention(self, y: Array, at: str, rope: Rope) -> Array:
        """DeepSeek-V2 (arXiv 2405.04434), section 2.1: keys and values of every head from one latent vector."""
        q = self.linear(self.norm(self.linear(y, f"{at}.attn_q_a"), f"{at}.attn_q_a_norm.weight"), f"{at}.attn_q_b")
        q = q.reshape(len(y), 2, 48)
        both = self.linear(y, f"{at}.attn_kv_a_mqa")
        latent, rotated = self.norm(both[:, :24], f"{at}.attn_kv_a_norm.weight"), self.turn(both[:, None, 24:], rope)
        keys = np.einsum("kr,hrd->khd", latent, self.weights[f"{at}.attn_k_b.weight"].astype(np.float64))
        values = np.einsum("kr,hdr->khd", latent, self.weights[f"{at}.attn_v_b.weight"].astype(np.float64))
        scores = np.einsum("qhd,khd->hqk", q[..., :16], keys)
        scores = scores + np.einsum("qhd,kd->hqk", self.turn(q[..., 16:], rope), rotated[:, 0])
        shares = self.shares(scores * rope[2] / np.sqrt(48))
        return self.linear(np.einsum("hqk,khd->qhd", shares, values).reshape(len(y), -1), f"{at}.attn_output")

    @staticmethod
    def shares(scores: Array) -> Array:
        """The causal softmax."""
        scores = scores + np.triu(np.full(scores.shape[-2:], -np.inf), 1)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(scores / scores.sum(axis=-1, keepdims=True))

    def feed_forward(self, y: Array, at: str) -> Array:
        if self.architecture == "phi3":
            gate, up = np.split(self.linear(y, f"{at}.ffn_up"), 2, axis=-1)
        else:
            gate, up = self.linear(y, f"{at}.ffn_gate"), self.linear(y, f"{at}.ffn_up")
        if self.architecture in ("gemma2", "gemma3"):
            gate = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1.0 + np.exp(-gate))
        return self.linear(gate * up, f"{at}.ffn_down")

    def norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return np.asarray(x / scale * self.weights[name].astype(np.float64))

    def after(self, x: Array, name: str) -> Array:
        return self.norm(x, name) if name in self.weights else x

    def linear(self, x: Array, name: str) -> Array:
        out = x @ self.weights[f"{name}.weight"].astype(np.float64).T
        return np.asarray(out + self.weights.get(f"{name}.bias", 0.0))

    def turn(self, x: Array, rope: Rope) -> Array:
        angles = np.arange(len(x))[:, None, None] * np.asarray(rope[0])
        cos, sin = np.cos(angles) * rope[1], np.sin(angles) * rope[1]
        pairs = len(rope[0])
        rest = x[..., 2 * pairs :]
        if self.pairing == "half":
            a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
        a, b = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        both = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(*x.shape[:-1], 2 * pairs)
        return np.concatenate([both, rest], axis=-1)
