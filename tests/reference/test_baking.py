"""Baked weights under a config without a temperature give the logits of the unbaked ones under one with it.

Every family that can be baked, as a tiny random model that transformers builds, saves and reads: once with a scaling
whose attention factor is 1.3, once with the same scaling at 1 and the changed tensors, past the trained length. The
tensors are changed by :mod:`tests.baking.applying`, in double precision.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import pytest
import torch
from mlx_lm.utils import load_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from ctxextend.baking import Fold, fold_temperature, why_not
from ctxextend.changes import ScaleTensor
from ctxextend.contents import Contents
from ctxextend.errors import RefusedError
from ctxextend.families import FAMILIES, Family
from ctxextend.formats.hf_read import read_rope
from ctxextend.recipe import Recipe
from ctxextend.scaling import table
from tests.baking.applying import applied, multiplied
from tests.factories import contents, converted, family_config, planned
from tests.reference.mlx_keys import COMMON, OWN
from tests.reference.test_transformers_families import code_of, language_model

FACTOR: Final = 1.3
TRAINED, TARGET, RUN = 64, 256, 80
#: Of the largest logit: float32 rounds at 6e-8, and a few dozen operations stand between a query and a logit.
FLOAT32: Final = 1e-4
#: What the temperature itself changes at least, of the largest logit: else nothing is shown.
NOTICED: Final = 1e-3

Tensors = dict[str, torch.Tensor]

#: Every family with a rope that has no reason against it.
BAKED: Final = sorted(
    name for name, row in FAMILIES.items() if row.position == "rope" and row.refusal is None and why_not(row) is None
)
#: Families whose layouts differ: each way in which queries are laid out once.
EVERYDAY: Final = (
    "llama",  # a projection of queries
    "qwen2",  # with a bias
    "qwen3",  # a norm over each head
    "gemma3",  # stored without its 1
    "olmo2",  # over all heads
    "glm4",  # a part of each head, in interleaved pairs
    "phi3",  # queries, keys and values joined
    "gpt_neox",  # head by head, a part of each
    "falcon",  # group by group
    "deepseek_v3",  # latent
    "deepseek_v32",  # latent, and an index
    "axk2",  # latent, and gates among the queries
    "gemma4",  # a rope that is proportional
    "longcat_flash",  # two a layer
)
#: What a family's config says beside what builds it.
CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2},
    "chameleon": {
        "vocabulary_map": {"<image>": 90, "IMGIMGA": 91},
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1],
            "embed_dim": 8,
            "latent_channels": 8,
            "num_embeddings": 8,
            "num_res_blocks": 1,
        },
    },
    "evolla": {
        "protein_encoder_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
        },
        "aligner_num_add_layers": 1,
        "resampler_depth": 1,
        "resampler_dim_head": 8,
        "resampler_heads": 2,
        "resampler_num_latents": 4,
    },
    # What it stores joined is taken apart again in three equal parts.
    "gradium_phonon_tts": {"num_key_value_heads": 2},
    "llama4": {"use_qk_norm": False},
    "longcat_flash": {"moe_topk": 2},
    "ministral": {"sliding_window": 4096},
    "qwen2_5_vl": {"rope_scaling": {"rope_type": "default", "mrope_section": [8, 4, 4]}},
    "qwen2_vl": {"rope_scaling": {"rope_type": "default", "mrope_section": [8, 4, 4]}},
    # Its class turns whole heads alone, whatever the share says.
    "solar_open": {"partial_rotary_factor": 1.0},
}
#: Configs of which AutoModel makes nothing, or far more than the language model.
LANGUAGE_MODEL: Final = {"csm": "CsmBackboneModel", "evolla": "EvollaModel"}
#: Other layouts of a family, by what its config says.
VARIANTS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "a norm for each head (cohere)": ("cohere", {"use_qk_norm": True}),
    "queries that aren't compressed (deepseek_v2)": ("deepseek_v2", {"q_lora_rank": None}),
    "one key for all heads (falcon)": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "a key for each head, with a bias (falcon)": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "bias": True},
    ),
    "two groups (falcon)": ("falcon", {"num_attention_heads": 4, "num_kv_heads": 2, "bias": True}),
    "a norm of a part (glm4_moe)": ("glm4_moe", {"use_qk_norm": True, "attention_bias": True}),
    "a bias of keys (deepseek_v3)": ("deepseek_v3", {"attention_bias": True}),
    "a bias (llama)": ("llama", {"attention_bias": True}),
    "pairs that are halves (youtu)": ("youtu", {"rope_interleave": False}),
    "a norm over all heads (molmo2)": ("molmo2", {"qk_norm_type": "olmo"}),
    "a norm with a bias (phi)": ("phi", {"qk_layernorm": True}),
    "no norm (persimmon)": ("persimmon", {"qk_layernorm": False}),
    "a norm a head (stablelm)": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "a part of joined heads (phi3)": ("phi3", {"partial_rotary_factor": 0.5, "num_attention_heads": 4}),
    "adapters (zamba2)": (
        "zamba2",
        {
            "use_shared_attention_adapter": True,
            "num_key_value_heads": 2,
            "num_mem_blocks": 1,
            "num_hidden_layers": 3,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        },
    ),
}


def _assistant(tokens: torch.Tensor, model: Any) -> dict[str, Any]:
    hidden, layers = model.config.hidden_size, len(model.config.target_layer_ids)
    generator = torch.Generator().manual_seed(1)
    return {
        "attention_mask": {"full_attention": None, "sliding_attention": None},
        "noise_embeds": torch.randn(1, 16, hidden, generator=generator),
        "context_hidden_states": torch.randn(1, tokens.shape[1] - 16, hidden * layers, generator=generator),
    }


#: What models take that isn't tokens alone.
INPUTS: Final[Mapping[str, Callable[[torch.Tensor, Any], dict[str, Any]]]] = {
    "csm": lambda tokens, model: {"input_ids": tokens[..., None].expand(-1, -1, model.config.num_codebooks) % 8},
    "idefics": lambda tokens, _model: {
        "input_ids": tokens,
        "pixel_values": torch.ones(1, 1, 3, 28, 28),
        "image_attention_mask": torch.ones(1, tokens.shape[1], 1, dtype=torch.long),
    },
    "kyutai_speech_to_text": lambda tokens, _model: {"input_ids": tokens[..., None].expand(-1, -1, 2) % 8},
    "muse_glimmer_assistant": _assistant,
    "voxtral_realtime": lambda tokens, model: {
        "input_ids": tokens,
        "t_cond": torch.ones(1, 1, model.config.hidden_size),
    },
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family's tiny model on disk, and its configs with the temperature and without.

    ``patched``: its config can't carry a factor (only llama3 is read, no scaling is, the rope sees a window alone),
    so the rotary modules' own number is set instead.
    """

    family: Family
    source: dict[str, Any]
    warm: dict[str, Any]
    cold: dict[str, Any]
    patched: bool
    factor: float
    kind: type[Any]
    tensors: Tensors
    folder: Path

    @property
    def contents(self) -> Contents:
        names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
        said = {name: (names[tensor.dtype], tuple(tensor.shape)) for name, tensor in self.tensors.items()}
        return contents(self.source, tensors=said)

    @property
    def folds(self) -> list[Fold]:
        """What the config with the temperature has that the other hasn't."""
        cold = {group.label: group for group in read_rope(self.cold, self.family).groups}
        found = []
        for group in read_rope(self.warm, self.family).groups:
            if group.spec is None:
                continue
            more, less = (table(group.spec, g.scaling, length=TARGET) for g in (group, cold[group.label]))
            factor = self.factor if self.patched else more.attention_factor / less.attention_factor
            softmax = more.softmax_factor / less.softmax_factor
            if (factor, softmax) != (1.0, 1.0):
                found.append(
                    Fold(
                        layers=group.layers,
                        attention_factor=factor,
                        softmax_factor=softmax,
                        rotary_dim=group.spec.rotary_dim,
                        head_dim=group.spec.head_dim,
                        layout=group.spec.layout,
                    )
                )
        return found

    @property
    def changes(self) -> tuple[ScaleTensor, ...]:
        return fold_temperature(self.contents, self.source, self.family, self.folds)

    def logits(self, config: Mapping[str, Any], tensors: Tensors, *, factor: float) -> torch.Tensor:
        """What transformers computes past the trained length, shape ``(RUN, ...)``, in float32."""
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model = self.kind.from_pretrained(folder, attn_implementation="eager").float().eval()
        if self.patched:
            set_temperature(model, factor)
        tokens = tokens_of_a_run()
        inputs = INPUTS[self.family.name](tokens, model) if self.family.name in INPUTS else {"input_ids": tokens}
        with torch.no_grad():
            found = model(**inputs)
        logits = getattr(found, "logits", None)
        result = found.last_hidden_state if logits is None else logits
        assert isinstance(result, torch.Tensor)
        return result[0]

    def warm_logits(self, tensors: Tensors | None = None) -> torch.Tensor:
        return self.logits(self.warm, tensors or self.tensors, factor=self.factor)

    def cold_logits(self, tensors: Tensors) -> torch.Tensor:
        return self.logits(self.cold, tensors, factor=1.0)


