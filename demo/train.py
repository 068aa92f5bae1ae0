"""Train the demo checkpoint: a small Llama-architecture model of Jane Austen's prose.

The text is that of Debian's ``r-cran-janeaustenr`` (six novels, public domain), given as the
``.deb`` itself or as a directory it was unpacked into. Five novels are trained on; Persuasion is
held out completely, and its first chapters are written to ``heldout.txt`` for measuring. Every
training sequence is exactly 256 tokens long, so position 255 is the last one the model ever sees.

    apt-get download r-cran-janeaustenr
    python demo/train.py r-cran-janeaustenr_*.deb

``--positions learned`` and ``--positions alibi`` train models of the same size with a table of positions (GPT-2's
architecture) and with ALiBi (BLOOM's), for measuring what an extension of those does: docs/evidence.md.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import struct
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HELD_OUT = "persuasion"
HELD_OUT_BYTES = 100_000
BOS, EOS = "<s>", "</s>"
CONTEXT = 256

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": CONTEXT,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}

#: GPT-2's architecture, whose table has a row for each of the positions.
LEARNED: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "embd_pdrop": 0.0,
    "eos_token_id": 1,
    "model_type": "gpt2",
    "n_embd": 128,
    "n_head": 4,
    "n_layer": 4,
    "n_positions": CONTEXT,
    "resid_pdrop": 0.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 2048,
}

#: BLOOM's architecture, whose heads are biased against distance.
ALIBI: dict[str, Any] = {
    "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_dropout": 0.0,
    "hidden_size": 128,
    "model_type": "bloom",
    "n_head": 4,
    "n_layer": 4,
    "seq_length": CONTEXT,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 2048,
}

CONFIGS = {"rope": CONFIG, "learned": LEARNED, "alibi": ALIBI}

GENERATION_CONFIG: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1}

TOKENIZER_CONFIG: dict[str, Any] = {
    "add_prefix_space": False,
    "bos_token": BOS,
    "clean_up_tokenization_spaces": False,
    "eos_token": EOS,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": CONTEXT,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    seed: int


# ---------------------------------------------------------------------------------- the novels


def read_rdb(source: Path) -> bytes:
    """The package's R data file, from a ``.deb`` or from below a directory."""
    if source.is_dir():
        return next(iter(sorted(source.rglob("data/Rdata.rdb")))).read_bytes()
    archive = source.read_bytes()
    position = len(b"!<arch>\n")
    while position < len(archive):
        name = archive[position : position + 16]
        size = int(archive[position + 48 : position + 58])
        position += 60
        if name.startswith(b"data.tar"):
            return _from_tar(archive[position : position + size])
        position += size + size % 2
    raise ValueError(f"{source} has no data.tar member")


def _from_tar(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if member.name.endswith("data/Rdata.rdb") and stream is not None:
                return stream.read()
    raise ValueError("the package holds no data/Rdata.rdb")


def r_objects(rdb: bytes) -> Iterator[bytes]:
    """The serialised objects of an R lazy-load file: each a length and a zlib stream."""
    while rdb:
        stream = zlib.decompressobj()
        yield stream.decompress(rdb[4:])
        rdb = stream.unused_data


def r_strings(data: bytes) -> list[str]:
    """The character vector in ``data``, R's XDR serialisation (version 3) of one."""
    start = 18 + struct.unpack_from(">I", data, 14)[0]
    kind, count = struct.unpack_from(">II", data, start)
    if data[:6] != b"X\n\0\0\0\3" or kind & 0xFF != 16:
        raise ValueError("not a serialised character vector")
    position, strings = start + 8, []
    for _ in range(count):
        length = max(0, struct.unpack_from(">i", data, position + 4)[0])
        strings.append(data[position + 8 : position + 8 + length].decode("utf-8"))
        position += 8 + length
    return strings


def clean(lines: list[str]) -> str:
    """A novel from its first chapter to its last word, one paragraph a line."""
    text = "\n".join(lines)
    first = re.search(r"^ *chapter (1|i)\b", text, re.IGNORECASE | re.MULTILINE)
    text = text[first.start() if first else 0 :]
    ending = r"\n *(?:finis|the end|a note on the text)\.? *(?:\n|$)"
    text = re.split(ending, text, flags=re.IGNORECASE)[0]
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p and not re.fullmatch(r"VOLUME [IVX]+", p))


