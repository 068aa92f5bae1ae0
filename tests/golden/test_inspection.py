"""What inspect says of published configs. Every number is worked out here, from the config and the papers.

The KV cache of a token at 16 bits: layers x (key and value) x KV heads x head_dim x 2 bytes.
"""

from __future__ import annotations

import pytest
from msgspec import Struct

from ctxextend.errors import CtxextendError
from ctxextend.recipe import Recipe
from ctxextend.scaling import Llama3, LongRope, Yarn
from tests.golden.support import NAMES, changed, contents, group_of, inspected

BYTES = 2
KEY_AND_VALUE = 2


class Rope(Struct, frozen=True):
    """A group as it must be found. ``theta`` None: these layers have no rope."""

    label: str
    layers: tuple[int, ...]
    theta: float | None
    head_dim: int = 128
    rotary_dim: int = 128
    scaling: str | None = None
    origin: str | None = None
    window: int | None = None


class Want(Struct, frozen=True):
    """An inspection as it must be."""

    trained: int
    current: int
    kv_bytes: int
    groups: tuple[Rope, ...]


def full(layers: int, theta: float, head_dim: int = 128, rotary_dim: int | None = None) -> tuple[Rope, ...]:
    """One plain rope on every layer."""
    return (Rope("full_attention", tuple(range(layers)), theta, head_dim, rotary_dim or head_dim),)


def scaled(layers: int, theta: float, scaling: str, origin: str, dim: int = 128) -> tuple[Rope, ...]:
    """One scaled rope on every layer."""
    return (Rope("full_attention", tuple(range(layers)), theta, dim, dim, scaling, origin),)


def sliding(
    layers: int, theta: float, window: int, head_dim: int = 128, rotary_dim: int | None = None
) -> tuple[Rope, ...]:
    """One plain rope, and a window on every layer."""
    return (
        Rope("sliding_attention", tuple(range(layers)), theta, head_dim, rotary_dim or head_dim, None, None, window),
    )


