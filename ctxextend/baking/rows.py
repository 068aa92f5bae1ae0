"""Where each family's queries come from, as its checkpoints name the tensors.

Source: the modeling file of each family in transformers 5.23, and ``conversion_mapping.py`` for names that differ
from the module's; tests/reference/test_baking.py runs every row. Families whose rows of a head are rotated in
pairs, interleaved or by halves, need no distinction: the rotated ones stand together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ctxextend.baking.row import Case, Form, Row, Site

_PLAIN: Final[Form] = (Site(names=("self_attn.q_proj",)),)
_NORM: Final[Form] = (Site(names=("self_attn.q_norm",)),)
_NORM_ADDED_ONE: Final = Site(names=("self_attn.q_norm",), added_one=True)

_NORM_AFTER: Final = (
    "a norm stands behind the rotation: it takes any factor out again, at run time as in the weights, so a model of "
    "this family has no attention factor to be baked"
)
_NORM_WITHOUT_WEIGHTS: Final = (
    "a norm without weights stands between the projection of its queries and the rotation: it takes any factor out "
    "of the projection again, and has none to be changed itself"
)
_CLAMP: Final = "queries are clamped (clip_qkv) between what could be multiplied and the rotation"
_CLAMPED: Final = Case(key="clip_qkv", refusal=_CLAMP)

#: Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): the rotated key stands behind the compressed vector;
#: no norm comes after it. All scores are multiplied through the queries.
_HEAD: Final = ("qk_nope_head_dim", "qk_rope_head_dim")


def _latent(under: str) -> Form:
    return (
        Site(
            names=(f"{under}kv_a_proj_with_mqa",),
            size=("kv_lora_rank", "qk_rope_head_dim"),
            before=("kv_lora_rank",),
        ),
        Site(names=(f"{under}q_b_proj", f"{under}q_proj"), factor="softmax", whole=True),
    )


_LATENT: Final = _latent("self_attn.")


def _index(name: str, *, before: tuple[str, ...] = ()) -> Site:
    """The queries of an index that chooses tokens by scores of its own, under the same rope."""
    return Site(names=(name,), size=("index_head_dim",), before=before, optional=True)


_INDEXED: Final[Form] = (*_LATENT, _index("self_attn.indexer.wq_b"))

ROWS: Final = (
    Row(
        families=(
            "arcee",
            "aria",
            "bamba",
            "bitnet",
            "cohere2",
            "cohere2_moe",
            "cohere_compass",
            "csm",
            "cwm",
            "deepseek_ocr2",
            "diffllama",
            "emu3",
            "ernie4_5",
            "ernie4_5_moe",
            "ernie4_5_vl_moe",
            "eurobert",
            "evolla",
            "falcon_h1",
            "gemma",
            "gemma2",
            "glm",
            "glm4",
            "glm4v",
            "glm4v_moe",
            "glm_image",
            "glm_ocr",
            "gpt_oss",
            "granite",
            "granite4_vision",
            "granite_docling",
            "granitemoe",
            "granitemoehybrid",
            "granitemoeshared",
            "helium",
            "higgs_audio_v2",
            "hyperclovax",
            "idefics",
            "internlm3",
            "iquestcoder",
            "jais2",
            "llama",
            "mimo_v2_flash",
            "minimax",
            "ministral",
            "ministral3",
            "mistral",
            "mixtral",
            "nemotron",
            "openai_privacy_filter",
            "paddleocr_vl",
            "phimoe",
            "qwen2",
            "qwen2_5_omni",
            "qwen2_5_vl",
            "qwen2_moe",
            "qwen2_vl",
            "seed_oss",
            "smollm3",
            "solar_open",
            "starcoder2",
            "ultrabert",
            "vaultgemma",
            "voxtral",
            "voxtral_realtime",
        ),
        forms=(_PLAIN,),
    ),
    # Layers of cross attention have no rope, and their queries another name.
    Row(families=("mllama",), forms=(_PLAIN,), every=True),
    Row(families=("olmo",), forms=(_PLAIN,), cases=(_CLAMPED,)),
    Row(families=("modernbert_decoder",), forms=((Site(names=("attn.q_proj",)),),)),
    Row(
        families=("kyutai_speech_to_text", "moshi"),
        forms=((Site(names=("self_attn.q_proj.linear",)),),),
        prefixes=("decoder",),
    ),
    # A norm over each head, or over all heads at once: either way its weights repeat by the size of a head.
    Row(
        families=(
            "afmoe",
            "apertus",
            "beam",
            "doge",
            "dots1",
            "embedding_gemma2",
            "esmc",
            "exaone4",
            "exaone4_unwindowed",
            "exaone_moe",
            "flex_olmo",
            "flint",
            "gemma3n",
            "gemma4",
            "gemma4_unified",
            "hy_v3",
            "kolibri1",
            "kolibri1_unwindowed",
            "laguna",
            "lfm3",
            "mellum",
            "minimax_m2",
            "minimax_m2_half",
            "molmo2",
            "muse_glimmer_assistant",
            "olmo2",
            "olmo3",
            "olmo_hybrid",
            "qwen3",
            "qwen3_moe",
            "qwen3_omni_moe",
            "qwen3_vl_moe",
        ),
        forms=(_NORM,),
    ),
    Row(families=("olmoe",), forms=(_NORM,), cases=(_CLAMPED,)),
    # Cosmos3's checkpoints have names of their own, also around a Qwen3-VL.
    Row(families=("cosmos3_edge",), forms=((Site(names=("self_attn.to_q", "self_attn.q_proj")),),)),
    Row(families=("qwen3_vl",), forms=((Site(names=("self_attn.q_norm", "self_attn.norm_q")),),)),
    # Its encoder and its decoder are one stack of weights.
    Row(
        families=("diffusion_gemma",),
        forms=(_NORM,),
        prefixes=("decoder", "encoder"),
        copies=True,
    ),
    Row(families=("lfm2", "lfm2_moe"), forms=((Site(names=("self_attn.q_layernorm",)),),)),
    Row(
        families=("gemma3", "qwen3_5", "qwen3_5_moe", "qwen3_next", "step3p5"),
        forms=((_NORM_ADDED_ONE,),),
    ),
    Row(
        families=("minimax_m3_vl",),
        forms=(
            (
                _NORM_ADDED_ONE,
                Site(
                    names=("self_attn.index_q_norm", "self_attn.indexer.q_norm"),
                    size=("index_head_dim",),
                    added_one=True,
                    optional=True,
                ),
            ),
        ),
    ),
    Row(
        families=("qwen4_exp",),
        forms=(
            (
                _NORM_ADDED_ONE,
                Site(
                    names=("self_attn.indexer.q_layernorm",),
                    size=("indexer_head_dim",),
                    added_one=True,
                    optional=True,
                ),
            ),
        ),
    ),
    # A weight for each head and dimension.
    Row(families=("chameleon",), forms=((Site(names=("self_attn.q_norm",), whole=True),),)),
    Row(
        families=("cohere",),
        forms=(_PLAIN,),
        cases=(Case(key="use_qk_norm", value=True, forms=((Site(names=("self_attn.q_norm",), whole=True),),)),),
    ),
    Row(
        families=("glm4_moe",),
        forms=(_PLAIN,),
        cases=(Case(key="use_qk_norm", value=True, forms=(_NORM,)),),
    ),
    Row(
        families=("phi",),
        forms=(_PLAIN,),
        cases=(Case(key="qk_layernorm", value=True, forms=((Site(names=("self_attn.q_layernorm",)),),)),),
    ),
    Row(
        families=("stablelm",),
        forms=(_PLAIN,),
        cases=(Case(key="qk_layernorm", value=True, forms=((Site(names=("self_attn.q_layernorm.norms.#",)),),)),),
    ),
    Row(families=("phi3", "phi4_multimodal"), forms=((Site(names=("self_attn.qkv_proj",), layout="joined"),),)),
    Row(families=("modernbert",), forms=((Site(names=("attn.Wqkv",), layout="joined"),),)),
    Row(
        families=("nomic_bert",),
        forms=((Site(names=("attn.Wqkv",), layout="joined"),), _PLAIN),
        prefixes=("encoder",),
    ),
    Row(
        families=("jina_embeddings_v3",),
        forms=((Site(names=("mixer.Wqkv",), layout="joined"),), _PLAIN),
        prefixes=("encoder",),
    ),
    Row(
        families=("gte",),
        forms=((Site(names=("attention.qkv_proj",), layout="joined"),), _PLAIN),
        prefixes=("encoder",),
    ),
    Row(
        families=("gradium_phonon_tts", "pocket_tts"),
        forms=((Site(names=("self_attn.in_proj",), layout="joined"),), _PLAIN),
        prefixes=("flow_lm",),
    ),
    # Gates as large as the queries stand ahead of them; two stacks take turns.
    Row(
        families=("hrm_text",),
        forms=((Site(names=("attn.gqkv_proj",), layout="joined", lead=1),), _PLAIN),
        prefixes=("H_module", "L_module"),
        copies=True,
        every=True,
    ),
    Row(
        families=("gpt_neox", "gpt_neox_japanese"),
        forms=((Site(names=("attention.query_key_value",), layout="per_head"),),),
    ),
    Row(
        families=("persimmon",),
        forms=((Site(names=("self_attn.query_key_value",), layout="per_head"),),),
        cases=(Case(key="qk_layernorm", value=True, absent=True, forms=((Site(names=("self_attn.q_layernorm",)),),)),),
    ),
    # modeling_falcon.py, FalconAttention._split_heads.
    Row(
        families=("falcon",),
        forms=((Site(names=("self_attention.query_key_value",), layout="per_head"),),),
        cases=(
            Case(
                key="new_decoder_architecture",
                value=True,
                absent=False,
                forms=((Site(names=("self_attention.query_key_value",), layout="per_group"),),),
            ),
            Case(
                key="multi_query",
                value=True,
                absent=True,
                forms=((Site(names=("self_attention.query_key_value",), layout="joined"),),),
            ),
        ),
    ),
    # The experts of its attention have projections of queries alone.
    Row(families=("jetmoe",), forms=((Site(names=("self_attention.experts.input_linear",), whole=True),),)),
    # Layers share their blocks, and add the output of an adapter to the queries.
    Row(
        families=("zamba2",),
        forms=(
            (
                Site(names=("shared_transformer.self_attn.q_proj",), whole=True),
                Site(
                    names=("shared_transformer.self_attn.linear_q_adapter_list.#.1",),
                    whole=True,
                    optional=True,
                ),
            ),
        ),
        every=True,
    ),
    Row(
        families=("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "mistral4", "youtu"),
        forms=(_LATENT,),
    ),
    Row(families=("bailing_hybrid",), forms=(_latent("attention."), _LATENT)),
    Row(families=("longcat_flash",), forms=(_latent("self_attn.#."),), every=True),
    Row(families=("deepseek_v32", "glm_moe_dsa"), forms=(_INDEXED,)),
    Row(
        families=("hy_v4",),
        forms=(
            (
                *_LATENT,
                Site(
                    names=("self_attn.indexer.wq_b",),
                    size=("index_head_dim",),
                    before=("index_head_dim", "-qk_rope_head_dim"),
                    optional=True,
                ),
            ),
        ),
    ),
    # Gates stand behind the query of each head.
    Row(
        families=("axk2",),
        forms=(
            (
                _LATENT[0],
                Site(
                    names=("self_attn.q_b_proj", "self_attn.q_gate_proj"),
                    size=(*_HEAD, "v_head_dim"),
                    taken=_HEAD,
                    factor="softmax",
                ),
                _INDEXED[-1],
            ),
        ),
    ),
    Row(
        families=("dots3_note",),
        forms=(
            (
                Site(names=("self_attn.k_rope_only_layernorm",), whole=True),
                _LATENT[1],
                _INDEXED[-1],
            ),
        ),
    ),
    # Layers share what others have cached of their keys. A softmax factor would be that of layers without a rope too.
    Row(
        families=("mistral_large4",),
        forms=(
            (
                Site(
                    names=("attention.wkv_a_with_mqa", "self_attn.kv_a_proj_with_mqa"),
                    size=("kv_lora_rank", "qk_rope_head_dim"),
                    before=("kv_lora_rank",),
                    optional=True,
                ),
                Site(
                    names=("attention.indexer.wq_b", "self_attn.indexer.wq_b"),
                    size=("index_head_dim",),
                    optional=True,
                ),
            ),
        ),
    ),
    Row(families=("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl", "nanochat"), refusal=_NORM_AFTER),
    # modeling_llama4.py: Maverick has no norm.
    Row(
        families=("llama4",),
        forms=(_PLAIN,),
        cases=(Case(key="use_qk_norm", value=True, absent=True, refusal=_NORM_AFTER),),
    ),
    Row(
        families=("deepseek_v4", "muse_glimmer", "muse_spark", "neomme", "zaya"),
        refusal=_NORM_WITHOUT_WEIGHTS,
    ),
)

#: The rows by family name.
BY_FAMILY: Final[Mapping[str, Row]] = MappingProxyType({name: row for row in ROWS for name in row.families})
