"""What llama.cpp does with the rope keys of each GGUF architecture: one row each, and no formulas.

Source: llama.cpp b11434: ``src/models/*.cpp`` (which tensors an architecture loads and what its graph
passes to ``ggml_rope_ext``), ``src/llama-model.cpp`` (``llama_model_rope_type``, ``get_rope_factors``) and
``src/llama-arch.cpp`` (names). An architecture without a row was not read, and nothing is claimed of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

from ctxextend.rope import Pairing

#: Which frequency tensors a file may hold. ``freqs``: rope_freqs. ``lists``: rope_factors_long and _short,
#: whatever the type. ``either``: the lists when the type is longrope, else rope_freqs. ``ignored``: as
#: ``freqs``, or as ``either`` with ``lists_too``, but the graph uses none. ``required``: rope_freqs must be there.
Factors = Literal["none", "freqs", "lists", "either", "ignored", "required"]

#: When an architecture has sliding layers: always, or when ``attention.sliding_window`` is there and not 0,
#: unless that key is there and 0, or in models of 64 layers.
When = Literal["always", "stated", "unless-zero", "64-layers"]


class Sliding(Struct, frozen=True, kw_only=True):
    """The sliding layers of an architecture.

    ``period``: every such layer is full, the last of each run or (``dense_first``) the first; None: an
    array in the file must say. ``theta``: what their base is without ``rope.freq_base_swa``, None for the
    full layers'; ``reads_theta`` False where that key is dead. ``scaled``: the factor reaches them.
    ``tempered``: attention factors reach them. ``factors``: frequency tensors do. ``alone``: only they have
    a rope.
    """

    period: int | None
    when: When = "always"
    dense_first: bool = False
    theta: float | None = None
    reads_theta: bool = True
    scaled: bool
    tempered: bool = True
    factors: bool = True
    alone: bool = False


class GgufArchitecture(Struct, frozen=True, kw_only=True):
    """One architecture.

    ``reads``: the keys under ``rope.scaling.`` that only some architectures read. ``log_multiplier``: what
    the file's ``yarn_log_multiplier`` is divided by; ``scales_own_log``: with that weight not 1, it is
    taken for ``mscale`` as well. ``latent``: softmax is scaled by the temperature (latent attention).
    ``switched``: ``finetuned`` false turns the rope off. ``full_head``: the loader wants all of a head rotated.
    ``unrotated_every``: layers without a rope. ``temperature_by_original``: queries are scaled by position
    over the original length. ``alpha``: ``rope.scaling.alpha`` changes the base. ``position``: how positions
    reach attention where no layer has a rope. ``alibi_layers``: a model of so many layers has ALiBi instead.
    """

    name: str
    pairing: Pairing = "half"
    factors: Factors = "none"
    lists_too: bool = False
    sliding: Sliding | None = None
    reads: frozenset[str] = frozenset()
    log_multiplier: float | None = None
    scales_own_log: bool = False
    latent: bool = False
    switched: bool = False
    full_head: bool = False
    unrotated_every: int | None = None
    temperature_by_original: bool = False
    alpha: bool = False
    position: Literal["rope", "learned", "alibi"] = "rope"
    alibi_layers: int | None = None


_BETAS: Final = frozenset({"yarn_beta_fast", "yarn_beta_slow"})

#: Plain ropes over interleaved pairs (LLAMA_ROPE_TYPE_NORM) that load no frequency tensor.
_PLAIN_INTERLEAVED: Final = (
    "arctic",
    "bailingmoe",
    "chameleon",
    "chatglm",
    "command-r",
    "deepseek",
    "ernie4_5",
    "ernie4_5-moe",
    "glm4",
    "internlm2",
    "maincoder",
    "olmo",
    "plm",
    "xverse",
)

#: Plain ropes over split pairs (LLAMA_ROPE_TYPE_NEOX, and MROPE and IMROPE, which agree with it on text).
_PLAIN_HALF: Final = (
    "bailingmoe2",
    "bitnet",
    "codeshell",
    "dbrx",
    "dots1",
    "dream",
    "gemma",
    "glm4moe",
    "gptneox",
    "grovemoe",
    "hunyuan-moe",
    "hy_v3",
    "jais2",
    "lfm2",
    "lfm2moe",
    "llada-moe",
    "minimax-m2",
    "nemotron",
    "olmoe",
    "openelm",
    "orion",
    "phi2",
    "plamo2",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen35",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen3vl",
    "qwen3vlmoe",
    "rnd1",
    "seed_oss",
    "stablelm",
    "starcoder2",
)

_ROWS: Final = (
    *(GgufArchitecture(name=name, pairing="interleaved") for name in _PLAIN_INTERLEAVED),
    *(GgufArchitecture(name=name) for name in _PLAIN_HALF),
    GgufArchitecture(name="afmoe", unrotated_every=4, sliding=Sliding(period=4, when="stated", scaled=True)),
    GgufArchitecture(name="apertus", factors="either"),
    GgufArchitecture(name="arcee", pairing="interleaved", factors="freqs"),
    # Baichuan-13B is told from the 7B by its layers.
    GgufArchitecture(name="baichuan", pairing="interleaved", alibi_layers=40),
    GgufArchitecture(name="cohere2", pairing="interleaved", sliding=Sliding(period=4, scaled=True, alone=True)),
    GgufArchitecture(name="deci", pairing="interleaved", factors="either", full_head=True),
    GgufArchitecture(name="deepseek2", pairing="interleaved", log_multiplier=0.1, scales_own_log=True, latent=True),
    GgufArchitecture(name="deepseek32", pairing="interleaved", log_multiplier=0.1, latent=True),
    GgufArchitecture(name="exaone", factors="freqs"),
    GgufArchitecture(
        name="exaone-moe",
        factors="freqs",
        sliding=Sliding(period=4, reads_theta=False, scaled=True, alone=True),
    ),
    GgufArchitecture(
        name="exaone4",
        factors="freqs",
        sliding=Sliding(period=4, when="64-layers", reads_theta=False, scaled=True, alone=True),
    ),
    GgufArchitecture(name="falcon", full_head=True),
    GgufArchitecture(name="falcon-h1", factors="ignored"),
    GgufArchitecture(name="gemma2", sliding=Sliding(period=2, scaled=True)),
    GgufArchitecture(name="gemma3", sliding=Sliding(period=6, when="stated", theta=10000.0, scaled=False)),
    GgufArchitecture(name="gemma3n", sliding=Sliding(period=5, theta=10000.0, scaled=False)),
    GgufArchitecture(
        name="gemma4",
        factors="required",
        sliding=Sliding(period=None, theta=10000.0, scaled=False, factors=False),
    ),
    GgufArchitecture(name="glm-dsa", pairing="interleaved", latent=True),
    GgufArchitecture(name="gpt-oss", sliding=Sliding(period=2, scaled=True)),
    GgufArchitecture(name="granite", pairing="interleaved", factors="either", switched=True),
    GgufArchitecture(
        name="granite_swa",
        pairing="interleaved",
        factors="either",
        sliding=Sliding(period=None, reads_theta=False, scaled=True),
    ),
    GgufArchitecture(name="granitehybrid", pairing="interleaved", factors="freqs", switched=True),
    GgufArchitecture(name="granitemoe", pairing="interleaved", factors="either"),
    GgufArchitecture(
        name="grok",
        reads=_BETAS | {"yarn_ext_factor", "yarn_attn_factor"},
    ),
    *(GgufArchitecture(name=name, alpha=True) for name in ("hunyuan-dense", "hunyuan_vl")),
    GgufArchitecture(
        name="laguna",
        sliding=Sliding(period=4, when="stated", dense_first=True, scaled=False, tempered=False),
    ),
    GgufArchitecture(name="llada", pairing="interleaved", factors="ignored"),
    GgufArchitecture(name="llama", pairing="interleaved", factors="either", full_head=True),
    GgufArchitecture(name="llama-embed", pairing="interleaved", factors="either", full_head=True),
    GgufArchitecture(
        name="llama4",
        pairing="interleaved",
        factors="freqs",
        unrotated_every=4,
        sliding=Sliding(period=4, when="unless-zero", scaled=True),
    ),
    GgufArchitecture(
        name="mellum",
        sliding=Sliding(period=4, when="stated", reads_theta=False, scaled=False, tempered=False),
    ),
    GgufArchitecture(name="mimo2", sliding=Sliding(period=None, theta=10000.0, scaled=False)),
    GgufArchitecture(name="minicpm", pairing="interleaved", factors="either"),
    GgufArchitecture(name="minicpm3", factors="lists"),
    GgufArchitecture(
        name="mistral3",
        pairing="interleaved",
        factors="either",
        reads=_BETAS,
        log_multiplier=1.0,
        temperature_by_original=True,
    ),
    GgufArchitecture(name="mistral4", pairing="interleaved", log_multiplier=0.1, latent=True),
    GgufArchitecture(name="nanbeige", pairing="interleaved", factors="freqs"),
    GgufArchitecture(
        name="olmo2",
        sliding=Sliding(period=4, when="stated", reads_theta=False, scaled=False, tempered=False),
    ),
    GgufArchitecture(name="pangu-embedded", factors="ignored", lists_too=True),
    GgufArchitecture(name="phi3", factors="lists"),
    GgufArchitecture(name="phimoe", factors="lists"),
    GgufArchitecture(name="plamo3", sliding=Sliding(period=8, when="stated", theta=10000.0, scaled=False)),
    GgufArchitecture(
        name="smallthinker",
        sliding=Sliding(period=4, when="stated", dense_first=True, scaled=True, alone=True),
    ),
    GgufArchitecture(name="smollm3", pairing="interleaved", unrotated_every=4),
)

ARCHITECTURES: Final[Mapping[str, GgufArchitecture]] = MappingProxyType({row.name: row for row in _ROWS})

#: Those without a rope. ``learned``: a table with one row a token of ``context_length``; ``alibi``: a penalty by
#: distance, of any length. An mpt with a table (``position_embd.weight``) adds that instead.
WITHOUT_ROPE: Final[Mapping[str, GgufArchitecture]] = MappingProxyType(
    {
        "bert": GgufArchitecture(name="bert", position="learned"),
        "bloom": GgufArchitecture(name="bloom", position="alibi"),
        "gpt2": GgufArchitecture(name="gpt2", position="learned"),
        "jais": GgufArchitecture(name="jais", position="alibi"),
        "jina-bert-v2": GgufArchitecture(name="jina-bert-v2", position="alibi"),
        "mpt": GgufArchitecture(name="mpt", position="alibi"),
        "refact": GgufArchitecture(name="refact", position="alibi"),
        "starcoder": GgufArchitecture(name="starcoder", position="learned"),
    }
)

#: Those whose graph asserts that all of a head is rotated (``n_embd_head == n_rot``): another file aborts it.
WHOLE_HEADS: Final = frozenset(
    (
        "apertus",
        "arcee",
        "arctic",
        "baichuan",
        "chameleon",
        "codeshell",
        "dbrx",
        "deci",
        "deepseek",
        "dots1",
        "dream",
        "ernie4_5",
        "ernie4_5-moe",
        "exaone",
        "exaone-moe",
        "exaone4",
        "falcon",
        "granite",
        "granite_swa",
        "granitemoe",
        "grok",
        "grovemoe",
        "hunyuan-dense",
        "hunyuan-moe",
        "hunyuan_vl",
        "hy_v3",
        "internlm2",
        "jais2",
        "llada",
        "llada-moe",
        "llama",
        "llama-embed",
        "llama4",
        "maincoder",
        "mellum",
        "minicpm",
        "mistral3",
        "olmo",
        "olmo2",
        "olmoe",
        "orion",
        "pangu-embedded",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen3moe",
        "qwen3vl",
        "qwen3vlmoe",
        "rnd1",
        "seed_oss",
        "smallthinker",
        "smollm3",
        "starcoder2",
        "xverse",
    )
)

#: Names that llama.cpp b11434 knows beside the rows: ropes that were not read, and models without a rope.
UNREAD: Final = frozenset(
    (
        "arwkv7",
        "bailingmoe3",
        "clef",
        "clip",
        "cogvlm",
        "cohere2moe",
        "deepseek2-ocr",
        "deepseek4",
        "dflash",
        "dots3note",
        "eagle3",
        "eurobert",
        "gemma-embedding",
        "gemma4-assistant",
        "glm5-next",
        "gptj",
        "graniteswitch",
        "hrm_text",
        "hy_v4",
        "jamba",
        "jina-bert-v3",
        "kimi-k3",
        "kimi-linear",
        "mamba",
        "mamba2",
        "maple",
        "minimax-01",
        "minimax-m3",
        "modern-bert",
        "muse-glimmer",
        "nemotron_h",
        "nemotron_h_moe",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "paddleocr",
        "plamo",
        "pockettts",
        "qwen3tts",
        "qwen4exp",
        "rwkv6",
        "rwkv6qwen2",
        "rwkv7",
        "spark2_5",
        "step35",
        "t5",
        "t5encoder",
        "talkie",
        "wavtokenizer-dec",
    )
)

#: What llama.cpp's converter calls the architecture of each family (``conversion/*.py``, b11434). A family
#: that isn't here has none, or one whose rope was not read; of some it knows a few model types alone
#: (``runtimes/position_limits.py``).
OF_FAMILY: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bert": "bert",
        "bloom": "bloom",
        "cohere": "command-r",
        "cohere2": "cohere2",
        "deepseek_v2": "deepseek2",
        "deepseek_v3": "deepseek2",
        "distilbert": "bert",
        "falcon": "falcon",
        "gemma": "gemma",
        "gemma2": "gemma2",
        "gemma3": "gemma3",
        "glm4": "glm4",
        "gpt2": "gpt2",
        "gpt_bigcode": "starcoder",
        "gpt_neox": "gptneox",
        "gpt_oss": "gpt-oss",
        "granite": "granite",
        "internlm3": "llama",
        "llama": "llama",
        "llama4": "llama4",
        "ministral3": "mistral3",
        "mistral": "llama",
        "mixtral": "llama",
        "mpt": "mpt",
        "nemotron": "nemotron",
        "olmo": "olmo",
        "olmo2": "olmo2",
        "olmo3": "olmo2",
        "phi": "phi2",
        "phi3": "phi3",
        "qwen2": "qwen2",
        "qwen2_5_vl": "qwen2vl",
        "qwen2_moe": "qwen2moe",
        "qwen2_vl": "qwen2vl",
        "qwen3": "qwen3",
        "qwen3_moe": "qwen3moe",
        "roberta": "bert",
        "smollm3": "smollm3",
        "stablelm": "stablelm",
        "starcoder2": "starcoder2",
    }
)