def heads(layers: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of one token's keys and values in all layers."""
    return layers * KEY_AND_VALUE * kv_heads * head_dim * BYTES


def every(period: int, layers: int) -> tuple[int, ...]:
    """Layers ``period - 1``, ``2 * period - 1``, ..."""
    return tuple(range(period - 1, layers, period))


def others(period: int, layers: int) -> tuple[int, ...]:
    """All other layers."""
    return tuple(layer for layer in range(layers) if (layer + 1) % period)


WANTED: dict[str, Want] = {
    # 4096 / 32 heads = 128; no grouped heads, so 32 x 2 x 32 x 128 x 2 = half a MiB a token.
    "Llama-2-7b-hf": Want(4096, 4096, 524288, full(32, 10000.0)),
    "Meta-Llama-3-8B": Want(8192, 8192, 131072, full(32, 500000.0)),
    # 32 layers x 2 x 8 heads x 128 x 2 bytes = 131072; llama3 8x over 8192 was trained in, to 131072.
    "Llama-3.1-8B-Instruct": Want(131072, 131072, 131072, scaled(32, 500000.0, "llama3", "trained")),
    "SmolLM2-135M-Instruct": Want(8192, 8192, heads(30, 3, 64), full(30, 100000.0, 64)),
    # Every layer of the first Mistral sees 4096 tokens of its 32768.
    "Mistral-7B-v0.1": Want(32768, 32768, 131072, sliding(32, 10000.0, 4096)),
    "Mistral-7B-v0.3": Want(32768, 32768, 131072, full(32, 1000000.0)),
    # head_dim 128 is stated, and isn't needed: 4096 / 32.
    "Ministral-8B-Instruct-2410": Want(32768, 32768, heads(36, 8, 128), sliding(36, 100000000.0, 32768)),
    # 3072 / 32 would be 96; the config says 128. yarn 16 x 16384 = 262144, trained in.
    "Ministral-3-3B-Reasoning-2512": Want(262144, 262144, heads(26, 8, 128), scaled(26, 1000000.0, "yarn", "trained")),
    "Mixtral-8x7B-v0.1": Want(32768, 32768, 131072, full(32, 1000000.0)),
    # 28 layers x 2 x 4 heads x 128 x 2 bytes = 57344. The window of 131072 is switched off.
    "Qwen2.5-7B-Instruct": Want(32768, 32768, 57344, full(28, 1000000.0)),
    "Qwen2-VL-7B-Instruct": Want(32768, 32768, 57344, full(28, 1000000.0)),
    # The card adds yarn 4 over 32768 by hand: 128000 is more than what was trained.
    "Qwen2.5-VL-7B-Instruct": Want(32768, 128000, 57344, full(28, 1000000.0)),
    # 40960 is 32768 of text and 8192 of answer: trained on 32768. 2507 was trained on all of 262144.
    "Qwen3-8B": Want(32768, 40960, heads(36, 8, 128), full(36, 1000000.0)),
    "Qwen3-4B-Instruct-2507": Want(262144, 262144, heads(36, 8, 128), full(36, 5000000.0)),
    "Qwen3-8B-card-yarn": Want(32768, 40960, heads(36, 8, 128), scaled(36, 1000000.0, "yarn", "bolted-on")),
    "Qwen2.5-7B-Instruct-card-yarn": Want(32768, 32768, 57344, scaled(28, 1000000.0, "yarn", "bolted-on")),
    "gemma-7b": Want(8192, 8192, heads(28, 16, 256), full(28, 10000.0, 256)),
    # Even layers slide, odd ones see everything; one rope for both.
    "gemma-2-9b": Want(
        8192,
        8192,
        heads(42, 8, 256),
        (
            Rope("sliding_attention", tuple(range(0, 42, 2)), 10000.0, 256, 256, None, None, 4096),
            Rope("full_attention", tuple(range(1, 42, 2)), 10000.0, 256, 256),
        ),
    ),
    # The config says nothing of heads, bases or length: 4 KV heads of 256, theta 1e6 and 1e4, 131072 are
    # the class's. Five windowed layers before each full one; linear 8 on full attention alone.
    "gemma-3-4b-it": Want(
        131072,
        131072,
        heads(34, 4, 256),
        (
            Rope("sliding_attention", others(6, 34), 10000.0, 256, 256, None, None, 1024),
            Rope("full_attention", (5, 11, 17, 23, 29), 1000000.0, 256, 256, "linear", "trained"),
        ),
    ),
    "gemma-3-1b-it": Want(
        32768,
        32768,
        heads(26, 1, 256),
        (
            Rope("sliding_attention", others(6, 26), 10000.0, 256, 256, None, None, 512),
            Rope("full_attention", (5, 11, 17, 23), 1000000.0, 256, 256),
        ),
    ),
    # 2560 / 32 = 80 a head, of which 0.4, that is 32, are rotated.
    "phi-2": Want(2048, 2048, heads(32, 32, 80), full(32, 10000.0, 80, 32)),
    "Phi-3-mini-4k-instruct": Want(4096, 4096, heads(32, 32, 96), sliding(32, 10000.0, 2047, 96)),
    # The window of 262144 holds the trained length.
    "Phi-3.5-mini-instruct": Want(
        131072,
        131072,
        heads(32, 32, 96),
        (Rope("sliding_attention", tuple(range(32)), 10000.0, 96, 96, "longrope", "trained", 262144),),
    ),
    # 3072 / 24 = 128 a head, three quarters rotated: 96, so 48 factors.
    "Phi-4-mini-instruct": Want(
        131072,
        131072,
        131072,
        (Rope("sliding_attention", tuple(range(32)), 10000.0, 128, 96, "longrope", "trained", 262144),),
    ),
    # 2048 / 16 = 128, a quarter rotated: 32. Keys and values for every head.
    "pythia-1.4b": Want(2048, 2048, heads(24, 16, 128), full(24, 10000.0, 128, 32)),
    # Multi-query: one KV head of 4544 / 71 = 64, whatever num_kv_heads says. No length stated; the class has 2048.
    "falcon-7b": Want(2048, 2048, 8192, full(32, 10000.0, 64)),
    "stablelm-2-zephyr-1_6b": Want(4096, 4096, heads(24, 32, 64), full(24, 10000.0, 64, 16)),
    "OLMo-2-1124-7B": Want(4096, 4096, 524288, full(32, 500000.0)),
    # yarn 8 x 8192 = 65536 on full attention alone; the sliding layers have the plain rope of 500000.
    "Olmo-3-1025-7B": Want(
        65536,
        65536,
        524288,
        (
            Rope("sliding_attention", others(4, 32), 500000.0, window=4096),
            Rope("full_attention", every(4, 32), 500000.0, scaling="yarn", origin="trained"),
        ),
    ),
    "granite-3.3-8b-instruct": Want(131072, 131072, heads(40, 8, 128), full(40, 10000000.0)),
    # Command R states 8192 and was trained on its model_max_length. No grouped heads: 1.25 MiB a token.
    "c4ai-command-r-v01": Want(131072, 8192, 1310720, full(40, 8000000.0)),
    # Three layers with a rope and a window, then one without either.
    "c4ai-command-r7b-12-2024": Want(
        132096,
        132096,
        131072,
        (
            Rope("sliding_attention", others(4, 32), 50000.0, window=4096),
            Rope("full_attention", every(4, 32), None),
        ),
    ),
    "GLM-4-9B-0414": Want(32768, 32768, heads(40, 2, 128), full(40, 10000.0, 128, 64)),
    # Every fourth layer has no rope.
    "SmolLM3-3B": Want(
        65536,
        65536,
        heads(36, 4, 128),
        (Rope("full_attention", others(4, 36), 5000000.0), Rope("no_rope", every(4, 36), None)),
    ),
    "starcoder2-7b": Want(16384, 16384, heads(32, 4, 128), sliding(32, 1000000.0, 4096)),
    # Latent attention keeps 512 compressed numbers and 64 rotated ones a token and layer.
    "DeepSeek-V2-Lite": Want(163840, 163840, 27 * (512 + 64) * BYTES, scaled(27, 10000.0, "yarn", "trained", 64)),
    "DeepSeek-V3": Want(163840, 163840, 61 * (512 + 64) * BYTES, scaled(61, 10000.0, "yarn", "trained", 64)),
    # Even layers see 128 tokens; one rope, yarn 32 x 4096 = 131072, for both.
    "gpt-oss-20b": Want(
        131072,
        131072,
        heads(24, 8, 64),
        (
            Rope("sliding_attention", tuple(range(0, 24, 2)), 150000.0, 64, 64, "yarn", "trained", 128),
            Rope("full_attention", tuple(range(1, 24, 2)), 150000.0, 64, 64, "yarn", "trained"),
        ),
    ),
    # Three layers with a rope and chunks of 8192, then one without either.
    "Llama-4-Scout-17B-16E-Instruct": Want(
        10485760,
        10485760,
        heads(48, 8, 128),
        (
            Rope("chunked_attention", others(4, 48), 500000.0, scaling="llama3", origin="trained", window=8192),
            Rope("full_attention", every(4, 48), None),
        ),
    ),
    # Dynamic 6 over 32768: transformers serves 196608, nothing past 32768 was trained.
    "internlm3-8b-instruct": Want(32768, 32768 * 6, heads(48, 2, 128), scaled(48, 50000000.0, "dynamic", "bolted-on")),
    "Minitron-4B-Base": Want(4096, 4096, heads(32, 8, 128), full(32, 10000.0, 128, 64)),
    # The common mistake: yarn 32 over 4096, and the length left where it was.
    "Llama-2-7b-yarn-unraised": Want(4096, 4096, 524288, scaled(32, 10000.0, "yarn", "bolted-on")),
}

#: Position systems without a rope to scale, with the length that the config (or its class) states.
WITHOUT_ROPE: dict[str, tuple[str, int]] = {
    "bloom-560m": ("alibi", 2048),
    "falcon-rw-1b": ("alibi", 2048),
    "gpt2": ("learned", 1024),
    "mpt-7b": ("alibi", 2048),
    "opt-125m": ("learned", 2048),
}

#: These have a rope that no config can change.
HARD_CODED = ("codegen-350M-mono", "gpt-j-6b")


def test_every_config_is_expected_somewhere() -> None:
    assert set(NAMES) == {*WANTED, *WITHOUT_ROPE, *HARD_CODED}


@pytest.mark.parametrize("name", WANTED)
def test_lengths_and_cache(name: str) -> None:
    found, want = inspected(name), WANTED[name]
    assert found.position == "rope"
    assert (found.trained_context, found.current_context) == (want.trained, want.current)
    assert found.kv_cache is not None
    assert found.kv_cache.bytes_per_token == want.kv_bytes


@pytest.mark.parametrize("name", WANTED)
def test_groups(name: str) -> None:
    found = []
    for group in inspected(name).groups:
        scaling = None if group.scaling is None else str(type(group.scaling).__struct_config__.tag)
        if group.spec is None:
            found.append(Rope(group.label, group.layers, None))
            continue
        spec = group.spec
        found.append(
            Rope(
                group.label,
                group.layers,
                spec.rope_theta,
                spec.head_dim,
                spec.rotary_dim,
                scaling,
                group.origin,
                group.window,
            )
        )
    assert {rope.label: rope for rope in found} == {rope.label: rope for rope in WANTED[name].groups}


@pytest.mark.parametrize("name", WITHOUT_ROPE)
def test_without_a_rope(name: str) -> None:
    found = inspected(name)
    assert (found.position, found.trained_context) == WITHOUT_ROPE[name]
    assert found.groups == ()
    assert f"position-{found.position}" in [note.code for note in found.notes]


@pytest.mark.parametrize("name", HARD_CODED)
def test_a_rope_that_is_hard_coded(name: str) -> None:
    found = inspected(name)
    assert found.position == "rope"
    assert "10000" in found.notes[-1].message


def test_windows_bound_the_cache() -> None:
    """Gemma 3 4B at 131072: 29 layers keep 1024 tokens, 5 keep all; 2 x 4 heads x 256 x 2 bytes = 4096 each."""
    cache = inspected("gemma-3-4b-it").kv_cache
    assert cache is not None
    assert cache.size_bytes(131072) == (29 * 1024 + 5 * 131072) * 4096 == 2_805_989_376
    assert cache.size_bytes(1000) == 34 * 1000 * 4096


def test_what_fits() -> None:
    """Llama 3.1 8B keeps 131072 bytes a token: 1 GiB holds 8192 tokens."""
    cache = inspected("Llama-3.1-8B-Instruct").kv_cache
    assert cache is not None
    assert cache.longest(1 << 30) == 8192


def test_deepseek_keeps_a_fiftieth_of_what_its_heads_would() -> None:
    """70272 bytes a token, where 128 heads of 192 and 128 would take 61 x 128 x (192 + 128) x 2."""
    cache = inspected("DeepSeek-V3").kv_cache
    assert cache is not None
    assert cache.bytes_per_token == 70272
    assert 50 * cache.bytes_per_token < 61 * 128 * (192 + 128) * BYTES


def test_the_parameters_of_trained_in_scalings() -> None:
    scout = group_of(inspected("Llama-4-Scout-17B-16E-Instruct"), "chunked_attention").scaling
    # Equal bounds: a step instead of a blend.
    assert scout == Llama3(
        factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=8192
    )
    oss = group_of(inspected("gpt-oss-20b"), "full_attention").scaling
    assert oss == Yarn(factor=32.0, original_max_position_embeddings=4096, truncate=False)
    lite = group_of(inspected("DeepSeek-V2-Lite"), "full_attention").scaling
    assert lite == Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707)
    phi = group_of(inspected("Phi-3.5-mini-instruct"), "sliding_attention").scaling
    assert isinstance(phi, LongRope)
    assert (phi.original_max_position_embeddings, phi.factor) == (4096, 131072 / 4096)
    assert (phi.short_factor[0], phi.long_factor[-1]) == (1.0, 64.83999633789062)