def tokens_of_a_run() -> torch.Tensor:
    """Shape ``(1, RUN)``."""
    return torch.randint(4, 90, (1, RUN), generator=torch.Generator().manual_seed(7))


def set_temperature(model: torch.nn.Module, factor: float) -> None:
    """What the language model's rotary modules multiply cosines and sines by."""
    found = 0
    for path, module in model.named_modules():
        if re.search("vision|visual|audio|codec|protein|depth|image", path):
            continue
        function = getattr(module, "rope_init_fn", None)
        if function is not None and type(module).__name__ == "PhimoeRotaryEmbedding":
            # Asked anew at every call.
            module.rope_init_fn = lambda config, function=function: (function(config)[0], factor)
            found += 1
        for name in [name for name in vars(module) if name.endswith("attention_scaling")]:
            setattr(module, name, factor)
            found += 1
    assert found


def built(config: Mapping[str, Any], folder: Path) -> Any:
    """A model of a config.json, with a head where transformers has one."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(folder)
    read._attn_implementation = "eager"
    if read.model_type in LANGUAGE_MODEL:
        return getattr(code_of(read), LANGUAGE_MODEL[read.model_type])(read)
    for auto in (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel):
        try:
            return auto.from_config(read)
        except ValueError:
            continue
    return language_model(read)(read)


def random(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Weights with which attention is sharp, and every norm and bias counts."""
    if not weight.is_floating_point():
        return weight
    if weight.ndim < 2:
        if "norm" in name or name.endswith("bias"):
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            return mean + 0.2 * torch.randn_like(weight)
        return weight
    gain = 8.0 if "embed" in name and "out" not in name else 1.5
    return torch.randn_like(weight) * gain / math.sqrt(weight.shape[-1])


