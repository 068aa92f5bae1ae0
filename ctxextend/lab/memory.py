"""What reading a text of some length needs, worked out before a weight is loaded.

Weights and cache are exact; activations are bounded by how many tokens are read at once, which is chosen
here so that no mask, no scores and no logits of a chunk grow past a budget. Sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from ctxextend.errors import RefusedError
from ctxextend.formats.hf_layers import STATELESS, whole_number
from ctxextend.formats.hf_read import text_config
from ctxextend.inspection import Inspection
from ctxextend.lengths import show_bytes, show_tokens

#: What masks, logits or the widest activations of one chunk may each take.
CHUNK_BYTES: Final = 256 << 20
SHORTEST_CHUNK: Final = 64
LONGEST_CHUNK: Final = 2048
#: On the CPU, whose matrix products are slow on few rows, and which has memory rather than time.
CPU_CHUNK_BYTES: Final = 512 << 20
LONGEST_CPU_CHUNK: Final = 1024

#: What Python, torch and its libraries take before a model is there, by measurement on Linux.
LIBRARIES_BYTES: Final = 512 << 20


#: How a model attends: by a fused kernel, without masks on a card or always with them, or with all scores written out.
Attention = Literal["lean", "masked", "eager"]

#: Model types of ours for which transformers has no fused kernel.
EAGER: Final = frozenset(
    {
        "bloom",
        "codegen",
        "deepseek_v4",
        "flint",
        "gemma2",
        "gpt_neo",
        "gpt_neox_japanese",
        "gpt_oss",
        "gptj",
        "hy_v4",
        "megatron-bert",
        "mimo_v2_flash",
        "mpt",
        "mvp",
        "openai-gpt",
        "rembert",
        "vaultgemma",
        "xglm",
        "xlm",
    }
)


class Setup(Struct, frozen=True, kw_only=True):
    """How a model will be held.

    ``weight_bytes`` and ``cache_bytes``: of a number; None: as the weights are stored, as the weights are.
    ``beside``: the tokens of a second cache, of a model that shares the weights. ``score_bytes``: what a program of
    its own holds of scores for each token of a text.
    """

    weight_bytes: int | None = None
    cache_bytes: int | None = None
    on_cpu: bool = True
    beside: int = 0
    score_bytes: int = 0


class Widths(Struct, frozen=True, kw_only=True):
    """The sizes of a model that decide how large a chunk's intermediate results are.

    ``expanded``: numbers a token that a layer makes of its cache to attend to it (latent attention); 0 where it
    reads the cache itself. ``row_bytes``: a query and key pair's mask and scores.
    """

    feed_forward: int
    vocabulary: int
    expanded: int
    row_bytes: int


class Need(Struct, frozen=True, kw_only=True):
    """What a text of ``length`` tokens takes. ``activations`` holds for a chunk at the end of the text."""

    length: int
    weights: int
    kv_cache: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.libraries


def chunk_tokens(length: int, widths: Widths, *, answers: bool, on_cpu: bool = False) -> int:
    """How many tokens of a text of ``length`` are read at once; ``answers``: with logits for each of them."""
    row = max(widths.row_bytes * length, 12 * widths.feed_forward)
    if answers:
        # The model's own logits, those in float32, and what is made of them.
        row = max(row, 12 * widths.vocabulary)
    most, budget = (LONGEST_CPU_CHUNK, CPU_CHUNK_BYTES) if on_cpu else (LONGEST_CHUNK, CHUNK_BYTES)
    return max(SHORTEST_CHUNK, min(most, budget // row // 64 * 64))


def row_bytes(attention: Attention, *, heads: int, on_cpu: bool, even: bool) -> int:
    """What a query and key pair takes in a layer. ``even``: queries and values are equally wide.

    Scores are held thrice, in 32 bits for every head. The CPU's fused kernel doesn't take uneven heads. Lean attention
    makes no mask; the stock one is given masks of bits and of numbers.
    """
    if attention == "eager" or (on_cpu and not even):
        return 12 * heads
    return 0 if attention == "lean" else 5


def same_widths(number: Callable[[str], Any]) -> bool:
    """Whether queries and values are equally wide, by what a config states: latent attention's needn't be."""
    parts = (number("qk_nope_head_dim"), number("qk_rope_head_dim"), number("v_head_dim"))
    return None in parts or parts[0] + parts[1] == parts[2]


def attention_of(inspection: Inspection) -> Attention:
    """How transformers' model will attend, told without loading it."""
    _path, text = text_config(inspection.config, inspection.family)
    if EAGER & {inspection.config.get("model_type"), text.get("model_type")}:
        return "eager"
    return "masked" if any(group.label in STATELESS for group in inspection.groups) else "lean"


def estimate(inspection: Inspection, *, length: int, setup: Setup | None = None) -> Need:
    """What reading ``length`` tokens takes."""
    setup = setup or Setup()
    weights = inspection.weight_bytes
    if setup.weight_bytes is not None and inspection.parameters is not None and inspection.quantisation is None:
        weights = inspection.parameters * setup.weight_bytes
    number = setup.cache_bytes or setup.weight_bytes or 2
    kept = 0
    if inspection.kv_cache is not None:
        kept = sum(inspection.kv_cache.size_bytes(tokens, bits=8 * number) for tokens in (length, setup.beside))
    widths = widths_of(inspection, on_cpu=setup.on_cpu)
    activations = 3 * CHUNK_BYTES + setup.score_bytes * length
    if widths is not None:
        chunk = chunk_tokens(length, widths, answers=True, on_cpu=setup.on_cpu)
        activations = chunk * (widths.row_bytes * length + 12 * (widths.feed_forward + widths.vocabulary))
        activations += widths.expanded * length * number
    return Need(length=length, weights=weights, kv_cache=kept, activations=activations, libraries=LIBRARIES_BYTES)