def test_the_vendor_spelling_su_is_longrope() -> None:
    source = contents("Phi-3.5-mini-instruct")
    source = changed(source, rope_scaling={**source.config["rope_scaling"], "type": "su"})
    renamed = group_of(inspected(source), "sliding_attention")
    assert renamed == group_of(inspected("Phi-3.5-mini-instruct"), "sliding_attention")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Qwen3-8B", "length-overstated"),
        ("Qwen2.5-VL-7B-Instruct", "length-overstated"),
        ("c4ai-command-r-v01", "length-understated"),
        ("Qwen3-8B-card-yarn", "length-mismatch"),
        ("Llama-2-7b-yarn-unraised", "length-mismatch"),
        ("Ministral-3-3B-Reasoning-2512", "new-form-only"),
        ("DeepSeek-V3", "quantised"),
        ("DeepSeek-V3", "draft-layers"),
        ("gpt-oss-20b", "sliding-window"),
        ("c4ai-command-r7b-12-2024", "family"),
    ],
)
def test_what_is_remarkable_is_said(name: str, code: str) -> None:
    assert code in [note.code for note in inspected(name).notes]


def test_how_the_length_is_known_is_always_said() -> None:
    known = {"trained-context", "length-overstated", "length-understated"}
    for name in WANTED:
        assert known & {note.code for note in inspected(name).notes}, name


def test_treating_a_model_as_another_family() -> None:
    """A fine-tune with a model type of its own: refused by name, read alike with --family."""
    source = changed(contents("Llama-3.1-8B-Instruct"), model_type="acme_llama")
    with pytest.raises(CtxextendError):
        inspected(source)
    treated = inspected(source, Recipe(family="llama"))
    assert treated.groups == inspected("Llama-3.1-8B-Instruct").groups