def made(
    name: str,
    folder: Path,
    *,
    factor: float = FACTOR,
    dtype: torch.dtype = torch.float32,
    runtimes: tuple[str, ...] = ("transformers",),
    **own: Any,
) -> Case:
    """The case of one family. ``runtimes`` are those that the config without the temperature is written for."""
    family = FAMILIES[name]
    source = family_config(family, **{"max_position_embeddings": TRAINED, **CONFIGS.get(name, {}), **own})
    if family.form == "phi3":
        source["original_max_position_embeddings"] = TRAINED
    torch.manual_seed(3)
    model = built(source, folder / "source").to(dtype).eval()
    with torch.no_grad():
        for key, weight in sorted(model.state_dict().items()):
            weight.copy_(random(key, weight))
    model.save_pretrained(folder / "source")
    tensors: Tensors = {}
    for file in (folder / "source").glob("*.safetensors"):
        tensors |= load_file(file)
    warm, cold, patched = source, source, True
    temperature: dict[str, Any] = {"attention_factor": factor}
    if family.softmax_mscale:
        temperature |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    try:
        plan = planned(source, _recipe(temperature, ("transformers",)))
        without = planned(source, _recipe({"attention_factor": 1.0}, runtimes))
        if plan.method == without.method == "yarn":
            warm, cold, patched = converted(source, plan), converted(source, without), False
    except RefusedError:
        pass
    return Case(
        family=family,
        source=source,
        warm=warm,
        cold=cold,
        patched=patched,
        factor=factor,
        kind=type(model),
        tensors=tensors,
        folder=folder,
    )