def read_novels(source: Path) -> dict[str, str]:
    """The six novels by title, in lower case."""
    vectors = [r_strings(item) for item in r_objects(read_rdb(source))]
    return {lines[0].strip().lower(): clean(lines) for lines in vectors}


def first_chapters(text: str, limit: int) -> str:
    """As many whole chapters from the start of ``text`` as fit in ``limit`` bytes."""
    headings = re.finditer(r"^chapter \d+$", text, re.IGNORECASE | re.MULTILINE)
    ends = [match.start() for match in headings]
    return text[: max(end for end in ends if end <= limit)].rstrip() + "\n"


# ------------------------------------------------------------------------- tokenizer and model


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer; ``<s>`` is token 0 and ``</s>`` token 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one stream of tokens, ``<s>`` before and ``</s>`` after each."""
    return torch.tensor([i for text in texts for i in tokenizer.encode(f"{BOS}{text}{EOS}").ids])


def next_token_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of every next token in rows of ``CONTEXT + 1`` tokens."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def crops(stream: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Random stretches of the stream; half begin with ``<s>``, half in mid-text."""
    starts = torch.randint(0, len(stream) - CONTEXT, (batch, 1), generator=generator)
    tokens = stream[starts + torch.arange(CONTEXT + 1)]
    tokens[: batch // 2, 0] = CONFIG["bos_token_id"]
    return tokens


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, stream: torch.Tensor, rows: int = 32) -> float:
    """Mean loss within the trained context, on the first ``rows`` stretches of ``stream``."""
    tokens = stream[: rows * (CONTEXT + 1)].view(rows, CONTEXT + 1)
    losses = [next_token_loss(model, part) for part in tokens.view(-1, 8, CONTEXT + 1)]
    return torch.stack(losses).mean().item()


def build_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays the matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def cosine(step: int, recipe: Recipe) -> float:
    """The learning rate's factor: linear warm-up, then a cosine down to a twentieth."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def train(
    config: dict[str, Any], train_stream: torch.Tensor, held_out: torch.Tensor, recipe: Recipe
) -> PreTrainedModel:
    """Train from scratch, printing the losses every 250 steps."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]].from_dict(config))
    model.float()
    optimizer = build_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, recipe))
    began, recent = time.monotonic(), 0.0
    for step in range(1, recipe.steps + 1):
        loss = next_token_loss(model, crops(train_stream, recipe.batch, generator))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent += (loss.item() - recent) / min(step, 100)
        if step % 250 == 0 or step == recipe.steps:
            held = held_out_loss(model, held_out)
            minutes = (time.monotonic() - began) / 60
            print(f"{step:6d} {minutes:6.1f} min  train {recent:.3f}  held {held:.3f}", flush=True)
    return model


# ------------------------------------------------------------------------------ the checkpoint


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON, indented by two."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save(model: PreTrainedModel, config: dict[str, Any], tokenizer: Tokenizer, directory: Path) -> None:
    """Write the checkpoint as a published one is laid out, weights in the type that its config names."""
    directory.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, config["torch_dtype"])
    tensors = {
        name: tensor.to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", GENERATION_CONFIG)
    write_json(directory / "tokenizer_config.json", TOKENIZER_CONFIG)


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("source", type=Path, help="the .deb, or where it was unpacked")
    parser.add_argument("--output", type=Path, default=here, help="default: beside this script")
    parser.add_argument("--positions", choices=list(CONFIGS), default="rope")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Read the novels, train, and write the checkpoint and the held-out text."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    novels = read_novels(options.source)
    held_out = novels.pop(HELD_OUT)
    tokenizer = train_tokenizer(list(novels.values()), CONFIG["vocab_size"])
    stream = encode(tokenizer, list(novels.values()))
    recipe = Recipe(
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        warmup=min(200, options.steps // 10),
        weight_decay=0.1,
        seed=options.seed,
    )
    print(f"{len(stream)} tokens of {', '.join(novels)}; {recipe}", flush=True)
    config = CONFIGS[options.positions]
    model = train(config, stream, encode(tokenizer, [held_out]), recipe)
    save(model, config, tokenizer, options.output / "checkpoint")
    excerpt = first_chapters(held_out, HELD_OUT_BYTES)
    (options.output / "heldout.txt").write_text(excerpt, encoding="utf-8")


if __name__ == "__main__":
    main()
