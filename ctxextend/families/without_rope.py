"""The families without a rope: learned tables, tables of sinusoids, ALiBi.

Read from the modeling and configuration files of transformers 5.23; ``tests/reference/test_positions.py`` runs
each. The tables' names are those of its state dictionaries, the stale buffers those that its releases 2 to 4 saved.
"""

from __future__ import annotations

from typing import Final

from ctxextend.families.positions import Alibi, Decoder, PositionTable, Sinusoids
from ctxextend.families.row import Family

_EMBEDDINGS: Final = ("embeddings.position_embeddings.weight",)
_COUNTED: Final = ("embeddings.position_ids", "embeddings.token_type_ids")
_ENCODER_DECODER: Final = ("encoder.embed_positions.weight", "decoder.embed_positions.weight")
_COMPUTED: Final = ("embed_positions.weights",)
_CAUSAL: Final = ("attn.bias", "attn.masked_bias")
_GPT: Final = Decoder(layers=("n_layer",), width=("n_embd",))
_PLAIN: Final = Decoder(layers=("num_hidden_layers",), width=("hidden_size",))

ROWS: Final = (
    Family(
        # facebook/bart-large (1024) and its kin: rows 0 and 1 are of an offset that the class adds
        name="bart",
        model_types=("bart", "mbart", "mvp", "plbart"),
        position="learned",
        positions=PositionTable(names=_ENCODER_DECODER, default_length=1024, reserved=2),
    ),
    Family(
        # 512 rows in google-bert/bert-base-uncased and in most of its kin
        name="bert",
        model_types=(
            "albert",
            "bert",
            "bert-generation",
            "convbert",
            "electra",
            "ernie",
            "megatron-bert",
            "mobilebert",
            "rembert",
            "roc_bert",
            "splinter",
            "squeezebert",
        ),
        position="learned",
        positions=PositionTable(names=_EMBEDDINGS, default_length=512, stale=_COUNTED),
    ),
    Family(
        # microsoft/biogpt
        name="biogpt",
        model_types=("biogpt",),
        position="learned",
        positions=PositionTable(names=("embed_positions.weight",), default_length=1024, reserved=2, decoder=_PLAIN),
    ),
    Family(
        # facebook/blenderbot-400M-distill
        name="blenderbot",
        model_types=("blenderbot",),
        position="learned",
        positions=PositionTable(names=_ENCODER_DECODER, default_length=128),
    ),
    Family(
        # facebook/blenderbot_small-90M
        name="blenderbot_small",
        model_types=("blenderbot-small",),
        position="learned",
        positions=PositionTable(names=_ENCODER_DECODER, default_length=512),
    ),
    Family(
        # bigscience/bloom-560m: seq_length 2048, which transformers doesn't read
        name="bloom",
        model_types=("bloom",),
        position="alibi",
        positions=Alibi(
            length_key="seq_length",
            default_length=2048,
            heads_keys=("n_head", "num_attention_heads"),
            heads=8,
            rounded="weights",
            decoder=Decoder(layers=("n_layer", "num_hidden_layers"), width=("hidden_size", "n_embed")),
        ),
    ),
    Family(
        # Salesforce/ctrl
        name="ctrl",
        model_types=("ctrl",),
        position="sinusoidal",
        positions=PositionTable(
            names=(),
            length_key="n_positions",
            default_length=256,
            decoder=_GPT,
            sinusoids=Sinusoids(layout="halves", read=False),
        ),
    ),
    Family(
        # distilbert/distilbert-base-uncased; with sinusoidal_pos_embds the table is computed, but stored all the same
        name="distilbert",
        model_types=("distilbert",),
        position="learned",
        positions=PositionTable(
            names=_EMBEDDINGS,
            default_length=512,
            stale=_COUNTED,
            sinusoids=Sinusoids(layout="interleaved", read=True),
            sinusoids_key="sinusoidal_pos_embds",
        ),
    ),
    Family(
        # facebook/wmt19-en-de: positions are counted from the row after the padding token's
        name="fsmt",
        model_types=("fsmt",),
        position="sinusoidal",
        positions=PositionTable(
            names=_ENCODER_DECODER,
            default_length=1024,
            pad_token_id=1,
            sinusoids=Sinusoids(layout="tensor2tensor", read=True, unlimited=True, padding=True),
        ),
    ),
    Family(
        # openai-community/gpt2: n_ctx says the same, and each layer has a causal mask of [1, 1, 1024, 1024]
        name="gpt2",
        model_types=("gpt2",),
        position="learned",
        positions=PositionTable(
            names=("wpe.weight",), length_key="n_positions", default_length=1024, stale=_CAUSAL, decoder=_GPT
        ),
    ),
    Family(
        # bigcode/gpt_bigcode-santacoder
        name="gpt_bigcode",
        model_types=("gpt_bigcode",),
        position="learned",
        positions=PositionTable(
            names=("wpe.weight",),
            length_key="n_positions",
            default_length=1024,
            stale=("transformer.bias", *_CAUSAL),
            decoder=Decoder(layers=("n_layer",), width=("n_embd",), heads_key="n_head", single_key="multi_query"),
        ),
    ),
    Family(
        # EleutherAI/gpt-neo-1.3B
        name="gpt_neo",
        model_types=("gpt_neo",),
        position="learned",
        positions=PositionTable(
            names=("wpe.weight",),
            default_length=2048,
            stale=("attn.attention.bias", "attn.attention.masked_bias"),
            decoder=Decoder(layers=("num_layers",), width=("hidden_size",)),
        ),
        remark="layers that attention_types calls local see the last window_size tokens only, at any length",
    ),
    Family(
        # allenai/longformer-base-4096: 4098 rows, of which 2 are reserved as in RoBERTa
        name="longformer",
        model_types=("longformer",),
        position="learned",
        positions=PositionTable(
            names=_EMBEDDINGS,
            default_length=512,
            pad_token_id=1,
            counts_reserved=True,
            stale=_COUNTED,
        ),
        remark="each token sees attention_window tokens and those with global attention, at any length",
    ),
    Family(
        # facebook/m2m100_418M, facebook/nllb-moe-54b: a table that is computed, and grows by itself
        name="m2m_100",
        model_types=("m2m_100", "nllb-moe"),
        position="sinusoidal",
        positions=PositionTable(
            names=("encoder.embed_positions.weights", "decoder.embed_positions.weights"),
            default_length=1024,
            reserved=2,
            pad_token_id=1,
            sinusoids=Sinusoids(layout="tensor2tensor", read=False, unlimited=True, padding=True),
        ),
    ),
    Family(
        # 512 rows in Helsinki-NLP/opus-mt-en-de, 1024 in google/pegasus-large
        name="marian",
        model_types=("marian", "pegasus"),
        position="sinusoidal",
        positions=PositionTable(
            names=_ENCODER_DECODER,
            default_length=1024,
            sinusoids=Sinusoids(layout="halves", read=True),
        ),
    ),
    Family(
        # microsoft/mpnet-base: the padding token is 1 whatever config.json says
        name="mpnet",
        model_types=("mpnet",),
        position="learned",
        positions=PositionTable(
            names=_EMBEDDINGS,
            default_length=512,
            reserved=2,
            counts_reserved=True,
            stale=_COUNTED,
        ),
        remark="beside the table there is a relative bias in buckets, which goes on past the trained length",
    ),
    Family(
        # mosaicml/mpt-7b: max_seq_len 2048
        name="mpt",
        model_types=("mpt",),
        position="alibi",
        positions=Alibi(
            length_key="max_seq_len",
            default_length=2048,
            heads_keys=("n_heads", "num_attention_heads"),
            heads=16,
            layout="mosaic",
            largest_exponent_path=("attn_config", "alibi_bias_max"),
            switch_path=("attn_config", "alibi"),
            decoder=Decoder(layers=("n_layers",), width=("d_model",)),
            limits_transformers=True,
        ),
    ),
    Family(
        # openai-community/openai-gpt
        name="openai_gpt",
        model_types=("openai-gpt",),
        position="learned",
        positions=PositionTable(
            names=("positions_embed.weight",),
            length_key="n_positions",
            default_length=512,
            stale=("position_ids", "attn.bias"),
        ),
    ),
    Family(
        # facebook/opt-125m: a table of 2050 rows for 2048 tokens
        name="opt",
        model_types=("opt",),
        position="learned",
        positions=PositionTable(
            names=("decoder.embed_positions.weight",), default_length=2048, reserved=2, decoder=_PLAIN
        ),
    ),
    Family(
        # google/pegasus-x-base: computed in every forward pass
        name="pegasus_x",
        model_types=("pegasus_x",),
        position="sinusoidal",
        positions=PositionTable(
            names=(),
            default_length=16384,
            sinusoids=Sinusoids(layout="tensor2tensor", read=False, unlimited=True),
        ),
        remark="the encoder sees blocks of block_size tokens and the global ones, at any length",
    ),
    Family(
        # FacebookAI/roberta-base: max_position_embeddings is 514, of which 2 rows are reserved
        name="roberta",
        model_types=(
            "camembert",
            "data2vec-text",
            "roberta",
            "roberta-prelayernorm",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
        position="learned",
        positions=PositionTable(
            names=_EMBEDDINGS,
            default_length=512,
            pad_token_id=1,
            counts_reserved=True,
            stale=_COUNTED,
        ),
    ),
    Family(
        # facebook/xglm-564M: a table that is computed, and grows by itself
        name="xglm",
        model_types=("xglm",),
        position="sinusoidal",
        positions=PositionTable(
            names=("embed_positions.weights",),
            default_length=2048,
            decoder=Decoder(layers=("num_layers",), width=("d_model",)),
            reserved=2,
            pad_token_id=1,
            sinusoids=Sinusoids(layout="tensor2tensor", read=False, unlimited=True, padding=True),
        ),
    ),
    Family(
        # FacebookAI/xlm-mlm-en-2048, flaubert/flaubert_base_cased
        name="xlm",
        model_types=("flaubert", "xlm"),
        position="learned",
        positions=PositionTable(
            names=("position_embeddings.weight",),
            default_length=512,
            stale=("position_ids",),
            sinusoids=Sinusoids(layout="interleaved", read=True),
            sinusoids_key="sinusoidal_embeddings",
        ),
    ),
)