def _recipe(options: Mapping[str, Any], runtimes: tuple[str, ...]) -> Recipe:
    # Other versions of transformers are another test's business.
    allow = ("unreadable",) if runtimes == ("transformers",) else ()
    return Recipe(method="yarn", target=TARGET, runtimes=runtimes, allow=allow, options=dict(options))


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest logit."""
    known = expected > torch.finfo(expected.dtype).min
    return float(((found - expected)[known].abs().max() / expected[known].abs().max()).item())


def agrees(case: Case) -> None:
    """Baked without the temperature is as unbaked with it, and unlike unbaked without it."""
    changes = case.changes
    assert changes
    expected = case.warm_logits()
    assert apart(case.cold_logits(applied(case.tensors, changes)), expected) < FLOAT32
    assert apart(case.cold_logits(case.tensors), expected) > NOTICED


@pytest.mark.parametrize("name", EVERYDAY)
def test_baked_weights_give_the_same_logits(name: str, tmp_path: Path) -> None:
    agrees(made(name, tmp_path))


def mask_without_window(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model asks for the mask of a window whether a layer has one or not, which fails without one."""
    if name == "kolibri1_unwindowed":
        code = importlib.import_module("transformers.models.kolibri1.modeling_kolibri1")
        monkeypatch.setattr(code, "create_sliding_window_causal_mask", code.create_causal_mask)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in BAKED if name not in EVERYDAY])