def widths_of(inspection: Inspection, *, on_cpu: bool) -> Widths | None:
    """The widths by config.json; None where a number is missing (a GGUF file has none)."""
    if not inspection.config:
        return None
    family = inspection.family
    _path, text = text_config(inspection.config, family)
    hidden = whole_number(text, "hidden_size") or whole_number(text, "n_embd")
    heads = whole_number(text, "num_attention_heads") or whole_number(text, "n_head") or family.num_attention_heads
    vocabulary = whole_number(text, "vocab_size") or whole_number(inspection.config, "vocab_size")
    if hidden is None or heads is None or vocabulary is None:
        return None
    expanded = 0
    if family.kv_cache == "latent":
        parts = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        expanded = heads * sum(whole_number(text, key) or 0 for key in parts)
    return Widths(
        feed_forward=whole_number(text, "intermediate_size") or whole_number(text, "ffn_dim") or 4 * hidden,
        vocabulary=vocabulary,
        expanded=expanded,
        row_bytes=row_bytes(
            attention_of(inspection),
            heads=heads,
            on_cpu=on_cpu,
            even=same_widths(lambda key: whole_number(text, key)),
        ),
    )


def longest(inspection: Inspection, memory: int, *, setup: Setup | None = None) -> int:
    """The longest text in tokens that ``memory`` bytes hold, down to a multiple of 1024 past that; 0 for none."""
    found = _most(lambda length: estimate(inspection, length=length, setup=setup).total <= memory, limit=1 << 30)
    return found if found < 1024 else found // 1024 * 1024


def whole_tokens(inspection: Inspection, memory: int | None, *, length: int, setup: Setup | None = None) -> int:
    """The longest text that one plain forward can read, without chunks, beside the weights and a cache of ``length``.

    At most ``length``, 0 for none. ``memory``: bytes that are free before the model is loaded; None: nobody knows.
    """
    setup = setup or Setup()
    if memory is None:
        return length
    widths = widths_of(inspection, on_cpu=setup.on_cpu)
    if widths is None:
        return min(length, SHORTEST_CHUNK)
    need = estimate(inspection, length=length, setup=setup)
    room = memory - (need.total - need.activations)
    a_token = 12 * widths.feed_forward + widths.expanded * (setup.cache_bytes or setup.weight_bytes or 2)
    answers = 12 * widths.vocabulary * SHORTEST_CHUNK
    return _most(lambda count: count * (widths.row_bytes * count + a_token) + answers <= room, limit=length)


def _most(fits: Callable[[int], bool], *, limit: int) -> int:
    """The largest number up to ``limit`` that fits, where all smaller ones do too; 0 for none."""
    low, high = 0, limit + 1
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def require(inspection: Inspection, *, length: int, memory: int | None, setup: Setup | None = None) -> Need:
    """The need, where ``memory`` bytes hold it (None: nobody knows). Raises :class:`RefusedError` with the numbers."""
    need = estimate(inspection, length=length, setup=setup)
    if memory is None or need.total <= memory:
        return need
    fitting = longest(inspection, memory, setup=setup)
    parts = (
        f"{show_bytes(need.weights)} weights, {show_bytes(need.kv_cache)} KV cache, "
        f"{show_bytes(need.activations)} activations, {show_bytes(need.libraries)} libraries"
    )
    if fitting:
        hint = f"{fitting} tokens is the longest that fits"
    else:
        hint = "the weights alone don't fit: --dtype bfloat16, another --device, or --engine llama.cpp with a GGUF"
    raise RefusedError(
        f"not enough memory for {show_tokens(length)} tokens",
        code="not-enough-memory",
        expected=f"{show_bytes(need.total)} ({parts})",
        found=f"{show_bytes(memory)} free",
        hint=hint,
    )


def available(device: str) -> int | None:
    """What is free on a device (``cpu``, or ``cuda`` with every card that is seen); None where nothing tells."""
    if device.startswith("cuda"):
        import torch

        index = torch.device(device).index
        cards = range(torch.cuda.device_count()) if index is None else (index,)
        return sum(torch.cuda.mem_get_info(card)[0] for card in cards)
    return host_available() if device == "cpu" else None


def host_available(root: Path = Path("/")) -> int | None:
    """What Linux says can still be had without swapping, or what the container has left, if that is less."""
    found = [size for size in (_meminfo(root / "proc/meminfo"), *_cgroups(root / "sys/fs/cgroup")) if size is not None]
    return min(found, default=None)


def _meminfo(file: Path) -> int | None:
    for line in _read(file).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1]:
            return int(value.split()[0]) << 10
    return None


def _cgroups(folder: Path) -> tuple[int | None, ...]:
    """What is left below the limit of version 2 and of version 1; pages that only cache files can be had back."""
    return (
        _left(folder / "memory.max", folder / "memory.current", folder / "memory.stat", "inactive_file"),
        _left(
            folder / "memory/memory.limit_in_bytes",
            folder / "memory/memory.usage_in_bytes",
            folder / "memory/memory.stat",
            "total_inactive_file",
        ),
    )


def _left(limit: Path, used: Path, stat: Path, cached: str) -> int | None:
    most, now = _read(limit).strip(), _read(used).strip()
    if not (most.isdecimal() and now.isdecimal()):
        return None
    given = dict(line.split(maxsplit=1) for line in _read(stat).splitlines() if " " in line)
    back = given.get(cached, "0").strip()
    return max(0, int(most) - int(now) + (int(back) if back.isdecimal() else 0))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