def test_baked_weights_give_the_same_logits_in_every_family(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask_without_window(name, monkeypatch)
    agrees(made(name, tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("title", VARIANTS)
def test_baked_weights_give_the_same_logits_in_other_layouts(title: str, tmp_path: Path) -> None:
    name, own = VARIANTS[title]
    agrees(made(name, tmp_path, **own))


#: Half of what a number of bfloat16 differs by from the next, of its size at most: 8 bits of mantissa.
BFLOAT16: Final = 2.0**-9


def changed_by(case: Case, sign: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """How far the logits move when every multiplied weight, still unbaked, is off by as much as bfloat16 rounds."""
    worst = {name: tensor.float() for name, tensor in case.tensors.items()}
    for change in case.changes:
        tensor = worst[change.name]
        chosen = multiplied(change, len(tensor)).reshape(-1, *[1] * (tensor.ndim - 1))
        size = 1.0 + tensor if change.added_one else tensor
        worst[change.name] = tensor + chosen * size * BFLOAT16 * sign(tensor)
    return apart(case.warm_logits(worst), case.warm_logits())


#: Models that choose experts or tokens by scores, made to choose them all: rounding can flip a choice, which moves
#: logits by far more than what is rounded. Every expert is weighed by its score then, every token attended to.
CHOOSING_ALL: Final[Mapping[str, Mapping[str, Any]]] = {
    "deepseek_v32": {"num_experts_per_tok": 2, "index_topk": RUN},
    "dots3_note": {"num_experts_per_tok": 2, "index_topk": RUN},
    "exaone_moe": {"num_experts_per_tok": 2},
    "glm_moe_dsa": {"num_experts_per_tok": 2, "index_topk": RUN},
    "qwen4_exp": {"num_experts_per_tok": 2, "indexer_budget": RUN},
    "solar_open": {"num_experts_per_tok": 2},
}
ROUNDED_EVERYDAY: Final = ("llama", "qwen3", "gemma3", "deepseek_v3")


@pytest.mark.parametrize(
    "name",
    [name if name in ROUNDED_EVERYDAY else pytest.param(name, marks=pytest.mark.full) for name in BAKED],
)
def test_what_bfloat16_loses_is_the_rounding_of_the_changed_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of bfloat16, computed with in float32, so that nothing else is rounded.

    A changed weight is off by 2**-9 of itself at most, by half of that on average, and either way; so logits move
    less than they do when every one of these weights is off by the most, with random signs. Twice the most of four
    draws is the bound, for signs that fall badly.
    """
    mask_without_window(name, monkeypatch)
    case = made(name, tmp_path, dtype=torch.bfloat16, **CHOOSING_ALL.get(name, {}))
    rounded = applied(case.tensors, case.changes)
    assert all(rounded[change.name].dtype == torch.bfloat16 for change in case.changes)
    found = apart(case.cold_logits(rounded), case.warm_logits())
    generator = torch.Generator().manual_seed(5)

    def sign(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randint(0, 2, tensor.shape, generator=generator) * 2.0 - 1.0

    bound = 2 * max(changed_by(case, sign) for _draw in range(4))
    assert found < bound
    assert apart(case.cold_logits(case.tensors), case.warm_logits()) > 4 * found


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_power_of_two_is_exact_in_bfloat16(name: str, tmp_path: Path) -> None:
    case = made(name, tmp_path, factor=2.0**0.5, dtype=torch.bfloat16)
    assert [change.factor for change in case.changes] == pytest.approx([2.0] * len(case.changes), rel=1e-12)
    agrees(case)


#: Families whose tiny models MLX-LM computes as transformers does to begin with, and what they need for that beside
#: what its arguments need: activations of the class's own, windows that aren't reached, tensors that it has.
IN_MLX: Final[Mapping[str, Mapping[str, Any]]] = {
    **{
        name: {}
        for name in (
            *("deepseek_v2", "deepseek_v3", "dots1", "ernie4_5", "gemma3", "glm4", "glm4_moe_lite", "granite"),
            *("granitemoe", "helium", "internlm3", "iquestcoder", "llama", "mellum", "minimax_m2_half", "mistral"),
            *("mixtral", "olmo2", "olmo3", "olmoe", "phi3", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3"),
            "stablelm",
        )
    },
    "cohere": {"tie_word_embeddings": True},
    "exaone4_unwindowed": {"head_dim": 32},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True, "sliding_window": 4096},
    "gpt_neox": {"attention_bias": True, "intermediate_size": 256},
    "lfm2": {"tie_word_embeddings": True},
    "minimax_m2": {"shared_intermediate_size": 16, "rotary_dim": 32},
    "phi": {"intermediate_size": 256},
    "qwen2_moe": {"norm_topk_prob": False},
    "starcoder2": {"tie_word_embeddings": True, "use_bias": True},
}
IN_MLX_EVERYDAY: Final = ("llama", "qwen3", "gemma3", "phi3")


def mlx_logits(config: Mapping[str, Any], tensors: Tensors, folder: Path) -> torch.Tensor:
    """What MLX-LM computes of the same tokens."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, _config = load_model(folder)
    return torch.tensor(model(mx.array(tokens_of_a_run().tolist())).astype(mx.float32).tolist())[0]


def agrees_in_mlx(name: str, folder: Path) -> None:
    """MLX-LM, which ignores attention factors, computes with baked weights what transformers computes unbaked."""
    common = {key: value for key, value in COMMON.items() if key != "hidden_act"}
    own = {**common, **OWN.get(name, {}), **IN_MLX[name]}
    case = made(name, folder, runtimes=("transformers", "mlx-lm"), **own)
    expected = case.warm_logits()
    found = mlx_logits(case.cold, applied(case.tensors, case.changes), folder / "mlx")
    # Its gelu and its softmax are rounded otherwise.
    assert apart(found, expected) < 1e-3
    assert apart(mlx_logits(case.cold, case.tensors, folder / "mlx"), expected) > 10 * apart(found, expected)


@pytest.mark.parametrize("name", IN_MLX_EVERYDAY)
def test_mlx_lm_computes_the_same_of_baked_weights(name: str, tmp_path: Path) -> None:
    agrees_in_mlx(name, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in IN_MLX if name not in IN_MLX_EVERYDAY])
def test_mlx_lm_computes_the_same_of_every_family(name: str, tmp_path: Path) -> None:
    agrees_in_mlx(name, tmp_path)
